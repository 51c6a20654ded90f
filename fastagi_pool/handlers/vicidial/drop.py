"""Calls that had been answered: who ended them, and whether they were dropped.

Laws:
    * All is decided by the log row as it was read, before anything of it was overwritten.
    * None stands for "leave the column alone"; a value is written even if it is there already.
    * The lead becomes a drop whenever the log row says so, whichever of the two logs it is from. A call that
      was dialled, but found in ``vicidial_closer_log`` only, drops its lead and leaves that row alone.
    * Words are searched for with case and all, but for AGENTDIRECT.

Source: VICIdial's FastAGI daemon, observed: END on any other channel, steps 7 to 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fastagi_pool.handlers.vicidial.rows import CloserRow, LogRow

#: The status of a call that nobody took.
DROP: Final = "DROP"

_CALLER: Final = "CALLER"
_ABANDON: Final = "ABANDON"
#: Statuses of a log row whose call no agent has taken, or that was on its way to another.
_UNTAKEN: Final = frozenset({"NA", "NEW", "QUEUE", "XFER"})
#: Statuses of a closer row whose call an agent has taken.
_TAKEN: Final = frozenset({"DONE", "INCALL", "XFER"})
#: Reasons that somebody knew better than we do.
_KEPT: Final = ("AGENT", "CALLER", "QUEUETIMEOUT")
_KEPT_OF_CLOSER: Final = (*_KEPT, "AFTERHOURS", "HOLDRECALLXFER", "HOLDTIME", "NOAGENT")
#: Users that stand for the dialler and for the queues.
_MACHINES: Final = ("VDAD", "VDCL")


@dataclass(frozen=True, slots=True)
class OutboundEnding:
    """How a call ended that was not inbound: what its row of ``vicidial_log`` gets.

    Attributes:
        lead_dropped: Whether the lead's status becomes ``DROP``; true of inbound calls as well.
        status: None to leave it.
        term_reason: None to leave it.
        end_epoch: Seconds since 1970.
        length_s: From the row's start to the end; below 0 if clocks disagree.
    """

    lead_dropped: bool
    status: str | None
    term_reason: str | None
    end_epoch: int
    length_s: int


@dataclass(frozen=True, slots=True)
class CloserEnding:
    """How an inbound call ended: what its row of ``vicidial_closer_log`` gets.

    Attributes:
        status: None to leave it.
        term_reason: None to leave it.
        queue_seconds: None to leave it.
        user: None to leave it.
        end_epoch: Seconds since 1970.
        length_s: From the row's start to the end; below 0 if clocks disagree.
        check_reset: Whether the in-group's ``drop_lead_reset`` is to be asked for; it may set the lead's
            ``called_since_last_reset`` back.
        dropped: Whether the row became a drop. The lead has its own rule: see ``is_drop``.
    """

    status: str | None
    term_reason: str | None
    queue_seconds: int | None
    user: str | None
    end_epoch: int
    length_s: int
    check_reset: bool
    dropped: bool


def is_drop(status: str, comments: str) -> bool:
    """Tell whether a call was dropped; one whose comments say REMOTE never was.

    Args:
        status: Of the log row.
        comments: Of the log row.

    Source: VICIdial's FastAGI daemon, observed: END on any other channel, step 9.
    """
    return status in _UNTAKEN and "REMOTE" not in comments


def drop_reason(term_reason: str, user: str) -> str | None:
    """Return why a call that was dropped ended; None to leave the reason that it has.

    Args:
        term_reason: Of the log row.
        user: Of the log row.

    Source: VICIdial's FastAGI daemon, observed: END on any other channel, step 9.
    """
    return _reason(term_reason, user, _KEPT)


def _reason(term_reason: str, user: str, kept: tuple[str, ...]) -> str | None:
    if any(reason in term_reason for reason in kept):
        return None
    return _ABANDON if _is_nobody(user) else _CALLER


def _is_nobody(user: str) -> bool:
    """Tell whether no agent was with the call."""
    return not user or any(machine in user for machine in _MACHINES)


def end_outbound(row: LogRow | CloserRow, now_epoch: int) -> OutboundEnding:
    """Decide how a call ended that was not inbound.

    Whoever hung up a call that was taken is said to be the caller, even if the row says AGENT: the row of an
    auto call is gone by now if the agent was first.

    Args:
        row: What was found of the call. A closer row is left alone: only ``lead_dropped`` has an effect then,
            because no row of ``vicidial_log`` matches.
        now_epoch: When the request began, in seconds since 1970.

    Source: VICIdial's FastAGI daemon, observed: END on any other channel, step 9.
    """
    dropped = is_drop(row.status, row.comments)
    return OutboundEnding(
        lead_dropped=dropped,
        status=DROP if dropped else None,
        term_reason=drop_reason(row.term_reason, row.user) if dropped else _CALLER,
        end_epoch=now_epoch,
        length_s=now_epoch - row.start_epoch,
    )


def end_closer(row: CloserRow, campaign_id: str, agent_only: str, now_epoch: int) -> CloserEnding:
    """Decide how an inbound call ended.

    Args:
        row: The call's newest closer row.
        campaign_id: Of the auto call: the in-group.
        agent_only: Of the auto call: the agent for whom it waited; counts from two characters on, in
            groups with AGENTDIRECT in their names, in any case.
        now_epoch: When the request began, in seconds since 1970.

    Source: VICIdial's FastAGI daemon, observed: END on any other channel, step 10.
    """
    length_s = now_epoch - row.start_epoch
    taken = row.status in _TAKEN
    reason = _CALLER if taken else _reason(row.term_reason, row.user, _KEPT_OF_CLOSER)
    dropped = "QUEUE" in row.status
    waited_for_agent = "AGENTDIRECT" in campaign_id.upper() and len(agent_only) > 1
    return CloserEnding(
        status=DROP if dropped else None,
        term_reason=reason,
        queue_seconds=length_s if dropped else None,
        user=agent_only if waited_for_agent else None,
        end_epoch=now_epoch,
        length_s=length_s,
        check_reset=reason == _ABANDON,
        dropped=dropped,
    )


def new_status(so_far: str, *dropped: bool) -> str:
    """Return the status that the call has got by its end, for those who come after.

    Args:
        so_far: What it has got before; whatever it is, it stays. Empty for none.
        dropped: Whether the lead became a drop, and whether the closer row did; either is enough.

    Source: VICIdial's FastAGI daemon, observed: END on any other channel, steps 9 and 10.
    """
    return so_far or (DROP if any(dropped) else "")


def wants_drop_row(inbound: bool, drop_lists: int, user: str, log_status: str) -> bool:
    """Tell whether a call whose log row was found goes into ``vicidial_drop_log``, be it a drop or not.

    Args:
        inbound: Whether the call came in.
        drop_lists: ``enable_drop_lists``: 0 for none, 1 for inbound calls, 2 for all.
        user: Of the log row as it was read, not the one that ``end_closer`` may have put there.
        log_status: Of the log row as it was read.

    Source: VICIdial's FastAGI daemon, observed: END on any other channel, step 11.
    """
    is_listed = drop_lists > (0 if inbound else 1)
    return is_listed and (_is_nobody(user) or "QUEUE" in log_status)


def is_unrouted(auto_dialled: bool, auto_call_status: str) -> bool:
    """Tell whether a call without a log row was answered, but never taken by the routing script: a ``PDROP``.

    Args:
        auto_dialled: Whether the code is that of an auto-dialled call; manual calls are never routed.
        auto_call_status: Of the auto call, as it was read.

    Source: VICIdial's FastAGI daemon, observed: END on any other channel, step 8.
    """
    return auto_dialled and "SENT" in auto_call_status
