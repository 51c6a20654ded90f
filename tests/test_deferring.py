"""fastagi_pool.deferring: what is declared, what survives the journal, and when a call is safe in it."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import gevent
import pytest
from service import open_files

from fastagi_pool.deferring import (
    MOST_AT_ONCE,
    Deferral,
    Deferrals,
    deferrable,
    deferral_of,
    make_entry,
    request_of,
)
from fastagi_pool.errors import CallTimeout, JournalUnavailable, OperatorError, RemoteProtocolError
from fastagi_pool.journal import Entry, Journal, NewEntry
from fastagi_pool.protocol import AgiConnection, HeaderLimits, Request

#: Far more than anything here takes.
WAIT_S: Final = 10.0
MEGABYTE: Final = 1 << 20


def entry(number: int, database: str = "main") -> NewEntry:
    """Make a call for the journal."""
    return NewEntry(database, "end", f"ref-{number}", ("agi_network: yes",), 1.7e9 + number, float(number))


# ---- what is declared


def test_the_bare_decorator() -> None:
    """A handler that is declared without a word stays itself, and is not repeatable."""

    def handler() -> None: ...

    assert deferral_of(handler) is None
    assert deferrable(handler) is handler
    assert deferral_of(handler) == Deferral(None, False)


def test_the_decorator_with_arguments() -> None:
    """What is declared of a handler can be read from it."""

    def where(options: Mapping[str, Any]) -> str:
        return str(options["database"])

    @deferrable(database=where, repeatable=True)
    def handler() -> None: ...

    assert deferral_of(handler) == Deferral(where, True)


def test_an_object_can_be_declared() -> None:
    """A handler need not be a function."""

    class Handler:
        def __call__(self) -> None: ...

    handler = deferrable(repeatable=True)(Handler())
    assert deferral_of(handler) == Deferral(None, True)
    assert deferral_of(Handler()) is None


def test_a_wrapper_is_declared_too() -> None:
    """A decorator of the user's own, written with functools.wraps, does not lose the declaration."""

    @deferrable
    def handler() -> None: ...

    @functools.wraps(handler)
    def wrapper() -> None: ...

    assert deferral_of(wrapper) == Deferral()


def test_something_else_of_that_name() -> None:
    """An attribute of the same name that is not ours declares nothing."""

    def handler() -> None: ...

    handler.deferral = True  # type: ignore[attr-defined]
    assert deferral_of(handler) is None


@pytest.mark.parametrize(
    ("deferral", "needed", "known", "wanted"),
    [
        (Deferral(), (), ("main",), "main"),
        (Deferral(), ("other", "main"), ("main", "other"), "other"),
        (Deferral(lambda options: str(options["writes_to"])), ("main",), ("main", "other"), "other"),
    ],
    ids=["the only one", "the route's first", "what the handler says"],
)
def test_whose_outage_defers(
    deferral: Deferral, needed: Sequence[str], known: Sequence[str], wanted: str
) -> None:
    """The handler knows best which database it writes to, then the route, then there may be no choice."""
    assert deferral.database_for({"writes_to": "other"}, needed, known) == wanted


@pytest.mark.parametrize(
    ("deferral", "known", "words"),
    [
        (Deferral(), ("main", "other"), "name that database first in the route's 'databases'.*main, other"),
        (Deferral(), (), "the configuration has none"),
        (Deferral(lambda options: "mian"), ("main",), "'mian', but the configuration has main"),
    ],
    ids=["two", "none", "unknown"],
)
def test_nobody_knows_whose_outage_defers(deferral: Deferral, known: Sequence[str], words: str) -> None:
    """A deferrable handler whose database cannot be told is the operator's to mend, and he is told how."""
    with pytest.raises(OperatorError, match=words):
        deferral.database_for({}, (), known)


# ---- requests


def receive(data: bytes) -> Request:
    """Read what Asterisk sends."""
    connection = AgiConnection(HeaderLimits(line_bytes=MEGABYTE, header_bytes=MEGABYTE))
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, Request)
    return request


@pytest.mark.parametrize(
    "data",
    [
        b"agi_network: yes\nagi_network_script: end?a=1\nagi_request: agi://host/end?a=1\n",
        b"agi_network: yes\nagi_callerid: \xff\xfe caf\xc3\xa9\nagi_arg_1: \xe9\n",
        b"agi_network: yes\nagi_empty: \nagi_arg_1: \nagi_arg_2: two: words\nagi_arg_3: \n",
        b"agi_network: yes\n" + b"".join(b"agi_arg_%d: %d\n" % (number, -number) for number in range(1, 128)),
        b"agi_network: yes\nagi_arg_1: " + b"x" * 100_000 + b"\n",
        b"agi_network: yes\nagi_calleridname: \r\t\x1b[31m\x85\xe2\x80\xa8 \n",
    ],
    ids=["usual", "no UTF-8", "empty values", "all arguments", "beyond the limits", "odd line ends"],
)
def test_a_request_survives_the_journal(data: bytes, journal: Journal) -> None:
    """What a replay reads is what Asterisk sent: names, values and arguments, in order, byte for byte."""
    request = receive(data + b"\n")
    journal.append([make_entry(request, "end", "main", "ref", 1.7e9, 12.5, "10.0.0.1", True)])
    (found,) = journal.next_entries("main", 10)
    assert request_of(found) == request
    assert list(request_of(found).environment) == list(request.environment)
    lines = "".join(f"{line}\n" for line in found.environment)
    assert lines.encode("utf-8", "surrogateescape") == data


def test_what_else_is_written_down() -> None:
    """An entry says where the call belongs, when it came, from whom, and whether it had begun."""
    request = Request({"agi_network": "yes"})
    made = make_entry(request, "end", "main", "ref-1", 1.7e9, 12.5, "10.0.0.1", True)
    assert made == NewEntry("main", "end", "ref-1", ("agi_network: yes",), 1.7e9, 12.5, "10.0.0.1", True)


@pytest.mark.parametrize("environment", [(), ("",), ("hello",)])
def test_an_entry_that_holds_no_request(environment: tuple[str, ...]) -> None:
    """What no call of ours has written is an error of its own, which a replay can show."""
    with pytest.raises(RemoteProtocolError):
        request_of(Entry("main", "end", "ref", environment, 1.7e9, 1.0, number=1))


# ---- the way into the journal


class GatedJournal(Journal):
    """A journal on a disk that answers when it is told to.

    Attributes:
        writes: How many calls each transaction had, in their order.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.writes: list[int] = []
        self._begun = threading.Semaphore(0)
        self._gate = threading.Semaphore(1_000_000)
        self.writer = 0

    def append(self, entries: Sequence[NewEntry]) -> list[int]:
        """Wait for the disk."""
        self.writes.append(len(entries))
        self.writer = threading.get_ident()
        self._begun.release()
        assert self._gate.acquire(timeout=WAIT_S)
        return super().append(entries)

    def close_gate(self) -> None:
        """Let the disk answer nobody."""
        self._gate = threading.Semaphore(0)
        self._begun = threading.Semaphore(0)

    def open_gate(self) -> None:
        """Let the disk answer everybody."""
        self._gate.release(1_000_000)

    def wait_for_a_write(self) -> None:
        """Wait until the thread is in a write, while the hub runs."""
        with gevent.Timeout(WAIT_S):
            while not self._begun.acquire(blocking=False):
                gevent.sleep(0.001)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[GatedJournal]:
    """A journal of one megabyte."""
    journal = GatedJournal.open(tmp_path / "journal.db", MEGABYTE, tmp_path / "journal.waiting")
    assert isinstance(journal, GatedJournal)
    yield journal
    journal.close()


@pytest.fixture
def deferrals(journal: GatedJournal) -> Iterator[Deferrals]:
    """A worker's way into it."""
    deferrals = Deferrals(journal, gevent.get_hub(), "node/{}".format)
    yield deferrals
    journal.open_gate()
    deferrals.close()


def refs(journal: Journal) -> list[str]:
    """Read which calls are in the journal."""
    return [each.ref for each in journal.all()]


def start(work: Callable[[], object]) -> gevent.Greenlet:
    """Run something in a greenlet, up to its first wait."""
    caller = gevent.Greenlet(work)
    caller.start()
    gevent.sleep(0)
    return caller


def refusal(deferrals: Deferrals, new: NewEntry) -> str:
    """Defer a call, and return why it could not be."""
    try:
        deferrals.defer(new)
    except JournalUnavailable as error:
        return str(error)
    return ""


def interrupt(caller: gevent.Greenlet, limit: str) -> None:
    """Let a call's limit run out, as a worker does."""
    gevent.get_hub().loop.run_callback(caller.throw, CallTimeout(limit, 1.0))
    gevent.sleep(0)


def test_who_returns_is_on_the_disk(journal: GatedJournal, deferrals: Deferrals) -> None:
    """A call is not told that it is safe before the journal's transaction is over."""
    journal.close_gate()
    caller = start(lambda: deferrals.defer(entry(1)))
    journal.wait_for_a_write()
    assert not caller.ready()
    journal.open_gate()
    caller.get(timeout=WAIT_S)
    assert refs(journal) == ["ref-1"]


def test_the_next_call_must_join(journal: GatedJournal, deferrals: Deferrals) -> None:
    """From the moment at which a call waits for a database, later ones of that database must wait too."""
    assert not deferrals.must_join("main")
    deferrals.defer(entry(1))
    assert deferrals.must_join("main")
    assert not deferrals.must_join("other")
    journal.settle(done=[each.number for each in journal.all()])
    assert not deferrals.must_join("main")


def test_what_comes_together_is_written_together(journal: GatedJournal, deferrals: Deferrals) -> None:
    """Calls that come while the disk works are one transaction, in the order in which they came."""
    journal.close_gate()
    callers = [start(lambda: deferrals.defer(entry(0)))]
    journal.wait_for_a_write()
    callers += [gevent.spawn(deferrals.defer, entry(number)) for number in range(1, 100)]
    gevent.sleep(0)
    journal.open_gate()
    gevent.joinall(callers, timeout=WAIT_S, raise_error=True)
    assert journal.writes == [1, 99]
    assert refs(journal) == [f"ref-{number}" for number in range(100)]


def test_a_transaction_is_bounded(journal: GatedJournal, deferrals: Deferrals) -> None:
    """No burst makes a transaction without end, and none of it is lost."""
    callers = [gevent.spawn(deferrals.defer, entry(number)) for number in range(MOST_AT_ONCE + 1)]
    gevent.joinall(callers, timeout=WAIT_S, raise_error=True)
    assert journal.writes == [MOST_AT_ONCE, 1]
    assert len(refs(journal)) == MOST_AT_ONCE + 1


def test_the_hub_waits_for_no_disk(journal: GatedJournal, deferrals: Deferrals) -> None:
    """While the disk does not answer other calls go on, and the disk is another thread's business."""
    journal.close_gate()
    caller = start(lambda: deferrals.defer(entry(1)))
    journal.wait_for_a_write()
    turns = [gevent.spawn(gevent.sleep, 0) for _ in range(10)]
    gevent.joinall(turns, timeout=WAIT_S)
    assert all(turn.successful() for turn in turns)
    assert not caller.ready()
    assert journal.writer != threading.get_ident()


def test_what_cannot_be_written_is_told(
    journal: GatedJournal, deferrals: Deferrals, capfd: pytest.CaptureFixture[str]
) -> None:
    """When the journal is full each caller hears of it, and nobody else; later ones can try again."""
    long = NewEntry("main", "end", "long", ("agi_network: yes", "agi_x: " + "x" * 2 * MEGABYTE), 1.7e9, 1.0)
    callers = [gevent.spawn(refusal, deferrals, each) for each in (entry(1), long, entry(2))]
    gevent.joinall(callers, timeout=WAIT_S, raise_error=True)
    assert all("is full" in caller.value for caller in callers)
    assert refs(journal) == []
    deferrals.defer(entry(3))
    assert refs(journal) == ["ref-3"]
    assert capfd.readouterr() == ("", "")


def test_a_bad_entry_fails_alone(journal: GatedJournal, deferrals: Deferrals) -> None:
    """One call that cannot be put into words keeps no other out of the journal, nor puts one in twice."""
    bad = NewEntry("main", "end", "bad", ("agi_x: \ud800",), 1.7e9, 1.0)
    callers = [gevent.spawn(deferrals.defer, each) for each in (entry(1), bad, entry(2))]
    gevent.joinall(callers, timeout=WAIT_S)
    assert [caller.successful() for caller in callers] == [True, False, True]
    assert sorted(refs(journal)) == ["ref-1", "ref-2"]


# ---- interruptions


def test_an_interruption_waits_for_the_disk(journal: GatedJournal, deferrals: Deferrals) -> None:
    """Who is interrupted while the disk writes hears the truth: it is written, so it is a success."""
    journal.close_gate()
    caller = start(lambda: deferrals.defer(entry(1)))
    journal.wait_for_a_write()
    for limit in ("script", "closing"):
        interrupt(caller, limit)
        assert not caller.ready()
    journal.open_gate()
    caller.get(timeout=WAIT_S)
    assert refs(journal) == ["ref-1"]


def test_an_interruption_before_the_write(journal: GatedJournal, deferrals: Deferrals) -> None:
    """The same holds for who waits for another transaction's end: what he handed in is written."""
    journal.close_gate()
    first = start(lambda: deferrals.defer(entry(1)))
    journal.wait_for_a_write()
    second = start(lambda: deferrals.defer(entry(2)))
    interrupt(second, "script")
    journal.open_gate()
    gevent.joinall([first, second], timeout=WAIT_S, raise_error=True)
    assert refs(journal) == ["ref-1", "ref-2"]


def test_an_interruption_goes_up_if_nothing_was_written(journal: GatedJournal, deferrals: Deferrals) -> None:
    """If the journal did not take the call, what interrupted it ends it, as without a journal."""
    long = NewEntry("main", "end", "long", ("agi_network: yes", "agi_x: " + "x" * 2 * MEGABYTE), 1.7e9, 1.0)
    journal.close_gate()
    ended: list[str] = []

    def call() -> None:
        try:
            deferrals.defer(long)
        except CallTimeout as ending:
            ended.append(ending.limit)

    caller = start(call)
    journal.wait_for_a_write()
    interrupt(caller, "script")
    journal.open_gate()
    caller.join(WAIT_S)
    assert ended == ["script"]
    assert refs(journal) == []


# ---- the end


def test_the_end_waits_for_what_is_under_way(journal: GatedJournal, deferrals: Deferrals) -> None:
    """A worker that ends leaves no call between the memory and the disk, and its thread ends with it."""
    threads = threading.active_count()
    journal.close_gate()
    caller = start(lambda: deferrals.defer(entry(1)))
    journal.wait_for_a_write()
    end = start(deferrals.close)
    assert not end.ready()
    journal.open_gate()
    end.get(timeout=WAIT_S)
    assert caller.successful()
    assert refs(journal) == ["ref-1"]
    assert threading.active_count() <= threads


def test_after_the_end_nothing_is_taken(journal: GatedJournal, deferrals: Deferrals) -> None:
    """A call that comes too late is told so: it fails, and is not forgotten in silence."""
    deferrals.close()
    with pytest.raises(JournalUnavailable, match="the worker is ending"):
        deferrals.defer(entry(1))
    deferrals.close()


def test_the_end_gives_the_journal_back(journal: GatedJournal, deferrals: Deferrals) -> None:
    """A worker that has ended its work has no file of the journal open."""
    deferrals.defer(entry(1))
    assert str(journal.path) in open_files(os.getpid())
    deferrals.close()
    assert str(journal.path) not in open_files(os.getpid())


def test_a_journal_that_cannot_be_opened(tmp_path: Path) -> None:
    """Its worker lets no call overtake those that wait, and takes none; once it can be opened, it does."""
    file, waiting = tmp_path / "journal.db", tmp_path / "journal.waiting"
    with closing(Journal.open(file, MEGABYTE, waiting)) as others:
        others.append([entry(1)])
    aside = file.rename(tmp_path / "aside")
    file.mkdir()
    journal = Journal.prepare(file, MEGABYTE, waiting)
    deferrals = Deferrals(journal, gevent.get_hub(), "node/{}".format)
    assert deferrals.must_join("main")
    assert not deferrals.must_join("other")
    assert refusal(deferrals, entry(2))
    file.rmdir()
    aside.rename(file)
    deferrals.defer(entry(3))
    assert refs(journal) == [entry(1).ref, entry(3).ref]
    deferrals.close()


def test_the_mark_of_a_call(deferrals: Deferrals) -> None:
    """Whoever runs a deferrable call gets its mark where it gets the way into the journal."""
    assert deferrals.mark_of("ref-1") == "node/ref-1"
