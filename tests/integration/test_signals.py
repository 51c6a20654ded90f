"""Signals to the master and to single workers: what calls in progress and new ones see of them."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

import pytest
from service import pids

from fastagi_pool.pool import ExitCode
from fastagi_pool.testing import AgiStatus

from .conftest import Pools
from .opencall import OpenCall, hold, hold_in, worker_of
from .stream import CallStream

# --- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT], ids=["TERM", "QUIT"])
def test_graceful_stop(number: int, pools: Pools) -> None:
    """TERM and QUIT let a call in progress finish; a new one is refused, and nothing is left."""
    pool = pools.start()
    held, _ = hold(pool.address)
    with held:
        pool.signal(number)
        pool.await_log(r"stopping \(graceful\)")
        pool.await_refusal()
        late = pool.call("hello")
        assert (late.status, late.connected) == (AgiStatus.FAILURE, False)
        assert held.release() is AgiStatus.SUCCESS
        assert held.said[1].startswith("SET VARIABLE PID ")
    assert pool.wait() == ExitCode.OK
    pool.await_that_all_ended()
    assert [line["outcome"] for line in pool.access_lines()] == ["ok"]


def test_graceful_stop_has_an_end(pools: Pools) -> None:
    """A call that outlasts graceful_timeout is a failure to the dialplan, and the log counts it."""
    pool = pools.start({"graceful_timeout": "300ms"})
    held, pid = hold(pool.address)
    with held:
        pool.terminate()
        assert held.end() is AgiStatus.FAILURE
    assert pool.wait() == ExitCode.OK
    assert f"pid={pid} is out of time: its 1 calls are ended" in pool.logged()
    assert [line["outcome"] for line in pool.access_lines()] == ["stopped"]


def test_quick_stop(pools: Pools) -> None:
    """INT ends calls at once, as failures."""
    pool = pools.start()
    held, _ = hold(pool.address)
    with held:
        pool.signal(signal.SIGINT)
        assert held.end() is AgiStatus.FAILURE
    assert pool.wait() == ExitCode.OK
    assert [line["outcome"] for line in pool.access_lines()] == ["stopped"]


def test_quick_stop_overrides_a_graceful_one(pools: Pools) -> None:
    """An operator who has lost patience sends INT after TERM, and need not wait any longer."""
    pool = pools.start()
    held, _ = hold(pool.address)
    with held:
        pool.terminate()
        pool.await_log(r"stopping \(graceful\)")
        pool.signal(signal.SIGINT)
        assert held.end() is AgiStatus.FAILURE
    assert pool.wait() == ExitCode.OK


@pytest.mark.slow
def test_handler_that_does_not_end_is_killed(pools: Pools) -> None:
    """A handler that ignores the end of its call cannot keep the pool from ending."""
    pool = pools.start({"workers": 1})
    with OpenCall(pool.address, "stubborn") as call:
        pid = worker_of(call.command())
        pool.signal(signal.SIGINT)
        assert pool.wait() == ExitCode.OK
    assert f"pid={pid} died in killed" in pool.logged()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_no_stop_is_a_silent_success(number: int, pools: Pools) -> None:
    """Under load a stop fails calls or refuses them, but never tells the dialplan what is not so."""
    pool = pools.start()
    with CallStream(pool.url("hello"), callers=16) as stream:
        stream.await_more(50)
        pool.signal(number)
        assert pool.wait() == ExitCode.OK
    assert stream.silent == []
    served = sum(each.status is AgiStatus.SUCCESS for each in stream.results)
    assert [line["outcome"] for line in pool.access_lines()].count("ok") == served


def test_stop_while_starting(pools: Pools) -> None:
    """TERM before anything is loaded ends the pool as well."""
    pool = pools.make()
    pool.launch()
    pool.await_that(lambda: any("loader" in process.title for process in pool.processes()), "has a loader")
    pool.terminate()
    assert pool.wait() == ExitCode.OK


# --- logs


def test_reopen_logs(pools: Pools) -> None:
    """After USR1 every process, also one that is born later, writes into the new files only."""
    pool = pools.start({"workers": 1})
    pool.call("writing")
    pool.await_access(1)
    rotated = [path.rename(f"{path}.1") for path in (pool.log_path, pool.access_path)]
    before = [path.read_text() for path in rotated]
    pool.signal(signal.SIGUSR1)
    pool.await_that(lambda: pool.log_path.exists() and pool.access_path.exists(), "reopens its logs")
    (old,) = pool.serving()
    with CallStream(pool.url("writing")) as stream:
        pool.await_log(rf"WARNING worker=0 gen=1 pid={old.pid} call=\S+ written by {old.pid}$")
        pool.signal(signal.SIGTTIN)
        pool.await_log(r"INFO master pid=\d+ workers=2 wanted$")
        (new,) = pids(pool.await_serving(2)) - {old.pid}
        pool.await_log(rf"WARNING worker=1 gen=1 pid={new} call=\S+ written by {new}$")
        stream.await_more(1)
    # The worker hears of it last: the new files may be there when it still writes into the old ones.
    calls = 1 + len(stream.results)
    pool.await_that(
        lambda: len(rotated[1].read_text().splitlines()) + len(pool.access_lines()) == calls,
        f"has logged {calls} calls",
    )
    assert {int(line["pid"]) for line in pool.access_lines()} == {old.pid, new}
    settled = [path.read_text() for path in rotated]
    assert pool.stop() == ExitCode.OK
    assert [path.read_text() for path in rotated] == settled
    assert [text.startswith(start) for text, start in zip(settled, before, strict=True)] == [True, True]


# --- the number of workers


def test_more_and_fewer_workers(pools: Pools) -> None:
    """TTIN adds a worker and TTOU takes one away, though never the last."""
    pool = pools.start({"workers": 1})
    pool.signal(signal.SIGTTIN)
    pool.await_serving(2)
    pool.signal(signal.SIGTTOU)
    pool.await_log("workers=1 wanted")
    pool.await_serving(1)
    pool.signal(signal.SIGTTOU)
    pool.await_log("workers=1 wanted", times=2)
    assert pool.call("hello").status is AgiStatus.SUCCESS


def test_fewer_workers_cost_no_call(pools: Pools) -> None:
    """The worker that TTOU takes away finishes its calls first."""
    pool = pools.start()
    with ExitStack() as stack:
        calls = [hold_in(pool.address, worker.pid, stack) for worker in pool.serving()]
        pool.signal(signal.SIGTTOU)
        (left,) = pool.await_serving(1)
        for call in calls:
            assert call.release() is AgiStatus.SUCCESS
    pool.await_that(
        lambda: len(pool.processes()) == 5, "has one worker, its witness, a loader, an observer and a master"
    )
    assert pids(pool.serving()) == {left.pid}


# --- signals to one worker


def test_one_worker_is_asked_to_end(pools: Pools) -> None:
    """TERM to a worker lets its calls finish, and another takes its place meanwhile."""
    pool = pools.start()
    held, pid = hold(pool.address)
    with held:
        os.kill(pid, signal.SIGTERM)
        pool.await_that(lambda: pid not in pids(pool.serving()), "lets the worker go")
        assert len(pool.await_serving(2)) == 2
        assert held.release() is AgiStatus.SUCCESS
    pool.await_log(rf"worker=\d gen=1 pid={pid} ended after 1 calls$")
    assert "ERROR" not in pool.logged()


def test_one_worker_is_told_to_end(pools: Pools) -> None:
    """INT to a worker fails its calls, and another takes its place."""
    pool = pools.start()
    held, pid = hold(pool.address)
    with held:
        os.kill(pid, signal.SIGINT)
        assert held.end() is AgiStatus.FAILURE
    pool.await_log(rf"worker=\d gen=1 pid={pid} ended after 1 calls$")
    pool.await_serving(2)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR2", "SIGWINCH", "SIGTTIN", "SIGTTOU"])
def test_worker_ignores_what_is_the_masters(name: str, pools: Pools) -> None:
    """A signal that an operator sends to the wrong process, or to all, harms no worker or loader."""
    pool = pools.start()
    pool.await_observer()
    held, _ = hold(pool.address)
    before = pids(pool.processes())
    with held:
        for other in before - {pool.pid}:
            os.kill(other, getattr(signal, name))
        assert held.release() is AgiStatus.SUCCESS
    assert pool.call("hello").status is AgiStatus.SUCCESS
    assert pids(pool.processes()) == before


def test_master_ignores_what_it_does_not_know(pools: Pools) -> None:
    """A signal without a meaning changes nothing."""
    pool = pools.start()
    pool.await_observer()
    before = pids(pool.processes())
    pool.signal(signal.SIGWINCH)
    pool.signal(signal.SIGTTIN)
    pool.await_serving(3)
    assert before < pids(pool.processes())
