"""Reading: what the driver gives of a row, in values, without a database."""

from __future__ import annotations

from decimal import Decimal

import pytest

from fastagi_pool.handlers.vicidial.reading import (
    first,
    fold,
    number,
    read_call,
    read_lead,
    read_log,
    share_sights,
    text,
)
from fastagi_pool.handlers.vicidial.rows import CallLogRow, LegKey, LogRow, ParkRow, Sight


@pytest.mark.parametrize(
    ("value", "found"), [(None, ""), ("", ""), ("x", "x"), (7, "7"), (Decimal("1.50"), "1.50")]
)
def test_a_text(value: object, found: str) -> None:
    """NULL is empty, and every other value is what it looks like."""
    assert text(value) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, 0),
        ("", 0),
        ("x1", 0),
        ("12x", 12),
        (7, 7),
        (-1, -1),
        (Decimal("8.9"), 8),
        ("9" * 30, int("9" * 18)),
    ],
)
def test_a_number(value: object, found: int) -> None:
    """A number is its leading digits, 0 without any, and never one that no column holds."""
    assert number(value) == found


def test_the_first_of_nothing() -> None:
    """No row is None, which is told from a row whose value is 0."""
    assert first([]) is None
    assert first([(0, 1), (2, 3)]) == 0


@pytest.mark.parametrize(("one", "other"), [("V1", "v1"), ("x", "x  "), ("", " ")])
def test_what_a_column_takes_for_equal(one: str, other: str) -> None:
    """Case and final spaces make no difference."""
    assert fold(one) == fold(other)


def test_rows_of_nothing_but_null() -> None:
    """A row of NULLs is a row of empty texts and zeros."""
    assert read_call((None,) * 5) == CallLogRow("", "", "", 0, 0)
    assert read_log([(None,) * 5]) == LogRow(0, "", "", "", "")
    assert read_log([]) is None
    assert read_lead((None,) * 9).gmt_offset_now == 0


def auto_call(number_: int, uid: str, code: str) -> tuple[object, ...]:
    """A row of a call that is alive."""
    return (number_, 101, code, "C", "NONE", "START", None, 0, uid, "LIVE", "1", "312", 1, "10.0.0.1", "")


def test_calls_that_shared_a_question_get_their_own_rows() -> None:
    """Rows go to the call whose unique id or code they have, whatever the case, once and oldest first."""
    keys = [LegKey("1.1", "V1"), LegKey("1.2", "V2"), LegKey("1.3", "")]
    both = auto_call(9, "1.1", "V1")
    parked = [("v2", "10.0.0.2", "SIP/x"), ("", "10.0.0.3", "SIP/y")]
    recently = [("V1", "10.0.0.4"), ("V1", "10.0.0.5")]
    calls = [
        ("1.1", "SIP/a", "", 1, 0),
        ("1.199", "Local/a", "DOUBLE_LOG", 1, 0),
        ("1.299", "Local/b", "x", 1, 0),
    ]
    parks = [("1.2", 5, None), ("1.2", 6, 7)]
    by_id = [both, auto_call(4, "1.3", "V9")]
    by_code = [both, auto_call(2, "1.9", "v1"), auto_call(3, "1.8", "")]

    one, two, three = share_sights(keys, [parked, recently, calls, parks, by_id, by_code])

    assert one.call == CallLogRow("1.1", "SIP/a", "", 1, 0)
    assert one.double == CallLogRow("1.199", "Local/a", "DOUBLE_LOG", 1, 0)
    assert ([row.auto_call_id for row in one.auto_calls], one.parked) == ([2, 9], [])
    assert (one.parked_recently, one.park) == (["10.0.0.4", "10.0.0.5"], None)
    assert (two.call, two.double, two.park) == (None, None, ParkRow(6, 7))
    assert (two.parked, two.auto_calls) == ([("10.0.0.2", "SIP/x")], [])
    assert three == Sight((), (), None, None, None, three.auto_calls)
    assert [row.auto_call_id for row in three.auto_calls] == [4]
