"""fastagi_pool.handlers.vicidial.monitors: managers who listened, and agents outside."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

import pytest
from vicidial.comparing import compare, net_changes
from vicidial.playing import Row, recorded
from vicidial.tables import Tables as VicidialTables
from vicidial_legs import NOW, leg_of, state_before

from fastagi_pool.handlers.vicidial.leg import Moment
from fastagi_pool.handlers.vicidial.monitors import end_monitor, end_three_way
from fastagi_pool.handlers.vicidial.tables import Tables

pytest_plugins = ["vicidial_fixtures"]
pytestmark = pytest.mark.mariadb

BEGAN: Final = Moment.at(NOW.epoch - 60)
BLIND: Final = "SIP/ASTblind-000001"
PRESS: Final = "T1202150310000000101"


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
    rows.load(state_before(monitor(code)))
    end_monitor(leg_of(tables), code, channel)
    assert monitors(rows) == [(NOW.text, 60) if ends else ("", 0)]


def test_listening_that_ended_where_it_began(rows: VicidialTables, tables: Tables) -> None:
    """An end that equals the beginning stands for none."""
    rows.load(state_before(monitor("BW120215031000000001", ended=BEGAN)))
    end_monitor(leg_of(tables), "BW120215031000000001", BLIND)
    assert monitors(rows) == [(NOW.text, 60)]


def test_listening_that_has_ended(rows: VicidialTables, tables: Tables) -> None:
    """A second END leaves the first one's time."""
    rows.load(state_before(monitor("BW120215031000000001")))
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
    rows.load(state_before(live, history))
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
    rows.load(state_before(("vicidial_3way_press_log", {"call_3way_id": PRESS, "result": "Started"})))
    end_three_way(leg_of(tables), PRESS)
    assert rows.query("SELECT result FROM vicidial_3way_press_log") == [{"result": "Started"}]
