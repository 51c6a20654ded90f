"""Looping: waits for descriptors and for moments in one thread, and calls who asked for them.

Laws:
    * A callback that fails is logged, and ends nothing else. What it did not take is offered again after
      :data:`REST_S`, so that a bug fills neither the log nor the processor.
    * Nobody is called for a descriptor that was forgotten, not even for what was noticed before.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import selectors
import time
from collections.abc import Callable
from functools import partial
from typing import Final

#: How long a descriptor is not watched whose callback has failed.
REST_S: Final = 1.0
#: What is called when something is there.
Callback = Callable[[], None]


class Loop:
    """Turns until its owner has had enough."""

    def __init__(self, log: logging.Logger) -> None:
        """Watch nothing at first.

        Args:
            log: Where a callback's failure goes.
        """
        self._selector = selectors.EpollSelector()
        #: Those that are not watched for a while, by their descriptors.
        self._resting: dict[int, selectors.SelectorKey] = {}
        self._alarms: list[tuple[float, int, Callback]] = []
        self._order = itertools.count()
        self._log = log

    def watch(self, descriptor: int, callback: Callback, writing: bool = False) -> None:
        """Call back whenever there is something to read; instead of whom was called before.

        Args:
            descriptor: What to watch, until :meth:`forget`.
            callback: Whom to call.
            writing: Whether to call for room to write too.
        """
        self._resting.pop(descriptor, None)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
        if descriptor in self._selector.get_map():
            self._selector.modify(descriptor, events, callback)
        else:
            self._selector.register(descriptor, events, callback)

    def forget(self, descriptor: int) -> None:
        """Watch it no more, if it was watched; to be called before it is closed."""
        self._resting.pop(descriptor, None)
        if descriptor in self._selector.get_map():
            self._selector.unregister(descriptor)

    def at(self, when_s: float, callback: Callback) -> None:
        """Call back once, at a moment of the monotonic clock or soon after."""
        heapq.heappush(self._alarms, (when_s, next(self._order), callback))

    def turn(self, at_most_s: float) -> None:
        """Wait for the next thing, at most so long, and call for all that is there."""
        pause_s = at_most_s
        if self._alarms:
            pause_s = min(pause_s, max(0.0, self._alarms[0][0] - time.monotonic()))
        for key, _ in self._selector.select(pause_s):
            # Whoever was called before may have closed it, and opened another of the same number.
            if self._selector.get_map().get(key.fd) is key and not self.attempt(key.data):
                self._rest(key)
        while self._alarms and self._alarms[0][0] <= time.monotonic():
            self.attempt(heapq.heappop(self._alarms)[2])

    def attempt(self, callback: Callback) -> bool:
        """Call it; return whether it did not fail."""
        try:
            callback()
        except Exception:
            self._log.exception("bug: %r", callback)
            return False
        return True

    def _rest(self, key: selectors.SelectorKey) -> None:
        if self._selector.get_map().get(key.fd) is key:
            self._selector.unregister(key.fd)
            self._resting[key.fd] = key
            self.at(time.monotonic() + REST_S, partial(self._wake, key))

    def _wake(self, key: selectors.SelectorKey) -> None:
        if self._resting.get(key.fd) is key:
            del self._resting[key.fd]
            self._selector.register(key.fd, key.events, key.data)
