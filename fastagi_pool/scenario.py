"""Scenario: calls written down in a YAML file, with what is expected of each, for people who write no Python.

Laws:
    * A scenario that exists can be played: everything in its file has been checked.
    * What is compared and what it says when something differs is decided here; placing calls is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field

from fastagi_pool.asterisk import HANGUP, AgiStatus, Behaviour, Caller, Hangup
from fastagi_pool.findings import RefusedValue
from fastagi_pool.section import Section, checked
from fastagi_pool.values import Text, Truth, Whole
from fastagi_pool.yamlfile import Layout, Location, read_file

_LAYOUT: Final = Layout(joined=frozenset({"calls"}), folders=frozenset())
_HANGUP_WORD: Final = "hangup"
_DIGITS: Final = frozenset("0123456789ABCD*#")
_PRESS_HINT: Final = "write '' where the caller dials nothing"


def _press(value: object) -> str | Hangup:
    if value == _HANGUP_WORD:
        return HANGUP
    if isinstance(value, str) and set(value) <= _DIGITS:
        return str(value)
    raise RefusedValue("must be made of the digits 0-9 A-D * #, or be 'hangup'", _PRESS_HINT)


class CallerSection(Section):
    """Who calls."""

    number: Text = Field(default="100", description="The caller's number.")
    name: Text = Field(default="Alice", description="The caller's name.")
    context: Text = Field(default="default", description="The dialplan's context.")
    extension: Text = Field(default="100", description="The dialplan's extension.")
    channel: Text = Field(default="PJSIP/alice-00000001", description="The channel's name.")
    uniqueid: Text = Field(default="1700000000.1", description="The channel's unique id.")


class Expectation(Section):
    """What must come of a call; what is not named is not looked at."""

    status: AgiStatus = Field(default=AgiStatus.SUCCESS, description="AGISTATUS.")
    variables: Mapping[str, Text | None] = Field(
        default={}, description="Channel variables at the end: a glob, or nothing for one that is not set."
    )
    commands: tuple[Text, ...] | None = Field(
        default=None, description="The commands, all and in order, each as a glob."
    )
    hung_up: Truth | None = Field(default=None, description="Whether the channel hung up.")


class ScenarioCall(Section):
    """One call."""

    name: Text = Field(default="", description="What to call it; the script if it is missing.")
    url: Text = Field(description="As in AGI(): agi://HOST:PORT/SCRIPT, or the script alone.")
    arguments: tuple[Text, ...] = Field(default=(), description="As in AGI() behind the URL.")
    caller: CallerSection = Field(default_factory=CallerSection, description="Who calls.")
    presses: tuple[Annotated[Any, BeforeValidator(_press)], ...] = Field(
        default=(),
        description="What the caller dials at each prompt that listens, '' for nothing; `hangup` hangs up.",
    )
    hangup_after: Whole | None = Field(default=None, ge=0, description="Hang up after so many commands.")
    variables: Mapping[str, Text] = Field(default={}, description="Channel variables at the start.")
    database: Mapping[str, Text] = Field(default={}, description="Asterisk's database: family/key to value.")
    replies: Mapping[str, Text] = Field(default={}, description="Replies by the beginning of the command.")
    missing_files: tuple[Text, ...] = Field(default=(), description="Sound files that are not there.")
    missing_applications: tuple[Text, ...] = Field(default=(), description="Applications not there.")
    dead: Truth = Field(default=False, description="Whether the channel has hung up before (extension h).")
    expect: Expectation = Field(default_factory=Expectation, description="What must come of it.")

    @property
    def title(self) -> str:
        """What to call it."""
        return self.name or self.url

    @property
    def who(self) -> Caller:
        """The caller."""
        return Caller(**self.caller.model_dump())

    @property
    def behaviour(self) -> Behaviour:
        """What caller and channel do."""
        return Behaviour(
            presses=self.presses,
            hangup_after=self.hangup_after,
            variables=self.variables,
            database=self.database,
            replies=self.replies,
            missing_files=self.missing_files,
            missing_applications=self.missing_applications,
            dead=self.dead,
        )

    def differences(
        self, status: AgiStatus, variables: Mapping[str, str], commands: Sequence[str], hung_up: bool
    ) -> Iterator[str]:
        """Yield what is not as expected, each in a line or a few."""
        expect = self.expect
        if status is not expect.status:
            yield f"AGISTATUS is {status.value}, not {expect.status.value}"
        for name, glob in expect.variables.items():
            value = variables.get(name)
            if glob is None and value is not None:
                yield f"{name} is {value!r}, but should not be set"
            elif glob is not None and (value is None or not fnmatchcase(value, glob)):
                yield f"{name} is {'not set' if value is None else repr(value)}, not {glob!r}"
        if expect.hung_up is not None and hung_up is not expect.hung_up:
            yield f"the channel {'hung up' if hung_up else 'did not hang up'}"
        if expect.commands is not None:
            yield from _command_differences(expect.commands, commands)


def _command_differences(globs: Sequence[str], commands: Sequence[str]) -> Iterator[str]:
    for number, (glob, command) in enumerate(zip(globs, commands, strict=False), start=1):
        if not fnmatchcase(command, glob):
            yield f"command {number} is {command!r}, not {glob!r}"
    for number, command in enumerate(commands[len(globs) :], start=len(globs) + 1):
        yield f"command {number} is one too many: {command!r}"
    for number, glob in enumerate(globs[len(commands) :], start=len(commands) + 1):
        yield f"command {number} is missing: {glob!r}"


def _some(calls: tuple[ScenarioCall, ...]) -> tuple[ScenarioCall, ...]:
    if not calls:
        raise RefusedValue("must hold a call", "begin with '- url: SCRIPT'")
    return calls


class ScenarioFile(Section):
    """A file of scenarios."""

    calls: Annotated[tuple[ScenarioCall, ...], AfterValidator(_some)] = Field(
        description="The calls, placed one after another."
    )


def load_scenarios(path: Path, environment: Mapping[str, str]) -> tuple[ScenarioCall, ...]:
    """Read a file.

    Args:
        path: The YAML file.
        environment: The variables for ``${NAME}``.

    Raises:
        ConfigError: Something is wrong; it carries every problem that could be found.
    """
    return checked(read_file(path, environment, _LAYOUT), ScenarioFile, _known_keys).calls


def _known_keys(location: Location) -> list[str]:
    """Give the keys that the mapping at a location may have."""
    match location:
        case ():
            return ScenarioFile.file_keys()
        case ("calls", _):
            return ScenarioCall.file_keys()
        case ("calls", _, "caller"):
            return CallerSection.file_keys()
        case _:
            return Expectation.file_keys()
