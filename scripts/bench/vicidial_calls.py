"""VICIdial's calls: how many a second, next to a Perl server as VICIdial has it, and whether rows are right.

Laws:
    * What is judged as speed is a ratio to Perl calls that touch no database; see :func:`load.interleaved`.
    * A call that is fast and leaves a wrong row is no call: every row is looked at afterwards.
    * An END ends what a START of the same run began, and no call is ended twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Final

from bench import Bench
from figures import Figure, Section, judged, not_measured
from load import AT_ONCE, Load, LoadResult, interleaved, rate, ratios
from mariadb import MariaDBMissingError, MariaDBServer, find_mariadb
from mariadb_forwarder import MariaDBForwarder
from peers import PeerMissing, perl_prefork
from service import PoolService
from speed import speeds, spread
from sqlalchemy import make_url
from vicidial_agent_call import MOST_ROUND_TRIPS, end_agent_call
from vicidial_database import SERVER_IP, VicidialDatabase, pool_databases, pool_route

_WARM_UP_S: Final = 0.5
_PERL: Final = "Net::Server::PreFork, Perl, one VERBOSE"
_START: Final = "START, desk phone"
_END: Final = "END, desk phone"
#: Eight and five times what VICIdial's own daemon reaches of the same Perl peer: 0.10 and 0.05.
_LEAST_OF_PERL: Final = {_START: 0.83, _END: 0.27}
#: As the tests make the tables; this one is judged.
_ENGINE: Final = "InnoDB"
#: As VICIdial itself makes them.
_ITS_ENGINE: Final = "MyISAM"

_START_SCRIPT: Final = "call_log"
_END_SCRIPT: Final = "call_log--HVcauses--PRI-----NODEBUG-----16-----ANSWER-----30-----20-----SIP 200 OK"
_LONG_DISTANCE: Final = "913125551212"
#: Too short to be taken for VICIdial's code, so that the caller's number is.
_DESK_NAME: Final = "102"

_TITLE: Final = (
    f"2 workers with 4 connections each, {AT_ONCE} calls at a time, access log on; MariaDB on the same "
    f"cores, tables of {_ENGINE} with innodb_flush_log_at_trx_commit = 2, and of {_ITS_ENGINE} for "
    "information. ENDs end what STARTs of the run began. The Perl peer sends one VERBOSE a call and has no "
    "database."
)
_LOST: Final = ("calls bad, refused or unfinished", "0")
_ROWS: Final = "rows of call_log that are open, closed, and right"
_ROUND_TRIPS: Final = (
    "round trips to MariaDB of an END on a SIP leg that an agent handled",
    f"at most {MOST_ROUND_TRIPS}",
)

#: By whether rows are closed: how many, and how many hold in every column what the call's number says.
_COUNT_ROWS: Final = """
    SELECT end_epoch > 0, COUNT(*), CAST(SUM(
        uniqueid = CONCAT(1700000000 + number, '.', number) AND type = 'SIP' AND server_ip = %(server_ip)s
        AND channel_group = 'Outbound Long Distance' AND extension = 'gs102' AND number_dialed = '3125551212'
        AND caller_code = '7275551212' AND start_epoch = UNIX_TIMESTAMP(start_time)
        AND start_epoch BETWEEN %(begun_epoch)s AND UNIX_TIMESTAMP()
        AND IF(end_epoch > 0,
            channel = CONCAT('SIP/gs102-', LPAD(LOWER(HEX(number)), 8, '0')) AND end_epoch >= start_epoch
            AND end_epoch = UNIX_TIMESTAMP(end_time) AND length_in_sec = end_epoch - start_epoch
            AND ABS(length_in_min - length_in_sec / 60) < 0.0051,
            channel = 'SIP/gs102' AND end_time = '0000-00-00 00:00:00' AND length_in_sec = 0
            AND length_in_min = 0)
    ) AS UNSIGNED)
    FROM (SELECT *, CAST(SUBSTRING_INDEX(uniqueid, '.', -1) AS UNSIGNED) AS number FROM call_log) AS numbered
    GROUP BY end_epoch > 0
"""


@dataclass(slots=True)
class Desk:
    """A desk phone whose calls are begun, and later ended, through one pool.

    Attributes:
        bench: Runs loads.
        address: ``host:port`` of the pool.
        engine: Of the pool's tables.
        starts: What became of the calls that were begun, run by run.
        ends: What became of the calls that were ended.
    """

    bench: Bench
    address: str
    engine: str
    starts: list[LoadResult] = field(default_factory=list)
    ends: list[LoadResult] = field(default_factory=list)

    def runs(self) -> dict[str, Callable[[float], LoadResult]]:
        """Return what can be measured here, by name."""
        suffix = "" if self.engine == _ENGINE else f", {self.engine}"
        return {f"{_START}{suffix}": self.start, f"{_END}{suffix}": self.end}

    def start(self, length_s: float) -> LoadResult:
        """Begin calls for some time."""
        load = Load(_START_SCRIPT, length_s=length_s, extension=_LONG_DISTANCE, first=1 + _calls(self.starts))
        return self._run(load, self.starts)

    def end(self, length_s: float) -> LoadResult:
        """End calls that were begun, the oldest first, for some time or until none is left.

        Raises:
            RuntimeError: None is there, so that nothing can be measured.
        """
        ended = _calls(self.ends)
        left = _calls(self.starts) - ended
        if not left:
            raise RuntimeError("no call is left to be ended: STARTs are slower than ENDs")
        load = Load(_END_SCRIPT, calls=left, length_s=length_s, extension="h", first=1 + ended)
        return self._run(load, self.ends)

    def rows(self, database: VicidialDatabase, begun_epoch: int) -> Figure:
        """Judge the rows, once the pool has ended: by then it has written all it ever will.

        Args:
            database: The tables.
            begun_epoch: Before the first call.
        """
        values = {"server_ip": SERVER_IP, "begun_epoch": begun_epoch}
        found = {bool(row[0]): (int(row[1]), int(row[2])) for row in database.execute(_COUNT_ROWS, values)}
        (opened, right_open), (closed, right_closed) = found.get(False, (0, 0)), found.get(True, (0, 0))
        good_starts, good_ends = _good(self.starts), _good(self.ends)
        rows = (opened, closed, right_open + right_closed)
        wanted = (good_starts - good_ends, good_ends, good_starts)
        return judged(f"{_ROWS}, {self.engine}", _numbers(rows), _numbers(wanted), rows == wanted)

    def _run(self, load: Load, results: list[LoadResult]) -> LoadResult:
        result = self.bench.load.run(self.address, replace(load, name=_DESK_NAME, needs_command=False))
        results.append(result)
        return result


def vicidial(bench: Bench) -> Section:
    """Compare a desk phone's START and END with the Perl peer, check the rows, and count round trips."""
    try:
        programs = find_mariadb()
    except MariaDBMissingError as error:
        return Section("vicidial", _TITLE, (not_measured("all", str(error), "to be measured"),))
    with MariaDBServer(programs) as server:
        figures, results = _speed(bench, server)
        figures.append(_round_trips(bench, server))
    return Section("vicidial", _TITLE, tuple(figures), speeds(results))


def _speed(bench: Bench, server: MariaDBServer) -> tuple[list[Figure], dict[str, list[LoadResult]]]:
    begun_epoch = int(time.time())
    with ExitStack() as databases, ExitStack() as servers:
        tables = {
            engine: databases.enter_context(VicidialDatabase(server, f"speed_{engine}", engine))
            for engine in (_ENGINE, _ITS_ENGINE)
        }
        for database in tables.values():
            database.execute("UPDATE servers SET agi_output = 'NONE'")
        desks = [
            Desk(bench, servers.enter_context(_pool(bench, database.url)).address, engine)
            for engine, database in tables.items()
        ]
        missing = ""
        runs = {name: run for desk in desks for name, run in desk.runs().items()}
        try:
            runs[_PERL] = _perl_run(bench, servers.enter_context(perl_prefork()))
        except PeerMissing as error:
            missing = str(error)
        results = _take_turns(bench, runs)
        servers.close()
        figures = [_ratio(results, what, least, missing) for what, least in _LEAST_OF_PERL.items()]
        figures.append(_lost(desks))
        figures += [desk.rows(tables[desk.engine], begun_epoch) for desk in desks]
    return figures, results


def _pool(bench: Bench, url: str, workers: int = 2, **options: object) -> AbstractContextManager[PoolService]:
    return bench.pool(pool_route(bench.folder, **options), databases=pool_databases(url), workers=workers)


def _perl_run(bench: Bench, address: str) -> Callable[[float], LoadResult]:
    return lambda length_s: bench.load.run(address, Load(length_s=length_s))


def _take_turns(
    bench: Bench, runs: Mapping[str, Callable[[float], LoadResult]]
) -> dict[str, list[LoadResult]]:
    """Run all in turn, each once before it counts; STARTs stand before their ENDs."""
    for run in runs.values():
        run(_WARM_UP_S)
    return interleaved(list(runs), bench.scale.rounds, lambda name: runs[name](bench.scale.run_s))


def _ratio(results: Mapping[str, Sequence[LoadResult]], what: str, least: float, missing: str) -> Figure:
    described, criterion = f"rate of {what}, as a ratio to {_PERL}", f"at least {least:g}"
    if missing:
        return not_measured(described, missing, criterion)
    found = ratios(results[what], results[_PERL], rate)
    return judged(described, spread(found), criterion, median(found) >= least)


def _lost(desks: Sequence[Desk]) -> Figure:
    results = [result for desk in desks for result in (*desk.starts, *desk.ends)]
    lost = sum(result.lost for result in results)
    what, criterion = _LOST
    return judged(what, f"{lost:,} of {_calls(results):,}", criterion, lost == 0)


def _round_trips(bench: Bench, server: MariaDBServer) -> Figure:
    """Count with all settings read anew, which is the most; the first END may still have to connect."""
    what, criterion = _ROUND_TRIPS
    with VicidialDatabase(server, "round_trips") as database, MariaDBForwarder(server.port) as forwarder:
        url = make_url(database.url).set(port=forwarder.port).render_as_string(hide_password=False)
        with _pool(bench, url, workers=1, settings_ttl=0.0) as pool:
            end_agent_call(pool, forwarder, database, 1)
            count = len(end_agent_call(pool, forwarder, database, 2))
    return judged(what, f"{count}", criterion, 0 < count <= MOST_ROUND_TRIPS)


def _calls(results: Sequence[LoadResult]) -> int:
    return sum(result.calls for result in results)


def _good(results: Sequence[LoadResult]) -> int:
    return sum(result.good for result in results)


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)
