"""Auto-alt-dial: the next number of a lead whose call ended without success.

Laws:
    * At most one number is put into the hopper for each call that ends.
    * Stages follow each other: the second number, the third, the further ones. A stage that finds nothing to
      dial counts as dialled, so that the next one may have its turn in the same request.
    * The second and third number are digits and longer than five; further ones are dialled as stored.
    * A campaign's setting and what was dialled are searched for words, case and all:
      ``ALT_AND_ADDR3_AND_EXTENDED`` has all three stages, ``MULTI_LEAD`` has none.
    * What was looked at and not dialled is told with its reason.

The marker ``XLAST`` and the status ``TFHCCL`` are known to other programs, but never written here.

Source: VICIdial's FastAGI daemon, observed: auto-alt-dial, and END on any other channel, steps 12 to 16.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from fastagi_pool.handlers.vicidial.limits import within_limit
from fastagi_pool.handlers.vicidial.logfiles import AltDial
from fastagi_pool.handlers.vicidial.rows import HopperRow, Lead

if TYPE_CHECKING:
    from fastagi_pool.handlers.vicidial.leg import Leg
    from fastagi_pool.handlers.vicidial.rows import AutoCall, Campaign

#: What a lead is taken for that does not exist.
_NO_LEAD: Final = Lead(0, 0, 0, "", "", Decimal(0), "", "", "")
#: A number with as many digits or fewer is none.
_TOO_SHORT_DIGITS: Final = 5
_NO_DIGIT = re.compile(r"[^0-9]+")
#: What follows an area code in a list of numbers not to call, for all numbers of that area.
_ANY_NUMBER: Final = "XXXXXXX"
_AREA_DIGITS: Final = 3
#: Values of a campaign's ``hopper_hold_inserts`` that keep new numbers back.
_HOLDING: Final = frozenset({"ENABLED", "AUTONEXT"})

_INSERTED: Final = "hopper insert"
_INSERTED_DNC: Final = "hopper DNC insert"
_SKIPPED_DNC: Final = "hopper DNC skip"
_LISTED: Final = "DNC check failed"
_OVER_LIMIT: Final = "24-hour call count limit failed"


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that ended, as far as it matters for what is dialled next.

    Attributes:
        auto_call: Its row of the calls that are alive.
        log_status: Status of its log row before anything of it was overwritten; that of ``auto_call`` if
            there was no log row.
        new_status: What its end made of it; empty for nothing.
        list_id: The lead's list; None if nobody has read it.
        called_count: How often the lead was called; None if nobody has read it, which holds for 0.
    """

    auto_call: AutoCall
    log_status: str
    new_status: str
    list_id: int | None
    called_count: int | None


class Stage(Enum):
    """Which number of a lead; also what is written as ``alt_dial`` of the first two."""

    ALT = "ALT"
    ADDR3 = "ADDR3"
    EXTENDED = "EXTENDED"


#: Numbers waiting in the hopper are dialled by priority, and earlier stages first.
PRIORITIES: Final = {Stage.ALT: 25, Stage.ADDR3: 20, Stage.EXTENDED: 15}


# ---- what is looked at


class _Rule(NamedTuple):
    """When a stage has its turn.

    Attributes:
        stage: The stage.
        settings: The campaign's ``auto_alt_dial`` contains one of these,
        dialled: and what was dialled contains one of these,
        never: but not this; empty for no exception.
    """

    stage: Stage
    settings: tuple[str, ...]
    dialled: tuple[str, ...]
    never: str = ""

    def holds(self, auto_alt_dial: str, dialled: str) -> bool:
        """Tell whether it is the stage's turn."""
        return (
            any(setting in auto_alt_dial for setting in self.settings)
            and any(word in dialled for word in self.dialled)
            and not (self.never and self.never in dialled)
        )


_MAIN: Final = ("NONE", "MAIN")
_RULES: Final = (
    _Rule(Stage.ALT, ("ALT_ONLY", "ALT_AND_ADDR3", "ALT_AND_EXTENDED"), _MAIN),
    _Rule(Stage.ADDR3, ("ADDR3_ONLY",), _MAIN),
    _Rule(Stage.ADDR3, ("ALT_AND_ADDR3",), ("ALT",)),
    _Rule(Stage.EXTENDED, ("EXTENDED_ONLY",), _MAIN),
    _Rule(Stage.EXTENDED, ("ALT_AND_EXTENDED",), ("ALT",)),
    _Rule(Stage.EXTENDED, ("ADDR3_AND_EXTENDED",), ("ADDR3",)),
    _Rule(Stage.EXTENDED, ("EXTENDED",), ("X",), never="XLAST"),
)


def stages(auto_alt_dial: str, alt_dial: str) -> tuple[Stage, ...]:
    """Tell which stages have their turns, one after the other, until one of them finds a number.

    Args:
        auto_alt_dial: The campaign's setting.
        alt_dial: What was dialled: ``NONE``, ``MAIN``, ``ALT``, ``ADDR3`` or ``X`` and a place.
    """
    found = []
    for stage in Stage:
        if any(rule.stage is stage and rule.holds(auto_alt_dial, alt_dial) for rule in _RULES):
            found.append(stage)
            alt_dial = stage.value
    return tuple(found)


def last_place(alt_dial: str) -> int:
    """Tell which of a lead's further numbers was dialled; 0 for none of them."""
    digits = _NO_DIGIT.sub("", alt_dial)
    return int(digits) if "X" in alt_dial and digits else 0


def gate(statuses: str, log_status: str, new_status: str) -> bool:
    """Tell whether a call ended so that another number of the lead shall be dialled.

    Args:
        statuses: The campaign's ``auto_alt_dial_statuses``, as ``" B NA DROP -"``.
        log_status: See :class:`Ended`.
        new_status: Likewise.
    """
    return any(status and f" {status} " in statuses for status in (log_status, new_status))


def is_exhausted(called_count: int, list_threshold: int | None, campaign_threshold: int) -> bool:
    """Tell whether a lead was called too often for further numbers.

    Args:
        called_count: How often it was called.
        list_threshold: Of its list; below 0, or None without such a list, the campaign's counts.
        campaign_threshold: Of its campaign; 0 for no threshold.
    """
    threshold = campaign_threshold
    if list_threshold is not None and list_threshold > -1:
        threshold = list_threshold
    return 0 < threshold <= called_count


# ---- whether it may be dialled


def plain_number(text: str) -> str:
    """Give the digits of a number; empty if they are too few for one."""
    digits = _NO_DIGIT.sub("", text)
    return digits if len(digits) > _TOO_SHORT_DIGITS else ""


def dnc_numbers(number: str, use: str, area_of: str | None = None) -> tuple[str, ...]:
    """Tell what must not be in a list of numbers not to call if a number is to be dialled.

    Args:
        number: The number.
        use: How the list is used: ``Y``, ``AREACODE``; else nothing is looked for.
        area_of: The number whose area code counts; None for the same, empty for no area code.
    """
    if use == "Y":
        return (number,)
    if use != "AREACODE":
        return ()
    area = (number if area_of is None else area_of)[:_AREA_DIGITS]
    return (number, area + _ANY_NUMBER) if area else (number,)


class Check(NamedTuple):
    """What stands against a number.

    Attributes:
        system_list: It is in the system's list of numbers not to call.
        campaign_list: It is in the campaign's.
        over_limit: It was called too often today; not looked at if a list has it.
    """

    system_list: bool
    campaign_list: bool
    over_limit: bool

    @property
    def reason(self) -> str:
        """Why it is not dialled; empty if it is."""
        if self.system_list or self.campaign_list:
            return _LISTED
        return _OVER_LIMIT if self.over_limit else ""


def is_handed_on(statuses: str, check: Check) -> bool:
    """Tell whether a further number that is listed goes into the hopper as not to be called.

    Args:
        statuses: The campaign's ``auto_alt_dial_statuses``.
        check: What stands against the number.
    """
    return (check.campaign_list and " DNCC " in statuses) or (check.system_list and " DNCL " in statuses)


def hopper_status(system_hold: int, campaign_hold: str) -> str:
    """Tell the status of a number that is to be dialled: ``READY``, or ``RHOLD`` if it must wait.

    Args:
        system_hold: The system's ``hopper_hold_inserts``; below 1 nothing is kept back.
        campaign_hold: The campaign's.
    """
    return "RHOLD" if system_hold > 0 and campaign_hold in _HOLDING else "READY"


# ---- at the end of a call


def dial_next(leg: Leg, campaign: Campaign, ended: Ended) -> None:
    """Have the lead's next number dialled, if the campaign wants it; see ``leg.alt_dials``.

    Args:
        leg: The request.
        campaign: For which the call was made.
        ended: The call.

    Raises:
        DatabaseUnavailable: The database is away.

    Source: VICIdial's FastAGI daemon, observed: END on any other channel, steps 12 to 16.
    """
    path = stages(campaign.auto_alt_dial, ended.auto_call.alt_dial)
    if not path or not gate(campaign.auto_alt_dial_statuses, ended.log_status, ended.new_status):
        return
    lead = leg.tables.lead(ended.auto_call.lead_id) or _NO_LEAD
    list_id, called_count = ended.list_id, ended.called_count
    if leg.site.threshold_always:
        list_id, called_count = lead.list_id, lead.called_count
    of_list = None if list_id is None else leg.tables.list_threshold(list_id)
    if not is_exhausted(called_count or 0, of_list, campaign.auto_alt_threshold):
        _Search(leg, campaign, ended.auto_call, lead).walk(path)


class _Search:
    """The search for the number that is dialled after one call."""

    def __init__(self, leg: Leg, campaign: Campaign, call: AutoCall, lead: Lead) -> None:
        self._leg = leg
        self._campaign = campaign
        self._call = call
        self._lead = lead

    def walk(self, path: tuple[Stage, ...]) -> None:
        """Let stages have their turns until one has found a number."""
        for stage in path:
            if stage is Stage.EXTENDED:
                found = self._extended()
            elif stage is Stage.ALT:
                found = self._plain(stage, self._lead.alt_phone, None)
            else:
                found = self._plain(stage, self._lead.address3, self._area_of_third(path))
            if found:
                return

    def _area_of_third(self, path: tuple[Stage, ...]) -> str | None:
        """Give the number whose area code the campaign's list is asked for, for the third number.

        In the original it is that of the second number, if that had its turn in the same request.
        """
        if self._leg.site.addr3_own_area_code:
            return None
        return plain_number(self._lead.alt_phone) if Stage.ALT in path else ""

    def _plain(self, stage: Stage, text: str, area_of: str | None) -> bool:
        """Take the second or the third number, if nothing stands against it."""
        alt_dial, number = stage.value, plain_number(text)
        if not number:
            self._skip(_NO_DIGIT.sub("", text), alt_dial, f"{alt_dial} phone invalid")
            return False
        check = self._check(number, self._lead.phone_code, area_of)
        if check.reason:
            self._skip(number, alt_dial, check.reason)
            return False
        self._insert(number, alt_dial, PRIORITIES[stage])
        return True

    def _extended(self) -> bool:
        """Take the first further number behind the last one that nothing stands against."""
        count, phones = self._leg.tables.alt_phones(self._call.lead_id)
        statuses, priority = self._campaign.auto_alt_dial_statuses, PRIORITIES[Stage.EXTENDED]
        for place in range(last_place(self._call.alt_dial) + 1, count + 1):
            phone, alt_dial = phones.get(place), f"X{place}"
            if phone is None:
                return False
            if phone.active != "Y":
                continue
            check = self._check(phone.phone_number, phone.phone_code)
            if not check.reason:
                self._insert(phone.phone_number, alt_dial, priority)
                return True
            if is_handed_on(statuses, check):
                self._insert(phone.phone_number, alt_dial, priority, listed=True)
                return True
            if check.over_limit:
                self._skip(phone.phone_number, alt_dial, check.reason)
            else:
                self._tell(phone.phone_number, alt_dial, 0, _SKIPPED_DNC)
        return False

    def _check(self, number: str, phone_code: str, area_of: str | None = None) -> Check:
        campaign = self._campaign
        system, of_campaign = self._leg.tables.count_dnc(
            dnc_numbers(number, campaign.use_internal_dnc),
            dnc_numbers(number, campaign.use_campaign_dnc, area_of),
            campaign.use_other_campaign_dnc or self._call.campaign_id,
        )
        over_limit = not (system or of_campaign) and not within_limit(
            self._leg, campaign, self._lead, self._call.lead_id, number, phone_code
        )
        return Check(system > 0, of_campaign > 0, over_limit)

    def _insert(self, number: str, alt_dial: str, priority: int, listed: bool = False) -> None:
        lead, hold = self._lead, self._campaign.hopper_hold
        row = HopperRow(
            lead_id=self._call.lead_id,
            campaign_id=self._call.campaign_id,
            status="DNC" if listed else hopper_status(self._leg.system.hopper_hold, hold),
            list_id=lead.list_id,
            gmt_offset_now=lead.gmt_offset_now,
            state=lead.state,
            alt_dial=alt_dial,
            priority=priority,
        )
        self._leg.tables.insert_hopper(row, self._leg.careful)
        self._tell(number, alt_dial, priority, _INSERTED_DNC if listed else _INSERTED)

    def _skip(self, number: str, alt_dial: str, reason: str) -> None:
        self._tell(number, alt_dial, 0, f"hopper skip|{reason}")

    def _tell(self, number: str, alt_dial: str, priority: int, outcome: str) -> None:
        call = self._call
        decision = AltDial(call.lead_id, number, call.campaign_id, alt_dial, priority, outcome)
        self._leg.alt_dials.append(decision)
