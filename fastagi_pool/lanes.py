"""Lanes: which call may begin, which waits, and which is told that there is no place.

Laws:
    * Never more calls than places, never more of a lane than it may have, and the places that a lane keeps
      for itself are there for it whatever the others do.
    * Within a lane: first come, first served. Among lanes whose callers may begin: who has waited longest.
    * Nobody waits longer than his lane allows, and no more wait than it has room for.
    * No server of Asterisk has more calls, active and waiting, than one may have.
    * It decides and keeps; it reads no clock and touches no call.

How it works: of each lane's reserve the part that is not in use is *kept*: nobody else gets it. So a call
may begin on its lane's own reserve, or on a place that is neither taken nor kept. That is two comparisons,
however many lanes there are. Who may begin is settled at once whenever a place becomes free, see
:meth:`Lanes.leave`: so nobody who comes between that and the beginning of the next call can overtake.

Why not the kernel's queue: Asterisk waits in it without end and without a word, and nobody can tell it so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

#: Anything that can be a key.
Caller = TypeVar("Caller")


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """What the calls of a lane may take of one worker.

    Attributes:
        name: Its name in the configuration.
        max_active: Most calls at the same time, from 1.
        max_queue: How many more may wait; 0 for nobody.
        max_wait_s: How long each may wait.
        reserve: Places that nobody else gets, at most ``max_active``.
    """

    name: str
    max_active: int
    max_queue: int
    max_wait_s: float
    reserve: int = 0


@dataclass(frozen=True, slots=True)
class LaneFacts:
    """How a lane fares.

    Attributes:
        name: Its name in the configuration.
        active: Calls that have a place.
        queued: Calls that wait for one.
        refused: Calls so far that found no room to wait, or waited for too long.
    """

    name: str
    active: int
    queued: int
    refused: int


@dataclass(frozen=True, slots=True)
class _Place:
    """A place in a queue: its turn among all that ever waited, until when it is good, and for whose call."""

    turn: int
    until_s: float
    peer: str


class _Lane(Generic[Caller]):
    """One lane: its limits, and who is in it."""

    __slots__ = ("active", "limits", "queue", "refused")

    def __init__(self, limits: LaneLimits) -> None:
        self.limits = limits
        self.active = 0
        self.refused = 0
        # Who waits, in the order of coming; anybody can be taken out at the same cost.
        self.queue: OrderedDict[Caller, _Place] = OrderedDict()


class Lanes(Generic[Caller]):
    """The places of one worker, shared among its lanes."""

    def __init__(self, places: int, lanes: Sequence[LaneLimits], most_of_peer: int = 0) -> None:
        """Open them, all places free.

        Args:
            places: How many calls the worker serves at the same time.
            lanes: The lanes, by different names; their reserves leave a place for those that have none.
            most_of_peer: Most calls of one server of Asterisk, active and waiting; 0 for no limit.
        """
        self._places = places
        self._lanes: dict[str, _Lane[Caller]] = {limits.name: _Lane(limits) for limits in lanes}
        self._most_of_peer = most_of_peer
        self._of_peer: dict[str, int] = {}
        self._active = 0
        self._kept = sum(limits.reserve for limits in lanes)
        self._lane_of: dict[Caller, _Lane[Caller]] = {}
        self._turns = 0
        self._open_to_all = False

    @property
    def active(self) -> int:
        """How many calls have a place."""
        return self._active

    @property
    def queued(self) -> int:
        """How many wait for one."""
        return len(self._lane_of)

    def facts(self) -> list[LaneFacts]:
        """Tell how each lane fares, in the order of the configuration."""
        return [
            LaneFacts(lane.limits.name, lane.active, len(lane.queue), lane.refused)
            for lane in self._lanes.values()
        ]

    # --- to come

    def enter(self, lane: str, peer: str) -> bool:
        """Take a place; False if there is none for this lane, or somebody of it waits already.

        Args:
            lane: Its name.
            peer: The server of Asterisk that the call comes from.
        """
        mine = self._lanes[lane]
        if mine.queue or not self._has_place(mine) or not self._count(peer):
            return False
        self._take(mine)
        return True

    def has_room(self, lane: str, peer: str) -> bool:
        """Say whether one more call of this lane and this server could wait."""
        mine = self._lanes[lane]
        return len(mine.queue) < mine.limits.max_queue and not self._has_too_many(peer)

    def wait(self, lane: str, peer: str, caller: Caller, now_s: float) -> bool:
        """Let a caller wait for a place; False if there is no room, which counts as refused.

        Args:
            lane: Its name.
            peer: The server of Asterisk that the call comes from.
            caller: Who waits; each at most once at a time.
            now_s: The time now.
        """
        mine = self._lanes[lane]
        if len(mine.queue) >= mine.limits.max_queue or not self._count(peer):
            mine.refused += 1
            return False
        mine.queue[caller] = _Place(self._turns, now_s + mine.limits.max_wait_s, peer)
        self._turns += 1
        self._lane_of[caller] = mine
        return True

    # --- to begin

    def call_in(self) -> list[Caller]:
        """Return who may begin now, in the order of waiting. They have their places from now on."""
        called: list[Caller] = []
        while self._lane_of:
            ready = [lane for lane in self._lanes.values() if lane.queue and self._has_place(lane)]
            if not ready:
                break
            first = min(ready, key=_turn_of_first)
            caller, _ = first.queue.popitem(last=False)
            del self._lane_of[caller]
            self._take(first)
            called.append(caller)
        return called

    def open_to_all(self) -> None:
        """Let everybody begin from now on, places or not: nobody new comes, and no other worker can help."""
        self._open_to_all = True
        self._most_of_peer = 0

    # --- to go

    def leave(self, lane: str, peer: str) -> None:
        """Give a place back; :meth:`call_in` must follow before anybody else comes.

        Args:
            lane: The lane of the call that has ended.
            peer: The server of Asterisk that it came from.
        """
        mine = self._lanes[lane]
        self._active -= 1
        mine.active -= 1
        if mine.active < mine.limits.reserve:
            self._kept += 1
        self._discount(peer)

    def give_up(self, now_s: float) -> list[Caller]:
        """Return all who have waited too long, and let them go; they count as refused."""
        late: list[Caller] = []
        for lane in self._lanes.values():
            while lane.queue and _first_place(lane).until_s <= now_s:
                caller = next(iter(lane.queue))
                self.forget(caller)
                lane.refused += 1
                late.append(caller)
        return late

    def forget(self, caller: Caller) -> None:
        """Let a caller wait no longer; nothing happens if he does not."""
        lane = self._lane_of.pop(caller, None)
        if lane is not None:
            self._discount(lane.queue.pop(caller).peer)

    # --- to be told

    def fault(self, lane: str, peer: str) -> str:
        """Say for people why a call can neither begin nor wait, and which key of the configuration decides.

        Args:
            lane: The call's lane.
            peer: The server of Asterisk that it comes from.
        """
        if self._has_too_many(peer):
            return (
                f"{peer} has {self._of_peer[peer]} calls in this worker already (limits.calls_per_server: "
                f"{self._most_of_peer})"
            )
        mine = self._lanes[lane]
        return (
            f"{self._fullness(mine)}, and {len(mine.queue)} calls of the lane wait "
            f"(lanes.{lane}.max_queue: {mine.limits.max_queue})"
        )

    def late_fault(self, lane: str) -> str:
        """Say for people what a call of this lane has waited for in vain.

        Args:
            lane: The call's lane.
        """
        limits = self._lanes[lane].limits
        return (
            f"{self._fullness(self._lanes[lane])}, and none became free within {limits.max_wait_s:g} s "
            f"(lanes.{lane}.max_wait)"
        )

    def _fullness(self, lane: _Lane[Caller]) -> str:
        limits = lane.limits
        # A lane that has no bound of its own is full only when the worker is.
        if lane.active >= limits.max_active and limits.max_active < self._places:
            return (
                f"all places of lane {limits.name!r} are taken (lanes.{limits.name}.max_active: "
                f"{limits.max_active})"
            )
        kept = f"; {self._kept} are kept for other lanes" if self._kept else ""
        return (
            f"there is no place for lane {limits.name!r}: {self._active} calls are in progress "
            f"(calls_per_worker: {self._places}{kept})"
        )

    # --- what is counted

    def _has_place(self, lane: _Lane[Caller]) -> bool:
        if self._open_to_all:
            return True
        limits = lane.limits
        return lane.active < limits.max_active and (
            lane.active < limits.reserve or self._active + self._kept < self._places
        )

    def _take(self, lane: _Lane[Caller]) -> None:
        if lane.active < lane.limits.reserve:
            self._kept -= 1
        lane.active += 1
        self._active += 1

    def _has_too_many(self, peer: str) -> bool:
        return 0 < self._most_of_peer <= self._of_peer.get(peer, 0)

    def _count(self, peer: str) -> bool:
        """Count one more call of a server; False if it has as many as it may."""
        if self._most_of_peer:
            known = self._of_peer.get(peer, 0)
            if known >= self._most_of_peer:
                return False
            self._of_peer[peer] = known + 1
        return True

    def _discount(self, peer: str) -> None:
        if self._most_of_peer:
            left = self._of_peer[peer] - 1
            if left:
                self._of_peer[peer] = left
            else:
                # Whoever calls once and never again must not be remembered for ever.
                del self._of_peer[peer]


def _first_place(lane: _Lane[Caller]) -> _Place:
    return next(iter(lane.queue.values()))


def _turn_of_first(lane: _Lane[Caller]) -> int:
    return _first_place(lane).turn
