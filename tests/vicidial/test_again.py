"""Requests that run again from the journal leave the rows of one run, wherever the first was interrupted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Self

import pytest
from vicidial_database import SQL_MODE

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.database import Answer, Database, DatabaseSettings, Lease, Onlooker, Statement
from fastagi_pool.deferring import deferral_of, make_entry, request_of
from fastagi_pool.errors import DatabaseUnavailable
from fastagi_pool.handlers.vicidial import hangup
from fastagi_pool.handlers.vicidial.call_log import call_log, setup, teardown
from fastagi_pool.protocol import AgiConnection, Reply, Request

from .comparing import compare, net_changes
from .playing import SERVER_IP, Scenario, environment, recorded
from .sites import RELAXED, Host
from .specified import specified
from .tables import Engines, Tables

pytestmark = pytest.mark.mariadb

#: So much later a call is run again.
_LATER_S: Final = 5400.0
#: More packets than a request has.
_ALL_PACKETS: Final = 1000
#: What a request may meet, one call for each kind of it.
_KINDS: Final = (
    *("S01", "S05", "K01"),
    *("E01", "E03", "E05", "E12", "E13", "E33"),
    *("E15", "E17", "E20b", "E22", "E23", "E25", "E27", "E28", "E30"),
    *("A01", "A04", "A09", "A12b", "A14b", "A15d"),
    *("Q01", "Q02", "Q03"),
    *("P02", "P03", "P07", "O02", "O04", "O05", "O12", "O20"),
    *("parked twice", "parked twice, newest told", "DID, recordings"),
    *("two legs of a manual call", "CPD, campaign of the log"),
    *("quota, third day", "quota, same call", "quota, rank zeroed", "quota, PDROP"),
)


class _Interrupted(Lease):
    """A lease whose server goes away, for good, with one of the packets."""

    server: InterruptedDatabase

    def round_trip(self, statements: Sequence[Statement]) -> list[Answer]:
        return self.server.converse(super().round_trip, statements)


class InterruptedDatabase(Database):
    """VICIdial's database as runs of a request have it: at a time of the test's, and not for ever.

    Args:
        url: Where it is.

    Attributes:
        sent: How many packets the present run has sent.
    """

    def __init__(self, url: str) -> None:
        settings = DatabaseSettings("vicidial", (url,), sql_mode=SQL_MODE, multi_statements=True)
        super().__init__(settings)
        self.begin_run(0)

    def begin_run(self, now_s: int, packets: int = _ALL_PACKETS, is_done: bool = False) -> None:
        """Say what the next run meets.

        Args:
            now_s: The time in the database, as a run from the journal has it.
            packets: How many are answered; the server is away when the next is sent.
            is_done: Whether that one is carried out, but its answer is lost.
        """
        self.sent = 0
        self._now_s = now_s
        self._packets = packets
        self._is_done = is_done

    def lease(self, onlooker: Onlooker | None = None) -> Lease:
        """Begin what a call holds."""
        lease = _Interrupted(self, time.monotonic, onlooker)
        lease.server = self
        return lease

    def converse(
        self, send: Callable[[Sequence[Statement]], list[Answer]], statements: Sequence[Statement]
    ) -> list[Answer]:
        """Carry out a packet, if the server is there."""
        self.sent += 1
        if self.sent > self._packets + self._is_done:
            raise DatabaseUnavailable("vicidial", "away")
        answers = send([("SET timestamp = %s", (self._now_s,)), *statements])[1:]
        if self.sent > self._packets:
            raise DatabaseUnavailable("vicidial", "away before it has answered")
        return answers


class _Silence:
    """Asterisk's side of a call: whatever is said, it is answered."""

    hung_up = True

    def execute(self, line: bytes) -> Reply:
        return Reply(200, "0")

    def await_hangup(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def exchange(self, line: bytes) -> bytes:
        return b"200 result=0\n"

    def listen(self, on_unasked: Callable[[bytes], None]) -> None:
        pass


class Process:
    """A process that serves VICIdial's calls; use it with ``with``.

    Args:
        url: Where their database is.
        logs: The folder of VICIdial's log files.

    Attributes:
        database: It.
    """

    def __init__(self, url: str, logs: Path) -> None:
        self.database = InterruptedDatabase(url)
        options = {"server_ip": SERVER_IP, "path_logs": str(logs), "settings_ttl": "0s", "start_wait": "0s"}
        log = logging.getLogger("again")
        self._context = Context({"vicidial": self.database}, log, {}, options)

    def __enter__(self) -> Self:
        setup(self._context)
        return self

    def __exit__(self, *_: object) -> None:
        teardown(self._context)
        self.database.close()

    def run(self, call: Call) -> int:
        """Run a call, and tell how many packets it sent; it fails if the database does."""
        try:
            call_log(call, self._context)
        except DatabaseUnavailable:
            pass
        return self.database.sent


class Runner:
    """Runs requests as a worker does, and as what replays the journal does.

    Args:
        tables: VICIdial's.
        logs: The folder of its log files.
        later: Moves the clock of this process.
    """

    def __init__(self, tables: Tables, logs: Path, later: Callable[[float], None]) -> None:
        self.tables = tables
        self._logs = logs
        self._later = later
        self._replay = self._process()

    def live(self, request: Request, now_s: int, packets: int = _ALL_PACKETS, is_done: bool = False) -> int:
        """Run a request that has just come, in a process of its own.

        Returns:
            How many packets it sent.
        """
        call = Call(request, _Silence(), ref="w-1", received_s=now_s, deferrable=True)
        with self._process() as worker:
            worker.database.begin_run(now_s, packets, is_done)
            return worker.run(call)

    def again(self, request: Request, now_s: int, packets: int = _ALL_PACKETS, is_done: bool = False) -> int:
        """Run a request from the journal, long after, in the process that does so for all.

        Returns:
            How many packets it sent.
        """
        self._later(_LATER_S)
        entry = make_entry(request, "r", "vicidial", "w-1", now_s, 0.0, "127.0.0.1", begun=True)
        call = Call(
            request_of(entry), _Silence(), ref="w-1", received_s=now_s, deferred=True, begun_before=True
        )
        self._replay.database.begin_run(now_s, packets, is_done)
        return self._replay.run(call)

    def differences(self, scenario: Scenario, run: Callable[[Request, int], object]) -> list[str]:
        """Load what a call wants, run it, and say where its rows are not those of one run."""
        self._later(0.0)
        now_s = self.tables.load(scenario)
        before = self.tables.snapshot()
        with self._process() as self._replay:
            run(request_for(scenario), now_s)
        return compare(scenario.changes, net_changes(before, self.tables.snapshot()), now_s)

    def _process(self) -> Process:
        return Process(self.tables.url, self._logs)


def request_for(scenario: Scenario) -> Request:
    """Read what Asterisk says of a call."""
    connection = AgiConnection()
    connection.receive_data(environment(scenario.agi))
    request = connection.next_event()
    assert isinstance(request, Request)
    return request


#: With each kind of table by itself: what a lost connection leaves behind differs.
_on = partial(pytest.mark.parametrize, "tables", indirect=True, scope="module", ids=lambda each: each.name)


@pytest.fixture(scope="module")
def tables(request: pytest.FixtureRequest, hosts: Callable[[str], Host]) -> Iterator[Tables]:
    """Give VICIdial's tables, with the engines that a test names."""
    host = hosts(RELAXED)
    with Tables(host.server, f"again_{request.param.name.lower()}", request.param, host.queue_host) as opened:
        yield opened


@pytest.fixture
def runner(tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Give what runs requests, with a clock that a test can move."""
    real = time.time

    # What other programs would write meanwhile is there.
    monkeypatch.setattr(hangup, "_PAUSE_S", 0.0)

    def move(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return Runner(tables, tmp_path, move)


def scenario_of(name: str) -> Scenario:
    """Give a call, be it a recorded or a described one."""
    return recorded().get(name) or specified()[name]


@_on(Engines)
@pytest.mark.parametrize("name", _KINDS)
def test_run_twice(runner: Runner, name: str) -> None:
    """A request that was served, and runs again long after as if nobody knew, leaves the rows of one run."""

    def run(request: Request, now_s: int) -> None:
        runner.live(request, now_s)
        runner.again(request, now_s)

    assert not runner.differences(scenario_of(name), run)


@_on(Engines)
@pytest.mark.parametrize("name", _KINDS)
def test_run_late(runner: Runner, name: str) -> None:
    """A request that runs from the journal for the first time leaves the rows and the times of a live one."""
    assert not runner.differences(scenario_of(name), runner.again)


@_on([Engines.AS_GIVEN, Engines.MYISAM])
@pytest.mark.parametrize("is_done", [False, True], ids=["not done", "done, not told"])
@pytest.mark.parametrize("name", _KINDS)
def test_interrupted_anywhere(runner: Runner, name: str, is_done: bool) -> None:
    """Whichever packet the first run is interrupted at, the second one ends with the rows of one run."""

    def run(packets: int, request: Request, now_s: int) -> int:
        sent = runner.live(request, now_s, packets, is_done)
        runner.again(request, now_s)
        return sent

    assert not list(interrupted(runner, scenario_of(name), run))


@_on([Engines.MYISAM])
@pytest.mark.parametrize("name", _KINDS)
def test_interrupted_in_the_replay(runner: Runner, name: str) -> None:
    """So does the second run from the journal, even if nothing of the first can be rolled back."""

    def run(packets: int, request: Request, now_s: int) -> int:
        sent = runner.again(request, now_s, packets, is_done=True)
        runner.again(request, now_s)
        return sent

    assert not list(interrupted(runner, scenario_of(name), run))


def interrupted(runner: Runner, scenario: Scenario, run: Callable[[int, Request, int], int]) -> Iterator[str]:
    """Interrupt a request at each of its packets in turn, and say where the rows are not those of one run.

    Args:
        runner: Runs it.
        scenario: It.
        run: Interrupts it after so many packets, and runs it again; gives how many the first run sent.
    """
    sent: list[int] = []
    for packets in range(_ALL_PACKETS):
        sent.clear()

        def run_it(request: Request, now_s: int, packets: int = packets) -> None:
            sent.append(run(packets, request, now_s))

        for line in runner.differences(scenario, run_it):
            yield f"{packets} packets: {line}"
        if sent[0] <= packets:
            return


@_on([Engines.AS_GIVEN])
def test_lines_of_log_files_come_once(runner: Runner, tmp_path: Path) -> None:
    """A run that is done again writes no lines; the one that succeeds does, in the file of the call's day."""
    scenario = scenario_of("A01")

    def run(request: Request, now_s: int) -> None:
        runner.live(request, now_s, 6)
        assert not [*tmp_path.iterdir()]
        runner.again(request, now_s)

    assert not runner.differences(scenario, run)
    (decisions,) = tmp_path.glob("auto-alt-dial.*")
    assert len(decisions.read_text().splitlines()) == 1


def test_whose_outage_defers_the_calls() -> None:
    """The handler may be done later, and its database is the one that the route's options name."""
    deferral = deferral_of(call_log)
    assert deferral is not None
    assert deferral.repeatable
    options = {"server_ip": SERVER_IP}
    known = ["main", "vicidial", "asterisk"]
    assert deferral.database_for(options, [], known) == "vicidial"
    assert deferral.database_for({**options, "database": "asterisk"}, ["main"], known) == "asterisk"
