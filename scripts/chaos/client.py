"""Client: ``chaosload``, which plays Asterisk, and what it noted.

Laws:
    * What Asterisk makes of a call is decided in ``chaosload.c`` alone; here its notes are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from programs import Running

from chaos.auditor import Kind, Told, Verdict

SOURCE: Final = Path(__file__).resolve().parent / "chaosload.c"
#: Beyond the deadline of the last call.
_END_S: Final = 30.0


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
        probes: How many connections were closed without a word; they are no calls.
        dropped: How many did not, because too many were in progress.
        length_s: Until the last one had ended.
        cpu_s: What the client itself took.
    """

    calls: int
    probes: int
    dropped: int
    length_s: float
    cpu_s: float


class RunningLoad(Running):
    """Calls in progress; they end with the ``with`` at the latest."""

    def __init__(self, program: Path, address: str, load: Load, notes: Path) -> None:
        """Begin.

        Args:
            program: ``chaosload``.
            address: ``host:port`` of the pool; the host is this machine.
            load: What calls come.
            notes: Where each call is noted.
        """
        arguments = ["-p", address.rpartition(":")[2], "-o", str(notes), "-s", str(load.seed)]
        arguments += ["-n", str(load.calls), "-t", f"{load.length_s:g}", "-r", f"{load.per_s:g}"]
        super().__init__(program, *arguments, "-d", f"{load.deadline_s:g}")
        self._patience_s = load.deadline_s + _END_S
        self._notes = notes

    def finish(self) -> tuple[LoadFigures, list[Told]]:
        """Begin no more calls, wait for the last to end, and return what came of all.

        Raises:
            ProgramFailed: The client did not end, or ended badly.
        """
        found = self.stop(self._patience_s)
        figures = LoadFigures(
            calls=int(found["calls"]),
            probes=int(found["probes"]),
            dropped=int(found["dropped"]),
            length_s=float(found["seconds"]),
            cpu_s=float(found["cpu"]),
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
