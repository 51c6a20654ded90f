"""fastagi_pool.replaying: recorded calls played to handlers that are the same, and to some that are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastagi_pool.application import assemble
from fastagi_pool.call import Call
from fastagi_pool.config import load_text
from fastagi_pool.context import Context
from fastagi_pool.dispatch import Handler
from fastagi_pool.errors import AGIError, CallHangup
from fastagi_pool.recording import Transcript, Turn
from fastagi_pool.replaying import Exchange, RecordedAsterisk, differences, exchanges
from fastagi_pool.stage import Stage, StagedCall
from fastagi_pool.testing import AgiStatus, environment

ENVIRONMENT = dict(
    line.split(": ", 1) for line in environment("agi://localhost/x?y=1", ["a", "b"]).splitlines() if line
)
HUNG_UP = ("A", "HANGUP")
NO_HEADER = 3

Replay = Callable[..., tuple[StagedCall, list[str]]]
Said = tuple[str, str]


def say(command: str, *answers: str) -> list[Said]:
    """Make a command with what Asterisk said to it."""
    return [("S", command), *(("A", answer) for answer in answers)]


def transcript(*turns: Said, outcome: str = "ok", masked: bool = False) -> Transcript:
    """Make the recording of a call."""
    lines = tuple(Turn(0.1 * number, who, line) for number, (who, line) in enumerate(turns))
    return Transcript("ref", "x", "2026-11-21T08:47:22.123+01:00", ENVIRONMENT, lines, outcome, masked)


@pytest.fixture
def replay() -> Iterator[Replay]:
    """Give a function that plays a recording to a handler, by the parts that serve real calls."""
    with Stage() as stage:

        def play(handler: Handler, recorded: Transcript, route: str = "") -> tuple[StagedCall, list[str]]:
            text = f"routes: [{{default: true, handler: 'given:here'{route}}}]"
            application = assemble(load_text(text, "test", Path.cwd(), {}), {"given:here": handler})
            return stage.replay(application, recorded, timeout_s=10.0)

        yield play


def menu(call: Call, context: Context) -> None:
    """Ask for a digit and tell what it was."""
    call.answer()
    call.set_variable("CHOICE", call.wait_for_digit(5))
    call.verbose(call.get_variable("NAME") or "nobody")


MENU = (
    *say("ANSWER", "200 result=0"),
    *say("WAIT FOR DIGIT 5000", "200 result=55"),
    *say("SET VARIABLE CHOICE 7", "200 result=1"),
    *say("GET VARIABLE NAME", "200 result=1 (Bob)"),
    *say("VERBOSE Bob 1", "200 result=1"),
)


# ---- what was recorded


def test_exchanges() -> None:
    """What was said is grouped by the server's commands; what came before the first belongs to none."""
    turns = transcript(HUNG_UP, *say("ANSWER", "200 result=0"), *say("NOOP"), HUNG_UP).turns
    assert exchanges(turns) == [
        Exchange("ANSWER", ("200 result=0",)),
        Exchange("NOOP", ("HANGUP",)),
    ]
    assert exchanges(()) == []


def test_environment_is_the_recorded_one() -> None:
    """Asterisk begins with the lines that were recorded, in their order, strange bytes included."""
    values = {"agi_request": "agi://h/x", "agi_callerid": "1", "agi_arg_1": "\udce9", "agi_accountcode": ""}
    recorded = Transcript("ref", "x", "", values, (), "ok")
    assert (
        RecordedAsterisk(recorded).begin()
        == b"agi_request: agi://h/x\nagi_callerid: 1\nagi_arg_1: \xe9\nagi_accountcode: \n\n"
    )


# ---- the same handler


def test_nothing_has_changed(replay: Replay) -> None:
    """The handler that was recorded says the same again, and gets the recorded answers."""
    result, found = replay(menu, transcript(*MENU))
    assert found == []
    assert (result.outcome, result.status) == ("ok", AgiStatus.SUCCESS)


def test_handler_sees_the_recorded_request(replay: Replay) -> None:
    """The request, arguments and query are those of the recorded call."""
    seen = []

    def look(call: Call, context: Context) -> None:
        seen.append((call.request.environment, call.request.arguments, call.request.query))

    assert replay(look, transcript())[1] == []
    assert seen == [(ENVIRONMENT, ("a", "b"), {"y": "1"})]


def test_value_with_line_ends(replay: Replay) -> None:
    """A value with line ends, parentheses and what looks like a reply reaches the handler as it was."""
    value = "one\n200 result=1 (two)\nthree"
    seen = []

    def read(call: Call, context: Context) -> None:
        seen.append(call.get_full_variable("${NOTE}"))

    recorded = transcript(*say("GET FULL VARIABLE ${NOTE}", f"200 result=1 ({value})"))
    assert replay(read, recorded)[1] == []
    assert seen == [value]


def test_refused_commands(replay: Replay) -> None:
    """What Asterisk did not accept it does not accept again, the usage of several lines included."""
    seen = []

    def try_all(call: Call, context: Context) -> None:
        for name in ("one", "two", "three"):
            try:
                call.noop(name)
            except AGIError as error:
                seen.append(type(error).__name__)

    usage = (
        "520-Invalid command syntax.  Proper usage follows:\nUsage: NOOP\n\n text\n520 End of proper usage."
    )
    recorded = transcript(
        *say("NOOP one", usage),
        *say("NOOP two", "510 Invalid or unknown command"),
        *say("NOOP three", "511 Command Not Permitted on a dead channel or intercept routine"),
    )
    assert replay(try_all, recorded)[1] == []
    assert seen == ["AGIUsageError", "AGIInvalidCommand", "AGIDeadChannel"]


# ---- handlers that differ


def changed_command(call: Call, context: Context) -> None:
    """Set another variable."""
    call.answer()
    call.set_variable("CHOSEN", call.wait_for_digit(5))
    call.verbose(call.get_variable("NAME") or "nobody")


def missing_command(call: Call, context: Context) -> None:
    """Set no variable."""
    call.answer()
    call.wait_for_digit(5)
    call.verbose(call.get_variable("NAME") or "nobody")


def one_more_command(call: Call, context: Context) -> None:
    """Say something more."""
    call.answer()
    call.set_variable("CHOICE", call.wait_for_digit(5))
    call.noop("more")
    call.verbose(call.get_variable("NAME") or "nobody")


def another_order(call: Call, context: Context) -> None:
    """Read the variable first."""
    name = call.get_variable("NAME")
    call.answer()
    call.set_variable("CHOICE", call.wait_for_digit(5))
    call.verbose(name or "nobody")


@pytest.mark.parametrize(
    ("handler", "changes"),
    [
        (changed_command, {"-SET VARIABLE CHOICE 7", "+SET VARIABLE CHOSEN 7"}),
        (missing_command, {"-SET VARIABLE CHOICE 7"}),
        (one_more_command, {"+NOOP more"}),
    ],
)
def test_changed_handler(handler: Handler, changes: set[str], replay: Replay) -> None:
    """A command that changed, is missing or is new is shown, and only that: the way back is found."""
    result, found = replay(handler, transcript(*MENU))
    assert found[:2] == ["--- recorded", "+++ now"]
    assert {line for line in found[NO_HEADER:] if line[0] in "+-"} == changes
    assert result.outcome == "ok"


def test_another_order(replay: Replay) -> None:
    """Where the order has changed both places are shown, and the handler gets some answer to each command."""
    result, found = replay(another_order, transcript(*MENU))
    changes = [line for line in found[NO_HEADER:] if line[0] in "+-"]
    assert {"+GET VARIABLE NAME", "-GET VARIABLE NAME"} < set(changes)
    assert result.outcome == "ok"
    assert len(result.commands) == 5


def test_another_outcome(replay: Replay) -> None:
    """The outcome is compared too, even if every command is the same."""

    def fails(call: Call, context: Context) -> None:
        menu(call, context)
        raise RuntimeError("on purpose")

    result, found = replay(fails, transcript(*MENU))
    assert found == ["outcome: ok when recorded, error now"]
    assert isinstance(result.error, RuntimeError)


def test_the_same_failure(replay: Replay) -> None:
    """A handler that failed when recorded and fails again does not differ: the last words are not its own."""

    def fails(call: Call, context: Context) -> None:
        call.answer()
        raise RuntimeError("on purpose")

    route = ", on_error: 'goto sorry,s,1'"
    result, found = replay(fails, transcript(*say("ANSWER", "200 result=0"), outcome="error"), route)
    assert found == []
    assert any(command.startswith("SET VARIABLE FAGI_STATUS ") for command in result.commands)


def test_a_handler_that_sets_our_variables(replay: Replay) -> None:
    """A handler that sets FAGI_STATUS itself is compared like any other."""

    def clears(call: Call, context: Context) -> None:
        call.set_variable("FAGI_STATUS", "")
        call.noop()

    recorded = transcript(*say('SET VARIABLE FAGI_STATUS ""', "200 result=1"), *say("NOOP", "200 result=0"))
    assert replay(clears, recorded)[1] == []


@pytest.mark.parametrize(
    ("said", "outcome", "changes"),
    [
        (["ANSWER"], "ok", []),
        ([], "ok", ["--- recorded", "+++ now", "@@ -1 +0,0 @@", "-ANSWER"]),
        (["ANSWER"], "hangup", ["outcome: ok when recorded, hangup now"]),
    ],
)
def test_differences(said: list[str], outcome: str, changes: list[str]) -> None:
    """Differences are a unified diff of the commands, and the outcomes in words."""
    assert list(differences(transcript(*say("ANSWER", "200 result=0")), said, outcome)) == changes


# ---- hangups and other ends


GONE = say("SET VARIABLE GONE 1", "200 result=1")


def asks_twice(call: Call, context: Context) -> None:
    """Ask, set a variable whatever comes of it, and ask again."""
    try:
        call.get_data("first", timeout_s=1)
    except CallHangup:
        call.set_variable("GONE", "1")
        raise
    call.noop("between")
    call.get_data("second", timeout_s=1)


@pytest.mark.parametrize(
    ("turns", "commands"),
    [
        (
            (
                *say("GET DATA first 1000", "200 result=-1"),
                HUNG_UP,
                *say("SET VARIABLE GONE 1", "200 result=1"),
            ),
            2,
        ),
        ((*say("GET DATA first 1000"), HUNG_UP, *GONE), 2),
        ((*say("GET DATA first 1000", "200 result=1"), *say("NOOP between"), HUNG_UP), 2),
        (
            (
                *say("GET DATA first 1000", "200 result=1"),
                *say("NOOP between", "200 result=0"),
                *say("GET DATA second 1000", "200 result=-1"),
                HUNG_UP,
            ),
            3,
        ),
    ],
)
def test_hangup_comes_at_the_same_command(turns: tuple[Said, ...], commands: int, replay: Replay) -> None:
    """The caller hangs up at the recorded command, whether its answer was seen or not."""
    result, found = replay(asks_twice, transcript(*turns, outcome="hangup"))
    assert found == []
    assert (result.outcome, result.hung_up, len(result.commands)) == ("hangup", True, commands)


def test_script_that_goes_on_after_the_hangup(replay: Replay) -> None:
    """On a route that is not told of hangups the recorded answers go on behind it."""

    def goes_on(call: Call, context: Context) -> None:
        call.noop("first")
        call.set_variable("GONE", str(call.hung_up))

    recorded = transcript(
        *say("NOOP first", "200 result=0"), HUNG_UP, *say("SET VARIABLE GONE True", "200 result=1")
    )
    result, found = replay(goes_on, recorded, ", on_hangup: continue")
    assert found == []
    assert result.outcome == "ok"


@pytest.mark.parametrize("outcome", ["gone", "timeout", "stopped"])
def test_call_that_was_cut_short(outcome: str, replay: Replay) -> None:
    """A call that ended in the middle of a command ends there again, and that is no difference."""

    def waits(call: Call, context: Context) -> None:
        call.answer()
        call.wait_for_digit(5)
        call.noop("never reached")

    recorded = transcript(*say("ANSWER", "200 result=0"), *say("WAIT FOR DIGIT 5000"), outcome=outcome)
    result, found = replay(waits, recorded)
    assert found == []
    assert result.outcome == "gone"


def test_timeout_between_commands(replay: Replay) -> None:
    """A call whose limit ran out between two commands, and does not now, differs in its outcome."""
    result, found = replay(menu, transcript(*MENU, outcome="timeout"))
    assert found == ["outcome: timeout when recorded, ok now"]
    assert result.outcome == "ok"


def test_call_that_was_given_back(replay: Replay) -> None:
    """A handler that finished the call before its own end does not differ."""

    def finishes(call: Call, context: Context) -> None:
        call.answer()
        call.finish()

    assert replay(finishes, transcript(*say("ANSWER", "200 result=0")))[1] == []


# ---- masked digits


def pin(call: Call, context: Context) -> None:
    """Ask for a PIN and a key, and repeat both."""
    dialled = call.get_data("pin", timeout_s=5, max_digits=4)
    call.set_variable("PIN", dialled.digits)
    call.set_variable("KEY", call.wait_for_digit(5))
    name = call.get_variable("NAME")
    call.verbose(name or "nobody")


PIN = (
    *say("GET DATA pin 5000 4", "200 result=****"),
    *say("SET VARIABLE PIN ****", "200 result=1"),
    *say("WAIT FOR DIGIT 5000", "200 result=*"),
    *say("SET VARIABLE KEY *", "200 result=1"),
    *say("GET VARIABLE NAME", "200 result=1 (Bob **)"),
    *say('VERBOSE "Bob **" 1', "200 result=1"),
)


def test_masked_digits(replay: Replay) -> None:
    """Masked digits match whatever stands for them, and are answered by zeros."""
    result, found = replay(pin, transcript(*PIN, masked=True))
    assert found == []
    assert "SET VARIABLE PIN 0000" in result.commands
    assert "SET VARIABLE KEY 0" in result.commands
    assert 'VERBOSE "Bob 00" 1' in result.commands


def test_change_behind_masked_digits(replay: Replay) -> None:
    """A command that changed differs although it holds masked digits; others are shown as recorded."""

    def changed(call: Call, context: Context) -> None:
        dialled = call.get_data("pin", timeout_s=5, max_digits=4)
        call.set_variable("CODE", dialled.digits)

    _, found = replay(changed, transcript(*PIN[:4], masked=True))
    assert [line for line in found[NO_HEADER:] if line[0] in "+-"] == [
        "-SET VARIABLE PIN ****",
        "+SET VARIABLE CODE 0000",
    ]
    assert " GET DATA pin 5000 4" in found


def test_digits_are_compared_if_nothing_is_masked(replay: Replay) -> None:
    """In a recording that is not masked a ``*`` is the key of that name."""

    def star(call: Call, context: Context) -> None:
        call.noop("1234")

    _, found = replay(star, transcript(*say("NOOP ****", "200 result=0")))
    assert "-NOOP ****" in found
    assert "+NOOP 1234" in found
