"""Master: its small decisions by tables, and the beginning of a life with a scripted loader.

Everything else that it does is seen from outside, in ``tests/integration``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import pytest
from children import in_child

from fastagi_pool.master import (
    Master,
    MasterOptions,
    _await_end,
    _await_orphans,
    _describe,
    _forget_the_dead,
    _has_crashed,
    _is_readable,
    _is_somebodys_child,
    _kill,
    understand,
)
from fastagi_pool.messages import Channel, Inheritance, Loaded, Refused
from fastagi_pool.notify import Notifier
from fastagi_pool.pool import ExitCode, Phase, Pool, PoolLimits, WorkerHandle
from fastagi_pool.takeover import LoaderState, MasterState, Program, TakeoverRefused

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


def test_orphans_are_awaited_for_a_while() -> None:
    """Witnesses that still tell calls are waited for at the end, all of them, but none for ever."""

    def wait() -> list[bool]:
        reading, writing = os.pipe()
        pids = []
        for _ in range(2):
            pids.append(os.fork())
            if pids[-1] == 0:
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
        _await_orphans(0.01)
        still_there = os.waitpid(-1, os.WNOHANG) == (0, 0)
        os.close(writing)
        began_s = time.monotonic()
        _await_orphans(15.0)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return [still_there, time.monotonic() - began_s < 15.0]
        return [still_there, False]

    assert in_child(wait) == [True, True]


# --- the first load


def _life(loader: Any) -> tuple[int, list[str]]:
    """Live as a master with this loader, in a child; return the exit code and what was reported."""

    def live() -> tuple[int, list[str]]:
        reported: list[str] = []
        options = MasterOptions(
            loader=loader,
            observer=lambda order, lifeline_fd: 0,
            report=reported.append,
            serving=lambda addresses: None,
            inherited=(),
            set_title=lambda title: None,
            notifier=Notifier(),
            program=Program(("/nonexistent",), "/"),
        )
        return int(Master(options).run()), reported

    code, reported = in_child(live)
    return code, reported


@pytest.mark.parametrize(("boot", "code"), [(False, ExitCode.CONFIG), (True, ExitCode.BOOT)])
def test_refused_first_load(boot: bool, code: ExitCode) -> None:
    """What the loader says of the first configuration is shown, and is the end, with its exit code."""

    def refuse(channel: Channel, inheritance: Inheritance) -> int:
        channel.send(Refused("pool.yaml:1: nonsense", boot))
        return 0

    assert _life(refuse) == (code, ["pool.yaml:1: nonsense"])


def test_loader_that_dies_at_the_first_load() -> None:
    """A loader that ends without a word is reported, not waited for."""

    def die(channel: Channel, inheritance: Inheritance) -> int:
        return 1

    assert _life(die) == (ExitCode.CONFIG, ["the loader died while it loaded"])


def test_loader_can_tell_that_the_master_lives() -> None:
    """A loader's lifeline is silent while the master lives, and signals no longer wake the master."""

    def look(channel: Channel, inheritance: Inheritance) -> int:
        os.set_blocking(inheritance.lifeline, False)
        try:
            said = f"the lifeline says {os.read(inheritance.lifeline, 1)!r}"
        except BlockingIOError:
            said = "silence"
        channel.send(Refused(f"{said}, wake-up {signal.set_wakeup_fd(-1)}"))
        return 0

    assert _life(look) == (ExitCode.CONFIG, ["silence, wake-up -1"])


# --- what a former program has left

_LOADED: Final = Loaded(
    limits={"workers": 2},
    listen=[],
    restricted=False,
    backlog=16,
    runtime_dir="/run/x",
    pid_file="",
    log={"file": "-", "level": "info", "format": "text", "facility": "daemon"},
    rotated=[],
    rotation={"daily": False, "size_bytes": 0, "keep": 14},
    observer={"host": "", "port": 0, "allow": []},
    identity={},
    umask="",
    chdir="",
)


def _left() -> MasterState:
    """What a master with one worker hands over."""
    pool = Pool(PoolLimits(workers=2), lambda: 0.0)
    pool.handles[4] = WorkerHandle(4, 1, Phase.SERVING, 1.0, 1.0, pid=42)
    return MasterState(
        version="0.1",
        board_fd=-1,
        listeners={},
        pid_files={},
        bell=(-1, -1),
        lifeline=(-1, -1),
        loaders=(LoaderState(1, 41, -1, 1.0, asdict(_LOADED), ()), LoaderState(2, 43, -1, 1.0, None, ())),
        loaded=asdict(_LOADED),
        kept=(),
        generations=2,
        observer_pid=0,
        pool=pool.state(),
        supervision={"reloads": 3},
    )


def test_what_was_left_is_understood() -> None:
    """Of what a former program has left this one makes what it works with."""
    loaded, pool = understand(_left())
    assert loaded == _LOADED
    assert pool.handles[4].pid == 42


def test_an_older_program_knew_of_no_quarantine() -> None:
    """What a program left that had no quarantine is understood; nothing is refused until it loads anew."""
    loaded, _ = understand(replace(_left(), loaded=_without(asdict(_LOADED), "quarantine")))
    assert loaded.quarantine == {}


def _without(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: content for key, content in fields.items() if key != name}


@pytest.mark.parametrize(
    "state",
    [
        replace(_left(), loaded=_without(asdict(_LOADED), "umask")),
        replace(_left(), loaded={**asdict(_LOADED), "further": 1}),
        replace(_left(), loaders=(LoaderState(1, 41, -1, 1.0, {"further": 1}, ()),)),
        replace(_left(), pool=_without(_left().pool, "handles")),
        replace(_left(), pool={**_left().pool, "limits": {"further": 1}}),
        replace(_left(), pool={**_left().pool, "handles": [{"dumped_in": None, "phase": "resting"}]}),
        replace(_left(), supervision={"further": 1}),
        replace(_left(), loaded={**asdict(_LOADED), "rotation": {"further": 1}}),
        replace(_left(), loaded={**asdict(_LOADED), "observer": {"allow": [], "further": 1}}),
        replace(_left(), loaded={**asdict(_LOADED), "log": _without(_LOADED.log, "facility")}),
    ],
)
def test_what_is_too_different_is_refused(state: MasterState) -> None:
    """What another version has left is refused as a whole if any part of it is not this version's."""
    with pytest.raises(TakeoverRefused, match="cannot be read"):
        understand(state)


def test_figures_of_the_dead_are_removed(tmp_path: Path) -> None:
    """What an earlier master's workers have left is not taken for this one's; nothing else is touched."""
    left = [tmp_path / folder / "0" for folder in ("calls", "tallies", "stacks", "recordings")]
    for path in left:
        path.parent.mkdir()
        path.touch()
    _forget_the_dead(tmp_path)
    assert [path.exists() for path in left] == [False, False, False, True]


def test_a_link_is_not_followed_when_the_dead_are_forgotten(tmp_path: Path) -> None:
    """What somebody's link in the runtime folder leads to stays, and the link goes; so do folders in ours."""
    others, runtime_dir = tmp_path / "others", tmp_path / "run"
    others.mkdir()
    (others / "file").touch()
    (runtime_dir / "tallies" / "below").mkdir(parents=True)
    (runtime_dir / "calls").symlink_to(others)
    _forget_the_dead(runtime_dir)
    assert (others / "file").exists()
    assert list(runtime_dir.iterdir()) == []


def test_readable() -> None:
    """Whether something waits to be read is seen without reading it."""
    reading, writing = os.pipe()
    assert not _is_readable(reading)
    os.write(writing, b"x")
    assert _is_readable(reading)
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("phase", "dumped_in", "status", "memory_ran_out", "crashed"),
    [
        (Phase.SERVING, None, signal.SIGSEGV, False, True),
        (Phase.SERVING, None, 1 << 8, False, True),
        (Phase.SERVING, None, 0, False, True),
        (Phase.SERVING, None, signal.SIGKILL, False, False),
        (Phase.SERVING, None, signal.SIGKILL, True, True),
        (Phase.SERVING, None, -1, False, False),
        (Phase.KILLED, Phase.SERVING, signal.SIGKILL, False, True),
        (Phase.KILLED, None, signal.SIGKILL, False, False),
    ],
    ids=["fault", "exit", "exit-0", "killed", "out-of-memory", "unseen", "stuck", "out-of-time"],
)
def test_what_a_call_may_be_blamed_for(
    phase: Phase, dumped_in: Phase | None, status: int, memory_ran_out: bool, crashed: bool
) -> None:
    """Who was killed from outside was not ended by a call, unless it was by the kernel or the watchdog."""
    handle = WorkerHandle(0, 1, phase, 0.0, 0.0, dumped_in=dumped_in)
    assert _has_crashed(handle, status, memory_ran_out) is crashed
