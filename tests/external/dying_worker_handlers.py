"""Handlers whose call is in progress when its worker dies: each sets RESULT when it has done all of its work.

So a call that Asterisk takes for a success, and that has no RESULT, was lost without anybody being told.
"""

from __future__ import annotations

import socket

from fastagi_pool.call import Call
from fastagi_pool.context import Context

_FINISHED = "finished"


def pressing(call: Call, context: Context) -> None:
    """The caller is to press a key, for which Asterisk waits for a minute."""
    call.answer()
    call.wait_for_digit(60)
    call.set_variable("RESULT", _FINISHED)


def executing(call: Call, context: Context) -> None:
    """Asterisk runs an application that nothing interrupts, for longer than a witness waits to be heard."""
    call.answer()
    call.exec("Wait", "8")
    call.set_variable("RESULT", _FINISHED)


def playing(call: Call, context: Context) -> None:
    """Asterisk plays 10 s of silence, or until the caller presses a key."""
    call.answer()
    call.stream_file("silence10", "5")
    call.set_variable("RESULT", _FINISHED)


def thinking(call: Call, context: Context) -> None:
    """The handler works until the test opens its gate; Asterisk waits for its next command."""
    call.answer()
    _wait_at_gate(call)
    call.set_variable("RESULT", _FINISHED)


def passing(call: Call, context: Context) -> None:
    """A call that comes, and is done at once."""
    call.set_variable("RESULT", _FINISHED)


def _wait_at_gate(call: Call) -> None:
    """Wait until the test opens its gate: see tests/external/asterisk/gate.py."""
    host, _, port = call.request.query["gate"].rpartition(":")
    try:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{call.request.uniqueid}\n".encode())
            connection.recv(1)
    except OSError:
        pass  # It was opened while we came.
