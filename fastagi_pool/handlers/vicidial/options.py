"""Options: what the operator writes under ``options`` of VICIdial's route, read into a :class:`Site`.

Laws:
    * All that is wrong is found at once, each at its key, in the words of the file.
    * Defaults are those of :class:`Site`; none stands here.
    * A key is named as its attribute, without its unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, Final, Protocol

from pydantic import Field, ValidationError, field_validator

from fastagi_pool.findings import Finding, closest, did_you_mean, findings_of
from fastagi_pool.handlers.vicidial.leg import Site
from fastagi_pool.section import Section
from fastagi_pool.values import AbsolutePath, DatabaseName, Duration, Truth

_DEFAULTS: Final[Mapping[str, Any]] = {
    each.name: each.default for each in fields(Site) if each.default is not MISSING
}


class _Options(Section):
    """The options by their attributes of :class:`Site`, which says what each means."""

    server_ip: str
    path_logs: AbsolutePath = _DEFAULTS["path_logs"]
    path_home: AbsolutePath = _DEFAULTS["path_home"]
    database: DatabaseName = _DEFAULTS["database"]
    settings_ttl_s: Duration = Field(default=_DEFAULTS["settings_ttl_s"], alias="settings_ttl")
    start_wait_s: Duration = Field(default=_DEFAULTS["start_wait_s"], alias="start_wait")
    strip_parenthesis: Truth = _DEFAULTS["strip_parenthesis"]
    close_local_manual: Truth = _DEFAULTS["close_local_manual"]
    closer_by_uniqueid: Truth = _DEFAULTS["closer_by_uniqueid"]
    threshold_always: Truth = _DEFAULTS["threshold_always"]
    addr3_own_area_code: Truth = _DEFAULTS["addr3_own_area_code"]
    empty_timeout: Truth = _DEFAULTS["empty_timeout"]
    plain_commands: Truth = _DEFAULTS["plain_commands"]
    khomp: Truth = _DEFAULTS["khomp"]
    khomp_timeout_s: Duration = Field(default=_DEFAULTS["khomp_timeout_s"], gt=0, alias="khomp_timeout")
    queue_timeout_s: Duration = Field(default=_DEFAULTS["queue_timeout_s"], gt=0, alias="queue_timeout")

    @field_validator("server_ip")
    @classmethod
    def _is_in_the_table(cls, value: str) -> str:
        if not value or not value.isprintable():
            raise ValueError("must be this machine's address in VICIdial's table of servers")
        return value


class _Database(Protocol):
    """What is asked of a database of the configuration."""

    @property
    def sql_mode(self) -> str: ...

    @property
    def multi_statements(self) -> bool: ...


def read_site(options: Mapping[str, Any]) -> Site:
    """Read the route's options.

    Args:
        options: With their types, as the configuration gives them. Durations are as everywhere in it
            (``1s``, ``500ms``, a number of seconds); ``settings_ttl`` and ``start_wait`` may be 0.

    Raises:
        ValueError: Something is wrong with them; :func:`check_options` says what.
    """
    return Site(**_Options.model_validate(options).model_dump())


def check_options(options: Mapping[str, Any], databases: Mapping[str, _Database]) -> Iterable[Finding]:
    """Find all that is wrong with the route's options, before any call comes.

    Args:
        options: As for :func:`read_site`.
        databases: Those of the configuration.
    """
    try:
        site = read_site(options)
    except ValidationError as error:
        return list(findings_of(error, lambda location: _Options.file_keys()))
    return list(_unfit(site.database, databases))


def _unfit(name: str, databases: Mapping[str, _Database]) -> Iterator[Finding]:
    """Say what of a database would make every call fail, or change its rows."""
    database = databases.get(name)
    if database is None:
        yield Finding(("database",), f"names no database: {name!r}", did_you_mean(closest(name, databases)))
        return
    if not database.multi_statements:
        yield Finding(("database",), f"needs databases.{name}.multi_statements: true")
    if not database.sql_mode or "STRICT" in database.sql_mode.upper():
        message = f"needs a databases.{name}.sql_mode that is not strict"
        yield Finding(("database",), message, "sql_mode: NO_ENGINE_SUBSTITUTION")
