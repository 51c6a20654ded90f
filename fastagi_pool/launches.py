"""Launches: a worker's side of the launcher: who runs, their pipes, and how each of them ended.

Laws:
    * Every start is paid back: ``on_over`` is called exactly once, when nothing of it runs any more.
    * Every descriptor that comes from the launcher is closed here, whatever happens.
    * While the launcher lives, it alone signals a script. If it died, we do: a script that nobody can end
      any more must not outlive it.
    * Nothing here waits in gevent's hub: what is said goes into an outbox, what is heard wakes greenlets.
    * What scripts leave running does not use up our descriptors: of their standard errors only
      :data:`MOST_LINGERING` are listened to, and beyond that the one that has been longest is closed.

How it works: one channel to the launcher, opened at the first start and again at the first start after the
launcher died; what comes on it is read in the hub. A greenlet that waits for its script waits for news of any
kind: a pipe that is ready, the launcher's answer, the end.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import Enum
from json import dumps
from pathlib import Path
from typing import Any, Final

import gevent
from gevent.event import Event

from fastagi_pool.channel import MAX_MESSAGE_BYTES
from fastagi_pool.errors import ScriptFailed
from fastagi_pool.launching import (
    Answer,
    End,
    HangUp,
    Launch,
    Launched,
    LauncherChannel,
    NotLaunched,
    Order,
    Over,
)

#: What ``waitpid`` never gives: nobody knows how it ended.
UNKNOWN_STATUS: Final = -1
#: How many standard errors of scripts that have ended are listened to, because somebody still has them.
MOST_LINGERING: Final = 256
#: What a pipe of Linux holds. Source: pipe(7).
_PIPE_BYTES: Final = 65536
_READ: Final = 1
_WRITE: Final = 2
#: A character is never longer in JSON: ``\ud83d\ude00``.
_JSON_CHARACTER_BYTES: Final = 12
#: Of a compiler's message, for the log and the dialplan.
_REASON_LINES: Final = 5
_PIPES: Final = 3
#: Which word behind the state is the size of a process's memory. Source: proc(5), field 23.
_MEMORY: Final = 19
_CLOSED: Final = -1


class Activity(Enum):
    """What a process is doing, as the kernel sees it."""

    ENDED = "it runs no more, though nobody may have told us how it ended"
    BUSY = "it computes, waits for a processor, or is stopped"
    IDLE = "it waits for something"


class Running:
    """One script, from the order to launch it until its end.

    Attributes:
        ref: The call's reference.
        pid: Its process, which leads a process group; 0 before it is launched.
        status: How it ended, as ``waitpid`` gives it; -1 if nobody knows; None while it runs.
        reason: Why it was not launched, or why nobody knows how it ended; else empty.
    """

    def __init__(
        self,
        ref: str,
        say: Callable[[Order], None],
        on_over: Callable[[], None],
        lingering: dict[_Errors, None],
    ) -> None:
        """Begin with an order that has not been answered (only ``Launches`` makes one).

        Args:
            ref: The call's reference.
            say: Tells the launcher.
            on_over: See ``Launches.start``.
            lingering: All standard errors that are listened to beyond their scripts' ends, in their order.
        """
        self.ref = ref
        self.pid = 0
        self.status: int | None = None
        self.reason = ""
        self._say = say
        self._on_over = on_over
        self._lingering = lingering
        self._hub: Any = gevent.get_hub()
        self._news = Event()
        self._given_up = False
        self._unread = _PIPE_BYTES
        self._stdin = self._stdout = self._stderr = _CLOSED
        self._watchers: dict[int, Any] = {}
        self._errors: _Errors | None = None

    @property
    def is_over(self) -> bool:
        """Whether its process has ended, or never began."""
        return self.status is not None

    def activity(self) -> Activity:
        """Ask the kernel, who knows of an end before the launcher can have told us.

        Source: proc(5), ``/proc/pid/stat``.
        """
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return Activity.ENDED
        except OSError:
            return Activity.BUSY  # No descriptor is left to look with: nobody knows.
        # Behind the name, which may hold anything.
        state, *fields = stat.rpartition(b")")[2].split()
        # Whoever is ending has given its memory back before its descriptors are closed.
        if state in b"ZXx" or fields[_MEMORY] == b"0":
            return Activity.ENDED
        return Activity.IDLE if state in b"SD" else Activity.BUSY

    def read(self) -> bytes:
        """Wait for something on its standard output.

        Returns:
            What came; nothing if it will say no more: it closed its output, or it ended and all was read.
            What processes that it left behind might say is not waited for.
        """
        while True:
            # Asked before reading: what a process has said is in the pipe before it can have ended.
            was_over = self.is_over
            try:
                data = os.read(self._stdout, self._unread)
            except BlockingIOError:
                if was_over:
                    return b""
                self._await_news(self._stdout, _READ)
            else:
                if was_over:
                    # More than the pipe holds comes from those whom it left behind.
                    self._unread -= len(data)
                return data

    def write(self, data: bytes) -> None:
        """Write to its standard input; wait while it does not read.

        A script that has closed its input, or ended, gets nothing, and that is no error: it does not want it.
        """
        while data:
            try:
                data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                if self.is_over:
                    return
                self._await_news(self._stdin, _WRITE)
            except BrokenPipeError:
                return

    def read_errors(self, take: Callable[[bytes], None], linger: bool) -> None:
        """Have all of its standard error handed over as it comes, in gevent's hub, beyond ``close`` too.

        Args:
            take: Called with each piece, and at last with nothing; must not wait.
            linger: Whether processes that it leaves behind are listened to after its end, as far as
                :data:`MOST_LINGERING` allows.
        """
        self._errors = _Errors(self._stderr, take, self._lingering if linger else None)
        self._stderr = _CLOSED
        if self.is_over:
            self._errors.drain()

    def end(self, grace_s: float) -> None:
        """Have it ended: SIGHUP now, SIGKILL to its process group after the grace (hub or greenlet).

        Args:
            grace_s: How long it may go on; 0 for not at all.
        """
        if not self.is_over:
            self._say(End(self.ref, grace_s))

    def hang_up(self) -> None:
        """Have SIGHUP sent to it, and nothing else (hub or greenlet)."""
        if not self.is_over:
            self._say(HangUp(self.ref))

    def wait_over(self, timeout_s: float | None = None) -> bool:
        """Wait for its end.

        Args:
            timeout_s: How long; None for as long as it takes.

        Returns:
            Whether it has ended.
        """
        with gevent.Timeout(timeout_s, False):
            while not self.is_over:
                self._await_news()
        return self.is_over

    def close(self) -> None:
        """Let go of its pipes; its standard error is read on by whom it was handed to."""
        for watcher in self._watchers.values():
            watcher.close()
        self._watchers.clear()
        self._stdin = _closed(self._stdin)
        self._stdout = _closed(self._stdout)
        self._stderr = _closed(self._stderr)

    # --- for Launches

    def wait_launched(self) -> None:
        """Wait until it runs.

        Raises:
            ScriptFailed: It never will.
        """
        while not (self.pid or self.is_over):
            self._await_news()
        if self.reason:
            raise ScriptFailed(self.reason)

    def give_up(self) -> None:
        """Want nothing more of it: whatever comes is closed, and its end is awaited by nobody."""
        self._given_up = True
        self.close()
        self.end(0)

    def has_begun(self, pid: int, descriptors: list[int]) -> None:
        """Hear from the launcher that it runs (hub).

        Args:
            pid: Its process.
            descriptors: Our ends of its standard input, output and error; fewer if we may open no more.
        """
        self.pid = pid
        self._news.set()
        for descriptor in descriptors:
            os.set_blocking(descriptor, False)
        if len(descriptors) == _PIPES and not self._given_up:
            self._stdin, self._stdout, self._stderr = descriptors
            return
        for descriptor in descriptors:
            os.close(descriptor)
        if not self._given_up:
            self.reason = "too many open files: this worker cannot open its pipes"

    def has_ended(self, status: int, reason: str = "") -> None:
        """Hear that it has ended, or will never begin (hub)."""
        self.status, self.reason = status, self.reason or reason
        if self._errors is not None:
            self._errors.drain()
        self._news.set()
        self._on_over()

    def kill(self) -> None:
        """Kill its process group, in the place of a launcher that died."""
        try:
            if self.pid:
                os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # Gone already; or another user's, which dies with the launcher by itself.

    def _await_news(self, descriptor: int = _CLOSED, events: int = 0) -> None:
        self._news.clear()
        if descriptor == _CLOSED:
            self._news.wait()
            return
        watcher = self._watchers.get(descriptor)
        if watcher is None:
            watcher = self._watchers[descriptor] = self._hub.loop.io(descriptor, events)
        watcher.start(self._news.set)
        try:
            self._news.wait()
        finally:
            watcher.stop()


class _Errors:
    """Reads a script's standard error in the hub until its end, and closes it."""

    def __init__(
        self, descriptor: int, take: Callable[[bytes], None], lingering: dict[_Errors, None] | None
    ) -> None:
        self._descriptor = descriptor
        self._take = take
        self._lingering = lingering
        hub: Any = gevent.get_hub()
        self._watcher = hub.loop.io(descriptor, _READ)
        self._watcher.start(self._read)

    def drain(self) -> None:
        """Read what is there now, after the script's end; then close, unless we linger."""
        # Once gives all that a pipe holds: more comes from those whom it left behind.
        self._read()
        if self._lingering is None:
            self.close()
        elif self._descriptor != _CLOSED:
            self._lingering[self] = None
            if len(self._lingering) > MOST_LINGERING:
                next(iter(self._lingering)).close()

    def _read(self) -> None:
        if self._descriptor == _CLOSED:
            return
        try:
            data = os.read(self._descriptor, _PIPE_BYTES)
        except BlockingIOError:
            return
        if data:
            self._take(data)
        else:
            self.close()

    def close(self) -> None:
        """Read no more, and say so."""
        if self._descriptor != _CLOSED:
            self._watcher.stop()
            self._watcher.close()
            self._descriptor = _closed(self._descriptor)
            if self._lingering is not None:
                self._lingering.pop(self, None)
            self._take(b"")


class Launches:
    """What a worker asks of the launcher, and what it has running; one in each worker."""

    def __init__(self, knock: Callable[[], LauncherChannel], log: logging.Logger) -> None:
        """Prepare; the channel is opened when it is needed.

        Args:
            knock: Opens a channel to whoever is the launcher.
            log: Where it is said that the launcher died.
        """
        self._knock = knock
        self._log = log
        self._hub: Any = gevent.get_hub()
        self._channel: LauncherChannel | None = None
        self._reader: Any = None
        self._writer: Any = None
        self._outbox: deque[Order] = deque()
        self._running: dict[str, Running] = {}
        self._lingering: dict[_Errors, None] = {}

    @property
    def count(self) -> int:
        """How many scripts run or are being launched."""
        return len(self._running)

    def start(
        self,
        ref: str,
        file: str,
        arguments: list[str],
        variables: Mapping[str, str],
        settings: Mapping[str, Any],
        on_over: Callable[[], None],
    ) -> Running:
        """Start a script, and wait until it runs.

        Whoever is interrupted while it waits need do nothing more: the script is ended.

        Args:
            ref: The call's reference; no other call of this worker has it.
            file: The script's path.
            arguments: Behind the path on its command line.
            variables: Environment variables of this call.
            settings: The fields of its ``launching.ProcessSettings``.
            on_over: Called once, in gevent's hub as a rule, when nothing of it runs any more: it has ended,
                or was not launched at all. Called before an exception is raised here, or after it. Must not
                wait.

        Raises:
            ScriptFailed: It could not be started; the message says why, as far as the launcher knows.
        """
        running = Running(ref, self._say, on_over, self._lingering)
        order = Launch(ref, file, arguments, dict(variables), dict(settings))
        try:
            _refuse_what_is_too_long(order)
            if self._channel is None:
                self._open()
        except BaseException as error:
            running.has_ended(UNKNOWN_STATUS, str(error))
            raise
        self._running[ref] = running
        self._say(order)
        try:
            running.wait_launched()
        except BaseException:
            running.give_up()
            raise
        return running

    def close(self) -> None:
        """Let go of the launcher, which then ends what we have running."""
        self._lose("the worker has let go of the launcher")
        for errors in list(self._lingering):
            errors.close()

    # --- what we say

    def _open(self) -> None:
        try:
            channel = self._knock()
            channel.never_wait()
        except OSError as error:
            raise ScriptFailed(f"cannot reach the launcher of scripts: {error}") from error
        if self._channel is not None:
            # Knocking may have to wait, and another call has been quicker.
            channel.close()
            return
        self._channel = channel
        self._reader = self._hub.loop.io(channel.fileno(), _READ)
        self._writer = self._hub.loop.io(channel.fileno(), _WRITE)
        self._reader.start(self._hear)

    def _say(self, order: Order) -> None:
        if self._channel is not None:
            self._outbox.append(order)
            self._empty_outbox()

    def _empty_outbox(self) -> None:
        while self._channel is not None and self._outbox:
            try:
                self._channel.send(self._outbox[0])
            except BlockingIOError:
                if not self._writer.active:
                    self._writer.start(self._empty_outbox)
                return
            except OSError as error:
                self._cannot_say(self._outbox[0], error)
            self._outbox.popleft()
        if self._writer is not None:
            self._writer.stop()

    def _cannot_say(self, order: Order, error: OSError) -> None:
        self._log.error("call=%s cannot tell the launcher of scripts: %s", order.call, error)
        if isinstance(order, Launch):
            self._finish(order.call, UNKNOWN_STATUS, f"cannot tell the launcher of scripts: {error}")

    # --- what we hear

    def _hear(self) -> None:
        if self._channel is None:
            return
        for received in self._channel.receive_all():
            if received is None:
                self._launcher_is_gone()
                return
            message, descriptors = received
            if isinstance(message, Launched | NotLaunched | Over):
                self._take(message, descriptors)

    def _take(self, answer: Answer, descriptors: list[int]) -> None:
        if isinstance(answer, Launched):
            self._running[answer.call].has_begun(answer.pid, descriptors)
        elif isinstance(answer, NotLaunched):
            first = answer.reason.strip().splitlines()[:_REASON_LINES]
            self._finish(answer.call, UNKNOWN_STATUS, "\n".join(first) or "the launcher says no reason")
        else:
            self._finish(answer.call, answer.status)

    def _finish(self, ref: str, status: int, reason: str = "") -> None:
        running = self._running.pop(ref, None)
        if running is not None:
            running.has_ended(status, reason)

    def _launcher_is_gone(self) -> None:
        running = list(self._running.values())
        self._log.error("the launcher of scripts is gone: %d scripts are killed", len(running))
        for each in running:
            each.kill()
        self._lose("the launcher is gone")

    def _lose(self, reason: str) -> None:
        if self._channel is not None:
            for watcher in (self._reader, self._writer):
                watcher.stop()
                watcher.close()
            self._channel.close()
            self._channel = None
        self._outbox.clear()
        for ref in list(self._running):
            self._finish(ref, UNKNOWN_STATUS, reason)


def _refuse_what_is_too_long(order: Launch) -> None:
    """Raise ScriptFailed for an order that fits into no message."""
    words = (order.file, *order.arguments, *order.variables, *order.variables.values())
    if sum(map(len, words)) * _JSON_CHARACTER_BYTES < MAX_MESSAGE_BYTES // 2:
        return
    length = len(dumps(asdict(order)))
    if length > MAX_MESSAGE_BYTES:
        raise ScriptFailed(
            f"its arguments and variables are too long: {length} bytes as JSON, {MAX_MESSAGE_BYTES} at most"
        )


def _closed(descriptor: int) -> int:
    if descriptor != _CLOSED:
        os.close(descriptor)
    return _CLOSED
