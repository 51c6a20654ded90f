"""Findings: what is wrong in a configuration, from whoever notices it to the words of the operator.

Laws:
    * A message completes "KEY: ..."; a hint says what to do. Both speak of the file, never of Python.
    * The words of this module quote no value, which may be secret; a reader that knows its kind may do so.
    * One mistake is one finding.

pydantic carries what validators raise: a :class:`RefusedValue` for the value at hand, or
:func:`refuse_all` for several places below it. :func:`findings_of` takes its error apart again.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import InitErrorDetails

from fastagi_pool.yamlfile import Location

#: What to say instead of pydantic's own words, by the type of its error.
_MESSAGES: Final = {
    "missing": "is missing",
    "extra_forbidden": "is not a known key",
    "tuple_type": "must be a list, each entry after '- '",
    "dict_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "model_type": "must be a mapping",
    "string_type": "must be text",
    "string_too_long": "must not be longer than {max_length} characters",
    "greater_than": "must be more than {gt:.10g}",
    "greater_than_equal": "must be at least {ge:.10g}",
    "less_than_equal": "must be at most {le:.10g}",
    "enum": "must be {expected}",
    "value_error": "{error}",
}


class RefusedValue(ValueError):
    """A value that cannot be taken, and what to do about it.

    Attributes:
        hint: What to write instead; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Finding:
    """One thing wrong.

    Attributes:
        location: The key path, below the value that is being checked.
        message: What is wrong, and what would be right.
        hint: What to do about it; may be empty.
    """

    location: Location
    message: str
    hint: str = ""


def refuse_all(findings: Collection[Finding]) -> None:
    """Refuse a value for what is wrong at several places in it.

    Args:
        findings: What is wrong; if nothing is, nothing happens.

    Raises:
        ValidationError: pydantic takes it apart, so that each finding keeps its own key path.
    """
    if findings:
        raise ValidationError.from_exception_data(
            "configuration",
            [
                InitErrorDetails(
                    type="value_error",
                    loc=found.location,
                    input=None,
                    ctx={"error": RefusedValue(found.message, found.hint)},
                )
                for found in findings
            ],
        )


def findings_of(
    error: ValidationError, known_keys: Callable[[Location], Collection[str]]
) -> Iterator[Finding]:
    """Tell in the words of the file what pydantic found.

    Args:
        error: What pydantic raised for the whole configuration.
        known_keys: Gives the keys that the mapping at a location may have.
    """

    def guess(location: Location) -> Location:
        """Give the location that was probably meant by one with an unknown key."""
        mapping = location[:-1]
        return (*mapping, closest(str(location[-1]), known_keys(mapping)))

    details = error.errors(include_url=False, include_input=False)
    guesses = {guess(detail["loc"]) for detail in details if detail["type"] == "extra_forbidden"}
    for detail in details:
        kind, location = detail["type"], detail["loc"]
        context: dict[str, Any] = detail.get("ctx", {})
        message = _MESSAGES[kind].format(**context) if kind in _MESSAGES else detail["msg"]
        refusal = context.get("error")
        hint = refusal.hint if isinstance(refusal, RefusedValue) else ""
        if kind == "extra_forbidden":
            hint = did_you_mean(str(guess(location)[-1]))
        if location[-1:] == ("[key]",):
            location = location[:-1]
        # A key that is missing because it is misspelt is one problem, not two.
        if kind != "missing" or location not in guesses:
            yield Finding(location, message, hint)


def closest(word: str, known: Collection[str]) -> str:
    """Find the known word that was probably meant; empty if none is near."""
    return next(iter(difflib.get_close_matches(word, known, n=1)), "")


def did_you_mean(word: str) -> str:
    """Make the hint that asks for a word; empty for the empty word."""
    return f"did you mean '{word}'?" if word else ""
