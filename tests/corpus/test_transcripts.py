"""The protocol against everything that two real Asterisks were recorded to say.

Laws:
    * What is expected is read from the lines by the few simple rules of :func:`simple_reading`, which share
      nothing with the machine under test.
    * A scene that the machine refuses stands in ``REFUSED``, by name and with the reason.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import pytest

from fastagi_pool.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from fastagi_pool.protocol import (
    MAX_COMMAND_BYTES,
    MAX_COMMAND_BYTES_NEW,
    NEED_DATA,
    AgiConnection,
    ConnectionClosed,
    Event,
    Hangup,
    Reply,
    Request,
    State,
)

from .transcripts import Chunk, Connection, Speaker, load_connections

CONNECTIONS: Final = load_connections()

#: Scenes that break the protocol on purpose: what the machine says to them, and why it is right.
REFUSED: Final[Mapping[str, tuple[type[ProtocolError], str]]] = {
    "26_long_values": (RemoteProtocolError, "lines too long for Asterisk, each answered in several pieces"),
    "29_newline_injection": (RemoteProtocolError, "a caller's name and a URL forge environment lines"),
    "30_quoting": (LocalProtocolError, "its last command holds a line end"),
    "33_pipelining": (LocalProtocolError, "three commands in one piece"),
    "34_partial_line": (LocalProtocolError, "half a command line"),
    "35_unterminated_last": (LocalProtocolError, "a command without a line end"),
    "52_interrupt_by_command": (LocalProtocolError, "a second command before the reply to the first"),
    "54_nul_byte": (LocalProtocolError, "a NUL loses Asterisk's reply, and the next command comes before it"),
}

#: Scenes whose replies cannot be told apart from what they quote when they come in pieces.
AMBIGUOUS_IN_PIECES: Final = {
    "31_newline_in_value": "a value quotes a whole reply line; what is behind it comes too late",
}

every_connection = pytest.mark.parametrize("connection", CONNECTIONS, ids=lambda connection: connection.name)


@dataclass(slots=True)
class Outcome:
    """What the machine made of a connection."""

    events: list[Event] = field(default_factory=list)
    refusal: ProtocolError | None = None


def drain(agi: AgiConnection) -> Iterator[Event]:
    """Yield what the machine can say now; the end of the stream once."""
    while (event := agi.next_event()) is not NEED_DATA:
        yield event
        if isinstance(event, ConnectionClosed):
            return


def replay(connection: Connection, pieces: Callable[[bytes], Iterable[bytes]]) -> Outcome:
    """Feed Asterisk's side to a machine, sending what the server sent where it sent it."""
    agi = AgiConnection()
    outcome = Outcome()
    try:
        for chunk in connection.chunks:
            if chunk.speaker is Speaker.SERVER:
                assert agi.send_command(chunk.data) == chunk.data
                continue
            for piece in pieces(chunk.data):
                agi.receive_data(piece)
                outcome.events += drain(agi)
        agi.receive_data(b"")
        outcome.events += drain(agi)
    except ProtocolError as error:
        outcome.refusal = error
    return outcome


def as_recorded(data: bytes) -> Iterable[bytes]:
    """Give a chunk in one piece."""
    return (data,)


def byte_by_byte(data: bytes) -> Iterable[bytes]:
    """Give a chunk in pieces of one byte."""
    return (data[at : at + 1] for at in range(len(data)))


# ---- the same, read by hand


def before_the_breach(connection: Connection) -> tuple[Chunk, ...]:
    """Give the chunks up to where the rules of the protocol are broken first."""
    longest = MAX_COMMAND_BYTES_NEW if connection.name.startswith("22/") else MAX_COMMAND_BYTES
    waiting = False
    for place, chunk in enumerate(connection.chunks):
        if chunk.speaker is Speaker.ASTERISK:
            waiting = False
            continue
        one_line = chunk.data.endswith(b"\n") and chunk.data.count(b"\n") == 1
        if waiting or not one_line or b"\0" in chunk.data or len(chunk.data) > longest:
            return connection.chunks[:place]
        waiting = True
    return connection.chunks


def simple_reading(chunks: tuple[Chunk, ...]) -> list[Event]:
    """Read a connection line by line, knowing where each command was sent."""
    said = [""]
    for chunk in chunks:
        if chunk.speaker is Speaker.SERVER:
            said.append("")
        else:
            said[-1] += chunk.data.decode("utf-8", "surrogateescape")
    header, _, said[0] = said[0].partition("\n\n")
    if header.count("\nagi_extension: ") > 1:
        return [ConnectionClosed()]  # Forged: nothing may be believed.
    events: list[Event] = [read_header(header)]
    for text in said:
        events += read_answer(text.removesuffix("\n").split("\n") if text else [])
    return [*events, ConnectionClosed()]


def read_header(text: str) -> Request:
    """Read an environment of which every line is in order."""
    environment = {line[: line.index(": ")]: line[line.index(": ") + 2 :] for line in text.split("\n")}
    arguments = [value for name, value in environment.items() if name.startswith("agi_arg_")]
    return Request(environment, tuple(arguments))


def read_answer(lines: list[str]) -> list[Event]:
    """Read what came between two commands: a reply if one was due, and HANGUP before or behind it."""
    reply = [line for line in lines if line != "HANGUP" and not line.startswith("100 ")]
    if not reply:
        return [Hangup() for _ in lines]
    before = lines.index(reply[0]) if lines[0] == "HANGUP" else 0
    behind = lines.count("HANGUP") - before
    return [*[Hangup()] * before, read_reply(reply), *[Hangup()] * behind]


def read_reply(lines: list[str]) -> Reply:
    """Read one reply, which takes several lines only if it explains a usage or holds a value."""
    code, text = int(lines[0][:3]), lines[0][4:]
    if lines[0].startswith("520-"):
        return Reply(520, text="\n".join(lines[1:-1]))
    if code != 200:
        return Reply(code, text=text)
    result = text.split(" ")[0].removeprefix("result=")
    if " (" not in text:
        tail = text.partition(" ")[2]
        return Reply(200, result, None, read_endpos(tail), "" if "endpos=" in tail else tail)
    whole = "\n".join(lines)
    value = whole[whole.index(" (") + 2 : whole.rindex(")")]
    return Reply(200, result, value, read_endpos(whole[whole.rindex(")") :]), "")


def read_endpos(text: str) -> int | None:
    """Read the number behind ``endpos=`` at the end of a line."""
    return int(text.partition("endpos=")[2]) if "endpos=" in text else None


# ---- the facts


def test_the_corpus_is_whole() -> None:
    """No transcript is lost on the way, and no exception is made for a scene that is not there."""
    names = [connection.name for connection in CONNECTIONS]
    assert len(names) == len(set(names)) == 127
    assert {name.partition("/")[0] for name in names} == {"16", "22"}
    scenes = {connection.scene for connection in CONNECTIONS}
    assert {*REFUSED, *AMBIGUOUS_IN_PIECES} <= scenes


@every_connection
def test_as_recorded(connection: Connection) -> None:
    """The machine reads what Asterisk said exactly as a person would, or refuses it for a known reason."""
    outcome = replay(connection, as_recorded)
    if connection.scene not in REFUSED:
        assert outcome.refusal is None
        assert outcome.events == simple_reading(connection.chunks)
        return
    refusal, _ = REFUSED[connection.scene]
    assert type(outcome.refusal) is refusal
    expected = simple_reading(before_the_breach(connection))[:-1]
    assert outcome.events[: len(expected)] == expected


@every_connection
def test_one_byte_at_a_time(connection: Connection) -> None:
    """How the network cuts the stream changes nothing of what is read."""
    outcome = replay(connection, byte_by_byte)
    if connection.scene in AMBIGUOUS_IN_PIECES:
        assert outcome.refusal is None
        assert list(map(type, outcome.events)) == list(map(type, simple_reading(connection.chunks)))
        return
    whole = replay(connection, as_recorded)
    assert outcome.events == whole.events
    assert type(outcome.refusal) is type(whole.refusal)


@every_connection
def test_cut_off_after_every_byte(connection: Connection) -> None:
    """Wherever the connection breaks, the machine comes to an end, and never with an error of ours."""
    agi = AgiConnection()
    for chunk in connection.chunks:
        if chunk.speaker is Speaker.SERVER:
            try:
                agi.send_command(chunk.data)
            except LocalProtocolError:
                assert connection.scene in REFUSED
                return
            continue
        before = pickle.dumps(agi)
        for cut in range(len(chunk.data)):
            see_the_end(pickle.loads(before), chunk.data[:cut])
        try:
            agi.receive_data(chunk.data)
            list(drain(agi))
        except RemoteProtocolError:
            assert connection.scene in REFUSED
            return


def see_the_end(agi: AgiConnection, data: bytes) -> None:
    """Feed the last bytes and the end of the stream; see that the machine takes notice of it."""
    try:
        if data:
            agi.receive_data(data)
            list(drain(agi))
        agi.receive_data(b"")
        assert isinstance(list(drain(agi))[-1], ConnectionClosed)
    except RemoteProtocolError:
        assert agi.state is State.ERROR
    else:
        assert agi.state is State.CLOSED
