"""Replay order: which entries of the journal are run together, and what their ends mean. Pure.

Laws:
    * Entries of one database are run in the order of the journal, whatever happens to one of them.
    * One that cannot be done takes no other along: those before it are done without it, it is tried alone,
      and only if it fails alone is it at fault.
    * Calls of one channel never run at the same time. Calls of different channels may, if they came within
      the same second and their handlers bear repetition: Asterisk did not wait with the one for the other.
    * What is nobody's fault is tried again, in smaller portions, for as long as it takes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final

from fastagi_pool.errors import DatabaseBusy, DatabaseUnavailable

if TYPE_CHECKING:
    from fastagi_pool.journal import Entry

FIRST_SIZE: Final = 50
MOST_AT_ONCE: Final = 256
#: Calls that run at the same time: their statements are grouped, and a packet must not get too large.
MOST_MIXED: Final = 64
#: By which Asterisk tells one channel from another.
_CHANNEL: Final = ("agi_uniqueid: ", "agi_channel: ")
#: A transaction holds its locks for so long, and other programs wait for them.
TARGET_S: Final = 0.2
#: Between attempts at what stood in the way.
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0


class Verdict(Enum):
    """What the end of an entry's run means."""

    DONE = "it is done"
    AGAIN = "something stood in the way of it that passes"
    FAILED = "it cannot be done"


class Pace:
    """How many entries of a database are run in one transaction, and when the next is due."""

    def __init__(self) -> None:
        self.size = FIRST_SIZE
        self.due_s = 0.0
        self._pause_s = FIRST_PAUSE_S

    def went_well(self, entries: int, took_s: float) -> None:
        """Adapt to how long a portion took.

        Args:
            entries: How many it had.
            took_s: Seconds from the beginning of its transaction to the commit.
        """
        self._pause_s = FIRST_PAUSE_S
        if took_s > TARGET_S:
            self.size = max(1, self.size // 2)
        elif took_s < TARGET_S / 2 and entries >= self.size:
            self.size = min(MOST_AT_ONCE, self.size * 2)

    def stood_in_the_way(self, now_s: float) -> None:
        """Try less, and not at once."""
        self.size = max(1, self.size // 2)
        self.due_s = now_s + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)

    def doubt(self) -> None:
        """Go on entry by entry: one of a portion is at fault, and nobody knows which."""
        self.size = 1


def portion(entries: Sequence[Entry], suspects: Collection[int]) -> Sequence[Entry]:
    """Say which entries are run in the next transaction.

    Args:
        entries: The next ones, in order.
        suspects: Numbers of those that are to be run alone.

    Returns:
        Those before the first suspect; if that is the first of all, it alone.
    """
    for place, entry in enumerate(entries):
        if entry.number in suspects:
            return entries[: max(place, 1)]
    return entries


def waves(entries: Sequence[Entry], mixing: Collection[str]) -> Iterator[list[Entry]]:
    """Divide entries into those that may run at the same time, one group after the other.

    Args:
        entries: In their order.
        mixing: Names of the routes whose calls may run beside others.
    """
    wave: list[Entry] = []
    channels: set[str] = set()
    for entry in entries:
        own = {line for line in entry.environment if line.startswith(_CHANNEL)}
        fits = (
            bool(wave)
            and len(wave) < MOST_MIXED
            and {entry.route, wave[0].route} <= set(mixing)
            and int(entry.received_s) == int(wave[0].received_s)
            and not own & channels
        )
        if not fits:
            if wave:
                yield wave
            wave, channels = [], set()
        wave.append(entry)
        channels |= own
    if wave:
        yield wave


def judge(raised: BaseException | None, broken: str, broken_passes: bool, own_fault: bool) -> Verdict:
    """Say what the end of a handler's run means.

    Args:
        raised: What it raised; None if it returned.
        broken: Why the transaction that it ran in cannot be committed; empty if it can.
        broken_passes: Whether that was nobody's fault.
        own_fault: Whether it ran for too long.
    """
    if own_fault:
        return Verdict.FAILED
    if broken and broken_passes:
        return Verdict.AGAIN
    if isinstance(raised, (DatabaseUnavailable, DatabaseBusy)):
        return Verdict.AGAIN
    return Verdict.FAILED if raised is not None or broken else Verdict.DONE
