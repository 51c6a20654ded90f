"""fastagi_pool.status: what a scoreboard tells to whoever asks from outside."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from fastagi_pool.scoreboard import Scoreboard, SlotWriter, WorkerState
from fastagi_pool.status import read_status


@pytest.fixture
def dead_pid() -> int:
    """The pid of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def board_of(folder: Path, master_pid: int) -> Scoreboard:
    """Make a board with one serving and one draining worker, two calls in the one, three in the other."""
    board = Scoreboard.create(folder / "scoreboard", master_pid, 1000.0)
    board.set_generation(2)
    for slot, (state, active) in enumerate([(WorkerState.DRAINING, 2), (WorkerState.READY, 3)]):
        board.clear(slot)
        writer = SlotWriter(board, slot)
        writer.begin(5000 + slot, 1 + slot, 1010.0)
        writer.promise(1100.0)
        for _ in range(active):
            writer.call_begins()
        writer.set_state(state)
    return board


def test_a_running_pool(tmp_path: Path) -> None:
    """While the master lives, status tells its generation, its age and all its workers."""
    board_of(tmp_path, os.getpid())
    status = read_status(tmp_path, 1060.0)
    assert (status.master_pid, status.running) == (os.getpid(), True)
    assert (status.generation, status.uptime_s) == (2, 60.0)
    assert [facts.pid for facts in status.workers] == [5000, 5001]


def test_a_pool_whose_master_is_dead(tmp_path: Path, dead_pid: int) -> None:
    """After a crash of the master status says so, and still tells what was last known."""
    board_of(tmp_path, dead_pid)
    status = read_status(tmp_path, 1060.0)
    assert not status.running
    assert len(status.workers) == 2


def test_a_master_of_somebody_else_lives(tmp_path: Path) -> None:
    """A master that one may not signal, as root's for a user, counts as alive."""
    board_of(tmp_path, 1)
    assert read_status(tmp_path, 1060.0).running


def test_as_json(tmp_path: Path) -> None:
    """The JSON form has plain values only, with ages instead of monotonic times."""
    board_of(tmp_path, os.getpid())
    content = json.loads(json.dumps(read_status(tmp_path, 1060.0).as_json(1060.0)))
    workers = content.pop("workers")
    assert content == {
        "master_pid": os.getpid(),
        "running": True,
        "generation": 2,
        "uptime_s": 60.0,
        "active": 5,
    }
    assert workers[0] == {
        "slot": 0,
        "pid": 5000,
        "generation": 1,
        "state": "draining",
        "age_s": 50.0,
        "active": 2,
        "served": 0,
        "failed": 0,
        "rss_bytes": 0,
    }
    assert [worker["state"] for worker in workers] == ["draining", "ready"]


def test_a_folder_without_a_pool(tmp_path: Path) -> None:
    """Where no pool ever ran, the error is the system's."""
    with pytest.raises(FileNotFoundError):
        read_status(tmp_path, 1060.0)


def test_a_board_of_another_version(tmp_path: Path) -> None:
    """A board that this program cannot read is not guessed at."""
    (tmp_path / "scoreboard").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a scoreboard of this version"):
        read_status(tmp_path, 1060.0)
