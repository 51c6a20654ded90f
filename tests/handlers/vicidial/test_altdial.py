"""fastagi_pool.handlers.vicidial.altdial: which number of a lead is dialled next, and why others are not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import pytest
from vicidial.playing import SERVER_IP, Row, Scenario, recorded
from vicidial.tables import Tables as VicidialTables
from vicidial_legs import campaign_of, leg_of, state_before

from fastagi_pool.handlers.vicidial.altdial import (
    Check,
    Ended,
    Stage,
    dial_next,
    dnc_numbers,
    gate,
    hopper_status,
    is_exhausted,
    is_handed_on,
    last_place,
    plain_number,
    stages,
)
from fastagi_pool.handlers.vicidial.leg import Leg
from fastagi_pool.handlers.vicidial.rows import AutoCall
from fastagi_pool.handlers.vicidial.tables import Tables

pytest_plugins = ["vicidial_fixtures"]

ALT, ADDR3, EXTENDED = Stage.ALT, Stage.ADDR3, Stage.EXTENDED
ALL_THREE: Final = "ALT_AND_ADDR3_AND_EXTENDED"

# ---- what is looked at


@pytest.mark.parametrize(
    ("auto_alt_dial", "alt_dial", "path"),
    [
        ("NONE", "NONE", ()),
        ("", "NONE", ()),
        ("MULTI_LEAD", "NONE", ()),
        ("MULTI_LEAD", "ALT", ()),
        ("MULTI_LEAD", "X1", ()),
        ("ALT_ONLY", "NONE", (ALT,)),
        ("ALT_ONLY", "MAIN", (ALT,)),
        ("ALT_ONLY", "", ()),
        ("ALT_ONLY", "ALT", ()),
        ("ALT_ONLY", "ADDR3", ()),
        ("ALT_ONLY", "X1", ()),
        ("ADDR3_ONLY", "NONE", (ADDR3,)),
        ("ADDR3_ONLY", "MAIN", (ADDR3,)),
        ("ADDR3_ONLY", "ALT", ()),
        ("ADDR3_ONLY", "ADDR3", ()),
        ("ALT_AND_ADDR3", "NONE", (ALT, ADDR3)),
        ("ALT_AND_ADDR3", "ALT", (ADDR3,)),
        ("ALT_AND_ADDR3", "ADDR3", ()),
        ("ALT_AND_ADDR3", "X1", ()),
        ("ALT_AND_EXTENDED", "MAIN", (ALT, EXTENDED)),
        ("ALT_AND_EXTENDED", "ALT", (EXTENDED,)),
        ("ALT_AND_EXTENDED", "ADDR3", ()),
        ("ALT_AND_EXTENDED", "X1", (EXTENDED,)),
        (ALL_THREE, "NONE", (ALT, ADDR3, EXTENDED)),
        (ALL_THREE, "ALT", (ADDR3, EXTENDED)),
        (ALL_THREE, "ADDR3", (EXTENDED,)),
        (ALL_THREE, "X12", (EXTENDED,)),
        (ALL_THREE, "XLAST", ()),
        ("EXTENDED_ONLY", "NONE", (EXTENDED,)),
        ("EXTENDED_ONLY", "ALT", ()),
        ("EXTENDED_ONLY", "ADDR3", ()),
        ("EXTENDED_ONLY", "X1", (EXTENDED,)),
        ("EXTENDED_ONLY", "XLAST", ()),
        ("EXTENDED_ONLY", "x1", ()),
    ],
)
def test_the_stages(auto_alt_dial: str, alt_dial: str, path: tuple[Stage, ...]) -> None:
    """Each setting has its stages, beginning behind what was dialled, until one finds a number."""
    assert stages(auto_alt_dial, alt_dial) == path


@pytest.mark.parametrize(
    ("alt_dial", "place"),
    [("NONE", 0), ("MAIN", 0), ("ALT", 0), ("ADDR3", 0), ("X", 0), ("X1", 1), ("X12", 12), ("", 0)],
)
def test_the_place_of_the_last_number(alt_dial: str, place: int) -> None:
    """The digit in ADDR3 is no place among the further numbers."""
    assert last_place(alt_dial) == place


@pytest.mark.parametrize(
    ("statuses", "log_status", "new_status", "opens"),
    [
        (" B NA DROP -", "B", "", True),
        (" B NA DROP -", "QUEUE", "DROP", True),
        (" B NA DROP -", "QUEUE", "", False),
        (" B NA -", "QUEUE", "DROP", False),
        (" B NA -", "N", "A", False),
        (" B NA -", "b", "", False),
        ("B NA -", "B", "", False),
        (" B NA", "NA", "", False),
        (" B  NA -", "QUEUE", "", False),
        ("", "B", "DROP", False),
    ],
)
def test_the_gate(statuses: str, log_status: str, new_status: str, opens: bool) -> None:
    """One of both statuses stands in the list, whole and between spaces; an empty one stands nowhere."""
    assert gate(statuses, log_status, new_status) is opens


@pytest.mark.parametrize(
    ("called_count", "of_list", "of_campaign", "exhausted"),
    [
        (3, -1, 3, True),
        (4, -1, 3, True),
        (2, -1, 3, False),
        (3, -1, 0, False),
        (3, None, 3, True),
        (3, 0, 3, False),
        (3, 2, 9, True),
        (3, 4, 2, False),
        (0, -1, 0, False),
        (0, None, 1, False),
    ],
)
def test_the_threshold(called_count: int, of_list: int | None, of_campaign: int, exhausted: bool) -> None:
    """The list's threshold goes before the campaign's, even if it is 0; reached is too often."""
    assert is_exhausted(called_count, of_list, of_campaign) is exhausted


# ---- whether it may be dialled


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("312-555-3434", "3125553434"),
        ("(312) 555-4545", "3125554545"),
        ("123456", "123456"),
        ("12345", ""),
        ("1-2-3-4-5", ""),
        ("Elm Street", ""),
        ("\u0663125553434", "125553434"),
        ("", ""),
    ],
)
def test_what_is_a_number(text: str, number: str) -> None:
    """The second and third number are stripped to digits, and want more than five of them."""
    assert plain_number(text) == number


@pytest.mark.parametrize(
    ("use", "area_of", "numbers"),
    [
        ("Y", None, ("3125553434",)),
        ("N", None, ()),
        ("", None, ()),
        ("AREACODE", None, ("3125553434", "312XXXXXXX")),
        ("AREACODE", "7735551212", ("3125553434", "773XXXXXXX")),
        ("AREACODE", "", ("3125553434",)),
        ("Y", "7735551212", ("3125553434",)),
    ],
)
def test_what_must_not_be_listed(use: str, area_of: str | None, numbers: tuple[str, ...]) -> None:
    """A list is asked for the number, and by area code for the whole area as well."""
    assert dnc_numbers("3125553434", use, area_of) == numbers


@pytest.mark.parametrize(
    ("statuses", "check", "handed_on"),
    [
        (" DNCL -", Check(True, False, False), True),
        (" DNCC -", Check(True, False, False), False),
        (" DNCC -", Check(False, True, False), True),
        (" DNCL -", Check(False, True, False), False),
        (" DNCL DNCC -", Check(True, True, False), True),
        (" DNCL DNCC -", Check(False, False, True), False),
        (" XDNCL -", Check(True, True, False), False),
    ],
)
def test_listed_numbers_that_are_handed_on(statuses: str, check: Check, handed_on: bool) -> None:
    """Each list has its own status that asks for such numbers; the 24-hour limit has none."""
    assert is_handed_on(statuses, check) is handed_on


@pytest.mark.parametrize(
    ("system_hold", "campaign_hold", "status"),
    [
        (1, "ENABLED", "RHOLD"),
        (7, "AUTONEXT", "RHOLD"),
        (1, "DISABLED", "READY"),
        (0, "ENABLED", "READY"),
        (0, "AUTONEXT", "READY"),
    ],
)
def test_numbers_that_wait(system_hold: int, campaign_hold: str, status: str) -> None:
    """A number waits in the hopper if both the system and the campaign have it so."""
    assert hopper_status(system_hold, campaign_hold) == status


# ---- with rows

CODE: Final = "V1202150310000000101"
_COLUMNS: Final = (
    "lead_id, campaign_id, status, list_id, gmt_offset_now, state, alt_dial, user, priority, source"
)


def auto_call(alt_dial: str, status: str) -> AutoCall:
    """Return the row of a call to lead 101."""
    return AutoCall(
        auto_call_id=1,
        lead_id=101,
        callerid=CODE,
        campaign_id="TESTCAMP",
        alt_dial=alt_dial,
        stage="START",
        call_time="",
        call_epoch=0,
        uniqueid="1700000000.26",
        status=status,
        phone_code="1",
        phone_number="3125551212",
        queue_position=0,
        server_ip=SERVER_IP,
        agent_only="",
    )


def end(tables: Tables, ended: Ended, **options: Any) -> Leg:
    """End a call, and return its leg."""
    leg = leg_of(tables, **options)
    dial_next(leg, campaign_of(tables), ended)
    return leg


def hopper(rows: VicidialTables) -> list[tuple[str, str, int]]:
    """Return status, alt_dial and priority of each row of the hopper."""
    found = rows.query("SELECT * FROM vicidial_hopper ORDER BY hopper_id")
    return [(row["status"], row["alt_dial"], row["priority"]) for row in found]


def outcomes(leg: Leg) -> list[str]:
    """Return what was told, without what is the same in all cases."""
    notes = leg.alt_dials
    assert {(note.lead_id, note.campaign_id) for note in notes} <= {(101, "TESTCAMP")}
    return [f"{note.alt_dial} {note.phone_number} {note.priority} {note.outcome}" for note in notes]


def scenario(
    auto_alt_dial: str,
    more: Sequence[tuple[str, Row]] = (),
    lead: Row | None = None,
    system: Row | None = None,
    **campaign: Any,
) -> Scenario:
    """Return what is there before the call: lead 101 in list 999, and further rows."""
    campaign_row = {
        "campaign_id": "TESTCAMP",
        "auto_alt_dial": auto_alt_dial,
        "auto_alt_dial_statuses": " B NA DROP DNCL DNCC -",
        **campaign,
    }
    lead_row = {
        "lead_id": 101,
        "list_id": 999,
        "phone_number": "3125551212",
        "phone_code": "1",
        "called_count": 3,
        "gmt_offset_now": "-6.00",
        "state": "IL",
        **(lead or {}),
    }
    rows = (("vicidial_campaigns", campaign_row), ("vicidial_list", lead_row), *more)
    return state_before(*rows, system=system)


def further(place: int, active: str = "Y", number: str = "") -> tuple[str, Row]:
    """Return a further number of the lead."""
    return "vicidial_list_alt_phones", {
        "lead_id": 101,
        "phone_code": "1",
        "phone_number": number or f"312555000{place}",
        "alt_phone_count": place,
        "active": active,
    }


DROPPED: Final = "QUEUE", "DROP"
SECOND: Final = {"alt_phone": "312-555-3434"}
BOTH: Final = {"alt_phone": "3125553434", "address3": "(773) 555-4545"}


def dnc(number: str) -> tuple[str, Row]:
    """Return an entry in the system's list."""
    return "vicidial_dnc", {"phone_number": number}


def campaign_dnc(number: str, campaign_id: str = "TESTCAMP") -> tuple[str, Row]:
    """Return an entry in a campaign's list."""
    return "vicidial_campaign_dnc", {"phone_number": number, "campaign_id": campaign_id}


def called_today(number: str, phone_code: str = "1") -> tuple[str, Row]:
    """Return a call of today."""
    row = {"lead_id": 101, "list_id": 999, "call_date": "{dt-3600}"}
    return "vicidial_lead_24hour_calls", {**row, "phone_number": number, "phone_code": phone_code}


#: What was recorded of calls of which another number shall be dialled, or not.
RECORDED: Final = {name: each for name, each in recorded().items() if re.match(r"A\d", name) or name == "O23"}


@pytest.mark.mariadb
@pytest.mark.parametrize("name", RECORDED)
def test_what_was_recorded(rows: VicidialTables, tables: Tables, name: str) -> None:
    """Each recorded call leaves the row in the hopper that it left then, with all columns, or none."""
    each = RECORDED[name]
    rows.load(each)
    by_table = dict(each.rows)
    call = by_table["vicidial_auto_calls"]
    log = by_table.get("vicidial_log")
    unrouted = log is None and call["status"] == "SENT"
    new_status = "PDROP" if unrouted else "DROP" if log and log["status"] == "QUEUE" else ""
    ended = Ended(
        auto_call=auto_call(call["alt_dial"], call["status"]),
        log_status=log["status"] if log else call["status"],
        new_status=new_status,
        list_id=999 if unrouted else None,
        called_count=3 if unrouted else None,
    )
    end(tables, ended)
    found = rows.query(f"SELECT {_COLUMNS} FROM vicidial_hopper")
    wanted = [
        {column: change["row"][column] for column in _COLUMNS.split(", ")}
        for change in each.changed("vicidial_hopper")
    ]
    assert [{column: _plain(value) for column, value in row.items()} for row in found] == wanted


def _plain(value: object) -> object:
    return value if isinstance(value, int | str) else str(value)


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("before", "alt_dial", "inserted", "told"),
    [
        pytest.param(
            scenario("ALT_ONLY", lead=SECOND),
            "NONE",
            [("READY", "ALT", 25)],
            ["ALT 3125553434 25 hopper insert"],
            id="second number",
        ),
        pytest.param(
            scenario("ALT_ONLY", lead={"alt_phone": "12-345"}),
            "NONE",
            [],
            ["ALT 12345 0 hopper skip|ALT phone invalid"],
            id="second number too short",
        ),
        pytest.param(
            scenario("ALT_ONLY", lead=SECOND, auto_alt_dial_statuses=" B -"),
            "NONE",
            [],
            [],
            id="other status",
        ),
        pytest.param(
            scenario("ALT_AND_ADDR3", lead=BOTH),
            "ALT",
            [("READY", "ADDR3", 20)],
            ["ADDR3 7735554545 20 hopper insert"],
            id="after the second number",
        ),
        pytest.param(
            scenario("ALT_AND_ADDR3", [dnc("3125553434")], lead=BOTH, use_internal_dnc="Y"),
            "NONE",
            [("READY", "ADDR3", 20)],
            ["ALT 3125553434 0 hopper skip|DNC check failed", "ADDR3 7735554545 20 hopper insert"],
            id="second number listed",
        ),
        pytest.param(
            scenario("ALT_ONLY", [dnc("3125553434")], lead=SECOND),
            "NONE",
            [("READY", "ALT", 25)],
            ["ALT 3125553434 25 hopper insert"],
            id="list not used",
        ),
        pytest.param(
            scenario(
                "ALT_ONLY",
                [campaign_dnc("3125553434", "OTHER")],
                lead=SECOND,
                use_campaign_dnc="Y",
                use_other_campaign_dnc="OTHER",
            ),
            "NONE",
            [],
            ["ALT 3125553434 0 hopper skip|DNC check failed"],
            id="another campaign's list",
        ),
        pytest.param(
            scenario("ALT_ONLY", [campaign_dnc("312XXXXXXX")], lead=SECOND, use_campaign_dnc="AREACODE"),
            "NONE",
            [],
            ["ALT 3125553434 0 hopper skip|DNC check failed"],
            id="area code in the campaign's list",
        ),
        pytest.param(
            scenario("ALT_ONLY", lead=SECOND, hopper_hold_inserts="AUTONEXT"),
            "NONE",
            [("READY", "ALT", 25)],
            ["ALT 3125553434 25 hopper insert"],
            id="system does not hold",
        ),
        pytest.param(
            scenario(
                "ALT_ONLY",
                [called_today("3125553434")],
                lead=SECOND,
                system={"call_limit_24hour": "1"},
                call_limit_24hour_method="PHONE_NUMBER",
                call_limit_24hour=1,
            ),
            "NONE",
            [],
            ["ALT 3125553434 0 hopper skip|24-hour call count limit failed"],
            id="called too often",
        ),
        pytest.param(
            scenario(ALL_THREE, [further(1)]),
            "NONE",
            [("READY", "X1", 15)],
            [
                "ALT  0 hopper skip|ALT phone invalid",
                "ADDR3  0 hopper skip|ADDR3 phone invalid",
                "X1 3125550001 15 hopper insert",
            ],
            id="all stages",
        ),
        pytest.param(
            scenario("EXTENDED_ONLY", [further(1), further(2)]), "X2", [], [], id="further numbers used up"
        ),
        pytest.param(
            scenario("EXTENDED_ONLY", [further(1, active="N"), further(2)]),
            "NONE",
            [("READY", "X2", 15)],
            ["X2 3125550002 15 hopper insert"],
            id="inactive",
        ),
        pytest.param(
            scenario("EXTENDED_ONLY", [further(1, active="N"), further(3), further(4)]),
            "NONE",
            [],
            [],
            id="a gap ends it",
        ),
        pytest.param(
            scenario("EXTENDED_ONLY", [further(2), further(3), further(4)]),
            "X1",
            [("READY", "X2", 15)],
            ["X2 3125550002 15 hopper insert"],
            id="first place missing, but behind us",
        ),
        pytest.param(
            scenario("EXTENDED_ONLY", [further(1), further(2), dnc("3125550001")], use_internal_dnc="Y"),
            "NONE",
            [("DNC", "X1", 15)],
            ["X1 3125550001 15 hopper DNC insert"],
            id="listed and handed on",
        ),
        pytest.param(
            scenario(
                "EXTENDED_ONLY",
                [further(1), campaign_dnc("3125550001")],
                system={"hopper_hold_inserts": "1"},
                use_campaign_dnc="Y",
                hopper_hold_inserts="ENABLED",
            ),
            "NONE",
            [("DNC", "X1", 15)],
            ["X1 3125550001 15 hopper DNC insert"],
            id="listed by the campaign and handed on, never held",
        ),
        pytest.param(
            scenario(
                "EXTENDED_ONLY",
                [further(1), further(2), dnc("3125550001")],
                use_internal_dnc="Y",
                auto_alt_dial_statuses=" DROP DNCC -",
            ),
            "NONE",
            [("READY", "X2", 15)],
            ["X1 3125550001 0 hopper DNC skip", "X2 3125550002 15 hopper insert"],
            id="listed and passed over",
        ),
        pytest.param(
            scenario(
                "EXTENDED_ONLY",
                [
                    further(1),
                    further(2),
                    called_today("3125550001"),
                    called_today("3125550002", phone_code="44"),
                ],
                system={"call_limit_24hour": "1"},
                call_limit_24hour_method="PHONE_NUMBER",
                call_limit_24hour=1,
                lead={"phone_code": "44"},
            ),
            "NONE",
            [("READY", "X2", 15)],
            [
                "X1 3125550001 0 hopper skip|24-hour call count limit failed",
                "X2 3125550002 15 hopper insert",
            ],
            id="called too often, by the number's own phone code",
        ),
        pytest.param(
            scenario(
                "EXTENDED_ONLY",
                [further(1), dnc("3125550001"), called_today("3125550001")],
                system={"call_limit_24hour": "1"},
                use_internal_dnc="Y",
                auto_alt_dial_statuses=" DROP -",
                call_limit_24hour_method="PHONE_NUMBER",
                call_limit_24hour=1,
            ),
            "NONE",
            [],
            ["X1 3125550001 0 hopper DNC skip"],
            id="listed and called too often",
        ),
        pytest.param(
            scenario("EXTENDED_ONLY", [further(1, number="55-12")]),
            "NONE",
            [("READY", "X1", 15)],
            ["X1 55-12 15 hopper insert"],
            id="further number as stored",
        ),
    ],
)
def test_the_next_number(
    rows: VicidialTables,
    tables: Tables,
    before: Scenario,
    alt_dial: str,
    inserted: list[tuple[str, str, int]],
    told: list[str],
) -> None:
    """At most one number is dialled next, the first that nothing stands against, and all is told."""
    rows.load(before)
    leg = end(tables, Ended(auto_call(alt_dial, "LIVE"), *DROPPED, None, None))
    assert hopper(rows) == inserted
    assert outcomes(leg) == told


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("own_area_code", "more", "lead", "inserted"),
    [
        (True, [campaign_dnc("773XXXXXXX")], BOTH, []),
        (False, [campaign_dnc("773XXXXXXX")], BOTH, [("READY", "ADDR3", 20)]),
        (True, [campaign_dnc("312XXXXXXX")], BOTH, [("READY", "ADDR3", 20)]),
        (False, [campaign_dnc("312XXXXXXX")], BOTH, []),
        (False, [campaign_dnc("312XXXXXXX")], {**BOTH, "alt_phone": "312"}, [("READY", "ADDR3", 20)]),
        (False, [campaign_dnc("7735554545")], BOTH, []),
    ],
)
def test_the_area_code_of_the_third_number(
    rows: VicidialTables,
    tables: Tables,
    own_area_code: bool,
    more: list[tuple[str, Row]],
    lead: Row,
    inserted: list[tuple[str, str, int]],
) -> None:
    """The campaign's list is asked for the third number's area, or for the second's as in the original."""
    listed = campaign_dnc("3125553434")
    rows.load(scenario("ALT_AND_ADDR3", [listed, *more], lead=lead, use_campaign_dnc="AREACODE"))
    ended = Ended(auto_call("NONE", "LIVE"), *DROPPED, None, None)
    end(tables, ended, addr3_own_area_code=own_area_code)
    assert hopper(rows) == inserted


@pytest.mark.mariadb
def test_the_area_code_of_nothing(rows: VicidialTables, tables: Tables) -> None:
    """As in the original, without a turn of the second number no area code is looked for at all."""
    more = [campaign_dnc("312XXXXXXX"), campaign_dnc("773XXXXXXX")]
    rows.load(scenario("ALT_AND_ADDR3", more, lead=BOTH, use_campaign_dnc="AREACODE"))
    ended = Ended(auto_call("ALT", "LIVE"), *DROPPED, None, None)
    end(tables, ended, addr3_own_area_code=False)
    assert hopper(rows) == [("READY", "ADDR3", 20)]


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("of_list", "of_campaign", "known", "always", "is_dialled"),
    [
        (-1, 3, True, False, False),
        (-1, 4, True, False, True),
        (3, 0, True, False, False),
        (0, 3, True, False, True),
        (None, 3, True, False, False),
        (3, 3, False, False, True),
        (3, 0, False, True, False),
        (-1, 3, False, True, False),
        (4, 3, False, True, True),
    ],
)
def test_the_thresholds(
    rows: VicidialTables,
    tables: Tables,
    of_list: int | None,
    of_campaign: int,
    known: bool,
    always: bool,
    is_dialled: bool,
) -> None:
    """A threshold holds if the lead has been read already, or with the option that has it read always."""
    more = (
        [("vicidial_lists", {"list_id": 999, "auto_alt_threshold": of_list})] if of_list is not None else []
    )
    rows.load(scenario("ALT_ONLY", more, lead=SECOND, auto_alt_threshold=of_campaign))
    counted = (999, 3) if known else (None, None)
    leg = end(tables, Ended(auto_call("NONE", "LIVE"), *DROPPED, *counted), threshold_always=always)
    assert hopper(rows) == ([("READY", "ALT", 25)] if is_dialled else [])
    assert len(leg.alt_dials) == is_dialled


@pytest.mark.mariadb
def test_a_lead_that_is_gone(rows: VicidialTables, tables: Tables) -> None:
    """Without a row of the lead its numbers are invalid, and nothing breaks."""
    rows.load(scenario("ALT_AND_ADDR3", lead={"lead_id": 102, **BOTH}))
    leg = end(tables, Ended(auto_call("NONE", "LIVE"), *DROPPED, None, None), threshold_always=True)
    assert hopper(rows) == []
    assert [note.outcome for note in leg.alt_dials] == [
        "hopper skip|ALT phone invalid",
        "hopper skip|ADDR3 phone invalid",
    ]
