"""Loader: what it claims of the machine, and what it tells the master."""

from __future__ import annotations

import json
import os
import pwd
import resource
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
from children import in_child
from disks import small_disk

from fastagi_pool.aftermath import Aftermath
from fastagi_pool.application import assemble
from fastagi_pool.call import Call
from fastagi_pool.config import load_text
from fastagi_pool.context import Context
from fastagi_pool.deferring import deferrable
from fastagi_pool.errors import BootError
from fastagi_pool.listeners import Address
from fastagi_pool.loader import LauncherKeeper, _replay_keeper, _try_journal, claim_descriptors, describe
from fastagi_pool.messages import Inheritance, Loaded
from fastagi_pool.pool import PoolLimits
from fastagi_pool.privileges import Identity
from fastagi_pool.rotation import RotationSettings

_YAML = """
listen: ["127.0.0.1:0", "[::1]:4599", "unix:/tmp/x.sock", systemd]
backlog: 99
workers: 3
graceful_timeout: 7s
drain_timeout: 1h
max_memory: 64MB
watchdog: 0
runtime_dir: /tmp/nowhere
log: {file: /tmp/nowhere.log, level: debug}
routes:
  - {script: hello, handler: "fastagi_pool.handlers.demo:hello"}
"""


def claimed(soft: int, hard: int, needed: int, useful: int = 0, user: int = 0) -> object:
    """Claim descriptors in a child that begins with these limits; return its limits or the error.

    Args:
        soft: What it may have.
        hard: How much it may raise that.
        needed: What it needs.
        useful: What would be of use besides.
        user: Who it is; 0 to stay who we are.
    """

    def claim() -> object:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if user:
            os.setuid(user)
        try:
            claim_descriptors(needed, useful)
        except BootError as error:
            return str(error)
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    return in_child(claim)


def test_limit_of_descriptors_is_raised() -> None:
    """A soft limit that is too low is raised to what is needed, and the hard one is left alone."""
    assert claimed(100, 4000, 1000) == [1000, 4000]


def test_limit_of_descriptors_is_never_lowered() -> None:
    """A limit that is enough stays as the operator set it."""
    assert claimed(2000, 4000, 1000) == [2000, 4000]


def test_descriptors_that_are_of_use() -> None:
    """The limit is raised to what is of use too, so that silent connections have room."""
    assert claimed(100, 4000, 1000, useful=500) == [1500, 4000]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(("needed", "hard"), [(1000, 1200), (1000, 1000)])
def test_as_many_descriptors_as_there_are(needed: int, hard: int) -> None:
    """Where the machine allows what is needed and not all that is of use, all that it allows is taken."""
    nobody = pwd.getpwnam("nobody").pw_uid
    assert claimed(100, hard, needed, useful=500, user=nobody) == [hard, hard]


def test_too_few_descriptors() -> None:
    """More descriptors than the kernel grants anybody is an error that says what to change."""
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    told = claimed(100, 4000, most + 1)
    assert isinstance(told, str)
    assert told.startswith(f"a worker may need {most + 1} file descriptors, but only 4000 are allowed: ")
    assert "calls_per_worker" in told


def test_description_for_the_master(tmp_path: Path) -> None:
    """What the master is told fits the arguments of what it makes of it, with the configured values."""
    loaded = describe(assemble(load_text(_YAML, "pool.yaml", tmp_path, {})))
    limits = PoolLimits(**loaded.limits)
    assert (limits.workers, limits.graceful_timeout_s, limits.drain_timeout_s) == (3, 7.0, 3600.0)
    assert (limits.max_memory_bytes, limits.watchdog_s) == (64 << 20, 0.0)
    addresses = [Address(**content) for content in loaded.listen]
    assert [(each.kind, each.host, each.port, each.path) for each in addresses] == [
        ("tcp", "127.0.0.1", 0, ""),
        ("tcp", "::1", 4599, ""),
        ("unix", "", 0, "/tmp/x.sock"),
        ("systemd", "", 0, ""),
    ]
    assert (loaded.backlog, loaded.runtime_dir) == (99, "/tmp/nowhere")
    assert (loaded.log["file"], loaded.log["level"], loaded.pid_file) == ("/tmp/nowhere.log", "debug", "")


def test_description_is_plain(tmp_path: Path) -> None:
    """The description goes through JSON and comes back the same: the master decodes no objects."""
    loaded = describe(assemble(load_text(_YAML, "pool.yaml", tmp_path, {})))
    assert Loaded(**json.loads(json.dumps(asdict(loaded)))) == loaded


def test_description_of_what_surrounds_the_calls(tmp_path: Path) -> None:
    """The master is told of the logs and their rotation, the observer, the user, and where to work."""
    yaml = _YAML.replace("level: debug", "level: debug, access: /tmp/a.log, rotate: {every: day, keep: 5}")
    user = pwd.getpwuid(os.getuid()).pw_name
    yaml += (
        f"http: {{listen: '127.0.0.1:99', allow: [10.0.0.0/8]}}\nslow: {{file: /tmp/a.log}}\nuser: {user}\n"
    )
    yaml += "umask: '027'\nchdir: /tmp\n"
    loaded = describe(assemble(load_text(yaml, "pool.yaml", tmp_path, {})))
    assert loaded.rotated == ["/tmp/nowhere.log", "/tmp/a.log"]
    assert RotationSettings(**loaded.rotation) == RotationSettings(daily=True, size_bytes=0, keep=5)
    assert loaded.observer == {"host": "127.0.0.1", "port": 99, "allow": ["10.0.0.0/8"]}
    assert Identity(**loaded.identity).uid == os.getuid()
    assert (loaded.umask, loaded.chdir) == ("027", "/tmp")


def test_description_of_the_quarantine(tmp_path: Path) -> None:
    """The master is told when requests that end workers are refused, in the words of the aftermath."""
    yaml = _YAML + "quarantine: {crashes: 3, for: 2m}\n"
    loaded = describe(assemble(load_text(yaml, "pool.yaml", tmp_path, {})))
    assert loaded.quarantine == {"crashes": 3, "for_s": 120.0}
    Aftermath(tmp_path).use(**loaded.quarantine)


def test_longest_drain_of_all(tmp_path: Path) -> None:
    """The master waits for the route that gets longest; others are ended by the worker itself."""
    yaml = _YAML.replace('hello"}', 'hello", drain_timeout: 2h}')
    loaded = describe(assemble(load_text(yaml, "pool.yaml", tmp_path, {})))
    assert loaded.limits["drain_timeout_s"] == 7200.0
    yaml = _YAML.replace('hello"}', 'hello", drain_timeout: 1s}')
    loaded = describe(assemble(load_text(yaml, "pool.yaml", tmp_path, {})))
    assert loaded.limits["drain_timeout_s"] == 3600.0


def test_nothing_is_shown_if_that_is_off(tmp_path: Path) -> None:
    """Without an address the observer is told to show nothing, and without a user nobody changes."""
    loaded = describe(assemble(load_text(_YAML + "http: {listen: 'off'}\n", "pool.yaml", tmp_path, {})))
    assert (loaded.observer["host"], loaded.observer["port"]) == ("", 0)
    assert loaded.identity == {}


@pytest.mark.parametrize("needed", [0, 1])
def test_few_descriptors_are_always_there(needed: int) -> None:
    """A need that every process meets changes nothing."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    claim_descriptors(needed)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_the_launcher_is_replaced_but_not_in_a_hurry(tmp_path: Path) -> None:
    """A launcher that died is started again, but not at once; no stranger's end is taken for its own."""
    (tmp_path / "a.agi").touch()
    yaml = f"runtime_dir: /tmp\nroutes: [{{default: true, command: {tmp_path}/a.agi}}]"
    application = assemble(load_text(yaml, "pool.yaml", tmp_path, {}))
    assert application.door is not None
    keeper = LauncherKeeper(application, str(tmp_path / "log"))
    others = _children()
    keeper.look_after()
    assert _children() == others
    keeper.begin(1)
    [first] = _children() - others
    assert not keeper.has_ended(first + 1)
    os.kill(first, signal.SIGKILL)
    assert os.waitpid(first, 0)[0] == first
    assert keeper.has_ended(first)
    keeper.look_after()
    assert _children() == others
    while _children() == others:
        keeper.look_after()
    [second] = _children() - others
    assert second != first
    application.door.close()
    assert os.waitpid(second, 0) == (second, 0)


def test_without_scripts_there_is_no_launcher(tmp_path: Path) -> None:
    """A pool without legacy scripts has no process for them."""
    keeper = LauncherKeeper(assemble(load_text(_YAML, "pool.yaml", tmp_path, {})), "-")
    others = _children()
    keeper.begin(1)
    assert _children() == others


def _children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


@deferrable
def _later(_call: Call, _context: Context) -> None:
    """Serve nobody."""


@pytest.mark.parametrize("deferrable_route", ["true", "false"])
def test_who_replays_is_kept_where_calls_are_done_later(tmp_path: Path, deferrable_route: str) -> None:
    """Where no route's calls can be done later, there is no process for them."""
    yaml = f"""
runtime_dir: {tmp_path}
databases: {{main: {{url: "sqlite://"}}}}
routes: [{{default: true, handler: "test_loader:later", deferrable: {deferrable_route}}}]
"""
    application = assemble(load_text(yaml, "test", tmp_path, {}), {"test_loader:later": _later})
    keeper = _replay_keeper(application, Inheritance(-1, -1, (-1, -1)), lambda: None, lambda: None)
    assert (keeper is not None) is (deferrable_route == "true")


def test_a_pool_starts_though_the_disk_of_its_journal_is_full(tmp_path: Path) -> None:
    """A full disk passes: it must not keep a machine that was started again from taking calls."""
    with small_disk(1024) as folder:
        yaml = f"""
runtime_dir: {tmp_path}
journal: {{file: {folder}/journal.db}}
databases: {{main: {{url: "sqlite:///{tmp_path}/main.db"}}}}
routes: [{{default: true, handler: "test_loader:later", databases: [main]}}]
"""
        application = assemble(load_text(yaml, "test", tmp_path, {}), {"test_loader:later": _later})
        (folder / "journal.db").write_text("Dear diary, " * 1000)
        with pytest.raises(BootError, match=r"is none .* say journal\.file: off"):
            _try_journal(application)
        (folder / "journal.db").unlink()
        (folder / "others").write_bytes(bytes(1020 * 1024))
        _try_journal(application)
