"""fastagi_pool.spawning: what a script of a real launcher finds when it starts, and why it does not."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from children import in_child
from launchers import Client, RunningLauncher, RunningScript, running_launcher, write_script

from fastagi_pool.launching import Launched, NotLaunched, ProcessSettings
from fastagi_pool.spawning import Program, Spawner, Streams, failure

#: What a script sees of its world, written as JSON.
LOOK = """#!/usr/bin/python3 -I
import json, os, resource, sys
here = [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
print(json.dumps({
    "words": sys.argv, "environment": dict(os.environ), "directory": os.getcwd(),
    "group": os.getpgid(0) - os.getpid(), "session": os.getsid(0), "parent": os.getppid(),
    "descriptors": sorted(here), "links": [os.readlink(f"/proc/self/fd/{n}")[:5] for n in "012"],
    "blocked": int(status["SigBlk"], 16), "ignored": int(status["SigIgn"], 16),
    "core": resource.getrlimit(resource.RLIMIT_CORE)[0], "cpu": resource.getrlimit(resource.RLIMIT_CPU),
    "memory": resource.getrlimit(resource.RLIMIT_AS), "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "ids": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()], "groups": os.getgroups(),
}))
"""
#: The first line of scripts that look without an interpreter of their own signals.
SHELL_LOOK = "#!/bin/sh\nls /proc/self/fd\ngrep ^Sig /proc/self/status\n"
_INTERNAL = (1 << 31) | (1 << 32)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Client]:
    """Give a worker of a launcher with a secret in its environment."""
    secrets = {"DATABASE_PASSWORD": "secret", "LANG": "C.UTF-8", "TZ": "Europe/Vienna"}
    with running_launcher(tmp_path / "log", secrets) as running:
        client = running.worker()
        yield client
        client.channel.close()


def look(worker: Client, path: Path, *arguments: str, **options: Any) -> dict[str, Any]:
    """Run the script that looks; return what it has seen."""
    file = write_script(path / "look.py", LOOK)
    found: dict[str, Any] = json.loads(worker.output(file, *arguments, **options))
    return found


def test_words(worker: Client, tmp_path: Path) -> None:
    """Arguments arrive unchanged, the empty one and those with spaces and foreign bytes too."""
    arguments = ["", "two words", "$HOME;`x`", "Zo\udceb", "ä"]
    assert look(worker, tmp_path, *arguments)["words"] == [str(tmp_path / "look.py"), *arguments]


def test_interpreter(worker: Client, tmp_path: Path) -> None:
    """An interpreter and its switches stand before the script, which need not be executable then."""
    file = tmp_path / "plain"
    file.write_text("echo $- $0 $1\n")
    settings = ProcessSettings(interpreter=["sh", "-eu"])
    words = worker.output(file, "one", settings=settings).split()
    assert words[1:] == [str(file), "one"]
    assert set("eu") <= set(words[0])


def test_environment(worker: Client, tmp_path: Path) -> None:
    """It holds a short list of ours, what the route gives, what the call gives; the later wins; no secret."""
    settings = ProcessSettings(environment={"TZ": "UTC", "ROUTE": "r", "BOTH": "route"})
    variables = {"BOTH": "call", "AGI_CALLERID": "Zo\udceb <1>"}
    found = look(worker, tmp_path, variables=variables, settings=settings)["environment"]
    assert found["LANG"] == "C.UTF-8"
    assert found["PATH"] == os.environ["PATH"]
    assert (found["TZ"], found["ROUTE"], found["BOTH"]) == ("UTC", "r", "call")
    assert found["AGI_CALLERID"] == "Zo\udceb <1>"
    assert "DATABASE_PASSWORD" not in found
    assert set(found) <= {
        *("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "USER", "LOGNAME", "SHELL"),
        *("ROUTE", "BOTH", "AGI_CALLERID"),
    }


def test_descriptors(worker: Client, tmp_path: Path) -> None:
    """It has its three pipes and nothing else, though others run at the same time."""
    others = [worker.run(write_script(tmp_path / "wait.sh", "#!/bin/sh\nread x\n")) for _ in range(3)]
    found = look(worker, tmp_path)
    assert found["descriptors"] == ["0", "1", "2"]
    assert found["links"] == ["pipe:", "pipe:", "pipe:"]
    for script in others:
        assert worker.exit_code(script) == 1


def test_signals(worker: Client, tmp_path: Path) -> None:
    """Every signal is at its default and none is blocked; two are the C library's own."""
    text = worker.output(write_script(tmp_path / "look.sh", SHELL_LOOK))
    found = dict(line.split(":\t") for line in text.splitlines() if line.startswith("Sig"))
    assert int(found["SigBlk"], 16) == 0
    assert int(found["SigIgn"], 16) & ~_INTERNAL == 0


def test_a_hangup_in_its_first_moment(tmp_path: Path) -> None:
    """A script whose caller hangs up before it is executed hears of it, and whoever started it does not."""
    file = write_script(tmp_path / "long.sh", "#!/bin/sh\nsleep 60\n")
    program = Program(str(file), [str(file)], {"PATH": os.environ["PATH"]}, ProcessSettings())

    def start() -> dict[str, Any]:
        reading, writing = os.pipe2(os.O_NONBLOCK)
        spawner = Spawner((signal.SIGHUP,))
        signal.signal(signal.SIGHUP, lambda *_: None)
        signal.set_wakeup_fd(writing)
        os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGHUP))
        birth = spawner.spawn(program, Streams().theirs)
        end = os.waitstatus_to_exitcode(os.waitpid(birth.pid, 0)[1])
        heard, _, _ = select.select([reading], [], [], 0)
        return {"end": end, "failure": failure(program, birth.report_fd), "heard": heard}

    assert in_child(start) == {"end": -signal.SIGHUP, "failure": "", "heard": []}


def test_process_group(worker: Client, tmp_path: Path) -> None:
    """It leads a process group of its own, in the session of the pool."""
    found = look(worker, tmp_path)
    assert found["group"] == 0
    assert found["session"] == os.getsid(0)


def test_working_directory(worker: Client, tmp_path: Path) -> None:
    """It starts in the route's directory, by default in the root."""
    assert look(worker, tmp_path)["directory"] == "/"
    settings = ProcessSettings(directory=str(tmp_path))
    assert look(worker, tmp_path, settings=settings)["directory"] == str(tmp_path)


def test_limits(worker: Client, tmp_path: Path) -> None:
    """Limits of the route hold; it dumps no core, and may open as many files as the server found."""
    found = look(worker, tmp_path)
    unlimited = resource.RLIM_INFINITY
    assert (found["core"], found["cpu"][0], found["memory"][0]) == (0, unlimited, unlimited)
    assert found["files"] == list(resource.getrlimit(resource.RLIMIT_NOFILE))
    found = look(worker, tmp_path, settings=ProcessSettings(cpu_s=1.5, memory_bytes=500_000_000))
    assert found["cpu"] == [2, 7]
    assert found["memory"] == [500_000_000, 500_000_000]


def test_little_memory(worker: Client, tmp_path: Path) -> None:
    """The smallest limit that a configuration can have is enough to start a shell."""
    file = write_script(tmp_path / "a.sh", "#!/bin/sh\necho hello\n")
    assert worker.output(file, settings=ProcessSettings(memory_bytes=16 << 20)) == "hello\n"


def test_processor_time(worker: Client, tmp_path: Path) -> None:
    """A script that burns its processor time gets SIGXCPU."""
    file = write_script(tmp_path / "burn.sh", "#!/bin/sh\nwhile :; do :; done\n")
    assert worker.exit_code(worker.run(file, settings=ProcessSettings(cpu_s=1))) == -signal.SIGXCPU


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_user(worker: Client, tmp_path: Path) -> None:
    """It runs as the route's user, with all of its groups and its home, and dies with the launcher still."""
    tmp_path.chmod(0o755)
    for folder in (tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    found = look(worker, tmp_path, settings=ProcessSettings(user="nobody"))
    assert found["ids"] == [65534] * 4
    assert found["groups"] == [65534]
    assert found["environment"]["USER"] == found["environment"]["LOGNAME"] == "nobody"
    assert found["environment"]["HOME"] != os.environ.get("HOME")


# ---- why not


def test_missing(worker: Client, tmp_path: Path) -> None:
    """A file that does not exist is named."""
    reason = worker.refusal(tmp_path / "none.agi")
    assert reason == f"cannot execute {tmp_path}/none.agi: No such file or directory"


def test_not_executable(worker: Client, tmp_path: Path) -> None:
    """Who forgot chmod is told."""
    (tmp_path / "a.agi").write_text("#!/bin/sh\n")
    assert worker.refusal(tmp_path / "a.agi").endswith(f"it is not executable: chmod +x {tmp_path}/a.agi")


def test_no_first_line(worker: Client, tmp_path: Path) -> None:
    """A script without a #! line is told so, since Asterisk does not run it either."""
    reason = worker.refusal(write_script(tmp_path / "a.agi", "echo hello\n"))
    assert reason.endswith("it has no #! line, and is no program of this machine")


@pytest.mark.parametrize("line", ["#!/usr/bin/perl\r", "#!/opt/none/perl -w"])
def test_interpreter_is_missing(worker: Client, tmp_path: Path, line: str) -> None:
    """A first line that names no interpreter is shown, an invisible carriage return too."""
    reason = worker.refusal(write_script(tmp_path / "a.agi", f"{line}\n"))
    assert reason.endswith(f"the interpreter of its first line, {line!r}, does not exist")


def test_route_that_cannot_be(worker: Client, tmp_path: Path) -> None:
    """A directory, an interpreter or a user that does not exist is named."""
    file = write_script(tmp_path / "a.agi", "#!/bin/sh\n")
    settings = ProcessSettings(directory="/none")
    assert "working directory /none: No such file" in worker.refusal(file, settings=settings)
    settings = ProcessSettings(interpreter=["nonesuch"])
    assert "its interpreter 'nonesuch' is not in PATH" in worker.refusal(file, settings=settings)
    settings = ProcessSettings(user="nonesuch")
    assert "no user 'nonesuch' on this machine" in worker.refusal(file, settings=settings)


def test_nul_bytes(worker: Client, tmp_path: Path) -> None:
    """What would be cut off silently is refused."""
    file = write_script(tmp_path / "a.agi", "#!/bin/sh\n")
    assert "NUL byte" in worker.refusal(file, "a\0b")
    assert "NUL byte" in worker.refusal(file, variables={"A": "a\0b"})


def test_no_process_left(tmp_path: Path) -> None:
    """When no descriptor is left the call is refused with that reason, and the launcher lives on."""
    file = write_script(tmp_path / "a.sh", "#!/bin/sh\nread x\n")
    running = RunningLauncher(tmp_path / "log")
    worker = running.worker()
    assert worker.exit_code(worker.run(file)) == 1
    used = len(list(Path(f"/proc/{running.pid}/fd").iterdir()))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Each script that runs needs one, and more while it is being started.
    resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (used + 11, hard))
    refused: list[NotLaunched] = []
    running_calls: list[RunningScript] = []
    while not refused and len(running_calls) < 12:
        worker.launch(file)
        answer, streams = worker.next()
        if isinstance(answer, Launched):
            running_calls.append(RunningScript(answer.call, answer.pid, *streams))
        else:
            assert isinstance(answer, NotLaunched)
            refused.append(answer)
    assert running_calls
    assert refused[0].reason == f"the machine has nothing left to start {file} with: Too many open files"
    for script in running_calls:
        assert worker.exit_code(script) == 1
    assert worker.exit_code(worker.run(file)) == 1
    running.close()
