"""fastagi_pool.logs: the exact lines, and that writing them never harms anyone."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import resource
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastagi_pool.logs import (
    JSON,
    LOGGER_NAME,
    SYSLOG,
    SYSLOG_LINE_BYTES,
    AccessLog,
    CallRecord,
    Clock,
    JsonFormatter,
    LogFile,
    LogFileHandler,
    PrintedLines,
    configure,
    current_call,
    end_printing,
    ensure_folder,
    masked,
    rename,
    tell_loss,
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
    queued_s=0.0003,
    peer="10.0.0.7",
    uniqueid="1700000000.1",
    callerid="100",
)


ACCESS_WORDS = [
    *("worker", "gen", "pid", "call", "route", "script", "outcome", "hangup", "commands"),
    *("total_ms", "queued_ms", "asterisk_ms", "script_ms", "db_ms", "peer", "uniqueid", "callerid"),
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
def restored() -> Iterator[None]:
    """The loggers as they were, whatever a test configures."""
    roots = [logging.getLogger(), logging.getLogger(LOGGER_NAME)]
    before = [(each, each.handlers[:], each.level, each.propagate) for each in roots]
    yield
    for each, handlers, level, propagate in before:
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)


@pytest.fixture
def logger(path: Path, restored: None) -> logging.Logger:
    """The package's logger, writing into the file at level info."""
    return configure(LogFile(str(path)), "info", IDENTITY)


@pytest.fixture
def json_logger(path: Path, restored: None) -> logging.Logger:
    """The same in JSON."""
    return configure(LogFile(str(path)), "info", IDENTITY, JSON)


def written(path: Path, record: CallRecord, line_format: str = "text") -> str:
    """Write one access line and read it back."""
    later = Later()
    AccessLog(LogFile(str(path)), IDENTITY, later, line_format).write(record, WALL_S)
    later.run()
    return path.read_text(encoding="utf-8")


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: as on a full disk, the last write is a part of one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def make_room(file: LogFile, path: Path) -> None:
    """Let a file that was opened on a full disk go on writing, to a path where there is room."""
    room = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(room, file.fileno(), inheritable=False)
    os.close(room)


# ---- lines


@pytest.mark.usefixtures("berlin")
def test_the_access_line(path: Path) -> None:
    """The line of a call holds these words in this order: programs read it."""
    assert written(path, RECORD) == (
        "2026-11-21T08:47:22.123+0100 worker=3 gen=1 pid=42 call=6a01-2a-1 route=start script=agi-start "
        "outcome=ok hangup=no commands=3 total_ms=12.3 queued_ms=0.3 asterisk_ms=10.0 script_ms=2.0 "
        "db_ms=1.5 peer=10.0.0.7 uniqueid=1700000000.1 callerid=100\n"
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
            super().__init__("-")

        def write(self, text: str, level: int = logging.INFO) -> None:
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


# ---- JSON


@pytest.mark.usefixtures("berlin")
def test_the_access_line_as_json(path: Path) -> None:
    """The object of a call has the keys of the line in the same order, its numbers as numbers."""
    assert written(path, RECORD, JSON) == (
        '{"time":"2026-11-21T08:47:22.123+0100","worker":3,"gen":1,"pid":42,"call":"6a01-2a-1","route":"start",'
        '"script":"agi-start","outcome":"ok","hangup":false,"commands":3,"total_ms":12.3,"queued_ms":0.3,'
        '"asterisk_ms":10.0,"script_ms":2.0,"db_ms":1.5,"peer":"10.0.0.7","uniqueid":"1700000000.1",'
        '"callerid":"100"}\n'
    )


@pytest.mark.parametrize("more", [{}, {"held_s": 0.5, "refused": 1, "error": "no route"}])
def test_both_formats_have_the_same_keys(tmp_path: Path, more: dict[str, Any]) -> None:
    """Whoever changes the format finds every word of a line again, in the same order."""
    record = replace(RECORD, **more)
    text, as_json = (written(tmp_path / name, record, name) for name in ("text", "json"))
    words = [word.partition("=")[0] for word in shlex.split(text)[1:]]
    assert list(json.loads(as_json)) == ["time", *words]


@given(st.text(), st.text(), st.text())
@example("\u2028\x85\x1b[2J\n", "\udcff", '"}\n{')
def test_what_a_caller_sends_is_one_object(script: str, callerid: str, error: str) -> None:
    """Whatever the caller sends, the object stays one line, and reads back as it was sent."""
    with TemporaryDirectory() as folder:
        record = replace(RECORD, script=script, callerid=callerid, error=error)
        line = written(Path(folder) / "log", record, JSON)
    assert len(line.splitlines()) == 1
    assert line[:-1].isprintable() or "\x7f" in line
    read = json.loads(line)
    assert (read["script"], read["callerid"]) == (script, callerid)


def test_a_log_line_as_json(json_logger: logging.Logger, path: Path) -> None:
    """An object of the log says when, how loud, who and what."""
    json_logger.warning("gen=%d is\nloaded", 2)
    [line] = path.read_text().splitlines()
    read = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}", read.pop("time"))
    assert read == {"level": "WARNING", "worker": 3, "gen": 1, "pid": 42, "message": "gen=2 is\nloaded"}


def test_a_traceback_is_one_text(json_logger: logging.Logger, path: Path) -> None:
    """A traceback stands in the object of its line, as one text with its line ends."""
    try:
        raise ValueError("bug")
    except ValueError:
        json_logger.exception("failed")
    [line] = path.read_text().splitlines()
    traceback = json.loads(line)["traceback"].splitlines()
    assert (traceback[0], traceback[-1]) == ("Traceback (most recent call last):", "ValueError: bug")


def test_other_processes_say_what_they_are(json_logger: logging.Logger, path: Path) -> None:
    """A process without a slot names its kind, also after it has got another name."""
    rename("master pid=7")
    json_logger.error("x")
    read = json.loads(path.read_text())
    assert list(read) == ["time", "level", "process", "pid", "message"]
    assert (read["process"], read["pid"]) == ("master", 7)


# ---- secrets

_SECRETS = [
    (
        "cannot reach mysql+pymysql://me:secret@db/calls now",
        "cannot reach mysql+pymysql://me:***@db/calls now",
    ),
    ("redis://:secret@h and agi://u:secret@i", "redis://:***@h and agi://u:***@i"),
    ("'mysql://me:se/cr@et@db'", "'mysql://me:***@db'"),
]


@pytest.mark.parametrize(("text", "shown"), _SECRETS)
def test_passwords_in_urls_are_hidden(text: str, shown: str) -> None:
    """A password is hidden, also one with signs that ought to be escaped; user and server are not."""
    assert masked(text) == shown


@pytest.mark.parametrize(
    "text",
    ["agi://10.0.0.7:4577/x from Local/100@default", "http://h/ and me:you@x", "mysql://me@db", "://@:"],
)
def test_what_is_no_password_stays(text: str) -> None:
    """Ports, channels and users without a password are told as they are."""
    assert masked(text) == text


@pytest.mark.parametrize("line_format", ["text", "json"])
@pytest.mark.usefixtures("restored")
def test_no_password_in_a_log(path: Path, line_format: str) -> None:
    """Neither a message nor a traceback nor the error of a call tells a password."""
    logger = configure(LogFile(str(path)), "info", IDENTITY, line_format)
    url = "mysql://me:secret@db/calls"
    try:
        raise ConnectionError(url)
    except ConnectionError as error:
        logger.exception("no %s", url)
        written(path, replace(RECORD, error=str(error)), line_format)
    assert path.read_text().count("mysql://me:***@db/calls") == 3
    assert "secret" not in path.read_text()


# ---- syslog


@dataclass
class Daemon:
    """A syslog daemon."""

    path: str
    socket: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Listen."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(self.path)

    def end(self) -> None:
        """Be gone."""
        self.socket.close()
        Path(self.path).unlink()

    @property
    def received(self) -> list[bytes]:
        """All that came since it was asked last."""
        found = []
        try:
            while True:
                found.append(self.socket.recv(65536))
        except BlockingIOError:
            return found

    @property
    def texts(self) -> list[str]:
        """The same without the heads."""
        return [datagram.partition(b"]: ")[2].decode() for datagram in self.received]


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A syslog daemon that listens; its folder has a short name, as sockets need."""
    with TemporaryDirectory() as folder:
        found = Daemon(f"{folder}/log")
        yield found
        found.socket.close()


def syslog(daemon: Daemon, facility: str = "daemon") -> LogFile:
    """Open the way to it."""
    return LogFile(SYSLOG, facility, daemon.path)


@pytest.mark.usefixtures("berlin")
def test_a_line_for_syslog(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line goes out as the C library sends it: priority, local time, name, process, text."""
    monkeypatch.setattr(time, "time", lambda: WALL_S - 15 * 86400)
    syslog(daemon).write("hello\n")
    assert daemon.received == [f"<30>Nov  6 08:47:22 fastagi-pool[{os.getpid()}]: hello".encode()]


@pytest.mark.parametrize(
    ("facility", "level", "priority"),
    [
        ("daemon", logging.CRITICAL, 26),
        ("daemon", logging.ERROR, 27),
        ("user", logging.WARNING, 12),
        ("local0", logging.INFO, 134),
        ("local7", logging.DEBUG, 191),
    ],
)
def test_the_priority_of_a_line(daemon: Daemon, facility: str, level: int, priority: int) -> None:
    """Syslog sorts by the facility that was configured and by how loud a line is."""
    syslog(daemon, facility).write("x\n", level)
    assert daemon.received[0].startswith(b"<%d>" % priority)


@pytest.mark.usefixtures("restored")
def test_the_log_goes_to_syslog(daemon: Daemon) -> None:
    """Each line of the log, a traceback's too, is a message of its own with the level of its record."""
    logger = configure(syslog(daemon), "info", IDENTITY)
    try:
        raise ValueError("bug")
    except ValueError:
        logger.exception("failed")
    received = daemon.received
    assert received[0].endswith(b" ERROR worker=3 gen=1 pid=42 failed")
    assert received[-1].endswith(b"]:   ValueError: bug")
    assert all(datagram.startswith(b"<27>") for datagram in received)


def test_access_lines_go_to_syslog_one_by_one(daemon: Daemon) -> None:
    """Lines that are written together are still a message each."""
    later = Later()
    access = AccessLog(syslog(daemon), IDENTITY, later)
    for number in range(3):
        access.write(replace(RECORD, ref=str(number)), WALL_S)
    later.run()
    assert [re.findall(r" call=(\d) ", text) for text in daemon.texts] == [["0"], ["1"], ["2"]]


def test_without_syslog_lines_are_lost_and_counted(daemon: Daemon) -> None:
    """Where nobody listens, at the start or later, nothing is raised; what comes after is heard."""
    daemon.end()
    file = syslog(daemon)
    file.write("one\ntwo\n")
    assert (file.lost_lines, file.take_loss()) == (2, "")
    daemon.begin()
    file.write("three\n")
    assert daemon.texts == ["three"]
    assert file.take_loss() == "2 log lines were lost: no such file or directory (syslog)"
    assert file.take_loss() == ""


def test_a_syslog_that_was_restarted_is_found_again(daemon: Daemon) -> None:
    """No line is lost because the daemon is another one than before."""
    file = syslog(daemon)
    file.write("one\n")
    assert daemon.texts == ["one"]
    daemon.end()
    daemon.begin()
    file.write("two\n")
    assert daemon.texts == ["two"]
    assert file.lost_lines == 0


def test_a_syslog_that_does_not_read_holds_nobody_up(daemon: Daemon) -> None:
    """A daemon that is too slow costs lines and no time, and it is told why."""
    file = syslog(daemon)
    sent = 0
    while not file.lost_lines:
        file.write("x" * 4000 + "\n")
        sent += 1
    assert len(daemon.received) == sent - 1
    file.write("again\n")
    assert daemon.texts == ["again"]
    assert file.take_loss() == "1 log lines were lost: whoever reads them is too slow (syslog)"


@pytest.mark.parametrize("text", ["x" * 20_000, "é" * 10_000, "x" + "é" * 10_000])
def test_a_long_line_for_syslog_is_cut(daemon: Daemon, text: str) -> None:
    """A line longer than a syslog daemon takes arrives shortened, whole characters only."""
    syslog(daemon).write(f"{text}\n")
    [datagram] = daemon.received
    arrived = datagram.decode().partition("]: ")[2]
    assert len(datagram) <= 8192
    assert SYSLOG_LINE_BYTES - 1 <= len(arrived.encode()) <= SYSLOG_LINE_BYTES
    assert arrived.endswith("...")
    assert text.startswith(arrived[:-3])


@pytest.mark.usefixtures("restored")
def test_a_long_object_for_syslog_stays_one(daemon: Daemon) -> None:
    """A JSON line is shortened inside its longest texts, beginning and end kept, and can still be read."""
    logger = configure(syslog(daemon), "info", IDENTITY, JSON)
    logger.error("a%sz", '"' * 20_000)
    later = Later()
    access = AccessLog(syslog(daemon), IDENTITY, later, JSON)
    access.write(replace(RECORD, script="\n" * 9000, callerid="c" * 9000, error="short"), WALL_S)
    later.run()
    first, second = (json.loads(text) for text in daemon.texts)
    assert re.fullmatch(r'a"+\.\.\."+z', first["message"])
    assert second["error"] == "short"
    assert "..." in second["script"]
    assert "..." in second["callerid"]


def test_an_object_is_cut_to_any_length() -> None:
    """However long the signs of a text are in JSON, a line becomes as short as it must, and that is found."""
    record = logging.makeLogRecord({"msg": "\U0001f600" * 50 + "a" * 100 + "\U0001f600" * 50})
    whole = len(JsonFormatter(IDENTITY).format(record))
    for longest in range(110, whole):
        line = JsonFormatter(IDENTITY, longest).format(record)
        assert len(line) <= longest
        assert "..." in json.loads(line)["message"]


def test_an_object_without_long_texts_stays_whole() -> None:
    """What cannot be cut shorter is written as it is."""
    assert (
        json.loads(JsonFormatter(IDENTITY, 10).format(logging.makeLogRecord({"msg": "hello"})))["pid"] == 42
    )


def test_syslog_lends_no_descriptor(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> None:
    """What must write to a descriptor, as a dump of stacks, writes to standard error."""
    file = syslog(daemon)
    file.reopen()
    os.write(file.fileno(), b"stacks\n")
    file.close()
    os.write(file.fileno(), b"more\n")
    assert capfd.readouterr().err == "stacks\nmore\n"


def test_only_a_file_is_closed(path: Path) -> None:
    """A process that lets go of the log closes the file."""
    file = LogFile(str(path))
    file.close()
    file.write("lost\n")
    assert file.lost_lines == 1


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


def test_what_was_lost_is_told_once(logger: logging.Logger, path: Path, tmp_path: Path) -> None:
    """As soon as there is room again the log tells how many lines are missing, and why."""
    file = LogFile("/dev/full")
    configure(file, "error", IDENTITY)
    for _ in range(3):
        logger.error("lost")
    make_room(file, path)
    logger.error("first")
    logger.error("second")
    lines = [line.partition(f"{IDENTITY} ")[2] for line in path.read_text().splitlines()]
    assert lines == ["first", "3 log lines were lost: no space left on device (/dev/full)", "second"]
    assert file.lost_lines == 3


def test_lost_access_lines_are_told_in_the_log(logger: logging.Logger, path: Path, tmp_path: Path) -> None:
    """What is missing in the access log is told in the log, so that access lines stay alone."""
    later, file = Later(), LogFile("/dev/full")
    access = AccessLog(file, IDENTITY, later)
    access.write(RECORD, WALL_S)
    later.run()
    assert path.read_text() == ""
    make_room(file, tmp_path / "access.log")
    access.write(RECORD, WALL_S)
    later.run()
    assert path.read_text().endswith(" 1 log lines were lost: no space left on device (/dev/full)\n")
    assert len((tmp_path / "access.log").read_text().splitlines()) == 1


def test_nothing_lost_is_nothing_told(logger: logging.Logger, path: Path) -> None:
    """A file that takes everything gives no reason to speak."""
    file = LogFile(str(path))
    file.write("x\n")
    tell_loss(file)
    assert path.read_text() == "x\n"


@pytest.mark.parametrize("same_process", [True, False])
def test_half_a_line_stays_alone(path: Path, same_process: bool) -> None:
    """The rest of a line that the disk had no room for is lost; the next line begins on its own."""
    torn, other = LogFile(str(path)), LogFile(str(path))
    with files_up_to(10):
        torn.write("whole\nhalf of it\nlost\n")
        other.write("lost\n")
    assert (torn.lost_lines, other.lost_lines) == (2, 1)
    (torn if same_process else other).write("next\n")
    (other if same_process else torn).write("last\n")
    assert path.read_text() == "whole\nhalf\nnext\nlast\n"


def test_no_line_end_where_none_is_missing(path: Path) -> None:
    """If the disk was full between two lines, no empty line stands there."""
    file = LogFile(str(path))
    with files_up_to(6):
        file.write("whole\nlost\n")
    file.write("next\n")
    assert path.read_text() == "whole\nnext\n"


def test_half_a_line_in_a_pipe_stays_alone() -> None:
    """Where nothing can be read back, a process still knows that it left a line unfinished."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    file = LogFile("/dev/null")
    os.dup2(writer, file.fileno())
    file.write("x" * 1_000_000 + "\n")
    assert file.lost_lines == 1
    while len(os.read(reader, 1_000_000)) == 1_000_000:
        pass
    file.write("next\n")
    assert os.read(reader, 1_000_000) == b"\nnext\n"
    for descriptor in (reader, writer):
        os.close(descriptor)
    file.close()


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


@pytest.mark.parametrize("target", ["-", "off", "syslog"])
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
