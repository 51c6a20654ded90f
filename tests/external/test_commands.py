"""Every AGI command of the real Asterisk, once on a live channel and once on a dead one.

A case is one command, carried out by our ``Call`` on a channel that was answered, and the value that the
handler gets. What Asterisk then makes of the whole script (AGISTATUS) is part of it.
"""

from __future__ import annotations

import itertools
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec
from urllib.parse import quote

import pytest
from service import PoolService

from fastagi_pool.call import Call
from fastagi_pool.errors import (
    AGIAppError,
    AGICommandFailed,
    AGICommandRefused,
    AGIDeadChannel,
    AGIInvalidCommand,
    AGIUsageError,
    CallHangup,
)
from fastagi_pool.protocol import Reply
from fastagi_pool.results import ChannelState, Digits, Playback, Recording, RecordingEnd

from .asterisk.calls import PlacedCall, Telephone
from .asterisk.server import AsteriskServer
from .conftest import PoolFactory

pytestmark = pytest.mark.asterisk

_CORPUS: Final = Path(__file__).resolve().parents[1] / "corpus/commands/22.txt"
_LISTED = re.compile(r"^\s*(Yes|No)\s+(\S.*?)\s{2,}\S", re.MULTILINE)
_plans = itertools.count(1)

P = ParamSpec("P")
Caller = Callable[[PlacedCall], None]


# --- how cases are written


class _Within:
    """Equals every number between two bounds: how far a file was played until a key was pressed."""

    def __init__(self, low: int, high: int) -> None:
        self._bounds = (low, high)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and self._bounds[0] <= other <= self._bounds[1]

    def __hash__(self) -> int:
        return hash(self._bounds)

    def __repr__(self) -> str:
        return f"{self._bounds[0]}..{self._bounds[1]}"


def within(low: int, high: int) -> Any:
    """Stand for a number of samples or milliseconds that is not known to the last."""
    return _Within(low, high)


@dataclass(frozen=True, slots=True)
class Step:
    """One method of ``Call`` with its arguments."""

    method: Callable[..., object]
    arguments: tuple[object, ...]
    named: Mapping[str, object]


def do(method: Callable[Concatenate[Call, P], object], /, *arguments: P.args, **named: P.kwargs) -> Step:
    """Write a step; the types of its arguments are checked like a handler's."""
    return Step(method, arguments, named)


@dataclass(frozen=True, slots=True)
class Case:
    """One command on a live channel.

    Attributes:
        command: Its name in ``agi show commands``.
        step: How the handler gives it.
        result: What the handler gets; of an error its class.
        title: What is special about this case.
        before: Steps that prepare it.
        after: Steps that look at what it did, and what each gives.
        caller: What the caller does meanwhile.
        status: AGISTATUS of the script.
        way: Where the dialplan went behind it; None if that is not what the case is about.
        answered: Whether the channel is answered first.
        silent: Whether the caller says nothing.
        on_hangup: The route's key of this name.
        leaves: The sound file that is there afterwards.
    """

    command: str
    step: Step
    result: object
    title: str = ""
    before: tuple[Step, ...] = ()
    after: tuple[tuple[Step, object], ...] = ()
    caller: Caller | None = None
    status: str = "SUCCESS"
    way: str | None = None
    answered: bool = True
    silent: bool = False
    on_hangup: str = "raise"
    leaves: str = ""

    def __str__(self) -> str:
        return f"{self.command}: {self.title}" if self.title else self.command


def presses(keys: str) -> Callable[[str], Caller]:
    """The caller presses keys while a command runs."""

    def during(command: str) -> Caller:
        def act(call: PlacedCall) -> None:
            call.await_command(command)
            for key in keys:
                call.press(key)

        return act

    return during


def texts(text: str) -> Callable[[str], Caller]:
    """The caller sends a text while a command runs."""

    def during(command: str) -> Caller:
        def act(call: PlacedCall) -> None:
            call.await_command(command)
            call.send_text(text)

        return act

    return during


def hangs_up(command: str) -> Caller:
    """The caller hangs up while a command runs."""

    def act(call: PlacedCall) -> None:
        call.await_command(command)
        call.hang_up()

    return act


def hears_music(music_class: str) -> Caller:
    """The caller hears music."""
    return lambda call: call.await_music(music_class)


_get = Call.get_variable
_NASTY: Final = "a,b \"c\" \\d (e] [f) {g} 'h' ${EXTEN} ;|&="
_LONG: Final = "x" * 1900
_LONG_UNICODE: Final = "a" + "ö" * 950  # 1,901 bytes; the 1,023rd is the first half of a character
#: Said in less than a second, and in more than two: the kit says Saturday and p.m. slowly.
_THURSDAY_MORNING: Final = datetime(2024, 2, 29, 5, 5, 7, tzinfo=UTC)
_SATURDAY_AFTERNOON: Final = datetime(2024, 3, 2, 13, 5, 7, tzinfo=UTC)
_PRESS_5: Final = presses("5")

# --- the channel

_CHANNEL: Final = (
    Case(
        "answer",
        do(Call.answer),
        None,
        after=((do(Call.channel_status), ChannelState.UP),),
        answered=False,
    ),
    Case("asyncagi break", do(Call.asyncagi_break), None),
    Case("channel status", do(Call.channel_status), ChannelState.RINGING, "before answer", answered=False),
    Case("channel status", do(Call.channel_status), ChannelState.UP, "after answer"),
    Case("channel status", do(Call.channel_status, "Local/nobody-1"), AGICommandFailed, "no such channel"),
    Case("hangup", do(Call.hangup), None, status="HANGUP", way=""),
    Case("hangup", do(Call.hangup, "Local/nobody-1"), AGICommandFailed, "no such channel"),
    Case(
        "set autohangup",
        do(Call.set_autohangup, 1),
        None,
        after=((do(Call.wait_for_digit), CallHangup),),
        status="HANGUP",
    ),
    Case(
        "set autohangup",
        do(Call.set_autohangup, 0),
        None,
        "taken back",
        before=(do(Call.set_autohangup, 1),),
        after=((do(Call.wait_for_digit, 1.5), ""),),
    ),
    Case(
        "set callerid",
        do(Call.set_callerid, "555", 'Bob "The \\ Rock" <Smith>, jr.'),
        None,
        "a difficult name",
        after=(
            (do(_get, "CALLERID(name)"), 'Bob "The \\ Rock" <Smith>, jr.'),
            (do(_get, "CALLERID(num)"), "555"),
        ),
    ),
    Case(
        "set callerid",
        do(Call.set_callerid, '"Alice Liddell" <100>'),
        None,
        "as one text",
        after=((do(_get, "CALLERID(name)"), "Alice Liddell"), (do(_get, "CALLERID(num)"), "100")),
    ),
    Case(
        "set callerid",
        do(Call.set_callerid, "777"),
        None,
        "a number alone",
        after=((do(_get, "CALLERID(num)"), "777"),),
    ),
    Case("set music", do(Call.set_music, True, "other"), None, "a class", caller=hears_music("other")),
    Case("set music", do(Call.set_music), None, "the default", caller=hears_music("default")),
    Case("set music", do(Call.set_music, False), None, "off", before=(do(Call.set_music),)),
    Case("tdd mode", do(Call.tdd_mode, "on"), False),
)

# --- the dialplan

_TO_TARGET: Final = (do(Call.set_context, "target"), do(Call.set_extension, "t"))
_DIALPLAN: Final = (
    Case(
        "set priority",
        do(Call.set_priority, "label"),
        None,
        "a label",
        before=_TO_TARGET,
        way="label SUCCESS",
    ),
    Case("set priority", do(Call.set_priority, 1), None, "a number", before=_TO_TARGET, way="number SUCCESS"),
    Case(
        "set priority", do(Call.set_priority, "nowhere"), AGIUsageError, "no such label", way="behind SUCCESS"
    ),
    Case(
        "set context",
        do(Call.set_context, "target"),
        None,
        after=((do(Call.set_extension, "t"), None), (do(Call.set_priority, 1), None)),
        way="number SUCCESS",
    ),
    Case(
        "set extension",
        do(Call.set_extension, "after"),
        None,
        after=((do(Call.set_priority, 1), None),),
        way="",
    ),
    Case(
        "gosub",
        do(Call.gosub, "subroutine", "s", 1, "one", "two words", ""),
        None,
        after=((do(_get, "ARGUMENTS"), "one|two words|"), (do(_get, "GOSUB_RETVAL"), "from s")),
    ),
    Case(
        "gosub",
        do(Call.gosub, "subroutine", "s", "label"),
        None,
        "a label",
        after=((do(_get, "GOSUB_RETVAL"), "from label"),),
    ),
    Case(
        "gosub",
        do(Call.gosub, "subroutine", "s", 1, "one,two"),
        None,
        "arguments in one text",
        after=((do(_get, "ARGUMENTS"), "one|two|"),),
    ),
    Case(
        "gosub", do(Call.gosub, "subroutine", "s", 1, "one,two", "three"), AGICommandRefused, "a comma within"
    ),
    *(
        Case("gosub", step, AGICommandFailed, f"no such {what}", status="FAILURE")
        for what, step in {
            "context": do(Call.gosub, "nowhere", "s"),
            "extension": do(Call.gosub, "subroutine", "nobody"),
            "label": do(Call.gosub, "subroutine", "s", "nowhere"),
        }.items()
    ),
)

# --- variables, the database and applications

_DATA: Final = (
    Case("set variable", do(Call.set_variable, "X", _NASTY), None, after=((do(_get, "X"), _NASTY),)),
    Case("get variable", do(_get, "CONTEXT"), "calls"),
    Case("get variable", do(_get, "NOT_SET"), None, "unset"),
    *(
        Case("get variable", do(_get, "X"), text, title, before=(do(Call.set_variable, "X", text),))
        for title, text in {
            "empty": "",
            "1,900 bytes": _LONG,
            "1,901 bytes of UTF-8": _LONG_UNICODE,
            "1,023 bytes": "y" * 1023,
            "1,024 bytes": "z" * 1024,
            "parentheses": "a) (b",
        }.items()
    ),
    Case("get full variable", do(Call.get_full_variable, "in ${CONTEXT}."), "in calls."),
    Case("get full variable", do(Call.get_full_variable, "${NOT_SET}"), "", "unset"),
    Case(
        "get full variable", do(Call.get_full_variable, "${EXTEN}", "Local/nobody-1"), None, "no such channel"
    ),
    Case(
        "get full variable",
        do(Call.get_full_variable, "${X}"),
        _LONG,
        "1,900 bytes",
        before=(do(Call.set_variable, "X", _LONG),),
    ),
    Case(
        "get full variable",
        do(Call.get_full_variable, "${DIALPLAN_EXISTS(target,t,label)}"),
        "1",
        "a place in the dialplan",
    ),
    Case(
        "database put",
        do(Call.database_put, "put", "a key", _NASTY),
        None,
        after=((do(Call.database_get, "put", "a key"), _NASTY),),
    ),
    Case(
        "database get",
        do(Call.database_get, "get", "k"),
        "v",
        before=(do(Call.database_put, "get", "k", "v"),),
    ),
    Case("database get", do(Call.database_get, "get", "nothing"), None, "missing"),
    Case(
        "database get",
        do(Call.database_get, "get", "empty"),
        "",
        "empty",
        before=(do(Call.database_put, "get", "empty", ""),),
    ),
    Case(
        "database get",
        do(Call.database_get, "get", "long"),
        _LONG,
        "1,900 bytes",
        before=(do(Call.database_put, "get", "long", _LONG),),
    ),
    Case(
        "database del",
        do(Call.database_del, "del", "k"),
        None,
        before=(do(Call.database_put, "del", "k", "v"),),
        after=((do(Call.database_get, "del", "k"), None),),
    ),
    Case("database del", do(Call.database_del, "del", "nothing"), None, "missing"),
    Case(
        "database deltree",
        do(Call.database_deltree, "tree"),
        True,
        before=(do(Call.database_put, "tree", "a/1", "v"), do(Call.database_put, "tree", "b", "v")),
        after=((do(Call.database_get, "tree", "b"), None), (do(Call.database_deltree, "tree"), False)),
    ),
    Case(
        "database deltree",
        do(Call.database_deltree, "part", "a"),
        True,
        "a part",
        before=(do(Call.database_put, "part", "a/1", "v"), do(Call.database_put, "part", "b", "v")),
        after=((do(Call.database_get, "part", "a/1"), None), (do(Call.database_get, "part", "b"), "v")),
    ),
    Case("exec", do(Call.exec, "Set", f"X={_NASTY}"), 0, "Set", after=((do(_get, "X"), _NASTY),)),
    *(
        Case(
            "exec",
            do(Call.exec, "MSet", f"A={text}", "B=x,y"),
            0,
            f"MSet of {title}",
            after=((do(_get, "A"), text), (do(_get, "B"), "x,y")),
        )
        for title, text in {
            "commas": "1,2,,3",
            "quotes": 'say "a, b" and "c',
            "backslashes": "\\a\\\\b\\,c\\",
            "open brackets": "(1,[2",
            "closed brackets": "1),2]",
            "balanced brackets": "(1,2),[3,4]",
            "everything": _NASTY,
        }.items()
    ),
    Case("exec", do(Call.exec, "Playback", "silence100ms"), 0, "Playback"),
    Case("exec", do(Call.exec, "NoSuchApplication", "x"), AGIAppError, "no such application"),
    Case("exec", do(Call.exec, "Return"), AGICommandFailed, "an application that fails"),
    Case("noop", do(Call.noop, "in passing"), None),
    Case("verbose", do(Call.verbose, 'says "hello"', 3), None),
)

# --- sound and digits

_SOUND: Final = (
    Case("stream file", do(Call.stream_file, "silence100ms"), Playback("", 800)),
    Case("stream file", do(Call.stream_file, "silence1", "", 7200), Playback("", 8000), "an offset"),
    Case(
        "stream file",
        do(Call.stream_file, "silence10", "5#"),
        Playback("5", within(1, 79999)),
        "a digit",
        caller=_PRESS_5("STREAM FILE"),
    ),
    Case("stream file", do(Call.stream_file, "missing"), AGICommandFailed, "no such file", status="FAILURE"),
    Case("control stream file", do(Call.control_stream_file, "silence100ms"), Playback("", -1)),
    Case(
        "control stream file",
        do(Call.control_stream_file, "silence10", offset_s=9.9),
        Playback("", -1),
        "an offset",
    ),
    Case(
        "control stream file",
        do(Call.control_stream_file, "silence10", "5", skip_s=6, forward="6"),
        Playback("5", within(6000, 9999)),
        "forward, then a digit",
        caller=presses("65")("CONTROL STREAM FILE"),
    ),
    Case(
        "control stream file",
        do(Call.control_stream_file, "silence10", "5", 6, "1", "2", "3", 2),
        Playback("5", within(2000, 9999)),
        "an offset, pause, go on, then a digit",
        caller=presses("335")("CONTROL STREAM FILE"),
    ),
    Case(
        "control stream file",
        do(Call.control_stream_file, "missing"),
        AGICommandFailed,
        "no such file",
        status="FAILURE",
    ),
    Case("get data", do(Call.get_data, "silence100ms", 0.1), Digits("", True), "nothing"),
    Case(
        "get data",
        do(Call.get_data, "silence10", 10),
        Digits("12", False),
        "#",
        caller=presses("12#")("GET DATA"),
    ),
    Case(
        "get data",
        do(Call.get_data, "silence10", 10),
        Digits("", False),
        "# alone",
        caller=presses("#")("GET DATA"),
    ),
    Case(
        "get data",
        do(Call.get_data, "silence10", 10, 2),
        Digits("*4", False),
        "as many as wanted",
        caller=presses("*4")("GET DATA"),
    ),
    Case(
        "get data",
        do(Call.get_data, "silence10", 0.5, 9),
        Digits("7", True),
        "too few",
        caller=presses("7")("GET DATA"),
    ),
    Case("get data", do(Call.get_data, "missing", 0.1), AGICommandFailed, "no such file"),
    Case("get option", do(Call.get_option, "silence100ms", "12", 0.1), Playback("", 800), "nothing"),
    Case(
        "get option",
        do(Call.get_option, "silence10", "25", 1),
        Playback("5", within(1, 79999)),
        "a digit",
        caller=_PRESS_5("GET OPTION"),
    ),
    Case(
        "get option",
        do(Call.get_option, "missing", "1", 0.1),
        AGICommandFailed,
        "no such file",
        status="FAILURE",
    ),
    Case("wait for digit", do(Call.wait_for_digit, 0.1), "", "nothing"),
    Case("wait for digit", do(Call.wait_for_digit), "5", "for ever", caller=_PRESS_5("WAIT FOR DIGIT -1")),
    Case(
        "record file",
        do(Call.record_file, "by-digit", "sln", "5#", 10),
        Recording(RecordingEnd.DIGIT, "5", within(0, 79999)),
        "a digit",
        caller=_PRESS_5("RECORD FILE"),
        leaves="by-digit.sln",
    ),
    Case(
        "record file",
        do(Call.record_file, "by-time", timeout_s=0.2),
        Recording(RecordingEnd.TIMEOUT, "", within(1, 4000)),
        "the time",
        leaves="by-time.wav",
    ),
    Case(
        "record file",
        do(Call.record_file, "by-beep", "sln", timeout_s=0.2, beep=True),
        Recording(RecordingEnd.TIMEOUT, "", within(1, 4000)),
        "a beep",
    ),
    Case(
        "record file",
        do(Call.record_file, "by-silence", "sln", timeout_s=10, silence_s=1),
        Recording(RecordingEnd.TIMEOUT, "", within(8000, 40000)),
        "silence",
        silent=True,
    ),
    Case(
        "record file",
        do(Call.record_file, "by-hangup", "sln", "#", 10),
        CallHangup,
        "a hangup",
        caller=hangs_up("RECORD FILE"),
        status="HANGUP",
        leaves="by-hangup.sln",
    ),
    Case(
        "record file",
        do(Call.record_file, "by-hangup-kept", "sln", "#", 10),
        Recording(RecordingEnd.HANGUP, "", within(0, 79999)),
        "a hangup, and the handler goes on",
        caller=hangs_up("RECORD FILE"),
        status="HANGUP",
        on_hangup="continue",
        leaves="by-hangup-kept.sln",
    ),
    Case(
        "record file",
        do(Call.record_file, "no/such/folder/x", "sln", "#", 1),
        AGICommandFailed,
        "no such folder",
        status="FAILURE",
    ),
)

# --- saying


def _said(command: str, short: Step, long: Step) -> tuple[Case, Case]:
    """Something said to its end, and something longer that the caller interrupts."""
    return (
        Case(command, short, ""),
        Case(command, long, "5", "a digit", caller=_PRESS_5(command.upper())),
    )


_SAYING: Final = (
    *_said("say number", do(Call.say_number, -42), do(Call.say_number, 777_777_777, "5#")),
    *_said("say digits", do(Call.say_digits, "0*"), do(Call.say_digits, "0" * 60, "5")),
    *_said("say alpha", do(Call.say_alpha, "a.B"), do(Call.say_alpha, "abc" * 20, "5")),
    *_said("say phonetic", do(Call.say_phonetic, "aB"), do(Call.say_phonetic, "abc" * 20, "5")),
    *_said(
        "say date",
        do(Call.say_date, _THURSDAY_MORNING),
        do(Call.say_date, _SATURDAY_AFTERNOON.timestamp(), "5"),
    ),
    *_said("say time", do(Call.say_time, _THURSDAY_MORNING), do(Call.say_time, _SATURDAY_AFTERNOON, "5")),
    *_said(
        "say datetime",
        do(Call.say_datetime, _THURSDAY_MORNING, "", "HM", "Europe/Berlin"),
        do(Call.say_datetime, _SATURDAY_AFTERNOON, "5"),
    ),
    Case(
        "say number",
        do(Call.say_number, 1_000_000_000),
        AGICommandFailed,
        "a sound is missing",
        status="FAILURE",
    ),
)

# --- text, pictures and speech

_TEXT: Final = (
    Case("receive char", do(Call.receive_char, 10), "h", "a text", caller=texts("hello")("RECEIVE CHAR")),
    Case("receive char", do(Call.receive_char, 0.1), AGICommandFailed, "nothing", status="FAILURE"),
    Case(
        "receive text",
        do(Call.receive_text, 10),
        "hello (you) ö",
        "a text",
        caller=texts("hello (you) ö")("RECEIVE TEXT"),
    ),
    Case("receive text", do(Call.receive_text), "late", "for ever", caller=texts("late")("RECEIVE TEXT")),
    Case("receive text", do(Call.receive_text, 0.1), AGICommandFailed, "nothing"),
    Case("send text", do(Call.send_text, 'two "words"'), None),
    Case("send image", do(Call.send_image, "missing"), None),
    Case("speech create", do(Call.speech_create), AGICommandFailed),
    Case("speech set", do(Call.speech_set, "name", "value"), AGICommandFailed),
    Case("speech destroy", do(Call.speech_destroy), AGICommandFailed),
    Case("speech load grammar", do(Call.speech_load_grammar, "g", "/g.gram"), AGICommandFailed),
    Case("speech unload grammar", do(Call.speech_unload_grammar, "g"), AGICommandFailed),
    Case("speech activate grammar", do(Call.speech_activate_grammar, "g"), AGICommandFailed),
    Case("speech deactivate grammar", do(Call.speech_deactivate_grammar, "g"), AGICommandFailed),
    Case("speech recognize", do(Call.speech_recognize, "silence100ms", 1), AGICommandFailed),
)

_CASES: Final = (*_CHANNEL, *_DIALPLAN, *_DATA, *_SOUND, *_SAYING, *_TEXT)
#: What the commands are tried with on a dead channel: the first case of each.
_FIRST: Final = {case.command: case for case in reversed(_CASES)}


# --- how they are carried out


@dataclass(frozen=True, slots=True)
class Begun:
    """A case whose call has been placed.

    Attributes:
        call: The call.
        plan: What its script does.
        before: How many steps prepare it.
    """

    call: PlacedCall
    plan: Path
    before: int


@dataclass(frozen=True, slots=True)
class Stage:
    """Where plans are carried out."""

    pool: PoolService
    telephone: Telephone
    folder: Path

    def plan(self, steps: Sequence[Step]) -> Path:
        """Write a plan; see ``command_handlers``."""
        path = self.folder / f"{next(_plans)}.plan"
        path.write_bytes(pickle.dumps([(step.method, step.arguments, step.named) for step in steps]))
        return path

    def begin(self, case: Case) -> Begun:
        """Place the call of a case."""
        first = [do(Call.answer)] if case.answered else []
        before = [*first, *case.before]
        plan = self.plan([*before, case.step, *(step for step, _ in case.after)])
        call = self.telephone.call(self.url(plan, case.on_hangup), silent=case.silent)
        return Begun(call, plan, len(before))

    def url(self, plan: Path, on_hangup: str = "raise") -> str:
        """Return the URL of the script that carries a plan out."""
        return self.pool.url(f"{on_hangup}?plan={quote(str(plan))}")


def _done(plan: Path) -> list[object]:
    found: list[object] = pickle.loads(plan.with_suffix(".done").read_bytes())
    return found


@pytest.fixture(scope="module")
def stage(pools: PoolFactory, telephone: Telephone, run_folder: Path) -> Iterator[Stage]:
    """A pool that carries out plans."""
    folder = run_folder / "plans"
    folder.mkdir()
    handler = "command_handlers:perform"
    pool = pools.start(
        {"raise": handler, "continue": {"handler": handler, "on_hangup": "continue"}}, {"workers": 1}
    )
    yield Stage(pool, telephone, folder)
    assert pool.stop() == 0, pool.logged()


@pytest.fixture(scope="module")
def begun(stage: Stage) -> dict[str, Begun]:
    """All cases in which the caller does nothing, placed at once: many of them take a second."""
    return {str(case): stage.begin(case) for case in _CASES if case.caller is None}


@pytest.fixture(scope="module")
def permitted(asterisk: AsteriskServer) -> dict[str, bool]:
    """Whether a dead channel permits each command that the running Asterisk has."""
    return _listed(asterisk.cli("agi show commands"))


def _listed(text: str) -> dict[str, bool]:
    return {name: dead == "Yes" for dead, name in _LISTED.findall(text)}


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_command(case: Case, stage: Stage, begun: dict[str, Begun], asterisk: AsteriskServer) -> None:
    """Each command reaches Asterisk as it was meant, and gives what its method promises."""
    this = begun.get(str(case)) or stage.begin(case)
    if case.caller is not None:
        case.caller(this.call)
    done = this.call.done()
    results = _done(this.plan)[this.before :]
    assert results == [case.result, *(result for _, result in case.after)]
    assert type(results[0]) is type(case.result)
    assert done.status == case.status
    if case.way is not None:
        assert done.way == case.way
    if case.leaves:
        assert (asterisk.sound_folder / case.leaves).is_file()
    if case.result is not AGICommandRefused:
        assert any(line.startswith(case.command.upper()) for line in this.call.commands())


def test_raw(stage: Stage) -> None:
    """Any line can be sent and its reply be seen, except the one that ends the session."""
    plan = stage.plan(
        [do(Call.raw, "GET VARIABLE", "EXTEN"), do(Call.raw, "NO SUCH COMMAND"), do(Call.raw, "Failure")]
    )
    assert stage.telephone.call(stage.url(plan)).done().status == "SUCCESS"
    assert _done(plan) == [Reply(200, "1", "one"), AGIInvalidCommand, AGICommandRefused]


def test_no_command_is_left_out(permitted: dict[str, bool]) -> None:
    """Every command that the running Asterisk lists has a case, and no case is of a command it has not."""
    assert set(_FIRST) == set(permitted)


def test_dead_channel(stage: Stage, permitted: dict[str, bool]) -> None:
    """On a dead channel each command works as on a live one or is refused, as Asterisk's list says."""
    plans = {name: stage.plan([*case.before, case.step]) for name, case in _FIRST.items()}
    calls = {
        name: stage.telephone.call(stage.url(stage.plan([])), hangup_url=stage.url(plan))
        for name, plan in plans.items()
    }
    ended = {name: call.done() for name, call in calls.items()}
    given = {name: _done(plan)[-1] for name, plan in plans.items()}
    wanted = {name: _FIRST[name].result if permitted[name] else AGIDeadChannel for name in plans}
    assert given == wanted
    assert {name: done.h_status for name, done in ended.items()} == dict.fromkeys(plans, "SUCCESS")


def test_recorded_list(asterisk: AsteriskServer, permitted: dict[str, bool]) -> None:
    """The list in the corpus is that of the running Asterisk, so that our documentation is right."""
    if not asterisk.cli("core show version").startswith("Asterisk 22."):
        pytest.skip("the corpus is of Asterisk 22")
    assert _listed(_CORPUS.read_text()) == permitted
