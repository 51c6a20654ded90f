"""Fixtures of the tests of VICIdial's handlers: VICIdial's tables, as tests, handlers and a worker see them.

A plugin of pytest: a module that wants them names this one in ``pytest_plugins``. It is no ``conftest``:
this folder is no package, or ``vicidial`` would be two, and outside of packages ``tests/conftest.py`` has
that name.

Laws:
    * Each module of tests has tables of its own, which are gone after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mariadb import MariaDBServer
from vicidial.tables import Engines
from vicidial.tables import Tables as VicidialTables
from vicidial_database import open_database
from vicidial_legs import tables_of
from vicidial_staged_site import StagedSite, made_site

from fastagi_pool.database import Database
from fastagi_pool.handlers.vicidial.tables import Tables
from fastagi_pool.stage import Stage


@pytest.fixture(scope="module")
def queue_host() -> str:
    """Say at which address the tables' server is QueueMetrics' as well; nobody listens at this one."""
    return "127.0.0.1"


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest, mariadb: MariaDBServer, queue_host: str) -> Iterator[VicidialTables]:
    """Give VICIdial's tables, to be filled and looked at."""
    with VicidialTables(mariadb, request.module.__name__, Engines.AS_GIVEN, queue_host) as tables:
        yield tables


@pytest.fixture
def database(rows: VicidialTables) -> Iterator[Database]:
    """Give the database of the same tables, as the handlers have it."""
    database = open_database(rows.url)
    yield database
    database.close()


@pytest.fixture
def tables(database: Database) -> Tables:
    """Give the same tables as the handlers see them, without a cache."""
    return tables_of(database)


@pytest.fixture
def site(rows: VicidialTables, agi_call: Stage, tmp_path: Path) -> StagedSite:
    """Give a worker that serves calls in the same tables, which are empty but for settings."""
    return made_site(rows, agi_call, tmp_path)
