"""Call board: shared memory in which a worker tells of every call in progress what it is doing.

Laws:
    * One writer: the worker of the slot. It waits for nobody, and telling fails no call: where there is no
      room a row writes into the void.
    * It outlives its writer, and any process may read it at any time. A row that is being written is read
      again or left out, never shown torn.
    * Callers' numbers stand in it: nobody but the user of the pool and root may read the file.

How it works: one file for each slot, made anew by each worker. It consists of blocks of 64 KiB; the first
KiB of the first block says which file this is and whose, that of the others is spare, and 42 rows follow. The
whole file is mapped at once, but a block gets its memory only when it is needed.

A row has a serial at either end. Its writer writes the last word first, then what changes, then the first
word. Readers copy it upwards, so who finds the same serial at both ends has one state: the first word says
that all of it had been written, the last one that nothing newer had been begun. Times are CLOCK_MONOTONIC,
which all processes of a machine share.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from heapq import nsmallest
from pathlib import Path
from typing import Any, Final, NamedTuple

#: The folder of all call boards, below the runtime folder.
FOLDER: Final = "calls"
_MAGIC: Final = 0x46_41_47_49_43_41_4C_4C  # "FAGICALL"
_VERSION: Final = 1
_BLOCK_BYTES: Final = 65536
_BLOCK_HEADER_BYTES: Final = 1024
_ROW_BYTES: Final = 1536
_ROWS_OF_BLOCK: Final = (_BLOCK_BYTES - _BLOCK_HEADER_BYTES) // _ROW_BYTES
#: How often a row is read again that is just being written.
_ATTEMPTS: Final = 4

_HEADER: Final = struct.Struct("@4Q")  # magic, version, the worker's process, blocks in use
#: A row: serial of what is written; accepted, hung up; ref, script, uniqueid, channel, caller, peer, route,
#: statement, command; state, since, queued, asterisk, script, database, commands; serial of what is begun.
_ROW: Final = struct.Struct("@QdQ32s160s96s128s96s48s400s224s224sQdddddQQ")
#: Parts of it, each with the offset at which it begins.
_ALL_BUT_SERIALS: Final = struct.Struct("@dQ32s160s96s128s96s48s400s224s224sQdddddQ").pack_into
_AT_ALL: Final = 8
_AT_PEER: Final = 536
_PEER_BYTES: Final = 48
_STATEMENT: Final = struct.Struct("@224s").pack_into
_AT_STATEMENT: Final = 984
_STATEMENT_BYTES: Final = 224
_COMMAND_AND_STATE: Final = struct.Struct("@224sQdddddQ").pack_into
_STATE_AND_REPLIES: Final = struct.Struct("@Qddd").pack_into
_AT_COMMAND: Final = 1208
_STATE: Final = struct.Struct("@QdddddQ").pack_into
_AT_STATE: Final = 1432
#: Single words of a row, counted in words.
_WORD_WRITTEN: Final = 0
_WORD_HUNG_UP: Final = 2
_WORD_STATE: Final = 179
_WORD_BEGUN: Final = 186
#: Behind the row proper: it is read when the writer is dead, and need not fit the rest.
_WORD_FINGERPRINT: Final = 187
_AT_FINGERPRINT: Final = 8 * _WORD_FINGERPRINT
_FINGERPRINT: Final = struct.Struct("@Q").unpack_from
_ROW_WORDS: Final = _ROW_BYTES // 8
#: The number of a row that is on no board.
_NO_NUMBER: Final = 0xFFFFFF


class CallState(IntEnum):
    """What a call is doing."""

    FREE = 0
    HEADER = 1
    QUEUED = 2
    ASTERISK = 3
    SCRIPT = 4
    DATABASE = 5
    FINISHED = 6
    ENDING = 7

    @property
    def letter(self) -> str:
        """The state as one letter, as Apache's status page has it."""
        return _LETTERS[self]

    @property
    def words(self) -> str:
        """The state for people."""
        return _WORDS[self]


_LETTERS: Final = "_RQAWDFE"
_WORDS: Final = (
    "no call",
    "reading the environment",
    "queued",
    "in Asterisk",
    "in script",
    "in database",
    "finished, works on",
    "ending",
)
_STATES: Final = tuple(CallState)
#: Of a call whose environment was not read yet.
_NOBODY: Final = ("", "", "", "", "")
# Plain numbers: an attribute of an enum costs as much as what is done with it here.
_HEADER_STATE: Final = int(CallState.HEADER)
_QUEUED: Final = int(CallState.QUEUED)
_ASTERISK: Final = int(CallState.ASTERISK)
_SCRIPT: Final = int(CallState.SCRIPT)
_DATABASE: Final = int(CallState.DATABASE)
_FINISHED: Final = int(CallState.FINISHED)
_ENDING: Final = int(CallState.ENDING)


class Clocks(NamedTuple):
    """Where a call's time went; the four do not overlap."""

    queued_s: float
    asterisk_s: float
    script_s: float
    database_s: float


class CallFacts(NamedTuple):
    """A call in progress as it was at one moment. A tuple, because thousands are made at once.

    Attributes:
        slot: The worker's slot.
        pid: The worker's process.
        state: What the call does.
        accepted_s: Monotonic time at which it was accepted.
        since_s: Monotonic time at which the state began.
        queued_s: Waiting for a place, until the state began; as the other clocks.
        asterisk_s: Waiting for Asterisk's replies.
        script_s: The handler's own time, the database included.
        database_s: Of the script's time, waiting for the database.
        commands: Number of AGI commands so far.
        hung_up: Whether the caller has hung up.
        ref: The reference under which the logs know it; empty while the environment is being read.
        route: Name of the route; empty before it was found.
        script: The script that Asterisk asked for.
        peer: Address of the Asterisk.
        uniqueid: The channel's unique id.
        channel: The channel's name.
        callerid: The caller's number.
        command: The last AGI command, cut if it is long.
        statement: The last statement, cut if it is long.
        fingerprint: What requests like it have in common; 0 for nothing.
        number: Number of its row on the worker's board; -1 if it stands on none.
    """

    slot: int
    pid: int
    state: CallState
    accepted_s: float
    since_s: float
    queued_s: float
    asterisk_s: float
    script_s: float
    database_s: float
    commands: int
    hung_up: bool
    ref: str
    route: str
    script: str
    peer: str
    uniqueid: str
    channel: str
    callerid: str
    command: str
    statement: str
    fingerprint: int = 0
    number: int = -1

    def clocks(self, now_s: float) -> Clocks:
        """Return the four clocks at this moment: the script's is without the database here."""
        queued_s, asterisk_s, database_s = self.queued_s, self.asterisk_s, self.database_s
        script_s = max(0.0, self.script_s - database_s)
        running_s = max(0.0, now_s - self.since_s)
        # Compared as plain numbers: this is done for thousands of calls at once.
        state = int(self.state)
        if state == _ASTERISK:
            asterisk_s += running_s
        elif state in (_SCRIPT, _FINISHED):
            script_s += running_s
        elif state == _DATABASE:
            database_s += running_s
        elif state == _QUEUED:
            queued_s += running_s
        return Clocks(queued_s, asterisk_s, script_s, database_s)

    def as_json(self, now_s: float) -> dict[str, Any]:
        """Return it as plain values for ``json.dumps``; ages instead of monotonic times."""
        queued_s, asterisk_s, script_s, database_s = self.clocks(now_s)
        return {
            "slot": self.slot,
            "pid": self.pid,
            "ref": self.ref,
            "route": self.route,
            "script": self.script,
            "peer": self.peer,
            "uniqueid": self.uniqueid,
            "channel": self.channel,
            "callerid": self.callerid,
            "state": _WORDS[self.state],
            "letter": _LETTERS[self.state],
            "age_s": _cut(max(0.0, now_s - self.accepted_s)),
            "state_s": _cut(max(0.0, now_s - self.since_s)),
            "queued_s": _cut(queued_s),
            "asterisk_s": _cut(asterisk_s),
            "script_s": _cut(script_s),
            "database_s": _cut(database_s),
            "commands": self.commands,
            "command": self.command,
            "statement": self.statement,
            "hung_up": self.hung_up,
        }


def _cut(seconds: float) -> float:
    """Leave whole milliseconds; much faster than rounding."""
    return int(seconds * 1000) / 1000


class _Place(NamedTuple):
    """Where a row lies."""

    memory: mmap.mmap | bytearray
    words: memoryview[int]
    at_bytes: int
    number: int


class CallRow:
    """One call's row. Its methods are called at every step of every call, raise nothing and wait for nothing.

    All times are monotonic seconds; all clocks are totals since the call was accepted.

    A call is written down when its route is found, or when it has to wait: to write every step before would
    cost as much again, and most calls are over so soon. Whoever wants it earlier says :meth:`show`.

    Attributes:
        number: Which row of its board it is, from 0; 0xFFFFFF if it is on none.
    """

    __slots__ = (
        "_accepted_s",
        "_asterisk_s",
        "_at",
        "_base",
        "_commands",
        "_database_s",
        "_free",
        "_home",
        "_identity",
        "_memory",
        "_peer",
        "_queued_s",
        "_script_s",
        "_serial",
        "_shown",
        "_since_s",
        "_state",
        "_words",
        "number",
    )

    def __init__(self, place: _Place, free: list[CallRow] | None) -> None:
        """Write into this place, one call after another.

        Args:
            place: Where.
            free: Where the row goes after each call; None if nobody wants it back.
        """
        self._free = free
        self._memory, self._words, self._at, self.number = place
        self._base = self._at // 8
        # Goes on where the last call in this place ended: the serials of two states are never the same.
        self._serial = self._words[self._base + _WORD_BEGUN]
        self.accepted("", 0.0)

    def accepted(self, peer: str, now_s: float) -> None:
        """A connection was accepted; nothing else is known of it."""
        self._peer = peer
        self._accepted_s = self._since_s = now_s
        self._identity = _NOBODY
        self._shown = False
        self._commands = 0
        self._queued_s = self._asterisk_s = self._script_s = self._database_s = 0.0
        self._state = self._home = _HEADER_STATE

    def show(self) -> None:
        """Write down what is known so far, if nothing was written yet."""
        if not self._shown:
            self._write("")

    def queued(self, now_s: float) -> None:
        """It waits for a place."""
        self._leave(now_s)
        self.show()
        self._enter(_QUEUED, now_s)

    def called_in(self, queued_s: float, now_s: float) -> None:
        """It has got its place.

        Args:
            queued_s: How long it has waited in all.
            now_s: Now.
        """
        self._queued_s = queued_s
        self._enter(self._home, now_s)

    def known(self, ref: str, script: str, uniqueid: str, channel: str, callerid: str) -> None:
        """Its environment was read."""
        self._identity = (ref, script, uniqueid, channel, callerid)

    def resembles(self, fingerprint: int) -> None:
        """Note what the request has in common with others like it: see ``quarantine.fingerprint``."""
        self._words[self._base + _WORD_FINGERPRINT] = fingerprint

    def routed(self, route: str, now_s: float) -> None:
        """Its route was found, and the script begins."""
        self._home = self._state = _SCRIPT
        self._since_s = now_s
        self._write(route)

    def _write(self, route: str) -> None:
        """Write the whole row."""
        self._shown = True
        words, base = self._words, self._base
        self._serial = serial = words[base + _WORD_BEGUN] = self._serial + 1
        ref, script, uniqueid, channel, callerid = self._identity
        _ALL_BUT_SERIALS(
            self._memory,
            self._at + _AT_ALL,
            self._accepted_s,
            0,
            ref.encode("utf-8", "surrogatepass"),
            script.encode("utf-8", "surrogatepass"),
            uniqueid.encode("utf-8", "surrogatepass"),
            channel.encode("utf-8", "surrogatepass"),
            callerid.encode("utf-8", "surrogatepass"),
            self._peer.encode("utf-8", "surrogatepass"),
            route.encode("utf-8", "surrogatepass"),
            b"",
            b"",
            self._state,
            self._since_s,
            self._queued_s,
            self._asterisk_s,
            self._script_s,
            self._database_s,
            self._commands,
        )
        words[base] = serial

    def asks(self, line: bytes, script_s: float, now_s: float) -> None:
        """A command goes out.

        Args:
            line: The command as it is sent.
            script_s: The handler's own time so far, the database included.
            now_s: Now.
        """
        words, base = self._words, self._base
        self._serial = serial = words[base + _WORD_BEGUN] = self._serial + 1
        self._script_s = script_s
        self._commands += 1
        self._since_s = now_s
        self._state = _ASTERISK
        _COMMAND_AND_STATE(
            self._memory,
            self._at + _AT_COMMAND,
            line,
            _ASTERISK,
            now_s,
            self._queued_s,
            self._asterisk_s,
            script_s,
            self._database_s,
            self._commands,
        )
        words[base] = serial

    def runs(self, asterisk_s: float, now_s: float) -> None:
        """The reply is there, and the script goes on.

        Args:
            asterisk_s: How long replies were waited for in all.
            now_s: Now.
        """
        words, base = self._words, self._base
        self._serial = serial = words[base + _WORD_BEGUN] = self._serial + 1
        self._asterisk_s = asterisk_s
        self._since_s = now_s
        self._state = home = self._home
        # Not the other clocks: they stand there since the command went out.
        _STATE_AND_REPLIES(self._memory, self._at + _AT_STATE, home, now_s, self._queued_s, asterisk_s)
        words[base] = serial

    def queries(self, statement: str, now_s: float) -> None:
        """The script waits for the database."""
        self._leave(now_s)
        self._begin()
        # A statement may be megabytes: only what fits is encoded.
        shown = statement[:_STATEMENT_BYTES].encode("utf-8", "surrogatepass")
        _STATEMENT(self._memory, self._at + _AT_STATEMENT, shown)
        self._enter(_DATABASE, now_s)

    def answered(self, database_s: float, now_s: float) -> None:
        """The database has answered, and the script goes on.

        Args:
            database_s: How long the database was waited for in all.
            now_s: Now.
        """
        self._leave(now_s)
        self._database_s = database_s
        self._enter(self._home, now_s)

    def hung_up(self) -> None:
        """The caller has hung up."""
        self._words[self._base + _WORD_HUNG_UP] = 1

    def finished(self, now_s: float) -> None:
        """The handler has given the call back, and works on."""
        self._leave(now_s)
        self._home = _FINISHED
        self._enter(_FINISHED, now_s)

    def ending(self, now_s: float) -> None:
        """The session is being closed."""
        self._leave(now_s)
        # Else what stands there of the last call in this row would be taken for this one's.
        self.show()
        self._enter(_ENDING, now_s)

    def release(self) -> None:
        """The call is over, and another may have the row: whoever still holds it must tell it no more."""
        self._words[self._base + _WORD_STATE] = 0
        if self._free is not None:
            self._free.append(self)

    def _begin(self) -> None:
        """Mark the row as being written; the first word says when it is done."""
        self._serial = self._words[self._base + _WORD_BEGUN] = self._serial + 1

    def _leave(self, now_s: float) -> None:
        """Add the time of the present state to its clocks."""
        state, running_s = self._state, now_s - self._since_s
        if _SCRIPT <= state <= _FINISHED:
            self._script_s += running_s
            if state == _DATABASE:
                self._database_s += running_s
        elif state == _ASTERISK:
            self._asterisk_s += running_s
        elif state == _QUEUED:
            self._queued_s += running_s

    def _enter(self, state: int, now_s: float) -> None:
        """Write state and clocks."""
        self._state = state
        self._since_s = now_s
        words, base = self._words, self._base
        self._serial = serial = words[base + _WORD_BEGUN] = self._serial + 1
        _STATE(
            self._memory,
            self._at + _AT_STATE,
            state,
            now_s,
            self._queued_s,
            self._asterisk_s,
            self._script_s,
            self._database_s,
            self._commands,
        )
        words[base] = serial


def _make_void() -> _Place:
    memory = bytearray(_ROW_BYTES)
    return _Place(memory, memoryview(memory).cast("Q"), 0, _NO_NUMBER)


#: A place that nobody reads.
_VOID: Final = _make_void()


class NoRow(CallRow):
    """A row that nobody reads: for calls beyond the room that there is, and where there is no board."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_VOID, None)


NO_ROW: Final = NoRow()


class CallBoard:
    """All rows of one worker, as the worker sees them.

    Attributes:
        not_shown: How many calls got no row.
    """

    def __init__(self, descriptor: int, memory: mmap.mmap, most: int) -> None:
        """Use :meth:`create`."""
        self.not_shown = 0
        self._descriptor = descriptor
        self._memory = memory
        self._words = memoryview(memory).cast("Q")
        self._most = most
        self._blocks = 0
        self._free: list[CallRow] = []

    @classmethod
    def create(cls, path: Path, slot: int, pid: int, most: int) -> CallBoard:
        """Make an empty board in place of the last worker's.

        Args:
            path: Where; on a memory file system if possible. Its folder is made if it is missing.
            slot: The worker's slot.
            pid: The worker's process.
            most: How many calls are shown at the same time, at most.

        Raises:
            OSError: The folder is not writable, or full.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        size_bytes = max(1, -(-most // _ROWS_OF_BLOCK)) * _BLOCK_BYTES
        # In one step, so that a reader of the old one keeps a whole file.
        fresh = path.with_name(f"{slot}.{pid}")
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(descriptor, size_bytes)
            # A full file system must fail here and not as SIGBUS at the first write.
            os.posix_fallocate(descriptor, 0, _BLOCK_BYTES)
            board = cls(descriptor, mmap.mmap(descriptor, size_bytes), most)
            board._grow()
            _HEADER.pack_into(board._memory, 0, _MAGIC, _VERSION, pid, board._blocks)
            fresh.rename(path)
        except OSError:
            os.close(descriptor)
            fresh.unlink(missing_ok=True)
            raise
        return board

    def take(self) -> CallRow:
        """Return a row for a new call; one that shows nothing if there is no room (and count that)."""
        try:
            if not self._free:
                self._grow()
            return self._free.pop()
        except (OSError, IndexError):
            self.not_shown += 1
            return NO_ROW

    def _grow(self) -> None:
        """Take one more block into use, if one is left.

        Raises:
            OSError: There is no memory for it.
        """
        rows = min(_ROWS_OF_BLOCK, self._most - self._blocks * _ROWS_OF_BLOCK)
        if rows <= 0:
            return
        begins = self._blocks * _BLOCK_BYTES
        os.posix_fallocate(self._descriptor, begins, _BLOCK_BYTES)
        first = begins + _BLOCK_HEADER_BYTES
        # The lowest last, because the last is taken first.
        for row in reversed(range(rows)):
            number = self._blocks * _ROWS_OF_BLOCK + row
            place = _Place(self._memory, self._words, first + row * _ROW_BYTES, number)
            self._free.append(CallRow(place, self._free))
        self._blocks += 1
        self._words[3] = self._blocks


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A copy of one board.

    Attributes:
        slot: Its slot.
        pid: The worker whose board it is.
        data: The whole file, and behind it the rows that had to be read again.
        rows: Where the rows of calls in progress begin.
        again: For each row that was read again, where it begins in the file.
    """

    slot: int
    pid: int
    data: bytes
    rows: list[int]
    again: list[int]

    def facts(self, rows: list[int]) -> list[CallFacts]:
        """Read these rows."""
        texts: dict[bytes, str] = {}
        return [self._read(row, texts) for row in rows]

    def _read(self, at_bytes: int, texts: dict[bytes, str]) -> CallFacts:
        """Read one row with the help of the texts that were read before: most of them are the same."""
        row = _ROW.unpack_from(self.data, at_bytes)
        for raw in row[3:12]:
            if raw not in texts:
                texts[raw] = _text(raw)
        return CallFacts(
            self.slot,
            self.pid,
            _STATES[row[12]],
            row[1],
            row[13],
            row[14],
            row[15],
            row[16],
            row[17],
            row[18],
            hung_up=bool(row[2]),
            ref=texts[row[3]],
            script=texts[row[4]],
            uniqueid=texts[row[5]],
            channel=texts[row[6]],
            callerid=texts[row[7]],
            peer=texts[row[8]],
            route=texts[row[9]],
            statement=texts[row[10]],
            command=texts[row[11]].rstrip("\r\n"),
            fingerprint=_FINGERPRINT(self.data, at_bytes + _AT_FINGERPRINT)[0],
            number=self._number(at_bytes),
        )

    def _number(self, at_bytes: int) -> int:
        """Return the number of the row that begins here."""
        behind = at_bytes - (len(self.data) - len(self.again) * _ROW_BYTES)
        block, within = divmod(self.again[behind // _ROW_BYTES] if behind >= 0 else at_bytes, _BLOCK_BYTES)
        return block * _ROWS_OF_BLOCK + (within - _BLOCK_HEADER_BYTES) // _ROW_BYTES


def read_calls(path: Path, slot: int) -> list[CallFacts]:
    """Read all calls in progress of one worker, in no order.

    Args:
        path: The worker's board.
        slot: The worker's slot.

    Raises:
        OSError: The file may not be read. (No file is no call.)
        ValueError: It is not a board of calls of this version.
    """
    snapshot = _copy(path, slot)
    return snapshot.facts(snapshot.rows) if snapshot else []


def oldest_calls(path: Path, slot: int, most: int) -> list[CallFacts]:
    """Read the calls of one worker that were accepted first, the oldest in front; cheaper than all.

    Args:
        path: The worker's board.
        slot: The worker's slot.
        most: How many.

    Raises:
        OSError: The file may not be read. (No file is no call.)
        ValueError: It is not a board of calls of this version.
    """
    snapshot = _copy(path, slot)
    if snapshot is None:
        return []
    accepted_s = struct.Struct("@d").unpack_from
    oldest = nsmallest(most, snapshot.rows, key=lambda row: accepted_s(snapshot.data, row + 8))
    return snapshot.facts(oldest)


def count_calls(path: Path, slot: int) -> tuple[int, Counter[tuple[str, str]]]:
    """Count the calls in progress of one worker; cheaper than reading them.

    Args:
        path: The worker's board.
        slot: The worker's slot.

    Returns:
        The worker's process (0 if there is no file), and the number of calls by peer and route.

    Raises:
        OSError: The file may not be read. (No file is no call.)
        ValueError: It is not a board of calls of this version.
    """
    counts: Counter[tuple[str, str]] = Counter()
    snapshot = _copy(path, slot)
    if snapshot is None:
        return 0, counts
    data = snapshot.data
    same = Counter(data[row + _AT_PEER : row + _AT_STATEMENT] for row in snapshot.rows)
    for peer_and_route, calls in same.items():
        counts[_text(peer_and_route[:_PEER_BYTES]), _text(peer_and_route[_PEER_BYTES:])] += calls
    return snapshot.pid, counts


def _copy(path: Path, slot: int) -> _Snapshot | None:
    """Copy a board; None if there is none."""
    # Read and not mapped: a file that somebody cuts short must not kill its readers.
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        return None
    with file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise _not_a_board(path)
        magic, version, pid, blocks = _HEADER.unpack(header)
        size_bytes = os.fstat(file.fileno()).st_size
        if (magic, version) != (_MAGIC, _VERSION) or blocks * _BLOCK_BYTES > size_bytes:
            raise _not_a_board(path)
        data = os.pread(file.fileno(), blocks * _BLOCK_BYTES, 0)
        words = memoryview(data[: len(data) // _BLOCK_BYTES * _BLOCK_BYTES]).cast("Q")
        rows, torn = _occupied(words)
        again = {at_bytes: row for at_bytes in torn if (row := _read_again(file.fileno(), at_bytes))}
    rows += range(len(data), len(data) + len(again) * _ROW_BYTES, _ROW_BYTES)
    return _Snapshot(slot, pid, b"".join([data, *again.values()]), rows, list(again))


def _occupied(words: memoryview[int]) -> tuple[list[int], list[int]]:
    """Return where the rows of calls in progress begin: of those that are whole, and of the others."""
    rows: list[int] = []
    torn: list[int] = []
    for block in range(0, len(words), _BLOCK_BYTES // 8):
        first = block + _BLOCK_HEADER_BYTES // 8
        for row in range(first, first + _ROWS_OF_BLOCK * _ROW_WORDS, _ROW_WORDS):
            if words[row + _WORD_STATE]:
                (rows if words[row + _WORD_WRITTEN] == words[row + _WORD_BEGUN] else torn).append(row * 8)
    return rows, torn


def _read_again(descriptor: int, at_bytes: int) -> bytes:
    """Read one row when it is whole; nothing if it is over, or never whole."""
    for _ in range(_ATTEMPTS):
        data = os.pread(descriptor, _ROW_BYTES, at_bytes)
        if len(data) < _ROW_BYTES:
            break
        words = memoryview(data).cast("Q")
        if words[_WORD_WRITTEN] == words[_WORD_BEGUN]:
            return data if words[_WORD_STATE] else b""
    return b""


def _text(raw: bytes) -> str:
    """Read a text of fixed size. A character that was cut at the end is left out."""
    text = raw.rstrip(b"\0").decode("utf-8", "replace")
    return text.rstrip("\ufffd") if raw[-1] else text


def _not_a_board(path: Path) -> ValueError:
    return ValueError(
        f"{path} is not a board of calls of this version: use the fastagi-pool that the pool was started with"
    )
