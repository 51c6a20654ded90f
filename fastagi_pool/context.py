"""Context: what a handler holds besides the call: its options, its log, its databases.

Laws:
    * One for each call, so nothing of one call can be seen by the next. What calls of a worker
      shall share on purpose lies in ``state``.
    * Whatever a handler leaves open in a database is rolled back and given back at its end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from fastagi_pool.errors import OperatorError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from fastagi_pool.database import Database, Lease


class Context:
    """Handed to every handler beside the call, and to ``setup`` and ``teardown`` of its module.

    Attributes:
        options: The route's ``options``; empty in ``setup`` and ``teardown``.
        log: A logger whose lines carry the worker and, in a call, the call's reference.
        state: Shared by all calls of this worker; filled by ``setup``.
    """

    __slots__ = ("_charged_s", "_databases", "_leases", "log", "options", "state")

    def __init__(
        self,
        databases: Mapping[str, Database],
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        state: dict[str, Any],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.options = options or {}
        self.log = log
        self.state = state
        self._databases = databases
        self._leases: dict[str, Lease] | None = None
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

    def charge_database(self, seconds: float) -> None:
        """Count seconds that the call waited for statements which were not its own alone."""
        self._charged_s += seconds

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
            lease = self._leases[name] = self._databases[name].lease()
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
