"""Handlers for the tests of the running server: each does one thing that a real one might."""

from __future__ import annotations

import os
import signal
import sys
import time

from gevent import monkey

from fastagi_pool.call import Call
from fastagi_pool.context import Context

_FOR_EVER_S = 3600.0


class Escape(BaseException):
    """What no handler should raise."""


def hello(call: Call, context: Context) -> None:
    """Tell the dialplan which worker served the call."""
    call.set_variable("PID", str(os.getpid()))


def held(call: Call, context: Context) -> None:
    """Wait for Asterisk's answer to a command that names the worker, then tell the dialplan."""
    call.noop(f"held by {os.getpid()}")
    call.set_variable("PID", str(os.getpid()))


def raising(call: Call, context: Context) -> None:
    """Have a bug."""
    raise RuntimeError("on purpose")


def exiting(call: Call, context: Context) -> None:
    """Try to end the process."""
    sys.exit(7)


def escaping(call: Call, context: Context) -> None:
    """Raise what ``except Exception`` does not catch."""
    raise Escape("on purpose")


def printing(call: Call, context: Context) -> None:
    """Print, as people do while they look for a fault."""
    print("looking for a fault")
    call.set_variable("PID", str(os.getpid()))


def endless(call: Call, context: Context) -> None:
    """Never return, but let others run."""
    time.sleep(_FOR_EVER_S)


def stubborn(call: Call, context: Context) -> None:
    """Never return, whatever it is told."""
    while True:
        try:
            call.noop(f"held by {os.getpid()}")
            time.sleep(_FOR_EVER_S)
        except BaseException:
            continue


def spinning(call: Call, context: Context) -> None:
    """Once the test lets it, calculate for ever and let nobody else run."""
    call.noop(f"held by {os.getpid()}")
    while True:
        pass


def blocking(call: Call, context: Context) -> None:
    """Once the test lets it, wait in a way that gevent knows nothing of."""
    call.noop(f"held by {os.getpid()}")
    monkey.get_original("time", "sleep")(_FOR_EVER_S)


def deadly(call: Call, context: Context) -> None:
    """End the process, as a fault in a library does, if the caller is the wrong one."""
    if "fatal" in call.request.query:
        os.kill(os.getpid(), signal.SIGSEGV)
    call.set_variable("PID", str(os.getpid()))


def growing(call: Call, context: Context) -> None:
    """Keep memory that nobody needs."""
    context.state.setdefault("kept", []).append(b"\1" * (100 << 20))
    call.set_variable("PID", str(os.getpid()))


def writing(call: Call, context: Context) -> None:
    """Write into the log."""
    context.log.warning("written by %d", os.getpid())
