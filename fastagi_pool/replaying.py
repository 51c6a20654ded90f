"""Replaying: recorded calls played to handlers again, and where their commands differ now.

Laws:
    * Asterisk answers as recorded for as long as the commands are those recorded; to others it answers as
      FakeAsterisk does, and it finds the way back at the next command that stands in the recording.
    * A command that was never answered ends the connection; what cut it short then, a limit or an operator,
      cannot be played.
    * A digit that was masked is any digit to compare, and 0 to answer.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fastagi_pool.asterisk import Behaviour, Caller, FakeAsterisk
from fastagi_pool.asterisk_channel import decode, encode
from fastagi_pool.recording import MASKED_DIGIT, Transcript, Turn

_ANY_DIGIT: Final = "[0-9A-D*#]"
#: What a masked digit is answered as: by GET DATA as it is, by the others as a character's code.
_STAND_IN: Final = "0"
_STAND_IN_CODE: Final = str(ord(_STAND_IN))
_CODE = re.compile(r"result=\*(?![*])")
_HANGUP: Final = "HANGUP"
_NEVER_SEEN: Final = "200 result=-1"
#: How the server begins its last words after a failure; recordings hold what the handler said.
_LAST_WORDS: Final = "SET VARIABLE FAGI_STATUS "
#: Outcomes of a call that ended in the middle of a command, and how it ends when played again.
_CUT_SHORT: Final = frozenset({"timeout", "stopped", "badrequest"})
_CUT_SHORT_NOW: Final = "gone"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One recorded command and what followed it.

    Attributes:
        command: The command.
        answers: The answer, and HANGUP where it stood.
    """

    command: str
    answers: tuple[str, ...]


def exchanges(turns: Sequence[Turn]) -> list[Exchange]:
    """Group what was said by the server's commands."""
    found: list[tuple[str, list[str]]] = []
    for turn in turns:
        if turn.who == "S":
            found.append((turn.line, []))
        elif found:
            found[-1][1].append(turn.line)
    return [Exchange(command, tuple(answers)) for command, answers in found]


class RecordedAsterisk(FakeAsterisk):
    """The Asterisk of a recorded call.

    Attributes:
        said: The handler's commands; one that was recorded with masked digits is written as recorded.
    """

    def __init__(self, transcript: Transcript) -> None:
        """Begin the call anew.

        Args:
            transcript: What was recorded.
        """
        environment = transcript.environment
        super().__init__(
            environment.get("agi_request", ""),
            [value for name, value in environment.items() if name.startswith("agi_arg_")],
            Caller(
                number=environment.get("agi_callerid", ""),
                name=environment.get("agi_calleridname", ""),
                context=environment.get("agi_context", ""),
                extension=environment.get("agi_extension", ""),
                channel=environment.get("agi_channel", ""),
                uniqueid=environment.get("agi_uniqueid", ""),
            ),
            Behaviour(version=environment.get("agi_version", "")),
        )
        self.said: list[str] = []
        self._environment = encode(
            "".join(f"{name}: {value}\n" for name, value in environment.items()) + "\n"
        )
        self._masked = transcript.masked
        self._left = exchanges(transcript.turns)
        self._handler_is_over = False

    def prescribed_reply(self, line: str, words: Sequence[str]) -> str | None:
        """Return what was answered to this command; None if it was not given, or not from here on."""
        for place, exchange in enumerate(self._left):
            if self._same(exchange.command, line):
                del self._left[: place + 1]
                self.said.append(exchange.command)
                return self._answer(exchange)
        self._handler_is_over |= line.startswith(_LAST_WORDS)
        if not self._handler_is_over:
            self.said.append(line)
        return None

    def _answer(self, exchange: Exchange) -> str:
        if not exchange.answers:
            self.ended = True
            return ""
        # HANGUP goes first, so that the handler learns of it at this command, as when it was recorded. Then
        # the answer may be missing: it was never seen by the handler.
        hangup = decode(self.hang_up()) if _HANGUP in exchange.answers else ""
        answer = next((answer for answer in exchange.answers if answer != _HANGUP), _NEVER_SEEN)
        return hangup + self._unmasked(exchange.command, answer)

    def _same(self, recorded: str, line: str) -> bool:
        if not self._masked:
            return recorded == line
        pattern = re.escape(recorded).replace(re.escape(MASKED_DIGIT), _ANY_DIGIT)
        return re.fullmatch(pattern, line, re.DOTALL) is not None

    def _unmasked(self, command: str, answer: str) -> str:
        if not self._masked:
            return answer
        if not command.upper().startswith("GET DATA"):
            answer = _CODE.sub(f"result={_STAND_IN_CODE}", answer)
        return answer.replace(MASKED_DIGIT, _STAND_IN)


def differences(transcript: Transcript, said: Sequence[str], outcome: str) -> Iterator[str]:
    """Yield where a handler's commands differ from the recorded ones, as a unified diff, and its outcome.

    Args:
        transcript: What was recorded.
        said: What the handler said now.
        outcome: How it ended now.
    """
    recorded = exchanges(transcript.turns)
    commands = [exchange.command for exchange in recorded]
    yield from difflib.unified_diff(commands, list(said), "recorded", "now", lineterm="", n=2)
    cut_short = bool(recorded) and not recorded[-1].answers and transcript.outcome in _CUT_SHORT
    if outcome != (_CUT_SHORT_NOW if cut_short else transcript.outcome):
        yield f"outcome: {transcript.outcome} when recorded, {outcome} now"
