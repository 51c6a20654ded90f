"""Tally: shared memory in which every worker counts what its calls were like.

Laws:
    * One writer: the worker of the slot. The next worker of the slot goes on where the last one ended, so the
      numbers grow as long as the folder is kept: for the life of the master.
    * Counting fails no call. A name for which there is no room counts among the others.
    * It outlives its writers, and any process may read it at any time. It holds no caller's number.

How it works: one file for each slot, a row of 1 KiB for each route, Asterisk, database and lane: what it is,
its name, its numbers. The first row says what the file is and who writes it. The file grows by blocks of
64 KiB. Every number is one aligned 64-bit word: counts are whole numbers, seconds are floating-point numbers.

An upgrade goes on with the files of the program before it, whose last workers go on writing theirs. What is
added stands where that program wrote zeros, or in rows of a kind that it passes over; whatever else is
changed takes another version, and the counts begin anew.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final

from fastagi_pool.logs import CallRecord

#: The folder of all tallies, below the runtime folder.
FOLDER: Final = "tallies"
#: Upper bounds of the classes in which durations are counted; one more class takes what is longer.
BUCKETS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10, 30, 60, 300, 1800, 7200),
)
#: Everything that a call can come to; see CallRecord. Add at the end: the order is that of the files.
OUTCOMES: Final = (
    "ok",
    "hangup",
    "error",
    "noroute",
    "timeout",
    "gone",
    "denied",
    "badrequest",
    "dbdown",
    "overload",
    "stopped",
    "notfound",
    "exit",
    "limit",
    "upstream",
    "failure",
    "deferred",
    "quarantined",
)
#: Outcomes that are no failure: it went well, or will be done later, or nobody is there any more.
NO_FAILURES: Final = frozenset({"ok", "deferred", "hangup", "gone"})
#: Stands for all peers, or routes, for which a slot has no row, and for whoever may not call.
OTHERS: Final = "others"
MOST_PEERS: Final = 64
MOST_ROUTES: Final = 4096
_MOST_DATABASES: Final = 64
#: So few that a file has the size that it had before there were lanes.
_MOST_LANES: Final = 32

_MAGIC: Final = 0x46_41_47_49_54_41_4C_4C  # "FAGITALL"
_VERSION: Final = 1
_BLOCK_BYTES: Final = 65536
_ROW_BYTES: Final = 1024
_ROW_WORDS: Final = _ROW_BYTES // 8
_MOST_ROWS: Final = 1 + MOST_ROUTES + MOST_PEERS + _MOST_DATABASES + _MOST_LANES
_SIZE_BYTES: Final = -(-_MOST_ROWS * _ROW_BYTES // _BLOCK_BYTES) * _BLOCK_BYTES

_HEADER: Final = struct.Struct("@4Q")  # magic, version, the worker's process, rows in use
_WORD_PID: Final = 2
_WORD_ROWS: Final = 3
#: Every row begins with what it is about; then come its numbers.
_SUBJECT: Final = struct.Struct("@Q400s")
_NAME_BYTES: Final = 400
_FIRST_NUMBER: Final = 51
_AT_NUMBERS: Final = 8 * _FIRST_NUMBER

#: Outcomes with room for more; five times; commands, hangups, refused, slow; two sets of classes.
_ROUTE_NUMBERS: Final = struct.Struct("@20Q5d4Q19Q19Q")
_TOTAL: Final = _FIRST_NUMBER + 20
_QUEUED: Final = _TOTAL + 1
_ASTERISK: Final = _TOTAL + 2
_SCRIPT: Final = _TOTAL + 3
_DATABASE: Final = _TOTAL + 4
_COMMANDS: Final = _TOTAL + 5
_HANGUPS: Final = _TOTAL + 6
_REFUSED: Final = _TOTAL + 7
_SLOW: Final = _TOTAL + 8
_DURATIONS: Final = _TOTAL + 9
_SCRIPTS: Final = _DURATIONS + 19
_PEER_NUMBERS: Final = struct.Struct("@2Q")
_CALLS: Final = _FIRST_NUMBER
_FAILED: Final = _FIRST_NUMBER + 1
#: Size, connected, in use, waiting; statements, seconds, failures; why it is down, which server, how long.
_DATABASE_NUMBERS: Final = struct.Struct("@4QQdQ256s128sd")
#: The gauges are the first of these words; the counters follow, seconds among them.
_GAUGES: Final = 4
_COUNTERS: Final = 3
_STATEMENTS: Final = _FIRST_NUMBER + 4
_SECONDS: Final = _FIRST_NUMBER + 5
_FAILURES: Final = _FIRST_NUMBER + 6
#: Limit, active, queued; refused.
_LANE_NUMBERS: Final = struct.Struct("@4Q")
_TURNED_AWAY: Final = _FIRST_NUMBER + 3

_OUTCOME_WORDS: Final = {outcome: _FIRST_NUMBER + place for place, outcome in enumerate(OUTCOMES)}
_ERROR_WORD: Final = _OUTCOME_WORDS["error"]


class _Kind(IntEnum):
    ROUTE = 1
    PEER = 2
    DATABASE = 3
    LANE = 4


_MOST: Final = {
    _Kind.ROUTE: MOST_ROUTES,
    _Kind.PEER: MOST_PEERS,
    _Kind.DATABASE: _MOST_DATABASES,
    _Kind.LANE: _MOST_LANES,
}


@dataclass(frozen=True, slots=True)
class RouteTally:
    """What the calls of one route were like.

    Attributes:
        route: Its name; empty for calls that found no route.
        outcomes: How many calls came to what, for all OUTCOMES.
        total_s: Time from accept to the end, of all calls together; as the others.
        queued_s: Waiting for a place.
        asterisk_s: Waiting for Asterisk's replies.
        script_s: The handlers' own time, the database included.
        database_s: Of the script's time, waiting for the database.
        commands: AGI commands.
        hangups: Calls in which the caller hung up.
        refused: Commands that the guard held back.
        slow: Slow calls.
        durations: How many calls took how long from accept to the end: one number for each class of
            BUCKETS_S, not added up, and a last one for what took longer.
        scripts: Likewise, how long the handler's own time was without the database.
    """

    route: str
    outcomes: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    total_s: float = 0.0
    queued_s: float = 0.0
    asterisk_s: float = 0.0
    script_s: float = 0.0
    database_s: float = 0.0
    commands: int = 0
    hangups: int = 0
    refused: int = 0
    slow: int = 0
    durations: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)
    scripts: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)

    @property
    def calls(self) -> int:
        """Calls that have ended."""
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        """Calls that have ended in a failure."""
        return sum(calls for outcome, calls in self.outcomes.items() if outcome not in NO_FAILURES)

    @classmethod
    def merged(cls, parts: Sequence[RouteTally]) -> RouteTally:
        """Add up what several workers counted for one route; at least one."""
        return cls(
            route=parts[0].route,
            outcomes={outcome: sum(part.outcomes.get(outcome, 0) for part in parts) for outcome in OUTCOMES},
            total_s=sum(part.total_s for part in parts),
            queued_s=sum(part.queued_s for part in parts),
            asterisk_s=sum(part.asterisk_s for part in parts),
            script_s=sum(part.script_s for part in parts),
            database_s=sum(part.database_s for part in parts),
            commands=sum(part.commands for part in parts),
            hangups=sum(part.hangups for part in parts),
            refused=sum(part.refused for part in parts),
            slow=sum(part.slow for part in parts),
            durations=tuple(map(sum, zip(*(part.durations for part in parts), strict=True))),
            scripts=tuple(map(sum, zip(*(part.scripts for part in parts), strict=True))),
        )


@dataclass(frozen=True, slots=True)
class PeerTally:
    """What one Asterisk server sent.

    Attributes:
        peer: Its address.
        calls: Calls that have ended.
        failed: Of these, in a failure.
    """

    peer: str
    calls: int
    failed: int


@dataclass(frozen=True, slots=True)
class DatabaseTally:
    """How one worker fares with one database.

    Attributes:
        name: Its name in the configuration.
        size: Connections that the worker may have.
        connected: Connections that it has.
        in_use: Of these, in a handler's hands.
        waiting: Calls that wait for a connection.
        statements: Statements sent, since the start of the worker when it tells, of the slot when it is read.
        seconds: Time that calls have waited for it; likewise.
        failures: Statements and attempts to connect that failed, for whatever reason; likewise.
        down_reason: Why it is taken to be away; empty if it is not.
        server: Which server and database, for people; without the password.
        down_s: For how long it has been away; 0 if it is not.
    """

    name: str
    size: int
    connected: int
    in_use: int
    waiting: int
    statements: int
    seconds: float
    failures: int
    down_reason: str = ""
    server: str = ""
    down_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LaneTally:
    """How one lane fares in one worker.

    Attributes:
        name: Its name in the configuration.
        limit: Calls of the lane that the worker serves at the same time, at most; 0 if it has no such lane.
        active: Calls that have a place.
        queued: Calls that wait for one.
        refused: Calls that found no room to wait, or waited for too long; since the start of the worker when
            it tells, of the slot when it is read.
    """

    name: str
    limit: int
    active: int
    queued: int
    refused: int


@dataclass(frozen=True, slots=True)
class SlotTally:
    """All that one slot's workers have counted.

    Attributes:
        pid: The process that counts, or counted last; 0 if there is no file.
        routes: One entry for each route.
        peers: One entry for each Asterisk server.
        databases: One entry for each database.
        lanes: One entry for each lane.
    """

    pid: int = 0
    routes: tuple[RouteTally, ...] = ()
    peers: tuple[PeerTally, ...] = ()
    databases: tuple[DatabaseTally, ...] = ()
    lanes: tuple[LaneTally, ...] = ()


@dataclass(frozen=True, slots=True)
class _Ledger:
    """A database's row, and what its counters stood at when this worker came."""

    row: int
    statements: int
    seconds: float
    failures: int


class Tally:
    """One worker's counters: a RecordWriter."""

    def __init__(self, descriptor: int, memory: mmap.mmap) -> None:
        """Use :meth:`open`."""
        self._descriptor = descriptor
        self._memory = memory
        self._words = memoryview(memory).cast("Q")
        self._seconds = memoryview(memory).cast("d")
        # Where the row of each subject begins, in words. Row 0 is the header: no subject has it.
        self._rows: dict[tuple[int, bytes], int] = {}
        self._counts = Counter[int]()
        for index in range(1, self._words[_WORD_ROWS]):
            kind, name = _SUBJECT.unpack_from(memory, index * _ROW_BYTES)
            self._rows[kind, name.rstrip(b"\0")] = index * _ROW_WORDS
            self._counts[kind] += 1
        self._ledgers: dict[str, _Ledger] = {}
        # The row of each lane, and what its counter stood at when this worker came.
        self._lanes: dict[str, tuple[int, int]] = {}
        # These first: where there is no room for more, there they are counted.
        self._other_routes = self._row(_Kind.ROUTE, OTHERS)
        self._other_peers = self._row(_Kind.PEER, OTHERS)
        self._routes: dict[str, int] = {}
        self._peers: dict[str, int] = {}

    @classmethod
    def open(cls, path: Path, pid: int, routes: Sequence[str]) -> Tally:
        """Go on counting where the last worker of the slot ended.

        Args:
            path: The slot's file; made if it is missing, made anew if it is none of this version. Its
                folder is made if it is missing.
            pid: The worker's process.
            routes: Names of the routes.

        Raises:
            OSError: The folder is not writable, or full.
        """
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = _reopen(path)
        if descriptor is None:
            descriptor = _make(path, pid)
        try:
            tally = cls(descriptor, mmap.mmap(descriptor, _SIZE_BYTES))
            for route in routes:
                tally._row_of_route(route)
        except OSError:
            os.close(descriptor)
            raise
        tally._forget_gauges()
        tally._words[_WORD_PID] = pid
        return tally

    def write(self, record: CallRecord, wall_s: float) -> None:
        """Count a call that has ended.

        Args:
            record: The call.
            wall_s: Not used: a count knows no time.
        """
        words, seconds = self._words, self._seconds
        row = self._routes.get(record.route) or self._row_of_route(record.route)
        words[row + _OUTCOME_WORDS.get(record.outcome, _ERROR_WORD)] += 1
        seconds[row + _TOTAL] += record.total_s
        seconds[row + _ASTERISK] += record.asterisk_s
        seconds[row + _SCRIPT] += record.script_s
        words[row + _COMMANDS] += record.commands
        words[row + _DURATIONS + bisect_left(BUCKETS_S, record.total_s)] += 1
        words[row + _SCRIPTS + bisect_left(BUCKETS_S, record.script_s - record.database_s)] += 1
        if record.queued_s:
            seconds[row + _QUEUED] += record.queued_s
        if record.database_s:
            seconds[row + _DATABASE] += record.database_s
        if record.hung_up:
            words[row + _HANGUPS] += 1
        if record.refused:
            words[row + _REFUSED] += record.refused
        peer = self._peers.get(record.peer) or self._row_of_peer(record)
        words[peer + _CALLS] += 1
        if record.outcome not in NO_FAILURES:
            words[peer + _FAILED] += 1

    def slow(self, route: str) -> None:
        """Count a call that was found to be slow."""
        self._words[self._row_of_route(route) + _SLOW] += 1

    def database(self, facts: DatabaseTally) -> None:
        """Publish how the worker fares with one of its databases.

        Args:
            facts: The gauges as they are now; the counters since this worker's start.
        """
        ledger = self._ledgers.get(facts.name) or self._open_ledger(facts.name)
        if ledger is None:
            return
        self._show(
            _DATABASE_NUMBERS,
            ledger.row,
            facts.size,
            facts.connected,
            facts.in_use,
            facts.waiting,
            ledger.statements + facts.statements,
            ledger.seconds + facts.seconds,
            ledger.failures + facts.failures,
            facts.down_reason.encode("utf-8", "surrogatepass"),
            facts.server.encode("utf-8", "surrogatepass"),
            facts.down_s,
        )

    def lane(self, facts: LaneTally) -> None:
        """Publish how one of the worker's lanes fares.

        Args:
            facts: The gauges as they are now; the counter since this worker's start.
        """
        if facts.name not in self._lanes:
            row = self._row_or(_Kind.LANE, facts.name, 0)
            self._lanes[facts.name] = row, self._words[row + _TURNED_AWAY]
        row, before = self._lanes[facts.name]
        if row:
            self._show(_LANE_NUMBERS, row, facts.limit, facts.active, facts.queued, before + facts.refused)

    def _show(self, layout: struct.Struct, row: int, *numbers: object) -> None:
        """Change the numbers of a row at once: to pack them in place would clear them first.

        Whoever read a counter at that moment would take it for one that began anew.
        """
        at_bytes = row * 8 + _AT_NUMBERS
        self._memory[at_bytes : at_bytes + layout.size] = layout.pack(*numbers)

    def _row_of_route(self, route: str) -> int:
        row = self._routes.get(route)
        if row is None:
            row = self._routes[route] = self._row_or(_Kind.ROUTE, route, self._other_routes)
        return row

    def _row_of_peer(self, record: CallRecord) -> int:
        if record.outcome == "denied":
            # Strangers get no row: there may be any number, and they would leave none for an Asterisk.
            return self._other_peers
        row = self._row_or(_Kind.PEER, record.peer, self._other_peers)
        if row != self._other_peers:
            # The others are not remembered: there may be any number of them.
            self._peers[record.peer] = row
        return row

    def _open_ledger(self, name: str) -> _Ledger | None:
        row = self._row_or(_Kind.DATABASE, name, 0)
        if not row:
            return None
        words = self._words
        ledger = _Ledger(row, words[row + _STATEMENTS], self._seconds[row + _SECONDS], words[row + _FAILURES])
        self._ledgers[name] = ledger
        return ledger

    def _row_or(self, kind: _Kind, name: str, otherwise: int) -> int:
        """Return where the row of a subject begins; something else if there is no room for one."""
        try:
            return self._row(kind, name)
        except OSError:
            return otherwise

    def _row(self, kind: _Kind, name: str) -> int:
        """Return where the row of a subject begins, in words; make it if it is missing.

        Raises:
            OSError: There is no room.
        """
        raw = name.encode("utf-8", "surrogatepass")[:_NAME_BYTES].rstrip(b"\0")
        row = self._rows.get((kind, raw))
        if row is not None:
            return row
        index = self._words[_WORD_ROWS]
        if self._counts[kind] >= _MOST[kind]:
            raise OSError(errno.ENOSPC, "the tally has no row left")
        # A full file system must fail here and not as SIGBUS when the row is written.
        os.posix_fallocate(self._descriptor, index * _ROW_BYTES // _BLOCK_BYTES * _BLOCK_BYTES, _BLOCK_BYTES)
        _SUBJECT.pack_into(self._memory, index * _ROW_BYTES, kind, raw)
        self._words[_WORD_ROWS] = index + 1
        self._counts[kind] += 1
        row = self._rows[kind, raw] = index * _ROW_WORDS
        return row

    def _forget_gauges(self) -> None:
        """Take back what the last worker of the slot said of the moment, and its databases' troubles."""
        for (kind, _), row in self._rows.items():
            if kind == _Kind.DATABASE:
                numbers = _DATABASE_NUMBERS.unpack_from(self._memory, row * 8 + _AT_NUMBERS)
                counters = numbers[_GAUGES : _GAUGES + _COUNTERS]
                self._show(_DATABASE_NUMBERS, row, *[0] * _GAUGES, *counters, b"", b"", 0.0)
            elif kind == _Kind.LANE:
                self._show(_LANE_NUMBERS, row, 0, 0, 0, self._words[row + _TURNED_AWAY])


def read_tally(path: Path) -> SlotTally:
    """Read what one slot's workers have counted; nothing if there is no file.

    Raises:
        OSError: The file may not be read.
        ValueError: It is not a tally of this version.
    """
    # Read and not mapped: a file that somebody cuts short must not kill its readers.
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        return SlotTally()
    with file:
        rows = _rows_in_use(file.fileno())
        if not rows:
            raise ValueError(
                f"{path} is not a tally of this version: use the fastagi-pool that the pool was started with"
            )
        data = os.pread(file.fileno(), rows * _ROW_BYTES, 0)
    routes, peers, databases, lanes = [], [], [], []
    for at_bytes in range(_ROW_BYTES, len(data), _ROW_BYTES):
        kind, raw = _SUBJECT.unpack_from(data, at_bytes)
        name, at_numbers = _text(raw), at_bytes + _AT_NUMBERS
        if kind == _Kind.ROUTE:
            routes.append(_read_route(name, data, at_numbers))
        elif kind == _Kind.PEER:
            peers.append(PeerTally(name, *_PEER_NUMBERS.unpack_from(data, at_numbers)))
        elif kind == _Kind.DATABASE:
            databases.append(_read_database(name, data, at_numbers))
        elif kind == _Kind.LANE:
            lanes.append(LaneTally(name, *_LANE_NUMBERS.unpack_from(data, at_numbers)))
    return SlotTally(
        pid=memoryview(data).cast("Q")[_WORD_PID],
        routes=tuple(tally for tally in routes if tally.route != OTHERS or tally.calls),
        peers=tuple(tally for tally in peers if tally.peer != OTHERS or tally.calls),
        databases=tuple(databases),
        lanes=tuple(lanes),
    )


def _read_route(name: str, data: bytes, at_bytes: int) -> RouteTally:
    numbers = _ROUTE_NUMBERS.unpack_from(data, at_bytes)
    total_s, queued_s, asterisk_s, script_s, database_s, commands, hangups, refused, slow = numbers[20:29]
    return RouteTally(
        route=name,
        outcomes=dict(zip(OUTCOMES, numbers, strict=False)),
        total_s=total_s,
        queued_s=queued_s,
        asterisk_s=asterisk_s,
        script_s=script_s,
        database_s=database_s,
        commands=commands,
        hangups=hangups,
        refused=refused,
        slow=slow,
        durations=numbers[29:48],
        scripts=numbers[48:67],
    )


def _read_database(name: str, data: bytes, at_bytes: int) -> DatabaseTally:
    numbers = _DATABASE_NUMBERS.unpack_from(data, at_bytes)
    size, connected, in_use, waiting, statements, seconds, failures, reason, server, down_s = numbers
    return DatabaseTally(
        name=name,
        size=size,
        connected=connected,
        in_use=in_use,
        waiting=waiting,
        statements=statements,
        seconds=seconds,
        failures=failures,
        down_reason=_text(reason),
        server=_text(server),
        # A worker of an older program leaves it as it was.
        down_s=down_s if _text(reason) else 0.0,
    )


def _reopen(path: Path) -> int | None:
    """Open an existing tally; None if there is none, or none of this version."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size == _SIZE_BYTES and _rows_in_use(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _make(path: Path, pid: int) -> int:
    """Make an empty tally.

    Raises:
        OSError: The folder is not writable, or full.
    """
    # In one step, so that nobody finds half a file.
    fresh = path.with_name(f"{path.name}.{pid}")
    descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.truncate(descriptor, _SIZE_BYTES)
        os.posix_fallocate(descriptor, 0, _BLOCK_BYTES)
        os.pwrite(descriptor, _HEADER.pack(_MAGIC, _VERSION, pid, 1), 0)
        fresh.rename(path)
    except OSError:
        os.close(descriptor)
        fresh.unlink(missing_ok=True)
        raise
    return descriptor


def _rows_in_use(descriptor: int) -> int:
    """Return how many rows a tally has, the header among them; 0 if it is none of this version."""
    header = os.pread(descriptor, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return 0
    magic, version, _, rows = _HEADER.unpack(header)
    whole = 1 <= rows <= _MOST_ROWS and rows * _ROW_BYTES <= os.fstat(descriptor).st_size
    return rows if whole and (magic, version) == (_MAGIC, _VERSION) else 0


def _text(raw: bytes) -> str:
    """Read a text of fixed size. A character that was cut at the end is left out."""
    text = raw.rstrip(b"\0").decode("utf-8", "replace")
    return text.rstrip("\ufffd") if raw[-1] else text
