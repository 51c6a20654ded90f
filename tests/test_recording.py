"""fastagi_pool.recording: what is written of a call, what is hidden, and how orders come and go."""

from __future__ import annotations

import json
import os
import re
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from disks import small_disk
from hypothesis import given
from hypothesis import strategies as st

from fastagi_pool.call import Dialogue
from fastagi_pool.errors import AGICallFinished, CallHangup, CallPeerGone, CallTimeout
from fastagi_pool.logs import CallRecord
from fastagi_pool.protocol import AgiConnection, Reply, Request
from fastagi_pool.recording import (
    MOST_BYTES,
    DigitMask,
    EventKind,
    OpenRecording,
    Order,
    RecordedDialogue,
    Recorder,
    TraceEvent,
    Transcript,
    Turn,
    follow,
    place_order,
    read_transcripts,
    recording_of,
    withdraw_order,
    written,
)
from fastagi_pool.routes import Route, RouteKind
from fastagi_pool.testing import environment

OK = Reply(200, "0")
ENVIRONMENT = dict(line.split(": ", 1) for line in environment("agi://localhost/pin").splitlines() if line)
#: A time at which every order of these tests stands.
NOW_S = 1_800_000_000.0
LATER_S = NOW_S + 100.0
ALWAYS = Order(LATER_S)


def transcript(*turns: tuple[str, str], **fields: object) -> Transcript:
    """Make one, a second between any two lines."""
    made = {
        "ref": "6a01-2a-1",
        "route": "pin",
        "began": "2026-11-21T08:47:22.123+01:00",
        "environment": ENVIRONMENT,
        "turns": tuple(Turn(float(at_s), who, line) for at_s, (who, line) in enumerate(turns)),
        "outcome": "ok",
        **fields,
    }
    return Transcript(**made)  # type: ignore[arg-type]


class Scripted:
    """A dialogue whose answers, and ends, are known beforehand."""

    def __init__(self, *answers: Reply | bytes | BaseException, hangup_at: int = -1) -> None:
        """Learn them.

        Args:
            answers: One for each command; what is an exception is raised. Bytes are for exchange() alone.
            hangup_at: The number of the command with which HANGUP comes.
        """
        self._answers = list(answers)
        self._hangup_at = hangup_at
        self.sent: list[bytes] = []
        self.hung_up = False
        self.finished = False
        self.listener: Callable[[bytes], None] | None = None

    def execute(self, line: bytes) -> Reply:
        """Answer."""
        self.hung_up |= len(self.sent) == self._hangup_at
        self.sent.append(line)
        found = self._answers.pop(0)
        if isinstance(found, BaseException):
            raise found
        assert isinstance(found, Reply)
        return found

    def await_hangup(self) -> None:
        """Let it come."""
        self.hung_up = True
        raise CallHangup("the caller hung up")

    def finish(self) -> None:
        """Note it."""
        self.finished = True

    def exchange(self, line: bytes) -> bytes:
        """Answer as Asterisk does, or with the bytes of the raw answer."""
        before = b"HANGUP\n" if len(self.sent) == self._hangup_at else b""
        if before and self.listener is not None:
            self.hung_up = True
            self.listener(b"")
        if isinstance(raw := self._answers[0], bytes):
            self._answers[0] = OK
        reply = self.execute(line)
        return raw if isinstance(raw, bytes) else before + f"{written(reply)}\n".encode()

    def listen(self, on_unasked: Callable[[bytes], None]) -> None:
        """Keep who listens."""
        self.listener = on_unasked

    def hang_up(self) -> None:
        """Say HANGUP between two commands."""
        self.hung_up = True
        assert self.listener is not None
        self.listener(b"HANGUP\n")


def route(name: str = "pin", *, mask_digits: bool = False) -> Route:
    """Make a route."""
    return Route(name, RouteKind.SCRIPT, "pin", "handlers:pin", mask_digits=mask_digits)


# ---- transcripts


@pytest.mark.parametrize(
    "turns",
    [
        (),
        (("S", "ANSWER"), ("A", "200 result=0")),
        (("S", "GET VARIABLE X"), ("A", "200 result=1 (two\nlines)"), ("A", "HANGUP")),
        (("S", "NOOP \udce9"), ("A", "200 result=1 (\udcff)")),
        (("S", 'NOOP "☎ \u2028"'), ("A", "200 result=0")),
    ],
)
def test_round_trip(turns: tuple[tuple[str, str], ...]) -> None:
    """A transcript comes back from its line as it was, line ends and stray bytes included."""
    original = transcript(*turns, masked=True)
    line = original.to_json()
    assert "\n" not in line
    assert line.isascii()
    assert Transcript.from_json(line) == original


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "Expecting value"),
        ('{"ref": "x"', "delimiter"),
        ("[]", "not a recorded call"),
        ("7", "int"),
        ("null", "NoneType"),
        ("{}", "'turns' is missing"),
        ('{"turns": []}', "'environment' is missing"),
        ('{"turns": [], "environment": {}}', "missing 4 required"),
        ('{"turns": [["soon", "S", "ANSWER"]], "environment": {}}', "soon"),
        ('{"turns": [[0.1, "S"]], "environment": {}}', "not enough values"),
        ('{"turns": [], "environment": []}', "list"),
        (json.dumps({**json.loads(transcript().to_json()), "more": 1}), "more"),
    ],
)
def test_what_is_no_transcript(line: str, why: str) -> None:
    """A line that is no recorded call is refused, and it is said why."""
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        Transcript.from_json(line)
    assert str(caught.value).startswith("not a recorded call: ")


def test_reading_names_the_line() -> None:
    """Empty lines are passed over but counted, and a bad line is named by its number."""
    good = f"{transcript().to_json()}\n"
    assert list(read_transcripts([good, "\n", good])) == [transcript(), transcript()]
    with pytest.raises(ValueError, match=r"^line 3: not a recorded call: "):
        list(read_transcripts([good, "\n", good[:40]]))


# ---- orders


@pytest.mark.parametrize(
    ("order", "fits"),
    [
        (Order(LATER_S), True),
        (Order(LATER_S, "pin"), True),
        (Order(LATER_S, "p*"), True),
        (Order(LATER_S, "P*"), False),
        (Order(LATER_S, "other"), False),
        (Order(LATER_S, "", "+49*"), True),
        (Order(LATER_S, "", "49*"), False),
        (Order(LATER_S, "p?n", "+49[0-9]*"), True),
        (Order(LATER_S, "pin", "100"), False),
        (Order(LATER_S, "other", "+49*"), False),
        (Order(LATER_S, uniqueid="17*"), True),
        (Order(LATER_S, uniqueid="17"), False),
        (Order(LATER_S, "other", uniqueid="17*"), False),
    ],
)
def test_which_calls_fit(order: Order, fits: bool) -> None:
    """A call fits if all globs do; an empty one always does."""
    assert order.fits("pin", "+4930123", "1700000000.5") is fits


@pytest.mark.parametrize(
    "fields",
    [
        {"until_s": "x"},
        {"one_in": 0},
        {"one_in": 1.5},
        {"route": 7},
        {"callerid": None},
        {"uniqueid": 5.0},
        {"live": 1},
        {"calls": -1},
        {"calls": 1.0},
    ],
)
def test_what_is_no_order(fields: Mapping[str, object]) -> None:
    """An order over which a call could stumble cannot be made."""
    with pytest.raises(ValueError, match="an order has"):
        Order(**{"until_s": LATER_S, **fields})  # type: ignore[arg-type]


# ---- replies as text


@pytest.mark.parametrize(
    "line",
    [
        "200 result=0",
        "200 result=",
        "200 result=1 (a (b) c)",
        "200 result=1 (two\nlines)",
        "200 result=1 ()",
        "200 result=49 endpos=800",
        "200 result=34 (timeout)",
        "200 result=-1 (hangup) endpos=0",
        "510 Invalid or unknown command",
        "511 Command Not Permitted on a dead channel or intercept routine",
        "520-Invalid command syntax.  Proper usage follows:\nUsage: X\n\n more\n520 End of proper usage.",
    ],
)
def test_replies_are_written_as_asterisk_does(line: str) -> None:
    """What is written of a reply is what Asterisk said, so that it can be said again."""
    agi = AgiConnection()
    agi.receive_data(b"agi_request: x\n\n")
    agi.next_event()
    agi.send_command(b"NOOP\n")
    agi.receive_data(f"{line}\n".encode())
    reply = agi.next_event()
    assert isinstance(reply, Reply)
    assert written(reply) == line


# ---- the mask


@pytest.mark.parametrize(
    ("command", "reply", "text"),
    [
        ("GET DATA pin 5000 4", Reply(200, "1234"), "200 result=****"),
        ("GET DATA pin 5000 4", Reply(200, "12", "timeout"), "200 result=** (timeout)"),
        ("GET DATA pin 5000 4", Reply(200, "", "timeout"), "200 result= (timeout)"),
        ("GET DATA pin 5000 4", Reply(200, "-1"), "200 result=-1"),
        ("get data pin", Reply(200, "7"), "200 result=*"),
        (' "GET"  D\\ATA\tpin', Reply(200, "7"), "200 result=*"),
        ("WAIT FOR DIGIT 5000", Reply(200, "49"), "200 result=*"),
        ("WAIT FOR DIGIT 5000", Reply(200, "0"), "200 result=0"),
        ("STREAM FILE pin 12", Reply(200, "50", endpos=800), "200 result=* endpos=800"),
        ("CONTROL STREAM FILE pin 12", Reply(200, "50", endpos=800), "200 result=* endpos=800"),
        ("RECORD FILE pin wav 12 5", Reply(200, "35", "dtmf", 800), "200 result=* (dtmf) endpos=800"),
        ("RECORD FILE pin wav 12 5", Reply(200, "0", "timeout", 800), "200 result=0 (timeout) endpos=800"),
        ("GET OPTION pin 12 5000", Reply(200, "49", endpos=9), "200 result=* endpos=9"),
        ("RECEIVE CHAR 5000", Reply(200, "49"), "200 result=*"),
        ("SAY DIGITS 77 12", Reply(200, "50"), "200 result=*"),
        ("SAY DIGITS 77 12", Reply(200, "-1"), "200 result=-1"),
        (
            "SPEECH RECOGNIZE pin 5000",
            Reply(200, "1", "digit", 7, "digit=5"),
            "200 result=1 (digit) endpos=7 digit=*",
        ),
        ("ANSWER", Reply(200, "0"), "200 result=0"),
        ("GET VARIABLE X", Reply(200, "1", "1234"), "200 result=1 (1234)"),
        ("GET DATA pin", Reply(511, text="Not permitted"), "511 Not permitted"),
    ],
)
def test_answers_without_digits(command: str, reply: Reply, text: str) -> None:
    """Whatever command asks for digits, none of them is written; how it ended is."""
    assert DigitMask().answer(command, reply) == text


def after(*answers: tuple[str, Reply]) -> DigitMask:
    """Make a mask that has seen answers."""
    mask = DigitMask()
    for command, reply in answers:
        mask.answer(command, reply)
    return mask


PIN_DIALLED = ("GET DATA pin", Reply(200, "1234"))
SINGLE_KEYS = [("WAIT FOR DIGIT 5000", Reply(200, str(ord(key)))) for key in "1234"]


@pytest.mark.parametrize("answers", [[PIN_DIALLED], SINGLE_KEYS])
@pytest.mark.parametrize(
    ("said", "written_down"),
    [
        ("SET VARIABLE PIN 1234", "SET VARIABLE PIN ****"),
        ('SAY DIGITS 1234 "#"', 'SAY DIGITS **** "#"'),
        ("EXEC Dial PJSIP/1234,30", "EXEC Dial PJSIP/****,30"),
        ("SET VARIABLE ACCOUNT 991234556", "SET VARIABLE ACCOUNT *********"),
        ("VERBOSE 12-34", "VERBOSE **-**"),
        ('VERBOSE "1 2 3 4"', 'VERBOSE "* * * *"'),
        ("SET VARIABLE LAST 34", "SET VARIABLE LAST **"),
        ("SET VARIABLE OTHER 5678", "SET VARIABLE OTHER 5678"),
        ("ANSWER", "ANSWER"),
    ],
)
def test_digits_that_are_repeated(answers: Iterable[tuple[str, Reply]], said: str, written_down: str) -> None:
    """What was dialled is hidden wherever the handler says it again, at once or key by key."""
    assert after(*answers).text(said) == written_down


def test_answers_that_repeat_digits() -> None:
    """A value that holds what was dialled is hidden, but the result, which says what happened, is kept."""
    mask = after(PIN_DIALLED, ("GET DATA pin", Reply(200, "0511")))
    assert mask.answer("GET VARIABLE PIN", Reply(200, "1", "id-1234")) == "200 result=1 (id-****)"
    assert mask.answer("SET VARIABLE X y", Reply(200, "1")) == "200 result=1"
    assert mask.answer("STREAM FILE x", Reply(200, "0", endpos=5)) == "200 result=0 endpos=5"
    assert mask.answer("ANSWER", Reply(511, text="dead")) == "511 dead"


@pytest.mark.parametrize(
    ("asking", "reading", "value"),
    [
        ("EXEC Read PIN,beep,4", "GET VARIABLE PIN", "9876"),
        ('EXEC Read "PIN,a file,4"', "GET VARIABLE PIN", "9876"),
        ("EXEC ReadExten PIN", "GET FULL VARIABLE ${PIN}", "9876"),
        ("EXEC  'Read' PIN,beep".replace("'", '"'), " GET  VARIABLE PIN", "9876"),
        ("exec read PIN,beep", "get full variable ${BASE64_ENCODE(${PIN})}", "OTg3Ng"),
    ],
)
def test_digits_that_the_dialplan_asks_for(asking: str, reading: str, value: str) -> None:
    """What Read() puts into a variable is hidden when the variable is read, in whatever form."""
    mask = after((asking, OK))
    assert mask.answer(reading, Reply(200, "1", value)) == f"200 result=1 ({'*' * len(value)})"
    if value.isdecimal():
        assert mask.text("NOOP 9876") == "NOOP ****"
    assert mask.answer("GET VARIABLE OTHER", Reply(200, "1", "x5")) == "200 result=1 (x5)"


def test_nothing_is_hidden_before_anything_was_dialled() -> None:
    """Until the caller dials, every number is shown."""
    mask = after(("ANSWER", OK), ("GET DATA pin", Reply(200, "", "timeout")))
    assert mask.text("EXEC Dial PJSIP/1234,30") == "EXEC Dial PJSIP/1234,30"


DIGITS = st.text("0123456789ABCD*#", min_size=2, max_size=6)


@given(
    entries=st.lists(st.tuples(DIGITS, st.booleans()), min_size=1, max_size=4),
    before=st.text("0123456789x -", max_size=5),
    behind=st.text("0123456789x -", max_size=5),
)
def test_no_dialled_digits_survive(entries: list[tuple[str, bool]], before: str, behind: str) -> None:
    """Of all that is written no two neighbouring digits are those that were dialled, wherever they stand."""
    mask = DigitMask()
    dialled = ""
    for digits, at_once in entries:
        dialled += digits
        answers = [digits] if at_once else [str(ord(key)) for key in digits]
        command = "GET DATA pin" if at_once else "WAIT FOR DIGIT 500"
        lines = [mask.answer(command, Reply(200, answer)) for answer in answers]
        for said in (digits, dialled):
            lines.append(mask.text(f"NOOP {before}{said}{behind}"))
            lines.append(mask.answer("GET VARIABLE X", Reply(200, "1", f"{before}{said}{behind}")))
        pairs = {dialled[place : place + 2] for place in range(len(dialled) - 1)}
        for line in lines:
            shown = line.removeprefix("200 result=")
            assert [pair for pair in pairs if pair in shown and "*" not in pair] == [], line


# ---- a dialogue that is written down


def notes(recorded: RecordedDialogue) -> list[tuple[str, str]]:
    """Return what was said, without the times."""
    return [(turn.who, turn.line) for turn in recorded.turns]


def test_dialogue_is_noted() -> None:
    """Commands and answers are noted in order with rising times, and carried unchanged."""
    dialogue = Scripted(OK, Reply(200, "1", "x"))
    recorded: Dialogue = RecordedDialogue(dialogue, None)
    assert isinstance(recorded, RecordedDialogue)
    assert recorded.execute(b"ANSWER\n") == OK
    assert recorded.execute(b"GET VARIABLE \xe9\n") == Reply(200, "1", "x")
    recorded.finish()
    assert dialogue.finished
    assert dialogue.sent == [b"ANSWER\n", b"GET VARIABLE \xe9\n"]
    assert notes(recorded) == [
        ("S", "ANSWER"),
        ("A", "200 result=0"),
        ("S", "GET VARIABLE \udce9"),
        ("A", "200 result=1 (x)"),
    ]
    times = [turn.at_s for turn in recorded.turns]
    assert times == sorted(times)
    assert times[0] >= 0


def test_hangup_is_noted_once() -> None:
    """HANGUP is noted where it was first seen, and not again however often one asks."""
    recorded = RecordedDialogue(Scripted(OK, Reply(200, "-1"), OK, hangup_at=1), None)
    for _ in range(3):
        recorded.execute(b"NOOP\n")
    with pytest.raises(CallHangup):
        recorded.await_hangup()
    assert recorded.hung_up
    said = [line for who, line in notes(recorded) if who == "A"]
    assert said == ["200 result=0", "200 result=-1", "HANGUP", "200 result=0"]


def test_hangup_behind_a_failure_is_noted() -> None:
    """HANGUP that comes while one waits for it stands behind the answer."""
    recorded = RecordedDialogue(Scripted(Reply(200, "-1")), None)
    recorded.execute(b"NOOP\n")
    with pytest.raises(CallHangup):
        recorded.await_hangup()
    assert [line for _, line in notes(recorded)] == ["NOOP", "200 result=-1", "HANGUP"]


@pytest.mark.parametrize(
    ("raised", "hangup_at", "said"),
    [
        (CallHangup("x"), 0, ["NOOP", "HANGUP"]),
        (CallPeerGone("x"), 0, ["NOOP", "HANGUP"]),
        (CallPeerGone("x"), -1, ["NOOP"]),
        (CallTimeout("idle", 1.0), -1, ["NOOP"]),
        (AGICallFinished("finished", "NOOP"), -1, []),
    ],
)
def test_exceptions_pass(raised: BaseException, hangup_at: int, said: list[str]) -> None:
    """What ends a command reaches the handler as it is; a command that was never sent is not noted."""
    recorded = RecordedDialogue(Scripted(raised, hangup_at=hangup_at), None)
    with pytest.raises(type(raised)) as caught:
        recorded.execute(b"NOOP\n")
    assert caught.value is raised
    assert [line for _, line in notes(recorded)] == said


def test_masked_dialogue() -> None:
    """With a mask the digits are in no line, while the handler gets them."""
    recorded = RecordedDialogue(Scripted(Reply(200, "1234"), OK), DigitMask())
    assert recorded.execute(b"GET DATA pin\n").result == "1234"
    recorded.execute(b'SAY DIGITS 1234 ""\n')
    # The times of the lines may hold any digits.
    assert "1234" not in str(notes(recorded))
    assert notes(recorded)[2] == ("S", 'SAY DIGITS **** ""')


# ---- a dialogue that others hold


def test_exchange_is_noted() -> None:
    """Lines and answers of somebody else are noted like a handler's, and carried as they are."""
    said = b"100 result=0 Trying...\n200 result=0 Gosub complete\n"
    dialogue = Scripted(OK, said, b"200 result=1 (a\nb)\nHANGUP\n")
    recorded = RecordedDialogue(dialogue, None)
    assert recorded.exchange(b"ANSWER\r\n") == b"200 result=0\n"
    assert recorded.exchange(b"GOSUB \xe9 s 1\n") == said
    assert recorded.exchange(b"\n") == b"200 result=1 (a\nb)\nHANGUP\n"
    assert dialogue.sent == [b"ANSWER\r\n", b"GOSUB \xe9 s 1\n", b"\n"]
    assert notes(recorded) == [
        ("S", "ANSWER\r"),
        ("A", "200 result=0"),
        ("S", "GOSUB \udce9 s 1"),
        ("A", "200 result=0 Gosub complete"),
        ("S", ""),
        ("A", "200 result=1 (a\nb)"),
    ]


@pytest.mark.parametrize("hangup_at", [-1, 1], ids=["between", "in a command"])
def test_hangup_that_is_heard_is_noted_once(hangup_at: int) -> None:
    """Whoever listens hears all that is said, and the recording has one HANGUP, behind an answer."""
    dialogue = Scripted(OK, OK, OK, hangup_at=hangup_at)
    recorded = RecordedDialogue(dialogue, None)
    heard: list[bytes] = []
    recorded.listen(heard.append)
    recorded.exchange(b"1\n")
    if hangup_at < 0:
        dialogue.hang_up()
        dialogue.hang_up()
    recorded.exchange(b"2\n")
    recorded.exchange(b"3\n")
    lines = [line for _, line in notes(recorded)]
    place = 2 if hangup_at < 0 else 4
    assert lines.index("HANGUP") == place
    assert lines.count("HANGUP") == 1
    assert heard == ([b"HANGUP\n"] * 2 if hangup_at < 0 else [b""])


@pytest.mark.parametrize(
    ("raised", "said"),
    [(CallPeerGone("x"), ["NOOP"]), (AGICallFinished("finished", "NOOP"), [])],
)
def test_exceptions_pass_from_exchange(raised: BaseException, said: list[str]) -> None:
    """What ends a command of somebody else is as it is; a command that was never sent is not noted."""
    recorded = RecordedDialogue(Scripted(raised), None)
    with pytest.raises(type(raised)) as caught:
        recorded.exchange(b"NOOP\n")
    assert caught.value is raised
    assert [line for _, line in notes(recorded)] == said


def test_masked_exchange() -> None:
    """With a mask the digits are in no line, while the one who speaks gets them."""
    recorded = RecordedDialogue(Scripted(Reply(200, "1234"), OK), DigitMask())
    assert recorded.exchange(b'GET  "DATA" pin\n') == b"200 result=1234\n"
    recorded.exchange(b'SAY DIGITS 1234 ""\n')
    assert notes(recorded)[1:3] == [("A", "200 result=****"), ("S", 'SAY DIGITS **** ""')]


def test_an_unclear_answer_hides_all_digits() -> None:
    """Where the reply cannot be told from what is in front of it, every digit is taken for a dialled one."""
    raw = b"200 result=5\n200 result=1234\n"
    recorded = RecordedDialogue(Scripted(raw, OK), DigitMask())
    assert recorded.exchange(b"GET DATA pin\n") == raw
    recorded.exchange(b"SAY DIGITS 1234\n")
    assert [line for _, line in notes(recorded)][1:3] == ["*** result=*\n*** result=****", "SAY DIGITS ****"]
    plain = RecordedDialogue(Scripted(raw), None)
    plain.exchange(b"GET DATA pin\n")
    assert notes(plain)[1] == ("A", "200 result=5\n200 result=1234")


# ---- the recorder


class Desk:
    """A recorder, its folder, and calls for it."""

    def __init__(self, runtime_dir: Path) -> None:
        self.folder = runtime_dir / "recordings"
        self.recorder = Recorder(self.folder)

    def order(self, order: Order = ALWAYS, name: str = "1") -> Path:
        """Place an order and let the recorder see it."""
        placed = place_order(self.folder, name, order)
        self.recorder.look(NOW_S)
        return placed

    def begin(self, callerid: str = "100", name: str = "pin", *, mask: bool = False) -> OpenRecording | None:
        """Begin a call."""
        request = Request({**ENVIRONMENT, "agi_callerid": callerid})
        if not self.recorder.active:
            return None
        return self.recorder.begin(
            route(name, mask_digits=mask), request, "ref", Scripted(Reply(200, "1234"))
        )

    def call(self, callerid: str = "100", name: str = "pin", *, mask: bool = False) -> bool:
        """Place a call of one command, and say whether it was recorded."""
        running = self.begin(callerid, name, mask=mask)
        if running is None:
            return False
        running.dialogue.execute(b"GET DATA pin\n")
        self.recorder.end(running, "ok")
        return True


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A recorder whose folder does not exist yet."""
    return Desk(tmp_path)


def recorded_at(placed: Path) -> list[Transcript]:
    """Read what was recorded for an order."""
    return list(read_transcripts(recording_of(placed).read_text().splitlines()))


def test_without_an_order_nothing_is_recorded(desk: Desk) -> None:
    """Where nobody ordered anything, or the folder is missing, no call is touched."""
    desk.recorder.look(NOW_S)
    assert not desk.recorder.active
    assert not desk.call()
    assert not desk.folder.exists()


def test_recorded_call(desk: Desk) -> None:
    """A call that fits is written whole, when it has ended."""
    placed = desk.order(Order(LATER_S, "pin", "1*"))
    assert desk.recorder.active
    assert desk.call()
    (found,) = recorded_at(placed)
    assert (found.ref, found.route, found.outcome, found.masked) == ("ref", "pin", "ok", False)
    assert found.environment == ENVIRONMENT
    assert [turn.line for turn in found.turns] == ["GET DATA pin", "200 result=1234"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", found.began)
    assert not desk.call(name="other")
    assert not desk.call(callerid="200")
    assert desk.recorder.lost == 0


def test_masked_route(desk: Desk) -> None:
    """On a route with mask_digits the file does not hold what was dialled, and says that it is masked."""
    placed = desk.order()
    desk.call(mask=True)
    (found,) = recorded_at(placed)
    assert found.masked
    assert [turn.line for turn in found.turns] == ["GET DATA pin", "200 result=****"]


@pytest.mark.parametrize("one_in", [1, 2, 5])
def test_one_in(one_in: int, desk: Desk) -> None:
    """Of the calls that fit exactly one in N is recorded; others do not count."""
    desk.order(Order(LATER_S, "pin", one_in=one_in))
    taken = []
    for _ in range(10):
        desk.call(name="other")
        taken.append(desk.call())
        desk.recorder.look(NOW_S)
    assert taken == ([False] * (one_in - 1) + [True]) * (10 // one_in)


def test_every_order_gets_its_calls(desk: Desk) -> None:
    """Orders stand beside each other: a call goes to all that want it, and to no other."""
    everything, one_number = desk.order(name="1"), desk.order(Order(LATER_S, "", "200"), name="2")
    desk.call("100")
    desk.call("200")
    assert len(recorded_at(everything)) == 2
    assert [each.environment["agi_callerid"] for each in recorded_at(one_number)] == ["200"]


def test_order_ends_at_its_time(desk: Desk) -> None:
    """At its end an order wants nothing more; what it left behind is removed if nobody did."""
    placed = desk.order()
    desk.recorder.look(LATER_S - 0.001)
    assert desk.call()
    desk.recorder.look(LATER_S)
    assert not desk.recorder.active
    assert list(desk.folder.iterdir()) == []
    assert not placed.exists()


def test_order_that_was_over_before_it_was_seen(desk: Desk) -> None:
    """An order of a command that died before the pool was started is removed, not obeyed."""
    placed = desk.order(Order(NOW_S - 1))
    assert not desk.call()
    assert not placed.exists()


def test_order_that_is_withdrawn(desk: Desk) -> None:
    """An order that is taken away is over at the next look."""
    placed = desk.order()
    withdraw_order(placed)
    assert list(desk.folder.iterdir()) == []
    desk.recorder.look(NOW_S)
    assert not desk.recorder.active
    withdraw_order(placed)


def test_file_that_was_removed(desk: Desk) -> None:
    """A call whose file has gone meanwhile is lost and counted, and the file is not made again."""
    placed = desk.order()
    running = desk.begin()
    assert running is not None
    withdraw_order(placed)
    desk.recorder.end(running, "ok")
    assert desk.recorder.lost == 1
    assert not recording_of(placed).exists()


def test_full_file(desk: Desk) -> None:
    """Nothing is added beyond the bound, and each call that was not is counted."""
    placed = desk.order()
    os.truncate(recording_of(placed), MOST_BYTES - 10)
    assert desk.call()
    assert desk.recorder.lost == 1
    assert recording_of(placed).stat().st_size == MOST_BYTES - 10


def test_symlink_is_not_followed(desk: Desk, tmp_path: Path) -> None:
    """A link in the place of an order's file leads nowhere."""
    placed = desk.order()
    target = tmp_path / "target"
    target.touch()
    recording_of(placed).unlink()
    recording_of(placed).symlink_to(target)
    assert desk.call()
    assert desk.recorder.lost == 1
    assert target.read_text() == ""


def test_folder_that_vanishes(desk: Desk) -> None:
    """Without its folder every order is over."""
    placed = desk.order()
    withdraw_order(placed)
    desk.folder.rmdir()
    desk.recorder.look(NOW_S)
    assert not desk.recorder.active


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_folder_that_others_can_write(mode: int, desk: Desk) -> None:
    """Orders in a folder into which others can write are not obeyed: they might be theirs."""
    desk.order()
    desk.folder.chmod(mode)
    desk.recorder.look(NOW_S)
    assert not desk.recorder.active


def test_folder_that_is_a_link(desk: Desk, tmp_path: Path) -> None:
    """A link in the place of the folder is not followed."""
    desk.order()
    desk.folder.rename(tmp_path / "elsewhere")
    desk.folder.symlink_to(tmp_path / "elsewhere")
    desk.recorder.look(NOW_S)
    assert not desk.recorder.active


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_folder_of_somebody_else(desk: Desk) -> None:
    """Orders in a folder of a stranger are not obeyed."""
    desk.order()
    os.chown(desk.folder, 65534, 65534)
    desk.recorder.look(NOW_S)
    assert not desk.recorder.active


def settle(folder: Path) -> None:
    """Give a folder a time of change that lies far enough back to be trusted."""
    os.utime(folder, (NOW_S - 60, NOW_S - 60))


def test_half_written_order(desk: Desk) -> None:
    """An order that cannot be read yet is read when it can, though the folder's time does not change."""
    placed = desk.order()
    text = placed.read_text()
    placed.write_text(text[:20])
    desk.recorder = Recorder(desk.folder)
    settle(desk.folder)
    desk.recorder.look(NOW_S)
    assert not desk.recorder.active
    placed.write_text(text)
    desk.recorder.look(NOW_S)
    assert desk.recorder.active


def test_two_changes_at_the_same_time(desk: Desk) -> None:
    """An order is seen though it came in the same tick of the kernel's clock as the last look."""
    placed = desk.order()
    changed = desk.folder.stat()
    second = place_order(desk.folder, "2", ALWAYS)
    os.utime(desk.folder, ns=(changed.st_atime_ns, changed.st_mtime_ns))
    desk.recorder = Recorder(desk.folder)
    second.rename(desk.folder / "hidden")
    os.utime(desk.folder, ns=(changed.st_atime_ns, changed.st_mtime_ns))
    wall_s = changed.st_mtime_ns / 1e9
    desk.recorder.look(wall_s)
    (desk.folder / "hidden").rename(second)
    os.utime(desk.folder, ns=(changed.st_atime_ns, changed.st_mtime_ns))
    desk.recorder.look(wall_s + 1)
    assert desk.call()
    assert len(recorded_at(placed)) == len(recorded_at(second)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        '{"until_s": 1e12, "one_in": 0}',
        '{"until_s": "never"}',
        '{"until_s": 1e12, "route": 5}',
        '{"until_s": 1e12, "more": 1}',
        "\udcff",
    ],
)
def test_unreadable_order(text: str, desk: Desk) -> None:
    """What is no order is passed over, and others are obeyed all the same."""
    good = desk.order()
    bad = desk.folder / "0.order"
    bad.write_bytes(text.encode(errors="surrogateescape"))
    desk.recorder.look(NOW_S)
    assert desk.call()
    assert len(recorded_at(good)) == 1


def test_a_call_that_grows_too_long(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dialogue of which there is too much is kept no further, and lost as a whole; the call goes on."""
    monkeypatch.setattr("fastagi_pool.recording.MOST_CHARACTERS", 2000)
    placed = desk.order()
    recorded = RecordedDialogue(Scripted(*[OK] * 1000), None)
    assert [recorded.execute(b"NOOP\n") for _ in range(1000)] == [OK] * 1000
    assert recorded.too_long
    assert not recorded.turns
    running = desk.begin()
    assert running is not None
    running.dialogue = recorded
    desk.recorder.end(running, "ok")
    assert desk.recorder.lost == 1
    assert recorded_at(placed) == []


def test_finished_call_that_grew_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that makes a dialogue too long may be one that is never sent."""
    monkeypatch.setattr("fastagi_pool.recording.MOST_CHARACTERS", 0)
    recorded = RecordedDialogue(Scripted(AGICallFinished("finished", "NOOP")), None)
    with pytest.raises(AGICallFinished):
        recorded.execute(b"NOOP\n")


def test_folder_that_cannot_be_read(desk: Desk) -> None:
    """A worker out of file descriptors goes on with the orders that it knows, and nothing is raised."""
    placed = desk.order()
    os.utime(desk.folder, (NOW_S + 1, NOW_S + 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        desk.recorder.look(NOW_S)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert desk.call()
    assert len(recorded_at(placed)) == 1


# ---- live


LIVE = Order(LATER_S, live=True)
RECORD = CallRecord(
    ref="ref",
    route="pin",
    script="pin",
    outcome="error",
    hung_up=False,
    commands=3,
    total_s=5.0,
    asterisk_s=4.0,
    script_s=0.5,
    database_s=0.125,
    peer="10.0.0.1",
    uniqueid="17.5",
    callerid="100",
    error="dialled 1234",
    queued_s=0.25,
)


def events_at(placed: Path) -> list[TraceEvent]:
    """Read what was told of for an order."""
    return [TraceEvent.from_json(line) for line in recording_of(placed).read_text().splitlines()]


def told(placed: Path) -> list[tuple[EventKind, str]]:
    """Read what was told of for an order, without the times."""
    return [(event.kind, event.text) for event in events_at(placed)]


def join(
    desk: Desk,
    dialogue: Dialogue,
    running: OpenRecording | None = None,
    *,
    mask: bool = False,
    ref: str = "ref",
) -> OpenRecording | None:
    """Ask the recorder about a call in progress, as a worker does after a look that said so."""
    return desk.recorder.join(route(mask_digits=mask), Request(ENVIRONMENT), ref, dialogue, running)


@pytest.mark.parametrize(
    "event",
    [
        TraceEvent(
            "1", 0.0, EventKind.BEGIN, facts={"route": "pin", "environment": ENVIRONMENT, "joined": True}
        ),
        TraceEvent("1", 1.5, EventKind.ANSWER, "200 result=1 (two\nlines \udce9)"),
        TraceEvent("1", 2.0, EventKind.END, "ok", {"total_s": 2.0}),
    ],
)
def test_event_round_trip(event: TraceEvent) -> None:
    """An event comes back from its line as it was, line ends and stray bytes included."""
    line = event.to_json()
    assert "\n" not in line
    assert line.isascii()
    assert TraceEvent.from_json(line) == event


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "Expecting value"),
        ("[]", "list"),
        ("7", "int"),
        ("{}", "'facts' is missing"),
        ('{"ref": "1", "at_s": 0, "kind": "nap", "text": "", "facts": {}}', "nap"),
        ('{"ref": "1", "at_s": "soon", "kind": "end", "text": "", "facts": {}}', "soon"),
        ('{"ref": "1", "at_s": 0, "kind": "end", "text": "", "facts": []}', "list"),
    ],
)
def test_what_is_no_event(line: str, why: str) -> None:
    """A line that is no event is refused, and it is said why."""
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        TraceEvent.from_json(line)
    assert str(caught.value).startswith("not an event of a call: ")


def test_followed_call(desk: Desk) -> None:
    """Every event of a call that is followed is in the file before the call goes on."""
    placed = desk.order(LIVE)
    request = Request(ENVIRONMENT)
    dialogue = Scripted(OK, OK, hangup_at=1)
    running = desk.recorder.begin(route(), request, "ref", dialogue)
    assert running is not None
    (begin,) = events_at(placed)
    assert (begin.kind, begin.ref, begin.at_s >= 0.0) == (EventKind.BEGIN, "ref", True)
    assert begin.facts == {
        "route": "pin",
        "began": running.began,
        "environment": ENVIRONMENT,
        "masked": False,
        "joined": False,
    }
    running.dialogue.execute(b"ANSWER\n")
    assert told(placed)[1:] == [(EventKind.COMMAND, "ANSWER"), (EventKind.ANSWER, "200 result=0")]
    running.dialogue.execute(b"NOOP\n")
    desk.recorder.end(running, "hangup", RECORD)
    assert told(placed)[3:] == [
        (EventKind.COMMAND, "NOOP"),
        (EventKind.ANSWER, "200 result=0"),
        (EventKind.HANGUP, "HANGUP"),
        (EventKind.END, "hangup"),
    ]
    times = [event.at_s for event in events_at(placed)]
    assert times == sorted(times)
    assert not running.dialogue.turns


def test_end_tells_the_clocks(desk: Desk) -> None:
    """At the end the four clocks are told, which do not overlap, and what went wrong."""
    placed = desk.order(LIVE)
    running = desk.begin()
    assert running is not None
    desk.recorder.end(running, "error", RECORD)
    assert events_at(placed)[-1].facts == {
        "queued_s": 0.25,
        "asterisk_s": 4.0,
        "script_s": 0.375,
        "database_s": 0.125,
        "total_s": 5.0,
        "commands": 3,
        "error": "dialled 1234",
    }


def test_command_is_told_before_its_answer(desk: Desk) -> None:
    """A command is in the file while Asterisk has not answered it; one that was never sent is taken back."""
    placed = desk.order(LIVE)
    seen: list[tuple[EventKind, str]] = []

    class Watching(Scripted):
        def execute(self, line: bytes) -> Reply:
            seen.extend(told(placed)[1:])
            return super().execute(line)

    running = desk.recorder.begin(
        route(), Request(ENVIRONMENT), "ref", Watching(AGICallFinished("finished", "NOOP"))
    )
    assert running is not None
    with pytest.raises(AGICallFinished):
        running.dialogue.execute(b"NOOP\n")
    assert seen == [(EventKind.COMMAND, "NOOP")]
    assert told(placed)[1:] == [(EventKind.COMMAND, "NOOP"), (EventKind.UNSENT, "NOOP")]


def test_hangup_that_nobody_read_until_the_end(desk: Desk) -> None:
    """A hangup that became known after the last command is told of before the end."""
    placed = desk.order(LIVE)
    dialogue = Scripted()
    running = desk.recorder.begin(route(), Request(ENVIRONMENT), "ref", dialogue)
    assert running is not None
    dialogue.hung_up = True
    desk.recorder.end(running, "ok")
    assert told(placed)[1:] == [(EventKind.HANGUP, "HANGUP"), (EventKind.END, "ok")]
    assert events_at(placed)[-1].facts == {}


def test_masked_followed_call(desk: Desk) -> None:
    """On a route with mask_digits no event holds what was dialled, neither does the error at the end."""
    placed = desk.order(LIVE)
    running = desk.begin(mask=True)
    assert running is not None
    running.dialogue.execute(b"GET DATA pin\n")
    desk.recorder.end(running, "error", RECORD)
    events = events_at(placed)
    # The times of the events may hold any digits.
    assert not any("1234" in f"{event.text} {event.facts}" for event in events)
    assert events[0].facts["masked"]
    assert events[-1].facts["error"] == "dialled ****"


def test_only_live_orders_ask_for_calls_in_progress(desk: Desk) -> None:
    """A look says that there is something to join when a live order comes, once, and for no other order."""
    assert not desk.recorder.look(NOW_S)
    place_order(desk.folder, "1", ALWAYS)
    assert not desk.recorder.look(NOW_S)
    assert join(desk, Scripted()) is None
    place_order(desk.folder, "2", LIVE)
    assert desk.recorder.look(NOW_S)
    assert not desk.recorder.look(NOW_S)
    assert join(desk, Scripted()) is None
    place_order(desk.folder, "3", Order(NOW_S - 1, live=True))
    assert not desk.recorder.look(NOW_S)


def test_joined_call(desk: Desk) -> None:
    """A call in progress is followed from its next command on, and its beginning says so."""
    placed = desk.order(LIVE)
    running = join(desk, Scripted(OK))
    assert running is not None
    running.dialogue.execute(b"ANSWER\n")
    desk.recorder.end(running, "ok")
    assert [kind for kind, _ in told(placed)] == [
        EventKind.BEGIN,
        EventKind.COMMAND,
        EventKind.ANSWER,
        EventKind.END,
    ]
    assert events_at(placed)[0].facts["joined"]
    desk.order(Order(LATER_S, "other", live=True), "2")
    assert join(desk, Scripted()) is None


def test_joining_a_call_that_is_recorded(desk: Desk) -> None:
    """A call that is being recorded is joined in the same recording, which stays whole."""
    whole = desk.order(name="1")
    running = desk.begin()
    assert running is not None
    live = desk.order(LIVE, "2")
    assert join(desk, Scripted(), running) is running
    running.dialogue.execute(b"GET DATA pin\n")
    desk.recorder.end(running, "ok")
    (found,) = recorded_at(whole)
    assert [turn.line for turn in found.turns] == ["GET DATA pin", "200 result=1234"]
    assert [text for _, text in told(live)] == ["", "GET DATA pin", "200 result=1234", "ok"]


def test_two_that_follow_one_call(desk: Desk) -> None:
    """Who comes later is told of the beginning and what follows; who was there hears no second beginning."""
    first = desk.order(LIVE, "1")
    running = desk.begin()
    assert running is not None
    second = desk.order(LIVE, "2")
    assert join(desk, Scripted(), running) is running
    desk.recorder.end(running, "ok")
    assert [kind for kind, _ in told(first)] == [EventKind.BEGIN, EventKind.END]
    assert [kind for kind, _ in told(second)] == [EventKind.BEGIN, EventKind.END]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("GET DATA agent-pass 5000 4", "GET DATA agent-pass **** *"),
        ('EXEC Dial "PJSIP/9912341"', 'EXEC Dial "PJSIP/*******"'),
        ("SAY DIGITS 1A# x", "SAY DIGITS *** x"),
        ("SAY ALPHA A BAD", "SAY ALPHA * ***"),
        ("NOOP 1-2-3-4", "NOOP *-*-*-*"),
        ("ANSWER", "ANSWER"),
    ],
)
def test_late_mask(line: str, shown: str) -> None:
    """Of a call that was joined nobody knows what was dialled before: all that may be digits is hidden."""
    assert DigitMask(late=True).text(line) == shown


def test_joined_masked_call(desk: Desk) -> None:
    """On a route with mask_digits the events of a call that was joined hold no digits at all."""
    placed = desk.order(LIVE)
    running = join(desk, Scripted(Reply(200, "1", value="1234"), Reply(200, "5678")), mask=True)
    assert running is not None
    running.dialogue.execute(b"GET VARIABLE PIN\n")
    running.dialogue.execute(b"GET DATA x\n")
    desk.recorder.end(running, "error", RECORD)
    texts = [text for _, text in told(placed)]
    assert texts[1:5] == ["GET VARIABLE PIN", "200 result=1 (****)", "GET DATA x", "200 result=****"]
    assert events_at(placed)[-1].facts["error"] == "dialled ****"


def test_digits_that_were_dialled_between_two_that_follow(desk: Desk) -> None:
    """What is dialled while nobody follows a call is hidden from who joins it afterwards."""
    first = desk.order(LIVE, "1")
    request, dialogue = Request(ENVIRONMENT), Scripted(OK, Reply(200, "1234"), OK)
    running = desk.recorder.begin(route(mask_digits=True), request, "ref", dialogue)
    assert running is not None
    recording_of(first).unlink()
    running.dialogue.execute(b"NOOP\n")
    running.dialogue.execute(b"GET DATA pin\n")
    second = desk.order(LIVE, "2")
    assert join(desk, dialogue, running, mask=True) is running
    running.dialogue.execute(b"SET VARIABLE PIN 1234\n")
    assert [text for kind, text in told(second) if kind is EventKind.COMMAND] == ["SET VARIABLE PIN ****"]


def test_a_worker_follows_so_many_calls(desk: Desk) -> None:
    """With a bound a worker takes no more calls than that, those in progress included."""
    placed = desk.order(Order(LATER_S, live=True, calls=2))
    assert join(desk, Scripted(), ref="a") is not None
    assert desk.begin() is not None
    assert desk.begin() is None
    assert len(events_at(placed)) == 2


def test_order_that_is_withdrawn_while_a_call_is_followed(desk: Desk) -> None:
    """When nobody follows any more the call goes on untold, and nothing counts as lost."""
    placed = desk.order(LIVE)
    running = desk.begin()
    assert running is not None
    withdraw_order(placed)
    running.dialogue.execute(b"GET DATA pin\n")
    assert running.dialogue.on_event is None
    desk.recorder.end(running, "ok")
    assert desk.recorder.lost == 0
    assert not recording_of(placed).exists()


def test_full_file_of_a_followed_call(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is full ends the following of a call with one warning; the call goes on."""
    placed = desk.order(LIVE)
    dialogue = Scripted(*[OK] * 5)
    running = desk.recorder.begin(route(), Request(ENVIRONMENT), "ref", dialogue)
    assert running is not None
    os.truncate(recording_of(placed), MOST_BYTES - 10)
    caplog.set_level("WARNING", logger="fastagi_pool")
    for _ in range(5):
        running.dialogue.execute(b"NOOP\n")
    assert desk.recorder.lost == 1
    assert len(dialogue.sent) == 5
    assert recording_of(placed).stat().st_size == MOST_BYTES - 10


def test_following_has_no_end_by_length(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that grows too long to be recorded as a whole is followed to its end."""
    monkeypatch.setattr("fastagi_pool.recording.MOST_CHARACTERS", 200)
    whole, live = desk.order(name="1"), desk.order(LIVE, "2")
    running = desk.recorder.begin(route(), Request(ENVIRONMENT), "ref", Scripted(*[OK] * 10))
    assert running is not None
    for _ in range(10):
        running.dialogue.execute(b"NOOP\n")
    desk.recorder.end(running, "ok")
    assert running.dialogue.too_long
    assert recorded_at(whole) == []
    assert len(events_at(live)) == 22


# ---- the commands' side


def test_placed_order(tmp_path: Path) -> None:
    """An order and its file can be read by nobody else, and leave nothing unfinished behind."""
    folder = tmp_path / "recordings"
    placed = place_order(folder, "7", ALWAYS)
    assert json.loads(placed.read_text()) == asdict(ALWAYS)
    assert {path.name for path in folder.iterdir()} == {"7.order", "7.jsonl"}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert recording_of(placed).stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        place_order(folder, "7", ALWAYS)


def test_an_order_for_which_there_is_no_room(tmp_path: Path) -> None:
    """On a full disk nothing is left of an order that could not be written: nobody would remove it."""
    with small_disk(16) as folder:
        (folder / "recordings").mkdir()
        with suppress(OSError):
            (folder / "full").write_bytes(bytes(1 << 16))
        with pytest.raises(OSError, match="No space left"):
            place_order(folder / "recordings", "1", ALWAYS)
        assert list((folder / "recordings").iterdir()) == []


def test_following(tmp_path: Path) -> None:
    """Whole lines are given as they come, one that is half written when it is whole, until the end."""
    placed = place_order(tmp_path / "recordings", "7", ALWAYS)
    with recording_of(placed).open("a") as file:
        file.write("first\nsec")
        file.flush()
        lines = follow(placed, time.time() + 3600)
        assert next(lines) == "first\n"
        file.write("ond\nthird\n")
        file.flush()
        assert next(lines) == "second\n"
        assert next(lines) == "third\n"
    assert list(follow(placed, time.time())) == ["first\n", "second\n", "third\n"]
