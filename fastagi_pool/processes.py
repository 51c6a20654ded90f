"""Processes: the scripts of all calls, each from the wish to have it to its burial.

Laws:
    * Whoever asked for a script hears ``NotLaunched``, or ``Launched`` and later ``Over``; once, and nothing
      after that.
    * A script is signalled before it is buried only, so its number is still its own.
    * A script that was ended is killed, with its process group, when its grace is over. Of one that ended of
      itself what it has left behind lives on, unless its route says otherwise.
    * The status of a script goes to who asked for it; orphans of scripts, which the launcher inherits, are
      just buried.

How it works::

    WAITING --a process is made--> STARTING --executed--> RUNNING --its pidfd says so--> OVER --buried--> gone

A process is made here (:meth:`Processes.spawn`), or by a zygote (``nursing``), whose business its burial is
then too (:attr:`Script.buried_by`).
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Final, TypeAlias

from fastagi_pool.launching import Answer, Launch, Launched, NotLaunched, Over, ProcessSettings
from fastagi_pool.looping import Loop
from fastagi_pool.spawning import Program, Spawner, SpawnError, Streams, environment, failure

#: Nobody can know how the process ended.
UNKNOWN_STATUS: Final = -1
#: Longest reason that is told: in JSON a character may take twelve bytes, and a message holds 200,000.
_REASON_CHARACTERS: Final = 10_000
_TOO_LATE: Final = "the call ended before its script was started"

#: Hears what becomes of a script; our ends of its pipes come with ``Launched``, and are the hearer's then.
Tell: TypeAlias = Callable[[Answer, Streams | None], None]


class Phase(Enum):
    """Where in its life a script is."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    OVER = "over"


@dataclass(slots=True, eq=False)
class Script:
    """The script of one call, or one that waits for its call.

    Attributes:
        launch: What was asked for.
        settings: How it is run.
        ticket: By which it is known here.
        tell: Who wants to know of it; None for nobody any more.
        phase: Where in its life it is.
        streams: Its pipes, until they are given away.
        pid: Its process, which leads a process group; 0 before there is one.
        pidfd: By which its end is noticed.
        program: What is executed, until that has succeeded.
        report_fd: By which is told whether it was executed; -1 before, and once that is known.
        kill_at_s: When it is killed; None while it may run on.
        buried_by: Whom to ask for its burial if it is not our own child.
        gone: Called when nothing is left of it.
        retried: Whether a zygote has died before it could be asked for it.
    """

    launch: Launch
    settings: ProcessSettings
    ticket: int
    tell: Tell | None
    phase: Phase = Phase.WAITING
    streams: Streams | None = None
    pid: int = 0
    pidfd: int = -1
    program: Program | None = None
    report_fd: int = -1
    kill_at_s: float | None = None
    buried_by: Callable[[], None] | None = None
    gone: Callable[[], None] | None = None
    retried: bool = False

    def __str__(self) -> str:
        return f"call={self.launch.call or '-'} script={self.launch.file} pid={self.pid}"

    def drop_streams(self) -> None:
        """Close its pipes, as far as they are still ours."""
        if self.streams is not None:
            self.streams.close()
            self.streams = None


class Processes:
    """All scripts.

    Attributes:
        scripts: Those that are not gone, by their tickets.
        tickets: Where new ones come from.
    """

    def __init__(self, loop: Loop, spawner: Spawner, log: logging.Logger) -> None:
        """Start with none.

        Args:
            loop: Tells when something happens to a process.
            spawner: Makes processes.
            log: Where to say who was killed.
        """
        self.scripts: dict[int, Script] = {}
        self.tickets = itertools.count(1)
        self._loop = loop
        self._spawner = spawner
        self._log = log
        #: Scripts that have a process, by its number.
        self._by_pid: dict[int, Script] = {}
        #: Process groups whose leader was ended and is over, and when they are killed. Their numbers cannot
        #: come to mean other groups: numbers are given in turn, and we look every second.
        self._remains: dict[int, float] = {}

    @property
    def left(self) -> bool:
        """Whether anything is left that must be waited for."""
        return bool(self.scripts or self._remains)

    def add(self, launch: Launch, tell: Tell, ticket: int | None = None) -> Script:
        """Take note of a script that is wanted.

        Args:
            launch: Which one, and how.
            tell: Who wants to know of it.
            ticket: Its ticket if it has one already.
        """
        known_as = next(self.tickets) if ticket is None else ticket
        script = Script(launch, ProcessSettings(**launch.settings), known_as, tell)
        self.scripts[known_as] = script
        return script

    def knows(self, pid: int) -> bool:
        """Tell whether this is a script's process."""
        return pid in self._by_pid

    def tick(self) -> None:
        """Forget the process groups that are gone; to be called every second."""
        self._remains = {pgid: at_s for pgid, at_s in self._remains.items() if _group_lives(pgid)}

    # --- how a script starts

    def spawn(self, script: Script) -> None:
        """Make a process for it."""
        launch, settings = script.launch, script.settings
        try:
            words = [*settings.interpreter, launch.file, *launch.arguments]
            variables = environment(settings, launch.variables)
            script.program = Program(launch.file, words, variables, settings)
            script.streams = Streams()
            birth = self._spawner.spawn(script.program, script.streams.theirs)
        except (SpawnError, OSError) as error:
            self.not_launched(script, no_process(launch.file, error))
            return
        script.streams.close_theirs()
        script.report_fd = birth.report_fd
        self.born(script, birth.pid, birth.pidfd)
        self._loop.watch(script.report_fd, partial(self._hear_report, script))

    def born(self, script: Script, pid: int, pidfd: int) -> None:
        """It has a process.

        Args:
            script: Which one.
            pid: The process, which leads a process group.
            pidfd: Refers to it; closed here when it has ended.
        """
        script.phase = Phase.STARTING
        script.pid, script.pidfd = pid, pidfd
        self._by_pid[pid] = script
        self._loop.watch(script.pidfd, partial(self._hear_end, script))

    def _hear_report(self, script: Script) -> None:
        """It was executed, or could not be."""
        self._loop.forget(script.report_fd)
        program, script.program = script.program, None
        assert program is not None
        why = failure(program, script.report_fd)
        script.report_fd = -1
        if why:
            self.not_launched(script, why)
        else:
            self.launched(script)

    def take_over(self, script: Script, other: Script) -> None:
        """Let a script be the process that another one is, of which nothing else is left."""
        script.phase, script.pid, script.pidfd = other.phase, other.pid, other.pidfd
        self._by_pid[script.pid] = script
        self._loop.watch(script.pidfd, partial(self._hear_end, script))
        del self.scripts[other.ticket]

    def launched(self, script: Script) -> None:
        """It runs."""
        script.phase = Phase.RUNNING
        if script.kill_at_s is not None:
            self._kill(script)
            self.not_launched(script, _TOO_LATE)
        elif script.tell is not None:
            streams, script.streams = script.streams, None
            script.tell(Launched(script.launch.call, script.pid), streams)

    def not_launched(self, script: Script, reason: str) -> None:
        """It cannot run, or need not any more; its process, if it has one, ends unnoticed."""
        script.drop_streams()
        tell, script.tell = script.tell, None
        if tell is not None:
            tell(NotLaunched(script.launch.call, reason[:_REASON_CHARACTERS]), None)
        if not script.pid:
            self._forget(script)

    # --- how a script ends

    def hang_up(self, script: Script) -> None:
        """Send SIGHUP to it, if it runs."""
        if script.phase is Phase.RUNNING:
            self._signal(script, signal.SIGHUP)

    def end(self, script: Script, grace_s: float) -> None:
        """Send SIGHUP to it now, and SIGKILL to its process group after a while.

        Args:
            script: One that waits never starts; one that is just being started is killed at once.
            grace_s: How long that while is; 0 to kill it at once.
        """
        if script.phase is Phase.WAITING:
            self.not_launched(script, _TOO_LATE)
        if script.phase in (Phase.WAITING, Phase.OVER):
            return
        kill_at_s = time.monotonic() + grace_s
        first = script.kill_at_s is None
        script.kill_at_s = kill_at_s if script.kill_at_s is None else min(kill_at_s, script.kill_at_s)
        if grace_s <= 0 or script.phase is Phase.STARTING:
            self._kill(script)
            return
        if first:
            self._signal(script, signal.SIGHUP)
        self._loop.at(script.kill_at_s, partial(self._kill_overdue, script))

    def _kill_overdue(self, script: Script) -> None:
        """Its grace is over, or that of what it has left behind."""
        if script.phase is not Phase.OVER:
            self._log.warning("%s did not end in its grace: killed", script)
            self._kill(script)
        elif self._remains.pop(script.pid, None) is not None and _kill_group(script.pid):
            self._log.warning("%s left processes that did not end in its grace: killed", script)

    def _kill(self, script: Script) -> None:
        if script.pid:
            _kill_group(script.pid)
            # It may have made another group for itself.
            self._signal(script, signal.SIGKILL)

    def _signal(self, script: Script, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(script.pidfd, number)
        except ProcessLookupError:
            # It has ended, and we are about to hear of it.
            pass
        except PermissionError:
            # It has become another user, by sudo for example: nobody but its own end can end it.
            self._log.warning("%s runs as another user, and cannot be sent signal %d", script, number)

    def _hear_end(self, script: Script) -> None:
        self._close_eyes(script)
        self._bury(script)

    def _close_eyes(self, script: Script) -> None:
        """Its process has ended; it is not buried yet, so its number is still its own."""
        if script.report_fd >= 0:
            self._hear_report(script)
        self._loop.forget(script.pidfd)
        os.close(script.pidfd)
        script.pidfd = -1
        script.phase = Phase.OVER
        if not script.settings.background:
            _kill_group(script.pid)
        elif script.kill_at_s is not None:
            self._remains[script.pid] = script.kill_at_s

    def _bury(self, script: Script) -> None:
        if script.buried_by is not None:
            script.buried_by()
        else:
            self.over(script, _status(script.pid))

    def disown(self, script: Script) -> None:
        """Whoever was to bury it is gone: it is our own child now."""
        script.buried_by = None
        if script.phase is Phase.OVER:
            self._bury(script)

    def over(self, script: Script, status: int) -> None:
        """It is buried: nothing is left of it.

        Args:
            script: Which one.
            status: As ``waitpid`` gives it, or :data:`UNKNOWN_STATUS`.
        """
        self._by_pid.pop(script.pid, None)
        script.drop_streams()
        tell, script.tell = script.tell, None
        if tell is not None:
            tell(Over(script.launch.call, status), None)
        self._forget(script)

    def _forget(self, script: Script) -> None:
        self.scripts.pop(script.ticket, None)
        gone, script.gone = script.gone, None
        if gone is not None:
            gone()

    def bury_the_dead(self, ask: Callable[[int], bool]) -> None:
        """Bury all children that have ended.

        Args:
            ask: Told of each that is no script's; says whether it has buried it itself. It may also learn
                meanwhile that it is a script's.
        """
        while (found := _some_dead()) is not None:
            if found not in self._by_pid and ask(found):
                continue
            script = self._by_pid.get(found)
            if script is not None and script.phase is not Phase.OVER:
                self._close_eyes(script)
            status = _status(found)
            if script is not None:
                self.over(script, status)


def no_process(file: str, error: SpawnError | OSError) -> str:
    """Say why a process could not be made."""
    if isinstance(error, SpawnError):
        return str(error)
    return f"the machine has nothing left to start {file} with: {error.strerror}"


def _status(pid: int) -> int:
    """Bury a process that has ended."""
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return UNKNOWN_STATUS


def _some_dead() -> int | None:
    """Find a child that waits to be buried."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found is not None else None


def _group_lives(pgid: int) -> bool:
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # All of it runs as other users.
        pass
    return True


def _kill_group(pgid: int) -> bool:
    """Kill a process group; return whether there was anybody in it whom we may kill."""
    try:
        os.killpg(pgid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True
