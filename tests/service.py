"""PoolService: the pool under test, run as its operator runs it: the command, a YAML file, signals.

Laws:
    * Every pool is the leader of a session of its own, so that whatever it starts can be found, and be
      ended by its process id, even when the master is gone.
    * It listens on a port that the kernel chose; the log tells which.
    * What can only be seen by looking again and again is looked at by :func:`await_that`, which has an
      end and says what it waited for.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from fastagi_pool.control import SOCKET_NAME
from fastagi_pool.scoreboard import SlotFacts, WorkerState
from fastagi_pool.status import read_status
from fastagi_pool.testing import CallResult, play_call

COMMAND: Final = (sys.executable, "-m", "fastagi_pool")
_READY_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 30.0
_REFUSAL_TIMEOUT_S: Final = 10.0
#: Some fifty times what a step takes on a machine with nothing else to do.
_STEP_TIMEOUT_S: Final = 15.0
_LOOK_S: Final = 0.01
_GREETING: Final = "listening on "


class PoolFailed(Exception):
    """The pool did not do in time what it should; the text holds its output and its log."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a pool.

    Attributes:
        pid: Its id.
        parent: Its parent's.
        state: ``Z`` for a zombie; else as in proc(5).
        title: Its command line; empty for a zombie.
    """

    pid: int
    parent: int
    state: str
    title: str


class PoolService:
    """One pool on a port of its own.

    Attributes:
        folder: Where all its files are.
        address: ``host:port`` where it listens; known once it has started.
        config_path: Its YAML file; change it and call :meth:`reload`.
        log_path: Its log.
        access_path: Its access log.
        output_path: What it printed.
        config: What the YAML file holds; see :meth:`configure`.
    """

    def __init__(
        self,
        folder: Path,
        python_path: Path,
        routes: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the configuration, but do not start.

        Args:
            folder: Where the configuration, the logs and the runtime files go; must exist.
            python_path: The folder of the handlers' modules.
            routes: The ``routes`` of the configuration.
            settings: Further keys of the configuration; they win.
        """
        self.folder = folder
        self.address = ""
        self.config_path = folder / "pool.yaml"
        self.log_path = folder / "pool.log"
        self.access_path = folder / "access.log"
        self.output_path = folder / "output"
        self.config: dict[str, Any] = {
            "listen": ["127.0.0.1:0"],
            "workers": 2,
            "runtime_dir": str(folder / "run"),
            "log": {"file": str(self.log_path), "access": str(self.access_path)},
            # Its usual port is one for all pools of this machine.
            "http": {"listen": "off"},
            # So is the journal, and calls of another test may lie in it.
            "journal": {"file": str(folder / "journal.db")},
            "python_path": [str(python_path)],
            "routes": [dict(route) for route in routes],
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._session = 0
        #: How often pools that ran here before have said where they listen.
        self._greeted_before = 0
        self.configure(**(settings or {}))

    # --- what the operator does

    def configure(self, **settings: object) -> None:
        """Set keys of the configuration and write the file; a running pool sees it at its next reload."""
        self.config |= settings
        self.config_path.write_text(yaml.safe_dump(self.config, sort_keys=False))

    def launch(self, *wrapper: str, arguments: Sequence[str] = (), **environment: str) -> None:
        """Start, and return at once.

        Args:
            wrapper: A command that executes the one behind it.
            arguments: Instead of the options that name the configuration.
            environment: Set for the pool besides our own.
        """
        options = arguments or ("-c", str(self.config_path))
        with self.output_path.open("wb") as output:
            self._greeted_before = self.logged().count(_GREETING)
            self._process = subprocess.Popen(
                ("setpriv", "--pdeathsig", "TERM", *wrapper, *COMMAND, "run", *options),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Python takes compiled code for current if time in seconds and size are the same.
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
            )
        self._session = self._process.pid

    def start(self, *wrapper: str, **environment: str) -> None:
        """Start, and return when all workers serve; see :meth:`launch`.

        Raises:
            PoolFailed: It ended, or was not ready within 30 s.
        """
        self.launch(*wrapper, **environment)
        try:
            self.await_that(self._is_ready, "is ready", _READY_TIMEOUT_S)
            self.address = self.await_log(rf"{_GREETING}([^\s,]+)")[-1][1]
        except PoolFailed:
            self.kill()
            raise

    def reload(self) -> None:
        """Send SIGHUP; returns at once."""
        self.signal(signal.SIGHUP)

    def terminate(self) -> None:
        """Send SIGTERM; returns at once."""
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send a signal to the master; returns at once."""
        self._running().send_signal(number)

    def wait(self) -> int:
        """Wait for its end and return its exit status.

        Raises:
            PoolFailed: It did not end within 30 s; it is killed.
        """
        try:
            return self._running().wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            text = self.logged()
            self.kill()
            raise PoolFailed(f"the pool did not stop within {_STOP_TIMEOUT_S:g} s:\n{text}") from error

    def stop(self) -> int:
        """Send SIGTERM, wait for its end and return its exit status; see :meth:`wait`."""
        self.terminate()
        return self.wait()

    def kill(self) -> None:
        """End whatever of it still runs, by force."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for process in self.processes():
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # It has just ended by itself.

    # --- what callers see

    def url(self, script: str) -> str:
        """Return the URL of a script, query and all."""
        return f"agi://{self.address}/{script}"

    def call(self, script: str) -> CallResult:
        """Place one call and see it to its end."""
        return play_call(self.url(script))

    def await_refusal(self) -> None:
        """Wait until it accepts no connection any more.

        Raises:
            PoolFailed: It still does after 10 s.
        """
        self.await_that(lambda: not self._accepts(), "refuses connections", _REFUSAL_TIMEOUT_S)

    # --- what can be seen from outside

    @property
    def pid(self) -> int:
        """The master's process id."""
        return self._running().pid

    @property
    def runs(self) -> bool:
        """Whether the master lives."""
        return self._process is not None and self._process.poll() is None

    def serving(self) -> list[SlotFacts]:
        """Return the workers that serve, by what they say themselves."""
        runtime_dir = Path(self.config["runtime_dir"])
        try:
            pool = read_status(runtime_dir, time.monotonic())
        except (OSError, ValueError):
            return []
        if pool.master_pid != self._session:
            return []
        return [facts for facts in pool.workers if facts.state is WorkerState.READY]

    def await_serving(self, workers: int, generation: int = 0) -> list[SlotFacts]:
        """Wait until exactly so many workers serve, all of one generation unless that is 0.

        Raises:
            PoolFailed: It is not so within 15 s.
        """
        found: list[SlotFacts] = []

        def serve() -> bool:
            found[:] = self.serving()
            wanted = generation == 0 or all(each.generation == generation for each in found)
            return len(found) == workers and wanted

        self.await_that(serve, f"has {workers} workers of generation {generation or 'any'}")
        return found

    def await_observer(self) -> None:
        """Wait until a first run's observer listens: it comes last, and :meth:`start` does not wait for it.

        Raises:
            PoolFailed: It does not within 15 s.
        """
        self.await_that((Path(self.config["runtime_dir"]) / SOCKET_NAME).exists, "has an observer")

    def await_process(self, title: str) -> Process:
        """Wait until exactly one process has this in its title, and return it.

        Each names itself in its own time, and has the title of whoever forked it until then.

        Raises:
            PoolFailed: It is not so within 15 s.
        """
        found: list[Process] = []

        def is_alone() -> bool:
            found[:] = [each for each in self.processes() if title in each.title]
            return len(found) == 1

        self.await_that(is_alone, f"has one process {title!r}")
        return found[0]

    def processes(self) -> list[Process]:
        """Return all its processes: zombies too, unless init has yet to bury them."""
        found = (_process(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
        return [
            process
            for session, process in filter(None, found)
            if session == self._session and not (process.state == "Z" and process.parent in (0, 1))
        ]

    def logged(self) -> str:
        """Return what it printed and logged."""
        paths = (self.output_path, self.log_path)
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

    def access_lines(self) -> list[dict[str, str]]:
        """Return the access log, each line as its ``name=value`` words; values in quotes are cut."""
        lines = self.access_path.read_text().splitlines() if self.access_path.exists() else []
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def await_access(self, lines: int) -> list[dict[str, str]]:
        """Wait until the access log has so many lines, as they are written after the call; return them.

        Raises:
            PoolFailed: It has not within 15 s.
        """
        self.await_that(lambda: len(self.access_lines()) >= lines, f"has {lines} access lines")
        return self.access_lines()

    def await_log(self, pattern: str, times: int = 1) -> list[re.Match[str]]:
        """Wait until output or log match a pattern so many times; ``^`` and ``$`` are a line's.

        Raises:
            PoolFailed: They do not within 15 s.
        """
        found: list[re.Match[str]] = []

        def matches() -> bool:
            found[:] = re.finditer(pattern, self.logged(), re.MULTILINE)
            return len(found) >= times

        self.await_that(matches, f"logs {pattern!r} {times} times")
        return found

    def await_that(
        self, condition: Callable[[], object], what: str, timeout_s: float = _STEP_TIMEOUT_S
    ) -> None:
        """Wait until a condition holds.

        Raises:
            PoolFailed: It does not in time, or the pool has ended and it does not.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            over = self._process is None or self._process.poll() is not None
            if (over and not condition()) or time.monotonic() > deadline_s:
                state = "ended" if over else f"{timeout_s:g} s went by"
                raise PoolFailed(f"{state}, but it is not so that the pool {what}:\n{self.logged()}")
            time.sleep(_LOOK_S)

    def await_that_all_ended(self) -> None:
        """Wait until not one of its processes is left, though the master be killed.

        Raises:
            PoolFailed: Some still live after 15 s.
        """
        deadline_s = time.monotonic() + _STEP_TIMEOUT_S
        while left := self.processes():
            if time.monotonic() > deadline_s:
                raise PoolFailed(f"left behind: {left}\n{self.logged()}")
            time.sleep(_LOOK_S)

    def _is_ready(self) -> bool:
        wanted = self.config["workers"]
        enough = wanted if isinstance(wanted, int) else 1
        # Workers serve some moments before their master says so: what stands there may be an earlier one's.
        greeted = self.logged().count(_GREETING) > self._greeted_before
        return greeted and len(self.serving()) >= enough

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise PoolFailed("the pool does not run")
        return self._process

    def _accepts(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), 1.0):
                return True
        except OSError:
            return False


def pids(processes: Iterable[Process | SlotFacts]) -> set[int]:
    """Return the process ids."""
    return {each.pid for each in processes}


def open_files(pid: int) -> list[str]:
    """Return what a process has open, but for what it closes while we look. Source: proc(5)."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return found


def sleeps(pid: int) -> bool:
    """Whether a process waits for something. Source: proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def _process(pid: int) -> tuple[int, Process] | None:
    """Return a process and its session; None if it has ended meanwhile. Source: proc(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        title = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return None
    state, parent, _, session = fields[:4]
    return int(session), Process(pid, int(parent), state, title)
