"""fastagi_pool.notify: a real datagram socket plays the service manager."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastagi_pool.notify import Notifier


class ServiceManager:
    """Hears what it is told.

    Attributes:
        address: What stands in NOTIFY_SOCKET.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """Return the messages since the last look."""
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return messages

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    """A service manager that listens, at both kinds of addresses."""
    abstract = f"@fastagi-pool-test-{os.getpid()}"
    manager = ServiceManager(abstract if request.param == "abstract" else str(tmp_path / "notify"))
    yield manager
    manager.close()


def test_life_of_a_pool(manager: ServiceManager) -> None:
    """Every message is what sd_notify(3) defines, in one datagram each."""
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address})
    assert notifier
    notifier.starting(60.0, "generation 1 is loading")
    notifier.ready(42, "2 workers serve")
    notifier.status("3 calls\nin progress")
    notifier.reloading(12.5, "generation 2 is loading")
    notifier.stopping(45.0, "3 calls are left")
    assert manager.heard() == [
        "EXTEND_TIMEOUT_USEC=60000000\nSTATUS=generation 1 is loading",
        "READY=1\nMAINPID=42\nSTATUS=2 workers serve",
        "STATUS=3 calls in progress",
        "RELOADING=1\nMONOTONIC_USEC=12500000\nSTATUS=generation 2 is loading",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=45000000\nSTATUS=3 calls are left",
    ]


def test_signs_of_life_come_at_half_of_the_time(manager: ServiceManager) -> None:
    """The watchdog is fed twice in its period, however often the loop turns."""
    environment = {
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    notifier = Notifier.from_environment(environment)
    assert notifier.watchdog_s == 15.0
    for now_s in (100.0, 100.25, 114.75, 115.0, 129.9, 130.0):
        notifier.give_sign_of_life(now_s)
    assert manager.heard() == ["WATCHDOG=1"] * 3


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
    ],
)
def test_no_watchdog_no_sign_of_life(manager: ServiceManager, watchdog: dict[str, str]) -> None:
    """A watchdog that is off, or another process's, is not fed."""
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address, **watchdog})
    notifier.give_sign_of_life(100.0)
    assert notifier.watchdog_s == 0
    assert manager.heard() == []


def test_full_queue_costs_no_time_and_no_error(manager: ServiceManager) -> None:
    """A service manager that does not read can neither stop nor end the master."""
    notifier = Notifier(manager.address)
    for _ in range(2000):
        notifier.status("x" * 200)
    assert 0 < len(manager.heard()) < 2000


@pytest.mark.parametrize("address", ["/nonexistent/notify", "@nobody-listens-here", "/" + "x" * 300])
def test_nobody_listens(address: str) -> None:
    """A service manager that is gone, or an address that is none, is no error."""
    Notifier.from_environment({"NOTIFY_SOCKET": address}).ready(1, "")


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative"])
def test_no_service_manager(address: str) -> None:
    """Without a usable address there is no service manager, and no watchdog either."""
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    assert not notifier
    assert notifier.watchdog_s == 0
    notifier.ready(1, "")
