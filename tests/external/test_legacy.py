"""A legacy script, run by the real Asterisk itself and run for it by the pool: it must not see a difference.

The script writes down all that it is given. What may differ is named here, and nothing else may.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from service import PoolService

from .asterisk.calls import CallDone, PlacedCall, Telephone
from .conftest import PoolFactory

pytestmark = pytest.mark.asterisk

_SCRIPT: Final = Path(__file__).resolve().parents[1] / "legacy/scripts/recorder.agi"
_MANY: Final = 200
_AT_ONCE: Final = 30
#: As the dialplan writes them; Asterisk parts them at the commas.
_WORDS: Final = ("plain", "two words", "", "it's")
#: Lines of the environment that tell of one call and no other, or of the way that it came.
_OWN_LINES: Final = ("agi_channel", "agi_uniqueid", "agi_threadid", "agi_request")
#: Variables that Asterisk sets for a script. It has others of its own, of its build, and hands them down;
#: the pool gives the lines of the environment as AGI_... too. Source: launch_script() in res/res_agi.c.
_GIVEN: Final = re.compile("AST_.*_DIR|AST_CONFIG_FILE")
_CALLER: Final = '"Alice B." <100>'


class _Legacy:
    """The script, and the two ways to it.

    Attributes:
        ways: What stands in AGI(), by name.
    """

    def __init__(self, folder: Path, pool: PoolService, script: Path) -> None:
        self._folder = folder
        self.ways = {
            "asterisk": str(script),
            "spawned": f"agi://{pool.address}/spawned/{script.name}",
            "precompiled": f"agi://{pool.address}/precompiled/{script.name}",
        }

    def place(self, telephone: Telephone, way: str, *words: str) -> PlacedCall:
        """Place a call to the script; returns at once."""
        arguments = ",".join((str(self._folder), *words))
        return telephone.call(self.ways[way], arguments, callerid=_CALLER)

    def record(self, call: PlacedCall) -> dict[str, Any]:
        """Return what the script wrote down in a call."""
        record: dict[str, Any] = json.loads((self._folder / f"{call.uniqueid}.json").read_text())
        return record

    def await_record(self, call: PlacedCall, pool: PoolService) -> dict[str, Any]:
        """Return the same once it is there: a script may write it after the end of its call."""
        path = self._folder / f"{call.uniqueid}.json"
        pool.await_that(path.exists, f"lets the script write {path}")
        return self.record(call)


@pytest.fixture(scope="module")
def pool(pools: PoolFactory, run_folder: Path) -> PoolService:
    """A pool that runs the script, spawned and precompiled."""
    folder = run_folder / "agi-bin"
    folder.mkdir()
    shutil.copy(_SCRIPT, folder)
    (folder / _SCRIPT.name).chmod(0o755)
    command = str(folder / _SCRIPT.name)
    routes = [
        {"script": f"spawned/{_SCRIPT.name}", "command": command},
        {"script": f"precompiled/{_SCRIPT.name}", "command": command, "precompile": "perl"},
    ]
    return pools.start({}, {"routes": routes})


@pytest.fixture(scope="module")
def legacy(pool: PoolService, run_folder: Path) -> _Legacy:
    """The script and the ways to it."""
    folder = run_folder / "script-records"
    folder.mkdir()
    return _Legacy(folder, pool, run_folder / "agi-bin" / _SCRIPT.name)


def _comparable(record: dict[str, Any]) -> dict[str, Any]:
    """Take out what tells of one call and no other, or of the way that it came."""
    lines = [line for line in record["environment"] if line.partition(":")[0] not in _OWN_LINES]
    # Asterisk names its own folders, which are those of this run.
    variables = [name for name in sorted(record["variables"]) if _GIVEN.fullmatch(name)]
    return {**record, "environment": lines, "variables": variables}


def _call_all(telephone: Telephone, legacy: _Legacy, way: str) -> list[tuple[PlacedCall, CallDone]]:
    """Place all calls, some at once, and see them to their ends."""
    placed: list[PlacedCall] = []
    ended: list[tuple[PlacedCall, CallDone]] = []
    for _ in range(_MANY):
        if len(placed) - len(ended) == _AT_ONCE:
            ended.append((placed[len(ended)], placed[len(ended)].done()))
        placed.append(legacy.place(telephone, way, *_WORDS))
    ended += [(call, call.done()) for call in placed[len(ended) :]]
    return ended


def _names(lines: Sequence[str]) -> list[str]:
    return [line.partition(":")[0] for line in lines]


def test_script_cannot_tell_the_pool_from_asterisk(legacy: _Legacy, telephone: Telephone) -> None:
    """In 200 calls each way the script is given the same, line by line, and leaves the same behind."""
    found = {way: _call_all(telephone, legacy, way) for way in legacy.ways}
    for way, calls in found.items():
        assert {done.status for _, done in calls} == {"SUCCESS"}, way
        assert {done.variables["RESULT"] for _, done in calls} == {"a b"}, way
    wanted = _comparable(legacy.record(found["asterisk"][0][0]))
    assert wanted["arguments"][1:] == list(_WORDS)
    assert len(wanted["replies"]) == 12
    assert len(wanted["variables"]) == 11
    for way, calls in found.items():
        for call, _ in calls:
            assert _comparable(legacy.record(call)) == wanted, way


def test_environment_has_the_lines_of_asterisk(legacy: _Legacy, telephone: Telephone) -> None:
    """The lines come in Asterisk's order, those of the network left out; the request is the script's name."""
    calls = {way: legacy.place(telephone, way, *_WORDS) for way in legacy.ways}
    for call in calls.values():
        assert call.done().status == "SUCCESS"
    lines = {way: legacy.record(call)["environment"] for way, call in calls.items()}
    assert _names(lines["spawned"]) == _names(lines["precompiled"]) == _names(lines["asterisk"])
    assert not [name for name in _names(lines["spawned"]) if name.startswith("agi_network")]
    for way in ("spawned", "precompiled"):
        assert f"agi_request: {way}/{_SCRIPT.name}" in lines[way]
        assert f"agi_uniqueid: {calls[way].uniqueid}" in lines[way]


@pytest.mark.parametrize("way", ["asterisk", "spawned", "precompiled"])
def test_hangup_in_the_middle(legacy: _Legacy, telephone: Telephone, pool: PoolService, way: str) -> None:
    """A caller who hangs up during a prompt makes SIGHUP for the script, and AGISTATUS is HANGUP."""
    call = legacy.place(telephone, way, "hangup")
    call.await_command("STREAM FILE silence10")
    call.hang_up()
    assert call.done().status == "HANGUP"
    assert legacy.await_record(call, pool)["signals"] == ["HUP"]


@pytest.mark.parametrize("way", ["asterisk", "spawned", "precompiled"])
def test_exit_code(legacy: _Legacy, telephone: Telephone, way: str) -> None:
    """A script that ends with exit code 3 has failed, and what it set before is there."""
    done = legacy.place(telephone, way, "exit3").done()
    assert done.status == "FAILURE"
    assert done.variables["RESULT"] == "a b"
    if way != "asterisk":
        assert done.variables["FAGI_STATUS"] == "EXIT"
        assert re.search(r"exit code 3\b", done.error)
