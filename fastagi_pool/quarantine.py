"""Quarantine: requests that have ended workers, and are not tried again for a while.

Laws:
    * One writer: the master, who sees workers die. Workers only look, and that costs a call next to nothing.
    * A worker serves many calls when it dies, and most are innocent. Suspected is the one that did something
      last, unless it only waited for Asterisk; and only who is suspected several times is refused.

How it works: the table lies in shared memory below the runtime folder: a word that says how many places were
ever used, then for each a fingerprint, the number of deaths, when the last one was, and until when requests
with this fingerprint are refused. Fingerprints are Python's own hashes: the same in all processes that the
master forks, and different after an upgrade, so that what an older program wrote refuses nobody.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from fastagi_pool.callboard import CallFacts, CallState
from fastagi_pool.protocol import Request

#: The file below the runtime folder.
FILE: Final = "quarantine"
#: Requests that are watched at the same time; beyond it the one is forgotten whose last death is oldest.
PLACES: Final = 127
_WORDS_OF_PLACE: Final = 4
_BYTES: Final = 8 * _WORDS_OF_PLACE * (PLACES + 1)
#: What a call may be doing that has ended its worker.
_AT_WORK: Final = frozenset({CallState.SCRIPT, CallState.DATABASE, CallState.FINISHED})
_MASK: Final = (1 << 64) - 1


def fingerprint(request: Request) -> int:
    """Give what requests share that are likely to do the same: not 0, and below 2**64."""
    likeness = hash((request.network_script, request.arguments, request.callerid, request.extension))
    return likeness & _MASK or 1


def suspect(calls: Iterable[CallFacts]) -> CallFacts | None:
    """Say which of the calls that died with a worker may have ended it; None if probably none.

    The one that did something last was in control, unless it did nothing but ask Asterisk.
    """
    last = max(calls, key=lambda call: call.since_s, default=None)
    return last if last is not None and last.state in _AT_WORK else None


class Quarantine:
    """The table, as the master writes it or as a worker reads it."""

    def __init__(self, memory: mmap.mmap) -> None:
        """Use the memory of an open table; see :meth:`create` and :meth:`attach`."""
        self._words = memoryview(memory).cast("Q")

    @classmethod
    def create(cls, path: Path) -> Self:
        """Open it for writing (master only); one that is there goes on to hold.

        Raises:
            OSError: The folder is not writable, or full.
        """
        # Root may do this in somebody else's folder: a link that waits there must lead nowhere.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o644)
        except PermissionError:
            # Left by root in a folder that is ours by now.
            path.unlink()
            fd = os.open(path, flags, 0o644)
        try:
            os.posix_fallocate(fd, 0, _BYTES)
            return cls(mmap.mmap(fd, _BYTES))
        finally:
            os.close(fd)

    @classmethod
    def attach(cls, path: Path) -> Self:
        """Open it for reading.

        Raises:
            OSError: There is none, or it may not be read.
            ValueError: It is too short.
        """
        with path.open("rb") as file:
            return cls(mmap.mmap(file.fileno(), _BYTES, prot=mmap.PROT_READ))

    def refuses(self, likeness: int, now_s: float) -> bool:
        """Whether requests with this fingerprint are refused now (monotonic time)."""
        words = self._words
        used = words[0]
        if not used:
            return False
        for base in range(_WORDS_OF_PLACE, _WORDS_OF_PLACE * (used + 1), _WORDS_OF_PLACE):
            if words[base] == likeness:
                return now_s * 1000 < words[base + 3]
        return False

    def blame(self, likeness: int, now_s: float, crashes: int, for_s: float) -> int:
        """Count a death (master only).

        Args:
            likeness: The fingerprint of who is suspected.
            now_s: Monotonic time.
            crashes: After so many, each within ``for_s`` of the one before, requests like it are refused.
            for_s: For how long.

        Returns:
            How many it has to answer for now.
        """
        words, base = self._words, self._place_of(likeness)
        now_ms, for_ms = int(now_s * 1000), int(for_s * 1000)
        known = words[base] == likeness and now_ms - words[base + 2] <= for_ms
        deaths = words[base + 1] + 1 if known else 1
        # The fingerprint last: who reads meanwhile must not find another's sentence behind it.
        words[base] = 0
        words[base + 1] = deaths
        words[base + 2] = now_ms
        words[base + 3] = now_ms + for_ms if deaths >= crashes else 0
        words[base] = likeness
        words[0] = max(words[0], base // _WORDS_OF_PLACE)
        return deaths

    def _place_of(self, likeness: int) -> int:
        """Find its place, or one that can be had."""
        words, used = self._words, self._words[0]
        bases = range(_WORDS_OF_PLACE, _WORDS_OF_PLACE * (used + 1), _WORDS_OF_PLACE)
        known = next((base for base in bases if words[base] == likeness), None)
        if known is not None:
            return known
        if used < PLACES:
            return _WORDS_OF_PLACE * (used + 1)
        return min(bases, key=lambda base: words[base + 2])
