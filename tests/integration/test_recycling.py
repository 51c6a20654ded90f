"""Recycling: workers are replaced when they are due, and no caller notices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from service import PoolService, pids

from fastagi_pool.testing import AgiStatus

from .conftest import Pools
from .opencall import hold
from .stream import CallStream


def assert_ready_before_drained(pool: PoolService, reason: str) -> None:
    """Check that each worker that was replaced for this reason ended after its replacement served."""
    lines = pool.logged().splitlines()
    replaced = [
        (place, line.split(" is being replaced")[0].split(" ", 4)[4])
        for place, line in enumerate(lines)
        if f"is being replaced: {reason}" in line
    ]
    assert replaced
    for place, worker in replaced:
        rest = lines[place:]
        served = next((number for number, line in enumerate(rest) if line.endswith(" serves")), None)
        ended = next((number for number, line in enumerate(rest) if f"{worker} ended" in line), None)
        if ended is not None:
            assert served is not None
            assert served < ended


@contextmanager
def watched(pool: PoolService) -> Iterator[list[int]]:
    """Count again and again how many workers serve; the list is what was seen."""
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            found = pids(pool.serving())
            # The slots are read one by one: where another serves by the end, the look shows what never was.
            if found == pids(pool.serving()):
                seen.append(len(found))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def test_after_max_calls(pools: Pools) -> None:
    """After max_calls calls a worker goes, its replacement serves first, and no call is lost."""
    pool = pools.start({"max_calls": 20, "max_calls_jitter": 0})
    with watched(pool) as seen, CallStream(pool.url("hello")) as stream:
        pool.await_log(r"is being replaced: \d+ calls$", times=6)
        stream.await_more(1)
    assert stream.lost == []
    assert min(seen) >= 2
    assert max(seen) <= 3
    assert_ready_before_drained(pool, "")
    assert "ERROR" not in pool.logged()
    assert len({result.variables["PID"] for result in stream.results}) >= 6


def test_after_max_lifetime(pools: Pools) -> None:
    """After max_lifetime a worker goes even if nobody calls."""
    pool = pools.start({"max_lifetime": "1s", "workers": 1})
    pool.await_log(r"gen=1 pid=\d+ is being replaced: 1 s old$", times=2)
    pool.await_log(r"gen=1 pid=\d+ ended after 0 calls$", times=2)
    assert_ready_before_drained(pool, "1 s old")
    assert pool.call("hello").status is AgiStatus.SUCCESS


def test_above_max_memory(pools: Pools) -> None:
    """A worker that has grown above max_memory goes; one that has not stays."""
    pool = pools.start({"max_memory": "120MB", "workers": 1})
    (old,) = pool.serving()
    assert pool.call("growing").status is AgiStatus.SUCCESS
    pool.await_log(rf"worker=0 gen=1 pid={old.pid} is being replaced: \d+ MB of memory$")
    pool.await_log(rf"worker=0 gen=1 pid={old.pid} ended after 1 calls$")
    assert_ready_before_drained(pool, "")
    assert len(pool.await_log("is being replaced")) == 1
    assert pool.call("hello").status is AgiStatus.SUCCESS


def test_long_call_outlives_its_worker(pools: Pools) -> None:
    """A worker that is replaced serves its long calls to their end, and then ends itself."""
    pool = pools.start({"max_calls": 5, "max_calls_jitter": 0, "workers": 1})
    held, old = hold(pool.address)
    with held:
        for _ in range(5):
            assert pool.call("hello").status is AgiStatus.SUCCESS
        pool.await_that(lambda: old not in (pids(pool.serving()) or {old}), "replaces it")
        assert pool.call("hello").variables["PID"] != str(old)
        assert held.release() is AgiStatus.SUCCESS
        assert held.said[1] == f"SET VARIABLE PID {old}"
    pool.await_log(rf"worker=0 gen=1 pid={old} ended after 6 calls$")


def test_drain_timeout(pools: Pools) -> None:
    """A call that outlasts drain_timeout in a worker that was replaced is failed."""
    settings = {"max_calls": 1, "max_calls_jitter": 0, "workers": 1, "drain_timeout": "300ms"}
    pool = pools.start(settings)
    held, old = hold(pool.address)
    with held:
        assert pool.call("hello").status is AgiStatus.SUCCESS
        assert held.end() is AgiStatus.FAILURE
    pool.await_log(rf"worker=0 gen=1 pid={old} call=\S+ route=held ended: CallStopped: ")
    assert pool.call("hello").status is AgiStatus.SUCCESS
