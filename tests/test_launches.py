"""fastagi_pool.launches: a worker's side of the launcher, with a real launcher and with one that we play.

What only goes wrong when the launcher does is played by the test at the other end of a real channel.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import gevent
import pytest

from fastagi_pool.errors import ScriptFailed
from fastagi_pool.launches import UNKNOWN_STATUS, Activity, Launches, Running
from fastagi_pool.launching import (
    Answer,
    Door,
    End,
    HangUp,
    Launch,
    Launched,
    LauncherChannel,
    NotLaunched,
    Order,
    Over,
    ProcessSettings,
)

#: Never waited out, unless something is broken.
PATIENCE_S: Final = 20.0
SETTINGS: Final = asdict(ProcessSettings())
LOG: Final = logging.getLogger("test_launches")


class Interruption(BaseException):
    """What a session throws into a greenlet whose call is over."""


class PlayedLauncher:
    """The other end of the channels that a ``Launches`` opens, played by the test."""

    def __init__(self) -> None:
        self.channels: list[LauncherChannel] = []

    def knock(self) -> LauncherChannel:
        """Open one more."""
        ours, theirs = LauncherChannel.pair()
        self.channels.append(theirs)
        return ours

    def hear(self) -> Order | Answer | None:
        """Take the next order, letting the worker's side run meanwhile."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            if self.channels:
                for received in self.channels[-1].receive_all():
                    return received[0] if received else None
            gevent.sleep(0.001)
        raise AssertionError("nothing was said")

    def say(self, answer: Answer, descriptors: list[int] | None = None) -> None:
        """Give an answer; descriptors are closed on this side."""
        self.channels[-1].send(answer, descriptors)
        for descriptor in descriptors or []:
            os.close(descriptor)

    def close(self) -> None:
        """Be gone."""
        for channel in self.channels:
            channel.close()


@pytest.fixture(autouse=True)
def _everything_is_closed() -> Iterator[None]:
    """Compare the open descriptors before and after each test: whatever happens, none may be left."""
    gevent.get_hub()
    gevent.sleep(0)
    before = open_descriptors()
    yield
    gevent.sleep(0)
    # Fewer may be open: what other tests have left to the garbage collector is closed when that comes.
    assert set(open_descriptors()) <= set(before)


def open_descriptors() -> list[int]:
    """Return what this process has open."""
    # Whoever looks has one open himself, which is gone when it is looked at.
    return sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir() if entry.exists())


@pytest.fixture
def played() -> Iterator[PlayedLauncher]:
    """Give a launcher that the test plays."""
    launcher = PlayedLauncher()
    yield launcher
    launcher.close()


@pytest.fixture
def launches(played: PlayedLauncher) -> Iterator[Launches]:
    """Give a worker's side of the played launcher."""
    worker_side = Launches(played.knock, LOG)
    yield worker_side
    worker_side.close()


class Real:
    """A real launcher with a worker's side."""

    def __init__(self, folder: Path) -> None:
        self.door = Door()
        self.pid = self.door.start(str(folder / "launcher.log"), "debug", 1)
        self.launches = Launches(self.door.knock, LOG)
        self.over: list[str] = []
        self._folder = folder

    def start(self, code: str, *arguments: str, ref: str = "a", **settings: Any) -> Running:
        """Start a shell script."""
        file = self._folder / f"{ref}.sh"
        file.write_text(f"#!/bin/sh\n{code}\n")
        file.chmod(0o755)
        process = asdict(ProcessSettings(**settings))
        return self.launches.start(
            ref, str(file), list(arguments), {"CALL": ref}, process, lambda: self.over.append(ref)
        )

    def close(self) -> None:
        """End it, and wait until it has ended."""
        self.launches.close()
        self.door.close()
        os.waitpid(self.pid, 0)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Real]:
    """Give a real launcher."""
    launcher = Real(tmp_path)
    yield launcher
    launcher.close()


def begin(launches: Launches, ref: str = "a", over: list[str] | None = None) -> gevent.Greenlet:
    """Order a launch in a greenlet of its own."""
    noted = [] if over is None else over
    return gevent.spawn(launches.start, ref, "/x.agi", ["1"], {"A": "b"}, SETTINGS, lambda: noted.append(ref))


def make_pipes() -> tuple[list[int], list[int]]:
    """Return our ends and the script's ends of its standard input, output and error."""
    (their_in, our_in), (our_out, their_out), (our_err, their_err) = os.pipe(), os.pipe(), os.pipe()
    return [our_in, our_out, our_err], [their_in, their_out, their_err]


def close_all(descriptors: list[int]) -> None:
    """Close each of them."""
    for descriptor in descriptors:
        os.close(descriptor)


def launch(
    launches: Launches, played: PlayedLauncher, over: list[str], pid: int = 1
) -> tuple[Running, list[int]]:
    """Have the played launcher launch something; return it with the script's ends of its pipes."""
    starting = begin(launches, over=over)
    assert isinstance(played.hear(), Launch)
    ours, theirs = make_pipes()
    played.say(Launched("a", pid), ours)
    return starting.get(timeout=PATIENCE_S), theirs


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline_s
        gevent.sleep(0.005)


# ---- with a real launcher


def test_a_dialogue(real: Real) -> None:
    """A script that was launched reads what is written, says what is read, and its end is known."""
    errors: list[bytes] = []
    running = real.start('read line; echo "$line $1 $CALL"; echo oops >&2; read line; exit 3', "argument")
    running.read_errors(errors.append, linger=True)
    running.write(b"hello\n")
    assert running.read() == b"hello argument a\n"
    assert (running.is_over, real.over) == (False, [])
    running.write(b"go\n")
    assert running.wait_over(PATIENCE_S)
    assert running.read() == b""
    running.close()
    assert os.waitstatus_to_exitcode(running.status or 0) == 3
    assert real.over == ["a"]
    wait_until(lambda: errors[-1:] == [b""])
    assert b"".join(errors) == b"oops\n"


def test_what_cannot_be_launched(real: Real) -> None:
    """A script that cannot be started is told with the system's reason, and is over before that."""
    with pytest.raises(ScriptFailed, match="No such file or directory"):
        real.launches.start("a", "/does/not/exist", [], {}, SETTINGS, lambda: real.over.append("a"))
    assert (real.over, real.launches.count) == (["a"], 0)


def test_many_at_once(real: Real) -> None:
    """Answers find those whom they are for."""

    def talk(number: int) -> bytes:
        running = real.start('read line; echo "$CALL $line"', ref=f"call{number}")
        try:
            running.write(b"%d\n" % number)
            return running.read()
        finally:
            running.close()

    talks = [gevent.spawn(talk, number) for number in range(20)]
    assert [each.get(timeout=PATIENCE_S) for each in talks] == [
        b"call%d %d\n" % (number, number) for number in range(20)
    ]
    wait_until(lambda: len(real.over) == 20)


def test_a_script_that_does_not_read(real: Real) -> None:
    """Whoever writes to a script that does not read waits, and can be interrupted."""
    running = real.start("sleep 60")
    data = b"x" * 1_000_000
    writing = gevent.spawn(running.write, data)
    gevent.sleep(0)
    assert not writing.ready()
    gevent.sleep(0.01)
    writing.kill()
    running.end(0)
    assert running.wait_over(PATIENCE_S)
    running.close()


def test_a_large_answer(real: Real) -> None:
    """More than a pipe holds reaches a script that reads, whole."""
    running = real.start("head -c 1000000 | wc -c")
    running.write(b"x" * 1_000_000)
    assert running.read().split() == [b"1000000"]
    running.close()


def test_writing_to_who_has_ended(real: Real) -> None:
    """A script that has closed its input, or is gone while a child holds it open, is no error."""
    closed = real.start("exec <&-; echo closed; sleep 60", ref="closed")
    assert closed.read() == b"closed\n"
    closed.write(b"to nobody\n")
    closed.end(0)
    held = real.start("exec 3<&0; sleep 60 <&3 >/dev/null 2>&1 & echo $!", ref="held")
    child = int(held.read())
    writing = gevent.spawn(held.write, b"x" * 1_000_000)
    writing.get(timeout=PATIENCE_S)
    assert held.is_over
    os.kill(child, signal.SIGKILL)
    assert closed.wait_over(PATIENCE_S)
    for running in (closed, held):
        running.close()


def test_children_that_hold_the_output(real: Real) -> None:
    """A script has said all when its process has ended, though a child of its holds its output open."""
    running = real.start("sleep 60 & echo $!; sleep 60 2>/dev/null & echo $!")
    said = b""
    while piece := running.read():
        said += piece
    assert running.is_over
    running.close()
    for child in said.split():
        os.kill(int(child), signal.SIGKILL)


def test_a_child_that_floods_the_output(real: Real) -> None:
    """What a child goes on to say after the script's end is not read without end."""
    running = real.start("yes & echo $! >&2")
    errors: list[bytes] = []
    running.read_errors(errors.append, linger=False)
    assert running.wait_over(PATIENCE_S)
    size = 0
    while piece := running.read():
        size += len(piece)
    running.close()
    assert size <= 65536
    wait_until(lambda: not is_alive(int(errors[0])))


def test_standard_error_of_children(real: Real) -> None:
    """Children that a script leaves behind are listened to if they may live, beyond its end and ``close``."""
    errors: list[bytes] = []
    running = real.start("exec 3<&0; (read line <&3; echo late >&2) & echo begun >&2")
    running.read_errors(errors.append, linger=True)
    assert running.wait_over(PATIENCE_S)
    running.write(b"now\n")
    running.close()
    wait_until(lambda: errors[-1:] == [b""])
    assert sorted(b"".join(errors).split()) == [b"begun", b"late"]


def test_standard_errors_of_many_children(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many scripts leave somebody behind, only so many descriptors are kept for what these say."""
    monkeypatch.setattr("fastagi_pool.launches.MOST_LINGERING", 2)
    heard: list[bytes] = []
    open_ones: list[int] = []
    # What other tests have left is not to be closed while we count.
    gc.collect()
    for _ in range(4):
        running = real.start("sleep 60 >/dev/null </dev/null & echo $! >&2")
        running.read_errors(heard.append, linger=True)
        assert running.wait_over(PATIENCE_S)
        running.close()
        open_ones.append(len(open_descriptors()))
    assert heard.count(b"") == 2
    assert open_ones == [open_ones[0] + more for more in (0, 1, 1, 1)]
    for pid in filter(None, heard):
        os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: heard.count(b"") == 4)


def test_standard_error_of_children_that_are_not_heard(real: Real) -> None:
    """Where they may not live, the script's own words are taken to the last, and the pipe is closed."""
    errors: list[bytes] = []
    running = real.start("sleep 60 & echo last >&2", background=False)
    running.read_errors(errors.append, linger=False)
    assert running.wait_over(PATIENCE_S)
    running.close()
    assert errors == [b"last\n", b""]


def test_activity(real: Real) -> None:
    """Who waits, computes, is stopped and runs no more is told from each other, whoever has buried it."""
    running = real.start("read -r line; while :; do :; done")
    running.wait_launched()
    wait_until(lambda: running.activity() is Activity.IDLE)
    running.write(b"go\n")
    wait_until(lambda: running.activity() is Activity.BUSY)
    os.kill(running.pid, signal.SIGSTOP)
    assert running.activity() is Activity.BUSY
    os.kill(real.pid, signal.SIGSTOP)
    try:
        os.kill(running.pid, signal.SIGKILL)
        wait_until(lambda: running.activity() is Activity.ENDED)
        assert not running.is_over
    finally:
        os.kill(real.pid, signal.SIGCONT)
    assert running.wait_over(PATIENCE_S)
    assert running.activity() is Activity.ENDED
    running.close()


def test_hang_up(real: Real) -> None:
    """A hangup reaches the script as SIGHUP."""
    running = real.start("trap 'echo hup; exit 0' HUP; echo ready; while :; do sleep 0.01; done")
    assert running.read() == b"ready\n"
    running.hang_up()
    assert running.read() == b"hup\n"
    assert running.wait_over(PATIENCE_S)
    assert running.status == 0
    running.close()


def test_end_with_grace(real: Real) -> None:
    """A script that ignores SIGHUP is killed after its grace."""
    running = real.start("trap '' HUP; echo ready; while :; do sleep 0.01; done")
    assert running.read() == b"ready\n"
    running.end(0.05)
    assert running.wait_over(PATIENCE_S)
    assert running.status == signal.SIGKILL
    running.close()


def test_the_launcher_dies(real: Real, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the launcher its scripts die; a new one at the same door serves the next call."""
    running = real.start("echo $$; sleep 60")
    leader = int(running.read())
    assert leader == running.pid
    os.kill(real.pid, signal.SIGKILL)
    os.waitpid(real.pid, 0)
    assert running.wait_over(PATIENCE_S)
    assert (running.status, running.reason) == (UNKNOWN_STATUS, "the launcher is gone")
    assert (real.over, real.launches.count) == (["a"], 0)
    wait_until(lambda: not is_alive(leader))
    running.close()
    assert "the launcher of scripts is gone: 1 scripts are killed" in caplog.text

    real.pid = real.door.start(str(tmp_path / "launcher.log"), "debug", 1)
    again = real.start("echo again", ref="b")
    assert again.read() == b"again\n"
    again.close()


# ---- with a launcher that does as the test says


def test_what_is_ordered(launches: Launches, played: PlayedLauncher) -> None:
    """The launcher is told all of a call, and its answers come back."""
    over: list[str] = []
    starting = begin(launches, over=over)
    assert played.hear() == Launch("a", "/x.agi", ["1"], {"A": "b"}, SETTINGS)
    ours, theirs = make_pipes()
    played.say(Launched("a", 42), ours)
    running = starting.get(timeout=PATIENCE_S)
    running.end(1.5)
    assert played.hear() == End("a", 1.5)
    running.hang_up()
    assert played.hear() == HangUp("a")
    assert (running.pid, running.status, over, launches.count) == (42, None, [], 1)
    played.say(Over("a", 256))
    assert running.wait_over(PATIENCE_S)
    assert (running.status, over, launches.count) == (256, ["a"], 0)
    running.end(0)
    running.close()
    close_all(theirs)


def test_our_ends_of_the_pipes(launches: Launches, played: PlayedLauncher) -> None:
    """No process that we start inherits a script's pipes, and none of them can stop the hub."""
    before = open_descriptors()
    running, theirs = launch(launches, played, [])
    fresh = set(open_descriptors()) - set(before)
    assert len(fresh) >= 6
    assert not any(os.get_inheritable(number) for number in fresh)
    waiting = gevent.spawn(running.read)
    gevent.sleep(0)
    assert not waiting.ready()
    os.write(theirs[1], b"now\n")
    assert waiting.get(timeout=PATIENCE_S) == b"now\n"
    played.say(Over("a", 0))
    assert running.wait_over(PATIENCE_S)
    running.close()
    close_all(theirs)


def test_a_long_reason(launches: Launches, played: PlayedLauncher) -> None:
    """Of a compiler's long message the beginning is told."""
    over: list[str] = []
    starting = begin(launches, over=over)
    played.hear()
    played.say(NotLaunched("a", "\n".join(map(str, range(100)))))
    with pytest.raises(ScriptFailed, match=r"^0\n1\n2\n3\n4$"):
        starting.get(timeout=PATIENCE_S)
    assert over == ["a"]


def test_interrupted_before_the_answer(launches: Launches, played: PlayedLauncher) -> None:
    """A launch that nobody waits for any more is ended at once; it is over when the launcher says so."""
    over: list[str] = []
    starting = begin(launches, over=over)
    played.hear()
    starting.kill(Interruption)
    assert played.hear() == End("a", 0)
    assert (over, launches.count) == ([], 1)
    ours, theirs = make_pipes()
    played.say(Launched("a", 42), ours)
    played.say(Over("a", 9))
    wait_until(lambda: over == ["a"])
    # Nobody has our ends open any more.
    assert os.read(theirs[0], 1) == b""
    assert launches.count == 0
    close_all(theirs)


def test_interrupted_and_never_launched(launches: Launches, played: PlayedLauncher) -> None:
    """A launch that was taken back in time is over by the launcher's refusal."""
    over: list[str] = []
    starting = begin(launches, over=over)
    played.hear()
    starting.kill(Interruption)
    assert played.hear() == End("a", 0)
    played.say(NotLaunched("a", "the call ended"))
    wait_until(lambda: over == ["a"])


def test_interrupted_with_the_answer_on_its_way(launches: Launches, played: PlayedLauncher) -> None:
    """Whoever is interrupted between the answer and its own turn leaves nothing open either."""
    over: list[str] = []
    starting = begin(launches, over=over)
    played.hear()
    ours, theirs = make_pipes()
    played.say(Launched("a", 42), ours)

    def in_the_hub() -> None:
        launches._hear()
        starting.throw(Interruption)

    gevent.get_hub().loop.run_callback(in_the_hub)
    assert played.hear() == End("a", 0)
    assert os.read(theirs[0], 1) == b""
    played.say(Over("a", 9))
    wait_until(lambda: over == ["a"])
    close_all(theirs)


def test_no_descriptor_left(launches: Launches, played: PlayedLauncher) -> None:
    """Where the worker may open no more files the call is told so, and the script ended."""
    over: list[str] = []
    starting = begin(launches, over=over)
    played.hear()
    ours, theirs = make_pipes()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest number that is free: not one of the three can be opened.
    free = os.dup(0)
    os.close(free)
    played.channels[-1].send(Launched("a", 42), ours)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(ScriptFailed, match="too many open files"):
            starting.get(timeout=PATIENCE_S)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert played.hear() == End("a", 0)
    close_all([*ours, *theirs])
    played.say(Over("a", 9))
    wait_until(lambda: over == ["a"])


def test_the_launcher_goes_during_a_launch(launches: Launches, played: PlayedLauncher) -> None:
    """A launch in progress fails when the launcher dies; the next one knocks again."""
    over: list[str] = []
    starting = begin(launches, over=over)
    played.hear()
    played.channels.pop().close()
    with pytest.raises(ScriptFailed, match="the launcher is gone"):
        starting.get(timeout=PATIENCE_S)
    assert over == ["a"]
    again = begin(launches, "b", over)
    assert isinstance(played.hear(), Launch)
    played.say(NotLaunched("b", "no"))
    with pytest.raises(ScriptFailed, match="no"):
        again.get(timeout=PATIENCE_S)


def test_whom_a_lost_launcher_leaves_is_killed(launches: Launches, played: PlayedLauncher) -> None:
    """The whole process group of each running script is killed when nobody else can any more."""
    with subprocess.Popen(
        ("sh", "-c", "sleep 60 & echo $!; wait"), process_group=0, stdout=subprocess.PIPE
    ) as group:
        assert group.stdout is not None
        child = int(group.stdout.readline())
        over: list[str] = []
        running, theirs = launch(launches, played, over, group.pid)
        played.channels.pop().close()
        assert running.wait_over(PATIENCE_S)
        assert group.wait(PATIENCE_S) == -signal.SIGKILL
        wait_until(lambda: not is_alive(child))
    assert (running.status, over) == (UNKNOWN_STATUS, ["a"])
    running.close()
    close_all(theirs)


def test_nobody_at_the_door() -> None:
    """A launcher that cannot be reached at all fails the call, which is over."""

    def knock() -> LauncherChannel:
        raise OSError(24, "Too many open files")

    over: list[str] = []
    unreachable = Launches(knock, LOG)
    with pytest.raises(ScriptFailed, match=r"cannot reach the launcher of scripts: .*Too many open files"):
        unreachable.start("a", "/x", [], {}, SETTINGS, lambda: over.append("a"))
    assert (over, unreachable.count) == (["a"], 0)


@pytest.mark.parametrize("word", ["x" * 200_000, "\udcff" * 34_000, "ä" * 34_000])
def test_a_message_that_is_too_long(launches: Launches, played: PlayedLauncher, word: str) -> None:
    """Arguments that fit into no message are refused for this call alone."""
    over: list[str] = []
    with pytest.raises(ScriptFailed, match="its arguments and variables are too long"):
        launches.start("a", "/x", [word], {}, SETTINGS, lambda: over.append("a"))
    assert (over, launches.count) == (["a"], 0)
    starting = begin(launches, over=over)
    assert isinstance(played.hear(), Launch)
    starting.kill(Interruption)


def test_a_launcher_that_is_slow_to_read(launches: Launches, played: PlayedLauncher) -> None:
    """What the launcher cannot take at once waits in order, and the hub does not."""
    words = ["x" * 50_000]
    refs = [f"call{number}" for number in range(40)]
    starting = [gevent.spawn(launches.start, ref, "/x", words, {}, SETTINGS, lambda: None) for ref in refs]
    gevent.sleep(0.01)
    assert launches.count == len(refs)
    heard = []
    for _ in refs:
        order = played.hear()
        assert isinstance(order, Launch)
        heard.append(order.call)
    assert heard == refs
    gevent.killall(starting, Interruption)
    assert sorted(str(played.hear()) for _ in refs) == sorted(str(End(ref, 0)) for ref in refs)


def test_close(launches: Launches, played: PlayedLauncher) -> None:
    """At the worker's end the launcher sees ours, and whoever still waits is told."""
    over: list[str] = []
    starting = begin(launches, over=over)
    played.hear()
    launches.close()
    assert played.hear() is None
    with pytest.raises(ScriptFailed, match="let go of the launcher"):
        starting.get(timeout=PATIENCE_S)
    assert over == ["a"]
