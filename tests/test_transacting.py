"""fastagi_pool.transacting: what is done again, what is not, and what a mark finds out, on a real MariaDB.

Nothing here is patched for gevent, so whoever else takes part has a thread of his own.
"""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import gevent
import pytest
from mariadb import MariaDBServer
from mariadb_forwarder import CommandReader, MariaDBForwarder
from sqlalchemy import Connection, create_engine, exc, text

from fastagi_pool.database import Database, DatabaseSettings
from fastagi_pool.errors import CallTimeout, DatabaseBusy, DatabaseUnavailable, OperatorError
from fastagi_pool.executor import RETRY_PAUSES_S
from fastagi_pool.marks import TABLE, Marks
from fastagi_pool.transacting import Course, MarkState, Trouble, begin, transact, trouble_of

MARK: Final = "node/ref-1"
ADD: Final = text("INSERT INTO steps (step) VALUES (:step)")
_TABLES: Final = (
    "CREATE TABLE steps (id INT AUTO_INCREMENT PRIMARY KEY, step VARCHAR(20)) ENGINE = InnoDB",
    "CREATE TABLE places (id INT PRIMARY KEY, visits INT NOT NULL) ENGINE = InnoDB",
    "INSERT INTO places VALUES (1, 0), (2, 0)",
)


class Cutter(MariaDBForwarder):
    """Cuts connections at their COMMIT, when it is told to.

    Attributes:
        cuts: For each of the next commits whether the server still gets it; the client hears nothing of it.
    """

    def __init__(self, server_port: int) -> None:
        super().__init__(server_port)
        self.cuts: list[bool] = []

    def _pump(self, source: socket.socket, target: socket.socket, reader: CommandReader | None) -> None:
        if reader is None:
            super()._pump(source, target, None)
            return
        try:
            while data := source.recv(65536):
                commits = any(command.text == "COMMIT" for command in reader.feed(data))
                if commits and self.cuts:
                    # The client first, so that the server's answer comes too late.
                    source.shutdown(socket.SHUT_RDWR)
                    if self.cuts.pop(0):
                        target.sendall(data)
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
        except OSError:
            pass  # One side is gone.


class Playground:
    """A database behind a forwarder.

    Attributes:
        cutter: The forwarder.
        database: What is under test works here.
        name: The database's name on the server.
    """

    def __init__(self, server: MariaDBServer, url: str, cutter: Cutter) -> None:
        self.cutter = cutter
        self.url = url
        self.name = url.rpartition("/")[2]
        self._server = server
        through = url.replace(f":{server.port}/", f":{cutter.port}/")
        self.database = Database(DatabaseSettings("main", (through,)))
        for statement in _TABLES:
            self.ask(statement)

    def ask(self, statement: str) -> list[tuple[object, ...]]:
        """Carry out one statement beside the forwarder."""
        engine = create_engine(self.url)
        try:
            with engine.begin() as connection:
                found = connection.execute(text(statement))
                return [tuple(row) for row in found] if found.returns_rows else []
        finally:
            engine.dispose()

    @property
    def steps(self) -> list[object]:
        """The steps that were written, in their order."""
        return [step for (step,) in self.ask("SELECT step FROM steps ORDER BY id")]

    @property
    def marks(self) -> list[object]:
        """The marks that were written; waits for a commit that is still on its way to the server."""
        return [mark for (mark,) in self.ask(f"SELECT mark FROM {TABLE} LOCK IN SHARE MODE")]

    def run(self, course: Course, work: Callable[[Connection], str], patient: bool = True) -> str:
        """Do work as a call would."""
        lease = self.database.lease()
        try:
            return transact(lease, course, work, patient)
        finally:
            assert lease.release() == 0

    def kill(self, connection: Connection) -> None:
        """Have the server end a connection."""
        number = connection.execute(text("SELECT CONNECTION_ID()")).scalar()
        self._server.execute(f"KILL {number}")

    def meet(self, connection: Connection) -> None:
        """Be the victim of a deadlock."""
        connection.execute(text("UPDATE places SET visits = visits + 1 WHERE id = 1"))
        other = threading.Thread(target=self._stand_in_the_way, args=(threading.get_ident(),))
        self._holds_second = threading.Event()
        other.start()
        try:
            assert self._holds_second.wait(10)
            waiting = (
                "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'UPDATE places%id = 1'"
            )
            while self._server.execute(waiting) != [(1,)]:
                assert other.is_alive()
            connection.execute(text("UPDATE places SET visits = visits + 1 WHERE id = 2"))
        finally:
            other.join()

    def _stand_in_the_way(self, _victim: int) -> None:
        engine = create_engine(self.url)
        with engine.begin() as connection:
            # The server ends who has less to undo.
            connection.execute(text("INSERT INTO places SELECT seq, 0 FROM seq_100_to_300"))
            connection.execute(text("UPDATE places SET visits = visits + 10 WHERE id = 2"))
            self._holds_second.set()
            connection.execute(text("UPDATE places SET visits = visits + 10 WHERE id = 1"))
            connection.execute(text("DELETE FROM places WHERE id >= 100"))
        engine.dispose()


@pytest.fixture
def playground(mariadb: MariaDBServer, mariadb_url: str) -> Iterator[Playground]:
    """A database that can be lost at any moment."""
    with Cutter(mariadb.port) as cutter:
        playground = Playground(mariadb, mariadb_url, cutter)
        with playground.database.lease().begin() as connection:
            Marks("node").create(connection)
        yield playground
        playground.database.close()


class Work:
    """Writes a step, and meets with troubles on its way: one in each of the first runs.

    Attributes:
        runs: How often it was begun.
    """

    def __init__(self, *troubles: Callable[[Connection], object]) -> None:
        self.runs = 0
        self._troubles = list(troubles)

    def __call__(self, connection: Connection) -> str:
        """Do it."""
        self.runs += 1
        connection.execute(ADD, {"step": f"run {self.runs}"})
        if self._troubles:
            self._troubles.pop(0)(connection)
        connection.execute(text("SELECT 1"))
        return f"result of run {self.runs}"


def enter(
    playground: Playground, course: Course, trouble: Callable[[Connection], object] | None = None
) -> None:
    """Open a transaction, and leave it after a step and maybe some trouble."""
    lease = playground.database.lease()
    try:
        with begin(lease, course) as connection:
            Work(*([trouble] if trouble else []))(connection)
    finally:
        assert lease.release() == 0


COURSES: Final = pytest.mark.parametrize("mark", ["", MARK], ids=["plain", "marked"])
pytestmark = pytest.mark.mariadb


# ---- where it is safe


@COURSES
def test_what_goes_well_is_done_once(playground: Playground, mark: str) -> None:
    """Work without trouble runs once, is committed with its mark, and its result is given."""
    work, course = Work(), Course("main", mark)
    assert playground.run(course, work) == "result of run 1"
    assert (work.runs, playground.steps, course.state) == (1, ["run 1"], MarkState.WRITTEN)
    assert playground.marks == [mark] * bool(mark)


@COURSES
def test_a_deadlock_is_got_over(playground: Playground, mark: str) -> None:
    """The victim of a real deadlock does all of its work again, and it holds once."""
    work, course = Work(playground.meet), Course("main", mark)
    assert playground.run(course, work) == "result of run 2"
    assert playground.steps == ["run 2"]
    assert playground.marks == [mark] * bool(mark)
    assert playground.ask("SELECT visits FROM places ORDER BY id") == [(10,), (10,)]


@COURSES
def test_a_wait_for_a_lock_is_got_over(playground: Playground, mark: str) -> None:
    """A lock that is not given in time lets the work be done again, all of it."""
    engine = create_engine(playground.url)
    other = engine.connect()
    other.execute(text("UPDATE places SET visits = 5 WHERE id = 1"))

    def wait(connection: Connection) -> None:
        connection.execute(text("SET innodb_lock_wait_timeout = 1"))
        try:
            connection.execute(text("UPDATE places SET visits = 6 WHERE id = 1"))
        finally:
            other.rollback()

    work = Work(wait)
    assert playground.run(Course("main", mark), work) == "result of run 2"
    assert playground.steps == ["run 2"]
    other.close()
    engine.dispose()


@COURSES
def test_a_lost_connection_before_the_commit(playground: Playground, mark: str) -> None:
    """What the server rolled back, because the connection was killed, is done again on another one."""
    work = Work(playground.kill, playground.kill)
    assert playground.run(Course("main", mark), work) == "result of run 3"
    assert playground.steps == ["run 3"]
    assert playground.marks == [mark] * bool(mark)


def test_a_connection_that_is_lost_unheard(playground: Playground) -> None:
    """Work that goes on after a lost connection, as if nothing were, is done again too."""

    def shrug(connection: Connection) -> None:
        playground.kill(connection)
        with pytest.raises(exc.DBAPIError):
            connection.execute(ADD, {"step": "lost"})

    assert playground.run(Course("main"), Work(shrug)) == "result of run 2"
    assert playground.steps == ["run 2"]


# ---- a commit in doubt


@pytest.mark.parametrize("delivered", [True, False], ids=["committed", "lost"])
def test_a_commit_in_doubt_goes_up(playground: Playground, delivered: bool) -> None:
    """Without a mark nobody can tell whether a commit was carried out: it is told, and never done twice."""
    playground.cutter.cuts = [delivered]
    work, course = Work(), Course("main")
    with pytest.raises(DatabaseUnavailable, match="nobody knows whether its transaction was committed"):
        playground.run(course, work)
    assert work.runs == 1
    assert course.in_doubt


@pytest.mark.parametrize(
    ("delivered", "result"),
    [(True, "result of run 1"), (False, "result of run 2")],
    ids=["committed", "lost"],
)
def test_a_mark_tells_what_became_of_a_commit(playground: Playground, delivered: bool, result: str) -> None:
    """With a mark the work is done again if the commit was lost, and not if it was not: its rows are once."""
    playground.cutter.cuts = [delivered]
    course = Course("main", MARK)
    assert playground.run(course, Work()) == result
    assert playground.steps == [result.removeprefix("result of ")]
    assert playground.marks == [MARK]
    assert course.state is MarkState.WRITTEN


def test_doubts_one_after_another(playground: Playground) -> None:
    """The result is that of the attempt that was committed, however many were in doubt."""
    playground.cutter.cuts = [False, False, True]
    assert playground.run(Course("main", MARK), Work()) == "result of run 3"
    assert playground.steps == ["run 3"]


def test_begin_tells_a_doubt(playground: Playground) -> None:
    """A marked transaction whose commit is in doubt defers the call, and is not begun again."""
    playground.cutter.cuts = [True]
    course = Course("main", MARK)
    with pytest.raises(DatabaseUnavailable, match="nobody knows"):
        enter(playground, course)
    assert course.in_doubt
    with pytest.raises(OperatorError, match="one transaction"):
        playground.run(course, Work())
    assert playground.marks == [MARK]


# ---- where it is not


def test_what_would_fail_again_is_not_repeated(playground: Playground) -> None:
    """A wrong statement, or a bug, is told at once as it is."""

    def fail(connection: Connection) -> None:
        connection.execute(text("SELECT nothing FROM nowhere"))

    work, course = Work(fail), Course("main", MARK)
    with pytest.raises(exc.ProgrammingError, match="nowhere"):
        playground.run(course, work)
    with pytest.raises(ZeroDivisionError):
        playground.run(course, lambda connection: str(1 // 0))
    assert work.runs == 1
    assert playground.steps == playground.marks == []


def test_an_interruption_is_not_repeated(playground: Playground) -> None:
    """A call whose time is over is not begun anew."""

    def expire(connection: Connection) -> None:
        raise CallTimeout("script", 1.0)

    work, course = Work(expire), Course("main", MARK)
    with pytest.raises(CallTimeout):
        playground.run(course, work)
    assert (work.runs, course.state, playground.marks) == (1, MarkState.FREE, [])


def test_attempts_are_bounded(playground: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails again and again is given up after the pauses that the executor makes too."""
    paused_s: list[float] = []
    monkeypatch.setattr(gevent, "sleep", paused_s.append)
    deadlock = "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'Deadlock found'"
    work = Work(*[lambda connection: connection.execute(text(deadlock))] * 20)
    with pytest.raises(DatabaseBusy, match=r"'main'.*Deadlock found"):
        playground.run(Course("main"), work)
    assert tuple(paused_s) == RETRY_PAUSES_S
    assert work.runs == 1 + len(RETRY_PAUSES_S)
    assert playground.steps == []


@pytest.fixture
def stoppable(mariadb: MariaDBServer, playground: Playground) -> Iterator[Database]:
    """The same database without the forwarder, on a server that runs again at the end."""
    database = Database(DatabaseSettings("main", (playground.url,)))
    yield database
    database.close()
    mariadb.restart()


@pytest.mark.usefixtures("playground")
def test_a_database_that_goes_away_in_the_middle_is_waited_for(
    mariadb: MariaDBServer, stoppable: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody else would do the work it is done when the database is back."""
    pauses_s: list[float] = []

    def come_back(pause_s: float) -> None:
        pauses_s.append(pause_s)
        if len(pauses_s) == 3:
            mariadb.start()
            while not stoppable.available:
                time.sleep(0.01)

    work = Work(lambda connection: mariadb.stop(kill=True))
    monkeypatch.setattr(gevent, "sleep", come_back)
    assert transact(stoppable.lease(), Course("main"), work, patient=True) == "result of run 2"


@pytest.mark.usefixtures("playground")
def test_where_there_is_a_journal_nobody_waits(
    mariadb: MariaDBServer, stoppable: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferrable call tries once more, at once, and is told that the database is away."""
    pauses_s: list[float] = []
    work = Work(lambda connection: mariadb.stop(kill=True))
    monkeypatch.setattr(gevent, "sleep", pauses_s.append)
    with pytest.raises(DatabaseUnavailable):
        transact(stoppable.lease(), Course("main"), work, patient=False)
    assert (work.runs, pauses_s) == (1, [0.0])


def test_another_databases_outage_is_no_reason(playground: Playground) -> None:
    """Work that finds another database away is not repeated: that would not bring it back."""

    def find(connection: Connection) -> None:
        raise DatabaseUnavailable("other", "away")

    work = Work(find)
    with pytest.raises(DatabaseUnavailable, match="other"):
        playground.run(Course("main"), work)
    assert work.runs == 1


# ---- the mark and its transaction


def test_one_transaction_only(playground: Playground) -> None:
    """After a marked transaction there is no second one, and none within it."""
    course, lease = Course("main", MARK), playground.database.lease()
    with begin(lease, course) as connection:
        connection.execute(ADD, {"step": "first"})
        with pytest.raises(OperatorError, match="declare it repeatable=True"), begin(lease, course):
            pass
    with pytest.raises(OperatorError, match="declare it repeatable=True"), begin(lease, course):
        pass
    lease.release()
    assert playground.steps == ["first"]


def test_what_was_rolled_back_may_be_tried_again(playground: Playground) -> None:
    """A handler that catches what its transaction raised may begin another: nothing of the first holds."""
    course, lease = Course("main", MARK), playground.database.lease()
    with pytest.raises(ZeroDivisionError), begin(lease, course) as connection:
        connection.execute(ADD, {"step": str(1 // 0)})
    with begin(lease, course) as connection:
        connection.execute(ADD, {"step": "second"})
    lease.release()
    assert playground.steps == ["second"]
    assert playground.marks == [MARK]


def test_the_same_mark_of_another_call(playground: Playground) -> None:
    """A new call that finds its mark taken does nothing, and says that two machines have one name."""
    playground.run(Course("main", MARK), Work())
    for attempt in (lambda course: playground.run(course, Work()), lambda course: enter(playground, course)):
        with pytest.raises(OperatorError, match="the same node name"):
            attempt(Course("main", MARK))
    assert playground.steps == ["run 1"]


def test_the_table_is_made_when_it_is_missed(playground: Playground) -> None:
    """A database that was away when the worker started has no table of marks: the first call makes it."""
    playground.ask(f"DROP TABLE {TABLE}")
    assert playground.run(Course("main", MARK), Work()) == "result of run 1"
    assert playground.marks == [MARK]


def test_a_lost_connection_defers(playground: Playground) -> None:
    """What a deferrable call meets in begin() is said in the words that send it into the journal."""
    with pytest.raises(DatabaseUnavailable, match="'main'"):
        enter(playground, Course("main"), playground.kill)
    with pytest.raises(DatabaseBusy, match="Deadlock found"):
        enter(playground, Course("main"), playground.meet)
    with pytest.raises(exc.ProgrammingError):
        enter(playground, Course("main"), lambda found: found.execute(text("SELECT nothing FROM nowhere")))


def test_an_interrupted_commit_is_in_doubt(playground: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the call's time is over while its commit is under way, it is known to be in doubt."""

    def expire(self: object, dbapi_connection: object) -> None:
        raise CallTimeout("script", 1.0)

    course = Course("main", MARK)
    monkeypatch.setattr(type(playground.database.engine.dialect), "do_commit", expire)
    with pytest.raises(CallTimeout):
        enter(playground, course)
    assert course.in_doubt


# ---- what errors mean


def test_sqlite_is_busy(tmp_path: Path) -> None:
    """Another writer in the same SQLite file is somebody who is soon gone."""
    holder = sqlite3.connect(tmp_path / "main.db", isolation_level=None)
    holder.execute("CREATE TABLE steps (step TEXT)")
    engine = create_engine(f"sqlite:///{tmp_path}/main.db", connect_args={"timeout": 0})
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(exc.OperationalError) as caught, engine.begin() as connection:
        connection.execute(ADD, {"step": "a"})
    assert trouble_of(caught.value) is Trouble.PASSING
    holder.close()
    engine.dispose()


@pytest.mark.parametrize("error", [ValueError("no"), exc.NoResultFound("no"), DatabaseBusy("main", "no")])
def test_everything_else_lasts(error: Exception) -> None:
    """What no database has said, or was tried often enough already, is not tried again."""
    assert trouble_of(error) is Trouble.LASTING
