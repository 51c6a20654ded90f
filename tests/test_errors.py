"""The error tree: its shape, and what its members say."""

from __future__ import annotations

import inspect
import re

import pytest

from fastagi_pool import errors
from fastagi_pool.errors import (
    AGIAppError,
    AGICommandFailed,
    AGICommandRefused,
    AGIDeadChannel,
    AGIError,
    AGIInvalidCommand,
    AGIUsageError,
    CallEnded,
    CallHangup,
    CallPeerGone,
    CallStopped,
    CallTimeout,
    ConfigError,
    DatabaseUnavailable,
    FastAGIPoolError,
    OperatorError,
    Problem,
    ToldFailure,
)

AGI_ERRORS = [
    AGICommandRefused,
    AGIInvalidCommand,
    AGIDeadChannel,
    AGIUsageError,
    AGIAppError,
    AGICommandFailed,
]


def drawn_tree() -> dict[str, str]:
    """Read the tree in the module's docstring: each class and the one above it."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([ |`-]*)(\w+)(?:\((\w+)\))?(?:   .*)?$", line)
        if found is None:
            continue
        depth, name, base = len(found[1]), found[2], found[3]
        above = [item for item in above if item[0] < depth]
        parents[name] = base or above[-1][1]
        above.append((depth, name))
    return parents


def test_the_drawn_tree_is_the_real_one() -> None:
    """The tree in the docstring, which tells a reader whom to ask, names every class in its place."""
    classes = [item for _, item in inspect.getmembers(errors, inspect.isclass) if item is not Problem]
    real = {
        item.__name__: item.__bases__[0].__name__ for item in classes if item.__module__ == errors.__name__
    }
    assert drawn_tree() == real


def test_the_end_of_a_call_is_no_exception() -> None:
    """A handler's ``except Exception`` cannot swallow the end of its call."""
    for ended in (CallHangup, CallTimeout, CallPeerGone, CallStopped):
        assert issubclass(ended, CallEnded)
        assert not issubclass(ended, Exception)


def test_ours_are_told_from_others() -> None:
    """One ``except FastAGIPoolError`` catches whatever we call an error."""
    for error in (OperatorError, DatabaseUnavailable, AGIError):
        assert issubclass(error, FastAGIPoolError)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("a.yaml", 3, "workers", "must be a number"), "a.yaml:3: workers: must be a number"),
        (Problem("a.yaml", 3, "", "is no mapping"), "a.yaml:3: is no mapping"),
        (Problem("a.yaml", 0, "workers", "is missing"), "a.yaml: workers: is missing"),
        (Problem("a.yaml", 0, "", "cannot be read"), "a.yaml: cannot be read"),
        (
            Problem("a.yaml", 3, "wokers", "is unknown", "did you mean 'workers'?"),
            "a.yaml:3: wokers: is unknown (did you mean 'workers'?)",
        ),
    ],
)
def test_a_problem_is_one_line(problem: Problem, text: str) -> None:
    """A problem is shown as ``file:line: key: message (hint)``, without what it does not have."""
    assert str(problem) == text


def test_config_error_tells_all() -> None:
    """An operator sees every problem at once, in the order given, one a line."""
    problems = [Problem("a.yaml", 1, "x", "is bad"), Problem("a.yaml", 2, "y", "is worse")]
    error = ConfigError(iter(problems))
    assert error.problems == tuple(problems)
    assert str(error) == "a.yaml:1: x: is bad\na.yaml:2: y: is worse"


@pytest.mark.parametrize("kind", AGI_ERRORS)
def test_an_agi_error_shows_its_command(kind: type[AGIError]) -> None:
    """A log line about a failed command names the command, and code can ask for it."""
    error = kind("failed", "ANSWER")
    assert (str(error), error.command) == ("failed: ANSWER", "ANSWER")
    assert str(kind("failed")) == "failed"


def test_a_usage_error_carries_the_usage() -> None:
    """Asterisk's explanation can be had, but does not fill the message with its many lines."""
    error = AGIUsageError("wrong syntax", "GET VARIABLE", "Usage: ...\n...")
    assert error.usage == "Usage: ...\n..."
    assert "Usage" not in str(error)


def test_a_timeout_tells_which_limit() -> None:
    """The message of a time-out names the limit and its length as an operator would write it."""
    ended = CallTimeout("script", 60.0)
    assert (ended.limit, ended.limit_s) == ("script", 60.0)
    assert str(ended) == "script time-out of 60 s"


def test_an_unavailable_database_is_named() -> None:
    """A log line about a database that is away says which one and why."""
    error = DatabaseUnavailable("main", "connection refused")
    assert error.database == "main"
    assert str(error) == "database 'main' is not available: connection refused"


def test_a_failure_that_is_long() -> None:
    """What somebody else said is kept whole for the dialplan, but fills no log."""
    told = ToldFailure(b"failure " + b"\0" * 60_000 + b"\n")
    assert len(told.line) == 60_009
    assert len(str(told)) < 1_000
