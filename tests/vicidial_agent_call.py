"""An auto-dialled call that an agent handled, and what its END costs: the dearest END of everyday work.

Source: VICIdial's FastAGI daemon, observed: 25 statements and a connection for this END.
"""

from __future__ import annotations

from typing import Final

from mariadb_forwarder import Command, MariaDBForwarder
from service import PoolService
from vicidial_database import SERVER_IP, VicidialDatabase

from fastagi_pool.testing import AgiStatus, Caller, play_call

#: As much as the END may ask the database, one thing after the other, and still be fast.
MOST_ROUND_TRIPS: Final = 12

_URL: Final = "call_log--HVcauses--PRI-----NODEBUG-----16-----ANSWER-----30-----20-----SIP 200 OK"
_ROWS: Final = """
    INSERT IGNORE INTO vicidial_campaigns SET campaign_id = 'TESTCAMP', dial_timeout = 26;
    INSERT INTO vicidial_auto_calls SET server_ip = %(server_ip)s, campaign_id = 'TESTCAMP', status = 'XFER',
        lead_id = %(lead)s, callerid = %(code)s, uniqueid = %(uid)s, phone_code = '1',
        phone_number = '3125551212', call_time = NOW() - INTERVAL 40 SECOND, call_type = 'OUT';
    INSERT INTO vicidial_list SET lead_id = %(lead)s, list_id = 999, phone_number = '3125551212',
        phone_code = '1', status = 'INCALL', called_count = 3, gmt_offset_now = '-6.00', state = 'IL',
        postal_code = '60601';
    INSERT INTO call_log SET uniqueid = %(uid)s, channel = 'SIP/trunk', channel_group = '', type = 'SIP',
        server_ip = %(server_ip)s, extension = 'trunk', number_dialed = '8368', caller_code = %(code)s,
        start_time = NOW() - INTERVAL 40 SECOND, start_epoch = UNIX_TIMESTAMP() - 40, end_epoch = 0;
    INSERT INTO vicidial_log SET uniqueid = %(uid)s, lead_id = %(lead)s, list_id = 999,
        campaign_id = 'TESTCAMP', call_date = NOW() - INTERVAL 30 SECOND, start_epoch = UNIX_TIMESTAMP() - 30,
        status = 'INCALL', phone_code = '1', phone_number = '3125551212', user = '6666', processed = 'N',
        alt_dial = 'NONE', called_count = 3;
    INSERT INTO vicidial_dial_log SET caller_code = %(code)s, lead_id = %(lead)s, server_ip = %(server_ip)s,
        call_date = NOW() - INTERVAL 40 SECOND
"""
_ENDED: Final = """
    SELECT log.status, log.term_reason, call_log.end_epoch > 0, carrier.sip_hangup_reason,
        (SELECT COUNT(*) FROM vicidial_auto_calls WHERE callerid = call_log.caller_code),
        (SELECT status FROM vicidial_list WHERE lead_id = log.lead_id)
    FROM vicidial_log log JOIN call_log USING (uniqueid) JOIN vicidial_carrier_log carrier USING (uniqueid)
    WHERE uniqueid = %(uid)s
"""
#: The agent's call is told as ended by its caller, it is no living call any more, and the lead is left alone.
_RIGHT: Final = ("INCALL", "CALLER", 1, "OK", 0, "INCALL")


def end_agent_call(
    pool: PoolService, forwarder: MariaDBForwarder, database: VicidialDatabase, number: int
) -> list[Command]:
    """Write a call's rows, end the call, and return what the pool asked the database meanwhile.

    Args:
        pool: Serves VICIdial's calls, with its database behind the forwarder.
        forwarder: Notes what the pool asks.
        database: The tables.
        number: The call's, from 1 to 999,999,999; each only once.

    Raises:
        RuntimeError: The call went wrong, or its rows are not what they should be.
    """
    uid, code = f"1700000000.{number}", f"V120215031{number:010d}"
    values = {"uid": uid, "code": code, "lead": number, "server_ip": SERVER_IP}
    database.execute(_ROWS, values)
    caller = Caller("7275551212", code, extension="h", channel=f"SIP/trunk-{number:08x}", uniqueid=uid)
    forwarder.forget()
    result = play_call(pool.url(_URL), caller=caller)
    commands = forwarder.commands
    found = database.execute(_ENDED, values)
    if result.status is not AgiStatus.SUCCESS or found != [_RIGHT]:
        raise RuntimeError(f"{uid}: {result.status} {result.reason}, {found}, where {_RIGHT} is right")
    return commands
