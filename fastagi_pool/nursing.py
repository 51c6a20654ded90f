"""Nursing: carries out what the nursery decides about the zygotes of scripts and about warm processes.

Laws:
    * A call that no process was made for may be given to another zygote; one that may have been made never.
    * A zygote that answers nobody for :data:`ANSWER_S` is killed: the next call gets a new one.
    * A zygote is believed nothing that would have us signal a process that is not its child.
    * Children of a zygote that has died are our own (the launcher is their sub-reaper), and their status is
      still told.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from fastagi_pool.launching import Answer, Launch, Launched, NotLaunched, Prepare, ProcessSettings
from fastagi_pool.looping import Loop
from fastagi_pool.nursery import (
    Action,
    Compile,
    EndWarm,
    EndZygote,
    Failed,
    GiveWarm,
    Goods,
    HandOver,
    Nursery,
    Recipe,
    Refuse,
    Signature,
    Signatures,
    SpawnAfresh,
    StartWarm,
    Stock,
)
from fastagi_pool.precompiling import Born, Buried, Ready, ScriptZygote, Unborn
from fastagi_pool.processes import UNKNOWN_STATUS, Phase, Processes, Script, no_process
from fastagi_pool.spawning import Spawner, SpawnError, Streams, cpu_limit

#: How long a zygote may answer nobody who waits; it is to fork, and to bury, only.
ANSWER_S: Final = 10.0
#: More than a process's state is ever long.
_STAT_BYTES: Final = 4096
#: A call that fails because its zygote has died is told so.
_DIED: Final = "the process in which it was compiled has died; the next call gets a new one"


class Nurse:
    """The zygotes and the warm processes."""

    def __init__(self, processes: Processes, loop: Loop, spawner: Spawner, log: logging.Logger) -> None:
        """Start with none.

        Args:
            processes: All scripts.
            loop: Tells when something happens to a zygote.
            spawner: Makes processes.
            log: Where to say what became of them.
        """
        self._processes = processes
        self._loop = loop
        self._spawner = spawner
        self._log = log
        self._nursery = Nursery()
        self._stock = Stock(processes.tickets)
        self._zygotes: dict[int, ScriptZygote] = {}
        #: Whether each of them is watched for room to write to it.
        self._behind: dict[int, bool] = {}
        #: The scripts that each of them has forked, or was asked to.
        self._children: dict[int, set[Script]] = {}
        #: Our ends of the pipes of the warm processes that wait.
        self._kept: dict[int, Streams] = {}
        self._ways: dict[type[Any], Callable[[Any], None]] = {
            Compile: self._compile,
            HandOver: self._hand_over,
            Refuse: self._refuse,
            Failed: self._note_failure,
            EndZygote: self._end_zygote,
            StartWarm: self._start_warm,
            GiveWarm: self._give_warm,
            SpawnAfresh: self._spawn_afresh,
            EndWarm: self._end_warm,
        }

    @property
    def left(self) -> bool:
        """Whether a zygote is left."""
        return bool(self._zygotes)

    def launch(self, script: Script) -> None:
        """Get a process for a script."""
        if script.settings.precompile:
            self._ask(script.launch, script)
        else:
            goods, now_s = _goods(script.launch), time.monotonic()
            self._do(self._stock.asked(goods, script.ticket, _look(goods.file), now_s))

    def prepare(self, message: Prepare) -> None:
        """Compile a script, or keep some of it warm, before the first call."""
        launch = Launch("", message.file, message.arguments, {}, message.settings)
        settings = ProcessSettings(**message.settings)
        if settings.precompile:
            self._ask(launch, None)
        elif settings.warm:
            self._do(self._stock.keep(_goods(launch), _look(launch.file), time.monotonic()))

    def next_s(self) -> float:
        """Tell when :meth:`look_at_the_clock` is to be called."""
        return min(self._nursery.next_s(), self._stock.next_s())

    def look_at_the_clock(self) -> None:
        """Do what was to wait until now."""
        now_s = time.monotonic()
        self._do([*self._nursery.overdue(now_s), *self._stock.due(now_s)])

    def tick(self) -> None:
        """End the zygotes that do not answer; to be called every second."""
        now_s = time.monotonic()
        for zygote in self._zygotes.values():
            if zygote.silent_s(now_s) >= ANSWER_S:
                self._log.warning("%s has not answered for %g s: killed", zygote, ANSWER_S)
                zygote.kill()

    def stop(self) -> None:
        """End all zygotes, and start nothing any more."""
        self._nursery, self._stock = Nursery(), Stock(())
        for zygote in self._zygotes.values():
            zygote.kill()
        for streams in self._kept.values():
            streams.close()
        self._kept.clear()

    def bury(self, pid: int) -> bool:
        """A child has ended that is no script's; return whether it was a zygote."""
        for zygote in list(self._zygotes.values()):
            if zygote.pid == pid:
                self._hear_end(zygote)
                return True
            # One that has died since may have told of this child before.
            self._hear(zygote)
        return False

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self._ways[type(action)](action)

    # --- zygotes

    def _ask(self, launch: Launch, script: Script | None) -> None:
        recipe = _recipe(launch)
        seen = look_up(self._nursery.files(recipe))
        ticket = script.ticket if script is not None else None
        if script is not None:
            script.gone = partial(self._nursery.forget, script.ticket)
        self._do(self._nursery.asked(recipe, ticket, seen, time.monotonic(), time.time_ns()))

    def _compile(self, action: Compile) -> None:
        number, recipe = action.zygote, action.recipe
        settings = ProcessSettings(**json.loads(recipe.settings))
        try:
            zygote = ScriptZygote(number, recipe, settings, self._spawner)
        except (SpawnError, OSError) as error:
            self._do(self._nursery.ended(number, no_process(recipe.file, error), time.monotonic()))
            return
        self._zygotes[number] = zygote
        self._behind[number] = False
        self._children[number] = set()
        self._loop.watch(zygote.fileno(), partial(self._hear, zygote))
        self._loop.watch(zygote.error_fd, partial(self._hear_errors, zygote))
        self._loop.watch(zygote.pidfd, partial(self._hear_end, zygote))

    def _hand_over(self, action: HandOver) -> None:
        script = self._processes.scripts[action.call]
        number = action.zygote
        zygote = self._zygotes.get(number)
        script.phase = Phase.STARTING
        script.gone = partial(self._child_gone, number, script)
        try:
            script.streams = Streams()
            there = zygote is not None and zygote.run(
                script.ticket, script.launch.arguments, script.launch.variables, script.streams
            )
        except (SpawnError, OSError) as error:
            self._processes.not_launched(script, no_process(script.launch.file, error))
            return
        if zygote is None or not there:
            self._hand_on(script, number)
            return
        self._children[number].add(script)
        script.buried_by = partial(self._ask_for_burial, zygote, script)
        self._watch(zygote)

    def _hand_on(self, script: Script, number: int) -> None:
        """The zygote has died before it could be asked: ask another."""
        self._do(self._nursery.ended(number, _DIED, time.monotonic()))
        if script.retried:
            self._processes.not_launched(script, f"cannot run {script.launch.file}: {_DIED}")
            return
        script.retried = True
        script.phase = Phase.WAITING
        script.drop_streams()
        self._ask(script.launch, script)

    def _ask_for_burial(self, zygote: ScriptZygote, script: Script) -> None:
        zygote.reap(script.ticket, script.pid)
        self._watch(zygote)

    def _child_gone(self, number: int, script: Script) -> None:
        if number in self._children:
            self._children[number].discard(script)
        self._do(self._nursery.child_ended(number))

    def _watch(self, zygote: ScriptZygote) -> None:
        number, behind = zygote.number, zygote.behind
        if number in self._zygotes and behind is not self._behind[number]:
            self._behind[number] = behind
            self._loop.watch(zygote.fileno(), partial(self._hear, zygote), writing=behind)

    def _hear(self, zygote: ScriptZygote) -> None:
        for said in zygote.heard():
            match said:
                case Ready(files):
                    self._now_ready(zygote, files)
                case Born(ticket, pid):
                    self._forked(zygote, self._processes.scripts[ticket], pid)
                case Unborn(ticket, why):
                    script = self._processes.scripts[ticket]
                    self._processes.not_launched(script, f"cannot run {script.launch.file}: {why}")
                case Buried(ticket, status):
                    self._processes.over(self._processes.scripts[ticket], status)
                case None:
                    # Its process may live on, if the script has closed what is not its own.
                    zygote.kill()
                    self._loop.forget(zygote.fileno())
                    return
        self._watch(zygote)

    def _now_ready(self, zygote: ScriptZygote, files: tuple[str, ...]) -> None:
        self._log.info("%s is ready: %d files", zygote, len(files))
        self._complain(zygote, zygote.lines())
        self._do(self._nursery.ready(zygote.number, look_up(files), time.monotonic()))

    def _forked(self, zygote: ScriptZygote, script: Script, pid: int) -> None:
        # Until it is told to bury it, the zygote keeps the number for this process.
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            # Unless the script ignores SIGCHLD from its compilation on: then it is over, and buried.
            self._processes.launched(script)
            self._processes.over(script, UNKNOWN_STATUS)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            script.pid, script.phase = pid, Phase.OVER
            self._processes.not_launched(script, no_process(script.launch.file, error))
            self._ask_for_burial(zygote, script)
        else:
            if not self._may_be_child(zygote, pid):
                # Whom it names we would kill some day, and it may run as a user who must not.
                os.close(pidfd)
                self._log.warning("%s says that it has forked %d, which it has not: killed", zygote, pid)
                zygote.kill()
                return
            self._processes.born(script, pid, pidfd)
            self._limit(script)

    def _may_be_child(self, zygote: ScriptZygote, pid: int) -> bool:
        """Tell whether this process is a zygote's, or is ours since it died."""
        if self._processes.knows(pid) or any(pid == each.pid for each in self._zygotes.values()):
            return False
        return _parent_of(pid) in (zygote.pid, os.getpid())

    def _limit(self, script: Script) -> None:
        """Say that it runs, once it cannot run for ever."""
        try:
            if script.settings.cpu_s:
                resource.prlimit(script.pid, resource.RLIMIT_CPU, cpu_limit(script.settings.cpu_s))
        except OSError as error:
            self._processes.end(script, 0.0)
            why = f"cannot limit its processor time (process.cpu_time of the route): {error.strerror}"
            self._processes.not_launched(script, f"cannot run {script.launch.file}: {why}")
        else:
            self._processes.launched(script)

    def _hear_errors(self, zygote: ScriptZygote) -> None:
        lines = zygote.hear_errors()
        if lines is None:
            self._loop.forget(zygote.error_fd)
        self._complain(zygote, lines or [])

    def _complain(self, zygote: ScriptZygote, lines: list[str]) -> None:
        for line in lines:
            self._log.warning("%s stderr: %s", zygote, line)

    def _hear_end(self, zygote: ScriptZygote) -> None:
        """It has ended; its children are ours now."""
        self._hear(zygote)
        self._hear_errors(zygote)
        for descriptor in (zygote.pidfd, zygote.error_fd, zygote.fileno()):
            self._loop.forget(descriptor)
        del self._zygotes[zygote.number], self._behind[zygote.number]
        why = zygote.bury()
        for script in self._children.pop(zygote.number):
            if script.pid:
                self._processes.disown(script)
            else:
                self._processes.not_launched(script, f"cannot run {script.launch.file}: {_DIED}")
        self._do(self._nursery.ended(zygote.number, why, time.monotonic()))

    def _refuse(self, action: Refuse) -> None:
        self._processes.not_launched(self._processes.scripts[action.call], action.reason)

    def _note_failure(self, action: Failed) -> None:
        line = action.reason.partition("\n")[0]
        self._log.warning("script=%s calls are refused until it is mended: %s", action.recipe.file, line)

    def _end_zygote(self, action: EndZygote) -> None:
        if action.zygote in self._zygotes:
            self._zygotes[action.zygote].kill()

    # --- warm processes

    def _start_warm(self, action: StartWarm) -> None:
        goods = action.goods
        launch = Launch("", goods.file, list(goods.arguments), {}, json.loads(goods.settings))
        hear = partial(self._hear_of_warm, action.process)
        self._processes.spawn(self._processes.add(launch, hear, action.process))

    def _hear_of_warm(self, process: int, answer: Answer, streams: Streams | None) -> None:
        """Something became of a process that waits, or is to wait, for its call."""
        if isinstance(answer, Launched) and streams is not None:
            self._kept[process] = streams
            self._stock.started(process)
            return
        if process in self._kept:
            self._kept.pop(process).close()
        if isinstance(answer, NotLaunched):
            self._log.warning("no process waits for the next call: %s", answer.reason)
        self._do(self._stock.ended(process, time.monotonic()))

    def _give_warm(self, action: GiveWarm) -> None:
        script = self._processes.scripts[action.call]
        # The variables of the call come too late for it.
        self._processes.take_over(script, self._processes.scripts[action.process])
        script.streams = self._kept.pop(action.process)
        self._processes.launched(script)

    def _spawn_afresh(self, action: SpawnAfresh) -> None:
        self._processes.spawn(self._processes.scripts[action.call])

    def _end_warm(self, action: EndWarm) -> None:
        script = self._processes.scripts[action.process]
        script.tell = None
        if action.process in self._kept:
            self._kept.pop(action.process).close()
        self._processes.end(script, 0.0)


def _parent_of(pid: int) -> int:
    """Return a process's parent; 0 if it is gone. Source: proc(5)."""
    try:
        state = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(os.read(state, _STAT_BYTES).rpartition(b")")[2].split()[1])
    except OSError:
        return 0
    finally:
        os.close(state)


def look_up(files: Iterable[str]) -> Signatures:
    """Look at files as they are now."""
    found: dict[str, Signature | None] = {}
    for file in files:
        try:
            state = os.stat(file)  # noqa: PTH116 (a Path costs ten times as much, and there may be hundreds)
        except OSError:
            found[file] = None
        else:
            found[file] = Signature(state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino)
    return found


def _look(file: str) -> Signature | None:
    return look_up([file])[file]


def _recipe(launch: Launch) -> Recipe:
    """Tell what a zygote must be made of to fork a script: the limits are those of each call."""
    timeout_s = launch.settings["compile_timeout_s"]
    return Recipe(launch.file, _but(launch.settings, "cpu_s", "warm", "background"), timeout_s)


def _goods(launch: Launch) -> Goods:
    """Tell what a warm process must be made of to be a call's."""
    return Goods(launch.file, _but(launch.settings), tuple(launch.arguments), launch.settings["warm"])


def _but(settings: Mapping[str, Any], *names: str) -> str:
    """Write settings as one text, without some of them."""
    return json.dumps({name: settings[name] for name in settings.keys() - set(names)}, sort_keys=True)
