"""Speed: how many calls a second, compared with others, and what it costs to be safe.

Laws:
    * Only ratios are judged, and only of runs that took turns; see :func:`load.interleaved`.
    * All servers of a comparison run all the time. Those that are not asked have nothing to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Final

from bench import HELLO, Bench
from figures import Figure, Section, Speed, judged, not_measured
from load import Load, LoadResult, interleaved, p99, rate, ratios
from mariadb import PASSWORD, MariaDBMissingError, MariaDBServer, find_mariadb
from peers import PeerMissing, bare_gevent, perl_prefork

_WARM_UP_S: Final = 0.5
_OURS: Final = "fastagi_pool, 2 workers, hello"
_CEILING: Final = "bare gevent, 2 workers"
_PERL: Final = "Net::Server::PreFork, Perl"
_LEAST_OF_CEILING: Final = 0.65
_LEAST_OF_PERL: Final = 1.5
_LEAST_RATE_KEPT: Final = 0.95
_MOST_P99_RATIO: Final = 2.0
_LOOKUP: Final = {
    "script": "lookup",
    "handler": "fastagi_pool.handlers.lookup:lookup",
    "databases": ["data"],
}


def peers(bench: Bench) -> Section:
    """Compare one VERBOSE a call with the ceiling and with the Perl peer."""
    figures: list[Figure] = []
    with ExitStack() as stack:
        addresses = {_OURS: stack.enter_context(bench.pool(HELLO)).address}
        missing: dict[str, str] = {}
        try:
            addresses[_CEILING] = stack.enter_context(bare_gevent(2))
        except PeerMissing as error:
            missing[_CEILING] = str(error)
        try:
            addresses[_PERL] = stack.enter_context(perl_prefork())
        except PeerMissing as error:
            missing[_PERL] = str(error)
        results = _measure(bench, addresses)
    for peer, least in ((_CEILING, _LEAST_OF_CEILING), (_PERL, _LEAST_OF_PERL)):
        what, criterion = f"rate, as a ratio to {peer}", f"at least {least}"
        if peer in missing:
            figures.append(not_measured(what, missing[peer], criterion))
            continue
        found = ratios(results[_OURS], results[peer], rate)
        figures.append(judged(what, spread(found), criterion, median(found) >= least))
    title = "One VERBOSE a call, 50 calls at a time, access log on."
    return Section("peers", title, tuple(figures), speeds(results))


def recycle(bench: Bench) -> Section:
    """Measure what it costs to replace every worker after 1,000 calls, at full speed."""
    often, never = "max_calls: 1000", "max_calls: 0"
    with ExitStack() as stack:
        addresses = {
            often: stack.enter_context(bench.pool(HELLO, max_calls=1000)).address,
            never: stack.enter_context(bench.pool(HELLO, max_calls=0)).address,
        }
        results = _measure(bench, addresses)
    kept = ratios(results[often], results[never], rate)
    slower = ratios(results[often], results[never], p99)
    figures = (
        judged(
            "rate, as a ratio",
            spread(kept),
            f"more than {_LEAST_RATE_KEPT:g}",
            median(kept) > _LEAST_RATE_KEPT,
        ),
        judged(
            "p99, as a ratio",
            spread(slower),
            f"less than {_MOST_P99_RATIO:g}",
            median(slower) < _MOST_P99_RATIO,
        ),
    )
    title = "Workers replaced after 1,000 calls each, against workers that are never replaced."
    return Section("recycle", title, figures, speeds(results))


def rates(bench: Bench) -> Section:
    """Measure further kinds of calls, for information."""
    with ExitStack() as stack:
        sqlite = {"data": {"url": f"sqlite:///{bench.folder}/rates.sqlite"}}
        pools = {
            "hello": bench.pool(HELLO),
            "hello, access log off": bench.pool(HELLO, access_log=False),
            "lookup of one row, SQLite": bench.pool(_LOOKUP, databases=sqlite),
        }
        try:
            server = stack.enter_context(MariaDBServer(find_mariadb()))
        except MariaDBMissingError:
            pass  # One row fewer; nothing is judged here.
        else:
            server.execute("CREATE DATABASE rates")
            mariadb = {"data": {"url": server.url("rates", PASSWORD)}}
            pools["lookup of one row, MariaDB"] = bench.pool(_LOOKUP, databases=mariadb)
        running = {name: stack.enter_context(pool) for name, pool in pools.items()}
        addresses = {name: pool.address for name, pool in running.items()}
        results = _measure(bench, addresses)
    title = "Kinds of calls, 2 workers, 50 calls at a time, access log on unless it says off."
    return Section("rates", title, speeds=speeds(results))


def spread(found: Sequence[float]) -> str:
    """Write the median of some ratios, and between which of them all lie."""
    return f"{median(found):.3f} (rounds: {min(found):.2f} to {max(found):.2f})"


def speeds(results: Mapping[str, Sequence[LoadResult]]) -> tuple[Speed, ...]:
    """Return the medians of each server's runs."""
    return tuple(
        Speed(
            name,
            calls_per_s=median(rate(run) for run in runs),
            p50_ms=median(run.p50_ms for run in runs),
            p99_ms=median(p99(run) for run in runs),
        )
        for name, runs in results.items()
    )


def _measure(bench: Bench, addresses: Mapping[str, str]) -> dict[str, list[LoadResult]]:
    """Run all servers in turn, each once before it counts."""

    def run(name: str, length_s: float = bench.scale.run_s) -> LoadResult:
        script = "lookup" if name.startswith("lookup") else "hello"
        return bench.load.run(addresses[name], Load(script=script, length_s=length_s))

    for name in addresses:
        run(name, _WARM_UP_S)
    return interleaved(list(addresses), bench.scale.rounds, run)
