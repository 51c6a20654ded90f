"""fastagi_pool.handlers.vicidial.limits: how many calls in a day are too many, and for whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest
from vicidial.playing import Row, Scenario
from vicidial.tables import Tables as VicidialTables
from vicidial_legs import campaign_of, leg_of, state_before

from fastagi_pool.handlers.vicidial.limits import (
    Method,
    OverrideLine,
    Place,
    StateLimit,
    limit_at,
    read_override,
    within_limit,
)
from fastagi_pool.handlers.vicidial.tables import Tables

pytest_plugins = ["vicidial_fixtures"]

AREA_ONLY: Final = Method(lead_state=False, postal_state=False)
LEAD_STATE: Final = Method(lead_state=True, postal_state=False)
POSTAL_STATE: Final = Method(lead_state=False, postal_state=True)
ILLINOIS: Final = StateLimit("USA", "IL", 2)

# ---- the container


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ()),
        ("; c\nmethod => state_areacode\nstate => USA,IL,2\n", (AREA_ONLY, ILLINOIS)),
        ("method=>state_areacode_state\r\nstate=>USA,IL,2\r\n", (LEAD_STATE, ILLINOIS)),
        ("method => state_areacode_postcode", (POSTAL_STATE,)),
        ("method => state_areacode_state ; no postcode", (LEAD_STATE,)),
        ("method => state_areacode_postcode_state", (Method(lead_state=True, postal_state=True),)),
        ("state => USA,IL,2\nmethod => state_areacode", (ILLINOIS, AREA_ONLY)),
        ("\tstate\t=>\tUSA , IL , 2 ; two", (ILLINOIS,)),
        ("state => USA,IL,2,more", (ILLINOIS,)),
        ("state => USA,IL,2x", (ILLINOIS,)),
        ("state => USA,IL,", (StateLimit("USA", "IL", 0),)),
        ("state => USA,IL,x", (StateLimit("USA", "IL", 0),)),
        ("state => USA,IL", ()),
        ("; state => USA,IL,2", ()),
        ("states => USA,IL,2\nMETHOD => state", ()),
        ("state\nUSA,IL,2\n=>\n", ()),
    ],
)
def test_what_a_container_says(text: str, lines: tuple[OverrideLine, ...]) -> None:
    """Methods and states are read in their order; spaces and what follows a semicolon mean nothing."""
    assert read_override(text) == lines


@pytest.mark.parametrize(
    ("lines", "place", "limit"),
    [
        ((), Place("USA", "IL"), 5),
        ((ILLINOIS,), Place("USA", "IL"), 2),
        ((ILLINOIS,), Place("USA", "NY"), 5),
        ((ILLINOIS,), Place("CAN", "IL"), 5),
        ((ILLINOIS,), Place(), 5),
        ((StateLimit("USA", "IL", 9),), Place("USA", "IL"), 9),
        ((ILLINOIS, StateLimit("USA", "IL", 4)), Place("USA", "IL"), 4),
        ((ILLINOIS,), Place("USA", "NY", lead_state="IL"), 5),
        ((AREA_ONLY, ILLINOIS), Place("USA", "NY", lead_state="IL"), 5),
        ((LEAD_STATE, ILLINOIS), Place("USA", "NY", lead_state="IL"), 2),
        ((LEAD_STATE, ILLINOIS), Place("CAN", "NY", lead_state="IL"), 5),
        ((LEAD_STATE, StateLimit("USA", "IL", 9)), Place("USA", "NY", lead_state="IL"), 5),
        ((LEAD_STATE, StateLimit("USA", "IL", 9)), Place("USA", "IL", lead_state="IL"), 9),
        ((ILLINOIS, LEAD_STATE), Place("USA", "NY", lead_state="IL"), 5),
        ((POSTAL_STATE, ILLINOIS), Place("USA", "NY", postal_state="IL"), 2),
        ((POSTAL_STATE, StateLimit("USA", "IL", 9)), Place("USA", "NY", postal_state="IL"), 5),
        ((POSTAL_STATE, ILLINOIS), Place("USA", "NY", lead_state="IL"), 5),
        ((LEAD_STATE, ILLINOIS), Place("USA", "NY", postal_state="IL"), 5),
        ((POSTAL_STATE, StateLimit("USA", "", 1)), Place("USA", "NY"), 5),
        (
            (LEAD_STATE, ILLINOIS, StateLimit("USA", "NY", 1)),
            Place("USA", "NY", lead_state="IL"),
            1,
        ),
        (
            (LEAD_STATE, StateLimit("USA", "NY", 3), ILLINOIS),
            Place("USA", "NY", lead_state="IL"),
            2,
        ),
        (
            (LEAD_STATE, ILLINOIS, StateLimit("USA", "NY", 3)),
            Place("USA", "NY", lead_state="IL"),
            3,
        ),
    ],
)
def test_the_limit_at_a_place(lines: tuple[OverrideLine, ...], place: Place, limit: int) -> None:
    """The area code's state sets the campaign's 5 anew; the others lower it, where a method asks for them."""
    assert limit_at(lines, 5, place) == limit


# ---- with rows

NUMBER: Final = "3125553434"


def is_within(rows: VicidialTables, tables: Tables, before: Scenario) -> bool:
    """Ask whether the number may be called, in a database with these rows."""
    rows.load(before)
    lead = tables.lead(101)
    assert lead is not None
    return within_limit(leg_of(tables), campaign_of(tables), lead, 101, NUMBER, "1")


def call(columns: Row | None = None) -> tuple[str, Row]:
    """Return a call of the last days to the number, another number or another lead."""
    row = {
        "lead_id": 101,
        "list_id": 999,
        "call_date": "{dt-3600}",
        "phone_number": NUMBER,
        "phone_code": "1",
    }
    return "vicidial_lead_24hour_calls", row | (columns or {})


def scenario(
    more: Sequence[tuple[str, Row]], campaign: Row, lead: Row | None = None, system: str = "1"
) -> Scenario:
    """Return what is there before the question."""
    campaign_row: Row = {"campaign_id": "TESTCAMP"} | campaign
    lead_row: Row = {"lead_id": 101, "list_id": 999, "state": "IL"} | (lead or {})
    rows = (("vicidial_campaigns", campaign_row), ("vicidial_list", lead_row), *more)
    return state_before(*rows, system={"call_limit_24hour": system})


BY_NUMBER: Final[Row] = {"call_limit_24hour_method": "PHONE_NUMBER", "call_limit_24hour": 1}
BY_LEAD: Final[Row] = {"call_limit_24hour_method": "LEAD", "call_limit_24hour": 1}
IN_LISTS: Final[Row] = {"call_limit_24hour_scope": "CAMPAIGN_LISTS"}
NEVER: Final[Row] = {"call_limit_24hour": 0}
TWICE: Final[Row] = {"call_limit_24hour": 2}
NO_METHOD: Final[Row] = {"call_limit_24hour_method": "DISABLED"}
OTHER_NUMBER: Final[Row] = {"phone_number": "3125550000"}
OTHER_LEAD: Final[Row] = {"lead_id": 102}
OWN_LIST: Final = ("vicidial_lists", {"list_id": 999, "campaign_id": "TESTCAMP"})
FOREIGN_LIST: Final = ("vicidial_lists", {"list_id": 998, "campaign_id": "OTHER"})


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("before", "within"),
    [
        pytest.param(scenario([call()], BY_NUMBER), False, id="reached"),
        pytest.param(scenario([], BY_NUMBER), True, id="never called"),
        pytest.param(scenario([], BY_NUMBER | NEVER), True, id="never called, limit 0"),
        pytest.param(scenario([call()], BY_NUMBER | NEVER), False, id="called, limit 0"),
        pytest.param(scenario([call()], BY_NUMBER | TWICE), True, id="not reached"),
        pytest.param(scenario([call(), call()], BY_NUMBER | TWICE), False, id="two of two"),
        pytest.param(scenario([call()], BY_NUMBER, system="0"), True, id="system says no"),
        pytest.param(scenario([call()], BY_NUMBER | NO_METHOD), True, id="campaign says no"),
        pytest.param(scenario([call({"call_date": "{dt-90000}"})], BY_NUMBER), True, id="yesterday"),
        pytest.param(scenario([call(OTHER_NUMBER)], BY_NUMBER), True, id="other number"),
        pytest.param(scenario([call({"phone_code": "44"})], BY_NUMBER), True, id="other country"),
        pytest.param(scenario([call(OTHER_LEAD)], BY_NUMBER), False, id="number of another lead"),
        pytest.param(scenario([call(OTHER_NUMBER)], BY_LEAD), False, id="other number of the lead"),
        pytest.param(scenario([call(OTHER_LEAD)], BY_LEAD), True, id="other lead"),
        pytest.param(scenario([call(), OWN_LIST], BY_NUMBER | IN_LISTS), False, id="in its list"),
        pytest.param(
            scenario([call({"list_id": 998}), OWN_LIST, FOREIGN_LIST], BY_NUMBER | IN_LISTS),
            True,
            id="other list",
        ),
        pytest.param(
            scenario([call({"list_id": 998}), OWN_LIST, FOREIGN_LIST], BY_LEAD | IN_LISTS),
            True,
            id="lead in other list",
        ),
        pytest.param(
            scenario([call(), FOREIGN_LIST], BY_NUMBER | IN_LISTS), True, id="campaign without lists"
        ),
        pytest.param(
            scenario([call({"list_id": 1})], BY_NUMBER | IN_LISTS), False, id="campaign without lists, list 1"
        ),
    ],
)
def test_what_is_counted(rows: VicidialTables, tables: Tables, before: Scenario, within: bool) -> None:
    """Calls within a day count, of the number or of the lead, everywhere or in the campaign's lists."""
    assert is_within(rows, tables, before) is within


ONE_IN_ILLINOIS: Final = "method => {}\nstate => USA,IL,1\n"
AREA_CODES: Final = [
    ("vicidial_phone_codes", {"country_code": 1, "country": "USA", "areacode": "312", "state": "IL"}),
    ("vicidial_phone_codes", {"country_code": 44, "country": "GBR", "areacode": "312", "state": "XX"}),
]
NEW_YORK: Final = [
    ("vicidial_phone_codes", {"country_code": 1, "country": "USA", "areacode": "312", "state": "NY"}),
    ("vicidial_postal_codes", {"postal_code": "60601", "state": "IL"}),
    ("vicidial_postal_codes", {"postal_code": "", "state": "IL"}),
]


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("more", "lead", "override", "within"),
    [
        (AREA_CODES, {}, "OVR", False),
        (AREA_CODES, {}, "DISABLED", True),
        (AREA_CODES, {}, "", True),
        (AREA_CODES, {}, "MISSING", True),
        ([], {}, "OVR", True),
        (NEW_YORK, {}, "OVR", True),
        (NEW_YORK, {"postal_code": "60601"}, "OVR", True),
        (NEW_YORK, {"postal_code": "60601"}, "OVR_STATE", False),
        (NEW_YORK, {"postal_code": "60601"}, "OVR_POST", False),
        (NEW_YORK, {"postal_code": "60601-1234"}, "OVR_POST", False),
        (NEW_YORK, {"postal_code": "K60 601"}, "OVR_POST", False),
        (NEW_YORK, {"postal_code": "10001"}, "OVR_POST", True),
        (NEW_YORK, {"postal_code": ""}, "OVR_POST", True),
        (NEW_YORK, {"postal_code": "none"}, "OVR_POST", True),
    ],
)
def test_limits_of_states(
    rows: VicidialTables,
    tables: Tables,
    more: list[tuple[str, Row]],
    lead: Row,
    override: str,
    within: bool,
) -> None:
    """A container lowers the campaign's 9 to 1 in Illinois, by the area code or as its method says."""
    containers = [
        ("vicidial_settings_containers", {"container_id": name, "container_entry": text})
        for name, text in (
            ("OVR", ONE_IN_ILLINOIS.format("state_areacode")),
            ("OVR_STATE", ONE_IN_ILLINOIS.format("state_areacode_state")),
            ("OVR_POST", ONE_IN_ILLINOIS.format("state_areacode_postcode")),
        )
    ]
    settings = BY_LEAD | {"call_limit_24hour": 9, "call_limit_24hour_override": override}
    assert is_within(rows, tables, scenario([call(), *more, *containers], settings, lead)) is within
