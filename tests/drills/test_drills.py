"""The drills: whatever goes wrong, the log names the cause, nobody is told a lie, and the pool recovers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

PROJECT: Final = Path(__file__).resolve().parents[2]
PROGRAM: Final = PROJECT / "scripts" / "drills" / "run.py"
PAGE: Final = PROJECT / "docs" / "drills.md"
RULES: Final = PROJECT / "conf" / "prometheus-rules.yaml"
NAMES: Final = (
    "blocked-hub",
    pytest.param("slow-database", marks=pytest.mark.mariadb),
    pytest.param("database-away", marks=pytest.mark.mariadb),
    "worker-killed",
    "memory-leak",
    "port-taken",
    "pool-full",
    "bad-reload",
    "disk-full",
    "master-killed",
)
#: Some ten times what a drill takes.
_LIMIT_S: Final = 100.0
_NOT_RUN: Final = 3


def drill(*words: str) -> subprocess.CompletedProcess[str]:
    """Run drills."""
    command = [sys.executable, str(PROGRAM), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_drill(name: str) -> None:
    """What goes wrong on purpose is seen, logged with its cause, told truthfully, and got over."""
    done = drill("--short", name)
    if done.returncode == _NOT_RUN and os.environ.get("REQUIRE_SERVICES") != "1":
        pytest.skip(done.stdout.splitlines()[-1].partition("NOT RUN: ")[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"=== {name}: as it should be" in done.stdout
    assert "callers heard:" in done.stdout
    assert "recovered: " in done.stdout


def test_unknown_drill() -> None:
    """Who misspells a drill is told which there are, and it is the ten that are tested here."""
    done = drill("no-such-drill")
    names = [each if isinstance(each, str) else str(each.values[0]) for each in NAMES]
    assert done.returncode == 2
    assert f"there are {', '.join(names)}" in done.stderr


def test_page() -> None:
    """The page shows each drill, and the alarms that it names exist."""
    text = PAGE.read_text("utf-8")
    names = [each if isinstance(each, str) else str(each.values[0]) for each in NAMES]
    assert re.findall(r"^`([a-z-]+)`: ", text, re.MULTILINE) == names
    alarms = set(re.findall(r"^Alarm: `(\w+)`", text, re.MULTILINE))
    assert alarms <= set(re.findall(r"alert: (\w+)", RULES.read_text("utf-8")))
    assert alarms
