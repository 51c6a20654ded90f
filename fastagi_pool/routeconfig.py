"""The configuration of one route: which calls it takes, and who serves them.

Laws:
    * A route has exactly one of ``handler``, ``command`` and ``upstream``. Keys that mean nothing to the one
      it has are refused, so that nobody relies on them.
    * A :class:`Route` stands by itself: what several routes, or a route and the rest of the file, must agree
      on is the business of :mod:`fastagi_pool.config`.
    * The models know the long form of ``upstream`` alone. :func:`spelled_out` writes the short ones out
      before anything is checked, and each value keeps the place where the operator wrote it.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from fastagi_pool.findings import Finding, RefusedValue, closest, did_you_mean, refuse_all
from fastagi_pool.legacy import placeholders
from fastagi_pool.routes import RouteKind, capture_names
from fastagi_pool.section import Section
from fastagi_pool.values import (
    AbsolutePath,
    Command,
    Duration,
    ErrorPolicy,
    HandlerName,
    LaneName,
    Options,
    Position,
    ProcessText,
    Server,
    ServerAddress,
    Size,
    Text,
    Truth,
    VariableName,
    Whole,
)
from fastagi_pool.yamlfile import Document, Location

#: The lane of routes that name none.
DEFAULT_LANE: Final = "default"
_MIN_SCRIPT_MEMORY_BYTES: Final = 16 * 1024**2
_OUTPUT_BYTES: Final = range(4 * 1024, 1024**3 + 1)

#: Who may serve a route's calls, and the keys that mean something to this one alone.
_OWN_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "handler": ("options", "databases", "on_hangup", "command_guard", "deferrable"),
    "command": ("process", "precompile", "warm"),
    "upstream": (),
}


class HangupPolicy(StrEnum):
    """How a handler learns that the caller hung up."""

    RAISE = "raise"
    CONTINUE = "continue"


class CommandGuard(StrEnum):
    """What is done about a command that would harm Asterisk."""

    STRICT = "strict"
    CLEAN = "clean"


class Precompile(StrEnum):
    """In which language a script is compiled in advance."""

    PERL = "perl"
    PYTHON = "python"


class Process(Section):
    """How the processes of a route's `command` are run."""

    folder: AbsolutePath | None = Field(
        default=None,
        description="Absolute path of the folder below which a script must lie once all symbolic links are "
        "followed. Absent: the folder that `command` names before its first placeholder.",
    )
    interpreter: tuple[ProcessText, ...] = Field(
        default=(),
        description="Words that stand before the script's path on its command line, as `[/usr/bin/php, -q]`. "
        "Empty: the file itself is executed, as Asterisk does, and must be executable.",
    )
    arguments: tuple[ProcessText, ...] | None = Field(
        default=None,
        description="Fixed arguments of the script, instead of those that the call brings; `[]` for none. "
        "Absent: the call's.",
    )
    max_processes: Whole = Field(
        default=100,
        ge=1,
        le=10_000,
        description="Most processes of this route that one worker has at the same time, 1 to 10000; further "
        "calls wait. 100 small scripts fit into the memory of any server.",
    )
    max_queue: Whole = Field(
        default=100,
        ge=0,
        le=10_000,
        description="How many more calls one worker lets wait for a process to end, 0 to 10000. Whoever "
        "comes beyond that is told at once that there is no place (FAGI_STATUS=OVERLOAD). 100 is as many as "
        "`max_processes`: each place is taken over once.",
    )
    max_wait: Duration = Field(
        default=5.0,
        description="How long a call may wait for a process to end before it is told that there is no place. "
        "5s is about as long as a caller bears silence.",
    )
    grace: Duration = Field(
        default=10.0,
        description="How long a script may go on after a hangup or at the end of its time: it gets SIGHUP "
        "first, and SIGKILL with all of its process group after this time; 0 kills at once. 10s let it write "
        "down what became of the call.",
    )
    cpu_time: Duration = Field(
        default=0.0,
        description="Most processor time of one process; 0 for no limit, otherwise at least 1s. Off by "
        "default, as `script_timeout` bounds the whole; it stops a script that computes without end.",
    )
    max_memory: Size = Field(
        default=0,
        description="Most address space of one process; 0 for no limit, otherwise at least 16MB. Off by "
        "default, because interpreters map far more than they use.",
    )
    max_output: Size = Field(
        default=1024**2,
        description="Most that one script may write of commands, and again on standard error; 4KB to 1GB. "
        "With more commands it is ended; of standard error, where a line counts for 100 bytes at least, the "
        "rest is not logged. 1MB is thousands of commands.",
    )
    user: str = Field(
        default="",
        description="Whom the processes run as; empty for the server's own user. Another one must exist on "
        "this machine, and needs a server that runs as root.",
    )
    directory: AbsolutePath = Field(
        default=Path("/"),
        description="Absolute path of the processes' working directory. `/`, because no mount is kept busy "
        "by it.",
    )
    environment: Mapping[VariableName, ProcessText] = Field(
        default={},
        repr=False,
        description="Environment variables that every process gets, besides the server's own and those that "
        "Asterisk sets for a script; name to text. A name consists of letters, digits and `_`.",
    )
    background: Truth = Field(
        default=True,
        description="Whether what a script leaves running, when it has ended of itself, lives on. `true`, as "
        "under Asterisk; `false` kills its process group.",
    )
    compile_timeout: Duration = Field(
        default=30.0,
        gt=0,
        description="How long compiling a script may take with `precompile`; more than 0. 30s is far above "
        "what even the largest takes.",
    )

    @field_validator("interpreter")
    @classmethod
    def _interpreter_is_a_program(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if words and not words[0].startswith("/"):
            refuse_all([Finding((0,), "must be the absolute path of a program", "for example /usr/bin/php")])
        return words

    @field_validator("cpu_time")
    @classmethod
    def _cpu_time_bounds(cls, value: float) -> float:
        # Linux counts it in whole seconds. Source: RLIMIT_CPU in getrlimit(2).
        if 0 < value < 1:
            raise ValueError("must be 0 (no limit) or at least 1s")
        return value

    @field_validator("max_memory")
    @classmethod
    def _max_memory_bounds(cls, value: int) -> int:
        if 0 < value < _MIN_SCRIPT_MEMORY_BYTES:
            raise RefusedValue("must be 0 (no limit) or at least 16MB", "a number without a unit means bytes")
        return value

    @field_validator("max_output")
    @classmethod
    def _max_output_bounds(cls, value: int) -> int:
        if value not in _OUTPUT_BYTES:
            raise ValueError("must be from 4KB to 1GB")
        return value

    @field_validator("user")
    @classmethod
    def _user_can_be_taken(cls, name: str) -> str:
        if not name:
            return name
        try:
            user_id = pwd.getpwnam(name).pw_uid
        except (KeyError, ValueError):
            raise ValueError(f"must be a user of this machine; {name!r} is none") from None
        if os.geteuid() not in (0, user_id):
            raise RefusedValue(
                f"needs a server that runs as root to become {name!r}",
                "or leave 'user' out",
            )
        return name


class UpstreamServer(Section):
    """One FastAGI server to which calls are forwarded."""

    address: Server = Field(
        description="Where it listens, as `192.0.2.7:4573`, `[2001:db8::7]:4573` or `agi.example.com:4573`; "
        "port 1 to 65535.",
    )
    max_calls: Whole = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Most calls that one worker forwards to it at the same time, up to 100000; further ones "
        "go to the next server, or wait. 0 for no limit besides `calls_per_worker`, as the server has limits "
        "of its own.",
    )


#: How servers may be written; :func:`spelled_out` makes mappings of all.
_SERVERS_SCHEMA: Final[dict[str, Any]] = {
    "title": "list of servers",
    "type": "array",
    "items": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/UpstreamServer"}]},
}


class Upstream(Section):
    """The FastAGI servers to which a route forwards its calls."""

    servers: Annotated[tuple[UpstreamServer, ...], WithJsonSchema(_SERVERS_SCHEMA)] = Field(
        description="The servers, in the order in which they are tried: each call goes to the first that is "
        "alive and has a place. At least one; each as `host:port`, or as a mapping with `address` and "
        "`max_calls`.",
    )
    connect_timeout: Duration = Field(
        default=2.0,
        gt=0,
        description="How long connecting to one server may take before the next one is tried; more than 0. A "
        "server that is there answers within milliseconds.",
    )
    max_queue: Whole = Field(
        default=100,
        ge=0,
        le=10_000,
        description="How many more calls one worker lets wait for a place when all servers have their "
        "`max_calls`, 0 to 10000. Whoever comes beyond that is told at once that there is no place "
        "(FAGI_STATUS=OVERLOAD).",
    )
    max_wait: Duration = Field(
        default=5.0,
        description="How long a call may wait for a place at a server before it is told that there is none. "
        "5s is about as long as a caller bears silence.",
    )

    @field_validator("servers")
    @classmethod
    def _servers_differ(cls, servers: tuple[UpstreamServer, ...]) -> tuple[UpstreamServer, ...]:
        if not servers:
            raise ValueError("must hold at least one server")
        seen: set[ServerAddress] = set()
        findings = []
        for number, server in enumerate(servers):
            if server.address in seen:
                findings.append(Finding((number, "address"), f"names {server.address} once more"))
            seen.add(server.address)
        refuse_all(findings)
        return servers


#: How ``upstream`` may be written; :func:`spelled_out` makes mappings of all.
_UPSTREAM_SCHEMA: Final[dict[str, Any]] = {
    "title": "`host:port`, list of servers, or mapping",
    "anyOf": [
        {"type": "string"},
        _SERVERS_SCHEMA,
        {"$ref": "#/$defs/Upstream"},
    ],
}


class Route(Section):
    """Which calls are taken, and who serves them."""

    name: str = Field(
        default="",
        max_length=100,
        description="The route's name in logs and figures; unique, of letters, digits and `_ . : / * -`, at "
        "most 100. If it is missing, it is made from `script`, `glob` or `regex`, or is `default`.",
    )
    script: Text | None = Field(
        default=None,
        description="The exact script name, that is, the path of the URL in AGI(agi://host/path), without "
        "its first `/` and its query.",
    )
    glob: Text | None = Field(
        default=None,
        description="A shell pattern for the script name, as `voicemail/*.agi`.",
    )
    regex: Text | None = Field(
        default=None,
        description="A Python regular expression for the script name; its groups reach the handler.",
    )
    default: Truth = Field(
        default=False,
        description="`true` for the route that takes what no other takes. A route has exactly one of "
        "`script`, `glob`, `regex` and `default`.",
    )
    query: Mapping[str, Text] = Field(
        default={},
        description="Parameters of the URL's query that must be there, each with its exact value or a glob. "
        "Empty: any query.",
    )
    arguments: Mapping[Position, Text] = Field(
        default={},
        description="Arguments of AGI() that must be there: position (1 is the first, up to 127) to exact "
        "value or glob. Empty: any arguments.",
    )
    context: Text | None = Field(
        default=None,
        description="A glob for the dialplan context that the call comes from (`agi_context`). Absent: any.",
    )
    priority: Whole = Field(
        default=0,
        ge=-1_000_000,
        le=1_000_000,
        description="Routes with a higher priority are tried first, -1000000 to 1000000. 0 leaves "
        "room on both sides.",
    )
    handler: HandlerName | None = Field(
        default=None,
        description="The function that serves the call, as `package.module:function`. A route has exactly "
        "one of `handler`, `command` and `upstream`.",
    )
    command: Command | None = Field(
        default=None,
        description="The absolute path of an AGI script in any language that serves the call in a process of "
        "its own, as under Asterisk: `/var/lib/asterisk/agi-bin/{script}`. `{script}` stands for the script "
        "name, `{1}` and `{name}` for what `glob` or `regex` caught. Not with `free_names`.",
    )
    process: Process | None = Field(
        default=None,
        description="How the processes of `command` are run. Absent: as the defaults of its keys say.",
    )
    precompile: Precompile | None = Field(
        default=None,
        description="`perl` or `python`: the script is compiled once, in a process that forks for each call, "
        "which saves the time that compiling takes. Absent: each call runs the file anew, as Asterisk does, "
        "because some scripts rely on that.",
    )
    warm: Whole = Field(
        default=0,
        ge=0,
        le=64,
        description="How many processes of `command` are started in advance and wait for their call, 0 to "
        "64. It needs `process.arguments` and a command that is the same for every call. 0, because each "
        "of them holds its memory while it waits.",
    )
    upstream: Annotated[Upstream | None, WithJsonSchema(_UPSTREAM_SCHEMA)] = Field(
        default=None,
        description="Another FastAGI server to which the call is forwarded: `host:port`, or a list of "
        "servers that are tried in order, or a mapping with the list under `servers`.",
    )
    options: Options = Field(
        default={},
        description="Free settings for the `handler`, of any depth. Unquoted `yes`, `no`, `on` and `off` are "
        "refused here, because they may be text or truth values.",
    )
    databases: tuple[str, ...] = Field(
        default=(),
        description="Names of the databases that the handler uses; each must stand under `databases`.",
    )
    on_hangup: HangupPolicy = Field(
        default=HangupPolicy.RAISE,
        description="What a hangup does to the handler: `raise` ends it at its next command, `continue` only "
        "sets `call.hung_up` and lets it go on with the commands that a dead channel permits. `raise`, "
        "because a handler that does not think of it must not go on talking to nobody.",
    )
    on_error: ErrorPolicy | None = Field(
        default=None, description="Instead of the general `on_error` on this route."
    )
    command_guard: CommandGuard = Field(
        default=CommandGuard.STRICT,
        description="What happens to a command with a line end or NUL in an argument: `strict` refuses it "
        "(the handler gets an AGICommandRefused), `clean` puts spaces there. A command that is too long is "
        "refused either way.",
    )
    mask_digits: Truth = Field(
        default=False,
        description="Whether what callers of this route dial is hidden wherever calls are shown (`record`, "
        "`trace`, `calls`, the slow log), for card numbers and PINs.",
    )
    free_names: Truth = Field(
        default=False,
        description="Whether script names of this route may hold `..` and control characters, for handlers "
        "to which a name is text that came from the other side of a trunk. `false`, because to a handler "
        "that looks for a file of that name they are an attack.",
    )
    script_timeout: Duration | None = Field(
        default=None, description="Instead of `limits.script_timeout` on this route; 0 for no limit."
    )
    idle_timeout: Duration | None = Field(
        default=None, description="Instead of `limits.idle_timeout` on this route; 0 for no limit."
    )
    drain_timeout: Duration | None = Field(
        default=None,
        description="Instead of the general `drain_timeout` for calls of this route, for example short for "
        "those that only log, so that old workers are gone soon.",
    )
    slow_after: Duration | None = Field(
        default=None, description="Instead of `slow.after` on this route; 0 for never."
    )
    lane: LaneName = Field(
        default=DEFAULT_LANE,
        description="The lane that its calls belong to, one of those under `lanes`. `default` is there by "
        "itself, and nothing is kept free for it.",
    )
    deferrable: Truth | None = Field(
        default=None,
        description="Whether calls whose database is away are written into the journal and done later, to "
        "the dialplan a success. Absent: as the `handler` declares itself; `true` needs one that does.",
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        added: dict[str, object] = {}
        if values.get("name") is None:
            added["name"] = _derived_name(values)
        if values.get("command") is not None and values.get("process") is None:
            added["process"] = {}
        return {**values, **added}

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.:/*-]+", value):
            raise ValueError("must be a name of letters, digits and _ . : / * -")
        return value

    @field_validator("script", "glob")
    @classmethod
    def _script_can_come(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if not value.isprintable() or not value:
            raise ValueError("must be a script name")
        if value.startswith("/"):
            raise RefusedValue("must not begin with '/'", f"write {value.lstrip('/')!r}")
        if ".." in value.split("/"):
            raise ValueError("must not hold '..' as a part of its path")
        if info.field_name == "script" and "?" in value:
            raise RefusedValue("must not hold a query", "match it with 'query:'")
        return value

    @field_validator("regex")
    @classmethod
    def _regex_compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return value

    @field_validator("command")
    @classmethod
    def _placeholders_are_caught(cls, command: str | None, info: ValidationInfo) -> str | None:
        if command is None or not {"glob", "regex"} <= info.data.keys():
            return command
        known = ("script", *_captured(info.data["glob"], info.data["regex"]))
        for name in placeholders(command):
            if name not in known:
                hint = did_you_mean(closest(name, known)) or f"it knows {_in_braces(known)}"
                raise RefusedValue(f"holds {{{name}}}, which this route does not know", hint)
        return command

    @model_validator(mode="after")
    def _fits_together(self) -> Route:
        refuse_all([*self._unclear_kind(), *self._foreign_keys(), *self._command_conflicts()])
        return self

    @property
    def script_folder(self) -> Path:
        """The folder below which a script must lie; without meaning if there is no ``command``."""
        literal = (self.command or "/").partition("{")[0]
        return (self.process and self.process.folder) or Path(literal.rpartition("/")[0] or "/")

    def foreign_keys(self) -> Iterator[tuple[str, str]]:
        """Name the keys that mean nothing to whoever serves its calls, each with the one it is for."""
        for owner, keys in _OWN_KEYS.items():
            if getattr(self, owner) is None:
                yield from ((key, owner) for key in keys)

    def _unclear_kind(self) -> Iterator[Finding]:
        if [self.script, self.glob, self.regex, self.default or None].count(None) != 3:
            yield Finding((), "must have exactly one of 'script', 'glob', 'regex' and 'default: true'")
        if [self.handler, self.command, self.upstream].count(None) != 2:
            message = "must have exactly one of 'handler', 'command' and 'upstream'"
            yield Finding((), message, "a Python function, a script to run, or a server to forward to")

    def _foreign_keys(self) -> Iterator[Finding]:
        is_known = any((self.handler, self.command, self.upstream))
        for key, owner in self.foreign_keys():
            if is_known and key in self.model_fields_set:
                yield Finding((key,), f"is for routes with '{owner}' only")

    def _command_conflicts(self) -> Iterator[Finding]:
        if self.command is None:
            return
        if self.free_names:
            yield Finding(("free_names",), "must not be true with 'command': the name becomes part of a path")
        open_parts = placeholders(self.command)
        if open_parts and self.script_folder == Path("/") and not (self.process and self.process.folder):
            message = "would run any file of this machine"
            hint = "put the scripts' folder before its first placeholder, or set process.folder"
            yield Finding(("command",), message, hint)
        if self.warm:
            yield from self._warm_conflicts(open_parts)

    def _warm_conflicts(self, open_parts: tuple[str, ...]) -> Iterator[Finding]:
        """Find why processes cannot be started before their calls are known."""
        if self.precompile:
            yield Finding(("warm",), "must not stand beside 'precompile'; keep one of them")
        if open_parts and (self.script is None or set(open_parts) != {"script"}):
            hint = "take its placeholders out, or make a route with 'script' for each script"
            yield Finding(("warm",), "needs a 'command' that is the same for every call", hint)
        if self.process is None or self.process.arguments is None:
            hint = "as process: {arguments: []}"
            yield Finding(("warm",), "needs 'process.arguments': those of a call come too late", hint)


def _captured(glob: str | None, regex: str | None) -> tuple[str, ...]:
    if glob is not None:
        return capture_names(RouteKind.GLOB, glob)
    return capture_names(RouteKind.REGEX, regex) if regex is not None else ()


def _in_braces(names: tuple[str, ...]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


def _derived_name(values: Mapping[str, object]) -> str:
    """Make a route's name from what it matches; ``default`` if that is not to be seen."""
    for key, prefix in (("script", ""), ("glob", ""), ("regex", "regex:")):
        match = values.get(key)
        if isinstance(match, str) and match:
            plain = re.sub(r"[^A-Za-z0-9_.:/*-]+", "-", match).strip("-")
            return f"{prefix}{plain or 'unnamed'}"[:100]
    return "default"


# -- Short forms ------------------------------------------------------------------------------------------


def spelled_out(document: Document) -> Document:
    """Write out the short forms of ``upstream``: ``a:1`` is ``{servers: [{address: "a:1"}]}``.

    Returns:
        The document with long forms alone. Its source map knows each value by its new location, and still
        tells the key, the file and the line that the operator wrote.
    """
    routes = document.values.get("routes")
    if not isinstance(routes, list):
        return document
    written = {
        number: route["upstream"]
        for number, route in enumerate(routes)
        if isinstance(route, Mapping) and isinstance(route.get("upstream"), str | list | Mapping)
    }
    longer = [
        {**route, "upstream": _long_form(written[number])} if number in written else route
        for number, route in enumerate(routes)
    ]
    moves = [
        move
        for number, upstream in written.items()
        for move in _moves(("routes", number, "upstream"), upstream)
    ]
    source_map, broken = document.source_map, document.broken
    places = {new: source_map.places[old] for new, old in moves if old in source_map.places}
    return replace(
        document,
        values={**document.values, "routes": longer},
        source_map=replace(source_map, places={**source_map.places, **places}),
        broken=broken.union(new for new, old in moves if old in broken),
    )


def _servers(upstream: object) -> Sequence[object]:
    """Give the servers in whatever stands under ``upstream``; none if it cannot be told."""
    servers = upstream.get("servers") if isinstance(upstream, Mapping) else upstream
    if isinstance(upstream, str):
        return [upstream]
    return servers if isinstance(servers, list) else []


def _long_form(upstream: object) -> object:
    servers = _servers(upstream)
    if not servers and not isinstance(upstream, list):
        return upstream
    section = upstream if isinstance(upstream, Mapping) else {}
    longer = [server if isinstance(server, Mapping) else {"address": server} for server in servers]
    return {**section, "servers": longer}


def _moves(base: Location, upstream: object) -> Iterator[tuple[Location, Location]]:
    """Say where the values of one ``upstream`` stand when it is written out.

    Args:
        base: Where it stands itself.
        upstream: What stands there.

    Returns:
        Pairs of the location in the long form and the one as written.
    """
    servers = (*base, "servers")
    if isinstance(upstream, str):
        yield (*servers, 0, "address"), base
        return
    written = base if isinstance(upstream, list) else servers
    yield servers, written
    for number, server in enumerate(_servers(upstream)):
        if isinstance(server, Mapping):
            yield (*servers, number), (*written, number)
            yield from (((*servers, number, key), (*written, number, key)) for key in server)
        else:
            yield (*servers, number, "address"), (*written, number)
