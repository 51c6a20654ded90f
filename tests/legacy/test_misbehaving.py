"""Scripts that do what none should: the limits hold, the call beside them goes on, and the log says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from integration.conftest import Pools
from integration.opencall import OpenCall
from service import PoolService, pids

from fastagi_pool.testing import HANGUP, AgiStatus, Behaviour, play_call

from .agibin import route, write
from .family import launcher_of, zygotes

#: Every script but those that say otherwise ends by itself, or within this of the end of its time.
_GRACE: Final = "200ms"
_ALL: Final[Mapping[str, Any]] = {"process": {"grace": _GRACE, "max_output": "4KB"}, "script_timeout": "1s"}
_ENVIRONMENT: Final = 'while read -r line && [ -n "$line" ]; do :; done\n'
#: What a script in the shell begins with.
_SH: Final = "#!/bin/sh\n" + _ENVIRONMENT


@dataclass(frozen=True, slots=True)
class _Misdeed:
    """A script, and what must come of it.

    Attributes:
        text: The script; ``@NOTE@`` stands for a file that it may write.
        fagi_status: What the pool says of it; empty if all is well.
        told: A pattern of what FAGI_ERROR, or else the log, says.
        status: What the dialplan finds in AGISTATUS.
        precompile: The language, if it is precompiled.
        process: Further keys of ``process``.
        behaviour: What the caller does.
        note: What the script writes into its file; empty for nothing.
    """

    text: str
    fagi_status: str
    told: str = ""
    status: AgiStatus = AgiStatus.FAILURE
    precompile: str = ""
    process: Mapping[str, Any] = field(default_factory=dict)
    behaviour: Behaviour | None = None
    note: str = ""


_MISDEEDS: Final = {
    "line_without_end": _Misdeed(
        f"{_SH}exec tr '\\0' x < /dev/zero\n", "LIMIT", process={"max_output": "1MB"}
    ),
    "endless_lines": _Misdeed(f"{_SH}while :; do echo NOOP; done\n", "LIMIT"),
    "endless_lines_answered": _Misdeed(f"{_SH}while echo NOOP; do read -r reply; done\n", "LIMIT"),
    "endless_stderr": _Misdeed(
        f"{_SH}echo first words >&2\nwhile :; do echo noise >&2; done\n", "TIMEOUT", "first words"
    ),
    "stderr_without_end": _Misdeed(f"{_SH}tr '\\0' x < /dev/zero >&2\n", "TIMEOUT", "x{1000}"),
    "never_reads": _Misdeed("#!/bin/sh\nexec sleep 1000\n", "TIMEOUT"),
    "half_a_line": _Misdeed(f"{_SH}printf ANSW\nexec sleep 1000\n", "TIMEOUT"),
    "ignores_sighup": _Misdeed(f"{_SH}trap '' HUP\nwhile :; do sleep 1000; done\n", "TIMEOUT"),
    "children_ignore_sighup": _Misdeed(
        f"{_SH}(trap '' HUP; sleep 1000; sleep 1000) &\n(trap '' HUP; exec sleep 1000) &\nwait\n", "TIMEOUT"
    ),
    "children_of_a_hangup": _Misdeed(
        f"{_SH}(trap '' HUP; exec sleep 1000) &\necho 'WAIT FOR DIGIT 5000'\nread -r reply\nwait\n",
        "",
        status=AgiStatus.HANGUP,
        behaviour=Behaviour(presses=[HANGUP]),
    ),
    "eats_memory": _Misdeed(
        "#!python\nfor line in iter(input, ''):\n    pass\nfood = bytearray(1 << 31)\nprint('NOOP')\n",
        "EXIT",
        "MemoryError",
        process={"max_memory": "512MB"},
    ),
    "eats_memory_precompiled": _Misdeed(
        "#!python\nfor line in iter(input, ''):\n    pass\nfood = bytearray(1 << 31)\nprint('NOOP')\n",
        "EXIT",
        "MemoryError",
        precompile="python",
        process={"max_memory": "512MB"},
    ),
    "burns_cpu": _Misdeed(
        f"{_SH}while :; do :; done\n", "LIMIT", "processor time", process={"cpu_time": "1s"}
    ),
    "burns_cpu_precompiled": _Misdeed(
        "#!/usr/bin/perl\nwhile (1) { $n++; }\n",
        "LIMIT",
        "processor time",
        precompile="perl",
        process={"cpu_time": "1s"},
    ),
    "goes_on_in_silence": _Misdeed(
        f"{_SH}trap '' HUP\necho NOOP\nread -r reply\nexec 1>&-\necho late > @NOTE@\nexit 0\n",
        "",
        status=AgiStatus.SUCCESS,
        note="late\n",
    ),
    "executes_another": _Misdeed(
        f"""{_SH}exec perl -e '$| = 1; print "SET VARIABLE BY perl\\n"; <STDIN>; exit 0'\n""",
        "",
        status=AgiStatus.SUCCESS,
    ),
    "dies_at_once": _Misdeed("#!/bin/sh\nkill -KILL $$\n", "EXIT", "SIGKILL"),
    "dies_at_once_precompiled": _Misdeed(
        "#!/usr/bin/perl\nkill 'SEGV', $$;\nsleep 100;\n", "EXIT", "SIGSEGV", precompile="perl"
    ),
}
#: Those that end for another reason must come so far before their time is over, on a busy machine too; and
#: those that fill their standard error must have begun to.
_TIMES: Final = {
    **{name: "20s" for name, misdeed in _MISDEEDS.items() if misdeed.fagi_status != "TIMEOUT"},
    **dict.fromkeys(("endless_stderr", "stderr_without_end"), "3s"),
}
_KEEPING: Final = (
    f'{_SH}echo \'NOOP beside\'\nread -r reply\necho "SET VARIABLE REPLY \\"$reply\\""\nread -r reply\n'
)


@pytest.fixture(scope="module")
def pool(shared_pools: Pools, languages: None) -> PoolService:
    """A pool of one worker, with a route for each misdeed and one for the well-behaved call beside it."""
    folder = shared_pools.folder / "agi-bin"
    routes = [route("keeping", write(folder, "keeping.agi", _KEEPING))]
    for name, misdeed in _MISDEEDS.items():
        text = misdeed.text.replace("@NOTE@", str(folder / f"{name}.note"))
        process = {**_ALL["process"], **misdeed.process}
        settings = {"script_timeout": _TIMES.get(name, _ALL["script_timeout"]), "process": process}
        routes.append(route(name, write(folder, f"{name}.agi", text), misdeed.precompile, **settings))
    pool = shared_pools.start({"workers": 1}, routes)
    # What the launcher has yet to start is not what a script has left.
    pool.await_log(r"is ready: \d+ files", sum(bool(each.precompile) for each in _MISDEEDS.values()))
    return pool


def _note_of(pool: PoolService, name: str) -> Path:
    return pool.folder.parent / "agi-bin" / f"{name}.note"


@pytest.mark.parametrize("name", _MISDEEDS)
def test_limits_hold(pool: PoolService, name: str) -> None:
    """Dialplan and log learn what it was, the call beside it hears nothing, and no process is left."""
    misdeed = _MISDEEDS[name]
    launcher_of(pool)
    with OpenCall(pool.address, "keeping") as beside:
        assert beside.command() == "NOOP beside"
        before = pids(pool.processes())
        result = play_call(pool.url(name), (), None, misdeed.behaviour)
        assert result.status is misdeed.status, result.dialogue[-5:]
        assert result.variables.get("FAGI_STATUS", "") == misdeed.fagi_status
        compiled = pids(zygotes(pool, f"{name}.agi")) if misdeed.precompile else set()
        pool.await_that(lambda: pids(pool.processes()) <= before | compiled, "ends what the script left")
        beside.reply("200 result=7")
        assert beside.command() == 'SET VARIABLE REPLY "200 result=7"'
        assert beside.release() is AgiStatus.SUCCESS
    if misdeed.fagi_status:
        ref = result.variables["FAGI_REF"]
        pool.await_log(rf"WARNING.*call={re.escape(ref)}.*\b{name}\b|call={re.escape(ref)}.*WARNING")
        assert re.search(misdeed.told, result.variables["FAGI_ERROR"] + pool.logged())
    if misdeed.note:
        note = _note_of(pool, name)
        pool.await_that(lambda: note.exists() and note.read_text(), "lets the script write its file")
        assert note.read_text() == misdeed.note


def test_stderr_is_dropped_and_counted(pool: PoolService) -> None:
    """What a script writes to its standard error beyond max_output is not in the log, but that it was is."""
    result = play_call(pool.url("endless_stderr"))
    ref = result.variables["FAGI_REF"]
    pool.await_log(rf"call={ref}.*dropped")
    noisy = [line for line in pool.logged().splitlines() if ref in line and line.endswith("noise")]
    assert 0 < len(noisy) <= 4096 // len("noise\n")


def test_places_are_given_back(pool: PoolService) -> None:
    """After all misdeeds the worker, its descriptors and its places are as at the beginning."""
    (worker,) = pool.serving()
    opened = Path(f"/proc/{worker.pid}/fd")
    assert pool.call("dies_at_once").variables["FAGI_STATUS"] == "EXIT"
    before = len(list(opened.iterdir()))
    for name in ("dies_at_once", "never_reads", "endless_lines"):
        pool.call(name)
    pool.await_that(lambda: len(list(opened.iterdir())) <= before, "has closed all descriptors")
    assert [each.pid for each in pool.serving()] == [worker.pid]
