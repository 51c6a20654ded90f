"""Observing: what a running pool shows of itself, over HTTP and at its control socket."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families
from service import PoolService

from fastagi_pool.control import ask
from fastagi_pool.testing import AgiStatus

from .conftest import Pools
from .opencall import OpenCall

#: Some twenty times what anything here takes.
_LIMIT_S: Final = 30.0
_HTTP: Final = {"http": {"listen": "127.0.0.1:0"}}


def address(pool: PoolService) -> tuple[str, int]:
    """Return where the pool shows its state."""
    found = pool.await_log(r"showing the status on http://(.+):(\d+)/")[-1]
    return found[1], int(found[2])


def get(pool: PoolService, path: str) -> tuple[int, bytes]:
    """Ask the pool over HTTP."""
    connection = http.client.HTTPConnection(*address(pool), timeout=_LIMIT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def answers_to(pool: PoolService, **request: Any) -> Iterator[dict[str, Any]]:
    """Ask the pool at its control socket, and return the answers as they come."""
    socket = Path(pool.config["runtime_dir"]) / "control"
    pool.await_that(socket.exists, "serves its control socket")
    return ask(socket, request, _LIMIT_S)


def told(pool: PoolService, **request: Any) -> list[dict[str, Any]]:
    """Ask the pool at its control socket, and return all answers."""
    return list(answers_to(pool, **request))


def observer(pool: PoolService) -> int:
    """Return the process id of the pool's observer."""
    return pool.await_process("fastagi-pool: observer").pid


def test_a_call_in_progress_is_shown(pools: Pools) -> None:
    """Who calls, on which route, and with which command in Asterisk: everything is there while it lasts."""
    pool = pools.start(_HTTP)
    with OpenCall(pool.address, "held") as call:
        call.command()

        def seen() -> bool:
            found[:] = json.loads(get(pool, "/calls.json?limit=5")[1])["calls"]
            return bool(found) and found[0]["letter"] == "A"

        found: list[dict[str, Any]] = []
        pool.await_that(seen, "shows the call in Asterisk")
        assert (found[0]["route"], found[0]["state"]) == ("held", "in Asterisk")
        assert found[0]["command"] == call.said[0]
        # What is shown may be a quarter of a second old.
        pool.await_that(lambda: json.loads(get(pool, "/status.json")[1])["active"] == 1, "counts the call")
        assert told(pool, verb="calls")[0]["calls"][0]["ref"] == found[0]["ref"]


def test_what_has_happened_is_counted(pools: Pools) -> None:
    """Prometheus finds the calls under their routes and outcomes, and the limits beside the values."""
    pool = pools.start(_HTTP)
    for _ in range(3):
        assert pool.call("hello").status is AgiStatus.SUCCESS
    assert pool.call("raising").status is AgiStatus.FAILURE

    def figures() -> dict[str, float]:
        text = get(pool, "/metrics")[1].decode()
        return {
            "|".join((sample.name, *(sample.labels[key] for key in sorted(sample.labels)))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    # Each worker counts its calls for itself, when they are over for the caller.
    expected = {"fastagi_calls_total|error|raising": 1, "fastagi_calls_total|ok|hello": 3}
    expected["fastagi_call_duration_seconds_count|hello"] = 3
    pool.await_that(lambda: expected.items() <= figures().items(), "counts all calls")
    found = figures()
    assert found["fastagi_up"] == 1
    assert found["fastagi_workers|ready"] == found["fastagi_workers_wanted"] == 2
    assert found["fastagi_places"] > 0
    assert found["fastagi_listen_queue_limit"] > 0


def test_the_page_and_health(pools: Pools) -> None:
    """The page for people is there, and the pool is healthy and ready."""
    pool = pools.start(_HTTP)
    status, page = get(pool, "/")
    assert (status, page[:15].lower()) == (200, b"<!doctype html>")
    assert [get(pool, path)[0] for path in ("/healthz", "/readyz", "/nothing")] == [200, 200, 404]


def test_a_stuck_worker_does_not_keep_the_control_socket_from_answering(pools: Pools) -> None:
    """While a handler blocks the only worker, the pool answers, and tells where it hangs."""
    pool = pools.start({**_HTTP, "workers": 1})
    with OpenCall(pool.address, "spinning") as call:
        call.command()
        call.reply()
        # What is told may be a quarter of a second old.
        pool.await_that(lambda: told(pool, verb="status")[0]["status"]["active"] == 1, "has the call")
        stacks, last = told(pool, verb="dump")
        assert last == {"ok": True, "more": False}
        assert "spinning" in stacks["stacks"]
        pool.kill()


def test_a_reload_that_is_followed(pools: Pools) -> None:
    """Whoever waits is told of the new generation, and the old worker's call that is left."""
    pool = pools.start(_HTTP)
    with OpenCall(pool.address, "held") as call:
        call.command()
        # Or it might have loaded before anybody looks how far it is.
        pool.signal(signal.SIGSTOP)
        following = answers_to(pool, verb="reload", wait=True)
        answers = [next(following)]
        pool.signal(signal.SIGCONT)
        answers += following
    assert answers[-1]["ok"]
    assert answers[-1]["text"].startswith("generation 2 serves with")
    assert "1 call left in 1 worker of older generations" in answers[-1]["text"]
    assert answers[0] == {"ok": True, "more": True, "text": "a new generation is loading"}


def test_a_reload_that_is_refused(pools: Pools) -> None:
    """Whoever waits hears why, with the file and the line, and that is no success."""
    pool = pools.start(_HTTP)
    pool.configure(workers="many")
    answers = told(pool, verb="reload", wait=True)
    assert not answers[-1]["ok"]
    assert "pool.yaml" in answers[-1]["error"]
    assert "workers" in answers[-1]["error"]
    # What is shown may be a quarter of a second old.
    pool.await_that(
        lambda: json.loads(get(pool, "/status.json")[1])["reload"]["refused"] == 1, "counts the refusal"
    )


def test_a_stop_that_is_followed(pools: Pools) -> None:
    """Whoever waits hears the end."""
    pool = pools.start(_HTTP)
    assert told(pool, verb="stop", wait=True)[-1] == {
        "ok": True,
        "more": False,
        "text": "the pool has stopped",
    }
    assert pool.wait() == 0


def test_an_observer_that_dies_is_followed_by_another(pools: Pools) -> None:
    """Calls go on as if nothing was, and the state can be seen again soon."""
    pool = pools.start(_HTTP)
    first = observer(pool)
    # One that is killed before it has opened its port never says so, and there would be one line, not two.
    address(pool)
    with OpenCall(pool.address, "held") as call:
        call.command()
        os.kill(first, signal.SIGKILL)
        pool.await_that(lambda: first not in [each.pid for each in pool.processes()], "has buried it")
        call.release()
        assert pool.call("hello").status is AgiStatus.SUCCESS
    second = observer(pool)
    assert second != first
    pool.await_log(r"(?s)showing the status.*showing the status")
    assert get(pool, "/healthz")[0] == 200
