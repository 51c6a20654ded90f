"""Transacting: a handler's transaction, its mark, and when it may be tried again.

Laws:
    * A transaction is repeated as long as it is certain that nothing of it was committed, and a bounded
      number of times. From the moment at which its commit is sent that is not certain any more.
    * With a mark it can be found out: the mark is written first, so a repetition waits for whatever became of
      the attempt before it, and finds the mark if that was committed.
    * A call with a mark has one transaction on that database, or a second one would be done again by a replay
      that only the first one's mark could have stopped.
    * What passes is told as ``DatabaseUnavailable`` or ``DatabaseBusy`` where that defers the call, and never
      as what a driver says.

All of this is about tables that have transactions: MyISAM keeps what was written before a failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import gevent
from sqlalchemy import Connection, exc, inspect

from fastagi_pool.database import Lease, passes
from fastagi_pool.errors import DatabaseBusy, DatabaseUnavailable, OperatorError
from fastagi_pool.executor import PATIENCE_S, RETRY_PAUSES_S
from fastagi_pool.marks import TABLE, create_table, write_marks

T = TypeVar("T")


class Trouble(Enum):
    """What an error says about another attempt."""

    LASTING = "it would fail again"
    PASSING = "something was in the way; the connection is sound, and nothing holds"
    LOST = "the connection was lost, or there was none"


def trouble_of(error: BaseException) -> Trouble:
    """Say whether what failed with an error may succeed another time."""
    if isinstance(error, DatabaseUnavailable | exc.PendingRollbackError):
        # The second is what the next statement meets if a handler goes on after a lost connection.
        return Trouble.LOST
    if not isinstance(error, exc.DBAPIError):
        return Trouble.LASTING
    if error.connection_invalidated:
        return Trouble.LOST
    return Trouble.PASSING if error.orig is not None and passes(error.orig) else Trouble.LASTING


class MarkState(Enum):
    """What became of a call's transaction."""

    FREE = "nothing of it was committed"
    OPEN = "it is under way"
    COMMITTING = "its commit was sent, and the answer was not heard"
    WRITTEN = "it is committed"


@dataclass(slots=True)
class Course:
    """How a call deals with the database whose outage defers it.

    Attributes:
        database: That database.
        mark: The call's mark; empty for a handler that may be done again as a whole.
        state: What became of its transaction; of the last one if it may have several.
    """

    database: str
    mark: str = ""
    state: MarkState = MarkState.FREE

    @property
    def in_doubt(self) -> bool:
        """Whether nobody knows if its transaction was committed."""
        return self.state is MarkState.COMMITTING

    def claim(self) -> None:
        """See that a transaction may begin.

        Raises:
            OperatorError: The call had its only one, which is open or may have been committed.
        """
        if self.mark and self.state is not MarkState.FREE:
            raise OperatorError(
                f"a deferrable handler keeps its rows in one transaction (database {self.database!r});"
                " declare it repeatable=True if it may run twice"
            )


class _MarkFound(Exception):
    """The mark is there: the call was done, and whoever did it did not hear of it."""


@contextmanager
def begin(lease: Lease, course: Course) -> Iterator[Connection]:
    """Open a transaction of a deferrable call: with its mark, and with errors that defer the call.

    Raises:
        DatabaseUnavailable: The database is away, or the connection was lost.
        DatabaseBusy: Something stood in the way that passes: a deadlock, a lock, a full disk.
        OperatorError: The call has had its only transaction.
        sqlalchemy.exc.SQLAlchemyError: A statement failed for a reason that does not pass.
    """
    course.claim()
    try:
        with _attempt(lease, course) as connection:
            yield connection
    except _MarkFound as found:
        raise _taken(course) from found
    except exc.SQLAlchemyError as error:
        told = _told(error, course, lease)
        if told is error:
            raise
        raise told from error


def transact(lease: Lease, course: Course, work: Callable[[Connection], T], patient: bool) -> T:
    """Do work in a transaction, and again where that is safe.

    Args:
        lease: The call's.
        course: How the call deals with the database.
        work: What to do with a connection; it may be called several times, and only the rows of the last time
            hold.
        patient: Whether a database that goes away in the middle is waited for, because nobody else would do
            the call's work.

    Returns:
        What ``work`` returned the time that holds.

    Raises:
        DatabaseUnavailable: The database is away, or a commit is in doubt.
        DatabaseBusy: Something stood in the way for all attempts.
        OperatorError: The call has had its only transaction.
        Exception: What ``work`` raised.
    """
    course.claim()
    give_up_s, begun, kept = time.monotonic() + PATIENCE_S, False, list[T]()
    for pause_s in (*RETRY_PAUSES_S, None):
        try:
            with _attempt(lease, course) as connection:
                begun = True
                result = work(connection)
                kept = [result]
            return result
        except _MarkFound as found:
            # An attempt before this one was committed after all.
            if not kept:
                raise _taken(course) from found
            course.state = MarkState.WRITTEN
            return kept[0]
        except (exc.SQLAlchemyError, DatabaseUnavailable) as error:
            told = _told(error, course, lease)
            if (
                pause_s is None
                or time.monotonic() > give_up_s
                or not _may_repeat(error, course, patient and begun)
            ):
                if told is error:
                    raise
                raise told from error
        gevent.sleep(pause_s)
    raise AssertionError("the last attempt ends the loop")


def _may_repeat(error: Exception, course: Course, waits: bool) -> bool:
    """Tell whether another attempt is safe, and makes sense now."""
    if course.in_doubt and not course.mark:
        return False
    if isinstance(error, DatabaseUnavailable):
        return waits and error.database == course.database
    return trouble_of(error) is not Trouble.LASTING


@contextmanager
def _attempt(lease: Lease, course: Course) -> Iterator[Connection]:
    """Open a transaction, write the mark, and note how far it comes."""
    sent = False
    try:
        with lease.begin() as connection:
            if course.mark:
                _write_first(connection, course.mark)
            course.state = MarkState.OPEN
            yield connection
            course.state, sent = MarkState.COMMITTING, True
        course.state = MarkState.WRITTEN
    except BaseException as error:
        # Whoever answers a commit with an error has not carried it out.
        if course.state is MarkState.OPEN or (sent and _is_an_answer(error)):
            course.state = MarkState.FREE
        raise


def _is_an_answer(error: BaseException) -> bool:
    return isinstance(error, exc.DBAPIError) and not error.connection_invalidated


def _write_first(connection: Connection, mark: str) -> None:
    """Write a call's mark; make the table if the database was away whenever somebody could have.

    Raises:
        _MarkFound: It is there.
    """
    try:
        try:
            write_marks(connection, [mark], time.time())
        except exc.DBAPIError as error:
            lasting = trouble_of(error) is Trouble.LASTING and not isinstance(error, exc.IntegrityError)
            if not lasting or inspect(connection).has_table(TABLE):
                raise
            create_table(connection)
            write_marks(connection, [mark], time.time())
    except exc.IntegrityError as error:
        raise _MarkFound from error


def _told(error: Exception, course: Course, lease: Lease) -> Exception:
    """Say what passes in the words that defer a call; leave what lasts, and what is said already."""
    trouble = trouble_of(error)
    if trouble is Trouble.LASTING or isinstance(error, DatabaseUnavailable):
        return error
    reason = lease.reason(error)
    if course.in_doubt:
        reason += "; nobody knows whether its transaction was committed"
    kind = DatabaseUnavailable if trouble is Trouble.LOST else DatabaseBusy
    return kind(course.database, reason)


def _taken(course: Course) -> OperatorError:
    """Say that a call which is new has a mark that is not."""
    return OperatorError(
        f"database {course.database!r} has the mark {course.mark!r} already: does another machine that writes"
        " there have the same node name?"
    )
