"""fastagi_pool.handlers.vicidial.logfiles: the lines to the byte, in the right file, and never any harm."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastagi_pool.handlers.vicidial.logfiles import AltDial, HangupCause, LogFiles

#: 2026-11-21 08:47:22 in the time zone of these tests, and the first second of the next day there.
NOW: Final = 1_795_247_242.9
MIDNIGHT: Final = 1_795_302_000.0
STAMP: Final = "2026-11-21 08:47:22"
LOG: Final = logging.getLogger("test_logfiles")
DECISION: Final = AltDial(101, "3125551212", "TESTCAMP", "ALT", 25, "hopper insert")
LEG: Final = HangupCause(
    cause="16",
    dialstatus="ANSWER",
    dial_s="30",
    ring_s="10",
    uid="1700000000.26",
    channel="SIP/trunk-00000b02",
    extension="h",
    type="SIP",
    code="V1202150310000000101",
    name="V1202150310000000101",
    priority="1",
)


@pytest.fixture(autouse=True)
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time zone one hour ahead, whatever the machine's is."""
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[LogFiles]:
    """Log files in the test's folder."""
    files = LogFiles(tmp_path, LOG)
    yield files
    files.close()


def content(folder: Path) -> dict[str, str]:
    """What stands in each file of a folder."""
    return {path.name: path.read_bytes().decode("utf-8", "surrogateescape") for path in folder.iterdir()}


def descriptors(folder: Path) -> dict[int, Path]:
    """What this process has open in a folder, by descriptor."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[int(link.name)] = link.readlink()
        except FileNotFoundError:
            pass  # The one by which the folder was read, or what another test has left to the collector.
    return {fd: path for fd, path in found.items() if path.parent == folder}


# ---- lines


@pytest.mark.parametrize(
    ("output", "to_file", "to_stderr"),
    [
        ("NONE", False, False),
        ("", False, False),
        ("STDERR", False, True),
        ("FILE", True, False),
        ("BOTH", True, True),
    ],
)
def test_debug_lines(
    output: str,
    to_file: bool,
    to_stderr: bool,
    files: LogFiles,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Debug lines have time, daemon, process and text, and go where servers.agi_output says."""
    files.debug(["AGI Environment Dump:", "a|b"], "begin", output, NOW)
    files.debug(["QUERY done"], "call_log", output, NOW)
    lines = (
        f"{STAMP}|VDfastAGI|begin|AGI Environment Dump:\n"
        f"{STAMP}|VDfastAGI|begin|a|b\n"
        f"{STAMP}|VDfastAGI|call_log|QUERY done\n"
    )
    assert content(tmp_path) == ({"FASTagiout.2026-11-21": lines} if to_file else {})
    assert capfd.readouterr().err == (lines if to_stderr else "")


@pytest.mark.parametrize(
    ("decision", "line"),
    [
        (DECISION, "101|3125551212|TESTCAMP|ALT|25|hopper insert|"),
        (
            DECISION._replace(alt_dial="X3", priority=0, outcome="hopper skip|DNC check failed"),
            "101|3125551212|TESTCAMP|X3|0|hopper skip|DNC check failed|",
        ),
        (DECISION._replace(phone_number="", alt_dial="ADDR3"), "101||TESTCAMP|ADDR3|25|hopper insert|"),
    ],
)
@pytest.mark.parametrize("output", ["STDERR", "FILE", "BOTH"])
def test_alt_dial_line(output: str, decision: AltDial, line: str, files: LogFiles, tmp_path: Path) -> None:
    """A decision about a further number is one line in a file of its own, as soon as anything is logged."""
    files.alt_dial(decision, output, NOW)
    assert content(tmp_path) == {"auto-alt-dial.2026-11-21": f"{STAMP}|VDfastAGI|{line}\n"}


@pytest.mark.parametrize("output", ["NONE", ""])
def test_no_alt_dial_line(output: str, files: LogFiles, tmp_path: Path) -> None:
    """Where nothing is logged, decisions are not either."""
    files.alt_dial(DECISION, output, NOW)
    assert content(tmp_path) == {}


def test_hangup_line(files: LogFiles, tmp_path: Path) -> None:
    """How a leg ended is one line of these fields in this order, in a file without a date."""
    files.hangup_cause(LEG, NOW)
    assert content(tmp_path) == {
        "HANGUP_cause-output.txt": f"{STAMP}|16|ANSWER|30|10|1700000000.26|SIP/trunk-00000b02|h|SIP|"
        "V1202150310000000101|V1202150310000000101|1|\n"
    }


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("two\nlines\r\n", "two lines  "),
        ("tab\tnul\0escape\x1b[31m del\x7f", "tab nul escape [31m del "),
        ("next\x85line\x9b separator\u2028paragraph\u2029", "next line  separator paragraph "),
        ("J\u00fcrgen \U0001f600 \u00a0", "J\u00fcrgen \U0001f600 \u00a0"),
        ("bytes \udcfc\udc85 stay", "bytes \udcfc\udc85 stay"),
        ("half \ud83d \udcfc", "half \\ud83d \\udcfc"),
        ("", ""),
    ],
)
def test_a_line_stays_one_line(text: str, written: str, files: LogFiles, tmp_path: Path) -> None:
    """Control characters become spaces, and bytes that are no UTF-8 are written as they came."""
    files.debug([text], "call_log", "FILE", NOW)
    assert content(tmp_path)["FASTagiout.2026-11-21"] == f"{STAMP}|VDfastAGI|call_log|{written}\n"


def test_no_character_ends_a_line(files: LogFiles, tmp_path: Path) -> None:
    """Every control character and line separator of Unicode becomes a space, and no other character does."""
    text = "".join(map(chr, range(0xD800)))
    files.debug([text], "call_log", "FILE", NOW)
    line = content(tmp_path)["FASTagiout.2026-11-21"].removesuffix("\n").split("|", 3)[3]
    changed = {char for char, now in zip(text, line, strict=True) if char != now}
    assert line.splitlines() == [line]
    assert {unicodedata.category(char) for char in changed} == {"Cc", "Zl", "Zp"}
    assert {line[ord(char)] for char in changed} == {" "}


def test_no_field_forges_a_line(files: LogFiles, tmp_path: Path) -> None:
    """A caller's line end in any field of any file makes no second line."""
    files.debug(["x"], "call\nlog", "FILE", NOW)
    files.alt_dial(DECISION._replace(phone_number="1\n2026"), "FILE", NOW)
    files.hangup_cause(LEG._replace(channel="SIP/x\n2026", name="\r\n"), NOW)
    assert [text.count("\n") for text in content(tmp_path).values()] == [1, 1, 1]
    assert not any("\r" in text for text in content(tmp_path).values())


@given(lines=st.lists(st.text(st.characters()), min_size=1, max_size=5))
def test_any_text_can_be_written(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever comes, as many lines are written as were given."""
    folder = tmp_path_factory.mktemp("logs")
    files = LogFiles(folder, LOG)
    files.debug(lines, "begin", "FILE", NOW)
    files.close()
    assert files.lost_lines == 0
    assert len(content(folder)["FASTagiout.2026-11-21"].splitlines()) == len(lines)


# ---- files


def test_names_follow_the_day(files: LogFiles, tmp_path: Path) -> None:
    """A line goes into the file of its own day: a new one after midnight, and the old one for an old line."""
    for now in (MIDNIGHT - 0.1, MIDNIGHT, MIDNIGHT - 0.1):
        files.debug(["x"], "call_log", "FILE", now)
        files.alt_dial(DECISION, "FILE", now)
    counts = {name: text.count("\n") for name, text in content(tmp_path).items()}
    assert counts == {
        "FASTagiout.2026-11-21": 2,
        "FASTagiout.2026-11-22": 1,
        "auto-alt-dial.2026-11-21": 2,
        "auto-alt-dial.2026-11-22": 1,
    }


def test_lines_are_appended(files: LogFiles, tmp_path: Path) -> None:
    """What the file holds already stays, and two processes that write by turns lose nothing."""
    path = tmp_path / "HANGUP_cause-output.txt"
    path.write_text("before\n")
    other = LogFiles(tmp_path, LOG)
    files.hangup_cause(LEG, NOW)
    other.hangup_cause(LEG, NOW)
    files.hangup_cause(LEG, NOW)
    other.close()
    assert path.read_text().startswith("before\n")
    assert path.read_text().count("\n") == 4


def test_lines_of_a_request_are_one_write(
    files: LogFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All lines of a batch go out together, so that those of another process do not fall between."""
    sizes = []
    write = os.write

    def counting(fd: int, data: bytes) -> int:
        sizes.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", counting)
    files.debug(["x"] * 1000, "call_log", "FILE", NOW)
    assert len(sizes) == 1
    assert content(tmp_path)["FASTagiout.2026-11-21"].count("\n") == 1000


def test_a_file_stays_open(files: LogFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of one second cost no look at the file's name: it is opened once."""
    files.debug(["x"], "call_log", "FILE", NOW)
    before = descriptors(tmp_path)
    monkeypatch.setattr(os, "open", None)
    monkeypatch.setattr(Path, "stat", None)
    files.debug(["x"], "call_log", "FILE", NOW + 0.9)
    monkeypatch.undo()
    assert descriptors(tmp_path) == before
    assert files.lost_lines == 0


def test_other_programs_do_not_inherit_the_files(files: LogFiles, tmp_path: Path) -> None:
    """The descriptors are closed in programs that a handler starts."""
    files.hangup_cause(LEG, NOW)
    (fd,) = descriptors(tmp_path)
    assert not os.get_inheritable(fd)


@pytest.mark.parametrize("later_s", [1.0, 3600.0, -1.0, -3600.0])
@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_was_moved_away(replaced: bool, later_s: float, files: LogFiles, tmp_path: Path) -> None:
    """A rotated file is noticed after a second, also by a clock that was set back, and begun anew."""
    path = tmp_path / "HANGUP_cause-output.txt"
    files.hangup_cause(LEG, NOW)
    path.rename(tmp_path / "old")
    if replaced:
        path.write_text("")
    files.hangup_cause(LEG, NOW + later_s)
    assert {name: text.count("\n") for name, text in content(tmp_path).items()} == {"old": 1, path.name: 1}


def test_a_file_that_was_deleted(files: LogFiles, tmp_path: Path) -> None:
    """A deleted file comes again, and the old one's space is given back."""
    path = tmp_path / "HANGUP_cause-output.txt"
    files.hangup_cause(LEG, NOW)
    before = len(descriptors(tmp_path))
    path.unlink()
    files.hangup_cause(LEG, NOW + 1)
    assert path.read_text().count("\n") == 1
    assert len(descriptors(tmp_path)) == before


def test_closing(files: LogFiles, tmp_path: Path) -> None:
    """Closing gives the descriptors back, twice does no harm, and the next line opens its file again."""
    before = descriptors(tmp_path)
    files.hangup_cause(LEG, NOW)
    files.debug(["x"], "call_log", "FILE", NOW)
    files.close()
    files.close()
    assert descriptors(tmp_path) == before
    files.hangup_cause(LEG, NOW)
    assert content(tmp_path)["HANGUP_cause-output.txt"].count("\n") == 2


# ---- trouble


def test_a_missing_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without the folder lines are lost and counted, one warning a minute says so, and no folder is made."""
    files = LogFiles(tmp_path / "none", LOG)
    for number in range(120):
        files.debug(["x", "y"], "call_log", "FILE", NOW + number)
    assert files.lost_lines == 240
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot write {tmp_path}/none/FASTagiout.2026-11-21: No such file or directory; "
        f"{lost} lines of VICIdial's logs are lost so far"
        for lost in (2, 122)
    ]
    assert content(tmp_path) == {}


def test_a_folder_that_comes_back(tmp_path: Path) -> None:
    """Once the folder is there, lines are written again: nobody has to restart anything."""
    folder = tmp_path / "logs"
    files = LogFiles(folder, LOG)
    files.hangup_cause(LEG, NOW)
    folder.mkdir()
    files.hangup_cause(LEG, NOW)
    files.close()
    assert (files.lost_lines, len(content(folder))) == (1, 1)


def test_a_folder_in_the_place_of_the_file(files: LogFiles, tmp_path: Path) -> None:
    """What is no file is left alone."""
    (tmp_path / "HANGUP_cause-output.txt").mkdir()
    files.hangup_cause(LEG, NOW)
    assert files.lost_lines == 1


def test_one_warning_for_all_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Trouble with several files at once is one warning: the disk is one."""
    files = LogFiles(tmp_path / "none", LOG)
    files.debug(["x"], "call_log", "FILE", NOW)
    files.alt_dial(DECISION, "FILE", NOW)
    files.hangup_cause(LEG, NOW)
    assert files.lost_lines == 3
    assert len(caplog.records) == 1


def test_a_disk_that_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a full disk lines are lost and counted; the call that wrote them goes on."""
    (tmp_path / "FASTagiout.2026-11-21").symlink_to("/dev/full")
    files = LogFiles(tmp_path, LOG)
    files.debug(["x", "y"], "call_log", "FILE", NOW)
    files.debug(["x"], "call_log", "FILE", NOW)
    assert files.lost_lines == 3
    assert os.strerror(errno.ENOSPC) in caplog.text


def test_a_disk_that_fills_up(files: LogFiles, tmp_path: Path) -> None:
    """Where only a part can be written, the lines of the rest are counted, and later ones go on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        files.debug(["x" * 100] * 30, "call_log", "FILE", NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    path = tmp_path / "FASTagiout.2026-11-21"
    assert path.stat().st_size == 2000
    assert files.lost_lines == 30 - path.read_text().count("\n")
    files.debug(["again"], "call_log", "FILE", NOW)
    assert path.read_text().endswith("|again\n")


def test_no_standard_error(tmp_path: Path) -> None:
    """A standard error that takes nothing costs its lines only; the file has them all the same."""
    sys.stderr.flush()
    kept, full = os.dup(2), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 2)
    files = LogFiles(tmp_path, LOG)
    try:
        files.debug(["x"], "call_log", "BOTH", NOW)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(full)
        files.close()
    assert files.lost_lines == 1
    assert content(tmp_path)["FASTagiout.2026-11-21"].endswith("|x\n")
