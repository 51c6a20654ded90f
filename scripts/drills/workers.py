"""Drills about workers: one that is blocked, one that is killed, one that leaks, and too few of them."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Final

from drills.callers import CRASHED, SERVED, Callers
from drills.pool import DrillPool, route
from drills.setting import Setting
from drills.telling import check

_WORKERS: Final = 2
_FIGURES: Final = r"^calls|^restarts|^worker|ready|STUCK"


def _held(folder: Path) -> tuple[dict[str, object], Path]:
    """Return a route whose calls last until a file is there, and that file."""
    gate = folder / "gate"
    return route("held", gate=str(gate)), gate


def blocked_hub(setting: Setting) -> None:
    """A handler calls a library that waits without letting gevent know: its worker's calls all stand still.

    After `slow.blocked` the slow log has the call, and the file and line where it hangs. After `watchdog` the
    master kills the worker and names the calls that died with it; another one serves already.
    """
    tell = setting.tell
    routes = [route("quick"), route("blocks")]
    slow = {"file": str(setting.folder / "slow.log"), "blocked": "500ms"}
    with DrillPool(setting.folder, routes, watchdog="4s", slow=slow) as pool, Callers(pool.url) as callers:
        pool.run()
        callers.keep_calling("quick", setting.telephones)
        tell.does(
            f"{setting.telephones} telephones call on and on; then one call goes to a handler that blocks"
        )
        callers.place("blocks")
        blocked = pool.await_lines(
            r" blocked call=\S+ route=blocks (.*\n)*?.*handlers\.py\", line \d+, in blocks"
        )
        tell.reads(blocked)
        tell.sees(pool.command("calls", "--route", "blocks"), pool.get("/healthz"))
        # The worker is gone a second later; whoever comes too late sees it among the restarts.
        pool.await_that(
            lambda: pool.metric("fastagi_workers_stuck") or "died in killed" in pool.logged(),
            "a worker is stuck",
        )
        tell.sees(pool.get("/metrics").only("^fastagi_workers_stuck"), pool.command("status").only(_FIGURES))
        stuck = pool.await_lines(r"is stuck: no sign of life in time")
        died = pool.await_lines(r"died in killed after \d+ calls, \d+ calls lost: killed by SIGKILL")
        victim = int(re.findall(r" worker=\d+ gen=1 pid=(\d+) died", died)[0])
        # Others may have been in the middle of a call there when it was blocked.
        lost = re.findall(rf".* pid={victim} took call=.*", pool.logged())
        tell.reads(stuck, *lost, died)
        pool.await_workers(_WORKERS, without=victim)
        pool.await_that(
            lambda: pool.metric("fastagi_worker_restarts_total", reason="stuck") == 1, "the metric counts it"
        )
        setting.expect_service(callers)
        callers.finish()
        tell.heard(callers.counts)
        check(any("route=blocks" in line for line in lost), "the blocked call is among the lost", str(lost))
        check(callers.counts[CRASHED] == len(lost), "the lost have heard the truth", str(callers.counts))
        setting.expect_truth(callers)
        tell.sees(pool.command("status").only(_FIGURES))
        tell.recovers(f"{_WORKERS} workers serve, {setting.afterwards} calls more were all served")


def worker_killed(setting: Setting) -> None:
    """A worker is killed (SIGKILL), as the kernel does when memory runs out.

    The log names each call that died with it. A connection that just ends would be a success to Asterisk, so
    the worker's witness tells their dialplans: AGISTATUS=FAILURE, FAGI_STATUS=CRASH.
    """
    tell = setting.tell
    held, gate = _held(setting.folder)
    calls = 2 * setting.telephones
    with DrillPool(setting.folder, [route("quick"), held]) as pool, Callers(pool.url) as callers:
        pool.run()
        callers.place("held", calls)
        pool.await_that(lambda: pool.status().get("active") == calls, f"{calls} calls are in progress")
        victim = max(pool.status()["workers"], key=lambda each: int(each["active"]))
        tell.does(
            f"{calls} calls are in progress; worker {victim['slot']} has {victim['active']}, and is killed"
        )
        tell.sees(pool.command("calls"))
        os.kill(victim["pid"], signal.SIGKILL)
        died = pool.await_lines(
            rf"pid={victim['pid']} died in serving after \d+ calls, \d+ calls lost: killed by SIGKILL"
        )
        lost = re.findall(rf".* pid={victim['pid']} took call=.*", pool.logged())
        tell.reads(*lost, died)
        check(len(lost) == victim["active"], "the log names each call that died", "\n".join(lost))
        pool.await_workers(_WORKERS, without=victim["pid"])
        pool.await_that(
            lambda: pool.metric("fastagi_worker_restarts_total", reason="died") == 1, "the metric counts it"
        )
        tell.sees(
            pool.get("/metrics").only(r'^fastagi_worker_restarts_total\{reason="died"'),
            pool.command("status").only(_FIGURES),
        )
        gate.touch()
        setting.expect_service(callers)
        callers.finish()
        tell.heard(callers.counts)
        setting.expect_truth(callers)
        check(callers.counts[CRASHED] == victim["active"], "its calls alone were lost", str(callers.counts))
        tell.recovers("another worker serves; the calls in the other one have noticed nothing")


def memory_leak(setting: Setting) -> None:
    """A handler keeps 4 MB at each call and never lets go.

    A worker above `max_memory` is replaced: another one serves before it stops accepting, and its calls go
    on to their end. No caller notices; the log and the figures say why it was replaced.
    """
    tell = setting.tell
    with (
        DrillPool(setting.folder, [route("quick"), route("leaks")], max_memory="96MB") as pool,
        Callers(pool.url) as callers,
    ):
        pool.run()
        tell.does(f"max_memory is 96MB; {setting.telephones} telephones call a handler that leaks")
        callers.keep_calling("leaks", setting.telephones)
        reason = pool.await_lines(r" is being replaced: \d+ MB of memory")
        pool.await_that(
            lambda: pool.metric("fastagi_worker_restarts_total", reason="memory") >= 1, "the metric counts it"
        )
        tell.sees(
            pool.command("status").only(_FIGURES),
            pool.get("/metrics").only(r'^fastagi_worker_restarts_total\{reason="memory"'),
        )
        callers.finish()
        tell.reads(reason)
        setting.expect_service(callers)
        tell.heard(callers.counts)
        check(set(callers.counts) == {SERVED}, "every call is served", str(callers.counts))
        setting.expect_truth(callers)
        pool.await_workers(_WORKERS)
        tell.recovers("fresh workers serve; no call was lost")


def pool_full(setting: Setting) -> None:
    """More calls come than there are places, and than may wait.

    What finds a place in the queue waits for `max_wait`; what does not is told at once:
    FAGI_STATUS=OVERLOAD. A dialplan that asks `_status` before it sends a call sees it coming.
    """
    tell = setting.tell
    held, gate = _held(setting.folder)
    limits = {"workers": 1, "calls_per_worker": 4, "max_queue": 2, "max_wait": "10s"}
    with DrillPool(setting.folder, [route("quick"), held], **limits) as pool, Callers(pool.url) as callers:
        pool.run()
        tell.does(
            "there are 4 places, and room for 2 that wait; 3 calls are in progress, and the dialplan asks"
        )
        callers.place("held", 3)
        pool.await_that(lambda: pool.status().get("active") == 3, "3 calls are in progress")
        asked = pool.ask("_status")
        tell.sees(asked)
        check("FAGI_LOAD=100" in asked.text, "_status says that the last place is taken", asked.text)
        tell.does("3 calls more: one has a place, two wait; and then one that finds no room")
        callers.place("held", 3)
        pool.await_that(lambda: pool.status().get("queued") == 2, "2 calls wait")
        refused = callers.call("quick").variables
        check(refused.get("FAGI_STATUS") == "OVERLOAD", "a call without room is told so", str(refused))
        overload = {"outcome": "overload"}
        pool.await_that(lambda: pool.metric("fastagi_calls_total", **overload) == 1, "the metric counts it")
        ready = pool.get("/readyz")
        check(ready.code == 503, "/readyz says no", ready.text)
        tell.sees(
            pool.command("status").only(_FIGURES),
            pool.command("calls"),
            ready,
            pool.get("/metrics").only(r'outcome="overload"|^fastagi_(queued_calls|places) '),
        )
        tell.reads(pool.await_lines(r" outcome=overload .*there is no place for lane 'default'"))
        gate.touch()
        pool.await_that(lambda: pool.status().get("active") == 0, "all calls have ended")
        setting.expect_service(callers)
        callers.finish()
        tell.heard(callers.counts)
        setting.expect_truth(callers)
        check(callers.counts[SERVED] == 6 + setting.afterwards, "the others are served", str(callers.counts))
        tell.recovers("the calls end, those that waited are served, and new ones find a place")
