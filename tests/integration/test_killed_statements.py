"""Callers killed in the middle of transactions, against a real MariaDB: there are no halves of anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.mariadb, pytest.mark.slow]


def test_a_thousand_killed_transactions_leave_nothing(
    mariadb_url: str, run_scenario: Callable[[str, str], dict[str, Any]]
) -> None:
    """After 1,000 kills within 10 ms no transaction is half there or open, and no answer goes astray."""
    facts = run_scenario("killed_transactions", mariadb_url)
    assert facts["errors"] == {}
    assert facts["rows"] == facts["pairs"]
    assert (facts["transactions"], facts["statements"]) == (0, 0)
    assert facts["answers_of_all"] == [True] * 4
    assert (facts["connections"], facts["available"]) == (4, True)
    assert sum(facts["killed"].values()) > 500
    assert {"answer", "packet"} <= set(facts["killed"])
