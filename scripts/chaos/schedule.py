"""Schedule: what is disturbed when, decided by a seed alone.

Laws:
    * Pure: the same seed and length give the same schedule, on every machine.
    * Disturbances of one subject never overlap; those of different subjects do as they like.
    * All kinds of a subject come before one of them comes again, so that a run of some minutes has them all.
    * All is undone some seconds before the load ends.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Subject(Enum):
    """What only one disturbance at a time can concern."""

    PROCESSES = "processes"
    DATABASE = "database"
    DISK = "disk"
    CLOCK = "clock"
    OPERATOR = "operator"


class What(Enum):
    """What is done."""

    KILL_WORKER = "worker killed (SIGKILL)"
    CRASH_WORKER = "worker crashed (SIGSEGV)"
    KILL_REPLAY = "replay killed"
    KILL_WITNESS = "witness killed"
    KILL_LOADER = "loader killed"
    KILL_LAUNCHER = "launcher killed"
    KILL_OBSERVER = "observer killed"
    DATABASE_KILLED = "database killed, later started"
    DATABASE_STOPPED = "database stopped, later started"
    DATABASE_FROZEN = "database frozen"
    DATABASE_DEMOTED = "database read-only"
    NETWORK_CUT = "network to it cut"
    NETWORK_RESET = "its connections reset"
    NETWORK_DELAYED = "network to it slow"
    NETWORK_THROTTLED = "network to it narrow"
    DISK_FULL = "disk of the journal full"
    CLOCK_FORWARD = "clock set forward"
    CLOCK_BACK = "clock set back"
    RELOAD = "reload (HUP)"
    UPGRADE = "upgrade (USR2)"
    MORE_WORKERS = "a worker more, later fewer (TTIN, TTOU)"


@dataclass(frozen=True, slots=True)
class Disturbance:
    """One thing that is done, and undone.

    Attributes:
        what: What.
        begin_s: When, counted from the run's begin.
        end_s: When it is undone; the same as ``begin_s`` for what has no end.
        size: From 0 to 1: how much, or which one.
    """

    what: What
    begin_s: float
    end_s: float
    size: float


@dataclass(frozen=True, slots=True)
class _Habit:
    """How often a subject is disturbed.

    Attributes:
        deck: What is done, each as often as it stands here before all comes again.
        gap_s: Shortest and longest time between two.
        length_s: Shortest and longest time until one is undone; zeros for at once.
    """

    deck: tuple[What, ...]
    gap_s: tuple[float, float]
    length_s: tuple[float, float] = (0.0, 0.0)


_DATABASE: Final = (
    What.DATABASE_KILLED,
    What.DATABASE_STOPPED,
    What.DATABASE_FROZEN,
    What.DATABASE_DEMOTED,
    What.NETWORK_CUT,
    What.NETWORK_RESET,
    What.NETWORK_DELAYED,
    What.NETWORK_THROTTLED,
)
_KILLS: Final = (
    What.KILL_REPLAY,
    What.KILL_WITNESS,
    What.KILL_LOADER,
    What.KILL_LAUNCHER,
    What.KILL_OBSERVER,
    *(What.KILL_WORKER,) * 5,
    *(What.CRASH_WORKER,) * 2,
)
_HABITS: Final[Mapping[Subject, _Habit]] = {
    Subject.PROCESSES: _Habit(_KILLS, (1.0, 6.0)),
    Subject.DATABASE: _Habit(_DATABASE, (2.0, 7.0), (1.0, 6.0)),
    Subject.DISK: _Habit((What.DISK_FULL,), (15.0, 45.0), (2.0, 6.0)),
    Subject.CLOCK: _Habit((What.CLOCK_FORWARD, What.CLOCK_BACK), (10.0, 30.0), (4.0, 12.0)),
    Subject.OPERATOR: _Habit((What.RELOAD, What.UPGRADE, What.MORE_WORKERS), (6.0, 20.0), (3.0, 6.0)),
}
#: Before the first and after the last disturbance all is well for so long.
_QUIET_S: Final = 2.0


def make_schedule(seed: int, length_s: float, subjects: frozenset[Subject]) -> tuple[Disturbance, ...]:
    """Decide what is disturbed when.

    Args:
        seed: Decides everything.
        length_s: How long the load lasts.
        subjects: What is disturbed; leaving one out changes nothing about the others.

    Returns:
        In order of their begin.
    """
    # The generator takes no tuple; a text it takes the same way on every machine.
    found = [
        each
        for subject in subjects
        for each in _of_subject(_HABITS[subject], random.Random(f"{seed} {subject.value}"), length_s)
    ]
    return tuple(sorted(found, key=lambda each: (each.begin_s, each.what.name)))


def _of_subject(habit: _Habit, chance: random.Random, length_s: float) -> Iterator[Disturbance]:
    time_s, deck = _QUIET_S, list[What]()
    while True:
        begin_s = time_s + chance.uniform(*habit.gap_s)
        end_s = begin_s + chance.uniform(*habit.length_s)
        if end_s > length_s - _QUIET_S:
            return
        if not deck:
            deck = chance.sample(habit.deck, len(habit.deck))
        yield Disturbance(deck.pop(), begin_s, end_s, chance.random())
        time_s = end_s
