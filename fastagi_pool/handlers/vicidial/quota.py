"""Call quota: in which session of the day, and on which day of seven, a lead was called.

Laws:
    * A call is counted once, by the date at which it was dialled; only its status and rank may change after.
    * Times of the day are numbers, as 930 for half past nine.
    * A session counts if it is whole, ends after it begins, and follows one that counts. If none counts,
      nothing is done; otherwise the time of the call is looked for in all of them, and the last one wins.
    * The rank that is counted with is what the lead is left with.

Source: VICIdial's FastAGI daemon, observed: call quota.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from typing import TYPE_CHECKING, Final

from fastagi_pool.handlers.vicidial.leg import Moment
from fastagi_pool.handlers.vicidial.rows import QuotaCall

if TYPE_CHECKING:
    from fastagi_pool.handlers.vicidial.leg import Leg
    from fastagi_pool.handlers.vicidial.rows import Campaign, Lead

#: As the names of columns have it.
_SESSIONS: Final = ("one", "two", "three", "four", "five", "six")
_DAYS: Final = (*_SESSIONS, "seven")
#: No call lasts longer, as far as its dial is looked for.
_DIALLED_WITHIN_S: Final = 4 * 3600
_LONGEST_SESSION: Final = len("0900,1700")
_TIME_LENGTH: Final = len("0900")
_MIDNIGHT: Final = 2400
_LEADING_DIGITS = re.compile(r"[0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class Session:
    """A part of the day.

    Attributes:
        start: When it begins.
        end: When it has ended.
        counts: Whether it is one of those that make quotas work.
    """

    start: int = 0
    end: int = 0
    counts: bool = False


@dataclass(frozen=True, slots=True)
class QuotaPlan:
    """What a container says.

    Attributes:
        zero_rank: Whether a lead that was called loses its rank.
        sessions: From the first to the sixth; one that is not written begins and ends at 0.
    """

    zero_rank: bool
    sessions: tuple[Session, ...]

    @property
    def counts(self) -> bool:
        """Whether there is a session that counts."""
        return any(session.counts for session in self.sessions)

    def session_at(self, hour_minute: int) -> str:
        """Tell in which session a time of the day is: ``one`` to ``six``; empty for none."""
        found = ""
        for name, session in zip(_SESSIONS, self.sessions, strict=True):
            if session.start <= hour_minute < session.end:
                found = name
        return found


# ---- the container


def read_plan(text: str) -> QuotaPlan:
    """Read a container of sessions.

    Args:
        text: Lines as ``zero_rank_after_call=>1`` and ``session_one=>0900,1200``. Spaces and backslashes
            mean nothing, and a semicolon ends a line.
    """
    values: dict[str, str] = {}
    for line in text.replace("\\", "").splitlines():
        name, _, value = "".join(line.partition(";")[0].split()).partition("=>")
        values[name] = value
    sessions: list[Session] = []
    for place, name in enumerate(_SESSIONS):
        before = sessions[-1] if place else Session(counts=True)
        sessions.append(_session(values.get(f"session_{name}", ""), before))
    return QuotaPlan(values.get("zero_rank_after_call") == "1", tuple(sessions))


def _session(text: str, before: Session) -> Session:
    if len(text) > _LONGEST_SESSION or "," not in text:
        return Session()
    parts = text.split(",")[:2]
    start, end = map(_number, parts)
    is_whole = all(len(part) >= _TIME_LENGTH for part in parts) and start < end <= _MIDNIGHT
    return Session(start, end, counts=is_whole and before.counts and before.end <= start)


def _number(text: str) -> int:
    found = _LEADING_DIGITS.match(text)
    return int(found[0]) if found and found[0] else 0


# ---- what is counted


def quota_status(new_status: str, log_status: str) -> str:
    """Tell the status under which a call is counted; one that is still alive was picked up.

    Args:
        new_status: What its end made of it; empty for nothing.
        log_status: What it was before.
    """
    status = new_status
    if not status or status.startswith("LIVE"):
        status = log_status
    return "PU" if status.startswith("LIVE") else status


def day_start(today: date, day_ends_at: str, hour_minute: int) -> datetime:
    """Tell when the day began in which a call was made.

    Args:
        today: The date.
        day_ends_at: When a day ends and the next begins, as ``0300``.
        hour_minute: When the call was dialled; a day that ends later began yesterday.
    """
    ends_at = _number(day_ends_at)
    start = datetime.combine(today, time_of_day()) + timedelta(hours=ends_at // 100, minutes=ends_at % 100)
    return start - timedelta(days=1) if ends_at > hour_minute else start


def day_of(first_call: datetime | None, start_of_day: datetime) -> str:
    """Tell on which day since a lead's first call this day is: ``one`` to ``seven``; empty for a later one.

    Args:
        first_call: When it was; None if nobody knows, which is taken for long ago.
        start_of_day: When this day began.
    """
    for days, name in enumerate(_DAYS):
        if first_call is not None and first_call >= start_of_day - timedelta(days=days):
            return name
    return ""


# ---- at the end of a call


def count_call(leg: Leg, campaign: Campaign, lead_id: int, new_status: str, log_status: str) -> None:
    """Count a call that ended, if system and campaign want it.

    Args:
        leg: The request.
        campaign: For which the call was made; its ``call_quota_lead_ranking`` names the container.
        lead_id: Who was called.
        new_status: What its end made of it; empty for nothing.
        log_status: Status of its log row before anything of it was overwritten; that of the call's row if
            there was no log row.

    Raises:
        DatabaseUnavailable: The database is away.

    Source: VICIdial's FastAGI daemon, observed: call quota.
    """
    if leg.system.call_quota < 1 or campaign.call_quota == "DISABLED":
        return
    plan = read_plan(leg.tables.container(campaign.call_quota) or "")
    if not plan.counts:
        return
    lead = leg.tables.lead(lead_id)
    since = Moment.at(leg.now.epoch - _DIALLED_WITHIN_S).text
    dialled = leg.tables.newest_dial(lead_id, since, leg.until)
    if lead is None or not dialled:
        return
    dialled_at = datetime.fromisoformat(dialled)
    session = plan.session_at(_hour_minute(dialled_at))
    if session:
        _count(leg, plan, lead_id, lead, dialled_at, session, quota_status(new_status, log_status))


def _count(
    leg: Leg, plan: QuotaPlan, lead_id: int, lead: Lead, dialled_at: datetime, session: str, status: str
) -> None:
    row = leg.tables.quota_row(lead_id, lead.list_id)
    today = datetime.fromisoformat(leg.now.text).date()
    start_of_day = day_start(today, leg.system.day_ends_at, _hour_minute(dialled_at))
    loses_rank = plan.zero_rank and lead.rank > 0
    call = QuotaCall(
        lead_id=lead_id,
        list_id=lead.list_id,
        dialled_at=dialled_at,
        session=session,
        day=day_of(row.first_call_date, start_of_day) if row else _DAYS[0],
        status=status,
        called_count=lead.called_count,
        rank=0 if loses_rank else lead.rank,
        writes_rank=loses_rank,
    )
    if row is None:
        leg.tables.insert_quota(call)
    elif row.last_call_date == dialled_at:
        leg.tables.set_quota_status(call)
    else:
        leg.tables.count_quota(call)


def _hour_minute(moment: datetime) -> int:
    return moment.hour * 100 + moment.minute
