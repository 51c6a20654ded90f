"""Scene: where a run takes place: the pool, its database and the network between them, a small disk, a clock.

Laws:
    * Everything is private: loopback, ports that the kernel chose, files in a folder that is thrown away.
    * Whatever was started is ended with the ``with``, by process ids that are known to be the run's.
    * The pool may write nothing that a read-only server refuses to others: its user is no administrator.
"""

from __future__ import annotations

import mmap
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

# The tests' pool and MariaDB server are the run's too, as they are the benchmark's and the drills'.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from mariadb import MariaDBMissingError, MariaDBServer, find_mariadb
from programs import compiled
from service import PoolService
from vicidial_database import VicidialDatabase, pool_databases, pool_route

from chaos.auditor import ClockStep
from chaos.handlers import TABLES

_SCRIPTS: Final = Path(__file__).resolve().parents[1]
WORKERS: Final = 3
VICIDIAL: Final = "vicidial"
ROWS: Final = "chaos"
_USER: Final = "chaos"
_PASSWORD: Final = "chaos"
_DISK_KIB: Final = 64 * 1024
_FORWARDER: Final = Path(__file__).resolve().parent / "forwarder.py"
_SHIM: Final = Path(__file__).resolve().parent / "clockshim.c"
_OFFSET: Final = struct.Struct("d")


class ChaosFailed(Exception):
    """The run cannot be done, which says nothing about the pool; the text says why."""


class Network:
    """The network to the database: a forwarder in a process of its own."""

    def __init__(self, server_port: int) -> None:
        self._process = subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", sys.executable, str(_FORWARDER), str(server_port)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._answer())

    def tell(self, *words: str) -> None:
        """Have it do something; returns when it does.

        Raises:
            ChaosFailed: It is gone.
        """
        assert self._process.stdin is not None
        try:
            print(*words, file=self._process.stdin, flush=True)
        except OSError as error:
            raise ChaosFailed(f"the forwarder is gone: {error}") from error
        self._answer()

    def end(self) -> None:
        """End it, and all connections with it."""
        with self._process:
            self._process.kill()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChaosFailed("the forwarder is gone")
        return line


class Disk:
    """A small disk for the journal alone: a file system in memory, so that it takes root to mount it."""

    def __init__(self, folder: Path) -> None:
        """Mount it.

        Raises:
            ChaosFailed: It cannot be mounted.
        """
        folder.mkdir()
        self.folder = folder
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_KIB}k", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ChaosFailed(f"no small disk can be mounted (are you root?): {done.stderr.strip()}")

    def fill(self) -> None:
        """Leave no room for a single byte."""
        with self._ballast.open("ab", buffering=0) as ballast:
            for size in (1 << 20, 4096, 1):
                _write_all(ballast, b"x" * size)

    def clear(self) -> None:
        """Make room again."""
        self._ballast.unlink(missing_ok=True)

    def end(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"


class PoolClock:
    """The wall clock that the pool reads: the machine's, and an offset."""

    def __init__(self, folder: Path) -> None:
        """Prepare it.

        Raises:
            ProgramFailed: There is no C compiler.
        """
        self._shim = compiled(_SHIM, folder / "clockshim.so", "-shared", "-fPIC")
        self._path = folder / "clock"
        self._path.write_bytes(_OFFSET.pack(0.0))
        with self._path.open("r+b") as file:
            self._place = mmap.mmap(file.fileno(), _OFFSET.size)
        self.steps: list[ClockStep] = []

    @property
    def environment(self) -> dict[str, str]:
        """What the pool's environment must hold."""
        return {"LD_PRELOAD": str(self._shim), "CHAOS_CLOCK": str(self._path)}

    def step(self, offset_s: float) -> None:
        """Set it, that far from the machine's."""
        self.steps.append(ClockStep(time.time(), offset_s))
        _OFFSET.pack_into(self._place, 0, offset_s)

    def end(self) -> None:
        """Let go of it."""
        self._place.close()


class Scene:
    """All of it; a context manager.

    Attributes:
        folder: Where all files are.
        server: The MariaDB server.
        network: Between it and the pool.
        disk: Holds the journal, and nothing else.
        clock: The pool's.
        vicidial: VICIdial's tables.
        pool: The pool.
    """

    def __init__(self, folder: Path) -> None:
        """Start everything, and return when calls can come.

        Raises:
            ChaosFailed: Something is missing on this machine.
            ProgramFailed: A C compiler is missing.
        """
        self.folder = folder
        with ExitStack() as stack:
            self._build(stack)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _build(self, stack: ExitStack) -> None:
        try:
            programs = find_mariadb()
        except MariaDBMissingError as error:
            raise ChaosFailed(f"no MariaDB: {error}") from error
        self.server = stack.enter_context(MariaDBServer(programs, "--max-connections=200"))
        # Removing the server's folder is faster than dropping what may be frozen or gone.
        self.vicidial = VicidialDatabase(self.server, VICIDIAL, in_memory="InnoDB")
        self._make_tables()
        self.network = Network(self.server.port)
        stack.callback(self.network.end)
        self.disk = Disk(self.folder / "disk")
        stack.callback(self.disk.end)
        self.clock = PoolClock(self.folder)
        stack.callback(self.clock.end)
        self.pool = PoolService(self.folder, _SCRIPTS, self._routes(), self._settings())
        stack.callback(self.pool.kill)
        self.pool.start(**self.clock.environment)

    def _make_tables(self) -> None:
        execute = self.server.execute
        execute(f"CREATE DATABASE {ROWS}")
        for table in TABLES:
            execute(
                f"CREATE TABLE {ROWS}.{table} (call_id BIGINT NOT NULL, called_at DOUBLE NOT NULL, "
                "KEY (call_id)) ENGINE=InnoDB"
            )
        execute("UPDATE vicidial.servers SET agi_output = 'NONE'")
        execute(f"CREATE USER {_USER}@'127.0.0.1' IDENTIFIED BY '{_PASSWORD}'")
        for database in (ROWS, VICIDIAL):
            execute(f"GRANT ALL ON {database}.* TO {_USER}@'127.0.0.1'")

    def _routes(self) -> list[dict[str, Any]]:
        script = self.folder / "old.agi"
        script.write_text("#!/bin/sh\nexit 0\n")
        script.chmod(0o755)
        return [
            {"script": "record", "handler": "chaos.handlers:record", "databases": [ROWS], "lane": "records"},
            {"script": "ivr", "handler": "chaos.handlers:ivr", "databases": [ROWS], "lane": "talk"},
            # Nobody calls it: it makes the pool have a launcher.
            {"script": "old.agi", "command": str(script)},
            {**pool_route(self.folder), "lane": "records"},
        ]

    def _settings(self) -> dict[str, Any]:
        times = {
            "connect_timeout": "2s",
            "read_timeout": "5s",
            "write_timeout": "5s",
            "required_at_boot": False,
        }
        databases = {
            ROWS: {"url": self._url(ROWS), "pool_size": 4, **times},
            VICIDIAL: {**pool_databases("")[VICIDIAL], "url": self._url(VICIDIAL), **times},
        }
        return {
            "workers": WORKERS,
            "calls_per_worker": 200,
            "max_calls": 2000,
            "lanes": {
                "records": {"max_queue": 500, "reserve": 40},
                "talk": {"max_active": 120, "max_queue": 60, "max_wait": "3s"},
            },
            "journal": {"file": str(self.disk.folder / "journal.db"), "max_size": "48MB"},
            "databases": databases,
        }

    def _url(self, database: str) -> str:
        return f"mysql+pymysql://{_USER}:{_PASSWORD}@127.0.0.1:{self.network.port}/{database}"


def _write_all(file: Any, data: bytes) -> None:
    try:
        while file.write(data) == len(data):
            pass
    except OSError:
        pass  # Full, as wished.
