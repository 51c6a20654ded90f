"""Logs: where they go, how they are reopened, and what an access line says.

Laws:
    * A line is an interface: ``worker=3 gen=1 pid=42 call=... route=...`` in this order, stable and
      tested, and the same keys as JSON. It is written by one ``write`` to a file in append mode, so
      processes share a file.
    * A log that cannot be written never ends a call and never makes one wait; what is lost is counted,
      and told as soon as writing works again.
    * Passwords in URLs reach no log, whoever logs them.
    * Reopening keeps the file descriptor's number, so whoever holds it (faulthandler) goes on.

How it works: a :class:`LogFile` takes whole lines to a file, to standard error or to the local syslog. What
stands in a line is decided above it, by a formatter for the log and by :class:`AccessLog` for the calls.
"""

from __future__ import annotations

import _socket
import errno
import io
import json
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Final, Protocol

#: The root of all loggers of this package; handlers get children of it.
LOGGER_NAME: Final = "fastagi_pool"
_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
#: How the formats of lines are called in the configuration.
TEXT: Final = "text"
JSON: Final = "json"
#: Targets that are no path: standard error, the local syslog, and (for the access log) nowhere.
STANDARD_ERROR: Final = "-"
SYSLOG: Final = "syslog"
OFF: Final = "off"
#: Where the local syslog daemon, or journald in its place, listens.
SYSLOG_SOCKET: Final = "/dev/log"
#: The longest line that goes to syslog; with its head it fits into the 8 KB that rsyslog takes by default.
SYSLOG_LINE_BYTES: Final = 8000
#: Source: sys/syslog.h, whose numbers are those of RFC 3164.
_FACILITIES: Final = {"user": 1, "daemon": 3, **{f"local{number}": 16 + number for number in range(8)}}
_SEVERITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_SEVERITY: Final = 7
#: Not by strftime, which speaks the language of the locale.
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
#: Stands where something was cut out.
_CUT: Final = "..."
#: What a handler prints without ever ending its line is logged in pieces of this many characters.
_LONGEST_LINE: Final = 8192
#: The reference of the call that is being served here; empty outside of calls.
current_call: ContextVar[str] = ContextVar("current_call", default="")
_unfinished_line: ContextVar[str] = ContextVar("_unfinished_line", default="")
_BARE_VALUE = re.compile(r"[!#-&(-<>-\[\]-~]+")
_MASK: Final = "***"
_WORD = re.compile(r"\S+")
#: Of a URL without what follows its last @: the user, and behind it the password.
_LOGIN = re.compile(r"(?P<user>://[^:/@]*):.+", re.DOTALL)
_JSON_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))


class LogFile:
    """Where lines go: one file that several processes append to, standard error, or the local syslog.

    Attributes:
        target: As configured.
        lost_lines: Lines that could not be written, for example to a full disk.
    """

    def __init__(self, target: str, facility: str = "daemon", syslog_socket: str = SYSLOG_SOCKET) -> None:
        """Open it. Syslog may be away: it is looked for at every line.

        Args:
            target: A path, ``-`` for standard error, or ``syslog``.
            facility: Of lines that go to syslog: ``daemon``, ``user`` or ``local0`` to ``local7``.
            syslog_socket: Where syslog listens.

        Raises:
            OSError: It cannot be opened for writing.
        """
        self.target = target
        self.lost_lines = 0
        self._untold_lines = 0
        self._fault = ""
        self._works = True
        self._torn = False
        self._syslog = _Syslog(_FACILITIES[facility], syslog_socket) if target == SYSLOG else None
        self._fd = _open(target) if self._is_file else sys.stderr.fileno()

    @property
    def _is_file(self) -> bool:
        return self.target not in (STANDARD_ERROR, SYSLOG)

    @property
    def longest_line_bytes(self) -> int:
        """What of a line arrives, at most; 0 for all of it."""
        return SYSLOG_LINE_BYTES if self.target == SYSLOG else 0

    def fileno(self) -> int:
        """The descriptor; the same for the life of the object. Of syslog that of standard error."""
        return self._fd

    def write(self, text: str, level: int = logging.INFO) -> None:
        """Append whole lines; never waits and never raises for a disk that is full or gone.

        Args:
            text: The lines, each with its end.
            level: How loud they are, as in ``logging``; syslog is told.
        """
        if self._syslog is None:
            self._append(text.encode("utf-8", "backslashreplace"))
            return
        for line in text.removesuffix("\n").split("\n"):
            try:
                self._syslog.send(line, level)
                self._works = True
            except OSError as error:
                self._lose(1, error)

    def take_loss(self) -> str:
        """Tell once what was lost, as soon as writing works again.

        Returns:
            One sentence; empty if nothing was lost, if it was told, or if writing does not work yet.
        """
        if not self._untold_lines or not self._works:
            return ""
        lines, self._untold_lines = self._untold_lines, 0
        return f"{lines} log lines were lost: {self._fault} ({self.target})"

    def reopen(self) -> None:
        """Follow the path again after it was rotated; standard error stays.

        Raises:
            OSError: It cannot be opened; the old file stays in use.
        """
        if self._syslog is not None:
            self._syslog.close()
        if self._is_file:
            fresh = _open(self.target)
            os.dup2(fresh, self._fd, inheritable=False)
            os.close(fresh)

    def close(self) -> None:
        """Let go of it, in a process that writes elsewhere; standard error stays open."""
        if self._syslog is not None:
            self._syslog.close()
        if self._is_file:
            os.close(self._fd)

    def _append(self, data: bytes) -> None:
        rest = data
        try:
            if self._untold_lines and self._ends_within_a_line():
                os.write(self._fd, b"\n")
                self._torn = False
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            written = data[: len(data) - len(rest)]
            self._torn = not written.endswith(b"\n") if written else self._torn
            self._lose(rest.count(b"\n"), error)
        else:
            self._works = True

    def _ends_within_a_line(self) -> bool:
        """Whether half a line stands at the end, of this process or another, because the disk was full.

        Where nothing can be read back, as in a pipe, a process knows only of its own.
        """
        try:
            # Anew, as it is open for writing only; by its descriptor, as it may have been renamed.
            reader = os.open(
                f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            )
        except OSError:
            return self._torn
        try:
            found = os.fstat(reader)
            if not stat.S_ISREG(found.st_mode):
                return self._torn
            return found.st_size > 0 and os.pread(reader, 1, found.st_size - 1) != b"\n"
        finally:
            os.close(reader)

    def _lose(self, lines: int, error: OSError) -> None:
        self.lost_lines += lines
        self._untold_lines += lines
        self._works = False
        if error.errno == errno.EAGAIN:
            self._fault = "whoever reads them is too slow"
        else:
            self._fault = (error.strerror or str(error)).lower()


class _Syslog:
    """The local syslog, spoken to as the C library's ``syslog()`` does, but without ever waiting.

    Source: misc/syslog.c of glibc: priority, time in local time, name, process and text in one datagram.
    """

    def __init__(self, facility: int, address: str) -> None:
        self._facility = facility
        self._address = address
        self._socket: _socket.socket | None = None
        self._second = -1
        self._stamp = ""

    def send(self, line: str, level: int) -> None:
        """Send one line, on a new connection if the old one is dead.

        Raises:
            OSError: Nobody listens, or whoever does is too slow.
        """
        datagram = self._datagram(line, level)
        # Held here: another thread may close it meanwhile.
        known = self._socket
        if known is not None:
            try:
                known.send(datagram)
                return
            except OSError:
                self.close()
        # Not the socket module's, which gevent replaces: its hub has no part in this.
        fresh = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        fresh.setblocking(False)
        try:
            fresh.connect(self._address)
            fresh.send(datagram)
        except OSError:
            fresh.close()
            raise
        self._socket = fresh

    def close(self) -> None:
        """Let go of the connection; the next line makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _datagram(self, line: str, level: int) -> bytes:
        second = int(time.time())
        if second != self._second:
            local = time.localtime(second)
            month = _MONTHS[local.tm_mon - 1]
            self._stamp = f"{month} {local.tm_mday:2} {time.strftime('%H:%M:%S', local)}"
            self._second = second
        priority = self._facility * 8 + _severity(level)
        head = f"<{priority}>{self._stamp} fastagi-pool[{os.getpid()}]: "
        return head.encode() + _shortened(line.encode("utf-8", "backslashreplace"))


def _severity(level: int) -> int:
    return next((severity for least, severity in _SEVERITIES if level >= least), _DEBUG_SEVERITY)


def _shortened(line: bytes) -> bytes:
    if len(line) <= SYSLOG_LINE_BYTES:
        return line
    kept = line[: SYSLOG_LINE_BYTES - len(_CUT)]
    # The cut may have gone through a character.
    return kept.decode(errors="ignore").encode() + _CUT.encode()


def reopen_all(files: Iterable[LogFile | None]) -> None:
    """Follow the paths of these files again after they were rotated; what cannot be opened stays as it is.

    Args:
        files: None among them, and a file that stands in them twice, are fine.
    """
    for file in {id(each): each for each in files if each is not None}.values():
        try:
            file.reopen()
        except OSError as error:
            logging.getLogger(LOGGER_NAME).error("cannot reopen %s: %s", file.target, error)


def _open(target: str) -> int:
    return os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


class Clock:
    """Formats time stamps as ``2026-11-21T08:47:22.123+0100``, the expensive part once a second."""

    __slots__ = ("_head", "_second", "_tail")

    def __init__(self) -> None:
        self._second = -1
        self._head = self._tail = ""

    def stamp(self, wall_s: float) -> str:
        """Format seconds since the epoch in local time."""
        second = int(wall_s)
        if second != self._second:
            local = time.localtime(second)
            self._head = time.strftime("%Y-%m-%dT%H:%M:%S.", local)
            self._tail = time.strftime("%z", local)
            self._second = second
        return f"{self._head}{int((wall_s - second) * 1000):03d}{self._tail}"


class LineFormatter(logging.Formatter):
    """``time LEVEL identity message``, and below it, indented, a traceback if there is one.

    Attributes:
        identity: Who is speaking, as ``worker=3 gen=1 pid=42`` or ``master pid=42``.
    """

    def __init__(self, identity: str) -> None:
        """Remember who is speaking."""
        super().__init__()
        self.identity = identity
        self._clock = Clock()

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        head = f"{self._clock.stamp(record.created)} {record.levelname} {self.identity}"
        text = f"{head} {_on_one_line(masked(record.getMessage()))}"
        if record.exc_info:
            # Indented, because what an exception says must not pass for a line of its own either.
            text += "\n" + indent(masked(self.formatException(record.exc_info)), "  ")
        return text


class JsonFormatter(LineFormatter):
    """The same as one JSON object on one line: ``time``, ``level``, who, ``message``, and ``traceback``."""

    def __init__(self, identity: str, longest_bytes: int = 0) -> None:
        """Remember who is speaking.

        Args:
            identity: As above.
            longest_bytes: Of a line; texts are shortened until it fits. 0 for any length.
        """
        super().__init__(identity)
        self._longest_bytes = longest_bytes

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        fields: dict[str, object] = {
            "time": self._clock.stamp(record.created),
            "level": record.levelname,
            **speaker(self.identity),
            "message": masked(record.getMessage()),
        }
        if record.exc_info:
            fields["traceback"] = masked(self.formatException(record.exc_info))
        return _json_line(fields, self._longest_bytes)


def speaker(identity: str) -> dict[str, object]:
    """Read ``worker=3 pid=42`` as keys and numbers; a bare word is the kind of process."""
    words = (word.partition("=") for word in identity.split())
    return {
        (key if mark else "process"): (int(text) if text.isdecimal() else text if mark else key)
        for key, mark, text in words
    }


def _json_line(fields: dict[str, object], longest_bytes: int) -> str:
    """Write an object on one line, its longest texts cut in their middle until it fits.

    Args:
        fields: Its keys and values.
        longest_bytes: 0 for any length.
    """
    line = _JSON_ENCODER.encode(fields)
    # It is ASCII: as many bytes as characters.
    while 0 < longest_bytes < len(line):
        texts = {key: text for key, text in fields.items() if isinstance(text, str)}
        key, text = max(texts.items(), key=lambda item: len(item[1]))
        if len(text) <= len(_CUT):
            break
        # In proportion, as some characters are written with more bytes than others.
        written = len(_JSON_ENCODER.encode(text))
        kept = len(text) * (written - (len(line) - longest_bytes) - len(_CUT)) // written
        kept = max(0, min(kept, len(text) - len(_CUT) - 1))
        fields = {**fields, key: text[: kept - kept // 2] + _CUT + text[len(text) - kept // 2 :]}
        line = _JSON_ENCODER.encode(fields)
    return line


def masked(text: str) -> str:
    """Hide passwords in URLs: ``mysql://me:secret@host`` becomes ``mysql://me:***@host``.

    A password ends at the last ``@`` of its word: rather too much is hidden than too little.
    """
    return _WORD.sub(_masked_word, text) if "://" in text and "@" in text else text


def _masked_word(found: re.Match[str]) -> str:
    head, mark, tail = found[0].rpartition("@")
    return _LOGIN.sub(rf"\g<user>:{_MASK}", head) + mark + tail


class LogFileHandler(logging.Handler):
    """Carries log records into a LogFile."""

    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; never raises."""
        try:
            self._file.write(self.format(record) + "\n", record.levelno)
            tell_loss(self._file)
        except Exception:
            self.handleError(record)


def tell_loss(file: LogFile) -> None:
    """Say in the log what a file has lost, once it can be written again; after each write to it."""
    loss = file.take_loss()
    if loss:
        logging.getLogger(LOGGER_NAME).error("%s", loss)


def configure(file: LogFile, level: str, identity: str, line_format: str = TEXT) -> logging.Logger:
    """Send this process's logs to a file, replacing what was set before.

    Args:
        file: Where to.
        level: ``debug``, ``info``, ``warning`` or ``error``.
        identity: Who is speaking, as ``master pid=42``.
        line_format: ``text`` or ``json``.

    Returns:
        The package's logger.
    """
    handler = LogFileHandler(file)
    is_json = line_format == JSON
    handler.setFormatter(
        JsonFormatter(identity, file.longest_line_bytes) if is_json else LineFormatter(identity)
    )
    # The root too: what libraries and handlers log belongs into the same file.
    for name in ("", LOGGER_NAME):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(_LEVELS[level])
    logger.propagate = False
    return logger


def rename(identity: str) -> logging.Logger:
    """Go on logging as before, but as somebody else: in a worker, which has its loader's set-up.

    Args:
        identity: Who is speaking now, as ``worker=3 gen=1 pid=42``.

    Returns:
        The package's logger.
    """
    logger = logging.getLogger(LOGGER_NAME)
    for handler in logger.handlers:
        if isinstance(handler.formatter, LineFormatter):
            handler.formatter.identity = identity
    return logger


class PrintedLines(io.TextIOBase):
    """Stands in for a worker's standard output: what a handler prints becomes lines of the log."""

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Log each whole line; the rest waits for its end, in its own call."""
        *lines, rest = (_unfinished_line.get() + text).split("\n")
        whole = max(0, len(rest) - 1) // _LONGEST_LINE * _LONGEST_LINE
        lines += [rest[start : start + _LONGEST_LINE] for start in range(0, whole, _LONGEST_LINE)]
        _unfinished_line.set(rest[whole:])
        for line in lines:
            _log_printed(line)
        return len(text)


def end_printing() -> None:
    """Log what this call has printed without ending the line."""
    rest = _unfinished_line.get()
    if rest:
        _unfinished_line.set("")
        _log_printed(rest)


def _log_printed(line: str) -> None:
    logging.getLogger(LOGGER_NAME).info("call=%s printed: %s", current_call.get(), _on_one_line(line))


@dataclass(frozen=True, slots=True)
class CallRecord:
    """What is known of a call when it has ended.

    Attributes:
        ref: The reference under which the logs know it.
        route: Name of the route; empty if none was found.
        script: The script that Asterisk asked for.
        outcome: ``ok``, ``hangup``, ``error``, ``noroute``, ``timeout``, ``gone``, ``denied``,
            ``badrequest``, ``dbdown``, ``overload``, ``stopped``, ``notfound``, ``exit``, ``limit``,
            ``upstream``, ``failure``, ``deferred`` (it is in the journal, and will be done when its database
            is back) or ``quarantined`` (requests like it have ended workers).
        hung_up: Whether the caller hung up during the call.
        commands: Number of AGI commands.
        total_s: From accept to the end.
        asterisk_s: Of that, waiting for Asterisk's replies.
        script_s: Of that, the handler's own time, the database included.
        database_s: Of the script's time, waiting for the database.
        peer: Address of the Asterisk.
        uniqueid: The channel's unique id.
        callerid: The caller's number.
        error: What went wrong, in one line; empty if nothing.
        refused: Number of commands that the guard did not let out.
        held_s: From accept until the handler gave the call back before its own end; None if it did not.
        queued_s: Of the total, waiting for a place among the calls that are served.
    """

    ref: str
    route: str
    script: str
    outcome: str
    hung_up: bool
    commands: int
    total_s: float
    asterisk_s: float
    script_s: float
    database_s: float
    peer: str
    uniqueid: str
    callerid: str
    error: str = ""
    refused: int = 0
    held_s: float | None = None
    queued_s: float = 0.0


class RecordWriter(Protocol):
    """Whoever keeps what is known of calls that have ended."""

    def write(self, record: CallRecord, wall_s: float, /) -> None:
        """Keep one record; the call ended at this time, in seconds since the epoch."""


class AccessLog:
    """Writes one line for each call; lines that end together are written together."""

    def __init__(
        self,
        file: LogFile,
        identity: str,
        soon: Callable[[Callable[[], None]], object],
        line_format: str = TEXT,
    ) -> None:
        """Prepare to write.

        Args:
            file: Where to.
            identity: Who is speaking, as ``worker=3 gen=1 pid=42``.
            soon: Runs a function before the process next waits for anything. Under load this
                makes one write of a dozen lines.
            line_format: ``text``, or ``json`` with the same keys.
        """
        self._file = file
        self._identity = identity
        self._who = speaker(identity)
        self._clock = Clock()
        self._soon = soon
        self._lines: list[str] = []
        self._line = self._json_line if line_format == JSON else self._text_line

    def write(self, record: CallRecord, wall_s: float) -> None:
        """Append the line of one call.

        Args:
            record: The call.
            wall_s: When it ended, in seconds since the epoch.
        """
        line = self._line(record, self._clock.stamp(wall_s))
        if not self._lines:
            self._soon(self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        """Write what is waiting."""
        if self._lines:
            text = "\n".join(self._lines) + "\n"
            self._lines.clear()
            self._file.write(text)
            tell_loss(self._file)

    def _text_line(self, record: CallRecord, stamp: str) -> str:
        hangup = "yes" if record.hung_up else "no"
        line = (
            f"{stamp} {self._identity} call={record.ref} route={value(record.route)} "
            f"script={value(record.script)} outcome={record.outcome} hangup={hangup} "
            f"commands={record.commands} total_ms={record.total_s * 1000:.1f} "
            f"queued_ms={record.queued_s * 1000:.1f} asterisk_ms={record.asterisk_s * 1000:.1f} "
            f"script_ms={record.script_s * 1000:.1f} db_ms={record.database_s * 1000:.1f} "
            f"peer={record.peer} uniqueid={value(record.uniqueid)} callerid={value(record.callerid)}"
        )
        if record.held_s is not None:
            line += f" held_ms={record.held_s * 1000:.1f}"
        if record.refused:
            line += f" refused={record.refused}"
        if record.error:
            line += f" error={value(masked(record.error))}"
        return line

    def _json_line(self, record: CallRecord, stamp: str) -> str:
        fields: dict[str, object] = {
            "time": stamp,
            **self._who,
            "call": record.ref,
            "route": record.route,
            "script": record.script,
            "outcome": record.outcome,
            "hangup": record.hung_up,
            "commands": record.commands,
            "total_ms": _milliseconds(record.total_s),
            "queued_ms": _milliseconds(record.queued_s),
            "asterisk_ms": _milliseconds(record.asterisk_s),
            "script_ms": _milliseconds(record.script_s),
            "db_ms": _milliseconds(record.database_s),
            "peer": record.peer,
            "uniqueid": record.uniqueid,
            "callerid": record.callerid,
        }
        if record.held_s is not None:
            fields["held_ms"] = _milliseconds(record.held_s)
        if record.refused:
            fields["refused"] = record.refused
        if record.error:
            fields["error"] = masked(record.error)
        return _json_line(fields, self._file.longest_line_bytes)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


def value(text: str) -> str:
    """Write a value so that a line stays one line and splits at its spaces: quoted where needed."""
    if _BARE_VALUE.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_on_one_line(escaped)}"'


def _on_one_line(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(char: str) -> str:
    return (
        char.encode("unicode_escape").decode() if not "\ud800" <= char <= "\udfff" else f"\\u{ord(char):04x}"
    )


def ensure_folder(target: str) -> None:
    """Make the folder of a log file if it is missing.

    Raises:
        OSError: It cannot be made.
    """
    if target not in (STANDARD_ERROR, SYSLOG, OFF):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
