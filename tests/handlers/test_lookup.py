"""The look-up of a name, on every kind of database that is promised."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from patient import PatientAsterisk, make_call, make_context

from fastagi_pool.database import Database, DatabaseSettings
from fastagi_pool.handlers import lookup


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh database, SQLite and MariaDB in turn."""
    database = Database(DatabaseSettings("demo", (database_url,)))
    yield database
    database.close()


@pytest.mark.parametrize(
    ("number", "name"), [("100", "Alice Liddell"), ("101", "Bob the Builder"), ("999", "")]
)
def test_lookup_gives_the_name_to_the_dialplan(database: Database, number: str, name: str) -> None:
    """The same handler finds the caller's name on SQLite and on MariaDB, and sets it even if unknown."""
    asterisk = PatientAsterisk()
    lookup.setup(make_context(demo=database))

    lookup.lookup(make_call(asterisk, number), make_context(demo=database))

    assert asterisk.variables == {"CALLER_NAME": name}


def test_setup_may_run_in_every_worker(database: Database) -> None:
    """Each worker prepares the table; the second finds it there and changes nothing."""
    for _ in range(2):
        lookup.setup(make_context(demo=database))
    with make_context(demo=database).begin() as connection:
        count = connection.exec_driver_sql("SELECT COUNT(*) FROM callers").scalar()

    assert count == 2
