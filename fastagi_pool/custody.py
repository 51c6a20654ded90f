"""Custody: shared memory in which a worker says which of its descriptors are connections of calls.

Laws:
    * One writer while the worker lives: the worker. Whoever survives it reads.
    * A word is written before what it speaks of can be lost, and cleared after the descriptor is closed: at
      worst it names a descriptor that is closed already.
    * A connection that is being judged at this moment counts as begun: it may be what ends the process.
    * A connection whose call has not begun is as it came: nothing of it was consumed, so another process can
      serve it as if nothing had happened.
    * It costs a call a few writes into memory, and no system call.

How it works: one word of 32 bits for each descriptor that the process may have, in a mapping that survives
its writer because another process shares it. The memory of a page is taken when it is written for the first
time, and the kernel gives away the lowest descriptors first.
"""

from __future__ import annotations

import mmap
import resource
from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

#: The words: this is no call's, ...
NOBODYS: Final = 0
#: ... a connection whose call has not begun, ...
UNBEGUN: Final = 1
#: ... and, with the number of the call's row added, one whose call has.
BEGUN: Final = 2
#: Stands for the number of a row where there is none.
NO_NUMBER: Final = 0xFFFFFF
#: How the process is called that outlives a worker to tell its calls; see ``witness``.
WITNESS_TITLE: Final = "fastagi-pool: witness of worker"
#: No process of ours comes near it. Source: fs.nr_open as Linux has it, in fs/file.c.
_MOST_DESCRIPTORS: Final = 1 << 20
_WORD_BYTES: Final = 4


class Words(Protocol):
    """The words, one for each descriptor."""

    def __setitem__(self, descriptor: int, word: int, /) -> None:
        """Say what a descriptor is."""


class Held(NamedTuple):
    """A descriptor that is the connection of a call.

    Attributes:
        descriptor: Its number.
        begun: Whether the call has begun.
        row: Number of the call's row on the call board; None if it has none.
    """

    descriptor: int
    begun: bool
    row: int | None


class Custody:
    """What the descriptors of one worker are.

    Attributes:
        words: One word for each descriptor, written at every call: see :data:`UNBEGUN` and :data:`BEGUN`.
    """

    def __init__(self, most: int) -> None:
        """Make an empty one, to be shared with processes that are made later.

        Args:
            most: How many descriptors there can be: :func:`most_descriptors`.

        Raises:
            OSError: There is no memory for it.
        """
        self.words: memoryview[int] = memoryview(mmap.mmap(-1, most * _WORD_BYTES)).cast("I")

    def held(self, descriptors: Iterable[int]) -> list[Held]:
        """Find the connections of calls.

        Args:
            descriptors: Those that are open; of others it is not asked.
        """
        most = len(self.words)
        return [
            _read(descriptor, word)
            for descriptor in descriptors
            if descriptor < most and (word := self.words[descriptor]) != NOBODYS
        ]


def _read(descriptor: int, word: int) -> Held:
    number = word - BEGUN
    return Held(descriptor, word != UNBEGUN, number if 0 <= number < NO_NUMBER else None)


def most_descriptors() -> int:
    """Return how many descriptors this process may have at the same time."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, _MOST_DESCRIPTORS)


class _Nowhere:
    """Takes every word and keeps none."""

    def __setitem__(self, descriptor: int, word: int) -> None:
        """Forget it."""


class NoCustody:
    """For sessions that nobody survives: on a stage, and in tests.

    Attributes:
        words: Whatever is written there is gone.
    """

    words: Words = _Nowhere()


#: Keeps nothing.
NO_CUSTODY: Final = NoCustody()
