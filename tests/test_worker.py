"""Worker: its calls and its end, in a process of its own; the whole pool is seen in ``tests/integration``."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Final, NamedTuple, TypeAlias

import gevent
import pytest
from children import in_child

from fastagi_pool import handover
from fastagi_pool.application import Application, assemble
from fastagi_pool.call import Call
from fastagi_pool.callboard import CallState, read_calls
from fastagi_pool.config import load_text
from fastagi_pool.context import Context
from fastagi_pool.custody import Custody
from fastagi_pool.dispatch import Handler
from fastagi_pool.endings import FAILURE_LINE
from fastagi_pool.logs import LogFile, configure
from fastagi_pool.messages import Inheritance
from fastagi_pool.protocol import HeaderLimits
from fastagi_pool.scoreboard import Scoreboard
from fastagi_pool.session import Session, SessionLimits
from fastagi_pool.stacks import ask_stacks
from fastagi_pool.tally import read_tally
from fastagi_pool.worker import MOST_SLOW, WORKER_SIGNALS, Birth, Surroundings, Worker, live

Handlers: TypeAlias = Mapping[str, Handler]

#: Far more than anything here takes, and how long a worker lives that nobody ends.
_WAIT_S: Final = 10.0
_LIFE_S: Final = 60
_ENVIRONMENT: Final = b"agi_network: yes\nagi_network_script: hello\nagi_uniqueid: 1.1\n\n"
#: As far as somebody has spoken who is half heard.
_HALF: Final = _ENVIRONMENT[:20]
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


def make_board(folder: Path) -> Scoreboard:
    """Make the scoreboard of a pool in which one worker is to be born."""
    board = Scoreboard.create(folder / "scoreboard", os.getpid(), monotonic())
    board.clear(0)
    return board


# --- its end


def test_worker_without_a_master_ends(tmp_path: Path) -> None:
    """A worker whose lifeline ends, because the master is gone, ends by itself with exit code 0."""
    board = make_board(tmp_path)

    def life() -> int:
        lifeline, master = os.pipe()
        _, ringer = os.pipe()
        inheritance = Inheritance(ringer, lifeline, handover.make())
        surroundings = Surroundings(LogFile(str(tmp_path / "log")), None, None, inheritance)
        configure(surroundings.log, "info", "loader")
        os.close(master)
        return live(application(tmp_path), surroundings, Birth(0, 1, board, ()))

    assert in_child(life) == 0
    assert "the master is gone: finishing 0 calls" in (tmp_path / "log").read_text()


# --- its calls, in a worker that lives in a process of its own


@dataclass
class Life:
    """A worker in a child, and its end.

    Attributes:
        address: Where it listens.
        pid: Its process.
        folder: Its runtime folder; the log is in it.
        handover: Both ends of the way from dead workers to others.
        board: The scoreboard on which it is the only worker.
    """

    address: tuple[str, int]
    pid: int
    folder: Path
    handover: tuple[int, int]
    board: Scoreboard

    def connect(self) -> socket.socket:
        """Connect as Asterisk does, and say nothing yet."""
        return socket.create_connection(self.address, _WAIT_S)

    def place(self) -> socket.socket:
        """Place a call; the environment is sent."""
        asterisk = self.connect()
        asterisk.sendall(_ENVIRONMENT)
        return asterisk

    def begun(self) -> socket.socket:
        """Place a call to the handler that waits for digits; it has its place before another one comes."""
        asterisk = self.place()
        assert asterisk.recv(100) == b"WAIT FOR DIGIT -1\n"
        return asterisk

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def end(self) -> int:
        """Wait for its end; return its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def turns(self) -> int:
        """How many connections it has accepted."""
        return self.board.least_busy()[1]

    @property
    def log(self) -> str:
        """All that it has logged."""
        return (self.folder / "log").read_text()


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Callable[..., Life]]:
    """Give a function that starts a worker which serves one route by a function of the test's."""
    begun: list[Life] = []
    ends: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def start(
        handler: Handler,
        route: str = "{}",
        more: str = "",
        prove: bool = False,
        selftest: Callable[[Context], object] | None = None,
    ) -> Life:
        board = make_board(tmp_path)
        lifeline, master = os.pipe()
        bell, ringer = os.pipe()
        pair = handover.make()
        ends.extend((lifeline, master, bell, ringer, *pair))
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
                surroundings = Surroundings(log, log, log, Inheritance(ringer, lifeline, pair))
                code = live(served, surroundings, birth)
            finally:
                os._exit(code)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WORKER_SIGNALS)
        life = Life(listener.getsockname(), pid, tmp_path, pair, board)
        begun.append(life)
        return life

    yield start
    for life in begun:
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


def test_others_see_the_calls_of_a_worker(lives: Callable[..., Life]) -> None:
    """Who reads the worker's call board finds a call in progress, and no call after its end."""
    life = lives(wait_for_digits)
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


def test_a_call_whose_route_gives_no_time_ends_with_the_draining(lives: Callable[..., Life]) -> None:
    """A worker that drains ends the calls of a route as soon as that wants, though others may go on."""
    life = lives(wait_for_digits, "{drain_timeout: 0}", "drain_timeout: 4h")
    with life.place() as asterisk:
        assert asterisk.recv(100) == b"WAIT FOR DIGIT -1\n"
        life.signal(signal.SIGTERM)
        heard = b"".join(iter(lambda: asterisk.recv(4096), b""))
    assert b"STOPPED" in heard
    assert life.end() == 0


def test_a_slow_call_is_written_down_while_it_runs(lives: Callable[..., Life]) -> None:
    """The worker notices a call that is slow by its route's measure, and writes down where it is."""
    life = lives(wait_in_the_script, "{slow_after: 10ms}")
    with life.place() as asterisk:
        assert asterisk.recv(100) == b"NOOP\n"
        asterisk.sendall(b"200 result=0\n")
        until(lambda: "slow call=" in life.log)
        assert "in wait_in_the_script" in life.log
        life.signal(signal.SIGINT)
    assert life.end() == 0


def test_many_slow_calls_are_told_of_in_portions(tmp_path: Path) -> None:
    """When a database hangs all calls become slow at once: writing that down keeps nobody from his turn."""
    board = make_board(tmp_path)

    def look_thrice() -> object:
        bell, ringer = os.pipe()
        inheritance = Inheritance(ringer, bell, handover.make())
        surroundings = Surroundings(LogFile(str(tmp_path / "log")), None, None, inheritance)
        worker = Worker(Birth(0, 1, board, ()), application(tmp_path), surroundings, Custody(1), 0)
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

    assert in_child(look_thrice) == [MOST_SLOW, MOST_SLOW + 1, MOST_SLOW + 1]


def test_a_call_that_waits_for_a_place_is_queued(lives: Callable[..., Life]) -> None:
    """A call that finds every place taken is seen in the queue, and its wait stands in its access line."""
    life = lives(wait_for_digits, more="calls_per_worker: 1")
    with life.begun() as first, life.place() as second:
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
def test_a_self_test_that_fails(lives: Callable[..., Life], prove: bool, code: int) -> None:
    """A worker that has to prove itself does not serve when a self-test fails; others are not tested."""
    life = lives(wait_for_digits, prove=prove, selftest=refuse)
    if not prove:
        life.signal(signal.SIGTERM)
    assert life.end() == code
    assert ("self-test of test_worker failed\n" in life.log) is prove
    assert ("ValueError: the sound files are missing" in life.log) is prove


def test_a_worker_tells_its_stacks(lives: Callable[..., Life]) -> None:
    """Whoever asks the worker's socket learns which call waits where."""
    life = lives(wait_for_digits)
    with life.place() as asterisk:
        assert asterisk.recv(100) == b"WAIT FOR DIGIT -1\n"
        text = ask_stacks(life.folder / "stacks" / "0", _WAIT_S)
        assert "in wait_for_digits" in text
        assert "route=" in text


# --- who has not begun


def hear_all(asterisk: socket.socket) -> bytes:
    """Hear the worker out."""
    return b"".join(iter(lambda: asterisk.recv(4096), b""))


class Callers(NamedTuple):
    """One connection of each kind that a worker may have."""

    silent: socket.socket
    half_heard: socket.socket
    begun: socket.socket
    queued: socket.socket


@contextmanager
def callers_of_each_kind(life: Life) -> Iterator[Callers]:
    """Connect one caller of each kind to a worker with a single place, whose handler waits for digits."""
    with life.connect() as silent, life.connect() as half_heard, life.place() as begun:
        half_heard.sendall(_HALF)
        # The connections are accepted in their order, so the worker has the other two by then.
        assert begun.recv(100) == b"WAIT FOR DIGIT -1\n"
        with life.place() as queued:
            until(lambda: "QUEUED" in states(life))
            yield Callers(silent, half_heard, begun, queued)


def test_no_place_in_the_lane(lives: Callable[..., Life]) -> None:
    """A call that finds neither a place nor room to wait in its lane hears so, and which key decides."""
    life = lives(wait_for_digits, "{lane: slow}", "lanes: {slow: {max_active: 1, max_queue: 0}}")
    with life.begun() as first, life.place() as second:
        heard = hear_all(second)
        assert b"SET VARIABLE FAGI_STATUS OVERLOAD\n" in heard
        assert b"lanes.slow.max_active: 1" in heard
        first.sendall(b"200 result=0\n")
        assert first.recv(100) == b""
    with life.place() as third:
        assert third.recv(100) == b"WAIT FOR DIGIT -1\n"
        third.sendall(b"200 result=0\n")
        assert third.recv(100) == b""


def test_too_many_calls_of_one_server(lives: Callable[..., Life]) -> None:
    """One Asterisk server gets no more calls served than it may have, and hears so."""
    life = lives(wait_for_digits, more="limits: {calls_per_server: 1}")
    with life.place() as first, life.place() as second:
        heard = first.recv(100) + second.recv(4096)
        assert b"WAIT FOR DIGIT -1\n" in heard
        assert b"OVERLOAD" in heard


def test_who_is_silent_when_the_worker_drains(lives: Callable[..., Life]) -> None:
    """A worker that drains serves those who have connected already, whenever they begin to speak."""
    life = lives(wait_for_digits)
    with life.connect() as silent, life.connect() as half_heard, life.place() as begun:
        half_heard.sendall(_HALF)
        # The connections are accepted in their order.
        assert begun.recv(100) == b"WAIT FOR DIGIT -1\n"
        life.signal(signal.SIGTERM)
        begun.sendall(b"200 result=0\n")
        assert begun.recv(100) == b""
        silent.sendall(_ENVIRONMENT)
        half_heard.sendall(_ENVIRONMENT.removeprefix(_HALF))
        for asterisk in (silent, half_heard):
            assert asterisk.recv(100) == b"WAIT FOR DIGIT -1\n"
            asterisk.sendall(b"200 result=0\n")
            assert asterisk.recv(100) == b""
    assert life.end() == 0


def test_silent_ones_do_not_keep_a_worker(lives: Callable[..., Life]) -> None:
    """A worker that drains gives silent connections their time and no more, and tells them."""
    life = lives(wait_for_digits, more="limits: {header_timeout: 50ms}")
    with life.connect() as silent:
        until(lambda: life.turns == 1)
        life.signal(signal.SIGTERM)
        assert b"SET VARIABLE FAGI_STATUS TIMEOUT\n" in hear_all(silent)
    assert life.end() == 0


def test_a_worker_that_must_end_tells_everybody(lives: Callable[..., Life]) -> None:
    """Silent, half heard, queued and begun: whoever is there when the worker must end hears why."""
    life = lives(wait_for_digits, more="calls_per_worker: 1")
    with callers_of_each_kind(life) as callers:
        life.signal(signal.SIGINT)
        for asterisk in callers:
            heard = hear_all(asterisk)
            assert b"SET VARIABLE FAGI_STATUS STOPPED\n" in heard
            assert heard.endswith(FAILURE_LINE)
    assert life.end() == 0


def test_whoever_waited_begins_when_the_worker_drains(lives: Callable[..., Life]) -> None:
    """Nobody else can take a call that waits in a worker which drains, so it begins at once, place or not."""
    life = lives(wait_for_digits, more="calls_per_worker: 1")
    with life.begun() as first, life.place() as second:
        until(lambda: "QUEUED" in states(life))
        life.signal(signal.SIGTERM)
        assert second.recv(100) == b"WAIT FOR DIGIT -1\n"
        for asterisk in (first, second):
            asterisk.sendall(b"200 result=0\n")
            assert asterisk.recv(100) == b""
    assert life.end() == 0


# --- its witness


def states(life: Life) -> list[str]:
    """Return what the calls of a worker do."""
    return [each.state.name for each in read_calls(life.folder / "calls" / "0", 0)]


def witness_of(life: Life) -> int:
    """Return the process of a worker's witness: its only child."""
    [pid] = Path(f"/proc/{life.pid}/task/{life.pid}/children").read_text().split()
    return int(pid)


def test_a_worker_whose_witness_is_gone(lives: Callable[..., Life]) -> None:
    """Without a witness a worker serves what it has and ends: nobody would tell the truth if it died."""
    life = lives(wait_for_digits)
    with life.place() as asterisk:
        assert asterisk.recv(100) == b"WAIT FOR DIGIT -1\n"
        os.kill(witness_of(life), signal.SIGKILL)
        until(lambda: "the witness is gone" in life.log)
        asterisk.sendall(b"200 result=0\n")
        assert asterisk.recv(100) == b""
    assert life.end() == 0


def test_a_worker_that_dies(lives: Callable[..., Life]) -> None:
    """Calls that have begun hear of the crash; all that have not are given to the next worker."""
    life = lives(wait_for_digits, more="calls_per_worker: 1")
    with callers_of_each_kind(life) as (silent, half_heard, begun, queued):
        life.signal(signal.SIGKILL)
        assert life.end() == -signal.SIGKILL
        heard = hear_all(begun)
        assert b"SET VARIABLE FAGI_STATUS CRASH\n" in heard
        assert heard.endswith(FAILURE_LINE)
        given: list[int] = []

        def all_are_given() -> bool:
            given.extend(handover.take(life.handover[0]))
            return len(given) == 3

        until(all_are_given)
        taken = [socket.socket(fileno=descriptor) for descriptor in given]
        ends = {each.getpeername(): each for each in taken}
        assert set(ends) == {each.getsockname() for each in (silent, half_heard, queued)}
        # As it came: nothing of it was consumed.
        assert ends[queued.getsockname()].recv(4096) == _ENVIRONMENT
        assert ends[half_heard.getsockname()].recv(4096) == _HALF
        for each in taken:
            each.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait until something that another process does has happened."""
    give_up_s = monotonic() + _WAIT_S
    while not condition():
        assert monotonic() < give_up_s, "it does not happen"
        time.sleep(0.005)
