"""Handover: connections that change hands between processes, and the truth for those that nobody takes.

Laws:
    * Only a connection whose call has not begun is handed over: who takes it serves it as if it had accepted
      it.
    * A connection is never just closed: to the dialplan that is a success. Who cannot hand it over says so.
    * Nothing here waits without a bound, and one peer that does not listen delays no other.

How it works: a pair of sockets that outlives every worker, because the master holds both of its ends.
Whoever survives a worker gives at one end, a few connections in each message, and all workers take from the
other: a message goes to one of them, and waits if there is none just now.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import select
import socket
import termios
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic
from typing import Any, Final, NamedTuple

#: Connections in one message: few, so that all workers get their share.
MOST_AT_ONCE: Final = 8
#: Room for what waits to be taken; the kernel gives as much of it as the machine allows.
_ROOM_BYTES: Final = 4 * 1024 * 1024
#: How long the giver waits for room for one message.
GIVING_S: Final = 0.2
#: How long the dialplans may take to hear the end of their calls, in all.
TELLING_S: Final = 2.0
_RECEIVE_BYTES: Final = 65536
#: Reads in a row from one peer: one that never pauses must not keep others from their turn.
_MOST_READS: Final = 16
_DESCRIPTOR_BYTES: Final = array("i").itemsize


def make() -> tuple[int, int]:
    """Make the pair; nobody waits at either end.

    Returns:
        Where connections are taken, to be polled for reading, and where they are given.

    Raises:
        OSError: There are no descriptors left.
    """
    taking, giving = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    giving.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM_BYTES)
    for end in (taking, giving):
        end.setblocking(False)
    return taking.detach(), giving.detach()


@contextmanager
def _borrowed(descriptor: int, kind: int = socket.SOCK_STREAM) -> Iterator[_socket.socket]:
    """Lend a socket object for somebody else's descriptor, of any family: nothing here asks for it."""
    lent = _socket.socket(socket.AF_UNIX, kind, 0, descriptor)
    try:
        yield lent
    finally:
        lent.detach()


def give(end: int, descriptors: Sequence[int]) -> list[int]:
    """Hand connections over; they stay open here.

    Args:
        end: The giving end.
        descriptors: Connections of which nothing was consumed.

    Returns:
        Those that could not be given: there is no room for them, or nobody is left to take them.
    """
    with _borrowed(end, socket.SOCK_SEQPACKET) as giving:
        for start in range(0, len(descriptors), MOST_AT_ONCE):
            try:
                _give_some(giving, descriptors[start : start + MOST_AT_ONCE])
            except OSError:
                # No room, more under way than the user may have open (ETOOMANYREFS), or no master (EPIPE).
                return list(descriptors[start:])
    return []


def _give_some(giving: _socket.socket, descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        _make_as_new(descriptor)
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
    giving.setblocking(False)
    try:
        giving.sendmsg([b"."], beside)
    except BlockingIOError:
        # Not at first: the kernel calls a socket ready for writing only when three quarters of it are empty.
        giving.settimeout(GIVING_S)
        giving.sendmsg([b"."], beside)


def _make_as_new(descriptor: int) -> None:
    """Undo what reading an environment in pieces may have left: see ``session``."""
    with _borrowed(descriptor) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def take(end: int) -> list[int]:
    """Take the connections of one message over, without waiting.

    Args:
        end: The taking end.

    Returns:
        Their descriptors, now the caller's, and closed by an execution; empty if none wait.

    Raises:
        OSError: There are no descriptors left for them: they wait for another worker, or for later.
    """
    return _take(end) or []


def _take(end: int) -> list[int] | None:
    """Take one message, if there is one; None if nobody is left who could give."""
    _make_sure_of_room(end)
    room = socket.CMSG_SPACE(MOST_AT_ONCE * _DESCRIPTOR_BYTES)
    try:
        with _borrowed(end, socket.SOCK_SEQPACKET) as taking:
            data, beside, _, _ = taking.recvmsg(1, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return []
    if not data:
        return None
    taken = array("i")
    for level, kind, content in beside:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            taken.frombytes(content[: len(content) - len(content) % _DESCRIPTOR_BYTES])
    return taken.tolist()


def _make_sure_of_room(end: int) -> None:
    """Raise OSError unless a whole message fits: for what does not, the kernel closes the connection."""
    with ExitStack() as reserved:
        for _ in range(MOST_AT_ONCE):
            reserved.callback(os.close, os.dup(end))


class Told(NamedTuple):
    """What became of those who were to be told something.

    Attributes:
        told: How many were.
        untold: How many were not, because they are gone or do not listen.
    """

    told: int
    untold: int


def under_way(end: int) -> bool:
    """Whether anything that was given has not been taken yet.

    Args:
        end: The giving end.
    """
    waiting = array("i", [0])
    fcntl.ioctl(end, termios.TIOCOUTQ, waiting)
    return waiting[0] > 0


def refuse(end: int, words: bytes, within_s: float, poll: Callable[[], Any]) -> Told:
    """Take what nobody else will, until nobody is left who could give, and tell it so; the master at its end.

    Args:
        end: The taking end. The giving end must have been closed here.
        words: Whole lines, of which the last is the failure line.
        within_s: How long it may take to the last gift, and then to tell all.
        poll: The standard library's ``select.poll``.
    """
    deadline_s = monotonic() + within_s
    poller = poll()
    poller.register(end, select.POLLIN)
    left: list[int] = []
    # Of more than there are descriptors for, nobody can be told.
    with suppress(OSError):
        while poller.poll(max(0.0, deadline_s - monotonic()) * 1000) and (taken := _take(end)) is not None:
            left += taken
    return tell(dict.fromkeys(left, words), within_s, poll)


def tell(words: Mapping[int, bytes], within_s: float, poll: Callable[[], Any]) -> Told:
    """Tell peers the end of their calls, all at once, wait until each has heard it, and close.

    A connection whose own side had been ended before was told something then: it is heard to its end, and
    counts for nothing.

    Args:
        words: For each descriptor whole lines, of which the last is the failure line.
        within_s: How long it may take, in all; then the rest is closed.
        poll: The standard library's ``select.poll``: gevent's would start a hub.
    """
    deadline_s = monotonic() + within_s
    everyone = [_Farewell(descriptor, said) for descriptor, said in words.items()]
    poller = poll()
    waiting: dict[int, _Farewell] = {}
    for each in everyone:
        if each.goes_on():
            waiting[each.descriptor] = each
            poller.register(each.descriptor, each.events)
        else:
            each.close()
    while waiting and (left_s := deadline_s - monotonic()) > 0:
        for descriptor, _ in poller.poll(left_s * 1000):
            each = waiting[descriptor]
            if each.goes_on():
                poller.modify(descriptor, each.events)
                continue
            poller.unregister(descriptor)
            del waiting[descriptor]
            each.close()
    for each in waiting.values():
        each.close()
    return Told(sum(each.told for each in everyone), sum(each.untold for each in everyone))


class _Farewell:
    """The end of one connection.

    Attributes:
        descriptor: The connection's.
        told: Whether all was said.
    """

    def __init__(self, descriptor: int, words: bytes) -> None:
        """Say nothing yet."""
        self.descriptor = descriptor
        self.told = False
        self._unsent = words
        self._ended_before = self._heard_all = False
        os.set_blocking(descriptor, False)
        self._connection = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)

    @property
    def untold(self) -> bool:
        """Whether something was left unsaid, and nothing had been said before."""
        return not self.told and not self._ended_before

    @property
    def events(self) -> int:
        """What to wait for."""
        return (0 if self._heard_all else select.POLLIN) | (select.POLLOUT if self._unsent else 0)

    def goes_on(self) -> bool:
        """Do what can be done now; return whether there is something left."""
        try:
            if self._unsent:
                self._send()
            if not self._heard_all:
                self._hear()
        except OSError:
            return False
        return bool(self._unsent) or not self._heard_all

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._connection.send(self._unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent, self._ended_before = b"", True
            return
        if not self._unsent:
            self._connection.shutdown(socket.SHUT_WR)
            self.told = True

    def _hear(self) -> None:
        """Read what the peer still says: closing with that unread would take our words with it."""
        try:
            for _ in range(_MOST_READS):
                if not self._connection.recv(_RECEIVE_BYTES):
                    self._heard_all = True
                    return
        except BlockingIOError:
            return

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()
