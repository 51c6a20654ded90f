"""Testing: calls that a program places instead of a telephone, to a server or to a handler.

Laws:
    * What Asterisk says and does is decided by :class:`~fastagi_pool.asterisk.FakeAsterisk`; here its bytes
      are carried over a connection, and what was said is written down.
    * Every wait has an end.

Handlers are tested in one process by :class:`fastagi_pool.stage.Stage`, in pytest through the fixture
``agi_call``; a running server is called by :func:`play_call`, on which ``fastagi-pool call`` is built.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

from fastagi_pool.asterisk import (
    HANGUP,
    AgiStatus,
    Behaviour,
    Caller,
    Command,
    FakeAsterisk,
    environment,
    split_words,
)

__all__ = [
    "HANGUP",
    "AgiStatus",
    "Behaviour",
    "CallResult",
    "Caller",
    "Command",
    "FakeAsterisk",
    "Wire",
    "environment",
    "play",
    "play_call",
    "split_words",
]

#: How long Asterisk tries to connect. Source: MAX_AGI_CONNECT in res_agi.c.
CONNECT_TIMEOUT_S: Final = 2.0
DEFAULT_PORT: Final = 4573
_RECEIVE_BYTES: Final = 65536

OnLine = Callable[[str, str], None]


class Link(Protocol):
    """A connected socket, of the standard library or of gevent."""

    def recv(self, bufsize: int, /) -> bytes:
        """Wait for bytes; none mean that the other side has closed."""

    def sendall(self, data: bytes, /) -> None:
        """Write all of it."""


@dataclass(frozen=True, slots=True)
class Wire:
    """How the network treats what Asterisk writes and reads; by default as a quick one does.

    Attributes:
        piece_bytes: Asterisk's words arrive in pieces of so many bytes; 0 for one piece each.
        delay_s: Asterisk, a slow reader, waits so long before it reads.
        sleep: What waits.
    """

    piece_bytes: int = 0
    delay_s: float = 0.0
    sleep: Callable[[float], object] = time.sleep

    def pieces(self, data: bytes) -> list[bytes]:
        """Cut what Asterisk writes."""
        size = self.piece_bytes or len(data) or 1
        return [data[start : start + size] for start in range(0, len(data), size)]


QUICK_WIRE: Final = Wire()


@dataclass(slots=True)
class CallResult:
    """How a call went.

    Attributes:
        status: What the dialplan finds in AGISTATUS.
        reason: Why, if it failed.
        dialogue: Who said what, in order: ``A`` Asterisk or ``S`` server, and the line.
        variables: The channel's variables at the end.
        connected: Whether there was a connection at all.
        executed: What Asterisk took for commands, and what it answered.
        database: Asterisk's own database at the end, ``family/key`` to value.
        location: Where the dialplan goes on: context, extension and priority.
        hung_up: Whether the channel hung up.
        console: What ``verbose`` wrote there.
        faults: What the server did that harms a real Asterisk.
    """

    status: AgiStatus = AgiStatus.SUCCESS
    reason: str = ""
    dialogue: list[tuple[str, str]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    connected: bool = False
    executed: tuple[Command, ...] = ()
    database: dict[str, str] = field(default_factory=dict)
    location: tuple[str, str, str] = ("", "", "")
    hung_up: bool = False
    console: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def commands(self) -> list[str]:
        """What the server sent, line by line."""
        return [line for who, line in self.dialogue if who == "S"]

    def take_over(self, asterisk: FakeAsterisk) -> None:
        """Note how things are with Asterisk at the end."""
        self.status = asterisk.status
        if self.status is AgiStatus.FAILURE and not self.reason:
            said_so = any(line.lower().startswith("failure") for line in self.commands)
            self.reason = "the server said so" if said_so else "a command failed"
        self.variables = dict(asterisk.variables)
        self.executed = tuple(asterisk.commands)
        self.database = dict(asterisk.database)
        self.location = asterisk.location
        self.hung_up = asterisk.hung_up
        self.console = tuple(asterisk.console)
        self.faults = tuple(asterisk.faults)


def play(
    link: Link,
    asterisk: FakeAsterisk,
    result: CallResult,
    wire: Wire = QUICK_WIRE,
    on_line: OnLine = lambda who, line: None,
) -> None:
    """Be Asterisk on a connection until the server has closed it or Asterisk would.

    Args:
        link: Connected to the server.
        asterisk: Decides what is said.
        result: Where everything is written down, also if the connection breaks.
        wire: How the network treats it.
        on_line: Called with each line as it is said.

    Raises:
        OSError: The connection broke, or a wait was too long.
    """

    def note(who: str, data: bytes) -> None:
        # A line's end is LF alone: the server must not be excused for a CR.
        for line in data.removesuffix(b"\n").split(b"\n") if data else ():
            text = line.decode("utf-8", "surrogateescape")
            result.dialogue.append((who, text))
            on_line(who, text)

    def say(data: bytes) -> None:
        note("A", data)
        _write(link, data, wire)

    heard = b""
    try:
        header, _, rest = asterisk.begin().partition(b"\n\n")
        _write(link, header + b"\n\n", wire)
        say(rest)
        while not asterisk.ended:
            if wire.delay_s:
                wire.sleep(wire.delay_s)
            data = _read(link)
            # A line may come in pieces; at the server's end it is one without its line end.
            lines, end, heard = (heard + data).rpartition(b"\n") if data else (heard, b"", b"")
            note("S", lines + end)
            say(asterisk.receive(data) if data else asterisk.receive_eof())
    finally:
        note("S", heard)
        result.take_over(asterisk)


def _read(link: Link) -> bytes:
    try:
        return link.recv(_RECEIVE_BYTES)
    except ConnectionError:
        return b""  # However rudely a server ends the connection, to Asterisk it is an end like any other.


def _write(link: Link, data: bytes, wire: Wire) -> None:
    try:
        for piece in wire.pieces(data):
            link.sendall(piece)
    except ConnectionError:
        pass  # It has closed; reading will say so.


def play_call(
    url: str,
    arguments: Sequence[str] = (),
    caller: Caller | None = None,
    behaviour: Behaviour | None = None,
    timeout_s: float = 30.0,
    on_line: OnLine = lambda who, line: None,
    wire: Wire = QUICK_WIRE,
) -> CallResult:
    """Place one call to a running server and be its Asterisk until it closes.

    Args:
        url: As in the dialplan: ``agi://127.0.0.1:4577/hello?x=1``.
        arguments: As in the dialplan behind the URL.
        caller: Who calls.
        behaviour: What caller and channel do.
        timeout_s: Longest silence of the server; Asterisk itself would wait for ever.
        on_line: Called with each line as it is said.
        wire: How the network treats it.
    """
    result = CallResult()
    parts = urlsplit(url)
    try:
        link = socket.create_connection((parts.hostname or "", parts.port or DEFAULT_PORT), CONNECT_TIMEOUT_S)
    except OSError as error:
        result.status, result.reason = AgiStatus.FAILURE, f"no connection: {error}"
        return result
    result.connected = True
    with link:
        link.settimeout(timeout_s)
        try:
            play(link, FakeAsterisk(url, arguments, caller, behaviour), result, wire, on_line)
        except TimeoutError:
            result.status = AgiStatus.FAILURE
            result.reason = f"the server was silent for {timeout_s:g} s; Asterisk would go on waiting"
    return result
