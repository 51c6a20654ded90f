"""A database that goes away under a running pool: no call fails or waits, and no row is missing afterwards.

``OUTAGE_S=60`` makes the outage of VICIdial's database as long as its criterion says, and holds the pool to
the times that the criterion allows; without it times are those of a busy machine.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from mariadb import PASSWORD, MariaDBServer, find_mariadb
from service import PoolService
from vicidial_database import PATIENT, VicidialDatabase, pool_databases, pool_route

from fastagi_pool.asterisk import AgiStatus
from fastagi_pool.backlog import BACKLOG_NAME, JournalFacts, read_backlog

from .conftest import Pools

pytestmark = [pytest.mark.mariadb, pytest.mark.slow]

_IS_JUDGED: Final = "OUTAGE_S" in os.environ
_OUTAGE_S: Final = float(os.environ.get("OUTAGE_S", "5"))
_CALLS_A_SECOND: Final = 200
#: Before and after the outage.
_MARGIN_S: Final = 2.0
#: Between a call's START and its END.
_LENGTH_S: Final = 0.5
#: How long a call may take once the pool has had a second to notice, and how long the journal to be empty.
_LONGEST_CALL_S: Final = 0.2 if _IS_JUDGED else 5.0
_LONGEST_REPLAY_S: Final = 30.0 if _IS_JUDGED else 120.0
_NOTICED_S: Final = 1.0
_END: Final = "call_log--HVcauses--PRI-----NODEBUG-----16-----ANSWER-----30-----20-----SIP 200 OK"

_NOTES: Final = """
from sqlalchemy import text

from fastagi_pool.deferring import deferrable


@deferrable
def note(call, context):
    with context.begin("main") as database:
        values = {"number": int(call.request.query["number"])}
        database.execute(text("INSERT INTO notes (number, at) VALUES (:number, NOW())"), values)


def look(call, context):
    pass
"""
_CREATE: Final = """
CREATE TABLE notes.notes
(place INT AUTO_INCREMENT PRIMARY KEY, number INT NOT NULL, at DATETIME NOT NULL) ENGINE=InnoDB
"""


@pytest.fixture
def server() -> Iterator[MariaDBServer]:
    """Give a MariaDB server that nobody misses while it is away."""
    with MariaDBServer(find_mariadb()) as each:
        yield each


def _journal(folder: Path) -> dict[str, Any]:
    return {"file": str(folder / "journal" / "journal.db"), "max_size": "100MB"}


def _backlog(pool: PoolService) -> JournalFacts:
    return read_backlog(Path(pool.config["runtime_dir"]) / BACKLOG_NAME)


def _await_replay(pool: PoolService) -> None:
    pool.await_that(lambda: not _backlog(pool).waiting, "has replayed its journal", _LONGEST_REPLAY_S)
    assert _backlog(pool).quarantined == 0


def _start_notes(pools: Pools, server: MariaDBServer, **settings: Any) -> PoolService:
    """Start a pool whose calls leave notes in the database, by a route that is done later if it is away."""
    server.execute("CREATE DATABASE notes")
    server.execute(_CREATE)
    return pools.start(
        settings={
            # An outage is what the test makes, not that of a server to which a busy machine gives no time.
            "databases": {"main": {"url": server.url("notes", PASSWORD), **PATIENT}},
            "journal": _journal(pools.folder),
            **settings,
        },
        routes=[
            {"script": "note", "handler": "notes:note"},
            {"script": "look", "handler": "notes:look", "databases": ["main"]},
        ],
        code={"notes.py": _NOTES},
    )


def test_rows_come_in_order_and_with_their_own_times(pools: Pools, server: MariaDBServer) -> None:
    """Calls of an outage leave their rows once it is over: each once, in order, as of when they came."""
    pool = _start_notes(pools, server)
    came: dict[int, tuple[int, int]] = {}

    def call(*numbers: int) -> None:
        for number in numbers:
            began = int(time.time())
            result = pool.call(f"note?number={number}")
            came[number] = began, int(time.time())
            assert (result.status, result.variables) == (AgiStatus.SUCCESS, {})

    call(*range(10))
    server.stop(kill=True)
    call(*range(10, 30))
    assert _backlog(pool).waiting == 20
    # Or the times of the rows would be right by chance.
    time.sleep(2.0)
    server.start()
    _await_replay(pool)
    call(*range(30, 40))
    rows = server.execute("SELECT number, UNIX_TIMESTAMP(at) FROM notes.notes ORDER BY place")
    assert [number for number, _ in rows] == list(range(40))
    wrong = [(number, at) for number, at in rows if not _is_about(int(at), *came[number])]
    assert wrong == [], came


def test_a_worker_that_cannot_open_the_journal(pools: Pools, server: MariaDBServer) -> None:
    """Its calls fail instead of overtaking those that wait, and join them once the journal can be opened."""
    pool = _start_notes(pools, server, workers=1)
    (first,) = pool.await_serving(1)
    replay = pool.await_process("fastagi-pool: replay").pid

    def statuses(*scripts: str) -> list[AgiStatus]:
        return [pool.call(script).status for script in scripts]

    assert statuses("note?number=1") == [AgiStatus.SUCCESS]
    server.stop(kill=True)
    assert statuses("note?number=2") == [AgiStatus.SUCCESS]
    with closing(sqlite3.connect(_journal(pools.folder)["file"], isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        # Not before: it might be stopped while it has the journal itself.
        os.kill(replay, signal.SIGSTOP)
        os.kill(first.pid, signal.SIGKILL)
        pool.await_log("calls whose database is away fail while this lasts")
        server.start()
        pool.await_that(lambda: statuses("look") == [AgiStatus.SUCCESS], "sees its database again")
        assert statuses("note?number=3") == [AgiStatus.FAILURE]
        holder.execute("ROLLBACK")
    assert statuses("note?number=4") == [AgiStatus.SUCCESS]
    os.kill(replay, signal.SIGCONT)
    _await_replay(pool)
    rows = server.execute("SELECT number FROM notes.notes ORDER BY place")
    assert [number for (number,) in rows] == [1, 2, 4]


def test_one_process_replays_and_is_kept_alive(pools: Pools) -> None:
    """A replay that is killed is replaced, a reload brings its own, and none outlives the pool."""
    pool = pools.make(
        settings={
            "databases": {"main": {"url": f"sqlite:///{pools.folder}/notes.db"}},
            "journal": _journal(pools.folder),
        },
        routes=[{"script": "note", "handler": "notes:note"}],
        code={"notes.py": _NOTES},
    )

    def replays(generation: int) -> list[int]:
        title = f"fastagi-pool: replay (gen {generation})"
        return [each.pid for each in pool.processes() if each.title.startswith(title)]

    pool.start()
    pool.await_that(lambda: replays(1), "has a replay")
    (first,) = replays(1)
    os.kill(first, signal.SIGKILL)
    pool.await_that(lambda: replays(1) not in ([], [first]), "has another replay")
    pool.reload()
    pool.await_that(lambda: replays(2) and not replays(1), "has the replay of the new generation")
    assert pool.stop() == 0
    pool.await_that_all_ended()


@dataclass(frozen=True, slots=True)
class _Placed:
    """What became of a call.

    Attributes:
        number: Of its channel.
        is_end: Whether it ended that channel.
        epoch: When it was placed.
        end_epoch: When it was over.
        began_s: When it was placed, on the clock of the test.
        took_s: How long it lasted.
        said: What the pool said; nothing if all went well.
    """

    number: int
    is_end: bool
    epoch: int
    end_epoch: int
    began_s: float
    took_s: float
    said: bytes


def _environment(number: int, script: str, extension: str) -> bytes:
    values: Mapping[str, str] = {
        "network": "yes",
        "network_script": script,
        "request": f"agi://127.0.0.1/{script}",
        "channel": f"SIP/gs102-{number:08x}",
        "language": "en",
        "type": "SIP",
        "uniqueid": f"{1_700_000_000 + number}.{number}",
        "version": "18.0.0",
        "callerid": "7275551212",
        "calleridname": "102",
        "context": "default",
        "extension": extension,
        "priority": "1",
    }
    lines = (f"agi_{name}: {value}\n" for name, value in values.items())
    return ("".join(lines) + "\n").encode()


async def _place(address: str, number: int, is_end: bool, at_s: float) -> _Placed:
    await asyncio.sleep(at_s - time.monotonic())
    environment = _environment(number, *((_END, "h") if is_end else ("call_log", "913125551212")))
    host, _, port = address.rpartition(":")
    began_s, epoch = time.monotonic(), int(time.time())
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(environment)
    said = b""
    while line := await reader.readline():
        said += line
        writer.write(b"200 result=0\n")
    writer.close()
    return _Placed(number, is_end, epoch, int(time.time()), began_s, time.monotonic() - began_s, said)


async def _load(address: str, seconds: float, outage: Any) -> list[_Placed]:
    """Place STARTs and ENDs for some time, and let the outage happen meanwhile."""
    starts = int(seconds * _CALLS_A_SECOND / 2)
    now_s = time.monotonic() + 0.1
    moments = [(number, now_s + number * 2 / _CALLS_A_SECOND) for number in range(1, starts + 1)]
    calls = [_place(address, number, False, at_s) for number, at_s in moments]
    calls += [_place(address, number, True, at_s + _LENGTH_S) for number, at_s in moments]
    happening = asyncio.get_running_loop().run_in_executor(None, outage)
    placed = await asyncio.gather(*calls)
    await happening
    return list(placed)


@contextmanager
def _vicidial_pool(pools: Pools, database: VicidialDatabase) -> Iterator[PoolService]:
    pool = pools.make(
        settings={"databases": pool_databases(database.url), "journal": _journal(pools.folder)},
        routes=[pool_route(pools.folder)],
    )
    pool.start()
    yield pool


def test_vicidial_loses_nothing_in_an_outage(pools: Pools, server: MariaDBServer) -> None:
    """STARTs and ENDs go on while the database is away: none waits or fails, and every row is right."""
    database = VicidialDatabase(server, "vicidial")
    with _vicidial_pool(pools, database) as pool:
        went_s = 0.0

        def outage() -> None:
            nonlocal went_s
            time.sleep(_MARGIN_S)
            went_s = time.monotonic()
            server.stop(kill=True)
            time.sleep(_OUTAGE_S)
            server.start()

        placed = asyncio.run(_load(pool.address, _OUTAGE_S + 2 * _MARGIN_S, outage))
        began_s = time.monotonic()
        _await_replay(pool)
        print(f"empty {time.monotonic() - began_s:.1f} s after the last call; {len(placed)} calls")
        assert [each for each in placed if b"FAGI" in each.said or b"failure" in each.said] == []
        noticed = [each for each in placed if each.began_s > went_s + _NOTICED_S]
        slowest = max(noticed, key=lambda each: each.took_s)
        print(f"slowest call after the first second: {slowest.took_s * 1000:.0f} ms")
        assert slowest.took_s < _LONGEST_CALL_S
        _judge_rows(server, placed)


def _judge_rows(server: MariaDBServer, placed: list[_Placed]) -> None:
    """See that each call has its row, with times at which it was in progress."""
    query = "SELECT uniqueid, start_epoch, end_epoch FROM vicidial.call_log"
    rows = {str(row[0]): (int(row[1]), int(row[2])) for row in server.execute(query)}
    starts = {each.number: each for each in placed if not each.is_end}
    ends = {each.number: each for each in placed if each.is_end}
    assert len(rows) == len(starts)
    wrong = [
        (number, rows.get(f"{1_700_000_000 + number}.{number}"), starts[number], ends[number])
        for number in starts
        if not _is_right(rows.get(f"{1_700_000_000 + number}.{number}"), starts[number], ends[number])
    ]
    assert wrong == []


def _is_right(row: tuple[int, int] | None, start: _Placed, end: _Placed) -> bool:
    if row is None:
        return False
    start_is_right = _is_about(row[0], start.epoch, start.end_epoch)
    return start_is_right and _is_about(row[1], end.epoch, end.end_epoch)


def _is_about(epoch: int, began: int, ended: int) -> bool:
    """Whether it is when a call was in progress, which may take long on a machine that stands still."""
    return began - 1 <= epoch <= ended + 1
