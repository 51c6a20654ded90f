"""fastagi_pool.pytest_plugin: found by pytest in any folder, and free of cost until a test asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fresh_pytest import run_pytest

_TEST: Final = """
def hello(call, context):
    call.verbose("hello")

def test_hello(agi_call):
    assert agi_call(hello).console == ("hello",)

def test_nothing_is_left_of_it(agi_call):
    assert agi_call(hello, hangup_after=0).status.value == "HANGUP"
"""
_COSTLY: Final = ("gevent", "sqlalchemy", "pydantic", "yaml", "fastagi_pool.stage")
_TEST_OF_COST: Final = f"""
import sys

def test_nothing_is_loaded():
    assert "fastagi_pool.pytest_plugin" in sys.modules
    assert [name for name in {_COSTLY!r} if name in sys.modules] == []
"""


def test_pytest_finds_the_fixture(tmp_path: Path) -> None:
    """A fresh folder needs nothing but a test that names the fixture."""
    (tmp_path / "test_hello.py").write_text(_TEST)

    done = run_pytest(tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_fixture_is_described(tmp_path: Path) -> None:
    """Pytest's own list of fixtures says what ours is for."""
    (tmp_path / "test_hello.py").write_text(_TEST)

    done = run_pytest(tmp_path, "--fixtures")

    assert "agi_call" in done.stdout
    assert "Places calls to handlers, in this process" in done.stdout


def test_no_cost_until_it_is_used(tmp_path: Path) -> None:
    """A run of pytest that places no call loads the plugin, but nothing that takes its time."""
    (tmp_path / "test_cost.py").write_text(_TEST_OF_COST)

    done = run_pytest(tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
