"""fastagi_pool.journal: what is on the disk after whatever happens, its order, and what the backlog shows."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final, NoReturn

import pytest
from children import in_child
from disks import small_disk

from fastagi_pool import journal as journal_module
from fastagi_pool.backlog import BACKLOG_NAME, BacklogFacts, read_backlog
from fastagi_pool.errors import JournalUnavailable
from fastagi_pool.journal import Entry, Journal, NewEntry

_PLENTY_BYTES: Final = 10 * 1024**2
_CALL: Final = NewEntry(
    database="calls",
    route="hangup",
    ref="64-1",
    environment=("agi_network: yes", "agi_callerid: 4930\udcff1", "agi_arg_1: ", ""),
    received_s=1_700_000_000.25,
    received_mono_s=500.125,
    peer="10.0.0.1",
    begun=True,
)


class Node:
    """A machine with a journal, and boots that the test chooses."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lib" / "journal.db"
        self.backlog_path = folder / BACKLOG_NAME
        self._opened: list[Journal] = []

    def open(self, boot_id: str = "first", max_bytes: int = _PLENTY_BYTES) -> Journal:
        """Open the journal as a worker does."""
        journal = Journal.open(self.path, max_bytes, self.backlog_path, boot_id)
        self._opened.append(journal)
        return journal

    def counted(self) -> dict[str, tuple[int, int]]:
        """Count what is in the file, without the journal's help."""
        with sqlite3.connect(self.path) as connection:
            rows = connection.execute(
                "SELECT database, sum(NOT quarantined), sum(quarantined) FROM entries GROUP BY database"
            ).fetchall()
        connection.close()
        return {database: (waiting, quarantined) for database, waiting, quarantined in rows}

    def shown(self) -> dict[str, tuple[int, int]]:
        """Read what the backlog shows, as the observer does."""
        return {
            each.database: (each.waiting, each.quarantined)
            for each in read_backlog(self.backlog_path).databases
            if each.waiting or each.quarantined
        }

    def close(self) -> None:
        """Close whatever was opened."""
        for journal in self._opened:
            journal.close()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Give a machine on which no pool has run yet."""
    return Node(tmp_path)


def call(number: int, database: str = "calls", mono_s: float | None = None) -> NewEntry:
    """Make a call that came at its number, in seconds, unless the test says otherwise."""
    moment_s = float(number) if mono_s is None else mono_s
    return replace(
        _CALL, database=database, ref=f"r{number}", received_s=1e9 + number, received_mono_s=moment_s
    )


def refs(entries: Sequence[NewEntry]) -> list[str]:
    """Name calls."""
    return [entry.ref for entry in entries]


def fill(journal: Journal, group: Sequence[NewEntry], taken: list[int]) -> NoReturn:
    """Append groups of calls until that fails; ``taken`` gets the numbers of those that were taken."""
    while True:
        taken += journal.append(group)


# --- what goes in comes out


def test_a_call_comes_back_as_it_was(node: Node) -> None:
    """Every byte of the environment, and all that is known of a call, survives the process."""
    (number,) = node.open().append([_CALL])
    node.close()
    (entry,) = node.open().next_entries("calls", 10)
    assert entry == Entry(
        **{name: getattr(_CALL, name) for name in NewEntry.__slots__},
        number=number,
    )
    assert node.open().get(number) == entry


def test_a_call_without_environment(node: Node) -> None:
    """No line and one empty line are two different things."""
    journal = node.open()
    journal.append([replace(_CALL, environment=()), replace(_CALL, environment=("",))])
    assert [entry.environment for entry in journal.all()] == [(), ("",)]


def test_texts_that_are_no_characters(node: Node) -> None:
    """Stray bytes in a name or in an error cannot keep a call out of the journal."""
    journal = node.open()
    (number,) = journal.append([replace(_CALL, ref="\udcff", peer="\udcfe")])
    journal.settle(failed=[(number, "broken: \udcfd")])
    (entry,) = journal.quarantined()
    assert (entry.ref, entry.peer, entry.error) == ("\\udcff", "\\udcfe", "broken: \\udcfd")


def test_numbers_are_never_used_again(node: Node) -> None:
    """What says that a call is done cannot mean another one."""
    journal = node.open()
    (first,) = journal.append([call(1)])
    journal.settle([first])
    node.close()
    (second,) = node.open().append([call(2)])
    assert second > first


# --- order


def test_order_is_that_of_receipt(node: Node) -> None:
    """Calls that are written down late stand where they came, each database by itself."""
    journal = node.open()
    journal.append([call(3), call(1), call(9, "other")])
    journal.append([call(2), call(0, "other")])
    assert refs(journal.next_entries("calls", 10)) == ["r1", "r2", "r3"]
    assert refs(journal.next_entries("calls", 2)) == ["r1", "r2"]
    assert refs(journal.next_entries("other", 10)) == ["r0", "r9"]
    assert journal.next_entries("nobody's", 10) == []


def test_a_stepped_clock_changes_no_order(node: Node) -> None:
    """The wall clock may be set back between two calls: the first one stays the first."""
    journal = node.open()
    before = replace(call(1), received_s=2e9)
    after = replace(call(2), received_s=1e9)
    journal.append([after, before])
    assert refs(journal.next_entries("calls", 10)) == ["r1", "r2"]


def test_an_earlier_boot_comes_first(node: Node) -> None:
    """After a reboot the clock that nobody steps is small again; older calls stay older."""
    node.open("first").append([call(1, mono_s=90_000.0)])
    node.open("second").append([call(2, mono_s=10.0)])
    node.open("third").append([call(3, mono_s=0.5)])
    assert refs(node.open("third").next_entries("calls", 10)) == ["r1", "r2", "r3"]


def test_a_journal_that_was_on_another_machine(node: Node) -> None:
    """A boot that returns after another one, as with a disk that two machines share, is the latest again."""
    node.open("here").append([call(1, mono_s=100.0)])
    node.open("there").append([call(2, mono_s=50.0)])
    node.open("here").append([call(3, mono_s=200.0)])
    assert refs(node.open("here").next_entries("calls", 10)) == ["r1", "r2", "r3"]


def test_the_boot_of_this_machine(node: Node, tmp_path: Path) -> None:
    """Workers that open the journal one after the other find that they belong to one boot."""
    for number in (2, 1):
        journal = Journal.open(node.path, _PLENTY_BYTES, node.backlog_path)
        journal.append([call(number)])
        journal.close()
    assert refs(node.open().next_entries("calls", 10)) == ["r1", "r2"]


# --- done, failed, tried


def test_settle(node: Node) -> None:
    """Calls that are done are gone, those that failed wait for the operator, others are as they were."""
    journal = node.open()
    done, failed, left = journal.append([call(1), call(2), call(3)])
    journal.settle([done, 4711], [(failed, "ValueError: no\nTraceback")])
    assert refs(journal.next_entries("calls", 10)) == ["r3"]
    (entry,) = journal.quarantined()
    assert (entry.number, entry.attempts, entry.error, entry.quarantined) == (
        failed,
        1,
        "ValueError: no\nTraceback",
        True,
    )
    assert [each.number for each in journal.all()] == [failed, left]
    assert refs(list(journal.all(quarantined=False))) == ["r3"]
    assert refs(list(journal.all("other"))) == []


def test_retry_and_drop(node: Node) -> None:
    """What an operator lets out stands at its old place; what he drops is gone."""
    journal = node.open()
    first, second, third = journal.append([call(1), call(2), call(3)])
    journal.settle(failed=[(first, "no"), (second, "no")])
    assert journal.retry([first, third, 4711]) == 1
    assert refs(journal.next_entries("calls", 10)) == ["r1", "r3"]
    assert journal.drop([second, 4711]) == 1
    assert journal.quarantined() == []


def test_pieces(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read or changed in several pieces is complete."""
    monkeypatch.setattr(journal_module, "_PIECE", 3)
    journal = node.open()
    numbers = journal.append([call(number) for number in range(7)])
    assert [entry.number for entry in journal.all()] == numbers
    assert journal.drop(numbers) == 7
    assert journal.get(numbers[0]) is None


# --- the backlog


def test_backlog(node: Node) -> None:
    """Every process sees which databases have calls waiting, and since when, as long as they wait."""
    writer, reader = node.open(), node.open()
    assert not reader.backlog.waits("calls")
    numbers = writer.append([call(5), call(4), call(6, "other")])
    assert reader.backlog.waits("calls")
    assert reader.backlog.waits("other")
    assert not reader.backlog.waits("third")
    assert read_backlog(node.backlog_path) == writer.facts()
    assert writer.facts().databases == (
        BacklogFacts("calls", 2, 0, 1e9 + 4),
        BacklogFacts("other", 1, 0, 1e9 + 6),
    )
    reader.settle(numbers[:1], [(numbers[1], "no")])
    assert not writer.backlog.waits("calls")
    assert (writer.facts().waiting, writer.facts().quarantined) == (1, 1)
    writer.retry(numbers)
    assert reader.backlog.waits("calls")
    writer.drop(numbers)
    assert node.shown() == {}


def test_backlog_after_a_reboot(node: Node) -> None:
    """The runtime folder is empty then, or the file in it is: both are made anew from the journal."""
    node.open().append([call(1)])
    node.close()
    node.backlog_path.unlink()
    assert node.open().backlog.waits("calls")
    node.close()
    node.backlog_path.write_bytes(bytes(node.backlog_path.stat().st_size))
    assert node.open().backlog.waits("calls")
    node.backlog_path.write_bytes(b"")
    assert node.open().backlog.waits("calls")


def test_backlog_that_was_removed(node: Node) -> None:
    """Whoever writes next makes it anew, and sees it by the object that it has."""
    journal = node.open()
    journal.append([call(1)])
    backlog = journal.backlog
    node.backlog_path.unlink()
    second = node.open()
    second.drop(journal.append([call(2, "other")]))
    assert backlog is journal.backlog
    second.append([call(3, "third")])
    assert backlog.waits("third")


def test_more_databases_than_the_backlog_has_room_for(node: Node) -> None:
    """Those that have no row of their own wait together: none is thought to have nothing waiting."""
    journal = node.open()
    names = [f"database_{number}" for number in range(70)]
    numbers = journal.append([call(1, name) for name in names])
    assert all(map(journal.backlog.waits, names))
    assert sum(waiting for waiting, _ in node.shown().values()) == 70
    long = "x" * 65
    journal.settle(numbers)
    assert not any(map(journal.backlog.waits, names))
    journal.append([call(1, long)])
    assert journal.backlog.waits(long)


def test_a_journal_that_cannot_be_opened_yet(node: Node) -> None:
    """Who could not open it sees what waits all the same, and writes as soon as it can be opened."""
    node.open().append([call(1)])
    node.close()
    aside = node.path.rename(node.path.with_suffix(".aside"))
    node.path.mkdir()
    journal = Journal.prepare(node.path, _PLENTY_BYTES, node.backlog_path, "first")
    for use in (journal.reach, lambda: journal.append([call(2)])):
        with pytest.raises(JournalUnavailable):
            use()
    assert journal.backlog.waits("calls")
    assert not journal.backlog.waits("other")
    node.path.rmdir()
    aside.rename(node.path)
    journal.append([call(2)])
    assert refs(list(journal.all())) == ["r1", "r2"]
    journal.close()


def test_whoever_dies_before_the_commit(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of a transaction that never came to be are corrected by whoever opens or writes next."""
    journal = node.open()
    journal.append([call(1)])

    def die() -> None:
        mine = node.open()
        publish = mine._publish

        def publish_and_die(connection: sqlite3.Connection) -> None:
            publish(connection)
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(mine, "_publish", publish_and_die)
        mine.append([call(2), call(3, "other")])

    with pytest.raises(AssertionError, match="no answer"):
        in_child(die)
    assert node.shown() == {"calls": (2, 0), "other": (1, 0)}
    journal.append([call(4)])
    assert node.shown() == node.counted() == {"calls": (2, 0)}


# --- durability


def test_commits_are_synchronous(node: Node) -> None:
    """The log is written through to the disk at every commit, and the file is in that mode for everyone."""
    connection = node.open()._connection
    assert connection is not None
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_several_writers(node: Node) -> None:
    """Four processes that begin at once, with no file there, lose nothing and double nothing."""

    def write(writer: int) -> Callable[[], None]:
        def work() -> None:
            journal = Journal.open(node.path, _PLENTY_BYTES, node.backlog_path, "first")
            for number in range(25):
                journal.append([call(1000 * writer + number)])

        return work

    threads = [threading.Thread(target=in_child, args=(write(writer),)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(refs(list(node.open().all()))) == sorted(
        f"r{1000 * writer + number}" for writer in range(4) for number in range(25)
    )
    assert node.shown() == node.counted() == {"calls": (100, 0)}


def test_in_another_thread(node: Node) -> None:
    """A journal may be opened in one thread and used in another."""
    journal = node.open()
    thread = threading.Thread(target=journal.append, args=([call(1)],))
    thread.start()
    thread.join()
    assert refs(journal.next_entries("calls", 10)) == ["r1"]


def test_figures_after_any_history(node: Node) -> None:
    """Whatever is done in whatever order by several processes, the backlog shows what the file holds."""
    chance = Random(7)
    journals = [node.open() for _ in range(3)]
    known: list[int] = []
    for step in range(150):
        journal = chance.choice(journals)
        some = chance.sample(known, min(len(known), 3))
        match chance.randrange(6):
            case 0 | 1 | 2:
                known += journal.append([call(step, chance.choice(("calls", "other"))) for _ in range(2)])
            case 3:
                journal.settle(some[:2], [(number, "no") for number in some[2:]])
            case 4:
                journal.retry(some)
            case _:
                journal.drop(some[:1])
        assert node.shown() == node.counted()


# --- bounds


def test_a_full_journal(node: Node) -> None:
    """It takes no more than it may hold, says which key says so, and takes calls again once some are done."""
    journal = node.open(max_bytes=200 * 1024)
    large = replace(_CALL, environment=("x" * 2000,))
    taken: list[int] = []
    with pytest.raises(JournalUnavailable, match=r"is full.*journal\.max_size"):
        fill(journal, [large] * 5, taken)
    assert len(taken) > 30
    assert node.shown() == node.counted() == {"calls": (len(taken), 0)}
    assert read_backlog(node.backlog_path).used_bytes <= read_backlog(node.backlog_path).limit_bytes
    # What makes room must work in a full journal.
    journal.settle(taken[:20], [(number, "Traceback" * 500) for number in taken[20:25]])
    journal.append([large] * 5)


def test_a_file_that_was_drained_does_not_grow(node: Node) -> None:
    """The room of calls that are done is used again, and the log stays small."""
    journal = node.open()

    def fill_and_drain() -> int:
        for _ in range(5):
            journal.append([replace(_CALL, environment=("x" * 2000,))] * 200)
        while entries := journal.next_entries("calls", 50):
            journal.settle([entry.number for entry in entries])
        log = node.path.with_name(f"{node.path.name}-wal")
        assert log.stat().st_size <= 3 * journal_module._LOG_BYTES
        return node.path.stat().st_size

    first = max(fill_and_drain(), fill_and_drain())
    assert fill_and_drain() <= first * 1.1
    assert journal.facts().used_bytes < first / 10


def test_a_full_disk(node: Node) -> None:
    """Calls that do not fit are refused, none of a group is there, and room makes it work again."""
    with small_disk(1024) as disk:
        full = Node(disk)
        journal = Journal.open(full.path, _PLENTY_BYTES, node.backlog_path, "first")
        try:
            taken: list[int] = []
            large = [replace(_CALL, environment=("x" * 10_000,))] * 3
            with pytest.raises(JournalUnavailable, match=r"disk of the journal .* is full: make room"):
                fill(journal, large, taken)
            assert taken
            assert len(list(journal.all())) == len(taken)
            assert node.shown() == {"calls": (len(taken), 0)}
        finally:
            journal.close()


def test_somebody_holds_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever cannot have the lock in time says so, and has written nothing."""
    monkeypatch.setattr(journal_module, "_PATIENCE_S", 0.02)
    journal = node.open()
    other = sqlite3.connect(node.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalUnavailable, match="was busy for"):
        journal.append([call(1)])
    other.execute("ROLLBACK")
    other.close()
    journal.append([call(2)])
    assert refs(list(journal.all())) == ["r2"]


# --- the file


def test_only_its_owner_reads_it(node: Node) -> None:
    """It holds callers' numbers: the file and its folder are for one user."""
    journal = node.open()
    journal.append([call(1)])
    assert stat.S_IMODE(node.path.parent.stat().st_mode) == 0o700
    for path in node.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_another_database_is_refused(node: Node) -> None:
    """A database of somebody else's is left as it is."""
    node.path.parent.mkdir()
    with sqlite3.connect(node.path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = node.path.read_bytes()
    with pytest.raises(JournalUnavailable, match=r"no journal of fastagi-pool: set journal\.file"):
        node.open()
    with pytest.raises(JournalUnavailable, match="no journal of fastagi-pool"):
        Journal.open_existing(node.path)
    assert node.path.read_bytes() == before


def test_another_file_is_refused(node: Node) -> None:
    """A file that is no database at all is left as it is."""
    node.path.parent.mkdir()
    node.path.write_text("Dear diary, " * 1000)
    with pytest.raises(JournalUnavailable, match=r"is damaged, or is none .*move it away"):
        node.open()
    assert node.path.read_text().startswith("Dear diary")


def test_a_newer_version_is_refused(node: Node) -> None:
    """An older fastagi_pool keeps its hands off."""
    node.open()
    node.close()
    with sqlite3.connect(node.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(JournalUnavailable, match=r"newer fastagi-pool's .version 99"):
        node.open()


def test_an_older_version_is_brought_up_to_date(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool migrates a journal with all that is in it; an operator's command does not."""
    node.open().append([call(1)])
    node.close()
    newer = (*journal_module._VERSIONS, ("CREATE TABLE news (x)",))
    monkeypatch.setattr(journal_module, "_VERSIONS", newer)
    with pytest.raises(JournalUnavailable, match="is of version 1: start the pool"):
        Journal.open_existing(node.path)
    journal = node.open()
    assert refs(list(journal.all())) == ["r1"]
    assert journal.backlog.waits("calls")
    assert Journal.open_existing(node.path).facts().waiting == 1


def test_a_damaged_file(node: Node) -> None:
    """Damage is told with the file's name and what to do; once it is moved away, calls are taken again."""
    journal = node.open()
    journal.append([replace(call(number), environment=("x" * 3000,)) for number in range(50)])
    node.close()
    size = node.path.stat().st_size
    with node.path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    with pytest.raises(JournalUnavailable, match=r"journal\.db is damaged"):
        journal.append([call(1)])
    for path in node.path.parent.iterdir():
        path.rename(path.with_name(f"old-{path.name}"))
    journal.append([call(2)])
    assert refs(list(journal.all())) == ["r2"]
    assert node.shown() == {"calls": (1, 0)}


def test_a_file_that_was_moved_away(node: Node) -> None:
    """No call goes into a file that nobody will ever read again."""
    first, second = node.open(), node.open()
    first.append([call(1)])
    for path in list(node.path.parent.iterdir()):
        path.rename(path.with_name(f"old-{path.name}"))
    first.append([call(2)])
    second.append([call(3)])
    assert refs(list(first.all())) == refs(list(second.all())) == ["r2", "r3"]
    node.close()
    assert refs(list(node.open().all())) == ["r2", "r3"]
    old = Journal.open_existing(node.path.with_name("old-journal.db"))
    assert refs(list(old.all())) == ["r1"]
    old.close()


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    """A path that cannot be is told as such."""
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalUnavailable, match=r"cannot be used: .*file"):
        Journal.open(tmp_path / "file" / "journal.db", _PLENTY_BYTES, tmp_path / BACKLOG_NAME)


def test_no_runtime_folder(node: Node, tmp_path: Path) -> None:
    """Without a backlog no call is taken: others would not know that it waits."""
    with pytest.raises(JournalUnavailable, match=r"cannot be used: .*nowhere"):
        Journal.open(node.path, _PLENTY_BYTES, tmp_path / "nowhere" / BACKLOG_NAME)


def test_check(node: Node) -> None:
    """Whether calls can be put off is known before there is a runtime folder."""
    Journal.check(node.path, _PLENTY_BYTES)
    assert not node.backlog_path.exists()
    node.open().append([call(1)])
    Journal.check(node.path, _PLENTY_BYTES)
    node.close()
    operator = Journal.open_existing(node.path)
    assert operator.backlog.path == node.backlog_path
    operator.close()
    node.path.write_text("Dear diary, " * 1000)
    with pytest.raises(JournalUnavailable, match="is damaged, or is none"):
        Journal.check(node.path, _PLENTY_BYTES)


def test_an_existing_journal_of_a_running_pool(node: Node) -> None:
    """What an operator changes is seen by the pool at once."""
    pool = node.open()
    (number,) = pool.append([call(1)])
    operator = Journal.open_existing(node.path)
    assert operator.facts() == pool.facts()
    operator.drop([number])
    assert not pool.backlog.waits("calls")
    operator.close()


def test_an_operator_writes_into_nothing_but_a_backlog(node: Node, tmp_path: Path) -> None:
    """Where the backlog is says the pool's user: root's command must not write into root's files for it."""
    (number,) = node.open().append([call(1)])
    node.close()
    secret = tmp_path / "shadow"
    secret.write_text("root:x")
    node.backlog_path.unlink()
    node.backlog_path.hardlink_to(secret)
    operator = Journal.open_existing(node.path)
    assert operator.drop([number]) == 1
    operator.close()
    assert secret.read_text() == "root:x"
    node.open()
    assert read_backlog(node.backlog_path).waiting == 0


def test_an_existing_journal_without_a_pool(node: Node) -> None:
    """Where no runtime folder is any more none is needed, and none is made."""
    node.open().append([call(1)])
    node.close()
    node.backlog_path.unlink()
    operator = Journal.open_existing(node.path)
    assert operator.drop([1]) == 1
    assert operator.facts().limit_bytes == _PLENTY_BYTES
    assert not node.backlog_path.exists()
    with pytest.raises(JournalUnavailable, match="has no backlog"):
        assert operator.backlog
    operator.close()


def test_no_journal(node: Node) -> None:
    """Looking makes none."""
    with pytest.raises(FileNotFoundError):
        Journal.open_existing(node.path)
    assert not node.path.parent.exists()
    node.path.parent.mkdir()
    node.path.touch()
    with pytest.raises(FileNotFoundError):
        Journal.open_existing(node.path)
