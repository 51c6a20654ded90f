"""Overload: what hangup records notice of a pool full of calls, whoever comes beyond, and others of floods.

Laws:
    * A pool counts as full only when it has told so to as many calls as it should have: all others are in
      progress or wait.
    * What a flood does to ordinary calls is told by runs that took turns, of one pool: only the flood comes
      and goes.
    * A flood counts only if its connections were all still open at the end of its run.
    * Latencies are judged by the runs from which the machine's host took least; see :func:`load.undisturbed`.
    * The floods cost the least processor time that they can, for the pool lacks it; how much is told.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench import HELLO, Bench
from figures import Figure, Section, judged, not_measured
from load import Load, LoadResult, interleaved, p99, ratios, undisturbed
from machine import allow_open_files, pss_bytes
from mariadb import PASSWORD, MariaDBMissingError, MariaDBServer, find_mariadb
from programs import Running, compiled
from service import PoolService
from speed import speeds, spread

from fastagi_pool.testing import AgiStatus, environment, play_call

_WORKERS: Final = 2
_PLACES: Final = 50
_RESERVE: Final = 10
_QUEUE: Final = 20
#: So many calls beyond the bound show that it is reached in every worker.
_EXCESS: Final = 40
_RECORDS: Final = 500
_STEADY_PER_S: Final = 200.0
#: This is all that two cores can do: how long one takes says how many come, and nothing about lanes.
_CROWDED: Final = "20 at a time"
#: How hangup records come.
_RECORD_LOADS: Final[Mapping[str, Load]] = {
    "one at a time": Load(at_once=1),
    f"{_STEADY_PER_S:g} a second": Load(at_once=1000, per_s=_STEADY_PER_S),
    _CROWDED: Load(at_once=20),
}
_MOST_RECORD_MS: Final = 20.0
_REFUSED: Final = 200
_MOST_REFUSAL_MS: Final = 50.0
_PATIENCE_S: Final = 30.0
_CODE: Final = """\
from sqlalchemy import text


def menu(call, context):
    call.wait_for_digit()


def record(call, context):
    if context.options["stored"]:
        with context.begin() as database:
            database.execute(
                text("INSERT INTO records (uniqueid) VALUES (:uniqueid)"),
                {"uniqueid": call.request.uniqueid},
            )
"""

_QUIET: Final = "hello, nothing else"
_MOST_FACTOR: Final = 1.5
_KNOCKS_PER_S: Final = 1_000
#: Calls between two runs, which end when the pool has done with what came before them.
_SETTLING_CALLS: Final = 200
#: Source addresses of those who connect and close: one has not ports enough for so many.
_SOURCES: Final = 32
_FLOOD: Final = Path(__file__).resolve().parent / "flood.c"
_MOST_SILENT_BYTES: Final = 100_000_000
_MOST_LEFT_BYTES: Final = 50_000_000
#: Files that the load source and the pool's processes need besides one for each connection.
_SPARE_FILES: Final = 1_000


def overload(bench: Bench) -> Section:
    """Fill a pool and see who is still served, and who is told what; then flood one with silence."""
    connections = bench.scale.held_calls
    title = (
        f"{_WORKERS} workers of {_PLACES} calls, full of calls that wait for a digit; the lane of the hangup "
        f"records keeps {_RESERVE} places. Then hello at {_STEADY_PER_S:g} calls/s in {_WORKERS} workers, in "
        f"turn with nothing else, with {connections:,} silent connections, with {connections // 10:,} that "
        f"send a byte a second, and while {10 * connections:,} connect and close ({_KNOCKS_PER_S:,} each s)."
    )
    full, records = _full(bench)
    if not allow_open_files(connections + _SPARE_FILES):
        reason = f"no {connections + _SPARE_FILES} open files; see ulimit -n"
        figures = (*full, not_measured("floods", reason, "to be measured"))
        return Section("overload", title, figures, speeds(records))
    flooded, results, costs = _flooded(bench, connections)
    return Section("overload", f"{title} {costs}", (*full, *flooded), speeds({**records, **results}))


# --- a pool that is full


def _full(bench: Bench) -> tuple[list[Figure], dict[str, list[LoadResult]]]:
    """Measure records and refusals in a pool that is full of other calls, and records before it is."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(MariaDBServer(find_mariadb()))
        except MariaDBMissingError:
            return _full_pool(bench, None, {})
        server.execute("CREATE DATABASE bench")
        server.execute("CREATE TABLE bench.records (uniqueid VARCHAR(40)) ENGINE=InnoDB")
        return _full_pool(bench, server, {"data": {"url": server.url("bench", PASSWORD)}})


def _full_pool(
    bench: Bench, server: MariaDBServer | None, databases: Mapping[str, Mapping[str, str]]
) -> tuple[list[Figure], dict[str, list[LoadResult]]]:
    code = bench.folder / "overload-code"
    code.mkdir()
    (code / "overloaded.py").write_text(_CODE)
    menu = {"script": "menu", "handler": "overloaded:menu"}
    record = {
        "script": "record",
        "handler": "overloaded:record",
        "lane": "hangup",
        "databases": list(databases),
        "options": {"stored": bool(databases)},
    }
    lanes = {"default": {"max_queue": _QUEUE, "max_wait": "10m"}, "hangup": {"reserve": _RESERVE}}
    # Without end: a worker that was replaced would be empty.
    settings: dict[str, Any] = {
        "workers": _WORKERS,
        "max_calls": 0,
        "calls_per_worker": _PLACES,
        "lanes": lanes,
    }
    paths = [str(code)]
    with bench.pool(menu, record, python_path=paths, databases=databases, **settings) as pool:
        serials = count(1, _RECORDS)
        empty = _send_records(bench, pool, serials)
        held = _WORKERS * (_PLACES - _RESERVE + _QUEUE)
        with _Unanswered(pool.address, "menu", held + _EXCESS) as callers:
            pool.await_that(
                lambda: callers.refused() == _EXCESS, f"is full and has refused {_EXCESS} calls", _PATIENCE_S
            )
            full = _send_records(bench, pool, serials)
            figures = [
                *_record_figures(empty, full, server),
                *_refusal_figures(pool),
                judged("calls still held", f"{callers.held():,}", f"{held:,}", callers.held() == held),
            ]
    states = {"empty": empty, "full": full}
    results = {
        f"records, {how}, pool {state}": of[how] for how in _RECORD_LOADS for state, of in states.items()
    }
    return figures, results


def _send_records(bench: Bench, pool: PoolService, serials: Iterator[int]) -> dict[str, list[LoadResult]]:
    """Send hangup records in every way, in turn; the serials keep any two from being the same."""
    kind = Load(script="record", calls=_RECORDS, extension="h", needs_command=False)

    def send(how: str) -> LoadResult:
        load = _RECORD_LOADS[how]
        return bench.load.run(
            pool.address, replace(kind, at_once=load.at_once, per_s=load.per_s, first=next(serials))
        )

    return interleaved(list(_RECORD_LOADS), bench.scale.rounds, send)


def _record_figures(
    empty: Mapping[str, Sequence[LoadResult]],
    full: Mapping[str, Sequence[LoadResult]],
    server: MariaDBServer | None,
) -> list[Figure]:
    """Judge the records that were sent to the full pool, and see that every one of all is stored."""
    figures, wanted = [], 0
    for how, runs in full.items():
        if how == _CROWDED:
            factor = _typical_p99_ms(runs) / _typical_p99_ms(empty[how])
            name, measured = f"p99, as a ratio to that in the empty pool: records, {how}", f"{factor:.2f}"
            criterion, good = f"at most {_MOST_FACTOR:g}", factor <= _MOST_FACTOR
        else:
            p99_ms = _typical_p99_ms(runs)
            name = f"latency of hangup records, {how} (p99)"
            measured = f"{p99_ms:.1f} ms (all runs: {_range_ms(runs)})"
            criterion, good = f"at most {_MOST_RECORD_MS:g} ms", p99_ms <= _MOST_RECORD_MS
        figures.append(judged(name, measured, criterion, good))
        lost, calls = sum(run.lost for run in runs), sum(run.calls for run in runs)
        figures.append(judged(f"records lost, {how}", f"{lost:,} of {calls:,}", "0", lost == 0))
        wanted += calls + sum(run.calls for run in empty[how])
    if server is None:
        figures.append(not_measured("records stored", "no MariaDB server", f"{wanted:,}"))
    else:
        [[stored]] = server.execute("SELECT COUNT(DISTINCT uniqueid) FROM bench.records")
        figures.append(judged("records stored", f"{stored:,}", f"{wanted:,}", stored == wanted))
    return figures


def _typical_p99_ms(runs: Sequence[LoadResult]) -> float:
    return median(map(p99, undisturbed(runs)))


def _range_ms(runs: Sequence[LoadResult]) -> str:
    latencies_ms = [run.p99_ms for run in runs]
    return f"{min(latencies_ms):.1f} to {max(latencies_ms):.1f} ms"


def _refusal_figures(pool: PoolService) -> list[Figure]:
    """Place calls for which there is neither place nor room, and see what they are told and how soon."""
    url, taken_ms, truthful = pool.url("menu"), [], 0
    for _ in range(_REFUSED):
        begun_s = time.monotonic()
        result = play_call(url)
        taken_ms.append(1000 * (time.monotonic() - begun_s))
        told = result.variables.get("FAGI_STATUS")
        truthful += result.status is AgiStatus.FAILURE and told == "OVERLOAD"
    worst_ms = max(taken_ms)
    return [
        judged(
            f"time until a call beyond the bound hears FAILURE ({_REFUSED})",
            f"at most {worst_ms:.1f} ms (median: {median(taken_ms):.1f} ms)",
            f"less than {_MOST_REFUSAL_MS:g} ms",
            worst_ms < _MOST_REFUSAL_MS,
        ),
        judged("of those that are told why", f"{truthful:,}", f"{_REFUSED:,}", truthful == _REFUSED),
    ]


class _Unanswered:
    """Calls whose commands nobody answers; they end with the ``with``."""

    def __init__(self, address: str, script: str, calls: int) -> None:
        self._address = address
        self._environment = environment(f"agi://localhost/{script}").encode()
        self._lines: list[socket.socket] = []
        self._heard = [b""] * calls

    def __enter__(self) -> _Unanswered:
        for _ in self._heard:
            line = _connect(self._address)
            self._lines.append(line)
            # At once, as Asterisk does: by the calls that it has, each worker knows whose turn it is.
            line.sendall(self._environment)
            line.setblocking(False)
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines:
            line.close()

    def refused(self) -> int:
        """Count those who were told FAILURE so far."""
        for number, line in enumerate(self._lines):
            try:
                self._heard[number] += line.recv(4096)
            except OSError:
                continue  # Nothing has come, or the pool has closed: what was heard before counts.
        return sum(b"failure" in heard for heard in self._heard)

    def held(self) -> int:
        """Count those who were not."""
        return len(self._lines) - self.refused()


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), _PATIENCE_S)


# --- floods


@dataclass(slots=True)
class _Cost:
    """What a source of floods took of a processor, in all its runs."""

    cpu_s: float = 0.0
    length_s: float = 0.0

    def add(self, figures: Mapping[str, str]) -> None:
        """Add a run."""
        self.cpu_s += float(figures["cpu"])
        self.length_s += float(figures["seconds"])

    def __str__(self) -> str:
        return f"{self.cpu_s / self.length_s:.1%} of a core"


@dataclass(slots=True)
class _Seen:
    """What was seen beside the figures of the runs.

    Attributes:
        cut: Connections of a flood that the pool closed.
        knocks: Connections that were opened only to be closed.
        silent_bytes: The pool's memory in each run with silent connections.
        trickle: What the source of single bytes took, in all runs.
        knocking: What the source of the knocks took.
    """

    cut: int = 0
    knocks: int = 0
    silent_bytes: list[int] = field(default_factory=list)
    trickle: _Cost = field(default_factory=_Cost)
    knocking: _Cost = field(default_factory=_Cost)


def _flooded(bench: Bench, connections: int) -> tuple[list[Figure], dict[str, list[LoadResult]], str]:
    """Measure ordinary calls with and without floods, in turn, and say what the floods cost themselves."""
    rounds = bench.scale.rounds
    length_s = 10 * connections / (rounds * _KNOCKS_PER_S)
    silent, trickle = f"hello, {connections:,} silent", f"hello, {connections // 10:,} a byte a second"
    knocking, seen = f"hello, {_KNOCKS_PER_S:,} a second connect and close", _Seen()
    program = compiled(_FLOOD, bench.folder / "flood")
    settings: dict[str, Any] = {"workers": _WORKERS, "backlog": 4096, "limits": {"header_timeout": "1h"}}
    with bench.pool(HELLO, **settings) as pool:
        floods: dict[str, Callable[[], AbstractContextManager[None]]] = {
            _QUIET: nullcontext,
            silent: partial(_silent, pool.address, connections, seen),
            trickle: partial(_trickling, program, pool.address, connections // 10, seen),
            knocking: partial(_knocking, program, pool.address, seen),
        }

        def run(name: str) -> LoadResult:
            with floods[name]():
                # Behind all who came before: when these are served, all the others have been taken up.
                bench.load.run(pool.address, Load(calls=_SETTLING_CALLS))
                result = bench.load.run(
                    pool.address, Load(at_once=1000, per_s=_STEADY_PER_S, length_s=length_s)
                )
                if name == silent:
                    seen.silent_bytes.append(pss_bytes(pool.processes()))
            bench.load.run(pool.address, Load(calls=_SETTLING_CALLS))
            return result

        run(_QUIET)
        before_bytes = pss_bytes(pool.processes())
        results = interleaved(list(floods), rounds, run)
        after_bytes = pss_bytes(pool.processes())
        error_lines = pool.logged().count(" ERROR ")
    figures = [
        *_latency_figures(results),
        *_memory_figures(connections, before_bytes, max(seen.silent_bytes), after_bytes),
        judged("connections of the floods that the pool closed", f"{seen.cut:,}", "0", seen.cut == 0),
        judged(f"error lines, {seen.knocks:,} probes included", f"{error_lines:,}", "0", error_lines == 0),
    ]
    costs = f"Processor time of the source of the bytes: {seen.trickle}; of the knocks: {seen.knocking}."
    return figures, results, costs


def _latency_figures(results: Mapping[str, Sequence[LoadResult]]) -> list[Figure]:
    figures = []
    for name, runs in results.items():
        lost, calls = sum(run.lost for run in runs), sum(run.calls for run in runs)
        figures.append(judged(f"calls lost: {name}", f"{lost:,} of {calls:,}", "0", lost == 0))
        if name == _QUIET:
            continue
        factor = _typical_p99_ms(runs) / _typical_p99_ms(results[_QUIET])
        figures.append(
            judged(
                f"p99, as a ratio to that of calls without a flood: {name}",
                f"{factor:.2f} (all runs: {spread(ratios(runs, results[_QUIET], p99))})",
                f"at most {_MOST_FACTOR:g}",
                factor <= _MOST_FACTOR,
            )
        )
    return figures


def _memory_figures(connections: int, before_bytes: int, silent_bytes: int, after_bytes: int) -> list[Figure]:
    return [
        judged(
            f"memory of the whole pool with {connections:,} silent connections",
            f"{_mb(silent_bytes)} ({_mb(before_bytes)} without)",
            f"at most {_mb(_MOST_SILENT_BYTES)} more",
            silent_bytes - before_bytes <= _MOST_SILENT_BYTES,
        ),
        judged(
            "memory of the whole pool after all floods",
            f"{_mb(after_bytes)} ({_mb(before_bytes)} before)",
            f"at most {_mb(_MOST_LEFT_BYTES)} more",
            after_bytes - before_bytes <= _MOST_LEFT_BYTES,
        ),
    ]


def _mb(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.0f} MB"


@contextmanager
def _silent(address: str, connections: int, seen: _Seen) -> Iterator[None]:
    """Keep connections open that say nothing, and count at the end those that the pool has closed."""
    with ExitStack() as stack:
        lines = [stack.enter_context(_connect(address)) for _ in range(connections)]
        yield
        seen.cut += sum(map(_is_cut, lines))


@contextmanager
def _trickling(program: Path, address: str, connections: int, seen: _Seen) -> Iterator[None]:
    """Keep connections open, each of which sends a byte of its environment every second."""
    data = environment("agi://localhost/hello", tuple("x" * 1000 for _ in range(9)))
    host, _, port = address.rpartition(":")
    with Running(program, "trickle", host, port, str(connections), data) as trickling:
        trickling.await_line(_PATIENCE_S)
        yield
        figures = trickling.stop(_PATIENCE_S)
    seen.cut += int(figures["cut"])
    seen.trickle.add(figures)


@contextmanager
def _knocking(program: Path, address: str, seen: _Seen) -> Iterator[None]:
    """Connect and close all the time, at a steady rate."""
    host, _, port = address.rpartition(":")
    with Running(program, "knock", host, port, str(_KNOCKS_PER_S), str(_SOURCES)) as knocking:
        yield
        figures = knocking.stop(_PATIENCE_S)
    seen.knocks += int(figures["knocks"])
    seen.knocking.add(figures)


def _is_cut(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        line.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
