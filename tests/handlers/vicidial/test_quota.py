"""fastagi_pool.handlers.vicidial.quota: sessions and days of a lead's calls, and their counts."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Final

import pytest
from vicidial.playing import Row
from vicidial.tables import Tables as VicidialTables
from vicidial_legs import campaign_of, leg_of, state_before

from fastagi_pool.handlers.vicidial.leg import Moment
from fastagi_pool.handlers.vicidial.quota import (
    QuotaPlan,
    Session,
    count_call,
    day_of,
    day_start,
    quota_status,
    read_plan,
)
from fastagi_pool.handlers.vicidial.rows import QuotaCall
from fastagi_pool.handlers.vicidial.tables import Tables

pytest_plugins = ["vicidial_fixtures"]

# ---- the container


@pytest.mark.parametrize(
    ("texts", "counting"),
    [
        (("0900,1200",), (True,)),
        (("0900,2400",), (True,)),
        (("0000,0001",), (True,)),
        (("0900,1200", "1200,1700"), (True, True)),
        (("0900,1200", "1300,1700", "1700,2000"), (True, True, True)),
        (("0900,1200", "1159,1700"), (True, False)),
        (("0900,1200", "1159,1700", "1700,2000"), (True, False, False)),
        (("0900,1200", "", "1700,2000"), (True, False, False)),
        (("", "0900,1200"), (False, False)),
        (("1200,0900",), (False,)),
        (("0900,0900",), (False,)),
        (("0900,2401",), (False,)),
        (("900,1200",), (False,)),
        (("0900,120",), (False,)),
        (("0900-1200",), (False,)),
        (("09000,1200",), (False,)),
        (("0900, 12 00",), (True,)),
    ],
)
def test_sessions_that_count(texts: tuple[str, ...], counting: tuple[bool, ...]) -> None:
    """A session is two whole times, the later one last, and begins no earlier than one before it ends."""
    names = ("one", "two", "three", "four", "five", "six")
    text = "\n".join(f"session_{name} => {value}" for name, value in zip(names, texts, strict=False))
    plan = read_plan(text)
    assert tuple(session.counts for session in plan.sessions[: len(texts)]) == counting
    assert plan.counts is any(counting)
    assert plan.sessions[len(texts) :] == (Session(),) * (6 - len(texts))


@pytest.mark.parametrize(
    ("text", "zero_rank", "first"),
    [
        ("", False, Session()),
        ("zero_rank_after_call=>1\nsession_one=>0900,1200\n", True, Session(900, 1200, True)),
        ("zero_rank_after_call=>0\r\nsession_one=>0900,1200\r\n", False, Session(900, 1200, True)),
        ("zero_rank_after_call => 1 ; yes\n\tsession_one => 0900,1200 ; am", True, Session(900, 1200, True)),
        ("; zero_rank_after_call=>1\n;session_one=>0900,1200", False, Session()),
        ("session\\_one=>0900\\,1200", False, Session(900, 1200, True)),
        ("session_one=>0900,1200\nsession_one=>1000,1100", False, Session(1000, 1100, True)),
        ("zero_rank_after_call=>10", False, Session()),
        ("SESSION_ONE=>0900,1200", False, Session()),
    ],
)
def test_what_a_container_says(text: str, zero_rank: bool, first: Session) -> None:
    """Spaces, backslashes and what follows a semicolon mean nothing."""
    plan = read_plan(text)
    assert (plan.zero_rank, plan.sessions[0]) == (zero_rank, first)


def plan_of(*sessions: Session) -> QuotaPlan:
    """Return a plan with these sessions and no others."""
    return QuotaPlan(zero_rank=False, sessions=sessions + (Session(),) * (6 - len(sessions)))


DAY: Final = plan_of(Session(900, 1200, True), Session(1200, 1700, True))


@pytest.mark.parametrize(
    ("plan", "hour_minute", "session"),
    [
        (DAY, 859, ""),
        (DAY, 900, "one"),
        (DAY, 1159, "one"),
        (DAY, 1200, "two"),
        (DAY, 1659, "two"),
        (DAY, 1700, ""),
        (DAY, 0, ""),
        (plan_of(Session(0, 2400, True)), 0, "one"),
        (plan_of(Session(0, 2400, True)), 2359, "one"),
        (plan_of(Session(900, 1200, True), Session(1100, 1700)), 1130, "two"),
        (plan_of(Session(900, 1200, True), Session(1100, 1700), Session(1000, 1800)), 1130, "three"),
        (plan_of(*[Session(0, 1, True)] * 5, Session(900, 1000, True)), 930, "six"),
    ],
)
def test_the_session_of_a_call(plan: QuotaPlan, hour_minute: int, session: str) -> None:
    """A session begins with its first minute and ends before its last; of several the last one wins."""
    assert plan.session_at(hour_minute) == session


# ---- what is counted


@pytest.mark.parametrize(
    ("new_status", "log_status", "status"),
    [
        ("DROP", "QUEUE", "DROP"),
        ("", "B", "B"),
        ("", "LIVE", "PU"),
        ("LIVE", "B", "B"),
        ("LIVE", "LIVE", "PU"),
        ("", "LIVEX", "PU"),
        ("PDROP", "SENT", "PDROP"),
        ("", "ALIVE", "ALIVE"),
        ("", "", ""),
    ],
)
def test_the_status_that_is_counted(new_status: str, log_status: str, status: str) -> None:
    """The new status counts, else that of the log; a call that is said to live was picked up."""
    assert quota_status(new_status, log_status) == status


@pytest.mark.parametrize(
    ("day_ends_at", "hour_minute", "start"),
    [
        ("0000", 0, datetime(2026, 3, 1)),
        ("0000", 2359, datetime(2026, 3, 1)),
        ("0300", 300, datetime(2026, 3, 1, 3)),
        ("0300", 259, datetime(2026, 2, 28, 3)),
        ("2345", 1200, datetime(2026, 2, 28, 23, 45)),
        ("2400", 1200, datetime(2026, 3, 1)),
        ("", 1200, datetime(2026, 3, 1)),
    ],
)
def test_the_start_of_a_day(day_ends_at: str, hour_minute: int, start: datetime) -> None:
    """A day begins where the one before ended, which was yesterday if that time is still to come."""
    assert day_start(date(2026, 3, 1), day_ends_at, hour_minute) == start


@pytest.mark.parametrize(
    ("first_call", "day"),
    [
        (datetime(2026, 3, 10, 9), "one"),
        (datetime(2026, 3, 10, 3), "one"),
        (datetime(2026, 3, 10, 2, 59, 59), "two"),
        (datetime(2026, 3, 9, 3), "two"),
        (datetime(2026, 3, 8, 12), "three"),
        (datetime(2026, 3, 7, 12), "four"),
        (datetime(2026, 3, 6, 12), "five"),
        (datetime(2026, 3, 5, 12), "six"),
        (datetime(2026, 3, 4, 3), "seven"),
        (datetime(2026, 3, 4, 2, 59, 59), ""),
        (None, ""),
    ],
)
def test_the_day_of_a_call(first_call: datetime | None, day: str) -> None:
    """The days since the first call are counted to seven, each from the hour at which days begin."""
    assert day_of(first_call, datetime(2026, 3, 10, 3)) == day


# ---- with rows

#: Half past nine in the morning, wherever this runs.
NOW: Final = Moment.at(int(datetime(2026, 3, 10, 9, 30).timestamp()))
DIALLED_AT: Final = datetime(2026, 3, 10, 9, 29, 20)
COUNTERS: Final = "vicidial_lead_call_quota_counts"
PLAN: Final = "zero_rank_after_call=>0\nsession_one=>0900,1200\nsession_two=>1200,1700\n"
ZERO_RANK: Final = PLAN.replace("=>0\n", "=>1\n")


def load(
    rows: VicidialTables,
    counts: Row | None = None,
    plan: str = PLAN,
    dialled_at: datetime = DIALLED_AT,
    rank: int = 5,
    system: str = "1",
    campaign: str = "QUOTA",
    container: str = "QUOTA",
    code: str = "V1202150310000000101",
) -> None:
    """Fill the tables: lead 101, called for the fourth time, perhaps counted before."""
    wanted: list[tuple[str, Row]] = [
        ("vicidial_campaigns", {"campaign_id": "TESTCAMP", "call_quota_lead_ranking": campaign}),
        ("vicidial_settings_containers", {"container_id": container, "container_entry": plan}),
        ("vicidial_list", {"lead_id": 101, "list_id": 999, "called_count": 4, "rank": rank}),
        ("vicidial_dial_log", {"lead_id": 101, "caller_code": code, "call_date": dialled_at}),
    ]
    if counts is not None:
        wanted.append((COUNTERS, {"lead_id": 101, "list_id": 999} | counts))
    rows.load(state_before(*wanted, system={"call_quota_lead_ranking": system}))


def count(tables: Tables, new_status: str = "DROP", log_status: str = "QUEUE") -> None:
    """End a call."""
    count_call(leg_of(tables, NOW), campaign_of(tables), 101, new_status, log_status)


def counted(rows: VicidialTables) -> Row:
    """Return the lead's row of counts, without what is 0 or names the lead; empty if there is no row."""
    found = rows.query(f"SELECT * FROM {COUNTERS}")
    assert len(found) <= 1
    left_out = ("lead_id", "list_id", "modify_date")
    return (
        {name: value for name, value in found[0].items() if value and name not in left_out} if found else {}
    )


def rank_of_lead(rows: VicidialTables) -> int:
    """Return what the lead is left with."""
    return int(rows.query("SELECT `rank` FROM vicidial_list")[0]["rank"])


FIRST_CALL: Final = {
    "first_call_date": DIALLED_AT,
    "last_call_date": DIALLED_AT,
    "status": "DROP",
    "called_count": 4,
    "session_one_calls": 1,
    "session_one_today_calls": 1,
    "day_one_calls": 1,
    "rank": 5,
}


@pytest.mark.mariadb
def test_the_first_call(rows: VicidialTables, tables: Tables) -> None:
    """A lead without counts gets a row with one call, on its first day, in the session of its dial."""
    load(rows)
    count(tables)
    assert counted(rows) == FIRST_CALL
    assert rows.query(f"SELECT modify_date > NOW() - INTERVAL 1 MINUTE AS fresh FROM {COUNTERS}")[0]["fresh"]
    assert rank_of_lead(rows) == 5


@pytest.mark.mariadb
def test_the_next_call(rows: VicidialTables, tables: Tables) -> None:
    """A call on the day after is one more in its session, in the session today, and on day two."""
    before = {
        "first_call_date": datetime(2026, 3, 9, 15),
        "last_call_date": datetime(2026, 3, 9, 15),
        "status": "B",
        "session_one_calls": 2,
        "session_two_calls": 1,
        "session_one_today_calls": 1,
        "day_one_calls": 3,
        "modify_date": datetime(2026, 3, 9, 15),
    }
    load(rows, before)
    count(tables)
    assert counted(rows) == {
        "first_call_date": datetime(2026, 3, 9, 15),
        "last_call_date": DIALLED_AT,
        "status": "DROP",
        "called_count": 4,
        "session_one_calls": 3,
        "session_two_calls": 1,
        "session_one_today_calls": 2,
        "day_one_calls": 3,
        "day_two_calls": 1,
        "rank": 5,
    }


@pytest.mark.mariadb
def test_a_call_long_after_the_first(rows: VicidialTables, tables: Tables) -> None:
    """After seven days a call counts in its session only."""
    before = datetime(2026, 3, 1, 15)
    load(rows, {"first_call_date": before, "last_call_date": before, "modify_date": before})
    count(tables)
    days = [name for name in counted(rows) if name.startswith("day_")]
    assert (counted(rows)["session_one_calls"], days) == (1, [])


@pytest.mark.mariadb
def test_a_call_that_is_counted_already(rows: VicidialTables, tables: Tables) -> None:
    """The second end of a call changes its status only."""
    load(rows)
    count(tables)
    count(tables, "", "LIVE")
    assert counted(rows) == FIRST_CALL | {"status": "PU"}


@pytest.mark.mariadb
@pytest.mark.parametrize("changed", ["'2100-01-01'", "NULL"])
def test_counts_that_somebody_else_keeps(rows: VicidialTables, tables: Tables, changed: str) -> None:
    """A row that was not modified before now is left as it is."""
    before = datetime(2026, 3, 9, 15)
    load(rows, {"first_call_date": before, "last_call_date": before})
    rows.query(f"UPDATE {COUNTERS} SET modify_date = {changed}")
    count(tables)
    assert counted(rows) == {"first_call_date": before, "last_call_date": before}


@pytest.mark.mariadb
@pytest.mark.parametrize("known", [True, False])
def test_counts_that_are_repeated(
    rows: VicidialTables, tables: Tables, caplog: pytest.LogCaptureFixture, known: bool
) -> None:
    """A statement that is repeated after a lost connection counts nothing twice."""
    before = datetime(2026, 3, 9, 15)
    old = {"first_call_date": before, "last_call_date": before, "modify_date": before}
    load(rows, old if known else None)
    count(tables)
    once = counted(rows)
    rows.query(f"UPDATE {COUNTERS} SET modify_date = '2026-03-09'")
    again = _call_counted(rows)
    (tables.count_quota if known else tables.insert_quota)(again)
    assert counted(rows) == once
    assert caplog.messages == []


def _call_counted(rows: VicidialTables) -> QuotaCall:
    """Return the call that the row counted last."""
    found = counted(rows)
    return QuotaCall(101, 999, DIALLED_AT, "one", "two", found["status"], 4, 5, writes_rank=False)


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("plan", "rank", "left"),
    [(ZERO_RANK, 5, 0), (ZERO_RANK, 0, 0), (ZERO_RANK, -3, -3), (PLAN, 5, 5)],
)
@pytest.mark.parametrize("times", [1, 2])
def test_the_rank_after_a_call(
    rows: VicidialTables, tables: Tables, plan: str, rank: int, left: int, times: int
) -> None:
    """Where a call costs the rank, a rank above 0 is lost, in the counts and of the lead."""
    load(rows, plan=plan, rank=rank)
    for _ in range(times):
        count(tables)
    assert counted(rows).get("rank", 0) == left
    assert rank_of_lead(rows) == left


@pytest.mark.mariadb
def test_a_row_with_dates_of_zeros(rows: VicidialTables, tables: Tables) -> None:
    """A date that is none counts as long ago."""
    zero = "0000-00-00 00:00:00"
    load(rows, {"first_call_date": zero, "last_call_date": zero, "modify_date": datetime(2026, 3, 9)})
    count(tables)
    days = [name for name in counted(rows) if name.startswith("day_")]
    assert (counted(rows)["session_one_calls"], days) == (1, [])


@pytest.mark.mariadb
@pytest.mark.parametrize(
    "case",
    [
        {"system": "0"},
        {"campaign": "DISABLED", "container": "DISABLED"},
        {"campaign": ""},
        {"campaign": "MISSING"},
        {"plan": ""},
        {"plan": "session_two=>0900,1200"},
        {"plan": "session_one=>1200,1700"},
        {"dialled_at": datetime(2026, 3, 10, 5, 29), "plan": "session_one=>0000,2400"},
        {"code": "V1202150310000000102"},
    ],
)
def test_nothing_is_counted(rows: VicidialTables, tables: Tables, case: dict[str, Any]) -> None:
    """Nothing is written unless the switches are on, and sessions and a dial of four hours are there."""
    load(rows, **case)
    count(tables)
    assert counted(rows) == {}


@pytest.mark.mariadb
def test_a_lead_that_is_gone(rows: VicidialTables, tables: Tables) -> None:
    """Without a row of the lead nothing is counted, even if it was dialled."""
    load(rows)
    rows.query("DELETE FROM vicidial_list")
    count(tables)
    assert counted(rows) == {}
