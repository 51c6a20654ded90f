"""Recorded calls leave the same rows and are sent the same commands, on every kind of database server."""

from __future__ import annotations

from functools import partial
from typing import Final

import pytest

from .playing import Scenario, recorded
from .sites import RELAXED_AS_GIVEN, RELAXED_MYISAM, STRICT_AS_GIVEN, Site, Sites

pytestmark = pytest.mark.mariadb

#: Neighbours that differ in settings only: of the campaign, of the system, of the server.
_SETTINGS_IN_TURN: Final = ("S05", "S06", "S05", "E22b", "E22", "E22b", "O08", "O09", "E08-2", "E08-3")


@pytest.fixture(scope="module", params=[RELAXED_AS_GIVEN, STRICT_AS_GIVEN, RELAXED_MYISAM], ids=str)
def site(request: pytest.FixtureRequest, sites: Sites) -> Site:
    """Give a site of each kind in turn, which reads its settings anew for each call."""
    return sites.open(request.param)


@pytest.mark.parametrize("name", recorded())
def test_recorded_call(site: Site, name: str) -> None:
    """The call changes the rows that VICIdial's daemon changed, no others, and gets the same commands."""
    differences = site.differences(recorded()[name])

    assert not differences, "\n".join(differences)


def test_changed_settings_count_soon(sites: Sites) -> None:
    """Settings are trusted for a second: after that, calls are served by the new ones."""
    site = sites.open(RELAXED_AS_GIVEN, settings_ttl_s=1.0)

    for name in _SETTINGS_IN_TURN:
        site.pool.await_that(partial(_agrees, site, recorded()[name]), f"plays {name}")


def _agrees(site: Site, scenario: Scenario) -> bool:
    return not site.differences(scenario)
