"""Caching: what rarely changes is read once in a while, and by one caller only.

Laws:
    * Nothing is older than its time to live when it is given.
    * One reads, the others wait for what he finds, be it a value or an error; errors are not kept.
    * A reader who is ended while he reads leaves the others waiting for nothing: reading is nobody's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import gevent
from gevent.event import AsyncResult

Key = TypeVar("Key")
Value = TypeVar("Value")

#: More keys than a call centre has campaigns and in-groups; beyond that the cache begins anew.
MOST_KEYS: Final = 10_000


class Cached(Generic[Key, Value]):
    """Values by key, each with a time to live.

    Args:
        read: Reads one. It may wait.
        ttl_s: How long a value is good for; 0 asks for each one anew.
        clock: Seconds that only grow; for tests.
    """

    def __init__(
        self, read: Callable[[Key], Value], ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._ttl_s = ttl_s
        self._clock = clock
        self._kept: dict[Key, tuple[float, Value]] = {}
        self._reading: dict[Key, AsyncResult[Value]] = {}

    def get(self, key: Key) -> Value:
        """Give the value of a key.

        Raises:
            Exception: What ``read`` raised.
        """
        if not self._ttl_s:
            return self._read(key)
        kept = self._kept.get(key)
        if kept is not None and self._clock() < kept[0]:
            return kept[1]
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = AsyncResult()
            gevent.spawn(self._fetch, key, reading)
        value: Value = reading.get()
        return value

    def forget(self, key: Key) -> None:
        """Drop a value that is known to have changed, and do not keep what is being read meanwhile."""
        self._kept.pop(key, None)
        self._reading.pop(key, None)

    def _fetch(self, key: Key, reading: AsyncResult[Value]) -> None:
        # As old as the question, not as the answer: it may have changed while it travelled.
        good_until_s = self._clock() + self._ttl_s
        try:
            value = self._read(key)
        except Exception as error:
            reading.set_exception(error)
        else:
            if self._reading.get(key) is reading:
                self._keep(key, good_until_s, value)
            reading.set(value)
        finally:
            if self._reading.get(key) is reading:
                del self._reading[key]

    def _keep(self, key: Key, good_until_s: float, value: Value) -> None:
        if len(self._kept) >= MOST_KEYS:
            self._kept.clear()
        self._kept[key] = (good_until_s, value)
