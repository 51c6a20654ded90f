"""Limits: how often a number or a lead may be called within a day.

Laws:
    * A number that was not called within the day is always within the limit, whatever that is; the limit is
      not even read then.
    * Where a number is, is told by its first three digits and its phone code; where the lead is, by its
      state and its postal code. The container's ``method`` decides which of them count.
    * The lines of the container hold in their order: a ``method`` counts for the lines that follow it.
    * Spaces mean nothing in a container, and a semicolon ends a line.

Source: VICIdial's FastAGI daemon, observed: the 24-hour limit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from fastagi_pool.handlers.vicidial.leg import Leg
    from fastagi_pool.handlers.vicidial.rows import Campaign, Lead

_NUMBER_METHOD: Final = "PHONE_NUMBER"
_LEAD_METHOD: Final = "LEAD"
_CAMPAIGN_LISTS: Final = "CAMPAIGN_LISTS"
#: The only list of a campaign that has none, so that nothing is counted.
_NO_LISTS: Final = (1,)
#: Values of a campaign's ``call_limit_24hour_override`` that name no container.
_NO_OVERRIDE: Final = frozenset({"", "DISABLED"})

_AREA_DIGITS: Final = 3
_POSTAL_DIGITS: Final = 5
_NO_DIGIT = re.compile(r"[^0-9]+")
_LEADING_DIGITS = re.compile(r"[0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class Method:
    """Which states count in the lines that follow, beside that of the area code.

    Attributes:
        lead_state: The lead's own.
        postal_state: That of the lead's postal code.
    """

    lead_state: bool
    postal_state: bool


@dataclass(frozen=True, slots=True)
class StateLimit:
    """The limit of one state.

    Attributes:
        country: As in ``vicidial_phone_codes``.
        state: As there.
        limit: Calls in a day.
    """

    country: str
    state: str
    limit: int


OverrideLine: TypeAlias = Method | StateLimit


@dataclass(frozen=True, slots=True)
class Place:
    """Where a number and its lead are; empty for what is not known.

    Attributes:
        country: Of the area code.
        area_state: Of the area code.
        lead_state: Of the lead.
        postal_state: Of the lead's postal code.
    """

    country: str = ""
    area_state: str = ""
    lead_state: str = ""
    postal_state: str = ""


# ---- the container


def read_override(text: str) -> tuple[OverrideLine, ...]:
    """Read a container of limits, in the order of its lines; what means nothing is left out.

    Args:
        text: Lines as ``method => state_areacode_postcode_state`` and ``state => USA,IL,2``.
    """
    lines: list[OverrideLine] = []
    for line in text.splitlines():
        words = "".join(line.partition(";")[0].split())
        name, _, value = words.partition("=>")
        if name == "method":
            lines.append(Method(value.endswith("state"), "postcode" in value))
        elif name == "state" and value.count(",") >= 2:
            country, state, limit = value.split(",")[:3]
            lines.append(StateLimit(country, state, _number(limit)))
    return tuple(lines)


def _number(text: str) -> int:
    found = _LEADING_DIGITS.match(text)
    return int(found[0]) if found and found[0] else 0


def limit_at(lines: tuple[OverrideLine, ...], limit: int, place: Place) -> int:
    """Tell how many calls in a day are too many at a place.

    The state of the area code sets the limit, the others may only lower it.

    Args:
        lines: The container's.
        limit: The campaign's; it stays where no line holds.
        place: The place.
    """
    method = Method(lead_state=False, postal_state=False)
    for line in lines:
        if isinstance(line, Method):
            method = line
        elif line.country == place.country:
            if line.state == place.area_state:
                limit = line.limit
            if line.state in _other_states(method, place):
                limit = min(limit, line.limit)
    return limit


def _other_states(method: Method, place: Place) -> set[str]:
    states = set()
    if method.lead_state:
        states.add(place.lead_state)
    if method.postal_state:
        states.add(place.postal_state)
    return states - {""}


# ---- the question


def within_limit(
    leg: Leg, campaign: Campaign, lead: Lead, lead_id: int, number: str, phone_code: str
) -> bool:
    """Tell whether a number may be called once more; also where nothing limits that.

    Args:
        leg: The request.
        campaign: Which sets the limit and says what is counted: calls to the number or to the lead.
        lead: Whose number it is.
        lead_id: The same.
        number: Which shall be dialled; its first three characters are its area code.
        phone_code: Of the number.

    Raises:
        DatabaseUnavailable: The database is away.

    Source: VICIdial's FastAGI daemon, observed: the 24-hour limit.
    """
    if leg.system.call_limit_24hour < 1 or campaign.limit_method not in (_NUMBER_METHOD, _LEAD_METHOD):
        return True
    calls = _calls_of_day(leg, campaign, lead_id, number, phone_code)
    return calls == 0 or calls < _limit(leg, campaign, lead, number, phone_code)


def _calls_of_day(leg: Leg, campaign: Campaign, lead_id: int, number: str, phone_code: str) -> int:
    list_ids = None
    if campaign.limit_scope == _CAMPAIGN_LISTS:
        list_ids = leg.tables.campaign_lists(campaign.campaign_id) or _NO_LISTS
    if campaign.limit_method == _LEAD_METHOD:
        return leg.tables.calls_of_day_to_lead(lead_id, list_ids)
    return leg.tables.calls_of_day(number, phone_code, list_ids)


def _limit(leg: Leg, campaign: Campaign, lead: Lead, number: str, phone_code: str) -> int:
    if campaign.limit_override in _NO_OVERRIDE:
        return campaign.limit_24hour
    lines = read_override(leg.tables.container(campaign.limit_override) or "")
    if not any(isinstance(line, StateLimit) for line in lines):
        return campaign.limit_24hour
    area_state, country = leg.tables.phone_code(phone_code, number[:_AREA_DIGITS])
    place = Place(country, area_state, lead.state, _postal_state(leg, lines, lead))
    return limit_at(lines, campaign.limit_24hour, place)


def _postal_state(leg: Leg, lines: tuple[OverrideLine, ...], lead: Lead) -> str:
    """Give the state of the lead's postal code, if it is asked for; the code is cut as one of the USA."""
    code = _NO_DIGIT.sub("", lead.postal_code)[:_POSTAL_DIGITS]
    asked = any(isinstance(line, Method) and line.postal_state for line in lines)
    return leg.tables.postal_state(code) if asked and code else ""
