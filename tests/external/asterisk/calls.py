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
        variables: What the scripts left in the channel variables CALLER_NAME, RESULT, FAGI_STATUS.
    """

    status: str
    h_status: str
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
        variables = {
            name.removeprefix(_VARIABLE): unquote(value, errors="surrogateescape")
            for name, value in event.headers.items()
            if name.startswith(_VARIABLE)
        }
        return CallDone(event.get("Status"), event.get("HStatus"), variables)

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

    def hang_up(self) -> None:
        """Let the caller hang up; returns when Asterisk has taken the caller's half down."""
        self._ami.hangup(self._caller)
        self._ami.wait_for(self._caller, lambda event: event.get("Event") == "Hangup")

    def press(self, digit: str) -> None:
        """Let the caller press one key."""
        self._ami.play_dtmf(self._caller, digit)

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
    ) -> PlacedCall:
        """Place a call; returns at once.

        Args:
            url: The script that serves it, as ``agi://127.0.0.1:4577/hello?x=1``.
            arguments: What follows the URL in ``AGI(...)``, as the dialplan would write it.
            then_url: A second script on the same call, without arguments.
            hangup_url: A script for the dead channel; its arguments are ``hangup`` and the cause.
            callerid: As ``"Alice" <100>``.
        """
        number = f"{next(self._numbers):06d}"  # of one length: see AmiClient.originate()
        called_id, caller_id = f"call-{number}", f"caller-{number}"
        variables = {"AGIURL": url, "AGIARGS": arguments, "AGIURL2": then_url, "HURL": hangup_url}
        given = {name: value for name, value in variables.items() if value}
        called = "two@calls" if then_url else "one@calls"
        self._ami.originate(called, "tone@caller", (called_id, caller_id), given, callerid)
        return PlacedCall(self._ami, called_id, caller_id)
