"""fastagi_pool.places: who holds a place, who waits for one, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
import pytest

from fastagi_pool.errors import Overloaded
from fastagi_pool.places import Places

#: Never waited out: a greenlet that is to have its place has it long before.
LONG_S = 30.0


class Interruption(BaseException):
    """What a session throws into a greenlet whose call is over."""


@pytest.fixture
def taker() -> Callable[[Places, list[str], str], gevent.Greenlet]:
    """Give a function that starts a greenlet which takes a place and notes its name."""

    def start(places: Places, served: list[str], name: str) -> gevent.Greenlet:
        def take() -> None:
            places.take()
            served.append(name)

        greenlet = gevent.spawn(take)
        gevent.sleep(0)
        return greenlet

    return start


def test_places_are_counted() -> None:
    """A place is held until it is given back, and can then be taken again."""
    places = Places(2, 0, LONG_S)
    places.take()
    places.take()
    assert (places.taken, places.waiting) == (2, 0)
    places.give_back()
    places.take()
    assert places.taken == 2


def test_nobody_may_wait() -> None:
    """Without a queue the next one is refused at once, with the numbers."""
    places = Places(1, 0, LONG_S)
    places.take()
    with pytest.raises(Overloaded, match=r"all 1 places are taken, and 0 calls wait for one"):
        places.take()
    assert places.taken == 1


def test_a_full_queue(taker: Callable[[Places, list[str], str], gevent.Greenlet]) -> None:
    """No more wait than there is room for; who does is still served."""
    places = Places(1, 1, LONG_S)
    served: list[str] = []
    places.take()
    waiter = taker(places, served, "a")
    with pytest.raises(Overloaded, match=r"all 1 places are taken, and 1 calls wait for one"):
        places.take()
    places.give_back()
    waiter.get(timeout=LONG_S)
    assert served == ["a"]


def test_first_come_first_served(taker: Callable[[Places, list[str], str], gevent.Greenlet]) -> None:
    """Places go to those who wait in their order, and nobody who comes later overtakes."""
    places = Places(1, 3, LONG_S)
    served: list[str] = []
    places.take()
    waiters = [taker(places, served, name) for name in "abc"]
    places.give_back()
    # The place is a's already, though a has not run yet.
    late = gevent.spawn(places.take)
    gevent.sleep(0)
    assert served == ["a"]
    assert (places.taken, places.waiting) == (1, 3)
    for _ in range(3):
        places.give_back()
        gevent.sleep(0)
    gevent.joinall([*waiters, late], timeout=LONG_S, raise_error=True)
    assert served == ["a", "b", "c"]
    assert (places.taken, places.waiting) == (1, 0)


def test_a_wait_that_is_too_long() -> None:
    """Who has waited for the longest time leaves the queue without a place, and is told the numbers."""
    places = Places(1, 1, 0.01)
    places.take()
    with pytest.raises(Overloaded, match=r"none of 1 places became free within 0\.01 s"):
        places.take()
    assert (places.taken, places.waiting) == (1, 0)
    places.give_back()
    places.take()
    assert places.taken == 1


def test_an_interrupted_waiter(taker: Callable[[Places, list[str], str], gevent.Greenlet]) -> None:
    """Whoever is interrupted while it waits leaves the queue; those behind it move up."""
    places = Places(1, 2, LONG_S)
    served: list[str] = []
    places.take()
    first, second = taker(places, served, "a"), taker(places, served, "b")
    first.kill(Interruption)
    assert places.waiting == 1
    places.give_back()
    second.get(timeout=LONG_S)
    assert (served, places.taken) == (["b"], 1)


def test_interrupted_with_a_place_on_its_way(
    taker: Callable[[Places, list[str], str], gevent.Greenlet],
) -> None:
    """A place that was given to somebody who is interrupted before it wakes goes to the next."""
    places = Places(1, 2, LONG_S)
    served: list[str] = []
    places.take()
    first, second = taker(places, served, "a"), taker(places, served, "b")

    def in_the_hub() -> None:
        places.give_back()
        first.throw(Interruption)

    gevent.get_hub().loop.run_callback(in_the_hub)
    second.get(timeout=LONG_S)
    assert (served, places.taken, places.waiting) == (["b"], 1, 0)


def test_interrupted_with_a_place_on_its_way_and_nobody_behind(
    taker: Callable[[Places, list[str], str], gevent.Greenlet],
) -> None:
    """Such a place is free again when nobody waits."""
    places = Places(1, 1, LONG_S)
    places.take()
    first = taker(places, [], "a")

    def in_the_hub() -> None:
        places.give_back()
        first.throw(Interruption)

    gevent.get_hub().loop.run_callback(in_the_hub)
    gevent.joinall([first], timeout=LONG_S)
    assert places.taken == 0


def test_given_back_in_the_hub(taker: Callable[[Places, list[str], str], gevent.Greenlet]) -> None:
    """The hub can give a place back: nothing waits there."""
    places = Places(1, 1, LONG_S)
    served: list[str] = []
    places.take()
    waiter = taker(places, served, "a")
    gevent.get_hub().loop.run_callback(places.give_back)
    waiter.get(timeout=LONG_S)
    assert served == ["a"]


def test_only_a_wait_is_spent_in_the_queue() -> None:
    """Whoever finds a place free has not queued; whoever waits has, until he is refused."""
    places = Places(1, 1, 0.001)
    seen: list[str] = []

    @contextmanager
    def queueing() -> Iterator[None]:
        seen.append("begins")
        try:
            yield
        finally:
            seen.append("ends")

    places.take(queueing)
    assert seen == []
    with pytest.raises(Overloaded, match="became free"):
        places.take(queueing)
    assert seen == ["begins", "ends"]
