"""The scoreboard: shared memory in which every worker tells how it fares.

Laws:
    * One slot per worker, one writer per field: the worker writes its slot, the master only clears
      it before a new worker takes it. No locks: every field is one aligned 64-bit word.
    * What the master tells of its supervision stands in the header, and is the master's alone to write.
    * It outlives its writers. After a crash the master, and ``fastagi-pool status`` from outside,
      still read what the worker last said.
    * Nothing here decides anything.

How it works: a file of fixed size, mapped shared by the master before any fork. A header of words
says which master it belongs to and how it fares; then one row of words per slot; then room for one text.
Times are CLOCK_MONOTONIC in milliseconds, which all processes of a machine share.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final

#: Slots in a scoreboard: workers of all generations, draining ones included.
SLOTS: Final = 1024
_MAGIC: Final = 0x46_41_47_49_50_4F_4F_4C  # "FAGIPOOL"
_VERSION: Final = 2
_HEADER_WORDS: Final = 64
_SLOT_WORDS: Final = 16
_TEXT_BYTES: Final = 4096
_TEXT_BEGINS: Final = 8 * (_HEADER_WORDS + SLOTS * _SLOT_WORDS)
_SIZE_BYTES: Final = _TEXT_BEGINS + _TEXT_BYTES

#: Why workers were replaced or ended, in the order in which the header counts them.
RESTART_REASONS: Final = (
    "calls",
    "lifetime",
    "memory",
    "reload",
    "died",
    "stuck",
    "boot",
    "resize",
    "signal",
)


class _Header(IntEnum):
    MAGIC = 0
    VERSION = 1
    MASTER_PID = 2
    STARTED_MS = 3
    GENERATION = 4
    #: Number of slots in use or used so far: nobody need look beyond.
    USED = 5
    WANTED = 6
    LISTEN_QUEUE = 7
    LISTEN_LIMIT = 8
    LISTEN_MOST = 9
    RELOADS = 10
    REFUSED = 11
    LOADING = 12
    #: When the last reload was decided, one way or the other; 0 for none so far.
    LAST_RELOAD_MS = 13
    UPGRADES = 14
    STOPPING = 15
    LOST_LINES = 16
    #: Length of the text behind the slots: why the last reload was refused.
    TEXT_BYTES = 17
    #: Calls that had begun in workers that died, and requests that were put into quarantine for that.
    LOST_CALLS = 18
    QUARANTINED = 19
    #: The first of the words that count restarts, one for each reason.
    RESTARTS = 32


class _Field(IntEnum):
    PID = 0
    GENERATION = 1
    STATE = 2
    STARTED_MS = 3
    #: The worker promises to write again before this moment; 0 promises nothing.
    DEADLINE_MS = 4
    ACTIVE = 5
    SERVED = 6
    FAILED = 7
    RSS_BYTES = 8
    #: At this many calls the worker wakes the master; 0 for never. Written by the master.
    CALL_LIMIT = 9
    #: Calls accepted, counted from where the others stood when this worker came: for sharing evenly.
    TURNS = 10
    #: Calls that wait for a place, and how many places there are.
    QUEUED = 11
    PLACES = 12
    #: How late the hub was at the last beat.
    LAG_MS = 13
    #: Log lines that the worker could not write.
    LOST_LINES = 14
    #: The process beside the worker that tells the truth if it dies.
    WITNESS = 15


class WorkerState(IntEnum):
    """What a worker says about itself."""

    FREE = 0
    STARTING = 1
    READY = 2
    DRAINING = 3


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """One slot as it was at one moment.

    Attributes:
        slot: Its number.
        pid: The worker's process; 0 before it has said so.
        generation: Which load of the configuration and code it runs.
        state: What it says it does.
        started_s: Monotonic time of its start.
        deadline_s: Monotonic time by which it promised a sign of life; 0 for no promise.
        active: Calls in progress, without those that wait for a place.
        served: Calls ended.
        failed: Calls ended in a failure.
        rss_bytes: Resident memory as it last measured.
        queued: Calls that wait for a place in it.
        places: Calls that it serves at the same time, at most; 0 before it has said so.
        lag_s: How late its hub was at its last beat: how long calls had to wait for their turn.
        lost_lines: Log lines that it could not write.
        witness: The process beside it; 0 before it has said so.
    """

    slot: int
    pid: int
    generation: int
    state: WorkerState
    started_s: float
    deadline_s: float
    active: int
    served: int
    failed: int
    rss_bytes: int
    queued: int = 0
    places: int = 0
    lag_s: float = 0.0
    lost_lines: int = 0
    witness: int = 0


@dataclass(frozen=True, slots=True)
class Supervision:
    """What the master tells of its supervision.

    Attributes:
        workers_wanted: How many workers shall serve.
        listen_queue: Connections that wait to be accepted, over all TCP sockets.
        listen_limit: How many may.
        listen_most: The most that were seen waiting.
        reloads: Reloads that were decided, refused ones included.
        refused: Reloads of which nothing came.
        loading: Whether a new generation is being loaded, or its first worker started.
        last_reload_s: Monotonic time at which the last reload was decided; 0 for none so far.
        upgrades: How often the master replaced itself by a newly installed program, or tried to in vain.
        stopping: Whether the pool ends.
        lost_lines: Log lines that the master, and workers that have ended, could not write.
        restarts: Why workers were replaced or ended, each reason with its number.
        error: Why the last reload or upgrade was refused; empty if it was not.
        lost_calls: Calls that had begun in workers that died.
        quarantined: How often a request was put into quarantine for having ended workers.
    """

    workers_wanted: int = 0
    listen_queue: int = 0
    listen_limit: int = 0
    listen_most: int = 0
    reloads: int = 0
    refused: int = 0
    loading: bool = False
    last_reload_s: float = 0.0
    upgrades: int = 0
    stopping: bool = False
    lost_lines: int = 0
    restarts: Mapping[str, int] = field(default_factory=dict)
    error: str = ""
    lost_calls: int = 0
    quarantined: int = 0


class SlotWriter:
    """One worker's own slot: the only writer it has.

    Plain attributes would be slower than the calls they count; this writes words directly.
    """

    __slots__ = ("_base", "_board", "_words", "slot")

    def __init__(self, board: Scoreboard, slot: int) -> None:
        self.slot = slot
        self._board = board
        self._words = board.words
        self._base = _HEADER_WORDS + slot * _SLOT_WORDS

    def begin(self, pid: int, generation: int, now_s: float, witness: int = 0) -> None:
        """Take the slot over at the start of the worker.

        Args:
            pid: Its process.
            generation: Its generation.
            now_s: Monotonic time.
            witness: The process that tells the truth if this one dies.
        """
        self._set(_Field.WITNESS, witness)
        self._set(_Field.PID, pid)
        self._set(_Field.GENERATION, generation)
        self._set(_Field.STARTED_MS, int(now_s * 1000))
        self._set(_Field.TURNS, self._board.fewest_turns())
        self._set(_Field.STATE, WorkerState.STARTING)

    def set_state(self, state: WorkerState) -> None:
        """Say what the worker does from now on."""
        self._set(_Field.STATE, state)

    def promise(self, deadline_s: float) -> None:
        """Promise a sign of life before this monotonic time."""
        self._set(_Field.DEADLINE_MS, int(deadline_s * 1000))

    def set_rss(self, rss_bytes: int) -> None:
        """Publish the resident memory."""
        self._set(_Field.RSS_BYTES, rss_bytes)

    def set_queued(self, queued: int) -> None:
        """Publish how many calls wait for a place."""
        self._set(_Field.QUEUED, queued)

    def set_places(self, places: int) -> None:
        """Publish how many calls are served at the same time, at most."""
        self._set(_Field.PLACES, places)

    def set_lag(self, lag_s: float) -> None:
        """Publish how late the hub was."""
        self._set(_Field.LAG_MS, max(0, int(lag_s * 1000)))

    def set_lost_lines(self, lines: int) -> None:
        """Publish how many log lines could not be written."""
        self._set(_Field.LOST_LINES, lines)

    def takes_turn(self) -> None:
        """Count a connection that was accepted."""
        self._words[self._base + 10] += 1

    def call_begins(self) -> None:
        """Count a call in."""
        self._words[self._base + 5] += 1

    def probe_ends(self) -> None:
        """Take back a call that turned out to be a connection without a word."""
        self._words[self._base + 5] -= 1

    def call_ends(self, failed: bool) -> bool:
        """Count a call out; return whether the master wants to be woken for it."""
        words, base = self._words, self._base
        words[base + 5] -= 1
        served = words[base + 6] + 1
        words[base + 6] = served
        if failed:
            words[base + 7] += 1
        return served == words[base + 9]

    @property
    def active(self) -> int:
        """Calls in progress, and those that wait for a place."""
        return self._words[self._base + _Field.ACTIVE]

    @property
    def turns(self) -> int:
        """Calls accepted, as the others count them."""
        return self._words[self._base + _Field.TURNS]

    def _set(self, field: _Field, value: int) -> None:
        self._words[self._base + field] = value


class Scoreboard:
    """The whole board, as any process sees it.

    Attributes:
        words: All of it as unsigned 64-bit words.
        descriptor: The open file, for the master to pass on; -1 elsewhere.
    """

    def __init__(self, memory: mmap.mmap, descriptor: int = -1) -> None:
        self._memory = memory
        self.descriptor = descriptor
        self.words = memoryview(memory).cast("Q")

    @classmethod
    def create(cls, path: Path, master_pid: int, now_s: float) -> Scoreboard:
        """Make a new board (master only).

        The file takes the place of an old one in one step, so a reader of the old one keeps a
        whole picture.

        Args:
            path: Where; on a memory file system if possible.
            master_pid: Whose it is.
            now_s: Monotonic time.

        Raises:
            OSError: The folder is not writable, or full.
        """
        fresh = path.with_name(f"{path.name}.{master_pid}")
        fresh.unlink(missing_ok=True)
        # Root may do this in somebody else's folder: a link that waits there must lead nowhere.
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            # Reserve the blocks: a full file system must fail here and not as SIGBUS later.
            os.posix_fallocate(fd, 0, _SIZE_BYTES)
            board = cls(mmap.mmap(fd, _SIZE_BYTES), fd)
        except OSError:
            fresh.unlink()
            os.close(fd)
            raise
        board.words[_Header.VERSION] = _VERSION
        board.words[_Header.MASTER_PID] = master_pid
        board.words[_Header.STARTED_MS] = int(now_s * 1000)
        board.words[_Header.MAGIC] = _MAGIC
        fresh.rename(path)
        return board

    @classmethod
    def attach(cls, path: Path) -> Scoreboard:
        """Map an existing board for reading (any process).

        Raises:
            OSError: There is none, or it may not be read.
            ValueError: The file is not a scoreboard of this version.
        """
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        if len(memory) != _SIZE_BYTES:
            raise ValueError(f"{path} is not a scoreboard of this version")
        board = cls(memory)
        board.check(str(path))
        return board

    @classmethod
    def share(cls, descriptor: int) -> Scoreboard:
        """Map the master's board for writing: one slot in a worker, or all by a master that took over.

        By descriptor: the file may have been cleaned away meanwhile.

        Raises:
            OSError: It cannot be mapped.
            ValueError: The file is shorter than a scoreboard of this version.
        """
        return cls(mmap.mmap(descriptor, _SIZE_BYTES), descriptor)

    def check(self, name: str) -> None:
        """Make sure that it is a scoreboard.

        Args:
            name: What to call it.

        Raises:
            ValueError: It is none of this version.
        """
        if (self.words[_Header.MAGIC], self.words[_Header.VERSION]) != (_MAGIC, _VERSION):
            raise ValueError(f"{name} is not a scoreboard of this version")

    @property
    def master_pid(self) -> int:
        """The process that made the board."""
        return self.words[_Header.MASTER_PID]

    @property
    def started_s(self) -> float:
        """Monotonic time at which the master made the board."""
        return self.words[_Header.STARTED_MS] / 1000

    @property
    def generation(self) -> int:
        """The generation in charge."""
        return self.words[_Header.GENERATION]

    def set_generation(self, generation: int) -> None:
        """Publish which generation is in charge (master only)."""
        self.words[_Header.GENERATION] = generation

    @property
    def supervision(self) -> Supervision:
        """What the master tells of its supervision."""
        words = self.words[:_HEADER_WORDS].tolist()
        length = min(words[_Header.TEXT_BYTES], _TEXT_BYTES)
        return Supervision(
            workers_wanted=words[_Header.WANTED],
            listen_queue=words[_Header.LISTEN_QUEUE],
            listen_limit=words[_Header.LISTEN_LIMIT],
            listen_most=words[_Header.LISTEN_MOST],
            reloads=words[_Header.RELOADS],
            refused=words[_Header.REFUSED],
            loading=bool(words[_Header.LOADING]),
            last_reload_s=words[_Header.LAST_RELOAD_MS] / 1000,
            upgrades=words[_Header.UPGRADES],
            stopping=bool(words[_Header.STOPPING]),
            lost_lines=words[_Header.LOST_LINES],
            restarts={
                reason: words[_Header.RESTARTS + place] for place, reason in enumerate(RESTART_REASONS)
            },
            error=self._memory[_TEXT_BEGINS : _TEXT_BEGINS + length].decode(errors="replace"),
            lost_calls=words[_Header.LOST_CALLS],
            quarantined=words[_Header.QUARANTINED],
        )

    def supervise(self, supervision: Supervision) -> None:
        """Publish the state of the supervision (master only)."""
        text = supervision.error.encode(errors="replace")[:_TEXT_BYTES]
        words = self.words
        # The length first: a reader sees less of the text rather than two texts in one.
        words[_Header.TEXT_BYTES] = 0
        self._memory[_TEXT_BEGINS : _TEXT_BEGINS + len(text)] = text
        words[_Header.TEXT_BYTES] = len(text)
        words[_Header.WANTED] = supervision.workers_wanted
        words[_Header.LISTEN_QUEUE] = supervision.listen_queue
        words[_Header.LISTEN_LIMIT] = supervision.listen_limit
        words[_Header.LISTEN_MOST] = supervision.listen_most
        words[_Header.LOADING] = supervision.loading
        words[_Header.LAST_RELOAD_MS] = int(supervision.last_reload_s * 1000)
        words[_Header.UPGRADES] = supervision.upgrades
        words[_Header.STOPPING] = supervision.stopping
        words[_Header.LOST_LINES] = supervision.lost_lines
        words[_Header.LOST_CALLS] = supervision.lost_calls
        words[_Header.QUARANTINED] = supervision.quarantined
        for place, reason in enumerate(RESTART_REASONS):
            words[_Header.RESTARTS + place] = supervision.restarts.get(reason, 0)
        # Last, because who waits for a reload looks at these.
        words[_Header.REFUSED] = supervision.refused
        words[_Header.RELOADS] = supervision.reloads

    def clear(self, slot: int, call_limit: int = 0) -> None:
        """Empty a slot for its next worker, or after its last (master only).

        Args:
            slot: Which one.
            call_limit: Calls after which its worker wakes the master; 0 for never.
        """
        base = _HEADER_WORDS + slot * _SLOT_WORDS
        for word in range(_SLOT_WORDS):
            self.words[base + word] = 0
        self.words[base + _Field.CALL_LIMIT] = call_limit
        self.words[_Header.USED] = max(self.words[_Header.USED], slot + 1)

    def facts(self, slot: int) -> SlotFacts:
        """Read one slot."""
        row = self._row(slot)
        return SlotFacts(
            slot=slot,
            pid=row[_Field.PID],
            generation=row[_Field.GENERATION],
            state=WorkerState(row[_Field.STATE]),
            started_s=row[_Field.STARTED_MS] / 1000,
            deadline_s=row[_Field.DEADLINE_MS] / 1000,
            active=max(0, row[_Field.ACTIVE] - row[_Field.QUEUED]),
            served=row[_Field.SERVED],
            failed=row[_Field.FAILED],
            rss_bytes=row[_Field.RSS_BYTES],
            queued=row[_Field.QUEUED],
            places=row[_Field.PLACES],
            lag_s=row[_Field.LAG_MS] / 1000,
            lost_lines=row[_Field.LOST_LINES],
            witness=row[_Field.WITNESS],
        )

    def occupied(self) -> list[SlotFacts]:
        """Read all slots that have a worker."""
        words = self.words
        bases = range(_HEADER_WORDS, _HEADER_WORDS + words[_Header.USED] * _SLOT_WORDS, _SLOT_WORDS)
        return [self.facts(slot) for slot, base in enumerate(bases) if words[base + _Field.PID]]

    def least_busy(self) -> tuple[int, int]:
        """Return the fewest calls in progress and the fewest turns among the workers that accept.

        Two separate minima: a worker compares itself with each.
        """
        words = self.words
        active = turns = 1 << 62
        end = _HEADER_WORDS + words[_Header.USED] * _SLOT_WORDS
        for base in range(_HEADER_WORDS, end, _SLOT_WORDS):
            if words[base + 2] == 2:  # WorkerState.READY, unwrapped: this runs at every accept
                if words[base + 5] < active:
                    active = words[base + 5]
                if words[base + 10] < turns:
                    turns = words[base + 10]
        return active, turns

    def fewest_turns(self) -> int:
        """Return the fewest turns among the workers that accept; 0 if none does."""
        turns = self.least_busy()[1]
        return 0 if turns == 1 << 62 else turns

    def _row(self, slot: int) -> list[int]:
        base = _HEADER_WORDS + slot * _SLOT_WORDS
        return self.words[base : base + _SLOT_WORDS].tolist()
