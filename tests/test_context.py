"""fastagi_pool.context: what a handler gets besides the call, and that nothing of it stays behind."""

from __future__ import annotations

import itertools
import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, exc, text

from fastagi_pool.context import Context
from fastagi_pool.database import Database, DatabaseSettings
from fastagi_pool.errors import DatabaseBusy, DatabaseUnavailable, OperatorError
from fastagi_pool.marks import Marks

ADD = text("INSERT INTO caller (name) VALUES (:name)")
NAMES = text("SELECT name FROM caller ORDER BY id")
LOG = logging.getLogger(__name__)


def open_database(name: str, folder: Path) -> Database:
    """Give a database of one connection with one table; its clock ticks once a look."""
    settings = DatabaseSettings(name, (f"sqlite:///{folder}/{name}.db",), pool_size=1, pool_timeout_s=0.01)
    ticks = itertools.count(1.0)
    database = Database(settings, lambda: next(ticks))
    with database.lease().begin() as connection:
        connection.execute(text("CREATE TABLE caller (id INTEGER PRIMARY KEY, name TEXT)"))
    return database


@pytest.fixture
def databases(tmp_path: Path) -> Iterator[dict[str, Database]]:
    """Two databases."""
    databases = {name: open_database(name, tmp_path) for name in ("main", "other")}
    yield databases
    for database in databases.values():
        database.close()


def context(*databases: Database, options: dict[str, Any] | None = None) -> Context:
    """Give a context that knows these databases."""
    return Context({database.name: database for database in databases}, LOG, {}, options)


def names(database: Database) -> list[str]:
    """Read what is in the table, by a lease of its own."""
    with database.lease().connect() as connection:
        return list(connection.execute(NAMES).scalars())


def test_begin_commits(databases: dict[str, Database]) -> None:
    """What a handler writes inside begin() is there when the block ends."""
    with context(databases["main"]).begin() as connection:
        connection.execute(ADD, {"name": "Alice"})
    assert names(databases["main"]) == ["Alice"]


def test_an_exception_rolls_back(databases: dict[str, Database]) -> None:
    """A handler that raises inside begin() has written nothing."""

    def handler() -> None:
        with context(databases["main"]).begin() as connection:
            connection.execute(ADD, {"name": "Alice"})
            raise LookupError("a bug")

    with pytest.raises(LookupError, match="a bug"):
        handler()
    assert names(databases["main"]) == []


def test_connect_commits_what_it_is_told_to(databases: dict[str, Database]) -> None:
    """With connect() the handler decides what stays."""
    with context(databases["main"]).connect() as connection:
        connection.execute(ADD, {"name": "kept"})
        connection.commit()
        connection.execute(ADD, {"name": "lost"})
    assert names(databases["main"]) == ["kept"]


def test_a_database_is_found_by_name(databases: dict[str, Database]) -> None:
    """With several databases the name decides which one is written to."""
    held = context(*databases.values())
    with held.begin("other") as connection:
        connection.execute(ADD, {"name": "Alice"})
    with held.connect("main") as connection:
        assert list(connection.execute(NAMES)) == []
    assert names(databases["other"]) == ["Alice"]


def test_the_only_database_needs_no_name(databases: dict[str, Database]) -> None:
    """With one database its name may be given or left out."""
    held = context(databases["main"])
    for name in ("", "main"):
        with held.connect(name) as connection:
            assert list(connection.execute(NAMES)) == []


def test_a_name_is_needed_where_there_are_several(databases: dict[str, Database]) -> None:
    """Without a name no database is guessed, and the message lists those to choose from."""
    with pytest.raises(OperatorError, match="say which database: the configuration names main, other"):
        context(*databases.values()).connect()


def test_an_unknown_database(databases: dict[str, Database]) -> None:
    """A name that the configuration does not have is said with those that it has."""
    with pytest.raises(OperatorError, match="no database 'mian': the configuration names main"):
        context(databases["main"]).connect("mian")


@pytest.mark.parametrize("name", ["", "main"])
def test_no_database_at_all(name: str) -> None:
    """Without a configured database every use says that there is none."""
    with pytest.raises(OperatorError, match="the configuration names none"):
        context().begin(name)


def test_release_gives_back_what_was_left_open(databases: dict[str, Database]) -> None:
    """A connection that a handler forgot is rolled back, counted, and free for the next call."""
    forgetful = context(*databases.values())
    for name in databases:
        forgetful.connect(name).execute(ADD, {"name": "lost"})
    with pytest.raises(DatabaseUnavailable):
        context(databases["main"]).connect()
    left, _ = forgetful.release()
    assert left == 2
    assert names(databases["main"]) == names(databases["other"]) == []


def test_release_tells_the_time_in_databases(databases: dict[str, Database]) -> None:
    """The seconds of all databases that the call used are added up."""
    held = context(*databases.values())
    with held.connect("main") as connection:
        connection.execute(NAMES)
    only_main = context(databases["main"])
    with only_main.connect() as connection:
        connection.execute(NAMES)
    with held.connect("other") as connection:
        connection.execute(NAMES)
    _, both_s = held.release()
    _, one_s = only_main.release()
    assert both_s == 2 * one_s > 0


def test_release_of_an_unused_context(databases: dict[str, Database]) -> None:
    """A call that used no database costs nothing at its end, and release may come twice."""
    unused = context(databases["main"])
    assert unused.release() == (0, 0.0)
    with unused.begin() as connection:
        connection.execute(NAMES)
    left, database_s = unused.release()
    assert left == 0
    assert database_s > 0
    assert unused.release() == (0, 0.0)


def test_the_next_call_finds_a_clean_connection(databases: dict[str, Database]) -> None:
    """The one connection that both calls use carries nothing over, not even an open transaction."""
    first = context(databases["main"])
    first.connect().execute(ADD, {"name": "lost"})
    first.release()
    with context(databases["main"]).begin() as connection:
        connection.execute(ADD, {"name": "kept"})
    assert names(databases["main"]) == ["kept"]


def test_what_a_handler_finds() -> None:
    """Options are the route's, state is shared by reference, and the log is the one given."""
    state: dict[str, Any] = {}
    held = Context({}, LOG, state, {"greeting": "hello"})
    held.state["count"] = 1
    assert held.options == {"greeting": "hello"}
    assert state == {"count": 1}
    assert held.log is LOG
    assert context().options == {}


def test_a_context_holds_nothing_else() -> None:
    """A handler cannot leave something for later on its context by mistake."""
    with pytest.raises(AttributeError):
        context().surprise = 1  # type: ignore[attr-defined]


# ---- where the time goes


class Noted:
    """Notes what a context tells of the time."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def queues(self) -> None:
        """Note it."""
        self.told.append("queues")

    def called_in(self) -> None:
        """Note it."""
        self.told.append("called in")

    def queries(self, statement: str, now_s: float) -> None:
        """Note it."""
        self.told.append(f"queries {statement}")

    def waits(self, what: str, now_s: float) -> None:
        """Note it."""
        self.told.append(f"waits for {what}")

    def answered(self, took_s: float, now_s: float) -> None:
        """Note it."""
        self.told.append(f"answered after {took_s:g}")


def test_every_wait_for_a_database_is_told(databases: dict[str, Database]) -> None:
    """The call's clocks hear of the connection, of each statement without its values, and of the commit."""
    noted = Noted()
    held = Context(databases, LOG, {}, clocks=noted)
    with held.begin("main") as connection:
        connection.execute(ADD, {"name": "Alice"})
    told = [line for line in noted.told if not line.startswith("answered")]
    assert told == [
        "waits for a connection to database main",
        "queries INSERT INTO caller (name) VALUES (?)",
        "waits for COMMIT",
    ]
    waits_s = [float(line.split()[-1]) for line in noted.told[1::2]]
    assert held.release() == (0, sum(waits_s))


def test_waits_that_are_not_the_calls_alone() -> None:
    """What several calls wait for together is told as a wait, and charged when it is over."""
    noted = Noted()
    held = Context({}, LOG, {}, clocks=noted)
    held.waits_for_database("the rows of others")
    held.charge_database(0.5)
    assert noted.told == ["waits for the rows of others", "answered after 0.5"]
    assert held.release() == (0, 0.5)


def test_queueing_ends_with_whatever_ends_it() -> None:
    """Time in the queue ends even if the wait is cut short."""
    noted = Noted()
    with pytest.raises(KeyError), Context({}, LOG, {}, clocks=noted).queueing():
        raise KeyError
    assert noted.told == ["queues", "called in"]


def test_without_clocks_nothing_is_told() -> None:
    """Outside of calls, as in ``setup``, time is nobody's."""
    held = context()
    with held.queueing():
        held.waits_for_database("rows")
        held.charge_database(1.0)
    assert held.release() == (0, 1.0)


# ---- transactions that may be tried again, and marks


def add(name: str) -> Callable[[Connection], str]:
    """Make work that writes a name."""

    def work(connection: Connection) -> str:
        connection.execute(ADD, {"name": name})
        return f"added {name}"

    return work


def marks(database: Database, *wanted: str) -> set[str]:
    """Read which of these marks a database has."""
    with database.lease().begin() as connection:
        Marks("node").create(connection)
        return Marks("node").known(connection, wanted)


@pytest.mark.parametrize("repeats", [True, False])
def test_transact_commits(databases: dict[str, Database], repeats: bool) -> None:
    """What the work writes is there, what it returns is given, in a call of its own and in a larger one."""
    held = Context(databases, LOG, {}, repeats=repeats)
    assert held.transact(add("Alice"), "main") == "added Alice"
    assert names(databases["main"]) == ["Alice"]
    assert held.release()[0] == 0


def test_transact_needs_a_database_that_is_known(databases: dict[str, Database]) -> None:
    """A mistake in the name is the operator's, as with begin()."""
    with pytest.raises(OperatorError, match="no database 'mian'"):
        context(databases["main"]).transact(add("Alice"), "mian")


@pytest.mark.parametrize("repeats", [True, False])
def test_transact_repeats_unless_it_is_a_part(databases: dict[str, Database], repeats: bool) -> None:
    """Work that meets a locked database is done again, unless its transaction is a part of a larger one."""
    runs: list[int] = []

    def work(connection: Connection) -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            locked = sqlite3.OperationalError("database is locked")
            locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise exc.OperationalError("INSERT", {}, locked)
        connection.execute(ADD, {"name": f"run {len(runs)}"})

    held = Context(databases, LOG, {}, repeats=repeats)
    if repeats:
        held.transact(work, "main")
    else:
        with pytest.raises(exc.OperationalError):
            held.transact(work, "main")
    assert names(databases["main"]) == ["run 2"] * repeats


@pytest.mark.parametrize("way", ["begin", "transact"])
def test_a_mark_is_written_with_the_rows(databases: dict[str, Database], way: str) -> None:
    """A call with a mark writes it in the transaction of its rows, without the handler's doing."""
    held = Context(databases, LOG, {}, mark="node/1", defers="main")
    if way == "begin":
        with held.begin("main") as connection:
            add("Alice")(connection)
    else:
        held.transact(add("Alice"), "main")
    assert marks(databases["main"], "node/1") == {"node/1"}
    assert marks(databases["other"], "node/1") == set()
    assert names(databases["main"]) == ["Alice"]
    assert not held.in_doubt


def test_a_mark_goes_with_its_rows(databases: dict[str, Database]) -> None:
    """A transaction that is rolled back leaves no mark: the call was not done."""
    held = Context(databases, LOG, {}, mark="node/1", defers="main")
    with pytest.raises(ZeroDivisionError):
        held.transact(lambda connection: add(str(1 // 0))(connection), "main")
    assert marks(databases["main"], "node/1") == set()


@pytest.mark.parametrize("way", ["begin", "connect", "transact"])
def test_a_marked_call_has_one_transaction(databases: dict[str, Database], way: str) -> None:
    """Whatever a handler wants to write behind its transaction could be done twice, and is refused."""
    held = Context(databases, LOG, {}, mark="node/1", defers="main")
    held.transact(add("Alice"), "main")
    ways: dict[str, Callable[[], object]] = {
        "begin": held.begin("main").__enter__,
        "connect": lambda: held.connect("main"),
        "transact": lambda: held.transact(add("Bob"), "main"),
    }
    with pytest.raises(OperatorError, match=r"one transaction.*repeatable=True"):
        ways[way]()
    assert names(databases["main"]) == ["Alice"]


def test_other_databases_are_as_they_were(databases: dict[str, Database]) -> None:
    """A mark concerns the database whose outage defers the call, and no other."""
    held = Context(databases, LOG, {}, mark="node/1", defers="main")
    for name in ("Alice", "Bob"):
        with held.begin("other") as connection:
            add(name)(connection)
        held.transact(add(name), "other")
    with held.connect("other") as connection:
        assert len(list(connection.execute(NAMES))) == 4


def test_the_only_database_is_meant(databases: dict[str, Database]) -> None:
    """With one database a mark needs no name of it."""
    held = Context({"main": databases["main"]}, LOG, {}, mark="node/1")
    with held.begin() as connection:
        add("Alice")(connection)
    assert marks(databases["main"], "node/1") == {"node/1"}


def test_a_repeatable_call_has_no_mark(databases: dict[str, Database]) -> None:
    """A deferrable handler that may run twice has as many transactions as it wants, and connections."""
    held = Context(databases, LOG, {}, defers="main")
    for name in ("Alice", "Bob"):
        with held.begin("main") as connection:
            add(name)(connection)
    with held.connect("main") as connection:
        assert list(connection.execute(NAMES).scalars()) == ["Alice", "Bob"]


def test_what_passes_defers_a_deferrable_call(databases: dict[str, Database]) -> None:
    """The dispatcher hears of a lock in words that send the call into the journal; else as it is."""
    locked = sqlite3.OperationalError("database is locked")
    locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
    error = exc.OperationalError("INSERT", {}, locked)
    with (
        pytest.raises(DatabaseBusy, match=r"'main'.*locked"),
        Context(databases, LOG, {}, defers="main").begin("main"),
    ):
        raise error
    with pytest.raises(exc.OperationalError), Context(databases, LOG, {}).begin("main"):
        raise error


def test_nothing_is_in_doubt_without_a_deferral(databases: dict[str, Database]) -> None:
    """A call that nothing defers, or that has written nothing, has no commit in doubt."""
    assert not context(databases["main"]).in_doubt
    assert not Context(databases, LOG, {}, mark="node/1", defers="main").in_doubt
