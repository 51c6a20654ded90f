"""Notify: what the service manager is told, in systemd's protocol.

Laws:
    * It never waits and never raises: a service manager that does not listen is no reason to stumble.
    * Without a service manager everything here does nothing.
    * No clock and no environment is read: both are given.

Source: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

_MICROSECONDS: Final = 1_000_000
#: As sd_watchdog_enabled(3) recommends: a sign of life at half of the time.
_PART: Final = 0.5


class Notifier:
    """Tells the service manager how the pool fares.

    Attributes:
        watchdog_s: How often a sign of life is due; 0 if nobody expects any.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        """Prepare; nothing is opened.

        Args:
            address: A path, or a name that begins with ``@``, of a datagram socket; empty for nobody.
            watchdog_s: How often a sign of life is due; 0 for never.
        """
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = watchdog_s if address else 0.0
        self._due_s = 0.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Notifier:
        """Find the service manager that started this process, if any did."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        return cls(address, _watchdog_s(environment, os.getpid()))

    def __bool__(self) -> bool:
        return bool(self._address)

    def ready(self, pid: int, text: str) -> None:
        """The pool serves, also again after a reload; ``pid`` is its master's, ``text`` says how it fares."""
        self._tell("READY=1", f"MAINPID={pid}", _status(text))

    def status(self, text: str) -> None:
        """Say in one line how the pool fares; ``systemctl status`` shows it."""
        self._tell(_status(text))

    def reloading(self, now_s: float, text: str) -> None:
        """A reload begins; :meth:`ready` says that it is over, whether it was refused or not.

        Args:
            now_s: Monotonic time.
            text: What is being done.
        """
        self._tell("RELOADING=1", f"MONOTONIC_USEC={int(now_s * _MICROSECONDS)}", _status(text))

    def stopping(self, longest_s: float, text: str) -> None:
        """The pool ends.

        Args:
            longest_s: For how long that may last. The unit's own time-out is extended to it, because the unit
                may be older than the configuration.
            text: Whom the end waits for.
        """
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(longest_s * _MICROSECONDS)}", _status(text))

    def starting(self, longest_s: float, text: str) -> None:
        """The pool still starts, and may take so much longer."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(longest_s * _MICROSECONDS)}", _status(text))

    def give_sign_of_life(self, now_s: float) -> None:
        """Give the watchdog a sign of life if one is due; call it as often as you like."""
        if self.watchdog_s and now_s >= self._due_s:
            self._due_s = now_s + self.watchdog_s
            self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as mouth:
                mouth.setblocking(False)
                mouth.sendto("\n".join(lines).encode(), self._address)
        except (OSError, ValueError):
            pass  # It does not listen, or its queue is full: nothing that the pool could do about it.


def _status(text: str) -> str:
    """A status is one line: the next one would be a message of its own."""
    return f"STATUS={' '.join(text.split())}"


def _watchdog_s(environment: Mapping[str, str], pid: int) -> float:
    """Return how often a sign of life is due from this process; 0 for never."""
    period, meant = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(pid))
    if not period.isdecimal() or meant != str(pid):
        return 0.0
    return int(period) / _MICROSECONDS * _PART
