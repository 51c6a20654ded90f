"""Upstream: calls that another FastAGI server answers; this one carries its words.

Laws:
    * To the other server it is as if Asterisk called it: environment, replies and HANGUP reach it to the byte
      and in their order. To Asterisk only whole lines are said, one at a time.
    * A server that cannot be reached is passed by, and the next one tried; once a server was told of the call
      no other is, because it may have done something already.
    * However a call ends, its connection is closed at once and its place given back.
    * No thread and no greenlet for a call but its own; what comes in the hub is written by the hub.

How a conversation ends: The other server closes: a success, as with Asterisk. It says ``failure``: so do we,
that line alone. It resets the connection, having said a line before: an end like any other, for that is what
a server does that closes without having read our last reply, or HANGUP. The connection breaks otherwise:
``UpstreamUnavailable``, unless the caller has hung up. Which server a call goes to is decided in
:mod:`fastagi_pool.upstreams`.
"""

from __future__ import annotations

import _socket
import errno
import ipaddress
import logging
import math
import os
import socket
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, Final, TypeAlias

import gevent
import gevent.event
import gevent.socket

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.errors import CallHangup, Overloaded, ToldFailure, UpstreamUnavailable
from fastagi_pool.protocol import Request
from fastagi_pool.upstreams import Server, Turn, Upstreams, UpstreamSettings

#: Who says so much without a line's end does not speak AGI; 8 KB is the longest line of any Asterisk.
MAX_LINE_BYTES: Final = 65_536
#: How long the addresses of a name are used before they are asked for again.
LOOKUP_S: Final = 30.0
#: A server whose machine vanished is noticed after this silence ...
KEEPALIVE_IDLE_S: Final = 60
#: ... and this many unanswered probes, so far apart.
KEEPALIVE_PROBES: Final = 4
KEEPALIVE_INTERVAL_S: Final = 15
_RECEIVE_BYTES: Final = 16_384
_READ: Final = 1
_WRITE: Final = 2

_Log: TypeAlias = logging.Logger | logging.LoggerAdapter[logging.Logger]
_Address: TypeAlias = tuple[Any, ...]


class UpstreamHandler:
    """The handler of a route whose calls are forwarded. One for each route and worker."""

    def __init__(self, settings: UpstreamSettings, clock: Callable[[], float] = monotonic) -> None:
        """Connect to nothing yet; may be made before the worker is forked.

        Args:
            settings: Where the calls go.
            clock: Tells the time in seconds, for rests and lookups.
        """
        self._connect_timeout_s = settings.connect_timeout_s
        self._turns = _Turns(settings, clock)
        self._names = _Names(clock)

    def __call__(self, call: Call, context: Context) -> None:
        """Let another server talk to Asterisk.

        Raises:
            Overloaded: Every server that could take the call is full, and so is the queue, or the wait was
                too long.
            UpstreamUnavailable: No server could be reached, or the one that was broke off.
            ToldFailure: The other server said so.
            CallHangup: The caller hung up, and the other server has ended since.
            CallEnded: The call is over for another reason.
        """
        turn, connection = self._connect(context)
        try:
            self._converse(call, context.log, turn, connection)
        finally:
            connection.close()
            self._turns.give_back(turn)

    def _converse(self, call: Call, log: _Log, turn: Turn, connection: Connection) -> None:
        try:
            connection.answer(environment(call.request))
            call.relay(connection)
        except ToldFailure as told:
            raise ToldFailure(told.line, said_all=True) from None
        except UpstreamUnavailable as error:
            if call.hung_up:
                raise CallHangup("the caller hung up") from error
            if not connection.has_spoken:
                self._turns.broke_off(turn, error.args[0], log)
            raise UpstreamUnavailable(f"{turn.server}: {error}") from error
        # To have nothing to say is no failure: a script may only write something down.
        self._turns.succeeded(turn, log)
        if call.hung_up:
            raise CallHangup("the caller hung up")

    def _connect(self, context: Context) -> tuple[Turn, Connection]:
        """Connect to the first server that can be reached."""
        log, tried = context.log, set[Server]()
        while True:
            turn = self._turns.take(tried, context.queueing)
            try:
                link = self._reach(turn.server)
            except OSError as error:
                tried.add(turn.server)
                self._turns.failed(turn, _reason(error), log)
                self._turns.give_back(turn)
            except BaseException:
                self._turns.give_back(turn)
                raise
            else:
                return turn, Connection(link, partial(self._turns.succeeded, turn, log))

    def _reach(self, server: Server) -> _socket.socket:
        """Connect to a server, by the first of its addresses that answers.

        Raises:
            OSError: None does, or not in time.
        """
        limit_s = self._connect_timeout_s
        failure = OSError("its name has no address")
        with gevent.Timeout(limit_s, TimeoutError(f"no answer within {limit_s:g} s")):
            for family, address in self._names.addresses(server):
                try:
                    return connect(family, address)
                except TimeoutError:
                    # Ours; or the kernel's own, which comes after minutes.
                    raise
                except OSError as error:
                    failure = error
        # Perhaps it has moved.
        self._names.forget(server)
        raise failure


@dataclass(slots=True, eq=False)
class _Waiter:
    """A call that waits for a place.

    Attributes:
        tried: Servers that it has tried in vain.
        answer: Its turn, or why it gets none.
    """

    tried: Collection[Server]
    answer: Any = field(default_factory=gevent.event.AsyncResult)


class _Turns:
    """Places at the servers, and the calls that wait for one: first come, first served.

    Not ``Places``: how many there are changes when a server rests or comes back.
    """

    def __init__(self, settings: UpstreamSettings, clock: Callable[[], float]) -> None:
        self._upstreams = Upstreams(settings.servers)
        self._max_queue = settings.max_queue
        self._max_wait_s = settings.max_wait_s
        self._clock = clock
        self._waiting: deque[_Waiter] = deque()

    def take(self, tried: Collection[Server], queueing: Callable[[], AbstractContextManager[None]]) -> Turn:
        """Take a place at a server; wait for it if need be.

        Args:
            tried: Servers that are not wanted.
            queueing: Makes what the wait is spent in.

        Raises:
            Overloaded: The queue is full, or the wait was too long.
            UpstreamUnavailable: All servers rest.
        """
        if not self._waiting:
            turn = self._upstreams.choose(self._clock(), tried)
            if turn is not None:
                return turn
        if len(self._waiting) >= self._max_queue:
            raise self._overloaded(f"{len(self._waiting)} calls wait already")
        with queueing():
            return self._queue_up(_Waiter(tried))

    def _queue_up(self, waiter: _Waiter) -> Turn:
        self._waiting.append(waiter)
        too_long = self._overloaded(f"none became free within {self._max_wait_s:g} s")
        try:
            with gevent.Timeout(self._max_wait_s, too_long):
                while not waiter.answer.ready():
                    waiter.answer.wait(self._until_a_rest_ends_s())
                    self._hand_out()
            turn: Turn = waiter.answer.get()
        except BaseException:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif waiter.answer.successful():
                self.give_back(waiter.answer.get())
            raise
        return turn

    def give_back(self, turn: Turn) -> None:
        """Give back a place, to whoever waits for it."""
        self._upstreams.give_back(turn)
        self._hand_out()

    def failed(self, turn: Turn, why: str, log: _Log) -> None:
        """Note that the server cannot be reached; its place is still to be given back."""
        self._tell_of_rest(turn, self._upstreams.failed(turn, self._clock(), why), why, log)

    def broke_off(self, turn: Turn, why: str, log: _Log) -> None:
        """Note that the server broke off before a word; its place is still to be given back."""
        self._tell_of_rest(turn, self._upstreams.broke_off(turn, self._clock(), why), why, log)

    def _tell_of_rest(self, turn: Turn, rest_s: float, why: str, log: _Log) -> None:
        if rest_s:
            log.warning("upstream %s gets no calls for %g s, or longer: %s", turn.server, rest_s, why)

    def succeeded(self, turn: Turn, log: _Log) -> None:
        """Note that the server serves the call."""
        if self._upstreams.succeeded(turn):
            log.info("upstream %s gets calls again", turn.server)
            self._hand_out()

    def _hand_out(self) -> None:
        """Give whoever waits what there is to be had."""
        while self._waiting:
            waiter = self._waiting[0]
            try:
                turn = self._upstreams.choose(self._clock(), waiter.tried)
            except UpstreamUnavailable as error:
                waiter.answer.set_exception(error)
            else:
                if turn is None:
                    return
                waiter.answer.set(turn)
            self._waiting.popleft()

    def _until_a_rest_ends_s(self) -> float | None:
        now_s = self._clock()
        end_s = self._upstreams.next_rest_ends_s(now_s)
        return None if math.isinf(end_s) else end_s - now_s

    def _overloaded(self, why: str) -> Overloaded:
        return Overloaded(f"every server is full ({self._upstreams.occupation()}), and {why}")


class Connection:
    """The far end of a call: a connection to another server.

    Attributes:
        has_spoken: Whether it has said a line.
    """

    def __init__(self, link: _socket.socket, on_first_line: Callable[[], None]) -> None:
        """Take over a connection.

        Args:
            link: A connected socket that does not block.
            on_first_line: Called when the server has said a line.
        """
        hub: Any = gevent.get_hub()
        self.has_spoken = False
        self._hub = hub
        self._link = link
        self._reader = hub.loop.io(link.fileno(), _READ)
        self._writer = hub.loop.io(link.fileno(), _WRITE)
        self._on_first_line = on_first_line
        self._lines: deque[bytes] = deque()
        self._half_line = b""
        self._outbox = bytearray()
        self._broken = ""

    def next_line(self) -> bytes:
        """Wait for the server's next line; see ``FarEnd``.

        Raises:
            UpstreamUnavailable: The connection broke, or what came is no AGI.
        """
        if self._lines:
            # Nobody else would have a turn if it waits for no reply, and its lines are all held back.
            gevent.sleep(0)
        while not self._lines:
            self._hub.wait(self._reader)
            if not self._receive():
                return b""
        if not self.has_spoken:
            self.has_spoken = True
            self._on_first_line()
        return self._lines.popleft()

    def answer(self, reply: bytes) -> None:
        """Write a reply, and wait until all of it is written; see ``FarEnd``."""
        self._outbox += reply
        # What the hub has begun to write is part of the same outbox.
        self._writer.stop()
        while self._write_some():
            self._hub.wait(self._writer)

    def on_unasked(self, data: bytes) -> None:
        """Write what Asterisk said unasked, in the hub; see ``FarEnd``."""
        somebody_writes = bool(self._outbox)
        self._outbox += data
        if not somebody_writes and self._write_some():
            self._writer.start(self._write_on)

    def close(self) -> None:
        """Let go of the connection."""
        for watcher in (self._reader, self._writer):
            watcher.stop()
            watcher.close()
        self._link.close()

    def _receive(self) -> bool:
        """Take what has come.

        Returns:
            False if the server has said all.
        """
        try:
            data = self._link.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return True
        except OSError as error:
            if not self._is_an_end(error):
                raise UpstreamUnavailable(_broke_off(error)) from error
            data = b""
        if not data:
            return self._finish()
        *lines, self._half_line = (self._half_line + data).split(b"\n")
        if len(lines[0] if lines else self._half_line) > MAX_LINE_BYTES:
            raise UpstreamUnavailable(f"a line of more than {MAX_LINE_BYTES} bytes: it does not speak AGI")
        self._lines += [line + b"\n" for line in lines]
        return True

    def _finish(self) -> bool:
        if self._broken:
            raise UpstreamUnavailable(self._broken)
        if not self._half_line:
            return False
        # Asterisk, too, takes what comes before the end for a line.
        self._lines.append(self._half_line + b"\n")
        self._half_line = b""
        return True

    def _write_on(self) -> None:
        if not self._write_some():
            self._writer.stop()

    def _write_some(self) -> bool:
        """Write as much as the kernel takes; return whether there is more."""
        try:
            while self._outbox:
                del self._outbox[: self._link.send(self._outbox)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            # It has closed, and what it said before is still to be carried out.
            self._outbox.clear()
        except OSError as error:
            # The kernel tells of it once only: reading would find nothing but an end.
            self._broken = "" if self._is_an_end(error) else _broke_off(error)
            self._outbox.clear()
        return bool(self._outbox)

    def _is_an_end(self, error: OSError) -> bool:
        """Whether the server has merely closed without reading our last reply, as many scripts do.

        To Asterisk, which it would have talked to, this is an end like any other.
        """
        return self.has_spoken and isinstance(error, ConnectionResetError)


@dataclass(frozen=True, slots=True)
class _Lookup:
    """The addresses of a name.

    Attributes:
        until_s: How long they are used.
        greenlet: Whose result they are, or the error.
    """

    until_s: float
    greenlet: Any


class _Names:
    """Addresses of servers: of each name one lookup at a time, however many calls want it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lookups: dict[Server, _Lookup] = {}

    def addresses(self, server: Server) -> Sequence[tuple[int, _Address]]:
        """Return the family and address of each place where a server may be.

        Raises:
            OSError: Its name cannot be looked up.
        """
        if _is_address(server.host):
            family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
            return [(family, (server.host, server.port))]
        lookup = self._lookups.get(server)
        if lookup is None or lookup.until_s <= self._clock():
            # In a greenlet of its own: it goes on for the others when this call gives up.
            lookup = _Lookup(self._clock() + LOOKUP_S, gevent.spawn(_look_up, server))
            self._lookups[server] = lookup
        found: Sequence[tuple[int, _Address]] | OSError = lookup.greenlet.get()
        if isinstance(found, OSError):
            self.forget(server)
            raise OSError(f"its name cannot be looked up ({found.strerror})")
        return found

    def forget(self, server: Server) -> None:
        """Look up a name anew at the next call."""
        self._lookups.pop(server, None)


def environment(request: Request) -> bytes:
    """Write the environment of a call as Asterisk wrote it."""
    lines = "".join(f"{name}: {value}\n" for name, value in request.environment.items())
    return lines.encode("utf-8", "surrogateescape") + b"\n"


def connect(family: int, address: _Address) -> _socket.socket:
    """Connect without blocking more than the own greenlet.

    Raises:
        OSError: It is not possible.
    """
    # Not gevent's socket: the hub writes to it, and must not wait.
    link = _socket.socket(family, socket.SOCK_STREAM)
    try:
        link.setblocking(False)
        failure = link.connect_ex(address)
        if failure == errno.EINPROGRESS:
            _await_writable(link)
            failure = link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise OSError(failure, os.strerror(failure))
        _refuse_oneself(link)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    except BaseException:
        link.close()
        raise
    return link


def _await_writable(link: _socket.socket) -> None:
    hub: Any = gevent.get_hub()
    watcher = hub.loop.io(link.fileno(), _WRITE)
    try:
        hub.wait(watcher)
    finally:
        watcher.close()


def _refuse_oneself(link: _socket.socket) -> None:
    """Refuse a connection whose other end is itself.

    Where nobody listens on a port of the range that outgoing connections are given theirs from, the kernel
    may give one the very port that it is meant for: TCP then connects it to itself, and all that is said
    comes back.
    """
    if link.getsockname() == link.getpeername():
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def _look_up(server: Server) -> Sequence[tuple[int, _Address]] | OSError:
    """Look up a name in a thread of gevent's; an error is returned, for gevent would print a raised one."""
    try:
        found = gevent.socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except UnicodeError as error:
        return OSError(errno.EINVAL, str(error))
    return [(family, address) for family, _, _, _, address in found]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _reason(error: OSError) -> str:
    """Say in a word or two why there is no connection."""
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    return error.strerror or str(error)


def _broke_off(error: OSError) -> str:
    return f"the connection broke off: {_reason(error)}"
