"""Fuzzing: how many inputs are generated, few in every run of the tests and all in ``make fuzz``.

Laws:
    * A test says how many inputs it needs in a profile, and fails if fewer were really run.
    * The same command generates the same inputs: ``quick`` always, the others for the same
      ``--hypothesis-seed``.
    * Two processes of profile ``half`` do the work of ``full``; they need different seeds.
    * An input that takes longer than ``HANG_S`` is one that hangs: thousands of them are done in a second.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Final, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

FULL: Final = "full"
HALF: Final = "half"
QUICK: Final = "quick"
#: Some ten thousand times what an input takes.
HANG_S: Final = 30.0
#: Under this name the numbers go from the tests to the end of the report.
_INPUTS_RUN: Final = "inputs run"

_Input = TypeVar("_Input")

settings.register_profile(
    QUICK,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(FULL, settings.get_profile(QUICK), derandomize=False, print_blob=True)
settings.register_profile(HALF, settings.get_profile(FULL))


class Fuzz:
    """Runs a check on generated inputs.

    Attributes:
        inputs_run: Number of inputs that were checked to the end.
    """

    def __init__(self, profile: str, report: Callable[[int], None]) -> None:
        """Take what all checks share.

        Args:
            profile: Its name; one that is not ours is ``quick``.
            report: Is told the number of inputs that were run.
        """
        self.inputs_run = 0
        self._report = report
        self._profile = profile if profile in (FULL, HALF) else QUICK

    def __call__(
        self, check: Callable[[_Input], None], inputs: SearchStrategy[_Input], quick: int, full: int
    ) -> None:
        """Check inputs, and that there were enough of them.

        Args:
            check: Raises if an input shows a mistake.
            inputs: Makes them.
            quick: Number of inputs in an ordinary run of the tests.
            full: Number of inputs in ``make fuzz``, in all its processes together.
        """
        number = {FULL: full, HALF: -(-full // 2), QUICK: quick}[self._profile]

        @settings(settings.get_profile(self._profile), max_examples=number)
        @given(inputs)
        def check_and_count(generated: _Input) -> None:
            signal.setitimer(signal.ITIMER_REAL, HANG_S)
            check(generated)
            self.inputs_run += 1

        before = signal.signal(signal.SIGALRM, _say_that_it_hangs)
        try:
            check_and_count()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            self._report(self.inputs_run)
        assert self.inputs_run >= number, f"only {self.inputs_run} inputs of {number} were run"


def _say_that_it_hangs(number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"this input takes longer than {HANG_S:g} s")


@pytest.fixture
def fuzz(record_property: Callable[[str, object], None]) -> Fuzz:
    """Give what runs a check on generated inputs, as many as the profile of this run wants."""
    return Fuzz(settings.get_current_profile_name(), partial(record_property, _INPUTS_RUN))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many inputs were really run."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, number in report.user_properties:
            if name == _INPUTS_RUN:
                terminalreporter.write_line(f"{report.nodeid}: {number:,} {_INPUTS_RUN}")
