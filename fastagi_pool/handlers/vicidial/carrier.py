"""How the carrier ended a leg: the dialer's row is told, and a carrier row is written.

Laws:
    * Only for legs that VICIdial dialled, and only if the server's row wants it.
    * The first carrier row of a unique id stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from fastagi_pool.handlers.vicidial.grammar import asterisk_minor, begins_v_or_m
from fastagi_pool.handlers.vicidial.rows import CarrierRow

if TYPE_CHECKING:
    from fastagi_pool.database import Statement
    from fastagi_pool.handlers.vicidial.leg import Leg

#: From this generation on Asterisk tells the technology's own cause at hangup.
_TELLS_CAUSE: Final = 12
_SIP: Final = "SIP"


class SipCause(NamedTuple):
    """What the carrier said, as texts: the columns cut and convert them.

    Attributes:
        cause: The SIP status, as ``486``.
        reason: The words behind it.
    """

    cause: str
    reason: str


def is_wanted(leg: Leg, code: str) -> bool:
    """Tell whether a leg gets a carrier row."""
    facts = leg.request.hangup
    return (
        facts is not None
        and facts.dialstatus != ""
        and begins_v_or_m(code)
        and "Y" in leg.server.carrier_logging
    )


def read_sip_cause(asterisk_version: str, tech_cause: str) -> SipCause | None:
    """Read the carrier's words out of the hangup facts.

    Args:
        asterisk_version: As the server's row has it.
        tech_cause: As ``SIP 486 Busy Here``.

    Returns:
        The cause; None if this Asterisk does not tell it, or it is not SIP's.
    """
    if asterisk_minor(asterisk_version) < _TELLS_CAUSE or _SIP not in tech_cause:
        return None
    words = tech_cause.split(" ")
    return SipCause(words[1] if len(words) > 1 else "", " ".join(words[2:]))


def statements(leg: Leg, uniqueid: str, code: str, lead_id: int) -> tuple[Statement, ...]:
    """Make what is to be written about the carrier.

    Args:
        leg: The request, for which :func:`is_wanted`.
        uniqueid: Under which the row is filed; for a manual call perhaps that of another leg.
        code: The caller code.
        lead_id: Out of the code.
    """
    facts = leg.request.hangup
    if facts is None:
        return ()
    told = read_sip_cause(leg.server.asterisk_version, facts.tech_cause)
    tell_dialer: tuple[Statement, ...] = ()
    if told is not None:
        tell_dialer = (leg.tables.set_carrier_cause(code, lead_id, uniqueid, told.cause, told.reason),)
    else:
        cause, reason = leg.tables.carrier_cause(code, lead_id)
        told = SipCause(str(cause), reason)
    row = CarrierRow(
        uniqueid,
        leg.now.text,
        leg.site.server_ip,
        lead_id,
        facts.cause,
        facts.dialstatus,
        leg.request.channel,
        facts.dial_time,
        facts.answered_time,
        told.cause,
        told.reason,
        code,
    )
    return (*tell_dialer, leg.tables.insert_carrier(row))
