"""Privileges: a pool that was started as root serves as somebody else, for good.

No user is made: ``nobody`` is on every machine.
"""

from __future__ import annotations

import grp
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, Final

import pytest
from service import PoolService

from fastagi_pool.pool import ExitCode
from fastagi_pool.testing import AgiStatus

from .conftest import Pools, route
from .opencall import OpenCall

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

_USER: Final = pwd.getpwnam("nobody")
_ROUTES: Final = [
    route("hello", "pool_handlers:hello"),
    route("writing", "pool_handlers:writing"),
    route("trying", "trying:trying"),
]
#: A handler that tries to become root again, and tells what it is.
_TRYING: Final = """
import os

def trying(call, context):
    for way in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgroups([0])):
        try:
            way()
        except PermissionError:
            continue
        call.set_variable("BACK", "open")
        return
    call.set_variable("BACK", "closed")
"""
#: A script that tells as whom it runs.
_SCRIPT: Final = """#!/bin/sh
while read -r line && [ -n "$line" ]; do :; done
echo "SET VARIABLE SCRIPT $(id -u):$(id -g):$(umask)"
read -r reply
"""
#: Two programs are started and loaded.
_CHANGE_S: Final = 60.0
#: Takes the system's Python in the place of the one that is named.
_OTHER_PYTHON: Final = ("sh", "-c", 'shift; exec "$0" "$@"')
_AS_NOBODY: Final = ("setpriv", "--reuid=nobody", f"--regid={_USER.pw_gid}", "--clear-groups")


@pytest.fixture(scope="module")
def python() -> tuple[str, ...]:
    """Give what to put before the command, so that its Python is one that nobody can read."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for path in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        # By a shell: setpriv itself still has the powers of root when it executes a program.
        command = (*_AS_NOBODY, "sh", "-c", '"$0" -c "import pprint"', path)
        tried = subprocess.run(command, capture_output=True, check=False)
        if not tried.returncode:
            return () if path == sys.executable else (*_OTHER_PYTHON, path)
    pytest.skip("this Python's library can be read by root only")


def make(pools: Pools, **settings: Any) -> PoolService:
    """Write a pool that shall run as nobody, in folders that everybody can enter."""
    pools.folder.chmod(0o755)
    pool = pools.make({"user": "nobody", **settings}, routes=_ROUTES, code={"trying.py": _TRYING})
    pool.log_path = pool.folder / "logs" / "pool.log"
    pool.access_path = pool.folder / "logs" / "access.log"
    pool.configure(log={"file": str(pool.log_path), "access": str(pool.access_path)})
    return pool


def launch(pool: PoolService, python: tuple[str, ...], *wrapper: str) -> None:
    """Start with a Python that nobody can read, and return at once."""
    pool.launch(*wrapper, *python, PYTHONPATH=sysconfig.get_path("purelib"))


def start(pool: PoolService, python: tuple[str, ...], *wrapper: str) -> None:
    """Start with a Python that nobody can read, and return when all workers serve."""
    pool.start(*wrapper, *python, PYTHONPATH=sysconfig.get_path("purelib"))


def identity(pid: int) -> dict[str, list[str]]:
    """Return the users, the groups and the capabilities of a process. Source: proc(5)."""
    rows = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    names = ("Uid:", "Gid:", "Groups:", "CapPrm:", "CapEff:", "Umask:")
    return {row[0]: row[1:] for row in rows if row and row[0] in names}


def powers_left(pool: PoolService) -> list[str]:
    """Return the processes of the pool that are more than nobody is."""
    groups = [str(each) for each in sorted(os.getgrouplist("nobody", _USER.pw_gid))]
    wrong = []
    for process in pool.processes():
        try:
            found = identity(process.pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has just ended, as those of the generation before do.
        plain = found["Uid:"] == [str(_USER.pw_uid)] * 4 and found["Gid:"] == [str(_USER.pw_gid)] * 4
        powers = {*found["CapPrm:"], *found["CapEff:"]} - {"0" * 16}
        if not plain or powers or sorted(found["Groups:"]) != groups:
            wrong.append(f"{process.title}: {found}")
    return wrong


def titles(pool: PoolService) -> list[str]:
    """Return what the processes of the pool are, each once."""
    return sorted({each.title.removeprefix("fastagi-pool: ").partition(" ")[0] for each in pool.processes()})


def test_everybody_is_that_user(pools: Pools, python: tuple[str, ...]) -> None:
    """Master, loader, workers, observer, launcher and scripts are the user, with his groups and no powers."""
    pool = make(pools, umask="027", chdir="/")
    script = pool.folder / "script.sh"
    script.write_text(_SCRIPT)
    script.chmod(0o755)
    pool.configure(routes=[*_ROUTES, {"script": "script", "command": str(script)}])
    start(pool, python)
    wanted = ["launcher", "loader", "master", "observer", "witness", "worker"]
    pool.await_that(lambda: titles(pool) == wanted, f"has {wanted}, and not {titles(pool)}")
    assert powers_left(pool) == []
    assert pool.call("trying").variables == {"BACK": "closed"}
    assert pool.call("script").variables == {"SCRIPT": f"{_USER.pw_uid}:{_USER.pw_gid}:0027"}
    for process in pool.processes():
        assert identity(process.pid)["Umask:"] == ["0027"], process
        assert Path(f"/proc/{process.pid}/cwd").readlink() == Path("/"), process


def test_group_can_be_named(pools: Pools, python: tuple[str, ...]) -> None:
    """A group that is configured takes the place of the user's own."""
    pool = make(pools, group="daemon", workers=1)
    start(pool, python)
    gid = str(grp.getgrnam("daemon").gr_gid)
    assert {tuple(identity(each.pid)["Gid:"]) for each in pool.processes()} == {(gid,) * 4}


def test_files_are_the_users(pools: Pools, python: tuple[str, ...]) -> None:
    """All that lies in the runtime folder and the new folder of the logs is the user's, and his to change."""
    pool = make(pools, workers=1, slow={"file": str(pools.folder / "logs" / "slow.log")})
    start(pool, python)
    pool.call("writing")
    pool.await_access(1)
    # It makes its socket under another name, which must not go away between our two looks.
    pool.await_observer()
    for folder in (pool.folder / "run", pool.log_path.parent, pools.folder / "logs"):
        found = {folder, *folder.rglob("*")}
        strangers = [path for path in found if path.lstat().st_uid != _USER.pw_uid]
        assert len(found) > 1
        assert strangers == []
    assert pool.stop() == 0
    assert not (pool.folder / "run" / "master.pid").exists()


def test_user_starts_after_root_was_killed(pools: Pools, python: tuple[str, ...]) -> None:
    """What a pool that root had started leaves behind does not hinder the user himself."""
    pool = make(pools, workers=1)
    start(pool, python)
    pool.kill()
    pool.await_that_all_ended()
    assert (pool.folder / "run" / "master.pid").exists()
    pool.output_path.touch()
    start(pool, python, *_AS_NOBODY)
    assert pool.call("hello").status is AgiStatus.SUCCESS
    assert pool.stop() == 0


def test_port_of_root(pools: Pools, python: tuple[str, ...]) -> None:
    """A port below 1024 is bound before root is given up, and stays bound over reload and upgrade."""
    pool = make(pools, workers=1, listen=[f"127.0.0.1:{free_low_port()}"])
    start(pool, python)
    assert pool.call("hello").status is AgiStatus.SUCCESS
    pool.reload()
    pool.await_log("gen=2 is loaded")
    pool.await_that(lambda: [each.generation for each in pool.serving()] == [2], "was reloaded", _CHANGE_S)
    assert pool.call("hello").status is AgiStatus.SUCCESS
    pool.signal(signal.SIGUSR2)
    pool.await_that(lambda: [each.generation for each in pool.serving()] == [3], "was upgraded", _CHANGE_S)
    assert pool.call("hello").status is AgiStatus.SUCCESS
    assert powers_left(pool) == []


def free_low_port() -> int:
    """Find a port that only root may have and nobody uses."""
    for port in range(700, 1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise LookupError("all low ports are taken")


def test_configuration_that_only_root_can_read(pools: Pools, python: tuple[str, ...]) -> None:
    """A configuration that no reload could read is refused at the start, and why; nothing serves."""
    pool = make(pools)
    pool.config_path.chmod(0o600)
    launch(pool, python)
    assert pool.wait() == ExitCode.BOOT, pool.logged()
    said = pool.output_path.read_text()
    assert "user 'nobody' cannot read the configuration" in said
    assert str(pool.config_path) in said
    assert "Traceback" not in said


def test_user_that_is_none(pools: Pools, python: tuple[str, ...]) -> None:
    """A user that the machine does not have is an error of the configuration, with its line."""
    pool = make(pools, user="nobody-of-this-name")
    launch(pool, python)
    assert pool.wait() == ExitCode.CONFIG
    said = pool.output_path.read_text()
    assert said.startswith(f"{pool.config_path}:")
    assert "user: must be a user of this machine; 'nobody-of-this-name' is none" in said


def test_only_root_can_become_somebody(pools: Pools, python: tuple[str, ...]) -> None:
    """Started as a third user the pool refuses rather than serve as the wrong one."""
    pool = make(pools)
    launch(pool, python, "setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups")
    assert pool.wait() == ExitCode.BOOT
    assert "only root can become 'nobody'" in pool.output_path.read_text()


def test_folder_of_the_system_is_not_handed_over(pools: Pools, python: tuple[str, ...]) -> None:
    """A runtime folder that belongs to the system as a whole stays root's, and the start is refused."""
    pool = make(pools, runtime_dir="/run")
    before = Path("/run").stat()
    launch(pool, python)
    assert pool.wait() == ExitCode.BOOT
    assert "/run belongs to the system and stays as it is" in pool.output_path.read_text()
    assert Path("/run").stat().st_uid == before.st_uid


def test_unix_socket_is_the_users(pools: Pools, python: tuple[str, ...]) -> None:
    """The file of a Unix socket belongs to the user, as if he had opened it, and goes at the end."""
    pool = make(pools, workers=1)
    path = pool.folder / "run" / "agi.sock"
    pool.configure(listen=[f"unix:{path}"])
    (pool.folder / "run").mkdir()
    os.chown(pool.folder / "run", _USER.pw_uid, _USER.pw_gid)
    start(pool, python)
    facts = path.stat()
    assert (facts.st_uid, facts.st_gid) == (_USER.pw_uid, _USER.pw_gid)
    assert stat.S_IMODE(facts.st_mode) == 0o660
    with OpenCall(f"unix:{path}", "hello") as call:
        assert call.end() is AgiStatus.SUCCESS
    assert pool.stop() == 0
    assert not path.exists()


def test_rotated_logs_are_the_users(pools: Pools, python: tuple[str, ...]) -> None:
    """After a rotation the user makes the new files himself: in a folder that is his."""
    pool = make(pools, workers=1)
    start(pool, python)
    old = pool.log_path.with_name("old.log")
    pool.log_path.rename(old)
    pool.signal(signal.SIGUSR1)
    wrote = "written by"
    pool.await_that(pool.log_path.exists, "has made a new log")
    pool.await_that(lambda: pool.call("writing") and wrote in pool.logged(), "writes into the new log")
    assert pool.log_path.stat().st_uid == _USER.pw_uid
