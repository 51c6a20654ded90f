"""The command line, as its users type it: what it prints, and its exit codes."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from service import COMMAND, PoolService

from fastagi_pool.recording import Transcript, Turn
from fastagi_pool.source import Source, SourceKind
from fastagi_pool.testing import environment
from fastagi_pool.version import VERSION

_ROUTES: Final[list[dict[str, Any]]] = [
    {"script": "hello", "handler": "fastagi_pool.handlers.demo:hello"},
    {"glob": "echo/*", "query": {"lang": "en"}, "handler": "fastagi_pool.handlers.demo:echo"},
    {
        "name": "sales",
        "script": "pin",
        "context": "sales",
        "handler": "fastagi_pool.handlers.demo:pin",
        "options": {"pin": "1234"},
    },
]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    done = subprocess.run(
        (*COMMAND, *map(str, arguments)), capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write a good configuration."""
    return write(tmp_path)


def write(folder: Path, **settings: Any) -> Path:
    """Write a configuration with further keys."""
    path = folder / "pool.yaml"
    content = {"runtime_dir": str(folder / "run"), "routes": _ROUTES, **settings}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def pool() -> Iterator[PoolService]:
    """Run a pool for the commands that speak to one."""
    with tempfile.TemporaryDirectory() as folder:
        running = PoolService(Path(folder), Path(folder), _ROUTES)
        running.start()
        yield running
        code = running.stop()
        running.kill()
        assert code == 0


# --- in general


def test_version() -> None:
    """The version can be asked for."""
    assert run("--version").stdout == f"fastagi-pool, version {VERSION}\n"


@pytest.mark.parametrize(
    "command", [(), ("run",), ("check",), ("routes",), ("call",), ("record",), ("replay",), ("status",)]
)
def test_help(command: tuple[str, ...]) -> None:
    """Every command explains itself."""
    done = run(*command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ")


@pytest.mark.parametrize("arguments", [("nonsense",), ("check", "--nonsense"), ("call",)])
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    """What cannot be understood is exit code 2, with the usage."""
    done = run(*arguments)
    assert done.returncode == 2
    assert "Usage: " in done.stderr


# --- check


def test_check_good(config: Path) -> None:
    """A good configuration is exit code 0 and one line."""
    done = run("check", "-c", config)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{config}: good, 3 routes\n", "")


def test_check_demonstration() -> None:
    """The embedded demonstration is good."""
    done = run("check", "--demo")
    assert (done.returncode, done.stdout) == (0, "the demonstration: good, 4 routes\n")


def test_check_bad(tmp_path: Path) -> None:
    """All that is wrong is told at once, each with file, line and key; exit code 2."""
    path = write(tmp_path, workers="many", nonsense=1)
    done = run("check", "-c", path)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{path}:") for line in lines)
    assert any(" workers: " in line for line in lines)
    assert any(" nonsense: " in line for line in lines)


def test_check_print(tmp_path: Path) -> None:
    """The effective configuration is YAML with the defaults in it and no password."""
    database = {"url": "mysql+pymysql://user@localhost/calls", "password": "not-for-the-screen"}
    done = run("check", "-c", write(tmp_path, databases={"calls": database}), "--print")
    assert done.returncode == 0
    shown = yaml.safe_load(done.stdout)
    assert shown["max_calls"] == 10000
    assert [route["name"] for route in shown["routes"]] == ["hello", "echo/*", "sales"]
    assert "not-for-the-screen" not in done.stdout + done.stderr


def test_check_database(tmp_path: Path) -> None:
    """A database that answers is good; one that does not is exit code 2, without the password."""
    good = {"url": f"sqlite:///{tmp_path}/calls.db"}
    done = run("check", "-c", write(tmp_path, databases={"calls": good}), "--db")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("database 'calls': good\n")
    away = {"url": "mysql+pymysql://user@127.0.0.1:9/calls", "password": "not-for-the-screen"}
    done = run("check", "-c", write(tmp_path, databases={"calls": good, "away": away}), "--db")
    assert done.returncode == 2
    assert done.stderr.startswith("database 'away' is not available: ")
    assert "not-for-the-screen" not in done.stderr


# --- VICIdial's configuration file


def astguiclient(folder: Path, **keys: str) -> Path:
    """Write VICIdial's configuration file with further keys."""
    path = folder / "astguiclient.conf"
    content = {
        "VARserver_ip": "192.0.2.15",
        "VARDB_server": "127.0.0.1",
        "VARDB_database": "asterisk",
        "VARDB_user": "cron",
        "VARDB_pass": "not-for-the-screen",
        **keys,
    }
    path.write_text("".join(f"{key} => {value}\n" for key, value in content.items()))
    return path


def test_check_astguiclient(tmp_path: Path) -> None:
    """VICIdial's own file is enough to run, and its pool keys are told with what they became."""
    path = astguiclient(tmp_path, VARfastagi_log_max_requests="many")
    done = run("check", "--astguiclient", path)
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows, last = done.stdout.splitlines()
    assert head.split() == ["key", "value", "became"]
    assert rows[0].split() == ["VARfastagi_log_min_servers", "3", "workers:", "3"]
    assert len(rows) == 7
    assert "1000 (the default: 'many' is no number)" in rows[4]
    assert last == f"{path}: good, 1 routes"


def test_check_print_astguiclient(tmp_path: Path) -> None:
    """What VICIdial's file means can be seen as YAML, with nothing around it and without the password."""
    done = run("check", "--astguiclient", astguiclient(tmp_path), "--print")
    assert done.returncode == 0
    shown = yaml.safe_load(done.stdout)
    assert shown["listen"] == ["*:4577"]
    assert shown["routes"][0]["options"]["server_ip"] == "192.0.2.15"
    assert "not-for-the-screen" not in done.stdout


def test_routes_of_astguiclient(tmp_path: Path) -> None:
    """The options of a group hold for its commands too: every call is VICIdial's."""
    done = run("routes", "--astguiclient", astguiclient(tmp_path), "explain", "call_log")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].split()[:2] == ["->", "default"]


@pytest.mark.parametrize("command", ["check", "routes", "run", "record"])
def test_bad_astguiclient(command: str, tmp_path: Path) -> None:
    """A file that is missing or cannot be meant is exit code 2 and one line, without the password."""
    for path in (tmp_path / "none", astguiclient(tmp_path, VARDB_port="mysql")):
        done = run(command, "--astguiclient", path)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{path}: " in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "not-for-the-screen" not in done.stderr


@pytest.mark.parametrize("other", [("-c", "pool.yaml"), ("--demo",)])
def test_astguiclient_and_another(other: tuple[str, ...], tmp_path: Path) -> None:
    """Two configurations at once are refused: nobody could tell which one was meant."""
    done = run("check", "--astguiclient", astguiclient(tmp_path), *other)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--astguiclient is a configuration of its own: give it or " in done.stderr


def test_astguiclient_is_read_anew(tmp_path: Path) -> None:
    """What was changed in the file counts from the next reload on, which loads from the same source."""
    source = Source(str(astguiclient(tmp_path)), SourceKind.ASTGUICLIENT)
    first = source.load().config
    astguiclient(tmp_path, VARserver_ip="192.0.2.16", VARfastagi_log_min_servers="4")
    second = source.load().config
    assert [first.routes[0].options["server_ip"], first.workers] == ["192.0.2.15", 3]
    assert [second.routes[0].options["server_ip"], second.workers] == ["192.0.2.16", 4]


# --- routes


def test_routes(config: Path) -> None:
    """The routes are listed in the order in which they are tried, with their conditions."""
    done = run("routes", "-c", config)
    assert done.returncode == 0
    head, *rows = (line.split() for line in done.stdout.splitlines())
    assert head[0] == "route"
    assert [row[0] for row in rows] == ["hello", "sales", "echo/*"]
    assert "lang" in " ".join(rows[2])


@pytest.mark.parametrize(
    ("arguments", "winner"),
    [
        (("agi://localhost/hello",), "hello"),
        (("hello",), "hello"),
        (("agi://localhost/echo/1?lang=en",), "echo/*"),
        (("pin", "--context", "sales"), "sales"),
    ],
)
def test_routes_explain(arguments: tuple[str, ...], winner: str, config: Path) -> None:
    """The route that serves a call is marked, and the others say why they do not."""
    done = run("routes", "-c", config, "explain", *arguments)
    assert done.returncode == 0
    (marked,) = [words for line in done.stdout.splitlines() if (words := line.split())[0] == "->"]
    assert marked[1] == winner
    assert len(done.stdout.splitlines()) == 4


@pytest.mark.parametrize("url", ["agi://localhost/unknown", "agi://localhost/echo/1?lang=de", "pin"])
def test_routes_explain_none(url: str, config: Path) -> None:
    """A call that no route takes is exit code 1 and says what the dialplan would see."""
    done = run("routes", "-c", config, "explain", url)
    assert done.returncode == 1
    assert "->" not in done.stdout
    assert done.stderr == "No route takes this call: the dialplan would see AGISTATUS=FAILURE.\n"


# --- call


def test_call_that_succeeds(pool: PoolService) -> None:
    """A call prints its dialogue and what the dialplan would see; exit code 0."""
    done = run("call", pool.url("hello"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "<- VERBOSE hello 1\n-> 200 result=1\n-> HANGUP\n   AGISTATUS=SUCCESS\n"


def test_call_by_the_script_alone(pool: PoolService) -> None:
    """The script alone is enough where --server says where."""
    done = run("call", "--server", pool.address, "echo/1?lang=en", "first", "second")
    assert done.returncode == 0
    assert "first" in done.stdout


def test_call_with_variables(pool: PoolService) -> None:
    """Channel variables can be given, and those at the end are shown."""
    done = run("call", "--context", "sales", "--set", "A=b=c", pool.url("pin"))
    assert done.returncode == 0
    assert "   A=b=c\n   PIN_OK=0\n   AGISTATUS=SUCCESS\n" in done.stdout


def test_call_that_fails(pool: PoolService) -> None:
    """A call that the server fails is exit code 1."""
    done = run("call", pool.url("unknown"))
    assert done.returncode == 1
    assert done.stdout.endswith("AGISTATUS=FAILURE (the server said so)\n")


def test_call_without_a_server() -> None:
    """Where nobody listens the exit code is 3."""
    done = run("call", "agi://127.0.0.1:9/hello")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("agi://127.0.0.1:9/hello: no connection: ")
    assert done.stderr.endswith("Is the server running?\n")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/hello", "agi:///hello", "agi://127.0.0.1:port/x", "agi://127.0.0.1:99999/x"]
)
def test_call_to_a_bad_url(url: str) -> None:
    """What is no AGI URL is exit code 2, with an example of one."""
    done = run("call", url)
    assert done.returncode == 2
    assert f"{url!r} is not a URL like agi://127.0.0.1:4577/script" in done.stderr


@pytest.mark.parametrize("setting", ["NAME", "=value", ""])
def test_call_with_a_bad_variable(setting: str) -> None:
    """A channel variable without a name or a value is exit code 2."""
    done = run("call", "--set", setting, "agi://127.0.0.1:9/hello")
    assert done.returncode == 2
    assert f"--set wants NAME=VALUE, not {setting!r}" in done.stderr


def test_call_with_a_caller_who_dials(pool: PoolService) -> None:
    """What --press gives is dialled at one prompt after the other."""
    done = run("call", "--context", "sales", "--press", "0000", "--press", "1234", pool.url("pin"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "-> 200 result=0000\n" in done.stdout
    assert "-> 200 result=1234\n" in done.stdout
    assert "   PIN_OK=1\n   AGISTATUS=SUCCESS\n" in done.stdout


def test_call_with_a_caller_who_hangs_up(pool: PoolService) -> None:
    """A caller who hangs up at a prompt is exit code 1: the dialplan does not see a success."""
    done = run("call", "--context", "sales", "--press", "", "--press", "hangup", pool.url("pin"))
    assert done.returncode == 1
    assert done.stdout.count("<- GET DATA") == 2
    assert done.stdout.endswith("   AGISTATUS=HANGUP\n")


def scenario(folder: Path, text: str) -> Path:
    """Write a file of calls."""
    path = folder / "calls.yaml"
    path.write_text(text)
    return path


def test_scenario_that_goes_well(pool: PoolService, tmp_path: Path) -> None:
    """If every call goes as expected the exit code is 0, and each call is shown under its title."""
    path = scenario(
        tmp_path,
        "calls:\n"
        "  - {url: hello, expect: {commands: [VERBOSE hello 1]}}\n"
        "  - {name: a seller, url: pin, caller: {context: sales}, presses: [1234], "
        "expect: {variables: {PIN_OK: 1}}}\n"
        "  - {url: unknown, expect: {status: FAILURE}}\n",
    )
    done = run("call", "--server", pool.address, "--scenario", path)
    assert (done.returncode, done.stderr) == (0, "")
    titles = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    assert titles == ["== hello", "== a seller", "== unknown"]
    assert done.stdout.endswith("3 of 3 calls went as expected\n")


def test_scenario_with_a_difference(pool: PoolService, tmp_path: Path) -> None:
    """What is not as expected is named; the other calls are placed all the same; exit code 1."""
    path = scenario(
        tmp_path,
        "calls:\n"
        "  - {url: pin, caller: {context: sales}, expect: {variables: {PIN_OK: 1}}}\n"
        "  - {url: hello}\n",
    )
    done = run("call", "--server", pool.address, "--scenario", path)
    assert (done.returncode, done.stderr) == (1, "!! PIN_OK is '0', not '1'\n")
    assert done.stdout.endswith("1 of 2 calls went as expected\n")


def test_scenario_without_a_server(tmp_path: Path) -> None:
    """Where nobody listens a scenario is exit code 3, as a call is."""
    done = run("call", "--server", "127.0.0.1:9", "--scenario", scenario(tmp_path, "calls: [{url: x}]"))
    assert done.returncode == 3
    assert done.stderr.endswith("Is the server running?\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("calls: [{urll: x}]", "calls.yaml:1: calls[0].urll: is not a known key (did you mean 'url'?)\n"),
        ("calls: [{url: 'http://x/y'}]", "'http://x/y' is not a URL like agi://127.0.0.1:4577/script\n"),
    ],
)
def test_bad_scenario(text: str, problem: str, tmp_path: Path) -> None:
    """A scenario that cannot be played is exit code 2, with the place."""
    done = run("call", "--scenario", scenario(tmp_path, text))
    assert done.returncode == 2
    assert done.stderr.endswith(problem)


def test_missing_scenario(tmp_path: Path) -> None:
    """A file that is not there is exit code 2, with its name."""
    done = run("call", "--scenario", tmp_path / "none.yaml")
    assert (done.returncode, done.stderr) == (2, f"{tmp_path}/none.yaml: does not exist\n")


# --- record


def test_record_where_nothing_runs(config: Path) -> None:
    """Where no pool runs there is nothing to record: exit code 3, and no file is made."""
    output = config.parent / "calls.jsonl"
    done = run("record", "-c", config, "-o", output)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"not running: no scoreboard of a living pool in {config.parent}/run\n"
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--for", "soon"), "--for must be a duration such as "),
        (("--for", "-1s"), "--for must not be negative"),
        (("--one-in", "0"), "'--one-in'"),
        (("--calls", "0"), "'--calls'"),
    ],
)
def test_record_with_bad_options(options: tuple[str, str], why: str, config: Path) -> None:
    """An option that cannot be is exit code 2, whether a pool runs or not."""
    done = run("record", "-c", config, *options)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert why in done.stderr


def test_record_into_a_file_that_cannot_be(pool: PoolService, tmp_path: Path) -> None:
    """A file that cannot be written is exit code 2 in one line, before anything is ordered."""
    output = tmp_path / "none" / "calls.jsonl"
    done = run("record", "-c", pool.config_path, "-o", output)
    assert done.returncode == 2
    assert done.stderr.startswith("cannot record: ")
    assert str(output) in done.stderr
    assert not list(pool.folder.glob("run/recordings/*"))


def test_record_ends_in_time(pool: PoolService) -> None:
    """After --for the command ends, though nobody called, and leaves nothing behind."""
    done = run("record", "-c", pool.config_path, "--for", "10ms")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "0 calls recorded\n")
    assert not list(pool.folder.glob("run/recordings/*"))


# --- replay


def recorded(folder: Path, *commands: str, outcome: str = "ok") -> Path:
    """Write the recording of two calls to the route ``hello``, of which the second said these commands."""
    values = dict(line.split(": ", 1) for line in environment("agi://localhost/hello").splitlines() if line)
    path = folder / "calls.jsonl"
    lines = []
    for ref, said in (("ref-1", ("VERBOSE hello 1",)), ("ref-2", commands)):
        turns = [
            Turn(0.1, who, line) for command in said for who, line in (("S", command), ("A", "200 result=1"))
        ]
        lines.append(Transcript(ref, "hello", "now", values, tuple(turns), outcome).to_json() + "\n")
    path.write_text("".join(lines))
    return path


def test_replay_without_a_difference(config: Path) -> None:
    """If every call goes as recorded the exit code is 0."""
    done = run("replay", "-c", config, recorded(config.parent, "VERBOSE hello 1"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "ok call=ref-1 route=hello\nok call=ref-2 route=hello\n2 of 2 calls went as recorded\n"
    )


def test_replay_with_differences(config: Path) -> None:
    """A call that goes otherwise is shown with its difference; exit code 1."""
    done = run("replay", "-c", config, recorded(config.parent, "VERBOSE bye 1", outcome="error"))
    assert (done.returncode, done.stderr) == (1, "")
    first, rest = done.stdout.split("!! call=ref-2 route=hello\n")
    assert first == "!! call=ref-1 route=hello\n   outcome: error when recorded, ok now\n"
    assert "   -VERBOSE bye 1\n   +VERBOSE hello 1\n" in rest
    assert rest.endswith("0 of 2 calls went as recorded\n")


def test_replay_of_one_call(config: Path) -> None:
    """With --call the others are passed over."""
    done = run("replay", "-c", config, "--call", "ref-1", recorded(config.parent, "VERBOSE bye 1"))
    assert (done.returncode, done.stdout) == (
        0,
        "ok call=ref-1 route=hello\n1 of 1 calls went as recorded\n",
    )


def test_replay_of_a_call_that_is_not_there(config: Path) -> None:
    """A reference that is not in the file is exit code 2: nothing was compared."""
    done = run("replay", "-c", config, "--call", "ref-9", recorded(config.parent))
    assert done.returncode == 2
    assert "there is no call 'ref-9'" in done.stderr


def test_replay_of_a_bad_file(config: Path) -> None:
    """A line that is no recorded call is exit code 2, with its number."""
    path = recorded(config.parent, "VERBOSE hello 1")
    path.write_text(path.read_text() + "nonsense\n")
    done = run("replay", "-c", config, path)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert f"{path}: line 3: not a recorded call: " in done.stderr


def test_replay_of_a_missing_file(config: Path) -> None:
    """A file that is not there is exit code 2, with its name."""
    done = run("replay", "-c", config, config.parent / "none.jsonl")
    assert done.returncode == 2
    assert "none.jsonl" in done.stderr


def test_replay_without_the_database(tmp_path: Path) -> None:
    """A database that is away is one line, not a traceback."""
    away = {"url": "mysql+pymysql://user@127.0.0.1:9/calls"}
    path = write(tmp_path, databases={"calls": away})
    done = run("replay", "-c", path, recorded(tmp_path, "VERBOSE hello 1"))
    assert done.returncode == 2
    assert done.stderr.startswith("database 'calls' is not available: ")
    assert len(done.stderr.splitlines()) == 1


# --- dialplan


def test_dialplan(tmp_path: Path) -> None:
    """The patch comes on standard output, what was left alone on standard error; the file is not touched."""
    file = tmp_path / "extensions.conf"
    text = b"[a]\nsame => n,AGI(x.agi,\xe9)\r\nsame => n,EAGI(y)\n"
    file.write_bytes(text)
    command = (*COMMAND, "dialplan", str(file), "--server", "pbx:1")
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert b"+same => n,AGI(agi://pbx:1/x.agi,\xe9)\r\n" in done.stdout
    assert b":3: left alone: EAGI(y): impossible" in done.stderr
    assert done.stderr.endswith(b"these scripts need a route:\n  x.agi\n")
    assert file.read_bytes() == text


@pytest.mark.parametrize(
    "arguments",
    [
        ("/nowhere",),
        ("/",),
        ("extensions.ael",),
        ("/dev/null", "--server", "a,b"),
        ("/dev/null", "--agi-dir", "x"),
    ],
    ids=" ".join,
)
def test_dialplan_that_cannot_be_read(arguments: tuple[str, ...]) -> None:
    """Files and options that cannot be used are told in words, with exit code 2."""
    done = run("dialplan", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


def test_dialplan_in_which_nothing_changes() -> None:
    """No change is no patch, and is said."""
    done = run("dialplan", "/dev/null")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "/dev/null: nothing changes\n")
