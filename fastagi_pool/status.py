"""Status: what the scoreboard tells, as a value and as JSON. Reads, never writes, decides nothing."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastagi_pool.scoreboard import Scoreboard, SlotFacts


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool at one moment.

    Attributes:
        master_pid: Its master.
        running: Whether the master lives; else the rest is what was last known.
        generation: The generation in charge.
        uptime_s: Since the master began.
        workers: One entry for each worker, draining ones included.
    """

    master_pid: int
    running: bool
    generation: int
    uptime_s: float
    workers: tuple[SlotFacts, ...]

    def as_json(self, now_s: float) -> dict[str, Any]:
        """Return it as plain values for ``json.dumps``; ages instead of monotonic times."""
        workers = []
        for facts in self.workers:
            content = asdict(facts)
            content["state"] = facts.state.name.lower()
            content["age_s"] = round(now_s - content.pop("started_s"), 3)
            del content["deadline_s"]
            workers.append(content)
        return {
            "master_pid": self.master_pid,
            "running": self.running,
            "generation": self.generation,
            "uptime_s": round(self.uptime_s, 3),
            "active": sum(facts.active for facts in self.workers),
            "workers": workers,
        }


def read_status(runtime_dir: Path, now_s: float) -> PoolStatus:
    """Look at the pool that uses this runtime folder.

    Raises:
        OSError: There is no scoreboard, or it may not be read.
        ValueError: The scoreboard is of another version.
    """
    board = Scoreboard.attach(runtime_dir / "scoreboard")
    return PoolStatus(
        master_pid=board.master_pid,
        running=_lives(board.master_pid),
        generation=board.generation,
        uptime_s=now_s - board.started_s,
        workers=tuple(board.occupied()),
    )


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # Somebody else's, but alive.
    return True
