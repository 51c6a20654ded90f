"""The command line, as its users type it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from service import COMMAND, PoolService

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


@pytest.mark.parametrize("command", [(), ("run",), ("check",), ("routes",), ("call",), ("status",)])
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


# --- status


def test_status_of_a_running_pool(pool: PoolService) -> None:
    """A running pool is exit code 0, and a row for each worker."""
    done = run("status", "-c", pool.config_path)
    assert (done.returncode, done.stderr) == (0, "")
    first, _, *rows = done.stdout.splitlines()
    assert first.startswith(f"master {pool.pid}: running, generation 1, up ")
    assert {int(row.split()[2]) for row in rows} == {worker.pid for worker in pool.serving()}


def test_status_as_json(pool: PoolService) -> None:
    """The same for programs."""
    done = run("status", "-c", pool.config_path, "--json")
    assert done.returncode == 0
    shown = json.loads(done.stdout)
    assert (shown["master_pid"], shown["running"], shown["generation"]) == (pool.pid, True, 1)
    assert [worker["state"] for worker in shown["workers"]] == ["ready", "ready"]


def test_status_where_nothing_ran(config: Path) -> None:
    """Where no pool has ever run the exit code is 3."""
    done = run("status", "-c", config)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"not running: no scoreboard in {config.parent}/run ")


def test_status_of_a_pool_that_died(tmp_path: Path) -> None:
    """Of a pool that was killed the last figures are shown, but the exit code is 3."""
    pool = PoolService(tmp_path, tmp_path, _ROUTES)
    pool.start()
    pool.kill()
    done = run("status", "-c", pool.config_path)
    assert done.returncode == 3
    assert "NOT RUNNING" in done.stdout
