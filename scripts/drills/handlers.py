"""Handlers for the drills: a good one, and what operators meet besides.

Laws:
    * Whoever has served a call to its end says so: without SERVED=yes nobody has, whatever AGISTATUS says.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from gevent import monkey
from sqlalchemy import text

from fastagi_pool.call import Call
from fastagi_pool.context import Context

_FOR_EVER_S: Final = 3600.0
_LOOK_S: Final = 0.02
#: What one call of the leak keeps.
_LEAK_BYTES: Final = 4 << 20


def quick(call: Call, context: Context) -> None:
    """Serve a call as a good handler does."""
    call.noop("quick")
    call.set_variable("SERVED", "yes")


def held(call: Call, context: Context) -> None:
    """Serve a call, but not before the file in the option ``gate`` is there."""
    call.noop("held")
    gate = Path(context.options["gate"])
    while not gate.exists():
        time.sleep(_LOOK_S)
    call.set_variable("SERVED", "yes")


def blocks(call: Call, context: Context) -> None:
    """Wait as a foreign library does that knows nothing of gevent: nobody else in the worker gets a turn."""
    call.noop("blocks")
    monkey.get_original("time", "sleep")(_FOR_EVER_S)
    call.set_variable("SERVED", "yes")


def sleeps_in_database(call: Call, context: Context) -> None:
    """Send a statement that takes until somebody else lets go of a lock."""
    name = {"name": context.options["lock"]}
    with context.begin() as database:
        database.execute(text("SELECT GET_LOCK(:name, 60)"), name)
        database.execute(text("SELECT RELEASE_LOCK(:name)"), name)
    call.set_variable("SERVED", "yes")


def asks_database(call: Call, context: Context) -> None:
    """Send a statement that is answered at once, if there is anybody to answer."""
    with context.begin() as database:
        database.execute(text("SELECT 1"))
    call.set_variable("SERVED", "yes")


def leaks(call: Call, context: Context) -> None:
    """Keep memory that nobody needs any more."""
    call.noop("leaks")
    context.state.setdefault("leaked", []).append(b"\1" * _LEAK_BYTES)
    call.set_variable("SERVED", "yes")
