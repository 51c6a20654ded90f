"""The configuration: a YAML file as a frozen model in which everything has been checked.

Laws:
    * A :class:`Config` that exists can be run: every default, bound and unit is decided here, and nobody
      else checks again. What needs the outside world (importing a handler, reaching a database) is left
      to later stages, which report through :meth:`LoadedConfig.problem`.
    * All problems are reported at once, each with its file, line and key.
    * The environment is an argument: this module never reads it.
    * A field's description is its documentation: ``docs/configuration.md`` and the JSON Schema are
      generated from these models.
    * Passwords appear in no message and no ``repr``.

How it works: :mod:`fastagi_pool.yamlfile` turns the files into text, lists and mappings with places; the
models below give the text its types, each in the way of :mod:`fastagi_pool.values`; what pydantic finds
wrong is told in the words of the file.
"""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fastagi_pool.errors import Problem
from fastagi_pool.findings import Finding, RefusedValue, closest, did_you_mean, refuse_all
from fastagi_pool.laneconfig import Journal, Lane, Quarantine
from fastagi_pool.routeconfig import DEFAULT_LANE, Process, Route, Upstream, UpstreamServer, spelled_out
from fastagi_pool.section import Section, checked
from fastagi_pool.serviceconfig import Http, Log, Rotation, Slow
from fastagi_pool.values import (
    MAX_WORKERS,
    AbsolutePath,
    Address,
    DatabaseName,
    DatabaseUrls,
    Duration,
    ErrorPolicy,
    Fraction,
    LaneName,
    ListenAddress,
    ListenKind,
    Network,
    PathOrNothing,
    ServerAddress,
    Size,
    Truth,
    Whole,
    Workers,
    find_login,
    parse_listen_address,
)
from fastagi_pool.yamlfile import Document, Layout, Location, SourceMap, read_file, read_text

_HOUR_S: Final = 3600.0
_DEFAULT_LISTEN: Final = (ListenAddress(ListenKind.TCP, "127.0.0.1", 4577),)

_LAYOUT: Final = Layout(
    joined=frozenset({"listen", "allow", "python_path", "routes"}), folders=frozenset({"python_path"})
)


# -- The model --------------------------------------------------------------------------------------------


class Limits(Section):
    """What one call may take before it is ended."""

    header_timeout: Duration = Field(
        default=10.0,
        gt=0,
        description="How long a new connection may take to send its whole AGI environment; more than 0. "
        "Asterisk sends it at once, so that 10s already means a stranger or a broken network.",
    )
    idle_timeout: Duration = Field(
        default=4 * _HOUR_S,
        description="Longest wait for Asterisk's answer to one command; 0 for no limit. The default is long "
        "because a Dial is one command and lasts as long as the conversation.",
    )
    script_timeout: Duration = Field(
        default=60.0,
        description="How long a handler's own work may take in one call, not counting the time that Asterisk "
        "takes for its commands; 0 for no limit. 60s is far above what a caller would wait for.",
    )
    header_size: Size = Field(
        default=64 * 1024,
        description="Largest AGI environment in bytes, 1KB to 1MB. Asterisk's own is about 1 KB; the rest is "
        "room for arguments.",
    )
    line_length: Size = Field(
        default=16 * 1024,
        description="Longest line of the AGI environment in bytes, 256 up to `header_size`. Longer than any "
        "argument that Asterisk passes.",
    )
    arguments: Whole = Field(
        default=127,
        ge=0,
        le=127,
        description="Most arguments (`agi_arg_N`) of a call, 0 to 127. 127 is the most that Asterisk sends.",
    )
    connections: Whole = Field(
        default=10_000,
        ge=1,
        le=100_000,
        description="How many connections one worker keeps open that have not told yet what they want, 1 to "
        "100000; fewer if the machine has no file descriptors for them. Beyond it the one that has been "
        "silent for longest is told FAILURE. 10000 silent ones cost about 30 MB.",
    )
    calls_per_server: Whole = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Most calls of one Asterisk server that one worker serves or lets wait at the same time, "
        "up to 100000; 0 for no limit. With it a dialer that runs wild cannot take the places of the others.",
    )

    @field_validator("header_size")
    @classmethod
    def _header_size_bounds(cls, value: int) -> int:
        if not 1024 <= value <= 1024**2:
            raise ValueError("must be from 1KB to 1MB")
        return value

    @field_validator("line_length")
    @classmethod
    def _line_length_bounds(cls, value: int, info: ValidationInfo) -> int:
        if not 256 <= value <= info.data.get("header_size", value):
            raise ValueError("must be at least 256 bytes and at most header_size")
        return value


class Database(Section):
    """One database that handlers may use, and how its connections are kept."""

    urls: DatabaseUrls = Field(
        alias="url",
        repr=False,
        description="Where the database is, as an SQLAlchemy URL such as `mysql+pymysql://user@host/name` or "
        "`sqlite:////var/lib/calls.db`; or a list of them with the same driver, which are tried in order.",
    )
    password: str = Field(
        default="",
        repr=False,
        description="The password, put into each URL; empty if the URLs hold it or none is needed. It stands "
        "here so that it can come from a file: `${file:/run/secrets/password}`.",
    )
    pool_size: Whole = Field(
        default=4,
        ge=1,
        le=200,
        description="Most connections that one worker opens, 1 to 200. All workers together must stay below "
        "what the database allows; 4 serve many hundred calls, because a call holds one only for moments.",
    )
    pool_timeout: Duration = Field(
        default=5.0,
        gt=0,
        description="How long a call waits for a free connection before the database counts as away; more "
        "than 0. 5s is about as long as a caller bears silence.",
    )
    idle_ping: Duration = Field(
        default=30.0,
        description="A connection that lay idle for longer is pinged before it is used; 0 pings always. 30s "
        "is shorter than the patience of firewalls and costs nothing under load.",
    )
    max_age: Duration = Field(
        default=_HOUR_S,
        description="A connection older than this is closed and opened again; 0 for never. It lets "
        "connections return to a server that was away, and stays below the usual server time-outs.",
    )
    connect_timeout: Duration = Field(
        default=5.0,
        gt=0,
        description="How long opening one connection may take before the next URL is tried; more than 0.",
    )
    read_timeout: Duration = Field(
        default=30.0,
        gt=0,
        description="How long the database may take to answer one statement; more than 0. A call that waits "
        "longer is lost anyway.",
    )
    write_timeout: Duration = Field(
        default=30.0,
        gt=0,
        description="How long sending one statement may take; more than 0. It only runs out when the network "
        "is stuck.",
    )
    required_at_boot: Truth = Field(
        default=True,
        description="Whether the first worker of a start or a reload is only ready once this database "
        "answers. `true`, so that a wrong URL shows at the start and not in the first call. Workers that "
        "replace others do not wait: an outage must not keep a pool from replacing its workers.",
    )
    sql_mode: str = Field(
        default="",
        description="What `sql_mode` is set to on each new connection to MariaDB or MySQL: names of modes "
        "with `,` between them; empty for the server's own. For handlers that rely on how the server treats "
        "values that do not fit.",
    )
    probe_timeout: Duration = Field(
        default=0.5,
        gt=0,
        description="A server that answers no statement for so long is asked for a sign of life, and counts "
        "as away if it gives none within the same time; more than 0. Calls wait no longer then, and none is "
        "begun until it is back. One that is only busy answers at once.",
    )
    writable: Truth = Field(
        default=True,
        description="Whether a MariaDB or MySQL server that is read-only counts as away, so that the next of "
        "the list is used. `true`, because a primary that was demoted goes on to answer; `false` for a "
        "database from which handlers only read.",
    )
    multi_statements: Truth = Field(
        default=False,
        description="Whether MariaDB or MySQL takes several statements in one packet, for handlers that save "
        "round trips by it. `false`, because it lets an SQL injection in any handler do more harm.",
    )

    @field_validator("sql_mode")
    @classmethod
    def _sql_mode_is_names(cls, value: str) -> str:
        # It becomes part of a statement.
        if not re.fullmatch(r"[A-Za-z0-9_,]*", value):
            raise ValueError("must be names of letters, digits and '_' with ',' between them")
        return value

    @field_validator("password")
    @classmethod
    def _password_has_a_place(cls, password: str, info: ValidationInfo) -> str:
        for url in info.data.get("urls", ()) if password else ():
            login = find_login(url)
            if login is None or not login["user"]:
                raise RefusedValue("needs a URL that names the user", "as mysql+pymysql://user@host/name")
            if login["password"] is not None:
                raise ValueError("is given although the URL holds a password too; keep one of them")
        return password

    def connect_urls(self) -> tuple[str, ...]:
        """Give the URLs with the password in its place, as SQLAlchemy wants them."""
        if not self.password:
            return self.urls
        return tuple(url.replace("@", f":{quote(self.password, safe='')}@", 1) for url in self.urls)


class Config(Section):
    """Everything that the operator decides."""

    listen: tuple[Address, ...] = Field(
        default_factory=lambda: _DEFAULT_LISTEN,
        description="Addresses to accept calls on: `127.0.0.1:4577`, `[::1]:4577`, `*:4577` (every IPv4 and "
        "IPv6 address), `unix:/path/to.sock`, or `systemd` for inherited sockets. Port 0 lets the system "
        "choose. Only this machine by default, because FastAGI knows no password.",
    )
    backlog: Whole = Field(
        default=1024,
        ge=1,
        le=65535,
        description="How many connections may wait to be accepted, 1 to 65535. Enough for a second of very "
        "many calls while workers are replaced; Linux cuts it to net.core.somaxconn.",
    )
    allow: tuple[Network, ...] = Field(
        default=(),
        description="Networks whose connections are accepted, as `10.0.0.0/8` or `192.0.2.7`; empty for all. "
        "Needed as soon as an address in `listen` can be reached from other machines.",
    )
    workers: Workers = Field(
        default="auto",
        description="How many worker processes serve calls: 1 to 512, or `auto` for one per processor core, "
        "which uses them all without crowding.",
    )
    calls_per_worker: Whole = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="Most calls that one worker serves at the same time, 1 to 100000; further ones wait. "
        "1000 calls that mostly wait for Asterisk are light work for a core.",
    )
    max_queue: Whole = Field(
        default=100,
        ge=0,
        le=10_000,
        description="How many more calls one worker lets wait for a place when all workers are full, 0 to "
        "10000. Whoever comes beyond that is told at once that there is no place (FAGI_STATUS=OVERLOAD). 100 "
        "is what a busy worker serves within `max_wait`.",
    )
    max_wait: Duration = Field(
        default=5.0,
        description="How long a call may wait for a place before it is told that there is none. 5s is about "
        "as long as a caller bears silence.",
    )
    max_calls: Whole = Field(
        default=10_000,
        ge=0,
        le=1_000_000_000,
        description="A worker is replaced after this many calls, 0 for never, up to 1000000000. 10000 keeps "
        "whatever a handler leaks small, at a cost that cannot be measured.",
    )
    max_calls_jitter: Fraction = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Part of `max_calls` by which each worker's count is higher at random, 0.0 to 1.0, so "
        "that workers do not retire together.",
    )
    max_lifetime: Duration = Field(
        default=0.0,
        description="A worker is replaced after this time; 0 for never, as `max_calls` does the job.",
    )
    max_memory: Size = Field(
        default=0,
        description="A worker is replaced when its resident memory exceeds this, 0 for never, otherwise at "
        "least 1MB. Off by default, because what is normal depends on the handlers.",
    )
    max_unavailable: Whole = Field(
        default=1,
        ge=1,
        le=64,
        description="How many workers are replaced at the same time, 1 to 64. 1 disturbs the calls least.",
    )
    max_draining: Whole = Field(
        default=16,
        ge=1,
        le=256,
        description="How many replaced workers may still be finishing long calls, 1 to 256; beyond that no "
        "worker is replaced. It bounds the memory that old workers hold.",
    )
    graceful_timeout: Duration = Field(
        default=30.0,
        description="How long calls in progress may go on when the server stops; 0 ends them at once. "
        "Shorter than the 90 seconds after which systemd kills.",
    )
    drain_timeout: Duration = Field(
        default=4 * _HOUR_S,
        description="How long the calls of a replaced worker may go on; 0 ends them at once. It costs "
        "nothing to wait, and a Dial lasts hours.",
    )
    boot_timeout: Duration = Field(
        default=60.0,
        gt=0,
        description="How soon after its start a worker must be ready, its handlers loaded and its databases "
        "open; more than 0. 60s leaves time for a database that is just starting.",
    )
    boot_retries: Whole = Field(
        default=10,
        ge=1,
        le=1000,
        description="How many worker starts in a row may fail before the server gives up, 1 to 1000. 10 "
        "rides out a short trouble and still tells a lasting one.",
    )
    watchdog: Duration = Field(
        default=30.0,
        description="A worker that gives no sign of life for this long is stuck, and is killed and replaced; "
        "at least 1s, or 0 for off. 30s is longer than any pause of a healthy worker.",
    )
    witness: Truth = Field(
        default=True,
        description="Whether beside each worker lives a process that tells Asterisk the truth if the worker "
        "is killed or crashes (FAGI_STATUS=CRASH). `true`, because otherwise its calls would be successes; "
        "`false` saves that process, which is small, and is needed on machines other than x86-64 and ARM64.",
    )
    on_error: ErrorPolicy = Field(
        default="continue",
        description="What the dialplan does after a call that failed, besides seeing AGISTATUS=FAILURE: "
        "`continue` with its next priority, `hangup`, or `goto context,extension,priority`. `continue`, "
        "because a dialplan that tests AGISTATUS decides best.",
    )
    limits: Limits = Field(default_factory=Limits, description="What one call may take.")
    lanes: Mapping[LaneName, Lane] = Field(
        default={},
        description="Lanes, by name: calls that share places, so that one kind of calls cannot take those of "
        "another. Routes say by `lane` where their calls belong. A name consists of small letters, digits "
        "and `_`, and begins with a letter; `default` holds the calls of all other routes.",
    )
    quarantine: Quarantine = Field(
        default_factory=Quarantine, description="What is done about requests that end workers."
    )
    journal: Journal = Field(
        default_factory=Journal, description="Where calls are kept whose database is away."
    )
    python_path: tuple[AbsolutePath, ...] = Field(
        default=(),
        description="Folders in which handlers are looked for, before Python's own; relative to the file "
        "that names them. They must exist.",
    )
    runtime_dir: AbsolutePath = Field(
        default=Path("/run/fastagi-pool"),
        description="Absolute path of the folder for what lives as long as the server, such as the figures "
        "that the workers share. Under /run, because that is memory and empty after a reboot.",
    )
    pid_file: PathOrNothing = Field(
        default="",
        description="Absolute path of the file that gets the master's process id; empty for none, which is "
        "right under systemd.",
    )
    user: str = Field(
        default="",
        description="Whom the server becomes once its ports are open; empty for whoever starts it. Another "
        "one needs a start as root, and must be able to read this file.",
    )
    group: str = Field(
        default="",
        description="The group it becomes with `user`; empty for that user's own.",
    )
    umask: str = Field(
        default="",
        description="Rights that files which the server makes do not get, as an octal number such as `027`; "
        "empty for those of whoever starts it.",
    )
    chdir: PathOrNothing = Field(
        default="",
        description="Absolute path of the folder in which the server works; empty for where it was started, "
        "which is `/` for a daemon.",
    )
    log: Log = Field(default_factory=Log, description="Where the log goes.")
    slow: Slow = Field(default_factory=Slow, description="Which calls are slow, and where that is written.")
    http: Http = Field(default_factory=Http, description="Where the state of the pool is shown.")
    databases: Mapping[DatabaseName, Database] = Field(
        default={},
        description="The databases that handlers may use, by name. A name consists of small letters, digits "
        "and `_`, and begins with a letter.",
    )
    routes: tuple[Route, ...] = Field(
        description="Which calls are taken, and who serves them; at least one route.",
    )

    def worker_count(self, cores: int) -> int:
        """Say how many workers to run.

        Args:
            cores: The processor cores that this server may use; counts for ``auto``.
        """
        return max(1, min(cores, MAX_WORKERS)) if self.workers == "auto" else self.workers

    @field_validator("user")
    @classmethod
    def _user_exists(cls, name: str) -> str:
        try:
            if name:
                pwd.getpwnam(name)
        except (KeyError, ValueError):
            raise ValueError(f"must be a user of this machine; {name!r} is none") from None
        return name

    @field_validator("group")
    @classmethod
    def _group_exists(cls, name: str, info: ValidationInfo) -> str:
        if name and info.data.get("user") == "":
            raise ValueError("needs 'user'")
        try:
            if name:
                grp.getgrnam(name)
        except (KeyError, ValueError):
            raise ValueError(f"must be a group of this machine; {name!r} is none") from None
        return name

    @field_validator("umask")
    @classmethod
    def _umask_is_octal(cls, value: str) -> str:
        if not re.fullmatch(r"0?[0-7]{0,3}", value):
            raise RefusedValue("must be an octal number from 0 to 777", "in quotes, as '027'")
        return value

    @field_validator("chdir")
    @classmethod
    def _folder_exists(cls, folder: str) -> str:
        if folder and not Path(folder).is_dir():
            raise ValueError(f"must be an existing folder; {folder} is none")
        return folder

    @field_validator("watchdog")
    @classmethod
    def _watchdog_bounds(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError("must be 0 (off) or at least 1s")
        return value

    @field_validator("max_memory")
    @classmethod
    def _max_memory_bounds(cls, value: int) -> int:
        if 0 < value < 1024**2:
            raise RefusedValue("must be 0 (never) or at least 1MB", "a number without a unit means bytes")
        return value

    @field_validator("python_path")
    @classmethod
    def _folders_exist(cls, folders: tuple[Path, ...]) -> tuple[Path, ...]:
        refuse_all(
            [
                Finding((number,), f"must be an existing folder; {folder} is none")
                for number, folder in enumerate(folders)
                if not folder.is_dir()
            ]
        )
        return folders

    @field_validator("listen", "routes")
    @classmethod
    def _not_empty(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if not value:
            raise ValueError("must hold at least one entry")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        refuse_all(
            [
                *_conflicts(self.listen, bool(self.allow), self.routes, self.databases, self.lanes),
                *_reserved_too_much(self.lanes, self.calls_per_worker),
                *_taken_twice(self.listen, self.http.address),
            ]
        )
        return self


def _conflicts(
    listen: Sequence[ListenAddress | None],
    allowed: bool,
    routes: Sequence[Route | None],
    databases: Collection[str],
    lanes: Collection[str],
) -> list[Finding]:
    """Find what is wrong between entries that are right by themselves; None stands for one that is not."""
    return [
        *_listen_conflicts(listen, allowed),
        *_route_conflicts(routes, databases, lanes),
        *_loops(listen, routes),
    ]


def _listen_conflicts(listen: Sequence[ListenAddress | None], allowed: bool) -> Iterator[Finding]:
    seen: dict[ListenAddress, int] = {}
    for number, address in enumerate(listen):
        if address is None:
            continue
        system_chooses = address.kind is ListenKind.TCP and address.port == 0
        if address in seen and not system_chooses:
            yield Finding(("listen", number), f"is the same address as listen[{seen[address]}]")
        seen.setdefault(address, number)
        if address.kind is ListenKind.TCP and not address.is_loopback and not allowed:
            message = "can be reached from other machines, so 'allow' must say which may call"
            yield Finding(("listen", number), message, "for example allow: [10.0.0.0/8]")


def _taken_twice(listen: Sequence[ListenAddress], http: ListenAddress | None) -> Iterator[Finding]:
    for number, address in enumerate(listen):
        if http is not None and address.port and address.port == http.port and _overlap(address, http):
            message = f"is where calls come in: listen[{number}] is {address}"
            yield Finding(("http", "listen"), message, "give it another port, or say off")


def _overlap(one: ListenAddress, other: ListenAddress) -> bool:
    everywhere = {"*", "0.0.0.0", "::"}
    return one.host == other.host or bool(everywhere & {one.host, other.host})


def _reserved_too_much(lanes: Mapping[str, Lane], places: int) -> Iterator[Finding]:
    reserved = sum(lane.reserve for lane in lanes.values())
    if reserved >= places:
        message = f"reserve {reserved} places together, but a worker has {places} (calls_per_worker)"
        yield Finding(("lanes",), message, "other calls need some too")
    for name, lane in lanes.items():
        if lane.max_active is not None and lane.reserve > lane.max_active:
            message = f"is more than the lane may use: max_active is {lane.max_active}"
            yield Finding(("lanes", name, "reserve"), message)


def _route_conflicts(
    routes: Sequence[Route | None], databases: Collection[str], lanes: Collection[str]
) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    for number, route in enumerate(routes):
        if route is None:
            continue
        if route.name in seen:
            message = f"has the name {route.name!r}, as routes[{seen[route.name]}] has"
            yield Finding(("routes", number), message, "give one of them another 'name'")
        seen.setdefault(route.name, number)
        if route.lane not in lanes and route.lane != DEFAULT_LANE:
            message = f"names no lane: {route.lane!r}"
            yield Finding(("routes", number, "lane"), message, did_you_mean(closest(route.lane, lanes)))
        for position, name in enumerate(route.databases):
            if name not in databases:
                location = ("routes", number, "databases", position)
                yield Finding(
                    location, f"names no database: {name!r}", did_you_mean(closest(name, databases))
                )


def _loops(listen: Sequence[ListenAddress | None], routes: Sequence[Route | None]) -> Iterator[Finding]:
    """Find the upstream servers that are this server itself."""
    for number, route in enumerate(routes):
        servers = route.upstream.servers if route and route.upstream else ()
        for place, server in enumerate(servers):
            own = [each for each, ours in enumerate(listen) if ours and _leads_to(server.address, ours)]
            if own:
                location = ("routes", number, "upstream", "servers", place, "address")
                message = f"is this server itself, by listen[{own[0]}]: the calls would go round for ever"
                yield Finding(location, message)


def _leads_to(server: ServerAddress, ours: ListenAddress) -> bool:
    """Whether who connects to this server surely reaches our own socket."""
    if ours.kind is not ListenKind.TCP or server.port != ours.port:
        return False
    # Linux takes a connection to the address of all as one to itself.
    if server.host in {"localhost", "0.0.0.0", "::"}:
        return ours.is_loopback or ours.host in {"*", "0.0.0.0", "::"}
    everywhere = {"*", "::" if ":" in server.host else "0.0.0.0"}
    return server.host == ours.host or (server.is_loopback and ours.host in everywhere)


# -- Loading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration that passed every check, and where it came from.

    Attributes:
        config: The configuration.
        files: The absolute paths of all files that were read, the main file first.
        source_map: Where each key stands.
    """

    config: Config
    files: tuple[Path, ...]
    source_map: SourceMap = field(repr=False, compare=False)

    def problem(self, location: Location, message: str, hint: str = "") -> Problem:
        """Report what only a later stage can see, such as a handler that cannot be imported.

        Args:
            location: The key path, as ``("routes", 2, "handler")``; of an absent key its nearest parent
                gives the file and the line.
            message: What is wrong.
            hint: What to do about it; may be empty.
        """
        return self.source_map.problem(location, message, hint)


def load(path: Path, environment: Mapping[str, str]) -> LoadedConfig:
    """Read and check a configuration file with all that it includes.

    Args:
        path: The main file.
        environment: The variables for ``${NAME}``, normally the process's.

    Raises:
        ConfigError: Something is wrong; it carries every problem that could be found.
    """
    return _loaded(read_file(path, environment, _LAYOUT))


def load_text(text: str, name: str, base: Path, environment: Mapping[str, str]) -> LoadedConfig:
    """Read and check a configuration that is a string, for example one built into a program.

    Args:
        text: The YAML.
        name: What to call it in problems.
        base: The folder that its relative paths start from.
        environment: The variables for ``${NAME}``.

    Raises:
        ConfigError: Something is wrong; it carries every problem that could be found.
    """
    return _loaded(read_text(text, name, base, environment, _LAYOUT))


def _loaded(written: Document) -> LoadedConfig:
    document = spelled_out(written)
    config = checked(document, Config, _known_keys, _partial_conflicts)
    return LoadedConfig(config, document.files, document.source_map)


#: What each mapping of the file is, by where it stands; ``*`` stands for any number, and for any name of a
#: database. Others are routes.
_MAPPINGS: Final[Mapping[Location, type[Section]]] = {
    ("log",): Log,
    ("log", "rotate"): Rotation,
    ("slow",): Slow,
    ("http",): Http,
    ("limits",): Limits,
    ("lanes", "*"): Lane,
    ("quarantine",): Quarantine,
    ("journal",): Journal,
    ("databases", "*"): Database,
    ("routes", "*", "process"): Process,
    ("routes", "*", "upstream"): Upstream,
    ("routes", "*", "upstream", "servers", "*"): UpstreamServer,
}


def _known_keys(location: Location) -> list[str]:
    """Give the keys that the mapping at a location may have."""
    if not location:
        return [*Config.file_keys(), "include"]
    place = tuple("*" if isinstance(key, int) else key for key in location)
    if place[0] in ("databases", "lanes"):
        place = (place[0], "*")
    return _MAPPINGS.get(place, Route).file_keys()


_Checked = TypeVar("_Checked")


def _partial_conflicts(values: Mapping[str, object]) -> list[Finding]:
    """Check together what is right by itself, when something else keeps the model from doing it."""
    routes = [_if_valid(Route.model_validate, item) for item in _items(values, "routes")]
    listen: Sequence[ListenAddress | None] = _DEFAULT_LISTEN
    if values.get("listen") is not None:
        listen = [_if_valid(parse_listen_address, item) for item in _items(values, "listen")]
    allowed = bool(values.get("allow"))
    databases = values.get("databases") or {}
    if not isinstance(databases, Mapping):
        # Nobody knows which there are meant to be, so no name is wrong.
        databases = {name: None for route in routes if route for name in route.databases}
    lanes = values.get("lanes") or {}
    if not isinstance(lanes, Mapping):
        lanes = {route.lane: None for route in routes if route}
    return _conflicts(listen, allowed, routes, databases, lanes)


def _items(values: Mapping[str, object], key: str) -> list[object]:
    items = values.get(key)
    return items if isinstance(items, list) else []


def _if_valid(check: Callable[[object], _Checked], value: object) -> _Checked | None:
    try:
        return check(value)
    except ValueError:
        return None
