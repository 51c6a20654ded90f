"""fastagi_pool.protocol: bytes to events, words to bytes, and every refusal."""

from __future__ import annotations

import pickle
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from corpus.transcripts import Connection, Speaker, load_connections
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastagi_pool.errors import AGICommandRefused, LocalProtocolError, ProtocolError, RemoteProtocolError
from fastagi_pool.protocol import (
    MAX_COMMAND_BYTES,
    MAX_COMMAND_BYTES_NEW,
    MAX_COMMAND_WORDS,
    MAX_REPLY_BYTES,
    NEED_DATA,
    AgiConnection,
    ConnectionClosed,
    Event,
    Hangup,
    HeaderLimits,
    NeedData,
    Reply,
    Request,
    State,
    clean,
    encode_command,
    join_arguments,
    line_fault,
    max_command_bytes,
    parse_reply,
    quote,
    stays_whole,
)
from fastagi_pool.testing import split_words

HEADER = b"agi_network: yes\nagi_network_script: hello\nagi_channel: SIP/1\n\n"
HANGUP = Hangup()
CLOSED = ConnectionClosed()


def drain(agi: AgiConnection) -> list[Event]:
    """Take all that the machine can say now."""
    events: list[Event] = []
    while (event := agi.next_event()) is not NEED_DATA:
        events.append(event)
        if event == CLOSED:
            break
    return events


def feed(agi: AgiConnection, pieces: Iterable[bytes]) -> list[Event]:
    """Feed pieces one by one, taking all events after each."""
    events: list[Event] = []
    for piece in pieces:
        agi.receive_data(piece)
        events += drain(agi)
    return events


def single_bytes(data: bytes) -> list[bytes]:
    """Cut into pieces of one byte."""
    return [data[at : at + 1] for at in range(len(data))]


def request(data: bytes, limits: HeaderLimits | None = None) -> Request:
    """Read an environment, which must come out the same in one piece and byte by byte."""
    limits = limits or HeaderLimits()
    [whole] = feed(AgiConnection(limits), [data])
    assert feed(AgiConnection(limits), single_bytes(data)) == [whole]
    assert isinstance(whole, Request)
    return whole


def refusal(data: bytes, limits: HeaderLimits | None = None) -> str:
    """Read what must be refused, both in one piece and byte by byte; give the first one's reason."""
    with pytest.raises(RemoteProtocolError):
        feed(AgiConnection(limits or HeaderLimits()), single_bytes(data))
    agi = AgiConnection(limits or HeaderLimits())
    with pytest.raises(RemoteProtocolError) as caught:
        feed(agi, [data])
    assert agi.state is State.ERROR
    return str(caught.value)


def idle() -> AgiConnection:
    """Give a machine that has read an environment."""
    agi = AgiConnection()
    assert len(feed(agi, [HEADER])) == 1
    return agi


def waiting() -> AgiConnection:
    """Give a machine that waits for a reply."""
    agi = idle()
    agi.send_command(b"NOOP\n")
    return agi


# ---- the environment


def test_the_environment_keeps_its_order() -> None:
    """Names come in the order in which Asterisk sent them."""
    found = request(b"agi_network: yes\nagi_request: agi://h/x\nagi_channel: SIP/1\nagi_arg_1: a\n\n")
    assert list(found.environment) == ["agi_network", "agi_request", "agi_channel", "agi_arg_1"]
    assert found.environment["agi_request"] == "agi://h/x"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"agi_accountcode: ", ""),
        (b"agi_accountcode:", ""),
        (b"agi_calleridname: Smith: John", "Smith: John"),
        (b'agi_calleridname: "Quoted" <100>', '"Quoted" <100>'),
        (b"agi_calleridname:  two spaces", " two spaces"),
        (b"agi_calleridname: J\xc3\xbcrgen \xf0\x9f\x98\x80", "Jürgen 😀"),
        (b"agi_calleridname: J\xfcrgen", "J\udcfcrgen"),
        (b"agi_calleridname: a\rb\tc", "a\rb\tc"),
    ],
)
def test_a_value_is_taken_as_it_is(line: bytes, value: str) -> None:
    """What follows the first ": " is the value: empty, with another ": ", in any encoding."""
    found = request(b"agi_network: yes\n" + line + b"\n\n")
    assert list(found.environment.values()) == ["yes", value]
    assert value.encode("utf-8", "surrogateescape") in line


def test_arguments_are_counted_until_one_is_missing() -> None:
    """Arguments come in the order of their numbers, empty ones kept; other names are none."""
    found = request(b"agi_arg_1: a\nagi_arg_2: \nagi_arg_3: c\nagi_arg_5: e\n\n")
    assert found.arguments == ("a", "", "c")


def test_no_argument_is_no_argument() -> None:
    """A call without arguments has an empty tuple."""
    assert request(HEADER).arguments == ()


@pytest.mark.parametrize(
    ("script", "path", "query"),
    [
        ("hello", "hello", {}),
        ("a/b.agi?x=1&y=2", "a/b.agi", {"x": "1", "y": "2"}),
        ("a?x=a%20b+c", "a", {"x": "a b c"}),
        ("a?x=1&x=2", "a", {"x": "2"}),
        ("a?empty=&bare", "a", {"empty": "", "bare": ""}),
        ("a?x=%FC", "a", {"x": "\udcfc"}),
        ("a?x=1#fragment", "a", {"x": "1"}),
        ("a#f?x=1", "a", {"x": "1"}),
        ("a%20b", "a%20b", {}),
        ("/a", "a", {}),
        ("?x=1", "", {"x": "1"}),
    ],
)
def test_the_script_and_its_query(script: str, path: str, query: dict[str, str]) -> None:
    """The path is raw and without query or fragment; the query is decoded, the last of a name wins."""
    found = Request({"agi_network_script": script})
    assert (found.script, dict(found.query)) == (path, query)
    assert found.network_script == script


def test_no_script_is_an_empty_one() -> None:
    """AGI(agi://host) sends no agi_network_script line, and matches the empty script."""
    found = request(b"agi_network: yes\nagi_request: agi://h\n\n")
    assert (found.network_script, found.script, dict(found.query)) == ("", "", {})


def test_the_common_values_have_names() -> None:
    """What nearly every handler asks for needs no dictionary, and is empty where it is missing."""
    names = ("callerid", "calleridname", "channel", "context", "extension", "uniqueid")
    found = Request({f"agi_{name}": name.upper() for name in names})
    assert [getattr(found, name) for name in names] == [name.upper() for name in names]
    assert [getattr(Request({}), name) for name in names] == [""] * len(names)


@pytest.mark.parametrize(
    "data",
    [
        b"agi_network: yes\nagi_extension: s\nagi_extension: forged\n\n",
        b"agi_network: yes\nagi_arg_1: a\nagi_arg_1: b\n\n",
        b"agi_accountcode:\nagi_accountcode: x\n\n",
    ],
)
def test_a_repeated_name_is_forged(data: bytes) -> None:
    """Asterisk never repeats a name, so one that stands twice came out of a value: nothing is believed."""
    assert "repeats a name" in refusal(data)


def test_bytes_behind_the_environment_are_forged() -> None:
    """Nobody speaks before us: what follows the empty line at once was part of a value."""
    assert "behind the environment" in refusal(HEADER + b"agi_extension: real\n\n")


def test_hangup_may_stand_behind_the_environment() -> None:
    """A caller who is gone already is told by HANGUP right behind the empty line."""
    for pieces in ([HEADER + b"HANGUP\n"], [HEADER + b"HANG", b"UP\n"], single_bytes(HEADER + b"HANGUP\n")):
        first, second = feed(AgiConnection(), pieces)
        assert isinstance(first, Request)
        assert second == HANGUP


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not AGI"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "not AGI"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not AGI"),
        (b"\n\n", "not AGI"),
        (b"\0", "not AGI"),
        (b"agi-network: yes\n\n", "not AGI"),
        (b"agi_network: yes\nHost: x\n\n", "does not begin with agi_"),
        (b"agi_network: yes\nno colon\n\n", "without a colon"),
        (b"agi_network: yes\nagi_callerid:100\n\n", "without a colon"),
        (b"agi_network: yes\nagi_callerid: 1\x0000\n\n", "NUL"),
    ],
)
def test_what_is_not_agi_is_refused(data: bytes, reason: str) -> None:
    """A stranger at the port, or lines that no Asterisk sends, are refused with the reason."""
    assert reason in refusal(data)


def test_a_stranger_is_known_by_the_first_byte() -> None:
    """A peer that does not begin with agi_ is refused at once, not when its environment should end."""
    agi = AgiConnection()
    agi.receive_data(b"G")
    with pytest.raises(RemoteProtocolError, match="b'G'"):
        agi.next_event()


@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize(
    ("limits", "template", "reason"),
    [
        (
            HeaderLimits(header_bytes=100),
            b"agi_network: yes\nagi_x: %s\n\n",
            "environment of more than 100 bytes",
        ),
        (HeaderLimits(line_bytes=40), b"agi_network: yes\nagi_x: %s\n\n", "line of more than 40 bytes"),
    ],
)
@pytest.mark.parametrize("filling", [b"x", b"\xc3\xbc"])
def test_the_size_of_an_environment(
    limits: HeaderLimits, template: bytes, reason: str, excess: int, filling: bytes
) -> None:
    """At its limit in bytes an environment or a line is taken, one byte longer it is not, in any pieces."""
    frame = len(template % b"") - 1 if limits.header_bytes == 100 else len(b"agi_x: ")
    room = min(limits.header_bytes, limits.line_bytes) - frame + excess
    value = filling * (room // len(filling)) + b"x" * (room % len(filling))
    data = template % value
    if excess:
        assert reason in refusal(data, limits)
    else:
        assert request(data, limits).environment["agi_x"].encode() == value


@pytest.mark.parametrize(("count", "taken"), [(0, True), (3, True), (4, False)])
def test_the_number_of_arguments(count: int, taken: bool) -> None:
    """As many arguments as the limit are taken, one more is refused."""
    lines = b"".join(b"agi_arg_%d: x\n" % number for number in range(1, count + 1))
    data = b"agi_network: yes\n" + lines + b"\n"
    limits = HeaderLimits(arguments=3)
    if taken:
        assert len(request(data, limits).arguments) == count
    else:
        assert "more than 3 arguments" in refusal(data, limits)


def test_an_endless_environment_is_refused_early() -> None:
    """A peer that never ends its environment is stopped at the limit, not when memory is gone."""
    agi = AgiConnection(HeaderLimits(header_bytes=1000))
    agi.receive_data(b"agi_x: " + b"x" * 1000)
    with pytest.raises(RemoteProtocolError, match="more than 1000 bytes"):
        agi.next_event()


def test_a_probe_closes_without_a_word() -> None:
    """A peer that says nothing and closes is a probe, not an error."""
    assert feed(AgiConnection(), [b""]) == [CLOSED]


@pytest.mark.parametrize("cut", [1, 3, 4, 20, len(HEADER) - 1])
def test_an_unfinished_environment_is_an_error(cut: int) -> None:
    """A peer that closes inside its environment has broken the protocol."""
    with pytest.raises(RemoteProtocolError, match="closed inside"):
        feed(AgiConnection(), [HEADER[:cut], b""])


# ---- replies

USAGE = (
    b"520-Invalid command syntax.  Proper usage follows:\n"
    b" Usage: GET VARIABLE <name>\n\n 200 result=1\n"
    b"520 End of proper usage.\n"
)

REPLIES = [
    (b"200 result=0\n", Reply(200, "0")),
    (b"200 result=1\n", Reply(200, "1")),
    (b"200 result=-1\n", Reply(200, "-1")),
    (b"200 result=-2\n", Reply(200, "-2")),
    (b"200 result=49\n", Reply(200, "49")),
    (b"200 result=\n", Reply(200, "")),
    (b"200 result= (timeout)\n", Reply(200, "", "timeout")),
    (b"200 result=34 (timeout)\n", Reply(200, "34", "timeout")),
    (b"200 result=567\n", Reply(200, "567")),
    (b"200 result=*0#\n", Reply(200, "*0#")),
    (b"200 result=1 (url)\n", Reply(200, "1", "url")),
    (b"200 result=1 ()\n", Reply(200, "1", "")),
    (b"200 result=1 (a(b)c)\n", Reply(200, "1", "a(b)c")),
    (b"200 result=1 (a) b (c))\n", Reply(200, "1", "a) b (c)")),
    (b"200 result=1 (x (y)\n", Reply(200, "1", "x (y")),
    (b"200 result=1 (J\xfcrgen)\n", Reply(200, "1", "J\udcfcrgen")),
    (b"200 result=1 (a\rb)\n", Reply(200, "1", "a\rb")),
    (b"200 result=1 (a endpos=5)\n", Reply(200, "1", "a endpos=5")),
    (b"200 result=0 endpos=8000\n", Reply(200, "0", None, 8000)),
    (b"200 result=-1 endpos=0\n", Reply(200, "-1", None, 0)),
    (b"200 result=0 endpos=-1\n", Reply(200, "0", None, -1)),
    (b"200 result=42 (dtmf) endpos=160\n", Reply(200, "42", "dtmf", 160)),
    (b"200 result=0 (timeout) endpos=0\n", Reply(200, "0", "timeout", 0)),
    (b"200 result=0 endpos=" + b"9" * 5000 + b"\n", Reply(200, "0", None, None, "endpos=" + "9" * 5000)),
    (b"200 result=0 Gosub complete\n", Reply(200, "0", text="Gosub complete")),
    (b"200 result=-1 Gosub label not found\n", Reply(200, "-1", text="Gosub label not found")),
    (b"100 result=0 Trying...\n200 result=0 Gosub complete\n", Reply(200, "0", text="Gosub complete")),
    (b"100 x\n101 y\n200 result=0\n", Reply(200, "0")),
    (b"510 Invalid or unknown command\n", Reply(510, text="Invalid or unknown command")),
    (
        b"511 Command Not Permitted on a dead channel\n",
        Reply(511, text="Command Not Permitted on a dead channel"),
    ),
    (b"520 Invalid command syntax.\n", Reply(520, text="Invalid command syntax.")),
    (USAGE, Reply(520, text=" Usage: GET VARIABLE <name>\n\n 200 result=1")),
    (b"520-Invalid.\n520 End.\n", Reply(520)),
    (b"520-Invalid.\n\xfc\n520 End.\n", Reply(520, text="\udcfc")),
]

each_reply = pytest.mark.parametrize(
    ("data", "reply"), REPLIES, ids=[data[:40].decode("latin-1") for data, _ in REPLIES]
)


@each_reply
def test_a_reply_in_one_piece(data: bytes, reply: Reply) -> None:
    """Every shape of a reply that Asterisk has is read to its parts."""
    agi = waiting()
    assert feed(agi, [data]) == [reply]
    assert agi.state is State.IDLE


@each_reply
def test_a_reply_byte_by_byte(data: bytes, reply: Reply) -> None:
    """However a reply is cut on its way, it is the same reply."""
    assert feed(waiting(), single_bytes(data)) == [reply]


@each_reply
def test_hangup_behind_a_reply(data: bytes, reply: Reply) -> None:
    """HANGUP in the same piece as a reply, or cut anywhere, is an event of its own."""
    assert feed(waiting(), [data + b"HANGUP\n"]) == [reply, HANGUP]
    assert feed(waiting(), [data + b"HANG", b"UP\n"]) == [reply, HANGUP]
    assert feed(waiting(), single_bytes(data + b"HANGUP\n")) == [reply, HANGUP]


@each_reply
def test_hangup_before_a_reply(data: bytes, reply: Reply) -> None:
    """HANGUP that crosses a command stands before its reply and is not taken for it."""
    for pieces in ([b"HANGUP\n" + data], single_bytes(b"HANGUP\n" + data)):
        agi = waiting()
        assert feed(agi, pieces) == [HANGUP, reply]
        assert agi.state is State.IDLE


def test_hangup_inside_a_usage_block() -> None:
    """HANGUP between the two parts of a 520 block is no line of the usage."""
    head, tail = USAGE.split(b"\n", 1)
    assert feed(waiting(), [head + b"\nHANGUP\n" + tail]) == [HANGUP, REPLIES[-3][1]]


def test_hangup_while_nobody_asks() -> None:
    """HANGUP may come at any time, and several times; it is still our turn."""
    agi = idle()
    assert feed(agi, [b"HANGUP\nHANGUP\n"]) == [HANGUP, HANGUP]
    assert agi.state is State.IDLE


@pytest.mark.parametrize(
    ("value", "tail"),
    [
        ("line1\nline2", b""),
        ("line1\n200 result=1 (forged)\nline3)", b""),
        ("\n\n", b""),
        ("a\nHANGUP\nb", b""),
        ("HANGUP\nHANGUP", b""),
        ("a\n(b", b" endpos=5"),
        ("a\n510 Invalid or unknown command\n", b""),
    ],
)
@pytest.mark.parametrize("hangup", [False, True])
def test_a_value_with_line_ends(value: str, tail: bytes, hangup: bool) -> None:
    """A value that came in one piece is taken whole, whatever its lines pretend to be."""
    data = b"200 result=1 (" + value.encode() + b")" + tail + b"\n" + (b"HANGUP\n" if hangup else b"")
    reply = Reply(200, "1", value, 5 if tail else None)
    assert feed(waiting(), [data]) == [reply, HANGUP][: 1 + hangup]


def test_a_value_with_line_ends_byte_by_byte() -> None:
    """A value of which no line looks like the end is read whole however it is cut."""
    data = b"200 result=1 (line1\nHANGUP\nline3)\n"
    assert feed(waiting(), single_bytes(data)) == [Reply(200, "1", "line1\nHANGUP\nline3")]


def test_the_tail_of_a_value_is_dropped() -> None:
    """What comes late behind a value that seemed complete is counted, and answers nothing."""
    agi = waiting()
    assert feed(agi, [b"200 result=1 (a)\n", b"b)\n"]) == [Reply(200, "1", "a")]
    assert agi.stray_lines == 1
    agi.send_command(b"NOOP\n")
    assert feed(agi, [b"c)\n200 result=0\n"]) == [Reply(200, "0")]
    assert agi.stray_lines == 2


# ---- replies of SPEECH RECOGNIZE, the only ones with texts behind their value

SPEECH_REPLIES = [
    (b"200 result=1 (timeout) endpos=8000\n", Reply(200, "1", "timeout", 8000)),
    (b"200 result=1 (hangup) endpos=0\n", Reply(200, "1", "hangup", 0)),
    (b"200 result=1 (digit) digit=# endpos=160\n", Reply(200, "1", "digit", text="digit=# endpos=160")),
    (b"200 result=1 (digit) digit=) endpos=1\n", Reply(200, "1", "digit", text="digit=) endpos=1")),
    *(
        (
            f'200 result=1 (speech) endpos=160 results=1 score0=900 text0="{heard}" grammar0=yn \n'.encode(),
            Reply(200, "1", "speech", 160, f'results=1 score0=900 text0="{heard}" grammar0=yn'),
        )
        for heard in ("yes", "yes please", "yes (please) do", "(yes", "yes)", ") endpos=5", ":-) (", "Jürgen")
    ),
    (b"200 result=0\n", Reply(200, "0")),
    (b"200 result=-1\n", Reply(200, "-1")),
    (b"510 Invalid or unknown command\n", Reply(510, text="Invalid or unknown command")),
    (USAGE, Reply(520, text=" Usage: GET VARIABLE <name>\n\n 200 result=1")),
]


def listening(command: bytes = b"SPEECH RECOGNIZE menu 5\n") -> AgiConnection:
    """Give a machine that waits for speech."""
    agi = idle()
    agi.send_command(command)
    return agi


@pytest.mark.parametrize(("data", "reply"), SPEECH_REPLIES)
def test_a_reply_with_speech(data: bytes, reply: Reply) -> None:
    """Words that were heard may hold spaces and parentheses, and a reply may come in any pieces."""
    for pieces in ([data], single_bytes(data)):
        agi = listening()
        assert feed(agi, pieces) == [reply]
        assert agi.state is State.IDLE


@pytest.mark.parametrize(("data", "reply"), SPEECH_REPLIES)
def test_hangup_around_a_reply_with_speech(data: bytes, reply: Reply) -> None:
    """HANGUP before or behind a reply with speech is an event of its own, however it is cut."""
    for pieces in ([b"HANGUP\n" + data + b"HANGUP\n"], single_bytes(b"HANGUP\n" + data + b"HANGUP\n")):
        assert feed(listening(), pieces) == [HANGUP, reply, HANGUP]


@pytest.mark.parametrize("command", [b"speech recognize menu 5\n", b'Speech Recognize "" 5\n'])
def test_speech_in_any_case(command: bytes) -> None:
    """Asterisk knows the command in any case, and so do we."""
    data, reply = SPEECH_REPLIES[6]
    assert feed(listening(command), [data]) == [reply]


def test_only_speech_is_read_as_speech() -> None:
    """The next command's value is taken whole again, parentheses and line ends and all."""
    agi = listening()
    feed(agi, [SPEECH_REPLIES[0][0]])
    agi.send_command(b"GET VARIABLE X\n")
    assert feed(agi, [b"200 result=1 (a) b\n(c))\n"]) == [Reply(200, "1", "a) b\n(c)")]
    agi.send_command(b"SPEECH CREATE x\n")
    assert feed(agi, [b"200 result=1 (a) b)\n"]) == [Reply(200, "1", "a) b")]


@pytest.mark.parametrize("data", [b"nonsense\n", b"\n", b"200\n", b"200 OK\n", b"404 x\n", b"agi_x: y\n"])
def test_what_is_no_reply_is_refused(data: bytes) -> None:
    """A peer that answers what no Asterisk does is out of step for good."""
    agi = waiting()
    with pytest.raises(RemoteProtocolError):
        feed(agi, [data])
    assert agi.state is State.ERROR
    with pytest.raises(RemoteProtocolError, match="failed before"):
        agi.next_event()


@pytest.mark.parametrize("data", [b"200 result=0\n", b"100 result=0 Trying...\n", b"x\n"])
def test_an_answer_to_nothing_is_refused(data: bytes) -> None:
    """A reply while no command is outstanding means that the two sides are out of step."""
    with pytest.raises(RemoteProtocolError, match="answers nothing"):
        feed(idle(), [data])


def test_one_reply_answers_one_command() -> None:
    """A second reply in the same piece is given only once, as a refusal."""
    agi = waiting()
    agi.receive_data(b"200 result=0\n200 result=0\n")
    assert agi.next_event() == Reply(200, "0")
    with pytest.raises(RemoteProtocolError, match="answers nothing"):
        agi.next_event()


@pytest.mark.parametrize(
    ("head", "tail"),
    [(b"200 result=1 (", b")\n"), (b"200 result=0 ", b"\n"), (b"510 ", b"\n")],
)
def test_the_size_of_a_reply(head: bytes, tail: bytes) -> None:
    """A reply may be as long as the limit; a longer one is stopped there and kept no longer."""
    body = b"x" * (MAX_REPLY_BYTES - len(head) - len(tail) + 1)
    [reply] = feed(waiting(), [head + body, tail])
    assert isinstance(reply, Reply)
    with pytest.raises(RemoteProtocolError, match="more than 65536 bytes"):
        feed(waiting(), [head + body + b"xx", tail])


@pytest.mark.parametrize("line", [b"x" * 100 + b"\n", b"\n"])
def test_the_size_of_a_usage_block(line: bytes) -> None:
    """A usage block without an end is stopped, also if its lines are empty."""
    agi = waiting()
    agi.receive_data(b"520-Invalid.\n")
    piece = line * (8192 // len(line))
    with pytest.raises(RemoteProtocolError, match="more than 65536 bytes"):
        feed(agi, [piece] * 10)


def test_a_value_without_an_end() -> None:
    """A value that never closes is stopped at the limit, or when the peer closes."""
    with pytest.raises(RemoteProtocolError, match="does not end"):
        feed(waiting(), [b"200 result=1 (a\n", *[b"x" * 1023 + b"\n"] * 64])
    agi = waiting()
    agi.receive_data(b"200 result=1 (a\n")
    agi.receive_data(b"")
    with pytest.raises(RemoteProtocolError, match="does not end"):
        agi.next_event()


def test_a_value_of_many_brackets_is_read_quickly() -> None:
    """A value full of what looks like its end takes one look at the last of them, not one at each."""
    value = ") a=" * 15_000 + " "
    started_s = time.process_time()
    assert feed(waiting(), [f"200 result=1 ({value}\n)\n".encode()]) == [Reply(200, "1", f"{value}\n")]
    # 0.001 s is usual; a look at each takes 10 s.
    assert time.process_time() - started_s < 1.0


# ---- the end, and our own mistakes


@pytest.mark.parametrize("sent", [b"", b"HANG", b"200 result", b"520-Invalid.\nUsage"])
def test_the_end_while_waiting(sent: bytes) -> None:
    """A peer that closes instead of answering, or inside an answer, has closed; that is no error."""
    agi = waiting()
    assert feed(agi, [*([sent] if sent else []), b""]) == [CLOSED]
    assert agi.state is State.CLOSED
    assert agi.next_event() == CLOSED


def test_the_last_words_before_the_end() -> None:
    """What came before the end is read before the end is told."""
    agi = waiting()
    agi.receive_data(b"200 result=1\nHANGUP\n")
    agi.receive_data(b"")
    assert drain(agi) == [Reply(200, "1"), HANGUP, CLOSED]


def test_bytes_after_the_end_are_our_mistake() -> None:
    """Whoever feeds bytes behind the end has mixed up two connections."""
    agi = idle()
    agi.receive_data(b"")
    with pytest.raises(LocalProtocolError, match="after the end"):
        agi.receive_data(b"x")


@pytest.mark.parametrize("line", [b"NOOP", b"", b"\nNOOP", b"NOOP\nNOOP\n", b"NOOP\n\n", b"NOOP\nN"])
def test_a_command_is_one_line(line: bytes) -> None:
    """Two commands in one piece, or half of one, never reach Asterisk."""
    agi = idle()
    with pytest.raises(LocalProtocolError, match="exactly one line"):
        agi.send_command(line)
    assert agi.state is State.IDLE


def test_it_must_be_our_turn() -> None:
    """No command goes out before the environment, before the last reply, or after the end."""
    closed, failed = idle(), idle()
    feed(closed, [b""])
    with pytest.raises(RemoteProtocolError):
        feed(failed, [b"x\n"])
    for agi in (AgiConnection(), waiting(), closed, failed):
        before = agi.state
        with pytest.raises(LocalProtocolError, match=re.escape(before.value)):
            agi.send_command(b"NOOP\n")
        assert agi.state is before


def test_a_line_goes_out_as_it_came() -> None:
    """The machine changes nothing in a line that it lets pass."""
    assert idle().send_command(b'SET VARIABLE X "\xfc"\n') == b'SET VARIABLE X "\xfc"\n'


# ---- commands


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("EXTEN", "EXTEN"),
        ("${CALLERID(num)}", "${CALLERID(num)}"),
        ("1,2;3|4&5", "1,2;3|4&5"),
        ("it's", "it's"),
        ("Jürgen", "Jürgen"),
        ("", '""'),
        ("two words", '"two words"'),
        ("tab\there", '"tab\there"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("C:\\dir", '"C:\\\\dir"'),
        ("\\", '"\\\\"'),
        ('"', '"\\""'),
    ],
)
def test_quote(word: str, quoted: str) -> None:
    """A word is quoted only where Asterisk would read something else without."""
    assert quote(word) == quoted
    assert split_words(quoted) == [word]


words = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0")), max_size=6)


@given(words)
def test_asterisk_reads_the_words_that_were_meant(given_words: Sequence[str]) -> None:
    """Whatever the words hold, Asterisk's reader finds exactly them."""
    line = encode_command("SET VARIABLE", tuple(given_words), MAX_COMMAND_BYTES_NEW)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert split_words(line[:-1].decode()) == ["SET", "VARIABLE", *given_words]


@given(st.binary(max_size=200).filter(lambda data: not set(data) & set(b"\r\n\0")))
def test_foreign_bytes_go_back_unchanged(data: bytes) -> None:
    """What came from Asterisk in any encoding goes back to it byte for byte."""
    line = encode_command("NOOP", (data.decode("utf-8", "surrogateescape"),))
    [_, word] = split_words(line[:-1].decode("latin-1"))
    assert word.encode("latin-1") == data


# ---- the arguments of an application


def separate(text: str) -> list[str]:
    """Take an application's arguments apart as Asterisk does.

    Source: __ast_app_separate_args() in main/app.c with ``delim`` a comma and ``remove_chars`` set, step
    by step: what it does by moving memory is done on a list, which ends with the final NUL.
    """
    buffer = [*text, "\0"]
    arguments: list[str] = []
    scan = 0
    behind_delimiter = -1
    depth = {"(": 0, "[": 0}
    quote_open = False
    while buffer[scan] != "\0":
        start = scan
        while (char := buffer[scan]) != "\0":
            if char in depth:
                depth[char] += 1
            elif char in ")]":
                opening = "(" if char == ")" else "["
                depth[opening] = max(0, depth[opening] - 1)
            elif char == '"':
                quote_open = not quote_open
                del buffer[scan]
                continue
            elif char == "\\":
                del buffer[scan]
                assert buffer[scan] != "\0", "Asterisk would read beyond the end of the text"
            elif char == "," and not quote_open and not any(depth.values()):
                break
            scan += 1
        arguments.append("".join(buffer[start:scan]))
        if buffer[scan] != "\0":
            scan += 1
            behind_delimiter = scan
    # If the last character was a comma, there is one more argument.
    return [*arguments, ""] if scan and scan == behind_delimiter else arguments


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("a,b,c", ["a", "b", "c"]),
        ("a,,b,", ["a", "", "b", ""]),
        (",", ["", ""]),
        ("", []),
        ('"a,b",c', ["a,b", "c"]),
        ("U(a,b),c[d,e]", ["U(a,b)", "c[d,e]"]),
        (r"a\,b,\\", ["a,b", "\\"]),
        ("a),b", ["a)", "b"]),
        ("a(,b", ["a(,b"]),
    ],
)
def test_the_model_of_asterisk(text: str, arguments: list[str]) -> None:
    """The model by which joining is checked does what Asterisk is known to do."""
    assert separate(text) == arguments


@pytest.mark.parametrize(
    ("arguments", "joined"),
    [
        ((), ""),
        (("",), ""),
        (("a,b",), "a,b"),
        (('"a',), '"a'),
        (("SIP/1", "", "t"), "SIP/1,,t"),
        (("", ""), ","),
        (("a", "b c"), "a,b c"),
        (("a", "b,c"), r"a,b\,c"),
        (("a", 'say "hi"'), r"a,say \"hi\""),
        (("a", "C:\\dir"), r"a,C:\\dir"),
        (("SIP/1", "30", "U(sub^a,b)g"), "SIP/1,30,U(sub^a,b)g"),
        (("x", "$[1,2](3)"), "x,$[1,2](3)"),
        (("x", ":-)"), "x,:-)"),
        (("x", "(]"), r"x,\(\]"),
        (("x", "(a", "b)"), r"x,\(a,b)"),
        (("x", "(a,b),c"), r"x,\(a\,b\)\,c"),
        (("x", 'F("a",b)'), r"x,F\(\"a\"\,b\)"),
    ],
)
def test_how_arguments_are_joined(arguments: tuple[str, ...], joined: str) -> None:
    """Only what would be read otherwise is escaped; what is whole in its brackets stays readable."""
    assert join_arguments(arguments) == joined


@pytest.mark.parametrize(
    ("argument", "whole"),
    [
        ("", True),
        ("a b", True),
        ("a,b", False),
        ("f(a,b)", True),
        ("f(a,b),c", False),
        ("[a,(b,c)]", True),
        ("(a", False),
        ("a)", True),
        ("a),b", False),
        ("(a]", False),
        ('"a,b"', True),
        ('"a,b', False),
        ('"(" a', False),
        (r"a\,b", True),
        (r"a\(b", True),
        ("a\\", False),
        ("a\\\\", True),
    ],
)
def test_stays_whole(argument: str, whole: bool) -> None:
    """An argument that would end early, or swallow the next one, is known for it."""
    assert stays_whole(argument) is whole


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text(st.sampled_from('a ,"\\()[]')), st.text(st.sampled_from('a ,"\\()[]')))
def test_what_stays_whole_does(first: str, second: str) -> None:
    """What is said to stay whole ends where it ends, whatever stands behind it: GOSUB relies on it."""
    if stays_whole(first) and stays_whole(second):
        assert len(separate(f"{first},{second}")) == 2


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.text(st.sampled_from('a ,"\\()[]') | st.characters(exclude_characters="\0")), min_size=2))
@example(["(", ")"])
@example(["[(", ")],"])
@example(["\\", "", ""])
@example(["(,)", "(,)]"])
def test_asterisk_finds_the_same_arguments(arguments: list[str]) -> None:
    """Whatever several arguments hold, the application gets exactly them."""
    assert separate(join_arguments(arguments)) == arguments


# ---- what is refused, and what is cleaned


@pytest.mark.parametrize(
    ("word", "cleaned"),
    [
        ("", ""),
        ("Zoë (100)", "Zoë (100)"),
        ("a\nb", "a b"),
        ("a\r\nb", "a  b"),
        ("\0", " "),
        ("tab\tand \x1b stay", "tab\tand \x1b stay"),
        ("\u2028 stays", "\u2028 stays"),
        ("J\udcfcrgen", "J\udcfcrgen"),
        ("half \ud83d or \ude00", "half ? or ?"),
        ("\udc7f\udc80\udcff\udd00", "?\udc80\udcff?"),
    ],
)
def test_clean(word: str, cleaned: str) -> None:
    """Only what Asterisk cannot bear is replaced, each by one sign; bytes that are no text stay."""
    assert clean(word) == cleaned


@given(st.text(st.characters() | st.sampled_from("\r\n\0\ud800\udfff\udc80"), max_size=200))
def test_what_was_cleaned_is_sent(word: str) -> None:
    """A cleaned word is never refused for what it holds, is as long as before, and is clean for good."""
    assert encode_command("NOOP", (clean(word),))
    assert len(clean(word)) == len(word)
    assert clean(clean(word)) == clean(word)


@pytest.mark.parametrize("evil", ["\n", "\r", "\0", "a\nEXEC System x", "\r\n"])
def test_a_line_end_in_a_word_is_refused(evil: str) -> None:
    """A value can neither smuggle in a second command nor a byte that Asterisk stalls on."""
    for name, given_words in [("NOOP", (evil,)), (f"NOOP{evil}", ()), ("SET VARIABLE", ("X", evil))]:
        with pytest.raises(AGICommandRefused, match="line end or NUL"):
            encode_command(name, given_words)


def test_half_a_character_is_refused() -> None:
    """Half of a surrogate pair, as broken JSON has it, is no text and no foreign byte."""
    with pytest.raises(AGICommandRefused, match="must be text"):
        encode_command("NOOP", ("\ud83d",))


@pytest.mark.parametrize("limit", [MAX_COMMAND_BYTES, MAX_COMMAND_BYTES_NEW])
@pytest.mark.parametrize("filling", ["x", "ü"])
def test_the_length_of_a_command(limit: int, filling: str) -> None:
    """A line of exactly the limit in bytes is sent, one byte more is refused and shown in short."""
    room = limit - len(b"NOOP \n")
    width = len(filling.encode())
    word = filling * (room // width) + "x" * (room % width)
    assert len(encode_command("NOOP", (word,), limit)) == limit
    with pytest.raises(AGICommandRefused, match=f"longer than {limit} bytes") as caught:
        encode_command("NOOP", (word + "x",), limit)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["NOOP", "GET VARIABLE", "GET FULL VARIABLE", "A B C D"])
def test_the_number_of_words(name: str) -> None:
    """Asterisk's table of words is filled to its end, and never beyond; the name's words count."""
    room = MAX_COMMAND_WORDS - len(name.split())
    line = encode_command(name, ("x",) * room)
    assert len(split_words(line.decode().rstrip("\n"))) == MAX_COMMAND_WORDS
    with pytest.raises(AGICommandRefused, match="127 words"):
        encode_command(name, ("x",) * (room + 1))


@pytest.mark.parametrize(
    ("version", "limit"),
    [
        ("22.10.1~dfsg-1", MAX_COMMAND_BYTES_NEW),
        ("22.10.1+dfsg+~cs6.17.60671434-1", MAX_COMMAND_BYTES_NEW),
        ("22.6.0", MAX_COMMAND_BYTES_NEW),
        ("22.5.2", MAX_COMMAND_BYTES),
        ("21.11.0", MAX_COMMAND_BYTES_NEW),
        ("21.10.9", MAX_COMMAND_BYTES),
        ("20.16.0", MAX_COMMAND_BYTES_NEW),
        ("20.15.2", MAX_COMMAND_BYTES),
        ("23.0.0", MAX_COMMAND_BYTES_NEW),
        ("24.1.0-rc1", MAX_COMMAND_BYTES_NEW),
        ("19.99.0", MAX_COMMAND_BYTES),
        ("18.26.4", MAX_COMMAND_BYTES),
        ("16.28.0~dfsg-0+deb11u4", MAX_COMMAND_BYTES),
        ("1.8.32.3-vici", MAX_COMMAND_BYTES),
        ("certified/20.7-cert5", MAX_COMMAND_BYTES),
        ("GIT-master-1234abc", MAX_COMMAND_BYTES),
        ("23", MAX_COMMAND_BYTES),
        ("", MAX_COMMAND_BYTES),
    ],
)
def test_the_longest_command_of_a_version(version: str, limit: int) -> None:
    """A line is never longer than the version of Asterisk reads in one piece; if in doubt, short."""
    assert max_command_bytes(version) == limit


# ---- any bytes at all

#: What a peer may send in any order; chosen so that every branch is reached often.
fragments = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([
        b"\n", b"HANGUP\n", b"HANG", b"200 result=0\n", b"200 result=1 (", b")", b") a=", b")\n",
        b"200 result=0 endpos=", b"12", b"100 x\n", b"510 x\n", b"520-x\n", b"520 x\n", b"x" * 9000 + b"\n",
        b"\n" * 9000, b"520-", b"200 ", b"result=", b"agi_x: y\n", b"agi_", b": ", b"\0",
    ]),
)  # fmt: skip


def feed_anything(agi: AgiConnection, pieces: Iterable[bytes]) -> None:
    """Play a server that asks whenever it may, and see what the machine keeps meanwhile."""
    largest = 0
    for piece in pieces:
        agi.receive_data(piece)
        largest = max(largest, len(piece))
        event: Event | NeedData | None = None
        while event is not NEED_DATA:
            event = agi.next_event()
            if agi.state is State.IDLE:
                agi.send_command(b"NOOP\n")
        # A pickle holds all that the object keeps, and some hundred bytes of its own.
        assert len(pickle.dumps(agi)) < MAX_REPLY_BYTES + largest + 1000


@pytest.mark.parametrize("start", [b"", b"agi_", HEADER])
def test_any_bytes(start: bytes) -> None:
    """Whatever a peer sends, the machine stays within bounds and raises nothing but its own error."""

    @given(st.lists(fragments.filter(bool), max_size=40))
    def check(pieces: list[bytes]) -> None:
        agi = AgiConnection()
        try:
            feed_anything(agi, [*([start] if start else []), *pieces])
        except RemoteProtocolError:
            assert agi.state is State.ERROR
            assert len(pickle.dumps(agi)) < 1000

    check()


values = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=30)
honest_replies = st.one_of(
    st.sampled_from([entry for entry in REPLIES if b"\n" not in entry[0][:-1] and len(entry[0]) < 100]),
    values.map(lambda value: (f"200 result=1 ({value})\n".encode(), Reply(200, "1", value))),
    st.just((b"HANGUP\n", None)),
)


@given(st.data(), st.lists(honest_replies, max_size=8))
def test_pieces_do_not_matter(data: st.DataObject, answers: list[tuple[bytes, Reply | None]]) -> None:
    """However the network cuts an honest stream, the events are the same."""
    agi = idle()
    for line, reply in answers:
        if reply is not None:
            agi.send_command(b"NOOP\n")
        cuts = data.draw(st.lists(st.integers(1, len(line) - 1), max_size=3, unique=True))
        pieces = [line[start:end] for start, end in pairwise([0, *sorted(cuts), len(line)])]
        assert feed(agi, pieces) == [reply or HANGUP]


def test_events_are_values() -> None:
    """Events and limits can be compared and not changed, so that one may be handed to anybody."""
    assert Reply(200, "1") == Reply(200, "1")
    assert replace(HeaderLimits(), arguments=1) != HeaderLimits()
    with pytest.raises(AttributeError):
        Reply(200).code = 510  # type: ignore[misc]


# ---- lines that others wrote


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"ANSWER\r\n",
        b'NOOP "open\n',
        b"NOOP back\\\n",
        b"NOOP \xff\xfe\n",
        b"x" * (MAX_COMMAND_BYTES - 1) + b"\n",
        b"x " * MAX_COMMAND_WORDS + b"\n",
        b'VERBOSE "' + b"x " * 500 + b'" 1\n',
        b"NOOP " + b"\\ " * 500 + b"\n",
        b'NOOP "' + b'\\" ' * 300 + b"\n",
    ],
)
def test_a_line_that_may_be_sent(line: bytes) -> None:
    """What Asterisk only does not understand, or takes for few words, passes."""
    assert line_fault(line) == ""


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"", "one whole line"),
        (b"NOOP", "one whole line"),
        (b"NOOP\nNOOP\n", "one whole line"),
        (b"NOOP\nNOOP", "one whole line"),
        (b"NOOP \0\n", "NUL"),
        (b"x" * MAX_COMMAND_BYTES + b"\n", f"longer than {MAX_COMMAND_BYTES} bytes"),
        (b"x " * (MAX_COMMAND_WORDS + 1) + b"\n", f"more than {MAX_COMMAND_WORDS} words"),
        (b'"" ' * (MAX_COMMAND_WORDS + 1) + b"\n", f"more than {MAX_COMMAND_WORDS} words"),
        (b'"a b"\t' * (MAX_COMMAND_WORDS + 1) + b"\n", f"more than {MAX_COMMAND_WORDS} words"),
    ],
)
def test_a_line_that_must_not_be_sent(line: bytes, fault: str) -> None:
    """What would harm Asterisk is told, and why."""
    assert fault in line_fault(line)


def test_a_longer_line_for_a_newer_asterisk() -> None:
    """The length is that of the Asterisk which is asked."""
    line = b"x" * MAX_COMMAND_BYTES + b"\n"
    assert line_fault(line, MAX_COMMAND_BYTES_NEW) == ""


@given(st.lists(st.text(st.sampled_from('ab "\\\t'), max_size=4), max_size=200))
def test_words_are_counted_as_asterisk_does(pieces: list[str]) -> None:
    """Whether there are too many words is what Asterisk's own way of reading says, in any quotes."""
    text = " ".join(pieces)
    found = [fault for fault in [line_fault(f"{text}\n".encode(), 10**6)] if fault]
    words = len(split_words(text))
    # A lone backslash at the very end is a word for us, none for Asterisk.
    assert bool(found) is (words > MAX_COMMAND_WORDS) or (text.endswith("\\") and words == MAX_COMMAND_WORDS)


@pytest.mark.parametrize("words", [MAX_COMMAND_WORDS, MAX_COMMAND_WORDS + 1])
def test_both_guards_agree(words: int) -> None:
    """What the encoder lets out, and what it refuses, is judged alike when somebody else wrote it."""
    arguments = ("a b",) * (words - 1)
    line = " ".join(["NOOP", *map(quote, arguments)]).encode() + b"\n"
    refused = bool(line_fault(line))
    assert refused is (words > MAX_COMMAND_WORDS)
    if refused:
        with pytest.raises(AGICommandRefused):
            encode_command("NOOP", arguments)
    else:
        assert encode_command("NOOP", arguments) == line


# ---- raw bytes

#: What Asterisk may say after a command, with the events in it: HANGUP around and within.
RAW_DIALOGUES = [
    b"200 result=0\n",
    b"HANGUP\n200 result=0\n",
    b"200 result=0\nHANGUP\n",
    b"100 result=0 Trying...\nHANGUP\n200 result=0 Gosub complete\nHANGUP\nHANGUP\n",
    b"200 result=1 (two\nlines)\n",
    b"520-Invalid\nHANGUP\n usage\n520 End of proper usage.\n",
    b"511 Command Not Permitted on a dead channel\n",
]


@pytest.mark.parametrize("said", RAW_DIALOGUES)
@pytest.mark.parametrize("cut", [lambda data: [data], single_bytes], ids=["whole", "bytes"])
def test_raw_bytes_are_all_that_came(said: bytes, cut: Callable[[bytes], list[bytes]]) -> None:
    """What is taken after each event, put together, is what was said, and nothing is left."""
    agi = idle()
    agi.keep_raw()
    for _ in range(2):
        agi.send_command(b"NOOP\n")
        taken = []
        for piece in cut(said):
            agi.receive_data(piece)
            while agi.next_event() is not NEED_DATA:
                taken.append(agi.take_raw())
        assert all(taken)
        assert b"".join(taken) == said
        assert agi.take_raw() == b""


def test_raw_bytes_belong_to_their_events() -> None:
    """What is behind an event stays for the next one, and a line that was passed over goes with the next."""
    agi = idle()
    agi.keep_raw()
    agi.send_command(b"GET VARIABLE X\n")
    assert len(feed(agi, [b"200 result=1 (a)\n"])) == 1
    assert agi.take_raw() == b"200 result=1 (a)\n"
    assert feed(agi, [b"tail)\nHANG"]) == []
    agi.send_command(b"NOOP\n")
    agi.receive_data(b"UP\n200 result=0\n200")
    assert agi.next_event() == HANGUP
    assert agi.take_raw() == b"tail)\nHANGUP\n"
    assert agi.next_event() == Reply(200, "0")
    assert agi.take_raw() == b"200 result=0\n"


def test_raw_bytes_begin_with_what_is_unread() -> None:
    """A HANGUP right behind the environment is not lost to who keeps raw bytes from then on."""
    agi = AgiConnection()
    agi.receive_data(HEADER + b"HANGUP\n")
    agi.next_event()
    agi.keep_raw()
    agi.keep_raw()
    assert agi.next_event() == HANGUP
    assert agi.take_raw() == b"HANGUP\n"


def test_raw_bytes_in_their_time() -> None:
    """They are kept from our turn on, and cannot be taken before or after."""
    with pytest.raises(LocalProtocolError, match="our turn"):
        waiting().keep_raw()
    agi = idle()
    with pytest.raises(LocalProtocolError, match="not kept"):
        agi.take_raw()
    agi.keep_raw()
    agi.drop_raw()
    with pytest.raises(LocalProtocolError, match="not kept"):
        agi.take_raw()


def test_raw_bytes_that_nobody_takes_have_an_end() -> None:
    """A peer that never comes to the reply is refused before memory is gone."""
    agi = idle()
    agi.keep_raw()
    agi.send_command(b"NOOP\n")
    with pytest.raises(RemoteProtocolError, match="around a reply"):
        feed(agi, [b"100 trying\n" * 1000] * 1000)


@pytest.mark.parametrize("connection", load_connections(), ids=lambda connection: connection.name)
def test_raw_bytes_of_real_dialogues(connection: Connection) -> None:
    """Of everything that real Asterisks said, byte by byte, no raw byte is lost or comes twice."""
    agi = AgiConnection()
    taken = said = b""
    keeping = False
    try:
        for chunk in connection.chunks:
            if chunk.speaker is Speaker.SERVER:
                agi.send_command(chunk.data)
                continue
            for piece in single_bytes(chunk.data):
                agi.receive_data(piece)
                said += piece if keeping else b""
                while agi.next_event() is not NEED_DATA:
                    if keeping:
                        taken += agi.take_raw()
                    else:
                        agi.keep_raw()
                        keeping = True
    except ProtocolError:
        assert said.startswith(taken)
    else:
        assert keeping
        assert taken == said


@pytest.mark.parametrize("said", RAW_DIALOGUES)
def test_a_reply_is_found_in_its_raw_bytes(said: bytes) -> None:
    """Read again, raw bytes give the reply that was read first, whatever stands around it."""
    agi = waiting()
    [first] = [event for event in feed(agi, [said]) if isinstance(event, Reply)]
    assert parse_reply(b"NOOP\n", said) == first
    assert parse_reply(b"NOOP\n", b"tail of a value)\n" + said) == first


@pytest.mark.parametrize("command", [b"SPEECH RECOGNIZE x 1\n", b' "speech"  recognize x 1\n'])
def test_a_speech_reply_is_read_as_one(command: bytes) -> None:
    """Quoted text may hold parentheses, however the command was written."""
    said = b'200 result=1 (speech) endpos=5 results=1 score0=9 text0="a (b" grammar0=g\n'
    agi = idle()
    agi.keep_raw()
    agi.send_command(command)
    [reply] = feed(agi, [said])
    assert isinstance(reply, Reply)
    assert (reply.value, reply.endpos) == ("speech", 5)
    assert parse_reply(command, said) == reply


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HANGUP\n",
        b"200 result=0",
        b"200 nothing\n200 result=0\n",
        b"200 result=5\n200 result=1234\n",
        b"200 result=1 (forged)\n510 Invalid\n",
    ],
)
def test_no_reply_is_guessed(raw: bytes) -> None:
    """Where the tail of a value looks like a reply itself, nobody can say which one it was."""
    assert parse_reply(b"NOOP\n", raw) is None
