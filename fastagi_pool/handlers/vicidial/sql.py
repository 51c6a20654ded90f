"""SQL: the text of every statement on VICIdial's tables, and statements that are made of values.

Laws:
    * Text and values stay apart: a value is a parameter (``%s``), never part of a text.
    * What ``IN %s`` is followed by is a tuple, so that calls can share a statement.
    * A text that begins ``UNLESS`` is put behind a statement that does not bear repetition, as an INSERT that
      has no key of its own, once it is in doubt whether that was carried out.
    * Indexes are named where the server would choose a worse one.

The tables' names and columns are VICIdial's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from fastagi_pool.database import Statement
    from fastagi_pool.handlers.vicidial.leg import Moment
    from fastagi_pool.handlers.vicidial.rows import DropRow, NewLog

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
CALL_VALUES: Final = f"(%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,'{ZERO_DATE}',0,0,0)"

# --- END: what is known of the call

PARKED: Final = "SELECT channel_group, server_ip, channel FROM parked_channels WHERE channel_group IN %s"
PARKED_RECENTLY: Final = (
    "SELECT channel_group, server_ip FROM parked_channels_recent"
    " WHERE channel_group IN %s AND park_end_time > NOW() - INTERVAL 2 HOUR ORDER BY park_end_time"
)
CALLS_BY_ID: Final = (
    "SELECT uniqueid, channel, channel_group, start_epoch, end_epoch FROM call_log WHERE uniqueid IN %s"
)
CALLS_BY_CODE: Final = (
    "SELECT uniqueid, channel, channel_group, start_epoch, end_epoch FROM call_log"
    " WHERE caller_code IN %s ORDER BY uniqueid DESC LIMIT 100"
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
    " FROM vicidial_closer_log FORCE INDEX (lead_id)"
    " WHERE lead_id = %s AND call_date > %s AND call_date <= %s"
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

#: The seconds from a row's start to a moment.
_LENGTH: Final = "GREATEST(0, %s - COALESCE(start_epoch, 0))"
CLOSE_DOUBLE: Final = (
    f"UPDATE call_log SET end_time = %s, end_epoch = %s, length_in_sec = {_LENGTH},"
    f" length_in_min = ROUND({_LENGTH} / 60, 2)"
    " WHERE uniqueid = %s AND channel_group = 'DOUBLE_LOG'"
)
DELETE_POPUPS: Final = "DELETE FROM live_inbound WHERE server_ip = %s AND uniqueid IN %s"
CLOSE_RECORDING: Final = (
    "UPDATE recording_log SET end_time = %s, end_epoch = %s, length_in_sec = %s, length_in_min = %s"
    " WHERE recording_id = %s"
)
CLOSE_PARK: Final = (
    "UPDATE park_log SET status = 'HUNGUP', hangup_time = %s, parked_sec = %s, talked_sec = %s"
    " WHERE uniqueid = %s AND server_ip = %s{unless} ORDER BY parked_time DESC LIMIT 1"
)
#: The newest row stays the one that is meant, also after it was ended at that time.
UNLESS_UNPARKED: Final = (
    " AND NOT (status = 'HUNGUP' AND hangup_time <=> %s) AND parked_time = (SELECT newest FROM"
    " (SELECT MAX(parked_time) AS newest FROM park_log WHERE uniqueid = %s AND server_ip = %s) AS all_of_it)"
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
UNLESS_HUNG_UP: Final = " AND LOCATE('|Hungup: ', result) = 0"
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
UNLESS_DROPPED: Final = (
    " WHERE NOT EXISTS (SELECT 1 FROM vicidial_drop_log"
    " WHERE uniqueid = %s AND lead_id = %s AND drop_date > NOW() - INTERVAL 1 MINUTE)"
)
INSERT_HOPPER: Final = (
    "INSERT INTO vicidial_hopper"
    " (lead_id, campaign_id, status, list_id, gmt_offset_now, state, alt_dial, user, priority, source)"
    " SELECT %s, %s, %s, %s, %s, %s, %s, '', %s, 'A' FROM DUAL"
)
UNLESS_IN_HOPPER: Final = (
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
IN_LISTS: Final = " AND list_id IN %s"

# --- call quota

DIAL_DATE: Final = (
    "SELECT call_date FROM vicidial_dial_log FORCE INDEX (lead_id)"
    " WHERE lead_id = %s AND call_date > %s AND call_date <= %s AND caller_code LIKE %s"
    " ORDER BY call_date DESC LIMIT 1"
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
QUOTA_OF: Final = " WHERE lead_id = %s AND list_id = %s"
ONE_MORE: Final = ", {column} = {column} + 1"
#: A call whose date is there already is not counted again, which makes it bear repetition.
UNLESS_COUNTED: Final = " AND modify_date < NOW() AND NOT last_call_date <=> %s"


# --- KHOMP and QueueMetrics

INSERT_KHOMP: Final = (
    "INSERT INTO vicidial_khomp_log (caller_code, lead_id, server_ip, khomp_header, khomp_id,"
    " khomp_id_format, start_date, khomp_settings_container)"
    " SELECT %s, 0, %s, %s, %s, %s, NOW(), %s FROM DUAL"
)
UNLESS_KHOMP_KNOWS: Final = (
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


# --- statements made of values


def literally(text: str) -> str:
    """Escape what has a meaning in LIKE."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def beginning(stem: str) -> str:
    """Give the pattern of unique ids that begin so; an empty stem is nobody's beginning."""
    return f"{literally(stem)}%" if stem else ""


def update(table: str, columns: dict[str, Any], where: str, *parameters: object) -> Statement:
    """Set those columns that have a value."""
    known = {name: value for name, value in columns.items() if value is not None}
    names = ", ".join(f"{name} = %s" for name in known)
    return f"UPDATE {table} SET {names} WHERE {where}", (*known.values(), *parameters)


def close_calls(calls: Sequence[tuple[str, str]], now: Moment) -> Statement:
    """Make the statement that ends rows of ``call_log``, all in the same second.

    An END that overtook its START is not the earlier for it: no length is below 0.

    Args:
        calls: Unique id of each row, and what its channel becomes.
        now: When they ended.
    """
    channels = " ".join(["WHEN %s THEN %s"] * len(calls))
    query = (
        f"UPDATE call_log SET end_time = %s, end_epoch = %s, length_in_sec = {_LENGTH},"
        f" length_in_min = ROUND({_LENGTH} / 60, 2),"
        f" channel = CASE uniqueid {channels} ELSE channel END WHERE uniqueid IN %s"
    )
    names = [text for call in calls for text in call]
    uids = tuple(uid for uid, _ in calls)
    return query, (now.text, now.epoch, now.epoch, now.epoch, *names, uids)


def insert_drop(drop: DropRow, only_once: bool = False) -> Statement:
    """Make the statement that inserts a drop row; ``only_once``: unless the call has one since a minute."""
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
        return INSERT_DROP + UNLESS_DROPPED, (*values, drop.uniqueid, drop.lead_id)
    return INSERT_DROP, values


def insert_logs(log: NewLog) -> tuple[Statement, Statement]:
    """Make the statements that insert a log row and its twin with more facts."""
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
