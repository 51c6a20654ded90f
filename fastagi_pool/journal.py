"""Journal: calls whose database is away, to be done later.

Laws:
    * What was appended is on the disk: it survives the end of every process, and of the machine.
    * What cannot be written down is told at once: a call is never believed to be here when it is not.
    * One file a node; every worker writes, one process at a time replays.
    * Calls come out in the order of receipt, for each database; no step of a clock changes that.
    * The backlog is changed inside write transactions only: a database has a backlog from before a call's
      entry is durable until its last one is done.
    * Each process opens the journal for itself, after it was forked; one of its threads uses it at a time.
    * Plain: nothing but the standard library, for commands and for threads that know no hub.

How it works: an SQLite file with a write-ahead log; a commit is on the disk when it returns. Triggers keep
the number of entries of each database in a table, in the same transaction; every writer copies those
figures into shared memory (:class:`Backlog`) just before it commits. Whoever dies between the two leaves
figures that the next writer, and whoever opens the journal next, corrects.

The order within a boot of the machine is that of the clock that nobody steps, which begins anew with each
boot; entries of an earlier boot come first.

Source: https://sqlite.org/wal.html, https://sqlite.org/howtocorrupt.html
"""

from __future__ import annotations

import mmap
import os
import sqlite3
import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any, Final

from fastagi_pool.errors import JournalUnavailable

#: The backlog's name, below the runtime folder. Another layout must get another name: an older pool may run.
BACKLOG_NAME: Final = "journal.waiting"
#: Beside it: which entry is being replayed, for whoever comes after a replay that died of it.
RUNNING_NAME: Final = "journal.running"

_APPLICATION_ID: Final = 0x4641474A  # "FAGJ"
#: What makes each version out of the one before. Only ever add at the end.
_VERSIONS: Final = (
    (
        "CREATE TABLE boots (number INTEGER PRIMARY KEY AUTOINCREMENT, boot_id TEXT NOT NULL)",
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
        """
        CREATE TABLE counts (
            database TEXT PRIMARY KEY,
            waiting INTEGER NOT NULL,
            quarantined INTEGER NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE entries (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            database TEXT NOT NULL,
            route TEXT NOT NULL,
            ref TEXT NOT NULL,
            environment BLOB NOT NULL,
            received_s REAL NOT NULL,
            boot INTEGER NOT NULL,
            received_mono_s REAL NOT NULL,
            peer TEXT NOT NULL,
            begun INTEGER NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0,
            error TEXT NOT NULL DEFAULT '',
            quarantined INTEGER NOT NULL DEFAULT 0
        )
        """,
        "CREATE INDEX entries_in_order ON entries (database, quarantined, boot, received_mono_s, number)",
        """
        CREATE TRIGGER entry_added AFTER INSERT ON entries BEGIN
            INSERT INTO counts VALUES (NEW.database, 0, 0) ON CONFLICT DO NOTHING;
            UPDATE counts SET waiting = waiting + (NOT NEW.quarantined),
                quarantined = quarantined + NEW.quarantined WHERE database = NEW.database;
        END
        """,
        """
        CREATE TRIGGER entry_removed AFTER DELETE ON entries BEGIN
            UPDATE counts SET waiting = waiting - (NOT OLD.quarantined),
                quarantined = quarantined - OLD.quarantined WHERE database = OLD.database;
        END
        """,
        """
        CREATE TRIGGER entry_moved AFTER UPDATE OF quarantined ON entries BEGIN
            UPDATE counts SET waiting = waiting + OLD.quarantined - NEW.quarantined,
                quarantined = quarantined + NEW.quarantined - OLD.quarantined WHERE database = NEW.database;
        END
        """,
    ),
)
_FIELDS: Final = (
    "database, route, ref, environment, received_s, received_mono_s, peer, begun, "
    "number, attempts, error, quarantined"
)
_INSERT: Final = (
    "INSERT INTO entries (database, route, ref, environment, received_s, boot, received_mono_s, peer, begun) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_IN_ORDER: Final = "boot, received_mono_s, number"
_FIGURES: Final = f"""
    SELECT database, waiting, quarantined, coalesce((
        SELECT received_s FROM entries
        WHERE entries.database = counts.database AND entries.quarantined = 0 ORDER BY {_IN_ORDER} LIMIT 1
    ), 0) FROM counts ORDER BY database
"""

#: How long one waits for others to end their transactions, each of which takes some milliseconds.
_PATIENCE_S: Final = 5.0
#: SQLite waits 1, 2 and 5 ms, then up to 100 ms: whoever were unlucky would wait for all others.
_GLANCE_S: Final = 0.008
#: Pages after whose change the log is copied into the file; what the log may keep on the disk then.
_CHECKPOINT_PAGES: Final = 1000
_LOG_BYTES: Final = 4 * 1024**2
#: So many entries are read, or changed for an operator, at once: calls want to get in between.
_PIECE: Final = 500
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

#: Somebody else is at work: try again.
_WAIT_CODES: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_NOT_PERMITTED: Final = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
)

# --- the backlog: its layout

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


@dataclass(frozen=True, slots=True)
class NewEntry:
    """A call to be done later.

    Attributes:
        database: The database that was away, by its name in the configuration.
        route: The name of the call's route.
        ref: The reference under which the logs know the call.
        environment: What Asterisk said of the call, line by line as it came, without line ends; bytes that
            are no UTF-8 as surrogates.
        received_s: Wall clock time at which the call came, in seconds since 1970.
        received_mono_s: The same moment on the clock that nobody steps (``CLOCK_MONOTONIC``).
        peer: The Asterisk that it came from.
        begun: Whether its handler had begun, so that some of it may have been done.
    """

    database: str
    route: str
    ref: str
    environment: tuple[str, ...]
    received_s: float
    received_mono_s: float
    peer: str = ""
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Entry(NewEntry):
    """A call in the journal.

    Attributes:
        number: Its number, which no other ever gets.
        attempts: How often it was tried in vain.
        error: Why, the last time; a traceback may follow the first line. Empty if it was not tried.
        quarantined: Whether it is not tried any more until an operator says so.
    """

    number: int = 0
    attempts: int = 0
    error: str = ""
    quarantined: bool = False


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
        if self._identity is not None and _identity_of(self.path) == self._identity:
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


#: The first row is for all databases that have none of their own.
_FIRST_WORD: Final = _word_of(0)


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


class Journal:
    """The calls that a node has put off.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, max_bytes: int, backlog: Path | None, boot_id: str) -> None:
        """Use :meth:`open`, :meth:`prepare` or :meth:`open_existing`."""
        self.path = path
        self._max_bytes = max_bytes
        self._backlog = Backlog(backlog) if backlog is not None else None
        self._boot_id = boot_id
        self._boot = 0
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    @classmethod
    def open(cls, path: Path, max_bytes: int, backlog: Path, boot_id: str = "") -> Journal:
        """Open the journal of a pool; make what is missing.

        Args:
            path: The file; readable by its owner only, and its folder, if it is made.
            max_bytes: What the entries may take; beyond it none is taken.
            backlog: The file of the :class:`Backlog`; its folder must be there.
            boot_id: What tells this boot of the machine from others; found out if empty.

        Raises:
            JournalUnavailable: It is not writable, damaged, not ours, or a newer version's.
        """
        journal = cls.prepare(path, max_bytes, backlog, boot_id)
        journal.reach()
        return journal

    @classmethod
    def prepare(cls, path: Path, max_bytes: int, backlog: Path, boot_id: str = "") -> Journal:
        """Make ready to use the journal of a pool; whatever is done with it opens it.

        For who must know what waits even if it cannot be opened just now.

        Args:
            path: As in :meth:`open`, and so are the others.
            max_bytes: What the entries may take.
            backlog: The file of the backlog.
            boot_id: What tells this boot from others.
        """
        return cls(path, max_bytes, backlog, boot_id or _boot_id())

    @classmethod
    def check(cls, path: Path, max_bytes: int) -> None:
        """See that a pool can use the journal, before it has a runtime folder; make what is missing.

        Raises:
            JournalUnavailable: As :meth:`open`.
        """
        journal = cls(path, max_bytes, None, _boot_id())
        journal.reach()
        journal.close()

    @classmethod
    def open_existing(cls, path: Path) -> Journal:
        """Open a journal as it is, for an operator: whether its pool runs or not.

        Raises:
            FileNotFoundError: There is none.
            JournalUnavailable: It is damaged, not ours, or another version's; or one may not open it.
        """
        if not path.stat().st_size:
            # The pool that made it came no further.
            raise FileNotFoundError(path)
        journal = cls(path, 0, None, "")
        journal.reach()
        return journal

    @property
    def backlog(self) -> Backlog:
        """What tells at no cost whether calls wait. Only of a journal that a pool has opened.

        Raises:
            JournalUnavailable: There is none.
        """
        if self._backlog is None:
            raise JournalUnavailable(f"the journal {self.path} has no backlog: no pool has opened it here")
        return self._backlog

    def reach(self) -> None:
        """Open the file, if it is not open.

        Raises:
            JournalUnavailable: As :meth:`open`.
        """
        with self._told():
            self._reach()

    def close(self) -> None:
        """Give back the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # What fails here was durable before, or was never acknowledged.
            with suppress(sqlite3.Error):
                connection.close()

    # --- what workers do

    def append(self, entries: Sequence[NewEntry]) -> list[int]:
        """Write calls down; they are on the disk when it returns. One transaction for all.

        Returns:
            Their numbers.

        Raises:
            JournalUnavailable: They are not written down, none of them.
        """
        with self._writing() as connection:
            numbers = [self._insert(connection, entry) for entry in entries]
            if self._used_bytes(connection) > self._max_bytes:
                raise JournalUnavailable(
                    f"the journal {self.path} is full: it holds {self._max_bytes} bytes of calls, as "
                    "journal.max_size says. Get its database back, or set journal.max_size higher"
                )
        return numbers

    def _insert(self, connection: sqlite3.Connection, entry: NewEntry) -> int:
        environment = b"".join(line.encode("utf-8", "surrogateescape") + b"\n" for line in entry.environment)
        values = (
            entry.database,
            entry.route,
            _clean(entry.ref),
            environment,
            entry.received_s,
            self._boot,
            entry.received_mono_s,
            _clean(entry.peer),
            entry.begun,
        )
        return int(connection.execute(_INSERT, values).lastrowid or 0)

    # --- what the replay does

    def next_entries(self, database: str, limit: int) -> list[Entry]:
        """Return the calls of a database that wait, in the order of receipt.

        Args:
            database: Its name in the configuration.
            limit: So many at most.

        Raises:
            JournalUnavailable: It cannot be read.
        """
        return self._entries(
            f"database = ? AND quarantined = 0 ORDER BY {_IN_ORDER} LIMIT ?", database, limit
        )

    def settle(self, done: Collection[int] = (), failed: Collection[tuple[int, str]] = ()) -> None:
        """Take out calls that are done, and put others into quarantine; one transaction for all.

        Args:
            done: Their numbers; unknown ones are passed over.
            failed: Numbers, each with what went wrong: a line, and a traceback if there is one.

        Raises:
            JournalUnavailable: Nothing has changed.
        """
        with self._writing() as connection:
            connection.executemany("DELETE FROM entries WHERE number = ?", [(number,) for number in done])
            connection.executemany(
                "UPDATE entries SET quarantined = 1, attempts = attempts + 1, error = ? WHERE number = ?",
                [(_clean(error), number) for number, error in failed],
            )

    # --- what the operator does

    def facts(self) -> JournalFacts:
        """Return how full it is.

        Raises:
            JournalUnavailable: It cannot be read.
        """
        with self._told():
            return self._facts(self._reach())

    def get(self, number: int) -> Entry | None:
        """Return one call; None if it is not there.

        Raises:
            JournalUnavailable: It cannot be read.
        """
        found = self._entries("number = ?", number)
        return found[0] if found else None

    def all(self, database: str = "", quarantined: bool | None = None) -> Iterator[Entry]:
        """Read calls one after the other, in the order in which they were written down.

        Args:
            database: Only those of this one.
            quarantined: Only those in quarantine, or only those that wait.

        Raises:
            JournalUnavailable: It cannot be read.
        """
        where, values = "number > ?", list[object]()
        if database:
            where, values = f"{where} AND database = ?", [database]
        if quarantined is not None:
            where, values = f"{where} AND quarantined = ?", [*values, quarantined]
        last = 0
        # In pieces: whoever reads for long keeps the log from being copied into the file.
        while piece := self._entries(f"{where} ORDER BY number LIMIT {_PIECE}", last, *values):
            yield from piece
            last = piece[-1].number

    def quarantined(self, database: str = "") -> list[Entry]:
        """Return the calls in quarantine; see :meth:`all`."""
        return list(self.all(database, quarantined=True))

    def retry(self, numbers: Sequence[int]) -> int:
        """Let calls out of quarantine: they wait again, each at its place in the order.

        Returns:
            How many there were.

        Raises:
            JournalUnavailable: Some, or all, are where they were.
        """
        return self._change("UPDATE entries SET quarantined = 0 WHERE number = ? AND quarantined", numbers)

    def drop(self, numbers: Sequence[int]) -> int:
        """Throw calls away.

        Returns:
            How many there were.

        Raises:
            JournalUnavailable: Some, or all, are still there.
        """
        return self._change("DELETE FROM entries WHERE number = ?", numbers)

    def _change(self, statement: str, numbers: Sequence[int]) -> int:
        changed = 0
        for start in range(0, len(numbers), _PIECE):
            with self._writing() as connection:
                for number in numbers[start : start + _PIECE]:
                    changed += connection.execute(statement, (number,)).rowcount
        return changed

    # --- transactions

    def _entries(self, where: str, *values: object) -> list[Entry]:
        with self._told():
            rows = self._patiently(self._reach(), f"SELECT {_FIELDS} FROM entries WHERE {where}", *values)
            return [_entry(row) for row in rows]

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock; what is done in the block is done, and durable, or is not done at all."""
        with self._told():
            connection = self._reach()
            self._patiently(connection, "BEGIN IMMEDIATE")
            try:
                yield connection
                self._publish(connection)
                connection.execute("COMMIT")
            except BaseException:
                self._roll_back(connection)
                raise

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        # Some failures have rolled back already; what this raises says less than what brought us here.
        with suppress(sqlite3.Error, OSError):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            # The figures may be those of what has not come to be.
            self._patiently(connection, "BEGIN IMMEDIATE")
            self._publish(connection)
            connection.execute("ROLLBACK")

    def _patiently(self, connection: sqlite3.Connection, statement: str, *values: object) -> list[Any]:
        """Execute, and let others end what they are at."""
        until_s = monotonic() + _PATIENCE_S
        while True:
            try:
                return connection.execute(statement, values).fetchall()
            except sqlite3.OperationalError as error:
                if _code(error) not in _WAIT_CODES or monotonic() >= until_s:
                    raise

    def _publish(self, connection: sqlite3.Connection) -> None:
        if self._backlog is not None and self._backlog.attach():
            self._backlog.publish(self._facts(connection))

    def _facts(self, connection: sqlite3.Connection) -> JournalFacts:
        rows = self._patiently(connection, _FIGURES)
        databases = tuple(BacklogFacts(*row) for row in rows)
        return JournalFacts(databases, self._used_bytes(connection), self._max_bytes)

    @staticmethod
    def _used_bytes(connection: sqlite3.Connection) -> int:
        pages, free, page_bytes = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * page_bytes)

    # --- the file

    def _reach(self) -> sqlite3.Connection:
        """Return the connection; anew if the file was moved away or was in trouble."""
        if self._connection is None or _identity_of(self.path) != self._identity:
            self.close()
            self._connect()
        assert self._connection is not None
        return self._connection

    def _connect(self) -> None:
        is_pools = bool(self._boot_id)
        if is_pools:
            _make(self.path)
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=_GLANCE_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # One picture: somebody may be filling an empty file.
            connection.execute("BEGIN")
            version = self._version(connection)
            connection.execute("COMMIT")
            if not is_pools and version != len(_VERSIONS):
                raise JournalUnavailable(
                    f"the journal {self.path} is of version {version}: start the pool of this fastagi-pool, "
                    f"which makes it version {len(_VERSIONS)}"
                )
            self._patiently(connection, "PRAGMA journal_mode = WAL")
            for setting in (
                "synchronous = FULL",
                f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
                f"journal_size_limit = {_LOG_BYTES}",
            ):
                connection.execute(f"PRAGMA {setting}")
            self._identity = _identity_of(self.path)
            if is_pools:
                self._settle_in(connection)
            else:
                self._find_backlog(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _version(self, connection: sqlite3.Connection) -> int:
        """Return the version of the file; 0 if it is empty.

        Raises:
            JournalUnavailable: It is not ours, or newer.
        """
        ((application,),) = self._patiently(connection, "PRAGMA application_id")
        ((version,),) = self._patiently(connection, "PRAGMA user_version")
        ((tables,),) = self._patiently(connection, "SELECT count(*) FROM sqlite_master")
        if application != _APPLICATION_ID and (application or version or tables):
            raise JournalUnavailable(
                f"{self.path} is a database, but no journal of fastagi-pool: set journal.file to another path"
            )
        if version > len(_VERSIONS):
            raise JournalUnavailable(
                f"the journal {self.path} is a newer fastagi-pool's (version {version}, and this one knows "
                f"{len(_VERSIONS)}): use that one, or set journal.file to another path"
            )
        return int(version)

    def _settle_in(self, connection: sqlite3.Connection) -> None:
        """Bring the file up to date, and say in it whose it is; nothing is written if all is as it should."""
        self._patiently(connection, "BEGIN IMMEDIATE")
        try:
            # Somebody else may have done it since.
            version = self._version(connection)
            for statement in chain.from_iterable(_VERSIONS[version:]):
                connection.execute(statement)
            if version < len(_VERSIONS):
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {len(_VERSIONS)}")
            self._boot = self._number_of_boot(connection)
            known = dict(connection.execute("SELECT name, value FROM facts"))
            wanted: dict[str, object] = {"max_bytes": self._max_bytes}
            if self._backlog is not None:
                wanted["backlog"] = str(self._backlog.path)
            for name, value in wanted.items():
                if known.get(name) != value:
                    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
            self._publish(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _number_of_boot(self, connection: sqlite3.Connection) -> int:
        last = connection.execute("SELECT number, boot_id FROM boots ORDER BY number DESC LIMIT 1").fetchone()
        if last is not None and last[1] == self._boot_id:
            return int(last[0])
        return int(
            connection.execute("INSERT INTO boots (boot_id) VALUES (?)", (self._boot_id,)).lastrowid or 0
        )

    def _find_backlog(self, connection: sqlite3.Connection) -> None:
        """Take from the file what the pool has said of itself."""
        known = dict(self._patiently(connection, "SELECT name, value FROM facts"))
        self._max_bytes = int(known.get("max_bytes", 0))
        path = Path(known.get("backlog", ""))
        # Nobody reads it where no pool runs, and none is to be made on a pool's behalf.
        self._backlog = Backlog(path, is_ours=False) if path.is_file() else None

    # --- faults

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what went wrong in words that tell what to do."""
        try:
            yield
        except sqlite3.Error as error:
            if _code(error) not in (*_WAIT_CODES, sqlite3.SQLITE_FULL):
                self.close()
            raise JournalUnavailable(self._explain(error)) from error
        except OSError as error:
            raise JournalUnavailable(f"the journal {self.path} cannot be used: {error}") from error

    def _explain(self, error: sqlite3.Error) -> str:
        code = _code(error)
        if code == sqlite3.SQLITE_FULL:
            return f"the disk of the journal {self.path} is full: make room in {self.path.parent}"
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return (
                f"the journal {self.path} is damaged, or is none ({error}): move it away with its -wal and "
                "-shm, and the pool goes on with a new one; 'fastagi-pool journal export --file' reads from "
                "the old one what can be read"
            )
        if code in _WAIT_CODES:
            return (
                f"the journal {self.path} was busy for {_PATIENCE_S:g} s: somebody holds it, or its disk is "
                "too slow"
            )
        if code in _NOT_PERMITTED:
            return (
                f"the journal {self.path} cannot be opened or written ({error}): its folder must be there, "
                "and both must belong to the user whom the pool runs as"
            )
        return f"the journal {self.path} cannot be used: {error} ({getattr(error, 'sqlite_errorname', '?')})"


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _make(path: Path) -> None:
    """Make an empty file that only its owner reads, and the folder; nothing if it is there.

    Raises:
        OSError: The folder is not writable.
    """
    if path.exists():
        # It must not even be opened: closing it would take the locks away that SQLite has on it.
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        return
    # SQLite makes the names inside the folder durable, but not the folder's own.
    folder = os.open(path.parent.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 if it is Python's own complaint."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _clean(text: str) -> str:
    """Write a text so that SQLite takes it."""
    return text.encode("utf-8", "backslashreplace").decode()


def _entry(row: Sequence[Any]) -> Entry:
    lines = row[3].decode("utf-8", "surrogateescape").split("\n")[:-1]
    return Entry(
        database=row[0],
        route=row[1],
        ref=row[2],
        environment=tuple(lines),
        received_s=row[4],
        received_mono_s=row[5],
        peer=row[6],
        begun=bool(row[7]),
        number=row[8],
        attempts=row[9],
        error=row[10],
        quarantined=bool(row[11]),
    )
