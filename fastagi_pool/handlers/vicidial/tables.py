"""Tables: all SQL of VICIdial's handlers, and nothing but SQL.

Laws:
    * Every value is a parameter; no text of a caller becomes part of a statement.
    * Settings are read once for a time to live. What calls in progress want of the same tables at the
      same moment shares a statement, and each gets what is his.
    * A write bears repetition after a lost connection: it sets what it says, or has a key, or its second
      form looks first whether the row is there.
    * Text is compared as the columns compare it, without case. An empty code is nobody's: nothing is
      looked for by it.

The tables' names and columns are VICIdial's. ``FOUND_ROWS`` is on: a count is of rows matched, not changed.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar

from pymysql import err
from pymysql.constants import ER

from fastagi_pool.caching import Cached
from fastagi_pool.database import Answer
from fastagi_pool.errors import DatabaseUnavailable
from fastagi_pool.executor import Done
from fastagi_pool.grouping import Grouping
from fastagi_pool.handlers.vicidial.leg import Moment
from fastagi_pool.handlers.vicidial.rows import (
    NO_SERVER,
    NO_SYSTEM,
    AltPhone,
    AutoCall,
    CallLogRow,
    Campaign,
    CloserRow,
    DropRow,
    HopperRow,
    Lead,
    LeadWords,
    LogRow,
    ParkRow,
    QuotaRow,
    Recording,
    Server,
    System,
)

if TYPE_CHECKING:
    from gevent.event import AsyncResult

    from fastagi_pool.database import Statement
    from fastagi_pool.executor import Executor
    from fastagi_pool.handlers.vicidial.classification import PhoneQuestion

Kind = TypeVar("Kind")
Found: TypeAlias = Sequence[tuple[Any, ...]]
Log: TypeAlias = logging.Logger | logging.LoggerAdapter[logging.Logger]

_SYSTEM_NUMBERS: Final = frozenset(
    {
        "highest_lead_id",
        "disconnect_mode",
        "drop_lists",
        "call_quota",
        "call_limit_24hour",
        "hopper_hold",
        "opensips_cid_name",
        "queue_logging",
    }
)

ZERO_DATE: Final = "0000-00-00 00:00:00"

# --- settings

SERVER: Final = (
    "SELECT agi_output, asterisk_version, external_server_ip, carrier_logging_active"
    " FROM servers WHERE server_ip = %s LIMIT 1"
)
SYSTEM: Final = (
    "SELECT highest_lead_id, enhanced_disconnect_logging, enable_drop_lists, call_quota_lead_ranking,"
    " timeclock_end_of_day, call_limit_24hour, hopper_hold_inserts, opensips_cid_name,"
    " enable_queuemetrics_logging, queuemetrics_server_ip, queuemetrics_dbname, queuemetrics_login,"
    " queuemetrics_pass, queuemetrics_log_id, queuemetrics_socket, queuemetrics_socket_url"
    " FROM system_settings LIMIT 1"
)
CAMPAIGN: Final = (
    "SELECT campaign_id, dial_timeout, manual_dial_timeout, campaign_vdad_exten, amd_type, opensips_cid_name,"
    " khomp_settings_container, auto_alt_dial, auto_alt_dial_statuses, auto_alt_threshold, use_internal_dnc,"
    " use_campaign_dnc, use_other_campaign_dnc, call_quota_lead_ranking, call_limit_24hour_method,"
    " call_limit_24hour_scope, call_limit_24hour, call_limit_24hour_override, hopper_hold_inserts"
    " FROM vicidial_campaigns WHERE campaign_id = %s"
)
PHONE_BY_EXTENSION: Final = (
    "SELECT COUNT(*) FROM phones WHERE server_ip = %s AND extension = %s AND protocol = %s"
)
PHONE_BY_NUMBER: Final = (
    "SELECT COUNT(*) FROM phones WHERE server_ip = %s AND dialplan_number = %s AND protocol = %s"
)
LEAD_RESET: Final = "SELECT drop_lead_reset FROM vicidial_inbound_groups WHERE group_id = %s"
LIST_THRESHOLD: Final = "SELECT auto_alt_threshold FROM vicidial_lists WHERE list_id = %s"
CAMPAIGN_LISTS: Final = "SELECT list_id FROM vicidial_lists WHERE campaign_id = %s"
CONTAINER: Final = "SELECT container_entry FROM vicidial_settings_containers WHERE container_id = %s"
PHONE_CODE: Final = (
    "SELECT state, country FROM vicidial_phone_codes WHERE country_code = %s AND areacode = %s LIMIT 1"
)
POSTAL_STATE: Final = "SELECT state FROM vicidial_postal_codes WHERE postal_code = %s LIMIT 1"

# --- START

DIALLED: Final = "SELECT campaign_id FROM vicidial_auto_calls WHERE callerid = %s LIMIT 1"
DIALLED_IN: Final = "SELECT callerid, campaign_id FROM vicidial_auto_calls WHERE callerid IN %s"
MANAGER: Final = "SELECT cmd_line_b, cmd_line_d FROM vicidial_manager WHERE callerid = %s LIMIT 1"
INSERT_CALL: Final = (
    "INSERT IGNORE INTO call_log (uniqueid, channel, channel_group, type, server_ip, extension,"
    " number_dialed, caller_code, start_time, start_epoch, end_time, end_epoch, length_in_sec, length_in_min)"
    " VALUES "
)
_CALL_VALUES: Final = f"(%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,'{ZERO_DATE}',0,0,0)"

# --- END: what is known of the call

PARKED: Final = "SELECT channel_group, server_ip, channel FROM parked_channels WHERE channel_group IN %s"
PARKED_RECENTLY: Final = (
    "SELECT channel_group, server_ip FROM parked_channels_recent"
    " WHERE channel_group IN %s AND park_end_time > %s ORDER BY park_end_time"
)
CALLS_BY_ID: Final = (
    "SELECT uniqueid, channel, channel_group, start_epoch, end_epoch FROM call_log WHERE uniqueid IN %s"
)
CALLS_BY_CODE: Final = (
    "SELECT uniqueid, channel, channel_group, start_epoch, end_epoch FROM call_log"
    " WHERE caller_code IN %s ORDER BY uniqueid"
)
PARK_ROWS: Final = (
    "SELECT uniqueid, UNIX_TIMESTAMP(parked_time), UNIX_TIMESTAMP(grab_time) FROM park_log"
    " WHERE uniqueid IN %s AND server_ip = %s AND (parked_sec IS NULL OR parked_sec < 1) ORDER BY parked_time"
)
_AUTO_CALL_COLUMNS: Final = (
    "auto_call_id, lead_id, callerid, campaign_id, alt_dial, stage, CAST(call_time AS CHAR),"
    " UNIX_TIMESTAMP(call_time), uniqueid, status, phone_code, phone_number, queue_position, server_ip,"
    " agent_only"
)
AUTO_CALLS_BY_ID: Final = f"SELECT {_AUTO_CALL_COLUMNS} FROM vicidial_auto_calls WHERE uniqueid IN %s"
AUTO_CALLS_BY_CODE: Final = f"SELECT {_AUTO_CALL_COLUMNS} FROM vicidial_auto_calls WHERE callerid IN %s"
OTHER_LEG: Final = (
    "SELECT uniqueid FROM call_log WHERE uniqueid LIKE %s AND caller_code LIKE %s"
    " ORDER BY caller_code = %s DESC, uniqueid LIMIT 1"
)
LIVE_CHANNELS: Final = "SELECT COUNT(*) FROM live_channels WHERE channel = %s"
LOG_BY_ID: Final = "SELECT campaign_id FROM vicidial_log WHERE uniqueid = %s"
FIND_LOG: Final = (
    "SELECT start_epoch, status, user, term_reason, comments FROM vicidial_log FORCE INDEX (lead_id)"
    " WHERE lead_id = %s AND uniqueid LIKE %s LIMIT 1"
)
_FIND_CLOSER: Final = (
    "SELECT closecallid, start_epoch, status, user, term_reason, comments, uniqueid"
    " FROM vicidial_closer_log FORCE INDEX (lead_id) WHERE lead_id = %s AND call_date > %s"
)
FIND_CLOSER: Final = f"{_FIND_CLOSER} ORDER BY closecallid DESC LIMIT 1"
FIND_OWN_CLOSER: Final = f"{_FIND_CLOSER} ORDER BY uniqueid = %s DESC, closecallid DESC LIMIT 1"
CARRIER_CAUSE: Final = (
    "SELECT sip_hangup_cause, sip_hangup_reason FROM vicidial_dial_log FORCE INDEX (caller_code)"
    " WHERE caller_code = %s AND lead_id = %s AND server_ip = %s ORDER BY call_date DESC LIMIT 1"
)
NEWEST_RECORDING: Final = (
    "SELECT recording_id, start_epoch, end_epoch FROM recording_log FORCE INDEX (vicidial_id)"
    " WHERE vicidial_id = %s ORDER BY recording_id DESC LIMIT 1"
)
CPD_RESULT: Final = (
    "SELECT result FROM vicidial_cpd_log FORCE INDEX (callerid)"
    " WHERE callerid = %s AND result NOT IN ('Voice', 'Unknown', '???', '') ORDER BY cpd_id DESC LIMIT 1"
)
MONITOR: Final = (
    "SELECT UNIX_TIMESTAMP(monitor_start_time) FROM vicidial_rt_monitor_log"
    " WHERE caller_code = %s AND (monitor_end_time IS NULL OR monitor_end_time = monitor_start_time)"
)
THREE_WAY: Final = "SELECT status FROM vicidial_3way_press_live WHERE call_3way_id = %s LIMIT 1"

# --- END: writes

CLOSE_DOUBLE: Final = (
    "UPDATE call_log SET end_time = %s, end_epoch = %s, length_in_sec = %s - COALESCE(start_epoch, 0),"
    " length_in_min = ROUND((%s - COALESCE(start_epoch, 0)) / 60, 2)"
    " WHERE uniqueid = %s AND channel_group = 'DOUBLE_LOG'"
)
DELETE_POPUPS: Final = "DELETE FROM live_inbound WHERE server_ip = %s AND uniqueid IN %s"
CLOSE_RECORDING: Final = (
    "UPDATE recording_log SET end_time = %s, end_epoch = %s, length_in_sec = %s, length_in_min = %s"
    " WHERE recording_id = %s"
)
CLOSE_PARK: Final = (
    "UPDATE park_log SET status = 'HUNGUP', hangup_time = %s, parked_sec = %s, talked_sec = %s"
    " WHERE uniqueid = %s AND server_ip = %s ORDER BY parked_time DESC LIMIT 1"
)
SET_CARRIER_CAUSE: Final = (
    "UPDATE vicidial_dial_log SET sip_hangup_cause = %s, sip_hangup_reason = %s, uniqueid = %s"
    " WHERE caller_code = %s AND server_ip = %s AND lead_id = %s"
)
INSERT_CARRIER: Final = (
    "INSERT IGNORE INTO vicidial_carrier_log (uniqueid, call_date, server_ip, lead_id, hangup_cause,"
    " dialstatus, channel, dial_time, answered_time, sip_hangup_cause, sip_hangup_reason, caller_code)"
    " VALUES (%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s)"
)
END_MONITOR: Final = (
    "UPDATE vicidial_rt_monitor_log SET monitor_sec = %s, monitor_end_time = %s WHERE caller_code = %s"
)
END_THREE_WAY: Final = "UPDATE vicidial_3way_press_live SET status = 'HUNGUP' WHERE call_3way_id = %s"
LOG_THREE_WAY: Final = (
    "UPDATE vicidial_3way_press_log SET result = CONCAT(result, '|Hungup: ', NOW()) WHERE call_3way_id = %s"
)
SET_LEAD_STATUS: Final = "UPDATE vicidial_list SET status = %s WHERE lead_id = %s"
RESET_LEAD: Final = "UPDATE vicidial_list SET called_since_last_reset = 'N' WHERE lead_id = %s"
SET_LEAD_RANK: Final = "UPDATE vicidial_list SET `rank` = %s WHERE lead_id = %s"
SET_AUTO_CALL_STATUS: Final = "UPDATE vicidial_auto_calls SET status = %s WHERE callerid = %s"
SET_LOG_STATUS: Final = "UPDATE vicidial_log SET status = %s WHERE lead_id = %s AND uniqueid LIKE %s"
DELETE_AUTO_CALL: Final = "DELETE FROM vicidial_auto_calls WHERE auto_call_id = %s"
DELETE_AUTO_CALLS: Final = "DELETE FROM vicidial_auto_calls WHERE callerid = %s"
CLEAR_RINGING: Final = "UPDATE vicidial_live_agents SET ring_callerid = '' WHERE ring_callerid = %s"
INSERT_LOG: Final = (
    "INSERT IGNORE INTO vicidial_log (uniqueid, lead_id, list_id, status, campaign_id, call_date,"
    " start_epoch, phone_code, phone_number, user, processed, length_in_sec, end_epoch, alt_dial,"
    " called_count, comments) VALUES (%s,%s,%s,%s,%s,%s,%s,%s,%s,'VDAD','N',0,%s,%s,%s,%s)"
)
INSERT_EXTENDED: Final = (
    "INSERT INTO vicidial_log_extended (uniqueid, server_ip, call_date, lead_id, caller_code, custom_call_id)"
    " VALUES (%s,%s,%s,%s,%s,'') ON DUPLICATE KEY UPDATE server_ip = VALUES(server_ip),"
    " call_date = VALUES(call_date), lead_id = VALUES(lead_id), caller_code = VALUES(caller_code)"
)
INSERT_DROP: Final = (
    "INSERT INTO vicidial_drop_log"
    " (uniqueid, server_ip, drop_date, lead_id, campaign_id, status, phone_code, phone_number)"
    " SELECT %s, %s, NOW(), %s, %s, %s, %s, %s FROM DUAL"
)
_UNLESS_DROPPED: Final = (
    " WHERE NOT EXISTS (SELECT 1 FROM vicidial_drop_log"
    " WHERE uniqueid = %s AND lead_id = %s AND drop_date > NOW() - INTERVAL 1 MINUTE)"
)
INSERT_HOPPER: Final = (
    "INSERT INTO vicidial_hopper"
    " (lead_id, campaign_id, status, list_id, gmt_offset_now, state, alt_dial, user, priority, source)"
    " SELECT %s, %s, %s, %s, %s, %s, %s, '', %s, 'A' FROM DUAL"
)
_UNLESS_IN_HOPPER: Final = (
    " WHERE NOT EXISTS (SELECT 1 FROM vicidial_hopper WHERE lead_id = %s AND alt_dial = %s AND source = 'A')"
)

# --- what is dialled next

LEAD: Final = (
    "SELECT list_id, called_count, `rank`, alt_phone, address3, gmt_offset_now, state, phone_code,"
    " postal_code FROM vicidial_list WHERE lead_id = %s"
)
LEAD_WORDS: Final = (
    "SELECT lead_id, vendor_lead_code, list_id, phone_number, title, first_name, middle_initial, last_name,"
    " postal_code FROM vicidial_list WHERE lead_id = %s"
)
ALT_PHONES: Final = (
    "SELECT alt_phone_count, phone_number, active, phone_code FROM vicidial_list_alt_phones"
    " WHERE lead_id = %s ORDER BY alt_phone_id"
)
COUNT_DNC: Final = "SELECT COUNT(*) FROM vicidial_dnc WHERE phone_number IN %s"
COUNT_CAMPAIGN_DNC: Final = (
    "SELECT COUNT(*) FROM vicidial_campaign_dnc WHERE phone_number IN %s AND campaign_id = %s"
)
_COUNT_DAY: Final = "SELECT COUNT(*) FROM vicidial_lead_24hour_calls"
COUNT_DAY_OF_NUMBER: Final = (
    f"{_COUNT_DAY} WHERE phone_number = %s AND phone_code = %s AND call_date > NOW() - INTERVAL 1 DAY"
)
COUNT_DAY_OF_LEAD: Final = f"{_COUNT_DAY} WHERE lead_id = %s AND call_date > NOW() - INTERVAL 1 DAY"
_IN_LISTS: Final = " AND list_id IN %s"

# --- call quota

DIAL_DATE: Final = (
    "SELECT call_date FROM vicidial_dial_log FORCE INDEX (lead_id)"
    " WHERE lead_id = %s AND call_date > %s AND caller_code LIKE %s ORDER BY call_date DESC LIMIT 1"
)
QUOTA_ROW: Final = (
    "SELECT first_call_date, last_call_date FROM vicidial_lead_call_quota_counts"
    " WHERE lead_id = %s AND list_id = %s"
)
# The column names that belong to a session and to a day come from QuotaCall; they are no caller's text.
INSERT_QUOTA: Final = (
    "INSERT IGNORE INTO vicidial_lead_call_quota_counts (lead_id, list_id, first_call_date, last_call_date,"
    " status, called_count, `rank`, modify_date, day_{day}_calls, session_{session}_calls,"
    " session_{session}_today_calls) VALUES (%s,%s,%s,%s,%s,%s,%s,NOW(),1,1,1)"
)
SET_QUOTA: Final = (
    "UPDATE vicidial_lead_call_quota_counts"
    " SET status = %s, called_count = %s, `rank` = %s, modify_date = NOW()"
)
_QUOTA_OF: Final = " WHERE lead_id = %s AND list_id = %s"
_ONE_MORE: Final = ", {column} = {column} + 1"
#: A call whose date is there already is not counted again, which makes it bear repetition.
_UNLESS_COUNTED: Final = " AND modify_date < NOW() AND NOT last_call_date <=> %s"


class QuotaCall(NamedTuple):
    """A call that counts for a lead's quota.

    Attributes:
        lead_id: Who was called.
        list_id: The lead's list.
        dialled_at: When; by this the call is known.
        session: ``one`` to ``six``: the part of the day.
        day: ``one`` to ``seven``: the day since the lead's first call; empty for a later one.
        status: How it ended.
        called_count: How often the lead was called.
        rank: What the lead is left with.
        writes_rank: Whether that is another rank than the lead has.
    """

    lead_id: int
    list_id: int
    dialled_at: datetime
    session: str
    day: str
    status: str
    called_count: int
    rank: int
    writes_rank: bool


# --- KHOMP and QueueMetrics

INSERT_KHOMP: Final = (
    "INSERT INTO vicidial_khomp_log (caller_code, lead_id, server_ip, khomp_header, khomp_id,"
    " khomp_id_format, start_date, khomp_settings_container)"
    " SELECT %s, 0, %s, %s, %s, %s, NOW(), %s FROM DUAL"
)
_UNLESS_KHOMP_KNOWS: Final = (
    " WHERE NOT EXISTS (SELECT 1 FROM vicidial_khomp_log"
    " WHERE khomp_id = %s AND server_ip = %s AND start_date > NOW() - INTERVAL 1 MINUTE)"
)
#: Compared to the letter: a token's case counts, and an operator may be writing at the same time.
REPLACE_CONTAINER: Final = (
    "UPDATE vicidial_settings_containers SET container_entry = %s WHERE container_id = %s"
    " AND CONVERT(container_entry USING utf8mb4) COLLATE utf8mb4_bin = %s"
)
QUEUE_ENTRY: Final = (
    "SELECT queue_position, CAST(call_date AS CHAR) FROM vicidial_closer_log"
    " WHERE uniqueid = %s AND lead_id = %s AND campaign_id = %s AND call_date > %s"
    " ORDER BY closecallid DESC LIMIT 1"
)
COUNT_WAITING: Final = (
    "SELECT COUNT(*) FROM vicidial_auto_calls WHERE status = 'LIVE' AND campaign_id = %s AND call_time < %s"
)


class NewCall(NamedTuple):
    """A row for ``call_log``, open: one for each channel leg."""

    uniqueid: str
    channel: str
    channel_group: str
    type: str
    server_ip: str
    extension: str
    number: str
    code: str
    start_time: str
    start_epoch: int


class LegKey(NamedTuple):
    """By what an END is looked for.

    Attributes:
        uniqueid: Of its channel.
        code: Its caller code; may be empty.
    """

    uniqueid: str
    code: str


class CarrierRow(NamedTuple):
    """A row for ``vicidial_carrier_log``: how the carrier ended a leg. Numbers may be empty text: 0."""

    uniqueid: str
    call_date: str
    server_ip: str
    lead_id: int
    hangup_cause: str
    dialstatus: str
    channel: str
    dial_time: str
    answered_time: str
    sip_hangup_cause: str
    sip_hangup_reason: str
    caller_code: str


@dataclass(frozen=True, slots=True)
class Sight:
    """What the tables know of a call that ends, read at one moment.

    Attributes:
        parked: Servers and channels where it is parked.
        parked_recently: Servers where it was parked within two hours, oldest first.
        call: Its row of ``call_log``.
        double: The second row that a name-recording script made of it.
        park: Its newest open row of ``park_log``.
        auto_calls: Its rows of ``vicidial_auto_calls``, oldest first.
    """

    parked: Sequence[tuple[str, str]]
    parked_recently: Sequence[str]
    call: CallLogRow | None
    double: CallLogRow | None
    park: ParkRow | None
    auto_calls: Sequence[AutoCall]


class Closing(NamedTuple):
    """The end of a call, to be written.

    Attributes:
        uniqueid: The row of ``call_log`` that ends; empty for none.
        channel: What its channel becomes.
        now: When it ended.
        popups: Unique ids whose rows of ``live_inbound`` go.
        before: Statements of this call that come first.
    """

    uniqueid: str
    channel: str
    now: Moment
    popups: tuple[str, ...]
    before: tuple[Statement, ...] = ()


class NewLog(NamedTuple):
    """A row for ``vicidial_log``, and its twin for ``vicidial_log_extended``: a call that nobody took."""

    uniqueid: str
    status: str
    list_id: int
    called_count: int
    comments: str
    server_ip: str
    auto_call: AutoCall


class Tables:
    """VICIdial's database, for all calls of a worker.

    Args:
        executor: Carries statements out.
        server_ip: Our own address.
        settings_ttl_s: How long settings are good for; 0 reads them for each use.
        log: Told of statements that failed for good.
    """

    def __init__(self, executor: Executor, server_ip: str, settings_ttl_s: float, log: Log) -> None:
        self._executor = executor
        self._log = log
        self._server_ip = server_ip
        passes_on = (DatabaseUnavailable,)
        self._sights = Grouping(self._look, passes_on)
        self._dialled = Grouping(self._find_dialled, passes_on)
        self._inserts = Grouping(self._insert_calls, passes_on)
        self._closings = Grouping(self._close_calls, passes_on)
        self._site = Cached(self._read_site, settings_ttl_s)
        self._campaigns = Cached(self._read_campaign, settings_ttl_s)
        self._phones = Cached(self._read_phone, settings_ttl_s)
        self._settings = Cached(self._read_setting, settings_ttl_s)

    # --- settings

    def site(self) -> tuple[Server, System]:
        """Give our row of ``servers`` and the row of ``system_settings``; defaults where there is none."""
        return self._site.get("")

    def campaign(self, campaign_id: str) -> Campaign | None:
        """Give a campaign's row."""
        return self._campaigns.get(campaign_id)

    def knows_phone(self, question: PhoneQuestion) -> bool:
        """Tell whether a phone of this server is registered so."""
        return self._phones.get(question)

    def resets_lead(self, in_group: str) -> bool:
        """Tell whether an in-group wants leads of abandoned calls to be dialled again."""
        return "Y" in _text(_first(self._settings.get((LEAD_RESET, in_group))))

    def list_threshold(self, list_id: int) -> int | None:
        """Give how many calls end the dialling of alternates in a list; None without a row."""
        found = _first(self._settings.get((LIST_THRESHOLD, list_id)))
        return None if found is None else int(found)

    def campaign_lists(self, campaign_id: str) -> list[int]:
        """Give the lists of a campaign."""
        return [int(row[0]) for row in self._settings.get((CAMPAIGN_LISTS, campaign_id))]

    def container(self, container_id: str) -> str | None:
        """Give the text of a settings container; None if there is no such."""
        rows = self._settings.get((CONTAINER, container_id))
        return _text(rows[0][0]) if rows else None

    def phone_code(self, country_code: str, area_code: str) -> tuple[str, str]:
        """Give state and country of an area code; empty if it is not known."""
        rows = self._settings.get((PHONE_CODE, country_code, area_code))
        return (_text(rows[0][0]), _text(rows[0][1])) if rows else ("", "")

    def postal_state(self, postal_code: str) -> str:
        """Give the state of a postal code; empty if it is not known."""
        return _text(_first(self._settings.get((POSTAL_STATE, postal_code))))

    def _read_site(self, _: str) -> tuple[Server, System]:
        servers, systems = self._ask((SERVER, (self._server_ip,)), (SYSTEM, ()))
        server = Server(*map(_text, servers[0])) if servers else NO_SERVER
        return server, _system(systems[0]) if systems else NO_SYSTEM

    def _read_campaign(self, campaign_id: str) -> Campaign | None:
        rows = self._rows(CAMPAIGN, campaign_id)
        return _campaign(rows[0]) if rows else None

    def _read_phone(self, question: PhoneQuestion) -> bool:
        sql = PHONE_BY_EXTENSION if question.column.value == "extension" else PHONE_BY_NUMBER
        return bool(self._rows(sql, self._server_ip, question.value, question.protocol)[0][0])

    def _read_setting(self, question: tuple[object, ...]) -> Found:
        return self._rows(str(question[0]), *question[1:])

    # --- START

    def campaign_of_code(self, code: str) -> str:
        """Give the campaign for which a call with this code is alive; empty if there is none."""
        return self._dialled.ask(code)

    def manager_lines(self, code: str) -> tuple[str, str]:
        """Give two lines of the order that placed this call; empty if there is none."""
        rows = self._rows(MANAGER, code)
        return (_text(rows[0][0]), _text(rows[0][1])) if rows else ("", "")

    def insert_call(self, call: NewCall) -> AsyncResult[None]:
        """Insert an open row; an existing one with its unique id stays as it is.

        Returns:
            What to wait for; the row is committed then.
        """
        return self._inserts.submit(call)

    def _find_dialled(self, codes: Sequence[str]) -> list[str]:
        if len(codes) == 1 or not all(map(str.isascii, codes)):
            return [_text(_first(self._rows(DIALLED, code))) for code in codes]
        rows = self._rows(DIALLED_IN, tuple(codes))
        found: dict[str, str] = {}
        for code, campaign_id in rows:
            found.setdefault(_fold(code), _text(campaign_id))
        return [found.get(_fold(code), "") for code in codes]

    def _insert_calls(self, calls: Sequence[NewCall]) -> list[None]:
        # Sorted, so that two workers do not lock the same rows in opposite order.
        rows = sorted(calls, key=_by_uniqueid)
        values = ",".join([_CALL_VALUES] * len(rows))
        self._write((INSERT_CALL + values, [value for row in rows for value in row]))
        return [None] * len(calls)

    # --- END: what is known

    def look(self, key: LegKey) -> Sight:
        """Read what is known of a call that ends: one round trip, shared with others."""
        return self._sights.ask(key)

    def manual_legs(self, stem: str, lead_id: int, code: str) -> tuple[str, list[CallLogRow]]:
        """Look for the legs of a manual call.

        Args:
            stem: How the unique id of a leg of the same second begins.
            lead_id: Whose call.
            code: Its caller code; not empty.

        Returns:
            The unique id of a leg of the same second and lead, one of the same code before others, empty
            for none; and all rows of the code, in the order of their unique ids.
        """
        others, legs = self._ask(
            (OTHER_LEG, (f"{_literally(stem)}%", f"%{lead_id}", code)), (CALLS_BY_CODE, ((code,),))
        )
        return _text(_first(others)), [_call(row) for row in legs]

    def call(self, uniqueid: str) -> CallLogRow | None:
        """Give a row of ``call_log``."""
        rows = self._rows(CALLS_BY_ID, (uniqueid,))
        return _call(rows[0]) if rows else None

    def is_live(self, channel: str) -> bool:
        """Tell whether a channel is alive, as another program saw it last."""
        return bool(self._rows(LIVE_CHANNELS, channel)[0][0])

    def campaign_of_log(self, uniqueid: str) -> str:
        """Give the campaign of an outbound call; empty if there is no row."""
        return _text(_first(self._rows(LOG_BY_ID, uniqueid)))

    def find_logs(
        self, lead_id: int, stem: str, since: str, prefer: str = ""
    ) -> tuple[LogRow | None, CloserRow | None]:
        """Look for the rows of an answered call.

        Args:
            lead_id: Whose call.
            stem: How the unique id of an outbound row begins; empty to look for none.
            since: Inbound rows are younger.
            prefer: The unique id whose inbound row is taken before the newest; empty for none.
        """
        closer: Statement = (FIND_CLOSER, (lead_id, since))
        if prefer:
            closer = (FIND_OWN_CLOSER, (lead_id, since, prefer))
        if not stem:
            (closers,) = self._ask(closer)
            return None, _closer(closers)
        logs, closers = self._ask((FIND_LOG, (lead_id, f"{_literally(stem)}%")), closer)
        return _log(logs), _closer(closers)

    def carrier_cause(self, code: str, lead_id: int) -> tuple[int, str]:
        """Give what the dialer knows of how the carrier ended the newest dial; 0 and empty for nothing."""
        rows = self._rows(CARRIER_CAUSE, code, lead_id, self._server_ip)
        return (_number(rows[0][0]), _text(rows[0][1])) if rows else (0, "")

    def newest_recording(self, uniqueid: str) -> Recording | None:
        """Give the newest recording of a call."""
        rows = self._rows(NEWEST_RECORDING, uniqueid)
        return Recording(int(rows[0][0]), _number(rows[0][1]), _text(rows[0][2])) if rows else None

    def cpd_result(self, code: str) -> str:
        """Give what the call progress detection heard, if it was no voice; empty for nothing."""
        return _text(_first(self._rows(CPD_RESULT, code)))

    def open_monitor(self, code: str) -> int | None:
        """Give the epoch at which a manager began to listen; None if no row is open."""
        rows = self._rows(MONITOR, code)
        return _number(rows[0][0]) if rows else None

    def three_way_status(self, code: str) -> str | None:
        """Give the status of an outside agent's call; None if there is no row."""
        rows = self._rows(THREE_WAY, code)
        return _text(rows[0][0]) if rows else None

    def _look(self, keys: Sequence[LegKey]) -> list[Sight]:
        if len(keys) > 1 and not all(key.uniqueid.isascii() and key.code.isascii() for key in keys):
            # Which of several other texts a column takes for equal, only the server knows.
            return [self._look([key])[0] for key in keys]
        codes = tuple({key.code for key in keys if key.code}) or (None,)
        uids = tuple({key.uniqueid for key in keys})
        doubles = tuple(f"{uid}99" for uid in uids)
        two_hours_ago = Moment.at(int(time.time()) - 7200).text
        answers = self._ask(
            (PARKED, (codes,)),
            (PARKED_RECENTLY, (codes, two_hours_ago)),
            (CALLS_BY_ID, (uids + doubles,)),
            (PARK_ROWS, (uids, self._server_ip)),
            (AUTO_CALLS_BY_ID, (uids,)),
            (AUTO_CALLS_BY_CODE, (codes,)),
        )
        return _sights(keys, answers)

    # --- END: writes

    def close(self, closing: Closing) -> None:
        """Write the end of a call: one round trip, shared with others."""
        self._closings.ask(closing)

    def close_double(self, uniqueid: str, now: Moment) -> None:
        """End the second row that a name-recording script made."""
        self._write_each((CLOSE_DOUBLE, (now.text, now.epoch, now.epoch, now.epoch, uniqueid)))

    def close_recording(self, recording: Recording, now: Moment) -> None:
        """End a recording."""
        length_s = now.epoch - recording.start_epoch
        values = (now.text, now.epoch, length_s, minutes(length_s), recording.recording_id)
        self._write_each((CLOSE_RECORDING, values))

    def close_park(self, uniqueid: str, parked_s: int, talked_s: int, now: Moment) -> None:
        """End the newest time that a call was parked."""
        self._write_each((CLOSE_PARK, (now.text, parked_s, talked_s, uniqueid, self._server_ip)))

    def set_carrier_cause(self, code: str, lead_id: int, uniqueid: str, cause: str, reason: str) -> Statement:
        """Make the statement that tells the dialer's row how the carrier ended the call."""
        return SET_CARRIER_CAUSE, (cause, reason, uniqueid, code, self._server_ip, lead_id)

    def insert_carrier(self, row: CarrierRow) -> Statement:
        """Make the statement that adds a carrier row; the first of a unique id stays."""
        return INSERT_CARRIER, row

    def end_monitor(self, code: str, length_s: int, now: Moment) -> None:
        """End a manager's listening."""
        self._write_each((END_MONITOR, (length_s, now.text, code)))

    def end_three_way(self, code: str) -> None:
        """End an outside agent's call, and write it into its history."""
        # The text is appended, so who repeats this after a lost connection looks first.
        unless_done = (f"{LOG_THREE_WAY} AND result NOT LIKE '%%|Hungup: %%'", (code,))
        end = (END_THREE_WAY, (code,))
        self._write_each(end, (LOG_THREE_WAY, (code,)), repeated=(end, unless_done))

    def fail_dial(
        self, code: str, lead_id: int, stem: str, status: str, auto_call_status: str, write_lead: bool
    ) -> bool:
        """Write the status of a dial that failed.

        Args:
            code: Whose row of calls that are alive gets ``auto_call_status``.
            lead_id: Whose lead and log rows get ``status``.
            stem: How the unique id of the log rows begins.
            status: As it says.
            auto_call_status: What the column does not know is stored as empty.
            write_lead: Whether the lead is written.

        Returns:
            Whether there was a log row.
        """
        statements: list[Statement] = [(SET_LEAD_STATUS, (status, lead_id))] if write_lead else []
        if code:
            statements.append((SET_AUTO_CALL_STATUS, (auto_call_status, code)))
        statements.append((SET_LOG_STATUS, (status, lead_id, f"{_literally(stem)}%")))
        return self._write_each(*statements).answers[-1].matched > 0

    def new_log(self, log: NewLog) -> tuple[Statement, Statement]:
        """Make the statements that insert the rows of a call that nobody took."""
        return _log_statements(log)

    def end_call(
        self, statements: Sequence[Statement], drop: DropRow | None, only_once: bool = False
    ) -> None:
        """Write what becomes of a call that was answered, in one round trip.

        Args:
            statements: Made by :meth:`lead_status`, :meth:`log_ending` and the like.
            drop: The drop row; None for none.
            only_once: No drop row if the same call has one since less than a minute.
        """
        if drop is None:
            if statements:
                self._write_each(*statements)
            return
        careful = (*statements, _drop(drop, only_once=True))
        self._write_each(*(careful if only_once else (*statements, _drop(drop))), repeated=careful)

    def take_auto_call(self, auto_call_id: int, code: str) -> bool:
        """Delete a call from those that are alive, and stop it ringing at agents.

        Returns:
            Whether it was there: whose request deletes it owns what follows.
        """
        # The row last: its table knows no rollback, so a failure behind it would hide that it was there.
        statements: list[Statement] = [(CLEAR_RINGING, (code,))] if code else []
        done = self._write_each(*statements, (DELETE_AUTO_CALL, (auto_call_id,)))
        return done.answers[-1].matched > 0 or done.in_doubt

    def stop_ringing(self, code: str) -> None:
        """Let no agent's screen ring for a call any more."""
        if code:
            self._write_each((CLEAR_RINGING, (code,)))

    def delete_auto_calls(self, code: str) -> None:
        """Delete all rows of a code from the calls that are alive."""
        self._write_each((DELETE_AUTO_CALLS, (code,)))

    def lead_status(self, lead_id: int, status: str) -> Statement:
        """Make the statement that sets a lead's status."""
        return SET_LEAD_STATUS, (status, lead_id)

    def lead_reset(self, lead_id: int) -> Statement:
        """Make the statement that lets a lead be dialled again."""
        return RESET_LEAD, (lead_id,)

    def log_ending(
        self,
        lead_id: int,
        stem: str,
        status: str | None,
        term_reason: str | None,
        end_epoch: int,
        length_s: int,
    ) -> Statement:
        """Make the statement that ends the outbound rows of a call; None leaves a column as it is."""
        columns = {
            "status": status,
            "term_reason": term_reason,
            "end_epoch": end_epoch,
            "length_in_sec": length_s,
        }
        return _update(
            "vicidial_log", columns, "lead_id = %s AND uniqueid LIKE %s", lead_id, f"{_literally(stem)}%"
        )

    def closer_ending(
        self,
        closecallid: int,
        status: str | None,
        term_reason: str | None,
        queue_s: int | None,
        user: str | None,
        end_epoch: int,
        length_s: int,
    ) -> Statement:
        """Make the statement that ends an inbound row; None leaves a column as it is."""
        columns = {
            "status": status,
            "term_reason": term_reason,
            "queue_seconds": queue_s,
            "user": user,
            "end_epoch": end_epoch,
            "length_in_sec": length_s,
        }
        return _update("vicidial_closer_log", columns, "closecallid = %s", closecallid)

    def _close_calls(self, closings: Sequence[Closing]) -> list[None]:
        statements = [statement for closing in closings for statement in closing.before]
        ending = sorted((closing for closing in closings if closing.uniqueid), key=_by_uniqueid)
        statements += [
            _close_call_rows([each for each in ending if each.now == now], now)
            for now in {closing.now for closing in ending}
        ]
        popups = tuple({uid for closing in closings for uid in closing.popups})
        if popups:
            statements.append((DELETE_POPUPS, (self._server_ip, popups)))
        if len(closings) == 1:
            self._write_each(*statements)
        else:
            self._write(*statements)
        return [None] * len(closings)

    # --- what is dialled next

    def lead(self, lead_id: int) -> Lead | None:
        """Give a lead."""
        rows = self._rows(LEAD, lead_id)
        return _lead(rows[0]) if rows else None

    def lead_words(self, lead_id: int) -> LeadWords:
        """Give what of a lead may stand in a URL; all empty if there is no such lead."""
        rows = self._rows(LEAD_WORDS, lead_id)
        return LeadWords(*map(_text, rows[0])) if rows else LeadWords(*[""] * 9)

    def alt_phones(self, lead_id: int) -> tuple[int, dict[int, AltPhone]]:
        """Give how many further numbers a lead has, and these by their place; of equal places the oldest."""
        rows = self._rows(ALT_PHONES, lead_id)
        by_place = {_number(row[0]): AltPhone(*map(_text, row[1:])) for row in reversed(rows)}
        return len(rows), by_place

    def count_dnc(
        self, system_numbers: Sequence[str], campaign_numbers: Sequence[str], campaign_id: str
    ) -> tuple[int, int]:
        """Count entries in the lists of numbers that must not be called: the system's and a campaign's.

        Args:
            system_numbers: What to look for in the system's list; none to look for nothing.
            campaign_numbers: What to look for in the campaign's list; likewise.
            campaign_id: Whose list.
        """
        system: list[Statement] = [(COUNT_DNC, (tuple(system_numbers),))] if system_numbers else []
        campaign: list[Statement] = []
        if campaign_numbers:
            campaign.append((COUNT_CAMPAIGN_DNC, (tuple(campaign_numbers), campaign_id)))
        if not system and not campaign:
            return 0, 0
        counts = [int(rows[0][0]) for rows in self._ask(*system, *campaign)]
        return (counts[0] if system else 0), (counts[-1] if campaign else 0)

    def calls_of_day(self, number: str, phone_code: str, list_ids: Sequence[int] | None = None) -> int:
        """Count the calls to a number within a day; only of some lists if they are given."""
        return self._count_day(COUNT_DAY_OF_NUMBER, (number, phone_code), list_ids)

    def calls_of_day_to_lead(self, lead_id: int, list_ids: Sequence[int] | None = None) -> int:
        """Count the calls to a lead within a day; only of some lists if they are given."""
        return self._count_day(COUNT_DAY_OF_LEAD, (lead_id,), list_ids)

    def insert_hopper(self, row: HopperRow) -> None:
        """Have a number dialled next."""
        values = (
            row.lead_id,
            row.campaign_id,
            row.status,
            row.list_id,
            row.gmt_offset_now,
            row.state,
            row.alt_dial,
            row.priority,
        )
        careful = (INSERT_HOPPER + _UNLESS_IN_HOPPER, (*values, row.lead_id, row.alt_dial))
        self._write_each((INSERT_HOPPER, values), repeated=(careful,))

    def _count_day(self, sql: str, values: tuple[object, ...], list_ids: Sequence[int] | None) -> int:
        if list_ids is not None:
            sql, values = sql + _IN_LISTS, (*values, tuple(list_ids))
        return int(self._rows(sql, *values)[0][0])

    # --- call quota

    def newest_dial(self, lead_id: int, since: str) -> str:
        """Give when a lead was dialled last, as the database writes it; empty if not since then."""
        return _text(_first(self._rows(DIAL_DATE, lead_id, since, f"%{lead_id}")))

    def quota_row(self, lead_id: int, list_id: int) -> QuotaRow | None:
        """Give the dates of a lead's row of quota counts."""
        rows = self._rows(QUOTA_ROW, lead_id, list_id)
        # The driver gives a date of zeros as text.
        dates = [value if isinstance(value, datetime) else None for value in rows[0]] if rows else []
        return QuotaRow(*dates) if rows else None

    def insert_quota(self, call: QuotaCall) -> None:
        """Count a lead's first call; the day must be known."""
        sql = INSERT_QUOTA.format(session=call.session, day=call.day)
        dates = (call.dialled_at, call.dialled_at)
        values = (call.lead_id, call.list_id, *dates, call.status, call.called_count, call.rank)
        self._write_quota(call, (sql, values))

    def count_quota(self, call: QuotaCall) -> None:
        """Count another call of a lead, unless it is counted already."""
        columns = [f"session_{call.session}_calls", f"session_{call.session}_today_calls"]
        columns += [f"day_{call.day}_calls"] if call.day else []
        more = "".join(_ONE_MORE.format(column=column) for column in columns)
        sql = f"{SET_QUOTA}{more}, last_call_date = %s{_QUOTA_OF}{_UNLESS_COUNTED}"
        dated = (call.dialled_at, call.lead_id, call.list_id, call.dialled_at)
        self._write_quota(call, (sql, (call.status, call.called_count, call.rank, *dated)))

    def set_quota_status(self, call: QuotaCall) -> None:
        """Tell how a call ended that is counted already."""
        values = (call.status, call.called_count, call.rank, call.lead_id, call.list_id)
        self._write_quota(call, (SET_QUOTA + _QUOTA_OF, values))

    def _write_quota(self, call: QuotaCall, counted: Statement) -> None:
        if call.writes_rank:
            self._write_each(counted, (SET_LEAD_RANK, (call.rank, call.lead_id)))
        else:
            self._write_each(counted)

    # --- KHOMP and QueueMetrics

    def insert_khomp(self, code: str, header: str, khomp_id: str, id_format: str, container_id: str) -> None:
        """Note that a call is announced to KHOMP's service; the database adds the time.

        Args:
            code: Of the call.
            header: By which it is announced.
            khomp_id: As which it is announced.
            id_format: Of ``khomp_id``; what the column does not know is stored as empty.
            container_id: Where the settings are.
        """
        values = (code, self._server_ip, header, khomp_id, id_format, container_id)
        careful = (INSERT_KHOMP + _UNLESS_KHOMP_KNOWS, (*values, khomp_id, self._server_ip))
        self._write_each((INSERT_KHOMP, values), repeated=(careful,))

    def end_khomp(self, khomp_id: str, columns: dict[str, Any]) -> None:
        """Write what KHOMP's service says about a call; a column without a value stays as it is."""
        self._write_each(_update("vicidial_khomp_log", columns, "khomp_id = %s", khomp_id))

    def replace_container(self, container_id: str, old: str, new: str) -> None:
        """Give a settings container another text, unless somebody else has changed it meanwhile."""
        self._write_each((REPLACE_CONTAINER, (new, container_id, old)))
        self._settings.forget((CONTAINER, container_id))

    def queue_entry(self, uniqueid: str, lead_id: int, in_group: str, since: str) -> tuple[str, str] | None:
        """Give at which place a call came into a queue and when; None if it did not since then."""
        rows = self._rows(QUEUE_ENTRY, uniqueid, lead_id, in_group, since)
        return (_text(rows[0][0]), _text(rows[0][1])) if rows else None

    def count_waiting(self, in_group: str, before: str) -> int:
        """Count the calls that wait for an agent and were placed before that time."""
        return int(self._rows(COUNT_WAITING, in_group, before)[0][0])

    # --- how

    def _rows(self, sql: str, *parameters: object) -> Found:
        return self._run([(sql, parameters)]).answers[0].rows

    def _ask(self, *questions: Statement) -> list[Found]:
        return [answer.rows for answer in self._run(questions).answers]

    def _write(self, *statements: Statement, repeated: Sequence[Statement] | None = None) -> Done:
        return self._executor.run(statements, repeated)

    def _write_each(self, *statements: Statement, repeated: Sequence[Statement] | None = None) -> Done:
        """Write; what fails for good is told and keeps nothing else from being written."""
        try:
            return self._run(statements, repeated)
        except err.Error as error:
            if len(statements) == 1:
                self._log.error("a row was not written: %s: %s", error, statements[0][0])
                return Done([_NOTHING], in_doubt=False)
        # The careful form: the packet may have been in doubt before it failed.
        done = [self._write_each(statement) for statement in repeated or statements]
        return Done([each.answers[0] for each in done], any(each.in_doubt for each in done))

    def _run(self, statements: Sequence[Statement], repeated: Sequence[Statement] | None = None) -> Done:
        """Carry out statements of one call, whatever its texts are."""
        try:
            return self._executor.run(statements, repeated)
        except err.Error as error:
            if error.args[0] not in _MIXED_TEXTS:
                raise
        # An older VICIdial's tables are in Latin-1, and the server compares no text of another script with
        # them. As question marks, which is how such a column would store it, the text is nobody's.
        return self._executor.run(
            [_in_ascii(statement) for statement in statements],
            None if repeated is None else [_in_ascii(statement) for statement in repeated],
        )


#: What the server says to texts that it cannot compare with a column.
_MIXED_TEXTS: Final = frozenset(
    {ER.CANT_AGGREGATE_2COLLATIONS, ER.CANT_AGGREGATE_3COLLATIONS, ER.CANT_AGGREGATE_NCOLLATIONS}
)

_NOTHING: Final = Answer((), 0)


def minutes(length_s: int) -> float:
    """Give minutes to two decimals, as VICIdial stores them."""
    return round(length_s / 60, 2)


def _by_uniqueid(row: NewCall | Closing) -> str:
    return row.uniqueid


def _in_ascii(statement: Statement) -> Statement:
    """Make question marks of all that is not ASCII."""
    sql, parameters = statement
    return sql, [_ascii(parameter) for parameter in parameters]


def _ascii(value: object) -> object:
    if isinstance(value, str):
        return value.encode("ascii", "replace").decode("ascii")
    return tuple(map(_ascii, value)) if isinstance(value, tuple) else value


def _close_call_rows(closings: Sequence[Closing], now: Moment) -> Statement:
    """End rows of ``call_log``, all in the same second."""
    channels = " ".join(["WHEN %s THEN %s"] * len(closings))
    sql = (
        "UPDATE call_log SET end_time = %s, end_epoch = %s, length_in_sec = %s - COALESCE(start_epoch, 0),"
        " length_in_min = ROUND((%s - COALESCE(start_epoch, 0)) / 60, 2),"
        f" channel = CASE uniqueid {channels} ELSE channel END WHERE uniqueid IN %s"
    )
    names = [text for closing in closings for text in (closing.uniqueid, closing.channel)]
    uids = tuple(closing.uniqueid for closing in closings)
    return sql, (now.text, now.epoch, now.epoch, now.epoch, *names, uids)


def _update(table: str, columns: dict[str, Any], where: str, *parameters: object) -> Statement:
    """Set those columns that have a value."""
    known = {name: value for name, value in columns.items() if value is not None}
    names = ", ".join(f"{name} = %s" for name in known)
    return f"UPDATE {table} SET {names} WHERE {where}", (*known.values(), *parameters)


def _drop(drop: DropRow, only_once: bool = False) -> Statement:
    values = (
        drop.uniqueid,
        drop.server_ip,
        drop.lead_id,
        drop.campaign_id,
        drop.status,
        drop.phone_code,
        drop.phone_number,
    )
    if only_once:
        return INSERT_DROP + _UNLESS_DROPPED, (*values, drop.uniqueid, drop.lead_id)
    return INSERT_DROP, values


def _log_statements(log: NewLog) -> tuple[Statement, Statement]:
    call = log.auto_call
    date = call.call_time or ZERO_DATE
    values = (
        log.uniqueid,
        call.lead_id,
        log.list_id,
        log.status,
        call.campaign_id,
        date,
        call.call_epoch,
        call.phone_code,
        call.phone_number,
        call.call_epoch,
        call.alt_dial,
        log.called_count,
        log.comments or None,
    )
    extended = (log.uniqueid, log.server_ip, date, call.lead_id, call.callerid)
    return (INSERT_LOG, values), (INSERT_EXTENDED, extended)


# --- rows from what the driver gives


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _number(value: object) -> int:
    """Read a number as VICIdial does: leading digits, else 0."""
    found = _LEADING_NUMBER.match(_text(value))
    return int(found[0]) if found else 0


_LEADING_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")


def _first(rows: Found) -> Any:
    return rows[0][0] if rows else None


def _fold(key: str) -> str:
    """Bring texts that a column takes for equal to one form; ASCII only."""
    return key.rstrip(" ").lower()


def _literally(text: str) -> str:
    """Escape what has a meaning in LIKE."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _system(row: tuple[Any, ...]) -> System:
    return _with_numbers(System, _SYSTEM_NUMBERS, row)


def _campaign(row: tuple[Any, ...]) -> Campaign:
    return _with_numbers(Campaign, {"auto_alt_threshold", "limit_24hour"}, row)


def _auto_call(row: tuple[Any, ...]) -> AutoCall:
    return _with_numbers(AutoCall, {"auto_call_id", "lead_id", "call_epoch", "queue_position"}, row)


def _with_numbers(kind: Callable[..., Kind], numbers: Set[str], row: tuple[Any, ...]) -> Kind:
    """Make a row of texts, but for these columns."""
    names: Sequence[str] = kind._fields  # type: ignore[attr-defined]
    fields = zip(names, row, strict=True)
    return kind(*(_number(value) if name in numbers else _text(value) for name, value in fields))


def _call(row: tuple[Any, ...]) -> CallLogRow:
    return CallLogRow(_text(row[0]), _text(row[1]), _text(row[2]), _number(row[3]), _number(row[4]))


def _log(rows: Found) -> LogRow | None:
    return LogRow(_number(rows[0][0]), *map(_text, rows[0][1:])) if rows else None


def _closer(rows: Found) -> CloserRow | None:
    return CloserRow(_number(rows[0][0]), _number(rows[0][1]), *map(_text, rows[0][2:])) if rows else None


def _lead(row: tuple[Any, ...]) -> Lead:
    offset = row[5] if isinstance(row[5], Decimal) else Decimal(0)
    alt_phone, address3 = _text(row[3]), _text(row[4])
    return Lead(
        _number(row[0]), _number(row[1]), _number(row[2]), alt_phone, address3, offset, *map(_text, row[6:])
    )


def _sights(keys: Sequence[LegKey], answers: Sequence[Found]) -> list[Sight]:
    """Give each of several ends its own rows."""
    parked, recently, calls, parks, by_id, by_code = answers
    call_rows = {_fold(row[0]): _call(row) for row in calls}
    park_rows = {_fold(row[0]): ParkRow(_number(row[1]), _number(row[2])) for row in parks}
    alone = len(keys) == 1
    sights = []
    for uniqueid, code in keys:
        uid, code_key = _fold(uniqueid), _fold(code)

        def mine(rows: Found, column: int, key: str) -> Found:
            return rows if alone else [row for row in rows if _fold(row[column]) == key]

        mine_by_code = mine(by_code, 2, code_key) if code else ()
        alive = {row[0]: _auto_call(row) for row in (*mine(by_id, 8, uid), *mine_by_code)}
        double = call_rows.get(f"{uid}99")
        sights.append(
            Sight(
                [(_text(row[1]), _text(row[2])) for row in mine(parked, 0, code_key)] if code else (),
                [_text(row[1]) for row in mine(recently, 0, code_key)] if code else (),
                call_rows.get(uid),
                double if double and double.channel_group == "DOUBLE_LOG" else None,
                park_rows.get(uid),
                [alive[each] for each in sorted(alive)],
            )
        )
    return sights
