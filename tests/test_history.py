"""fastagi_pool.history: seconds out of counters, percentiles out of buckets."""

from __future__ import annotations

import pytest
from pictures import picture, route_picture

from fastagi_pool.history import PERCENTILES_OVER_S, SAMPLES, History, percentiles
from fastagi_pool.tally import BUCKETS_S


def ended(calls: int, failed: int = 0, bucket: int = 4) -> dict[str, object]:
    """Write the picture of a pool in which so many calls have ended, all in one bucket."""
    durations = [0] * (len(BUCKETS_S) + 1)
    durations[bucket] = calls
    return picture(
        routes=[route_picture(calls=calls, failed=failed, durations=durations), route_picture("lookup")]
    )


def test_of_the_first_picture_nothing_is_told() -> None:
    """One reading has no rate: there is no sample before there are two."""
    history = History()
    history.add(ended(1000), 1.0, 100.0)
    assert history.as_json()["samples"] == []


def test_what_happened_in_a_second() -> None:
    """A sample holds what came between two pictures, by the second, and the gauges of the later one."""
    history = History()
    history.add(ended(1000, 5), 1.0, 100.0)
    history.add(ended(1030, 8) | {"active": 7, "queued": 2}, 2.5, 101.5)
    (sample,) = history.as_json()["samples"]
    assert (sample["t"], sample["rate"], sample["failed"]) == (101.5, 20.0, 2.0)
    assert (sample["active"], sample["queued"]) == (7, 2)


def test_percentiles_are_those_of_what_ended_lately() -> None:
    """Percentiles come from the differences of buckets: what was long ago does not count."""
    history = History()
    history.add(ended(1000, bucket=15), 0.0, 0.0)
    old_and_new = ended(1000, bucket=15)
    old_and_new["routes"][1]["durations"][4] = 40  # type: ignore[index]
    history.add(old_and_new, 1.0, 1.0)
    (sample,) = history.as_json()["samples"]
    assert BUCKETS_S[3] * 1000 < sample["p50_ms"] <= sample["p99_ms"] <= BUCKETS_S[4] * 1000


def test_a_second_without_a_call_has_no_percentile() -> None:
    """Nothing is not zero: a chart shows a gap."""
    history = History()
    for second in range(2):
        history.add(ended(5), float(second), float(second))
    (sample,) = history.as_json()["samples"]
    assert sample["rate"] == 0
    assert sample["p50_ms"] is None


def test_percentiles_are_forgotten_after_some_seconds() -> None:
    """Calls are told of in percentiles for as long as the window is wide, and no longer."""
    history = History()
    history.add(ended(0), 0.0, 0.0)
    for second in range(1, PERCENTILES_OVER_S + 2):
        history.add(ended(10), float(second), float(second))
    told = [sample["p50_ms"] is not None for sample in history.as_json()["samples"]]
    assert told == [True] * PERCENTILES_OVER_S + [False]


def test_five_minutes_are_kept() -> None:
    """The memory has a fixed size, and the oldest go."""
    history = History()
    for second in range(SAMPLES + 50):
        history.add(ended(second), float(second), float(second))
    samples = history.as_json()["samples"]
    assert len(samples) == SAMPLES
    assert samples[-1]["t"] == SAMPLES + 49


def test_only_what_is_new() -> None:
    """Whoever has the samples so far asks for the later ones only."""
    history = History()
    for second in range(5):
        history.add(ended(second), float(second), float(second))
    assert [sample["t"] for sample in history.as_json(after_s=2.0)["samples"]] == [3.0, 4.0]


def test_another_pool_in_the_same_folder() -> None:
    """Counters that go back are those of a new master: they make no sample with a rate below nothing."""
    history = History()
    history.add(ended(1000), 0.0, 0.0)
    history.add(ended(3), 1.0, 1.0)
    history.add(ended(5), 2.0, 2.0)
    assert [sample["rate"] for sample in history.as_json()["samples"]] == [2.0]


def test_a_pool_without_routes_yet() -> None:
    """Before any worker has counted, there are samples all the same."""
    history = History()
    history.add(picture(), 0.0, 0.0)
    history.add(ended(4), 1.0, 1.0)
    assert [sample["rate"] for sample in history.as_json()["samples"]] == [4.0]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([10, 0, 0, 0], [0.5, 0.9]),
        ([0, 10, 0, 0], [1.5, 1.9]),
        ([5, 0, 5, 0], [1.0, 3.6]),
        ([0, 0, 0, 7], [4.0, 4.0]),
        ([0, 0, 0, 0], [None, None]),
    ],
)
def test_percentiles(counts: list[int], expected: list[float | None]) -> None:
    """Within a bucket calls are taken as spread evenly; of the last only its lower limit is known."""
    assert percentiles(counts, (1.0, 2.0, 4.0), (0.5, 0.9)) == pytest.approx(expected)
