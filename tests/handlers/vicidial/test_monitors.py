"""fastagi_pool.handlers.vicidial.monitors: managers who listened, and agents outside."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Final

import pytest
from mariadb import PASSWORD, MariaDBServer
from vicidial.comparing import compare, net_changes
from vicidial.playing import SERVER_IP, Row, recorded
from vicidial.tables import Engines
from vicidial.tables import Tables as VicidialTables

from fastagi_pool.database import Database, DatabaseSettings
from fastagi_pool.executor import Executor
from fastagi_pool.handlers.vicidial.grammar import read_request
from fastagi_pool.handlers.vicidial.leg import Leg, Moment, Site
from fastagi_pool.handlers.vicidial.monitors import end_monitor, end_three_way
from fastagi_pool.handlers.vicidial.tables import Tables

pytestmark = pytest.mark.mariadb

NAME: Final = "monitors"
NOW: Final = Moment.at(1_700_000_060)
BEGAN: Final = Moment.at(1_700_000_000)
BLIND: Final = "SIP/ASTblind-000001"
PRESS: Final = "T1202150310000000101"


@pytest.fixture(scope="module")
def rows(mariadb: MariaDBServer) -> Iterator[VicidialTables]:
    """Give VICIdial's tables, to be filled and looked at."""
    tables = VicidialTables(mariadb, NAME, Engines.AS_GIVEN, "127.0.0.1")
    yield tables
    tables.close()


@pytest.fixture
def tables(mariadb: MariaDBServer, rows: VicidialTables) -> Iterator[Tables]:
    """Give the same tables as the handlers see them."""
    settings = DatabaseSettings(
        name="vicidial",
        urls=(mariadb.url(NAME, PASSWORD),),
        sql_mode="NO_ENGINE_SUBSTITUTION",
        multi_statements=True,
    )
    database = Database(settings)
    yield Tables(Executor(database), SERVER_IP, 0.0, logging.getLogger("test"))
    database.close()


def load(rows: VicidialTables, *given: tuple[str, Row]) -> None:
    """Empty all tables but the settings, and put these rows in."""
    rows.load(replace(recorded()["O17"], rows=given))


def leg_of(tables: Tables, now: Moment = NOW) -> Leg:
    """Return a request that began then."""
    request = read_request({"agi_request": "agi://127.0.0.1:4577/call_log", "agi_extension": "h"})
    assert request is not None
    return Leg(Site(SERVER_IP), request, now, tables, *tables.site())


def monitor(code: str, ended: Moment | None = None) -> tuple[str, Row]:
    """Return the row of a manager who began to listen a minute ago."""
    row: Row = {"caller_code": code, "monitor_start_time": BEGAN.text}
    return "vicidial_rt_monitor_log", row | ({"monitor_end_time": ended.text} if ended else {})


def monitors(rows: VicidialTables) -> list[tuple[str, int]]:
    """Return when each manager's listening ended, and the seconds that it lasted; empty if it goes on."""
    found = rows.query("SELECT * FROM vicidial_rt_monitor_log ORDER BY monitor_start_time")
    return [(str(row["monitor_end_time"] or ""), row["monitor_sec"]) for row in found]


@pytest.mark.parametrize("name", ["O04", "O04b", "O05"])
def test_the_recorded_calls(rows: VicidialTables, tables: Tables, name: str) -> None:
    """The rows of the recorded calls change as they did there."""
    scenario = recorded()[name]
    began_s = rows.load(scenario)
    before = rows.snapshot()
    leg, code = leg_of(tables, Moment.at(began_s)), scenario.agi["calleridname"]
    end_monitor(leg, code, scenario.agi["channel"])
    end_three_way(leg, code)
    ours = [each for each in scenario.changes if each["table"] != "call_log"]
    assert ours
    assert compare(ours, net_changes(before, rows.snapshot()), began_s) == []


@pytest.mark.parametrize(
    ("code", "channel", "ends"),
    [
        ("BM120215031000000001", BLIND, True),
        ("BM12021503", BLIND, True),
        ("BM120215031000000001", "SIP/trunk-00000001", False),
        ("BM1202150", BLIND, False),
        ("BB120215031000000001", "SIP/trunk-00000001", True),
        ("BW120215031000000001", "SIP/trunk-00000001", True),
        ("BW1202150", "SIP/trunk-00000001", False),
        ("V1202150310000000101", BLIND, False),
        ("xBW12021503", BLIND, False),
    ],
)
def test_whose_listening_ends(
    rows: VicidialTables, tables: Tables, code: str, channel: str, ends: bool
) -> None:
    """Who barges or whispers ends on any channel, who only listens on the blind one, and nobody else."""
    load(rows, monitor(code))
    end_monitor(leg_of(tables), code, channel)
    assert monitors(rows) == [(NOW.text, 60) if ends else ("", 0)]


def test_listening_that_ended_where_it_began(rows: VicidialTables, tables: Tables) -> None:
    """An end that equals the beginning stands for none."""
    load(rows, monitor("BW120215031000000001", ended=BEGAN))
    end_monitor(leg_of(tables), "BW120215031000000001", BLIND)
    assert monitors(rows) == [(NOW.text, 60)]


def test_listening_that_has_ended(rows: VicidialTables, tables: Tables) -> None:
    """A second END leaves the first one's time."""
    load(rows, monitor("BW120215031000000001"))
    end_monitor(leg_of(tables), "BW120215031000000001", BLIND)
    end_monitor(leg_of(tables, Moment.at(NOW.epoch + 100)), "BW120215031000000001", BLIND)
    assert monitors(rows) == [(NOW.text, 60)]


@pytest.mark.parametrize(
    ("code", "status", "ended_as"),
    [
        (PRESS, "ACTIVE", "HUNGUP"),
        (PRESS, "", "HUNGUP"),
        (PRESS, "HUNGUP", None),
        (PRESS, "WAS_HUNGUP_ONCE", None),
        ("T120215031000000010", "ACTIVE", None),
        ("V1202150310000000101", "ACTIVE", None),
    ],
)
def test_the_call_to_an_agent_outside(
    rows: VicidialTables, tables: Tables, code: str, status: str, ended_as: str | None
) -> None:
    """It ends once: its status says so, and its history gets the time of the database."""
    live = ("vicidial_3way_press_live", {"call_3way_id": code, "status": status})
    history = ("vicidial_3way_press_log", {"call_3way_id": code, "result": "Started"})
    load(rows, live, history)
    end_three_way(leg_of(tables), code)
    (left,) = rows.query("SELECT status FROM vicidial_3way_press_live")
    (told,) = rows.query("SELECT result FROM vicidial_3way_press_log")
    assert left["status"] == (status if ended_as is None else ended_as)
    if ended_as is None:
        assert told["result"] == "Started"
    else:
        found = re.fullmatch(r"Started\|Hungup: (.{19})", told["result"])
        assert found is not None
        assert datetime.fromisoformat(found[1])


def test_a_press_that_nobody_knows(rows: VicidialTables, tables: Tables) -> None:
    """Without a live row its history stays as it is."""
    load(rows, ("vicidial_3way_press_log", {"call_3way_id": PRESS, "result": "Started"}))
    end_three_way(leg_of(tables), PRESS)
    assert rows.query("SELECT result FROM vicidial_3way_press_log") == [{"result": "Started"}]
