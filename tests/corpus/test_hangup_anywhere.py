"""HANGUP at every byte of a session of 30 commands: no reply is ever taken for another command's.

Laws:
    * Asterisk writes only what it was asked for: reply n comes when command n has been sent, and not before.
    * The server is as hasty as can be: it sends a command as soon as it may. A second one first takes
      all that has come, as a server does that waits for the HANGUP behind a -1.
    * Where Asterisk may write HANGUP, it is one event and changes nothing else. Anywhere else it is part of
      the text that it stands in: that text may be read wrongly or refused, the others not.

Source: the replies were recorded from Asterisk 16 and 22 (tests/corpus/agi); those with speech and the 520
of one line are written after res_speech.c and agi_handle_command() in res_agi.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Final

import pytest

from fastagi_pool.errors import RemoteProtocolError
from fastagi_pool.protocol import (
    NEED_DATA,
    AgiConnection,
    ConnectionClosed,
    Hangup,
    Reply,
    Request,
    State,
)

HANGUP: Final = b"HANGUP\n"


@dataclass(frozen=True, slots=True)
class Turn:
    """One command and what Asterisk answers.

    Attributes:
        command: The line.
        said: Asterisk's bytes.
        reply: What they mean.
    """

    command: bytes
    said: bytes
    reply: Reply

    @property
    def breaks(self) -> list[int]:
        """Where Asterisk may write HANGUP: between its lines, but not inside a value, which is one write."""
        if self.reply.value is not None and "\n" in self.reply.value:
            return [0, len(self.said)]
        return [0, *(at + 1 for at, byte in enumerate(self.said) if byte == ord("\n"))]


HEADER: Final = (
    b"agi_network: yes\nagi_network_script: menu?x=1\nagi_request: agi://h/menu?x=1\nagi_channel: SIP/1\n"
    b"agi_calleridname: Ann: B\nagi_accountcode: \nagi_arg_1: \nagi_arg_2: a b\n\n"
)

SESSION: Final = (
    Turn(b"ANSWER\n", b"200 result=0\n", Reply(200, "0")),
    Turn(b"CHANNEL STATUS\n", b"200 result=6\n", Reply(200, "6")),
    Turn(b"GET VARIABLE NONE\n", b"200 result=0\n", Reply(200, "0")),
    Turn(b"GET VARIABLE EXTEN\n", b"200 result=1 (url)\n", Reply(200, "1", "url")),
    Turn(b"GET FULL VARIABLE ${NONE}\n", b"200 result=1 ()\n", Reply(200, "1", "")),
    Turn(b"GET VARIABLE PAREN\n", b"200 result=1 (a) b (c))\n", Reply(200, "1", "a) b (c)")),
    Turn(
        b"GET VARIABLE NL\n",
        b"200 result=1 (line1\n200 result=1 (forged)\nline3))\n",
        Reply(200, "1", "line1\n200 result=1 (forged)\nline3)"),
    ),
    Turn(b"SET VARIABLE X 1\n", b"200 result=1\n", Reply(200, "1")),
    Turn(
        b"GET VARIABLE LINES\n",
        b"200 result=1 (one\nHANGUP\n\n(two)\n",
        Reply(200, "1", "one\nHANGUP\n\n(two"),
    ),
    Turn(b"GET VARIABLE X\n", b"200 result=1 (HANGUP)\n", Reply(200, "1", "HANGUP")),
    Turn(b"DATABASE GET f k\n", b"200 result=1 (J\xfcrgen)\n", Reply(200, "1", "J\udcfcrgen")),
    Turn(
        b"GET VARIABLE\n",
        b"520-Invalid command syntax.  Proper usage follows:\n"
        b" Usage: GET VARIABLE <variablename>\n\n 200 result=1\n520 End of proper usage.\n",
        Reply(520, text=" Usage: GET VARIABLE <variablename>\n\n 200 result=1"),
    ),
    Turn(
        b"SET CONTEXT\n",
        b"520 Invalid command syntax.  Proper usage not available.\n",
        Reply(520, text="Invalid command syntax.  Proper usage not available."),
    ),
    Turn(b"NOSUCH\n", b"510 Invalid or unknown command\n", Reply(510, text="Invalid or unknown command")),
    Turn(b'STREAM FILE hello ""\n', b"200 result=0 endpos=8000\n", Reply(200, "0", None, 8000)),
    Turn(b"STREAM FILE hello 12\n", b"200 result=50 endpos=640\n", Reply(200, "50", None, 640)),
    Turn(b'CONTROL STREAM FILE hello ""\n', b"200 result=0 endpos=-1\n", Reply(200, "0", None, -1)),
    Turn(b"GET DATA pin\n", b"200 result=34\n", Reply(200, "34")),
    Turn(b"GET DATA pin 2000\n", b"200 result= (timeout)\n", Reply(200, "", "timeout")),
    Turn(b"GET DATA pin 2000 4\n", b"200 result=34 (timeout)\n", Reply(200, "34", "timeout")),
    Turn(b"GET DATA pin 0 4\n", b"200 result=\n", Reply(200, "")),
    Turn(
        b"RECORD FILE memo wav * -1\n",
        b"200 result=42 (dtmf) endpos=160\n",
        Reply(200, "42", "dtmf", 160),
    ),
    Turn(b"WAIT FOR DIGIT 250\n", b"200 result=49\n", Reply(200, "49")),
    Turn(
        b"GOSUB sub s 1\n",
        b"100 result=0 Trying...\n200 result=0 Gosub complete\n",
        Reply(200, "0", text="Gosub complete"),
    ),
    Turn(
        b"GOSUB none s 1\n",
        b"200 result=-1 Gosub label not found\n",
        Reply(200, "-1", text="Gosub label not found"),
    ),
    Turn(b"EXEC NoSuch\n", b"200 result=-2\n", Reply(200, "-2")),
    Turn(
        b"SPEECH RECOGNIZE menu 5\n",
        b'200 result=1 (speech) endpos=160 results=1 score0=900 text0="yes (please)" grammar0=yn\n',
        Reply(200, "1", "speech", 160, 'results=1 score0=900 text0="yes (please)" grammar0=yn'),
    ),
    Turn(
        b"SPEECH RECOGNIZE menu 5\n",
        b"200 result=1 (digit) digit=# endpos=160\n",
        Reply(200, "1", "digit", text="digit=# endpos=160"),
    ),
    Turn(b"STREAM FILE none 1\n", b"200 result=-1 endpos=0\n", Reply(200, "-1", None, 0)),
    Turn(
        b"SAY DIGITS 1 2\n",
        b"511 Command Not Permitted on a dead channel or intercept routine\n",
        Reply(511, text="Command Not Permitted on a dead channel or intercept routine"),
    ),
)

#: What Asterisk says, piece by piece: the environment, then the answer to each command.
STREAM: Final = (HEADER, *(turn.said for turn in SESSION))


@dataclass(slots=True)
class Server:
    """A server that sends all commands of the session, as fast as it may.

    Attributes:
        patient: Whether it takes all that has come before it sends the next command.
        agi: The machine under test.
        answers: The reply to each command, in the order of the commands.
        sent: Number of commands sent.
        hangups: Number of HANGUP seen.
        request: Whether the environment was read.
        refused: Whether the machine has found Asterisk out of step.
    """

    patient: bool
    commands: tuple[bytes, ...]
    agi: AgiConnection = field(default_factory=AgiConnection)
    answers: list[Reply] = field(default_factory=list)
    sent: int = 0
    hangups: int = 0
    request: bool = False
    refused: bool = False

    def receive(self, data: bytes) -> None:
        """Take bytes, and send what can be sent; ``b""`` is the end."""
        if self.refused:
            return
        self.agi.receive_data(data)
        try:
            while self._take_events():
                pass
        except RemoteProtocolError:
            assert self.agi.state is State.ERROR
            self.refused = True

    def _take_events(self) -> bool:
        """Take what there is, and send a command if it is our turn; say whether one was sent."""
        while (event := self.agi.next_event()) is not NEED_DATA:
            if isinstance(event, ConnectionClosed):
                return False
            self._note(event)
            if not self.patient and self._send():
                return True
        return self._send()

    def _note(self, event: Request | Reply | Hangup) -> None:
        if isinstance(event, Reply):
            self.answers.append(event)
        elif isinstance(event, Hangup):
            self.hangups += 1
        else:
            self.request = True

    def _send(self) -> bool:
        if self.agi.state is not State.IDLE or self.sent == len(self.commands):
            return False
        self.agi.send_command(self.commands[self.sent])
        self.sent += 1
        return True


def in_one_piece(data: bytes) -> Iterable[bytes]:
    """Give what Asterisk writes without waiting for us, as the network mostly does."""
    return (data,) if data else ()


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    """Give pieces of one byte."""
    return (data[at : at + 1] for at in range(len(data)))


@dataclass(frozen=True, slots=True)
class Place:
    """Where HANGUP is put in.

    Attributes:
        turn: 0 for the environment, else the number of the command, from 1.
        offset: Number of bytes before it in what Asterisk says there.
    """

    turn: int
    offset: int


#: Every byte of the stream, and the end of each piece.
ANYWHERE: Final = [Place(turn, offset) for turn, said in enumerate(STREAM) for offset in range(len(said) + 1)]
#: Those where Asterisk itself may write it.
BETWEEN_LINES: Final = [
    Place(0, len(HEADER)),
    *(Place(number, offset) for number, turn in enumerate(SESSION, start=1) for offset in turn.breaks),
]

Pieces = Callable[[bytes], Iterable[bytes]]

each_delivery = pytest.mark.parametrize("pieces", [in_one_piece, byte_by_byte])
each_server = pytest.mark.parametrize("patient", [False, True], ids=["hasty", "patient"])


def play(
    pieces: Pieces, patient: bool, place: Place | None = None, session: Sequence[Turn] = SESSION
) -> Server:
    """Run the session with HANGUP at a place, or without, and give the server as it stands at the end."""
    server = Server(patient, tuple(turn.command for turn in session))
    for number, said in enumerate((HEADER, *(turn.said for turn in session))):
        if server.sent < number:
            break  # Asterisk has nothing to answer, and waits.
        if place is not None and place.turn == number:
            said = said[: place.offset] + HANGUP + said[place.offset :]
        for piece in pieces(said):
            server.receive(piece)
    server.receive(b"")
    return server


@each_server
def test_the_session_without_hangup(patient: bool) -> None:
    """The session itself is read to its last reply, so that what follows is HANGUP's doing."""
    server = play(in_one_piece, patient)
    assert server.answers == [turn.reply for turn in SESSION]
    assert (len(SESSION), server.hangups, server.refused) == (30, 0, False)
    assert server.agi.state is State.CLOSED


@each_server
def test_the_session_byte_by_byte(patient: bool) -> None:
    """In pieces a value ends where it seems to: the one that quotes a reply is cut, and the step is kept."""
    server = play(byte_by_byte, patient)
    changed = [number for number, turn in enumerate(SESSION) if server.answers[number] != turn.reply]
    assert [SESSION[number].command for number in changed] == [b"GET VARIABLE NL\n"]
    assert server.answers[changed[0]].value == "line1\n200 result=1 (forged"
    assert (len(server.answers), server.hangups, server.refused) == (30, 0, False)


@each_delivery
@each_server
def test_hangup_between_any_two_lines(pieces: Pieces, patient: bool) -> None:
    """Wherever Asterisk may write HANGUP, it is told once and every reply is as it would be without."""
    expected = play(pieces, patient).answers
    for place in BETWEEN_LINES:
        server = play(pieces, patient, place)
        assert server.answers == expected, place
        assert (server.hangups, server.refused) == (1, False), place


@each_delivery
@each_server
def test_hangup_at_any_byte(pieces: Pieces, patient: bool) -> None:
    """Whatever text HANGUP breaks apart, every other command has its own reply or none at all."""
    expected = play(pieces, patient).answers
    between = frozenset(BETWEEN_LINES)
    for place in ANYWHERE:
        if place not in between:
            assert_in_step(play(pieces, patient, place), place, expected)


def assert_in_step(server: Server, place: Place, expected: list[Reply]) -> None:
    """Assert that only the text at this place is read otherwise, and that a missing reply is not made up."""
    got = server.answers
    if place.turn == 0:
        assert (server.refused, got) == (True, []), place
        return
    broken = place.turn - 1
    assert [*got[:broken], *got[broken + 1 :]] == [*expected[:broken], *expected[broken + 1 : len(got)]], (
        place
    )
    if len(got) < len(expected):
        # It waits for the reply that was broken, or has found what was left of it.
        assert len(got) in (broken, broken + 1), place
        assert server.agi.state is (State.ERROR if server.refused else State.CLOSED), place


def forged_values() -> Iterator[str]:
    """Give every value of up to four lines that say what Asterisk says, or the end of a value."""
    for count in range(1, 5):
        for lines in product(("x", "x)", "HANGUP", "200 result=9", "511 x", ""), repeat=count):
            yield "\n".join(lines)


@each_server
def test_no_value_forges_a_reply(patient: bool) -> None:
    """A value that comes in one piece is taken whole whatever it quotes, before a real HANGUP too."""
    for value in forged_values():
        for hangup in (b"", HANGUP):
            said = b"200 result=1 (" + value.encode() + b")\n" + hangup
            turn = Turn(b"GET VARIABLE X\n", said, Reply(200, "1", value))
            session = (SESSION[0], turn, SESSION[1], SESSION[3], SESSION[0])
            server = play(in_one_piece, patient, session=session)
            assert server.answers == [each.reply for each in session], value
            assert server.hangups == bool(hangup), value
