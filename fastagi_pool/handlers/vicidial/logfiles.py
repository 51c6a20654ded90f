"""VICIdial's log files: the lines that its operators know, in the files where they look for them.

Laws:
    * A log that cannot be written never harms a call: nothing here raises. What is lost is counted, and told
      once a minute at most.
    * Lines of one request that go to one file are one ``write`` in append mode, so that processes share it.
    * One line stays one line, whatever a caller sent: control characters become spaces.
    * The clock is an argument, in seconds since the epoch. It also names the files that have a date.

Source: VICIdial's FastAGI daemon, observed: its log files.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

#: Values of ``servers.agi_output`` that ask for the file, and those that ask for standard error.
_TO_FILE: Final = frozenset({"FILE", "BOTH"})
_TO_STDERR: Final = frozenset({"STDERR", "BOTH"})
_TO_ANY: Final = _TO_FILE | _TO_STDERR
_STDERR_FD: Final = 2
#: Who speaks, in the second field of a line: what the original calls itself.
_SPEAKER: Final = "VDfastAGI"
#: As the original makes them under root's usual mask: other programs of the machine may read them.
_MODE: Final = 0o644
#: How soon a file that was moved away is noticed. Every look costs a system call.
_LOOK_EVERY_S: Final = 1.0
#: A disk stays full for long, and thousands of calls would tell so.
_WARN_EVERY_S: Final = 60.0
#: Control characters of ASCII and of Latin-1, and what else a reader of text may take for the end of a line.
_CONTROLS: Final = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029), " ")


class AltDial(NamedTuple):
    """What was decided about one further number of a lead.

    Attributes:
        lead_id: The lead.
        phone_number: The number.
        campaign_id: The campaign.
        alt_dial: Which number it is: ``ALT``, ``ADDR3``, or ``X`` and its position.
        priority: In the hopper; 0 if it was skipped.
        outcome: As ``hopper insert`` or ``hopper skip|DNC check failed``.
    """

    lead_id: int
    phone_number: str
    campaign_id: str
    alt_dial: str
    priority: int
    outcome: str


class HangupCause(NamedTuple):
    """What is known of a leg that hung up; texts as Asterisk sent them.

    Attributes:
        cause: The Q.850 cause.
        dialstatus: ``DIALSTATUS`` of the dialplan.
        dial_s: Seconds since the dial, ``DIALEDTIME``.
        ring_s: Of these, the seconds before the answer.
        uid: The channel's unique id.
        channel: The channel.
        extension: The dialplan extension.
        type: The channel's type.
        code: The caller code.
        name: The caller's name.
        priority: The dialplan priority.
    """

    cause: str
    dialstatus: str
    dial_s: str
    ring_s: str
    uid: str
    channel: str
    extension: str
    type: str
    code: str
    name: str
    priority: str


class LogFiles:
    """VICIdial's log files in one folder, kept open. One of it serves all calls of a worker.

    Attributes:
        lost_lines: Lines that could not be written.
    """

    def __init__(self, folder: Path, log: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
        """Prepare to write; nothing is opened yet.

        Args:
            folder: Where the files are. It is not made: where it is missing, lines are lost.
            log: Told of trouble.
        """
        self.lost_lines = 0
        self._folder = folder
        self._log = log
        self._clock = _Clock()
        self._debug, self._alt_dial, self._hangups = _Appender(), _Appender(), _Appender()
        self._warned_at_s: float | None = None

    def debug(self, lines: Sequence[str], process: str, output: str, now_epoch: float) -> None:
        """Write debug lines of one request.

        Args:
            lines: Free text, without line ends.
            process: The process of the request, as ``call_log``; ``begin`` while it is unknown.
            output: ``servers.agi_output``: ``FILE``, ``STDERR`` or ``BOTH``; anything else writes nothing.
            now_epoch: The time of the lines, in seconds since the epoch.
        """
        if not lines or output not in _TO_ANY:
            return
        head = f"{self._clock.stamp(now_epoch)}|{_SPEAKER}|{process}|"
        data = _encoded([f"{head}{line}" for line in lines])
        if output in _TO_STDERR:
            self._write_stderr(data, now_epoch)
        if output in _TO_FILE:
            self._append(self._debug, f"FASTagiout.{self._clock.date(now_epoch)}", data, now_epoch)

    def alt_dial(self, decision: AltDial, output: str, now_epoch: float) -> None:
        """Write what was decided about a further number of a lead.

        Args:
            decision: It.
            output: ``servers.agi_output``: anything but ``NONE`` and empty wants the line, in its own file.
            now_epoch: The time of the line, in seconds since the epoch.
        """
        if output in _TO_ANY:
            data = _encoded([_fields(self._clock.stamp(now_epoch), _SPEAKER, *decision)])
            self._append(self._alt_dial, f"auto-alt-dial.{self._clock.date(now_epoch)}", data, now_epoch)

    def hangup_cause(self, leg: HangupCause, now_epoch: float) -> None:
        """Write how a leg ended; for an END whose URL asks for it, whatever ``agi_output`` says.

        Args:
            leg: What is known of it.
            now_epoch: The time of the line, in seconds since the epoch.
        """
        data = _encoded([_fields(self._clock.stamp(now_epoch), *leg)])
        self._append(self._hangups, "HANGUP_cause-output.txt", data, now_epoch)

    def close(self) -> None:
        """Close the files; the next line opens them again."""
        for appender in (self._debug, self._alt_dial, self._hangups):
            appender.close()

    def _append(self, appender: _Appender, name: str, data: bytes, now_s: float) -> None:
        path = self._folder / name
        try:
            appender.write(path, data, now_s)
        except _LostError as error:
            self._lose(str(path), error, now_s)

    def _write_stderr(self, data: bytes, now_s: float) -> None:
        try:
            _write_all(_STDERR_FD, data)
        except _LostError as error:
            self._lose("standard error", error, now_s)

    def _lose(self, target: str, error: _LostError, now_s: float) -> None:
        self.lost_lines += error.lines
        # The clock may be set back.
        if self._warned_at_s is None or abs(now_s - self._warned_at_s) >= _WARN_EVERY_S:
            self._warned_at_s = now_s
            self._log.warning(
                "cannot write %s: %s; %d lines of VICIdial's logs are lost so far",
                target,
                error,
                self.lost_lines,
            )


class _LostError(Exception):
    """Lines could not be written; the message says why.

    Attributes:
        lines: How many.
    """

    def __init__(self, reason: str, lines: int) -> None:
        self.lines = lines
        super().__init__(reason)


class _Appender:
    """One open file, which changes when its name does or when somebody has moved it away."""

    __slots__ = ("_fd", "_looked_at_s", "_path")

    def __init__(self) -> None:
        self._fd = -1
        self._path = Path()
        self._looked_at_s = 0.0

    def write(self, path: Path, data: bytes, now_s: float) -> None:
        """Append whole lines.

        Raises:
            _LostError: Not all of them.
        """
        try:
            self._follow(path, now_s)
        except OSError as error:
            self.close()
            raise _LostError(_reason(error), data.count(b"\n")) from error
        try:
            _write_all(self._fd, data)
        except _LostError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file if it is open."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)
            except OSError:
                pass  # What could be said about lost lines was said when they were written.

    def _follow(self, path: Path, now_s: float) -> None:
        """Have the file open that has this path now."""
        if self._fd >= 0 and path == self._path:
            if abs(now_s - self._looked_at_s) < _LOOK_EVERY_S:
                return
            self._looked_at_s = now_s
            if _is_at(self._fd, path):
                return
        self.close()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _MODE)
        self._path, self._looked_at_s = path, now_s


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _write_all(fd: int, data: bytes) -> None:
    rest = data
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
    except OSError as error:
        raise _LostError(_reason(error), rest.count(b"\n")) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _fields(*values: object) -> str:
    return "".join(f"{value}|" for value in values)


def _encoded(lines: Sequence[str]) -> bytes:
    text = "".join(f"{line if line.isprintable() else line.translate(_CONTROLS)}\n" for line in lines)
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Half a character that stands for no byte: nobody can have sent it, but a line must not fail of it.
        return text.encode("utf-8", "backslashreplace")


class _Clock:
    """Writes times as VICIdial does, in local time; the expensive part once a second."""

    __slots__ = ("_second", "_stamp")

    def __init__(self) -> None:
        self._second: int | None = None
        self._stamp = ""

    def stamp(self, now_epoch: float) -> str:
        """Write ``YYYY-MM-DD HH:MM:SS``."""
        second = int(now_epoch)
        if second != self._second:
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._second = second
        return self._stamp

    def date(self, now_epoch: float) -> str:
        """Write ``YYYY-MM-DD``."""
        return self.stamp(now_epoch)[:10]
