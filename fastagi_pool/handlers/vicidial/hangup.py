"""END: a channel has hung up. Its row is closed; what follows depends on what the call was.

Laws:
    * The steps are those of VICIdial's daemon, in its order where another program could see it.
    * Whose request deletes the call from those that are alive owns what follows; nobody does it twice.
    * A run from the journal goes on where an earlier one was interrupted: by that one's memory it owns what
      it owned, and decides by the same rows. Whatever may be done already is looked for first.
    * An END does not give its row up while the START's may still be on its way.

How it works: one round trip reads all that is known of the call, a second one closes it. A Local channel
is a dial: it may have failed (``disconnect``). Any other channel is a call that was answered, and a row of
calls that are alive says whether anything is left to do (``drop``, ``queuelog``, ``altdial``).

Source: VICIdial's FastAGI daemon, observed: END.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from fastagi_pool.handlers.vicidial import altdial, carrier, drop, khomp, monitors, quota
from fastagi_pool.handlers.vicidial.disconnect import Verdict, cpd_verdict, passes_entry, verdict
from fastagi_pool.handlers.vicidial.grammar import (
    begins_m,
    end_code,
    is_auto_dialled,
    is_inbound,
    is_manual,
    lead_of,
    uid_stem,
)
from fastagi_pool.handlers.vicidial.leg import Moment
from fastagi_pool.handlers.vicidial.logfiles import HangupCause
from fastagi_pool.handlers.vicidial.rows import (
    AutoCall,
    CallLogRow,
    CloserRow,
    DropRow,
    LegKey,
    LogRow,
    NewLog,
    Sight,
)
from fastagi_pool.handlers.vicidial.tables import Closing, Taken

if TYPE_CHECKING:
    from fastagi_pool.database import Statement
    from fastagi_pool.handlers.vicidial.grammar import CallLogRequest, HangupFacts
    from fastagi_pool.handlers.vicidial.leg import Leg
    from fastagi_pool.handlers.vicidial.queuelog import QueueLogs
    from fastagi_pool.handlers.vicidial.rows import Campaign

_LOCAL: Final = "Local"
_INBOUND_DID: Final = "DID_INBOUND"
#: An end_epoch above this is a time, not the 0 of an open row.
_ENDED: Final = 1000
#: An end_epoch of fewer digits is no time.
_EPOCH_DIGITS: Final = 5
#: Leads beyond the highest one by more than this are no leads.
_LEAD_MARGIN: Final = 10_000
_NO_LEAD_LIMIT: Final = 999_999_999
#: What other programs write a moment later is waited for this long.
_PAUSE_S: Final = 1.0
#: How soon a START's row is looked for again; each time twice as long.
_FIRST_LOOK_S: Final = 0.005
#: A server's address is longer than this.
_SHORT_ADDRESS: Final = 5
#: An inbound row of the lead is this young.
_CLOSER_AGE_S: Final = 6 * 3600
_IVR: Final = "IVR"
_PDROP: Final = "PDROP"
#: In characters; the column cuts a longer one.
_LONGEST_UID: Final = 20
_STOCK_PRIORITY: Final = 2
#: The word in the hangup facts that wants a line in the log of hangup causes.
_DEBUG: Final = "DEBUG"


@dataclass(frozen=True, slots=True)
class _Ending:
    """What is known of a call that ends.

    Attributes:
        code: Its caller code, cut.
        lead_id: Out of the code.
        uid: Under which it is looked for from now on; for a manual call perhaps another leg's.
        channel: Its channel; for a manual call that of its row.
        sight: What the tables say.
    """

    code: str
    lead_id: int
    uid: str
    channel: str
    sight: Sight

    @property
    def stem(self) -> str:
        """How the unique ids of the call's rows begin."""
        return uid_stem(self.uid)


class _Target(NamedTuple):
    """Which row an END closes, and what it was looked for by.

    Attributes:
        row: What is closed; None if there is nothing to close yet.
        uid: The unique id of the row, by which everything else is looked for.
        channel: The channel of the row of a manual call, otherwise that of the request.
        carrier_uid: The unique id before the row was found, under which the carrier row is filed.
        sight: What the tables say of the call.
        may_come: Whether the row of this very leg is missing, and should not be.
    """

    row: CallLogRow | None
    uid: str
    channel: str
    carrier_uid: str
    sight: Sight
    may_come: bool


def end(leg: Leg, queue_logs: QueueLogs) -> None:
    """Serve an END.

    Raises:
        DatabaseUnavailable: Something was not written.
    """
    code = end_code(leg.request.code)
    lead_id = lead_of(code)
    target = _remembered(leg, _find(leg, code, lead_id))
    parked = target.sight.parked
    if parked and parked[0][0] != leg.site.server_ip:
        leg.note(f"END {target.uid}: parked on {parked[0][0]}, left to that server")
        return
    _close(leg, target, code, lead_id)
    ending = _Ending(code, lead_id, target.uid, target.channel, target.sight)
    if not leg.memory.followed:
        if _is_local(ending.channel):
            _end_dial(leg, ending)
        else:
            _end_call(leg, ending, queue_logs)
        # What a run from the journal has done may yet be rolled back, with its neighbours.
        leg.memory.followed = not leg.is_late
    if target.may_come:
        # The dialplan waits for it, a second at most: to let it go before would be to say that all is done.
        _close_late(leg)


# --- which row


def _find(leg: Leg, code: str, lead_id: int) -> _Target:
    """Find the row of the leg, and all that is known of the call."""
    request = leg.request
    if not begins_m(code):
        sight, uid = leg.tables.look(LegKey(request.uid, code)), request.uid
        return _Target(sight.call, uid, request.channel, uid, sight, sight.call is None)
    other, legs = leg.tables.manual_legs(uid_stem(request.uid), lead_id, code)
    # Without a lead, any leg of the same second would do.
    carrier_uid = other if other and lead_id and carrier.is_wanted(leg, code) else request.uid
    row = next((each for each in reversed(legs) if not _is_local(each.channel)), None)
    own = next((each for each in legs if each.uniqueid == request.uid), None)
    if own is not None and (not is_manual(code) or (row is None and leg.site.close_local_manual)):
        # A caller's name that begins so is no manual call: its legs have nothing to do with each other.
        row = own
    # The row of a Local leg is not closed, so nobody waits for it.
    may_come = own is None and (leg.site.close_local_manual or not _is_local(request.channel))
    uid, channel = (row.uniqueid, row.channel) if row else (carrier_uid, request.channel)
    sight = leg.tables.look(LegKey(uid, code))
    return _Target(row, uid, channel, carrier_uid, sight, may_come)


def _remembered(leg: Leg, target: _Target) -> _Target:
    """Remember the calls that are alive, or see them as an earlier run of this request did."""
    memory, sight = leg.memory, target.sight
    if memory.is_owner:
        return target._replace(sight=replace(sight, auto_calls=memory.auto_calls))
    memory.auto_calls = tuple(sight.auto_calls)
    return target


def _is_local(channel: str) -> bool:
    return channel.startswith(_LOCAL)


def _close_late(leg: Leg) -> None:
    """Close the request's own row, if it is committed soon after it was looked for."""
    request = leg.request
    give_up_s = time.monotonic() + (0.0 if leg.is_late else leg.site.start_wait_s)
    pause_s = _FIRST_LOOK_S
    if len(request.uid) > _LONGEST_UID:
        # Its row has a shorter one, and will never be found by this.
        return
    while (left_s := give_up_s - time.monotonic()) > 0:
        leg.pause(min(pause_s, left_s))
        pause_s *= 2
        row = leg.tables.call(request.uid)
        if row is not None:
            leg.note(f"END {request.uid}: its START came late")
            _close_row(leg, row, request.channel)
            return
    leg.note(f"END {request.uid}: no row to close")


# --- the part common to all


def _close(leg: Leg, target: _Target, code: str, lead_id: int) -> None:
    """Close the rows of the call itself."""
    tables, now, row = leg.tables, leg.now, target.row
    before: tuple[Statement, ...] = ()
    if carrier.is_wanted(leg, code):
        before = carrier.statements(leg, target.carrier_uid, code, lead_id)
    monitors.end_monitor(leg, code, leg.request.channel)
    monitors.end_three_way(leg, code)
    popups = tuple({target.uid: None, target.carrier_uid: None})
    _close_row(leg, row, target.channel, popups, before)
    if target.sight.double is not None:
        tables.close_double(target.sight.double.uniqueid, now)
    _close_park(leg, target)
    facts = leg.request.hangup
    if facts is not None and facts.debug == _DEBUG:
        leg.hangup_cause = _hangup_cause(leg.request, facts, target, code)


def _close_row(
    leg: Leg,
    row: CallLogRow | None,
    channel: str,
    popups: tuple[str, ...] = (),
    before: tuple[Statement, ...] = (),
) -> None:
    """Close a row, unless the script that wrote it has done so; and what goes with it."""
    inbound = row is not None and _INBOUND_DID in row.channel_group
    if row is not None and inbound and row.end_epoch > _ENDED and not _closed_before(leg, row):
        row = None
    leg.tables.close(Closing(row.uniqueid if row else "", channel, leg.now, popups, before))
    if row is not None:
        leg.note(f"END {row.uniqueid}|{channel}|{leg.now.epoch - row.start_epoch}")
        if inbound:
            _close_recording(leg, row.uniqueid)


def _closed_before(leg: Leg, row: CallLogRow) -> bool:
    """Tell whether an earlier run of this request has closed the row: what goes with it may be missing."""
    return leg.is_late and row.end_epoch == leg.now.epoch


def _hangup_cause(request: CallLogRequest, facts: HangupFacts, target: _Target, code: str) -> HangupCause:
    return HangupCause(
        facts.cause,
        facts.dialstatus,
        facts.dial_time,
        str(facts.ring_s),
        target.uid,
        target.channel,
        request.extension,
        request.type,
        code,
        request.name,
        str(request.priority),
    )


def _close_recording(leg: Leg, uid: str) -> None:
    recording = leg.tables.newest_recording(uid)
    if recording is not None and len(recording.end_epoch) < _EPOCH_DIGITS:
        leg.tables.close_recording(recording, leg.now)


def _close_park(leg: Leg, target: _Target) -> None:
    park = target.sight.park
    if park is None:
        return
    since_parked_s = leg.now.epoch - park.parked_epoch
    if park.parked_epoch > park.grab_epoch:
        parked_s, talked_s = since_parked_s, 0
    else:
        # Counted from when it was parked, not from when it was taken: so does the original.
        parked_s, talked_s = park.grab_epoch - park.parked_epoch, since_parked_s
    leg.tables.close_park(target.uid, parked_s, talked_s, leg.now, leg.careful)


# --- a dial that may have failed


def _end_dial(leg: Leg, ending: _Ending) -> None:
    facts = leg.request.hangup
    found, cpd_found = _analysed(leg, ending)
    if facts is not None:
        mode = leg.system.disconnect_mode
        if passes_entry(facts.kind, ending.code, facts.dialstatus, facts.cause, mode, cpd_found):
            if not cpd_found:
                found = verdict(mode, facts.dialstatus, facts.cause) or found
            if found is not None:
                _fail(leg, ending, found, cpd_found)
    if leg.request.priority > _STOCK_PRIORITY:
        leg.pause(_PAUSE_S)


def _analysed(leg: Leg, ending: _Ending) -> tuple[Verdict | None, bool]:
    """Ask those who listened to the call what they heard.

    Returns:
        What it means, and whether that alone decides.
    """
    if not is_auto_dialled(ending.code):
        return None, False
    campaign = _campaign_of(leg, ending)
    if campaign is None:
        return None, False
    found, decides = None, False
    if campaign.amd_type == "CPD" and _is_local(ending.channel):
        leg.pause(_PAUSE_S)
        found = cpd_verdict(leg.tables.cpd_result(ending.code))
        decides = found is not None
    elif campaign.amd_type == "KHOMP":
        heard = khomp.end(leg, campaign)
        if heard is not None:
            found, decides = Verdict(heard.status, heard.auto_call_status), heard.action == "status"
    return found, decides


def _campaign_of(leg: Leg, ending: _Ending) -> Campaign | None:
    """Find the campaign of an automatic call: of the call that is alive, or of its log row."""
    alive = next(iter(ending.sight.auto_calls), None)
    campaign_id = (alive.campaign_id if alive else "") or leg.tables.campaign_of_log(ending.uid)
    return leg.tables.campaign(campaign_id)


def _fail(leg: Leg, ending: _Ending, found: Verdict, cpd_found: bool) -> None:
    """Write the status of a failed dial."""
    tables, lead_id = leg.tables, ending.lead_id
    highest = leg.system.highest_lead_id
    limit = _NO_LEAD_LIMIT if highest is None else highest + _LEAD_MARGIN
    leg.note(f"END {ending.uid}: {found.status} {found.auto_call_status}")
    logged = tables.fail_dial(
        ending.code, lead_id, ending.stem, found.status, found.auto_call_status, lead_id < limit
    )
    if not logged:
        sight = tables.look(LegKey(ending.uid, ending.code))
        alive = next(iter(sight.auto_calls), None)
        if alive is not None:
            comments = "MANUAL" if is_manual(ending.code) else ""
            tables.end_call(tables.new_log(_new_log(leg, ending, alive, found.status, comments)), None)
    if cpd_found and "AA" not in found.status:
        # Without its row nobody could tell which campaign's rules had decided.
        leg.memory.is_owner = True
        tables.delete_auto_calls(ending.code)


def _new_log(leg: Leg, ending: _Ending, alive: AutoCall, status: str, comments: str = "") -> NewLog:
    lead = leg.tables.lead(alive.lead_id)
    list_id, called_count = (lead.list_id, lead.called_count) if lead else (0, 0)
    return NewLog(ending.uid, status, list_id, called_count, comments, leg.site.server_ip, alive)


# --- a call that was answered


def _end_call(leg: Leg, ending: _Ending, queue_logs: QueueLogs) -> None:
    if leg.site.khomp:
        # What KHOMP heard is kept for reports; it decides nothing about a call that was answered.
        _analysed(leg, ending)
    alive = next(iter(ending.sight.auto_calls), None)
    if alive is None:
        return
    auto_calls = ending.sight.auto_calls if leg.memory.is_owner else _left_to_end(leg, ending)
    if auto_calls and _take(leg, ending, _to_delete(auto_calls, ending)):
        queue_logs.log_end(leg, alive, ending.lead_id, ending.uid)
        _after_call(leg, ending, alive)


def _left_to_end(leg: Leg, ending: _Ending) -> Sequence[AutoCall]:
    """Give the calls that are alive, unless they are parked with somebody: none then."""
    sight = ending.sight
    if not sight.parked:
        return () if _moved_away(sight.parked_recently, leg.site.server_ip) else sight.auto_calls
    leg.pause(_PAUSE_S)
    if leg.tables.is_live(sight.parked[0][1]):
        return ()
    auto_calls = leg.tables.look(LegKey(ending.uid, ending.code)).auto_calls
    if not auto_calls:
        leg.note(f"END {ending.uid}: another program ended this call")
    return auto_calls


def _take(leg: Leg, ending: _Ending, mine: AutoCall | None) -> bool:
    """Delete the call from those that are alive; tell whether what follows is this request's to do."""
    owned_before = leg.memory.is_owner
    # Before it is so: if the connection is lost with the answer, nobody else would go on.
    leg.memory.is_owner = True
    if mine is None:
        leg.tables.stop_ringing(ending.code)
        leg.careful = True
        return True
    taken = leg.tables.take_auto_call(mine.auto_call_id, ending.code)
    if taken is Taken.NO and not owned_before:
        leg.memory.is_owner = False
        leg.note(f"END {ending.uid}: another request ends this call")
        return False
    leg.careful = leg.careful or taken is not Taken.YES
    return True


def _moved_away(parked_recently: Sequence[str], server_ip: str) -> bool:
    """Tell whether another server had the call parked last."""
    last = parked_recently[-1] if parked_recently else ""
    return len(last) > _SHORT_ADDRESS and last != server_ip


def _to_delete(auto_calls: Sequence[AutoCall], ending: _Ending) -> AutoCall | None:
    """Choose the row of calls that are alive that this END ends; None if it keeps all."""
    uid = ending.uid.lower()
    mine = [each for each in auto_calls if each.status != _IVR or each.uniqueid.lower() == uid]
    return max(mine, key=lambda each: each.call_epoch, default=None)


def _after_call(leg: Leg, ending: _Ending, alive: AutoCall) -> None:
    """Write who ended the call and whether it was dropped, and have the next number dialled."""
    inbound = is_inbound(leg.request.name)
    if leg.memory.logs is None:
        since = Moment.at(leg.clock().epoch - _CLOSER_AGE_S).text
        prefer = ending.uid if leg.site.closer_by_uniqueid else ""
        stem = "" if inbound else ending.stem
        leg.memory.logs = leg.tables.find_logs(alive.lead_id, stem, since, prefer, leg.until)
    log, closer = leg.memory.logs
    row = log or closer
    ended = _log_end(leg, ending, alive, row, inbound) if row else _never_routed(leg, ending, alive)
    campaign = leg.tables.campaign(alive.campaign_id)
    if campaign is not None:
        quota.count_call(leg, campaign, alive.lead_id, ended.new_status, ended.log_status)
        altdial.dial_next(leg, campaign, ended)


def _never_routed(leg: Leg, ending: _Ending, alive: AutoCall) -> altdial.Ended:
    """Write that a call was answered and nobody took it, if it was so."""
    if not drop.is_unrouted(is_auto_dialled(ending.code), alive.status):
        return altdial.Ended(alive, alive.status, "", None, None)
    new = _new_log(leg, ending, alive, _PDROP)
    statements = (leg.tables.lead_status(alive.lead_id, _PDROP), *leg.tables.new_log(new))
    wanted = leg.system.drop_lists > 1
    leg.tables.end_call(statements, _drop_row(leg, ending, alive, _PDROP) if wanted else None, leg.careful)
    leg.note(f"END {ending.uid}: {_PDROP}")
    return altdial.Ended(alive, alive.status, _PDROP, new.list_id, new.called_count)


def _log_end(
    leg: Leg, ending: _Ending, alive: AutoCall, row: LogRow | CloserRow, inbound: bool
) -> altdial.Ended:
    """Write the end into the log row that was found."""
    outbound = drop.end_outbound(row, leg.now.epoch)
    closing = None
    if inbound and isinstance(row, CloserRow):
        closing = drop.end_closer(row, alive.campaign_id, alive.agent_only, leg.now.epoch)
    wanted = drop.wants_drop_row(inbound, leg.system.drop_lists, row.user, row.status)
    leg.tables.end_call(
        list(_end_statements(leg, ending, alive, row, outbound, closing)),
        _drop_row(leg, ending, alive, drop.DROP) if wanted else None,
        leg.careful,
    )
    new_status = drop.new_status("", outbound.lead_dropped, closing is not None and closing.dropped)
    leg.note(f"END {ending.uid}: {row.status} {new_status}")
    return altdial.Ended(alive, row.status, new_status, None, None)


def _end_statements(
    leg: Leg,
    ending: _Ending,
    alive: AutoCall,
    row: LogRow | CloserRow,
    outbound: drop.OutboundEnding,
    closing: drop.CloserEnding | None,
) -> Iterator[Statement]:
    tables = leg.tables
    if outbound.lead_dropped:
        yield tables.lead_status(alive.lead_id, drop.DROP)
    if isinstance(row, LogRow):
        yield tables.log_ending(
            alive.lead_id,
            ending.stem,
            outbound.status,
            outbound.term_reason,
            outbound.end_epoch,
            outbound.length_s,
        )
    elif closing is not None:
        yield tables.closer_ending(
            row.closecallid,
            closing.status,
            closing.term_reason,
            closing.queue_seconds,
            closing.user,
            closing.end_epoch,
            closing.length_s,
        )
        if closing.check_reset and tables.resets_lead(alive.campaign_id):
            yield tables.lead_reset(alive.lead_id)


def _drop_row(leg: Leg, ending: _Ending, alive: AutoCall, status: str) -> DropRow:
    return DropRow(
        ending.uid,
        leg.site.server_ip,
        alive.lead_id,
        alive.campaign_id,
        status,
        alive.phone_code,
        alive.phone_number,
    )
