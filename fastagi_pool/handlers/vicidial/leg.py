"""Leg: one request while it is served, as all chapters see it.

Laws:
    * Made anew for every request: nothing of one call can be seen in another.
    * ``now`` is the second at which the request came, for everything that the request writes, even after
      a pause, and even if it runs again from the journal, long after.
    * A run from the journal waits for nothing: what other programs know they have long written.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import gevent

from fastagi_pool.handlers.vicidial.memory import Memory

if TYPE_CHECKING:
    from fastagi_pool.handlers.vicidial.grammar import CallLogRequest
    from fastagi_pool.handlers.vicidial.logfiles import AltDial, HangupCause
    from fastagi_pool.handlers.vicidial.rows import Server, System
    from fastagi_pool.handlers.vicidial.tables import Tables


#: A time that is never reached, as the database writes it.
NEVER: Final = "9999-12-31 23:59:59"
#: How long a run from the journal waits for a service that is asked over HTTP: others wait behind it.
_LATE_PATIENCE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Site:
    """What an operator decides: the route's options.

    Attributes:
        server_ip: Our own address as VICIdial knows it; most rows carry it.
        path_logs: Where VICIdial keeps its logs.
        path_home: Where VICIdial keeps its programs.
        database: Which of the configured databases is VICIdial's.
        settings_ttl_s: How old a settings row may be; 0 reads it for each use.
        start_wait_s: How long an END waits for the row of its START, which may still be on its way.
        strip_parenthesis: Take one closing parenthesis too many off the carrier's reason, as the usual
            dialplan line puts it there. Off, because the original stores it.
        close_local_manual: Close the row of a manual call that has a Local channel only. Off, because the
            original never does.
        closer_by_uniqueid: Take the inbound row of the same unique id before the lead's newest. Off,
            because the original does not look.
        threshold_always: Let the alternate-number threshold hold for every call. Off, because in the
            original it holds for calls that nobody took.
        addr3_own_area_code: Look for the area code of the third number in the campaign's list of numbers
            not to call; off, it is that of the second, a slip of the original.
        empty_timeout: Send CAMPDTO even if there is nothing to say, as the original does.
        plain_commands: Send ``SET VARIABLE`` and ``EXEC SIPAddHeader``; otherwise the doubled EXEC of the
            original, which needs Asterisk's app_exec.
        khomp: Ask KHOMP's service about calls of campaigns that use it.
        khomp_timeout_s: For its answer.
        queue_timeout_s: For QueueMetrics' database.
    """

    server_ip: str
    path_logs: Path = Path("/var/log/astguiclient")
    path_home: Path = Path("/usr/share/astguiclient")
    database: str = "vicidial"
    settings_ttl_s: float = 1.0
    start_wait_s: float = 1.0
    strip_parenthesis: bool = False
    close_local_manual: bool = False
    closer_by_uniqueid: bool = False
    threshold_always: bool = False
    addr3_own_area_code: bool = True
    empty_timeout: bool = True
    plain_commands: bool = False
    khomp: bool = False
    khomp_timeout_s: float = 3.0
    queue_timeout_s: float = 3.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A second of the wall clock.

    Attributes:
        epoch: Seconds since 1970.
        text: The same in local time, as ``2026-11-21 09:30:00``.
    """

    epoch: int
    text: str

    @classmethod
    def at(cls, epoch: int) -> Moment:
        """Make it of seconds since 1970."""
        return cls(epoch, local_time(epoch))


@lru_cache(maxsize=16)
def local_time(epoch: int) -> str:
    """Write a second in local time; thousands of calls begin in the same one."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


@dataclass(slots=True)
class Leg:
    """One request while it is served.

    Attributes:
        site: What the operator decided.
        request: What Asterisk said.
        now: When it came.
        tables: The database.
        server: Our row of ``servers``.
        system: The row of ``system_settings``.
        notes: Lines for the debug log, in order.
        alt_dials: What was decided about further numbers of the lead, in order.
        hangup_cause: How the leg ended, if the request wants that written down.
        careful: Whether another request, or an earlier run of this one, may have done already what this one
            does, so that what it inserts is looked for first.
        late_s: How long ago the request came when this run began, if it is one from the journal; None in the
            first run.
        memory: What this run knows that a later one could not find out, with what an earlier one knew.
        outside_s: Seconds spent in pauses and in Asterisk, not in the database.
    """

    site: Site
    request: CallLogRequest
    now: Moment
    tables: Tables
    server: Server
    system: System
    notes: list[str] = field(default_factory=list)
    alt_dials: list[AltDial] = field(default_factory=list)
    hangup_cause: HangupCause | None = None
    careful: bool = False
    late_s: float | None = None
    memory: Memory = field(default_factory=Memory)
    outside_s: float = 0.0

    @property
    def is_late(self) -> bool:
        """Whether this is a run from the journal."""
        return self.late_s is not None

    @property
    def until(self) -> str:
        """The time after which nothing is this call's, where a lead may have had another call since."""
        return self.now.text if self.is_late else NEVER

    @property
    def today_epoch(self) -> int:
        """The second at which this run began; differs from ``now`` in a run from the journal."""
        return self.now.epoch + int(self.late_s or 0.0)

    def clock(self) -> Moment:
        """Tell the time now, where the moment at which the request came is not meant.

        In a run from the journal it is what it would have been, had the request been served when it came.
        """
        return Moment.at(int(time.time() - (self.late_s or 0.0)))

    def patience_s(self, seconds: float) -> float:
        """Give how long to wait for a service that may be waited for so long."""
        return min(seconds, _LATE_PATIENCE_S) if self.is_late else seconds

    def pause(self, seconds: float) -> None:
        """Give other programs the time to write what they know."""
        if self.is_late:
            return
        began_s = time.monotonic()
        gevent.sleep(seconds)
        self.outside_s += time.monotonic() - began_s

    def note(self, text: str) -> None:
        """Add a line to the debug log, if the server's row asks for one."""
        if self.server.agi_output != "NONE":
            self.notes.append(text)
