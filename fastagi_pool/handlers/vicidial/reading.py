"""Reading: what the driver gives of a row, made into the row that the chapters know.

Laws:
    * NULL is empty text or 0. A number is read as VICIdial reads it: leading digits, else 0.
    * Where several calls have shared a question, each gets the rows that are his: what a column takes for
      equal is equal, so it is compared without case and without final spaces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from decimal import Decimal
from typing import Any, Final, TypeAlias, TypeVar

from fastagi_pool.handlers.vicidial.rows import (
    AutoCall,
    CallLogRow,
    Campaign,
    CloserRow,
    Lead,
    LegKey,
    LogRow,
    ParkRow,
    Sight,
    System,
)

Kind = TypeVar("Kind")
#: Rows as the driver gives them.
Found: TypeAlias = Sequence[tuple[Any, ...]]

_SYSTEM_NUMBERS: Final = frozenset(
    {
        "highest_lead_id",
        "disconnect_mode",
        "drop_lists",
        "call_quota",
        "call_limit_24hour",
        "hopper_hold",
        "opensips_cid_name",
        "queue_logging",
    }
)


def text(value: object) -> str:
    """Read a text; NULL is empty."""
    return "" if value is None else str(value)


def number(value: object) -> int:
    """Read a number as VICIdial does: leading digits, else 0."""
    found = _LEADING_NUMBER.match(text(value))
    return int(found[0]) if found else 0


_LEADING_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")


def first(rows: Found) -> Any:
    """Give the first column of the first row; None without one."""
    return rows[0][0] if rows else None


def fold(key: str) -> str:
    """Bring texts that a column takes for equal to one form; ASCII only."""
    return key.rstrip(" ").lower()


def read_system(row: tuple[Any, ...]) -> System:
    """Read what ``sql.SYSTEM`` gives."""
    return _with_numbers(System, _SYSTEM_NUMBERS, row)


def read_campaign(row: tuple[Any, ...]) -> Campaign:
    """Read what ``sql.CAMPAIGN`` gives."""
    return _with_numbers(Campaign, {"auto_alt_threshold", "limit_24hour"}, row)


def read_auto_call(row: tuple[Any, ...]) -> AutoCall:
    """Read what ``sql.AUTO_CALLS_BY_ID`` gives."""
    return _with_numbers(AutoCall, {"auto_call_id", "lead_id", "call_epoch", "queue_position"}, row)


def _with_numbers(kind: Callable[..., Kind], numbers: Set[str], row: tuple[Any, ...]) -> Kind:
    """Make a row of texts, but for these columns."""
    names: Sequence[str] = kind._fields  # type: ignore[attr-defined]
    fields = zip(names, row, strict=True)
    return kind(*(number(value) if name in numbers else text(value) for name, value in fields))


def read_call(row: tuple[Any, ...]) -> CallLogRow:
    """Read what ``sql.CALLS_BY_ID`` gives."""
    return CallLogRow(text(row[0]), text(row[1]), text(row[2]), number(row[3]), number(row[4]))


def read_log(rows: Found) -> LogRow | None:
    """Read what ``sql.FIND_LOG`` gives; None if that is nothing."""
    return LogRow(number(rows[0][0]), *map(text, rows[0][1:])) if rows else None


def read_closer(rows: Found) -> CloserRow | None:
    """Read what ``sql.FIND_CLOSER`` gives; None if that is nothing."""
    return CloserRow(number(rows[0][0]), number(rows[0][1]), *map(text, rows[0][2:])) if rows else None


def read_lead(row: tuple[Any, ...]) -> Lead:
    """Read what ``sql.LEAD`` gives."""
    offset = row[5] if isinstance(row[5], Decimal) else Decimal(0)
    alt_phone, address3 = text(row[3]), text(row[4])
    return Lead(
        number(row[0]), number(row[1]), number(row[2]), alt_phone, address3, offset, *map(text, row[6:])
    )


def share_sights(keys: Sequence[LegKey], answers: Sequence[Found]) -> list[Sight]:
    """Give each of several ends its own rows."""
    parked, recently, calls, parks, by_id, by_code = answers
    call_rows = {fold(row[0]): read_call(row) for row in calls}
    park_rows = {fold(row[0]): ParkRow(number(row[1]), number(row[2])) for row in parks}
    alone = len(keys) == 1
    sights = []
    for uniqueid, code in keys:
        uid, code_key = fold(uniqueid), fold(code)

        def mine(rows: Found, column: int, key: str) -> Found:
            return rows if alone else [row for row in rows if fold(row[column]) == key]

        mine_by_code = mine(by_code, 2, code_key) if code else ()
        alive = {row[0]: read_auto_call(row) for row in (*mine(by_id, 8, uid), *mine_by_code)}
        double = call_rows.get(f"{uid}99")
        sights.append(
            Sight(
                [(text(row[1]), text(row[2])) for row in mine(parked, 0, code_key)] if code else (),
                [text(row[1]) for row in mine(recently, 0, code_key)] if code else (),
                call_rows.get(uid),
                double if double and double.channel_group == "DOUBLE_LOG" else None,
                park_rows.get(uid),
                [alive[each] for each in sorted(alive)],
            )
        )
    return sights
