"""Logs: where they go, how they are reopened, and what an access line says.

Laws:
    * A line is an interface: ``worker=3 gen=1 pid=42 call=... route=...`` in this order, stable and
      tested. It is written by one ``write`` to a file in append mode, so processes share a file.
    * A log that cannot be written never ends a call; what is lost is counted.
    * Reopening keeps the file descriptor's number, so whoever holds it (faulthandler) goes on.
"""

from __future__ import annotations

import io
import logging
import os
import re
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
#: What a handler prints without ever ending its line is logged in pieces of this many characters.
_LONGEST_LINE: Final = 8192
#: The reference of the call that is being served here; empty outside of calls.
current_call: ContextVar[str] = ContextVar("current_call", default="")
_unfinished_line: ContextVar[str] = ContextVar("_unfinished_line", default="")
_BARE_VALUE = re.compile(r"[!#-&(-<>-\[\]-~]+")


class LogFile:
    """One file that several processes append to, or standard error.

    Attributes:
        lost_lines: Lines that could not be written, for example to a full disk.
    """

    def __init__(self, target: str) -> None:
        """Open the file.

        Args:
            target: A path, or ``-`` for standard error.

        Raises:
            OSError: It cannot be opened for writing.
        """
        self.target = target
        self.lost_lines = 0
        self._fd = sys.stderr.fileno() if target == "-" else _open(target)

    def fileno(self) -> int:
        """The descriptor; the same for the life of the object."""
        return self._fd

    def write(self, text: str) -> None:
        """Append whole lines by one write; never raises for a disk that is full or gone."""
        data = text.encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            self.lost_lines += data.count(b"\n")

    def reopen(self) -> None:
        """Follow the path again after it was rotated; standard error stays.

        Raises:
            OSError: It cannot be opened; the old file stays in use.
        """
        if self.target == "-":
            return
        fresh = _open(self.target)
        os.dup2(fresh, self._fd, inheritable=False)
        os.close(fresh)


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
    """``time LEVEL identity message``, and below it, indented, a traceback if there is one."""

    def __init__(self, identity: str) -> None:
        """Remember who is speaking.

        Args:
            identity: As ``worker=3 gen=1 pid=42``.
        """
        super().__init__()
        self.identity = identity
        self._clock = Clock()

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        head = f"{self._clock.stamp(record.created)} {record.levelname} {self.identity}"
        text = f"{head} {_on_one_line(record.getMessage())}"
        if record.exc_info:
            # Indented, because what an exception says must not pass for a line of its own either.
            text += "\n" + indent(self.formatException(record.exc_info), "  ")
        return text


class LogFileHandler(logging.Handler):
    """Carries log records into a LogFile."""

    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; never raises."""
        try:
            self._file.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)


def configure(file: LogFile, level: str, identity: str) -> logging.Logger:
    """Send this process's logs to a file, replacing what was set before.

    Args:
        file: Where to.
        level: ``debug``, ``info``, ``warning`` or ``error``.
        identity: Who is speaking, as ``master pid=42``.

    Returns:
        The package's logger.
    """
    handler = LogFileHandler(file)
    handler.setFormatter(LineFormatter(identity))
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
            ``upstream`` or ``failure``.
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


class RecordWriter(Protocol):
    """Whoever keeps what is known of calls that have ended."""

    def write(self, record: CallRecord, wall_s: float, /) -> None:
        """Keep one record; the call ended at this time, in seconds since the epoch."""


class AccessLog:
    """Writes one line for each call; lines that end together are written together."""

    def __init__(self, file: LogFile, identity: str, soon: Callable[[Callable[[], None]], object]) -> None:
        """Prepare to write.

        Args:
            file: Where to.
            identity: Who is speaking, as ``worker=3 gen=1 pid=42``.
            soon: Runs a function before the process next waits for anything. Under load this
                makes one write of a dozen lines.
        """
        self._file = file
        self._identity = identity
        self._clock = Clock()
        self._soon = soon
        self._lines: list[str] = []

    def write(self, record: CallRecord, wall_s: float) -> None:
        """Append the line of one call.

        Args:
            record: The call.
            wall_s: When it ended, in seconds since the epoch.
        """
        hangup = "yes" if record.hung_up else "no"
        line = (
            f"{self._clock.stamp(wall_s)} {self._identity} call={record.ref} route={value(record.route)} "
            f"script={value(record.script)} outcome={record.outcome} hangup={hangup} "
            f"commands={record.commands} total_ms={record.total_s * 1000:.1f} "
            f"asterisk_ms={record.asterisk_s * 1000:.1f} script_ms={record.script_s * 1000:.1f} "
            f"db_ms={record.database_s * 1000:.1f} peer={record.peer} "
            f"uniqueid={value(record.uniqueid)} callerid={value(record.callerid)}"
        )
        if record.held_s is not None:
            line += f" held_ms={record.held_s * 1000:.1f}"
        if record.refused:
            line += f" refused={record.refused}"
        if record.error:
            line += f" error={value(record.error)}"
        if not self._lines:
            self._soon(self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        """Write what is waiting."""
        if self._lines:
            text = "\n".join(self._lines) + "\n"
            self._lines.clear()
            self._file.write(text)


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
    if target not in ("-", "off"):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
