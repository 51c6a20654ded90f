"""Messages: what the master and the loader of a generation say to each other.

Laws:
    * Values only. Each message is one datagram on a SOCK_SEQPACKET pair, written as JSON: the
      master decodes nothing that could run code.
    * File descriptors travel beside a message, never inside.

The loader (see ``zygote``) begins with :class:`Loaded` or :class:`Refused`; the master answers with
:class:`Begin` and the listening sockets, and from then on asks for workers with :class:`Fork`.
"""

from __future__ import annotations

import json
import signal
import socket
from array import array
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

#: Signal by which the master makes a worker write its stacks: handled in C, so it works while the
#: worker's hub is blocked.
DUMP_SIGNAL: Final = signal.SIGRTMIN
#: Longest message; a list of a thousand configuration problems fits.
_MESSAGE_BYTES: Final = 200_000
#: Most file descriptors that Linux passes at once. Source: SCM_MAX_FD in include/net/scm.h.
MAX_LISTENERS: Final = 253


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
        log_file: Path, or ``-`` for standard error.
        log_level: As in the configuration.
    """

    limits: dict[str, Any]
    listen: list[dict[str, Any]]
    restricted: bool
    backlog: int
    runtime_dir: str
    pid_file: str
    log_file: str
    log_level: str


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
    """Make a worker in this slot."""

    slot: int


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

_KINDS: Final[dict[str, type[Message]]] = {
    kind.__name__: kind for kind in (Loaded, Refused, Begin, Fork, Forked, ForkFailed, Ended, ReopenLogs)
}


class Channel:
    """One end of the conversation."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Make both ends."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (one, other):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MESSAGE_BYTES)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """The descriptor, to be polled."""
        return self._socket.fileno()

    def send(self, message: Message, descriptors: list[int] | None = None) -> bool:
        """Send one message.

        Returns:
            False if nobody listens any more.
        """
        data = json.dumps({"kind": type(message).__name__, **asdict(message)}).encode()
        try:
            socket.send_fds(self._socket, [data], descriptors or [])
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self, wait: bool = True) -> tuple[Message, list[int]] | None:
        """Take one message and the descriptors beside it.

        Args:
            wait: Whether to wait for one.

        Returns:
            None if the other end is gone, or nothing is there and we do not wait.
        """
        # Not socket.recv_fds: that of Python 3.11 drops its flags, and would wait.
        room = socket.CMSG_SPACE(MAX_LISTENERS * array("i").itemsize)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                2 * _MESSAGE_BYTES, room, 0 if wait else socket.MSG_DONTWAIT
            )
        except (ConnectionResetError, BlockingIOError):
            return None
        if not data:
            return None
        descriptors = array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        fields = json.loads(data)
        return _KINDS[fields.pop("kind")](**fields), descriptors.tolist()

    def say_no_more(self) -> None:
        """End our side of the conversation: the other end sees that, and can still be heard."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of this end."""
        self._socket.close()
