"""Setting: what every drill is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drills.callers import Callers
from drills.telling import Telling, check


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a drill takes place.

    Attributes:
        folder: An empty one, thrown away afterwards.
        tell: Told what happens.
        telephones: How many call again and again meanwhile.
        afterwards: How many calls must go well at the end.
    """

    folder: Path
    tell: Telling
    telephones: int
    afterwards: int

    def expect_service(self, callers: Callers, script: str = "quick") -> None:
        """Place the calls that must go well at the end, and claim that they do.

        Raises:
            DrillFailed: One did not.
        """
        endings = []
        for _ in range(self.afterwards):
            result = callers.call(script)
            served = result.variables.get("SERVED") == "yes"
            endings.append(f"{result.status.value} {result.reason} {result.variables}" if not served else "")
        check(not any(endings), "all calls afterwards are served", "\n".join(filter(None, endings)))

    def expect_truth(self, callers: Callers) -> None:
        """Claim that no call ended as a success that nobody served.

        Args:
            callers: They have finished.

        Raises:
            DrillFailed: One did.
        """
        unserved = callers.unserved
        check(not unserved, "no call ends as a false success", f"unique ids {unserved}")
