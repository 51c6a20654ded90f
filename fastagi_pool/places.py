"""Places: how many calls may be at something at the same time, and who waits for it.

Laws:
    * Never more holders than places; whoever waits is served in the order of coming.
    * Nobody waits longer than the bound, no more wait than there is room for, and both are told why.
    * A waiter who is interrupted leaves the queue; a place that was on its way to it goes to the next.

How it works: a place that is given back goes to the first who waits, at once, and not to whoever asks next:
so nobody overtakes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from gevent.event import Event

from fastagi_pool.errors import Overloaded


class Places:
    """A bounded number of places with a bounded queue."""

    def __init__(self, most: int, max_queue: int, max_wait_s: float) -> None:
        """Open it.

        Args:
            most: Number of places, from 1.
            max_queue: How many may wait for one; 0 for nobody.
            max_wait_s: How long each may wait.
        """
        self._most = most
        self._free = most
        self._max_queue = max_queue
        self._max_wait_s = max_wait_s
        self._waiting: deque[Event] = deque()

    @property
    def taken(self) -> int:
        """How many places are held."""
        return self._most - self._free

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)

    def take(self, queueing: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Take a place; wait for one if all are taken.

        Args:
            queueing: Makes what the wait is spent in; not called if there is none.

        Raises:
            Overloaded: The queue is full, or the wait was too long. No place was taken.
        """
        if self._free:
            self._free -= 1
            return
        if len(self._waiting) >= self._max_queue:
            raise Overloaded(
                f"all {self._most} places are taken, and {len(self._waiting)} calls wait for one"
            )
        mine = Event()
        self._waiting.append(mine)
        try:
            with queueing():
                mine.wait(self._max_wait_s)
        except BaseException:
            self._leave(mine)
            raise
        if not mine.is_set():
            self._leave(mine)
            raise Overloaded(f"none of {self._most} places became free within {self._max_wait_s:g} s")

    def give_back(self) -> None:
        """Give a place back, for whoever has waited longest. Does not wait: gevent's hub may call it."""
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self._free += 1

    def _leave(self, mine: Event) -> None:
        """Wait no longer; what was given meanwhile is given on."""
        if mine.is_set():
            self.give_back()
        else:
            self._waiting.remove(mine)
