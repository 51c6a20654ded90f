"""fastagi_pool.controlling: what the control socket answers, with a master that writes down its signals."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from pictures import FakePool

from fastagi_pool import controlling
from fastagi_pool.control import LONGEST_REQUEST_BYTES, ControlError, ControlLost, Verb, ask, decode, encode
from fastagi_pool.controlling import ControlServer, MasterProcess
from fastagi_pool.picture import Pictures
from fastagi_pool.scoreboard import Supervision, WorkerState

_LIMIT_S = 20.0
#: Says that it listens, then the name of each signal that comes.
_MASTER = """\
import signal, sys
orders = {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, orders)
print("listens", flush=True)
while True:
    print(signal.Signals(signal.sigwait(orders)).name, flush=True)
"""


class Master:
    """A process that stands for the master."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self.next_word() == "listens"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def next_word(self) -> str:
        """Return the next that it says."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def master() -> Iterator[Master]:
    """Run one."""
    with subprocess.Popen((sys.executable, "-Sc", _MASTER), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Master(process)
        finally:
            process.kill()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Have a folder whose path is short."""
    with tempfile.TemporaryDirectory(prefix="control-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def pool(folder: Path) -> FakePool:
    """Have a pool of two workers of generation 1, with three calls in each."""
    return FakePool(folder / "run", calls=3)


@contextmanager
def serving(pool: FakePool, master: Master) -> Iterator[ControlServer]:
    """Serve the control socket of this pool."""
    process = MasterProcess(master.pid)
    server = ControlServer(pool.runtime_dir, Pictures(pool.runtime_dir), process)
    server.start()
    try:
        yield server
    finally:
        server.close()
        process.close()


@pytest.fixture
def server(pool: FakePool, master: Master) -> Iterator[ControlServer]:
    """Serve the control socket."""
    with serving(pool, master) as made:
        yield made


def in_thread(work: Callable[[], Any]) -> Any:
    """Do something that waits while the server goes on in this thread."""
    with gevent.Timeout(_LIMIT_S):
        return gevent.get_hub().threadpool.apply(work)


def answers(pool: FakePool, **request: Any) -> list[dict[str, Any]]:
    """Ask, and return all answers."""
    return in_thread(lambda: list(ask(pool.runtime_dir / "control", request, _LIMIT_S)))  # type: ignore[no-any-return]


def only(pool: FakePool, **request: Any) -> dict[str, Any]:
    """Ask, and return the one answer."""
    (answer,) = answers(pool, **request)
    return answer


def raw(pool: FakePool, *pieces: bytes) -> bytes:
    """Send bytes to the socket, and return all that comes until it is closed."""

    def converse() -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_LIMIT_S)
            connection.connect(str(pool.runtime_dir / "control"))
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").read()

    return in_thread(converse)  # type: ignore[no-any-return]


def test_status(pool: FakePool, server: ControlServer) -> None:
    """The picture is the one that HTTP shows."""
    answer = only(pool, verb="status")
    assert (answer["ok"], answer["more"]) == (True, False)
    assert (answer["status"]["active"], len(answer["status"]["workers"])) == (6, 2)


@pytest.mark.parametrize(("verb", "key"), [("workers", "workers"), ("routes", "routes"), ("db", "databases")])
def test_parts_of_the_picture(pool: FakePool, server: ControlServer, verb: str, key: str) -> None:
    """Whoever wants one table gets that, as it stands in the picture."""
    assert only(pool, verb=verb)[key] == only(pool, verb="status")["status"][key]


def test_calls(pool: FakePool, server: ControlServer) -> None:
    """Calls in progress come the oldest first, as many as are wanted."""
    assert len(only(pool, verb="calls")["calls"]) == 6
    assert [call["callerid"] for call in only(pool, verb="calls", limit=1)["calls"]] == ["5550100002"]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({}, "the verb None is unknown; there are status, calls,"),
        ({"verb": "restart"}, "the verb 'restart' is unknown"),
        ({"verb": ["status"]}, "is unknown"),
        ({"verb": "calls", "limit": -1}, "'limit' must be a number of calls"),
        ({"verb": "calls", "limit": "all"}, "'limit' must be a number of calls"),
        ({"verb": "dump", "slot": 77}, "there is no worker 77"),
        ({"verb": "reload", "wait": "yes"}, "'wait' must be true or false"),
    ],
)
def test_what_cannot_be_answered(
    pool: FakePool, server: ControlServer, request_: dict[str, Any], error: str
) -> None:
    """A request that makes no sense is refused in words that say what would."""
    answer = only(pool, **request_)
    assert not answer["ok"]
    assert error in answer["error"]


def test_a_connection_may_ask_again_after_an_error(pool: FakePool, server: ControlServer) -> None:
    """Each line is answered by itself, in its order, however the lines are cut into pieces."""
    said = raw(pool, b'nonsense\n{"verb":', b'"workers"}\n{"verb":"db"}\n').splitlines()
    assert [decode(line)["ok"] for line in said] == [False, True, True]


def test_a_line_without_an_end(pool: FakePool, server: ControlServer) -> None:
    """Nobody fills the memory: a line that is too long is refused, and the connection closed."""
    said = raw(pool, b"x" * (LONGEST_REQUEST_BYTES + 1))
    assert "bytes at most" in decode(said)["error"]


def test_a_client_that_says_nothing(
    pool: FakePool, server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not finish a line in time is let go of, and others are served."""
    with (
        monkeypatch.context() as impatient,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
    ):
        impatient.setattr(controlling, "CLIENT_TIMEOUT_S", 0.05)
        connection.settimeout(_LIMIT_S)
        # Said before the server has a turn: later its time might be over.
        connection.connect(str(pool.runtime_dir / "control"))
        connection.sendall(b'{"verb":')
        assert in_thread(lambda: connection.recv(100)) == b""
    assert only(pool, verb="workers")["ok"]


def test_no_pool_to_be_seen(pool: FakePool, server: ControlServer) -> None:
    """Without shared memory the answer says so, for pictures and for orders that are to be followed."""
    (pool.runtime_dir / "scoreboard").unlink()
    for request in ({"verb": "status"}, {"verb": "dump"}, {"verb": "reload", "wait": True}):
        answer = only(pool, **request)
        assert not answer["ok"]
        assert "cannot read" in answer["error"]


@pytest.mark.parametrize(
    ("verb", "name"),
    [("reload", "SIGHUP"), ("upgrade", "SIGUSR2"), ("reopen", "SIGUSR1"), ("stop", "SIGTERM")],
)
def test_orders(pool: FakePool, server: ControlServer, master: Master, verb: str, name: str) -> None:
    """An order is the signal that an operator would send, and is answered at once."""
    assert only(pool, verb=verb) == {"ok": True, "more": False}
    assert master.next_word() == name


def test_every_verb_is_known(pool: FakePool, server: ControlServer) -> None:
    """What the protocol names is answered in one way or another."""
    for verb in Verb:
        assert "unknown" not in answers(pool, verb=str(verb))[-1].get("error", "")


def following(pool: FakePool, verb: str) -> tuple[gevent.Greenlet, list[dict[str, Any]]]:
    """Ask for an order to be followed; the answers are in the list as they come."""
    heard: list[dict[str, Any]] = []

    def follow() -> None:
        heard.extend(ask(pool.runtime_dir / "control", {"verb": verb, "wait": True}, _LIMIT_S))

    return gevent.spawn(in_thread, follow), heard


def test_a_reload_that_is_followed(pool: FakePool, server: ControlServer, master: Master) -> None:
    """Whoever waits is told how far it is, and at the end that the new generation serves."""
    follower, heard = following(pool, "reload")
    assert in_thread(master.next_word) == "SIGHUP"
    pool.board.supervise(Supervision(workers_wanted=2, reloads=1))
    pool.board.set_generation(2)
    pool.worker(0, WorkerState.DRAINING, 1, active=3)
    pool.worker(1, WorkerState.DRAINING, 1)
    pool.worker(2, WorkerState.READY, 2)
    follower.get(timeout=_LIMIT_S)
    assert heard[-1] == {
        "ok": True,
        "more": False,
        "text": "generation 2 serves with 1 worker, 3 calls left in 1 worker of older generations",
    }
    assert all(answer["more"] and answer["ok"] for answer in heard[:-1])
    assert server.followers == 0


def test_a_reload_that_is_refused(pool: FakePool, server: ControlServer, master: Master) -> None:
    """The last answer is no success, and holds the reason."""
    follower, heard = following(pool, "reload")
    assert in_thread(master.next_word) == "SIGHUP"
    pool.board.supervise(Supervision(workers_wanted=2, reloads=1, refused=1, error="pool.yaml:3: broken"))
    follower.get(timeout=_LIMIT_S)
    assert heard[-1] == {"ok": False, "more": False, "error": "pool.yaml:3: broken"}


def test_a_stop_that_is_followed(pool: FakePool, server: ControlServer, master: Master) -> None:
    """The end of the master is the success."""
    follower, heard = following(pool, "stop")
    assert in_thread(master.next_word) == "SIGTERM"
    master.end()
    follower.get(timeout=_LIMIT_S)
    assert heard[-1] == {"ok": True, "more": False, "text": "the pool has stopped"}


def test_an_order_to_a_master_that_is_gone(pool: FakePool, server: ControlServer, master: Master) -> None:
    """Nothing is sent to whoever has its number now."""
    master.end()
    answer = only(pool, verb="stop")
    assert not answer["ok"]
    assert "cannot reach the master" in answer["error"]


def test_a_follower_that_goes_away(pool: FakePool, server: ControlServer) -> None:
    """Nothing goes on for a client that has left."""

    def leave() -> None:
        told = ask(pool.runtime_dir / "control", {"verb": "reload", "wait": True}, _LIMIT_S)
        next(told)
        told.close()

    in_thread(leave)
    with gevent.Timeout(_LIMIT_S):
        while server.followers:
            gevent.sleep(0.01)


def test_a_server_that_ends_lets_its_followers_go(pool: FakePool, master: Master) -> None:
    """Who still waits when the status process ends hears that, instead of nothing."""
    with serving(pool, master) as server:
        follower, heard = following(pool, "reload")
        with gevent.Timeout(_LIMIT_S):
            while not heard:
                gevent.sleep(0.01)
        server.close()
    with pytest.raises(ControlLost):
        follower.get(timeout=_LIMIT_S)


@contextmanager
def stacks(path: Path, text: bytes) -> Iterator[None]:
    """Answer at this path as a worker's lookout does, once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(text)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield
        thread.join(_LIMIT_S)


def test_stacks(pool: FakePool, server: ControlServer) -> None:
    """One line for each worker: its stacks, or why there are none; one that is gone hides no other."""
    text = "worker=1 gen=1 pid=42 blocked_s=2.5\nrunning: no call\n"
    with stacks(pool.runtime_dir / "stacks" / "1", text.encode()):
        told = answers(pool, verb="dump")
    assert told[-1] == {"ok": True, "more": False}
    by_slot = {answer["slot"]: answer for answer in told[:-1]}
    assert by_slot[1] == {
        "ok": True,
        "more": True,
        "slot": 1,
        "pid": os.getpid(),
        "stacks": text,
        "blocked_s": 2.5,
    }
    assert not by_slot[0]["ok"]
    assert "cannot be asked" in by_slot[0]["error"]


def test_stacks_of_one_worker(pool: FakePool, server: ControlServer) -> None:
    """Only the worker that is named is asked."""
    with stacks(pool.runtime_dir / "stacks" / "1", b"worker=1 blocked_s=0.0\n"):
        assert [answer.get("slot") for answer in answers(pool, verb="dump", slot=1)] == [1, None]


def test_a_worker_that_does_not_tell_its_stacks(
    pool: FakePool, server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose thread cannot run either is named, and nobody waits for it for long."""
    monkeypatch.setattr(controlling, "STACKS_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(pool.runtime_dir / "stacks" / "0"))
        listener.listen()
        told, _ = answers(pool, verb="dump", slot=0)
    assert not told["ok"]
    assert "holds Python's lock" in told["error"]


def test_nobody_else_may_ask(pool: FakePool, server: ControlServer) -> None:
    """The socket is its owner's alone, whatever the process's mask."""
    assert stat.S_IMODE((pool.runtime_dir / "control").stat().st_mode) == 0o600
    assert os.umask(0o022) == 0o022


def test_an_abandoned_socket_is_replaced(pool: FakePool, master: Master) -> None:
    """What a killed predecessor left behind is in nobody's way, and nothing else is left besides."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(pool.runtime_dir / "control"))
    with serving(pool, master):
        assert only(pool, verb="workers")["ok"]
        assert [path.name for path in pool.runtime_dir.glob("control*")] == ["control"]
    assert not list(pool.runtime_dir.glob("control*"))


def test_a_successor_keeps_its_socket(pool: FakePool, master: Master) -> None:
    """Who ends while another serves already takes away nothing of the other's."""
    with serving(pool, master) as old, serving(pool, master):
        old.close()
        assert only(pool, verb="workers")["ok"]


def test_a_folder_that_does_not_let_us(pool: FakePool, master: Master) -> None:
    """A socket that cannot be made is an error of the system, and leaves nothing behind."""
    (pool.runtime_dir / "control").mkdir()
    (pool.runtime_dir / "control" / "file").touch()
    with pytest.raises(OSError, match="irectory"), serving(pool, master):
        pass
    assert [path.name for path in pool.runtime_dir.glob("control*")] == ["control"]
    shutil.rmtree(pool.runtime_dir / "control")


def test_a_deep_runtime_folder(folder: Path, master: Master) -> None:
    """A path that is too long for a socket's address works all the same."""
    pool = FakePool(folder / ("d" * 120))
    with serving(pool, master):
        assert only(pool, verb="workers")["ok"]


def test_a_master_that_is_no_more(master: Master) -> None:
    """A process that has ended cannot be got hold of; one that ends meanwhile is seen to."""
    process = MasterProcess(master.pid)
    before = process.lives
    master.end()
    assert (before, process.lives) == (True, False)
    with pytest.raises(ProcessLookupError):
        process.send(signal.SIGHUP)
    with pytest.raises(ProcessLookupError):
        MasterProcess(master.pid)
    process.close()


def test_the_socket_is_gone_with_the_server(pool: FakePool, master: Master) -> None:
    """After the end nobody is there, and whoever asks is told so."""
    with serving(pool, master):
        pass
    with pytest.raises(ControlError, match="nobody answers"):
        answers(pool, verb="status")


def test_a_request_is_any_json(pool: FakePool, server: ControlServer) -> None:
    """What the client adds and nobody knows is passed over."""
    said = raw(pool, encode({"verb": "workers", "something": [1, {"else": None}]}))
    assert decode(said)["ok"]
