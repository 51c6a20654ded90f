"""A server that shows the page with figures that a test chooses, and says what it was asked.

Laws:
    * The figures have the shapes that the real pictures have; only their values are made up.
    * It sends the page's security policy, as the real server does.
    * Loopback only, on a port that the machine chooses.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from pictures import picture, route_picture, worker_picture

from fastagi_pool.scoreboard import RESTART_REASONS
from fastagi_pool.tally import OUTCOMES
from fastagi_pool.web import POLICY

PAGE: Final = resources.files("fastagi_pool").joinpath("page/index.html").read_bytes()
_STARTED_WALL_S: Final = 1_764_000_000.0


def outcomes(**counts: int) -> dict[str, int]:
    """How many calls came to what; those that are not named to none."""
    return dict.fromkeys(OUTCOMES, 0) | counts


def route(name: str, **changes: Any) -> dict[str, Any]:
    """A route's figures: 2,000 calls that took 40 ms each."""
    figures: dict[str, Any] = {
        "active": 12,
        "calls": 2_000,
        "failed": 20,
        "outcomes": outcomes(ok=1_900, hangup=80, timeout=20),
        "slow": 3,
        "hangups": 95,
        "commands": 9_000,
        "queued_s": 2.0,
        "asterisk_s": 40.0,
        "script_s": 26.0,
        "database_s": 12.0,
        "total_s": 80.0,
    }
    return route_picture(name, **figures | changes)


def worker(slot: int, **changes: Any) -> dict[str, Any]:
    """A worker's figures: an ordinary one."""
    figures: dict[str, Any] = {
        "generation": 3,
        "pid": 4_200 + slot,
        "age_s": 7_260.0,
        "active": 6,
        "served": 1_000,
        "failed": 10,
        "rss_bytes": 61_000_000,
        "lag_s": 0.002,
    }
    return worker_picture(slot, **figures | changes)


def database(name: str, **changes: Any) -> dict[str, Any]:
    """A database's figures: up, and with room."""
    figures: dict[str, Any] = {
        "name": name,
        "size": 20,
        "connected": 8,
        "in_use": 3,
        "waiting": 0,
        "statements": 6_000,
        "seconds": 12.0,
        "failures": 0,
        "up": True,
        "down_workers": 0,
        "down_s": 0.0,
        "reason": "",
        "server": "10.0.0.5:3306",
    }
    return figures | changes


def lane(name: str, **changes: Any) -> dict[str, Any]:
    """A lane's figures: one with room."""
    figures: dict[str, Any] = {"name": name, "limit": 200, "active": 12, "queued": 0, "refused": 0}
    return figures | changes


def journal(**changes: Any) -> dict[str, Any]:
    """A journal's figures: there is nothing in it."""
    figures: dict[str, Any] = {
        "waiting": 0,
        "quarantined": 0,
        "oldest_age_s": None,
        "used_bytes": 40_960,
        "limit_bytes": 1_073_741_824,
        "databases": [{"name": "calls", "waiting": 0, "quarantined": 0}],
    }
    return figures | changes


def call(ref: str, **changes: Any) -> dict[str, Any]:
    """A call's figures: one that has waited for Asterisk for a while."""
    figures: dict[str, Any] = {
        "slot": 1,
        "pid": 4_201,
        "ref": ref,
        "route": "pin",
        "script": "pin?lang=en",
        "peer": "10.0.0.11",
        "uniqueid": "1764000000.17",
        "channel": "SIP/provider-0000001a",
        "callerid": "0049301234567",
        "state": "in Asterisk",
        "letter": "A",
        "age_s": 92.4,
        "state_s": 31.2,
        "queued_s": 0.0,
        "asterisk_s": 90.0,
        "script_s": 0.4,
        "database_s": 2.0,
        "commands": 7,
        "command": "GET DATA enter-pin 5000 6",
        "statement": "",
        "hung_up": False,
    }
    return figures | changes


def quiet_status() -> dict[str, Any]:
    """A pool of four workers at its daily work."""
    return picture(
        version="0.6.0",
        master_pid=4_200,
        generation=3,
        uptime_s=15_120.0,
        active=24,
        places=400,
        workers_wanted=4,
        listen={"queue": 0, "limit": 1_024, "most": 7},
        reload={"asked": 2, "refused": 0, "loading": False, "last_s": 3_900.0, "error": ""},
        restarts=dict.fromkeys(RESTART_REASONS, 0) | {"calls": 12, "memory": 1, "reload": 8},
        workers=[worker(slot) for slot in range(4)],
        routes=[route("pin"), route("lookup", asterisk_s=4.0, total_s=44.0)],
        peers=[{"peer": "10.0.0.11", "active": 24, "calls": 4_000, "failed": 40}],
        databases=[database("calls")],
        lanes=[lane("records"), lane("default")],
        journal=journal(),
    )


def steady_samples(rate: float = 12.0, failed: float = 0.0) -> list[dict[str, Any]]:
    """Five minutes in which every second is like the others."""
    return [
        {
            "t": _STARTED_WALL_S + second,
            "rate": rate,
            "active": 24,
            "queued": 0,
            "failed": failed,
            "p50_ms": 5.0,
            "p95_ms": 42.0,
            "p99_ms": 310.0,
        }
        for second in range(300)
    ]


class FiguresServer:
    """Figures that a test sets, served over HTTP with the page.

    Attributes:
        status: What ``/status.json`` tells.
        calls: What ``/calls.json`` tells.
        samples: What ``/history.json`` tells.
        error: If not empty, all three are answered by 503 and this.
        asked: Paths with their queries, in the order of the requests.
    """

    def __init__(self) -> None:
        self.status = quiet_status()
        self.calls = [call("6b016a65-9b7-1")]
        self.samples = steady_samples()
        self.error = ""
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._open = True
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self._server.server_port}/"

    def pass_second(self, **changes: Any) -> None:
        """Let the pool live on for a second.

        Args:
            **changes: What differs in the sample of that second.
        """
        self.status = {**self.status, "uptime_s": self.status["uptime_s"] + 1}
        self.samples = [*self.samples, {**self.samples[-1], "t": self.samples[-1]["t"] + 1, **changes}]

    def close(self) -> None:
        """Answer no longer: the port is closed."""
        if self._open:
            self._open = False
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def _answer(self, target: str) -> tuple[int, str, bytes]:
        self.asked.append(target)
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        if path == "/":
            return 200, "text/html; charset=utf-8", PAGE
        if self.error:
            return 503, "application/json", json.dumps({"error": self.error}).encode()
        after = float(query.get("after", ["0"])[0])
        answers: dict[str, Any] = {
            "/status.json": self.status,
            "/calls.json": {"calls": self.calls},
            "/history.json": {
                "step_s": 1,
                "samples": [found for found in self.samples if found["t"] > after],
            },
        }
        if path not in answers:
            return 404, "text/plain", b"not found"
        return 200, "application/json", json.dumps(answers[path]).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, kind, body = server._answer(self.path)
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Security-Policy", POLICY)
                self.send_header("X-Content-Type-Options", "nosniff")
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Keep the tests' output clean."""

        return Handler
