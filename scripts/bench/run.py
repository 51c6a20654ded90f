"""Measure fastagi_pool, judge the figures, and write them into docs/performance.md.

Laws:
    * A run of all measurements at full length writes the page; anything less only prints.
    * A measurement that fails is a criterion that is not met, and the others go on.
    * Whatever was started is ended, also when a signal ends the run.

Use: ``.venv/bin/python scripts/bench/run.py [--quick] [--write] [MEASUREMENT ...]``
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# The tests' ways to run a pool and a MariaDB server are ours too.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from bench import FULL, QUICK, Bench
from commands import commands
from endurance import balance, held, soak
from figures import Section, facts_text, not_measured, rewrite, section_text
from legacy_calls import legacy
from load import LoadSource
from machine import facts
from overload import overload
from programs import ProgramFailed
from protection import protection
from service import PoolFailed
from speed import peers, rates, recycle
from trouble import kill, mariadb, reload
from vicidial_calls import vicidial
from watching import watching

_ROOT: Final = Path(__file__).resolve().parents[2]
_PAGE: Final = _ROOT / "docs" / "performance.md"
#: In the order in which they are run.
MEASUREMENTS: Final[Mapping[str, Callable[[Bench], Section]]] = {
    "commands": commands,
    "peers": peers,
    "recycle": recycle,
    "rates": rates,
    "vicidial": vicidial,
    "legacy": legacy,
    "soak": soak,
    "held": held,
    "balance": balance,
    "watching": watching,
    "overload": overload,
    "protection": protection,
    "reload": reload,
    "kill": kill,
    "mariadb": mariadb,
}


def main(arguments: list[str]) -> int:
    """Run the measurements.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status: 0 if every criterion is met, 1 if one is not, 2 if there is no load source.
    """
    options = _parse(arguments)
    names = options.measurements or list(MEASUREMENTS)
    signal.signal(signal.SIGTERM, _leave)
    try:
        source = LoadSource(_ROOT / ".cache")
    except ProgramFailed as error:
        print(error, file=sys.stderr)
        return 2
    machine = facts_text(facts())
    print(machine)
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        bench = Bench(QUICK if options.quick else FULL, source, Path(folder))
        sections = [_measure(name, bench) for name in names]
    if options.write or not (options.measurements or options.quick):
        remark = "**A quick run: the verdicts are only hints.**\n\n" if options.quick else ""
        rewrite(_PAGE, remark + "\n".join([machine, *map(section_text, sections)]))
        print(f"written into {_PAGE.relative_to(_ROOT)}")
    bad = [section.name for section in sections if not section.good]
    print(f"NOT MET: {', '.join(bad)}" if bad else "all criteria are met")
    return 1 if bad else 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure, judge, and write docs/performance.md.")
    parser.add_argument(
        "measurements", nargs="*", metavar="MEASUREMENT", help=f"{', '.join(MEASUREMENTS)}; without any: all"
    )
    parser.add_argument("--quick", action="store_true", help="little of everything; does not write the page")
    parser.add_argument("--write", action="store_true", help="write the page after a quick run too")
    options = parser.parse_args(arguments)
    if options.write and options.measurements:
        parser.error("--write wants all measurements: the page holds one run, not parts of several")
    unknown = set(options.measurements) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"no measurement {', '.join(sorted(unknown))}; there are {', '.join(MEASUREMENTS)}")
    return options


def _measure(name: str, bench: Bench) -> Section:
    print(f"measuring {name} ...", file=sys.stderr, flush=True)
    try:
        section = MEASUREMENTS[name](bench)
    except (PoolFailed, ProgramFailed, RuntimeError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        reason = str(error).partition("\n")[0].rstrip(":")
        section = Section(name, "The measurement failed.", (not_measured("all", reason, "to be measured"),))
    print(section_text(section), flush=True)
    return section


def _leave(number: int, frame: object) -> NoReturn:
    """Turn a signal into an end that lets every ``with`` do its work."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
