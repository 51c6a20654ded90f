"""fastagi_pool.keeping: real observers that do nothing, and a clock that is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest

from fastagi_pool.keeping import LAST_WORDS_S, PAUSE_S, ObserverKeeper, ObserverOrder

_ORDER: Final = ObserverOrder("/run/x", 42)
_OTHER: Final = replace(_ORDER, port=80)


class World:
    """A keeper whose observers say what they were told, and wait for a signal.

    Attributes:
        keeper: The one under test.
        said: Read what observers say.
    """

    def __init__(self) -> None:
        self.said, self._mouth = os.pipe()
        self.keeper = ObserverKeeper(self._live, self._forget, lifeline_fd=77)

    def _forget(self) -> None:
        os.write(self._mouth, b"forgot, ")

    def _live(self, order: ObserverOrder, lifeline_fd: int) -> int:
        # Blocked before anything is said: no signal comes between a look and a wait.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        os.write(self._mouth, f"port={order.port} lifeline={lifeline_fd}".encode())
        if order.port == 99:
            raise RuntimeError("a bug")
        while True:
            signal.sigwait({signal.SIGUSR1})
            os.write(self._mouth, b"reopened")

    def hear(self) -> str:
        """Wait until an observer says something; a sentence is one word."""
        return os.read(self.said, 1000).decode()

    def begin(self, now_s: float) -> int:
        """Have an observer started, which must be alive; return its process id."""
        self.keeper.look_after(now_s)
        assert self.keeper.pid
        while "lifeline" not in self.hear():
            pass
        return self.keeper.pid

    def bury(self, pid: int) -> int:
        """Wait for the end of an observer, and return its status."""
        return os.waitpid(pid, 0)[1]

    def close(self) -> None:
        """Kill what is left."""
        if self.keeper.pid:
            os.kill(self.keeper.pid, signal.SIGKILL)
            os.waitpid(self.keeper.pid, 0)
        os.close(self.said)
        os.close(self._mouth)


@pytest.fixture
def world() -> Iterator[World]:
    """A keeper with real processes."""
    world = World()
    yield world
    world.close()


def test_nothing_is_started_unless_wanted(world: World) -> None:
    """Before a generation serves there is no observer: nobody knows how it shall be."""
    world.keeper.look_after(100.0)
    assert world.keeper.pid == 0


def test_observer_gets_its_order(world: World) -> None:
    """The observer lives by the order, with the lifeline, and has let go of what is the master's."""
    world.keeper.want(_OTHER, 100.0)
    world.keeper.look_after(100.0)
    said = ""
    while "lifeline" not in said:
        said += world.hear()
    assert said == "forgot, port=80 lifeline=77"


def test_the_dead_are_followed_but_not_in_a_hurry(world: World) -> None:
    """An observer that died is followed by another, once the pause since its start is over."""
    world.keeper.want(_ORDER, 100.0)
    first = world.begin(100.0)
    os.kill(first, signal.SIGKILL)
    world.bury(first)
    assert not world.keeper.has_ended(first + 1, "", 100.1)
    assert world.keeper.has_ended(first, "killed", 100.1)
    world.keeper.look_after(100.0 + PAUSE_S - 0.1)
    assert world.keeper.pid == 0
    assert world.begin(100.0 + PAUSE_S) != first


def test_long_life_is_followed_at_once(world: World) -> None:
    """An observer that lived for long is followed without a pause."""
    world.keeper.want(_ORDER, 100.0)
    first = world.begin(100.0)
    os.kill(first, signal.SIGKILL)
    world.bury(first)
    world.keeper.has_ended(first, "killed", 500.0)
    world.begin(500.0)


def test_another_order_means_another_observer(world: World) -> None:
    """One whose order changes may finish what it says, is then told to end, and followed by another."""
    world.keeper.want(_ORDER, 100.0)
    first = world.begin(100.0)
    world.keeper.want(_OTHER, 200.0)
    world.keeper.look_after(200.0 + LAST_WORDS_S - 0.1)
    assert os.waitpid(first, os.WNOHANG) == (0, 0)
    world.keeper.look_after(200.0 + LAST_WORDS_S)
    assert os.WTERMSIG(world.bury(first)) == signal.SIGTERM
    world.keeper.has_ended(first, "", 203.0)
    world.keeper.look_after(203.0)
    # The two sentences may come in one piece.
    while "port=80" not in world.hear():
        pass


def test_the_same_order_changes_nothing(world: World) -> None:
    """A reload that leaves the order as it was leaves the observer alone."""
    world.keeper.want(_ORDER, 100.0)
    first = world.begin(100.0)
    world.keeper.want(replace(_ORDER), 200.0)
    world.keeper.look_after(300.0)
    assert world.keeper.pid == first
    assert os.waitpid(first, os.WNOHANG) == (0, 0)


def test_adopted_observer_is_replaced_once_wanted(world: World) -> None:
    """An observer of a former program serves until the new one wants its own, by whatever order."""
    world.keeper.want(_ORDER, 100.0)
    old = world.begin(100.0)
    heir = World()
    heir.keeper.adopt(old, _ORDER)
    heir.keeper.look_after(200.0)
    assert os.waitpid(old, os.WNOHANG) == (0, 0)
    heir.keeper.want(_ORDER, 300.0)
    heir.keeper.look_after(300.0 + LAST_WORDS_S)
    assert os.WTERMSIG(world.bury(old)) == signal.SIGTERM
    assert heir.keeper.has_ended(old, "", 303.0)
    heir.begin(303.0)
    world.keeper.has_ended(old, "", 303.0)
    heir.keeper.want(_ORDER, 400.0)
    heir.keeper.look_after(500.0)
    assert os.waitpid(heir.keeper.pid, os.WNOHANG) == (0, 0)
    heir.close()


def test_adopted_observer_that_dies_is_followed(world: World) -> None:
    """Also if the reload after an upgrade is refused, an observer that dies is followed by another."""
    world.keeper.adopt(0, _ORDER)
    first = world.begin(100.0)
    world.keeper.want(_ORDER, 200.0)
    world.keeper.look_after(300.0)
    assert os.waitpid(first, os.WNOHANG) == (0, 0)


def test_bug_ends_the_observer_only(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """An observer with a bug ends as a failure, and what it was can be read."""
    world.keeper.want(replace(_ORDER, port=99), 100.0)
    world.keeper.look_after(100.0)
    assert os.waitstatus_to_exitcode(world.bury(world.keeper.pid)) == 1
    world.keeper.has_ended(world.keeper.pid, "exit code 1", 100.0)
    assert "RuntimeError: a bug" in capfd.readouterr().err


def test_logs_are_reopened(world: World) -> None:
    """The observer hears of a rotation; that there is none is no error."""
    world.keeper.reopen_logs()
    world.keeper.want(_ORDER, 100.0)
    world.begin(100.0)
    world.keeper.reopen_logs()
    assert world.hear() == "reopened"


def test_dismissed_for_good(world: World) -> None:
    """At the end of the pool it is told to end, and followed by nobody."""
    world.keeper.want(_ORDER, 100.0)
    pid = world.begin(100.0)
    assert world.keeper.dismiss() == (pid,)
    assert os.WTERMSIG(world.bury(pid)) == signal.SIGTERM
    world.keeper.has_ended(pid, "", 200.0)
    world.keeper.look_after(300.0)
    assert world.keeper.pid == 0
    assert world.keeper.dismiss() == ()
