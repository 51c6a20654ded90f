"""Bench: what every measurement is given: how much to measure, a load source, and pools to measure.

Laws:
    * Every pool is run as its operator runs it, from a YAML file in a folder that is thrown away.
    * Nothing that is started here outlives its ``with``.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from load import LoadSource
from service import PoolService

_HANDLERS: Final = Path(__file__).resolve().parent
#: One VERBOSE a call: as the peers do.
HELLO: Final = {"script": "hello", "handler": "fastagi_pool.handlers.demo:hello"}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to measure.

    Attributes:
        soak_calls: Calls of the soak.
        soak_first_calls: Of those, the ones after which memory is measured first.
        memory_samples: Samples of memory, each time.
        rounds: Rounds of what is compared by ratio; 10 or more tell something on a noisy machine.
        run_s: Length of each run in a round.
        held_calls: Calls held at once.
        reloads: Reloads under load.
        killed_calls: Calls held when a worker is killed.
        recovered_calls: Calls after the database has come back.
        balance_calls: Calls shared among the workers.
    """

    soak_calls: int
    soak_first_calls: int
    memory_samples: int
    rounds: int
    run_s: float
    held_calls: int
    reloads: int
    killed_calls: int
    recovered_calls: int
    balance_calls: int


#: What the criteria speak of.
FULL: Final = Scale(
    soak_calls=250_000,
    soak_first_calls=25_000,
    memory_samples=9,
    rounds=20,
    run_s=1.0,
    held_calls=10_000,
    reloads=20,
    killed_calls=200,
    recovered_calls=5_000,
    balance_calls=10_000,
)
#: Enough to see that everything works; the verdicts are only hints.
QUICK: Final = Scale(
    soak_calls=20_000,
    soak_first_calls=5_000,
    memory_samples=5,
    rounds=4,
    run_s=0.5,
    held_calls=1_000,
    reloads=4,
    killed_calls=200,
    recovered_calls=1_000,
    balance_calls=4_000,
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What a measurement works with.

    Attributes:
        scale: How much to measure.
        load: Runs loads.
        folder: Where files may go; thrown away at the end.
    """

    scale: Scale
    load: LoadSource
    folder: Path

    @contextmanager
    def pool(
        self, *routes: Mapping[str, Any], access_log: bool = True, **settings: Any
    ) -> Iterator[PoolService]:
        """Run a pool, of 2 workers unless the settings say otherwise.

        Args:
            routes: The routes of its configuration.
            access_log: Whether it writes a line for each call; as it does by default, for operators too.
            settings: Further keys of its configuration.

        Raises:
            PoolFailed: It does not start, or does not stop when told.
        """
        folder = Path(tempfile.mkdtemp(prefix="pool-", dir=self.folder))
        pool = PoolService(folder, _HANDLERS, routes, settings)
        if not access_log:
            pool.configure(log={**pool.config["log"], "access": "off"})
        try:
            pool.start()
            yield pool
        finally:
            if pool.runs:
                pool.signal(signal.SIGINT)
                pool.wait()
            pool.kill()
