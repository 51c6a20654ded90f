"""What is compared with the recorded calls: every difference is found, and what may differ may differ."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Final

import pytest

from .comparing import Change, compare, net_changes
from .playing import Row

_BEGAN_S: Final = 1_800_000_000


def at(offset_s: int) -> datetime:
    """Give a date so many seconds after the call."""
    return datetime.fromtimestamp(_BEGAN_S + offset_s)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("", ""),
        ("7", 7),
        (7, 7),
        (0.0, Decimal("0.00")),
        (None, None),
        ("{t}", _BEGAN_S + 3),
        ("{t-40}", _BEGAN_S - 43),
        ("{t}", at(3)),
        ("~40", 43),
        ("Started|Hungup: {t}", f"Started|Hungup: {at(2)}"),
    ],
)
def test_values_that_agree(wanted: object, found: object) -> None:
    """A number may be written as text, and a time may be some seconds off."""
    assert compare([insert(wanted)], [Change("INSERT", "call_log", {}, {"value": found})], _BEGAN_S) == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("", None),
        (None, ""),
        (None, 0),
        ("a", "A"),
        (7, 8),
        (7, "7x"),
        (0, "0000-00-00 00:00:00"),
        ("{t}", _BEGAN_S + 4),
        ("{t}", at(-4)),
        ("{t}", None),
        ("{t}", "0000-00-00 00:00:00"),
        ("~40", 44),
        ("~40", ""),
        ("Started|Hungup: {t}", f"Started|Hungup: {at(4)}"),
        ("Started|Hungup: {t}", "Started"),
    ],
)
def test_values_that_differ(wanted: object, found: object) -> None:
    """Anything else is a difference, also NULL where a text is expected."""
    (line,) = compare([insert(wanted)], [Change("INSERT", "call_log", {}, {"value": found})], _BEGAN_S)

    assert line == f"INSERT call_log: value: expected {wanted!r}, found {str(found)!r}"


def insert(value: object) -> Row:
    """Expect a row with one column."""
    return {"op": "INSERT", "table": "call_log", "row": {"value": value}}


def test_minutes_are_as_exact_as_seconds() -> None:
    """Durations in minutes may differ by as much as those in seconds."""
    wanted = {"op": "INSERT", "table": "call_log", "row": {"length_in_min": "~0.67"}}
    changes = [Change("INSERT", "call_log", {}, {"length_in_min": value}) for value in (0.72, 0.73)]

    assert [len(compare([wanted], [change], _BEGAN_S)) for change in changes] == [0, 1]


def test_a_change_too_many_and_one_too_few() -> None:
    """A row that nobody expects is told, and so is one that is missing."""
    twice = [Change("INSERT", "call_log", {}, {"value": 1}) for _ in range(2)]

    assert compare([insert(1)], twice, _BEGAN_S) == ['INSERT call_log: unexpected {"value": "1"}']
    assert compare([insert(1), insert(1)], twice[:1], _BEGAN_S) == ['INSERT call_log: missing {"value": 1}']


def test_an_update_names_every_column_that_changes() -> None:
    """A column that changed without being expected is a difference, and so is one that did not change."""
    old = {"status": "QUEUE", "rank": 0}
    wanted = {"op": "UPDATE", "table": "call_log", "before": {"status": "QUEUE"}, "after": {"status": "DROP"}}

    def differences(new: Row) -> list[str]:
        return compare([wanted], [Change("UPDATE", "call_log", old, new)], _BEGAN_S)

    assert differences({"status": "DROP", "rank": 0}) == []
    assert differences({"status": "DROP", "rank": 1}) == [
        "UPDATE call_log: rank: expected '(unchanged)', found '1'"
    ]
    assert differences({"status": "QUEUE", "rank": 1}) != []


def test_what_changed() -> None:
    """Rows are known by their key; a number that the database gave is no difference."""
    before = {"vicidial_list": [{"lead_id": 1, "rank": 0, "modify_date": 1}, {"lead_id": 2, "rank": 0}]}
    after = {"vicidial_list": [{"lead_id": 1, "rank": 0, "modify_date": 2}, {"lead_id": 3, "rank": 0}]}

    changes = [(each.op, each.old, each.new) for each in net_changes(before, after)]

    assert changes == [
        ("DELETE", {"lead_id": 2, "rank": 0}, {}),
        ("INSERT", {}, {"lead_id": 3, "rank": 0}),
    ]


def test_equal_rows_are_counted() -> None:
    """In a table without a key a second equal row is a change."""
    row = {"uniqueid": "1700000000.26"}

    (change,) = net_changes({"vicidial_drop_log": [row]}, {"vicidial_drop_log": [row, row]})

    assert change.op == "INSERT"
