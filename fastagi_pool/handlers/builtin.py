"""Built-in scripts: a dialplan asks whether the pool is there and how busy it is, before it sends a call.

Laws:
    * They need no database and no other process, so they answer whenever a worker answers at all.
    * They only set variables, which Asterisk permits on a channel that hung up too.

``agi://host/_ping`` sets nothing: that it ends as a success, which ``AGISTATUS`` says, is the answer.
``agi://host/_status`` sets FAGI_LOAD and its companions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.version import VERSION

PING_SCRIPT: Final = "_ping"
STATUS_SCRIPT: Final = "_status"


@dataclass(frozen=True, slots=True)
class Load:
    """What the whole pool has to do at one moment.

    Attributes:
        active: Calls that are served, the one that asks among them.
        queued: Calls that wait for a place, besides.
        places: Calls that all workers which accept can serve at once.
        workers: Workers that accept calls.
        uptime_s: Since the pool was started.
    """

    active: int
    queued: int
    places: int
    workers: int
    uptime_s: float

    @property
    def percent(self) -> int:
        """How much of the places is taken, 0 to 100; 100 only if none is left."""
        return min(100, self.active * 100 // self.places) if self.places > 0 else 100


def ping(call: Call, context: Context) -> None:
    """Be there."""


class StatusHandler:
    """Tells a dialplan the pool's load, in channel variables."""

    def __init__(self) -> None:
        """Prepare; ``connect`` must follow, in the process that serves the calls."""
        self._read_load: Callable[[], Load] | None = None

    def connect(self, read_load: Callable[[], Load]) -> None:
        """Say who knows the load; once, before the first call."""
        self._read_load = read_load

    def __call__(self, call: Call, context: Context) -> None:
        """Serve one call.

        Raises:
            RuntimeError: Nobody knows the load.
            CallHangup: The caller hung up meanwhile.
            CallEnded: The call is over otherwise.
        """
        if self._read_load is None:
            raise RuntimeError("nobody knows the load here: connect() was not called")
        for name, value in variables(self._read_load()).items():
            call.set_variable(name, value)


def variables(load: Load) -> dict[str, str]:
    """Say a load in channel variables, what is wanted most first: each costs a question to Asterisk."""
    return {
        "FAGI_LOAD": str(load.percent),
        "FAGI_ACTIVE": str(load.active),
        "FAGI_QUEUED": str(load.queued),
        "FAGI_PLACES": str(load.places),
        "FAGI_WORKERS": str(load.workers),
        "FAGI_UPTIME": str(int(load.uptime_s)),
        "FAGI_VERSION": VERSION,
    }
