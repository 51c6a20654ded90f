"""FakeAsterisk: Asterisk's side of one AGI session without I/O, as true as it can be, weaknesses included.

With it a handler is tested without an Asterisk, and the server against what harms one.

Laws:
    * Bytes in, bytes out. Nothing here knows a socket, a clock or a handler; a caller's whole behaviour is
      written down beforehand in :class:`Behaviour`.
    * One line is run each time that bytes arrive, through a model of Asterisk's stdio buffer: what else came
      with it is left lying until more comes.
    * What a real Asterisk would suffer from is played as it would happen, and put down in
      :attr:`FakeAsterisk.faults`.

How it works: :meth:`FakeAsterisk.receive` puts bytes into what stands for the kernel's buffer. While that
holds any, one line is fetched from it through the stdio buffer, run as a command and answered, as in the loop
of run_agi(). What the commands do stands in :mod:`fastagi_pool.asterisk_commands`, what they do it to in
:mod:`fastagi_pool.asterisk_channel`.

Source: asterisk res/res_agi.c, run_agi(), agi_handle_command(), parse_args(), setup_env(); dialogues recorded
from Asterisk 16 and 22 (tests/corpus).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fastagi_pool.asterisk_channel import (
    HANGUP,
    AgiStatus,
    Behaviour,
    Caller,
    Channel,
    Hangup,
    decode,
    encode,
)
from fastagi_pool.asterisk_commands import Specification, find_command
from fastagi_pool.protocol import MAX_COMMAND_WORDS, max_command_bytes

__all__ = [
    "HANGUP",
    "AgiStatus",
    "Behaviour",
    "Caller",
    "Command",
    "FakeAsterisk",
    "Hangup",
    "environment",
    "split_words",
]

#: Most ``agi_arg_`` lines; the last one holds the rest. Source: seen with 16 and 22.
MAX_ARGUMENTS: Final = 127
#: What stdio reads from the kernel at a time. Source: st_blksize of a socket on Linux.
_STDIO_BYTES: Final = 4096

_HANGUP_LINE: Final = b"HANGUP\n"
_FAILURE: Final = b"failure"
_UNKNOWN: Final = "510 Invalid or unknown command"
_NOT_WHEN_DEAD: Final = "511 Command Not Permitted on a dead channel or intercept routine"
#: Fails without making AGISTATUS FAILURE. Source: handle_recordfile(), its beep missing.
_HARMLESS_FAILURE: Final = "(randomerror)"


@dataclass(frozen=True, slots=True)
class Command:
    """A line that Asterisk has run.

    Attributes:
        line: The line without its end.
        words: The line as Asterisk takes it apart.
        reply: What it answered, without the last line end; empty if it did not.
    """

    line: str
    words: tuple[str, ...]
    reply: str


def environment(
    url: str, arguments: Sequence[str] = (), caller: Caller | None = None, version: str = "22.10.1"
) -> str:
    """Write the environment that Asterisk sends for AGI(url,arguments...).

    Args:
        url: As in the dialplan: ``agi://127.0.0.1:4577/hello?x=1``.
        arguments: As in the dialplan behind the URL.
        caller: Who calls.
        version: The Asterisk's version.
    """
    caller = caller or Caller()
    script = url.partition("://")[2].partition("/")[2]
    values = {
        "network": "yes",
        **({"network_script": script} if script else {}),
        "request": url,
        "channel": caller.channel,
        "language": "en",
        "type": caller.channel.partition("/")[0],
        "uniqueid": caller.uniqueid,
        "version": version,
        "callerid": caller.number or "unknown",
        "calleridname": caller.name or "unknown",
        "callingpres": "0",
        "callingani2": "0",
        "callington": "0",
        "callingtns": "0",
        "dnid": "unknown",
        "rdnis": "unknown",
        "context": caller.context,
        "extension": caller.extension,
        "priority": "1",
        "enhanced": "0.0",
        "accountcode": "",
        "threadid": "140000000000000",
    }
    if len(arguments) > MAX_ARGUMENTS:
        arguments = [*arguments[: MAX_ARGUMENTS - 1], ",".join(arguments[MAX_ARGUMENTS - 1 :])]
    values.update({f"arg_{number}": argument for number, argument in enumerate(arguments, start=1)})
    return "".join(f"agi_{name}: {value}\n" for name, value in values.items()) + "\n"


def split_words(line: str) -> list[str]:
    """Split a command line as Asterisk does: quotes group, a backslash escapes any character.

    Source: parse_args() in res_agi.c.
    """
    words: list[str] = []
    word: str | None = None
    quoted = escaped = False
    for char in line:
        if escaped:
            word = (word or "") + char
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
            word = word or ""
        elif char in " \t" and not quoted:
            if word is not None:
                words.append(word)
                word = None
        else:
            word = (word or "") + char
    return words if word is None else [*words, word]


class FakeAsterisk:
    """Asterisk's side of one session.

    Whoever holds the connection writes what :meth:`begin` returns, then hands every segment that the server
    sends to :meth:`receive` and writes what that returns, until :attr:`ended`; when the server closes,
    :meth:`receive_eof` has the last word.

    Attributes:
        ended: Whether Asterisk has closed the connection.
        status: What the dialplan finds in AGISTATUS if the session ends now.
        commands: Every line that was run, in order; ``failure`` is none.
    """

    def __init__(
        self,
        request_url: str,
        arguments: Sequence[str] = (),
        caller: Caller | None = None,
        behaviour: Behaviour | None = None,
    ) -> None:
        """Prepare a session.

        Args:
            request_url: As in the dialplan: ``agi://127.0.0.1:4577/hello?x=1``.
            arguments: As in the dialplan behind the URL.
            caller: Who calls; by default Alice, and on a dead channel from the extension ``h``.
            behaviour: What happens on Asterisk's side; by default a patient caller who presses nothing.
        """
        behaviour = behaviour or Behaviour()
        caller = caller or Caller(extension="h" if behaviour.dead else "100")
        self.ended = False
        self.status = AgiStatus.SUCCESS
        self.commands: list[Command] = []
        self._environment = encode(environment(request_url, arguments, caller, behaviour.version))
        self._channel = Channel(caller, behaviour)
        self._hangup_after = behaviour.hangup_after
        self._replies = _ordered(behaviour)
        self._max_line_bytes = max_command_bytes(behaviour.version)
        # Asterisk looks these up once, before the environment.
        self._tells_hangup = not self._channel.is_false("AGISIGHUP")
        self._ends_on_hangup = self._channel.is_true("AGIEXITONHANGUP")
        self._faults: list[str] = []
        self._lying = ""
        self._kernel = b""
        self._stdio = b""
        self._line = b""
        self._cut = False
        self._spinning = False
        self._eof = False

    # --- what became of the call

    @property
    def variables(self) -> dict[str, str]:
        """The channel's variables, those that are inherited without their ``_``."""
        return self._channel.variables

    @property
    def database(self) -> dict[str, str]:
        """Asterisk's own database: ``family/key`` to value."""
        return self._channel.database

    @property
    def location(self) -> tuple[str, str, str]:
        """Context, extension and priority: AGI()'s own, or where a command has sent the channel."""
        channel = self._channel
        return channel.context, channel.extension, channel.priority

    @property
    def hung_up(self) -> bool:
        """Whether the caller is gone, or the server has hung up on him."""
        return self._channel.hung_up

    @property
    def console(self) -> list[str]:
        """What VERBOSE has written."""
        return self._channel.console

    @property
    def faults(self) -> list[str]:
        """What the server did that harms a real Asterisk, in words and in order; empty if all is well.

        Lines left lying are no fault if the server closes at once: then they are all run.
        """
        return [*self._faults, self._lying] if self._lying else list(self._faults)

    # --- the connection

    def begin(self) -> bytes:
        """Return what Asterisk writes first: the environment, and HANGUP if the caller is gone already."""
        return self._environment + (self.hang_up() if self._hangup_after == 0 else b"")

    def receive(self, data: bytes) -> bytes:
        """Take one segment from the server.

        Args:
            data: What one write of the server has brought.

        Returns:
            What Asterisk writes; empty if nothing.
        """
        if self.ended or not data:
            return b""
        if self._lying:
            self._faults.append(self._lying)
            self._lying = ""
        self._kernel += data
        written = self._run()
        if self._stdio and not self.ended and not self._cut:
            self._lying = (
                f"more than one line in a segment: {_shown(self._stdio)} is left lying until more comes"
            )
        return written

    def receive_eof(self) -> bytes:
        """Take note that the server has closed its side: what is buffered is run, then all ends.

        Returns:
            What Asterisk writes; the server need not read it.
        """
        if self.ended:
            return b""
        self._lying = ""
        self._eof = True
        return self._run()

    def hang_up(self) -> bytes:
        """Let the caller hang up now.

        Returns:
            What Asterisk writes: HANGUP, or nothing if the channel says so, had hung up before, or half a
            line keeps Asterisk from noticing.
        """
        if self.ended or self._channel.hung_up:
            return b""
        self._channel.hung_up = True
        return b"" if self._spinning else self._notice_hangup()

    # --- the loop of run_agi()

    def _run(self) -> bytes:
        written = bytearray()
        while not self.ended and (self._kernel or self._eof):
            line = self._fetch_line()
            if line is None:
                break
            written += self._on_line(line)
            written += self._notice_hangup()
        return bytes(written)

    def _notice_hangup(self) -> bytes:
        if self.ended or not self._channel.hung_up or self._channel.dead:
            return b""
        self._channel.dead = True
        if self.status is AgiStatus.SUCCESS:
            self.status = AgiStatus.HANGUP
        told = _HANGUP_LINE if self._tells_hangup else b""
        return told + self._end() if self._ends_on_hangup else told

    def _end(self) -> bytes:
        self.ended = True
        return _HANGUP_LINE if self._tells_hangup else b""

    def _on_line(self, line: bytes) -> bytes:
        if not line:
            return self._end()
        if line[: len(_FAILURE)].lower() == _FAILURE:
            self.status = AgiStatus.FAILURE
            return self._end()
        self._look_for_faults(line)
        command = self._obey(decode(line.removesuffix(b"\n")))
        self.commands.append(command)
        if len(self.commands) == self._hangup_after:
            self._channel.hung_up = True
        return encode(command.reply) + b"\n" if command.reply else b""

    # --- Asterisk's stdio buffer

    def _fetch_line(self) -> bytes | None:
        """Return the next line, or what fits of it; at the server's end the rest, or nothing.

        Returns:
            None while there is but half a line: Asterisk asks for the rest again and again.
        """
        while len(self._line) < self._max_line_bytes:
            got = self._fgets(self._max_line_bytes - len(self._line))
            at_eof = self._eof and not self._stdio and not self._kernel and not got.endswith(b"\n")
            # strlen() sees nothing behind a NUL, not even the line's end, so more is put in its place.
            kept, nul, _ = got.partition(b"\0")
            self._line += kept
            if nul and not self._spinning:
                self._spinning = True
                self._faults.append(f"a NUL byte: Asterisk loses the line's end and spins: {_shown(got)}")
            if at_eof or self._line.endswith(b"\n"):
                break
            if not got:
                self._spin()
                return None
        line, self._line, self._spinning = self._line, b"", False
        return line

    def _fgets(self, most: int) -> bytes:
        """Read up to a line's end or this many bytes, through the stdio buffer."""
        got = b""
        while len(got) < most and not got.endswith(b"\n") and (self._stdio or self._kernel):
            if not self._stdio:
                self._stdio, self._kernel = self._kernel[:_STDIO_BYTES], self._kernel[_STDIO_BYTES:]
            end = (self._stdio.find(b"\n") + 1) or len(self._stdio)
            end = min(end, most - len(got))
            got += self._stdio[:end]
            self._stdio = self._stdio[end:]
        return got

    def _spin(self) -> None:
        if not self._spinning:
            self._spinning = True
            self._faults.append(f"half a line: Asterisk spins until the rest comes: {_shown(self._line)}")

    # --- commands

    def _obey(self, line: str) -> Command:
        """Run one line as agi_handle_command() does."""
        words = split_words(line)[:MAX_COMMAND_WORDS]
        found = find_command(words)
        specification = None if found is None else found[1]
        self._channel.interrupted = bool(self._kernel) or self._eof
        reply = self.prescribed_reply(line, words)
        if reply is None:
            reply = self._reply(found, words)
        alive = not self._channel.hung_up or self._channel.dead
        failed = reply.startswith("200 result=-1") and _HARMLESS_FAILURE not in reply
        if specification is not None and specification.fails and failed and alive:
            # The failure was not because of a hangup.
            self.status = AgiStatus.FAILURE
        return Command(line, tuple(words), reply)

    def _reply(self, found: tuple[str, Specification] | None, words: Sequence[str]) -> str:
        if found is None:
            return _UNKNOWN
        name, specification = found
        if self._channel.dead and not specification.when_dead:
            return _NOT_WHEN_DEAD
        reply = specification.run(self._channel, words)
        if reply is not None:
            return reply
        return (
            "520-Invalid command syntax.  Proper usage follows:\n"
            f"Usage: {name} {specification.usage}\n"
            "520 End of proper usage."
        )

    def prescribed_reply(self, line: str, words: Sequence[str]) -> str | None:
        """Return what to answer instead of running the command; None to run it.

        Args:
            line: The line without its end.
            words: The line as Asterisk takes it apart.
        """
        lowered = tuple(word.lower() for word in words)
        for key, reply in self._replies:
            if lowered[: len(key)] == key:
                return reply
        return None

    def _look_for_faults(self, line: bytes) -> None:
        cut_before, self._cut = self._cut, len(line) == self._max_line_bytes and not line.endswith(b"\n")
        if self._cut and not cut_before:
            self._faults.append(
                f"a line of over {self._max_line_bytes} bytes: Asterisk runs it in pieces: {_shown(line)}"
            )
        if b"\r" in line:
            self._faults.append(f"a CR, which becomes part of a word: {_shown(line)}")
        text = decode(line)
        if not text.isascii() and not _is_utf8(line):
            self._faults.append(f"bytes that are not UTF-8: Asterisk logs an error for each: {_shown(line)}")
        if len(split_words(text)) > MAX_COMMAND_WORDS:
            self._faults.append(
                f"more than {MAX_COMMAND_WORDS} words: Asterisk drops the rest, or crashes: {_shown(line)}"
            )


def _ordered(behaviour: Behaviour) -> list[tuple[tuple[str, ...], str]]:
    """Return the prescribed replies by the words of their keys, the longest first."""
    replies = [(tuple(split_words(key.lower())), reply) for key, reply in behaviour.replies.items()]
    return sorted(replies, key=lambda item: -len(item[0]))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _shown(data: bytes) -> str:
    return repr(data[:60] + b"..." if len(data) > 60 else data)
