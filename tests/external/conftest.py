"""Fixtures of the tests with a real Asterisk.

The environment may say: ASTERISK_ROOT, the folder of the unpacked program (default
``.cache/asterisk-<suite>`` of the project); ASTERISK_SUITE, the only Debian suite to take it from;
REQUIRE_SERVICES=1, fail rather than skip where Asterisk cannot be had.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from service import PoolService

from .asterisk.ami import AmiClient
from .asterisk.calls import Telephone
from .asterisk.gate import Gate
from .asterisk.packages import SUITES, AsteriskUnavailable, Installation, install
from .asterisk.server import AsteriskServer

_PROJECT: Final = Path(__file__).resolve().parents[2]
_HANDLERS: Final = Path(__file__).resolve().parent
#: Where logs go when a test has failed.
_EVIDENCE: Final = _PROJECT / ".test-failures/asterisk"


class Records:
    """What the handlers of ``asterisk_handlers`` wrote down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, uniqueid: str) -> list[dict[str, Any]]:
        """Return what each session of a call saw, in order; see ``asterisk_handlers.Witness``."""
        path = self.folder / f"{uniqueid}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class PoolFactory:
    """Starts pools, and ends them all."""

    def __init__(self, folder: Path, records: Records) -> None:
        self._folder = folder
        self._records = records
        self._pools: list[PoolService] = []

    def start(
        self, handlers: Mapping[str, str | Mapping[str, Any]], settings: Mapping[str, Any] | None = None
    ) -> PoolService:
        """Start a pool and return when it is ready.

        Args:
            handlers: Scripts, or globs of them, and the ``module:function`` of each, or all keys of its
                route; modules beside this file can be named.
            settings: Further keys of the configuration.
        """
        folder = self._folder / f"pool-{len(self._pools)}"
        folder.mkdir()
        routes = [
            {
                "glob" if "*" in pattern else "script": pattern,
                "options": {"results": str(self._records.folder)},
                **({"handler": handler} if isinstance(handler, str) else handler),
            }
            for pattern, handler in handlers.items()
        ]
        pool = PoolService(folder, _HANDLERS, routes, settings)
        self._pools.append(pool)
        pool.start()
        return pool

    def kill(self) -> None:
        """End all that a test has left."""
        for pool in self._pools:
            pool.kill()


@pytest.fixture(scope="session")
def run_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder with a short path for everything of this test run; its logs are kept if a test failed."""
    with tempfile.TemporaryDirectory(prefix="agi-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)
        if request.session.testsfailed:
            _keep_evidence(Path(name))


@pytest.fixture(scope="session")
def asterisk(run_folder: Path) -> Iterator[AsteriskServer]:
    """A running private Asterisk; skips, or fails under REQUIRE_SERVICES=1, where none can be had."""
    try:
        installation = _installation()
    except AsteriskUnavailable as error:
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(f"no Asterisk: {error}")
        pytest.skip(f"no Asterisk: {error}")
    server = AsteriskServer(installation, run_folder / "asterisk")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def telephone(asterisk: AsteriskServer) -> Iterator[Telephone]:
    """Places calls through the private Asterisk."""
    with AmiClient(asterisk.ami_port) as ami:
        yield Telephone(ami)


@pytest.fixture(scope="session")
def records(run_folder: Path) -> Records:
    """What the handlers wrote down."""
    folder = run_folder / "results"
    folder.mkdir()
    return Records(folder)


@pytest.fixture(scope="session")
def pools(run_folder: Path, records: Records) -> Iterator[PoolFactory]:
    """Starts pools."""
    factory = PoolFactory(run_folder, records)
    yield factory
    factory.kill()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A closed gate, where handlers wait until the test opens it."""
    with Gate() as closed:
        yield closed


def _keep_evidence(folder: Path) -> None:
    shutil.rmtree(_EVIDENCE, ignore_errors=True)
    for path in folder.rglob("*"):
        if path.suffix in {".log", ".yaml", ".jsonl"} or path.name in {"messages", "console", "output"}:
            target = _EVIDENCE / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def _installation() -> Installation:
    suite = os.environ.get("ASTERISK_SUITE")
    root = os.environ.get("ASTERISK_ROOT")
    suites = (suite,) if suite else SUITES
    return install(
        [(name, Path(root).resolve() if root else _PROJECT / f".cache/asterisk-{name}") for name in suites]
    )
