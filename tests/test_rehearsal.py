"""The rehearsal leaves nothing behind, and plays every call to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from fastagi_pool.rehearsal import ROUNDS

#: A loader is patched before it imports anything, so this is told in a process of its own.
_SCRIPT = """
from gevent import monkey
monkey.patch_all(os=False, signal=False)
import gevent._hub_local, json, os
from fastagi_pool import rehearsal
from fastagi_pool.dispatch import Dispatcher

outcomes = []
serve = Dispatcher.serve
def watched(dispatcher, session):
    outcomes.append(serve(dispatcher, session))
    return outcomes[-1]
Dispatcher.serve = watched
before = len(os.listdir("/proc/self/fd"))
rehearsal.rehearse()
after = len(os.listdir("/proc/self/fd"))
print(json.dumps([outcomes, after - before, gevent._hub_local.get_hub_if_exists() is None]))
"""


def rehearse() -> list[Any]:
    """Rehearse in a fresh process; return the outcomes, the files left open, and whether no hub is left."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    facts: list[Any] = json.loads(done.stdout)
    return facts


def test_every_call_succeeds_and_nothing_is_left() -> None:
    """The calls go the way of real ones, and a loader that has rehearsed can be forked as before."""
    assert rehearse() == [[False] * ROUNDS, 0, True]
