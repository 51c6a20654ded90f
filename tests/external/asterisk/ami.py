"""AmiClient: a small client of Asterisk's manager interface (AMI).

Laws:
    * A thread of its own reads everything; every event is kept, under its channel's unique id.
    * Nothing waits for ever: every wait has a limit and ends at once when Asterisk closes.

Source: main/manager.c; a message is lines ``Name: value`` up to an empty line.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

#: The account in conf/manager.conf. It is no secret: the interface listens on 127.0.0.1 only.
AMI_USER: Final = "agitest"
AMI_SECRET: Final = "agitest"

_CONNECT_TIMEOUT_S: Final = 5.0
_ACTION_TIMEOUT_S: Final = 10.0
_EVENT_TIMEOUT_S: Final = 10.0


class AmiError(Exception):
    """Asterisk refused an action, or closed the connection."""


@dataclass(frozen=True, slots=True)
class Message:
    """An event or a response.

    Attributes:
        headers: By name; of a repeated one the first.
        output: The ``Output`` lines of a console command.
    """

    headers: Mapping[str, str]
    output: tuple[str, ...]

    def get(self, name: str) -> str:
        """Return a header's value; empty if it is not there."""
        return self.headers.get(name, "")


class AmiClient:
    """One logged-in connection. Close it, or use it with ``with``."""

    def __init__(self, port: int) -> None:
        """Connect to 127.0.0.1 and log in.

        Raises:
            AmiError: The login was refused.
            OSError: Nobody listens there.
        """
        self._socket = socket.create_connection(("127.0.0.1", port), _CONNECT_TIMEOUT_S)
        self._socket.settimeout(None)
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        self._events: defaultdict[str, list[Message]] = defaultdict(list)
        self._responses: dict[str, Message] = {}
        self._closed = False
        self._reader = threading.Thread(target=self._read, name="ami", daemon=True)
        self._reader.start()
        try:
            self.action("Login", {"Username": AMI_USER, "Secret": AMI_SECRET, "Events": "on"})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # Asterisk was first
        self._reader.join()
        self._socket.close()

    def action(
        self, name: str, headers: Mapping[str, str], variables: Mapping[str, str] | None = None
    ) -> Message:
        """Send an action and return the response.

        Args:
            name: As ``Originate``.
            headers: As they go out.
            variables: ``Variable`` headers; values are escaped as needed.

        Raises:
            AmiError: Asterisk answered with an error, or closed.
            TimeoutError: It did not answer within 10 s.
        """
        action_id = str(next(self._ids))
        lines = [f"Action: {name}", f"ActionID: {action_id}"]
        lines += [f"{header}: {value}" for header, value in headers.items()]
        lines += [f"Variable: {key}={_escape(value)}" for key, value in (variables or {}).items()]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape"))
        self._await(lambda: action_id in self._responses, _ACTION_TIMEOUT_S, f"response to {name}")
        response = self._responses.pop(action_id)
        if response.get("Response") == "Error":
            raise AmiError(f"{name}: {response.get('Message')}")
        return response

    def originate(
        self,
        called: str,
        caller: str,
        uniqueids: tuple[str, str],
        variables: Mapping[str, str],
        callerid: str = "",
    ) -> None:
        """Start a call between two extensions; returns before it is answered.

        Args:
            called: ``extension@context`` of the called half.
            caller: ``extension@context`` of the calling half, once the called one has answered.
            uniqueids: The unique ids for the called and the calling half. None may be the beginning
                of another's: Asterisk would take the one for the other.
            variables: Channel variables of both halves.
            callerid: As ``"Alice" <100>``; empty for none.

        Raises:
            AmiError: Asterisk refused.
        """
        extension, _, context = caller.partition("@")
        headers = {
            "Channel": f"Local/{called}/n",
            "Context": context,
            "Exten": extension,
            "Priority": "1",
            "ChannelId": uniqueids[1],
            "OtherChannelId": uniqueids[0],
            "Timeout": "30000",
            "Async": "true",
        }
        self.action("Originate", headers | ({"CallerID": callerid} if callerid else {}), variables)

    def hangup(self, channel: str) -> None:
        """Hang up a channel, named by its name or unique id."""
        self.action("Hangup", {"Channel": channel})

    def redirect(self, channel: str, extension: str, context: str) -> None:
        """Send a channel elsewhere in the dialplan."""
        headers = {"Channel": channel, "Exten": extension, "Context": context, "Priority": "1"}
        self.action("Redirect", headers)

    def play_dtmf(self, channel: str, digit: str) -> None:
        """Press one key (0-9, A-D, * or #) on a channel, for 100 ms."""
        self.action("PlayDTMF", {"Channel": channel, "Digit": digit})

    def send_text(self, channel: str, text: str) -> None:
        """Send a text to whoever is at the other end of a channel."""
        self.action("SendText", {"Channel": channel, "Message": text})

    def set_global(self, name: str, value: str) -> None:
        """Set a global variable of the dialplan."""
        self.action("Setvar", {"Variable": name, "Value": value})

    def cli(self, command: str) -> str:
        """Run a console command and return what it prints."""
        return "\n".join(self.action("Command", {"Command": command}).output)

    def events(self, uniqueid: str) -> tuple[Message, ...]:
        """Return all events of a channel so far, in order; of none if ``uniqueid`` is empty."""
        with self._changed:
            return tuple(self._events.get(uniqueid, ()))

    def wait_for(
        self, uniqueid: str, wanted: Callable[[Message], bool], timeout_s: float = _EVENT_TIMEOUT_S
    ) -> Message:
        """Return the first event of a channel, past ones included, that is wanted.

        Args:
            uniqueid: The channel's.
            wanted: Says whether an event is the one.
            timeout_s: The longest wait.

        Raises:
            TimeoutError: None came; the text lists those that did.
            AmiError: Asterisk closed the connection.
        """
        found: list[Message] = []
        scanned = 0

        def complete() -> bool:
            nonlocal scanned
            events = self._events[uniqueid]
            found.extend(filter(wanted, events[scanned:]))
            scanned = len(events)
            return bool(found)

        self._await(complete, timeout_s, f"event of {uniqueid}", uniqueid)
        return found[0]

    def _await(
        self, condition: Callable[[], bool], timeout_s: float, what: str, uniqueid: str | None = None
    ) -> None:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not condition():
                if self._closed:
                    raise AmiError(f"Asterisk closed the connection; no {what}")
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    seen = [] if uniqueid is None else [event.headers for event in self._events[uniqueid]]
                    raise TimeoutError(f"no such {what} within {timeout_s:g} s; seen: {seen}")
                self._changed.wait(left_s)

    def _read(self) -> None:
        lines: list[str] = []
        with self._socket.makefile("rb") as stream:
            try:
                stream.readline()  # the banner
                for raw in stream:
                    line = raw.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
                    if line:
                        lines.append(line)
                    elif lines:
                        self._keep(_parse(lines))
                        lines = []
            except OSError:
                pass  # told below, like an orderly end
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _keep(self, message: Message) -> None:
        with self._changed:
            if message.get("Response"):
                self._responses[message.get("ActionID")] = message
            else:
                self._events[message.get("Uniqueid")].append(message)
            self._changed.notify_all()


def _parse(lines: Iterable[str]) -> Message:
    headers: dict[str, str] = {}
    output = []
    for line in lines:
        name, _, value = line.partition(":")
        headers.setdefault(name, value.strip())
        if name == "Output":
            output.append(value[1:])
    return Message(headers, tuple(output))


def _escape(value: str) -> str:
    """Write a channel variable's value as a ``Variable`` header wants it."""
    return value.replace("\\", "\\\\").replace(",", "\\,").replace('"', '\\"')
