"""fastagi_pool.health: what is believed about a server, and when it is asked."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from fastagi_pool.health import Circuit, CircuitState, Sign, Verdict, Vigil, judge

RETRY_S = 0.5
PATIENCE_S = 0.5

# ---- the circuit

STEPS: dict[str, Callable[[Circuit], None]] = {
    "started": Circuit.started,
    "suspected": Circuit.suspected,
    "failed": lambda circuit: circuit.failed("refused", 10.0),
    "succeeded": Circuit.succeeded,
    "abandoned": Circuit.abandoned,
}
WAYS: dict[CircuitState, tuple[str, ...]] = {
    CircuitState.UP: (),
    CircuitState.SUSPECT: ("suspected",),
    CircuitState.DOWN: ("failed",),
    CircuitState.PROBING: ("failed", "started"),
}
UP, SUSPECT, DOWN, PROBING = CircuitState


@pytest.mark.parametrize(
    ("state", "step", "after"),
    [
        (UP, "started", UP),
        (UP, "suspected", SUSPECT),
        (UP, "failed", DOWN),
        (UP, "succeeded", UP),
        (UP, "abandoned", UP),
        (SUSPECT, "started", SUSPECT),
        (SUSPECT, "suspected", SUSPECT),
        (SUSPECT, "failed", DOWN),
        (SUSPECT, "succeeded", UP),
        (SUSPECT, "abandoned", SUSPECT),
        (DOWN, "started", PROBING),
        (DOWN, "suspected", DOWN),
        (DOWN, "failed", DOWN),
        (DOWN, "succeeded", UP),
        (DOWN, "abandoned", DOWN),
        (PROBING, "suspected", PROBING),
        (PROBING, "failed", DOWN),
        (PROBING, "succeeded", UP),
        (PROBING, "abandoned", DOWN),
    ],
)
def test_the_circuit_follows_its_table(state: CircuitState, step: str, after: CircuitState) -> None:
    """Every step leads from every state to the state in the table of the class."""
    circuit = Circuit(RETRY_S)
    for way in WAYS[state]:
        STEPS[way](circuit)
    assert circuit.state is state
    STEPS[step](circuit)
    assert circuit.state is after
    assert circuit.usable is (after in (UP, SUSPECT))
    assert bool(circuit.reason) is not circuit.usable


def test_a_circuit_permits_one_prober_after_the_retry_time() -> None:
    """While a server is down one caller may try, when the retry time is over, and nobody beside it."""
    circuit = Circuit(RETRY_S)
    assert circuit.permits(0.0)
    circuit.failed("refused", 10.0)
    assert not circuit.permits(10.49)
    assert circuit.permits(10.5)
    circuit.started()
    assert not circuit.permits(99.0)
    circuit.abandoned()
    assert circuit.permits(10.5)


def test_only_a_server_that_is_down_and_not_asked_is_to_be_retried() -> None:
    """The monitor has a time for the next attempt only if there should be one."""
    circuit = Circuit(RETRY_S)
    assert circuit.retry_at_s == math.inf
    circuit.failed("refused", 10.0)
    assert circuit.retry_at_s == 10.0 + RETRY_S
    circuit.started()
    assert circuit.retry_at_s == math.inf


# ---- the vigil


def test_nobody_is_asked_for_whom_nobody_waits() -> None:
    """A server without a question to it may be silent for ever."""
    assert Vigil(PATIENCE_S).due_s([]) == math.inf


def test_the_oldest_statement_counts() -> None:
    """A server is asked when the statement that waits longest has waited for the patience."""
    assert Vigil(PATIENCE_S).due_s([12.0, 10.0, 11.0]) == 10.5


def test_an_answer_to_anybody_begins_the_patience_anew() -> None:
    """A statement that waits for a lock makes no suspect while others are answered."""
    vigil = Vigil(PATIENCE_S)
    vigil.answered_s = 13.0
    assert vigil.due_s([10.0]) == 13.5


def test_a_busy_server_is_asked_ever_more_rarely() -> None:
    """Who vouched for itself is asked again after twice the time, each time, up to a bound."""
    vigil = Vigil(1.0)
    pauses_s, now_s = [], 11.0
    for _ in range(7):
        vigil.vouched(now_s)
        due_s = vigil.due_s([10.0])
        pauses_s.append(due_s - now_s)
        now_s = due_s
    assert pauses_s == [2.0, 4.0, 8.0, 16.0, 16.0, 16.0, 16.0]


def test_a_statement_sent_since_is_not_vouched_for() -> None:
    """A server that freezes while an old statement waits for a lock is found by the new ones in time."""
    vigil = Vigil(1.0)
    for now_s in (11.0, 13.0, 17.0):
        vigil.vouched(now_s)
    assert vigil.due_s([10.0]) == 25.0
    assert vigil.due_s([10.0, 18.0]) == 19.0


def test_after_an_answer_it_is_asked_as_at_first() -> None:
    """The pauses that have grown are forgotten once the server answers by itself."""
    vigil = Vigil(1.0)
    for now_s in (11.0, 13.0, 17.0):
        vigil.vouched(now_s)
    vigil.answered_s = 18.0
    assert vigil.due_s([10.0]) == 19.0
    vigil.vouched(19.0)
    assert vigil.due_s([10.0]) == 21.0


# ---- the verdict


@pytest.mark.parametrize(
    ("sign", "was_usable", "heard_meanwhile", "verdict"),
    [
        (Sign.ALIVE, True, False, Verdict.LIVES),
        (Sign.ALIVE, False, False, Verdict.LIVES),
        (Sign.REFUSES, True, False, Verdict.LIVES),
        (Sign.REFUSES, False, False, Verdict.AWAY),
        (Sign.READ_ONLY, True, True, Verdict.LOST),
        (Sign.READ_ONLY, False, False, Verdict.LOST),
        (Sign.NONE, True, False, Verdict.LOST),
        (Sign.NONE, False, False, Verdict.LOST),
        (Sign.NONE, True, True, Verdict.LIVES),
        (Sign.NONE, False, True, Verdict.AWAY),
    ],
)
def test_what_follows_from_a_sign(
    sign: Sign, was_usable: bool, heard_meanwhile: bool, verdict: Verdict
) -> None:
    """Connections are given up only for silence to everybody, or because nothing may be written."""
    assert judge(sign, was_usable, heard_meanwhile) is verdict
