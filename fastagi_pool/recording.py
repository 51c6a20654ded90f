"""Recording: dialogues of real calls, written down while they happen, to be looked at and played again.

Laws:
    * A recording changes nothing of a call: what cannot be written is dropped and counted.
    * What callers of a route with ``mask_digits`` dial during the script reaches no file, neither as an
      answer nor in what the handler says afterwards; of two neighbouring digits not even inside a longer
      number. What the dialplan has gathered before and hands over as an argument is not known as such.
    * Everything ends: an order has a time at which it is over and a size beyond which nothing is added.

How it works: ``fastagi-pool record`` puts an order into the folder ``recordings`` of the runtime folder.
Every worker looks there once a second, records the calls that fit, and appends each to the order's file when
it ends: one JSON object a line. The command reads along, and takes the order away when it has enough; if it
cannot any more, the workers do when the order is over.

A live order, of ``fastagi-pool trace``, wants to follow calls: each event is appended at once, and calls that
are in progress already when the order comes are joined.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any, Final, TypeVar

from fastagi_pool.call import Dialogue
from fastagi_pool.errors import AGICallFinished, CallEnded
from fastagi_pool.logs import LOGGER_NAME, CallRecord
from fastagi_pool.protocol import Reply, Request, parse_reply
from fastagi_pool.routes import Route

#: The folder of orders and recordings, below the runtime folder.
FOLDER: Final = "recordings"
ORDER_SUFFIX: Final = ".order"
#: An order's file grows no further; /run is memory.
MOST_BYTES: Final = 64 * 1024 * 1024
#: The longest dialogue of one call that is kept, in characters: some 10,000 commands. It lies in the worker's
#: memory until the call ends, and while it is written no other call of the worker goes on.
MOST_CHARACTERS: Final = 2 * 1024 * 1024
#: What a line costs besides its text.
_TURN_CHARACTERS: Final = 64
#: How often a reader looks for more.
_LOOK_S: Final = 0.1
#: The sign that stands for a dialled digit that is not told.
MASKED_DIGIT: Final = "*"

#: A folder that changed less than this ago may have changed again without a new time, as the kernel's clock
#: for files ticks every few ms.
_SETTLED_S: Final = 2.0

_DIGITS = re.compile(r"[0-9A-D*#]+")
#: The same where a word, as a command's, is taken for none: the keys A to D only beside digits or alone.
_PERHAPS_DIALLED = re.compile(r"[A-D]*[0-9*#][0-9A-D*#]*|(?<![A-Za-z])[A-D]+(?![A-Za-z])")
#: So many dialled digits in a row give a longer number away.
_TELLING: Final = 2
#: Commands whose result is what the caller pressed: as it is, or as a character's code.
_DIGITS_COMMAND: Final = "GET DATA"
_DIGIT_COMMANDS: Final = (
    "WAIT FOR DIGIT",
    "STREAM FILE",
    "CONTROL STREAM FILE",
    "GET OPTION",
    "RECORD FILE",
    "RECEIVE CHAR",
    "SAY ",
)
#: Where SPEECH RECOGNIZE tells of a digit.
_SPEECH_COMMAND: Final = "SPEECH RECOGNIZE"
_SPEECH_DIGIT = re.compile(r"(?<=digit=)\S")
#: Applications that put what is dialled into a variable, and the commands that read one.
_ASKING = re.compile(r"EXEC READ(?:EXTEN)? (\w+)", re.IGNORECASE)
_READING: Final = ("GET VARIABLE ", "GET FULL VARIABLE ")

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Turn:
    """One line of a dialogue.

    Attributes:
        at_s: Seconds since the handler began.
        who: ``S`` for the server, ``A`` for Asterisk.
        line: What was said; an answer may hold line ends.
    """

    at_s: float
    who: str
    line: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """The dialogue of one call.

    Attributes:
        ref: The reference by which the logs know the call.
        route: The route's name.
        began: When, as ``2026-11-21T08:47:22.123+01:00``.
        environment: What Asterisk said at first.
        turns: Commands and answers.
        outcome: As in the access log.
        masked: Whether what the caller dialled is hidden.
    """

    ref: str
    route: str
    began: str
    environment: Mapping[str, str]
    turns: tuple[Turn, ...]
    outcome: str
    masked: bool = False

    def to_json(self) -> str:
        """Write it as one line."""
        # Not asdict(), which copies everything first: a worker that writes a long call has others to serve.
        fields = {
            "ref": self.ref,
            "route": self.route,
            "began": self.began,
            "environment": dict(self.environment),
            "turns": [[round(turn.at_s, 6), turn.who, turn.line] for turn in self.turns],
            "outcome": self.outcome,
            "masked": self.masked,
        }
        return json.dumps(fields)

    @classmethod
    def from_json(cls, line: str) -> Transcript:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: It is nothing of the kind.
        """
        try:
            fields = json.loads(line)
            turns = tuple(Turn(float(at_s), str(who), str(said)) for at_s, who, said in fields.pop("turns"))
            environment = {str(name): str(value) for name, value in fields.pop("environment").items()}
            return cls(turns=turns, environment=environment, **fields)
        except KeyError as error:
            raise ValueError(f"not a recorded call: {error} is missing") from None
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a recorded call: {error}") from None


class EventKind(Enum):
    """What an event of a call that is followed live may be."""

    BEGIN = "begin"
    COMMAND = "command"
    ANSWER = "answer"
    #: The last command was not sent after all: the handler had given the call back.
    UNSENT = "unsent"
    HANGUP = "hangup"
    END = "end"


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """Something that happened in a call that is followed live.

    Attributes:
        ref: The reference by which the logs know the call.
        at_s: Seconds since the handler began, or since a call in progress was joined.
        kind: What it is.
        text: The command or the answer, which may hold line ends; at the end the outcome.
        facts: At the beginning ``route``, ``began``, ``environment``, ``masked`` and ``joined``; at the end
            ``queued_s``, ``asterisk_s``, ``script_s`` (without the database), ``database_s``, ``total_s``,
            ``commands`` and ``error``, if they are known; else empty.
    """

    ref: str
    at_s: float
    kind: EventKind
    text: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Write it as one line."""
        fields = {
            "ref": self.ref,
            "at_s": round(self.at_s, 6),
            "kind": self.kind.value,
            "text": self.text,
            "facts": self.facts,
        }
        return json.dumps(fields)

    @classmethod
    def from_json(cls, line: str) -> TraceEvent:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: It is nothing of the kind.
        """
        try:
            fields = json.loads(line)
            facts = {str(name): value for name, value in fields["facts"].items()}
            kind, text = EventKind(fields["kind"]), str(fields["text"])
            return cls(str(fields["ref"]), float(fields["at_s"]), kind, text, facts)
        except KeyError as error:
            raise ValueError(f"not an event of a call: {error} is missing") from None
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not an event of a call: {error}") from None


@dataclass(frozen=True, slots=True)
class Order:
    """What to record.

    Attributes:
        until_s: When it is over, in seconds since the epoch.
        route: A glob for the route's name; empty for all.
        callerid: A glob for the caller's number; empty for all.
        one_in: Of the calls that fit in one worker, one in so many.
        uniqueid: A glob for the channel's unique id; empty for all.
        live: Whether to append every event at once, and to join calls in progress; else whole calls.
        calls: How many calls one worker takes, at most; 0 for no bound.

    Raises:
        ValueError: It is nothing of the kind.
    """

    until_s: float
    route: str = ""
    callerid: str = ""
    one_in: int = 1
    uniqueid: str = ""
    live: bool = False
    calls: int = 0

    def __post_init__(self) -> None:
        # Read from a file, where anything may stand; a call must not stumble over it.
        globs = all(isinstance(glob, str) for glob in (self.route, self.callerid, self.uniqueid))
        numbers = isinstance(self.until_s, int | float) and isinstance(self.one_in, int)
        bounds = isinstance(self.live, bool) and isinstance(self.calls, int) and self.calls >= 0
        if not globs or not numbers or not bounds or self.one_in < 1:
            raise ValueError("an order has a time, three globs and whole numbers, one_in from 1")

    def fits(self, route: str, callerid: str, uniqueid: str = "") -> bool:
        """Whether a call is wanted."""
        pairs = ((route, self.route), (callerid, self.callerid), (uniqueid, self.uniqueid))
        return all(not glob or fnmatchcase(found, glob) for found, glob in pairs)


class DigitMask:
    """Hides what a caller dials, in one dialogue from its beginning to its end."""

    def __init__(self, *, late: bool = False) -> None:
        """Know of no digit yet.

        Args:
            late: Whether some may have been dialled before, unseen: then all that may be digits is hidden.
        """
        self._late = late
        self._dialled = ""
        self._variables: set[str] = set()

    def answer(self, command: str, reply: Reply) -> str:
        """Write an answer without the digits in it, and remember them."""
        command = _plain(command)
        name = command.upper()
        if name.startswith(_DIGITS_COMMAND) and reply.result != "-1":
            self._dialled += reply.result
            return written(reply, MASKED_DIGIT * len(reply.result))
        if name.startswith(_DIGIT_COMMANDS) and reply.result not in ("", "0", "-1"):
            self._dialled += _digit(reply.result)
            return written(reply, MASKED_DIGIT)
        if name.startswith(_SPEECH_COMMAND) and (pressed := _SPEECH_DIGIT.search(reply.text)):
            self._dialled += pressed[0]
            return written(reply._replace(text=_SPEECH_DIGIT.sub(MASKED_DIGIT, reply.text)))
        return self._other_answer(command, reply)

    def unclear_answer(self, text: str) -> str:
        """Hide every digit of an answer that cannot be told from what stands around it, and remember them."""
        self._dialled += "".join(_DIGITS.findall(text))
        return _DIGITS.sub(lambda run: MASKED_DIGIT * len(run[0]), text)

    def miss(self) -> None:
        """Know that something was said unseen: from now on all that may be digits is hidden."""
        self._late = True

    def text(self, text: str) -> str:
        """Hide in any text what was dialled before."""
        if self._late:
            return _PERHAPS_DIALLED.sub(lambda run: MASKED_DIGIT * len(run[0]), text)
        return _DIGITS.sub(self._hidden, text) if self._dialled else text

    def _other_answer(self, command: str, reply: Reply) -> str:
        """Write an answer that holds digits only if it repeats them. Its result says what happened: kept."""
        if asking := _ASKING.match(command):
            self._variables.add(asking[1])
        value = reply.value
        if value and command.upper().startswith(_READING) and self._variables & set(_words(command)):
            self._dialled += "".join(_DIGITS.findall(value))
            value = re.sub(r"\S", MASKED_DIGIT, value)
        elif value:
            value = self.text(value)
        return written(reply._replace(value=value, text=self.text(reply.text)))

    def _hidden(self, found: re.Match[str]) -> str:
        run = found[0]
        windows = (run[start : start + _TELLING] for start in range(max(1, len(run) - _TELLING + 1)))
        tells = any(window in self._dialled for window in windows)
        return MASKED_DIGIT * len(run) if tells else run


def _plain(command: str) -> str:
    """Write a command in one way: others than handlers quote and part its words as they like."""
    return " ".join(re.sub(r'["\\]', "", command).split())


def _words(command: str) -> list[str]:
    return re.findall(r"\w+", command)


def _digit(code: str) -> str:
    return chr(int(code)) if re.fullmatch("[0-9]{1,3}", code) else ""


def written(reply: Reply, result: str | None = None) -> str:
    """Write a reply as Asterisk does.

    Args:
        reply: The reply.
        result: What to write instead of its result.
    """
    if reply.code == 520:
        return f"520-Invalid command syntax.  Proper usage follows:\n{reply.text}\n520 End of proper usage."
    if reply.code != 200:
        return f"{reply.code} {reply.text}"
    text = f"200 result={reply.result if result is None else result}"
    if reply.value is not None:
        text += f" ({reply.value})"
    if reply.endpos is not None:
        text += f" endpos={reply.endpos}"
    return f"{text} {reply.text}".rstrip() if reply.text else text


class RecordedDialogue:
    """A dialogue that is written down while it goes on.

    Attributes:
        turns: What was said; empty once it is too long.
        too_long: Whether it grew beyond ``MOST_CHARACTERS``.
        on_event: Told of each event, with its time since the beginning, as it happens; None for nobody.
    """

    def __init__(self, dialogue: Dialogue, mask: DigitMask | None, *, keep: bool = True) -> None:
        """Begin.

        Args:
            dialogue: Who really carries the lines.
            mask: Hides digits; None to show them.
            keep: Whether ``turns`` are wanted.
        """
        self.turns: list[Turn] = []
        self.too_long = False
        self.on_event: Callable[[float, EventKind, str], None] | None = None
        self._keep = keep
        self._characters = 0
        self._dialogue = dialogue
        self._mask = mask
        self._began_s = monotonic()
        self._hangup_noted = False

    @property
    def hung_up(self) -> bool:
        """Whether HANGUP was seen."""
        return self._dialogue.hung_up

    @property
    def age_s(self) -> float:
        """Seconds since the beginning."""
        return monotonic() - self._began_s

    def execute(self, line: bytes) -> Reply:
        """Send one line, wait for its reply, and note both."""
        return self._carry(line, self._dialogue.execute, self._shown)

    def exchange(self, line: bytes) -> bytes:
        """Send one line, wait for its reply, and note both; return the reply as it came."""
        return self._carry(line, self._dialogue.exchange, self._shown_raw)

    def listen(self, on_unasked: Callable[[bytes], None]) -> None:
        """Listen as the dialogue does, and note a hangup."""

        def note_and_tell(data: bytes) -> None:
            # While a command runs its answer is noted first, and the hangup behind it.
            if data:
                self.note_hangup()
            on_unasked(data)

        self._dialogue.listen(note_and_tell)

    def _carry(
        self, line: bytes, send: Callable[[bytes], _Answer], shown: Callable[[str, _Answer], str]
    ) -> _Answer:
        if self.on_event is None and (self.too_long or not self._keep):
            if self._mask is not None:
                # Whoever follows later must not read in a command what is dialled now.
                self._mask.miss()
            return send(line)
        command = self.masked(line.decode("utf-8", "surrogateescape").rstrip("\n"))
        self._note(EventKind.COMMAND, command)
        try:
            answer = send(line)
        except AGICallFinished:
            self._take_back(command)
            raise
        except CallEnded:
            self.note_hangup()
            raise
        self._note(EventKind.ANSWER, shown(command, answer))
        self.note_hangup()
        return answer

    def masked(self, text: str) -> str:
        """Hide in any text what was dialled, if that is hidden here."""
        return self._mask.text(text) if self._mask else text

    def _shown(self, command: str, reply: Reply) -> str:
        return self._mask.answer(command, reply) if self._mask else written(reply)

    def _shown_raw(self, command: str, raw: bytes) -> str:
        reply = parse_reply(f"{command}\n".encode("utf-8", "surrogateescape"), raw)
        if reply is not None:
            return self._shown(command, reply)
        text = raw.decode("utf-8", "surrogateescape").rstrip("\n")
        return self._mask.unclear_answer(text) if self._mask else text

    def await_hangup(self) -> None:
        """Wait as the dialogue does."""
        try:
            self._dialogue.await_hangup()
        finally:
            self.note_hangup()

    def finish(self) -> None:
        """Close as the dialogue does."""
        self._dialogue.finish()

    def note_hangup(self) -> None:
        """Note that the caller has hung up, if he has and it is not noted yet."""
        if self._dialogue.hung_up and not self._hangup_noted:
            self._hangup_noted = True
            self._note(EventKind.HANGUP, "HANGUP")

    def _note(self, kind: EventKind, line: str) -> None:
        at_s = self.age_s
        if self.on_event is not None:
            self.on_event(at_s, kind, line)
        if not self._keep or self.too_long:
            return
        self._characters += len(line) + _TURN_CHARACTERS
        if self._characters > MOST_CHARACTERS:
            self.too_long = True
            self.turns.clear()
            return
        self.turns.append(Turn(at_s, "S" if kind is EventKind.COMMAND else "A", line))

    def _take_back(self, command: str) -> None:
        """Note that the last command was never sent."""
        del self.turns[-1:]
        if self.on_event is not None:
            self.on_event(self.age_s, EventKind.UNSENT, command)


@dataclass(slots=True)
class _Standing:
    """An order that stands, and how many calls have fitted so far."""

    order: Order
    path: Path
    fitting: int = 0

    def takes(self, route: Route, request: Request) -> bool:
        """Whether a call is wanted; it counts if it fits."""
        order = self.order
        if not order.fits(route.name, request.callerid, request.uniqueid):
            return False
        self.fitting += 1
        taken, rest = divmod(self.fitting, order.one_in)
        return rest == 0 and (not order.calls or taken <= order.calls)


@dataclass(slots=True)
class OpenRecording:
    """A call that is being recorded.

    Attributes:
        wanted_by: Who gets it as a whole, when it has ended.
        followed_by: Who gets each event at once.
    """

    route: Route
    request: Request
    ref: str
    began: str
    dialogue: RecordedDialogue
    wanted_by: list[_Standing] = field(default_factory=list)
    followed_by: list[_Standing] = field(default_factory=list)


class Recorder:
    """Records the calls of one worker that somebody wants.

    Attributes:
        lost: Recordings that could not be written, or grew too long.
    """

    def __init__(self, folder: Path) -> None:
        """Record nothing yet.

        Args:
            folder: Where the orders lie; it need not exist.
        """
        self.lost = 0
        self._folder = folder
        self._changed: int = -1
        self._standing: dict[str, _Standing] = {}
        self._fresh: list[_Standing] = []

    def look(self, wall_s: float) -> bool:
        """See which orders there are now.

        Args:
            wall_s: Seconds since the epoch.

        Returns:
            Whether one came that wants calls in progress too: :meth:`join` is to be asked about each.
        """
        known = set(self._standing)
        self._fresh.clear()
        try:
            changed = _time_of_change(self._folder)
        except OSError:
            self._standing.clear()
            return False
        if changed != self._changed:
            all_read = self._read_orders()
            self._changed = changed if all_read and wall_s - changed / 1e9 > _SETTLED_S else -1
        over = [name for name, each in self._standing.items() if each.order.until_s <= wall_s]
        for name in over:
            del self._standing[name]
            with suppress(OSError):
                withdraw_order(self._folder / name)
        self._fresh += [
            each for name, each in self._standing.items() if name not in known and each.order.live
        ]
        return bool(self._fresh)

    def begin(self, route: Route, request: Request, ref: str, dialogue: Dialogue) -> OpenRecording | None:
        """Begin to record a call, if an order wants it."""
        wanted = [each for each in self._standing.values() if each.takes(route, request)]
        if not wanted:
            return None
        whole = [each for each in wanted if not each.order.live]
        mask = DigitMask() if route.mask_digits else None
        recorded = RecordedDialogue(dialogue, mask, keep=bool(whole))
        running = OpenRecording(route, request, ref, _now(), recorded, whole)
        self._follow(running, [each for each in wanted if each.order.live], joined=False)
        return running

    def join(
        self, route: Route, request: Request, ref: str, dialogue: Dialogue, running: OpenRecording | None
    ) -> OpenRecording | None:
        """Follow a call in progress from now on, if an order that has just come wants it.

        Args:
            route: Its route.
            request: What Asterisk said about it.
            ref: Its reference.
            dialogue: Who really carries its lines.
            running: How it is being recorded already, if it is.

        Returns:
            How it is being recorded now; None if it is not. If it was not before, then the ``dialogue`` of
            what is returned is to carry its lines from now on.
        """
        wanted = [each for each in self._fresh if each.takes(route, request)]
        if not wanted:
            return running
        if running is None:
            mask = DigitMask(late=True) if route.mask_digits else None
            recorded = RecordedDialogue(dialogue, mask, keep=False)
            running = OpenRecording(route, request, ref, _now(), recorded)
        self._follow(running, wanted, joined=True)
        return running

    def end(self, running: OpenRecording, outcome: str, record: CallRecord | None = None) -> None:
        """Write a call that has ended, to everyone who wants it; one that grew too long is lost.

        Args:
            running: The call.
            outcome: As in the access log.
            record: What else is known of it, for who follows it.
        """
        if running.wanted_by:
            self._write_whole(running, outcome)
        if running.followed_by:
            running.dialogue.note_hangup()
            facts = _facts_at_the_end(record, running.dialogue) if record else {}
            event = TraceEvent(running.ref, running.dialogue.age_s, EventKind.END, outcome, facts)
            self._tell(running, running.followed_by, event)

    def _write_whole(self, running: OpenRecording, outcome: str) -> None:
        if running.dialogue.too_long:
            self._lose(len(running.wanted_by), running.ref, "it grew too long")
            return
        transcript = Transcript(
            ref=running.ref,
            route=running.route.name,
            began=running.began,
            environment=dict(running.request.environment),
            turns=tuple(running.dialogue.turns),
            outcome=outcome,
            masked=running.route.mask_digits,
        )
        self._append(running.wanted_by, running.ref, transcript.to_json())

    def _follow(self, running: OpenRecording, standings: list[_Standing], *, joined: bool) -> None:
        """Tell of a call's events from now on, and first of what it is."""
        if not standings:
            return

        def tell(at_s: float, kind: EventKind, text: str) -> None:
            self._tell(running, running.followed_by, TraceEvent(running.ref, at_s, kind, text))

        running.followed_by += standings
        running.dialogue.on_event = tell
        facts = {
            "route": running.route.name,
            "began": running.began,
            "environment": dict(running.request.environment),
            "masked": running.route.mask_digits,
            "joined": joined,
        }
        begin = TraceEvent(running.ref, running.dialogue.age_s, EventKind.BEGIN, facts=facts)
        self._tell(running, standings, begin)

    def _tell(self, running: OpenRecording, standings: list[_Standing], event: TraceEvent) -> None:
        """Write an event to these; who cannot be told, or has enough, does not follow the call any more."""
        told = self._append(standings, running.ref, event.to_json())
        running.followed_by = [each for each in running.followed_by if each in told or each not in standings]
        if not running.followed_by:
            running.dialogue.on_event = None

    def _append(self, standings: list[_Standing], ref: str, text: str) -> list[_Standing]:
        """Write a line to all these, and return those to whom it could be written."""
        line = f"{text}\n".encode()
        written_to = []
        for standing in standings:
            try:
                _append(standing.path, line)
                written_to.append(standing)
            except FileNotFoundError:
                # The order was taken back, so nobody misses it.
                self.lost += not standing.order.live
            except OSError as error:
                self._lose(1, ref, str(error))
        return written_to

    @property
    def active(self) -> bool:
        """Whether there is any order."""
        return bool(self._standing)

    def _read_orders(self) -> bool:
        """Find the orders that stand; False if one could not be read, as half written ones cannot."""
        found: dict[str, _Standing] = {}
        try:
            paths = sorted(self._folder.glob(f"*{ORDER_SUFFIX}"))
        except OSError:
            return False  # Out of file descriptors, perhaps: what stands goes on.
        for path in paths:
            known = self._standing.get(path.name)
            order = known.order if known else _read_order(path)
            if order is not None:
                found[path.name] = known or _Standing(order, recording_of(path))
        self._standing = found
        return len(found) == len(paths)

    def _lose(self, recordings: int, ref: str, reason: str) -> None:
        self.lost += recordings
        logging.getLogger(LOGGER_NAME).warning("call=%s was not recorded: %s", ref, reason)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def _facts_at_the_end(record: CallRecord, dialogue: RecordedDialogue) -> dict[str, Any]:
    return {
        "queued_s": round(record.queued_s, 6),
        "asterisk_s": round(record.asterisk_s, 6),
        "script_s": round(max(0.0, record.script_s - record.database_s), 6),
        "database_s": round(record.database_s, 6),
        "total_s": round(record.total_s, 6),
        "commands": record.commands,
        "error": dialogue.masked(record.error),
    }


def _append(path: Path, line: bytes) -> None:
    """Append one recorded call, or one event.

    Raises:
        OSError: It could not be written, or the file is full.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_size + len(line) > MOST_BYTES:
            raise OSError(f"{path} would grow beyond {MOST_BYTES} bytes")
        if os.write(descriptor, line) < len(line):
            raise OSError(f"only a part of it could be written into {path}")
    finally:
        os.close(descriptor)


def recording_of(order: Path) -> Path:
    """Say where the calls that an order wants are written."""
    return order.with_suffix(".jsonl")


def _time_of_change(folder: Path) -> int:
    """Return when a folder of orders last changed.

    Raises:
        OSError: There is none, or others than the pool's user can write into it.
    """
    found = folder.lstat()
    owners = (os.geteuid(), folder.parent.stat().st_uid)
    if not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022 or found.st_uid not in owners:
        raise PermissionError(f"{folder} is open to others")
    return found.st_mtime_ns


def _read_order(path: Path) -> Order | None:
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        return Order(**fields)
    except (OSError, ValueError, TypeError):
        return None  # Half written, or somebody else's.


def place_order(folder: Path, name: str, order: Order) -> Path:
    """Ask all workers to record. For this one must be the pool's user.

    Args:
        folder: ``recordings`` of the runtime folder; made if missing.
        name: Tells the order from others.
        order: What to record.

    Returns:
        The order's file. Calls come into :func:`recording_of` it; both are the caller's to remove.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{name}{ORDER_SUFFIX}"
    os.close(os.open(recording_of(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    unfinished = folder / f"{name}.new"
    try:
        unfinished.write_text(json.dumps(asdict(order)))
        unfinished.rename(path)
    except OSError:
        # Nobody would ever take it away: to the workers it is no order.
        unfinished.unlink(missing_ok=True)
        withdraw_order(path)
        raise
    return path


def withdraw_order(path: Path) -> None:
    """Take an order back, with what was recorded for it."""
    for each in (path, recording_of(path)):
        each.unlink(missing_ok=True)


def become_owner_of(runtime_dir: Path) -> None:
    """Go on as the pool's user if we are root: nothing that he can put there leads root astray.

    Raises:
        OSError: There is no such folder, or we may not.
    """
    owner = runtime_dir.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def follow(order: Path, until_s: float) -> Iterator[str]:
    """Yield the calls, or the events, that are recorded for an order, line by line, as they come.

    Args:
        order: The order's file.
        until_s: When to end, in seconds since the epoch.
    """
    with recording_of(order).open(encoding="utf-8") as file:
        unfinished = ""
        while True:
            over = time() >= until_s
            while line := file.readline():
                unfinished += line
                if unfinished.endswith("\n"):
                    yield unfinished
                    unfinished = ""
            if over:
                return
            sleep(_LOOK_S)


def read_transcripts(lines: Iterable[str]) -> Iterable[Transcript]:
    """Read recorded calls, line by line.

    Raises:
        ValueError: A line is none; the message names its number.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield Transcript.from_json(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
