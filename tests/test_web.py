"""fastagi_pool.web: what is answered to whom, asked as a WSGI server asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
from pictures import FakePool, picture, record, worker_picture

from fastagi_pool.picture import Pictures
from fastagi_pool.scoreboard import Supervision, WorkerState
from fastagi_pool.web import WebApplication, health, is_own_name, readiness

PAGE = b"<!doctype html><title>pool</title>"


class Reply:
    """What came back.

    Attributes:
        status: The code.
        headers: By name in lower case.
        body: All of it.
    """

    def __init__(self, application: WebApplication, path: str, **environ: str) -> None:
        """Ask."""
        path, _, query = path.partition("?")
        asked: dict[str, Any] = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "4578",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": "127.0.0.1:4578",
            **environ,
        }
        self.status, self.headers = 0, dict[str, str]()

        def start(status: str, headers: list[tuple[str, str]]) -> None:
            self.status = int(status.split()[0])
            self.headers = {name.lower(): value for name, value in headers}

        self.body = b"".join(application(asked, start))

    @property
    def content(self) -> Any:
        """The body read as JSON."""
        return json.loads(self.body)


@pytest.fixture
def pool(tmp_path: Path) -> FakePool:
    """Have a pool of two workers with three calls in each."""
    return FakePool(tmp_path, calls=3)


@pytest.fixture
def web(pool: FakePool) -> WebApplication:
    """Show that pool to everybody."""
    return WebApplication(Pictures(pool.runtime_dir), PAGE, ())


@pytest.fixture
def web_of_nothing(tmp_path: Path) -> WebApplication:
    """Show a folder without a pool."""
    return WebApplication(Pictures(tmp_path / "none"), PAGE, ())


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/healthz", "application/json; charset=utf-8"),
        ("/readyz", "application/json; charset=utf-8"),
        ("/status.json", "application/json; charset=utf-8"),
        ("/calls.json?limit=2", "application/json; charset=utf-8"),
        ("/history.json", "application/json; charset=utf-8"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_every_path(web: WebApplication, path: str, content_type: str) -> None:
    """Each is there, says what it is, is never taken from a store, and is what it says."""
    reply = Reply(web, path)
    assert (reply.status, reply.headers["content-type"]) == (200, content_type)
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert int(reply.headers["content-length"]) == len(reply.body) > 0
    head = Reply(web, path, REQUEST_METHOD="HEAD")
    assert (head.status, head.headers["content-type"], head.body) == (200, content_type, b"")


def test_it_is_wsgi(web: WebApplication) -> None:
    """Any WSGI server can serve it: the standard library's validator has nothing to say."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/healthz",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "4578",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": open("/dev/null", "rb"),  # noqa: PTH123, SIM115
        "wsgi.errors": open("/dev/null", "w"),  # noqa: PTH123, SIM115
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    with environ["wsgi.input"], environ["wsgi.errors"]:
        answer = validator(web)(environ, lambda *_: lambda _: None)
        assert b"".join(answer)
        answer.close()  # type: ignore[attr-defined]


def test_the_page(web: WebApplication) -> None:
    """The page comes with a policy under which it can load and reach nothing but where it came from."""
    reply = Reply(web, "/")
    assert reply.body == PAGE
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy


def test_status(web: WebApplication) -> None:
    """The picture tells the workers and their calls in progress."""
    status = Reply(web, "/status.json").content
    assert (status["running"], status["active"]) == (True, 6)
    assert [worker["slot"] for worker in status["workers"]] == [0, 1]


@pytest.mark.parametrize(
    ("query", "calls"), [("?limit=2", 2), ("?limit=0", 0), ("", 6), ("?limit=-1", 6), ("?limit=nan", 6)]
)
def test_calls(web: WebApplication, query: str, calls: int) -> None:
    """Calls are told up to the limit, the oldest first; a limit that is no number is none."""
    told = Reply(web, f"/calls.json{query}").content["calls"]
    assert len(told) == calls
    assert [call["age_s"] for call in told] == sorted((call["age_s"] for call in told), reverse=True)


def test_callers_are_nowhere_but_in_the_calls(web: WebApplication) -> None:
    """What is not ``/calls.json`` can be let out: it holds no caller's number."""
    # Whole numbers: a part of one may also be a part of a time.
    numbers = [b"5550100000", b"5550100001", b"5550100002"]
    assert all(number in Reply(web, "/calls.json").body for number in numbers)
    for path in ("/status.json", "/metrics", "/history.json", "/healthz", "/readyz", "/"):
        assert not any(number in Reply(web, path).body for number in numbers)


def test_history(pool: FakePool) -> None:
    """Samples are there once the pool has been looked at twice; those known already are left out."""
    times = iter([10.0, 11.0])
    pictures = Pictures(pool.runtime_dir, lambda: next(times), lambda: 1000.0)
    web = WebApplication(pictures, PAGE, ())
    pictures.remember()
    pool.tallies[0].write(record(), 0.0)
    pictures.remember()
    content = Reply(web, "/history.json").content
    assert content["step_s"] == 1
    assert [(sample["t"], sample["rate"], sample["active"]) for sample in content["samples"]] == [
        (1000.0, 1.0, 6)
    ]
    assert Reply(web, "/history.json?after=1000.0").content["samples"] == []


def test_metrics_by_what_is_accepted(web: WebApplication) -> None:
    """Prometheus gets the format that it asks for, also right after another one was written."""
    for _ in range(2):
        assert Reply(web, "/metrics").headers["content-type"].startswith("text/plain")
        accept = {"HTTP_ACCEPT": "application/openmetrics-text;version=1.0.0"}
        assert Reply(web, "/metrics", **accept).headers["content-type"].startswith("application/openmetrics")


def test_what_is_written_once_is_written_anew(pool: FakePool) -> None:
    """Watchers of one moment share a text; the next moment has its own."""
    times = iter([10.0, 10.1, 20.0, 20.1])
    web = WebApplication(Pictures(pool.runtime_dir, lambda: next(times)), PAGE, ())
    before = Reply(web, "/status.json").content["generation"], Reply(web, "/metrics").body
    pool.board.set_generation(7)
    after = Reply(web, "/status.json").content["generation"], Reply(web, "/metrics").body
    assert (before[0], after[0]) == (1, 7)
    assert b"fastagi_generation 1.0" in before[1]
    assert b"fastagi_generation 7.0" in after[1]


def test_nothing_there(web: WebApplication) -> None:
    """Who asks for something else hears what there is."""
    reply = Reply(web, "/etc/passwd")
    assert reply.status == 404
    assert b"/status.json" in reply.body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_one_can_only_look(web: WebApplication, method: str) -> None:
    """Nothing can be changed, and a body that is sent is not read."""
    reply = Reply(web, "/status.json", REQUEST_METHOD=method)
    assert reply.status == 405
    assert (reply.headers["allow"], reply.headers["connection"]) == ("GET, HEAD", "close")


@pytest.mark.parametrize(
    ("peer", "status"),
    [
        ("10.1.2.3", 200),
        ("::ffff:10.1.2.3", 200),
        ("2001:db8::7", 200),
        ("11.1.2.3", 403),
        ("127.0.0.1", 403),
        ("", 403),
    ],
)
def test_who_may_look(pool: FakePool, peer: str, status: int) -> None:
    """Only the networks that are named may look, in whichever way their addresses are written."""
    web = WebApplication(Pictures(pool.runtime_dir), PAGE, ("10.0.0.0/8", "2001:db8::/64"))
    reply = Reply(web, "/calls.json", REMOTE_ADDR=peer, HTTP_HOST="pool.example.net")
    assert reply.status == status
    assert (b"55501" in reply.body) == (status == 200)


def test_a_foreign_name(web: WebApplication) -> None:
    """A stranger's name that leads to this machine opens nothing in the browser of somebody who may look."""
    reply = Reply(web, "/calls.json", HTTP_HOST="evil.example.net:4578")
    assert reply.status == 403
    assert b"http.allow" in reply.body


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:4578", True),
        ("[::1]:4578", True),
        ("[::1]", True),
        ("localhost:4578", True),
        ("LOCALHOST", True),
        ("192.0.2.1", True),
        ("", True),
        ("localhost.example.net", False),
        ("127.0.0.1.example.net:80", False),
    ],
)
def test_own_names(host: str, own: bool) -> None:
    """Addresses and the machine itself are own names, and nothing that looks like them is."""
    assert is_own_name(host) is own


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/status.json", "/calls.json"])
def test_no_pool(web_of_nothing: WebApplication, path: str) -> None:
    """Where no pool is, the answer says so, and which folder was looked at."""
    reply = Reply(web_of_nothing, path)
    assert reply.status == 503
    assert "none" in reply.content["error"]


def test_no_pool_for_prometheus(web_of_nothing: WebApplication) -> None:
    """Who collects hears that there is no pool, and not an error of collecting."""
    reply = Reply(web_of_nothing, "/metrics")
    assert reply.status == 200
    assert b"fastagi_up 0.0" in reply.body


def test_a_pool_that_stops_is_not_ready(pool: FakePool, web: WebApplication) -> None:
    """A balancer sends no more calls to a pool that ends, while it is healthy to the last."""
    pool.board.supervise(Supervision(workers_wanted=2, stopping=True))
    assert Reply(web, "/healthz").status == 200
    assert Reply(web, "/readyz").content == {"ok": False, "error": "the pool is stopping"}


def test_a_pool_whose_workers_start_is_healthy_but_not_ready(tmp_path: Path) -> None:
    """A pool that has just begun is not to be restarted for it, and gets no calls yet."""
    pool = FakePool(tmp_path, workers=0)
    pool.worker(0, WorkerState.STARTING, 1)
    web = WebApplication(Pictures(tmp_path), PAGE, ())
    assert Reply(web, "/healthz").status == 200
    assert Reply(web, "/readyz").status == 503


STUCK = worker_picture(stuck=True)
FULL = worker_picture(active=100)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (picture(), ""),
        (picture(running=False), "the master (pid 4999) is dead"),
        (picture(workers=[]), "no worker serves"),
        (picture(workers=[worker_picture(state="draining")]), "no worker serves"),
        (picture(workers=[STUCK]), "every worker is stuck"),
        (picture(workers=[STUCK, worker_picture(1)]), ""),
        (picture(workers=[FULL], queued=9), ""),
    ],
)
def test_health(status: dict[str, Any], error: str) -> None:
    """The pool is healthy as long as one worker can serve; else the first thing to know is said."""
    assert health(status).get("error", "") == error


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (picture(), ""),
        (picture(running=False), "the master (pid 4999) is dead"),
        (picture(workers=[FULL]), ""),
        (picture(workers=[FULL], queued=9), "all 100 places are taken and 9 calls wait"),
        (picture(workers=[FULL, worker_picture(1)], queued=9), ""),
        (
            picture(listen={"queue": 128, "limit": 128, "most": 128}),
            "the listening queue is full (128 connections)",
        ),
        (picture(listen={"queue": 0, "limit": 0, "most": 0}), ""),
    ],
)
def test_readiness(status: dict[str, Any], error: str) -> None:
    """The pool is ready while a call that comes now is served, or waits where nobody waits yet."""
    assert readiness(status).get("error", "") == error
