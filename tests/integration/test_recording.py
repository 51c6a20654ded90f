"""Recording: calls of a running pool are written down while it serves, and played again afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from service import COMMAND, PoolService, sleeps

from fastagi_pool.recording import ORDER_SUFFIX, Transcript, read_transcripts
from fastagi_pool.testing import AgiStatus, Behaviour, Caller, CallResult, play_call

from .conftest import Pools, route

#: Some twenty times what a recording of a few calls takes.
_LIMIT_S: Final = 30.0
_PIN: Final = "4711"
_NOBODY: Final = 65534

_CODE: Final = """\
def menu(call, context):
    call.answer()
    choice = call.wait_for_digit(5)
    call.set_variable("CHOICE", choice)
    call.verbose("caller " + call.request.callerid)


def pin(call, context):
    call.answer()
    dialled = call.get_data("agent-pass", timeout_s=5, max_digits=4).digits
    call.set_variable("PIN", dialled)
    call.exec("Dial", "PJSIP/99" + dialled + "1")
    call.noop("-".join(dialled))
    call.get_variable("PIN")
"""
_ROUTES: Final = [
    route("menu", "recorded_handlers:menu"),
    route("other", "recorded_handlers:menu", name="another"),
    route("pin", "recorded_handlers:pin", mask_digits=True),
]


@pytest.fixture
def pool(pools: Pools) -> PoolService:
    """Run a pool of two workers."""
    return pools.start(routes=_ROUTES, code={"recorded_handlers.py": _CODE})


def place(pool: PoolService, script: str, number: str = "100", *arguments: str) -> CallResult:
    """Place a call in which the caller dials, and see it to its end."""
    press = _PIN if script == "pin" else "7"
    result = play_call(pool.url(script), arguments, Caller(number=number), Behaviour(presses=[press]))
    assert result.status is AgiStatus.SUCCESS
    return result


@contextmanager
def recording(pool: PoolService, *options: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run ``fastagi-pool record`` meanwhile; it is ended by force if it has not ended itself."""
    command = (*COMMAND, "record", "-c", pool.config_path, *options)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def record(pool: PoolService, call: Callable[[int], object], *options: str | Path) -> list[Transcript]:
    """Place calls, one after the other, until ``fastagi-pool record`` has enough; return what it has.

    Args:
        pool: Where.
        call: Places a call; takes its number, from 0.
        options: Of the command; the file is added.
    """
    output = pool.folder / "calls.jsonl"
    deadline_s = time.monotonic() + _LIMIT_S
    with recording(pool, *options, "-o", output) as process:
        number = 0
        while process.poll() is None and time.monotonic() < deadline_s:
            call(number)
            number += 1
        _, complaints = process.communicate(timeout=_LIMIT_S)
    found = list(read_transcripts(output.read_text().splitlines()))
    assert (process.returncode, complaints) == (0, f"{len(found)} calls recorded\n")
    return found


def replay(pool: PoolService) -> subprocess.CompletedProcess[str]:
    """Play what was recorded to the pool's handlers as they are now."""
    command = (*COMMAND, "replay", "-c", pool.config_path, pool.folder / "calls.jsonl")
    # The handlers may have changed within the second by which Python knows compiled code.
    environment = {"PYTHONDONTWRITEBYTECODE": "1", "PATH": ""}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_LIMIT_S, check=False, env=environment
    )


def orders(pool: PoolService) -> list[str]:
    """Name the files of orders."""
    return sorted(path.name for path in (pool.folder / "run/recordings").glob("*"))


def test_calls_are_whole(pool: PoolService) -> None:
    """So many calls as wanted are recorded, each with all that was said, and nothing is left behind."""
    found = record(pool, lambda number: place(pool, "menu"), "--calls", "5")
    assert len(found) == 5
    for each in found:
        assert (each.route, each.outcome, each.masked) == ("menu", "ok", False)
        assert each.environment["agi_network_script"] == "menu"
        assert [(turn.who, turn.line) for turn in each.turns] == [
            ("S", "ANSWER"),
            ("A", "200 result=0"),
            ("S", "WAIT FOR DIGIT 5000"),
            ("A", "200 result=55"),
            ("S", "SET VARIABLE CHOICE 7"),
            ("A", "200 result=1"),
            ("S", 'VERBOSE "caller 100" 1'),
            ("A", "200 result=1"),
        ]
        times = [turn.at_s for turn in each.turns]
        assert times == sorted(times)
    refs = {each.ref for each in found}
    assert len(refs) == 5
    # The first lines are of calls that came before the order.
    pool.await_that(lambda: refs <= {line.get("call") for line in pool.access_lines()}, f"has logged {refs}")
    assert orders(pool) == []


def test_one_route_and_one_number(pool: PoolService) -> None:
    """With --route and --callerid only calls that fit both are recorded."""

    def call(number: int) -> None:
        place(pool, "menu", "+491")
        place(pool, "other", "+431")
        place(pool, "other", "+491")

    options = ("--route", "an*", "--callerid", "+49*", "--calls", "3")
    found = record(pool, call, *options)
    assert [(each.route, each.environment["agi_callerid"]) for each in found] == [("another", "+491")] * 3


def test_one_in_so_many(pools: Pools) -> None:
    """With --one-in a worker records every so manieth call, and none between."""
    pool = pools.start({"workers": 1}, _ROUTES, {"recorded_handlers.py": _CODE})
    found = record(
        pool, lambda number: place(pool, "menu", "100", str(number)), "--one-in", "3", "--calls", "3"
    )
    first, *others = (int(each.environment["agi_arg_1"]) for each in found)
    assert others == [first + 3, first + 6]


def test_masked_digits(pool: PoolService) -> None:
    """On a route with mask_digits what callers dial is nowhere in the file, however it is repeated."""
    found = record(pool, lambda number: place(pool, "pin"), "--calls", "3")
    text = (pool.folder / "calls.jsonl").read_text()
    assert all(each.masked for each in found)
    assert [turn.line for turn in found[0].turns] == [
        "ANSWER",
        "200 result=0",
        "GET DATA agent-pass 5000 4",
        "200 result=****",
        "SET VARIABLE PIN ****",
        "200 result=1",
        "EXEC Dial PJSIP/*******",
        "200 result=0",
        "NOOP *-*-*-*",
        "200 result=0",
        "GET VARIABLE PIN",
        "200 result=1 (****)",
    ]
    assert _PIN not in text
    done = replay(pool)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_recorder_that_is_killed(pool: PoolService) -> None:
    """If the command is killed the pool serves on, and ends the order itself when its time is over."""
    with recording(pool, "--for", "4s") as process:
        # By its name: what the order is written into before would be left for good.
        pool.await_that(lambda: any(name.endswith(ORDER_SUFFIX) for name in orders(pool)), "has an order")
        assert len(orders(pool)) == 2
        process.kill()
    pool.await_that(lambda: place(pool, "menu") and not orders(pool), "has ended the order")
    assert len(pool.serving()) == 2
    assert pool.runs


def test_recorder_that_is_interrupted(pool: PoolService) -> None:
    """Ctrl-C ends the command in good order: what came before is written, the order is taken back."""
    output = pool.folder / "calls.jsonl"

    def has_recorded() -> bool:
        place(pool, "menu")
        return output.exists() and output.stat().st_size > 0

    with recording(pool, "-o", output) as process:
        pool.await_that(has_recorded, "has recorded a call")
        # A call that is in the file may not be counted yet.
        pool.await_that(lambda: sleeps(process.pid), "has a recorder that looks for more calls")
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=_LIMIT_S)
    found = list(read_transcripts(output.read_text().splitlines()))
    assert found
    assert (process.returncode, complaints) == (0, f"{len(found)} calls recorded\n")
    assert orders(pool) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_goes_on_as_the_pools_user(pools: Pools, pool: PoolService) -> None:
    """Root records as the user to whom the runtime folder belongs, with nothing more than his rights."""
    folder, output = pool.folder / "run", pool.folder / "calls.jsonl"
    os.chown(folder, _NOBODY, _NOBODY)
    pools.folder.chmod(0o755)

    def has_recorded() -> bool:
        place(pool, "menu")
        return output.exists() and output.stat().st_size > 0

    with recording(pool, "-o", output) as process:
        pool.await_that(has_recorded, "has recorded a call")
        status = Path(f"/proc/{process.pid}/status").read_text()
        owners = {path.stat().st_uid for path in (folder / "recordings").iterdir()}
    ids = [line.split() for line in status.splitlines() if line.startswith(("Uid:", "Gid:", "Groups:"))]
    assert ids == [["Uid:", *["65534"] * 4], ["Gid:", *["65534"] * 4], ["Groups:"]]
    assert owners == {_NOBODY}


def test_what_was_recorded_is_played_again(pool: PoolService) -> None:
    """The same handler goes as recorded; after it was changed the difference is shown, by exit code too."""
    record(pool, lambda number: place(pool, "menu", f"20{number % 10}"), "--calls", "3")
    done = replay(pool)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("3 of 3 calls went as recorded\n")
    (pool.folder / "code/recorded_handlers.py").write_text(_CODE.replace('"CHOICE"', '"CHOSEN"'))
    done = replay(pool)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("   -SET VARIABLE CHOICE 7\n   +SET VARIABLE CHOSEN 7\n") == 3
    assert done.stdout.endswith("0 of 3 calls went as recorded\n")


def test_a_hangup_is_played_again(pool: PoolService) -> None:
    """A caller who hung up when recorded hangs up at the same place again."""

    def hangs_up(number: int) -> None:
        result = play_call(pool.url("menu"), behaviour=Behaviour(hangup_after=1))
        assert result.status is AgiStatus.HANGUP

    found = record(pool, hangs_up, "--calls", "2")
    assert {each.outcome for each in found} == {"hangup"}
    done = replay(pool)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
