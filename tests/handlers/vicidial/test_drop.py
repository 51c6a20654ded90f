"""fastagi_pool.handlers.vicidial.drop: who ended a call, whether it was dropped, and where that is said."""

from __future__ import annotations

import pytest

from fastagi_pool.handlers.vicidial.drop import (
    DROP,
    CloserEnding,
    OutboundEnding,
    drop_reason,
    end_closer,
    end_outbound,
    is_drop,
    is_unrouted,
    new_status,
    wants_drop_row,
)
from fastagi_pool.handlers.vicidial.rows import CloserRow, LogRow

NOW = 1_700_000_040
START = NOW - 30


def log_row(status: str, user: str = "VDAD", term_reason: str = "NONE", comments: str = "") -> LogRow:
    """Return a row of ``vicidial_log``, begun 30 seconds ago."""
    return LogRow(START, status, user, term_reason, comments)


def closer_row(status: str, user: str = "VDCL", term_reason: str = "NONE", comments: str = "") -> CloserRow:
    """Return a row of ``vicidial_closer_log``, begun 30 seconds ago."""
    return CloserRow(7, START, status, user, term_reason, comments, "1700000000.26")


# ---- what is a drop, and why it ended


@pytest.mark.parametrize("status", ["NA", "NEW", "QUEUE", "XFER"])
@pytest.mark.parametrize(
    ("comments", "dropped"),
    [
        ("", True),
        ("MANUAL", True),
        ("remote", True),
        ("REMOTE", False),
        ("a REMOTE one", False),
    ],
)
def test_the_statuses_of_a_drop(status: str, comments: str, dropped: bool) -> None:
    """A call in one of four statuses was dropped, unless its comments contain REMOTE."""
    assert is_drop(status, comments) is dropped


@pytest.mark.parametrize(
    "status",
    ["", "INCALL", "A", "SALE", "DROP", "PDROP", "DONE", "AFTHRS", "QUEUE2", "XFERX", "NAN", "queue", "N"],
)
def test_no_other_status_is_a_drop(status: str) -> None:
    """The four statuses are compared whole and with their case."""
    assert not is_drop(status, "")


@pytest.mark.parametrize(
    ("term_reason", "user", "reason"),
    [
        ("NONE", "VDAD", "ABANDON"),
        ("NONE", "VDCL", "ABANDON"),
        ("NONE", "xVDADx", "ABANDON"),
        ("NONE", "", "ABANDON"),
        ("", "", "ABANDON"),
        ("NONE", "6666", "CALLER"),
        ("NONE", "vdad", "CALLER"),
        ("ABANDON", "6666", "CALLER"),
        ("AFTERHOURS", "VDAD", "ABANDON"),
        ("SYSTEM", "VDAD", "ABANDON"),
        ("HOLDTIME", "VDCL", "ABANDON"),
        ("AGENT", "VDAD", None),
        ("CALLER", "", None),
        ("QUEUETIMEOUT", "VDAD", None),
        ("QUEUETIMEOUT", "6666", None),
    ],
)
def test_the_reason_of_a_drop(term_reason: str, user: str, reason: str | None) -> None:
    """Three reasons stay; else whoever was with nobody gave up, and whoever was with an agent hung up."""
    assert drop_reason(term_reason, user) == reason


# ---- the outbound log


@pytest.mark.parametrize(
    ("row", "lead_dropped", "status", "term_reason"),
    [
        pytest.param(log_row("QUEUE"), True, "DROP", "ABANDON", id="E15"),
        pytest.param(log_row("INCALL", "6666"), False, None, "CALLER", id="E16"),
        pytest.param(log_row("A", "6666", "AGENT"), False, None, "CALLER", id="E17"),
        pytest.param(log_row("XFER", "6666"), True, "DROP", "CALLER", id="E18"),
        pytest.param(log_row("QUEUE", comments="REMOTE"), False, None, "CALLER", id="E19"),
        pytest.param(log_row("QUEUE", term_reason="QUEUETIMEOUT"), True, "DROP", None, id="E29"),
        pytest.param(log_row("NEW", ""), True, "DROP", "ABANDON", id="E32"),
        pytest.param(closer_row("QUEUE"), True, "DROP", "ABANDON", id="E28b"),
        (closer_row("INCALL", "6666"), False, None, "CALLER"),
        (log_row("INCALL", "VDAD", "QUEUETIMEOUT"), False, None, "CALLER"),
        (log_row("XFER", "6666", "AGENT"), True, "DROP", None),
        (log_row("NA"), True, "DROP", "ABANDON"),
    ],
)
def test_the_end_of_an_outbound_call(
    row: LogRow | CloserRow, lead_dropped: bool, status: str | None, term_reason: str | None
) -> None:
    """A drop is said of lead and log; all else was ended by the caller, even if the row says AGENT."""
    assert end_outbound(row, NOW) == OutboundEnding(
        lead_dropped=lead_dropped, status=status, term_reason=term_reason, end_epoch=NOW, length_s=30
    )


# ---- the closer log


@pytest.mark.parametrize(
    ("row", "status", "term_reason", "check_reset"),
    [
        pytest.param(closer_row("QUEUE"), "DROP", "ABANDON", True, id="E23"),
        pytest.param(closer_row("INCALL", "6666"), None, "CALLER", False, id="E24"),
        pytest.param(closer_row("AFTHRS", term_reason="AFTERHOURS"), None, None, False, id="E26"),
        pytest.param(closer_row("SALE", "6666"), None, "CALLER", False, id="E26b"),
        pytest.param(closer_row("XDROP", term_reason="MAXCALLS"), None, "ABANDON", True, id="E26c"),
        (closer_row("DONE", "VDCL", "AGENT"), None, "CALLER", False),
        (closer_row("INCALL", "VDCL", "AFTERHOURS"), None, "CALLER", False),
        (closer_row("XFER", ""), None, "CALLER", False),
        (closer_row("DONEX"), None, "ABANDON", True),
        (closer_row("NA"), None, "ABANDON", True),
        (closer_row("SALE", ""), None, "ABANDON", True),
        (closer_row("QUEUE", "6666"), "DROP", "CALLER", False),
        (closer_row("QUEUE", "6666", "AGENT"), "DROP", None, False),
        (closer_row("QUEUE", term_reason="QUEUETIMEOUT"), "DROP", None, False),
        (closer_row("QUEUE", comments="REMOTE"), "DROP", "ABANDON", True),
        (closer_row("QUEUEX"), "DROP", "ABANDON", True),
    ],
)
def test_the_end_of_an_inbound_call(
    row: CloserRow, status: str | None, term_reason: str | None, check_reset: bool
) -> None:
    """Whoever waits is a drop with its time in the queue, and only who abandons may have the lead reset."""
    assert end_closer(row, "SALESLINE", "6666", NOW) == CloserEnding(
        status=status,
        term_reason=term_reason,
        queue_seconds=30 if status else None,
        user=None,
        end_epoch=NOW,
        length_s=30,
        check_reset=check_reset,
        dropped=status is not None,
    )


@pytest.mark.parametrize(
    ("term_reason", "is_kept"),
    [
        ("CALLER", True),
        ("AGENT", True),
        ("QUEUETIMEOUT", True),
        ("AFTERHOURS", True),
        ("HOLDRECALLXFER", True),
        ("HOLDTIME", True),
        ("NOAGENT", True),
        ("", False),
        ("NONE", False),
        ("ABANDON", False),
        ("MAXCALLS", False),
        ("ACFILTER", False),
        ("CLOSETIME", False),
    ],
)
def test_the_reasons_that_a_closer_row_keeps(term_reason: str, is_kept: bool) -> None:
    """Seven of the column's reasons stay and reset nothing; all others become ABANDON without an agent."""
    ending = end_closer(closer_row("QUEUE", term_reason=term_reason), "SALESLINE", "", NOW)
    assert ending.term_reason == (None if is_kept else "ABANDON")
    assert ending.check_reset is not is_kept


@pytest.mark.parametrize(
    ("campaign_id", "agent_only", "user"),
    [
        pytest.param("AGENTDIRECT", "6666", "6666", id="E25"),
        ("my_AgentDirect_2", "6666", "6666"),
        ("AGENTDIRECT", "66", "66"),
        ("AGENTDIRECT", "6", None),
        ("AGENTDIRECT", "", None),
        ("AGENT_DIRECT", "6666", None),
        ("SALESLINE", "6666", None),
    ],
)
@pytest.mark.parametrize("status", ["QUEUE", "INCALL"])
def test_a_call_for_one_agent(campaign_id: str, agent_only: str, user: str | None, status: str) -> None:
    """In an AGENTDIRECT group the row is given to the agent for whom the call waited, whatever its status."""
    assert end_closer(closer_row(status), campaign_id, agent_only, NOW).user == user


def test_the_agent_waited_for_does_not_answer_for_the_end() -> None:
    """The reason goes by the user who was read: a direct call that nobody took is abandoned, not hung up."""
    ending = end_closer(closer_row("QUEUE"), "AGENTDIRECT", "6666", NOW)
    assert (ending.user, ending.term_reason, ending.check_reset) == ("6666", "ABANDON", True)


def test_a_start_after_the_end() -> None:
    """If clocks disagree, lengths are below 0 and the call ends all the same."""
    early = START - 5
    assert end_outbound(log_row("QUEUE"), early).length_s == -5
    assert end_closer(closer_row("QUEUE"), "SALESLINE", "", early).queue_seconds == -5


# ---- what comes of it


@pytest.mark.parametrize(
    ("row", "lead_dropped", "closer_dropped", "status"),
    [
        (closer_row("QUEUE"), True, True, "DROP"),
        (closer_row("XFER", "6666"), True, False, "DROP"),
        (closer_row("NEW"), True, False, "DROP"),
        (closer_row("QUEUE", comments="REMOTE"), False, True, "DROP"),
        (closer_row("INCALL", "6666"), False, False, ""),
        (closer_row("XDROP"), False, False, ""),
    ],
)
def test_lead_and_closer_row_are_dropped_by_rules_of_their_own(
    row: CloserRow, lead_dropped: bool, closer_dropped: bool, status: str
) -> None:
    """An inbound call's lead and its row: each of the two drops makes the status, and neither the other."""
    assert end_outbound(row, NOW).lead_dropped is lead_dropped
    assert end_closer(row, "SALESLINE", "", NOW).dropped is closer_dropped
    assert new_status("", lead_dropped, closer_dropped) == status


@pytest.mark.parametrize(
    ("so_far", "dropped", "status"),
    [
        ("", (), ""),
        ("", (False,), ""),
        ("", (True,), DROP),
        ("", (False, True), "DROP"),
        ("PDROP", (True, True), "PDROP"),
        ("KPDROP", (False,), "KPDROP"),
    ],
)
def test_a_status_that_is_there_stays(so_far: str, dropped: tuple[bool, ...], status: str) -> None:
    """DROP is the new status only of a call that has none yet."""
    assert new_status(so_far, *dropped) == status


@pytest.mark.parametrize(
    ("inbound", "drop_lists", "user", "log_status", "wanted"),
    [
        pytest.param(False, 2, "VDAD", "QUEUE", True, id="E22"),
        pytest.param(False, 1, "VDAD", "QUEUE", False, id="E22b"),
        pytest.param(True, 1, "VDCL", "QUEUE", True, id="E23"),
        pytest.param(True, 0, "VDCL", "QUEUE", False, id="E23b"),
        (False, 0, "VDAD", "QUEUE", False),
        (True, 2, "VDCL", "QUEUE", True),
        (True, 1, "VDCL", "AFTHRS", True),
        (True, 1, "", "SALE", True),
        (True, 1, "6666", "QUEUE", True),
        (True, 1, "6666", "QUEUEX", True),
        (True, 1, "6666", "INCALL", False),
        (True, 1, "6666", "XFER", False),
        (False, 2, "6666", "QUEUE", True),
        (False, 2, "VDAD", "INCALL", True),
        (False, 2, "6666", "NEW", False),
    ],
)
def test_who_is_listed(inbound: bool, drop_lists: int, user: str, log_status: str, wanted: bool) -> None:
    """The list takes who was with nobody or in a queue, drop or not: inbound from 1, outbound from 2 on."""
    assert wants_drop_row(inbound, drop_lists, user, log_status) is wanted


@pytest.mark.parametrize(
    ("auto_dialled", "auto_call_status", "unrouted"),
    [
        pytest.param(True, "SENT", True, id="E20"),
        pytest.param(True, "LIVE", False, id="E20c"),
        pytest.param(False, "LIVE", False, id="E28"),
        pytest.param(False, "SENT", False, id="E31"),
        (True, "", False),
        (True, "IVR", False),
        (True, "sent", False),
    ],
)
def test_answered_but_never_routed(auto_dialled: bool, auto_call_status: str, unrouted: bool) -> None:
    """Without a log row only an auto-dialled call becomes a PDROP, and only if it is still SENT."""
    assert is_unrouted(auto_dialled, auto_call_status) is unrouted
