"""Drivers: what differs between MariaDB and SQLite, from the reading of a URL to the last byte.

Laws:
    * Above this module all databases are alike.
    * A connection whose conversation with the server is in doubt is closed without another byte on it.
    * No secret leaves this module but in what is handed to a driver's ``connect``.

How it works: a :class:`Driver` is chosen by the URL. It makes connections, and knows what their servers can
be asked. For MariaDB and MySQL it leans on inner parts of PyMySQL, which are named in one place.
"""

from __future__ import annotations

import select
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, cast

from gevent.monkey import get_original
from pymysql.constants import CLIENT, ER, SERVER_STATUS
from sqlalchemy import exc
from sqlalchemy.engine import URL, Dialect, make_url
from sqlalchemy.pool import QueuePool, StaticPool

from fastagi_pool.errors import OperatorError

#: SQLite waits this long for a lock. It waits in C, so the whole worker does: a second writer's
#: transaction must be over soon, hence the rule to do nothing but SQL in one.
_SQLITE_BUSY_S: Final = 5.0

_MYSQL_PORT: Final = 3306
_THIS_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1"})

#: Packets of several statements are repeated, so one that waits for a lock is better told early.
_LOCK_WAIT_S: Final = 3

#: Source: MariaDB's error codes; PyMySQL has no name for it.
ER_READ_ONLY_MODE: Final = 1836
#: What PyMySQL says by itself, because no server said anything. Source: the client's error codes.
_CLIENT_ERRORS: Final = range(2000, 3000)
#: From 12.0 on MariaDB tells ``read_only`` by name.
_WRITABLE: Final = frozenset({0, "0", "OFF"})
_INTRODUCE: Final = "SELECT @@global.read_only, @@hostname, @@global.server_id"


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
        probe_timeout_s: How long statements wait without an answer to any before the server is asked for a
            sign of life, and how long it has for that; more than 0. After both it is taken to be away.
        writable: Whether a server that may only be read counts as one that is away.
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
    probe_timeout_s: float = 0.5
    writable: bool = True


@dataclass(frozen=True, slots=True)
class Server:
    """One entry of the fail-over list.

    Attributes:
        label: Where it is, fit for an operator's eyes.
        arguments: For the driver's ``connect``, by position.
        options: The same by name; the password is among them.
    """

    label: str
    arguments: Sequence[Any] = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)


class Introduction(NamedTuple):
    """What a server says of itself on a new connection.

    Attributes:
        read_only: Whether nothing may be written there.
        instance: Tells it from others that may answer at the same address; empty if unknown.
        thread: The number by which a statement on this connection can be ended; 0 if it cannot.
    """

    read_only: bool = False
    instance: str = ""
    thread: int = 0


class Driver:
    """What differs between drivers. This class is any driver that needs no special care.

    Attributes:
        slots: How many callers may hold a connection at once.
        pool_arguments: For SQLAlchemy's ``create_engine``.
        converses: Whether a greenlet can be killed between a question and its answer.
        watched: Whether its servers can be asked for a sign of life while others wait for them.
    """

    converses = True
    watched = False

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

    def connect(self, dialect: Dialect, server: Server) -> Any:
        """Make a connection."""
        return dialect.connect(*server.arguments, **server.options)

    def introduce(self, connection: Any) -> Introduction:
        """Ask a new connection's server what it says of itself."""
        return Introduction()

    def end_statement(self, connection: Any, thread: int) -> None:
        """End what the server does for another connection, and that connection."""

    def has_answered(self, error: Exception) -> bool:
        """Tell whether an error is a server's word, so that there is a server."""
        return False

    def is_demoted(self, error: BaseException | None) -> bool:
        """Tell whether an error says that nothing may be written to the server."""
        return False

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


class PyMySQLConnection(Protocol):
    """The inner parts of PyMySQL's connection that we lean on; the same in 1.1 and 1.2."""

    server_status: int
    _sock: Any
    _read_timeout: float | None
    _result: Any

    def cursor(self) -> _PyMySQLCursor:
        """Make what writes parameters into a statement."""

    def query(self, sql: str) -> int:
        """Send a packet of statements, and read the answer to the first."""

    def next_result(self) -> int:
        """Read the answer to the next."""

    def rollback(self) -> None:
        """Undo what was not committed."""

    def thread_id(self) -> int:
        """Give the number by which the server knows the connection."""


class _PyMySQLDriver(Driver):
    """MariaDB and MySQL through PyMySQL."""

    watched = True

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

    def connect(self, dialect: Dialect, server: Server) -> Any:
        # PyMySQL waits for the packets of the log-in as long as for a statement's answer. A server that
        # takes the connection and then says nothing would hold the caller for that long.
        options = {**server.options, "read_timeout": server.options["connect_timeout"]}
        if self._settings.multi_statements:
            options["client_flag"] |= CLIENT.MULTI_STATEMENTS
        connection = cast(PyMySQLConnection, dialect.connect(*server.arguments, **options))
        connection._read_timeout = server.options["read_timeout"]
        return connection

    def check(self, dialect: Dialect, connection: PyMySQLConnection, idle_s: float) -> None:
        if self._has_hung_up(connection):
            raise exc.DisconnectionError("closed by the server while it was idle")
        super().check(dialect, connection, idle_s)

    def ping(self, dialect: Dialect, connection: PyMySQLConnection) -> None:
        # A sign of life comes sooner than the answer to a hard question.
        with self._impatient(connection):
            super().ping(dialect, connection)

    @contextmanager
    def _impatient(self, connection: PyMySQLConnection) -> Iterator[None]:
        patience_s = connection._read_timeout
        connection._read_timeout = self._settings.connect_timeout_s
        try:
            yield
        finally:
            connection._read_timeout = patience_s

    def introduce(self, connection: PyMySQLConnection) -> Introduction:
        with self._impatient(connection):
            connection.query(_INTRODUCE)
        ((read_only, host, number),) = connection._result.rows
        demoted = self._settings.writable and read_only not in _WRITABLE
        return Introduction(demoted, f"{host}/{number}", connection.thread_id())

    def end_statement(self, connection: PyMySQLConnection, thread: int) -> None:
        connection.query(f"KILL {thread:d}")

    def has_answered(self, error: Exception) -> bool:
        code = _code(error)
        return code > 0 and code not in _CLIENT_ERRORS and code != ER.SERVER_SHUTDOWN

    def is_demoted(self, error: BaseException | None) -> bool:
        if not self._settings.writable:
            return False
        code = _code(error)
        # The first code stands for every option that forbids something.
        forbidden = code == ER.OPTION_PREVENTS_STATEMENT and "read-only" in str(error)
        return forbidden or code == ER_READ_ONLY_MODE

    def reset(self, connection: PyMySQLConnection) -> None:
        # Every answer says whether a transaction is open. Who met an error has rolled back already.
        if connection.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS:
            super().reset(connection)

    def discard(self, connection: PyMySQLConnection) -> None:
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

    def _has_hung_up(self, connection: PyMySQLConnection) -> bool:
        """Tell whether anything can be read: the end, or a farewell. An idle server says nothing."""
        if connection._sock is None:
            return True
        poll = self._poll()
        poll.register(connection._sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))


def _code(error: BaseException | None) -> int:
    """Give the number of PyMySQL's error; 0 for any other."""
    match getattr(error, "args", ()):
        case (int(code), *_):
            return code
    return 0


class _SQLiteFileDriver(Driver):
    """SQLite in a file. Nothing can be killed in the middle of a statement: it never leaves C."""

    converses = False

    def label(self, url: URL) -> str:
        return f"file {url.database}"

    def connect(self, dialect: Dialect, server: Server) -> Any:
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


def driver_for(url: URL, settings: DatabaseSettings) -> Driver:
    """Choose the driver for a URL."""
    if url.get_backend_name() == "sqlite":
        in_memory = url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"
        return _SQLiteMemoryDriver(settings) if in_memory else _SQLiteFileDriver(settings)
    if url.get_driver_name() == "pymysql":
        return _PyMySQLDriver(settings)
    return Driver(settings)


def read_urls(settings: DatabaseSettings) -> list[URL]:
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
