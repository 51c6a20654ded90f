"""Upgrading: the master becomes the newly installed program, and nobody who calls notices.

The program under test is a copy of the package, so that a test can install another one in its place.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from service import PoolService, open_files, pids

import fastagi_pool
from fastagi_pool.testing import AgiStatus
from fastagi_pool.version import VERSION

from .conftest import Pools, route
from .opencall import hold
from .stream import CallStream

_ROUTES: Final = [
    route("versed", "versed:versed"),
    route("held", "pool_handlers:held"),
    route("hello", "pool_handlers:hello"),
]
#: A handler that tells of which program its process is.
_VERSED: Final = """
from fastagi_pool.version import VERSION

def versed(call, context):
    call.set_variable("VERSION", VERSION)
"""
_UPGRADED: Final = rf"INFO master pid=\d+ upgraded: fastagi-pool (\S+) has taken over from {VERSION}$"
_REFUSED: Final = r"ERROR master pid=\d+ upgrade refused, nothing changes: "
#: Two programs are started and loaded.
_UPGRADE_S: Final = 60.0
#: Far more than would hide a descriptor that is lost each time.
_MANY: Final = 20
#: Put before the program: it says that it has come, and waits until the test lets it in.
_GATE: Final = """
import os as _os, pathlib as _pathlib, time as _time
_asked = _os.environ.get("FASTAGI_POOL_TAKEOVER", "")
if _asked and _asked.startswith("try:") == {at_trial}:
    _folder = _pathlib.Path({folder!r})
    (_folder / "arrived").touch()
    while not (_folder / "let-in").exists():
        _time.sleep(0.01)
"""


class InstalledProgram:
    """A copy of the package, which stands for the one that is installed.

    Attributes:
        folder: What contains it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._package = folder / "fastagi_pool"
        # What another test's Python is about to compile has such a name for a moment.
        passing = shutil.ignore_patterns("*.pyc.*")
        shutil.copytree(Path(fastagi_pool.__file__).parent, self._package, ignore=passing)

    def start(self, pool: PoolService) -> None:
        """Start a pool with it, from its folder."""
        pool.start("env", "-C", str(self.folder))

    def change(self, module: str, old: str, new: str) -> None:
        """Change a text of one of its modules."""
        path = self._package / module
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} is not once in {module}"
        path.write_text(text.replace(old, new))

    def install(self, version: str) -> None:
        """Install another version, as a package manager does."""
        (self._package / "version.py").write_text(f'VERSION = "{version}"\n')

    def await_at_gate(self, pool: PoolService, at_trial: bool = False) -> Callable[[], None]:
        """Send USR2, and wait until the new program is where a gate holds it, before its first step.

        Args:
            pool: The one that is upgraded.
            at_trial: Whether to hold it when it is only asked, instead of when it takes over.

        Returns:
            Lets it in.
        """
        gate = _GATE.format(at_trial=at_trial, folder=str(self.folder))
        (self._package / "__init__.py").write_text(gate)
        pool.signal(signal.SIGUSR2)
        pool.await_that((self.folder / "arrived").exists, "has started the new program", _UPGRADE_S)
        return (self.folder / "let-in").touch


def start(pools: Pools, **settings: Any) -> tuple[PoolService, InstalledProgram]:
    """Start a pool of a program that can be changed."""
    pool = pools.make(settings, routes=_ROUTES, code={"versed.py": _VERSED})
    program = InstalledProgram(pool.folder / "program")
    program.start(pool)
    return pool, program


def upgrade(pool: PoolService) -> None:
    """Send USR2; returns at once."""
    pool.signal(signal.SIGUSR2)


def await_upgraded(pool: PoolService, generation: int = 2, workers: int = 2, times: int = 1) -> None:
    """Wait until the new program has taken over and its own workers serve."""
    pool.await_that(lambda: pool.logged().count("upgraded: ") >= times, "was upgraded", _UPGRADE_S)
    await_generation(pool, generation, workers)


def await_generation(pool: PoolService, generation: int, workers: int = 2) -> None:
    """Wait until so many workers serve, all of this generation."""

    def serve() -> bool:
        found = pool.serving()
        return len(found) == workers and {each.generation for each in found} == {generation}

    pool.await_that(serve, f"has {workers} workers of generation {generation}", _UPGRADE_S)


def observer_of(pool: PoolService) -> int:
    """Return the observer's process id; 0 if there is none."""
    found = [each.pid for each in pool.processes() if "observer" in each.title]
    return found[0] if found else 0


def listening_inode(address: str) -> str:
    """Return the kernel's number of the socket that listens on a port of IPv4. Source: proc(5)."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = [row[9] for row in rows if row[1].endswith(port) and row[3] == "0A"]
    return inode


def descriptors(pid: int) -> list[str]:
    """Return what a process has open, without the numbers of pipes and sockets."""
    return sorted(each.partition(":[")[0] for each in open_files(pid))


# --- what goes on


def test_calls_go_on(pools: Pools) -> None:
    """No call is lost to an upgrade: the process, its socket and the calls in progress stay."""
    pool, program = start(pools)
    before, inode = pool.pid, listening_inode(pool.address)
    held, old_worker = hold(pool.address)
    with held:
        with CallStream(pool.url("versed")) as stream:
            stream.await_more(20)
            program.install("9.9")
            upgrade(pool)
            await_upgraded(pool)
            stream.await_more(20)
        assert pool.await_log(_UPGRADED)[0][1] == "9.9"
        assert (pool.pid, pool.runs, listening_inode(pool.address)) == (before, True, inode)
        assert held.release() is AgiStatus.SUCCESS
    pool.await_log(rf"gen=1 pid={old_worker} ended after \d+ calls$")
    assert stream.lost == []
    assert stream.results[0].variables == {"VERSION": VERSION}
    assert stream.results[-1].variables == {"VERSION": "9.9"}
    assert len(pool.await_access(len(stream.results) + 1)) == len(stream.results) + 1
    assert "ERROR" not in pool.logged()
    assert pool.stop() == 0


def test_observer_is_of_the_new_program(pools: Pools) -> None:
    """The status process of the old program is followed by one of the new."""
    pool, program = start(pools)
    pool.await_that(lambda: observer_of(pool), "has an observer")
    before = observer_of(pool)
    program.install("9.9")
    upgrade(pool)
    await_upgraded(pool)
    pool.await_that(lambda: observer_of(pool) not in (0, before), "has a new observer", _UPGRADE_S)
    assert f"the observer has ended (pid {before}): exit code 0" in pool.logged()


def test_figures_go_on(pools: Pools) -> None:
    """The number of workers that was changed by signals, and the figures of the master, are kept."""
    pool, _ = start(pools)
    pool.signal(signal.SIGTTIN)
    await_generation(pool, 1, workers=3)
    upgrade(pool)
    await_upgraded(pool, workers=3)
    assert (pool.folder / "run" / "master.pid").read_text() == f"{pool.pid}\n"


@pytest.mark.slow
def test_upgrades_leave_nothing_behind(pools: Pools) -> None:
    """After many upgrades the master has the same descriptors and the same children as after the first."""
    pool, _ = start(pools, workers=1)
    upgrade(pool)
    await_upgraded(pool, workers=1)
    before = await_rest(pool)
    for number in range(2, _MANY + 1):
        upgrade(pool)
        await_upgraded(pool, generation=number + 1, workers=1, times=number)
    assert await_rest(pool) == before


def await_rest(pool: PoolService) -> list[str]:
    """Wait until only what belongs to a pool with one worker is left; return what its master has open."""
    wanted = ["loader", "master", "observer", "witness", "worker"]

    def at_rest() -> bool:
        words = [each.title.removeprefix("fastagi-pool: ").partition(" ")[0] for each in pool.processes()]
        return sorted(words) == wanted

    pool.await_that(at_rest, f"consists of {wanted}", _UPGRADE_S)
    return descriptors(pool.pid)


# --- what is refused


@pytest.mark.parametrize(
    ("module", "old", "new", "said"),
    [
        ("version.py", "VERSION =", "VERSION = =", "SyntaxError: invalid syntax"),
        ("takeover.py", "_KIND: Final = 1", "_KIND: Final = 2", "the running server is of another kind"),
        ("scoreboard.py", "\n_VERSION: Final = ", "\n_VERSION: Final = 9", "the shared memory is of another"),
        ("pool.py", "    call_limit: int = 0\n", "", "cannot be read"),
        ("messages.py", "    chdir: str\n", "    chdir: str\n    other: str\n", "cannot be read"),
    ],
    ids=["syntax", "kind", "shared memory", "pool", "loaded"],
)
def test_new_program_that_cannot_take_over(module: str, old: str, new: str, said: str, pools: Pools) -> None:
    """A program that does not start, or does not understand the old one, is refused before it is too late."""
    pool, program = start(pools)
    before = pids(pool.serving())
    program.change(module, old, new)
    upgrade(pool)
    pool.await_that(lambda: "upgrade refused" in pool.logged(), "refuses", _UPGRADE_S)
    pool.await_log(_REFUSED + f".*{said}")
    assert pool.call("versed").variables == {"VERSION": VERSION}
    assert pids(pool.serving()) == before
    assert pool.stop() == 0


def test_configuration_that_the_new_program_refuses(pools: Pools) -> None:
    """A configuration that cannot be run refuses the upgrade; once it is mended, the next one works."""
    pool, _ = start(pools)
    good = pool.config_path.read_text()
    pool.config_path.write_text("nonsense: 1\n" + good)
    upgrade(pool)
    pool.await_that(lambda: "upgrade refused" in pool.logged(), "refuses", _UPGRADE_S)
    pool.await_log(_REFUSED + rf"{pool.config_path}:1: nonsense: ")
    assert pool.call("hello").status is AgiStatus.SUCCESS
    pool.config_path.write_text(good)
    upgrade(pool)
    await_upgraded(pool)


def test_program_that_is_gone(pools: Pools) -> None:
    """While a package manager has removed the program, an upgrade is refused; calls go on."""
    pool, program = start(pools)
    shutil.rmtree(program.folder)
    upgrade(pool)
    pool.await_that(lambda: "upgrade refused" in pool.logged(), "refuses", _UPGRADE_S)
    pool.await_log(_REFUSED + r".*No such file or directory")
    assert pool.call("hello").status is AgiStatus.SUCCESS


# --- what happens meanwhile


def test_signals_are_not_lost(pools: Pools) -> None:
    """A reload, a rotation and one more worker asked for while nobody listens come to pass later."""
    pool, program = start(pools)
    let_in = program.await_at_gate(pool)
    pool.log_path.rename(pool.folder / "old.log")
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN):
        pool.signal(number)
    let_in()
    pool.await_log(r"INFO master pid=\d+ reload$")
    pool.await_log("workers=3 wanted")
    pool.await_that(lambda: len(pool.serving()) == 3, "has three workers", _UPGRADE_S)
    assert pool.call("hello").status is AgiStatus.SUCCESS


def test_the_end_is_not_lost(pools: Pools) -> None:
    """A pool that is told to end while nobody listens ends after it, and waits for its calls."""
    pool, program = start(pools)
    held, _ = hold(pool.address)
    with held:
        let_in = program.await_at_gate(pool)
        pool.terminate()
        let_in()
        pool.await_that(lambda: "stopping (graceful)" in pool.logged(), "ends", _UPGRADE_S)
        assert pool.runs
        assert held.release() is AgiStatus.SUCCESS
    assert pool.wait() == 0


def test_signal_just_before_the_change(pools: Pools) -> None:
    """A signal that the old program has heard of, but not yet obeyed, is obeyed before the change."""
    pool = pools.make(routes=_ROUTES, code={"versed.py": _VERSED})
    program = InstalledProgram(pool.folder / "program")
    at_last = "    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITING_SIGNALS)\n"
    program.change("takeover.py", at_last, f"    os.kill(os.getpid(), signal.SIGTERM)\n{at_last}")
    program.start(pool)
    upgrade(pool)
    assert pool.wait() == 0
    assert "stopping (graceful)" in pool.logged()
    assert "upgraded" not in pool.logged()


def test_worker_that_dies_meanwhile(pools: Pools) -> None:
    """A worker that is killed while nobody looks is missed and replaced."""
    pool, program = start(pools)
    dead = min(pids(pool.serving()))
    let_in = program.await_at_gate(pool)
    os.kill(dead, signal.SIGKILL)
    let_in()
    await_upgraded(pool)
    pool.await_log(rf"ERROR master pid=\d+ worker=\d gen=1 pid={dead} died in serving .*killed by SIGKILL")
    assert pool.call("hello").status is AgiStatus.SUCCESS


def test_loader_that_dies_meanwhile(pools: Pools) -> None:
    """The old generation's loader is not needed for the change: its workers serve until the new ones do."""
    pool, program = start(pools)
    # A witness has its title too, until it has one of its own.
    loaders = [each for each in pool.processes() if "loader" in each.title]
    (loader,) = [each.pid for each in loaders if each.parent == pool.pid]
    with CallStream(pool.url("hello")) as stream:
        let_in = program.await_at_gate(pool)
        os.kill(loader, signal.SIGKILL)
        let_in()
        await_upgraded(pool)
    assert stream.lost == []
    pool.await_log("the loader of gen=1 died")
    pool.await_that(lambda: len(pool.processes()) == 7, "has only what belongs to it", _UPGRADE_S)


def test_observer_that_dies_meanwhile(pools: Pools) -> None:
    """An observer that is killed while nobody looks is followed by another."""
    pool, program = start(pools)
    pool.await_that(lambda: observer_of(pool), "has an observer")
    dead = observer_of(pool)
    let_in = program.await_at_gate(pool)
    os.kill(dead, signal.SIGKILL)
    let_in()
    pool.await_log(rf"the observer has ended \(pid {dead}\): killed by SIGKILL")
    pool.await_that(lambda: observer_of(pool) not in (0, dead), "has a new observer", _UPGRADE_S)


def test_asked_twice(pools: Pools) -> None:
    """An upgrade that is asked for again while the new program is tried is one upgrade."""
    pool, program = start(pools)
    let_in = program.await_at_gate(pool, at_trial=True)
    upgrade(pool)
    pool.await_log("upgrade: the newly installed program is asked", 2)
    let_in()
    await_upgraded(pool)
    assert pool.logged().count("upgraded: ") == 1


def test_end_while_the_program_is_tried(pools: Pools) -> None:
    """A pool that ends does not wait for a program that is being tried, and leaves none behind."""
    pool, program = start(pools)
    program.await_at_gate(pool, at_trial=True)
    assert pool.stop() == 0
    pool.await_that_all_ended()


def test_upgrade_waits_for_a_reload(pools: Pools) -> None:
    """An upgrade that is asked for while a generation is being loaded comes after it."""
    pool, _ = start(pools)
    gate = pool.folder / "gate"
    waiting = f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)\n"
    (pool.folder / "code" / "versed.py").write_text(waiting + _VERSED)
    pool.reload()
    pool.await_log("reload$")
    upgrade(pool)
    pool.await_log("upgrade: the newly installed program is asked")
    gate.touch()
    await_upgraded(pool, generation=3)
    log = pool.logged()
    assert log.index("gen=2 is loaded") < log.index("upgrade: handing over") < log.index("gen=3 is loaded")


def test_configuration_is_found_from_anywhere(pools: Pools) -> None:
    """A configuration that was named relatively is found by reload and upgrade, wherever the server works."""
    pool = pools.make({"chdir": "/", "workers": 1}, routes=_ROUTES, code={"versed.py": _VERSED})
    program = InstalledProgram(pool.folder / "program")
    pool.launch("env", "-C", str(program.folder), arguments=("-c", "../pool.yaml"))
    await_generation(pool, 1, workers=1)
    pool.reload()
    await_generation(pool, 2, workers=1)
    program.install("9.9")
    upgrade(pool)
    await_upgraded(pool, generation=3, workers=1)
    assert pool.await_log(_UPGRADED)[0][1] == "9.9"
