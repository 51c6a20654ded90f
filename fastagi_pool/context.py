"""Context: what a handler holds besides the call: its options, its log, its databases.

Laws:
    * One for each call, so nothing of one call can be seen by the next. What calls of a worker
      shall share on purpose lies in ``state``.
    * Whatever a handler leaves open in a database is rolled back and given back at its end.
    * What a handler waits for besides Asterisk is told to the call's clocks, so that it stands where the time
      went: in the queue, in the database.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from fastagi_pool.errors import OperatorError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from fastagi_pool.database import Database, Lease


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

    __slots__ = ("_charged_s", "_clocks", "_databases", "_leases", "log", "options", "state")

    def __init__(
        self,
        databases: Mapping[str, Database],
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        state: dict[str, Any],
        options: Mapping[str, Any] | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        self.options = options or {}
        self.log = log
        self.state = state
        self._databases = databases
        self._leases: dict[str, Lease] | None = None
        self._clocks = clocks
        self._charged_s = 0.0

    def begin(self, database: str = "") -> AbstractContextManager[Connection]:
        """Open a transaction: committed at the end of ``with``, rolled back by an exception.

        Args:
            database: Its name in the configuration; may be left out if there is only one.

        Raises:
            DatabaseUnavailable: It cannot be reached, or all its connections are in use.
            OperatorError: There is no such database.
        """
        return self._lease(database).begin()

    def connect(self, database: str = "") -> Connection:
        """Take a connection; use it with ``with``. Nothing is committed unless you say so.

        Args:
            database: Its name in the configuration; may be left out if there is only one.

        Raises:
            DatabaseUnavailable: It cannot be reached, or all its connections are in use.
            OperatorError: There is no such database.
        """
        return self._lease(database).connect()

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

    def _lease(self, name: str) -> Lease:
        name = self._known(name)
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
