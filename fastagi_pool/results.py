"""Results: what commands answer, as small frozen values, and how they are read from a reply.

Laws:
    * A value says what happened in the words of the caller's side: digits, not character codes.
    * What Asterisk cannot have meant is an :class:`~fastagi_pool.errors.AGIError`, never a ``ValueError``.

Source: asterisk res/res_agi.c, the ``handle_...`` function of each command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from fastagi_pool.errors import AGIError
from fastagi_pool.protocol import Reply

#: One result of a speech engine in a reply; the text stands in quotes and may hold anything but those.
_SPEECH_RESULT = re.compile(r'score(\d+)=(-?\d+) text\1="([^"]*)" grammar\1=(\S*)')
_SPEECH_DIGIT = re.compile(r"digit=(\S)")
_SPEECH_ENDPOS = re.compile(r"endpos=(-?\d{1,18})(?!\d)")
_BIGGEST_CHARACTER: Final = 0x10FFFF


class ChannelState(IntEnum):
    """What a channel is doing. Source: enum ast_channel_state in include/asterisk/channelstate.h."""

    DOWN = 0
    RESERVED = 1
    OFF_HOOK = 2
    DIALING = 3
    RINGING = 4
    RINGING_FAR = 5
    UP = 6
    BUSY = 7
    DIALING_OFF_HOOK = 8
    PRE_RING = 9


@dataclass(frozen=True, slots=True)
class Playback:
    """How playing a file ended.

    Attributes:
        digit: The digit that interrupted it; empty if it played to its end.
        endpos: The sample at which it ended, 8,000 to a second for narrow-band files.
    """

    digit: str
    endpos: int


@dataclass(frozen=True, slots=True)
class Digits:
    """What the caller dialled.

    Attributes:
        digits: The digits, without the ``#`` that ends them; may be empty.
        timed_out: Whether the time ran out before ``#`` or the last digit.
    """

    digits: str
    timed_out: bool


class RecordingEnd(Enum):
    """Why a recording ended."""

    DIGIT = "dtmf"
    TIMEOUT = "timeout"
    HANGUP = "hangup"


@dataclass(frozen=True, slots=True)
class Recording:
    """How recording a file ended.

    Attributes:
        ended_by: Why. ``TIMEOUT`` stands for silence too.
        digit: The digit that ended it; empty if none did.
        endpos: The sample at which it ended.
    """

    ended_by: RecordingEnd
    digit: str
    endpos: int


class SpeechEnd(Enum):
    """Why waiting for speech ended."""

    SPEECH = "speech"
    DIGIT = "digit"
    TIMEOUT = "timeout"
    HANGUP = "hangup"


@dataclass(frozen=True, slots=True)
class SpeechGuess:
    """One thing that the speech engine may have heard.

    Attributes:
        text: The words.
        score: How sure the engine is, 0 to 1000.
        grammar: The grammar that it found them in.
    """

    text: str
    score: int
    grammar: str


@dataclass(frozen=True, slots=True)
class Speech:
    """What came of waiting for speech.

    Attributes:
        ended_by: Why it ended.
        digit: The digit that ended it; empty if none did.
        endpos: The sample of the prompt at which it ended.
        guesses: What was heard, the likeliest first.
    """

    ended_by: SpeechEnd
    digit: str
    endpos: int
    guesses: tuple[SpeechGuess, ...] = ()


def whole_number(reply: Reply, line: bytes) -> int:
    """Read the result as a whole number.

    Raises:
        AGIError: It is none.
    """
    try:
        return int(reply.result)
    except ValueError:
        raise unexpected(reply, line) from None


def channel_state(reply: Reply, line: bytes) -> ChannelState:
    """Read the result as the state of a channel.

    Raises:
        AGIError: It is no state.
    """
    try:
        return ChannelState(int(reply.result))
    except ValueError:
        raise unexpected(reply, line) from None


def character(reply: Reply, line: bytes) -> str:
    """Read the result as the code of a digit or another character; 0 is none.

    Raises:
        AGIError: It is no code.
    """
    if reply.result in ("", "0"):
        return ""
    code = whole_number(reply, line)
    if not 0 <= code <= _BIGGEST_CHARACTER:
        raise unexpected(reply, line)
    return chr(code) if code else ""


def playback(reply: Reply, line: bytes) -> Playback:
    """Read how playing a file ended.

    Raises:
        AGIError: The result is no digit.
    """
    return Playback(character(reply, line), reply.endpos or 0)


def recording(reply: Reply, line: bytes) -> Recording:
    """Read how recording a file ended.

    Raises:
        AGIError: The reason is not known.
    """
    endpos = reply.endpos or 0
    try:
        ended_by = RecordingEnd(reply.value)
    except ValueError:
        raise unexpected(reply, line) from None
    digit = character(reply, line) if ended_by is RecordingEnd.DIGIT else ""
    return Recording(ended_by, digit, endpos)


def speech(reply: Reply, line: bytes) -> Speech:
    """Read what came of waiting for speech.

    Raises:
        AGIError: The reason is not known.
    """
    try:
        ended_by = SpeechEnd(reply.value)
    except ValueError:
        raise unexpected(reply, line) from None
    digit = _SPEECH_DIGIT.search(reply.text)
    endpos = _SPEECH_ENDPOS.search(reply.text)
    return Speech(
        ended_by,
        digit[1] if digit and ended_by is SpeechEnd.DIGIT else "",
        reply.endpos if reply.endpos is not None else int(endpos[1]) if endpos else 0,
        tuple(
            SpeechGuess(text, int(score), grammar)
            for _, score, text, grammar in _SPEECH_RESULT.findall(reply.text)
        ),
    )


def unexpected(reply: Reply, line: bytes) -> AGIError:
    """Say that an answer makes no sense here."""
    shown = f"result={reply.result}" + (f" ({reply.value})" if reply.value is not None else "")
    command = line.decode("utf-8", "surrogateescape").rstrip("\n")
    return AGIError(f"Asterisk answered {shown[:100]!r}, which this command cannot mean", command)
