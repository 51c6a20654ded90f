"""fastagi_pool.rotation: what is put aside, how it is named, and that nothing else is ever touched."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastagi_pool.rotation import (
    RETRY_S,
    Reason,
    Rotated,
    Rotation,
    RotationSettings,
    believed_day,
    due,
    name_aside,
    outdated,
)

TODAY = date(2026, 11, 21)
YESTERDAY = TODAY - timedelta(days=1)
DAILY = RotationSettings(daily=True, size_bytes=0, keep=3)
BY_SIZE = RotationSettings(daily=False, size_bytes=100, keep=3)
BOTH = RotationSettings(daily=True, size_bytes=100, keep=3)
NEVER = RotationSettings(daily=False, size_bytes=0, keep=3)


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time zone one hour ahead: the days are local ones."""
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at(text: str) -> float:
    """Seconds since the epoch of a local time as ``2026-11-21 08:47``."""
    return datetime.fromisoformat(text).timestamp()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log file that was written on the 20th."""
    path = tmp_path / "error.log"
    write(path, "old", "2026-11-20 23:50")
    return path


def write(path: Path, text: str, when: str) -> None:
    """Write a file at some time."""
    path.write_text(text)
    os.utime(path, (at(when), at(when)))


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(each.name for each in folder.iterdir())


# ---- decisions


@pytest.mark.parametrize(
    ("size_bytes", "born_day", "settings", "reason"),
    [
        (1, YESTERDAY, DAILY, Reason.DAY),
        (1, TODAY, DAILY, None),
        (1, TODAY + timedelta(days=1), DAILY, None),
        (0, YESTERDAY, BOTH, None),
        (100, YESTERDAY, BY_SIZE, None),
        (101, TODAY, BY_SIZE, Reason.SIZE),
        (101, TODAY, BOTH, Reason.SIZE),
        (101, YESTERDAY, BOTH, Reason.DAY),
        (10**12, YESTERDAY, NEVER, None),
    ],
)
def test_when_a_file_is_due(
    size_bytes: int, born_day: date, settings: RotationSettings, reason: Reason | None
) -> None:
    """A file is due on the day after it was begun and beyond its size, and never if it is empty."""
    assert due(size_bytes, born_day, TODAY, settings) is reason


@pytest.mark.parametrize(
    ("settings", "active"), [(DAILY, True), (BY_SIZE, True), (BOTH, True), (NEVER, False)]
)
def test_whether_there_is_anything_to_do(settings: RotationSettings, active: bool) -> None:
    """Without a period and a size nobody need look."""
    assert settings.active is active


@pytest.mark.parametrize(("ahead", "believed"), [(-400, -400), (0, 0), (1, 1), (2, 0), (1500, 0)])
def test_a_day_in_the_future_is_not_believed(ahead: int, believed: int) -> None:
    """After a clock that was far ahead was set right, files rotate again each day."""
    assert believed_day(TODAY + timedelta(days=ahead), TODAY) == TODAY + timedelta(days=believed)


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ([], "error.log-20261121"),
        (["error.log", "error.log-20261120", "access.log-20261121"], "error.log-20261121"),
        (["error.log-20261121"], "error.log-20261121.1"),
        (["error.log-20261121.9", "error.log-20261121.10"], "error.log-20261121.11"),
        (["error.log-20261121.gz", "error.log-20261121.01", "xerror.log-20261121"], "error.log-20261121"),
    ],
)
def test_the_name_of_what_is_put_aside(found: list[str], name: str) -> None:
    """The name is the day's, and a number higher than all that were given that day, gaps or not."""
    assert name_aside("error.log", TODAY, found) == name


def test_the_oldest_go() -> None:
    """Days count before numbers, and numbers as numbers."""
    found = [
        *("error.log-20261121", "error.log-20261120.10", "error.log-20261120.9", "error.log-20261120"),
        *("error.log", "error.log-20261119.gz"),
    ]
    assert outdated("error.log", found, 2) == ["error.log-20261120", "error.log-20261120.9"]
    assert outdated("error.log", found, 4) == outdated("error.log", [], 0) == []


@given(st.from_regex(r"error.log(-\d{6,9}(\.\d{0,3})?)?[a-z.\n]{0,3}", fullmatch=True))
def test_only_exact_names_are_removed(name: str) -> None:
    """Whatever lies beside a log, what has no name that is given here is not removed."""
    for each in outdated("error.log", [name], 0):
        day, _, number = each.removeprefix("error.log-").partition(".")
        again = f"error.log-{datetime.strptime(day, '%Y%m%d'):%Y%m%d}" + (f".{int(number)}" if number else "")
        assert again == each
        assert each.isascii()


# ---- a file


def test_a_file_of_yesterday_is_put_aside_at_once(log: Path) -> None:
    """After a start the first look puts aside what was written before midnight, under its own day."""
    rotated = Rotation(log, DAILY).look(at("2026-11-21 00:00"))
    aside = log.with_name("error.log-20261120")
    assert rotated == Rotated(log, aside, Reason.DAY)
    assert names(log.parent) == ["error.log-20261120"]
    assert aside.read_text() == "old"


def test_a_file_of_yesterday_that_is_written_into_before_the_first_look(log: Path) -> None:
    """What the start itself logs does not make yesterday's file one of today."""
    rotation = Rotation(log, DAILY)
    write(log, "old and new", "2026-11-21 08:00")
    assert rotation.look(at("2026-11-21 08:00")) is not None
    assert names(log.parent) == ["error.log-20261120"]


def test_a_file_that_was_empty_for_days_begins_with_its_first_line(log: Path) -> None:
    """A file that was empty over midnight stays for the whole day on which somebody writes into it."""
    rotation = Rotation(log, DAILY)
    write(log, "", "2026-11-20 23:50")
    assert rotation.look(at("2026-11-20 23:59")) is None
    assert rotation.look(at("2026-11-23 08:00")) is None
    write(log, "first", "2026-11-23 08:01")
    assert rotation.look(at("2026-11-23 08:01")) is None
    assert rotation.look(at("2026-11-24 00:00")) is not None
    assert names(log.parent) == ["error.log-20261123"]


def test_midnight_is_local(log: Path) -> None:
    """A file stays until the day ends where the server stands."""
    rotation = Rotation(log, DAILY)
    assert rotation.look(at("2026-11-20 23:59")) is None
    assert rotation.look(at("2026-11-21 00:00")) is not None


def test_a_file_that_is_written_into_gets_no_younger(log: Path) -> None:
    """What was begun yesterday is due today, though it was written into a moment ago."""
    rotation = Rotation(log, DAILY)
    assert rotation.look(at("2026-11-20 23:59")) is None
    write(log, "more", "2026-11-21 00:01")
    assert rotation.look(at("2026-11-21 00:01")) is not None


def test_each_day_one_file(log: Path) -> None:
    """Looking all the time, each day's lines get into that day's file, and only the latest are kept."""
    rotation = Rotation(log, DAILY)
    for day in range(20, 26):
        for hour in range(0, 24, 6):
            moment = f"2026-11-{day} {hour:02}:00"
            rotation.look(at(moment))
            if not log.exists():
                write(log, f"of the {day}th", moment)
    assert names(log.parent) == ["error.log", *(f"error.log-202611{day}" for day in (22, 23, 24))]
    assert log.with_name("error.log-20261124").read_text() == "of the 24th"


def test_a_file_that_has_grown_is_put_aside(log: Path) -> None:
    """Beyond its size a file is put aside as often as it grows, in the order of the names."""
    rotation = Rotation(log, BY_SIZE)
    for number in range(3):
        write(log, f"{number}" * 100, "2026-11-20 23:50")
        assert rotation.look(at("2026-11-20 23:51")) is None
        write(log, f"{number}" * 101, "2026-11-20 23:50")
        rotated = rotation.look(at("2026-11-20 23:51"))
        assert rotated is not None
        assert rotated.reason is Reason.SIZE
        assert rotated.put_aside.read_text()[0] == str(number)
    assert names(log.parent) == ["error.log-20261120", "error.log-20261120.1", "error.log-20261120.2"]


def test_an_empty_file_stays(log: Path) -> None:
    """A log of a day on which nothing was said makes no file."""
    log.write_text("")
    rotation = Rotation(log, DAILY)
    assert rotation.look(at("2026-11-20 12:00")) is None
    assert rotation.look(at("2026-11-25 12:00")) is None
    assert names(log.parent) == ["error.log"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A file that is made later is looked after from then on."""
    rotation = Rotation(tmp_path / "error.log", DAILY)
    assert rotation.look(at("2026-11-20 12:00")) is None
    write(tmp_path / "error.log", "x", "2026-11-21 12:00")
    assert rotation.look(at("2026-11-21 12:00")) is None
    assert rotation.look(at("2026-11-22 12:00")) is not None


def test_a_clock_that_is_set_right_about_midnight(log: Path) -> None:
    """A clock that goes forward and back over midnight makes one file a day."""
    rotation = Rotation(log, DAILY)
    times = ["2026-11-20 23:59", "2026-11-21 00:01"] * 5
    found = []
    for moment in times:
        found.append(rotation.look(at(moment)))
        write(log, "more", moment)
    assert [each is not None for each in found] == [False, True] + [False] * 8


def test_a_clock_that_was_years_ahead(log: Path) -> None:
    """After the clock was set back, the next day begins a new file, and what is put aside stays."""
    rotation = Rotation(log, RotationSettings(daily=True, size_bytes=0, keep=1))
    assert rotation.look(at("2030-01-01 12:00")) is not None
    write(log, "x", "2030-01-01 12:00")
    assert rotation.look(at("2030-01-02 12:00")) is not None
    write(log, "y", "2026-11-21 12:00")
    assert rotation.look(at("2026-11-21 12:00")) is None
    assert rotation.look(at("2026-11-22 12:00")) is not None
    assert names(log.parent) == ["error.log-20261121"]


def test_only_what_was_put_aside_is_removed(log: Path, tmp_path: Path) -> None:
    """Links, folders and files of other names stay, however old; removed are the oldest of ours."""
    target = tmp_path / "precious"
    target.write_text("x")
    log.with_name("error.log-20200101").symlink_to(target)
    log.with_name("error.log-20200102").mkdir()
    others = ["error.log-20200103.gz", "error.log-2020010", "error.log-20200199", "access.log-20200104"]
    ours = [f"error.log-2020020{day}" for day in range(1, 6)]
    for name in (*others, *ours):
        log.with_name(name).write_text("x")
    rotated = Rotation(log, DAILY).look(at("2026-11-21 12:00"))
    assert rotated is not None
    assert rotated.fault == ""
    kept = ["error.log-20200101", "error.log-20200102", *others, *ours[3:], "error.log-20261120", "precious"]
    assert names(tmp_path) == sorted(kept)


def test_a_link_leads_to_the_file(log: Path, tmp_path: Path) -> None:
    """If a link leads to the log, the log itself is put aside where it lies, and the link stays."""
    folder = tmp_path / "folder"
    folder.mkdir()
    link = folder / "link.log"
    link.symlink_to(log)
    assert Rotation(link, DAILY).look(at("2026-11-21 12:00")) is not None
    assert names(tmp_path) == ["error.log-20261120", "folder"]
    assert link.is_symlink()


def test_a_device_is_never_put_aside(tmp_path: Path) -> None:
    """What is no regular file, as a pipe to a collector, is left alone."""
    os.mkfifo(tmp_path / "error.log")
    os.utime(tmp_path / "error.log", (0, 0))
    assert Rotation(tmp_path / "error.log", BOTH).look(at("2026-11-21 12:00")) is None


def test_what_cannot_be_put_aside_is_said_now_and_then(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is told and tried again after a minute, also if the clock went back meanwhile."""

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    # Not by rights: tests may run as root, whom they do not stop.
    monkeypatch.setattr(Path, "rename", refuse)
    rotation = Rotation(log, DAILY)
    noon_s = at("2026-11-21 12:00")
    with pytest.raises(PermissionError):
        rotation.look(noon_s)
    assert rotation.look(noon_s + RETRY_S - 1) is None
    for moment_s in (noon_s + RETRY_S, noon_s):
        with pytest.raises(PermissionError):
            rotation.look(moment_s)
    monkeypatch.undo()
    assert rotation.look(noon_s + RETRY_S) is not None


def test_what_cannot_be_removed_is_said(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is put aside even if old ones cannot be removed, and the reason is told."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    for day in range(1, 5):
        log.with_name(f"error.log-2020020{day}").write_text("x")
    monkeypatch.setattr(Path, "unlink", refuse)
    rotated = Rotation(log, DAILY).look(at("2026-11-21 12:00"))
    assert rotated is not None
    assert rotated.put_aside.is_file()
    assert rotated.fault == f"cannot remove {log}-20200202: Permission denied"
