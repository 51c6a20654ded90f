"""A worker dies in the midst of a real Asterisk's calls: nobody is told a success that was none.

Every handler sets RESULT as its last act, so a call has finished if, and only if, RESULT is set. Which calls
were in the worker that died stands on its board at the moment of its death.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from service import PoolService

from fastagi_pool.callboard import CallFacts, CallState
from fastagi_pool.status import read_pool_calls

from .asterisk.ami import AmiError
from .asterisk.calls import CallDone, PlacedCall, Telephone
from .asterisk.gate import Gate
from .asterisk.server import AsteriskServer
from .conftest import PoolFactory

pytestmark = pytest.mark.asterisk

_MODULE: Final = "dying_worker_handlers"
#: Calls of each kind; 200 in all.
_HOW_MANY: Final = {
    "pressing": 50,
    "executing": 30,
    "playing": 40,
    "thinking": 30,
    "narrow": 20,
    "passing": 30,
}
#: What Asterisk is at when a call of a kind is in the midst of it.
_COMMANDS: Final = {"pressing": "WAIT FOR DIGIT", "executing": "EXEC Wait", "playing": "STREAM FILE"}
#: Kinds whose handlers stand at the gate; of the narrow ones at most one in each worker, and the others wait.
_AT_THE_GATE: Final = ("thinking", "narrow")
_WORKERS: Final = 2
#: Some ten times what a step with so many calls takes on a machine with nothing else to do.
_TIMEOUT_S: Final = 40.0


@dataclass
class Load:
    """Two hundred calls.

    Attributes:
        pool: The pool that serves them.
        telephone: Places them.
        gate: Where handlers stand.
        calls: Those that were placed, by kind.
    """

    pool: PoolService
    telephone: Telephone
    gate: Gate
    calls: dict[str, list[PlacedCall]] = field(default_factory=dict)

    def place(self, kind: str) -> None:
        """Place all calls of a kind; returns at once."""
        url = self.pool.url(f"{kind}?gate={self.gate.address}")
        self.calls[kind] = [self.telephone.call(url) for _ in range(_HOW_MANY[kind])]

    def await_the_midst(self) -> None:
        """Wait until all calls that take time are in the midst of it, and all others wait for their turn."""
        for kind in _AT_THE_GATE:
            self.place(kind)
        self.pool.await_that(self._all_stand, "has all calls at the gate or waiting", _TIMEOUT_S)
        # The application that nothing interrupts comes last: it must not be over too soon.
        for kind in ("pressing", "playing", "executing"):
            self.place(kind)
        for kind, command in _COMMANDS.items():
            for call in self.calls[kind]:
                call.await_command(command)

    def in_progress(self) -> list[CallFacts]:
        """Return what stands on the boards of the workers."""
        return read_pool_calls(Path(self.pool.config["runtime_dir"]), time.monotonic())

    def busiest(self) -> int:
        """Return the worker in which the most calls wait."""
        pids = Counter(each.pid for each in self.in_progress() if each.state is CallState.QUEUED)
        return pids.most_common(1)[0][0]

    def stop(self, pid: int) -> None:
        """Have a worker stand still, so that what it was doing can be seen."""
        os.kill(pid, signal.SIGSTOP)
        self.pool.await_that(
            lambda: any(each.pid == pid and each.state == "T" for each in self.pool.processes()),
            "has a worker that stands still",
        )

    def let_go(self) -> None:
        """Let everybody come to an end: keys are pressed, and the gate is open."""
        for kind in ("pressing", "playing"):
            for call in self.calls[kind]:
                with suppress(AmiError):  # It has ended.
                    call.press("5")
        self.gate.open()

    def ends(self) -> Iterator[tuple[str, PlacedCall, CallDone]]:
        """See each call to its end: its kind, the call and its end."""
        for kind, calls in self.calls.items():
            for call in calls:
                yield kind, call, call.done(_TIMEOUT_S)

    def _all_stand(self) -> bool:
        # Who has begun gives one command, and the gate is next.
        standing = [each for each in self.in_progress() if each.state is CallState.QUEUED or each.commands]
        return len(standing) == sum(_HOW_MANY[kind] for kind in _AT_THE_GATE)


@pytest.fixture
def load(pools: PoolFactory, telephone: Telephone, gate: Gate) -> Load:
    """A pool of two workers, and nobody calls yet."""
    lanes = {"narrow": {"max_active": 1, "max_queue": 100, "max_wait": "1h"}}
    handlers: dict[str, str | dict[str, str]] = {
        kind: f"{_MODULE}:{kind}" for kind in _HOW_MANY if kind != "narrow"
    }
    handlers["narrow"] = {"handler": f"{_MODULE}:thinking", "lane": "narrow"}
    return Load(pools.start(handlers, {"workers": _WORKERS, "lanes": lanes}), telephone, gate)


def _figures(outcomes: Iterable[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(Counter(outcomes).items()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_dying_worker_tells_the_truth(
    number: signal.Signals,
    load: Load,
    asterisk: AsteriskServer,
    record_property: Callable[[str, object], None],
) -> None:
    """Calls of a worker that dies are told a crash, those that had not begun and all others end well.

    Of the calls that come at that very moment each is either served or told a crash.
    """
    load.await_the_midst()
    victim = load.busiest()
    load.place("passing")
    load.stop(victim)
    of_victim = [each for each in load.in_progress() if each.pid == victim]
    moved = {each.uniqueid for each in of_victim if each.state is CallState.QUEUED}
    lost = {each.uniqueid for each in of_victim} - moved
    os.kill(victim, number)
    os.kill(victim, signal.SIGCONT)
    load.pool.await_log(r"told \d+ calls CRASH")
    load.let_go()

    outcomes: list[str] = []
    wrong = []
    for kind, call, done in load.ends():
        told = (done.status, done.variables["FAGI_STATUS"], done.variables["RESULT"])
        # Who died behind his last command has not said that he was done.
        finished, crashed = told == ("SUCCESS", "", "finished"), told[:2] == ("FAILURE", "CRASH")
        fair = finished or crashed if kind == "passing" else crashed if call.uniqueid in lost else finished
        if not fair:
            wrong.append((kind, call.uniqueid, call.uniqueid in lost, told, done.error))
        where = " taken over" if call.uniqueid in moved else ""
        outcomes.append(f"{'finished' if finished else 'crashed' if crashed else 'else'}{where}")
    figures = f"{len(outcomes)} calls, {len(lost)} begun in the worker that died: {_figures(outcomes)}"
    record_property("figures", figures)
    print(figures)
    assert not wrong, f"{figures}; {wrong}\n{load.pool.logged()}"
    assert len(outcomes) == sum(_HOW_MANY.values())
    # Those that had not begun were there to be seen, and so were those that had.
    assert moved
    assert len(lost) > 1

    load.pool.await_serving(_WORKERS)
    load.pool.await_that(
        lambda: "0 active channels" in asterisk.cli("core show channels"),
        "has left Asterisk without channels",
        _TIMEOUT_S,
    )
    assert load.pool.stop() == 0, load.pool.logged()
