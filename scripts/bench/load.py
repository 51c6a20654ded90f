"""Load: ``agiload``, which plays Asterisk, and what its figures say.

Laws:
    * What a call must be to count as good is decided in ``agiload.c`` alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from programs import Running, compiled

_SOURCE: Final = Path(__file__).resolve().parent / "agiload.c"
#: Calls in progress at once, unless a measurement says otherwise: as in the peers' published figures.
AT_ONCE: Final = 50
#: How long a run that is told to end may take for it, its calls in progress included.
_END_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """What to do to a server.

    Attributes:
        script: The script of every call.
        at_once: Calls in progress at the same time; with a rate, the most of them.
        calls: How many calls at most; 0 for no such limit.
        length_s: How long calls start at most.
        per_s: Calls that start every second, whatever the server does; 0 for as many as it takes.
        grace_s: How long calls may go on after the last one began.
        extension: Where in the dialplan every call is.
        name: The caller's name, in which ``%d`` is the call's number; by default a code of 20 characters,
            as VICIdial gives it to the calls that it dials.
        first: The number of the first call; unique id and channel follow from the number.
        needs_command: Whether a call must be sent a command to be good.
    """

    script: str = "hello"
    at_once: int = AT_ONCE
    calls: int = 0
    length_s: float = 3600.0
    per_s: float = 0.0
    grace_s: float = 30.0
    extension: str = "100"
    name: str = "V%019d"
    first: int = 1
    needs_command: bool = True


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What became of a load.

    Attributes:
        calls: Calls begun, or due to begin.
        good: Calls that the server closed cleanly, and in which it said something if it had to.
        calls_per_s: Good ones a second.
        p50_ms: Latency that half of the calls stay below.
        p99_ms: Latency that 99 of 100 calls stay below.
        stolen_s: Processor time, of all cores, that the machine's host kept from it meanwhile.
    """

    calls: int
    good: int
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    stolen_s: float

    @property
    def lost(self) -> int:
        """Calls that were bad, refused, not begun for want of a free line, or not finished."""
        return self.calls - self.good


class LoadSource:
    """Runs loads."""

    def __init__(self, cache: Path) -> None:
        """Compile the program if it is missing or older than its source.

        Args:
            cache: The folder to keep it in; made if missing.

        Raises:
            ProgramFailed: There is no C compiler, or it fails.
        """
        self._program = compiled(_SOURCE, cache / "agiload")

    def begin(self, address: str, load: Load) -> RunningLoad:
        """Start a load; use the result with ``with``.

        Args:
            address: ``host:port`` of the server.
            load: What to do to it.
        """
        host, _, port = address.rpartition(":")
        arguments = ["-h", host, "-p", port, "-s", load.script, "-c", str(load.at_once)]
        arguments += ["-n", str(load.calls), "-t", f"{load.length_s:g}", "-r", f"{load.per_s:g}"]
        arguments += ["-g", f"{load.grace_s:g}", "-x", load.extension, "-i", load.name, "-b", str(load.first)]
        return RunningLoad(self._program, *arguments, *(() if load.needs_command else ("-q",)))

    def run(self, address: str, load: Load) -> LoadResult:
        """Run a load to its end; see :meth:`begin`.

        Raises:
            ProgramFailed: It printed no figures.
        """
        with self.begin(address, load) as running:
            return running.result(timeout_s=None)


class RunningLoad(Running):
    """A load in progress; it ends with its ``with`` at the latest."""

    def __init__(self, program: Path, *arguments: str) -> None:
        """Begin; see :class:`programs.Running`."""
        self._stolen_before_s = _stolen_s()
        super().__init__(program, *arguments)

    def finish(self) -> LoadResult:
        """Start no more calls, wait for those in progress, and return what became of all.

        Raises:
            ProgramFailed: They did not end within 60 s.
        """
        return self._read(self.stop(_END_S))

    def result(self, timeout_s: float | None) -> LoadResult:
        """Wait for its end and return what became of it; see :meth:`figures`."""
        return self._read(self.figures(timeout_s))

    def _read(self, figures: Mapping[str, str]) -> LoadResult:
        return LoadResult(
            calls=int(figures["calls"]),
            good=int(figures["good"]),
            calls_per_s=float(figures["calls/s"]),
            p50_ms=float(figures["p50"]) / 1000,
            p99_ms=float(figures["p99"]) / 1000,
            stolen_s=_stolen_s() - self._stolen_before_s,
        )


def _stolen_s() -> float:
    """Return the processor time that a virtual machine's host has kept from it so far.

    Source: ``steal`` in proc(5), /proc/stat.
    """
    first, _ = Path("/proc/stat").read_text().split("\n", 1)
    return int(first.split()[8]) / os.sysconf("SC_CLK_TCK")


def interleaved(
    names: Sequence[str], rounds: int, run: Callable[[str], LoadResult]
) -> dict[str, list[LoadResult]]:
    """Measure several servers in turn: A B C, then C B A, and so on.

    On a machine that others use too, figures of different minutes cannot be compared; those of one
    round can. Turning the order round takes away what the order itself does.

    Args:
        names: The servers.
        rounds: How often.
        run: Measures one of them once.

    Returns:
        The results of each server, by round.
    """
    results: dict[str, list[LoadResult]] = {name: [] for name in names}
    for number in range(rounds):
        for name in reversed(names) if number % 2 else names:
            results[name].append(run(name))
    return results


def ratios(
    ours: Sequence[LoadResult], others: Sequence[LoadResult], figure: Callable[[LoadResult], float]
) -> list[float]:
    """Return the ratios of one figure, round by round."""
    return [figure(one) / figure(other) for one, other in zip(ours, others, strict=True)]


def undisturbed(results: Sequence[LoadResult]) -> list[LoadResult]:
    """Return the quarter of the results for which the machine's host kept least processor time from it.

    What waits for a processor that the host has given to others has the latency of the host, and the more so
    the more processors there are at work: the worst hundredth of all calls tells of nothing else.
    """
    return sorted(results, key=lambda result: result.stolen_s)[: max(1, len(results) // 4)]


def rate(result: LoadResult) -> float:
    """Return the calls a second."""
    return result.calls_per_s


def p99(result: LoadResult) -> float:
    """Return the latency that 99 of 100 calls stay below, in milliseconds."""
    return result.p99_ms
