"""fastagi_pool.database against a real MariaDB: kills, lost connections, restarts, fail-over."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from conftest import ManualClock
from mariadb import PASSWORD, MariaDBServer
from sqlalchemy import Connection, exc, text

from fastagi_pool.database import RETRY_S, Database, DatabaseSettings, server_limits
from fastagi_pool.errors import CallTimeout, DatabaseUnavailable

pytestmark = pytest.mark.mariadb

#: Bounds how long a test waits for what happens within milliseconds unless it is broken.
PATIENCE_S: Final = 20.0
#: After a restart of the server everybody has to be served again within this time.
RECOVERY_S: Final = 5.0

WHO_AM_I: Final = text("SELECT CONNECTION_ID()")
SLEEP: Final = text("SELECT SLEEP(60)")

StartScenario = Callable[[str, str], subprocess.Popen[str]]
RunScenario = Callable[[str, str], dict[str, Any]]


@contextmanager
def opened(*urls: str, clock: Callable[[], float] = time.monotonic, **settings: Any) -> Iterator[Database]:
    """Make a database, and close it at the end."""
    database = Database(DatabaseSettings("main", urls, **settings), clock)
    yield database
    database.close()


def server_kills(server: MariaDBServer, connection: Connection) -> None:
    """Let the server close a connection, and wait until this side can see it."""
    connection.execute(WHO_AM_I)
    server_closes(server, connection.connection.dbapi_connection)


def server_closes(server: MariaDBServer, connection: Any) -> None:
    """Do the same with a connection of PyMySQL."""
    server.execute(f"KILL {connection.thread_id()}")
    assert select.select([connection._sock], [], [], PATIENCE_S)[0]


def who_answers(database: Database) -> int:
    """Say which connection the next lease gets."""
    with database.lease().connect() as connection:
        return int(connection.execute(WHO_AM_I).scalar_one())


# ---- killed greenlets


@pytest.mark.slow
def test_a_thousand_kills_leave_every_connection_sound(mariadb_url: str, run_scenario: RunScenario) -> None:
    """After 1,000 kills at random moments no answer went astray, and no place or socket is lost."""
    facts = run_scenario("kills", mariadb_url)
    assert facts["errors"] == {}
    assert facts["wrong"] == 0
    assert facts["answers_of_all"] == [True] * 4
    assert (facts["checked_out"], facts["connections"], facts["leaked_descriptors"]) == (0, 4, 0)
    assert facts["complaints_of_destructors"] == []
    assert facts["answered"] > 100
    assert sum(facts["killed"].values()) > 500
    assert {"answer", "fetch", "commit", "rollback", "connect", "waiting for a place"} <= set(facts["killed"])


def test_a_time_out_that_is_an_exception_leaves_no_half_statement(
    mariadb_url: str, run_scenario: RunScenario
) -> None:
    """A statement cut off by an ordinary exception, which SQLAlchemy tolerates, costs the connection."""
    facts = run_scenario("strangers", mariadb_url)
    assert facts["others"] == {}
    assert facts["wrong"] == 0
    assert facts["interrupted"] > 5
    assert facts["answers_of_all"] == [True] * 4


def test_a_half_sent_statement_is_never_completed_by_the_next(
    mariadb: MariaDBServer, mariadb_url: str, start_scenario: StartScenario
) -> None:
    """A statement cut off while it was being sent takes its connection along, even by an Exception."""
    process = start_scenario("half_sent", mariadb_url)
    assert process.stdin is not None
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"ready": True}
    mariadb.pause()
    try:
        print("frozen", file=process.stdin, flush=True)
        assert json.loads(process.stdout.readline()) == {"outcome": "send", "dropped": True}
    finally:
        mariadb.resume()
    output, _ = process.communicate("on again\n", timeout=PATIENCE_S)
    assert json.loads(output) == {"left_open": 1, "answers_of_all": [True] * 4}


def test_release_ends_a_statement_that_outlives_its_call(mariadb_url: str, run_scenario: RunScenario) -> None:
    """A greenlet that a handler forgot fails at once when the call ends, and spoils no connection."""
    facts = run_scenario("abandoned", mariadb_url)
    assert facts["left_open"] == 1
    assert facts["took_s"] < PATIENCE_S
    assert facts["outcome"] == ["OperationalError"]
    assert facts["answers_of_all"] == [True] * 4


# ---- restarts


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "SIGKILL"])
def test_a_restart_under_load_is_over_when_the_server_is_back(
    mariadb: MariaDBServer,
    mariadb_url: str,
    start_scenario: StartScenario,
    kill: bool,
) -> None:
    """20 callers in a loop are all served again within 5 s of the server's return, rightly."""
    process = start_scenario("restart", mariadb_url)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"ready": True}
    mariadb.stop(kill)
    assert json.loads(process.stdout.readline()) == {"failing": True}
    mariadb.start()
    up_s = time.monotonic()
    output, _ = process.communicate("up\n", timeout=2 * PATIENCE_S)
    facts = json.loads(output)
    assert facts["recovered"] == [True] * 20
    assert facts["last_failure_s"] - up_s < RECOVERY_S
    assert facts["wrong"] == 0
    assert set(facts["failures"]) <= {"OperationalError", "DatabaseUnavailable"}
    assert facts["answers_of_all"] == [True] * 4


def test_callers_are_told_who_is_away_and_served_when_it_is_back(
    mariadb: MariaDBServer, mariadb_url: str, clock: ManualClock
) -> None:
    """While the server is stopped a lease raises DatabaseUnavailable; afterwards it works."""
    with opened(mariadb_url, clock=clock) as database:
        database.open()
        mariadb.stop()
        try:
            with pytest.raises(DatabaseUnavailable, match="Connection refused"):
                database.lease().connect()
            assert not database.available
        finally:
            mariadb.start()
        clock.now_s += RETRY_S
        assert who_answers(database) > 0
        assert database.available


# ---- connections that die


def test_a_connection_closed_while_idle_is_replaced(mariadb: MariaDBServer, mariadb_url: str) -> None:
    """A call never notices that the server closed an idle connection."""
    with opened(mariadb_url) as database:
        with database.lease().connect() as connection:
            first = connection.execute(WHO_AM_I).scalar()
            connection.rollback()
            idle = connection.connection.dbapi_connection
        server_closes(mariadb, idle)
        assert who_answers(database) != first


def test_a_connection_lost_after_its_last_answer_is_no_error(
    mariadb: MariaDBServer, mariadb_url: str
) -> None:
    """Once a handler has its answers, it does not matter that the connection cannot be rolled back."""
    with opened(mariadb_url) as database:
        with database.lease().connect() as connection:
            server_kills(mariadb, connection)
        assert who_answers(database) > 0


def test_a_sound_connection_is_kept_by_the_check(mariadb_url: str) -> None:
    """Neither the look at the socket nor the ping costs a connection that lives."""
    with opened(mariadb_url, idle_ping_s=0.0) as database:
        assert len({who_answers(database) for _ in range(20)}) == 1


def test_a_frozen_server_is_found_by_the_ping(
    mariadb: MariaDBServer, mariadb_url: str, clock: ManualClock
) -> None:
    """A server that answers nothing any more costs connect time-outs, not the time-out of statements."""
    with opened(mariadb_url, clock=clock, connect_timeout_s=0.2, read_timeout_s=600.0) as database:
        database.open()
        clock.now_s += 31.0
        mariadb.pause()
        try:
            with pytest.raises(DatabaseUnavailable, match="timed out"):
                database.lease().connect()
        finally:
            mariadb.resume()
        clock.now_s += RETRY_S
        assert who_answers(database) > 0


def test_a_slow_statement_is_cut_off(mariadb_url: str) -> None:
    """The read time-out ends a statement with SQLAlchemy's error; the next call gets a good connection."""
    with opened(mariadb_url, read_timeout_s=0.1) as database:
        with database.lease().connect() as connection, pytest.raises(exc.OperationalError, match="timed out"):
            connection.execute(SLEEP)
        assert who_answers(database) > 0


def test_connections_grow_only_so_old(mariadb_url: str) -> None:
    """A connection older than max_age_s is replaced, so that a fail-over is undone in time."""
    with opened(mariadb_url, max_age_s=0.0) as database:
        assert len({who_answers(database) for _ in range(3)}) == 3


def test_a_failing_rollback_hides_not_that_the_call_ended(mariadb: MariaDBServer, mariadb_url: str) -> None:
    """CallTimeout leaves begin() as itself, even if the connection under it is gone."""
    with opened(mariadb_url) as database:
        lease = database.lease()

        def time_out_on_a_dead_connection() -> None:
            with lease.begin() as connection:
                server_kills(mariadb, connection)
                raise CallTimeout("script", 1.0)

        with pytest.raises(CallTimeout):
            time_out_on_a_dead_connection()
        assert lease.release() == 0
        assert who_answers(database) > 0


def test_a_reconnect_within_a_statement_tells_that_the_database_is_away(
    mariadb: MariaDBServer, mariadb_url: str
) -> None:
    """A connection that was lost reconnects by itself, and says DatabaseUnavailable if it cannot."""
    with opened(mariadb_url) as database, database.lease().connect() as connection:
        server_kills(mariadb, connection)
        with pytest.raises(exc.OperationalError):
            connection.execute(WHO_AM_I)
        connection.rollback()
        mariadb.stop()
        try:
            with pytest.raises(DatabaseUnavailable, match="Connection refused"):
                connection.execute(WHO_AM_I)
        finally:
            mariadb.start()


# ---- connecting


def test_open_connects_the_whole_pool(mariadb: MariaDBServer, mariadb_url: str) -> None:
    """After open() the server sees as many connections as calls may use; or as many as were asked for."""
    name = mariadb_url.rpartition("/")[2]
    for warm, expected in ((2, 2), (None, 3)):
        with opened(mariadb_url, pool_size=3) as database:
            database.open(warm)
            seen = mariadb.execute(f"SELECT COUNT(*) FROM information_schema.processlist WHERE db = '{name}'")
            assert seen == [(expected,)]


@pytest.mark.parametrize(
    ("variable", "value"), [("character_set_client", "utf8mb4"), ("autocommit", 0), ("wait_timeout", 28_800)]
)
def test_connections_are_set_up(mariadb_url: str, variable: str, value: object) -> None:
    """Connections speak utf8mb4 and commit only when told."""
    with opened(mariadb_url) as database, database.lease().connect() as connection:
        assert connection.exec_driver_sql(f"SELECT @@{variable}").scalar() == value


def test_options_in_the_url_win(mariadb_url: str) -> None:
    """Whoever writes a charset into the URL gets it."""
    with opened(f"{mariadb_url}?charset=latin1") as database, database.lease().connect() as connection:
        assert connection.exec_driver_sql("SELECT @@character_set_client").scalar() == "latin1"


def test_the_password_is_put_into_the_url(mariadb: MariaDBServer, mariadb_url: str) -> None:
    """A password from its own setting logs in as well as one in the URL."""
    with opened(mariadb.url(mariadb_url.rpartition("/")[2]), password=PASSWORD) as database:
        database.open()


@pytest.mark.parametrize(
    ("database_name", "password", "reason"),
    [
        ("", "Tr0ub4dor&3", r"Access denied for user 'pool'@'127\.0\.0\.1' \(using password: YES\) \(1045\)"),
        ("no_such_database", PASSWORD, r"Unknown database 'no_such_database' \(1049\)"),
    ],
)
def test_a_refused_log_in_says_why(
    mariadb: MariaDBServer, database_name: str, password: str, reason: str
) -> None:
    """The operator reads the server's own words, with the place, without the password."""
    where = rf"127\.0\.0\.1:{mariadb.port}/{database_name}: "
    with opened(mariadb.url(database_name), password=password) as database:
        with pytest.raises(DatabaseUnavailable, match=where + reason) as caught:
            database.open()
        assert password not in str(caught.value)


def test_the_next_server_serves_until_the_first_is_back(
    mariadb: MariaDBServer, mariadb_url: str, clock: ManualClock
) -> None:
    """The fail-over list is walked for every new connection, and its first entry preferred."""
    first = "comes_later"
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        nowhere = f"mysql+pymysql://pool@127.0.0.1:{refusing.getsockname()[1]}/calls"
        with opened(mariadb.url(first, PASSWORD), nowhere, mariadb_url, clock=clock) as database:
            assert _database_of_a_new_connection(database) == mariadb_url.rpartition("/")[2]
            mariadb.execute(f"CREATE DATABASE {first}")
            try:
                clock.now_s += RETRY_S
                assert _database_of_a_new_connection(database) == first
            finally:
                mariadb.execute(f"DROP DATABASE {first}")


def _database_of_a_new_connection(database: Database) -> str:
    database.close()
    with database.lease().connect() as connection:
        return str(connection.exec_driver_sql("SELECT DATABASE()").scalar())


# ---- limits


def test_the_server_tells_its_limits(mariadb: MariaDBServer, mariadb_url: str) -> None:
    """check --db sees the server's own limits, and those of the user."""
    mariadb.execute("CREATE OR REPLACE USER few@'127.0.0.1' WITH MAX_USER_CONNECTIONS 7")
    with opened(mariadb_url) as database:
        limits = server_limits(database.engine)
    with opened(f"mysql+pymysql://few@127.0.0.1:{mariadb.port}/") as database:
        limits_of_few = server_limits(database.engine)
    mariadb.execute("DROP USER few@'127.0.0.1'")
    assert limits is not None
    assert limits_of_few is not None
    assert "MariaDB" in limits.version
    assert (limits.max_connections, limits.max_user_connections) == (151, 0)
    assert (limits.wait_timeout_s, limits_of_few.max_user_connections) == (28_800, 7)
