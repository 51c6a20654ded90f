"""Protection: what it costs that nothing is lost, next to the same build with all of it off.

Laws:
    * Both pools run all the time and have the same work: one is loaded while the other has nothing to do,
      and they take turns; see :func:`load.interleaved`.
    * What protects is on in the one and off in the other, all of it; nothing else differs.
    * Nothing is full, away or dying: this is the price that is paid on an ordinary day.
    * A call that is fast and leaves no row is no call: rows are looked at afterwards, and none may have been
      written by a replay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench import HELLO, Bench
from figures import Figure, Section, judged, not_measured
from load import AT_ONCE, Load, LoadResult, interleaved, rate, ratios
from mariadb import PASSWORD, MariaDBMissingError, MariaDBServer, find_mariadb
from service import PoolService
from speed import speeds, spread
from vicidial_calls import Desk
from vicidial_database import VicidialDatabase, pool_databases, pool_route

from fastagi_pool.marks import TABLE

_WARM_UP_S: Final = 0.5
#: Fewer and longer turns than elsewhere: some of what protects has work once a second only.
_TIMES_AS_LONG: Final = 5
_LEAST_KEPT: Final = 0.9
_LANE: Final = "measured"
#: Of 1,000 places in each worker; none of them is ever wanted by others.
_RESERVE: Final = 10
#: Only to have them counted: twenty times as many as there are.
_CALLS_PER_SERVER: Final = 20 * AT_ONCE
_ENGINE: Final = "InnoDB"

_HELLO: Final = "hello"
_START: Final = "VICIdial's START"
_END: Final = "VICIdial's END"
_MARKED: Final = "one row, not repeatable"
_JUDGED: Final = (_HELLO, _START, _END)
_ON: Final = "protected"
_OFF: Final = "not protected"

_SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    # The journal is there anyway, in the pool's own folder.
    _ON: {
        "witness": True,
        "lanes": {_LANE: {"reserve": _RESERVE}},
        "limits": {"calls_per_server": _CALLS_PER_SERVER},
        "quarantine": {"crashes": 2},
    },
    _OFF: {"witness": False, "quarantine": {"crashes": 0}, "journal": {"file": "off"}},
}
_RECORD: Final[Mapping[str, Any]] = {"script": "record", "handler": "recorded:record", "databases": ["data"]}
_CODE: Final = """\
from sqlalchemy import text

from fastagi_pool.deferring import deferrable


@deferrable
def record(call, context):
    with context.begin("data") as database:
        database.execute(
            text("INSERT INTO records (uniqueid) VALUES (:uniqueid)"),
            {"uniqueid": call.request.uniqueid},
        )
"""
_TITLE: Final = (
    f"2 workers, {AT_ONCE} calls at a time, access log on, MariaDB on the same cores with "
    "innodb_flush_log_at_trx_commit = 2. Protected: with witness, a lane that has a reserve, a limit of "
    "calls per server, quarantine, and a journal; not protected: without any of these."
)
_WHAT_A_CALL_TAKES: Final = (
    "Processor time of a call, in all processes of the pool, protected and not protected"
)
_WHAT_A_MARK_BUYS: Final = (
    "A handler that is not repeatable and writes one row keeps {kept:.3f} of its rate: by its own choice a "
    "mark is written too, and buys that a commit whose answer was lost is neither done twice nor left out."
)


@dataclass(frozen=True, slots=True)
class _Tables:
    """Where one side's calls leave their rows.

    Attributes:
        server: The database server of both sides.
        vicidial: VICIdial's tables.
        records: The name of the database with the table of the other rows.
    """

    server: MariaDBServer
    vicidial: VicidialDatabase
    records: str

    def count(self, query: str) -> int:
        """Ask for one number of the other rows."""
        [[number]] = self.server.execute(query.format(database=self.records))
        return int(number)


@dataclass(slots=True)
class _Side:
    """One of the two pools, and what became of its calls.

    Attributes:
        name: Whether it is protected.
        bench: Runs loads.
        pool: The pool.
        desk: Begins and ends VICIdial's calls.
        hellos: What became of the calls that touch no database, run by run.
        records: What became of those that leave a row and, protected, a mark.
        cost_us: By kind of call: processor time of a call in all processes of the pool, run by run.
    """

    name: str
    bench: Bench
    pool: PoolService
    desk: Desk
    hellos: list[LoadResult] = field(default_factory=list)
    records: list[LoadResult] = field(default_factory=list)
    cost_us: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, kind: str, length_s: float) -> LoadResult:
        """Play calls of one kind for some time, and note what they take of the processors.

        Raises:
            RuntimeError: Not one of them was good.
        """
        runs: dict[str, Callable[[float], LoadResult]] = {
            _HELLO: self._hello,
            _START: self.desk.start,
            _END: self.desk.end,
            _MARKED: self._record,
        }
        before_s = _processor_s(self.pool)
        result = runs[kind](length_s)
        taken_s = _processor_s(self.pool) - before_s
        if not result.good:
            raise RuntimeError(f"no good call: {kind}, {self.name}")
        self.cost_us.setdefault(kind, []).append(1e6 * taken_s / result.good)
        return result

    def results(self) -> list[LoadResult]:
        """Return what became of all calls, those that do not count as measured included."""
        return [*self.hellos, *self.desk.starts, *self.desk.ends, *self.records]

    def deferred(self) -> int:
        """Count the calls that were left to a replay, once the pool has ended."""
        return self.pool.access_path.read_text().count(" outcome=deferred ")

    def _hello(self, length_s: float) -> LoadResult:
        self.hellos.append(self.bench.load.run(self.pool.address, Load(length_s=length_s)))
        return self.hellos[-1]

    def _record(self, length_s: float) -> LoadResult:
        first = 1 + sum(result.calls for result in self.records)
        load = Load("record", length_s=length_s, extension="h", first=first, needs_command=False)
        self.records.append(self.bench.load.run(self.pool.address, load))
        return self.records[-1]


def protection(bench: Bench) -> Section:
    """Compare a pool that has all protection with one that has none, by kinds of calls."""
    code = bench.folder / "protection-code"
    code.mkdir()
    (code / "recorded.py").write_text(_CODE)
    missing = ""
    kinds: tuple[str, ...] = (_HELLO, _START, _END, _MARKED)
    tables: dict[str, _Tables] = {}
    begun_epoch = int(time.time())
    with ExitStack() as databases:
        try:
            server = databases.enter_context(MariaDBServer(find_mariadb()))
        except MariaDBMissingError as error:
            missing, kinds = str(error), (_HELLO,)
        else:
            tables = {name: _make_tables(server, databases, name) for name in (_ON, _OFF)}
        with ExitStack() as pools:
            sides = [_start(bench, pools, name, tables.get(name), code) for name in (_ON, _OFF)]
            results = {kind: _take_turns(bench, sides, kind) for kind in kinds}
        # By now the pools have ended, and have written all they ever will.
        figures = [_kept(results.get(kind), kind, missing) for kind in _JUDGED]
        figures.append(_lost(sides))
        for side in sides if tables else ():
            figures += _rows(side, tables[side.name], begun_epoch)
    named = {f"{kind}, {name}": runs for kind, both in results.items() for name, runs in both.items()}
    return Section("protection", _title(sides, results), tuple(figures), speeds(named))


def _make_tables(server: MariaDBServer, databases: ExitStack, name: str) -> _Tables:
    suffix = name.replace(" ", "_")
    vicidial = databases.enter_context(VicidialDatabase(server, f"vicidial_{suffix}", _ENGINE))
    vicidial.execute("UPDATE servers SET agi_output = 'NONE'")
    records = f"records_{suffix}"
    server.execute(f"CREATE DATABASE {records}")
    server.execute(f"CREATE TABLE {records}.records (uniqueid VARCHAR(40)) ENGINE={_ENGINE}")
    return _Tables(server, vicidial, records)


def _start(bench: Bench, pools: ExitStack, name: str, tables: _Tables | None, code: Path) -> _Side:
    """Start one of the two pools."""
    routes: list[Mapping[str, Any]] = [HELLO]
    databases: dict[str, Any] = {}
    if tables is not None:
        routes += [_RECORD, pool_route(bench.folder)]
        databases = pool_databases(tables.vicidial.url)
        databases["data"] = {"url": tables.server.url(tables.records, PASSWORD)}
    if name == _ON:
        routes = [{**route, "lane": _LANE} for route in routes]
    # No worker ends, and takes along what is known of its time.
    settings = {"databases": databases, "python_path": [str(code)], "max_calls": 0, **_SETTINGS[name]}
    pool = pools.enter_context(bench.pool(*routes, **settings))
    return _Side(name, bench, pool, Desk(bench, pool.address, _ENGINE))


def _take_turns(bench: Bench, sides: Sequence[_Side], kind: str) -> dict[str, list[LoadResult]]:
    """Measure calls of one kind with and without protection, in turn."""
    named = {side.name: side for side in sides}
    for side in sides:
        side.measure(kind, _WARM_UP_S)
        side.cost_us[kind].clear()
    pairs, length_s = max(2, bench.scale.rounds * 3 // 5), _TIMES_AS_LONG * bench.scale.run_s
    return interleaved(list(named), pairs, lambda name: named[name].measure(kind, length_s))


def _kept(results: Mapping[str, Sequence[LoadResult]] | None, kind: str, missing: str) -> Figure:
    what, criterion = f"rate of {kind}, protected, as a ratio to not protected", f"at least {_LEAST_KEPT:g}"
    if results is None:
        return not_measured(what, missing, criterion)
    kept = ratios(results[_ON], results[_OFF], rate)
    return judged(what, spread(kept), criterion, median(kept) >= _LEAST_KEPT)


def _lost(sides: Sequence[_Side]) -> Figure:
    results = [result for side in sides for result in side.results()]
    lost, calls = sum(result.lost for result in results), sum(result.calls for result in results)
    return judged("calls bad, refused or unfinished", f"{lost:,} of {calls:,}", "0", lost == 0)


def _rows(side: _Side, tables: _Tables, begun_epoch: int) -> list[Figure]:
    """Judge the rows that a side's calls have left, and that they were not left to a replay."""
    good = sum(result.good for result in side.records)
    stored = tables.count("SELECT COUNT(DISTINCT uniqueid) FROM {database}.records")
    figures = [
        side.desk.rows(tables.vicidial, begun_epoch),
        judged("rows of the handler that is not repeatable", f"{stored:,}", f"{good:,}", stored == good),
    ]
    if side.name == _ON:
        marks = tables.count(f"SELECT COUNT(*) FROM {{database}}.{TABLE}")
        deferred = side.deferred()
        figures += [
            judged("marks of that handler's calls", f"{marks:,}", f"{good:,}", marks == good),
            judged("calls that were deferred", f"{deferred:,}", "0", deferred == 0),
        ]
    return [replace(figure, what=f"{figure.what}, {side.name}") for figure in figures]


def _title(sides: Sequence[_Side], results: Mapping[str, Mapping[str, Sequence[LoadResult]]]) -> str:
    """Say what was done, and what was found that has no criterion."""
    protected, bare = sides
    costs = "; ".join(_cost(kind, protected.cost_us[kind], bare.cost_us[kind]) for kind in results)
    title = f"{_TITLE} {_WHAT_A_CALL_TAKES}: {costs}."
    if _MARKED not in results:
        return title
    kept = median(ratios(results[_MARKED][_ON], results[_MARKED][_OFF], rate))
    return f"{title} {_WHAT_A_MARK_BUYS.format(kept=kept)}"


def _cost(kind: str, protected_us: Sequence[float], bare_us: Sequence[float]) -> str:
    times = median(one / other for one, other in zip(protected_us, bare_us, strict=True))
    return f"{kind} {median(protected_us):.0f} us and {median(bare_us):.0f} us ({times:.3f} times)"


def _processor_s(pool: PoolService) -> float:
    """Add up the processor time of a pool's threads. Source: Linux, sched-stats.rst: nanoseconds first."""
    taken_ns = 0
    for process in pool.processes():
        for thread in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            taken_ns += int(thread.read_text().split()[0])
    return taken_ns / 1e9
