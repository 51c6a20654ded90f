"""fastagi_pool.running: how a process becomes the master; the rest is in ``integration``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from fastagi_pool.running import _inherited_sockets
from fastagi_pool.takeover import VARIABLE

#: Imports what becomes the master, and says which of the forbidden it has loaded.
_IMPORTING: Final = """
import sys
import fastagi_pool.cli
print([name for name in ("gevent", "sqlalchemy", "pydantic", "yaml", "pymysql") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("environment", "sockets"),
    [
        ({}, ()),
        ({"LISTEN_FDS": "2"}, ()),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "1"}, ()),
        ({"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid())}, (3, 4)),
        ({"LISTEN_PID": str(os.getpid())}, ()),
    ],
)
def test_sockets_of_systemd(environment: dict[str, str], sockets: tuple[int, ...]) -> None:
    """Sockets are taken over only if they are meant for this process."""
    assert _inherited_sockets(environment) == sockets


def test_master_is_plain() -> None:
    """The command line brings no gevent, no database and no reader of configurations into the master."""
    done = subprocess.run((sys.executable, "-c", _IMPORTING), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("purpose", ["try:", ""])
def test_what_cannot_be_taken_over(purpose: str, tmp_path: Path) -> None:
    """A state that is not understood is the end of the attempt, in one line and without a traceback."""
    with (tmp_path / "state").open("w+") as file:
        file.write('{"kind": 0}')
        file.flush()
        done = subprocess.run(
            (sys.executable, "-m", "fastagi_pool", "run", "--demo"),
            env={**os.environ, VARIABLE: f"{purpose}{file.fileno()}"},
            pass_fds=(file.fileno(),),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("cannot take over: the running server is of another kind")
    assert len(done.stderr.splitlines()) == 1
