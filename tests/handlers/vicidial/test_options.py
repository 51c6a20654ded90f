"""fastagi_pool.handlers.vicidial.options: from the route's options to a Site, or what is wrong with them."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from fastagi_pool.config import load
from fastagi_pool.findings import Finding
from fastagi_pool.handlers.vicidial.leg import Site
from fastagi_pool.handlers.vicidial.options import check_options, read_site

SAMPLE: Final = Path(__file__).resolve().parents[3] / "conf" / "vicidial.yaml"
SERVER: Final = {"server_ip": "192.0.2.15"}
#: One of each option, none of them as by default.
EVERY: Final = {
    **SERVER,
    "path_logs": "/logs",
    "path_home": "/home",
    "database": "calls",
    "settings_ttl": "250ms",
    "start_wait": "2s",
    "strip_parenthesis": True,
    "close_local_manual": True,
    "closer_by_uniqueid": True,
    "threshold_always": True,
    "addr3_own_area_code": False,
    "empty_timeout": False,
    "plain_commands": True,
    "khomp": True,
    "khomp_timeout": "1m",
    "queue_timeout": 7,
}


class Fit(NamedTuple):
    """A database as the handlers need it, but for what is said."""

    sql_mode: str = "NO_ENGINE_SUBSTITUTION"
    multi_statements: bool = True


DATABASES: Final = {"vicidial": Fit(), "calls": Fit()}


def found(**options: Any) -> list[Finding]:
    """What is wrong with options beside a right server_ip."""
    return list(check_options({**SERVER, **options}, DATABASES))


# ---- what goes well


def test_only_the_server_is_needed() -> None:
    """Without any other option everything is as Site has it by default."""
    assert read_site(SERVER) == Site("192.0.2.15")
    assert found() == []


def test_every_option_arrives() -> None:
    """Each option reaches its own attribute: here none has its default, and few are alike."""
    assert read_site(EVERY) == Site(
        server_ip="192.0.2.15",
        path_logs=Path("/logs"),
        path_home=Path("/home"),
        database="calls",
        settings_ttl_s=0.25,
        start_wait_s=2.0,
        strip_parenthesis=True,
        close_local_manual=True,
        closer_by_uniqueid=True,
        threshold_always=True,
        addr3_own_area_code=False,
        empty_timeout=False,
        plain_commands=True,
        khomp=True,
        khomp_timeout_s=60.0,
        queue_timeout_s=7.0,
    )
    assert list(check_options(EVERY, DATABASES)) == []


@pytest.mark.parametrize("key", [key for key, value in EVERY.items() if isinstance(value, bool)])
def test_a_switch_is_its_own(key: str) -> None:
    """A switch that is turned changes its attribute and no other."""
    default, turned = Site("192.0.2.15"), read_site({**SERVER, key: EVERY[key]})
    differing = [
        each.name for each in fields(Site) if getattr(default, each.name) != getattr(turned, each.name)
    ]
    assert differing == [key]


def test_there_is_an_option_for_everything() -> None:
    """A new attribute of Site cannot be forgotten here: each has its option, named without the unit."""
    assert set(EVERY) == {each.name.removesuffix("_s") for each in fields(Site)}


def test_the_sample_shows_the_defaults(tmp_path: Path) -> None:
    """conf/vicidial.yaml names every option, and what is commented out there is what holds without it."""
    text, uncommented = re.subn(r"^#( +\w+: .*)", r"\1", SAMPLE.read_text(), flags=re.MULTILINE)
    path = tmp_path / "vicidial.yaml"
    path.write_text(re.sub(r"\$\{file:.*\}", "secret", text))
    [route] = load(path, {}).config.routes
    assert uncommented > 0
    assert set(route.options) == set(EVERY)
    assert read_site(route.options) == Site("192.0.2.15")


@pytest.mark.parametrize("key", ["settings_ttl", "start_wait"])
@pytest.mark.parametrize("value", [0, "0s", "0"])
def test_zero_is_off(key: str, value: object) -> None:
    """Nothing is remembered and nobody waits, if the operator wants it so."""
    assert getattr(read_site({**SERVER, key: value}), f"{key}_s") == 0.0


def test_a_key_with_nothing_behind_it() -> None:
    """A key whose value is missing counts as absent, as everywhere in the configuration."""
    assert read_site({**SERVER, "khomp": None, "path_logs": None}) == Site("192.0.2.15")


# ---- what does not


@pytest.mark.parametrize("options", [{}, {"server_ip": None}])
def test_the_server_is_needed(options: dict[str, Any]) -> None:
    """Rows without our own address would be nobody's, so nothing stands in for it."""
    assert list(check_options(options, DATABASES)) == [Finding(("server_ip",), "is missing")]
    with pytest.raises(ValueError, match="server_ip"):
        read_site(options)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("server_ip", "", "must be this machine's address in VICIdial's table of servers"),
        ("server_ip", "10.0.0.1\n", "must be this machine's address in VICIdial's table of servers"),
        ("server_ip", 10, "must be text"),
        ("path_logs", "logs", "must be an absolute path, not 'logs'"),
        ("path_home", 5, "must be an absolute path, not 5"),
        (
            "database",
            "Vici dial",
            "must be a name of small letters, digits and '_' that begins with a letter",
        ),
        (
            "settings_ttl",
            "soon",
            "must be a duration such as 500ms, 30s, 5m, 4h, 1d or 1h30m, not 'soon'",
        ),
        ("settings_ttl", "-1s", "must not be negative"),
        ("start_wait", True, "must be a duration such as 500ms, 30s, 5m, 4h, 1d or 1h30m, not True"),
        ("khomp_timeout", 0, "must be more than 0"),
        ("queue_timeout", "0s", "must be more than 0"),
        ("strip_parenthesis", "true", "must be true or false, not 'true'"),
        ("khomp", 1, "must be true or false, not 1"),
    ],
)
def test_a_wrong_value(key: str, value: object, message: str) -> None:
    """Each value is refused at its key, in words that say what must stand there."""
    assert found(**{key: value}) == [Finding((key,), message)]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("settings_ttl_s", "did you mean 'settings_ttl'?"),
        ("strip_parentheses", "did you mean 'strip_parenthesis'?"),
        ("kohmp", "did you mean 'khomp'?"),
        ("zebra", ""),
    ],
)
def test_an_unknown_key(key: str, hint: str) -> None:
    """A key that nobody reads is told, with the one that was probably meant."""
    assert found(**{key: 1}) == [Finding((key,), "is not a known key", hint)]


def test_a_misspelt_server_is_one_problem() -> None:
    """A server_ip that is misspelt is not missing besides."""
    assert list(check_options({"server_pi": "192.0.2.15"}, DATABASES)) == [
        Finding(("server_pi",), "is not a known key", "did you mean 'server_ip'?")
    ]


def test_everything_is_told_at_once() -> None:
    """Several mistakes are found in one go."""
    wrong = check_options({"path_logs": "logs", "khomp": "yes", "zebra": 1}, DATABASES)
    assert {each.location for each in wrong} == {("server_ip",), ("path_logs",), ("khomp",), ("zebra",)}


@pytest.mark.parametrize(
    ("database", "message"),
    [
        (Fit(multi_statements=False), "needs databases.vicidial.multi_statements: true"),
        (Fit(sql_mode=""), "needs a databases.vicidial.sql_mode that is not strict"),
        (Fit(sql_mode="STRICT_ALL_TABLES"), "needs a databases.vicidial.sql_mode that is not strict"),
    ],
)
def test_a_database_that_does_not_fit(database: Fit, message: str) -> None:
    """What of the database would make every call fail is told before any comes."""
    (finding,) = check_options(SERVER, {"vicidial": database})
    assert (finding.location, finding.message) == (("database",), message)


def test_a_database_that_is_not_there() -> None:
    """A name that no database has is told with the one that was probably meant."""
    (finding,) = check_options({**SERVER, "database": "vicidail"}, DATABASES)
    assert (finding.message, finding.hint) == ("names no database: 'vicidail'", "did you mean 'vicidial'?")
