"""The configuration: defaults, bounds, problems, and the samples."""

from __future__ import annotations

import ipaddress
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fastagi_pool.config import (
    Config,
    Database,
    Limits,
    LoadedConfig,
    load,
    load_text,
)
from fastagi_pool.errors import ConfigError
from fastagi_pool.routeconfig import (
    CommandGuard,
    HangupPolicy,
    Process,
    Route,
    Upstream,
    UpstreamServer,
)
from fastagi_pool.schema import effective
from fastagi_pool.section import Section
from fastagi_pool.serviceconfig import Http, Log, LogLevel, Rotation, Slow
from fastagi_pool.values import ListenAddress, ListenKind

ROOT = Path(__file__).resolve().parent.parent
ROUTE = "routes: [{default: true, handler: a:b}]\n"
DEFAULTS = Config(routes=(Route(default=True, handler="a:b"),))


def loaded(text: str, environment: Mapping[str, str] | None = None) -> LoadedConfig:
    """Load an embedded text under the name ``x.yaml``."""
    return load_text(dedent(text), "x.yaml", Path("/"), environment or {})


def config(text: str, environment: Mapping[str, str] | None = None) -> Config:
    """Load an embedded text to which one route is added."""
    return loaded(ROUTE + dedent(text), environment).config


def route(text: str) -> Route:
    """Load one route, given as the inside of a flow mapping."""
    return loaded(f"databases: {{db: {{url: 'sqlite://'}}}}\nroutes: [{{{text}}}]").config.routes[0]


def problems(text: str, environment: Mapping[str, str] | None = None) -> list[str]:
    """Give the problems of a text as the operator reads them."""
    with pytest.raises(ConfigError) as caught:
        loaded(text, environment)
    return [str(problem) for problem in caught.value.problems]


def problem(line: str, environment: Mapping[str, str] | None = None) -> str:
    """Give the only problem of a configuration with one route and this second line."""
    found = problems(ROUTE + line, environment)
    assert len(found) == 1
    return found[0].removeprefix("x.yaml:2: ")


# -- What a file gives ------------------------------------------------------------------------------------


def test_defaults() -> None:
    """A file with nothing but a route gives the documented defaults."""
    found = config("")
    assert found == DEFAULTS
    assert found.listen == (ListenAddress(ListenKind.TCP, "127.0.0.1", 4577),)
    assert (found.backlog, found.allow, found.workers, found.calls_per_worker) == (1024, (), "auto", 1000)
    assert (found.max_calls, found.max_calls_jitter, found.max_lifetime, found.max_memory) == (
        10000,
        0.1,
        0,
        0,
    )
    assert (found.max_queue, found.max_wait) == (100, 5)
    assert (found.max_unavailable, found.max_draining) == (1, 16)
    assert (found.graceful_timeout, found.drain_timeout, found.boot_timeout) == (30, 14400, 60)
    assert (found.boot_retries, found.watchdog, found.on_error) == (10, 30, "continue")
    assert (found.python_path, found.runtime_dir, found.pid_file) == ((), Path("/run/fastagi-pool"), "")
    assert found.limits == Limits(
        header_timeout=10,
        idle_timeout=14400,
        script_timeout=60,
        header_size=65536,
        line_length=16384,
        arguments=127,
    )
    assert found.log == Log(file="-", level=LogLevel.INFO, access="-")
    assert (found.slow, found.http) == (Slow(), Http())
    assert (found.user, found.group, found.umask, found.chdir) == ("", "", "", "")
    assert found.databases == {}


def test_database_defaults() -> None:
    """A database needs nothing but its URL."""
    assert config("databases: {a: {url: 'sqlite://'}}").databases == {
        "a": Database(
            url=("sqlite://",),
            password="",
            pool_size=4,
            pool_timeout=5,
            idle_ping=30,
            max_age=3600,
            connect_timeout=5,
            read_timeout=30,
            write_timeout=30,
            required_at_boot=True,
            sql_mode="",
            multi_statements=False,
        )
    }


def test_route_defaults() -> None:
    """A route needs nothing but what it matches and its handler; what is not safe must be asked for."""
    found = route("script: x, handler: a:b")
    assert (found.on_hangup, found.command_guard) == (HangupPolicy.RAISE, CommandGuard.STRICT)
    assert (found.on_error, found.mask_digits, found.free_names) == (None, False, False)


def test_policies_of_a_route() -> None:
    """The policies of a route are read as they are written, also from a variable."""
    policies = "on_hangup: continue, command_guard: '${G}', mask_digits: on, on_error: ' goto  a ,s, 1'"
    policies += ", free_names: on"
    text = f"routes: [{{script: x, handler: a:b, {policies}}}]"
    found = loaded(text, {"G": "clean"}).config.routes[0]
    assert (found.on_hangup, found.command_guard) == (HangupPolicy.CONTINUE, CommandGuard.CLEAN)
    assert (found.on_error, found.mask_digits, found.free_names) == ("goto a,s,1", True, True)


def test_everything_set() -> None:
    """Every key that is set reaches the model with its type."""
    found = config(
        """
        listen: ["*:4577", systemd]
        allow: [10.0.0.0/8, "2001:db8::/32", 192.0.2.7]
        workers: 3
        max_memory: 256MB
        max_calls_jitter: 0
        log: {level: debug, access: off}
        pid_file: /run/x.pid
        on_error: goto sorry,s,1
        """
    )
    assert [str(address) for address in found.listen] == ["*:4577", "systemd"]
    assert found.allow == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("2001:db8::/32"),
        ipaddress.ip_network("192.0.2.7/32"),
    )
    assert (found.workers, found.max_memory, found.max_calls_jitter) == (3, 2**28, 0.0)
    assert found.log == Log(level=LogLevel.DEBUG, access="off")
    assert (found.pid_file, found.on_error) == ("/run/x.pid", "goto sorry,s,1")


def test_worker_count() -> None:
    """``auto`` follows the cores within the bounds of the key; a number stands."""
    assert [DEFAULTS.worker_count(cores) for cores in (0, 1, 8, 5000)] == [1, 1, 8, 512]
    assert config("workers: 3").worker_count(8) == 3


def test_whom_the_server_becomes() -> None:
    """User, group, umask and folder are read as they are written, octal digits without quotes too."""
    found = config("user: root\ngroup: root\numask: 027\nchdir: /var")
    assert (found.user, found.group, found.umask, found.chdir) == ("root", "root", "027", "/var")


@pytest.mark.parametrize("mask", ["0", "7", "22", "027", "0027", "777"])
def test_masks(mask: str) -> None:
    """A mask may be written with and without the zeros before it."""
    assert int(config(f"umask: {mask}").umask, 8) == int(mask, 8)


def test_a_group_must_exist() -> None:
    """A group that the machine does not have is found before the server tries to become one of it."""
    assert problems(f"{ROUTE}user: root\ngroup: no such") == [
        "x.yaml:3: group: must be a group of this machine; 'no such' is none"
    ]


def test_sections_are_united(tmp_path: Path) -> None:
    """What an included file says about a section is added to it."""
    (tmp_path / "main.yaml").write_text(
        f"{ROUTE}include: more.yaml\nhttp: {{listen: '*:80'}}\nlog: {{level: debug}}\n"
    )
    (tmp_path / "more.yaml").write_text("http: {allow: [10.0.0.0/8]}\nlog: {rotate: {every: day}}\n")
    found = load(tmp_path / "main.yaml", {}).config
    assert (str(found.http.address), len(found.http.allow)) == ("*:80", 1)
    assert (found.log.level, found.log.rotate.every) == ("debug", "day")


def test_config_is_frozen() -> None:
    """A configuration cannot change under those who hold it."""
    with pytest.raises(ValueError, match="frozen"):
        DEFAULTS.backlog = 5


def test_variable_as_number() -> None:
    """A lone variable is a number where one is wanted, and text where text is."""
    text = "workers: ${N}\nmax_lifetime: '${D:-5m}'\nlog: {file: '${F}'}\nmax_calls: ${M:-0}"
    found = config(text, {"N": "4", "F": "/8"})
    assert (found.workers, found.max_lifetime, found.max_calls, found.log.file) == (4, 300.0, 0, "/8")


@pytest.mark.parametrize("key", ["allow", "databases", "limits", "log", "workers", "pid_file", "python_path"])
def test_empty_key_is_absent(key: str) -> None:
    """A key whose entries are all commented out counts as absent."""
    assert config(f"{key}:") == DEFAULTS


@pytest.mark.parametrize("word", ["yes", "on", "true", "True"])
def test_truth_words(word: str) -> None:
    """All usual words for truth are understood where a truth value is wanted."""
    assert route(f"default: {word}, handler: a:b").default is True


@pytest.mark.parametrize("word", ["off", "no", "true", "8600", "007", "1.50", "2020-01-01"])
def test_text_keeps_its_letters(word: str) -> None:
    """Where text is wanted, unquoted words that look like something else stay as they are."""
    found = route(
        f"script: {word}, handler: a:b, context: {word}, query: {{x: {word}}}, arguments: {{1: {word}}}"
    )
    assert (found.script, found.context, found.query, found.arguments) == (word, word, {"x": word}, {1: word})


def test_options_are_typed() -> None:
    """Free options of any depth have the types of YAML 1.2."""
    found = route("default: true, handler: a:b, options: {a: 1, b: '1', c: [true, 1.5, ~, {d: text}]}")
    assert found.options == {"a": 1, "b": "1", "c": [True, 1.5, None, {"d": "text"}]}


def test_python_path_is_relative_to_its_file(tmp_path: Path) -> None:
    """A folder of handlers is found from the file that names it, and must exist."""
    (tmp_path / "lib").mkdir()
    path = tmp_path / "x.yaml"
    path.write_text(f"{ROUTE}python_path: [lib]\n")
    assert load(path, {}).config.python_path == (tmp_path / "lib",)
    path.write_text(f"{ROUTE}python_path: [lib, gone]\n")
    with pytest.raises(
        ConfigError, match=rf"x.yaml:2: python_path\[1\]: must be an existing folder; {tmp_path}"
    ):
        load(path, {})


@pytest.mark.parametrize(
    ("match", "name"),
    [
        ("script: vm/check.agi", "vm/check.agi"),
        ("script: naïve é.agi", "na-ve-.agi"),
        ("glob: 'vm/*.agi'", "vm/*.agi"),
        ("glob: 'a?[0-9].agi'", "a-0-9-.agi"),
        (r"regex: '^vm/(\d+)$'", "regex:vm/-d"),
        ("regex: '()'", "regex:unnamed"),
        ("default: true", "default"),
        ("script: x, name: own", "own"),
    ],
)
def test_route_name(match: str, name: str) -> None:
    """A route without a name gets one from what it matches, in letters that logs can bear."""
    assert route(f"{match}, handler: a:b").name == name


def test_database_password_goes_into_each_url() -> None:
    """The password is put into every URL, with its odd characters escaped."""
    found = config(
        """
        databases:
          a: {url: ['mysql://me@one/db?x=a@b', 'mysql://me@two:3306/db'], password: "${P}"}
          b: {url: 'mysql://me:own@one/db'}
        """,
        {"P": "p@/: ß"},
    ).databases
    assert found["a"].connect_urls() == (
        "mysql://me:p%40%2F%3A%20%C3%9F@one/db?x=a@b",
        "mysql://me:p%40%2F%3A%20%C3%9F@two:3306/db",
    )
    assert found["b"].connect_urls() == ("mysql://me:own@one/db",)


# -- Problems ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("max_cals: 5", "max_cals: is not a known key (did you mean 'max_calls'?)"),
        ("zzz: 5", "zzz: is not a known key"),
        ("zzz:", "zzz: is not a known key"),
        ("includes: x", "includes: is not a known key (did you mean 'include'?)"),
        ("limits: {idle: 5}", "limits.idle: is not a known key"),
        ("limits: {argumens: 5}", "limits.argumens: is not a known key (did you mean 'arguments'?)"),
        ("log: {levle: info}", "log.levle: is not a known key (did you mean 'level'?)"),
        ("workers: 3x", "workers: must be 'auto' or a whole number from 1 to 512, not '3x'"),
        ('workers: "3"', "workers: must be 'auto' or a whole number from 1 to 512, not '3'"),
        ("workers: 513", "workers: must be 'auto' or a whole number from 1 to 512, not '513'"),
        ("workers: true", "workers: must be 'auto' or a whole number from 1 to 512, not 'true'"),
        ("max_calls: yes", "max_calls: must be a whole number without quotes, not 'yes'"),
        ("max_calls: true", "max_calls: must be a whole number without quotes, not 'true'"),
        ("max_calls: 1e3", "max_calls: must be a whole number without quotes, not '1e3'"),
        ("max_calls: -1", "max_calls: must be at least 0"),
        ("max_calls: [1]", "max_calls: must be a whole number without quotes, not a list"),
        ("max_calls: 1000000001", "max_calls: must be at most 1000000000"),
        ("backlog: 1.5", "backlog: must be a whole number without quotes, not '1.5'"),
        ("backlog: 0", "backlog: must be at least 1"),
        ("backlog: 65536", "backlog: must be at most 65535"),
        ("max_queue: -1", "max_queue: must be at least 0"),
        ("max_queue: 10001", "max_queue: must be at most 10000"),
        ("max_wait: -1s", "max_wait: must not be negative"),
        ("max_calls_jitter: 1.01", "max_calls_jitter: must be at most 1"),
        ("max_calls_jitter: .nan", "max_calls_jitter: must be a number without quotes, not '.nan'"),
        (
            "max_memory: 256",
            "max_memory: must be 0 (never) or at least 1MB (a number without a unit means bytes)",
        ),
        ("watchdog: 0.5", "watchdog: must be 0 (off) or at least 1s"),
        ("boot_timeout: 0", "boot_timeout: must be more than 0"),
        ("drain_timeout: -1h", "drain_timeout: must not be negative"),
        ("limits: {header_timeout: 0}", "limits.header_timeout: must be more than 0"),
        ("limits: {header_size: 2MB}", "limits.header_size: must be from 1KB to 1MB"),
        ("limits: {arguments: 128}", "limits.arguments: must be at most 127"),
        (
            "limits: {header_size: 1KB, line_length: 2KB}",
            "limits.line_length: must be at least 256 bytes and at most header_size",
        ),
        (
            "on_error: goto sorry",
            "on_error: must be 'continue', 'hangup' or 'goto context,extension,priority'",
        ),
        ("on_error: [hangup]", "on_error: must be text"),
        ("limits: 5", "limits: must be a mapping"),
        ("log: {level: INFO}", "log.level: must be 'debug', 'info', 'warning' or 'error'"),
        ("log: {file: off}", "log.file: must be '-' or 'syslog' or an absolute path"),
        ("log: {access: x}", "log.access: must be '-' or 'syslog' or 'off' or an absolute path"),
        ("log: {file: [x]}", "log.file: must be text"),
        ("pid_file: x.pid", "pid_file: must be an absolute path, not 'x.pid'"),
        ("user: no such", "user: must be a user of this machine; 'no such' is none"),
        ('user: "a\\0b"', "user: must be a user of this machine; 'a\\x00b' is none"),
        ("group: root", "group: needs 'user'"),
        ("umask: 28", "umask: must be an octal number from 0 to 777 (in quotes, as '027')"),
        ("umask: 1000", "umask: must be an octal number from 0 to 777 (in quotes, as '027')"),
        ("umask: -1", "umask: must be an octal number from 0 to 777 (in quotes, as '027')"),
        ("chdir: var", "chdir: must be an absolute path, not 'var'"),
        ("runtime_dir: run", "runtime_dir: must be an absolute path, not 'run'"),
        ("listen: 127.0.0.1:1", "listen: must be a list, each entry after '- '"),
        ("listen: []", "listen: must hold at least one entry"),
        ("listen: [{a: b}]", "listen[0]: must be an address, not a mapping"),
        (
            "listen: [systemd, unix:/x, systemd]",
            "listen[2]: is the same address as listen[0]",
        ),
        (
            "listen: ['0.0.0.0:1']",
            "listen[0]: can be reached from other machines, so 'allow' must say which may call "
            "(for example allow: [10.0.0.0/8])",
        ),
        (
            "allow: [10.1.2.3/8]",
            "allow[0]: has bits set behind the length of its network (write 10.0.0.0/8)",
        ),
        ("allow: [pbx]", "allow[0]: must be a network such as 10.0.0.0/8, or an address, not 'pbx'"),
        ("allow: [[1]]", "allow[0]: must be a network such as 10.0.0.0/8, or an address, not a list"),
        ("databases: [a]", "databases: must be a mapping"),
        (
            "databases: {A: {url: 'a://'}}",
            "databases.A: must be a name of small letters, digits and '_' that begins with a letter",
        ),
        ("databases: {a: {}}", "databases.a.url: is missing"),
        ("databases: {a: }", "databases.a: must be a mapping"),
        ("databases: {a: {url: []}}", "databases.a.url: must hold at least one URL"),
        (
            "databases: {a: {url: db}}",
            "databases.a.url: must be a URL such as mysql+pymysql://user@host/name",
        ),
        ("databases: {a: {url: {b: c}}}", "databases.a.url: must be a list, each entry after '- '"),
        (
            "databases: {a: {url: ['a://', 'b://']}}",
            "databases.a.url: must hold URLs that all have the same driver",
        ),
        (
            "databases: {a: {url: 'a://h', password: x}}",
            "databases.a.password: needs a URL that names the user (as mysql+pymysql://user@host/name)",
        ),
        (
            "databases: {a: {url: 'a://u:p@h', password: x}}",
            "databases.a.password: is given although the URL holds a password too; keep one of them",
        ),
        ("databases: {a: {url: 'a://', pool_size: 201}}", "databases.a.pool_size: must be at most 200"),
        (
            "databases: {a: {url: 'a://', required_at_boot: maybe}}",
            "databases.a.required_at_boot: must be true or false, not 'maybe'",
        ),
        *(
            (
                f"databases: {{a: {{url: 'a://', sql_mode: \"{mode}\"}}}}",
                "databases.a.sql_mode: must be names of letters, digits and '_' with ',' between them",
            )
            for mode in ("A B", "A'", "A;", "A\\n", "\u00c4")
        ),
        (
            "databases: {a: {url: 'a://', multi_statements: 1}}",
            "databases.a.multi_statements: must be true or false, not '1'",
        ),
    ],
)
def test_problem_of_a_key(line: str, message: str) -> None:
    """Each wrong value is one problem, with its key and a message that says what would be right."""
    assert problem(line) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("handler: a:b", ": must have exactly one of 'script', 'glob', 'regex' and 'default: true'"),
        (
            "handler: a:b, default: no",
            ": must have exactly one of 'script', 'glob', 'regex' and 'default: true'",
        ),
        (
            "handler: a:b, script: x, glob: y",
            ": must have exactly one of 'script', 'glob', 'regex' and 'default: true'",
        ),
        ("script: x, handlr: a:b", ".handlr: is not a known key (did you mean 'handler'?)"),
        (
            "script: x, handler: a.b.c",
            ".handler: must be package.module:function, not 'a.b.c' (did you mean 'a.b:c'?)",
        ),
        ("script: x, handler: 'a:b:c'", ".handler: must be package.module:function, not 'a:b:c'"),
        ("script: x, handler: 'a..b:c'", ".handler: must be package.module:function, not 'a..b:c'"),
        ("script: x, handler: 'a b:c'", ".handler: must be package.module:function, not 'a b:c'"),
        ("script: /x/y, handler: a:b", ".script: must not begin with '/' (write 'x/y')"),
        ("glob: /x*, handler: a:b", ".glob: must not begin with '/' (write 'x*')"),
        ("script: a/../x, handler: a:b", ".script: must not hold '..' as a part of its path"),
        ("script: 'x?y=1', handler: a:b", ".script: must not hold a query (match it with 'query:')"),
        ("script: '', handler: a:b", ".script: must be a script name"),
        (r'script: "a\nb", handler: a:b', ".script: must be a script name"),
        (
            "regex: 'a(', handler: a:b",
            ".regex: is not a regular expression: missing ), unterminated subpattern at position 1",
        ),
        ("regex: 'a{99999999999}', handler: a:b", ".regex: is not a regular expression: "),
        ("name: a b, script: x, handler: a:b", ".name: must be a name of letters, digits and _ . : / * -"),
        ("name: '', script: x, handler: a:b", ".name: must be a name of letters, digits and _ . : / * -"),
        (f"name: {'x' * 101}, script: x, handler: a:b", ".name: must not be longer than 100 characters"),
        (
            "script: x, handler: a:b, priority: 0.5",
            ".priority: must be a whole number without quotes, not '0.5'",
        ),
        (
            "script: x, handler: a:b, arguments: {0: x}",
            ".arguments.0: must be the number of an argument, 1 to 127",
        ),
        ("script: x, handler: a:b, arguments: {128: x}", ".arguments.128: must be the number of an argument"),
        ("script: x, handler: a:b, arguments: [x]", ".arguments: must be a mapping"),
        ("script: x, handler: a:b, query: {x: [y]}", ".query.x: must be text"),
        ("script: x, handler: a:b, options: [x]", ".options: must be a mapping"),
        (
            "script: x, handler: a:b, options: {x: [{y: on}]}",
            ".options.x[0].y: 'on' may be text or a truth value",
        ),
        (
            "script: x, handler: a:b, databases: [dbs]",
            ".databases[0]: names no database: 'dbs' (did you mean 'db'?)",
        ),
        ("script: x, handler: a:b, lane: records", ".lane: names no lane: 'records'"),
        ("script: x, handler: a:b, deferrable: maybe", ".deferrable: must be true or false, not 'maybe'"),
        ("script: x, handler: a:b, priority: -1000001", ".priority: must be at least -1000000"),
        ("script: x, handler: a:b, script_timeout: -1", ".script_timeout: must not be negative"),
        ("script: x, handler: a:b, on_hangup: no", ".on_hangup: must be 'raise' or 'continue'"),
        ("script: x, handler: a:b, command_guard: off", ".command_guard: must be 'strict' or 'clean'"),
        ("script: x, handler: a:b, mask_digits: 1", ".mask_digits: must be true or false, not '1'"),
        (
            "script: x, handler: a:b, on_error: 'goto a,b'",
            ".on_error: must be 'continue', 'hangup' or 'goto context,extension,priority'",
        ),
    ],
)
def test_problem_of_a_route(text: str, message: str) -> None:
    """Each mistake in a route is one problem, with the route's number and what would be right."""
    found = problems(f"databases: {{db: {{url: 'sqlite://'}}}}\nroutes: [{{{text}}}]")
    assert len(found) == 1
    assert found[0].startswith(f"x.yaml:2: routes[0]{message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers: 1", "x.yaml:1: routes: is missing"),
        ("routes:", "x.yaml:1: routes: is missing"),
        ("routes: []", "x.yaml:1: routes: must hold at least one entry"),
        ("routes: {a: b}", "x.yaml:1: routes: must be a list, each entry after '- '"),
        ("routes: [5]", "x.yaml:1: routes[0]: must be a mapping"),
    ],
)
def test_problem_of_routes(text: str, message: str) -> None:
    """A server without a route would refuse every call, so there must be one."""
    assert problems(text) == [message]


def test_the_lane_of_all_others_is_always_there() -> None:
    """A route may name the lane default though nobody has configured it, and is in it if it names none."""
    found = loaded("routes: [{script: x, handler: a:b, lane: default}, {default: true, handler: a:b}]").config
    assert [(each.lane, each.deferrable) for each in found.routes] == [("default", None)] * 2


@pytest.mark.parametrize(
    ("lanes", "expected"),
    [
        ("{a: {reserve: 5}, b: {reserve: 4}}", []),
        (
            "{a: {reserve: 5}, b: {reserve: 5}}",
            ["x.yaml:2: lanes: reserve 10 places together, but a worker has 10 (calls_per_worker)"],
        ),
        (
            "{a: {reserve: 3, max_active: 2}}",
            ["x.yaml:2: lanes.a.reserve: is more than the lane may use: max_active is 2"],
        ),
        ("{a: {reserve: 2, max_active: 2}}", []),
    ],
)
def test_what_lanes_keep(lanes: str, expected: list[str]) -> None:
    """Lanes keep no more places than they may use, and leave one to all others."""
    text = f"{ROUTE}lanes: {lanes}\ncalls_per_worker: 10"
    if not expected:
        assert loaded(text).config.lanes
        return
    assert [each.partition(" (other calls")[0] for each in problems(text)] == expected


def test_limits_of_connections() -> None:
    """Silent connections are limited by themselves, and calls of one server if somebody wants that."""
    assert (Limits().connections, Limits().calls_per_server) == (10_000, 0)
    found = config("limits: {connections: 5, calls_per_server: 7}").limits
    assert (found.connections, found.calls_per_server) == (5, 7)
    assert problem("limits: {connections: 0}") == "limits.connections: must be at least 1"
    assert problem("limits: {calls_per_server: -1}") == "limits.calls_per_server: must be at least 0"


def test_signs_of_life_of_a_database() -> None:
    """A server that is read-only counts as away unless the operator says that handlers only read."""
    [found] = config("databases: {db: {url: 'sqlite://'}}").databases.values()
    assert (found.probe_timeout, found.writable) == (0.5, True)
    [found] = config(
        "databases: {db: {url: 'sqlite://', probe_timeout: 2s, writable: no}}"
    ).databases.values()
    assert (found.probe_timeout, found.writable) == (2.0, False)
    shown = problem("databases: {db: {url: 'sqlite://', probe_timeout: 0}}")
    assert shown.startswith("databases.db.probe_timeout: must be ")


def test_route_names_are_unique() -> None:
    """Two routes with one name could not be told apart in the log."""
    assert problems("routes:\n- {script: x, handler: a:b}\n- {script: x, context: y, handler: a:b}\n") == [
        "x.yaml:3: routes[1]: has the name 'x', as routes[0] has (give one of them another 'name')"
    ]


def test_port_0_may_stand_twice() -> None:
    """Port 0 is a different port each time, so it is no duplicate."""
    assert len(config("listen: ['127.0.0.1:0', '127.0.0.1:0']").listen) == 2


def test_all_problems_at_once() -> None:
    """Everything wrong is told in one go and in the order of the lines, however deep it lies."""
    found = problems(
        """\
        workers: 0
        workers: 1
        listen: ["*:1", "*:1", nowhere]
        max_cals: ${UNSET}
        log: {level: '${UNSET}'
          , file: x}
        databases: {a: {url: x}}
        routes:
        - {script: /x, handler: a.b}
        - {script: y, handler: a:b, databases: [b]}
        - {script: y, handler: a:b, options: {a: yes, b: no}}
        """
    )
    places = [
        (int(number), key) for number, key in re.findall(r"^x\.yaml:(\d+): (\S+): ", "\n".join(found), re.M)
    ]
    assert places == [
        (1, "workers"),
        (2, "workers"),
        (3, "listen[2]"),
        (3, "listen[0]"),
        (3, "listen[1]"),
        (3, "listen[1]"),
        (4, "max_cals"),
        (5, "log.level"),
        (6, "log.file"),
        (7, "databases.a.url"),
        (9, "routes[0].script"),
        (9, "routes[0].handler"),
        (10, "routes[1].databases[0]"),
        (11, "routes[2].options.a"),
        (11, "routes[2].options.b"),
    ]


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("allow: ${X}\nlisten: ['*:1']\n", {}, ["allow: needs the environment variable X, which is not set"]),
        ("databases: ${X}\n", {}, ["databases: needs the environment variable X, which is not set"]),
        ("backlog: ${X}\n", {}, ["backlog: needs the environment variable X, which is not set"]),
        ("backlog: ${X}\n", {"X": ""}, ["backlog: must be a whole number without quotes, not ''"]),
    ],
)
def test_one_mistake_is_one_problem(text: str, environment: Mapping[str, str], expected: list[str]) -> None:
    """A value that could not be read causes no further problems about what it might have been."""
    routes = "routes: [{default: true, handler: a:b, databases: [a]}]\n"
    if "databases" not in text:
        routes = ROUTE
    assert [found.removeprefix("x.yaml:1: ") for found in problems(text + routes, environment)] == expected


def test_syntax_error_hides_guesses() -> None:
    """A file that is no YAML has one problem, not also that its routes are missing."""
    assert len(problems("routes: [\n")) == 1


def test_load_problems(tmp_path: Path) -> None:
    """A file that is not there is a ConfigError like any other."""
    with pytest.raises(ConfigError, match=r"gone\.yaml: does not exist"):
        load(tmp_path / "gone.yaml", {})


def test_problem_in_an_included_file(tmp_path: Path) -> None:
    """A problem in a joined list names the file, the line and the number there, not in the whole."""
    (tmp_path / "main.yaml").write_text(f"{ROUTE}include: more.yaml\n")
    (tmp_path / "more.yaml").write_text("\nroutes:\n- {script: x, handler: c:d}\n- {script: y}\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "main.yaml", {})
    assert [str(found) for found in caught.value.problems] == [
        f"{tmp_path}/more.yaml:4: routes[1]: must have exactly one of 'handler', 'command' and 'upstream' "
        "(a Python function, a script to run, or a server to forward to)"
    ]


def test_later_stages_can_report(tmp_path: Path) -> None:
    """A loaded configuration finds the place of any key for problems that show later."""
    (tmp_path / "main.yaml").write_text(f"{ROUTE}include: more.yaml\n")
    (tmp_path / "more.yaml").write_text("routes:\n- script: x\n  handler: c:d\n")
    found = load(tmp_path / "main.yaml", {})
    assert found.files == (tmp_path / "main.yaml", tmp_path / "more.yaml")
    assert str(found.problem(("routes", 1, "handler"), "cannot be imported", "is it installed?")) == (
        f"{tmp_path}/more.yaml:3: routes[0].handler: cannot be imported (is it installed?)"
    )
    assert (
        str(found.problem(("routes", 1, "context"), "m")) == f"{tmp_path}/more.yaml:2: routes[0].context: m"
    )
    assert found.problem(("limits", "arguments"), "m").line == 1


def test_problems_show_no_secret() -> None:
    """A problem with a URL or a password does not quote it."""
    one = "{url: 'hunter2', password: [hunter2]}"
    two = "{url: 'a://u:hunter2@h', password: hunter2}"
    found = problems(f"{ROUTE}databases: {{a: {one}, b: {two}}}")
    assert len(found) == 3
    assert "hunter2" not in "\n".join(found)


#: Pieces of configurations, from which random ones are put together.
FRAGMENTS = st.recursive(
    st.sampled_from(["x", "5", "-1", "yes", "~", "''", "'${X}'", "1e9", "a:b", "sqlite://", "'*:1'", "/x"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(
            st.sampled_from(sorted({*Config.model_fields, *Route.model_fields, "url", "a", "1", "? [x]"})),
            inner,
            max_size=4,
        ).map(lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}"),
    ),
    max_leaves=12,
)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from([*Config.model_fields, "include", "zzz"]), FRAGMENTS, max_size=6))
def test_nonsense_is_a_config_error(keys: dict[str, str]) -> None:
    """Whatever stands in a file, the answer is a configuration or problems in the words of this project."""
    text = "".join(f"{key}: {value}\n" for key, value in keys.items())
    try:
        outcome: object = loaded(effective(loaded(text).config)).config.routes
    except ConfigError as error:
        outcome = error.problems
    assert outcome
    assert "Input should" not in str(outcome)


# -- Descriptions and samples -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [Config, Database, Http, Limits, Log, Process, Rotation, Route, Slow, Upstream, UpstreamServer],
)
def test_every_key_is_described(model: type[BaseModel]) -> None:
    """Each key carries the sentence or two that the reference is made of."""
    for name, info in model.model_fields.items():
        assert re.fullmatch(r"[A-Z`].*\.", info.description or "", re.DOTALL), name


def test_minimal_sample() -> None:
    """The minimal sample is complete: everything else is a default."""
    found = load(ROOT / "conf/minimal.yaml", {}).config
    assert found.routes[0].handler == "fastagi_pool.handlers.demo:hello"
    assert found.model_copy(update={"routes": ()}) == DEFAULTS.model_copy(update={"routes": ()})


@pytest.mark.parametrize("sample", ["minimal.yaml", "fastagi-pool.yaml"])
def test_samples_pass_the_check(sample: str) -> None:
    """Who copies a sample gets a configuration that can be run, with its handlers."""
    done = subprocess.run(
        [sys.executable, "-m", "fastagi_pool", "check", "-c", str(ROOT / "conf" / sample)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_full_sample_shows_the_defaults() -> None:
    """The full sample holds every key with its default."""
    found = load(ROOT / "conf/fastagi-pool.yaml", {})
    assert found.config.model_copy(update={"routes": ()}) == DEFAULTS.model_copy(update={"routes": ()})
    written = {location[0] for location in found.source_map.places if len(location) == 1}
    assert written == set(Config.file_keys())
    sections: dict[tuple[str, ...], type[Section]] = {
        **{("limits",): Limits, ("log",): Log, ("slow",): Slow, ("http",): Http},
        ("log", "rotate"): Rotation,
    }
    for section, model in sections.items():
        keys = {location[-1] for location in found.source_map.places if location[:-1] == section}
        assert keys == set(model.file_keys())


def test_full_sample_examples_work(tmp_path: Path) -> None:
    """The commented examples load when they are uncommented, and show every key of databases and routes."""
    password = tmp_path / "password"
    password.write_text("secret\n")
    text = (ROOT / "conf/fastagi-pool.yaml").read_text()
    text = text.replace("/etc/fastagi-pool/database-password", str(password))
    text = re.sub(r"^(allow: \[\]|(databases|lanes): \{\})$", "", text, flags=re.M)
    text = re.sub(r"^#(?=\S|  )", "", text, flags=re.M)
    found = load_text(text, "sample", tmp_path, {})
    assert (
        found.config.databases["calls"].connect_urls()[0]
        == "mysql+pymysql://fastagi:secret@db1.example.com/calls"
    )
    assert len(found.config.routes) == 8
    handlers = [route.handler for route in found.config.routes if route.handler]
    assert len(handlers) == 4
    assert all(callable(resolve_name(handler)) for handler in handlers)
    written = {str(location[-1]) for location in found.source_map.places if location}
    assert {*Database.file_keys(), *Route.file_keys()} <= written
    for model, section in ((Process, "process"), (Upstream, "upstream"), (UpstreamServer, "servers")):
        below = (location for location in found.source_map.places if section in location)
        assert set(model.file_keys()) <= {str(location[-1]) for location in below}


def test_a_folder_to_work_in_must_exist() -> None:
    """A slip in chdir is found before the server tries to go there."""
    assert problems(f"{ROUTE}chdir: /no/such/folder") == [
        "x.yaml:2: chdir: must be an existing folder; /no/such/folder is none"
    ]


@pytest.mark.parametrize(
    ("listen", "http", "clashes"),
    [
        ("127.0.0.1:4578", "127.0.0.1:4578", True),
        ("'*:4578'", "127.0.0.1:4578", True),
        ("127.0.0.2:4578", "127.0.0.1:4578", False),
        ("127.0.0.1:4577", "127.0.0.1:4578", False),
        ("127.0.0.1:4578", "off", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_calls_and_the_status_need_ports_of_their_own(listen: str, http: str, clashes: bool) -> None:
    """A port that both want would be found out only at the start, by one of the two."""
    text = f"{ROUTE}allow: [127.0.0.0/8]\nlisten: [{listen}]\nhttp: {{listen: {http}}}"
    if clashes:
        (found,) = problems(text)
        assert "http.listen: is where calls come in: listen[0] is " in found
    else:
        assert loaded(text).config.http.listen == http
