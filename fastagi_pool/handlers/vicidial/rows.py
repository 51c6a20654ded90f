"""Rows of VICIdial's tables, as the chapters read and write them: only the columns that somebody needs.

Laws:
    * Plain values; nothing here knows SQL. Empty stands for NULL wherever a reader cannot tell the two apart.
    * A setting whose row does not exist has the value that the original assumes: see the defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, NamedTuple


class Server(NamedTuple):
    """One row of ``servers``: our own.

    Attributes:
        agi_output: Where debug lines go: ``NONE``, ``STDERR``, ``FILE`` or ``BOTH``.
        asterisk_version: As VICIdial's installer wrote it, for example ``18.18.1-vici``.
        external_ip: The address seen from outside.
        carrier_logging: ``Y`` if carrier rows are wanted.
    """

    agi_output: str = "NONE"
    asterisk_version: str = ""
    external_ip: str = ""
    carrier_logging: str = ""


class System(NamedTuple):
    """The one row of ``system_settings``; the defaults stand for a missing row.

    Attributes:
        highest_lead_id: None without a row.
        disconnect_mode: ``enhanced_disconnect_logging``.
        drop_lists: ``enable_drop_lists``.
        call_quota: ``call_quota_lead_ranking``.
        day_ends_at: ``timeclock_end_of_day``, as HHMM.
        call_limit_24hour: Above 0 if campaigns may limit the calls of a day.
        hopper_hold: ``hopper_hold_inserts``.
        opensips_cid_name: Above 0 if campaigns may name calls.
        queue_logging: ``enable_queuemetrics_logging``.
    """

    highest_lead_id: int | None = None
    disconnect_mode: int = 0
    drop_lists: int = 0
    call_quota: int = 0
    day_ends_at: str = "0000"
    call_limit_24hour: int = 0
    hopper_hold: int = 0
    opensips_cid_name: int = 0
    queue_logging: int = 0
    queue_host: str = ""
    queue_database: str = ""
    queue_login: str = ""
    queue_password: str = ""
    queue_log_id: str = ""
    queue_socket: str = ""
    queue_socket_url: str = ""


class Campaign(NamedTuple):
    """One row of ``vicidial_campaigns``; names as there, but for two."""

    campaign_id: str
    dial_timeout: str
    manual_dial_timeout: str
    vdad_extension: str
    amd_type: str
    opensips_cid_name: str
    khomp_container: str
    auto_alt_dial: str
    auto_alt_dial_statuses: str
    auto_alt_threshold: int
    use_internal_dnc: str
    use_campaign_dnc: str
    use_other_campaign_dnc: str
    call_quota: str
    limit_method: str
    limit_scope: str
    limit_24hour: int
    limit_override: str
    hopper_hold: str


class AutoCall(NamedTuple):
    """One row of ``vicidial_auto_calls``: a call that is alive in the system ("VAC row").

    Attributes:
        call_time: When it was placed, as the database writes it; empty if the row does not say.
        call_epoch: The same in seconds since 1970; 0 if the row does not say.
    """

    auto_call_id: int
    lead_id: int
    callerid: str
    campaign_id: str
    alt_dial: str
    stage: str
    call_time: str
    call_epoch: int
    uniqueid: str
    status: str
    phone_code: str
    phone_number: str
    queue_position: int
    server_ip: str
    agent_only: str


class CallLogRow(NamedTuple):
    """One row of ``call_log``."""

    uniqueid: str
    channel: str
    channel_group: str
    start_epoch: int
    end_epoch: int


class LogRow(NamedTuple):
    """One row of ``vicidial_log``: an outbound call."""

    start_epoch: int
    status: str
    user: str
    term_reason: str
    comments: str


class CloserRow(NamedTuple):
    """One row of ``vicidial_closer_log``: an inbound or transferred call."""

    closecallid: int
    start_epoch: int
    status: str
    user: str
    term_reason: str
    comments: str
    uniqueid: str


class Lead(NamedTuple):
    """One row of ``vicidial_list``."""

    list_id: int
    called_count: int
    rank: int
    alt_phone: str
    address3: str
    gmt_offset_now: Decimal
    state: str
    phone_code: str
    postal_code: str


class LeadWords(NamedTuple):
    """What of a lead may stand in the URL of a QueueMetrics socket."""

    lead_id: str
    vendor_lead_code: str
    list_id: str
    phone_number: str
    title: str
    first_name: str
    middle_initial: str
    last_name: str
    postal_code: str


class AltPhone(NamedTuple):
    """One row of ``vicidial_list_alt_phones``."""

    phone_number: str
    active: str
    phone_code: str


class ParkRow(NamedTuple):
    """One row of ``park_log``: the epochs of its times, 0 for none."""

    parked_epoch: int
    grab_epoch: int


class Recording(NamedTuple):
    """One row of ``recording_log``."""

    recording_id: int
    start_epoch: int
    end_epoch: str


class QuotaRow(NamedTuple):
    """One row of ``vicidial_lead_call_quota_counts``."""

    first_call_date: datetime | None
    last_call_date: datetime | None


@dataclass(frozen=True, slots=True)
class HopperRow:
    """A row for ``vicidial_hopper``: a number that shall be dialled next."""

    lead_id: int
    campaign_id: str
    status: str
    list_id: int
    gmt_offset_now: Decimal
    state: str
    alt_dial: str
    priority: int


@dataclass(frozen=True, slots=True)
class QueueLogRow:
    """A row for QueueMetrics' ``queue_log``."""

    time_id: int
    call_id: str
    queue: str
    agent: str
    verb: str
    data1: str
    data2: str
    data3: str
    data4: str
    serverid: str


@dataclass(frozen=True, slots=True)
class DropRow:
    """A row for ``vicidial_drop_log``; the database adds the date."""

    uniqueid: str
    server_ip: str
    lead_id: int
    campaign_id: str
    status: str
    phone_code: str
    phone_number: str


# --- rows that are written, and what a call that ends is looked for by


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


class NewLog(NamedTuple):
    """A row for ``vicidial_log``, and its twin for ``vicidial_log_extended``: a call that nobody took."""

    uniqueid: str
    status: str
    list_id: int
    called_count: int
    comments: str
    server_ip: str
    auto_call: AutoCall


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


class LegKey(NamedTuple):
    """By what an END is looked for.

    Attributes:
        uniqueid: Of its channel.
        code: Its caller code; may be empty.
    """

    uniqueid: str
    code: str


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


NO_SERVER: Final = Server()
NO_SYSTEM: Final = System()
