"""fastagi_pool.processes: how scripts of a real launcher are ended, and what they leave behind."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from launchers import (
    Client,
    RunningLauncher,
    RunningScript,
    alive,
    eventually,
    running_launcher,
    write_script,
)

from fastagi_pool.launching import End, Launch, Launched, Over, ProcessSettings
from fastagi_pool.looping import Loop
from fastagi_pool.processes import Processes
from fastagi_pool.spawning import Spawner

#: Says who its child is, and waits for a line.
PARENT = "#!/bin/sh\nsleep 1000 >&- 2>&- &\necho $!\nread line\nexit 4\n"


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[RunningLauncher]:
    """Give a running launcher."""
    with running_launcher(tmp_path / "log") as running:
        yield running


@pytest.fixture
def worker(launcher: RunningLauncher) -> Iterator[Client]:
    """Give a worker of the launcher."""
    client = launcher.worker()
    yield client
    client.channel.close()


def started(worker: Client, path: Path, text: str, **options: ProcessSettings) -> tuple[RunningScript, str]:
    """Run a script until it has written its first line; return that too."""
    script = worker.run(write_script(path, text), **options)
    return script, script.hear().strip()


def test_hang_up_is_a_signal_only(worker: Client, tmp_path: Path) -> None:
    """HangUp sends SIGHUP to the script, which may go on as long as it likes."""
    text = "#!/usr/bin/perl\n$|=1; $SIG{HUP}=sub{print qq{hup\\n}}; print qq{on\\n}; print scalar <STDIN>"
    script, _ = started(worker, tmp_path / "a.pl", text)
    worker.hang_up(script)
    assert script.hear() == "hup\n"
    script.say("still here")
    assert script.hear() == "still here\n"
    assert worker.exit_code(script) == 0


def test_end_asks_first(worker: Client, tmp_path: Path) -> None:
    """A script that catches SIGHUP ends as it likes within its grace."""
    text = "#!/usr/bin/perl\n$|=1; $SIG{HUP}=sub{print qq{bye\\n}; exit 9}; print qq{on\\n}; <STDIN>"
    script, _ = started(worker, tmp_path / "a.pl", text)
    worker.end(script, 20)
    assert script.hear() == "bye\n"
    assert worker.fate(script) == 9


def test_end_kills_by_default(worker: Client, tmp_path: Path) -> None:
    """A script that does not catch SIGHUP dies of it at once."""
    script, _ = started(worker, tmp_path / "a.sh", "#!/bin/sh\necho on\nread x\n")
    worker.end(script, 20)
    assert worker.fate(script) == -signal.SIGHUP


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_has_become_another_user(tmp_path: Path) -> None:
    """A script that we may not signal, after sudo for example, does not keep us from ending the others."""
    log = logging.getLogger("test_processes")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            processes = Processes(Loop(log), Spawner(), log)
            script = processes.add(
                Launch("c", "/bin/sleep", ["1000"], {}, asdict(ProcessSettings())), lambda *_: None
            )
            processes.spawn(script)
            processes.launched(script)
            os.write(write, b"%d " % script.pid)
            os.setresuid(65534, 65534, 65534)
            processes.end(script, 1.0)
            processes.end(script, 0.0)
            processes.tick()
            os.write(write, b"fine")
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    pid, _, outcome = os.read(read, 100).partition(b" ")
    os.close(read)
    os.kill(int(pid), signal.SIGKILL)
    assert outcome == b"fine"


def test_who_ignores_it_is_killed(launcher: RunningLauncher, worker: Client, tmp_path: Path) -> None:
    """After its grace a script that ignores SIGHUP is killed, its children too, and the log says so."""
    text = "#!/bin/sh\ntrap '' HUP\nsleep 1000 &\necho $!\nread x\n"
    script, child = started(worker, tmp_path / "a.sh", text)
    worker.end(script, 0.05)
    assert worker.fate(script) == -signal.SIGKILL
    eventually(lambda: not alive(int(child)))
    assert (
        f"call={script.call} script={tmp_path}/a.sh pid={script.pid} did not end" in launcher.log.read_text()
    )


def test_no_grace(launcher: RunningLauncher, worker: Client, tmp_path: Path) -> None:
    """Without a grace it is killed at once, without SIGHUP before it, and the log does not complain."""
    text = "#!/bin/sh\ntrap 'touch hup' HUP\necho on\nread x\n"
    script, _ = started(worker, tmp_path / "a.sh", text, settings=ProcessSettings(directory=str(tmp_path)))
    worker.end(script, 0)
    assert worker.fate(script) == -signal.SIGKILL
    assert not (tmp_path / "hup").exists()
    assert "WARNING" not in launcher.log.read_text()


def test_the_earlier_end_counts(worker: Client, tmp_path: Path) -> None:
    """A second End brings the kill forward, never back."""
    text = "#!/bin/sh\ntrap '' HUP\necho on\nread x\n"
    script, _ = started(worker, tmp_path / "a.sh", text)
    worker.end(script, 1000)
    worker.end(script, 0.05)
    worker.end(script, 1000)
    assert worker.fate(script) == -signal.SIGKILL


def test_who_left_the_group_is_killed_too(worker: Client, tmp_path: Path) -> None:
    """A script that has moved to another process group does not escape."""
    text = (
        "#!/usr/bin/perl\n$|=1;$SIG{HUP}='IGNORE';setpgrp(0,getpgrp(getppid)) or die;print qq{on\\n};<STDIN>"
    )
    script, _ = started(worker, tmp_path / "a.pl", text)
    worker.end(script, 0.05)
    assert worker.fate(script) == -signal.SIGKILL


def test_what_a_script_leaves_behind_lives_on(worker: Client, tmp_path: Path) -> None:
    """When a script ends of itself its background processes live on, as under Asterisk."""
    script, child = started(worker, tmp_path / "a.sh", PARENT)
    script.say("end")
    assert worker.exit_code(script) == 4
    assert alive(int(child))
    os.kill(int(child), signal.SIGKILL)
    # It is our launcher's by now, which buries it.
    eventually(lambda: not Path(f"/proc/{child}").exists())


def test_without_background_nothing_is_left(worker: Client, tmp_path: Path) -> None:
    """With ``background`` off all that a script leaves behind is killed when it ends."""
    settings = ProcessSettings(background=False)
    script, child = started(worker, tmp_path / "a.sh", PARENT, settings=settings)
    script.say("end")
    assert worker.exit_code(script) == 4
    eventually(lambda: not alive(int(child)))


def test_what_is_left_after_an_end_has_the_same_grace(
    launcher: RunningLauncher, worker: Client, tmp_path: Path
) -> None:
    """The end of a script that was ended is told at once; what it leaves behind is killed in time."""
    script, child = started(worker, tmp_path / "a.sh", PARENT)
    grace_ends_s = time.monotonic() + 0.5
    worker.end(script, 0.5)
    assert worker.fate(script) == -signal.SIGHUP
    # Unless the machine stood still for so long.
    assert alive(int(child)) or time.monotonic() >= grace_ends_s
    eventually(lambda: not alive(int(child)))
    eventually(lambda: "left processes that did not end in its grace" in launcher.log.read_text())


def test_a_launch_that_is_ended_at_once(worker: Client, tmp_path: Path) -> None:
    """Launch and End in one breath: it is either not launched, or launched and over; then all goes on."""
    file = write_script(tmp_path / "a.sh", "#!/bin/sh\nread x\n")
    for _ in range(20):
        call = worker.launch(file)
        worker.channel.send(End(call, 0))
        answer, streams = worker.next()
        if isinstance(answer, Launched):
            for stream in streams:
                os.close(stream)
            worker.expect(Over, call)
        else:
            assert answer.call == call
    script, _ = started(worker, tmp_path / "b.sh", "#!/bin/sh\necho on\n")
    assert worker.exit_code(script) == 0
