"""A scripted Asterisk for tests of handlers that run in process."""

from __future__ import annotations

import logging

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.database import Database
from fastagi_pool.protocol import AgiConnection, Reply, Request
from fastagi_pool.testing import answer


class PatientAsterisk:
    """Answers each command as Asterisk would; what the caller dials is given."""

    hung_up = False

    def __init__(self, dialled: tuple[str, ...] = ()) -> None:
        self.variables: dict[str, str] = {}
        self.commands: list[str] = []
        self._dialled = list(dialled)
        self._agi = AgiConnection()
        self._agi.receive_data(b"agi_network: yes\n\n")
        self._agi.next_event()

    def execute(self, line: bytes) -> Reply:
        """Answer one command."""
        self._agi.send_command(line)
        command = line.decode().rstrip("\n")
        self.commands.append(command)
        reply = answer(command, self.variables)
        if command.startswith("GET DATA") and self._dialled:
            reply = f"200 result={self._dialled.pop(0)}"
        self._agi.receive_data(f"{reply}\n".encode())
        event = self._agi.next_event()
        assert isinstance(event, Reply)
        return event

    def await_hangup(self) -> None:
        """Nobody hangs up here."""


def make_call(asterisk: PatientAsterisk, callerid: str = "100") -> Call:
    """A call from this number to the script ``echo/x`` with one query parameter and one argument."""
    environment = {"agi_callerid": callerid, "agi_network_script": "echo/x?did=7", "agi_arg_1": "a"}
    return Call(Request(environment, ("a",)), asterisk)


def make_context(options: dict[str, object] | None = None, **databases: Database) -> Context:
    """A context as the server would make it."""
    return Context(databases, logging.getLogger("test"), {}, options)
