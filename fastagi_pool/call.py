"""Call: what a handler holds. One method per AGI command, and nothing but the call itself.

Laws:
    * No I/O: a call hands complete lines to its :class:`Dialogue` and reads its replies.
    * A method returns what Asterisk answered or raises an :class:`~fastagi_pool.errors.AGIError`;
      it never returns a value that means "failed".
    * The end of the call is :class:`~fastagi_pool.errors.CallEnded`, outside ``Exception``.

Every method may raise, besides what it names:
    AGICommandRefused: An argument would harm Asterisk; nothing was sent.
    AGIDeadChannel: The channel hung up and the command needs a live one.
    AGIInvalidCommand, AGIUsageError: This Asterisk does not know the command in this form.
    CallEnded: The call is over.

Source: ``agi show commands`` of Asterisk 22, and res/res_agi.c for the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, Protocol

from fastagi_pool.errors import (
    AGIAppError,
    AGICommandFailed,
    AGIDeadChannel,
    AGIError,
    AGIInvalidCommand,
    AGIUsageError,
)
from fastagi_pool.protocol import MAX_COMMAND_BYTES, Reply, Request, encode_command


class Dialogue(Protocol):
    """Whoever carries command lines to Asterisk and its replies back."""

    def execute(self, line: bytes) -> Reply:
        """Send one line and wait for its reply."""

    def await_hangup(self) -> None:
        """Give the HANGUP that may follow a result of -1 a moment to arrive; raise it if it does."""

    @property
    def hung_up(self) -> bool:
        """Whether HANGUP was seen."""


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


class Call:
    """One call, for as long as its handler runs.

    Attributes:
        request: What Asterisk said about the call at its start.
        captures: What the route's pattern caught: named groups by name, others ``"1"``, ``"2"``...
        ref: The reference under which the logs know this call.
    """

    __slots__ = ("_dialogue", "_max_bytes", "captures", "ref", "request")

    def __init__(
        self,
        request: Request,
        dialogue: Dialogue,
        captures: Mapping[str, str] | None = None,
        ref: str = "",
        max_command_bytes: int = MAX_COMMAND_BYTES,
    ) -> None:
        self.request = request
        self.captures = captures or {}
        self.ref = ref
        self._dialogue = dialogue
        self._max_bytes = max_command_bytes

    @property
    def hung_up(self) -> bool:
        """Whether the caller is known to have hung up."""
        return self._dialogue.hung_up

    # --- the channel

    def answer(self) -> None:
        """Answer the channel; nothing happens if it is answered already.

        Takes up to 0.5 s when the caller sends no audio.

        Raises:
            AGICommandFailed: The channel could not be answered.
        """
        self._succeed("ANSWER")

    def hangup(self, channel: str = "") -> None:
        """Hang up this channel, or another one by name.

        Args:
            channel: A channel's name; empty for the call's own.

        Raises:
            AGICommandFailed: There is no such channel.
        """
        reply, line = self._exchange("HANGUP", *([channel] if channel else []))
        if reply.result != "1":
            raise AGICommandFailed("no such channel", _shown(line))

    def channel_status(self, channel: str = "") -> int:
        """Return the state of this channel, or of another one by name.

        Args:
            channel: A channel's name; empty for the call's own.

        Returns:
            0 down, 1 reserved, 2 off hook, 3 dialled, 4 ringing at the far end, 5 ringing, 6 up,
            7 busy.

        Raises:
            AGICommandFailed: There is no such channel.
        """
        return int(self._succeed("CHANNEL STATUS", *([channel] if channel else [])).result)

    # --- talking to the Asterisk console

    def verbose(self, text: str, level: int = 1) -> None:
        """Write a line to Asterisk's console and log.

        Args:
            text: The message.
            level: 1 to 4: shown when the console's verbosity is at least this.
        """
        self._command("VERBOSE", text, str(level))

    def noop(self, text: str = "") -> None:
        """Do nothing; the text appears in ``agi set debug on``."""
        self._command("NOOP", *([text] if text else []))

    # --- variables

    def get_variable(self, name: str) -> str | None:
        """Return a channel variable, or None if it is not set.

        Asterisk cuts the value at 1,023 bytes without notice; :meth:`get_full_variable` does not.

        Args:
            name: The name alone, as ``EXTEN``; functions as ``CALLERID(num)`` work too.
        """
        return self._value("GET VARIABLE", name)

    def get_full_variable(self, expression: str, channel: str = "") -> str | None:
        """Return an expression after Asterisk has put in the variables and functions.

        Args:
            expression: As in the dialplan: ``${CALLERID(num)}-${EXTEN}``.
            channel: Whose variables; empty for the call's own.

        Returns:
            The value; empty, not None, for a variable that is not set. None if there is no such
            channel.
        """
        return self._value("GET FULL VARIABLE", expression, *([channel] if channel else []))

    def set_variable(self, name: str, value: str) -> None:
        """Set a channel variable.

        Args:
            name: ``NAME``; ``_NAME`` is inherited by the next channel, ``__NAME`` by all.
            value: The value, taken as it is: ``${...}`` is not expanded.
        """
        self._command("SET VARIABLE", name, value)

    # --- applications

    def exec(self, application: str, *arguments: str) -> int:
        """Run a dialplan application and wait for its end.

        Args:
            application: Its name, as ``Dial``.
            arguments: Joined by commas, as the dialplan would give them.

        Returns:
            What the application returned: 0 when the dialplan would go on.

        Raises:
            AGIAppError: Asterisk has no such application.
            AGICommandFailed: The application returned -1 without a hangup.
        """
        words = (application, ",".join(arguments)) if arguments else (application,)
        reply, line = self._exchange("EXEC", *words)
        if reply.result == "-2":
            raise AGIAppError("Asterisk has no such application", _shown(line))
        self._check(reply, line)
        return int(reply.result)

    # --- sound and digits

    def stream_file(self, name: str, escape_digits: str = "", offset: int = 0) -> Playback:
        """Play a sound file.

        Args:
            name: The file without its ending, below Asterisk's folder of sounds.
            escape_digits: Digits that interrupt it.
            offset: The sample to begin at.

        Raises:
            AGICommandFailed: There is no such file, or it cannot be played.
        """
        words = (name, escape_digits, str(offset)) if offset else (name, escape_digits)
        reply = self._succeed("STREAM FILE", *words)
        return Playback(_digit(reply.result), reply.endpos or 0)

    def get_data(self, name: str, timeout_s: float | None = None, max_digits: int | None = None) -> Digits:
        """Play a sound file and collect digits; ``#`` ends them.

        Args:
            name: The file without its ending.
            timeout_s: The longest pause before a digit; None leaves it to Asterisk (6 s).
            max_digits: Return after this many; None leaves it to Asterisk (1,024).

        Raises:
            AGICommandFailed: The file could not be played.
        """
        words = [name]
        if timeout_s is not None or max_digits is not None:
            words.append("0" if timeout_s is None else _milliseconds(timeout_s))
        if max_digits is not None:
            words.append(str(max_digits))
        reply = self._succeed("GET DATA", *words)
        return Digits(reply.result, reply.value == "timeout")

    def wait_for_digit(self, timeout_s: float | None = None) -> str:
        """Wait for one digit.

        Args:
            timeout_s: How long; None for ever.

        Returns:
            The digit; empty when the time ran out.

        Raises:
            AGICommandFailed: The channel cannot be read.
        """
        timeout = "-1" if timeout_s is None else _milliseconds(timeout_s)
        return _digit(self._succeed("WAIT FOR DIGIT", timeout).result)

    def say_number(self, number: int, escape_digits: str = "") -> str:
        """Say a number; return the digit that interrupted it, or an empty text.

        Raises:
            AGICommandFailed: A sound file is missing.
        """
        return _digit(self._succeed("SAY NUMBER", str(number), escape_digits).result)

    def say_digits(self, digits: str, escape_digits: str = "") -> str:
        """Say digits one by one; return the digit that interrupted, or an empty text.

        Raises:
            AGICommandFailed: A sound file is missing.
        """
        return _digit(self._succeed("SAY DIGITS", digits, escape_digits).result)

    # --- how it is done

    def _exchange(self, name: str, *words: str) -> tuple[Reply, bytes]:
        line = encode_command(name, words, self._max_bytes)
        reply = self._dialogue.execute(line)
        if reply.code != 200:
            _raise_for(reply, line)
        return reply, line

    def _command(self, name: str, *words: str) -> Reply:
        return self._exchange(name, *words)[0]

    def _succeed(self, name: str, *words: str) -> Reply:
        reply, line = self._exchange(name, *words)
        self._check(reply, line)
        return reply

    def _check(self, reply: Reply, line: bytes) -> None:
        """Tell a hangup from a failure: both come as -1, but HANGUP follows only the one."""
        if reply.result == "-1":
            self._dialogue.await_hangup()
            raise AGICommandFailed("Asterisk answered -1", _shown(line))

    def _value(self, name: str, *words: str) -> str | None:
        reply = self._command(name, *words)
        return (reply.value or "") if reply.result == "1" else None


def _raise_for(reply: Reply, line: bytes) -> NoReturn:
    command = _shown(line)
    if reply.code == 511:
        raise AGIDeadChannel("not permitted on a channel that hung up (511)", command)
    if reply.code == 510:
        raise AGIInvalidCommand("Asterisk does not know this command (510)", command)
    if reply.code == 520:
        raise AGIUsageError("wrong syntax (520)", command, reply.text)
    raise AGIError(f"unexpected reply {reply.code} {reply.text}", command)


def _shown(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape").rstrip("\n")


def _digit(result: str) -> str:
    """Turn the character code that Asterisk gives for a digit into the digit; 0 is none."""
    return chr(int(result)) if result not in ("", "0") else ""


def _milliseconds(seconds: float) -> str:
    return str(max(0, round(seconds * 1000)))
