"""Section: a mapping of a YAML file as a frozen model, and a file checked against its models.

Laws:
    * All problems of a file are reported at once, each with its file, line and key, in the words of the file
      and not in those of pydantic.
    * A key with nothing behind it counts as absent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fastagi_pool.errors import ConfigError, Problem
from fastagi_pool.findings import Finding, findings_of
from fastagi_pool.yamlfile import Document, Location


class Section(BaseModel):
    """What every mapping of a file has in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, values: object) -> object:
        """Treat ``allow:`` with nothing behind it (all commented out) as if the key were not there."""
        if not isinstance(values, Mapping):
            return values
        known = cls.file_keys()
        return {key: value for key, value in values.items() if value is not None or key not in known}

    @classmethod
    def file_keys(cls) -> list[str]:
        """Name the keys that this mapping may have in the file."""
        return [info.alias or name for name, info in cls.model_fields.items()]


Model = TypeVar("Model", bound=BaseModel)


def _nothing_more(values: Mapping[str, object]) -> Iterable[Finding]:
    return ()


def checked(
    document: Document,
    model: type[Model],
    known_keys: Callable[[Location], list[str]],
    further: Callable[[Mapping[str, object]], Iterable[Finding]] = _nothing_more,
) -> Model:
    """Check what stands in a file.

    Args:
        document: What was read.
        model: What the file as a whole must be.
        known_keys: Names the keys that the mapping at a place may have, for what was probably meant.
        further: Finds what pydantic does not get to when something else is wrong.

    Raises:
        ConfigError: Something is wrong; it carries every problem that could be found.
    """
    if not document.complete:
        raise ConfigError(_sorted(document.problems, document))
    try:
        checked_model = model.model_validate(document.values)
    except ValidationError as error:
        findings = dict.fromkeys(findings_of(error, known_keys))
        findings.update(dict.fromkeys(further(document.values)))
        problems = [*document.problems, *_problems(findings, document)]
        raise ConfigError(_sorted(problems, document)) from None
    if document.problems:
        raise ConfigError(_sorted(document.problems, document))
    return checked_model


def _sorted(problems: Collection[Problem], document: Document) -> list[Problem]:
    """Put the problems in the order of reading: the main file first, then line by line."""
    return sorted(
        problems, key=lambda found: (found.file != document.source_map.name, found.file, found.line)
    )


def _problems(findings: Iterable[Finding], document: Document) -> Iterator[Problem]:
    """Tell what was found at its place, unless the place itself is broken."""
    for found in findings:
        parents = (found.location[:length] for length in range(len(found.location) + 1))
        if not any(parent in document.broken for parent in parents):
            yield document.source_map.problem(found.location, found.message, found.hint)
