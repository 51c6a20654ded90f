"""Comparing: the net changes between two looks at the tables, and whether they are the expected ones.

Laws:
    * Pure: rows in, readable lines out. No line means that they agree.
    * A change that nobody expects is as wrong as one that is missing.
    * Times may be off by some seconds, everything else by nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from .playing import Row

#: All rows of all tables.
Snapshot: TypeAlias = Mapping[str, Sequence[Row]]
#: A column, what is expected of it, what was found.
_Pair: TypeAlias = tuple[str, object, object]

#: By how much times and durations may differ: a call that pauses, on a busy machine.
TOLERANCE_S: Final = 3.0

#: How a row is known before and after; tables that are not named here: by all its columns.
_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "call_log": ("uniqueid",),
    "vicidial_log": ("uniqueid",),
    "vicidial_log_extended": ("uniqueid",),
    "vicidial_carrier_log": ("uniqueid",),
    "live_inbound": ("uniqueid",),
    "vicidial_rt_monitor_log": ("caller_code",),
    "vicidial_3way_press_live": ("call_3way_id",),
    "vicidial_3way_press_log": ("call_3way_id",),
    "vicidial_dial_log": ("caller_code", "call_date"),
    "park_log": ("uniqueid", "parked_time"),
    "vicidial_list": ("lead_id",),
    "vicidial_lead_call_quota_counts": ("lead_id", "list_id"),
    "vicidial_auto_calls": ("auto_call_id",),
    "vicidial_closer_log": ("closecallid",),
    "vicidial_hopper": ("hopper_id",),
    "vicidial_live_agents": ("live_agent_id",),
    "recording_log": ("recording_id",),
    "vicidial_khomp_log": ("khomp_log_id",),
    "queue_log": ("unique_row_count",),
    "vicidial_settings_containers": ("container_id",),
    "parked_channels": ("channel",),
    "servers": ("server_id",),
}
#: Numbers that the database gives, and times that it writes by itself.
_IGNORED: Final = frozenset(
    {
        "auto_call_id",
        "hopper_id",
        "closecallid",
        "unique_row_count",
        "last_update_time",
        "modify_date",
        "live_agent_id",
        "khomp_log_id",
        "alt_phone_id",
    }
)
_UNCHANGED: Final = "(unchanged)"
_MOMENT = re.compile(r"\{(?:dt|ep|t)([+-]\d+)?\}$")
_STAMP = re.compile(r"[12]\d{3}-[01]\d-[0-3]\d [0-2]\d:[0-5]\d:[0-5]\d")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True, eq=False)
class Change:
    """What became of one row.

    Attributes:
        op: ``INSERT``, ``UPDATE`` or ``DELETE``.
        table: Its table.
        old: The row before; empty for ``INSERT``.
        new: The row after; empty for ``DELETE``.
    """

    op: str
    table: str
    old: Row
    new: Row

    def __str__(self) -> str:
        row = {
            column: str(value)
            for column, value in (self.new or self.old).items()
            if value is not None and (self.op != "UPDATE" or value != self.old[column])
        }
        return f"{self.op} {self.table}: unexpected {json.dumps(row)}"


def net_changes(before: Snapshot, after: Snapshot) -> list[Change]:
    """List what is different in the second snapshot, table by table."""
    return [change for table in before for change in _changes_of(table, before[table], after[table])]


def _changes_of(table: str, before: Sequence[Row], after: Sequence[Row]) -> Iterator[Change]:
    old, new = _by_key(table, before), _by_key(table, after)
    for key, row in old.items():
        if key not in new:
            yield Change("DELETE", table, row, {})
    for key, row in new.items():
        if key not in old:
            yield Change("INSERT", table, {}, row)
        elif any(old[key][column] != row[column] for column in row.keys() - _IGNORED):
            yield Change("UPDATE", table, old[key], row)


def _by_key(table: str, rows: Sequence[Row]) -> dict[tuple[str, ...], Row]:
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(str(row[column]) for column in _KEYS.get(table, tuple(row)))
        while key in found:
            key += ("again",)
        found[key] = row
    return found


def compare(
    expected: Sequence[Row], changes: Sequence[Change], began_s: int, took_s: float = 0.0
) -> list[str]:
    """Say how changes differ from the expected ones.

    Args:
        expected: Each has ``op`` and ``table``, with all columns in ``row`` for ``INSERT``, some for
            ``DELETE``, and for ``UPDATE`` those that change in ``before`` and ``after``, and ``key``.
            ``{t-40}`` is 40 s before the call as date or epoch, ``~40`` a duration, ``{t}`` within a text
            a date.
        changes: What was found.
        began_s: The call's time, in seconds since 1970.
        took_s: How long it took with all that was played at once; so much later everything may be.
    """
    within_s = TOLERANCE_S + took_s
    left, missing = list(changes), []
    for each in expected:
        same = (change for change in left if not _mismatch(each, change, began_s, within_s))
        hit = next(same, None)
        if hit is None:
            missing.append(each)
        else:
            left.remove(hit)
    lines = []
    for each in missing:
        near = min(
            (change for change in left if _is_about(each, change)),
            key=lambda change: len(_mismatch(each, change, began_s, within_s)),
            default=None,
        )
        if near is None:
            lines.append(
                f"{each['op']} {each['table']}: missing {json.dumps(each.get('after') or each['row'])}"
            )
        else:
            lines.append(
                f"{each['op']} {each['table']}: {'; '.join(_mismatch(each, near, began_s, within_s))}"
            )
            left.remove(near)
    return lines + [str(change) for change in left]


def _is_about(expected: Row, change: Change) -> bool:
    return (expected["op"], expected["table"]) == (change.op, change.table)


def _mismatch(expected: Row, change: Change, began_s: int, within_s: float) -> list[str]:
    """Say which columns are not as expected."""
    if not _is_about(expected, change):
        return [f"{change.op} {change.table}"]
    return [
        f"{column}: expected {wanted!r}, found {str(found)!r}"
        for column, wanted, found in _pairs(expected, change)
        if not _agree(wanted, found, began_s, within_s, column)
    ]


def _pairs(expected: Row, change: Change) -> list[_Pair]:
    if change.op == "DELETE":
        return [(column, wanted, change.old[column]) for column, wanted in expected["row"].items()]
    found = {column: value for column, value in change.new.items() if column not in _IGNORED}
    if change.op == "INSERT":
        pairs: list[_Pair] = [(column, expected["row"].get(column), value) for column, value in found.items()]
    else:
        pairs = [
            (
                column,
                expected["after"].get(column, _UNCHANGED),
                value if value != change.old[column] else _UNCHANGED,
            )
            for column, value in found.items()
        ]
        before = {**expected["before"], **expected.get("key", {})}
        pairs += [(column, wanted, change.old[column]) for column, wanted in before.items()]
    if change.new.get("verb") != "COMPLETECALLER":
        return pairs
    # How long the call was is written as a plain number there.
    return [(column, f"~{wanted}" if column == "data2" else wanted, value) for column, wanted, value in pairs]


def _agree(wanted: object, found: object, began_s: int, within_s: float, column: str) -> bool:
    """Say whether a value is the expected one, within the tolerance."""
    if wanted is None or found is None:
        return wanted is found
    if isinstance(wanted, str):
        if moment := _MOMENT.match(wanted):
            return _near(_epoch(found), began_s + int(moment[1] or 0), within_s)
        if wanted.startswith("~"):
            # Minutes are rounded to hundredths.
            within = within_s / 60 + 0.001 if column == "length_in_min" else within_s
            return _near(_number(found), float(wanted[1:]), within)
        if "{t}" in wanted:
            return _STAMP.sub("{t}", str(found)) == wanted and all(
                _near(datetime.fromisoformat(stamp).timestamp(), began_s, within_s)
                for stamp in _STAMP.findall(str(found))
            )
    if isinstance(wanted, (int, float)):
        return _near(_number(found), wanted, 1e-6)
    return str(found) == str(wanted)


def _near(found: float, wanted: float, within: float) -> bool:
    return abs(found - wanted) <= within


def _epoch(value: Any) -> float:
    return value.timestamp() if isinstance(value, datetime) else _number(value)


def _number(value: object) -> float:
    """Read a number; what is none becomes not-a-number, which is near nothing."""
    text = str(value)
    return float(text) if _NUMBER.fullmatch(text) else float("nan")
