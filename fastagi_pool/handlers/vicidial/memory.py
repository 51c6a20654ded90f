"""Memory: what a run of an END knew, for the run that takes it up again from the journal.

Laws:
    * A row that a run has deleted or overwritten cannot tell a later run what to do: what decided is kept.
    * Of a memory that cannot be read nothing is believed: the later run sees what the tables say.

How it works: a run that may be done again puts its memory, as one more line, behind what Asterisk said, so
that it goes into the journal with the call. A run from the journal may yet be rolled back, perhaps with its
neighbours, while what it did in tables without transactions stays: its memory is left with the process.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from fastagi_pool.handlers.vicidial.rows import AutoCall, CloserRow, LogRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastagi_pool.call import Call

#: The name of the line; Asterisk has none that is called so.
_LINE: Final = "agi_fagi_memory"
#: Calls from the journal whose memory is kept: many times those that are in one transaction.
MOST_KEPT: Final = 1000

#: The log rows of a call as they were before anything of them was overwritten; None for no such row.
Logs: TypeAlias = tuple[LogRow | None, CloserRow | None]

Row = TypeVar("Row")


@dataclass(slots=True)
class Memory:
    """What a run of an END knew.

    Attributes:
        auto_calls: Its rows of the calls that are alive, oldest first, before it deleted any.
        is_owner: Whether what follows the call's end is this request's to do: it has deleted the call, or may
            have.
        logs: The call's log rows; None if they were not read.
        followed: Whether all that follows was committed; only ``_close_late`` is left.
    """

    auto_calls: tuple[AutoCall, ...] = ()
    is_owner: bool = False
    logs: Logs | None = None
    followed: bool = False

    def to_text(self) -> str:
        """Write it as one line of ASCII."""
        return json.dumps([self.auto_calls, self.is_owner, self.logs, self.followed])

    @classmethod
    def from_text(cls, text: str) -> Memory:
        """Read what :meth:`to_text` wrote; an empty memory if that makes no sense."""
        try:
            auto_calls, is_owner, logs, followed = json.loads(text)
            return cls(
                tuple(AutoCall(*each) for each in auto_calls),
                bool(is_owner),
                None if logs is None else (_row(LogRow, logs[0]), _row(CloserRow, logs[1])),
                bool(followed),
            )
        except (ValueError, TypeError, LookupError, RecursionError):
            return cls()


def _row(kind: Callable[..., Row], values: Any) -> Row | None:
    return None if values is None else kind(*values)


#: What a run knows that has seen no call alive.
_NOTHING: Final = Memory()


class Memories:
    """The memories of a process: for calls from the journal, until so many others have come."""

    def __init__(self) -> None:
        self._kept: dict[str, Memory] = {}

    def recall(self, call: Call) -> Memory:
        """Give what an earlier run of a call knew; an empty memory for a first run."""
        if not call.deferred:
            return Memory()
        known = self._kept.pop(call.ref, None)
        return known or Memory.from_text(call.request.environment.get(_LINE, ""))

    def keep(self, call: Call, memory: Memory) -> None:
        """Keep what a run knew whose call may be run again: one that failed so, and any from the journal."""
        if call.deferred:
            self._kept[call.ref] = memory
            if len(self._kept) > MOST_KEPT:
                del self._kept[next(iter(self._kept))]
        elif memory != _NOTHING:
            cast("dict[str, str]", call.request.environment)[_LINE] = memory.to_text()
