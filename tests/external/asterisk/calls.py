"""Calls through the private Asterisk: placed, steered like a telephone, and awaited to their end.

A call is a Local channel whose called half runs scripts and whose other half is the caller; see
``conf/extensions.conf``. Each gets a unique id of ours, which scripts find in ``agi_uniqueid``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from .ami import AmiClient, Message

#: Longest wait for the end of a call that nothing holds up; on a busy machine.
_DONE_TIMEOUT_S: Final = 20.0
_VARIABLE: Final = "V_"


@dataclass(frozen=True, slots=True)
class CallDone:
    """How a call ended, as the dialplan saw it.

    Attributes:
        status: AGISTATUS of the last script before the hangup: SUCCESS, FAILURE or HANGUP.
        h_status: The same of the script that ran after the hangup; empty if none did.
        way: Where the dialplan went behind the script, and AGISTATUS and FAGI_STATUS as they were there.
        error: FAGI_ERROR, what the pool told of a failure.
        ref: FAGI_REF, its reference.
        variables: What the scripts left in the channel variables CALLER_NAME, RESULT, FAGI_STATUS; in the
            context ``vicidial`` in others, see there.
    """

    status: str
    h_status: str
    way: str
    error: str
    ref: str
    variables: Mapping[str, str]


class PlacedCall:
    """One call, from the caller's side.

    Attributes:
        uniqueid: The unique id of the called half, where the scripts run.
    """

    def __init__(self, ami: AmiClient, uniqueid: str, caller: str) -> None:
        self._ami = ami
        self._caller = caller
        self.uniqueid = uniqueid

    def done(self, timeout_s: float = _DONE_TIMEOUT_S) -> CallDone:
        """Wait for the end of the call and tell how it was.

        Raises:
            TimeoutError: The call did not end in time.
        """
        event = self._ami.wait_for(
            self.uniqueid, lambda event: event.get("UserEvent") == "CallDone", timeout_s
        )
        decoded = {name: unquote(value, errors="surrogateescape") for name, value in event.headers.items()}
        return CallDone(
            status=event.get("Status"),
            h_status=event.get("HStatus"),
            way=decoded["Way"].strip(),
            error=decoded.get("Error", ""),
            ref=decoded.get("Ref", ""),
            variables={
                name.removeprefix(_VARIABLE): value
                for name, value in decoded.items()
                if name.startswith(_VARIABLE)
            },
        )

    def await_command(self, command: str) -> None:
        """Wait until Asterisk has begun to carry out an AGI command.

        Args:
            command: The beginning of its line, as ``STREAM FILE silence10``.

        Raises:
            TimeoutError: No such command came.
        """

        def begun(event: Message) -> bool:
            return event.get("Event") == "AGIExecStart" and event.get("Command").startswith(command)

        self._ami.wait_for(self.uniqueid, begun)

    def await_music(self, music_class: str) -> None:
        """Wait until the caller hears music on hold of a class.

        Raises:
            TimeoutError: It was not played.
        """

        def played(event: Message) -> bool:
            return event.get("Event") == "MusicOnHoldStart" and event.get("Class") == music_class

        self._ami.wait_for(self.uniqueid, played)

    def await_end(self) -> None:
        """Wait until the called half is no more; for calls that end elsewhere than in the context ``ended``.

        Raises:
            TimeoutError: It is still there.
        """
        self._ami.wait_for(self.uniqueid, lambda event: event.get("Event") == "Hangup")

    def places(self) -> set[tuple[str, str]]:
        """Return where in the dialplan the call has been: contexts and extensions."""
        events = self._ami.events(self.uniqueid)
        return {(event.get("Context"), event.get("Extension")) for event in events}

    def dial_results(self) -> list[str]:
        """Return how each Dial() of the call ended, as ``ANSWER``."""
        events = self._ami.events(self.uniqueid)
        return [event.get("DialStatus") for event in events if event.get("Event") == "DialEnd"]

    def commands(self) -> list[str]:
        """Return the AGI commands that Asterisk has begun to carry out, as it got them."""
        events = self._ami.events(self.uniqueid)
        return [event.get("Command") for event in events if event.get("Event") == "AGIExecStart"]

    def hang_up(self) -> None:
        """Let the caller hang up; returns when Asterisk has taken the caller's half down."""
        self._ami.hangup(self._caller)
        self._ami.wait_for(self._caller, lambda event: event.get("Event") == "Hangup")

    def press(self, digit: str) -> None:
        """Let the caller press one key."""
        self._ami.play_dtmf(self._caller, digit)

    def send_text(self, text: str) -> None:
        """Let the caller send a text."""
        self._ami.send_text(self._caller, text)

    def redirect(self, extension: str) -> None:
        """Take the call away from its script, to another extension of the context ``calls``."""
        self._ami.redirect(self.uniqueid, extension, "calls")


class Telephone:
    """Places calls; one for each Asterisk, because it gives out the unique ids."""

    def __init__(self, ami: AmiClient) -> None:
        self._ami = ami
        self._numbers = itertools.count(1)

    def call(
        self,
        url: str,
        arguments: str = "",
        *,
        then_url: str = "",
        hangup_url: str = "",
        callerid: str = "",
        silent: bool = False,
    ) -> PlacedCall:
        """Place a call to a script; returns at once.

        Args:
            url: The script that serves it, as ``agi://127.0.0.1:4577/hello?x=1``.
            arguments: What follows the URL in ``AGI(...)``, as the dialplan would write it.
            then_url: A second script on the same call, without arguments.
            hangup_url: A script for the dead channel; its arguments are ``hangup`` and the cause.
            callerid: As ``"Alice" <100>``.
            silent: Whether the caller says nothing, rather than sending a tone.
        """
        variables = {"AGIURL": url, "AGIARGS": arguments, "AGIURL2": then_url, "HURL": hangup_url}
        given = {name: value for name, value in variables.items() if value}
        called = "two@calls" if then_url else "one@calls"
        return self.dial(called, given, callerid, "silent@caller" if silent else "tone@caller")

    def dial(
        self,
        called: str,
        variables: Mapping[str, str] | None = None,
        callerid: str = "",
        caller: str = "tone@caller",
    ) -> PlacedCall:
        """Place a call to any extension; returns at once.

        Args:
            called: ``extension@context`` of the called half.
            variables: Channel variables of the call.
            callerid: As ``"Alice" <100>``.
            caller: ``extension@context`` of the calling half.
        """
        number = f"{next(self._numbers):06d}"  # of one length: see AmiClient.originate()
        called_id, caller_id = f"call-{number}", f"caller-{number}"
        self._ami.originate(called, caller, (called_id, caller_id), variables or {}, callerid)
        return PlacedCall(self._ami, called_id, caller_id)
