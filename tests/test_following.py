"""fastagi_pool.following: what is told of a reload, an upgrade and a stop, from sight to sight."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastagi_pool.following import (
    Following,
    ReloadFollowing,
    Sight,
    Step,
    StopFollowing,
    UpgradeFollowing,
)
from fastagi_pool.scoreboard import SlotFacts, Supervision, WorkerState

READY, DRAINING, STARTING = WorkerState.READY, WorkerState.DRAINING, WorkerState.STARTING


def worker(slot: int, generation: int, state: WorkerState = READY, active: int = 0) -> SlotFacts:
    """Write what a worker says."""
    return SlotFacts(slot, 5000 + slot, generation, state, 0.0, 0.0, active, 0, 0, 0)


#: Two workers of generation 1 serve, and nothing else goes on.
BEFORE = Sight(1, Supervision(workers_wanted=2, reloads=3, refused=1), (worker(0, 1), worker(1, 1)))


def sight(*workers: SlotFacts, generation: int = 2, **supervision: object) -> Sight:
    """Write what the board says after a reload was decided, unless something else is said."""
    told = {"reloads": 4, **supervision}
    return Sight(generation, replace(BEFORE.supervision, **told), workers)  # type: ignore[arg-type]


def steps(following: Following, *sights: Sight | None) -> list[Step]:
    """Follow through these sights, a fifth of a second from one to the next."""
    return [following.step(each, lives=True, now_s=number / 5) for number, each in enumerate(sights)]


def test_a_reload_from_its_beginning_to_its_end() -> None:
    """It is told what is loading, how many workers are renewed, and how many calls are left."""
    following = ReloadFollowing(BEFORE)
    loading = replace(BEFORE, supervision=replace(BEFORE.supervision, loading=True))
    half = sight(worker(0, 1, DRAINING, 131), worker(1, 1, READY, 7), worker(2, 2))
    whole = sight(worker(0, 1, DRAINING, 131), worker(1, 1, DRAINING, 1), worker(2, 2), worker(3, 2))
    assert steps(following, BEFORE, loading, half, whole) == [
        Step("a new generation is loading"),
        Step("a new generation is loading"),
        Step("1 of 2 workers renewed, 138 calls left in 2 workers of older generations"),
        Step(
            "generation 2 serves with 2 workers, 132 calls left in 2 workers of older generations",
            done=True,
            ok=True,
        ),
    ]


def test_a_reload_that_is_refused() -> None:
    """The reason of the refusal is the last word."""
    refused = sight(worker(0, 1), generation=1, refused=2, error="pool.yaml:3: workers: must be a number")
    assert steps(ReloadFollowing(BEFORE), BEFORE, refused)[-1] == Step(
        "pool.yaml:3: workers: must be a number", done=True
    )


def test_decided_but_not_in_charge_yet() -> None:
    """That a reload was accepted is no end as long as the generation in charge is the old one."""
    told = steps(ReloadFollowing(BEFORE), sight(*BEFORE.workers, generation=1))
    assert told == [Step("the new generation takes over")]


def test_an_old_refusal_is_not_taken_for_this_one() -> None:
    """What was refused before this reload was asked for says nothing about it."""
    before = replace(BEFORE, supervision=replace(BEFORE.supervision, error="an old one"))
    assert not steps(ReloadFollowing(before), before)[0].done


def test_asked_for_while_another_is_loading() -> None:
    """A load that has begun before has read the old files: what it comes to is not the answer."""
    before = replace(BEFORE, supervision=replace(BEFORE.supervision, loading=True))
    other_refused = sight(worker(0, 1), generation=1, loading=True, error="the other one's")
    mine = sight(worker(2, 2), generation=2, reloads=5)
    told = steps(ReloadFollowing(before), other_refused, mine)
    assert [step.done for step in told] == [False, True]
    assert told[1].ok


def test_asked_for_while_another_is_loading_and_joined_with_it() -> None:
    """If no further load follows for two seconds, there is none to be waited for."""
    before = replace(BEFORE, supervision=replace(BEFORE.supervision, loading=True))
    decided = sight(worker(2, 2), worker(3, 2))
    told = steps(ReloadFollowing(before), *[decided] * 11)
    assert [step.done for step in told] == [False] * 10 + [True]


def test_a_later_refusal_does_not_spoil_this_reload() -> None:
    """While the workers of an accepted generation roll, somebody else's reload may be refused."""
    rolling = sight(worker(0, 1), worker(2, 2))
    later = sight(worker(0, 1), worker(2, 2), reloads=5, error="the later one's")
    assert steps(ReloadFollowing(BEFORE), rolling, later)[-1] == Step("1 of 2 workers renewed")


def test_no_new_worker_serves_yet() -> None:
    """Old workers that drain are no success while no new one serves."""
    told = steps(ReloadFollowing(BEFORE), sight(worker(0, 1, DRAINING, 2), worker(2, 2, STARTING)))
    assert told == [Step("0 of 2 workers renewed, 2 calls left in 1 worker of older generations")]


@pytest.mark.parametrize("following", [ReloadFollowing(BEFORE), UpgradeFollowing(BEFORE)])
def test_the_master_ends_meanwhile(following: Following) -> None:
    """Nobody waits for a master that is gone, and it is no success."""
    step = following.step(BEFORE, lives=False, now_s=0.0)
    assert (step.done, step.ok) == (True, False)
    assert "master has ended" in step.text


@pytest.mark.parametrize("following", [ReloadFollowing(BEFORE), UpgradeFollowing(BEFORE)])
def test_the_pool_stops_meanwhile(following: Following) -> None:
    """A pool that stops carries out nothing any more, and says so."""
    (step,) = steps(following, sight(stopping=True))
    assert step == Step("the pool is stopping", done=True)


def test_an_upgrade_from_its_beginning_to_its_end() -> None:
    """It is told that the program is tried, that it is in charge, and how many workers are renewed."""
    taken = sight(*BEFORE.workers, generation=1, reloads=3, upgrades=1)
    rolling = sight(worker(0, 1), worker(2, 2), upgrades=1)
    whole = sight(worker(2, 2), worker(3, 2), upgrades=1)
    assert steps(UpgradeFollowing(BEFORE), BEFORE, None, taken, rolling, whole) == [
        Step("the newly installed program is being tried"),
        Step("the newly installed program is being tried"),
        Step("the new program is in charge, and loads its generation"),
        Step("1 of 2 workers renewed"),
        Step("generation 2 serves with 2 workers", done=True, ok=True),
    ]


def test_an_upgrade_that_is_refused() -> None:
    """The reason why the new program cannot take over is the last word."""
    refused = sight(*BEFORE.workers, generation=1, reloads=3, upgrades=1, error="it does not start")
    assert steps(UpgradeFollowing(BEFORE), refused) == [Step("it does not start", done=True)]


def test_a_stop() -> None:
    """The calls left are counted until the master is gone, which is the success."""
    following = StopFollowing()
    busy = sight(worker(0, 1, DRAINING, 1), worker(1, 1, DRAINING, 0), stopping=True)
    assert [step.text for step in steps(following, busy, sight(worker(1, 1, DRAINING)), None)] == [
        "stopping, 1 call left in 1 worker",
        "stopping, no calls left",
        "stopping",
    ]
    assert following.step(None, lives=False, now_s=1.0) == Step("the pool has stopped", done=True, ok=True)
