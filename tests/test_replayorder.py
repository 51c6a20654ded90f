"""Tests of what is replayed together, and of what the end of a run means."""

from __future__ import annotations

import pytest

from fastagi_pool.errors import DatabaseBusy, DatabaseUnavailable, RowsLost
from fastagi_pool.journal import Entry
from fastagi_pool.replayorder import (
    FIRST_SIZE,
    LONGEST_PAUSE_S,
    MOST_AT_ONCE,
    MOST_MIXED,
    TARGET_S,
    Pace,
    Verdict,
    judge,
    portion,
    waves,
)


def _entries(*numbers: int) -> list[Entry]:
    return [Entry("main", "route", f"ref-{each}", (), 0.0, 0.0, number=each) for each in numbers]


@pytest.mark.parametrize(
    ("suspects", "expected"),
    [(set(), [1, 2, 3]), ({3}, [1, 2]), ({2, 3}, [1]), ({1}, [1]), ({9}, [1, 2, 3])],
)
def test_a_suspect_is_run_alone_and_in_its_place(suspects: set[int], expected: list[int]) -> None:
    """Those before a suspect are run without it, then it alone; none overtakes another."""
    assert [entry.number for entry in portion(_entries(1, 2, 3), suspects)] == expected


def test_nothing_is_a_portion_of_nothing() -> None:
    """An empty journal gives nothing to do, whatever was suspected."""
    assert list(portion([], {1})) == []


@pytest.mark.parametrize(
    ("raised", "broken", "broken_passes", "own_fault", "expected"),
    [
        (None, "", False, False, Verdict.DONE),
        (ValueError("bug"), "", False, False, Verdict.FAILED),
        (RowsLost("rows"), "", False, False, Verdict.FAILED),
        (SystemExit(1), "", False, False, Verdict.FAILED),
        (DatabaseUnavailable("other", "away"), "", False, False, Verdict.AGAIN),
        (DatabaseBusy("main", "locks"), "", False, False, Verdict.AGAIN),
        (ValueError("what came of the loss"), "connection lost", True, False, Verdict.AGAIN),
        (None, "deadlock", True, False, Verdict.AGAIN),
        (None, "interrupted", False, False, Verdict.FAILED),
        (TimeoutError(), "interrupted", True, True, Verdict.FAILED),
    ],
)
def test_what_passes_is_told_from_what_does_not(
    raised: BaseException | None, broken: str, broken_passes: bool, own_fault: bool, expected: Verdict
) -> None:
    """Only what is the entry's own fault is counted against it."""
    assert judge(raised, broken, broken_passes, own_fault) is expected


def test_portions_grow_while_they_are_quick_and_shrink_when_they_are_not() -> None:
    """A transaction stays near the time for which it may hold its locks, whatever entries cost."""
    pace = Pace()
    for _ in range(10):
        pace.went_well(pace.size, TARGET_S / 10)
    assert pace.size == MOST_AT_ONCE
    for _ in range(10):
        pace.went_well(pace.size, TARGET_S * 2)
    assert pace.size == 1


def test_a_small_portion_says_nothing_about_large_ones() -> None:
    """A quick portion that was not full does not let the next one grow."""
    pace = Pace()
    pace.went_well(1, 0.0)
    assert pace.size == FIRST_SIZE


def test_trouble_makes_for_longer_and_longer_pauses_up_to_a_bound() -> None:
    """What stands in the way is not stormed, and its end is still noticed soon."""
    pace, pauses = Pace(), []
    for _ in range(12):
        pace.stood_in_the_way(100.0)
        pauses.append(pace.due_s - 100.0)
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-1] == LONGEST_PAUSE_S
    assert pace.size == 1
    pace.went_well(1, 0.0)
    pace.stood_in_the_way(100.0)
    assert pace.due_s - 100.0 == pauses[0]


def _came(number: int, at_s: float, channel: str, route: str = "mixes") -> Entry:
    return Entry("main", route, "", (f"agi_uniqueid: {channel}",), at_s, 0.0, number=number)


def _numbers(entries: list[Entry]) -> list[list[int]]:
    return [[entry.number for entry in wave] for wave in waves(entries, {"mixes", "too"})]


def test_calls_of_the_same_second_may_run_at_the_same_time() -> None:
    """Calls of different channels are one wave, up to the end of their second."""
    entries = [_came(1, 7.0, "a"), _came(2, 7.4, "b", "too"), _came(3, 7.9, "c"), _came(4, 8.0, "d")]
    assert _numbers(entries) == [[1, 2, 3], [4]]


def test_calls_of_one_channel_keep_their_order() -> None:
    """The END of a call never runs beside its START."""
    assert _numbers([_came(1, 7.0, "a"), _came(2, 7.0, "b"), _came(3, 7.1, "a")]) == [[1, 2], [3]]


def test_calls_whose_handlers_bear_no_repetition_run_alone() -> None:
    """A route that is not said to mix has one call at a time, whoever stands beside it."""
    entries = [
        _came(1, 7.0, "a"),
        _came(2, 7.0, "b", "other"),
        _came(3, 7.0, "c", "other"),
        _came(4, 7.0, "d"),
    ]
    assert _numbers(entries) == [[1], [2], [3], [4]]


def test_a_wave_has_a_bound_and_loses_nobody() -> None:
    """However many calls came within a second, they come out in order and in bounded waves."""
    found = _numbers([_came(number, 7.0, str(number)) for number in range(3 * MOST_MIXED)])
    assert [len(wave) for wave in found] == [MOST_MIXED] * 3
    assert [number for wave in found for number in wave] == list(range(3 * MOST_MIXED))
