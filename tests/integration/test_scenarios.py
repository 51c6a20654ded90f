"""Scenarios: calls that are written in a file, placed to the demonstration."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from service import COMMAND

from .conftest import Pools

_DEMONSTRATION: Final = Path(__file__).resolve().parents[1] / "scenarios/demo.yaml"
_LIMIT_S: Final = 60.0


def test_scenarios_of_the_demonstration(pools: Pools) -> None:
    """Every call that tests/scenarios/demo.yaml describes goes as expected there."""
    pool = pools.make()
    pool.launch(arguments=["--demo"], DEMO_PORT="0", TMPDIR=str(pool.folder), PYTHONUNBUFFERED="1")
    address = pool.await_log(r" listens on (\S+); ")[0][1]
    done = subprocess.run(
        (*COMMAND, "call", "--server", address, "--scenario", _DEMONSTRATION),
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.endswith("5 of 5 calls went as expected\n")
