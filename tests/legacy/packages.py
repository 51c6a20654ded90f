"""The languages that the scripts of these tests are written in, with the libraries that they use.

Laws:
    * On Debian root gets what is missing from the machine's own package sources; elsewhere it is said.
    * pyst2 is not installed here: it comes with the project's extra ``dev``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

_PACKAGES: Final = ("perl", "libasterisk-agi-perl", "php-cli")
#: Some ten times what fetching and unpacking takes on a slow line.
_APT_TIMEOUT_S: Final = 600.0


class LanguagesMissingError(Exception):
    """A language or a library is not on this machine, and cannot be installed; the text names it."""


def provide_languages() -> None:
    """Make sure that Perl with Asterisk::AGI, PHP, and pyst2 are here.

    Raises:
        LanguagesMissingError: With the reason.
    """
    if importlib.util.find_spec("asterisk") is None:
        raise LanguagesMissingError("no pyst2; install the project's extra dev")
    missing = _missing()
    if missing:
        _install(missing)
        missing = _missing()
    if missing:
        raise LanguagesMissingError(f"no {missing}, though {', '.join(_PACKAGES)} are installed")


def _missing() -> str:
    """Name what is not here; empty if all is."""
    if not _has_perl():
        return "perl with Asterisk::AGI"
    return "" if shutil.which("php") else "php"


def _has_perl() -> bool:
    if shutil.which("perl") is None:
        return False
    command = ("perl", "-MAsterisk::AGI", "-e", "1")
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _install(missing: str) -> None:
    packages = " ".join(_PACKAGES)
    if not Path("/etc/debian_version").exists():
        raise LanguagesMissingError(f"no {missing}, and this is no Debian to install it on")
    if os.geteuid() != 0:
        raise LanguagesMissingError(f"no {missing}; as root: apt-get install {packages}")
    install = ("install", "-y", "--no-install-recommends", *_PACKAGES)
    if not _apt_get(*install):
        _apt_get("update")
        if not _apt_get(*install):
            raise LanguagesMissingError(f"no {missing}: apt-get could not install {packages}")


def _apt_get(*arguments: str) -> bool:
    done = subprocess.run(
        ("apt-get", "-qq", *arguments),
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_APT_TIMEOUT_S,
        check=False,
    )
    return done.returncode == 0
