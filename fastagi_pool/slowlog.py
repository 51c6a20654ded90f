"""Slow log: calls that took too long, written down with what they were doing.

Laws:
    * An entry begins with one line of stable keys, named as in the access log where they mean the same; what
      stands below it is indented. As JSON it is one line.
    * No secret gets in: statements are shown with their placeholders, passwords in URLs are hidden, and of
      calls on routes with ``mask_digits`` neither the arguments of commands nor literals in statements.
    * Writing takes no lock and keeps nothing between two entries: any thread may report at any time.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Final, NamedTuple, Protocol, TypeAlias

from fastagi_pool.logs import Clock, masked, speaker, value

#: A place in an entry: its key, and a text or a number.
Fields: TypeAlias = dict[str, object]

_HIDDEN: Final = "..."
#: Of a statement, in characters: one with its values in it may have megabytes, and the hub waits meanwhile.
_LONGEST_STATEMENT: Final = 4000
#: AGI commands of which the second word says what is done; that of others is an argument already.
_TWO_WORDS: Final = frozenset(
    {
        "CHANNEL",
        "CONTROL",
        "DATABASE",
        "EXEC",
        "GET",
        "RECEIVE",
        "RECORD",
        "SAY",
        "SEND",
        "SET",
        "SPEECH",
        "STREAM",
        "TDD",
        "WAIT",
    }
)
#: Text in quotes, to the end if it was cut, and numbers.
_LITERAL: Final = re.compile(
    r"""'(?:[^'\\]|\\.|'')*(?:'|$)|"(?:[^"\\]|\\.|"")*(?:"|$)|\b\d[\d.]*""", re.DOTALL
)
#: What is left out, in this order, of a JSON line that does not fit where it goes.
_DISPENSABLE: Final = ("commands", "stack", "statement")


class TextFile(Protocol):
    """Where entries go; a LogFile is one."""

    @property
    def longest_line_bytes(self) -> int:
        """What of a line arrives, at most; 0 for all of it."""

    def write(self, text: str, /) -> None:
        """Append whole lines; never raises."""


class TimedCommand(NamedTuple):
    """One AGI command.

    Attributes:
        at_s: When it was sent, in seconds since the call was accepted.
        line: The command line, perhaps cut.
        took_s: Until its reply had come; None if that is still to come.
    """

    at_s: float
    line: str
    took_s: float | None


@dataclass(frozen=True, slots=True)
class SlowCall:
    """A call in progress, or one that has just ended.

    Attributes:
        ref: The reference under which the logs know it.
        route: Name of the route; empty if none is found yet.
        script: The script that Asterisk asked for.
        peer: Address of the Asterisk.
        uniqueid: The channel's unique id.
        callerid: The caller's number.
        state: What it is doing, in words, as ``in script``.
        state_s: For how long.
        queued_s: Time in which it waited for a place.
        asterisk_s: Time in which it waited for Asterisk's replies.
        script_s: The handler's own time, the database included.
        database_s: Of that, waiting for the database.
        commands: The last commands, oldest first.
        sent: How many commands were sent in all.
        statement: The last SQL statement, with its placeholders; empty for none.
        stack: What its greenlet was doing, as :func:`fastagi_pool.stacks.write_stack` has it; None if nobody
            looked.
        blocked_s: For how long it has kept all other calls of the worker from their turn; None if it did not.
        masked: Whether the route hides what callers dial.
    """

    ref: str
    route: str
    script: str
    peer: str
    uniqueid: str
    callerid: str
    state: str
    state_s: float
    queued_s: float
    asterisk_s: float
    script_s: float
    database_s: float
    commands: Sequence[TimedCommand] = ()
    sent: int = 0
    statement: str = ""
    stack: str | None = None
    blocked_s: float | None = None
    masked: bool = False

    @property
    def title(self) -> str:
        """The call in one line, for lists."""
        return (
            f"call={self.ref} route={value(self.route)} uniqueid={value(self.uniqueid)} "
            f"{self.state} for {self.state_s:.1f} s"
        )


class SlowLog:
    """Writes slow calls into a file."""

    def __init__(self, file: TextFile, identity: str, line_format: str = "text") -> None:
        """Prepare to write.

        Args:
            file: Where to.
            identity: Who is speaking, as ``worker=3 gen=1 pid=42``.
            line_format: ``text``, or ``json`` for one object a line.
        """
        self._file = file
        self._identity = identity
        self._as_json = line_format == "json"

    def report(self, call: SlowCall) -> None:
        """Write a call down as of now, as slow, or as the one that blocks its worker."""
        self._write(call_fields(call))

    def report_blocked(self, blocked_s: float, stack: str) -> None:
        """Write down as of now that something which belongs to no call blocks the worker.

        Args:
            blocked_s: For how long it does.
            stack: What runs.
        """
        self._write({"event": "blocked", "blocked_ms": _milliseconds(blocked_s), "stack": masked(stack)})

    def _write(self, fields: Fields) -> None:
        # A Clock of its own for each entry: two threads may be at it.
        stamp = Clock().stamp(time.time())
        if self._as_json:
            line = json_line(
                {"time": stamp, **speaker(self._identity), **fields}, self._file.longest_line_bytes
            )
            self._file.write(line + "\n")
        else:
            self._file.write(f"{stamp} {self._identity} {text_entry(fields)}")


def call_fields(call: SlowCall) -> Fields:
    """Say what an entry about a call holds, in the order in which it does, without secrets."""
    fields: Fields = {
        "event": "slow" if call.blocked_s is None else "blocked",
        "call": call.ref,
        "route": call.route,
        "script": call.script,
        "state": call.state,
        "state_ms": _milliseconds(call.state_s),
        "queued_ms": _milliseconds(call.queued_s),
        "asterisk_ms": _milliseconds(call.asterisk_s),
        "script_ms": _milliseconds(call.script_s),
        "db_ms": _milliseconds(call.database_s),
        "peer": call.peer,
        "uniqueid": call.uniqueid,
        "callerid": call.callerid,
        "sent": call.sent,
    }
    if call.blocked_s is not None:
        fields["blocked_ms"] = _milliseconds(call.blocked_s)
    if call.stack:
        fields["stack"] = masked(call.stack)
    if call.commands:
        fields["commands"] = [_command_fields(command, call.masked) for command in call.commands]
    if call.statement:
        statement = _shortened(call.statement)
        fields["statement"] = masked(_LITERAL.sub("?", statement) if call.masked else statement)
    return fields


def _shortened(statement: str) -> str:
    """Write a statement on one line, cut between two words: half a password would not be recognized."""
    if len(statement) > _LONGEST_STATEMENT:
        statement = f"{statement[:_LONGEST_STATEMENT].rpartition(' ')[0]} {_HIDDEN}"
    return " ".join(statement.split())


def text_entry(fields: Fields) -> str:
    """Write an entry for people: the event and its keys on one line, the rest below it."""
    below = [
        _stack_lines(str(fields["stack"])) if "stack" in fields else "",
        _command_lines(fields),
        f"  statement: {_readable(str(fields['statement']))}\n" if "statement" in fields else "",
    ]
    keys = (
        f"{key}={value(each) if isinstance(each, str) else each}"
        for key, each in fields.items()
        if key not in ("event", *_DISPENSABLE)
    )
    return f"{fields['event']} {' '.join(keys)}\n{''.join(below)}"


def json_line(fields: Fields, longest_bytes: int) -> str:
    """Write an entry as one JSON object, without its longest parts if it would not fit.

    Args:
        fields: The entry.
        longest_bytes: 0 for any length.
    """
    line = json.dumps(fields)
    for key in _DISPENSABLE:
        if 0 < longest_bytes < len(line):
            fields = {name: each for name, each in fields.items() if name != key}
            line = json.dumps(fields)
    return line


def _command_fields(command: TimedCommand, is_masked: bool) -> Fields:
    return {
        "at_ms": _milliseconds(command.at_s),
        "took_ms": None if command.took_s is None else _milliseconds(command.took_s),
        "line": _name_of(command.line) if is_masked else masked(command.line.rstrip("\n")),
    }


def _name_of(line: str) -> str:
    """Show of a command what it is, and nothing of what it is about."""
    first, *rest = line.split()[:3] or [""]
    if not first.isalpha():
        return _HIDDEN
    shown = [first]
    if rest and first.upper() in _TWO_WORDS and rest[0].isalpha():
        shown.append(rest.pop(0))
    return " ".join([*shown, _HIDDEN] if rest else shown)


def _stack_lines(stack: str) -> str:
    return "  stack:\n" + indent(stack, "  ")


def _command_lines(fields: Fields) -> str:
    commands = fields.get("commands")
    if not isinstance(commands, list):
        return ""
    lines = [f"  commands, the last {len(commands)} of {fields['sent']}:"]
    for each in commands:
        took = "no reply yet" if each["took_ms"] is None else f"took {each['took_ms']} ms"
        lines.append(f"    at {each['at_ms']} ms, {took}: {_readable(each['line'])}")
    return "\n".join(lines) + "\n"


def _readable(text: str) -> str:
    """Keep a text on its line."""
    return text if text.isprintable() else value(text)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
