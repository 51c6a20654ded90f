"""A channel has hung up: which rows are closed and which are left alone, also if calls and programs meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import gevent
import pytest
from vicidial.playing import SERVER_IP, Placed, Scenario
from vicidial_staged_site import (
    OTHER_SERVER,
    StagedSite,
    await_that,
    call_of,
    hangup_request,
    parked,
    with_columns,
    without,
)

from fastagi_pool.testing import AgiStatus

pytest_plugins = ["vicidial_fixtures"]
pytestmark = pytest.mark.mariadb

_UID: Final = "1700000000.26"
_V: Final = "V1202150310000000101"
_M: Final = "M1202150310000000101"
_Y: Final = "Y1202150310000000101"
#: Long enough for whatever a test does meanwhile.
_PATIENT: Final = {"start_wait": 10}
#: A dropped call of which a drop row and the lead's next number must come.
_DROPPED: Final = replace(call_of("A01"), system_settings={"enable_drop_lists": "2"})


def call_row(uniqueid: str, code: str, channel: str = "SIP/trunk", **columns: object) -> Placed:
    """Give the open row of a leg."""
    row = {"uniqueid": uniqueid, "caller_code": code, "channel": channel, "start_epoch": "{ep-9}"}
    return "call_log", {**row, **columns}


def auto_call(uniqueid: str, code: str, status: str = "LIVE", **columns: object) -> Placed:
    """Give the row of a call that is alive."""
    row = {"server_ip": SERVER_IP, "campaign_id": "TESTCAMP", "lead_id": 101, "call_time": "{dt-40}"}
    return "vicidial_auto_calls", {**row, "uniqueid": uniqueid, "callerid": code, "status": status, **columns}


def popup(uniqueid: str = _UID) -> Placed:
    """Give the row of a pop-up, which an END deletes as soon as it has looked for its call."""
    return "live_inbound", {"uniqueid": uniqueid, "channel": "x", "server_ip": SERVER_IP}


def aftermath(site: StagedSite) -> tuple[list[Any], ...]:
    """Give what follows from the end of a call: the lead, its log row, the drop, the next number."""
    return (
        site.rows("vicidial_list", "status"),
        site.rows("vicidial_log", "status", "term_reason"),
        site.rows("vicidial_drop_log", "uniqueid", "status"),
        site.rows("vicidial_hopper", "alt_dial", "priority"),
    )


_NOTHING_FOLLOWED: Final[tuple[list[Any], ...]] = ([("QUEUE",)], [("QUEUE", "NONE")], [], [])
_DROP_FOLLOWED: Final[tuple[list[Any], ...]] = (
    [("DROP",)],
    [("DROP", "ABANDON")],
    [(_UID, "DROP")],
    [("ALT", 25)],
)


# ---- options


@pytest.mark.parametrize(("option", "closed"), [(False, []), (True, [_UID])])
def test_close_local_manual(site: StagedSite, option: bool, closed: list[str]) -> None:
    """A manual call that has a Local row only stays open, as ever, unless the operator wants it closed."""
    site.run(call_of("E12"), {"close_local_manual": option})

    assert site.closed() == closed


def test_close_local_manual_closes_each_leg(site: StagedSite) -> None:
    """If both Local legs of a manual call have a row, each END closes its own."""
    first, second = call_of("E12"), call_of("E12", uniqueid="1700000000.27", channel="Local/1@x;2")
    site.load(replace(first, rows=(*first.rows, call_row("1700000000.27", _M, "Local/1@x;2"))))
    for call in (first, second):
        site.play(call, {"close_local_manual": True})

    assert site.closed() == [_UID, "1700000000.27"]


@pytest.mark.parametrize(("option", "ended"), [(False, "1700000009.1"), (True, _UID)])
def test_closer_by_uniqueid(site: StagedSite, option: bool, ended: str) -> None:
    """The lead's newest inbound row is ended, or the call's own before it if the operator wants that."""
    newer = {"lead_id": 101, "campaign_id": "SALESLINE", "call_date": "{dt-10}", "start_epoch": "{ep-10}"}
    other: Placed = ("vicidial_closer_log", {**newer, "status": "INCALL", "uniqueid": "1700000009.1"})
    site.run(call_of("E23b", other), {"closer_by_uniqueid": option})

    rows = site.rows("vicidial_closer_log", "uniqueid", "COALESCE(end_epoch, 0) > 0")
    assert [uid for uid, has_ended in rows if has_ended] == [ended]


@pytest.mark.parametrize("option", [False, True])
def test_closer_by_uniqueid_takes_the_newest_without_an_own(site: StagedSite, option: bool) -> None:
    """A call whose unique id no inbound row has ends the lead's newest, with the option or without."""
    row = {"lead_id": 101, "campaign_id": "SALESLINE", "call_date": "{dt-9}", "start_epoch": "{ep-10}"}
    call = without(call_of("E23b"), "vicidial_closer_log")
    for uniqueid in ("1700000009.1", "1700000009.2"):
        newest: Placed = ("vicidial_closer_log", {**row, "status": "INCALL", "uniqueid": uniqueid})
        call = replace(call, rows=(*call.rows, newest))
    site.run(call, {"closer_by_uniqueid": option})

    found = site.rows("vicidial_closer_log", "uniqueid", "COALESCE(end_epoch, 0) > 0")
    assert found == [("1700000009.1", 0), ("1700000009.2", 1)]


@pytest.mark.parametrize(("option", "hopper"), [(False, [("ALT", 25)]), (True, [])])
def test_threshold_always(site: StagedSite, option: bool, hopper: list[tuple[str, int]]) -> None:
    """A lead that was called often enough is dialled on after a drop, unless the threshold holds for all."""
    site.run(call_of("A15d"), {"threshold_always": option})

    assert site.rows("vicidial_hopper", "alt_dial", "priority") == hopper


@pytest.mark.parametrize(("option", "hopper"), [(False, [("ADDR3", 20)]), (True, [])])
def test_addr3_own_area_code(site: StagedSite, option: bool, hopper: list[tuple[str, int]]) -> None:
    """The third number's own area code keeps it from being dialled, or that of the second, as ever."""
    site.run(call_of("A18"), {"addr3_own_area_code": option})

    assert site.rows("vicidial_hopper", "alt_dial", "priority") == hopper


# ---- an END and its START


def test_an_end_before_its_start(site: StagedSite) -> None:
    """An END that overtook its START in the same worker closes the row as soon as it is there."""
    start, end = call_of("S03", popup()), call_of("E20c", uniqueid=_UID)
    site.load(start)
    ending = gevent.spawn(site.play, end, _PATIENT)
    await_that(lambda: not site.rows("live_inbound", "uniqueid"), "the END had looked for its row")
    assert site.rows("call_log", "uniqueid") == []
    site.play(start, _PATIENT)
    ending.get()

    assert site.closed() == [_UID]
    assert site.rows("call_log", "channel", "length_in_sec <= 2") == [(end.agi["channel"], 1)]


def test_an_end_before_its_start_whose_connection_is_lost(site: StagedSite) -> None:
    """Also if Asterisk is gone by then, a START that came late finds its END."""
    start, end = call_of("S01", popup(call_of("E02").agi["uniqueid"])), call_of("E02")
    site.load(start)
    behaviour = {"hangup_after": 0, "variables": {"AGIEXITONHANGUP": "yes"}}
    ending = gevent.spawn(site.play, end, _PATIENT, **behaviour)
    await_that(lambda: not site.rows("live_inbound", "uniqueid"), "the END had looked for its row")
    site.play(start, _PATIENT)
    ending.get()

    assert site.closed() == [end.agi["uniqueid"]]


@pytest.mark.parametrize("wait_s", [0.0, 0.1])
def test_an_end_without_a_start(site: StagedSite, wait_s: float) -> None:
    """The wait for a START is bounded, and the dialplan has its call back when it is over, not before."""
    result = site.run(without(call_of("E02"), "call_log"), {"start_wait": wait_s})
    record = result.record

    assert record is not None
    assert (result.outcome, result.status, site.rows("call_log", "uniqueid")) == ("ok", AgiStatus.SUCCESS, [])
    assert record.held_s is None
    assert wait_s <= record.total_s


@pytest.mark.parametrize("name", ["E02", "O03", "E12"])
def test_an_end_whose_row_is_there_does_not_wait(site: StagedSite, name: str) -> None:
    """A row that was found, be it one that stays as it is, keeps nobody waiting for another."""
    record = site.run(call_of(name), _PATIENT).record

    assert record is not None
    assert record.held_s is None


def test_a_manual_end_before_its_start(site: StagedSite) -> None:
    """A manual call's SIP leg whose START comes late is closed, though its Local leg has a row already."""
    start = call_of("S03", uniqueid="1700000000.27", callerid=_M, calleridname=_M)
    end = call_of("E12", popup(), uniqueid="1700000000.27", channel="SIP/trunk-1")
    site.load(end)
    ending = gevent.spawn(site.play, end, _PATIENT)
    await_that(lambda: not site.rows("live_inbound", "uniqueid"), "the END had looked for its row")
    site.play(start, _PATIENT)
    ending.get()

    assert site.closed() == ["1700000000.27"]


# ---- legs of one call


def test_two_legs_of_one_call(site: StagedSite) -> None:
    """Each END of an automatic call closes its own row; only that of the answered leg ends the call."""
    answered = call_of("E18", uniqueid="1700000000.27")
    local = call_of("E01")
    answered = with_columns(answered, "call_log", uniqueid="1700000000.27")
    site.load(replace(answered, rows=(*answered.rows, call_row(_UID, _V, "Local/1@x;2"))))
    site.play(local)
    assert (site.closed(), len(site.rows("vicidial_auto_calls", "callerid"))) == ([_UID], 1)
    site.play(answered)

    assert site.closed() == [_UID, "1700000000.27"]
    assert site.rows("vicidial_auto_calls", "callerid") == []


def test_a_manual_calls_local_leg_closes_the_other(site: StagedSite) -> None:
    """The END of a manual call's Local leg closes the other leg's row, and that leg's own END once more."""
    site.load(call_of("E12", call_row("1700000000.27", _M)))
    site.play(call_of("E12"))
    assert site.closed() == ["1700000000.27"]
    site.play(call_of("E12", uniqueid="1700000000.27", channel="SIP/trunk-1"))

    assert site.closed() == ["1700000000.27"]


def test_an_empty_code_matches_nobodys_rows(site: StagedSite) -> None:
    """A call without a code is closed; calls, agents and parked channels that have none are left alone."""
    foreign: list[Placed] = [
        auto_call("1700000008.1", ""),
        parked(OTHER_SERVER, "SIP/x", ""),
        (
            "parked_channels_recent",
            {"server_ip": OTHER_SERVER, "channel_group": "", "park_end_time": "{dt-5}"},
        ),
        ("vicidial_live_agents", {"user": "6666", "server_ip": SERVER_IP, "lead_id": 0, "ring_callerid": ""}),
        call_row("1700000008.1", ""),
    ]
    url = "agi://127.0.0.1:4577/call_log--fullCID--h-----ALL----- x----- Jane"
    call = call_of("E02", *foreign, request=url)
    result = site.run(call)

    assert result.outcome == "ok"
    assert site.closed() == [call.agi["uniqueid"]]
    assert site.rows("vicidial_auto_calls", "uniqueid") == [("1700000008.1",)]


def test_an_empty_code_ends_the_call_of_its_own_unique_id(site: StagedSite) -> None:
    """A call without a code that is alive under its unique id is ended, and no other."""
    url = "agi://127.0.0.1:4577/call_log--fullCID--h-----ALL----- x----- Jane"
    call = with_columns(
        call_of("E15", auto_call("1700000008.1", ""), request=url), "call_log", caller_code=""
    )
    site.run(call)

    assert site.rows("vicidial_auto_calls", "uniqueid") == [("1700000008.1",)]
    assert site.rows("vicidial_log", "status") == [("DROP",)]


# ---- calls that are alive


@contextmanager
def deleting_calls_alive(site: StagedSite) -> Iterator[None]:
    """Be another program: when a row of ``call_log`` is closed, delete all calls that are alive."""
    site.tables.query(
        "CREATE TRIGGER agent_was_first AFTER UPDATE ON call_log FOR EACH ROW DELETE FROM vicidial_auto_calls"
    )
    try:
        yield
    finally:
        site.tables.query("DROP TRIGGER agent_was_first")


def test_a_call_that_vanishes_between_look_and_delete(site: StagedSite) -> None:
    """Who does not delete the call does nothing of what follows; the call itself is closed."""
    with deleting_calls_alive(site):
        result = site.run(_DROPPED)

    assert (result.outcome, site.closed()) == ("ok", [_UID])
    assert aftermath(site) == _NOTHING_FOLLOWED


def test_a_call_that_stays_has_its_aftermath(site: StagedSite) -> None:
    """The same call, left alone, is a drop with all that follows."""
    site.run(_DROPPED)

    assert aftermath(site) == _DROP_FOLLOWED
    assert site.rows("vicidial_auto_calls", "callerid") == []


def test_a_second_end_adds_nothing(site: StagedSite) -> None:
    """Whoever comes when the call is gone leaves drop, next number and statuses as they are."""
    site.run(_DROPPED)
    site.play(_DROPPED)

    assert aftermath(site) == _DROP_FOLLOWED


def test_two_ends_at_once_in_one_worker(site: StagedSite) -> None:
    """Two ENDs that look at the same moment leave one drop and one next number."""
    site.load(_DROPPED)
    gevent.joinall([gevent.spawn(site.play, _DROPPED) for _ in range(2)], raise_error=True)

    assert aftermath(site) == _DROP_FOLLOWED


@pytest.mark.parametrize(
    ("calls", "left"),
    [
        ([auto_call("1700000009.1", _V, "IVR")], ["1700000009.1"]),
        ([auto_call(_UID, _V, "IVR")], []),
        ([auto_call(_UID, "V1202150310000000999", "IVR")], []),
        ([auto_call("1700000009.1", _V, "IVR"), auto_call("1700000009.2", _V)], ["1700000009.1"]),
        ([auto_call("1700000009.1", _V, "XFER"), auto_call(_UID, "x", call_time="{dt-90}")], [_UID]),
        (
            [auto_call("1700000009.1", _V, call_time="{dt-90}"), auto_call("1700000009.2", _V)],
            ["1700000009.1"],
        ),
        ([auto_call("1700000009.1", _V), auto_call(_UID, "x", "IVR", call_time="{dt-9}")], ["1700000009.1"]),
        ([auto_call("1700000009.1", _V.lower())], []),
    ],
)
def test_which_call_alive_is_deleted(site: StagedSite, calls: list[Placed], left: list[str]) -> None:
    """One row goes: the newest of the code or the unique id; of those in a menu only the unique id's own."""
    call = without(call_of("E15"), "vicidial_auto_calls")
    site.run(replace(call, rows=(*call.rows, *calls)))

    assert [uid for (uid,) in site.rows("vicidial_auto_calls", "uniqueid")] == left


def test_a_call_in_a_menu_is_dropped_once(site: StagedSite) -> None:
    """A call that stays in its menu has what follows, and a second END right behind adds no drop row."""
    call = with_columns(call_of("E27"), "vicidial_closer_log", status="QUEUE", user="VDCL")
    call = replace(call, system_settings={"enable_drop_lists": "1"})
    site.run(call)
    site.play(call)

    assert site.rows("vicidial_drop_log", "uniqueid", "status") == [(_UID, "DROP")]
    assert site.rows("vicidial_auto_calls", "status") == [("IVR",)]


# ---- parked calls


def closing(site: StagedSite, call: Scenario) -> gevent.Greenlet[..., Any]:
    """Begin an END and wait until it has closed the call's row: what it does next is to wait."""
    site.load(call)
    ending = gevent.spawn(site.play, call)
    await_that(lambda: bool(site.closed()), "the END had closed its row")
    return ending


def test_a_parked_channel_that_appears_meanwhile_keeps_the_call(site: StagedSite) -> None:
    """Whether a parked channel lives is asked after the pause, so that it counts if it was seen meanwhile."""
    call = call_of("P03")
    ending = closing(site, call)
    seen = (call.agi["channel"], SERVER_IP)
    site.tables.query("INSERT INTO live_channels (channel, server_ip) VALUES (%s, %s)", seen)
    ending.get()

    assert len(site.rows("vicidial_auto_calls", "callerid")) == 1
    assert site.rows("vicidial_log", "term_reason") == [("NONE",)]


def test_a_parked_channel_that_goes_meanwhile_ends_the_call(site: StagedSite) -> None:
    """A channel that was alive before the pause and is not behind it keeps nothing."""
    ending = closing(site, call_of("P02"))
    site.tables.query("DELETE FROM live_channels")
    ending.get()

    assert site.rows("vicidial_auto_calls", "callerid") == []
    assert site.rows("vicidial_log", "term_reason") == [("CALLER",)]


def test_a_parked_call_that_vanishes_meanwhile(site: StagedSite) -> None:
    """Who finds behind the pause that the call was ended by somebody else does nothing of what follows."""
    call = replace(_DROPPED, rows=(*_DROPPED.rows, parked(SERVER_IP, "SIP/x")))
    ending = closing(site, call)
    site.tables.query("DELETE FROM vicidial_auto_calls")
    ending.get()

    assert aftermath(site) == _NOTHING_FOLLOWED


def test_a_call_that_is_parked_elsewhere_is_left_alone(site: StagedSite) -> None:
    """Another server will end a call that is parked there: nothing at all is written, and nobody waits."""
    call = replace(_DROPPED, rows=(*_DROPPED.rows, parked(OTHER_SERVER, "SIP/x"), popup()))
    result = site.run(call)

    assert result.record is not None
    assert (result.record.held_s, site.closed()) == (None, [])
    assert len(site.rows("live_inbound", "uniqueid")) == 1
    assert site.rows("vicidial_carrier_log", "uniqueid") == []
    assert aftermath(site) == _NOTHING_FOLLOWED


# ---- rows of other programs


@pytest.mark.parametrize(
    ("end_epoch", "is_closed"), [(None, True), (0, True), (1000, True), (1001, False), ("{ep-5}", False)]
)
@pytest.mark.parametrize("group", ["DID_INBOUND", "x DID_INBOUND y"])
def test_an_inbound_row_that_has_ended_stays(
    site: StagedSite, end_epoch: object, is_closed: bool, group: str
) -> None:
    """A row of the inbound script with a time as its end is not ended again, nor is its recording."""
    call = with_columns(call_of("O02"), "call_log", end_epoch=end_epoch, channel_group=group)
    site.load(call)
    before = site.rows("call_log", "end_epoch", "end_time", "length_in_sec")
    site.play(call)

    assert (site.rows("call_log", "end_epoch", "end_time", "length_in_sec") != before) == is_closed
    assert site.rows("recording_log", "end_epoch IS NOT NULL") == [(int(is_closed),)]


def test_any_other_row_that_has_ended_is_ended_again(site: StagedSite) -> None:
    """The rule is of inbound rows alone: another's end moves to the last END."""
    site.run(with_columns(call_of("E02"), "call_log", end_epoch=1001))

    assert site.closed()
    assert site.rows("call_log", "end_epoch > 1001") == [(1,)]


def test_only_the_newest_recording_is_ended(site: StagedSite) -> None:
    """Of several recordings the newest is ended if it is open; older ones stay as they are."""
    older: Placed = ("recording_log", {"recording_id": 6, "vicidial_id": _UID, "start_epoch": "{ep-30}"})
    site.run(call_of("O02", older))
    assert site.rows("recording_log", "recording_id", "end_epoch > 0") == [(6, None), (7, 1)]

    newer: Placed = ("recording_log", {"recording_id": 8, "vicidial_id": _UID, "end_epoch": 12345})
    site.run(call_of("O02", older, newer))
    found = site.rows("recording_log", "recording_id", "end_epoch")
    assert found == [(6, None), (7, None), (8, 12345)]


@pytest.mark.parametrize("group", ["DOUBLE_LOG", "x"])
def test_the_second_row_of_a_call(site: StagedSite, group: str) -> None:
    """The row that a name-recording script made is ended with the call, and no other of such a unique id."""
    call = call_of("E02")
    uid = call.agi["uniqueid"]
    site.run(replace(call, rows=(*call.rows, call_row(f"{uid}99", "x", "SIP/kept", channel_group=group))))

    closed = [uid, f"{uid}99"] if group == "DOUBLE_LOG" else [uid]
    assert site.closed() == closed
    assert ("SIP/kept",) in site.rows("call_log", "channel")


def test_only_our_own_popups_go(site: StagedSite) -> None:
    """A call's pop-ups of this server are deleted; another server's and another call's stay."""
    rows: list[Placed] = [
        ("live_inbound", {"uniqueid": uid, "channel": "x", "server_ip": server_ip})
        for uid, server_ip in ((_UID, SERVER_IP), (_UID, OTHER_SERVER), ("1700000000.27", SERVER_IP))
    ]
    site.run(call_of("E02", *rows, uniqueid=_UID))

    assert site.rows("live_inbound", "uniqueid", "server_ip") == [
        (_UID, OTHER_SERVER),
        ("1700000000.27", SERVER_IP),
    ]


# ---- settings that are missing


def test_without_settings_every_lead_is_written(site: StagedSite) -> None:
    """Where there is no row of settings no lead is too high, and nothing is logged as wrong."""
    code = "V1202150310000500000"
    call = call_of("E03", callerid=code, calleridname=code)
    call = with_columns(
        with_columns(call, "vicidial_list", lead_id=500_000), "vicidial_auto_calls", callerid=code
    )
    site.load(call)
    site.tables.query("DELETE FROM system_settings")
    result = site.play(call)

    assert (result.outcome, site.rows("vicidial_list", "status")) == ("ok", [("AB",)])


@pytest.mark.parametrize(("lead_id", "status"), [(209_999, "AB"), (210_000, "QUEUE")])
def test_leads_beyond_the_highest_are_none(site: StagedSite, lead_id: int, status: str) -> None:
    """A failed dial writes leads below 10,000 above the highest; the log is written for all."""
    code = f"V120215031{lead_id:010d}"
    call = call_of("E03", callerid=code, calleridname=code)
    call = with_columns(call, "vicidial_auto_calls", callerid=code, lead_id=lead_id)
    site.run(with_columns(call, "vicidial_list", lead_id=lead_id))

    assert site.rows("vicidial_list", "status") == [(status,)]
    assert site.rows("vicidial_log", "lead_id", "status") == [(lead_id, "AB")]


# ---- the connection


@pytest.mark.parametrize("name", ["E03", "A01", "E12", "E23"])
def test_asterisk_does_not_wait_for_an_end(site: StagedSite, name: str) -> None:
    """If Asterisk closes at once, an END leaves the same rows as if it had waited."""
    call = call_of(name)
    kept = []
    for gone in (None, 0):
        site.load(call)
        site.play(call, hangup_after=gone, variables={"AGIEXITONHANGUP": "yes"})
        kept.append((*aftermath(site), site.closed(), site.rows("vicidial_carrier_log", "uniqueid")))

    assert kept[0] == kept[1]
    assert kept[0][0] != [("QUEUE",)]


def test_an_end_sends_nothing(site: StagedSite) -> None:
    """Whatever an END does, Asterisk hears no word of it."""
    for name in ("E02", "E03", "E15", "E20", "E23", "P03"):
        result = site.run(call_of(name, request=hangup_request()) if name == "E03" else call_of(name))
        assert (result.commands, result.status, result.faults) == ([], AgiStatus.SUCCESS, ())
