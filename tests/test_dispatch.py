"""fastagi_pool.dispatch: what becomes of a call, whatever its handler and its caller do.

A real session on a real hub; the test plays Asterisk, and reads what the dialplan would see.
"""

from __future__ import annotations

import logging
import shlex
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import gevent.event
import pytest
from sqlalchemy import text
from test_session import Link, connect, in_hub

from fastagi_pool.call import Call
from fastagi_pool.callboard import CallBoard, CallFacts, CallState, read_calls
from fastagi_pool.context import Context
from fastagi_pool.database import Database, DatabaseSettings
from fastagi_pool.deferring import Deferrals
from fastagi_pool.dispatch import Dispatcher, Door, Handler
from fastagi_pool.endings import GO_ON, ErrorAction, OnError
from fastagi_pool.errors import (
    AGICallFinished,
    AGICommandRefused,
    CallEnded,
    CallHangup,
    CallStopped,
    CallTimeout,
    DatabaseBusy,
    DatabaseUnavailable,
    LimitExceeded,
    Overloaded,
    ScriptFailed,
    ScriptNotFound,
    ToldFailure,
    UpstreamUnavailable,
)
from fastagi_pool.journal import Journal, NewEntry
from fastagi_pool.logs import AccessLog, CallRecord, LogFile, PrintedLines, current_call
from fastagi_pool.protocol import Request
from fastagi_pool.quarantine import Quarantine, fingerprint
from fastagi_pool.routes import Route, RouteKind, RouteTable
from fastagi_pool.session import Session
from fastagi_pool.slowlog import SlowCall

IDENTITY = "worker=3 gen=1 pid=42"
CLOCKS = ("total_ms", "queued_ms", "asterisk_ms", "script_ms", "db_ms")
OK = b"200 result=0\n"
HANGUP = b"HANGUP\n200 result=0\n"


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self.records.append(record)


@dataclass
class Ending:
    """What came of one call.

    Attributes:
        failed: What the dispatcher said.
        heard: All lines that the peer read.
    """

    failed: object
    heard: list[bytes]


@dataclass
class House:
    """A dispatcher with one route, ``hello``, and all it writes.

    Attributes:
        path: Where access lines go.
        databases: The worker's databases.
        route: What the route has besides its name and its script.
        on_error: What becomes of calls that find no route.
        door: What stands before the places.
        quarantine: Knows the requests that have ended workers.
        deferrals: Where calls go whose database is away.
    """

    path: Path
    databases: dict[str, Database] = field(default_factory=dict)
    route: dict[str, Any] = field(default_factory=dict)
    on_error: OnError = GO_ON
    door: Door | None = None
    quarantine: Quarantine | None = None
    deferrals: Deferrals | None = None

    def __post_init__(self) -> None:
        self.records = Records()
        self.log = logging.Logger("house")
        self.log.addHandler(self.records)
        self.state: dict[str, Any] = {"shared": 1}
        self.handler: Handler = lambda call, context: None
        self.slow: list[SlowCall] = []
        file = LogFile(str(self.path))
        route = Route("greeting", RouteKind.GLOB, "hello*", "x:y", options={"colour": "red"})
        self.dispatcher = Dispatcher(
            table=RouteTable([replace(route, **self.route)]),
            handlers={"greeting": lambda call, context: self.handler(call, context)},
            databases=self.databases,
            state=self.state,
            log=self.log,
            records=[AccessLog(file, IDENTITY, gevent.get_hub().loop.run_callback)],
            ref_prefix="6a01-2a-",
            on_error=self.on_error,
            on_slow=self.slow.append,
            door=self.door,
            quarantine=self.quarantine,
            deferrals=self.deferrals,
        )

    def call(
        self, handler: Handler, replies: tuple[bytes, ...] = (), script: str = "hello", begin: bytes = b""
    ) -> Ending:
        """Place a call and play Asterisk: the given replies, then close.

        Args:
            handler: What the route does.
            replies: One for each command.
            script: What Asterisk asks for.
            begin: What Asterisk sends instead of an environment.
        """
        self.handler = handler
        link = connect()
        running = link.run(self.dispatcher.serve)
        link.say(begin or environment(script))
        heard = []
        for reply in replies:
            heard.append(link.hear_line())
            link.say(reply)
        heard += self._listen_to_the_end(link, bool(replies) and not replies[-1])
        ending = Ending(running.result(), heard)
        gevent.sleep(0)
        return ending

    def _listen_to_the_end(self, link: Link, leave: bool) -> list[bytes]:
        rest = b"" if leave else link.hear_all()
        link.peer.close()
        return rest.splitlines(keepends=True)

    @property
    def access(self) -> list[dict[str, str]]:
        """The words of all access lines."""
        lines = self.path.read_text().splitlines()
        return [dict(word.split("=", 1) for word in shlex.split(line)[1:]) for line in lines]

    @property
    def outcomes(self) -> list[str]:
        """The outcomes of all calls so far."""
        return [line["outcome"] for line in self.access]

    @property
    def logged(self) -> list[tuple[str, bool]]:
        """Level of each line of the log, and whether a traceback follows."""
        return [(record.levelname, record.exc_info is not None) for record in self.records.records]


def environment(script: str) -> bytes:
    """Write an environment."""
    lines = [
        "agi_network: yes",
        f"agi_network_script: {script}",
        "agi_uniqueid: 1700000000.1",
        "agi_callerid: 100",
        "agi_version: 22.10.1",
    ]
    return ("\n".join(lines) + "\n\n").encode()


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A dispatcher without databases."""
    return House(tmp_path / "access.log")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A database with one connection."""
    settings = DatabaseSettings("main", (f"sqlite:///{tmp_path}/test.db",), pool_size=1, pool_timeout_s=0.05)
    database = Database(settings)
    with database.lease().begin() as connection:
        connection.execute(text("CREATE TABLE caller (name VARCHAR(80))"))
    yield database
    database.close()


# ---- handlers, each of which behaves in its own way


def go_well(call: Call, context: Context) -> None:
    """Do what handlers do."""
    call.noop()


def do_nothing(call: Call, context: Context) -> None:
    """Return without a command."""


def crash(call: Call, context: Context) -> None:
    """Have a bug."""
    raise ValueError("bug")


def crash_after_a_command(call: Call, context: Context) -> None:
    """Have a bug in the middle."""
    call.noop()
    raise KeyError("missing")


def leave_the_program(call: Call, context: Context) -> None:
    """End the process, as a script would."""
    raise SystemExit(1)


def interrupt(call: Call, context: Context) -> None:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def end_its_greenlet(call: Call, context: Context) -> None:
    """Raise what ends greenlets in silence."""
    raise gevent.GreenletExit


def retry_for_ever(call: Call, context: Context) -> None:
    """Catch all that one can catch in good faith."""
    while True:
        try:
            call.noop()
        except Exception:
            continue


def go_on_after_the_hangup(call: Call, context: Context) -> None:
    """Notice the hangup and tidy up."""
    try:
        call.noop()
    except CallHangup:
        call.set_variable("LEFT", "yes")


def expand_a_line_end(call: Call, context: Context) -> None:
    """Send what came from somewhere, a line end and all."""
    call.noop("a\nb")


def answer_the_dead(call: Call, context: Context) -> None:
    """Notice the hangup and go on as if there had been none."""
    try:
        call.noop()
    except CallHangup:
        call.answer()


def answer(call: Call, context: Context) -> None:
    """Answer the channel."""
    call.answer()


def run_out_of_time(call: Call, context: Context) -> None:
    """Be interrupted by a limit."""
    raise CallTimeout("script", 60.0)


def be_stopped(call: Call, context: Context) -> None:
    """Be interrupted by the end of the worker."""
    raise CallStopped("the worker must end")


def miss_the_database(call: Call, context: Context) -> None:
    """Find a database away."""
    raise DatabaseUnavailable("main", "connection refused")


def failing(error: Exception) -> Handler:
    """Make a handler that ends like this."""

    def fail(call: Call, context: Context) -> None:
        raise error

    return fail


NOOP = b"NOOP\n"
FAILURE = b"failure\n"


def told(status: str, error: str, *orders: bytes, ref: str = "6a01-2a-1") -> list[bytes]:
    """Give the lines by which the dialplan learns of a failure.

    Args:
        status: FAGI_STATUS.
        error: FAGI_ERROR, as it stands in the command line.
        orders: What it is sent to do.
        ref: FAGI_REF.
    """
    lines = [f"SET VARIABLE FAGI_STATUS {status}\n", f"SET VARIABLE FAGI_ERROR {error}\n"]
    return [*(line.encode() for line in lines), f"SET VARIABLE FAGI_REF {ref}\n".encode(), *orders, FAILURE]


BUG = told("ERROR", '"ValueError: bug"')
QUIET: list[tuple[str, bool]] = []
WARNED = [("WARNING", False)]
TRACED = [("ERROR", True)]
DEAD = b"511 Command Not Permitted on a dead channel or intercept routine\n"


@pytest.mark.parametrize(
    ("handler", "replies", "outcome", "heard", "logged"),
    [
        (go_well, (OK,), "ok", [NOOP], QUIET),
        (do_nothing, (), "ok", [], QUIET),
        (crash, (), "error", BUG, TRACED),
        (crash_after_a_command, (OK,), "error", [NOOP, *told("ERROR", '"KeyError: missing"')], TRACED),
        (leave_the_program, (), "error", told("ERROR", '"SystemExit: 1"'), TRACED),
        (interrupt, (), "error", told("ERROR", "KeyboardInterrupt:"), TRACED),
        (end_its_greenlet, (), "error", told("ERROR", "GreenletExit:"), TRACED),
        (go_well, (HANGUP,), "hangup", [NOOP], QUIET),
        (retry_for_ever, (OK, OK, HANGUP), "hangup", [NOOP] * 3, QUIET),
        (go_on_after_the_hangup, (HANGUP, OK), "ok", [NOOP, b"SET VARIABLE LEFT yes\n"], QUIET),
        (answer_the_dead, (HANGUP, DEAD), "hangup", [NOOP, b"ANSWER\n"], QUIET),
        (answer_the_dead, (HANGUP, b"200 result=-1\n"), "hangup", [NOOP, b"ANSWER\n"], QUIET),
        (
            answer,
            (DEAD,),
            "error",
            [
                b"ANSWER\n",
                *told("ERROR", '"AGIDeadChannel: not permitted on a channel that hung up 511 : ANSWER"'),
            ],
            TRACED,
        ),
        (
            answer,
            (b"200 result=-1\n",),
            "error",
            [b"ANSWER\n", *told("ERROR", '"AGICommandFailed: Asterisk answered -1: ANSWER"')],
            TRACED,
        ),
        (
            answer,
            (b"510 Invalid or unknown command\n",),
            "error",
            [
                b"ANSWER\n",
                *told("ERROR", '"AGIInvalidCommand: Asterisk does not know this command 510 : ANSWER"'),
            ],
            TRACED,
        ),
        (
            expand_a_line_end,
            (),
            "error",
            told(
                "ERROR",
                '"AGICommandRefused: a command must not hold a line end or NUL: NOOP a nb"',
            ),
            [*WARNED, *TRACED],
        ),
        (go_well, (b"",), "gone", [NOOP], QUIET),
        (retry_for_ever, (OK, b""), "gone", [NOOP, NOOP], QUIET),
        (
            go_well,
            (b"nonsense\n",),
            "badrequest",
            [NOOP, *told("BADREQUEST", '"CallOutOfStep: a line that answers nothing: b nonsense"')],
            QUIET,
        ),
        (
            run_out_of_time,
            (),
            "timeout",
            told("TIMEOUT", '"CallTimeout: script time-out of 60 s"'),
            WARNED,
        ),
        (be_stopped, (), "stopped", told("STOPPED", '"CallStopped: the worker must end"'), WARNED),
        (
            miss_the_database,
            (),
            "dbdown",
            told("DBDOWN", '"DatabaseUnavailable: database main is not available: connection refused"'),
            WARNED,
        ),
        (failing(Overloaded("full")), (), "overload", told("OVERLOAD", '"Overloaded: full"'), WARNED),
        (failing(ScriptNotFound("x")), (), "notfound", told("NOTFOUND", '"ScriptNotFound: x"'), WARNED),
        (failing(ScriptFailed("x")), (), "exit", told("EXIT", '"ScriptFailed: x"'), WARNED),
        (failing(LimitExceeded("x")), (), "limit", told("LIMIT", '"LimitExceeded: x"'), WARNED),
        (
            failing(UpstreamUnavailable("x")),
            (),
            "upstream",
            told("UPSTREAM", '"UpstreamUnavailable: x"'),
            WARNED,
        ),
        (
            failing(ToldFailure(b"FAILURE x\n")),
            (),
            "failure",
            told("FAILURE", '"ToldFailure: it said FAILURE x"'),
            WARNED,
        ),
        (failing(ToldFailure(b"failure\n", said_all=True)), (), "failure", [FAILURE], WARNED),
    ],
)
def test_how_calls_end(
    house: House,
    handler: Handler,
    replies: tuple[bytes, ...],
    outcome: str,
    heard: list[bytes],
    logged: list[tuple[str, bool]],
) -> None:
    """Each behaviour has its outcome; the dialplan hears of failures, the log of what needs a person."""
    ending = house.call(handler, replies)
    assert house.outcomes == [outcome]
    assert ending.heard == heard
    assert ending.failed is (FAILURE in heard)
    assert house.logged == logged


# ---- calls that reach no handler


def test_a_free_name_reaches_its_handler(tmp_path: Path) -> None:
    """A route that takes any text for a name is asked about none."""
    house = House(tmp_path / "access", route={"free_names": True})
    house.call(go_well, (OK,), script="hello\x1b")
    assert house.outcomes == ["ok"]


def unreachable(call: Call, context: Context) -> None:
    """Be a handler that nobody may reach."""
    raise AssertionError("a handler was called")


@pytest.mark.parametrize(
    ("script", "begin", "outcome", "error", "said"),
    [
        (
            "other",
            b"",
            "noroute",
            "no route matches the script, and there is no default",
            "no route matches the script and there is no default",
        ),
        (
            "hello/../etc",
            b"",
            "badrequest",
            "a script name must not hold '..'",
            "a script name must not hold ..",
        ),
        (
            "hello\x1b[2J",
            b"",
            "badrequest",
            "a script name must not hold control characters",
            "a script name must not hold control characters",
        ),
        (
            "",
            b"GET / HTTP/1.1\r\n\r\n",
            "badrequest",
            "RemoteProtocolError: not AGI: the first bytes are b'GET / HTTP/1.1\\r\\n\\r\\n'",
            "RemoteProtocolError: not AGI: the first bytes are b GET / HTTP/1.1 r n r n",
        ),
    ],
    ids=["no route", "dots", "control", "http"],
)
def test_calls_that_reach_no_handler(
    house: House, script: str, begin: bytes, outcome: str, error: str, said: str
) -> None:
    """A script that is not served fails in the dialplan, and the access line says why."""
    ending = house.call(unreachable, script=script, begin=begin)
    assert ending == Ending(True, told(outcome.upper(), f'"{said}"'))
    [line] = house.access
    assert (line["outcome"], line["route"], line["error"]) == (outcome, "", error)
    assert house.logged == QUIET


def test_a_probe_leaves_no_trace(house: House) -> None:
    """A connection that closes without a word is no call: no access line, no word in the log."""
    link = connect()
    running = link.run(house.dispatcher.serve)
    link.peer.close()
    assert running.result() is None
    gevent.sleep(0)
    assert house.access == []
    assert house.logged == QUIET


@pytest.mark.parametrize("outcome", ["denied", "overload"])
def test_a_call_that_is_refused(house: House, outcome: str) -> None:
    """A caller who is not served gets a failure and the reason without being heard, and an access line."""
    link = connect()
    running = link.run(lambda session: house.dispatcher.refuse(session, outcome, "not today, please"))
    link.say(environment("hello"))
    assert link.hear_all() == b"".join(told(outcome.upper(), '"not today please"'))
    link.peer.close()
    assert running.result() is True
    gevent.sleep(0)
    [line] = house.access
    assert (line["outcome"], line["script"], line["peer"]) == (outcome, "", "10.0.0.7")
    assert (line["error"], line["commands"]) == ("not today, please", "0")


def test_without_an_access_log(house: House) -> None:
    """A worker without access log serves all the same."""
    silent = Dispatcher(RouteTable([]), {}, {}, {}, house.log, [], "x-")
    link = connect()
    running = link.run(silent.serve)
    link.say(environment("hello"))
    assert link.hear_all().endswith(FAILURE)
    link.peer.close()
    assert running.result() is True


# ---- what the dialplan is sent to do

HANG_UP = OnError(ErrorAction.HANGUP)
SORRY = OnError(ErrorAction.GOTO, "sorry,s,1")
ELSEWHERE = OnError(ErrorAction.GOTO, "elsewhere,s,1")
GOTO_SORRY = [b"SET CONTEXT sorry\n", b"SET EXTENSION s\n", b"SET PRIORITY 1\n"]


@pytest.mark.parametrize(
    ("route", "general", "orders"),
    [
        (GO_ON, GO_ON, []),
        (HANG_UP, GO_ON, [b"HANGUP\n"]),
        (SORRY, GO_ON, GOTO_SORRY),
        (SORRY, HANG_UP, GOTO_SORRY),
        (GO_ON, HANG_UP, []),
    ],
)
def test_what_a_route_does_on_error(
    tmp_path: Path, route: OnError, general: OnError, orders: list[bytes]
) -> None:
    """A failure on a route sends the call where the route says, whatever is said in general."""
    house = House(tmp_path / "access.log", route={"on_error": route}, on_error=general)
    assert house.call(crash).heard == told("ERROR", '"ValueError: bug"', *orders)


@pytest.mark.parametrize(("general", "orders"), [(HANG_UP, [b"HANGUP\n"]), (SORRY, GOTO_SORRY)])
def test_what_becomes_of_calls_without_a_route(tmp_path: Path, general: OnError, orders: list[bytes]) -> None:
    """A call that finds no route, or is refused, is sent where all are sent."""
    house = House(tmp_path / "access.log", route={"on_error": ELSEWHERE}, on_error=general)
    lost = house.call(unreachable, script="other").heard
    assert lost[3:] == [*orders, FAILURE]
    link = connect()
    running = link.run(lambda session: house.dispatcher.refuse(session, "denied", "not in allow"))
    assert link.hear_all().splitlines(keepends=True)[3:] == [*orders, FAILURE]
    link.peer.close()
    running.result()


@pytest.mark.parametrize("ended", [do_nothing, go_well], ids=["nothing", "well"])
def test_a_call_that_went_well_is_sent_nowhere(tmp_path: Path, ended: Handler) -> None:
    """What is to be done on an error is done on errors alone."""
    house = House(tmp_path / "access.log", route={"on_error": HANG_UP}, on_error=HANG_UP)
    replies = (OK,) if ended is go_well else ()
    assert house.call(ended, replies).heard == [NOOP] * len(replies)


def test_a_dead_channel_is_sent_nowhere(tmp_path: Path) -> None:
    """A handler that fails after the hangup is told of, but there is no call that could go anywhere."""
    house = House(tmp_path / "access.log", route={"on_error": SORRY})

    def tidy_up_badly(call: Call, context: Context) -> None:
        try:
            call.noop()
        except CallHangup:
            raise ValueError("bug") from None

    assert house.call(tidy_up_badly, (HANGUP,)).heard == [NOOP, *BUG]
    assert (house.outcomes, house.access[0]["hangup"]) == (["error"], "yes")


def test_a_channel_found_dead_is_sent_nowhere(tmp_path: Path) -> None:
    """Without HANGUP (AGISIGHUP=no) a 511 says as well that there is no call that could go anywhere."""
    house = House(tmp_path / "access.log", route={"on_error": SORRY})
    heard = house.call(answer, (DEAD,)).heard
    assert (heard[0], len(heard), heard[-1]) == (b"ANSWER\n", 5, FAILURE)


def test_an_h_extension_is_sent_nowhere(tmp_path: Path) -> None:
    """A handler that fails after the call must not take the rest of its h extension with it."""
    house = House(tmp_path / "access.log", route={"on_error": SORRY})
    begin = environment("hello").replace(b"\n\n", b"\nagi_extension: h\n\n")
    assert house.call(crash, begin=begin).heard == BUG


def test_a_failure_that_was_told_whole(tmp_path: Path) -> None:
    """Where the dialplan knows everything already it gets the failure's line as it was said, and no order."""
    house = House(tmp_path / "access.log", route={"on_error": SORRY})
    ending = house.call(failing(ToldFailure(b"FAILURE of theirs\n", said_all=True)))
    assert ending == Ending(True, [b"FAILURE of theirs\n"])
    assert house.outcomes == ["failure"]


def test_the_whole_reason_is_one_piece(tmp_path: Path) -> None:
    """All that is said of a failure is one write, which our end of the connection follows."""
    house = House(tmp_path / "access.log", route={"on_error": SORRY})
    house.handler = crash
    link = connect(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    running = link.run(house.dispatcher.serve)
    link.say(environment("hello"))
    assert link.peer.recv(65536) == b"".join(told("ERROR", '"ValueError: bug"', *GOTO_SORRY))
    link.peer.close()
    running.result()


# ---- the settings of a route


def test_a_route_on_which_hangups_are_noted(tmp_path: Path) -> None:
    """The handler goes on behind a hangup as if nothing had been, and can see it."""
    house = House(tmp_path / "access.log", route={"raise_hangup": False})
    seen: list[bool] = []

    def log_the_call(call: Call, context: Context) -> None:
        call.noop()
        seen.append(call.hung_up)
        call.set_variable("LEFT", "yes")

    assert house.call(log_the_call, (HANGUP, OK)).heard == [NOOP, b"SET VARIABLE LEFT yes\n"]
    assert (seen, house.outcomes, house.access[0]["hangup"]) == ([True], ["ok"], "yes")
    assert house.logged == QUIET


@pytest.mark.parametrize("answered", [DEAD, b"200 result=-1\n", b"200 result=-1\nHANGUP\n"])
def test_a_noted_hangup_ends_the_call_all_the_same(tmp_path: Path, answered: bytes) -> None:
    """A handler that does not look, and sends what needs a live channel, has been hung up: no error."""
    house = House(tmp_path / "access.log", route={"raise_hangup": False})

    def play(call: Call, context: Context) -> None:
        call.noop()
        call.answer()

    ending = house.call(play, (OK if answered.endswith(b"HANGUP\n") else HANGUP, answered))
    assert (ending.heard, house.outcomes, house.logged) == ([NOOP, b"ANSWER\n"], ["hangup"], QUIET)


def test_a_route_with_clean_arguments(tmp_path: Path) -> None:
    """A line end in an argument becomes a space, and nothing was refused."""
    house = House(tmp_path / "access.log", route={"clean_arguments": True})
    assert house.call(expand_a_line_end, (OK,)).heard == [b'NOOP "a b"\n']
    assert "refused" not in house.access[0]


def test_refused_commands_are_counted(house: House) -> None:
    """The access line tells of commands that the guard held back, though the handler went on."""

    def try_twice(call: Call, context: Context) -> None:
        for bad in ("a\n", "b\0"):
            try:
                call.noop(bad)
            except AGICommandRefused:
                continue
        call.noop()

    assert house.call(try_twice, (OK,)).heard == [NOOP]
    [line] = house.access
    assert (line["outcome"], line["refused"], line["commands"]) == ("ok", "2", "1")
    assert "error" not in line


# ---- handlers that give their call back


def test_a_call_given_back(house: House) -> None:
    """The dialplan goes on at once, the handler goes on too, and the access line knows both times."""
    link = connect()
    go_on = gevent.event.Event()

    def work_on(call: Call, context: Context) -> None:
        call.noop()
        call.finish()
        go_on.wait()

    house.handler = work_on
    running = link.run(house.dispatcher.serve)
    link.say(environment("hello"))
    assert link.hear_line() == NOOP
    link.say(OK)
    assert link.hear_all() == b""
    assert not running.is_over
    link.peer.close()
    go_on.set()
    assert running.result() is False
    gevent.sleep(0)
    [line] = house.access
    assert (line["outcome"], line["commands"]) == ("ok", "1")
    assert 0 <= float(line["held_ms"]) <= float(line["total_ms"])


def finish_and_crash(call: Call, context: Context) -> None:
    """Have a bug where the dialplan does not see it any more."""
    call.finish()
    raise ValueError("bug")


def finish_and_command(call: Call, context: Context) -> None:
    """Forget that the call was given back."""
    call.finish()
    call.noop()


def finish_and_run_out(call: Call, context: Context) -> None:
    """Take too long without the call."""
    call.finish()
    raise CallTimeout("script", 60.0)


@pytest.mark.parametrize(
    ("handler", "outcome", "logged"),
    [
        (finish_and_crash, "error", TRACED),
        (finish_and_command, "error", TRACED),
        (finish_and_run_out, "timeout", WARNED),
    ],
)
def test_a_failure_behind_the_call(
    tmp_path: Path, handler: Handler, outcome: str, logged: list[tuple[str, bool]]
) -> None:
    """What goes wrong after finish() is for the log and the access line; the dialplan is told nothing."""
    house = House(tmp_path / "access.log", route={"on_error": SORRY})
    assert house.call(handler) == Ending(True, [])
    assert (house.outcomes, house.logged) == ([outcome], logged)
    assert "held_ms" in house.access[0]


def test_a_command_behind_the_call_can_be_caught(house: House) -> None:
    """A handler that shares code with others may find out that there is no call any more."""

    def try_it(call: Call, context: Context) -> None:
        call.finish()
        with pytest.raises(AGICallFinished):
            call.noop()

    assert house.call(try_it) == Ending(False, [])
    assert house.outcomes == ["ok"]


# ---- what handlers print


def test_what_a_handler_prints_names_its_call(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Printed lines carry the reference of their call, and the last one is logged without its end too."""
    caplog.set_level(logging.INFO, "fastagi_pool")
    lines = PrintedLines()

    def talk(call: Call, context: Context) -> None:
        assert current_call.get() == call.ref
        print("hello", file=lines)
        print("no end", end="", file=lines)

    for _ in range(2):
        house.call(talk)
    assert [record.getMessage() for record in caplog.records] == [
        f"call=6a01-2a-{number} printed: {text}" for number in (1, 2) for text in ("hello", "no end")
    ]


# ---- limits of the route


def test_a_real_limit_ends_a_real_handler(house: House) -> None:
    """A handler that waits is interrupted when its limit ends, and the dialplan is told."""
    link = connect()
    house.handler = lambda call, context: gevent.sleep(5.0)
    running = link.run(house.dispatcher.serve)
    link.say(environment("hello"))
    gevent.sleep(0.001)
    in_hub(lambda: link.session.expire(link.session.deadline_s))
    assert link.hear_all() == b"".join(told("TIMEOUT", '"CallTimeout: script time-out of 60 s"'))
    link.peer.close()
    assert running.result() is True
    gevent.sleep(0)
    assert house.access[0]["error"] == "CallTimeout: script time-out of 60 s"


# ---- what is written


def test_the_access_line_of_a_call(house: House) -> None:
    """The line holds what is known of the call at its end."""
    house.call(go_well, (OK,), script="hello-world?x=1")
    [line] = house.access
    times = {name: line.pop(name) for name in CLOCKS}
    assert line == {
        "worker": "3",
        "gen": "1",
        "pid": "42",
        "call": "6a01-2a-1",
        "route": "greeting",
        "script": "hello-world",
        "outcome": "ok",
        "hangup": "no",
        "commands": "1",
        "peer": "10.0.0.7",
        "uniqueid": "1700000000.1",
        "callerid": "100",
    }
    assert all(float(text) >= 0 for text in times.values())


def test_a_hangup_that_was_handled_is_still_told(house: House) -> None:
    """A call that went well although the caller hung up shows both."""
    house.call(go_on_after_the_hangup, (HANGUP, OK))
    [line] = house.access
    assert (line["outcome"], line["hangup"]) == ("ok", "yes")


def test_references_are_unique(house: House) -> None:
    """Every call of a worker has a reference of its own, which its handler knows."""
    seen: list[str] = []
    for _ in range(20):
        house.call(lambda call, context: seen.append(call.ref))
    assert len(set(seen)) == 20
    assert [line["call"] for line in house.access] == seen
    assert all(ref.startswith("6a01-2a-") for ref in seen)


def test_the_log_of_a_failure(house: House) -> None:
    """The line in the log leads to the call and to the traceback of what the handler did."""
    house.call(crash)
    [record] = house.records.records
    assert record.getMessage() == "call=6a01-2a-1 route=greeting failed: ValueError: bug"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


def test_what_a_handler_logs_names_its_call(house: House) -> None:
    """Lines of handlers carry the reference of their call."""
    house.call(lambda call, context: context.log.warning("seen %s", call.request.callerid))
    assert [record.getMessage() for record in house.records.records] == ["call=6a01-2a-1 seen 100"]


# ---- what a handler gets, and what it leaves


def test_what_a_handler_gets(house: House) -> None:
    """A handler finds its captures, its options, and what the worker's calls share."""
    seen: list[object] = []

    def look(call: Call, context: Context) -> None:
        seen.extend([call.captures["1"], call.request.query["x"], context.options["colour"]])
        context.state["shared"] += 1

    house.call(look, script="hello-zoe?x=7")
    assert seen == ["-zoe", "7", "red"]
    assert house.state == {"shared": 2}


def test_connections_left_open_are_given_back(tmp_path: Path, database: Database) -> None:
    """What a handler leaves open is rolled back, reported, and there for the next call."""
    house = House(tmp_path / "access.log", {"main": database})

    def forget(call: Call, context: Context) -> None:
        context.connect().execute(text("INSERT INTO caller VALUES ('lost')"))

    def count(call: Call, context: Context) -> None:
        with context.connect() as connection:
            counts.append(connection.execute(text("SELECT count(*) FROM caller")).scalar())

    counts: list[object] = []
    house.call(forget)
    house.call(count)
    assert house.outcomes == ["ok", "ok"]
    assert counts == [0]
    [record] = house.records.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == "call=6a01-2a-1 route=greeting left 1 database connections open"


def test_a_crash_leaves_the_database_clean(tmp_path: Path, database: Database) -> None:
    """A handler that fails inside a transaction has written nothing, and holds nothing."""
    house = House(tmp_path / "access.log", {"main": database})

    def fail(call: Call, context: Context) -> None:
        with context.begin() as connection:
            connection.execute(text("INSERT INTO caller VALUES ('lost')"))
            raise ValueError("bug")

    house.call(fail)
    with database.lease().connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM caller")).scalar() == 0
    assert float(house.access[0]["db_ms"]) > 0


def test_a_route_waits_for_no_database_that_is_away(tmp_path: Path) -> None:
    """A route whose database is known to be away fails at once, and its handler is not called."""
    database = Database(DatabaseSettings("main", (f"sqlite:///{tmp_path}/nowhere/test.db",)))
    with pytest.raises(DatabaseUnavailable):
        database.open()
    house = House(tmp_path / "access.log", {"main": database}, {"databases": ("main",)})
    ending = house.call(unreachable)
    reason = "it did not answer a moment ago and the route needs it"
    error = f'"DatabaseUnavailable: database main is not available: {reason}"'
    assert ending == Ending(True, told("DBDOWN", error))
    assert house.outcomes == ["dbdown"]
    assert house.logged == WARNED
    database.close()


def test_an_error_that_cannot_say_what_it_is(house: House) -> None:
    """An exception whose own text cannot be had is a failure like any other, told and recorded."""

    class Speechless(Exception):
        def __str__(self) -> str:
            raise RuntimeError("on purpose")

    def handler(call: Call, context: Context) -> None:
        raise Speechless

    assert house.call(handler).heard[-1] == b"failure\n"
    assert house.outcomes == ["error"]


# ---- who is let in


class Turnstile:
    """A door that notes who goes in and out, and lets in whom it wants."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.why_not = ""

    def admit(self, session: Session, lane: str) -> None:
        """Let it in, or not."""
        if self.why_not:
            raise Overloaded(self.why_not)
        self.passed.append(f"in {lane} after {session.commands} commands")

    def leave(self, session: Session) -> None:
        """Let it go."""
        self.passed.append("out")


def fail(call: Call, context: Context) -> None:
    """Have a bug."""
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("handler", [go_well, fail, end_its_greenlet, be_stopped])
def test_a_place_is_given_back(handler: Handler, tmp_path: Path) -> None:
    """Every call is admitted once, in the lane of its route, and leaves, however it ends."""
    door = Turnstile()
    house = House(tmp_path / "access.log", route={"lane": "slow"}, door=door)
    house.call(handler, (OK,) if handler is go_well else ())
    assert door.passed == ["in slow after 0 commands", "out"]


@pytest.mark.parametrize("begin", [b"agi_network: yes\nagi_network_script: other\n\n", b"nonsense\n\n"])
def test_who_wants_nothing_of_ours_takes_no_place(begin: bytes, tmp_path: Path) -> None:
    """A call that finds no route, or is none, is not admitted."""
    door = Turnstile()
    assert House(tmp_path / "access.log", door=door).call(unreachable, begin=begin).failed
    assert door.passed == ["out"]


def test_no_place(tmp_path: Path) -> None:
    """A call that is not let in hears why, and its handler is not called."""
    door = Turnstile()
    door.why_not = "all places of lane 'slow' are taken"
    house = House(tmp_path / "access.log", door=door)
    ending = house.call(unreachable)
    assert ending == Ending(True, told("OVERLOAD", '"Overloaded: all places of lane slow are taken"'))
    assert house.outcomes == ["overload"]
    assert door.passed == ["out"]


def test_a_place_is_free_before_the_failure_is_told(tmp_path: Path) -> None:
    """Whoever waits for a place need not wait until Asterisk has read why this call failed."""
    door = Turnstile()
    house = House(tmp_path / "access.log", door=door)
    house.handler = fail
    link = connect()
    running = link.run(house.dispatcher.serve)
    link.say(environment("hello"))
    assert link.hear_line().startswith(b"SET VARIABLE FAGI_STATUS")
    assert (door.passed[-1], running.is_over) == ("out", False)
    link.peer.close()
    assert running.result() is True


def test_requests_that_end_workers(tmp_path: Path) -> None:
    """A request in quarantine is refused, takes no place, and others of the same route are served."""
    quarantine = Quarantine.create(tmp_path / "quarantine")
    request = Request({"agi_network_script": "hello-deadly", "agi_callerid": "100"})
    quarantine.blame(fingerprint(request), monotonic(), 1, 600.0)
    door = Turnstile()
    house = House(tmp_path / "access.log", door=door, quarantine=quarantine)
    ending = house.call(unreachable, script="hello-deadly")
    error = '"Quarantined: requests like this one have ended workers and are not tried for a while"'
    assert ending == Ending(True, told("QUARANTINED", error))
    assert (house.outcomes, door.passed) == (["quarantined"], ["out"])
    assert house.logged == WARNED
    assert not house.call(go_well, (OK,), script="hello-harmless").failed


# ---- what is done later


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An empty journal."""
    journal = Journal.open(tmp_path / "journal.db", 8 << 20, tmp_path / "journal.waiting")
    yield journal
    journal.close()


class Later:
    """A house whose route can be done later.

    Attributes:
        house: The house.
        journal: Where its calls go.
        deferrals: The way there.
    """

    def __init__(self, folder: Path, journal: Journal, database: Database, **route: Any) -> None:
        self.journal = journal
        self.deferrals = Deferrals(journal, gevent.get_hub(), "node/{}".format)
        self.house = House(
            folder / "access.log",
            {"main": database},
            {"deferred_by": "main", **route},
            deferrals=self.deferrals,
        )

    @property
    def written(self) -> list[tuple[str, str, str, bool]]:
        """What stands in the journal: reference, route, peer, and whether it had begun."""
        return [(each.ref, each.route, each.peer, each.begun) for each in self.journal.all()]


@pytest.fixture
def later(tmp_path: Path, journal: Journal, database: Database) -> Iterator[Later]:
    """A house whose route can be done later; its database is there."""
    made = Later(tmp_path, journal, database)
    yield made
    made.deferrals.close()


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Database]:
    """A database that is known to be away."""
    database = Database(DatabaseSettings("main", (f"sqlite:///{tmp_path}/nowhere/test.db",)))
    with pytest.raises(DatabaseUnavailable):
        database.open()
    yield database
    database.close()


DEFERRED = Ending(False, [])


def test_a_database_that_is_away_at_the_beginning(tmp_path: Path, journal: Journal, away: Database) -> None:
    """The call is written down as it came and is a success to the dialplan; its handler is not called."""
    later = Later(tmp_path, journal, away)
    before_s = time.time()
    assert later.house.call(unreachable) == DEFERRED
    later.deferrals.close()
    assert later.written == [("6a01-2a-1", "greeting", "10.0.0.7", False)]
    [entry] = journal.all()
    assert "agi_uniqueid: 1700000000.1" in entry.environment
    assert before_s <= entry.received_s <= time.time()
    assert (later.house.outcomes, later.house.logged) == (["deferred"], [])


def test_nobody_overtakes_the_backlog(later: Later) -> None:
    """While calls wait for a database that is back already, a new one joins them: order is kept."""
    later.journal.append([NewEntry("main", "greeting", "before", ("agi_network: yes",), 1.0, 1.0)])
    assert later.house.call(unreachable) == DEFERRED
    assert [ref for ref, *_ in later.written] == ["before", "6a01-2a-1"]
    assert later.house.outcomes == ["deferred"]


def test_calls_that_wait_for_another_database(later: Later) -> None:
    """A backlog of one database defers no call of another."""
    later.journal.append([NewEntry("other", "greeting", "before", ("agi_network: yes",), 1.0, 1.0)])
    assert not later.house.call(go_well, (OK,)).failed
    assert later.house.outcomes == ["ok"]


@pytest.mark.parametrize("kind", [DatabaseUnavailable, DatabaseBusy])
def test_a_database_that_goes_away_in_the_middle(kind: Any, later: Later) -> None:
    """A call whose database goes away while its handler runs is written down as one that had begun."""

    def handler(call: Call, context: Context) -> None:
        call.noop()
        raise kind("main", "it went away")

    assert later.house.call(handler, (OK,)) == Ending(False, [b"NOOP\n"])
    assert later.written == [("6a01-2a-1", "greeting", "10.0.0.7", True)]
    assert later.house.outcomes == ["deferred"]


def test_a_caller_who_leaves_meanwhile(later: Later) -> None:
    """A call whose database is away is written down, also if Asterisk has closed the connection by then."""

    def handler(call: Call, context: Context) -> None:
        try:
            call.noop()
        except CallEnded:
            pass
        raise DatabaseUnavailable("main", "it went away")

    assert later.house.call(handler, (b"",)).failed is False
    assert later.house.outcomes == ["deferred"]
    assert [begun for *_, begun in later.written] == [True]


def test_another_database_that_goes_away(later: Later) -> None:
    """Only the outage of its own database defers a route's calls: others are failures as ever."""

    def handler(call: Call, context: Context) -> None:
        raise DatabaseUnavailable("other", "it went away")

    ending = later.house.call(handler)
    assert ending.heard == told(
        "DBDOWN", '"DatabaseUnavailable: database other is not available: it went away"'
    )
    assert (later.house.outcomes, later.written) == (["dbdown"], [])


def test_another_database_that_the_route_needs(tmp_path: Path, later: Later, away: Database) -> None:
    """A deferrable route whose own database is there fails as ever while another that it needs is away."""
    databases = {"main": later.house.databases["main"], "other": away}
    route = {"deferred_by": "main", "databases": ("main", "other")}
    house = House(tmp_path / "other.log", databases, route, deferrals=later.deferrals)
    assert house.call(unreachable).failed
    assert house.outcomes == ["dbdown"]


@pytest.mark.parametrize("begun", [False, True])
def test_a_journal_that_takes_nothing(
    begun: bool, tmp_path: Path, journal: Journal, database: Database, away: Database
) -> None:
    """A call that could not be written down is a failure: never a success that nobody will make true."""
    later = Later(tmp_path, journal, database if begun else away)
    later.deferrals.close()

    def handler(call: Call, context: Context) -> None:
        raise DatabaseUnavailable("main", "it went away")

    ending = later.house.call(handler if begun else unreachable)
    assert ending.heard[0] == b"SET VARIABLE FAGI_STATUS DBDOWN\n"
    assert ending.heard[-1] == b"failure\n"
    assert (later.house.outcomes, later.house.logged, later.written) == (["dbdown"], WARNED, [])


def test_a_route_that_is_not_done_later(tmp_path: Path, journal: Journal, away: Database) -> None:
    """Without a declaration nothing is written down: the handler may have to answer, and fails."""
    later = Later(tmp_path, journal, away, deferred_by="", databases=("main",))
    assert later.house.call(unreachable).failed
    later.deferrals.close()
    assert (later.house.outcomes, later.written) == (["dbdown"], [])


def test_other_failures_are_not_done_later(later: Later) -> None:
    """A bug is a bug: what fails for another reason than its database is told, not tried again."""
    assert later.house.call(fail).failed
    assert (later.house.outcomes, later.written) == (["error"], [])


def test_a_call_that_was_given_back_before(later: Later) -> None:
    """A handler that has closed the connection before is done later as any other."""

    def handler(call: Call, context: Context) -> None:
        call.finish()
        raise DatabaseUnavailable("main", "it went away")

    assert later.house.call(handler) == DEFERRED
    assert (later.house.outcomes, len(later.written)) == (["deferred"], 1)


def test_a_place_is_kept_until_it_is_written_down(tmp_path: Path, later: Later) -> None:
    """Calls that wait for the disk keep their places: a slow disk must not let any number in."""
    door = Turnstile()
    house = House(
        tmp_path / "door.log",
        later.house.databases,
        {"deferred_by": "main"},
        door=door,
        deferrals=later.deferrals,
    )
    later.journal.append([NewEntry("main", "greeting", "before", ("agi_network: yes",), 1.0, 1.0)])
    assert house.call(unreachable) == DEFERRED
    assert door.passed == ["in default after 0 commands", "out"]


# ---- what is shown of a call


def test_others_see_whose_call_it_is(house: House, tmp_path: Path) -> None:
    """Reference, script, channel and route stand in the call's row while the handler runs."""
    path = tmp_path / "calls" / "0"
    board = CallBoard.create(path, 0, 1, 1)
    seen: list[CallFacts] = []
    house.handler = lambda call, context: seen.extend(read_calls(path, 0))
    link = connect(row=board.take())
    running = link.run(house.dispatcher.serve)
    link.say(environment("hello-world"))
    link.hear_all()
    link.peer.close()
    running.result()
    [facts] = seen
    assert facts.state is CallState.SCRIPT
    assert (facts.ref, facts.route, facts.script) == ("6a01-2a-1", "greeting", "hello-world")
    assert (facts.uniqueid, facts.callerid, facts.peer) == ("1700000000.1", "100", "10.0.0.7")


def test_time_in_a_queue_is_on_its_own_clock(house: House) -> None:
    """What a handler waits for a place is told as queued, and not as its own time."""

    def wait_for_a_place(call: Call, context: Context) -> None:
        with context.queueing():
            gevent.sleep(0.02)

    house.call(wait_for_a_place)
    [line] = house.access
    queued_ms, script_ms, total_ms = (float(line[name]) for name in ("queued_ms", "script_ms", "total_ms"))
    assert queued_ms >= 20.0
    # Each is rounded to a tenth.
    assert queued_ms + script_ms < total_ms + 0.2


def test_every_keeper_of_records_gets_each(house: House) -> None:
    """The record of a call goes to all who keep records."""
    kept: list[str] = []

    class Keeper:
        def write(self, record: CallRecord, wall_s: float) -> None:
            kept.append(record.outcome)

    dispatcher = Dispatcher(RouteTable([]), {}, {}, {}, house.log, [Keeper(), Keeper()], "x-")
    link = connect()
    running = link.run(lambda session: dispatcher.refuse(session, "denied", "no"))
    link.hear_all()
    link.peer.close()
    running.result()
    assert kept == ["denied", "denied"]


# ---- slow calls


def test_a_call_that_is_slow_is_told_with_its_stack(house: House) -> None:
    """A call that is found slow while it runs is told once, with where it is and what it has said."""
    house.route = {"slow_after_s": 0.001, "mask_digits": True}
    house.__post_init__()
    enough = gevent.event.Event()

    def dawdle(call: Call, context: Context) -> None:
        call.noop()
        enough.wait()

    house.handler = dawdle
    link = connect()
    running = link.run(house.dispatcher.serve)
    link.say(environment("hello"))
    command = link.hear_line().decode().rstrip()
    link.say(OK)
    gevent.sleep(0.01)
    assert list(house.dispatcher.calls().values()) == [link.session]
    in_hub(lambda: house.dispatcher.report_slow(link.session))
    enough.set()
    link.hear_all()
    link.peer.close()
    running.result()
    [slow] = house.slow
    assert (slow.ref, slow.route, slow.script, slow.uniqueid) == (
        "6a01-2a-1",
        "greeting",
        "hello",
        "1700000000.1",
    )
    assert (slow.state, slow.sent, slow.masked) == ("in script", 1, True)
    assert slow.stack is not None
    assert "enough.wait()" in slow.stack
    assert slow.script_s >= 0.001
    [said] = slow.commands
    assert said.line == command
    assert said.took_s is not None
    assert 0 < said.at_s < slow.script_s + slow.asterisk_s + slow.queued_s
    assert house.dispatcher.calls() == {}


def test_a_slow_call_that_nobody_noticed_is_told_at_its_end(house: House) -> None:
    """A call that blocked the worker, so that nobody could look, is told when it is over, without a stack."""
    house.route = {"slow_after_s": 0.001}
    house.__post_init__()

    def block(call: Call, context: Context) -> None:
        until_s = time.monotonic() + 0.002
        while time.monotonic() < until_s:
            pass

    house.call(block)
    [slow] = house.slow
    assert (slow.state, slow.stack, slow.masked) == ("ending", None, False)
    house.call(do_nothing)
    assert len(house.slow) == 1


def test_the_last_statement_of_a_slow_call(house: House, database: Database) -> None:
    """The statement is told with placeholders, and the time that it took as part of the script's."""
    house.databases["main"] = database
    house.route = {"slow_after_s": 1e-9}
    house.__post_init__()

    def store(call: Call, context: Context) -> None:
        with context.begin() as connection:
            connection.execute(text("INSERT INTO caller (name) VALUES (:name)"), {"name": "Alice"})

    house.call(store)
    [slow] = house.slow
    assert slow.statement == "INSERT INTO caller (name) VALUES (?)"
    assert 0 < slow.database_s < slow.script_s


def test_a_call_that_has_ended_cannot_be_described(house: House) -> None:
    """Who asks too late is told so."""
    link = connect()
    with pytest.raises(KeyError):
        house.dispatcher.describe(link.session)
    link.session.close()
    link.peer.close()
