"""The pool serves a real Asterisk: every call placed here ends as the dialplan should see it.

What Asterisk and its dialplan saw comes back in CallDone; what the handler saw, in its records.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
from service import PoolService

from .asterisk.calls import PlacedCall, Telephone
from .asterisk.gate import Gate
from .asterisk.server import AsteriskServer
from .conftest import PoolFactory, Records

pytestmark = pytest.mark.asterisk

_HANDLERS: Final = {
    "hello": "asterisk_handlers:hello",
    "second": "asterisk_handlers:second",
    "path/to/*": "asterisk_handlers:hello",
    "everyday": "asterisk_handlers:everyday",
    "failing": "asterisk_handlers:failing",
    "digits": "asterisk_handlers:digits",
    "hangup/wait-for-digit": "asterisk_handlers:hangup_in_wait_for_digit",
    "hangup/stream-file": "asterisk_handlers:hangup_in_stream_file",
    "hangup/idle": "asterisk_handlers:hangup_while_idle",
    "hangup/script": "asterisk_handlers:hanging_up",
    "after-hangup": "asterisk_handlers:after_hangup",
    "raising": "asterisk_handlers:raising",
    "held": "asterisk_handlers:held",
}

#: What a dead channel answers to each command of ``asterisk_handlers._on_dead_channel``.
_DEAD_CHANNEL: Final = {
    "verbose": None,
    "noop": None,
    "exec": 0,
    "answer": "AGIDeadChannel",
    "stream file": "AGIDeadChannel",
    "get data": "AGIDeadChannel",
    "wait for digit": "AGIDeadChannel",
    "say number": "AGIDeadChannel",
    "say digits": "AGIDeadChannel",
    "channel status": "AGIDeadChannel",
    "hangup": "AGIDeadChannel",
}

#: Calls of the tests that load the pool, and how many of them there are at any moment.
_MANY: Final = 300
_AT_ONCE: Final = 20
#: Longest time until the first worker of a new generation answers.
_RELOAD_TIMEOUT_S: Final = 30.0


@pytest.fixture(scope="module")
def pool(pools: PoolFactory) -> Iterator[PoolService]:
    """A pool that serves every handler, for the tests that leave it as it is."""
    service = pools.start(_HANDLERS)
    yield service
    assert service.stop() == 0, service.logged()


# --- one call


def test_plain_call(pool: PoolService, telephone: Telephone, records: Records) -> None:
    """A script's environment is the call's, and what it sets is there for the dialplan."""
    call = telephone.call(pool.url("hello"), callerid='"Alice" <100>')
    done = call.done()
    assert (done.status, done.h_status) == ("SUCCESS", "")
    assert done.variables == {"CALLER_NAME": "Alice", "RESULT": "served", "FAGI_STATUS": "OK"}
    (session,) = records.of(call.uniqueid)
    environment = session["environment"]
    assert environment["agi_request"] == pool.url("hello")
    assert environment["agi_callerid"] == "100"
    assert environment["agi_context"] == "calls"
    assert environment["agi_extension"] == "one"
    assert (session["script"], session["query"], session["arguments"]) == ("hello", {}, [])
    assert (session["steps"], session["end"]) == ({"name": "Alice"}, "")


def test_query_and_arguments(pool: PoolService, telephone: Telephone, records: Records) -> None:
    """Query, arguments and the route's captures reach the handler; empty ones are kept."""
    call = telephone.call(
        pool.url("path/to/script?did=101&lang=en&empty=&x=a%20b&name=J%C3%BCrgen"),
        'first,second arg,"third,with comma",,last',
    )
    assert call.done().status == "SUCCESS"
    (session,) = records.of(call.uniqueid)
    assert session["script"] == "path/to/script"
    assert session["query"] == {"did": "101", "lang": "en", "empty": "", "x": "a b", "name": "Jürgen"}
    assert session["arguments"] == ["first", "second arg", "third,with comma", "", "last"]
    assert session["captures"] == {"1": "script"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("Jürgen Žižka 中文 😀", id="utf-8"),
        pytest.param(b"M\xfcller \xe4\xf6\xff".decode("utf-8", "surrogateescape"), id="latin-1"),
    ],
)
def test_caller_name_keeps_its_bytes(
    name: str, pool: PoolService, telephone: Telephone, records: Records
) -> None:
    """A caller's name goes through environment, reply and command byte for byte, in any encoding."""
    call = telephone.call(pool.url("hello"), callerid=f'"{name}" <100>')
    done = call.done()
    assert done.status == "SUCCESS"
    assert done.variables["CALLER_NAME"] == name
    (session,) = records.of(call.uniqueid)
    assert session["environment"]["agi_calleridname"] == name
    assert session["steps"] == {"name": name}


def test_two_scripts_on_one_call(pool: PoolService, telephone: Telephone, records: Records) -> None:
    """Each AGI() of a call is a session of its own, and sees what the one before it set."""
    call = telephone.call(pool.url("hello"), then_url=pool.url("second"))
    done = call.done()
    assert (done.status, done.variables["FAGI_STATUS"]) == ("SUCCESS", "SECOND")
    first, second = records.of(call.uniqueid)
    assert (first["script"], second["script"]) == ("hello", "second")
    assert second["steps"] == {"first": "OK"}


def test_lookup_in_database(pools: PoolFactory, telephone: Telephone, run_folder: Path) -> None:
    """The demonstration's handler finds a caller in a database and tells the dialplan the name."""
    database = {"demo": {"url": f"sqlite:///{run_folder}/callers.sqlite"}}
    pool = pools.start({"lookup": "fastagi_pool.handlers.lookup:lookup"}, {"databases": database})
    known = telephone.call(pool.url("lookup"), callerid='"" <100>')
    unknown = telephone.call(pool.url("lookup"), callerid='"" <999>')
    assert known.done().variables["CALLER_NAME"] == "Alice Liddell"
    assert unknown.done().variables["CALLER_NAME"] == ""
    assert (known.done().status, unknown.done().status) == ("SUCCESS", "SUCCESS")
    assert pool.stop() == 0, pool.logged()


# --- commands


def test_everyday_commands(pool: PoolService, telephone: Telephone, records: Records) -> None:
    """Every everyday command returns what Asterisk answered."""
    call = telephone.call(pool.url("everyday"))
    assert call.done().status == "SUCCESS"
    (session,) = records.of(call.uniqueid)
    assert session["end"] == ""
    place = 'Köln "am" Rhein, \\ 50667 (D)'
    assert session["steps"] == {
        "status before": 4,
        "answer": None,
        "status after": 6,
        "verbose": None,
        "noop": None,
        "noop text": None,
        "set": None,
        "get": place,
        "get unset": None,
        "get full": f"one@calls: {place}",
        "get full unset": "",
        "exec": 0,
        "get by exec": "one,two",
        "stream file": {"digit": "", "endpos": 800},
        "stream file offset": {"digit": "", "endpos": 8000},
        "wait for digit": "",
        "get data": {"digits": "", "timed_out": True},
        "say number": "",
        "say digits": "",
        "status of": 6,
    }


def test_digits(pool: PoolService, telephone: Telephone, records: Records) -> None:
    """The caller's keys end the command that waits for them, and come back as they were pressed."""
    call = telephone.call(pool.url("digits"))
    for command, keys in (
        ("WAIT FOR DIGIT 10000", "5"),
        ("STREAM FILE silence10 789", "7"),
        ("GET DATA silence10 10000", "12#"),
        ("GET DATA silence10 10000 2", "34"),
        ("GET DATA silence100ms 1000 9", "9"),
    ):
        call.await_command(command)
        for key in keys:
            call.press(key)
    assert call.done().status == "SUCCESS"
    (session,) = records.of(call.uniqueid)
    steps = session["steps"]
    assert 0 < steps["stream file"].pop("endpos") < 80000
    assert steps == {
        "wait for digit": "5",
        "stream file": {"digit": "7"},
        "get data": {"digits": "12", "timed_out": False},
        "get data max": {"digits": "34", "timed_out": False},
        "get data timeout": {"digits": "9", "timed_out": True},
    }


def test_failing_commands(pool: PoolService, telephone: Telephone, records: Records) -> None:
    """A command that fails is an error that the handler can survive; the call goes on.

    Asterisk itself makes AGISTATUS FAILURE once a media command has failed.
    """
    call = telephone.call(pool.url("failing"))
    done = call.done()
    assert (done.status, done.variables["RESULT"]) == ("FAILURE", "still here")
    (session,) = records.of(call.uniqueid)
    assert session["end"] == ""
    assert session["steps"] == {
        "no file": "AGICommandFailed",
        "no application": "AGIAppError",
        "no channel": "AGICommandFailed",
        "no channel to hang up": "AGICommandFailed",
        "line end": "AGICommandRefused",
    }


# --- hang-ups


def _hang_up_in(command: str) -> Callable[[PlacedCall, Gate], None]:
    def hang_up(call: PlacedCall, gate: Gate) -> None:
        call.await_command(command)
        call.hang_up()

    return hang_up


def _hang_up_while_idle(call: PlacedCall, gate: Gate) -> None:
    assert gate.await_arrivals(1) == {call.uniqueid}
    call.hang_up()
    gate.open()


@pytest.mark.parametrize(
    ("script", "hang_up"),
    [
        ("hangup/wait-for-digit", _hang_up_in("WAIT FOR DIGIT")),
        ("hangup/stream-file", _hang_up_in("STREAM FILE")),
        ("hangup/idle", _hang_up_while_idle),
    ],
    ids=["wait for digit", "stream file", "idle"],
)
def test_caller_hangs_up(
    script: str,
    hang_up: Callable[[PlacedCall, Gate], None],
    pool: PoolService,
    telephone: Telephone,
    records: Records,
    gate: Gate,
) -> None:
    """A hangup ends the handler once, wherever it stands; then it can still tidy up, in dead mode."""
    call = telephone.call(pool.url(f"{script}?gate={gate.address}"))
    hang_up(call, gate)
    done = call.done()
    assert (done.status, done.variables["RESULT"]) == ("HANGUP", "after")
    (session,) = records.of(call.uniqueid)
    assert session["end"] == "CallHangup"
    assert session["steps"] == {**_DEAD_CHANNEL, "get": "before", "get full": "before-calls"}


def test_hangup_extension(pool: PoolService, telephone: Telephone, records: Records) -> None:
    """A script of the h extension is served: variables can be read, the rest is a dead channel's."""
    call = telephone.call(pool.url("hello"), hangup_url=pool.url("after-hangup"))
    done = call.done()
    assert (done.status, done.h_status, done.variables["RESULT"]) == ("SUCCESS", "SUCCESS", "after")
    _, session = records.of(call.uniqueid)
    assert session["environment"]["agi_extension"] == "h"
    assert session["arguments"] == ["hangup", "16"]
    assert session["end"] == ""
    assert session["steps"] == {**_DEAD_CHANNEL, "get": "served", "get full": "served-calls"}


def test_script_hangs_up(pool: PoolService, telephone: Telephone, records: Records) -> None:
    """A handler that hangs up and returns has ended well; the dialplan sees a hangup."""
    call = telephone.call(pool.url("hangup/script"))
    assert call.done().status == "HANGUP"
    (session,) = records.of(call.uniqueid)
    assert session["end"] == ""


def test_redirect(pool: PoolService, telephone: Telephone, records: Records) -> None:
    """A call transferred away from its script looks like a hangup to the script, and lives on."""
    call = telephone.call(pool.url("hangup/wait-for-digit"))
    call.await_command("WAIT FOR DIGIT")
    call.redirect("after")
    done = call.done()
    assert (done.status, done.variables["RESULT"]) == ("HANGUP", "redirected")
    (session,) = records.of(call.uniqueid)
    assert session["end"] == "CallHangup"


# --- failures


@pytest.mark.parametrize("script", ["unknown", "path/to/nowhere/else", "HELLO", ""])
def test_unknown_script(script: str, pool: PoolService, telephone: Telephone, records: Records) -> None:
    """A script that no route serves is AGISTATUS=FAILURE, and reaches no handler."""
    call = telephone.call(pool.url(script))
    assert call.done().status == "FAILURE"
    assert records.of(call.uniqueid) == []


def test_handler_raises(pool: PoolService, telephone: Telephone, records: Records) -> None:
    """A bug in a handler is AGISTATUS=FAILURE and a traceback in the log; the next call is served."""
    call = telephone.call(pool.url("raising"))
    assert call.done().status == "FAILURE"
    (session,) = records.of(call.uniqueid)
    assert session["end"] == "RuntimeError"
    assert 'raise RuntimeError("on purpose")' in pool.logged()
    assert telephone.call(pool.url("hello")).done().status == "SUCCESS"


def test_script_timeout(pools: PoolFactory, telephone: Telephone, records: Records, gate: Gate) -> None:
    """A handler that takes too long is AGISTATUS=FAILURE; Asterisk's own time is not counted."""
    pool = pools.start(
        {"patient": "asterisk_handlers:patient", "held": "asterisk_handlers:held"},
        {"limits": {"script_timeout": "1s"}},
    )
    patient = telephone.call(pool.url("patient"))
    stuck = telephone.call(pool.url(f"held?gate={gate.address}"))
    assert stuck.done().status == "FAILURE"
    assert records.of(stuck.uniqueid)[0]["end"] == "CallTimeout"
    assert patient.done().status == "SUCCESS"
    assert records.of(patient.uniqueid)[0]["steps"] == {"wait for digit": ""}
    assert pool.stop() == 0, pool.logged()
    assert _outcomes(pool) == {(patient.uniqueid, "ok"): 1, (stuck.uniqueid, "timeout"): 1}


# --- the life of the pool


def _outcomes(pool: PoolService) -> Counter[tuple[str, str]]:
    """Each line of the access log as (unique id, outcome); all are there once the pool has stopped."""
    lines = pool.access_path.read_text().splitlines()
    fields = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
    return Counter((field["uniqueid"], field["outcome"]) for field in fields)


def _call_many(
    telephone: Telephone, url: str, count: int, in_the_middle: Callable[[], object]
) -> list[PlacedCall]:
    """Place calls, some at once, and see them all end well; do something when half have been placed."""
    waiting: list[PlacedCall] = []
    ended = []
    for number in range(count):
        if number == count // 2:
            in_the_middle()
        waiting.append(telephone.call(url, callerid=f'"Caller {number}" <{number}>'))
        if len(waiting) == _AT_ONCE:
            ended.append(waiting.pop(0))
            assert ended[-1].done().status == "SUCCESS"
    for call in waiting:
        assert call.done().status == "SUCCESS"
    return ended + waiting


def _pids(calls: Sequence[PlacedCall], records: Records) -> list[int]:
    """The worker that served each call, each of which had one whole session."""
    pids = []
    for number, call in enumerate(calls):
        (session,) = records.of(call.uniqueid)
        assert (session["steps"], session["end"]) == ({"name": f"Caller {number}"}, "")
        pids.append(session["pid"])
    return pids


def test_reload_loses_no_call(pools: PoolFactory, telephone: Telephone, records: Records, gate: Gate) -> None:
    """SIGHUP in the middle of 300 calls: calls in progress end on the old workers, new ones go on."""
    pool = pools.start({"hello": "asterisk_handlers:hello", "held": "asterisk_handlers:held"})
    held = [telephone.call(pool.url(f"held?gate={gate.address}")) for _ in range(10)]
    gate.await_arrivals(len(held))
    pids = _pids(_call_many(telephone, pool.url("hello"), _MANY, pool.reload), records)
    old = set(pids[: _MANY // 2 - _AT_ONCE])
    _await_worker_outside(old, pool, telephone, records)
    gate.open()
    assert [call.done().variables["RESULT"] for call in held] == ["finished"] * len(held)
    assert {records.of(call.uniqueid)[0]["pid"] for call in held} <= old
    assert pool.stop() == 0, pool.logged()


def _await_worker_outside(old: set[int], pool: PoolService, telephone: Telephone, records: Records) -> None:
    """Call until another worker than the old ones answers; every call ends well."""
    deadline = time.monotonic() + _RELOAD_TIMEOUT_S
    while time.monotonic() < deadline:
        call = telephone.call(pool.url("hello"))
        assert call.done().status == "SUCCESS"
        if records.of(call.uniqueid)[0]["pid"] not in old:
            return
    raise AssertionError(f"no new worker within {_RELOAD_TIMEOUT_S:g} s:\n{pool.logged()}")


def test_recycling_loses_no_call(pools: PoolFactory, telephone: Telephone, records: Records) -> None:
    """Workers that are replaced after 50 calls each serve 300 calls, and log each of them once.

    How far a worker goes beyond its 50 depends on how long its replacement takes to get ready.
    """
    pool = pools.start({"hello": "asterisk_handlers:hello"}, {"max_calls": 50, "max_calls_jitter": 0.0})
    calls = _call_many(telephone, pool.url("hello"), _MANY, lambda: None)
    served = Counter(_pids(calls, records))
    assert len(served) > 2, served
    assert pool.stop() == 0, pool.logged()
    assert _outcomes(pool) == {(call.uniqueid, "ok"): 1 for call in calls}


def test_stop_lets_calls_finish(
    pools: PoolFactory, telephone: Telephone, records: Records, gate: Gate
) -> None:
    """After SIGTERM calls in progress go on to their end, and new ones are refused, not left waiting."""
    pool = pools.start({"held": "asterisk_handlers:held"})
    calls = [telephone.call(pool.url(f"held?gate={gate.address}")) for _ in range(20)]
    gate.await_arrivals(len(calls))
    pool.terminate()
    pool.await_refusal()
    assert telephone.call(pool.url("held")).done().status == "FAILURE"
    gate.open()
    for call in calls:
        done = call.done()
        assert (done.status, done.variables["RESULT"]) == ("SUCCESS", "finished")
        (session,) = records.of(call.uniqueid)
        assert session["end"] == ""
    assert pool.wait() == 0, pool.logged()
    assert _outcomes(pool) == {(call.uniqueid, "ok"): 1 for call in calls}


def test_no_channel_is_left(asterisk: AsteriskServer, telephone: Telephone) -> None:
    """After all these calls Asterisk holds no channel: no session was forgotten."""
    asterisk.await_no_channels()
