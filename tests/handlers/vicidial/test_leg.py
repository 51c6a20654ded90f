"""fastagi_pool.handlers.vicidial.leg: seconds of the wall clock, and what a request notes."""

from __future__ import annotations

import time
from typing import Any, Final, cast

import gevent
import pytest

from fastagi_pool.handlers.vicidial.leg import NEVER, Leg, Moment, Site, local_time
from fastagi_pool.handlers.vicidial.rows import NO_SERVER, NO_SYSTEM, Server

SITE: Final = Site("10.0.0.1")
#: What no note needs.
UNUSED: Final = cast(Any, None)


def leg(server: Server = NO_SERVER) -> Leg:
    """Make a request on this server."""
    return Leg(SITE, UNUSED, Moment.at(0), UNUSED, server, NO_SYSTEM)


@pytest.fixture
def chicago(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Live six hours behind Greenwich, five in summer."""
    monkeypatch.setenv("TZ", "CST6CDT,M3.2.0,M11.1.0")
    time.tzset()
    local_time.cache_clear()
    yield
    monkeypatch.undo()
    time.tzset()
    local_time.cache_clear()


@pytest.mark.usefixtures("chicago")
@pytest.mark.parametrize(
    ("epoch", "text"),
    [
        (1_700_000_040, "2023-11-14 16:14:00"),
        (1_690_000_000, "2023-07-21 23:26:40"),
        (1_699_164_000, "2023-11-05 01:00:00"),
        (1_699_167_600, "2023-11-05 01:00:00"),
    ],
)
def test_a_moment_is_local_time(epoch: int, text: str) -> None:
    """A second is written as the clock on the wall shows it, in winter, summer and the doubled hour."""
    assert Moment.at(epoch) == Moment(epoch, text)


def test_the_clock_tells_the_second() -> None:
    """The time now is whole seconds, and its text is that of the same second."""
    before = int(time.time())
    now = leg().clock()
    assert before <= now.epoch <= int(time.time())
    assert now == Moment.at(now.epoch)


def late_leg(late_s: float) -> Leg:
    """Make a request that came at 1000 and runs from the journal so much later."""
    return Leg(SITE, UNUSED, Moment.at(1000), UNUSED, NO_SERVER, NO_SYSTEM, late_s=late_s)


def test_in_a_run_from_the_journal_it_is_still_the_time_of_the_request() -> None:
    """The clock of a request that came an hour ago goes on from then, and today is today nonetheless."""
    request = late_leg(3600.0)
    before = int(time.time() - 3600)
    assert before <= request.clock().epoch <= int(time.time() - 3600)
    assert request.today_epoch == 4600


def test_a_first_run_knows_no_end_of_time() -> None:
    """What is younger than the request counts in its first run, and not in one from the journal."""
    assert leg().until == NEVER
    assert late_leg(0.0).until == Moment.at(1000).text


def test_a_run_from_the_journal_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing pauses in it, and a service that is slow does not hold up those who wait behind it."""
    paused_s: list[float] = []
    monkeypatch.setattr(gevent, "sleep", paused_s.append)
    late_leg(0.0).pause(1.0)
    assert paused_s == []
    leg().pause(1.0)
    assert paused_s == [1.0]
    assert (late_leg(0.0).patience_s(3.0), late_leg(0.0).patience_s(0.1), leg().patience_s(3.0)) == (
        0.5,
        0.1,
        3.0,
    )


@pytest.mark.parametrize("output", ["STDERR", "FILE", "BOTH"])
def test_notes_are_kept_in_order_if_the_server_wants_them(output: str) -> None:
    """A server that wants debug lines anywhere gets all of them."""
    request = leg(Server(output))
    request.note("first")
    request.note("second")
    assert request.notes == ["first", "second"]


def test_notes_are_dropped_if_nobody_wants_them() -> None:
    """A server without debug lines, or without a row, costs nothing for them."""
    request = leg()
    request.note("first")
    assert request.notes == []


def test_requests_share_nothing() -> None:
    """What one request notes cannot be seen in another."""
    first, second = leg(Server("FILE")), leg(Server("FILE"))
    first.note("mine")
    assert second.notes == []
    assert first.alt_dials is not second.alt_dials
