"""Worker: how accepting is shared and who may call; its life is seen in ``tests/integration``."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from time import monotonic

import pytest
from children import in_child

from fastagi_pool.application import assemble
from fastagi_pool.config import load_text
from fastagi_pool.logs import LogFile, configure
from fastagi_pool.scoreboard import Scoreboard, SlotWriter, WorkerState
from fastagi_pool.worker import (
    ACTIVE_SLACK,
    TURNS_SLACK,
    Birth,
    Surroundings,
    Worker,
    _is_allowed,
)

_YAML = 'routes:\n  - {script: hello, handler: "fastagi_pool.handlers.demo:hello"}\n'


class Others:
    """A scoreboard with some workers on it.

    Attributes:
        board: The scoreboard.
        slots: The slots of the workers that are there already, all of them ready.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.board = Scoreboard.create(folder / "scoreboard", os.getpid(), monotonic())
        self.slots = [SlotWriter(self.board, number) for number in range(count)]
        for slot in self.slots:
            self.board.clear(slot.slot)
            slot.begin(1000 + slot.slot, 1, monotonic())
            slot.set_state(WorkerState.READY)
        self.board.clear(count)


def take_calls(slot: SlotWriter, calls: int, ended: bool) -> None:
    """Let a worker take calls, and end them if wanted."""
    for _ in range(calls):
        slot.call_begins()
        if ended:
            slot.call_ends(failed=False)


def steps_back(others: Others, folder: Path, calls: int, ended: bool) -> bool:
    """Tell whether a new worker that has taken so many calls would let the others go first."""

    def decide() -> bool:
        bell, ringer = os.pipe()
        application = assemble(load_text(_YAML, "pool.yaml", folder, {}))
        surroundings = Surroundings(LogFile(str(folder / "log")), None, ringer, bell)
        worker = Worker(Birth(len(others.slots), 1, others.board, ()), application, surroundings)
        mine = SlotWriter(others.board, len(others.slots))
        mine.set_state(WorkerState.READY)
        take_calls(mine, calls, ended)
        return worker._has_more_than_others()

    return bool(in_child(decide))


# --- how accepting is shared


@pytest.mark.parametrize(
    ("calls", "steps"), [(0, False), (ACTIVE_SLACK, False), (ACTIVE_SLACK + 1, True), (100, True)]
)
def test_busier_worker_steps_back(calls: int, steps: bool, tmp_path: Path) -> None:
    """A worker with clearly more calls in progress than the least busy one lets that take the next."""
    others = Others(tmp_path, 2)
    take_calls(others.slots[0], 50, ended=False)
    assert steps_back(others, tmp_path, calls, ended=False) is steps


@pytest.mark.parametrize(("calls", "steps"), [(TURNS_SLACK, False), (TURNS_SLACK + 1, True)])
def test_worker_that_took_more_turns_steps_back(calls: int, steps: bool, tmp_path: Path) -> None:
    """Of workers that are equally idle the one that had clearly more turns steps back."""
    assert steps_back(Others(tmp_path, 2), tmp_path, calls, ended=True) is steps


def test_newcomer_need_not_catch_up(tmp_path: Path) -> None:
    """A new worker counts its turns from where the others stand, and is not flooded."""
    others = Others(tmp_path, 2)
    for slot in others.slots:
        take_calls(slot, 1000, ended=True)
    assert steps_back(others, tmp_path, TURNS_SLACK + 1, ended=True)


def test_worker_alone_never_steps_back(tmp_path: Path) -> None:
    """Where nobody else accepts, there is nobody to wait for."""
    assert not steps_back(Others(tmp_path, 0), tmp_path, 500, ended=False)


def test_draining_workers_do_not_count(tmp_path: Path) -> None:
    """A worker that accepts no more is no reason to step back, however idle it is."""
    others = Others(tmp_path, 1)
    others.slots[0].set_state(WorkerState.DRAINING)
    assert not steps_back(others, tmp_path, 500, ended=False)


# --- who may call


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.1.2.3", False),
        ("::ffff:11.1.2.3", False),
        ("fd00::1", True),
        ("fd00::1%eth0", True),
        ("fe80::1%eth0", False),
        ("::1", False),
        ("unix", True),
    ],
)
def test_allowed_networks(peer: str, allowed: bool) -> None:
    """A list of networks holds for IPv4, IPv6 and IPv4 in IPv6; a Unix socket has its own rights."""
    assert _is_allowed(peer, [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]) is allowed


@pytest.mark.parametrize("peer", ["10.1.2.3", "::1", "unix"])
def test_everybody_is_allowed_without_a_list(peer: str) -> None:
    """Without a list everybody may call who can connect."""
    assert _is_allowed(peer, [])


# --- its end


def test_worker_without_a_master_ends(tmp_path: Path) -> None:
    """A worker whose lifeline ends, because the master is gone, ends by itself with exit code 0."""
    others = Others(tmp_path, 0)

    def live() -> int:
        lifeline, master = os.pipe()
        _, ringer = os.pipe()
        application = assemble(load_text(_YAML, "pool.yaml", tmp_path, {}))
        surroundings = Surroundings(LogFile(str(tmp_path / "log")), None, ringer, lifeline)
        configure(surroundings.log, "info", "loader")
        worker = Worker(Birth(0, 1, others.board, ()), application, surroundings)
        os.close(master)
        return worker.run()

    assert in_child(live) == 0
    assert "the master is gone: finishing 0 calls" in (tmp_path / "log").read_text()
