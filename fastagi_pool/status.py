"""Status: one picture of the pool, put together from all its shared memory, as a value and as JSON.

Laws:
    * It reads, never writes, decides nothing, and asks nobody: it works while every process hangs, and after
      the last has died.
    * What a dead worker left is not taken for the present: what a file tells of calls, databases and lanes
      counts only if its worker is the one in the scoreboard. Counters count for ever.
    * A file that cannot be read is left out and named. Only the scoreboard must be readable.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from heapq import nsmallest
from pathlib import Path
from time import time
from typing import Any

from fastagi_pool import callboard, tally
from fastagi_pool.backlog import BACKLOG_NAME, JournalFacts, read_backlog
from fastagi_pool.callboard import CallFacts, count_calls, oldest_calls, read_calls
from fastagi_pool.scoreboard import Scoreboard, SlotFacts, Supervision, WorkerState
from fastagi_pool.tally import (
    BUCKETS_S,
    DatabaseTally,
    LaneTally,
    PeerTally,
    RouteTally,
    SlotTally,
    read_tally,
)
from fastagi_pool.version import VERSION


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """How the pool fares with one database.

    Attributes:
        total: All workers' numbers together; the reason is that of one worker which takes it to be away, and
            the time that of the one for which it has been away longest.
        down_workers: How many workers take it to be away.
    """

    total: DatabaseTally
    down_workers: int

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values for ``json.dumps``."""
        return {
            "name": self.total.name,
            "size": self.total.size,
            "connected": self.total.connected,
            "in_use": self.total.in_use,
            "waiting": self.total.waiting,
            "statements": self.total.statements,
            "seconds": round(self.total.seconds, 6),
            "failures": self.total.failures,
            "up": self.down_workers == 0,
            "down_workers": self.down_workers,
            "down_s": round(self.total.down_s, 3),
            "reason": self.total.down_reason,
            "server": self.total.server,
        }


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """How full the journal is.

    Attributes:
        facts: As its workers see it.
        oldest_age_s: How long ago the call came that waits longest; None if none waits.
    """

    facts: JournalFacts
    oldest_age_s: float | None

    @classmethod
    def at(cls, facts: JournalFacts, wall_s: float) -> JournalStatus:
        """Look at it at a moment, in seconds since the epoch."""
        oldest_s = min((each.oldest_s for each in facts.databases if each.waiting), default=None)
        # The clock may have been put back since.
        return cls(facts, None if oldest_s is None else max(0.0, wall_s - oldest_s))

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values for ``json.dumps``; databases without room of their own as ``others``."""
        return {
            "waiting": self.facts.waiting,
            "quarantined": self.facts.quarantined,
            "oldest_age_s": None if self.oldest_age_s is None else round(self.oldest_age_s, 3),
            "used_bytes": self.facts.used_bytes,
            "limit_bytes": self.facts.limit_bytes,
            "databases": [
                {
                    "name": each.database or tally.OTHERS,
                    "waiting": each.waiting,
                    "quarantined": each.quarantined,
                }
                for each in self.facts.databases
            ],
        }


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool at one moment.

    Attributes:
        master_pid: Its master.
        running: Whether the master lives; else the rest is what was last known.
        generation: The generation in charge.
        uptime_s: Since the master began.
        workers: One entry for each worker, draining ones included.
        supervision: What the master tells.
        routes: What the calls of each route were like, in all workers so far.
        peers: What each Asterisk server sent.
        databases: How the pool fares with each database.
        lanes: How each lane fares, all workers' numbers together.
        journal: How full the journal is; None if there is none.
        active_by_route: Calls in progress; those that have found no route yet under the empty name.
        active_by_peer: Calls in progress.
        unreadable: What could not be read, one sentence each.
    """

    master_pid: int
    running: bool
    generation: int
    uptime_s: float
    workers: tuple[SlotFacts, ...]
    supervision: Supervision
    routes: tuple[RouteTally, ...]
    peers: tuple[PeerTally, ...]
    databases: tuple[DatabaseStatus, ...]
    lanes: tuple[LaneTally, ...]
    journal: JournalStatus | None
    active_by_route: Mapping[str, int]
    active_by_peer: Mapping[str, int]
    unreadable: tuple[str, ...]

    @property
    def active(self) -> int:
        """Calls in progress."""
        return sum(worker.active for worker in self.workers)

    @property
    def queued(self) -> int:
        """Calls that wait for a place."""
        return sum(worker.queued for worker in self.workers)

    @property
    def places(self) -> int:
        """How many calls the workers that accept serve at the same time, at most."""
        return sum(worker.places for worker in self.workers if worker.state is WorkerState.READY)

    def as_json(self, now_s: float) -> dict[str, Any]:
        """Return it as plain values for ``json.dumps``; ages instead of monotonic times.

        A route's ``script_s`` is without the database here: the four clocks do not overlap.
        """
        told = self.supervision
        return {
            "version": VERSION,
            "master_pid": self.master_pid,
            "running": self.running,
            "stopping": told.stopping,
            "generation": self.generation,
            "uptime_s": round(self.uptime_s, 3),
            "active": self.active,
            "queued": self.queued,
            "places": self.places,
            "workers_wanted": told.workers_wanted,
            "listen": {"queue": told.listen_queue, "limit": told.listen_limit, "most": told.listen_most},
            "reload": {
                "asked": told.reloads,
                "refused": told.refused,
                "loading": told.loading,
                "last_s": round(max(0.0, now_s - told.last_reload_s), 3) if told.last_reload_s else None,
                "error": told.error,
            },
            "upgrades": told.upgrades,
            "lost_lines": told.lost_lines + sum(facts.lost_lines for facts in self.workers),
            "lost_calls": told.lost_calls,
            "quarantined_requests": told.quarantined,
            "restarts": dict(told.restarts),
            "workers": [_worker_as_json(worker, now_s) for worker in self.workers],
            "routes": [_route_as_json(route, self.active_by_route) for route in self.routes],
            "peers": [
                {
                    "peer": peer.peer,
                    "active": self.active_by_peer.get(peer.peer, 0),
                    "calls": peer.calls,
                    "failed": peer.failed,
                }
                for peer in self.peers
            ],
            "databases": [database.as_json() for database in self.databases],
            "lanes": [asdict(lane) for lane in self.lanes],
            "journal": self.journal.as_json() if self.journal is not None else None,
            "unreadable": list(self.unreadable),
            "bucket_limits_s": list(BUCKETS_S),
        }


def _worker_as_json(worker: SlotFacts, now_s: float) -> dict[str, Any]:
    return {
        "slot": worker.slot,
        "generation": worker.generation,
        "pid": worker.pid,
        "state": worker.state.name.lower(),
        "age_s": round(now_s - worker.started_s, 3),
        "active": worker.active,
        "queued": worker.queued,
        "places": worker.places,
        "served": worker.served,
        "failed": worker.failed,
        "rss_bytes": worker.rss_bytes,
        "stuck": 0 < worker.deadline_s < now_s,
        "lag_s": worker.lag_s,
    }


def _route_as_json(route: RouteTally, active: Mapping[str, int]) -> dict[str, Any]:
    return {
        "route": route.route,
        "active": active.get(route.route, 0),
        "calls": route.calls,
        "failed": route.failed,
        "outcomes": dict(route.outcomes),
        "slow": route.slow,
        "hangups": route.hangups,
        "commands": route.commands,
        "refused": route.refused,
        "queued_s": round(route.queued_s, 6),
        "asterisk_s": round(route.asterisk_s, 6),
        "script_s": round(max(0.0, route.script_s - route.database_s), 6),
        "database_s": round(route.database_s, 6),
        "total_s": round(route.total_s, 6),
        "durations": list(route.durations),
        "scripts": list(route.scripts),
    }


def read_status(runtime_dir: Path, now_s: float, wall_s: float | None = None) -> PoolStatus:
    """Look at the pool that uses this runtime folder.

    Args:
        runtime_dir: The folder.
        now_s: Monotonic time.
        wall_s: The same moment in seconds since the epoch; None to look at the clock.

    Raises:
        OSError: There is no scoreboard, or it may not be read.
        ValueError: The scoreboard is of another version.
    """
    board = Scoreboard.attach(runtime_dir / "scoreboard")
    workers = tuple(board.occupied())
    unreadable: list[str] = []
    active = _count_active(runtime_dir / callboard.FOLDER, workers, unreadable)
    tallies = dict(_read_tallies(runtime_dir / tally.FOLDER, unreadable))
    by_route, by_peer = Counter[str](), Counter[str]()
    for (peer, route), calls in active.items():
        by_peer[peer] += calls
        by_route[route] += calls
    present = {worker.slot: worker for worker in workers}
    return PoolStatus(
        master_pid=board.master_pid,
        running=_lives(board.master_pid),
        generation=board.generation,
        uptime_s=now_s - board.started_s,
        workers=workers,
        supervision=board.supervision,
        routes=_merge_routes(tallies.values(), by_route),
        peers=_merge_peers(tallies.values(), by_peer),
        databases=_merge_databases(tallies, present),
        lanes=_merge_lanes(tallies, present),
        journal=_read_journal(runtime_dir / BACKLOG_NAME, time() if wall_s is None else wall_s, unreadable),
        active_by_route=by_route,
        active_by_peer=by_peer,
        unreadable=tuple(unreadable),
    )


def read_pool_calls(runtime_dir: Path, now_s: float, most: int | None = None) -> list[CallFacts]:
    """Read the calls in progress, the oldest first.

    Args:
        runtime_dir: The pool's runtime folder.
        now_s: Monotonic time; calls that were accepted later are left out.
        most: Only so many of the oldest, which is cheaper; None for all.

    Raises:
        OSError: There is no scoreboard, or it or a board of calls may not be read.
        ValueError: The scoreboard is of another version.
    """
    folder = runtime_dir / callboard.FOLDER
    calls: list[CallFacts] = []
    for worker in Scoreboard.attach(runtime_dir / "scoreboard").occupied():
        path = folder / str(worker.slot)
        try:
            found = read_calls(path, worker.slot) if most is None else oldest_calls(path, worker.slot, most)
        except ValueError:
            continue  # A worker of another version, which an upgrade has left to its calls.
        calls += [call for call in found if call.pid == worker.pid and call.accepted_s <= now_s]
    if most is None:
        return sorted(calls, key=lambda call: call.accepted_s)
    return nsmallest(most, calls, key=lambda call: call.accepted_s)


def _count_active(
    folder: Path, workers: Iterable[SlotFacts], unreadable: list[str]
) -> Counter[tuple[str, str]]:
    """Count the calls in progress by peer and route."""
    active = Counter[tuple[str, str]]()
    for worker in workers:
        try:
            pid, counts = count_calls(folder / str(worker.slot), worker.slot)
        except (OSError, ValueError) as error:
            unreadable.append(str(error))
            continue
        if pid == worker.pid:
            active += counts
    return active


def _read_tallies(folder: Path, unreadable: list[str]) -> Iterator[tuple[int, SlotTally]]:
    """Yield the tally of each slot that ever had a worker."""
    try:
        slots = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    except FileNotFoundError:
        return
    except OSError as error:
        unreadable.append(str(error))
        return
    for slot in slots:
        try:
            yield slot, read_tally(folder / str(slot))
        except (OSError, ValueError) as error:
            unreadable.append(str(error))


def _read_journal(backlog: Path, wall_s: float, unreadable: list[str]) -> JournalStatus | None:
    try:
        if not backlog.exists():
            return None
        return JournalStatus.at(read_backlog(backlog), wall_s)
    except (OSError, ValueError) as error:
        unreadable.append(str(error))
        return None


def _merge_routes(tallies: Iterable[SlotTally], active: Mapping[str, int]) -> tuple[RouteTally, ...]:
    """Add up what was counted for each route. One that is just called for the first time has no numbers."""
    parts = defaultdict[str, list[RouteTally]](list)
    for slot in tallies:
        for route in slot.routes:
            parts[route.route].append(route)
    merged = [RouteTally.merged(each) for each in parts.values()]
    return (*merged, *(RouteTally(name) for name in active if name and name not in parts))


def _merge_peers(tallies: Iterable[SlotTally], active: Mapping[str, int]) -> tuple[PeerTally, ...]:
    calls, failed = Counter[str](), Counter[str]()
    for slot in tallies:
        for peer in slot.peers:
            calls[peer.peer] += peer.calls
            failed[peer.peer] += peer.failed
    return tuple(PeerTally(name, calls[name], failed[name]) for name in {**calls, **active})


def _merge_databases(
    tallies: Mapping[int, SlotTally], workers: Mapping[int, SlotFacts]
) -> tuple[DatabaseStatus, ...]:
    """Add up counters of all workers, and what the present ones tell of the moment."""
    present = defaultdict[str, list[DatabaseTally]](list)
    counted = defaultdict[str, list[DatabaseTally]](list)
    for slot, found in tallies.items():
        for database in found.databases:
            counted[database.name].append(database)
            if database.size and slot in workers and found.pid == workers[slot].pid:
                present[database.name].append(database)
    return tuple(_merge_database(name, told, counted[name]) for name, told in present.items())


def _merge_database(name: str, told: list[DatabaseTally], counted: list[DatabaseTally]) -> DatabaseStatus:
    reasons = [database.down_reason for database in told if database.down_reason]
    total = DatabaseTally(
        name=name,
        size=sum(database.size for database in told),
        connected=sum(database.connected for database in told),
        in_use=sum(database.in_use for database in told),
        waiting=sum(database.waiting for database in told),
        statements=sum(database.statements for database in counted),
        seconds=sum(database.seconds for database in counted),
        failures=sum(database.failures for database in counted),
        down_reason=reasons[0] if reasons else "",
        server=told[0].server,
        down_s=max(database.down_s for database in told),
    )
    return DatabaseStatus(total, len(reasons))


def _merge_lanes(tallies: Mapping[int, SlotTally], workers: Mapping[int, SlotFacts]) -> tuple[LaneTally, ...]:
    """Add up counters of all workers, gauges of the present ones, and limits of those that accept calls."""
    present = defaultdict[str, list[LaneTally]](list)
    limits, refused = Counter[str](), Counter[str]()
    for slot, found in tallies.items():
        for lane in found.lanes:
            refused[lane.name] += lane.refused
            if lane.limit and slot in workers and found.pid == workers[slot].pid:
                present[lane.name].append(lane)
                limits[lane.name] += lane.limit * (workers[slot].state is WorkerState.READY)
    return tuple(
        LaneTally(
            name=name,
            limit=limits[name],
            active=sum(lane.active for lane in told),
            queued=sum(lane.queued for lane in told),
            refused=refused[name],
        )
        for name, told in present.items()
    )


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # Somebody else's, but alive.
    return True
