"""Zygote: a real one in a child of its own, spoken to as the master would."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from select import poll
from typing import TypeAlias, TypeVar

import pytest

from fastagi_pool.messages import Begin, Channel, Ended, Fork, Forked, Message, ReopenLogs
from fastagi_pool.zygote import MASTER_SIGNALS, Prepare, Zygote

_Message = TypeVar("_Message", bound=Message)
#: The life of a worker: its slot, and whether it has to prove itself.
Life: TypeAlias = Callable[[int, bool], int]
#: The generation whose zygote has processes besides its workers.
WITH_COMPANIONS = 99


class Companion:
    """A process besides the workers, which waits to be ended (used in the zygote)."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name = name
        self._say = say
        self._pid = 0
        self._wanted = False

    def begin(self) -> None:
        """Be started at the next look."""
        self._wanted = True

    def look_after(self) -> None:
        """Start it, once."""
        if self._wanted:
            self._wanted = False
            self._pid = os.fork()
            if self._pid == 0:
                signal.pause()
            self._say(f"{self._name}={self._pid}")

    def has_ended(self, pid: int) -> bool:
        """Whether it was this one."""
        if pid != self._pid:
            return False
        self._say(f"the {self._name} has ended")
        return True


class RunningZygote:
    """A zygote whose workers say who they are on a pipe, and end as the slot's number says.

    Attributes:
        pid: Its process.
        channel: The master's end of the conversation.
    """

    def __init__(self, worker: Life) -> None:
        self._companions = [Companion(name, self.say) for name in ("launcher", "replay")]
        self._reading, self._writing = os.pipe()
        self.channel, theirs = Channel.pair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.channel.close()
                code = Zygote(
                    theirs,
                    self._told(worker),
                    {signal.SIGTERM},
                    self._reopen,
                    lambda title: None,
                    poll,
                    self._companions,
                ).run()
                os._exit(code)
            finally:
                os._exit(99)
        theirs.close()

    def say(self, text: str) -> None:
        """Tell the test something (in the zygote or its workers)."""
        os.write(self._writing, f"{text}\n".encode())

    def hear(self) -> str:
        """Wait for what the zygote or a worker says, one line."""
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self._reading, 1)
        return line.decode().strip()

    def expect(self, kind: type[_Message]) -> _Message:
        """Wait for the zygote's next message, which must be of this kind."""
        received = self.channel.receive()
        assert received is not None
        message, _ = received
        assert isinstance(message, kind)
        return message

    def fork(self, slot: int) -> int:
        """Have a worker made and return its process id."""
        assert self.channel.send(Fork(slot))
        forked = self.expect(Forked)
        assert forked.slot == slot
        return forked.pid

    def end(self) -> int:
        """Close the channel, wait for the zygote's end, and return its exit code."""
        self.channel.close()
        _, status = os.waitpid(self.pid, 0)
        os.close(self._reading)
        os.close(self._writing)
        return os.waitstatus_to_exitcode(status)

    def _told(self, worker: Life) -> Prepare:
        def prepare(begin: Begin, listeners: list[int]) -> Life:
            for companion in self._companions if begin.generation == WITH_COMPANIONS else ():
                companion.begin()

            def live(slot: int, prove: bool) -> int:
                blocked = signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
                names = [socket.socket(fileno=listener).getsockname()[1] for listener in listeners]
                self.say(f"slot={slot} gen={begin.generation} ports={names} blocked={blocked}")
                return worker(slot, prove)

            return live

        return prepare

    def _reopen(self) -> None:
        self.say("reopened")


def _end_with_slot(slot: int, prove: bool) -> int:
    if slot == 66:
        raise ValueError("a worker with a bug")
    return slot


def _say_whether_to_prove(slot: int, prove: bool) -> int:
    return 10 + prove


def _wait_for_term(slot: int, prove: bool) -> int:
    return int(signal.sigwait({signal.SIGTERM}))


@pytest.fixture
def zygote() -> Iterator[RunningZygote]:
    """Give a zygote whose workers end at once, with their slot as the exit code."""
    running = RunningZygote(_end_with_slot)
    yield running
    assert running.end() == 0


def test_worker_is_forked_and_its_end_reported(zygote: RunningZygote) -> None:
    """A worker gets its slot, its generation and the listeners; its end comes with its status."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        zygote.channel.send(Begin(7), [listener.fileno()])
        pid = zygote.fork(3)
        assert zygote.hear() == f"slot=3 gen=7 ports=[{listener.getsockname()[1]}] blocked=True"
    ended = zygote.expect(Ended)
    assert (ended.pid, os.waitstatus_to_exitcode(ended.status)) == (pid, 3)


def test_many_workers_are_all_reported(zygote: RunningZygote) -> None:
    """Of workers that end in the same moment none is forgotten."""
    zygote.channel.send(Begin(1))
    for slot in range(20):
        zygote.channel.send(Fork(slot))
    forked: set[int] = set()
    ended: set[int] = set()
    while len(forked) < 20 or len(ended) < 20:
        received = zygote.channel.receive()
        assert received is not None
        message, _ = received
        assert isinstance(message, Forked | Ended)
        (forked if isinstance(message, Forked) else ended).add(message.pid)
    assert forked == ended


def test_worker_without_a_beginning(zygote: RunningZygote) -> None:
    """A fork that is asked for before there is a generation ends as a failure, and is reported."""
    pid = zygote.fork(0)
    ended = zygote.expect(Ended)
    assert (ended.pid, os.waitstatus_to_exitcode(ended.status)) == (pid, 1)


def test_worker_with_a_bug(zygote: RunningZygote) -> None:
    """An exception that escapes from a worker ends that worker only."""
    zygote.channel.send(Begin(1))
    zygote.fork(66)
    assert os.waitstatus_to_exitcode(zygote.expect(Ended).status) == 1
    zygote.fork(5)
    assert os.waitstatus_to_exitcode(zygote.expect(Ended).status) == 5


def test_logs_are_reopened(zygote: RunningZygote) -> None:
    """The zygote reopens its logs when told, so that later workers inherit the new files."""
    zygote.channel.send(ReopenLogs())
    assert zygote.hear() == "reopened"


def test_companions_are_looked_after(zygote: RunningZygote) -> None:
    """Processes besides the workers are started with them, and the end of one is told to its keeper only."""
    zygote.channel.send(Begin(WITH_COMPANIONS))
    pids = [int(zygote.hear().removeprefix(f"{name}=")) for name in ("launcher", "replay")]
    os.kill(pids[1], signal.SIGKILL)
    assert zygote.hear() == "the replay has ended"
    os.kill(pids[0], signal.SIGKILL)
    assert zygote.hear() == "the launcher has ended"
    worker = zygote.fork(5)
    assert zygote.expect(Ended).pid == worker


def test_masters_signals_are_ignored(zygote: RunningZygote) -> None:
    """What is sent to the whole group does not end the zygote."""
    zygote.channel.send(Begin(1))
    zygote.fork(4)
    zygote.expect(Ended)
    for number in MASTER_SIGNALS:
        os.kill(zygote.pid, number)
    zygote.fork(4)
    assert os.waitstatus_to_exitcode(zygote.expect(Ended).status) == 4


def test_signal_before_the_worker_listens_is_kept() -> None:
    """A signal that comes between the fork and the worker's first step is not lost."""
    running = RunningZygote(_wait_for_term)
    running.channel.send(Begin(1))
    pid = running.fork(0)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(running.expect(Ended).status) == signal.SIGTERM
    assert running.end() == 0


@pytest.mark.parametrize("prove", [False, True])
def test_worker_hears_whether_to_prove_itself(prove: bool) -> None:
    """What the master says of the self-test comes to the worker."""
    running = RunningZygote(_say_whether_to_prove)
    running.channel.send(Begin(1))
    running.channel.send(Fork(0, prove))
    running.expect(Forked)
    assert os.waitstatus_to_exitcode(running.expect(Ended).status) == 10 + prove
    assert running.end() == 0


def test_zygote_ends_with_the_channel_and_leaves_workers_alone() -> None:
    """When the master closes the channel the zygote goes; its workers live on."""
    running = RunningZygote(_wait_for_term)
    running.channel.send(Begin(1))
    pid = running.fork(0)
    assert running.hear().startswith("slot=0")
    assert running.end() == 0
    assert Path(f"/proc/{pid}").exists()
    os.kill(pid, signal.SIGTERM)
