"""The pages for operators are true: what they let you type runs, what they let you read is printed."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml
from click.testing import CliRunner
from page.pool_figures import quiet_status
from prometheus_client.parser import text_string_to_metric_families
from service import COMMAND, PoolService
from test_docs import PROJECT, blocks, commands

from fastagi_pool.callboard import CallState
from fastagi_pool.cli import cli
from fastagi_pool.control import SOCKET_NAME, Verb, ask
from fastagi_pool.handlers.builtin import Load, variables
from fastagi_pool.metrics import render
from fastagi_pool.slowlog import SlowCall, call_fields, text_entry
from fastagi_pool.tally import OUTCOMES

OPERATIONS: Final = PROJECT / "docs" / "operations.md"
ALARMS: Final = PROJECT / "docs" / "alarms.md"
METRICS: Final = PROJECT / "docs" / "metrics.md"
RULES: Final = PROJECT / "conf" / "prometheus-rules.yaml"
DEMO: Final = PROJECT / "fastagi_pool" / "demo.yaml"
#: Commands that change nothing, so that each of the pages' can be given to a pool as it stands there.
LOOKING: Final = frozenset({"status", "calls", "workers", "routes", "db", "top", "dump", "check", "call"})
#: Those that print a table, and the first of its heads.
TABLES: Final = {"status": "worker", "calls": "age", "routes": "route", "db": "name"}
#: Options that say which pool is meant.
_WHICH: Final = ("-c", "--config", "--runtime-dir", "--astguiclient", "--server")
_HELLO: Final = "fastagi_pool.handlers.demo:hello"
_ENVIRONMENT: Final = (
    b"agi_network: yes\nagi_network_script: pin\nagi_request: agi://127.0.0.1/pin\nagi_channel: SIP/1\n"
    b"agi_language: en\nagi_type: SIP\nagi_uniqueid: 1700000000.7\nagi_version: 22.0.0\nagi_callerid: 100\n"
    b"agi_context: default\nagi_extension: 100\nagi_priority: 1\nagi_enhanced: 0.0\n\n"
)


def looking() -> list[str]:
    """Every command of the pages that only looks, once."""
    found = {line for _, line in commands() if _verb(line) in LOOKING}
    return sorted(found)


def _verb(line: str) -> str:
    program, *words = shlex.split(line, comments=True)
    return words[0] if program.endswith("fastagi-pool") else ""


def sessions() -> list[tuple[str, list[str]]]:
    """What the page shows of a terminal: each command with what it prints."""
    found = []
    for block in blocks(OPERATIONS, ""):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *printed = part.splitlines()
            found.append((command, printed))
    return found


def table(page: Path, head: str) -> list[list[str]]:
    """The rows below a table's heads, each as its cells."""
    lines = page.read_text().splitlines()
    start = lines.index(head) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def keys(line: str) -> list[str]:
    """The keys of a line of the logs, in order."""
    return re.findall(r"(?:^| )(\w+)=", line)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolService]:
    """The demonstration's pool, with a route for the scripts of the pages, and one call that lasts."""
    folder = tmp_path_factory.mktemp("pool")
    demo = yaml.safe_load(DEMO.read_text())
    routes = [*demo["routes"], {"regex": "(greet|opening|VD_).*", "handler": _HELLO}]
    settings = {
        "databases": {"demo": {"url": f"sqlite:///{folder}/demo.sqlite"}},
        "http": {"listen": "127.0.0.1:0"},
    }
    service = PoolService(folder, PROJECT, routes, settings)
    service.start()
    try:
        host, _, port = service.address.rpartition(":")
        with socket.create_connection((host, int(port)), 10.0) as lasting:
            lasting.sendall(_ENVIRONMENT)
            lasting.recv(100)
            yield service
        service.stop()
    finally:
        service.kill()


def run(pool: PoolService, line: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Give a command of the pages to the pool, in the place of the one that it means.

    In a process of its own: some commands replace modules of Python's by gevent's, for all tests to come.
    """
    words = shlex.split(line, comments=True)[1:]
    for name in _WHICH:
        if name in words:
            place = words.index(name)
            del words[place : place + 2]
    words = [re.sub(r"^agi://[^/]+/", f"agi://{pool.address}/", word) for word in words if word != "--demo"]
    if words[0] == "call":
        words[1:1] = ["--server", pool.address]
    elif words[:2] == ["routes", "explain"]:
        words[1:1] = ["-c", str(pool.config_path)]
    else:
        words += ["-c", str(pool.config_path)]
    command = (*COMMAND, *words, *options)
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("line", looking())
def test_every_command_that_looks_runs(pool: PoolService, line: str) -> None:
    """A command of the pages does what it should with a real pool, just as it stands there."""
    result = run(pool, line)

    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize(
    ("command", "printed"), [(line, said) for line, said in sessions() if _verb(line) in TABLES]
)
def test_a_table_has_the_same_heads(pool: PoolService, command: str, printed: list[str]) -> None:
    """What the page shows of a command has the columns that it prints, in its order."""
    real, shown = (
        [line.split() for line in lines if line.split()[:1] == [TABLES[_verb(command)]]]
        for lines in (run(pool, command).stdout.splitlines(), printed)
    )

    assert shown[0] == real[0]


def test_the_lines_of_status(pool: PoolService) -> None:
    """What ``status`` prints above its table begins as on the page, line by line."""
    [printed] = [said for line, said in sessions() if line == "fastagi-pool status"]
    real = run(pool, "fastagi-pool status").stdout.splitlines()

    assert _beginnings(real) == _beginnings(printed)


def _beginnings(lines: list[str]) -> list[str]:
    """The first word of each line, but for complaints and the rows of the table."""
    words = [line.split()[0] for line in lines if line and not line.startswith("!!")]
    return [word for word in words if not word.isdecimal()]


def test_what_install_would_do(tmp_path: Path) -> None:
    """The steps of ``install --systemd`` are those on the page."""
    (tmp_path / "etc/logrotate.d").mkdir(parents=True)
    result = CliRunner().invoke(cli, ["install", "--systemd", "--dry-run", "--root", str(tmp_path)])

    assert result.output in blocks(OPERATIONS, "")


def test_the_verbs_of_the_control_socket() -> None:
    """The page names every verb, and no other."""
    rows = table(OPERATIONS, "| verb | asked besides | answered |")

    assert sorted(row[0].strip("`") for row in rows) == sorted(Verb)


def test_the_example_of_the_control_socket(pool: PoolService) -> None:
    """What is asked on the page is answered with the keys that stand there."""
    [line] = [line for block in blocks(OPERATIONS, "bash") for line in block.splitlines() if "socat" in line]
    [answer] = blocks(OPERATIONS, "json")
    path = Path(pool.config["runtime_dir"]) / SOCKET_NAME

    [real] = list(ask(path, json.loads(shlex.split(line)[1])))

    assert shape(real) == shape(json.loads(answer))


def shape(value: Any) -> Any:
    """The keys and the kinds of values, down to the last; of a list that of its first item."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return "number" if type(value) in (int, float) else type(value).__name__


def test_the_paths_of_http(pool: PoolService) -> None:
    """Each path on the page answers, and there is no other."""
    [address] = pool.await_log(r"showing the status on http://([^/]+)/")
    paths = [row[0].strip("`") for row in table(OPERATIONS, "| path | what it is |")]

    for path in paths:
        with urlopen(f"http://{address[1]}{path}", timeout=10) as answer:
            assert answer.status == 200
    with pytest.raises(HTTPError) as refused:
        urlopen(f"http://{address[1]}/nothing", timeout=10)
    assert refused.value.read().decode() == f"there are {', '.join(paths)}\n"


def test_the_variables_of_a_dialplan() -> None:
    """The page names every variable that ``_status`` sets, and no other."""
    rows = table(OPERATIONS, "| variable | value |")
    named = re.findall(r"`(FAGI_\w+)`", " ".join(row[0] for row in rows))

    assert named == list(variables(Load(0, 0, 1, 1, 0.0)))


def test_the_built_in_scripts(pool: PoolService) -> None:
    """A pool serves ``_ping`` and ``_status`` without any route of theirs."""
    assert run(pool, "fastagi-pool call _ping").returncode == 0
    told = run(pool, "fastagi-pool call _status").stdout

    assert [name for name in variables(Load(0, 0, 1, 1, 0.0)) if f"   {name}=" not in told] == []


def test_the_outcomes() -> None:
    """The page names every outcome, and which of them the dialplan can read in FAGI_STATUS."""
    told = [row[0] for row in table(OPERATIONS, "| outcome | meaning | the dialplan sees |")]
    [row] = [line for line in OPERATIONS.read_text().splitlines() if line.startswith("| `FAGI_STATUS` |")]

    assert sorted(told) == sorted(OUTCOMES)
    silent, of_the_witness = {"ok", "deferred", "hangup", "gone"}, {"crash"}
    assert {name.lower() for name in re.findall(r"`([A-Z]+)`", row)} == {*told} - silent | of_the_witness


def test_the_states_of_a_call() -> None:
    """The page names every state that ``calls`` can show."""
    text = " ".join(OPERATIONS.read_text().split())

    assert [
        state for state in CallState if state is not CallState.FREE and f"`{state.words}`" not in text
    ] == []


def test_the_access_line(pool: PoolService) -> None:
    """A line of the access log has the keys of the page's example, in its order."""
    [example] = [block for block in blocks(OPERATIONS, "") if "outcome=ok" in block]

    pool.call("hello")

    [line, *_] = [each for each in pool.await_access(1) if each["outcome"] == "ok"]
    assert keys(" ".join(example.split())) == list(line)


def test_the_slow_entry() -> None:
    """An entry of the slow log begins with the keys of the page's example, in its order."""
    [example] = [block for block in blocks(OPERATIONS, "") if " slow call=" in block]
    texts = ("ref", "route", "script", "127.0.0.1", "1700000000.1", "100", "in script")
    call = SlowCall(*texts, 2.0, 0.0, 1.0, 2.0, 0.5, statement="SELECT 1")
    entry = text_entry(call_fields(call))

    first, *below = example.splitlines()
    assert keys(first.partition(" slow ")[2]) == keys(entry.splitlines()[0].removeprefix("slow "))
    assert below[-1].startswith(entry.splitlines()[-1].partition(":")[0])


def test_the_metrics() -> None:
    """The page names every metric with its type, its labels and the words that the pool itself says of it."""
    _, text = render(quiet_status() | {"lost_lines": 0})
    real = []
    for family in text_string_to_metric_families(text.decode()):
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        cells = (f"`{family.name}`", family.type, ", ".join(f"`{label}`" for label in labels))
        real.append([*cells, family.documentation])

    assert table(METRICS, "| metric | type | labels | meaning |") == real


def test_the_signals_are_up_to_date() -> None:
    """The page of signals and exit codes is what is generated from the program now."""
    script = PROJECT / "scripts" / "generate_signals_docs.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def alerts() -> list[dict[str, Any]]:
    """All alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def sections() -> dict[str, str]:
    """The sections of the page of alarms, by their titles."""
    parts = re.split(r"^## (.+)\n", ALARMS.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alarm_has_its_section(alert: dict[str, Any]) -> None:
    """Where an alert leads there is a section that says how urgent it is and what to type first."""
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")

    text = sections()[anchor]

    assert PROJECT / page == ALARMS
    assert text.strip().startswith(f"*{alert['labels']['severity'].capitalize()}.* **")
    assert re.search(r"^```(?:ba)?sh$", text, re.MULTILINE)


def test_no_section_is_without_its_alarm() -> None:
    """An alert that is gone takes its section with it."""
    anchors = [alert["annotations"]["runbook_url"].partition("#")[2] for alert in alerts()]

    assert list(sections()) == anchors
