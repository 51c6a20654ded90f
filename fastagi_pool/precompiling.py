"""Precompiling: the processes in which scripts are compiled once, as the launcher sees them.

Laws:
    * A zygote runs under its script's own interpreter, with the switches that its ``#!`` line asks for.
    * What is said to it never waits: what it has not read yet is kept here.
    * Its answers come in the order of the requests.
    * What it writes to its standard error is the compiler's message until it is ready, and a warning after.

The other side is ``precompile/FastAGIPool/Zygote.pm`` for Perl, ``precompile/python_zygote.py`` for Python.

A first line as ``#!/usr/bin/env perl`` names ``perl``, to be looked for in PATH; what is meant for ``env``
itself, before that word, is dropped.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import dropwhile
from pathlib import Path, PurePath
from typing import Final, TypeAlias

from fastagi_pool.channel import MAX_MESSAGE_BYTES
from fastagi_pool.launching import ProcessSettings
from fastagi_pool.nursery import Recipe
from fastagi_pool.spawning import (
    Birth,
    Program,
    Spawner,
    SpawnError,
    Streams,
    environment,
    failure,
    first_line,
)

#: Where a zygote finds the number of its end of the conversation.
SOCKET_VARIABLE: Final = "FASTAGI_POOL_ZYGOTE"
#: Most that is kept of a compiler's message, and most of a line that has no end.
_MESSAGE_BYTES: Final = 65_536
_LINE_BYTES: Final = 8_192
_FOLDER: Final = Path(__file__).parent / "precompile"
#: Perl's switches that take the rest of their word as an argument: no ``T`` in there is the switch.
_PERL_WITH_ARGUMENT: Final = frozenset("0CDFIMdeimlx")


# --- what a zygote says


@dataclass(frozen=True, slots=True)
class Ready:
    """The script is compiled; these files were read."""

    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Born:
    """This call's script has this process."""

    ticket: int
    pid: int


@dataclass(frozen=True, slots=True)
class Unborn:
    """This call's script could not be forked."""

    ticket: int
    reason: str


@dataclass(frozen=True, slots=True)
class Buried:
    """This call's script has ended with this status of ``waitpid``."""

    ticket: int
    status: int


Said: TypeAlias = Ready | Born | Unborn | Buried


class ScriptZygote:
    """A zygote's process, and what is said to it and by it.

    Attributes:
        number: By which the nursery knows it.
        recipe: What it is made of.
        pid: Its process, which leads a process group.
        pidfd: By which its end is noticed.
        error_fd: Its standard error.
        ready: Whether it has compiled its script.
    """

    def __init__(self, number: int, recipe: Recipe, settings: ProcessSettings, spawner: Spawner) -> None:
        """Start it.

        Raises:
            SpawnError: There is no such user or interpreter.
            OSError: No process or descriptor is left.
        """
        self.number = number
        self.recipe = recipe
        self.ready = False
        #: Calls whose answers are still to come.
        self._asked: deque[int] = deque()
        #: When it was asked while no answer was due, or has last answered; by the monotonic clock.
        self._silent_since_s = time.monotonic()
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self._error = b""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._program = _program(recipe.file, settings, theirs.fileno())
                birth, self.error_fd = _start(self._program, spawner)
            except BaseException:
                ours.close()
                raise
        self.pid, self.pidfd, self._report_fd = birth.pid, birth.pidfd, birth.report_fd
        os.set_blocking(self.error_fd, False)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_MESSAGE_BYTES)
        self._socket = ours

    def __str__(self) -> str:
        return f"script={self.recipe.file} zygote={self.pid}"

    def fileno(self) -> int:
        """The conversation's descriptor, to be polled."""
        return self._socket.fileno()

    @property
    def behind(self) -> bool:
        """Whether it has not read all yet."""
        return bool(self._outbox)

    def silent_s(self, now_s: float) -> float:
        """Tell for how many seconds it has let somebody wait for an answer; 0 if nobody waits."""
        return now_s - self._silent_since_s if self._asked else 0.0

    def run(self, ticket: int, arguments: list[str], variables: Mapping[str, str], streams: Streams) -> bool:
        """Ask for a process.

        Args:
            ticket: By which its answer is known.
            arguments: Behind the script's path on the command line.
            variables: Added to its environment.
            streams: Its standard input, output and error; the script's ends are taken out of them.

        Returns:
            False if the zygote is gone, and surely has not forked.

        Raises:
            SpawnError: It cannot be said.
        """
        added = [f"{name}={value}" for name, value in variables.items()]
        data = b"\0".join(map(os.fsencode, ["run", str(len(arguments)), *arguments, *added]))
        if len(data) > MAX_MESSAGE_BYTES or data.count(b"\0") != 1 + len(arguments) + len(added):
            raise SpawnError(f"cannot run {self.recipe.file}: its arguments are too long, or hold a NUL byte")
        theirs, streams.theirs = streams.theirs, []
        if self._say(ticket, data, theirs):
            return True
        self._asked.pop()
        return False

    def reap(self, ticket: int, pid: int) -> None:
        """Ask how a process has ended; to be asked only when it has."""
        self._say(ticket, b"reap\0%d" % pid, [])

    def _say(self, ticket: int, data: bytes, descriptors: list[int]) -> bool:
        if not self._asked:
            self._silent_since_s = time.monotonic()
        self._asked.append(ticket)
        self._outbox.append((data, descriptors))
        return self._flush()

    def _flush(self) -> bool:
        """Say what it has room for; return whether it lives."""
        while self._outbox:
            data, descriptors = self._outbox[0]
            try:
                socket.send_fds(self._socket, [data], descriptors)
            except BlockingIOError:
                return True
            except OSError:
                # It has died; or it must, for it would answer the next request as if it were this one.
                self.kill()
                return False
            self._outbox.popleft()
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def heard(self) -> Iterator[Said | None]:
        """Yield what it has said, without waiting.

        At last comes None if it has closed the conversation, or said something that it cannot mean: nobody
        knows any more which answer is whose, and it must go.
        """
        self._flush()
        while True:
            try:
                data = self._socket.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                yield None
                return
            self._silent_since_s = time.monotonic()
            try:
                said = self._understand(data.split(b"\0"))
            except (ValueError, IndexError):
                self._asked.clear()
                yield None
                return
            yield said

    def _understand(self, words: list[bytes]) -> Said:
        kind, *rest = words
        if kind == b"ready":
            self.ready = True
            return Ready(tuple(map(os.fsdecode, rest)))
        ticket = self._asked.popleft()
        if kind == b"pid":
            pid = int(rest[0])
            if pid <= 1:
                # To signal one of these would be to signal others.
                raise ValueError(f"process {pid}")
            return Born(ticket, pid)
        if kind == b"status":
            return Buried(ticket, int(rest[1]))
        if kind == b"error":
            return Unborn(ticket, os.fsdecode(b" ".join(rest)))
        raise ValueError(f"an answer of the kind {kind!r}")

    def hear_errors(self) -> list[str] | None:
        """Read its standard error, without waiting.

        Returns:
            The whole lines, once it is ready; None at the end.
        """
        try:
            data = os.read(self.error_fd, _MESSAGE_BYTES)
        except BlockingIOError:
            return []
        self._error += data[: _MESSAGE_BYTES - len(self._error)]
        if not data:
            return None
        return self.lines() if self.ready else []

    def lines(self) -> list[str]:
        """Take the whole lines of what it has written to its standard error."""
        *lines, self._error = self._error.split(b"\n")
        if len(self._error) > _LINE_BYTES:
            lines, self._error = [*lines, self._error], b""
        return [os.fsdecode(line) for line in lines]

    def kill(self) -> None:
        """End it: nothing in it is worth a farewell."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            # It has ended already.
            pass

    def bury(self) -> str:
        """Let go of it when it has ended.

        Returns:
            Why it ended, in the compiler's own words if there are any.
        """
        _, status = os.waitpid(self.pid, 0)
        self._socket.close()
        os.close(self.pidfd)
        os.close(self.error_fd)
        for _, descriptors in self._outbox:
            for descriptor in descriptors:
                os.close(descriptor)
        said = os.fsdecode(self._error).strip()
        code = os.waitstatus_to_exitcode(status)
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        return failure(self._program, self._report_fd) or said or f"{self.recipe.file} did not compile: {how}"


def command(file: str, settings: ProcessSettings) -> list[str]:
    """Build the command line of a script's zygote, without the script's arguments.

    Args:
        file: The script's path; its first line may name the interpreter and its switches.
        settings: Which kind of zygote, and the interpreter if the route names one.
    """
    interpreter, switches = _shebang(first_line(file))
    if settings.precompile not in PurePath(interpreter).name:
        # As /bin/sh, which would hand the script on to the right one.
        interpreter, switches = "", []
    if settings.precompile == "perl":
        words = settings.interpreter or [interpreter or "perl"]
        return [*words, *_taint(switches), f"-I{_FOLDER}", "-MFastAGIPool::Zygote", file]
    words = settings.interpreter or [interpreter or "python3"]
    return [*words, *switches, str(_FOLDER / "python_zygote.py"), file]


def _shebang(line: str) -> tuple[str, list[str]]:
    """Split a first line into the interpreter and its switches; the kernel makes one word of these."""
    if not line.startswith("#!"):
        return "", []
    interpreter, _, rest = line.removeprefix("#!").strip().partition(" ")
    if PurePath(interpreter).name == "env":
        words = list(dropwhile(lambda word: word.startswith("-") or "=" in word, rest.split()))
        return (words[0], words[1:]) if words else ("", [])
    return interpreter, [rest.strip()] if rest.strip() else []


def _taint(switches: list[str]) -> list[str]:
    """Find the switch that Perl wants on its command line too; the others it reads in the file itself."""
    for word in " ".join(switches).split():
        for letter in word.removeprefix("-"):
            if letter in "Tt":
                return [f"-{letter}"]
            if letter in _PERL_WITH_ARGUMENT:
                break
    return []


def _program(file: str, settings: ProcessSettings, passed_fd: int) -> Program:
    variables = environment(settings, {SOCKET_VARIABLE: str(passed_fd)})
    # Processor time is counted for each call, in its own process.
    return Program(file, command(file, settings), variables, replace(settings, cpu_s=0.0), passed_fd)


def _start(program: Program, spawner: Spawner) -> tuple[Birth, int]:
    """Start it; return its process and our end of its standard error."""
    reading, writing = os.pipe()
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        birth = spawner.spawn(program, [nothing, nothing, writing])
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
        os.close(nothing)
    return birth, reading
