"""The demonstration's handlers, called as a server would call them."""

from __future__ import annotations

import pytest

from fastagi_pool.handlers import demo
from fastagi_pool.stage import Stage
from fastagi_pool.testing import HANGUP, AgiStatus

_PIN = {"options": {"pin": "1234"}}


def test_hello_sends_one_verbose(agi_call: Stage) -> None:
    """The benchmarks count on exactly one command."""
    assert agi_call(demo.hello).commands == ["VERBOSE hello 1"]


def test_echo_shows_what_the_server_was_told(agi_call: Stage) -> None:
    """Script, query and arguments arrive as the dialplan gave them."""
    result = agi_call(demo.echo, "echo/x?did=7", "a")

    assert result.console == ("script echo/x, query {'did': '7'}, arguments ['a']",)


@pytest.mark.parametrize(
    ("presses", "found"), [(["1234"], "1"), (["0000", "1234"], "1"), (["1", "2", "3"], "0"), ([], "0")]
)
def test_pin_gives_three_tries(agi_call: Stage, presses: list[str], found: str) -> None:
    """The right PIN within three tries is accepted, anything else is not."""
    result = agi_call(demo.pin, route=_PIN, presses=presses)

    assert result.variables == {"PIN_OK": found}
    assert result.commands[:2] == ["ANSWER", "GET DATA agent-pass 5000 4"]
    assert result.faults == ()


def test_pin_ends_with_a_hangup(agi_call: Stage) -> None:
    """A caller who hangs up is asked no more, and nothing is said of his PIN."""
    result = agi_call(demo.pin, route=_PIN, presses=["0000", HANGUP])

    assert (result.status, result.outcome, result.variables) == (AgiStatus.HANGUP, "hangup", {})
    assert len(result.commands) == 3
