"""Overload: lanes keep their places, whoever comes beyond is told so, and who says nothing takes none.

Every pool has one worker, so that its bounds are those of the pool.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest
from service import PoolService

from fastagi_pool.testing import AgiStatus, environment

from .conftest import Pools
from .opencall import OpenCall

_TIMEOUT_S: Final = 15.0
_ROUTES: Final[list[dict[str, Any]]] = [
    {"script": "held", "handler": "pool_handlers:held"},
    {"script": "hello", "handler": "pool_handlers:hello"},
    {"script": "record", "handler": "pool_handlers:hello", "lane": "hangup"},
]


@pytest.fixture
def calls() -> Iterator[ExitStack]:
    """End all calls with the test."""
    with ExitStack() as stack:
        yield stack


def started(pools: Pools, places: int, **settings: Any) -> PoolService:
    """Start a pool of one worker."""
    lanes = {"hangup": {}, **settings.pop("lanes", {})}
    return pools.start({"workers": 1, "calls_per_worker": places, "lanes": lanes, **settings}, routes=_ROUTES)


def hold(pool: PoolService, calls: ExitStack, times: int = 1, script: str = "held") -> list[OpenCall]:
    """Place calls, each of which has its place when the next one comes."""
    held = []
    for _ in range(times):
        call = calls.enter_context(OpenCall(pool.address, script))
        assert call.command().startswith("NOOP")
        held.append(call)
    return held


def queue(pool: PoolService, calls: ExitStack, queued: int, script: str = "held") -> OpenCall:
    """Place one more call, and return it once the pool tells that so many wait."""
    call = calls.enter_context(OpenCall(pool.address, script))
    pool.await_that(lambda: [each.queued for each in pool.serving()] == [queued], f"lets {queued} wait")
    return call


def call_from(pool: PoolService, source: str, calls: ExitStack, script: str) -> socket.socket:
    """Place a call from an address of its own, and leave its commands unanswered."""
    host, _, port = pool.address.rpartition(":")
    link = socket.create_connection((host, int(port)), _TIMEOUT_S, (source, 0))
    calls.enter_context(link)
    link.sendall(environment(f"agi://localhost/{script}").encode())
    return link


def silent(pool: PoolService, calls: ExitStack, times: int) -> list[socket.socket]:
    """Open connections that say nothing."""
    host, _, port = pool.address.rpartition(":")
    return [
        calls.enter_context(socket.create_connection((host, int(port)), _TIMEOUT_S)) for _ in range(times)
    ]


# --- lanes


def test_records_are_served_while_others_fill_the_pool(pools: Pools, calls: ExitStack) -> None:
    """What a lane keeps is there for its calls when all other places are taken, and for nobody else's."""
    pool = started(pools, 4, lanes={"default": {"max_queue": 0}, "hangup": {"reserve": 1}})
    held = hold(pool, calls, 3)
    refused = pool.call("hello")
    assert refused.status is AgiStatus.FAILURE
    assert refused.variables["FAGI_STATUS"] == "OVERLOAD"
    assert "lanes.default.max_queue" in refused.variables["FAGI_ERROR"]
    for _ in range(5):
        assert pool.call("record").status is AgiStatus.SUCCESS
    assert [call.release() for call in held] == [AgiStatus.SUCCESS] * 3
    assert pool.call("hello").status is AgiStatus.SUCCESS
    outcomes = sorted(line["outcome"] for line in pool.await_access(10))
    assert outcomes == ["ok"] * 9 + ["overload"]


def test_no_more_of_a_lane_than_it_may_have(pools: Pools, calls: ExitStack) -> None:
    """A lane's bound holds although there are places; the other lane's calls take them."""
    pool = started(pools, 10, lanes={"default": {"max_active": 2, "max_queue": 0}, "hangup": {}})
    hold(pool, calls, 2)
    assert pool.call("hello").variables["FAGI_STATUS"] == "OVERLOAD"
    assert pool.call("record").status is AgiStatus.SUCCESS


def test_a_call_waits_for_its_place(pools: Pools, calls: ExitStack) -> None:
    """Calls that wait begin in the order of coming as places become free."""
    pool = started(pools, 1, lanes={"default": {"max_queue": 2, "max_wait": "10m"}})
    [held] = hold(pool, calls)
    first, second = (queue(pool, calls, number) for number in (1, 2))
    assert pool.call("hello").variables["FAGI_STATUS"] == "OVERLOAD"
    assert held.release() is AgiStatus.SUCCESS
    assert first.command().startswith("NOOP")
    assert first.release() is AgiStatus.SUCCESS
    assert second.command().startswith("NOOP")
    assert second.release() is AgiStatus.SUCCESS


def test_nobody_waits_longer_than_his_lane_allows(pools: Pools, calls: ExitStack) -> None:
    """Whoever finds no place in time is told so; the call that has the place goes on."""
    pool = started(pools, 1, lanes={"default": {"max_wait": "200ms"}})
    [held] = hold(pool, calls)
    late = pool.call("hello")
    assert (late.status, late.variables["FAGI_STATUS"]) == (AgiStatus.FAILURE, "OVERLOAD")
    assert "lanes.default.max_wait" in late.variables["FAGI_ERROR"]
    assert held.release() is AgiStatus.SUCCESS


def test_the_time_in_the_queue_is_no_time_for_the_environment(pools: Pools, calls: ExitStack) -> None:
    """A call may wait for longer than its environment might have taken."""
    pool = started(
        pools,
        1,
        lanes={"default": {"max_wait": "10m"}, "hangup": {"max_active": 1, "max_wait": "3s"}},
        limits={"header_timeout": "2s"},
    )
    [held] = hold(pool, calls)
    waiting = queue(pool, calls, 1)
    # Waits for longer than the environment may take, and is refused then.
    assert pool.call("record").variables["FAGI_STATUS"] == "OVERLOAD"
    assert held.release() is AgiStatus.SUCCESS
    assert waiting.command().startswith("NOOP")
    assert waiting.release() is AgiStatus.SUCCESS


def test_a_caller_who_leaves_the_queue_makes_room(pools: Pools, calls: ExitStack) -> None:
    """A call whose Asterisk has closed while it waited holds nobody else up."""
    pool = started(pools, 1, lanes={"default": {"max_queue": 1, "max_wait": "10m"}})
    [held] = hold(pool, calls)
    gone = queue(pool, calls, 1)
    gone.link.shutdown(socket.SHUT_RDWR)
    newcomer = calls.enter_context(OpenCall(pool.address, "held"))
    # Refused in the other's place.
    assert [line["outcome"] for line in pool.await_access(1)] == ["overload"]
    assert held.release() is AgiStatus.SUCCESS
    assert newcomer.command().startswith("NOOP")
    assert newcomer.release() is AgiStatus.SUCCESS


def test_a_reload_lets_all_who_wait_begin(pools: Pools, calls: ExitStack) -> None:
    """A worker that drains serves those who wait at once: the new worker cannot take them."""
    pool = started(pools, 1, lanes={"default": {"max_queue": 5, "max_wait": "10m"}})
    [held] = hold(pool, calls)
    waiting = [queue(pool, calls, number) for number in (1, 2)]
    pool.reload()
    for call in waiting:
        assert call.command().startswith("NOOP")
    assert [call.release() for call in (*waiting, held)] == [AgiStatus.SUCCESS] * 3


# --- servers of Asterisk


def test_one_server_cannot_take_all_places(pools: Pools, calls: ExitStack) -> None:
    """Beyond its number the calls of one server are refused at once, and those of another are served."""
    pool = started(pools, 10, limits={"calls_per_server": 2})
    for _ in range(2):
        link = call_from(pool, "127.0.0.2", calls, "held")
        assert link.recv(4096).startswith(b"NOOP")
    with call_from(pool, "127.0.0.2", calls, "hello").makefile("rb") as lines:
        told = lines.read()
    assert b"OVERLOAD" in told
    assert b"limits.calls_per_server" in told
    assert told.splitlines()[-1] == b"failure"
    assert pool.call("hello").status is AgiStatus.SUCCESS


# --- connections without a word


def test_silence_takes_no_place(pools: Pools, calls: ExitStack) -> None:
    """Connections that say nothing, or not all yet, keep no call from its place."""
    pool = started(pools, 1, max_queue=0)
    lines = silent(pool, calls, 100)
    for line in lines[:50]:
        line.sendall(b"agi_network: y")
    for _ in range(3):
        assert pool.call("hello").status is AgiStatus.SUCCESS
    lines[99].sendall(environment("agi://localhost/hello").encode())
    assert lines[99].recv(4096).startswith(b"SET VARIABLE")


def test_too_many_silent_connections(pools: Pools, calls: ExitStack) -> None:
    """Beyond the bound the one that has been silent for longest is told FAILURE, and the newest stay."""
    pool = started(pools, 10, limits={"connections": 10, "header_timeout": "10m"})
    lines = silent(pool, calls, 12)
    for line in lines[:2]:
        with line.makefile("rb") as told:
            assert told.read().splitlines()[-1] == b"failure"
    assert pool.call("hello").status is AgiStatus.SUCCESS
    lines[11].sendall(environment("agi://localhost/hello").encode())
    assert lines[11].recv(4096).startswith(b"SET VARIABLE")


def test_probes_leave_no_trace(pools: Pools, calls: ExitStack) -> None:
    """Who connects and closes without a word is no call: no line of any log tells of it."""
    pool = started(pools, 10)
    # The last line of a start.
    pool.await_log("serves$")
    before = pool.logged()
    for line in silent(pool, calls, 200):
        line.close()
    assert pool.call("hello").status is AgiStatus.SUCCESS
    assert [line["route"] for line in pool.await_access(1)] == ["hello"]
    assert pool.logged() == before
