"""fastagi_pool.monitor, by a database on a real MariaDB that freezes, is cut off, or loses its role."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from conftest import ManualClock
from mariadb import PASSWORD, MariaDBServer, find_mariadb
from mariadb_forwarder import MariaDBForwarder
from sqlalchemy import text

from fastagi_pool.database import RETRY_S, Database, DatabaseSettings, Statement, TryAgain
from fastagi_pool.errors import DatabaseUnavailable

pytestmark = pytest.mark.mariadb

#: Bounds what comes within a second unless it is broken.
PATIENCE_S: Final = 60.0

StartScenario = Callable[[str, str], subprocess.Popen[str]]
RunScenario = Callable[[str, str], dict[str, Any]]


# ---- silence


@contextmanager
def frozen(server: MariaDBServer) -> Iterator[None]:
    """Have a server keep its connections, and answer nothing."""
    server.pause()
    try:
        yield
    finally:
        server.resume()


@contextmanager
def cut(forwarder: MariaDBForwarder) -> Iterator[None]:
    """Have the network between us and the server lose everything."""
    forwarder.hold()
    try:
        yield
    finally:
        forwarder.let_go()


@pytest.mark.parametrize("how", ["frozen", "cut"])
def test_whoever_waits_for_a_silent_server_is_told(
    mariadb: MariaDBServer, mariadb_url: str, start_scenario: StartScenario, how: str
) -> None:
    """No call waits out its time-outs for a server that fell silent, whatever it waits for."""
    with MariaDBForwarder(mariadb.port) as forwarder:
        url = mariadb_url.replace(f":{mariadb.port}/", f":{forwarder.port}/")
        process = start_scenario("silenced", url)
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"ready": True}
        with frozen(mariadb) if how == "frozen" else cut(forwarder):
            print("silenced", file=process.stdin, flush=True)
            facts = json.loads(process.stdout.readline())
        assert facts.pop("told") == {
            "statement": "DatabaseUnavailable",
            "packet": "TryAgain in doubt",
            "commit": "DatabaseUnavailable",
            "place": "DatabaseUnavailable",
            "later": "DatabaseUnavailable",
        }
        assert facts.pop("reason").endswith(": no sign of life within 1.5 s")
        assert facts == {"available": False, "away": True}
        output, _ = process.communicate("on again\n", timeout=PATIENCE_S)
        assert json.loads(output) == {"down_s": 0.0, "answers_of_all": [True] * 4}


def test_whoever_connects_to_a_silent_server_is_told(run_scenario: RunScenario) -> None:
    """A server that takes connections and says nothing costs probe time-outs, not the connect time-out."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        port = listener.getsockname()[1]
        facts = run_scenario("connecting", f"mysql+pymysql://pool@127.0.0.1:{port}/calls")
    assert facts == {"told": ["DatabaseUnavailable"] * 6, "available": False}


def test_a_busy_server_is_not_away(mariadb_url: str, run_scenario: RunScenario) -> None:
    """A slow statement is waited for, with some questions meanwhile, and a late loop accuses nobody."""
    facts = run_scenario("busy", mariadb_url)
    assert 2 <= facts.pop("asked") < 10
    assert facts == {"waited": 0, "statements": 1, "available": True, "failures": 0}


# ---- statements that outlive their calls


def test_a_statement_does_not_outlive_its_call(mariadb_url: str, run_scenario: RunScenario) -> None:
    """What a killed call was waiting for is ended on the server, and the pool is as before."""
    assert run_scenario("outlived", mariadb_url) == {"running": 0, "answers_of_all": [True] * 4}


def test_a_statement_that_timed_out_is_ended(mariadb_url: str, run_scenario: RunScenario) -> None:
    """What the read time-out gave up is ended on the server."""
    facts = run_scenario("timed_out", mariadb_url)
    assert "timed out" in facts["outcome"]
    assert facts["running"] == 0


# ---- servers that may only be read

PLAIN: Final = "plain"
ADD: Final[Statement] = ("INSERT INTO line VALUES (1)", ())


@pytest.fixture
def demoted(mariadb: MariaDBServer, mariadb_url: str) -> Iterator[Callable[[bool], None]]:
    """Give a function that makes the server read-only for ordinary users, or writable again."""

    def demote(read_only: bool = True) -> None:
        mariadb.execute(f"SET GLOBAL read_only = {read_only:d}")

    mariadb.execute(f"CREATE TABLE {name_of(mariadb_url)}.line (id INT)")
    let_in(mariadb, mariadb_url)
    yield demote
    demote(False)
    mariadb.execute(f"DROP USER {PLAIN}@'127.0.0.1'")


@pytest.fixture(scope="module")
def replica(mariadb: MariaDBServer) -> Iterator[MariaDBServer]:
    """Another server, to which calls may go."""
    with MariaDBServer(find_mariadb()) as server:
        yield server


@pytest.fixture
def replica_url(replica: MariaDBServer) -> str:
    """Lead to a database on it."""
    url = replica.url("other", PASSWORD)
    replica.execute("CREATE OR REPLACE DATABASE other")
    replica.execute("CREATE TABLE other.line (id INT)")
    return let_in(replica, url)


def name_of(url: str) -> str:
    """Give the name of the database."""
    return url.rpartition("/")[2]


def let_in(server: MariaDBServer, url: str) -> str:
    """Make a user who may not write to a server that is read-only, and give the URL for it."""
    server.execute(f"CREATE OR REPLACE USER {PLAIN}@'127.0.0.1'")
    server.execute(f"GRANT SELECT, INSERT ON {name_of(url)}.* TO {PLAIN}@'127.0.0.1'")
    return plain(server, url)


def plain(server: MariaDBServer, url: str) -> str:
    """Give the URL for that user."""
    return f"mysql+pymysql://{PLAIN}@127.0.0.1:{server.port}/{name_of(url)}"


@contextmanager
def opened(*urls: str, clock: ManualClock, **settings: Any) -> Iterator[Database]:
    """Make a database with one connection, and close it at the end."""
    database = Database(DatabaseSettings("main", urls, pool_size=1, multi_statements=True, **settings), clock)
    database.open()
    yield database
    database.close()


def where(database: Database) -> str:
    """Say to which database the next lease leads."""
    with database.lease().connect() as connection:
        return str(connection.exec_driver_sql("SELECT DATABASE()").scalar())


def add(database: Database) -> None:
    """Write a row."""
    with database.lease().begin() as connection:
        connection.execute(text(ADD[0]))


def test_a_demoted_server_refuses_and_is_taken_again(
    mariadb: MariaDBServer, mariadb_url: str, demoted: Callable[[bool], None], clock: ManualClock
) -> None:
    """A write that a read-only server refuses says that the database is away, until it may be written."""
    with opened(plain(mariadb, mariadb_url), clock=clock) as database:
        demoted(True)
        with pytest.raises(DatabaseUnavailable, match="is read-only: a demoted primary"):
            add(database)
        assert not database.available
        assert "is read-only" in database.facts().down_reason
        clock.now_s += RETRY_S
        with pytest.raises(DatabaseUnavailable, match="is read-only: a demoted primary"):
            add(database)
        demoted(False)
        clock.now_s += RETRY_S
        add(database)
        assert database.facts().down_s == 0.0


def test_a_packet_goes_to_the_next_server_after_a_demotion(
    mariadb: MariaDBServer,
    mariadb_url: str,
    replica_url: str,
    demoted: Callable[[bool], None],
    clock: ManualClock,
) -> None:
    """What a demoted server refused is not done, and done by the next; the first is taken again."""
    with opened(plain(mariadb, mariadb_url), replica_url, clock=clock) as database:
        assert where(database) == name_of(mariadb_url)
        lease = database.lease()
        demoted(True)
        with pytest.raises(TryAgain) as caught:
            lease.round_trip([ADD])
        assert not caught.value.in_doubt
        assert lease.round_trip([ADD])[0].matched == 1
        assert where(database) == "other"
        demoted(False)
        clock.now_s += RETRY_S
        database.close()
        assert where(database) == name_of(mariadb_url)


def test_a_read_only_server_is_enough_for_who_only_reads(
    mariadb: MariaDBServer, mariadb_url: str, demoted: Callable[[bool], None], clock: ManualClock
) -> None:
    """A database that is not to be written may lie on a read-only server."""
    demoted(True)
    with opened(plain(mariadb, mariadb_url), clock=clock, writable=False) as database:
        assert where(database) == name_of(mariadb_url)
        assert database.available


def test_going_away_and_coming_back_are_told_once(
    mariadb: MariaDBServer, mariadb_url: str, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has one line for the outage, with the reason, and one for its end, with its length."""
    with opened(mariadb_url, clock=clock) as database:
        mariadb.stop()
        try:
            for _ in range(3):
                with pytest.raises(DatabaseUnavailable):
                    database.lease().connect()
                clock.now_s += 4.1
            assert database.facts().down_s == pytest.approx(12.3)
        finally:
            mariadb.start()
        where(database)
    away, back = [record.getMessage() for record in caplog.records if record.name == "fastagi_pool"]
    assert away.startswith(f"database main: away: 127.0.0.1:{mariadb.port}/")
    assert "Connection refused" in away
    assert back == "database main: back after 12.3 s"
