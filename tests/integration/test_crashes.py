"""Crashes: any process may die at any moment, and the others go on."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import ExitStack

from service import PoolService, Process, pids

from fastagi_pool.pool import ExitCode
from fastagi_pool.testing import AgiStatus

from .conftest import Pools, route
from .opencall import hold, hold_in
from .stream import CallStream

#: How soon after the death of a worker another must serve.
_REPLACED_S = 1.0


def loader_of(pool: PoolService) -> Process:
    """Return the one loader; a worker has its title too, until it has a name of its own."""
    loaders = [process for process in pool.processes() if "loader (gen" in process.title]
    (loader,) = [process for process in loaders if process.parent == pool.pid]
    return loader


def test_worker_is_killed(pools: Pools) -> None:
    """When a worker dies only its calls are lost; another serves within a second."""
    pool = pools.start()
    victim, survivor = pool.serving()
    with ExitStack() as stack:
        lost = hold_in(pool.address, victim.pid, stack)
        kept = hold_in(pool.address, survivor.pid, stack)
        os.kill(victim.pid, signal.SIGKILL)
        killed_s = time.monotonic()
        (line,) = pool.await_log(
            rf"worker={victim.slot} gen=1 pid={victim.pid} died in serving after 0 calls, "
            r"(\d+) calls lost: killed by SIGKILL; out of memory\?$"
        )
        pool.await_that(lambda: len(pids(pool.serving()) - {victim.pid}) == 2, "has a new worker")
        assert time.monotonic() - killed_s < _REPLACED_S
        assert int(line[1]) >= 1
        assert lost.end() is AgiStatus.SUCCESS  # So Asterisk sees it: nobody was left to say "failure".
        assert kept.release() is AgiStatus.SUCCESS
        assert kept.said[1] == f"SET VARIABLE PID {survivor.pid}"


def test_workers_are_killed_under_load(pools: Pools) -> None:
    """However often workers die, the pool serves on, and keeps its number of workers."""
    pool = pools.start()
    with CallStream(pool.url("hello")) as stream:
        for _ in range(5):
            victim = pool.await_serving(2)[0].pid
            stream.await_more(20)
            os.kill(victim, signal.SIGKILL)
            pool.await_log(rf"pid={victim} died in serving")
    pool.await_serving(2)
    # Four callers, so at most four calls were in the worker that died.
    assert len(stream.lost) <= 5 * 4
    assert pool.call("hello").status is AgiStatus.SUCCESS


def test_worker_is_killed_by_a_nameless_signal(pools: Pools) -> None:
    """A worker that ends in an unheard-of way is replaced like any other."""
    pool = pools.start()
    victim = pool.serving()[0].pid
    os.kill(victim, signal.SIGRTMIN + 1)
    pool.await_log(rf"pid={victim} died in serving after 0 calls: killed by .*35")
    pool.await_serving(2)


def test_worker_dies_at_start(pools: Pools) -> None:
    """Workers that die at their start are tried again ever more slowly, then the pool gives up: 3."""
    code = "import os\ndef setup(context):\n    os._exit(9)\ndef hello(call, context):\n    pass\n"
    pool = pools.make(
        {"boot_retries": 4, "workers": 1}, routes=[route("hello", "dying:hello")], code={"dying.py": code}
    )
    begun_s = time.monotonic()
    pool.launch()
    assert pool.wait() == ExitCode.WORKERS, pool.logged()
    # 0, 0.2 and 0.4 s between four starts.
    assert time.monotonic() - begun_s >= 0.6
    assert pool.logged().count("died in starting after 0 calls: exit code 9") == 4
    assert "4 failed starts in a row and no worker serves: giving up" in pool.logged()


def test_worker_cannot_be_set_up(pools: Pools) -> None:
    """A setup that raises is in the log with its traceback, and the pool gives up with 3."""
    code = "def setup(context):\n    raise ValueError('no')\ndef hello(call, context):\n    pass\n"
    pool = pools.make(
        {"boot_retries": 1, "workers": 1}, routes=[route("hello", "failing:hello")], code={"failing.py": code}
    )
    pool.launch()
    assert pool.wait() == ExitCode.WORKERS, pool.logged()
    assert "cannot start" in pool.logged()
    assert "ValueError: no" in pool.logged()


def test_loader_is_killed(pools: Pools) -> None:
    """When the loader dies calls go on; a new one comes, and its workers replace the orphans."""
    pool = pools.start()
    before = pids(pool.serving())
    held, old = hold(pool.address)
    with held, CallStream(pool.url("hello")) as stream:
        os.kill(loader_of(pool).pid, signal.SIGKILL)
        pool.await_log(r"ERROR master pid=\d+ the loader of gen=1 died$")
        pool.await_log("gen=2 is loaded$")
        pool.await_serving(2, generation=2)
        stream.await_more(10)
        assert held.release() is AgiStatus.SUCCESS
        assert held.said[1] == f"SET VARIABLE PID {old}"
    assert stream.lost == []
    for pid in before:
        pool.await_log(rf"gen=1 pid={pid} ended after \d+ calls$")


def test_recycling_after_the_loader_was_killed(pools: Pools) -> None:
    """Workers are recycled as ever when the loader is a new one."""
    pool = pools.start({"max_calls": 20, "max_calls_jitter": 0})
    os.kill(loader_of(pool).pid, signal.SIGKILL)
    pool.await_serving(2, generation=2)
    with CallStream(pool.url("hello")) as stream:
        pool.await_log(r"gen=2 pid=\d+ is being replaced: \d+ calls$", times=3)
    assert stream.lost == []


def test_worker_and_loader_are_killed(pools: Pools) -> None:
    """A worker that dies while there is no loader is noticed and replaced."""
    pool = pools.start()
    loader, victim = loader_of(pool).pid, pool.serving()[0].pid
    os.kill(loader, signal.SIGSTOP)
    os.kill(victim, signal.SIGKILL)
    os.kill(loader, signal.SIGKILL)
    pool.await_log(rf"pid={victim} died in serving")
    pool.await_serving(2, generation=2)
    assert pool.call("hello").status is AgiStatus.SUCCESS


def test_everything_but_the_master_is_killed(pools: Pools) -> None:
    """The master alone brings the whole pool back."""
    pool = pools.start()
    for pid in pids(pool.processes()) - {pool.pid}:
        os.kill(pid, signal.SIGKILL)
    pool.await_serving(2, generation=2)
    assert pool.call("hello").status is AgiStatus.SUCCESS


def test_loader_cannot_load_again(pools: Pools) -> None:
    """While the code is broken no new loader can come; the workers serve on until it is mended."""
    code = "from pool_handlers import hello\n"
    pool = pools.start(routes=[route("hello", "mended:hello")], code={"mended.py": code})
    (pool.folder / "code" / "mended.py").write_text("1 / 0\n")
    os.kill(loader_of(pool).pid, signal.SIGKILL)
    pool.await_log("reload refused, nothing changes: .*ZeroDivisionError", times=2)
    assert pool.call("hello").status is AgiStatus.SUCCESS
    assert len(pool.serving()) == 2
    (pool.folder / "code" / "mended.py").write_text(code)
    assert {each.generation for each in pool.await_serving(2)} == {1}
    pool.reload()
    pool.await_that(lambda: 1 not in {each.generation for each in pool.await_serving(2)}, "loads again")
    assert pool.call("hello").status is AgiStatus.SUCCESS


def test_master_is_killed(pools: Pools) -> None:
    """When the master dies its workers finish their calls, take no new ones, and nothing is left."""
    pool = pools.start()
    held, _ = hold(pool.address)
    with held:
        pool.signal(signal.SIGKILL)
        assert pool.wait() == -signal.SIGKILL
        while pool.call("hello").connected:
            pass
        assert held.release() is AgiStatus.SUCCESS
        assert held.said[1].startswith("SET VARIABLE PID ")
    pool.await_that_all_ended()
    assert re.search(r"the master is gone: finishing [1-9]\d* calls", pool.logged())


def test_master_is_killed_under_load(pools: Pools) -> None:
    """When the master dies no caller who gets no service is told that all went well."""
    pool = pools.start()
    with CallStream(pool.url("hello"), callers=16) as stream:
        stream.await_more(100)
        pool.signal(signal.SIGKILL)
        pool.wait()
        pool.await_that_all_ended()
    assert stream.silent == []


def test_master_is_killed_and_a_call_goes_on(pools: Pools) -> None:
    """Workers without a master hold to graceful_timeout, as they would with one."""
    pool = pools.start({"graceful_timeout": "500ms"})
    held, _ = hold(pool.address)
    with held:
        pool.signal(signal.SIGKILL)
        pool.wait()
        assert held.end() is AgiStatus.FAILURE
    pool.await_that_all_ended()


def test_nothing_is_a_zombie(pools: Pools) -> None:
    """Workers that end, whoever forked them, are buried: recycled ones, killed ones, orphans."""
    pool = pools.start({"max_calls": 5, "max_calls_jitter": 0})
    with CallStream(pool.url("hello")):
        pool.await_log(r"ended after \d+ calls$", times=3)
        os.kill(loader_of(pool).pid, signal.SIGKILL)
        pool.await_serving(2, generation=2)
        os.kill(pool.serving()[0].pid, signal.SIGKILL)
        pool.await_log("died in")
    pool.await_that(
        lambda: [each for each in pool.processes() if each.state == "Z"] == [], "buries all its children"
    )
