"""Replay: calls of the journal are done at last, in their order.

Laws:
    * A call is done once: its mark is written in the transaction of its rows, before its handler runs, and an
      entry whose mark is there is only taken out of the journal.
    * It leaves the journal after the commit, never before.
    * One database after the other, and the calls of each in the order of the journal. A database that is away
      holds up its own calls only.
    * What cannot be done for a reason of its own goes to quarantine, with the reason; no other waits for it.
    * A call from the journal speaks to nobody: every command is answered with 200 result=0.

How it works: several entries share a transaction, and some of them run at the same time so that their
handlers share statements (see ``grouping``); that is what makes it quick. If one of them fails the whole is
rolled back, and those before it are done without it. Which entry runs stands in a small file, so that one
that ends the process is found out by the next process.

What a handler does elsewhere (another database, a file, a service) is done again whenever its transaction is.
"""

from __future__ import annotations

import contextvars
import logging
import os
import struct
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gevent
from sqlalchemy import exc

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.database import TryAgain, passes
from fastagi_pool.deferring import request_of
from fastagi_pool.errors import DatabaseBusy, DatabaseUnavailable, JournalUnavailable, OperatorError
from fastagi_pool.logs import value
from fastagi_pool.marks import FORGOTTEN_AT_ONCE
from fastagi_pool.protocol import Reply, max_command_bytes
from fastagi_pool.replayorder import Pace, Verdict, judge, portion, waves
from fastagi_pool.routes import RouteTable

if TYPE_CHECKING:
    from gevent.event import Event
    from sqlalchemy import Connection

    from fastagi_pool.dispatch import Handler
    from fastagi_pool.journal import Entry, Journal
    from fastagi_pool.marks import Marks
    from fastagi_pool.protocol import Request
    from fastagi_pool.routes import Route
    from fastagi_pool.together import Together, Whole

#: How often the journal is looked at while there is nothing to do.
LOOK_S: Final = 0.05
#: An entry that was running when the process died so often is what ends it.
MOST_DEATHS: Final = 2
#: How long a mark is kept that no entry of the journal can need any more, and how often old ones are deleted.
MARK_AGE_S: Final = 86_400.0
FORGET_S: Final = 60.0
#: The same trouble is told of once in a while.
TELL_S: Final = 60.0
_ERROR_CHARS: Final = 8_000


class SilentDialogue:
    """Asterisk's side of a call that is long over: every command succeeds, and nothing comes of it."""

    hung_up = True

    def execute(self, line: bytes) -> Reply:
        """Answer a command."""
        return Reply(200, "0")

    def exchange(self, line: bytes) -> bytes:
        """Answer a line."""
        return b"200 result=0\n"

    def await_hangup(self) -> None:
        """Nothing arrives."""

    def finish(self) -> None:
        """There is nothing to give back."""

    def listen(self, on_unasked: Callable[[bytes], None]) -> None:
        """Nothing is said unasked."""


class RunningEntry:
    """The number of the entry that runs, in a file: it outlives the process, but not always the machine.

    Attributes:
        suspect: The entry that ran when the process before this one died; 0 for none.
        deaths: How often in a row a process died while it ran.
    """

    _RECORD: Final = struct.Struct("<QQQ")
    _NUMBER: Final = struct.Struct("<Q")

    def __init__(self, path: Path) -> None:
        """Open the file, and see who ran last.

        Args:
            path: The file; made if it is not there.

        Raises:
            OSError: It cannot be made.
        """
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        data = os.pread(self._file, self._RECORD.size, 0)
        ran, suspect, deaths = self._RECORD.unpack(data.ljust(self._RECORD.size, b"\0"))
        self.suspect: int = ran
        self.deaths: int = (deaths + 1 if ran == suspect else 1) if ran else 0
        os.pwrite(self._file, self._RECORD.pack(0, self.suspect, self.deaths), 0)

    def begins(self, number: int) -> None:
        """Note that an entry runs."""
        os.pwrite(self._file, self._NUMBER.pack(number), 0)

    def ends(self) -> None:
        """Note that none does."""
        os.pwrite(self._file, self._NUMBER.pack(0), 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class _Failed(Exception):
    """An entry of a portion could not be done."""

    def __init__(self, entry: Entry, error: BaseException | None, why: str) -> None:
        self.entry = entry
        self.error = error
        super().__init__(why)


class _Torn(Exception):
    """Handlers that open transactions were run at the same time: they must be run one after the other."""


class Replayer:
    """Does the calls of a node's journal.

    Args:
        journal: Where they are.
        marks: Of this node.
        table: The routes.
        handlers: The handler of each route, by the route's name.
        databases: All databases, by name.
        state: What ``setup`` left for the calls.
        running: Where it is noted which entry runs.
        log: Told of what cannot be done, and of the end.
        clock: Seconds that only grow; for tests.

    Attributes:
        done: Entries that were done so far.
        failed: Entries that went to quarantine so far.
    """

    def __init__(
        self,
        journal: Journal,
        marks: Marks,
        table: RouteTable,
        handlers: Mapping[str, Handler],
        databases: Mapping[str, Together],
        state: dict[str, Any],
        running: RunningEntry,
        log: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = self.failed = 0
        self._journal = journal
        self._backlog = journal.backlog
        self._marks = marks
        self._routes = {route.name: route for route in table.routes}
        self._patterns = {name: RouteTable([_bare(route)]) for name, route in self._routes.items()}
        self._handlers = handlers
        self._databases = databases
        self._state = state
        self._running = running
        self._log = log
        self._clock = clock
        self._paces = {name: Pace() for name in databases}
        self._mixing = {name for name, route in self._routes.items() if route.repeatable}
        self._suspects = {running.suspect} if running.suspect else set()
        self._marked: set[str] = set()
        self._begun: dict[str, tuple[float, int, int]] = {}
        self._forget_s = dict.fromkeys(databases, 0.0)
        self._told: dict[str, tuple[str, float]] = {}

    def run(self, over: Event) -> None:
        """Do what there is to do until told to end; a transaction that was begun is finished.

        Args:
            over: Set by whoever wants it to end.
        """
        self._put_aside_unknown()
        while not over.is_set():
            busy = False
            for name in self._databases:
                busy = (not over.is_set() and self.look(name)) or busy
            if not busy:
                over.wait(LOOK_S)

    def waits(self) -> bool:
        """Tell whether there is anything to do for a database that can be reached."""
        return any(self._backlog.waits(name) and each.available for name, each in self._databases.items())

    def look(self, name: str) -> bool:
        """Do the next entries of a database, if there are any and it can be reached.

        Returns:
            Whether any left the journal.
        """
        now_s = self._clock()
        database, pace = self._databases[name], self._paces[name]
        if not self._backlog.waits(name):
            self._tell_end(name)
            self._forget_marks(name, now_s)
            return False
        if now_s < pace.due_s or not database.available:
            return False
        self._begun.setdefault(name, (now_s, self.done, self.failed))
        try:
            self._make_marks(name, database)
            return self._do_next(name, database, pace)
        except (DatabaseUnavailable, DatabaseBusy, TryAgain, JournalUnavailable, OperatorError) as trouble:
            self._tell(name, str(trouble))
        except exc.DBAPIError as error:
            self._tell(name, database.reason(error))
        pace.stood_in_the_way(self._clock())
        return False

    # --- portions

    def _do_next(self, name: str, database: Together, pace: Pace) -> bool:
        entries = portion(self._journal.next_entries(name, pace.size), self._suspects)
        unfit = {entry.number: why for entry in entries if (why := self._why_unfit(entry))}
        if unfit:
            self._put_aside([entry for entry in entries if entry.number in unfit], unfit, database)
            return True
        if not entries:
            return False
        began_s = self._clock()
        try:
            self._do(entries, database)
        except _Failed as failure:
            return self._blame(failure, entries)
        except _Torn:
            return True
        except exc.DBAPIError as refused:
            # The commit itself: which entry made the database refuse it, it does not say.
            if len(entries) > 1:
                pace.doubt()
                return True
            return self._blame(_Failed(entries[0], refused, database.reason(refused)), entries)
        self._journal.settle(done=[entry.number for entry in entries], failed=[])
        self.done += len(entries)
        self._suspects.difference_update(entry.number for entry in entries)
        pace.went_well(len(entries), self._clock() - began_s)
        return True

    def _do(self, entries: Sequence[Entry], database: Together) -> None:
        """Run entries in one transaction, but for those that are done already."""
        with database.transaction() as whole:
            try:
                left = self._left_to_do(entries, whole.connection)
                if left:
                    marks = [self._marks.mark_of(entry.ref) for entry in left]
                    self._marks.write(whole.connection, marks)
            except exc.DBAPIError as error:
                # No entry is to blame: one was done meanwhile, or its mark is held by a transaction that the
                # server has not missed yet, or the table is gone with a backup that was restored.
                self._marked.discard(database.name)
                raise TryAgain(f"their marks: {database.reason(error)}", in_doubt=False) from error
            # While an entry is suspected of ending the process, it must be known which one runs.
            for wave in waves(left, () if self._running.suspect in self._suspects else self._mixing):
                self._run_wave(wave, whole)

    def _left_to_do(self, entries: Sequence[Entry], connection: Connection) -> list[Entry]:
        """Give those of some entries whose marks are not there."""
        marks = {entry.number: self._marks.mark_of(entry.ref) for entry in entries}
        known = self._marks.known(connection, list(marks.values()))
        return [entry for entry in entries if marks[entry.number] not in known]

    def _run_wave(self, wave: Sequence[Entry], whole: Whole) -> None:
        """Run the handlers of entries at the same time.

        Raises:
            _Failed: One cannot be done.
            TryAgain: Something stood in the way that passes.
            _Torn: They cannot be run at the same time.
        """
        whole.mixed = len(wave) > 1
        whole.at_time(wave[0].received_s)
        try:
            if len(wave) == 1:
                self._run(wave[0], whole)
                return
            running = [gevent.spawn(self._run_beside_others, entry, whole) for entry in wave]
            troubles = [trouble for each in gevent.joinall(running) if (trouble := each.get()) is not None]
        finally:
            whole.mixed = False
            self._running.ends()
        if whole.torn:
            self._mixing.difference_update(entry.route for entry in wave)
            raise _Torn
        # What one has done wrong, others may only have suffered from.
        for trouble in sorted(troubles, key=lambda each: not isinstance(each, _Failed)):
            raise trouble

    def _run_beside_others(self, entry: Entry, whole: Whole) -> _Failed | TryAgain | None:
        try:
            self._run(entry, whole)
        except (_Failed, TryAgain) as trouble:
            return trouble
        return None

    def _run(self, entry: Entry, whole: Whole) -> None:
        """Run the handler of an entry.

        Raises:
            _Failed: It cannot be done.
            TryAgain: Something stood in the way that passes.
        """
        route = self._routes[entry.route]
        request = request_of(entry)
        patience = gevent.Timeout(route.script_timeout_s or None)
        context = self._context(entry, route)
        self._running.begins(entry.number)
        raised: BaseException | None = None
        try:
            with patience:
                call = self._call(entry, route, request)
                contextvars.Context().run(self._handlers[route.name], call, context)
        except BaseException as error:
            raised = error
        finally:
            context.release()
        if isinstance(raised, exc.DBAPIError) and _passing(raised):
            raise TryAgain(str(raised.orig), in_doubt=False) from raised
        verdict = judge(raised, whole.broken, whole.passes, own_fault=raised is patience)
        if verdict is Verdict.AGAIN:
            raise TryAgain(whole.broken or str(raised), in_doubt=False) from raised
        if verdict is Verdict.FAILED:
            raise _Failed(entry, raised, self._why(raised, patience, route, whole)) from raised

    def _context(self, entry: Entry, route: Route) -> Context:
        log = _EntryLogger(self._log, {"ref": entry.ref})
        return Context(self._databases, log, self._state, route.options)

    def _call(self, entry: Entry, route: Route, request: Request) -> Call:
        return Call(
            request,
            SilentDialogue(),
            _captures(self._patterns[route.name], request),
            entry.ref,
            max_command_bytes(request.environment.get("agi_version", "")),
            route.clean_arguments,
            received_s=entry.received_s,
            deferred=True,
            begun_before=entry.begun or bool(entry.attempts) or entry.number in self._suspects,
        )

    def _why_unfit(self, entry: Entry) -> str:
        """Say why an entry cannot be run at all; empty if it can be."""
        if entry.number == self._running.suspect and self._running.deaths >= MOST_DEATHS:
            return f"the process that replays the journal died {self._running.deaths} times while it ran this"
        route = self._routes.get(entry.route)
        if route is None:
            return f"the configuration has no route {entry.route!r} any more"
        if not route.deferred_by:
            return f"the handler of route {entry.route!r} is not deferrable any more"
        if route.deferred_by != entry.database:
            return f"the calls of route {entry.route!r} belong to database {route.deferred_by!r} now"
        return ""

    @staticmethod
    def _why(raised: BaseException | None, patience: gevent.Timeout, route: Route, whole: Whole) -> str:
        if raised is patience:
            return f"it ran longer than its route allows (script_timeout: {route.script_timeout_s:g} s)"
        if raised is None:
            return f"its handler left the transaction in pieces: {whole.broken}"
        try:
            return f"{type(raised).__name__}: {raised}"
        except Exception as error:
            return f"{type(raised).__name__} (its text cannot be had: {type(error).__name__})"

    # --- quarantine

    def _put_aside_unknown(self) -> None:
        """Quarantine the calls of databases that the configuration does not have any more."""
        try:
            for facts in self._journal.facts().databases:
                if facts.waiting and facts.database not in self._databases:
                    entries = self._journal.next_entries(facts.database, facts.waiting)
                    why = f"the configuration has no database {facts.database!r} any more"
                    self._quarantine(entries, [(entry.number, why) for entry in entries])
        except JournalUnavailable as error:
            self._log.error("calls of databases that are gone stay in the journal: %s", error)

    def _put_aside(self, entries: Sequence[Entry], why: Mapping[int, str], database: Together) -> None:
        """Quarantine what cannot be run, but for what is done already: its mark is not kept for ever."""
        with database.lease().begin() as connection:
            left = self._left_to_do(entries, connection)
        done = {entry.number for entry in entries} - {entry.number for entry in left}
        self._journal.settle(done=done)
        self.done += len(done)
        self._suspects -= done
        if left:
            self._quarantine(left, [(entry.number, why[entry.number]) for entry in left])

    def _blame(self, failure: _Failed, entries: Sequence[Entry]) -> bool:
        """Have the entry that failed tried alone; if it was alone, put it into quarantine."""
        number = failure.entry.number
        if len(entries) > 1:
            self._suspects.add(number)
            return True
        what = str(failure)
        if failure.error is not None:
            lines = traceback.format_exception(failure.error)
            what = f"{what}\n{''.join(lines)}"[:_ERROR_CHARS]
        self._quarantine(entries, [(number, what)], failure.error)
        return True

    def _quarantine(
        self, entries: Sequence[Entry], failed: list[tuple[int, str]], error: BaseException | None = None
    ) -> None:
        self._journal.settle(done=[], failed=failed)
        self.failed += len(failed)
        known = {entry.number: entry for entry in entries}
        for number, why in failed:
            self._suspects.discard(number)
            entry = known[number]
            self._log.error(
                "call=%s route=%s entry %d of the journal goes to quarantine: %s",
                *(entry.ref, value(entry.route), number, why.partition("\n")[0]),
                exc_info=error,
            )

    # --- marks

    def _make_marks(self, name: str, database: Together) -> None:
        """See that the table of marks is there."""
        if name not in self._marked:
            with database.lease().begin() as connection:
                self._marks.create(connection)
            self._marked.add(name)

    def _forget_marks(self, name: str, now_s: float) -> None:
        """Delete old marks, now and then; only while no entry could need one."""
        if name not in self._marked or now_s < self._forget_s[name]:
            return
        self._forget_s[name] = now_s + FORGET_S
        try:
            forgotten = FORGOTTEN_AT_ONCE
            while forgotten >= FORGOTTEN_AT_ONCE:
                with self._databases[name].lease().begin() as connection:
                    forgotten = self._marks.forget_before(connection, MARK_AGE_S)
        except (DatabaseUnavailable, DatabaseBusy, exc.DBAPIError) as trouble:
            self._tell(name, f"old marks could not be deleted: {trouble}")

    # --- words

    def _tell(self, name: str, trouble: str) -> None:
        """Tell of trouble, of the same only once in a while."""
        now_s = self._clock()
        told, at_s = self._told.get(name, ("", 0.0))
        if trouble != told or now_s >= at_s + TELL_S:
            self._told[name] = trouble, now_s
            self._log.warning("calls for database %s wait in the journal: %s", name, trouble)

    def _tell_end(self, name: str) -> None:
        begun = self._begun.pop(name, None)
        if begun is not None:
            began_s, done, failed = begun
            took_s = self._clock() - began_s
            self._log.info(
                "the journal holds no calls for database %s any more: %d done, %d in quarantine, in %.1f s",
                *(name, self.done - done, self.failed - failed, took_s),
            )


def _bare(route: Route) -> Route:
    """Give a route that catches what it ever did, whatever else it asks of a call by now."""
    return replace(route, query={}, arguments={}, context="")


def _captures(table: RouteTable, request: Request) -> Mapping[str, str]:
    match = table.match(request)
    return match.captures if match is not None else {}


def _passing(error: exc.DBAPIError) -> bool:
    return error.connection_invalidated or (error.orig is not None and passes(error.orig))


class _EntryLogger(logging.LoggerAdapter[logging.Logger]):
    """Puts the call's reference in front of what a handler logs."""

    def process(self, msg: object, kwargs: Any) -> tuple[str, Any]:
        """Prefix one message."""
        return f"call={self.extra['ref'] if self.extra else ''} {msg}", kwargs
