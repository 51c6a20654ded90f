"""Together: a database on which several calls work in one transaction, as if each had its own.

Laws:
    * While a transaction is open, whatever the handlers write to this database is on its one connection, and
      is there for all or for none: what they commit holds once the whole is committed.
    * What fails inside fails alone: an exception in ``begin()`` undoes what was done in it, and a packet of
      statements holds as a whole or not at all.
    * What ends the whole on the server (a deadlock, a lost connection) is never taken for the end of a part:
      from then on every statement is refused, and nothing can be committed.
    * NOW() is what the clock says to whom the present call belongs, and nobody finds it so afterwards.

How it works: connections that a lease takes meanwhile are further users of the one driver connection: to
begin is to set a savepoint, to roll back is to return to it, to commit is nothing. Greenlets take turns,
statement by statement. Outside of a transaction it is a database like any other.

What this cannot bear: transactions of one call that overlap and of which the older is rolled back; statements
that commit by themselves (DDL on MariaDB); rows that are streamed while something else is asked. Tables
without transactions keep what was written whatever becomes of the rest. Connections that a handler takes from
``engine`` are its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Final, cast

from gevent.lock import BoundedSemaphore
from sqlalchemy import event, exc
from sqlalchemy.engine import ExceptionContext, RootTransaction

from fastagi_pool.database import (
    Answer,
    Clock,
    Database,
    DatabaseSettings,
    Lease,
    LeasedConnection,
    Statement,
    TryAgain,
    answers_of,
    passes,
)
from fastagi_pool.errors import DatabaseBusy, DatabaseUnavailable

#: The dialects whose clock can be set.
_WITH_CLOCK: Final = frozenset({"mysql", "mariadb"})
_OWN_TIME: Final = "SET timestamp = DEFAULT"
#: Set before a packet of several statements.
_PACKET: Final = "fagi_packet"
#: Statements that begin so leave nothing behind.
_QUESTION: Final = "SELECT"


class Whole:
    """One transaction on one connection, for all who ask its database meanwhile.

    Attributes:
        connection: The connection itself, for statements that are no call's. Do not commit.
        broken: Why nothing can be committed any more; empty as long as it can.
        passes: Whether that is nobody's fault, so that the same may well succeed later.
        turn: Held by the greenlet whose statement is under way.
        mixed: Whether several calls run at the same time: then only packets are taken, since to undo a
            transaction of one would undo what others have done meanwhile.
        torn: Whether one of them opened a transaction all the same, which has broken the whole.
    """

    def __init__(self, name: str, connection: LeasedConnection) -> None:
        self.connection = connection
        self.broken = ""
        self.passes = False
        self.turn = BoundedSemaphore(1)
        self.mixed = self.torn = False
        self._name = name
        self._time_changed = False
        self._pending: list[str] = []
        self._savepoints: set[int] = set()

    def at_time(self, received_s: float) -> None:
        """Let NOW() be that time from the next statement on; nothing on SQLite, whose clock cannot be set.

        Args:
            received_s: In seconds since 1970.
        """
        if self.connection.dialect.name in _WITH_CLOCK:
            self._time_changed = True
            self._pending = [f"SET timestamp = {received_s:.6f}"]

    def break_off(self, why: str, passes: bool) -> None:
        """Note that the server has ended the whole, or that nobody knows; the first reason counts."""
        if not self.broken:
            self.broken, self.passes = why, passes

    def lose(self, why: str, passes: bool = False) -> None:
        """Drop the connection, which breaks off the whole."""
        self.break_off(why, passes)
        if not (self.connection.invalidated or self.connection.closed):
            self.connection.invalidate()

    def check(self) -> None:
        """Refuse to go on with what is broken.

        Raises:
            DatabaseBusy: It is.
        """
        if self.broken:
            raise DatabaseBusy(self._name, self.broken)

    def take_pending(self) -> list[str]:
        """Give the statements that have to come before the next one."""
        pending, self._pending = self._pending, []
        return pending

    def set_savepoint(self) -> int:
        """Begin a part; return by which number it can be undone.

        Raises:
            DatabaseBusy: The whole is broken, now at the latest.
        """
        if self.mixed:
            self.torn = True
            self.break_off("a transaction was opened while several calls ran at the same time", passes=True)
            self.check()
        number = next(number for number in count() if number not in self._savepoints)
        self._savepoints.add(number)
        for statement in (*self.take_pending(), f"SAVEPOINT fagi_{number}"):
            self._control(statement)
        return number

    def keep(self, number: int) -> None:
        """End a part; what it wrote is the whole's.

        Raises:
            DatabaseBusy: The whole is broken: nothing of it is kept.
        """
        self._savepoints.discard(number)
        self.check()

    def undo(self, number: int) -> None:
        """End a part, and undo what was done since it began."""
        self._savepoints.discard(number)
        if not self.broken:
            self._control(f"ROLLBACK TO SAVEPOINT fagi_{number}")

    def end_time(self) -> None:
        """Let the connection's clock go right again."""
        self._pending = []
        if self._time_changed:
            self.connection.exec_driver_sql(_OWN_TIME)
            self._time_changed = False

    def _control(self, statement: str) -> None:
        self.check()
        with self.turn:
            self.connection.exec_driver_sql(statement)


class Together(Database):
    """A database that can put several calls into one transaction.

    Args:
        settings: What to connect to; see :class:`Database`.
        clock: Seconds that only grow; for tests.
    """

    def __init__(self, settings: DatabaseSettings, clock: Clock = time.monotonic) -> None:
        super().__init__(settings, clock)
        self._whole: Whole | None = None
        self._sharing = 0
        # Before the listener that says what to do with the connection: that one may raise.
        event.listen(self._engine, "handle_error", self._on_trouble, insert=True)

    @contextmanager
    def transaction(self) -> Iterator[Whole]:
        """Open a transaction for all who ask this database; committed at the end of ``with``.

        An exception rolls it back. One at a time.

        Raises:
            DatabaseUnavailable: It cannot be reached.
            TryAgain: Nothing of it holds, or (``in_doubt``) nobody knows whether all of it does.
            sqlalchemy.exc.DBAPIError: The commit was refused.
        """
        if self._whole is not None:
            raise RuntimeError(f"database {self.name!r} has a transaction open")
        lease = self.lease()
        try:
            connection = cast(LeasedConnection, lease.connect())
            with self._translating():
                connection.begin()
                if connection.dialect.name == "sqlite":
                    # Or the first to write would have to give up if another has written meanwhile.
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
            whole = self._whole = Whole(self.name, connection)
            try:
                yield whole
            except BaseException:
                self._whole = None
                _give_up(whole)
                raise
            self._whole = None
            self._commit(whole)
        finally:
            lease.release()

    def take(self, lease: Lease) -> LeasedConnection:
        """Take a connection for a lease: the shared one while a transaction is open.

        Raises:
            DatabaseUnavailable: It cannot be reached, or all its connections stayed in use.
            DatabaseBusy: The transaction that is open is broken.
        """
        if self._whole is None:
            return super().take(lease)
        self._whole.check()
        self._sharing += 1
        return _Sharer(self._whole, lease)

    def give_back(self) -> None:
        """Let the next caller have the place of a connection that is closed by now."""
        if self._sharing:
            self._sharing -= 1
        else:
            super().give_back()

    def _commit(self, whole: Whole) -> None:
        if whole.turn.locked():
            whole.lose("a statement was under way when the calls had ended")
        if whole.broken:
            _give_up(whole)
            raise TryAgain(whole.broken, in_doubt=False)
        connection = whole.connection
        with self._translating():
            connection.commit()
        try:
            whole.end_time()
        except exc.DBAPIError:
            connection.invalidate()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """Tell what passes from what does not."""
        try:
            yield
        except exc.DBAPIError as error:
            if error.connection_invalidated or (error.orig is not None and passes(error.orig)):
                raise TryAgain(self.reason(error), in_doubt=error.connection_invalidated) from error
            raise

    def _on_trouble(self, context: ExceptionContext) -> None:
        whole, connection = self._whole, context.connection
        if whole is None or not (isinstance(connection, _Sharer) or connection is whole.connection):
            return
        error = context.original_exception
        if isinstance(error, DatabaseUnavailable):
            whole.break_off(str(error), passes=True)
        elif context.is_disconnect or (isinstance(error, Exception) and passes(error)):
            whole.break_off(self.reason(error) if isinstance(error, Exception) else "", passes=True)


class _Sharer(LeasedConnection):
    """A further user of the connection of a transaction; see the top of this module."""

    def __init__(self, whole: Whole, lease: Lease) -> None:
        shared = whole.connection.connection
        super().__init__(whole.connection.engine, lease, shared)
        self._whole = whole
        self._guarded = False
        self._part = 0

    # ---- what SQLAlchemy does at the beginning and the end of a transaction

    def _begin_impl(self, transaction: RootTransaction) -> None:
        self._part = self._whole.set_savepoint()

    def _commit_impl(self) -> None:
        self._whole.keep(self._part)

    def _rollback_impl(self) -> None:
        self._whole.undo(self._part)

    def invalidate(self, exception: BaseException | None = None) -> None:
        """Drop the connection, and with it the whole transaction."""
        self._dbapi_connection = None
        self._whole.lose(f"interrupted by {type(exception).__name__}" if exception else "interrupted")

    def close(self) -> None:
        """Undo what was not committed, and leave the connection to the others."""
        transaction = self.get_transaction()
        try:
            if transaction is not None:
                transaction.close()
        finally:
            self._dbapi_connection = None
            self._lease.forget(self)

    # ---- statements

    def statement_started(self, statement: str) -> None:
        """Wait for one's turn, and start the clock of a statement."""
        self._whole.check()
        self._whole.turn.acquire()
        super().statement_started(statement)

    def statement_ended(self) -> None:
        """Stop the clock of a statement, and let the next have its turn; nothing if none is running."""
        if self._statement_since_s is not None:
            self._whole.turn.release()
        super().statement_ended()

    def round_trip(self, statements: Sequence[Statement]) -> list[Answer]:
        """Send statements in one packet, of which all hold or none."""
        try:
            return super().round_trip(statements)
        except DatabaseUnavailable as away:
            self._whole.lose(str(away), passes=True)
            raise
        except TryAgain as failure:
            self._whole.lose(str(failure), passes=True)
            self._whole.check()
            raise
        except self.dialect.loaded_dbapi.Error as error:
            if passes(error):
                self._whole.lose(self._lease.reason(error), passes=True)
                self._whole.check()
            raise

    def converse(self, driver: Any, statements: Sequence[Statement]) -> list[Answer]:
        """Have one packet answered, statement by statement; nothing is committed."""
        start = self._whole.take_pending()
        self._guarded = len(statements) > 1 and not all(_asks(sql) for sql, _ in statements)
        if self._guarded:
            start.append(f"SAVEPOINT {_PACKET}")
        return answers_of(driver, statements, start)

    def _rolls_back(self, driver: Any) -> bool:
        if self._guarded:
            try:
                driver.query(f"ROLLBACK TO SAVEPOINT {_PACKET}")
            except self.dialect.loaded_dbapi.Error:
                return False
        return True


def _asks(sql: str) -> bool:
    return sql.lstrip()[: len(_QUESTION)].upper() == _QUESTION


def _give_up(whole: Whole) -> None:
    """Roll back, and leave the connection as it was found, or drop it."""
    if whole.turn.locked():
        whole.lose("a statement was under way when the calls had ended")
    try:
        if not whole.connection.invalidated:
            whole.connection.rollback()
            whole.end_time()
    except Exception:
        whole.connection.invalidate()
