"""fastagi_pool.call: each method's line, its result, and the error for each kind of failure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from fastagi_pool.call import Call, Dialogue, Digits, Playback
from fastagi_pool.errors import (
    AGIAppError,
    AGICommandFailed,
    AGICommandRefused,
    AGIDeadChannel,
    AGIError,
    AGIInvalidCommand,
    AGIUsageError,
    CallHangup,
)
from fastagi_pool.protocol import MAX_COMMAND_BYTES, Reply, Request

OK = Reply(200, "0")
ONE = Reply(200, "1")
FAILED = Reply(200, "-1")


class ScriptedDialogue:
    """Knows which lines will come, and what Asterisk answers to each."""

    def __init__(self, *script: tuple[str, Reply], hangs_up: bool = False) -> None:
        self._script = list(script)
        self._hangs_up = hangs_up
        self.hung_up = False
        self.hangups_awaited = 0

    def execute(self, line: bytes) -> Reply:
        """Compare the line with the script and answer it."""
        expected, reply = self._script.pop(0)
        assert line == expected.encode() + b"\n"
        return reply

    def await_hangup(self) -> None:
        """Let the HANGUP come, if there is one."""
        self.hangups_awaited += 1
        if self._hangs_up:
            self.hung_up = True
            raise CallHangup("the caller hung up")

    @property
    def finished(self) -> bool:
        """Whether every line came."""
        return not self._script


def call(dialogue: Dialogue) -> Call:
    """Give a call on this dialogue."""
    return Call(Request({"agi_network": "yes"}), dialogue)


Use = Callable[[Call], object]

METHODS: list[tuple[str, Use, str, Reply, object]] = [
    ("answer", Call.answer, "ANSWER", OK, None),
    ("hangup", Call.hangup, "HANGUP", ONE, None),
    ("hangup another", lambda c: c.hangup("SIP/a b"), 'HANGUP "SIP/a b"', ONE, None),
    ("channel_status", Call.channel_status, "CHANNEL STATUS", Reply(200, "6"), 6),
    ("channel_status another", lambda c: c.channel_status("SIP/1"), "CHANNEL STATUS SIP/1", OK, 0),
    ("verbose", lambda c: c.verbose("hi there"), 'VERBOSE "hi there" 1', ONE, None),
    ("verbose level", lambda c: c.verbose("hi", 4), "VERBOSE hi 4", ONE, None),
    ("noop", Call.noop, "NOOP", OK, None),
    ("noop text", lambda c: c.noop("a b"), 'NOOP "a b"', OK, None),
    ("get_variable", lambda c: c.get_variable("EXTEN"), "GET VARIABLE EXTEN", Reply(200, "1", "100"), "100"),
    ("get_variable unset", lambda c: c.get_variable("X"), "GET VARIABLE X", OK, None),
    ("get_variable empty", lambda c: c.get_variable("X"), "GET VARIABLE X", Reply(200, "1", ""), ""),
    ("get_variable bare", lambda c: c.get_variable("X"), "GET VARIABLE X", ONE, ""),
    (
        "get_full_variable",
        lambda c: c.get_full_variable("${EXTEN} x"),
        'GET FULL VARIABLE "${EXTEN} x"',
        Reply(200, "1", "100 x"),
        "100 x",
    ),
    (
        "get_full_variable another",
        lambda c: c.get_full_variable("${EXTEN}", "SIP/1"),
        "GET FULL VARIABLE ${EXTEN} SIP/1",
        OK,
        None,
    ),
    ("set_variable", lambda c: c.set_variable("X", 'a "b"'), 'SET VARIABLE X "a \\"b\\""', ONE, None),
    ("set_variable empty", lambda c: c.set_variable("X", ""), 'SET VARIABLE X ""', ONE, None),
    ("exec", lambda c: c.exec("Answer"), "EXEC Answer", OK, 0),
    ("exec arguments", lambda c: c.exec("Dial", "SIP/1", "", "t"), "EXEC Dial SIP/1,,t", OK, 0),
    ("exec quoted", lambda c: c.exec("Set", "X=a b"), 'EXEC Set "X=a b"', OK, 0),
    ("exec empty argument", lambda c: c.exec("Wait", ""), 'EXEC Wait ""', OK, 0),
    ("exec result", lambda c: c.exec("Queue", "q"), "EXEC Queue q", ONE, 1),
    (
        "stream_file",
        lambda c: c.stream_file("hello"),
        'STREAM FILE hello ""',
        Reply(200, "0", None, 8000),
        Playback("", 8000),
    ),
    (
        "stream_file broken off",
        lambda c: c.stream_file("hello", "#1"),
        "STREAM FILE hello #1",
        Reply(200, "35", None, 800),
        Playback("#", 800),
    ),
    (
        "stream_file offset",
        lambda c: c.stream_file("hello", "1", 4000),
        "STREAM FILE hello 1 4000",
        OK,
        Playback("", 0),
    ),
    ("get_data", lambda c: c.get_data("pin"), "GET DATA pin", Reply(200, "34"), Digits("34", False)),
    (
        "get_data timed out",
        lambda c: c.get_data("pin", 2.5),
        "GET DATA pin 2500",
        Reply(200, "3", "timeout"),
        Digits("3", True),
    ),
    (
        "get_data nothing",
        lambda c: c.get_data("pin", 2, 4),
        "GET DATA pin 2000 4",
        Reply(200, "", "timeout"),
        Digits("", True),
    ),
    (
        "get_data digits",
        lambda c: c.get_data("pin", max_digits=4),
        "GET DATA pin 0 4",
        Reply(200, "1234"),
        Digits("1234", False),
    ),
    ("wait_for_digit", Call.wait_for_digit, "WAIT FOR DIGIT -1", Reply(200, "49"), "1"),
    ("wait_for_digit time", lambda c: c.wait_for_digit(0.2504), "WAIT FOR DIGIT 250", OK, ""),
    ("wait_for_digit none", lambda c: c.wait_for_digit(0), "WAIT FOR DIGIT 0", OK, ""),
    ("wait_for_digit past", lambda c: c.wait_for_digit(-3), "WAIT FOR DIGIT 0", OK, ""),
    ("say_number", lambda c: c.say_number(-5), 'SAY NUMBER -5 ""', OK, ""),
    ("say_number escape", lambda c: c.say_number(5, "*"), "SAY NUMBER 5 *", Reply(200, "42"), "*"),
    ("say_digits", lambda c: c.say_digits("007"), 'SAY DIGITS 007 ""', OK, ""),
    ("say_digits escape", lambda c: c.say_digits("7", "0"), "SAY DIGITS 7 0", Reply(200, "48"), "0"),
]

#: The methods for which -1 says that something failed; the others give it no meaning.
FAILING: list[tuple[str, Use, str]] = [
    ("answer", Call.answer, "ANSWER"),
    ("channel_status", Call.channel_status, "CHANNEL STATUS"),
    ("exec", lambda c: c.exec("Hangup"), "EXEC Hangup"),
    ("stream_file", lambda c: c.stream_file("x", "1"), "STREAM FILE x 1"),
    ("get_data", lambda c: c.get_data("x"), "GET DATA x"),
    ("wait_for_digit", lambda c: c.wait_for_digit(1), "WAIT FOR DIGIT 1000"),
    ("say_number", lambda c: c.say_number(1, "1"), "SAY NUMBER 1 1"),
    ("say_digits", lambda c: c.say_digits("1", "1"), "SAY DIGITS 1 1"),
]


def names(table: list[tuple[str, Use, str]]) -> list[str]:
    """Give the names of a table's lines."""
    return [name for name, _, _ in table]


@pytest.mark.parametrize(
    ("use", "line", "reply", "result"),
    [entry[1:] for entry in METHODS],
    ids=[entry[0] for entry in METHODS],
)
def test_a_method(use: Use, line: str, reply: Reply, result: object) -> None:
    """A method sends exactly its line and gives what Asterisk answered, typed."""
    dialogue = ScriptedDialogue((line, reply))
    assert use(call(dialogue)) == result
    assert dialogue.finished
    assert dialogue.hangups_awaited == 0


def test_every_method_is_tested() -> None:
    """A method that sends a command has a line in the table."""
    public = {name for name, item in vars(Call).items() if callable(item) and not name.startswith("_")}
    assert public == {entry[0].split()[0] for entry in METHODS}


@pytest.mark.parametrize(("use", "line"), [entry[1:] for entry in FAILING], ids=names(FAILING))
def test_a_failure_is_an_error(use: Use, line: str) -> None:
    """A result of -1 without a hangup is AGICommandFailed, and names the command."""
    dialogue = ScriptedDialogue((line, FAILED))
    with pytest.raises(AGICommandFailed) as caught:
        use(call(dialogue))
    assert caught.value.command == line
    assert dialogue.hangups_awaited == 1


@pytest.mark.parametrize(("use", "line"), [entry[1:] for entry in FAILING], ids=names(FAILING))
def test_a_hangup_is_no_failure(use: Use, line: str) -> None:
    """A result of -1 that a HANGUP follows is the end of the call, not an error of the command."""
    dialogue = ScriptedDialogue((line, FAILED), hangs_up=True)
    held = call(dialogue)
    with pytest.raises(CallHangup):
        use(held)
    assert held.hung_up


def test_a_hangup_told_before_is_a_failure_now() -> None:
    """On a channel that is known to be dead, -1 is an ordinary failure of the command."""
    dialogue = ScriptedDialogue(("EXEC Playback x", FAILED))
    dialogue.hung_up = True
    held = call(dialogue)
    with pytest.raises(AGICommandFailed):
        held.exec("Playback", "x")


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(510, text="Invalid or unknown command"), AGIInvalidCommand),
        (Reply(511, text="Command Not Permitted on a dead channel"), AGIDeadChannel),
        (Reply(520, text="Usage: ..."), AGIUsageError),
        (Reply(599, text="strange"), AGIError),
    ],
)
@pytest.mark.parametrize(
    ("use", "line"), [(entry[1], entry[2]) for entry in METHODS], ids=[entry[0] for entry in METHODS]
)
def test_a_refusal_by_asterisk(use: Use, line: str, reply: Reply, kind: type[AGIError]) -> None:
    """Each code of refusal is its own error on every method, and carries the command."""
    with pytest.raises(AGIError) as caught:
        use(call(ScriptedDialogue((line, reply))))
    assert type(caught.value) is kind
    assert caught.value.command == line


def test_a_usage_error_tells_asterisks_usage() -> None:
    """What Asterisk explains in a 520 block can be read by the handler's author."""
    dialogue = ScriptedDialogue(("NOOP", Reply(520, text="Usage: NOOP\nDoes nothing.")))
    with pytest.raises(AGIUsageError) as caught:
        call(dialogue).noop()
    assert caught.value.usage == "Usage: NOOP\nDoes nothing."


def test_an_unknown_application() -> None:
    """EXEC's -2 says that the application is not loaded, and waits for no hangup."""
    dialogue = ScriptedDialogue(("EXEC NoSuch", Reply(200, "-2")))
    with pytest.raises(AGIAppError) as caught:
        call(dialogue).exec("NoSuch")
    assert caught.value.command == "EXEC NoSuch"
    assert dialogue.hangups_awaited == 0


def test_hangup_of_a_channel_that_is_not_there() -> None:
    """HANGUP of a foreign name answers -1, which has nothing to do with our own caller."""
    dialogue = ScriptedDialogue(("HANGUP SIP/none", FAILED))
    with pytest.raises(AGICommandFailed, match="no such channel"):
        call(dialogue).hangup("SIP/none")
    assert dialogue.hangups_awaited == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda c: c.set_variable("X", "a\nEXEC System x"),
        lambda c: c.set_variable("X\0", "a"),
        lambda c: c.noop("x" * MAX_COMMAND_BYTES),
        lambda c: c.exec("Dial", "a\r"),
    ],
)
def test_what_would_harm_is_never_sent(use: Use) -> None:
    """A refused command reaches no dialogue, and the call can go on."""
    dialogue = ScriptedDialogue(("NOOP", OK))
    held = call(dialogue)
    with pytest.raises(AGICommandRefused):
        use(held)
    held.noop()
    assert dialogue.finished


def test_the_length_limit_is_the_callers_asterisks() -> None:
    """A call from an Asterisk that reads longer lines may send them."""
    text = "x" * MAX_COMMAND_BYTES
    dialogue = ScriptedDialogue((f"NOOP {text}", OK))
    Call(Request({}), dialogue, max_command_bytes=MAX_COMMAND_BYTES + 100).noop(text)
    assert dialogue.finished


def test_foreign_bytes_are_sent_back() -> None:
    """A name in Latin-1 goes back into a variable as the bytes that came."""

    class Ear(ScriptedDialogue):
        def execute(self, line: bytes) -> Reply:
            heard.append(line)
            return ONE

    heard: list[bytes] = []
    call(Ear()).set_variable("NAME", "J\udcfcrgen")
    assert heard == [b"SET VARIABLE NAME J\xfcrgen\n"]


def test_what_a_call_knows() -> None:
    """Request, captures and reference are the handler's; without captures there is an empty mapping."""
    request = Request({"agi_callerid": "100"})
    make = partial(Call, request, ScriptedDialogue())
    assert dict(make().captures) == {}
    held = make({"1": "x"}, "w1-7")
    assert (held.request, held.captures, held.ref) == (request, {"1": "x"}, "w1-7")
    assert held.hung_up is False
