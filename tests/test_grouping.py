"""fastagi_pool.grouping: rounds, and what becomes of their members, in a real hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gevent
import pytest
from gevent.event import AsyncResult, Event

from fastagi_pool.grouping import MOST_IN_A_ROUND, Grouping

#: Far more than anything here takes.
WAIT_S = 5.0


class Away(Exception):
    """What concerns all members of a round alike."""


class Doubling:
    """Doubles numbers in rounds, each of which waits until it is let go.

    Attributes:
        rounds: The items of each round, in the order in which the rounds began.
        begun: Set when a round begins.
        go: What the rounds wait for; set from the start unless cleared.
        most_at_once: How many rounds were under way at the same time.
        refuses: Items that cannot be done, and what is raised for a round with one of them.
    """

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []
        self.begun = Event()
        self.go = Event()
        self.go.set()
        self.most_at_once = 0
        self.refuses: dict[int, Exception] = {}
        self._under_way = 0

    def __call__(self, items: Sequence[int]) -> list[int]:
        """Do a round."""
        self.rounds.append(list(items))
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        self.begun.set()
        try:
            assert self.go.wait(WAIT_S)
        finally:
            self._under_way -= 1
        for item in items:
            if item in self.refuses:
                raise self.refuses[item]
        return [2 * item for item in items]


@pytest.fixture
def doubling() -> Doubling:
    """Doubles numbers in rounds."""
    return Doubling()


@pytest.fixture
def grouping(doubling: Doubling) -> Grouping[int, int]:
    """Collects what shall be doubled, four at a time."""
    return Grouping(doubling, passes_on=(Away,), most=4)


def all_ask(grouping: Grouping[int, int], items: Sequence[int]) -> list[gevent.Greenlet]:
    """Begin a caller for each item, and return when each one waits for its answer."""
    callers = [gevent.spawn(grouping.ask, item) for item in items]
    gevent.sleep(0)
    return callers


def outcomes(callers: Sequence[gevent.Greenlet]) -> list[object]:
    """Wait for callers, and give what each got or met."""
    gevent.joinall(callers, timeout=WAIT_S)
    assert all(caller.dead for caller in callers)
    return [caller.value if caller.successful() else caller.exception for caller in callers]


@pytest.fixture
def first_round_waits(doubling: Doubling, grouping: Grouping[int, int]) -> gevent.Greenlet:
    """A caller whose round, with the item 100 alone, is under way."""
    doubling.go.clear()
    (caller,) = all_ask(grouping, [100])
    assert doubling.begun.wait(WAIT_S)
    return caller


# ---- rounds


def test_one_alone_waits_for_nobody(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """A caller who is alone has a round of his own, at once."""
    assert grouping.ask(7) == 14
    assert doubling.rounds == [[7]]


def test_who_asks_at_the_same_moment_shares_a_round(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """What several callers want before the round begins is one round, and each gets what is his."""
    assert outcomes(all_ask(grouping, [3, 1, 2])) == [6, 2, 4]
    assert doubling.rounds == [[3, 1, 2]]


@pytest.mark.usefixtures("first_round_waits")
def test_who_comes_during_a_round_is_in_the_next(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """Those who come while a round is under way are together in the next one, in their order."""
    callers = all_ask(grouping, [5, 3, 4])
    assert doubling.rounds == [[100]]
    doubling.go.set()
    assert outcomes(callers) == [10, 6, 8]
    assert doubling.rounds == [[100], [5, 3, 4]]


@pytest.mark.usefixtures("first_round_waits")
def test_a_round_has_only_so_many_members(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """What does not fit into a round is in the one after it, and none of it is lost or done twice."""
    callers = all_ask(grouping, range(9))
    doubling.go.set()
    assert outcomes(callers) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert doubling.rounds == [[100], [0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_never_two_rounds_at_once(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """However callers come and go, one round is under way at a time, and each gets his own answer."""
    wrong: list[int] = []

    def caller(number: int) -> None:
        for turn in range(20):
            item = 1_000 * number + turn
            if grouping.ask(item) != 2 * item:
                wrong.append(item)
            for _ in range((number + turn) % 3):
                gevent.sleep(0)

    def hold_up() -> None:
        for _ in range(200):
            doubling.go.clear()
            gevent.sleep(0)
            doubling.go.set()
            gevent.sleep(0)

    holding_up = gevent.spawn(hold_up)
    assert outcomes([gevent.spawn(caller, number) for number in range(30)]) == [None] * 30
    holding_up.join()
    assert wrong == []
    assert doubling.most_at_once == 1
    assert sorted(item for items in doubling.rounds for item in items) == sorted(
        1_000 * number + turn for number in range(30) for turn in range(20)
    )
    assert any(len(items) == 4 for items in doubling.rounds)


def test_after_the_last_round_a_new_one_begins(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """A grouping that had nothing to do for a while serves the next caller."""
    for item in range(3):
        assert grouping.ask(item) == 2 * item
        gevent.sleep(0)
    assert doubling.rounds == [[0], [1], [2]]


def test_who_submits_can_wait_later(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """What was submitted is done while its caller does something else, and the answer is kept for him."""
    ticket = grouping.submit(7)
    gevent.sleep(0)
    assert doubling.rounds == [[7]]
    assert ticket.get(timeout=WAIT_S) == 14
    assert ticket.get(timeout=WAIT_S) == 14


def test_a_round_is_bounded_without_a_word(doubling: Doubling) -> None:
    """The default bound holds, so that no burst makes a packet without end."""
    grouping = Grouping(doubling)
    outcomes(all_ask(grouping, range(MOST_IN_A_ROUND + 1)))
    assert [len(items) for items in doubling.rounds] == [MOST_IN_A_ROUND, 1]


# ---- what cannot be done


def test_a_bad_item_fails_alone(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """After a failed round each member is tried by itself: the bad one gets its error, the others answers."""
    bad = ValueError("too long")
    doubling.refuses = {2: bad}
    assert outcomes(all_ask(grouping, [1, 2, 3])) == [2, bad, 6]
    assert doubling.rounds == [[1, 2, 3], [1], [2], [3]]


def test_one_alone_is_tried_once(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """A round of one that failed is not done again."""
    bad = ValueError("too long")
    doubling.refuses = {2: bad}
    assert outcomes(all_ask(grouping, [2])) == [bad]
    assert doubling.rounds == [[2]]


def test_what_concerns_all_reaches_all_at_once(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """An error that is passed on is everybody's, and nobody is tried alone."""
    away = Away()
    doubling.refuses = {2: away}
    assert outcomes(all_ask(grouping, [1, 2, 3])) == [away] * 3
    assert doubling.rounds == [[1, 2, 3]]


def test_what_concerns_all_while_one_is_tried_is_his_alone(
    doubling: Doubling, grouping: Grouping[int, int]
) -> None:
    """Members that are tried by themselves meet what there is to meet, each by himself."""
    bad, away = ValueError("too long"), Away()
    doubling.refuses = {1: bad, 3: away}
    assert outcomes(all_ask(grouping, [1, 2, 3])) == [bad, 4, away]


@pytest.mark.usefixtures("first_round_waits")
def test_a_failed_round_holds_up_nobody(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """Who came after a failed round is served, in this turn and in later ones."""
    doubling.refuses = {100: ValueError("too long")}
    callers = all_ask(grouping, [1])
    doubling.go.set()
    assert outcomes(callers) == [2]
    assert grouping.ask(3) == 6


@pytest.mark.parametrize("answers", [[], [1, 2, 3]], ids=["too few", "too many"])
def test_answers_that_fit_nobody_are_an_error_for_each(answers: list[int]) -> None:
    """A round with a wrong number of answers leaves no caller waiting and gives nobody another's answer."""
    grouping: Grouping[int, int] = Grouping(lambda items: answers)
    assert [type(outcome) for outcome in outcomes(all_ask(grouping, [1, 2]))] == [ValueError] * 2


# ---- callers who are ended


def kill_in_the_next_round(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """End a caller whose item is in the round that comes next."""
    callers = all_ask(grouping, [1, 2, 3])
    callers[1].kill()
    doubling.go.set()
    assert outcomes([callers[0], callers[2]]) == [2, 6]


def kill_in_the_round_under_way(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """End a caller while the round with his item is under way."""
    callers = all_ask(grouping, [1, 2, 3])
    doubling.begun.clear()
    doubling.go.set()
    assert doubling.begun.wait(WAIT_S)
    doubling.go.clear()
    callers[1].kill()
    doubling.go.set()
    assert outcomes([callers[0], callers[2]]) == [2, 6]


@pytest.mark.parametrize("kill", [kill_in_the_next_round, kill_in_the_round_under_way])
@pytest.mark.usefixtures("first_round_waits")
def test_a_killed_caller_takes_nothing_along(
    doubling: Doubling, grouping: Grouping[int, int], kill: Callable[[Doubling, Grouping[int, int]], None]
) -> None:
    """Who is ended while he waits takes nothing from the others, and what he asked for is still done."""
    kill(doubling, grouping)
    assert doubling.rounds == [[100], [1, 2, 3]]


def test_the_caller_who_began_the_rounds_does_not_end_them(
    doubling: Doubling, grouping: Grouping[int, int], first_round_waits: gevent.Greenlet
) -> None:
    """The first caller's death stops neither his round nor the next."""
    callers = all_ask(grouping, [1])
    first_round_waits.kill()
    doubling.go.set()
    assert outcomes(callers) == [2]
    assert doubling.rounds == [[100], [1]]


def test_a_time_out_of_a_caller_is_his_alone(
    doubling: Doubling, grouping: Grouping[int, int], first_round_waits: gevent.Greenlet
) -> None:
    """Who stops waiting gets his time-out, while the others wait for their answers."""
    impatient: AsyncResult[int] = grouping.submit(1)
    patient = grouping.submit(2)
    with pytest.raises(gevent.Timeout):
        impatient.get(timeout=0)
    doubling.go.set()
    assert patient.get(timeout=WAIT_S) == 4
    assert outcomes([first_round_waits]) == [200]


# ---- what is left


def test_nothing_is_kept_of_those_who_were_served(doubling: Doubling, grouping: Grouping[int, int]) -> None:
    """After all rounds neither an item nor a greenlet is left of them, failed ones included."""
    doubling.refuses = {5: ValueError("too long"), 60: Away()}
    outcomes(all_ask(grouping, range(100)))
    gevent.sleep(0)
    assert vars(grouping)["_waiting"] == []
    assert not vars(grouping)["_under_way"]
