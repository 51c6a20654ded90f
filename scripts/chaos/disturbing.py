"""Disturbing: does what the schedule says, and undoes it.

Laws:
    * Only processes of the run are killed, and only by their ids.
    * What is to be done to a process that is not there (a launcher that died) is skipped, and said.
    * When the run is over, however it ends, everything has been undone.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from chaos.scene import Scene
from chaos.schedule import Disturbance, What

#: By what the titles of processes begin.
_TITLES: Final = {
    What.KILL_REPLAY: r"fastagi-pool: replay",
    What.KILL_WITNESS: r"fastagi-pool: witness",
    What.KILL_LOADER: r"fastagi-pool: loader",
    What.KILL_LAUNCHER: r"fastagi-pool: launcher",
    What.KILL_OBSERVER: r"fastagi-pool: observer",
}
#: How far a clock is set, at least and at most: as by a leap of a few seconds, or by half an hour.
_STEPS_S: Final = (10.0, 1800.0)
_DELAYS_S: Final = (0.02, 0.3)
_RATES_BYTES: Final = (4_000, 60_000)

Step = Callable[[], object]


class Disturber:
    """Does the schedule's disturbances to a scene.

    Attributes:
        done: How often each was done.
        skipped: How often each could not be done.
        told: One line for each, with the time since the begin.
    """

    def __init__(self, scene: Scene, schedule: Sequence[Disturbance]) -> None:
        """Prepare.

        Args:
            scene: To what it is done.
            schedule: What.
        """
        self.done: Counter[What] = Counter()
        self.skipped: Counter[What] = Counter()
        self.told: list[str] = []
        self._scene = scene
        self._coming = list(schedule)
        self._open: list[tuple[float, What, Step]] = []
        self._began_s = time.monotonic()

    def act(self) -> float:
        """Do and undo what is due, and return how long there is nothing to do then."""
        now_s = time.monotonic() - self._began_s
        for due in sorted(self._open, key=lambda each: each[0]):
            if due[0] <= now_s:
                self._open.remove(due)
                self._tell(f"{due[1].value}: over")
                due[2]()
        while self._coming and self._coming[0].begin_s <= now_s:
            self._do(self._coming.pop(0))
        times = [each[0] for each in self._open] + [each.begin_s for each in self._coming[:1]]
        return max(0.0, min(times, default=now_s + 1.0) - (time.monotonic() - self._began_s))

    def undo(self) -> None:
        """Undo whatever has not been undone."""
        self._coming.clear()
        while self._open:
            _, what, step = self._open.pop(0)
            self._tell(f"{what.value}: over")
            step()

    def _do(self, disturbance: Disturbance) -> None:
        self._tell(f"{disturbance.what.value}, {disturbance.end_s - disturbance.begin_s:.1f} s")
        undo = self._begin(disturbance)
        if undo is None:
            self.skipped[disturbance.what] += 1
            self._tell(f"{disturbance.what.value}: not done, there is none")
            return
        self.done[disturbance.what] += 1
        if disturbance.end_s > disturbance.begin_s:
            self._open.append((disturbance.end_s, disturbance.what, undo))

    def _begin(self, disturbance: Disturbance) -> Step | None:
        """Do it; return what undoes it, or None if it cannot be done."""
        what, size = disturbance.what, disturbance.size
        if what in _TITLES:
            return self._kill(self._titled(_TITLES[what]), size, signal.SIGKILL)
        if what in (What.KILL_WORKER, What.CRASH_WORKER):
            number = signal.SIGKILL if what is What.KILL_WORKER else signal.SIGSEGV
            return self._kill([each.pid for each in self._scene.pool.serving()], size, number)
        steps: dict[What, Callable[[], Step]] = {
            What.DATABASE_KILLED: lambda: self._stop_database(kill=True),
            What.DATABASE_STOPPED: lambda: self._stop_database(kill=False),
            What.DATABASE_FROZEN: self._freeze,
            What.DATABASE_DEMOTED: self._demote,
            What.NETWORK_CUT: lambda: self._network("hold"),
            What.NETWORK_RESET: lambda: self._network("reset"),
            What.NETWORK_DELAYED: lambda: self._network("delay", f"{_between(_DELAYS_S, size):.3f}"),
            What.NETWORK_THROTTLED: lambda: self._network("throttle", f"{_between(_RATES_BYTES, size):.0f}"),
            What.DISK_FULL: self._fill,
            What.CLOCK_FORWARD: lambda: self._step(_between(_STEPS_S, size)),
            What.CLOCK_BACK: lambda: self._step(-_between(_STEPS_S, size)),
            What.RELOAD: lambda: self._signal(signal.SIGHUP, None),
            What.UPGRADE: lambda: self._signal(signal.SIGUSR2, None),
            What.MORE_WORKERS: lambda: self._signal(signal.SIGTTIN, signal.SIGTTOU),
        }
        return steps[what]()

    def _titled(self, title: str) -> list[int]:
        return [each.pid for each in self._scene.pool.processes() if re.match(title, each.title)]

    def _kill(self, pids: list[int], size: float, number: int) -> Step | None:
        if not pids:
            return None
        pid = sorted(pids)[min(int(size * len(pids)), len(pids) - 1)]
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return None
        return _nothing

    def _stop_database(self, kill: bool) -> Step:
        server = self._scene.server
        server.stop(kill)
        return server.start

    def _freeze(self) -> Step:
        self._scene.server.pause()
        return self._scene.server.resume

    def _demote(self) -> Step:
        execute = self._scene.server.execute
        execute("SET GLOBAL read_only = 1")
        return lambda: execute("SET GLOBAL read_only = 0")

    def _network(self, *words: str) -> Step:
        network = self._scene.network
        network.tell(*words)
        return lambda: network.tell("pass")

    def _fill(self) -> Step:
        self._scene.disk.fill()
        return self._scene.disk.clear

    def _step(self, offset_s: float) -> Step:
        clock = self._scene.clock
        clock.step(offset_s)
        return lambda: clock.step(0.0)

    def _signal(self, begin: int, end: int | None) -> Step:
        pool = self._scene.pool
        pool.signal(begin)
        return _nothing if end is None else lambda: pool.signal(end)

    def _tell(self, text: str) -> None:
        self.told.append(f"{time.monotonic() - self._began_s:7.1f} s  {text}")


def _between(bounds: tuple[float, float], size: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * size


def _nothing() -> None:
    """Undo what has no end."""
