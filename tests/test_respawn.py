"""Respawn: a new interpreter finds this package wherever it lies, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import fastagi_pool
from fastagi_pool.respawn import interpreter_words
from fastagi_pool.version import VERSION

_TIME_LIMIT_S: Final = 30.0
_PACKAGE: Final = Path(fastagi_pool.__file__).parent


def _run(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=_TIME_LIMIT_S,
        check=False,
    )


def test_the_arguments_are_those_of_the_program(tmp_path: Path) -> None:
    """The program sees its own arguments only, and what its main function exits with is the exit code."""
    done = _run(*interpreter_words("fastagi_pool.cli"), "--version", folder=tmp_path)
    assert (done.returncode, done.stdout.split()[-1]) == (0, VERSION)
    assert _run(*interpreter_words("fastagi_pool.cli"), "no-such-command", folder=tmp_path).returncode == 2


def test_a_package_that_nobody_else_finds(tmp_path: Path) -> None:
    """A package that is on no search path but its starter's is found, as in the Debian package."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "fastagi_pool").symlink_to(_PACKAGE)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from fastagi_pool.respawn import interpreter_words; "
    code += "print(*interpreter_words('fastagi_pool.cli'), sep='\\0')"
    words = _run(sys.executable, "-c", code, str(hidden), folder=tmp_path).stdout.strip().split("\0")
    assert words[-1] == str(hidden)
    assert _run(*words, "--version", folder=tmp_path).returncode == 0


@pytest.mark.parametrize("name", ["click.py", "json.py", "fastagi_pool.py"])
def test_the_working_directory_is_not_searched(name: str, tmp_path: Path) -> None:
    """A file in the working directory that bears the name of a library is not taken for it."""
    (tmp_path / name).write_text("raise SystemExit(99)")
    assert _run(*interpreter_words("fastagi_pool.cli"), "--version", folder=tmp_path).returncode == 0
