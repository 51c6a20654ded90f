"""Specified: calls that were not recorded, and what VICIdial's daemon is said to do with them.

Laws:
    * Every expectation is written from the description of the daemon alone, never from our own handler:
      where both agree they do so independently.
    * A call is told by what is special about it; the rest is what the recorded calls have: lead 101 of list
      999, campaign TESTCAMP or in-group SALESLINE, a call that began 40 s ago.
    * Nothing hangs on an order that a database does not promise, nor on the time of day.

Source: VICIdial's FastAGI daemon, as described: each table names the step that it is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, TypeAlias

from .playing import SERVER_IP, Placed, Row, Scenario

#: Columns that differ from what a function here gives.
Other: TypeAlias = Mapping[str, Any]

UID: Final = "1700000000.26"
STEM: Final = "1700000000"
V: Final = "V1202150310000000101"
M: Final = "M1202150310000000101"
Y: Final = "Y1202150310000000101"
_SAME: Final[Other] = {}

_ROOT: Final = "agi://127.0.0.1:4577/call_log"
_DIALLED: Final = "Local/913125551212@default-00000a01;2"
_AGENT: Final = "Local/8600051@default-00000a01;1"
_TRUNK: Final = "SIP/trunk-00000b02"
_CARRIER: Final = "SIP/carrier-00000c01"
_ALT: Final = "3125553434"


# ---- what is in the tables


def campaign(**other: Any) -> Placed:
    """Give the campaign's row."""
    return "vicidial_campaigns", {"campaign_id": "TESTCAMP", "dial_timeout": 26, **other}


def auto_call(code: str = V, **other: Any) -> Placed:
    """Give the row of the living call; ``uniqueid`` is only known once the call was answered."""
    return "vicidial_auto_calls", {
        "server_ip": SERVER_IP,
        "campaign_id": "SALESLINE" if code.startswith("Y") else "TESTCAMP",
        "status": "SENT",
        "lead_id": 101,
        "callerid": code,
        "phone_code": "1",
        "phone_number": "3125551212",
        "call_time": "{dt-40}",
        "call_type": "IN" if code.startswith("Y") else "OUT",
        "alt_dial": "NONE",
        "stage": "START",
        "last_update_time": "{dt-40}",
        **other,
    }


def lead(**other: Any) -> Placed:
    """Give the lead's row."""
    return "vicidial_list", {
        "lead_id": 101,
        "list_id": 999,
        "phone_number": "3125551212",
        "phone_code": "1",
        "status": "QUEUE",
        "called_count": 3,
        "gmt_offset_now": "-6.00",
        "state": "IL",
        "postal_code": "60601",
        "called_since_last_reset": "Y",
        **other,
    }


def leg(code: str = V, **other: Any) -> Placed:
    """Give the open row of ``call_log`` that a START left."""
    return "call_log", {
        "uniqueid": UID,
        "channel": "SIP/trunk",
        "channel_group": "",
        "type": "SIP",
        "server_ip": SERVER_IP,
        "extension": "trunk",
        "number_dialed": "8368",
        "caller_code": code,
        "start_time": "{dt-40}",
        "start_epoch": "{ep-40}",
        **other,
    }


def did_leg(**other: Any) -> Placed:
    """Give the row of ``call_log`` that the script of an inbound number left."""
    number = {"channel": _CARRIER, "channel_group": "DID_INBOUND"}
    return leg("3125551212", **{**number, **other})


def dial_log(code: str = V, **other: Any) -> Placed:
    """Give the row that the dialer wrote."""
    return "vicidial_dial_log", {
        "caller_code": code,
        "lead_id": 101,
        "server_ip": SERVER_IP,
        "call_date": "{dt-40}",
        **other,
    }


def log_row(**other: Any) -> Placed:
    """Give the row of ``vicidial_log`` that the routing script wrote."""
    return "vicidial_log", {
        "uniqueid": UID,
        "lead_id": 101,
        "list_id": 999,
        "campaign_id": "TESTCAMP",
        "call_date": "{dt-30}",
        "start_epoch": "{ep-30}",
        "status": "QUEUE",
        "phone_code": "1",
        "phone_number": "3125551212",
        "user": "VDAD",
        "processed": "N",
        "alt_dial": "NONE",
        "called_count": 3,
        **other,
    }


def closer_row(**other: Any) -> Placed:
    """Give the row of ``vicidial_closer_log`` that the in-group's script wrote."""
    return "vicidial_closer_log", {
        "lead_id": 101,
        "campaign_id": "SALESLINE",
        "call_date": "{dt-30}",
        "start_epoch": "{ep-30}",
        "status": "QUEUE",
        "user": "VDCL",
        "uniqueid": UID,
        "queue_seconds": 0,
        "queue_position": 2,
        **other,
    }


def container(name: str, *lines: str) -> Placed:
    """Give a container of settings."""
    return "vicidial_settings_containers", {"container_id": name, "container_entry": "\n".join(lines)}


# ---- what becomes of them


def inserted(table: str, row: Row) -> Row:
    """Expect a new row, with all its columns that are not null."""
    return {"op": "INSERT", "table": table, "row": row}


def updated(table: str, key: Other, **after: Any) -> Row:
    """Expect that these columns of one row change, and no others.

    Args:
        table: Its table.
        key: Columns by which it is known.
        after: What they hold then.
    """
    return {"op": "UPDATE", "table": table, "key": dict(key), "before": {}, "after": after}


def deleted(table: str, row: Other) -> Row:
    """Expect that one row goes."""
    return {"op": "DELETE", "table": table, "row": dict(row)}


def closed(channel: str | None, uid: str = UID, seconds: int = 40) -> Row:
    """Expect that the row of ``call_log`` is closed; None leaves its channel."""
    renamed = {} if channel is None else {"channel": channel}
    return updated("call_log", {"uniqueid": uid}, **_ended(seconds), **renamed)


def _ended(seconds: int) -> Row:
    return {
        "end_time": "{t}",
        "end_epoch": "{t}",
        "length_in_sec": f"~{seconds}",
        "length_in_min": f"~{seconds / 60}",
    }


def lead_set(**after: Any) -> Row:
    """Expect a change of the lead."""
    return updated("vicidial_list", {"lead_id": "101"}, **after)


def call_gone(code: str = V, **row: Any) -> Row:
    """Expect that the living call is none any more."""
    return deleted("vicidial_auto_calls", {"callerid": code, **row})


def call_set(status: str, code: str = V) -> Row:
    """Expect another status of the living call."""
    return updated("vicidial_auto_calls", {"callerid": code}, status=status)


def log_ended(uid: str = UID, seconds: int = 30, **after: Any) -> Row:
    """Expect that the row of ``vicidial_log`` is ended."""
    key = {"uniqueid": uid}
    return updated("vicidial_log", key, end_epoch="{t}", length_in_sec=f"~{seconds}", **after)


def closer_ended(seconds: int = 30, key: Other = _SAME, **after: Any) -> Row:
    """Expect that the row of ``vicidial_closer_log`` is ended."""
    return updated("vicidial_closer_log", key, end_epoch="{t}", length_in_sec=f"~{seconds}", **after)


def log_inserted(status: str, code: str = V, **other: Any) -> tuple[Row, Row]:
    """Expect the rows of ``vicidial_log`` and its extension that END writes where none is."""
    row = {
        "uniqueid": UID,
        "lead_id": 101,
        "list_id": 999,
        "campaign_id": "TESTCAMP",
        "call_date": "{t-40}",
        "start_epoch": "{t-40}",
        "end_epoch": "{t-40}",
        "length_in_sec": 0,
        "status": status,
        "phone_code": "1",
        "phone_number": "3125551212",
        "user": "VDAD",
        "processed": "N",
        "term_reason": "NONE",
        "alt_dial": "NONE",
        "called_count": 3,
        **other,
    }
    extended = {
        "uniqueid": row["uniqueid"],
        "server_ip": SERVER_IP,
        "call_date": "{t-40}",
        "lead_id": row["lead_id"],
        "caller_code": code,
        "custom_call_id": "",
    }
    return inserted("vicidial_log", row), inserted("vicidial_log_extended", extended)


def drop_logged(status: str, group: str = "TESTCAMP", lead_id: int = 101) -> Row:
    """Expect a row of ``vicidial_drop_log``."""
    row = {
        "uniqueid": UID,
        "server_ip": SERVER_IP,
        "drop_date": "{t}",
        "lead_id": lead_id,
        "phone_code": "1",
        "phone_number": "3125551212",
        "campaign_id": group,
        "status": status,
        "drop_processed": "N",
    }
    return inserted("vicidial_drop_log", row)


def queued(alt_dial: str, priority: int, status: str = "READY", **other: Any) -> Row:
    """Expect that another number of the lead is put in the hopper."""
    row = {
        "lead_id": 101,
        "campaign_id": "TESTCAMP",
        "status": status,
        "user": "",
        "list_id": 999,
        "gmt_offset_now": "-6.00",
        "state": "IL",
        "alt_dial": alt_dial,
        "priority": priority,
        "source": "A",
        "vendor_lead_code": "",
        **other,
    }
    return inserted("vicidial_hopper", row)


# ---- what Asterisk says


@dataclass(frozen=True)
class Hangup:
    """What the URL of a hangup says, and what of it the logs of carriers hold.

    Attributes:
        cause: Of Q.850.
        dialstatus: Asterisk's ``DIALSTATUS``.
        seconds: How long it was dialled and how long it was answered, with a separator between.
        tech: The technology's cause.
        sip: Cause and reason of SIP, as they are stored.
        begin: What stands before the cause.
    """

    cause: str = "16"
    dialstatus: str = "ANSWER"
    seconds: str = "30-----20"
    tech: str = "SIP 200 OK"
    sip: tuple[int, str] = (200, "OK")
    begin: str = "--HVcauses--PRI-----NODEBUG"

    @property
    def url(self) -> str:
        """The whole URL."""
        fields = (self.begin, self.cause, self.dialstatus, self.seconds, self.tech)
        return _ROOT + "-----".join(fields)


ANSWERED: Final = Hangup()
BUSY: Final = Hangup("17", "BUSY", "10-----", "SIP 486 Busy Here", (486, "Busy Here"))
NOT_DIALLED: Final = Hangup(dialstatus="", seconds="-----")


def carried(hangup: Hangup, channel: str, code: str = V, **other: Any) -> tuple[Row, Row]:
    """Expect the rows of carrier and dialer that tell of a hangup."""
    dial_s, _, answered_s = hangup.seconds.partition("-----")
    cause, reason = hangup.sip
    row = {
        "uniqueid": UID,
        "call_date": "{t}",
        "server_ip": SERVER_IP,
        "lead_id": 101,
        "hangup_cause": int(hangup.cause),
        "dialstatus": hangup.dialstatus,
        "channel": channel,
        "dial_time": int(dial_s or 0),
        "answered_time": int(answered_s or 0),
        "sip_hangup_cause": cause,
        "sip_hangup_reason": reason,
        "caller_code": code,
        **other,
    }
    told = {"sip_hangup_cause": cause, "sip_hangup_reason": reason, "uniqueid": row["uniqueid"]}
    dialled = updated("vicidial_dial_log", {"caller_code": code}, **told)
    return inserted("vicidial_carrier_log", row), dialled


def said(request: str, channel: str, name: str, **other: str) -> Row:
    """Say what Asterisk says of a call."""
    return {
        "request": request,
        "channel": channel,
        "type": channel.partition("/")[0],
        "uniqueid": UID,
        "callerid": "7275551212",
        "calleridname": name,
        "extension": "h",
        "priority": "1",
        **other,
    }


def call(
    name: str,
    agi: Row,
    rows: Iterable[Placed] = (),
    changes: Iterable[Row] = (),
    *,
    wire: Iterable[str] = (),
    system: Other = _SAME,
    server: Other = _SAME,
) -> Scenario:
    """Put a scenario together; see :class:`~vicidial.playing.Scenario`."""
    return Scenario(
        id=name,
        system_settings=dict(system),
        servers=dict(server),
        rows=tuple(rows),
        agi=agi,
        wire=tuple(wire),
        changes=tuple(changes),
    )


# ---- START


def start(
    name: str,
    said_otherwise: Other,
    stored: Other,
    rows: Iterable[Placed] = (),
    wire: Iterable[str] = (),
    more: Iterable[Row] = (),
    system: Other = _SAME,
) -> Scenario:
    """A START: a desk phone dials 8500, if nothing else is said.

    Args:
        name: The scenario's id.
        said_otherwise: What Asterisk says differently.
        stored: The columns of the row of ``call_log`` that are not those of that phone.
        rows: What is in the tables.
        wire: The commands.
        more: Further changes.
        system: Settings of the system.
    """
    agi = {**said(_ROOT, "SIP/gs102-0000000a", "x", callerid="7275554444", extension="8500")}
    agi |= said_otherwise
    row = {
        "uniqueid": UID,
        "channel": "SIP/gs102",
        "channel_group": "",
        "type": agi["type"],
        "server_ip": SERVER_IP,
        "extension": "gs102",
        "number_dialed": "8500",
        "caller_code": agi["callerid"],
        "start_time": "{t}",
        "start_epoch": "{t}",
        "end_time": "0000-00-00 00:00:00",
        "end_epoch": 0,
        "length_in_sec": 0,
        "length_in_min": 0.0,
        **stored,
    }
    return call(name, agi, rows, [inserted("call_log", row), *more], wire=wire, system=system)


def from_caller(name: str, number: str, caller_name: str, code: str) -> Scenario:
    """A START whose caller tells number and name, and the code that is stored."""
    return start(name, {"callerid": number, "calleridname": caller_name}, {"caller_code": code})


def rewritten(name: str, extension: str, number: str, group: str) -> Scenario:
    """A START of a desk phone, and how the dialled extension is stored."""
    stored = {"number_dialed": number, "channel_group": group}
    return start(name, {"extension": extension}, stored)


_CAMPCUST: Final = "EXEC Set _CAMPCUST=TESTCAMP"
_DESK_PHONE_URL: Final = f"{_ROOT}--fullCID--8500-----ALL-----"

#: The request grammar, caller id: number, name and code.
_CALLERS: Final = (
    from_caller("no number", "", "Anonymous Caller", "Anonymous"),
    from_caller("number 0", "0", "Anonymous", "Anonymous"),
    from_caller("number 00", "00", "Anonymous", "00"),
    from_caller("private number", "PRIVATE-12", "Roberta", "Roberta"),
    from_caller("number of zeros", "10000000000", "Roberta", "Roberta"),
    from_caller("seven zeros", "1000000012", "Roberta", "1000000012"),
    from_caller("number Unknown", "Unknown", "Roberta", "Roberta"),
    from_caller("name of 5 characters", "unknown", "Smith", "unknown"),
    from_caller("name of 6 characters", "unknown", "Smithy", "Smithy"),
    from_caller("quotes in name", "unknown", 'S"m"ith', "unknown"),
    from_caller("name of 18 digits", "7275554444", "123456789012345678", "123456789012345678"),
    from_caller("name of 17 digits", "7275554444", "V12345678901234567", "7275554444"),
    from_caller("two backslashes", "12\\\\34", "x", "1234"),
    from_caller("backslash and semicolon", "1\\;2", "x", "12"),
    from_caller("backslash, bar, backslash, bar", "1\\|\\2", "x", "12"),
    from_caller("bar", "1|2", "x", "1|2"),
    from_caller("quote in number", '1"2', "x", '1"2'),
    from_caller("number with a space", "727 5554444", "x", "727"),
    from_caller("code of 21 characters", "unknown", "V12021503100000001019", V),
)

#: The request grammar, ANI and stage: what the extension says.
_EXTENSIONS: Final = (
    start(
        "short DNIS",
        {"extension": "*3125551212*34*", "channel": "Zap/1-1"},
        {
            "channel": "Zap/1-1",
            "channel_group": "Zap Trunk Line",
            "extension": "34",
            "number_dialed": "34",
            "caller_code": "3125551212*34*",
        },
    ),
    start("three characters with h", {"extension": "h12"}, {"number_dialed": "h12"}),
    start("word with h", {"extension": "hang"}, {"number_dialed": "hang"}),
    start("hangup URL on a number", {"request": BUSY.url}, {}),
    start("process that begins with call_log", {"request": f"{_ROOT}ger"}, {}),
)

#: The request grammar: the caller in the URL.
_FULL_CALLER_IDS: Final = (
    start(
        "S10",
        {"request": f"{_DESK_PHONE_URL}7275558888-----John Doe", "calleridname": V},
        {"caller_code": "7275558888"},
    ),
    start("spaces in URL", {"request": f"{_DESK_PHONE_URL}727 5558888-----John Doe"}, {"caller_code": "727"}),
    start(
        "fullCID in capitals",
        {"request": f"{_ROOT}--FULLCID--8500-----ALL-----7275558888-----John Doe"},
        {"caller_code": "7275558888"},
    ),
    start("no fields after EXT", {"request": f"{_ROOT}--fullCID--8500"}, {"caller_code": ""}),
)

#: START, step 4: each rule, and each length that misses it.
_REWRITES: Final = (
    rewritten("S15a", "9011441234567890", "011441234567890", "Outbound Intl UK"),
    rewritten("S15d", "95551212", "7275551212", "Outbound Local"),
    rewritten("901144 of 15", "901144123456789", "901144123456789", ""),
    rewritten("901161 of 16", "9011611234567890", "901161123456789", ""),
    rewritten("91877", "918775551212", "8775551212", "Outbound Local 800"),
    rewritten("91866", "918665551212", "8665551212", "Outbound Local 800"),
    rewritten("91855", "918555551212", "8555551212", "Outbound Long Distance"),
    rewritten("91 of 11", "91312555121", "1312555121", "Outbound Local"),
    rewritten("9 of 12", "923125551212", "923125551212", ""),
    rewritten("9 of 7", "9555121", "9555121", ""),
    rewritten("longer than its column", "00491234567890123456", "004912345678901", ""),
)

#: START, steps 2 to 4: channels.
_CHANNELS: Final = (
    start(
        "S14",
        {"channel": "IAX2/provider/1234", "type": "IAX2", "extension": "95551212"},
        {
            "channel": "IAX2/provider",
            "channel_group": "Outbound Local",
            "extension": "provider",
            "number_dialed": "7275551212",
        },
    ),
    start(
        "IAX2 with dash",
        {"channel": "IAX2/provider-4567", "type": "IAX2"},
        {"channel": "IAX2/provider-4567", "extension": "provider-4567"},
    ),
    start(
        "PJSIP",
        {"channel": "PJSIP/gs102-0000000a", "type": "PJSIP", "extension": "913125551212"},
        {"channel": "PJSIP/gs102", "channel_group": "Outbound Long Distance", "number_dialed": "3125551212"},
    ),
    *(
        start(
            name,
            {"channel": channel, "type": channel.partition("/")[0], "extension": "913125551212"},
            {
                "channel": channel,
                "channel_group": group,
                "extension": "913125551212",
                "number_dialed": "" if group == "Zap Client Phone" else "913125551212",
            },
            [("phones", {"extension": "25-1", "server_ip": server_ip, "protocol": protocol})],
        )
        for name, channel, server_ip, protocol, group in (
            ("S11", "Zap/25-1", SERVER_IP, "Zap", "Zap Client Phone"),
            ("S12", "Zap/25-1", "10.0.0.2", "Zap", "Zap Trunk Line"),
            ("DAHDI client phone", "DAHDI/25-1", SERVER_IP, "Zap", "Zap Client Phone"),
            ("DAHDI trunk", "DAHDI/26-1", SERVER_IP, "Zap", "Zap Trunk Line"),
            ("Zap, phone of SIP", "Zap/25-1", SERVER_IP, "SIP", "Zap Trunk Line"),
        )
    ),
    start(
        "Local, phone of another server",
        {"channel": "Local/990009@default-00000a01;2", "type": "Local"},
        {
            "channel": "Local/990009@default-00000a01;2",
            "channel_group": "Local Channel Line",
            "extension": "8500",
        },
        [
            (
                "phones",
                {
                    "extension": "990009",
                    "dialplan_number": "990009",
                    "server_ip": "10.0.0.2",
                    "protocol": "EXTERNAL",
                },
            )
        ],
    ),
)


def line_start(
    name: str,
    code: str,
    channel: str,
    extension: str,
    rows: Iterable[Placed],
    wire: Iterable[str],
    stored: Other = _SAME,
    more: Iterable[Row] = (),
    system: Other = _SAME,
) -> Scenario:
    """A START on a Local channel of a call that VICIdial placed; see :func:`start`."""
    placed = {
        "channel": channel,
        "channel_group": "Local Channel Line",
        "extension": extension,
        "number_dialed": extension,
        "caller_code": code,
        **stored,
    }
    agi = {"channel": channel, "type": "Local", "callerid": "7275551212", "calleridname": code}
    return start(name, {**agi, "extension": extension}, placed, rows, wire, more, system)


def client_phone_start(name: str, code: str, manager: Iterable[Row], number: str, *wire: str) -> Scenario:
    """A START on an external client phone, whose number is looked for; see START, step 5."""
    phone = {
        "extension": "990009",
        "dialplan_number": "990009",
        "server_ip": SERVER_IP,
        "protocol": "EXTERNAL",
    }
    rows = [
        campaign(),
        auto_call(code),
        ("phones", phone),
        *(("vicidial_manager", {"callerid": code, **row}) for row in manager),
    ]
    stored = {"channel_group": "EXTERNAL Client Phone", "number_dialed": number}
    channel = "Local/990009@default-00000a01;2"
    return line_start(name, code, channel, "8600051", rows, wire, stored)


_ACME: Final = campaign(opensips_cid_name="ACME Corp")
_OPENSIPS: Final = {"opensips_cid_name": "1"}
_SHORT_V: Final = V[:-1]

#: START, steps 5 and 6.
_DIALLED_STARTS: Final = (
    line_start("S02", V, _DIALLED, "913125551212", [campaign(), auto_call()], [_CAMPCUST]),
    line_start("18 digits", _SHORT_V, _DIALLED, "8368", [campaign(), auto_call(_SHORT_V)], [_CAMPCUST]),
    line_start("17 digits", V[:-2], _DIALLED, "8368", [campaign(), auto_call(V[:-2])], []),
    line_start("small v", V.lower(), _DIALLED, "8368", [campaign()], []),
    line_start("Y", Y, _DIALLED, "8368", [campaign(), auto_call(Y)], []),
    line_start("V without VAC", V, _DIALLED, "8368", [campaign()], []),
    client_phone_start(
        "S13b",
        M,
        [{"cmd_line_b": "Exten: 913125551212", "cmd_line_d": "Channel: Local/8600051@default"}],
        "913125551212",
        _CAMPCUST,
        "EXEC Set _CAMPDTO=26",
    ),
    client_phone_start("no manager row", V, [], "8600051", _CAMPCUST),
    client_phone_start(
        "no digits",
        V,
        [{"cmd_line_b": "", "cmd_line_d": "Channel: Local/none@default"}],
        "8600051",
        _CAMPCUST,
    ),
    line_start(
        "S16",
        V,
        _DIALLED,
        "913125551212",
        [_ACME, auto_call()],
        [_CAMPCUST, 'EXEC SIPAddHeader "X-CIDNAME: ACME Corp"'],
        system=_OPENSIPS,
    ),
    line_start(
        "OpenSIPs, manual",
        M,
        _AGENT,
        "913125551212",
        [_ACME, auto_call(M)],
        [_CAMPCUST, "EXEC Set _CAMPDTO=26", 'EXEC SIPAddHeader "X-CIDNAME: ACME Corp"'],
        system=_OPENSIPS,
    ),
    line_start("OpenSIPs off", V, _DIALLED, "8368", [_ACME, auto_call()], [_CAMPCUST]),
    line_start(
        "OpenSIPs without a name",
        V,
        _DIALLED,
        "8368",
        [campaign(), auto_call()],
        [_CAMPCUST],
        system=_OPENSIPS,
    ),
    line_start("OpenSIPs without VAC", V, _DIALLED, "8368", [_ACME], [], system=_OPENSIPS),
    call("S19", said(_ROOT, "SIP/gs102-0000000a", "x", extension="8500"), [leg()]),
)


def khomp_start(name: str, extension: str, id_format: str, khomp_id: str, *more_lines: str) -> Scenario:
    """A START in a campaign of KHOMP; no id means that KHOMP has no part in it; see KHOMP analytics."""
    settings = container(
        "KHOMPSPECIAL",
        "# settings",
        "",
        "khomp_api_url => http://127.0.0.1:1/",
        "khomp_header => KHOMPID # theirs",
        f"khomp_id_format => {id_format}",
        *more_lines,
    )
    special = campaign(amd_type="KHOMP", khomp_settings_container="KHOMPSPECIAL")
    row = {
        "caller_code": V,
        "lead_id": 0,
        "server_ip": SERVER_IP,
        "khomp_header": "KHOMPID",
        "khomp_id": khomp_id,
        "khomp_id_format": id_format,
        "start_date": "{t}",
        **dict.fromkeys(
            ("hangup_auth_time", "hangup_query_time", "route_auth_time", "route_query_time"), "0"
        ),
        "khomp_settings_container": "KHOMPSPECIAL",
    }
    wire = [_CAMPCUST, *([f'EXEC SIPAddHeader "X-KHOMPID: {khomp_id}"'] if khomp_id else [])]
    wire += ['EXEC SIPAddHeader "X-KHOMP-Sub-Account:SUB1"'] if more_lines else []
    more = [inserted("vicidial_khomp_log", row)] if khomp_id else []
    return line_start(name, V, _DIALLED, extension, [special, auto_call(), settings], wire, more=more)


_KHOMP: Final = (
    khomp_start("K01b", "8368", "CALLERCODE", ""),
    khomp_start("KHOMP, extension as a number", "08368", "CALLERCODE", ""),
    khomp_start("KHOMP, code", "913125551212", "CALLERCODE", V),
    khomp_start("KHOMP, code and address", "913125551212", "CALLERCODE_EXTERNIP", f"{V}_203.0.113.5"),
    khomp_start("KHOMP, sub-account", "8369", "CALLERCODE", V, "khomp_sub_account_header => SUB1"),
)


# ---- END on a Local channel


def failed_dial(
    name: str,
    mode: int,
    hangup: Hangup,
    status: str,
    call_status: str,
    *,
    code: str = V,
    rows: Iterable[Placed] | None = None,
    changes: Iterable[Row] | None = None,
    lead_columns: Other = _SAME,
    system: Other = _SAME,
    server: Other = _SAME,
) -> Scenario:
    """An END of a dial that nobody answered.

    Args:
        name: The scenario's id.
        mode: Of enhanced disconnect logging.
        hangup: Its facts.
        status: What lead and log get; empty if nothing.
        call_status: What the living call gets.
        code: The caller code.
        rows: Instead of the row of the living call.
        changes: Instead of what a status changes.
        lead_columns: Of the lead.
        system: Settings of the system.
        server: Settings of the server.
    """
    placed = [campaign(), lead(**lead_columns), leg(code), dial_log(code)]
    placed += [auto_call(code, uniqueid="")] if rows is None else rows
    if changes is None:
        changes = [lead_set(status=status), call_set(call_status, code), *log_inserted(status, code)]
        changes = changes if status else []
    expected = [closed(_DIALLED), *carried(hangup, _DIALLED, code), *changes]
    settings = {"enhanced_disconnect_logging": str(mode), **system}
    return call(name, said(hangup.url, _DIALLED, code), placed, expected, system=settings, server=server)


def dial_failed(dialstatus: str, cause: int) -> Hangup:
    """Give the facts of a dial that failed."""
    return Hangup(
        str(cause), dialstatus, "3-----", "SIP 503 Service Unavailable", (503, "Service Unavailable")
    )


#: END on a Local channel, steps 3 and 4: id, mode, DIALSTATUS, cause; new status, VAC status.
_OUTCOMES: Final = (
    ("E06", 0, "CHANUNAVAIL", 1, "ADC", "DISCONNECT"),
    ("E08-1", 1, "CHANUNAVAIL", 18, "ADC", "DISCONNECT"),
    ("E09-1-3", 3, "CONGESTION", 1, "ADC", "DISCONNECT"),
    ("E09-19-2", 2, "CONGESTION", 19, "", ""),
    ("E09-19-3", 3, "CONGESTION", 19, "HUC19", ""),
    ("E09-34-1", 1, "CONGESTION", 34, "ADCT", "DISCONNECT"),
    ("E09-34-2", 2, "CONGESTION", 34, "ADCT", "DISCONNECT"),
    ("E09-102-0", 0, "CONGESTION", 102, "", ""),
    ("E09-102-1", 1, "CONGESTION", 102, "", ""),
    ("E09-102-2", 2, "CONGESTION", 102, "ADCT", "DISCONNECT"),
    ("E09-102-3", 3, "CONGESTION", 102, "HUC102", ""),
    ("E09-41-1", 1, "CONGESTION", 41, "", ""),
    ("E10-DISCONNECT-2", 2, "DISCONNECT", 16, "ADCCAR", ""),
    ("E11-17-3", 3, "BUSY", 17, "AB", "BUSY"),
    ("E11-19-2", 2, "BUSY", 19, "ADCT", "DISCONNECT"),
    ("E11-19-3", 3, "BUSY", 19, "HUC19", ""),
    ("CHANUNAVAIL 28, mode 0", 0, "CHANUNAVAIL", 28, "ADC", "DISCONNECT"),
    ("CHANUNAVAIL 28, mode 2", 2, "CHANUNAVAIL", 28, "ADC", "DISCONNECT"),
    ("CHANUNAVAIL 28, mode 3", 3, "CHANUNAVAIL", 28, "ADC", "DISCONNECT"),
    ("CHANUNAVAIL 1, mode 1", 1, "CHANUNAVAIL", 1, "ADC", "DISCONNECT"),
    ("CHANUNAVAIL 1, mode 3", 3, "CHANUNAVAIL", 1, "ADC", "DISCONNECT"),
    ("CHANUNAVAIL 20, mode 0", 0, "CHANUNAVAIL", 20, "", ""),
    ("CHANUNAVAIL 20, mode 2", 2, "CHANUNAVAIL", 20, "", ""),
    ("CHANUNAVAIL 180, mode 2", 2, "CHANUNAVAIL", 180, "", ""),
    ("CHANUNAVAIL 18, mode 5", 5, "CHANUNAVAIL", 18, "ADC", "DISCONNECT"),
    ("CHANUNAVAIL 18, mode 6", 6, "CHANUNAVAIL", 18, "ADC", "DISCONNECT"),
    ("CONGESTION 1, mode 4", 4, "CONGESTION", 1, "ADC", "DISCONNECT"),
    ("CONGESTION 19, mode 5", 5, "CONGESTION", 19, "ADCT", "DISCONNECT"),
    ("CONGESTION 102, mode 6", 6, "CONGESTION", 102, "", ""),
    ("CONGESTION 21, mode 1", 1, "CONGESTION", 21, "ADCT", "DISCONNECT"),
    ("CONGESTION 38, mode 1", 1, "CONGESTION", 38, "ADCT", "DISCONNECT"),
    ("CONGESTION 21, mode 2", 2, "CONGESTION", 21, "ADCT", "DISCONNECT"),
    ("CONGESTION 38, mode 2", 2, "CONGESTION", 38, "ADCT", "DISCONNECT"),
    ("CONGESTION 21, mode 3", 3, "CONGESTION", 21, "HUC21", ""),
    ("CONGESTION 38, mode 3", 3, "CONGESTION", 38, "HUC38", ""),
    ("CONGESTION 17, mode 3", 3, "CONGESTION", 17, "", ""),
    ("CONGESTION 16, mode 1", 1, "CONGESTION", 16, "", ""),
    ("DISCONNECT, mode 4", 4, "DISCONNECT", 16, "ADCCAR", ""),
    ("DNC, mode 6", 6, "DNC", 16, "DNCCAR", ""),
    ("DNC 41, mode 3", 3, "DNC", 41, "HUC41", ""),
    ("DISCONNECT 17, mode 3", 3, "DISCONNECT", 17, "AB", "BUSY"),
    ("DISCONNECT 28, mode 3", 3, "DISCONNECT", 28, "ADC", "DISCONNECT"),
    ("BUSY 19, mode 1", 1, "BUSY", 19, "AB", "BUSY"),
    ("BUSY 16, mode 0", 0, "BUSY", 16, "AB", "BUSY"),
    ("BUSY 16, mode 2", 2, "BUSY", 16, "AB", "BUSY"),
    ("BUSY 16, mode 3", 3, "BUSY", 16, "", ""),
    ("BUSY 41, mode 3", 3, "BUSY", 41, "HUC41", ""),
    ("BUSY 42, mode 3", 3, "BUSY", 42, "HUC42", ""),
    ("BUSY 88, mode 3", 3, "BUSY", 88, "HUC88", ""),
    ("BUSY 170, mode 3", 3, "BUSY", 170, "AB", "BUSY"),
    ("BUSY 180, mode 3", 3, "BUSY", 180, "", ""),
    ("contains BUSY", 0, "XBUSYX", 17, "AB", "BUSY"),
    ("contains CHANUNAVAIL", 0, "XCHANUNAVAILX", 1, "ADC", "DISCONNECT"),
    ("CANCEL", 1, "CANCEL", 17, "", ""),
    ("NOANSWER 19, mode 3", 3, "NOANSWER", 19, "", ""),
)

_FAILED_DIALS: Final = tuple(
    failed_dial(name, mode, dial_failed(dialstatus, cause), status, call_status)
    for name, mode, dialstatus, cause, status, call_status in _OUTCOMES
)


def failed_lead(name: str, lead_id: int, highest: str, written: bool) -> Scenario:
    """A busy dial of a lead near the highest one; see END on a Local channel, step 5."""
    code = f"V120215031{lead_id:010d}"
    rows = [
        campaign(),
        auto_call(code, uniqueid="", lead_id=lead_id),
        lead(lead_id=lead_id),
        leg(code),
        dial_log(code, lead_id=lead_id),
    ]
    changes = [
        closed(_DIALLED),
        *carried(BUSY, _DIALLED, code, lead_id=lead_id),
        call_set("BUSY", code),
        *log_inserted("AB", code, lead_id=lead_id),
    ]
    if written:
        changes.append(updated("vicidial_list", {"lead_id": str(lead_id)}, status="AB"))
    return call(name, said(BUSY.url, _DIALLED, code), rows, changes, system={"highest_lead_id": highest})


_OLD_LOG: Final = {"status": "SENT", "uniqueid": f"{STEM}.25"}
_AB: Final = (lead_set(status="AB"), call_set("BUSY"))
_SHORT_URL: Final = Hangup("17", "BUSY", "", "", (503, "Service Unavailable"))
_UNTOLD: Final = Hangup("16", "ANSWER", "30-----20", "", (503, "Service Unavailable"))
_OTHER_PROTOCOL: Final = Hangup(
    "17", "BUSY", "10-----", "SIP 486 Busy Here", (486, "Busy Here"), "--HVcauses--SS7-----NODEBUG"
)
_SMALL_MARKER: Final = Hangup(
    "17", "BUSY", "10-----", "SIP 486 Busy Here", (486, "Busy Here"), "--hvcauses--PRI-----NODEBUG"
)
_PJSIP: Final = Hangup("17", "BUSY", "10-----", "PJSIP 404 Not Found", (404, "Not Found"))
_LONG_REASON: Final = Hangup("17", "BUSY", "10-----", "SIP 486 " + "x" * 60, (486, "x" * 50))

#: END on a Local channel, steps 3 to 7, and END, step 3.
_LOCAL_ENDS: Final = (
    failed_dial(
        "E04",
        0,
        BUSY,
        "AB",
        "BUSY",
        rows=[auto_call(uniqueid=""), log_row(**_OLD_LOG)],
        changes=[*_AB, updated("vicidial_log", {"uniqueid": f"{STEM}.25"}, status="AB")],
    ),
    failed_dial(
        "log row has the status already",
        0,
        BUSY,
        "AB",
        "BUSY",
        rows=[auto_call(uniqueid=""), log_row(uniqueid=f"{STEM}.25", status="AB")],
        changes=_AB,
    ),
    failed_dial(
        "two log rows of the second",
        0,
        BUSY,
        "AB",
        "BUSY",
        rows=[auto_call(uniqueid=""), log_row(**_OLD_LOG), log_row(status="SENT", uniqueid=f"{STEM}.3")],
        changes=[
            *_AB,
            updated("vicidial_log", {"uniqueid": f"{STEM}.25"}, status="AB"),
            updated("vicidial_log", {"uniqueid": f"{STEM}.3"}, status="AB"),
        ],
    ),
    failed_dial(
        "log row of another lead",
        0,
        BUSY,
        "AB",
        "BUSY",
        rows=[auto_call(uniqueid=""), log_row(**_OLD_LOG, lead_id=102)],
        changes=[*_AB, *log_inserted("AB")],
    ),
    failed_dial(
        "VAC by unique id only",
        0,
        BUSY,
        "AB",
        "BUSY",
        rows=[
            auto_call("V1202150310000000102", uniqueid=UID, lead_id=102, alt_dial="X2"),
            lead(lead_id=102, called_count=7),
        ],
        changes=[
            lead_set(status="AB"),
            *log_inserted("AB", "V1202150310000000102", lead_id=102, called_count=7, alt_dial="X2"),
        ],
    ),
    failed_dial(
        "extension exists",
        0,
        BUSY,
        "AB",
        "BUSY",
        rows=[
            auto_call(uniqueid=""),
            (
                "vicidial_log_extended",
                {
                    "uniqueid": UID,
                    "server_ip": "10.0.0.2",
                    "call_date": "{dt-90}",
                    "lead_id": 102,
                    "caller_code": "x",
                    "custom_call_id": "theirs",
                },
            ),
        ],
        changes=[
            *_AB,
            log_inserted("AB")[0],
            updated(
                "vicidial_log_extended",
                {"uniqueid": UID},
                server_ip=SERVER_IP,
                call_date="{t-40}",
                lead_id="101",
                caller_code=V,
            ),
        ],
    ),
    failed_dial("not PRI", 0, _OTHER_PROTOCOL, "", ""),
    failed_dial("small marker", 0, _SMALL_MARKER, "AB", "BUSY"),
    failed_dial("PJSIP cause", 0, _PJSIP, "AB", "BUSY"),
    failed_dial("long reason", 0, _LONG_REASON, "AB", "BUSY"),
    failed_dial("short version, new", 0, BUSY, "AB", "BUSY", server={"asterisk_version": "18"}),
    failed_dial("1.12, new", 0, BUSY, "AB", "BUSY", server={"asterisk_version": "1.12.0-vici"}),
    failed_lead("E14", 500_000, "200000", False),
    failed_lead("lead under the guard", 209_999, "200000", True),
    failed_lead("lead at the guard", 210_000, "200000", False),
)


def told_by_dialer(
    name: str, request: str, sip: tuple[int, str], server: Other = _SAME, **row: Any
) -> Scenario:
    """An END whose SIP cause is the one that the dialer logged; see END, step 3."""
    older = dial_log(call_date="{dt-400}", sip_hangup_cause=404, sip_hangup_reason="Not Found")
    newer = dial_log(sip_hangup_cause=503, sip_hangup_reason="Service Unavailable")
    carrier = {
        "uniqueid": UID,
        "call_date": "{t}",
        "server_ip": SERVER_IP,
        "lead_id": 101,
        "hangup_cause": 16,
        "dialstatus": "ANSWER",
        "channel": _TRUNK,
        "dial_time": 30,
        "answered_time": 20,
        "sip_hangup_cause": sip[0],
        "sip_hangup_reason": sip[1],
        "caller_code": V,
        **row,
    }
    changes = [closed(_TRUNK), inserted("vicidial_carrier_log", carrier)]
    rows = [leg(), lead(), older, newer, dial_log("V1202150310000000102", sip_hangup_cause=486)]
    return call(name, said(request, _TRUNK, V), rows, changes, server=server)


_DIALERS_CAUSE: Final = (503, "Service Unavailable")

_TOLD_BY_DIALER: Final = (
    told_by_dialer("O07", Hangup(tech="").url, _DIALERS_CAUSE),
    told_by_dialer("technology without SIP", Hangup(tech="DAHDI 3").url, _DIALERS_CAUSE),
    told_by_dialer("1.8", ANSWERED.url, _DIALERS_CAUSE, {"asterisk_version": "1.8.23.0-vici"}),
    told_by_dialer("old short version", ANSWERED.url, _DIALERS_CAUSE, {"asterisk_version": "11"}),
    told_by_dialer("no version", ANSWERED.url, _DIALERS_CAUSE, {"asterisk_version": ""}),
    told_by_dialer(
        "URL ends at DIALSTATUS",
        f"{_ROOT}--HVcauses--PRI-----NODEBUG-----16-----ANSWER",
        _DIALERS_CAUSE,
        dial_time=0,
        answered_time=0,
    ),
)


def sounded_out(name: str, status: str, *results: str, hangup: Hangup = ANSWERED) -> Scenario:
    """An END in a campaign of CPD, with what CPD wrote, oldest first; see CPD."""
    found = [
        ("vicidial_cpd_log", {"channel": "x", "callerid": V, "server_ip": SERVER_IP, "result": result})
        for result in results
    ]
    rows = [campaign(amd_type="CPD"), auto_call(), lead(), leg(), dial_log(), *found]
    changes = [closed(_DIALLED), *carried(hangup, _DIALLED)]
    if status:
        kept = status == "AA"
        changes += [lead_set(status=status), *log_inserted(status), call_set("") if kept else call_gone()]
    return call(name, said(hangup.url, _DIALLED, V), rows, changes)


_CPD: Final = (
    sounded_out("E13b", "AA", "Answering-Machine"),
    sounded_out("CPD, small", "CPDB", "busy"),
    sounded_out("CPD, trunks", "CPDATB", "All-Trunks-Busy"),
    sounded_out("CPD, no answer", "CPDNA", "No-Answer"),
    sounded_out("CPD, reject", "CPDREJ", "Reject"),
    sounded_out("CPD, number", "CPDINV", "Invalid-Number"),
    sounded_out("CPD, service", "CPDSUA", "Service-Unavailable"),
    sounded_out("CPD, intercept", "CPDSI", "Sit-Intercept"),
    sounded_out("CPD, circuit", "CPDSNC", "Sit-No-Circuit"),
    sounded_out("CPD, reorder", "CPDSR", "Sit-Reorder"),
    sounded_out("CPD, SIT", "CPDSUK", "Sit-Unknown"),
    sounded_out("CPD, vacant", "CPDSV", "Sit-Vacant"),
    sounded_out("CPD, fax", "AFAX", "Fax"),
    sounded_out("CPD, modem", "AFAX", "Modem"),
    sounded_out("CPD, voice", "", "Voice"),
    sounded_out("CPD, unknown", "", "Unknown"),
    sounded_out("CPD, newest", "CPDB", "Fax", "Busy", "Voice"),
    sounded_out("CPD before DIALSTATUS", "CPDNA", "No-Answer", hangup=BUSY),
    call(
        "CPD, campaign of the log",
        said(ANSWERED.url, _DIALLED, V),
        [
            campaign(amd_type="CPD"),
            lead(),
            leg(),
            dial_log(),
            log_row(status="SENT"),
            ("vicidial_cpd_log", {"channel": "x", "callerid": V, "server_ip": SERVER_IP, "result": "Busy"}),
        ],
        [
            closed(_DIALLED),
            *carried(ANSWERED, _DIALLED),
            lead_set(status="CPDB"),
            updated("vicidial_log", {"uniqueid": UID}, status="CPDB"),
        ],
    ),
)

#: Further ENDs on a Local channel.
_OTHER_LOCAL_ENDS: Final = (
    call(
        "E12b",
        said(BUSY.url, _AGENT, M),
        [
            campaign(),
            auto_call(M, status="XFER"),
            lead(),
            leg(M, channel=_AGENT, channel_group="Local Channel Line"),
            leg(M, uniqueid=f"{STEM}.27"),
            dial_log(M),
        ],
        [closed(None, f"{STEM}.27"), *carried(BUSY, _AGENT, M), call_gone(M, status="XFER")],
    ),
    call(
        "busy, code Y",
        said(BUSY.url, _DIALLED, Y),
        [auto_call(Y, status="LIVE"), lead(), leg(Y), dial_log(Y)],
        [
            closed(_DIALLED),
            lead_set(status="AB"),
            call_set("BUSY", Y),
            *log_inserted("AB", Y, campaign_id="SALESLIN"),
        ],
    ),
    call(
        "busy, 18 digits",
        said(BUSY.url, _DIALLED, _SHORT_V),
        [auto_call(_SHORT_V, lead_id=10), lead(lead_id=10), leg(_SHORT_V), dial_log(_SHORT_V, lead_id=10)],
        [closed(_DIALLED), *carried(BUSY, _DIALLED, _SHORT_V, lead_id=10)],
    ),
    call(
        "busy, plain URL",
        said(_ROOT, _DIALLED, V),
        [campaign(), auto_call(), lead(), leg(), dial_log()],
        [closed(_DIALLED)],
    ),
    call(
        "busy, no lead",
        said(BUSY.url, _DIALLED, V),
        [campaign(), auto_call(), leg(), dial_log()],
        [
            closed(_DIALLED),
            *carried(BUSY, _DIALLED),
            call_set("BUSY"),
            *log_inserted("AB", list_id=0, called_count=0),
        ],
    ),
)


# ---- END on any other channel


def outbound_end(
    name: str,
    *,
    vac: Placed | None = None,
    log: Placed | None = None,
    rows: Iterable[Placed] = (),
    changes: Iterable[Row] = (),
    code: str = V,
    settings: Other = _SAME,
    lead_columns: Other = _SAME,
    system: Other = _SAME,
    dialled_s: int = 40,
) -> Scenario:
    """An END of a call that was dialled and answered.

    Args:
        name: The scenario's id.
        vac: The living call.
        log: Its row of ``vicidial_log``.
        rows: Further rows.
        changes: Besides those of ``call_log``, of carrier and dialer.
        code: The caller code.
        settings: Of the campaign.
        lead_columns: Of the lead.
        system: Settings of the system.
        dialled_s: How long ago it was dialled.
    """
    dialled = dial_log(code, call_date=f"{{dt-{dialled_s}}}")
    placed = [campaign(**settings), lead(**lead_columns), leg(code), dialled]
    placed += [row for row in (vac, log) if row is not None]
    expected = [closed(_TRUNK), *carried(ANSWERED, _TRUNK, code), *changes]
    return call(name, said(ANSWERED.url, _TRUNK, code), [*placed, *rows], expected, system=system)


def live(status: str = "LIVE", **other: Any) -> Placed:
    """Give the living call after it was answered."""
    return auto_call(**{"status": status, "uniqueid": UID, **other})


_DROPPED: Final = (call_gone(), lead_set(status="DROP"), log_ended(status="DROP", term_reason="ABANDON"))


def ended_with(name: str, log: Other, lead_status: str, drop_log: bool, **after: Any) -> Scenario:
    """An END whose call has a row of ``vicidial_log``; drops of the dialler are logged.

    Args:
        name: The scenario's id.
        log: What is special about the row.
        lead_status: What the lead gets; empty if nothing.
        drop_log: Whether there is a row of ``vicidial_drop_log``.
        after: What becomes of the row besides its end.
    """
    changes = [call_gone(), log_ended(**after)]
    changes += [lead_set(status=lead_status)] if lead_status else []
    changes += [drop_logged("DROP")] if drop_log else []
    system = {"enable_drop_lists": "2"}
    return outbound_end(name, vac=live(), log=log_row(**log), changes=changes, system=system)


_AGENT_6666: Final = {"status": "INCALL", "user": "6666"}

#: END on any other channel, steps 9 and 11.
_LOGGED: Final = (
    ended_with("E16", _AGENT_6666, "", False, term_reason="CALLER"),
    ended_with("E19", {"user": "6666", "comments": "REMOTE"}, "", True, term_reason="CALLER"),
    ended_with(
        "REMOTE in a comment", {"status": "XFER", "comments": "a REMOTE b"}, "", True, term_reason="CALLER"
    ),
    ended_with(
        "REMOTE, agent",
        {"status": "XFER", "comments": "REMOTE", "user": "6666"},
        "",
        False,
        term_reason="CALLER",
    ),
    ended_with("remote in small", {"comments": "remote"}, "DROP", True, status="DROP", term_reason="ABANDON"),
    ended_with("NA", {"status": "NA"}, "DROP", True, status="DROP", term_reason="ABANDON"),
    ended_with(
        "NEW, agent", {"status": "NEW", "user": "6666"}, "DROP", False, status="DROP", term_reason="CALLER"
    ),
    ended_with("user VDCL", {"user": "VDCL"}, "DROP", True, status="DROP", term_reason="ABANDON"),
    ended_with("QUEUE, agent", {"user": "6666"}, "DROP", True, status="DROP", term_reason="CALLER"),
    ended_with(
        "drop, AGENT",
        {"status": "XFER", "user": "6666", "term_reason": "AGENT"},
        "DROP",
        False,
        status="DROP",
    ),
    ended_with("drop, CALLER", {"term_reason": "CALLER"}, "DROP", True, status="DROP"),
    ended_with("drop, SYSTEM", {"term_reason": "SYSTEM"}, "DROP", True, status="DROP", term_reason="ABANDON"),
    ended_with(
        "drop, AFTERHOURS", {"term_reason": "AFTERHOURS"}, "DROP", True, status="DROP", term_reason="ABANDON"
    ),
    ended_with("no drop, user VDAD", {"status": "A"}, "", True, term_reason="CALLER"),
    ended_with("no drop, no user", {"status": "A", "user": ""}, "", True, term_reason="CALLER"),
    ended_with(
        "no drop, QUEUETIMEOUT",
        {**_AGENT_6666, "term_reason": "QUEUETIMEOUT"},
        "",
        False,
        term_reason="CALLER",
    ),
    ended_with("almost XFER", {"status": "XFERX"}, "", True, term_reason="CALLER"),
    ended_with("contains QUEUE", {"status": "XQUEUE", "user": "6666"}, "", True, term_reason="CALLER"),
)

_TWO_SAME_LOGS: Final = (log_row(uniqueid=f"{STEM}.25"), log_row(uniqueid=f"{STEM}.3"))
_OTHERS_CODE: Final = "V1202150310000000102"
_HIGH_V: Final = "V1202150310000500000"

#: END on any other channel, steps 1 to 8.
_UNLOGGED: Final = (
    outbound_end("E21"),
    outbound_end("no VAC, but a log", log=log_row()),
    outbound_end("VAC of another code and unique id", vac=live(callerid=_OTHERS_CODE, uniqueid=f"{STEM}.27")),
    outbound_end(
        "two VAC rows",
        vac=live(uniqueid=f"{STEM}.24", stage="older"),
        rows=[live(uniqueid=f"{STEM}.25", call_time="{dt-20}", stage="newer")],
        changes=[call_gone(stage="newer")],
    ),
    outbound_end(
        "VAC of another lead by unique id",
        vac=live(callerid=_OTHERS_CODE, lead_id=102),
        rows=[lead(lead_id=102), log_row(lead_id=102)],
        changes=[
            call_gone(_OTHERS_CODE),
            updated("vicidial_list", {"lead_id": "102"}, status="DROP"),
            log_ended(status="DROP", term_reason="ABANDON"),
        ],
    ),
    outbound_end(
        "log of the same second",
        vac=live(),
        rows=_TWO_SAME_LOGS,
        changes=[
            call_gone(),
            lead_set(status="DROP"),
            log_ended(f"{STEM}.25", status="DROP", term_reason="ABANDON"),
            log_ended(f"{STEM}.3", status="DROP", term_reason="ABANDON"),
        ],
    ),
    outbound_end(
        "log of another second", vac=live(), rows=[log_row(uniqueid="1700000001.26")], changes=[call_gone()]
    ),
    outbound_end(
        "closer row only, drops logged",
        vac=live("CLOSER", campaign_id="SALESLINE"),
        rows=[closer_row()],
        changes=[call_gone(), lead_set(status="DROP"), drop_logged("DROP", "SALESLINE")],
        system={"enable_drop_lists": "2"},
    ),
    outbound_end(
        "closer row only, agent",
        vac=live("CLOSER", campaign_id="SALESLINE"),
        rows=[closer_row(status="INCALL", user="6666")],
        changes=[call_gone()],
    ),
    outbound_end("SENT, but a log", vac=auto_call(), log=log_row(), changes=_DROPPED),
    outbound_end(
        "SENT, but a closer row",
        vac=auto_call(),
        rows=[closer_row()],
        changes=[call_gone(), lead_set(status="DROP")],
    ),
    outbound_end("log before closer row", vac=live(), log=log_row(), rows=[closer_row()], changes=_DROPPED),
    outbound_end(
        "drop logged before",
        vac=live(),
        log=log_row(),
        rows=[("vicidial_drop_log", {**drop_logged("DROP")["row"], "drop_date": "{dt-5}"})],
        changes=[*_DROPPED, drop_logged("DROP")],
        system={"enable_drop_lists": "2"},
    ),
    call(
        "PDROP, no lead",
        said(ANSWERED.url, _TRUNK, V),
        [auto_call(), leg(), dial_log()],
        [
            closed(_TRUNK),
            *carried(ANSWERED, _TRUNK),
            call_gone(),
            *log_inserted("PDROP", list_id=0, called_count=0),
        ],
    ),
    outbound_end(
        "PDROP, drops of in-groups logged",
        vac=auto_call(),
        changes=[call_gone(), lead_set(status="PDROP"), *log_inserted("PDROP")],
        system={"enable_drop_lists": "1"},
    ),
    call(
        "PDROP over the guard",
        said(ANSWERED.url, _TRUNK, _HIGH_V),
        [
            auto_call(_HIGH_V, lead_id=500_000),
            lead(lead_id=500_000),
            leg(_HIGH_V),
            dial_log(_HIGH_V, lead_id=500_000),
        ],
        [
            closed(_TRUNK),
            *carried(ANSWERED, _TRUNK, _HIGH_V, lead_id=500_000),
            call_gone(_HIGH_V),
            updated("vicidial_list", {"lead_id": "500000"}, status="PDROP"),
            *log_inserted("PDROP", _HIGH_V, lead_id=500_000),
        ],
    ),
    call(
        "no PDROP, 18 digits",
        said(ANSWERED.url, _TRUNK, _SHORT_V),
        [auto_call(_SHORT_V, lead_id=10), lead(lead_id=10), leg(_SHORT_V), dial_log(_SHORT_V, lead_id=10)],
        [closed(_TRUNK), *carried(ANSWERED, _TRUNK, _SHORT_V, lead_id=10), call_gone(_SHORT_V)],
    ),
    outbound_end(
        "ring_callerid of others",
        vac=live(),
        rows=[
            (
                "vicidial_live_agents",
                {"user": "6666", "server_ip": "10.0.0.2", "lead_id": 0, "ring_callerid": V},
            ),
            ("vicidial_live_agents", {"user": "7", "server_ip": SERVER_IP, "lead_id": 0, "ring_callerid": M}),
        ],
        changes=[call_gone(), updated("vicidial_live_agents", {"user": "6666"}, ring_callerid="")],
    ),
    call(
        "O16",
        said(_ROOT, _TRUNK, V),
        [campaign(), live(), lead(), leg(), dial_log(), log_row()],
        [closed(_TRUNK), *_DROPPED],
    ),
)


def inbound_end(
    name: str,
    closer: Iterable[Placed],
    changes: Iterable[Row],
    *,
    vac: Other = _SAME,
    system: Other = _SAME,
    rows: Iterable[Placed] = (),
    gone: bool = True,
) -> Scenario:
    """An END of a call that came in; its in-group resets the leads of those who gave up.

    Args:
        name: The scenario's id.
        closer: Rows of ``vicidial_closer_log``.
        changes: Besides those of ``call_log`` and the living call.
        vac: What is special about the living call.
        system: Settings of the system.
        rows: Further rows.
        gone: Whether the living call goes.
    """
    living = auto_call(Y, **{"status": "LIVE", "uniqueid": UID, "stage": "LIVE-0", **vac})
    groups = [
        ("vicidial_inbound_groups", {"group_id": group, "drop_lead_reset": resets})
        for group, resets in (("SALESLINE", "Y"), ("NORESET", "N"), ("AGENTDIRECT", "N"))
    ]
    expected = [closed(None), *([call_gone(Y)] if gone else []), *changes]
    placed = [living, lead(), did_leg(), *groups, *closer, *rows]
    return call(name, said(NOT_DIALLED.url, _CARRIER, Y), placed, expected, system=system)


_RESET: Final = lead_set(status="DROP", called_since_last_reset="N")
_ABANDONED: Final = closer_ended(status="DROP", queue_seconds="~30", term_reason="ABANDON")
_WITH_AGENT: Final = closer_row(status="INCALL", user="6666")
_CALLER: Final = closer_ended(term_reason="CALLER")

#: END on any other channel, steps 3, 7 and 9 to 11, of calls that came in.
_INBOUND: Final = (
    inbound_end("E24", [_WITH_AGENT], [_CALLER]),
    inbound_end("row of vicidial_log beside", [_WITH_AGENT, log_row()], [_CALLER]),
    inbound_end("row of vicidial_log only", [log_row()], []),
    inbound_end(
        "VAC of another lead, inbound",
        [closer_row(lead_id=102)],
        [
            _ABANDONED,
            updated("vicidial_list", {"lead_id": "102"}, status="DROP", called_since_last_reset="N"),
        ],
        vac={"lead_id": 102},
        rows=[lead(lead_id=102)],
    ),
    call(
        "short Y",
        said(NOT_DIALLED.url, _CARRIER, "Y12345", callerid="unknown"),
        [auto_call("Y12345", status="LIVE", uniqueid=UID), lead(), did_leg(), _WITH_AGENT],
        [closed(None), call_gone("Y12345"), _CALLER],
    ),
    call(
        "Y with three digits",
        said(NOT_DIALLED.url, _CARRIER, "Y123ab", callerid="unknown"),
        [auto_call("Y123ab", status="LIVE", uniqueid=UID), lead(), did_leg(), _WITH_AGENT],
        [closed(None), call_gone("Y123ab")],
    ),
    inbound_end("E27b", [_WITH_AGENT], [_CALLER], vac={"status": "IVR"}),
    inbound_end(
        "IVR of another unique id beside a call",
        [_WITH_AGENT],
        [_CALLER, call_gone(Y, uniqueid=f"{STEM}.24")],
        vac={"status": "IVR", "uniqueid": f"{STEM}.99", "call_time": "{dt-20}"},
        rows=[auto_call(Y, status="LIVE", uniqueid=f"{STEM}.24")],
        gone=False,
    ),
    inbound_end("DONE", [closer_row(status="DONE", user="6666", term_reason="AGENT")], [_CALLER]),
    inbound_end("XFER", [closer_row(status="XFER", user="6666")], [lead_set(status="DROP"), _CALLER]),
    inbound_end("XFER, no agent", [closer_row(status="XFER")], [lead_set(status="DROP"), _CALLER]),
    inbound_end("XFER, REMOTE", [closer_row(status="XFER", comments="REMOTE")], [_CALLER]),
    inbound_end(
        "QUEUE, REMOTE", [closer_row(comments="REMOTE")], [_ABANDONED, lead_set(called_since_last_reset="N")]
    ),
    inbound_end(
        "contains QUEUE, inbound",
        [closer_row(status="XQUEUE", user="6666")],
        [closer_ended(status="DROP", queue_seconds="~30", term_reason="CALLER")],
    ),
    inbound_end(
        "QUEUE, agent, inbound",
        [closer_row(user="6666")],
        [closer_ended(status="DROP", queue_seconds="~30", term_reason="CALLER"), lead_set(status="DROP")],
    ),
    inbound_end("no user", [closer_row(user="")], [_ABANDONED, _RESET]),
    inbound_end("user VDAD, inbound", [closer_row(user="VDAD")], [_ABANDONED, _RESET]),
    *(
        inbound_end(
            f"QUEUE, {reason}",
            [closer_row(term_reason=reason)],
            [closer_ended(status="DROP", queue_seconds="~30"), lead_set(status="DROP")],
        )
        for reason in (
            "AGENT",
            "CALLER",
            "QUEUETIMEOUT",
            "AFTERHOURS",
            "HOLDRECALLXFER",
            "HOLDTIME",
            "NOAGENT",
        )
    ),
    *(
        inbound_end(f"QUEUE, {reason}", [closer_row(term_reason=reason)], [_ABANDONED, _RESET])
        for reason in ("ACFILTER", "CLOSETIME")
    ),
    inbound_end("closer row of another call", [closer_row(uniqueid="1600000000.1")], [_ABANDONED, _RESET]),
    inbound_end("closer row of another lead", [closer_row(lead_id=102)], []),
    inbound_end("closer row of seven hours ago", [closer_row(call_date="{dt-25200}")], []),
    inbound_end(
        "closer row of five hours ago",
        [closer_row(call_date="{dt-18000}", start_epoch="{ep-18000}", status="INCALL", user="6666")],
        [closer_ended(18_000, term_reason="CALLER")],
    ),
    inbound_end(
        "two closer rows",
        [
            closer_row(closecallid=7, comments="first"),
            closer_row(closecallid=8, status="INCALL", user="6666"),
        ],
        [closer_ended(key={"closecallid": 8}, term_reason="CALLER")],
    ),
    inbound_end(
        "a newer closer row is older than six hours",
        [closer_row(closecallid=7, status="INCALL"), closer_row(closecallid=8, call_date="{dt-25200}")],
        [closer_ended(key={"closecallid": 7}, term_reason="CALLER")],
    ),
    inbound_end(
        "in-group without reset",
        [closer_row()],
        [_ABANDONED, lead_set(status="DROP")],
        vac={"campaign_id": "NONE"},
    ),
    inbound_end(
        "in-group with N",
        [closer_row()],
        [_ABANDONED, lead_set(status="DROP")],
        vac={"campaign_id": "NORESET"},
    ),
    inbound_end(
        "AGENTDIRECT without agent",
        [closer_row()],
        [_ABANDONED, lead_set(status="DROP")],
        vac={"campaign_id": "AGENTDIRECT"},
    ),
    inbound_end(
        "AGENTDIRECT, one character",
        [closer_row()],
        [_ABANDONED, lead_set(status="DROP")],
        vac={"campaign_id": "AGENTDIRECT", "agent_only": "6"},
    ),
    inbound_end(
        "AGENTDIRECT, small, agent talks",
        [_WITH_AGENT],
        [closer_ended(term_reason="CALLER", user="7777")],
        vac={"campaign_id": "AgentDirect_2", "agent_only": "7777"},
    ),
    inbound_end(
        "agent_only without AGENTDIRECT", [closer_row()], [_ABANDONED, _RESET], vac={"agent_only": "6666"}
    ),
    inbound_end(
        "drops logged, 2, inbound",
        [closer_row()],
        [_ABANDONED, _RESET, drop_logged("DROP", "SALESLINE")],
        system={"enable_drop_lists": "2"},
    ),
    inbound_end(
        "drops logged, agent in queue",
        [closer_row(user="6666")],
        [
            closer_ended(status="DROP", queue_seconds="~30", term_reason="CALLER"),
            lead_set(status="DROP"),
            drop_logged("DROP", "SALESLINE"),
        ],
        system={"enable_drop_lists": "1"},
    ),
    inbound_end("drops logged, agent", [_WITH_AGENT], [_CALLER], system={"enable_drop_lists": "1"}),
    inbound_end(
        "drops logged, no drop",
        [closer_row(status="AFTHRS", term_reason="AFTERHOURS")],
        [closer_ended(), drop_logged("DROP", "SALESLINE")],
        system={"enable_drop_lists": "1"},
    ),
    call(
        "inbound by the name in the URL",
        said(f"{_ROOT}--fullCID--h-----ALL-----3125551212-----{Y}", _CARRIER, "x"),
        [auto_call(Y, status="LIVE", uniqueid=UID), lead(), did_leg(), _WITH_AGENT],
        [closed(None), call_gone(Y), _CALLER],
    ),
)


# ---- parts of every END


def desk_end(
    name: str,
    rows: Iterable[Placed],
    changes: Iterable[Row],
    *,
    code: str = "7275554444",
    said_otherwise: Other = _SAME,
    hangup: Hangup = ANSWERED,
    leg_columns: Other = _SAME,
    channel: str | None = _TRUNK,
) -> Scenario:
    """An END of a call that is none of VICIdial's, if its code does not say so.

    Args:
        name: The scenario's id.
        rows: Besides its row of ``call_log``.
        changes: Besides its end there.
        code: The caller's number and name.
        said_otherwise: What Asterisk says differently.
        hangup: Its facts.
        leg_columns: Of its row of ``call_log``.
        channel: What that row's channel becomes; None leaves it.
    """
    agi = {**said(hangup.url, _TRUNK, code, callerid=code), **said_otherwise}
    return call(name, agi, [leg(code, **leg_columns), *rows], [closed(channel), *changes])


def other_end(name: str, **said_otherwise: str) -> Scenario:
    """An END that is told by its extension."""
    return desk_end(name, [], [], said_otherwise=said_otherwise)


_BARGE: Final = "BB120215031000000001"
_BLIND: Final = "BM120215031000000001"
_PRESS: Final = "T1202150310000000101"


def monitor(code: str, **other: Any) -> Placed:
    """Give a row of a manager's listening."""
    return "vicidial_rt_monitor_log", {"caller_code": code, "monitor_start_time": "{dt-60}", **other}


def monitored(code: str) -> Row:
    """Expect that a manager's listening is ended."""
    key = {"caller_code": code}
    return updated("vicidial_rt_monitor_log", key, monitor_end_time="{t}", monitor_sec="~60")


def park(**other: Any) -> Placed:
    """Give a row of ``park_log``."""
    return "park_log", {
        "uniqueid": UID,
        "status": "PARKED",
        "server_ip": SERVER_IP,
        "parked_time": "{dt-60}",
        **other,
    }


def unparked(parked_s: int, talked_s: int, **key: Any) -> Row:
    """Expect that a row of ``park_log`` is ended."""
    talked = f"~{talked_s}" if talked_s else 0
    return updated(
        "park_log", key, status="HUNGUP", hangup_time="{t}", parked_sec=f"~{parked_s}", talked_sec=talked
    )


def recording(number: int, **other: Any) -> Placed:
    """Give an open row of ``recording_log``."""
    return "recording_log", {
        "recording_id": number,
        "start_time": "{dt-30}",
        "start_epoch": "{ep-30}",
        "filename": f"f{number}",
        "vicidial_id": UID,
        **other,
    }


def recorded_until_now(number: int, seconds: int = 30) -> Row:
    """Expect that a recording is ended."""
    return updated("recording_log", {"recording_id": str(number)}, **_ended(seconds))


def did_end(name: str, rows: Iterable[Placed], changes: Iterable[Row], **leg_columns: Any) -> Scenario:
    """An END of a call that came in and has no living call."""
    placed = [did_leg(**leg_columns), *rows]
    return call(name, said(NOT_DIALLED.url, _CARRIER, Y), placed, [closed(None), *changes])


#: The request grammar, stage and process, and END, steps 4 to 8.
_COMMON: Final = (
    other_end("extension H", extension="H"),
    other_end("extension oh", extension="oh"),
    other_end("extension h1", extension="h1"),
    other_end("extension h in quotes", extension='"h";'),
    other_end("h behind ANI", extension="*3125551212*h*"),
    other_end("other process", request="agi://127.0.0.1:4577/call_log--HVcauses--PRI-----NODEBUG-----16"),
    call(
        "another process",
        said("agi://127.0.0.1:4577/logging--HVcauses--PRI-----NODEBUG-----17-----BUSY", _TRUNK, V),
        [leg(), live(), lead()],
    ),
    call(
        "O01",
        said(ANSWERED.url, _TRUNK, "7275554444", callerid="7275554444"),
        [leg("7275554444"), leg("7275554444", uniqueid=f"{UID}99", channel_group="DOUBLE_LOG")],
        [closed(_TRUNK), closed(None, f"{UID}99")],
    ),
    desk_end("99, but no double", [leg("1", uniqueid=f"{UID}99")], []),
    desk_end("ended before", [], [], leg_columns={"end_time": "{dt-20}", "end_epoch": "{ep-20}"}),
    desk_end("O21", [], [carried(ANSWERED, _TRUNK, "V12345", lead_id=0)[0]], code="V12345"),
    desk_end(
        "Victor",
        [],
        [carried(ANSWERED, _TRUNK, "Victor", lead_id=0)[0]],
        code="Victor",
        said_otherwise={"callerid": "unknown", "calleridname": "Victor Hugo"},
    ),
    desk_end(
        "Mary",
        [],
        [carried(ANSWERED, _TRUNK, "Mary", lead_id=0)[0]],
        code="Mary",
        said_otherwise={"callerid": "unknown", "calleridname": "Mary Smith"},
        channel=None,
    ),
    desk_end("barge", [monitor(_BARGE)], [monitored(_BARGE)], code=_BARGE),
    desk_end("BM, not blind", [monitor(_BLIND)], [], code=_BLIND),
    desk_end("barge ended", [monitor(_BARGE, monitor_end_time="{dt-20}")], [], code=_BARGE),
    desk_end("barge begun", [monitor(_BARGE, monitor_end_time="{dt-60}")], [monitored(_BARGE)], code=_BARGE),
    desk_end(
        "press hung up",
        [
            ("vicidial_3way_press_live", {"call_3way_id": _PRESS, "status": "AGENT_HUNGUP"}),
            ("vicidial_3way_press_log", {"call_3way_id": _PRESS, "result": "Started"}),
        ],
        [],
        code=_PRESS,
    ),
    desk_end(
        "press not live",
        [("vicidial_3way_press_log", {"call_3way_id": _PRESS, "result": "x"})],
        [],
        code=_PRESS,
    ),
    desk_end(
        "live_inbound of others",
        [
            ("live_inbound", {"uniqueid": UID, "channel": "x", "server_ip": SERVER_IP}),
            ("live_inbound", {"uniqueid": f"{STEM}.25", "channel": "x", "server_ip": SERVER_IP}),
        ],
        [deleted("live_inbound", {"uniqueid": UID})],
    ),
    desk_end(
        "live_inbound of another server",
        [("live_inbound", {"uniqueid": UID, "channel": "x", "server_ip": "10.0.0.2"})],
        [],
    ),
    desk_end("P06", [park()], [unparked(60, 0)]),
    desk_end("parked again", [park(grab_time="{dt-90}")], [unparked(60, 0)]),
    desk_end("parked for 0 s", [park(parked_sec=0, grab_time="{dt-20}")], [unparked(40, 60)]),
    desk_end("parked and told", [park(parked_sec=5, grab_time="{dt-20}")], []),
    desk_end("parked on another server", [park(server_ip="10.0.0.2")], []),
    desk_end(
        "parked twice",
        [park(parked_time="{dt-300}"), park(parked_time="{dt-50}")],
        [unparked(50, 0, parked_time="{t-50}")],
    ),
    desk_end(
        "parked twice, newest told",
        [park(parked_time="{dt-100}"), park(parked_time="{dt-50}", grab_time="{dt-30}", parked_sec=20)],
        [unparked(100, 0, parked_time="{t-50}")],
    ),
    did_end(
        "DID, recordings",
        [recording(7), recording(8, start_time="{dt-20}", start_epoch="{ep-20}")],
        [recorded_until_now(8, 20)],
    ),
    did_end("DID, recording ended", [recording(7, end_epoch="{ep-10}")], []),
    did_end("DID, recording with 0", [recording(7, end_epoch=0)], [recorded_until_now(7)]),
    did_end("DID, recording with 9999", [recording(7, end_epoch=9999)], [recorded_until_now(7)]),
    did_end("DID, recording with 10000", [recording(7, end_epoch=10_000)], []),
    did_end("DID, recording of another", [recording(7, vicidial_id=f"{STEM}.25")], []),
    did_end("DID, end 0", [], [], end_epoch=0),
    desk_end("recording, no DID", [recording(7)], []),
)

_BOTH_LEGS: Final = (
    leg(M, uniqueid=f"{STEM}.25", channel=_AGENT, channel_group="Local Channel Line"),
    leg(M),
)
_SIP_LEG_ENDS: Final = said(ANSWERED.url, _TRUNK, M)

#: END, steps 3 and 5, of calls that agents dialled.
_MANUAL: Final = (
    call(
        "O11",
        _SIP_LEG_ENDS,
        [
            *_BOTH_LEGS,
            dial_log(M),
            *(
                ("live_inbound", {"uniqueid": uid, "channel": uid, "server_ip": SERVER_IP})
                for uid in (f"{STEM}.25", UID)
            ),
        ],
        [
            closed(None),
            *carried(ANSWERED, _TRUNK, M, uniqueid=f"{STEM}.25"),
            deleted("live_inbound", {"uniqueid": f"{STEM}.25"}),
            deleted("live_inbound", {"uniqueid": UID}),
        ],
    ),
    call(
        "two legs of a manual call",
        said(ANSWERED.url, _TRUNK, M),
        [leg(M, channel="SIP/a"), leg(M, uniqueid=f"{STEM}.27", channel="SIP/b"), dial_log(M)],
        [closed(None, f"{STEM}.27"), *carried(ANSWERED, _TRUNK, M)],
    ),
    call(
        "manual, agent hears, SIP",
        _SIP_LEG_ENDS,
        [campaign(), live("XFER", callerid=M), lead(), leg(M), dial_log(M), log_row(**_AGENT_6666)],
        [closed(None), *carried(ANSWERED, _TRUNK, M), call_gone(M), log_ended(term_reason="CALLER")],
    ),
    call("manual, no leg", _SIP_LEG_ENDS, [lead(), dial_log(M)], carried(ANSWERED, _TRUNK, M)),
)


def parked(name: str, rows: Iterable[Placed], gone: bool) -> Scenario:
    """An END of a call that is or was parked, while an agent has it; see END on any other channel, step 2."""
    changes = [call_gone(), log_ended(term_reason="CALLER")] if gone else []
    return outbound_end(name, vac=live("XFER"), log=log_row(**_AGENT_6666), rows=rows, changes=changes)


def parked_lately(server_ip: str, seconds: int, code: str = V) -> Placed:
    """Give a row of ``parked_channels_recent``."""
    return "parked_channels_recent", {
        "channel": _TRUNK,
        "server_ip": server_ip,
        "channel_group": code,
        "park_end_time": f"{{dt-{seconds}}}",
    }


_PARKED: Final = (
    call(
        "P01",
        said(ANSWERED.url, _TRUNK, V),
        [
            campaign(),
            live("XFER"),
            lead(),
            leg(),
            dial_log(),
            log_row(**_AGENT_6666),
            park(),
            ("live_inbound", {"uniqueid": UID, "channel": "x", "server_ip": SERVER_IP}),
            ("parked_channels", {"channel": _TRUNK, "server_ip": "10.0.0.2", "channel_group": V}),
        ],
    ),
    parked(
        "another call is parked",
        [("parked_channels", {"channel": "x", "server_ip": "10.0.0.2", "channel_group": M})],
        True,
    ),
    parked("parked three hours ago", [parked_lately("10.0.0.2", 10_800)], True),
    parked("parked one hour ago", [parked_lately("10.0.0.2", 3_600)], False),
    parked("parked lately, short address", [parked_lately("::1", 60)], True),
    parked("parked lately, another code", [parked_lately("10.0.0.2", 60, M)], True),
    parked(
        "parked elsewhere, then here", [parked_lately("10.0.0.2", 600), parked_lately(SERVER_IP, 60)], True
    ),
    parked(
        "parked here, then elsewhere", [parked_lately("10.0.0.2", 60), parked_lately(SERVER_IP, 600)], False
    ),
)


# ---- QueueMetrics


def queue_row(verb: str, *data: str, code: str = V, queue: str = "TESTCAMP", agent: str = "NONE") -> Row:
    """Expect a row of ``queue_log`` with ``data1`` to ``data4``."""
    row = {
        "partition": "P01",
        "time_id": "{t}",
        "call_id": code,
        "queue": queue,
        "agent": agent,
        "verb": verb,
        **{f"data{number}": text for number, text in enumerate(data, start=1)},
        "data5": "",
        "serverid": "VIC",
    }
    return inserted("queue_log", row)


def connected(seconds: int, agent: str, data4: str, code: str = V, verb: str = "CONNECT") -> Placed:
    """Give a row of ``queue_log``."""
    return "queue_log", {
        "partition": "P01",
        "time_id": f"{{ep-{seconds}}}",
        "call_id": code,
        "queue": "TESTCAMP",
        "agent": agent,
        "verb": verb,
        "data4": data4,
    }


_MEASURED: Final = {"enable_queuemetrics_logging": "1"}


def waited(name: str, stage: str, data3: str) -> Scenario:
    """An END of a call that waited; the stage says how long."""
    changes = [*_DROPPED, queue_row("ABANDON", "1", "1", data3, "")]
    return outbound_end(name, vac=live(stage=stage), log=log_row(), changes=changes, system=_MEASURED)


_INBOUND_QUEUE: Final = (
    auto_call("Y1202150310000000102", status="LIVE", lead_id=102, uniqueid=f"{STEM}.1", call_time="{dt-100}"),
    auto_call("Y1202150310000000103", status="LIVE", lead_id=103, uniqueid=f"{STEM}.2", call_time="{dt-90}"),
    auto_call("Y1202150310000000104", status="XFER", lead_id=104, uniqueid=f"{STEM}.3", call_time="{dt-80}"),
    auto_call("Y1202150310000000105", status="LIVE", lead_id=105, uniqueid=f"{STEM}.4", call_time="{dt-10}"),
    auto_call(
        "Y1202150310000000106",
        status="LIVE",
        lead_id=106,
        uniqueid=f"{STEM}.5",
        call_time="{dt-80}",
        campaign_id="OTHER",
    ),
)

#: QueueMetrics' queue_log, and END on any other channel, step 5.
_QUEUE_LOG: Final = (
    inbound_end("Q04", [_WITH_AGENT], [_CALLER], vac={"status": "IVR"}, system=_MEASURED),
    waited("queue, no stage", "START", "0"),
    waited("queue, short wait", "LIVE-0.2", "0"),
    waited("queue, a quarter", "LIVE-0.25", "0.25"),
    waited("queue, two dashes", "LIVE-3-12", "12"),
    outbound_end(
        "queue, newest agent",
        vac=live("XFER", stage="XFER-3.5"),
        log=log_row(**_AGENT_6666),
        rows=[
            connected(60, "Agent/1", "old"),
            connected(30, "Agent/6666", "new"),
            connected(20, "Agent/2", "theirs", M),
            connected(10, "Agent/3", "entry", verb="ENTERQUEUE"),
        ],
        changes=[
            call_gone(),
            log_ended(term_reason="CALLER"),
            queue_row("COMPLETECALLER", "3.5", "40", "1", "new", agent="Agent/6666"),
        ],
        system=_MEASURED,
    ),
    inbound_end(
        "queue, inbound, agent",
        [_WITH_AGENT],
        [
            _CALLER,
            queue_row("COMPLETECALLER", "5", "40", "2", "x", code=Y, queue="SALESLINE", agent="Agent/6666"),
        ],
        vac={"stage": "XFER-5", "status": "XFER"},
        rows=[connected(30, "Agent/6666", "x", Y)],
        system=_MEASURED,
    ),
    inbound_end(
        "queue, waiting calls",
        [closer_row()],
        [_ABANDONED, _RESET, queue_row("ABANDON", "3", "2", "7", "", code=Y, queue="SALESLINE")],
        vac={"stage": "LIVE-7"},
        rows=_INBOUND_QUEUE,
        system=_MEASURED,
    ),
    inbound_end(
        "queue, closer row of another call",
        [closer_row(uniqueid=f"{STEM}.25", queue_position=4)],
        [_ABANDONED, _RESET, queue_row("ABANDON", "1", "1", "7", "", code=Y, queue="SALESLINE")],
        vac={"stage": "LIVE-7"},
        rows=_INBOUND_QUEUE,
        system=_MEASURED,
    ),
)


# ---- the next number


_STATUSES: Final = " B NA DROP DNCL DNCC -"


def next_number(
    name: str,
    auto_alt_dial: str,
    hopper: Row | None,
    *rows: Placed,
    lead_columns: Other = _SAME,
    alt_dial: str = "NONE",
    system: Other = _SAME,
    **settings: Any,
) -> Scenario:
    """An END of a call that was dropped, whose lead may have other numbers; see auto-alt-dial.

    Args:
        name: The scenario's id.
        auto_alt_dial: Of the campaign.
        hopper: The row of the hopper, if there is one.
        rows: Further rows.
        lead_columns: Of the lead, besides a good alternative number.
        alt_dial: Which number was dialled.
        system: Settings of the system.
        settings: Of the campaign.
    """
    return outbound_end(
        name,
        vac=live(alt_dial=alt_dial),
        log=log_row(),
        rows=[("vicidial_lists", {"list_id": 999, "campaign_id": "TESTCAMP"}), *rows],
        changes=[*_DROPPED, *([hopper] if hopper else [])],
        settings={"auto_alt_dial_statuses": _STATUSES, "auto_alt_dial": auto_alt_dial, **settings},
        lead_columns={"alt_phone": _ALT, **lead_columns},
        system=system,
    )


def numbers(*actives: str, phone_code: str = "1") -> tuple[Placed, ...]:
    """Give extended numbers 3125550001 and up, each with its ``active``; empty for a gap."""
    return tuple(
        (
            "vicidial_list_alt_phones",
            {
                "lead_id": 101,
                "phone_code": phone_code,
                "phone_number": f"312555{number:04d}",
                "alt_phone_count": number,
                "active": active,
            },
        )
        for number, active in enumerate(actives, start=1)
        if active
    )


def not_to_call(number: str, group: str = "") -> Placed:
    """Give a number nobody wants called: by the system, or by one campaign."""
    if group:
        return "vicidial_campaign_dnc", {"phone_number": number, "campaign_id": group}
    return "vicidial_dnc", {"phone_number": number}


_QUEUED_ALT: Final = queued("ALT", 25)
_ADDR3: Final = {"address3": "3125554545"}
_NO_ALT: Final = {"alt_phone": ""}
_ALL: Final = "ALT_AND_ADDR3_AND_EXTENDED"

#: Auto-alt-dial.
_NEXT_NUMBERS: Final = (
    next_number("A05", "ALT_AND_ADDR3", queued("ADDR3", 20), lead_columns=_ADDR3, alt_dial="ALT"),
    next_number(
        "A07",
        "ALT_ONLY",
        None,
        not_to_call(_ALT, "OTHER"),
        use_campaign_dnc="Y",
        use_other_campaign_dnc="OTHER",
    ),
    next_number(
        "other campaign's list instead of ours",
        "ALT_ONLY",
        _QUEUED_ALT,
        not_to_call(_ALT, "TESTCAMP"),
        use_campaign_dnc="Y",
        use_other_campaign_dnc="OTHER",
    ),
    next_number("A08b", "ALT_ONLY", _QUEUED_ALT, hopper_hold_inserts="ENABLED"),
    next_number(
        "hold, AUTONEXT",
        "ALT_ONLY",
        queued("ALT", 25, "RHOLD"),
        system={"hopper_hold_inserts": "3"},
        hopper_hold_inserts="AUTONEXT",
    ),
    next_number("hold, DISABLED", "ALT_ONLY", _QUEUED_ALT, system={"hopper_hold_inserts": "1"}),
    next_number(
        "in the hopper already",
        "ALT_ONLY",
        _QUEUED_ALT,
        ("vicidial_hopper", _QUEUED_ALT["row"]),
    ),
    next_number("A10b", "EXTENDED_ONLY", None, *numbers("Y", "Y"), alt_dial="X2"),
    next_number("A11", "EXTENDED_ONLY", queued("X2", 15), *numbers("N", "Y")),
    next_number("several inactive", "EXTENDED_ONLY", queued("X4", 15), *numbers("N", "N", "N", "Y", "Y")),
    next_number("all inactive", "EXTENDED_ONLY", None, *numbers("N", "N")),
    next_number("no extended numbers", "EXTENDED_ONLY", None),
    next_number("a gap", "EXTENDED_ONLY", None, *numbers("", "Y", "Y")),
    next_number("after X2", "EXTENDED_ONLY", queued("X3", 15), *numbers("Y", "Y", "Y"), alt_dial="X2"),
    next_number("after X9", "EXTENDED_ONLY", queued("X10", 15), *numbers(*"YYYYYYYYYYY"), alt_dial="X9"),
    next_number(
        "ALT_AND_EXTENDED after X1", "ALT_AND_EXTENDED", queued("X2", 15), *numbers("Y", "Y"), alt_dial="X1"
    ),
    next_number("XLAST", "EXTENDED_ONLY", None, *numbers("Y", "Y"), alt_dial="XLAST"),
    next_number(
        "A12",
        "EXTENDED_ONLY",
        queued("X1", 15, "DNC"),
        *numbers("Y", "Y"),
        not_to_call("3125550001"),
        use_internal_dnc="Y",
    ),
    next_number(
        "DNCC",
        "EXTENDED_ONLY",
        queued("X1", 15, "DNC"),
        *numbers("Y", "Y"),
        not_to_call("3125550001", "TESTCAMP"),
        use_campaign_dnc="Y",
    ),
    next_number(
        "DNCC, but the system's list",
        "EXTENDED_ONLY",
        queued("X2", 15),
        *numbers("Y", "Y"),
        not_to_call("3125550001"),
        use_internal_dnc="Y",
        auto_alt_dial_statuses=" DROP DNCC -",
    ),
    next_number(
        "DNCL, but the campaign's list",
        "EXTENDED_ONLY",
        queued("X2", 15),
        *numbers("Y", "Y"),
        not_to_call("3125550001", "TESTCAMP"),
        use_campaign_dnc="Y",
        auto_alt_dial_statuses=" DROP DNCL -",
    ),
    next_number(
        "DNC row while held",
        "EXTENDED_ONLY",
        queued("X1", 15, "DNC"),
        *numbers("Y"),
        not_to_call("3125550001"),
        use_internal_dnc="Y",
        hopper_hold_inserts="ENABLED",
        system={"hopper_hold_inserts": "1"},
    ),
    next_number(
        "area code, extended",
        "EXTENDED_ONLY",
        queued("X1", 15, "DNC"),
        *numbers("Y"),
        not_to_call("312XXXXXXX", "TESTCAMP"),
        use_campaign_dnc="AREACODE",
    ),
    next_number("lists not used", "ALT_ONLY", _QUEUED_ALT, not_to_call(_ALT), not_to_call(_ALT, "TESTCAMP")),
    next_number(
        "Y knows no area codes", "ALT_ONLY", _QUEUED_ALT, not_to_call("312XXXXXXX"), use_internal_dnc="Y"
    ),
    next_number("AREACODE knows numbers", "ALT_ONLY", None, not_to_call(_ALT), use_internal_dnc="AREACODE"),
    next_number("campaign's list", "ALT_ONLY", None, not_to_call(_ALT, "TESTCAMP"), use_campaign_dnc="Y"),
    next_number(
        "campaign's area codes",
        "ALT_ONLY",
        None,
        not_to_call("312XXXXXXX", "TESTCAMP"),
        use_campaign_dnc="AREACODE",
    ),
    next_number(
        "number with dashes in the list",
        "ALT_ONLY",
        None,
        not_to_call(_ALT),
        lead_columns={"alt_phone": "312-555-3434"},
        use_internal_dnc="Y",
    ),
    next_number("ALT of 6 digits", "ALT_ONLY", _QUEUED_ALT, lead_columns={"alt_phone": "12-34-56"}),
    next_number("ALT of 5 digits", "ALT_ONLY", None, lead_columns={"alt_phone": "1-2-3-4-5"}),
    next_number("MAIN was dialled", "ALT_ONLY", _QUEUED_ALT, alt_dial="MAIN"),
    next_number("ALT was dialled", "ALT_ONLY", None, alt_dial="ALT"),
    next_number("ADDR3 alone", "ADDR3_ONLY", queued("ADDR3", 20), lead_columns=_ADDR3, alt_dial="MAIN"),
    next_number("ADDR3 after ALT", "ADDR3_ONLY", None, lead_columns=_ADDR3, alt_dial="ALT"),
    next_number("ADDR3 short", "ALT_AND_ADDR3", None, lead_columns={**_NO_ALT, "address3": "12 34"}),
    next_number("NONE", "NONE", None, *numbers("Y"), lead_columns=_ADDR3),
    next_number("A13", "ALT_AND_EXTENDED", queued("X1", 15), *numbers("Y"), lead_columns=_NO_ALT),
    next_number("ALT, then extended", "ALT_AND_EXTENDED", _QUEUED_ALT, *numbers("Y")),
    next_number("extended after ALT", "ALT_AND_EXTENDED", queued("X1", 15), *numbers("Y"), alt_dial="ALT"),
    next_number("all, ALT bad", _ALL, queued("ADDR3", 20), *numbers("Y"), lead_columns={**_NO_ALT, **_ADDR3}),
    next_number(
        "all, after ALT", _ALL, queued("ADDR3", 20), *numbers("Y"), lead_columns=_ADDR3, alt_dial="ALT"
    ),
    next_number("all, after ADDR3", _ALL, queued("X1", 15), *numbers("Y"), alt_dial="ADDR3"),
    next_number("all, after X1", _ALL, queued("X2", 15), *numbers("Y", "Y"), alt_dial="X1"),
    next_number("gate of whole words", "ALT_ONLY", None, auto_alt_dial_statuses=" PDROP XQUEUE DROPX -"),
    next_number("gate of log status", "ALT_ONLY", _QUEUED_ALT, auto_alt_dial_statuses=" QUEUE -"),
    next_number("gate without last space", "ALT_ONLY", None, auto_alt_dial_statuses=" B DROP"),
    outbound_end(
        "gate of VAC status",
        vac=live(),
        changes=[call_gone(), _QUEUED_ALT],
        settings={"auto_alt_dial_statuses": " LIVE -", "auto_alt_dial": "ALT_ONLY"},
        lead_columns={"alt_phone": _ALT},
    ),
    outbound_end(
        "gate of a talk",
        vac=live("XFER"),
        log=log_row(**_AGENT_6666),
        changes=[call_gone(), log_ended(term_reason="CALLER"), _QUEUED_ALT],
        settings={"auto_alt_dial_statuses": " INCALL -", "auto_alt_dial": "ALT_ONLY"},
        lead_columns={"alt_phone": _ALT},
    ),
    outbound_end(
        "list and state of the lead",
        vac=live(),
        log=log_row(),
        changes=[*_DROPPED, queued("ALT", 25, list_id=77, gmt_offset_now="5.50", state="CA")],
        settings={"auto_alt_dial_statuses": _STATUSES, "auto_alt_dial": "ALT_ONLY"},
        lead_columns={"alt_phone": _ALT, "list_id": 77, "gmt_offset_now": "5.50", "state": "CA"},
    ),
)


def threshold(name: str, queues: bool, of_campaign: int, of_list: int, called_count: int = 3) -> Scenario:
    """An END of a call that was dropped before it was routed; see END on any other channel, step 14."""
    log = log_inserted("PDROP", called_count=called_count)
    return outbound_end(
        name,
        vac=auto_call(),
        rows=[("vicidial_lists", {"list_id": 999, "campaign_id": "TESTCAMP", "auto_alt_threshold": of_list})],
        changes=[call_gone(), lead_set(status="PDROP"), *log, *([_QUEUED_ALT] if queues else [])],
        settings={
            "auto_alt_dial_statuses": " PDROP -",
            "auto_alt_dial": "ALT_ONLY",
            "auto_alt_threshold": of_campaign,
        },
        lead_columns={"alt_phone": _ALT, "called_count": called_count},
    )


_THRESHOLDS: Final = (
    threshold("A15b", True, 3, 5),
    threshold("A15c", True, 4, -1),
    threshold("threshold 0 of the list", True, 3, 0),
    threshold("threshold of the list", False, 0, 3),
    threshold("threshold exceeded", False, 3, -1, called_count=9),
    threshold("no threshold", True, 0, -1, called_count=9),
)


# ---- calls of a day


def dialled_before(
    number: str = _ALT, list_id: int = 999, seconds: int = 3_600, phone_code: str = "1", lead_id: int = 101
) -> Placed:
    """Give a call of a number."""
    return "vicidial_lead_24hour_calls", {
        "lead_id": lead_id,
        "list_id": list_id,
        "call_date": f"{{dt-{seconds}}}",
        "phone_number": number,
        "phone_code": phone_code,
    }


def limited(
    name: str,
    queues: bool,
    limit: int,
    *rows: Placed,
    override: Iterable[str] = (),
    auto_alt_dial: str = "ALT_ONLY",
    system: str = "1",
    lead_columns: Other = _SAME,
    alt_dial: str = "ALT",
    **settings: Any,
) -> Scenario:
    """An END after which a number may have been called too often; see the 24-hour limit.

    Args:
        name: The scenario's id.
        queues: Whether the number is queued.
        limit: Of the campaign.
        rows: Further rows.
        override: Lines of the override.
        auto_alt_dial: Of the campaign.
        system: Whether the system has limits.
        lead_columns: Of the lead.
        alt_dial: Which number may be queued.
        settings: Of the campaign.
    """
    area = ("vicidial_phone_codes", {"country_code": 1, "country": "USA", "areacode": "312", "state": "IL"})
    zone = ("vicidial_postal_codes", {"postal_code": "60601", "state": "NY"})
    columns = {"call_limit_24hour_method": "PHONE_NUMBER", "call_limit_24hour": limit, **settings}
    lines = tuple(override)
    if lines:
        columns["call_limit_24hour_override"] = "OVERRIDE"
    priority = {"ALT": 25, "ADDR3": 20}.get(alt_dial, 15)
    return next_number(
        name,
        auto_alt_dial,
        queued(alt_dial, priority, state=lead_columns.get("state", "IL")) if queues else None,
        area,
        zone,
        container("OVERRIDE", *lines),
        *rows,
        lead_columns=lead_columns,
        system={"call_limit_24hour": system},
        **columns,
    )


_CA: Final = {"state": "CA"}
_ONCE: Final = dialled_before()
_LISTS: Final[Row] = {"call_limit_24hour_scope": "CAMPAIGN_LISTS"}

_LIMITED: Final = (
    limited("A14", False, 1, _ONCE),
    limited("limit exceeded", False, 1, _ONCE, dialled_before(seconds=7_200)),
    limited("limit 0", False, 0, _ONCE),
    limited("limit 0, no call", True, 0),
    limited("limit off in the system", True, 1, _ONCE, system="0"),
    limited("limit off in the campaign", True, 1, _ONCE, call_limit_24hour_method="DISABLED"),
    limited("called two days ago", True, 1, dialled_before(seconds=172_800)),
    limited("called 23 hours ago", False, 1, dialled_before(seconds=82_800)),
    limited("another country code", True, 1, dialled_before(phone_code="44")),
    limited("number called for another lead", False, 1, dialled_before(lead_id=102)),
    limited(
        "by lead, another number", False, 1, dialled_before("3125550000"), call_limit_24hour_method="LEAD"
    ),
    limited("by lead, another lead", True, 1, dialled_before(lead_id=102), call_limit_24hour_method="LEAD"),
    limited("list of the campaign", False, 1, _ONCE, **_LISTS),
    limited("list of another campaign", True, 1, dialled_before(list_id=998), **_LISTS),
    outbound_end(
        "campaign without lists, list 1",
        vac=live(),
        log=log_row(),
        rows=[dialled_before(list_id=1)],
        changes=_DROPPED,
        settings={
            "auto_alt_dial_statuses": _STATUSES,
            "auto_alt_dial": "ALT_ONLY",
            "call_limit_24hour_method": "PHONE_NUMBER",
            "call_limit_24hour": 1,
            **_LISTS,
        },
        lead_columns={"alt_phone": _ALT},
        system={"call_limit_24hour": "1"},
    ),
    limited("all lists", False, 1, dialled_before(list_id=998)),
    limited(
        "ADDR3, limit",
        False,
        1,
        dialled_before("3125554545"),
        auto_alt_dial="ADDR3_ONLY",
        lead_columns=_ADDR3,
    ),
    limited(
        "extended, its country code",
        False,
        1,
        *numbers("Y", phone_code="44"),
        dialled_before("3125550001", phone_code="44"),
        auto_alt_dial="EXTENDED_ONLY",
    ),
    limited(
        "extended, the lead's country code",
        True,
        1,
        *numbers("Y", phone_code="44"),
        dialled_before("3125550001"),
        auto_alt_dial="EXTENDED_ONLY",
        alt_dial="X1",
    ),
    limited(
        "ALT too often, then extended",
        True,
        1,
        *numbers("Y"),
        _ONCE,
        auto_alt_dial="ALT_AND_EXTENDED",
        alt_dial="X1",
    ),
    limited("override, area code", False, 9, _ONCE, override=["state => USA,IL,1"]),
    limited("override, higher", True, 1, _ONCE, override=["state => USA,IL,5"]),
    limited("override, another state", True, 9, _ONCE, override=["state => USA,CA,1"]),
    limited("override, another country", True, 9, _ONCE, override=["state => CAN,IL,1"]),
    limited(
        "override, unknown area code",
        True,
        9,
        dialled_before("9995553434"),
        override=["state => USA,IL,1"],
        lead_columns={"alt_phone": "9995553434"},
    ),
    limited(
        "override off",
        True,
        9,
        _ONCE,
        container("DISABLED", "state => USA,IL,1"),
        call_limit_24hour_override="DISABLED",
    ),
    limited("override without container", False, 1, _ONCE, call_limit_24hour_override="MISSING"),
    limited(
        "override, lead's state",
        False,
        9,
        _ONCE,
        override=["method => areacode_state", "state => USA,CA,1"],
        lead_columns=_CA,
    ),
    limited(
        "override, lead's state not looked at",
        True,
        9,
        _ONCE,
        override=["method => state_areacode", "state => USA,CA,1"],
        lead_columns=_CA,
    ),
    limited(
        "override, method too late",
        True,
        9,
        _ONCE,
        override=["state => USA,CA,1", "method => areacode_state"],
        lead_columns=_CA,
    ),
    limited(
        "override, lead's state only lowers",
        False,
        1,
        _ONCE,
        override=["method => areacode_state", "state => USA,CA,5"],
        lead_columns=_CA,
    ),
    limited(
        "override, postal code",
        False,
        9,
        _ONCE,
        override=["method => postcode", "state => USA,NY,1"],
        lead_columns={"postal_code": "60601-1234"},
    ),
    limited("override, postal code not looked at", True, 9, _ONCE, override=["state => USA,NY,1"]),
    limited(
        "override, no postal code",
        True,
        9,
        _ONCE,
        override=["method => postcode", "state => USA,NY,1"],
        lead_columns={"postal_code": ""},
    ),
    limited(
        "override, postal code and state",
        False,
        9,
        _ONCE,
        override=["method => postcode_areacode_state", "state => USA,NY,4", "state => USA,CA,1"],
        lead_columns=_CA,
    ),
)


# ---- quota of calls


_SESSIONS: Final = ("one", "two", "three", "four", "five", "six")
_DAYS: Final = (*_SESSIONS, "seven")
_ALL_DAY: Final = "session_one => 0000,2400 ; all day"


def quota(
    name: str,
    lines: Iterable[str],
    change: Row | None,
    *rows: Placed,
    log: Placed | None = None,
    changes: Iterable[Row] = _DROPPED,
    call_quota: str = "QUOTAS",
    system: str = "1",
    dialled_s: int = 40,
    rank: int = 0,
) -> Scenario:
    """An END after which the lead's calls are counted; see call quota.

    Args:
        name: The scenario's id.
        lines: Of the container with the sessions.
        change: Of the counters, if there is one.
        rows: Further rows.
        log: The call's row of ``vicidial_log``.
        changes: Besides that of the counters.
        call_quota: Of the campaign.
        system: Of the system.
        dialled_s: How long ago the call was dialled.
        rank: The lead's.
    """
    return outbound_end(
        name,
        vac=live(),
        log=log or log_row(),
        rows=[container("QUOTAS", *lines), *rows],
        changes=[*changes, *([change] if change else [])],
        settings={"call_quota_lead_ranking": call_quota},
        lead_columns={"rank": rank},
        system={"call_quota_lead_ranking": system},
        dialled_s=dialled_s,
    )


def counted(status: str, session: str = "one", rank: int = 0) -> Row:
    """Expect a first row of counters."""
    row = {
        "lead_id": 101,
        "list_id": 999,
        "first_call_date": "{t-40}",
        "last_call_date": "{t-40}",
        "status": status,
        "called_count": 3,
        **{f"session_{each}_calls": int(each == session) for each in _SESSIONS},
        **{f"session_{each}_today_calls": int(each == session) for each in _SESSIONS},
        **{f"day_{each}_calls": int(each == "one") for each in _DAYS},
        "rank": rank,
    }
    return inserted("vicidial_lead_call_quota_counts", row)


def counters(first_s: int, last_s: int, **other: Any) -> Placed:
    """Give a row of counters, whose calls were so long ago."""
    return "vicidial_lead_call_quota_counts", {
        "lead_id": 101,
        "list_id": 999,
        "first_call_date": f"{{dt-{first_s}}}",
        "last_call_date": f"{{dt-{last_s}}}",
        "status": "NA",
        "called_count": 2,
        "session_one_calls": 1,
        "day_one_calls": 1,
        "session_one_today_calls": 1,
        "modify_date": f"{{dt-{last_s}}}",
        **other,
    }


def counted_on(**after: Any) -> Row:
    """Expect a change of the counters."""
    key = {"lead_id": "101", "list_id": "999"}
    return updated("vicidial_lead_call_quota_counts", key, status="DROP", called_count=3, **after)


_SECOND_CALL: Final = {"last_call_date": "{t-40}", "session_one_calls": 2, "session_one_today_calls": 2}
_DAY_S: Final = 86_400
_ZERO_RANK: Final = "zero_rank_after_call=>1"
_RANKED_DROP: Final = (
    call_gone(),
    lead_set(status="DROP", rank=0),
    log_ended(status="DROP", term_reason="ABANDON"),
)
_TALKED: Final = (call_gone(), log_ended(term_reason="CALLER"))

_QUOTAS: Final = (
    quota("O18", [_ALL_DAY], counted("DROP")),
    quota("O18b", [_ALL_DAY], counted_on(**_SECOND_CALL, day_two_calls=1), counters(_DAY_S, _DAY_S)),
    quota(
        "quota, third day",
        [_ALL_DAY],
        counted_on(**_SECOND_CALL, day_three_calls=1),
        counters(2 * _DAY_S, _DAY_S),
    ),
    quota(
        "quota, seventh day",
        [_ALL_DAY],
        counted_on(**_SECOND_CALL, day_seven_calls=1),
        counters(6 * _DAY_S, _DAY_S),
    ),
    quota("quota, eighth day", [_ALL_DAY], counted_on(**_SECOND_CALL), counters(7 * _DAY_S, _DAY_S)),
    quota("quota, same call", [_ALL_DAY], counted_on(), counters(_DAY_S, 40)),
    quota(
        "quota, counters of another list", [_ALL_DAY], counted("DROP"), counters(_DAY_S, _DAY_S, list_id=998)
    ),
    quota("quota, changed meanwhile", [_ALL_DAY], None, counters(_DAY_S, _DAY_S, modify_date="{dt+3600}")),
    quota(
        "quota, an agent talked", [_ALL_DAY], counted("INCALL"), log=log_row(**_AGENT_6666), changes=_TALKED
    ),
    quota("quota off in the system", [_ALL_DAY], None, system="0"),
    quota("quota off in the campaign", [_ALL_DAY], None, call_quota="DISABLED"),
    quota("quota, no such container", [_ALL_DAY], None, call_quota="QUOTA"),
    quota("quota, short name", [], counted("DROP"), container("Q", _ALL_DAY), call_quota="Q"),
    quota("quota, backslash", ["session\\_one => 0000,2400"], counted("DROP")),
    quota("quota, no sessions", ["; nothing"], None),
    quota("quota, empty session", ["session_one => 2400,2400"], None),
    quota("quota, session without a comma", ["session_one => 00002400"], None),
    quota("quota, session of three digits", ["session_one => 000,2400"], None),
    quota("quota, session past midnight", ["session_one => 0000,2401"], None),
    quota("quota, last session", [_ALL_DAY, "session_two => 0000,2400"], counted("DROP", "two")),
    quota("quota, dialled long ago", ["session_one => 0001,2400"], None, dialled_s=18_000),
    quota("quota, rank kept", [_ALL_DAY, "zero_rank_after_call => 0"], counted("DROP", rank=5), rank=5),
    quota("quota, rank zeroed", [_ALL_DAY, _ZERO_RANK], counted("DROP"), rank=5, changes=_RANKED_DROP),
    quota("quota, rank below zero", [_ALL_DAY, _ZERO_RANK], counted("DROP", rank=-5), rank=-5),
    outbound_end(
        "quota, not logged",
        vac=live(),
        rows=[container("QUOTAS", _ALL_DAY)],
        changes=[call_gone(), counted("PU")],
        settings={"call_quota_lead_ranking": "QUOTAS"},
        system={"call_quota_lead_ranking": "1"},
    ),
    outbound_end(
        "quota, PDROP",
        vac=auto_call(),
        rows=[container("QUOTAS", _ALL_DAY)],
        changes=[call_gone(), lead_set(status="PDROP"), *log_inserted("PDROP"), counted("PDROP")],
        settings={"call_quota_lead_ranking": "QUOTAS"},
        system={"call_quota_lead_ranking": "2"},
    ),
)


#: All of them; ids such as S02 are the description's own.
ALL: Final = tuple(
    chain(
        _CALLERS,
        _EXTENSIONS,
        _FULL_CALLER_IDS,
        _REWRITES,
        _CHANNELS,
        _DIALLED_STARTS,
        _KHOMP,
        _FAILED_DIALS,
        _LOCAL_ENDS,
        _TOLD_BY_DIALER,
        _CPD,
        _OTHER_LOCAL_ENDS,
        _LOGGED,
        _UNLOGGED,
        _INBOUND,
        _COMMON,
        _MANUAL,
        _PARKED,
        _QUEUE_LOG,
        _NEXT_NUMBERS,
        _THRESHOLDS,
        _LIMITED,
        _QUOTAS,
    )
)


def specified() -> Mapping[str, Scenario]:
    """Give all scenarios, by id."""
    return {each.id: each for each in ALL}
