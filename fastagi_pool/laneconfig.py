"""The configuration of what protects calls from each other and from outages: lanes, journal, quarantine.

Laws:
    * Each model stands by itself: what it must agree on with the rest of the file is the business of
      :mod:`fastagi_pool.config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import Field, field_validator

from fastagi_pool.findings import RefusedValue
from fastagi_pool.section import Section
from fastagi_pool.values import Duration, Size, Whole

#: Instead of the journal's path.
OFF: Final = "off"
_JOURNAL_BYTES: Final = 1024**3


class Lane(Section):
    """Calls that share places. All figures are one worker's."""

    max_active: Whole | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Most calls of the lane that one worker serves at the same time, 1 to 100000; further "
        "ones wait. Absent: `calls_per_worker`.",
    )
    max_queue: Whole | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="How many more calls of the lane one worker lets wait, 0 to 10000. Whoever comes beyond "
        "that is told at once that there is no place (FAGI_STATUS=OVERLOAD). Absent: the general "
        "`max_queue`.",
    )
    max_wait: Duration | None = Field(
        default=None,
        description="How long a call of the lane may wait before it is told that there is no place. Absent: "
        "the general `max_wait`.",
    )
    reserve: Whole = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Places that each worker keeps free for the lane, 0 to 100000, fewer than "
        "`calls_per_worker` for all lanes together. Hangup records want some: a channel "
        "whose record waits is a zombie.",
    )


class Journal(Section):
    """Where calls are kept whose database is away."""

    file: str = Field(
        default="/var/lib/fastagi-pool/journal.db",
        description="Absolute path of the journal, an SQLite file of this machine's own, on a disk that "
        "survives a power cut; it is made when a route needs it. `off`: calls whose database is away fail.",
    )
    max_size: Size = Field(
        default=_JOURNAL_BYTES,
        description="How large the journal may become, 1MB or more; beyond that calls fail truthfully. 1GB "
        "holds about half a million calls: hours of an outage.",
    )

    @field_validator("file")
    @classmethod
    def _file_is_absolute(cls, value: str) -> str:
        if value != OFF and not Path(value).is_absolute():
            raise ValueError("must be an absolute path, or off")
        return value

    @field_validator("max_size")
    @classmethod
    def _max_size_bounds(cls, value: int) -> int:
        if value < 1024**2:
            raise RefusedValue("must be at least 1MB", "a number without a unit means bytes")
        return value

    @property
    def path(self) -> Path | None:
        """Where it is; None for no journal."""
        return None if self.file == OFF else Path(self.file)


class Quarantine(Section):
    """What is done about requests that end workers."""

    crashes: Whole = Field(
        default=2,
        ge=0,
        le=1000,
        description="After how many workers that died while they served a request like it, within the time "
        "under `for`, a request is refused (FAGI_STATUS=QUARANTINED), up to 1000; 0 for never. Like it: "
        "script, query, arguments and caller are the same. 2, because the first suspicion may be wrong.",
    )
    for_s: Duration = Field(
        default=600.0,
        alias="for",
        gt=0,
        description="How long it is refused; more than 0. 10 minutes outlast a dialer's retries.",
    )
