"""fastagi_pool.handlers.vicidial.rows: what holds where the database has no row."""

from __future__ import annotations

from fastagi_pool.handlers.vicidial.rows import NO_SERVER, NO_SYSTEM


def test_an_unknown_server_wants_nothing() -> None:
    """Without a row of ours there are no debug lines, no carrier rows, and Asterisk counts as an old one."""
    assert NO_SERVER == ("NONE", "", "", "")


def test_without_settings_all_switches_are_off() -> None:
    """Without a row there is no bound for lead ids, the day ends at midnight, and nothing else is on."""
    assert NO_SYSTEM.highest_lead_id is None
    assert NO_SYSTEM.day_ends_at == "0000"
    others = NO_SYSTEM._replace(highest_lead_id=0, day_ends_at="")
    assert not any(others)
