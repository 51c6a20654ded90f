"""How the server finds the rows of each statement: by an index, where the tables have one that fits."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

import gevent
import pytest
from mariadb import MariaDBServer
from vicidial_database import SERVER_IP, VicidialDatabase, open_database

from fastagi_pool.database import Database, Statement
from fastagi_pool.executor import Done, Executor
from fastagi_pool.handlers.vicidial import sql as subject
from fastagi_pool.handlers.vicidial.classification import PhoneColumn, PhoneQuestion
from fastagi_pool.handlers.vicidial.leg import Moment
from fastagi_pool.handlers.vicidial.rows import (
    AutoCall,
    CarrierRow,
    DropRow,
    HopperRow,
    LegKey,
    NewCall,
    NewLog,
    QuotaCall,
    Recording,
)
from fastagi_pool.handlers.vicidial.tables import Closing, Tables

pytestmark = pytest.mark.mariadb

#: Rows in each table: so many that no server reads all of them for a few.
ROWS: Final = 5_000
#: Calls in a group, some of them not known.
GROUP: Final = 20
#: Far more than anything here takes.
WAIT_S: Final = 60.0

_NOW: Final = "FROM_UNIXTIME(UNIX_TIMESTAMP() - seq)"
#: What is in each table, for each number ``seq``.
_FILLING: Final[Mapping[str, Mapping[str, str]]] = {
    "servers": {"server_id": "seq", "server_ip": "CONCAT('10.1.', seq)"},
    "system_settings": {"highest_lead_id": "seq"},
    "phones": {"extension": "seq", "dialplan_number": "seq", "server_ip": f"'{SERVER_IP}'"},
    "vicidial_manager": {"callerid": "CONCAT('V', LPAD(seq, 19, '0'))"},
    "vicidial_auto_calls": {
        "callerid": "CONCAT('V', LPAD(seq, 19, '0'))",
        "uniqueid": "CONCAT('1700000000.', seq)",
        "lead_id": "seq",
        "campaign_id": "'TESTCAMP'",
        "status": "'LIVE'",
        "call_time": _NOW,
    },
    "vicidial_campaigns": {"campaign_id": "seq"},
    "vicidial_inbound_groups": {"group_id": "seq"},
    "vicidial_lists": {"list_id": "seq", "campaign_id": "seq DIV 10"},
    "vicidial_settings_containers": {"container_id": "seq", "container_entry": "'text'"},
    "call_log": {
        "uniqueid": "CONCAT(1700000000 + seq, '.', seq)",
        "channel": "CONCAT('SIP/', seq)",
        "channel_group": "''",
        "caller_code": "CONCAT('V', LPAD(seq, 19, '0'))",
        "server_ip": f"'{SERVER_IP}'",
        "start_time": _NOW,
        "start_epoch": "seq",
    },
    "vicidial_dial_log": {
        "caller_code": "CONCAT('V', LPAD(seq, 19, '0'))",
        "lead_id": "seq",
        "server_ip": f"'{SERVER_IP}'",
        "call_date": _NOW,
    },
    "vicidial_list": {"lead_id": "seq", "list_id": "seq MOD 9", "phone_number": "seq", "status": "'NEW'"},
    "vicidial_log": {
        "uniqueid": "CONCAT(1700000000 + seq, '.', seq)",
        "lead_id": "seq",
        "status": "'QUEUE'",
        "call_date": _NOW,
    },
    "vicidial_closer_log": {
        "lead_id": "seq",
        "campaign_id": "'IN'",
        "call_date": _NOW,
        "status": "'QUEUE'",
        "uniqueid": "CONCAT(1700000000 + seq, '.', seq)",
    },
    "vicidial_drop_log": {
        "uniqueid": "seq",
        "server_ip": f"'{SERVER_IP}'",
        "drop_date": "FROM_UNIXTIME(UNIX_TIMESTAMP() - 30 * seq)",
        "lead_id": "seq",
        "campaign_id": "''",
        "status": "''",
    },
    "vicidial_live_agents": {"user": "seq", "server_ip": "''", "lead_id": "seq", "ring_callerid": "seq"},
    "vicidial_hopper": {"lead_id": "seq", "list_id": "1"},
    "vicidial_list_alt_phones": {"lead_id": "seq", "phone_number": "seq", "alt_phone_count": "1"},
    "vicidial_dnc": {"phone_number": "3125550000 + seq"},
    "vicidial_campaign_dnc": {"phone_number": "3125550000 + seq", "campaign_id": "'TESTCAMP'"},
    "vicidial_lead_24hour_calls": {
        "lead_id": "seq",
        "list_id": "seq MOD 9",
        "call_date": _NOW,
        "phone_number": "3125550000 + seq",
        "phone_code": "'1'",
    },
    "vicidial_phone_codes": {"country_code": "1 + seq DIV 1000", "areacode": "seq MOD 1000", "state": "'IL'"},
    "vicidial_postal_codes": {"postal_code": "10000 + seq"},
    "vicidial_lead_call_quota_counts": {"lead_id": "seq", "list_id": "999", "modify_date": _NOW},
    "vicidial_cpd_log": {
        "channel": "''",
        "callerid": "CONCAT('V', LPAD(seq, 19, '0'))",
        "server_ip": "''",
        "result": "'Busy'",
    },
    "parked_channels": {
        "channel": "seq",
        "server_ip": "''",
        "channel_group": "CONCAT('V', LPAD(seq, 19, '0'))",
    },
    "parked_channels_recent": {
        "channel": "seq",
        "server_ip": "''",
        "channel_group": "CONCAT('V', LPAD(seq, 19, '0'))",
        "park_end_time": _NOW,
    },
    "live_channels": {"channel": "seq", "server_ip": "''"},
    "live_inbound": {"uniqueid": "seq", "channel": "''", "server_ip": f"'{SERVER_IP}'"},
    "park_log": {
        "uniqueid": "CONCAT(1700000000 + seq, '.', seq)",
        "server_ip": f"'{SERVER_IP}'",
        "parked_time": _NOW,
    },
    "recording_log": {"vicidial_id": "CONCAT(1700000000 + seq, '.', seq)", "start_epoch": "seq"},
    "vicidial_rt_monitor_log": {"caller_code": "seq"},
    "vicidial_3way_press_live": {"call_3way_id": "seq"},
    "vicidial_3way_press_log": {"call_3way_id": "seq", "result": "''"},
    "vicidial_khomp_log": {"caller_code": "seq", "server_ip": "''", "khomp_id": "seq", "start_date": _NOW},
}

#: Statements that read all rows, by how they begin; and why they may.
SCANS: Final = {
    subject.SERVER: "servers has no index on server_ip; a site has some ten servers, and the row is kept",
    subject.SYSTEM: "system_settings has one row and no index",
    subject.CAMPAIGN_LISTS: "vicidial_lists has no index on campaign_id; the lists are kept",
    subject.POSTAL_STATE: "vicidial_postal_codes has no index; the state is kept",
    subject.PARKED: "parked_channels has no index; it is in memory, and few calls are parked at a time",
    subject.LIVE_CHANNELS: "live_channels has no index; it is in memory, and only asked about parked calls",
    subject.DELETE_POPUPS: "live_inbound has no index; a row lives as long as a call rings at a screen",
    subject.CLEAR_RINGING: "vicidial_live_agents has no index on ring_callerid; it has a row for each agent",
    subject.COUNT_WAITING: "the index on call_time is a hash, which knows no order; it is in memory",
}


class Plan(NamedTuple):
    """How the server finds the rows of one table.

    Attributes:
        table: Which.
        access: Its word for the way; ``ALL`` and ``index`` read everything.
        key: The index; None for none.
        rows: How many rows it expects to read.
        extra: What else it says.
    """

    table: str
    access: str
    key: str | None
    rows: int
    extra: str

    @property
    def is_scan(self) -> bool:
        """Whether the rows that are read become more with the table."""
        return self.key is None or self.access in ("ALL", "index") or self.rows > ROWS / 20


class WatchedExecutor(Executor):
    """An executor that notes all statements: first forms and second ones, one each of the same text.

    Attributes:
        statements: By their text.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.statements: dict[str, Statement] = {}

    def run(
        self,
        statements: Sequence[Statement],
        repeated: Sequence[Statement] | None = None,
        waits: bool = False,
    ) -> Done:
        """Note and do."""
        for statement in (*statements, *(repeated or ())):
            self.statements[statement[0]] = statement
        return super().run(statements, repeated, waits)


class Planner:
    """Tells how statements would be carried out in tables that are full.

    Args:
        vicidial: The tables; they are filled here.
    """

    def __init__(self, vicidial: VicidialDatabase) -> None:
        for table, columns in _FILLING.items():
            names, values = ", ".join(columns), ", ".join(columns.values())
            vicidial.execute(f"INSERT IGNORE INTO {table} ({names}) SELECT {values} FROM seq_1_to_{ROWS}")
            vicidial.execute(f"ANALYZE TABLE {table} PERSISTENT FOR ALL")
        self._database = open_database(vicidial.url)

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    def statements(self, use: Callable[[Tables], object]) -> list[Statement]:
        """Give the statements that a use of the tables means."""
        executor = WatchedExecutor(self._database)
        use(Tables(executor, SERVER_IP, 0.0, logging.getLogger("test_plans")))
        return list(executor.statements.values())

    def plans(self, statement: Statement) -> list[Plan]:
        """Say how each table is read in which a statement looks for rows; an INSERT looks for none."""
        sql, parameters = statement
        (answer,) = self._database.lease().round_trip([(f"EXPLAIN {sql}", parameters)])
        plans = []
        for _, kind, table, access, _, key, _, _, rows, extra in answer.rows:
            if table is not None and kind != "INSERT":
                # Behind the rows may stand which part of them a second index leaves.
                plans.append(Plan(table, access, key, int(str(rows).split()[0]), extra))
        return plans


@pytest.fixture(scope="module", params=["InnoDB", "MyISAM"])
def planner(request: pytest.FixtureRequest, mariadb: MariaDBServer) -> Iterator[Planner]:
    """Full tables, with those in memory as VICIdial has them, and the others of each engine."""
    with VicidialDatabase(mariadb, f"plans_{request.param.lower()}", engine=request.param) as vicidial:
        planner = Planner(vicidial)
        yield planner
        planner.close()


# ---- every use of the tables, with what a call may say

CODE: Final = "V0000000000000000101"
UID: Final = "1700000101.101"
STEM: Final = "1700000101"
LEAD_ID: Final = 101
NOW: Final = Moment(1_700_000_040, "2023-11-14 22:14:00")
SINCE: Final = "2000-01-01 00:00:00"

KEYS: Final = [LegKey(f"{1_700_000_000 + number}.{number}", f"V{number:019}") for number in range(GROUP)]
NEW_CALL: Final = NewCall("1.1", "SIP/x", "", "SIP", SERVER_IP, "x", "1", CODE, NOW.text, NOW.epoch)
AUTO_CALL: Final = AutoCall(
    1, 101, CODE, "TESTCAMP", "NONE", "", NOW.text, 1, UID, "SENT", "1", "2", 1, SERVER_IP, ""
)
NEW_LOG: Final = NewLog("1.1", "AB", 999, 1, "", SERVER_IP, AUTO_CALL)
DROP: Final = DropRow(UID, SERVER_IP, LEAD_ID, "TESTCAMP", "DROP", "1", "2")
CARRIER: Final = CarrierRow("1.1", NOW.text, SERVER_IP, 1, "17", "BUSY", "x", "1", "1", "486", "Busy", CODE)
HOPPER: Final = HopperRow(LEAD_ID, "TESTCAMP", "READY", 999, Decimal(0), "IL", "ALT", 25)
QUOTA: Final = QuotaCall(LEAD_ID, 999, datetime(2023, 11, 14), "one", "two", "A", 1, 1, writes_rank=True)


def closing(key: LegKey) -> Closing:
    """Make the end of a call."""
    return Closing(key.uniqueid, "SIP/x", NOW, (key.uniqueid, "old"))


def together(use: Callable[[Any], object], items: Sequence[object]) -> None:
    """Let several calls use the tables at the same moment."""
    gevent.joinall([gevent.spawn(use, item) for item in items], timeout=WAIT_S, raise_error=True)


@dataclass(frozen=True)
class Uses:
    """What calls do with one method.

    Attributes:
        alone: Uses by one call.
        shared: Uses by several calls at the same moment.
    """

    alone: tuple[Callable[[Tables], object], ...]
    shared: Callable[[Tables], object] | None = None


def phone(column: PhoneColumn) -> Callable[[Tables], object]:
    """Ask for a phone."""
    return lambda tables: tables.knows_phone(PhoneQuestion(column, "101", "SIP"))


def end(*makes: Callable[[Tables], Statement]) -> Callable[[Tables], object]:
    """Carry out what the tables make."""
    return lambda tables: tables.end_call([make(tables) for make in makes], None)


USES: Final = {
    "site": Uses((lambda tables: tables.site(),)),
    "campaign": Uses((lambda tables: tables.campaign("101"),)),
    "knows_phone": Uses((phone(PhoneColumn.EXTENSION), phone(PhoneColumn.DIALPLAN_NUMBER))),
    "resets_lead": Uses((lambda tables: tables.resets_lead("101"),)),
    "list_threshold": Uses((lambda tables: tables.list_threshold(101),)),
    "campaign_lists": Uses((lambda tables: tables.campaign_lists("101"),)),
    "container": Uses((lambda tables: tables.container("101"),)),
    "phone_code": Uses((lambda tables: tables.phone_code("1", "312"),)),
    "postal_state": Uses((lambda tables: tables.postal_state("10101"),)),
    "campaign_of_code": Uses(
        (lambda tables: tables.campaign_of_code(CODE),),
        lambda tables: together(tables.campaign_of_code, [key.code for key in KEYS]),
    ),
    "manager_lines": Uses((lambda tables: tables.manager_lines(CODE),)),
    "insert_call": Uses(
        (lambda tables: tables.insert_call(NEW_CALL).get(),),
        lambda tables: together(
            lambda number: tables.insert_call(NEW_CALL._replace(uniqueid=f"1.{number}")).get(), range(GROUP)
        ),
    ),
    "look": Uses(
        (lambda tables: tables.look(LegKey(UID, CODE)), lambda tables: tables.look(LegKey(UID, ""))),
        lambda tables: together(tables.look, KEYS),
    ),
    "manual_legs": Uses((lambda tables: tables.manual_legs(STEM, LEAD_ID, CODE),)),
    "call": Uses((lambda tables: tables.call(UID),)),
    "is_live": Uses((lambda tables: tables.is_live("SIP/x"),)),
    "campaign_of_log": Uses((lambda tables: tables.campaign_of_log(UID),)),
    "find_logs": Uses(
        (
            lambda tables: tables.find_logs(LEAD_ID, STEM, SINCE),
            lambda tables: tables.find_logs(LEAD_ID, STEM, SINCE, UID),
        )
    ),
    "carrier_cause": Uses((lambda tables: tables.carrier_cause(CODE, LEAD_ID),)),
    "newest_recording": Uses((lambda tables: tables.newest_recording(UID),)),
    "cpd_result": Uses((lambda tables: tables.cpd_result(CODE),)),
    "open_monitor": Uses((lambda tables: tables.open_monitor("101"),)),
    "three_way_status": Uses((lambda tables: tables.three_way_status("101"),)),
    "close": Uses(
        (lambda tables: tables.close(closing(LegKey(UID, CODE))),),
        lambda tables: together(tables.close, [closing(key) for key in KEYS]),
    ),
    "close_double": Uses((lambda tables: tables.close_double(UID, NOW),)),
    "close_recording": Uses((lambda tables: tables.close_recording(Recording(101, 1, ""), NOW),)),
    "close_park": Uses((lambda tables: tables.close_park(UID, 1, 1, NOW),)),
    "set_carrier_cause": Uses((end(lambda tables: tables.set_carrier_cause(CODE, LEAD_ID, UID, "1", "x")),)),
    "insert_carrier": Uses((end(lambda tables: tables.insert_carrier(CARRIER)),)),
    "end_monitor": Uses((lambda tables: tables.end_monitor("101", 1, NOW),)),
    "end_three_way": Uses((lambda tables: tables.end_three_way("101"),)),
    "fail_dial": Uses((lambda tables: tables.fail_dial(CODE, LEAD_ID, STEM, "AB", "BUSY", True),)),
    "new_log": Uses((lambda tables: tables.end_call(tables.new_log(NEW_LOG), None),)),
    "end_call": Uses((lambda tables: tables.end_call([], DROP),)),
    "take_auto_call": Uses((lambda tables: tables.take_auto_call(102, CODE),)),
    "stop_ringing": Uses((lambda tables: tables.stop_ringing(CODE),)),
    "delete_auto_calls": Uses((lambda tables: tables.delete_auto_calls("V0000000000000000103"),)),
    "lead_status": Uses((end(lambda tables: tables.lead_status(LEAD_ID, "AB")),)),
    "lead_reset": Uses((end(lambda tables: tables.lead_reset(LEAD_ID)),)),
    "log_ending": Uses((end(lambda tables: tables.log_ending(LEAD_ID, STEM, "DROP", "CALLER", 1, 1)),)),
    "closer_ending": Uses((end(lambda tables: tables.closer_ending(101, "DROP", "CALLER", 1, "x", 1, 1)),)),
    "lead": Uses((lambda tables: tables.lead(LEAD_ID),)),
    "lead_words": Uses((lambda tables: tables.lead_words(LEAD_ID),)),
    "alt_phones": Uses((lambda tables: tables.alt_phones(LEAD_ID),)),
    "count_dnc": Uses(
        (
            lambda tables: tables.count_dnc(
                ["3125550101", "312XXXXXXX"], ["3125550101", "312XXXXXXX"], "TESTCAMP"
            ),
        )
    ),
    "calls_of_day": Uses(
        (
            lambda tables: tables.calls_of_day("3125550101", "1"),
            lambda tables: tables.calls_of_day("3125550101", "1", [1, 2, 3]),
        )
    ),
    "calls_of_day_to_lead": Uses(
        (
            lambda tables: tables.calls_of_day_to_lead(LEAD_ID),
            lambda tables: tables.calls_of_day_to_lead(LEAD_ID, [1, 2, 3]),
        )
    ),
    "insert_hopper": Uses((lambda tables: tables.insert_hopper(HOPPER),)),
    "newest_dial": Uses((lambda tables: tables.newest_dial(LEAD_ID, SINCE),)),
    "quota_row": Uses((lambda tables: tables.quota_row(LEAD_ID, 999),)),
    "insert_quota": Uses((lambda tables: tables.insert_quota(QUOTA),)),
    "count_quota": Uses((lambda tables: tables.count_quota(QUOTA),)),
    "set_quota_status": Uses((lambda tables: tables.set_quota_status(QUOTA),)),
    "insert_khomp": Uses((lambda tables: tables.insert_khomp(CODE, "X", "101", "CALLERCODE", "101"),)),
    "end_khomp": Uses((lambda tables: tables.end_khomp("101", {"conclusion": "x"}),)),
    "replace_container": Uses((lambda tables: tables.replace_container("101", "text", "text"),)),
    "queue_entry": Uses((lambda tables: tables.queue_entry(UID, LEAD_ID, "IN", SINCE),)),
    "count_waiting": Uses((lambda tables: tables.count_waiting("TESTCAMP", "2023-11-14 22:14:00"),)),
}


def why_it_scans(sql: str) -> str:
    """Give the reason why a statement may read all rows; empty if it may not."""
    return next((reason for beginning, reason in SCANS.items() if sql.startswith(beginning)), "")


def wrong_plans(planner: Planner, use: Callable[[Tables], object]) -> list[str]:
    """Say which statements of a use read all rows and have no reason, or have a reason and no need of it."""
    wrong = []
    for statement in planner.statements(use):
        plans = planner.plans(statement)
        if why_it_scans(statement[0]):
            wrong += [f"no longer a scan: {plan}: {statement[0]}" for plan in plans if not plan.is_scan]
        else:
            wrong += [f"{plan}: {statement[0]}" for plan in plans if plan.is_scan]
    return wrong


@pytest.mark.parametrize("method", USES)
def test_a_call_finds_its_rows_by_an_index(planner: Planner, method: str) -> None:
    """No statement reads a whole table of thousands of rows, but for those that are named with a reason."""
    assert [line for use in USES[method].alone for line in wrong_plans(planner, use)] == []


@pytest.mark.parametrize("method", [name for name, uses in USES.items() if uses.shared])
def test_a_group_finds_its_rows_by_an_index(planner: Planner, method: str) -> None:
    """A statement for twenty calls reads no more than twenty times what it would read for one."""
    shared = USES[method].shared
    assert shared is not None
    assert wrong_plans(planner, shared) == []


def test_every_use_is_here() -> None:
    """A new method of the tables has its plan looked at, too."""
    methods = {name for name, _ in inspect.getmembers(Tables, inspect.isfunction) if not name.startswith("_")}
    assert set(USES) == methods


def test_every_statement_is_here(planner: Planner) -> None:
    """Each statement that is written down is carried out by some use, and so its plan is looked at."""
    carried_out = {
        sql
        for uses in USES.values()
        for use in (*uses.alone, *filter(None, [uses.shared]))
        for sql, _ in planner.statements(use)
    }
    written = {
        name: re.compile(re.sub(r"\\\{\w+\\\}", ".*", re.escape(value)))
        for name, value in vars(subject).items()
        if name.isupper()
        and not name.startswith("_")
        and re.match("(SELECT|INSERT|UPDATE|DELETE) ", str(value))
    }
    assert len(written) > 50
    assert [name for name, form in written.items() if not any(map(form.match, carried_out))] == []
