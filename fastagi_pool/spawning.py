"""Spawning: how one process of a script is started: its streams, limits, user, and execution.

Laws:
    * A script finds what Asterisk gives it: standard streams that are pipes, every signal at its default and
      none blocked, and no other descriptor. It leads a process group of its own.
    * Of the server's environment it sees a short list only: whatever secrets are in it stay there.
    * Whoever cannot be executed never was started: its failure is reported by a pipe that a successful
      execution closes, and comes back as one sentence that says what to do.
    * It does not outlive the launcher: the kernel kills it when that dies.

Every descriptor of the launcher is closed by an execution, so nothing has to be closed here.

Why ctypes executes: with a limit on its address space the child may get no memory any more, and Python's own
``execve`` needs some; here everything has been made before the fork.

Source: asterisk res/res_agi.c, launch_script().
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import pwd
import resource
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, NoReturn

from fastagi_pool.errors import FastAGIPoolError
from fastagi_pool.forking import fork_apart
from fastagi_pool.launching import ProcessSettings

#: Variables of the server's environment that scripts get.
INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "USER", "LOGNAME", "SHELL")
#: What a script may still do after SIGXCPU before it is killed.
CPU_GRACE_S: Final = 5
#: Source: include/uapi/linux/prctl.h.
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
#: Longest report of a child that failed: two numbers.
_REPORT_BYTES: Final = 64
#: What a shell says of a command that it cannot execute.
_CANNOT_EXECUTE: Final = 127
#: The first line that the kernel reads. Source: BINPRM_BUF_SIZE in include/uapi/linux/binfmts.h.
_FIRST_LINE_BYTES: Final = 256


class SpawnError(FastAGIPoolError):
    """A process could not be started; the text says why, for whoever has to mend it."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a process is to be.

    Attributes:
        file: The script's path, as people know it.
        words: The command line; the first is looked for in PATH if it holds no slash.
        environment: All of its environment.
        settings: Its directory, user and limits.
        passed_fd: A further descriptor that it keeps, under the same number; -1 for none.
    """

    file: str
    words: list[str]
    environment: Mapping[str, str]
    settings: ProcessSettings
    passed_fd: int = -1


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a process runs as.

    Attributes:
        name: The user.
        uid: Its number.
        gid: Its group.
        groups: All of its groups.
        home: Its home directory.
        changes: Whether it is somebody else than we are.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    changes: bool


class Streams:
    """The pipes of a script's standard input, output and error.

    Attributes:
        theirs: The script's ends, in this order.
        ours: The other ends: to write, to read, to read.
    """

    def __init__(self) -> None:
        """Make them.

        Raises:
            OSError: No descriptor is left.
        """
        made: list[int] = []
        try:
            for _ in range(3):
                made += os.pipe()
        except OSError:
            _close(made)
            raise
        self.theirs = [made[0], made[3], made[5]]
        self.ours = [made[1], made[2], made[4]]

    def close_theirs(self) -> None:
        """Let go of the script's ends; it has its own copies."""
        _close(self.theirs)
        self.theirs = []

    def close(self) -> None:
        """Let go of all."""
        self.close_theirs()
        _close(self.ours)
        self.ours = []


@dataclass(frozen=True, slots=True)
class Birth:
    """A process that was forked.

    Attributes:
        pid: Its number; it leads the process group of this number.
        pidfd: Refers to it; readable when it has ended.
        report_fd: At its end once the program is executed; before that come the words for :func:`failure`.
    """

    pid: int
    pidfd: int
    report_fd: int


def become_subreaper() -> None:
    """Become the parent of processes whose parents die, below this one."""
    _libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def environment(settings: ProcessSettings, variables: Mapping[str, str]) -> dict[str, str]:
    """Build a script's environment.

    Args:
        settings: Its user, and the variables that all calls get.
        variables: Those of this call; they win.

    Raises:
        SpawnError: The user does not exist.
    """
    found = {name: os.environ[name] for name in INHERITED if name in os.environ}
    if settings.user:
        whom = identity(settings.user)
        found |= {"HOME": whom.home, "USER": whom.name, "LOGNAME": whom.name}
    return {**found, **settings.environment, **variables}


@cache
def identity(user: str) -> Identity:
    """Look up a user, once in this process's life.

    Raises:
        SpawnError: There is none of this name.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise SpawnError(f"there is no user {user!r} on this machine: mend `user` of the route") from None
    groups = tuple(os.getgrouplist(user, entry.pw_gid))
    changes = entry.pw_uid != os.geteuid()
    return Identity(user, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, changes)


def cpu_limit(cpu_s: float) -> tuple[int, int]:
    """Turn seconds of processor time into the limits at which SIGXCPU and SIGKILL come."""
    soft = math.ceil(cpu_s)
    return soft, soft + CPU_GRACE_S


class Spawner:
    """Starts processes."""

    def __init__(self, handled: Iterable[int] = ()) -> None:
        """Note what scripts are to find again, and take all descriptors that we may have.

        Args:
            handled: Signals for which this process has handlers, or will have. A script that gets one in its
                first moment, because its caller has hung up, would otherwise never hear of it.
        """
        ignored = [n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN]
        self._default = (*handled, *ignored)
        self._open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        _, hard = self._open_files
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._libc = _libc()
        self._pid = os.getpid()

    def spawn(self, program: Program, streams: list[int]) -> Birth:
        """Start a process; whether its program could be executed is told by the report.

        Args:
            program: What it is to be.
            streams: Its standard input, output and error.

        Raises:
            SpawnError: There is no such user or interpreter, or a word cannot be passed on.
            OSError: No process or descriptor is left.
        """
        path, words, variables = _for_the_kernel(program)
        whom = identity(program.settings.user) if program.settings.user else None
        report, told = os.pipe()
        try:
            pid = fork_apart(*self._default)
        except OSError:
            _close([report, told])
            raise
        if pid == 0:
            step = _Steps(program, whom, streams, self._open_files)
            step.run_and_execute(self._libc, self._pid, told, (path, words, variables))
        os.close(told)
        try:
            os.setpgid(pid, pid)
        except OSError:
            # It has done so itself, and executes its program already.
            pass
        try:
            return Birth(pid, os.pidfd_open(pid), report)
        except OSError:
            # Nobody would notice its end.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(report)
            raise


class _Steps:
    """What the child does before it executes its program; the number of a step tells which one failed."""

    DIRECTORY: Final = 1
    USER: Final = 2
    LIMITS: Final = 3
    EXECUTE: Final = 4

    def __init__(
        self,
        program: Program,
        whom: Identity | None,
        streams: list[int],
        open_files: tuple[int, int],
    ) -> None:
        self._program = program
        self._whom = whom
        self._streams = streams
        self._open_files = open_files
        self._step = 0

    def run_and_execute(
        self,
        libc: ctypes.CDLL,
        parent: int,
        told: int,
        words: tuple[bytes, ctypes.Array[ctypes.c_char_p], ctypes.Array[ctypes.c_char_p]],
    ) -> NoReturn:
        """Take all steps, or report the one that failed; does not return."""
        code = 0
        try:
            self._prepare(libc, parent)
            libc.execve(*words)
            code = ctypes.get_errno()
        except OSError as error:
            code = error.errno or errno.EIO
        except BaseException:
            code = errno.EINVAL
        finally:
            try:
                os.write(told, b"%d %d" % (self._step, code))
            finally:
                os._exit(_CANNOT_EXECUTE)

    def _prepare(self, libc: ctypes.CDLL, parent: int) -> None:
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._step = self.USER
        self._become_user()
        # Only now: a change of the user clears it.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(_CANNOT_EXECUTE)
        self._step = self.DIRECTORY
        os.chdir(self._program.settings.directory)
        for number, descriptor in enumerate(self._streams):
            os.dup2(descriptor, number)
        if self._program.passed_fd >= 0:
            os.set_inheritable(self._program.passed_fd, True)
        self._step = self.LIMITS
        self._limit()
        self._step = self.EXECUTE

    def _become_user(self) -> None:
        whom = self._whom
        if whom is not None and whom.changes:
            os.setgroups(whom.groups)
            os.setgid(whom.gid)
            os.setuid(whom.uid)

    def _limit(self) -> None:
        settings = self._program.settings
        resource.setrlimit(resource.RLIMIT_NOFILE, self._open_files)
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        if settings.cpu_s:
            resource.setrlimit(resource.RLIMIT_CPU, cpu_limit(settings.cpu_s))
        if settings.memory_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (settings.memory_bytes, settings.memory_bytes))


def failure(program: Program, report_fd: int) -> str:
    """Read a child's report, which has come or is at its end; and close it.

    Returns:
        Why the program could not be executed; empty if it was.
    """
    words = os.read(report_fd, _REPORT_BYTES).split()
    os.close(report_fd)
    if not words:
        return ""
    step, code = map(int, words)
    why = os.strerror(code)
    settings = program.settings
    if step == _Steps.DIRECTORY:
        return f"cannot run {program.file}: the working directory {settings.directory}: {why}"
    if step == _Steps.USER:
        return f"cannot run {program.file} as user {settings.user}: {why} (only root may)"
    if step == _Steps.LIMITS:
        return f"cannot limit {program.file}: {why}"
    return f"cannot execute {program.file}: {_hint(program, code) or why}"


def _hint(program: Program, code: int) -> str:
    """Say what is meant where the system's own words lead astray."""
    own = program.words[0] == program.file
    if code == errno.ENOEXEC:
        return "it has no #! line, and is no program of this machine"
    if code == errno.EACCES and own and not os.access(program.file, os.X_OK):
        return f"it is not executable: chmod +x {program.file}"
    if code == errno.ENOENT and own and Path(program.file).exists():
        return f"the interpreter of its first line, {first_line(program.file)!r}, does not exist"
    return ""


def first_line(file: str) -> str:
    """Read a script's first line, as far as the kernel looks at it; empty if it cannot be read."""
    try:
        with Path(file).open("rb") as script:
            line = script.read(_FIRST_LINE_BYTES).partition(b"\n")[0]
    except OSError:
        return ""
    return os.fsdecode(line)


def _for_the_kernel(
    program: Program,
) -> tuple[bytes, ctypes.Array[ctypes.c_char_p], ctypes.Array[ctypes.c_char_p]]:
    """Find the executable, and lay out words and environment as ``execve`` takes them."""
    path = _executable(program)
    words = [os.fsencode(word) for word in program.words]
    variables = [os.fsencode(f"{name}={value}") for name, value in program.environment.items()]
    if any(b"\0" in each for each in [path, *words, *variables]):
        raise SpawnError(f"cannot execute {program.file}: an argument or variable holds a NUL byte")
    return path, _vector(words), _vector(variables)


def _vector(words: list[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)


def _executable(program: Program) -> bytes:
    name = program.words[0]
    if "/" in name:
        return os.fsencode(name)
    folders = program.environment.get("PATH", os.defpath)
    for folder in folders.split(":"):
        path = f"{folder}/{name}"
        if folder and os.access(path, os.X_OK) and not Path(path).is_dir():
            return os.fsencode(path)
    raise SpawnError(f"cannot execute {program.file}: its interpreter {name!r} is not in PATH ({folders})")


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    vector = ctypes.POINTER(ctypes.c_char_p)
    libc.execve.argtypes = [ctypes.c_char_p, vector, vector]
    return libc


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
