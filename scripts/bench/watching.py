"""Watching: how soon the pool tells what it does, with very many calls in progress, and what watching costs.

Laws:
    * An answer counts only if it tells of all the calls it was asked for: who is quick and wrong is not
      measured.
    * No answer is one that was made for an earlier question: the observer keeps its picture for a moment, and
      every question waits until that is over.
    * What watching costs is told by runs that took turns, of one pool: only the watchers come and go.
    * Whether it costs as little as it may is judged by processor time: the rate of a run varies by a tenth,
      so of the rate one sees only that nothing large happens.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from threading import Event
from time import monotonic, sleep
from typing import Any, Final

from bench import HELLO, Bench
from endurance import held_route
from figures import Figure, Section, judged, not_measured
from load import AT_ONCE, Load, LoadResult, interleaved, rate, ratios
from machine import allow_open_files
from service import COMMAND, PoolService
from speed import speeds, spread

from fastagi_pool.control import SOCKET_NAME, Verb, decode, encode
from fastagi_pool.picture import KEPT_S

_CALLS: Final = 5_000
#: As many as the command shows unless it is told otherwise.
_OLDEST: Final = 50
_WORKERS: Final = 4
_TIMES: Final = 20
_MOST_S: Final = 0.1
#: To list them all, which nobody reads: 2 MB of text.
_MOST_FOR_ALL_S: Final = 0.5
#: How long the pool may take to take up all the calls that are held, and how long they may take to end.
_TAKE_UP_S: Final = 180.0
_END_S: Final = 600.0
#: How long an answer may take to be told at all.
_PATIENCE_S: Final = 30.0
#: After so long no answer is of an earlier picture.
_PAUSE_S: Final = KEPT_S + 0.02
#: Files that the load source and the pool's processes need besides one for each call.
_SPARE_FILES: Final = 500
_SHOWING: Final = r"showing the status on http://(.+):(\d+)/"
_ACTIVE: Final = re.compile(rb"^fastagi_active_calls\{.*\} (\S+)$", re.MULTILINE)
#: A command that does nothing but start and end.
_NOTHING: Final = ("--version",)

_WATCHED: Final = "hello, watched"
_UNWATCHED: Final = "hello, not watched"
_WATCH_EVERY_S: Final = 1.0
_WARM_UP_S: Final = 0.5
#: Small differences want so many times the rounds of large ones.
_ROUNDS: Final = 3
_LEAST_RATE_KEPT: Final = 0.95
_MOST_COST_PERCENT: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Question:
    """What can be asked of a pool.

    Attributes:
        name: What it is called.
        calls: Of how many calls the answer has to tell.
        ask: Asks, and returns the answer as it came.
        told: Reads from an answer of how many calls it tells.
    """

    name: str
    calls: int
    ask: Callable[[], bytes]
    told: Callable[[bytes], int]


@dataclass(frozen=True, slots=True)
class _Taken:
    """What was taken of the processors.

    Attributes:
        observer_s: By the pool's observer.
        pool_s: By all of its processes.
    """

    observer_s: float
    pool_s: float


def watching(bench: Bench) -> Section:
    """Ask a pool that holds very many calls, and see what rate is left to one that is asked every second."""
    calls = min(_CALLS, bench.scale.held_calls)
    title = (
        f"{calls:,} calls held in {_WORKERS} workers, everything asked {_TIMES} times and answered anew. "
        f"Then hello in 2 workers, {AT_ONCE} calls at a time, access log on, with and without watchers that "
        f"ask for status, for the {_OLDEST} oldest calls and for /metrics, each once a second."
    )
    if not allow_open_files(calls + _SPARE_FILES):
        reason = f"no {calls + _SPARE_FILES} open files; see ulimit -n"
        return Section("watching", title, (not_measured("all", reason, "to be measured"),))
    with _holding(bench, calls) as pool:
        figures = [*_answer_figures(pool, calls), *_command_figures(pool, calls)]
    costs, results = _costs(bench)
    return Section("watching", title, (*figures, *costs), speeds(results))


@contextmanager
def _holding(bench: Bench, calls: int) -> Iterator[PoolService]:
    """Give a pool with so many calls in progress."""
    gate = bench.folder / "watching-gate"
    # Whoever is held is slow, but nobody wants to read of thousands.
    route = {**held_route(gate), "slow_after": 0}
    load = Load(script="held", at_once=calls, calls=calls, grace_s=_END_S)
    with (
        _watchable(bench, route, workers=_WORKERS, calls_per_worker=calls * 6 // 10) as pool,
        bench.load.begin(pool.address, load) as running,
    ):
        pool.await_that(
            lambda: sum(worker.active for worker in pool.serving()) == calls, "holds all calls", _TAKE_UP_S
        )
        yield pool
        gate.touch()
        running.result(_END_S)


@contextmanager
def _watchable(bench: Bench, *routes: Mapping[str, Any], **settings: Any) -> Iterator[PoolService]:
    """Run a pool that tells how it fares, over HTTP too."""
    with bench.pool(*routes, http={"listen": "127.0.0.1:0"}, **settings) as pool:
        pool.await_that(_control(pool).exists, "serves its control socket")
        yield pool


def _control(pool: PoolService) -> Path:
    return Path(pool.config["runtime_dir"]) / SOCKET_NAME


def _questions(pool: PoolService, calls: int, *limits: int) -> list[_Question]:
    """Return what can be asked of a pool.

    Args:
        pool: The pool.
        calls: How many it has.
        limits: For each there is a question for so many of the oldest.
    """
    host, port = pool.await_log(_SHOWING)[-1].groups()
    tell = partial(_tell, _control(pool))
    get = partial(_get, host, int(port))
    return [
        _Question(
            "`status` at the control socket",
            calls,
            partial(tell, verb=Verb.STATUS),
            lambda answer: int(decode(answer)["status"]["active"]),
        ),
        *(
            _Question(
                f"`calls` at the control socket, {limit:,} of them",
                min(calls, limit),
                partial(tell, verb=Verb.CALLS, limit=limit),
                lambda answer: len(decode(answer)["calls"]),
            )
            for limit in limits
        ),
        _Question(
            "/metrics",
            calls,
            partial(get, "/metrics"),
            lambda answer: int(sum(map(float, _ACTIVE.findall(answer)))),
        ),
        _Question(
            "/status.json",
            calls,
            partial(get, "/status.json"),
            lambda answer: int(json.loads(answer)["active"]),
        ),
    ]


def _tell(control: Path, **request: object) -> bytes:
    """Ask at a control socket, and return the line that comes back; to read it is the asker's own time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE_S)
        connection.connect(str(control))
        connection.sendall(encode(request))
        with connection.makefile("rb") as answers:
            return answers.readline()


def _get(host: str, port: int, path: str) -> bytes:
    """Ask over HTTP, and return what comes back."""
    connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


# --- how soon it is answered


def _answer_figures(pool: PoolService, calls: int) -> list[Figure]:
    """Ask all questions in turn, and judge the longest time that each of them took.

    Raises:
        RuntimeError: An answer does not tell of all calls.
    """
    questions = _questions(pool, calls, _OLDEST, calls)
    taken_s: dict[str, list[float]] = {question.name: [] for question in questions}
    for _ in range(_TIMES):
        for question in questions:
            sleep(_PAUSE_S)
            begun_s = monotonic()
            answer = question.ask()
            taken_s[question.name].append(monotonic() - begun_s)
            told = question.told(answer)
            if told != question.calls:
                raise RuntimeError(f"{question.name} tells of {told:,} calls instead of {question.calls:,}")
    limits_s = {
        question.name: _MOST_S if question.name != questions[2].name else _MOST_FOR_ALL_S
        for question in questions
    }
    return [
        judged(f"time to answer {name}", _times(found), f"less than {_ms(limit_s)}", max(found) < limit_s)
        for (name, found), limit_s in zip(taken_s.items(), limits_s.values(), strict=True)
    ]


def _times(taken_s: Sequence[float]) -> str:
    return f"at most {_ms(max(taken_s))} (median: {_ms(median(taken_s))})"


def _ms(time_s: float) -> str:
    return f"{1000 * time_s:.0f} ms"


def _command_figures(pool: PoolService, calls: int) -> list[Figure]:
    """Run the commands, and judge what they take beyond the start of the program, which all of them share."""
    folder = ("--runtime-dir", str(pool.config["runtime_dir"]))
    shown = {
        ("status",): 0,
        ("calls",): min(calls, _OLDEST),
        ("calls", "--limit", "0"): calls,
    }
    start_s: list[float] = []
    taken_s: dict[tuple[str, ...], list[float]] = {words: [] for words in shown}
    for _ in range(_TIMES):
        start_s.append(_run(_NOTHING, 0))
        for words, wanted in shown.items():
            taken_s[words].append(_run((*words, *folder), wanted))
    figures = []
    for words, found in taken_s.items():
        beyond_s = median(all_s - nothing_s for all_s, nothing_s in zip(found, start_s, strict=True))
        what = f"time of the command `{' '.join(words)}` beyond the start of the program"
        value = f"{_ms(beyond_s)} (of {_ms(median(found))}; the start: {_ms(median(start_s))})"
        limit_s = _MOST_FOR_ALL_S if shown[words] == calls else _MOST_S
        figures.append(judged(what, value, f"less than {_ms(limit_s)}", beyond_s < limit_s))
    return figures


def _run(arguments: Sequence[str], wanted: int) -> float:
    """Run a command, and return how long it took.

    Raises:
        RuntimeError: It failed, or did not show so many calls.
    """
    begun_s = monotonic()
    done = subprocess.run((*COMMAND, *arguments), capture_output=True, text=True, check=False)
    taken_s = monotonic() - begun_s
    if done.returncode != 0 or done.stdout.count("  held  ") < wanted:
        raise RuntimeError(f"{' '.join(arguments)} does not show {wanted:,} calls: {done.stderr}")
    return taken_s


# --- what it costs


def _costs(bench: Bench) -> tuple[list[Figure], dict[str, list[LoadResult]]]:
    """Measure one pool with and without watchers, in turn."""
    taken: dict[str, list[_Taken]] = {_WATCHED: [], _UNWATCHED: []}
    # No worker ends, and takes along what is known of its time.
    with _watchable(bench, HELLO, max_calls=0) as pool:
        status, calls, metrics, _ = _questions(pool, 0, _OLDEST)
        watched = {_WATCHED: (status, calls, metrics), _UNWATCHED: ()}

        def run(name: str) -> LoadResult:
            with _watchers(watched[name]):
                before = _taken(pool)
                result = bench.load.run(pool.address, Load(length_s=bench.scale.run_s))
                after = _taken(pool)
            taken[name].append(_Taken(after.observer_s - before.observer_s, after.pool_s - before.pool_s))
            return result

        bench.load.run(pool.address, Load(length_s=_WARM_UP_S))
        results = interleaved(list(watched), _ROUNDS * bench.scale.rounds, run)
    kept = ratios(results[_WATCHED], results[_UNWATCHED], rate)
    more = [
        100 * (one.observer_s - other.observer_s) / other.pool_s
        for one, other in zip(taken[_WATCHED], taken[_UNWATCHED], strict=True)
    ]
    return [
        judged(
            "rate when watched, as a ratio",
            spread(kept),
            f"more than {_LEAST_RATE_KEPT:g}",
            median(kept) > _LEAST_RATE_KEPT,
        ),
        judged(
            "processor time of the observer that watchers cost, in percent of the pool's without them",
            spread(more),
            f"less than {_MOST_COST_PERCENT:g}",
            median(more) < _MOST_COST_PERCENT,
        ),
    ], results


def _taken(pool: PoolService) -> _Taken:
    """Add up the processor time of a pool's processes. Source: Linux, sched-stats.rst: nanoseconds first."""
    observer_s = pool_s = 0.0
    for process in pool.processes():
        taken_s = int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]) / 1e9
        pool_s += taken_s
        if process.title.startswith("fastagi-pool: observer"):
            observer_s += taken_s
    return _Taken(observer_s, pool_s)


@contextmanager
def _watchers(questions: Sequence[_Question]) -> Iterator[None]:
    """Ask each question once a second, evenly spread over it, until the ``with`` ends."""
    over = Event()

    def watch() -> None:
        step_s = _WATCH_EVERY_S / len(questions)
        begun_s = monotonic()
        for step, question in enumerate(cycle(questions)):
            if over.wait(max(0.0, begun_s + (step + 0.5) * step_s - monotonic())):
                return
            question.ask()

    if not questions:
        yield
        return
    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(watch)
        try:
            yield
        finally:
            over.set()
        watching.result()
