"""Pictures to test with: a runtime folder of shared memory without a pool, and a picture as a plain value."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic
from typing import Any, Final

from fastagi_pool.callboard import CallBoard
from fastagi_pool.logs import CallRecord
from fastagi_pool.scoreboard import Scoreboard, SlotWriter, WorkerState
from fastagi_pool.tally import BUCKETS_S, OUTCOMES, DatabaseTally, Tally

#: Routes of the pool that is none.
ROUTES: Final = ("menu", "lookup", "queue/hangup", "voicemail")
_PEERS: Final = ("192.0.2.7", "192.0.2.8", "192.0.2.9")


class FakePool:
    """A runtime folder as a pool leaves it, with what writes it.

    Attributes:
        runtime_dir: The folder.
        board: The scoreboard, as its master has it.
        tallies: Of each worker.
    """

    def __init__(self, runtime_dir: Path, workers: int = 2, calls: int = 0, generation: int = 1) -> None:
        """Write it.

        Args:
            runtime_dir: The folder; made if it is missing.
            workers: How many, all serving.
            calls: In progress in each of them.
            generation: The one in charge, and that of all workers.
        """
        self.runtime_dir = runtime_dir
        for folder in (runtime_dir, runtime_dir / "calls", runtime_dir / "tallies", runtime_dir / "stacks"):
            folder.mkdir(exist_ok=True, parents=True)
        self.now_s = monotonic()
        self.board = Scoreboard.create(runtime_dir / "scoreboard", os.getpid(), self.now_s - 60)
        self.board.set_generation(generation)
        self.tallies: list[Tally] = []
        self._boards: list[CallBoard] = []
        for slot in range(workers):
            self._add_worker(slot, calls, generation)

    def worker(self, slot: int, state: WorkerState, generation: int, active: int = 0) -> SlotWriter:
        """Put a worker into a slot, with nothing but what the scoreboard tells of it."""
        self.board.clear(slot)
        writer = SlotWriter(self.board, slot)
        writer.begin(os.getpid(), generation, self.now_s - 50)
        writer.promise(self.now_s + 3600)
        writer.set_places(100)
        writer.set_rss(40 << 20)
        for _ in range(active):
            writer.call_begins()
        writer.set_state(state)
        return writer

    def _add_worker(self, slot: int, calls: int, generation: int) -> None:
        self.worker(slot, WorkerState.READY, generation, calls)
        tally = Tally.open(self.runtime_dir / "tallies" / str(slot), os.getpid(), ROUTES)
        tally.database(DatabaseTally("main", 4, 3, 1, 0, 10, 0.5, 0, "", "db.example.net/calls"))
        self.tallies.append(tally)
        board = CallBoard.create(self.runtime_dir / "calls" / str(slot), slot, os.getpid(), max(calls, 1))
        self._boards.append(board)
        for number in range(calls):
            began_s = self.now_s - 30 - number / 1000
            row = board.take()
            row.accepted(_PEERS[number % len(_PEERS)], began_s)
            ref = f"{slot:02x}{number:06x}"
            row.known(ref, "menu?x=1", f"1795252042.{number}", f"PJSIP/10{number}", f"55501{number:05}")
            row.routed(ROUTES[number % len(ROUTES)], began_s)
            if number % 3 == 0:
                row.asks(b"STREAM FILE welcome 123", 0.001, began_s + 0.01)
            elif number % 3 == 1:
                row.queries("SELECT words FROM greetings WHERE number = %(number)s", began_s + 0.01)


def record(route: str = "menu", outcome: str = "ok", total_s: float = 0.02, **more: Any) -> CallRecord:
    """Write what is known of a call that has ended."""
    fields: dict[str, Any] = {
        "ref": "0001",
        "route": route,
        "script": route,
        "outcome": outcome,
        "hung_up": False,
        "commands": 2,
        "total_s": total_s,
        "asterisk_s": total_s / 2,
        "script_s": total_s / 4,
        "database_s": total_s / 8,
        "peer": _PEERS[0],
        "uniqueid": "1795252042.1",
        "callerid": "5550100",
        "queued_s": total_s / 4,
    }
    return CallRecord(**{**fields, **more})


def route_picture(route: str = "menu", **more: Any) -> dict[str, Any]:
    """Write what a picture tells of a route on which nothing has happened but what is said."""
    buckets = len(BUCKETS_S) + 1
    return {
        "route": route,
        "active": 0,
        "calls": 0,
        "failed": 0,
        "outcomes": dict.fromkeys(OUTCOMES, 0),
        "slow": 0,
        "hangups": 0,
        "commands": 0,
        "refused": 0,
        "queued_s": 0.0,
        "asterisk_s": 0.0,
        "script_s": 0.0,
        "database_s": 0.0,
        "total_s": 0.0,
        "durations": [0] * buckets,
        "scripts": [0] * buckets,
        **more,
    }


def worker_picture(slot: int = 0, **more: Any) -> dict[str, Any]:
    """Write what a picture tells of a worker that serves and has nothing to do."""
    return {
        "slot": slot,
        "generation": 1,
        "pid": 5000 + slot,
        "state": "ready",
        "age_s": 50.0,
        "active": 0,
        "queued": 0,
        "places": 100,
        "served": 0,
        "failed": 0,
        "rss_bytes": 40 << 20,
        "stuck": False,
        "lag_s": 0.0,
        **more,
    }


def picture(**more: Any) -> dict[str, Any]:
    """Write the picture of a pool that serves and in which nothing has happened but what is said."""
    return {
        "version": "0.1.0",
        "master_pid": 4999,
        "running": True,
        "generation": 1,
        "uptime_s": 60.0,
        "active": 0,
        "queued": 0,
        "places": 100,
        "workers_wanted": 1,
        "listen": {"queue": 0, "limit": 128, "most": 0},
        "reload": {"asked": 0, "refused": 0, "loading": False, "last_s": None, "error": ""},
        "restarts": {"calls": 0, "died": 0},
        "workers": [worker_picture()],
        "routes": [],
        "peers": [],
        "databases": [],
        "lanes": [],
        "journal": None,
        "lost_calls": 0,
        "quarantined_requests": 0,
        "bucket_limits_s": list(BUCKETS_S),
        **more,
    }
