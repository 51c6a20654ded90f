"""A private Asterisk from Debian's own packages: downloaded and unpacked, never installed.

Laws:
    * Nothing of the machine changes and no root is needed: apt works with its own lists, an empty
      dpkg status of its own and its own cache, all beside the target folder and gone afterwards.
    * The mirror is the one that the machine's own apt uses and is written down nowhere. Signatures
      are checked with the machine's Debian keyring.
    * What cannot be had on this machine is :class:`AsteriskUnavailable`, with the reason.

How it works: the programs run with their own dynamic loader and C library, so the age of the
machine's does not matter. Only the libraries of the asterisk binary itself are fetched; those that
its 350 modules want besides are left out, since ``conf/modules.conf`` loads only some that need none.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Suites that carry Asterisk 22, the first choice first. Bookworm and trixie have none.
SUITES: Final = ("forky", "sid")

_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TOOLS: Final = ("apt-get", "apt-cache", "dpkg-deb")
#: One run of apt: 27 MB in the worst case, on a slow line.
_APT_TIMEOUT_S: Final = 600.0
#: Depends of the libraries that do nothing for a program that is only unpacked.
_NOT_WANTED = re.compile(r"debconf.*|cdebconf|perl.*|dpkg|tar")
_RELEASE_URI = re.compile(r"'(\S+)/dists/\S+/InRelease'")

#: Check-Valid-Until: a frozen mirror's Release files are older than they say they may be.
_APT_CONF: Final = """\
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::Retries "2";
Acquire::http::Timeout "20";
"""


class AsteriskUnavailable(Exception):
    """This machine cannot get or run the private Asterisk; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Installation:
    """An unpacked Asterisk.

    Attributes:
        root: The folder into which the packages were unpacked.
    """

    root: Path

    @property
    def exists(self) -> bool:
        """Whether it has been unpacked."""
        return self.binary.is_file()

    @property
    def binary(self) -> Path:
        """The asterisk program; run it by :meth:`command` only."""
        return self.root / "usr/sbin/asterisk"

    @property
    def modules(self) -> Path:
        """The folder of Asterisk's modules."""
        return next(self.root.glob("usr/lib/**/res_agi.so")).parent

    def command(self) -> tuple[str, ...]:
        """The words that start the program with its own loader and libraries."""
        triplet = f"{platform.machine()}-linux-gnu"
        libraries = [self.root / "usr/lib" / triplet, self.root / "lib" / triplet, self.root / "usr/lib"]
        loader = next(path for folder in libraries for path in sorted(folder.glob("ld-linux*.so.*")))
        return (str(loader), "--library-path", ":".join(map(str, libraries)), str(self.binary))


def install(choices: Sequence[tuple[str, Path]]) -> Installation:
    """Return an Asterisk that has been unpacked before, or unpack one: about 5 s and 55 MB.

    Safe to be called by several processes at once: the later ones wait for the first.

    Args:
        choices: Debian suites, each with the folder to make for it; the first choice first.

    Raises:
        AsteriskUnavailable: The machine has no apt, no Debian keyring or no way to the packages.
    """
    for _, root in choices:
        if Installation(root).exists:
            return Installation(root)
    mirror = _mirror()
    refusals = []
    for suite, root in choices:
        root.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _locked(root.with_name(root.name + ".lock")):
                if not Installation(root).exists:
                    _unpack(root, mirror, suite)
        except AsteriskUnavailable as error:
            refusals.append(f"{suite}: {error}")
        else:
            return Installation(root)
    raise AsteriskUnavailable("; ".join(refusals))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mirror() -> str:
    """The mirror of Debian's main archive that this machine's apt is set up for."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise AsteriskUnavailable(f"not a Debian machine: no {', '.join(missing)}")
    if not _KEYRING.is_file():
        raise AsteriskUnavailable(f"{_KEYRING} is missing: install debian-archive-keyring")
    # What `update` would fetch tells the mirrors even where no list has been fetched yet.
    uris = _apt(("apt-get", "update", "--print-uris"), os.environ)
    for mirror in _RELEASE_URI.findall(uris):
        if "security" not in mirror:
            return str(mirror)
    raise AsteriskUnavailable("the machine's apt sources name no mirror of the Debian archive")


def _unpack(root: Path, mirror: str, suite: str) -> None:
    """Download from one suite into a folder beside ``root`` and rename that at the very end."""
    folder = root.with_name(root.name + ".apt")
    part = root.with_name(root.name + ".part")
    for stale in (folder, part):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        packages = _download(folder, mirror, suite)
        part.mkdir()
        for package in packages:
            subprocess.run(("dpkg-deb", "-x", package, part), check=True)
        for name in ("doc", "man", "locale"):
            shutil.rmtree(part / "usr/share" / name, ignore_errors=True)
        shutil.rmtree(root, ignore_errors=True)
        part.rename(root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)


def _download(folder: Path, mirror: str, suite: str) -> list[Path]:
    for name in ("lists/partial", "cache/archives/partial", "debs"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n")
    (folder / "apt.conf").write_text(_APT_CONF.format(folder=folder))
    environment = {**os.environ, "APT_CONFIG": str(folder / "apt.conf")}
    _apt(("apt-get", "-qq", "update"), environment)
    if not _apt(("apt-cache", "madison", "asterisk"), environment).strip():
        raise AsteriskUnavailable(f"Debian's suite {suite} has no asterisk now")
    names = ["asterisk", "asterisk-modules", *_libraries(environment)]
    _apt(("apt-get", "-qq", "download", *names), environment, folder / "debs")
    return sorted((folder / "debs").glob("*.deb"))


def _libraries(environment: Mapping[str, str]) -> list[str]:
    """The libraries of the asterisk binary, and theirs."""
    depends = _apt(("apt-cache", "depends", "asterisk"), environment)
    direct = re.findall(r"Depends: (lib\S+)", depends)
    tree = _apt(("apt-cache", "depends", "--recurse", "--important", *direct), environment)
    names = set(re.findall(r"^[a-z0-9]\S*", tree, re.MULTILINE))
    return sorted(name for name in names if not _NOT_WANTED.fullmatch(name))


def _apt(command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            env={**environment, "LC_ALL": "C"},  # what it prints is read here
            cwd=folder,
            timeout=_APT_TIMEOUT_S,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AsteriskUnavailable(f"{' '.join(command[:3])} took more than {_APT_TIMEOUT_S:g} s") from error
    if done.returncode:
        raise AsteriskUnavailable(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-400:]}")
    return done.stdout
