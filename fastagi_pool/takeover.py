"""Takeover: the master replaces itself by the newly installed program, and goes on with what it has.

Laws:
    * Same process, same sockets, same children: what the new program needs to know of them travels as one
      JSON text in an anonymous file; descriptors keep their numbers.
    * Before anything is given up the new program is tried in a child: it must start, understand the text,
      and find shared memory of its own kind. If it does not, nothing changes.
    * From before the change until the new program listens, signals wait; none is lost, and none kills.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from fastagi_pool.forking import fork_apart
from fastagi_pool.privileges import die_with_parent
from fastagi_pool.scoreboard import Scoreboard

#: Names the anonymous file to the new program; ``try:`` in front of it asks for an opinion only.
VARIABLE: Final = "FASTAGI_POOL_TAKEOVER"
_TRY: Final = "try:"
#: A trial that takes longer hangs in some module.
TRIAL_S: Final = 60.0
#: Whoever writes another kind of text writes another number, and refuses those that it does not know.
_KIND: Final = 1
#: What waits while nobody listens.
_WAITING_SIGNALS: Final = (
    signal.SIGTERM,
    signal.SIGQUIT,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
    signal.SIGWINCH,
)


class TakeoverRefused(Exception):
    """What the old program hands over cannot be gone on with."""


@dataclass(frozen=True, slots=True)
class Program:
    """How this program was started, and can be again.

    Attributes:
        words: The command line, the interpreter first.
        folder: The working directory at that time: words may be relative to it.
        environment: Its environment.
    """

    words: tuple[str, ...]
    folder: str
    environment: Mapping[str, str] = field(repr=False, default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoaderState:
    """A loader that lives on: see ``master.Loader``."""

    generation: int
    pid: int
    channel_fd: int
    since_s: float
    loaded: Mapping[str, Any] | None
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MasterState:
    """All that the new program must know to go on.

    Attributes:
        version: The version of the program that hands over.
        board_fd: The scoreboard's file.
        listeners: Descriptors of the listening sockets by address.
        pid_files: Descriptors of the locked pid files by path.
        bell: Both ends of the pipe by which workers wake the master.
        lifeline: Both ends of the pipe by which children learn that the master is gone.
        loaders: Those that live.
        loaded: What the generation in charge said of itself.
        kept: Addresses of the generation in charge.
        generations: How many there were.
        observer_pid: The observer's process; 0 if there is none.
        pool: What :meth:`pool.Pool.state` gave.
        supervision: What was published: the arguments of ``scoreboard.Supervision``.
        handover: Both ends of the way from dead workers to others; -1 where a program knew of none.
    """

    version: str
    board_fd: int
    listeners: Mapping[str, list[int]]
    pid_files: Mapping[str, int]
    bell: tuple[int, int]
    lifeline: tuple[int, int]
    loaders: tuple[LoaderState, ...]
    loaded: Mapping[str, Any]
    kept: tuple[str, ...]
    generations: int
    observer_pid: int
    pool: Mapping[str, Any]
    supervision: Mapping[str, Any] = field(default_factory=dict)
    handover: tuple[int, int] = (-1, -1)

    def to_json(self) -> str:
        """Write it as one text."""
        return json.dumps({"kind": _KIND, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> MasterState:
        """Read what :meth:`to_json` wrote.

        Raises:
            TakeoverRefused: It is of another kind: that program can only be stopped and started.
        """
        try:
            fields = json.loads(text)
            if fields.pop("kind") != _KIND:
                raise TakeoverRefused("the running server is of another kind: stop it and start the new one")
            loaders = [
                LoaderState(**{**each, "addresses": tuple(each["addresses"])})
                for each in fields.pop("loaders")
            ]
            pairs: dict[str, Any] = {name: tuple(fields.pop(name)) for name in ("bell", "lifeline", "kept")}
            pairs["handover"] = tuple(fields.pop("handover", (-1, -1)))
            return cls(loaders=tuple(loaders), **pairs, **fields)
        except (ValueError, KeyError, TypeError) as error:
            reason = f"what the running server says of itself cannot be read: {error!r}"
            raise TakeoverRefused(reason) from error

    def descriptors(self) -> list[int]:
        """All descriptors that must stay open."""
        listeners = [number for group in self.listeners.values() for number in group]
        channels = [loader.channel_fd for loader in self.loaders if loader.channel_fd >= 0]
        handover = [number for number in self.handover if number >= 0]
        pipes = [*self.bell, *self.lifeline, *handover]
        return [self.board_fd, *listeners, *self.pid_files.values(), *pipes, *channels]


def own_program(environment: Mapping[str, str]) -> Program:
    """Tell how this program was started.

    Args:
        environment: What it was given.
    """
    ours = {name: value for name, value in environment.items() if name != VARIABLE}
    try:
        folder = str(Path.cwd())
    except FileNotFoundError:
        # Removed meanwhile: nothing can be relative to it.
        folder = "/"
    return Program((sys.executable, *sys.orig_argv[1:]), folder, ours)


def adopt_descriptors(state: MasterState) -> None:
    """Keep what was handed over from any further program that this process starts."""
    for descriptor in state.descriptors():
        os.set_inheritable(descriptor, False)


def wait_for_signals() -> None:
    """Have signals wait from now on, over the change of the program too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITING_SIGNALS)


def hear_signals() -> None:
    """Take what has waited."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITING_SIGNALS)


def inherited_state(environment: Mapping[str, str]) -> MasterState | None:
    """Read what a former program of this process has left; None if there was none.

    Raises:
        TakeoverRefused: It cannot be gone on with.
    """
    written = environment.get(VARIABLE, "")
    if not written:
        return None
    descriptor = int(written.removeprefix(_TRY))
    with open(descriptor, encoding="utf-8", closefd=not written.startswith(_TRY)) as file:
        file.seek(0)
        state = MasterState.from_json(file.read())
    try:
        Scoreboard.share(state.board_fd).check("the running server's")
    except (OSError, ValueError) as error:
        raise TakeoverRefused(f"the shared memory is of another kind ({error}): stop and start") from error
    return state


def is_only_asked(environment: Mapping[str, str]) -> bool:
    """Whether this process shall only say whether it could take over."""
    return environment.get(VARIABLE, "").startswith(_TRY)


@dataclass(frozen=True, slots=True)
class Trial:
    """The new program, tried in a child.

    Attributes:
        pid: The child.
        output_fd: What it prints.
        since_s: When it was started.
    """

    pid: int
    output_fd: int
    since_s: float

    def verdict(self) -> str:
        """What it printed, its last lines; once."""
        size = os.fstat(self.output_fd).st_size
        text = os.pread(self.output_fd, 4096, max(0, size - 4096)).decode(errors="replace")
        os.close(self.output_fd)
        return text.strip()


class Upgrade:
    """An upgrade under way: wanted, tried, passed.

    Attributes:
        wanted: Whether there is one.
    """

    def __init__(self, program: Program) -> None:
        """Want none yet.

        Args:
            program: What takes over; the files that it names may have been replaced meanwhile.
        """
        self.wanted = False
        self._program = program
        self._trial: Trial | None = None
        self._passed = False

    def want(self) -> None:
        """Want one; a second one at the same time is the same."""
        self.wanted = True

    def drop(self) -> None:
        """Want it no more."""
        self.wanted = self._passed = False

    def advance(self, state: MasterState, now_s: float) -> bool:
        """Try the new program, unless that is being done.

        Returns:
            Whether it has passed: it can take over now. From then on signals wait.

        Raises:
            OSError: It cannot be started.
        """
        if self._passed:
            wait_for_signals()
            return True
        if self._trial is None:
            self._trial = try_program(self._program, state, now_s)
        elif now_s - self._trial.since_s > TRIAL_S:
            os.kill(self._trial.pid, signal.SIGKILL)
        return False

    def is_trial(self, pid: int) -> bool:
        """Whether this process is the trial."""
        return self._trial is not None and self._trial.pid == pid

    def tried(self, good: bool, how: str) -> str:
        """Hear that the trial has ended.

        Args:
            good: Whether with exit code 0.
            how: For the log, otherwise.

        Returns:
            Why it cannot take over; empty if it can.
        """
        verdict = self._trial.verdict() if self._trial else ""
        self._trial = None
        self._passed = good
        self.wanted = good
        return "" if good else f"{verdict or 'it said nothing'} ({how})"


def try_program(program: Program, state: MasterState, now_s: float) -> Trial:
    """Start the new program in a child that only says, by its exit code 0, whether it could take over.

    Raises:
        OSError: The machine has no process or no file for it.
    """
    text_fd = _written(state)
    output_fd = os.memfd_create("trial", os.MFD_CLOEXEC)
    try:
        pid = fork_apart()
    except OSError:
        os.close(output_fd)
        raise
    if pid == 0:
        try:
            # Else one that hangs would be left behind by a pool that ends.
            die_with_parent()
            for number in (1, 2):
                os.dup2(output_fd, number)
            # What a handler's module starts would hold lifeline, locks and sockets open.
            _change(program, [state.board_fd], text_fd, _TRY)
        except BaseException as error:
            os.write(2, f"{program.words[0]}: {error}\n".encode())
            os._exit(127)
    os.close(text_fd)
    return Trial(pid, output_fd, now_s)


def take_over(program: Program, state: MasterState) -> NoReturn:
    """Become the new program; signals wait already.

    Raises:
        OSError: It cannot be executed; descriptors are as they were.
    """
    text_fd = _written(state)
    try:
        _change(program, state.descriptors(), text_fd, "")
    finally:
        # Only after a failure does anything come here.
        os.close(text_fd)
        for descriptor in state.descriptors():
            os.set_inheritable(descriptor, False)


def _written(state: MasterState) -> int:
    descriptor = os.memfd_create("takeover", os.MFD_CLOEXEC)
    data = state.to_json().encode()
    while data:
        data = data[os.write(descriptor, data) :]
    return descriptor


def _change(program: Program, descriptors: list[int], text_fd: int, purpose: str) -> NoReturn:
    # Whom we have become may not enter it; words that are absolute do not need it.
    with suppress(PermissionError):
        os.chdir(program.folder)
    for descriptor in (*descriptors, text_fd):
        os.set_inheritable(descriptor, True)
    os.execve(program.words[0], program.words, {**program.environment, VARIABLE: f"{purpose}{text_fd}"})
