"""Session: one socket, one AgiConnection and one deadline.

Laws:
    * At any moment exactly one limit runs: for the environment, for Asterisk's answer to a command
      (idle), or for the handler's own time (script). Asterisk's time never counts as the handler's:
      a Dial may last hours.
    * A session keeps no timer. It says when its limit ends, and when it becomes slow; the worker looks at
      all its sessions a few times a second and calls :meth:`Session.expire`.
    * Every moment from accept to close runs on at most one of four clocks: queued, in Asterisk, in the
      handler, and of the handler's time in the database. What runs stands in the session's row as well, for
      whoever looks from outside.
    * A whole command line goes out before anything else happens to the socket.
    * Closing is a success to the dialplan. Only :meth:`Session.fail` is not.
    * A handler may outlive its connection (:meth:`Session.finish`); its own time goes on.
    * Until a call begins nothing of it is consumed: its environment is only looked at, so whoever survives
      this process can hand the connection to another. (On a unix socket an environment that comes in pieces
      is consumed all the same: the kernel would wake us for what is known already, again and again.)
    * A session that nobody serves yet has no greenlet, however it cuts its environment. Whoever awaits it is
      called once it is known what it wants, or once one of its limits is over; who serves it learns which.
    * Between commands nobody reads, unless somebody listens (:meth:`Session.listen`): for whom else speaks in
      the handler's place, and has to hear of a hangup when it comes. Never do two read at a time.

Source: asterisk res/res_agi.c, run_agi(): the line "failure"; the endings of sessions were recorded
from Asterisk 16 and 22.
"""

from __future__ import annotations

import _socket
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import starmap
from time import monotonic
from typing import Any, Final, Literal, NamedTuple, NoReturn

import gevent
from gevent import monkey

from fastagi_pool.callboard import NO_ROW, CallRow, CallState, Clocks
from fastagi_pool.custody import BEGUN, NO_CUSTODY, NOBODYS, UNBEGUN, Custody, NoCustody
from fastagi_pool.endings import FAILURE_LINE
from fastagi_pool.errors import (
    AGICallFinished,
    CallEnded,
    CallHangup,
    CallOutOfStep,
    CallPeerGone,
    CallStopped,
    CallTimeout,
    RemoteProtocolError,
)
from fastagi_pool.protocol import (
    NEED_DATA,
    AgiConnection,
    ConnectionClosed,
    Event,
    Hangup,
    HeaderLimits,
    NeedData,
    Reply,
    Request,
    State,
)

#: Room for an environment in one piece; larger ones come in several.
_RECEIVE_BYTES: Final = 16384
#: More than an honest environment, and less than the least receive buffer: of more than fits there the kernel
#: could not wait for the rest. Source: tcp_set_rcvlowat() in net/ipv4/tcp.c.
_MOST_LEFT_BYTES: Final = 32768
#: Look without taking, and without waiting.
_PEEK: Final = socket.MSG_PEEK | socket.MSG_DONTWAIT
#: How long HANGUP may come behind the -1 that it causes: 45 ms were seen.
HANGUP_GRACE_S: Final = 0.1
#: How long a failed session waits for Asterisk to have read the reason.
CLOSING_S: Final = 2.0
#: How often a handler that does not let go of an ended call is interrupted again.
_INSIST_S: Final = 1.0
#: Commands that are remembered for the slow log, the last ones, and how much of each.
REMEMBERED_COMMANDS: Final = 20
_REMEMBERED_BYTES: Final = 200
#: How Asterisk says that the caller hung up.
_HANGUP_LINE: Final = b"HANGUP\n"
#: A limit that is off. Compared with monotonic times only.
_NEVER: Final = float("inf")

_READ: Final = 1
_WRITE: Final = 2

Limit = Literal["header", "idle", "script", "closing", "over"]
#: What a connection has to say: nothing yet that would tell what it wants, nothing ever, or something.
Look = Literal["silent", "closed", "word"]


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What a session may take; 0 for no limit.

    Attributes:
        header_s: From accept until the environment is whole.
        idle_s: Waiting for Asterisk's answer to one command.
        script_s: The handler's own time, in all.
        slow_s: Beyond this much of the handler's own time a call is slow, and its commands are remembered;
            0 for never.
        drain_s: How long it may go on once its worker drains; here 0 ends it at once.
        masked: Whether those who look see only the first word of each command and each statement, as others
            may hold digits that the caller dialled.
    """

    header_s: float = 10.0
    idle_s: float = 14400.0
    script_s: float = 60.0
    slow_s: float = 0.0
    drain_s: float = _NEVER
    masked: bool = False


class Said(NamedTuple):
    """A command, as the slow log tells of it.

    Attributes:
        began_s: Monotonic time at which it was sent.
        line: The beginning of the line, without its end.
        took_s: How long Asterisk took; None if it has not answered.
    """

    began_s: float
    line: bytes
    took_s: float | None


def _to_nobody(data: bytes) -> None:
    """Hear a hangup of which nobody wants to be told."""


def _first_word(statement: str) -> str:
    return "".join(statement.split(maxsplit=1)[:1])


class Session:
    """One connection from Asterisk, from accept to close.

    Attributes:
        peer: The address it comes from.
        accepted_s: Monotonic time of accept.
        deadline_s: When the running limit ends.
        greenlet: Who serves it; what :meth:`expire` interrupts.
        slow_at_s: When the call becomes slow if its handler goes on without a command.
        slow: Whether it was found to be slow.
        commands: Number of commands sent.
        queued_s: Time spent waiting for a place: to be served, or where its handler needs one.
        asterisk_s: Time spent waiting for replies.
        script_s: Time spent by the handler, in the database too.
        database_s: Of that, the time in the database.
        statement: The last statement that was sent to a database; empty if none was.
        row: Where others see what the call does; see :meth:`show_in`.
        hung_up: Whether HANGUP was seen.
        finished_s: Monotonic time at which the handler gave the call back before its end, or None.
    """

    __slots__ = (
        "_agi",
        "_aside",
        "_aside_since_s",
        "_asked",
        "_custody",
        "_fd",
        "_first",
        "_hangup_told",
        "_hub",
        "_idle_limit_s",
        "_limit",
        "_limits",
        "_mark_s",
        "_on_unasked",
        "_on_word",
        "_over",
        "_peeked_bytes",
        "_raise_hangup",
        "_reader",
        "_said",
        "_script_limit_s",
        "_slow_limit_s",
        "_unsent",
        "_woken_at_bytes",
        "accepted_s",
        "asterisk_s",
        "commands",
        "database_s",
        "deadline_s",
        "finished_s",
        "greenlet",
        "hung_up",
        "peer",
        "queued_s",
        "row",
        "script_s",
        "slow",
        "slow_at_s",
        "statement",
    )

    def __init__(
        self,
        descriptor: int,
        peer: str,
        hub: Any,
        limits: SessionLimits,
        header_limits: HeaderLimits,
        row: CallRow = NO_ROW,
        custody: Custody | NoCustody = NO_CUSTODY,
    ) -> None:
        """Take over a connection.

        Args:
            descriptor: A connected socket's, non-blocking. Bare, because a socket object costs a
                system call to make and gives nothing that reading and writing need.
            peer: Its address, for the logs.
            hub: gevent's hub of this thread.
            limits: What the session may take until a route says otherwise.
            header_limits: What the environment may cost.
            row: Where others shall see what the call does.
            custody: Where it stands for those who survive this process.
        """
        self._custody = custody.words
        self._custody[descriptor] = UNBEGUN
        self.peer = peer
        self.accepted_s = self._mark_s = monotonic()
        self.greenlet: Any = None
        self.row = row
        self.commands = 0
        self.queued_s = self.asterisk_s = self.script_s = self.database_s = 0.0
        self.statement = ""
        self.slow = False
        self.slow_at_s: float = _NEVER
        self.hung_up = False
        self.finished_s: float | None = None
        self._agi = AgiConnection(header_limits)
        self._hub = hub
        self._limits = limits
        self._idle_limit_s = self._script_limit_s = self._slow_limit_s = _NEVER
        self._asked = b""
        self._aside: CallState | None = None
        self._aside_since_s = 0.0
        self._said: deque[tuple[float, bytes, float]] | None = None
        self._over: CallEnded | None = None
        self._on_unasked: Callable[[bytes], None] | None = None
        self._hangup_told = False
        self._raise_hangup = True
        self._unsent = b""
        self._first: Event | NeedData | RemoteProtocolError = NEED_DATA
        self._peeked_bytes = 0
        self._woken_at_bytes = 1
        self._on_word: Callable[[Session, Look], None] | None = None
        self._fd = descriptor
        self._reader = hub.loop.io(descriptor, _READ)
        self.deadline_s: float = _NEVER
        self._arm("header", self.accepted_s, limits.header_s)
        row.accepted(peer, self.accepted_s)

    def fileno(self) -> int:
        """The connection's descriptor; -1 once it is closed."""
        return self._fd

    @property
    def peer_has_closed(self) -> bool:
        """Whether the peer has closed, whatever it said before."""
        # Not gevent's poll, which would switch to the hub: this is asked in the hub.
        poller = monkey.get_original("select", "poll")()
        poller.register(self._fd, select.POLLRDHUP)
        return bool(poller.poll(0))

    def show_in(self, row: CallRow) -> None:
        """Let others see from now on what the call does; before :meth:`begin`.

        Args:
            row: The call's from now on, and to be released by whoever gave it.
        """
        self.row = row
        row.accepted(self.peer, self.accepted_s)

    # --- before the call begins

    def look(self) -> Look:
        """Look at what has come, without waiting: in the hub, where those who are slow need no greenlet.

        Returns:
            ``silent`` if it does not tell yet what is wanted, ``closed`` if the peer has closed or is gone
            without a word, ``word`` if there is something for :meth:`receive_request`.
        """
        look = self._look_further()
        if look != "silent":
            self._wake_at(1)
        return look

    def _look_further(self) -> Look:
        known = self._peeked_bytes
        try:
            data = self._peek(known + _RECEIVE_BYTES)
        except BlockingIOError:
            return "silent"
        except OSError as error:
            if not known:
                return "closed"
            self._gone(f"the connection broke: {error}")
            return "word"
        if len(data) == known:
            # It has ended, or we were woken for nothing, as when memory is short: not to be so for ever.
            # Which of the two, only reading tells.
            return "word" if known else "closed"
        self._peeked_bytes = len(data)
        self._agi.receive_data(data[known:])
        try:
            self._first = self._agi.next_event()
        except RemoteProtocolError as error:
            self._first = error
        # What comes behind must wake us, and not what is there already.
        patient = self._first is NEED_DATA and self._wake_at(self._peeked_bytes + 1)
        return "silent" if patient else "word"

    def await_word(self, on_word: Callable[[Session, Look], None]) -> None:
        """Wait without a greenlet until it is known what is wanted; the time for the environment runs.

        Args:
            on_word: Called once with this session and what :meth:`look` has found, in the hub: it must
                neither wait nor raise. It is called as well when the session is interrupted: then
                :meth:`receive_request` raises why.
        """
        self._on_word = on_word
        self._reader.start(self._hear)

    def _hear(self) -> None:
        look = self.look()
        if look != "silent":
            self._tell(look)

    def _tell(self, look: Look) -> None:
        on_word, self._on_word = self._on_word, None
        self._reader.stop()
        if on_word is not None:
            on_word(self, look)

    def receive_request(self) -> Request | None:
        """Wait for the environment, which stays in the kernel until the call begins where that is possible.

        Returns:
            The request; None if the peer closed without a word, as a probe does.

        Raises:
            RemoteProtocolError: What came is not AGI.
            CallTimeout: It did not come in time.
            CallPeerGone: The connection broke.
            CallStopped: The worker must end.
        """
        waits = self._over is None and self._first is NEED_DATA
        look: Look = self.look() if waits else "word"
        while look == "silent":
            self._hub.wait(self._reader)
            look = self.look()
        if self._over is not None:
            raise self._over
        event = self._first
        if event is NEED_DATA and look != "closed":
            self._consume()
            event = self._patiently(event, self._agi.next_event)
        if look == "closed" or isinstance(event, ConnectionClosed):
            return None
        if isinstance(event, RemoteProtocolError):
            raise event
        if not isinstance(event, Request):
            raise RemoteProtocolError(f"an environment was expected, not {event}")
        # Should what is done with it now end this process, it must not end the next one, and all that follow.
        self._take_up()
        return event

    def _peek(self, most_bytes: int) -> bytes:
        """Look at what has come since accept.

        Raises:
            BlockingIOError: Nothing has.
            OSError: The connection broke.
        """
        # Of any family: receiving asks for none, and finding out would be a system call more.
        connection = _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, self._fd)
        try:
            return connection.recv(most_bytes, _PEEK)
        finally:
            connection.detach()

    def _wake_at(self, least_bytes: int) -> bool:
        """Say how many bytes must be there before the kernel wakes us; False if that is not possible."""
        if least_bytes == self._woken_at_bytes:
            return True
        if least_bytes > _MOST_LEFT_BYTES:
            return False
        try:
            with self._borrowed_socket() as connection:
                if least_bytes > 1:
                    # What comes in pieces waits for our acknowledgement between them. On a unix socket this
                    # fails, and so tells that the mark would not be heeded.
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least_bytes)
        except OSError:
            return False
        self._woken_at_bytes = least_bytes
        return True

    def _take_up(self) -> None:
        """Say that from here on nobody else can begin with it, should this process end."""
        self._custody[self._fd] = BEGUN + self.row.number

    def _consume(self) -> None:
        """Take what was only looked at out of the kernel: from here on the call is ours for good.

        Raises:
            CallPeerGone: The connection broke.
        """
        self._take_up()
        while self._peeked_bytes:
            try:
                taken = os.read(self._fd, self._peeked_bytes)
            except OSError as error:
                raise self._gone(f"the connection broke: {error}") from error
            self._peeked_bytes = self._peeked_bytes - len(taken) if taken else 0

    # --- the conversation

    def begin(self, limits: SessionLimits, raise_hangup: bool = True) -> None:
        """Begin the call: start the handler's time under the limits of its route.

        Args:
            limits: The route's limits.
            raise_hangup: Whether a hangup raises CallHangup; otherwise only ``hung_up`` tells of it.

        Raises:
            CallPeerGone: The connection broke before.
        """
        if self._fd >= 0:
            self._consume()
        self._limits = limits
        self._idle_limit_s = limits.idle_s or _NEVER
        self._script_limit_s = limits.script_s or _NEVER
        self._raise_hangup = raise_hangup
        if limits.slow_s:
            self._slow_limit_s = limits.slow_s
            self._said = deque(maxlen=REMEMBERED_COMMANDS)
        self._mark_s = monotonic()
        self._arm_script()

    def execute(self, line: bytes) -> Reply:
        """Send one command line and wait for its reply. Whoever listened does so no more.

        Raises:
            CallHangup: The caller hung up, now or since the last command; raised once, after the
                reply has been read, so the session stays in step and can go on.
            CallTimeout: Asterisk did not answer in time, or the handler's time is over.
            CallPeerGone: Asterisk closed the connection.
            CallOutOfStep: The answer is not AGI.
            AGICallFinished: The handler gave the call back before.
        """
        if self._on_unasked is not None:
            self._stop_listening()
        reply = self._converse(line)
        if self.hung_up and not self._hangup_told:
            self._tell_hangup()
        return reply

    def _converse(self, line: bytes) -> Reply:
        now_s = monotonic()
        self.script_s += now_s - self._mark_s
        self._mark_s = now_s
        if self.script_s >= self._script_limit_s or self._over is not None or self.finished_s is not None:
            self._cannot_go_on(line)
        data = self._agi.send_command(line)
        self._limit = "idle"
        self.deadline_s = now_s + self._idle_limit_s
        self.slow_at_s = _NEVER
        self.commands += 1
        self._asked = line
        self.row.asks(line.partition(b" ")[0] if self._limits.masked else line, self.script_s, now_s)
        try:
            self._send(data)
            self._hub.wait(self._reader)
            self._receive()
            event = self._next_reply()
            if not isinstance(event, Reply):
                event = self._patiently(event, self._next_reply)
        except BaseException as interruption:
            self._asterisk_is_done()
            if not isinstance(interruption, CallEnded):
                # The handler's own time-out: it may go on, in its own time.
                self._arm_script()
            raise
        self._asterisk_is_done()
        self._arm_script()
        if not isinstance(event, Reply):
            raise self._gone("Asterisk closed the connection")
        return event

    def _asterisk_is_done(self) -> None:
        now_s = monotonic()
        took_s = now_s - self._mark_s
        if self._said is not None:
            # A plain tuple: at every command a named one would cost as much as all the rest here.
            self._said.append((self._mark_s, self._asked[:_REMEMBERED_BYTES], took_s))
        self.asterisk_s += took_s
        self._mark_s = now_s
        self.row.runs(self.asterisk_s, now_s)

    def _cannot_go_on(self, line: bytes) -> NoReturn:
        """Raise why no command can be sent any more."""
        if self._over is None and self.script_s >= self._script_limit_s:
            # Between commands nobody looks at the clock: a busy handler would never be late.
            self._over = CallTimeout("script", self._limits.script_s)
        if self._over is not None:
            raise self._over
        command = line.decode(errors="replace").rstrip()
        raise AGICallFinished("the call was given back by finish()", command)

    def await_hangup(self) -> None:
        """Give a HANGUP that follows a -1 the time to arrive. Whoever listened does so no more.

        Raises:
            CallHangup: It came, no one was told yet, and hangups are raised.
            CallPeerGone: Asterisk closed instead.
            CallOutOfStep: Something else came.
        """
        if self._on_unasked is not None:
            self._stop_listening()
        if not self.hung_up:
            event = self._next_reply()
            if event is NEED_DATA:
                self._acknowledge_quickly()
                with gevent.Timeout(HANGUP_GRACE_S, False):
                    self._hub.wait(self._reader)
                    self._receive()
                event = self._next_reply()
            if isinstance(event, Hangup):
                self._note_hangup()
            elif isinstance(event, ConnectionClosed):
                raise self._gone("Asterisk closed the connection")
        if self.hung_up and not self._hangup_told:
            self._tell_hangup()

    def settle(self) -> None:
        """Count the time up to now, at the end of the handler, and raise what it may have swallowed.

        Raises:
            CallEnded: The call was interrupted, whatever the handler made of it.
        """
        self._stop_listening()
        now_s = monotonic()
        self.script_s += now_s - self._mark_s
        self._mark_s = now_s
        if self._over is not None:
            raise self._over

    def _tell_hangup(self) -> None:
        self._hangup_told = True
        if self._raise_hangup:
            raise CallHangup("the caller hung up")

    # --- a conversation that others hold

    def exchange(self, line: bytes) -> bytes:
        """Send one command line and wait for its reply; never raises CallHangup: see :meth:`listen`.

        Returns:
            All that was said since the last reply, as it came: the reply at its end, or HANGUP behind it.

        Raises:
            CallTimeout: Asterisk did not answer in time, or the handler's time is over.
            CallPeerGone: Asterisk closed the connection.
            CallOutOfStep: The answer is not AGI.
            AGICallFinished: The handler gave the call back before.
        """
        if self._on_unasked is None:
            self.listen(_to_nobody)
        if self._on_unasked is not None:
            self._reader.stop()
        self._converse(line)
        # What came in one piece with the reply is handed over with it, in its order.
        if self._hears_hangup():
            self._notice_hangup(b"")
        raw = self._agi.take_raw()
        self._reader.start(self._on_readable)
        return raw

    def listen(self, on_unasked: Callable[[bytes], None]) -> None:
        """Tell of HANGUP whenever it comes, and interrupt the handler if Asterisk closes between commands.

        It lasts until another one listens, the handler commands by itself, or the call ends. Of a hangup that
        is known already it is told at once. On a call that is over nothing happens.

        Args:
            on_unasked: Called with the bytes; while a command runs with none, as these come with its reply.
                In gevent's hub, or in this call: it must neither wait nor raise.

        Raises:
            CallOutOfStep: What has come behind the last reply is no AGI.
        """
        if self._fd < 0 or self._over is not None:
            return
        self._reader.stop()
        self._agi.keep_raw()
        self._on_unasked = on_unasked
        if self.hung_up:
            on_unasked(_HANGUP_LINE)
        self._hear_unasked()
        self._reader.start(self._on_readable)

    def _on_readable(self) -> None:
        """Read what Asterisk says unasked. In the hub: nothing here may wait or raise."""
        if self._on_unasked is None or self._over is not None:
            self._reader.stop()
            return
        try:
            # Not _receive(), which would wait.
            self._agi.receive_data(os.read(self._fd, _RECEIVE_BYTES))
            self._hear_unasked()
        except BlockingIOError:
            return
        except OSError as error:
            self._break_off(self._gone(f"the connection broke: {error}"))
        except CallEnded as ended:
            self._break_off(ended)

    def _hear_unasked(self) -> None:
        """Tell of a HANGUP that was read while no command runs.

        Raises:
            CallPeerGone, CallOutOfStep: Something else came.
        """
        if self._hears_hangup():
            self._notice_hangup(self._agi.take_raw())
        if self._agi.state is State.CLOSED:
            raise self._gone("Asterisk closed the connection")

    def _hears_hangup(self) -> bool:
        """Take what was read behind the last reply; True if HANGUP was among it."""
        heard = False
        while isinstance(self._next_reply(), Hangup):
            heard = True
        return heard

    def _notice_hangup(self, raw: bytes) -> None:
        known = self.hung_up
        self._note_hangup()
        if self._on_unasked is not None and (raw or not known):
            self._on_unasked(raw)

    def _note_hangup(self) -> None:
        if not self.hung_up:
            self.hung_up = True
            self.row.hung_up()

    def _break_off(self, why: CallEnded) -> None:
        self._reader.stop()
        self._interrupt(monotonic(), why)

    def _stop_listening(self) -> None:
        if self._on_unasked is not None:
            self._on_unasked = None
            self._agi.drop_raw()
            if self._fd >= 0:
                self._reader.stop()

    # --- the clocks besides Asterisk's

    def queues(self) -> None:
        """Begin to wait for a place; :meth:`called_in` must follow.

        The handler's time goes on meanwhile; the time for the environment rests.
        """
        now_s = monotonic()
        if self._limit == "script":
            self.script_s += now_s - self._mark_s
        elif self._limit == "header":
            self.deadline_s = _NEVER
            if self._peeked_bytes:
                # Whatever ends this process while it waits, it is not this call.
                self._custody[self._fd] = UNBEGUN
        self._mark_s = now_s
        self.slow_at_s = _NEVER
        self._aside, self._aside_since_s = CallState.QUEUED, now_s
        self.row.queued(now_s)

    def called_in(self) -> None:
        """Wait no longer; the time for the environment begins anew, the handler's own goes on."""
        now_s = monotonic()
        self.queued_s += now_s - self._mark_s
        self._mark_s = now_s
        self._aside = None
        self.row.called_in(self.queued_s, now_s)
        if self._limit == "header":
            self._arm("header", now_s, self._limits.header_s)
        elif self._limit == "script":
            self._arm_script()

    def queries(self, statement: str, now_s: float) -> None:
        """Note that the handler waits for the answer to a statement; see ``database.Onlooker``."""
        self.statement = statement
        self.waits(_first_word(statement) if self._limits.masked else statement, now_s)

    def waits(self, what: str, now_s: float) -> None:
        """Note that the handler waits for a database otherwise; see ``database.Onlooker``."""
        self._aside, self._aside_since_s = CallState.DATABASE, now_s
        self.row.queries(what, now_s)

    def answered(self, took_s: float, now_s: float) -> None:
        """Note that it waits no longer, and count how long it did; see ``database.Onlooker``."""
        self._aside = None
        self.database_s += took_s
        self.row.answered(self.database_s, now_s)

    @property
    def state(self) -> CallState:
        """What the call does now."""
        if self._limit == "idle":
            return CallState.ASTERISK
        if self._aside is not None:
            return self._aside
        if self._limit == "script":
            return CallState.SCRIPT if self.finished_s is None else CallState.FINISHED
        return CallState.HEADER if self._limit == "header" else CallState.ENDING

    @property
    def since_s(self) -> float:
        """Monotonic time at which it began to do that."""
        return self._aside_since_s if self.state is CallState.DATABASE else self._mark_s

    def clocks(self, now_s: float) -> Clocks:
        """Return the four clocks, the running one up to now. None overlaps another."""
        state, running_s = self.state, now_s - self._mark_s
        in_script = state in (CallState.SCRIPT, CallState.FINISHED, CallState.DATABASE)
        script_s = self.script_s + (running_s if in_script else 0.0)
        database_s = self.database_s
        if state is CallState.DATABASE:
            database_s += now_s - self._aside_since_s
        return Clocks(
            self.queued_s + (running_s if state is CallState.QUEUED else 0.0),
            self.asterisk_s + (running_s if state is CallState.ASTERISK else 0.0),
            max(0.0, script_s - database_s),
            database_s,
        )

    @property
    def exceeds(self) -> bool:
        """Whether the call was slow up to its last command, or its end, and was not found so: find_slow()."""
        return self.script_s >= self._slow_limit_s

    def find_slow(self) -> None:
        """Note that the call is slow; it is not found so again."""
        self.slow = True
        self._slow_limit_s = self.slow_at_s = _NEVER

    def said(self) -> Sequence[Said]:
        """Return the last commands, oldest first, with the one that runs; none if calls are never slow."""
        if self._said is None:
            return []
        running = self.state is CallState.ASTERISK
        line = self._asked[:_REMEMBERED_BYTES]
        # Copied in one step: the lookout's thread may ask while the call goes on.
        said = list(self._said)
        return [*starmap(Said, said), *([Said(self._mark_s, line, None)] if running else [])]

    # --- the end

    def finish(self) -> None:
        """Close while the handler goes on: to the dialplan, a success. A second time nothing happens.

        Raises:
            CallEnded: The call is over already, and that was no success.
        """
        if self._over is not None:
            raise self._over
        if self._fd >= 0:
            running_until_s = self.deadline_s
            self.close()
            self.finished_s = monotonic()
            self.deadline_s = running_until_s
            self.row.finished(self.finished_s)

    def fail(self, last_words: bytes = FAILURE_LINE) -> None:
        """Tell the dialplan AGISTATUS=FAILURE, wait until Asterisk has read it, and close.

        The words go out behind whatever command is still running. Closing at once could reset the
        connection and take them with it, so the end of Asterisk's side is awaited, for
        ``CLOSING_S`` at most. On a session that has been closed nothing happens.

        Args:
            last_words: Whole lines, of which the last is the failure line.
        """
        self._stop_listening()
        if self._fd < 0:
            return
        # From here on it is told something.
        self._take_up()
        self._arm("closing", monotonic(), CLOSING_S)
        # Asterisk is waited for, which makes no call slow.
        self.slow_at_s = _NEVER
        try:
            self._send(self._unsent + last_words)
            with self._borrowed_socket() as connection:
                connection.shutdown(socket.SHUT_WR)
            while self._receive_some():
                # A peer that never pauses must not keep the other calls from their turn.
                self._hub.wait(self._reader)
        except BaseException:
            pass  # It is gone or does not listen, or what the handler left behind interrupts us: never mind.
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the connection; may be called twice."""
        self._stop_listening()
        if self._fd >= 0:
            self.deadline_s = _NEVER
            self._reader.stop()
            self._reader.close()
            os.close(self._fd)
            self._custody[self._fd] = NOBODYS
            self._fd = -1
            self._on_word = None

    # --- limits

    def expire(self, now_s: float) -> None:
        """Interrupt whoever serves it: its limit is over (called by the worker, in the hub)."""
        if self._over is None and self._limit != "closing":
            limit_s = {
                "header": self._limits.header_s,
                "idle": self._limits.idle_s,
                "script": self._limits.script_s,
            }.get(self._limit, 0.0)
            self._over = CallTimeout(self._limit, limit_s)
        self._interrupt(now_s, self._over or CallTimeout(self._limit, CLOSING_S))

    def stop(self, now_s: float) -> None:
        """Interrupt whoever serves it: the worker must end (called by the worker, in the hub)."""
        if self._over is None:
            self._over = CallStopped("the worker must end")
        self._interrupt(now_s, self._over)

    def end_draining(self, began_s: float, now_s: float) -> None:
        """Stop once the time is over that its route gives a call whose worker drains.

        Args:
            began_s: Monotonic time at which the worker began to drain.
            now_s: The time now.
        """
        if self._over is None and self._limit != "closing" and now_s >= began_s + self._limits.drain_s:
            self.stop(now_s)

    def _interrupt(self, now_s: float, why: CallEnded) -> None:
        self._arm("over" if self._limit != "closing" else "closing", now_s, _INSIST_S)
        if self.greenlet is not None:
            self.greenlet.throw(why)
        elif self._on_word is not None:
            self._tell("word")

    def _arm(self, limit: Limit, now_s: float, limit_s: float) -> None:
        self._limit = limit
        self.deadline_s = now_s + limit_s if limit_s else _NEVER

    def _arm_script(self) -> None:
        self._limit = "script"
        own_since_s = self._mark_s - self.script_s
        self.deadline_s = own_since_s + self._script_limit_s
        self.slow_at_s = own_since_s + self._slow_limit_s

    # --- bytes

    def _patiently(self, event: Event | NeedData, next_event: Callable[[], Event | NeedData]) -> Event:
        """Read on until there is an event other than HANGUP, if this is none yet."""
        while True:
            if event is NEED_DATA:
                # What comes in pieces waits for our acknowledgement between them.
                self._acknowledge_quickly()
                self._hub.wait(self._reader)
                self._receive()
            elif isinstance(event, Hangup):
                self._notice_hangup(b"")
            else:
                return event
            event = next_event()

    def _next_reply(self) -> Event | NeedData:
        """What has come during the call; once that is no AGI, the call is over."""
        try:
            return self._agi.next_event()
        except RemoteProtocolError as error:
            self._over = CallOutOfStep(str(error))
            raise self._over from error

    def _receive(self) -> None:
        self._agi.receive_data(self._receive_some())

    def _receive_some(self) -> bytes:
        while True:
            try:
                return os.read(self._fd, _RECEIVE_BYTES)
            except BlockingIOError:
                self._hub.wait(self._reader)
            except OSError as error:
                raise self._gone(f"the connection broke: {error}") from error

    def _send(self, data: bytes) -> None:
        while True:
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise self._gone(f"the connection broke: {error}") from error
            if sent == len(data):
                self._unsent = b""
                return
            # Half a line makes Asterisk spin: whatever interrupts us, fail() sends the rest first.
            self._unsent = data = data[sent:]
            writer = self._hub.loop.io(self._fd, _WRITE)
            try:
                self._hub.wait(writer)
            finally:
                writer.close()

    def _gone(self, reason: str) -> CallPeerGone:
        gone = CallPeerGone(reason)
        if self._over is None:
            self._over = gone
        return gone

    def _acknowledge_quickly(self) -> bool:
        """Spare the 40 ms that Nagle's algorithm costs Asterisk between two pieces (41 -> 0.1 ms).

        Returns:
            False on a unix socket, which has no such thing, and for a peer that is gone: reading will say so.
        """
        try:
            with self._borrowed_socket() as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except OSError:
            return False
        return True

    @contextmanager
    def _borrowed_socket(self) -> Iterator[_socket.socket]:
        """Our descriptor as a socket object, for what only such a one can do."""
        connection = _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, self._fd)
        try:
            yield connection
        finally:
            connection.detach()
