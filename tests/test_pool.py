"""fastagi_pool.pool: facts and simulated time in, actions out. No process, no waiting.

:class:`World` plays the master, its loaders and the workers, and checks after every turn what must hold at
any time. The state machine at the end lets everything happen in any order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

import hypothesis
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastagi_pool.pool import (
    BACKOFF_LIMIT_S,
    BACKOFF_START_S,
    DUMP_TIME_S,
    LAST_WORDS_S,
    YOUNG_S,
    Abandon,
    Action,
    Confirm,
    DropLoader,
    Exit,
    ExitCode,
    Level,
    Load,
    Note,
    Order,
    Phase,
    Pool,
    PoolLimits,
    Spawn,
    Stopping,
    Tell,
    WorkerHandle,
)
from fastagi_pool.scoreboard import RESTART_REASONS, SlotFacts, WorkerState

#: How often the master looks, as it does when nothing wakes it.
TICK_S = 0.25
START_S = 1_000.0
#: How far ahead a healthy worker promises its next sign of life.
PROMISE_S = 2.0

TWO = PoolLimits(
    workers=2,
    boot_timeout_s=10.0,
    boot_retries=4,
    graceful_timeout_s=5.0,
    drain_timeout_s=20.0,
    watchdog_s=PROMISE_S,
)

AnAction = TypeVar("AnAction", bound=Action)


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a new process: None is never."""

    ready_after_s: float | None = 0.5
    crashes_after_s: float | None = None


HEALTHY = Fate()
STILLBORN = Fate(ready_after_s=None, crashes_after_s=0.25)
SLEEPER = Fate(ready_after_s=None)


@dataclass(slots=True)
class Process:
    """A worker as it is, whatever the pool thinks of it."""

    slot: int
    pid: int
    generation: int
    call_limit: int
    born_s: float
    fate: Fate
    state: WorkerState = WorkerState.STARTING
    served: int = 0
    active: int = 0
    rss_bytes: int = 0
    deadline_s: float = 0.0
    stuck: bool = False
    deaf: bool = False
    known: bool = True
    orders: list[Order] = field(default_factory=list)

    def facts(self) -> SlotFacts:
        """Say what the scoreboard would."""
        return SlotFacts(
            slot=self.slot,
            pid=self.pid,
            generation=self.generation,
            state=self.state,
            started_s=self.born_s,
            deadline_s=self.deadline_s,
            active=self.active,
            served=self.served,
            failed=0,
            rss_bytes=self.rss_bytes,
        )


class World:
    """Everything around a pool, in simulated time.

    Attributes:
        pool: The one under test.
        now_s: The time.
        limits: What the next load brings.
        fate: What becomes of the process of each spawn.
        loader_answers: Whether the loaders fork what they are asked to.
        processes: Those that live, by pid.
        seen: All actions and when they came.
    """

    def __init__(self, limits: PoolLimits = TWO, random: Callable[[], float] = lambda: 0.0) -> None:
        self.pool = Pool(limits, random)
        self._random = random
        self.now_s = START_S
        self.limits = limits
        self.fate: Callable[[Spawn], Fate] = lambda spawn: HEALTHY
        self.loader_answers = True
        self.processes: dict[int, Process] = {}
        self.seen: list[tuple[float, Action]] = []
        self._loaders = {1}
        self._newest = 1
        self._asked: list[Spawn] = []
        self._pids = iter(range(100, 1_000_000))

    # --- time

    def turn(self) -> list[Action]:
        """Let the master turn once at this moment."""
        for process in list(self.processes.values()):
            self._live(process)
        self._observe()
        if self.loader_answers:
            self._fork()
        return self.decide()

    def decide(self) -> list[Action]:
        """Let the pool decide, and carry it out."""
        actions = self.pool.decide(self.now_s)
        spawned = {action.generation for action in actions if isinstance(action, Spawn)}
        assert spawned <= {self.pool.generation}, "new workers are of the generation in charge"
        for action in actions:
            self.seen.append((self.now_s, action))
            self._carry_out(action)
        self._check(actions)
        return actions

    def run(self, seconds: float, step_s: float = TICK_S) -> None:
        """Let time go by, and the master turn all the while."""
        for _ in range(round(seconds / step_s)):
            self.now_s += step_s
            self.turn()

    def run_until(self, happened: Callable[[], bool], limit_s: float = 120.0) -> None:
        """Let time go by until something has happened, which must be before the limit."""
        end_s = self.now_s + limit_s
        while not happened():
            assert self.now_s < end_s, f"did not happen within {limit_s} s"
            self.run(TICK_S)

    # --- what can happen

    def reload(self, limits: PoolLimits | None = None) -> int:
        """Load anew; return the generation."""
        self._newest += 1
        self._loaders.add(self._newest)
        self.limits = limits or self.limits
        self.pool.loaded(self._newest, self.limits)
        return self._newest

    def upgrade(self) -> None:
        """Let another program go on, which knows only what travels as text."""
        assert self.pool.is_settled
        self.pool = Pool.restored(json.loads(json.dumps(self.pool.state())), self._random)

    def lose_loader(self, generation: int) -> None:
        """End a loader, and what it was asked for; the pool hears of it unless it was dismissed before."""
        self._asked = [spawn for spawn in self._asked if spawn.generation != generation]
        if generation in self._loaders:
            self._loaders.discard(generation)
            self.pool.loader_lost(generation, self.now_s)

    def forget_asked(self) -> None:
        """Let nobody ever answer what was asked for."""
        self._asked.clear()

    def refuse_to_fork(self, reason: str = "out of memory") -> None:
        """Answer everything that was asked for with a failure."""
        asked, self._asked = self._asked, []
        for spawn in asked:
            self.pool.spawn_failed(spawn.slot, reason, self.now_s)

    def end(self, process: Process, how: str = "exit code 0", clean: bool = True) -> None:
        """End a process and reap it."""
        self.pool.observe([process.facts()], self.now_s)
        del self.processes[process.pid]
        assert self.pool.exited(process.pid, how, clean, self.now_s)

    def crash(self, process: Process) -> None:
        """Kill a process from outside."""
        self.end(process, "signal 11", clean=False)

    def finish_calls(self, process: Process) -> None:
        """Let all calls of a worker end."""
        process.served += process.active
        process.active = 0

    # --- what is to be seen

    def actions(self, kind: type[AnAction]) -> list[AnAction]:
        """All actions of one kind so far."""
        return [action for _, action in self.seen if isinstance(action, kind)]

    def times_s(self, kind: type[Action]) -> list[float]:
        """When actions of one kind came, since the start."""
        return [at_s - START_S for at_s, action in self.seen if isinstance(action, kind)]

    def notes(self, level: Level) -> list[str]:
        """What the log holds of one level."""
        return [note.text for note in self.actions(Note) if note.level is level]

    def serving(self, generation: int | None = None) -> list[Process]:
        """Workers that accept calls, of one generation or of all."""
        return [
            each
            for each in self.processes.values()
            if each.state is WorkerState.READY and generation in (None, each.generation)
        ]

    def told(self, order: Order) -> list[tuple[float, int]]:
        """When an order was given, since the start, and to which slot."""
        return [
            (at_s - START_S, action.slot)
            for at_s, action in self.seen
            if isinstance(action, Tell) and action.order is order
        ]

    # --- how it is done

    def _observe(self) -> None:
        self.pool.observe([each.facts() for each in self.processes.values()], self.now_s)
        for process in self.processes.values():
            process.known = True

    def _live(self, process: Process) -> None:
        age_s = self.now_s - process.born_s
        fate = process.fate
        if fate.crashes_after_s is not None and age_s >= fate.crashes_after_s:
            self.crash(process)
            return
        if process.state is WorkerState.STARTING and fate.ready_after_s is not None:
            process.state = WorkerState.READY if age_s >= fate.ready_after_s else process.state
        if process.state is not WorkerState.STARTING and not process.stuck:
            process.deadline_s = self.now_s + PROMISE_S
        if process.state is WorkerState.DRAINING and not process.active and not process.deaf:
            self.end(process)

    def _fork(self) -> None:
        asked, self._asked = self._asked, []
        for spawn in asked:
            pid = next(self._pids)
            process = Process(
                spawn.slot, pid, spawn.generation, spawn.call_limit, self.now_s, self.fate(spawn)
            )
            self.processes[pid] = process
            # A loader that was dismissed meanwhile forks, but has nobody to tell.
            process.known = spawn.generation in self._loaders
            if process.known:
                self.pool.spawned(spawn.slot, pid, self.now_s)

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, Spawn):
            self._spawn(action)
        elif isinstance(action, Tell):
            self._tell(action)
        elif isinstance(action, Confirm):
            self._loaders = {each for each in self._loaders if each >= action.generation}
        elif isinstance(action, Abandon):
            self._loaders.discard(action.generation)
        elif isinstance(action, DropLoader):
            self.lose_loader(action.generation)

    def _spawn(self, spawn: Spawn) -> None:
        taken = {*(each.slot for each in self.processes.values()), *(each.slot for each in self._asked)}
        assert spawn.slot not in taken, "a slot belongs to one worker"
        if spawn.generation in self._loaders:
            self._asked.append(spawn)
        else:
            self.pool.spawn_failed(spawn.slot, "there is no loader", self.now_s)

    def _tell(self, tell: Tell) -> None:
        assert tell.pid > 0, "pid 0 is a whole process group"
        process = self.processes[tell.pid]
        assert process.slot == tell.slot
        process.orders.append(tell.order)
        if tell.order is Order.KILL:
            self.end(process, "signal 9", clean=False)
        elif process.stuck or process.deaf:
            return
        elif tell.order is Order.DRAIN:
            process.state = WorkerState.DRAINING
        elif tell.order is Order.STOP:
            process.active = 0

    def _check(self, actions: list[Action]) -> None:
        """Hold the pool to its laws."""
        pool = self.pool
        if pool.stopping is Stopping.NO and any(
            isinstance(each, Tell) and each.order is Order.DRAIN for each in actions
        ):
            assert len(pool.serving) >= pool.target, "only what is too much is drained"
        assert pending(pool) <= pool.limits.max_unavailable, "too many are being replaced at once"
        confirmed = [confirm.generation for confirm in self.actions(Confirm)]
        assert len(confirmed) == len(set(confirmed)), "a generation is confirmed once"
        for slot, handle in pool.handles.items():
            assert handle.slot == slot
            assert (handle.pid == 0) is (handle.phase is Phase.SPAWNING)
        pids = [handle.pid for handle in pool.handles.values() if handle.pid]
        known = [process.pid for process in self.processes.values() if process.known]
        assert sorted(pids) == sorted(known), "every process has its handle, every handle its process"


def pending(pool: Pool) -> int:
    """Count workers that serve and are being replaced by one that does not serve yet."""
    coming = (Phase.SPAWNING, Phase.STARTING)
    replaced = {handle.replaces for handle in pool.handles.values() if handle.phase in coming}
    return sum(handle.slot in replaced for handle in pool.serving)


def booted(limits: PoolLimits = TWO, random: Callable[[], float] = lambda: 0.0) -> World:
    """A world in which all workers serve, and the boot is forgotten."""
    world = World(limits, random)
    world.turn()
    world.run_until(lambda: len(world.pool.serving) == limits.workers)
    world.run(YOUNG_S + 1)
    world.seen.clear()
    return world


def a_worker(world: World) -> Process:
    """The oldest worker that serves."""
    return min(world.serving(), key=lambda each: (each.born_s, each.slot))


# ---- boot


def test_the_first_decision_asks_for_all_workers() -> None:
    """A new pool asks for as many workers as configured, in slots of their own."""
    world = World(replace(TWO, workers=3))
    assert world.decide() == [Spawn(0, 1, 0, True), Spawn(1, 1, 0, True), Spawn(2, 1, 0, True)]


def test_deciding_twice_changes_nothing() -> None:
    """Decisions follow facts: asked again without a new fact, the pool wants nothing more."""
    world = World()
    world.turn()
    assert world.decide() == []


def test_a_worker_serves_when_it_says_so() -> None:
    """A worker counts as serving from its READY on, not from its fork."""
    world = World()
    world.fate = lambda spawn: Fate(ready_after_s=2.0)
    world.turn()
    world.run(1.0)
    assert [handle.phase for handle in world.pool.handles.values()] == [Phase.STARTING, Phase.STARTING]
    world.run(2.0)
    assert [handle.phase for handle in world.pool.handles.values()] == [Phase.SERVING, Phase.SERVING]


def test_the_first_generation_is_confirmed_once() -> None:
    """The first worker that serves confirms its generation; the others of it do not again."""
    world = World()
    world.turn()
    world.run(5.0)
    assert world.actions(Confirm) == [Confirm(1)]


def test_a_handle_names_its_worker_as_the_log_does() -> None:
    """The log finds a worker by the words worker, gen and pid."""
    assert str(WorkerHandle(3, 2, Phase.SERVING, 0.0, 0.0, pid=42)) == "worker=3 gen=2 pid=42"


# ---- replacing


@pytest.mark.parametrize(
    ("max_calls", "random", "expected"),
    [(1000, 0.0, 1000), (1000, 0.5, 1050), (1000, 1.0, 1100), (1, 0.0, 1), (0, 1.0, 0)],
)
def test_call_limits_are_spread(max_calls: int, random: float, expected: int) -> None:
    """A worker's limit of calls is the configured one or up to the jitter more, and 0 stays no limit."""
    world = World(replace(TWO, workers=1, max_calls=max_calls), lambda: random)
    assert world.decide() == [Spawn(0, 1, expected, True)]


@pytest.mark.parametrize(
    ("limits", "served", "rss_bytes", "wait_s", "reason"),
    [
        (replace(TWO, max_calls=100), 100, 0, 0.0, "100 calls"),
        (replace(TWO, max_memory_bytes=64 << 20), 0, 65 << 20, 0.0, "65 MB of memory"),
        (replace(TWO, max_lifetime_s=600.0), 0, 0, 600.0, " s old"),
    ],
    ids=["calls", "memory", "lifetime"],
)
def test_a_worker_that_is_due_is_replaced(
    limits: PoolLimits, served: int, rss_bytes: int, wait_s: float, reason: str
) -> None:
    """Calls, memory and age each make a worker due, the log says which, and another takes its place."""
    world = booted(limits)
    old = a_worker(world)
    old.served, old.rss_bytes = served, rss_bytes
    world.run(wait_s + 5.0, step_s=1.0 if wait_s else TICK_S)
    assert old.pid not in world.processes
    assert len(world.serving()) == 2
    assert any(text.endswith(reason) and f"pid={old.pid} " in text for text in world.notes(Level.INFO))


@pytest.mark.parametrize(
    ("served", "rss_bytes"), [(99, 0), (0, 64 << 20)], ids=["one call less", "memory at the limit"]
)
def test_a_worker_at_its_limits_stays(served: int, rss_bytes: int) -> None:
    """Nobody is replaced before a limit is really reached."""
    world = booted(replace(TWO, max_calls=100, max_memory_bytes=64 << 20))
    for process in world.serving():
        process.served, process.rss_bytes = served, rss_bytes
    world.run(5.0)
    assert world.actions(Spawn) == []


def test_a_replacement_serves_before_the_old_one_drains() -> None:
    """The old worker is told to drain only when the new one serves, so no caller finds one less."""
    world = booted(replace(TWO, max_calls=100))
    old = a_worker(world)
    old.served = 100
    world.fate = lambda spawn: Fate(ready_after_s=3.0)
    world.run(2.0)
    assert len(world.actions(Spawn)) == 1
    assert world.told(Order.DRAIN) == []
    world.run(3.0)
    assert [slot for _, slot in world.told(Order.DRAIN)] == [old.slot]
    assert len(world.serving()) == 2


def test_the_old_worker_finishes_its_calls() -> None:
    """A worker that drains is left alone as long as its calls and its time last."""
    world = booted(replace(TWO, max_calls=100))
    old = a_worker(world)
    old.served, old.active = 100, 3
    world.run(10.0)
    assert old.orders == [Order.DRAIN]
    world.finish_calls(old)
    world.run(0.5)
    assert old.pid not in world.processes
    assert f"worker={old.slot} gen=1 pid={old.pid} ended after 103 calls" in world.notes(Level.INFO)
    assert world.notes(Level.ERROR) == []


@pytest.mark.parametrize("max_unavailable", [1, 2, 3])
def test_never_more_than_max_unavailable_at_once(max_unavailable: int) -> None:
    """All due at once are replaced in groups of max_unavailable."""
    world = booted(replace(TWO, workers=5, max_calls=10, max_unavailable=max_unavailable))
    for process in world.serving():
        process.served = 10
    most = 0
    for _ in range(40):
        world.run(TICK_S)
        most = max(most, pending(world.pool))
    assert most == max_unavailable
    assert len(world.actions(Spawn)) == 5


def test_the_oldest_is_replaced_first() -> None:
    """Of several that are due the oldest goes first."""
    world = booted(replace(TWO, workers=3, max_calls=10))
    world.crash(a_worker(world))
    world.run(YOUNG_S + 1)
    for process in world.serving():
        process.served = 10
    youngest = max(world.serving(), key=lambda each: each.born_s)
    world.run(10.0)
    assert [slot for _, slot in world.told(Order.DRAIN)][-1] == youngest.slot


def crowded_world() -> World:
    """A world with as many draining workers as may be, and one more that is due."""
    world = booted(replace(TWO, max_calls=10, max_draining=1))
    first = a_worker(world)
    first.served, first.active = 10, 1
    world.run(2.0)
    assert first.state is WorkerState.DRAINING
    second = a_worker(world)
    second.served = 10
    world.run(2.0)
    assert second.state is WorkerState.READY
    return world


def test_max_draining_holds_recycling_back() -> None:
    """While enough old workers still drain, no other is recycled; then it is."""
    world = crowded_world()
    world.finish_calls(next(each for each in world.processes.values() if each.active))
    world.run(2.0)
    assert len(world.told(Order.DRAIN)) == 2


def test_max_draining_does_not_hold_a_reload_back() -> None:
    """A reload does not wait for the long calls of workers that were recycled before it."""
    world = crowded_world()
    generation = world.reload()
    world.run(5.0)
    assert len(world.serving(generation)) == 2


def test_a_worker_in_a_used_slot_is_replaced_too() -> None:
    """Who sits in the slot of a worker that was replaced before is recycled as everybody else."""
    world = booted(replace(TWO, max_memory_bytes=64 << 20))
    first, second = sorted(world.serving(), key=lambda each: each.slot)
    first.rss_bytes = 65 << 20
    world.run(2.0)
    world.crash(second)
    world.run(YOUNG_S + 1)
    newcomer = next(each for each in world.serving() if each.slot == first.slot)
    newcomer.rss_bytes = 65 << 20
    world.run(2.0)
    assert newcomer.pid not in world.processes


def test_a_due_worker_whose_replacement_fills_a_gap_is_replaced_later() -> None:
    """If the replacement is needed for another that crashed just now, the due worker gets another."""
    world = booted(replace(TWO, max_memory_bytes=64 << 20))
    old, other = world.serving()
    old.rss_bytes = 65 << 20
    world.run_until(lambda: pending(world.pool) == 1)
    replacement = next(each for each in world.pool.handles.values() if each.replaces == old.slot)
    world.run_until(lambda: replacement.phase is Phase.STARTING)
    world.now_s += 1.0
    world.crash(other)
    world.turn()
    world.run(5.0)
    assert old.pid not in world.processes
    assert len(world.serving()) == 2


def test_a_replacement_outlives_the_one_it_replaces() -> None:
    """If the old worker crashes before its replacement serves, that simply takes its place."""
    world = booted(replace(TWO, max_calls=10))
    world.fate = lambda spawn: Fate(ready_after_s=2.0)
    old = a_worker(world)
    old.served = 10
    world.run(1.0)
    world.crash(old)
    world.run(YOUNG_S + 5)
    assert len(world.actions(Spawn)) == 1
    assert len(world.serving()) == 2


def test_a_slot_taken_over_during_a_replacement_confuses_nobody() -> None:
    """A replacement whose old worker crashed does not claim whoever takes the free slot."""
    world = booted(replace(TWO, max_calls=10))
    old, other = sorted(world.serving(), key=lambda each: each.slot)
    world.fate = lambda spawn: Fate(ready_after_s=3.0)
    old.served = 10
    world.run(1.0)
    world.crash(old)
    world.turn()
    world.fate = lambda spawn: HEALTHY
    world.crash(other)
    world.run(YOUNG_S + 5)
    assert len(world.actions(Spawn)) == 2
    assert world.told(Order.DRAIN) == []


# ---- resizing


def test_ttin_adds_a_worker() -> None:
    """One more wanted is one more asked for, and none goes."""
    world = booted()
    world.pool.resize(1)
    world.run(2.0)
    assert len(world.serving()) == 3
    assert "workers=3 wanted" in world.notes(Level.INFO)


def test_ttou_drains_the_oldest() -> None:
    """One fewer wanted is one drained, the oldest."""
    world = booted()
    world.crash(min(world.serving(), key=lambda each: each.slot))
    world.run(2.0)
    oldest = a_worker(world)
    world.pool.resize(-1)
    world.run(2.0)
    assert [slot for _, slot in world.told(Order.DRAIN)] == [oldest.slot]
    assert len(world.serving()) == 1


def test_the_last_worker_stays() -> None:
    """However often TTOU comes, one worker serves; and one TTIN then gives a second."""
    world = booted()
    for _ in range(5):
        world.pool.resize(-1)
    world.run(2.0)
    assert len(world.serving()) == 1
    world.pool.resize(1)
    world.run(2.0)
    assert len(world.serving()) == 2


def test_a_resize_survives_a_reload() -> None:
    """What the operator added stays added when the configuration is loaded anew."""
    world = booted()
    world.pool.resize(1)
    world.run(2.0)
    generation = world.reload(replace(TWO, workers=3))
    world.run(10.0)
    assert len(world.serving(generation)) == 4


def test_ttou_drains_nobody_while_others_only_start() -> None:
    """A worker that serves is not given up for one that has not served yet."""
    world = booted()
    world.fate = lambda spawn: Fate(ready_after_s=5.0)
    world.crash(a_worker(world))
    world.pool.resize(1)
    world.run(1.0)
    world.pool.resize(-1)
    world.run(1.0)
    assert len(world.serving()) == 1
    world.run(10.0)
    assert len(world.serving()) == 2


def test_ttou_while_a_replacement_starts_leaves_one_serving() -> None:
    """The last worker that serves is not drained because its comrade's replacement is on its way."""
    world = booted(replace(TWO, max_calls=10))
    world.fate = lambda spawn: Fate(ready_after_s=5.0)
    a_worker(world).served = 10
    world.run(1.0)
    world.pool.resize(-1)
    world.run(1.0)
    assert len(world.serving()) == 1
    world.run(10.0)
    assert len(world.serving()) == 1


# ---- crashes


def test_a_crash_is_made_good_at_once() -> None:
    """A worker that has served and crashes is replaced by the very next decision, and the log says so."""
    world = booted()
    old = a_worker(world)
    old.served, old.active = 7, 2
    world.run(TICK_S)
    world.crash(old)
    actions = world.turn()
    assert Spawn(old.slot, 1, 0) in actions
    expected = f"worker={old.slot} gen=1 pid={old.pid} died in serving after 7 calls, 2 calls lost: signal 11"
    assert Note(Level.ERROR, expected) in actions


def test_an_unasked_end_is_an_error_even_if_clean() -> None:
    """A worker that leaves with exit code 0 and was not asked to is reported and replaced."""
    world = booted()
    world.end(a_worker(world))
    world.run(2.0)
    assert len(world.notes(Level.ERROR)) == 1
    assert len(world.serving()) == 2


def test_a_crash_loop_is_slowed_down() -> None:
    """Failed starts are repeated at once, then after pauses that double up to a limit."""
    world = World(replace(TWO, workers=1, boot_retries=1000))
    world.fate = lambda spawn: Fate(ready_after_s=None, crashes_after_s=0.0)
    world.turn()
    world.run(200.0, step_s=1 / 64)
    spawns_s = world.times_s(Spawn)
    pauses_s = [later - earlier for earlier, later in pairwise(spawns_s)]
    expected_s = [0.0, *(BACKOFF_START_S * 2**power for power in range(8))]
    assert pauses_s[:9] == pytest.approx(expected_s, abs=0.05)
    assert pauses_s[9:] == pytest.approx([BACKOFF_LIMIT_S] * len(pauses_s[9:]), abs=0.05)
    assert len(pauses_s) > 10


def test_a_hopeless_pool_gives_up() -> None:
    """As many failed starts in a row as allowed, with no worker serving, end the master with their code."""
    world = World(replace(TWO, workers=1, boot_retries=4))
    world.fate = lambda spawn: STILLBORN
    world.turn()
    world.run_until(lambda: bool(world.actions(Exit)))
    assert world.actions(Exit) == [Exit(ExitCode.WORKERS)]
    assert len(world.actions(Spawn)) == 4
    assert "4 failed starts in a row and no worker serves: giving up" in world.notes(Level.ERROR)


def test_a_pool_that_serves_never_gives_up() -> None:
    """While one worker serves, failed starts of others are only repeated."""
    world = booted(replace(TWO, boot_retries=3))
    world.fate = lambda spawn: STILLBORN
    world.crash(a_worker(world))
    world.run(300.0)
    assert world.actions(Exit) == []
    assert len(world.actions(Spawn)) > 3


def test_others_being_healthy_does_not_shorten_the_back_off() -> None:
    """Calls that older workers serve say nothing about new ones: the pauses go on growing."""
    world = booted(replace(TWO, boot_retries=1000))
    world.fate = lambda spawn: STILLBORN
    healthy = world.serving()[1]
    world.crash(world.serving()[0])
    for _ in range(600):
        healthy.served += 1
        world.run(TICK_S)
    spawns_s = world.times_s(Spawn)
    assert spawns_s[-1] - spawns_s[-2] > 20.0


@pytest.mark.parametrize(("serves_s", "served"), [(YOUNG_S + 1, 0), (1.0, 1)], ids=["time", "a call"])
def test_a_worker_that_does_well_ends_the_back_off(serves_s: float, served: int) -> None:
    """After a start that led to service, the next crash is made good at once again."""
    world = World(replace(TWO, workers=1, boot_retries=1000))
    world.fate = lambda spawn: STILLBORN
    world.turn()
    world.run(10.0)
    world.fate = lambda spawn: HEALTHY
    world.run_until(lambda: bool(world.pool.serving))
    world.serving()[0].served = served
    world.run(serves_s)
    world.seen.clear()
    world.crash(world.serving()[0])
    assert len([action for action in world.turn() if isinstance(action, Spawn)]) == 1


def test_a_spawn_that_fails_is_a_failed_start() -> None:
    """A fork that fails frees its slot, is logged with its reason, and is tried again."""
    world = World(replace(TWO, workers=1))
    world.loader_answers = False
    world.turn()
    world.refuse_to_fork("Resource temporarily unavailable")
    actions = world.turn()
    text = "worker=0 gen=1 could not be forked: Resource temporarily unavailable"
    assert actions == [Note(Level.ERROR, text), Spawn(0, 1, 0, True)]
    world.loader_answers = True
    world.run(2.0)
    assert len(world.serving()) == 1


def test_a_failed_spawn_nobody_asked_for_is_ignored() -> None:
    """An answer for a slot that has no handle any more changes nothing."""
    world = booted()
    world.pool.spawn_failed(17, "late", world.now_s)
    world.pool.spawned(17, 4242, world.now_s)
    assert world.turn() == []


def test_unknown_processes_are_ignored() -> None:
    """The end of a process that is no worker is nobody's business here, and is said to be so."""
    world = booted()
    assert world.pool.exited(99_999, "exit code 0", True, world.now_s) is False
    assert world.turn() == []


def test_facts_of_other_processes_are_ignored() -> None:
    """A slot that still shows its last owner says nothing about the new one."""
    world = World(replace(TWO, workers=1))
    world.turn()
    world.turn()
    process = next(iter(world.processes.values()))
    stale = replace(process.facts(), pid=process.pid + 1, state=WorkerState.READY)
    world.pool.observe([stale, replace(stale, slot=500)], world.now_s)
    assert world.pool.handles[0].phase is Phase.STARTING


# ---- workers that do not answer


def test_a_worker_that_does_not_start_is_dumped_then_killed() -> None:
    """A worker that is not ready in time shows its stacks, dies one second later, and is replaced."""
    world = World(replace(TWO, workers=1))
    world.fate = lambda spawn: SLEEPER
    world.turn()
    world.run(TWO.boot_timeout_s + 5.0)
    [(dump_s, dump_slot)], [(kill_s, kill_slot)] = world.told(Order.DUMP), world.told(Order.KILL)
    assert TWO.boot_timeout_s < dump_s <= TWO.boot_timeout_s + 2 * TICK_S
    assert kill_s - dump_s == DUMP_TIME_S
    assert dump_slot == kill_slot == 0
    assert "worker=0 gen=1 pid=100 is not ready after 10 s" in world.notes(Level.ERROR)
    assert len(world.actions(Spawn)) == 2


def test_a_stuck_worker_is_dumped_then_killed_and_replaced() -> None:
    """A worker that breaks its promise shows its stacks, is replaced meanwhile, and dies a second later."""
    world = booted()
    old = a_worker(world)
    old.stuck, old.active = True, 4
    world.run(PROMISE_S + 3.0)
    [(dump_s, dump_slot)], [(kill_s, kill_slot)] = world.told(Order.DUMP), world.told(Order.KILL)
    assert dump_slot == kill_slot == old.slot
    assert kill_s - dump_s == DUMP_TIME_S
    assert any("is stuck" in text and "4 calls in it" in text for text in world.notes(Level.ERROR))
    assert len(world.serving()) == 2


def test_a_draining_worker_that_is_stuck_is_killed() -> None:
    """The watchdog looks after those that drain, too."""
    world = booted(replace(TWO, max_calls=10))
    old = a_worker(world)
    old.served, old.active = 10, 1
    world.run(2.0)
    old.stuck = True
    world.run(PROMISE_S + 2.0)
    assert old.orders == [Order.DRAIN, Order.DUMP, Order.KILL]


def test_without_the_watchdog_nobody_is_killed_for_silence() -> None:
    """Where the watchdog is off, a broken promise has no consequence."""
    world = booted(replace(TWO, watchdog_s=0.0))
    a_worker(world).stuck = True
    world.run(60.0)
    assert world.actions(Tell) == []


def test_a_late_master_does_not_blame_the_workers() -> None:
    """After a long pause of the master, workers that gave signs of life meanwhile are left alone."""
    world = booted()
    world.now_s += 3600.0
    assert world.turn() == []


def test_a_machine_that_slept_excuses_its_workers() -> None:
    """When nothing has run for long, workers get their time anew; who is stuck even then is ended."""
    world = booted()
    old = a_worker(world)
    old.stuck = True
    world.now_s += 3600.0
    world.turn()
    world.run(TWO.watchdog_s - TICK_S)
    assert old.orders == []
    world.run(TICK_S + DUMP_TIME_S)
    assert old.orders == [Order.DUMP, Order.KILL]


def test_a_worker_that_comes_back_is_not_killed() -> None:
    """A worker that gives a sign of life between the stacks and the end goes on, and no other is lost."""
    world = booted()
    old = a_worker(world)
    old.stuck = True
    world.run_until(lambda: old.orders == [Order.DUMP])
    old.stuck = False
    world.run(10.0)
    assert Order.KILL not in old.orders
    assert f"worker={old.slot} gen=1 pid={old.pid} is alive again" in world.notes(Level.WARNING)
    assert len(world.serving()) == 2


def test_drain_time_ends_in_stop_then_kill() -> None:
    """Calls of a replaced worker are ended when their time is over; if it does not obey, it is killed."""
    world = booted(replace(TWO, max_calls=10))
    old = a_worker(world)
    old.served, old.active, old.deaf = 10, 2, False
    world.run(2.0)
    old.deaf = True
    world.run(TWO.drain_timeout_s + 5.0)
    assert old.orders == [Order.DRAIN, Order.STOP, Order.KILL]
    (drain_s, _), (stop_s, _), (kill_s, _) = (
        world.told(order)[0] for order in (Order.DRAIN, Order.STOP, Order.KILL)
    )
    assert stop_s - drain_s == TWO.drain_timeout_s
    assert kill_s - stop_s == LAST_WORDS_S
    assert any("out of time: its 2 calls are ended" in text for text in world.notes(Level.WARNING))


def test_a_worker_that_drains_by_itself_is_replaced() -> None:
    """An operator's TERM to one worker costs the pool nothing: another is asked for at once."""
    world = booted()
    old = a_worker(world)
    old.state, old.active = WorkerState.DRAINING, 1
    actions = world.turn()
    assert [action for action in actions if isinstance(action, Spawn)] != []
    assert world.pool.handles[old.slot].phase is Phase.DRAINING
    world.finish_calls(old)
    world.run(2.0)
    assert len(world.serving()) == 2
    assert world.notes(Level.ERROR) == []


def test_a_loader_that_does_not_fork_is_dropped() -> None:
    """A fork that is not answered in time costs the loader its life, and a new one is asked for."""
    world = World(replace(TWO, workers=1))
    world.loader_answers = False
    world.turn()
    world.run(TWO.boot_timeout_s + 1.0)
    assert world.actions(DropLoader) == [DropLoader(1)]
    assert world.actions(Load) == [Load()]
    assert world.pool.handles == {}


def test_an_end_heard_before_its_beginning_blocks_no_slot() -> None:
    """A worker whose exit is heard before its pid is not waited for for ever."""
    pool = Pool(replace(TWO, workers=1), lambda: 0.5)
    pool.decide(START_S)
    assert pool.exited(100, "exit code 1", False, START_S) is False
    pool.spawned(0, 100, START_S)
    for second in range(60):
        pool.decide(START_S + second)
    assert all(handle.pid != 100 for handle in pool.handles.values())


# ---- stopping


def test_a_graceful_stop_lets_calls_end() -> None:
    """Workers are told to drain, those without calls end, and the last one ends the master."""
    world = booted()
    busy = a_worker(world)
    busy.active = 1
    world.pool.stop(Stopping.GRACEFUL, world.now_s)
    world.run(2.0)
    assert list(world.processes.values()) == [busy]
    assert world.actions(Exit) == []
    world.finish_calls(busy)
    world.run(1.0)
    assert world.actions(Exit)[0] == Exit(ExitCode.OK)
    assert busy.orders == [Order.DRAIN]
    assert world.actions(Spawn) == []


def test_a_graceful_stop_has_an_end() -> None:
    """Calls that outlast the graceful time are ended, and who does not obey is killed."""
    world = booted()
    busy, deaf = world.serving()
    busy.active = deaf.active = 1
    deaf.deaf = True
    world.pool.stop(Stopping.GRACEFUL, world.now_s)
    world.run(TWO.graceful_timeout_s + LAST_WORDS_S + 1.0)
    assert busy.orders == [Order.DRAIN, Order.STOP]
    assert deaf.orders == [Order.DRAIN, Order.STOP, Order.KILL]
    assert world.actions(Exit)[0] == Exit(ExitCode.OK)


def test_a_stop_shortens_the_time_of_those_that_drain() -> None:
    """A worker that was draining before gets the shorter of its own time and that of the stop."""
    world = booted(replace(TWO, max_calls=10, drain_timeout_s=14400.0))
    old = a_worker(world)
    old.served, old.active = 10, 1
    world.run(2.0)
    world.pool.stop(Stopping.GRACEFUL, world.now_s)
    world.run(TWO.graceful_timeout_s + 1.0)
    assert old.orders == [Order.DRAIN, Order.STOP]


def test_a_worker_stopped_beside_its_master_gets_the_same_time() -> None:
    """Where everybody in the group gets TERM, a worker that drains by itself is held to the stop's time."""
    world = booted(replace(TWO, drain_timeout_s=14400.0))
    busy = a_worker(world)
    busy.active = 1
    world.pool.stop(Stopping.GRACEFUL, world.now_s)
    busy.state = WorkerState.DRAINING
    world.run(TWO.graceful_timeout_s + 1.0)
    assert busy.orders == [Order.STOP]


def test_a_quick_stop_waits_for_nobody() -> None:
    """Calls are ended in the same breath, and the master goes when the workers have."""
    world = booted()
    for process in world.serving():
        process.active = 1
    world.pool.stop(Stopping.QUICK, world.now_s)
    processes = world.serving()
    world.turn()
    assert [each.orders for each in processes] == [[Order.DRAIN, Order.STOP]] * 2
    world.run(0.5)
    assert world.actions(Exit)[0] == Exit(ExitCode.OK)


def test_a_quick_stop_overrides_a_graceful_one() -> None:
    """Who loses patience with a graceful stop may stop quickly."""
    world = booted()
    busy = a_worker(world)
    busy.active = 1
    world.pool.stop(Stopping.GRACEFUL, world.now_s)
    world.run(1.0)
    world.pool.stop(Stopping.QUICK, world.now_s)
    world.turn()
    assert busy.orders == [Order.DRAIN, Order.STOP]


def test_a_graceful_stop_does_not_soften_a_quick_one() -> None:
    """A graceful stop behind a quick one changes nothing."""
    world = booted()
    world.pool.stop(Stopping.QUICK, world.now_s)
    world.pool.stop(Stopping.GRACEFUL, world.now_s)
    assert world.pool.stopping is Stopping.QUICK


def test_a_graceful_stop_while_workers_are_being_forked() -> None:
    """A worker that is forked after the stop is told to end as soon as it is known, never before."""
    world = World()
    world.loader_answers = False
    world.turn()
    world.pool.stop(Stopping.GRACEFUL, world.now_s)
    world.run(1.0)
    assert world.actions(Tell) == []
    assert world.actions(Exit) == []
    world.loader_answers = True
    world.run(1.0)
    assert world.processes == {}
    assert world.actions(Exit)[0] == Exit(ExitCode.OK)


def test_a_quick_stop_does_not_wait_for_forks() -> None:
    """What a loader has not forked yet keeps no quick stop waiting."""
    world = World()
    world.loader_answers = False
    world.turn()
    world.pool.stop(Stopping.QUICK, world.now_s)
    assert world.decide() == [Exit(ExitCode.OK)]


@pytest.mark.parametrize("how", [Stopping.GRACEFUL, Stopping.QUICK])
def test_a_stop_while_workers_start(how: Stopping) -> None:
    """Workers that do not serve yet are told to end like the others."""
    world = World()
    world.fate = lambda spawn: SLEEPER
    world.turn()
    world.turn()
    world.pool.stop(how, world.now_s)
    world.run(1.0)
    assert world.processes == {}
    assert world.actions(Exit)[0] == Exit(ExitCode.OK)


def test_a_stop_with_a_loader_that_hangs_ends() -> None:
    """Forks that are never answered do not keep the master alive."""
    world = World()
    world.loader_answers = False
    world.turn()
    world.pool.stop(Stopping.GRACEFUL, world.now_s)
    world.run(TWO.boot_timeout_s + 1.0)
    assert world.actions(Exit)[0] == Exit(ExitCode.OK)


def test_a_stop_without_workers_is_over_at_once() -> None:
    """With nobody to wait for, the first decision ends the master."""
    world = World()
    world.pool.stop(Stopping.GRACEFUL, world.now_s)
    assert world.decide() == [Exit(ExitCode.OK)]


# ---- reload


def test_a_reload_rolls_without_losing_a_worker() -> None:
    """Each worker of the old generation goes only when one of the new serves in its stead."""
    world = booted(replace(TWO, workers=3))
    old = world.serving()
    generation = world.reload()
    while world.serving(1):
        world.run(TICK_S)
        assert len(world.serving()) >= 3
    assert len(world.serving(generation)) == 3
    assert world.actions(Confirm) == [Confirm(generation)]
    assert [each.orders for each in old] == [[Order.DRAIN]] * 3
    assert any(text.endswith("is being replaced: reload") for text in world.notes(Level.INFO))


def test_a_second_reload_overtakes_the_first() -> None:
    """A reload in the middle of a roll leads straight to the newest generation."""
    world = booted(replace(TWO, workers=4))
    second = world.reload()
    world.run_until(lambda: len(world.serving(second)) == 2)
    third = world.reload()
    world.run(15.0)
    assert len(world.serving(third)) == len(world.serving()) == 4
    assert world.actions(Confirm) == [Confirm(second), Confirm(third)]


def test_a_second_reload_before_the_first_serves() -> None:
    """A generation that is overtaken before it serves is never confirmed; the newest is."""
    world = booted()
    world.fate = lambda spawn: Fate(ready_after_s=2.0)
    world.reload()
    world.run(1.0)
    third = world.reload()
    world.run(15.0)
    assert len(world.serving(third)) == len(world.serving()) == 2
    assert world.actions(Confirm) == [Confirm(third)]


def test_a_second_reload_that_fails_falls_back_to_what_served() -> None:
    """If neither of two new generations has served, the one that did stays in charge."""
    world = booted()
    world.fate = lambda spawn: SLEEPER if spawn.generation == 2 else STILLBORN
    world.reload()
    world.run(1.0)
    third = world.reload()
    world.run(2.0 + TWO.boot_timeout_s + DUMP_TIME_S)
    assert Abandon(third) in world.actions(Abandon)
    assert world.pool.generation == 1
    assert len(world.serving(1)) == len(world.serving()) == 2


def sleepy(world: World) -> None:
    """Make new workers never ready."""
    world.fate = lambda spawn: SLEEPER


def stillborn(world: World) -> None:
    """Make new workers crash."""
    world.fate = lambda spawn: STILLBORN


@pytest.mark.parametrize("trouble", [sleepy, stillborn])
@pytest.mark.parametrize("max_unavailable", [1, 2])
def test_a_generation_that_does_not_start_is_abandoned(
    trouble: Callable[[World], None], max_unavailable: int
) -> None:
    """One failed start of an unproven generation ends it; the old one serves on under its own limits."""
    limits = replace(TWO, max_unavailable=max_unavailable)
    world = booted(limits)
    old = world.serving()
    trouble(world)
    generation = world.reload(replace(limits, max_calls=1))
    world.run_until(lambda: bool(world.actions(Abandon)))
    world.fate = lambda spawn: HEALTHY
    world.run(TWO.boot_timeout_s + 5.0)
    assert world.actions(Abandon) == [Abandon(generation)]
    assert world.actions(Confirm) == []
    assert world.pool.generation == 1
    assert world.pool.limits == limits
    assert world.serving() == old
    assert world.told(Order.DRAIN) == []
    assert f"gen={generation} does not start: gen=1 stays in charge" in world.notes(Level.ERROR)


def test_a_generation_that_cannot_be_forked_is_abandoned() -> None:
    """A fork that fails counts against an unproven generation like a crash."""
    world = booted()
    world.loader_answers = False
    generation = world.reload()
    world.turn()
    world.refuse_to_fork()
    world.turn()
    assert world.actions(Abandon) == [Abandon(generation)]
    assert world.pool.generation == 1


def test_an_old_crash_does_not_discredit_the_new_generation() -> None:
    """While a new generation is being tried, the crash of an old worker says nothing about it."""
    world = booted()
    generation = world.reload()
    world.crash(a_worker(world))
    world.run(5.0)
    assert world.actions(Abandon) == []
    assert len(world.serving(generation)) == 2


def test_a_confirmed_generation_is_not_abandoned() -> None:
    """Once a generation has served, its failed starts are repeated like any others."""
    world = booted()
    generation = world.reload()
    world.run_until(lambda: bool(world.actions(Confirm)))
    world.fate = lambda spawn: STILLBORN
    world.run(5.0)
    assert world.actions(Abandon) == []
    assert world.pool.generation == generation
    world.fate = lambda spawn: HEALTHY
    world.run(30.0)
    assert len(world.serving(generation)) == 2


def test_an_unproven_generation_takes_no_worker_away() -> None:
    """A reload that asks for fewer workers drains none of the old before one of the new serves."""
    world = booted(replace(TWO, workers=4))
    world.fate = lambda spawn: SLEEPER
    world.reload(TWO)
    world.run(5.0)
    assert world.told(Order.DRAIN) == []
    assert len(world.serving(1)) == 4


def test_a_reload_after_an_abandoned_one_is_tried() -> None:
    """A generation that failed leaves no trace on the next."""
    world = booted()
    world.fate = lambda spawn: STILLBORN
    world.reload()
    world.run_until(lambda: bool(world.actions(Abandon)))
    world.fate = lambda spawn: HEALTHY
    generation = world.reload()
    world.run(10.0)
    assert len(world.serving(generation)) == len(world.serving()) == 2
    assert world.actions(Confirm) == [Confirm(generation)]


# ---- the loader


def test_a_lost_loader_is_loaded_anew_while_workers_serve() -> None:
    """Without a loader the workers serve on; what crashes is made good when there is one again."""
    world = booted()
    world.lose_loader(1)
    world.crash(a_worker(world))
    world.run(5.0)
    assert world.actions(Load) == [Load()]
    assert world.actions(Spawn) == []
    assert len(world.serving()) == 1
    generation = world.reload()
    world.run(10.0)
    assert len(world.serving(generation)) == len(world.serving()) == 2


def test_forks_lost_with_their_loader_are_asked_for_again() -> None:
    """What a loader was asked for and never answered is not waited for."""
    world = World()
    world.loader_answers = False
    world.turn()
    world.lose_loader(1)
    world.turn()
    assert world.pool.handles == {}
    world.loader_answers = True
    world.reload()
    world.run(2.0)
    assert len(world.serving()) == 2


def test_loads_that_fail_are_repeated_after_growing_pauses() -> None:
    """Where a lost loader cannot be replaced, the pauses between the tries grow up to the limit."""
    world = booted(replace(TWO, boot_retries=1000))
    world.lose_loader(1)
    for _ in range(200 * 4):
        world.run(TICK_S)
        if world.seen and world.seen[-1] == (world.now_s, Load()):
            world.pool.load_failed(world.now_s)
    loads_s = world.times_s(Load)
    pauses_s = [later - earlier for earlier, later in pairwise(loads_s)]
    assert sorted(pauses_s) == pauses_s
    assert pauses_s[0] < 1.0
    assert pauses_s[-1] == pytest.approx(BACKOFF_LIMIT_S, abs=TICK_S)
    assert len(world.serving()) == 2


def test_a_pool_without_loader_and_workers_gives_up() -> None:
    """If nothing can be loaded and nobody serves, the master ends as it does for failed starts."""
    world = booted()
    world.lose_loader(1)
    for process in world.serving():
        world.crash(process)
    for _ in range(TWO.boot_retries):
        world.pool.load_failed(world.now_s)
    world.turn()
    assert world.actions(Exit) == [Exit(ExitCode.WORKERS)]


def test_a_refused_reload_changes_nothing() -> None:
    """A load that fails while there is a loader is only a refused reload."""
    world = booted()
    world.pool.load_failed(world.now_s)
    world.run(60.0)
    assert world.seen == []


def test_loaders_that_die_as_soon_as_they_are_ready_are_slowed_down() -> None:
    """A loader that loads and then dies, again and again, is not loaded anew without a pause."""
    world = booted()
    world.lose_loader(1)
    for _ in range(100):
        world.run(TICK_S)
        if world.seen and world.seen[-1] == (world.now_s, Load()):
            world.lose_loader(world.reload())
    assert len(world.actions(Load)) < 12


def test_a_generation_whose_loader_dies_unproven_is_abandoned() -> None:
    """A new loader that dies before its first worker serves leaves the old generation in charge."""
    world = booted()
    world.loader_answers = False
    generation = world.reload()
    world.turn()
    world.lose_loader(generation)
    world.loader_answers = True
    world.crash(a_worker(world))
    world.run(5.0)
    assert world.pool.generation == 1
    assert len(world.serving()) == 2


def test_forks_lost_with_a_dismissed_loader_are_given_up() -> None:
    """A fork that an older loader never answered does not hold a slot for ever."""
    world = booted()
    world.loader_answers = False
    world.crash(a_worker(world))
    world.turn()
    stale = [handle for handle in world.pool.handles.values() if handle.phase is Phase.SPAWNING]
    world.reload()
    world.forget_asked()
    world.loader_answers = True
    world.run(TWO.boot_timeout_s + 10.0)
    assert all(handle not in stale for handle in world.pool.handles.values())
    assert len(world.serving()) == 2


# ---- why workers go


def test_nothing_happened_nothing_is_counted() -> None:
    """A pool that only starts, reloads nothing and loses nobody has no figures."""
    assert booted().pool.restarts == {}


def because_of_calls(world: World) -> None:
    """A worker has served its calls."""
    a_worker(world).served = 10


def because_of_memory(world: World) -> None:
    """A worker has grown."""
    a_worker(world).rss_bytes = 2 << 30


def because_of_age(world: World) -> None:
    """A worker is old, the other is not yet."""
    world.pool.handles[a_worker(world).slot].born_s -= 3600.0


def because_of_a_crash(world: World) -> None:
    """A worker dies in service."""
    world.run(10.0)
    world.crash(a_worker(world))


def because_of_a_young_crash(world: World) -> None:
    """A worker dies soon after it served for the first time."""
    world.crash(a_worker(world))


def because_it_is_stuck(world: World) -> None:
    """A worker gives no sign of life."""
    a_worker(world).stuck = True


def because_of_term(world: World) -> None:
    """An operator ends one worker."""
    a_worker(world).state = WorkerState.DRAINING


def because_of_fewer(world: World) -> None:
    """An operator wants one fewer."""
    world.pool.resize(-1)


def because_it_cannot_start(world: World) -> None:
    """A further worker dies before it serves; the next one does not."""
    fates = iter([STILLBORN])
    world.fate = lambda spawn: next(fates, HEALTHY)
    world.pool.resize(1)


def because_it_never_gets_ready(world: World) -> None:
    """A further worker hangs while it starts; the next one does not."""
    fates = iter([SLEEPER])
    world.fate = lambda spawn: next(fates, HEALTHY)
    world.pool.resize(1)


def because_nothing_can_be_forked(world: World) -> None:
    """A further worker cannot be forked at first."""
    world.loader_answers = False
    world.pool.resize(1)
    world.turn()
    world.refuse_to_fork()
    world.loader_answers = True


@pytest.mark.parametrize(
    ("happen", "reason"),
    [
        (because_of_calls, "calls"),
        (because_of_memory, "memory"),
        (because_of_age, "lifetime"),
        (because_of_a_crash, "died"),
        (because_of_a_young_crash, "died"),
        (because_it_is_stuck, "stuck"),
        (because_of_term, "signal"),
        (because_of_fewer, "resize"),
        (because_it_cannot_start, "boot"),
        (because_it_never_gets_ready, "boot"),
        (because_nothing_can_be_forked, "boot"),
    ],
)
def test_each_end_is_counted_once(happen: Callable[[World], None], reason: str) -> None:
    """Why a worker went is counted once, under the reason that an operator would look for."""
    world = booted(replace(TWO, max_calls=10, max_memory_bytes=1 << 30, max_lifetime_s=3600.0))
    happen(world)
    world.run(30.0)
    assert world.pool.restarts == {reason: 1}
    assert reason in RESTART_REASONS


def test_a_reload_counts_every_worker() -> None:
    """A reload replaces each worker for that reason, and a stop counts nothing."""
    world = booted()
    world.reload()
    world.run(10.0)
    world.pool.stop(Stopping.GRACEFUL, world.now_s)
    world.run(10.0)
    assert world.pool.restarts == {"reload": 2}


# ---- a change of the master's program


def test_another_program_goes_on() -> None:
    """What travels as text is the whole pool: workers, limits, what was resized and what was counted."""
    world = booted(replace(TWO, max_calls=10))
    world.pool.resize(1)
    a_worker(world).served = 10
    world.run(5.0)
    before = world.pool
    world.upgrade()
    assert world.pool.handles == before.handles
    assert (world.pool.limits, world.pool.generation) == (before.limits, before.generation)
    assert (world.pool.target, world.pool.restarts) == (3, before.restarts)
    assert world.decide() == []


def test_a_worker_in_any_phase_goes_on() -> None:
    """Workers that start, drain or are found stuck meet the same end as without the change."""
    world = booted(replace(TWO, workers=3))
    stuck, leaving, _ = world.serving()
    stuck.stuck, leaving.active = True, 1
    leaving.state = WorkerState.DRAINING
    world.run_until(lambda: world.pool.handles[stuck.slot].phase is Phase.DUMPING)
    world.run(TICK_S)
    world.upgrade()
    assert world.pool.handles[stuck.slot].dumped_in is Phase.SERVING
    world.run(10.0)
    assert stuck.orders == [Order.DUMP, Order.KILL]
    assert len(world.serving()) == 3
    world.run(TWO.drain_timeout_s)
    assert leaving.orders == [Order.STOP]


def test_a_generation_is_not_confirmed_again() -> None:
    """The generation in charge stays proven: its next worker need not prove itself."""
    world = booted()
    world.upgrade()
    world.crash(a_worker(world))
    world.run(5.0)
    assert world.actions(Confirm) == []
    assert [spawn.prove for spawn in world.actions(Spawn)] == [False]


def test_a_reload_after_the_change() -> None:
    """The new program's own generation replaces the old workers as in any reload."""
    world = booted()
    world.upgrade()
    world.reload()
    world.run(10.0)
    assert {each.generation for each in world.serving()} == {2}
    assert world.actions(Confirm) == [Confirm(2)]


def test_what_is_half_done_is_not_handed_over() -> None:
    """No change while a worker is forked, a generation unproven, a loader lost or the end in sight."""
    world = World()
    settled = [world.pool.is_settled]

    def after(happen: Callable[[], object]) -> None:
        happen()
        settled.append(world.pool.is_settled)

    after(world.decide)
    after(lambda: world.run(5.0))
    after(world.reload)
    after(lambda: world.run(10.0))
    after(lambda: world.lose_loader(2))
    after(world.reload)
    after(lambda: world.pool.stop(Stopping.GRACEFUL, world.now_s))
    assert settled == [True, False, True, False, True, False, True, False]


def test_only_an_unproven_generation_has_to_prove_itself() -> None:
    """Workers prove themselves until one of their generation serves; later ones need not."""
    world = World()
    world.turn()
    world.run(5.0)
    world.crash(a_worker(world))
    world.run(5.0)
    world.reload()
    world.run(10.0)
    assert [spawn.prove for spawn in world.actions(Spawn)] == [True, True, False, True, False]


# ---- everything in any order


# Shrinking a failure would take minutes; the law that broke is named without it.
@settings(
    max_examples=100,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    phases=[hypothesis.Phase.generate],
)
class PoolMachine(RuleBasedStateMachine):
    """A pool to which anything may happen at any time; :class:`World` checks the laws at every turn."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(
            PoolLimits(
                workers=3,
                max_calls=10,
                max_unavailable=2,
                max_draining=2,
                graceful_timeout_s=5.0,
                drain_timeout_s=20.0,
                boot_timeout_s=4.0,
                boot_retries=1000,
                watchdog_s=PROMISE_S,
            )
        )
        self.world.turn()

    def process(self, choice: int) -> Process | None:
        """Choose one of the living processes."""
        living = list(self.world.processes.values())
        return living[choice % len(living)] if living else None

    @rule(ticks=st.sampled_from([1, 2, 8, 40]))
    def time_passes(self, ticks: int) -> None:
        """Nothing else happens."""
        self.world.run(ticks * TICK_S)

    @rule(jump_s=st.sampled_from([3.0, 30.0]))
    def the_master_is_late(self, jump_s: float) -> None:
        """The master sleeps, and finds everything later."""
        self.world.now_s += jump_s
        self.world.turn()

    @rule(choice=st.integers(0, 7))
    def a_worker_crashes(self, choice: int) -> None:
        """One process dies."""
        process = self.process(choice)
        if process is not None:
            self.world.crash(process)
            self.world.turn()

    @rule(choice=st.integers(0, 7))
    def a_worker_is_sent_term(self, choice: int) -> None:
        """An operator ends one worker."""
        process = self.process(choice)
        if process is not None:
            process.state = WorkerState.DRAINING

    @rule(choice=st.integers(0, 7))
    def a_worker_blocks(self, choice: int) -> None:
        """A handler never lets go."""
        process = self.process(choice)
        if process is not None:
            process.stuck = True

    @rule(choice=st.integers(0, 7), served=st.sampled_from([1, 10]), active=st.integers(0, 2))
    def calls_come_and_go(self, choice: int, served: int, active: int) -> None:
        """A worker serves some calls, and has some more in progress."""
        process = self.process(choice)
        if process is not None and process.state is not WorkerState.STARTING:
            process.served += served
            process.active = active

    @rule(fate=st.sampled_from([HEALTHY, HEALTHY, STILLBORN, SLEEPER, Fate(ready_after_s=3.0)]))
    def new_workers_fare_otherwise(self, fate: Fate) -> None:
        """From now on, workers start well, late, or not at all."""
        self.world.fate = lambda spawn: fate

    @rule(workers=st.integers(1, 4), max_calls=st.sampled_from([0, 10]))
    def the_operator_reloads(self, workers: int, max_calls: int) -> None:
        """A new generation is loaded."""
        self.world.reload(replace(self.world.limits, workers=workers, max_calls=max_calls))
        self.world.turn()

    @rule(by=st.sampled_from([-1, 1]))
    def the_operator_resizes(self, by: int) -> None:
        """TTIN or TTOU."""
        self.world.pool.resize(by)
        self.world.turn()

    @precondition(lambda self: self.world.pool.is_settled)
    @rule()
    def the_program_is_replaced(self) -> None:
        """USR2: another program goes on."""
        self.world.upgrade()
        self.world.turn()

    @rule()
    def the_loader_dies(self) -> None:
        """The newest loader ends unasked."""
        self.world.lose_loader(self.world.pool.generation)
        self.world.turn()

    @rule(answers=st.booleans())
    def the_loader_hangs_or_not(self, answers: bool) -> None:
        """Forks are answered, or not."""
        self.world.loader_answers = answers

    @precondition(lambda self: not self.world.loader_answers)
    @rule()
    def forks_fail(self) -> None:
        """What was asked for cannot be forked."""
        self.world.refuse_to_fork()
        self.world.turn()

    @invariant()
    def wishes_are_bounded(self) -> None:
        """However often a decision is asked for, it comes to rest."""
        self.world.decide()
        assert not [action for action in self.world.decide() if isinstance(action, Spawn | Tell | Confirm)]

    def teardown(self) -> None:
        """Whatever happened before: a healthy world heals, and a stop ends everything."""
        world = self.world
        world.loader_answers = True
        world.fate = lambda spawn: HEALTHY
        for process in world.processes.values():
            process.active = 0
        world.reload(replace(world.limits, workers=3))
        world.run(200.0)
        assert len(world.pool.serving) == world.pool.target
        assert {each.generation for each in world.serving()} == {world.pool.generation}
        for process in world.processes.values():
            process.active, process.deaf = 1, True
        world.pool.stop(Stopping.GRACEFUL, world.now_s)
        world.run(5.0 + LAST_WORDS_S + 1.0)
        assert world.pool.handles == {}
        assert world.actions(Exit)[:1] == [Exit(ExitCode.OK)]


TestPoolMachine = PoolMachine.TestCase
