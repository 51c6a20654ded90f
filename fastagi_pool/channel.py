"""Channel: one end of a conversation between two of our processes.

Laws:
    * Values only. Each message is one datagram on a SOCK_SEQPACKET pair, written as JSON: nobody
      decodes anything that could run code.
    * File descriptors travel beside a message, never inside.
    * Which kinds of messages there are is said by whoever opens it: ``messages`` between the master and
      its loaders, ``launching`` between workers and the launcher.
"""

from __future__ import annotations

import _socket
import json
import socket
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    MessageT = TypeVar("MessageT", bound=DataclassInstance)
else:
    MessageT = TypeVar("MessageT")

#: Longest message; a list of a thousand configuration problems fits.
MAX_MESSAGE_BYTES: Final = 200_000
#: Most file descriptors that Linux passes at once. Source: SCM_MAX_FD in include/net/scm.h.
MAX_DESCRIPTORS: Final = 253


class Channel(Generic[MessageT]):
    """One end of the conversation; a subclass says of which messages."""

    #: Every kind of message by its class's name.
    KINDS: Mapping[str, type[MessageT]]

    def __init__(self, end: _socket.socket) -> None:
        """Take one end over.

        Args:
            end: As ``pair`` makes them: a socket without gevent, which would wait in its own way and start a
                hub in processes that must not have one.
        """
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Make both ends."""
        one, other = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (one, other):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_MESSAGE_BYTES)
        return cls(one), cls(other)

    @classmethod
    def adopt(cls, descriptor: int) -> Self:
        """Go on with an end that is open already."""
        return cls(_socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """The descriptor, to be polled."""
        return self._socket.fileno()

    def send(self, message: MessageT, descriptors: list[int] | None = None) -> bool:
        """Send one message.

        Returns:
            False if nobody listens any more.

        Raises:
            BlockingIOError: The socket does not block, and the other end is behind with reading.
        """
        # Not asdict(), which copies all the way down: half of the time that a message costs.
        content = {name: getattr(message, name) for name in _field_names(type(message))}
        data = json.dumps({"kind": type(message).__name__, **content}).encode()
        try:
            beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            self._socket.sendmsg([data], beside)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self, wait: bool = True) -> tuple[MessageT, list[int]] | None:
        """Take one message and the descriptors beside it.

        Args:
            wait: Whether to wait for one.

        Returns:
            None if the other end is gone, or nothing is there and we do not wait. The descriptors are
            closed by an execution.
        """
        try:
            return self._receive(0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def receive_all(self) -> Iterable[tuple[MessageT, list[int]] | None]:
        """Yield the messages that are there now, without waiting; at last None if the other end is gone."""
        while True:
            try:
                received = self._receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            yield received
            if received is None:
                return

    def _receive(self, flags: int) -> tuple[MessageT, list[int]] | None:
        # Not socket.recv_fds: that of Python 3.11 drops its flags, and would wait.
        room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array("i").itemsize)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                2 * MAX_MESSAGE_BYTES, room, flags | socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return None
        if not data:
            return None
        descriptors = array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        fields = json.loads(data)
        return self.KINDS[fields.pop("kind")](**fields), descriptors.tolist()

    def never_wait(self) -> None:
        """From now on raise BlockingIOError rather than wait for the other end to read."""
        self._socket.setblocking(False)

    def say_no_more(self) -> None:
        """End our side of the conversation: the other end sees that, and can still be heard."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of this end."""
        self._socket.close()


@cache
def _field_names(kind: type[DataclassInstance]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))
