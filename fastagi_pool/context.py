"""Context: what a handler holds besides the call: its options, its log, its databases.

Laws:
    * One for each call, so nothing of one call can be seen by the next. What calls of a worker
      shall share on purpose lies in ``state``.
    * Whatever a handler leaves open in a database is rolled back and given back at its end.
    * Of a call that may be done later, from the journal, nothing is done twice: its rows and its mark are one
      transaction on the database whose outage defers it.
    * What a handler waits for besides Asterisk is told to the call's clocks, so that it stands where the time
      went: in the queue, in the database.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fastagi_pool.errors import OperatorError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from fastagi_pool.database import Database, Lease
    from fastagi_pool.transacting import Course

T = TypeVar("T")


class Clocks(Protocol):
    """The clocks of a call besides Asterisk's, and who else wants to know what it waits for."""

    def queues(self) -> None:
        """Begin to wait for a place."""

    def called_in(self) -> None:
        """Wait no longer for a place."""

    def queries(self, statement: str, now_s: float) -> None:
        """Begin to wait for a statement; see ``database.Onlooker``."""

    def waits(self, what: str, now_s: float) -> None:
        """Begin to wait for a database otherwise."""

    def answered(self, took_s: float, now_s: float) -> None:
        """Wait no longer for it."""


class Context:
    """Handed to every handler beside the call, and to ``setup`` and ``teardown`` of its module.

    Attributes:
        options: The route's ``options``; empty in ``setup`` and ``teardown``.
        log: A logger whose lines carry the worker and, in a call, the call's reference.
        state: Shared by all calls of this worker; filled by ``setup``.
    """

    __slots__ = (
        "_charged_s",
        "_clocks",
        "_course",
        "_databases",
        "_defers",
        "_leases",
        "_mark",
        "_repeats",
        "log",
        "options",
        "state",
    )

    def __init__(
        self,
        databases: Mapping[str, Database],
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        state: dict[str, Any],
        options: Mapping[str, Any] | None = None,
        clocks: Clocks | None = None,
        mark: str = "",
        defers: str = "",
        repeats: bool = True,
    ) -> None:
        """Put the parts together.

        Args:
            databases: The worker's databases by name.
            log: As above.
            state: As above.
            options: As above.
            clocks: Told what the call waits for; None outside of calls.
            mark: The call's mark, to be written with its rows; empty for a call that is not deferrable, or
                whose handler may be run twice, or whose mark is written by somebody else.
            defers: The database whose outage defers the call; empty if none does. With a mark it may be left
                out if there is only one.
            repeats: Whether :meth:`transact` may try again; False where a transaction is a part of a larger
                one, which a deadlock ends as a whole.
        """
        self.options = options or {}
        self.log = log
        self.state = state
        self._databases = databases
        self._leases: dict[str, Lease] | None = None
        self._clocks = clocks
        self._charged_s = 0.0
        self._mark = mark
        self._defers = self._known(defers) if defers or mark else ""
        self._repeats = repeats
        self._course: Course | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether a commit was sent, on the database whose outage defers the call, and never answered.

        Such a call belongs into the journal, whatever else became of it: its mark tells whether it was done.
        """
        if self._course is None:
            return False
        return self._course.in_doubt

    def begin(self, database: str = "") -> AbstractContextManager[Connection]:
        """Open a transaction: committed at the end of ``with``, rolled back by an exception.

        Args:
            database: Its name in the configuration; may be left out if there is only one.

        Raises:
            DatabaseUnavailable: It cannot be reached, or all its connections are in use. In a deferrable call
                also: the connection was lost.
            DatabaseBusy: In a deferrable call: something stood in the way that passes, as a deadlock.
            OperatorError: There is no such database, or a deferrable call wants a second transaction there
                and its handler is not declared repeatable.
        """
        name = self._known(database)
        if name == self._defers:
            from fastagi_pool.transacting import begin

            return begin(self._lease(name), self._course_there())
        return self._lease(name).begin()

    def transact(self, work: Callable[[Connection], T], database: str = "") -> T:
        """Do work in a transaction, and again where that is safe.

        It is after a deadlock, after too long a wait for a lock, and after the connection was lost before the
        commit was sent. It is not once the commit was sent, unless the call is deferrable: its mark tells
        then. A call that is not deferrable waits some seconds for a database that goes away in the middle.

        Args:
            work: What to do with the connection. It may be called several times: it must do nothing but SQL
                on that connection, in tables that have transactions.
            database: Its name in the configuration; may be left out if there is only one.

        Returns:
            What ``work`` returned.

        Raises:
            DatabaseUnavailable: It cannot be reached, or nobody knows whether the commit was carried out.
            DatabaseBusy: Something stood in the way in all attempts.
            OperatorError: As for :meth:`begin`.
            Exception: What ``work`` raised for another reason.
        """
        name = self._known(database)
        if not self._repeats:
            with self.begin(name) as connection:
                return work(connection)
        from fastagi_pool.transacting import Course, transact

        deferrable = name == self._defers
        course = self._course_there() if deferrable else Course(name)
        return transact(self._lease(name), course, work, patient=not deferrable)

    def connect(self, database: str = "") -> Connection:
        """Take a connection; use it with ``with``. Nothing is committed unless you say so.

        Args:
            database: Its name in the configuration; may be left out if there is only one.

        Raises:
            DatabaseUnavailable: It cannot be reached, or all its connections are in use.
            OperatorError: There is no such database, or a deferrable call may write there only within
                :meth:`begin` or :meth:`transact`.
        """
        name = self._known(database)
        if self._mark and name == self._defers:
            raise OperatorError(
                f"a deferrable handler keeps its rows in one transaction (database {name!r}): use begin() or"
                " transact(), or declare it repeatable=True if it may run twice"
            )
        return self._lease(name).connect()

    def database(self, name: str = "") -> Database:
        """Give a database itself, for statements that are no single call's.

        Args:
            name: Its name in the configuration; may be left out if there is only one.

        Raises:
            OperatorError: There is no such database.
        """
        return self._databases[self._known(name)]

    def waits_for_database(self, what: str) -> None:
        """Say that the call waits for statements which are not its own alone; they are charged later.

        Args:
            what: What it waits for, for whoever looks.
        """
        if self._clocks is not None:
            self._clocks.waits(what, time.monotonic())

    def charge_database(self, seconds: float) -> None:
        """Count seconds that the call waited for statements which were not its own alone."""
        self._charged_s += seconds
        if self._clocks is not None:
            self._clocks.answered(seconds, time.monotonic())

    @contextmanager
    def queueing(self) -> Iterator[None]:
        """Count what is spent in ``with`` as waiting for a place, and not as the handler's own time."""
        if self._clocks is None:
            yield
            return
        self._clocks.queues()
        try:
            yield
        finally:
            self._clocks.called_in()

    def release(self) -> tuple[int, float]:
        """Give back what the call still holds (dispatcher only).

        Returns:
            Connections that were left open, and the seconds spent in statements.
        """
        left, database_s = 0, self._charged_s
        for lease in (self._leases or {}).values():
            left += lease.release()
            database_s += lease.database_s
        self._leases = None
        return left, database_s

    def _course_there(self) -> Course:
        """Give how the call deals with the database whose outage defers it."""
        if self._course is None:
            from fastagi_pool.transacting import Course

            self._course = Course(self._defers, self._mark)
        return self._course

    def _lease(self, name: str) -> Lease:
        if self._leases is None:
            self._leases = {}
        lease = self._leases.get(name)
        if lease is None:
            lease = self._leases[name] = self._databases[name].lease(self._clocks)
        return lease

    def _known(self, name: str) -> str:
        if not name:
            if len(self._databases) != 1:
                raise OperatorError(f"say which database: the configuration names {self._names()}")
            return next(iter(self._databases))
        if name not in self._databases:
            raise OperatorError(f"no database {name!r}: the configuration names {self._names()}")
        return name

    def _names(self) -> str:
        return ", ".join(sorted(self._databases)) or "none"
