"""Life cycle: whether a pool runs, and how its master is reached from outside.

Laws:
    * The lock tells, never the number: a master lives as long as it holds its pid file locked. What
      stands in the file of a dead one may be anybody's process id by now.
    * Whoever owns the file can write any number into it: a process that is not his is never signalled.
    * Signals go through a pidfd, so that they reach the master that was found or nobody.
    * Who only looks takes a shared lock for a moment; a master that starts tries again rather than
      take an onlooker for another master.
    * A file that is left behind tells of a master that died: one that ended as asked removes it.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from select import POLLIN, poll
from time import sleep
from types import TracebackType
from typing import Final

from fastagi_pool.custody import WITNESS_TITLE
from fastagi_pool.errors import BootError

#: The file below ``runtime_dir`` that a master holds locked.
PID_FILE: Final = "master.pid"
#: A witness that has something to tell takes two seconds at most.
WITNESS_S: Final = 3.0
#: An onlooker holds the file for microseconds, and a new master writes its number as quickly.
_ATTEMPTS: Final = 25
_PAUSE_S: Final = 0.02


class LifeState(IntEnum):
    """Whether a pool runs; the values are those that ``status`` of an init script exits with.

    Source: LSB Core 5.0, "Init Script Actions".
    """

    RUNNING = 0
    #: The master died without an orderly end: its pid file is left.
    DEAD = 1
    STOPPED = 3
    #: The file cannot be read by this user.
    UNKNOWN = 4


class ActionCode(IntEnum):
    """What every action of an init script but ``status`` exits with.

    Source: LSB Core 5.0, "Init Script Actions".
    """

    OK = 0
    FAILED = 1
    BAD_ARGUMENTS = 2
    NOT_PERMITTED = 4
    NOT_INSTALLED = 5
    #: The configuration cannot be run.
    NOT_CONFIGURED = 6
    NOT_RUNNING = 7


@dataclass(frozen=True, slots=True)
class Life:
    """A pool, seen from outside.

    Attributes:
        state: Whether it runs.
        pid: Its master's process id; for DEAD the one that it had; 0 if not known.
        owner: Whose the pid file is; -1 if not known.
    """

    state: LifeState
    pid: int = 0
    owner: int = field(default=-1, compare=False)


def find(runtime_dir: Path) -> Life:
    """Look whether the pool that uses this runtime folder runs.

    Raises:
        OSError: The machine does not let us look; that this user may not is told by UNKNOWN.
    """
    for _ in range(_ATTEMPTS):
        try:
            # It may be a pipe or a link that somebody else has put there.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(runtime_dir / PID_FILE, flags)
        except (FileNotFoundError, NotADirectoryError):
            return Life(LifeState.STOPPED)
        except PermissionError:
            return Life(LifeState.UNKNOWN)
        try:
            held = _is_held(descriptor)
            pid, owner = _number_in(descriptor), os.fstat(descriptor).st_uid
        finally:
            os.close(descriptor)
        if not held:
            return Life(LifeState.DEAD, pid, owner)
        if pid:
            return Life(LifeState.RUNNING, pid, owner)
        # Locked and not yet written: it starts in this very moment.
        sleep(_PAUSE_S)
    return Life(LifeState.RUNNING)


class LivingMaster:
    """A master that was alive when it was reached, and no other process ever; a context manager.

    Attributes:
        pid: Its process id.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        """Wrap an open pidfd; closed with this."""
        self.pid = pid
        self._pidfd = pidfd

    def __enter__(self) -> LivingMaster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._pidfd)

    def send(self, number: signal.Signals) -> bool:
        """Send it a signal; False if it has ended meanwhile.

        Raises:
            PermissionError: It belongs to somebody else.
        """
        return _send(self._pidfd, number)

    def await_end(self, timeout_s: float) -> bool:
        """Wait until it has ended; False if it lives on after so many seconds."""
        return _has_ended(self._pidfd, timeout_s)

    def kill_all(self) -> list[int]:
        """Kill it and all that it has started, and return their process ids, the master's first.

        The master goes first: it would replace the others. The workers' witnesses tell the calls what has
        happened and end by themselves; they are killed only if they do not.

        Raises:
            PermissionError: They belong to somebody else.
        """
        pidfds = [(pid, _open_pidfd(pid)) for pid in descendants(self.pid)]
        witnesses = {pid for pid, _ in pidfds if _is_witness(pid)}
        killed = [self.pid] if self.send(signal.SIGKILL) else []
        for pid, pidfd in sorted(pidfds, key=lambda each: each[0] in witnesses):
            if pidfd is not None:
                ended = pid in witnesses and _has_ended(pidfd, WITNESS_S)
                if not ended and _send(pidfd, signal.SIGKILL):
                    killed.append(pid)
                os.close(pidfd)
        return killed


def reach(runtime_dir: Path) -> LivingMaster | None:
    """Reach the master of a running pool; None if there is none.

    Raises:
        PermissionError: This user may not look; or the file names a process that is not its owner's.
        OSError: The machine does not let us look.
    """
    life = find(runtime_dir)
    if life.state is LifeState.UNKNOWN:
        raise PermissionError(f"not permitted: {runtime_dir / PID_FILE} cannot be read by this user")
    pidfd = _open_pidfd(life.pid) if life.state is LifeState.RUNNING and life.pid else None
    if pidfd is None:
        return None
    # Opened first, confirmed afterwards: if it is still so now, then the pidfd is the master's.
    if find(runtime_dir) != life:
        os.close(pidfd)
        return None
    if _owner_of(life.pid) not in (life.owner, -1):
        os.close(pidfd)
        raise PermissionError(
            f"not permitted: {runtime_dir / PID_FILE} is user {life.owner}'s, and process {life.pid} is not"
        )
    return LivingMaster(life.pid, pidfd)


def _is_witness(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(WITNESS_TITLE.encode())
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """Return the processes below one, as proc(5) has them now; parents before their children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            children.setdefault(_parent_of(entry), []).append(int(entry.name))
    found = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def hold_pid_file(path: Path, pid: int) -> int:
    """Write a process id into a file and hold it locked until the descriptor is closed (master only).

    Returns:
        The open descriptor.

    Raises:
        BootError: Another master holds it.
        OSError: It cannot be written.
    """
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        if _lock(descriptor) and _is_same_file(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{pid}\n".encode(), 0)
            return descriptor
        # Held by an onlooker, or removed by a master that ended between our two steps.
        holder = _number_in(descriptor)
        os.close(descriptor)
        sleep(_PAUSE_S)
    raise BootError(f"another fastagi-pool (pid {holder}) holds {path}; give each its own runtime_dir")


def drop_pid_file(path: Path, descriptor: int) -> None:
    """Remove the file and let go of it, so that nobody takes an orderly end for a death (master only)."""
    try:
        if _is_same_file(path, descriptor):
            path.unlink()
    except OSError:
        pass  # It stays, and the next start takes it over; there is nobody left to tell.
    os.close(descriptor)


def forget_the_dead(runtime_dir: Path) -> None:
    """Remove what a dead master has left, so that nobody takes a pool that shall be stopped for a dead one.

    Raises:
        BootError: A master has started meanwhile.
        OSError: It cannot be removed.
    """
    path = runtime_dir / PID_FILE
    drop_pid_file(path, hold_pid_file(path, 0))


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(descriptor: int) -> bool:
    """Whether a master holds the file; what we take to find out ends with the descriptor."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _number_in(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def _parent_of(entry: Path) -> int:
    """Return the parent of a process by its folder in /proc; 0 if it has just ended."""
    try:
        return int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _owner_of(pid: int) -> int:
    """Return whose a process is; -1 if that is not shown to us, or it has just ended."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return -1


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _send(pidfd: int, number: signal.Signals) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def _has_ended(pidfd: int, timeout_s: float) -> bool:
    poller = poll()
    poller.register(pidfd, POLLIN)
    return bool(poller.poll(max(0.0, timeout_s) * 1000))


def what_is_left(pids: Iterable[int]) -> list[str]:
    """Describe processes for somebody who wonders what still runs: ``pid title``; ended ones are left out."""
    lines = []
    for pid in pids:
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if title:
            lines.append(f"{pid} {''.join(filter(str.isprintable, title)).strip()[:120]}")
    return lines
