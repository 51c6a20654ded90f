"""Requests in VICIdial's tables, for tests of what one chapter of a call does there.

Laws:
    * Settings are those of the tables at the time, never a copy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from vicidial.playing import SERVER_IP, Placed, Row, Scenario

from fastagi_pool.database import Database
from fastagi_pool.executor import Executor
from fastagi_pool.handlers.vicidial.grammar import read_request
from fastagi_pool.handlers.vicidial.leg import Leg, Moment, Site
from fastagi_pool.handlers.vicidial.rows import Campaign
from fastagi_pool.handlers.vicidial.tables import Tables

#: When a request begins, unless a test says otherwise.
NOW: Final = Moment.at(1_700_000_040)

_LOG: Final = logging.getLogger("vicidial_legs")


def state_before(*given: Placed, system: Row | None = None) -> Scenario:
    """Give what is there before a call.

    Args:
        given: The rows of the tables.
        system: Columns of ``system_settings`` that differ from the usual.
    """
    return Scenario("", system or {}, {}, given, {}, (), ())


def tables_of(database: Database, settings_ttl_s: float = 0.0) -> Tables:
    """Make the tables as handlers see them.

    Args:
        database: VICIdial's.
        settings_ttl_s: How old settings may be; 0 reads them for each use.
    """
    return Tables(Executor(database), SERVER_IP, settings_ttl_s, _LOG)


def leg_of(tables: Tables, now: Moment = NOW, agi: Mapping[str, str] | None = None, **options: Any) -> Leg:
    """Make a request for ``call_log``, an END.

    Args:
        tables: The database; it has the settings.
        now: When the request began.
        agi: What Asterisk says more, or says differently, without ``agi_``.
        options: What the operator decided, by the names of :class:`Site`.
    """
    said = {"request": "agi://127.0.0.1:4577/call_log", "extension": "h", **(agi or {})}
    request = read_request({f"agi_{name}": value for name, value in said.items()})
    assert request is not None
    return Leg(Site(SERVER_IP, **options), request, now, tables, *tables.site())


def campaign_of(tables: Tables) -> Campaign:
    """Read the settings of the only campaign."""
    campaign = tables.campaign("TESTCAMP")
    assert campaign is not None
    return campaign
