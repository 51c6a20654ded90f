"""The demonstration's handlers, driven in process with a scripted Asterisk."""

from __future__ import annotations

import pytest
from patient import PatientAsterisk, make_call, make_context

from fastagi_pool.handlers import demo


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
