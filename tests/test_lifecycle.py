"""fastagi_pool.lifecycle: real locks, real processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import in_child

from fastagi_pool.errors import BootError
from fastagi_pool.lifecycle import (
    PID_FILE,
    Life,
    LifeState,
    descendants,
    drop_pid_file,
    find,
    hold_pid_file,
    reach,
    what_is_left,
)

WAIT_S = 15.0
#: Holds the pid file as a master does, with a child below it, until it is told to end or is killed.
MASTER = """
import os, subprocess, sys
from pathlib import Path
from fastagi_pool.lifecycle import PID_FILE, drop_pid_file, hold_pid_file
path = Path(sys.argv[1]) / PID_FILE
held = hold_pid_file(path, os.getpid())
below = subprocess.Popen(["sleep", "60"])
print(below.pid, flush=True)
sys.stdin.read()
below.kill()
drop_pid_file(path, held)
"""


class StandIn:
    """A process that holds the lock of a master.

    Attributes:
        process: The process.
        below: The process id of its child.
    """

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MASTER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.below = int(self.process.stdout.readline())

    def end(self) -> None:
        """End it in good order."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(WAIT_S)

    def clean_up(self) -> None:
        """End it however it stands."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            os.kill(self.below, signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.fixture
def master(tmp_path: Path) -> Iterator[StandIn]:
    """Start what holds the pid file in ``tmp_path``."""
    stand_in = StandIn(tmp_path)
    yield stand_in
    stand_in.clean_up()


def test_nothing_runs_where_there_is_no_file(tmp_path: Path) -> None:
    """Without a pid file, or without its folder, the pool is stopped."""
    assert find(tmp_path) == find(tmp_path / "none") == Life(LifeState.STOPPED)


def test_living_master_is_found(tmp_path: Path, master: StandIn) -> None:
    """A locked pid file tells of a master that runs, by its process id."""
    assert find(tmp_path) == Life(LifeState.RUNNING, master.process.pid)


def test_killed_master_is_dead_and_not_stopped(tmp_path: Path, master: StandIn) -> None:
    """After a kill -9 the file is left and free: dead, with the pid that it had."""
    master.process.kill()
    master.process.wait(WAIT_S)
    assert find(tmp_path) == Life(LifeState.DEAD, master.process.pid)


def test_orderly_end_leaves_nothing(tmp_path: Path, master: StandIn) -> None:
    """A master that ends as asked removes its file, so that keep-alive leaves the pool alone."""
    master.end()
    assert find(tmp_path) == Life(LifeState.STOPPED)
    assert list(tmp_path.iterdir()) == []


def test_number_of_somebody_else_is_no_master(tmp_path: Path) -> None:
    """A file with a living process id that nobody holds locked is a dead master's."""
    (tmp_path / PID_FILE).write_text(f"{os.getpid()}\n")
    assert find(tmp_path) == Life(LifeState.DEAD, os.getpid())
    assert reach(tmp_path) is None


def test_unreadable_file_is_unknown(tmp_path: Path) -> None:
    """Who may not read the file is told so, and not that nothing runs."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    (tmp_path / PID_FILE).write_text("1\n")
    (tmp_path / PID_FILE).chmod(0o600)

    def look() -> list[object]:
        os.open(tmp_path, os.O_RDONLY)
        os.chdir(tmp_path)
        os.setuid(65534)
        try:
            reach(Path())
        except PermissionError as error:
            return [int(find(Path()).state), str(error)]
        return []

    tmp_path.chmod(0o755)
    state, message = in_child(look)
    assert state == LifeState.UNKNOWN
    assert "not permitted" in message


def test_second_master_is_refused(tmp_path: Path, master: StandIn) -> None:
    """Two masters never share a runtime folder; the message names the other."""
    with pytest.raises(BootError, match=rf"another fastagi-pool \(pid {master.process.pid}\) holds"):
        hold_pid_file(tmp_path / PID_FILE, 1)


def test_onlooker_does_not_keep_a_master_from_starting(tmp_path: Path) -> None:
    """A lock that is held for a moment only, as by ``status``, is waited for."""
    path = tmp_path / PID_FILE
    path.touch()
    onlooker = os.open(path, os.O_RDONLY)
    fcntl.flock(onlooker, fcntl.LOCK_SH)
    signal.signal(signal.SIGALRM, lambda *_: os.close(onlooker))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        held = hold_pid_file(path, 4711)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert path.read_text() == "4711\n"
    os.close(held)


def test_lock_on_a_removed_file_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that its former master removes while the next one locks it is not taken for ours."""
    path = tmp_path / PID_FILE
    path.write_text("1\n")
    lock = fcntl.flock
    removed: list[int] = []

    def removed_meanwhile(descriptor: int, operation: int) -> None:
        lock(descriptor, operation)
        if not removed:
            path.unlink()
            removed.append(descriptor)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    held = hold_pid_file(path, 2)
    assert os.path.samestat(path.stat(), os.fstat(held))
    os.close(held)


def test_successors_file_is_not_removed(tmp_path: Path) -> None:
    """A master that ends removes its own file, not one that stands in its place."""
    path = tmp_path / PID_FILE
    held = hold_pid_file(path, 1)
    path.unlink()
    path.write_text("2\n")
    drop_pid_file(path, held)
    assert path.read_text() == "2\n"


def test_signal_reaches_the_master_and_its_end_is_seen(tmp_path: Path, master: StandIn) -> None:
    """A signal goes to the master that was found, and its end can be awaited; later ones go nowhere."""
    living = reach(tmp_path)
    assert living is not None
    with living:
        assert living.pid == master.process.pid
        assert not living.await_end(0)
        assert living.send(signal.SIGTERM)
        assert living.await_end(WAIT_S)
        master.process.wait(WAIT_S)
        assert not living.send(signal.SIGTERM)


def test_nobody_is_reached_where_nothing_runs(tmp_path: Path) -> None:
    """Where no master runs there is nobody to signal."""
    assert reach(tmp_path) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_somebody_elses_process_is_never_reached(tmp_path: Path, master: StandIn) -> None:
    """A user who writes any number into a pid file of his does not get root to signal that process."""
    os.chown(tmp_path / PID_FILE, 65534, 65534)
    with pytest.raises(PermissionError, match=f"is user 65534's, and process {master.process.pid} is not"):
        reach(tmp_path)


def test_pid_file_that_is_none(tmp_path: Path) -> None:
    """A pipe in its place holds nobody up, and a link leads nobody to another pool."""
    (tmp_path / "real").mkdir()
    held = hold_pid_file(tmp_path / "real" / PID_FILE, os.getpid())
    (tmp_path / PID_FILE).symlink_to(tmp_path / "real" / PID_FILE)
    with pytest.raises(OSError, match="symbolic links"):
        find(tmp_path)
    (tmp_path / PID_FILE).unlink()
    os.mkfifo(tmp_path / PID_FILE)
    assert in_child(lambda: _looked_at(tmp_path)) == "a pipe is no hindrance"
    os.close(held)


def _looked_at(folder: Path) -> str:
    with contextlib.suppress(OSError):
        find(folder)
    return "a pipe is no hindrance"


def test_kill_all_spares_nothing_below(tmp_path: Path, master: StandIn) -> None:
    """The last resort kills the master and what it has started, and says whom."""
    assert descendants(master.process.pid) == [master.below]
    living = reach(tmp_path)
    assert living is not None
    with living:
        assert living.kill_all() == [master.process.pid, master.below]
        assert living.await_end(WAIT_S)


def test_what_is_left_tells_titles() -> None:
    """What still runs is told by number and title; what has ended is left out."""
    with subprocess.Popen(["sleep", "60"]) as process:
        # Between two programs a process has no title.
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
            pass
        assert what_is_left([process.pid]) == [f"{process.pid} sleep 60"]
        process.kill()
        process.wait(WAIT_S)
        assert what_is_left([process.pid]) == []
