"""fastagi_pool.logs: the exact lines, and that writing them never harms anyone."""

from __future__ import annotations

import errno
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

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
    configure,
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
    assert second == "Traceback (most recent call last):"
    assert last == "ValueError: bug"


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
