"""Following: how far a reload, an upgrade or a stop has come, told step by step from the scoreboard.

Laws:
    * Pure: it is given what the board says and a time, and answers with a sentence and whether that was the
      last one. Whoever waits does the waiting.
    * It tells what is, and asks nothing of the master; two that follow the same reload disturb nobody.
    * Every waiting ends: with the master at the latest.

A generation counts as rolled when no worker of an older one accepts calls any more. Workers that finish their
calls may remain for hours; the last sentence says how many calls are left in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from fastagi_pool.scoreboard import Scoreboard, SlotFacts, Supervision, WorkerState

#: Whoever asks while a load is under way waits for the one after it; none follows if not within this.
_QUIET_S: Final = 2.0
_GONE: Final = "the master has ended before this was done; see its log"
_STOPPING: Final = "the pool is stopping"


@dataclass(frozen=True, slots=True)
class Sight:
    """What the board says at one moment.

    Attributes:
        generation: The one in charge.
        supervision: What the master tells.
        workers: All of them.
    """

    generation: int
    supervision: Supervision
    workers: tuple[SlotFacts, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """How far it has come.

    Attributes:
        text: A sentence for people; after a failure the reason.
        done: Whether there is nothing more to wait for.
        ok: Whether it went well; meaningful once it is done.
    """

    text: str
    done: bool = False
    ok: bool = False


class Following(Protocol):
    """Something that takes a while, and is being followed."""

    def step(self, sight: Sight | None, lives: bool, now_s: float) -> Step:
        """Say how far it has come.

        Args:
            sight: What the board says now; None while it cannot be read, as in an upgrade.
            lives: Whether the master does.
            now_s: Monotonic time.
        """


def look(board: Scoreboard) -> Sight:
    """Take from a board what following needs."""
    return Sight(board.generation, board.supervision, tuple(board.occupied()))


class ReloadFollowing:
    """Follows a reload that is asked for now."""

    def __init__(self, before: Sight) -> None:
        """Remember how things stand before the master is asked."""
        self._before = before
        #: A load that is under way has read the old files; ours comes after it.
        self._wanted = before.supervision.reloads + (2 if before.supervision.loading else 1)
        self._quiet_since_s: float | None = None
        #: When it was: what a later reload comes to is not ours.
        self._decided: Sight | None = None

    def step(self, sight: Sight | None, lives: bool, now_s: float) -> Step:
        """See :meth:`Following.step`."""
        ended = _ended(sight, lives)
        if ended is not None:
            return ended
        if sight is None:
            return Step("the scoreboard cannot be read")
        if self._decided is None and not self._is_decided(sight, now_s):
            return Step("a new generation is loading")
        if self._decided is None:
            self._decided = sight
        if self._decided.supervision.error:
            return Step(self._decided.supervision.error, done=True)
        if sight.generation <= self._before.generation:
            return Step("the new generation takes over")
        return rolling(sight)

    def _is_decided(self, sight: Sight, now_s: float) -> bool:
        supervision = sight.supervision
        if supervision.reloads >= self._wanted:
            return True
        if supervision.loading or supervision.reloads == self._before.supervision.reloads:
            self._quiet_since_s = None
            return False
        if self._quiet_since_s is None:
            self._quiet_since_s = now_s
        return now_s - self._quiet_since_s >= _QUIET_S


class UpgradeFollowing:
    """Follows an upgrade that is asked for now: the master becomes the newly installed program."""

    def __init__(self, before: Sight) -> None:
        """Remember how things stand before the master is asked."""
        self._before = before

    def step(self, sight: Sight | None, lives: bool, now_s: float) -> Step:
        """See :meth:`Following.step`."""
        ended = _ended(sight, lives)
        if ended is not None:
            return ended
        if sight is None or sight.supervision.upgrades == self._before.supervision.upgrades:
            return Step("the newly installed program is being tried")
        if sight.supervision.error:
            return Step(sight.supervision.error, done=True)
        if sight.generation <= self._before.generation:
            return Step("the new program is in charge, and loads its generation")
        return rolling(sight)


class StopFollowing:
    """Follows the end of the pool."""

    def step(self, sight: Sight | None, lives: bool, now_s: float) -> Step:
        """See :meth:`Following.step`."""
        if not lives:
            return Step("the pool has stopped", done=True, ok=True)
        if sight is None:
            return Step("stopping")
        return Step(f"stopping, {_calls_left(sight.workers) or 'no calls left'}")


def rolling(sight: Sight) -> Step:
    """Say how far the workers of the generation in charge have taken over."""
    new = [each for each in sight.workers if each.generation >= sight.generation]
    old = [each for each in sight.workers if each.generation < sight.generation]
    serving = sum(each.state is WorkerState.READY for each in new)
    left = _calls_left(old)
    remaining = f", {left} of older generations" if left else ""
    accepting = [each for each in old if each.state is not WorkerState.DRAINING]
    if serving and not accepting:
        text = f"generation {sight.generation} serves with {_workers(serving)}{remaining}"
        return Step(text, done=True, ok=True)
    wanted = max(sight.supervision.workers_wanted, serving)
    return Step(f"{serving} of {_workers(wanted)} renewed{remaining}")


def _ended(sight: Sight | None, lives: bool) -> Step | None:
    if not lives:
        return Step(_GONE, done=True)
    if sight is not None and sight.supervision.stopping:
        return Step(_STOPPING, done=True)
    return None


def _calls_left(workers: tuple[SlotFacts, ...] | list[SlotFacts]) -> str:
    busy = [each for each in workers if each.active]
    calls = sum(each.active for each in busy)
    return f"{calls} {'call' if calls == 1 else 'calls'} left in {_workers(len(busy))}" if calls else ""


def _workers(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"
