"""Call: what a handler holds. One method per AGI command, and nothing but the call itself.

Laws:
    * No I/O: a call hands complete lines to its :class:`Dialogue` and reads its replies.
    * A method returns what Asterisk answered or raises an :class:`~fastagi_pool.errors.AGIError`;
      it never returns a value that means "failed".
    * The end of the call is :class:`~fastagi_pool.errors.CallEnded`, outside ``Exception``.
    * Times are seconds, positions in a file are samples (8,000 to a second for narrow-band files).

Every method may raise, besides what it names:
    AGICommandRefused: An argument would harm Asterisk; nothing was sent.
    AGIDeadChannel: The channel hung up and the command needs a live one.
    AGIInvalidCommand, AGIUsageError: This Asterisk does not know the command in this form.
    AGICallFinished: :meth:`Call.finish` has given the call back.
    AGIError: The answer makes no sense for this command.
    CallEnded: The call is over.

Each method's ``Source`` is the command in ``agi show commands`` of Asterisk 22, and its ``handle_...``
function in res/res_agi.c (the speech commands: res/res_speech.c; all results recorded from Asterisk 22).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, NoReturn, Protocol, TypeAlias

from fastagi_pool import results
from fastagi_pool.errors import (
    AGIAppError,
    AGICommandFailed,
    AGICommandRefused,
    AGIDeadChannel,
    AGIError,
    AGIInvalidCommand,
    AGIUsageError,
    ToldFailure,
)
from fastagi_pool.protocol import (
    MAX_COMMAND_BYTES,
    UNKNOWN_COMMAND_REPLY,
    Reply,
    Request,
    clean,
    encode_command,
    join_arguments,
    leaves_open,
    line_fault,
    stays_whole,
)
from fastagi_pool.results import ChannelState, Digits, Playback, Recording, RecordingEnd, Speech

#: At this length a value may have been cut. Source: workspace of handle_getvariable() in res_agi.c.
_CUT_BYTES: Final = 1023
_LONGEST_CHARACTER_BYTES: Final = 4
#: No time-out. The 0 of the manual ends at once, in Asterisk 16 and 22.
_NO_TIMEOUT: Final = "-1"
#: How the one line begins that Asterisk takes for no command, but for a failure, in capitals or not.
#: Source: asterisk res/res_agi.c, agi_handle_command() and run_agi().
_FAILURE: Final = b"failure"
#: A moment: a datetime (a naive one is local time) or seconds since the epoch.
Moment: TypeAlias = datetime | float


class Dialogue(Protocol):
    """Whoever carries command lines to Asterisk and its replies back."""

    def execute(self, line: bytes) -> Reply:
        """Send one line and wait for its reply."""

    def await_hangup(self) -> None:
        """Give the HANGUP that may follow a result of -1 a moment to arrive; raise it if it does."""

    def finish(self) -> None:
        """Close the connection: to the dialplan, a success."""

    @property
    def hung_up(self) -> bool:
        """Whether HANGUP was seen."""

    def exchange(self, line: bytes) -> bytes:
        """Send one line and wait for its reply; return that as it came, with all that came before it.

        Unlike ``execute`` it never raises CallHangup: whoever listens is told instead. HANGUP that came
        together with the reply may stand behind it.
        """

    def listen(self, on_unasked: Callable[[bytes], None]) -> None:
        """From now on tell of what Asterisk says unasked: HANGUP, whenever it comes, or has come before.

        While a command runs, HANGUP is told of too, but its bytes come with the reply; then the argument is
        empty. It lasts until the call ends or ``execute`` is used again.

        Args:
            on_unasked: Called with the bytes, in gevent's hub or inside of ``listen`` and ``exchange``: must
                neither wait nor raise.
        """


class FarEnd(Protocol):
    """Whoever speaks AGI in the place of a handler: a legacy script, another server."""

    def next_line(self) -> bytes:
        """Wait for its next command line, and return it with its line end; nothing if it has said all."""

    def answer(self, reply: bytes) -> None:
        """Hand it the reply to that line, as Asterisk gave it."""

    def on_unasked(self, data: bytes) -> None:
        """Hear that Asterisk said HANGUP; see ``Dialogue.listen``. Must neither wait nor raise.

        What it says may be heard more than once.
        """


class Call:
    """One call, for as long as its handler runs.

    Attributes:
        request: What Asterisk said about the call at its start.
        captures: What the route's pattern caught: named groups by name, others ``"1"``, ``"2"``...
        ref: The reference under which the logs know this call.
        refused: Number of commands that the guard did not let out.
        received_s: Wall clock time, in seconds since 1970, at which the call came. In a call from the journal
            that is long ago, and what the handler writes shall say so.
        deferrable: Whether the handler will be run again, from the journal, if it raises
            ``DatabaseUnavailable`` or ``DatabaseBusy`` now.
        deferred: Whether this is such a run: Asterisk is gone, and commands are answered by nobody.
        begun_before: Whether an earlier run of this call had begun, so that some of it may have been done.
    """

    __slots__ = (
        "_clean",
        "_dialogue",
        "_max_bytes",
        "begun_before",
        "captures",
        "deferrable",
        "deferred",
        "received_s",
        "ref",
        "refused",
        "request",
    )

    def __init__(
        self,
        request: Request,
        dialogue: Dialogue,
        captures: Mapping[str, str] | None = None,
        ref: str = "",
        max_command_bytes: int = MAX_COMMAND_BYTES,
        clean_arguments: bool = False,
        received_s: float | None = None,
        deferrable: bool = False,
        deferred: bool = False,
        begun_before: bool = False,
    ) -> None:
        """Put the parts together.

        Args:
            request: What Asterisk said about the call.
            dialogue: Carries the lines.
            captures: What the route's pattern caught.
            ref: The reference for the logs.
            max_command_bytes: The longest line that this Asterisk reads in one piece.
            clean_arguments: Whether line ends and NUL in arguments become spaces; otherwise such a
                command is refused.
            received_s: Wall clock time at which the call came; None for now.
            deferrable: Whether it will be run again if its database is away.
            deferred: Whether it runs from the journal.
            begun_before: Whether an earlier run had begun.
        """
        self.request = request
        self.captures = captures or {}
        self.ref = ref
        self.refused = 0
        self.received_s = time.time() if received_s is None else received_s
        self.deferrable = deferrable
        self.deferred = deferred
        self.begun_before = begun_before
        self._dialogue = dialogue
        self._max_bytes = max_command_bytes
        self._clean = clean_arguments

    @property
    def hung_up(self) -> bool:
        """Whether the caller is known to have hung up."""
        return self._dialogue.hung_up

    def finish(self) -> None:
        """Give the call back to the dialplan now; the handler goes on without it.

        For work that the caller need not wait for, such as logging a hangup. To the dialplan the
        script has ended well, whatever happens afterwards; from now on every command raises
        ``AGICallFinished``. The script's time limit still holds. A second time nothing happens.
        """
        self._dialogue.finish()

    def relay(self, far_end: FarEnd) -> None:
        """Let somebody else speak in the handler's place until it has said all: for handlers that do so.

        Its lines go to Asterisk as they are, each when the one before has been answered, and replies come
        back as they are. A line that would harm Asterisk is not sent, but answered as an unknown command, so
        that the far end stays in step; it counts as ``refused``.

        Args:
            far_end: Who speaks.

        Raises:
            ToldFailure: It said the line by which AGI tells a failure; Asterisk has not been told.
        """
        self._dialogue.listen(far_end.on_unasked)
        while line := far_end.next_line():
            if line[: len(_FAILURE)].lower() == _FAILURE:
                raise ToldFailure(line)
            if line_fault(line, self._max_bytes):
                self.refused += 1
                far_end.answer(UNKNOWN_COMMAND_REPLY)
            else:
                far_end.answer(self._dialogue.exchange(line))

    def raw(self, command: str, *arguments: str) -> Reply:
        """Send any command, and return its reply as it is.

        Args:
            command: The command's own words, as ``GET VARIABLE``; sent as they are.
            arguments: Its arguments; quoted where needed.

        Returns:
            A reply of code 200, whatever its result.
        """
        if command.lstrip()[: len(_FAILURE)].lower() == _FAILURE.decode():
            self.refused += 1
            raise AGICommandRefused("a line that begins with 'failure' ends the session", command)
        if arguments and leaves_open(command):
            self.refused += 1
            raise AGICommandRefused("a quote that is left open would take in the arguments", command)
        return self._exchange(command, *arguments)[0]

    # --- the channel

    def answer(self) -> None:
        """Answer the channel; nothing happens if it is answered already.

        Takes up to 0.5 s when the caller sends no audio.

        Raises:
            AGICommandFailed: The channel could not be answered.

        Source: ``ANSWER``
        """
        self._succeed("ANSWER")

    def hangup(self, channel: str = "") -> None:
        """Hang up this channel, or another one by name.

        Args:
            channel: A channel's name; empty for the call's own.

        Raises:
            AGICommandFailed: There is no such channel.

        Source: ``HANGUP``
        """
        reply, line = self._exchange("HANGUP", *([channel] if channel else []))
        if reply.result != "1":
            raise AGICommandFailed("no such channel", _shown(line))

    def channel_status(self, channel: str = "") -> ChannelState:
        """Return the state of this channel, or of another one by name.

        Args:
            channel: A channel's name; empty for the call's own.

        Raises:
            AGICommandFailed: There is no such channel.

        Source: ``CHANNEL STATUS``
        """
        reply, line = self._succeed("CHANNEL STATUS", *([channel] if channel else []))
        return results.channel_state(reply, line)

    def set_autohangup(self, after_s: float) -> None:
        """Have Asterisk hang up this channel after a time.

        Args:
            after_s: How long from now, in whole seconds (rounded up); 0 takes it back.

        Source: ``SET AUTOHANGUP``
        """
        self._command("SET AUTOHANGUP", str(max(0, math.ceil(after_s))))

    def set_callerid(self, number: str, name: str = "") -> None:
        """Set the caller's number and name.

        Args:
            number: The number.
            name: The name; if it is empty, Asterisk reads ``number`` as it reads any caller id, so that
                ``"Alice" <100>`` sets both.

        Source: ``SET CALLERID``
        """
        if name:
            escaped = name.replace("\\", "\\\\").replace('"', '\\"')
            number = f'"{escaped}" <{number}>'
        self._command("SET CALLERID", number)

    def set_music(self, on: bool = True, music_class: str = "") -> None:
        """Start or stop music on hold.

        Args:
            on: Whether to start it.
            music_class: Which music; empty for the channel's own.

        Source: ``SET MUSIC``
        """
        self._command("SET MUSIC", "on" if on else "off", *([music_class] if music_class else []))

    def tdd_mode(self, mode: str) -> bool:
        """Switch a telecommunications device for the deaf on or off.

        Args:
            mode: ``on``, ``off`` or ``mate``.

        Returns:
            Whether the channel can do it.

        Source: ``TDD MODE``
        """
        reply, _ = self._succeed("TDD MODE", mode)
        return reply.result == "1"

    # --- where the dialplan goes on

    def set_context(self, context: str) -> None:
        """Say in which context the dialplan goes on when the script has ended.

        Source: ``SET CONTEXT``
        """
        self._command("SET CONTEXT", context)

    def set_extension(self, extension: str) -> None:
        """Say at which extension the dialplan goes on when the script has ended.

        Source: ``SET EXTENSION``
        """
        self._command("SET EXTENSION", extension)

    def set_priority(self, priority: int | str) -> None:
        """Say at which priority the dialplan goes on when the script has ended.

        Args:
            priority: A number, or a label of the extension.

        Raises:
            AGIUsageError: There is no such label. After a number Asterisk does not look.

        Source: ``SET PRIORITY``
        """
        self._command("SET PRIORITY", str(priority))

    def gosub(self, context: str, extension: str, priority: int | str = 1, *arguments: str) -> None:
        """Run a subroutine of the dialplan and wait until it returns.

        What it returns is in the variable ``GOSUB_RETVAL``.

        Args:
            context: The subroutine's context.
            extension: Its extension.
            priority: A number, or a label.
            arguments: ``ARG1`` and following. A single one is taken as it is, commas and all.

        Raises:
            AGICommandFailed: There is no such place in the dialplan.
            AGICommandRefused: One of several arguments holds a comma, or opens a quote or a bracket and
                does not close it: GOSUB knows no escape. Set a variable instead.

        Source: ``GOSUB``
        """
        words = [context, extension, str(priority)]
        if arguments:
            if len(arguments) > 1 and not all(map(stays_whole, arguments)):
                self.refused += 1
                raise AGICommandRefused("GOSUB would take an argument apart", repr(arguments))
            words.append(",".join(arguments))
        self._succeed("GOSUB", *words)

    # --- talking to the Asterisk console

    def verbose(self, text: str, level: int = 1) -> None:
        """Write a line to Asterisk's console and log.

        Args:
            text: The message.
            level: 1 to 4: shown when the console's verbosity is at least this.

        Source: ``VERBOSE``
        """
        self._command("VERBOSE", text, str(level))

    def noop(self, text: str = "") -> None:
        """Do nothing; the text appears in ``agi set debug on``.

        Source: ``NOOP``
        """
        self._command("NOOP", *([text] if text else []))

    def asyncagi_break(self) -> None:
        """End an AsyncAGI session. In a FastAGI session Asterisk answers and does nothing.

        Source: ``ASYNCAGI BREAK``
        """
        self._command("ASYNCAGI BREAK")

    # --- variables

    def get_variable(self, name: str) -> str | None:
        """Return a channel variable, or None if it is not set.

        Asterisk cuts the value at 1,023 bytes without notice; one of that length is asked for again by
        GET FULL VARIABLE, which gives it whole.

        Args:
            name: The name alone, as ``EXTEN``; functions as ``CALLERID(num)`` work too.

        Source: ``GET VARIABLE``
        """
        value = self._value("GET VARIABLE", name)
        if value is None or len(value) < _CUT_BYTES // _LONGEST_CHARACTER_BYTES:
            return value
        whole = len(value.encode("utf-8", "surrogateescape")) < _CUT_BYTES
        return value if whole else self._value("GET FULL VARIABLE", f"${{{name}}}")

    def get_full_variable(self, expression: str, channel: str = "") -> str | None:
        """Return an expression after Asterisk has put in the variables and functions.

        Args:
            expression: As in the dialplan: ``${CALLERID(num)}-${EXTEN}``.
            channel: Whose variables; empty for the call's own.

        Returns:
            The value; empty, not None, for a variable that is not set. None if there is no such
            channel.

        Source: ``GET FULL VARIABLE``
        """
        return self._value("GET FULL VARIABLE", expression, *([channel] if channel else []))

    def set_variable(self, name: str, value: str) -> None:
        """Set a channel variable.

        Args:
            name: ``NAME``; ``_NAME`` is inherited by the next channel, ``__NAME`` by all.
            value: The value, taken as it is: ``${...}`` is not expanded.

        Source: ``SET VARIABLE``
        """
        self._command("SET VARIABLE", name, value)

    # --- Asterisk's own database

    def database_get(self, family: str, key: str) -> str | None:
        """Return a value of Asterisk's database (AstDB), or None if there is none.

        Source: ``DATABASE GET``
        """
        return self._value("DATABASE GET", family, key)

    def database_put(self, family: str, key: str, value: str) -> None:
        """Write a value into Asterisk's database.

        Raises:
            AGICommandFailed: Asterisk could not write it.

        Source: ``DATABASE PUT``
        """
        reply, line = self._exchange("DATABASE PUT", family, key, value)
        if reply.result != "1":
            raise AGICommandFailed("Asterisk could not write it", _shown(line))

    def database_del(self, family: str, key: str) -> None:
        """Delete a value of Asterisk's database. Asterisk does not say whether there was one.

        Source: ``DATABASE DEL``
        """
        self._command("DATABASE DEL", family, key)

    def database_deltree(self, family: str, keytree: str = "") -> bool:
        """Delete a family of Asterisk's database, or a part of it; return whether there was anything.

        Args:
            family: The family.
            keytree: The beginning of the keys; empty for all.

        Source: ``DATABASE DELTREE``
        """
        words = (family, keytree) if keytree else (family,)
        # The reverse of what its manual says, in Asterisk 16 and 22 alike.
        return self._command("DATABASE DELTREE", *words).result == "0"

    # --- applications

    def exec(self, application: str, *arguments: str) -> int:
        """Run a dialplan application and wait for its end.

        Args:
            application: Its name, as ``Dial``.
            arguments: Its arguments. One is taken as it is, commas and all, as in the dialplan:
                ``exec("Set", "LIST=a,b")``. Several are joined by commas and escaped, so that
                Asterisk finds the same ones again: ``exec("Dial", "PJSIP/100", "30", "tT")``.

        Returns:
            What the application returned: 0 when the dialplan would go on.

        Raises:
            AGIAppError: Asterisk has no such application.
            AGICommandFailed: The application returned -1 without a hangup.

        Source: ``EXEC``
        """
        words = (application, join_arguments(arguments)) if arguments else (application,)
        reply, line = self._exchange("EXEC", *words)
        if reply.result == "-2":
            raise AGIAppError("Asterisk has no such application", _shown(line))
        self._check(reply, line)
        return results.whole_number(reply, line)

    # --- sound and digits

    def stream_file(self, name: str, escape_digits: str = "", offset: int = 0) -> Playback:
        """Play a sound file.

        Args:
            name: The file without its ending, below Asterisk's folder of sounds.
            escape_digits: Digits that interrupt it.
            offset: The sample to begin at.

        Raises:
            AGICommandFailed: There is no such file, or it cannot be played.

        Source: ``STREAM FILE``
        """
        words = (name, escape_digits, str(offset)) if offset else (name, escape_digits)
        reply, line = self._succeed("STREAM FILE", *words)
        return results.playback(reply, line)

    def control_stream_file(
        self,
        name: str,
        escape_digits: str = "",
        skip_s: float = 3.0,
        forward: str = "#",
        rewind: str = "*",
        pause: str = "",
        offset_s: float = 0.0,
    ) -> Playback:
        """Play a sound file that the caller can wind and pause.

        Args:
            name: The file without its ending.
            escape_digits: Digits that end it.
            skip_s: How far one press winds.
            forward: The digit that winds forward.
            rewind: The digit that winds back.
            pause: The digit that pauses and goes on; empty for none.
            offset_s: Where to begin.

        The keys for winding and pausing come first: an escape digit that is one of them does not end it.

        Returns:
            How it ended; ``endpos`` is in milliseconds here, and -1 if it was played to its end.

        Raises:
            AGICommandFailed: There is no such file, or it cannot be played.

        Source: ``CONTROL STREAM FILE``
        """
        words = [name, escape_digits, _milliseconds(skip_s), forward, rewind, pause]
        if offset_s:
            words.append(_milliseconds(offset_s))
        reply, line = self._succeed("CONTROL STREAM FILE", *words)
        return results.playback(reply, line)

    def get_data(self, name: str, timeout_s: float | None = None, max_digits: int | None = None) -> Digits:
        """Play a sound file and collect digits; ``#`` ends them.

        Args:
            name: The file without its ending.
            timeout_s: The longest pause before a digit; None leaves it to Asterisk (6 s). Less than
                a millisecond counts as one, because Asterisk takes 0 for its own 6 s.
            max_digits: Return after this many; None leaves it to Asterisk (1,024).

        Raises:
            AGICommandFailed: The file could not be played.

        Source: ``GET DATA``
        """
        words = [name]
        if timeout_s is not None or max_digits is not None:
            words.append("0" if timeout_s is None else _milliseconds(max(timeout_s, 0.001)))
        if max_digits is not None:
            words.append(str(max_digits))
        reply, _ = self._succeed("GET DATA", *words)
        return Digits(reply.result, reply.value == "timeout")

    def get_option(self, name: str, escape_digits: str, timeout_s: float | None = None) -> Playback:
        """Play a sound file and wait for one of some digits, also after its end.

        Args:
            name: The file without its ending.
            escape_digits: The digits.
            timeout_s: How long to wait after the file; None leaves it to Asterisk (5 s).

        Returns:
            The digit, empty if the time ran out, and the sample at which it came.

        Raises:
            AGICommandFailed: The file could not be played.

        Source: ``GET OPTION``
        """
        words = [name, escape_digits]
        if timeout_s is not None:
            words.append(_milliseconds(timeout_s))
        reply, line = self._succeed("GET OPTION", *words)
        return results.playback(reply, line)

    def wait_for_digit(self, timeout_s: float | None = None) -> str:
        """Wait for one digit.

        Args:
            timeout_s: How long; None for ever.

        Returns:
            The digit; empty when the time ran out.

        Raises:
            AGICommandFailed: The channel cannot be read.

        Source: ``WAIT FOR DIGIT``
        """
        timeout = _NO_TIMEOUT if timeout_s is None else _milliseconds(timeout_s)
        return self._digit("WAIT FOR DIGIT", timeout)

    def record_file(
        self,
        name: str,
        file_format: str = "wav",
        escape_digits: str = "",
        timeout_s: float | None = None,
        offset: int = 0,
        beep: bool = False,
        silence_s: float = 0,
    ) -> Recording:
        """Record what the caller says.

        Args:
            name: The file without its ending; relative to Asterisk's folder of sounds.
            file_format: Its format and ending.
            escape_digits: Digits that end it.
            timeout_s: The longest recording; None for no limit.
            offset: The sample to begin at, in a file that exists.
            beep: Whether to say first that it begins.
            silence_s: Ends after so much silence, in whole seconds (rounded up); 0 for never.

        Returns:
            How it ended. A caller who hangs up raises ``CallHangup`` like everywhere, and on a route with
            ``on_hangup: continue`` gives ``RecordingEnd.HANGUP``; what was recorded is kept.

        Raises:
            AGICommandFailed: The file cannot be written or the channel not read.

        Source: ``RECORD FILE``
        """
        words = [name, file_format, escape_digits, "-1" if timeout_s is None else _milliseconds(timeout_s)]
        if offset:
            words.append(str(offset))
        if beep:
            words.append("BEEP")
        if silence_s:
            words.append(f"s={math.ceil(silence_s)}")
        reply, line = self._exchange("RECORD FILE", *words)
        if reply.result == "-1":
            self._dialogue.await_hangup()
            if reply.value != RecordingEnd.HANGUP.value:
                raise self._failure(line)
        return results.recording(reply, line)

    # --- saying

    def say_number(self, number: int, escape_digits: str = "", gender: str = "") -> str:
        """Say a number.

        Args:
            number: The number.
            escape_digits: Digits that interrupt it.
            gender: ``f``, ``m``, ``n`` or ``c``, for languages in which it matters.

        Returns:
            The digit that interrupted it; empty if none did.

        Raises:
            AGICommandFailed: A sound file is missing. Of dates and times too; but letters and single
                digits without a file are passed over in silence.

        Source: ``SAY NUMBER``
        """
        return self._digit("SAY NUMBER", str(number), escape_digits, *([gender] if gender else []))

    def say_digits(self, digits: str, escape_digits: str = "") -> str:
        """Say digits one by one.

        ``escape_digits``, result and errors as with :meth:`say_number`.

        Source: ``SAY DIGITS``
        """
        return self._digit("SAY DIGITS", digits, escape_digits)

    def say_alpha(self, text: str, escape_digits: str = "") -> str:
        """Spell a text.

        ``escape_digits``, result and errors as with :meth:`say_number`.

        Source: ``SAY ALPHA``
        """
        return self._digit("SAY ALPHA", text, escape_digits)

    def say_phonetic(self, text: str, escape_digits: str = "") -> str:
        """Spell a text by the phonetic alphabet.

        ``escape_digits``, result and errors as with :meth:`say_number`.

        Source: ``SAY PHONETIC``
        """
        return self._digit("SAY PHONETIC", text, escape_digits)

    def say_date(self, moment: Moment, escape_digits: str = "") -> str:
        """Say the date of a moment, in Asterisk's time zone.

        ``escape_digits``, result and errors as with :meth:`say_number`.

        Source: ``SAY DATE``
        """
        return self._digit("SAY DATE", _epoch(moment), escape_digits)

    def say_time(self, moment: Moment, escape_digits: str = "") -> str:
        """Say the time of day of a moment, in Asterisk's time zone.

        ``escape_digits``, result and errors as with :meth:`say_number`.

        Source: ``SAY TIME``
        """
        return self._digit("SAY TIME", _epoch(moment), escape_digits)

    def say_datetime(
        self, moment: Moment, escape_digits: str = "", date_format: str = "", time_zone: str = ""
    ) -> str:
        """Say a moment by a format.

        Result and errors as with :meth:`say_number`.

        Args:
            moment: The moment.
            escape_digits: Digits that interrupt it.
            date_format: As in Asterisk's voicemail.conf, for example ``ABdY 'digits/at' IMp``, which is
                the default.
            time_zone: As ``Europe/Berlin``; empty for Asterisk's own. Needs a format.

        Source: ``SAY DATETIME``
        """
        if time_zone and not date_format:
            date_format = "ABdY 'digits/at' IMp"
        words = [word for word in (date_format, time_zone) if word]
        return self._digit("SAY DATETIME", _epoch(moment), escape_digits, *words)

    # --- text and pictures

    def receive_char(self, timeout_s: float | None = None) -> str:
        """Wait for a character from a channel that carries text; most do not.

        Args:
            timeout_s: How long; None for ever.

        Returns:
            The character; of one that takes several bytes the first.

        Raises:
            AGICommandFailed: The time ran out, or the channel carries no text.

        Source: ``RECEIVE CHAR``
        """
        return self._digit("RECEIVE CHAR", _NO_TIMEOUT if timeout_s is None else _milliseconds(timeout_s))

    def receive_text(self, timeout_s: float | None = None) -> str:
        """Wait for a text from a channel that carries text.

        Args:
            timeout_s: How long; None for ever.

        Raises:
            AGICommandFailed: The time ran out, or the channel carries no text.

        Source: ``RECEIVE TEXT``
        """
        timeout = _NO_TIMEOUT if timeout_s is None else _milliseconds(timeout_s)
        return self._succeed("RECEIVE TEXT", timeout)[0].value or ""

    def send_text(self, text: str) -> None:
        """Send a text to a channel that carries text; others ignore it.

        Raises:
            AGICommandFailed: It could not be sent.

        Source: ``SEND TEXT``
        """
        self._succeed("SEND TEXT", text)

    def send_image(self, name: str) -> None:
        """Send a picture to a channel that carries them; others ignore it.

        Args:
            name: The file without its ending, below Asterisk's folder of pictures.

        Raises:
            AGICommandFailed: It could not be sent.

        Source: ``SEND IMAGE``
        """
        self._succeed("SEND IMAGE", name)

    # --- speech

    def speech_create(self, engine: str = "") -> None:
        """Make ready to recognise speech on this channel.

        Args:
            engine: The engine's name; empty for Asterisk's default.

        Raises:
            AGICommandFailed: There is no such engine.

        Source: ``SPEECH CREATE``
        """
        self._speech("SPEECH CREATE", engine)

    def speech_set(self, name: str, value: str) -> None:
        """Change a setting of the speech engine.

        Raises:
            AGICommandFailed: There is no speech object, or it cannot do that.

        Source: ``SPEECH SET``
        """
        self._speech("SPEECH SET", name, value)

    def speech_destroy(self) -> None:
        """Free what :meth:`speech_create` took.

        Raises:
            AGICommandFailed: There is no speech object, or it cannot do that.

        Source: ``SPEECH DESTROY``
        """
        self._speech("SPEECH DESTROY")

    def speech_load_grammar(self, name: str, path: str) -> None:
        """Load a grammar.

        Args:
            name: What to call it.
            path: The file, on Asterisk's machine.

        Raises:
            AGICommandFailed: There is no speech object, or it cannot do that.

        Source: ``SPEECH LOAD GRAMMAR``
        """
        self._speech("SPEECH LOAD GRAMMAR", name, path)

    def speech_unload_grammar(self, name: str) -> None:
        """Forget a grammar.

        Raises:
            AGICommandFailed: There is no speech object, or it cannot do that.

        Source: ``SPEECH UNLOAD GRAMMAR``
        """
        self._speech("SPEECH UNLOAD GRAMMAR", name)

    def speech_activate_grammar(self, name: str) -> None:
        """Listen for the words of a grammar.

        Raises:
            AGICommandFailed: There is no speech object, or it cannot do that.

        Source: ``SPEECH ACTIVATE GRAMMAR``
        """
        self._speech("SPEECH ACTIVATE GRAMMAR", name)

    def speech_deactivate_grammar(self, name: str) -> None:
        """Listen for the words of a grammar no more.

        Raises:
            AGICommandFailed: There is no speech object, or it cannot do that.

        Source: ``SPEECH DEACTIVATE GRAMMAR``
        """
        self._speech("SPEECH DEACTIVATE GRAMMAR", name)

    def speech_recognize(self, prompt: str, timeout_s: float, offset: int = 0) -> Speech:
        """Play a sound file and listen for speech or a digit.

        Args:
            prompt: The file without its ending.
            timeout_s: How long to listen, in whole seconds (rounded up); 0 for no limit.
            offset: The sample to begin at.

        Raises:
            AGICommandFailed: There is no speech object, or the file could not be played.

        Source: ``SPEECH RECOGNIZE``
        """
        words = [prompt, str(max(0, math.ceil(timeout_s))), *([str(offset)] if offset else [])]
        reply, line = self._exchange("SPEECH RECOGNIZE", *words)
        self._check(reply, line)
        if reply.result == "0":
            raise AGICommandFailed("Asterisk could not listen for speech", _shown(line))
        return results.speech(reply, line)

    # --- how it is done

    def _exchange(self, name: str, *words: str) -> tuple[Reply, bytes]:
        if self._clean:
            words = tuple(map(clean, words))
        try:
            line = encode_command(name, words, self._max_bytes)
        except AGICommandRefused:
            self.refused += 1
            raise
        reply = self._dialogue.execute(line)
        if reply.code != 200:
            _raise_for(reply, line)
        return reply, line

    def _command(self, name: str, *words: str) -> Reply:
        return self._exchange(name, *words)[0]

    def _succeed(self, name: str, *words: str) -> tuple[Reply, bytes]:
        reply, line = self._exchange(name, *words)
        self._check(reply, line)
        return reply, line

    def _check(self, reply: Reply, line: bytes) -> None:
        """Tell a hangup from a failure: both come as -1, but HANGUP follows only the one."""
        if reply.result == "-1":
            self._dialogue.await_hangup()
            raise self._failure(line)

    def _failure(self, line: bytes) -> AGIError:
        """What a -1 means that was no hangup, or one that was told before."""
        if self._dialogue.hung_up:
            return AGIDeadChannel("the caller hung up", _shown(line))
        return AGICommandFailed("Asterisk answered -1", _shown(line))

    def _digit(self, name: str, *words: str) -> str:
        reply, line = self._succeed(name, *words)
        return results.character(reply, line)

    def _speech(self, name: str, *words: str) -> None:
        reply, line = self._exchange(name, *words)
        self._check(reply, line)
        if reply.result != "1":
            raise AGICommandFailed("Asterisk could not do that with its speech engine", _shown(line))

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


def _milliseconds(seconds: float) -> str:
    return str(max(0, round(seconds * 1000)))


def _epoch(moment: Moment) -> str:
    return str(int(moment.timestamp() if isinstance(moment, datetime) else moment))


def carry_by(call: Call, dialogue: Dialogue) -> None:
    """Have a call's lines carried by another dialogue from its next command on, to follow it from outside."""
    call._dialogue = dialogue
