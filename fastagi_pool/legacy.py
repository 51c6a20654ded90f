"""Legacy: what a script of Asterisk's own kind is given, and what may be expected of it.

Laws:
    * A script that ran under Asterisk finds here what it found there: the same lines on its standard input,
      the same arguments, the same variables about Asterisk's folders.
    * What a caller chose fills names into the path of a script, once, and is never read as a pattern itself.
    * Whatever a script says is bounded: each line, and all of it.

How it works: all of this is pure. ``handlers.scripts`` finds the file and carries the bytes.

Source: asterisk res/res_agi.c, launch_script(), setup_env() and run_agi().
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from fastagi_pool.errors import LimitExceeded, ScriptFailed, ScriptNotFound
from fastagi_pool.launching import ProcessSettings
from fastagi_pool.protocol import Request

#: A command line that is longer is none: Asterisk itself takes 8,191 bytes at most.
LONGEST_LINE_BYTES: Final = 65536
#: What a script says on its standard error without ever ending a line is logged in pieces of this size.
LONGEST_ERROR_BYTES: Final = 8192
#: What each of its lines counts for at least: what stands around it in the log is longer than that, and a
#: flood of tiny lines would keep the log, and who writes it, busy for long.
LEAST_ERROR_BYTES: Final = 100
#: The folders of Debian's Asterisk, as it tells them to its scripts.
#: Source: launch_script() in res_agi.c; /etc/asterisk/asterisk.conf of Debian's package.
AST_VARIABLES: Final[Mapping[str, str]] = {
    "AST_CONFIG_DIR": "/etc/asterisk",
    "AST_CONFIG_FILE": "/etc/asterisk/asterisk.conf",
    "AST_MODULE_DIR": "/usr/lib/asterisk/modules",
    "AST_SPOOL_DIR": "/var/spool/asterisk",
    "AST_MONITOR_DIR": "/var/spool/asterisk/monitor",
    "AST_VAR_DIR": "/var/lib/asterisk",
    "AST_DATA_DIR": "/usr/share/asterisk",
    "AST_LOG_DIR": "/var/log/asterisk",
    "AST_AGI_DIR": "/usr/share/asterisk/agi-bin",
    "AST_KEY_DIR": "/usr/share/asterisk/keys",
    "AST_RUN_DIR": "/var/run/asterisk",
}
#: What Asterisk says to a server, and never to a script of its own. Source: launch_netscript() in res_agi.c.
_NOT_FOR_SCRIPTS: Final = frozenset({"agi_network", "agi_network_script"})
_ARGUMENT: Final = "agi_arg_"
#: What Asterisk takes for a no. Source: ast_false() in main/utils.c.
_FALSE: Final = frozenset({"no", "false", "n", "f", "0", "off"})
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_SLASHES = re.compile("//+")
_HANGUP_BEFORE = re.compile(rb"\A((?:1[0-9]{2} [^\n]*\n)*)(?:HANGUP\n)+")
_HANGUP_BEHIND = re.compile(rb"(?:(?<=\n)|\A)(?:HANGUP\n)+\Z")
_VARIABLE_NAME = re.compile(r"AGI_\w+", re.ASCII)


@dataclass(frozen=True, slots=True)
class CommandSettings:
    """How the scripts of one route are found and run.

    Attributes:
        template: Path of the script; ``{script}`` stands for the script's name in the URL, ``{name}`` and
            ``{1}`` for what the route's pattern caught.
        folder: Only files below it are run, wherever links lead.
        process: How its processes are run.
        arguments: What every call's script gets instead of the call's arguments; None for the call's own.
        most_processes: How many run at once, in one worker.
        max_queue: How many calls may wait for one of these places, in one worker; 0 for none.
        max_wait_s: How long each may.
        grace_s: How long a script may go on after SIGHUP, before SIGKILL; 0 for not at all.
        output_bytes: How much a script may say, on its standard output and on its standard error each; 0 for
            no limit.
        fixed_script: The one script name that the route takes; None if it takes several.

    The reasons of the defaults stand where operators read them: ``routeconfig.Process``.
    """

    template: str
    folder: str
    process: ProcessSettings = field(default_factory=ProcessSettings)
    arguments: tuple[str, ...] | None = None
    most_processes: int = 100
    max_queue: int = 100
    max_wait_s: float = 5.0
    grace_s: float = 10.0
    output_bytes: int = 1 << 20
    fixed_script: str | None = None

    @property
    def fixed_file(self) -> str:
        """The path of the script that every call of the route runs; empty if they run several."""
        open_parts = set(placeholders(self.template))
        if not open_parts:
            return _plain(self.template)
        return self.path(self.fixed_script, {}) if self.fixed_script and open_parts == {"script"} else ""

    def path(self, script: str, captures: Mapping[str, str]) -> str:
        """Fill the template.

        Args:
            script: The script's name in the URL.
            captures: What the route's pattern caught.

        Raises:
            ScriptNotFound: The pattern caught nothing for one of the names.
        """

        def fill(found: re.Match[str]) -> str:
            name = found[1]
            value = script if name == "script" else captures.get(name)
            if value is None:
                raise ScriptNotFound(f"{self.template}: the route's pattern has caught no {{{name}}}")
            return value

        return _plain(_PLACEHOLDER.sub(fill, self.template))


def with_asterisk_folders(process: ProcessSettings) -> ProcessSettings:
    """Add what Asterisk tells its scripts of its folders to the environment; what is there already wins."""
    return replace(process, environment={**AST_VARIABLES, **process.environment})


def _plain(path: str) -> str:
    """Write a path in one way only: by it the launcher knows what it has compiled."""
    return _SLASHES.sub("/", path)


def placeholders(template: str) -> tuple[str, ...]:
    """Return the names between braces in a path's template, in order.

    Raises:
        ValueError: A brace that is part of no name.
    """
    if {"{", "}"} & set(_PLACEHOLDER.sub("", template)):
        raise ValueError("a brace must be part of {script}, {name} or {1}")
    return tuple(_PLACEHOLDER.findall(template))


def environment_lines(request: Request, script: str, arguments: tuple[str, ...] | None = None) -> bytes:
    """Build what a script reads on its standard input before its first command.

    Args:
        request: What Asterisk said of the call.
        script: The script's name: what Asterisk would have been asked for by AGI().
        arguments: Arguments instead of the call's; None for the call's.

    Returns:
        The lines as Asterisk writes them for a script of its own, bytes kept, and an empty line.
    """
    lines = "".join([f"{name}: {value}\n" for name, value in _kept(request, script, arguments).items()])
    return lines.encode("utf-8", "surrogateescape") + b"\n"


def variables(request: Request, script: str, arguments: tuple[str, ...] | None = None) -> dict[str, str]:
    """Build the environment variables of a call: ``AGI_CALLERID`` for ``agi_callerid``, and so on.

    Asterisk does not set them; some scripts and libraries look for them all the same.

    Args:
        request: What Asterisk said of the call.
        script: The script's name.
        arguments: Arguments instead of the call's; None for the call's.

    Returns:
        By name. A value that holds NUL, and a name that is no variable's, is left out.
    """
    return {
        variable: value
        for name, value in _kept(request, script, arguments).items()
        if (variable := _variable_name(name)) and "\0" not in value
    }


@lru_cache(maxsize=1024)
def _variable_name(name: str) -> str:
    """Name the variable of an environment line; nothing if there can be none."""
    return name.upper() if _VARIABLE_NAME.fullmatch(name.upper()) else ""


def _kept(request: Request, script: str, arguments: tuple[str, ...] | None) -> dict[str, str]:
    kept = {name: value for name, value in request.environment.items() if _is_kept(name)}
    if "agi_request" in kept:
        kept["agi_request"] = script
    given = request.arguments if arguments is None else arguments
    kept.update((f"{_ARGUMENT}{number}", value) for number, value in enumerate(given, 1))
    return kept


@lru_cache(maxsize=1024)
def _is_kept(name: str) -> bool:
    return name not in _NOT_FOR_SCRIPTS and not name.startswith(_ARGUMENT)


def without_hangup(reply: bytes) -> bytes:
    """Take HANGUP out of what Asterisk said up to a reply: to a script of its own a hangup is a signal.

    It may stand before the reply, behind it, and behind a provisional one; inside of a value that has several
    lines it is part of the value.
    """
    return _HANGUP_BEFORE.sub(rb"\1", _HANGUP_BEHIND.sub(b"", reply))


def wants_no_signal(agisighup: str | None) -> bool:
    """Whether this value of the channel variable AGISIGHUP spares the script its SIGHUP."""
    return agisighup is not None and agisighup.strip().lower() in _FALSE


class CommandLines:
    """Cuts what a script says on its standard output into command lines."""

    def __init__(self, most_bytes: int) -> None:
        """Start with nothing.

        Args:
            most_bytes: How much it may say in all; 0 for no limit.
        """
        self._most = most_bytes
        self._count = 0
        self._buffer = bytearray()
        self._scanned = 0

    def feed(self, data: bytes) -> None:
        """Take what came.

        Raises:
            LimitExceeded: The script has said more than it may.
        """
        self._count += len(data)
        if self._most and self._count > self._most:
            raise LimitExceeded(
                f"more than {self._most} bytes on its standard output (process.max_output of the route)"
            )
        self._buffer += data

    def next_line(self) -> bytes:
        """Take the next whole line, with its end; nothing if there is none yet.

        Raises:
            LimitExceeded: What is there is too long for a line.
        """
        end = self._buffer.find(b"\n", self._scanned) + 1
        self._scanned = 0 if end else len(self._buffer)
        if max(end, self._scanned) > LONGEST_LINE_BYTES:
            raise LimitExceeded(f"a line of more than {LONGEST_LINE_BYTES} bytes on its standard output")
        line = bytes(self._buffer[:end])
        del self._buffer[:end]
        return line

    def last_line(self) -> bytes:
        """Take the line that the script has not ended, ended for it, once it will say no more.

        Source: run_agi() in res_agi.c takes half a line at the end for a command.
        """
        line = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        return line + b"\n" if line else b""


class ErrorLines:
    """Cuts what a script says on its standard error into lines for the log."""

    def __init__(self, most_bytes: int) -> None:
        """Start with nothing.

        Args:
            most_bytes: How much is kept in all, where a line counts for :data:`LEAST_ERROR_BYTES` at least; 0
                for everything.
        """
        self._last = ""
        self._most = most_bytes
        self._room: float = most_bytes or math.inf
        self._dropped = 0
        self._rest = b""

    @property
    def last(self) -> str:
        """The last line that was not empty, even if it has no end."""
        return _text(self._rest) if self._rest.strip() else self._last

    def feed(self, data: bytes) -> list[str]:
        """Take what came, and return the lines that are whole now, or too long to wait for their end."""
        if not self._room:
            self._dropped += len(data)
            return []
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [piece for line in whole for piece in _pieces(line)]
        if len(self._rest) > LONGEST_ERROR_BYTES:
            *more, self._rest = _pieces(self._rest)
            lines += more
        return self._kept(lines)

    def end(self) -> list[str]:
        """Return what is left when nothing more will come: half a line, and how much was dropped."""
        lines = self._kept(_pieces(self._rest))
        self._rest = b""
        if self._dropped:
            limit = f"the limit is {self._most}, and a line counts for {LEAST_ERROR_BYTES} at least"
            lines.append(f"({self._dropped} more bytes were dropped: {limit})")
        return lines

    def _kept(self, lines: list[bytes]) -> list[str]:
        """Return the texts of the lines for which there is room; of the first one without, its beginning."""
        texts = []
        for line in lines:
            if not line.strip():
                continue
            kept = line if len(line) <= self._room else line[: int(self._room)]
            self._room = max(0, self._room - max(len(line), LEAST_ERROR_BYTES))
            self._dropped += len(line) - len(kept)
            if kept:
                texts.append(_text(kept))
        self._last = texts[-1] if texts else self._last
        return texts


def _pieces(line: bytes) -> list[bytes]:
    starts = range(0, len(line), LONGEST_ERROR_BYTES)
    return [line[start : start + LONGEST_ERROR_BYTES] for start in starts]


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace").rstrip("\r")


def ending_fault(code: int, cpu_s: float) -> ScriptFailed | LimitExceeded | None:
    """Say what was wrong with the end of a process.

    Args:
        code: Its exit code; of one that a signal ended, the signal's number below 0.
        cpu_s: The processor time that it was allowed.

    Returns:
        The error; None for the exit code 0.
    """
    if code == -signal.SIGXCPU:
        return LimitExceeded(f"more than {cpu_s:g} s of processor time (process.cpu_time of the route)")
    if code < 0:
        return ScriptFailed(f"killed by {_signal_name(-code)}")
    return ScriptFailed(f"exit code {code}") if code else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
