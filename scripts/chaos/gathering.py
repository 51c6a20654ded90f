"""Gathering: waits until everything is drained, and collects what the auditor looks at.

Laws:
    * Every wait has an end; what has not drained by then is evidence, too.
    * A traceback in the log is a fault of the pool, unless a handler's statement was under way when its
      database went away: what the driver says then, the handler has not caught, and the log shows it.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from service import COMMAND, PoolFailed

from chaos.auditor import Evidence, Kind, Leg, Told
from chaos.scene import ROWS, VICIDIAL, ChaosFailed, Scene

#: Far above what replaying a minute of calls takes.
_DRAIN_S: Final = 180.0
_LOOK_S: Final = 0.5
_COMMAND_S: Final = 60.0
_MOST_TRACEBACKS: Final = 20
_DEFERRED: Final = re.compile(
    r" script=(?P<script>\"(?:[^\"\\]|\\.)*\"|\S+) outcome=deferred .* uniqueid=\d+\.(?P<number>\d+) "
)
_TRACEBACK: Final = "Traceback (most recent call last):"


class Journal:
    """The pool's journal as its operator sees it."""

    def __init__(self, scene: Scene) -> None:
        self._config = str(scene.pool.config_path)

    def count(self) -> tuple[int, int]:
        """Return how many calls wait in it, and how many are in quarantine.

        Raises:
            ChaosFailed: The command failed.
        """
        entries = self._export()
        quarantined = sum(bool(each["quarantined"]) for each in entries)
        return len(entries) - quarantined, quarantined

    def errors(self) -> list[str]:
        """Return why calls are in quarantine, each reason once."""
        return sorted({str(each.get("error", "")) for each in self._export() if each["quarantined"]})

    def _export(self) -> list[dict[str, object]]:
        command = (*COMMAND, "journal", "export", "-c", self._config)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMMAND_S)
        if done.returncode:
            raise ChaosFailed(f"the journal cannot be read: {done.stdout}{done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def await_drained(scene: Scene, journal: Journal) -> float:
    """Wait until the journal is empty, and return how long that took, in seconds; at most 180."""
    began_s = time.monotonic()
    _await(lambda: not journal.count()[0], _DRAIN_S)
    return time.monotonic() - began_s


def gather(scene: Scene, told: Sequence[Told], journal: Journal) -> Evidence:
    """Stop the pool, and collect all that is known.

    Args:
        scene: Where everything has been undone.
        told: What the calls heard.
        journal: The pool's.
    """
    waiting, quarantined = journal.count()
    try:
        scene.pool.stop()
    except PoolFailed:
        pass  # What is left of it is evidence.
    left = _left(scene)
    rows_a, rows_b, rows_ivr = (_rows(scene, table) for table in ("rows_a", "rows_b", "rows_ivr"))
    return Evidence(
        told=told,
        rows_a=rows_a,
        rows_b=rows_b,
        rows_ivr=rows_ivr,
        legs=_legs(scene),
        deferred=_deferred(scene),
        clock=tuple(scene.clock.steps),
        tracebacks=tracebacks(scene.pool.logged()),
        processes=left,
        waiting=waiting,
        quarantined=quarantined,
    )


def tracebacks(log: str) -> list[str]:
    """Find the entries of a log that hold a traceback; of those that end in the same way only the first."""
    entries: list[list[str]] = []
    for line in log.splitlines():
        # An entry's further lines are indented.
        if entries and (not line or line[0].isspace()):
            entries[-1].append(line)
        else:
            entries.append([line])
    found: dict[str, str] = {}
    for entry in entries:
        text = "\n".join(entry)
        if _TRACEBACK in text:
            found.setdefault("\n".join(entry[-3:]), text)
    return list(found.values())[:_MOST_TRACEBACKS]


def _left(scene: Scene) -> list[str]:
    try:
        scene.pool.await_that_all_ended()
    except PoolFailed:
        return [f"{each.pid} {each.state} {each.title}" for each in scene.pool.processes()]
    return []


def _rows(scene: Scene, table: str) -> dict[int, list[float]]:
    found: dict[int, list[float]] = defaultdict(list)
    for number, called_at in scene.server.execute(f"SELECT call_id, called_at FROM {ROWS}.{table}"):
        found[int(number)].append(float(called_at))
    return dict(found)


def _legs(scene: Scene) -> dict[int, list[Leg]]:
    found: dict[int, list[Leg]] = defaultdict(list)
    query = (
        "SELECT SUBSTRING_INDEX(uniqueid, '.', -1), COALESCE(start_epoch, 0), COALESCE(end_epoch, 0)"
        f" FROM {VICIDIAL}.call_log"
    )
    for number, start_s, end_s in scene.server.execute(query):
        found[int(number)].append(Leg(float(start_s), float(end_s)))
    return dict(found)


def _deferred(scene: Scene) -> frozenset[tuple[Kind, int]]:
    """Read from the access log which calls went into the journal."""
    path = scene.pool.access_path
    text = path.read_text(errors="replace") if path.exists() else ""
    kinds = {"record": Kind.RECORD, "ivr": Kind.IVR, "call_log": Kind.START}
    return frozenset(
        (kinds.get(found["script"].strip('"'), Kind.END), int(found["number"]))
        for found in _DEFERRED.finditer(text)
    )


def _await(condition: Callable[[], object], limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(_LOOK_S)
