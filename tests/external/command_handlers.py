"""The handler for the tests of commands: it carries out a plan that the test wrote.

The plan is a file, named in the query: a pickled list of steps, each a method of ``Call``, its arguments
and its named arguments. What came of each step is written, pickled too, to ``<plan>.done``, so that the
test sees the very values that a handler gets; of an AGIError its class. A step that ended the call is the
last, and leaves the class of what it raised.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.errors import AGIError, CallEnded


def perform(call: Call, context: Context) -> None:
    """Carry out the plan, each step whatever came of the one before."""
    plan = Path(call.request.query["plan"])
    done: list[Any] = []
    try:
        for method, arguments, named in pickle.loads(plan.read_bytes()):
            try:
                done.append(method(call, *arguments, **named))
            except AGIError as error:
                done.append(type(error))
    except CallEnded as ended:
        done.append(type(ended))
        raise
    finally:
        plan.with_suffix(".done").write_bytes(pickle.dumps(done))
