"""Backlog: which databases have calls waiting in the journal, in memory that all processes of a node share.

Laws:
    * To ask it costs a call next to nothing: no lock, and no system call once its rows are known.
    * Only who holds the journal's write lock changes it, so there is one writer at a time.
    * Every figure is changed by one store: whoever looks meanwhile sees the old one or the new one.
    * As long as nobody has shown figures, calls are taken to wait.
    * A row that a database was given is its own for as long as the file lives.
    * Plain: nothing but the standard library, as :mod:`fastagi_pool.journal` is.

How it works: a file below the runtime folder, mapped by whoever writes it or asks before each call; whoever
looks only now and then, as the observer does, reads it.
"""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: The backlog's name, below the runtime folder. Another layout must get another name: an older pool may run.
BACKLOG_NAME: Final = "journal.waiting"

_MOST_DATABASES: Final = 64
_MAGIC: Final = 0x46_41_47_4A_57_41_49_54  # "FAGJWAIT"
_WORD_MAGIC: Final = 0
_HEADER: Final = struct.Struct("@4Q")  # magic, rows in use, bytes in use, bytes at most
_WORD_ROWS: Final = 1
_WORD_USED: Final = 2
_WORD_LIMIT: Final = 3
#: A name, then how many wait, how many are in quarantine, and when the oldest that waits came.
_ROW: Final = struct.Struct("@64s2Qd")
_ROW_BYTES: Final = 128
_NAME_BYTES: Final = 64
_SIZE_BYTES: Final = (2 + _MOST_DATABASES) * _ROW_BYTES


def _word_of(row: int) -> int:
    """Return where the first figure of a row is, in words; row 0 stands behind the header."""
    return ((1 + row) * _ROW_BYTES + _NAME_BYTES) // 8


#: The first row is for all databases that have none of their own.
_FIRST_WORD: Final = _word_of(0)


@dataclass(frozen=True, slots=True)
class BacklogFacts:
    """What one database's calls in the journal are like.

    Attributes:
        database: Its name in the configuration; empty for all those for which the backlog has no room.
        waiting: Calls that are going to be done.
        quarantined: Calls that are not, until an operator says so.
        oldest_s: Wall clock time at which the oldest one that waits came; 0 if none waits.
    """

    database: str
    waiting: int
    quarantined: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class JournalFacts:
    """How full the journal is.

    Attributes:
        databases: One entry for each database that has, or had, calls in it.
        used_bytes: What its entries take.
        limit_bytes: What they may take at most; 0 if no pool has said so yet.
    """

    databases: tuple[BacklogFacts, ...] = ()
    used_bytes: int = 0
    limit_bytes: int = 0

    @property
    def waiting(self) -> int:
        """Calls that are going to be done."""
        return sum(each.waiting for each in self.databases)

    @property
    def quarantined(self) -> int:
        """Calls that are not, until an operator says so."""
        return sum(each.quarantined for each in self.databases)


class _Rows:
    """The backlog as it is mapped, and which database has which row; rows are only ever added.

    The thread that writes and the one that looks share it.
    """

    def __init__(self, memory: mmap.mmap | bytes) -> None:
        self.words = memoryview(memory).cast("Q")
        self.seconds = memoryview(memory).cast("d")
        self.at: dict[str, int] = {}
        self.seen = 0

    @property
    def are_known(self) -> bool:
        """Whether somebody has shown figures, and every row is known here."""
        words = self.words
        return words[_WORD_MAGIC] == _MAGIC and words[_WORD_ROWS] == self.seen

    def learn(self) -> None:
        """Find out which database has which row."""
        rows = self.words[_WORD_ROWS]
        for row in range(max(1, self.seen), rows):
            raw = _ROW.unpack_from(self.words, (1 + row) * _ROW_BYTES)[0]
            self.at[_name(raw)] = _word_of(row)
        self.seen = rows

    def all(self) -> range:
        """Return where the figures of each row are, in words."""
        step = _ROW_BYTES // 8
        return range(_FIRST_WORD, _FIRST_WORD + step * self.words[_WORD_ROWS], step)

    def find(self, database: str) -> int:
        """Return where a database's figures are, in words; a new row for a new one while there is room."""
        at = self.at.get(database)
        if at is not None:
            return at
        raw = database.encode("utf-8", "surrogateescape")
        row = self.words[_WORD_ROWS]
        if row > _MOST_DATABASES or len(raw) > _NAME_BYTES:
            return _FIRST_WORD
        _ROW.pack_into(self.words, (1 + row) * _ROW_BYTES, raw, 0, 0, 0.0)
        self.words[_WORD_ROWS] = row + 1
        self.learn()
        return _word_of(row)


class Backlog:
    """Which databases have calls waiting in the journal, for every process of the node: shared memory."""

    def __init__(self, path: Path, is_ours: bool = True) -> None:
        """Use :attr:`Journal.backlog`.

        Args:
            path: The file, below the runtime folder.
            is_ours: Whether it may be made, or made anew. An operator's command must not: the name is what
                the pool's user says it is, and the operator may be root.
        """
        self.path = path
        self._is_ours = is_ours
        self._rows = _Rows(bytes(_SIZE_BYTES))
        self._identity: tuple[int, int] | None = None

    def attach(self) -> bool:
        """Map the file; make it if it is missing. Only inside a write transaction of the journal.

        Returns:
            Whether it is mapped: not if it is no backlog, and not ours to become one.

        Raises:
            OSError: The folder is missing, not writable or full.
        """
        return self._map(self._is_ours)

    def waits(self, database: str) -> bool:
        """Tell whether calls of a database wait in the journal. Costs a third of a microsecond.

        A process that could not open the journal sees what others have shown. As long as nobody has shown
        anything the answer is yes: a new call must not overtake those of which nobody knows.

        Args:
            database: Its name in the configuration.
        """
        rows = self._rows
        if not rows.are_known:
            with suppress(OSError):
                self._map(make=False)
            rows = self._rows
            if rows.words[_WORD_MAGIC] != _MAGIC:
                return True
            rows.learn()
        return rows.words[rows.at.get(database, _FIRST_WORD)] != 0

    def publish(self, facts: JournalFacts) -> None:
        """Show new figures. Only inside a write transaction of the journal, and once it is attached."""
        others = [0, 0, 0.0]
        rows = self._rows
        rows.learn()
        figures: dict[int, tuple[int, int, float]] = dict.fromkeys(rows.all(), (0, 0, 0.0))
        for each in facts.databases:
            at = rows.find(each.database)
            if at == _FIRST_WORD:
                oldest_s = min(filter(None, (others[2], each.oldest_s)), default=0.0)
                others = [others[0] + each.waiting, others[1] + each.quarantined, oldest_s]
            else:
                figures[at] = (each.waiting, each.quarantined, each.oldest_s)
        figures[_FIRST_WORD] = (int(others[0]), int(others[1]), others[2])
        words = rows.words
        for at, (waiting, quarantined, oldest_s) in figures.items():
            # Each by one store: to pack them would clear them first, and whoever looks at that moment lets a
            # call overtake those that wait.
            words[at] = waiting
            words[at + 1] = quarantined
            rows.seconds[at + 2] = oldest_s
        words[_WORD_USED] = facts.used_bytes
        words[_WORD_LIMIT] = facts.limit_bytes
        words[_WORD_MAGIC] = _MAGIC

    def _map(self, make: bool) -> bool:
        if self._identity is not None and identity_of(self.path) == self._identity:
            return True
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if make else os.O_NONBLOCK)
        descriptor = os.open(self.path, flags, 0o644)
        try:
            if not make and not _is_backlog(os.pread(descriptor, _SIZE_BYTES, 0)):
                return False
            # A full file system must fail here and not as SIGBUS when a row is written.
            os.posix_fallocate(descriptor, 0, _SIZE_BYTES)
            status = os.fstat(descriptor)
            memory = mmap.mmap(descriptor, _SIZE_BYTES)
        finally:
            os.close(descriptor)
        if _HEADER.unpack_from(memory)[0] != _MAGIC:
            # In its place, and not in a new file: others may have mapped this one.
            memory[:] = bytes(_SIZE_BYTES)
            # The magic follows with the first figures: until then nobody may believe that no call waits.
            _HEADER.pack_into(memory, 0, 0, 1, 0, 0)
        # At once: another thread may be looking.
        self._rows = _Rows(memory)
        self._identity = status.st_dev, status.st_ino
        return True


def read_backlog(path: Path) -> JournalFacts:
    """Read how full the journal of a pool is, as its workers see it; nothing if there is no file.

    Args:
        path: The backlog, :data:`BACKLOG_NAME` below the runtime folder.

    Raises:
        OSError: The file may not be read.
        ValueError: It is no backlog.
    """
    # Read and not mapped: a file that somebody cuts short must not kill its readers.
    try:
        with path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), _SIZE_BYTES, 0)
    except FileNotFoundError:
        return JournalFacts()
    if not _is_backlog(data):
        raise ValueError(f"{path} is no backlog of a journal")
    _, rows, used_bytes, limit_bytes = _HEADER.unpack_from(data)
    found = []
    for row in range(rows):
        raw, waiting, quarantined, oldest_s = _ROW.unpack_from(data, (1 + row) * _ROW_BYTES)
        if row or waiting or quarantined:
            found.append(BacklogFacts(_name(raw), waiting, quarantined, oldest_s))
    return JournalFacts(tuple(found), used_bytes, limit_bytes)


def _is_backlog(data: bytes) -> bool:
    if len(data) < _SIZE_BYTES:
        return False
    magic, rows, _, _ = _HEADER.unpack_from(data)
    return bool(magic == _MAGIC and 1 <= rows <= 1 + _MOST_DATABASES)


def _name(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "surrogateescape")


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from any other that has, or had, its name; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
