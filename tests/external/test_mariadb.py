"""fastagi_pool.database against a real MariaDB: kills, lost connections, restarts, fail-over."""

from __future__ import annotations

import json
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Final

import pymysql
import pytest
from conftest import ManualClock
from mariadb import PASSWORD, MariaDBServer
from mariadb_forwarder import MariaDBForwarder
from ports import closed_port
from sqlalchemy import Connection, exc, text

from fastagi_pool.database import (
    RETRY_S,
    Answer,
    Database,
    DatabaseSettings,
    Statement,
    TryAgain,
    server_limits,
)
from fastagi_pool.errors import CallTimeout, DatabaseUnavailable

pytestmark = pytest.mark.mariadb

#: Bounds how long a test waits for what happens within milliseconds unless it is broken.
PATIENCE_S: Final = 20.0
#: A time-out that a test waits for; by the same one it has good answers before and afterwards.
SHORT_S: Final = 2.0
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
    assert facts["spared"] == []


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
    with opened(mariadb_url, clock=clock, connect_timeout_s=SHORT_S, read_timeout_s=600.0) as database:
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
    with opened(mariadb_url, read_timeout_s=SHORT_S) as database:
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
        # The server may still have them for a moment after they were closed.
        await_row(mariadb, f"SELECT COUNT(*) = 0 FROM information_schema.processlist WHERE db = '{name}'")


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
    with closed_port() as port:
        nowhere = f"mysql+pymysql://pool@127.0.0.1:{port}/calls"
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


# ---- round trips of several statements

#: What a session has sent or set, seen by itself.
ROLLBACKS: Final = (
    "SELECT variable_value FROM information_schema.session_status WHERE variable_name = 'COM_ROLLBACK'"
)
LOCK_WAITS: Final = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
LOSS: Final[Statement] = ("KILL CONNECTION_ID()", ())


@pytest.fixture
def packets(mariadb_url: str) -> Iterator[Database]:
    """A database that takes several statements at once, by one connection, with some lines in a table."""
    with opened(mariadb_url, pool_size=1, multi_statements=True) as database:
        database.lease().round_trip(
            [
                ("CREATE TABLE line (id INT PRIMARY KEY, word VARCHAR(40)) ENGINE = InnoDB", ()),
                ("INSERT INTO line VALUES (1, 'one'), (2, 'two'), (3, 'three')", ()),
            ]
        )
        yield database


def words(database: Database) -> list[str]:
    """Read the lines of the table, by a lease of its own."""
    return [row[0] for row in asked(database, "SELECT word FROM line ORDER BY id")]


def asked(database: Database, sql: str, *parameters: object) -> Sequence[tuple[Any, ...]]:
    """Ask one question, by a lease of its own."""
    return database.lease().round_trip([(sql, parameters)])[0].rows


def set_word(number: int, word: str) -> Statement:
    """Make a statement that changes one line."""
    return "UPDATE line SET word = %s WHERE id = %s", (word, number)


def test_several_statements_are_one_packet(mariadb: MariaDBServer, mariadb_url: str) -> None:
    """Whatever a round trip holds is one command on the wire, its commit included."""
    url = mariadb_url.replace(f":{mariadb.port}/", ":{}/")
    with (
        MariaDBForwarder(mariadb.port) as forwarder,
        opened(url.format(forwarder.port), multi_statements=True) as database,
    ):
        database.open(warm=1)
        forwarder.forget()
        lease = database.lease()
        lease.round_trip([("SELECT %s", ("a",)), ("DO 1", ()), ("SELECT 2", ())])
        assert [command.text for command in forwarder.commands] == ["SELECT 'a';DO 1;SELECT 2;COMMIT"]
        assert lease.statements == 1


def test_each_statement_has_its_answer(packets: Database) -> None:
    """Answers come in order: rows of questions, and of all statements how many rows were meant."""
    answers = packets.lease().round_trip(
        [
            ("SELECT id, word FROM line WHERE id IN %s ORDER BY id", ((1, 3, 9),)),
            ("UPDATE line SET word = 'new' WHERE id > %s", (1,)),
            ("SELECT word FROM line WHERE id = 9", ()),
            ("DELETE FROM line WHERE id = %s", (2,)),
            ("DELETE FROM line WHERE id = %s", (2,)),
            ("INSERT INTO line VALUES (5, 'five'), (6, 'six')", ()),
            ("INSERT IGNORE INTO line VALUES (5, 'again')", ()),
        ]
    )
    assert answers[0] == Answer(((1, "one"), (3, "three")), 2)
    assert [answer.matched for answer in answers] == [2, 2, 0, 1, 0, 2, 0]
    assert [list(answer.rows) for answer in answers[1:]] == [[]] * 6
    assert words(packets) == ["one", "new", "five", "six"]


def test_a_row_that_stays_as_it_was_is_counted(packets: Database) -> None:
    """An UPDATE counts the rows that its condition met, not those that it changed."""
    assert packets.lease().round_trip([set_word(1, "one")]) == [Answer((), 1)]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("it's; DROP TABLE line; --", "it's; DROP TABLE line; --"),
        ("back\\slash\\", "back\\slash\\"),
        ("100 % of %s and %(x)s", "100 % of %s and %(x)s"),
        ("Zoë 🎧", "Zoë 🎧"),
        ("", ""),
        (None, None),
        (Decimal("-7.25"), Decimal("-7.25")),
        (-1, -1),
    ],
)
def test_a_parameter_is_a_value_and_nothing_else(packets: Database, value: object, found: object) -> None:
    """Whatever a value holds, it arrives whole, and is not read as SQL."""
    assert asked(packets, "SELECT %s", value) == ((found,),)
    assert words(packets) == ["one", "two", "three"]


def test_a_percent_sign_of_the_statement_is_written_twice(packets: Database) -> None:
    """Statements with and without parameters are written alike."""
    assert asked(packets, "SELECT word FROM line WHERE word LIKE 't%%' ORDER BY id") == (("two",), ("three",))


def test_an_error_in_the_middle_undoes_all(packets: Database) -> None:
    """Nothing of a packet holds of which one statement failed, and the connection goes on."""
    before = who_answers(packets)
    with pytest.raises(pymysql.ProgrammingError, match="nowhere"):
        packets.lease().round_trip(
            [set_word(1, "changed"), ("SELECT 1 FROM nowhere", ()), set_word(2, "never")]
        )
    assert words(packets) == ["one", "two", "three"]
    assert who_answers(packets) == before


def test_a_packet_is_one_transaction(packets: Database, mariadb: MariaDBServer, mariadb_url: str) -> None:
    """Others see nothing of a packet before its end, and all of it afterwards."""
    table = f"{mariadb_url.rpartition('/')[2]}.line"
    gate: Statement = ("SELECT GET_LOCK('gate', 60)", ())
    with opened(mariadb_url) as others, others.lease().connect() as other:
        other.exec_driver_sql(gate[0])
        thread, outcome = in_a_thread(
            lambda: packets.lease().round_trip([set_word(1, "changed"), gate, set_word(2, "too")])
        )
        await_row(mariadb, "SELECT id FROM information_schema.processlist WHERE state = 'User lock'")
        assert mariadb.execute(f"SELECT word FROM {table} WHERE id = 1") == [("one",)]
        other.exec_driver_sql("SELECT RELEASE_LOCK('gate')")
    thread.join(PATIENCE_S)
    assert outcome == [[Answer((), 1), Answer(((1,),), 1), Answer((), 1)]]
    assert words(packets) == ["changed", "too", "three"]


def in_a_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Begin something in a thread, and give it and where its result or error will be."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def await_row(server: MariaDBServer, question: str) -> object:
    """Ask until there is a row whose first value is not 0, and give that value."""
    give_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_s:
        rows = server.execute(question)
        if rows and rows[0][0]:
            return rows[0][0]
        # InnoDB shows its transactions as they were until nobody has asked for a tenth of a second.
        time.sleep(0.2)
    raise TimeoutError(question)


def test_a_victim_of_a_deadlock_may_try_again(
    packets: Database, mariadb: MariaDBServer, mariadb_url: str
) -> None:
    """Whom the server sacrifices loses all of the packet, for sure, and keeps the connection."""
    before = who_answers(packets)
    # No lock is waited for longer than 3 s where packets are sent: the machine may stand still meanwhile.
    packets.lease().round_trip([("SET SESSION innodb_lock_wait_timeout = 60", ())])
    with opened(mariadb_url) as others, others.lease().connect() as other:
        other.exec_driver_sql("INSERT INTO line SELECT seq, 'heavy' FROM seq_100_to_200")
        other.exec_driver_sql("UPDATE line SET word = 'theirs' WHERE id = 1")
        thread, outcome = in_a_thread(
            lambda: packets.lease().round_trip(
                [set_word(3, "ours"), set_word(2, "ours"), set_word(1, "ours")]
            )
        )
        await_row(mariadb, LOCK_WAITS)
        # They have written more than we have, so the server takes us.
        other.exec_driver_sql("UPDATE line SET word = 'theirs' WHERE id = 2")
        other.rollback()
    thread.join(PATIENCE_S)
    (error,) = outcome
    assert isinstance(error, TryAgain)
    assert "Deadlock" in str(error)
    assert not error.in_doubt
    assert words(packets) == ["one", "two", "three"]
    assert who_answers(packets) == before


def test_who_waited_too_long_for_a_lock_may_try_again(packets: Database, mariadb_url: str) -> None:
    """A lock that does not come undoes the whole packet, not only the statement that waited."""
    packets.lease().round_trip([("SET SESSION innodb_lock_wait_timeout = 0", ())])
    with opened(mariadb_url) as others, others.lease().connect() as other:
        other.exec_driver_sql("UPDATE line SET word = 'theirs' WHERE id = 1")
        with pytest.raises(TryAgain, match="Lock wait timeout") as caught:
            packets.lease().round_trip([set_word(3, "ours"), set_word(1, "ours")])
    assert not caught.value.in_doubt
    assert words(packets) == ["one", "two", "three"]


def test_a_lost_connection_leaves_a_doubt_and_serves_nobody(packets: Database) -> None:
    """Who loses the connection in a packet may try again, with care; others get a new connection."""
    before = who_answers(packets)
    with pytest.raises(TryAgain) as caught:
        packets.lease().round_trip([set_word(1, "lost"), LOSS, set_word(2, "never")])
    assert caught.value.in_doubt
    assert words(packets) == ["one", "two", "three"]
    assert who_answers(packets) != before


def test_a_connection_killed_from_outside_leaves_a_doubt(packets: Database, mariadb: MariaDBServer) -> None:
    """An operator's KILL in the middle of a statement is a lost connection, not an error of the statement."""
    before = who_answers(packets)
    thread, outcome = in_a_thread(lambda: packets.lease().round_trip([("SELECT SLEEP(60)", ())]))
    await_row(
        mariadb, f"SELECT id FROM information_schema.processlist WHERE id = {before} AND state = 'User sleep'"
    )
    mariadb.execute(f"KILL {before}")
    thread.join(PATIENCE_S)
    (error,) = outcome
    assert isinstance(error, TryAgain)
    assert error.in_doubt
    assert who_answers(packets) != before


def test_a_slow_packet_is_cut_off(mariadb_url: str) -> None:
    """An answer that does not come in time costs the connection, and leaves a doubt."""
    with opened(mariadb_url, pool_size=1, multi_statements=True, read_timeout_s=SHORT_S) as database:
        before = who_answers(database)
        with pytest.raises(TryAgain, match="timed out") as caught:
            asked(database, "SELECT SLEEP(60)")
        assert caught.value.in_doubt
        assert who_answers(database) != before


def test_a_server_that_is_away_takes_no_packet(mariadb: MariaDBServer, packets: Database) -> None:
    """A packet for a stopped server is refused; who was connected learns it without a doubt."""
    mariadb.stop()
    try:
        with pytest.raises(DatabaseUnavailable, match="Connection refused"):
            asked(packets, "SELECT 1")
    finally:
        mariadb.start()


def test_what_cannot_be_written_as_sql_costs_no_place(packets: Database) -> None:
    """A mistake of a handler, such as a missing parameter, is its own, and others are served."""
    with pytest.raises(pymysql.ProgrammingError, match="not enough arguments"):
        asked(packets, "SELECT %s, %s", 1)
    assert words(packets) == ["one", "two", "three"]


def test_a_packet_counts_into_the_time_of_the_database(mariadb_url: str, clock: ManualClock) -> None:
    """A lease counts a packet as one statement, good or bad, with the time that it took."""
    with opened(mariadb_url, clock=clock, multi_statements=True) as database:
        database.open(warm=1)
        lease = database.lease()
        lease.round_trip([("SELECT 1", ()), ("SELECT 2", ())])
        with pytest.raises(pymysql.Error):
            lease.round_trip([("SELECT nothing FROM nowhere", ())])
        assert (lease.statements, lease.database_s) == (2, 0.0)
        assert lease.release() == 0


def test_a_single_statement_is_all_that_others_may_send(mariadb_url: str) -> None:
    """Unless a database is told otherwise, its server refuses a packet of two, and does neither."""
    with opened(mariadb_url) as database:
        with database.lease().begin() as connection:
            connection.exec_driver_sql("CREATE TABLE line (id INT PRIMARY KEY)")
        with pytest.raises(pymysql.ProgrammingError, match="DELETE FROM line"):
            database.lease().round_trip([("INSERT INTO line VALUES (1)", ()), ("DELETE FROM line", ())])
        with database.lease().connect() as connection:
            assert connection.exec_driver_sql("SELECT COUNT(*) FROM line").scalar() == 0
            with pytest.raises(exc.ProgrammingError, match="DELETE FROM line"):
                connection.exec_driver_sql("SELECT 1; DELETE FROM line")


# ---- what a returned connection is sent


def test_a_connection_without_a_transaction_is_not_rolled_back(packets: Database) -> None:
    """Neither a packet nor a committed transaction costs another round trip for a ROLLBACK."""
    before = asked(packets, ROLLBACKS)
    packets.lease().round_trip([set_word(1, "changed"), ("SELECT * FROM line", ())])
    with packets.lease().begin() as connection:
        connection.exec_driver_sql("UPDATE line SET word = 'changed' WHERE id = 2")
    packets.lease().connect().close()
    assert asked(packets, ROLLBACKS) == before
    assert words(packets) == ["changed", "changed", "three"]


def test_a_forgotten_transaction_is_rolled_back(packets: Database) -> None:
    """What a handler did beside SQLAlchemy, on the driver's own connection, is undone when it goes back."""
    before = who_answers(packets)
    with packets.lease().connect() as connection:
        connection.connection.cursor().execute("UPDATE line SET word = 'forgotten'")
    assert words(packets) == ["one", "two", "three"]
    assert who_answers(packets) == before


def test_a_failed_packet_is_rolled_back_once(packets: Database) -> None:
    """A packet with an error costs one ROLLBACK, and nothing later costs another."""
    ((before,),) = asked(packets, ROLLBACKS)
    with pytest.raises(pymysql.Error):
        packets.lease().round_trip([set_word(1, "lost"), ("SELECT 1 FROM nowhere", ())])
    ((after,),) = asked(packets, ROLLBACKS)
    assert int(after) == int(before) + 1


# ---- the SQL mode


def test_every_connection_has_the_sql_mode(mariadb_url: str) -> None:
    """All connections of a pool have it, also those made after others were lost."""
    with opened(
        mariadb_url, pool_size=2, sql_mode="NO_ENGINE_SUBSTITUTION", multi_statements=True
    ) as database:
        for _ in range(2):
            lease = database.lease()
            modes = [lease.connect().exec_driver_sql("SELECT @@sql_mode").scalar() for _ in range(2)]
            lease.release()
            assert modes == ["NO_ENGINE_SUBSTITUTION"] * 2
            for _ in range(2):
                with pytest.raises(TryAgain):
                    database.lease().round_trip([LOSS])


def test_without_a_sql_mode_the_servers_own_holds(mariadb: MariaDBServer, mariadb_url: str) -> None:
    """A database that says nothing about it has what the server gives to everybody."""
    with opened(mariadb_url) as database, database.lease().connect() as connection:
        mode = connection.exec_driver_sql("SELECT @@sql_mode").scalar()
    assert [(mode,)] == mariadb.execute("SELECT @@GLOBAL.sql_mode")


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
