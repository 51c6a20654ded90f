"""Databases: one pool of persistent connections for each worker process and named database.

Laws:
    * A connection whose conversation with the server is in doubt serves nobody again. Whoever is killed
      between a question and its answer takes that connection along, and nothing else.
    * A database that is away costs a caller nothing: one prober waits for it, the others are refused at
      once. A caller waits for a free connection for a bounded time, never for a server.
    * What one call holds is a :class:`Lease`. When the call ends, everything in it goes back: rolled
      back, or thrown away.
    * The handler's code is the same on every database. What differs between MariaDB and SQLite is here.
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

import select
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

import gevent
from gevent.lock import BoundedSemaphore
from gevent.monkey import get_original
from pymysql.constants import CLIENT, ER, SERVER_STATUS
from sqlalchemy import Connection, Engine, create_engine, event, exc, text
from sqlalchemy.engine import URL, Dialect, ExceptionContext, make_url
from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState, QueuePool, StaticPool

from fastagi_pool.errors import DatabaseUnavailable, OperatorError

#: How long a server that refused is left alone. Short, because a refusal is cheap for those who are
#: refused and the time counts into every outage; long enough that a flood of calls is no flood of SYNs.
RETRY_S: Final = 0.5

#: Workers of the old and the new generation hold connections at once while a reload is under way.
RELOAD_GENERATIONS: Final = 2

#: Left free for whoever looks after the server with another program.
_RESERVED_CONNECTIONS: Final = 1

#: SQLite waits this long for a lock. It waits in C, so the whole worker does: a second writer's
#: transaction must be over soon, hence the rule to do nothing but SQL in one.
_SQLITE_BUSY_S: Final = 5.0

_MYSQL_PORT: Final = 3306
_THIS_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_IDLE_SINCE: Final = "fastagi_pool.idle_since_s"
_SELECT_ONE: Final = text("SELECT 1")
_SELECT_LIMITS: Final = text("SELECT VERSION(), @@max_connections, @@max_user_connections, @@wait_timeout")

#: Packets of several statements are repeated, so one that waits for a lock is better told early.
_LOCK_WAIT_S: Final = 3
#: Source: MariaDB's error codes; PyMySQL has no name for it.
_ER_READ_ONLY_MODE: Final = 1836
#: What makes a transaction a victim of others: the same one again may well succeed. CHECKREAD is what newer
#: servers (innodb_snapshot_isolation) say where older ones would wait.
_VICTIM: Final = frozenset({ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, ER.CHECKREAD, ER.QUERY_INTERRUPTED})
#: What a server says that is going, or that may only be read since another took its place. Another of the
#: list, or the same one a little later, may do it.
_LEAVING: Final = frozenset(
    {ER.SERVER_SHUTDOWN, ER.UNKNOWN_COM_ERROR, ER.OPTION_PREVENTS_STATEMENT, _ER_READ_ONLY_MODE}
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
    """

    connected: int
    in_use: int
    waiting: int
    statements: int
    seconds: float
    failures: int
    down_reason: str
    server: str


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """What a worker has to know about one database.

    Attributes:
        name: What handlers and log lines call it.
        urls: SQLAlchemy URLs of the same driver, best first. Each new connection goes to the first that
            can be had, so the first is used again once it is back. Options in a URL win over the
            time-outs below.
        password: Put into every URL that has none.
        pool_size: Connections a worker may hold. 4 keep up with some thousand short statements a
            second; more only help handlers whose statements are slow.
        pool_timeout_s: How long a caller waits for a free one. Longer than any healthy statement, and
            shorter than a person on the phone waits.
        idle_ping_s: A connection idle for longer is asked whether it lives before it is used. What the
            server closed is noticed without that; the ping finds what a firewall forgot.
        max_age_s: A connection older than this is replaced, so that a fail-over is undone in time.
        connect_timeout_s: For each server: for the TCP connection, and for each packet of the log-in.
        read_timeout_s: For the answer to one statement.
        write_timeout_s: For sending one statement.
        required_at_boot: Whether a worker may become ready without it.
        sql_mode: What ``sql_mode`` is set to on each new MariaDB connection; empty for the server's own.
        multi_statements: Whether a packet may hold several statements (:meth:`Lease.round_trip`). Off as
            a rule: an SQL injection in a handler could then do anything.
    """

    name: str
    urls: tuple[str, ...] = field(repr=False)
    password: str = field(default="", repr=False)
    pool_size: int = 4
    pool_timeout_s: float = 5.0
    idle_ping_s: float = 30.0
    max_age_s: float = 3600.0
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    write_timeout_s: float = 30.0
    required_at_boot: bool = True
    sql_mode: str = ""
    multi_statements: bool = False


class CircuitState(Enum):
    """What we believe about a server."""

    UP = "it may be tried by anybody"
    DOWN = "it refused; leave it alone until the retry is due"
    PROBING = "it refused, and one caller is finding out whether it is back"


class Circuit:
    """Whether it makes sense to connect to a server now. It reads no clock.

    ===========  ============  =========  ============  ===========
    state        started()     failed()   succeeded()   abandoned()
    ===========  ============  =========  ============  ===========
    UP           UP            DOWN       UP            UP
    DOWN         PROBING       DOWN       UP            DOWN
    PROBING      (forbidden)   DOWN       UP            DOWN
    ===========  ============  =========  ============  ===========

    Attributes:
        state: What we believe.
        reason: Why the last attempt failed; empty while the server is up.
    """

    __slots__ = ("_retry_at_s", "_retry_s", "reason", "state")

    def __init__(self, retry_s: float) -> None:
        self.state = CircuitState.UP
        self.reason = ""
        self._retry_s = retry_s
        self._retry_at_s = 0.0

    def permits(self, now_s: float) -> bool:
        """Tell whether a caller may try now; the one who then does has to say so by :meth:`started`."""
        if self.state is CircuitState.DOWN:
            return now_s >= self._retry_at_s
        return self.state is CircuitState.UP

    def started(self) -> None:
        """Note that a caller tries; while the server is down, no other may."""
        if self.state is CircuitState.DOWN:
            self.state = CircuitState.PROBING

    def succeeded(self) -> None:
        """Note that a connection was made."""
        self.state = CircuitState.UP
        self.reason = ""

    def failed(self, reason: str, now_s: float) -> None:
        """Note that an attempt failed, and leave the server alone for the retry time."""
        self.state = CircuitState.DOWN
        self.reason = reason
        self._retry_at_s = now_s + self._retry_s

    def abandoned(self) -> None:
        """Note that an attempt was killed: nothing was learned, and the next caller may try."""
        if self.state is CircuitState.PROBING:
            self.state = CircuitState.DOWN


@dataclass(frozen=True, slots=True)
class _Server:
    """One entry of the fail-over list.

    Attributes:
        label: Where it is, fit for an operator's eyes.
        arguments: For the driver's ``connect``, by position.
        options: The same by name; the password is among them.
        circuit: What we believe about it.
    """

    label: str
    arguments: Sequence[Any] = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)
    circuit: Circuit


class _Driver:
    """What differs between drivers. This class is any driver that needs no special care.

    Attributes:
        slots: How many callers may hold a connection at once.
        pool_arguments: For SQLAlchemy's ``create_engine``.
        converses: Whether a greenlet can be killed between a question and its answer.
    """

    converses = True

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self.slots = settings.pool_size
        self.pool_arguments: dict[str, Any] = {
            "poolclass": QueuePool,
            "pool_size": settings.pool_size,
            "max_overflow": 0,
            "pool_timeout": settings.pool_timeout_s,
            "pool_recycle": settings.max_age_s,
            # The last one used is the one least likely to have been closed meanwhile.
            "pool_use_lifo": True,
            # reset() does it.
            "pool_reset_on_return": None,
        }

    def label(self, url: URL) -> str:
        """Say where a URL leads."""
        port = f":{url.port}" if url.port else ""
        return f"{url.host or 'localhost'}{port}/{url.database or ''}"

    def options(self, url: URL) -> dict[str, Any]:
        """Give the ``connect`` options that hold unless the URL says otherwise."""
        return {}

    def connect(self, dialect: Dialect, server: _Server) -> Any:
        """Make a connection."""
        return dialect.connect(*server.arguments, **server.options)

    def check(self, dialect: Dialect, connection: Any, idle_s: float) -> None:
        """Look whether a connection that lay in the pool still lives.

        Raises:
            sqlalchemy.exc.DisconnectionError: It does not.
        """
        if idle_s > self._settings.idle_ping_s:
            try:
                self.ping(dialect, connection)
            except dialect.loaded_dbapi.Error as error:
                # What one ping found, the other connections need not find out by their own.
                raise exc.InvalidatePoolError(f"no answer to a ping: {error}") from error

    def ping(self, dialect: Dialect, connection: Any) -> None:
        """Ask the server for a sign of life; what the driver raises says there is none."""
        dialect.do_ping(connection)

    def reset(self, connection: Any) -> None:
        """End the transaction that a returned connection may still be in."""
        connection.rollback()

    def discard(self, connection: Any) -> None:
        """Make sure that closing the connection sends nothing more on it."""


class _PyMySQLCursor(Protocol):
    """The part of PyMySQL's cursor that writes parameters into a statement."""

    def mogrify(self, query: str, args: tuple[object, ...]) -> str: ...


class _PyMySQLConnection(Protocol):
    """The inner parts of PyMySQL's connection that we lean on; the same in 1.1 and 1.2."""

    server_status: int
    _sock: Any
    _read_timeout: float | None
    _result: Any

    def cursor(self) -> _PyMySQLCursor: ...

    def query(self, sql: str) -> int: ...

    def next_result(self) -> int: ...

    def rollback(self) -> None: ...


class _PyMySQLDriver(_Driver):
    """MariaDB and MySQL through PyMySQL."""

    def __init__(self, settings: DatabaseSettings) -> None:
        super().__init__(settings)
        # gevent's poll would visit the hub; this one only asks the kernel.
        self._poll: Callable[[], select.poll] = get_original("select", "poll")

    def label(self, url: URL) -> str:
        where = url.query.get("unix_socket") or f"{url.host or 'localhost'}:{url.port or _MYSQL_PORT}"
        return f"{where}/{url.database or ''}"

    def options(self, url: URL) -> dict[str, Any]:
        options: dict[str, Any] = {
            "charset": "utf8mb4",
            "connect_timeout": self._settings.connect_timeout_s,
            "read_timeout": self._settings.read_timeout_s,
            "write_timeout": self._settings.write_timeout_s,
        }
        local = "unix_socket" in url.query or (url.host or "localhost") in _THIS_MACHINE
        if local and not any(option.startswith("ssl") for option in url.query):
            # PyMySQL 1.2 gets ready for TLS even if the server has none: 20 ms of computing for each
            # connection, in which the worker does nothing else, and nobody listens on the loopback.
            options["ssl_disabled"] = True
        variables = []
        if self._settings.sql_mode:
            variables.append(f"sql_mode = '{self._settings.sql_mode}'")
        if self._settings.multi_statements:
            variables.append(f"innodb_lock_wait_timeout = {_LOCK_WAIT_S}")
        if variables:
            options["init_command"] = f"SET SESSION {', '.join(variables)}"
        return options

    def connect(self, dialect: Dialect, server: _Server) -> Any:
        # PyMySQL waits for the packets of the log-in as long as for a statement's answer. A server that
        # takes the connection and then says nothing would hold the caller for that long.
        options = {**server.options, "read_timeout": server.options["connect_timeout"]}
        if self._settings.multi_statements:
            options["client_flag"] |= CLIENT.MULTI_STATEMENTS
        connection = cast(_PyMySQLConnection, dialect.connect(*server.arguments, **options))
        connection._read_timeout = server.options["read_timeout"]
        return connection

    def check(self, dialect: Dialect, connection: _PyMySQLConnection, idle_s: float) -> None:
        if self._has_hung_up(connection):
            raise exc.DisconnectionError("closed by the server while it was idle")
        super().check(dialect, connection, idle_s)

    def ping(self, dialect: Dialect, connection: _PyMySQLConnection) -> None:
        # A sign of life comes sooner than the answer to a hard question.
        patience_s = connection._read_timeout
        connection._read_timeout = self._settings.connect_timeout_s
        try:
            super().ping(dialect, connection)
        finally:
            connection._read_timeout = patience_s

    def reset(self, connection: _PyMySQLConnection) -> None:
        # Every answer says whether a transaction is open. Who met an error has rolled back already.
        if connection.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS:
            super().reset(connection)

    def discard(self, connection: _PyMySQLConnection) -> None:
        # PyMySQL's own close() writes a farewell, which could be taken for the rest of a statement that
        # was cut off in the middle; and its reader cannot be closed while a greenlet waits in it. A
        # shutdown wakes that greenlet, and without a socket close() has nothing left to do.
        sock, connection._sock = connection._sock, None
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # The server was faster.
            sock.close()
        if connection._result is not None:
            # Or its destructor would read the rows that nobody fetched.
            connection._result.unbuffered_active = False

    def _has_hung_up(self, connection: _PyMySQLConnection) -> bool:
        """Tell whether anything can be read: the end, or a farewell. An idle server says nothing."""
        if connection._sock is None:
            return True
        poll = self._poll()
        poll.register(connection._sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))


class _SQLiteFileDriver(_Driver):
    """SQLite in a file. Nothing can be killed in the middle of a statement: it never leaves C."""

    converses = False

    def label(self, url: URL) -> str:
        return f"file {url.database}"

    def connect(self, dialect: Dialect, server: _Server) -> Any:
        # A connection has one user at a time, but not always the same thread.
        connection = dialect.connect(*server.arguments, **{**server.options, "check_same_thread": False})
        try:
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout = {_SQLITE_BUSY_S * 1000:.0f}")
            _use_write_ahead_log(cursor)
            cursor.execute("PRAGMA foreign_keys = ON")
            cursor.close()
        except BaseException:
            connection.close()
            raise
        return connection

    def check(self, dialect: Dialect, connection: Any, idle_s: float) -> None:
        """Nothing to do: there is no server that could have gone."""


def _use_write_ahead_log(cursor: Any) -> None:
    """Let readers and a writer work at the same time.

    The mode lasts, so only the first of several processes that open a new file changes it; the others
    meet it half done, and SQLite does not wait for that (busy_timeout is not asked).
    """
    give_up_s = time.monotonic() + _SQLITE_BUSY_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up_s:
                raise
            time.sleep(0.01)


class _SQLiteMemoryDriver(_SQLiteFileDriver):
    """SQLite in memory: one connection is the database, so callers take turns."""

    def __init__(self, settings: DatabaseSettings) -> None:
        super().__init__(settings)
        self.slots = 1
        self.pool_arguments = {"poolclass": StaticPool, "pool_reset_on_return": None}

    def label(self, url: URL) -> str:
        return "memory"


def _driver_for(url: URL, settings: DatabaseSettings) -> _Driver:
    if url.get_backend_name() == "sqlite":
        in_memory = url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"
        return _SQLiteMemoryDriver(settings) if in_memory else _SQLiteFileDriver(settings)
    if url.get_driver_name() == "pymysql":
        return _PyMySQLDriver(settings)
    return _Driver(settings)


def _read_urls(settings: DatabaseSettings) -> list[URL]:
    """Read the URLs and put the password in.

    Raises:
        OperatorError: One cannot be read, or they do not share one driver. The message shows no URL, as
            it may hold a password.
    """
    urls = []
    for number, text_of_url in enumerate(settings.urls, start=1):
        try:
            url = make_url(text_of_url)
        except (exc.ArgumentError, ValueError):
            raise OperatorError(f"database {settings.name!r}: url {number} cannot be read") from None
        if settings.password and not url.password:
            url = url.set(password=settings.password)
        urls.append(url)
    if len({url.drivername for url in urls}) != 1:
        raise OperatorError(f"database {settings.name!r}: needs one URL or more, all with the same driver")
    return urls


class LeasedConnection(Connection):
    """A SQLAlchemy connection that a lease watches over."""

    def __init__(self, engine: Engine, lease: Lease) -> None:
        super().__init__(engine)
        self._lease = lease
        self._statement_since_s: float | None = None

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
        if self._statement_since_s is not None:
            self.invalidate()
        self.close_quietly()

    def round_trip(self, statements: Sequence[Statement]) -> list[Answer]:
        """Send statements in one packet and as one transaction; see :meth:`Lease.round_trip`."""
        driver = cast(_PyMySQLConnection, self.connection.driver_connection)
        self.statement_started(statements[0][0])
        try:
            return _converse(driver, statements)
        except BaseException as error:
            self._lease.note_failure()
            self._part_with(driver, error)
            raise
        finally:
            self.statement_ended()

    def _part_with(self, driver: _PyMySQLConnection, error: BaseException) -> None:
        """Leave a failed conversation: rolled back if it can go on, otherwise dropped.

        Raises:
            TryAgain: The error is one that passes.
        """
        if not isinstance(error, self.dialect.loaded_dbapi.Error):
            self.invalidate()
            return
        reason, code = self._lease.reason(error), next(iter(error.args), 0)
        lost = self.dialect.is_disconnect(error, self.connection, None)
        if not lost and code not in _LEAVING and self._rolls_back(driver):
            if code in _VICTIM:
                raise TryAgain(reason, in_doubt=False) from error
            return
        self.invalidate()
        raise TryAgain(reason, in_doubt=lost) from error

    def _rolls_back(self, driver: _PyMySQLConnection) -> bool:
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

    def statement_failed(self) -> None:
        """Stop the clock of a statement that failed."""
        self._lease.note_failure()
        self.statement_ended()


def _converse(driver: _PyMySQLConnection, statements: Sequence[Statement]) -> list[Answer]:
    """Have one packet answered, statement by statement."""
    mogrify = driver.cursor().mogrify
    texts = [mogrify(sql, tuple(parameters)) for sql, parameters in statements]
    driver.query(";".join((*texts, "COMMIT")))
    answers = []
    for _ in texts:
        result = driver._result
        answers.append(Answer(result.rows or (), result.affected_rows))
        driver.next_result()
    return answers


class Lease:
    """What one call holds of one database.

    Attributes:
        database_s: Seconds spent waiting for this database: for a connection, for statements, and for
            the commit at the end of :meth:`begin`. Rows that are streamed are not counted.
        statements: How many statements were sent.
        clock: What measures the seconds.
    """

    __slots__ = ("_database", "_held", "_onlooker", "_released", "clock", "database_s", "statements")

    def __init__(self, database: Database, clock: Clock, onlooker: Onlooker | None = None) -> None:
        self.database_s = 0.0
        self.statements = 0
        self._database = database
        self._onlooker = onlooker
        self.clock = clock
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

    def count_since(self, started_s: float) -> None:
        """Count what was spent waiting since a time."""
        now_s = self.clock()
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
        self._connected = 0
        self._server_in_use = ""
        self._clock = clock
        urls = _read_urls(settings)
        self._secrets = {str(url.password) for url in urls if url.password}
        self._driver = _driver_for(urls[0], settings)
        self._slots = BoundedSemaphore(self._driver.slots)
        self._waiting = 0
        with self._trying_url(urls[0]):
            self._engine = create_engine(urls[0], **self._driver.pool_arguments)
        self._servers = [self._server(url) for url in urls]
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

        False while every server is known to be away, and is left alone or is being probed. True is no
        promise: it also means that a retry is due, so that somebody finds out.
        """
        now_s = self._clock()
        return any(server.circuit.permits(now_s) for server in self._servers)

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
            connected=self._connected,
            in_use=self._driver.slots - self._slots.counter,
            waiting=self._waiting,
            statements=self.statements,
            seconds=self.seconds,
            failures=self.failures,
            down_reason=self._down_reason(),
            server=self._server_in_use,
        )

    def close(self) -> None:
        """Close the connections that lie in the pool. Leases have to be released before."""
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

    def _take_slot(self) -> None:
        if not self._waiting and self._slots.acquire(blocking=False):
            return
        if not self.available:
            # The places are with callers who wait for the server; do not queue up behind them.
            raise self._unavailable(self._why_away())
        self._waiting += 1
        try:
            # A place given back a moment ago is for the one that waited longest. The semaphore wakes it in
            # the next turn of the loop, and would let us overtake it until then.
            gevent.sleep(0)
            taken = self._slots.acquire(timeout=self.settings.pool_timeout_s)
        finally:
            self._waiting -= 1
        if not taken:
            count, waited_s = self._driver.slots, self.settings.pool_timeout_s
            raise self._unavailable(f"all {count} connections stayed in use for {waited_s:g} s")

    def _server(self, url: URL) -> _Server:
        with self._trying_url(url):
            arguments, options = self._engine.dialect.create_connect_args(url)
        all_options = {**self._driver.options(url), **options}
        return _Server(self._driver.label(url), arguments, all_options, Circuit(RETRY_S))

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
        up = any(server.circuit.state is CircuitState.UP for server in self._servers)
        return "" if up else self._why_away()

    def _why_away(self) -> str:
        return "; ".join(f"{server.label}: {server.circuit.reason}" for server in self._servers)

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

    def _on_connect(self, dialect: Dialect, *_: object) -> Any:
        """Connect to the first server that can be had."""
        for server in self._servers:
            if server.circuit.permits(self._clock()):
                connection = self._connect_to(server, dialect)
                if connection is not None:
                    return connection
        raise self._unavailable(self._why_away())

    def _connect_to(self, server: _Server, dialect: Dialect) -> Any:
        """Connect to this server; None if it cannot be had."""
        server.circuit.started()
        try:
            connection = self._driver.connect(dialect, server)
        except (dialect.loaded_dbapi.Error, RuntimeError) as error:
            # RuntimeError: a log-in method needs a package that is not installed.
            server.circuit.failed(self.reason(error), self._clock())
            self.failures += 1
            return None
        except BaseException:
            server.circuit.abandoned()
            raise
        server.circuit.succeeded()
        self._server_in_use = server.label
        return connection

    def _on_connected(self, *_: object) -> None:
        self._connected += 1

    def _on_closed(self, *_: object) -> None:
        self._connected -= 1

    def _on_checkin(self, _connection: object, record: ConnectionPoolEntry) -> None:
        record.info[_IDLE_SINCE] = self._clock()

    def _on_checkout(self, connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
        """Replace a connection that died in the pool: SQLAlchemy tries again with a new one."""
        idle_since_s = record.info.get(_IDLE_SINCE)
        if idle_since_s is not None:
            self._driver.check(self._engine.dialect, connection, self._clock() - idle_since_s)

    def _on_reset(self, connection: Any, _record: object, state: PoolResetState) -> None:
        if not (state.transaction_was_reset or state.terminate_only):
            self._driver.reset(connection)

    def _on_invalidate(self, connection: Any, _record: object, _error: object) -> None:
        self._driver.discard(connection)

    def _on_error(self, context: ExceptionContext) -> None:
        """Decide whether a failed statement leaves the connection in doubt."""
        if isinstance(context.connection, LeasedConnection):
            context.connection.statement_failed()
        error = context.original_exception
        if isinstance(error, DatabaseUnavailable):
            # A connection that was lost before is replaced within execute(), which wraps what it catches.
            raise self._unavailable(self._why_away()) from error
        if not self._driver.converses or isinstance(error, context.dialect.loaded_dbapi.Error):
            return
        # Not the driver's own error, so it came from outside, a time-out perhaps, at a moment that nobody
        # knows. SQLAlchemy itself only drops connections for what is outside Exception.
        still_preparing = context.statement is not None and context.execution_context is None
        if not still_preparing:
            context.is_disconnect = True
            context.invalidate_pool_on_disconnect = False


def _on_statement(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
    if isinstance(connection, LeasedConnection):
        connection.statement_started(statement)


def _on_answer(connection: Connection, *_: object) -> None:
    if isinstance(connection, LeasedConnection):
        connection.statement_ended()


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
