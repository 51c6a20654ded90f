"""A pool in front of another one: nobody can tell which of them he has called, until one of them dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from integration.conftest import Pools
from integration.opencall import OpenCall
from service import PoolService

from fastagi_pool.testing import HANGUP, AgiStatus, Behaviour, CallResult, play_call

_HERE: Final = Path(__file__).resolve().parent
_SCRIPTS: Final = ("menu", "raising", "held")
_CROWD: Final = 1_000
#: Some twenty times what the crowd takes.
_CROWD_LIMIT_S: Final = 120.0


def _behind(pools: Pools, **settings: Any) -> PoolService:
    """Start the pool that has the handlers."""
    routes = [{"script": name, "handler": f"upstream_handlers:{name}"} for name in _SCRIPTS]
    return pools.start({"python_path": [str(_HERE)], **settings}, routes)


def _in_front(pools: Pools, addresses: Sequence[str], **settings: Any) -> PoolService:
    """Start the pool that has nothing but the way to others."""
    upstream: Any = addresses[0] if len(addresses) == 1 else list(addresses)
    return pools.start(settings, [{"glob": "**", "upstream": upstream}])


def _call(pool: PoolService, script: str, behaviour: Behaviour) -> CallResult:
    return play_call(f"agi://{pool.address}/{script}?x=1&y=%20", ["one", "two words", ""], None, behaviour)


def _told(result: CallResult, pool: PoolService) -> tuple[object, ...]:
    """Return all that there is to see of a call, without what is of one process and no other."""
    variables = {key: value for key, value in result.variables.items() if key != "FAGI_REF"}
    commands = [line for line in result.commands if "FAGI_REF" not in line]
    told = (result.status, commands, variables, result.console, result.faults, result.hung_up)
    return tuple(str(each).replace(pool.address, "ADDRESS") for each in told)


_BEHAVIOURS: Final = {
    "menu": ("menu", Behaviour(presses=["47#"])),
    "hangup": ("menu", Behaviour(presses=[HANGUP])),
    "hangup_between": ("menu", Behaviour(presses=["4711"], hangup_after=3)),
    "missing_file": ("menu", Behaviour(missing_files=["agent-pass"])),
    "raising": ("raising", Behaviour()),
    "nowhere": ("nowhere", Behaviour()),
}


@pytest.fixture(scope="module")
def two_pools(shared_pools: Pools) -> tuple[PoolService, PoolService]:
    """A pool in front, and the pool behind it."""
    back = _behind(shared_pools)
    return _in_front(shared_pools, [back.address]), back


@pytest.mark.parametrize("name", _BEHAVIOURS)
def test_dialogue_is_the_same(name: str, two_pools: tuple[PoolService, PoolService]) -> None:
    """Commands, variables, failures and hangups are through the pool in front as they are without it."""
    front, back = two_pools
    script, behaviour = _BEHAVIOURS[name]
    assert _told(_call(front, script, behaviour), front) == _told(_call(back, script, behaviour), back)


def test_thousand_calls_at_once(pools: Pools) -> None:
    """One worker in front holds a thousand calls at the same time, and each gets its own answers."""
    room = {"calls_per_worker": _CROWD, "max_queue": _CROWD}
    back = _behind(pools, **room)
    front = _in_front(pools, [back.address], workers=1, **room)
    host, _, port = front.address.rpartition(":")
    command = [sys.executable, str(_HERE / "crowd.py"), host, port, "held", str(_CROWD)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_CROWD_LIMIT_S, cwd=_HERE.parent.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"held": _CROWD, "good": _CROWD}
    assert len(front.await_access(_CROWD)) == _CROWD


def test_dead_upstream(pools: Pools) -> None:
    """While the server behind is away the dialplan is told UPSTREAM; it is used again when it is back."""
    back = _behind(pools)
    front = _in_front(pools, [back.address], workers=1)
    assert _call(front, "menu", Behaviour()).status is AgiStatus.SUCCESS
    back.stop()
    for _ in range(3):
        result = _call(front, "menu", Behaviour())
        assert result.status is AgiStatus.FAILURE
        assert result.variables["FAGI_STATUS"] == "UPSTREAM"
        assert back.address in result.variables["FAGI_ERROR"]
    back.configure(listen=[back.address])
    back.start()
    front.await_that(
        lambda: _call(front, "menu", Behaviour()).status is AgiStatus.SUCCESS, "uses the server again"
    )


def test_upstream_is_killed_in_the_middle(pools: Pools) -> None:
    """A call whose server dies in the middle ends at once, and truthfully; the second takes the next."""
    first, second = _behind(pools), _behind(pools)
    front = _in_front(pools, [first.address, second.address], workers=1)
    with OpenCall(front.address, "held") as call:
        assert call.command() == "NOOP held"
        first.kill()
        # The kernel of the dead closes the connection as one that has said all does, or resets it: then it
        # is known that something is missing. Or a witness that outlives its worker by a moment says so.
        failed = call.release() is AgiStatus.FAILURE
        told = [f"SET VARIABLE FAGI_STATUS {word}" for word in ("UPSTREAM", "CRASH")]
        assert failed == any(each in call.said for each in told), call.said
    assert _call(front, "menu", Behaviour()).status is AgiStatus.SUCCESS


def test_front_is_stopped(pools: Pools) -> None:
    """A pool in front that is stopped lets its calls finish, as any other does."""
    back = _behind(pools)
    front = _in_front(pools, [back.address])
    with OpenCall(front.address, "held") as call:
        assert call.command() == "NOOP held"
        front.signal(signal.SIGTERM)
        front.await_refusal()
        assert call.release() is AgiStatus.SUCCESS
        assert call.said[1] == "SET VARIABLE WHO 100"
    assert front.wait() == 0
