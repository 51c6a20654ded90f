"""fastagi_pool.routeconfig: who serves a route's calls, and what is wrong when it cannot be."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

import pytest

from fastagi_pool.config import LoadedConfig, load, load_text
from fastagi_pool.errors import ConfigError
from fastagi_pool.routeconfig import Precompile, Process, Route, Upstream
from fastagi_pool.schema import effective
from fastagi_pool.values import ServerAddress

#: Two lines, so that what stands in a route stands in the third.
HEAD = "listen: [127.0.0.1:4577]\nroutes:\n"


def loaded(text: str, environment: Mapping[str, str] | None = None) -> LoadedConfig:
    """Load one route, given as the inside of a flow mapping."""
    return load_text(f"{HEAD}- {{{text}}}\n", "x.yaml", Path("/"), environment or {})


def route(text: str) -> Route:
    """Load one route, and give it."""
    return loaded(text).config.routes[0]


def problems(text: str, listen: str = "127.0.0.1:4577") -> list[str]:
    """Give the problems of one route, without its place."""
    with pytest.raises(ConfigError) as caught:
        load_text(f"listen: [{listen}]\nallow: ['::/0']\nroutes:\n- {{{text}}}\n", "x.yaml", Path("/"), {})
    return [str(problem).removeprefix("x.yaml:4: routes[0]") for problem in caught.value.problems]


def process(text: str) -> Process:
    """Load the section ``process``."""
    found = route(f"script: x, command: /agi/x, process: {{{text}}}").process
    assert found
    return found


def upstream(text: str) -> Upstream:
    """Load what stands under ``upstream``."""
    found = route(f"script: x, upstream: {text}").upstream
    assert found
    return found


# -- Lanes, and calls that are done later -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["Records", "1st", "hang-up", "''"])
def test_problem_of_a_lane_name(name: str) -> None:
    """A lane's name is fit for a metric's label."""
    [problem] = problems(f"script: x, handler: a:b, lane: {name}")
    assert problem.startswith(".lane: ")


@pytest.mark.parametrize("whom", ["command: /agi/x", "upstream: 'agi:4573'"])
def test_only_a_handler_is_done_later(whom: str) -> None:
    """What a script or another server has not done cannot be written down for it."""
    [problem] = problems(f"script: x, {whom}, deferrable: true")
    assert problem.startswith(".deferrable: ")


# -- Times ------------------------------------------------------------------------------------------------


def test_times_of_a_route() -> None:
    """Each kind of route may say when its calls are slow and how long old workers wait for them; 0 counts."""
    for whom in ("handler: a:b", "command: /agi/x", "upstream: 'agi:4573'"):
        given = route(f"script: x, {whom}, drain_timeout: 10m, slow_after: 0")
        assert (given.drain_timeout, given.slow_after) == (600.0, 0.0)
        assert (route(f"script: x, {whom}").drain_timeout, route(f"script: x, {whom}").slow_after) == (
            None,
            None,
        )


@pytest.mark.parametrize("key", ["drain_timeout", "slow_after"])
def test_problem_of_a_time(key: str) -> None:
    """A time that cannot be is a problem with its key."""
    assert problems(f"script: x, handler: a:b, {key}: -1s") == [f".{key}: must not be negative"]


# -- Commands ---------------------------------------------------------------------------------------------


def test_process_defaults() -> None:
    """A command needs nothing else, and its processes run as under Asterisk."""
    found = route("script: x, command: '/agi/{script}'")
    assert (found.handler, found.upstream, found.precompile, found.warm) == (None, None, None, 0)
    assert found.process == Process(
        folder=None,
        interpreter=(),
        arguments=None,
        max_processes=100,
        max_queue=100,
        max_wait=5,
        grace=10,
        cpu_time=0,
        max_memory=0,
        max_output=1024**2,
        user="",
        directory=Path("/"),
        environment={},
        background=True,
        compile_timeout=30,
    )


def test_process_settings() -> None:
    """Every setting of a process reaches the model with its type; text keeps its letters."""
    found = process(
        "folder: /agi, interpreter: [/usr/bin/php, -q, 007], arguments: [yes, 1.50], max_processes: 2, "
        "max_queue: 0, max_wait: 1m, grace: 0, cpu_time: 1s, max_memory: 16MB, max_output: 4KB, "
        f"user: {pwd.getpwuid(os.geteuid()).pw_name}, directory: /tmp, environment: {{A_1: off}}, "
        "background: no, compile_timeout: 2m"
    )
    assert (found.folder, found.directory) == (Path("/agi"), Path("/tmp"))
    assert (found.interpreter, found.arguments) == (("/usr/bin/php", "-q", "007"), ("yes", "1.50"))
    assert (found.max_processes, found.max_queue, found.max_wait, found.grace) == (2, 0, 60, 0)
    assert (found.cpu_time, found.max_memory, found.max_output) == (1, 2**24, 4096)
    assert (found.environment, found.background, found.compile_timeout) == ({"A_1": "off"}, False, 120)


def test_no_arguments_are_not_the_calls_arguments() -> None:
    """``[]`` gives a script no arguments at all; only an absent key gives it the call's."""
    assert process("arguments: []").arguments == ()
    assert process("arguments: ").arguments is None


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("default: true, command: '/agi/bin/{script}'", "/agi/bin"),
        ("glob: '*.agi', command: '/agi/a-{1}/x.agi'", "/agi"),
        ("script: x, command: /agi/bin/x", "/agi/bin"),
        ("script: x, command: '/agi/{script}', process: {folder: /srv}", "/srv"),
        ("script: x, command: '/{script}', process: {folder: /}", "/"),
    ],
)
def test_script_folder(text: str, folder: str) -> None:
    """Unless it is said, scripts lie below the folder that no caller has a part in."""
    assert route(text).script_folder == Path(folder)


@pytest.mark.parametrize(
    "text",
    [
        "glob: 'a/*/**', command: '/agi/{1}/{2}/{script}'",
        r"regex: '(?P<kind>\w+)/(\d+)', command: '/agi/{kind}/{2}'",
        "script: x, command: '/agi/{script}', free_names: no",
        "default: true, command: /agi/x, warm: 2, process: {arguments: []}",
        "script: x, command: '/agi/{script}', warm: 64, process: {arguments: [a]}",
        "script: x, command: /agi/x, precompile: python, on_error: hangup, mask_digits: on, idle_timeout: 5",
    ],
)
def test_good_commands(text: str) -> None:
    """What fits together is taken."""
    assert route(text).command


def test_precompile() -> None:
    """The language is a word that the launcher knows."""
    assert route("script: x, command: /x, precompile: perl").precompile is Precompile.PERL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            ": must have exactly one of 'handler', 'command' and 'upstream' "
            "(a Python function, a script to run, or a server to forward to)",
        ),
        (
            "handler: a:b, command: /x",
            ": must have exactly one of 'handler', 'command' and 'upstream' "
            "(a Python function, a script to run, or a server to forward to)",
        ),
        ("comand: /x", ".comand: is not a known key (did you mean 'command'?)"),
        ("command: agi/x", ".command: must be an absolute path, not 'agi/x'"),
        ("command: '/agi/../{script}'", ".command: must not hold '..' as a part of its path"),
        *(
            (
                f"command: '{command}'",
                ".command: must hold '{' and '}' only around a name (for example {script} or {1})",
            )
            for command in ("/agi/{script", "/agi/script}", "/agi/{{script}}", "/agi/{}", "/agi/{a b}")
        ),
        (
            "command: '/agi/{scirpt}'",
            ".command: holds {scirpt}, which this route does not know (did you mean 'script'?)",
        ),
        ("command: '/agi/{1}'", ".command: holds {1}, which this route does not know (it knows {script})"),
        ("command: /agi/x, free_names: on", ".free_names: must not be true with 'command': the name becomes"),
        (
            "command: '/{script}'",
            ".command: would run any file of this machine "
            "(put the scripts' folder before its first placeholder, or set process.folder)",
        ),
        ("handler: a:b, process: {}", ".process: is for routes with 'command' only"),
        ("handler: a:b, precompile: perl", ".precompile: is for routes with 'command' only"),
        ("upstream: 'a:1', warm: 0", ".warm: is for routes with 'command' only"),
        ("command: /agi/x, options: {a: 1}", ".options: is for routes with 'handler' only"),
        ("command: /agi/x, databases: []", ".databases: is for routes with 'handler' only"),
        ("upstream: 'a:1', on_hangup: raise", ".on_hangup: is for routes with 'handler' only"),
        ("upstream: 'a:1', command_guard: clean", ".command_guard: is for routes with 'handler' only"),
        ("command: /agi/x, precompile: ruby", ".precompile: must be 'perl' or 'python'"),
        ("command: /agi/x, warm: 65", ".warm: must be at most 64"),
        (
            "command: /agi/x, warm: 1",
            ".warm: needs 'process.arguments': those of a call come too late (as process: {arguments: []})",
        ),
        (
            "command: /agi/x, warm: 1, precompile: perl, process: {arguments: []}",
            ".warm: must not stand beside 'precompile'; keep one of them",
        ),
        ("command: /agi/x, process: {gace: 5}", ".process.gace: is not a known key (did you mean 'grace'?)"),
        ("command: /agi/x, process: 5", ".process: must be a mapping"),
        ("command: /agi/x, process: {folder: agi}", ".process.folder: must be an absolute path, not 'agi'"),
        (
            "command: /agi/x, process: {interpreter: php}",
            ".process.interpreter: must be a list, each entry after '- '",
        ),
        (
            "command: /agi/x, process: {interpreter: [php]}",
            ".process.interpreter[0]: must be the absolute path of a program (for example /usr/bin/php)",
        ),
        (
            r'command: /agi/x, process: {arguments: [a, "\0"]}',
            ".process.arguments[1]: must not hold NUL, with which the system ends a text",
        ),
        ("command: /agi/x, process: {max_processes: 0}", ".process.max_processes: must be at least 1"),
        ("command: /agi/x, process: {max_queue: 10001}", ".process.max_queue: must be at most 10000"),
        (
            "command: /agi/x, process: {cpu_time: 500ms}",
            ".process.cpu_time: must be 0 (no limit) or at least 1s",
        ),
        (
            "command: /agi/x, process: {max_memory: 15MB}",
            ".process.max_memory: must be 0 (no limit) or at least 16MB (a number without a unit",
        ),
        *(
            (
                f"command: /agi/x, process: {{max_output: {size}}}",
                ".process.max_output: must be from 4KB to 1GB",
            )
            for size in ("4095", "1073741825", "0")
        ),
        (
            "command: /agi/x, process: {user: no-such-user}",
            ".process.user: must be a user of this machine; 'no-such-user' is none",
        ),
        (
            "command: /agi/x, process: {directory: agi}",
            ".process.directory: must be an absolute path, not 'agi'",
        ),
        (
            "command: /agi/x, process: {environment: {A-B: x}}",
            ".process.environment.A-B: must be a name of letters, digits and '_' that does not begin",
        ),
        ("command: /agi/x, process: {compile_timeout: 0}", ".process.compile_timeout: must be more than 0"),
    ],
)
def test_problem_of_a_route(text: str, message: str) -> None:
    """Each mistake is one problem, at its key, and says what would be right."""
    found = problems(f"script: x, {text}")
    assert len(found) == 1
    assert found[0].startswith(message)


@pytest.mark.parametrize(
    ("match", "command", "known"),
    [
        ("glob: 'a?/**'", "/agi/{3}", "{script}, {1}, {2}"),
        (r"regex: '(?P<kind>\w+)/(\d+)'", "/agi/{1}", "{script}, {kind}, {2}"),
    ],
)
def test_placeholders_are_what_the_pattern_catches(match: str, command: str, known: str) -> None:
    """A named group has its name alone, as in what a handler is given."""
    assert problems(f"{match}, command: '{command}'") == [
        f".command: holds {{{command[6]}}}, which this route does not know (it knows {known})"
    ]


def test_a_broken_pattern_is_the_only_problem() -> None:
    """Who mistyped a regular expression is not told that its groups are unknown as well."""
    assert [found.split(":")[0] for found in problems("regex: '(a', command: '/agi/{1}'")] == [".regex"]


@pytest.mark.parametrize(
    "match", ["glob: '*', command: '/agi/{1}'", "default: true, command: '/agi/{script}'"]
)
def test_warm_processes_need_one_command(match: str) -> None:
    """A process that is started in advance cannot wait for its path."""
    assert problems(f"{match}, warm: 1, process: {{arguments: []}}") == [
        ".warm: needs a 'command' that is the same for every call "
        "(take its placeholders out, or make a route with 'script' for each script)"
    ]


def test_several_problems_of_a_route_at_once() -> None:
    """What is wrong between keys is told together."""
    found = problems("command: /agi/x, free_names: on, options: {}, warm: 1")
    assert [line.split(":")[0] for line in found] == ["", ".options", ".free_names", ".warm"]


def test_another_user_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not root cannot become anybody else, and that shows before the first call."""
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert problems("script: x, command: /agi/x, process: {user: root}") == [
        ".process.user: needs a server that runs as root to become 'root' (or leave 'user' out)"
    ]


# -- Upstreams --------------------------------------------------------------------------------------------


def test_upstream_defaults() -> None:
    """An upstream needs nothing but its address."""
    found = upstream("'agi.example.com:4573'")
    assert (found.connect_timeout, found.max_queue, found.max_wait) == (2, 100, 5)
    assert [(server.address, server.max_calls) for server in found.servers] == [
        (ServerAddress("agi.example.com", 4573), 0)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'a:1'", [("a:1", 0)]),
        ("['a:1', '[2001:DB8::1]:2']", [("a:1", 0), ("[2001:db8::1]:2", 0)]),
        ("['a:1', {address: 'b:2', max_calls: 5}]", [("a:1", 0), ("b:2", 5)]),
        ("{servers: ['a:1', {address: 'b:2', max_calls: 5}]}", [("a:1", 0), ("b:2", 5)]),
    ],
)
def test_forms_of_upstream(text: str, expected: list[tuple[str, int]]) -> None:
    """Every short form means the same as the long one."""
    assert [(str(server.address), server.max_calls) for server in upstream(text).servers] == expected


def test_upstream_from_a_variable() -> None:
    """An address may come from the environment in every form."""
    text = "script: x, upstream: ['${A}', {address: '${B}'}]"
    found = loaded(text, {"A": "a:1", "B": "b:2"}).config.routes[0].upstream
    assert found
    assert [str(server.address) for server in found.servers] == ["a:1", "b:2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("'a:0'", ": must be a server with a port from 1 to 65535, not 'a:0' (for example 192.0.2.7:4573,"),
        ("5", ": must be a server with a port from 1 to 65535, not '5'"),
        ("[]", ": must hold at least one server"),
        ("{}", ".servers: is missing"),
        ("{servers: }", ".servers: is missing"),
        ("{servers: 'a:1'}", ".servers: must be a list, each entry after '- '"),
        ("['a:1', a]", "[1]: must be a server with a port from 1 to 65535, not 'a'"),
        ("['a:1', [b]]", "[1]: must be a server such as agi.example.com:4573, not a list"),
        ("['a:1', {address: b}]", "[1].address: must be a server with a port from 1 to 65535, not 'b'"),
        ("['a:1', {adress: 'b:1'}]", "[1].adress: is not a known key (did you mean 'address'?)"),
        ("['a:1', {max_calls: 1}]", "[1].address: is missing"),
        ("[{address: 'a:1', max_calls: 100001}]", "[0].max_calls: must be at most 100000"),
        ("['a:1', 'b:1', 'A:1']", "[2]: names a:1 once more"),
        ("{servers: ['a:1', {address: 'a:1'}]}", ".servers[1].address: names a:1 once more"),
        ("{servers: ['a:1', b]}", ".servers[1]: must be a server with a port from 1 to 65535, not 'b'"),
        ("{servers: ['a:1'], max_que: 1}", ".max_que: is not a known key (did you mean 'max_queue'?)"),
        ("{servers: ['a:1'], connect_timeout: 0}", ".connect_timeout: must be more than 0"),
        ("'127.0.0.1:4577'", ": is this server itself, by listen[0]: the calls would go round for ever"),
        ("['a:1', '127.0.0.1:4577']", "[1]: is this server itself, by listen[0]"),
        ("{servers: ['a:1', 'localhost:4577']}", ".servers[1]: is this server itself, by listen[0]"),
        ("['${UNSET}']", "[0]: needs the environment variable UNSET, which is not set"),
        ("'${UNSET}'", ": needs the environment variable UNSET, which is not set"),
    ],
)
def test_problem_of_an_upstream(text: str, message: str) -> None:
    """Each mistake is one problem, at the key that the operator wrote."""
    found = problems(f"script: x, upstream: {text}")
    assert len(found) == 1
    assert found[0].startswith(f".upstream{message}")


@pytest.mark.parametrize(
    ("listen", "server", "is_loop"),
    [
        ("'*:1'", "127.0.0.1:1", True),
        ("'*:1'", "[::1]:1", True),
        ("'*:1'", "localhost:1", True),
        ("'*:1'", "192.0.2.7:1", False),
        ("'*:1'", "127.0.0.1:2", False),
        ("'0.0.0.0:1'", "127.0.0.1:1", True),
        ("'0.0.0.0:1'", "0.0.0.0:1", True),
        ("'0.0.0.0:1'", "[::1]:1", False),
        ("127.0.0.1:1", "0.0.0.0:1", True),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("192.0.2.7:1", "192.0.2.7:1", True),
        ("192.0.2.7:1", "localhost:1", False),
        ("unix:/x", "localhost:1", False),
        ("systemd", "localhost:1", False),
    ],
)
def test_loops(listen: str, server: str, is_loop: bool) -> None:
    """A server that forwards to itself would do so until nothing is left; only sure loops are refused."""
    text = f"listen: [{listen}]\nallow: ['::/0']\nroutes: [{{script: x, upstream: '{server}'}}]"
    if is_loop:
        with pytest.raises(ConfigError, match="is this server itself"):
            load_text(text, "x.yaml", Path("/"), {})
    else:
        assert load_text(text, "x.yaml", Path("/"), {}).config.routes[0].upstream


def test_problems_stand_at_their_lines(tmp_path: Path) -> None:
    """A short form keeps its file and line, also from an included file and beside other mistakes."""
    (tmp_path / "main.yaml").write_text("routes: [{script: x, handler: a:b}]\ninclude: more.yaml\nzzz: 1\n")
    (tmp_path / "more.yaml").write_text(
        "routes:\n- script: y\n  upstream:\n  - 127.0.0.1:4577\n  - b:1\n  - b\n"
        "- script: z\n  upstream:\n  - 127.0.0.1:4577\n  - address: c:1\n    max_calls: x\n"
        "- script: w\n  upstream: 127.0.0.1:4577\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "main.yaml", {})
    found = [
        str(problem).removeprefix(f"{tmp_path}/").rsplit(": ", 1)[0] for problem in caught.value.problems
    ]
    assert [line.split(": ")[:2] for line in found] == [
        ["main.yaml:3", "zzz"],
        ["more.yaml:6", "routes[0].upstream[2]"],
        ["more.yaml:11", "routes[1].upstream[1].max_calls"],
        ["more.yaml:13", "routes[2].upstream"],
    ]


def test_an_upstream_in_place_of_a_merged_one() -> None:
    """A shorter form that replaces one from an anchor leaves no trace of it, and has its own place."""
    text = HEAD + (
        "- &a {script: x, upstream: ['a:1', 'b:1', {address: 'c:1'}]}\n"
        "- {<<: *a, script: y, upstream: ['q:1']}\n"
        "- {<<: *a, script: z, upstream: 'r:1'}\n"
    )
    found = load_text(text, "x.yaml", Path("/"), {})
    second, third = (route.upstream for route in found.config.routes[1:])
    assert second
    assert third
    assert [str(each.address) for each in (*second.servers, *third.servers)] == ["q:1", "r:1"]
    places = [("routes", number, "upstream", "servers", 0, "address") for number in (1, 2)]
    assert [str(found.problem(place, "is odd")) for place in places] == [
        "x.yaml:4: routes[1].upstream[0]: is odd",
        "x.yaml:5: routes[2].upstream: is odd",
    ]


def test_later_stages_find_a_server() -> None:
    """Whoever finds a fault later names the long form, and the operator reads the own one."""
    found = loaded("script: x, upstream: ['a:1', {address: 'b:1'}]")
    places = [("routes", 0, "upstream", "servers", number, "address") for number in (0, 1)]
    assert [str(found.problem(place, "is odd")) for place in places] == [
        "x.yaml:3: routes[0].upstream[0]: is odd",
        "x.yaml:3: routes[0].upstream[1].address: is odd",
    ]


# -- The effective text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown", "hidden"),
    [
        ("handler: a:b", ("options", "on_hangup"), ("process", "precompile", "warm", "upstream", "command:")),
        ("command: /agi/x", ("process", "max_output: 1MB", "warm"), ("options", "databases:\n", "handler")),
        ("upstream: 'a:1'", ("servers", "- address: a:1"), ("process", "on_hangup", "command_guard")),
    ],
)
def test_effective_text_of_a_route(text: str, shown: tuple[str, ...], hidden: tuple[str, ...]) -> None:
    """It holds the keys that mean something to this route, with their defaults, and can be loaded again."""
    config = loaded(f"script: x, {text}").config
    routes = effective(config).partition("routes:")[2]
    assert all(word in routes for word in shown)
    assert not any(word in routes for word in hidden)
    assert load_text(effective(config), "y.yaml", Path("/"), {}).config == config
