"""Callers: telephones whose calls go to a pool, and what they heard.

Laws:
    * A call was served if its handler said so to the end, and for no other reason: Asterisk takes a
      connection that just ends for a success.
    * Every call has a unique id of its own, so that the log's word for it can be found.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Final

from fastagi_pool.testing import AgiStatus, Caller, CallResult, play_call

#: How a call ends that nobody served, and of which the dialplan was not told.
UNSERVED: Final = "SUCCESS, but nobody served it"
CRASHED: Final = "FAILURE, FAGI_STATUS=CRASH"
SERVED: Final = "SUCCESS"
_PAUSE_S: Final = 0.02
_JOIN_S: Final = 30.0


class Callers:
    """Places calls from threads of its own; a context manager, at whose end all have hung up.

    Attributes:
        counts: How many calls ended in which way.
        unserved: The unique ids of calls that ended as a success though nobody served them.
    """

    def __init__(self, url: Callable[[str], str]) -> None:
        """Prepare.

        Args:
            url: Returns the URL of a script.
        """
        self.counts: Counter[str] = Counter()
        self.unserved: list[str] = []
        self._url = url
        self._numbers = itertools.count(1)
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Callers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Of a drill that failed nobody wants to hear more.
        self.finish() if error is None else self._over.set()

    def call(self, script: str) -> CallResult:
        """Place one call, see it to its end and count it."""
        with self._lock:
            number = next(self._numbers)
        uniqueid = f"{int(time.time())}.{number}"
        result = play_call(self._url(script), caller=Caller(number=f"555{number:04}", uniqueid=uniqueid))
        ending = ending_of(result)
        with self._lock:
            self.counts[ending] += 1
            if ending == UNSERVED:
                self.unserved.append(uniqueid)
        return result

    def place(self, script: str, calls: int = 1) -> None:
        """Place some calls, and do not wait for their end."""
        for _ in range(calls):
            self._begin(lambda: self.call(script))

    def keep_calling(self, script: str, telephones: int) -> None:
        """Let some telephones call, each again and again, until :meth:`finish`."""

        def call_on() -> None:
            while not self._over.wait(_PAUSE_S):
                self.call(script)

        for _ in range(telephones):
            self._begin(call_on)

    def finish(self) -> None:
        """Place no further calls, and wait for the end of those in progress."""
        self._over.set()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _begin(self, run: Callable[[], object]) -> None:
        # A call that does not end must not keep the program from ending.
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()


def ending_of(result: CallResult) -> str:
    """Say in a few words how a call ended, as a dialplan would see it."""
    if result.status is AgiStatus.SUCCESS:
        return SERVED if result.variables.get("SERVED") == "yes" else UNSERVED
    if not result.connected:
        return f"{result.status.value}, no connection"
    return f"{result.status.value}, FAGI_STATUS={result.variables.get('FAGI_STATUS', '')}"
