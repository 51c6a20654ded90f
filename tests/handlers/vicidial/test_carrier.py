"""How the carrier ended a leg: what is read out of the hangup, and which rows say it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
from vicidial.playing import SERVER_IP, Placed
from vicidial_staged_site import (
    OTHER_SERVER,
    StagedSite,
    call_of,
    hangup_request,
    with_columns,
    without,
)

from fastagi_pool.handlers.vicidial.carrier import SipCause, read_sip_cause

pytest_plugins = ["vicidial_fixtures"]

_V: Final = "V1202150310000000101"
_M: Final = "M1202150310000000101"


# ---- what was said


@pytest.mark.parametrize(
    ("version", "tech_cause", "found"),
    [
        ("18.18.1-vici", "SIP 486 Busy Here", SipCause("486", "Busy Here")),
        ("12.0", "SIP 486 Busy Here", SipCause("486", "Busy Here")),
        ("1.12", "SIP 486 Busy Here", SipCause("486", "Busy Here")),
        ("11.25.3", "SIP 486 Busy Here", None),
        ("1.8.23", "SIP 486 Busy Here", None),
        ("", "SIP 486 Busy Here", None),
        ("18", "PJSIP 486 Busy", SipCause("486", "Busy")),
        ("18", "x SIP 486", SipCause("SIP", "486")),
        ("18", "SIP", SipCause("", "")),
        ("18", "SIP 486", SipCause("486", "")),
        ("18", "SIP  486 Busy", SipCause("", "486 Busy")),
        ("18", "SIP 486 Busy  Here ", SipCause("486", "Busy  Here ")),
        ("18", "sip 486 Busy", None),
        ("18", "Q.850 17", None),
        ("18", "", None),
    ],
)
def test_the_carriers_words(version: str, tech_cause: str, found: SipCause | None) -> None:
    """The second word is the cause, the rest the reason; an old Asterisk's words count for nothing."""
    assert read_sip_cause(version, tech_cause) == found


# ---- which legs


@pytest.mark.mariadb
@pytest.mark.parametrize("code", [_V, _M, "V", "Mx"])
def test_a_leg_that_was_dialled_gets_a_row(site: StagedSite, code: str) -> None:
    """A code that begins ``V`` or ``M`` is enough, however short it is."""
    site.run(call_of("E01", callerid=code, calleridname=code))

    assert site.rows("vicidial_carrier_log", "caller_code") == [(code,)]


@pytest.mark.mariadb
@pytest.mark.parametrize("code", ["Y1202150310000000101", "v1202150310000000101", "3125551212", "DV1"])
def test_any_other_leg_gets_none(site: StagedSite, code: str) -> None:
    """Without such a code nothing about the carrier is written, also not to the dialer's row."""
    site.run(
        with_columns(call_of("E01", callerid=code, calleridname=code), "vicidial_dial_log", caller_code=code)
    )

    assert site.closed()
    assert site.rows("vicidial_carrier_log", "uniqueid") == []
    assert site.rows("vicidial_dial_log", "sip_hangup_cause", "uniqueid") == [(0, "")]


@pytest.mark.mariadb
@pytest.mark.parametrize(
    "request_url",
    ["agi://127.0.0.1:4577/call_log", "agi://127.0.0.1:4577/call_log--HVcauses--PRI-----NODEBUG-----16"],
)
def test_a_leg_without_a_dial_gets_none(site: StagedSite, request_url: str) -> None:
    """Without a DIALSTATUS nobody was dialled: no carrier row, but the call is closed."""
    site.run(call_of("E01", request=request_url))

    assert site.closed()
    assert site.rows("vicidial_carrier_log", "uniqueid") == []


@pytest.mark.mariadb
def test_the_servers_row_decides(site: StagedSite) -> None:
    """A server that does not want carrier rows gets none, nor is the dialer's row told."""
    site.run(replace(call_of("E01"), servers={"carrier_logging_active": "N"}))

    assert site.rows("vicidial_carrier_log", "uniqueid") == []
    assert site.rows("vicidial_dial_log", "sip_hangup_cause") == [(0,)]


# ---- the rows


@pytest.mark.mariadb
def test_the_first_row_of_a_unique_id_stays(site: StagedSite) -> None:
    """A second END of the same leg changes no carrier row; the dialer's row is told what came last."""
    busy = call_of("E03")
    site.run(busy)
    site.play(replace(busy, agi={**busy.agi, "request": hangup_request(tech_cause="SIP 503 Gone")}))

    assert site.rows("vicidial_carrier_log", "sip_hangup_cause", "dial_time") == [(486, 10)]
    assert site.rows("vicidial_dial_log", "sip_hangup_cause", "sip_hangup_reason") == [(503, "Gone")]


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("999-----BUSY-----99999-----70000-----SIP 99999 x", (255, "BUSY", 65535, 65535, 65535, "x")),
        ("x-----BUSY-----x-----y-----SIP x y", (0, "BUSY", 0, 0, 0, "y")),
        ("-1-----BUSY------1-----1.7-----SIP -3 y", (0, "BUSY", 0, 2, 0, "y")),
        (f"17-----{'B' * 20}-----1-----2-----SIP 486 {'r' * 60}", (17, "B" * 16, 1, 2, 486, "r" * 50)),
    ],
)
def test_what_does_not_fit_is_cut(site: StagedSite, url: str, stored: tuple[object, ...]) -> None:
    """Whatever the carrier says is stored as far as the columns hold it; no row is lost for it."""
    request = f"agi://127.0.0.1:4577/call_log--HVcauses--PRI-----NODEBUG-----{url}"
    result = site.run(call_of("E03", request=request))
    columns = ("hangup_cause", "dialstatus", "dial_time", "answered_time", "sip_hangup_cause")

    assert result.outcome == "ok"
    assert site.rows("vicidial_carrier_log", *columns, "sip_hangup_reason") == [stored]


def dial(reason: str, **columns: object) -> Placed:
    """Give a row of the dialer, with what it knows of how the carrier ended the dial."""
    row = {"caller_code": _V, "lead_id": 101, "server_ip": SERVER_IP, "call_date": "{dt-30}"}
    return "vicidial_dial_log", {**row, "sip_hangup_cause": 500, "sip_hangup_reason": reason, **columns}


@pytest.mark.mariadb
def test_only_the_calls_own_dials_are_told(site: StagedSite) -> None:
    """All dials of this code, lead and server are told; another's are not."""
    others = [
        dial("code", caller_code="V1202150310000000102"),
        dial("lead", lead_id=102),
        dial("server", server_ip=OTHER_SERVER),
    ]
    site.run(call_of("E03", dial("own"), *others))

    told = site.rows("vicidial_dial_log", "sip_hangup_reason", "uniqueid")
    uid = call_of("E03").agi["uniqueid"]
    assert told == [("Busy Here", uid), ("Busy Here", uid), ("code", ""), ("lead", ""), ("server", "")]


@pytest.mark.mariadb
def test_an_old_asterisk_is_told_by_the_dialer(site: StagedSite) -> None:
    """Where Asterisk does not tell, the newest dial of this code, lead and server does, and stays."""
    dials = [
        dial("newest", call_date="{dt-20}"),
        dial("older"),
        dial("code", caller_code="V1202150310000000102", call_date="{dt-10}"),
        dial("lead", lead_id=102, call_date="{dt-10}"),
        dial("server", server_ip=OTHER_SERVER, call_date="{dt-10}"),
    ]
    call = replace(call_of("E03", *dials), servers={"asterisk_version": "11.25.3-vici"})
    site.run(call)

    assert site.rows("vicidial_carrier_log", "sip_hangup_cause", "sip_hangup_reason") == [(500, "newest")]
    assert {uid for (uid,) in site.rows("vicidial_dial_log", "uniqueid")} == {""}


@pytest.mark.mariadb
def test_nobody_knows_a_cause(site: StagedSite) -> None:
    """Without the carrier's words and without a dial the row says 0 and nothing."""
    call = without(call_of("E03", request=hangup_request(tech_cause="")), "vicidial_dial_log")
    site.run(call)

    assert site.rows("vicidial_carrier_log", "sip_hangup_cause", "sip_hangup_reason") == [(0, "")]


# ---- a manual call's other legs


def leg(uniqueid: str, code: str, channel: str = "Local/1@default;2") -> Placed:
    """Give the row of a leg."""
    return "call_log", {
        "uniqueid": uniqueid,
        "caller_code": code,
        "channel": channel,
        "start_epoch": "{ep-9}",
    }


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("legs", "uid"),
    [
        ([], "1700000000.26"),
        ([leg("1700000000.21", _M)], "1700000000.21"),
        ([leg("1700000000.21", "M1202150310000005101")], "1700000000.21"),
        ([leg("1700000000.21", "M1202150310000005101"), leg("1700000000.22", _M)], "1700000000.22"),
        ([leg("1700000000.21", _M), leg("1700000000.22", _M)], "1700000000.21"),
        ([leg("1700000001.21", _M), leg("1700000000.22", "M1202150310000000102")], "1700000000.26"),
    ],
)
def test_a_manual_call_may_be_filed_under_another_leg(site: StagedSite, legs: list[Placed], uid: str) -> None:
    """A leg of the same second whose code ends in the lead is taken, one of the same code before others."""
    call = without(call_of("E12"), "call_log")
    site.run(replace(call, rows=(*call.rows, *legs)))

    assert site.rows("vicidial_carrier_log", "uniqueid", "channel") == [(uid, call.agi["channel"])]
    assert site.rows("vicidial_dial_log", "uniqueid") == [(uid,)]


@pytest.mark.mariadb
def test_an_automatic_call_is_filed_under_its_own_leg(site: StagedSite) -> None:
    """A call that the dialer placed has its carrier row under its own unique id, whatever legs there are."""
    site.run(call_of("E03", leg("1700000000.21", _V)))

    assert site.rows("vicidial_carrier_log", "uniqueid") == [("1700000000.26",)]
