"""Bulletin: what the master tells the world of its supervision: on the scoreboard, and to systemd.

Laws:
    * It tells and decides nothing; it reads no clock.
    * A reload ends in exactly one way for those who wait for it: in charge, or refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from fastagi_pool.doors import Queue
from fastagi_pool.notify import Notifier
from fastagi_pool.pool import Phase, Pool, Stopping
from fastagi_pool.scoreboard import Scoreboard, Supervision

#: The service manager hears of a changed number of calls no more often than this.
STATUS_S: Final = 5.0


class Bulletin:
    """Keeps what was told, and tells what has changed."""

    def __init__(self, notifier: Notifier, pid: int) -> None:
        """Begin with nothing told.

        Args:
            notifier: To the service manager.
            pid: The master's.
        """
        self._notifier = notifier
        self._pid = pid
        self._told = Supervision()
        self._wanted = Supervision()
        self._lost_lines = 0
        self._line = ""
        self._next_line_s = 0.0

    def state(self) -> Mapping[str, Any]:
        """Say, in plain values, what :meth:`restore` needs."""
        return asdict(self._wanted)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with what a former program of this process has told."""
        self._wanted = Supervision(**state)

    # --- what happens

    def serves(self, text: str) -> None:
        """The pool serves for the first time."""
        self._notifier.ready(self._pid, text)

    def reload_begins(self, now_s: float) -> None:
        """A new generation is being loaded."""
        if not self._wanted.loading:
            self._wanted = replace(self._wanted, loading=True)
            self._notifier.reloading(now_s, "loading configuration and code")

    def reload_ends(self, now_s: float, error: str = "") -> None:
        """A new generation is in charge; or it is not, and why. Of the very first nothing is told."""
        told = self._wanted
        if not told.loading:
            return
        self._wanted = replace(
            told,
            loading=False,
            reloads=told.reloads + 1,
            refused=told.refused + bool(error),
            last_reload_s=now_s,
            error=error,
        )
        self._notifier.ready(self._pid, "a reload was refused, nothing changed" if error else "reloaded")

    def upgrade_ends(self, error: str = "") -> None:
        """The newly installed program has taken over; or it has not, and why."""
        self._wanted = replace(self._wanted, upgrades=self._wanted.upgrades + 1, error=error)

    def stops(self, longest_s: float, active: int) -> None:
        """The pool ends."""
        if not self._wanted.stopping:
            self._wanted = replace(self._wanted, stopping=True)
            self._notifier.stopping(longest_s, f"stopping; {active} calls in progress")

    def calls_were_lost(self, lost: int, quarantined: int) -> None:
        """Workers that died have taken so many calls with them in all; so many requests were quarantined."""
        self._wanted = replace(self._wanted, lost_calls=lost, quarantined=quarantined)

    @property
    def lost_calls(self) -> int:
        """As :meth:`calls_were_lost` was told last."""
        return self._wanted.lost_calls

    @property
    def quarantined(self) -> int:
        """The same of requests."""
        return self._wanted.quarantined

    def lines_were_lost(self, lines: int) -> None:
        """A worker has ended that could not write so many log lines."""
        self._lost_lines += lines

    # --- telling

    def publish(self, board: Scoreboard, pool: Pool, queue: Queue, lost_lines: int, now_s: float) -> None:
        """Tell what has changed.

        Args:
            board: Where onlookers read.
            pool: How it fares.
            queue: Who waits to be accepted.
            lost_lines: Log lines that the master could not write.
            now_s: Monotonic time.
        """
        self._wanted = replace(
            self._wanted,
            workers_wanted=pool.target,
            listen_queue=queue.length,
            listen_limit=queue.limit,
            listen_most=max(self._wanted.listen_most, queue.length),
            lost_lines=lost_lines + self._lost_lines,
            restarts=dict(pool.restarts),
        )
        if self._wanted != self._told:
            self._told = self._wanted
            board.supervise(self._wanted)
        self._tell_manager(pool, now_s)

    def _tell_manager(self, pool: Pool, now_s: float) -> None:
        self._notifier.give_sign_of_life(now_s)
        if not self._notifier or now_s < self._next_line_s or pool.stopping is not Stopping.NO:
            return
        active = sum(handle.active for handle in pool.handles.values())
        draining = sum(handle.phase is Phase.DRAINING for handle in pool.handles.values())
        line = f"{len(pool.serving)} of {pool.target} workers serve, {active} calls in progress"
        line += f", {draining} old workers finish theirs" if draining else ""
        if line != self._line and not self._wanted.loading:
            self._line, self._next_line_s = line, now_s + STATUS_S
            self._notifier.status(line)
