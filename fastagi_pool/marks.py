"""Marks: which calls a database has done already, kept in the database itself.

Laws:
    * A mark is written in the transaction of its call's rows: both are there, or neither is.
    * The database lets nobody write a mark twice, so whoever does not know whether a call was done finds out
      by writing its mark first: it waits for the other, and then fails.
    * What time it is the caller's clock says: a replay sets the server's back.

How it works: one table a database, with the mark as its key. It must have transactions, which on MariaDB is
InnoDB whatever the server's default is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    TIMESTAMP,
    Column,
    Connection,
    MetaData,
    String,
    Table,
    TextClause,
    bindparam,
    exc,
    inspect,
    text,
)
from sqlalchemy.schema import CreateTable

from fastagi_pool.errors import OperatorError

TABLE: Final = "fastagi_pool_marks"
#: More than the longest host name that is in use, and a reference.
MAX_MARK_CHARS: Final = 120
#: Few enough to hold their locks for milliseconds.
FORGOTTEN_AT_ONCE: Final = 1000

_MYSQL: Final = frozenset({"mysql", "mariadb"})
#: How a dialect turns seconds since 1970 into a time; the one for all others is PostgreSQL's.
_TIME: Final = {
    "mysql": "FROM_UNIXTIME(:now_s)",
    "mariadb": "FROM_UNIXTIME(:now_s)",
    "sqlite": "datetime(:now_s, 'unixepoch')",
}
_OTHER_TIME: Final = "to_timestamp(:now_s)"
_KNOWN: Final = text(f"SELECT mark FROM {TABLE} WHERE mark IN :marks").bindparams(
    bindparam("marks", expanding=True)
)
_FORGET: Final = text(f"DELETE FROM {TABLE} WHERE mark IN :marks").bindparams(
    bindparam("marks", expanding=True)
)
_ENGINE: Final = text(
    "SELECT engine FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = :name"
)


class Marks:
    """The marks of one node's calls; every node that writes to a database has the same table.

    Args:
        node: The name of this node, which no other has that writes to the same databases.
        wall_clock: Seconds since 1970; for tests.

    Raises:
        OperatorError: The name is too long.
    """

    def __init__(self, node: str, wall_clock: Callable[[], float] = time.time) -> None:
        self._prefix = f"{node}/"
        self._wall_clock = wall_clock
        if len(self._prefix) > MAX_MARK_CHARS // 2:
            raise OperatorError(f"the node's name may have {MAX_MARK_CHARS // 2 - 1} characters: {node!r}")

    def mark_of(self, ref: str) -> str:
        """Give the mark of a call.

        Args:
            ref: The reference under which the logs know it, at most 60 characters.
        """
        return self._prefix + ref

    def create(self, connection: Connection) -> None:
        """Make the table, if it is not there, and see that it has transactions.

        On MariaDB this ends the transaction that the connection is in.

        Raises:
            OperatorError: The table cannot be made, or has no transactions; the message says what to do.
            DatabaseUnavailable: The database is away.
            sqlalchemy.exc.DBAPIError: The connection was lost.
        """
        create_table(connection)

    def write(self, connection: Connection, marks: Sequence[str]) -> None:
        """Write marks, in the transaction that the connection is in.

        Args:
            connection: Where their calls' rows are written.
            marks: One or more.

        Raises:
            sqlalchemy.exc.IntegrityError: One of them is there already: its call was done, maybe while this
                waited for it. Nothing of the transaction may be committed then.
        """
        write_marks(connection, marks, self._wall_clock())

    def known(self, connection: Connection, marks: Collection[str]) -> set[str]:
        """Tell which of these marks are there: those calls have been done.

        A transaction that is still under way is not seen; :meth:`write` would wait for it.
        """
        if not marks:
            return set()
        return set(connection.execute(_KNOWN, {"marks": list(marks)}).scalars())

    def forget_before(self, connection: Connection, age_s: float) -> int:
        """Delete the oldest marks of this node, some at a time, in the transaction that the connection is in.

        Others may still need theirs: one that was cut off for days has its calls in its journal. A
        call whose mark is forgotten must not be in the journal any more: it would be done again.

        Args:
            connection: Where.
            age_s: How long ago those calls were done, at least.

        Returns:
            How many were deleted; :data:`FORGOTTEN_AT_ONCE` if there may be more.
        """
        time_of = _TIME.get(connection.dialect.name, _OTHER_TIME)
        # Read first and without a lock: to delete by the time would lock the whole table on MariaDB, and
        # every call would wait.
        old = f"mark LIKE :mine AND made_at < {time_of}"
        query = text(f"SELECT mark FROM {TABLE} WHERE {old} LIMIT {FORGOTTEN_AT_ONCE}")
        # A name of a machine has no "%"; that "_" stands for any character takes one of like name along.
        values = {"mine": f"{self._prefix}%", "now_s": int(self._wall_clock() - age_s)}
        marks = list(connection.execute(query, values).scalars())
        if marks:
            connection.execute(_FORGET, {"marks": marks})
        return len(marks)


def create_table(connection: Connection) -> None:
    """Make the table of marks; see :meth:`Marks.create`."""
    table = _table()
    # Or whoever has no right to make it could not even use one that is there.
    if not inspect(connection).has_table(TABLE):
        create = CreateTable(table, if_not_exists=True)
        try:
            connection.execute(create)
        except exc.DBAPIError as error:
            if error.connection_invalidated:
                raise
            statement = " ".join(str(create.compile(dialect=connection.dialect)).split())
            raise OperatorError(
                f"the table {TABLE}, by which a deferred call is known to be done, cannot be made"
                f" ({error.orig}): grant CREATE, or create it: {statement}"
            ) from error
    if connection.dialect.name in _MYSQL:
        engine = connection.execute(_ENGINE, {"name": TABLE}).scalar()
        if engine is not None and engine.lower() != "innodb":
            raise OperatorError(
                f"the table {TABLE} must have transactions, or deferred calls are done twice:"
                f" ALTER TABLE {TABLE} ENGINE=InnoDB"
            )


def write_marks(connection: Connection, marks: Sequence[str], now_s: float) -> None:
    """Write marks; see :meth:`Marks.write`.

    Args:
        connection: Where their calls' rows are written.
        marks: One or more.
        now_s: Wall clock time, in seconds since 1970.
    """
    parameters: dict[str, object] = {f"mark_{place}": mark for place, mark in enumerate(marks)}
    parameters["now_s"] = int(now_s)
    connection.execute(_insert(len(marks), connection.dialect.name), parameters)


@lru_cache(maxsize=256)
def _insert(count: int, dialect: str) -> TextClause:
    """Make the statement that writes so many marks in one round trip."""
    time_of = _TIME.get(dialect, _OTHER_TIME)
    rows = ", ".join(f"(:mark_{place}, {time_of})" for place in range(count))
    return text(f"INSERT INTO {TABLE} (mark, made_at) VALUES {rows}")


def _table() -> Table:
    """Describe the table, to have its statement written for any dialect."""
    of_mysql = {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}
    options: dict[str, Any] = {
        f"{dialect}_{option}": value for dialect in _MYSQL for option, value in of_mysql.items()
    }
    return Table(
        TABLE,
        MetaData(),
        Column("mark", String(MAX_MARK_CHARS), primary_key=True),
        Column("made_at", TIMESTAMP, nullable=False, server_default=text("CURRENT_TIMESTAMP")),
        **options,
    )
