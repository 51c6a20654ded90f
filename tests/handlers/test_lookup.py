"""The look-up of a name, on every kind of database that is promised."""

from __future__ import annotations

import pytest

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.handlers import lookup
from fastagi_pool.stage import Stage
from fastagi_pool.testing import Caller


@pytest.fixture
def databases(database_url: str) -> dict[str, dict[str, str]]:
    """A fresh database, SQLite and MariaDB in turn."""
    return {"demo": {"url": database_url}}


@pytest.mark.parametrize(
    ("number", "name"), [("100", "Alice Liddell"), ("101", "Bob the Builder"), ("999", "")]
)
def test_lookup_gives_the_name_to_the_dialplan(
    agi_call: Stage, databases: dict[str, dict[str, str]], number: str, name: str
) -> None:
    """The same handler finds the caller's name on SQLite and on MariaDB, and sets it even if unknown."""
    result = agi_call(lookup.lookup, databases=databases, caller=Caller(number))

    assert result.variables == {"CALLER_NAME": name}
    assert result.faults == ()


def test_setup_may_run_in_every_worker(agi_call: Stage, databases: dict[str, dict[str, str]]) -> None:
    """Each worker prepares the table; the second finds it there and changes nothing."""
    for _ in range(2):
        with Stage() as worker:
            worker(lookup.lookup, databases=databases)

    result = agi_call(_count, databases=databases)

    assert result.console == ("2",)


def _count(call: Call, context: Context) -> None:
    with context.begin() as connection:
        call.verbose(str(connection.exec_driver_sql("SELECT COUNT(*) FROM callers").scalar()))
