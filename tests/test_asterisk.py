"""fastagi_pool.asterisk: the conversation of FakeAsterisk, and what it finds fault with.

tests/corpus/test_fake_asterisk.py compares it with two real Asterisks.
"""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastagi_pool.asterisk import (
    HANGUP,
    AgiStatus,
    Behaviour,
    Caller,
    Command,
    FakeAsterisk,
    environment,
    split_words,
)
from fastagi_pool.errors import AGICommandRefused
from fastagi_pool.protocol import AgiConnection, ConnectionClosed, Hangup, Reply, Request, encode_command

_URL: Final = "agi://127.0.0.1:4577/hello?x=1"
_OK: Final = b"200 result=0\n"
_UNKNOWN: Final = b"510 Invalid or unknown command\n"
_DEAD: Final = b"511 Command Not Permitted on a dead channel or intercept routine\n"
_OLD: Final = "16.28.0"


def call(**behaviour: Any) -> FakeAsterisk:
    """Make a call by Alice; the arguments are those of Behaviour."""
    return FakeAsterisk(_URL, (), None, Behaviour(**behaviour))


def request_of(header: str) -> Request:
    """Read an environment as the server does."""
    agi = AgiConnection()
    agi.receive_data(header.encode("utf-8", "surrogateescape"))
    request = agi.next_event()
    assert isinstance(request, Request)
    return request


# ---- the environment


def test_environment() -> None:
    """The environment says who calls and what was asked for."""
    caller = Caller("200", "J\udcfcrgen", "ctx", "5", "SIP/b-1", "17.2")
    request = request_of(environment(_URL, ("a", "", "b c"), caller, "16.28.0"))
    assert request.arguments == ("a", "", "b c")
    assert request.network_script == "hello?x=1"
    assert (request.callerid, request.calleridname) == ("200", "J\udcfcrgen")
    assert (request.context, request.extension) == ("ctx", "5")
    assert (request.channel, request.uniqueid) == ("SIP/b-1", "17.2")
    assert request.environment["agi_type"] == "SIP"
    assert request.environment["agi_version"] == "16.28.0"


def test_absent_number_and_name() -> None:
    """A caller who sends no number and no name is unknown."""
    request = request_of(environment(_URL, (), Caller(number="", name="")))
    assert (request.callerid, request.calleridname) == ("unknown", "unknown")


@pytest.mark.parametrize("url", ["agi://host", "agi://host/"])
def test_no_path(url: str) -> None:
    """Without a path there is no line for it."""
    assert "agi_network_script" not in request_of(environment(url)).environment


def test_most_arguments() -> None:
    """There are at most 127 arguments; the last one holds the rest, with its commas."""
    request = request_of(environment(_URL, [str(number) for number in range(130)]))
    assert len(request.arguments) == 127
    assert request.arguments[-1] == "126,127,128,129"


def test_dead_channel_comes_from_h() -> None:
    """A script on a dead channel runs in the extension h, and is told of no hangup before its end."""
    asterisk = call(dead=True)
    header = asterisk.begin()
    assert request_of(header.decode()).extension == "h"
    assert header.endswith(b"\n\n")
    assert asterisk.hung_up
    assert asterisk.hang_up() == b""
    assert asterisk.receive(b"ANSWER\n") == _DEAD
    assert asterisk.receive_eof() == b"HANGUP\n"
    assert asterisk.status is AgiStatus.SUCCESS


# ---- words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        (" \t ", []),
        ("  NOOP  x ", ["NOOP", "x"]),
        ("GET\tVARIABLE\t A", ["GET", "VARIABLE", "A"]),
        ('A "two words" ""', ["A", "two words", ""]),
        ('x"quoted part"y', ["xquoted party"]),
        (r"A a\ b \" \\", ["A", "a b", '"', "\\"]),
        (r'"C:\dir"', ["C:dir"]),
        ('"unterminated word', ["unterminated word"]),
        ("'single quotes'", ["'single", "quotes'"]),
        ("A \\", ["A"]),
        ('A "', ["A", ""]),
        ("A 1\r", ["A", "1\r"]),
    ],
)
def test_split_words(line: str, words: list[str]) -> None:
    """A line is taken apart as Asterisk does it."""
    assert split_words(line) == words


@settings(derandomize=True, deadline=None)
@given(st.lists(st.text(), max_size=6))
def test_what_we_send_arrives(words: list[str]) -> None:
    """Every command that we let out arrives word for word, and is no fault."""
    try:
        line = encode_command("NOOP", tuple(words))
    except AGICommandRefused:
        return
    asterisk = call(version=_OLD)
    assert asterisk.receive(line) == _OK
    assert asterisk.commands[0].words == ("NOOP", *words)
    assert asterisk.faults == []


# ---- lines and segments


def test_a_conversation() -> None:
    """One line brings one reply; all lines are put down as they were run."""
    asterisk = call()
    assert asterisk.receive(b'SET VARIABLE X "two words"\n') == b"200 result=1\n"
    assert asterisk.receive(b"get variable X\n") == b"200 result=1 (two words)\n"
    assert asterisk.receive(b"\n") == _UNKNOWN
    assert asterisk.receive(b"GET VARIABLE\n").count(b"\n") == 3
    assert asterisk.commands[:3] == [
        Command('SET VARIABLE X "two words"', ("SET", "VARIABLE", "X", "two words"), "200 result=1"),
        Command("get variable X", ("get", "variable", "X"), "200 result=1 (two words)"),
        Command("", (), "510 Invalid or unknown command"),
    ]
    assert asterisk.commands[3].reply.count("\n") == 2
    assert asterisk.receive_eof() == b"HANGUP\n"
    assert asterisk.ended
    assert asterisk.status is AgiStatus.SUCCESS
    assert asterisk.faults == []


def test_what_is_left_of_the_call() -> None:
    """Afterwards one can see what the script has done to the channel."""
    asterisk = call(variables={"A": "1"}, database={"f/k": "v"})
    for line in (
        "SET VARIABLE B 2",
        "DATABASE PUT f l w",
        'VERBOSE "a message" 1',
        "EXEC Goto c,e,n",
        "ANSWER",
    ):
        asterisk.receive(f"{line}\n".encode())
    assert asterisk.variables == {"A": "1", "B": "2"}
    assert asterisk.database == {"f/k": "v", "f/l": "w"}
    assert asterisk.console == ["a message"]
    assert asterisk.location == ("c", "e", "n")
    assert not asterisk.hung_up


def test_second_line_is_left_lying() -> None:
    """A second line of one segment is run when more comes, and that is a fault."""
    asterisk = call()
    assert asterisk.receive(b"NOOP\nGET VARIABLE EXTEN\nANSWER\n") == _OK
    (fault,) = asterisk.faults
    assert fault.startswith("more than one line in a segment: b'GET VARIABLE EXTEN")
    assert asterisk.receive(b"CHANNEL STATUS\n") == b"200 result=1 (100)\n200 result=0\n200 result=6\n"
    assert asterisk.faults == [fault]


def test_closing_runs_what_is_left() -> None:
    """Several lines in one segment are no fault if the server closes behind them: they are all run."""
    asterisk = call()
    assert asterisk.receive(b"SET VARIABLE A 1\nSET VARIABLE B 2\nfailure\nNOOP\n") == b"200 result=1\n"
    assert len(asterisk.faults) == 1
    assert asterisk.receive_eof() == b"200 result=1\nHANGUP\n"
    assert asterisk.variables == {"A": "1", "B": "2"}
    assert asterisk.status is AgiStatus.FAILURE
    assert asterisk.faults == []


def test_half_a_line() -> None:
    """Half a line makes Asterisk spin, blind to a hangup, until the rest comes."""
    asterisk = call()
    assert asterisk.receive(b"GET VARIA") == b""
    assert asterisk.hang_up() == b""
    assert asterisk.receive(b"BLE EXT") == b""
    assert asterisk.receive(b"EN\n") == b"200 result=1 (100)\nHANGUP\n"
    assert asterisk.faults == ["half a line: Asterisk spins until the rest comes: b'GET VARIA'"]


def test_command_on_a_channel_just_hung_up() -> None:
    """What runs before Asterisk has noticed the hangup fails, but does not make AGISTATUS FAILURE."""
    for line, reply in (("ANSWER", b"200 result=-1\n"), ("WAIT FOR DIGIT 1", b"200 result=-1\n")):
        asterisk = call()
        asterisk.receive(line[:3].encode())
        asterisk.hang_up()
        assert asterisk.receive(f"{line[3:]}\n".encode()) == reply + b"HANGUP\n"
        assert asterisk.status is AgiStatus.HANGUP


def test_last_line_without_its_end() -> None:
    """At the server's end half a line is run as it is, even a NUL's."""
    for data in (b"SET VARIABLE A 1", b"SET VARIABLE A 1\0lost\n"):
        asterisk = call()
        assert asterisk.receive(data) == b""
        assert asterisk.receive_eof() == b"200 result=1\nHANGUP\n"
        assert asterisk.variables == {"A": "1"}


def test_nul() -> None:
    """A NUL loses the line's end: nothing is answered until the next line, which is glued on."""
    asterisk = call()
    assert asterisk.receive(b"SET VARIABLE A a\0b\n") == b""
    assert asterisk.receive(b"x\n") == b"200 result=1\n"
    assert asterisk.variables == {"A": "ax"}
    (fault,) = asterisk.faults
    assert fault.startswith("a NUL byte")


def test_line_that_begins_with_nul() -> None:
    """A line that begins with NUL is forgotten, and at the server's end it is no line at all."""
    asterisk = call()
    assert asterisk.receive(b"\0NOOP\n") == b""
    assert asterisk.receive(b"NOOP\n") == _OK
    asterisk.receive(b"\0NOOP\n")
    assert asterisk.receive_eof() == b"HANGUP\n"
    assert asterisk.status is AgiStatus.SUCCESS


@pytest.mark.parametrize(("version", "most"), [(_OLD, 2047), ("22.10.1", 8191)])
def test_longest_line(version: str, most: int) -> None:
    """A line that does not fit with its end is run in pieces, each with its own reply: one fault."""
    asterisk = call(version=version)
    assert asterisk.receive(b"NOOP " + b"y" * (most - 6) + b"\n") == _OK
    assert asterisk.faults == []
    assert asterisk.receive(b"NOOP " + b"y" * (most - 5) + b"\n") == _OK
    assert asterisk.receive(b"NOOP\n") == _UNKNOWN + _OK
    assert asterisk.receive(b"NOOP " + b"y" * (4 * most) + b"\n").startswith(_OK + _UNKNOWN)
    asterisk.receive_eof()
    assert [command.reply[:3] for command in asterisk.commands[-5:]] == ["200", "510", "510", "510", "510"]
    assert [fault.partition(":")[0] for fault in asterisk.faults] == [f"a line of over {most} bytes"] * 2


@pytest.mark.parametrize(
    ("line", "reply", "fault"),
    [
        (b"NOOP\r\n", _UNKNOWN, "a CR, which"),
        (b"NOOP \xe4\n", _OK, "bytes that are not UTF-8"),
        (b"NOOP" + b" w" * 127 + b"\n", _OK, "more than 127 words"),
        (b"NOOP" + b' "w"' * 127 + b"\n", _OK, "more than 127 words"),
        (b"NOOP" + b" w" * 126 + b"\n", _OK, ""),
        ("NOOP ä\n".encode(), _OK, ""),
        (b"\n", _UNKNOWN, ""),
        (b"NOSUCH\n", _UNKNOWN, ""),
    ],
)
def test_faults(line: bytes, reply: bytes, fault: str) -> None:
    """What harms a real Asterisk is put down in words; what is merely wrong is not."""
    asterisk = call()
    assert asterisk.receive(line) == reply
    assert len(asterisk.faults) == bool(fault)
    assert "".join(asterisk.faults).startswith(fault)
    assert len(asterisk.commands[0].words) <= 127


def test_bytes_that_are_not_utf8_go_through() -> None:
    """A word may hold any bytes, and comes back unchanged."""
    asterisk = call()
    asterisk.receive(b"SET VARIABLE L \xe4\xff\n")
    assert asterisk.receive(b"GET VARIABLE L\n") == b"200 result=1 (\xe4\xff)\n"


def test_commands_broken_off() -> None:
    """A command behind which more waits is broken off: three give no reply, others run to their end."""
    asterisk = call(presses=("1",), missing_files=("nosuch",))
    lines = ["NOOP", "STREAM FILE x 1", "GET DATA x", "GET OPTION x 1", "WAIT FOR DIGIT 9", "SAY DIGITS 1 1"]
    asterisk.receive("".join(f"{line}\n" for line in [*lines, "STREAM FILE nosuch 1"]).encode())
    assert asterisk.receive_eof() == b"200 result=1\n200 result=49\n200 result=-1 endpos=0\nHANGUP\n"
    assert [command.reply for command in asterisk.commands[1:4]] == ["", "", ""]


# ---- the end


@pytest.mark.parametrize("line", [b"failure\n", b"FAILURES are bad\n", b"Failure", b"failure\r\n"])
def test_failure_line(line: bytes) -> None:
    """A line that begins with failure ends the session at once, and is no command."""
    asterisk = call()
    written = asterisk.receive(line) + asterisk.receive_eof()
    assert written == b"HANGUP\n"
    assert asterisk.ended
    assert asterisk.status is AgiStatus.FAILURE
    assert asterisk.commands == []


@pytest.mark.parametrize("line", [b" failure\n", b"failur\n", b'"failure\n'])
def test_almost_a_failure_line(line: bytes) -> None:
    """Only the line's first seven bytes count."""
    asterisk = call()
    assert asterisk.receive(line) == _UNKNOWN
    assert not asterisk.ended


def test_nothing_behind_the_end() -> None:
    """When Asterisk has closed, nothing is read, run or written any more."""
    asterisk = call()
    asterisk.receive(b"failure\n")
    assert asterisk.receive(b"NOOP\nNOOP\n") == b""
    assert asterisk.receive_eof() == b""
    assert asterisk.hang_up() == b""
    assert not asterisk.hung_up
    assert asterisk.commands == []
    assert asterisk.faults == []


def test_no_bytes_are_no_segment() -> None:
    """Nothing received changes nothing: what was left lying goes on lying."""
    asterisk = call()
    asterisk.receive(b"NOOP\nNOOP\n")
    assert asterisk.receive(b"") == b""
    assert len(asterisk.commands) == 1


# ---- hangup


def test_hang_up() -> None:
    """HANGUP is told once when the caller hangs up, and once more at the end of every session."""
    asterisk = call()
    asterisk.receive(b"ANSWER\n")
    assert asterisk.hang_up() == b"HANGUP\n"
    assert asterisk.hang_up() == b""
    assert asterisk.hung_up
    assert asterisk.receive(b"ANSWER\n") == _DEAD
    assert asterisk.receive(b"GET VARIABLE EXTEN\n") == b"200 result=1 (100)\n"
    assert asterisk.receive_eof() == b"HANGUP\n"
    assert asterisk.status is AgiStatus.HANGUP


@pytest.mark.parametrize("after", [1, 2])
def test_hangup_after(after: int) -> None:
    """The caller hangs up behind the reply to the command that was told."""
    asterisk = call(hangup_after=after)
    assert asterisk.begin().endswith(b"\n\n")
    replies = [asterisk.receive(b"NOOP\n") for _ in range(3)]
    assert replies == [_OK + b"HANGUP\n" * (number == after) for number in (1, 2, 3)]


def test_hangup_before_the_first_command() -> None:
    """A caller who is gone at once is told of behind the environment."""
    asterisk = call(hangup_after=0)
    assert asterisk.begin().endswith(b"\n\nHANGUP\n")
    assert asterisk.receive(b"ANSWER\n") == _DEAD


def test_hangup_in_a_command() -> None:
    """A caller who hangs up during a command is told of behind its reply."""
    asterisk = call(presses=(HANGUP,))
    assert asterisk.receive(b"EXEC Wait 10\n") == b"200 result=-1\nHANGUP\n"
    assert asterisk.receive_eof() == b"HANGUP\n"
    assert asterisk.status is AgiStatus.HANGUP


@pytest.mark.parametrize("value", ["no", "0", "FALSE"])
def test_agisighup(value: str) -> None:
    """With AGISIGHUP=no there is no HANGUP at all, and only 511 tells."""
    asterisk = call(variables={"AGISIGHUP": value}, hangup_after=1)
    assert asterisk.receive(b"NOOP\n") == _OK
    assert asterisk.receive(b"ANSWER\n") == _DEAD
    assert asterisk.receive_eof() == b""
    assert asterisk.status is AgiStatus.HANGUP


def test_agisighup_comes_too_late() -> None:
    """Asterisk looks the variable up before the script begins."""
    asterisk = call()
    asterisk.receive(b"SET VARIABLE AGISIGHUP no\n")
    assert asterisk.hang_up() == b"HANGUP\n"


@pytest.mark.parametrize(("sighup", "told"), [("yes", b"HANGUP\nHANGUP\n"), ("no", b"")])
def test_agiexitonhangup(sighup: str, told: bytes) -> None:
    """With AGIEXITONHANGUP=yes Asterisk closes at the hangup."""
    asterisk = call(variables={"AGIEXITONHANGUP": "yes", "AGISIGHUP": sighup})
    assert asterisk.receive(b"HANGUP\nNOOP\n") == b"200 result=1\n" + told
    assert asterisk.ended
    assert asterisk.status is AgiStatus.HANGUP
    assert len(asterisk.commands) == 1


# ---- AGISTATUS


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["NOOP"], AgiStatus.SUCCESS),
        (["HANGUP"], AgiStatus.HANGUP),
        (["HANGUP", "failure"], AgiStatus.FAILURE),
        (["STREAM FILE nosuch 1", "NOOP"], AgiStatus.FAILURE),
        (["STREAM FILE nosuch 1", "HANGUP"], AgiStatus.FAILURE),
        (["HANGUP", "STREAM FILE nosuch 1"], AgiStatus.HANGUP),
    ],
)
def test_status(lines: list[str], status: AgiStatus) -> None:
    """What the dialplan sees: a failed command sticks, and failure overrides a hangup."""
    asterisk = call(missing_files=("nosuch",))
    for line in lines:
        asterisk.receive(f"{line}\n".encode())
    asterisk.receive_eof()
    assert asterisk.status is status


# ---- prescribed replies


def test_prescribed_replies() -> None:
    """A reply is prescribed by the beginning of a command, word by word and in any case; the longest wins."""
    asterisk = call(
        replies={
            "exec": "200 result=1",
            "EXEC Dial": "200 result=2",
            'EXEC Dial "PJSIP/bob smith"': "200 result=3",
            "GET FULL VARIABLE": "520-first\nsecond\n520 last",
            "nosuch": "200 result=4",
        },
        presses=("5",),
    )
    dialogue = {
        b"EXEC Wait 1\n": b"200 result=1\n",
        b"EXEC DIAL PJSIP/eve\n": b"200 result=2\n",
        b'Exec "dial" PJSIP/bob\\ smith\n': b"200 result=3\n",
        b"EXEC Dialling x\n": b"200 result=1\n",
        b"GET FULL VARIABLE\n": b"520-first\nsecond\n520 last\n",
        b"NOSUCH\n": b"200 result=4\n",
    }
    assert {line: asterisk.receive(line) for line in dialogue} == dialogue


def test_prescribed_reply_is_all_that_happens() -> None:
    """With a prescribed reply nothing is set, pressed or refused."""
    asterisk = call(
        replies={"SET": "200 result=1", "GET DATA": "200 result=7"}, presses=("5",), hangup_after=3
    )
    asterisk.receive(b"SET VARIABLE X 1\n")
    asterisk.receive(b"GET DATA x\n")
    assert asterisk.receive(b"WAIT FOR DIGIT 1\n") == b"200 result=53\nHANGUP\n"
    assert asterisk.receive(b"GET DATA x\n") == b"200 result=7\n"
    assert asterisk.variables == {}


def test_prescribed_failure_is_one() -> None:
    """A prescribed -1 has the same effect on AGISTATUS as Asterisk's own."""
    asterisk = call(replies={"STREAM FILE": "200 result=-1 endpos=0", "GET DATA": "200 result=-1"})
    seen = []
    for line in (b"GET DATA x\n", b"STREAM FILE x 1\n"):
        asterisk.receive(line)
        seen.append(asterisk.status)
    assert seen == [AgiStatus.SUCCESS, AgiStatus.FAILURE]


# ---- both sides of the protocol


def test_it_speaks_with_our_own_side() -> None:
    """The protocol's two machines understand each other from the environment to the end."""
    server, asterisk = AgiConnection(), call(presses=("12#", HANGUP))
    server.receive_data(asterisk.begin())
    events = [server.next_event()]
    for name, words in (("GET DATA", ("hello", "100")), ("STREAM FILE", ("bye", ""))):
        server.receive_data(asterisk.receive(server.send_command(encode_command(name, words))))
        events.append(server.next_event())
    events.append(server.next_event())
    server.receive_data(asterisk.receive_eof())
    server.receive_data(b"")
    events += [server.next_event(), server.next_event()]
    assert isinstance(events[0], Request)
    assert events[1:] == [
        Reply(200, "12"),
        Reply(200, "-1", None, 800),
        Hangup(),
        Hangup(),
        ConnectionClosed(),
    ]
    assert asterisk.faults == []
