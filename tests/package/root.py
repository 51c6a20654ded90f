"""Bare machines: a fresh root folder of Debian, and the machine that lives in it.

Laws:
    * A machine has its own processes, mounts, host name and network, which is loopback alone: nothing on it
      can disturb the tester's machine, and all of it ends with it.
    * The folder is made of the suite and the package sources of the tester's own machine, once; each test
      unpacks it anew.
    * Nothing waits for ever.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_FIRST_PROCESS: Final = Path(__file__).parent / "first_process.py"
#: Some ten times what fetching and unpacking takes here.
_IMAGE_TIMEOUT_S: Final = 600.0
_READY_TIMEOUT_S: Final = 120.0
_COMMAND_TIMEOUT_S: Final = 120.0
#: What a newcomer is told to install; its packages lie ready on the image, for the machine has no network.
_ON_OFFER: Final = ("make", "python3-venv")
_ENVIRONMENT: Final = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LC_ALL=C.UTF-8",
    "DEBIAN_FRONTEND=noninteractive",
)


class NoDebianError(Exception):
    """No root folder of Debian can be had here; the text says why."""


# --- the image


def provide_image(path: Path) -> None:
    """Make a root folder of this machine's own Debian, with Python, as a tar file, unless it is there.

    Raises:
        NoDebianError: With the reason.
    """
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    offered = f'chroot "$1" apt-get install --yes --download-only {" ".join(_ON_OFFER)}'
    with tempfile.TemporaryDirectory(prefix="image-", dir=path.parent) as name:
        fresh, settings = Path(name) / "root.tar", Path(name) / "apt.conf"
        settings.write_text(_own_apt_settings())
        words = (
            *("mmdebstrap", "--quiet", "--variant=apt", "--include=python3", f"--aptopt={settings}"),
            # What lies in the cache of apt is what one can install without a network.
            *("--customize-hook", 'chroot "$1" apt-get clean', "--customize-hook", offered),
            "--skip=cleanup/apt/lists,cleanup/apt/cache",
            *(_own_suite(), str(fresh), "-"),
        )
        done = subprocess.run(
            words,
            input="\n".join(_own_sources()),
            capture_output=True,
            text=True,
            timeout=_IMAGE_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise NoDebianError(f"mmdebstrap: {done.stderr.strip()[-1000:]}")
        fresh.rename(path)


def _own_suite() -> str:
    """Return the name of this machine's Debian."""
    found = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    if found is None:
        raise NoDebianError("/etc/os-release does not name a suite")
    return found[1]


def _own_sources() -> list[str]:
    """Return where this machine gets Debian from, in the form of sources.list."""
    form = "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)"
    listed = _output("apt-get", "indextargets", "--format", form, "Identifier: Packages")
    suite = _own_suite()
    rows = [line.split() for line in listed.splitlines()]
    found = [f"deb {row[1]} {row[2]} {row[3]}" for row in rows if len(row) == 4 and row[0] == "Debian"]
    found = [line for line in found if line.split()[2].split("-")[0] == suite]
    if not found:
        raise NoDebianError("apt-get knows no source of Debian's; run apt-get update")
    return found


def _own_apt_settings() -> str:
    """Return how this machine's apt reaches its sources: proxies, certificates, checks."""
    lines = _output("apt-config", "dump").splitlines()
    ways = ("Acquire::http", "Acquire::ftp", "Acquire::Check")
    return "\n".join([line for line in lines if line.startswith(ways)] + ['Acquire::Languages "none";', ""])


def _output(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=_READY_TIMEOUT_S).stdout


# --- the machine


class Machine:
    """A running machine."""

    def __init__(self, pid: int) -> None:
        """Reach the machine whose first process is, to us, this one."""
        self._pid = pid
        #: Its files, as they are seen by its processes.
        self.root = Path(f"/proc/{pid}/root")

    def words(self, script: str) -> tuple[str, ...]:
        """Return the command line that runs a shell script on the machine."""
        inside = ("--mount", "--pid", "--net", "--uts", "--ipc", "--root", "--wdns=/")
        return (*self._enter(*inside), "env", "-i", *_ENVIRONMENT, "sh", "-c", script)

    def words_in_its_network(self, *words: str | Path) -> tuple[str, ...]:
        """Return the command line that runs a program of ours in the machine's network."""
        return (*self._enter("--net"), *map(str, words))

    def run(self, script: str, expect: int = 0, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        """Run a shell script on the machine, and return what it prints.

        Raises:
            AssertionError: It ends with another exit code than expected.
        """
        done = subprocess.run(
            self.words(script),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == expect, f"{script!r} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def path(self, path: str) -> Path:
        """Return where a path of the machine is here."""
        return self.root / path.lstrip("/")

    def listing(self, is_left_out: Callable[[str], bool]) -> dict[str, str]:
        """Describe all files, so that two listings can be compared.

        Args:
            is_left_out: Whether a path of the machine, with all that is below, is not looked at.

        Returns:
            Rights, owner and content by path.
        """
        found: dict[str, str] = {}
        for folder, folders, files in os.walk(self.root):
            here = f"/{Path(folder).relative_to(self.root)}".removesuffix(".").removesuffix("/")
            folders[:] = [name for name in folders if not is_left_out(f"{here}/{name}")]
            for name in (*folders, *files):
                if not is_left_out(f"{here}/{name}"):
                    found[f"{here}/{name}"] = _described(Path(folder) / name)
        return found

    def _enter(self, *inside: str) -> tuple[str, ...]:
        return ("nsenter", f"--target={self._pid}", *inside, "--")


def _described(path: Path) -> str:
    facts = path.lstat()
    kind = stat.filemode(facts.st_mode)
    content = ""
    if stat.S_ISLNK(facts.st_mode):
        content = str(path.readlink())
    elif stat.S_ISREG(facts.st_mode):
        content = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return f"{kind} {facts.st_uid}:{facts.st_gid} {content}"


@contextmanager
def machine(image: Path) -> Iterator[Machine]:
    """Have a fresh machine, from the tar file of its root folder."""
    with tempfile.TemporaryDirectory(prefix="machine-", dir="/tmp") as root:
        own = ("--mount", "--pid", "--fork", "--net", "--uts", "--ipc", "--kill-child")
        words = ("unshare", *own, sys.executable, "-I", str(_FIRST_PROCESS), str(image), root)
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
            try:
                assert first.stdout is not None
                assert select.select([first.stdout], [], [], _READY_TIMEOUT_S)[0], "the machine is not ready"
                assert first.stdout.readline() == "ready\n", "the machine does not come up"
                children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
                yield Machine(int(children[0]))
            finally:
                _end(first)


def _end(first: subprocess.Popen[str]) -> None:
    """End a machine, and return when nothing of it runs any more."""
    assert first.stdin is not None
    first.stdin.close()
    try:
        first.wait(_READY_TIMEOUT_S)
    finally:
        first.kill()


def missing_program() -> str:
    """Say why no machine can be had here; empty if one can."""
    if not Path("/etc/debian_version").exists():
        return "this is none"
    if os.geteuid() != 0:
        return "only root can make a machine"
    missing = [name for name in ("unshare", "nsenter", "tar", "mount") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""
