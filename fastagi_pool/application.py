"""Application: configuration, routes and handlers put together, ready to serve or to be refused.

Laws:
    * All that is wrong is found in one go and said with file, line and key.
    * SQLAlchemy and the drivers are imported here, before any fork, and only if there are databases: a
      pool without them forks and ends its workers a fifth quicker.
    * Handlers are imported here and nowhere else, in a process that may die of it: a loader or
      ``fastagi-pool check``, never the master.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from fastagi_pool.backlog import BACKLOG_NAME
from fastagi_pool.config import Config, LoadedConfig
from fastagi_pool.config import Database as DatabaseConfig
from fastagi_pool.context import Context
from fastagi_pool.deferring import deferral_of
from fastagi_pool.dispatch import Handler
from fastagi_pool.endings import OnError
from fastagi_pool.errors import ConfigError, DatabaseUnavailable, OperatorError, Problem
from fastagi_pool.handlers.builtin import PING_SCRIPT, STATUS_SCRIPT, Load, StatusHandler, ping
from fastagi_pool.handlers.scripts import ScriptHandler
from fastagi_pool.handlers.upstream import UpstreamHandler
from fastagi_pool.journal import Journal
from fastagi_pool.laneconfig import Lane
from fastagi_pool.lanes import LaneLimits
from fastagi_pool.launches import MOST_LINGERING, Launches
from fastagi_pool.launching import Door, ProcessSettings
from fastagi_pool.legacy import CommandSettings
from fastagi_pool.protocol import HeaderLimits
from fastagi_pool.routeconfig import DEFAULT_LANE, CommandGuard, HangupPolicy, Process, Upstream
from fastagi_pool.routeconfig import Route as RouteConfig
from fastagi_pool.routes import Route, RouteKind, RouteTable
from fastagi_pool.session import SessionLimits
from fastagi_pool.upstreams import Server, UpstreamSettings

if TYPE_CHECKING:
    from fastagi_pool.database import Database, DatabaseSettings
    from fastagi_pool.marks import Marks

#: Files that a worker needs besides its calls: logs, pipes, libraries that open something.
_SPARE_DESCRIPTORS: Final = 64
#: Our ends of a script's standard input and output.
_PIPES_OF_CALL: Final = 2
#: Higher than any that can be configured: a route for all scripts must not take the built-in ones.
_BUILTIN_PRIORITY: Final = 1_000_001
_BUILTIN: Final[Mapping[str, Callable[[], Handler]]] = {
    PING_SCRIPT: lambda: ping,
    STATUS_SCRIPT: StatusHandler,
}
_NONE_GIVEN: Final[Mapping[str, Handler]] = {}


@dataclass(frozen=True, slots=True)
class Application:
    """All that a worker needs to serve.

    Attributes:
        config: The configuration.
        table: The routes.
        handlers: The handler of each route, by the route's name.
        setups: ``setup`` of each handler module that has one, each once, in the order of routes.
        teardowns: ``teardown`` likewise.
        databases: What to connect to.
        lanes: The lanes of each worker, in the order of the configuration; that of all other routes last.
        journal_path: Where calls wait that are done later; None if there are none.
        selftests: ``selftest`` of each handler module that has one, likewise.
        scripts: The handlers of legacy scripts among them.
        door: Where these find who starts them; None if there are none.
        served: The routes with those of the built-in scripts: what a worker serves.
        builtin: The handlers of the built-in scripts, by their routes' names.
    """

    config: Config
    table: RouteTable
    handlers: Mapping[str, Handler]
    setups: tuple[Callable[[Context], object], ...]
    teardowns: tuple[Callable[[Context], object], ...]
    databases: tuple[DatabaseSettings, ...]
    lanes: tuple[LaneLimits, ...]
    journal_path: Path | None
    selftests: tuple[Callable[[Context], object], ...] = ()
    scripts: tuple[ScriptHandler, ...] = ()
    door: Door | None = None
    served: RouteTable = field(default_factory=lambda: RouteTable([]))
    builtin: Mapping[str, Handler] = field(default_factory=dict)

    def start_launcher(self, log_file: str, generation: int) -> int:
        """Start the process that starts legacy scripts, and have it prepare what can be prepared.

        Args:
            log_file: Where it logs: a path, ``syslog``, or ``-`` for standard error.
            generation: Which load it belongs to.

        Returns:
            Its process id; 0 if no route needs one.

        Raises:
            OSError: The machine has no process for it.
        """
        if self.door is None:
            return 0
        log = self.config.log
        pid = self.door.start(log_file, log.level, generation, log.format.value, log.facility)
        for handler in self.scripts:
            settings = handler.settings
            if settings.fixed_file and (settings.process.precompile or settings.process.warm):
                arguments = list(settings.arguments or ())
                self.door.prepare(settings.fixed_file, arguments, asdict(settings.process))
        return pid

    def marks(self) -> Marks:
        """Make what says in a database that a call was done; for calls that may be done later."""
        # As the databases, only if there are any.
        marks: Marks = importlib.import_module("fastagi_pool.marks").Marks(self.node)
        return marks

    @property
    def node(self) -> str:
        """This machine's name: no other that writes to the same databases has it."""
        return socket.gethostname()

    def check_journal(self) -> None:
        """See that the journal can be used, if a route needs one.

        Raises:
            JournalUnavailable: It cannot.
        """
        if self.journal_path is not None:
            Journal.check(self.journal_path, self.config.journal.max_size)

    def make_journal(self) -> Journal | None:
        """Make a way to the journal; once in each process.

        Returns:
            The journal, which its first use opens; None if no route needs one.
        """
        if self.journal_path is None:
            return None
        backlog = self.config.runtime_dir / BACKLOG_NAME
        return Journal.prepare(self.journal_path, self.config.journal.max_size, backlog)

    def show_load(self, read_load: Callable[[], Load]) -> None:
        """Let the built-in script tell the pool's load; once in each process, before the first call."""
        handler = self.builtin.get(STATUS_SCRIPT)
        if isinstance(handler, StatusHandler):
            handler.connect(read_load)

    def connect_scripts(self, log: logging.Logger) -> Launches | None:
        """Give the routes of legacy scripts their way to the launcher; once in each process.

        Returns:
            That way, to be closed at the end; None if no route needs it.
        """
        if self.door is None:
            return None
        launches = Launches(self.door.knock, log)
        for handler in self.scripts:
            handler.connect(launches)
        return launches

    def make_databases(self) -> dict[str, Database]:
        """Make what the handlers connect through, not connected yet; once in each process."""
        return {settings.name: _make_database(settings) for settings in self.databases}

    def open_databases(
        self, databases: Mapping[str, Database], log: logging.Logger, prove: bool = True
    ) -> None:
        """Connect to the databases, before the first call.

        Args:
            databases: What :meth:`make_databases` made.
            log: Told of a database that is away and not required.
            prove: Whether nobody serves yet with this configuration. Later an outage must not keep a pool
                from replacing its workers: their calls are refused or put off, as those of the others.

        Raises:
            DatabaseUnavailable: One that is required cannot be reached.
        """
        for settings in self.databases:
            try:
                databases[settings.name].open()
            except DatabaseUnavailable as error:
                if settings.required_at_boot and prove:
                    raise
                log.warning("starting without it: %s", error)

    def make_marks(self, databases: Mapping[str, Database]) -> None:
        """See that calls which are done later can leave their marks, in every database that can be reached.

        Raises:
            OperatorError: The table of marks is not there and cannot be made; the message says what to do.
        """
        if self.journal_path is None:
            return
        marks = self.marks()
        for name in sorted({route.deferred_by for route in self.table.routes if route.deferred_by}):
            try:
                with databases[name].engine.begin() as connection:
                    marks.create(connection)
            except DatabaseUnavailable:
                pass  # Whoever is the first to need it makes it.

    @property
    def session_limits(self) -> SessionLimits:
        """What a session may take until a route says otherwise."""
        limits = self.config.limits
        return SessionLimits(limits.header_timeout, limits.idle_timeout, limits.script_timeout)

    @property
    def header_limits(self) -> HeaderLimits:
        """What an environment may cost."""
        limits = self.config.limits
        return HeaderLimits(limits.header_size, limits.line_length, limits.arguments)

    @property
    def descriptors(self) -> int:
        """File descriptors that one worker may need at once."""
        connections = sum(settings.pool_size for settings in self.databases)
        calls = self.config.calls_per_worker + sum(lane.max_queue for lane in self.lanes)
        pipes = self._pipes if self.scripts else 0
        forwarded = calls if any(route.upstream for route in self.config.routes) else 0
        return calls + connections + pipes + forwarded + len(self.config.listen) + _SPARE_DESCRIPTORS

    @property
    def _pipes(self) -> int:
        """Our ends of pipes to scripts: a call keeps its own when its script has ended in a long command."""
        errors = sum(handler.settings.most_processes for handler in self.scripts) + MOST_LINGERING
        return _PIPES_OF_CALL * self.config.calls_per_worker + errors


def assemble(loaded: LoadedConfig, given: Mapping[str, Handler] = _NONE_GIVEN) -> Application:
    """Build the application that a configuration describes.

    Adds ``python_path`` to the module search path, imports every handler, and lets its module check the
    route's options.

    Args:
        loaded: The configuration.
        given: Handlers that are here already, by their names in the configuration.

    Raises:
        ConfigError: Routes that can never be chosen, handlers that cannot be imported or called, options
            that they refuse.
    """
    config = loaded.config
    problems: list[Problem] = []
    table = _table(loaded, problems)
    builtin = tuple(_builtin_routes(table.routes, config.drain_timeout))
    for folder in reversed(config.python_path):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    handlers, modules = _find_handlers(loaded, given, problems)
    hooks = {name: tuple(_hooks(modules, name)) for name in ("setup", "teardown", "selftest")}
    databases = tuple(database_settings(name, each) for name, each in config.databases.items())
    for settings in databases:
        try:
            # Imports the driver, so that no worker need do it, and says if it is not there.
            _make_database(settings).close()
        except OperatorError as error:
            problems.append(loaded.problem(("databases", settings.name), str(error)))
    if not problems:
        table = _with_deferrals(loaded, table, handlers, problems)
    if problems:
        main = loaded.source_map.name
        raise ConfigError(sorted(problems, key=lambda found: (found.file != main, found.file, found.line)))
    scripts = tuple(handler for handler in handlers.values() if isinstance(handler, ScriptHandler))
    door = Door() if scripts else None
    return Application(
        config=config,
        table=table,
        handlers=handlers,
        setups=hooks["setup"],
        teardowns=hooks["teardown"],
        databases=databases,
        lanes=tuple(_lanes(config)),
        journal_path=config.journal.path if any(route.deferred_by for route in table.routes) else None,
        selftests=hooks["selftest"],
        scripts=scripts,
        door=door,
        served=RouteTable([*table.routes, *builtin]),
        builtin={route.name: _BUILTIN[route.name]() for route in builtin},
    )


def _find_handlers(
    loaded: LoadedConfig, given: Mapping[str, Handler], problems: list[Problem]
) -> tuple[dict[str, Handler], list[ModuleType]]:
    """Find or make who serves each route; return them by the routes' names, and the users' modules."""
    handlers: dict[str, Handler] = {}
    modules: dict[str, ModuleType] = {}
    for place, route in enumerate(loaded.config.routes):
        if route.command is not None:
            settings = command_settings(route)
            handlers[route.name] = ScriptHandler(settings)
            problems += _missing_files(loaded, place, settings)
        elif route.upstream is not None:
            handlers[route.name] = UpstreamHandler(upstream_settings(route.upstream))
        elif route.handler is not None:
            try:
                module, handlers[route.name] = _resolve(route.handler, given)
                modules[module.__name__] = module
            except _HandlerFault as fault:
                problems.append(loaded.problem(("routes", place, "handler"), str(fault)))
            else:
                problems += _refused_options(loaded, place, module)
    return handlers, list(modules.values())


def _missing_files(loaded: LoadedConfig, place: int, settings: CommandSettings) -> list[Problem]:
    """Find what a route's command names and the machine does not have."""
    location = ("routes", place, "command")
    if not Path(settings.folder).is_dir():
        return [loaded.problem(location, f"has its scripts in {settings.folder}, which is no folder")]
    file = settings.fixed_file
    return [] if not file or Path(file).is_file() else [loaded.problem(location, f"names no file: {file}")]


def _table(loaded: LoadedConfig, problems: list[Problem]) -> RouteTable:
    routes = [build_route(route, loaded.config) for route in loaded.config.routes]
    for later, earlier in RouteTable(routes).shadowed():
        problems.append(
            loaded.problem(
                ("routes", later),
                f"this route can never be chosen: {routes[earlier]} takes all its calls",
                "give it a higher priority, or take one of them out",
            )
        )
    return RouteTable(routes)


def _with_deferrals(
    loaded: LoadedConfig, table: RouteTable, handlers: Mapping[str, Handler], problems: list[Problem]
) -> RouteTable:
    """Say of each route whether its calls may be done later, and whose outage defers them."""
    config = loaded.config
    places = {route.name: place for place, route in enumerate(config.routes)}
    routes = []
    for route in table.routes:
        configured = config.routes[places[route.name]]
        deferral = deferral_of(handlers[route.name])
        location = ("routes", places[route.name], "deferrable")
        if deferral is None or config.journal.path is None:
            if configured.deferrable:
                lacks = "its handler is not declared so" if deferral is None else "there is no journal"
                problems.append(loaded.problem(location, f"cannot be had: {lacks}"))
        elif configured.deferrable is not False:
            try:
                database = deferral.database_for(route.options, route.databases, tuple(config.databases))
                route = replace(route, deferred_by=database, repeatable=deferral.repeatable)
            except OperatorError as error:
                problems.append(loaded.problem(location, str(error), "or say deferrable: false"))
        routes.append(route)
    return RouteTable(routes)


def _lanes(config: Config) -> Iterator[LaneLimits]:
    named = {DEFAULT_LANE: Lane(), **config.lanes}
    for name in (*config.lanes, *({DEFAULT_LANE} - config.lanes.keys())):
        yield _lane_limits(name, named[name], config)


def _lane_limits(name: str, lane: Lane, config: Config) -> LaneLimits:
    return LaneLimits(
        name=name,
        max_active=config.calls_per_worker if lane.max_active is None else lane.max_active,
        max_queue=config.max_queue if lane.max_queue is None else lane.max_queue,
        max_wait_s=config.max_wait if lane.max_wait is None else lane.max_wait,
        reserve=lane.reserve,
    )


def _builtin_routes(routes: Sequence[Route], drain_timeout_s: float) -> Iterator[Route]:
    """Make the routes of the built-in scripts, but for those of which the operator has his own."""
    taken = {name for route in routes for name in (route.name, route.pattern)}
    for script in _BUILTIN:
        if script not in taken:
            yield Route(
                name=script,
                kind=RouteKind.SCRIPT,
                pattern=script,
                handler="built in",
                priority=_BUILTIN_PRIORITY,
                drain_timeout_s=drain_timeout_s,
            )


def build_route(route: RouteConfig, config: Config) -> Route:
    """Turn one configured route into an entry of the table."""
    kinds = {
        RouteKind.SCRIPT: route.script,
        RouteKind.GLOB: route.glob,
        RouteKind.REGEX: route.regex,
    }
    kind = next((kind for kind, pattern in kinds.items() if pattern is not None), RouteKind.DEFAULT)
    limits = config.limits
    return Route(
        name=route.name,
        kind=kind,
        pattern=kinds.get(kind) or "",
        handler=_whom(route),
        query=route.query,
        arguments=route.arguments,
        context=route.context or "",
        priority=route.priority,
        options=route.options,
        databases=tuple(route.databases),
        script_timeout_s=limits.script_timeout if route.script_timeout is None else route.script_timeout,
        idle_timeout_s=limits.idle_timeout if route.idle_timeout is None else route.idle_timeout,
        raise_hangup=route.on_hangup is HangupPolicy.RAISE,
        on_error=OnError.parse(route.on_error or config.on_error),
        clean_arguments=route.command_guard is CommandGuard.CLEAN,
        mask_digits=route.mask_digits,
        free_names=route.free_names,
        slow_after_s=config.slow.after if route.slow_after is None else route.slow_after,
        drain_timeout_s=config.drain_timeout if route.drain_timeout is None else route.drain_timeout,
        lane=route.lane,
    )


def _whom(route: RouteConfig) -> str:
    """Say who serves a route's calls, as lists of routes show it."""
    if route.command is not None:
        return f"command {route.command}"
    if route.upstream is not None:
        return f"upstream {', '.join(str(server.address) for server in route.upstream.servers)}"
    return route.handler or ""


def command_settings(route: RouteConfig) -> CommandSettings:
    """Turn a configured route with a command into what ``handlers.scripts`` takes."""
    process = route.process or Process()
    return CommandSettings(
        template=route.command or "",
        folder=str(route.script_folder),
        process=ProcessSettings(
            interpreter=list(process.interpreter),
            precompile=route.precompile.value if route.precompile else "",
            directory=str(process.directory),
            user=process.user,
            environment=dict(process.environment),
            cpu_s=process.cpu_time,
            memory_bytes=process.max_memory,
            background=process.background,
            warm=route.warm,
            compile_timeout_s=process.compile_timeout,
        ),
        arguments=process.arguments,
        most_processes=process.max_processes,
        max_queue=process.max_queue,
        max_wait_s=process.max_wait,
        grace_s=process.grace,
        output_bytes=process.max_output,
        fixed_script=route.script,
    )


def upstream_settings(upstream: Upstream) -> UpstreamSettings:
    """Turn the configured servers of a route into what ``handlers.upstream`` takes."""
    servers = (Server(each.address.host, each.address.port, each.max_calls) for each in upstream.servers)
    return UpstreamSettings(tuple(servers), upstream.connect_timeout, upstream.max_queue, upstream.max_wait)


def database_settings(name: str, database: DatabaseConfig) -> DatabaseSettings:
    """Turn one configured database into what ``database.Database`` takes."""
    settings: DatabaseSettings = _database_module().DatabaseSettings(
        name=name,
        urls=database.urls,
        password=database.password,
        pool_size=database.pool_size,
        pool_timeout_s=database.pool_timeout,
        idle_ping_s=database.idle_ping,
        max_age_s=database.max_age,
        connect_timeout_s=database.connect_timeout,
        read_timeout_s=database.read_timeout,
        write_timeout_s=database.write_timeout,
        required_at_boot=database.required_at_boot,
        sql_mode=database.sql_mode,
        probe_timeout_s=database.probe_timeout,
        writable=database.writable,
        multi_statements=database.multi_statements,
    )
    return settings


def _make_database(settings: DatabaseSettings) -> Database:
    database: Database = _database_module().Database(settings)
    return database


def _database_module() -> ModuleType:
    return importlib.import_module("fastagi_pool.database")


# --- handlers


class _HandlerFault(Exception):
    """Why a handler cannot be used, in one line."""


def _resolve(handler: str, given: Mapping[str, Handler]) -> tuple[ModuleType, Handler]:
    """Give what ``package.module:function`` names: the module and the function, checked."""
    if handler not in given:
        module = import_module(handler)
        return module, find_handler(module, handler)
    function = given[handler]
    name = getattr(function, "__qualname__", handler)
    return sys.modules[function.__module__], _check_handler(function, name)


def import_module(handler: str) -> ModuleType:
    """Import the module of ``package.module:function``, whatever it does meanwhile."""
    name = handler.partition(":")[0]
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        raise _HandlerFault(f"cannot import {name}: {error.filename}:{error.lineno}: {error.msg}") from error
    except ModuleNotFoundError as error:
        hint = "; is its folder in python_path?" if error.name and name.startswith(error.name) else ""
        raise _HandlerFault(f"cannot import {name}: {error}{hint}") from error
    except BaseException as error:
        # A module that exits or raises anything at import must not take the loader with it.
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _HandlerFault(
            f"cannot import {name}: {_where(error)}{type(error).__name__}: {error}"
        ) from error


def find_handler(module: ModuleType, handler: str) -> Handler:
    """Find the function of ``package.module:function`` and check that it can be called."""
    name = handler.partition(":")[2]
    function: Any = getattr(module, name, None)
    if function is None:
        raise _HandlerFault(f"{module.__name__} ({module.__file__}) has no {name}")
    return _check_handler(function, handler)


def _check_handler(function: Any, handler: str) -> Handler:
    """Check that this can be called as a handler."""
    if not callable(function):
        raise _HandlerFault(f"{handler} is not a function")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise _HandlerFault(
            f"{handler} is async or a generator: write it as a plain function, gevent switches"
        )
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise _HandlerFault(f"{handler} must take (call, context): {error}") from error
    except ValueError:
        pass  # Some callables have no signature to look at.
    found: Handler = function
    return found


def _refused_options(loaded: LoadedConfig, place: int, module: ModuleType) -> list[Problem]:
    """Ask a handler's module what is wrong with the options of its route, if it has an answer."""
    check: Any = getattr(module, "check_options", None)
    if not callable(check):
        return []
    location = ("routes", place, "options")
    try:
        return [
            loaded.problem((*location, *found.location), found.message, found.hint)
            for found in check(loaded.config.routes[place].options, loaded.config.databases)
        ]
    except (Exception, SystemExit) as error:
        what = f"{_where(error)}{type(error).__name__}: {error}"
        return [loaded.problem(location, f"cannot be checked by {module.__name__}.check_options: {what}")]


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""


def _hooks(modules: Any, name: str) -> list[Callable[[Context], object]]:
    hooks = (getattr(module, name, None) for module in modules)
    return [hook for hook in hooks if callable(hook)]
