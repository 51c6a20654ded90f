"""fastagi_pool.call: each method's line, its result, and the error for each kind of failure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from functools import partial

import pytest

from fastagi_pool.call import Call, Dialogue
from fastagi_pool.errors import (
    AGIAppError,
    AGICommandFailed,
    AGICommandRefused,
    AGIDeadChannel,
    AGIError,
    AGIInvalidCommand,
    AGIUsageError,
    CallHangup,
    ToldFailure,
)
from fastagi_pool.protocol import MAX_COMMAND_BYTES, Reply, Request
from fastagi_pool.recording import written
from fastagi_pool.results import (
    ChannelState,
    Digits,
    Playback,
    Recording,
    RecordingEnd,
    Speech,
    SpeechEnd,
    SpeechGuess,
)
from fastagi_pool.testing import split_words

OK = Reply(200, "0")
ONE = Reply(200, "1")
FAILED = Reply(200, "-1")
#: 2023-11-14 22:13:20 UTC, as written in Berlin.
MOMENT = datetime(2023, 11, 14, 23, 13, 20, 900_000, timezone(timedelta(hours=1)))
MOMENT_S = 1_700_000_000


class ScriptedDialogue:
    """Knows which lines will come, and what Asterisk answers to each."""

    def __init__(self, *script: tuple[str, Reply], hangs_up: bool = False, raises: bool = True) -> None:
        """Learn the script.

        Args:
            script: Each line, and its reply.
            hangs_up: Whether a HANGUP follows a -1.
            raises: Whether a hangup is raised, or only noted, as on a route with ``on_hangup: continue``.
        """
        self._script = list(script)
        self._hangs_up = hangs_up
        self._raises = raises
        self.hung_up = False
        self.hangups_awaited = 0
        self.finishes = 0
        self.listener: Callable[[bytes], None] | None = None

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
            if self._raises:
                raise CallHangup("the caller hung up")

    def finish(self) -> None:
        """Count."""
        self.finishes += 1

    def exchange(self, line: bytes) -> bytes:
        """Compare the line with the script and answer it as Asterisk does."""
        return f"{written(self.execute(line))}\n".encode()

    def listen(self, on_unasked: Callable[[bytes], None]) -> None:
        """Keep who listens."""
        self.listener = on_unasked

    @property
    def is_played(self) -> bool:
        """Whether every line came."""
        return not self._script


class Ear(ScriptedDialogue):
    """Takes any line, and answers that all is well."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[bytes] = []

    def execute(self, line: bytes) -> Reply:
        """Keep the line."""
        self.heard.append(line)
        return ONE

    @property
    def words(self) -> list[list[str]]:
        """What Asterisk reads in each line."""
        return [split_words(line.decode().removesuffix("\n")) for line in self.heard]


def call(dialogue: Dialogue) -> Call:
    """Give a call on this dialogue."""
    return Call(Request({"agi_network": "yes"}), dialogue)


Use = Callable[[Call], object]

METHODS: list[tuple[str, Use, str, Reply, object]] = [
    # the channel
    ("answer", Call.answer, "ANSWER", OK, None),
    ("hangup", Call.hangup, "HANGUP", ONE, None),
    ("hangup another", lambda c: c.hangup("SIP/a b"), 'HANGUP "SIP/a b"', ONE, None),
    ("channel_status", Call.channel_status, "CHANNEL STATUS", Reply(200, "6"), ChannelState.UP),
    (
        "channel_status another",
        lambda c: c.channel_status("SIP/1"),
        "CHANNEL STATUS SIP/1",
        OK,
        ChannelState.DOWN,
    ),
    ("set_autohangup", lambda c: c.set_autohangup(30), "SET AUTOHANGUP 30", OK, None),
    ("set_autohangup short", lambda c: c.set_autohangup(0.2), "SET AUTOHANGUP 1", OK, None),
    ("set_autohangup off", lambda c: c.set_autohangup(0), "SET AUTOHANGUP 0", OK, None),
    ("set_autohangup past", lambda c: c.set_autohangup(-3), "SET AUTOHANGUP 0", OK, None),
    ("set_callerid", lambda c: c.set_callerid("100"), "SET CALLERID 100", ONE, None),
    (
        "set_callerid as it is",
        lambda c: c.set_callerid('"Ann" <100>'),
        r'SET CALLERID "\"Ann\" <100>"',
        ONE,
        None,
    ),
    (
        "set_callerid name",
        lambda c: c.set_callerid("100", "Ann B"),
        r'SET CALLERID "\"Ann B\" <100>"',
        ONE,
        None,
    ),
    ("set_music", Call.set_music, "SET MUSIC on", OK, None),
    ("set_music class", lambda c: c.set_music(music_class="jazz"), "SET MUSIC on jazz", OK, None),
    ("set_music off", lambda c: c.set_music(False), "SET MUSIC off", OK, None),
    ("tdd_mode", lambda c: c.tdd_mode("mate"), "TDD MODE mate", ONE, True),
    ("tdd_mode without", lambda c: c.tdd_mode("on"), "TDD MODE on", OK, False),
    # where the dialplan goes on
    ("set_context", lambda c: c.set_context("sales"), "SET CONTEXT sales", OK, None),
    ("set_extension", lambda c: c.set_extension("100"), "SET EXTENSION 100", OK, None),
    ("set_priority", lambda c: c.set_priority(2), "SET PRIORITY 2", OK, None),
    ("set_priority label", lambda c: c.set_priority("start"), "SET PRIORITY start", OK, None),
    (
        "gosub",
        lambda c: c.gosub("sub", "s"),
        "GOSUB sub s 1",
        Reply(200, "0", text="Gosub complete"),
        None,
    ),
    ("gosub arguments", lambda c: c.gosub("sub", "s", "go", "a", "b"), "GOSUB sub s go a,b", OK, None),
    ("gosub argument", lambda c: c.gosub("sub", "s", 1, "a b,c"), 'GOSUB sub s 1 "a b,c"', OK, None),
    (
        "gosub brackets",
        lambda c: c.gosub("sub", "s", 1, "f(a,b)", "c)"),
        "GOSUB sub s 1 f(a,b),c)",
        OK,
        None,
    ),
    # talking to the console
    ("verbose", lambda c: c.verbose("hi there"), 'VERBOSE "hi there" 1', ONE, None),
    ("verbose level", lambda c: c.verbose("hi", 4), "VERBOSE hi 4", ONE, None),
    ("noop", Call.noop, "NOOP", OK, None),
    ("noop text", lambda c: c.noop("a b"), 'NOOP "a b"', OK, None),
    ("asyncagi_break", Call.asyncagi_break, "ASYNCAGI BREAK", OK, None),
    ("raw", lambda c: c.raw("SET VARIABLE", "X", "a b"), 'SET VARIABLE X "a b"', ONE, ONE),
    ("raw alone", lambda c: c.raw("answer"), "answer", OK, OK),
    ("raw minus one", lambda c: c.raw("EXEC", "Dial", ""), 'EXEC Dial ""', FAILED, FAILED),
    # variables
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
    ("set_variable", lambda c: c.set_variable("X", 'a "b"'), r'SET VARIABLE X "a \"b\""', ONE, None),
    ("set_variable empty", lambda c: c.set_variable("X", ""), 'SET VARIABLE X ""', ONE, None),
    # Asterisk's own database
    ("database_get", lambda c: c.database_get("f", "k"), "DATABASE GET f k", Reply(200, "1", "v"), "v"),
    ("database_get none", lambda c: c.database_get("f", "k"), "DATABASE GET f k", OK, None),
    ("database_put", lambda c: c.database_put("f", "k", "a b"), 'DATABASE PUT f k "a b"', ONE, None),
    ("database_del", lambda c: c.database_del("f", "k"), "DATABASE DEL f k", ONE, None),
    ("database_deltree", lambda c: c.database_deltree("f"), "DATABASE DELTREE f", OK, True),
    ("database_deltree none", lambda c: c.database_deltree("f", "a"), "DATABASE DELTREE f a", ONE, False),
    # applications
    ("exec", lambda c: c.exec("Answer"), "EXEC Answer", OK, 0),
    ("exec arguments", lambda c: c.exec("Dial", "SIP/1", "", "t"), "EXEC Dial SIP/1,,t", OK, 0),
    ("exec quoted", lambda c: c.exec("Set", "X=a b"), 'EXEC Set "X=a b"', OK, 0),
    ("exec one argument", lambda c: c.exec("Set", "LIST=a,b"), "EXEC Set LIST=a,b", OK, 0),
    ("exec comma", lambda c: c.exec("Log", "NOTICE", "a,b"), r'EXEC Log "NOTICE,a\\,b"', OK, 0),
    (
        "exec options",
        lambda c: c.exec("Dial", "SIP/1", "30", "U(sub^a,b)"),
        "EXEC Dial SIP/1,30,U(sub^a,b)",
        OK,
        0,
    ),
    ("exec empty argument", lambda c: c.exec("Wait", ""), 'EXEC Wait ""', OK, 0),
    ("exec result", lambda c: c.exec("Queue", "q"), "EXEC Queue q", ONE, 1),
    # sound and digits
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
    (
        "control_stream_file",
        lambda c: c.control_stream_file("hello"),
        'CONTROL STREAM FILE hello "" 3000 # * ""',
        Reply(200, "0", None, -1),
        Playback("", -1),
    ),
    (
        "control_stream_file keys",
        lambda c: c.control_stream_file("hello", "1", 0.5, "6", "4", "5", offset_s=1.5),
        "CONTROL STREAM FILE hello 1 500 6 4 5 1500",
        Reply(200, "49", None, 2500),
        Playback("1", 2500),
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
    ("get_data at once", lambda c: c.get_data("pin", 0), "GET DATA pin 1", Reply(200, ""), Digits("", False)),
    (
        "get_option",
        lambda c: c.get_option("menu", "12"),
        "GET OPTION menu 12",
        Reply(200, "50", None, 640),
        Playback("2", 640),
    ),
    (
        "get_option time",
        lambda c: c.get_option("menu", "12", 1.5),
        "GET OPTION menu 12 1500",
        Reply(200, "0", None, 8000),
        Playback("", 8000),
    ),
    ("wait_for_digit", Call.wait_for_digit, "WAIT FOR DIGIT -1", Reply(200, "49"), "1"),
    ("wait_for_digit time", lambda c: c.wait_for_digit(0.2504), "WAIT FOR DIGIT 250", OK, ""),
    ("wait_for_digit none", lambda c: c.wait_for_digit(0), "WAIT FOR DIGIT 0", OK, ""),
    ("wait_for_digit past", lambda c: c.wait_for_digit(-3), "WAIT FOR DIGIT 0", OK, ""),
    (
        "record_file",
        lambda c: c.record_file("memo"),
        'RECORD FILE memo wav "" -1',
        Reply(200, "35", "dtmf", 16000),
        Recording(RecordingEnd.DIGIT, "#", 16000),
    ),
    (
        "record_file in full",
        lambda c: c.record_file("memo", "gsm", "#*", 4.5, 800, True, 1.2),
        "RECORD FILE memo gsm #* 4500 800 BEEP s=2",
        Reply(200, "0", "timeout", 36000),
        Recording(RecordingEnd.TIMEOUT, "", 36000),
    ),
    (
        "record_file silence",
        lambda c: c.record_file("memo", silence_s=3),
        'RECORD FILE memo wav "" -1 s=3',
        Reply(200, "99981", "timeout", 24000),
        Recording(RecordingEnd.TIMEOUT, "", 24000),
    ),
    # saying
    ("say_number", lambda c: c.say_number(-5), 'SAY NUMBER -5 ""', OK, ""),
    ("say_number escape", lambda c: c.say_number(5, "*"), "SAY NUMBER 5 *", Reply(200, "42"), "*"),
    ("say_number gender", lambda c: c.say_number(1, gender="f"), 'SAY NUMBER 1 "" f', OK, ""),
    ("say_digits", lambda c: c.say_digits("007"), 'SAY DIGITS 007 ""', OK, ""),
    ("say_digits escape", lambda c: c.say_digits("7", "0"), "SAY DIGITS 7 0", Reply(200, "48"), "0"),
    ("say_alpha", lambda c: c.say_alpha("a b"), 'SAY ALPHA "a b" ""', OK, ""),
    ("say_phonetic", lambda c: c.say_phonetic("ab", "1"), "SAY PHONETIC ab 1", Reply(200, "49"), "1"),
    ("say_date", lambda c: c.say_date(MOMENT), f'SAY DATE {MOMENT_S} ""', OK, ""),
    ("say_date seconds", lambda c: c.say_date(MOMENT_S + 0.9, "1"), f"SAY DATE {MOMENT_S} 1", OK, ""),
    ("say_time", lambda c: c.say_time(MOMENT), f'SAY TIME {MOMENT_S} ""', OK, ""),
    ("say_datetime", lambda c: c.say_datetime(MOMENT), f'SAY DATETIME {MOMENT_S} ""', OK, ""),
    (
        "say_datetime format",
        lambda c: c.say_datetime(MOMENT, "1", "IMp", "Europe/Berlin"),
        f"SAY DATETIME {MOMENT_S} 1 IMp Europe/Berlin",
        OK,
        "",
    ),
    (
        "say_datetime zone",
        lambda c: c.say_datetime(MOMENT, time_zone="Europe/Berlin"),
        f'SAY DATETIME {MOMENT_S} "" "ABdY \'digits/at\' IMp" Europe/Berlin',
        OK,
        "",
    ),
    # text and pictures
    ("receive_char", Call.receive_char, "RECEIVE CHAR -1", Reply(200, "65"), "A"),
    ("receive_char none", lambda c: c.receive_char(0), "RECEIVE CHAR 0", Reply(200, "0", "timeout"), ""),
    ("receive_text", Call.receive_text, "RECEIVE TEXT -1", Reply(200, "1", "hi there"), "hi there"),
    ("receive_text empty", lambda c: c.receive_text(2), "RECEIVE TEXT 2000", ONE, ""),
    ("send_text", lambda c: c.send_text("hi there"), 'SEND TEXT "hi there"', OK, None),
    ("send_image", lambda c: c.send_image("logo"), "SEND IMAGE logo", OK, None),
    # speech
    ("speech_create", lambda c: c.speech_create("lumen"), "SPEECH CREATE lumen", ONE, None),
    ("speech_create default", Call.speech_create, 'SPEECH CREATE ""', ONE, None),
    ("speech_set", lambda c: c.speech_set("name", "a b"), 'SPEECH SET name "a b"', ONE, None),
    ("speech_destroy", Call.speech_destroy, "SPEECH DESTROY", ONE, None),
    (
        "speech_load_grammar",
        lambda c: c.speech_load_grammar("g", "/g"),
        "SPEECH LOAD GRAMMAR g /g",
        ONE,
        None,
    ),
    ("speech_unload_grammar", lambda c: c.speech_unload_grammar("g"), "SPEECH UNLOAD GRAMMAR g", ONE, None),
    (
        "speech_activate_grammar",
        lambda c: c.speech_activate_grammar("g"),
        "SPEECH ACTIVATE GRAMMAR g",
        ONE,
        None,
    ),
    (
        "speech_deactivate_grammar",
        lambda c: c.speech_deactivate_grammar("g"),
        "SPEECH DEACTIVATE GRAMMAR g",
        ONE,
        None,
    ),
    (
        "speech_recognize",
        lambda c: c.speech_recognize("menu", 2.1),
        "SPEECH RECOGNIZE menu 3",
        Reply(200, "1", "speech", 640, 'results=1 score0=900 text0="yes please" grammar0=yn'),
        Speech(SpeechEnd.SPEECH, "", 640, (SpeechGuess("yes please", 900, "yn"),)),
    ),
    (
        "speech_recognize offset",
        lambda c: c.speech_recognize("menu", 0, 800),
        "SPEECH RECOGNIZE menu 0 800",
        Reply(200, "1", "timeout", 8000),
        Speech(SpeechEnd.TIMEOUT, "", 8000),
    ),
]

#: The methods for which -1 says that something failed; the others give it no meaning.
FAILING: list[tuple[str, Use, str]] = [
    ("answer", Call.answer, "ANSWER"),
    ("channel_status", Call.channel_status, "CHANNEL STATUS"),
    ("tdd_mode", lambda c: c.tdd_mode("on"), "TDD MODE on"),
    ("gosub", lambda c: c.gosub("a", "b", 1), "GOSUB a b 1"),
    ("exec", lambda c: c.exec("Hangup"), "EXEC Hangup"),
    ("stream_file", lambda c: c.stream_file("x", "1"), "STREAM FILE x 1"),
    (
        "control_stream_file",
        lambda c: c.control_stream_file("x", "1", 1, "2", "3", "4"),
        "CONTROL STREAM FILE x 1 1000 2 3 4",
    ),
    ("get_data", lambda c: c.get_data("x"), "GET DATA x"),
    ("get_option", lambda c: c.get_option("x", "1"), "GET OPTION x 1"),
    ("wait_for_digit", lambda c: c.wait_for_digit(1), "WAIT FOR DIGIT 1000"),
    ("record_file", lambda c: c.record_file("x", "wav", "1", 1), "RECORD FILE x wav 1 1000"),
    ("say_number", lambda c: c.say_number(1, "1"), "SAY NUMBER 1 1"),
    ("say_digits", lambda c: c.say_digits("1", "1"), "SAY DIGITS 1 1"),
    ("say_alpha", lambda c: c.say_alpha("a", "1"), "SAY ALPHA a 1"),
    ("say_phonetic", lambda c: c.say_phonetic("a", "1"), "SAY PHONETIC a 1"),
    ("say_date", lambda c: c.say_date(1, "1"), "SAY DATE 1 1"),
    ("say_time", lambda c: c.say_time(1, "1"), "SAY TIME 1 1"),
    ("say_datetime", lambda c: c.say_datetime(1, "1"), "SAY DATETIME 1 1"),
    ("receive_char", lambda c: c.receive_char(1), "RECEIVE CHAR 1000"),
    ("receive_text", lambda c: c.receive_text(1), "RECEIVE TEXT 1000"),
    ("send_text", lambda c: c.send_text("x"), "SEND TEXT x"),
    ("send_image", lambda c: c.send_image("x"), "SEND IMAGE x"),
    ("speech_create", lambda c: c.speech_create("x"), "SPEECH CREATE x"),
    ("speech_recognize", lambda c: c.speech_recognize("x", 1), "SPEECH RECOGNIZE x 1"),
]

#: Results other than -1 that say that something failed; no hangup is behind them.
REFUSING: list[tuple[str, Use, str, Reply, str]] = [
    ("hangup", lambda c: c.hangup("SIP/none"), "HANGUP SIP/none", FAILED, "no such channel"),
    ("database_put", lambda c: c.database_put("f", "k", "v"), "DATABASE PUT f k v", OK, "could not write it"),
    ("speech_create", lambda c: c.speech_create("x"), "SPEECH CREATE x", OK, "its speech engine"),
    ("speech_set", lambda c: c.speech_set("n", "v"), "SPEECH SET n v", OK, "its speech engine"),
    ("speech_destroy", Call.speech_destroy, "SPEECH DESTROY", OK, "its speech engine"),
    ("speech_load", lambda c: c.speech_load_grammar("g", "/g"), "SPEECH LOAD GRAMMAR g /g", OK, "engine"),
    ("speech_unload", lambda c: c.speech_unload_grammar("g"), "SPEECH UNLOAD GRAMMAR g", OK, "engine"),
    ("speech_activate", lambda c: c.speech_activate_grammar("g"), "SPEECH ACTIVATE GRAMMAR g", OK, "engine"),
    (
        "speech_deactivate",
        lambda c: c.speech_deactivate_grammar("g"),
        "SPEECH DEACTIVATE GRAMMAR g",
        OK,
        "engine",
    ),
    ("speech_recognize", lambda c: c.speech_recognize("x", 1), "SPEECH RECOGNIZE x 1", OK, "listen for"),
]

#: Replies that these commands cannot have.
NONSENSE: list[tuple[str, Use, str, Reply]] = [
    ("channel_status 17", Call.channel_status, "CHANNEL STATUS", Reply(200, "17")),
    ("channel_status word", Call.channel_status, "CHANNEL STATUS", Reply(200, "up")),
    ("exec", lambda c: c.exec("Answer"), "EXEC Answer", Reply(200, "")),
    ("stream_file", lambda c: c.stream_file("x", "1"), "STREAM FILE x 1", Reply(200, "#")),
    ("wait_for_digit", Call.wait_for_digit, "WAIT FOR DIGIT -1", Reply(200, "1114112")),
    ("say_digits", lambda c: c.say_digits("1", "1"), "SAY DIGITS 1 1", Reply(200, "-3")),
    ("record_file", lambda c: c.record_file("x", "wav", "1"), "RECORD FILE x wav 1 -1", OK),
    ("speech_recognize", lambda c: c.speech_recognize("x", 1), "SPEECH RECOGNIZE x 1", ONE),
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
    assert dialogue.is_played
    assert dialogue.hangups_awaited == 0


def test_every_method_is_tested() -> None:
    """A method that sends a command has a line in the table."""
    public = {name for name, item in vars(Call).items() if callable(item) and not name.startswith("_")}
    assert public - {"finish", "relay"} == {entry[0].split()[0] for entry in METHODS}


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


@pytest.mark.parametrize(("use", "line"), [entry[1:] for entry in FAILING], ids=names(FAILING))
def test_a_hangup_told_before_is_a_dead_channel_now(use: Use, line: str) -> None:
    """On a channel that is known to be dead, -1 says so: the handler need not look for another reason."""
    dialogue = ScriptedDialogue((line, FAILED))
    dialogue.hung_up = True
    with pytest.raises(AGIDeadChannel) as caught:
        use(call(dialogue))
    assert caught.value.command == line


@pytest.mark.parametrize(("use", "line"), [entry[1:] for entry in FAILING], ids=names(FAILING))
def test_a_hangup_that_is_not_raised_is_a_dead_channel(use: Use, line: str) -> None:
    """Where a hangup is only noted, the command that it broke off is AGIDeadChannel."""
    dialogue = ScriptedDialogue((line, FAILED), hangs_up=True, raises=False)
    held = call(dialogue)
    with pytest.raises(AGIDeadChannel):
        use(held)
    assert held.hung_up


@pytest.mark.parametrize(
    ("use", "line", "reply", "reason"),
    [entry[1:] for entry in REFUSING],
    ids=[entry[0] for entry in REFUSING],
)
def test_a_result_that_means_failed(use: Use, line: str, reply: Reply, reason: str) -> None:
    """A result by which Asterisk says no is AGICommandFailed with its reason, and no hangup is awaited."""
    dialogue = ScriptedDialogue((line, reply))
    with pytest.raises(AGICommandFailed, match=reason) as caught:
        use(call(dialogue))
    assert caught.value.command == line
    assert dialogue.hangups_awaited == 0


@pytest.mark.parametrize(
    ("use", "line", "reply"), [entry[1:] for entry in NONSENSE], ids=[entry[0] for entry in NONSENSE]
)
def test_a_result_that_makes_no_sense(use: Use, line: str, reply: Reply) -> None:
    """An answer that the command cannot have is an AGIError that names it, never a ValueError."""
    with pytest.raises(AGIError, match="cannot mean") as caught:
        use(call(ScriptedDialogue((line, reply))))
    assert type(caught.value) is AGIError
    assert caught.value.command == line


@pytest.mark.parametrize("hung_up", [True, False], ids=["told", "AGISIGHUP=no"])
def test_a_recording_that_the_caller_ended(hung_up: bool) -> None:
    """Where a hangup is not raised, a recording that it ended is a result: the file is there."""
    script = ("RECORD FILE memo wav # -1", Reply(200, "-1", "hangup", 16000))
    dialogue = ScriptedDialogue(script, hangs_up=hung_up, raises=False)
    found = call(dialogue).record_file("memo", escape_digits="#")
    assert found == Recording(RecordingEnd.HANGUP, "", 16000)
    assert dialogue.hangups_awaited == 1


def test_a_recording_that_could_not_be_written() -> None:
    """A full disk is a failure of the command, though Asterisk names a reason."""
    script = ("RECORD FILE memo wav # -1", Reply(200, "-1", "writefile", 0))
    with pytest.raises(AGICommandFailed):
        call(ScriptedDialogue(script)).record_file("memo", escape_digits="#")


def test_a_recording_raises_the_hangup() -> None:
    """A caller who hangs up during a recording ends the call like everywhere."""
    script = ("RECORD FILE memo wav # -1", Reply(200, "-1", "hangup", 16000))
    with pytest.raises(CallHangup):
        call(ScriptedDialogue(script, hangs_up=True)).record_file("memo", escape_digits="#")


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
    """A refused command reaches no dialogue, is counted, and the call can go on."""
    dialogue = ScriptedDialogue(("NOOP", OK))
    held = call(dialogue)
    for count in (1, 2):
        with pytest.raises(AGICommandRefused):
            use(held)
        assert held.refused == count
    held.noop()
    assert dialogue.is_played
    assert held.refused == 2


@pytest.mark.parametrize("argument", ["a,b", "(a", "[a", '"a', "a\\"])
def test_gosub_refuses_what_it_cannot_pass_on(argument: str) -> None:
    """GOSUB leaves backslashes where they are, so an argument that would be taken apart cannot be escaped."""
    for arguments in ((argument, "x"), ("x", argument)):
        held = call(ScriptedDialogue())
        with pytest.raises(AGICommandRefused, match="take an argument apart"):
            held.gosub("sub", "s", 1, *arguments)
        assert held.refused == 1


@pytest.mark.parametrize(
    ("value", "asked_again"),
    [
        ("x" * 1022, False),
        ("x" * 1023, True),
        ("ü" * 511, False),
        ("ü" * 511 + "\udcc3", True),
        ("x" * 255, False),
    ],
)
def test_a_value_that_may_have_been_cut(value: str, asked_again: bool) -> None:
    """At the length in bytes at which Asterisk cuts, also in the middle of a character, all is fetched."""
    script = [("GET VARIABLE CALLERID(name)", Reply(200, "1", value))]
    if asked_again:
        script.append(("GET FULL VARIABLE ${CALLERID(name)}", Reply(200, "1", "the whole")))
    dialogue = ScriptedDialogue(*script)
    assert call(dialogue).get_variable("CALLERID(name)") == ("the whole" if asked_again else value)
    assert dialogue.is_played


@pytest.mark.parametrize("command", ["failure", "FAILURE", "Failures", "failure x", " \tfailure"])
@pytest.mark.parametrize("clean", [False, True], ids=["strict", "clean"])
def test_raw_does_not_end_the_session(command: str, clean: bool) -> None:
    """The line that Asterisk takes for the end of the session is no command, however it is written."""
    held = Call(Request({}), ScriptedDialogue(), clean_arguments=clean)
    with pytest.raises(AGICommandRefused, match="ends the session") as caught:
        held.raw(command)
    assert caught.value.command == command
    assert held.refused == 1


@pytest.mark.parametrize("command", ['SET VARIABLE "X', "SET VARIABLE X\\", '"'])
def test_raw_leaves_no_quote_open(command: str) -> None:
    """A quote or a backslash at the end of a command's own words must not reach its arguments."""
    made = call(ScriptedDialogue())
    with pytest.raises(AGICommandRefused, match="left open"):
        made.raw(command, "value")
    assert made.refused == 1


def test_raw_may_name_a_failure() -> None:
    """The word stands for itself where it does not begin the line."""
    dialogue = ScriptedDialogue(("NOOP failure", OK))
    call(dialogue).raw("NOOP", "failure")
    assert dialogue.is_played


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda c: c.set_variable("X", "a\nEXEC System x"), ["SET", "VARIABLE", "X", "a EXEC System x"]),
        (lambda c: c.set_variable("X\0", "\r\n"), ["SET", "VARIABLE", "X ", "  "]),
        (lambda c: c.verbose("half a \ud83d"), ["VERBOSE", "half a ?", "1"]),
        (lambda c: c.exec("Dial", "a\r", "b"), ["EXEC", "Dial", "a ,b"]),
        (lambda c: c.raw("NOOP", "a\tb\n"), ["NOOP", "a\tb "]),
    ],
)
def test_arguments_are_cleaned_where_wanted(use: Use, words: list[str]) -> None:
    """A call with clean arguments sends spaces instead of what would harm, and refuses nothing."""
    ear = Ear()
    held = Call(Request({}), ear, clean_arguments=True)
    use(held)
    assert ear.words == [words]
    assert held.refused == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda c: c.noop("x" * MAX_COMMAND_BYTES),
        lambda c: c.noop("\n" * MAX_COMMAND_BYTES),
        lambda c: c.raw("NOOP", *["x"] * 127),
        lambda c: c.raw("NOOP\nEXEC System x"),
    ],
    ids=["long", "long when cleaned", "words", "name"],
)
def test_cleaning_mends_arguments_only(use: Use) -> None:
    """What cannot be mended by spaces is refused on a call with clean arguments too."""
    held = Call(Request({}), ScriptedDialogue(), clean_arguments=True)
    with pytest.raises(AGICommandRefused):
        use(held)
    assert held.refused == 1


class Speaker:
    """A far end that says what it is told to, and keeps what it hears."""

    def __init__(self, *lines: bytes) -> None:
        self._lines = list(lines)
        self.answers: list[bytes] = []
        self.unasked: list[bytes] = []

    def next_line(self) -> bytes:
        """Say the next line; nothing at the end."""
        # Whoever asks for a line has given the answer to the one before.
        return self._lines.pop(0) if self._lines else b""

    def answer(self, reply: bytes) -> None:
        """Keep it."""
        self.answers.append(reply)

    def on_unasked(self, data: bytes) -> None:
        """Keep it."""
        self.unasked.append(data)


def test_a_relay_carries_lines_and_replies() -> None:
    """Lines go out as they were said, in order, and each reply comes back as Asterisk gave it."""
    dialogue = ScriptedDialogue(
        ("ANSWER\r", OK), ("", Reply(510, text="Invalid")), ('GET VARIABLE "X', Reply(200, "1", "a b"))
    )
    far_end = Speaker(b"ANSWER\r\n", b"\n", b'GET VARIABLE "X\n')
    made = call(dialogue)
    made.relay(far_end)
    assert dialogue.is_played
    assert far_end.answers == [b"200 result=0\n", b"510 Invalid\n", b"200 result=1 (a b)\n"]
    assert made.refused == 0


def test_a_relay_listens() -> None:
    """The far end hears of a hangup from before its first line on."""
    dialogue = ScriptedDialogue()
    far_end = Speaker()
    call(dialogue).relay(far_end)
    assert dialogue.listener is not None
    dialogue.listener(b"HANGUP\n")
    assert far_end.unasked == [b"HANGUP\n"]


@pytest.mark.parametrize("line", [b"failure\n", b"FAILURE\n", b"Failures of all kinds\n", b"failure"])
def test_a_relay_tells_of_a_failure(line: bytes) -> None:
    """The line that ends the session is raised, as it was said, and neither sent nor refused."""
    far_end = Speaker(b"NOOP\n", line, b"NOOP\n")
    made = call(ScriptedDialogue(("NOOP", OK)))
    with pytest.raises(ToldFailure) as caught:
        made.relay(far_end)
    assert (caught.value.line, caught.value.said_all) == (line, False)
    assert (far_end.answers, made.refused) == ([b"200 result=0\n"], 0)


def test_a_relay_passes_a_failure_that_is_none() -> None:
    """As for Asterisk, the word ends a session only where it begins the line."""
    dialogue = ScriptedDialogue((" failure", OK), ("NOOP failure", OK))
    call(dialogue).relay(Speaker(b" failure\n", b"NOOP failure\n"))
    assert dialogue.is_played


@pytest.mark.parametrize(
    "line",
    [b"NOOP \0\n", b"x" * MAX_COMMAND_BYTES + b"\n", b"x " * 128 + b"\n", b"NOOP"],
    ids=["NUL", "long", "words", "half"],
)
def test_a_relay_holds_back_what_would_harm(line: bytes) -> None:
    """A harmful line is answered here, so that the far end stays in step, and is counted."""
    dialogue = ScriptedDialogue(("NOOP", OK))
    far_end = Speaker(line, b"NOOP\n")
    made = call(dialogue)
    made.relay(far_end)
    assert far_end.answers == [b"510 Invalid or unknown command\n", b"200 result=0\n"]
    assert made.refused == 1


def test_a_relay_knows_its_asterisk() -> None:
    """How long a line may be is what this call's Asterisk reads."""
    text = "x" * MAX_COMMAND_BYTES
    dialogue = ScriptedDialogue((text, OK))
    Call(Request({}), dialogue, max_command_bytes=MAX_COMMAND_BYTES + 1).relay(Speaker(f"{text}\n".encode()))
    assert dialogue.is_played


def test_finish_gives_the_call_back() -> None:
    """Finishing is the dialogue's to do: no command is sent for it."""
    dialogue = ScriptedDialogue()
    call(dialogue).finish()
    assert dialogue.finishes == 1


def test_a_callers_name_with_quotes() -> None:
    """A name that holds quotes and backslashes stays one quoted name in what Asterisk reads."""
    ear = Ear()
    call(ear).set_callerid("100", 'Ann "B" \\')
    [words] = ear.words
    assert words == ["SET", "CALLERID", r'"Ann \"B\" \\" <100>']


def test_a_naive_moment_is_local_time() -> None:
    """A datetime without a zone means this machine's time, as everywhere in Python."""
    local = datetime.fromtimestamp(MOMENT_S, UTC).astimezone().replace(tzinfo=None)
    dialogue = ScriptedDialogue((f'SAY TIME {MOMENT_S} ""', OK))
    call(dialogue).say_time(local)
    assert dialogue.is_played


def test_the_length_limit_is_the_callers_asterisks() -> None:
    """A call from an Asterisk that reads longer lines may send them."""
    text = "x" * MAX_COMMAND_BYTES
    dialogue = ScriptedDialogue((f"NOOP {text}", OK))
    Call(Request({}), dialogue, max_command_bytes=MAX_COMMAND_BYTES + 100).noop(text)
    assert dialogue.is_played


def test_foreign_bytes_are_sent_back() -> None:
    """A name in Latin-1 goes back into a variable as the bytes that came."""
    ear = Ear()
    call(ear).set_variable("NAME", "J\udcfcrgen")
    assert ear.heard == [b"SET VARIABLE NAME J\xfcrgen\n"]


def test_what_a_call_knows() -> None:
    """Request, captures and reference are the handler's; without captures there is an empty mapping."""
    request = Request({"agi_callerid": "100"})
    make = partial(Call, request, ScriptedDialogue())
    assert dict(make().captures) == {}
    held = make({"1": "x"}, "w1-7")
    assert (held.request, held.captures, held.ref) == (request, {"1": "x"}, "w1-7")
    assert held.hung_up is False
