"""Tests of several calls in one transaction, on every kind of database that we promise to treat alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import gevent
import pymysql
import pytest
from mariadb import MariaDBServer
from sqlalchemy import Connection, exc, text

from fastagi_pool.database import DatabaseSettings, Lease, TryAgain
from fastagi_pool.errors import DatabaseBusy
from fastagi_pool.together import Together

_CREATE = "CREATE TABLE notes (number INTEGER PRIMARY KEY, words VARCHAR(80))"
#: The server shows its transactions as they were a moment ago to whoever asks more often.
#: Source: MariaDB, information_schema.INNODB_TRX.
_FRESH_S = 0.15
_LONG_AGO_S = 1_500_000_000.25


class _HandlerFailed(Exception):
    """What a handler may raise."""


@pytest.fixture
def database(database_url: str) -> Iterator[Together]:
    """Give an open database with an empty table."""
    is_mariadb = database_url.startswith("mysql")
    with closing(Together(DatabaseSettings("main", (database_url,), multi_statements=is_mariadb))) as each:
        with each.lease().begin() as connection:
            connection.execute(text(_CREATE))
        yield each


@pytest.fixture
def packets(mariadb_url: str) -> Iterator[Together]:
    """Give an open MariaDB database with an empty table, for packets of statements."""
    with closing(Together(DatabaseSettings("main", (mariadb_url,), multi_statements=True))) as each:
        with each.lease().begin() as connection:
            connection.execute(text(_CREATE))
        yield each


def _note(connection: Connection, number: int) -> None:
    connection.execute(text("INSERT INTO notes VALUES (:number, 'x')"), {"number": number})


def _note_and_fail(lease: Lease, number: int) -> None:
    with lease.begin() as connection:
        _note(connection, number)
        raise _HandlerFailed


def _numbers(database: Together) -> list[int]:
    with database.lease().connect() as connection:
        return list(connection.execute(text("SELECT number FROM notes ORDER BY number")).scalars())


def test_what_is_committed_inside_holds_with_the_whole(database: Together) -> None:
    """Transactions of several leases are one: nobody else sees a row before the end, and all after it."""
    with database.transaction():
        for number in (1, 2):
            with database.lease().begin() as connection:
                _note(connection, number)
        if database.engine.dialect.name != "sqlite":
            with database.engine.connect() as other:
                assert other.execute(text("SELECT COUNT(*) FROM notes")).scalar() == 0
    assert _numbers(database) == [1, 2]
    assert database.facts().in_use == 0


def test_an_exception_rolls_everything_back(database: Together) -> None:
    """What ends the whole leaves nothing of any part, and the database usable."""

    def fail() -> None:
        with database.transaction():
            with database.lease().begin() as connection:
                _note(connection, 1)
            raise _HandlerFailed

    with pytest.raises(_HandlerFailed):
        fail()
    assert _numbers(database) == []
    assert database.facts().in_use == 0


def test_a_part_that_fails_fails_alone(database: Together) -> None:
    """An exception in ``begin()`` undoes that part, and neither the one before nor the one after."""
    with database.transaction():
        with database.lease().begin() as connection:
            _note(connection, 1)
        with pytest.raises(_HandlerFailed):
            _note_and_fail(database.lease(), 2)
        with database.lease().begin() as connection:
            _note(connection, 3)
    assert _numbers(database) == [1, 3]


def test_a_row_that_is_there_already_is_told_as_ever(database: Together) -> None:
    """A statement that the database refuses raises the same error as without a whole, and breaks nothing."""
    with database.transaction() as whole:
        with database.lease().begin() as connection:
            _note(connection, 1)
        with pytest.raises(exc.IntegrityError), database.lease().begin() as connection:
            _note(connection, 1)
        assert not whole.broken
    assert _numbers(database) == [1]


def test_without_commit_nothing_holds(database: Together) -> None:
    """A connection that is closed without a commit leaves nothing, as outside of a whole."""
    with database.transaction():
        with database.lease().connect() as connection:
            _note(connection, 1)
        with database.lease().connect() as connection:
            _note(connection, 2)
            connection.commit()
    assert _numbers(database) == [2]


def test_transactions_may_lie_in_each_other(database: Together) -> None:
    """Of two transactions of one call the inner one is undone alone."""
    with database.transaction():
        lease = database.lease()
        with lease.begin() as outer:
            _note(outer, 1)
            with pytest.raises(_HandlerFailed):
                _note_and_fail(lease, 2)
            _note(outer, 3)
    assert _numbers(database) == [1, 3]


def test_what_a_call_leaves_open_is_taken_back(database: Together) -> None:
    """The release of a lease undoes what was not committed, and the others go on."""
    with database.transaction():
        lease = database.lease()
        _note(lease.connect(), 1)
        assert lease.release() == 1
        with database.lease().begin() as connection:
            _note(connection, 2)
    assert _numbers(database) == [2]


@pytest.mark.mariadb
def test_a_packet_holds_as_a_whole_or_not_at_all(packets: Together) -> None:
    """Of a packet whose last statement is refused nothing is left, and what came before it stays."""
    insert = "INSERT INTO notes VALUES (%s, 'x')"
    with packets.transaction():
        packets.lease().round_trip([(insert, (1,))])
        with pytest.raises(pymysql.err.IntegrityError):
            packets.lease().round_trip([(insert, (2,)), (insert, (1,))])
        answers = packets.lease().round_trip([(insert, (3,)), ("SELECT number FROM notes", ())])
        assert sorted(answers[1].rows) == [(1,), (3,)]
        assert answers[0].matched == 1
    assert _numbers(packets) == [1, 3]


@pytest.mark.mariadb
def test_now_is_the_time_of_the_call_and_of_nobody_afterwards(packets: Together) -> None:
    """NOW() is what the whole was told, for packets and for transactions, and right after the end."""
    question = "SELECT UNIX_TIMESTAMP(NOW(2))"

    def now_of_packet() -> float:
        return float(packets.lease().round_trip([(question, ())])[0].rows[0][0])

    with packets.transaction() as whole:
        whole.at_time(_LONG_AGO_S)
        assert now_of_packet() == _LONG_AGO_S
        whole.at_time(_LONG_AGO_S + 1)
        with packets.lease().begin() as connection:
            assert float(connection.execute(text(question)).scalar_one()) == _LONG_AGO_S + 1
    assert now_of_packet() > _LONG_AGO_S + 1000

    def fail() -> None:
        with packets.transaction() as whole:
            whole.at_time(_LONG_AGO_S)
            now_of_packet()
            raise _HandlerFailed

    with pytest.raises(_HandlerFailed):
        fail()
    assert now_of_packet() > _LONG_AGO_S + 1000


@pytest.mark.mariadb
def test_greenlets_of_a_call_take_turns(packets: Together) -> None:
    """Statements of several greenlets on the one connection each get their own answer."""

    def ask(number: int) -> int:
        answers = packets.lease().round_trip([("SELECT %s + SLEEP(0)", (number,))])
        with packets.lease().connect() as connection:
            again = connection.execute(text("SELECT :number"), {"number": number}).scalar_one()
        return int(answers[0].rows[0][0]) if again == number else -1

    with packets.transaction():
        asking = [gevent.spawn(ask, number) for number in range(20)]
        assert [each.get() for each in asking] == list(range(20))


@pytest.mark.mariadb
def test_a_lost_connection_is_never_taken_for_the_end_of_a_part(
    packets: Together, mariadb: MariaDBServer
) -> None:
    """After the connection was lost every statement is refused, and the end says that nothing holds."""

    def note(number: int) -> None:
        with packets.lease().begin() as connection:
            _note(connection, number)

    def lose() -> None:
        with packets.transaction() as whole:
            note(1)
            with packets.lease().connect() as connection:
                number = connection.execute(text("SELECT CONNECTION_ID()")).scalar_one()
            mariadb.execute(f"KILL {number}")
            with pytest.raises(exc.DBAPIError):
                note(2)
            assert whole.broken
            assert whole.passes
            with pytest.raises(DatabaseBusy):
                note(3)
            with pytest.raises(DatabaseBusy):
                packets.lease().round_trip([("INSERT INTO notes VALUES (4, 'x')", ())])

    with pytest.raises(TryAgain):
        lose()
    assert _numbers(packets) == []
    assert packets.facts().in_use == 0


@pytest.mark.mariadb
@pytest.mark.parametrize("by_packet", [True, False])
def test_a_deadlock_ends_the_whole(packets: Together, by_packet: bool) -> None:
    """A victim of a deadlock has lost all parts: a handler that begins anew is refused, and nothing holds."""
    with packets.lease().begin() as connection:
        _note(connection, 1)
        _note(connection, 2)
    change = "UPDATE notes SET words = 'y' WHERE number = {}"

    def do(number: int) -> None:
        if by_packet:
            packets.lease().round_trip([(change.format(number), ())])
        else:
            with packets.lease().begin() as connection:
                connection.execute(text(change.format(number)))

    def lose_to(other: Connection) -> None:
        with packets.transaction() as whole:
            do(1)
            blocker = gevent.get_hub().threadpool.spawn(other.execute, text(change.format(1)))
            _await_lock_wait(packets)
            with pytest.raises((DatabaseBusy, exc.DBAPIError)):
                do(2)
            blocker.get()
            assert whole.broken
            with pytest.raises(DatabaseBusy):
                do(1)

    with packets.engine.connect() as other:
        # Where packets are sent it is 3 s, for which the machine may stand still.
        other.execute(text("SET SESSION innodb_lock_wait_timeout = 60"))
        # Heavier than ours, so that the server chooses us.
        for number in range(10, 30):
            _note(other, number)
        other.execute(text(change.format(2)))
        with pytest.raises(TryAgain) as caught:
            lose_to(other)
        assert not caught.value.in_doubt
        other.rollback()
    with packets.lease().connect() as connection:
        assert set(connection.execute(text("SELECT words FROM notes")).scalars()) == {"x"}


def _await_lock_wait(database: Together) -> None:
    """Wait until somebody on the server waits for a lock."""
    waiting = text("SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'")
    with database.engine.connect() as looking, gevent.Timeout(30):
        while not looking.execute(waiting).scalar():
            gevent.sleep(_FRESH_S)
