"""Replay keeping: the process that replays the journal, and who keeps it alive.

Laws:
    * One process of a node replays, whatever generation it is of: the next waits until the one before
      is gone.
    * Told to end, it finishes the transaction in hand; so it does if its loader or the master is gone.
    * A node whose journal is empty pays for it with a sleeping process: no connection, no ``setup``.
    * It is no worker: it holds no listening socket, and the master knows nothing of it.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn

import gevent
import gevent.event
from setproctitle import setproctitle

from fastagi_pool.context import Context
from fastagi_pool.errors import DatabaseUnavailable, FastAGIPoolError, JournalUnavailable
from fastagi_pool.forking import fork_apart
from fastagi_pool.journal import RUNNING_NAME, Journal
from fastagi_pool.logs import LOGGER_NAME, rename

if TYPE_CHECKING:
    from fastagi_pool.application import Application
    from fastagi_pool.replay import Replayer
    from fastagi_pool.together import Together

#: What it listens to, blocked from before the fork until it does; everything else that the master
#: understands it ignores.
REPLAY_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGUSR1})
#: Between the starts of two processes: one that cannot live must not take the machine.
PAUSE_S: Final = 1.0
#: How often somebody who may not replay yet, or cannot, tries again.
TRY_S: Final = 0.5
#: How often an empty journal is looked at.
LOOK_S: Final = 0.1
#: The transaction of the replay, what a handler does beside it, and one to spare.
_CONNECTIONS: Final = 3
_READ: Final = 1
#: Source: linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """What the process is told.

    Attributes:
        journal: The journal's file.
        max_bytes: What its entries may take.
        backlog: The file that says for which databases calls wait.
        runtime_dir: The runtime folder.
        node: The name of this node, which no other has that writes to the same databases.
        lifeline_fd: Reading from it ends when the master does.
        generation: Which load of configuration and code it belongs to.
    """

    journal: Path
    max_bytes: int
    backlog: Path
    runtime_dir: Path
    node: str
    lifeline_fd: int
    generation: int


def replay_process(
    application: Application, settings: ReplaySettings, reopen_logs: Callable[[], None]
) -> int:
    """Be the process that replays the journal, from after the fork to its exit code.

    Args:
        application: The routes, their handlers and their databases.
        settings: Where everything is.
        reopen_logs: Follows the logs after they were rotated.
    """
    log = rename(f"replay gen={settings.generation} pid={os.getpid()}")
    # A handler module that used gevent while it was imported left a hub of the zygote's.
    gevent.reinit()
    life = _Life(application, settings, log)
    life.listen(settings.lifeline_fd, reopen_logs)
    setproctitle(f"fastagi-pool: replay (gen {settings.generation})")
    return life.live()


class _Life:
    """The life of the process."""

    def __init__(self, application: Application, settings: ReplaySettings, log: logging.Logger) -> None:
        self._application = application
        self._settings = settings
        self._log = log
        self._over = gevent.event.Event()
        self._watchers: list[Any] = []
        self._state: dict[str, Any] = {}
        self._databases: Mapping[str, Together] = {}

    def listen(self, lifeline_fd: int, reopen_logs: Callable[[], None]) -> None:
        """Hear signals, and the end of the master."""
        hub: Any = gevent.get_hub()
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
            self._watch(hub.loop.signal(number), self._over.set)
        self._watch(hub.loop.signal(signal.SIGUSR1), reopen_logs)
        # Readable means gone: the master never writes.
        self._watch(hub.loop.io(lifeline_fd, _READ), self._on_master_gone)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, REPLAY_SIGNALS)

    def live(self) -> int:
        """Replay until told to end; return the exit code."""
        lock = self._wait_for_turn()
        if lock is None:
            return 0
        journal = self._open_journal()
        if journal is None:
            return 0
        try:
            replayer = self._build(journal)
            if self._set_up(replayer):
                replayer.run(self._over)
            return 0
        finally:
            self._tear_down()
            journal.close()
            os.close(lock)

    def _watch(self, watcher: Any, callback: Callable[[], None]) -> None:
        watcher.start(callback)
        self._watchers.append(watcher)

    def _on_master_gone(self) -> None:
        self._watchers[-1].stop()
        self._over.set()

    def _wait_for_turn(self) -> int | None:
        """Wait until no other process replays this journal; None if told to end before."""
        path = self._settings.journal
        while not self._over.is_set():
            try:
                lock = os.open(f"{path}.replay", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                self._log.error("cannot replay the journal %s: %s", path, error)
                self._over.wait(PAUSE_S)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                self._over.wait(TRY_S)
            else:
                return lock
        return None

    def _open_journal(self) -> Journal | None:
        """Open the journal, however long that takes; None if told to end before."""
        settings, told = self._settings, ""
        while not self._over.is_set():
            try:
                return Journal.open(settings.journal, settings.max_bytes, settings.backlog)
            except JournalUnavailable as error:
                if str(error) != told:
                    told = str(error)
                    self._log.error("cannot replay the journal: %s", told)
                self._over.wait(TRY_S)
        return None

    def _build(self, journal: Journal) -> Replayer:
        application, settings = self._application, self._settings
        # Not before: a process without databases imports no SQLAlchemy.
        replays = importlib.import_module("fastagi_pool.replay")
        marks = importlib.import_module("fastagi_pool.marks")
        togethers = importlib.import_module("fastagi_pool.together")
        self._databases = {
            each.name: togethers.Together(replace(each, pool_size=_CONNECTIONS))
            for each in application.databases
        }
        replayer: Replayer = replays.Replayer(
            journal,
            marks.Marks(settings.node),
            application.table,
            application.handlers,
            self._databases,
            self._state,
            replays.RunningEntry(settings.runtime_dir / RUNNING_NAME),
            self._log,
        )
        return replayer

    def _set_up(self, replayer: Replayer) -> bool:
        """Run each module's ``setup``, once there is something to do; False if told to end before."""
        left, told = list(self._application.setups), ""
        while not self._over.is_set():
            if not replayer.waits():
                self._over.wait(LOOK_S)
                continue
            try:
                while left:
                    left[0](Context(self._databases, self._log, self._state))
                    del left[0]
            except Exception as error:
                if str(error) != told:
                    told = str(error)
                    trace = None if isinstance(error, (FastAGIPoolError, DatabaseUnavailable)) else error
                    self._log.error("cannot replay the journal yet: %s", error, exc_info=trace)
                self._over.wait(TRY_S)
            else:
                return True
        return False

    def _tear_down(self) -> None:
        for teardown in self._application.teardowns:
            try:
                teardown(Context(self._databases, self._log, self._state))
            except Exception:
                self._log.exception("teardown failed")
        for database in self._databases.values():
            database.close()


def _end_with(parent: int) -> None:
    """Have the kernel tell this process to end when its parent does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        # It was gone before we said so.
        os.kill(os.getpid(), signal.SIGTERM)


class ReplayKeeper:
    """Keeps the process alive that replays the journal, where there is one."""

    def __init__(
        self,
        application: Application,
        settings: ReplaySettings,
        leave: Callable[[], None],
        reopen_logs: Callable[[], None],
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            application: The routes, their handlers and their databases.
            settings: For the process; its generation is told by :meth:`begin`.
            leave: Called in the child: closes what is the zygote's alone, as its channel to the master and
                the listening sockets.
            reopen_logs: For the child: follows the logs after they were rotated.
        """
        self._application = application
        self._settings = settings
        self._leave = leave
        self._reopen_logs = reopen_logs
        self._wanted = False
        self._started_s = -PAUSE_S
        self._pid = 0

    def begin(self, generation: int) -> None:
        """Start the first one."""
        self._settings = replace(self._settings, generation=generation)
        self._wanted = True
        self.look_after()

    def look_after(self) -> None:
        """Start one in the place of one that died, but no more than one in a while."""
        now_s = monotonic()
        if not self._wanted or self._pid or now_s - self._started_s < PAUSE_S:
            return
        self._started_s = now_s
        signal.pthread_sigmask(signal.SIG_BLOCK, REPLAY_SIGNALS)
        loader = os.getpid()
        try:
            self._pid = fork_apart(signal.SIGCHLD)
        except OSError as error:
            logging.getLogger(LOGGER_NAME).error("cannot start the process that replays: %s", error)
            return
        finally:
            if os.getpid() == loader:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, REPLAY_SIGNALS)
        if self._pid == 0:
            self._become_replay(loader)

    def has_ended(self, pid: int) -> bool:
        """Hear that a process has ended; return whether it was this one."""
        if pid != self._pid or not pid:
            return False
        self._pid = 0
        if self._wanted:
            logging.getLogger(LOGGER_NAME).error(
                "the process that replays the journal died (pid %d): another is started", pid
            )
        return True

    def dismiss(self) -> None:
        """Let it end, and start no other: another generation replays from now on."""
        self._wanted = False
        if self._pid:
            os.kill(self._pid, signal.SIGTERM)

    def reopen_logs(self) -> None:
        """Tell it that the logs were rotated."""
        if self._pid:
            os.kill(self._pid, signal.SIGUSR1)

    def _become_replay(self, loader: int) -> NoReturn:
        code = 1
        try:
            _end_with(loader)
            self._leave()
            code = replay_process(self._application, self._settings, self._reopen_logs)
        except BaseException:
            with suppress(Exception):
                logging.getLogger(LOGGER_NAME).exception("the process that replays could not live")
        finally:
            # Not sys.exit: the interpreter would tear down, page by page, what we all share.
            os._exit(code)
