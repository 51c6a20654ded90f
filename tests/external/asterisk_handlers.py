"""Handlers for the tests with a real Asterisk: they do one thing each and write down what they saw.

Every route's option ``results`` is the folder where each session appends one line of JSON to
``<uniqueid>.jsonl``. Handlers that wait for the test find the address of its gate in the query.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.errors import AGIError, CallHangup


class Witness:
    """Notes what one session saw, and writes it down when the session ends, however it does."""

    def __init__(self, call: Call, context: Context) -> None:
        request = call.request
        self._path = Path(context.options["results"]) / f"{request.uniqueid}.jsonl"
        self._steps: dict[str, Any] = {}
        self._seen = {
            "script": request.script,
            "query": dict(request.query),
            "arguments": list(request.arguments),
            "captures": dict(call.captures),
            "environment": dict(request.environment),
            "pid": os.getpid(),
            "steps": self._steps,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seen["end"] = kind.__name__ if kind else ""
        with self._path.open("a") as file:
            file.write(json.dumps(self._seen) + "\n")

    def note(self, step: str, command: Callable[[], object]) -> None:
        """Run a command and note its result, or the name of the AGIError that it raised."""
        try:
            result = command()
        except AGIError as error:
            result = type(error).__name__
        if dataclasses.is_dataclass(result) and not isinstance(result, type):
            result = dataclasses.asdict(result)
        self._steps[step] = result


def hello(call: Call, context: Context) -> None:
    """The plain call: a few commands, none of which takes time."""
    with Witness(call, context) as witness:
        witness.note("name", lambda: call.get_variable("CALLERID(name)"))
        call.set_variable("CALLER_NAME", call.request.calleridname)
        call.set_variable("RESULT", "served")
        call.set_variable("FAGI_STATUS", "OK")


def destination(call: Call, context: Context) -> None:
    """The script of an incoming call: somebody of the kit's dialplan is to be called."""
    with Witness(call, context):
        call.set_variable("FAGI_DESTINATION", "Local/callee@caller")


def second(call: Call, context: Context) -> None:
    """The second script of a call: reads what the first left behind."""
    with Witness(call, context) as witness:
        witness.note("first", lambda: call.get_variable("FAGI_STATUS"))
        call.set_variable("FAGI_STATUS", "SECOND")


def everyday(call: Call, context: Context) -> None:
    """Every everyday command once, none of which fails."""
    with Witness(call, context) as witness:
        note = witness.note
        note("status before", call.channel_status)
        note("answer", call.answer)
        note("status after", call.channel_status)
        note("verbose", lambda: call.verbose('says "hello"', 3))
        note("noop", call.noop)
        note("noop text", lambda: call.noop("in passing"))
        note("set", lambda: call.set_variable("PLACE", 'Köln "am" Rhein, \\ 50667 (D)'))
        note("get", lambda: call.get_variable("PLACE"))
        note("get unset", lambda: call.get_variable("NOT_SET"))
        note("get full", lambda: call.get_full_variable("${EXTEN}@${CONTEXT}: ${PLACE}"))
        note("get full unset", lambda: call.get_full_variable("${NOT_SET}"))
        note("exec", lambda: call.exec("Set", "BY_EXEC=one,two"))
        note("get by exec", lambda: call.get_variable("BY_EXEC"))
        note("stream file", lambda: call.stream_file("silence100ms"))
        note("stream file offset", lambda: call.stream_file("silence1", "#", 7200))
        note("wait for digit", lambda: call.wait_for_digit(0.1))
        note("get data", lambda: call.get_data("silence100ms", timeout_s=0.1, max_digits=4))
        note("say number", lambda: call.say_number(42))
        note("say digits", lambda: call.say_digits("07", "#"))
        note("status of", lambda: call.channel_status(call.request.channel))


def failing(call: Call, context: Context) -> None:
    """Commands that Asterisk cannot carry out; the handler goes on after each."""
    with Witness(call, context) as witness:
        call.answer()
        witness.note("no file", lambda: call.stream_file("no-such-file"))
        witness.note("no application", lambda: call.exec("NoSuchApplication", "x"))
        witness.note("no channel", lambda: call.channel_status("Local/nobody-1"))
        witness.note("no channel to hang up", lambda: call.hangup("Local/nobody-1"))
        witness.note("line end", lambda: call.set_variable("RESULT", "a\nHANGUP"))
        call.set_variable("RESULT", "still here")


def digits(call: Call, context: Context) -> None:
    """Commands that end when the caller presses a key; the test presses 5, 7, 1 2 #, 3 4 and 9."""
    with Witness(call, context) as witness:
        call.answer()
        witness.note("wait for digit", lambda: call.wait_for_digit(10))
        witness.note("stream file", lambda: call.stream_file("silence10", "789"))
        witness.note("get data", lambda: call.get_data("silence10", timeout_s=10))
        witness.note("get data max", lambda: call.get_data("silence10", timeout_s=10, max_digits=2))
        witness.note("get data timeout", lambda: call.get_data("silence100ms", timeout_s=1, max_digits=9))


def hangup_in_wait_for_digit(call: Call, context: Context) -> None:
    """The caller hangs up in WAIT FOR DIGIT."""
    _meet_hangup(call, context, lambda: call.wait_for_digit(60))


def hangup_in_stream_file(call: Call, context: Context) -> None:
    """The caller hangs up in STREAM FILE."""
    _meet_hangup(call, context, lambda: call.stream_file("silence10"))


def hangup_while_idle(call: Call, context: Context) -> None:
    """The caller hangs up while no command is outstanding: the next one learns of it.

    Or one soon after: the caller is gone a moment before Asterisk says HANGUP to the script.
    """

    def think() -> None:
        _wait_at_gate(call)
        for _ in range(10_000):
            call.noop()

    _meet_hangup(call, context, think)


def _meet_hangup(call: Call, context: Context, act: Callable[[], object]) -> None:
    with Witness(call, context) as witness:
        call.answer()
        call.set_variable("RESULT", "before")
        try:
            act()
        except CallHangup:
            _on_dead_channel(call, witness)
            raise


def after_hangup(call: Call, context: Context) -> None:
    """The script of the h extension: the channel is dead from its first command on."""
    with Witness(call, context) as witness:
        _on_dead_channel(call, witness)


def _on_dead_channel(call: Call, witness: Witness) -> None:
    note = witness.note
    note("get", lambda: call.get_variable("RESULT"))
    note("get full", lambda: call.get_full_variable("${RESULT}-${CONTEXT}"))
    note("verbose", lambda: call.verbose("on a dead channel"))
    note("noop", call.noop)
    note("exec", lambda: call.exec("NoOp", "dead"))
    note("answer", call.answer)
    note("stream file", lambda: call.stream_file("silence1"))
    note("get data", lambda: call.get_data("silence1", timeout_s=1))
    note("wait for digit", lambda: call.wait_for_digit(1))
    note("say number", lambda: call.say_number(7))
    note("say digits", lambda: call.say_digits("7"))
    note("channel status", call.channel_status)
    note("hangup", call.hangup)
    call.set_variable("RESULT", "after")


def hanging_up(call: Call, context: Context) -> None:
    """The script itself hangs up."""
    with Witness(call, context):
        call.answer()
        call.hangup()


def raising(call: Call, context: Context) -> None:
    """A handler with a bug."""
    with Witness(call, context):
        call.answer()
        raise RuntimeError("on purpose")


def broken(call: Call, context: Context) -> None:
    """A handler with a bug before its first command, so that it cannot know whether the channel lives."""
    with Witness(call, context):
        raise RuntimeError("on purpose")


def raising_late(call: Call, context: Context) -> None:
    """A handler whose bug shows when it has done half of its work."""
    with Witness(call, context):
        call.answer()
        call.set_variable("RESULT", "half")
        call.stream_file("silence100ms")
        raise ValueError('no "such" thing, ${EXTEN} (a\nb)')


def raising_after_hangup(call: Call, context: Context) -> None:
    """A handler whose bug is in what it does after a hangup."""
    with Witness(call, context):
        call.answer()
        try:
            call.wait_for_digit(60)
        except CallHangup:
            raise RuntimeError("on purpose") from None


def going_on(call: Call, context: Context) -> None:
    """A handler on a route with ``on_hangup: continue``: the caller hangs up in WAIT FOR DIGIT."""
    with Witness(call, context) as witness:
        call.answer()
        call.set_variable("RESULT", "before")
        witness.note("hung up before", lambda: call.hung_up)
        witness.note("hangup in", lambda: call.wait_for_digit(60))
        witness.note("hung up after", lambda: call.hung_up)
        _on_dead_channel(call, witness)


def finishing(call: Call, context: Context) -> None:
    """A handler that gives the call back and has work to do afterwards, until the test opens the gate."""
    with Witness(call, context) as witness:
        call.set_variable("RESULT", "served")
        call.finish()
        _wait_at_gate(call)
        witness.note("set", lambda: call.set_variable("RESULT", "too late"))


def careless(call: Call, context: Context) -> None:
    """A handler that puts into a variable what would harm Asterisk."""
    with Witness(call, context) as witness:
        witness.note("set", lambda: call.set_variable("RESULT", "one\r\nHANGUP\0two"))


def printing(call: Call, context: Context) -> None:
    """A handler that prints, as people do who know AGI scripts that talk through standard output."""
    with Witness(call, context):
        print("HANGUP")
        call.set_variable("RESULT", "printed")
        print("without an end", end="")


def busy(call: Call, context: Context) -> None:
    """A script that lets Asterisk run an application that nothing can interrupt."""
    with Witness(call, context):
        call.answer()
        call.exec("Wait", "1")


def patient(call: Call, context: Context) -> None:
    """A script that lets Asterisk wait for two seconds."""
    with Witness(call, context) as witness:
        call.answer()
        witness.note("wait for digit", lambda: call.wait_for_digit(2))


def held(call: Call, context: Context) -> None:
    """A call that is in progress until the test opens the gate, and has work to do afterwards."""
    with Witness(call, context) as witness:
        call.answer()
        _wait_at_gate(call)
        witness.note("stream file", lambda: call.stream_file("silence100ms"))
        call.set_variable("RESULT", "finished")


def _wait_at_gate(call: Call) -> None:
    """Wait until the test opens its gate: see tests/external/asterisk/gate.py."""
    host, _, port = call.request.query["gate"].rpartition(":")
    try:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{call.request.uniqueid}\n".encode())
            connection.recv(1)
    except OSError:
        pass  # opened while we came
