"""Figures: what was measured, what it had to be, and how that is written down.

Laws:
    * A figure carries its criterion and its verdict; what could not be measured is never "met".
    * Text is made here, and only here: the same tables go to the terminal and into the page.
    * Of the page only the part between the two markers is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

BEGIN: Final = "<!-- figures: begin -->"
END: Final = "<!-- figures: end -->"


class Verdict(Enum):
    """Whether a figure is what it had to be."""

    MET = "met"
    NOT_MET = "NOT MET"
    NOT_MEASURED = "NOT MEASURED"


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured against a criterion.

    Attributes:
        what: What was measured.
        value: The figure with its unit.
        criterion: What it had to be.
        verdict: Whether it is.
    """

    what: str
    value: str
    criterion: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one server was: for information, without a criterion.

    Attributes:
        server: Which one, and what it did.
        calls_per_s: Rate; the median of its runs, as are the others.
        p50_ms: Latency that half of the calls stay below.
        p99_ms: Latency that 99 of 100 calls stay below.
    """

    server: str
    calls_per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Section:
    """What one measurement found.

    Attributes:
        name: The measurement's name on the command line.
        title: What was done, in one line.
        figures: What had to be so.
        speeds: What is for information.
    """

    name: str
    title: str
    figures: tuple[Figure, ...] = ()
    speeds: tuple[Speed, ...] = ()

    @property
    def good(self) -> bool:
        """Whether every criterion is met."""
        return all(figure.verdict is Verdict.MET for figure in self.figures)


def judged(what: str, value: str, criterion: str, met: bool) -> Figure:
    """Make a figure that was measured."""
    return Figure(what, value, criterion, Verdict.MET if met else Verdict.NOT_MET)


def not_measured(what: str, reason: str, criterion: str) -> Figure:
    """Make a figure that could not be measured."""
    return Figure(what, reason, criterion, Verdict.NOT_MEASURED)


def section_text(section: Section) -> str:
    """Write one measurement as Markdown that can be read as it stands."""
    parts = [f"### {section.name}", section.title]
    if section.figures:
        rows = [(each.what, each.value, each.criterion, each.verdict.value) for each in section.figures]
        parts.append(_table(("figure", "measured", "criterion", "verdict"), rows))
    if section.speeds:
        speeds = [
            (each.server, f"{each.calls_per_s:,.0f}", f"{each.p50_ms:.1f} ms", f"{each.p99_ms:.1f} ms")
            for each in section.speeds
        ]
        parts.append(_table(("server", "calls/s", "p50", "p99"), speeds))
    return "\n\n".join(parts) + "\n"


def facts_text(facts: Sequence[tuple[str, str]]) -> str:
    """Write what is known of the machine as a Markdown table."""
    return _table(("machine", ""), facts) + "\n"


def rewrite(page: Path, text: str) -> None:
    """Put a text between the markers of a page.

    Raises:
        ValueError: The page has not exactly one of each marker, in order.
    """
    old = page.read_text("utf-8")
    head, begin, rest = old.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in tail:
        raise ValueError(f"{page} has no part between {BEGIN} and {END}")
    page.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{tail}", "utf-8")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(heads))]
    return "\n".join(_table_lines(lines, widths))


def _table_lines(lines: Sequence[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    for number, line in enumerate(lines):
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield f"| {' | '.join(padded)} |"
        if number == 0:
            yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"
