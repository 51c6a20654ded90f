"""fastagi_pool.dispatch: what becomes of a call, whatever its handler and its caller do.

A real session on a real hub; the test plays Asterisk, and reads what the dialplan would see.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import pytest
from sqlalchemy import text
from test_session import Link, connect, in_hub

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.database import Database, DatabaseSettings
from fastagi_pool.dispatch import Dispatcher, Handler
from fastagi_pool.errors import CallHangup, CallStopped, CallTimeout, DatabaseUnavailable
from fastagi_pool.logs import AccessLog, LogFile
from fastagi_pool.routes import Route, RouteKind, RouteTable

IDENTITY = "worker=3 gen=1 pid=42"
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
    """A dispatcher with one route, ``hello``, and all it writes."""

    path: Path
    databases: dict[str, Database] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.records = Records()
        self.log = logging.Logger("house")
        self.log.addHandler(self.records)
        self.state: dict[str, Any] = {"shared": 1}
        self.handler: Handler = lambda call, context: None
        file = LogFile(str(self.path))
        route = Route(
            "greeting", RouteKind.GLOB, "hello*", "x:y", options={"colour": "red"}, databases=self.needs
        )
        self.dispatcher = Dispatcher(
            table=RouteTable([route]),
            handlers={"greeting": lambda call, context: self.handler(call, context)},
            databases=self.databases,
            state=self.state,
            log=self.log,
            access=AccessLog(file, IDENTITY, gevent.get_hub().loop.run_callback),
            ref_prefix="6a01-2a-",
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


NOOP = b"NOOP\n"
FAILURE = b"failure\n"
QUIET: list[tuple[str, bool]] = []
WARNED = [("WARNING", False)]
TRACED = [("ERROR", True)]
DEAD = b"511 Command Not Permitted on a dead channel or intercept routine\n"


@pytest.mark.parametrize(
    ("handler", "replies", "outcome", "heard", "logged"),
    [
        (go_well, (OK,), "ok", [NOOP], QUIET),
        (do_nothing, (), "ok", [], QUIET),
        (crash, (), "error", [FAILURE], TRACED),
        (crash_after_a_command, (OK,), "error", [NOOP, FAILURE], TRACED),
        (leave_the_program, (), "error", [FAILURE], TRACED),
        (interrupt, (), "error", [FAILURE], TRACED),
        (end_its_greenlet, (), "error", [FAILURE], TRACED),
        (go_well, (HANGUP,), "hangup", [NOOP], QUIET),
        (retry_for_ever, (OK, OK, HANGUP), "hangup", [NOOP] * 3, QUIET),
        (go_on_after_the_hangup, (HANGUP, OK), "ok", [NOOP, b"SET VARIABLE LEFT yes\n"], QUIET),
        (answer_the_dead, (HANGUP, DEAD), "hangup", [NOOP, b"ANSWER\n"], QUIET),
        (answer, (DEAD,), "error", [b"ANSWER\n", FAILURE], TRACED),
        (answer, (b"200 result=-1\n",), "error", [b"ANSWER\n", FAILURE], TRACED),
        (answer, (b"510 Invalid or unknown command\n",), "error", [b"ANSWER\n", FAILURE], TRACED),
        (go_well, (b"",), "gone", [NOOP], QUIET),
        (retry_for_ever, (OK, b""), "gone", [NOOP, NOOP], QUIET),
        (go_well, (b"nonsense\n",), "badrequest", [NOOP, FAILURE], QUIET),
        (run_out_of_time, (), "timeout", [FAILURE], WARNED),
        (be_stopped, (), "stopped", [FAILURE], WARNED),
        (miss_the_database, (), "dbdown", [FAILURE], WARNED),
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
    """Each behaviour has its outcome; the dialplan hears of failures only, the log of what needs a person."""
    ending = house.call(handler, replies)
    assert house.outcomes == [outcome]
    assert ending.heard == heard
    assert ending.failed is (FAILURE in heard)
    assert house.logged == logged


# ---- calls that reach no handler


def unreachable(call: Call, context: Context) -> None:
    """Be a handler that nobody may reach."""
    raise AssertionError("a handler was called")


@pytest.mark.parametrize(
    ("script", "begin", "outcome", "error"),
    [
        ("other", b"", "noroute", "no route matches the script, and there is no default"),
        ("hello/../etc", b"", "badrequest", "a script name must not hold '..'"),
        ("hello\x1b[2J", b"", "badrequest", "a script name must not hold control characters"),
        ("", b"GET / HTTP/1.1\r\n\r\n", "badrequest", "RemoteProtocolError: not AGI"),
    ],
    ids=["no route", "dots", "control", "http"],
)
def test_calls_that_reach_no_handler(
    house: House, script: str, begin: bytes, outcome: str, error: str
) -> None:
    """A script that is not served fails in the dialplan, and the access line says why."""
    ending = house.call(unreachable, script=script, begin=begin)
    assert ending == Ending(True, [FAILURE])
    [line] = house.access
    assert (line["outcome"], line["route"]) == (outcome, "")
    assert line["error"].startswith(error)
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


def test_an_address_that_may_not_call(house: House) -> None:
    """A caller who is not allowed gets a failure without being heard, and an access line."""
    link = connect()
    running = link.run(house.dispatcher.deny)
    link.say(environment("hello"))
    assert link.hear_all() == FAILURE
    link.peer.close()
    assert running.result() is True
    gevent.sleep(0)
    [line] = house.access
    assert (line["outcome"], line["script"], line["peer"]) == ("denied", "", "10.0.0.7")


def test_without_an_access_log(house: House) -> None:
    """A worker without access log serves all the same."""
    silent = Dispatcher(RouteTable([]), {}, {}, {}, house.log, None, "x-")
    link = connect()
    running = link.run(silent.serve)
    link.say(environment("hello"))
    assert link.hear_all() == FAILURE
    link.peer.close()
    assert running.result() is True


# ---- limits of the route


def test_a_real_limit_ends_a_real_handler(house: House) -> None:
    """A handler that waits is interrupted when its limit ends, and the dialplan is told."""
    link = connect()
    house.handler = lambda call, context: gevent.sleep(5.0)
    running = link.run(house.dispatcher.serve)
    link.say(environment("hello"))
    gevent.sleep(0.001)
    in_hub(lambda: link.session.expire(link.session.deadline_s))
    assert link.hear_all() == FAILURE
    link.peer.close()
    assert running.result() is True
    gevent.sleep(0)
    assert house.access[0]["error"] == "CallTimeout: script time-out of 60 s"


# ---- what is written


def test_the_access_line_of_a_call(house: House) -> None:
    """The line holds what is known of the call at its end."""
    house.call(go_well, (OK,), script="hello-world?x=1")
    [line] = house.access
    times = {name: line.pop(name) for name in ("total_ms", "asterisk_ms", "script_ms", "db_ms")}
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
    house = House(tmp_path / "access.log", {"main": database}, needs=("main",))
    ending = house.call(unreachable)
    assert ending == Ending(True, [FAILURE])
    assert house.outcomes == ["dbdown"]
    assert house.logged == WARNED
    database.close()
