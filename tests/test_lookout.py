"""Lookout: what it says about a worker that is blocked, one that is not, and to whoever asks."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import logging
import os
import resource
import select
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from children import in_child
from gevent import monkey
from greenlet import greenlet

from fastagi_pool.lookout import Lookout, Vigil, _Door
from fastagi_pool.slowlog import SlowCall, SlowLog
from fastagi_pool.stacks import ask_stacks, blocked_for

#: Which silence is a blocking here.
BLOCKED_S = 0.25
#: Beyond this a test has failed.
LIMIT_S = 15.0


# --- when the hub is blocked, decided from times


def rung(vigil: Vigil, now_s: float, waited_s: float = 0.0) -> bool:
    """Ring a hub that has heard the last ring; whether it is blocked at once."""
    vigil.ring(now_s)
    return vigil.is_blocked(now_s, waited_s)


def test_a_hub_that_hears_is_fine() -> None:
    """As long as every ring is heard nothing is reported."""
    vigil = Vigil(1.0, 100.0)
    for now_s in (100.25, 100.5, 100.75, 101.0, 101.25):
        assert not rung(vigil, now_s)
        assert vigil.wait_s(now_s) == 0.25


def test_silence_is_reported_once() -> None:
    """A silence is reported when it has lasted, once, and the next one again."""
    vigil = Vigil(1.0, 100.0)
    assert not rung(vigil, 100.0)
    looks = [100.25, 100.5, 100.75, 101.0, 101.25, 101.5]
    assert [vigil.is_blocked(now_s, 0.0) for now_s in looks] == [False] * 3 + [True] + [False] * 2
    assert vigil.silence(101.5) == 1.5
    assert not rung(vigil, 101.75)
    assert vigil.silence(101.75) == 0.0
    assert [vigil.is_blocked(101.75 + more_s, 0.0) for more_s in (0.25, 0.5, 0.75, 1.0)][-1]


def test_a_stopped_process_is_excused() -> None:
    """Time in which the thread neither ran nor waited for the lock is nobody's silence."""
    vigil = Vigil(1.0, 100.0)
    assert not rung(vigil, 100.0)
    assert not vigil.is_blocked(100.25, 0.0)
    assert not vigil.is_blocked(110.5, 0.01)
    assert vigil.silence(110.5) == pytest.approx(0.5)
    assert [vigil.is_blocked(now_s, 0.0) for now_s in (110.75, 111.0)] == [False, True]


def test_a_stop_between_rings_is_excused() -> None:
    """The same where the last ring had been heard before the process was stopped."""
    vigil = Vigil(1.0, 100.0)
    assert not rung(vigil, 110.0)
    assert vigil.silence(110.0) == 0.0


def test_a_held_lock_is_not_excused() -> None:
    """A thread that is late because it waited for Python's lock has seen a blocking, since it was due."""
    vigil = Vigil(1.0, 100.0)
    assert rung(vigil, 105.0, waited_s=4.8)
    assert vigil.silence(105.0) == 5.0


# --- real workers, each in a process of its own


class Watched:
    """A process with a hub, a lookout, and calls that have names.

    Attributes:
        lookout: The lookout.
        logged: What the process's logger got, but for what a busy machine is to blame for.
        silences: For how long the hub was said to be blocked, each time.
    """

    def __init__(self, folder: Path, blocked_s: float = BLOCKED_S) -> None:
        monkey.patch_all()
        gevent.reinit()
        self.folder = folder
        self.logged: list[str] = []
        self.silences: list[float] = []
        self.calls: dict[greenlet, str] = {}
        log = logging.Logger("watched")
        handler = logging.Handler()
        handler.emit = self.note  # type: ignore[method-assign]
        log.addHandler(handler)
        self.lookout: Lookout[str] = Lookout(
            gevent.get_hub(),
            folder / "stacks" / "3",
            "worker=3 gen=1 pid=42",
            lambda: self.calls.copy(),
            described,
            blocked_s,
            SlowLog(self, "worker=3 gen=1 pid=42"),
            log,
            self.silences.append,
        )
        self.lookout.start()

    def note(self, record: logging.LogRecord) -> None:
        """Be the log's handler."""
        if "the machine had no time" not in record.getMessage():
            self.logged.append(record.getMessage())

    longest_line_bytes = 0

    def write(self, text: str, /) -> None:
        """Be the slow log's file."""
        with (self.folder / "slow").open("a") as file:
            file.write(text)

    @property
    def slow(self) -> str:
        """What stands in the slow log."""
        path = self.folder / "slow"
        return path.read_text() if path.exists() else ""

    def call(self, ref: str, handler: Callable[[], object]) -> None:
        """Run a handler as a call, to its end."""
        attendant = gevent.spawn(handler)
        self.calls[attendant] = ref
        attendant.get()
        del self.calls[attendant]

    def until(self, happened: Callable[[], object]) -> None:
        """Let the hub run until something has happened."""
        limit_s = monotonic() + LIMIT_S
        while not happened() and monotonic() < limit_s:
            gevent.sleep(0.005)

    def seen(self) -> dict[str, Any]:
        """What the lookout has said, once it has said all."""
        self.until(lambda: self.logged)
        self.lookout.stop()
        return {"slow": self.slow, "logged": self.logged}


def described(ref: str) -> SlowCall:
    """Describe a call of which only the reference is known."""
    if ref == "unspeakable":
        raise ValueError("no words")
    if ref == "ended":
        raise KeyError(ref)
    return SlowCall(ref, "crm", "crm.agi", "192.0.2.7", "17.1", "030", "in script", 0.5, 0.0, 0.0, 0.5, 0.0)


def busy_until(happened: Callable[[], object]) -> None:
    """Let nobody else have his turn, in Python code."""
    limit_s = monotonic() + LIMIT_S
    while not happened() and monotonic() < limit_s:
        hashlib.sha256(b"x" * 1000)


def assert_blamed(seen: dict[str, Any], function: str) -> None:
    """The slow log tells of one blocking by call=c1, with the function, and the log of its length."""
    assert seen["slow"].count(" blocked call=c1 route=crm ") == 1
    assert seen["slow"].count(" blocked ") == 1
    assert f"in {function}\n" in seen["slow"]
    assert len(seen["logged"]) == 1
    assert seen["logged"][0].startswith("was blocked for ")
    assert " s by call=c1 route=crm: " in seen["logged"][0]
    assert f" ({__file__}:" in seen["logged"][0]


def test_a_blocking_is_told_while_it_lasts(tmp_path: Path) -> None:
    """Whoever shows how late the hub is hears of a blocking before it is over, and that it grows."""

    def live() -> object:
        watched = Watched(tmp_path)
        watched.call("c1", lambda: busy_until(lambda: len(watched.silences) >= 3))
        return watched.silences

    silences = in_child(live)
    assert silences[0] >= BLOCKED_S
    assert silences == sorted(silences)


def test_busy_handler(tmp_path: Path) -> None:
    """A handler that computes is written down with its stack while it does, and for how long it did after."""

    def live() -> object:
        watched = Watched(tmp_path)
        bystander = gevent.spawn(gevent.sleep, LIMIT_S)
        watched.calls[bystander] = "c2"
        watched.call("c1", lambda: busy_until(lambda: watched.slow))
        return watched.seen()

    assert_blamed(in_child(live), "busy_until")


def test_sleeping_handler(tmp_path: Path) -> None:
    """A handler that waits in a call that gevent knows nothing of is written down too."""

    def live() -> object:
        watched = Watched(tmp_path)
        poll = monkey.get_original("select", "poll")

        def wait_in_the_kernel() -> None:
            limit_s = monotonic() + LIMIT_S
            while not watched.slow and monotonic() < limit_s:
                poll().poll(20)

        watched.call("c1", wait_in_the_kernel)
        return watched.seen()

    assert_blamed(in_child(live), "test_sleeping_handler.<locals>.live.<locals>.wait_in_the_kernel")


def test_held_lock(tmp_path: Path) -> None:
    """Foreign code that holds Python's lock lets nobody answer, and is written down as soon as it lets go."""
    held, let_go = tmp_path / "held", tmp_path / "let_go"
    os.mkfifo(let_go)

    def live() -> object:
        watched = Watched(tmp_path)

        def hold_the_lock() -> None:
            # All in one: whoever sees the file finds the lock held.
            ctypes.PyDLL(None).system(f"touch {held}; cat {let_go}".encode())

        watched.call("c1", hold_the_lock)
        return watched.seen()

    with living(live) as child:
        await_file(held)
        with pytest.raises(TimeoutError):
            ask_stacks(tmp_path / "stacks" / "3", 3 * BLOCKED_S)
        let_go.write_bytes(b"")
    assert_blamed(child.result(), "test_held_lock.<locals>.live.<locals>.hold_the_lock")


def test_blocked_by_no_call(tmp_path: Path) -> None:
    """What belongs to no call, as a greenlet that a handler has started, is written down by its stack."""

    def live() -> object:
        watched = Watched(tmp_path)
        gevent.spawn(busy_until, lambda: watched.slow).join()
        return watched.seen()

    seen = in_child(live)
    assert " blocked blocked_ms=" in seen["slow"]
    assert "in busy_until\n" in seen["slow"]
    assert " s by no call: " in seen["logged"][0]


def test_quiet_hub(tmp_path: Path) -> None:
    """A hub that has nothing to do, or much in small pieces, is not accused."""

    def live() -> object:
        watched = Watched(tmp_path)
        for _ in range(40):
            watched.call("c1", lambda: gevent.sleep(BLOCKED_S / 20))
        watched.lookout.stop()
        return [watched.slow, watched.logged]

    assert in_child(live) == ["", []]


def test_signals_are_for_others(tmp_path: Path) -> None:
    """The thread takes no signal but those of its own faults, and the worker goes on taking all."""
    masks: list[set[int]] = []

    class Calls(dict[greenlet, str]):
        def copy(self) -> Calls:
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            return self

    def live() -> object:
        watched = Watched(tmp_path)
        watched.calls = Calls()
        gevent.spawn(busy_until, lambda: masks).join()
        watched.seen()
        wanted = {signal.SIGTERM, signal.SIGUSR1, signal.SIGQUIT, signal.SIGINT, signal.SIGCHLD}
        own = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return [wanted <= masks[0], signal.SIGSEGV in masks[0], sorted(wanted & own)]

    assert in_child(live) == [True, False, []]


@contextmanager
def living(live: Callable[[], object]) -> Iterator[Future[Any]]:
    """Have a child live while the test goes on."""
    with ThreadPoolExecutor(1) as threads:
        child = threads.submit(in_child, live)
        yield child
        child.exception(2 * LIMIT_S)


def await_file(path: Path) -> None:
    """Wait until a child has made a file."""
    limit_s = monotonic() + LIMIT_S
    while not path.exists():
        assert monotonic() < limit_s, f"no {path.name}"
        select.poll().poll(5)


def await_busy(folder: Path) -> None:
    """Wait until a child's slow log tells of a busy handler: it may have told of something else before."""
    limit_s = monotonic() + LIMIT_S
    await_file(folder / "slow")
    while "in busy_until\n" not in (folder / "slow").read_text():
        assert monotonic() < limit_s, "not blocked by the handler"
        select.poll().poll(5)


def test_stacks_of_a_blocked_worker(tmp_path: Path) -> None:
    """A worker that is blocked in Python code still says what all its greenlets are doing."""
    answered = tmp_path / "answered"

    def live() -> object:
        watched = Watched(tmp_path)
        for number in range(200):
            watched.calls[gevent.spawn(gevent.sleep, LIMIT_S)] = f"w{number}"
        gevent.sleep(0)
        watched.call("c1", lambda: busy_until(answered.exists))
        return watched.seen()

    with living(live) as child:
        await_busy(tmp_path)
        answer = ask_stacks(tmp_path / "stacks" / "3", LIMIT_S)
        mode = (tmp_path / "stacks" / "3").stat().st_mode
        answered.touch()
    child.result()
    assert stat.S_IMODE(mode) == 0o600
    head, _, rest = answer.partition("\n")
    assert head.startswith("worker=3 gen=1 pid=42 blocked_s=")
    assert blocked_for(answer) >= BLOCKED_S
    running, waiting, *_ = rest.strip().split("\n\n")
    assert running.startswith("running: call=c1 route=crm uniqueid=17.1 in script for 0.5 s\n")
    assert "in busy_until\n" in running
    assert waiting.count("call=w") == 200
    assert waiting.count("File ") <= 3, "once for all of them"


def test_stacks_of_a_worker_that_is_well(tmp_path: Path) -> None:
    """A worker with a living hub answers as well, as often as it is asked, and is not late for it."""
    answered = tmp_path / "answered"

    def live() -> object:
        watched = Watched(tmp_path, blocked_s=0.0)
        # Calls end while they are being asked about.
        for ref in ("ended", "c1"):
            watched.calls[gevent.spawn(gevent.sleep, LIMIT_S)] = ref
        watched.calls[gevent.spawn(int)] = "c2"
        gevent.sleep(0)
        (tmp_path / "ready").touch()
        watched.until(answered.exists)
        watched.lookout.stop()
        return [watched.logged, (tmp_path / "stacks" / "3").exists()]

    with living(live) as child:
        await_file(tmp_path / "ready")
        answers = [ask_stacks(tmp_path / "stacks" / "3", LIMIT_S) for _ in range(10)]
        answered.touch()
    assert child.result() == [[], False]
    assert {blocked_for(answer) for answer in answers} == {0.0}
    assert all("\ncall=c1 route=crm " in answer and "=c2" not in answer for answer in answers)


def test_who_does_not_read(tmp_path: Path) -> None:
    """Whoever asks and does not read keeps neither the next one nor the watching from going on."""
    answered = tmp_path / "answered"

    def live() -> object:
        watched = Watched(tmp_path)
        # More than a socket takes by itself.
        watched.calls = {gevent.spawn(gevent.sleep, LIMIT_S): "x" * 100_000 for _ in range(20)}
        gevent.sleep(0)
        (tmp_path / "ready").touch()
        watched.until(answered.exists)
        watched.call("c1", lambda: busy_until(lambda: watched.slow))
        return watched.seen()

    with living(live) as child, socket.socket(socket.AF_UNIX) as deaf:
        await_file(tmp_path / "ready")
        deaf.connect(str(tmp_path / "stacks" / "3"))
        answer = ask_stacks(tmp_path / "stacks" / "3", LIMIT_S)
        answered.touch()
        assert_blamed(child.result(2 * LIMIT_S), "busy_until")
    assert len(answer) > 2_000_000


def test_out_of_descriptors(tmp_path: Path) -> None:
    """Whoever cannot be let in does not make the thread spin, and is let in when that is possible again."""

    def live() -> object:
        door = _Door(tmp_path / "stacks" / "3")
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(tmp_path / "stacks" / "3"))
            ready = {door._listener.fileno()}
            with starving():
                door.serve(ready, 100.0, str)
            waits = [waits_for(door, now_s) == ready for now_s in (100.0, 100.1, 100.3)]
            door.serve(ready, 100.3, lambda: "what it does")
            door.serve(set(door._clients), 100.3, str)
            return [waits, asking.recv(100).decode()]

    assert in_child(live) == [[False, False, True], "what it does"]


def waits_for(door: _Door, now_s: float) -> set[int]:
    """Return what would wake the thread now."""
    poller = select.poll()
    door.register(poller, now_s)
    return {descriptor for descriptor, _ in poller.poll(0)}


@contextmanager
def starving() -> Iterator[None]:
    """Have no descriptor left, in a child."""
    # Nothing that lies about may be closed from here on.
    gc.collect()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    os.close(free)


def test_calls_that_cannot_be_described(tmp_path: Path) -> None:
    """A fault in describing calls is logged; the blocking is written down and stacks are shown anyway."""
    answered = tmp_path / "answered"

    def live() -> object:
        watched = Watched(tmp_path)
        watched.call("unspeakable", lambda: busy_until(answered.exists))
        watched.until(lambda: len(watched.logged) > 2)
        watched.lookout.stop()
        return {"slow": watched.slow, "logged": sorted(watched.logged)}

    with living(live) as child:
        await_busy(tmp_path)
        answer = ask_stacks(tmp_path / "stacks" / "3", LIMIT_S)
        answered.touch()
    seen = child.result()
    assert "in busy_until\n" in answer
    assert "in busy_until\n" in seen["slow"]
    first, second, third = seen["logged"]
    assert first == second
    assert first.startswith("the lookout failed: ValueError('no words') in described, ")
    assert " s by no call: " in third


def test_without_a_socket(tmp_path: Path) -> None:
    """A worker whose socket cannot be made says so, and is watched all the same."""
    (tmp_path / "stacks").touch()

    def live() -> object:
        watched = Watched(tmp_path)
        warning = watched.logged.pop()
        watched.call("c1", lambda: busy_until(lambda: watched.slow))
        return [warning, watched.seen()]

    warning, seen = in_child(live)
    assert warning.startswith("cannot be asked for stacks at ")
    assert_blamed(seen, "busy_until")


def test_in_place_of_a_dead_worker(tmp_path: Path) -> None:
    """A socket that a dead worker has left is taken over."""

    def die() -> object:
        Watched(tmp_path)
        return (tmp_path / "stacks" / "3").exists()

    def live() -> object:
        watched = Watched(tmp_path)
        watched.lookout.stop()
        return watched.logged

    assert in_child(die) is True
    assert in_child(live) == []
