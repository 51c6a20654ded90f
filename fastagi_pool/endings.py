"""Endings: what the dialplan is told about a call that did not go well, and what it does then.

Laws:
    * Whatever is no success sets FAGI_STATUS, FAGI_ERROR and FAGI_REF, carries out the route's
      ``on_error``, and ends with the line ``failure``, in this order and in one piece.
    * Nothing that a caller may have chosen reaches the dialplan with a meaning there: FAGI_ERROR holds
      letters, digits and a few harmless signs.
    * A channel that hung up goes nowhere any more: it is told, but not sent anywhere.

Why one piece, although commands must never be pipelined: it is followed by the end of our side of the
connection, at which Asterisk runs whatever is left in its buffer.

Source: asterisk res/res_agi.c, run_agi(); recorded from Asterisk 22 (tests/external/test_endings.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from fastagi_pool.protocol import encode_command

#: The line by which a server says that it failed. Source: run_agi() in res_agi.c.
FAILURE_LINE: Final = b"failure\n"
#: FAGI_STATUS of a call whose worker died.
CRASH: Final = "CRASH"
#: Longest FAGI_ERROR in characters: enough for a dialplan or a call record; the log has it whole.
_ERROR_LENGTH: Final = 200
#: All that could end or begin something in a dialplan's expressions and arguments, or in a shell.
_MEANINGFUL = re.compile(r"[^\w .:/@#%=+*-]+")
#: No name in a dialplan is longer than 79 bytes, so that the command always fits into a line.
#: Source: AST_MAX_CONTEXT and AST_MAX_EXTENSION in include/asterisk/channel.h, 80 with the final NUL.
_GOTO = re.compile(r"goto\s+([^,\s]{1,79})\s*,\s*([^,\s]{1,79})\s*,\s*([^,\s]{1,79})")


class ErrorAction(Enum):
    """What the dialplan does after a call that failed."""

    CONTINUE = "continue"
    HANGUP = "hangup"
    GOTO = "goto"


@dataclass(frozen=True, slots=True)
class OnError:
    """What the dialplan does after a call that failed, and where.

    Attributes:
        action: What it does.
        target: ``context,extension,priority`` of ``GOTO``; else empty.
    """

    action: ErrorAction = ErrorAction.CONTINUE
    target: str = ""

    @classmethod
    def parse(cls, text: str) -> OnError:
        """Read it as it is written in a configuration.

        Raises:
            ValueError: It is not ``continue``, ``hangup`` or ``goto context,extension,priority``.
        """
        words = text.strip()
        if words in (ErrorAction.CONTINUE.value, ErrorAction.HANGUP.value):
            return cls(ErrorAction(words))
        found = _GOTO.fullmatch(words)
        if found is None or not words.isprintable():
            raise ValueError("must be 'continue', 'hangup' or 'goto context,extension,priority'")
        return cls(ErrorAction.GOTO, ",".join(found.groups()))

    def __str__(self) -> str:
        return f"{self.action.value} {self.target}".strip()


#: The dialplan goes on with its next priority.
GO_ON: Final = OnError()


def last_words(status: str, error: str, ref: str, on_error: OnError, channel_lives: bool) -> bytes:
    """Build all that Asterisk is told about a failure.

    Args:
        status: FAGI_STATUS: the outcome in capitals, as ``TIMEOUT``.
        error: What went wrong; made harmless and short for FAGI_ERROR.
        ref: FAGI_REF: the reference by which the log knows the call.
        on_error: What the dialplan is to do.
        channel_lives: Whether the channel can still be sent anywhere.

    Returns:
        Whole lines, to be written in one piece before our side of the connection is ended.
    """
    lines = [
        encode_command("SET VARIABLE", ("FAGI_STATUS", status)),
        encode_command("SET VARIABLE", ("FAGI_ERROR", harmless(error))),
        encode_command("SET VARIABLE", ("FAGI_REF", ref)),
    ]
    if channel_lives and on_error.action is ErrorAction.HANGUP:
        lines.append(encode_command("HANGUP", ()))
    elif channel_lives and on_error.action is ErrorAction.GOTO:
        lines += _goto(on_error.target)
    return b"".join([*lines, FAILURE_LINE])


def _goto(target: str) -> list[bytes]:
    """Build the commands that send the dialplan elsewhere.

    SET CONTEXT and its like are not permitted on a dead channel, so one that has hung up without our knowing
    keeps its h extension. But with a label that does not exist they lead astray, where Goto goes nowhere.
    """
    context, extension, priority = target.split(",")
    if not priority.isdecimal():
        return [encode_command("EXEC", ("Goto", target))]
    places = (("CONTEXT", context), ("EXTENSION", extension), ("PRIORITY", priority))
    return [encode_command(f"SET {name}", (place,)) for name, place in places]


def harmless(error: str) -> str:
    """Make an error's text short, one line, and without a meaning to a dialplan or a shell."""
    return " ".join(_MEANINGFUL.sub(" ", error).split())[:_ERROR_LENGTH]
