"""Zygote: the process that has loaded everything once and forks the workers of one generation.

Laws:
    * It serves no call, opens no database and starts no greenlet: what it has is what every worker
      inherits, so it must hold nothing that cannot be shared.
    * It is single-threaded and quiet: it sleeps in ``poll`` until asked.
    * It reports every worker that ends. If it dies itself, its workers become the master's
      children (the master is their sub-reaper), and the master reaps them.

Why: a fork costs 2 ms where importing the same modules costs 300; so replacing a worker costs the
callers nothing, and new code is tried in a process that may die.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable, Collection, Sequence
from select import POLLIN
from typing import Any, Final, NoReturn, Protocol

from fastagi_pool.forking import fork_apart
from fastagi_pool.logs import LOGGER_NAME
from fastagi_pool.messages import Begin, Channel, Ended, Fork, Forked, ForkFailed, Message, ReopenLogs

#: What an operator may send to the whole group, and is the master's business alone.
MASTER_SIGNALS: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
)


_TICK_S: Final = 1.0
#: Makes ready for workers: given what the master said of this generation and the descriptors that came
#: with it, returns the life of a worker, which takes its slot and whether it has to prove itself, and returns
#: its exit code.
Prepare = Callable[[Begin, list[int]], Callable[[int, bool], int]]


class Companion(Protocol):
    """A process of the generation's that is no worker: kept alive here, and none of the master's business."""

    def look_after(self) -> None:
        """Do what there is to do for it; called once a second at least."""

    def has_ended(self, pid: int) -> bool:
        """Hear that a process of ours has ended; return whether it was this one."""


class Zygote:
    """Forks workers when told to, until the master is gone."""

    def __init__(
        self,
        channel: Channel,
        prepare: Prepare,
        worker_signals: Collection[int],
        reopen_logs: Callable[[], None],
        set_title: Callable[[str], None],
        poll: Callable[[], Any],
        companions: Sequence[Companion],
    ) -> None:
        """Prepare to serve the master.

        Args:
            channel: To the master.
            prepare: Makes ready for workers; the life that it returns is run in the child.
            worker_signals: What a worker listens to: blocked from before the fork until it lifts the
                block, so that no signal is lost before it listens.
            reopen_logs: Called when the logs were rotated, so that new workers write to the new.
            set_title: Sets the process title.
            poll: The standard library's ``select.poll``; gevent's would start a hub, which takes
                SIGCHLD for itself.
            companions: The other processes that are ours besides the workers.
        """
        self._channel = channel
        self._prepare = prepare
        self._worker: Callable[[int, bool], int] | None = None
        self._worker_signals = worker_signals
        self._reopen_logs = reopen_logs
        self._set_title = set_title
        self._poll = poll
        self._companions = companions

    def run(self) -> int:
        """Serve until the master closes the channel; return the exit code."""
        for number in MASTER_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        bell, ringer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(ringer, warn_on_full_buffer=False)
        # What is loaded now lives as long as we do: keep the collector from touching, and so
        # copying, the pages that all workers share.
        gc.collect()
        gc.freeze()
        poller = self._poll()
        poller.register(self._channel.fileno(), POLLIN)
        poller.register(bell, POLLIN)
        while True:
            # Once a second even if no bell rings: a lost signal must not be a lost worker.
            ready = {descriptor for descriptor, _ in poller.poll(_TICK_S * 1000)}
            if bell in ready:
                os.read(bell, 512)
            self._reap()
            for companion in self._companions:
                companion.look_after()
            if self._channel.fileno() in ready:
                received = self._channel.receive()
                if received is None:
                    return 0
                self._obey(*received)

    def _obey(self, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, Begin):
            # Sockets stay bare descriptors: a socket object of gevent's would start a hub.
            self._worker = self._prepare(message, descriptors)
            self._set_title(f"fastagi-pool: loader (gen {message.generation})")
        elif isinstance(message, Fork):
            self._fork(message)
        elif isinstance(message, ReopenLogs):
            self._reopen_logs()

    def _fork(self, order: Fork) -> None:
        slot = order.slot
        signal.pthread_sigmask(signal.SIG_BLOCK, self._worker_signals)
        try:
            pid = fork_apart(signal.SIGCHLD)
        except OSError as error:
            answer: Message = ForkFailed(slot, str(error))
        else:
            if pid == 0:
                self._become_worker(order)
            answer = Forked(slot, pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._worker_signals)
        self._channel.send(answer)

    def _become_worker(self, order: Fork) -> NoReturn:
        code = 1
        try:
            self._channel.close()
            if self._worker is not None:
                code = self._worker(order.slot, order.prove)
        except BaseException:
            logging.getLogger(LOGGER_NAME).exception("worker=%d could not live", order.slot)
        finally:
            # Not sys.exit: the interpreter would tear down, page by page, what we all share.
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if not any(companion.has_ended(pid) for companion in self._companions):
                self._channel.send(Ended(pid, status))
