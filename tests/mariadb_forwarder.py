"""MariaDBForwarder: stands between a client and its MariaDB server and notes what the client asks.

Laws:
    * A command is noted before the server gets it: whoever has seen an effect of it finds it here.
    * Every thread and every socket ends with the ``with``.
    * It reads plain connections only: with TLS there is nothing to note.

Source: the client/server protocol: a packet is a length of 3 bytes, little end first, a sequence number of
1 byte, and so many bytes of payload. Number 0 begins a command, whose kind is the payload's first byte.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple, Self

#: A farewell, to which the server says nothing.
_COM_QUIT: Final = 0x01
_HEADER_BYTES: Final = 4
_CHUNK_BYTES: Final = 65536


class Command(NamedTuple):
    """What a client asked at once, and had to wait for: one round trip, however many statements it holds.

    Attributes:
        kind: The protocol's number of it: 3 for statements, 14 for a ping.
        text: The statements; for other kinds whatever follows, decoded as far as it goes.
    """

    kind: int
    text: str


class CommandReader:
    """Finds the commands in what one client sends, however it is cut into pieces."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[Command]:
        """Take what has come, and return the commands that are now complete."""
        self._pending += data
        found = []
        while (packet := self._next_packet()) is not None:
            sequence, payload = packet
            if sequence == 0 and payload and payload[0] != _COM_QUIT:
                found.append(Command(payload[0], payload[1:].decode("utf-8", "replace")))
        return found

    def _next_packet(self) -> tuple[int, bytes] | None:
        end = _HEADER_BYTES + int.from_bytes(self._pending[:3], "little")
        if len(self._pending) < end:
            return None
        sequence, payload = self._pending[3], self._pending[_HEADER_BYTES:end]
        self._pending = self._pending[end:]
        return sequence, payload


class MariaDBForwarder:
    """Forwards connections to a MariaDB server on this machine; use it with ``with``.

    Attributes:
        host: The address at which it listens.
        port: The port there.
        commands: What all clients have asked since the last :meth:`forget`, in the order of arrival.
    """

    def __init__(self, server_port: int, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen, but do not accept yet.

        Args:
            server_port: The server's TCP port on 127.0.0.1.
            host: An address of this machine.
            port: The port there; 0 is any that is free.

        Raises:
            OSError: Address and port cannot be had.
        """
        self._server_port = server_port
        self._listener = socket.create_server((host, port))
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self.commands: list[Command] = []

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.let_go()
        # A shutdown wakes whoever waits in accept() or recv(); a close alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for each in self._sockets:
            _shut_down(each)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def forget(self) -> None:
        """Begin a new count."""
        with self._lock:
            self.commands = []

    def hold(self) -> None:
        """Let nothing through any more, in either direction, as a cable that is cut: no end is told."""
        self._flowing.clear()

    def let_go(self) -> None:
        """Let everything through again, and what was held up first."""
        self._flowing.set()

    def _run(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # The end.
            server = socket.create_connection(("127.0.0.1", self._server_port))
            for each in (client, server):
                # Or a command in two pieces waits for an acknowledgement that comes 40 ms late.
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [client, server]
            self._run(self._pump, client, server, CommandReader())
            self._run(self._pump, server, client, None)

    def _pump(self, source: socket.socket, target: socket.socket, reader: CommandReader | None) -> None:
        try:
            while data := source.recv(_CHUNK_BYTES):
                self._flowing.wait()
                if reader is not None:
                    with self._lock:
                        self.commands += reader.feed(data)
                target.sendall(data)
        except OSError:
            pass  # One side is gone; the other shall know.
        _shut_down(target)


def _shut_down(each: socket.socket) -> None:
    try:
        each.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # The other side was faster.
