"""Tests of the replay: real journals, real databases, handlers as users write them."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from sqlalchemy import text

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.database import DatabaseSettings, TryAgain
from fastagi_pool.errors import DatabaseUnavailable, RowsLost
from fastagi_pool.journal import RUNNING_NAME, Entry, Journal, NewEntry
from fastagi_pool.marks import Marks
from fastagi_pool.replay import MOST_DEATHS, Replayer, RunningEntry, SilentDialogue
from fastagi_pool.replayorder import FIRST_SIZE
from fastagi_pool.routes import Route, RouteKind, RouteTable
from fastagi_pool.together import Together

_MOST_BYTES = 10_000_000
_LONG_AGO_S = 1_500_000_000.0
_KILLED = Path(__file__).resolve().parent / "replay_killed.py"
#: Some hundred times what a look takes.
_LIMIT_S = 60.0
_CREATE = "CREATE TABLE notes (place INTEGER PRIMARY KEY {auto}, ref VARCHAR(40), at VARCHAR(40))"


class Playground:
    """A journal, a database and a handler that leaves a row for each call.

    Attributes:
        journal: The journal.
        database: The database.
        trouble: What the handler does before it leaves its row, by the call's reference.
        after: The same, after.
        calls: The calls that it has seen.
        leaves_rows: Whether it leaves rows at all.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.journal = Journal.open(folder / "journal.db", _MOST_BYTES, folder / "backlog")
        self.is_mariadb = url.startswith("mysql")
        self.database = Together(DatabaseSettings("main", (url,), multi_statements=self.is_mariadb))
        self.trouble: dict[str, Callable[[Context], object]] = {}
        self.after: dict[str, Callable[[Context], object]] = {}
        self.calls: list[Call] = []
        self.leaves_rows = True
        self.route = Route(
            "note",
            RouteKind.REGEX,
            r"note/(?P<what>\w+)",
            "note",
            deferred_by="main",
            options={"colour": "green"},
            script_timeout_s=0.0,
        )
        self.running = RunningEntry(folder / RUNNING_NAME)
        with self.database.lease().begin() as connection:
            auto = "AUTO_INCREMENT" if self.is_mariadb else ""
            connection.execute(text(_CREATE.format(auto=auto)))

    def close(self) -> None:
        """Close everything."""
        self.database.close()
        self.journal.close()
        self.running.close()

    def note(self, call: Call, context: Context) -> None:
        """Leave a row: the handler."""
        self.calls.append(call)
        self.trouble.get(call.ref, _nothing)(context)
        if not self.leaves_rows:
            return
        with context.begin() as database:
            values = {"ref": call.ref, "at": str(int(call.received_s))}
            database.execute(text("INSERT INTO notes (ref, at) VALUES (:ref, :at)"), values)
        self.after.get(call.ref, _nothing)(context)

    def defer(self, *refs: str, route: str = "note", begun: bool = False, apart_s: float = 1.0) -> list[int]:
        """Put calls into the journal, each so long after the one before."""
        entries = [
            NewEntry(
                "main",
                route,
                ref,
                (
                    "agi_network_script: note/bell?x=1",
                    "agi_callerid: 100",
                    f"agi_uniqueid: {ref}",
                    "agi_arg_1: one",
                ),
                _LONG_AGO_S + place * apart_s,
                100.0 + place,
                begun=begun,
            )
            for place, ref in enumerate(refs)
        ]
        return self.journal.append(entries)

    def replayer(self, **routes: Route) -> Replayer:
        """Make what replays."""
        table = RouteTable(list(routes.values()) or [self.route])
        handlers = {route.name: self.note for route in table.routes}
        return Replayer(
            self.journal,
            Marks("node"),
            table,
            handlers,
            {"main": self.database},
            {},
            self.running,
            logging.getLogger("replay"),
        )

    def replay(self, replayer: Replayer | None = None) -> Replayer:
        """Replay until nothing waits."""
        replayer = replayer or self.replayer()
        give_up_s = time.monotonic() + _LIMIT_S
        while self.journal.backlog.waits("main"):
            assert time.monotonic() < give_up_s, "the journal was not emptied"
            replayer.look("main")
        return replayer

    @property
    def rows(self) -> list[str]:
        """The references of the calls that left a row, in the order of the rows."""
        with self.database.lease().connect() as connection:
            return list(connection.execute(text("SELECT ref FROM notes ORDER BY place")).scalars())

    @property
    def quarantined(self) -> dict[str, str]:
        """The reasons of those in quarantine, by reference."""
        return {entry.ref: entry.error for entry in self.journal.quarantined()}


@pytest.fixture
def playground(tmp_path: Path, database_url: str) -> Iterator[Playground]:
    """Give a playground on each kind of database."""
    with closing(Playground(tmp_path, database_url)) as each:
        yield each


def _nothing(_: Context) -> None:
    """No trouble."""


def _fail(error: BaseException) -> Callable[[Context], object]:
    def fail(_: Context) -> None:
        raise error

    return fail


def _fail_once(*errors: BaseException) -> Callable[[Context], object]:
    left = list(errors)

    def fail(_: Context) -> None:
        if left:
            raise left.pop(0)

    return fail


def test_calls_are_done_once_in_their_order_and_leave_the_journal(playground: Playground) -> None:
    """Every call leaves its row, the rows are in the order of receipt, and nothing waits any more."""
    refs = [f"r{number}" for number in range(120)]
    playground.defer(*refs)
    replayer = playground.replay()
    assert playground.rows == refs
    assert (replayer.done, replayer.failed) == (120, 0)
    assert list(playground.journal.all()) == []


def test_the_handler_finds_the_call_as_it_came(playground: Playground) -> None:
    """Request, captures, options and times are those of the call, and it knows that it is deferred."""
    playground.defer("r1", begun=True)
    colours: list[Any] = []
    playground.trouble["r1"] = lambda context: colours.append(context.options["colour"])
    playground.replay()
    (call,) = playground.calls
    assert (call.ref, call.received_s, call.deferred, call.begun_before) == ("r1", _LONG_AGO_S, True, True)
    assert (call.request.callerid, call.request.arguments, call.request.query) == (
        "100",
        ("one",),
        {"x": "1"},
    )
    assert call.captures == {"what": "bell"}
    assert colours == ["green"]


def test_a_call_that_speaks_to_nobody_is_answered_all_the_same(playground: Playground) -> None:
    """Commands succeed and nothing comes of them: a handler runs to its end without Asterisk."""
    playground.defer("r1")

    def speak(_: Context) -> None:
        call = playground.calls[-1]
        assert call.hung_up
        call.set_variable("A", "b")
        call.verbose("nobody hears this")
        assert call.get_variable("A") is None
        call.finish()

    playground.trouble["r1"] = speak
    playground.replay()
    assert playground.rows == ["r1"]
    assert SilentDialogue().exchange(b"NOOP\n") == b"200 result=0\n"


def test_one_that_fails_takes_no_other_along(playground: Playground) -> None:
    """A poison entry goes to quarantine with its error and traceback; all others are done, in order."""
    refs = [f"r{number}" for number in range(20)]
    playground.defer(*refs)
    playground.after["r7"] = _fail(ValueError("no such colour"))
    playground.after["r13"] = _fail(RowsLost("a row was lost"))
    replayer = playground.replay()
    assert playground.rows == [ref for ref in refs if ref not in ("r7", "r13")]
    assert (replayer.done, replayer.failed) == (18, 2)
    assert playground.quarantined["r7"].startswith("ValueError: no such colour\nTraceback")
    assert playground.quarantined["r13"].startswith("RowsLost: a row was lost\n")


def test_a_handler_that_would_exit_does_not_end_the_replay(playground: Playground) -> None:
    """SystemExit and the like are failures of the entry, as they are of a call."""
    playground.defer("r1", "r2")
    playground.trouble["r1"] = _fail(SystemExit(3))
    playground.replay()
    assert playground.rows == ["r2"]
    assert playground.quarantined["r1"].startswith("SystemExit: 3")


def test_what_passes_is_tried_again_and_keeps_the_order(playground: Playground) -> None:
    """A database that goes away in the middle costs no call its row or its place."""
    refs = ["r1", "r2", "r3"]
    playground.defer(*refs)
    playground.trouble["r2"] = _fail_once(DatabaseUnavailable("other", "away"), TryAgain("lost", True))
    playground.replay()
    assert playground.rows == refs
    assert playground.quarantined == {}


def test_a_call_whose_mark_is_there_is_not_done_again(playground: Playground) -> None:
    """What a live run or an earlier replay committed is taken out of the journal, and not run."""
    playground.defer("r1", "r2", "r3")
    marks = Marks("node")
    with playground.database.lease().begin() as connection:
        marks.create(connection)
        marks.write(connection, [marks.mark_of("r2")])
    playground.replay()
    assert playground.rows == ["r1", "r3"]
    assert list(playground.journal.all()) == []


def test_a_death_between_commit_and_journal_does_nothing_twice(playground: Playground) -> None:
    """If the journal did not hear of the commit, the marks tell the next replay."""
    numbers = playground.defer("r1", "r2")
    entries = playground.journal.next_entries("main", 10)
    replayer = playground.replayer()
    replayer._make_marks("main", playground.database)
    replayer._do(entries, playground.database)
    assert [entry.number for entry in playground.journal.all()] == numbers
    playground.replay()
    assert playground.rows == ["r1", "r2"]


def test_a_handler_that_never_ends_is_interrupted(playground: Playground) -> None:
    """Beyond its route's script_timeout a handler is ended, even if it catches every Exception."""
    playground.defer("r1", "r2")

    def hang(_: Context) -> None:
        try:
            gevent.sleep(_LIMIT_S)
        except Exception:
            pass

    playground.trouble["r1"] = hang
    quick = Route("note", RouteKind.DEFAULT, "", "note", deferred_by="main", script_timeout_s=0.05)
    playground.replay(playground.replayer(note=quick))
    assert playground.rows == ["r2"]
    assert "script_timeout: 0.05 s" in playground.quarantined["r1"]


@pytest.mark.parametrize(
    ("name", "database", "words"),
    [
        ("other", "main", "has no route 'note' any more"),
        ("note", "", "is not deferrable any more"),
        ("note", "second", "belong to database 'second' now"),
    ],
)
def test_what_the_configuration_does_not_know_any_more_is_put_aside(
    playground: Playground, name: str, database: str, words: str
) -> None:
    """After a reload without its route or its deferral an entry waits for an operator, with the reason."""
    playground.defer("r1")
    route = Route(name, RouteKind.DEFAULT, "", name, deferred_by=database)
    playground.replay(playground.replayer(**{name: route}))
    assert playground.rows == []
    assert words in playground.quarantined["r1"]


def test_what_is_done_already_is_not_put_aside(playground: Playground) -> None:
    """Whoever lets calls out of quarantine long after, when their marks are forgotten, repeats none."""
    playground.defer("r1", "r2")
    marks = Marks("node")
    with playground.database.lease().begin() as connection:
        marks.create(connection)
        marks.write(connection, [marks.mark_of("r1")])
    elsewhere = Route("other", RouteKind.DEFAULT, "", "other", deferred_by="main")
    replayer = playground.replay(playground.replayer(other=elsewhere))
    assert (replayer.done, replayer.failed) == (1, 1)
    assert list(playground.quarantined) == ["r2"]


def test_no_call_is_blamed_for_marks_that_are_gone(playground: Playground) -> None:
    """A backup without the table of marks was restored: it is made again, and the calls are done."""
    playground.defer("r1")
    replayer = playground.replay()
    with playground.database.lease().begin() as connection:
        connection.execute(text("DROP TABLE fastagi_pool_marks"))
    playground.defer("r2", "r3")
    playground.replay(replayer)
    assert playground.rows == ["r1", "r2", "r3"]
    assert playground.quarantined == {}


@pytest.mark.mariadb
def test_no_call_is_blamed_for_a_mark_that_is_held(tmp_path: Path, mariadb_url: str) -> None:
    """Whose live run was cut off may have a transaction open at the server: the replay waits for its end."""
    with closing(Playground(tmp_path, mariadb_url)) as playground:
        (number,) = playground.defer("r1")
        marks, ghost = Marks("node"), playground.database.lease()
        connection = ghost.connect()
        marks.create(connection)
        connection.commit()
        marks.write(connection, [marks.mark_of("r1")])
        replayer = playground.replayer()
        assert not replayer.look("main")
        assert [entry.number for entry in playground.journal.next_entries("main", 9)] == [number]
        ghost.release()
        playground.replay(replayer)
        assert playground.rows == ["r1"]
        assert playground.quarantined == {}


def test_calls_of_a_database_that_is_gone_are_put_aside(playground: Playground) -> None:
    """After a reload without their database calls wait for an operator, and not for ever."""
    entry = NewEntry("gone", "note", "r1", ("agi_network_script: note/x",), _LONG_AGO_S, 1.0)
    playground.journal.append([entry])
    over = Event()
    over.set()
    playground.replayer().run(over)
    assert "no database 'gone' any more" in playground.quarantined["r1"]


def test_told_to_end_it_finishes_the_transaction_in_hand(playground: Playground) -> None:
    """Who is told to end does not leave a transaction half done, and begins no other."""
    refs = [f"r{number}" for number in range(FIRST_SIZE + 10)]
    playground.defer(*refs)
    over = Event()
    playground.trouble["r3"] = lambda _: over.set()
    playground.replayer().run(over)
    assert playground.rows == refs[:FIRST_SIZE]
    assert [entry.ref for entry in playground.journal.all()] == refs[FIRST_SIZE:]


def test_an_entry_that_ends_the_process_is_found_out(playground: Playground) -> None:
    """What runs when the process dies is run alone by the next, and not at all after enough deaths."""
    first, second, _ = playground.defer("r1", "r2", "r3")
    path = playground.folder / RUNNING_NAME
    for death in range(1, MOST_DEATHS + 1):
        playground.running.begins(second)
        playground.running.close()
        playground.running = RunningEntry(path)
        assert (playground.running.suspect, playground.running.deaths) == (second, death)
    playground.replay()
    assert playground.rows == ["r1", "r3"]
    assert "died 2 times" in playground.quarantined["r2"]
    assert first != second


def test_a_process_that_ended_in_peace_suspects_nobody(tmp_path: Path) -> None:
    """Between entries nothing runs, and a death of the process then is no entry's fault."""
    running = RunningEntry(tmp_path / RUNNING_NAME)
    running.begins(7)
    running.ends()
    running.close()
    assert RunningEntry(tmp_path / RUNNING_NAME).suspect == 0


def test_new_entries_join_the_end_while_the_journal_is_emptied(playground: Playground) -> None:
    """A call that comes while others wait is done after them."""
    playground.defer("r1", "r2")

    def one_more(_: Context) -> None:
        if len(playground.calls) == 1:
            entry = Entry("main", "note", "r3", ("agi_network_script: note/x",), _LONG_AGO_S, 500.0)
            playground.journal.append([entry])

    playground.trouble["r1"] = one_more
    playground.replay()
    assert playground.rows == ["r1", "r2", "r3"]


def test_handlers_that_bear_repetition_run_at_the_same_time(playground: Playground) -> None:
    """Calls of the same second wait together for what their handlers wait for, and no longer one by one."""
    refs = [f"r{number}" for number in range(10)]
    playground.defer(*refs, apart_s=0.01)
    together = Event()

    def meet(_: Context) -> None:
        if len(playground.calls) == len(refs):
            together.set()
        with gevent.Timeout(_LIMIT_S):
            together.wait()

    playground.trouble |= dict.fromkeys(refs, meet)
    playground.leaves_rows = False
    replayer = playground.replay(playground.replayer(note=replace(playground.route, repeatable=True)))
    assert (replayer.done, replayer.failed) == (10, 0)


def test_handlers_that_open_transactions_are_found_out_and_run_one_after_the_other(
    playground: Playground,
) -> None:
    """Transactions of several calls cannot lie beside each other, and nothing is lost by that."""
    refs = [f"r{number}" for number in range(10)]
    playground.defer(*refs, apart_s=0.01)
    playground.after["r4"] = _fail(ValueError("no such colour"))
    replayer = playground.replay(playground.replayer(note=replace(playground.route, repeatable=True)))
    assert playground.rows == [ref for ref in refs if ref != "r4"]
    assert (replayer.done, replayer.failed) == (9, 1)


def test_one_that_fails_beside_others_fails_alone(playground: Playground) -> None:
    """Of calls that run at the same time only the one at fault goes to quarantine."""
    refs = [f"r{number}" for number in range(10)]
    playground.defer(*refs, apart_s=0.01)
    playground.trouble["r4"] = _fail(ValueError("no such colour"))
    playground.leaves_rows = False
    replayer = playground.replay(playground.replayer(note=replace(playground.route, repeatable=True)))
    assert (replayer.done, replayer.failed) == (9, 1)
    assert list(playground.quarantined) == ["r4"]


@pytest.mark.mariadb
@pytest.mark.slow
def test_killed_again_and_again_it_does_every_call_once(tmp_path: Path, mariadb_url: str) -> None:
    """Fifty times killed at a random moment, the replay leaves one row for each of 500 calls."""
    with closing(Playground(tmp_path, mariadb_url)) as playground:
        refs = [f"r{number}" for number in range(500)]
        playground.defer(*refs)
        randomly = random.Random(7)
        command = [sys.executable, str(_KILLED), str(tmp_path), mariadb_url]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as loader:
            for _ in range(50):
                pid = _next_replay(loader)
                time.sleep(randomly.uniform(0.0, 0.05))
                os.kill(pid, signal.SIGKILL)
            _next_replay(loader)
            loader.communicate(timeout=_LIMIT_S)
        # Whoever was running twice in a row when the process was killed was suspected, and is innocent.
        playground.journal.retry([entry.number for entry in playground.journal.quarantined()])
        playground.replay()
        assert sorted(playground.rows) == sorted(refs), json.dumps(playground.quarantined)
        assert list(playground.journal.all()) == []


def _next_replay(loader: subprocess.Popen[str]) -> int:
    """Have the next process begin; return its id once it replays."""
    assert loader.stdin is not None
    assert loader.stdout is not None
    loader.stdin.write("next\n")
    loader.stdin.flush()
    return int(loader.stdout.readline())
