"""CallStream: calls without a pause, while a test does something to the pool."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Final, Self

from fastagi_pool.testing import AgiStatus, CallResult, play_call

_CALLERS: Final = 4
_END_TIMEOUT_S: Final = 20.0


class CallStream:
    """Some callers who call again and again, for as long as the ``with`` lasts.

    Attributes:
        results: How each call went, in the order of their ends.
    """

    def __init__(self, url: str, callers: int = _CALLERS) -> None:
        """Prepare; nobody calls yet.

        Args:
            url: What they call.
            callers: How many there are.
        """
        self.results: list[CallResult] = []
        self._url = url
        self._over = False
        self._changed = threading.Condition()
        self._callers = [threading.Thread(target=self._call, daemon=True) for _ in range(callers)]

    def __enter__(self) -> Self:
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        for caller in self._callers:
            caller.join(_END_TIMEOUT_S)

    def await_more(self, calls: int) -> None:
        """Wait until so many more calls have ended.

        Raises:
            TimeoutError: They have not within 20 s.
        """
        with self._changed:
            wanted = len(self.results) + calls
            if not self._changed.wait_for(lambda: len(self.results) >= wanted, _END_TIMEOUT_S):
                raise TimeoutError(f"{len(self.results)} of {wanted} calls have ended")

    @property
    def lost(self) -> list[CallResult]:
        """The calls that were not served: refused, failed, or closed without a command."""
        return [each for each in self.results if each.status is AgiStatus.FAILURE or not each.commands]

    @property
    def silent(self) -> list[CallResult]:
        """The worst: the dialplan was told that it went well, and no handler ran."""
        return [each for each in self.results if each.status is AgiStatus.SUCCESS and not each.commands]

    def _call(self) -> None:
        while not self._over:
            result = play_call(self._url)
            with self._changed:
                self.results.append(result)
                self._changed.notify_all()
