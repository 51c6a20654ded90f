"""The service manager: what systemd hears of a pool in all its states, and the sockets that it gives."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from service import PoolService, open_files

from fastagi_pool.testing import AgiStatus
from fastagi_pool.version import VERSION

from .conftest import Pools, route
from .opencall import OpenCall

_ROUTES: Final = [route("hello", "pool_handlers:hello")]
#: Longest time until it hears what it waits for: two programs are started and loaded.
_HEAR_S: Final = 60.0
#: Opens a socket as systemd does, and becomes the command behind it. Source: sd_listen_fds(3).
_ACTIVATION: Final = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
if listener.fileno() != 3:
    os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[1], sys.argv[1:])
"""


class ServiceManager:
    """A datagram socket in the place of systemd's.

    Attributes:
        heard: All messages so far, each as its variables.
    """

    def __init__(self, path: Path) -> None:
        self.heard: list[dict[str, str]] = []
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def await_message(self, wanted: Callable[[dict[str, str]], object]) -> dict[str, str]:
        """Wait for a message that was not waited for before.

        Raises:
            TimeoutError: It does not come within a minute.
        """
        until_s = time.monotonic() + _HEAR_S
        while True:
            self._socket.settimeout(max(0.01, until_s - time.monotonic()))
            lines = self._socket.recv(65536).decode().splitlines()
            message = dict(line.split("=", 1) for line in lines)
            self.heard.append(message)
            if wanted(message):
                return message

    def await_ready(self) -> dict[str, str]:
        """Wait until the pool serves, or says so again."""
        return self.await_message(lambda message: "READY" in message)

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


@pytest.fixture
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceManager]:
    """Give a service manager that listens."""
    manager = ServiceManager(tmp_path_factory.mktemp("manager") / "notify")
    yield manager
    manager.close()


def start(pools: Pools, manager: ServiceManager, **environment: str) -> PoolService:
    """Start a pool of this service manager."""
    pool = pools.make({"workers": 1}, routes=_ROUTES)
    pool.start(NOTIFY_SOCKET=str(manager.path), **environment)
    return pool


def test_start_and_stop(pools: Pools, manager: ServiceManager) -> None:
    """It hears who the master is when the pool serves, how it fares, and how long its end may take."""
    pool = start(pools, manager)
    ready = manager.await_ready()
    assert ready == {"READY": "1", "MAINPID": str(pool.pid), "STATUS": f"listening on {pool.address}"}
    manager.await_message(lambda message: message.get("STATUS", "").startswith("1 of 1 workers serve"))
    assert pool.stop() == 0
    stopping = manager.await_message(lambda message: "STOPPING" in message)
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) == 34_000_000
    assert stopping["STATUS"] == "stopping; 0 calls in progress"
    assert [message for message in manager.heard if "READY" in message] == [ready]


def test_reload(pools: Pools, manager: ServiceManager) -> None:
    """It hears the beginning of a reload, with the moment, and its end when new workers serve."""
    pool = start(pools, manager)
    manager.await_ready()
    before_us = time.monotonic_ns() // 1000
    pool.reload()
    reloading = manager.await_message(lambda message: "RELOADING" in message)
    assert before_us <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert manager.await_ready()["STATUS"] == "reloaded"
    assert 2 in {each.generation for each in pool.serving()}


@pytest.mark.parametrize("broken", ["nonsense: 1\n", "workers: [\n"])
def test_refused_reload(broken: str, pools: Pools, manager: ServiceManager) -> None:
    """A reload that is refused ends for the service manager too: the service is ready, as it was."""
    pool = start(pools, manager)
    manager.await_ready()
    pool.config_path.write_text(broken)
    pool.reload()
    manager.await_message(lambda message: "RELOADING" in message)
    assert manager.await_ready()["STATUS"] == "a reload was refused, nothing changed"
    assert pool.call("hello").status is AgiStatus.SUCCESS


def test_reload_whose_workers_do_not_start(pools: Pools, manager: ServiceManager) -> None:
    """A generation that cannot serve ends the reload as well."""
    pool = pools.make({"workers": 1}, routes=[route("late", "late:late")])
    code = pool.folder / "code" / "late.py"
    code.write_text("def late(call, context):\n    call.noop('late')\n")
    pool.start(NOTIFY_SOCKET=str(manager.path))
    manager.await_ready()
    code.write_text(code.read_text() + "\ndef setup(context):\n    raise ValueError('no')\n")
    pool.reload()
    manager.await_message(lambda message: "RELOADING" in message)
    assert manager.await_ready()["STATUS"] == "a reload was refused, nothing changed"


def test_signs_of_life(pools: Pools, manager: ServiceManager) -> None:
    """The watchdog gets its signs of life, from the master and nobody else."""
    start(pools, manager, WATCHDOG_USEC="1000000")
    for _ in range(3):
        manager.await_message(lambda message: "WATCHDOG" in message)


def test_upgrade(pools: Pools, manager: ServiceManager) -> None:
    """An upgrade is a reload of the same main process, and signs of life go on after it."""
    pool = start(pools, manager, WATCHDOG_USEC="1000000")
    manager.await_ready()
    pool.signal(signal.SIGUSR2)
    manager.await_message(lambda message: "RELOADING" in message)
    assert manager.await_ready() == {"READY": "1", "MAINPID": str(pool.pid), "STATUS": "reloaded"}
    assert f"upgraded: fastagi-pool {VERSION} has taken over" in pool.logged()
    manager.await_message(lambda message: "WATCHDOG" in message)
    pool.terminate()
    manager.await_message(lambda message: "STOPPING" in message)
    assert pool.wait() == 0


def test_sockets_of_systemd_over_an_upgrade(pools: Pools) -> None:
    """The socket that systemd opened is served after an upgrade, and not taken a second time."""
    pool = pools.make({"listen": ["systemd"], "workers": 1}, routes=_ROUTES)
    pool.start(sys.executable, "-c", _ACTIVATION)
    before = copies(pool)
    for generation in (2, 3):
        pool.signal(signal.SIGUSR2)
        await_generation(pool, generation)
        with OpenCall(pool.address, "hello") as call:
            assert call.end() is AgiStatus.SUCCESS
        assert copies(pool) == before
    assert pool.stop() == 0


def await_generation(pool: PoolService, generation: int) -> None:
    """Wait until the only worker that serves is of this generation."""

    def serves() -> bool:
        return [each.generation for each in pool.serving()] == [generation]

    pool.await_that(serves, f"serves with generation {generation}", _HEAR_S)


def copies(pool: PoolService) -> int:
    """Count the descriptors by which the master holds the socket that it listens on. Source: proc(5)."""
    port = f":{int(pool.address.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = [row[9] for row in rows if row[1].endswith(port) and row[3] == "0A"]
    return open_files(pool.pid).count(f"socket:[{inode}]")
