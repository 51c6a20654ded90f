"""Gate: where handlers wait, inside their calls, until the test lets them on.

A handler connects to the gate's address, says its unique id in one line, and waits for the end of the
connection. So it waits on an event, with no AGI command outstanding, and nobody sleeps.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Final, Self

_ARRIVAL_TIMEOUT_S: Final = 10.0


class Gate:
    """A closed gate on 127.0.0.1; use it with ``with``, which opens it at the end.

    Attributes:
        address: ``host:port`` for the handlers.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.settimeout(_ARRIVAL_TIMEOUT_S)
        self._waiting: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open()

    def await_arrivals(self, count: int) -> set[str]:
        """Wait until ``count`` more handlers stand here; return their unique ids.

        Raises:
            TimeoutError: One did not come within 10 s of the one before.
        """
        arrived = set()
        for _ in range(count):
            connection, _ = self._listener.accept()
            self._waiting.append(connection)
            connection.settimeout(_ARRIVAL_TIMEOUT_S)
            with connection.makefile("r") as stream:
                arrived.add(stream.readline().rstrip("\n"))
        return arrived

    def open(self) -> None:
        """Let everybody on, now and from now on."""
        self._listener.close()
        while self._waiting:
            self._waiting.pop().close()
