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
from fnmatch import fnmatchcase
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any, Final, TypeVar

from fastagi_pool.call import Dialogue
from fastagi_pool.errors import AGICallFinished, CallEnded
from fastagi_pool.logs import LOGGER_NAME
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


@dataclass(frozen=True, slots=True)
class Order:
    """What to record.

    Attributes:
        until_s: When it is over, in seconds since the epoch.
        route: A glob for the route's name; empty for all.
        callerid: A glob for the caller's number; empty for all.
        one_in: Of the calls that fit in one worker, one in so many.

    Raises:
        ValueError: It is nothing of the kind.
    """

    until_s: float
    route: str = ""
    callerid: str = ""
    one_in: int = 1

    def __post_init__(self) -> None:
        # Read from a file, where anything may stand; a call must not stumble over it.
        globs = isinstance(self.route, str) and isinstance(self.callerid, str)
        numbers = isinstance(self.until_s, int | float) and isinstance(self.one_in, int)
        if not globs or not numbers or self.one_in < 1:
            raise ValueError("an order has a time, two globs and a whole number from 1")

    def fits(self, route: str, callerid: str) -> bool:
        """Whether a call is wanted."""
        return (not self.route or fnmatchcase(route, self.route)) and (
            not self.callerid or fnmatchcase(callerid, self.callerid)
        )


class DigitMask:
    """Hides what a caller dials, in one dialogue from its beginning to its end."""

    def __init__(self) -> None:
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

    def text(self, text: str) -> str:
        """Hide in any text what was dialled before."""
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
    """

    def __init__(self, dialogue: Dialogue, mask: DigitMask | None) -> None:
        """Begin.

        Args:
            dialogue: Who really carries the lines.
            mask: Hides digits; None to show them.
        """
        self.turns: list[Turn] = []
        self.too_long = False
        self._characters = 0
        self._dialogue = dialogue
        self._mask = mask
        self._began_s = monotonic()
        self._hangup_noted = False

    @property
    def hung_up(self) -> bool:
        """Whether HANGUP was seen."""
        return self._dialogue.hung_up

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
                self._note_hangup()
            on_unasked(data)

        self._dialogue.listen(note_and_tell)

    def _carry(
        self, line: bytes, send: Callable[[bytes], _Answer], shown: Callable[[str, _Answer], str]
    ) -> _Answer:
        if self.too_long:
            return send(line)
        command = line.decode("utf-8", "surrogateescape").rstrip("\n")
        self._note("S", self._mask.text(command) if self._mask else command)
        try:
            answer = send(line)
        except AGICallFinished:
            del self.turns[-1:]  # It was never sent.
            raise
        except CallEnded:
            self._note_hangup()
            raise
        self._note("A", shown(command, answer))
        self._note_hangup()
        return answer

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
            self._note_hangup()

    def finish(self) -> None:
        """Close as the dialogue does."""
        self._dialogue.finish()

    def _note_hangup(self) -> None:
        if self._dialogue.hung_up and not self._hangup_noted:
            self._hangup_noted = True
            self._note("A", "HANGUP")

    def _note(self, who: str, line: str) -> None:
        self._characters += len(line) + _TURN_CHARACTERS
        if self._characters > MOST_CHARACTERS:
            self.too_long = True
            self.turns.clear()
            return
        self.turns.append(Turn(monotonic() - self._began_s, who, line))


@dataclass(slots=True)
class _Standing:
    """An order that stands, and how many calls have fitted so far."""

    order: Order
    path: Path
    fitting: int = 0


@dataclass(slots=True)
class OpenRecording:
    """A call that is being recorded."""

    route: Route
    request: Request
    ref: str
    began: str
    dialogue: RecordedDialogue
    wanted_by: list[_Standing] = field(default_factory=list)


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

    def look(self, wall_s: float) -> None:
        """See which orders there are now.

        Args:
            wall_s: Seconds since the epoch.
        """
        try:
            changed = _time_of_change(self._folder)
        except OSError:
            self._standing.clear()
            return
        if changed != self._changed:
            all_read = self._read_orders()
            self._changed = changed if all_read and wall_s - changed / 1e9 > _SETTLED_S else -1
        over = [name for name, each in self._standing.items() if each.order.until_s <= wall_s]
        for name in over:
            del self._standing[name]
            with suppress(OSError):
                withdraw_order(self._folder / name)

    def begin(self, route: Route, request: Request, ref: str, dialogue: Dialogue) -> OpenRecording | None:
        """Begin to record a call, if an order wants it."""
        wanted_by = []
        for standing in self._standing.values():
            if standing.order.fits(route.name, request.callerid):
                standing.fitting += 1
                if standing.fitting % standing.order.one_in == 0:
                    wanted_by.append(standing)
        if not wanted_by:
            return None
        recorded = RecordedDialogue(dialogue, DigitMask() if route.mask_digits else None)
        began = datetime.now().astimezone().isoformat(timespec="milliseconds")
        return OpenRecording(route, request, ref, began, recorded, wanted_by)

    def end(self, running: OpenRecording, outcome: str) -> None:
        """Write a call that has ended, to everyone who wants it; one that grew too long is lost."""
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
        line = f"{transcript.to_json()}\n".encode()
        for standing in running.wanted_by:
            try:
                _append(standing.path, line)
            except FileNotFoundError:
                self.lost += 1  # The order was taken back, so nobody misses it.
            except OSError as error:
                self._lose(1, running.ref, str(error))

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


def _append(path: Path, line: bytes) -> None:
    """Append one recorded call.

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
    unfinished.write_text(json.dumps(asdict(order)))
    unfinished.rename(path)
    return path


def withdraw_order(path: Path) -> None:
    """Take an order back, with what was recorded for it."""
    for each in (path, recording_of(path)):
        each.unlink(missing_ok=True)


def follow(order: Path, until_s: float) -> Iterator[str]:
    """Yield the calls that are recorded for an order, line by line, as they come.

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
