"""fastagi_pool.observer: the process itself, with shared memory that no pool writes."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from pictures import FakePool

from fastagi_pool.control import ask
from fastagi_pool.scoreboard import Supervision, WorkerState
from fastagi_pool.zygote import MASTER_SIGNALS

_LIMIT_S: Final = 20.0
_PROGRAM: Final = """\
import json, sys
from gevent import monkey
monkey.patch_all(os=False, signal=False)
from fastagi_pool import observer
from fastagi_pool.keeping import ObserverOrder
order, lifeline, changes = json.loads(sys.argv[1])
for name, value in changes.items():
    setattr(observer, name, value)
sys.exit(observer.run_observer(ObserverOrder(**order), lifeline))
"""


class Observing:
    """An observer in a process of its own; we are its master."""

    def __init__(self, pool: FakePool, port: int = 0, host: str = "127.0.0.1", **changes: Any) -> None:
        """Start it.

        Args:
            pool: What it looks at.
            port: Where it shows it; 0 for any.
            host: The address; empty for nowhere.
            changes: Constants of the module that are otherwise, to save time.
        """
        self.log_path = pool.runtime_dir / "log"
        self.control = pool.runtime_dir / "control"
        self._reading, self.lifeline = os.pipe()
        order = {
            "runtime_dir": str(pool.runtime_dir),
            "master_pid": os.getpid(),
            "host": host,
            "port": port,
            "log_file": str(self.log_path),
        }
        self.process = subprocess.Popen(
            (sys.executable, "-c", _PROGRAM, json.dumps([order, self._reading, changes])),
            pass_fds=(self._reading,),
        )

    def await_log(self, pattern: str) -> re.Match[str]:
        """Wait until the log holds this."""
        found: re.Match[str] = await_that(lambda: re.search(pattern, self.log), f"log {pattern!r}")
        return found

    def await_control(self) -> None:
        """Wait until the control socket is served."""
        await_that(self.control.exists, "control socket")

    @property
    def answers_at_its_socket(self) -> bool:
        """Whether it says who the workers are."""
        (answer,) = ask(self.control, {"verb": "workers"}, _LIMIT_S)
        return bool(answer["ok"])

    @property
    def log(self) -> str:
        """All it has logged."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def address(self) -> tuple[str, int]:
        """Where it shows the status, as soon as it does."""
        found = self.await_log(r"showing the status on http://(.+):(\d+)/")
        return found[1], int(found[2])

    def get(self, path: str) -> tuple[int, bytes]:
        """Ask over HTTP."""
        connection = http.client.HTTPConnection(*self.address, timeout=_LIMIT_S)
        connection.request("GET", path)
        answer = connection.getresponse()
        try:
            return answer.status, answer.read()
        finally:
            connection.close()

    def wait(self) -> int:
        """Wait for its end."""
        return self.process.wait(_LIMIT_S)

    def close(self) -> None:
        """End it by force and let go of it."""
        self.process.kill()
        self.process.wait()
        os.close(self._reading)
        if self.lifeline >= 0:
            os.close(self.lifeline)


def await_that(look: Callable[[], Any], what: str) -> Any:
    """Look until there is something to be seen."""
    deadline_s = time.monotonic() + _LIMIT_S
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        time.sleep(0.01)


@pytest.fixture
def pool() -> Iterator[FakePool]:
    """Have a pool of two workers with three calls in each, in a folder whose path is short."""
    with tempfile.TemporaryDirectory(prefix="observer-", dir="/tmp") as name:
        yield FakePool(Path(name), calls=3)


@pytest.fixture
def observe(pool: FakePool) -> Iterator[Callable[..., Observing]]:
    """Start observers of that pool."""
    started: list[Observing] = []

    def start(**settings: Any) -> Observing:
        started.append(Observing(pool, **settings))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_everything_is_served(observe: Callable[..., Observing]) -> None:
    """The page, the figures and the control socket are there, and the log says where."""
    observing = observe()
    status, page = observing.get("/")
    assert (status, page[:15].lower()) == (200, b"<!doctype html>")
    assert observing.get("/healthz")[0] == 200
    assert b"fastagi_up 1.0" in observing.get("/metrics")[1]
    (answer,) = ask(observing.control, {"verb": "status"}, _LIMIT_S)
    assert answer["status"]["active"] == 6
    title = Path(f"/proc/{observing.process.pid}/cmdline").read_bytes()
    assert title.startswith(b"fastagi-pool: observer")


def test_history_is_kept_without_being_asked(observe: Callable[..., Observing]) -> None:
    """Whoever opens the page sees what has been before."""
    observing = observe(STEP_S=0.01)
    await_that(lambda: json.loads(observing.get("/history.json")[1])["samples"], "samples")


def test_it_ends_when_told(observe: Callable[..., Observing]) -> None:
    """SIGTERM ends it well, and its socket is gone."""
    observing = observe()
    observing.await_control()
    observing.address  # noqa: B018  # It is up.
    observing.process.terminate()
    assert observing.wait() == 0
    assert not observing.control.exists()


def test_it_ends_with_its_master(observe: Callable[..., Observing]) -> None:
    """The lifeline's end is the observer's."""
    observing = observe()
    observing.await_control()
    os.close(observing.lifeline)
    observing.lifeline = -1
    assert observing.wait() == 0


def test_signals_that_are_the_masters(observe: Callable[..., Observing]) -> None:
    """What an operator sends to the whole group, but the end, does not touch it."""
    observing = observe()
    observing.await_control()
    for number in MASTER_SIGNALS:
        if number != signal.SIGTERM:
            observing.process.send_signal(number)
    assert observing.answers_at_its_socket


def test_a_rotated_log_is_reopened(observe: Callable[..., Observing]) -> None:
    """After SIGUSR1 what it says goes into the new file."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        observing = observe(port=other.getsockname()[1], PATIENCE_S=0, RETRY_S=0.02)
        observing.await_log("cannot show the status")
        observing.await_control()
        observing.log_path.rename(observing.log_path.with_suffix(".old"))
        observing.process.send_signal(signal.SIGUSR1)
        await_that(observing.log_path.exists, "the new log")
    assert observing.address


def test_a_port_in_use(observe: Callable[..., Observing]) -> None:
    """It is said once, with what to change; the control socket goes on; the port is taken when it is free."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        observing = observe(port=port, PATIENCE_S=0, RETRY_S=0.02)
        observing.await_log(
            rf"cannot show the status on 127\.0\.0\.1:{port}: in use .*change http\.listen; trying again"
        )
        observing.await_control()
        for _ in range(3):
            assert observing.answers_at_its_socket
    assert observing.address == ("127.0.0.1", port)
    assert observing.log.count("cannot show") == 1


def test_no_http(observe: Callable[..., Observing]) -> None:
    """Where nothing is to be shown over HTTP, the control socket is there all the same."""
    observing = observe(host="")
    observing.await_control()
    assert observing.answers_at_its_socket
    assert "showing" not in observing.log


def serves(observing: Observing) -> bool:
    """Whether it answers; where it gives little time for that, a busy machine may need more than one try."""
    try:
        return observing.get("/healthz")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_a_client_that_does_not_finish_asking(observe: Callable[..., Observing]) -> None:
    """Its connection is closed in time, though it is the only one that there may be; others are served."""
    observing = observe(REQUEST_TIMEOUT_S=0.1, MOST_CONNECTIONS=1)
    with socket.create_connection(observing.address, timeout=_LIMIT_S) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127")
        assert slow.recv(100) == b""
    await_that(lambda: serves(observing), "an answer")


def test_a_client_that_does_not_read(observe: Callable[..., Observing]) -> None:
    """An answer that nobody takes keeps nobody else from being served, and is no error of ours."""
    observing = observe(REQUEST_TIMEOUT_S=0.1, MOST_CONNECTIONS=1)
    with socket.socket() as slow:
        slow.settimeout(_LIMIT_S)
        # Less than one answer fits into what lies between us.
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(observing.address)
        slow.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 200)
        await_that(lambda: serves(observing), "an answer")
    assert "Traceback" not in observing.log


def test_what_strangers_send_is_not_logged(observe: Callable[..., Observing]) -> None:
    """A port scanner fills no log, and gets the answer that HTTP has for it."""
    observing = observe()
    lines = observing.address and observing.log.count("\n")
    with socket.create_connection(observing.address, timeout=_LIMIT_S) as stranger:
        stranger.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b"400" in stranger.recv(1000)
    assert observing.log.count("\n") == lines


def test_told_to_end_while_somebody_follows_a_reload(
    pool: FakePool, observe: Callable[..., Observing]
) -> None:
    """A reload may replace the observer: who follows it hears the end of it first."""
    # We are the master, and get its signal.
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        observing = observe()
        observing.await_control()
        told = ask(observing.control, {"verb": "reload", "wait": True}, _LIMIT_S)
        assert next(told)["text"] == "a new generation is loading"
    finally:
        signal.signal(signal.SIGHUP, previous)
    observing.process.terminate()
    pool.board.supervise(Supervision(workers_wanted=2, reloads=1))
    pool.board.set_generation(2)
    for slot in (0, 1):
        pool.worker(slot, WorkerState.READY, 2)
    assert list(told)[-1]["text"] == "generation 2 serves with 2 workers"
    assert observing.wait() == 0


def test_told_to_end_while_the_pool_stops(pool: FakePool, observe: Callable[..., Observing]) -> None:
    """The master ends us last and waits for it: who waits for the end of the pool hears that it has come."""
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        observing = observe()
        observing.await_control()
        told = ask(observing.control, {"verb": "stop", "wait": True}, _LIMIT_S)
        assert next(told)["text"].startswith("stopping")
    finally:
        signal.signal(signal.SIGTERM, previous)
    pool.board.supervise(Supervision(workers_wanted=2, stopping=True))
    observing.process.terminate()
    assert list(told)[-1] == {"ok": True, "more": False, "text": "the pool has stopped"}
    assert observing.wait() == 0
