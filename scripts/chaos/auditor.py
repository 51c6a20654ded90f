"""Auditor: compares what Asterisk was told with what the database holds, and names every lie.

Laws:
    * Values in, findings out: no database, no file, no clock. What it must find is proved by feeding it lies.
    * Whoever was told SUCCESS has its rows, each exactly once; whoever was told FAILURE, or hung up and was
      told neither, has them once at most.
    * A FAILURE whose rows are there nevertheless is no lie, for the commit may have been on its way when the
      worker died: it is counted, not blamed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

#: How far a time in a row may be from a moment of the call, as its servers tell it in whole seconds.
TOLERANCE_S: Final = 2.0


class Kind(Enum):
    """What a call was about, as the load notes it."""

    RECORD = "r"
    IVR = "i"
    START = "s"
    END = "e"


class Verdict(Enum):
    """What the dialplan was told, or that it was told nothing in time."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    HANGUP = "HANGUP"
    HANG = "HANG"


class Lie(Enum):
    """What can be wrong, in words."""

    FALSE_SUCCESS = "told SUCCESS, but rows are missing"
    DOUBLE = "written more than once"
    HALF = "half a transaction"
    STRANGER = "rows of a call that nobody placed"
    NEVER_ENDED = "never ended"
    CONTRADICTION = "told two things"
    NAMELESS = "told FAILURE without FAGI_STATUS"
    WRONG_TIME = "not the time at which the call came"
    WRONG_ORDER = "ended before it began"
    TRACEBACK = "a traceback in the log"
    PROCESS_LEFT = "a process that outlived the pool"
    JOURNAL_LEFT = "calls that still wait in the journal"
    QUARANTINE_LEFT = "calls in the journal's quarantine"


@dataclass(frozen=True, slots=True)
class Told:
    """What one call heard.

    Attributes:
        kind: What it was about.
        number: Which call it was; a START and its END have the same.
        verdict: What the dialplan was told.
        how: ``closed``, ``reset``, ``line``, ``refused``, ``timeout`` or ``deadline``.
        status: FAGI_STATUS; empty if it was not set.
        began_s: Wall clock time at which it began, in seconds since 1970.
        took_s: From then to its end.
    """

    kind: Kind
    number: int
    verdict: Verdict
    how: str = "closed"
    status: str = ""
    began_s: float = 0.0
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Leg:
    """A row of VICIdial's ``call_log``.

    Attributes:
        start_s: When it began, in seconds since 1970.
        end_s: When it ended; 0 if it has not.
    """

    start_s: float
    end_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClockStep:
    """The pool's wall clock was set.

    Attributes:
        at_s: When, on the clock that nobody sets.
        offset_s: How far it has been from that since.
    """

    at_s: float
    offset_s: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known when everything has ended.

    Attributes:
        told: What each call heard.
        rows_a: By call: the time in each of its rows in the first table of ``record``.
        rows_b: The same of the second table, written in the same transaction.
        rows_ivr: The same of the table of ``ivr``.
        legs: By call: its rows in VICIdial's ``call_log``.
        deferred: Kind and number of each call of which the access log says that it went to the journal.
        clock: How the pool's wall clock was set, in order of time.
        tracebacks: Each with its lines; those that are faults of the pool.
        processes: What still ran after the pool's end.
        waiting: How many calls still waited in the journal at the end.
        quarantined: How many calls were in its quarantine.
    """

    told: Sequence[Told]
    rows_a: Mapping[int, Sequence[float]] = field(default_factory=dict)
    rows_b: Mapping[int, Sequence[float]] = field(default_factory=dict)
    rows_ivr: Mapping[int, Sequence[float]] = field(default_factory=dict)
    legs: Mapping[int, Sequence[Leg]] = field(default_factory=dict)
    deferred: frozenset[tuple[Kind, int]] = frozenset()
    clock: Sequence[ClockStep] = ()
    tracebacks: Sequence[str] = ()
    processes: Sequence[str] = ()
    waiting: int = 0
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """One lie.

    Attributes:
        lie: Which.
        text: Of whom, and what was found.
    """

    lie: Lie
    text: str


@dataclass(frozen=True, slots=True)
class Audit:
    """What came out.

    Attributes:
        findings: The lies; empty if all was well.
        told: How many calls were told what: by kind, verdict, how and FAGI_STATUS.
        failed_but_written: How many were told FAILURE, and their rows are there.
        hung_up_and_written: How many hung up, and their rows are there.
        deferred: How many went to the journal.
    """

    findings: Sequence[Finding]
    told: Mapping[tuple[str, str, str, str], int]
    failed_but_written: int
    hung_up_and_written: int
    deferred: int


def audit(evidence: Evidence) -> Audit:
    """Compare, and find every lie."""
    findings = [
        *_endings(evidence),
        *_rows(evidence),
        *_legs(evidence),
        *_strangers(evidence),
        *_left(evidence),
    ]
    written = Counter(told.verdict for told in evidence.told if _written(told, evidence))
    return Audit(
        findings=findings,
        told=Counter((told.kind.name, told.verdict.name, told.how, told.status) for told in evidence.told),
        failed_but_written=written[Verdict.FAILURE],
        hung_up_and_written=written[Verdict.HANGUP],
        deferred=len(evidence.deferred),
    )


def _endings(evidence: Evidence) -> Iterator[Finding]:
    """Look at what each call heard, whatever it left behind."""
    for told in evidence.told:
        if told.verdict is Verdict.HANG:
            yield _finding(Lie.NEVER_ENDED, told, f"for {told.took_s:.1f} s")
        if told.verdict is Verdict.SUCCESS and told.status:
            yield _finding(Lie.CONTRADICTION, told, f"told SUCCESS, and FAGI_STATUS={told.status}")
        if told.verdict is Verdict.FAILURE and told.how == "line" and not told.status:
            yield _finding(Lie.NAMELESS, told, "the line 'failure' came alone")
        if told.verdict is Verdict.FAILURE and (told.kind, told.number) in evidence.deferred:
            yield _finding(Lie.CONTRADICTION, told, f"told FAILURE ({told.status}), and deferred for later")


def _rows(evidence: Evidence) -> Iterator[Finding]:
    """Look at the rows of the run's own handlers."""
    for told in evidence.told:
        tables = _tables(told, evidence)
        if not tables:
            continue
        counts = {name: len(rows.get(told.number, ())) for name, rows in tables.items()}
        if told.verdict is Verdict.SUCCESS and not all(counts.values()):
            yield _finding(Lie.FALSE_SUCCESS, told, _numbers(counts))
        if max(counts.values()) > 1:
            yield _finding(Lie.DOUBLE, told, _numbers(counts))
        if len(set(counts.values())) > 1:
            yield _finding(Lie.HALF, told, _numbers(counts))
        times = {time_s for rows in tables.values() for time_s in rows.get(told.number, ())}
        for time_s in times:
            if not _is_then(time_s, told, evidence.clock):
                yield _finding(Lie.WRONG_TIME, told, f"{time_s - told.began_s:+.1f} s off")


def _legs(evidence: Evidence) -> Iterator[Finding]:
    """Look at VICIdial's rows: a START makes one, its END closes it."""
    calls: dict[int, dict[Kind, Told]] = {}
    for told in evidence.told:
        if told.kind in (Kind.START, Kind.END):
            calls.setdefault(told.number, {})[told.kind] = told
    for number, both in calls.items():
        start, end = both.get(Kind.START), both.get(Kind.END)
        legs = evidence.legs.get(number, ())
        if start is not None:
            yield from _opened(start, legs, evidence.clock)
        if end is not None:
            yield from _closed(end, start, legs, evidence.clock)


def _opened(start: Told, legs: Sequence[Leg], clock: Sequence[ClockStep]) -> Iterator[Finding]:
    if start.verdict is Verdict.SUCCESS and not legs:
        yield _finding(Lie.FALSE_SUCCESS, start, "no row of call_log")
    if len(legs) > 1:
        yield _finding(Lie.DOUBLE, start, f"{len(legs)} rows of call_log")
    for leg in legs:
        if not _is_then(leg.start_s, start, clock):
            yield _finding(Lie.WRONG_TIME, start, f"{leg.start_s - start.began_s:+.1f} s off")


def _closed(
    end: Told, start: Told | None, legs: Sequence[Leg], clock: Sequence[ClockStep]
) -> Iterator[Finding]:
    began = start is not None and start.verdict is Verdict.SUCCESS
    for leg in legs:
        if not leg.end_s:
            if began and end.verdict is Verdict.SUCCESS:
                yield _finding(Lie.FALSE_SUCCESS, end, "the row of call_log is open")
            continue
        if leg.end_s < leg.start_s and not _stepped(start, end, clock):
            yield _finding(Lie.WRONG_ORDER, end, f"{leg.end_s - leg.start_s:+.1f} s")
        if not _is_then(leg.end_s, end, clock):
            yield _finding(Lie.WRONG_TIME, end, f"{leg.end_s - end.began_s:+.1f} s off")


def _strangers(evidence: Evidence) -> Iterator[Finding]:
    placed: dict[Kind, set[int]] = {kind: set() for kind in Kind}
    for told in evidence.told:
        placed[told.kind].add(told.number)
    tables: list[tuple[str, Iterable[int], set[int]]] = [
        ("rows_a", evidence.rows_a, placed[Kind.RECORD]),
        ("rows_b", evidence.rows_b, placed[Kind.RECORD]),
        ("rows_ivr", evidence.rows_ivr, placed[Kind.IVR]),
        ("call_log", evidence.legs, placed[Kind.START]),
    ]
    for table, numbers, known in tables:
        for number in sorted(set(numbers) - known):
            yield Finding(Lie.STRANGER, f"{table}: {number}")


def _left(evidence: Evidence) -> Iterator[Finding]:
    """Look at what was left behind when all was over."""
    yield from (Finding(Lie.TRACEBACK, text) for text in evidence.tracebacks)
    yield from (Finding(Lie.PROCESS_LEFT, text) for text in evidence.processes)
    if evidence.waiting:
        yield Finding(Lie.JOURNAL_LEFT, str(evidence.waiting))
    if evidence.quarantined:
        yield Finding(Lie.QUARANTINE_LEFT, str(evidence.quarantined))


def _tables(told: Told, evidence: Evidence) -> Mapping[str, Mapping[int, Sequence[float]]]:
    if told.kind is Kind.RECORD:
        return {"rows_a": evidence.rows_a, "rows_b": evidence.rows_b}
    if told.kind is Kind.IVR:
        return {"rows_ivr": evidence.rows_ivr}
    return {}


def _written(told: Told, evidence: Evidence) -> bool:
    legs = evidence.legs.get(told.number, ())
    if told.kind is Kind.START:
        return bool(legs)
    if told.kind is Kind.END:
        return any(leg.end_s for leg in legs)
    return any(told.number in rows for rows in _tables(told, evidence).values())


def _is_then(time_s: float, told: Told, clock: Sequence[ClockStep]) -> bool:
    """Whether a time in a row is when the call came, by the clock that the pool had then.

    The pool has it from its beginning on at the earliest: where all that the machine can do is asked for, it
    waits to be accepted. And before its end, for then it is answered. A clock that was set meanwhile, or a
    moment before or after, may have been read on either side.
    """
    first_s, last_s = told.began_s - TOLERANCE_S, told.began_s + told.took_s + TOLERANCE_S
    return any(first_s <= time_s - offset_s <= last_s for offset_s in _offsets(clock, first_s, last_s))


def _stepped(start: Told | None, end: Told, clock: Sequence[ClockStep]) -> bool:
    if start is None:
        return bool(clock)
    return len(_offsets(clock, start.began_s - TOLERANCE_S, end.began_s + TOLERANCE_S)) > 1


def _offsets(clock: Sequence[ClockStep], first_s: float, last_s: float) -> set[float]:
    """Return how far the pool's clock was off between two moments, both included."""
    before = [step.offset_s for step in clock if step.at_s <= first_s]
    during = {step.offset_s for step in clock if first_s < step.at_s <= last_s}
    return during | {before[-1] if before else 0.0}


def _numbers(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _finding(lie: Lie, told: Told, what: str) -> Finding:
    return Finding(lie, f"{told.kind.name} {told.number} ({told.verdict.name}, {told.how}): {what}")
