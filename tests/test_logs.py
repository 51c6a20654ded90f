"""fastagi_pool.logs: the exact lines, and that writing them never harms anyone."""

from __future__ import annotations

import errno
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastagi_pool.logs import (
    LOGGER_NAME,
    AccessLog,
    CallRecord,
    Clock,
    LogFile,
    LogFileHandler,
    PrintedLines,
    configure,
    current_call,
    end_printing,
    ensure_folder,
    value,
)

IDENTITY = "worker=3 gen=1 pid=42"
#: 2026-11-21 08:47:22.123 +0100.
WALL_S = 1_795_247_242.1234

RECORD = CallRecord(
    ref="6a01-2a-1",
    route="start",
    script="agi-start",
    outcome="ok",
    hung_up=False,
    commands=3,
    total_s=0.0123,
    asterisk_s=0.01,
    script_s=0.002,
    database_s=0.00149,
    peer="10.0.0.7",
    uniqueid="1700000000.1",
    callerid="100",
)


ACCESS_WORDS = [
    *("worker", "gen", "pid", "call", "route", "script", "outcome", "hangup", "commands"),
    *("total_ms", "asterisk_ms", "script_ms", "db_ms", "peer", "uniqueid", "callerid"),
]


@dataclass
class Later:
    """Keeps what shall run soon until it is told."""

    waiting: list[Callable[[], None]] = field(default_factory=list)

    def __call__(self, function: Callable[[], None]) -> None:
        """Keep a function."""
        self.waiting.append(function)

    def run(self) -> None:
        """Run all that waits."""
        while self.waiting:
            self.waiting.pop(0)()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the log lies."""
    return tmp_path / "pool.log"


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time zone one hour ahead, whatever the machine's is."""
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def logger(path: Path) -> Iterator[logging.Logger]:
    """The package's logger, writing into the file at level info."""
    roots = [logging.getLogger(), logging.getLogger(LOGGER_NAME)]
    before = [(each, each.handlers[:], each.level, each.propagate) for each in roots]
    yield configure(LogFile(str(path)), "info", IDENTITY)
    for each, handlers, level, propagate in before:
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)


def written(path: Path, record: CallRecord) -> str:
    """Write one access line and read it back."""
    later = Later()
    AccessLog(LogFile(str(path)), IDENTITY, later).write(record, WALL_S)
    later.run()
    return path.read_text(encoding="utf-8")


# ---- lines


@pytest.mark.usefixtures("berlin")
def test_the_access_line(path: Path) -> None:
    """The line of a call holds these words in this order: programs read it."""
    assert written(path, RECORD) == (
        "2026-11-21T08:47:22.123+0100 worker=3 gen=1 pid=42 call=6a01-2a-1 route=start script=agi-start "
        "outcome=ok hangup=no commands=3 total_ms=12.3 asterisk_ms=10.0 script_ms=2.0 db_ms=1.5 "
        "peer=10.0.0.7 uniqueid=1700000000.1 callerid=100\n"
    )


def test_a_failed_call_says_why(path: Path) -> None:
    """Only where something went wrong the line ends with what."""
    line = written(path, replace(RECORD, outcome="error", hung_up=True, error='ValueError: no "x"'))
    assert " outcome=error hangup=yes " in line
    assert line.endswith(' callerid=100 error="ValueError: no \\"x\\""\n')


@pytest.mark.parametrize(
    ("more", "tail"),
    [
        ({"held_s": 0.00512}, " held_ms=5.1"),
        ({"held_s": 0.0}, " held_ms=0.0"),
        ({"refused": 2}, " refused=2"),
        ({"held_s": 0.5, "refused": 1, "error": "bug"}, " held_ms=500.0 refused=1 error=bug"),
    ],
)
def test_what_is_said_only_where_there_is_something(path: Path, more: dict[str, Any], tail: str) -> None:
    """A call given back early and refused commands are told behind the fixed words, before the error."""
    assert written(path, replace(RECORD, **more)).endswith(f" callerid=100{tail}\n")


def test_empty_values_stay_visible(path: Path) -> None:
    """A call of which little is known keeps all its words, so that columns do not move."""
    line = written(path, replace(RECORD, route="", script="", uniqueid="", callerid=""))
    words = dict(word.split("=", 1) for word in shlex.split(line)[1:])
    assert words["route"] == words["script"] == words["uniqueid"] == words["callerid"] == ""


@given(st.text(), st.text(), st.text())
@example("'", "'", "'")
def test_an_access_line_stays_one_line(script: str, callerid: str, error: str) -> None:
    """Whatever the caller sends, it forges no line and no word of another name."""
    lines: list[str] = []

    class Target(LogFile):
        def __init__(self) -> None:
            self.target = "test"

        def write(self, text: str) -> None:
            lines.append(text)

    later = Later()
    record = replace(RECORD, script=script, callerid=callerid, error=error)
    AccessLog(Target(), IDENTITY, later).write(record, WALL_S)
    later.run()
    [line] = lines
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    names = [word.partition("=")[0] for word in shlex.split(line)[1:]]
    assert names == ACCESS_WORDS + ["error"] * bool(error)


@given(st.text())
@example("'")
@example("\ud800")
@example('a"b\\c')
@example("\u2028\x85\x1b[31m")
def test_a_value_is_one_word(text: str) -> None:
    """A shell reads a value as exactly one word, and nothing in it moves a terminal's cursor."""
    written_value = value(text)
    assert len(shlex.split(written_value)) == 1
    assert written_value.isprintable()


@given(st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" ")))
@example("'")
def test_a_printable_value_reads_back(text: str) -> None:
    """What can be printed is found again as it was."""
    assert shlex.split(value(text)) == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("agi-start.agi?x=1", '"agi-start.agi?x=1"'),
        ("SIP/100-0001", "SIP/100-0001"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a "b"', '"a \\"b\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("line\nend\t", '"line\\nend\\t"'),
        ("Zoë", '"Zoë"'),
        ("\x00\x1b", '"\\x00\\x1b"'),
        ("\ud8ff", '"\\ud8ff"'),
    ],
)
def test_values_are_quoted_where_needed(text: str, expected: str) -> None:
    """The form of a value is stable, for whoever searches the log."""
    assert value(text) == expected


@pytest.mark.usefixtures("berlin")
def test_the_clock_follows_the_second() -> None:
    """Stamps within one second and across its end are right, milliseconds always in three digits."""
    clock = Clock()
    assert clock.stamp(WALL_S) == "2026-11-21T08:47:22.123+0100"
    assert clock.stamp(WALL_S + 0.5) == "2026-11-21T08:47:22.623+0100"
    assert clock.stamp(WALL_S + 0.9) == "2026-11-21T08:47:23.023+0100"


def test_a_log_line(logger: logging.Logger, path: Path) -> None:
    """A line of the log says when, how loud, who and what."""
    logger.warning("gen=%d is loaded", 2)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4} WARNING worker=3 gen=1 pid=42 gen=2 is loaded\n",
        path.read_text(),
    )


def test_a_traceback_follows_its_line(logger: logging.Logger, path: Path) -> None:
    """An exception that is logged brings its traceback, below the line."""
    try:
        raise ValueError("bug")
    except ValueError:
        logger.exception("failed")
    head, second, *_, last = path.read_text().splitlines()
    assert head.endswith(" ERROR worker=3 gen=1 pid=42 failed")
    assert second == "  Traceback (most recent call last):"
    assert last == "  ValueError: bug"


def test_a_message_forges_no_line(logger: logging.Logger, path: Path) -> None:
    """A line end in a message or in an exception's text begins no line that could pass for another's."""
    try:
        raise ValueError("bug\n2026-01-01 INFO forged")
    except ValueError:
        logger.exception("failed\n2026-01-01 INFO forged")
    head, *traceback = path.read_text().splitlines()
    assert head.endswith(" failed\\n2026-01-01 INFO forged")
    assert all(line.startswith("  ") for line in traceback)


def test_the_level_is_kept(logger: logging.Logger, path: Path) -> None:
    """What is less important than the level is not written."""
    logger.debug("not this")
    logger.getChild("handlers").info("but this")
    assert [line.rpartition(" ")[2] for line in path.read_text().splitlines()] == ["this"]
    assert "but this" in path.read_text()


def test_libraries_log_into_the_same_file(logger: logging.Logger, path: Path) -> None:
    """What others log is found beside ours, and ours is not there twice."""
    logging.getLogger("sqlalchemy.pool").error("theirs")
    logger.error("ours")
    assert [line.rpartition(" ")[2] for line in path.read_text().splitlines()] == ["theirs", "ours"]


def test_configuring_again_replaces(logger: logging.Logger, path: Path, tmp_path: Path) -> None:
    """A process that is configured anew writes to the new place alone, and under its new name."""
    configure(LogFile(str(tmp_path / "other.log")), "error", "worker=9")
    logger.error("moved")
    assert path.read_text() == ""
    assert (tmp_path / "other.log").read_text().endswith(" ERROR worker=9 moved\n")


def test_a_wrong_log_call_ends_nothing(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A message that does not fit its arguments is reported, and the next line is written."""
    logger = logging.Logger("alone")
    logger.addHandler(LogFileHandler(LogFile(str(path))))
    logger.error("%d calls", "many")
    logger.error("next")
    assert path.read_text() == "next\n"
    assert "many" in capfd.readouterr().err


# ---- files


def test_reopening_follows_a_rotation(path: Path, tmp_path: Path) -> None:
    """After a rotation lines go into the new file, under the descriptor that others hold."""
    file = LogFile(str(path))
    descriptor = file.fileno()
    file.write("before\n")
    path.rename(tmp_path / "pool.log.1")
    file.write("between\n")
    file.reopen()
    file.write("after\n")
    assert file.fileno() == descriptor
    assert (tmp_path / "pool.log.1").read_text() == "before\nbetween\n"
    assert path.read_text() == "after\n"


def test_a_reopened_file_is_not_inherited(path: Path) -> None:
    """No program that a handler starts gets the log's descriptor, before or after a rotation."""
    file = LogFile(str(path))
    assert not os.get_inheritable(file.fileno())
    file.reopen()
    assert not os.get_inheritable(file.fileno())


def test_a_failed_reopen_keeps_the_old_file(path: Path, tmp_path: Path) -> None:
    """If the new file cannot be opened, lines still go into the old one."""
    folder = tmp_path / "folder"
    folder.mkdir()
    file = LogFile(str(folder / "pool.log"))
    folder.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        file.reopen()
    file.write("still here\n")
    assert (tmp_path / "moved" / "pool.log").read_text() == "still here\n"


def test_standard_error_stays(capfd: pytest.CaptureFixture[str]) -> None:
    """The target ``-`` is standard error, and reopening leaves it alone."""
    file = LogFile("-")
    file.reopen()
    file.write("to the terminal\n")
    assert capfd.readouterr().err == "to the terminal\n"


def test_a_new_log_is_not_for_everybody(path: Path) -> None:
    """Callers' numbers are in the log: others than owner and group may not read it."""
    LogFile(str(path))
    assert path.stat().st_mode & 0o007 == 0


def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    """A log that cannot be opened at the start is the operator's to mend."""
    with pytest.raises(OSError) as caught:
        LogFile(str(tmp_path / "nowhere" / "pool.log"))
    assert caught.value.errno == errno.ENOENT


def test_a_full_disk_costs_only_lines() -> None:
    """Where nothing can be written, nothing is raised, and what is lost is counted."""
    file = LogFile("/dev/full")
    for _ in range(3):
        file.write("lost\n")
    assert file.lost_lines == 3


def test_a_closed_log_costs_only_lines(path: Path) -> None:
    """A descriptor that is gone costs lines, and never a call."""
    file = LogFile(str(path))
    os.close(file.fileno())
    file.write("lost\n")
    assert file.lost_lines == 1


def test_what_is_not_unicode_is_still_written(path: Path) -> None:
    """Bytes that Asterisk sent and that are no text cost no line."""
    file = LogFile(str(path))
    file.write("\udcff\n")
    assert path.read_bytes() == b"\\udcff\n"
    assert file.lost_lines == 0


def test_processes_share_a_file(path: Path) -> None:
    """Lines that several processes write at the same time stay whole."""
    file = LogFile(str(path))
    pids = []
    for name in "abcd":
        pid = os.fork()
        if pid == 0:
            for _ in range(200):
                file.write(name * 300 + "\n")
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    lines = path.read_text().splitlines()
    assert len(lines) == 800
    assert set(lines) == {name * 300 for name in "abcd"}


# ---- the access log


def test_access_lines_are_written_together(path: Path) -> None:
    """Lines of calls that end together wait for one write, which is asked for once."""
    later = Later()
    access = AccessLog(LogFile(str(path)), IDENTITY, later)
    for number in range(12):
        access.write(replace(RECORD, ref=str(number)), WALL_S)
    assert len(later.waiting) == 1
    assert path.read_text() == ""
    later.run()
    found = re.findall(r" call=(\d+) ", path.read_text())
    assert found == [str(number) for number in range(12)]


def test_access_lines_after_a_flush_are_not_forgotten(path: Path) -> None:
    """The first line after a write asks for the next one."""
    later = Later()
    access = AccessLog(LogFile(str(path)), IDENTITY, later)
    for _ in range(2):
        access.write(RECORD, WALL_S)
        later.run()
    assert len(path.read_text().splitlines()) == 2


def test_flushing_nothing_writes_nothing(path: Path) -> None:
    """A flush at the end of a worker without waiting lines leaves the file alone."""
    AccessLog(LogFile(str(path)), IDENTITY, Later()).flush()
    assert path.read_bytes() == b""


def test_every_lost_access_line_is_counted() -> None:
    """Lines that were to be written together are lost together, and each counts."""
    later = Later()
    file = LogFile("/dev/full")
    access = AccessLog(file, IDENTITY, later)
    for _ in range(5):
        access.write(RECORD, WALL_S)
    later.run()
    assert file.lost_lines == 5


# ---- what handlers print


@dataclass
class Printer:
    """Standard output of a worker, with what is logged of it."""

    path: Path
    lines: PrintedLines = field(default_factory=PrintedLines)

    def call(self, ref: str) -> Context:
        """Begin a call: what runs in its context is that call's."""
        context = copy_context()
        context.run(current_call.set, ref)
        return context

    @property
    def logged(self) -> list[str]:
        """All that was logged, without time and identity."""
        marker = f" INFO {IDENTITY} "
        return [line.partition(marker)[2] for line in self.path.read_text().split("\n")[:-1]]


@pytest.fixture
def printer(logger: logging.Logger, path: Path) -> Printer:
    """Standard output of a worker that logs at level info."""
    return Printer(path)


def test_a_printed_line_is_logged(printer: Printer) -> None:
    """What a handler prints becomes a line of the log that names the call."""
    printer.call("6a01-2a-1").run(print, "hello", 7, file=printer.lines, flush=True)
    assert printer.logged == ["call=6a01-2a-1 printed: hello 7"]


def test_several_lines_and_empty_ones(printer: Printer) -> None:
    """Each line of a text is a line of the log, an empty one too."""
    written_characters = printer.call("1").run(printer.lines.write, "one\n\ntwo\nthree")
    assert written_characters == len("one\n\ntwo\nthree")
    assert printer.logged == ["call=1 printed: one", "call=1 printed: ", "call=1 printed: two"]


def test_a_line_in_pieces(printer: Printer) -> None:
    """A line that is printed in pieces is logged once, when it is whole."""
    context = printer.call("1")
    for piece in ("he", "", "l", "lo"):
        context.run(printer.lines.write, piece)
    assert printer.logged == []
    context.run(printer.lines.write, "\nnext")
    assert printer.logged == ["call=1 printed: hello"]


def test_a_line_without_an_end(printer: Printer) -> None:
    """What stands without its line end when a call is over is logged then, and only once."""
    context = printer.call("1")
    context.run(printer.lines.write, "no end")
    for _ in range(2):
        context.run(end_printing)
    assert printer.logged == ["call=1 printed: no end"]
    context.run(printer.lines.write, "\n")
    context.run(end_printing)
    assert printer.logged[1:] == ["call=1 printed: "]


def test_calls_do_not_mix_their_lines(printer: Printer) -> None:
    """Calls that print in turn, each in pieces, have each their own lines."""
    one, two = printer.call("1"), printer.call("2")
    for word in ("first", " ", "line"):
        one.run(printer.lines.write, word)
        two.run(printer.lines.write, word.upper())
    two.run(printer.lines.write, "\n")
    one.run(print, file=printer.lines)
    one.run(printer.lines.write, "rest of 1")
    two.run(end_printing)
    one.run(end_printing)
    assert printer.logged == [
        "call=2 printed: FIRST LINE",
        "call=1 printed: first line",
        "call=1 printed: rest of 1",
    ]


def test_what_is_printed_outside_of_calls(printer: Printer) -> None:
    """A module that prints while a worker is set up is heard too, without a call."""
    Context().run(print, "ready", file=printer.lines)
    assert printer.logged == ["call= printed: ready"]


@pytest.mark.parametrize(
    ("text", "logged"),
    [
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\rb\tc\0", "a\\rb\\tc\\x00"),
        ("\u2028\x85", "\\u2028\\x85"),
        ("J\udcfcrgen Zoë", "J\\udcfcrgen Zoë"),
    ],
)
def test_printed_control_characters_are_shown(printer: Printer, text: str, logged: str) -> None:
    """What callers send and handlers print moves no terminal's cursor and forges no line."""
    printer.call("1").run(print, text, file=printer.lines)
    assert printer.logged == [f"call=1 printed: {logged}"]


@pytest.mark.parametrize("piece", [1, 1000, 8192, 20_000])
def test_a_printed_line_that_never_ends(printer: Printer, piece: int) -> None:
    """A handler that prints and never ends its line fills no memory: it is logged in pieces of 8,192."""
    text = "".join(str(number % 10) for number in range(20_000))
    context = printer.call("1")
    for start in range(0, len(text), piece):
        context.run(printer.lines.write, text[start : start + piece])
    assert [len(line) for line in printer.logged] == [len("call=1 printed: ") + 8192] * 2
    context.run(end_printing)
    assert "".join(line.removeprefix("call=1 printed: ") for line in printer.logged) == text


def test_a_long_printed_line_that_ends(printer: Printer) -> None:
    """A long line that comes with its end is one line of the log; print() writes the end apart."""
    context = printer.call("1")
    context.run(printer.lines.write, "x" * 20_000 + "\n")
    context.run(print, "y" * 8192, file=printer.lines)
    assert printer.logged == ["call=1 printed: " + "x" * 20_000, "call=1 printed: " + "y" * 8192]


def test_the_stand_in_is_a_stream(printer: Printer) -> None:
    """Whoever looks at standard output before using it finds a stream that can be written to."""
    assert printer.lines.writable()
    assert not printer.lines.readable()
    assert not printer.lines.isatty()
    printer.call("1").run(printer.lines.writelines, ["one\n", "two\n"])
    assert printer.logged == ["call=1 printed: one", "call=1 printed: two"]


# ---- folders


@pytest.mark.parametrize("target", ["-", "off"])
def test_no_folder_where_there_is_no_file(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets that are no path make no folder."""
    monkeypatch.chdir(tmp_path)
    ensure_folder(target)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    """The folder of a log is made with all above it, and one that is there is no error."""
    for _ in range(2):
        ensure_folder(str(tmp_path / "log" / "pool" / "access.log"))
    assert (tmp_path / "log" / "pool").is_dir()
