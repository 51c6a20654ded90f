"""Programs that tests need and that Debian has: found, or installed where that is possible.

Laws:
    * On Debian root gets what is missing from the machine's own package sources; elsewhere it is said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

#: Some ten times what fetching and unpacking takes on a slow line.
_APT_TIMEOUT_S: Final = 900.0


class ProgramMissingError(Exception):
    """A program is not on this machine, and cannot be installed; the text says what to do."""


def provide_program(names: tuple[str, ...], *packages: str) -> Path:
    """Find a program; install it if that is possible.

    Args:
        names: What it may be called, the first that is there being taken.
        *packages: What brings it, on Debian.

    Raises:
        ProgramMissingError: With the reason.
    """
    found = _find(names)
    if found is None:
        install(names[0], packages)
        found = _find(names)
    if found is None:
        raise ProgramMissingError(f"no {names[0]}, though {' '.join(packages)} is installed")
    return found


def _find(names: tuple[str, ...]) -> Path | None:
    found = next(filter(None, map(shutil.which, names)), None)
    return None if found is None else Path(found)


def install(name: str, packages: tuple[str, ...]) -> None:
    """Install packages.

    Args:
        name: What is missing, for messages.
        packages: What brings it, on Debian.

    Raises:
        ProgramMissingError: With the reason.
    """
    if not Path("/etc/debian_version").exists():
        raise ProgramMissingError(f"no {name}, and this is no Debian to install it on")
    if os.geteuid() != 0:
        raise ProgramMissingError(f"no {name}; as root: apt-get install {' '.join(packages)}")
    words = ("install", "-y", "--no-install-recommends", *packages)
    if not _apt_get(*words):
        _apt_get("update")
        if not _apt_get(*words):
            raise ProgramMissingError(f"no {name}: apt-get could not install {' '.join(packages)}")


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
