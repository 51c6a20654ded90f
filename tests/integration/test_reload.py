"""Reloading: new code, new configuration, and everything that can be wrong with them, under calls."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from service import PoolService, pids

from fastagi_pool.status import read_status
from fastagi_pool.testing import AgiStatus

from .conftest import Pools, route
from .opencall import OpenCall, connect, hold
from .stream import CallStream

_SAYING = """
def saying(call, context):
    call.set_variable("SAID", {word!r})
"""
_ROUTES = [
    route("saying", "changing:saying"),
    route("held", "pool_handlers:held"),
    route("hello", "pool_handlers:hello"),
]


def start(pools: Pools, **settings: Any) -> PoolService:
    """Start a pool whose handler ``saying`` can be changed by :func:`write`."""
    return pools.start(settings, routes=_ROUTES, code={"changing.py": _SAYING.format(word="first")})


def write(pool: PoolService, code: str) -> None:
    """Change the code of the handler."""
    (pool.folder / "code" / "changing.py").write_text(code)


def test_new_code(pools: Pools) -> None:
    """A reload brings new code in; a call that runs meanwhile ends with the code it began with."""
    pool = start(pools)
    held, old = hold(pool.address)
    with held:
        write(pool, _SAYING.format(word="second"))
        pool.reload()
        pool.await_serving(2, generation=2)
        assert pool.call("saying").variables == {"SAID": "second"}
        assert held.release() is AgiStatus.SUCCESS
    pool.await_log(rf"worker=\d gen=1 pid={old} ended after 1 calls$")
    assert "ERROR" not in pool.logged()


def test_new_route_and_number_of_workers(pools: Pools) -> None:
    """A reload takes new routes, and as many workers as are asked for now."""
    pool = start(pools)
    assert pool.call("new").status is AgiStatus.FAILURE
    pool.configure(workers=3, routes=[*_ROUTES, route("new", "pool_handlers:hello")])
    pool.reload()
    pool.await_serving(3, generation=2)
    assert pool.call("new").status is AgiStatus.SUCCESS
    pool.configure(workers=1)
    pool.reload()
    pool.await_serving(1, generation=3)


def test_listen_addresses_come_and_go(pools: Pools) -> None:
    """A reload opens new addresses, keeps those that stay, and closes those that are gone."""
    pool = start(pools)
    paths = [f"{pool.folder}/{name}.sock" for name in ("one", "two")]
    pool.configure(listen=["127.0.0.1:0", f"unix:{paths[0]}"])
    pool.reload()
    pool.await_serving(2, generation=2)
    for address in (pool.address, f"unix:{paths[0]}"):
        with OpenCall(address, "saying") as call:
            assert call.end() is AgiStatus.SUCCESS
    pool.configure(listen=[f"unix:{path}" for path in paths])
    pool.reload()
    pool.await_serving(2, generation=3)
    pool.await_refusal()
    for path in paths:
        with OpenCall(f"unix:{path}", "saying") as call:
            assert call.end() is AgiStatus.SUCCESS


def test_address_that_cannot_be_had(pools: Pools) -> None:
    """A new address that another process has is refused, and the old one is listened on as before."""
    pool, other = start(pools), pools.start()
    pool.configure(listen=["127.0.0.1:0", other.address])
    pool.reload()
    pool.await_log(
        rf"reload refused, nothing changes: cannot listen on {other.address}: the address is in use"
    )
    assert pool.call("saying").variables == {"SAID": "first"}
    assert {each.generation for each in pool.serving()} == {1}


@pytest.mark.parametrize(
    ("code", "config", "logged"),
    [
        ("def saying(:\n", "", r"{yaml}:\d+: routes\[0\]\.handler: .*{code}/changing\.py:1: invalid syntax"),
        ("1 / 0\n", "", r"{yaml}:\d+: routes\[0\]\.handler: .*{code}/changing\.py:1: ZeroDivisionError"),
        ("import os\nos._exit(3)\n", "", r"the loader died while it loaded"),
        ("", "workers: [", r"{yaml}:\d+: "),
        ("", "nonsense: 1", r"{yaml}:1: nonsense: "),
    ],
    ids=["syntax", "raises", "dies", "not YAML", "unknown key"],
)
def test_broken_reload_changes_nothing(code: str, config: str, logged: str, pools: Pools) -> None:
    """What is broken is named in the log with file and line, and the old generation serves on."""
    pool = start(pools)
    before = pids(pool.serving())
    if code:
        write(pool, code)
    if config:
        pool.config_path.write_text(config)
    pool.reload()
    where = logged.format(yaml=pool.config_path, code=pool.folder / "code")
    pool.await_log(rf"ERROR master pid={pool.pid} reload refused, nothing changes: {where}")
    assert pool.call("saying").variables == {"SAID": "first"}
    assert pids(pool.serving()) == before


def test_mended_reload_works(pools: Pools) -> None:
    """After a refused reload the next one, of what has been mended, is taken."""
    pool = start(pools)
    write(pool, "def saying(:\n")
    pool.reload()
    pool.await_log("reload refused")
    write(pool, _SAYING.format(word="second"))
    pool.reload()
    pool.await_serving(2, generation=3)
    assert pool.call("saying").variables == {"SAID": "second"}


def test_generation_whose_workers_cannot_start(pools: Pools) -> None:
    """New code that loads but cannot start leaves the old generation in charge, and calls go on."""
    pool = start(pools)
    before = pids(pool.serving())
    with CallStream(pool.url("saying")) as stream:
        stream.await_more(10)
        write(pool, _SAYING.format(word="never") + "def setup(context):\n    raise ValueError('no')\n")
        pool.reload()
        pool.await_log("gen=2 does not start: gen=1 stays in charge")
        stream.await_more(10)
    assert stream.lost == []
    assert {result.variables["SAID"] for result in stream.results} == {"first"}
    assert pids(pool.serving()) == before
    pool.await_that(lambda: len(pool.processes()) == 7, "has dismissed the loader that failed")


def test_reloads_are_decided_one_after_the_other(pools: Pools) -> None:
    """A reload that is asked for while another one's first worker starts is told of by itself, as refused."""
    pool = start(pools)
    gate = pool.folder / "gate"
    waiting = f"def setup(context):\n    while not os.path.exists({str(gate)!r}):\n        time.sleep(0.01)\n"
    write(pool, "import os, time\n" + _SAYING.format(word="second") + waiting)
    pool.reload()
    pool.await_log("gen=2 is loaded")
    write(pool, "def saying(:\n")
    pool.reload()
    heard = re.compile(rf"master pid={pool.pid} reload\n")
    pool.await_that(lambda: len(heard.findall(pool.logged())) == 2, "has heard of both")
    gate.touch()
    pool.await_log("reload refused")
    runtime_dir = Path(pool.config["runtime_dir"])

    def told() -> tuple[int, int, int, bool]:
        status = read_status(runtime_dir, time.monotonic())
        told = status.supervision
        return status.generation, told.reloads, told.refused, "invalid syntax" in told.error

    pool.await_that(lambda: told() == (2, 2, 1, True), "has told of both")


def test_runtime_folder_stays(pools: Pools) -> None:
    """A reload that names another runtime folder is refused: nobody would look there for its workers."""
    pool = start(pools)
    before = pids(pool.serving())
    pool.configure(runtime_dir=str(pool.folder / "other"))
    pool.reload()
    pool.await_log(rf"reload refused, nothing changes: runtime_dir stays {pool.folder}/run while it runs")
    pool.configure(runtime_dir=str(pool.folder / "run"))
    assert pids(pool.serving()) == before


@pytest.mark.slow
def test_many_reloads_lose_no_call(pools: Pools) -> None:
    """Five reloads in the middle of a stream of calls, and every call is served."""
    pool = start(pools)
    with CallStream(pool.url("saying")) as stream:
        for generation in range(2, 7):
            pool.reload()
            pool.await_serving(2, generation)
            stream.await_more(20)
    assert stream.lost == []
    pool.await_access(len(stream.results))
    assert {line["outcome"] for line in pool.access_lines()} == {"ok"}
    assert "ERROR" not in pool.logged()
    pool.await_that(lambda: len(pool.processes()) == 7, "has dismissed old loaders and workers")


def test_reloads_in_quick_succession(pools: Pools) -> None:
    """Reloads that come faster than one can be done end with what was written last."""
    pool = start(pools)
    with CallStream(pool.url("saying")) as stream:
        for number in range(10):
            write(pool, _SAYING.format(word=f"at {number}"))
            pool.reload()
            stream.await_more(1)
        pool.await_that(lambda: pool.call("saying").variables == {"SAID": "at 9"}, "has the last code")
    assert stream.lost == []


def test_log_moves(pools: Pools) -> None:
    """A reload that names another log file moves the log of every process there."""
    pool = start(pools, workers=1)
    fresh = pool.folder / "fresh.log"
    pool.configure(
        log={"file": str(fresh), "access": "-"}, routes=[*_ROUTES, route("writing", "pool_handlers:writing")]
    )
    pool.reload()
    (worker,) = pool.await_serving(1, generation=2)
    pool.await_log("reload$")
    pool.call("writing")
    pool.await_that(lambda: "outcome=ok" in fresh.read_text(), "writes access lines into the new log")
    text = fresh.read_text()
    assert f"WARNING worker={worker.slot} gen=2 pid={worker.pid} call=" in text
    pool.await_that(lambda: f"master pid={pool.pid}" in fresh.read_text(), "has moved the master's log")


def test_queue_survives_a_reload(pools: Pools) -> None:
    """Callers who wait because all workers are full are served by the next generation."""
    pool = start(pools, workers=1, calls_per_worker=1, max_wait="60s")
    with ExitStack() as stack:
        held, _ = hold(pool.address)
        stack.enter_context(held)
        waiting = [stack.enter_context(OpenCall(pool.address, "saying")) for _ in range(5)]
        pool.reload()
        for call in waiting:
            assert call.end() is AgiStatus.SUCCESS
            assert call.said[0] == "SET VARIABLE SAID first"
        assert held.release() is AgiStatus.SUCCESS


def test_address_is_kept_while_it_is_reloaded(pools: Pools) -> None:
    """The listening socket is the same before and after: a connection in its queue is not lost."""
    pool = start(pools, limits={"header_timeout": "60s"})
    with connect(pool.address) as probe:
        pool.reload()
        pool.await_serving(2, generation=2)
        probe.sendall(b"agi_network_script: saying\nagi_request: agi://x/saying\n\n")
        assert probe.recv(100).startswith(b"SET VARIABLE SAID ")
