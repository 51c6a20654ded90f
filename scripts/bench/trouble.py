"""Trouble: what callers notice of reloads, of broken code, of a worker's death and of a lost database."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass
from typing import Final

from bench import Bench
from endurance import await_access_lines, held_route
from figures import Section, judged, not_measured
from load import Load, LoadResult
from mariadb import PASSWORD, MariaDBMissingError, MariaDBServer, find_mariadb
from service import PoolService, pids

from fastagi_pool.testing import AgiStatus, play_call

_RELOAD_PER_S: Final = 300.0
#: Between two reloads, so that each generation serves for a moment.
_GENERATION_S: Final = 0.5
_CODE: Final = "def changing(call, context):\n    call.verbose('hello')\n"
_BROKEN_CODE: Final = "def changing(call, context):\n    call.verbose('hello'\n"
#: How long calls must go on after the reload that is refused.
_AFTERWARDS_S: Final = 1.0

_KILL_WORKERS: Final = 4
_MOST_REPLACING_S: Final = 1.0
_TAKE_UP_S: Final = 60.0

_DATABASE_PER_S: Final = 200.0
_MOST_RECOVERING_S: Final = 5.0
#: So many calls in a row must find their row: a single one says nothing of the other worker.
_GOOD_IN_A_ROW: Final = 20
_GIVE_UP_S: Final = 60.0
#: The caller that ``agiload`` plays, and its row.
_CALLER: Final = ("7275551212", "Alice Liddell")


@dataclass(frozen=True, slots=True)
class _Reloaded:
    """What callers and the log noticed of reloads."""

    good: LoadResult
    broken: LoadResult
    access_lines: int
    good_access_lines: int
    same_workers: bool
    place: str


def reload(bench: Bench) -> Section:
    """Reload again and again under load, then reload broken code."""
    found = _reload(bench)
    calls = found.good.calls + found.broken.calls
    reloads = f"{bench.scale.reloads} reloads"
    figures = (
        judged(f"calls lost in {reloads}", _of(found.good), "0", found.good.lost == 0),
        judged("calls lost when broken code is reloaded", _of(found.broken), "0", found.broken.lost == 0),
        judged(
            "access lines, and those of good calls",
            f"{found.access_lines:,}, {found.good_access_lines:,}",
            f"{calls:,}",
            found.access_lines == found.good_access_lines == calls,
        ),
        judged(
            "workers after that",
            "the same" if found.same_workers else "others",
            "the same",
            found.same_workers,
        ),
        judged("the log names the place", found.place or "no", "file and line", bool(found.place)),
    )
    title = f"{reloads} (SIGHUP) at {_RELOAD_PER_S:g} calls/s, then one of a handler with a syntax error."
    return Section("reload", title, figures)


def _reload(bench: Bench) -> _Reloaded:
    load = Load(script="changing", at_once=1000, per_s=_RELOAD_PER_S)
    route = {"script": "changing", "handler": "changing:changing"}
    code = bench.folder / "reload-code"
    code.mkdir()
    module = code / "changing.py"
    module.write_text(_CODE)
    with bench.pool(route, python_path=[str(code)]) as pool:
        with bench.load.begin(pool.address, load) as running:
            for generation in range(2, bench.scale.reloads + 2):
                pool.reload()
                pool.await_serving(2, generation)
                time.sleep(_GENERATION_S)
            good = running.finish()
        before = pids(pool.serving())
        module.write_text(_BROKEN_CODE)
        with bench.load.begin(pool.address, load) as running:
            pool.reload()
            said = pool.await_log(r"reload refused, nothing changes: .*$")[0][0]
            time.sleep(_AFTERWARDS_S)
            broken = running.finish()
        same_workers = pids(pool.serving()) == before
        lines, good_lines = await_access_lines(pool, good.calls + broken.calls)
    place = re.search(rf"{re.escape(str(module))}:\d+", said)
    return _Reloaded(
        good, broken, lines, good_lines, same_workers, place[0].rpartition("/")[2] if place else ""
    )


def kill(bench: Bench) -> Section:
    """Kill one of several workers that hold calls."""
    calls = bench.scale.killed_calls
    gate = bench.folder / "kill-gate"
    load = Load(script="held", at_once=calls, calls=calls, grace_s=_TAKE_UP_S)
    with (
        bench.pool(held_route(gate), workers=_KILL_WORKERS) as pool,
        bench.load.begin(pool.address, load) as running,
    ):
        pool.await_that(
            lambda: sum(worker.active for worker in pool.serving()) == calls, "holds all calls", _TAKE_UP_S
        )
        victim = pool.serving()[0]
        os.kill(victim.pid, signal.SIGKILL)
        killed_s = time.monotonic()
        pool.await_that(
            lambda: len(pids(pool.serving()) - {victim.pid}) == _KILL_WORKERS, "has replaced the worker"
        )
        replacing_s = time.monotonic() - killed_s
        gate.touch()
        result = running.result(_TAKE_UP_S)
    figures = (
        judged(
            "until another worker serves",
            f"{replacing_s * 1000:.0f} ms",
            f"at most {_MOST_REPLACING_S * 1000:.0f} ms",
            replacing_s <= _MOST_REPLACING_S,
        ),
        judged(
            "calls lost",
            _of(result),
            f"{victim.active}, those of that worker",
            result.lost == victim.active,
        ),
    )
    title = f"{calls} calls held in {_KILL_WORKERS} workers, one of which is killed (SIGKILL)."
    return Section("kill", title, figures)


def mariadb(bench: Bench) -> Section:
    """Restart the database server under load."""
    criteria = (f"at most {_MOST_RECOVERING_S:g} s", "0")
    whats = ("until the pool answers again", "calls lost afterwards")
    title = (
        f"MariaDB is stopped and started again while {_DATABASE_PER_S:g} calls/s read one row each; "
        f"then {bench.scale.recovered_calls:,} calls more."
    )
    try:
        programs = find_mariadb()
    except MariaDBMissingError as error:
        missing = [
            not_measured(what, str(error), criterion) for what, criterion in zip(whats, criteria, strict=True)
        ]
        return Section("mariadb", title, tuple(missing))
    route = {"script": "lookup", "handler": "fastagi_pool.handlers.lookup:lookup", "databases": ["data"]}
    with MariaDBServer(programs) as server:
        server.execute("CREATE DATABASE bench")
        database = {"url": server.url("bench", PASSWORD)}
        with bench.pool(route, databases={"data": database}) as pool:
            number, name = _CALLER
            server.execute(f"REPLACE INTO bench.callers (number, name) VALUES ('{number}', '{name}')")
            load = Load(script="lookup", at_once=2000, per_s=_DATABASE_PER_S)
            with bench.load.begin(pool.address, load) as running:
                recovering_s = _restart(server, pool)
                running.finish()
            result = bench.load.run(pool.address, Load(script="lookup", calls=bench.scale.recovered_calls))
    figures = (
        judged(whats[0], f"{recovering_s:.2f} s", criteria[0], recovering_s <= _MOST_RECOVERING_S),
        judged(whats[1], _of(result), criteria[1], result.lost == 0),
    )
    return Section("mariadb", title, figures)


def _restart(server: MariaDBServer, pool: PoolService) -> float:
    """Restart the server, and return the seconds from when it answers to when all calls find their row."""
    url = pool.url("lookup")
    server.stop()
    pool.await_that(lambda: not _finds_row(url), "notices that the database is away")
    server.start()
    up_s = good_since_s = time.monotonic()
    good_in_a_row = 0
    while good_in_a_row < _GOOD_IN_A_ROW and good_since_s - up_s < _GIVE_UP_S:
        asked_s = time.monotonic()
        if not _finds_row(url):
            good_in_a_row = 0
            continue
        good_in_a_row += 1
        if good_in_a_row == 1:
            good_since_s = asked_s
    return good_since_s - up_s


def _finds_row(url: str) -> bool:
    result = play_call(url, timeout_s=_GIVE_UP_S)
    return result.status is AgiStatus.SUCCESS and bool(result.variables.get("CALLER_NAME"))


def _of(result: LoadResult) -> str:
    return f"{result.lost:,} of {result.calls:,}"
