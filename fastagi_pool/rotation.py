"""Rotation: when a log file is put aside, under which name, and which of the old ones go.

Laws:
    * It only renames and removes; whoever writes into a file goes on until it is told to open the path anew.
    * Only what bears exactly the names that are given here is removed, and only if it is a file itself.
    * An empty file stays, and no step of the clock makes it rotate again and again.
    * What to do is decided by functions that touch nothing.

How it works: the master looks at each file once a second. A file gets the day on which it was begun at the
end of its name, ``error.log-20261121``, and a further one of that day a number, ``error.log-20261121.1``.
"""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

#: After a file could not be put aside, the next attempt waits so long: the log shall not be full of it.
RETRY_S: Final = 60.0
#: A clock that goes back by less was only set right, about midnight perhaps; by more, it was wrong before.
_CORRECTION: Final = timedelta(days=1)
_ENDING = re.compile(r"-(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)(?:\.(?P<number>[1-9]\d{0,8}))?", re.ASCII)


class Reason(StrEnum):
    """Why a file is put aside."""

    DAY = "a new day"
    SIZE = "its size"


@dataclass(frozen=True, slots=True)
class RotationSettings:
    """When files are put aside, and how many are kept.

    Attributes:
        daily: Whether each day, in local time, has files of its own.
        size_bytes: A larger file is put aside; 0 for none.
        keep: How many that were put aside stay, of each log; at least 1.
    """

    daily: bool
    size_bytes: int
    keep: int

    @property
    def active(self) -> bool:
        """Whether anything is to be done at all."""
        return self.daily or self.size_bytes > 0


@dataclass(frozen=True, slots=True)
class Rotated:
    """What was done to a file.

    Attributes:
        path: Where it was.
        put_aside: Where it is now.
        reason: Why.
        fault: Why old ones could not be removed, in one line; empty if they could.
    """

    path: Path
    put_aside: Path
    reason: Reason
    fault: str = ""


# --- what to do


def due(size_bytes: int, born_day: date, today: date, settings: RotationSettings) -> Reason | None:
    """Decide whether a file is to be put aside now.

    Args:
        size_bytes: Its size.
        born_day: When it was begun.
        today: The day, in local time.
        settings: When files are put aside.

    Returns:
        Why; None if it stays.
    """
    if size_bytes <= 0:
        return None
    if settings.daily and today > born_day:
        return Reason.DAY
    if 0 < settings.size_bytes < size_bytes:
        return Reason.SIZE
    return None


def believed_day(born_day: date, today: date) -> date:
    """Return the day on which a file was begun, as far as it can be believed: not well after today."""
    return today if born_day - today > _CORRECTION else born_day


def name_aside(name: str, born_day: date, found: Iterable[str]) -> str:
    """Name a file that is put aside: later than all others of its day.

    Args:
        name: As of now, without folders.
        born_day: When it was begun.
        found: What is in its folder.
    """
    numbers = [number for day, number, _ in _put_aside(name, found) if day == born_day]
    plain = f"{name}-{born_day:%Y%m%d}"
    return f"{plain}.{max(numbers) + 1}" if numbers else plain


def outdated(name: str, found: Iterable[str], keep: int) -> list[str]:
    """Choose which files that were put aside are to go: all but the latest.

    Args:
        name: The log's, without folders.
        found: What is in its folder; whatever is not of this log is left alone.
        keep: How many stay.
    """
    ordered = sorted(_put_aside(name, found))
    return [each for _, _, each in ordered[: max(0, len(ordered) - keep)]]


def _put_aside(name: str, found: Iterable[str]) -> list[tuple[date, int, str]]:
    """Find what was put aside of a log: day, number and name of each."""
    aside = []
    for each in found:
        ending = _ENDING.fullmatch(each, len(name)) if each.startswith(name) else None
        if ending is None:
            continue
        try:
            day = date(int(ending["year"]), int(ending["month"]), int(ending["day"]))
        except ValueError:
            continue
        aside.append((day, int(ending["number"] or 0), each))
    return aside


# --- doing it


def rotate(path: Path, born_day: date, reason: Reason, keep: int) -> Rotated:
    """Put a file aside now, and remove what is too old.

    Args:
        path: The file.
        born_day: When it was begun.
        reason: Why.
        keep: How many that were put aside stay.

    Raises:
        OSError: It could not be put aside, and stays where it is.
    """
    found = [each.name for each in path.parent.iterdir()]
    aside = path.with_name(name_aside(path.name, born_day, found))
    path.rename(aside)
    # Not counting the one just put aside, which must stay whatever days the others claim.
    return Rotated(path, aside, reason, _prune(path, found, keep - 1))


def _prune(path: Path, found: Iterable[str], keep: int) -> str:
    """Remove what is too old; return why something could not be."""
    fault = ""
    files = [each for each in found if _is_file_itself(path.with_name(each))]
    for name in outdated(path.name, files, keep):
        try:
            path.with_name(name).unlink(missing_ok=True)
        except OSError as error:
            fault = f"cannot remove {path.with_name(name)}: {error.strerror}"
    return fault


def _is_file_itself(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


class Rotation:
    """Looks after one log file."""

    def __init__(self, path: Path, settings: RotationSettings) -> None:
        """Prepare; the file need not be there yet.

        Args:
            path: The file. If links lead to it, what they lead to is put aside, beside itself.
            settings: When it is put aside.
        """
        self._path = path.resolve()
        self._settings = settings
        # As it is found, before anybody writes into it again: yesterday's file is yesterday's.
        self._born_day = _day_of_last_line(self._path)
        self._failed_s: float | None = None

    def look(self, now_s: float) -> Rotated | None:
        """Put the file aside if that is due. What is no regular file, a device for example, never is.

        Args:
            now_s: The time in seconds since the epoch.

        Returns:
            What was done, whereupon all who write into the file must open the path anew; None for nothing.

        Raises:
            OSError: It could not be put aside; it is tried again after a minute.
        """
        if self._failed_s is not None and 0 <= now_s - self._failed_s < RETRY_S:
            return None
        try:
            return self._look(now_s)
        except OSError:
            self._failed_s = now_s
            raise

    def _look(self, now_s: float) -> Rotated | None:
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        today = _local_day(now_s)
        # It begins with its first line: an empty one may have been lying there for days.
        begun = self._born_day or _local_day(found.st_mtime)
        born_day = believed_day(begun, today) if found.st_size else today
        self._born_day = born_day
        reason = due(found.st_size, born_day, today, self._settings)
        if reason is None:
            return None
        rotated = rotate(self._path, born_day, reason, self._settings.keep)
        self._born_day = today
        return rotated


def _day_of_last_line(path: Path) -> date | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return _local_day(found.st_mtime) if found.st_size else None


def _local_day(wall_s: float) -> date:
    local = time.localtime(wall_s)
    return date(local.tm_year, local.tm_mon, local.tm_mday)
