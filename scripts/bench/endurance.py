"""Endurance: very many calls one after another, very many at once, and all of them shared evenly."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from bench import HELLO, Bench
from figures import Section, judged, not_measured
from load import Load
from machine import allow_open_files, pss_bytes
from service import PoolService

_MEBIBYTE: Final = 2**20
#: Between two samples of memory, so that the workers are of another age in each.
_CALLS_BETWEEN_SAMPLES: Final = 300
_MOST_GROWTH: Final = 1.1
_MOST_HELD_BYTES: Final = 500_000_000
_MOST_IMBALANCE: Final = 1.3
#: How long the pool may take to come to rest, or to take up all the calls that are held.
_REST_S: Final = 20.0
_TAKE_UP_S: Final = 180.0
#: Files that the load source and the pool's processes need besides one for each call.
_SPARE_FILES: Final = 500


@dataclass(frozen=True, slots=True)
class _Soaked:
    """What was found before and after very many calls."""

    lost: int
    access_lines: int
    good_access_lines: int
    before_bytes: float
    after_bytes: float
    zombies: int
    processes: int
    expected_processes: int


def soak(bench: Bench) -> Section:
    """Play very many calls to workers that are replaced after 1,000 each, and see what is left behind."""
    calls, first = bench.scale.soak_calls, bench.scale.soak_first_calls
    found = _soak(bench)
    growth = found.after_bytes / found.before_bytes
    before_mib, after_mib = found.before_bytes / _MEBIBYTE, found.after_bytes / _MEBIBYTE
    figures = (
        judged("calls bad, refused or unfinished", f"{found.lost:,}", "0", found.lost == 0),
        judged(
            "access lines, and those of good calls",
            f"{found.access_lines:,}, {found.good_access_lines:,}",
            f"{calls:,}",
            found.access_lines == found.good_access_lines == calls,
        ),
        judged(
            f"memory afterwards, as a ratio to that after {first:,} calls",
            f"{growth:.3f} ({before_mib:.0f} to {after_mib:.0f} MiB)",
            f"at most {_MOST_GROWTH}",
            growth <= _MOST_GROWTH,
        ),
        judged("zombies afterwards", str(found.zombies), "0", found.zombies == 0),
        judged(
            "processes afterwards",
            str(found.processes),
            str(found.expected_processes),
            found.processes == found.expected_processes,
        ),
    )
    title = f"{calls:,} calls, 50 at a time, 2 workers with max_calls: 1000, access log on."
    return Section("soak", title, figures)


def _soak(bench: Bench) -> _Soaked:
    scale = bench.scale
    sampling_calls = scale.memory_samples * _CALLS_BETWEEN_SAMPLES
    with bench.pool(HELLO, max_calls=1000) as pool:
        first = bench.load.run(pool.address, Load(calls=scale.soak_first_calls - sampling_calls))
        before_bytes, lost_before = _sample_memory(bench, pool)
        rest = scale.soak_calls - scale.soak_first_calls - sampling_calls
        last = bench.load.run(pool.address, Load(calls=rest))
        after_bytes, lost_after = _sample_memory(bench, pool)
        zombies = Counter(process.state == "Z" for process in pool.processes())
        lines, good_lines = await_access_lines(pool, scale.soak_calls)
    return _Soaked(
        lost=first.lost + lost_before + last.lost + lost_after,
        access_lines=lines,
        good_access_lines=good_lines,
        before_bytes=before_bytes,
        after_bytes=after_bytes,
        zombies=zombies[True],
        processes=zombies[False],
        expected_processes=_expected_processes(pool),
    )


def _sample_memory(bench: Bench, pool: PoolService) -> tuple[float, int]:
    """Return the median of the pool's memory when its workers are of various ages, and the calls lost."""
    samples, lost = [], 0
    for _ in range(bench.scale.memory_samples):
        lost += bench.load.run(pool.address, Load(calls=_CALLS_BETWEEN_SAMPLES)).lost
        _await_rest(pool)
        samples.append(pss_bytes(pool.processes()))
    return median(samples), lost


def held(bench: Bench) -> Section:
    """Hold very many calls at once in two workers, measure the memory, and let them all finish."""
    calls = bench.scale.held_calls
    title = f"{calls:,} calls held open at once in 2 workers."
    if not allow_open_files(calls + _SPARE_FILES):
        reason = f"no {calls + _SPARE_FILES} open files; see ulimit -n"
        return Section("held", title, (not_measured("calls held", reason, f"{calls:,}"),))
    gate = bench.folder / "held-gate"
    load = Load(script="held", at_once=calls, calls=calls, grace_s=600.0)
    with (
        bench.pool(held_route(gate), calls_per_worker=calls * 6 // 10) as pool,
        bench.load.begin(pool.address, load) as running,
    ):
        pool.await_that(
            lambda: sum(worker.active for worker in pool.serving()) == calls, "holds all calls", _TAKE_UP_S
        )
        memory_bytes = pss_bytes(pool.processes())
        gate.touch()
        result = running.result(load.grace_s)
    figures = (
        judged(
            "memory of the whole pool",
            f"{memory_bytes / 1e6:.0f} MB",
            f"less than {_MOST_HELD_BYTES / 1e6:.0f} MB",
            memory_bytes < _MOST_HELD_BYTES,
        ),
        judged("calls that finish well", f"{result.good:,}", f"{calls:,}", result.good == calls),
    )
    return Section("held", title, figures)


def balance(bench: Bench) -> Section:
    """See how evenly four workers share short calls."""
    calls = bench.scale.balance_calls
    with bench.pool(HELLO, workers=4, max_calls=0) as pool:
        result = bench.load.run(pool.address, Load(calls=calls))
        pool.await_that(
            lambda: sum(worker.served for worker in pool.serving()) >= result.calls, "has counted all calls"
        )
        served = sorted(worker.served for worker in pool.serving())
    ratio = served[-1] / max(served[0], 1)
    shares = " ".join(str(share) for share in served)
    figure = judged(
        "busiest worker, as a ratio to the idlest",
        f"{ratio:.3f} (calls: {shares})",
        f"at most {_MOST_IMBALANCE}",
        ratio <= _MOST_IMBALANCE,
    )
    return Section("balance", f"{calls:,} short calls over 4 workers, 50 at a time.", (figure,))


def held_route(gate: Path) -> dict[str, object]:
    """Write the route of calls that wait until a file is there."""
    return {
        "script": "held",
        "handler": "bench_handlers:held",
        "options": {"gate": str(gate)},
        "script_timeout": 0,
    }


def await_access_lines(pool: PoolService, wanted: int) -> tuple[int, int]:
    """Wait for the last access line; return how many there are, and how many are of calls that went well.

    Raises:
        PoolFailed: There are fewer than wanted after 15 s.
    """

    def written() -> bool:
        return pool.access_path.read_bytes().count(b"\n") >= wanted

    pool.await_that(written, f"has {wanted} access lines")
    content = pool.access_path.read_bytes()
    return content.count(b"\n"), content.count(b" outcome=ok ")


def _expected_processes(pool: PoolService) -> int:
    """Count the master, its loader, its observer, the workers and their witnesses."""
    workers: int = pool.config["workers"]
    return 3 + 2 * workers


def _await_rest(pool: PoolService) -> None:
    """Wait until no worker is coming or going and no call is in progress."""

    def rests() -> bool:
        serving = pool.serving()
        return len(serving) == pool.config["workers"] and (
            len(pool.processes()) == _expected_processes(pool)
            and not any(worker.active for worker in serving)
        )

    pool.await_that(rests, "is at rest", _REST_S)
