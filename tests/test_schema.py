"""The configuration shown to others: its JSON Schema, the reference, and the effective text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastagi_pool.config import Config, Database, Limits, LoadedConfig, load_text
from fastagi_pool.routeconfig import Process, Route, Upstream
from fastagi_pool.schema import effective, json_schema
from fastagi_pool.serviceconfig import Http, Log, Rotation, Slow

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = Config(routes=(Route(default=True, handler="a:b"),))
#: The mappings inside the file.
SECTIONS = (
    *("Database", "Http", "Journal", "Lane", "Limits", "Log", "Process", "Quarantine", "Rotation"),
    *("Route", "Slow", "Upstream", "UpstreamServer"),
)
#: What stands in the schema for a ``${NAME}``, and for text that may look like a number.
VARIABLE = {"type": "string", "pattern": r"\$\{.+\}"}
TEXT = {"title": "text", "type": ["string", "number", "boolean"]}


def loaded(text: str, environment: Mapping[str, str] | None = None) -> LoadedConfig:
    """Load an embedded text under the name ``x.yaml``."""
    return load_text(dedent(text), "x.yaml", Path("/"), environment or {})


def reloaded(config: Config) -> Config:
    """Load the effective text of a configuration."""
    return load_text(effective(config), "effective", Path("/"), {}).config


# -- Schema and reference ---------------------------------------------------------------------------------


def test_generated_documents_are_up_to_date() -> None:
    """The reference and the JSON Schema in the repository are those that the code gives."""
    run = subprocess.run(
        [sys.executable, "scripts/generate_config_docs.py", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def accepted_types(schema: Mapping[str, Any]) -> set[str]:
    """Name the JSON types that a key's schema accepts."""
    choices = [choice for outer in schema.get("anyOf", [schema]) for choice in outer.get("anyOf", [outer])]
    names = [choice.get("type", []) for choice in choices]
    return {name for found in names for name in ([found] if isinstance(found, str) else found)}


def test_schema_accepts_a_variable_for_every_value() -> None:
    """Where the schema wants a number or a truth value, it accepts the text of a ``${NAME}`` too."""
    schema: dict[str, Any] = json_schema()
    sections = [schema, *(schema["$defs"][name] for name in SECTIONS)]
    for section in sections:
        assert section["additionalProperties"] is False
        for key, value in section["properties"].items():
            types = accepted_types(value)
            if types & {"integer", "number", "boolean"}:
                assert "string" in types, key


def test_schema_knows_every_key() -> None:
    """An editor offers exactly the keys that a file may have."""
    schema: dict[str, Any] = json_schema()
    assert set(schema["properties"]) == {*Config.file_keys(), "include"}
    for model in (Database, Http, Log, Process, Rotation, Route, Slow, Upstream):
        assert set(schema["$defs"][model.__name__]["properties"]) == set(model.file_keys())


def references(schema: object) -> Iterator[str]:
    """Give every ``$ref`` in a schema."""
    if isinstance(schema, Mapping):
        yield from [schema["$ref"]] if "$ref" in schema else []
        schema = list(schema.values())
    if isinstance(schema, list):
        for inner in schema:
            yield from references(inner)


def test_schema_defines_what_it_refers_to() -> None:
    """Each section is described once, and every reference leads to one of them."""
    schema: dict[str, Any] = json_schema()
    assert (
        set(references(schema))
        == {f"#/$defs/{name}" for name in SECTIONS}
        == {f"#/$defs/{name}" for name in schema["$defs"]}
    )


@pytest.mark.parametrize(
    ("section", "key", "expected"),
    [
        (
            "Limits",
            "arguments",
            {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 127}, VARIABLE], "default": 127},
        ),
        (
            "Log",
            "level",
            {"anyOf": [{"enum": ["debug", "info", "warning", "error"]}, VARIABLE], "default": "info"},
        ),
        ("Log", "rotate", {"$ref": "#/$defs/Rotation"}),
        (
            "Rotation",
            "keep",
            {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 10000}, VARIABLE], "default": 14},
        ),
        ("Rotation", "every", {"anyOf": [{"enum": ["never", "day"]}, VARIABLE], "default": "never"}),
        ("Http", "listen", {"type": "string", "default": "127.0.0.1:4578"}),
        ("Route", "name", {"type": "string", "maxLength": 100, "default": ""}),
        ("Route", "handler", {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}),
        ("Route", "process", {"anyOf": [{"$ref": "#/$defs/Process"}, {"type": "null"}], "default": None}),
        ("UpstreamServer", "address", {"title": "host:port", "type": "string"}),
        ("Route", "context", {"anyOf": [TEXT, {"type": "null"}], "default": None}),
        ("Route", "query", {"type": "object", "additionalProperties": TEXT, "default": {}}),
        ("Route", "options", {"type": "object", "additionalProperties": True, "default": {}}),
        ("Route", "databases", {"type": "array", "items": {"type": "string"}, "default": []}),
    ],
)
def test_schema_of_a_key(section: str, key: str, expected: dict[str, object]) -> None:
    """Every kind of key has its type, its bounds and its default in the schema."""
    schema: dict[str, Any] = json_schema()
    found = schema["$defs"][section]["properties"][key]
    assert {**found, "description": ""} == {**expected, "description": ""}


# -- The effective text -----------------------------------------------------------------------------------

SECRETIVE = """
databases:
  one: {url: ['mysql://me:hunter2@h/d', 'mysql://me:p@hunter2@h/d?ssl_password=hunter2&x=1']}
  two: {url: mysql://me@h/d, password: hunter2}
routes:
- default: true
  handler: a:b
  options: {api_key: hunter2, deep: [{Password: hunter2, upstream: 'agi://me:hunter2@h'}], open: shown}
- script: x
  command: /agi/x
  process: {environment: {DB_PASSWORD: hunter2, LANG: plain}}
"""


def test_effective_shows_no_secret() -> None:
    """Neither the effective text nor a repr tells a password, wherever it stands."""
    found = loaded(SECRETIVE)
    text = effective(found.config)
    assert "hunter2" not in text
    assert "mysql://me:***@h/d\n" in text
    assert "open: shown" in text
    assert "LANG: plain" in text
    for shown in (found.config.databases, found.config.routes[1]):
        assert "hunter2" not in repr(shown)


def test_effective_shows_every_default_readably() -> None:
    """The effective text holds every key, with durations and sizes as people write them."""
    lines = effective(DEFAULTS).splitlines()
    for expected in (
        "workers: auto",
        "drain_timeout: 4h",
        "max_memory: 0B",
        "  header_size: 64KB",
        "  after: 5s",
        "  listen: 127.0.0.1:4578",
        "    every: never",
        "    size: 0B",
        "- 127.0.0.1:4577",
    ):
        assert expected in lines
    keys = {line.split(":")[0].strip() for line in lines}
    sections = (Config, Limits, Log, Rotation, Slow, Http)
    assert {key for model in sections for key in model.file_keys()} <= keys


def test_effective_can_be_loaded_again(tmp_path: Path) -> None:
    """The effective text of a rich configuration gives an equal one."""
    found = loaded(
        rf"""
        listen: ["*:4577", "[::1]:0", unix:/x.sock, systemd]
        allow: [10.0.0.0/8, "2001:db8::1"]
        max_lifetime: 1.2345
        max_memory: 1234567
        python_path: [{tmp_path}]
        log:
          access: off
          file: "/var/$$${{X}}$$$$/a: b # c"
          format: json
          facility: local3
          rotate: {{every: day, size: 100MB, keep: 3}}
        slow: {{file: /var/log/slow, after: 1.5, blocked: 250ms}}
        http: {{listen: "*:80", allow: ["2001:db8::/32", 192.0.2.7]}}
        user: root
        group: root
        umask: 027
        chdir: /
        databases: {{a: {{url: ["sqlite:///a", "sqlite:///b"], max_age: 1h30m}}}}
        routes:
        - {{script: 007, context: yes, handler: a:b, databases: [a], idle_timeout: 0, priority: -5,
            drain_timeout: 10m, slow_after: 0}}
        - {{glob: 'x/*', command: '/agi/{{1}}.agi', precompile: perl}}
        - script: y
          command: /agi/y
          warm: 2
          process:
            {{arguments: [1, "~"], environment: {{A: yes}}, interpreter: [/usr/bin/php, -q], cpu_time: 90}}
        - {{script: z, upstream: "agi:4573"}}
        - {{script: z2, upstream: ["[2001:db8::1]:1", {{address: "b:1", max_calls: 5}}]}}
        - {{regex: '^a\.(b|$)$', handler: a:b, arguments: {{1: 5, 127: "~"}}, query: {{off: "*"}}}}
        """,
        {"X": "${Y}"},
    ).config
    assert found.log.file == "/var/$${Y}$$/a: b # c"
    assert reloaded(found) == found


OPTIONS = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(min_value=-(10**17), max_value=10**17),
        st.floats(
            allow_nan=False, allow_infinity=False, min_value=-1e17, max_value=1e17, allow_subnormal=False
        ),
        st.text(max_size=8),
        st.sampled_from(
            ["yes", "off", "1e3", "0x1F", "010", "${X}", "$$", "~", "<<", "=", "1_0", ".5", "2020-01-01"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b", "yes", "1", "<<", "é: x", "$", ""]), inner, max_size=3),
    ),
    max_leaves=10,
)


@settings(derandomize=True, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "off"]), OPTIONS, max_size=3))
def test_options_survive_the_effective_text(options: dict[str, Any]) -> None:
    """Options keep their values and types through the effective text, whatever they are."""
    found = reloaded(Config(routes=(Route(default=True, handler="a:b", options=options),)))
    assert repr(found.routes[0].options) == repr(options)
