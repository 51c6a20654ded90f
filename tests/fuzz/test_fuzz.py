"""The count of generated inputs, on which the other tests here rely."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from .conftest import FULL, HALF, QUICK, Fuzz


def test_too_few_inputs_are_a_failure() -> None:
    """A run that ends before its time, because no more inputs are to be had, is no success."""
    reported: list[int] = []
    with pytest.raises(AssertionError, match="only 2 inputs of 3"):
        Fuzz(QUICK, reported.append)(lambda generated: None, st.booleans(), quick=3, full=2)
    assert reported == [2]


def test_the_profile_says_how_many() -> None:
    """Only ``full`` runs all inputs, and ``half`` its share; a profile that is not ours is ``quick``."""
    for profile, least in ((FULL, 200), (HALF, 100), (QUICK, 20), ("default", 20)):
        seen: list[bytes] = []
        Fuzz(profile, lambda number: None)(seen.append, st.binary(min_size=9), quick=20, full=200)
        assert least <= len(seen) < 2 * least
