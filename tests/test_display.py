"""fastagi_pool.display: what people read of a pool, from pictures of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from fastagi_pool.display import (
    CallFilter,
    Moment,
    Table,
    TraceText,
    calls_table,
    complaints,
    count,
    databases_table,
    duration,
    paces,
    routes_table,
    shown,
    standing,
    status_lines,
    workers_table,
)
from fastagi_pool.recording import EventKind, TraceEvent


def worker(slot: int, **fields: Any) -> dict[str, Any]:
    """Make a worker's part of a picture."""
    return {
        "slot": slot,
        "generation": 3,
        "pid": 5000 + slot,
        "state": "ready",
        "age_s": 4000.0,
        "active": 2,
        "queued": 0,
        "places": 100,
        "served": 70,
        "failed": 1,
        "rss_bytes": 60 << 20,
        "stuck": False,
        "lag_s": 0.001,
        **fields,
    }


def route(name: str, **fields: Any) -> dict[str, Any]:
    """Make a route's part of a picture: 100 calls, of 40 ms each."""
    return {
        "route": name,
        "active": 2,
        "calls": 100,
        "failed": 3,
        "outcomes": {"ok": 97, "error": 3},
        "slow": 1,
        "hangups": 5,
        "commands": 400,
        "refused": 0,
        "queued_s": 0.0,
        "asterisk_s": 3.0,
        "script_s": 0.8,
        "database_s": 0.2,
        "total_s": 4.0,
        **fields,
    }


def database(name: str, **fields: Any) -> dict[str, Any]:
    """Make a database's part of a picture."""
    return {
        "name": name,
        "size": 8,
        "connected": 4,
        "in_use": 1,
        "waiting": 0,
        "statements": 50,
        "seconds": 0.1,
        "failures": 0,
        "up": True,
        "down_workers": 0,
        "down_s": 0.0,
        "reason": "",
        "server": "db1:3306",
        **fields,
    }


def lane(name: str, **fields: Any) -> dict[str, Any]:
    """Make a lane's part of a picture."""
    return {"name": name, "limit": 100, "active": 4, "queued": 0, "refused": 0, **fields}


def journal(**fields: Any) -> dict[str, Any]:
    """Make the part of a picture that tells of a journal with nothing in it."""
    return {
        "waiting": 0,
        "quarantined": 0,
        "oldest_age_s": None,
        "used_bytes": 40_960,
        "limit_bytes": 1_000_000,
        "databases": [{"name": "calls", "waiting": 0, "quarantined": 0}],
        **fields,
    }


def picture(**fields: Any) -> dict[str, Any]:
    """Make the picture of a pool in which all is well."""
    return {
        "version": "1.2.3",
        "master_pid": 4000,
        "running": True,
        "stopping": False,
        "generation": 3,
        "uptime_s": 7500.0,
        "active": 4,
        "queued": 0,
        "places": 200,
        "workers_wanted": 2,
        "listen": {"queue": 0, "limit": 1024, "most": 7},
        "reload": {"asked": 2, "refused": 0, "loading": False, "last_s": 65.0, "error": ""},
        "restarts": {"calls": 4, "died": 1, "memory": 0},
        "workers": [worker(0), worker(1)],
        "routes": [route("sales"), route("")],
        "peers": [{"peer": "10.0.0.1", "active": 4, "calls": 200, "failed": 6}],
        "databases": [database("calls")],
        "lanes": [lane("default")],
        "journal": None,
        "lost_calls": 0,
        "quarantined_requests": 0,
        "lost_lines": 0,
        "unreadable": [],
        **fields,
    }


def call(**fields: Any) -> dict[str, Any]:
    """Make a call in progress."""
    return {
        "slot": 1,
        "pid": 5001,
        "ref": "6a01-2a-1",
        "route": "sales",
        "script": "sales",
        "peer": "10.0.0.1",
        "uniqueid": "1700000000.5",
        "channel": "PJSIP/alice-1",
        "callerid": "+49301234",
        "state": "in Asterisk",
        "letter": "A",
        "age_s": 75.0,
        "state_s": 12.0,
        "queued_s": 0.0,
        "asterisk_s": 74.0,
        "script_s": 0.5,
        "database_s": 0.5,
        "commands": 9,
        "command": "WAIT FOR DIGIT 5000",
        "statement": "SELECT 1",
        "hung_up": False,
        **fields,
    }


# ---- words


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Zoë 漢", "Zoë 漢"),
        (7, "7"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
        ("\u202egnp", "\\u202egnp"),
        ("\udce9", "\\udce9"),
        ("it's", "it's"),
    ],
)
def test_nothing_raw_reaches_a_terminal(text: object, written: str) -> None:
    """What a terminal would obey, or what would turn a line around or break it, is escaped; letters stay."""
    assert shown(text) == written
    assert shown(text).isprintable()


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (-1, "0.0 ms"),
        (0.00042, "0.4 ms"),
        (0.25, "250.0 ms"),
        (1, "1.0 s"),
        (59.94, "59.9 s"),
        (60, "1m 00s"),
        (3599.9, "59m 59s"),
        (3600, "1h 00m"),
        (86399, "23h 59m"),
        (86400, "1d 00h"),
        (90000, "1d 01h"),
    ],
)
def test_duration(seconds: float, written: str) -> None:
    """A length of time has two units at most, and never less than nothing."""
    assert duration(seconds) == written


def test_count() -> None:
    """One thing is singular, many are easy to read."""
    assert [count(number, "call") for number in (0, 1, 12000)] == ["0 calls", "1 call", "12,000 calls"]


def test_table_is_aligned() -> None:
    """Words stand to the left, numbers to the right, and wide or combining letters count as they are seen."""
    table = Table(("name", "now"), (("漢字", "5"), ("e\u0301", "12"), ("long name", "7")))
    assert table.lines() == ["name       now", "漢字         5", "e\u0301           12", "long name    7"]


def test_table_without_rows() -> None:
    """A table of nothing is its heads."""
    assert Table(("name", "now"), ()).lines() == ["name  now"]


# ---- what is wrong


def test_a_healthy_pool_has_no_complaint() -> None:
    """Where all is well nothing is cried."""
    assert complaints(picture()) == []


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        (
            {"workers": [worker(0), worker(1, stuck=True)]},
            "worker 1 (pid 5001) is stuck with 2 calls: 'fastagi-pool dump 1'",
        ),
        ({"workers": []}, "no worker accepts calls"),
        ({"workers": [], "stopping": True}, "the pool is stopping"),
        ({"lost_lines": 12}, "12 lines of the log could not be written"),
        ({"unreadable": ["calls/0: not permitted"]}, "not shown here: calls/0: not permitted"),
        ({"workers": [worker(0), worker(1, state="starting")]}, "only 1 of 2 workers accept calls"),
        ({"workers": [worker(0), worker(1, lag_s=2.5)]}, "worker 1 lags by 2.5 s"),
        (
            {"databases": [database("calls", up=False, down_workers=2, reason="refused\x1b[m")]},
            "database calls is away for 2 workers: refused\\x1b[m",
        ),
        (
            {"databases": [database("calls", up=False, down_workers=1, down_s=45.0, reason="refused")]},
            "database calls is away for 1 worker, for 45.0 s now: refused",
        ),
        ({"journal": journal(quarantined=2)}, "the journal has 2 calls in quarantine, not to be done until"),
        ({"journal": journal(used_bytes=800_000)}, "the journal is 80% full; beyond that, calls fail"),
        ({"queued": 40}, "40 calls of 44 wait for a place (200 places)"),
        ({"listen": {"queue": 512, "limit": 1024, "most": 900}}, "the listening queue holds 512 of 1024"),
        (
            {"reload": {"asked": 1, "refused": 1, "loading": False, "last_s": 3.0, "error": "no module x"}},
            "the last reload was refused: no module x",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_complaints(fields: dict[str, Any], complaint: str) -> None:
    """Whatever is wrong is said once, in words that say where to look."""
    (found,) = complaints(picture(**fields))
    assert found.startswith(complaint)


def test_a_dead_pool_has_one_complaint() -> None:
    """Of a pool that does not run nothing else is cried."""
    assert complaints(picture(running=False, workers=[], queued=5)) == [
        "the master does not run: what follows is the pool's last word"
    ]


# ---- status


def test_status_lines() -> None:
    """The first screen: how the pool fares, then its workers, one line each."""
    assert status_lines(picture()) == [
        "fastagi-pool 1.2.3: running, master 4000, generation 3, up 2h 05m",
        "calls     4 in progress, 0 queued, 200 places; 200 served, 6 failed",
        "listening 0 of 1024 in the queue, 7 at most",
        "reloads   2, 0 refused, the last 1m 05s ago",
        "restarts  calls 4, died 1",
        "databases 1 of 1 answer",
        "",
        "worker  gen   pid  state  now  queued  places  served  failed  MB     lag     age",
        "     0    3  5000  ready    2       0     100      70       1  60  1.0 ms  1h 06m",
        "     1    3  5001  ready    2       0     100      70       1  60  1.0 ms  1h 06m",
    ]


def test_what_is_wrong_stands_first() -> None:
    """Complaints follow the first line, and a stuck worker is marked in the table."""
    lines = status_lines(picture(workers=[worker(0), worker(1, stuck=True)]))
    assert lines[1].startswith("!! worker 1 (pid 5001) is stuck")
    assert "STUCK" in lines[-1]


@pytest.mark.parametrize(
    ("reload", "written"),
    [
        ({"asked": 0, "refused": 0, "loading": False, "last_s": None, "error": ""}, "none"),
        (
            {"asked": 1, "refused": 0, "loading": True, "last_s": None, "error": ""},
            "1, 0 refused; a new generation is being loaded",
        ),
    ],
)
def test_reloads(reload: dict[str, Any], written: str) -> None:
    """It is told whether a reload ever happened, and whether one is under way."""
    assert f"reloads   {written}" in status_lines(picture(reload=reload))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"lanes": [lane("records", limit=50, queued=12, refused=1234), lane("default")]},
            "lanes     records 4 of 50, 12 queued, 1,234 refused; default 4 of 100",
        ),
        (
            {
                "journal": journal(
                    waiting=1234,
                    quarantined=2,
                    oldest_age_s=45.0,
                    used_bytes=30_000,
                    databases=[{"name": "vicidial", "waiting": 1234, "quarantined": 2}],
                )
            },
            "journal   1,234 calls wait for vicidial, the oldest for 45.0 s; 2 in quarantine; 3% full",
        ),
        ({"journal": journal(quarantined=2)}, "journal   2 in quarantine; 4% full"),
        (
            {"lost_calls": 12, "quarantined_requests": 1},
            "crashes   12 calls lost with workers that died; 1 request put into quarantine",
        ),
    ],
    ids=("lanes", "journal", "quarantine", "crashes"),
)
def test_what_protects_calls_is_told_of(fields: dict[str, Any], line: str) -> None:
    """A line each for lanes, the journal and crashes, in ``status`` and in ``top``."""
    found = picture(**fields)
    assert line in status_lines(found)
    assert line in Moment.between(found, found, 1.0, []).lines()


def test_an_empty_journal_is_not_worth_a_line() -> None:
    """A journal without calls, and a pool with one lane, are what everybody has."""
    assert status_lines(picture(journal=journal())) == status_lines(picture())


def test_a_journal_without_a_limit_is_not_full() -> None:
    """A journal of which no pool has said yet what it may take is told of without a fault."""
    assert complaints(picture(journal=journal(limit_bytes=0, waiting=1, oldest_age_s=1.0))) == []


def test_a_pool_that_has_done_nothing() -> None:
    """Without restarts and databases the lines say so, or are left out."""
    lines = status_lines(picture(restarts={}, databases=[], routes=[]))
    assert "restarts  none" in lines
    assert not any(line.startswith("databases") for line in lines)


@pytest.mark.parametrize(
    ("tabulate", "row"),
    [
        (workers_table, ("1", "3", "5001", "ready", "2", "0", "100", "70", "1", "60", "1.0 ms", "1h 06m")),
        (
            routes_table,
            (
                "(none)",
                "2",
                "100",
                "3",
                "1",
                "5",
                "400",
                "0",
                "0.0 ms",
                "30.0 ms",
                "8.0 ms",
                "2.0 ms",
                "40.0 ms",
            ),
        ),
        (databases_table, ("calls", "up", "8", "4", "1", "0", "50", "2.0 ms", "0", "db1:3306", "")),
    ],
)
def test_tables(tabulate: Callable[[dict[str, Any]], Table], row: tuple[str, ...]) -> None:
    """Each part of a picture has its row, in which the clocks are means."""
    table = tabulate(picture())
    assert table.rows[-1] == row
    assert len(table.heads) == len(row)


def test_means_of_nothing() -> None:
    """A route without calls has no means, and a database that is away says for how many workers."""
    assert routes_table(picture(routes=[route("new", calls=0)])).rows[0][-1] == "-"
    away = database("calls", up=False, down_workers=1, statements=0)
    assert databases_table(picture(databases=[away])).rows[0][1] == "away (1 worker)"
    assert databases_table(picture(databases=[away])).rows[0][7] == "-"


# ---- calls


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (CallFilter(), True),
        (CallFilter(route="s*"), True),
        (CallFilter(route="S*"), False),
        (CallFilter(callerid="+49*"), True),
        (CallFilter(callerid="49*"), False),
        (CallFilter(uniqueid="*.5"), True),
        (CallFilter(uniqueid="*.6"), False),
        (CallFilter(letter="A"), True),
        (CallFilter(letter="D"), False),
        (CallFilter(older_s=75.0), True),
        (CallFilter(older_s=75.1), False),
        (CallFilter(route="sales", letter="D"), False),
    ],
)
def test_which_calls_are_shown(wanted: CallFilter, fits: bool) -> None:
    """A call is shown if all that was asked for holds."""
    assert wanted.fits(call()) is fits


def test_calls_table() -> None:
    """A call's row says who it is, where its time went, and with which command it is, or which statement."""
    hostile = call(callerid="\x1b]0;x\x07", letter="D", state="in database", hung_up=True)
    table = calls_table([call(), hostile])
    assert dict(zip(table.heads, table.rows[0], strict=True)) == {
        "age": "1m 15s",
        "state": "in Asterisk",
        "since": "12.0 s",
        "route": "sales",
        "callerid": "+49301234",
        "uniqueid": "1700000000.5",
        "from": "10.0.0.1",
        "worker": "1",
        "queued": "0.0 ms",
        "Asterisk": "1m 14s",
        "script": "500.0 ms",
        "database": "500.0 ms",
        "at": "WAIT FOR DIGIT 5000",
    }
    second = dict(zip(table.heads, table.rows[1], strict=True))
    assert second["callerid"] == "\\x1b]0;x\\x07"
    assert (second["state"], second["at"]) == ("in database, hung up", "SELECT 1")


def test_call_of_which_nothing_is_known_yet() -> None:
    """Where a call has not said who it is, dashes stand."""
    fields = {"route": "", "callerid": "", "uniqueid": "", "command": "", "letter": "R"}
    (row,) = calls_table([call(**fields)]).rows
    assert [row[place] for place in (3, 4, 5, -1)] == ["-"] * 4


def test_standing() -> None:
    """What a call is doing fits into one line."""
    assert standing(call()) == "now in Asterisk since 12.0 s: WAIT FOR DIGIT 5000"


# ---- top


def later(**fields: Any) -> dict[str, Any]:
    """Make the picture of two seconds later: ten more calls of route sales, two of them failed."""
    found = copy.deepcopy(picture(**fields))
    found["routes"][0].update(calls=110, failed=5, asterisk_s=3.2, script_s=0.9, database_s=0.2)
    found["peers"][0].update(calls=210)
    return found


def test_moment() -> None:
    """Rates are differences over time, clocks means of the calls that ended meanwhile, the busiest first."""
    moment = Moment.between(picture(), later(), 2.0, [call()])
    assert (moment.rate, moment.failed_rate) == (5.0, 1.0)
    sales, unrouted = moment.routes
    assert (sales.name, sales.rate, unrouted.rate, unrouted.clocks_s) == ("sales", 5.0, 0.0, None)
    assert sales.clocks_s == pytest.approx((0.0, 0.02, 0.01, 0.0))
    assert [(peer.name, peer.rate) for peer in moment.peers] == [("10.0.0.1", 5.0)]
    assert json.loads(json.dumps(moment.as_json()))["routes"][0]["asterisk_s"] == 0.02


def test_counters_that_begin_anew() -> None:
    """After a restart of the pool no rate is negative: what has been counted since is what happened."""
    (pace,) = paces(
        [route("sales", calls=1000, failed=50)], [route("sales", calls=10, failed=1)], "route", 2.0
    )
    assert (pace.rate, pace.failed_rate) == (5.0, 0.5)


def test_a_route_that_is_new() -> None:
    """A route that was not there before counts from nothing."""
    (pace,) = paces([], [route("sales")], "route", 2.0)
    assert pace.rate == 50.0


def test_lines_of_a_moment() -> None:
    """All four parts are there: the pool, its routes, its Asterisk servers, the slowest calls."""
    lines = Moment.between(picture(), later(queued=3), 2.0, [call()]).lines()
    assert lines[0].startswith("fastagi-pool 1.2.3: running")
    assert lines[1].startswith("!! 3 calls of 7 wait for a place")
    assert lines[2] == "5.0 calls a second, 1.0 failed; 4 in progress, 3 queued, 200 places; 2 of 2 workers"
    text = "\n".join(lines)
    for part in ("route   calls/s", "(none)", "peer      calls/s", "10.0.0.1", "WAIT FOR DIGIT 5000"):
        assert part in text


@pytest.mark.parametrize("height", [10, 16, 24, 60])
def test_a_moment_fits_the_terminal(height: int) -> None:
    """However much there is to show, it has no more lines than the terminal, and from 16 on all parts."""
    routes = [route(f"r{number}") for number in range(100)]
    peers = [{"peer": f"10.0.0.{number}", "active": 1, "calls": 9, "failed": 0} for number in range(100)]
    now = picture(routes=routes, peers=peers)
    lines = Moment.between(now, now, 1.0, [call()] * 100).lines(height)
    assert len(lines) <= height
    text = "\n".join(lines)
    assert ("r0" in text, "10.0.0.0" in text, "WAIT" in text) == (True, True, height >= 16)


# ---- trace


def event(kind: EventKind, at_s: float = 0.0, text: str = "", *, ref: str = "c1", **facts: Any) -> TraceEvent:
    """Make an event."""
    return TraceEvent(ref, at_s, kind, text, facts)


def test_traced_call() -> None:
    """Each line says when, whose time has passed since the line before, and what was said."""
    environment = {
        "agi_network_script": "pin",
        "agi_callerid": "\x1b[1m",
        "agi_uniqueid": "17.5",
        "agi_channel": "PJSIP/a",
    }
    facts: dict[str, Any] = {"route": "pin", "environment": environment, "masked": True, "joined": False}
    clocks: dict[str, Any] = {
        "queued_s": 0.0,
        "asterisk_s": 1.5,
        "script_s": 0.01,
        "database_s": 0.002,
        "total_s": 1.6,
    }
    text = TraceText(several=False)
    events = [
        event(EventKind.BEGIN, **facts),
        event(EventKind.COMMAND, 0.001, "GET DATA pin"),
        event(EventKind.ANSWER, 1.501, "200 result=****"),
        event(EventKind.UNSENT, 1.502, "NOOP"),
        event(EventKind.HANGUP, 1.502, "HANGUP"),
        event(EventKind.END, 1.51, "hangup", commands=1, error="", **clocks),
    ]
    assert [line for each in events for line in text.lines(each)] == [
        "        0.0 ms  == call=c1 route=pin script=pin callerid=\\x1b[1m uniqueid=17.5 channel=PJSIP/a",
        "        0.0 ms     what the caller dials is hidden (mask_digits)",
        "        1.0 ms  script      1.0 ms  <- GET DATA pin",
        "     1501.0 ms  Asterisk     1.5 s  -> 200 result=****",
        "     1502.0 ms  that command was not sent: the handler has given the call back",
        "     1502.0 ms  the caller hung up",
        "     1510.0 ms  == ended: hangup; queued 0.0 ms, Asterisk 1.5 s, script 10.0 ms, database 2.0 ms; "
        "1.6 s in all, 1 command",
    ]


def test_several_traced_calls() -> None:
    """Where calls are mixed each line names its own, and the times of one do not count for another."""
    text = TraceText(several=True)
    text.lines(event(EventKind.BEGIN, ref="a"))
    text.lines(event(EventKind.BEGIN, ref="b", joined=True))
    text.lines(event(EventKind.COMMAND, 0.005, "ANSWER", ref="a"))
    (line,) = text.lines(event(EventKind.COMMAND, 0.004, "ANSWER", ref="b"))
    assert line == "b         4.0 ms  script      4.0 ms  <- ANSWER"


def test_traced_call_in_progress() -> None:
    """Of a call that was joined it is said, and its first answer, whose command nobody saw, has no time."""
    text = TraceText(several=False)
    assert "in progress already" in text.lines(event(EventKind.BEGIN, joined=True))[1]
    (line,) = TraceText(several=False).lines(event(EventKind.ANSWER, 0.5, "200 result=0"))
    assert line == "      500.0 ms  Asterisk    0.0 ms  -> 200 result=0"


def test_end_of_a_traced_call() -> None:
    """An error stands below the outcome, and an end of which nothing else is known is told all the same."""
    text = TraceText(several=False)
    assert text.lines(event(EventKind.END, 1.0, "ok")) == ["     1000.0 ms  == ended: ok"]
    clocks: dict[str, Any] = dict.fromkeys(
        ("queued_s", "asterisk_s", "script_s", "database_s", "total_s"), 0.0
    )
    lines = text.lines(event(EventKind.END, 1.0, "error", commands=0, error="KeyError: 'x'\n", **clocks))
    assert lines[1] == "     1000.0 ms     KeyError: 'x'\\n"
