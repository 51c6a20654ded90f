"""A drill about a disk: the one under the logs is full."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from drills.callers import SERVED, Callers
from drills.pool import DrillPool, route
from drills.setting import Setting
from drills.telling import check

_DISK_KIB: Final = 256
_LOST: Final = r"\d+ log lines were lost: .*"


class _Disk(Protocol):
    """A folder that can be filled."""

    folder: Path
    kind: str

    def fill(self, pool: DrillPool) -> None:
        """Let nothing more be written there."""

    def empty(self, pool: DrillPool) -> None:
        """Let it be written again."""


class _SmallDisk:
    """A file system in memory."""

    kind = f"a file system of {_DISK_KIB} KB"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, pool: DrillPool) -> None:
        """Write until there is no room."""
        with (self.folder / "ballast").open("ab", buffering=0) as ballast:
            for size in (4096, 1):
                self._write_all(ballast.fileno(), b"x" * size)

    def empty(self, pool: DrillPool) -> None:
        """Make room."""
        (self.folder / "ballast").unlink()

    @staticmethod
    def _write_all(descriptor: int, data: bytes) -> None:
        try:
            while os.write(descriptor, data):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


class _LimitedFiles:
    """Stands in for a disk where none may be mounted: the pool may write no file beyond its first byte."""

    kind = "a disk of which a limit of the size of files takes the place"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, pool: DrillPool) -> None:
        """Set the limit."""
        self._limit(pool, 1)

    def empty(self, pool: DrillPool) -> None:
        """Lift the limit."""
        self._limit(pool, resource.RLIM_INFINITY)

    @staticmethod
    def _limit(pool: DrillPool, size_bytes: int) -> None:
        for pid in pool.processes():
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))


@contextmanager
def _disk(folder: Path) -> Iterator[_Disk]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_KIB}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield _LimitedFiles(folder)
        return
    try:
        yield _SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def disk_full(setting: Setting) -> None:
    """The disk under the logs is full.

    Calls go on; what cannot be written is counted, and as soon as there is room the log says how many lines
    are missing.
    """
    tell = setting.tell
    with _disk(setting.folder / "logs") as disk:
        log = {"file": str(disk.folder / "pool.log"), "access": str(disk.folder / "access.log")}
        with DrillPool(setting.folder, [route("quick")], log=log) as pool, Callers(pool.url) as callers:
            # The rest of the drill looks for the log in the pool's folder.
            (setting.folder / "pool.log").symlink_to(disk.folder / "pool.log")
            pool.run()
            setting.expect_service(callers)
            tell.does(
                f"the logs are on {disk.kind}; it is filled, and {setting.telephones} telephones call on"
            )
            disk.fill(pool)
            callers.keep_calling("quick", setting.telephones)
            pool.await_that(lambda: pool.metric("fastagi_log_lines_lost_total") > 0, "lost lines are counted")
            setting.expect_service(callers)
            tell.sees(
                pool.command("status"),
                pool.get("/healthz"),
                pool.get("/metrics").only("^fastagi_log_lines_lost_total"),
            )
            tell.does("there is room again")
            disk.empty(pool)
            tell.reads(pool.await_lines(_LOST))
            callers.finish()
            setting.expect_service(callers)
            tell.heard(callers.counts)
            check(set(callers.counts) == {SERVED}, "every call is served", str(callers.counts))
            check("outcome=ok" in (disk.folder / "access.log").read_text(), "the access log goes on")
            tell.recovers("lines are written again, and the log says how many are missing")
