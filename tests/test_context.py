"""fastagi_pool.context: what a handler gets besides the call, and that nothing of it stays behind."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from fastagi_pool.context import Context
from fastagi_pool.database import Database, DatabaseSettings
from fastagi_pool.errors import DatabaseUnavailable, OperatorError

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
