"""Master: its small decisions by tables, and the beginning of a life with a scripted loader.

Everything else that it does is seen from outside, in ``tests/integration``.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from children import in_child

from fastagi_pool.errors import BootError
from fastagi_pool.master import (
    Master,
    MasterOptions,
    _await_end,
    _describe,
    _is_somebodys_child,
    _kill,
    _lock,
)
from fastagi_pool.messages import Channel, Refused
from fastagi_pool.pool import ExitCode

# --- the pid file


def test_lock_holds_our_pid(tmp_path: Path) -> None:
    """The file says who holds it, whatever it held before."""
    path = tmp_path / "master.pid"
    path.write_text("something longer than a process id\n")
    descriptor = _lock(path)
    assert path.read_text() == f"{os.getpid()}\n"
    os.close(descriptor)


def test_lock_is_exclusive(tmp_path: Path) -> None:
    """A second master is told the process id of the first and what to do."""
    path = tmp_path / "master.pid"
    descriptor = _lock(path)

    def try_to_lock() -> str:
        with pytest.raises(BootError) as caught:
            _lock(path)
        return str(caught.value)

    told = in_child(try_to_lock)
    assert told == (f"another fastagi-pool (pid {os.getpid()}) holds {path}; give each its own runtime_dir")
    assert path.read_text() == f"{os.getpid()}\n"
    os.close(descriptor)


def test_lock_goes_with_its_holder(tmp_path: Path) -> None:
    """A master that died, however it died, locks nobody out."""
    path = tmp_path / "master.pid"
    in_child(lambda: _lock(path))
    os.close(_lock(path))


# --- processes


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0, "exit code 0"),
        (1 << 8, "exit code 1"),
        (255 << 8, "exit code 255"),
        (int(signal.SIGKILL), "killed by SIGKILL"),
        (int(signal.SIGTERM), "killed by SIGTERM"),
        (int(signal.SIGSEGV) | 0x80, "killed by SIGSEGV"),
        (-1, "nobody saw how"),
    ],
)
def test_ends_are_described(status: int, said: str) -> None:
    """A status of waitpid becomes words that an operator understands."""
    assert _describe(status) == said


def test_real_time_signal_is_described() -> None:
    """A signal for which Python has no name is described as well, or the worker's end would be lost."""
    assert "35" in _describe(35)


def test_children_are_told_from_strangers() -> None:
    """A process is somebody's child only as long as it lives and has that parent."""
    child = subprocess.Popen(("sleep", "60"))
    assert _is_somebodys_child(child.pid, [1, os.getpid()])
    assert not _is_somebodys_child(child.pid, [1])
    child.kill()
    child.wait()
    assert not _is_somebodys_child(child.pid, [1, os.getpid()])


def test_killing_the_dead_is_no_error() -> None:
    """A process that ended a moment ago may still be sent a signal."""
    child = subprocess.Popen(("true",))
    child.wait()
    _kill(child.pid, signal.SIGTERM)


@pytest.mark.parametrize("stubborn", [False, True])
def test_end_is_awaited(stubborn: bool) -> None:
    """A child that was told to end is buried, and killed if it does not end by itself."""
    pid = os.fork()
    if pid == 0:
        if stubborn:
            signal.pause()
        os._exit(0)
    _await_end(pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


# --- the first load


def _life(loader: Any) -> tuple[int, list[str]]:
    """Live as a master with this loader, in a child; return the exit code and what was reported."""

    def live() -> tuple[int, list[str]]:
        reported: list[str] = []
        options = MasterOptions(
            loader=loader,
            report=reported.append,
            serving=lambda addresses: None,
            inherited=(),
            set_title=lambda title: None,
        )
        return int(Master(options).run()), reported

    code, reported = in_child(live)
    return code, reported


@pytest.mark.parametrize(("boot", "code"), [(False, ExitCode.CONFIG), (True, ExitCode.BOOT)])
def test_refused_first_load(boot: bool, code: ExitCode) -> None:
    """What the loader says of the first configuration is shown, and is the end, with its exit code."""

    def refuse(channel: Channel, bell_fd: int, lifeline_fd: int) -> int:
        channel.send(Refused("pool.yaml:1: nonsense", boot))
        return 0

    assert _life(refuse) == (code, ["pool.yaml:1: nonsense"])


def test_loader_that_dies_at_the_first_load() -> None:
    """A loader that ends without a word is reported, not waited for."""

    def die(channel: Channel, bell_fd: int, lifeline_fd: int) -> int:
        return 1

    assert _life(die) == (ExitCode.CONFIG, ["the loader died while it loaded"])


def test_loader_can_tell_that_the_master_lives() -> None:
    """A loader's lifeline is silent while the master lives, and signals no longer wake the master."""

    def look(channel: Channel, bell_fd: int, lifeline_fd: int) -> int:
        os.set_blocking(lifeline_fd, False)
        try:
            said = f"the lifeline says {os.read(lifeline_fd, 1)!r}"
        except BlockingIOError:
            said = "silence"
        channel.send(Refused(f"{said}, wake-up {signal.set_wakeup_fd(-1)}"))
        return 0

    assert _life(look) == (ExitCode.CONFIG, ["silence, wake-up -1"])
