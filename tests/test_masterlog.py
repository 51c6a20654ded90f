"""fastagi_pool.masterlog: the master's log on a real file system."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastagi_pool.errors import BootError
from fastagi_pool.logs import LOGGER_NAME
from fastagi_pool.masterlog import LOOK_S, MasterLog

NEVER = {"daily": False, "size_bytes": 0, "keep": 3}
SMALL = {"daily": False, "size_bytes": 1000, "keep": 3}


@pytest.fixture(autouse=True)
def own_loggers() -> Iterator[None]:
    """Give the loggers back as they were."""
    loggers = [logging.getLogger(name) for name in ("", LOGGER_NAME)]
    before = [(each.handlers[:], each.level, each.propagate) for each in loggers]
    yield
    for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
        each.handlers[:] = handlers
        each.setLevel(level)
        each.propagate = propagate


def target(path: Path | str, **others: str) -> dict[str, str]:
    """The log as a loader describes it."""
    return {"file": str(path), "level": "info", "format": "text", "facility": "daemon", **others}


def say(text: str) -> None:
    """Log something."""
    logging.getLogger(LOGGER_NAME).info(text)


def use(log: MasterLog, path: Path, rotation: dict[str, Any], *rotated: Path) -> None:
    """Have a log used, and some files rotated."""
    log.use(target(path), [str(each) for each in rotated], rotation)


def test_lines_of_the_master(tmp_path: Path) -> None:
    """A line says that it is the master's, with its process id; the folder is made if there is none."""
    path = tmp_path / "new" / "pool.log"
    use(MasterLog(), path, NEVER)
    say("hello")
    assert path.read_text().endswith(f" INFO master pid={os.getpid()} hello\n")


def test_log_moves(tmp_path: Path) -> None:
    """Another path is written from now on; the descriptor of the old one is closed."""
    log = MasterLog()
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        use(log, path, NEVER)
        say(path.name)
    assert ("first" in first.read_text(), "second" in first.read_text()) == (True, False)
    assert "second" in second.read_text()
    open_files = {entry.resolve() for entry in Path("/proc/self/fd").iterdir()}
    assert (first in open_files, second in open_files) == (False, True)


def test_level_and_format_change(tmp_path: Path) -> None:
    """A reload may change how much is told, and how, in the same file."""
    log = MasterLog()
    use(log, tmp_path / "log", NEVER)
    log.use(target(tmp_path / "log", level="error", format="json"), [], NEVER)
    say("unheard")
    logging.getLogger(LOGGER_NAME).error("heard")
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith("{")
    assert "heard" in line


def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    """A log that cannot be opened is an error that names it, and the old one stays in use."""
    log = MasterLog()
    use(log, tmp_path / "log", NEVER)
    with pytest.raises(BootError, match=r"cannot write log.file /proc/nowhere/pool.log: "):
        use(log, Path("/proc/nowhere/pool.log"), NEVER)
    say("still here")
    assert "still here" in (tmp_path / "log").read_text()


def test_rotation(tmp_path: Path) -> None:
    """What is due is put aside and told, the own file is opened anew, and the others must be told."""
    log = MasterLog()
    own, access = tmp_path / "pool.log", tmp_path / "access.log"
    use(log, own, SMALL, own, access)
    assert not log.rotate(1_800_000_000.0, 100.0)
    say("x" * 2000)
    assert log.rotate(1_800_000_001.0, 101.0)
    (aside,) = tmp_path.glob("pool.log-*")
    assert "x" * 2000 in aside.read_text()
    assert f"{own} was put aside as {aside.name}: its size" in own.read_text()
    assert not log.rotate(1_800_000_002.0, 102.0)


def test_files_are_not_looked_at_all_the_time(tmp_path: Path) -> None:
    """However often the loop turns, files are looked at once a second."""
    log = MasterLog()
    own, access = tmp_path / "pool.log", tmp_path / "access.log"
    use(log, own, SMALL, access)
    log.rotate(1_800_000_000.0, 100.0)
    access.write_text("x" * 2000)
    assert not log.rotate(1_800_000_000.0, 100.0 + LOOK_S / 2)
    assert log.rotate(1_800_000_000.0, 100.0 + LOOK_S)


def test_one_file_does_not_hinder_another(tmp_path: Path) -> None:
    """A file that cannot be put aside is told, and the others are rotated."""
    log = MasterLog()
    own, bad, good = tmp_path / "pool.log", tmp_path / "bad" / "a.log", tmp_path / "good.log"
    use(log, own, SMALL, bad, good)
    # A folder that is a file: an error for root as well.
    loop = tmp_path / "bad"
    loop.write_text("")
    good.write_text("x" * 2000)
    assert log.rotate(1_800_000_000.0, 100.0)
    assert f"cannot rotate {bad}: Not a directory" in own.read_text()
    assert list(tmp_path.glob("good.log-*"))


def test_no_rotation_unless_configured(tmp_path: Path) -> None:
    """Without a size and a period nothing is ever put aside; a reload may change that both ways."""
    log = MasterLog()
    own = tmp_path / "pool.log"
    for now_s, rotation, expected in ((100.0, NEVER, False), (200.0, SMALL, True), (300.0, NEVER, False)):
        use(log, own, rotation, own)
        say("x" * 2000)
        assert log.rotate(1_800_000_000.0 + now_s, now_s) is expected


def test_path_is_followed(tmp_path: Path) -> None:
    """After somebody else has rotated the file the path is opened anew."""
    log = MasterLog()
    own = tmp_path / "pool.log"
    use(log, own, NEVER)
    own.rename(tmp_path / "old")
    log.reopen()
    say("new")
    assert "new" in own.read_text()


def test_nothing_open_nothing_lost() -> None:
    """Before the first load there is no file: nothing is lost, reopened or closed."""
    log = MasterLog()
    log.reopen()
    log.forget()
    assert log.lost_lines == 0
    assert not log.rotate(1_800_000_000.0, 100.0)


def test_lost_lines_are_counted() -> None:
    """Lines that a full disk took are counted."""
    log = MasterLog()
    log.use(target("/dev/full"), [], NEVER)
    say("lost")
    assert log.lost_lines >= 1
