"""A private MariaDB server for tests: own folder, own port, own end.

Nothing of it touches a server that the machine runs, and nothing is left behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote_plus

import pymysql
from ports import free_port

USER: Final = "pool"
PASSWORD: Final = "not/a@secret:really"
BOOT_LIMIT_S: Final = 60.0
STOP_LIMIT_S: Final = 30.0

_PACKAGE: Final = "mariadb-server"
_POLICY: Final = Path("/usr/sbin/policy-rc.d")
_SEARCH_PATH: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/libexec:/usr/local/sbin"
_SMALL_AND_FAST: Final = (
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=4M",
    "--innodb-log-buffer-size=1M",
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-fast-shutdown=1",
    "--aria-pagecache-buffer-size=1M",
    "--key-buffer-size=1M",
    "--performance-schema=OFF",
    "--skip-log-bin",
    "--skip-name-resolve",
    "--character-set-server=utf8mb4",
)


class MariaDBMissingError(Exception):
    """The machine has no MariaDB server, and none can be installed."""


@dataclass(frozen=True)
class MariaDBPrograms:
    """Where the programs are.

    Attributes:
        server: ``mariadbd``.
        installer: ``mariadb-install-db``, which fills an empty data folder.
    """

    server: Path
    installer: Path


def find_mariadb() -> MariaDBPrograms:
    """Find the server's programs; on Debian, root installs the package if they are missing.

    Raises:
        MariaDBMissingError: With the reason.
    """
    programs = _look_around()
    if programs is None:
        _install_package()
        programs = _look_around()
    if programs is None:
        raise MariaDBMissingError(f"package {_PACKAGE} has no programs that we know")
    return programs


def _look_around() -> MariaDBPrograms | None:
    server = shutil.which("mariadbd", path=_SEARCH_PATH) or shutil.which("mysqld", path=_SEARCH_PATH)
    installer = shutil.which("mariadb-install-db", path=_SEARCH_PATH)
    if server is None or installer is None:
        return None
    return MariaDBPrograms(Path(server), Path(installer))


def _install_package() -> None:
    if not Path("/etc/debian_version").exists():
        raise MariaDBMissingError("no mariadbd found, and this is no Debian to install it on")
    if os.geteuid() != 0:
        raise MariaDBMissingError(f"no mariadbd found; as root: apt-get install {_PACKAGE}")
    ours = not _POLICY.exists()
    if ours:
        # 101 says "do not start it": the package would run a server of its own.
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        if not _apt_get("install", "-y", "--no-install-recommends", _PACKAGE):
            _apt_get("update")
            if not _apt_get("install", "-y", "--no-install-recommends", _PACKAGE):
                raise MariaDBMissingError(f"apt-get could not install {_PACKAGE}")
    finally:
        if ours:
            _POLICY.unlink()


def _apt_get(*arguments: str) -> bool:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "-qq", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


class MariaDBServer:
    """One server, of the test run's own.

    Args:
        programs: What to run.
        options: More options for the server, as ``--max-connections=10``.

    Attributes:
        port: Its TCP port on 127.0.0.1; the same after a restart.
    """

    def __init__(self, programs: MariaDBPrograms, *options: str) -> None:
        self.port = free_port()
        self._programs = programs
        self._options = options
        # Short, because the path of a socket may have 107 bytes only.
        self._folder = Path(tempfile.mkdtemp(prefix="mariadb-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MariaDBServer:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        first_time = not self._data.exists()
        if first_time:
            self._fill_data_folder()
        command = [str(self._programs.server), "--no-defaults", *self._user_option]
        command += [
            f"--datadir={self._data}",
            f"--socket={self._socket}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
        ]
        command += [f"--pid-file={self._folder / 'pid'}", f"--log-error={self._log}"]
        self._process = subprocess.Popen(
            [*command, *_SMALL_AND_FAST, *self._options], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        self._wait_until_it_answers()
        if first_time:
            self.execute(f"CREATE USER {USER}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'")
            self.execute(f"GRANT ALL ON *.* TO {USER}@'127.0.0.1'")

    def stop(self, kill: bool = False) -> None:
        """Stop the server; nothing if it does not run.

        Args:
            kill: By SIGKILL, as a crash would; otherwise by SIGTERM, as an operator would.
        """
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process = None

    def restart(self, kill: bool = False) -> None:
        """Stop the server and start it again."""
        self.stop(kill)
        self.start()

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        self.stop(kill=True)
        shutil.rmtree(self._folder)

    def pause(self) -> None:
        """Freeze the server, all of it: it keeps its connections and answers nothing."""
        self._running.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._running.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._running.send_signal(signal.SIGCONT)

    def url(self, database: str, password: str = "") -> str:
        """Say how SQLAlchemy reaches a database as an ordinary user."""
        secret = f":{quote_plus(password)}" if password else ""
        return f"mysql+pymysql://{USER}{secret}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement as the administrator and give its rows."""
        connection = self._connect_as_administrator()
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall())
        finally:
            connection.close()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _socket(self) -> Path:
        return self._folder / "socket"

    @property
    def _log(self) -> Path:
        return self._folder / "error.log"

    @property
    def _user_option(self) -> list[str]:
        # The server refuses to be root unless told to.
        return ["--user=root"] if os.geteuid() == 0 else []

    def _fill_data_folder(self) -> None:
        command = [str(self._programs.installer), "--no-defaults", *self._user_option]
        command += [f"--datadir={self._data}", "--auth-root-authentication-method=normal", "--skip-test-db"]
        # Two that are filled at the same time meet in a shared folder: their temporary tables have one name.
        with tempfile.TemporaryDirectory(prefix="mariadb-tmp-", dir="/tmp") as folder:
            command.append(f"--tmpdir={folder}")
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"mariadb-install-db failed:\n{done.stdout}\n{done.stderr}")

    def _wait_until_it_answers(self) -> None:
        give_up_at = time.monotonic() + BOOT_LIMIT_S
        while True:
            try:
                self._connect_as_administrator().close()
            except pymysql.err.OperationalError:
                if self._running.poll() is not None or time.monotonic() > give_up_at:
                    raise RuntimeError(f"mariadbd did not come up:\n{self._log.read_text()}") from None
                time.sleep(0.02)
            else:
                return

    def _connect_as_administrator(self) -> pymysql.Connection[pymysql.cursors.Cursor]:
        return pymysql.connect(unix_socket=str(self._socket), user="root", autocommit=True, ssl_disabled=True)
