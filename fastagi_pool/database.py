"""Databases: one pool of persistent connections for each worker process and named database.

Laws:
    * A connection whose conversation with the server is in doubt serves nobody again. Whoever is killed
      between a question and its answer takes that connection along, and nothing else.
    * A database that is away costs a caller nothing. Where gevent has patched the process, a monitor finds
      out, and whoever waits for such a server is told at once; otherwise one caller finds out, and the
      others are refused. A caller waits for a free connection for a bounded time, never for a server.
    * A server that is busy is not away: a statement that waits for a lock waits as long as it may.
    * A server that may only be read takes no calls (unless the settings say that this is enough).
    * What one call holds is a :class:`Lease`. When the call ends, everything in it goes back: rolled
      back, or thrown away.
    * A statement whose call is over does not run on: the server is told to end it.
    * The handler's code is the same on every database. What differs between them is in ``drivers``.
    * No secret leaves this module: a message names host, port and database, never a password.

How it works: SQLAlchemy's pool keeps the connections, and its events are where the laws are enforced:
``do_connect`` walks the fail-over list, ``checkout`` looks whether the server hung up meanwhile,
``invalidate`` drops a connection without another byte on it, ``handle_error`` decides what is in doubt.
In front of the pool stand slots, one for each connection, because the pool's own queue loses a wake-up
if the greenlet that it wakes is killed at that moment, and never wakes a waiter after a failed connect.

Engines hold sockets: make a :class:`Database` after the fork, in the process that uses it. It works with
and without gevent's monkey-patching; patched, only the caller's greenlet waits.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

import gevent
from gevent.lock import BoundedSemaphore
from gevent.monkey import is_module_patched
from greenlet import getcurrent, greenlet
from pymysql.constants import ER
from sqlalchemy import Connection, Engine, create_engine, event, exc, text
from sqlalchemy.engine import URL, Dialect, ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, PoolResetState

from fastagi_pool.drivers import (
    ER_READ_ONLY_MODE,
    PyMySQLConnection,
    Server,
    driver_for,
    read_urls,
)
from fastagi_pool.drivers import DatabaseSettings as DatabaseSettings
from fastagi_pool.errors import DatabaseUnavailable, OperatorError
from fastagi_pool.health import Circuit, Vigil
from fastagi_pool.logs import LOGGER_NAME
from fastagi_pool.monitor import READ_ONLY, Home, Host, Monitor

#: How long a server that refused is left alone. Short, because a refusal is cheap for those who are
#: refused and the time counts into every outage; long enough that a flood of calls is no flood of SYNs.
RETRY_S: Final = 0.5

#: Workers of the old and the new generation hold connections at once while a reload is under way.
RELOAD_GENERATIONS: Final = 2

#: Left free for whoever looks after the server with another program.
_RESERVED_CONNECTIONS: Final = 1

_IDLE_SINCE: Final = "fastagi_pool.idle_since_s"
_HOME: Final = "fastagi_pool.home"
_SELECT_ONE: Final = text("SELECT 1")
_SELECT_LIMITS: Final = text("SELECT VERSION(), @@max_connections, @@max_user_connections, @@wait_timeout")

#: What makes a transaction a victim of others: the same one again may well succeed. CHECKREAD is what newer
#: servers (innodb_snapshot_isolation) say where older ones would wait.
_VICTIM: Final = frozenset({ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, ER.CHECKREAD, ER.QUERY_INTERRUPTED})
#: What a server says that is going, or that may only be read since another took its place. Another of the
#: list, or the same one a little later, may do it.
_LEAVING: Final = frozenset(
    {ER.SERVER_SHUTDOWN, ER.UNKNOWN_COM_ERROR, ER.OPTION_PREVENTS_STATEMENT, ER_READ_ONLY_MODE}
)

#: What a server says that has no memory, disk or lock left: whoever asks is not to blame.
_STARVED: Final = frozenset(
    {ER.DISK_FULL, ER.OUTOFMEMORY, ER.OUT_OF_RESOURCES, ER.RECORD_FILE_FULL, ER.LOCK_TABLE_FULL}
)

#: What a lease waits for besides statements, in the words of an onlooker.
_COMMIT: Final = "COMMIT"

Clock = Callable[[], float]

#: SQL with ``%s`` for each parameter (a list or tuple becomes ``(..., ...)``), and the parameters.
Statement: TypeAlias = tuple[str, Sequence[object]]


class Answer(NamedTuple):
    """What a server said to one statement.

    Attributes:
        rows: What it found; none if it was no question.
        matched: How many rows it found, or how many its condition met, changed or not.
    """

    rows: Sequence[tuple[Any, ...]]
    matched: int


class TryAgain(Exception):
    """Statements failed for a reason that passes; nothing of them holds in a transactional table.

    Attributes:
        in_doubt: Whether the connection was lost, so that nobody knows how far the server came.
    """

    def __init__(self, reason: str, in_doubt: bool) -> None:
        self.in_doubt = in_doubt
        super().__init__(reason)


def passes(error: BaseException) -> bool:
    """Tell whether a statement failed for what has nothing to do with it, so that it may succeed later.

    Args:
        error: The driver's.
    """
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    return next(iter(error.args), 0) in _VICTIM | _LEAVING | _STARVED


class Onlooker(Protocol):
    """Whoever wants to know when a call waits for a database. It must neither wait nor raise."""

    def queries(self, statement: str, now_s: float) -> None:
        """Hear that a statement was sent, with placeholders in the place of its parameters."""

    def waits(self, what: str, now_s: float) -> None:
        """Hear that the call waits for something else: a connection, a commit."""

    def answered(self, took_s: float, now_s: float) -> None:
        """Hear that it waits no longer, and how long it did."""


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """How a database fares in this process.

    Attributes:
        connected: Connections that are open.
        in_use: Of these, and of those that are being made, how many a call holds.
        waiting: Calls that wait for one.
        statements: Statements that were sent so far; those of one packet count as one.
        seconds: Seconds that were spent waiting for answers so far; rows that are streamed are not counted.
        failures: Statements that failed and attempts to connect that did, so far.
        down_reason: Why no server can be reached; empty as long as one can.
        server: Which server was connected to last; empty if none was.
        down_s: For how many seconds no server can be reached; 0 as long as one can.
    """

    connected: int
    in_use: int
    waiting: int
    statements: int
    seconds: float
    failures: int
    down_reason: str
    server: str
    down_s: float = 0.0


class _ServerLost(Exception):
    """The server that a caller is just talking to is away: thrown into the caller by the monitor."""


class LeasedConnection(Connection):
    """A SQLAlchemy connection that a lease watches over.

    Attributes:
        vigil: Of the server; it hears when an answer came.
        lost: Why the monitor took the connection away; empty as long as it did not.
    """

    def __init__(self, engine: Engine, lease: Lease, shared: PoolProxiedConnection | None = None) -> None:
        super().__init__(engine, shared)
        self._lease = lease
        self._statement_since_s: float | None = None
        self._end_since_s: float | None = None
        self.lost = ""
        self.vigil = self.home.host.vigil

    @property
    def home(self) -> Home:
        """Where the connection leads."""
        return cast(Home, self.connection.info[_HOME])

    @property
    def waits_since_s(self) -> float | None:
        """When what its user waits for was sent: a statement, a commit, a rollback; None for nothing."""
        return self._end_since_s if self._statement_since_s is None else self._statement_since_s

    def __exit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close_quietly()

    def close(self) -> None:
        """Roll back what was not committed, and give the connection back."""
        try:
            super().close()
        finally:
            self._lease.forget(self)

    def close_quietly(self) -> None:
        """Close, and do not tell if the rollback failed, as it does on a lost connection.

        Nothing is lost with that error: SQLAlchemy has dropped the connection, and the server rolls back
        by itself. But if it replaced a ``CallEnded`` on its way up, the handler's ``except Exception``
        would catch it and go on with a call that is over.
        """
        try:
            self.close()
        except Exception:
            pass

    def abandon(self) -> None:
        """Close from outside, whatever its user is doing with it."""
        if self.waits_since_s is not None:
            self.invalidate()
        self.close_quietly()

    def _commit_impl(self) -> None:
        with self._ending():
            super()._commit_impl()

    def _rollback_impl(self) -> None:
        with self._ending():
            super()._rollback_impl()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Note that the end of a transaction is waited for. It is no statement, and not charged as one."""
        self._end_since_s = self._lease.clock()
        try:
            yield
            self.vigil.answered_s = self._lease.clock()
        finally:
            self._end_since_s = None

    def round_trip(self, statements: Sequence[Statement]) -> list[Answer]:
        """Send statements in one packet and as one transaction; see :meth:`Lease.round_trip`."""
        driver = cast(PyMySQLConnection, self.connection.driver_connection)
        self.statement_started(statements[0][0])
        try:
            answers = self.converse(driver, statements)
            self.statement_answered()
        except BaseException as error:
            self._lease.note_failure()
            self._part_with(driver, error)
            raise
        finally:
            self.statement_ended()
        return answers

    def converse(self, driver: PyMySQLConnection, statements: Sequence[Statement]) -> list[Answer]:
        """Have one packet answered, statement by statement, and all of it committed."""
        return answers_of(driver, statements, end=("COMMIT",))

    def _part_with(self, driver: PyMySQLConnection, error: BaseException) -> None:
        """Leave a failed conversation: rolled back if it can go on, otherwise dropped.

        Raises:
            TryAgain: The error is one that passes.
        """
        if self.lost and isinstance(error, Exception):
            self.invalidate(error)
            raise TryAgain(self.lost, in_doubt=True) from error
        if not isinstance(error, self.dialect.loaded_dbapi.Error):
            self.invalidate(error)
            return
        reason, code = self._lease.reason(error), next(iter(error.args), 0)
        lost = self.dialect.is_disconnect(error, self.connection, None)
        if not lost and code not in _LEAVING and self._rolls_back(driver):
            if code in _VICTIM:
                raise TryAgain(reason, in_doubt=False) from error
            return
        self._lease.note_demotion(self, error)
        self.invalidate(error)
        raise TryAgain(reason, in_doubt=lost) from error

    def _rolls_back(self, driver: PyMySQLConnection) -> bool:
        try:
            driver.rollback()
        except self.dialect.loaded_dbapi.Error:
            return False
        return True

    def statement_started(self, statement: str) -> None:
        """Start the clock of a statement."""
        self._statement_since_s = self._lease.begin_statement(statement)

    def statement_ended(self) -> None:
        """Stop the clock of a statement; nothing if none is running."""
        if self._statement_since_s is not None:
            self._lease.count_since(self._statement_since_s)
            self._statement_since_s = None

    def statement_answered(self) -> None:
        """Stop the clock of a statement that was answered, so that its server is known to live."""
        self.statement_ended()
        self.vigil.answered_s = self._lease.counted_s

    def statement_failed(self) -> None:
        """Stop the clock of a statement that failed."""
        self._lease.note_failure()
        self.statement_ended()


def answers_of(
    driver: PyMySQLConnection,
    statements: Sequence[Statement],
    start: Sequence[str] = (),
    end: Sequence[str] = (),
) -> list[Answer]:
    """Send one packet and take its answers.

    Args:
        driver: Over which.
        statements: Those whose answers are wanted.
        start: Complete statements that come before, of which nothing is wanted.
        end: The same, after.
    """
    mogrify = driver.cursor().mogrify
    texts = [mogrify(sql, tuple(parameters)) for sql, parameters in statements]
    driver.query(";".join((*start, *texts, *end)))
    for _ in start:
        driver.next_result()
    answers = [_answer(driver)]
    for _ in texts[1:]:
        driver.next_result()
        answers.append(_answer(driver))
    for _ in end:
        driver.next_result()
    return answers


def _answer(driver: PyMySQLConnection) -> Answer:
    return Answer(driver._result.rows or (), driver._result.affected_rows)


class Lease:
    """What one call holds of one database.

    Attributes:
        database_s: Seconds spent waiting for this database: for a connection, for statements, and for
            the commit at the end of :meth:`begin`. Rows that are streamed are not counted.
        statements: How many statements were sent.
        clock: What measures the seconds.
        counted_s: What it said when a wait was over last.
    """

    __slots__ = (
        "_database",
        "_held",
        "_onlooker",
        "_released",
        "clock",
        "counted_s",
        "database_s",
        "statements",
    )

    def __init__(self, database: Database, clock: Clock, onlooker: Onlooker | None = None) -> None:
        self.database_s = 0.0
        self.statements = 0
        self._database = database
        self._onlooker = onlooker
        self.clock = clock
        self.counted_s = 0.0
        self._held: set[LeasedConnection] = set()
        self._released = False

    def connect(self) -> Connection:
        """Take a connection; use it with ``with``. What is not committed is rolled back at the end.

        Raises:
            DatabaseUnavailable: It cannot be reached, or all its connections stayed in use.
            sqlalchemy.exc.ResourceClosedError: The lease was released; the call is over.
        """
        with self._timed(self._database.connecting):
            connection = self._database.take(self)
        self._held.add(connection)
        self._database.watch(connection)
        if self._released:
            # Only a greenlet that outlives its call comes here, and nobody would clean up behind it.
            connection.close_quietly()
            raise exc.ResourceClosedError(f"the lease on database {self._database.name!r} was released")
        return connection

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Take a connection for one transaction: committed at the end, rolled back by an exception.

        Raises:
            DatabaseUnavailable: It cannot be reached, or all its connections stayed in use.
            sqlalchemy.exc.ResourceClosedError: The lease was released; the call is over.
            sqlalchemy.exc.DBAPIError: The commit failed.
        """
        with self.connect() as connection, connection.begin() as transaction:
            try:
                yield connection
            except BaseException:
                # Left to the transaction, a failing rollback would hide the exception: close_quietly().
                try:
                    connection.rollback()
                except Exception:
                    pass
                raise
            if transaction.is_active:
                with self._timed(_COMMIT):
                    transaction.commit()

    def round_trip(self, statements: Sequence[Statement]) -> list[Answer]:
        """Send statements in one packet: one transaction, carried out in order, committed at its end.

        For MariaDB and MySQL through PyMySQL, with ``multi_statements``. What tables without transactions
        took before a failure stays there.

        Raises:
            TryAgain: A deadlock, or the connection was lost.
            DatabaseUnavailable: It cannot be reached, or all its connections stayed in use.
            pymysql.Error: A statement failed; nothing of the packet holds.
        """
        connection = cast(LeasedConnection, self.connect())
        try:
            return connection.round_trip(statements)
        finally:
            connection.close_quietly()

    def reason(self, error: Exception) -> str:
        """Put in one line what a driver said, without secrets."""
        return self._database.reason(error)

    def release(self) -> int:
        """Take back everything, at the end of the call.

        Open transactions are rolled back. A connection on which a statement is running (in a greenlet
        that outlives the call) is dropped, and that statement fails.

        Returns:
            How many connections the call had left open.
        """
        self._released = True
        held = tuple(self._held)
        with ExitStack() as all_of_them:
            for connection in held:
                all_of_them.callback(connection.abandon)
        return len(held)

    def forget(self, connection: LeasedConnection) -> None:
        """Note that a connection was closed; nothing if that is known."""
        if connection in self._held:
            self._held.remove(connection)
            self._database.unwatch(connection)
            self._database.give_back()

    def begin_statement(self, statement: str) -> float:
        """Count a statement in, and return the time."""
        now_s = self.clock()
        self.statements += 1
        self._database.statements += 1
        if self._onlooker is not None:
            self._onlooker.queries(statement, now_s)
        return now_s

    def note_failure(self) -> None:
        """Count a statement that failed."""
        self._database.failures += 1

    def note_demotion(self, connection: LeasedConnection, error: BaseException) -> None:
        """Note it if an error says that the connection's server may only be read."""
        self._database.note_demotion(connection, error)

    def count_since(self, started_s: float) -> None:
        """Count what was spent waiting since a time."""
        now_s = self.counted_s = self.clock()
        took_s = now_s - started_s
        self.database_s += took_s
        self._database.seconds += took_s
        if self._onlooker is not None:
            self._onlooker.answered(took_s, now_s)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started_s = self.clock()
        if self._onlooker is not None:
            self._onlooker.waits(what, started_s)
        try:
            yield
        finally:
            self.count_since(started_s)


class Database:
    """The connections of this process to one database.

    Nothing is connected until :meth:`open` or the first lease.

    Args:
        settings: What to connect to, and how patiently.
        clock: Seconds that only grow; for tests.

    Attributes:
        settings: As given.
        connecting: What calls wait for that wait for a connection, in words.
        statements: As in :class:`DatabaseFacts`; so are the next two.
        seconds: The same.
        failures: The same.

    Raises:
        OperatorError: A URL cannot be read, its driver is not installed, or the drivers differ.
    """

    def __init__(self, settings: DatabaseSettings, clock: Clock = time.monotonic) -> None:
        self.settings = settings
        self.connecting = f"a connection to database {settings.name}"
        self.statements = self.failures = 0
        self.seconds = 0.0
        self._server_in_use = ""
        self._clock = clock
        urls = read_urls(settings)
        self._secrets = {str(url.password) for url in urls if url.password}
        self._driver = driver_for(urls[0], settings)
        self._slots = BoundedSemaphore(self._driver.slots)
        self._waiters: set[greenlet] = set()
        self._leased: set[LeasedConnection] = set()
        self._records: set[ConnectionPoolEntry] = set()
        self._visitors: dict[greenlet, tuple[Host, float]] = {}
        self._away_since_s: float | None = None
        self._log = logging.getLogger(LOGGER_NAME)
        with self._trying_url(urls[0]):
            self._engine = create_engine(urls[0], **self._driver.pool_arguments)
        patience_s = settings.probe_timeout_s
        self._hosts = [Host(self._server(url), Circuit(RETRY_S), Vigil(patience_s)) for url in urls]
        self._is_watched = self._driver.watched and is_module_patched("socket")
        self._monitor = Monitor(
            self, self._hosts, self._driver, self._engine.dialect, patience_s, clock, self._log
        )
        self._listen_to_events()

    @property
    def name(self) -> str:
        """What handlers and log lines call the database."""
        return self.settings.name

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine, for work that is no call's. It shares its connections with the calls."""
        return self._engine

    @property
    def available(self) -> bool:
        """Whether asking for a connection makes sense now.

        False while every server is known to be away. True is no promise: where no monitor watches, it also
        means that a retry is due, so that somebody finds out.
        """
        if self._is_watched:
            return any(host.circuit.usable for host in self._hosts)
        now_s = self._clock()
        return any(host.circuit.permits(now_s) for host in self._hosts)

    def open(self, warm: int | None = None) -> None:
        """Open connections before the first call needs them, and see that each one answers.

        Args:
            warm: How many; None for the whole pool, so that no call pays for a log-in.

        Raises:
            DatabaseUnavailable: It does not answer; the reason is fit for an operator.
        """
        wanted = self._driver.slots if warm is None else min(warm, self._driver.slots)
        lease = self.lease()
        try:
            for _ in range(wanted):
                lease.connect().execute(_SELECT_ONE)
        except exc.SQLAlchemyError as error:
            raise self._unavailable(self.reason(error)) from error
        finally:
            lease.release()

    def lease(self, onlooker: Onlooker | None = None) -> Lease:
        """Begin what one call holds. It takes nothing until it is used.

        Args:
            onlooker: Told when the call waits; None for nobody.
        """
        return Lease(self, self._clock, onlooker)

    def facts(self) -> DatabaseFacts:
        """Say how it fares. Asks nobody and costs next to nothing."""
        return DatabaseFacts(
            connected=len(self._records),
            in_use=self._driver.slots - self._slots.counter,
            waiting=len(self._waiters),
            statements=self.statements,
            seconds=self.seconds,
            failures=self.failures,
            down_reason=self._down_reason(),
            server=self._server_in_use,
            down_s=0.0 if self._away_since_s is None else self._clock() - self._away_since_s,
        )

    def close(self) -> None:
        """Close the connections that lie in the pool. Leases have to be released before."""
        self._monitor.stop()
        self._engine.dispose()

    def take(self, lease: Lease) -> LeasedConnection:
        """Take a connection for a lease; :meth:`give_back` must follow once it is closed.

        Raises:
            DatabaseUnavailable: It cannot be reached, or all its connections stayed in use.
        """
        self._take_slot()
        try:
            return LeasedConnection(self._engine, lease)
        except exc.SQLAlchemyError as error:
            self._slots.release()
            raise self._unavailable(self.reason(error)) from error
        except BaseException:
            self._slots.release()
            raise

    def give_back(self) -> None:
        """Let the next caller have the place of a connection that is closed by now."""
        self._slots.release()

    def watch(self, connection: LeasedConnection) -> None:
        """Have the monitor know of a connection that a lease holds from now on."""
        self._leased.add(connection)

    def unwatch(self, connection: LeasedConnection) -> None:
        """Have it know that it is held no longer."""
        self._leased.discard(connection)

    def _take_slot(self) -> None:
        if not self._waiters and self._slots.acquire(blocking=False):
            return
        if not self.available:
            # The places are with callers who wait for the server; do not queue up behind them.
            raise self._unavailable(self._why_away())
        caller = getcurrent()
        self._waiters.add(caller)
        try:
            # A place given back a moment ago is for the one that waited longest. The semaphore wakes it in
            # the next turn of the loop, and would let us overtake it until then.
            gevent.sleep(0)
            taken = self._slots.acquire(timeout=self.settings.pool_timeout_s)
        finally:
            self._waiters.discard(caller)
        if not taken:
            count, waited_s = self._driver.slots, self.settings.pool_timeout_s
            raise self._unavailable(f"all {count} connections stayed in use for {waited_s:g} s")

    # ---- what the monitor looks after

    def waits_at(self, host: Host) -> Iterator[float]:
        """Tell since when each caller waits who waits for this server."""
        for visited, since_s in self._visitors.values():
            if visited is host:
                yield since_s
        for connection in self._leased:
            since_s_or_none = connection.waits_since_s
            if since_s_or_none is not None and connection.vigil is host.vigil:
                yield since_s_or_none

    def note_health(self) -> None:
        """Tell the log when the last server goes away and when one is back, and refuse those who queue."""
        usable = any(host.circuit.usable for host in self._hosts)
        if usable and self._away_since_s is not None:
            self._log.warning("database %s: back after %.1f s", self.name, self._clock() - self._away_since_s)
            self._away_since_s = None
        elif not usable and self._away_since_s is None:
            self._away_since_s = self._clock()
            self._log.error("database %s: away: %s", self.name, self._why_away())
        if not usable and self._is_watched:
            for caller in self._waiters:
                self._throw(caller, self._waiters, self._unavailable(self._why_away()))

    def give_up(self, host: Host) -> None:
        """Give up every connection to a server that is away: whoever waits for an answer is told."""
        reason = f"{host.server.label}: {host.circuit.reason}"
        for connection in tuple(self._leased):
            if not connection.closed and not connection.invalidated and connection.home.host is host:
                connection.lost = reason
        self._drop_idle(host)
        for record in tuple(self._records):
            if record.in_use and _leads_to(record, host):
                self._driver.discard(record.driver_connection)
        for caller, (visited, _) in self._visitors.items():
            if visited is host:
                self._throw(caller, self._visitors, _ServerLost(reason))

    def note_demotion(self, connection: LeasedConnection, error: BaseException) -> bool:
        """Note it if an error says that a server may only be read, and tell whether it does."""
        if not self._driver.is_demoted(error):
            return False
        host = connection.home.host
        host.circuit.failed(READ_ONLY, self._clock())
        self._drop_idle(host)
        self.note_health()
        self._monitor.wake()
        return True

    def _drop_idle(self, host: Host) -> None:
        """Drop the connections to a server that lie in the pool; those in use will not lie there again."""
        host.epoch += 1
        for record in tuple(self._records):
            if not record.in_use and _leads_to(record, host):
                record.invalidate(exc.DisconnectionError("its server is away"))

    def _throw(self, caller: greenlet, among: Container[greenlet], error: Exception) -> None:
        """Raise an error in a greenlet in the next turn of the loop, if it is still among those who wait."""

        def throw() -> None:
            if caller in among:
                caller.throw(error)

        gevent.get_hub().loop.run_callback(throw)

    @contextmanager
    def _visiting(self, host: Host) -> Iterator[None]:
        """Have the monitor know that a caller waits for a server without a statement of its own."""
        caller = getcurrent()
        self._visitors[caller] = (host, self._clock())
        try:
            yield
        finally:
            del self._visitors[caller]

    def _server(self, url: URL) -> Server:
        with self._trying_url(url):
            arguments, options = self._engine.dialect.create_connect_args(url)
        all_options = {**self._driver.options(url), **options}
        return Server(self._driver.label(url), arguments, all_options)

    @contextmanager
    def _trying_url(self, url: URL) -> Iterator[None]:
        """Turn what SQLAlchemy says about a URL into what may be shown: not the URL."""
        try:
            yield
        except (ImportError, exc.NoSuchModuleError) as error:
            raise OperatorError(f"database {self.name!r}: the driver is not installed: {error}") from error
        except (exc.ArgumentError, ValueError):
            label = self._driver.label(url)
            raise OperatorError(f"database {self.name!r}: the driver cannot use the URL of {label}") from None

    # ---- words

    def _unavailable(self, reason: str) -> DatabaseUnavailable:
        return DatabaseUnavailable(self.name, reason)

    def _down_reason(self) -> str:
        return "" if any(host.circuit.usable for host in self._hosts) else self._why_away()

    def _why_away(self) -> str:
        return "; ".join(f"{host.server.label}: {host.circuit.reason}" for host in self._hosts)

    def reason(self, error: Exception) -> str:
        """Put in one line what a driver said, without secrets."""
        cause = getattr(error, "orig", None) or error
        match cause.args:
            case (int(code), str(message)):
                reason = f"{message} ({code})"
            case (str(message),):
                reason = message
            case _:
                reason = repr(cause)
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        return " ".join(reason.split())

    # ---- events of SQLAlchemy

    def _listen_to_events(self) -> None:
        event.listen(self._engine, "do_connect", self._on_connect)
        event.listen(self._engine, "connect", self._on_connected)
        event.listen(self._engine, "close", self._on_closed)
        event.listen(self._engine, "checkin", self._on_checkin)
        event.listen(self._engine, "checkout", self._on_checkout)
        event.listen(self._engine, "reset", self._on_reset)
        event.listen(self._engine, "before_cursor_execute", _on_statement)
        event.listen(self._engine, "after_cursor_execute", _on_answer)
        event.listen(self._engine, "handle_error", self._on_error)
        event.listen(self._engine, "invalidate", self._on_invalidate)

    def _on_connect(self, dialect: Dialect, record: ConnectionPoolEntry, *_: object) -> Any:
        """Connect to the first server that can be had."""
        if self._is_watched:
            self._monitor.start()
        for host in self._hosts:
            if self._may_try(host):
                connection = self._connect_to(host, dialect, record)
                if connection is not None:
                    return connection
        raise self._unavailable(self._why_away())

    def _may_try(self, host: Host) -> bool:
        return host.circuit.usable if self._is_watched else host.circuit.permits(self._clock())

    def _connect_to(self, host: Host, dialect: Dialect, record: ConnectionPoolEntry) -> Any:
        """Connect to this server; None if it cannot be had."""
        host.circuit.started()
        reason, connection, epoch = "", None, host.epoch
        try:
            with self._visiting(host):
                connection = self._driver.connect(dialect, host.server)
                introduction = self._driver.introduce(connection)
            reason = READ_ONLY if introduction.read_only else ""
        except (dialect.loaded_dbapi.Error, RuntimeError) as error:
            # RuntimeError: a log-in method needs a package that is not installed.
            reason = self.reason(error)
        except _ServerLost:
            self._drop(connection)
            self.failures += 1
            return None
        except BaseException:
            self._drop(connection)
            host.circuit.abandoned()
            raise
        if reason:
            self._drop(connection)
            host.circuit.failed(reason, self._clock())
            self.failures += 1
            self._monitor.wake()
        else:
            host.circuit.succeeded()
            self._server_in_use = host.server.label
            record.info[_HOME] = Home(host, epoch, introduction)
        self.note_health()
        return None if reason else connection

    def _drop(self, connection: Any) -> None:
        """Close a connection that the pool never saw; nothing if there is none."""
        if connection is not None:
            self._driver.discard(connection)

    def _on_connected(self, _connection: object, record: ConnectionPoolEntry) -> None:
        self._records.add(record)

    def _on_closed(self, _connection: object, record: ConnectionPoolEntry) -> None:
        self._records.discard(record)

    def _on_checkin(self, _connection: object, record: ConnectionPoolEntry) -> None:
        record.info[_IDLE_SINCE] = self._clock()

    def _on_checkout(self, connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
        """Replace a connection that died in the pool: SQLAlchemy tries again with a new one."""
        home: Home = record.info[_HOME]
        if home.epoch != home.host.epoch:
            raise exc.DisconnectionError("its server was away meanwhile")
        idle_since_s = record.info.get(_IDLE_SINCE)
        if idle_since_s is None:
            return
        try:
            with self._visiting(home.host):
                self._driver.check(self._engine.dialect, connection, self._clock() - idle_since_s)
        except _ServerLost as lost:
            raise exc.DisconnectionError(str(lost)) from lost

    def _on_reset(self, connection: Any, _record: object, state: PoolResetState) -> None:
        if not (state.transaction_was_reset or state.terminate_only):
            self._driver.reset(connection)

    def _on_invalidate(
        self, connection: Any, record: ConnectionPoolEntry, error: BaseException | None
    ) -> None:
        self._driver.discard(connection)
        home = record.info.get(_HOME)
        if home is not None and self._was_cut_off(error):
            self._monitor.end_statement(home)

    def _was_cut_off(self, error: BaseException | None) -> bool:
        """Tell whether it was us who gave a connection up, so that its server may still be at work for it."""
        if isinstance(error, self._engine.dialect.loaded_dbapi.Error):
            return "timed out" in str(error)
        return not isinstance(error, exc.DisconnectionError)

    def _on_error(self, context: ExceptionContext) -> None:
        """Decide whether a failed statement leaves the connection in doubt."""
        if isinstance(context.connection, LeasedConnection):
            context.connection.statement_failed()
        error = context.original_exception
        if isinstance(error, DatabaseUnavailable):
            # A connection that was lost before is replaced within execute(), which wraps what it catches.
            raise self._unavailable(self._why_away()) from error
        if isinstance(context.connection, LeasedConnection):
            self._blame_server(context, context.connection, error)
        if not self._driver.converses or isinstance(error, context.dialect.loaded_dbapi.Error):
            return
        # Not the driver's own error, so it came from outside, a time-out perhaps, at a moment that nobody
        # knows. SQLAlchemy itself only drops connections for what is outside Exception.
        still_preparing = context.statement is not None and context.execution_context is None
        if not still_preparing:
            context.is_disconnect = True
            context.invalidate_pool_on_disconnect = False

    def _blame_server(
        self, context: ExceptionContext, connection: LeasedConnection, error: BaseException
    ) -> None:
        """Raise DatabaseUnavailable if a statement failed because its server is away or was demoted."""
        if not isinstance(error, Exception) or not (connection.lost or self.note_demotion(connection, error)):
            return
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
        raise self._unavailable(connection.lost or self._why_away()) from error


def _leads_to(record: ConnectionPoolEntry, host: Host) -> bool:
    home: Home | None = record.info.get(_HOME)
    return home is not None and home.host is host


def _on_statement(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
    if isinstance(connection, LeasedConnection):
        connection.statement_started(statement)


def _on_answer(connection: Connection, *_: object) -> None:
    if isinstance(connection, LeasedConnection):
        connection.statement_answered()


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a MariaDB or MySQL server grants.

    Attributes:
        version: As the server says it, for example ``10.11.6-MariaDB-log``.
        max_connections: For all users together.
        max_user_connections: For our user; 0 if there is no such limit.
        wait_timeout_s: The server closes a connection that was idle for so long.
    """

    version: str
    max_connections: int
    max_user_connections: int
    wait_timeout_s: int


def server_limits(engine: Engine) -> ServerLimits | None:
    """Ask the server for its limits.

    Args:
        engine: Of a :class:`Database`.

    Returns:
        The limits; None if the database is neither MariaDB nor MySQL.

    Raises:
        DatabaseUnavailable: It cannot be reached.
        sqlalchemy.exc.DBAPIError: The statement failed.
    """
    if engine.dialect.name not in ("mysql", "mariadb"):
        return None
    with engine.connect() as connection:
        row = connection.execute(_SELECT_LIMITS).one()
    return ServerLimits(str(row[0]), int(row[1]), int(row[2]), int(row[3]))


@dataclass(frozen=True, slots=True)
class Remark:
    """What an operator should know about a database and our use of it.

    Attributes:
        text: One sentence: what, and what to do.
        fatal: Whether calls would fail if nothing changed.
    """

    text: str
    fatal: bool


def connection_report(
    settings: DatabaseSettings,
    limits: ServerLimits | None,
    workers: int,
    generations: int = RELOAD_GENERATIONS,
) -> list[Remark]:
    """Hold what we may ask of a server against what it grants.

    Args:
        settings: Of the database.
        limits: Of its server; None if it has none.
        workers: How many processes hold a pool, 1 or more.
        generations: How many generations of workers may live at once, 1 or more.

    Returns:
        One remark for each thing to mend; empty if all is well.
    """
    if limits is None:
        return []
    needed = workers * settings.pool_size * generations
    sum_up = f"{workers} workers x pool_size {settings.pool_size} x {generations} generations"
    report = []
    for limit, granted in (
        ("max_connections", limits.max_connections - _RESERVED_CONNECTIONS),
        ("max_user_connections", limits.max_user_connections or needed),
    ):
        if needed > granted:
            text = (
                f"{needed} connections may be needed ({sum_up}), but the server's {limit} leaves {granted}:"
                " lower pool_size or workers, or raise the server's limit"
            )
            report.append(Remark(text, fatal=True))
    if limits.wait_timeout_s < max(settings.max_age_s, settings.idle_ping_s):
        text = (
            f"the server closes connections that were idle for {limits.wait_timeout_s} s (wait_timeout),"
            f" before we ping ({settings.idle_ping_s:g} s) or replace ({settings.max_age_s:g} s) them:"
            " a call then waits for a new one; raise wait_timeout, or lower idle_ping and max_age"
        )
        report.append(Remark(text, fatal=False))
    return report
