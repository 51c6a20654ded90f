"""conf/prometheus-rules.yaml and conf/grafana-dashboard.json: what they ask for is what the pool tells."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from page.pool_figures import quiet_status
from prometheus_client.parser import text_string_to_metric_families

from fastagi_pool.metrics import render

PROJECT: Final = Path(__file__).resolve().parent.parent
RULES: Final = PROJECT / "conf" / "prometheus-rules.yaml"
DASHBOARD: Final = PROJECT / "conf" / "grafana-dashboard.json"
#: Labels that Prometheus itself adds to whatever it collects. Source: "Jobs and instances".
_COLLECTED: Final = {"job", "instance"}
_METRIC = re.compile(r"\bfastagi_\w+")
_LABELS = re.compile(r"(?:\{([^}]*)\}|\b(?:by|without|on)\s*\(([^)]*)\))")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=|,|$)")
#: Dashboards ask for times and names that Grafana fills in.
_FILLED_IN: Final = {"$__rate_interval": "5m", "$job": ".*", "$instance": ".*", "$route": ".*"}


def told() -> dict[str, set[str]]:
    """Every metric that the pool tells, with its labels."""
    status = quiet_status() | {"lost_lines": 0}
    _, text = render(status)
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def alerts() -> list[dict[str, Any]]:
    """All alerts."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """All panels that show something."""
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    """Every expression in both files, with where it stands."""
    dashboard = json.loads(DASHBOARD.read_text())
    return [
        *((alert["alert"], alert["expr"]) for alert in alerts()),
        *((panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]),
        *((annotation["name"], annotation["expr"]) for annotation in dashboard["annotations"]["list"]),
    ]


def labels_in(expression: str) -> set[str]:
    """The labels that an expression chooses or groups by."""
    chosen = (inside for pair in _LABELS.findall(re.sub(r'"[^"]*"', '""', expression)) for inside in pair)
    return {label for inside in chosen for label in _LABEL.findall(inside)}


@pytest.fixture
def promtool(need_program: Callable[..., Path]) -> str:
    """Prometheus's own checker."""
    return str(need_program("promtool", "prometheus"))


@pytest.mark.parametrize(("place", "expression"), expressions())
def test_every_metric_exists(place: str, expression: str) -> None:
    """No panel is empty and no alert silent because of a name that the pool does not tell."""
    metrics = _METRIC.findall(expression) or re.findall(r"\bup\b", expression)
    assert metrics, place
    assert set(metrics) - {"up"} <= set(told())


@pytest.mark.parametrize(("place", "expression"), expressions())
def test_every_label_exists(place: str, expression: str) -> None:
    """What is chosen or grouped by is a label of the metrics in that expression."""
    known = set().union(*(told().get(metric, set()) for metric in _METRIC.findall(expression)))
    assert labels_in(expression) <= known | _COLLECTED, place


def test_labels_are_found_in_expressions() -> None:
    """The check of labels sees matchers of every kind, and what is grouped by."""
    assert labels_in('sum by (route, le) (rate(a{b="x{,}", c!~"d"}[5m])) / on(e) f{}') == {
        "route",
        "le",
        "b",
        "c",
        "e",
    }


def test_everything_that_is_told_is_shown() -> None:
    """The dashboard leaves out nothing that the pool tells, but what others are counted from."""
    shown = {metric for _, expression in expressions() for metric in _METRIC.findall(expression)}
    parts = {name for name in told() if name.endswith(("_sum", "_count", "_created"))}
    assert set(told()) - parts - shown == set()


def test_the_rules_are_valid(promtool: str) -> None:
    """Prometheus itself takes the file as it is."""
    done = subprocess.run(
        [promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_asks_in_valid_words(promtool: str, tmp_path: Path) -> None:
    """Prometheus itself understands what every panel asks."""
    rules = []
    for number, (_, expression) in enumerate(expressions()):
        for name, value in _FILLED_IN.items():
            expression = expression.replace(name, value)
        rules.append({"record": f"panel:{number}", "expr": expression})
    assert "$" not in str(rules)
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def series(name: str, values: str) -> dict[str, str]:
    """What promtool's tests call a series: one value each minute."""
    head, _, rest = name.partition("{")
    return {
        "series": f'{head}{{job="fastagi", instance="pbx1"{", " if rest else ""}{rest or "}"}',
        "values": values,
    }


CASES: Final[dict[str, tuple[list[dict[str, str]], str]]] = {
    "FastagiPoolDown": (
        [series("fastagi_up", "1x5 0x20")],
        "The FastAGI pool on pbx1 is down: no call is taken.",
    ),
    "FastagiCallsFail": (
        [
            series('fastagi_calls_total{route="pin", outcome="ok"}', "0+90x20"),
            series('fastagi_calls_total{route="pin", outcome="hangup"}', "0+0x20"),
            series('fastagi_calls_total{route="pin", outcome="dbdown"}', "0+10x20"),
        ],
        "10% of the calls on pbx1 fail.",
    ),
    "FastagiWorkersMissing": (
        [series('fastagi_workers{state="ready"}', "4x5 3x20"), series("fastagi_workers_wanted", "4x25")],
        "Only 3 workers of the FastAGI pool on pbx1 serve, fewer than wanted.",
    ),
    "FastagiDatabaseAway": (
        [series('fastagi_database_up{database="calls"}', "1x5 0x20")],
        "Database calls is away for the FastAGI pool on pbx1.",
    ),
    "FastagiCallsLost": (
        [series("fastagi_lost_calls_total", "0x5 10x20")],
        "10 calls on pbx1 were lost with workers that died.",
    ),
    "FastagiLaneRefuses": (
        [series('fastagi_lane_refused_calls_total{lane="records"}', "0+2x20")],
        "Lane records on pbx1 refused 10 calls.",
    ),
    "FastagiJournalGrows": (
        [series('fastagi_journal_waiting_calls{database="calls"}', "0x2 5+10x20")],
        "125 calls wait in the journal on pbx1 for database calls.",
    ),
    "FastagiJournalNearlyFull": (
        [series("fastagi_journal_used_bytes", "850x20"), series("fastagi_journal_limit_bytes", "1000x20")],
        "The journal on pbx1 is 85% full.",
    ),
    "FastagiJournalQuarantine": (
        [series('fastagi_journal_quarantined_calls{database="calls"}', "0x5 2x20")],
        "2 calls in the journal on pbx1 for database calls could not be done.",
    ),
    "FastagiDatabaseConnectionsTaken": (
        [
            series('fastagi_database_connections{database="calls", state="in_use"}', "19x25"),
            series('fastagi_database_connections{database="calls", state="idle"}', "0x25"),
            series('fastagi_database_connections_limit{database="calls"}', "20x25"),
        ],
        "95% of the connections to database calls on pbx1 are in use.",
    ),
}


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_says_its_sentence(promtool: str, tmp_path: Path, alert: str) -> None:
    """In trouble, and only then, the operator reads the sentence that names it."""
    trouble, sentence = CASES[alert]
    found = next(rule for rule in alerts() if rule["alert"] == alert)
    labels = {"job": "fastagi", "instance": "pbx1", **found["labels"]}
    if "database" in sentence.lower():
        labels["database"] = "calls"
    if sentence.startswith("Lane "):
        labels["lane"] = "records"
    annotations = {**found["annotations"], "summary": sentence}
    fires = {
        "eval_time": "15m",
        "alertname": alert,
        "exp_alerts": [{"exp_labels": labels, "exp_annotations": annotations}],
    }
    quiet = [
        series("fastagi_up", "1x20"),
        series("fastagi_lost_calls_total", "7x20"),
        series('fastagi_lane_refused_calls_total{lane="records"}', "7x20"),
        # The calls of a short outage, which are done within minutes.
        series('fastagi_journal_waiting_calls{database="calls"}', "0x10 9x3 0x7"),
        series('fastagi_journal_quarantined_calls{database="calls"}', "0x20"),
        series("fastagi_journal_used_bytes", "500x20"),
        series("fastagi_journal_limit_bytes", "1000x20"),
        series('fastagi_calls_total{route="pin", outcome="ok"}', "0+100x20"),
    ]
    still = {"eval_time": "15m", "alertname": alert, "exp_alerts": []}
    tests = [
        {"interval": "1m", "input_series": trouble, "alert_rule_test": [fires]},
        {"interval": "1m", "input_series": quiet, "alert_rule_test": [still]},
    ]
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_is_complete(alert: dict[str, Any]) -> None:
    """Each has a sentence for the operator, what to do, how urgent it is, and where more is written."""
    annotations = alert["annotations"]
    assert annotations["summary"].endswith((".", ")."))
    assert "$labels.instance" in annotations["summary"]
    assert len(annotations["description"]) > 80
    assert alert["labels"]["severity"] in ("page", "ticket")
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", alert["alert"].removeprefix("Fastagi")).lower()
    assert annotations["runbook_url"] == f"docs/alarms.md#{name}"


def test_no_alert_stands_twice() -> None:
    """Names are unique: an alert is found by its name."""
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names))


def test_panels_have_room_and_words() -> None:
    """No two panels overlap, and each says what it shows, from the data source that was chosen."""
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        box = panel["gridPos"]
        cells = {
            (x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])
        }
        assert not cells & taken, panel["title"]
        assert box["x"] + box["w"] <= 24
        taken |= cells
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"


def test_the_dashboard_is_for_grafana_10() -> None:
    """The schema, a variable for the data source, and a row for each thing that operators look for."""
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert dashboard["schemaVersion"] >= 38
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == [
        "datasource",
        "job",
        "instance",
        "route",
    ]
    assert len(ids) == len(set(ids))
    assert [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"] == [
        "Traffic",
        "Latency",
        "Outcomes",
        "Clocks",
        "Workers",
        "Databases",
        "Lanes and lost calls",
        "Journal",
        "Listen queue and Asterisk servers",
    ]
