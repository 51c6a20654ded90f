"""Metrics: a picture of the pool in the words of Prometheus.

Laws:
    * A metric's name, labels and meaning are an interface: other people's dashboards and alerts hang on them.
    * Every limit stands beside what it limits.
    * The four clocks exclude one another; their sum over a route is the time that its calls took.
    * Pure: the picture goes in, text comes out. Nothing is registered anywhere, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as _OPENMETRICS_TYPE
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

#: A picture as :meth:`status.PoolStatus.as_json` gives it, or a part of it.
Status = Mapping[str, Any]
#: States of workers that are told even if no worker is in them.
_WORKER_STATES: Final = ("starting", "ready", "draining")
_CLOCKS: Final = ("queued", "asterisk", "script", "database")
_OPENMETRICS: Final = "application/openmetrics-text"
_write_openmetrics: Callable[[CollectorRegistry], bytes] = generate_openmetrics
#: Samples of one metric: the values of its labels, and the number.
_Samples = Iterable[tuple[Sequence[str], float]]


def render(status: Status | None, accept: str = "") -> tuple[str, bytes]:
    """Write all metrics.

    Args:
        status: The picture; None if there is none, which is told as ``fastagi_up 0``.
        accept: The ``Accept`` header of who asks: OpenMetrics for those who name it, else the older text
            format, which everybody reads.

    Returns:
        The content type and the text.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(status))
    if _OPENMETRICS in accept:
        return _OPENMETRICS_TYPE, _write_openmetrics(registry)
    return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry)


class _Collector(Collector):
    def __init__(self, status: Status | None) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        up = self._status is not None and bool(self._status["running"])
        yield _gauge("fastagi_up", "Whether the master lives: 1 or 0.", (), [((), float(up))])
        if self._status is not None:
            for chapter in _CHAPTERS:
                yield from chapter(self._status)


def _pool(status: Status) -> Iterator[Metric]:
    listen = status["listen"]
    build = InfoMetricFamily("fastagi_build", "The program that runs.")
    build.add_metric((), {"version": status["version"]})
    yield build
    for name, text, value in (
        ("uptime_seconds", "Since the master began.", status["uptime_s"]),
        ("generation", "Which load of configuration and code is in charge.", status["generation"]),
        ("queued_calls", "Calls that wait for a place.", status["queued"]),
        ("places", "Calls that can be served at the same time.", status["places"]),
        ("listen_queue", "Connections that wait to be accepted.", listen["queue"]),
        ("listen_queue_limit", "Connections that may wait to be accepted.", listen["limit"]),
        ("listen_queue_max", "The most connections that were seen waiting.", listen["most"]),
        ("workers_wanted", "Workers that shall serve.", status["workers_wanted"]),
    ):
        yield _gauge(f"fastagi_{name}", text, (), [((), value)])
    if "lost_lines" in status:
        text = "Log lines that could not be written."
        yield _counter("fastagi_log_lines_lost", text, (), [((), status["lost_lines"])])


def _reloads(status: Status) -> Iterator[Metric]:
    reload = status["reload"]
    text = "Reloads that were decided, refused ones included."
    yield _counter("fastagi_reloads", text, (), [((), reload["asked"])])
    text = "Reloads that were refused and changed nothing."
    yield _counter("fastagi_reloads_refused", text, (), [((), reload["refused"])])
    text = "Whether the last reload was not refused: 1 or 0."
    successful = float(not reload["error"])
    yield _gauge("fastagi_config_last_reload_successful", text, (), [((), successful)])


def _workers(status: Status) -> Iterator[Metric]:
    workers = status["workers"]
    states = dict.fromkeys(_WORKER_STATES, 0)
    for worker in workers:
        states[worker["state"]] = states.get(worker["state"], 0) + 1
    text = "Workers by what they say they do."
    yield _gauge("fastagi_workers", text, ("state",), [((state,), n) for state, n in states.items()])
    text = "Workers that have broken their promise of a sign of life."
    yield _gauge("fastagi_workers_stuck", text, (), [((), sum(worker["stuck"] for worker in workers))])
    for name, text, key in (
        ("lost_calls", "Calls that had begun in workers that died.", "lost_calls"),
        (
            "quarantined_requests",
            "Requests that were put into quarantine, because workers died of requests like them.",
            "quarantined_requests",
        ),
    ):
        yield _counter(f"fastagi_{name}", text, (), [((), status[key])])
    text = "Workers that were replaced or have ended, by reason."
    restarts = [((reason,), n) for reason, n in status["restarts"].items()]
    yield _counter("fastagi_worker_restarts", text, ("reason",), restarts)
    for name, text, key in (
        ("rss_bytes", "Resident memory of a worker.", "rss_bytes"),
        ("lag_seconds", "How late a worker's hub was at its last beat.", "lag_s"),
    ):
        # Not by the worker's process id: each new one would be a new series for ever.
        yield _gauge(f"fastagi_worker_{name}", text, ("slot",), _each(workers, "slot", key))


def _routes(status: Status) -> Iterator[Metric]:
    routes = status["routes"]
    outcomes = [
        ((route["route"], outcome), n) for route in routes for outcome, n in route["outcomes"].items()
    ]
    yield _counter("fastagi_calls", "Calls that ended, by how.", ("route", "outcome"), outcomes)
    text = "Calls in progress; those without a route yet have an empty one."
    yield _gauge("fastagi_active_calls", text, ("route",), _each(routes, "route", "active"))
    for name, text, key in (
        ("slow_calls", "Calls whose handler took longer than their route allows to be called quick.", "slow"),
        ("hangups", "Calls in which the caller hung up.", "hangups"),
        ("agi_commands", "Commands sent to Asterisk.", "commands"),
        ("guard_refusals", "Commands that the guard did not let out to Asterisk.", "refused"),
    ):
        yield _counter(f"fastagi_{name}", text, ("route",), _each(routes, "route", key))


def _clocks(status: Status) -> Iterator[Metric]:
    text = "Time of calls that ended, by where it was spent; script is without the database."
    times = [
        ((route["route"], clock), route[f"{clock}_s"]) for route in status["routes"] for clock in _CLOCKS
    ]
    yield _counter("fastagi_call_time_seconds", text, ("route", "clock"), times)


def _durations(status: Status) -> Iterator[Metric]:
    text = "From accept to the end of a call."
    yield _histogram("fastagi_call_duration_seconds", text, status, "durations", _total_s)
    text = "The handler's own time in a call, the database included and Asterisk's time not."
    yield _histogram("fastagi_call_script_seconds", text, status, "scripts", _script_s)


def _peers(status: Status) -> Iterator[Metric]:
    peers = status["peers"]
    text = "Calls that ended, by the Asterisk that they came from."
    yield _counter("fastagi_peer_calls", text, ("peer",), _each(peers, "peer", "calls"))
    text = "Calls that ended in a failure, by the Asterisk that they came from."
    yield _counter("fastagi_peer_failures", text, ("peer",), _each(peers, "peer", "failed"))
    text = "Calls in progress, by the Asterisk that they came from."
    yield _gauge("fastagi_peer_active_calls", text, ("peer",), _each(peers, "peer", "active"))


def _databases(status: Status) -> Iterator[Metric]:
    databases = status["databases"]
    connections = [
        ((each["name"], state), n)
        for each in databases
        for state, n in (("in_use", each["in_use"]), ("idle", max(0, each["connected"] - each["in_use"])))
    ]
    text = "Open connections of all workers."
    yield _gauge("fastagi_database_connections", text, ("database", "state"), connections)
    for name, text, key in (
        ("connections_limit", "Connections that all workers may open.", "size"),
        ("waiting_calls", "Calls that wait for a connection.", "waiting"),
        ("up", "Whether the database can be reached: 1 or 0.", "up"),
        ("down_workers", "Workers that cannot reach the database.", "down_workers"),
        ("down_seconds", "For how long the database cannot be reached.", "down_s"),
    ):
        yield _gauge(f"fastagi_database_{name}", text, ("database",), _each(databases, "name", key))
    for name, text, key in (
        ("statements", "Statements that were sent.", "statements"),
        ("seconds", "Time that calls waited for the database.", "seconds"),
        ("failures", "Statements and connections that failed.", "failures"),
    ):
        yield _counter(f"fastagi_database_{name}", text, ("database",), _each(databases, "name", key))


def _lanes(status: Status) -> Iterator[Metric]:
    lanes = status["lanes"]
    for name, text, key in (
        ("active_calls", "Calls of a lane that have a place.", "active"),
        ("active_calls_limit", "Calls of a lane that may have a place at the same time.", "limit"),
        ("queued_calls", "Calls of a lane that wait for a place.", "queued"),
    ):
        yield _gauge(f"fastagi_lane_{name}", text, ("lane",), _each(lanes, "name", key))
    text = "Calls of a lane that found no room to wait for a place, or waited for too long."
    yield _counter("fastagi_lane_refused_calls", text, ("lane",), _each(lanes, "name", "refused"))


def _journal(status: Status) -> Iterator[Metric]:
    journal = status["journal"]
    databases = journal["databases"] if journal else ()
    for name, text, key in (
        ("waiting_calls", "Calls in the journal that will be done when their database is back.", "waiting"),
        ("quarantined_calls", "Calls in the journal that wait for an operator.", "quarantined"),
    ):
        yield _gauge(f"fastagi_journal_{name}", text, ("database",), _each(databases, "name", key))
    for name, text, key in (
        ("oldest_seconds", "How long ago the call came that waits longest in the journal.", "oldest_age_s"),
        ("used_bytes", "What the calls in the journal take on the disk.", "used_bytes"),
        ("limit_bytes", "What they may take.", "limit_bytes"),
    ):
        samples = [((), float(journal[key] or 0))] if journal else []
        yield _gauge(f"fastagi_journal_{name}", text, (), samples)


#: In the order of the text.
_CHAPTERS: Final[tuple[Callable[[Status], Iterator[Metric]], ...]] = (
    _pool,
    _reloads,
    _workers,
    _routes,
    _clocks,
    _durations,
    _peers,
    _lanes,
    _databases,
    _journal,
)


def _each(rows: Iterable[Status], label: str, key: str) -> list[tuple[Sequence[str], float]]:
    return [((str(row[label]),), float(row[key])) for row in rows]


def _gauge(name: str, text: str, labels: Sequence[str], samples: _Samples) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=labels)
    for values, number in samples:
        metric.add_metric(values, number)
    return metric


def _counter(name: str, text: str, labels: Sequence[str], samples: _Samples) -> Metric:
    metric = CounterMetricFamily(name, text, labels=labels)
    for values, number in samples:
        metric.add_metric(values, number)
    return metric


def _histogram(name: str, text: str, status: Status, key: str, total_s: Callable[[Status], float]) -> Metric:
    """Write one histogram for each route.

    Args:
        key: Which of a route's buckets.
        total_s: What its calls took together, in the measure of these buckets.
    """
    limits = [*(str(float(limit)) for limit in status["bucket_limits_s"]), "+Inf"]
    metric = HistogramMetricFamily(name, text, labels=("route",))
    for route in status["routes"]:
        buckets = list(zip(limits, map(float, accumulate(route[key])), strict=True))
        metric.add_metric((route["route"],), buckets, total_s(route))
    return metric


def _total_s(route: Status) -> float:
    return float(route["total_s"])


def _script_s(route: Status) -> float:
    return float(route["script_s"] + route["database_s"])
