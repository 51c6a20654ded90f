"""The handler: one request of VICIdial's dialplan, START or END.

Laws:
    * What a worker keeps (the database, cached settings, log files) knows no call; what a call needs is
      made for it alone.
    * A request for anything but ``call_log`` is accepted and does nothing, as ever.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fastagi_pool.errors import RowsLost
from fastagi_pool.executor import Executor
from fastagi_pool.handlers.vicidial.grammar import Stage, read_request
from fastagi_pool.handlers.vicidial.hangup import end
from fastagi_pool.handlers.vicidial.leg import Leg, Moment, Site
from fastagi_pool.handlers.vicidial.logfiles import LogFiles
from fastagi_pool.handlers.vicidial.options import check_options, read_site
from fastagi_pool.handlers.vicidial.queuelog import QueueLogs
from fastagi_pool.handlers.vicidial.start import start
from fastagi_pool.handlers.vicidial.tables import Tables, lost_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastagi_pool.call import Call
    from fastagi_pool.context import Context

__all__ = ["call_log", "check_options", "setup", "teardown"]

_DESKS: Final = "vicidial.desks"
_LOG: Final = "vicidial.log"
_PROCESS: Final = "call_log"


@dataclass(frozen=True, slots=True)
class _Desk:
    """What a worker keeps for the calls of one route.

    Attributes:
        options: By which the desk is known; kept, so that no other options get their address.
        site: What they mean.
        tables: VICIdial's database.
        queue_logs: QueueMetrics' databases.
        files: VICIdial's log files.
    """

    options: Mapping[str, Any]
    site: Site
    tables: Tables
    queue_logs: QueueLogs
    files: LogFiles


def setup(context: Context) -> None:
    """Keep the worker's log, for what outlives a call."""
    context.state[_LOG] = context.log


def call_log(call: Call, context: Context) -> None:
    """Serve a request of VICIdial's dialplan.

    Raises:
        DatabaseUnavailable: The database is away; what could not be written is missing.
        DatabaseBusy: The same, because something stood in the way for too long.
        RowsLost: All was done but for some rows; the log says which.
    """
    desk = _desk(context)
    request = read_request(call.request.environment, desk.site.strip_parenthesis)
    if request is None:
        return
    now = Moment.at(int(time.time()))
    began_s = time.monotonic()
    server, system = desk.tables.site()
    lost: list[str] = []
    lost_rows.set(lost)
    leg = Leg(desk.site, request, now, desk.tables, server, system)
    context.waits_for_database(f"call_log {request.stage.value}")
    try:
        if request.stage is Stage.START:
            start(leg, call)
        else:
            end(leg, call, desk.queue_logs)
    finally:
        context.charge_database(time.monotonic() - began_s - leg.outside_s)
        _write_logs(desk.files, leg)
    if lost:
        raise RowsLost(f"not everything was written: {'; '.join(lost)}")


def teardown(context: Context) -> None:
    """Close what the worker keeps."""
    for desk in context.state.pop(_DESKS, {}).values():
        desk.queue_logs.close()
        desk.files.close()


def _desk(context: Context) -> _Desk:
    desks: dict[int, _Desk] = context.state.setdefault(_DESKS, {})
    desk = desks.get(id(context.options))
    if desk is None:
        site, log = read_site(context.options), context.state[_LOG]
        executor = Executor(context.database(site.database))
        tables = Tables(executor, site.server_ip, site.settings_ttl_s, log)
        desk = _Desk(context.options, site, tables, QueueLogs(site, log), LogFiles(site.path_logs, log))
        desks[id(context.options)] = desk
    return desk


def _write_logs(files: LogFiles, leg: Leg) -> None:
    """Write what VICIdial's operators look for."""
    output, now_epoch = leg.server.agi_output, leg.now.epoch
    if leg.notes:
        files.debug(leg.notes, _PROCESS, output, now_epoch)
    for decision in leg.alt_dials:
        files.alt_dial(decision, output, now_epoch)
    if leg.hangup_cause is not None:
        files.hangup_cause(leg.hangup_cause, now_epoch)
