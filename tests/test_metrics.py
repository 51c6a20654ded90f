"""fastagi_pool.metrics: a picture in the words of Prometheus, read back with its own parsers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pictures import picture, route_picture, worker_picture
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from fastagi_pool.metrics import render
from fastagi_pool.tally import BUCKETS_S, OUTCOMES

#: Dashboards and alerts hang on these: what was once told stays.
CONTRACT = {
    "fastagi_up": (),
    "fastagi_build_info": ("version",),
    "fastagi_uptime_seconds": (),
    "fastagi_generation": (),
    "fastagi_calls_total": ("outcome", "route"),
    "fastagi_call_duration_seconds_bucket": ("le", "route"),
    "fastagi_call_duration_seconds_sum": ("route",),
    "fastagi_call_duration_seconds_count": ("route",),
    "fastagi_call_script_seconds_bucket": ("le", "route"),
    "fastagi_call_script_seconds_sum": ("route",),
    "fastagi_call_script_seconds_count": ("route",),
    "fastagi_call_time_seconds_total": ("clock", "route"),
    "fastagi_active_calls": ("route",),
    "fastagi_queued_calls": (),
    "fastagi_places": (),
    "fastagi_listen_queue": (),
    "fastagi_listen_queue_limit": (),
    "fastagi_listen_queue_max": (),
    "fastagi_workers": ("state",),
    "fastagi_workers_wanted": (),
    "fastagi_workers_stuck": (),
    "fastagi_worker_restarts_total": ("reason",),
    "fastagi_worker_rss_bytes": ("slot",),
    "fastagi_worker_lag_seconds": ("slot",),
    "fastagi_slow_calls_total": ("route",),
    "fastagi_hangups_total": ("route",),
    "fastagi_agi_commands_total": ("route",),
    "fastagi_guard_refusals_total": ("route",),
    "fastagi_peer_calls_total": ("peer",),
    "fastagi_peer_failures_total": ("peer",),
    "fastagi_peer_active_calls": ("peer",),
    "fastagi_lost_calls_total": (),
    "fastagi_quarantined_requests_total": (),
    "fastagi_lane_active_calls": ("lane",),
    "fastagi_lane_active_calls_limit": ("lane",),
    "fastagi_lane_queued_calls": ("lane",),
    "fastagi_lane_refused_calls_total": ("lane",),
    "fastagi_journal_waiting_calls": ("database",),
    "fastagi_journal_quarantined_calls": ("database",),
    "fastagi_journal_oldest_seconds": (),
    "fastagi_journal_used_bytes": (),
    "fastagi_journal_limit_bytes": (),
    "fastagi_database_connections": ("database", "state"),
    "fastagi_database_connections_limit": ("database",),
    "fastagi_database_waiting_calls": ("database",),
    "fastagi_database_up": ("database",),
    "fastagi_database_down_workers": ("database",),
    "fastagi_database_down_seconds": ("database",),
    "fastagi_database_statements_total": ("database",),
    "fastagi_database_seconds_total": ("database",),
    "fastagi_database_failures_total": ("database",),
    "fastagi_reloads_total": (),
    "fastagi_reloads_refused_total": (),
    "fastagi_config_last_reload_successful": (),
    "fastagi_log_lines_lost_total": (),
}

DATABASE = {
    "name": "main",
    "size": 8,
    "connected": 6,
    "in_use": 2,
    "waiting": 1,
    "statements": 100,
    "seconds": 1.5,
    "failures": 3,
    "up": False,
    "down_workers": 2,
    "down_s": 45.0,
    "reason": "connection refused",
    "server": "db.example.net",
}


JOURNAL = {
    "waiting": 5,
    "quarantined": 2,
    "oldest_age_s": 44.5,
    "used_bytes": 4096,
    "limit_bytes": 1_000_000,
    "databases": [{"name": "main", "waiting": 5, "quarantined": 2}],
}


def full_picture() -> dict[str, Any]:
    """Write a picture with one of everything."""
    durations = [0, 0, 3, 2, *[0] * (len(BUCKETS_S) - 4), 1]
    menu = route_picture(
        calls=6,
        failed=1,
        active=2,
        outcomes=dict.fromkeys(OUTCOMES, 0) | {"ok": 5, "error": 1},
        slow=1,
        hangups=2,
        commands=30,
        refused=4,
        queued_s=0.5,
        asterisk_s=3.0,
        script_s=1.0,
        database_s=0.25,
        total_s=4.75,
        durations=durations,
        scripts=durations,
    )
    return picture(
        routes=[menu],
        workers=[worker_picture(), worker_picture(3, state="draining", stuck=True, lag_s=0.25)],
        peers=[{"peer": "192.0.2.7", "active": 2, "calls": 6, "failed": 1}],
        databases=[DATABASE],
        lanes=[{"name": "records", "limit": 50, "active": 12, "queued": 3, "refused": 9}],
        journal=JOURNAL,
        lost_calls=11,
        quarantined_requests=1,
        lost_lines=7,
    )


def samples(status: Mapping[str, Any] | None) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Render a picture and read it as Prometheus does."""
    _, text = render(status)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(text.decode())
        for sample in family.samples
    }


def value(status: Mapping[str, Any] | None, name: str, **labels: str) -> float:
    """Return one sample of a picture."""
    return samples(status)[name, frozenset(labels.items())]


def test_names_and_labels_are_an_interface() -> None:
    """Exactly the metrics and labels that were promised are there, no other and no fewer."""
    found = {name: tuple(sorted(dict(labels))) for name, labels in samples(full_picture())}
    assert found == CONTRACT


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("fastagi_up", {}, 1),
        ("fastagi_build_info", {"version": "0.1.0"}, 1),
        ("fastagi_calls_total", {"route": "menu", "outcome": "ok"}, 5),
        ("fastagi_calls_total", {"route": "menu", "outcome": "overload"}, 0),
        ("fastagi_call_time_seconds_total", {"route": "menu", "clock": "script"}, 1.0),
        ("fastagi_call_time_seconds_total", {"route": "menu", "clock": "queued"}, 0.5),
        ("fastagi_call_duration_seconds_bucket", {"route": "menu", "le": "0.005"}, 3),
        ("fastagi_call_duration_seconds_bucket", {"route": "menu", "le": "1.0"}, 5),
        ("fastagi_call_duration_seconds_bucket", {"route": "menu", "le": "+Inf"}, 6),
        ("fastagi_call_duration_seconds_count", {"route": "menu"}, 6),
        ("fastagi_call_duration_seconds_sum", {"route": "menu"}, 4.75),
        ("fastagi_call_script_seconds_sum", {"route": "menu"}, 1.25),
        ("fastagi_workers", {"state": "ready"}, 1),
        ("fastagi_workers", {"state": "draining"}, 1),
        ("fastagi_workers", {"state": "starting"}, 0),
        ("fastagi_workers_stuck", {}, 1),
        ("fastagi_worker_lag_seconds", {"slot": "3"}, 0.25),
        ("fastagi_worker_restarts_total", {"reason": "died"}, 0),
        ("fastagi_database_connections", {"database": "main", "state": "in_use"}, 2),
        ("fastagi_database_connections", {"database": "main", "state": "idle"}, 4),
        ("fastagi_database_connections_limit", {"database": "main"}, 8),
        ("fastagi_database_up", {"database": "main"}, 0),
        ("fastagi_database_down_seconds", {"database": "main"}, 45.0),
        ("fastagi_lane_active_calls", {"lane": "records"}, 12),
        ("fastagi_lane_active_calls_limit", {"lane": "records"}, 50),
        ("fastagi_lane_queued_calls", {"lane": "records"}, 3),
        ("fastagi_lane_refused_calls_total", {"lane": "records"}, 9),
        ("fastagi_journal_waiting_calls", {"database": "main"}, 5),
        ("fastagi_journal_quarantined_calls", {"database": "main"}, 2),
        ("fastagi_journal_oldest_seconds", {}, 44.5),
        ("fastagi_journal_used_bytes", {}, 4096),
        ("fastagi_journal_limit_bytes", {}, 1_000_000),
        ("fastagi_lost_calls_total", {}, 11),
        ("fastagi_quarantined_requests_total", {}, 1),
        ("fastagi_config_last_reload_successful", {}, 1),
    ],
)
def test_values(name: str, labels: dict[str, str], expected: float) -> None:
    """Each number of the picture arrives under its name; what has not happened is 0 and not absent."""
    assert value(full_picture(), name, **labels) == expected


def test_a_refused_reload() -> None:
    """The habit of Prometheus: whether the last reload succeeded is a gauge of its own."""
    refused = picture(reload={"asked": 4, "refused": 2, "loading": False, "last_s": 3.0, "error": "broken"})
    assert value(refused, "fastagi_config_last_reload_successful") == 0
    assert value(refused, "fastagi_reloads_total") == 4
    assert value(refused, "fastagi_reloads_refused_total") == 2


def test_an_empty_journal_has_no_age() -> None:
    """An alert on the oldest call is silent while none waits; without a journal nothing is told of one."""
    empty = JOURNAL | {"waiting": 0, "oldest_age_s": None}
    assert value(picture(journal=empty), "fastagi_journal_oldest_seconds") == 0
    assert not [name for name, _ in samples(picture()) if name.startswith("fastagi_journal")]


@pytest.mark.parametrize("status", [None, picture(running=False)])
def test_no_pool(status: Mapping[str, Any] | None) -> None:
    """Without a living master the pool is told to be down, so that an alert can say it."""
    assert value(status, "fastagi_up") == 0


def test_openmetrics_for_who_asks_for_it() -> None:
    """Who accepts OpenMetrics gets a text that its strict parser takes, with the same names."""
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    content_type, text = render(full_picture(), accept)
    assert content_type.startswith("application/openmetrics-text")
    families = list(parse_openmetrics(text.decode()))  # type: ignore[no-untyped-call]
    assert {sample.name for family in families for sample in family.samples} == set(CONTRACT)


def test_the_older_text_for_everybody_else() -> None:
    """The content type of the older format names its version, as Prometheus wants it."""
    content_type, _ = render(full_picture(), "text/plain")
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize("name", ['quote"d', "back\\slash", "line\nend", "Grüße/ß", ""])
def test_names_of_routes_are_any_text(name: str) -> None:
    """A route's name is data: whatever it holds, the text stays one that can be read back."""
    status = picture(routes=[route_picture(name, hangups=3)])
    assert value(status, "fastagi_hangups_total", route=name) == 3


def test_nothing_is_kept_between_two_pictures() -> None:
    """A route that is gone from the picture is gone from the metrics."""
    render(full_picture())
    assert not [name for name, labels in samples(picture()) if ("route", "menu") in labels]
