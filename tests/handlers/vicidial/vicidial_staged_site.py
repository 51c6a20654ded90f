"""StagedSite: a worker in the tests' own process, and whole requests of VICIdial's dialplan that it serves.

Laws:
    * A call is a recorded one, or differs from one only by what a test says.
    * Waiting is bounded, and says for what it waited.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import gevent
from vicidial.playing import Placed, Scenario, recorded
from vicidial.tables import Tables
from vicidial_database import pool_databases, pool_route

from fastagi_pool.handlers.vicidial.call_log import call_log
from fastagi_pool.stage import Stage, StagedCall
from fastagi_pool.testing import Caller

OTHER_SERVER: Final = "10.0.0.2"
#: Longest wait for something that is about to happen.
_SOON_S: Final = 10.0


class StagedSite:
    """A worker in this process that serves VICIdial's calls, with its tables.

    Settings are read for each call unless an option says otherwise.

    Args:
        tables: VICIdial's.
        databases: They, in the words of the configuration file.
        stage: Plays the calls.
        logs: The folder for VICIdial's log files.
    """

    def __init__(self, tables: Tables, databases: Mapping[str, Any], stage: Stage, logs: Path) -> None:
        self.tables = tables
        self.databases = databases
        self.logs = logs
        self._stage = stage

    def load(self, *calls: Scenario) -> None:
        """Empty the tables and put in what the calls want."""
        self.tables.load(*calls)

    def run(self, call: Scenario, options: Mapping[str, Any] | None = None) -> StagedCall:
        """Load what a call wants and play it."""
        self.load(call)
        return self.play(call, options)

    def play(
        self,
        call: Scenario,
        options: Mapping[str, Any] | None = None,
        route: Mapping[str, Any] | None = None,
        catch: bool = False,
        **behaviour: Any,
    ) -> StagedCall:
        """Play one call.

        Args:
            call: Of it only what Asterisk says; see :meth:`load`.
            options: The handler's. Calls with the same options meet in one worker.
            route: Further words of the route.
            catch: Whether an exception is only put into the result.
            behaviour: What caller and channel do.
        """
        words = {**pool_route(self.logs, **{"settings_ttl": 0, **(options or {})}), **(route or {})}
        return self._stage(
            call_log,
            call.agi["request"].split("/", 3)[3],
            route=words,
            databases=self.databases,
            caller=_caller(call),
            catch=catch,
            **behaviour,
        )

    def rows(self, table: str, *columns: str) -> list[tuple[Any, ...]]:
        """Give these columns of all rows, in their order."""
        order = ", ".join(str(place) for place in range(1, len(columns) + 1))
        found = self.tables.query(f"SELECT {', '.join(columns)} FROM `{table}` ORDER BY {order}")
        return [tuple(row.values()) for row in found]

    def closed(self) -> list[str]:
        """Give the unique ids of the calls whose rows are closed."""
        return [row[0] for row in self.rows("call_log", "uniqueid", "end_epoch") if (row[1] or 0) > 1000]

    def lines(self, name: str) -> list[str]:
        """Give the lines of the log file with this name; a day's file by its name before the date."""
        paths = [*self.logs.glob(f"{name}.????-??-??"), *self.logs.glob(name)]
        return [line for path in paths for line in path.read_text().splitlines()]


def _caller(call: Scenario) -> Caller:
    agi = call.agi
    return Caller(
        number=agi["callerid"],
        name=agi["calleridname"],
        extension=agi["extension"],
        channel=agi["channel"],
        uniqueid=agi["uniqueid"],
    )


def made_site(tables: Tables, stage: Stage, logs: Path) -> StagedSite:
    """Open a site on tables that are empty but for their settings."""
    tables.load(recorded()["S01"])
    return StagedSite(tables, pool_databases(tables.url), stage, logs)


def call_of(name: str, *more_rows: Placed, **agi: str) -> Scenario:
    """Give a recorded call, with further rows, in which Asterisk says something differently."""
    call = recorded()[name]
    return replace(call, rows=(*call.rows, *more_rows), agi={**call.agi, **agi})


def with_columns(call: Scenario, table: str, **columns: object) -> Scenario:
    """Change columns in a call's rows of one table."""
    rows = tuple((name, {**row, **columns} if name == table else row) for name, row in call.rows)
    return replace(call, rows=rows)


def without(call: Scenario, *tables: str) -> Scenario:
    """Leave out a call's rows of these tables."""
    return replace(call, rows=tuple(each for each in call.rows if each[0] not in tables))


def hangup_request(debug: str = "NODEBUG", tech_cause: str = "SIP 486 Busy Here") -> str:
    """Write the URL of a hangup with cause 17."""
    fields = "-----".join(["PRI", debug, "17", "BUSY", "30", "20", tech_cause])
    return f"agi://127.0.0.1:4577/call_log--HVcauses--{fields}"


def parked(server_ip: str, channel: str, code: str = "V1202150310000000101") -> Placed:
    """Give the row of a call that is parked."""
    return "parked_channels", {"channel": channel, "server_ip": server_ip, "channel_group": code}


def await_that(is_so: Callable[[], bool], what: str) -> None:
    """Let the calls that are under way go on until something is so."""
    give_up_s = time.monotonic() + _SOON_S
    while not is_so():
        assert time.monotonic() < give_up_s, f"it never came that {what}"
        gevent.sleep(0.001)
