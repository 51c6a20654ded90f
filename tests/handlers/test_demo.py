"""The demonstration's handlers, driven in process with a scripted Asterisk."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.database import Database, DatabaseSettings
from fastagi_pool.handlers import demo, lookup
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


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh database, SQLite and MariaDB in turn."""
    database = Database(DatabaseSettings("demo", (database_url,)))
    yield database
    database.close()


@pytest.mark.parametrize(
    ("number", "name"), [("100", "Alice Liddell"), ("101", "Bob the Builder"), ("999", "")]
)
def test_lookup_gives_the_name_to_the_dialplan(database: Database, number: str, name: str) -> None:
    """The same handler finds the caller's name on SQLite and on MariaDB, and sets it even if unknown."""
    asterisk = PatientAsterisk()
    lookup.setup(make_context(demo=database))

    lookup.lookup(make_call(asterisk, number), make_context(demo=database))

    assert asterisk.variables == {"CALLER_NAME": name}


def test_setup_may_run_in_every_worker(database: Database) -> None:
    """Each worker prepares the table; the second finds it there and changes nothing."""
    for _ in range(2):
        lookup.setup(make_context(demo=database))
    with make_context(demo=database).begin() as connection:
        count = connection.exec_driver_sql("SELECT COUNT(*) FROM callers").scalar()

    assert count == 2


def test_hello_sends_one_verbose() -> None:
    """The benchmarks count on exactly one command."""
    asterisk = PatientAsterisk()

    demo.hello(make_call(asterisk), make_context())

    assert asterisk.commands == ["VERBOSE hello 1"]


def test_echo_shows_what_the_server_was_told() -> None:
    """Script, query and arguments arrive as the dialplan gave them."""
    asterisk = PatientAsterisk()

    demo.echo(make_call(asterisk), make_context())

    assert asterisk.commands == ["""VERBOSE "script echo/x, query {'did': '7'}, arguments ['a']" 1"""]


@pytest.mark.parametrize(
    ("dialled", "result"), [(("1234",), "1"), (("0000", "1234"), "1"), (("1", "2", "3"), "0"), ((), "0")]
)
def test_pin_gives_three_tries(dialled: tuple[str, ...], result: str) -> None:
    """The right PIN within three tries is accepted, anything else is not."""
    asterisk = PatientAsterisk(dialled)

    demo.pin(make_call(asterisk), make_context({"pin": "1234"}))

    assert asterisk.variables["PIN_OK"] == result
    assert asterisk.commands[0] == "ANSWER"
