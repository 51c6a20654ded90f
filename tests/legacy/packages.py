"""The languages that the scripts of these tests are written in, with the libraries that they use.

Laws:
    * On Debian root gets what is missing from the machine's own package sources; elsewhere it is said.
    * pyst2 is not installed here: it comes with the project's extra ``dev``.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from typing import Final

from debian import ProgramMissingError, install

_PACKAGES: Final = ("perl", "libasterisk-agi-perl", "php-cli")


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
        try:
            install(missing, _PACKAGES)
        except ProgramMissingError as error:
            raise LanguagesMissingError(str(error)) from None
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
