"""Grouping: what several calls want at the same moment is done once for all of them.

Laws:
    * Who asks waits for his own answer, and gets nobody else's.
    * One round is under way at a time. Who comes meanwhile is in the next one, together with all others
      who do: the busier it is, the larger the groups, and nobody waits for a group to fill.
    * A round is nobody's: a call that is ended while it waits takes nothing from the others, and what it
      asked for is still done.
    * One that cannot be done fails alone: after a failed round each of its members is tried by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import gevent
from gevent.event import AsyncResult

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Large enough to make the cost of a round small beside that of its members, and small enough for one
#: packet and one transaction to be short.
MOST_IN_A_ROUND: Final = 64


class Grouping(Generic[Item, Result]):
    """Collects what calls want and has it done in rounds.

    Args:
        carry_out: Does a round: one result for each item, in their order. It may wait. Items of a round
            that failed are given to it again, each by itself, so it must bear repetition.
        passes_on: Exceptions that concern all members alike: they get it, and nobody is tried alone.
        most: Members of a round, 1 or more.
    """

    def __init__(
        self,
        carry_out: Callable[[Sequence[Item]], Sequence[Result]],
        passes_on: tuple[type[Exception], ...] = (),
        most: int = MOST_IN_A_ROUND,
    ) -> None:
        self._carry_out = carry_out
        self._passes_on = passes_on
        self._most = most
        self._waiting: list[tuple[Item, AsyncResult[Result]]] = []
        self._under_way = False

    def submit(self, item: Item) -> AsyncResult[Result]:
        """Ask for something; the round begins when the caller first waits.

        Returns:
            What ``get()`` of waits, and gives the result or raises what ``carry_out`` raised.
        """
        ticket: AsyncResult[Result] = AsyncResult()
        self._waiting.append((item, ticket))
        if not self._under_way:
            self._under_way = True
            gevent.spawn(self._rounds)
        return ticket

    def ask(self, item: Item) -> Result:
        """Ask for something and wait for it.

        Raises:
            Exception: What ``carry_out`` raised for it.
        """
        result: Result = self.submit(item).get()
        return result

    def _rounds(self) -> None:
        try:
            while self._waiting:
                members = self._waiting[: self._most]
                del self._waiting[: self._most]
                self._round(members)
        finally:
            self._under_way = False

    def _round(self, members: Sequence[tuple[Item, AsyncResult[Result]]]) -> None:
        try:
            results = self._carry_out([item for item, _ in members])
            # Within the try: a wrong number of results must not leave a caller waiting for ever.
            answers = list(zip(members, results, strict=True))
        except Exception as error:
            if len(members) > 1 and not isinstance(error, self._passes_on):
                # All at once, and without waiting: one may have to wait long, and the others need not.
                for member in members:
                    gevent.spawn(self._round, [member])
                return
            for _, ticket in members:
                ticket.set_exception(error)
            return
        for (_, ticket), result in answers:
            ticket.set(result)
