"""fastagi_pool.handlers.builtin: what a dialplan learns of the pool before it sends a call."""

from __future__ import annotations

import pytest

from fastagi_pool.handlers.builtin import Load, StatusHandler, ping
from fastagi_pool.stage import Stage
from fastagi_pool.testing import AgiStatus
from fastagi_pool.version import VERSION

LOAD = Load(active=37, queued=2, places=200, workers=4, uptime_s=90.7)
TOLD = {
    "FAGI_LOAD": "18",
    "FAGI_ACTIVE": "37",
    "FAGI_QUEUED": "2",
    "FAGI_PLACES": "200",
    "FAGI_WORKERS": "4",
    "FAGI_UPTIME": "90",
    "FAGI_VERSION": VERSION,
}


def status_of(*loads: Load) -> StatusHandler:
    """Make a handler that finds one load after the other."""
    handler = StatusHandler()
    handler.connect(iter(loads).__next__)
    return handler


@pytest.mark.parametrize("dead", [False, True])
def test_a_ping_says_nothing_and_succeeds(agi_call: Stage, dead: bool) -> None:
    """A ping costs Asterisk no command, and ends as a success, also on a channel that hung up."""
    result = agi_call(ping, dead=dead)
    assert (result.status, result.commands) == (AgiStatus.SUCCESS, [])


@pytest.mark.parametrize("dead", [False, True])
def test_the_dialplan_learns_the_load(agi_call: Stage, dead: bool) -> None:
    """All is told in variables, also on a channel that hung up."""
    result = agi_call(status_of(LOAD).__call__, dead=dead)
    assert (result.status, result.variables, result.faults) == (AgiStatus.SUCCESS, TOLD, ())
    assert result.commands[0] == "SET VARIABLE FAGI_LOAD 18"


def test_each_call_learns_the_load_of_its_moment(agi_call: Stage) -> None:
    """The load is read anew for each call."""
    handler = status_of(LOAD, Load(200, 0, 200, 4, 91.0)).__call__
    assert [agi_call(handler).variables["FAGI_LOAD"] for _ in range(2)] == ["18", "100"]


@pytest.mark.parametrize(
    ("active", "queued", "places", "percent"),
    [
        *((0, 0, 200, 0), (1, 0, 200, 0), (199, 0, 200, 99), (200, 0, 200, 100), (230, 0, 200, 100)),
        *((50, 90, 200, 25), (0, 0, 0, 100), (3, 0, 0, 100)),
    ],
)
def test_the_load_in_percent(active: int, queued: int, places: int, percent: int) -> None:
    """100 means that there is no place, whatever the reason, and what waits takes none."""
    assert Load(active, queued, places, 4, 1.0).percent == percent


def test_a_load_that_nobody_knows_is_a_failure(agi_call: Stage) -> None:
    """Without a pool the dialplan is told a failure, and no number that looks like a load."""
    result = agi_call(StatusHandler().__call__, catch=True)
    assert result.status is AgiStatus.FAILURE
    assert "FAGI_LOAD" not in result.variables
