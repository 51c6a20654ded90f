"""Fixtures of the tests of legacy scripts: the scripts, and pools to run them.

The environment may say REQUIRE_SERVICES=1: fail rather than skip where a language is missing.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from integration.conftest import pools, pytest_runtest_makereport, shared_pools

from .agibin import fill
from .packages import LanguagesMissingError, provide_languages

#: The pools of the other tests with a running server; their files are kept if a test failed.
__all__ = ["pools", "pytest_runtest_makereport", "shared_pools"]


@pytest.fixture(scope="session")
def languages() -> None:
    """Perl, PHP and the libraries of scripts; skips, or fails under REQUIRE_SERVICES=1, without them."""
    try:
        provide_languages()
    except LanguagesMissingError as error:
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(f"no languages: {error}", pytrace=False)
        pytest.skip(f"no languages: {error}")


@pytest.fixture(scope="session")
def agi_bin(languages: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all scripts, to be left as it is."""
    return fill(tmp_path_factory.mktemp("agi-bin"))
