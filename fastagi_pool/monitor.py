"""Monitor: one greenlet for each database of a worker finds out whether its servers live.

Laws:
    * The monitor waits for no server: whoever asks one is a greenlet of its own, with bounded patience.
    * Patience is counted in turns of the loop. A worker that stood still for a second, because a handler
      computed, takes no server to be away for that.
    * A statement that nobody waits for any more is ended, never by more than a guess that is safe: on the
      same server, by a number that the same run of this server gave us, and soon.

How it works: the monitor sleeps until a statement has waited long enough to be a cause for a question, or
until a server that is away is to be tried again. What follows from an answer is decided in ``health``.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, cast

import gevent
from gevent.event import Event
from gevent.pool import Group
from sqlalchemy.engine import Dialect

from fastagi_pool.drivers import Driver, Introduction, Server
from fastagi_pool.health import Circuit, Sign, Verdict, Vigil, judge

#: What an operator reads of a server that lost its role.
READ_ONLY: Final = "is read-only: a demoted primary?"

#: In so many steps patience runs out: many enough for the loop to hear of an answer between them.
_TURNS: Final = 20
#: Statements that wait for their end; of more the oldest end by themselves.
_MOST_OUTLIVING: Final = 256
#: Later the number may be another statement's, on a server that was started again.
_END_WITHIN_S: Final = 5.0


@dataclass(slots=True, eq=False)
class Host:
    """A server of the fail-over list, and what we know about it.

    Attributes:
        server: Where it is.
        circuit: What we believe about it.
        vigil: When to ask it for a sign of life.
        epoch: Grows whenever all connections to it are given up.
        asked: Whether it is being asked now.
    """

    server: Server
    circuit: Circuit
    vigil: Vigil
    epoch: int = 0
    asked: bool = False


class Home(NamedTuple):
    """Where a connection leads.

    Attributes:
        host: To which server.
        epoch: Of the server, when the connection was made.
        introduction: What the server said then.
    """

    host: Host
    epoch: int
    introduction: Introduction


class Watched(Protocol):
    """The part of a database that the monitor looks after."""

    @property
    def name(self) -> str:
        """What log lines call it."""

    def waits_at(self, host: Host) -> Iterable[float]:
        """Tell since when each caller waits who waits for this server."""

    def reason(self, error: Exception) -> str:
        """Put in one line what a driver said, without secrets."""

    def give_up(self, host: Host) -> None:
        """Give up every connection to a server that is away; its circuit says why."""

    def note_health(self) -> None:
        """Note that what we believe about a server may have changed."""


class _Finding(NamedTuple):
    sign: Sign
    reason: str = ""


class Monitor:
    """Watches over the servers of one database.

    Args:
        database: Whose servers they are.
        hosts: The servers.
        driver: How to talk to them.
        dialect: SQLAlchemy's side of the same.
        patience_s: How long a server may keep silent: before it is asked, and when it is asked.
        clock: Seconds that only grow.
        log: Where failures of the monitor itself are told.
    """

    def __init__(
        self,
        database: Watched,
        hosts: Sequence[Host],
        driver: Driver,
        dialect: Dialect,
        patience_s: float,
        clock: Callable[[], float],
        log: logging.Logger,
    ) -> None:
        self._database = database
        self._hosts = hosts
        self._driver = driver
        self._dialect = dialect
        self._patience_s = patience_s
        self._clock = clock
        self._log = log
        self._woken = Event()
        self._greenlets: Group | None = None
        self._outliving: deque[tuple[Home, float]] = deque(maxlen=_MOST_OUTLIVING)
        self._ending = False

    def start(self) -> None:
        """Begin to watch; nothing if that is so."""
        if self._greenlets is None:
            self._greenlets = Group()
            self._spawn(self._run)

    def stop(self) -> None:
        """Watch no longer; it may be started again."""
        greenlets, self._greenlets = self._greenlets, None
        self._outliving.clear()
        self._ending = False
        for host in self._hosts:
            host.asked = False
            host.circuit.abandoned()
        if greenlets is not None:
            greenlets.kill(block=False)

    def wake(self) -> None:
        """Have it look around now, because something may have changed."""
        self._woken.set()

    def end_statement(self, home: Home) -> None:
        """Have a statement ended whose connection was closed while it ran."""
        if self._greenlets is None or not home.introduction.thread or not home.host.circuit.usable:
            return
        self._outliving.append((home, self._clock()))
        if not self._ending:
            self._ending = True
            self._spawn(self._end_statements)

    def _spawn(self, work: Callable[..., None], *arguments: object) -> None:
        # Without the context of the call that happens to be the cause: its lines are its own.
        if self._greenlets is not None:
            Context().run(self._greenlets.spawn, work, *arguments)

    # ---- watching

    def _run(self) -> None:
        while True:
            try:
                pause_s = self._look_around()
            except Exception:
                self._log.exception("database %s: the monitor failed, and goes on", self._database.name)
                pause_s = self._patience_s
            self._woken.wait(pause_s)
            self._woken.clear()

    def _look_around(self) -> float:
        """Ask whom there is cause to ask, and tell how long to sleep."""
        now_s = self._clock()
        # What begins to wait from now on needs no look before.
        next_s = now_s + self._patience_s
        for host in self._hosts:
            if host.asked:
                continue
            due_s = min(host.circuit.retry_at_s, host.vigil.due_s(self._database.waits_at(host)))
            if due_s <= now_s:
                host.asked = True
                self._spawn(self._examine, host)
            else:
                next_s = min(next_s, due_s)
        return max(next_s - self._clock(), 0.0)

    def _examine(self, host: Host) -> None:
        """Ask a server for a sign of life, and draw the conclusion."""
        asked_s, was_usable = self._clock(), host.circuit.usable
        host.circuit.started()
        host.circuit.suspected()
        finding = self._find_out(host)
        now_s = self._clock()
        verdict = judge(finding.sign, was_usable, host.vigil.answered_s > asked_s)
        if verdict is Verdict.LIVES:
            host.vigil.vouched(now_s)
            host.circuit.succeeded()
        else:
            host.circuit.failed(finding.reason, now_s)
        self._database.note_health()
        if verdict is Verdict.LOST:
            self._database.give_up(host)
        host.asked = False
        self.wake()

    def _find_out(self, host: Host) -> _Finding:
        inquiry = gevent.spawn(self._inquire, host)
        try:
            for _ in range(_TURNS):
                inquiry.join(self._patience_s / _TURNS)
                if inquiry.ready():
                    return cast(_Finding, inquiry.get())
        finally:
            inquiry.kill(block=False)
        return _Finding(Sign.NONE, f"no sign of life within {self._patience_s:g} s")

    def _inquire(self, host: Host) -> _Finding:
        try:
            connection, introduction = self._connect(host)
        except Exception as error:
            # Whatever it is: the callers could not connect either.
            answered = self._driver.has_answered(error)
            return _Finding(Sign.REFUSES if answered else Sign.NONE, self._database.reason(error))
        self._close(connection)
        return _Finding(Sign.READ_ONLY, READ_ONLY) if introduction.read_only else _Finding(Sign.ALIVE)

    def _connect(self, host: Host) -> tuple[Any, Introduction]:
        connection = self._driver.connect(self._dialect, host.server)
        try:
            return connection, self._driver.introduce(connection)
        except BaseException:
            self._driver.discard(connection)
            raise

    def _close(self, connection: Any) -> None:
        try:
            self._dialect.do_close(connection)
        except self._dialect.loaded_dbapi.Error:
            pass  # It was lost just now; the next one who asks will see.

    # ---- ending statements

    def _end_statements(self) -> None:
        """End what outlives its call, server by server."""
        try:
            while self._outliving:
                host = self._outliving[0][0].host
                homes = [home for home, since_s in self._outliving if self._may_be_ended(home, host, since_s)]
                others = [entry for entry in self._outliving if entry[0].host is not host]
                self._outliving.clear()
                self._outliving.extend(others)
                if homes:
                    self._end_at(host, homes)
        finally:
            self._ending = False

    def _may_be_ended(self, home: Home, host: Host, since_s: float) -> bool:
        return home.host is host and host.circuit.usable and self._clock() - since_s < _END_WITHIN_S

    def _end_at(self, host: Host, homes: Sequence[Home]) -> None:
        errors = (self._dialect.loaded_dbapi.Error, RuntimeError)
        try:
            connection, ours = self._connect(host)
        except errors as error:
            self._log.debug("database %s: no statement ended: %s", self._database.name, error)
            return
        try:
            for home in homes:
                # A server gives its numbers in order: a larger one than ours is of an earlier run.
                instance, thread = home.introduction.instance, home.introduction.thread
                if instance == ours.instance and thread < ours.thread:
                    self._end_one(connection, thread)
        finally:
            self._close(connection)

    def _end_one(self, connection: Any, thread: int) -> None:
        try:
            self._driver.end_statement(connection, thread)
        except self._dialect.loaded_dbapi.Error as error:
            # Most of them have ended by themselves.
            self._log.debug("database %s: statement not ended: %s", self._database.name, error)
