"""fastagi_pool.stage: handlers played in this process, as ``agi_call`` does it."""

from __future__ import annotations

import functools
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import gevent
import pytest
from sqlalchemy import text

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.errors import (
    AGICommandRefused,
    AGIDeadChannel,
    CallHangup,
    CallStopped,
    CallTimeout,
    ConfigError,
    DatabaseUnavailable,
)
from fastagi_pool.stage import Stage
from fastagi_pool.testing import HANGUP, AgiStatus, Caller, Wire

#: So long a handler is waited for that does not end.
SHORT_S: Final = 0.05
#: So long one is that has something to say before.
ENOUGH_S: Final = 0.5
#: Far longer than anything here takes; a handler that sleeps so long is one that does not end.
FOREVER_S: Final = 60.0

_WITH_SETUP: Final = """
from sqlalchemy import text

said = []

def setup(context):
    said.append("setup")
    context.state["calls"] = 0

def teardown(context):
    said.append(f"teardown after {context.state['calls']}")

def count(call, context):
    context.state["calls"] += 1
    call.verbose(f"call {context.state['calls']}")
"""
_WITH_TABLE: Final = """
from sqlalchemy import text

def setup(context):
    with context.begin() as database:
        database.execute(text("CREATE TABLE calls (script VARCHAR(80))"))

def teardown(context):
    with context.begin() as database:
        database.execute(text("DROP TABLE calls"))

def note(call, context):
    with context.begin() as database:
        database.execute(text("INSERT INTO calls VALUES (:script)"), {"script": call.request.script})
        number = database.execute(text("SELECT COUNT(*) FROM calls")).scalar()
    call.verbose(f"call {number}")
"""
_CONFIGURATION: Final = """
runtime_dir: ${FOLDER}
python_path: ["."]
routes:
  - script: greet
    handler: staged_greeting:greet
    options: {greeting: Hello}
  - regex: greet/(?P<name>[a-z]+)
    handler: staged_greeting:greet
    options: {greeting: Dear}
"""
_GREETING: Final = """
def greet(call, context):
    call.verbose(f"{context.options['greeting']} {call.captures.get('name', 'you')}")
"""


@pytest.fixture
def make_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], ModuleType]]:
    """Give a function that makes a module of this name with this text; it is forgotten with the test."""
    names: list[str] = []
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, code: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(code)
        importlib.invalidate_caches()
        names.append(name)
        return importlib.import_module(name)

    yield make
    for name in names:
        sys.modules.pop(name, None)


# ---- handlers


def well(call: Call, context: Context) -> None:
    """Do what most handlers do."""
    call.answer()
    digits = call.get_data("menu", timeout_s=1, max_digits=1).digits
    call.set_variable("CHOICE", digits)
    call.exec("Goto", f"menu,{digits},1")


def wrong(call: Call, context: Context) -> None:
    """Fail."""
    call.verbose("so far")
    _fail()


def _fail() -> None:
    raise LookupError("not to be found")


def endless(call: Call, context: Context) -> None:
    """Say something, and do not end."""
    call.answer()
    gevent.sleep(FOREVER_S)


def long_talk(call: Call, context: Context) -> None:
    """Use commands that the caller may be gone in, and clean up."""
    try:
        call.answer()
        call.stream_file("welcome", "12")
        call.get_data("pin", timeout_s=1, max_digits=4)
        call.exec("Queue", "service")
    finally:
        call.set_variable("CLEANED", "1")


# ---- a call that goes well


def test_the_result_of_a_good_handler(agi_call: Stage) -> None:
    """All that a handler did to the channel is in the result, and what the access log would say."""
    result = agi_call(well, presses=["2"])

    assert (result.status, result.outcome, result.error, result.connected) == (
        AgiStatus.SUCCESS,
        "ok",
        None,
        True,
    )
    assert result.commands == [
        "ANSWER",
        "GET DATA menu 1000 1",
        "SET VARIABLE CHOICE 2",
        "EXEC Goto menu,2,1",
    ]
    assert [command.reply for command in result.executed] == [
        "200 result=0",
        "200 result=2",
        "200 result=1",
        "200 result=0",
    ]
    assert (result.variables, result.location) == ({"CHOICE": "2"}, ("menu", "2", "1"))
    assert (result.hung_up, result.faults) == (False, ())


def test_the_record_of_a_call(agi_call: Stage) -> None:
    """The record says who called what, and how often the handler spoke."""
    caller = Caller(number="200", uniqueid="17.4")
    record = agi_call(well, "menu/main?x=1", route={"name": "main", "default": True}, caller=caller).record

    assert record is not None
    assert (record.route, record.script, record.outcome, record.commands) == ("main", "menu/main", "ok", 4)
    assert (record.callerid, record.uniqueid, record.error) == ("200", "17.4", "")
    assert record.held_s is None


def test_what_the_handler_is_told(agi_call: Stage) -> None:
    """Script, query, arguments, caller, variables and Asterisk's database reach the handler."""

    def tell(call: Call, context: Context) -> None:
        request = call.request
        call.verbose(f"{request.script} {dict(request.query)} {request.arguments} {request.callerid}")
        call.verbose(f"{call.get_variable('X')} {call.database_get('family', 'key')}")

    result = agi_call(
        tell,
        "a/b?did=7",
        "first",
        "",
        caller=Caller(number="200"),
        variables={"X": "given"},
        database={"family/key": "kept"},
    )

    assert result.console == ("a/b {'did': '7'} ('first', '') 200", "given kept")
    assert result.database == {"family/key": "kept"}


def test_a_handler_that_needs_no_name(agi_call: Stage) -> None:
    """Whatever can be called with a call and a context is a handler."""
    partial = functools.partial(lambda word, call, context: call.verbose(word), "partial")

    assert agi_call(partial).console == ("partial",)


def test_waiting_in_a_handler(agi_call: Stage) -> None:
    """A handler may wait as in a worker, before, between and after its commands."""

    def wait(call: Call, context: Context) -> None:
        gevent.sleep(0.001)
        call.verbose("one")
        gevent.sleep(0.001)
        call.verbose("two")
        gevent.sleep(0.001)

    result = agi_call(wait)

    assert (result.console, result.outcome) == (("one", "two"), "ok")


@pytest.mark.parametrize("wire", [Wire(piece_bytes=1), Wire(piece_bytes=7), Wire(delay_s=0.001)])
def test_any_wire(agi_call: Stage, wire: Wire) -> None:
    """Answers in pieces and a slow reader change nothing."""
    result = agi_call(well, wire=wire, presses=["2"])

    assert (result.outcome, result.variables, result.faults) == ("ok", {"CHOICE": "2"}, ())


def test_an_old_asterisk(agi_call: Stage) -> None:
    """A command that is too long for this version is refused at the handler's line."""

    def say(call: Call, context: Context) -> None:
        call.verbose("x" * 4000)

    assert agi_call(say).outcome == "ok"
    with pytest.raises(AGICommandRefused):
        agi_call(say, version="16.28.0")


# ---- a handler that fails


def test_an_exception_reaches_the_test(agi_call: Stage) -> None:
    """The test fails with the handler's own exception, whose traceback leads to the handler's line."""
    with pytest.raises(LookupError, match="not to be found") as caught:
        agi_call(wrong)

    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-2:] == ["wrong", "_fail"]


def test_an_exception_is_caught(agi_call: Stage) -> None:
    """Who asks for it gets the exception in the result, and what the dialplan is told of it."""
    result = agi_call(wrong, catch=True)

    assert isinstance(result.error, LookupError)
    assert (result.status, result.reason, result.outcome) == (
        AgiStatus.FAILURE,
        "the server said so",
        "error",
    )
    assert result.record is not None
    assert result.record.error == "LookupError: not to be found"
    assert result.variables == {
        "FAGI_STATUS": "ERROR",
        "FAGI_ERROR": "LookupError: not to be found",
        "FAGI_REF": result.record.ref,
    }
    assert (result.location, result.faults) == (("default", "100", "1"), ())


def test_one_failure_is_not_the_next_ones(agi_call: Stage) -> None:
    """A call knows nothing of what the one before it raised."""

    def first_fails(call: Call, context: Context) -> None:
        if context.state.setdefault("calls", 0):
            return
        context.state["calls"] = 1
        raise LookupError

    assert agi_call(first_fails, catch=True).outcome == "error"
    again = agi_call(first_fails)
    assert (again.outcome, again.error, again.variables) == ("ok", None, {})


@pytest.mark.parametrize(
    ("on_error", "location", "hung_up"),
    [
        ("continue", ("default", "100", "1"), False),
        ("hangup", ("default", "100", "1"), True),
        ("goto sorry,s,2", ("sorry", "s", "2"), False),
    ],
)
def test_on_error(agi_call: Stage, on_error: str, location: tuple[str, str, str], hung_up: bool) -> None:
    """After a failure the dialplan goes where the route says."""
    result = agi_call(wrong, route={"on_error": on_error}, catch=True)

    assert (result.status, result.location, result.hung_up) == (AgiStatus.FAILURE, location, hung_up)
    assert result.faults == ()


def test_script_limit(agi_call: Stage) -> None:
    """A handler that takes longer than its route permits is ended; nobody is surprised by an exception."""
    result = agi_call(endless, route={"script_timeout": "50ms"})

    assert (result.status, result.outcome) == (AgiStatus.FAILURE, "timeout")
    assert isinstance(result.error, CallTimeout)
    assert result.variables["FAGI_STATUS"] == "TIMEOUT"
    assert result.faults == ()


def test_a_handler_that_does_not_end(agi_call: Stage) -> None:
    """A handler without end is interrupted, and the test is told what it said until then."""
    with pytest.raises(TimeoutError) as caught:
        agi_call(endless, timeout_s=ENOUGH_S)

    assert str(caught.value) == "the handler did not end within 0.5 s; it said ['ANSWER']"


def test_a_handler_that_says_nothing(agi_call: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """Silence is told as silence, and by nothing else."""

    def silent(call: Call, context: Context) -> None:
        gevent.sleep(FOREVER_S)

    with pytest.raises(TimeoutError, match="it said \\[\\]"):
        agi_call(silent, timeout_s=SHORT_S)
    assert capsys.readouterr().err == ""


def test_a_handler_that_does_not_end_when_told(agi_call: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that swallows the interruption does not keep the test from ending, nor the next call."""
    monkeypatch.setattr("fastagi_pool.stage._LETTING_GO_S", SHORT_S)
    swallowed: list[BaseException] = []

    def stubborn(call: Call, context: Context) -> None:
        while not context.state.get("over"):
            try:
                gevent.sleep(FOREVER_S)
            except CallStopped as stopped:
                swallowed.append(stopped)

    with pytest.raises(TimeoutError):
        agi_call(stubborn, timeout_s=SHORT_S)
    assert len(swallowed) == 1
    assert agi_call(well).outcome == "ok"


def test_a_timeout_left_running(agi_call: Stage) -> None:
    """A time-out that one call left behind does not interrupt the next, however soon that follows."""

    def leave_or_wait(call: Call, context: Context) -> None:
        if context.state.setdefault("left", False):
            gevent.sleep(2 * SHORT_S)
        else:
            context.state["left"] = True
            gevent.Timeout(SHORT_S).start()

    agi_call(leave_or_wait)

    assert agi_call(leave_or_wait).outcome == "ok"


# ---- routes


def test_options_and_captures(agi_call: Stage) -> None:
    """A route's options and what its pattern caught reach the handler, whatever their type."""
    shared = ["a", "b"]
    route = {
        "regex": r"greet/(?P<name>\w+)",
        "options": {"word": "yes", "true": True, "deep": {"list": shared}, "again": shared},
    }

    def tell(call: Call, context: Context) -> None:
        call.verbose(f"{call.captures['name']} {context.options}")

    (line,) = agi_call(tell, "greet/anna", route=route).console
    assert line.startswith("anna {")
    assert "'word': 'yes'" in line
    assert "'true': True" in line
    assert line.count("['a', 'b']") == 2


def test_a_script_that_the_route_does_not_take(agi_call: Stage) -> None:
    """A call that finds no route fails as in a worker, and the handler is not run."""
    result = agi_call(wrong, "other", route={"script": "this"})

    assert (result.status, result.outcome, result.error) == (AgiStatus.FAILURE, "noroute", None)
    assert result.variables["FAGI_STATUS"] == "NOROUTE"


def test_the_guard(agi_call: Stage) -> None:
    """A line end in an argument is refused at the handler's line, or made a space where the route says so."""

    def say(call: Call, context: Context) -> None:
        call.verbose("one\ntwo")

    with pytest.raises(AGICommandRefused):
        agi_call(say)
    result = agi_call(say, catch=True)
    assert result.record is not None
    assert (result.console, result.record.refused, result.faults) == ((), 1, ())
    assert agi_call(say, route={"command_guard": "clean"}).console == ("one two",)


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        ({"on_hangup": "perhaps"}, "on_hangup"),
        ({"regex": "("}, "regex"),
        ({"script": "a", "glob": "b"}, "script"),
        ({"databases": ["absent"]}, "absent"),
        ({"optoins": {}}, "optoins"),
    ],
)
def test_a_wrong_route(agi_call: Stage, route: Mapping[str, Any], reason: str) -> None:
    """A route that the configuration file could not hold is refused with the same words."""
    with pytest.raises(ConfigError, match=reason):
        agi_call(well, route=route)


def test_a_wrong_database(agi_call: Stage) -> None:
    """A database that the configuration file could not hold is refused."""
    with pytest.raises(ConfigError, match="databases"):
        agi_call(well, databases={"main": {"uri": "sqlite://"}})


def test_what_is_no_handler(agi_call: Stage) -> None:
    """A function that a server would refuse is refused here too, by its name."""

    def alone(call: Call) -> None:
        """Take no context."""

    async def later(call: Call, context: Context) -> None:
        """Be async."""

    unfit: Any = alone
    with pytest.raises(ConfigError, match=r"alone must take \(call, context\)"):
        agi_call(unfit)
    with pytest.raises(ConfigError, match="later is async"):
        agi_call(later)


def test_a_wrong_behaviour(agi_call: Stage) -> None:
    """A word that describes no behaviour is an error of the test, not passed over."""
    with pytest.raises(TypeError, match="pressed"):
        agi_call(well, pressed=["1"])


# ---- setup, state and databases


def test_setup_and_teardown(make_module: Callable[[str, str], ModuleType]) -> None:
    """Setup is run once before the first call, its state is all calls', and teardown is run at the end."""
    module = make_module("staged_counter", _WITH_SETUP)
    with Stage() as stage:
        consoles = [stage(module.count).console for _ in range(3)]
        assert module.said == ["setup"]

    assert consoles == [("call 1",), ("call 2",), ("call 3",)]
    assert module.said == ["setup", "teardown after 3"]


def test_setup_for_each_configuration(make_module: Callable[[str, str], ModuleType]) -> None:
    """Another route is another worker: it has its own setup and state."""
    module = make_module("staged_counters", _WITH_SETUP)
    with Stage() as stage:
        for _ in range(2):
            stage(module.count)
        other = stage(module.count, route={"options": {"x": 1}})

    assert other.console == ("call 1",)
    assert module.said == ["setup", "setup", "teardown after 1", "teardown after 2"]


def test_database(agi_call: Stage, make_module: Callable[[str, str], ModuleType], database_url: str) -> None:
    """Setup, handler and teardown use a real database; what one call committed the next one finds."""
    module = make_module("staged_table", _WITH_TABLE)
    databases = {"main": {"url": database_url}}
    for number in (1, 2):
        result = agi_call(module.note, databases=databases)
        assert result.console == (f"call {number}",)
        assert result.record is not None
        assert result.record.database_s > 0
    agi_call.close()

    with Stage() as later:
        assert later(module.note, databases=databases).console == ("call 1",)


def test_an_exception_rolls_back(agi_call: Stage, tmp_path: Path) -> None:
    """What a handler wrote before it failed in a transaction is not there afterwards."""
    databases = {"main": {"url": f"sqlite:///{tmp_path}/calls.db"}}

    def write(call: Call, context: Context) -> None:
        with context.begin() as database:
            database.execute(text("CREATE TABLE IF NOT EXISTS calls (number INTEGER)"))
        with context.begin() as database:
            database.execute(text("INSERT INTO calls VALUES (1)"))
            call.verbose(str(database.execute(text("SELECT COUNT(*) FROM calls")).scalar()))
            _fail()

    for _ in range(2):
        assert agi_call(write, databases=databases, catch=True).console == ("1",)


def test_a_database_that_is_away(agi_call: Stage, tmp_path: Path) -> None:
    """A database that does not answer keeps a worker from starting, unless it is not required at boot."""
    database = {"url": f"sqlite:///{tmp_path}/absent/calls.db"}

    def ask(call: Call, context: Context) -> None:
        with context.begin():
            pass

    with pytest.raises(DatabaseUnavailable):
        agi_call(ask, databases={"main": database})
    result = agi_call(ask, databases={"main": {**database, "required_at_boot": False}}, catch=True)
    assert (result.status, result.outcome) == (AgiStatus.FAILURE, "dbdown")
    assert isinstance(result.error, DatabaseUnavailable)


# ---- hangup


@pytest.mark.parametrize("hangup_after", range(6))
@pytest.mark.parametrize(("on_hangup", "ends_well_from"), [("raise", 5), ("continue", 3)])
def test_hangup_between_commands(
    agi_call: Stage, hangup_after: int, on_hangup: str, ends_well_from: int
) -> None:
    """Wherever the caller hangs up, the handler can clean up, and nothing that it does harms Asterisk."""
    result = agi_call(
        long_talk, route={"on_hangup": on_hangup}, hangup_after=hangup_after, presses=["", "1234"]
    )

    assert (result.status, result.hung_up, result.faults) == (AgiStatus.HANGUP, True, ())
    assert result.variables["CLEANED"] == "1"
    # From there on the handler has no more to do than a dead channel permits.
    assert result.outcome == ("ok" if hangup_after >= ends_well_from else "hangup")


@pytest.mark.parametrize("presses", [[HANGUP], ["", HANGUP], ["", "1234", HANGUP]])
@pytest.mark.parametrize("wire", [Wire(), Wire(piece_bytes=1)])
def test_hangup_in_a_command(agi_call: Stage, presses: list[Any], wire: Wire) -> None:
    """A caller who is gone in the middle of a command ends the handler there."""
    result = agi_call(long_talk, presses=presses, wire=wire)

    assert (result.status, result.outcome, result.hung_up) == (AgiStatus.HANGUP, "hangup", True)
    assert isinstance(result.error, CallHangup)
    assert len(result.commands) == len(presses) + 2
    assert (result.variables["CLEANED"], result.faults) == ("1", ())


def test_a_route_that_goes_on(agi_call: Stage) -> None:
    """Where hangups are not raised the handler sees it for itself and comes to its end."""

    def go_on(call: Call, context: Context) -> None:
        call.verbose("one")
        call.verbose("two")
        call.set_variable("GONE", str(call.hung_up))

    result = agi_call(go_on, route={"on_hangup": "continue"}, hangup_after=1)

    assert (result.outcome, result.status, result.variables) == ("ok", AgiStatus.HANGUP, {"GONE": "True"})


def test_the_script_of_an_h_extension(agi_call: Stage) -> None:
    """On a dead channel variables can be read and set; what needs a live one says so."""

    def after(call: Call, context: Context) -> None:
        call.set_variable("SEEN", f"{call.request.extension} {call.get_variable('X')}")
        if context.options.get("answer"):
            call.answer()

    result = agi_call(after, dead=True, variables={"X": "1"})
    assert (result.outcome, result.status) == ("ok", AgiStatus.SUCCESS)
    assert (result.variables["SEEN"], result.faults) == ("h 1", ())
    with pytest.raises(AGIDeadChannel):
        agi_call(after, dead=True, route={"options": {"answer": True}})


# ---- giving the call back


def test_finish(agi_call: Stage) -> None:
    """The dialplan goes on while the handler goes on too; its call is over when the handler is."""

    def give_back(call: Call, context: Context) -> None:
        call.set_variable("X", "1")
        call.finish()
        gevent.sleep(0.001)
        context.state["done"] = True

    def look(call: Call, context: Context) -> None:
        give_back(call, context)
        assert context.state["done"]

    result = agi_call(look)

    assert (result.status, result.outcome, result.variables) == (AgiStatus.SUCCESS, "ok", {"X": "1"})
    assert result.record is not None
    assert result.record.held_s is not None
    assert result.faults == ()


def test_a_failure_after_finish(agi_call: Stage) -> None:
    """What fails after the call was given back fails the test, though Asterisk took it for a success."""

    def give_back(call: Call, context: Context) -> None:
        call.finish()
        _fail()

    with pytest.raises(LookupError):
        agi_call(give_back)
    result = agi_call(give_back, catch=True)
    assert (result.status, result.outcome, result.commands) == (AgiStatus.SUCCESS, "error", [])


# ---- a configuration file


@pytest.fixture
def configuration(tmp_path: Path) -> Iterator[Path]:
    """A configuration file with a handler beside it."""
    (tmp_path / "staged_greeting.py").write_text(_GREETING)
    (tmp_path / "greeting.yaml").write_text(_CONFIGURATION)
    before = list(sys.path)
    yield tmp_path / "greeting.yaml"
    sys.path[:] = before
    sys.modules.pop("staged_greeting", None)


def test_a_failure_without_a_route(agi_call: Stage, configuration: Path) -> None:
    """The file's general word on failures holds where no route has one."""
    with configuration.open("a") as file:
        file.write("on_error: goto sorry,s,2\n")
    environment = {"FOLDER": str(configuration.parent)}
    result = agi_call.configured(configuration, "absent", environment=environment)

    assert (result.outcome, result.location) == ("noroute", ("sorry", "s", "2"))


@pytest.mark.parametrize(("script", "said"), [("greet", "Hello you"), ("greet/anna", "Dear anna")])
def test_configured(agi_call: Stage, configuration: Path, script: str, said: str) -> None:
    """The file's routes find its handlers, with their options."""
    environment = {"FOLDER": str(configuration.parent)}
    result = agi_call.configured(configuration, script, environment=environment)

    assert (result.console, result.outcome) == ((said,), "ok")


def test_configured_without_a_route(agi_call: Stage, configuration: Path) -> None:
    """A script that no route takes fails as in the server."""
    environment = {"FOLDER": str(configuration.parent)}
    result = agi_call.configured(str(configuration), "absent", environment=environment, presses=["1"])

    assert (result.status, result.outcome) == (AgiStatus.FAILURE, "noroute")


def test_a_wrong_configuration(agi_call: Stage, configuration: Path) -> None:
    """A file that cannot be run is refused, with its name."""
    with pytest.raises(ConfigError, match=r"greeting\.yaml.*FOLDER"):
        agi_call.configured(configuration, "greet")
