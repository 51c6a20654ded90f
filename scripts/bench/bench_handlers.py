"""Handlers for the measurements: what no demonstration needs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import gevent
from gevent.event import Event

from fastagi_pool.call import Call
from fastagi_pool.context import Context

_LOOK_S: Final = 0.1


def setup(context: Context) -> None:
    """Make the gate at which the calls of this worker wait."""
    context.state["gate"] = Event()


def held(call: Call, context: Context) -> None:
    """Wait until the gate opens, and only then say something: so a call that was lost said nothing.

    Options:
        gate: Path of the file whose appearance opens the gate.
    """
    gate: Event = context.state["gate"]
    if "keeper" not in context.state:
        # One greenlet looks for the file, not each of thousands of calls.
        context.state["keeper"] = gevent.spawn(_open_when_there, Path(context.options["gate"]), gate)
    gate.wait()
    call.verbose("released")


def _open_when_there(path: Path, gate: Event) -> None:
    while not path.exists():
        gevent.sleep(_LOOK_S)
    gate.set()
