"""Bad input: whatever comes from the network or from a handler, the next call is served.

Every test of a table sends its bytes to the same pool of one worker, and then places a good call.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest
from service import PoolService, pids

from fastagi_pool.testing import AgiStatus, environment

from .conftest import Pools, route
from .opencall import OpenCall

_SETTINGS: Final[dict[str, Any]] = {
    "workers": 1,
    # Some tests wait for the time-outs; all others must not meet them on a machine that stands still.
    "limits": {"header_timeout": "3s", "script_timeout": "3s", "header_size": "64KB"},
}
_TLS_HELLO: Final = bytes.fromhex("16030100c8010000c403035f") + bytes(range(180))
_MEGABYTE: Final = 1 << 20


def script(name: str, **more: str) -> bytes:
    """Write an environment for a script, with further lines."""
    text = environment(f"agi://localhost/{name}")
    return (text[:-1] + "".join(f"{key}: {content}\n" for key, content in more.items()) + "\n").encode()


@pytest.fixture(scope="module")
def pool(shared_pools: Pools) -> PoolService:
    """Start the pool that all of it is sent to; it has no default route."""
    pool = shared_pools.start(_SETTINGS)
    # The last line of a start; tests see that no other follows.
    pool.await_log("serves$")
    return pool


@pytest.fixture(autouse=True)
def next_call_is_served(pool: PoolService) -> Iterator[None]:
    """See after each test that the same worker serves a good call."""
    (before,) = pids(pool.serving())
    yield
    result = pool.call("hello")
    assert (result.status, result.variables) == (AgiStatus.SUCCESS, {"PID": str(before)})


@pytest.fixture
def new_lines(pool: PoolService) -> Callable[[int], list[dict[str, str]]]:
    """Give a function that waits for a number of access lines that this test made, and gives them."""

    def is_idle() -> bool:
        # A line is written after its call was counted out.
        (worker,) = pool.serving()
        return worker.active == 0 and len(pool.access_lines()) == worker.served

    pool.await_that(is_idle, "is idle, and has written all lines")
    before = len(pool.access_lines())
    return lambda lines: pool.await_access(before + lines)[before:]


# --- bytes


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b"\xff\xfe\x00\x01\x80garbage\n\n", "badrequest"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "badrequest"),
        (_TLS_HELLO, "badrequest"),
        (b"\0" * 100, "badrequest"),
        (b"\0" * 100 + b"\n\n", "badrequest"),
        (b"agi_network: yes\0\nagi_network_script: hello\n\n", "badrequest"),
        (b"\n", "badrequest"),
        (b"\n\n\n\n", "badrequest"),
        (b"agi_network: yes\n", "timeout"),
        (b"agi_network", "timeout"),
        (b"agi_network: yes\n" + b"agi_arg_1: " + b"x" * _MEGABYTE + b"\n\n", "badrequest"),
        (b"".join(b"agi_x%d: y\n" % number for number in range(_MEGABYTE // 16)), "badrequest"),
        (script("../../etc/passwd"), "badrequest"),
        (script("a/../hello"), "badrequest"),
        (script("unknown", agi_network_script="hello"), "badrequest"),
        (script("hello", agi_network_script="hello"), "badrequest"),
        (script("unknown"), "noroute"),
        (script("HELLO"), "noroute"),
        (environment("agi://localhost").encode(), "noroute"),
    ],
    ids=[
        "garbage",
        "HTTP",
        "TLS",
        "only NUL",
        "NUL lines",
        "NUL in a value",
        "empty line",
        "empty lines",
        "unfinished",
        "unfinished line",
        "long line",
        "many lines",
        "dots",
        "dots inside",
        "forged script",
        "repeated key",
        "unknown script",
        "other case",
        "no script",
    ],
)
def test_bad_environment(
    data: bytes, outcome: str, pool: PoolService, new_lines: Callable[[int], list[dict[str, str]]]
) -> None:
    """What is no call for us is a failure to the dialplan and one access line with the outcome."""
    with OpenCall(pool.address) as call:
        try:
            call.send(data)
        except ConnectionError:
            pass  # It may be refused before all of it is sent.
        assert call.end() is AgiStatus.FAILURE
    assert [line["outcome"] for line in new_lines(1)] == [outcome]


def test_one_byte_at_a_time(pool: PoolService) -> None:
    """An environment that comes in the smallest pieces is served."""
    with OpenCall(pool.address) as call:
        call.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in script("hello"):
            call.send(bytes([byte]))
        assert call.end() is AgiStatus.SUCCESS
        assert call.said[0].startswith("SET VARIABLE PID ")


def test_probe(pool: PoolService, new_lines: Callable[[int], list[dict[str, str]]]) -> None:
    """A load balancer that connects and closes leaves no line in any log."""
    logged = pool.logged()
    for _ in range(10):
        with OpenCall(pool.address):
            pass
    assert pool.call("hello").status is AgiStatus.SUCCESS
    assert [line["script"] for line in new_lines(1)] == ["hello"]
    assert pool.logged() == logged


def test_probe_with_reset(pool: PoolService) -> None:
    """A probe that ends with a reset, as some load balancers do, is no error either."""
    logged = pool.logged()
    for _ in range(10):
        with OpenCall(pool.address) as call:
            call.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert pool.call("hello").status is AgiStatus.SUCCESS
    assert pool.logged() == logged


def test_reset_in_the_environment(
    pool: PoolService, new_lines: Callable[[int], list[dict[str, str]]]
) -> None:
    """A peer that vanishes while it sends its environment is gone, and no fault of ours."""
    logged = pool.logged()
    with OpenCall(pool.address) as call:
        call.send(b"agi_network: yes\n")
        call.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert [line["outcome"] for line in new_lines(1)] == ["gone"]
    assert pool.logged() == logged


def test_closed_in_the_environment(
    pool: PoolService, new_lines: Callable[[int], list[dict[str, str]]]
) -> None:
    """A peer that closes before its environment is whole is told so, and is no fault of ours."""
    logged = pool.logged()
    with OpenCall(pool.address) as call:
        call.send(b"agi_network: yes\n")
        call.link.shutdown(socket.SHUT_WR)
        assert call.end() is AgiStatus.FAILURE
    assert [line["outcome"] for line in new_lines(1)] == ["badrequest"]
    assert pool.logged() == logged


def test_half_close(pool: PoolService, new_lines: Callable[[int], list[dict[str, str]]]) -> None:
    """A peer that closes its side in the middle of a call is gone."""
    with OpenCall(pool.address, "held") as call:
        call.command()
        call.link.shutdown(socket.SHUT_WR)
        assert call.command() == ""
    assert [line["outcome"] for line in new_lines(1)] == ["gone"]


@pytest.mark.parametrize("reply", [b"nonsense\n", b"200\n", b"\0\0\n", b"500 result=1\n", b"x" * 70_000])
def test_bad_reply(reply: bytes, pool: PoolService, new_lines: Callable[[int], list[dict[str, str]]]) -> None:
    """An answer that is not AGI ends the call as a failure, and only that call."""
    with OpenCall(pool.address, "held") as call:
        call.command()
        call.send(reply)
        assert call.command() == "SET VARIABLE FAGI_STATUS BADREQUEST"
        assert call.end() is AgiStatus.FAILURE
    assert [line["outcome"] for line in new_lines(1)] == ["badrequest"]


def test_unknown_script_with_default(pools: Pools) -> None:
    """The default route takes what no other does, but never a script name with dots in it."""
    routes = [route("held", "pool_handlers:held"), {"default": True, "handler": "pool_handlers:hello"}]
    pool = pools.start(routes=routes)
    assert pool.call("unknown").status is AgiStatus.SUCCESS
    assert pool.call("").status is AgiStatus.SUCCESS
    with OpenCall(pool.address) as call:
        call.send(script("../unknown"))
        assert call.end() is AgiStatus.FAILURE


# --- handlers


@pytest.mark.parametrize(
    ("name", "outcome", "logged"),
    [
        ("raising", "error", 'raise RuntimeError("on purpose")'),
        ("exiting", "error", "SystemExit: 7"),
        ("escaping", "error", "pool_handlers.Escape: on purpose"),
        ("endless", "timeout", "ended: CallTimeout: script time-out of 3 s"),
    ],
)
def test_bad_handler(
    name: str,
    outcome: str,
    logged: str,
    pool: PoolService,
    new_lines: Callable[[int], list[dict[str, str]]],
) -> None:
    """A handler that goes wrong fails its own call, and the log says what and where."""
    assert pool.call(name).status is AgiStatus.FAILURE
    (line,) = new_lines(1)
    assert (line["route"], line["outcome"]) == (name, outcome)
    assert logged in pool.logged()
    assert f"call={line['call']} route={name} " in pool.logged()


def test_printing_handler(pool: PoolService) -> None:
    """What a handler prints does not reach Asterisk, where it would be a command."""
    result = pool.call("printing")
    assert result.status is AgiStatus.SUCCESS
    assert [command.split()[0] for command in result.commands] == ["SET"]


def _wait_in_queue(pool: PoolService, calls: ExitStack, script: str, queued: int) -> OpenCall:
    """Place a call and return it when so many are in the queue of the only worker, it the last."""
    call = calls.enter_context(OpenCall(pool.address, script))
    pool.await_that(lambda: pool.serving()[0].queued == queued, "has it in its queue")
    return call


def test_many_calls_wait(pools: Pools) -> None:
    """However many calls have had to wait for a place, each next one is served: waiting uses nothing up."""
    pool = pools.start({"workers": 1, "calls_per_worker": 1, "max_queue": 250, "max_wait": "60s"})
    with ExitStack() as stack:
        held = stack.enter_context(OpenCall(pool.address, "held"))
        held.command()
        waiting = [_wait_in_queue(pool, stack, "hello", number + 1) for number in range(250)]
        assert held.release() is AgiStatus.SUCCESS
        assert {call.end() for call in waiting} == {AgiStatus.SUCCESS}
    assert {line["outcome"] for line in pool.await_access(251)} == {"ok"}
    assert [worker.active for worker in pool.serving()] == [0]


def test_full_worker(pools: Pools) -> None:
    """Calls beyond calls_per_worker wait in the queue, and each is served when another ends."""
    pool = pools.start({"workers": 1, "calls_per_worker": 2})
    with ExitStack() as stack:
        held = [stack.enter_context(OpenCall(pool.address, "held")) for _ in range(2)]
        for call in held:
            call.command()
        waiting = [_wait_in_queue(pool, stack, "held", number + 1) for number in range(3)]
        assert [worker.active for worker in pool.serving()] == [2]
        for ended, begun in zip([*held, *waiting], waiting, strict=False):
            assert ended.release() is AgiStatus.SUCCESS
            begun.command()
        assert [worker.active for worker in pool.serving()] <= [2]
        for call in waiting[1:]:
            assert call.release() is AgiStatus.SUCCESS
    assert {line["outcome"] for line in pool.await_access(5)} == {"ok"}
