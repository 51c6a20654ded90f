"""Worker: the life of a child. Accepts calls, serves each in a greenlet, drains, ends.

Laws:
    * A connection that was accepted is served to its end; a worker that must go stops accepting
      and leaves what waits in the queue to the others.
    * Nothing of the master's is decided here. The worker says how it fares in its scoreboard slot,
      wakes the master when it was asked to, and does what signals tell it (see :data:`WORKER_SIGNALS`).
    * A worker whose master is gone drains and ends: nobody would replace or watch it.
    * A call in a worker that drains goes on for as long as its route gives it then, and no longer.

How accepting is shared: several processes wait on one listening socket, and the kernel wakes
whom it likes. So a worker that has more calls in progress, or took more turns, than the worker with
the fewest steps back for a moment and lets another take the call. The moment is bounded: if nobody
came, it takes the call itself.

When every place in every worker is taken, further calls are accepted all the same: they wait for a place,
for a bounded time, and are then told that there is none.
"""

from __future__ import annotations

import _socket
import errno
import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any, Final

import gevent
import gevent.event
from setproctitle import setproctitle

from fastagi_pool import stacks
from fastagi_pool.application import Application
from fastagi_pool.attendants import Attendants
from fastagi_pool.callboard import NO_ROW
from fastagi_pool.context import Context
from fastagi_pool.dispatch import Dispatcher
from fastagi_pool.endings import OnError
from fastagi_pool.errors import DatabaseUnavailable
from fastagi_pool.handlers.builtin import Load
from fastagi_pool.listeners import is_allowed, refuse_newcomers, refuses_newcomers, welcome
from fastagi_pool.logs import AccessLog, LogFile, PrintedLines, rename, reopen_all
from fastagi_pool.lookout import Lookout
from fastagi_pool.messages import DUMP_SIGNAL
from fastagi_pool.recording import FOLDER, Recorder
from fastagi_pool.scoreboard import Scoreboard, SlotWriter, WorkerState
from fastagi_pool.session import Session
from fastagi_pool.showing import Showing
from fastagi_pool.slowlog import SlowLog
from fastagi_pool.waiting import WaitingRoom

#: What a worker listens to; everything else that the master understands it ignores.
WORKER_SIGNALS: Final = frozenset(
    {signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGUSR1, DUMP_SIGNAL}
)
#: Connections taken in one go, before the calls in progress get their turn again.
ACCEPT_BATCH: Final = 16
#: How many more calls in progress than the least busy worker, or more turns than the one with the
#: fewest, make a worker step back.
ACTIVE_SLACK: Final = 2
TURNS_SLACK: Final = 16
#: One step back lasts this long; after so many in a row the worker takes the call itself.
STEP_BACK_S: Final = 0.0005
STEPS_BACK: Final = 2
#: How often limits of sessions are looked at: how late a time-out may come.
SWEEP_S: Final = 0.1
#: Slow calls that are written down at one look, stack and all: hundreds would keep others from their turn.
MOST_SLOW: Final = 50
#: How often a worker gives a sign of life, unless the watchdog wants it more often.
BEAT_S: Final = 1.0
#: Pause in accepting when the process or the machine is out of file descriptors or memory.
EXHAUSTED_S: Final = 0.1
#: When the worker is full but another is not, it looks again after this long.
FULL_S: Final = 0.01
#: Calls that are being refused at the same time: each may take a moment to read why.
MOST_REFUSED: Final = 32
#: Remembered answers to "may this address call?"; beyond it the memory begins anew.
_REMEMBERED_PEERS: Final = 4096
_READ: Final = 1


@dataclass(frozen=True, slots=True)
class Birth:
    """What a new worker is told.

    Attributes:
        slot: Its place in the scoreboard, which is also its number.
        generation: Which load of configuration and code it belongs to.
        scoreboard: The scoreboard, mapped for writing.
        listeners: Descriptors of the listening sockets.
        prove: Whether to serve only if the handlers' self-tests pass.
    """

    slot: int
    generation: int
    scoreboard: Scoreboard
    listeners: tuple[int, ...]
    prove: bool = False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker inherits besides what was loaded.

    Attributes:
        log: The log file.
        access: The access log's file; None for no access log.
        slow: The slow log's file; None for no slow log.
        bell_fd: Written to, it wakes the master.
        lifeline_fd: Reading from it ends when the master does.
    """

    log: LogFile
    access: LogFile | None
    slow: LogFile | None
    bell_fd: int
    lifeline_fd: int


class Worker:
    """One worker process, from after the fork to its exit code."""

    def __init__(self, birth: Birth, application: Application, surroundings: Surroundings) -> None:
        """Take the slot over. Called in the child.

        Args:
            birth: Who we are.
            application: What to serve.
            surroundings: What we inherited.
        """
        self._pid = os.getpid()
        self._config = application.config
        self._application = application
        self._surroundings = surroundings
        self._birth = birth
        self._board = birth.scoreboard
        self._slot = SlotWriter(self._board, birth.slot)
        self._slot.begin(self._pid, birth.generation, monotonic())
        self._identity = f"worker={birth.slot} gen={birth.generation} pid={self._pid}"
        self._log = rename(self._identity)
        # A handler module that used gevent while it was imported left a hub of the zygote's.
        gevent.reinit()
        self._hub: Any = gevent.get_hub()
        # What fails in the hub or in a greenlet that a handler started must be found in the log.
        self._hub.exception_stream = surroundings.log
        self._lifeline = self._hub.loop.io(surroundings.lifeline_fd, _READ)
        self._attendants = Attendants(self._hub)
        self._sessions: set[Session] = set()
        self._watchers: list[Any] = []
        self._acceptors = [self._prepare_acceptor(descriptor) for descriptor in birth.listeners]
        self._full = self._draining = False
        self._steps_back = self._refused = self._turned_away = 0
        self._draining_since_s = 0.0
        self._over = gevent.event.Event()
        self._databases = application.make_databases()
        self._state: dict[str, Any] = {}
        if application.door is not None:
            application.door.leave_the_far_end()
        self._launches = application.connect_scripts(self._log)
        self._recorder = Recorder(self._config.runtime_dir / FOLDER)
        self._session_limits = application.session_limits
        self._header_limits = application.header_limits
        self._max_active = self._config.calls_per_worker
        self._waiting: WaitingRoom[Session] = WaitingRoom(self._config.max_queue, self._config.max_wait)
        self._peers: dict[str, bool] = {}
        self._beat_s = min(BEAT_S, self._config.watchdog / 4) or BEAT_S
        self._access = self._open_access_log()
        self._showing = self._open_showing()
        self._dispatcher = self._build_dispatcher()
        self._lookout = self._post_lookout()
        application.show_load(self._read_load)

    def run(self) -> int:
        """Live; return the exit code."""
        faulthandler.register(DUMP_SIGNAL, file=self._surroundings.log.fileno(), all_threads=True)
        _close_the_terminal()
        self._listen_to_signals()
        self._lifeline.start(self._on_master_gone)
        self._set_title()
        self._lookout.start()
        try:
            if not self._is_fit():
                return 1
            self._begin_serving()
            self._over.wait()
            return self._end()
        finally:
            self._lookout.stop()

    # --- beginning and end

    def _is_fit(self) -> bool:
        """Get ready to serve; False if that is not possible, which is logged."""
        try:
            self._application.open_databases(self._databases, self._log)
            for setup in self._application.setups:
                setup(self._worker_context())
        except DatabaseUnavailable as error:
            self._log.error("cannot start: %s", error)
            return False
        except BaseException:
            self._log.exception("cannot start")
            return False
        return not self._birth.prove or all(map(self._passes, self._application.selftests))

    def _passes(self, selftest: Callable[[Context], object]) -> bool:
        try:
            selftest(self._worker_context())
        except BaseException:
            self._log.exception("self-test of %s failed", selftest.__module__)
            return False
        return True

    def _prepare_acceptor(self, descriptor: int) -> tuple[Any, Any, Callable[[], None]]:
        listener = _socket.socket(fileno=descriptor)
        listener.setblocking(False)
        watcher = self._hub.loop.io(descriptor, _READ)
        return listener, watcher, partial(self._on_readable, listener)

    def _build_dispatcher(self) -> Dispatcher:
        return Dispatcher(
            table=self._application.served,
            handlers={**self._application.handlers, **self._application.builtin},
            databases=self._databases,
            state=self._state,
            log=self._log,
            records=[*([self._access] if self._access else []), *self._showing.records],
            ref_prefix=f"{int(time.time()):x}-{self._pid:x}-",
            on_error=OnError.parse(self._config.on_error),
            recorder=self._recorder,
            on_slow=self._showing.on_slow,
        )

    def _read_load(self) -> Load:
        accepting = [facts for facts in self._board.occupied() if facts.state is WorkerState.READY]
        return Load(
            active=sum(facts.active for facts in accepting),
            queued=sum(facts.queued for facts in accepting),
            places=sum(facts.places for facts in accepting),
            workers=len(accepting),
            uptime_s=monotonic() - self._board.started_s,
        )

    def _open_access_log(self) -> AccessLog | None:
        file = self._surroundings.access
        if file is None:
            return None
        return AccessLog(file, self._identity, self._hub.loop.run_callback, self._config.log.format)

    def _open_showing(self) -> Showing:
        file = self._surroundings.slow
        return Showing(
            self._config.runtime_dir,
            self._slot,
            self._beat_s,
            self._max_active,
            self._config.max_queue + MOST_REFUSED,
            [route.name for route in self._application.served.routes],
            SlowLog(file, self._identity, self._config.log.format) if file else None,
            self._log,
        )

    def _post_lookout(self) -> Lookout[Session]:
        return Lookout(
            self._hub,
            self._config.runtime_dir / stacks.FOLDER / str(self._birth.slot),
            self._identity,
            self._dispatcher.calls,
            self._dispatcher.describe,
            self._config.slow.blocked,
            self._showing.slow_log,
            self._log,
            self._slot.set_lag,
        )

    def _worker_context(self) -> Context:
        return Context(self._databases, self._log, self._state)

    def _begin_serving(self) -> None:
        self._beat()
        self._watch(self._hub.loop.timer(self._beat_s, repeat=self._beat_s), self._beat)
        self._watch(self._hub.loop.timer(SWEEP_S, repeat=SWEEP_S), self._sweep)
        if not self._draining:
            self._resume_accepting()
            self._slot.set_state(WorkerState.READY)
        self._ring()

    def _end(self) -> int:
        for teardown in self._application.teardowns:
            try:
                teardown(self._worker_context())
            except Exception:
                self._log.exception("teardown failed")
        for database in self._databases.values():
            database.close()
        if self._launches is not None:
            self._launches.close()
        if self._access is not None:
            self._access.flush()
        return 0

    # --- signals and the master

    def _listen_to_signals(self) -> None:
        orders: dict[int, Callable[[], None]] = {
            signal.SIGTERM: self._drain,
            signal.SIGQUIT: self._drain,
            signal.SIGINT: self._stop,
            signal.SIGUSR1: self._reopen_logs,
        }
        for number, order in orders.items():
            # Python's own handlers are ours to set: the zygote ignored the number.
            self._watch(self._hub.loop.signal(number), order)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WORKER_SIGNALS)

    def _watch(self, watcher: Any, callback: Callable[[], None]) -> None:
        watcher.start(callback)
        self._watchers.append(watcher)

    def _on_master_gone(self) -> None:
        self._lifeline.stop()
        if not self._draining:
            self._log.warning("the master is gone: finishing %d calls", self._slot.active)
        for listener, _, _ in self._acceptors:
            self._close_the_door(listener)
        self._drain()
        self._watch(self._hub.loop.timer(self._config.graceful_timeout), self._stop)

    def _drain(self) -> None:
        if self._draining:
            return
        self._draining = True
        self._draining_since_s = monotonic()
        self._slot.set_state(WorkerState.DRAINING)
        # Nobody else can take them over, and nobody new comes: they need not wait.
        while self._serve_next():
            pass
        # Some may have come between the closing of the door and this order.
        for session in self._sessions:
            if session.fileno() >= 0:
                welcome(session.fileno())
        self._leave_the_queue()
        self._end_if_idle()

    def _close_the_door(self, listener: Any) -> None:
        try:
            refuse_newcomers(listener)
        except OSError as error:
            self._log.error("cannot refuse newcomers: %s", error)

    def _leave_the_queue(self) -> None:
        """Accept no more. What waits is left to others, unless nobody new may come: then it is ours.

        Closing would reset whoever waits, and that is a success to the dialplan. Those for whom there is
        no file descriptor now are taken when a call has ended.
        """
        self._pause_accepting()
        for acceptor in list(self._acceptors):
            listener, watcher, _ = acceptor
            try:
                while refuses_newcomers(listener) and self._accept(listener):
                    pass
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    return
                self._log.error("cannot accept: %s", error)
            self._acceptors.remove(acceptor)
            watcher.close()
            listener.close()

    def _stop(self) -> None:
        self._drain()
        now_s = monotonic()
        for session in list(self._sessions):
            session.stop(now_s)

    def _reopen_logs(self) -> None:
        surroundings = self._surroundings
        reopen_all((surroundings.log, surroundings.access, surroundings.slow))

    def _ring(self) -> None:
        try:
            os.write(self._surroundings.bell_fd, b"!")
        except (BlockingIOError, BrokenPipeError):
            pass  # The bell is ringing already, or nobody is there to hear it.

    # --- time

    def _beat(self) -> None:
        now_s, watchdog_s = monotonic(), self._config.watchdog
        if watchdog_s:
            self._slot.promise(now_s + watchdog_s)
        if self._recorder.look(time.time()):
            self._dispatcher.join_recordings()
        for session in self._sessions:
            session.row.show()
        if self._turned_away:
            self._log.warning(
                "%d calls were refused in the last %g s: every place in every worker is taken "
                "(calls_per_worker: %d, max_queue: %d)",
                *(self._turned_away, self._beat_s, self._max_active, self._config.max_queue),
            )
            self._turned_away = 0
        files = {self._surroundings.log, self._surroundings.access, self._surroundings.slow}
        lost_lines = sum(file.lost_lines for file in files if file is not None)
        self._showing.publish(now_s, len(self._waiting), lost_lines, self._databases.values())
        self._set_title()

    def _set_title(self) -> None:
        setproctitle(
            f"fastagi-pool: worker {self._slot.slot} (gen {self._birth.generation}) {self._slot.active} calls"
        )

    def _sweep(self) -> None:
        now_s = monotonic()
        due = [each for each in self._sessions if each.slow_at_s <= now_s or each.deadline_s <= now_s]
        # Whoever is left is told of at the next look, or at the end.
        for session in islice((each for each in due if each.slow_at_s <= now_s), MOST_SLOW):
            self._dispatcher.report_slow(session)
        for session in due:
            if session.deadline_s <= now_s:
                session.expire(now_s)
        if self._draining:
            for session in list(self._sessions):
                session.end_draining(self._draining_since_s, now_s)
        for session in self._waiting.give_up(now_s):
            self._begin_waiting(session, self._refuse_overload)
        self._end_if_idle()

    # --- accepting

    def _resume_accepting(self) -> None:
        self._full = False
        if not self._draining:
            for _, acceptor, callback in self._acceptors:
                acceptor.start(callback)

    def _pause_accepting(self) -> None:
        for _, acceptor, _ in self._acceptors:
            acceptor.stop()

    def _pause_for(self, pause_s: float) -> None:
        self._pause_accepting()
        timer = self._hub.loop.timer(pause_s)
        timer.start(self._resume_accepting)

    def _on_readable(self, listener: Any) -> None:
        """Take connections; runs in the hub, so nothing here may block or raise."""
        if self._steps_back < STEPS_BACK and self._has_more_than_others():
            self._steps_back += 1
            self._pause_for(STEP_BACK_S)
            return
        self._steps_back = 0
        for _ in range(ACCEPT_BATCH):
            if not self._may_accept():
                return
            try:
                if not self._accept(listener):
                    return
            except OSError as error:
                self._log.error("cannot accept: %s", error)
                self._pause_for(EXHAUSTED_S)
                return

    @property
    def _has_place(self) -> bool:
        """Whether one more call can be served."""
        return self._slot.active - self._refused < self._max_active

    def _may_accept(self) -> bool:
        """Whether one more connection can be taken, if only to wait or to be refused; else pause."""
        if self._has_place:
            return True
        if self._refused >= MOST_REFUSED:
            self._full = True
            self._pause_accepting()
            return False
        if self._board.least_busy()[0] < self._max_active:
            self._full = True
            self._pause_for(FULL_S)
            return False
        return True

    def _accept(self, listener: Any) -> bool:
        """Take one connection, if one waits; raises OSError when the machine is out of something."""
        try:
            descriptor, address = listener._accept()
        except BlockingIOError:
            return False
        except ConnectionAbortedError:
            return True
        self._begin_session(descriptor, address)
        return True

    def _has_more_than_others(self) -> bool:
        fewest_active, fewest_turns = self._board.least_busy()
        slot = self._slot
        return slot.active > fewest_active + ACTIVE_SLACK or slot.turns > fewest_turns + TURNS_SLACK

    def _begin_session(self, descriptor: int, address: Any) -> None:
        os.set_blocking(descriptor, False)
        peer = address[0] if isinstance(address, tuple) else "unix"
        row = self._showing.new_row()
        session = Session(descriptor, peer, self._hub, self._session_limits, self._header_limits, row)
        if not self._may_call(peer):
            self._begin(session, self._deny)
        elif self._draining or (self._has_place and not len(self._waiting)):
            self._begin(session, self._serve)
        elif self._finds_room(session):
            session.queues()
        else:
            self._begin(session, self._refuse_overload)

    def _finds_room(self, session: Session) -> bool:
        """Admit a call to the waiting room, if need be in the place of callers who have left."""
        if self._waiting.admit(session, monotonic()):
            return True
        for gone in self._waiting.weed(lambda each: each.peer_has_closed):
            self._begin_waiting(gone, self._refuse_overload)
        return self._waiting.admit(session, monotonic())

    def _begin_waiting(self, session: Session, serve: Callable[[Session], None]) -> None:
        """Begin with a call that has waited until now."""
        session.called_in()
        self._begin(session, serve)

    def _begin(self, session: Session, serve: Callable[[Session], None]) -> None:
        self._slot.call_begins()
        self._attendants.attend(serve, session)

    def _serve_next(self) -> bool:
        """Serve who has waited longest, if anybody waits."""
        session = self._waiting.call_in()
        if session is not None:
            self._begin_waiting(session, self._serve)
        return session is not None

    def _serve(self, session: Session) -> None:
        self._carry(session, self._dispatcher.serve)

    def _deny(self, session: Session) -> None:
        self._refuse(session, "denied", "the address is not in allow")

    def _refuse_overload(self, session: Session) -> None:
        self._turned_away += 1
        self._refuse(session, "overload", "every place in every worker is taken")

    def _refuse(self, session: Session, outcome: str, reason: str) -> None:
        def refuse(each: Session) -> bool:
            try:
                return self._dispatcher.refuse(each, outcome, reason)
            finally:
                # Before the slot counts it out: it held no place that a waiting call could take.
                self._refused -= 1

        self._refused += 1
        self._carry(session, refuse)

    def _carry(self, session: Session, serve: Callable[[Session], bool | None]) -> None:
        """Carry a session to its end, come what may, and count it unless it was a mere probe."""
        self._sessions.add(session)
        if self._draining:
            # It may have waited since before the door was closed.
            welcome(session.fileno())
        failed: bool | None = True
        try:
            failed = serve(session)
        except BaseException:
            self._log.exception("a call could not be ended in order")
            session.fail()
        finally:
            self._sessions.discard(session)
            session.row.release()
            session.row = NO_ROW
            if failed is None:
                self._slot.probe_ends()
            elif self._slot.call_ends(failed):
                self._ring()
            if self._draining or self._full or len(self._waiting):
                # Not here: a greenlet that starts the next call is left in the middle of it, for ever.
                self._hub.loop.run_callback(self._use_place)

    def _use_place(self) -> None:
        """Give the place of a call that has ended to who waits for it."""
        while self._has_place and self._serve_next():
            pass
        if self._draining:
            self._end_if_idle()
        elif self._full:
            self._resume_accepting()

    def _end_if_idle(self) -> None:
        if self._draining and self._acceptors:
            self._leave_the_queue()
        if self._draining and not self._acceptors and not self._slot.active and not len(self._waiting):
            self._over.set()

    def _may_call(self, peer: str) -> bool:
        known = self._peers.get(peer)
        if known is None:
            if len(self._peers) >= _REMEMBERED_PEERS:
                self._peers.clear()
            known = self._peers[peer] = is_allowed(peer, self._config.allow)
        return known


def _close_the_terminal() -> None:
    """Handlers talk to Asterisk and to the log: what they print goes there, and there is nothing to read."""
    sys.stdout = PrintedLines()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def live(application: Application, surroundings: Surroundings, birth: Birth) -> int:
    """Be a worker, from birth to exit code (called in the child that the zygote forked)."""
    return Worker(birth, application, surroundings).run()
