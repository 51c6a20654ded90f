"""Handlers of the pool that stands behind another one."""

from __future__ import annotations

from fastagi_pool.call import Call
from fastagi_pool.context import Context


def menu(call: Call, context: Context) -> None:
    """Say and ask a little of everything: long values, digits, a failing command, odd texts."""
    call.answer()
    dialled = call.get_data("agent-pass", timeout_s=5, max_digits=4).digits
    call.set_variable("DIALLED", dialled)
    call.set_variable("LONG", "x" * 900)
    call.verbose(f"{call.request.callerid}: {'|'.join(call.request.arguments)} {call.request.query}")
    call.exec("NoOp", (call.get_variable("LONG") or "")[:10])


def raising(call: Call, context: Context) -> None:
    """Have a bug, so that everything of a failure must be told through the pool in front."""
    call.answer()
    raise RuntimeError("on purpose")


def held(call: Call, context: Context) -> None:
    """Wait for the answer to a command, then tell who called."""
    call.noop("held")
    call.set_variable("WHO", call.request.callerid)
