"""fastagi_pool.scenario: calls in a YAML file, what is wrong with some, and how differences are told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fastagi_pool.asterisk import HANGUP, AgiStatus, Behaviour, Caller
from fastagi_pool.errors import ConfigError
from fastagi_pool.scenario import Expectation, ScenarioCall, load_scenarios

_PROJECT = Path(__file__).resolve().parent.parent

EVERYTHING = """\
calls:
  - name: everything
    url: agi://10.0.0.7/menu?lang=en
    arguments: [first, "", 3]
    caller:
      number: +49${AREA}1
      name: Bob
      context: sales
      extension: s
      channel: SIP/bob-1
      uniqueid: 17.1
    presses: ["", 1, "2345#", A, hangup]
    hangup_after: 4
    variables: {LANG: de, ON: on, NOTHING: ""}
    database: {family/key: 5}
    replies: {EXEC Dial: "200 result=0"}
    missing_files: [welcome]
    missing_applications: [Queue]
    dead: true
    expect:
      status: HANGUP
      variables: {CHOICE: 1, NAME: B*, GONE: }
      commands: [ANSWER, "GET DATA *"]
      hung_up: true
"""


def load(folder: Path, text: str, **environment: str) -> tuple[ScenarioCall, ...]:
    """Write a file and read it."""
    path = folder / "calls.yaml"
    path.write_text(text)
    return load_scenarios(path, environment)


def problems(folder: Path, text: str) -> list[str]:
    """Return what is wrong with a file, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [line.removeprefix(f"{folder}/calls.yaml:") for line in str(caught.value).splitlines()]


# ---- good files


def test_every_key(tmp_path: Path) -> None:
    """Every key reaches the caller, the behaviour or the expectation, unquoted numbers as their text."""
    (call,) = load(tmp_path, EVERYTHING, AREA="30")
    assert (call.title, call.url) == ("everything", "agi://10.0.0.7/menu?lang=en")
    assert call.arguments == ("first", "", "3")
    assert call.who == Caller("+49301", "Bob", "sales", "s", "SIP/bob-1", "17.1")
    assert call.behaviour == Behaviour(
        presses=("", "1", "2345#", "A", HANGUP),
        hangup_after=4,
        variables={"LANG": "de", "ON": "on", "NOTHING": ""},
        database={"family/key": "5"},
        replies={"EXEC Dial": "200 result=0"},
        missing_files=("welcome",),
        missing_applications=("Queue",),
        dead=True,
    )
    assert call.expect == Expectation(
        status=AgiStatus.HANGUP,
        variables={"CHOICE": "1", "NAME": "B*", "GONE": None},
        commands=("ANSWER", "GET DATA *"),
        hung_up=True,
    )


def test_defaults(tmp_path: Path) -> None:
    """A call needs nothing but its URL: then it is Alice's, and a success is expected."""
    first, second = load(tmp_path, "calls: [{url: hello}, {url: bye, expect: , presses: }]")
    assert first.title == "hello"
    assert first.who == Caller()
    assert first.behaviour == Behaviour(presses=(), missing_files=(), missing_applications=())
    assert first.expect == second.expect == Expectation(status=AgiStatus.SUCCESS)


def test_several_files(tmp_path: Path) -> None:
    """A file may include others; their calls come behind its own."""
    (tmp_path / "more.yaml").write_text("calls: [{url: second}]")
    found = load(tmp_path, "include: [more.yaml]\ncalls: [{url: first}]")
    assert [call.url for call in found] == ["first", "second"]


def test_demonstration_can_be_read() -> None:
    """The scenarios of the demonstration are good."""
    assert len(load_scenarios(_PROJECT / "tests/scenarios/demo.yaml", {})) == 5


# ---- files with problems


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("calls: []", "1: calls: must hold a call (begin with '- url: SCRIPT')"),
        ("calls:", "1: calls: is missing"),
        ("call: []", "1: call: is not a known key (did you mean 'calls'?)"),
        ("calls: hello", "1: calls: must be a list, each entry after '- '"),
        ("calls:\n  - hello", "2: calls[0]: must be a mapping"),
        ("calls:\n  - name: x", "2: calls[0].url: is missing"),
        ("calls:\n  - urll: x", "2: calls[0].urll: is not a known key (did you mean 'url'?)"),
        (
            "calls:\n  - url: x\n    caller: {numbr: 1}",
            "3: calls[0].caller.numbr: is not a known key (did you mean 'number'?)",
        ),
        (
            "calls:\n  - url: x\n    expect: {variable: {}}",
            "3: calls[0].expect.variable: is not a known key (did you mean 'variables'?)",
        ),
        (
            "calls:\n  - url: x\n    presses: ['1',\n      hangp]",
            "4: calls[0].presses[1]: must be made of the digits 0-9 A-D * #, or be 'hangup'"
            " (write '' where the caller dials nothing)",
        ),
        (
            "calls:\n  - url: x\n    presses: [~]",
            "3: calls[0].presses[0]: must be made of the digits 0-9 A-D * #, or be 'hangup'"
            " (write '' where the caller dials nothing)",
        ),
        (
            "calls:\n  - url: x\n    presses: hangup",
            "3: calls[0].presses: must be a list, each entry after '- '",
        ),
        (
            "calls:\n  - url: x\n    hangup_after: soon",
            "3: calls[0].hangup_after: must be a whole number without quotes, not 'soon'",
        ),
        ("calls:\n  - url: x\n    hangup_after: -1", "3: calls[0].hangup_after: must be at least 0"),
        ("calls:\n  - url: x\n    dead: maybe", "3: calls[0].dead: must be true or false, not 'maybe'"),
        ("calls:\n  - url: x\n    variables: [A]", "3: calls[0].variables: must be a mapping"),
        (
            "calls:\n  - url: x\n    variables: {A: [1]}",
            "3: calls[0].variables.A: must be text",
        ),
        (
            "calls:\n  - url: x\n    expect: {status: success}",
            "3: calls[0].expect.status: must be 'SUCCESS', 'FAILURE' or 'HANGUP'",
        ),
        (
            "calls:\n  - url: x\n    expect: {hung_up: perhaps}",
            "3: calls[0].expect.hung_up: must be true or false, not 'perhaps'",
        ),
        (
            "calls:\n  - url: x\n    expect: {variables: {A: {}}}",
            "3: calls[0].expect.variables.A: must be text",
        ),
        (
            "calls:\n  - url: x\n    expect: {commands: ANSWER}",
            "3: calls[0].expect.commands: must be a list, each entry after '- '",
        ),
    ],
)
def test_problem(text: str, found: str, tmp_path: Path) -> None:
    """What is wrong is told once, with its line, its key and what to write instead."""
    assert problems(tmp_path, text) == [found]


def test_all_problems_at_once(tmp_path: Path) -> None:
    """Whoever mends a file is told everything in one go, in the order of the lines."""
    text = "calls:\n  - url: x\n    presses: [y]\n    dead: maybe\n  - nam: x\nmore: 1\n"
    lines = [line.partition(": ")[0] for line in problems(tmp_path, text)]
    assert lines == ["3", "4", "5", "5", "6"]


def test_file_that_is_missing(tmp_path: Path) -> None:
    """Where there is no file, its name is told."""
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/none.yaml: does not exist")):
        load_scenarios(tmp_path / "none.yaml", {})


# ---- differences


def compare(
    expect: Mapping[str, Any],
    status: AgiStatus = AgiStatus.SUCCESS,
    variables: Mapping[str, str] | None = None,
    commands: Sequence[str] = (),
    hung_up: bool = False,
) -> list[str]:
    """Compare a call with what was expected of it."""
    call = ScenarioCall(url="x", expect=Expectation(**expect))
    return list(call.differences(status, variables or {}, commands, hung_up))


@pytest.mark.parametrize(
    ("expect", "found"),
    [
        ({}, []),
        ({"status": AgiStatus.HANGUP}, ["AGISTATUS is SUCCESS, not HANGUP"]),
        ({"variables": {"A": "1"}}, []),
        ({"variables": {"A": "?"}}, []),
        ({"variables": {"A": "*", "NAME": "[BR]ob"}}, []),
        ({"variables": {"A": "2"}}, ["A is '1', not '2'"]),
        ({"variables": {"NAME": "bob"}}, ["NAME is 'Bob', not 'bob'"]),
        ({"variables": {"B": "*"}}, ["B is not set, not '*'"]),
        ({"variables": {"B": None}}, []),
        ({"variables": {"A": None}}, ["A is '1', but should not be set"]),
        ({"variables": {"EMPTY": ""}}, []),
        ({"variables": {"EMPTY": None}}, ["EMPTY is '', but should not be set"]),
        ({"hung_up": False}, []),
        ({"hung_up": True}, ["the channel did not hang up"]),
        ({"commands": ("ANSWER", "SET VARIABLE A *")}, []),
        ({"commands": ("ANSWER", "NOOP*")}, ["command 2 is 'SET VARIABLE A 1', not 'NOOP*'"]),
        ({"commands": ("ANSWER",)}, ["command 2 is one too many: 'SET VARIABLE A 1'"]),
        ({"commands": ("ANSWER", "*", "HANGUP")}, ["command 3 is missing: 'HANGUP'"]),
        (
            {"commands": ()},
            ["command 1 is one too many: 'ANSWER'", "command 2 is one too many: 'SET VARIABLE A 1'"],
        ),
        (
            {"status": AgiStatus.FAILURE, "variables": {"A": "2"}, "hung_up": True},
            ["AGISTATUS is SUCCESS, not FAILURE", "A is '1', not '2'", "the channel did not hang up"],
        ),
    ],
)
def test_differences(expect: Mapping[str, Any], found: list[str]) -> None:
    """What is not as expected is told in words; what is not named is not looked at."""
    variables = {"A": "1", "NAME": "Bob", "EMPTY": ""}
    assert compare(expect, variables=variables, commands=("ANSWER", "SET VARIABLE A 1")) == found


def test_unexpected_hangup() -> None:
    """A channel that hung up though it should not have is told."""
    assert compare({"hung_up": False}, hung_up=True) == ["the channel hung up"]


def test_unexpected_status() -> None:
    """A success is expected where nothing else is named."""
    assert compare({}, status=AgiStatus.FAILURE) == ["AGISTATUS is FAILURE, not SUCCESS"]
