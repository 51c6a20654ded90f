"""Power cuts: every process is killed at the same moment, at any moment; what was acknowledged is there.

``POWER_CUTS`` in the environment says how often; 10 if it does not. ``POWER_CUT_SEED`` plays a run again.
"""

from __future__ import annotations

import os
import selectors
import signal
import sqlite3
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random
from typing import Final, NoReturn, Self

import pytest
from mariadb import MariaDBServer
from mariadb_forwarder import MariaDBForwarder
from ports import free_port
from service import PoolService

from fastagi_pool.backlog import BACKLOG_NAME, read_backlog
from fastagi_pool.journal import Journal, NewEntry
from fastagi_pool.testing import AgiStatus, play_call

from .conftest import Pools, route

_CUTS: Final = int(os.environ.get("POWER_CUTS", "10"))
_SEED: Final = int(os.environ.get("POWER_CUT_SEED", "7"))
_WRITERS: Final = 4
_DATABASES: Final = ("vicidial", "billing")
_PLENTY_BYTES: Final = 1024**3
_PIECE_BYTES: Final = 32
#: A thousand times what a round takes.
_SILENCE_S: Final = 30.0
_CUTS_OF_A_STORE: Final = 5
#: Each takes as long as a pool needs to start.
_POOL_CUTS: Final = max(3, _CUTS // 5)
_CALLERS: Final = 4
_DRAIN_TIMEOUT_S: Final = 60.0


#: A handler whose call leaves one row.
_NOTING: Final = """
from sqlalchemy import text

from fastagi_pool.deferring import deferrable


@deferrable
def note(call, context):
    with context.begin() as database:
        ref = {"ref": call.request.arguments[0]}
        database.execute(text("INSERT INTO notes (ref) VALUES (:ref)"), ref)
"""


class Gate:
    """A way to a server on this machine that can be shut, which cuts who is on it."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._forwarder: MariaDBForwarder | None = None
        self.port = free_port()

    def open(self) -> None:
        """Let connections through."""
        if self._forwarder is None:
            self._forwarder = MariaDBForwarder(self._server_port, port=self.port).__enter__()

    def close(self) -> None:
        """Cut all connections, and refuse new ones."""
        forwarder, self._forwarder = self._forwarder, None
        if forwarder is not None:
            forwarder.__exit__(None, None, None)


class Store:
    """A journal, and what was said of it: files that survive their writers, as another machine's would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "journal.db"
        self.backlog_path = folder / BACKLOG_NAME
        #: Calls of which somebody said that they are in the journal.
        self.acknowledged: set[str] = set()

    def open(self) -> Journal:
        """Open the journal as a worker does."""
        return Journal.open(self.path, _PLENTY_BYTES, self.backlog_path)

    @property
    def done_path(self) -> Path:
        """Where the replay notes what it has done, one a line, before it takes it out of the journal."""
        return self.folder / "done"

    def done(self) -> Counter[str]:
        """Count how often each call was done."""
        return Counter(self.done_path.read_text().split()) if self.done_path.exists() else Counter()

    def counted(self) -> dict[str, int]:
        """Count what waits in the file, without the journal's help."""
        connection = sqlite3.connect(self.path)
        rows = connection.execute("SELECT database, count(*) FROM entries GROUP BY database").fetchall()
        connection.close()
        return dict(rows)


def _entry(ref: str, number: int) -> NewEntry:
    lines = tuple(f"agi_{name}: {ref}" for name in range(20))
    return NewEntry(_DATABASES[number % 2], "hangup", ref, lines, 1e9 + number, float(number), "10.0.0.1")


def _piece(ref: str) -> bytes:
    return f"{ref}\n".rjust(_PIECE_BYTES).encode()


def _write(store: Store, acknowledge: int, prefix: str) -> NoReturn:
    """Append calls in groups of one to five, and acknowledge each that is in the journal, for ever."""
    journal, numbers = store.open(), count()
    for size in (1 + number % 5 for number in count()):
        group = [_entry(f"{prefix}-{number}", number) for number in (next(numbers) for _ in range(size))]
        journal.append(group)
        for entry in group:
            # So short a piece is written to a pipe as a whole, or not at all.
            os.write(acknowledge, _piece(entry.ref))
    raise AssertionError


def _replay(store: Store) -> NoReturn:
    """Do calls in their order, and take them out, for ever; a call that was done before is not done again."""
    journal = store.open()
    marks = set(store.done())
    done = os.open(store.done_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    while True:
        for database in _DATABASES:
            entries = journal.next_entries(database, 20)
            fresh = [entry.ref for entry in entries if entry.ref not in marks]
            # One that is cut short is so between two pages of the file, and they begin with a whole piece.
            os.write(done, b"".join(map(_piece, fresh)))
            marks.update(fresh)
            journal.settle([entry.number for entry in entries])


def _fork(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _run_until_cut(store: Store, prefix: str, chance: Random) -> None:
    """Let writers and a replay work until so many calls were acknowledged; then kill them all at once."""
    reading, writing = os.pipe()
    workers: list[Callable[[], object]] = [
        lambda writer=writer: _write(store, writing, f"{prefix}-{writer}")  # type: ignore[misc]
        for writer in range(_WRITERS)
    ]
    pids = [_fork(work) for work in (*workers, lambda: _replay(store))]
    os.close(writing)
    try:
        _hear(reading, store, chance.randrange(1, 300))
    finally:
        for pid in chance.sample(pids, len(pids)):
            os.kill(pid, signal.SIGKILL)
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    while said := os.read(reading, _PIECE_BYTES):
        store.acknowledged.add(said.decode().strip())
    os.close(reading)
    assert statuses == [signal.SIGKILL] * len(pids), "a process ended by itself"


def _hear(reading: int, store: Store, most: int) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        for _ in range(most):
            assert selector.select(_SILENCE_S), "nobody acknowledges anything any more"
            said = os.read(reading, _PIECE_BYTES)
            assert said, "all writers have ended"
            store.acknowledged.add(said.decode().strip())


def _examine(store: Store) -> None:
    """See that each call that was acknowledged is in the journal, or was done, and once only."""
    journal = store.open()
    waiting = Counter(entry.ref for entry in journal.all())
    done = store.done()
    missing = store.acknowledged - waiting.keys() - done.keys()
    assert not missing, f"{len(missing)} calls were acknowledged and are nowhere"
    assert set(waiting.values()) | set(done.values()) <= {1}, "a call is there twice"
    in_file = Counter(entry.database for entry in journal.all())
    shown = {
        each.database: each.waiting for each in read_backlog(store.backlog_path).databases if each.waiting
    }
    assert shown == store.counted() == dict(in_file)
    assert all(journal.backlog.waits(database) == (database in shown) for database in _DATABASES)
    journal.close()


def test_the_journal(tmp_path: Path) -> None:
    """However often all its processes are killed, no acknowledged call is missing and none is there twice."""
    chance = Random(_SEED)
    for cut in range(_CUTS):
        if cut % _CUTS_OF_A_STORE == 0:
            # The first cut of each comes while several processes make the file.
            store = Store(tmp_path / str(cut))
            store.folder.mkdir()
        _run_until_cut(store, str(cut), chance)
        if chance.random() < 0.3:
            store.backlog_path.unlink(missing_ok=True)  # A boot of the machine empties the runtime folder.
        _examine(store)


# --- the whole pool


class Callers:
    """Callers who call one after the other, each with a reference of his own, until they are told to end."""

    def __init__(self, pool: PoolService, prefix: str) -> None:
        self._pool = pool
        self._prefix = prefix
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        #: Calls that ended while the power was on, by what Asterisk made of each.
        self.told: dict[str, AgiStatus] = {}

    def __enter__(self) -> Self:
        for number in range(_CALLERS):
            thread = threading.Thread(target=self._call, args=(f"{self._prefix}-{number}",))
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        for thread in self._threads:
            thread.join()

    def hang_up(self) -> None:
        """Call no more; what ends from now on was told by nobody, for the power is off."""
        with self._lock:
            self._over.set()

    def await_told(self, calls: int) -> None:
        """Wait until so many more calls have ended."""
        wanted = len(self.told) + calls
        self._pool.await_that(lambda: len(self.told) >= wanted, f"ended {calls} more calls")

    def _call(self, prefix: str) -> None:
        for number in count():
            ref = f"{prefix}-{number}"
            status = play_call(self._pool.url("note"), (ref,)).status
            with self._lock:
                if self._over.is_set():
                    return
                self.told[ref] = status


def _cut_power(pool: PoolService, chance: Random) -> None:
    """Kill every process of a pool, in any order, and whoever was born meanwhile."""
    while processes := [each for each in pool.processes() if each.state != "Z"]:
        for process in chance.sample(processes, len(processes)):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
    pool.kill()


def _rows(mariadb: MariaDBServer, database: str) -> Counter[str]:
    return Counter(ref for (ref,) in mariadb.execute(f"SELECT ref FROM {database}.notes"))


@pytest.mark.mariadb
def test_the_pool(pools: Pools, mariadb: MariaDBServer, mariadb_url: str, tmp_path: Path) -> None:
    """Every call that was told a success has exactly its row, though power and database come and go."""
    database = mariadb_url.rpartition("/")[2]
    mariadb.execute(f"CREATE TABLE {database}.notes (ref VARCHAR(40) NOT NULL) ENGINE=InnoDB")
    # On a port of its own, so that it can be away while the test still counts its rows.
    gate = Gate(mariadb.port)
    settings = {
        "databases": {"main": {"url": mariadb_url.replace(f":{mariadb.port}/", f":{gate.port}/")}},
        "journal": {"file": str(tmp_path / "journal.db")},
    }
    pool = pools.make(settings, [route("note", "noting:note", databases=["main"])], {"noting.py": _NOTING})
    chance, told = Random(_SEED), dict[str, AgiStatus]()
    for cut in range(_POOL_CUTS):
        gate.open()
        pool.start()
        with Callers(pool, str(cut)) as callers:
            callers.await_told(chance.randrange(1, 50))
            gate.close()
            callers.await_told(chance.randrange(1, 100))
            if chance.random() < 0.5:
                gate.open()
                callers.await_told(chance.randrange(1, 100))
            callers.hang_up()
            _cut_power(pool, chance)
        told |= callers.told
    gate.open()
    pool.start()
    backlog = Path(pool.config["runtime_dir"]) / BACKLOG_NAME
    pool.await_that(lambda: not read_backlog(backlog).waiting, "has done all calls", _DRAIN_TIMEOUT_S)
    pool.stop()
    gate.close()
    rows, in_quarantine = _rows(mariadb, database), read_backlog(backlog).quarantined
    assert not in_quarantine
    succeeded = {ref for ref, status in told.items() if status is AgiStatus.SUCCESS}
    deferred = [line for line in pool.access_lines() if line["outcome"] == "deferred"]
    assert deferred, "no call came while the database was away: nothing was seen"
    assert not succeeded - rows.keys(), "calls were acknowledged and are nowhere"
    assert set(rows.values()) == {1}, "a call was done twice"
    assert not (told.keys() - succeeded) & rows.keys(), "calls were told a failure and are there"
