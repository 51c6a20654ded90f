"""fastagi_pool.backlog: whoever asks hears whether calls wait, and never too early that none does."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from children import busy_child, in_child

from fastagi_pool.backlog import BACKLOG_NAME, Backlog, BacklogFacts, JournalFacts, identity_of, read_backlog

_ONE: Final = JournalFacts((BacklogFacts("calls", 1, 0, 1e9),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give the place of a backlog that nobody has made yet."""
    return tmp_path / BACKLOG_NAME


def shown_by(path: Path, *databases: BacklogFacts) -> Backlog:
    """Make a backlog and show figures in it."""
    backlog = Backlog(path)
    assert backlog.attach()
    backlog.publish(JournalFacts(databases, used_bytes=4096, limit_bytes=8192))
    return backlog


def test_what_is_shown_is_read(path: Path) -> None:
    """Figures, times and names come back as they were shown, and the last ones count."""
    databases = (BacklogFacts("anrufe_ä\udcff", 3, 1, 1_700_000_000.25), BacklogFacts("calls", 0, 2, 0.0))
    backlog = shown_by(path, BacklogFacts("calls", 7, 7, 1e9))
    backlog.publish(JournalFacts(databases, used_bytes=1, limit_bytes=2))
    found = read_backlog(path)
    assert sorted(found.databases, key=lambda each: each.database) == sorted(
        databases, key=lambda each: each.database
    )
    assert (found.used_bytes, found.limit_bytes) == (1, 2)
    assert (found.waiting, found.quarantined) == (3, 3)


def test_a_database_that_is_not_told_of_any_more(path: Path) -> None:
    """Figures that nobody repeats are over: the journal was exchanged, and knows that database no more."""
    backlog = shown_by(path, BacklogFacts("calls", 3, 1, 1e9), BacklogFacts("other", 1, 0, 1e9))
    backlog.publish(_ONE)
    assert backlog.waits("calls")
    assert not backlog.waits("other")
    assert read_backlog(path).waiting == 1


def test_quarantined_calls_hold_nobody_up(path: Path) -> None:
    """Only calls that are going to be done must come before a new one."""
    assert not shown_by(path, BacklogFacts("calls", 0, 5, 0.0)).waits("calls")


def test_it_is_never_seen_empty_while_calls_wait(path: Path) -> None:
    """Whoever looks at the very moment at which figures change sees old ones or new ones, none between."""
    written = shown_by(path, *_ONE.databases)

    def write(number: int) -> None:
        written.publish(JournalFacts((BacklogFacts("calls", 1 + number % 7, 0, 1e9 + number),)))

    def look() -> int:
        read = Backlog(path)
        read.attach()
        return sum(not read.waits("calls") for _ in range(2_000_000))

    with busy_child(write):
        assert in_child(look) == 0


def test_one_that_nobody_has_shown(path: Path) -> None:
    """As long as nobody knows what waits, no call goes before it; later, others' figures count."""
    looker, writer = Backlog(path), Backlog(path)
    assert looker.waits("calls")
    assert not path.exists()
    writer.attach()
    # Made, but it says nothing yet: also not to whom it belongs.
    assert looker.waits("calls")
    assert writer.waits("calls")
    writer.publish(_ONE)
    assert looker.waits("calls")
    assert not looker.waits("other")
    writer.publish(JournalFacts())
    assert not looker.waits("calls")


def test_more_databases_than_there_are_rows(path: Path) -> None:
    """Those that have no row of their own are shown as one: none is thought to have nothing waiting."""
    names = [f"database_{number}" for number in range(69)] + ["x" * 65]
    backlog = shown_by(path, *(BacklogFacts(name, 1, 1, 1e9 + at) for at, name in enumerate(names)))
    assert all(map(backlog.waits, names))
    others = read_backlog(path).databases[0]
    assert others == BacklogFacts("", 6, 6, 1e9 + 64)
    backlog.publish(JournalFacts())
    assert not any(map(backlog.waits, names))


def test_a_row_is_a_database_s_own(path: Path) -> None:
    """Two writers that have seen different rows, and different files, never mix them up."""
    first = shown_by(path, *_ONE.databases)
    second = shown_by(path, BacklogFacts("other", 2, 0, 1e9))
    first.publish(JournalFacts((BacklogFacts("third", 3, 0, 1e9), BacklogFacts("other", 2, 0, 1e9))))
    for backlog in (first, second):
        assert [backlog.waits(name) for name in ("calls", "other", "third")] == [False, True, True]
    path.unlink()
    shown_by(path, *_ONE.databases)
    assert first.attach()
    assert [first.waits(name) for name in ("calls", "other", "third")] == [True, False, False]


def test_a_file_that_is_none(path: Path) -> None:
    """No file means that nothing waits; another file is told from a backlog, and none of it is believed."""
    assert read_backlog(path) == JournalFacts()
    for content in (b"", bytes(100_000)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no backlog"):
            read_backlog(path)


def test_one_that_is_not_ours(path: Path) -> None:
    """What an operator's command finds it may use, but it makes none of a file that is none."""
    path.write_bytes(b"root:x")
    operators = Backlog(path, is_ours=False)
    assert not operators.attach()
    assert path.read_bytes() == b"root:x"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        operators.attach()
    shown_by(path, *_ONE.databases)
    assert operators.attach()
    assert operators.waits("calls")


def test_a_name_that_leads_elsewhere(path: Path, tmp_path: Path) -> None:
    """Nothing is written through a symbolic link that somebody has put in its place."""
    target = tmp_path / "target"
    target.write_bytes(b"")
    path.symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        Backlog(path).attach()
    assert target.read_bytes() == b""


def test_identity(path: Path, tmp_path: Path) -> None:
    """A file keeps its identity under another name, and another file of its name has another."""
    assert identity_of(path) is None
    path.touch()
    identity = identity_of(path)
    aside = path.rename(tmp_path / "aside")
    path.touch()
    assert identity_of(aside) == identity != identity_of(path)
