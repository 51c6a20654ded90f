"""History: what the pool did in each of the last seconds, from counters that only grow.

Laws:
    * Pure: it is given pictures and times, reads no clock and no file.
    * It has a fixed size: the last five minutes, whatever happens.
    * What is not known is None and never 0: a second in which no call ended has no percentile.

How it works: counters are kept as they stood, one reading for each second; what happened in between is
their difference. Percentiles come from the differences of a histogram's buckets over some seconds, so that
a pool with few calls shows a line and not dots; within a bucket durations are taken as spread evenly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

#: One sample stands for so long.
STEP_S: Final = 1.0
#: Five minutes.
SAMPLES: Final = 300
#: Percentiles are those of the calls that ended within this many seconds.
PERCENTILES_OVER_S: Final = 10
_MS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of the whole pool as they stood at one moment.

    Attributes:
        at_s: Monotonic time.
        calls: Calls ended.
        failed: Of those, ended in a failure.
        durations: How many of them fell into each bucket, the last without a limit; not cumulative.
    """

    at_s: float
    calls: int
    failed: int
    durations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One second of the pool.

    Attributes:
        wall_s: When it ended, in seconds since the epoch.
        rate: Calls that ended, per second.
        active: Calls in progress at its end.
        queued: Calls that waited for a place at its end.
        failed: Calls that ended in a failure, per second.
        p50_s: Half of the calls of the last seconds took no longer; None if none ended.
        p95_s: 95 of 100 took no longer.
        p99_s: 99 of 100 took no longer.
    """

    wall_s: float
    rate: float
    active: int
    queued: int
    failed: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values for ``json.dumps``."""
        return {
            "t": round(self.wall_s, 3),
            "rate": round(self.rate, 2),
            "active": self.active,
            "queued": self.queued,
            "failed": round(self.failed, 2),
            "p50_ms": _in_ms(self.p50_s),
            "p95_ms": _in_ms(self.p95_s),
            "p99_ms": _in_ms(self.p99_s),
        }


class History:
    """The last five minutes, a sample for each second."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._readings: deque[Reading] = deque(maxlen=PERCENTILES_OVER_S)

    def add(self, status: Mapping[str, Any], now_s: float, wall_s: float) -> None:
        """Add what a picture of the pool says; of the very first nothing can be told yet.

        Args:
            status: The picture, as :meth:`status.PoolStatus.as_json` gives it.
            now_s: Monotonic time at which it was taken; a second after the one before, more or less.
            wall_s: The same moment in seconds since the epoch.
        """
        reading = read(status, now_s)
        if self._readings and _went_back(self._readings[-1], reading):
            self._readings.clear()
        if self._readings:
            oldest, last = self._readings[0], self._readings[-1]
            passed_s = max(reading.at_s - last.at_s, 1e-3)
            ended = [max(0, new - old) for new, old in zip(reading.durations, oldest.durations, strict=True)]
            p50_s, p95_s, p99_s = percentiles(ended, status["bucket_limits_s"], (0.50, 0.95, 0.99))
            self._samples.append(
                Sample(
                    wall_s=wall_s,
                    rate=(reading.calls - last.calls) / passed_s,
                    active=status["active"],
                    queued=status["queued"],
                    failed=(reading.failed - last.failed) / passed_s,
                    p50_s=p50_s,
                    p95_s=p95_s,
                    p99_s=p99_s,
                )
            )
        self._readings.append(reading)

    def as_json(self, after_s: float = 0.0) -> dict[str, Any]:
        """Return the samples as plain values for ``json.dumps``, the oldest first.

        Args:
            after_s: Only those that are younger, in seconds since the epoch.
        """
        samples = [sample.as_json() for sample in self._samples]
        return {"step_s": STEP_S, "samples": [sample for sample in samples if sample["t"] > after_s]}


def read(status: Mapping[str, Any], now_s: float) -> Reading:
    """Sum up the counters of all routes."""
    routes = status["routes"]
    buckets = len(status["bucket_limits_s"]) + 1
    by_route = [route["durations"] for route in routes]
    return Reading(
        at_s=now_s,
        calls=sum(route["calls"] for route in routes),
        failed=sum(route["failed"] for route in routes),
        durations=tuple(map(sum, zip(*by_route, strict=True))) if by_route else (0,) * buckets,
    )


def percentiles(
    counts: Sequence[int], limits_s: Sequence[float], shares: Sequence[float]
) -> list[float | None]:
    """Estimate how long this share of all calls took at most.

    Args:
        counts: Calls in each bucket; one more than there are limits.
        limits_s: The upper limit of each bucket but the last, which has none.
        shares: From 0 to 1.

    Returns:
        For each share the time in seconds; None where there is no call at all. What lies in the last
        bucket is told as its lower limit: it was longer than that.
    """
    cumulated = list(accumulate(counts))
    if not cumulated or cumulated[-1] <= 0:
        return [None] * len(shares)
    return [_percentile(counts, cumulated, limits_s, share * cumulated[-1]) for share in shares]


def _percentile(
    counts: Sequence[int], cumulated: Sequence[int], limits_s: Sequence[float], rank: float
) -> float:
    bucket = next(place for place, count in enumerate(cumulated) if count > 0 and count >= rank)
    lower_s = limits_s[bucket - 1] if bucket else 0.0
    if bucket == len(limits_s):
        return lower_s
    below = cumulated[bucket] - counts[bucket]
    return lower_s + (limits_s[bucket] - lower_s) * (rank - below) / counts[bucket]


def _went_back(last: Reading, reading: Reading) -> bool:
    """Whether these counters do not go on where the last ones stood: it is another pool."""
    return reading.calls < last.calls or len(reading.durations) != len(last.durations)


def _in_ms(time_s: float | None) -> float | None:
    return None if time_s is None else round(time_s * _MS, 3)
