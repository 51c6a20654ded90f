"""Worker: the life of a child. Accepts calls, serves each in a greenlet, drains, ends.

Laws:
    * A connection that was accepted is served to its end; a worker that must go stops accepting
      and leaves what waits in the queue to the others.
    * Nothing of the master's is decided here. The worker says how it fares in its scoreboard slot,
      wakes the master when it was asked to, and does what signals tell it (see :data:`WORKER_SIGNALS`).
    * A worker whose master is gone drains and ends: nobody would replace or watch it.
    * A call in a worker that drains goes on for as long as its route gives it then, and no longer.

Connections come in by ``reception``. What a call wants is read first, then it waits for a place in its lane
for a bounded time (``admission``), or is told that there is none.

Beside each worker lives its witness, which has the same sockets open and tells the truth if the worker dies.
What it gives away of calls that had not begun, any worker takes.
"""

from __future__ import annotations

import faulthandler
import os
import secrets
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

from fastagi_pool import callboard, stacks
from fastagi_pool.admission import Admission
from fastagi_pool.application import Application
from fastagi_pool.attendants import Attendants
from fastagi_pool.callboard import NO_ROW
from fastagi_pool.context import Context
from fastagi_pool.custody import NO_CUSTODY, Custody, NoCustody, most_descriptors
from fastagi_pool.deferring import Deferrals
from fastagi_pool.dispatch import Dispatcher
from fastagi_pool.endings import OnError
from fastagi_pool.errors import DatabaseUnavailable, JournalUnavailable, OperatorError
from fastagi_pool.handlers.builtin import Load
from fastagi_pool.lanes import Lanes
from fastagi_pool.listeners import welcome
from fastagi_pool.logs import SYSLOG, AccessLog, LogFile, PrintedLines, rename, reopen_all
from fastagi_pool.lookout import Lookout
from fastagi_pool.messages import DUMP_SIGNAL, Inheritance
from fastagi_pool.quarantine import FILE as QUARANTINE_FILE
from fastagi_pool.quarantine import Quarantine
from fastagi_pool.reception import MOST_REFUSED, Reception, Refusal
from fastagi_pool.recording import FOLDER, Recorder
from fastagi_pool.scoreboard import Scoreboard, SlotWriter, WorkerState
from fastagi_pool.session import Session
from fastagi_pool.showing import Showing
from fastagi_pool.slowlog import SlowLog
from fastagi_pool.witness import Ward, Witness, crash_words, post

#: What a worker listens to; everything else that the master understands it ignores.
WORKER_SIGNALS: Final = frozenset(
    {signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGUSR1, DUMP_SIGNAL}
)
#: How often limits of sessions are looked at: how late a time-out may come.
SWEEP_S: Final = 0.1
#: Slow calls that are written down at one look, stack and all: hundreds would keep others from their turn.
MOST_SLOW: Final = 50
#: How often a worker gives a sign of life, unless the watchdog wants it more often.
BEAT_S: Final = 1.0
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
        inheritance: What the master gives all its children.
    """

    log: LogFile
    access: LogFile | None
    slow: LogFile | None
    inheritance: Inheritance


class Worker:
    """One worker process, from after the fork to its exit code."""

    def __init__(
        self,
        birth: Birth,
        application: Application,
        surroundings: Surroundings,
        custody: Custody | NoCustody,
        witness: int,
    ) -> None:
        """Take the slot over. Called in the child.

        Args:
            birth: Who we are.
            application: What to serve.
            surroundings: What we inherited.
            custody: Where it stands which descriptors are calls.
            witness: The process that tells the truth if this one dies; 0 for none.
        """
        self._pid = os.getpid()
        self._config = application.config
        self._application = application
        self._surroundings = surroundings
        self._birth = birth
        self._board = birth.scoreboard
        self._slot = SlotWriter(self._board, birth.slot)
        self._slot.begin(self._pid, birth.generation, monotonic(), witness)
        self._identity = f"worker={birth.slot} gen={birth.generation} pid={self._pid}"
        self._log = rename(self._identity)
        # A handler module that used gevent while it was imported left a hub of the zygote's.
        gevent.reinit()
        self._hub: Any = gevent.get_hub()
        # What fails in the hub or in a greenlet that a handler started must be found in the log.
        self._hub.exception_stream = surroundings.log
        self._lifeline = self._hub.loop.io(surroundings.inheritance.lifeline, _READ)
        self._attendants = Attendants(self._hub)
        self._custody = custody
        self._witness = self._hub.loop.io(os.pidfd_open(witness), _READ) if witness else None
        self._sessions: set[Session] = set()
        self._watchers: list[Any] = []
        self._draining = False
        self._draining_since_s = 0.0
        self._over = gevent.event.Event()
        self._databases = application.make_databases()
        self._state: dict[str, Any] = {}
        if application.door is not None:
            application.door.leave_the_far_end()
        self._launches = application.connect_scripts(self._log)
        self._recorder = Recorder(self._config.runtime_dir / FOLDER)
        self._limits = (application.session_limits, application.header_limits)
        self._max_active = self._config.calls_per_worker
        self._admission = self._open_admission()
        self._deferrals = self._open_journal()
        self._reception = self._open_reception()
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
        if self._witness is not None:
            self._witness.start(self._on_witness_gone)
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
            self._application.open_databases(self._databases, self._log, self._birth.prove)
            if self._birth.prove:
                self._application.make_marks(self._databases)
            for setup in self._application.setups:
                setup(self._worker_context())
        except (DatabaseUnavailable, OperatorError) as error:
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

    def _build_dispatcher(self) -> Dispatcher:
        return Dispatcher(
            table=self._application.served,
            handlers={**self._application.handlers, **self._application.builtin},
            databases=self._databases,
            state=self._state,
            log=self._log,
            records=[*([self._access] if self._access else []), *self._showing.records],
            # In a container pids and seconds repeat themselves, and clocks are stepped; references must not.
            ref_prefix=f"{int(time.time()):x}-{self._pid:x}{secrets.token_hex(3)}-",
            on_error=OnError.parse(self._config.on_error),
            recorder=self._recorder,
            on_slow=self._showing.on_slow,
            door=self._admission,
            quarantine=self._open_quarantine(),
            deferrals=self._deferrals,
        )

    def _open_reception(self) -> Reception:
        spare = most_descriptors() - self._application.descriptors
        return Reception(
            hub=self._hub,
            board=self._board,
            slot=self._slot,
            listeners=self._birth.listeners,
            taking_fd=self._surroundings.inheritance.handover[0],
            make_session=self._make_session,
            begin=self._begin,
            places=self._max_active,
            taken=lambda: self._admission.active,
            most_silent=min(self._config.limits.connections, max(1, spare)),
            allow=self._config.allow,
            log=self._log,
        )

    def _open_admission(self) -> Admission:
        application, limits = self._application, self._config.limits
        lanes: Lanes[Any] = Lanes(self._max_active, application.lanes, limits.calls_per_server)
        return Admission(lanes, self._hub, self._slot.set_queued)

    def _open_journal(self) -> Deferrals | None:
        """Open the journal, if there is one; each call tries again what fails here."""
        journal = self._application.make_journal()
        if journal is None:
            return None
        try:
            journal.reach()
        except JournalUnavailable as error:
            self._log.error("calls whose database is away fail while this lasts: %s", error)
        return Deferrals(journal, self._hub, self._application.marks().mark_of)

    def _open_quarantine(self) -> Quarantine | None:
        try:
            return Quarantine.attach(self._config.runtime_dir / QUARANTINE_FILE)
        except (OSError, ValueError) as error:
            self._log.warning("requests that end workers are not refused: %s", error)
            return None

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
            sum(lane.max_queue for lane in self._application.lanes) + MOST_REFUSED,
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
            self._reception.open()
            self._slot.set_state(WorkerState.READY)
        self._ring()

    def _end(self) -> int:
        for teardown in self._application.teardowns:
            try:
                teardown(self._worker_context())
            except Exception:
                self._log.exception("teardown failed")
        if self._deferrals is not None:
            self._deferrals.close()
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
        self._reception.close_the_doors()
        self._drain()
        self._watch(self._hub.loop.timer(self._config.graceful_timeout), self._stop)

    def _on_witness_gone(self) -> None:
        if self._witness is not None:
            self._witness.stop()
        self._log.error("the witness is gone: nobody would tell the truth if this worker died; it drains")
        self._drain()

    def _drain(self) -> None:
        if self._draining:
            return
        self._draining = True
        self._draining_since_s = monotonic()
        self._slot.set_state(WorkerState.DRAINING)
        # Nobody new comes: they need not wait.
        self._admission.drain()
        # Some may have come between the closing of the door and this order.
        for session in self._sessions:
            if session.fileno() >= 0:
                welcome(session.fileno())
        self._reception.leave()
        self._end_if_idle()

    def _stop(self) -> None:
        self._drain()
        now_s = monotonic()
        self._reception.stop(now_s)
        for session in list(self._sessions):
            session.stop(now_s)

    def _reopen_logs(self) -> None:
        surroundings = self._surroundings
        reopen_all((surroundings.log, surroundings.access, surroundings.slow))

    def _ring(self) -> None:
        try:
            os.write(self._surroundings.inheritance.bell, b"!")
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
        files = {self._surroundings.log, self._surroundings.access, self._surroundings.slow}
        lost_lines = sum(file.lost_lines for file in files if file is not None)
        lanes = zip(self._application.lanes, self._admission.facts(), strict=True)
        self._showing.publish(now_s, lost_lines, self._databases.values(), lanes)
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
        self._reception.sweep(now_s)
        self._admission.sweep(now_s)
        self._end_if_idle()

    # --- calls

    def _make_session(self, descriptor: int, peer: str) -> Session:
        return Session(descriptor, peer, self._hub, *self._limits, NO_ROW, self._custody)

    def _begin(self, session: Session, refusal: Refusal | None) -> None:
        """Serve a session in a greenlet of its own, or tell it that it is not served."""
        self._slot.call_begins()
        session.show_in(self._showing.new_row())
        if refusal is None:
            self._attendants.attend(self._serve, session)
        else:
            self._attendants.attend(partial(self._refuse, refusal), session)

    def _serve(self, session: Session) -> None:
        self._carry(session, self._dispatcher.serve)

    def _refuse(self, refusal: Refusal, session: Session) -> None:
        self._carry(session, lambda each: self._dispatcher.refuse(each, refusal.outcome, refusal.reason))
        self._reception.was_refused(session)

    def _carry(self, session: Session, serve: Callable[[Session], bool | None]) -> None:
        """Carry a session to its end, come what may, and count it unless it was a mere probe."""
        self._sessions.add(session)
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
            if self._draining:
                # Not here: this greenlet would end the worker in the middle of its own call.
                self._hub.loop.run_callback(self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self._draining and self._reception.leave() and not self._slot.active:
            self._reception.close()
            self._over.set()


def _post_witness(
    application: Application, surroundings: Surroundings, birth: Birth, custody: Custody
) -> int:
    """Make the process that tells the truth if this one dies, and return its pid.

    Raises:
        RuntimeError: This is no machine on which that can be done.
        OSError: There is no memory for it.
    """
    config, files = application.config, (surroundings.log, surroundings.access, surroundings.slow)
    for file in files:
        if file is not None and file.target == SYSLOG:
            # Opened anew by each: of two who share one, one would close the other's, or another's by then.
            file.reopen()
    ward = Ward(
        slot=birth.slot,
        generation=birth.generation,
        pid=os.getpid(),
        gone_fd=os.pidfd_open(os.getpid()),
        calls_file=config.runtime_dir / callboard.FOLDER / str(birth.slot),
        listeners=birth.listeners,
        kept={file.fileno() for file in files if file is not None},
    )
    words = partial(
        crash_words,
        on_errors={route.name: route.on_error for route in application.served.routes},
        otherwise=OnError.parse(config.on_error),
    )
    taking, giving = surroundings.inheritance.handover
    lifeline = surroundings.inheritance.lifeline
    witness = Witness(ward, custody, giving, words, taking, lifeline)
    return post(witness.run)


def _close_the_terminal() -> None:
    """Handlers talk to Asterisk and to the log: what they print goes there, and there is nothing to read."""
    sys.stdout = PrintedLines()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def live(application: Application, surroundings: Surroundings, birth: Birth) -> int:
    """Be a worker, from birth to exit code (called in the child that the zygote forked)."""
    if not application.config.witness:
        return Worker(birth, application, surroundings, NO_CUSTODY, 0).run()
    custody = Custody(most_descriptors())
    witness = _post_witness(application, surroundings, birth, custody)
    return Worker(birth, application, surroundings, custody, witness).run()
