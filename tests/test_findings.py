"""Findings: what validators raise comes back with its place, its words and its hint."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from fastagi_pool.findings import Finding, RefusedValue, closest, did_you_mean, findings_of, refuse_all
from fastagi_pool.yamlfile import Location


def even(value: int) -> int:
    """Refuse an odd number with a hint."""
    if value % 2:
        raise RefusedValue("must be even", f"write {value + 1}")
    return value


def several(values: list[int]) -> list[int]:
    """Refuse each negative number at its own place."""
    refuse_all(
        [Finding((number,), "is negative", "drop it") for number, value in enumerate(values) if value < 0]
    )
    return values


class Shelf(BaseModel):
    """A model with a value of each way to fail."""

    model_config = ConfigDict(extra="forbid")

    height: Annotated[int, AfterValidator(even)] = 0
    books: Annotated[list[int], AfterValidator(several)] = []


class Room(BaseModel):
    """A model that holds others."""

    model_config = ConfigDict(extra="forbid")

    shelf: Shelf


def findings(values: object) -> list[Finding]:
    """Give what is wrong with a room."""

    def known(location: Location) -> Collection[str]:
        return Shelf.model_fields if location else Room.model_fields

    with pytest.raises(ValidationError) as caught:
        Room.model_validate(values)
    return list(findings_of(caught.value, known))


def test_refusal_keeps_its_hint() -> None:
    """What a reader says to do reaches the operator together with the whole key path."""
    assert findings({"shelf": {"height": 3}}) == [Finding(("shelf", "height"), "must be even", "write 4")]


def test_each_place_is_a_finding() -> None:
    """One validator may find several things, and each keeps its own place."""
    assert findings({"shelf": {"books": [1, -1, -2]}}) == [
        Finding(("shelf", "books", 1), "is negative", "drop it"),
        Finding(("shelf", "books", 2), "is negative", "drop it"),
    ]


def test_nothing_found_refuses_nothing() -> None:
    """A check that found nothing lets the value through."""
    refuse_all([])


def test_misspelt_key_is_one_finding() -> None:
    """A required key that is misspelt is unknown, and not missing as well."""
    assert findings({"shelv": {}}) == [
        Finding(("shelv",), "is not a known key", "did you mean 'shelf'?"),
    ]


def test_unknown_key_in_a_section() -> None:
    """The key that was probably meant is looked for in the mapping that the wrong one stands in."""
    assert findings({"shelf": {"heigth": 1, "zzz": 2}}) == [
        Finding(("shelf", "heigth"), "is not a known key", "did you mean 'height'?"),
        Finding(("shelf", "zzz"), "is not a known key"),
    ]


def test_closest() -> None:
    """Only a word that is near counts as meant."""
    assert closest("max_cals", ["max_calls", "listen"]) == "max_calls"
    assert closest("zzz", ["max_calls", "listen"]) == ""
    assert (did_you_mean("x"), did_you_mean("")) == ("did you mean 'x'?", "")
