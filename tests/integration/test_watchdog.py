"""Watchdog: a worker whose hub is stuck is found, shown to the operator with its stacks, and replaced."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

import pytest
from service import pids

from fastagi_pool.testing import AgiStatus

from .conftest import Pools
from .opencall import hold_in


@pytest.mark.parametrize("script", ["spinning", "blocking"])
def test_stuck_handler(script: str, pools: Pools) -> None:
    """A handler that lets nobody else run is named in the log, and costs the calls of its worker only."""
    pool = pools.start({"watchdog": "1s"})
    stuck, sound = pool.serving()
    with ExitStack() as stack:
        kept = hold_in(pool.address, sound.pid, stack)
        guilty = hold_in(pool.address, stuck.pid, stack, script)
        guilty.reply()
        pool.await_log(
            rf"ERROR master pid={pool.pid} worker={stuck.slot} gen=1 pid={stuck.pid} is stuck: "
            r"no sign of life in time; stacks follow, \d+ calls in it$"
        )
        pool.await_log(rf'^  File ".*/pool_handlers\.py", line \d+ in {script}$')
        pool.await_log(
            rf"pid={stuck.pid} died in killed after \d+ calls, [1-9]\d* calls lost: killed by SIGKILL"
        )
        pool.await_that(lambda: len(pids(pool.serving()) - {stuck.pid}) == 2, "has a new worker")
        assert pool.call("hello").status is AgiStatus.SUCCESS
        assert kept.release() is AgiStatus.SUCCESS
        assert kept.said[1] == f"SET VARIABLE PID {sound.pid}"


def test_stopped_worker(pools: Pools) -> None:
    """A worker that cannot even write its stacks, because it was stopped, is killed and replaced too."""
    pool = pools.start({"watchdog": "1s"})
    victim = pool.serving()[0]
    os.kill(victim.pid, signal.SIGSTOP)
    pool.await_log(rf"pid={victim.pid} died in killed")
    pool.await_serving(2)


@pytest.mark.slow
def test_busy_worker_is_left_alone(pools: Pools) -> None:
    """A worker that waits in a way that lets others run is not stuck, however long it waits."""
    # Longer than the machine may stand still: a worker that does is called stuck with good reason.
    pool = pools.start({"watchdog": "3s", "workers": 1, "limits": {"script_timeout": "6500ms"}})
    (worker,) = pool.serving()
    assert pool.call("endless").status is AgiStatus.FAILURE
    assert pids(pool.serving()) == {worker.pid}
    assert "stuck" not in pool.logged()


def test_stuck_worker_cannot_hold_up_the_end(pools: Pools) -> None:
    """A pool with a stuck worker ends all the same."""
    pool = pools.start({"watchdog": "1s", "workers": 1})
    (worker,) = pool.serving()
    with ExitStack() as stack:
        hold_in(pool.address, worker.pid, stack, "spinning").reply()
        pool.terminate()
        assert pool.wait() == 0
    assert f"pid={worker.pid} died in killed" in pool.logged()
