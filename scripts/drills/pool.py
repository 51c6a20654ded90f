"""DrillPool: a pool in a folder that is thrown away, and its operator's ways to look at it and to change it.

Laws:
    * The pool is run, changed and shown by the command, as its operator does it. Only what is awaited is
      looked at where the command looks, too: in shared memory.
    * Whatever was started is ended with its ``with``, by process ids that are known to be the pool's.
    * What takes time is awaited by looking again, with an end.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import yaml

from drills.telling import DrillFailed, Seen
from fastagi_pool.status import read_status

SCRIPTS: Final = Path(__file__).resolve().parents[1]
_COMMAND: Final = (sys.executable, "-m", "fastagi_pool")
#: Some fifty times what a step takes on a machine with nothing else to do.
_STEP_TIMEOUT_S: Final = 15.0
_LOOK_S: Final = 0.02
_LOGS: Final = ("output", "pool.log", "slow.log", "access.log")
#: Lines of the logs that are shown when something has not come about.
_LAST_LINES: Final = 30
#: What 'start' says of a daemon that serves.
_RUNS: Final = re.compile(r"\bruns \(pid (\d+)\)")
#: One line of Prometheus' format.
_SAMPLE: Final = r"^{name}(?:\{{(?P<labels>[^}}]*)\}})? (?P<value>\S+)$"


def route(script: str, **options: object) -> dict[str, Any]:
    """Return the route of a script whose handler has the same name."""
    found = {"script": script, "handler": f"drills.handlers:{script}"}
    return found | ({"options": options} if options else {})


class DrillPool:
    """One pool; a context manager.

    Attributes:
        folder: Where all its files are.
        address: ``host:port`` where it listens; known once it has started.
        config: What its YAML file holds; see :meth:`configure`.
    """

    def __init__(self, folder: Path, routes: Sequence[Mapping[str, Any]], **settings: object) -> None:
        """Write the configuration, but do not start.

        Args:
            folder: Where its files go; made if it is missing.
            routes: The ``routes`` of the configuration.
            settings: Further keys of the configuration; they win.
        """
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.address = ""
        self.config: dict[str, Any] = {
            "listen": ["127.0.0.1:0"],
            "workers": 2,
            "runtime_dir": str(folder / "run"),
            "log": {"file": str(folder / "pool.log"), "access": str(folder / "access.log")},
            "slow": {"file": str(folder / "slow.log")},
            "http": {"listen": "127.0.0.1:0"},
            "python_path": [str(SCRIPTS)],
            "routes": [dict(each) for each in routes],
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._sessions: set[int] = set()
        self.configure(**settings)

    def __enter__(self) -> DrillPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Again, as one of them may just have started another.
        while left := self.processes():
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # It has just ended by itself.
            time.sleep(_LOOK_S)
        if self._process is not None:
            self._process.wait()

    # --- what the operator does

    def configure(self, **settings: object) -> None:
        """Set keys of the configuration and write the file; a running pool sees it at its next reload."""
        self.config |= settings
        self._config_path.write_text(yaml.safe_dump(self.config, sort_keys=False))

    def run(self) -> None:
        """Start in the foreground, and return when all workers serve and the state is shown."""
        with (self.folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                (*_COMMAND, "run", "-c", str(self._config_path)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment(),
            )
        self._sessions.add(self._process.pid)
        self.await_service()

    def await_service(self) -> None:
        """Wait until all workers serve and the state is shown, after a start."""
        self.await_workers(self.config["workers"])
        self.await_log(r"showing the status on ")
        self.address = self.await_log(r"listening on ([^\s,]+)")[-1][1]

    def command(self, *words: str) -> Seen:
        """Give a command that concerns this pool, and return what it printed."""
        seen = self._give(*words, "-c", str(self._config_path))
        return replace(seen, asked=f"fastagi-pool {' '.join(words)}")

    def _give(self, *words: str) -> Seen:
        done = subprocess.run(
            (*_COMMAND, *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment(),
            timeout=_STEP_TIMEOUT_S * 2,
        )
        daemon = _RUNS.search(done.stdout)
        if daemon is not None:
            # It is the leader of no session, so that it can never get a terminal.
            self._sessions |= {_session(int(daemon[1]))} - {0}
        remark = f"exit code {done.returncode}" if done.returncode else ""
        return Seen(f"fastagi-pool {' '.join(words)}", done.returncode, done.stdout, remark)

    def ask(self, script: str) -> Seen:
        """Play a dialplan that calls a script, and return the variables that it finds afterwards."""
        seen = self._give("call", self.url(script))
        return seen.only(r"^   ")

    def get(self, path: str) -> Seen:
        """Ask over HTTP, as a browser or Prometheus does."""
        where = self.await_log(r"showing the status on (http://\S+?)/?$")[-1][1]
        try:
            with urllib.request.urlopen(f"{where}{path}", timeout=_STEP_TIMEOUT_S) as answer:
                return Seen(f"curl {where}{path}", answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Seen(f"curl {where}{path}", error.code, error.read().decode(), f"HTTP {error.code}")
        except (OSError, http.client.HTTPException) as error:
            # Also one that breaks in the middle of the answer.
            return Seen(f"curl {where}{path}", 0, "", f"no connection: {getattr(error, 'reason', error)}")

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric's value, summed over its samples with these labels; 0 if there is none."""
        wanted = {f'{key}="{text}"' for key, text in labels.items()}
        samples = re.finditer(_SAMPLE.format(name=re.escape(name)), self.get("/metrics").text, re.MULTILINE)
        return sum(
            float(each["value"]) for each in samples if wanted <= set((each["labels"] or "").split(","))
        )

    # --- what can be seen from outside

    def url(self, script: str) -> str:
        """Return the URL of a script."""
        return f"agi://{self.address}/{script}"

    def status(self) -> dict[str, Any]:
        """Return what ``status --json`` says; empty if there is nothing to say."""
        now_s = time.monotonic()
        try:
            return read_status(self.folder / "run", now_s).as_json(now_s)
        except (OSError, ValueError):
            return {}

    def serving(self) -> set[int]:
        """Return the process ids of the workers that serve; none if the master is dead."""
        status = self.status()
        workers = status["workers"] if status.get("running") else []
        return {each["pid"] for each in workers if each["state"] == "ready" and not each["stuck"]}

    def await_workers(self, workers: int, without: int = 0) -> set[int]:
        """Wait until so many workers serve, and a certain one is not among them; return their process ids."""
        found: set[int] = set()

        def serve() -> bool:
            found.clear()
            found.update(self.serving() - {without})
            return len(found) == workers

        self.await_that(serve, f"{workers} workers serve")
        return found

    def logged(self) -> str:
        """Return what it printed, its log, the slow log and the access log."""
        paths = (self.folder / name for name in _LOGS)
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

    def await_log(self, pattern: str) -> list[re.Match[str]]:
        """Wait until a pattern is found in the logs; ``^`` and ``$`` are a line's."""
        found: list[re.Match[str]] = []

        def matches() -> bool:
            found[:] = re.finditer(pattern, self.logged(), re.MULTILINE)
            return bool(found)

        self.await_that(matches, f"the log says {pattern!r}")
        return found

    def await_lines(self, pattern: str) -> str:
        """Wait until a pattern is found in the logs, and return the whole lines where it was found first."""
        found = self.await_log(pattern)[0]
        begin = found.string.rfind("\n", 0, found.start()) + 1
        end = found.string.find("\n", found.end())
        return found.string[begin : len(found.string) if end < 0 else end]

    def await_that(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition holds.

        Raises:
            DrillFailed: It does not within 15 s.
        """
        deadline_s = time.monotonic() + _STEP_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline_s:
                last = "\n".join(self.logged().splitlines()[-_LAST_LINES:])
                raise DrillFailed(f"within {_STEP_TIMEOUT_S:g} s it was not so that {what}:\n{last}")
            time.sleep(_LOOK_S)

    def processes(self) -> list[int]:
        """Return the process ids of all that was started, and still runs."""
        numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        return [pid for pid in numbers if _session(pid) in self._sessions]

    @property
    def _config_path(self) -> Path:
        return self.folder / "pool.yaml"


def _environment() -> dict[str, str]:
    # Python takes compiled code for current if time in seconds and size are the same.
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}


def _session(pid: int) -> int:
    """Return a process's session; 0 if it has ended, a zombie included. Source: proc(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[3])
