"""fastagi_pool.database without a server: its pure parts, SQLite, and what both databases share."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ManualClock
from sqlalchemy import event, exc, text

from fastagi_pool.database import (
    RETRY_S,
    Database,
    DatabaseSettings,
    ServerLimits,
    connection_report,
    server_limits,
)
from fastagi_pool.errors import CallTimeout, DatabaseUnavailable, OperatorError

SECRET = "Tr0ub4dor&3"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database of each kind, with one table."""
    database = Database(DatabaseSettings("main", (database_url,), pool_size=2, pool_timeout_s=0.05))
    with database.lease().begin() as connection:
        connection.execute(text("CREATE TABLE caller (id INTEGER PRIMARY KEY, name VARCHAR(80))"))
    yield database
    database.close()


@pytest.fixture
def closed_port() -> Iterator[socket.socket]:
    """A socket on 127.0.0.1 that refuses connections until it listens."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.setblocking(False)
        yield holder


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port of 127.0.0.1 where connections are taken, and nobody says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(2_000)
        yield listener.getsockname()[1]


def names(database: Database) -> list[str]:
    """Read the names in the table, by a lease of its own."""
    with database.lease().connect() as connection:
        return list(connection.execute(text("SELECT name FROM caller ORDER BY id")).scalars())


ADD = text("INSERT INTO caller (name) VALUES (:name)")
ADD_WITH_ID = text("INSERT INTO caller (id, name) VALUES (:id, :name)")


# ---- the same on SQLite and MariaDB


def test_begin_commits(database: Database) -> None:
    """What a transaction wrote is there for the next lease."""
    with database.lease().begin() as connection:
        connection.execute(ADD_WITH_ID, {"id": 1, "name": "Zoë 🎧"})
    assert names(database) == ["Zoë 🎧"]


@pytest.mark.parametrize("error", [ValueError("bug"), CallTimeout("script", 1.0)])
def test_an_exception_rolls_begin_back(database: Database, error: BaseException) -> None:
    """A transaction that an exception leaves writes nothing, and the exception arrives unchanged."""

    def fail() -> None:
        with database.lease().begin() as connection:
            connection.execute(ADD_WITH_ID, {"id": 1, "name": "lost"})
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error
    assert names(database) == []


def test_connect_commits_nothing_by_itself(database: Database) -> None:
    """What connect() wrote is rolled back at the end of its block, unless it was committed."""
    with database.lease().connect() as connection:
        connection.execute(ADD_WITH_ID, {"id": 1, "name": "kept"})
        connection.commit()
        connection.execute(ADD_WITH_ID, {"id": 2, "name": "lost"})
    assert names(database) == ["kept"]


def test_a_transaction_that_nobody_knows_of_is_rolled_back(database: Database) -> None:
    """What a handler wrote beside SQLAlchemy, with the driver's own cursor, is undone when it goes back."""
    with database.lease().connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute("INSERT INTO caller (id, name) VALUES (1, 'forgotten')")
        cursor.close()
    assert names(database) == []


def test_a_commit_ends_the_block_of_begin(database: Database) -> None:
    """A statement after an early commit is refused, because nobody would commit it."""
    with database.lease().begin() as connection:
        connection.execute(ADD_WITH_ID, {"id": 1, "name": "kept"})
        connection.commit()
        with pytest.raises(exc.InvalidRequestError):
            connection.execute(ADD_WITH_ID, {"id": 2, "name": "refused"})
    assert names(database) == ["kept"]


def test_a_failed_statement_stays_sqlalchemys(database: Database) -> None:
    """An error of a statement is SQLAlchemy's, and the lease goes on with a good connection."""
    lease = database.lease()
    with lease.connect() as connection, pytest.raises(exc.DBAPIError):
        connection.execute(text("SELECT nothing FROM nowhere"))
    with lease.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1


def test_release_takes_everything_back(database: Database) -> None:
    """What a call left open is rolled back, counted, and free for the next call."""
    lease = database.lease()
    lease.connect().execute(ADD_WITH_ID, {"id": 1, "name": "lost"})
    lease.connect()
    assert lease.release() == 2
    assert lease.release() == 0
    assert names(database) == []
    other = database.lease()
    other.connect()
    other.connect()
    assert other.release() == 2


def test_nothing_is_left_open_after_a_block(database: Database) -> None:
    """A handler that uses ``with`` leaves nothing to release."""
    lease = database.lease()
    with lease.connect() as connection:
        connection.execute(text("SELECT 1"))
    with lease.begin() as connection:
        connection.execute(text("SELECT 1"))
    assert lease.release() == 0


def test_a_released_lease_gives_nothing(database: Database) -> None:
    """What outlives its call gets no connection, and costs no place."""
    lease = database.lease()
    lease.release()
    for _ in range(3):
        with pytest.raises(exc.ResourceClosedError, match="released"):
            lease.connect()
    assert names(database) == []


def test_a_busy_pool_is_unavailable_after_the_pool_timeout(database: Database) -> None:
    """Who finds all connections in use gets DatabaseUnavailable with the reason, after a bounded wait."""
    hog = database.lease()
    hog.connect()
    hog.connect()
    with pytest.raises(DatabaseUnavailable, match=r"'main'.*all 2 connections stayed in use for 0\.05 s"):
        database.lease().connect()
    assert database.available
    hog.release()
    assert names(database) == []


def test_connections_are_kept(database: Database) -> None:
    """One after the other, calls share one connection."""
    seen = set()
    for _ in range(5):
        with database.lease().connect() as connection:
            seen.add(id(connection.connection.dbapi_connection))
    assert len(seen) == 1


def test_a_lease_counts_statements_and_seconds(database_url: str, clock: ManualClock) -> None:
    """A lease counts the time in statements, also in those that fail, and none of the time between."""
    database = Database(DatabaseSettings("main", (database_url,)), clock)
    database.open(warm=1)

    def take_a_second(*_: object) -> None:
        clock.now_s += 1.0

    event.listen(database.engine, "before_cursor_execute", take_a_second)
    lease = database.lease()
    with lease.connect() as connection:
        connection.execute(text("SELECT 1"))
        clock.now_s += 100.0
        with pytest.raises(exc.DBAPIError):
            connection.execute(text("SELECT nothing FROM nowhere"))
        clock.now_s += 100.0
    assert (lease.statements, lease.database_s) == (2, 2.0)
    database.close()


def test_a_lease_counts_the_commit(database_url: str, clock: ManualClock) -> None:
    """The wait for the commit of begin() is the database's time, not the script's."""
    database = Database(DatabaseSettings("main", (database_url,)), clock)
    database.open(warm=1)

    def take_three_seconds(*_: object) -> None:
        clock.now_s += 3.0

    event.listen(database.engine, "commit", take_three_seconds)
    lease = database.lease()
    with lease.begin() as connection:
        connection.execute(text("SELECT 1"))
        clock.now_s += 100.0
    assert lease.database_s == 3.0
    database.close()


# ---- SQLite


def sqlite(path: Path, **settings: Any) -> Database:
    """Make a database in a file."""
    return Database(DatabaseSettings("main", (f"sqlite:///{path}",), **settings))


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("foreign_keys", 1), ("busy_timeout", 5000)]
)
def test_sqlite_is_set_up_on_every_connection(tmp_path: Path, pragma: str, value: object) -> None:
    """Each SQLite connection of a pool writes ahead, checks foreign keys and waits for locks."""
    database = sqlite(tmp_path / "test.db", pool_size=2)
    lease = database.lease()
    assert [lease.connect().exec_driver_sql(f"PRAGMA {pragma}").scalar() for _ in range(2)] == [value] * 2
    lease.release()
    database.close()


def test_memory_is_one_database_for_all_leases() -> None:
    """What one lease writes to SQLite in memory, the next one reads."""
    database = Database(DatabaseSettings("main", ("sqlite://",), pool_size=4))
    database.open()
    with database.lease().begin() as connection:
        connection.execute(text("CREATE TABLE caller (id INTEGER PRIMARY KEY, name TEXT)"))
        connection.execute(ADD_WITH_ID, {"id": 1, "name": "ann"})
    with database.lease().connect() as connection:
        connection.execute(ADD_WITH_ID, {"id": 2, "name": "lost"})
    assert names(database) == ["ann"]


def test_memory_is_used_in_turns() -> None:
    """Two transactions never share the one connection of SQLite in memory."""
    database = Database(DatabaseSettings("main", ("sqlite://",), pool_size=4, pool_timeout_s=0.01))
    with database.lease().begin(), pytest.raises(DatabaseUnavailable, match="all 1 connections"):
        database.lease().connect()


def test_sqlite_has_no_sql_mode(tmp_path: Path) -> None:
    """What only MariaDB knows is no hindrance on SQLite."""
    database = sqlite(tmp_path / "test.db", sql_mode="NO_ENGINE_SUBSTITUTION", multi_statements=True)
    database.open()
    database.close()


def test_sqlite_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    """A path without a folder is an answer for the operator, with the file and the reason."""
    with pytest.raises(DatabaseUnavailable, match=r"file .*/missing/test\.db: unable to open"):
        sqlite(tmp_path / "missing" / "test.db").open()


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    """A file of another kind is found out at boot."""
    (tmp_path / "test.db").write_text("Dear diary, " * 100)
    with pytest.raises(DatabaseUnavailable, match="file is not a database"):
        sqlite(tmp_path / "test.db").open()


def test_the_next_url_is_taken_and_the_first_again_once_it_is_back(
    tmp_path: Path, clock: ManualClock
) -> None:
    """New connections go down the list, and to its head again as soon as a retry succeeds."""
    urls = tuple(f"sqlite:///{tmp_path}/{name}/test.db" for name in ("first", "second"))
    (tmp_path / "second").mkdir()
    database = Database(DatabaseSettings("main", urls), clock)

    def folder_of_a_new_connection() -> str:
        database.close()
        with database.lease().connect() as connection:
            return Path(connection.exec_driver_sql("PRAGMA database_list").one()[2]).parent.name

    assert folder_of_a_new_connection() == "second"
    (tmp_path / "first").mkdir()
    assert folder_of_a_new_connection() == "second"
    clock.now_s += RETRY_S
    assert folder_of_a_new_connection() == "first"
    database.close()


def test_all_urls_of_the_list_are_named_when_none_can_be_had(tmp_path: Path) -> None:
    """The operator reads why each server of a fail-over list was refused."""
    urls = tuple(f"sqlite:///{tmp_path}/{name}/test.db" for name in ("first", "second"))
    with pytest.raises(
        DatabaseUnavailable, match=r"/first/test\.db: unable.*; file .*/second/test\.db: unable"
    ):
        Database(DatabaseSettings("main", urls)).open()


# ---- a server that is away


def mysql(port: int, **settings: Any) -> DatabaseSettings:
    """Say how to reach a MariaDB on a port of this machine."""
    return DatabaseSettings("crm", (f"mysql+pymysql://pool@127.0.0.1:{port}/calls",), SECRET, **settings)


def test_a_refused_connection_is_told_without_the_password(closed_port: socket.socket) -> None:
    """The reason names host, port, database and what went wrong, and no secret."""
    port = closed_port.getsockname()[1]
    with pytest.raises(DatabaseUnavailable) as caught:
        Database(mysql(port)).open()
    assert f"database 'crm' is not available: 127.0.0.1:{port}/calls: " in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.database == "crm"


def test_a_server_that_says_nothing_costs_the_connect_timeout(silent_port: int) -> None:
    """The whole log-in is bounded by the connect time-out, not by the time-out of statements."""
    database = Database(mysql(silent_port, connect_timeout_s=0.1, read_timeout_s=60.0))
    started_s = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="timed out"):
        database.open()
    assert time.monotonic() - started_s < 10.0


def test_after_a_refusal_callers_fail_without_trying(closed_port: socket.socket, clock: ManualClock) -> None:
    """Within the retry time nobody connects; when it is over, a caller may."""
    database = Database(mysql(closed_port.getsockname()[1]), clock)
    with pytest.raises(DatabaseUnavailable):
        database.lease().connect()
    assert not database.available
    closed_port.listen()
    with pytest.raises(DatabaseUnavailable, match="Connection refused"):
        database.lease().connect()
    with pytest.raises(BlockingIOError):
        closed_port.accept()
    clock.now_s += RETRY_S
    assert database.available


def test_a_thousand_calls_do_not_wait_one_after_the_other(
    silent_port: int, run_scenario: Callable[[str, str], dict[str, Any]]
) -> None:
    """Of 1,000 calls that want a silent server, all know after few connect time-outs of 0.5 s."""
    facts = run_scenario("silence", f"mysql+pymysql://pool@127.0.0.1:{silent_port}/calls")
    assert facts["errors"] == {}
    assert facts["refused"] == 1_000
    assert facts["first_s"] < 10.0
    assert facts["then_s"] < 10.0
    assert not facts["available"]


def test_places_go_to_those_who_wait(
    tmp_path: Path, run_scenario: Callable[[str, str], dict[str, Any]]
) -> None:
    """A place is not lost with a killed caller, and a greedy caller does not take it again and again."""
    order = run_scenario("turns", f"sqlite:///{tmp_path}/test.db")["order"]
    assert order[0] == "next"
    assert "killed" not in order
    assert order.index("patient") <= 3
    assert len(order) == 52


# ---- settings


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ((), "one URL or more, all with the same driver"),
        (("sqlite://", "mysql+pymysql://pool@db/calls"), "all with the same driver"),
        ((f"pool:{SECRET}@db",), "url 1 cannot be read"),
        ((f"mysql+pymysql://pool:{SECRET}@db:port/calls",), "url 1 cannot be read"),
        ((f"mysql+nosuchdriver://pool:{SECRET}@db/calls",), "driver is not installed"),
        ((f"sqlite://pool:{SECRET}@db/file.db",), "the driver cannot use the URL"),
        (
            (f"mysql+pymysql://pool:{SECRET}@db/calls?connect_timeout=soon",),
            "the driver cannot use the URL of db:3306",
        ),
    ],
)
def test_unusable_urls_are_the_operators_to_mend(urls: tuple[str, ...], message: str) -> None:
    """What is wrong with a URL is said without showing it, for it may hold a password."""
    with pytest.raises(OperatorError) as caught:
        Database(DatabaseSettings("crm", urls))
    assert message in str(caught.value)
    assert "'crm'" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_settings_show_no_secret() -> None:
    """Settings in a log or a traceback show neither the password nor the URLs that may hold one."""
    shown = repr(DatabaseSettings("crm", (f"mysql+pymysql://pool:{SECRET}@db/calls",), SECRET))
    assert "crm" in shown
    assert SECRET not in shown


# ---- limits of the server

LIMITS = ServerLimits("10.11.6-MariaDB", max_connections=151, max_user_connections=0, wait_timeout_s=28_800)


@pytest.mark.parametrize(
    ("limits", "workers", "words"),
    [
        (None, 1_000, []),
        (LIMITS, 18, []),
        (LIMITS, 19, ["152 connections", "max_connections leaves 150"]),
        (replace(LIMITS, max_connections=145), 18, []),
        (replace(LIMITS, max_connections=144), 18, ["144 connections", "max_connections leaves 143"]),
        (replace(LIMITS, max_user_connections=16), 2, []),
        (replace(LIMITS, max_user_connections=15), 2, ["16 connections", "max_user_connections leaves 15"]),
        (replace(LIMITS, wait_timeout_s=3_600), 1, []),
        (replace(LIMITS, wait_timeout_s=3_599), 1, ["idle for 3599 s"]),
    ],
)
def test_the_report_holds_needs_against_limits(
    limits: ServerLimits | None, workers: int, words: list[str]
) -> None:
    """Two generations of workers must fit into the server's limits, and idle connections must live."""
    report = connection_report(DatabaseSettings("main", ("sqlite://",)), limits, workers)
    assert len(report) == bool(words)
    for word in words:
        assert word in report[0].text


def test_sqlite_has_no_limits() -> None:
    """A database without a server grants everything."""
    assert server_limits(Database(DatabaseSettings("main", ("sqlite://",))).engine) is None


# ---- facts


def test_facts_of_a_database_in_use(database: Database) -> None:
    """The facts count connections, who holds one, and statements; a closed connection is gone."""
    before = database.facts()
    assert (before.in_use, before.waiting, before.failures, before.down_reason) == (0, 0, 0, "")
    with database.lease().connect() as connection:
        connection.execute(text("SELECT 1"))
        facts = database.facts()
        assert (facts.in_use, facts.connected, facts.statements) == (
            1,
            before.connected,
            before.statements + 1,
        )
        assert facts.seconds > before.seconds
        connection.invalidate()
        assert database.facts().connected == before.connected - 1
    assert database.facts().in_use == 0
    assert before.server


def test_failed_statements_are_counted(database: Database) -> None:
    """A statement that the database refuses is a failure of its."""
    with database.lease().connect() as connection, pytest.raises(exc.DBAPIError):
        connection.execute(text("SELECT * FROM nowhere"))
    assert database.facts().failures == 1


def test_facts_of_a_database_that_is_away(closed_port: socket.socket) -> None:
    """A database that is away is told with the reason, and without a secret."""
    host, port = closed_port.getsockname()
    url = f"mysql+pymysql://user:{SECRET}@{host}:{port}/calls"
    database = Database(DatabaseSettings("main", (url,), pool_size=1))
    with pytest.raises(DatabaseUnavailable):
        database.lease().connect()
    facts = database.facts()
    assert (facts.connected, facts.in_use, facts.failures, facts.server) == (0, 0, 1, "")
    assert f"{host}:{port}/calls: " in facts.down_reason
    assert SECRET not in facts.down_reason
