"""How often an END has to wait for the database, counted on the wire."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mariadb import PASSWORD, MariaDBServer
from mariadb_forwarder import Command, CommandReader, MariaDBForwarder
from service import PoolService
from sqlalchemy import create_engine, make_url, text
from vicidial_agent_call import MOST_ROUND_TRIPS, end_agent_call
from vicidial_database import PATIENT, VicidialDatabase, pool_databases, pool_route

#: A round trip for the reads, one for the writes: fewer cannot be, or the count is wrong.
_FEWEST_ROUND_TRIPS = 2


@pytest.fixture
def forwarder(mariadb: MariaDBServer) -> Iterator[MariaDBForwarder]:
    """A forwarder in front of the test run's MariaDB server."""
    with MariaDBForwarder(mariadb.port) as started:
        yield started


def through(forwarder: MariaDBForwarder, url: str) -> str:
    """Write the URL of the same database behind the forwarder."""
    return make_url(url).set(port=forwarder.port).render_as_string(hide_password=False)


@pytest.mark.mariadb
@pytest.mark.parametrize("settings_ttl", [0.0, 1.0], ids=["settings read", "settings kept"])
def test_the_end_of_an_agents_call(
    settings_ttl: float, mariadb: MariaDBServer, forwarder: MariaDBForwarder
) -> None:
    """An END on a SIP leg that an agent handled waits for the database 12 times at most, its rows right."""
    with (
        tempfile.TemporaryDirectory(prefix="trips-", dir="/tmp") as folder,
        VicidialDatabase(mariadb, "round_trips") as database,
    ):
        route = pool_route(Path(folder), settings_ttl=settings_ttl)
        databases = pool_databases(through(forwarder, database.url), **PATIENT)
        settings = {"workers": 1, "databases": databases}
        pool = PoolService(Path(folder), Path(folder), [route], settings)
        try:
            pool.start()
            # The first END may make the connection; that is no part of an END.
            end_agent_call(pool, forwarder, database, 1)
            commands = end_agent_call(pool, forwarder, database, 2)
            assert pool.stop() == 0, pool.logged()
        finally:
            pool.kill()
    assert _FEWEST_ROUND_TRIPS <= len(commands) <= MOST_ROUND_TRIPS, commands


@pytest.mark.mariadb
def test_the_forwarder_counts_what_the_client_waits_for(
    mariadb: MariaDBServer, forwarder: MariaDBForwarder
) -> None:
    """Two statements and the end of the transaction are three commands; the log-in is none of ours."""
    engine = create_engine(through(forwarder, mariadb.url("", PASSWORD)), connect_args={"ssl_disabled": True})
    with engine.connect() as connection:
        forwarder.forget()
        assert connection.execute(text("SELECT 1")).scalar() == 1
        assert connection.execute(text("SELECT REPEAT('x', 100000)")).scalar() == "x" * 100_000
    engine.dispose()
    assert [command.text for command in forwarder.commands] == [
        "SELECT 1",
        "SELECT REPEAT('x', 100000)",
        "ROLLBACK",
    ]


@pytest.mark.parametrize("piece_bytes", [1, 3, 7, 1000])
def test_commands_are_found_however_they_are_cut(piece_bytes: int) -> None:
    """Log-in, farewell and the second half of a long packet are no commands; the rest is, in any pieces."""
    packets = [
        (1, b"\x85\xa6log-in"),
        (0, b"\x03SELECT 1; SELECT 2"),
        (1, b"second half"),
        (0, b"\x0e"),
        (0, b"\x01"),
    ]
    stream = b"".join(
        len(payload).to_bytes(3, "little") + bytes([number]) + payload for number, payload in packets
    )
    reader = CommandReader()
    found = [
        command
        for start in range(0, len(stream), piece_bytes)
        for command in reader.feed(stream[start : start + piece_bytes])
    ]
    assert found == [Command(3, "SELECT 1; SELECT 2"), Command(14, "")]
