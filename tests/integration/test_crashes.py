"""Crashes: any process may die at any moment, and the others go on."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import ExitStack, suppress

from service import PoolService, Process, pids

from fastagi_pool.pool import ExitCode
from fastagi_pool.scoreboard import Scoreboard, SlotFacts, Supervision
from fastagi_pool.testing import AgiStatus, environment

from .conftest import Pools, route
from .opencall import OpenCall, hold, hold_in
from .stream import CallStream

#: How soon after the death of a worker another must serve.
_REPLACED_S = 1.0
#: What the dialplan of a call hears whose worker has died.
_CRASH = "SET VARIABLE FAGI_STATUS CRASH"
_CRASHED = {_CRASH, 'SET VARIABLE FAGI_ERROR "the worker died"', "failure"}
_ENVIRONMENT = environment("agi://localhost/hello").encode()


def witness_of(pool: PoolService, worker: SlotFacts) -> int:
    """Return the process of a worker's witness."""
    return pool.await_process(f"witness of worker {worker.slot} ").pid


def supervision(pool: PoolService) -> Supervision:
    """Return what the master publishes."""
    return Scoreboard.attach(pool.folder / "run" / "scoreboard").supervision


def loader_of(pool: PoolService) -> Process:
    """Return the one loader; a worker has its title too, until it has a name of its own."""
    loaders = [process for process in pool.processes() if "loader (gen" in process.title]
    (loader,) = [process for process in loaders if process.parent == pool.pid]
    return loader


def replaced_s(pool: PoolService, victim: int) -> float:
    """Kill one of two workers, and return how many seconds it takes until two others serve."""
    os.kill(victim, signal.SIGKILL)
    killed_s = time.monotonic()
    pool.await_that(lambda: len(pids(pool.serving()) - {victim}) == 2, "has a new worker")
    return time.monotonic() - killed_s


def test_worker_is_killed(pools: Pools) -> None:
    """When a worker dies only its calls are lost; another serves within a second."""
    pool = pools.start()
    victim, survivor = pool.serving()
    with ExitStack() as stack:
        lost = hold_in(pool.address, victim.pid, stack)
        kept = hold_in(pool.address, survivor.pid, stack)
        took_s = replaced_s(pool, victim.pid)
        (line,) = pool.await_log(
            rf"worker={victim.slot} gen=1 pid={victim.pid} died in serving after 0 calls, "
            r"(\d+) calls lost: killed by SIGKILL; out of memory\?$"
        )
        assert int(line[1]) >= 1
        assert lost.end() is AgiStatus.FAILURE
        assert set(lost.said) >= _CRASHED
        assert kept.release() is AgiStatus.SUCCESS
        assert kept.said[1] == f"SET VARIABLE PID {survivor.pid}"
    # The machine may have stood still for a second; it does not do so each time.
    again_s = (replaced_s(pool, pool.await_serving(2)[0].pid) for _ in range(2))
    assert took_s < _REPLACED_S or any(each < _REPLACED_S for each in again_s)


def test_a_worker_is_killed_with_all_kinds_of_calls(pools: Pools) -> None:
    """Whoever had not begun in a dead worker is served by the next, even if it was the only one."""
    pool = pools.start({"workers": 1, "calls_per_worker": 1})
    (victim,) = pool.serving()
    with ExitStack() as stack:
        silent, half_heard = (stack.enter_context(OpenCall(pool.address)) for _ in range(2))
        half_heard.send(_ENVIRONMENT[:20])
        begun = hold_in(pool.address, victim.pid, stack)
        queued = stack.enter_context(OpenCall(pool.address, "hello"))
        pool.await_that(lambda: pool.serving()[0].queued == 1, "has a call in its queue")
        os.kill(victim.pid, signal.SIGKILL)
        assert begun.end() is AgiStatus.FAILURE
        assert set(begun.said) >= _CRASHED
        # Until then the dead one still stands on the scoreboard.
        pool.await_log(rf"pid={victim.pid} died in serving")
        (follower,) = pool.await_serving(1)
        # One after the other, as there is one place.
        for call, rest in ((queued, b""), (half_heard, _ENVIRONMENT[20:]), (silent, _ENVIRONMENT)):
            call.send(rest)
            assert call.end() is AgiStatus.SUCCESS
            assert call.said[0] == f"SET VARIABLE PID {follower.pid}"
    pool.await_log(
        r"witness=0 gen=1 pid=\d+ witness of worker=0: told 1 calls CRASH, gave 3 to another worker"
    )
    pool.await_that(lambda: supervision(pool).lost_calls == 1, "counts the call that was lost")
    outcomes = [line["outcome"] for line in pool.await_access(3)]
    assert outcomes == ["ok"] * 3


def test_a_request_that_ends_workers(pools: Pools) -> None:
    """A request that has killed two workers is refused, and all other requests of the route are served."""
    pool = pools.start()
    for death in (1, 2):
        result = pool.call("deadly?fatal=yes")
        assert result.status is AgiStatus.FAILURE
        assert result.variables["FAGI_STATUS"] == "CRASH"
        pool.await_log("died in serving .* killed by SIGSEGV", times=death)
        pool.await_serving(2)
    pool.await_log(r"2 workers died while they served a request like call=\S+ \(route=deadly")
    for _ in range(5):
        result = pool.call("deadly?fatal=yes")
        assert result.status is AgiStatus.FAILURE
        assert result.variables["FAGI_STATUS"] == "QUARANTINED"
        assert pool.call("deadly").status is AgiStatus.SUCCESS
    assert len(re.findall("died in serving", pool.logged())) == 2
    assert (supervision(pool).lost_calls, supervision(pool).quarantined) == (2, 1)


def test_a_witness_is_killed(pools: Pools) -> None:
    """A worker without its witness serves what it has, ends, and another takes its place."""
    pool = pools.start()
    bereft, other = pool.serving()
    with ExitStack() as stack:
        kept = hold_in(pool.address, bereft.pid, stack)
        os.kill(witness_of(pool, bereft), signal.SIGKILL)
        pool.await_log(rf"pid={bereft.pid} the witness is gone")
        pool.await_that(lambda: len(pids(pool.serving()) - {bereft.pid}) == 2, "replaces the worker")
        assert kept.release() is AgiStatus.SUCCESS
    pool.await_log(rf"gen=1 pid={bereft.pid} ended after \d+ calls")
    assert other.pid in pids(pool.serving())
    assert supervision(pool).lost_calls == 0


def test_the_master_ends_before_anybody_takes_over(pools: Pools) -> None:
    """Calls of a dead worker for which there is no other worker are told so when the server ends."""
    pool = pools.start({"workers": 1})
    (victim,) = pool.serving()
    with OpenCall(pool.address) as silent:
        # It was accepted before this one.
        assert pool.call("hello").status is AgiStatus.SUCCESS
        os.kill(loader_of(pool).pid, signal.SIGSTOP)
        os.kill(victim.pid, signal.SIGKILL)
        pool.await_log(r"told 0 calls CRASH, gave 1 to another worker")
        pool.signal(signal.SIGINT)
        assert silent.end() is AgiStatus.FAILURE
        assert _CRASH in silent.said
        pool.wait()
    pool.await_log("1 calls that nobody had begun were told so, 0 could not be told")


def test_workers_are_killed_under_load(pools: Pools) -> None:
    """However often workers are killed, the pool serves on, keeps its number, and blames no call."""
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
        # A witness whose worker is dead ends by itself.
        with suppress(ProcessLookupError):
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
    # Not after it is mended: the master tries again by itself.
    assert [each.generation for each in pool.serving()] == [1, 1]
    (pool.folder / "code" / "mended.py").write_text(code)
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
    # Later a witness without a name yet may have lost its worker, and look like the loader.
    loader = loader_of(pool).pid
    with CallStream(pool.url("hello")):
        pool.await_log(r"ended after \d+ calls$", times=3)
        os.kill(loader, signal.SIGKILL)
        pool.await_serving(2, generation=2)
        # One that holds a call does not end by itself before it is killed.
        held, victim = hold(pool.address)
        with held:
            os.kill(victim, signal.SIGKILL)
            pool.await_log(rf"pid={victim} died in")
    pool.await_that(
        lambda: [each for each in pool.processes() if each.state == "Z"] == [], "buries all its children"
    )
