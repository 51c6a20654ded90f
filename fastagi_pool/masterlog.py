"""MasterLog: the master's own log, and the rotation of all log files of the pool.

Laws:
    * A log that cannot be opened leaves the old one in use.
    * Files are looked at once a second. After one was put aside everybody must open the paths anew: who sees
      to that is told, and does it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fastagi_pool.errors import BootError
from fastagi_pool.logs import LOGGER_NAME, LogFile, configure, ensure_folder, reopen_all
from fastagi_pool.rotation import Rotation, RotationSettings

LOOK_S: Final = 1.0


class MasterLog:
    """Writes where the generation in charge says."""

    def __init__(self) -> None:
        self._log = logging.getLogger(LOGGER_NAME)
        self._file: LogFile | None = None
        self._target = ("", "")
        self._wanted: tuple[tuple[str, ...], RotationSettings] | None = None
        self._rotations: list[Rotation] = []
        self._look_s = 0.0

    @property
    def lost_lines(self) -> int:
        """Lines of the master's that could not be written."""
        return self._file.lost_lines if self._file is not None else 0

    def use(self, log: Mapping[str, str], rotated: Sequence[str], rotation: Mapping[str, Any]) -> None:
        """Write and rotate like this from now on.

        Args:
            log: ``file``, ``level``, ``format`` and ``facility``.
            rotated: The paths of the pool's log files.
            rotation: The arguments of ``rotation.RotationSettings``.

        Raises:
            BootError: The file cannot be written.
        """
        target = (log["file"], log["facility"])
        if self._file is None or target != self._target:
            try:
                ensure_folder(log["file"])
                fresh = LogFile(log["file"], log["facility"])
            except OSError as error:
                raise BootError(f"cannot write log.file {log['file']}: {error}") from error
            if self._file is not None:
                self._file.close()
            self._file, self._target = fresh, target
        configure(self._file, log["level"], f"master pid={os.getpid()}", log["format"])
        wanted = (tuple(rotated), RotationSettings(**rotation))
        if wanted != self._wanted:
            self._wanted = wanted
            paths, settings = wanted
            self._rotations = [Rotation(Path(path), settings) for path in paths if settings.active]

    def rotate(self, wall_s: float, now_s: float) -> bool:
        """Put aside what is due.

        Args:
            wall_s: Seconds since the epoch.
            now_s: Monotonic time.

        Returns:
            Whether everybody must open the paths anew.
        """
        if now_s < self._look_s:
            return False
        self._look_s = now_s + LOOK_S
        done = []
        for each in self._rotations:
            try:
                rotated = each.look(wall_s)
            except OSError as error:
                self._log.error("cannot rotate %s: %s", error.filename, error.strerror)
                continue
            if rotated is not None:
                done.append(rotated)
        if done:
            self.reopen()
        for rotated in done:
            self._log.info("%s was put aside as %s: %s", rotated.path, rotated.put_aside.name, rotated.reason)
            if rotated.fault:
                self._log.error("%s", rotated.fault)
        return bool(done)

    def reopen(self) -> None:
        """Follow the path again after it was rotated."""
        reopen_all((self._file,))

    def forget(self) -> None:
        """Close this process's copy only: in a new child."""
        if self._file is not None:
            self._file.close()
