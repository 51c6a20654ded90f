"""Launcher: the small process that starts legacy scripts for the workers of one generation, and ends them.

Laws:
    * It waits for nobody: not for a worker that is slow to read, not for a compiler, not for a script.
    * Each script is buried here and nowhere else, so whoever is signalled by number is the one that is meant.
    * A worker that dies takes its scripts along; the launcher itself ends when nobody can knock any more,
      nobody's channel is open and no script is left.
    * It holds no descriptor that an execution would not close.

Why a process of its own: to fork a worker is dear, and whoever survives a worker's death can end its scripts.

How it works: one loop in one thread (``looping``). Here are the door and the workers; ``processes`` has the
scripts, from their start to their burial, and ``nursing`` the processes that are made before the call comes.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Final

from setproctitle import setproctitle

from fastagi_pool.launching import (
    DOOR_FD,
    Answer,
    DoorChannel,
    DoorMessage,
    End,
    HangUp,
    Launch,
    LauncherChannel,
    NotLaunched,
    Order,
    Over,
    Prepare,
)
from fastagi_pool.logs import LogFile, configure, reopen_all
from fastagi_pool.looping import Loop
from fastagi_pool.nursing import Nurse
from fastagi_pool.processes import Processes, Script
from fastagi_pool.spawning import Spawner, Streams, become_subreaper

#: What scripts get to end by themselves when their worker has died.
ORPHANS_GRACE_S: Final = 1.0
_BUG: Final = "bug in the launcher, see the log"
#: How many orders of a worker are carried out before it is another's turn.
_ORDERS: Final = 16
#: How often it looks around even if nothing happens: a lost signal must not be a lost process.
_TICK_S: Final = 1.0
#: What an operator may send to the whole group. Handled, not ignored: scripts would inherit that.
_SIGNALS: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
)


class Worker:
    """A worker's channel, and the scripts that it has launched.

    Attributes:
        scripts: By the reference of their calls.
    """

    def __init__(self, channel: LauncherChannel, loop: Loop, obey: Callable[[Worker], None]) -> None:
        self.scripts: dict[str, Script] = {}
        self._channel = channel
        self._loop = loop
        self._obey = partial(obey, self)
        #: What it has not read yet: at most two answers for each of its scripts.
        self._outbox: deque[tuple[Answer, Streams | None]] = deque()
        loop.watch(channel.fileno(), self._obey)

    def received(self) -> Iterable[tuple[Order | Answer, list[int]] | None]:
        """Take what it has said."""
        return self._channel.receive_all()

    def tell(self, answer: Answer, streams: Streams | None) -> None:
        """Answer it, now or as soon as it reads; beside the answer go our ends of the streams."""
        if isinstance(answer, NotLaunched | Over):
            self.scripts.pop(answer.call, None)
        self._outbox.append((answer, streams))
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._outbox:
            answer, streams = self._outbox[0]
            try:
                self._channel.send(answer, streams.ours if streams else None)
            except BlockingIOError:
                self._loop.watch(self._channel.fileno(), self._heard, writing=True)
                return
            except OSError:
                # It would wait for ever for an answer that is lost: so let it see that we are.
                self._channel.say_no_more()
                raise
            self._outbox.popleft()
            if streams is not None:
                streams.close()

    def _heard(self) -> None:
        self._loop.watch(self._channel.fileno(), self._obey)
        self._flush()
        self._obey()

    def close(self) -> None:
        """Let go of it."""
        self._loop.forget(self._channel.fileno())
        self._channel.close()
        for _, streams in self._outbox:
            if streams is not None:
                streams.close()
        self._outbox.clear()


class Launcher:
    """Starts scripts, watches them and ends them, until nobody needs it."""

    def __init__(self, door: socket.socket, log_file: LogFile, log: logging.Logger) -> None:
        """Prepare to serve.

        Args:
            door: At which workers knock.
            log_file: What to reopen when the logs were rotated.
            log: Where to say what happened.
        """
        self._door = DoorChannel(door)
        self._door_open = True
        self._log_file = log_file
        self._log = log
        self._loop = Loop(log)
        self._workers: set[Worker] = set()
        spawner = Spawner(_SIGNALS)
        self._processes = Processes(self._loop, spawner, log)
        self._nurse = Nurse(self._processes, self._loop, spawner, log)
        self._bell, self._ringer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Serve; return the exit code."""
        for number in _SIGNALS:
            signal.signal(number, _do_nothing)
        signal.set_wakeup_fd(self._ringer, warn_on_full_buffer=False)
        # The door has had us started with all of them blocked.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._loop.watch(self._bell, self._hear_signals)
        self._loop.watch(self._door.fileno(), self._open_door)
        self._tick()
        while self._door_open or self._workers:
            self._turn()
        self._nurse.stop()
        for script in list(self._processes.scripts.values()):
            script.tell = None
            self._processes.end(script, ORPHANS_GRACE_S)
        while self._nurse.left or self._processes.left:
            self._turn()
        return 0

    def _turn(self) -> None:
        self._loop.turn(min(_TICK_S, max(0.0, self._nurse.next_s() - time.monotonic())))
        self._loop.attempt(self._nurse.look_at_the_clock)

    def _tick(self) -> None:
        self._loop.at(time.monotonic() + _TICK_S, self._tick)
        self._processes.bury_the_dead(self._nurse.bury)
        self._processes.tick()
        self._nurse.tick()

    def _hear_signals(self) -> None:
        heard = os.read(self._bell, 4096)
        if signal.SIGUSR1 in heard:
            reopen_all([self._log_file])
        if signal.SIGCHLD in heard:
            self._processes.bury_the_dead(self._nurse.bury)

    # --- the door and the workers

    def _open_door(self) -> None:
        for received in self._door.receive_all():
            if received is None:
                self._loop.forget(self._door.fileno())
                self._door.close()
                self._door_open = False
            else:
                self._let_in(*received)

    def _let_in(self, message: DoorMessage, descriptors: list[int]) -> None:
        if isinstance(message, Prepare):
            self._nurse.prepare(message)
        for descriptor in descriptors:
            channel = LauncherChannel(socket.socket(fileno=descriptor))
            channel.never_wait()
            self._workers.add(Worker(channel, self._loop, self._obey))

    def _obey(self, worker: Worker) -> None:
        for received in islice(worker.received(), _ORDERS):
            if received is None:
                self._lose(worker)
                return
            order, _ = received
            if isinstance(order, Launch):
                self._launch(worker, order)
            elif isinstance(order, End) and order.call in worker.scripts:
                self._processes.end(worker.scripts[order.call], order.grace_s)
            elif isinstance(order, HangUp) and order.call in worker.scripts:
                self._processes.hang_up(worker.scripts[order.call])

    def _lose(self, worker: Worker) -> None:
        """A worker has died."""
        worker.close()
        self._workers.discard(worker)
        for script in worker.scripts.values():
            script.tell = None
            self._processes.end(script, ORPHANS_GRACE_S)

    def _launch(self, worker: Worker, launch: Launch) -> None:
        try:
            script = self._processes.add(launch, worker.tell)
        except Exception as error:
            worker.tell(NotLaunched(launch.call, f"{_BUG}: {error}"), None)
            raise
        worker.scripts[launch.call] = script
        try:
            if script.settings.precompile or script.settings.warm:
                self._nurse.launch(script)
            else:
                self._processes.spawn(script)
        except Exception as error:
            self._processes.not_launched(script, f"{_BUG}: {error}")
            raise


def _do_nothing(number: int, frame: object) -> None:
    """Hear a signal; what it means is read from the bell."""


def _claim_standard_streams() -> None:
    """Fill the places of standard streams that are closed, so that no other descriptor gets there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < DOOR_FD:
        pass
    os.close(descriptor)


def main() -> int:
    """Be the launcher; return the exit code.

    The arguments say where to log (a path, ``syslog``, or ``-``), the level, the generation, and the log's
    format and facility.
    """
    target, level, generation, line_format, facility = sys.argv[1:]
    _claim_standard_streams()
    # What it has inherited, listening sockets among it, is none of its business.
    os.closerange(DOOR_FD + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(DOOR_FD, False)
    become_subreaper()
    log_file = LogFile(target, facility)
    log = configure(log_file, level, f"launcher gen={generation} pid={os.getpid()}", line_format)
    setproctitle(f"fastagi-pool: launcher (gen {generation})")
    return Launcher(socket.socket(fileno=DOOR_FD), log_file, log).run()
