"""Deferring: which handlers' calls may be done later, and a worker's way into the journal.

Laws:
    * What ``defer`` says is the truth: it returns if the call is on the disk, and raises if it is not. An
      interruption in between waits for the disk's answer: before it nobody could tell the dialplan the truth.
    * The hub never waits for the disk: one native thread does, and what calls hand in meanwhile is its next
      transaction.
    * A request comes back from the journal byte for byte as Asterisk sent it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

import gevent
from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

from fastagi_pool.errors import JournalUnavailable, OperatorError
from fastagi_pool.grouping import Grouping
from fastagi_pool.journal import NewEntry
from fastagi_pool.protocol import AgiConnection, HeaderLimits, Request

if TYPE_CHECKING:
    from fastagi_pool.journal import Journal

HandlerT = TypeVar("HandlerT")

#: An environment has a few KB: some MB at once are one sequential write and one fsync.
MOST_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class Deferral:
    """How a handler's calls are done later.

    Attributes:
        database: Gives the name of the database whose outage defers a call, from its route's options; None
            for the first that the route needs, or the only one there is.
        repeatable: Whether a call that was done in part, or as a whole, may be done again from its beginning
            and leaves the rows of one. Otherwise its rows and its mark are written in one transaction.
    """

    database: Callable[[Mapping[str, Any]], str] | None = None
    repeatable: bool = False

    def database_for(self, options: Mapping[str, Any], needed: Sequence[str], known: Sequence[str]) -> str:
        """Say whose outage defers the calls of a route.

        Args:
            options: The route's options.
            needed: The databases that the route names, in its order.
            known: All databases of the configuration.

        Raises:
            OperatorError: There is no such database, or it cannot be told which one is meant.
        """
        names = ", ".join(sorted(known)) or "none"
        if self.database is not None:
            name = self.database(options)
        elif needed:
            name = needed[0]
        elif len(known) == 1:
            name = known[0]
        else:
            raise OperatorError(
                "a deferrable handler must say whose outage defers its calls: name that database first in the"
                f" route's 'databases' (the configuration has {names})"
            )
        if name not in known:
            raise OperatorError(
                f"the deferrable handler writes to database {name!r}, but the configuration has {names}"
            )
        return name


@overload
def deferrable(handler: HandlerT) -> HandlerT: ...


@overload
def deferrable(
    *, database: Callable[[Mapping[str, Any]], str] | None = None, repeatable: bool = False
) -> Callable[[HandlerT], HandlerT]: ...


def deferrable(
    handler: Any = None,
    *,
    database: Callable[[Mapping[str, Any]], str] | None = None,
    repeatable: bool = False,
) -> Any:
    """Declare that a handler's calls may be done later, from the journal, if its database is away.

    Use it bare or with arguments, on a function or on an object that can be called.

    Args:
        handler: The handler.
        database: As in :class:`Deferral`.
        repeatable: As in :class:`Deferral`.
    """

    def declare(target: HandlerT) -> HandlerT:
        target.deferral = Deferral(database, repeatable)  # type: ignore[attr-defined]
        return target

    return declare if handler is None else declare(handler)


def deferral_of(handler: object) -> Deferral | None:
    """Tell how a handler's calls are done later; None if they are not."""
    deferral = getattr(handler, "deferral", None)
    return deferral if isinstance(deferral, Deferral) else None


def make_entry(
    request: Request,
    route: str,
    database: str,
    ref: str,
    received_s: float,
    received_mono_s: float,
    peer: str,
    begun: bool,
) -> NewEntry:
    """Write down a call for the journal.

    Args:
        request: What Asterisk said; its arguments are lines of the environment.
        route: The name of its route.
        database: The database that is away.
        ref: Under which the logs know the call.
        received_s: Wall clock time at which it came.
        received_mono_s: The same moment on the clock that nobody steps.
        peer: The Asterisk that it came from.
        begun: Whether its handler has begun.
    """
    lines = tuple(f"{name}: {value}" for name, value in request.environment.items())
    return NewEntry(database, route, ref, lines, received_s, received_mono_s, peer, begun)


def request_of(entry: NewEntry) -> Request:
    """Read what Asterisk said about a call in the journal.

    Raises:
        RemoteProtocolError: The entry holds no environment: something else has written it.
    """
    data = "\n".join(entry.environment).encode("utf-8", "surrogateescape") + b"\n\n"
    # It was within the limits when it came, and they may have changed since.
    reader = AgiConnection(HeaderLimits(len(data), len(data), len(entry.environment)))
    reader.receive_data(data)
    reader.receive_data(b"")
    # It ends with an empty line, so it is either read as a whole or refused.
    return cast(Request, reader.next_event())


class Deferrals:
    """A worker's way into the journal; make it after the fork.

    Args:
        journal: Takes the calls. It is this object's own: one thread uses it, and :meth:`close` closes it.
        hub: The worker's gevent hub.
        mark_of: Gives the mark of a call by its reference; see ``marks.Marks``.

    Attributes:
        mark_of: As given.
    """

    def __init__(self, journal: Journal, hub: gevent.hub.Hub, mark_of: Callable[[str], str]) -> None:
        self.mark_of = mark_of
        self._journal = journal
        self._backlog = journal.backlog
        self._thread = ThreadPool(1, hub)
        self._rounds: Grouping[NewEntry, None] = Grouping(self._append, (JournalUnavailable,), MOST_AT_ONCE)
        self._under_way: set[AsyncResult[None]] = set()
        self._closed = False

    def must_join(self, database: str) -> bool:
        """Tell whether calls wait for this database, so that a new one must not overtake them."""
        return self._backlog.waits(database)

    def defer(self, entry: NewEntry) -> None:
        """Write a call down, to be done later; returns once it is on the disk.

        The calling greenlet may be interrupted as any other, but not before the disk has answered: if the
        call is written, this returns all the same, and otherwise the interruption goes up.

        Raises:
            JournalUnavailable: It could not be written, and will not be done.
        """
        if self._closed:
            raise JournalUnavailable("the worker is ending, and takes no more calls for the journal")
        ticket = self._rounds.submit(entry)
        self._under_way.add(ticket)
        interruption: BaseException | None = None
        try:
            while not ticket.ready():
                try:
                    ticket.wait()
                except BaseException as thrown:
                    interruption = thrown
        finally:
            self._under_way.discard(ticket)
        if not ticket.successful() and interruption is not None:
            raise interruption
        ticket.get()

    def close(self) -> None:
        """Take no more, and wait for what is under way; the thread ends, and the journal is closed."""
        self._closed = True
        gevent.wait(list(self._under_way))
        self._thread.kill()
        self._journal.close()

    def _append(self, entries: Sequence[NewEntry]) -> list[None]:
        failure = self._thread.apply(self._write, (entries,))
        if failure is not None:
            raise failure
        return [None] * len(entries)

    def _write(self, entries: Sequence[NewEntry]) -> Exception | None:
        """Write in the thread, and return what went wrong: gevent would print what is raised there."""
        try:
            self._journal.append(entries)
        except Exception as failure:
            return failure
        return None
