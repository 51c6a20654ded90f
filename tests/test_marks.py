"""fastagi_pool.marks: what the table of marks promises, on SQLite and on a real MariaDB."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

import pytest
from conftest import ManualClock
from mariadb import PASSWORD, MariaDBServer
from sqlalchemy import Connection, create_engine, exc, text

from fastagi_pool.database import Database, DatabaseSettings
from fastagi_pool.errors import OperatorError
from fastagi_pool.marks import FORGOTTEN_AT_ONCE, MAX_MARK_CHARS, TABLE, Marks

MARKS: Final = Marks("node-1")
FIRST, SECOND = MARKS.mark_of("5f-a-1"), MARKS.mark_of("5f-a-2")
HOUR_S: Final = 3600.0


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database of each kind, without the table."""
    database = Database(DatabaseSettings("main", (database_url,)))
    yield database
    database.close()


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """A connection to it, with the table there."""
    lease = database.lease()
    with lease.connect() as connection:
        MARKS.create(connection)
        connection.commit()
        yield connection
    lease.release()


def test_a_mark_names_its_node() -> None:
    """Calls of two nodes never have the same mark, and none is too long for the table."""
    assert FIRST == "node-1/5f-a-1"
    assert Marks("node-2").mark_of("5f-a-1") != FIRST
    longest = Marks("n" * (MAX_MARK_CHARS // 2 - 1)).mark_of("r" * (MAX_MARK_CHARS // 2))
    assert len(longest) == MAX_MARK_CHARS
    with pytest.raises(OperatorError, match="59 characters"):
        Marks("n" * (MAX_MARK_CHARS // 2))


def test_what_was_written_is_known(connection: Connection) -> None:
    """Of the marks that are asked for, exactly those that were committed are known."""
    MARKS.write(connection, [FIRST])
    connection.commit()
    assert MARKS.known(connection, [FIRST, SECOND]) == {FIRST}
    assert MARKS.known(connection, []) == set()


def test_many_are_one_statement(database: Database, connection: Connection) -> None:
    """A batch of marks costs one round trip, however many they are."""
    wanted = [MARKS.mark_of(f"5f-a-{number:x}") for number in range(200)]
    before = database.statements
    MARKS.write(connection, wanted)
    assert database.statements == before + 1
    assert MARKS.known(connection, wanted) == set(wanted)


def test_a_mark_shares_the_fate_of_its_transaction(connection: Connection) -> None:
    """A mark whose transaction is rolled back is not there: the table has transactions."""
    MARKS.write(connection, [FIRST])
    connection.rollback()
    assert MARKS.known(connection, [FIRST]) == set()


def test_nobody_writes_a_mark_twice(connection: Connection) -> None:
    """A mark that is there is refused, and the others with it."""
    MARKS.write(connection, [FIRST])
    connection.commit()
    with pytest.raises(exc.IntegrityError):
        MARKS.write(connection, [SECOND, FIRST])
    connection.rollback()
    assert MARKS.known(connection, [FIRST, SECOND]) == {FIRST}


def test_capital_letters_count(connection: Connection) -> None:
    """Marks that differ in nothing but capitals are two, whatever the server's collation is."""
    MARKS.write(connection, [FIRST, FIRST.upper()])
    assert MARKS.known(connection, [FIRST]) == {FIRST}


def test_the_table_may_be_there(connection: Connection) -> None:
    """To create it again, as every worker does, changes nothing."""
    MARKS.write(connection, [FIRST])
    connection.commit()
    MARKS.create(connection)
    assert MARKS.known(connection, [FIRST]) == {FIRST}


def test_old_marks_are_forgotten(connection: Connection, clock: ManualClock) -> None:
    """Those that are older than the age go, younger ones stay."""
    clock.now_s = 1.7e9
    marks = Marks("node-1", clock)
    marks.write(connection, [FIRST])
    clock.now_s += 10 * HOUR_S
    marks.write(connection, [SECOND])
    clock.now_s += HOUR_S
    assert marks.forget_before(connection, 12 * HOUR_S) == 0
    assert marks.forget_before(connection, 2 * HOUR_S) == 1
    assert marks.known(connection, [FIRST, SECOND]) == {SECOND}


def test_so_many_are_forgotten_at_once(connection: Connection, clock: ManualClock) -> None:
    """One round deletes a bounded number, and says that there may be more."""
    assert FORGOTTEN_AT_ONCE < 10_000
    clock.now_s = 1.7e9
    marks = Marks("node-1", clock)
    marks.write(connection, [marks.mark_of(f"{number:x}") for number in range(FORGOTTEN_AT_ONCE + 1)])
    clock.now_s += HOUR_S
    assert marks.forget_before(connection, 1.0) == FORGOTTEN_AT_ONCE
    assert marks.forget_before(connection, 1.0) == 1


# ---- what only MariaDB does


@pytest.fixture
def mariadb_database(mariadb_url: str) -> Iterator[Database]:
    """A MariaDB database with the table."""
    database = Database(DatabaseSettings("main", (mariadb_url,)))
    with database.lease().begin() as connection:
        MARKS.create(connection)
    yield database
    database.close()


@pytest.mark.mariadb
def test_the_age_is_the_callers(mariadb_database: Database, clock: ManualClock) -> None:
    """A mark that a replay writes, with the server's clock set back, is as young as the replay."""
    clock.now_s = 1.7e9
    marks = Marks("node-1", clock)
    with mariadb_database.lease().begin() as connection:
        connection.execute(text(f"SET timestamp = {clock.now_s - 100 * HOUR_S}"))
        marks.write(connection, [FIRST])
        assert marks.forget_before(connection, HOUR_S) == 0
        connection.execute(text("SET timestamp = DEFAULT"))


@pytest.mark.mariadb
def test_the_table_has_transactions_whatever_the_default_is(mariadb_url: str) -> None:
    """On a server that makes MyISAM tables by default, as VICIdial's do, the table of marks is InnoDB."""
    database = Database(DatabaseSettings("main", (mariadb_url,)))
    with database.lease().begin() as connection:
        connection.execute(text("SET default_storage_engine = MyISAM"))
        MARKS.create(connection)
        MARKS.write(connection, [FIRST])
        connection.rollback()
    with database.lease().begin() as connection:
        assert MARKS.known(connection, [FIRST]) == set()
    database.close()


@pytest.mark.mariadb
def test_a_table_without_transactions_is_refused(mariadb_database: Database) -> None:
    """A table that somebody made of MyISAM would let calls be done twice: it is refused, with the remedy."""
    with mariadb_database.lease().begin() as connection:
        connection.execute(text(f"ALTER TABLE {TABLE} ENGINE = MyISAM"))
        with pytest.raises(OperatorError, match=f"ALTER TABLE {TABLE} ENGINE=InnoDB"):
            MARKS.create(connection)


@pytest.mark.mariadb
def test_without_the_right_to_create(mariadb: MariaDBServer, mariadb_url: str) -> None:
    """Who may not create the table is told the statement, and needs no such right once the table is there."""
    name = mariadb_url.rpartition("/")[2]
    mariadb.execute(f"CREATE USER clerk@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'")
    mariadb.execute(f"GRANT SELECT, INSERT, DELETE ON {name}.* TO clerk@'127.0.0.1'")
    database = Database(DatabaseSettings("main", (mariadb_url.replace("//pool:", "//clerk:"),)))
    try:
        with database.lease().begin() as connection:
            with pytest.raises(OperatorError, match="grant CREATE, or create it: CREATE TABLE") as caught:
                MARKS.create(connection)
            statement = str(caught.value).partition("create it: ")[2]
            mariadb.execute(statement.replace(TABLE, f"{name}.{TABLE}"))
            MARKS.create(connection)
            MARKS.write(connection, [FIRST])
    finally:
        database.close()
        mariadb.execute("DROP USER clerk@'127.0.0.1'")


@pytest.mark.mariadb
def test_to_write_waits_for_what_is_in_doubt(
    mariadb: MariaDBServer, mariadb_url: str, mariadb_database: Database
) -> None:
    """Who writes a mark that another transaction has not committed yet waits, and then learns of it."""
    outcomes: list[str] = []

    def write_late() -> None:
        engine = create_engine(mariadb_url)
        try:
            with engine.begin() as second:
                MARKS.write(second, [FIRST])
            outcomes.append("written twice")
        except exc.IntegrityError:
            outcomes.append("it was done")
        finally:
            engine.dispose()

    late = threading.Thread(target=write_late)
    blocked = "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'INSERT INTO fastagi%'"
    with mariadb_database.lease().begin() as first:
        MARKS.write(first, [FIRST])
        late.start()
        while mariadb.execute(blocked) != [(1,)]:
            assert late.is_alive()
    late.join()
    assert outcomes == ["it was done"]


@pytest.mark.mariadb
def test_to_forget_keeps_nobody_waiting(mariadb_database: Database, clock: ManualClock) -> None:
    """While old marks are being deleted, new ones are written without a wait."""
    clock.now_s = 1.7e9
    marks = Marks("node-1", clock)
    lease = mariadb_database.lease()
    with lease.begin() as connection:
        marks.write(connection, [FIRST])
    clock.now_s += 2 * HOUR_S
    with lease.begin() as forgetting, lease.begin() as writing:
        assert marks.forget_before(forgetting, HOUR_S) == 1
        writing.execute(text("SET innodb_lock_wait_timeout = 1"))
        marks.write(writing, [SECOND, "node-0/5f-a-9"])
