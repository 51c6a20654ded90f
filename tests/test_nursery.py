"""fastagi_pool.nursery: which process a call gets, decided from facts alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from fastagi_pool.nursery import (
    BACKOFF_LIMIT_S,
    BACKOFF_START_S,
    CLOCK_TICK_NS,
    FAILURE_S,
    MOST_ZYGOTES,
    YOUNG_S,
    Compile,
    EndWarm,
    EndZygote,
    Failed,
    GiveWarm,
    Goods,
    HandOver,
    Nursery,
    Recipe,
    Refuse,
    Signature,
    SpawnAfresh,
    StartWarm,
    Stock,
)

RECIPE = Recipe("/agi/a.pl", "{}", 30.0)
OLD = Signature(1, 1, 100, 7)
#: When zygotes are asked for in these tests, by the clock of the files.
WALL_NS = 1_000_000_000_000
SEEN = {RECIPE.file: OLD}


def ready_zygote(nursery: Nursery, recipe: Recipe = RECIPE, now_s: float = 0.0) -> int:
    """Have a zygote compiled for nobody; return its number."""
    seen = {recipe.file: OLD}
    actions = nursery.asked(recipe, None, seen, now_s, WALL_NS)
    [number] = [action.zygote for action in actions if isinstance(action, Compile)]
    assert not any(isinstance(action, HandOver) for action in nursery.ready(number, seen, now_s))
    return number


# ---- one zygote


def test_the_first_calls_wait_for_one_compilation() -> None:
    """Calls that come while a script is compiled wait for it, in order, and none compiles it again."""
    nursery = Nursery()
    assert nursery.asked(RECIPE, 1, SEEN, 0.0, WALL_NS) == [Compile(1, RECIPE)]
    assert nursery.asked(RECIPE, 2, SEEN, 0.1, WALL_NS) == []
    assert nursery.ready(1, SEEN, 0.2) == [HandOver(1, 1), HandOver(2, 1)]


def test_a_ready_zygote_serves_at_once() -> None:
    """Once it is ready a zygote gets every call at once."""
    nursery = Nursery()
    number = ready_zygote(nursery)
    assert nursery.asked(RECIPE, 1, SEEN, 1.0, WALL_NS) == [HandOver(1, number)]


def test_different_settings_are_different_zygotes() -> None:
    """A route with other settings does not get another route's zygote."""
    nursery = Nursery()
    ready_zygote(nursery)
    other = replace(RECIPE, settings='{"user": "nobody"}')
    assert nursery.asked(other, 1, SEEN, 1.0, WALL_NS) == [Compile(2, other)]


def test_a_call_that_gave_up_is_not_served() -> None:
    """A call that has ended while it waited is not handed over."""
    nursery = Nursery()
    nursery.asked(RECIPE, 1, SEEN, 0.0, WALL_NS)
    nursery.asked(RECIPE, 2, SEEN, 0.0, WALL_NS)
    nursery.forget(1)
    assert nursery.ready(1, SEEN, 0.2) == [HandOver(2, 1)]


def test_which_files_are_looked_up() -> None:
    """Before a call all files of the ready zygote are looked up, and always the script's own."""
    nursery = Nursery()
    assert set(nursery.files(RECIPE)) == {RECIPE.file}
    nursery.asked(RECIPE, None, SEEN, 0.0, WALL_NS)
    nursery.ready(1, {**SEEN, "/lib/b.pm": OLD}, 0.1)
    assert set(nursery.files(RECIPE)) == {RECIPE.file, "/lib/b.pm"}


# ---- files that change


@pytest.mark.parametrize(
    "now",
    [
        replace(OLD, mtime_ns=2),
        replace(OLD, ctime_ns=2),
        replace(OLD, size=99),
        replace(OLD, inode=8),
        None,
    ],
)
def test_a_changed_file_needs_a_new_zygote(now: Signature | None) -> None:
    """Any sign of a change of any file retires the zygote, and the call waits for a new one."""
    nursery = Nursery()
    nursery.asked(RECIPE, None, SEEN, 0.0, WALL_NS)
    nursery.ready(1, {**SEEN, "/lib/b.pm": OLD}, 0.1)
    actions = nursery.asked(RECIPE, 5, {**SEEN, "/lib/b.pm": now}, 1.0, WALL_NS)
    assert actions == [EndZygote(1), Compile(2, RECIPE)]
    assert nursery.ready(2, SEEN, 1.1) == [HandOver(5, 2)]


def test_a_retired_zygote_lives_until_its_last_child_is_over() -> None:
    """Who runs in a stale zygote's child runs on; the zygote is ended with the last of them."""
    nursery = Nursery()
    ready_zygote(nursery)
    nursery.asked(RECIPE, 1, SEEN, 1.0, WALL_NS)
    nursery.asked(RECIPE, 2, SEEN, 1.0, WALL_NS)
    changed = {RECIPE.file: replace(OLD, mtime_ns=2)}
    assert nursery.asked(RECIPE, 3, changed, 2.0, WALL_NS) == [Compile(2, RECIPE)]
    assert nursery.child_ended(1) == []
    assert nursery.child_ended(1) == [EndZygote(1)]
    assert nursery.child_ended(1) == []


@pytest.mark.parametrize(
    ("age_ns", "trusted"), [(CLOCK_TICK_NS + 1, True), (CLOCK_TICK_NS, False), (-1, False)]
)
def test_a_file_that_changed_while_it_was_read(age_ns: int, trusted: bool) -> None:
    """A zygote that may have read half a change serves those who wait, and nobody after them."""
    nursery = Nursery()
    nursery.asked(RECIPE, 1, SEEN, 0.0, WALL_NS)
    seen = {RECIPE.file: replace(OLD, ctime_ns=WALL_NS - age_ns)}
    assert nursery.ready(1, seen, 0.1) == [HandOver(1, 1)]
    actions = nursery.asked(RECIPE, 2, seen, 1.0, WALL_NS)
    assert actions == ([HandOver(2, 1)] if trusted else [Compile(2, RECIPE)])


# ---- what does not compile


def failed(nursery: Nursery) -> None:
    """Have a compilation fail at 1 s."""
    nursery.asked(RECIPE, 1, SEEN, 0.0, WALL_NS)
    nursery.asked(RECIPE, 2, SEEN, 0.0, WALL_NS)
    actions = nursery.ended(1, "syntax error\nat line 3", 1.0)
    reason = "syntax error\nat line 3"
    assert actions == [Failed(RECIPE, reason), Refuse(1, reason), Refuse(2, reason)]


def test_all_who_wait_are_told() -> None:
    """A compiler's message goes, whole, to every call that waits, and to those that come soon after."""
    nursery = Nursery()
    failed(nursery)
    for now_s in (1.0, 1.0 + FAILURE_S - 0.001):
        assert nursery.asked(RECIPE, 3, SEEN, now_s, WALL_NS) == [Refuse(3, "syntax error\nat line 3")]
    assert nursery.asked(RECIPE, None, SEEN, 2.0, WALL_NS) == []


def test_a_failure_is_forgotten_in_time() -> None:
    """After a while it is tried again: what was mended may be another file."""
    nursery = Nursery()
    failed(nursery)
    assert nursery.asked(RECIPE, 3, SEEN, 1.0 + FAILURE_S, WALL_NS) == [Compile(2, RECIPE)]


def test_a_mended_script_is_tried_at_once() -> None:
    """A change of the script's own file, since before it was read, ends the refusals."""
    nursery = Nursery()
    failed(nursery)
    mended = {RECIPE.file: replace(OLD, mtime_ns=2)}
    assert nursery.asked(RECIPE, 3, mended, 1.1, WALL_NS) == [Compile(2, RECIPE)]


def test_a_compilation_that_takes_too_long() -> None:
    """It is killed at its time, and counts as a failure; what is ready has no time to keep."""
    nursery = Nursery()
    assert nursery.next_s() == float("inf")
    nursery.asked(RECIPE, 1, SEEN, 1.0, WALL_NS)
    assert nursery.next_s() == 31.0
    assert nursery.overdue(30.9) == []
    reason = "/agi/a.pl was not compiled within 30 s (compile_timeout)"
    assert nursery.overdue(31.0) == [EndZygote(1), Failed(RECIPE, reason), Refuse(1, reason)]
    assert nursery.ended(1, "killed", 31.1) == []
    assert nursery.ready(1, SEEN, 31.2) == []
    assert nursery.asked(RECIPE, 2, SEEN, 31.3, WALL_NS) == [Refuse(2, reason)]
    ready_zygote(nursery, replace(RECIPE, file="/agi/b.pl"))
    assert nursery.next_s() == float("inf")


def test_a_ready_zygote_that_died_is_no_failure() -> None:
    """When a ready zygote dies the next call gets a new one at once."""
    nursery = Nursery()
    ready_zygote(nursery)
    assert nursery.ended(1, "killed", 1.0) == []
    assert nursery.asked(RECIPE, 1, SEEN, 1.1, WALL_NS) == [Compile(2, RECIPE)]


# ---- how many


def test_too_many_zygotes() -> None:
    """Beyond the limit the idle zygote that was used longest ago goes."""
    nursery = Nursery()
    recipes = [replace(RECIPE, file=f"/agi/{number}.pl") for number in range(MOST_ZYGOTES + 1)]
    for now_s, recipe in enumerate(recipes[:-1]):
        ready_zygote(nursery, recipe, now_s)
    # The first is busy, the second was used just now.
    nursery.asked(recipes[0], 1, {recipes[0].file: OLD}, 100.0, WALL_NS)
    nursery.asked(recipes[1], 2, {recipes[1].file: OLD}, 101.0, WALL_NS)
    assert nursery.child_ended(2) == []
    actions = nursery.asked(recipes[-1], 3, {recipes[-1].file: OLD}, 102.0, WALL_NS)
    assert actions == [EndZygote(3), Compile(MOST_ZYGOTES + 1, recipes[-1])]


def test_busy_zygotes_are_not_too_many() -> None:
    """None that is in use goes; the one that is too many goes when it is idle."""
    nursery = Nursery()
    for number in range(MOST_ZYGOTES + 1):
        recipe = replace(RECIPE, file=f"/agi/{number}.pl")
        nursery.asked(recipe, number, {recipe.file: OLD}, number, WALL_NS)
        assert nursery.ready(number + 1, {recipe.file: OLD}, number) == [HandOver(number, number + 1)]
    assert nursery.child_ended(5) == [EndZygote(5)]
    assert nursery.child_ended(6) == []


# ---- warm processes

GOODS = Goods("/agi/w.py", "{}", ("one",), 2)


def stock() -> Stock:
    """Give an empty stock whose processes are numbered from 1."""
    return Stock(itertools.count(1))


def stocked() -> Stock:
    """Give a stock of two processes that wait."""
    made = stock()
    assert made.keep(GOODS, OLD, 0.0) == [StartWarm(1, GOODS), StartWarm(2, GOODS)]
    made.started(1)
    made.started(2)
    return made


def test_a_warm_process_is_given_away_once_and_replaced() -> None:
    """Each call gets a process of its own, in order, and another is started in its place."""
    warm = stocked()
    assert warm.keep(GOODS, OLD, 1.0) == []
    assert warm.asked(GOODS, 10, OLD, 5.0) == [GiveWarm(10, 1), StartWarm(3, GOODS)]
    assert warm.asked(GOODS, 11, OLD, 5.0) == [GiveWarm(11, 2), StartWarm(4, GOODS)]
    assert warm.asked(GOODS, 12, OLD, 5.0) == [SpawnAfresh(12)]
    warm.started(4)
    assert warm.asked(GOODS, 13, OLD, 5.0) == [GiveWarm(13, 4), StartWarm(5, GOODS)]


def test_what_is_not_kept_is_spawned() -> None:
    """A call with other arguments than those of the stock gets a process of its own, and nothing is kept."""
    warm = stocked()
    assert warm.asked(replace(GOODS, arguments=("two",)), 10, OLD, 5.0) == [SpawnAfresh(10)]


def test_a_changed_script_replaces_those_that_wait() -> None:
    """No call gets a process that has read an older script."""
    warm = stocked()
    changed = replace(OLD, inode=8)
    expected = [EndWarm(1), EndWarm(2), SpawnAfresh(10), StartWarm(3, GOODS), StartWarm(4, GOODS)]
    assert warm.asked(GOODS, 10, changed, 5.0) == expected
    assert warm.ended(1, 5.1) == []
    warm.started(3)
    assert warm.asked(GOODS, 11, changed, 6.0) == [GiveWarm(11, 3), StartWarm(5, GOODS)]


def test_one_that_ended_is_replaced() -> None:
    """A process that ends while it waits is replaced, at once if it has lived for a while."""
    warm = stocked()
    assert warm.ended(1, YOUNG_S) == [StartWarm(3, GOODS)]
    assert warm.asked(GOODS, 10, OLD, 2.0) == [GiveWarm(10, 2), StartWarm(4, GOODS)]


def test_what_cannot_live_is_started_ever_less_often() -> None:
    """Processes that end at once are replaced after pauses that double up to a limit."""
    goods = replace(GOODS, wanted=1)
    warm = stock()
    warm.keep(goods, OLD, 0.0)
    now_s, pauses = 0.0, []
    for process in range(1, 10):
        assert warm.ended(process, now_s) == []
        pauses.append(warm.next_s() - now_s)
        assert warm.due(warm.next_s() - 0.01) == []
        now_s = warm.next_s()
        assert warm.due(now_s) == [StartWarm(process + 1, goods)]
        assert warm.next_s() == float("inf")
    assert pauses[:3] == [BACKOFF_START_S, 2 * BACKOFF_START_S, 4 * BACKOFF_START_S]
    assert pauses[-1] == BACKOFF_LIMIT_S
