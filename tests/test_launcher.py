"""fastagi_pool.launcher: a real one, its door, its workers, and how it ends."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from launchers import Client, RunningLauncher, alive, children, eventually, running_launcher, write_script

from fastagi_pool.launcher import Worker
from fastagi_pool.launching import (
    Door,
    End,
    Launch,
    Launched,
    LauncherChannel,
    NotLaunched,
    ProcessSettings,
)
from fastagi_pool.looping import Loop

ECHO = "#!/bin/sh\nwhile read line; do echo got $line; done\nexit 3\n"
SLEEP = "#!/bin/sh\necho there\nexec sleep 1000\n"


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[RunningLauncher]:
    """Give a running launcher."""
    with running_launcher(tmp_path / "log") as running:
        yield running


# ---- calls


def test_a_dialogue(launcher: RunningLauncher, tmp_path: Path) -> None:
    """A script is spoken to by its pipes, sees the end of its input, and its exit code is told."""
    worker = launcher.worker()
    script = worker.run(write_script(tmp_path / "echo.sh", ECHO))
    for word in ("one", "two"):
        script.say(word)
        assert script.hear() == f"got {word}\n"
    assert worker.exit_code(script) == 3


def test_a_signal_is_told(launcher: RunningLauncher, tmp_path: Path) -> None:
    """A script that dies of a signal is told to have."""
    worker = launcher.worker()
    script = worker.run(write_script(tmp_path / "dies.sh", "#!/bin/sh\nkill -SEGV $$\n"))
    assert worker.exit_code(script) == -signal.SIGSEGV


def test_many_at_once(launcher: RunningLauncher, tmp_path: Path) -> None:
    """Fifty scripts of two workers run at the same time, each with its own pipes and its own end."""
    file = write_script(tmp_path / "echo.sh", "#!/bin/sh\nread line\necho $1 $line\nexit $1\n")
    one, other = launcher.worker(), launcher.worker()
    scripts = [(worker, worker.run(file, str(code))) for code in range(25) for worker in (one, other)]
    for worker, script in reversed(scripts):
        script.say(f"for {script.pid}")
        code = int(script.hear().split()[0])
        assert worker.exit_code(script) == code
    assert len({script.pid for _, script in scripts}) == 50


def test_a_worker_that_does_not_read(launcher: RunningLauncher, tmp_path: Path) -> None:
    """A worker that is slow to read its answers holds up no other, and gets them all in the end."""
    file = write_script(tmp_path / "true.sh", "#!/bin/sh\n")
    settings = ProcessSettings(interpreter=["x" * 2000])
    slow, quick = launcher.worker(), launcher.worker()
    # Some ten times what its socket holds.
    asked = [slow.launch(file, settings=settings) for _ in range(2_000)]
    for _ in range(3):
        assert quick.exit_code(quick.run(file)) == 0
    assert [slow.expect(NotLaunched)[0].call for _ in asked] == asked


def test_what_is_not_known_is_ignored(launcher: RunningLauncher, tmp_path: Path) -> None:
    """To end a call that is over already does no harm."""
    worker = launcher.worker()
    script = worker.run(write_script(tmp_path / "true.sh", "#!/bin/sh\n"))
    assert worker.exit_code(script) == 0
    worker.end(script, 0)
    worker.hang_up(script)
    worker.channel.send(End("never heard of", 1))
    assert worker.output(tmp_path / "true.sh") == ""


def test_a_bug_ends_one_call(tmp_path: Path) -> None:
    """What nobody has thought of ends one call, is in the log, and the launcher goes on."""
    running = RunningLauncher(tmp_path / "log")
    worker = running.worker()
    file = write_script(tmp_path / "true.sh", "#!/bin/sh\n")
    settings = ProcessSettings(interpreter=5)  # type: ignore[arg-type]
    assert "bug in the launcher, see the log" in worker.refusal(file, settings=settings)
    assert worker.output(file) == ""
    assert "ERROR launcher gen=7" in running.log.read_text()
    running.log.write_text("")
    running.close()


def test_settings_of_another_version(tmp_path: Path) -> None:
    """A call with settings that the launcher, of a newer version, does not know is refused, not forgotten."""
    running = RunningLauncher(tmp_path / "log")
    worker = running.worker()
    assert worker.channel.send(Launch("c", "/bin/true", [], {}, {"nonesuch": 1}))
    assert "nonesuch" in worker.expect(NotLaunched, "c")[0].reason
    assert worker.output(write_script(tmp_path / "true.sh", "#!/bin/sh\n")) == ""
    assert "ERROR launcher gen=7" in running.log.read_text()
    running.log.write_text("")
    running.close()


def test_an_answer_that_cannot_be_sent() -> None:
    """A worker whose answer is lost sees the end of its channel, rather than wait for ever."""
    loop = Loop(logging.getLogger("test_launcher"))
    ours, theirs = LauncherChannel.pair()
    theirs.never_wait()
    worker = Worker(theirs, loop, lambda _: None)
    with pytest.raises(OSError, match="too long"):
        worker.tell(NotLaunched("c", "x" * 1_000_000), None)
    assert ours.receive() is None
    worker.close()
    ours.close()


def test_no_descriptor_is_left(launcher: RunningLauncher, tmp_path: Path) -> None:
    """After calls of every kind, that ended in every way, the launcher has as many descriptors as before."""
    shell = write_script(tmp_path / "a.sh", "#!/bin/sh\nread x\n")
    perl = write_script(tmp_path / "a.pl", "#!/usr/bin/perl\n<STDIN>; exit 1")
    broken = write_script(tmp_path / "b.pl", "#!/usr/bin/perl\nno sense at all;")
    kinds = [
        (shell, ProcessSettings()),
        (perl, ProcessSettings(precompile="perl")),
        (broken, ProcessSettings(precompile="perl")),
        (tmp_path / "none", ProcessSettings()),
        (shell, ProcessSettings(user="nonesuch")),
    ]

    def place_calls(worker: Client) -> None:
        for file, settings in kinds:
            calls = [worker.launch(file, settings=settings) for _ in range(4)]
            worker.channel.send(End(calls[0], 0))
            worker.channel.send(End(calls[1], 5))
            left = set(calls)
            while left:
                answer, streams = worker.next()
                for stream in streams:
                    os.close(stream)
                if not isinstance(answer, Launched):
                    left.discard(answer.call)
        worker.channel.close()
        eventually(lambda: len(children(launcher)) <= 1)

    def descriptors() -> int:
        return len(list(Path(f"/proc/{launcher.pid}/fd").iterdir()))

    place_calls(launcher.worker())
    # One zygote lives on; a second one may have been needed for a script that was new.
    place_calls(launcher.worker())
    first = descriptors()
    for _ in range(3):
        place_calls(launcher.worker())
    # The last of what has ended may just be being closed.
    eventually(lambda: descriptors() <= first)


# ---- how workers and the launcher end


def test_a_worker_that_died(launcher: RunningLauncher, tmp_path: Path) -> None:
    """The scripts of a worker that died are ended, those that ignore it too; the other worker's are not."""
    sleeper = write_script(tmp_path / "sleep.sh", SLEEP)
    stubborn = write_script(tmp_path / "stubborn.sh", "#!/bin/sh\ntrap '' HUP\necho there\nsleep 1000\n")
    dying, other = launcher.worker(), launcher.worker()
    scripts = [dying.run(sleeper), dying.run(stubborn)]
    kept = other.run(sleeper)
    for script in (*scripts, kept):
        assert script.hear() == "there\n"
    dying.channel.close()
    eventually(lambda: not any(alive(script.pid) for script in scripts))
    assert alive(kept.pid)
    other.end(kept, 0)
    assert other.fate(kept) == -signal.SIGKILL
    assert "did not end in its grace: killed" in launcher.log.read_text()


def test_it_ends_when_nobody_needs_it(tmp_path: Path) -> None:
    """It goes on while a worker is there, though nobody can knock any more; then it ends by itself."""
    running = RunningLauncher(tmp_path / "log")
    worker = running.worker()
    running.door.close()
    assert worker.output(write_script(tmp_path / "hello.sh", "#!/bin/sh\necho hello\n")) == "hello\n"
    worker.channel.close()
    assert running.wait() == 0


def test_it_ends_after_its_scripts(tmp_path: Path) -> None:
    """It does not end before the scripts that its workers left behind are dead."""
    running = RunningLauncher(tmp_path / "log")
    worker = running.worker()
    script = worker.run(
        write_script(tmp_path / "stubborn.sh", "#!/bin/sh\ntrap '' HUP\necho on\nsleep 1000\n")
    )
    assert script.hear() == "on\n"
    worker.channel.close()
    running.door.close()
    assert running.wait() == 0
    assert not Path(f"/proc/{script.pid}").exists()


def test_scripts_die_with_it(tmp_path: Path) -> None:
    """If the launcher is killed the kernel kills the scripts that it has spawned, and workers see its end."""
    running = RunningLauncher(tmp_path / "log")
    worker = running.worker()
    script = worker.run(write_script(tmp_path / "stubborn.sh", "#!/bin/sh\ntrap '' HUP\necho on\nread x\n"))
    assert script.hear() == "on\n"
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert worker.channel.receive() is None
    eventually(lambda: not alive(script.pid))
    running.close()


def test_another_takes_its_place(tmp_path: Path) -> None:
    """A launcher that died is replaced on the same door: who knocked meanwhile is served by the new one."""
    running = RunningLauncher(tmp_path / "log")
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    worker = running.worker()
    file = write_script(tmp_path / "hello.sh", "#!/bin/sh\necho hello\n")
    call = worker.launch(file)
    second = running.door.start(str(running.log), "info", 7)
    assert worker.expect_launched(call) > 0
    running.close()
    assert os.waitpid(second, 0)[1] == 0


# ---- signals and logs


def test_signals_of_the_whole_group(launcher: RunningLauncher, tmp_path: Path) -> None:
    """What an operator sends to the whole group does not end it."""
    worker = launcher.worker()
    hello = write_script(tmp_path / "hello.sh", "#!/bin/sh\necho hello\n")
    assert worker.output(hello) == "hello\n"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2):
        os.kill(launcher.pid, number)
    assert worker.output(hello) == "hello\n"


def test_signals_while_it_starts(tmp_path: Path) -> None:
    """A signal that comes before it listens, as at a rotation of the logs, does not end it."""
    door = Door()
    pid = door.start(str(tmp_path / "log"), "info", 7)
    for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
        os.kill(pid, number)
    worker = Client(door.knock())
    hello = write_script(tmp_path / "hello.sh", "#!/bin/sh\necho hello\n")
    assert worker.output(hello) == "hello\n"
    worker.channel.close()
    door.close()
    assert os.waitpid(pid, 0)[1] == 0


def test_the_log_is_reopened(launcher: RunningLauncher, tmp_path: Path) -> None:
    """After SIGUSR1 it writes to the new log file, with its generation."""
    worker = launcher.worker()
    stubborn = write_script(tmp_path / "stubborn.sh", "#!/bin/sh\ntrap '' HUP\necho on\nread x\n")
    script = worker.run(stubborn)
    assert script.hear() == "on\n"
    launcher.log.rename(tmp_path / "log.1")
    os.kill(launcher.pid, signal.SIGUSR1)
    eventually(launcher.log.exists)
    worker.end(script, 0.01)
    assert worker.fate(script) == -signal.SIGKILL
    line = launcher.log.read_text()
    assert f"WARNING launcher gen=7 pid={launcher.pid} call={script.call} script={stubborn}" in line


def test_its_title(launcher: RunningLauncher, tmp_path: Path) -> None:
    """It is found in the list of processes by its name and generation."""
    launcher.worker().output(write_script(tmp_path / "true.sh", "#!/bin/sh\n"))
    title = Path(f"/proc/{launcher.pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    assert title == "fastagi-pool: launcher (gen 7)"
