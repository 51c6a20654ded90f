"""fastagi_pool.lanes: who may begin, who waits and who comes next, also against a slow and simple model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastagi_pool.lanes import LaneFacts, LaneLimits, Lanes

IVR, HANGUP = "ivr", "hangup"
PEER, OTHER = "192.0.2.1", "192.0.2.2"


def limits(
    name: str, max_active: int = 10, max_queue: int = 10, max_wait_s: float = 5.0, reserve: int = 0
) -> LaneLimits:
    """Write the limits of a lane; generous where a test does not say."""
    return LaneLimits(name, max_active, max_queue, max_wait_s, reserve)


def entered(lanes: Lanes[str], lane: str, times: int, peer: str = PEER) -> int:
    """Let so many calls come, and return how many found a place."""
    return sum(lanes.enter(lane, peer) for _ in range(times))


# --- places


@pytest.mark.parametrize(
    ("places", "ivr", "hangup", "ivr_begin", "hangup_begin"),
    [
        pytest.param(5, limits(IVR), limits(HANGUP), 5, 0, id="without a reserve whoever comes takes all"),
        pytest.param(5, limits(IVR), limits(HANGUP, reserve=2), 3, 2, id="a reserve is kept"),
        pytest.param(5, limits(IVR, max_active=2), limits(HANGUP), 2, 3, id="no more of a lane than it may"),
        pytest.param(5, limits(IVR, reserve=3), limits(HANGUP, reserve=2), 3, 2, id="all is reserved"),
        pytest.param(
            5, limits(IVR, reserve=4), limits(HANGUP), 5, 0, id="one's own reserve is the first used"
        ),
        pytest.param(1, limits(IVR), limits(HANGUP, reserve=1), 0, 1, id="the only place is kept"),
    ],
)
def test_who_finds_a_place(
    places: int, ivr: LaneLimits, hangup: LaneLimits, ivr_begin: int, hangup_begin: int
) -> None:
    """One lane fills the pool first; then the other finds what was kept for it, and no more."""
    lanes: Lanes[str] = Lanes(places, [ivr, hangup])
    assert entered(lanes, IVR, 20) == ivr_begin
    assert entered(lanes, HANGUP, 20) == hangup_begin
    assert lanes.active == ivr_begin + hangup_begin


def test_beyond_its_reserve_a_lane_is_like_any_other() -> None:
    """A lane may use more than its reserve as long as there are places that nobody else is kept."""
    lanes: Lanes[str] = Lanes(5, [limits(IVR, reserve=1), limits(HANGUP, reserve=2)])
    assert entered(lanes, HANGUP, 20) == 4
    assert entered(lanes, IVR, 20) == 1


def test_a_reserve_is_kept_anew() -> None:
    """A call that leaves its lane's reserve leaves the place to its lane, and not to others."""
    lanes: Lanes[str] = Lanes(3, [limits(IVR), limits(HANGUP, reserve=1)])
    assert (entered(lanes, IVR, 9), entered(lanes, HANGUP, 9)) == (2, 1)
    lanes.leave(HANGUP, PEER)
    assert not lanes.enter(IVR, PEER)
    assert lanes.enter(HANGUP, PEER)


# --- waiting


def test_first_come_first_served() -> None:
    """Within a lane places go to those who wait, in the order of coming, and nobody who comes overtakes."""
    lanes: Lanes[str] = Lanes(1, [limits(IVR)])
    assert lanes.enter(IVR, PEER)
    assert lanes.wait(IVR, PEER, "a", 0.0)
    assert lanes.wait(IVR, PEER, "b", 0.0)
    assert (lanes.queued, lanes.call_in()) == (2, [])
    lanes.leave(IVR, PEER)
    assert not lanes.enter(IVR, PEER)
    assert lanes.call_in() == ["a"]
    assert (lanes.active, lanes.queued) == (1, 1)


def test_who_has_waited_longest_in_whatever_lane() -> None:
    """Among lanes that may begin it is the order of coming that counts, not the lane."""
    lanes: Lanes[str] = Lanes(3, [limits(IVR), limits(HANGUP)])
    assert entered(lanes, IVR, 3) == 3
    for lane, caller in ((HANGUP, "a"), (IVR, "b"), (HANGUP, "c"), (IVR, "d")):
        assert lanes.wait(lane, PEER, caller, 0.0)
    for _ in range(3):
        lanes.leave(IVR, PEER)
    assert lanes.call_in() == ["a", "b", "c"]


def test_a_full_lane_holds_nobody_else_up() -> None:
    """Whoever has waited longest is passed over while his lane may not begin, and keeps his turn."""
    lanes: Lanes[str] = Lanes(2, [limits(IVR, max_active=1), limits(HANGUP)])
    assert lanes.enter(IVR, PEER)
    assert lanes.enter(HANGUP, PEER)
    assert lanes.wait(IVR, PEER, "old", 0.0)
    assert lanes.wait(HANGUP, PEER, "young", 1.0)
    lanes.leave(HANGUP, PEER)
    assert lanes.call_in() == ["young"]
    lanes.leave(IVR, PEER)
    assert lanes.call_in() == ["old"]


def test_no_more_wait_than_there_is_room_for() -> None:
    """A lane's full queue takes nobody, until somebody has left it; another lane's queue is its own."""
    lanes: Lanes[str] = Lanes(1, [limits(IVR, max_queue=1), limits(HANGUP, max_queue=1)])
    assert lanes.enter(IVR, PEER)
    assert lanes.wait(IVR, PEER, "a", 0.0)
    assert not lanes.has_room(IVR, PEER)
    assert not lanes.wait(IVR, PEER, "b", 0.0)
    assert lanes.wait(HANGUP, PEER, "c", 0.0)
    lanes.forget("a")
    assert lanes.has_room(IVR, PEER)
    assert lanes.wait(IVR, PEER, "b", 0.0)


def test_a_lane_in_which_nobody_may_wait() -> None:
    """With max_queue 0 every call beyond the places is told so at once."""
    lanes: Lanes[str] = Lanes(1, [limits(IVR, max_queue=0)])
    assert lanes.enter(IVR, PEER)
    assert not lanes.wait(IVR, PEER, "a", 0.0)
    assert lanes.queued == 0


def test_nobody_waits_longer_than_his_lane_allows() -> None:
    """Those whose time is over are given up, by the time of their own lane; the others keep their turn."""
    lanes: Lanes[str] = Lanes(1, [limits(IVR, max_wait_s=5.0), limits(HANGUP, max_wait_s=60.0)])
    assert lanes.enter(IVR, PEER)
    for at_s, lane, caller in ((0.0, IVR, "a"), (0.0, HANGUP, "b"), (1.0, IVR, "c"), (2.0, IVR, "d")):
        assert lanes.wait(lane, PEER, caller, at_s)
    assert lanes.give_up(4.9) == []
    assert lanes.give_up(6.0) == ["a", "c"]
    assert lanes.give_up(6.0) == []
    lanes.leave(IVR, PEER)
    assert lanes.call_in() == ["b"]


def test_whoever_is_forgotten_is_not_called_in() -> None:
    """A caller who is gone leaves wherever he stands; who does not wait is none to be forgotten."""
    lanes: Lanes[str] = Lanes(1, [limits(IVR)])
    assert lanes.enter(IVR, PEER)
    for caller in "abc":
        assert lanes.wait(IVR, PEER, caller, 0.0)
    lanes.forget("b")
    lanes.forget("nobody")
    assert lanes.queued == 2
    lanes.leave(IVR, PEER)
    assert lanes.call_in() == ["a"]
    lanes.forget("a")
    assert (lanes.active, lanes.queued) == (1, 1)


# --- servers of Asterisk


def test_one_server_cannot_take_all() -> None:
    """The calls of one server are counted together, active and waiting, in all lanes; others still come."""
    lanes: Lanes[str] = Lanes(2, [limits(IVR), limits(HANGUP)], most_of_peer=3)
    assert entered(lanes, IVR, 2) == 2
    assert lanes.wait(HANGUP, PEER, "a", 0.0)
    assert not lanes.has_room(IVR, PEER)
    assert not lanes.wait(IVR, PEER, "b", 0.0)
    assert lanes.wait(IVR, OTHER, "c", 0.0)


def test_a_server_that_has_too_many_finds_no_place_either() -> None:
    """Beyond the limit of its server a call is refused even if there are places."""
    lanes: Lanes[str] = Lanes(9, [limits(IVR)], most_of_peer=2)
    assert entered(lanes, IVR, 9) == 2
    assert not lanes.wait(IVR, PEER, "a", 0.0)
    assert lanes.enter(IVR, OTHER)


@pytest.mark.parametrize("way", ["left", "forgotten", "given up"])
def test_calls_that_are_gone_count_no_more(way: str) -> None:
    """However a call of a server ends, another one may come in its place."""
    lanes: Lanes[str] = Lanes(1, [limits(IVR)], most_of_peer=2)
    assert lanes.enter(IVR, PEER)
    assert lanes.wait(IVR, PEER, "a", 0.0)
    assert not lanes.has_room(IVR, PEER)
    if way == "left":
        lanes.leave(IVR, PEER)
    elif way == "forgotten":
        lanes.forget("a")
    else:
        assert lanes.give_up(5.0) == ["a"]
    assert lanes.has_room(IVR, PEER)


# --- the end of the worker


def test_open_to_all() -> None:
    """A worker that drains lets all begin in the order of coming, places and limits or not."""
    lanes: Lanes[str] = Lanes(1, [limits(IVR), limits(HANGUP, max_active=1)], most_of_peer=4)
    assert lanes.enter(IVR, PEER)
    for lane, caller in ((HANGUP, "a"), (IVR, "b"), (HANGUP, "c")):
        assert lanes.wait(lane, PEER, caller, 0.0)
    lanes.open_to_all()
    assert lanes.call_in() == ["a", "b", "c"]
    assert lanes.enter(HANGUP, PEER)
    assert lanes.active == 5
    for lane in (IVR, IVR, HANGUP, HANGUP, HANGUP):
        lanes.leave(lane, PEER)
    assert (lanes.active, lanes.queued) == (0, 0)


# --- what is told


def test_facts() -> None:
    """Each lane tells its own figures, those whom it has refused included."""
    lanes: Lanes[str] = Lanes(2, [limits(IVR, max_queue=1), limits(HANGUP, reserve=1)])
    assert lanes.enter(IVR, PEER)
    assert lanes.wait(IVR, PEER, "a", 0.0)
    assert not lanes.wait(IVR, PEER, "b", 0.0)
    assert lanes.facts() == [LaneFacts(IVR, 1, 1, 1), LaneFacts(HANGUP, 0, 0, 0)]
    assert lanes.give_up(5.0) == ["a"]
    assert lanes.facts()[0] == LaneFacts(IVR, 1, 0, 2)


@pytest.mark.parametrize(
    ("max_active", "most_of_peer", "told"),
    [
        pytest.param(
            1,
            0,
            "all places of lane 'ivr' are taken (lanes.ivr.max_active: 1), and 1 calls of the lane wait "
            "(lanes.ivr.max_queue: 1)",
            id="the lane is full",
        ),
        pytest.param(
            9,
            0,
            "there is no place for lane 'ivr': 2 calls are in progress (calls_per_worker: 3; 1 are kept for "
            "other lanes), and 1 calls of the lane wait (lanes.ivr.max_queue: 1)",
            id="the worker is full",
        ),
        pytest.param(
            9,
            2,
            "192.0.2.1 has 2 calls in this worker already (limits.calls_per_server: 2)",
            id="the server has too many",
        ),
    ],
)
def test_why_not(max_active: int, most_of_peer: int, told: str) -> None:
    """Whoever finds neither place nor room is told the lane, the figure and the key that decides it."""
    ivr = limits(IVR, max_active=max_active, max_queue=1)
    lanes: Lanes[str] = Lanes(3, [ivr, limits(HANGUP, reserve=1)], most_of_peer)
    entered(lanes, IVR, 9)
    lanes.wait(IVR, PEER, "a", 0.0)
    assert not lanes.has_room(IVR, PEER)
    assert lanes.fault(IVR, PEER) == told


def test_why_it_was_in_vain() -> None:
    """Whoever has waited too long is told of what, and how long."""
    lanes: Lanes[str] = Lanes(3, [limits(IVR, max_active=1, max_wait_s=2.5)])
    assert lanes.enter(IVR, PEER)
    assert lanes.late_fault(IVR) == (
        "all places of lane 'ivr' are taken (lanes.ivr.max_active: 1), and none became free within 2.5 s "
        "(lanes.ivr.max_wait)"
    )


# --- against a model


@dataclass(frozen=True)
class Waiter:
    """Somebody who waits in the model."""

    caller: int
    lane: str
    peer: str
    until_s: float


class Model(RuleBasedStateMachine):
    """The rules as they are told in words, with one list of all who are there and one of all who wait."""

    LIMITS = (
        limits("a", max_active=4, max_queue=3, max_wait_s=5.0),
        limits("b", max_active=3, max_queue=2, max_wait_s=2.0, reserve=2),
        limits("c", max_active=2, max_queue=0, max_wait_s=1.0, reserve=1),
    )
    PLACES = 6
    MOST_OF_PEER = 5
    some_lane = st.sampled_from([lane.name for lane in LIMITS])
    some_peer = st.sampled_from([PEER, OTHER])

    def __init__(self) -> None:
        super().__init__()
        self.lanes: Lanes[int] = Lanes(self.PLACES, self.LIMITS, self.MOST_OF_PEER)
        self.by_name = {lane.name: lane for lane in self.LIMITS}
        self.inside: list[tuple[str, str]] = []
        self.waiting: list[Waiter] = []
        self.refused: Counter[str] = Counter()
        self.now_s = 0.0
        self.next_caller = 0

    def may_begin(self, name: str) -> bool:
        """The rule of the design, word for word."""
        active = Counter(lane for lane, _ in self.inside)
        kept = sum(max(0, lane.reserve - active[lane.name]) for lane in self.LIMITS if lane.name != name)
        return active[name] < self.by_name[name].max_active and len(self.inside) + kept < self.PLACES

    def too_many(self, peer: str) -> bool:
        """Whether a server has as many calls as it may."""
        there = [each for _, each in self.inside] + [each.peer for each in self.waiting]
        return there.count(peer) >= self.MOST_OF_PEER

    def settle(self) -> None:
        """Let begin who may, and compare."""
        expected = []
        while first := next((each for each in self.waiting if self.may_begin(each.lane)), None):
            self.waiting.remove(first)
            self.inside.append((first.lane, first.peer))
            expected.append(first.caller)
        assert self.lanes.call_in() == expected

    @rule(lane=some_lane, peer=some_peer)
    def come(self, lane: str, peer: str) -> None:
        """A call comes: it begins, waits or is refused."""
        somebody_waits = any(each.lane == lane for each in self.waiting)
        may_enter = self.may_begin(lane) and not somebody_waits and not self.too_many(peer)
        assert self.lanes.enter(lane, peer) == may_enter
        if may_enter:
            self.inside.append((lane, peer))
            return
        queue = [each for each in self.waiting if each.lane == lane]
        has_room = len(queue) < self.by_name[lane].max_queue and not self.too_many(peer)
        assert self.lanes.has_room(lane, peer) == has_room
        assert self.lanes.fault(lane, peer)
        self.next_caller += 1
        assert self.lanes.wait(lane, peer, self.next_caller, self.now_s) == has_room
        if has_room:
            until_s = self.now_s + self.by_name[lane].max_wait_s
            self.waiting.append(Waiter(self.next_caller, lane, peer, until_s))
        else:
            self.refused[lane] += 1

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        """A call ends; whoever may begin now does."""
        lane, peer = data.draw(st.sampled_from(self.inside))
        self.inside.remove((lane, peer))
        self.lanes.leave(lane, peer)
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def be_forgotten(self, data: st.DataObject) -> None:
        """A caller who waits goes away."""
        gone = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(gone)
        self.lanes.forget(gone.caller)

    @rule(elapsed_s=st.sampled_from([0.5, 1.0, 3.0]))
    def pass_time(self, elapsed_s: float) -> None:
        """Time passes; who has waited too long is given up."""
        self.now_s += elapsed_s
        late = [each for each in self.waiting if each.until_s <= self.now_s]
        self.waiting = [each for each in self.waiting if each not in late]
        self.refused.update(each.lane for each in late)
        assert sorted(self.lanes.give_up(self.now_s)) == sorted(each.caller for each in late)

    @invariant()
    def nobody_who_may_begin_waits(self) -> None:
        """After every step whoever could begin has begun, and no place is lost or given twice."""
        assert not any(self.may_begin(each.lane) for each in self.waiting)
        assert self.lanes.active == len(self.inside) <= self.PLACES
        assert self.lanes.queued == len(self.waiting)

    @invariant()
    def facts_are_true(self) -> None:
        """Each lane tells what the model knows of it."""
        active = Counter(lane for lane, _ in self.inside)
        queued = Counter(each.lane for each in self.waiting)
        assert self.lanes.facts() == [
            LaneFacts(lane.name, active[lane.name], queued[lane.name], self.refused[lane.name])
            for lane in self.LIMITS
        ]

    @invariant()
    def reserves_are_kept(self) -> None:
        """Whatever the others do, a lane finds a place as long as it does not use its whole reserve."""
        active = Counter(lane for lane, _ in self.inside)
        for lane in self.LIMITS:
            assert active[lane.name] <= lane.max_active
            assert active[lane.name] >= lane.reserve or self.may_begin(lane.name)


TestAgainstTheModel = Model.TestCase
TestAgainstTheModel.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
