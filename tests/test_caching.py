"""fastagi_pool.caching: how old a value may be, and who reads it, in a real hub."""

from __future__ import annotations

from collections.abc import Sequence

import gevent
import pytest
from conftest import ManualClock
from gevent.event import Event

from fastagi_pool import caching
from fastagi_pool.caching import Cached

#: Far more than anything here takes.
WAIT_S = 5.0


class Source:
    """What values are read from: each value is new, and tells which reading it is.

    Attributes:
        read: The keys that were read, in order.
        go: What each reading waits for; set from the start unless cleared.
        refuses: What is raised instead of a value, as long as it is there.
        clock: What tells how long a reading takes.
        takes_s: Seconds that each reading takes.
    """

    def __init__(self, clock: ManualClock) -> None:
        self.read: list[str] = []
        self.go = Event()
        self.go.set()
        self.refuses: Exception | None = None
        self.clock = clock
        self.takes_s = 0.0

    def __call__(self, key: str) -> str:
        """Read a value."""
        self.read.append(key)
        value = f"{key}{len(self.read)}"
        assert self.go.wait(WAIT_S)
        self.clock.now_s += self.takes_s
        if self.refuses is not None:
            raise self.refuses
        return value


@pytest.fixture
def source(clock: ManualClock) -> Source:
    """What values are read from."""
    return Source(clock)


@pytest.fixture
def cached(source: Source, clock: ManualClock) -> Cached[str, str]:
    """Values that are good for two seconds."""
    return Cached(source, 2.0, clock)


def all_get(cached: Cached[str, str], keys: Sequence[str]) -> list[gevent.Greenlet]:
    """Begin a caller for each key, and return when each one waits or has its value."""
    callers = [gevent.spawn(cached.get, key) for key in keys]
    gevent.sleep(0)
    gevent.sleep(0)
    return callers


def outcomes(callers: Sequence[gevent.Greenlet]) -> list[object]:
    """Wait for callers, and give what each got or met."""
    gevent.joinall(callers, timeout=WAIT_S)
    assert all(caller.dead for caller in callers)
    return [caller.value if caller.successful() else caller.exception for caller in callers]


# ---- how old


def test_a_value_is_read_once_in_its_time(cached: Cached[str, str], source: Source) -> None:
    """Within its time to live a value is given again without a reading."""
    assert [cached.get("a") for _ in range(3)] == ["a1"] * 3
    assert source.read == ["a"]


@pytest.mark.parametrize(("later_s", "value"), [(1.999, "a1"), (2.0, "a2"), (9.0, "a2")])
def test_a_value_ends_with_its_time(
    cached: Cached[str, str], clock: ManualClock, later_s: float, value: str
) -> None:
    """A value that has reached its time to live is read anew."""
    cached.get("a")
    clock.now_s += later_s
    assert cached.get("a") == value


def test_a_value_is_as_old_as_its_question(
    cached: Cached[str, str], source: Source, clock: ManualClock
) -> None:
    """The time that the answer needed counts: it may have changed while it travelled."""
    source.takes_s = 1.5
    assert cached.get("a") == "a1"
    clock.now_s += 0.4
    assert cached.get("a") == "a1"
    clock.now_s += 0.1
    assert cached.get("a") == "a2"


def test_each_key_has_its_own_value_and_time(
    cached: Cached[str, str], source: Source, clock: ManualClock
) -> None:
    """One key's value is not another's, and is not read anew with it."""
    assert (cached.get("a"), cached.get("b")) == ("a1", "b2")
    clock.now_s += 1.0
    assert cached.get("c") == "c3"
    clock.now_s += 1.0
    assert [cached.get(key) for key in "abc"] == ["a4", "b5", "c3"]


def test_a_missing_value_is_kept_too() -> None:
    """That there is nothing is an answer like any other, and not asked for each time."""
    read: list[str] = []
    cached: Cached[str, None] = Cached(read.append, 60.0)
    assert (cached.get("a"), cached.get("a")) == (None, None)
    assert read == ["a"]


def test_without_a_time_to_live_nothing_is_kept(source: Source, clock: ManualClock) -> None:
    """Zero reads each value anew, for each caller."""
    cached = Cached(source, 0.0, clock)
    assert [cached.get("a") for _ in range(2)] == ["a1", "a2"]
    source.go.clear()
    callers = all_get(cached, ["a", "a"])
    source.go.set()
    assert outcomes(callers) == ["a3", "a4"]


def test_a_cache_does_not_grow_for_ever(
    cached: Cached[str, str], source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound it begins anew: keys may be made of what callers send."""
    monkeypatch.setattr(caching, "MOST_KEYS", 3)
    for key in "abcd":
        cached.get(key)
    assert cached.get("d") == "d4"
    assert cached.get("a") == "a5"
    assert len(vars(cached)["_kept"]) == 2


# ---- who reads


def test_one_reads_for_all(cached: Cached[str, str], source: Source) -> None:
    """Callers who want the same at the same moment share one reading."""
    source.go.clear()
    callers = all_get(cached, ["a"] * 5)
    source.go.set()
    assert outcomes(callers) == ["a1"] * 5
    assert source.read == ["a"]


def test_keys_do_not_wait_for_each_other(cached: Cached[str, str], source: Source) -> None:
    """While one key is read, another is read too, and a third that is kept is given."""
    kept = cached.get("k")
    source.go.clear()
    callers = all_get(cached, ["a", "b"])
    assert source.read == ["k", "a", "b"]
    assert cached.get("k") == kept
    source.go.set()
    assert outcomes(callers) == ["a2", "b3"]


def test_after_its_time_one_reads_for_all(
    cached: Cached[str, str], source: Source, clock: ManualClock
) -> None:
    """A burst of callers after the end of a value's time is one reading, not a flood."""
    cached.get("a")
    clock.now_s += 2.0
    source.go.clear()
    callers = all_get(cached, ["a"] * 5)
    source.go.set()
    assert outcomes(callers) == ["a2"] * 5


def test_an_error_is_everybodys_and_not_kept(cached: Cached[str, str], source: Source) -> None:
    """All who wait for a reading that failed get its error; the next caller reads anew."""
    source.go.clear()
    away = source.refuses = ConnectionError("away")
    callers = all_get(cached, ["a", "a"])
    source.go.set()
    assert outcomes(callers) == [away, away]
    source.refuses = None
    assert cached.get("a") == "a2"


def test_an_error_costs_no_value(cached: Cached[str, str], source: Source, clock: ManualClock) -> None:
    """A value past its time is not given in place of an error."""
    cached.get("a")
    clock.now_s += 2.0
    source.refuses = ConnectionError("away")
    with pytest.raises(ConnectionError):
        cached.get("a")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_caller_takes_no_reading_along(
    cached: Cached[str, str], source: Source, victim: int
) -> None:
    """Whoever is ended while he waits, the first or another, the others get the value, and it is kept."""
    source.go.clear()
    callers = all_get(cached, ["a", "a", "a"])
    callers.pop(victim).kill()
    source.go.set()
    assert outcomes(callers) == ["a1", "a1"]
    assert cached.get("a") == "a1"


def test_the_only_caller_may_be_killed(cached: Cached[str, str], source: Source) -> None:
    """A reading for which nobody waits any more ends and is kept, and the key is not blocked."""
    source.go.clear()
    (caller,) = all_get(cached, ["a"])
    caller.kill()
    source.go.set()
    assert cached.get("a") == "a1"


# ---- forgetting


def test_what_is_forgotten_is_read_anew(cached: Cached[str, str]) -> None:
    """A value that is known to have changed is not given again, and the others stay."""
    cached.get("a")
    cached.get("b")
    cached.forget("a")
    assert (cached.get("a"), cached.get("b")) == ("a3", "b2")


def test_what_nobody_knows_can_be_forgotten(cached: Cached[str, str]) -> None:
    """To forget what is not kept is no error."""
    cached.forget("a")
    assert cached.get("a") == "a1"


def test_what_is_read_while_it_changes_is_not_kept(cached: Cached[str, str], source: Source) -> None:
    """A reading that began before the change serves those who wait, and nobody who comes after it."""
    source.go.clear()
    before = all_get(cached, ["a"])
    cached.forget("a")
    after = all_get(cached, ["a"])
    source.go.set()
    assert outcomes(before) == ["a1"]
    assert outcomes(after) == ["a2"]
    assert cached.get("a") == "a2"


# ---- what is left


def test_no_reading_is_left(cached: Cached[str, str], source: Source) -> None:
    """After values, errors and a change in the middle of a reading nothing of the readings is left."""
    cached.get("a")
    source.refuses = ConnectionError("away")
    with pytest.raises(ConnectionError):
        cached.get("b")
    source.go.clear()
    callers = all_get(cached, ["c"])
    cached.forget("c")
    source.go.set()
    outcomes(callers)
    gevent.sleep(0)
    assert vars(cached)["_reading"] == {}
