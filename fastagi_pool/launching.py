"""Launching: what workers say to the launcher, which starts legacy scripts for them, and where they meet.

Laws:
    * A call is known on its worker's channel by its reference, from :class:`Launch` to the one answer
      that ends it: :class:`NotLaunched`, or :class:`Launched` and later :class:`Over`.
    * The launcher alone signals a script: it alone knows that the process has not been buried yet.
    * Both ends of the door stay open in the loader, so a launcher that died is replaced without any
      worker knowing: what was said meanwhile waits for the new one.
    * Nobody waits at the door: whoever finds it full, because no launcher reads, is told at once.

How it works: each worker makes a channel of its own and hands one end in by the :class:`Door`, which all
workers of a generation inherit. The launcher ends when nobody can knock any more, nobody's channel is open
and no script is left.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from fastagi_pool import channel
from fastagi_pool.respawn import interpreter_words

#: The descriptor on which a launcher finds its end of the door.
DOOR_FD: Final = 3


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """How the processes of one route are run. JSON's types only: it travels.

    Attributes:
        interpreter: What stands before the script's path on the command line; empty to execute the script
            itself, as Asterisk does.
        precompile: ``perl`` or ``python``: a process in which the script is compiled, or its imports are
            loaded, forks for each call. Empty: each call is spawned.
        directory: Working directory.
        user: Whom it runs as; empty for the server's own user.
        environment: Variables that every call gets.
        cpu_s: Processor time of one process; 0 for no limit.
        memory_bytes: Address space of one process; 0 for no limit.
        background: Whether processes that a script leaves behind, when it ends of itself, live on.
        warm: How many are started in advance and wait for their call.
        compile_timeout_s: How long compiling, or importing, may take.
    """

    interpreter: list[str] = field(default_factory=list)
    precompile: str = ""
    directory: str = "/"
    user: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    cpu_s: float = 0.0
    memory_bytes: int = 0
    background: bool = True
    warm: int = 0
    compile_timeout_s: float = 30.0


# --- at the door


@dataclass(frozen=True, slots=True)
class Knock:
    """A new worker; beside it comes the launcher's end of its channel."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """This script will be called: compile it, or keep some of it warm, before the first call.

    Attributes:
        file: The script's path.
        arguments: The arguments of every call, if ``warm``.
        settings: The fields of its :class:`ProcessSettings`.
    """

    file: str
    arguments: list[str]
    settings: dict[str, Any]


# --- from a worker


@dataclass(frozen=True, slots=True)
class Launch:
    """Start a script.

    Attributes:
        call: The call's reference.
        file: The script's path.
        arguments: Behind the path on its command line.
        variables: Environment variables of this call, besides those of the settings.
        settings: The fields of its :class:`ProcessSettings`.
    """

    call: str
    file: str
    arguments: list[str]
    variables: dict[str, str]
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class End:
    """End a script: SIGHUP to it now, SIGKILL to its whole process group after a while.

    A script that has not been launched yet never will be. A second one for the same call changes only when
    SIGKILL comes, and only to an earlier moment.

    Attributes:
        call: The call's reference.
        grace_s: How long it may go on; 0 for not at all.
    """

    call: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class HangUp:
    """Send SIGHUP to the script, as Asterisk does when it has closed its standard output; nothing else."""

    call: str


# --- from the launcher


@dataclass(frozen=True, slots=True)
class Launched:
    """It runs; beside it come our ends of its standard input, output and error.

    Attributes:
        call: The call's reference.
        pid: Its process, which leads a process group of its own.
    """

    call: str
    pid: int


@dataclass(frozen=True, slots=True)
class NotLaunched:
    """It could not be started, and left no trace.

    Attributes:
        call: The call's reference.
        reason: Why, in one or more lines: what the system, or the compiler, says.
    """

    call: str
    reason: str


@dataclass(frozen=True, slots=True)
class Over:
    """The script's process has ended.

    Attributes:
        call: The call's reference.
        status: As ``waitpid`` gives it; -1 if nobody can know.
    """

    call: str
    status: int


DoorMessage: TypeAlias = Knock | Prepare
Order: TypeAlias = Launch | End | HangUp
Answer: TypeAlias = Launched | NotLaunched | Over


class DoorChannel(channel.Channel[DoorMessage]):
    """One end of the door."""

    KINDS: Mapping[str, type[DoorMessage]] = {kind.__name__: kind for kind in (Knock, Prepare)}


class LauncherChannel(channel.Channel[Order | Answer]):
    """One end of what a worker and the launcher say to each other."""

    KINDS: Mapping[str, type[Order | Answer]] = {
        kind.__name__: kind for kind in (Launch, End, HangUp, Launched, NotLaunched, Over)
    }


class Door:
    """Where workers find the launcher; made in the loader, before it forks them."""

    def __init__(self) -> None:
        self._near, self._far = DoorChannel.pair()
        self._near.never_wait()

    def start(
        self,
        log_file: str,
        log_level: str,
        generation: int,
        log_format: str = "text",
        log_facility: str = "daemon",
    ) -> int:
        """Start a launcher: the first one, or one in the place of one that died.

        Args:
            log_file: Where it logs: a path, ``syslog``, or ``-`` for standard error.
            log_level: As in the configuration.
            generation: Which load it belongs to; for its title and the log.
            log_format: ``text`` or ``json``.
            log_facility: Of what goes to syslog.

        Returns:
            Its process id.

        Raises:
            OSError: The machine has no process for it.
        """
        said = (log_file, log_level, str(generation), log_format, log_facility)
        return os.posix_spawn(
            sys.executable,
            [*interpreter_words("fastagi_pool.launcher"), *said],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, self._far.fileno(), DOOR_FD)],
            setsigdef=set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP},
            # Until it listens: a signal that comes meanwhile must not end it.
            setsigmask=signal.valid_signals(),
        )

    def prepare(self, file: str, arguments: list[str], settings: dict[str, Any]) -> bool:
        """Have a script compiled or warmed before its first call.

        Returns:
            False if that was not said: no launcher has read for long, and the door is full. A script is
            then compiled for its first call; none is kept warm.
        """
        try:
            return self._near.send(Prepare(file, arguments, settings))
        except BlockingIOError:
            return False

    def knock(self) -> LauncherChannel:
        """Open a channel of this process's own to whoever is the launcher.

        Raises:
            OSError: The door is full, since no launcher has read for long; or there is no descriptor left.
        """
        ours, theirs = LauncherChannel.pair()
        try:
            self._near.send(Knock(), [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours

    def leave_the_far_end(self) -> None:
        """In a worker: let go of what only the loader may hold open."""
        self._far.close()

    def close(self) -> None:
        """Let go of it: a launcher without workers ends."""
        self._near.close()
        self._far.close()
