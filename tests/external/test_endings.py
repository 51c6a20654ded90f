"""Every way in which a call can end, as the dialplan of the real Asterisk sees it.

A failure is AGISTATUS=FAILURE with FAGI_STATUS, FAGI_ERROR and FAGI_REF; the reference leads to the one
line of the access log. ``CallDone.way`` tells where the dialplan went on, and what it saw there.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest
from ports import closed_port
from service import PoolService

from .asterisk.calls import CallDone, PlacedCall, Telephone
from .asterisk.gate import Gate
from .asterisk.server import AsteriskServer
from .conftest import PoolFactory, Records

pytestmark = pytest.mark.asterisk

_RAISING: Final = "asterisk_handlers:raising"
_IN_WAIT_FOR_DIGIT: Final = "asterisk_handlers:hangup_in_wait_for_digit"

_ROUTES: Final[Mapping[str, str | Mapping[str, Any]]] = {
    "hello": "asterisk_handlers:hello",
    "raising": _RAISING,
    "raising/late": "asterisk_handlers:raising_late",
    "raising/hangup": {"handler": _RAISING, "on_error": "hangup"},
    "raising/number": {"handler": _RAISING, "on_error": "goto target,t,1"},
    "raising/label": {"handler": _RAISING, "on_error": "goto target, t, label"},
    "raising/nowhere": {"handler": _RAISING, "on_error": "goto target,t,nowhere"},
    "raising/continue": {"handler": _RAISING, "on_error": "continue"},
    "broken/number": {"handler": "asterisk_handlers:broken", "on_error": "goto target,t,1"},
    "broken/hangup": {"handler": "asterisk_handlers:broken", "on_error": "hangup"},
    "after-hangup": {
        "handler": "asterisk_handlers:raising_after_hangup",
        "on_error": "goto target,t,1",
    },
    "slow": {"handler": "asterisk_handlers:held", "script_timeout": "300ms"},
    "idle/wait-for-digit": {"handler": _IN_WAIT_FOR_DIGIT, "idle_timeout": "300ms"},
    "idle/stream-file": {
        "handler": "asterisk_handlers:hangup_in_stream_file",
        "idle_timeout": "300ms",
        "on_error": "goto target,t,label",
    },
    "idle/exec": {"handler": "asterisk_handlers:busy", "idle_timeout": "300ms"},
    "database": {"handler": "asterisk_handlers:hello", "databases": ["calls"]},
    "going-on": {"handler": "asterisk_handlers:going_on", "on_hangup": "continue"},
    "finishing": "asterisk_handlers:finishing",
    "clean": {"handler": "asterisk_handlers:careless", "command_guard": "clean"},
    "strict": {"handler": "asterisk_handlers:careless", "command_guard": "strict"},
    "printing": "asterisk_handlers:printing",
}


@pytest.fixture(scope="module", autouse=True)
def logged_before(asterisk: AsteriskServer) -> int:
    """How long Asterisk's log was before the first of these calls."""
    return len(asterisk.logged())


@pytest.fixture(scope="module")
def pool(pools: PoolFactory) -> Iterator[PoolService]:
    """A pool with a handler for each ending; its database is away."""
    with closed_port() as port:
        database = {"url": f"mysql+pymysql://pool@127.0.0.1:{port}/calls", "required_at_boot": False}
        service = pools.start(_ROUTES, {"databases": {"calls": database}})
        yield service
    assert service.stop() == 0, service.logged()


def _access_line(pool: PoolService, key: str, value: str) -> dict[str, str]:
    """Return the access log's one line of a call, which is written a moment after the call."""

    def lines() -> list[dict[str, str]]:
        return [line for line in pool.access_lines() if line.get(key) == value]

    pool.await_that(lines, f"has an access line with {key}={value}")
    (line,) = lines()
    return line


def _assert_told(pool: PoolService, call: PlacedCall, word: str) -> CallDone:
    """A call has failed in one way, and its dialplan was told so."""
    done = call.done()
    assert (done.status, done.variables["FAGI_STATUS"]) == ("FAILURE", word)
    assert done.error
    line = _access_line(pool, "call", done.ref)
    assert line["outcome"] == word.lower()
    # A call that was refused at the door has not said who it is.
    assert line["uniqueid"] == ('""' if word == "DENIED" else call.uniqueid)
    return done


# --- each kind of failure


@pytest.mark.parametrize(
    ("script", "word", "error"),
    [
        ("raising", "ERROR", "RuntimeError: on purpose"),
        ("raising/late", "ERROR", "ValueError: no such thing EXTEN a b"),
        ("unknown", "NOROUTE", "no route matches the script and there is no default"),
        ("raising/../hello", "BADREQUEST", ".."),
        ("database", "DBDOWN", "database calls is not available"),
        ("idle/wait-for-digit", "TIMEOUT", "CallTimeout: idle time-out of 0.3 s"),
        ("idle/exec", "TIMEOUT", "CallTimeout: idle time-out of 0.3 s"),
    ],
)
def test_failure(script: str, word: str, error: str, pool: PoolService, telephone: Telephone) -> None:
    """Whatever goes wrong with a call, the dialplan goes on and knows what it was."""
    done = _assert_told(pool, telephone.call(pool.url(script)), word)
    assert done.way == f"behind FAILURE {word}"
    assert error in done.error


def test_reference_leads_to_the_traceback(pool: PoolService, telephone: Telephone) -> None:
    """Who has FAGI_REF finds in the log what went wrong, and the variables set before it are kept."""
    done = _assert_told(pool, telephone.call(pool.url("raising/late")), "ERROR")
    assert done.variables["RESULT"] == "half"
    assert f"call={done.ref} route=raising/late failed: ValueError" in pool.logged()


def test_script_timeout(pool: PoolService, telephone: Telephone, gate: Gate) -> None:
    """A handler that thinks for too long between its commands is TIMEOUT."""
    call = telephone.call(pool.url(f"slow?gate={gate.address}"))
    done = _assert_told(pool, call, "TIMEOUT")
    assert (done.way, done.error) == ("behind FAILURE TIMEOUT", "CallTimeout: script time-out of 0.3 s")


def test_denied(pools: PoolFactory, telephone: Telephone) -> None:
    """A call from an address that is not allowed is told so, and the general on_error is carried out."""
    settings = {"allow": ["192.0.2.0/24"], "on_error": "goto target,t,1", "workers": 1}
    pool = pools.start({"hello": "asterisk_handlers:hello"}, settings)
    done = _assert_told(pool, telephone.call(pool.url("hello")), "DENIED")
    assert done.way == "number FAILURE DENIED"
    assert pool.stop() == 0, pool.logged()


def test_stopped(pools: PoolFactory, telephone: Telephone, gate: Gate) -> None:
    """SIGINT ends calls in progress, between two commands and within one, and each is told."""
    pool = pools.start({"held": "asterisk_handlers:held", "waiting": _IN_WAIT_FOR_DIGIT})
    held = telephone.call(pool.url(f"held?gate={gate.address}"))
    waiting = telephone.call(pool.url("waiting"))
    gate.await_arrivals(1)
    waiting.await_command("WAIT FOR DIGIT")
    pool.signal(signal.SIGINT)
    for call in (held, waiting):
        assert _assert_told(pool, call, "STOPPED").way == "behind FAILURE STOPPED"
    assert pool.wait() == 0, pool.logged()


# --- overload


def _start_full(
    pools: PoolFactory, telephone: Telephone, gate: Gate, max_queue: int, max_wait: str
) -> tuple[PoolService, PlacedCall]:
    """Start a pool with one place, which is taken until the gate opens."""
    settings = {"workers": 1, "calls_per_worker": 1, "max_queue": max_queue, "max_wait": max_wait}
    pool = pools.start({"held": "asterisk_handlers:held", "hello": "asterisk_handlers:hello"}, settings)
    first = telephone.call(pool.url(f"held?gate={gate.address}"))
    gate.await_arrivals(1)
    return pool, first


def _end_full(pool: PoolService, first: PlacedCall, gate: Gate) -> None:
    gate.open()
    assert first.done().status == "SUCCESS"
    assert pool.stop() == 0, pool.logged()


def test_overload(pools: PoolFactory, telephone: Telephone, gate: Gate) -> None:
    """Where nobody may wait, the first call beyond the last place is told at once."""
    pool, first = _start_full(pools, telephone, gate, 0, "1h")
    done = _assert_told(pool, telephone.call(pool.url("hello")), "OVERLOAD")
    assert done.way == "behind FAILURE OVERLOAD"
    _end_full(pool, first, gate)


def test_overload_after_waiting(pools: PoolFactory, telephone: Telephone, gate: Gate) -> None:
    """Who has waited as long as anybody may is told that there is no place."""
    pool, first = _start_full(pools, telephone, gate, 1, "1s")
    done = _assert_told(pool, telephone.call(pool.url("hello")), "OVERLOAD")
    assert float(_access_line(pool, "call", done.ref)["total_ms"]) >= 1000
    _end_full(pool, first, gate)


def test_waiting_is_served(pools: PoolFactory, telephone: Telephone, gate: Gate, records: Records) -> None:
    """Who waits is served as soon as there is a place; who finds no room to wait is told at once.

    Two calls come for one place to wait: once one of them has been refused, the other waits.
    """
    pool, first = _start_full(pools, telephone, gate, 1, "1h")
    calls = [telephone.call(pool.url("hello")) for _ in range(2)]
    pool.await_access(1)
    assert all(records.of(call.uniqueid) == [] for call in calls)
    gate.open()
    refused, served = sorted(calls, key=lambda call: call.done().status)
    _assert_told(pool, refused, "OVERLOAD")
    done = served.done()
    assert (done.status, done.variables["RESULT"]) == ("SUCCESS", "served")
    _end_full(pool, first, gate)


# --- on_error


@pytest.mark.parametrize(
    ("script", "way"),
    [
        ("raising/continue", "behind FAILURE ERROR"),
        ("raising/hangup", ""),
        ("raising/number", "number FAILURE ERROR"),
        ("raising/label", "label FAILURE ERROR"),
        ("raising/nowhere", "behind FAILURE ERROR"),
    ],
)
def test_on_error(script: str, way: str, pool: PoolService, telephone: Telephone) -> None:
    """After a failure the dialplan goes where the route says, and sees there what went wrong."""
    assert _assert_told(pool, telephone.call(pool.url(script)), "ERROR").way == way


def test_on_error_while_a_file_is_played(pool: PoolService, telephone: Telephone) -> None:
    """A failure within STREAM FILE breaks the file off and sends the call on."""
    done = _assert_told(pool, telephone.call(pool.url("idle/stream-file")), "TIMEOUT")
    assert done.way == "label FAILURE TIMEOUT"


@pytest.mark.parametrize("script", ["broken/number", "broken/hangup"])
def test_on_error_in_h(script: str, pool: PoolService, telephone: Telephone) -> None:
    """A failure in the h extension is told, but the rest of h is run, wherever on_error leads."""
    call = telephone.call(pool.url("hello"), hangup_url=pool.url(script))
    done = call.done()
    assert (done.status, done.h_status) == ("SUCCESS", "FAILURE")
    assert (done.way, done.variables["FAGI_STATUS"]) == ("behind SUCCESS OK", "ERROR")
    assert _access_line(pool, "call", done.ref)["outcome"] == "error"


def test_on_error_after_a_hangup(pool: PoolService, telephone: Telephone) -> None:
    """A failure after the caller hung up is told to the h extension of where the call was."""
    call = telephone.call(pool.url("after-hangup"))
    call.await_command("WAIT FOR DIGIT")
    call.hang_up()
    assert _assert_told(pool, call, "ERROR").way == ""


# --- what is no failure


def test_on_hangup_continue(pool: PoolService, telephone: Telephone, records: Records) -> None:
    """A handler that wants it so goes on after a hangup with what a dead channel permits, and ends well."""
    call = telephone.call(pool.url("going-on"))
    call.await_command("WAIT FOR DIGIT")
    call.hang_up()
    done = call.done()
    assert (done.status, done.variables["RESULT"], done.error) == ("HANGUP", "after", "")
    (session,) = records.of(call.uniqueid)
    steps = session["steps"]
    assert (steps["hung up before"], steps["hangup in"], steps["hung up after"]) == (
        False,
        "AGIDeadChannel",
        True,
    )
    assert (steps["get"], steps["exec"], steps["stream file"]) == ("before", 0, "AGIDeadChannel")
    assert session["end"] == ""
    line = _access_line(pool, "uniqueid", call.uniqueid)
    assert (line["outcome"], line["hangup"]) == ("ok", "yes")


def test_finish(pool: PoolService, telephone: Telephone, records: Records, gate: Gate) -> None:
    """After finish() the dialplan goes on to its end while the handler still works."""
    call = telephone.call(pool.url(f"finishing?gate={gate.address}"))
    gate.await_arrivals(1)
    done = call.done()
    assert (done.status, done.way, done.variables["RESULT"]) == ("SUCCESS", "behind SUCCESS", "served")
    assert records.of(call.uniqueid) == []
    gate.open()
    line = _access_line(pool, "uniqueid", call.uniqueid)
    assert (line["outcome"], line["commands"]) == ("ok", "1")
    assert float(line["held_ms"]) <= float(line["total_ms"])
    assert records.of(call.uniqueid)[0]["steps"] == {"set": "AGICallFinished"}


@pytest.mark.parametrize(
    ("script", "result", "variable"),
    [("clean", None, "one  HANGUP two"), ("strict", "AGICommandRefused", "")],
)
def test_command_guard(
    script: str,
    result: object,
    variable: str,
    pool: PoolService,
    telephone: Telephone,
    records: Records,
) -> None:
    """What would harm Asterisk is refused, or made harmless, as the route says; the call lives on."""
    call = telephone.call(pool.url(script))
    done = call.done()
    assert (done.status, done.way, done.variables["RESULT"]) == ("SUCCESS", "behind SUCCESS", variable)
    assert records.of(call.uniqueid)[0]["steps"] == {"set": result}
    refused = _access_line(pool, "uniqueid", call.uniqueid).get("refused", "0")
    assert refused == ("1" if result else "0")


def test_print(pool: PoolService, telephone: Telephone) -> None:
    """What a handler prints is in the log, under its call, and does not reach Asterisk."""
    call = telephone.call(pool.url("printing"))
    done = call.done()
    assert (done.status, done.variables["RESULT"]) == ("SUCCESS", "printed")
    assert call.commands() == ["SET VARIABLE RESULT printed"]
    ref = _access_line(pool, "uniqueid", call.uniqueid)["call"]
    for text in ("HANGUP", "without an end"):
        pool.await_log(f"call={ref} printed: {text}$")


def test_nothing_is_left(asterisk: AsteriskServer, logged_before: int) -> None:
    """After all these endings Asterisk holds no channel, and has logged no error."""
    asterisk.await_no_channels()
    assert " ERROR[" not in asterisk.logged()[logged_before:]
