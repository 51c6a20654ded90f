"""The same dialogue in every language, by every way: spawned and precompiled, as Asterisk itself runs it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from integration.conftest import Pools
from service import PoolService

from fastagi_pool.testing import HANGUP, AgiStatus, Behaviour, CallResult, play_call

from .agibin import SCRIPTS, WAYS, routes
from .localagi import LocalResult, run_locally

#: Calls of one script at the same time.
_AT_ONCE: Final = 8
_VARIABLES: Final = {"FIRST": "6", "SECOND": "7", "THIRD": "forty"}
#: What tells of a failure is set by the pool, not by the script.
_OURS: Final = ("FAGI_STATUS", "FAGI_ERROR", "FAGI_REF")


@dataclass(frozen=True, slots=True)
class _Task:
    """What a script is told to do, and what must come of it.

    Attributes:
        behaviour: What the caller does meanwhile.
        status: What the dialplan finds in AGISTATUS.
        fagi_status: What the pool says besides.
        result: What the script leaves in the variable RESULT.
        words: Further arguments of the script.
    """

    behaviour: Behaviour
    status: AgiStatus = AgiStatus.SUCCESS
    fagi_status: str = ""
    result: str | None = None
    words: Sequence[str] = ("nothing",)


_TASKS: Final = {
    "compute": _Task(
        Behaviour(variables=_VARIABLES), result="42-5", words=("two words", "", "b'c", "$(d)", "é%s")
    ),
    "exit3": _Task(Behaviour(variables=_VARIABLES), AgiStatus.FAILURE, "EXIT", "42-5"),
    "die": _Task(Behaviour(), AgiStatus.FAILURE, "EXIT"),
    "data": _Task(Behaviour(presses=["4711"]), result="4711"),
    "hangup": _Task(Behaviour(presses=["", "5", HANGUP]), AgiStatus.HANGUP),
}


@pytest.fixture(scope="module")
def pool(shared_pools: Pools, agi_bin: Path) -> PoolService:
    """A pool with a route for each way of each script."""
    return shared_pools.start({"workers": 1}, routes(agi_bin))


def _of_the_script(result: CallResult) -> list[str]:
    """Return the lines of the script itself, without what the pool says for it."""
    return [
        command.line
        for command in result.executed
        if command.words[:2] != ("SET", "VARIABLE") or command.words[2] not in _OURS
    ]


def _meaning(result: CallResult) -> list[tuple[str, ...]]:
    """Return the commands word by word: quotes differ between languages."""
    return [command.words for command in result.executed if command.line in _of_the_script(result)]


def _locally(agi_bin: Path, script: str, file: str, name: str, note: Path) -> LocalResult:
    task = _TASKS[name]
    words = [str(note)] if name == "hangup" else task.words
    result = run_locally(agi_bin / file, script, [name, *words], task.behaviour)
    if name == "hangup":
        assert note.read_text() == "gone\n"
        note.unlink()
    return result


@pytest.mark.parametrize("name", _TASKS)
def test_all_languages_say_the_same(agi_bin: Path, tmp_path: Path, name: str) -> None:
    """Run by Asterisk itself, the scripts of all languages send the same words: what follows can compare."""
    task = _TASKS[name]
    found = [_locally(agi_bin, file, file, name, tmp_path / "note") for file in SCRIPTS]
    assert [each.call.status for each in found] == [task.status] * len(SCRIPTS)
    assert [each.call.variables.get("RESULT") for each in found] == [task.result] * len(SCRIPTS)
    meanings = [_meaning(each.call) for each in found]
    assert meanings == [meanings[0]] * len(SCRIPTS)


@pytest.mark.parametrize("name", _TASKS)
@pytest.mark.parametrize(("script", "file"), WAYS, ids=[script for script, _ in WAYS])
def test_pool_is_no_other_asterisk(
    pool: PoolService, agi_bin: Path, tmp_path: Path, script: str, file: str, name: str
) -> None:
    """A script says through a pool, byte by byte, what it says to Asterisk; the dialplan sees the same."""
    task, note = _TASKS[name], tmp_path / "note"
    wanted = _locally(agi_bin, script, file, name, note)
    words = [str(note)] if name == "hangup" else task.words
    result = play_call(pool.url(script), [name, *words], None, task.behaviour)
    assert _of_the_script(result) == _of_the_script(wanted.call)
    assert result.status is wanted.call.status is task.status
    assert result.variables.get("FAGI_STATUS", "") == task.fagi_status
    ours = {key: value for key, value in result.variables.items() if key not in _OURS}
    assert ours == wanted.call.variables
    assert (result.faults, result.console) == (wanted.call.faults, wanted.call.console)
    if name == "hangup":
        pool.await_that(note.exists, f"lets the script write {note}")
    if task.fagi_status:
        assert f"exit code {wanted.returncode}" in result.variables["FAGI_ERROR"]


@pytest.mark.parametrize("script", [script for script, _ in WAYS])
def test_calls_at_the_same_time(pool: PoolService, script: str) -> None:
    """Calls of one script at the same time, each in a process of its own, do not mix their answers."""

    def multiply(number: int) -> str:
        behaviour = Behaviour(variables={**_VARIABLES, "SECOND": str(number)})
        return play_call(pool.url(script), ["compute", "nothing"], None, behaviour).variables["RESULT"]

    with ThreadPoolExecutor(_AT_ONCE) as callers:
        assert list(callers.map(multiply, range(_AT_ONCE))) == [f"{6 * n}-5" for n in range(_AT_ONCE)]
