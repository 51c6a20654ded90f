"""fastagi_pool.bulletin: what onlookers read on a real scoreboard, and the service manager hears."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from fastagi_pool.bulletin import STATUS_S, Bulletin
from fastagi_pool.doors import Queue
from fastagi_pool.notify import Notifier
from fastagi_pool.pool import Phase, Pool, PoolLimits, Stopping, WorkerHandle
from fastagi_pool.scoreboard import Scoreboard, Supervision

_PID: Final = 42
_QUEUE: Final = Queue(3, 128)


class Onlookers:
    """A bulletin, and all who read it.

    Attributes:
        bulletin: The one under test.
        board: Where it publishes.
        pool: How the pool fares.
    """

    def __init__(self, folder: Path) -> None:
        self.board = Scoreboard.create(folder / "scoreboard", _PID, 1.0)
        self.pool = Pool(PoolLimits(workers=2), lambda: 0.0)
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(folder / "notify"))
        self._manager.setblocking(False)
        self.bulletin = Bulletin(Notifier(str(folder / "notify")), _PID)

    def publish(self, now_s: float, queue: Queue = _QUEUE, lost_lines: int = 0) -> Supervision:
        """Let the bulletin tell; return what stands on the board."""
        self.bulletin.publish(self.board, self.pool, queue, lost_lines, now_s)
        return self.board.supervision

    def heard(self) -> list[str]:
        """What the service manager has heard since the last look."""
        messages = []
        while True:
            try:
                messages.append(self._manager.recv(4096).decode())
            except BlockingIOError:
                return messages

    def close(self) -> None:
        """Listen no more."""
        self._manager.close()


@pytest.fixture
def onlookers(tmp_path: Path) -> Iterator[Onlookers]:
    """Give a bulletin of a pool of two workers."""
    onlookers = Onlookers(tmp_path)
    yield onlookers
    onlookers.close()


def test_state_of_the_pool(onlookers: Onlookers) -> None:
    """The board has how many workers shall serve, who waits, what was lost, and why workers were replaced."""
    onlookers.pool.restarts.update(died=2, calls=5)
    told = onlookers.publish(10.0, lost_lines=7)
    assert (told.workers_wanted, told.listen_queue, told.listen_limit, told.lost_lines) == (2, 3, 128, 7)
    assert (told.restarts["died"], told.restarts["calls"], told.restarts["memory"]) == (2, 5, 0)
    onlookers.pool.resize(1)
    assert onlookers.publish(11.0).workers_wanted == 3


def test_most_that_waited(onlookers: Onlookers) -> None:
    """The most that were seen waiting stays when they have been served."""
    waiting = [onlookers.publish(10.0, Queue(length, 128)).listen_most for length in (1, 9, 4, 0)]
    assert waiting == [1, 9, 9, 9]


def test_reload_that_succeeds(onlookers: Onlookers) -> None:
    """A reload is seen from its beginning to its end, and counted once."""
    onlookers.bulletin.reload_begins(10.0)
    onlookers.bulletin.reload_begins(11.0)
    told = onlookers.publish(11.0)
    assert (told.loading, told.reloads) == (True, 0)
    onlookers.bulletin.reload_ends(12.5)
    told = onlookers.publish(13.0)
    assert (told.loading, told.reloads, told.refused, told.last_reload_s) == (False, 1, 0, 12.5)
    first, last = (each for each in onlookers.heard() if "MONOTONIC" in each or "READY" in each)
    assert first == "RELOADING=1\nMONOTONIC_USEC=10000000\nSTATUS=loading configuration and code"
    assert last == "READY=1\nMAINPID=42\nSTATUS=reloaded"


def test_reload_that_is_refused(onlookers: Onlookers) -> None:
    """A refusal is counted and its reason stands until the next reload, which may succeed."""
    onlookers.bulletin.reload_begins(10.0)
    onlookers.bulletin.reload_ends(12.0, "pool.yaml:1: nonsense\nfurther")
    told = onlookers.publish(12.0)
    assert (told.loading, told.reloads, told.refused) == (False, 1, 1)
    assert told.error == "pool.yaml:1: nonsense\nfurther"
    assert "READY=1\nMAINPID=42\nSTATUS=a reload was refused, nothing changed" in onlookers.heard()
    onlookers.bulletin.reload_begins(20.0)
    onlookers.bulletin.reload_ends(21.0)
    told = onlookers.publish(21.0)
    assert (told.reloads, told.refused, told.error) == (2, 1, "")


def test_first_generation_is_no_reload(onlookers: Onlookers) -> None:
    """That the very first generation serves is told as the beginning, and not as the end of a reload."""
    onlookers.bulletin.reload_ends(12.0)
    told = onlookers.publish(12.0)
    assert (told.reloads, told.last_reload_s) == (0, 0.0)
    assert not any("READY" in message for message in onlookers.heard())


def test_upgrades(onlookers: Onlookers) -> None:
    """Upgrades are counted, also those that were refused, whose reason can be read."""
    onlookers.bulletin.upgrade_ends("no module named x")
    told = onlookers.publish(10.0)
    assert (told.upgrades, told.error) == (1, "no module named x")
    onlookers.bulletin.upgrade_ends()
    told = onlookers.publish(11.0)
    assert (told.upgrades, told.error) == (2, "")


def test_figures_go_on_in_the_next_program(onlookers: Onlookers) -> None:
    """A program that takes over goes on counting, and publishes all of it at once."""
    onlookers.bulletin.reload_begins(11.0)
    onlookers.bulletin.reload_ends(12.0, "why")
    onlookers.publish(12.0, Queue(50, 128))
    heir = Bulletin(Notifier(), _PID)
    heir.restore(onlookers.bulletin.state())
    onlookers.board.supervise(Supervision())
    heir.publish(onlookers.board, onlookers.pool, _QUEUE, 0, 13.0)
    told = onlookers.board.supervision
    assert (told.reloads, told.refused, told.error, told.listen_most) == (1, 1, "why", 50)


def test_what_workers_took_with_them(onlookers: Onlookers) -> None:
    """Calls that died with workers and requests in quarantine are told, and go on in the next program."""
    onlookers.bulletin.calls_were_lost(7, 2)
    told = onlookers.publish(2.0)
    assert (told.lost_calls, told.quarantined) == (7, 2)
    following = Bulletin(Notifier(""), _PID)
    following.restore(onlookers.bulletin.state())
    assert (following.lost_calls, following.quarantined) == (7, 2)


def test_beginning(onlookers: Onlookers) -> None:
    """When the pool serves the service manager hears it, with the master's process id."""
    onlookers.bulletin.serves("listening on 127.0.0.1:4577")
    assert onlookers.heard() == ["READY=1\nMAINPID=42\nSTATUS=listening on 127.0.0.1:4577"]


def test_end(onlookers: Onlookers) -> None:
    """The end is told once, however often it is asked for, and nothing is told of workers any more."""
    onlookers.pool.stop(Stopping.GRACEFUL, 10.0)
    for _ in range(2):
        onlookers.bulletin.stops(34.0, 5)
    assert onlookers.publish(10.0).stopping
    assert onlookers.heard() == [
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=34000000\nSTATUS=stopping; 5 calls in progress"
    ]


def serving(slot: int, active: int) -> WorkerHandle:
    """A worker that serves."""
    return WorkerHandle(slot, 1, Phase.SERVING, 0.0, 0.0, active=active)


def draining(slot: int, active: int) -> WorkerHandle:
    """A worker that finishes its calls."""
    return WorkerHandle(slot, 1, Phase.DRAINING, 0.0, 0.0, active=active)


@pytest.mark.parametrize(
    ("workers", "line"),
    [
        ((), "0 of 2 workers serve, 0 calls in progress"),
        ((serving, serving), "2 of 2 workers serve, 6 calls in progress"),
        (
            (serving, draining, draining),
            "1 of 2 workers serve, 9 calls in progress, 2 old workers finish theirs",
        ),
    ],
)
def test_line_for_the_service_manager(
    workers: tuple[Callable[[int, int], WorkerHandle], ...], line: str, onlookers: Onlookers
) -> None:
    """``systemctl status`` shows in one line how the pool fares."""
    onlookers.pool.handles = {slot: make(slot, 3) for slot, make in enumerate(workers)}
    onlookers.publish(10.0)
    assert onlookers.heard() == [f"STATUS={line}"]


def test_line_is_not_told_all_the_time(onlookers: Onlookers) -> None:
    """The line is told when it has changed, and no more often than every few seconds."""
    for now_s, active in ((10.0, 0), (10.2, 1), (10.0 + STATUS_S, 1), (30.0, 1), (30.1, 2)):
        onlookers.pool.handles = {0: serving(0, active)}
        onlookers.publish(now_s)
    assert [line.rpartition(", ")[2] for line in onlookers.heard()] == [
        "0 calls in progress",
        "1 calls in progress",
        "2 calls in progress",
    ]


def test_a_reload_is_not_talked_over(onlookers: Onlookers) -> None:
    """While a generation is loaded its status stays: it says what the operator waits for."""
    onlookers.bulletin.reload_begins(10.0)
    onlookers.heard()
    onlookers.publish(11.0)
    assert onlookers.heard() == []
