"""Drills about the master: a start that cannot be, a reload that must not be, and a master that is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
from typing import Final

from drills.callers import SERVED, Callers
from drills.pool import DrillPool, route
from drills.setting import Setting
from drills.telling import check

_GOOD: Final = 'def greet(call, context):\n    call.set_variable("SERVED", "yes")\n'
_BROKEN: Final = 'def greet(call, context):\n    call.set_variable("SERVED", "yes"\n'
_FIGURES: Final = r"running|died|dead|^calls|^reload|^worker|ready"


def port_taken(setting: Setting) -> None:
    """Another program listens on the port.

    The start is refused with exit code 1, and the reason names the address; nothing is left running.
    """
    tell = setting.tell
    with socket.socket() as occupant, DrillPool(setting.folder, [route("quick")]) as pool:
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        address = f"127.0.0.1:{occupant.getsockname()[1]}"
        pool.configure(listen=[address])
        tell.does(f"a program listens on {address}; the pool is to listen there too")
        refused = pool.command("start")
        tell.sees(refused)
        check(refused.code == 1, "the start is refused with exit code 1", str(refused))
        check(address in refused.text, "the reason names the address", refused.text)
        standing = pool.command("status")
        tell.sees(standing)
        check(standing.code == 3, "status says that nothing runs", str(standing))
        occupant.close()
        tell.does("the other program ends")
        with Callers(pool.url) as callers:
            started = pool.command("start")
            tell.sees(started)
            check(started.code == 0, "it starts", str(started))
            pool.await_service()
            setting.expect_service(callers)
            tell.heard(callers.counts)
            setting.expect_truth(callers)
        stopped = pool.command("stop", "--wait")
        tell.sees(stopped)
        check(stopped.code == 0, "it stops", str(stopped))
        tell.recovers("it serves as soon as the port is free")


def bad_reload(setting: Setting) -> None:
    """Somebody saves a handler with a syntax error and reloads.

    The new code is loaded in a process of its own, so the old workers serve on as if nothing had been.
    `reload --wait` says which file and line, and exits 1; so does the log.
    """
    tell = setting.tell
    code = setting.folder / "code"
    code.mkdir()
    module = code / "greeting.py"
    module.write_text(_GOOD)
    routes = [{"script": "greet", "handler": "greeting:greet"}]
    with (
        DrillPool(setting.folder, routes, python_path=[str(code)]) as pool,
        Callers(pool.url) as callers,
    ):
        pool.run()
        before = pool.serving()
        callers.keep_calling("greet", setting.telephones)
        tell.does(f"{setting.telephones} telephones call on and on; greeting.py is broken, and reloaded")
        module.write_text(_BROKEN)
        refused = pool.command("reload", "--wait")
        tell.sees(refused)
        check(refused.code == 1, "the reload is refused with exit code 1", str(refused))
        check(re.search(r"greeting\.py:\d+", refused.text), "it names file and line", refused.text)
        tell.reads(pool.await_lines(r"reload refused, nothing changes: "))
        check(pool.serving() == before, "the same workers serve", pool.logged())
        last = "fastagi_config_last_reload_successful"
        pool.await_that(lambda: pool.metric("fastagi_reloads_refused_total") == 1, "the metric counts it")
        check(pool.metric(last) == 0, "the metric says that the last reload failed")
        tell.sees(
            pool.command("status").only(_FIGURES),
            pool.get("/metrics").only(f"^({last}|fastagi_reloads_refused_total) "),
            pool.get("/healthz"),
        )
        tell.does("greeting.py is mended, and reloaded")
        module.write_text(_GOOD)
        done = pool.command("reload", "--wait")
        tell.sees(done)
        check(done.code == 0, "the reload goes well", str(done))
        setting.expect_service(callers, "greet")
        callers.finish()
        tell.heard(callers.counts)
        check(set(callers.counts) == {SERVED}, "every call is served", str(callers.counts))
        pool.await_that(lambda: pool.metric(last) == 1, "the metric says that all is well again")
        tell.recovers("generation by generation, without a lost call")


def master_killed(setting: Setting) -> None:
    """The master is killed (SIGKILL).

    Its workers let nobody new in, finish their calls and end. `status` says that it does not run and exits
    1; the status process is gone too. `keep-alive`, which cron runs every minute, starts it again, even
    while the old workers still finish.
    """
    tell = setting.tell
    gate = setting.folder / "gate"
    calls = setting.telephones
    routes = [route("quick"), route("held", gate=str(gate))]
    with DrillPool(setting.folder, routes) as pool, Callers(pool.url) as callers:
        tell.sees(pool.command("start"))
        pool.await_service()
        # What starts again must be where the dialplan expects it.
        pool.configure(listen=[pool.address])
        callers.place("held", calls)
        pool.await_that(lambda: pool.status().get("active") == calls, f"{calls} calls are in progress")
        tell.does(f"{calls} calls are in progress; the master is killed")
        os.kill(pool.status()["master_pid"], signal.SIGKILL)
        tell.reads(pool.await_lines(r"the master is gone: finishing \d+ calls"))
        pool.await_that(lambda: pool.get("/healthz").code != 200, "/healthz does not say that all is well")
        dead = pool.command("status")
        tell.sees(dead, pool.get("/healthz"))
        check(dead.code == 1, "status says that it died, by exit code 1", str(dead))
        pool.await_that(lambda: not callers.call("quick").connected, "nobody new gets in")
        tell.does("cron runs its line")
        started = pool.command("keep-alive")
        tell.sees(started)
        check(started.code == 0, "keep-alive starts it", str(started))
        pool.await_that(lambda: len(pool.serving()) == pool.config["workers"], "the new workers serve")
        setting.expect_service(callers)
        gate.touch()
        callers.finish()
        tell.heard(callers.counts)
        setting.expect_truth(callers)
        check(callers.counts[SERVED] >= calls + setting.afterwards, "the old calls were served to their end")
        again = pool.command("status")
        tell.sees(again.only(_FIGURES))
        check(again.code == 0, "status says that it runs", str(again))
        tell.recovers("another master serves; the calls of the old one were served to their end")
