"""Fixtures for all tests, and the services that some of them need.

A test that needs a service is skipped by name if the service cannot be had, and the last lines of the
run say which. Where everything must run, ``REQUIRE_SERVICES=1`` turns each such skip into a failure.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
from debian import ProgramMissingError, provide_program
from gevent import monkey
from hypothesis import settings
from mariadb import PASSWORD, MariaDBMissingError, MariaDBServer, find_mariadb

MARKERS: Final = {
    "mariadb": "needs a MariaDB server of its own",
    "asterisk": "needs an Asterisk of its own",
    "package": "needs root, and a fresh Debian root folder",
    "slow": "takes more than some seconds",
}

PROJECT: Final = Path(__file__).resolve().parent.parent
DATABASE_SCENARIO: Final = PROJECT / "tests" / "external" / "database_scenario.py"
#: Some hundred times what a scenario takes here.
SCENARIO_LIMIT_S: Final = 120.0

_NO_MARIADB: Final = "no MariaDB"
#: How the reasons of skips begin that name a missing service.
_NO_SERVICE: Final = (_NO_MARIADB, "no Asterisk", "no languages", "no Debian", "no Chromium", "no promtool")
_database_numbers = itertools.count(1)

# A machine that stands still for a moment breaks the deadline of any example, and the limit for making it.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest what our markers mean."""
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that did not run for want of a service."""
    skipped = [
        report.nodeid
        for report in terminalreporter.getreports("skipped")
        if any(reason in str(report.longrepr) for reason in _NO_SERVICE)
    ]
    if skipped:
        terminalreporter.section(f"{len(skipped)} tests skipped for want of a service")
        terminalreporter.write_line("\n".join(skipped))


def _do_without(reason: str) -> NoReturn:
    """Skip the test, or fail it where everything must run."""
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


class ManualClock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now_s


@pytest.fixture
def need_program() -> Callable[..., Path]:
    """Give a function that finds or installs a program; see :func:`debian.provide_program`."""

    def need(name: str, package: str) -> Path:
        try:
            return provide_program((name,), package)
        except ProgramMissingError as error:
            _do_without(str(error))

    return need


@pytest.fixture
def clock() -> ManualClock:
    """Give a clock that stands still until it is told."""
    return ManualClock()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDBServer]:
    """One MariaDB server for the whole run. Who stops it has to start it again."""
    missing, programs = "", None
    try:
        programs = find_mariadb()
    except MariaDBMissingError as error:
        missing = f"{_NO_MARIADB}: {error}"
    if programs is None:
        _do_without(missing)
    with MariaDBServer(programs) as server:
        yield server


@pytest.fixture
def mariadb_url(mariadb: MariaDBServer) -> Iterator[str]:
    """Lead to a fresh MariaDB database, as an ordinary user, with the password."""
    name = f"test_{next(_database_numbers)}"
    mariadb.execute(f"CREATE DATABASE {name}")
    yield mariadb.url(name, PASSWORD)
    mariadb.execute(f"DROP DATABASE {name}")


@pytest.fixture(params=["sqlite", pytest.param("mariadb", marks=pytest.mark.mariadb)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Lead to a fresh database, of each kind that we promise to treat alike."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    url: str = request.getfixturevalue("mariadb_url")
    return url


@pytest.fixture
def start_scenario() -> Iterator[Callable[[str, str], subprocess.Popen[str]]]:
    """Give a function that starts a scenario (its name, a URL) in a process that gevent patches."""
    processes: list[subprocess.Popen[str]] = []

    def start(name: str, url: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, DATABASE_SCENARIO, name, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with process:
            process.kill()


@pytest.fixture
def run_scenario(
    start_scenario: Callable[[str, str], subprocess.Popen[str]],
) -> Callable[[str, str], dict[str, Any]]:
    """Give a function that runs a scenario to its end and gives what it found."""

    def run(name: str, url: str) -> dict[str, Any]:
        output, _ = start_scenario(name, url).communicate(timeout=SCENARIO_LIMIT_S)
        facts: dict[str, Any] = json.loads(output.splitlines()[-1])
        return facts

    return run


@pytest.fixture(autouse=True, scope="module")
def _left_as_it_was() -> Iterator[None]:
    """See that no module of tests replaces Python's own modules by gevent's: others would fail for it."""
    patched = monkey.is_module_patched("socket")
    yield
    assert monkey.is_module_patched("socket") is patched, "this module of tests patched Python for gevent"
