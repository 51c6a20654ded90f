"""Dispatch: session -> route -> handler -> record. The only place where an exception becomes an outcome.

Laws:
    * Every accepted connection ends here in exactly one way: closed (a success to the dialplan),
      failed (AGISTATUS=FAILURE and the reason), or closed without a word because it came without one.
    * Whatever a handler does, the next call finds nothing of it: its context is dropped, its
      database connections are clean.
    * A caller who hangs up is no error, and a handler's traceback goes to the log, never further.
    * A call whose database is away and that may be done later is a success once it is in the journal, and
      not a moment before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from greenlet import greenlet

from fastagi_pool.call import Call, Dialogue, carry_by
from fastagi_pool.callboard import CallState
from fastagi_pool.context import Context
from fastagi_pool.deferring import Deferrals, make_entry
from fastagi_pool.endings import GO_ON, OnError, last_words
from fastagi_pool.errors import (
    AGIDeadChannel,
    CallEnded,
    CallHangup,
    CallOutOfStep,
    CallPeerGone,
    CallStopped,
    CallTimeout,
    DatabaseBusy,
    DatabaseUnavailable,
    JournalUnavailable,
    LimitExceeded,
    Overloaded,
    Quarantined,
    RemoteProtocolError,
    ScriptFailed,
    ScriptNotFound,
    ToldFailure,
    UpstreamUnavailable,
)
from fastagi_pool.logs import CallRecord, RecordWriter, current_call, end_printing, value
from fastagi_pool.protocol import Request, max_command_bytes
from fastagi_pool.quarantine import Quarantine, fingerprint
from fastagi_pool.recording import OpenRecording, Recorder
from fastagi_pool.routes import Match, Route, RouteTable, script_fault
from fastagi_pool.session import Said, Session, SessionLimits
from fastagi_pool.slowlog import SlowCall, TimedCommand
from fastagi_pool.stacks import write_stack

if TYPE_CHECKING:
    from fastagi_pool.database import Database

Handler: TypeAlias = Callable[[Call, Context], object]

#: Which exception ends a call in which way; the first that fits. Anything else is an error.
_OUTCOMES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (CallHangup, "hangup"),
    (CallTimeout, "timeout"),
    (CallPeerGone, "gone"),
    (CallOutOfStep, "badrequest"),
    (CallStopped, "stopped"),
    (DatabaseUnavailable, "dbdown"),
    (DatabaseBusy, "dbdown"),
    (JournalUnavailable, "dbdown"),
    (RemoteProtocolError, "badrequest"),
    (Overloaded, "overload"),
    (Quarantined, "quarantined"),
    (ScriptNotFound, "notfound"),
    (ScriptFailed, "exit"),
    (LimitExceeded, "limit"),
    (UpstreamUnavailable, "upstream"),
    (ToldFailure, "failure"),
)
#: Outcomes of which the dialplan is told nothing: it went well, or will be done, or nobody is there.
_SILENT: Final = frozenset({"ok", "deferred", "hangup", "gone"})
#: Outcomes that an operator wants to hear of, though no line of code is to blame.
_WARNED: Final = frozenset(
    {
        "timeout",
        "stopped",
        "dbdown",
        "overload",
        "quarantined",
        "notfound",
        "exit",
        "limit",
        "upstream",
        "failure",
    }
)


class _Refused(Exception):
    """A call that reaches no handler."""

    def __init__(self, outcome: str, reason: str) -> None:
        self.outcome = outcome
        super().__init__(reason)


@dataclass(slots=True)
class _Progress:
    """What is known of a call so far.

    Attributes:
        masked: Whether what the caller dials must not be told.
        received_s: Wall clock time at which the whole request was there.
        received_mono_s: The same moment on the monotonic clock.
        told: The line by which the dialplan shall learn of the failure, and nothing besides; empty for the
            usual last words.
    """

    session: Session
    ref: str
    request: Request | None = None
    route: str = ""
    outcome: str = "ok"
    error: str = ""
    database_s: float = 0.0
    on_error: OnError = GO_ON
    call: Call | None = None
    recording: OpenRecording | None = None
    channel_dead: bool = False
    told: bytes = b""
    masked: bool = False
    received_s: float = 0.0
    received_mono_s: float = 0.0

    @property
    def channel_lives(self) -> bool:
        """Whether the dialplan may be sent elsewhere: after a hangup it would lose its h extension."""
        in_hangup = self.request is not None and self.request.extension == "h"
        return not (self.session.hung_up or self.channel_dead or in_hangup)

    @property
    def last_words(self) -> bytes:
        """What the dialplan is told about a failure."""
        if self.told:
            return self.told
        return last_words(self.outcome.upper(), self.error, self.ref, self.on_error, self.channel_lives)


class Door(Protocol):
    """What stands before the places of a worker; see ``admission.Admission``."""

    def admit(self, session: Session, lane: str) -> None:
        """Take a place for a call, and wait for one if there is none; raises Overloaded."""

    def leave(self, session: Session) -> None:
        """Give it to the next; nothing happens if the call has none."""


class _OpenDoor:
    """There is always a place."""

    def admit(self, session: Session, lane: str) -> None:
        """Let it in."""

    def leave(self, session: Session) -> None:
        """Let it go."""


class _CallLogger(logging.LoggerAdapter[logging.Logger]):
    """Puts the call's reference in front of what a handler logs."""

    def process(self, msg: object, kwargs: Any) -> tuple[str, Any]:
        """Prefix one message."""
        return f"call={self.extra['ref'] if self.extra else ''} {msg}", kwargs


class Dispatcher:
    """Serves sessions; one per worker."""

    def __init__(
        self,
        table: RouteTable,
        handlers: Mapping[str, Handler],
        databases: Mapping[str, Database],
        state: dict[str, Any],
        log: logging.Logger,
        records: Sequence[RecordWriter],
        ref_prefix: str,
        on_error: OnError = GO_ON,
        recorder: Recorder | None = None,
        on_slow: Callable[[SlowCall], object] | None = None,
        door: Door | None = None,
        quarantine: Quarantine | None = None,
        deferrals: Deferrals | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            table: The routes.
            handlers: The handler of each route, by the route's name.
            databases: The worker's databases by name.
            state: What ``setup`` left for the calls.
            log: Where errors go.
            records: Where records of calls go: access logs, counters.
            ref_prefix: Makes this worker's call references unlike any other's.
            on_error: What the dialplan does after a failure of a call that found no route.
            recorder: Records calls that somebody wants; None for none.
            on_slow: Told of each call that is slow by its route's measure, once; must neither wait nor raise.
            door: Lets calls in; None to let all in.
            quarantine: Knows the requests that have ended workers; None for none.
            deferrals: Where calls go whose database is away; None for nowhere.
        """
        self._table = table
        self._handlers = handlers
        self._databases = databases
        self._state = state
        self._log = log
        self._records = records
        self._ref_prefix = ref_prefix
        self._on_error = on_error
        self._recorder = recorder
        self._on_slow = on_slow
        self._door = door or _OpenDoor()
        self._quarantine = quarantine
        self._deferrals = deferrals
        self._serial = 0
        self._under_way: dict[Session, _Progress] = {}
        self._routes = {route.name: route for route in table.routes}
        self._limits = {route.name: _session_limits(route) for route in table.routes}

    def serve(self, session: Session) -> bool | None:
        """Carry one session to its end.

        Returns:
            Whether it failed; None if it was no call, but a probe that closed without a word.
        """
        progress = _Progress(session, self._next_ref(), on_error=self._on_error)
        self._under_way[session] = progress
        try:
            try:
                progress.request = session.receive_request()
                if progress.request is None:
                    session.close()
                    return None
                self._run(progress, progress.request)
            except BaseException as raised:
                self._explain(raised, progress)
            finally:
                self._door.leave(session)
            self._end(progress)
        finally:
            del self._under_way[session]
        return progress.outcome not in _SILENT

    def refuse(self, session: Session, outcome: str, reason: str) -> bool:
        """End a session that shall reach no handler; always a failure.

        Args:
            session: The session; what it has to say is not read.
            outcome: ``denied`` or ``overload``.
            reason: Why, for the log and the dialplan.
        """
        progress = _Progress(session, self._next_ref(), on_error=self._on_error)
        progress.outcome, progress.error = outcome, reason
        self._end(progress)
        return True

    def report_slow(self, session: Session) -> None:
        """Tell of a call that has become slow, with what its handler is doing; in the hub.

        Args:
            session: Whose ``slow_at_s`` has passed.
        """
        session.find_slow()
        if self._on_slow is not None:
            frame = session.greenlet.gr_frame if session.greenlet is not None else None
            self._on_slow(replace(self.describe(session), stack=write_stack(frame)))

    def calls(self) -> dict[greenlet, Session]:
        """Return the calls in progress by the greenlets that serve them. Any thread may ask."""
        under_way = list(self._under_way)
        return {session.greenlet: session for session in under_way if session.greenlet is not None}

    def describe(self, session: Session) -> SlowCall:
        """Say what is known of a call in progress, and what it does. Any thread may ask.

        Raises:
            KeyError: It has ended.
        """
        progress, now_s = self._under_way[session], monotonic()
        environment = progress.request.environment if progress.request else {}
        clocks = session.clocks(now_s)
        return SlowCall(
            ref=progress.ref,
            route=progress.route,
            script=progress.request.script if progress.request else "",
            peer=session.peer,
            uniqueid=environment.get("agi_uniqueid", ""),
            callerid=environment.get("agi_callerid", ""),
            state=session.state.words,
            state_s=max(0.0, now_s - session.since_s),
            queued_s=clocks.queued_s,
            asterisk_s=clocks.asterisk_s,
            script_s=clocks.script_s + clocks.database_s,
            database_s=clocks.database_s,
            commands=[_timed(said, session) for said in session.said()],
            sent=session.commands,
            statement=session.statement,
            masked=progress.masked,
        )

    def _next_ref(self) -> str:
        self._serial += 1
        return f"{self._ref_prefix}{self._serial:x}"

    def join_recordings(self) -> None:
        """Let the recorder follow calls in progress; in the hub, when it has seen an order that wants it."""
        if self._recorder is None:
            return
        for session, progress in self._under_way.items():
            if progress.call is None or progress.request is None:
                continue
            known = progress.recording
            route = self._routes[progress.route]
            joined = self._recorder.join(route, progress.request, progress.ref, session, known)
            progress.recording = joined
            if joined is not None and known is None:
                carry_by(progress.call, joined.dialogue)

    def _end(self, progress: _Progress) -> None:
        """Close the session as the outcome demands, and write the call's line."""
        session = progress.session
        if session.exceeds:
            # Between two looks of the worker, or while the handler let nobody look.
            session.find_slow()
            if self._on_slow is not None:
                self._on_slow(replace(self.describe(session), state=CallState.ENDING.words))
        if progress.outcome in _SILENT:
            session.close()
        else:
            session.row.ending(monotonic())
            session.fail(progress.last_words)
        recording = progress.recording if self._recorder is not None else None
        if not self._records and recording is None:
            return
        record = self._record(progress)
        if self._recorder is not None and recording is not None:
            self._recorder.end(recording, progress.outcome, record)
        wall_s = time.time()
        for records in self._records:
            records.write(record, wall_s)

    def _find(self, request: Request) -> Match:
        match = self._table.match(request)
        if match is None or not match.route.free_names:
            fault = script_fault(request.script)
            if fault:
                raise _Refused("badrequest", fault)
        if match is None:
            raise _Refused("noroute", "no route matches the script, and there is no default")
        return match

    def _run(self, progress: _Progress, request: Request) -> None:
        session, environment = progress.session, request.environment
        progress.received_s, progress.received_mono_s = time.time(), monotonic()
        session.row.known(
            progress.ref,
            request.script,
            environment.get("agi_uniqueid", ""),
            environment.get("agi_channel", ""),
            environment.get("agi_callerid", ""),
        )
        match = self._find(request)
        route = match.route
        progress.route, progress.masked = route.name, route.mask_digits
        progress.on_error = route.on_error
        self._refuse_the_deadly(request, session)
        self._door.admit(session, route.lane)
        deferrals = self._deferrals if route.deferred_by else None
        if deferrals is None:
            self._require_databases(route)
        current_call.set(progress.ref)
        session.begin(self._limits[route.name], route.raise_hangup)
        session.row.routed(route.name, monotonic())
        if deferrals is None:
            self._handle(progress, request, match)
        elif deferrals.must_join(route.deferred_by) or not self._databases[route.deferred_by].available:
            self._defer(progress, request, route, deferrals, begun=False)
        else:
            try:
                self._require_databases(route)
                self._handle(progress, request, match)
            except (DatabaseUnavailable, DatabaseBusy) as away:
                if away.database != route.deferred_by:
                    raise
                self._defer(progress, request, route, deferrals, begun=progress.call is not None)

    def _refuse_the_deadly(self, request: Request, session: Session) -> None:
        likeness = fingerprint(request)
        session.row.resembles(likeness)
        if self._quarantine is not None and self._quarantine.refuses(likeness, monotonic()):
            raise Quarantined("requests like this one have ended workers, and are not tried for a while")

    def _require_databases(self, route: Route) -> None:
        for name in route.databases:
            if not self._databases[name].available:
                raise DatabaseUnavailable(name, "it did not answer a moment ago, and the route needs it")

    def _handle(self, progress: _Progress, request: Request, match: Match) -> None:
        """Have the route's handler serve the call."""
        session, route = progress.session, match.route
        progress.call = call = self._make_call(progress, request, match)
        log = _CallLogger(self._log, {"ref": progress.ref})
        mark = defers = ""
        if self._deferrals is not None and route.deferred_by:
            defers = route.deferred_by
            mark = "" if route.repeatable else self._deferrals.mark_of(progress.ref)
        context = Context(self._databases, log, self._state, route.options, session, mark, defers)
        away: DatabaseUnavailable | DatabaseBusy | None = None
        try:
            try:
                self._handlers[route.name](call, context)
            except (DatabaseUnavailable, DatabaseBusy) as failure:
                away = failure if failure.database == defers else None
                raise
            finally:
                # Raises what ended the call, even if the handler has swallowed it.
                session.settle()
        finally:
            in_doubt = context.in_doubt
            self._tidy_up(progress, call, context)
            if in_doubt:
                # Instead of whatever ended it: its rows may be there, and its mark will tell.
                raise DatabaseUnavailable(defers, "nobody knows whether it has carried out the commit")
            if away is not None:
                # Whatever ended it besides: it is to be done later.
                raise away

    def _defer(
        self, progress: _Progress, request: Request, route: Route, deferrals: Deferrals, begun: bool
    ) -> None:
        """Write the call down, to be done when its database is back; to the dialplan that is a success."""
        session = progress.session
        entry = make_entry(
            request,
            route.name,
            route.deferred_by,
            progress.ref,
            progress.received_s,
            progress.received_mono_s,
            session.peer,
            begun,
        )
        began_s = monotonic()
        session.waits("the journal", began_s)
        try:
            deferrals.defer(entry)
        finally:
            now_s = monotonic()
            session.answered(now_s - began_s, now_s)
        try:
            session.settle()
        except CallEnded:
            pass  # Whatever interrupted it, it is written down: to call it a failure would be a lie.
        progress.outcome = "deferred"

    def _tidy_up(self, progress: _Progress, call: Call, context: Context) -> None:
        """Leave nothing of a handler behind, and say what it should not have left."""
        end_printing()
        left, progress.database_s = context.release()
        if left:
            self._blame(progress, f"left {left} database connections open")
        if call.refused:
            self._blame(progress, f"the guard held back {call.refused} commands")

    def _blame(self, progress: _Progress, what: str) -> None:
        self._log.warning("call=%s route=%s %s", progress.ref, value(progress.route), what)

    def _make_call(self, progress: _Progress, request: Request, match: Match) -> Call:
        route = match.route
        dialogue: Dialogue = progress.session
        if self._recorder is not None and self._recorder.active:
            progress.recording = self._recorder.begin(route, request, progress.ref, dialogue)
            if progress.recording is not None:
                dialogue = progress.recording.dialogue
        longest = max_command_bytes(request.environment.get("agi_version", ""))
        return Call(
            request,
            dialogue,
            match.captures,
            progress.ref,
            longest,
            route.clean_arguments,
            progress.received_s,
            deferrable=bool(route.deferred_by) and self._deferrals is not None,
        )

    def _explain(self, raised: BaseException, progress: _Progress) -> None:
        """Turn what ended the call into its outcome and one line about it; log what is a fault."""
        if isinstance(raised, _Refused):
            progress.outcome, progress.error = raised.outcome, str(raised)
            return
        outcome = next((word for kind, word in _OUTCOMES if isinstance(raised, kind)), "error")
        if outcome == "error" and getattr(raised, "connection_invalidated", False):
            # SQLAlchemy's word for a server that went away in the middle of a statement.
            outcome = "dbdown"
        progress.channel_dead = isinstance(raised, AGIDeadChannel)
        if isinstance(raised, ToldFailure) and raised.said_all:
            progress.told = raised.line
        if isinstance(raised, AGIDeadChannel) and progress.session.hung_up:
            outcome = "hangup"
        progress.outcome = outcome
        if outcome == "hangup":
            return
        progress.error = f"{type(raised).__name__}: {_text(raised)}"
        what = (progress.ref, value(progress.route), progress.error)
        if outcome == "error":
            self._log.error("call=%s route=%s failed: %s", *what, exc_info=raised)
        elif outcome in _WARNED and progress.request is not None:
            # Who never said what he wants is somebody else's trouble, and may come by thousands.
            self._log.warning("call=%s route=%s ended: %s", *what)

    def _record(self, progress: _Progress) -> CallRecord:
        session, request = progress.session, progress.request
        environment = request.environment if request else {}
        return CallRecord(
            ref=progress.ref,
            route=progress.route,
            script=request.script if request else "",
            outcome=progress.outcome,
            hung_up=session.hung_up,
            commands=session.commands,
            total_s=monotonic() - session.accepted_s,
            asterisk_s=session.asterisk_s,
            script_s=session.script_s,
            database_s=progress.database_s,
            peer=session.peer,
            uniqueid=environment.get("agi_uniqueid", ""),
            callerid=environment.get("agi_callerid", ""),
            error=progress.error,
            refused=progress.call.refused if progress.call else 0,
            held_s=None if session.finished_s is None else session.finished_s - session.accepted_s,
            queued_s=session.queued_s,
        )


def _timed(said: Said, session: Session) -> TimedCommand:
    line = said.line.decode("utf-8", "backslashreplace").rstrip("\n")
    return TimedCommand(said.began_s - session.accepted_s, line, said.took_s)


def _session_limits(route: Route) -> SessionLimits:
    return SessionLimits(
        idle_s=route.idle_timeout_s,
        script_s=route.script_timeout_s,
        slow_s=route.slow_after_s,
        drain_s=route.drain_timeout_s,
        masked=route.mask_digits,
    )


def _text(raised: BaseException) -> str:
    """Return what an exception says, if it can: its ``__str__`` may be a handler's."""
    try:
        return str(raised)
    except Exception as error:
        return f"(its text cannot be had: {type(error).__name__})"
