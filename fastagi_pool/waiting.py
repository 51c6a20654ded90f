"""Waiting room: calls that were accepted while every place in the pool was taken.

Laws:
    * First come, first served; nobody waits longer than the bound, and no more wait than there is room for.
    * It decides and keeps; it reads no clock and touches no session.

Why not the kernel's queue: Asterisk waits in it without end and without a word, and nobody can tell it so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Caller = TypeVar("Caller")


class WaitingRoom(Generic[Caller]):
    """Who waits, in the order of coming."""

    def __init__(self, places: int, longest_s: float) -> None:
        """Open it.

        Args:
            places: How many may wait; 0 for nobody.
            longest_s: How long each may.
        """
        self._places = places
        self._longest_s = longest_s
        self._waiting: deque[tuple[float, Caller]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, caller: Caller, now_s: float) -> bool:
        """Let one more wait; False if there is no room."""
        if len(self._waiting) >= self._places:
            return False
        self._waiting.append((now_s + self._longest_s, caller))
        return True

    def call_in(self) -> Caller | None:
        """Return who has waited longest and let him go; None if nobody waits."""
        return self._waiting.popleft()[1] if self._waiting else None

    def weed(self, is_gone: Callable[[Caller], bool]) -> list[Caller]:
        """Return all who are gone without having said so, and let them go: their places are needed."""
        gone = [caller for _, caller in self._waiting if is_gone(caller)]
        if gone:
            self._waiting = deque(place for place in self._waiting if place[1] not in gone)
        return gone

    def give_up(self, now_s: float) -> list[Caller]:
        """Return all who have waited too long, and let them go."""
        late = []
        while self._waiting and self._waiting[0][0] <= now_s:
            late.append(self._waiting.popleft()[1])
        return late
