"""fastagi_pool.executor on a real MariaDB: what is done again, in which form, and when it gives up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Final

import gevent
import pymysql
import pytest
from mariadb import MariaDBServer
from ports import closed_port

from fastagi_pool.database import Answer, Database, DatabaseSettings, Statement
from fastagi_pool.errors import DatabaseBusy, DatabaseUnavailable
from fastagi_pool.executor import RETRY_PAUSES_S, Executor

pytestmark = pytest.mark.mariadb

#: For how many repetitions the executors here have patience.
REPETITIONS: Final = 3

DEADLOCK: Final = "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'Deadlock found'"
LOSS: Final = "KILL CONNECTION_ID()"
BUG: Final = "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no such thing'"

#: ``attempts`` forgets nothing, as its table has no transactions.
_TABLES: Final = (
    "CREATE TABLE attempts (id INT AUTO_INCREMENT PRIMARY KEY) ENGINE = MyISAM",
    "CREATE TABLE steps (id INT AUTO_INCREMENT PRIMARY KEY, step VARCHAR(20)) ENGINE = InnoDB",
)


class Playground:
    """A database in which a statement fails as often, and in the ways, that a test wants.

    Attributes:
        executor: Carries out statements there, without pauses.
    """

    def __init__(self, url: str) -> None:
        self.database = Database(DatabaseSettings("main", (url,), multi_statements=True))
        self.executor = Executor(self.database, [0.0] * REPETITIONS)
        for table in _TABLES:
            self.ask(table)

    def ask(self, sql: str) -> Sequence[tuple[object, ...]]:
        """Carry out one statement, beside the executor."""
        return self.database.lease().round_trip([(sql, ())])[0].rows

    def make_trouble(self, *troubles: str) -> None:
        """Let ``CALL trouble()`` fail so many times, in these ways, and succeed ever after."""
        cases = "".join(f"WHEN {number} THEN {what}; " for number, what in enumerate(troubles, start=1))
        body = f"INSERT INTO attempts () VALUES (); CASE LAST_INSERT_ID() {cases} ELSE DO 0; END CASE;"
        self.ask(f"CREATE PROCEDURE trouble() BEGIN {body} END")

    @property
    def attempts(self) -> int:
        """How often ``CALL trouble()`` was carried out."""
        return len(self.ask("SELECT id FROM attempts"))

    @property
    def steps(self) -> list[object]:
        """The steps that were written, in their order."""
        return [row[0] for row in self.ask("SELECT step FROM steps ORDER BY id")]


@pytest.fixture
def playground(mariadb_url: str) -> Iterator[Playground]:
    """A database where statements fail when they are told to."""
    playground = Playground(mariadb_url)
    yield playground
    playground.database.close()


TROUBLE: Final[Statement] = ("CALL trouble()", ())
COMMIT: Final[Statement] = ("COMMIT", ())


def write(step: str) -> Statement:
    """Make the statement that writes a step."""
    return "INSERT INTO steps (step) VALUES (%s)", (step,)


def write_unless_there(step: str) -> Statement:
    """Make the second form of :func:`write`."""
    sql = (
        "INSERT INTO steps (step) SELECT %s FROM DUAL WHERE NOT EXISTS (SELECT 1 FROM steps WHERE step = %s)"
    )
    return sql, (step, step)


def test_what_goes_well_is_done_once(playground: Playground) -> None:
    """Answers come in the order of the statements, and nothing is in doubt or done again."""
    done = playground.executor.run(
        [write("a"), ("SELECT step FROM steps WHERE step = %s", ("a",)), write("b")]
    )
    assert done.answers == [Answer((), 1), Answer((("a",),), 1), Answer((), 1)]
    assert not done.in_doubt
    assert playground.executor.repetitions == 0
    assert playground.steps == ["a", "b"]


def test_a_victim_is_done_again_from_its_beginning(playground: Playground) -> None:
    """After a deadlock all statements of the packet are carried out again, in order, and hold once."""
    playground.make_trouble(DEADLOCK, DEADLOCK)
    done = playground.executor.run([write("a"), TROUBLE, write("b")], repeated=[write("wrong")])
    assert playground.steps == ["a", "b"]
    assert (playground.attempts, playground.executor.repetitions, done.in_doubt) == (3, 2, False)


def test_what_may_have_been_done_has_a_second_form(playground: Playground) -> None:
    """After a lost connection the second form looks first: what was committed is not written again."""
    playground.make_trouble(LOSS)
    done = playground.executor.run([write("a"), COMMIT, TROUBLE], repeated=[write_unless_there("a")])
    assert playground.steps == ["a"]
    assert (playground.executor.repetitions, done.in_doubt, done.answers) == (1, True, [Answer((), 0)])


def test_what_was_not_done_is_done_by_the_second_form(playground: Playground) -> None:
    """After a lost connection the second form writes what the first had no time to commit."""
    playground.make_trouble(LOSS)
    done = playground.executor.run([write("a"), TROUBLE], repeated=[write_unless_there("a")])
    assert playground.steps == ["a"]
    assert (done.in_doubt, done.answers) == (True, [Answer((), 1)])


def test_without_a_second_form_the_first_is_repeated(playground: Playground) -> None:
    """Statements that bear repetition are carried out again as they are, and the doubt is told."""
    playground.make_trouble(LOSS, LOSS)
    done = playground.executor.run([write("a"), TROUBLE, write("b")])
    assert playground.steps == ["a", "b"]
    assert (len(done.answers), playground.executor.repetitions, done.in_doubt) == (3, 2, True)


@pytest.mark.parametrize("troubles", [(LOSS, DEADLOCK), (DEADLOCK, LOSS)])
def test_a_doubt_stays(playground: Playground, troubles: tuple[str, str]) -> None:
    """Once a connection was lost a deadlock, before or after it, does not bring the first form back."""
    playground.make_trouble(*troubles)
    done = playground.executor.run([write("first"), TROUBLE], repeated=[TROUBLE, write("second")])
    assert done.in_doubt
    assert playground.steps == ["second"]
    assert playground.attempts == 3


@pytest.mark.parametrize(("trouble", "reason"), [(DEADLOCK, "Deadlock found"), (LOSS, "")])
def test_patience_is_bounded(playground: Playground, trouble: str, reason: str) -> None:
    """What fails again and again is given up with the server's reason, and holds in no part."""
    playground.make_trouble(*[trouble] * 20)
    with pytest.raises(DatabaseBusy, match=f"'main'.*{reason}"):
        playground.executor.run([write("a"), TROUBLE])
    assert playground.attempts == 1 + REPETITIONS
    assert playground.steps == []


def test_after_giving_up_others_are_served(playground: Playground) -> None:
    """Connections are sound, and all places free, after statements that were given up."""
    playground.make_trouble(*[LOSS, DEADLOCK] * 2)
    with pytest.raises(DatabaseBusy):
        playground.executor.run([write("a"), TROUBLE])
    lease = playground.database.lease()
    for _ in range(playground.database.settings.pool_size):
        assert lease.connect().exec_driver_sql("SELECT 1").scalar() == 1
    lease.release()


def test_a_lasting_error_is_told_at_once(playground: Playground) -> None:
    """What would fail again is not done again, and nothing of its packet holds."""
    playground.make_trouble(BUG)
    with pytest.raises(pymysql.Error, match="no such thing"):
        playground.executor.run([write("a"), TROUBLE, write("b")])
    assert (playground.attempts, playground.executor.repetitions) == (1, 0)
    assert playground.steps == []


def test_a_lasting_error_of_the_second_form_is_told_too(playground: Playground) -> None:
    """A repetition that cannot work raises what is wrong with it."""
    playground.make_trouble(LOSS)
    with pytest.raises(pymysql.ProgrammingError, match="nowhere"):
        playground.executor.run([TROUBLE], repeated=[("SELECT nothing FROM nowhere", ())])


def test_pauses_grow_from_nothing(playground: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first repetition follows at once, and all pauses come, each before its repetition."""
    paused_s: list[float] = []
    monkeypatch.setattr(gevent, "sleep", paused_s.append)
    playground.make_trouble(*[DEADLOCK] * 20)
    with pytest.raises(DatabaseBusy):
        Executor(playground.database).run([TROUBLE])
    assert tuple(paused_s) == RETRY_PAUSES_S
    assert paused_s[0] == 0.0
    assert sum(paused_s) < 5.0


def test_a_server_that_is_away_is_told() -> None:
    """Who has begun nothing gets to know at once that the server is away; who has, after all pauses."""
    with closed_port() as port:
        url = f"mysql+pymysql://pool@127.0.0.1:{port}/calls"
        database = Database(DatabaseSettings("main", (url,), multi_statements=True))
        with pytest.raises(DatabaseUnavailable, match="Connection refused"):
            Executor(database, [60.0]).run([("SELECT 1", ())])
        patient = Executor(database, [0.0] * 3)
        with pytest.raises(DatabaseUnavailable, match="Connection refused"):
            patient.run([("SELECT 1", ())], waits=True)
        assert patient.repetitions == 3


@pytest.fixture
def hurried(playground: Playground) -> Executor:
    """What carries out statements of calls that would be done again later, in the playground's database."""
    return Executor(playground.database, [0.0] * REPETITIONS, waits_for_server=False)


def test_a_lost_connection_is_tried_once_more(playground: Playground, hurried: Executor) -> None:
    """Who is done again later still outlasts one lost connection, by the second form."""
    playground.make_trouble(LOSS)
    done = hurried.run([write("a"), COMMIT, TROUBLE], repeated=[write_unless_there("a")])
    assert (playground.steps, done.in_doubt, hurried.repetitions) == (["a"], True, 1)


def test_who_is_done_again_later_waits_for_no_server(playground: Playground, hurried: Executor) -> None:
    """Connections that are lost one after another are a server that is away, and that is told at once."""
    playground.make_trouble(*[LOSS] * 20)
    with pytest.raises(DatabaseUnavailable, match="'main'"):
        hurried.run([TROUBLE], waits=True)
    assert playground.attempts == 2


@pytest.mark.parametrize("trouble", [LOSS, DEADLOCK])
def test_a_server_that_is_known_to_be_away_is_not_tried(
    playground: Playground, hurried: Executor, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """After a failure nothing is repeated where nobody would answer."""
    monkeypatch.setattr(Database, "available", False)
    playground.make_trouble(trouble)
    with pytest.raises(DatabaseUnavailable):
        hurried.run([TROUBLE], waits=True)
    assert playground.attempts == 1


def test_a_deadlock_is_repeated_all_the_same(playground: Playground, hurried: Executor) -> None:
    """Who does not wait for a server repeats what a deadlock undid, as often as others, and then gives up."""
    playground.make_trouble(*[DEADLOCK] * REPETITIONS)
    hurried.run([write("a"), TROUBLE])
    assert playground.steps == ["a"]
    playground.ask("DELETE FROM attempts")
    playground.ask("ALTER TABLE attempts AUTO_INCREMENT = 1")
    playground.ask("DROP PROCEDURE trouble")
    playground.make_trouble(*[DEADLOCK] * 20)
    with pytest.raises(DatabaseBusy):
        hurried.run([TROUBLE])


def test_an_away_server_is_told_at_once_to_who_has_begun() -> None:
    """Even a call that has begun something does not wait if it is done again later."""
    with closed_port() as port:
        url = f"mysql+pymysql://pool@127.0.0.1:{port}/calls"
        database = Database(DatabaseSettings("main", (url,), multi_statements=True))
        executor = Executor(database, [60.0], waits_for_server=False)
        with pytest.raises(DatabaseUnavailable, match="Connection refused"):
            executor.run([("SELECT 1", ())], waits=True)
        assert executor.repetitions == 0


def test_a_restart_is_outlasted(mariadb: MariaDBServer, mariadb_url: str) -> None:
    """Who has begun something gets it done by a server that was away meanwhile and came back."""
    database = Database(DatabaseSettings("main", (mariadb_url,), multi_statements=True))
    # The machine may take longer for a start than a caller should be kept.
    executor = Executor(database, (*RETRY_PAUSES_S, *[1.0] * 60), patience_s=60.0)
    executor.run([("SELECT 1", ())])
    mariadb.stop()

    over = Event()

    def come_back() -> None:
        while not (executor.repetitions or over.wait(0.01)):
            pass
        mariadb.start()

    back = gevent.get_hub().threadpool.spawn(come_back)
    try:
        assert executor.run([("SELECT 2", ())], waits=True).answers[0].rows == ((2,),)
    finally:
        over.set()
        back.get()
    assert executor.repetitions
    database.close()
