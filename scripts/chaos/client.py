"""Client: ``chaosload``, which plays Asterisk, and the small programs of a run that are compiled when needed.

Laws:
    * What Asterisk makes of a call is decided in ``chaosload.c`` alone; here its notes are read.
    * No load outlives this process.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from chaos.auditor import Kind, Told, Verdict

_SOURCES: Final = Path(__file__).resolve().parent
_FIGURE: Final = re.compile(r"(\S+) ([\d.]+)")
#: Beyond the deadline of the last call.
_END_S: Final = 30.0


class ChaosFailed(Exception):
    """The run cannot be done, which says nothing about the pool; the text says why."""


@dataclass(frozen=True, slots=True)
class Load:
    """What calls come.

    Attributes:
        seed: Decides of what kind they are.
        calls: How many at most; 0 for no limit.
        length_s: How long calls begin.
        per_s: How many begin every second.
        deadline_s: How long one may last until it counts as one that never ends.
    """

    seed: int
    calls: int
    length_s: float
    per_s: float
    deadline_s: float = 60.0


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """How it went.

    Attributes:
        calls: How many calls began.
        dropped: How many did not, because too many were in progress.
        length_s: Until the last one had ended.
        cpu_s: What the client itself took.
    """

    calls: int
    dropped: int
    length_s: float
    cpu_s: float


class RunningLoad:
    """Calls in progress; they end with the ``with`` at the latest."""

    def __init__(self, program: Path, address: str, load: Load, notes: Path) -> None:
        """Begin.

        Args:
            program: ``chaosload``.
            address: ``host:port`` of the pool; the host is this machine.
            load: What calls come.
            notes: Where each call is noted.
        """
        command = [str(program), "-p", address.rpartition(":")[2], "-o", str(notes), "-s", str(load.seed)]
        command += ["-n", str(load.calls), "-t", f"{load.length_s:g}", "-r", f"{load.per_s:g}"]
        command += ["-d", f"{load.deadline_s:g}"]
        self._patience_s = load.deadline_s + _END_S
        self._notes = notes
        self._process = subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", *command), stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()

    @property
    def runs(self) -> bool:
        """Whether calls are still in progress."""
        return self._process.poll() is None

    def finish(self) -> tuple[LoadFigures, list[Told]]:
        """Begin no more calls, wait for the last to end, and return what came of all.

        Raises:
            ChaosFailed: The client did not end, or ended badly.
        """
        if self.runs:
            self._process.send_signal(signal.SIGTERM)
        try:
            output, _ = self._process.communicate(timeout=self._patience_s)
        except subprocess.TimeoutExpired as error:
            raise ChaosFailed(f"the client did not end within {self._patience_s:g} s") from error
        found = dict(_FIGURE.findall(output))
        if "calls" not in found:
            raise ChaosFailed(f"the client printed no figures, but {output!r}")
        figures = LoadFigures(
            int(found["calls"]), int(found["dropped"]), float(found["seconds"]), float(found["cpu"])
        )
        return figures, read_notes(self._notes)


def read_notes(notes: Path) -> list[Told]:
    """Read what each call heard."""
    told = []
    for line in notes.read_text().splitlines():
        kind, number, verdict, how, status, began_s, took_s, _ = line.split(" ")
        told.append(
            Told(
                kind=Kind(kind),
                number=int(number),
                verdict=Verdict(verdict),
                how=how,
                status="" if status == "-" else status,
                began_s=float(began_s),
                took_s=float(took_s),
            )
        )
    return told


def compiled(source: str, target: Path, *options: str) -> Path:
    """Compile a program that stands beside this module, and return where it is.

    Args:
        source: The file's name.
        target: Where it goes.
        options: Of the compiler.

    Raises:
        ChaosFailed: There is no C compiler, or it fails.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ChaosFailed("no C compiler; on Debian: apt install gcc libc6-dev")
    command = [compiler, "-O2", *options, "-o", str(target), str(_SOURCES / source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChaosFailed(f"{compiler} failed:\n{done.stderr}")
    return target
