"""Messages: what the master and the loader of a generation say to each other.

Laws:
    * Values only; how they travel, and what travels beside them, is ``channel``'s business.

The loader (see ``zygote``) begins with :class:`Loaded` or :class:`Refused`; the master answers with
:class:`Begin` and the listening sockets, and from then on asks for workers with :class:`Fork`.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from fastagi_pool import channel

#: Signal by which the master makes a worker write its stacks: handled in C, so it works while the
#: worker's hub is blocked.
DUMP_SIGNAL: Final = signal.SIGRTMIN
#: Most listening sockets that can be handed on.
MAX_LISTENERS: Final = channel.MAX_DESCRIPTORS


@dataclass(frozen=True, slots=True)
class Inheritance:
    """Descriptors that the master gives all its children.

    Attributes:
        bell: Written to, it wakes the master.
        lifeline: Reading from it ends when the master does.
        handover: Both ends of the way by which calls that have not begun go from a dead worker to another:
            where they are taken, and where they are given.
    """

    bell: int
    lifeline: int
    handover: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Configuration and code are loaded; this is what the master needs of them.

    Attributes:
        limits: The arguments of ``pool.PoolLimits``.
        listen: Where to listen: the arguments of ``listeners.Address``.
        restricted: Whether there is a list of networks that may call.
        backlog: Connections that may wait to be accepted, for each address.
        runtime_dir: Folder of the scoreboard.
        pid_file: Where the master writes its pid; empty for nowhere.
        log: ``file`` (a path, ``syslog``, or ``-``), ``level``, ``format`` and ``facility``.
        rotated: Paths of the log files that are rotated.
        rotation: The arguments of ``rotation.RotationSettings``.
        observer: The arguments of ``keeping.ObserverOrder`` besides the folder, the master and the log.
        identity: The arguments of ``privileges.Identity``; empty to stay who we are.
        umask: Rights that new files do not get, as an octal number; empty to leave them as they are.
        chdir: Where to work; empty to stay.
        quarantine: The arguments of ``aftermath.Aftermath.use``.
    """

    limits: dict[str, Any]
    listen: list[dict[str, Any]]
    restricted: bool
    backlog: int
    runtime_dir: str
    pid_file: str
    log: dict[str, Any]
    rotated: list[str]
    rotation: dict[str, Any]
    observer: dict[str, Any]
    identity: dict[str, Any]
    umask: str
    chdir: str
    quarantine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was loaded.

    Attributes:
        report: Why: the text for the log or the terminal.
        machine: Whether the machine is to blame, and not the configuration.
    """

    report: str
    machine: bool = False


@dataclass(frozen=True, slots=True)
class Begin:
    """Workers may be asked for from now on; beside it come the scoreboard and the listening sockets.

    Attributes:
        generation: The number of this load.
    """

    generation: int


@dataclass(frozen=True, slots=True)
class Fork:
    """Make a worker in this slot.

    Attributes:
        slot: Its place in the scoreboard.
        prove: Whether it has to pass the self-test: none of its generation serves yet.
    """

    slot: int
    prove: bool = False


@dataclass(frozen=True, slots=True)
class Forked:
    """The worker of this slot is this process."""

    slot: int
    pid: int


@dataclass(frozen=True, slots=True)
class ForkFailed:
    """There is no process for this slot."""

    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that the loader had forked has ended, with this status of ``waitpid``."""

    pid: int
    status: int


@dataclass(frozen=True, slots=True)
class ReopenLogs:
    """The log files were rotated."""


Message: TypeAlias = Loaded | Refused | Begin | Fork | Forked | ForkFailed | Ended | ReopenLogs


class Channel(channel.Channel[Message]):
    """One end of the conversation between the master and a loader."""

    KINDS: Mapping[str, type[Message]] = {
        kind.__name__: kind for kind in (Loaded, Refused, Begin, Fork, Forked, ForkFailed, Ended, ReopenLogs)
    }
