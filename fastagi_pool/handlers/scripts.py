"""Scripts: legacy AGI scripts, in any language, in the place of handlers.

Laws:
    * Only a regular file below the route's folder is run, whatever the URL says and wherever links lead.
    * A script takes a place until its process has ended, not until its call has: there are never more
      processes than places.
    * A script is ended whatever ends its call; one that has ended well by itself is left alone.
    * The dialplan learns how the script ended: an exit code other than 0, or a signal, is a failure.

How it works: the script's pipes are the far end of ``Call.relay``. What it says on its standard error goes
to the log, line by line. A script that closes its standard output and goes on gives its call back, as under
Asterisk, and its time goes on.

Source: asterisk res/res_agi.c, launch_script() and run_agi().
"""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Final

import gevent

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.errors import CallHangup, ScriptFailed, ScriptNotFound
from fastagi_pool.launches import UNKNOWN_STATUS, Activity, Launches, Running
from fastagi_pool.legacy import (
    CommandLines,
    CommandSettings,
    ErrorLines,
    ending_fault,
    environment_lines,
    variables,
    wants_no_signal,
    with_asterisk_folders,
    without_hangup,
)
from fastagi_pool.places import Places

#: How long a process that has closed its standard output has for its end, before it counts as one that goes
#: on. Interpreters need some milliseconds to tear down; what a dialplan waits here is not heard.
SETTLING_S: Final = 0.2
#: So many times that for one that may be tearing down, but gets no processor to do it on.
_SETTLINGS: Final = 10
#: After so many lines the other calls of the worker have their turn, even if nothing makes a script wait.
_TURNS: Final = 16
#: Files whose fitness is remembered; beyond it the memory begins anew.
_REMEMBERED_FILES: Final = 1024
_CLIMBING: Final = frozenset({".", ".."})


class ScriptHandler:
    """The handler of a route whose calls are served by scripts.

    Attributes:
        settings: How they are found and run; the environment has Asterisk's folders in it.
    """

    def __init__(self, settings: CommandSettings) -> None:
        """Prepare; ``connect`` must follow, in the process that serves the calls.

        Args:
            settings: How scripts are found and run.
        """
        self.settings = replace(settings, process=with_asterisk_folders(settings.process))
        self._process = asdict(self.settings.process)
        self._launches: Launches | None = None
        #: Files that were fit, as they were then: to look along all of a path costs more than a call's words.
        self._fit: dict[str, tuple[int, ...]] = {}
        self._places = Places(settings.most_processes, settings.max_queue, settings.max_wait_s)

    def connect(self, launches: Launches) -> None:
        """Say who starts the scripts; once, before the first call."""
        self._launches = launches

    def __call__(self, call: Call, context: Context) -> None:
        """Serve one call.

        Raises:
            ScriptNotFound: There is no such script, or none that may be run.
            Overloaded: There was no place for it.
            ScriptFailed: It could not be started, or it ended with an exit code or by a signal.
            LimitExceeded: It took more than it may.
            ToldFailure: It said so.
            CallHangup: The caller hung up, however the script ended.
            CallEnded: The call is over otherwise.
        """
        settings, request = self.settings, call.request
        file = settings.path(request.script, call.captures)
        self._refuse_unfit(file)
        running = self._start(call, context, file)
        script = _Script(running, settings, context.log)
        try:
            running.write(environment_lines(request, request.script, settings.arguments))
            call.relay(script)
            script.part(call)
            script.judge(call.hung_up)
        finally:
            running.end(settings.grace_s)
            running.close()

    def _refuse_unfit(self, file: str) -> None:
        try:
            identity = _identity(file)
        except (OSError, ValueError):
            identity = ()
        if identity and self._fit.get(file) == identity:
            return
        refuse_unfit(file, self.settings)
        if len(self._fit) >= _REMEMBERED_FILES:
            self._fit.clear()
        self._fit[file] = identity

    def _start(self, call: Call, context: Context, file: str) -> Running:
        settings, request = self.settings, call.request
        if self._launches is None:
            raise ScriptFailed("nobody starts scripts here: connect() was not called")
        arguments = list(request.arguments if settings.arguments is None else settings.arguments)
        if any("\0" in argument for argument in arguments):
            raise ScriptFailed("an argument holds NUL, and no process can be given that")
        given = variables(request, request.script, settings.arguments)
        # What the route says of a variable holds.
        ours = {name: value for name, value in given.items() if name not in settings.process.environment}
        self._places.take(context.queueing)
        return self._launches.start(call.ref, file, arguments, ours, self._process, self._places.give_back)


class _Script:
    """A script as the far end of a call."""

    def __init__(
        self,
        running: Running,
        settings: CommandSettings,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self._running = running
        self._settings = settings
        self._log = log
        self._commands = CommandLines(settings.output_bytes)
        self._errors = ErrorLines(settings.output_bytes)
        self._hung_up_by_us = False
        self._turns = 0
        running.read_errors(self._on_errors, settings.process.background)

    # --- as call.FarEnd

    def next_line(self) -> bytes:
        self._turns += 1
        if self._turns % _TURNS == 0:
            # Nobody else would have one if it waits for no reply, and its lines are all held back.
            gevent.sleep(0)
        while not (line := self._commands.next_line()):
            data = self._running.read()
            if not data:
                return self._commands.last_line()
            self._commands.feed(data)
        return line

    def answer(self, reply: bytes) -> None:
        self._running.write(without_hangup(reply))

    def on_unasked(self, data: bytes) -> None:
        # To a script of Asterisk's own a hangup is a signal, not a line.
        self._running.end(self._settings.grace_s)

    # --- its end

    def part(self, call: Call) -> None:
        """Wait until its process has ended too; the dialplan need not wait for one that goes on."""
        if self._settles():
            return
        if not call.hung_up and not wants_no_signal(call.get_variable("AGISIGHUP")):
            self._hung_up_by_us = True
            self._running.hang_up()
        call.finish()
        self._running.close()
        self._running.wait_over()

    def _settles(self) -> bool:
        """Whether its process ends with its output, however late we are told on a busy machine."""
        for settled in count(1):
            if self._running.wait_over(SETTLING_S):
                return True
            activity = self._running.activity()
            if activity is Activity.IDLE or (activity is Activity.BUSY and settled >= _SETTLINGS):
                break
        return False

    def judge(self, hung_up: bool) -> None:
        """Raise what its end means."""
        fault = self._fault()
        if hung_up:
            if fault is not None:
                self._log.info("after the caller hung up: %s", fault)
            raise CallHangup("the caller hung up")
        if fault is not None:
            raise fault

    def _fault(self) -> Exception | None:
        status = self._running.status
        if status is None or status == UNKNOWN_STATUS:
            return ScriptFailed(self._running.reason or "nobody knows how it ended")
        fault = ending_fault(os.waitstatus_to_exitcode(status), self._settings.process.cpu_s)
        if fault is None or (self._hung_up_by_us and status == signal.SIGHUP):
            return None
        last = self._errors.last
        return type(fault)(f"{fault}: {last}") if last else fault

    def _on_errors(self, data: bytes) -> None:
        for line in self._errors.feed(data) if data else self._errors.end():
            self._log.info("stderr: %s", line)


def refuse_unfit(file: str, settings: CommandSettings) -> None:
    """Refuse a file that must not or cannot be run.

    Args:
        file: The script's path.
        settings: Of its route: the folder, and whether it must be executable itself.

    Raises:
        ScriptNotFound: With the path and the reason.
    """
    try:
        fault = _fault_of_name(file) or _fault_of_file(file, settings)
    except OSError as error:
        fault = error.strerror or str(error)
    if fault:
        raise ScriptNotFound(f"{file}: {fault}")


def _fault_of_name(file: str) -> str:
    if "\0" in file:
        return "a path must not hold NUL"
    return "a path must not hold '.' or '..'" if _CLIMBING & set(file.split("/")) else ""


def _identity(file: str) -> tuple[int, ...]:
    """Tell a file, as it is now, from any other and from what it was: a change of its name counts too."""
    found = os.stat(file)  # noqa: PTH116 (a Path costs ten times as much, and this is asked for each call)
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _fault_of_file(file: str, settings: CommandSettings) -> str:
    real = os.path.realpath(file, strict=True)
    if not real.startswith(os.path.realpath(settings.folder).rstrip("/") + "/"):
        return f"leads out of {settings.folder}, to {real}"
    if not Path(real).is_file():
        return "is no regular file"
    if not os.access(real, os.R_OK):
        return "is not readable for the server's user"
    process = settings.process
    if not (process.interpreter or process.precompile or os.access(real, os.X_OK)):
        return "is not executable (chmod +x), and the route names no interpreter"
    return ""
