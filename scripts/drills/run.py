"""Have ten things go wrong with a pool, and show what its operator sees, reads in the log and can count on.

Laws:
    * A drill fails if the log does not name the cause, if a call ends as a false success, or if the pool does
      not recover; the others are run all the same.
    * Whatever was started is ended, also when a signal ends the run.

Use: ``.venv/bin/python scripts/drills/run.py [--short] [--write] [DRILL ...]``
"""

from __future__ import annotations

import argparse
import inspect
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drills.databases import database_away, slow_database
from drills.disks import disk_full
from drills.masters import bad_reload, master_killed, port_taken
from drills.setting import Setting
from drills.telling import CannotDrill, DrillFailed, Telling
from drills.workers import blocked_hub, memory_leak, pool_full, worker_killed

_ROOT: Final = Path(__file__).resolve().parents[2]
_PAGE: Final = _ROOT / "docs" / "drills.md"
_BEGIN: Final = "<!-- drills: begin -->"
_END: Final = "<!-- drills: end -->"
#: Something was to be shown that this machine cannot show.
_EXIT_MISSING: Final = 3


@dataclass(frozen=True, slots=True)
class Drill:
    """One drill.

    Attributes:
        title: What goes wrong.
        alarm: The alert of ``conf/prometheus-rules.yaml`` that tells of it; empty for none.
        run: Has it go wrong; its docstring says what is to be expected.
    """

    title: str
    alarm: str
    run: Callable[[Setting], None]

    @property
    def text(self) -> str:
        """What is to be expected."""
        return inspect.getdoc(self.run) or ""


#: In the order in which they are run.
DRILLS: Final[Mapping[str, Drill]] = {
    "blocked-hub": Drill("A handler blocks the hub", "FastagiWorkerStuck", blocked_hub),
    "slow-database": Drill("A handler sleeps in the database", "FastagiCallsAreSlow", slow_database),
    "database-away": Drill("The database is away", "FastagiDatabaseAway", database_away),
    "worker-killed": Drill("A worker is killed", "FastagiWorkersDie", worker_killed),
    "memory-leak": Drill("A worker leaks memory", "", memory_leak),
    "port-taken": Drill("The port is taken", "", port_taken),
    "pool-full": Drill("The pool is full", "FastagiOverload", pool_full),
    "bad-reload": Drill("A bad reload", "FastagiReloadRefused", bad_reload),
    "disk-full": Drill("The disk under the log is full", "FastagiLogLinesLost", disk_full),
    "master-killed": Drill("The master is killed", "FastagiStatusGone", master_killed),
}


def main(arguments: list[str]) -> int:
    """Run drills.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status: 0 if all went as they should, 1 if one did not, 3 if one could not be run here.
    """
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, _leave)
    codes, sections = [], []
    for name in options.drills or DRILLS:
        code, lines = _run(name, options.short)
        codes.append(code)
        sections.append(_section(name, lines))
    code = 1 if 1 in codes else max(codes)
    if options.write and not code:
        _write(sections)
        print(f"written into {_PAGE.relative_to(_ROOT)}")
    return code


def _run(name: str, short: bool) -> tuple[int, list[str]]:
    """Run one drill, and return its exit status and what it told."""
    drill, began_s = DRILLS[name], time.monotonic()
    print(f"\n=== {name}: {drill.title}\n{drill.text}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="drill-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        tell = Telling((f"{folder}/", f"{_ROOT}/"))
        setting = Setting(Path(folder), tell, *((2, 5) if short else (4, 20)))
        try:
            drill.run(setting)
        except CannotDrill as missing:
            print(f"=== {name}: NOT RUN: {missing}", flush=True)
            return _EXIT_MISSING, tell.lines
        except (DrillFailed, OSError, subprocess.SubprocessError) as failed:
            print(f"=== {name}: FAILED: {failed}", flush=True)
            return 1, tell.lines
    print(f"=== {name}: as it should be, in {time.monotonic() - began_s:.1f} s", flush=True)
    return 0, tell.lines


def _section(name: str, lines: list[str]) -> str:
    drill = DRILLS[name]
    alarm = f"\n\nAlarm: `{drill.alarm}`." if drill.alarm else ""
    head = f"## {drill.title}\n\n`{name}`: {drill.text}{alarm}"
    return "\n".join([head, "", "```text", *lines, "```", ""])


def _write(sections: list[str]) -> None:
    """Put the sections between the markers of the page."""
    head, _, rest = _PAGE.read_text("utf-8").partition(_BEGIN)
    tail = rest.partition(_END)[2]
    _PAGE.write_text("\n".join([f"{head}{_BEGIN}\n", *sections, f"{_END}{tail}"]), "utf-8")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Have ten things go wrong with a pool.")
    parser.add_argument("drills", nargs="*", metavar="DRILL", help=f"one of {', '.join(DRILLS)}")
    parser.add_argument("--short", action="store_true", help="with fewer calls")
    parser.add_argument("--write", action="store_true", help="put what was told into docs/drills.md")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.drills) - set(DRILLS))
    if unknown:
        parser.error(f"no drill is called {unknown[0]}; there are {', '.join(DRILLS)}")
    if options.write and options.drills:
        parser.error("--write needs all drills")
    return options


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
