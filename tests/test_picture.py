"""fastagi_pool.picture: one reading for all who look at the same moment."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import FakePool, record

from fastagi_pool.picture import KEPT_S, NoPicture, Pictures


class Clock:
    """A time that the test sets."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """Tell it."""
        return self.now_s


@pytest.fixture
def pool(tmp_path: Path) -> FakePool:
    """Have a pool of two workers with five calls in each."""
    return FakePool(tmp_path, calls=5)


@pytest.fixture
def clock(pool: FakePool) -> Clock:
    """Have a clock that stands at the pool's present."""
    return Clock(pool.now_s)


@pytest.fixture
def pictures(pool: FakePool, clock: Clock) -> Pictures:
    """Take pictures of that pool."""
    return Pictures(pool.runtime_dir, clock, lambda: 1000.0 + clock.now_s)


def test_watchers_of_the_same_moment_share_a_picture(pictures: Pictures, clock: Clock) -> None:
    """However many look, the pool is read once, and again when the picture is old."""
    first = pictures.latest()
    clock.now_s += KEPT_S * 0.9
    assert pictures.latest() is first
    clock.now_s += KEPT_S
    assert pictures.latest() is not first


def test_a_later_picture_shows_what_came(pool: FakePool, pictures: Pictures, clock: Clock) -> None:
    """A new picture is read anew."""
    before = pictures.latest().status
    pool.tallies[1].write(record("lookup"), 0.0)
    clock.now_s += 1
    after = pictures.latest().status
    assert [sum(route["calls"] for route in each["routes"]) for each in (before, after)] == [0, 1]


def test_the_oldest_calls_first(pictures: Pictures) -> None:
    """Calls come in the order of their age, up to the limit, and more when somebody wants more."""
    few = pictures.calls(3)
    many = pictures.calls(100)
    assert (len(few), len(many)) == (3, 10)
    assert [call["ref"] for call in few] == [call["ref"] for call in many[:3]]
    assert [call["age_s"] for call in many] == sorted((call["age_s"] for call in many), reverse=True)
    assert pictures.calls(3) == few


def test_no_pool(tmp_path: Path) -> None:
    """Where no pool is, the error names the folder, for the picture and for the calls."""
    pictures = Pictures(tmp_path / "none")
    with pytest.raises(NoPicture, match="none"):
        pictures.latest()
    with pytest.raises(NoPicture, match="none"):
        pictures.calls(20)


def test_a_pool_that_goes_away(pool: FakePool, pictures: Pictures, clock: Clock) -> None:
    """An old picture is never shown as the present, and a pool that comes back is seen again."""
    pictures.latest()
    scoreboard = pool.runtime_dir / "scoreboard"
    scoreboard.rename(scoreboard.with_suffix(".away"))
    clock.now_s += 1
    with pytest.raises(NoPicture):
        pictures.latest()
    scoreboard.with_suffix(".away").rename(scoreboard)
    assert pictures.latest().status["running"]


def test_history_goes_on_while_there_is_no_pool(pool: FakePool, pictures: Pictures, clock: Clock) -> None:
    """A second in which nothing can be read is left out, and harms nothing."""
    scoreboard = pool.runtime_dir / "scoreboard"
    pictures.remember()
    clock.now_s += 1
    scoreboard.rename(scoreboard.with_suffix(".away"))
    pictures.remember()
    clock.now_s += 1
    scoreboard.with_suffix(".away").rename(scoreboard)
    pool.tallies[0].write(record(), 0.0)
    pictures.remember()
    assert [sample["rate"] for sample in pictures.history()["samples"]] == [0.5]
