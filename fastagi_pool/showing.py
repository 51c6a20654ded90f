"""Showing: what a worker shows of itself to other processes.

Laws:
    * Showing ends no call and no worker. What cannot be shown, for want of memory or rights, is logged once
      and then left out.
    * Nothing is asked of anybody: what is shown is what the worker knows anyway.

How it works: how it fares stands in its slot of the scoreboard, calls in progress on its call board, counts
of calls, databases and lanes in its tally, all in shared memory below the runtime folder; slow calls go to
the slow log as well. What need not be told at once is told once a beat.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastagi_pool import callboard, tally
from fastagi_pool.callboard import NO_ROW, CallBoard, CallRow
from fastagi_pool.scoreboard import SlotWriter
from fastagi_pool.slowlog import SlowCall, SlowLog
from fastagi_pool.tally import DatabaseTally, LaneTally, Tally

if TYPE_CHECKING:
    from fastagi_pool.database import Database
    from fastagi_pool.lanes import LaneFacts, LaneLimits

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Showing:
    """One worker's own picture, for others.

    Attributes:
        slow_log: Where slow calls are written; None for nowhere.
        records: Who wants the records of calls that have ended.
    """

    def __init__(
        self,
        runtime_dir: Path,
        slot: SlotWriter,
        beat_s: float,
        places: int,
        most_besides: int,
        routes: Sequence[str],
        slow_log: SlowLog | None,
        log: logging.Logger,
    ) -> None:
        """Take the slot's files over.

        Args:
            runtime_dir: The folder below which they lie.
            slot: The worker's slot in the scoreboard.
            beat_s: How often :meth:`publish` is to be called.
            places: Calls that the worker serves at the same time, at most.
            most_besides: Calls that may wait or be refused meanwhile.
            routes: Names of the routes.
            slow_log: Where slow calls are written; None for nowhere.
            log: Told of what cannot be shown.
        """
        self.slow_log = slow_log
        self._slot = slot
        self._beat_s = beat_s
        self._due_s = math.inf
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._log = log
        self._board: CallBoard | None = None
        self._all_shown = True
        self._tally: Tally | None = None
        slot.set_places(places)
        name, pid = str(slot.slot), os.getpid()
        try:
            file = runtime_dir / callboard.FOLDER / name
            self._board = CallBoard.create(file, slot.slot, pid, places + most_besides)
        except OSError as error:
            log.warning("calls in progress are not shown: %s", error)
        try:
            self._tally = Tally.open(runtime_dir / tally.FOLDER / name, pid, routes)
        except OSError as error:
            log.warning("calls are not counted by route: %s", error)
        self.records = (self._tally,) if self._tally is not None else ()

    def new_row(self) -> CallRow:
        """Return where a new call is shown; to be released at its end."""
        if self._board is None:
            return NO_ROW
        row = self._board.take()
        if row is NO_ROW and self._all_shown:
            self._all_shown = False
            self._log.warning("some calls in progress are not shown: there is no room for more")
        return row

    def on_slow(self, call: SlowCall) -> None:
        """Note a slow call."""
        if self.slow_log is not None:
            self.slow_log.report(call)
        if self._tally is not None:
            self._tally.slow(call.route)

    def publish(
        self,
        now_s: float,
        lost_lines: int,
        databases: Iterable[Database],
        lanes: Iterable[tuple[LaneLimits, LaneFacts]],
    ) -> None:
        """Show how the worker fares; once a beat.

        Args:
            now_s: Monotonic time.
            lost_lines: Log lines that could not be written.
            databases: The worker's.
            lanes: The worker's, each as it is configured and as it fares.
        """
        self._slot.set_lag(max(0.0, now_s - self._due_s))
        self._due_s = now_s + self._beat_s
        self._slot.set_rss(int(os.pread(self._statm, 128, 0).split()[1]) * _PAGE_BYTES)
        self._slot.set_lost_lines(lost_lines)
        if self._tally is None:
            return
        for database in databases:
            facts = database.facts()
            self._tally.database(
                DatabaseTally(
                    name=database.name,
                    size=database.settings.pool_size,
                    connected=facts.connected,
                    in_use=facts.in_use,
                    waiting=facts.waiting,
                    statements=facts.statements,
                    seconds=facts.seconds,
                    failures=facts.failures,
                    down_reason=facts.down_reason,
                    server=facts.server,
                    down_s=facts.down_s,
                )
            )
        for limits, lane in lanes:
            self._tally.lane(LaneTally(lane.name, limits.max_active, lane.active, lane.queued, lane.refused))
