"""The configuration of what surrounds the calls: the logs, the slow log, and what is shown over HTTP.

Laws:
    * Each section stands by itself; what several must agree on is the business of
      :mod:`fastagi_pool.config`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fastagi_pool.findings import Finding, RefusedValue, refuse_all
from fastagi_pool.section import Section
from fastagi_pool.values import Duration, ListenAddress, ListenKind, Network, Size, Whole

_FACILITIES: Final = ("daemon", "user", *(f"local{number}" for number in range(8)))


class LogLevel(StrEnum):
    """How much the log tells."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a line of the logs is written."""

    TEXT = "text"
    JSON = "json"


class RotationPeriod(StrEnum):
    """How often log files are rotated, whatever their size."""

    NEVER = "never"
    DAY = "day"


class Rotation(Section):
    """When the server itself puts its log files aside and begins new ones."""

    every: RotationPeriod = Field(
        default=RotationPeriod.NEVER,
        description="`day` begins new files at midnight, local time; the old ones get the day at the end of "
        "their name, as `error.log-20261121`. `never`, as a packaged logrotate file does it.",
    )
    size: Size = Field(
        default=0,
        description="A log file that has grown beyond this is put aside at once; 0 for never, otherwise at "
        "least 64KB. Looked at once a second.",
    )
    keep: Whole = Field(
        default=14,
        ge=1,
        le=10_000,
        description="How many files that were put aside are kept of each log, 1 to 10000; the oldest go. "
        "14 days are enough to find a fault of last week.",
    )

    @field_validator("size")
    @classmethod
    def _size_bounds(cls, value: int) -> int:
        if 0 < value < 64 * 1024:
            raise RefusedValue("must be 0 (never) or at least 64KB", "a number without a unit means bytes")
        return value


class Log(Section):
    """Where the log goes and how much it tells."""

    file: str = Field(
        default="-",
        description="Where the log goes: an absolute path, `syslog`, or `-` for standard error, which is "
        "what systemd and containers collect.",
    )
    level: LogLevel = Field(
        default=LogLevel.INFO,
        description="How much the log tells: `debug`, `info`, `warning` or `error`. `info` says what starts, "
        "stops and fails; `debug` is for finding a fault.",
    )
    access: str = Field(
        default="-",
        description="Where the one line for each call goes: an absolute path, `syslog`, `-` for the same "
        "place as the log, or `off`. On by default, because it is the only trace of a call that went well.",
    )
    format: LogFormat = Field(
        default=LogFormat.TEXT,
        description="How lines are written: `text`, which people and grep read, or `json`, one object a line "
        "with the same keys, for collectors.",
    )
    facility: str = Field(
        default="daemon",
        description="The facility of lines that go to `syslog`: `daemon`, `user` or `local0` to `local7`.",
    )
    rotate: Rotation = Field(
        default_factory=Rotation, description="When the server rotates its log files by itself."
    )

    @field_validator("file", "access")
    @classmethod
    def _path_or_word(cls, value: str, info: ValidationInfo) -> str:
        words = ("-", "syslog", "off") if info.field_name == "access" else ("-", "syslog")
        return _checked_target(value, words)

    @field_validator("facility")
    @classmethod
    def _facility_exists(cls, value: str) -> str:
        if value not in _FACILITIES:
            raise ValueError(f"must be one of {', '.join(_FACILITIES)}")
        return value


class Slow(Section):
    """Which calls are written into the slow log, with what they were doing."""

    file: str = Field(
        default="-",
        description="Where slow calls are written: an absolute path, `-` for the same place as the log, or "
        "`off`.",
    )
    after: Duration = Field(
        default=5.0,
        description="A call is slow when its handler's own time, the database included and Asterisk's "
        "time not, exceeds this; 0 for never. 5s is about as long as a caller bears silence.",
    )
    blocked: Duration = Field(
        default=1.0,
        description="A worker in which one handler lets no other call have its turn for this long is "
        "written down with that handler's stack; 0 for never, otherwise at least 100ms. 1s is what all "
        "callers of the worker hear as a pause.",
    )

    @field_validator("file")
    @classmethod
    def _path_or_word(cls, value: str) -> str:
        return _checked_target(value, ("-", "off"))

    @field_validator("blocked")
    @classmethod
    def _blocked_bounds(cls, value: float) -> float:
        if 0 < value < 0.1:
            raise ValueError("must be 0 (never) or at least 100ms")
        return value


class Http(Section):
    """Where the state of the pool is shown over HTTP: a page for people, figures for monitoring."""

    listen: str = Field(
        default="127.0.0.1:4578",
        description="Address of the status page, `/metrics`, `/healthz`, `/readyz` and `/status.json`, as "
        "`127.0.0.1:4578`; or `off`. Only this machine by default, because it shows callers' numbers and "
        "knows no password.",
    )
    allow: tuple[Network, ...] = Field(
        default=(),
        description="Networks that may look, as `10.0.0.0/8` or `192.0.2.7`; empty for all that can reach "
        "`listen`. Needed as soon as that can be reached from other machines.",
    )

    @field_validator("listen")
    @classmethod
    def _address_or_off(cls, value: str) -> str:
        try:
            usable = value == "off" or ListenAddress.parse(value).kind is ListenKind.TCP
        except ValueError:
            usable = False
        if not usable:
            hint = "for example 127.0.0.1:4578 or [::1]:4578"
            raise RefusedValue(f"must be a literal address with a port, or 'off', not {value!r}", hint)
        return value

    @property
    def address(self) -> ListenAddress | None:
        """Where to listen; None for nowhere."""
        return None if self.listen == "off" else ListenAddress.parse(self.listen)

    @model_validator(mode="after")
    def _open_to_somebody(self) -> Http:
        if self.address is not None and not self.address.is_loopback and not self.allow:
            message = "can be reached from other machines, so 'allow' must say which may look"
            refuse_all([Finding(("listen",), message, "for example allow: [10.0.0.0/8]")])
        return self


def _checked_target(value: str, words: tuple[str, ...]) -> str:
    """Check where a log shall go: one of the words, or an absolute path."""
    if value not in words and (not value.startswith("/") or "\0" in value):
        raise ValueError(f"must be {' or '.join(repr(word) for word in words)} or an absolute path")
    return value
