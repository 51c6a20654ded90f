"""Aftermath: what the master does about the calls that a worker took with it when it died.

Laws:
    * Asterisk is told by the worker's witness; here the calls are named in the log and counted, and one of
      them may be suspected of having ended the worker.
    * Nothing is read but shared memory, and whatever cannot be read stays unsaid.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from fastagi_pool import callboard
from fastagi_pool.callboard import CallFacts
from fastagi_pool.logs import LOGGER_NAME, value
from fastagi_pool.quarantine import FILE, Quarantine, suspect

#: Of the calls that died with a worker, so many are named in the log.
MOST_NAMED: Final = 100


class Aftermath:
    """Looks after what dead workers leave.

    Attributes:
        lost: Calls that had begun in workers that died, so far.
        quarantined: How often a request was put into quarantine so far.
    """

    def __init__(self, runtime_dir: Path, lost: int = 0, quarantined: int = 0) -> None:
        """Begin; the table of suspects is opened, or goes on to hold.

        Args:
            runtime_dir: Below which call boards and the table lie.
            lost: Calls that were lost before.
            quarantined: Requests that were put into quarantine before.

        Raises:
            OSError: The table cannot be made.
        """
        self.lost = lost
        self.quarantined = quarantined
        self._runtime_dir = runtime_dir
        self._log = logging.getLogger(LOGGER_NAME)
        self._quarantine = Quarantine.create(runtime_dir / FILE)
        self._oom_kills = _oom_kills()
        self._crashes = 0
        self._for_s = 0.0

    def use(self, crashes: int = 0, for_s: float = 0.0) -> None:
        """Hold to these figures from now on.

        Args:
            crashes: After so many deaths requests like it are refused; 0 for never.
            for_s: For how long.
        """
        self._crashes, self._for_s = crashes, for_s

    def memory_ran_out(self) -> bool:
        """Whether the kernel has killed a process for want of memory since this was asked last."""
        before, self._oom_kills = self._oom_kills, _oom_kills()
        return self._oom_kills > before

    def see_to(self, slot: int, pid: int, crashed: bool, now_s: float) -> None:
        """A worker is dead.

        Args:
            slot: Which one it was.
            pid: Its process.
            crashed: Whether it died of something, and was not ended by us at the end of its time.
            now_s: Monotonic time.
        """
        board = self._runtime_dir / callboard.FOLDER / str(slot)
        try:
            calls = [each for each in callboard.read_calls(board, slot) if each.pid == pid]
        except Exception as error:
            # Whatever a process that went astray wrote there: it must not keep the master from replacing it.
            self._log.error(
                "worker=%d pid=%d: nobody knows which calls it took with it: %r", slot, pid, error
            )
            return
        begun = [each for each in calls if each.route]
        self.lost += len(begun)
        self._name(slot, pid, begun, now_s)
        found = suspect(begun) if crashed and self._crashes else None
        if found is not None and found.fingerprint:
            self._blame(found, now_s)

    def _name(self, slot: int, pid: int, calls: list[CallFacts], now_s: float) -> None:
        for call in calls[:MOST_NAMED]:
            self._log.error(
                "worker=%d pid=%d took call=%s with it: route=%s uniqueid=%s callerid=%s age_s=%.1f, %s",
                *(slot, pid, value(call.ref), value(call.route), value(call.uniqueid), value(call.callerid)),
                *(now_s - call.accepted_s, f"{call.state.words} {value(call.command)}".strip()),
            )
        if len(calls) > MOST_NAMED:
            self._log.error("worker=%d pid=%d took %d more calls with it", slot, pid, len(calls) - MOST_NAMED)

    def _blame(self, call: CallFacts, now_s: float) -> None:
        deaths = self._quarantine.blame(call.fingerprint, now_s, self._crashes, self._for_s)
        what = (value(call.route), value(call.script), value(call.callerid))
        if deaths < self._crashes:
            self._log.warning(
                "call=%s is suspected of having ended its worker: route=%s script=%s callerid=%s",
                call.ref,
                *what,
            )
            return
        self.quarantined += 1
        self._log.error(
            "%d workers died while they served a request like call=%s (route=%s script=%s callerid=%s): such "
            "requests are refused for %g s",
            *(deaths, call.ref, *what, self._for_s),
        )


def _oom_kills() -> int:
    """Return how many processes of this machine were killed for want of memory. Source: proc(5), vmstat."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
