"""The auditor finds every kind of lie, and blames nobody who told the truth; the schedule obeys its seed."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from chaos.auditor import TOLERANCE_S, ClockStep, Evidence, Kind, Leg, Lie, Told, Verdict, audit
from chaos.gathering import tracebacks
from chaos.schedule import Subject, make_schedule

NOON_S: Final = 1_800_000_000.0
RECORD: Final = Told(Kind.RECORD, 1, Verdict.SUCCESS, began_s=NOON_S)
IVR: Final = Told(Kind.IVR, 2, Verdict.SUCCESS, began_s=NOON_S)
START: Final = Told(Kind.START, 3, Verdict.SUCCESS, began_s=NOON_S)
END: Final = Told(Kind.END, 3, Verdict.SUCCESS, began_s=NOON_S + 5)
TRUE: Final = Evidence(
    told=(RECORD, IVR, START, END),
    rows_a={1: [NOON_S]},
    rows_b={1: [NOON_S]},
    rows_ivr={2: [NOON_S]},
    legs={3: [Leg(NOON_S, NOON_S + 5)]},
)
ALL: Final = frozenset(Subject)
LOG: Final = """\
2026-11-22 INFO master listening
2026-11-22 ERROR worker=1 call=1 failed: KeyError: 1
  Traceback (most recent call last):
    File "handlers.py", line 3, in ivr
  KeyError: 1
2026-11-22 ERROR worker=1 call=2 failed: OperationalError
  Traceback (most recent call last):
    File "connections.py", line 3, in read
  pymysql.err.OperationalError: (2013, 'Lost connection')
2026-11-22 ERROR worker=2 call=3 failed: KeyError: 1
  Traceback (most recent call last):
    File "handlers.py", line 3, in ivr
  KeyError: 1
2026-11-22 INFO master ended
"""


def lies(evidence: Evidence) -> list[Lie]:
    """Return what is found, each kind once."""
    return sorted({finding.lie for finding in audit(evidence).findings}, key=lambda lie: lie.name)


def failed(told: Told, **words: Any) -> Told:
    """Return the same call, told FAILURE as a pool tells it."""
    return replace(told, **{"verdict": Verdict.FAILURE, "how": "line", "status": "CRASH", **words})


def test_the_truth_is_no_lie() -> None:
    """Calls that were told SUCCESS and have their rows once are not blamed."""
    assert lies(TRUE) == []


@pytest.mark.parametrize(
    ("lie", "changes"),
    [
        pytest.param(Lie.FALSE_SUCCESS, {"rows_a": {}, "rows_b": {}}, id="no row of a record"),
        pytest.param(Lie.FALSE_SUCCESS, {"rows_ivr": {}}, id="no row of an ivr call"),
        pytest.param(Lie.FALSE_SUCCESS, {"legs": {}}, id="no row of a START"),
        pytest.param(Lie.FALSE_SUCCESS, {"legs": {3: [Leg(NOON_S)]}}, id="an END that closed nothing"),
        pytest.param(Lie.DOUBLE, {"rows_a": {1: [NOON_S] * 2}, "rows_b": {1: [NOON_S] * 2}}, id="twice"),
        pytest.param(Lie.DOUBLE, {"rows_ivr": {2: [NOON_S] * 2}}, id="an ivr call twice"),
        pytest.param(Lie.DOUBLE, {"legs": {3: [Leg(NOON_S, NOON_S + 5)] * 2}}, id="a leg twice"),
        pytest.param(Lie.STRANGER, {"rows_a": {1: [NOON_S], 9: [NOON_S]}}, id="a row from nowhere"),
        pytest.param(Lie.STRANGER, {"legs": {**TRUE.legs, 9: [Leg(NOON_S)]}}, id="a leg from nowhere"),
        pytest.param(Lie.NEVER_ENDED, {"told": (replace(IVR, verdict=Verdict.HANG),)}, id="a hang"),
        pytest.param(Lie.CONTRADICTION, {"told": (replace(IVR, status="CRASH"),)}, id="success, and CRASH"),
        pytest.param(
            Lie.CONTRADICTION,
            {"told": (failed(RECORD),), "deferred": frozenset({(Kind.RECORD, 1)})},
            id="failure, and deferred",
        ),
        pytest.param(Lie.NAMELESS, {"told": (failed(IVR, status=""),)}, id="failure without a reason"),
        pytest.param(
            Lie.WRONG_TIME, {"rows_a": {1: [NOON_S + 60]}, "rows_b": {1: [NOON_S + 60]}}, id="time of replay"
        ),
        pytest.param(Lie.WRONG_TIME, {"legs": {3: [Leg(NOON_S + 60, NOON_S + 5)]}}, id="a START replayed"),
        pytest.param(Lie.WRONG_TIME, {"legs": {3: [Leg(NOON_S, NOON_S + 65)]}}, id="an END replayed"),
        pytest.param(Lie.WRONG_ORDER, {"legs": {3: [Leg(NOON_S + 2, NOON_S + 1)]}}, id="ended first"),
        pytest.param(Lie.TRACEBACK, {"tracebacks": ("KeyError: 1",)}, id="a traceback"),
        pytest.param(Lie.PROCESS_LEFT, {"processes": ("17 S replay",)}, id="a process"),
        pytest.param(Lie.JOURNAL_LEFT, {"waiting": 1}, id="a call that waits"),
        pytest.param(Lie.QUARANTINE_LEFT, {"quarantined": 1}, id="a call in quarantine"),
    ],
)
def test_each_lie_is_found(lie: Lie, changes: dict[str, Any]) -> None:
    """What is wrong with otherwise true evidence is found and called by its name."""
    assert lie in lies(replace(TRUE, **changes))


@pytest.mark.parametrize("verdict", Verdict)
def test_half_a_transaction_is_a_lie_whatever_was_told(verdict: Verdict) -> None:
    """One of two rows that were written together is found even where FAILURE was told."""
    told = (replace(RECORD, verdict=verdict, status="CRASH"),)
    assert Lie.HALF in lies(Evidence(told, rows_a={1: [NOON_S]}))


def test_a_failure_may_have_its_rows_once() -> None:
    """A commit that was on its way when the worker died is counted and is no lie; a second one is."""
    told = (failed(RECORD), failed(IVR), failed(START), failed(END))
    found = audit(replace(TRUE, told=told))
    assert (found.findings, found.failed_but_written) == ([], 4)
    assert lies(replace(TRUE, told=told, rows_ivr={2: [NOON_S] * 2})) == [Lie.DOUBLE]


def test_a_failure_needs_no_rows() -> None:
    """A call that was told FAILURE and left nothing behind is not blamed."""
    told = (failed(RECORD), failed(IVR), failed(START), failed(END))
    assert lies(Evidence(told)) == []


@pytest.mark.parametrize("how", ["refused", "timeout"])
def test_who_got_no_connection_has_no_status(how: str) -> None:
    """FAGI_STATUS is missed only where the pool itself told FAILURE."""
    assert lies(Evidence((failed(RECORD, how=how, status=""),))) == []


def test_who_hung_up_is_owed_nothing() -> None:
    """A call that was told neither may have its rows or not; those that are there are counted."""
    told = (replace(RECORD, verdict=Verdict.HANGUP), replace(IVR, verdict=Verdict.HANGUP))
    found = audit(Evidence(told, rows_ivr=TRUE.rows_ivr))
    assert (found.findings, found.hung_up_and_written) == ([], 1)


def test_an_end_owes_nothing_to_a_start_that_failed() -> None:
    """There is nothing to close where no START was told SUCCESS."""
    assert lies(Evidence((failed(START), END))) == []


def test_a_set_clock_is_the_pools_clock() -> None:
    """A time is right if it is that of the clock as it was set when the call came, and only then."""
    steps = (ClockStep(NOON_S - 100, 600.0), ClockStep(NOON_S + 100, 0.0))
    rows = {1: [NOON_S + 600]}
    assert lies(Evidence((RECORD,), rows_a=rows, rows_b=rows, clock=steps)) == []
    assert lies(Evidence((RECORD,), rows_a={1: [NOON_S]}, rows_b=rows, clock=steps)) == [Lie.WRONG_TIME]


def test_a_call_that_waited_to_be_accepted_has_the_time_at_which_it_was() -> None:
    """Any time at which the call was in progress may be when it came to the pool; none behind its answer."""
    waited = replace(RECORD, took_s=5.0)
    for late_s, found in ((4.0, []), (5.0 + TOLERANCE_S + 1, [Lie.WRONG_TIME])):
        rows = {1: [NOON_S + late_s]}
        assert lies(Evidence((waited,), rows_a=rows, rows_b=rows)) == found


def test_a_clock_set_during_the_call_may_be_read_on_either_side() -> None:
    """Nobody can say whether a call came before or after a step within the tolerance of it."""
    steps = (ClockStep(NOON_S + TOLERANCE_S / 2, -600.0),)
    for offset_s in (0.0, -600.0):
        rows = {1: [NOON_S + offset_s]}
        assert lies(Evidence((RECORD,), rows_a=rows, rows_b=rows, clock=steps)) == []


def test_a_clock_set_back_between_start_and_end_is_no_wrong_order() -> None:
    """By a clock that was set back meanwhile, a leg may well have ended before it began."""
    steps = (ClockStep(NOON_S + 2.5, -600.0),)
    evidence = Evidence((START, END), legs={3: [Leg(NOON_S, NOON_S - 595)]}, clock=steps)
    assert lies(evidence) == []


def test_all_told_is_counted() -> None:
    """The summary has each kind, verdict, way and status with its calls."""
    found = audit(Evidence((RECORD, RECORD, failed(IVR)), rows_a=TRUE.rows_a, rows_b=TRUE.rows_b))
    assert found.told == {
        ("RECORD", "SUCCESS", "closed", ""): 2,
        ("IVR", "FAILURE", "line", "CRASH"): 1,
    }


def test_a_seed_decides_the_schedule() -> None:
    """A run that found a lie can be repeated by its seed, and another seed is another run."""
    assert make_schedule(7, 300.0, ALL) == make_schedule(7, 300.0, ALL)
    assert make_schedule(7, 300.0, ALL) != make_schedule(8, 300.0, ALL)


@pytest.mark.parametrize("seed", range(20))
def test_disturbances_of_one_subject_do_not_overlap(seed: int) -> None:
    """Nothing is done to a database that is stopped, and all is undone before the load ends."""
    for subject in Subject:
        schedule = make_schedule(seed, 600.0, frozenset({subject}))
        assert schedule
        for one, next_one in pairwise(schedule):
            assert one.begin_s <= one.end_s < next_one.begin_s
        assert schedule[-1].end_s < 600.0


def test_the_database_suffers_everything_in_two_minutes() -> None:
    """A run of the length that CI has does to the database all that can be done to it."""
    for seed in range(20):
        schedule = make_schedule(seed, 120.0, frozenset({Subject.DATABASE}))
        assert len({each.what for each in schedule}) == 8


def test_one_subject_alone_is_disturbed_as_among_others() -> None:
    """Looking at one subject alone repeats what the whole run did to it."""
    whole = make_schedule(3, 300.0, ALL)
    alone = make_schedule(3, 300.0, frozenset({Subject.OPERATOR}))
    assert [each for each in whole if each in alone] == list(alone)


def test_tracebacks_are_told_once() -> None:
    """A fault is shown once with its line, and a statement that was lost has no traceback either."""
    fault, lost = tracebacks(LOG)
    assert fault.splitlines() == LOG.splitlines()[1:5]
    assert "Lost connection" in lost
