"""Picture: the pool as it was a moment ago, read once for all who look.

Laws:
    * Whoever looks costs the same as nobody: a picture is taken when it is asked for and is old, at most
      every :data:`KEPT_S`.
    * It reads shared memory and nothing else, so it works when every worker is stuck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Any, Final

from fastagi_pool.callboard import CallFacts
from fastagi_pool.errors import FastAGIPoolError
from fastagi_pool.history import History
from fastagi_pool.status import read_pool_calls, read_status

#: For so long a picture is good enough.
KEPT_S: Final = 0.25


class NoPicture(FastAGIPoolError):
    """The pool's shared memory cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The pool at one moment.

    Attributes:
        taken_s: Monotonic time.
        status: As :meth:`fastagi_pool.status.PoolStatus.as_json` gives it.
    """

    taken_s: float
    status: dict[str, Any]


class Pictures:
    """Takes pictures of one pool, and remembers the last five minutes."""

    def __init__(
        self, runtime_dir: Path, now: Callable[[], float] = monotonic, wall: Callable[[], float] = time
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            runtime_dir: Of the pool.
            now: Tells monotonic time.
            wall: Tells seconds since the epoch.
        """
        self._runtime_dir = runtime_dir
        self._now = now
        self._wall = wall
        self._picture: Picture | None = None
        self._calls: list[CallFacts] = []
        #: When they were read, and how many of them at most.
        self._calls_taken = (float("-inf"), 0)
        self._history = History()

    def latest(self) -> Picture:
        """Return a picture that is at most :data:`KEPT_S` old; the same object as long as it is good.

        Raises:
            NoPicture: There is none.
        """
        now_s = self._now()
        if self._picture is None or now_s - self._picture.taken_s > KEPT_S:
            self._picture = None
            try:
                self._picture = Picture(now_s, read_status(self._runtime_dir, now_s).as_json(now_s))
            except (OSError, ValueError) as error:
                raise NoPicture(
                    f"cannot read the state of the pool in {self._runtime_dir}: {error}"
                ) from error
        return self._picture

    def calls(self, limit: int) -> list[dict[str, Any]]:
        """Return the calls that are in progress for the longest time, the oldest first.

        Args:
            limit: How many at most, 0 or more.

        Raises:
            NoPicture: They cannot be read.
        """
        now_s = self._now()
        taken_s, most = self._calls_taken
        if now_s - taken_s > KEPT_S or limit > most:
            try:
                self._calls = read_pool_calls(self._runtime_dir, now_s, limit)
            except (OSError, ValueError) as error:
                raise NoPicture(f"cannot read the calls in {self._runtime_dir}: {error}") from error
            self._calls_taken = (now_s, limit)
        return [call.as_json(now_s) for call in self._calls[:limit]]

    def history(self, after_s: float = 0.0) -> dict[str, Any]:
        """Return the samples that are younger than this, in seconds since the epoch."""
        return self._history.as_json(after_s)

    def remember(self) -> None:
        """Add a sample to the history; to be called once a second."""
        try:
            picture = self.latest()
        except NoPicture:
            return
        self._history.add(picture.status, picture.taken_s, self._wall())
