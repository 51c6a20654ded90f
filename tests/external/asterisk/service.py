"""PoolService: the pool under test, run as its operator runs it: the command, a YAML file, signals."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from .ports import free_port

_COMMAND: Final = (sys.executable, "-m", "fastagi_pool")
_READY_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 30.0
_REFUSAL_TIMEOUT_S: Final = 10.0
_STATUS_TIMEOUT_S: Final = 20.0


class PoolFailed(Exception):
    """The pool did not start or did not stop; the text holds its output and its log."""


class PoolService:
    """One pool on a port of its own.

    Attributes:
        address: ``host:port`` where it listens.
        config_path: Its YAML file; change it and call :meth:`reload`.
        log_path: Its log.
        access_path: Its access log.
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
            settings: Further keys of the configuration.
        """
        self.address = f"127.0.0.1:{free_port()}"
        self.config_path = folder / "pool.yaml"
        self.log_path = folder / "pool.log"
        self.access_path = folder / "access.log"
        self._output_path = folder / "output"
        self._process: subprocess.Popen[bytes] | None = None
        config = {
            "listen": [self.address],
            "workers": 2,
            "runtime_dir": str(folder / "run"),
            "log": {"file": str(self.log_path), "access": str(self.access_path)},
            "python_path": [str(python_path)],
            "routes": [dict(route) for route in routes],
            **(settings or {}),
        }
        self.config_path.write_text(yaml.safe_dump(config, sort_keys=False))

    def url(self, script: str) -> str:
        """Return the URL of a script, query and all."""
        return f"agi://{self.address}/{script}"

    def start(self) -> None:
        """Start, and return when it accepts connections and its status says that it serves.

        Raises:
            PoolFailed: It ended, or was not ready within 30 s.
        """
        with self._output_path.open("wb") as output:
            self._process = subprocess.Popen(
                ("setpriv", "--pdeathsig", "TERM", *_COMMAND, "run", "-c", str(self.config_path)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not (self._accepts() and self.status().returncode == 0):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise PoolFailed(f"the pool did not become ready:\n{self.logged()}")
            time.sleep(0.05)

    def status(self) -> subprocess.CompletedProcess[str]:
        """Run the command ``status``."""
        return subprocess.run(
            (*_COMMAND, "status", "-c", str(self.config_path)),
            capture_output=True,
            text=True,
            timeout=_STATUS_TIMEOUT_S,
            check=False,
        )

    def reload(self) -> None:
        """Send SIGHUP; returns at once."""
        self._running().send_signal(signal.SIGHUP)

    def terminate(self) -> None:
        """Send SIGTERM; returns at once."""
        self._running().terminate()

    def await_refusal(self) -> None:
        """Wait until it accepts no connection any more.

        Raises:
            PoolFailed: It still does after 10 s.
        """
        deadline = time.monotonic() + _REFUSAL_TIMEOUT_S
        while self._accepts():
            if time.monotonic() > deadline:
                raise PoolFailed(f"the pool still accepts connections:\n{self.logged()}")
            time.sleep(0.02)

    def wait(self) -> int:
        """Wait for its end and return its exit status.

        Raises:
            PoolFailed: It did not end within 30 s; it is killed.
        """
        process = self._running()
        try:
            return process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise PoolFailed(
                f"the pool did not stop within {_STOP_TIMEOUT_S:g} s:\n{self.logged()}"
            ) from error
        finally:
            self.kill()

    def stop(self) -> int:
        """Send SIGTERM, wait for its end and return its exit status; see :meth:`wait`."""
        self.terminate()
        return self.wait()

    def kill(self) -> None:
        """End the master at once, if it still runs; its workers end by themselves then."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def logged(self) -> str:
        """Return what it printed and logged."""
        paths = (self._output_path, self.log_path)
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

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
