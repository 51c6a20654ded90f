"""OpenCall: Asterisk's side of one call, a line at a time; the test decides when a command is answered.

While a command is not answered, its handler waits in Asterisk's time, which no limit cuts short by
default. So a call can be held for as long as a test wants, and nobody sleeps.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Final, Self

from fastagi_pool.testing import AgiStatus, environment

_TIMEOUT_S: Final = 15.0


class OpenCall:
    """One connection; use it with ``with``, which closes it."""

    def __init__(self, address: str, script: str = "") -> None:
        """Connect, and send the environment if a script is named.

        Args:
            address: ``host:port``, ``[host]:port`` or ``unix:path``.
            script: Path and query of the URL.

        Raises:
            OSError: There is no connection.
        """
        self.link = connect(address)
        self._lines = self.link.makefile("rb")
        self.said: list[str] = []
        if script:
            self.send(environment(f"agi://localhost/{script}").encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self.link.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.link.sendall(data)

    def command(self) -> str:
        """Wait for the next line of the server and return it; empty at the end of the connection.

        Raises:
            TimeoutError: Nothing came within 15 s.
        """
        line = self._lines.readline().decode().rstrip("\n")
        self.said.append(line)
        return line

    def reply(self, text: str = "200 result=1") -> None:
        """Answer the command."""
        self.send(f"{text}\n".encode())

    def end(self) -> AgiStatus:
        """Answer whatever comes until the connection ends; return what the dialplan would see.

        Raises:
            TimeoutError: Nothing came within 15 s.
        """
        try:
            while line := self.command():
                if line.lower().startswith("failure"):
                    return AgiStatus.FAILURE
                with suppress(ConnectionError):
                    self.reply()  # Not heard if our side was ended before; what the server says still is.
        except ConnectionError:
            pass  # However the server ends the connection, it is a success to Asterisk.
        return AgiStatus.SUCCESS

    def release(self) -> AgiStatus:
        """Answer the command that is held, then see the call to its end; see :meth:`end`."""
        self.reply()
        return self.end()


def connect(address: str) -> socket.socket:
    """Connect to an address as the log writes it.

    Raises:
        OSError: There is no connection.
    """
    if address.startswith("unix:"):
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(_TIMEOUT_S)
        link.connect(address.removeprefix("unix:"))
        return link
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_S)


def hold(address: str) -> tuple[OpenCall, int]:
    """Place a call to the handler ``held`` and return it and its worker's process id, once it is held.

    Raises:
        OSError: There is no connection.
    """
    call = OpenCall(address, "held")
    return call, worker_of(call.command())


def hold_in(address: str, pid: int, calls: ExitStack, script: str = "held") -> OpenCall:
    """Place calls until one is held in this worker, and return it.

    Args:
        address: The pool's.
        pid: The worker's process id.
        calls: Ends them all.
        script: Whose first command names the worker.

    Raises:
        LookupError: Not one of 50 calls went there.
    """
    for tries in range(50):
        # A worker that stands still takes none: the more calls went astray, the longer it gets.
        time.sleep(tries * 0.01)
        call = calls.enter_context(OpenCall(address, script))
        if worker_of(call.command()) == pid:
            return call
    raise LookupError(f"not one of 50 calls went to worker {pid}")


def worker_of(command: str) -> int:
    """Return the process id that the handlers put into their first command.

    Raises:
        ValueError: There is none.
    """
    return int(command.rstrip('"').rpartition(" ")[2])
