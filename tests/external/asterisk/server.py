"""AsteriskServer: one private Asterisk in the foreground, in a run folder of its own.

Laws:
    * It listens on 127.0.0.1 only: the manager interface, on a port that was free. It takes no calls
      from outside; calls are made through the manager interface (:mod:`.calls`).
    * It is ended by its process id, and dies with the test run however that ends.
    * Started means fully booted, with no error in its log.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Final

from ports import free_port

from .ami import AMI_SECRET, AMI_USER
from .packages import Installation

#: Longest path of a Unix socket; ``run/asterisk.ctl`` is one. Source: unix(7), sun_path less its NUL.
MAX_SOCKET_PATH_BYTES: Final = 107

_CONF: Final = Path(__file__).with_name("conf")
_DIALPLANS: Final = Path(__file__).resolve().parents[3] / "conf"
_BOOT_TIMEOUT_S: Final = 20.0
_CLI_TIMEOUT_S: Final = 20.0
_CHANNELS_TIMEOUT_S: Final = 10.0
#: Parts of the core that complain when they find no file at all.
_EMPTY_CONF: Final = ("ccss", "cel", "features", "acl", "udptl", "stasis", "codecs", "dnsmgr", "http")
_SPOKEN: Final = ("digits", "letters", "phonetic")
_FOLDERS: Final = (
    *("etc", "lib", "agi-bin", "spool/tmp", "run", "log", "bin", "data/moh"),
    *(f"data/sounds/en/{name}" for name in _SPOKEN),
)
#: Bytes of raw sound (.sln) a second: 8,000 samples of 16 bits.
_SLN_BYTES_PER_S: Final = 16000
_SOUNDS_S: Final = {
    "silence100ms": 0.1,
    "silence1": 1.0,
    "silence10": 10.0,
    # So slow that a caller can interrupt the date and the time in which they occur.
    "digits/day-6": 2.0,
    "digits/p-m": 2.0,
}
_SYLLABLE: Final = bytes(round(0.1 * _SLN_BYTES_PER_S))
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz"
#: What the SAY commands need; each a syllable of silence. "digits/billion" is left out, for the test of
#: a sound that is missing.
_SYLLABLES: Final = (
    "beep",
    *(f"digits/{number}" for number in (*range(21), *range(30, 100, 10))),
    *(f"digits/h-{number}" for number in (*range(1, 21), 30)),
    *(f"digits/day-{number}" for number in range(6)),
    *(f"digits/mon-{number}" for number in range(12)),
    *(f"digits/{word}" for word in ("hundred", "thousand", "million", "minus")),
    *(f"digits/{word}" for word in ("oh", "oclock", "a-m", "at", "star", "pound")),
    *(f"letters/{word}" for word in (*_ALPHABET, "space", "dot", "dash", "at", "plus")),
    *(f"phonetic/{letter}_p" for letter in _ALPHABET),
)


class AsteriskFailed(Exception):
    """Asterisk did not start, or did not do what it was told; the text holds what it said."""


class AsteriskServer:
    """A private Asterisk.

    Attributes:
        ami_port: Where its manager interface listens on 127.0.0.1.
        log_folder: ``console`` and ``messages`` (warnings and errors) are written there.
        sound_folder: Where RECORD FILE writes.
    """

    def __init__(self, installation: Installation, run_folder: Path) -> None:
        """Prepare, but do not start.

        Args:
            installation: The unpacked program.
            run_folder: Made by :meth:`start`, so it must not exist, and kept at the end. Its path
                must be short: a Unix socket lies in it.

        Raises:
            ValueError: The path is too long.
        """
        self._socket = run_folder / "run/asterisk.ctl"
        if len(bytes(self._socket)) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"{self._socket} is longer than {MAX_SOCKET_PATH_BYTES} bytes")
        self._installation = installation
        self._run_folder = run_folder
        self._process: subprocess.Popen[bytes] | None = None
        self.log_folder = run_folder / "log"
        self.sound_folder = run_folder / "data/sounds"
        self.ami_port = 0

    def start(self) -> None:
        """Start and return when fully booted, in about 0.3 s.

        Raises:
            AsteriskFailed: It ended, took more than 20 s, or logged an error while booting.
            FileExistsError: The run folder is there already.
        """
        self.ami_port = free_port()
        self._lay_out_run_folder()
        with (self.log_folder / "console").open("wb") as console:
            self._process = subprocess.Popen(
                ("setpriv", "--pdeathsig", "KILL", *self._command(), "-f"),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "TZ": "UTC"},
            )
        try:
            self._await_boot(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it at once; nothing happens if it does not run.

        SIGKILL, because an orderly stop takes 2.7 s, and 17 s while a script holds a call.
        """
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def cli(self, command: str) -> str:
        """Run a console command, as ``core show channels``, and return what it prints.

        Raises:
            AsteriskFailed: Asterisk does not run.
        """
        done = self._ask(command)
        if done.returncode:
            raise AsteriskFailed(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def await_no_channels(self) -> None:
        """Wait until it holds no channel: a call's end is told before its channels are taken down.

        Raises:
            AsteriskFailed: It still holds one after 10 s.
        """
        deadline = time.monotonic() + _CHANNELS_TIMEOUT_S
        while "0 active channels" not in (shown := self.cli("core show channels")):
            if time.monotonic() > deadline:
                raise AsteriskFailed(f"Asterisk has forgotten channels:\n{shown}")
            time.sleep(0.02)

    def logged(self) -> str:
        """Return what it printed and logged."""
        paths = (self.log_folder / "console", self.log_folder / "messages")
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

    def _ask(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (*self._command(), "-rx", command),
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=_CLI_TIMEOUT_S,
            check=False,
        )

    def _command(self) -> tuple[str, ...]:
        return (*self._installation.command(), "-C", str(self._run_folder / "etc/asterisk.conf"))

    def _await_boot(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _BOOT_TIMEOUT_S
        while not self._socket.exists() or self._ask("core waitfullybooted").returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AsteriskFailed(f"Asterisk did not start:\n{self.logged()}")
            time.sleep(0.02)
        if " ERROR[" in self.logged():  # the manager's port was taken, a module is missing
            raise AsteriskFailed(f"Asterisk started with errors:\n{self.logged()}")

    def _lay_out_run_folder(self) -> None:
        self._run_folder.mkdir(parents=True)
        for name in _FOLDERS:
            (self._run_folder / name).mkdir(parents=True)
        # Without this file parts of the core do not load.
        documentation = self._installation.root / "usr/share/asterisk/documentation"
        (self._run_folder / "data/documentation").symlink_to(documentation)
        for name in _EMPTY_CONF:
            (self._run_folder / f"etc/{name}.conf").touch()
        self._write_conf()
        self._write_sounds()

    def _write_conf(self) -> None:
        values = {
            "RUN": str(self._run_folder),
            "MODULES": str(self._installation.modules),
            "DIALPLAN": str(_DIALPLANS / "extensions.conf"),
            "VICIDIAL_DIALPLAN": str(_DIALPLANS / "extensions-vicidial.conf"),
            "AMI_PORT": str(self.ami_port),
            "AMI_USER": AMI_USER,
            "AMI_SECRET": AMI_SECRET,
        }
        for template in _CONF.glob("*.conf"):
            text = re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], template.read_text())
            (self._run_folder / "etc" / template.name).write_text(text)

    def _write_sounds(self) -> None:
        english = self.sound_folder / "en"
        for name, seconds in _SOUNDS_S.items():
            (english / f"{name}.sln").write_bytes(bytes(round(seconds * _SLN_BYTES_PER_S)))
        for name in _SYLLABLES:
            (english / f"{name}.sln").write_bytes(_SYLLABLE)
        (self._run_folder / "data/moh/music.sln").write_bytes(bytes(_SLN_BYTES_PER_S))
