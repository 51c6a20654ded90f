"""Family: the processes of a pool that runs legacy scripts: who is what, and who is whose child."""

from __future__ import annotations

from collections.abc import Iterable

from service import PoolService, Process, pids


def launchers(pool: PoolService, generation: int = 0) -> list[Process]:
    """Return the launchers: all, or those of one generation."""
    return [process for process in pool.processes() if _title(generation) in process.title]


def launcher_of(pool: PoolService, generation: int = 0) -> Process:
    """Return the only launcher of all, or of one generation, once there is one."""
    return pool.await_process(_title(generation))


def _title(generation: int) -> str:
    return f"launcher (gen {generation})" if generation else "launcher (gen "


def zygotes(pool: PoolService, file: str) -> list[Process]:
    """Return the processes that hold a script compiled: children of a launcher that are no scripts."""
    parents = pids(launchers(pool))
    return [each for each in running(pool, file) if each.parent in parents]


def running(pool: PoolService, file: str) -> list[Process]:
    """Return all processes whose command line names a file."""
    return [each for each in pool.processes() if each.state != "Z" and file in each.title]


def orphans(pool: PoolService) -> list[Process]:
    """Return the processes whose parent is none of the pool, but for the master."""
    found = pool.processes()
    known = pids(found)
    return [each for each in found if each.parent not in known and each.pid != pool.pid]


def await_gone(pool: PoolService, gone: Iterable[int]) -> None:
    """Wait until none of these processes is left.

    Raises:
        PoolFailed: One is, after 15 s.
    """
    wanted = set(gone)
    pool.await_that(lambda: not wanted & pids(pool.processes()), f"has ended {wanted}")
