"""Fixtures of the tests of VICIdial's calls: servers for the whole run, sites for a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest
from mariadb import MariaDBServer, find_mariadb

from .sites import Host, Sites


@pytest.fixture(scope="session")
def hosts(mariadb: MariaDBServer) -> Iterator[Callable[[str], Host]]:
    """Give a function that starts the server with a SQL mode, one for the whole run.

    It needs the common server only to be skipped, or to fail, where no server can be had.
    """
    with ExitStack() as stack:

        @cache
        def host(sql_mode: str) -> Host:
            server = MariaDBServer(find_mariadb(), f"--sql-mode={sql_mode}", "--max-connections=500")
            return stack.enter_context(Host.running(server))

        yield host


@pytest.fixture(scope="module")
def sites(hosts: Callable[[str], Host]) -> Iterator[Sites]:
    """Open sites that end with the module."""
    with Sites(hosts) as opened:
        yield opened
