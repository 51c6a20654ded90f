"""Executor: statements carried out in order, and again where that is right.

Laws:
    * Statements that are given together are one packet, one round trip and one transaction.
    * What failed by a deadlock or a lost connection is done again, all of it, before anything that comes
      later: the order of a call's statements holds.
    * After a lost connection nobody knows what was done. So statements must bear repetition; those that
      do not have a second form, which finds out first whether the first was carried out.
    * Patience is bounded. A server that is away before anything was begun is told at once; one that goes
      away in the middle is waited for if nobody else would finish it. A call that is done later, from the
      journal, does not wait: a lost connection is tried once more, and only where the server answers.

How it works: an UPDATE that sets what it says, a DELETE, an INSERT IGNORE with a key bear repetition. An
INSERT without a key does not; its second form is ``INSERT ... SELECT ... WHERE NOT EXISTS (...)``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import gevent

from fastagi_pool.database import Answer, Database, Statement, TryAgain
from fastagi_pool.errors import DatabaseBusy, DatabaseUnavailable

#: Pauses before the repetitions. A deadlock's other party is soon done; a server that restarts is back in
#: some seconds, and longer a caller should not be kept.
RETRY_PAUSES_S: Final = (0.0, 0.02, 0.1, 0.3, 0.6, 1.0, 1.0, 1.0)
#: More than all the pauses together.
PATIENCE_S: Final = 10.0


class Done(NamedTuple):
    """What came of statements.

    Attributes:
        answers: One for each statement.
        in_doubt: Whether they may have been carried out before, by a connection that was lost: a DELETE
            that finds nothing may have found it then.
    """

    answers: list[Answer]
    in_doubt: bool


class Executor:
    """Carries out statements for calls and for groups of calls.

    Args:
        database: Where; its settings need ``multi_statements``.
        pauses_s: One entry for each repetition: how long to wait before it.
        patience_s: Nothing is repeated that began longer ago: a server that takes its whole time-out for each
            answer must not hold a caller as often as it could be asked.
        clock: Seconds that only grow; for tests.
        waits_for_server: Whether a server that goes away in the middle is waited for; False if somebody else
            does again what fails here.

    Attributes:
        database: As given.
        repetitions: How often anything was done again.
    """

    def __init__(
        self,
        database: Database,
        pauses_s: Sequence[float] = RETRY_PAUSES_S,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        waits_for_server: bool = True,
    ) -> None:
        self.database = database
        self.repetitions = 0
        self._pauses_s = tuple(pauses_s)
        self._patience_s = patience_s
        self._clock = clock
        self._waits_for_server = waits_for_server

    def run(
        self,
        statements: Sequence[Statement],
        repeated: Sequence[Statement] | None = None,
        waits: bool = False,
    ) -> Done:
        """Carry out statements: one round trip, one transaction.

        Args:
            statements: What to do, in order; one or more.
            repeated: What to do instead once it is in doubt whether that was done; None for the same.
            waits: Whether a server that is away at the first attempt is waited for, as one is that goes away
                later. For a call that has begun something: nobody else would finish it. An executor that
                never waits for a server does not do so here.

        Raises:
            DatabaseUnavailable: The database is away.
            DatabaseBusy: It is not, but something stood in the way for all repetitions.
            pymysql.Error: A statement failed for a reason that will not pass.
        """
        lease = self.database.lease()
        began_s, in_doubt = self._clock(), False
        trouble: TryAgain | DatabaseUnavailable
        for pause_s in (*self._pauses_s, None):
            try:
                return Done(lease.round_trip(statements), in_doubt)
            except DatabaseUnavailable as away:
                if not waits or not self._waits_for_server:
                    raise
                trouble = away
            except TryAgain as failure:
                if not self._may_repeat(failure, in_doubt):
                    raise DatabaseUnavailable(self.database.name, str(failure)) from failure
                trouble, waits, in_doubt = failure, True, in_doubt or failure.in_doubt
            if pause_s is None or self._clock() - began_s > self._patience_s:
                break
            if in_doubt and repeated is not None:
                statements = repeated
            self.repetitions += 1
            gevent.sleep(pause_s)
        if isinstance(trouble, DatabaseUnavailable):
            raise trouble
        raise DatabaseBusy(self.database.name, str(trouble)) from trouble

    def _may_repeat(self, failure: TryAgain, was_lost: bool) -> bool:
        """Tell whether to go on after a failure; ``was_lost``: a connection was lost before."""
        if self._waits_for_server:
            return True
        return self.database.available and not (failure.in_doubt and was_lost)
