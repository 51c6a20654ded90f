"""Chaos: calls under load while workers die, databases go away, disks fill up and clocks jump; then an audit.

Laws:
    * What Asterisk was told is compared with what the database holds, call by call; one lie is a failure.
    * The same seed gives the same calls and the same disturbances at the same times.
    * Whatever was started is ended, also when a signal ends the run.

Use: ``.venv/bin/python scripts/chaos/run.py [--seed N | --seeds A..B] [--for S] [--rate N] [--calls N]``
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from programs import ProgramFailed, compiled

from chaos.auditor import Audit, Told, audit
from chaos.client import SOURCE, Load, LoadFigures, RunningLoad
from chaos.disturbing import Disturber
from chaos.gathering import Journal, await_drained, gather
from chaos.scene import ChaosFailed, Scene
from chaos.schedule import Subject, make_schedule

#: Something was to be shown that this machine cannot show.
_EXIT_MISSING: Final = 3
_LOOK_S: Final = 0.1
#: Findings of one kind that are printed; the report has them all.
_MOST_SHOWN: Final = 5
#: Lines of a finding that are printed.
_MOST_LINES: Final = 10
#: More calls than this at once would be another test.
_DESCRIPTORS: Final = 16384


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line."""

    seeds: Sequence[int]
    length_s: float
    per_s: float
    calls: int
    subjects: frozenset[Subject]
    keep: Path | None


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one seed."""

    seed: int
    load: LoadFigures
    audit: Audit
    done: Counter[str]
    skipped: Counter[str]
    times: dict[str, tuple[float, float, float]]
    drained_s: float
    told: Sequence[str]


def main(arguments: list[str]) -> int:
    """Run chaos.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status: 0 if nobody was told a lie, 1 if somebody was, 3 if it cannot be run here.
    """
    options, report = _parse(arguments)
    signal.signal(signal.SIGTERM, _leave)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DESCRIPTORS, most), most))
    runs = []
    try:
        for seed in options.seeds:
            runs.append(run := _run(seed, options))
            _show(run)
    except (ChaosFailed, ProgramFailed) as failed:
        print(f"chaos: NOT RUN: {failed}", flush=True)
        return _EXIT_MISSING
    finally:
        if report is not None:
            report.write_text(json.dumps([_as_json(run) for run in runs], indent=1), "utf-8")
    lies = sum(len(run.audit.findings) for run in runs)
    calls = sum(run.load.calls for run in runs)
    print(f"\nchaos: {len(runs)} seeds, {calls:,} calls, {lies} lies", flush=True)
    return 1 if lies else 0


def _run(seed: int, options: Options) -> Run:
    """Have one seed's calls and disturbances, and audit what became of them."""
    print(f"\n=== seed {seed}: {options.per_s:g} calls a second for {options.length_s:g} s", flush=True)
    schedule = make_schedule(seed, options.length_s, options.subjects)
    load = Load(seed, options.calls, options.length_s, options.per_s)
    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        program = compiled(SOURCE, folder / "chaosload")
        with Scene(folder) as scene:
            journal, disturber = Journal(scene), Disturber(scene, schedule)
            try:
                with RunningLoad(program, scene.pool.address, load, folder / "notes") as running:
                    while running.runs:
                        time.sleep(min(_LOOK_S, disturber.act()))
                    disturber.undo()
                    figures, told = running.finish()
                drained_s = await_drained(scene, journal)
                evidence = gather(scene, told, journal)
                found = audit(evidence)
            finally:
                disturber.undo()
                if options.keep is not None:
                    _keep(folder, options.keep / f"seed-{seed}")
    return Run(
        seed=seed,
        load=figures,
        audit=found,
        done=Counter({what.value: count for what, count in disturber.done.items()}),
        skipped=Counter({what.value: count for what, count in disturber.skipped.items()}),
        times=_times(told),
        drained_s=drained_s,
        told=disturber.told,
    )


def _times(told: Sequence[Told]) -> dict[str, tuple[float, float, float]]:
    """Return for each verdict how long calls took that half, 99 of 100, and all stay below, in seconds."""
    by_verdict: dict[str, list[float]] = {}
    for each in told:
        by_verdict.setdefault(each.verdict.name, []).append(each.took_s)
    return {verdict: _quantiles(sorted(times)) for verdict, times in sorted(by_verdict.items())}


def _quantiles(times: Sequence[float]) -> tuple[float, float, float]:
    last = len(times) - 1
    return times[last // 2], times[last * 99 // 100], times[last]


def _show(run: Run) -> None:
    """Print what was done and what came of it."""
    lines = ["what was done:"]
    for what in sorted(run.done | run.skipped):
        skipped = f" ({run.skipped[what]} times there was none)" if run.skipped[what] else ""
        lines.append(f"{run.done[what]:8}  {what}{skipped}")
    lines.append("what calls were told:")
    for (kind, verdict, how, status), count in sorted(run.audit.told.items()):
        lines.append(f"{count:8}  {kind:7} {verdict:8} {how:9} {status}")
    lines.append("how long that took (half, 99 of 100, all below):")
    for verdict, times in run.times.items():
        lines.append(f"{'':8}  {verdict:8} " + "  ".join(f"{time_s:8.3f} s" for time_s in times))
    lines += [
        f"{run.audit.deferred:8}  went to the journal, empty {run.drained_s:.1f} s after the last call",
        f"{run.audit.failed_but_written:8}  were told FAILURE, and their rows are there",
        f"{run.audit.hung_up_and_written:8}  hung up, and their rows are there",
        f"{run.load.probes:8}  probes besides, which connect and close",
        f"{run.load.dropped:8}  were not placed, because too many were in progress",
        f"{run.load.cpu_s / max(run.load.length_s, 0.001):8.1%}  of a processor went to the client",
    ]
    print("\n".join([*lines, *_lies(run)]), flush=True)


def _lies(run: Run) -> list[str]:
    if not run.audit.findings:
        return [f"=== seed {run.seed}: {run.load.calls:,} calls, no lie"]
    lines = [f"=== seed {run.seed}: {len(run.audit.findings)} LIES in {run.load.calls:,} calls"]
    counts = Counter(finding.lie for finding in run.audit.findings)
    for lie, count in counts.most_common():
        lines.append(f"{count:8}  {lie.value}")
        shown = [finding.text for finding in run.audit.findings if finding.lie is lie][:_MOST_SHOWN]
        lines += [f"{'':10}{line}" for text in shown for line in _shortened(text.splitlines())]
    return lines


def _shortened(lines: Sequence[str]) -> Sequence[str]:
    """Leave out what nobody reads in the middle of a stack."""
    if len(lines) <= _MOST_LINES:
        return lines
    return [lines[0], "    ...", *lines[2 - _MOST_LINES :]]


def _as_json(run: Run) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "load": asdict(run.load),
        "done": run.done,
        "skipped": run.skipped,
        "told": [
            {"kind": kind, "verdict": verdict, "how": how, "status": status, "calls": count}
            for (kind, verdict, how, status), count in sorted(run.audit.told.items())
        ],
        "seconds": {verdict: list(times) for verdict, times in run.times.items()},
        "deferred": run.audit.deferred,
        "failed_but_written": run.audit.failed_but_written,
        "hung_up_and_written": run.audit.hung_up_and_written,
        "drained_s": run.drained_s,
        "lies": [{"lie": finding.lie.name, "text": finding.text} for finding in run.audit.findings],
        "schedule": run.told,
    }


def _keep(folder: Path, target: Path) -> None:
    """Keep what the run wrote, but for the small disk's ballast."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        folder, target, ignore=shutil.ignore_patterns("ballast", "run"), ignore_dangling_symlinks=True
    )


def _parse(arguments: list[str]) -> tuple[Options, Path | None]:
    parser = argparse.ArgumentParser(description="Disturb a pool under load, and look for lies.")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="decides everything (1)")
    parser.add_argument("--seeds", type=_seeds, metavar="A..B", help="several, one after the other")
    parser.add_argument(
        "--for", dest="length_s", type=float, default=600.0, metavar="S", help="seconds (600)"
    )
    parser.add_argument("--rate", type=float, default=200.0, metavar="N", help="calls a second (200)")
    parser.add_argument("--calls", type=int, default=0, metavar="N", help="end after so many calls")
    parser.add_argument(
        "--only", nargs="+", choices=[each.value for each in Subject], help="disturb nothing else"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all of it as JSON")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep logs, notes and the journal there")
    words = parser.parse_args(arguments)
    subjects = frozenset(Subject(each) for each in words.only) if words.only else frozenset(Subject)
    seeds = words.seeds or [words.seed]
    return Options(seeds, words.length_s, words.rate, words.calls, subjects, words.keep), words.report


def _seeds(text: str) -> list[int]:
    first, _, last = text.partition("..")
    return list(range(int(first), int(last) + 1))


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
