"""fastagi_pool.admission: calls that begin, wait and are interrupted, in a real hub with real attendants."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

import gevent
import gevent.event
import pytest

from fastagi_pool.admission import Admission
from fastagi_pool.attendants import Attendants
from fastagi_pool.callboard import CallState
from fastagi_pool.errors import CallStopped, CallTimeout, Overloaded
from fastagi_pool.lanes import LaneFacts, LaneLimits, Lanes
from fastagi_pool.protocol import HeaderLimits
from fastagi_pool.session import Session, SessionLimits

#: Never waited out.
LONG_S = 30.0
LANE = "ivr"


class Caller:
    """A call as the door sees it, which notes what becomes of it."""

    def __init__(self, name: str, peer: str = "192.0.2.1") -> None:
        self.name = name
        self.peer = peer
        self.greenlet: Any = None
        self.peer_has_closed = False
        self.seen: list[str] = []
        self.go = gevent.event.Event()
        self.raised: BaseException | None = None

    def queues(self) -> None:
        """Note that the wait begins."""
        self.seen.append("queues")

    def called_in(self) -> None:
        """Note that the wait ends."""
        self.seen.append("called in")


class Pool:
    """A door, the attendants behind it, and the callers in front of it."""

    def __init__(
        self,
        places: int,
        max_queue: int = 10,
        max_wait_s: float = LONG_S,
        most_of_peer: int = 0,
        on_queued: Callable[[int], object] = lambda queued: None,
    ) -> None:
        self.hub = gevent.get_hub()
        lane = LaneLimits(LANE, places, max_queue, max_wait_s)
        self.admission = Admission(Lanes(places, [lane], most_of_peer), self.hub, on_queued)
        self.attendants = Attendants(self.hub)
        self.begun: list[str] = []

    def serve(self, caller: Caller) -> None:
        """What a worker does: admit, serve until told to go, and leave, come what may."""
        try:
            self.admission.admit(caller, LANE)
            self.begun.append(caller.name)
            caller.seen.append("begins")
            caller.go.wait()
        except BaseException as raised:
            caller.raised = raised
        finally:
            self.admission.leave(caller)
            caller.seen.append("ends")

    def come(self, *callers: Caller) -> None:
        """Let calls come, one after another; each has begun, waits or is refused when it returns."""
        for caller in callers:
            self.in_hub(partial(self.attendants.attend, self.serve, caller))

    def in_hub(self, *works: Callable[[], object]) -> None:
        """Do things in one turn of the hub, as a worker's callbacks do, and wait until all is quiet."""
        done = gevent.event.Event()

        def do() -> None:
            for work in works:
                work()
            done.set()

        self.hub.loop.run_callback(do)
        assert done.wait(LONG_S)
        gevent.sleep(0)
        gevent.sleep(0)

    def figures(self) -> tuple[int, int]:
        """How many have a place, and how many wait."""
        return self.admission.active, sum(lane.queued for lane in self.admission.facts())


def named(names: str) -> list[Caller]:
    """Make callers, one for each letter."""
    return [Caller(name) for name in names]


def test_a_free_place_is_taken_at_once() -> None:
    """Whoever finds a place begins without a wait, and his place can be taken again after him."""
    pool, [a, b] = Pool(1), named("ab")
    pool.come(a)
    assert (a.seen, pool.figures()) == (["begins"], (1, 0))
    pool.in_hub(a.go.set)
    assert pool.figures() == (0, 0)
    pool.come(b)
    assert b.seen == ["begins"]


def test_places_go_to_those_who_wait_in_their_order() -> None:
    """A call that ends hands its place to whoever has waited longest, whose wait ends before he begins."""
    pool, [a, b, c] = Pool(1), named("abc")
    pool.come(a, b, c)
    assert (b.seen, pool.figures()) == (["queues"], (1, 2))
    pool.in_hub(a.go.set)
    assert (b.seen, c.seen, pool.figures()) == (["queues", "called in", "begins"], ["queues"], (1, 1))
    pool.in_hub(b.go.set)
    pool.in_hub(c.go.set)
    assert (pool.begun, pool.figures()) == (["a", "b", "c"], (0, 0))


def test_nobody_overtakes_whom_a_place_was_given() -> None:
    """A place is the waiting caller's from the moment it is free, though he has not run yet."""
    pool, [a, b, late] = Pool(1), named("abl")
    pool.come(a, b)
    pool.in_hub(lambda: pool.admission.leave(a), lambda: pool.attendants.attend(pool.serve, late))
    assert (pool.begun, pool.figures()) == (["a", "b"], (1, 1))


def test_whoever_leaves_is_not_left_in_the_middle() -> None:
    """The greenlet that hands its place on goes on at once; the next call begins after that."""
    pool, order = Pool(1), list[str]()
    holder, waiter = named("ab")
    pool.admission.admit(holder, LANE)

    def wait() -> None:
        pool.admission.admit(waiter, LANE)
        order.append("the next begins")

    waiter.greenlet = gevent.spawn(wait)
    gevent.sleep(0)
    pool.admission.leave(holder)
    order.append("the last goes on")
    waiter.greenlet.get(timeout=LONG_S)
    assert order == ["the last goes on", "the next begins"]


def test_no_room() -> None:
    """Beyond the room to wait a call is refused at once and told why; it has taken nothing."""
    pool, [a, b, c] = Pool(1, max_queue=1), named("abc")
    pool.come(a, b, c)
    assert isinstance(c.raised, Overloaded)
    assert str(c.raised) == (
        "there is no place for lane 'ivr': 1 calls are in progress (calls_per_worker: 1), and 1 calls of the "
        "lane wait (lanes.ivr.max_queue: 1)"
    )
    assert (c.seen, pool.figures()) == (["ends"], (1, 1))
    assert pool.admission.facts() == [LaneFacts(LANE, 1, 1, 1)]


def test_a_wait_that_is_too_long() -> None:
    """Whoever has waited too long is told so; those whose time is not over wait on."""
    pool, [a, b] = Pool(1, max_wait_s=5.0), named("ab")
    pool.come(a, b)
    pool.in_hub(lambda: pool.admission.sweep(monotonic()))
    assert b.seen == ["queues"]
    pool.in_hub(lambda: pool.admission.sweep(monotonic() + 5.0))
    assert isinstance(b.raised, Overloaded)
    assert "none became free within 5 s (lanes.ivr.max_wait)" in str(b.raised)
    assert (b.seen, pool.figures()) == (["queues", "called in", "ends"], (1, 0))


def test_too_many_of_one_server() -> None:
    """One server cannot take the places of the others."""
    pool, [a, b] = Pool(2, most_of_peer=1), named("ab")
    other = Caller("c", peer="192.0.2.2")
    pool.come(a, b, other)
    assert pool.begun == ["a", "c"]
    assert "limits.calls_per_server: 1" in str(b.raised)


def test_how_many_wait_is_told() -> None:
    """Whoever shows the worker's figures is told of each change in the queue, however a wait ends."""
    told: list[int] = []
    pool, [a, b, c] = Pool(1, on_queued=told.append), named("abc")
    pool.come(a, b, c)
    pool.in_hub(lambda: c.greenlet.throw(CallStopped("the worker must end")))
    pool.in_hub(a.go.set)
    assert told == [1, 2, 1, 0]


# --- interruptions


def test_interrupted_while_it_waits() -> None:
    """Whoever is interrupted leaves the queue, and the interruption is what he raises; others move up."""
    pool, [a, b, c] = Pool(1), named("abc")
    pool.come(a, b, c)
    stopped = CallStopped("the worker must end")
    pool.in_hub(lambda: b.greenlet.throw(stopped))
    assert (b.raised, b.seen) == (stopped, ["queues", "called in", "ends"])
    assert pool.figures() == (1, 1)
    pool.in_hub(a.go.set)
    assert (pool.begun, pool.figures()) == (["a", "c"], (1, 0))


@pytest.mark.parametrize("behind", ["", "c"])
def test_interrupted_with_a_place_on_its_way(behind: str) -> None:
    """A place that was given to somebody who is interrupted before he wakes goes to the next, or is free."""
    pool, [a, b, *others] = Pool(1), named(f"ab{behind}")
    pool.come(a, b, *others)
    pool.in_hub(
        lambda: pool.admission.leave(a),
        lambda: b.greenlet.throw(CallTimeout("script", 1.0)),
    )
    assert isinstance(b.raised, CallTimeout)
    assert (pool.begun, pool.figures()) == (["a", *behind], (len(behind), 0))


def test_interrupted_when_it_was_too_late_already() -> None:
    """Whoever is interrupted in the turn in which his wait was given up gives back nothing."""
    pool, [a, b] = Pool(1, max_wait_s=5.0), named("ab")
    pool.come(a, b)
    pool.in_hub(
        lambda: pool.admission.sweep(monotonic() + 5.0),
        lambda: b.greenlet.throw(CallStopped("the worker must end")),
    )
    assert isinstance(b.raised, CallStopped)
    assert pool.figures() == (1, 0)


def test_interrupted_callers_are_not_woken_elsewhere() -> None:
    """The hub wakes nobody who was interrupted meanwhile: he waits for something else by now."""
    pool, [a, b] = Pool(1), named("ab")
    last_words = gevent.event.Event()

    def serve(caller: Caller) -> None:
        try:
            pool.admission.admit(caller, LANE)
        except CallStopped:
            caller.seen.append("says its last words")
            last_words.wait()
            caller.seen.append("ends")

    pool.come(a)
    pool.in_hub(lambda: pool.attendants.attend(serve, b))
    pool.in_hub(
        lambda: pool.admission.leave(a),
        lambda: b.greenlet.throw(CallStopped("the worker must end")),
    )
    last_words.set()
    pool.in_hub()
    assert b.seen == ["queues", "called in", "says its last words", "ends"]


def test_only_a_decision_ends_the_wait() -> None:
    """Whatever else wakes a greenlet that waits, its call does not begin."""
    pool, [a, b] = Pool(1), named("ab")
    pool.come(a, b)
    pool.in_hub(lambda: b.greenlet.switch("what another call has left behind"))
    assert (b.seen, pool.figures()) == (["queues"], (1, 1))


def test_whoever_has_no_place_gives_none_back() -> None:
    """A worker may let every call leave at its end, whether it was ever admitted, and twice."""
    pool, [a, b] = Pool(1), named("ab")
    pool.come(a)
    pool.in_hub(lambda: pool.admission.leave(b))
    assert pool.figures() == (1, 0)
    pool.in_hub(lambda: pool.admission.leave(a), lambda: pool.admission.leave(a))
    assert pool.figures() == (0, 0)


# --- the end of the worker, and those who left


def test_drain() -> None:
    """A worker that drains lets all who wait begin at once, in their order, and whoever still comes."""
    pool, [a, b, c, late] = Pool(1), named("abcl")
    pool.come(a, b, c)
    pool.in_hub(pool.admission.drain)
    pool.come(late)
    assert (pool.begun, pool.figures()) == (["a", "b", "c", "l"], (4, 0))
    pool.in_hub(*(each.go.set for each in (a, b, c, late)))
    assert pool.figures() == (0, 0)


def test_those_who_left_make_room() -> None:
    """When there is no room, callers whose Asterisk has closed are let go; the others keep their turn."""
    pool, [a, gone, b, c] = Pool(1, max_queue=2), named("agbc")
    pool.come(a, gone, b)
    gone.peer_has_closed = True
    pool.come(c)
    assert isinstance(gone.raised, Overloaded)
    assert "closed the connection while the call waited" in str(gone.raised)
    assert (c.seen, pool.figures()) == (["queues"], (1, 2))
    pool.in_hub(a.go.set)
    assert pool.begun == ["a", "b"]


def test_a_session_waits() -> None:
    """A real session is shown as queued while it waits, and found gone once Asterisk has closed."""
    hub = gevent.get_hub()
    admission = Admission(Lanes(1, [LaneLimits(LANE, 1, 1, LONG_S)]), hub)
    holder = Caller("a")
    admission.admit(holder, LANE)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    session = Session(ours.detach(), "192.0.2.1", hub, SessionLimits(), HeaderLimits())
    session.greenlet = gevent.spawn(admission.admit, session, LANE)
    gevent.sleep(0)
    states = [session.state]
    theirs.close()
    assert session.peer_has_closed
    admission.leave(holder)
    session.greenlet.get(timeout=LONG_S)
    states.append(session.state)
    assert [state is CallState.QUEUED for state in states] == [True, False]
    assert session.queued_s > 0.0
    session.close()


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_or_doubled(seed: int) -> None:
    """Whatever happens in whatever order and turn, no place is lost, and none is given twice."""
    places, callers = 3, [Caller(str(number)) for number in range(200)]
    pool, chance = Pool(places, max_queue=5, max_wait_s=5.0), random.Random(seed)
    coming = iter(callers)

    def come() -> None:
        caller = next(coming, None)
        if caller is not None:
            pool.attendants.attend(pool.serve, caller)

    def interrupt() -> None:
        there = [each for each in callers if each.greenlet is not None]
        if there:
            chance.choice(there).greenlet.throw(CallStopped("the worker must end"))

    def end() -> None:
        there = [each for each in callers if each.seen[-1:] == ["begins"]]
        if there:
            chance.choice(there).go.set()

    def sweep() -> None:
        pool.admission.sweep(monotonic() + chance.choice([0.0, 5.0]))

    works: list[Callable[[], None]] = [come, come, come, interrupt, end, end, sweep]
    for _ in range(150):
        pool.in_hub(*chance.choices(works, k=chance.randint(1, 6)))
        inside = sum(each.seen[-1:] == ["begins"] for each in callers)
        waiting = sum(each.seen[-1:] == ["queues"] for each in callers)
        assert pool.figures() == (inside, waiting)
        assert inside <= places
        assert not waiting or inside == places
    for caller in callers:
        caller.go.set()
    pool.in_hub(pool.admission.drain)
    pool.in_hub()
    assert pool.figures() == (0, 0)
    assert all(each.seen[-1:] in ([], ["ends"]) for each in callers)
