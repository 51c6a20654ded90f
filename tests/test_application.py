"""fastagi_pool.application: from YAML and handler modules to what a worker serves, or why not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from fastagi_pool.application import Application, assemble, upstream_settings
from fastagi_pool.config import load, load_text
from fastagi_pool.endings import GO_ON, ErrorAction, OnError
from fastagi_pool.errors import ConfigError, JournalUnavailable, Problem
from fastagi_pool.lanes import LaneLimits
from fastagi_pool.launches import MOST_LINGERING
from fastagi_pool.protocol import Request
from fastagi_pool.routes import RouteKind
from fastagi_pool.upstreams import Server, UpstreamSettings

HANDLER = "def serve(call, context):\n    return 'served'\n"


class Workshop:
    """A folder of handler modules and the configurations that name them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, source: str = HANDLER) -> Path:
        """Write a handler module."""
        path = self.folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(source))
        return path

    def assemble(self, yaml: str) -> Application:
        """Build what a configuration describes."""
        text = f"python_path: [{self.folder}]\n{dedent(yaml)}"
        return assemble(load_text(text, "pool.yaml", self.folder, {}))

    def problems(self, yaml: str) -> tuple[Problem, ...]:
        """Give all that is wrong with a configuration."""
        with pytest.raises(ConfigError) as caught:
            self.assemble(yaml)
        return caught.value.problems

    def problem(self, handler: str) -> str:
        """Give the one message about a handler."""
        [problem] = self.problems(f"routes: [{{default: true, handler: '{handler}'}}]")
        assert (problem.file, problem.line, problem.key) == ("pool.yaml", 2, "routes[0].handler")
        return problem.message


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """A folder of modules that are forgotten after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)
    yield Workshop(tmp_path)
    for name in set(sys.modules) - known:
        del sys.modules[name]


# ---- lanes, and calls that are done later

#: Handlers of which some may be done later.
LATER = """
from fastagi_pool.deferring import deferrable

@deferrable
def once(call, context):
    pass

@deferrable(repeatable=True, database=lambda options: options["where"])
def again(call, context):
    pass

def never(call, context):
    pass
"""
#: Two databases, so that it must be said which; the journal stays where the test is.
TWO = """
databases: {main: {url: 'sqlite://'}, other: {url: 'sqlite://'}}
"""


def deferred_by(workshop: Workshop, route: str, head: str = TWO) -> tuple[str, bool]:
    """Tell of the only route whose outage defers its calls, and whether these can be repeated."""
    workshop.write("later", LATER)
    application = workshop.assemble(f"{head}\nroutes: [{{default: true, {route}}}]")
    [made] = application.table.routes
    assert made in application.served.routes
    assert (application.journal_path is not None) is bool(made.deferred_by)
    return made.deferred_by, made.repeatable


@pytest.mark.parametrize(
    ("route", "database", "repeatable"),
    [
        ("handler: 'later:never'", "", False),
        ("handler: 'later:never', deferrable: false", "", False),
        ("handler: 'later:once', databases: [other, main]", "other", False),
        ("handler: 'later:once', databases: [main], deferrable: true", "main", False),
        ("handler: 'later:once', databases: [main], deferrable: false", "", False),
        ("handler: 'later:again', options: {where: other}", "other", True),
    ],
)
def test_calls_that_are_done_later(route: str, database: str, repeatable: bool, workshop: Workshop) -> None:
    """A handler's declaration, and what the route says, decide which database's outage defers its calls."""
    assert deferred_by(workshop, route) == (database, repeatable)


def test_the_only_database(workshop: Workshop) -> None:
    """Where there is one database it need not be named."""
    assert deferred_by(workshop, "handler: 'later:once'", "databases: {sole: {url: 'sqlite://'}}") == (
        "sole",
        False,
    )


def test_without_a_journal_nothing_is_done_later(workshop: Workshop) -> None:
    """With the journal off a declared handler serves as any other."""
    head = TWO + "journal: {file: 'off'}"
    assert deferred_by(workshop, "handler: 'later:once', databases: [main]", head) == ("", False)


@pytest.mark.parametrize(
    ("route", "head", "message"),
    [
        ("handler: 'later:never', deferrable: true", TWO, "cannot be had: its handler is not declared so"),
        (
            "handler: 'later:once', deferrable: true, databases: [main]",
            TWO + "journal: {file: 'off'}",
            "cannot be had: there is no journal",
        ),
        ("handler: 'later:once', deferrable: true", "databases: {}", "the configuration has none"),
        ("handler: 'later:once', deferrable: true", TWO, "databases"),
        ("handler: 'later:again', options: {where: nowhere}, deferrable: true", TWO, "nowhere"),
    ],
)
def test_what_cannot_be_done_later(route: str, head: str, message: str, workshop: Workshop) -> None:
    """Whatever stands in the way of doing calls later is said with its line."""
    workshop.write("later", LATER)
    [problem] = workshop.problems(
        f"{head}\nroutes:\n  - default: true\n    {route.replace(', ', chr(10) + '    ')}"
    )
    assert problem.key == "routes[0].deferrable"
    assert message in problem.message


def test_the_journal_is_opened_if_a_route_needs_it(workshop: Workshop, tmp_path: Path) -> None:
    """A pool none of whose calls is done later makes no journal; another finds out at once if it cannot."""
    workshop.write("later", LATER)
    file = tmp_path / "journal.db"
    head = f"{TWO}runtime_dir: {tmp_path}\njournal: {{file: {file}}}\n"
    idle = workshop.assemble(f"{head}routes: [{{default: true, handler: 'later:never'}}]")
    assert idle.make_journal() is None
    assert not file.exists()
    busy = workshop.assemble(f"{head}routes: [{{default: true, handler: 'later:once', databases: [main]}}]")
    busy.check_journal()
    assert file.exists()
    journal = busy.make_journal()
    assert journal is not None
    journal.reach()
    journal.close()
    head = head.replace(str(file), str(tmp_path / "pool.yaml" / "journal.db"))
    (tmp_path / "pool.yaml").touch()
    broken = workshop.assemble(f"{head}routes: [{{default: true, handler: 'later:once', databases: [main]}}]")
    with pytest.raises(JournalUnavailable):
        broken.check_journal()
    journal = broken.make_journal()
    assert journal is not None
    with pytest.raises(JournalUnavailable):
        journal.reach()


def test_lanes(workshop: Workshop) -> None:
    """What a lane does not say for itself is the general figure; all other routes share the lane default."""
    workshop.write("later", LATER)
    application = workshop.assemble(
        """
        calls_per_worker: 50
        max_queue: 7
        max_wait: 3s
        lanes:
          records: {reserve: 5, max_active: 20, max_queue: 100, max_wait: 30s}
          slow: {}
        routes:
          - {script: end, handler: "later:once", lane: records, deferrable: false}
          - {default: true, handler: "later:never"}
        """
    )
    assert application.lanes == (
        LaneLimits("records", 20, 100, 30.0, 5),
        LaneLimits("slow", 50, 7, 3.0),
        LaneLimits("default", 50, 7, 3.0),
    )
    assert [route.lane for route in application.table.routes] == ["records", "default"]
    assert {route.lane for route in application.served.routes} == {"records", "default"}


def test_the_lane_of_all_others_can_be_configured(workshop: Workshop) -> None:
    """The lane default has figures of its own if somebody gives it some, in the place where he does."""
    workshop.write("later", LATER)
    application = workshop.assemble(
        """
        lanes: {default: {max_active: 3}, records: {reserve: 1}}
        routes: [{default: true, handler: "later:never"}]
        """
    )
    assert [(lane.name, lane.max_active) for lane in application.lanes] == [("default", 3), ("records", 1000)]


def test_descriptors_for_all_who_wait(workshop: Workshop) -> None:
    """A worker has a file descriptor for every call that waits, in whichever lane."""
    workshop.write("later", LATER)
    needs = [
        workshop.assemble(
            f"max_queue: 10\nlanes: {lanes}\nroutes: [{{default: true, handler: 'later:never'}}]"
        ).descriptors
        for lanes in ("{}", "{records: {max_queue: 200}}", "{default: {max_queue: 5}}")
    ]
    assert [need - needs[0] for need in needs] == [0, 200, -5]


# ---- what goes well


def test_an_application(workshop: Workshop) -> None:
    """Each route finds its handler, and the table the route."""
    workshop.write("greetings")
    application = workshop.assemble(
        """
        routes:
          - {script: hello, handler: "greetings:serve"}
          - {default: true, handler: "greetings:serve"}
        """
    )
    match = application.table.match(Request({"agi_network_script": "hello"}))
    assert match is not None
    assert match.route.name == "hello"
    assert set(application.handlers) == {"hello", "default"}
    assert application.handlers["hello"] is application.handlers["default"]
    assert application.handlers["hello"].__module__ == "greetings"
    assert (application.setups, application.teardowns, application.databases) == ((), (), ())


def test_every_key_of_a_route_arrives(workshop: Workshop) -> None:
    """What the operator wrote about a route is what the table and the dispatcher see."""
    workshop.write("greetings")
    application = workshop.assemble(
        """
        databases: {main: {url: 'sqlite://'}}
        routes:
          - name: full
            glob: "hello/*"
            query: {lang: en}
            arguments: {1: a}
            context: inside
            priority: 7
            handler: "greetings:serve"
            options: {greeting: hi}
            databases: [main]
            script_timeout: 5s
            idle_timeout: 0
            on_hangup: continue
            on_error: goto sorry, s, 1
            command_guard: clean
            mask_digits: yes
            free_names: yes
          - {regex: "call/[0-9]+", handler: "greetings:serve"}
        """
    )
    full, regex = application.table.routes
    assert (full.name, full.kind, full.pattern) == ("full", RouteKind.GLOB, "hello/*")
    assert (dict(full.query), dict(full.arguments), full.context) == ({"lang": "en"}, {1: "a"}, "inside")
    assert (full.priority, full.handler, dict(full.options)) == (7, "greetings:serve", {"greeting": "hi"})
    assert (full.databases, full.script_timeout_s, full.idle_timeout_s) == (("main",), 5.0, 0.0)
    assert full.on_error == OnError(ErrorAction.GOTO, "sorry,s,1")
    assert (full.raise_hangup, full.clean_arguments, full.mask_digits) == (False, True, True)
    assert (full.free_names, regex.free_names) == (True, False)
    assert (regex.kind, regex.pattern) == (RouteKind.REGEX, "call/[0-9]+")
    assert (regex.raise_hangup, regex.clean_arguments, regex.mask_digits) == (True, False, False)
    assert regex.on_error == GO_ON


def test_limits_are_inherited(workshop: Workshop) -> None:
    """A route without time-outs of its own has the general ones."""
    workshop.write("greetings")
    application = workshop.assemble(
        """
        limits: {script_timeout: 7s, idle_timeout: 1h}
        routes: [{default: true, handler: "greetings:serve"}]
        """
    )
    [route] = application.table.routes
    assert (route.script_timeout_s, route.idle_timeout_s) == (7.0, 3600.0)


def test_what_to_do_on_errors_is_inherited(workshop: Workshop) -> None:
    """A route that says nothing does what is said in general, and ``continue`` takes that back."""
    workshop.write("greetings")
    application = workshop.assemble(
        """
        on_error: hangup
        routes:
          - {script: a, handler: "greetings:serve"}
          - {script: b, handler: "greetings:serve", on_error: continue}
          - {script: c, handler: "greetings:serve", on_error: "goto sorry,s,1"}
        """
    )
    found = [str(route.on_error) for route in application.table.routes]
    assert found == ["hangup", "continue", "goto sorry,s,1"]


def test_databases_and_descriptors(workshop: Workshop) -> None:
    """Each database is described with its name, and the files that a worker needs are counted."""
    workshop.write("greetings")
    application = workshop.assemble(
        """
        calls_per_worker: 100
        max_queue: 20
        databases:
          main:
            url: mysql+pymysql://u@h/d
            password: secret
            pool_size: 3
            required_at_boot: no
            read_timeout: 9s
            sql_mode: NO_ENGINE_SUBSTITUTION,ANSI_QUOTES
            multi_statements: yes
          other: {url: ['sqlite:////tmp/a.db'], pool_size: 2}
        routes: [{default: true, handler: "greetings:serve"}]
        """
    )
    main, other = application.databases
    assert (main.name, main.password, main.pool_size) == ("main", "secret", 3)
    assert (main.required_at_boot, main.read_timeout_s) == (False, 9.0)
    assert (main.sql_mode, main.multi_statements) == ("NO_ENGINE_SUBSTITUTION,ANSI_QUOTES", True)
    assert (other.name, other.urls, other.pool_size) == ("other", ("sqlite:////tmp/a.db",), 2)
    assert (other.sql_mode, other.multi_statements) == ("", False)
    # One for each call, whether served or waiting, and connection, one to listen, and 64 to spare.
    assert application.descriptors == 100 + 20 + 5 + 1 + 64


def test_a_route_of_scripts(workshop: Workshop) -> None:
    """What the operator wrote about scripts is what their handler, and the launcher, get."""
    (workshop.folder / "did.agi").touch()
    application = workshop.assemble(
        f"""
        calls_per_worker: 100
        max_queue: 20
        routes:
          - script: did.agi
            command: {workshop.folder}/{{script}}
            precompile: perl
            process:
              interpreter: [/usr/bin/perl, -w]
              arguments: [a, b]
              max_processes: 7
              max_queue: 8
              max_wait: 9s
              grace: 3s
              cpu_time: 4s
              max_memory: 64MB
              max_output: 32KB
              directory: /tmp
              environment: {{SITE: main}}
              background: no
              compile_timeout: 11s
        """
    )
    [handler] = application.scripts
    settings, process = handler.settings, handler.settings.process
    assert application.handlers["did.agi"] is handler
    assert settings.fixed_file == f"{workshop.folder}/did.agi"
    assert (settings.folder, settings.arguments) == (str(workshop.folder), ("a", "b"))
    assert (settings.most_processes, settings.max_queue, settings.max_wait_s) == (7, 8, 9.0)
    assert (settings.grace_s, settings.output_bytes) == (3.0, 32 << 10)
    assert (process.precompile, process.interpreter) == ("perl", ["/usr/bin/perl", "-w"])
    assert (process.cpu_s, process.memory_bytes, process.directory) == (4.0, 64 << 20, "/tmp")
    assert (process.background, process.compile_timeout_s, process.warm) == (False, 11.0, 0)
    assert process.environment["SITE"] == "main"
    [route] = application.table.routes
    assert route.handler == f"command {workshop.folder}/{{script}}"
    # Three pipes for each process besides what every worker needs.
    assert application.descriptors == 100 + 20 + 2 * 100 + 7 + MOST_LINGERING + 1 + 64
    assert application.door is not None


def test_a_route_of_servers(workshop: Workshop) -> None:
    """What the operator wrote about other servers is shown, and needs a descriptor for each call."""
    application = workshop.assemble(
        """
        calls_per_worker: 100
        max_queue: 20
        routes: [{default: true, upstream: ["127.0.0.1:4578", "[::1]:4579"]}]
        """
    )
    [route] = application.table.routes
    assert route.handler == "upstream 127.0.0.1:4578, [::1]:4579"
    assert application.descriptors == 2 * (100 + 20) + 1 + 64
    assert (application.scripts, application.door) == ((), None)


def test_a_place_at_a_server(workshop: Workshop) -> None:
    """Servers come in order, with their own limits and with those of the route."""
    loaded = load_text(
        """
routes:
  - default: true
    upstream:
      servers: ["127.0.0.1:4578", {address: "agi.example.com:4579", max_calls: 5}]
      connect_timeout: 3s
      max_queue: 4
      max_wait: 6s
""",
        "pool.yaml",
        workshop.folder,
        {},
    )
    upstream = loaded.config.routes[0].upstream
    assert upstream is not None
    assert upstream_settings(upstream) == UpstreamSettings(
        (Server("127.0.0.1", 4578), Server("agi.example.com", 4579, 5)), 3.0, 4, 6.0
    )


def test_hooks_are_collected_once(workshop: Workshop) -> None:
    """setup and teardown of a module come once, however many routes use it, in the order of routes."""
    hooks = HANDLER + "def setup(context): ...\ndef teardown(context): ...\n"
    workshop.write("second", hooks)
    workshop.write("first", hooks)
    workshop.write("plain", HANDLER + "setup = 'no function'\n")
    application = workshop.assemble(
        """
        routes:
          - {script: a, handler: "first:serve"}
          - {script: b, handler: "plain:serve"}
          - {script: c, handler: "second:serve"}
          - {script: d, handler: "first:serve"}
        """
    )
    assert [hook.__module__ for hook in application.setups] == ["first", "second"]
    assert [hook.__module__ for hook in application.teardowns] == ["first", "second"]


def test_options_that_are_good(workshop: Workshop) -> None:
    """A module sees the options of each route that it serves, with their types, and may find nothing."""
    workshop.write(
        "greetings",
        HANDLER + "seen = []\ndef check_options(options, databases):\n    seen.append(options); return ()",
    )
    workshop.write("plain", HANDLER + "check_options = 'no function'\n")
    workshop.assemble(
        """
        routes:
          - {script: a, handler: "greetings:serve", options: {patience_s: 5}}
          - {script: b, handler: "greetings:serve"}
          - {script: c, handler: "plain:serve", options: {any: thing}}
        """
    )
    assert sys.modules["greetings"].seen == [{"patience_s": 5}, {}]


@pytest.mark.parametrize(
    "source",
    [
        "def serve(call, context): ...",
        "def serve(call, context, more=None): ...",
        "def serve(*args): ...",
        "class serve:\n    def __init__(self, call, context): ...",
        "class Serve:\n    def __call__(self, call, context): ...\nserve = Serve()",
        "import functools\ndef many(x, call, context): ...\nserve = functools.partial(many, 1)",
    ],
)
def test_whatever_can_be_called_with_two(workshop: Workshop, source: str) -> None:
    """A handler is anything that takes a call and a context."""
    workshop.write("handlers", source)
    assert workshop.assemble("routes: [{default: true, handler: 'handlers:serve'}]").handlers


def test_a_handler_inside_a_package(workshop: Workshop) -> None:
    """The module of a handler may lie inside packages."""
    workshop.write("pack/__init__", "")
    workshop.write("pack/inner")
    application = workshop.assemble("routes: [{default: true, handler: 'pack.inner:serve'}]")
    assert application.handlers["default"].__module__ == "pack.inner"


def test_python_path_comes_first(workshop: Workshop) -> None:
    """Folders of python_path stand before all others, in their order, and once."""
    workshop.write("greetings")
    second = workshop.folder / "second"
    second.mkdir()
    yaml = (
        f"python_path: [{workshop.folder}, {second}]\nroutes: [{{default: true, handler: 'greetings:serve'}}]"
    )
    for _ in range(2):
        assemble(load_text(yaml, "pool.yaml", workshop.folder, {}))
    assert sys.path[:2] == [str(workshop.folder), str(second)]
    assert sys.path.count(str(second)) == 1


# ---- what is refused


def test_a_missing_module(workshop: Workshop) -> None:
    """A module that is not there is said with where to look."""
    assert workshop.problem("nosuch.deeper:serve") == (
        "cannot import nosuch.deeper: No module named 'nosuch'; is its folder in python_path?"
    )


def test_a_missing_import_of_a_module(workshop: Workshop) -> None:
    """What the module itself cannot import is not blamed on python_path."""
    workshop.write("needy", "import nosuch_library\n")
    assert workshop.problem("needy:serve") == "cannot import needy: No module named 'nosuch_library'"


def test_a_syntax_error(workshop: Workshop) -> None:
    """A syntax error is said with its file and line."""
    path = workshop.write("broken", "x = 1\ndef serve(call, context:\n    pass\n")
    assert workshop.problem("broken:serve") == f"cannot import broken: {path}:2: '(' was never closed"


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import sys; sys.exit()", "SystemExit: "),
        ("raise BaseException('odd')", "BaseException: odd"),
        ("from os import nosuch", "ImportError: cannot import name 'nosuch' from 'os'"),
    ],
)
def test_a_module_that_raises(workshop: Workshop, statement: str, shown: str) -> None:
    """Whatever a module raises at import is a problem with file and line, and no end of the program."""
    path = workshop.write("raising", f"x = 1\n{statement}\n")
    message = workshop.problem("raising:serve")
    assert message.startswith(f"cannot import raising: {path}:2: {shown}")


def test_an_interrupted_import_is_interrupted(workshop: Workshop) -> None:
    """Ctrl-C while handlers are imported ends the program, as its operator wanted."""
    workshop.write("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        workshop.assemble("routes: [{default: true, handler: 'slow:serve'}]")


def test_a_missing_function(workshop: Workshop) -> None:
    """A function that is not there is said with the file that was looked into."""
    path = workshop.write("greetings")
    assert workshop.problem("greetings:sevre") == f"greetings ({path}) has no sevre"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("serve = 'text'", "handlers:serve is not a function"),
        ("async def serve(call, context): ...", "handlers:serve is async or a generator"),
        ("def serve(call, context): yield", "handlers:serve is async or a generator"),
        ("def serve(): ...", "handlers:serve must take (call, context): too many positional arguments"),
        ("def serve(call): ...", "handlers:serve must take (call, context): too many positional arguments"),
        ("def serve(a, b, c): ...", "handlers:serve must take (call, context): missing a required argument"),
        ("def serve(a, b, *, c): ...", "handlers:serve must take (call, context): missing a required"),
    ],
)
def test_what_cannot_be_a_handler(workshop: Workshop, source: str, message: str) -> None:
    """What cannot be called with a call and a context is refused before any call comes."""
    workshop.write("handlers", source)
    assert workshop.problem("handlers:serve").startswith(message)


def test_refused_options(workshop: Workshop) -> None:
    """What a module finds in the options of a route is told at its key and line, or at those above it."""
    workshop.write(
        "greetings",
        """
        from fastagi_pool.findings import Finding

        def serve(call, context): ...

        def check_options(options, databases):
            yield Finding(("targets", "2"), "must be a department", "did you mean 'sales'?")
            yield Finding(("language",), "is missing")
        """,
    )
    fault, absent, deep = workshop.problems(
        """\
        routes:
          - {script: a, handler: "os:nosuch"}
          - default: true
            handler: greetings:serve
            options:
              targets:
                "1": support
                "2": slaes
        """
    )
    assert fault.key == "routes[0].handler"
    assert str(absent) == "pool.yaml:6: routes[1].options.language: is missing"
    assert str(deep) == (
        "pool.yaml:9: routes[1].options.targets.2: must be a department (did you mean 'sales'?)"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def check_options(options, databases): options['x']", "{file}:3: KeyError: 'x'"),
        (
            "def check_options(options, databases):\n    yield 'wrong'",
            "AttributeError: 'str' object has no attribute 'location'",
        ),
        ("def check_options(): ...", "check_options() takes 0 positional arguments but 2 were given"),
        ("def check_options(options, databases): raise SystemExit(3)", "{file}:3: SystemExit: 3"),
    ],
)
def test_options_that_cannot_be_checked(workshop: Workshop, source: str, message: str) -> None:
    """A check that fails is a problem of its route, not the end of the loader."""
    file = workshop.write("greetings", HANDLER + source)
    [problem] = workshop.problems("routes: [{default: true, handler: 'greetings:serve', options: {a: 1}}]")
    assert (problem.line, problem.key) == (2, "routes[0].options")
    assert problem.message.startswith("cannot be checked by greetings.check_options: ")
    assert problem.message.endswith(message.format(file=file))


def test_a_shadowed_route(workshop: Workshop) -> None:
    """A route that can never be chosen is told at its place, with the one that takes its calls."""
    workshop.write("greetings")
    [problem] = workshop.problems(
        """\
        routes:
          - {glob: "*", handler: "greetings:serve"}
          - {glob: "hello*", handler: "greetings:serve"}
        """
    )
    assert str(problem) == (
        "pool.yaml:4: routes[1]: this route can never be chosen: * (glob *) takes all its calls "
        "(give it a higher priority, or take one of them out)"
    )


def test_scripts_that_are_not_there(workshop: Workshop) -> None:
    """A folder of scripts, or the one script of a route, that the machine does not have is told at once."""
    folder = workshop.folder
    one, other = workshop.problems(
        f"""\
        routes:
          - {{glob: "*.agi", command: "{folder}/nowhere/{{script}}"}}
          - {{script: a.sh, command: "{folder}/{{script}}"}}
        """
    )
    assert str(one) == (
        f"pool.yaml:3: routes[0].command: has its scripts in {folder}/nowhere, which is no folder"
    )
    assert str(other) == f"pool.yaml:4: routes[1].command: names no file: {folder}/a.sh"


def test_everything_is_told_at_once(workshop: Workshop) -> None:
    """One run finds all that is wrong, in the order of the lines, each with its key."""
    workshop.write("good", HANDLER + "async def later(call, context): ...\n")
    workshop.write("broken", "def serve(:\n")
    workshop.write("exiting", "raise SystemExit\n")
    found = workshop.problems(
        """\
        routes:
          - {script: a, handler: "nosuch:serve"}
          - {script: b, handler: "good:serve"}
          - {glob: "c*", handler: "broken:serve"}
          - {script: d, handler: "good:later"}
          - {glob: "cd*", handler: "good:serve"}
          - {script: e, handler: "exiting:serve"}
          - {default: true, handler: "good:nosuch"}
        """
    )
    assert [(problem.line, problem.key) for problem in found] == [
        (3, "routes[0].handler"),
        (5, "routes[2].handler"),
        (6, "routes[3].handler"),
        (7, "routes[4]"),
        (8, "routes[5].handler"),
        (9, "routes[6].handler"),
    ]


def test_problems_name_the_included_file(workshop: Workshop) -> None:
    """A problem in an included file is said with that file, behind those of the main file."""
    main = workshop.folder / "z_main.yaml"
    main.write_text("include: [a_more.yaml]\nroutes: [{script: a, handler: 'nosuch:serve'}]\n")
    (workshop.folder / "a_more.yaml").write_text("routes: [{script: b, handler: 'nosuch:serve'}]\n")
    with pytest.raises(ConfigError) as caught:
        assemble(load(main, {}))
    places = [(Path(problem.file).name, problem.line, problem.key) for problem in caught.value.problems]
    assert places == [("z_main.yaml", 2, "routes[0].handler"), ("a_more.yaml", 1, "routes[0].handler")]
