"""Telling: what a drill shows to whoever watches it, and what it claims.

Laws:
    * What is shown is what the programs really said; only folders are left out of paths, and lines that say
      nothing of the matter.
    * A claim that does not hold ends its drill.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

#: What is shown of one entry of the log.
_MOST_LINES: Final = 8


class DrillFailed(Exception):
    """Something is not as it should be; the text says what, and what was there instead."""


class CannotDrill(Exception):
    """The machine has not what the drill needs; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an operator saw.

    Attributes:
        asked: What he typed.
        code: The exit code, or the HTTP status; 0 if nobody answered there.
        text: What was answered.
        remark: What the code says, if it is not the usual one.
    """

    asked: str
    code: int
    text: str
    remark: str = ""

    def only(self, pattern: str) -> Seen:
        """Return the same without the lines in which a pattern is not found."""
        lines = [line for line in self.text.splitlines() if re.search(pattern, line)]
        return replace(self, text="\n".join(lines))


def check(holds: object, claim: str, evidence: str = "") -> None:
    """Fail the drill unless a claim holds.

    Args:
        holds: Whether it does.
        claim: What should be so.
        evidence: What was there instead.

    Raises:
        DrillFailed: It does not hold.
    """
    if not holds:
        raise DrillFailed(f"it is not so that {claim}:\n{evidence}".rstrip(":\n"))


def _shortened(lines: Sequence[str]) -> Sequence[str]:
    """Leave out what nobody reads in the middle of a stack."""
    if len(lines) <= _MOST_LINES:
        return lines
    return [*lines[: _MOST_LINES - 1], "    ...", lines[-1]]


@dataclass(slots=True)
class Telling:
    """Prints a drill while it runs.

    Attributes:
        folders: What is left out of paths.
        lines: What was printed so far.
    """

    folders: tuple[str, ...]
    lines: list[str] = field(default_factory=list)

    def does(self, text: str) -> None:
        """Tell what is done."""
        self._say(f"--- {text}")

    def sees(self, *all_seen: Seen) -> None:
        """Show what an operator sees."""
        for seen in all_seen:
            remark = [f"({seen.remark})"] if seen.remark else []
            self._say(f"$ {seen.asked}", *seen.text.rstrip().splitlines(), *remark, "")

    def reads(self, *texts: str) -> None:
        """Show what the log says."""
        self._say("log:", *(line for text in texts for line in _shortened(text.splitlines())), "")

    def heard(self, counts: Mapping[str, int]) -> None:
        """Show what callers heard: for each ending how many calls had it."""
        self._say("callers heard:", *(f"{counts[ending]:6}  {ending}" for ending in sorted(counts)), "")

    def recovers(self, text: str) -> None:
        """Tell how it went on."""
        self._say(f"recovered: {text}")

    def _say(self, *lines: str) -> None:
        for line in lines:
            for folder in self.folders:
                line = line.replace(folder, "")
            self.lines.append(line)
            print(line, flush=True)
