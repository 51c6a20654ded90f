"""VICIdial's calls from a real Asterisk, through the dialplan lines that VICIdial's sites have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from mariadb import MariaDBServer
from vicidial_database import PATIENT, SERVER_IP, VicidialDatabase, pool_databases, pool_route

from .asterisk.calls import CallDone, PlacedCall, Telephone
from .conftest import PoolFactory

pytestmark = [pytest.mark.asterisk, pytest.mark.mariadb]

_MANY: Final = 500
_AT_ONCE: Final = 30
#: Every so many calls are VICIdial's own; the others come from telephones.
_EVERY: Final = 3
#: Longest that a call may seem to have lasted; in truth all last some milliseconds.
_LONGEST_S: Final = 60
_CAMPAIGNS: Final = ("EAST", "WEST")
#: What a number's last digit means to the test's carrier: how Dial() ends, and the cause. It answers others.
_REFUSALS: Final = {"7": "BUSY 17", "8": "CONGESTION 34", "9": "CHANUNAVAIL 1"}
_ANSWERED: Final = "ANSWER 16"
#: What that makes of a lead, and of its living call. All others are left as they are.
_DISCONNECTED: Final = {"BUSY 17": ("AB", "BUSY"), "CHANUNAVAIL 1": ("ADC", "DISCONNECT")}
_UNTOUCHED: Final = ("QUEUE", "SENT")

_INSERT_CAMPAIGN: Final = "INSERT INTO vicidial_campaigns SET campaign_id = %s, dial_timeout = 26"
_INSERT_LIVE_CALL: Final = """
    INSERT INTO vicidial_list SET lead_id = %(lead)s, list_id = 999, status = 'QUEUE',
        phone_number = %(number)s;
    INSERT INTO vicidial_auto_calls SET server_ip = %(server_ip)s, campaign_id = %(campaign)s,
        status = 'SENT', lead_id = %(lead)s, callerid = %(code)s, phone_number = %(number)s, call_time = NOW()
"""
_SELECT_CALL_LOG: Final = """
    SELECT uniqueid, channel, channel_group, type, server_ip, extension, number_dialed, caller_code,
        start_epoch, end_epoch, length_in_sec, length_in_min, UNIX_TIMESTAMP(start_time),
        UNIX_TIMESTAMP(end_time)
    FROM call_log
"""
_SELECT_CARRIER_LOG: Final = """
    SELECT uniqueid, CONCAT(dialstatus, ' ', hangup_cause), lead_id, caller_code, server_ip
    FROM vicidial_carrier_log
"""
_SELECT_LEADS: Final = """
    SELECT lead_id, list.status, live.status
    FROM vicidial_list list JOIN vicidial_auto_calls live USING (lead_id)
"""


class _Row(NamedTuple):
    """A row of ``call_log``, with both times as epochs too."""

    uniqueid: str
    channel: str
    channel_group: str
    type: str
    server_ip: str
    extension: str
    number_dialed: str
    caller_code: str
    start_epoch: int
    end_epoch: int
    length_s: int
    length_min: float
    start_time_epoch: int
    end_time_epoch: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one call is, by its number from 1 on.

    Attributes:
        lead: Whom VICIdial has dialled, from 1 on; 0 for a telephone's own call.
        dialled: The extension.
        caller: The caller's number, each call's own.
        campaign: Of VICIdial's call; empty for others.
        ending: How Dial() ends, and the cause.
    """

    lead: int
    dialled: str
    caller: str
    campaign: str
    ending: str

    @classmethod
    def of(cls, number: int) -> _Plan:
        """Plan the call of a number."""
        lead = number // _EVERY if number % _EVERY == 0 else 0
        dialled = f"{913125550000 + number}"
        campaign = _CAMPAIGNS[lead % len(_CAMPAIGNS)] if lead else ""
        return cls(lead, dialled, f"{2125560000 + number}", campaign, _REFUSALS.get(dialled[-1], _ANSWERED))

    @property
    def code(self) -> str:
        """What VICIdial's tables know the call by."""
        return f"V120215031{self.lead:010d}" if self.lead else self.caller

    def place(self, telephone: Telephone, address: str) -> PlacedCall:
        """Place the call; returns at once."""
        variables = {"FAGI": f"agi://{address}", "TRUNK_TECH": "Local", "TRUNK": "carrier"}
        name = self.code if self.lead else "Reception"
        return telephone.dial(f"{self.dialled}@vicidial", variables, f'"{name}" <{self.caller}>')


def test_every_call_is_written_down_and_closed(
    mariadb: MariaDBServer, pools: PoolFactory, telephone: Telephone, run_folder: Path
) -> None:
    """Of 500 calls each has its row with all facts, closed by its own END; campaigns reach the dialplan."""
    logs = run_folder / "vicidial-logs"
    logs.mkdir()
    plans = [_Plan.of(number) for number in range(1, _MANY + 1)]
    with VicidialDatabase(mariadb, "external_vicidial") as database:
        _write_live_calls(database, plans)
        settings = {"routes": [pool_route(logs)], "databases": pool_databases(database.url, **PATIENT)}
        pool = pools.start({}, settings)
        ended = _call_all(telephone, pool.address, plans)
        # What a pool has not written when it has ended, it never will.
        assert pool.stop() == 0, pool.logged()
        for plan, (_, done) in zip(plans, ended, strict=True):
            _check_dialplan(plan, done)
        _check_call_log(database, plans, ended)
        _check_carrier_log(database, plans, ended)
        _check_leads(database, plans)


def _write_live_calls(database: VicidialDatabase, plans: list[_Plan]) -> None:
    """Write what VICIdial writes before it lets Asterisk dial."""
    for campaign in _CAMPAIGNS:
        database.execute(_INSERT_CAMPAIGN, (campaign,))
    for plan in filter(lambda plan: plan.lead, plans):
        values = {"server_ip": SERVER_IP, "lead": plan.lead, "campaign": plan.campaign, "code": plan.code}
        database.execute(_INSERT_LIVE_CALL, {**values, "number": plan.dialled[2:]})


def _call_all(telephone: Telephone, address: str, plans: list[_Plan]) -> list[tuple[str, CallDone]]:
    """Place all calls, some at once; return the unique id of each and how it ended."""
    waiting: list[PlacedCall] = []
    ended: list[tuple[str, CallDone]] = []

    def await_oldest() -> None:
        call = waiting.pop(0)
        ended.append((call.uniqueid, call.done()))

    for plan in plans:
        if len(waiting) == _AT_ONCE:
            await_oldest()
        waiting.append(plan.place(telephone, address))
    while waiting:
        await_oldest()
    return ended


def _check_dialplan(plan: _Plan, done: CallDone) -> None:
    """The END was served, the carrier did what was planned, and both halves know VICIdial's campaign."""
    assert done.status == "SUCCESS"
    assert done.way == plan.ending
    assert done.variables == {"CAMPCUST": plan.campaign, "CARRIED": plan.campaign}


def _check_call_log(
    database: VicidialDatabase, plans: list[_Plan], ended: list[tuple[str, CallDone]]
) -> None:
    rows = {str(row[0]): _Row(*row) for row in database.execute(_SELECT_CALL_LOG)}
    assert rows.keys() == {uniqueid for uniqueid, _ in ended}
    for plan, (uniqueid, _) in zip(plans, ended, strict=True):
        row = rows[uniqueid]
        assert row.channel.startswith(f"Local/{plan.dialled}@vicidial-"), row
        assert row.channel.endswith(";2"), row
        assert (row.channel_group, row.type, row.server_ip) == ("Local Channel Line", "Local", SERVER_IP)
        assert (row.extension, row.number_dialed, row.caller_code) == (plan.dialled, plan.dialled, plan.code)
        assert row.end_epoch > 0, row
        assert (row.start_epoch, row.end_epoch) == (row.start_time_epoch, row.end_time_epoch)
        assert 0 <= row.length_s <= _LONGEST_S, row
        assert row.length_s == row.end_epoch - row.start_epoch
        assert row.length_min == pytest.approx(row.length_s / 60, abs=0.0051)
    assert len({row.channel for row in rows.values()}) == len(plans)


def _check_carrier_log(
    database: VicidialDatabase, plans: list[_Plan], ended: list[tuple[str, CallDone]]
) -> None:
    """Each of VICIdial's calls, and no other, tells how the carrier ended it."""
    wanted = {
        uniqueid: (plan.ending, plan.lead, plan.code, SERVER_IP)
        for plan, (uniqueid, _) in zip(plans, ended, strict=True)
        if plan.lead
    }
    assert {str(row[0]): tuple(row[1:]) for row in database.execute(_SELECT_CARRIER_LOG)} == wanted


def _check_leads(database: VicidialDatabase, plans: list[_Plan]) -> None:
    """A lead whose line was busy or does not exist says so, and so does its living call."""
    found: dict[int, Any] = {row[0]: tuple(row[1:]) for row in database.execute(_SELECT_LEADS)}
    wanted = {plan.lead: _DISCONNECTED.get(plan.ending, _UNTOUCHED) for plan in plans if plan.lead}
    assert found == wanted
    assert set(wanted.values()) == {*_DISCONNECTED.values(), _UNTOUCHED}
