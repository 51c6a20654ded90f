"""The machine: what it is, and what the processes of a pool take of it."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from mariadb import MariaDBMissingError, find_mariadb
from peers import perl_version
from service import Process

from fastagi_pool.version import VERSION


def facts() -> list[tuple[str, str]]:
    """Return what the figures depend on, as names and values."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return [
        ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("cores", f"{len(os.sched_getaffinity(0))} ({model[1] if model else platform.machine()})"),
        ("memory", f"{memory_bytes / 2**30:.1f} GiB"),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("load average before", " ".join(f"{load:.1f}" for load in os.getloadavg())),
        ("fastagi_pool", VERSION),
        ("Python", platform.python_version()),
        ("gevent", version("gevent")),
        ("SQLAlchemy", version("SQLAlchemy")),
        ("PyMySQL", version("PyMySQL")),
        ("Perl", perl_version() or "none"),
        ("MariaDB", _mariadb_version() or "none"),
    ]


def _mariadb_version() -> str:
    try:
        command = [str(find_mariadb().server), "--version"]
    except MariaDBMissingError:
        return ""
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"Ver (\S+)", output)
    return found[1] if found else output.strip()


def pss_bytes(processes: list[Process]) -> int:
    """Return the memory that some processes take: their own, and their share of what they share.

    Source: proc(5), ``smaps_rollup``. A process that has ended meanwhile counts as nothing.
    """
    total = 0
    for process in processes:
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found = re.search(r"^Pss:\s*(\d+) kB", rollup, re.MULTILINE)
        total += int(found[1]) * 1024 if found else 0
    return total


def allow_open_files(needed: int) -> bool:
    """Raise this process's limit of open files, which its children inherit, and say whether it is enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return True
    if hard != resource.RLIM_INFINITY and hard < needed:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return True
