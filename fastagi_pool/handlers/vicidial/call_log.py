"""The handler: one request of VICIdial's dialplan, START or END.

Laws:
    * What a worker keeps (the database, cached settings, log files) knows no call; what a call needs is
      made for it alone.
    * A request for anything but ``call_log`` is accepted and does nothing, as ever.
    * A request whose database is away may be served later, from the journal. However often it was begun, it
      leaves the rows, and the lines in VICIdial's log files, of one run at the time when it came.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fastagi_pool.deferring import deferrable
from fastagi_pool.errors import DatabaseBusy, DatabaseUnavailable, RowsLost
from fastagi_pool.executor import Executor
from fastagi_pool.handlers.vicidial.grammar import Stage, read_request
from fastagi_pool.handlers.vicidial.hangup import end
from fastagi_pool.handlers.vicidial.leg import Leg, Moment, Site
from fastagi_pool.handlers.vicidial.logfiles import LogFiles
from fastagi_pool.handlers.vicidial.memory import Memories
from fastagi_pool.handlers.vicidial.options import check_options, read_site
from fastagi_pool.handlers.vicidial.queuelog import QueueLogs
from fastagi_pool.handlers.vicidial.start import start
from fastagi_pool.handlers.vicidial.tables import Tables, lost_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastagi_pool.call import Call
    from fastagi_pool.context import Context
    from fastagi_pool.database import Database
    from fastagi_pool.handlers.vicidial.grammar import CallLogRequest

__all__ = ["call_log", "check_options", "setup", "teardown"]

_DESKS: Final = "vicidial.desks"
_LOG: Final = "vicidial.log"
_PROCESS: Final = "call_log"
#: Pauses before repetitions for a call that would be done again later: shorter than anybody would wait.
_SHORT_PAUSES_S: Final = (0.0, 0.02, 0.1)


@dataclass(frozen=True, slots=True)
class _Desk:
    """What a worker keeps for the calls of one route.

    Attributes:
        options: By which the desk is known; kept, so that no other options get their address.
        site: What they mean.
        tables: VICIdial's database.
        queue_logs: QueueMetrics' databases.
        files: VICIdial's log files.
        memories: What runs from the journal knew.
    """

    options: Mapping[str, Any]
    site: Site
    tables: Tables
    queue_logs: QueueLogs
    files: LogFiles
    memories: Memories


def setup(context: Context) -> None:
    """Keep the worker's log, for what outlives a call."""
    context.state[_LOG] = context.log


def _database_of(options: Mapping[str, Any]) -> str:
    """Name the database whose outage defers the calls of a route."""
    return read_site(options).database


@deferrable(database=_database_of, repeatable=True)
def call_log(call: Call, context: Context) -> None:
    """Serve a request of VICIdial's dialplan.

    Raises:
        DatabaseUnavailable: The database is away; what could not be written is missing, or comes later.
        DatabaseBusy: The same, because something stood in the way for too long.
        RowsLost: All was done but for some rows; the log says which.
    """
    desk = _desk(call, context)
    request = read_request(call.request.environment, desk.site.strip_parenthesis)
    if request is None:
        return
    began_s, is_repeated = time.monotonic(), False
    leg = _leg(desk, request, call)
    lost: list[str] = []
    lost_rows.set(lost)
    context.waits_for_database(f"call_log {request.stage.value}")
    try:
        if request.stage is Stage.START:
            start(leg, call)
        else:
            end(leg, desk.queue_logs)
    except (DatabaseUnavailable, DatabaseBusy):
        is_repeated = call.deferrable or call.deferred
        raise
    finally:
        context.charge_database(time.monotonic() - began_s - leg.outside_s)
        if is_repeated or call.deferred:
            desk.memories.keep(call, leg.memory)
        if not is_repeated:
            _write_logs(desk.files, leg)
    if lost:
        raise RowsLost(f"not everything was written: {'; '.join(lost)}")


def teardown(context: Context) -> None:
    """Close what the worker keeps."""
    for desk in context.state.pop(_DESKS, {}).values():
        desk.queue_logs.close()
        desk.files.close()


def _desk(call: Call, context: Context) -> _Desk:
    desks: dict[tuple[int, bool, bool], _Desk] = context.state.setdefault(_DESKS, {})
    key = (id(context.options), call.deferrable, call.deferred)
    desk = desks.get(key)
    if desk is None:
        site, log = read_site(context.options), context.state[_LOG]
        executor = _executor(context.database(site.database), call)
        tables = Tables(executor, site.server_ip, site.settings_ttl_s, log)
        files = LogFiles(site.path_logs, log)
        desk = _Desk(context.options, site, tables, QueueLogs(site, log), files, Memories())
        desks[key] = desk
    return desk


def _executor(database: Database, call: Call) -> Executor:
    """Make what carries statements out for calls of this kind."""
    if call.deferred:
        # One transaction is around all: what is rolled back is begun anew from its beginning, by others.
        return Executor(database, (), waits_for_server=False)
    if call.deferrable:
        return Executor(database, _SHORT_PAUSES_S, waits_for_server=False)
    return Executor(database)


def _leg(desk: _Desk, request: CallLogRequest, call: Call) -> Leg:
    server, system = desk.tables.site()
    return Leg(
        desk.site,
        request,
        Moment.at(int(call.received_s)),
        desk.tables,
        server,
        system,
        careful=call.deferred,
        late_s=max(0.0, time.time() - call.received_s) if call.deferred else None,
        memory=desk.memories.recall(call),
    )


def _write_logs(files: LogFiles, leg: Leg) -> None:
    """Write what VICIdial's operators look for."""
    output, now_epoch = leg.server.agi_output, leg.now.epoch
    if leg.notes:
        files.debug(leg.notes, _PROCESS, output, now_epoch)
    for decision in leg.alt_dials:
        files.alt_dial(decision, output, now_epoch)
    if leg.hangup_cause is not None:
        files.hangup_cause(leg.hangup_cause, now_epoch)
