"""fastagi_pool.custody: which descriptors are calls, in memory that outlives its writer."""

from __future__ import annotations

import os
import resource
import signal

import pytest
from children import in_child

from fastagi_pool.callboard import NO_ROW
from fastagi_pool.custody import (
    BEGUN,
    NO_CUSTODY,
    NO_NUMBER,
    NOBODYS,
    UNBEGUN,
    Custody,
    Held,
    most_descriptors,
)


def test_what_stands_in_custody_comes_back() -> None:
    """Each word comes back as what it means, and what is nobody's is left out."""
    custody = Custody(16)
    custody.words[3] = UNBEGUN
    custody.words[5] = BEGUN
    custody.words[6] = BEGUN + 41
    custody.words[7] = BEGUN + NO_NUMBER
    custody.words[8] = UNBEGUN
    custody.words[8] = NOBODYS
    assert custody.held(range(16)) == [
        Held(3, begun=False, row=None),
        Held(5, begun=True, row=0),
        Held(6, begun=True, row=41),
        Held(7, begun=True, row=None),
    ]


def test_only_open_descriptors_are_asked_of() -> None:
    """A word of a descriptor that is closed already means nothing, and one beyond all words is nobody's."""
    custody = Custody(4)
    custody.words[1] = custody.words[2] = UNBEGUN
    assert custody.held([0, 2, 4, 99]) == [Held(2, begun=False, row=None)]


def test_a_call_without_a_row_is_told_from_one_in_row_0() -> None:
    """The row that shows nothing has the number that says so."""
    custody = Custody(4)
    custody.words[2] = BEGUN + NO_ROW.number
    assert custody.held([2]) == [Held(2, begun=True, row=None)]


def test_words_outlive_their_writer() -> None:
    """What a process wrote that was killed is read by the one that made the custody."""
    custody = Custody(8)
    pid = os.fork()
    if pid == 0:
        custody.words[4] = BEGUN + 7
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert custody.held(range(8)) == [Held(4, begun=True, row=7)]


@pytest.mark.parametrize(("limit", "expected"), [(64, 64), (resource.RLIM_INFINITY, 1 << 20)])
def test_there_is_a_word_for_each_descriptor(
    limit: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are as many words as the process may have descriptors, and a bound where that has none."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert most_descriptors() == expected


def test_the_limit_is_the_soft_one() -> None:
    """It is the limit that the kernel keeps to."""

    def look() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (77, 100))
        return most_descriptors()

    assert in_child(look) == 77


def test_without_custody_nothing_is_kept() -> None:
    """A session that nobody survives writes as any other, whatever its descriptor."""
    NO_CUSTODY.words[1 << 30] = UNBEGUN
