"""fastagi_pool.commands.life: real pools in the background, and a stand-in for the control socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from service import COMMAND

from fastagi_pool.lifecycle import PID_FILE, ActionCode, Life, LifeState, find, hold_pid_file
from fastagi_pool.testing import AgiStatus, environment, play_call

WAIT_S = 60.0


class Installation:
    """A configuration, and the command that an operator types.

    Attributes:
        folder: Where all files are.
        config: What the YAML file holds.
        runtime_dir: The pool's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime_dir = folder / "run"
        self.config: dict[str, Any] = {
            "listen": ["127.0.0.1:0"],
            "workers": 1,
            "http": {"listen": "off"},
            "runtime_dir": str(self.runtime_dir),
            "log": {"file": str(folder / "pool.log")},
            "routes": [{"default": True, "handler": "fastagi_pool.handlers.demo:hello"}],
        }
        self.write()

    def write(self, **settings: object) -> None:
        """Set keys of the configuration and write it."""
        self.config |= settings
        (self.folder / "pool.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False))

    def type(self, *words: str) -> tuple[int, str]:
        """Type a command in the folder; return its exit code and all that it printed."""
        done = subprocess.run(
            (*COMMAND, *words),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=WAIT_S,
        )
        return done.returncode, done.stdout.strip()

    def start(self) -> tuple[int, str]:
        """Start the pool; return its pid and its address."""
        code, text = self.type("start", "-c", "pool.yaml")
        assert code == ActionCode.OK, text
        return find(self.runtime_dir).pid, text.rpartition(" ")[2]

    def clean_up(self) -> None:
        """End whatever still runs."""
        if find(self.runtime_dir).state is LifeState.RUNNING:
            self.type(
                "stop",
                "--runtime-dir",
                str(self.runtime_dir),
                "--now",
                "--wait",
                "--kill",
                "--timeout",
                "10s",
            )


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """A configuration of its own, and nothing that runs afterwards."""
    installation = Installation(tmp_path)
    yield installation
    installation.clean_up()


@pytest.fixture
def open_call() -> Iterator[socket.socket]:
    """A socket that is closed at the end, for a call that is begun and not ended."""
    with socket.socket() as call:
        yield call


def begin_call(call: socket.socket, address: str) -> None:
    """Begin a call, and leave its first command unanswered."""
    host, _, port = address.rpartition(":")
    call.connect((host, int(port)))
    call.sendall(environment("agi://localhost/hello").encode())
    assert call.recv(4096).endswith(b"\n")


# --- start and stop


def test_from_start_to_stop(installation: Installation) -> None:
    """A pool in the background serves when 'start' comes back and is gone when 'stop --wait' does."""
    pid, address = installation.start()
    assert play_call(f"agi://{address}/hello").status is AgiStatus.SUCCESS
    again = installation.type("start", "-c", "pool.yaml")
    assert again == (ActionCode.OK, f"fastagi-pool is running already (pid {pid})")
    assert installation.type("reopen", "-c", "pool.yaml") == (ActionCode.OK, "")
    assert installation.type("stop", "--wait", "-c", "pool.yaml") == (
        ActionCode.OK,
        "fastagi-pool has stopped",
    )
    assert find(installation.runtime_dir) == Life(LifeState.STOPPED)
    assert installation.type("stop", "-c", "pool.yaml") == (ActionCode.OK, "fastagi-pool does not run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, ": workers: must be "),
        ({"routes": [{"default": True, "handler": "nowhere:hello"}]}, "nowhere"),
        ({"log": {"file": "-"}}, "give log.file an absolute path, or 'syslog'"),
    ],
    ids=["configuration", "handler", "no log"],
)
def test_refused_configuration(
    installation: Installation, settings: Mapping[str, object], message: str
) -> None:
    """A configuration that cannot be run is 6 to an init script, with the reason."""
    installation.write(**settings)
    code, text = installation.type("start", "-c", "pool.yaml")
    assert code == ActionCode.NOT_CONFIGURED
    assert message in text
    assert "Traceback" not in text
    assert find(installation.runtime_dir).state is not LifeState.RUNNING


def test_port_in_use(installation: Installation) -> None:
    """What the machine does not give is 1 to an init script, with the reason."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        installation.write(listen=[taken])
        code, text = installation.type("start", "-c", "pool.yaml")
    assert code == ActionCode.FAILED
    assert f"cannot listen on {taken}: the address is in use" in text


def test_broken_configuration_does_not_keep_it_from_being_stopped(installation: Installation) -> None:
    """A running pool is found and stopped though somebody broke its file meanwhile."""
    installation.start()
    installation.write(workers=0)
    code, text = installation.type("stop", "--wait", "-c", "pool.yaml")
    assert code == ActionCode.OK
    assert f"looking in {installation.runtime_dir}" in text
    assert find(installation.runtime_dir) == Life(LifeState.STOPPED)


def test_stop_waits_for_calls_and_has_an_end(installation: Installation, open_call: socket.socket) -> None:
    """'stop --wait' says how many calls are left; out of time it is 1, and says what still runs."""
    pid, address = installation.start()
    begin_call(open_call, address)
    said = installation.type("stop", "--runtime-dir", str(installation.runtime_dir))
    assert said == (ActionCode.OK, f"fastagi-pool (pid {pid}) stops; 1 calls are in progress")
    code, text = installation.type("stop", "--wait", "--timeout", "100ms", "-c", "pool.yaml")
    assert code == ActionCode.FAILED
    assert f"fastagi-pool (pid {pid}) still runs after 0.1 s, with 1 calls" in text
    assert text.startswith("1 calls left\n")
    assert f"\n  {pid} fastagi-pool: master" in text
    assert find(installation.runtime_dir).state is LifeState.RUNNING, "nothing is killed unasked"


def test_kill_is_the_last_resort(installation: Installation, open_call: socket.socket) -> None:
    """With --kill nothing is left after the time-out, and keep-alive has nothing to do."""
    _, address = installation.start()
    begin_call(open_call, address)
    code, text = installation.type("stop", "--wait", "--kill", "--timeout", "0", "-c", "pool.yaml")
    assert code == ActionCode.OK
    assert "was killed" in text
    assert find(installation.runtime_dir) == Life(LifeState.STOPPED)
    open_call.settimeout(WAIT_S)
    assert open_call.makefile("rb").read().endswith(b"failure\n"), "killed is no success"


def test_kill_alone_is_refused(installation: Installation) -> None:
    """Nobody kills by a slip of the fingers."""
    code, text = installation.type("stop", "--kill", "-c", "pool.yaml")
    assert code == ActionCode.BAD_ARGUMENTS
    assert "--kill needs --wait" in text


# --- restart and keep-alive


def test_restart_checks_before_it_stops(installation: Installation) -> None:
    """A configuration that would be refused stops nothing; a good one gives a new master."""
    pid, _ = installation.start()
    good = installation.config["routes"]
    installation.write(routes=[{"default": True, "handler": "nowhere:hello"}])
    code, text = installation.type("restart", "-c", "pool.yaml")
    assert code == ActionCode.NOT_CONFIGURED
    assert text.endswith("nothing was stopped")
    assert find(installation.runtime_dir) == Life(LifeState.RUNNING, pid)
    installation.write(routes=good)
    code, text = installation.type("restart", "-c", "pool.yaml")
    assert code == ActionCode.OK, text
    assert find(installation.runtime_dir).state is LifeState.RUNNING
    assert find(installation.runtime_dir).pid != pid


def test_restart_if_running_starts_nothing(installation: Installation) -> None:
    """'try-restart' of an init script leaves a pool that is stopped as it is."""
    assert installation.type("restart", "--if-running", "-c", "pool.yaml")[0] == ActionCode.OK
    assert find(installation.runtime_dir) == Life(LifeState.STOPPED)


def test_keep_alive_starts_what_died_and_nothing_else(installation: Installation) -> None:
    """A killed master is followed by another one; a pool that was stopped stays so; cron gets no mail."""
    assert installation.type("keep-alive", "-c", "pool.yaml") == (ActionCode.OK, "")
    pid, _ = installation.start()
    assert installation.type("keep-alive", "-c", "pool.yaml") == (ActionCode.OK, "")
    os.kill(pid, signal.SIGKILL)
    code, text = installation.type("keep-alive", "-c", "pool.yaml")
    assert code == ActionCode.OK, text
    assert f"(pid {pid}) has left its pid file; starting it" in text
    assert find(installation.runtime_dir).pid not in (0, pid)


def test_stop_ends_the_care_of_keep_alive(installation: Installation) -> None:
    """A dead pool that somebody stops is not revived."""
    installation.runtime_dir.mkdir()
    (installation.runtime_dir / PID_FILE).write_text("1\n")
    assert installation.type("stop", "-c", "pool.yaml") == (ActionCode.OK, "fastagi-pool does not run")
    assert installation.type("keep-alive", "-c", "pool.yaml") == (ActionCode.OK, "")
    assert find(installation.runtime_dir) == Life(LifeState.STOPPED)


# --- changes


@pytest.mark.parametrize("words", [("reload",), ("reload", "--wait"), ("upgrade",), ("reopen",)])
def test_nobody_to_change(installation: Installation, words: Sequence[str]) -> None:
    """What changes a running pool is 7 to an init script when there is none."""
    said = installation.type(*words, "-c", "pool.yaml")
    assert said == (ActionCode.NOT_RUNNING, "fastagi-pool does not run")


class ControlSocket:
    """Answers one question on the control socket of a runtime folder whose master is this process.

    Attributes:
        asked: What was asked.
    """

    def __init__(self, runtime_dir: Path, answers: Sequence[Mapping[str, object]]) -> None:
        self.asked: object = None
        self._answers = answers
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(WAIT_S)
        self._socket.bind(str(runtime_dir / "control"))
        self._socket.listen()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        connection, _ = self._socket.accept()
        with connection, connection.makefile("rw") as lines:
            self.asked = json.loads(lines.readline())
            for answer in self._answers:
                lines.write(f"{json.dumps(answer)}\n")

    def close(self) -> None:
        """Wait until it has answered."""
        self._thread.join(WAIT_S)
        self._socket.close()


@pytest.mark.parametrize("verb", ["reload", "upgrade"])
@pytest.mark.parametrize(
    ("last", "code", "told"),
    [
        ({"ok": True, "text": "done"}, ActionCode.OK, "loading\ndone"),
        (
            {"ok": False, "error": "line 3"},
            ActionCode.FAILED,
            "loading\n{verb} refused, nothing changes: line 3",
        ),
    ],
    ids=["done", "refused"],
)
def test_change_is_followed(
    installation: Installation, verb: str, last: Mapping[str, object], code: int, told: str
) -> None:
    """With --wait progress is shown as it comes, and a refusal is an exit code with its reason."""
    installation.runtime_dir.mkdir()
    held = hold_pid_file(installation.runtime_dir / PID_FILE, os.getpid())
    control = ControlSocket(
        installation.runtime_dir, [{"ok": True, "more": True, "text": "loading"}, {"more": False, **last}]
    )
    try:
        said = installation.type(verb, "--wait", "--runtime-dir", str(installation.runtime_dir))
    finally:
        control.close()
        (installation.runtime_dir / PID_FILE).unlink()
        os.close(held)
    assert said == (code, told.format(verb=verb))
    assert control.asked == {"verb": verb, "wait": True}


def test_nobody_who_could_follow(installation: Installation) -> None:
    """Without an observer a change cannot be followed; that is said, and nothing else happens."""
    installation.runtime_dir.mkdir()
    held = hold_pid_file(installation.runtime_dir / PID_FILE, os.getpid())
    try:
        code, text = installation.type(
            "reload", "--wait", "--timeout", "100ms", "--runtime-dir", str(installation.runtime_dir)
        )
    finally:
        (installation.runtime_dir / PID_FILE).unlink()
        os.close(held)
    assert code == ActionCode.FAILED
    assert text.startswith("nobody answers at ")
