"""SQL: texts and values stay apart."""

from __future__ import annotations

import re

import pytest

from fastagi_pool.handlers.vicidial import sql
from fastagi_pool.handlers.vicidial.rows import AutoCall, DropRow, NewLog

_DROP = DropRow("1.1", "10.0.0.1", 101, "C'", "DROP", "1", "312%s")
_ALIVE = AutoCall(7, 101, "V1", "C", "NONE", "S", "", 0, "1.1", "SENT", "1", "312", 1, "10.0.0.1", "")


@pytest.mark.parametrize(("text", "pattern"), [("1.1", "1.1"), ("1_%", r"1\_\%"), ("a\\b", r"a\\b")])
def test_what_means_something_to_like(text: str, pattern: str) -> None:
    """A unique id stands for itself in a pattern, whatever is in it."""
    assert sql.literally(text) == pattern


def test_an_update_leaves_what_has_no_value() -> None:
    """A column that is None is not written; 0 and empty are."""
    columns = {"status": None, "user": "", "length_in_sec": 0}
    assert sql.update("t", columns, "id = %s", 5) == (
        "UPDATE t SET user = %s, length_in_sec = %s WHERE id = %s",
        ("", 0, 5),
    )


@pytest.mark.parametrize("only_once", [False, True])
def test_a_drop_row_has_a_value_for_each_place(only_once: bool) -> None:
    """No value is part of the text, and each place has its own."""
    text, values = sql.insert_drop(_DROP, only_once)
    assert text.count("%s") == len(values)
    assert "C'" not in text
    assert ("NOT EXISTS" in text) is only_once


def test_log_rows_without_a_date() -> None:
    """A call whose row says no time is logged with the zero date, and no remarks are NULL, not empty."""
    (text, values), (extended, more) = sql.insert_logs(NewLog("1.1", "AB", 999, 3, "", "10.0.0.1", _ALIVE))
    assert (text.count("%s"), extended.count("%s")) == (len(values), len(more))
    assert sql.ZERO_DATE in values
    assert values[-1] is None


def test_every_text_has_only_places_for_values() -> None:
    """Nothing but %s, and %% in a pattern, is left to be filled in; names of columns in {} are ours."""
    texts = {name: value for name, value in vars(sql).items() if name.isupper() and isinstance(value, str)}
    assert texts
    assert [name for name, value in texts.items() if re.search(r"%(?![s%])", value)] == []


def test_an_empty_stem_is_nobodys_beginning() -> None:
    """A call without a unique id touches no other call's rows."""
    assert sql.beginning("") == ""
    assert sql.beginning("1_7") == r"1\_7%"
