"""Rotation by the pool itself: files are put aside under calls, and no line is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from service import PoolService

from .conftest import Pools, route
from .stream import CallStream

#: The least that the configuration takes.
_SIZE: Final = "64KB"
_ROUTES: Final = [route("hello", "pool_handlers:hello"), route("writing", "pool_handlers:writing")]


def start(pools: Pools, **settings: Any) -> PoolService:
    """Start a pool that puts its logs aside when they are large."""
    pool = pools.make(settings, routes=_ROUTES)
    rotate = {"size": _SIZE, "keep": 100}
    pool.configure(log={**pool.config["log"], "rotate": rotate})
    pool.start()
    return pool


def family(path: Path) -> list[Path]:
    """Return a log and what was put aside of it."""
    return sorted(each for each in path.parent.iterdir() if each.name.startswith(path.name))


def lines_of(path: Path) -> list[str]:
    """Return the lines of a log, and of what was put aside of it."""
    return [line for each in family(path) for line in each.read_text().splitlines()]


def fill(path: Path) -> None:
    """Make a log so large that it is due."""
    with path.open("a") as file:
        file.write("filling " * 9_000 + "\n")


def await_rotation(pool: PoolService, path: Path, files: int) -> None:
    """Wait until a log and what was put aside of it are so many files."""
    pool.await_that(lambda: len(family(path)) == files, f"rotates {path}")


def test_no_line_is_lost(pools: Pools) -> None:
    """While the access log is put aside again and again, each call leaves exactly one whole line."""
    pool = start(pools)
    with CallStream(pool.url("hello")) as stream:
        for _ in range(3):
            before = family(pool.access_path)
            fill(pool.access_path)
            await_rotation(pool, pool.access_path, len(before) + 1)
            stream.await_more(20)
    calls = len(stream.results)

    def access() -> list[str]:
        return [line for line in lines_of(pool.access_path) if "outcome=" in line]

    pool.await_that(lambda: len(access()) >= calls, f"has {calls} access lines")
    assert stream.lost == []
    assert len(access()) == calls
    assert all(line.count("outcome=ok") == 1 for line in access())
    assert "ERROR" not in pool.logged()


def test_everybody_follows(pools: Pools) -> None:
    """After a rotation all processes write to the new file, and nobody holds the old one."""
    pool = start(pools)
    fill(pool.log_path)
    await_rotation(pool, pool.log_path, 2)
    (aside,) = [each for each in family(pool.log_path) if each != pool.log_path]
    pool.await_that(lambda: not holders(pool, aside), f"lets go of {aside}")
    pool.await_log(rf"INFO master pid={pool.pid} {pool.log_path} was put aside as {aside.name}: its size")
    pool.await_that(
        lambda: holders(pool, pool.log_path) == {each.pid for each in pool.processes()}, "writes to the new"
    )
    pool.call("writing")
    pool.await_log("WARNING worker=.* written by")


def test_reload_switches_rotation(pools: Pools) -> None:
    """A reload that switches rotation off is obeyed, and one that switches it on again as well."""
    pool = start(pools, workers=1)
    rotating = pool.config["log"]
    pool.configure(log={name: value for name, value in rotating.items() if name != "rotate"})
    pool.reload()
    pool.await_serving(1, generation=2)
    fill(pool.access_path)
    pool.configure(log=rotating)
    pool.reload()
    pool.await_serving(1, generation=3)
    await_rotation(pool, pool.access_path, 2)
    assert pool.logged().count("was put aside") == 1


def holders(pool: PoolService, path: Path) -> set[int]:
    """Return the processes of the pool that have a file open. Source: proc(5)."""
    wanted = path.stat()
    found = set()
    for process in pool.processes():
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                if os.path.samestat(entry.stat(), wanted):
                    found.add(process.pid)
            except OSError:
                continue  # Closed meanwhile, or nothing that lies anywhere.
    return found
