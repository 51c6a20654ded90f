"""Worker: how accepting is shared and who may call; its life is seen in ``tests/integration``."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Final, TypeAlias

import gevent
import pytest
from children import in_child

from fastagi_pool.application import Application, assemble
from fastagi_pool.call import Call
from fastagi_pool.callboard import CallState, read_calls
from fastagi_pool.config import load_text
from fastagi_pool.context import Context
from fastagi_pool.dispatch import Handler
from fastagi_pool.logs import LogFile, configure
from fastagi_pool.protocol import HeaderLimits
from fastagi_pool.scoreboard import Scoreboard, SlotWriter, WorkerState
from fastagi_pool.session import Session, SessionLimits
from fastagi_pool.stacks import ask_stacks
from fastagi_pool.tally import read_tally
from fastagi_pool.worker import (
    ACTIVE_SLACK,
    MOST_SLOW,
    TURNS_SLACK,
    WORKER_SIGNALS,
    Birth,
    Surroundings,
    Worker,
)

Handlers: TypeAlias = Mapping[str, Handler]

#: Far more than anything here takes, and how long a worker lives that nobody ends.
_WAIT_S: Final = 10.0
_LIFE_S: Final = 60
_ROUTE: Final = '{script: hello, handler: "fastagi_pool.handlers.demo:hello"}'


def application(
    folder: Path, route: str = _ROUTE, given: Handlers | None = None, more: str = ""
) -> Application:
    """Assemble what a worker serves.

    Args:
        folder: Its runtime folder.
        route: Its only route.
        given: Handlers that are here already, by their names in the configuration.
        more: What else the configuration says.
    """
    yaml = f"runtime_dir: {folder}\nhttp: {{listen: 'off'}}\n{more}\nroutes:\n  - {route}\n"
    return assemble(load_text(yaml, "pool.yaml", folder, {}), given or {})


class Others:
    """A scoreboard with some workers on it.

    Attributes:
        board: The scoreboard.
        slots: The slots of the workers that are there already, all of them ready.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.board = Scoreboard.create(folder / "scoreboard", os.getpid(), monotonic())
        self.slots = [SlotWriter(self.board, number) for number in range(count)]
        for slot in self.slots:
            self.board.clear(slot.slot)
            slot.begin(1000 + slot.slot, 1, monotonic())
            slot.set_state(WorkerState.READY)
        self.board.clear(count)


def take_calls(slot: SlotWriter, calls: int, ended: bool) -> None:
    """Let a worker take calls, and end them if wanted."""
    for _ in range(calls):
        slot.call_begins()
        if ended:
            slot.call_ends(failed=False)


def steps_back(others: Others, folder: Path, calls: int, ended: bool) -> bool:
    """Tell whether a new worker that has taken so many calls would let the others go first."""

    def decide() -> bool:
        bell, ringer = os.pipe()
        surroundings = Surroundings(LogFile(str(folder / "log")), None, None, ringer, bell)
        worker = Worker(Birth(len(others.slots), 1, others.board, ()), application(folder), surroundings)
        mine = SlotWriter(others.board, len(others.slots))
        mine.set_state(WorkerState.READY)
        take_calls(mine, calls, ended)
        return worker._has_more_than_others()

    return bool(in_child(decide))


# --- how accepting is shared


@pytest.mark.parametrize(
    ("calls", "steps"), [(0, False), (ACTIVE_SLACK, False), (ACTIVE_SLACK + 1, True), (100, True)]
)
def test_busier_worker_steps_back(calls: int, steps: bool, tmp_path: Path) -> None:
    """A worker with clearly more calls in progress than the least busy one lets that take the next."""
    others = Others(tmp_path, 2)
    take_calls(others.slots[0], 50, ended=False)
    assert steps_back(others, tmp_path, calls, ended=False) is steps


@pytest.mark.parametrize(("calls", "steps"), [(TURNS_SLACK, False), (TURNS_SLACK + 1, True)])
def test_worker_that_took_more_turns_steps_back(calls: int, steps: bool, tmp_path: Path) -> None:
    """Of workers that are equally idle the one that had clearly more turns steps back."""
    assert steps_back(Others(tmp_path, 2), tmp_path, calls, ended=True) is steps


def test_newcomer_need_not_catch_up(tmp_path: Path) -> None:
    """A new worker counts its turns from where the others stand, and is not flooded."""
    others = Others(tmp_path, 2)
    for slot in others.slots:
        take_calls(slot, 1000, ended=True)
    assert steps_back(others, tmp_path, TURNS_SLACK + 1, ended=True)


def test_worker_alone_never_steps_back(tmp_path: Path) -> None:
    """Where nobody else accepts, there is nobody to wait for."""
    assert not steps_back(Others(tmp_path, 0), tmp_path, 500, ended=False)


def test_draining_workers_do_not_count(tmp_path: Path) -> None:
    """A worker that accepts no more is no reason to step back, however idle it is."""
    others = Others(tmp_path, 1)
    others.slots[0].set_state(WorkerState.DRAINING)
    assert not steps_back(others, tmp_path, 500, ended=False)


# --- who may call


# --- its end


def test_worker_without_a_master_ends(tmp_path: Path) -> None:
    """A worker whose lifeline ends, because the master is gone, ends by itself with exit code 0."""
    others = Others(tmp_path, 0)

    def live() -> int:
        lifeline, master = os.pipe()
        _, ringer = os.pipe()
        surroundings = Surroundings(LogFile(str(tmp_path / "log")), None, None, ringer, lifeline)
        configure(surroundings.log, "info", "loader")
        worker = Worker(Birth(0, 1, others.board, ()), application(tmp_path), surroundings)
        os.close(master)
        return worker.run()

    assert in_child(live) == 0
    assert "the master is gone: finishing 0 calls" in (tmp_path / "log").read_text()


# --- its calls, in a worker that lives in a process of its own


@dataclass
class Life:
    """A worker in a child, and its end.

    Attributes:
        address: Where it listens.
        pid: Its process.
        folder: Its runtime folder; the log is in it.
    """

    address: tuple[str, int]
    pid: int
    folder: Path

    def place(self) -> socket.socket:
        """Place a call; the environment is sent."""
        asterisk = socket.create_connection(self.address, _WAIT_S)
        asterisk.sendall(b"agi_network: yes\nagi_network_script: hello\nagi_uniqueid: 1.1\n\n")
        return asterisk

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def end(self) -> int:
        """Wait for its end; return its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def log(self) -> str:
        """All that it has logged."""
        return (self.folder / "log").read_text()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Callable[..., Life]]:
    """Give a function that starts a worker which serves one route by a function of the test's."""
    lives: list[Life] = []
    ends: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def start(
        handler: Handler,
        route: str = "{}",
        more: str = "",
        prove: bool = False,
        selftest: Callable[[Context], object] | None = None,
    ) -> Life:
        board = Others(tmp_path, 0).board
        lifeline, master = os.pipe()
        bell, ringer = os.pipe()
        ends.extend((lifeline, master, bell, ringer))
        # As the zygote does: a signal that comes too soon waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, WORKER_SIGNALS)
        pid = os.fork()
        if pid == 0:
            code = 3
            try:
                signal.alarm(_LIFE_S)
                os.close(master)
                log = LogFile(str(tmp_path / "log"))
                configure(log, "info", "loader")
                words = f"{{script: hello, handler: 'test_worker:given', {route.strip('{}')}}}"
                served = application(tmp_path, words, {"test_worker:given": handler}, more)
                served = replace(served, selftests=(selftest,) if selftest else ())
                descriptor = os.dup(listener.fileno())
                birth = Birth(0, 1, board, (descriptor,), prove)
                code = Worker(birth, served, Surroundings(log, log, log, ringer, lifeline)).run()
            finally:
                os._exit(code)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WORKER_SIGNALS)
        life = Life(listener.getsockname(), pid, tmp_path)
        lives.append(life)
        return life

    yield start
    for life in lives:
        with suppress(ProcessLookupError, ChildProcessError):
            life.signal(signal.SIGKILL)
            os.waitpid(life.pid, 0)
    listener.close()
    for descriptor in ends:
        os.close(descriptor)


def wait_for_digits(call: Call, context: Context) -> None:
    """Wait for a caller who presses no key."""
    call.wait_for_digit()


def wait_in_the_script(call: Call, context: Context) -> None:
    """Be a handler that takes its time."""
    call.noop()
    gevent.sleep(_WAIT_S)


def refuse(context: Context) -> None:
    """Be a self-test that fails."""
    raise ValueError("the sound files are missing")


def test_others_see_the_calls_of_a_worker(live: Callable[..., Life]) -> None:
    """Who reads the worker's call board finds a call in progress, and no call after its end."""
    life = live(wait_for_digits)
    board = life.folder / "calls" / "0"
    with life.place() as asterisk:
        assert asterisk.recv(100) == b"WAIT FOR DIGIT -1\n"
        [facts] = read_calls(board, 0)
        assert (facts.pid, facts.state, facts.command) == (life.pid, CallState.ASTERISK, "WAIT FOR DIGIT -1")
        assert facts.uniqueid == "1.1"
        asterisk.sendall(b"200 result=0\n")
        assert asterisk.recv(100) == b""
    life.signal(signal.SIGTERM)
    assert life.end() == 0
    assert read_calls(board, 0) == []
    [route] = [each for each in read_tally(life.folder / "tallies" / "0").routes if each.calls]
    assert (route.calls, route.commands, route.outcomes["ok"]) == (1, 1, 1)


def test_a_call_whose_route_gives_no_time_ends_with_the_draining(live: Callable[..., Life]) -> None:
    """A worker that drains ends the calls of a route as soon as that wants, though others may go on."""
    life = live(wait_for_digits, "{drain_timeout: 0}", "drain_timeout: 4h")
    with life.place() as asterisk:
        assert asterisk.recv(100) == b"WAIT FOR DIGIT -1\n"
        life.signal(signal.SIGTERM)
        heard = b"".join(iter(lambda: asterisk.recv(4096), b""))
    assert b"STOPPED" in heard
    assert life.end() == 0


def test_a_slow_call_is_written_down_while_it_runs(live: Callable[..., Life]) -> None:
    """The worker notices a call that is slow by its route's measure, and writes down where it is."""
    life = live(wait_in_the_script, "{slow_after: 10ms}")
    with life.place() as asterisk:
        assert asterisk.recv(100) == b"NOOP\n"
        asterisk.sendall(b"200 result=0\n")
        until(lambda: "slow call=" in life.log)
        assert "in wait_in_the_script" in life.log
        life.signal(signal.SIGINT)
    assert life.end() == 0


def test_many_slow_calls_are_told_of_in_portions(tmp_path: Path) -> None:
    """When a database hangs all calls become slow at once: writing that down keeps nobody from his turn."""

    def live() -> object:
        others = Others(tmp_path, 0)
        bell, ringer = os.pipe()
        surroundings = Surroundings(LogFile(str(tmp_path / "log")), None, None, ringer, bell)
        worker = Worker(Birth(0, 1, others.board, ()), application(tmp_path), surroundings)
        told: list[Session] = []

        def report(session: Session) -> None:
            session.find_slow()
            told.append(session)

        worker._dispatcher.report_slow = report  # type: ignore[method-assign]
        for _ in range(MOST_SLOW + 1):
            end, _ = socket.socketpair()
            call = Session(end.detach(), "", worker._hub, SessionLimits(), HeaderLimits())
            call.begin(SessionLimits(slow_s=1e-9))
            worker._sessions.add(call)
        looks = []
        for _ in range(3):
            worker._sweep()
            looks.append(len(told))
        return looks

    assert in_child(live) == [MOST_SLOW, MOST_SLOW + 1, MOST_SLOW + 1]


def test_a_call_that_waits_for_a_place_is_queued(live: Callable[..., Life]) -> None:
    """A call that finds every place taken is seen in the queue, and its wait stands in its access line."""
    life = live(wait_for_digits, more="calls_per_worker: 1")
    with life.place() as first, life.place() as second:
        assert first.recv(100) == b"WAIT FOR DIGIT -1\n"
        until(lambda: CallState.QUEUED in [each.state for each in read_calls(life.folder / "calls" / "0", 0)])
        first.sendall(b"200 result=0\n")
        assert second.recv(100) == b"WAIT FOR DIGIT -1\n"
        second.sendall(b"200 result=0\n")
        assert second.recv(100) == b""
    life.signal(signal.SIGTERM)
    assert life.end() == 0
    queued_ms = re.findall(r"queued_ms=([0-9.]+)", life.log)
    assert [float(each) > 0 for each in queued_ms] == [False, True]


@pytest.mark.parametrize(("prove", "code"), [(True, 1), (False, 0)])
def test_a_self_test_that_fails(live: Callable[..., Life], prove: bool, code: int) -> None:
    """A worker that has to prove itself does not serve when a self-test fails; others are not tested."""
    life = live(wait_for_digits, prove=prove, selftest=refuse)
    if not prove:
        life.signal(signal.SIGTERM)
    assert life.end() == code
    assert ("self-test of test_worker failed\n" in life.log) is prove
    assert ("ValueError: the sound files are missing" in life.log) is prove


def test_a_worker_tells_its_stacks(live: Callable[..., Life]) -> None:
    """Whoever asks the worker's socket learns which call waits where."""
    life = live(wait_for_digits)
    with life.place() as asterisk:
        assert asterisk.recv(100) == b"WAIT FOR DIGIT -1\n"
        text = ask_stacks(life.folder / "stacks" / "0", _WAIT_S)
        assert "in wait_for_digits" in text
        assert "route=" in text


def until(condition: Callable[[], bool]) -> None:
    """Wait until something that another process does has happened."""
    give_up_s = monotonic() + _WAIT_S
    while not condition():
        assert monotonic() < give_up_s, "it does not happen"
        time.sleep(0.005)
