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
figures into shared memory (:mod:`fastagi_pool.backlog`) just before it commits. Whoever dies between the
two leaves figures that the next writer, and whoever opens the journal next, corrects.

The order within a boot of the machine is that of the clock that nobody steps, which begins anew with each
boot; entries of an earlier boot come first.

Source: https://sqlite.org/wal.html, https://sqlite.org/howtocorrupt.html
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any, Final

from fastagi_pool.backlog import Backlog, BacklogFacts, JournalFacts, identity_of
from fastagi_pool.errors import JournalUnavailable

#: Below the runtime folder: which entry is being replayed, for whoever comes after a replay that died of it.
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
        if self._connection is None or identity_of(self.path) != self._identity:
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
            self._identity = identity_of(self.path)
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
