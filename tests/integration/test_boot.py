"""Starting: the demonstration, and what an operator reads when it cannot be."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from service import PoolService, pids

from fastagi_pool.pool import ExitCode
from fastagi_pool.testing import AgiStatus, Caller, play_call

from .conftest import Pools, route

_HELLO = [route("hello", "pool_handlers:hello")]
#: Nobody listens on the discard port of this machine.
_DEAD_URL = "mysql+pymysql://user@127.0.0.1:9/calls"
_PASSWORD = "not-for-the-log"


def refusal(pool: PoolService, code: int) -> str:
    """See a pool end with an exit code, without a traceback; return what it told the operator."""
    assert pool.wait() == code, pool.logged()
    text = pool.output_path.read_text()
    assert "Traceback" not in pool.logged()
    return text


def one_line(text: str) -> str:
    """Return a text that must be one line."""
    (line,) = text.splitlines()
    return line


def test_demonstration(pools: Pools) -> None:
    """The demonstration says how to place a call, and that call and its database work."""
    pool = pools.make()
    pool.launch(arguments=["--demo"], DEMO_PORT="0", TMPDIR=str(pool.folder), PYTHONUNBUFFERED="1")
    pool.await_log(r"^fastagi-pool \S+ listens on (\S+); Ctrl-C ends it\.$")
    pool.await_log(r"^Place a call from a second terminal:  fastagi-pool call \S*hello$")
    (found,) = pool.await_log(r"listens on (\S+);")
    assert play_call(f"agi://{found[1]}/hello").commands == ["VERBOSE hello 1"]
    found_name = play_call(f"agi://{found[1]}/lookup", caller=Caller(number="101"))
    assert found_name.variables == {"CALLER_NAME": "Bob the Builder"}
    assert pool.stop() == ExitCode.OK


def test_greeting_names_the_port_that_it_has(pools: Pools) -> None:
    """The call that the demonstration proposes reaches it also on a port that is not the usual one."""
    pool = pools.make()
    pool.launch(arguments=["--demo"], DEMO_PORT="0", TMPDIR=str(pool.folder))
    (found,) = pool.await_log(r"listens on \S+:(\d+);")
    (hint,) = pool.await_log(r"^Place a call.*$")
    assert found[1] in hint[0]


def test_port_in_use(pools: Pools) -> None:
    """A port that another pool has is exit code 4 and one line that names it; the first goes on."""
    first = pools.start()
    second = pools.make({"listen": [first.address]})
    second.launch()
    line = one_line(refusal(second, ExitCode.BOOT))
    assert line == (
        f"cannot listen on {first.address}: the address is in use by another process; "
        "stop that, or change 'listen'"
    )
    assert first.call("hello").status is AgiStatus.SUCCESS


def test_address_of_another_machine(pools: Pools) -> None:
    """An address that the machine does not have is exit code 4 and one line that says so."""
    pool = pools.make({"listen": ["192.0.2.7:4599"], "allow": ["192.0.2.0/24"]})
    pool.launch()
    assert "this machine does not have the address" in one_line(refusal(pool, ExitCode.BOOT))


def test_runtime_folder_in_use(pools: Pools) -> None:
    """Two pools cannot share a runtime folder: the second says who holds it; the first goes on."""
    first = pools.start()
    second = pools.make({"runtime_dir": first.config["runtime_dir"]})
    second.launch()
    line = one_line(refusal(second, ExitCode.BOOT))
    assert f"another fastagi-pool (pid {first.pid}) holds" in line
    assert "give each its own runtime_dir" in line
    assert first.call("hello").status is AgiStatus.SUCCESS


def test_runtime_folder_that_cannot_be_made(pools: Pools) -> None:
    """A runtime folder that cannot be made is exit code 4 and one line that names it."""
    pool = pools.make({"runtime_dir": "/proc/nowhere"})
    pool.launch()
    assert one_line(refusal(pool, ExitCode.BOOT)).startswith("cannot use runtime_dir /proc/nowhere: ")


def test_log_that_cannot_be_written(pools: Pools) -> None:
    """A log that cannot be written is an operator's error, said in one line with the path."""
    pool = pools.make({"log": {"file": "/proc/nowhere/pool.log"}})
    pool.launch()
    line = one_line(refusal(pool, ExitCode.BOOT))
    assert "cannot write" in line
    assert "/proc/nowhere" in line


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("workers: [1\n", ":"),
        ("workers: none\nroutes: []\n", ":1: workers: "),
        ("worker: 2\nroutes:\n- {script: a, handler: pool_handlers:hello}\n", ":1: worker: "),
        ("routes:\n- script: a\n  handler: nowhere:hello\n", ":3: routes[0].handler: "),
        ("", ": "),
    ],
    ids=["not YAML", "wrong value", "unknown key", "no such handler", "empty"],
)
def test_broken_configuration(text: str, where: str, pools: Pools) -> None:
    """A broken configuration is exit code 2, with file, line and key of what is wrong."""
    pool = pools.make()
    pool.config_path.write_text(text)
    pool.launch()
    assert refusal(pool, ExitCode.CONFIG).startswith(f"{pool.config_path}{where}")


def test_configuration_that_is_a_folder(pools: Pools) -> None:
    """A folder in place of the configuration is exit code 2 and one line."""
    pool = pools.make()
    pool.launch(arguments=["-c", str(pool.folder)])
    assert one_line(refusal(pool, ExitCode.CONFIG)).startswith(f"{pool.folder}: ")


def test_missing_configuration(pools: Pools) -> None:
    """A missing configuration is exit code 2 and one line."""
    pool = pools.make()
    pool.launch(arguments=["-c", str(pool.folder / "missing.yaml")])
    assert one_line(refusal(pool, ExitCode.CONFIG)).startswith(f"{pool.folder}/missing.yaml: ")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def hello(call, context):\n    return 1 +\n", "{folder}/code/broken.py:2: invalid syntax"),
        ("import nothing_like_this\n", "No module named 'nothing_like_this'"),
        ("1 / 0\n", "{folder}/code/broken.py:1: ZeroDivisionError"),
        ("import sys\nsys.exit(3)\n", "{folder}/code/broken.py:2: SystemExit: 3"),
        ("hello = 5\n", "broken:hello is not a function"),
        ("def hello(call):\n    pass\n", "broken:hello must take (call, context)"),
        ("", "has no hello"),
    ],
    ids=["syntax", "import", "raises", "exits", "no function", "arguments", "missing"],
)
def test_broken_handler(code: str, said: str, pools: Pools) -> None:
    """Code that cannot be a handler is exit code 2, with the place in the code and in the YAML."""
    pool = pools.make(routes=[route("hello", "broken:hello")], code={"broken.py": code})
    pool.launch()
    line = one_line(refusal(pool, ExitCode.CONFIG))
    assert line.startswith(f"{pool.config_path}:")
    assert " routes[0].handler: " in line
    assert said.format(folder=pool.folder) in line


def test_too_few_file_descriptors(pools: Pools) -> None:
    """More calls than the machine has file descriptors for is refused at the start, with the way out."""
    pool = pools.make({"calls_per_worker": 100_000})
    pool.launch(*_WITHOUT_RESOURCES)
    line = one_line(refusal(pool, ExitCode.BOOT))
    assert "a worker may need 100165 file descriptors, but only 512 are allowed" in line
    assert "lower calls_per_worker" in line


#: Lowers the limit of file descriptors for good: even root needs CAP_SYS_RESOURCE to raise it again.
_WITHOUT_RESOURCES = (
    "setpriv",
    "--bounding-set=-sys_resource",
    "--inh-caps=-sys_resource",
    sys.executable,
    "-c",
    "import os, resource, sys;"
    "resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512));"
    "os.execvp(sys.argv[1], sys.argv[1:])",
)


def dead_database(**settings: Any) -> dict[str, Any]:
    """Configure a database that is not there."""
    return {"calls": {"url": _DEAD_URL, "password": _PASSWORD, "connect_timeout": "1s", **settings}}


def test_required_database_is_away(pools: Pools) -> None:
    """Without a database that it needs the pool gives up with exit code 3, and keeps the password."""
    pool = pools.make({"databases": dead_database(), "boot_retries": 3, "workers": 1}, routes=_HELLO)
    pool.launch()
    assert pool.wait() == ExitCode.WORKERS, pool.logged()
    text = pool.logged()
    assert "cannot start: database 'calls' is not available: " in text
    assert "3 failed starts in a row and no worker serves: giving up" in text
    assert _PASSWORD not in text
    assert "Traceback" not in text


def test_optional_database_is_away(pools: Pools) -> None:
    """Without a database that can be missed only the routes that name it fail."""
    pool = pools.start(
        {"databases": dead_database(required_at_boot=False), "workers": 1},
        routes=[*_HELLO, route("needy", "pool_handlers:hello", databases=["calls"])],
    )
    assert pool.call("needy").status is AgiStatus.FAILURE
    assert pool.call("hello").status is AgiStatus.SUCCESS
    outcomes = {line["script"]: line["outcome"] for line in pool.await_access(2)}
    assert outcomes == {"needy": "dbdown", "hello": "ok"}
    text = pool.logged()
    assert "starting without it: database 'calls' is not available: " in text
    assert _PASSWORD not in text
    assert "Traceback" not in text


def test_pid_file(pools: Pools) -> None:
    """The pid file holds the master's process id, and a second pool that wants it is told who has it."""
    first = pools.make()
    pid_file = first.folder / "pool.pid"
    first.configure(pid_file=str(pid_file))
    first.start()
    assert pid_file.read_text() == f"{first.pid}\n"
    second = pools.make({"pid_file": str(pid_file)})
    second.launch()
    assert f"another fastagi-pool (pid {first.pid}) holds {pid_file}" in one_line(
        refusal(second, ExitCode.BOOT)
    )


def test_restart_after_a_kill(pools: Pools) -> None:
    """What a killed pool left behind, locks and sockets and figures, is no hindrance to the next."""
    pool = pools.make()
    pool.configure(listen=[f"unix:{pool.folder}/agi.sock"], workers=1)
    pool.start()
    for pid in pids(pool.processes()) - {pool.pid}:
        os.kill(pid, signal.SIGSTOP)  # Or they would tidy up when they see that the master is gone.
    pool.kill()
    pool.await_that_all_ended()
    assert Path(pool.folder / "agi.sock").is_socket()
    pool.start()
    assert pool.stop() == ExitCode.OK
    assert not Path(pool.folder / "agi.sock").exists()
