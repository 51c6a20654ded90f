"""Tracing: a call that waits in the middle of its script is followed from the command line to its end."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Final

from service import COMMAND

from fastagi_pool.testing import AgiStatus, Behaviour, Caller, CallResult, play_call

from .conftest import Pools, route

_LIMIT_S: Final = 30.0

_CODE: Final = """\
import os

import gevent


def menu(call, context):
    call.answer()
    while not os.path.exists(context.options["gate"]):
        gevent.sleep(0.01)
    call.verbose("bye")
"""


def test_a_call_in_progress_is_joined(pools: Pools, tmp_path: Path) -> None:
    """A call that was there before the command is followed from then on, and the rest of it is shown."""
    gate = tmp_path / "gate"
    menu = route("menu", "traced_handlers:menu", options={"gate": str(gate)})
    pool = pools.start(routes=[menu], code={"traced_handlers.py": _CODE})
    results: list[CallResult] = []
    caller = threading.Thread(
        target=lambda: results.append(play_call(pool.url("menu"), (), Caller(number="55"), Behaviour()))
    )
    caller.start()
    pool.await_that(lambda: sum(each.active for each in pool.serving()) == 1, "has a call")
    wanted = ("--callerid", "5*", "--calls", "1", "--for", f"{_LIMIT_S:g}s")
    command = (*COMMAND, "trace", "-c", pool.config_path, *wanted)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        gate.touch()
        # Not communicate(): it knows nothing of what came in one piece with the first line.
        rest = process.stdout.read()
    caller.join(_LIMIT_S)
    assert "== call=" in first
    assert "it is in progress already" in rest
    assert "<- VERBOSE bye 1" in rest
    assert "== ended: ok" in rest
    assert [result.status for result in results] == [AgiStatus.SUCCESS]
    assert not list((pool.folder / "run" / "recordings").iterdir())
