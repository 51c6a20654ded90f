"""Replay keeping: the process that replays is there when it is needed, and only one at a time.

What it replays, and that it follows a reload and a stop, is seen in ``tests/integration/test_outage.py``.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from children import in_child

from fastagi_pool.application import Application, assemble
from fastagi_pool.backlog import BACKLOG_NAME
from fastagi_pool.config import load_text
from fastagi_pool.deferring import deferrable
from fastagi_pool.journal import Journal
from fastagi_pool.logs import LogFile, configure
from fastagi_pool.replaykeeping import PAUSE_S, ReplayKeeper, ReplaySettings

_WAIT_S: Final = 20.0


@deferrable
def note(call: object, context: object) -> None:
    """Be a handler whose calls can be done later."""


def _application(folder: Path) -> Application:
    text = (
        f"runtime_dir: {folder}\n"
        f"journal: {{file: {folder / 'journal.db'}}}\n"
        f"databases: {{main: {{url: 'sqlite:///{folder / 'calls.db'}'}}}}\n"
        "routes: [{script: note, handler: 'here:note'}]\n"
    )
    return assemble(load_text(text, "test", folder, {}), {"here:note": note})


def _settings(folder: Path, lifeline: int) -> ReplaySettings:
    return ReplaySettings(
        journal=folder / "journal.db",
        max_bytes=10_000_000,
        backlog=folder / BACKLOG_NAME,
        runtime_dir=folder,
        node="here",
        lifeline_fd=lifeline,
        generation=1,
    )


def _await(what: Callable[[], bool]) -> bool:
    """Wait until something has happened, which may be seen once only."""
    give_up_s = time.monotonic() + _WAIT_S
    while time.monotonic() < give_up_s:
        if what():
            return True
        time.sleep(0.02)
    return False


def _locks(folder: Path) -> bool:
    """Whether a process replays this journal."""
    try:
        lock = os.open(folder / "journal.db.replay", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _ended(keeper: ReplayKeeper) -> bool:
    """Reap what has ended, as the zygote does; whether it was the process that replays."""
    with suppress(ChildProcessError):
        pid, _ = os.waitpid(-1, os.WNOHANG)
        return bool(pid) and keeper.has_ended(pid)
    return False


@pytest.fixture
def lifeline() -> Iterator[int]:
    """Give the reading end of a lifeline that lasts as long as the test."""
    reading, writing = os.pipe()
    yield reading
    os.close(writing)
    os.close(reading)


def _keep(folder: Path, lifeline: int) -> ReplayKeeper:
    configure(LogFile(str(folder / "log")), "info", "test")
    keeper = ReplayKeeper(_application(folder), _settings(folder, lifeline), lambda: None, lambda: None)
    keeper.begin(1)
    return keeper


def _die_and_come_again(folder: Path, lifeline: int) -> None:
    keeper = _keep(folder, lifeline)
    assert _await(lambda: _locks(folder))
    first = keeper._pid
    os.kill(first, signal.SIGKILL)
    assert _await(lambda: _ended(keeper))
    time.sleep(PAUSE_S)
    keeper.look_after()
    assert keeper._pid not in (0, first)
    assert _await(lambda: _locks(folder))
    keeper.dismiss()
    assert _await(lambda: _ended(keeper))
    keeper.look_after()
    assert keeper._pid == 0


def test_one_that_died_is_followed_by_another(tmp_path: Path, lifeline: int) -> None:
    """A process that was killed is replaced; one that was dismissed is not."""
    in_child(lambda: _die_and_come_again(tmp_path, lifeline))


def _take_turns(folder: Path, lifeline: int) -> None:
    old = _keep(folder, lifeline)
    assert _await(lambda: _locks(folder))
    new = _keep(folder, lifeline)
    time.sleep(0.2)
    old.dismiss()
    assert _await(lambda: _ended(old))
    assert _await(lambda: _locks(folder)), "the next one takes its turn"
    new.dismiss()
    assert _await(lambda: _ended(new))


def test_only_one_replays(tmp_path: Path, lifeline: int) -> None:
    """The process of a new generation waits until that of the old one is gone, and then replays."""
    in_child(lambda: _take_turns(tmp_path, lifeline))


def _be_told_to_end(folder: Path, lifeline: int) -> None:
    keeper = _keep(folder, lifeline)
    assert _await(lambda: _locks(folder))
    os.kill(keeper._pid, signal.SIGTERM)
    assert _await(lambda: _ended(keeper))
    Journal.open(folder / "journal.db", 10_000_000, folder / BACKLOG_NAME).close()


def test_it_ends_in_order(tmp_path: Path, lifeline: int) -> None:
    """Told to end, it lets go of the journal, which anybody can open afterwards."""
    in_child(lambda: _be_told_to_end(tmp_path, lifeline))
