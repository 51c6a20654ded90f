"""Fixtures of the tests with a running server: pools that end with their test, and evidence if it failed."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from service import PoolService

_PROJECT: Final = Path(__file__).resolve().parents[2]
_HERE: Final = Path(__file__).resolve().parent
#: Where files go when a test has failed.
_EVIDENCE: Final = _PROJECT / ".test-failures/integration"
_FAILED: Final = pytest.StashKey[bool]()

#: Scripts that most tests want, by the function of the same name in ``pool_handlers``.
SCRIPTS: Final = (
    "hello",
    "held",
    "raising",
    "exiting",
    "escaping",
    "printing",
    "endless",
    "stubborn",
    "spinning",
    "blocking",
    "deadly",
    "growing",
    "writing",
)


class Pools:
    """Makes pools, and ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pools: list[PoolService] = []

    def make(
        self,
        settings: Mapping[str, Any] | None = None,
        routes: list[dict[str, Any]] | None = None,
        code: Mapping[str, str] | None = None,
    ) -> PoolService:
        """Write the files of a pool, but do not start it.

        Args:
            settings: Further keys of the configuration.
            routes: Instead of one for each of ``SCRIPTS``.
            code: Modules to write, by file name, into the folder ``code`` of the pool; handlers in
                them can be named in routes.
        """
        folder = self.folder / f"pool-{len(self._pools)}"
        (folder / "code").mkdir(parents=True)
        for name, text in (code or {}).items():
            (folder / "code" / name).write_text(text)
        if routes is None:
            routes = [route(script, f"pool_handlers:{script}") for script in SCRIPTS]
        paths = {"python_path": [str(folder / "code"), str(_HERE)]}
        pool = PoolService(folder, _HERE, routes, {**paths, **(settings or {})})
        self._pools.append(pool)
        return pool

    def start(
        self,
        settings: Mapping[str, Any] | None = None,
        routes: list[dict[str, Any]] | None = None,
        code: Mapping[str, str] | None = None,
    ) -> PoolService:
        """Make a pool and start it; see :meth:`make`."""
        pool = self.make(settings, routes, code)
        pool.start()
        return pool

    def end(self) -> None:
        """End every pool as an operator would, and see that nothing of it is left.

        Raises:
            PoolFailed: Something is.
        """
        for pool in self._pools:
            if pool.runs:
                pool.signal(signal.SIGINT)
                pool.wait()
            pool.await_that_all_ended()

    def kill(self) -> None:
        """End whatever is left, by force."""
        for pool in self._pools:
            pool.kill()


def route(script: str, handler: str, **settings: Any) -> dict[str, Any]:
    """Write one route."""
    return {"script": script, "handler": handler, **settings}


@pytest.fixture
def pools(request: pytest.FixtureRequest) -> Iterator[Pools]:
    """Make pools that end with the test; its files are kept if it failed."""
    yield from _pools(request)


@pytest.fixture(scope="module")
def shared_pools(request: pytest.FixtureRequest) -> Iterator[Pools]:
    """Make pools that end with the module, for tests that leave them as they are."""
    yield from _pools(request)


def _pools(request: pytest.FixtureRequest) -> Iterator[Pools]:
    # Unix sockets want a short path.
    with tempfile.TemporaryDirectory(prefix="pool-", dir="/tmp", ignore_cleanup_errors=True) as name:
        made = Pools(Path(name))
        good = False
        try:
            yield made
            made.end()
            good = not request.node.stash.get(_FAILED, False)
        finally:
            made.kill()
            if not good:
                _keep_evidence(Path(name), _EVIDENCE / request.node.name.replace("/", "_"))


def _keep_evidence(folder: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for path in folder.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember that a test failed: for itself and for its module."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        if item.parent is not None:
            item.parent.stash[_FAILED] = True
    return report
