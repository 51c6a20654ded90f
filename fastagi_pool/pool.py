"""Pool: the supervision of workers as a pure decision. Facts and a clock go in, actions come out.

Laws:
    * Nothing here forks, kills, logs, sleeps or reads a clock; the master carries out the actions.
    * A :class:`WorkerHandle` is a worker as the master sees it. What happens inside one is
      ``worker.Worker``; no code belongs to both.
    * A replacement serves before the worker it replaces stops accepting, and at most
      ``max_unavailable`` workers are being replaced at once.
    * A new generation is in charge only when its first worker serves; one whose workers cannot
      start leaves the old one in charge.
    * Every worker that is told to end does end: first asked, then told to end its calls, then
      killed.

How it works: facts only change handles; :meth:`Pool.decide` alone draws conclusions, step by step,
and may be called at any time and as often as one likes::

    SPAWNING --spawned--> STARTING --READY seen--> SERVING --drain--> DRAINING --exit--> gone
        any of them --no sign of life--> DUMPING --1 s--> KILLED --exit--> gone
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Final, TypeAlias

from fastagi_pool.scoreboard import SLOTS, SlotFacts, WorkerState

#: How long a stuck worker gets to write its stacks before it is killed.
DUMP_TIME_S: Final = 1.0
#: How long a worker that was told to end its calls gets before it is killed.
LAST_WORDS_S: Final = 4.0
#: The master looks several times a second; when it has not for so long, nothing here has run.
OVERSLEPT_S: Final = 2.0
#: Back-off between failed starts: nothing for the first, then this, doubled each time ...
BACKOFF_START_S: Final = 0.2
#: ... up to this.
BACKOFF_LIMIT_S: Final = 30.0
#: A worker that crashes younger than this counts as a failed start.
YOUNG_S: Final = 5.0


#: Why a worker of an older generation is replaced.
RELOAD: Final = "reload"


class ExitCode(int, Enum):
    """How the master ends."""

    OK = 0
    #: Something unforeseen.
    ERROR = 1
    #: The configuration cannot be run.
    CONFIG = 2
    #: Workers do not start, again and again.
    WORKERS = 3
    #: The machine does not give what the configuration needs: a port, file descriptors.
    BOOT = 4


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What the pool has to hold to; times in seconds, 0 is never or off.

    Attributes:
        workers: How many serve.
        max_calls: A worker is replaced after about this many calls.
        max_calls_jitter: About: up to this part more, so that workers do not retire together.
        max_lifetime_s: A worker is replaced after this time.
        max_memory_bytes: A worker is replaced when its resident memory is above.
        max_unavailable: Workers being replaced at once.
        max_draining: Old workers finishing their calls at once; replacing waits beyond.
        graceful_timeout_s: What calls get to end by themselves when the pool stops.
        drain_timeout_s: What the calls of a replaced worker get.
        boot_timeout_s: A worker serves by then.
        boot_retries: Failed starts in a row, with no worker serving, that end the master.
        watchdog_s: A worker promises a sign of life for so far ahead; one that breaks its promise is
            killed.
    """

    workers: int
    max_calls: int = 0
    max_calls_jitter: float = 0.1
    max_lifetime_s: float = 0.0
    max_memory_bytes: int = 0
    max_unavailable: int = 1
    max_draining: int = 16
    graceful_timeout_s: float = 30.0
    drain_timeout_s: float = 14400.0
    boot_timeout_s: float = 60.0
    boot_retries: int = 10
    watchdog_s: float = 30.0


class Phase(Enum):
    """Where in its life a worker is, as the master knows it."""

    SPAWNING = "spawning"
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    DUMPING = "dumping"
    KILLED = "killed"


#: Phases of workers that serve or will.
_HOPEFUL: Final = (Phase.SPAWNING, Phase.STARTING, Phase.SERVING)


@dataclass(slots=True)
class WorkerHandle:
    """A worker as the master sees it.

    Attributes:
        slot: Its place in the scoreboard, which is also its number.
        generation: Which load of the configuration and code it runs.
        phase: Where in its life it is.
        since_s: When the phase began.
        born_s: When it was asked for.
        pid: Its process; 0 until known.
        call_limit: Calls after which it is replaced; 0 for never.
        replaces: Slot of the worker that it will replace; -1 for none.
        retire_reason: Why it shall be replaced; empty if it need not.
        retire_kind: The same as one of ``scoreboard.RESTART_REASONS``.
        end_by_s: When its draining is over; only in DRAINING.
        dumped_in: The phase in which it was found stuck; only in DUMPING.
        told_to_stop: Whether it was told to end its calls.
        deadline_s: Until when it promised a sign of life; 0 for no promise.
        served: Calls it has ended.
        active: Calls in progress in it.
    """

    slot: int
    generation: int
    phase: Phase
    since_s: float
    born_s: float
    pid: int = 0
    call_limit: int = 0
    replaces: int = -1
    retire_reason: str = ""
    retire_kind: str = ""
    end_by_s: float = 0.0
    dumped_in: Phase | None = None
    told_to_stop: bool = False
    deadline_s: float = 0.0
    served: int = 0
    active: int = 0

    def __str__(self) -> str:
        return f"worker={self.slot} gen={self.generation} pid={self.pid}"


class Order(Enum):
    """What the master tells a worker, in the order of severity."""

    DRAIN = "finish your calls and end"
    STOP = "end your calls and end"
    DUMP = "write your stacks"
    KILL = "be killed"


class Level(Enum):
    """How loud a note is; the names of the logging levels."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker of this generation into this slot; it has to prove itself if none of them serves yet."""

    slot: int
    generation: int
    call_limit: int
    prove: bool = False


@dataclass(frozen=True, slots=True)
class Tell:
    """Send an order to a worker."""

    slot: int
    pid: int
    order: Order


@dataclass(frozen=True, slots=True)
class Note:
    """Write this into the log."""

    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Confirm:
    """This generation serves: everything older can go."""

    generation: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """This generation cannot start: its loader can go."""

    generation: int


@dataclass(frozen=True, slots=True)
class DropLoader:
    """The loader of this generation does not answer: end it."""

    generation: int


@dataclass(frozen=True, slots=True)
class Load:
    """Load configuration and code anew: nothing is left that can fork workers."""


@dataclass(frozen=True, slots=True)
class Exit:
    """End the master."""

    code: ExitCode


Action: TypeAlias = Spawn | Tell | Note | Confirm | Abandon | DropLoader | Load | Exit


class Stopping(Enum):
    """Whether and how the pool ends."""

    NO = "no"
    GRACEFUL = "graceful"
    QUICK = "quick"


class Pool:
    """All workers, and what is to be done about them.

    Attributes:
        handles: The workers by slot.
        limits: What is held to now.
        generation: The one that new workers get.
        stopping: Whether the pool is to end.
        restarts: Why workers were replaced or ended: ``scoreboard.RESTART_REASONS`` with their numbers.
    """

    def __init__(self, limits: PoolLimits, random: Callable[[], float]) -> None:
        """Start with no worker at all.

        Args:
            limits: What to hold to.
            random: Returns numbers from 0 to 1, for jitter.
        """
        self.handles: dict[int, WorkerHandle] = {}
        self.limits = limits
        self.generation = 1
        self.stopping = Stopping.NO
        self.restarts: Counter[str] = Counter()
        self._random = random
        #: Generation and limits to fall back to while the newest has not served yet.
        self._fallback: tuple[int, PoolLimits] | None = None
        #: The newest generation of which a worker has served.
        self._confirmed = 0
        self._can_spawn = True
        #: Whether the generation to fall back to has lost its loader.
        self._fallback_lost = False
        self._load_not_before_s: float | None = None
        self._load_failures = 0
        self._load_failed_at_s = 0.0
        self._failures = 0
        self._failed_at_s = 0.0
        self._spawn_not_before_s = 0.0
        self._extra_workers = 0
        self._decided_s = 0.0
        #: Until then nobody is called stuck: the whole machine has slept.
        self._excused_until_s = 0.0
        self._notes: list[Action] = []
        #: Processes that ended before anyone said what they were.
        self._unknown: deque[int] = deque(maxlen=64)

    # --- a change of the master's program

    @property
    def is_settled(self) -> bool:
        """Whether nothing is half done: no worker being forked, no generation unproven, no end in sight."""
        forking = any(handle.phase is Phase.SPAWNING for handle in self.handles.values())
        return self._can_spawn and not forking and not self.is_proving and self.stopping is Stopping.NO

    @property
    def is_proving(self) -> bool:
        """Whether a new generation is loaded of which no worker has served yet: it may still be given up."""
        return self._fallback is not None

    def state(self) -> dict[str, Any]:
        """Say, in plain values, what :meth:`restored` needs to go on; only when settled."""
        handles = [asdict(handle) for handle in self.handles.values()]
        for handle in handles:
            handle["phase"] = handle["phase"].value
            handle["dumped_in"] = handle["dumped_in"].value if handle["dumped_in"] else None
        return {
            "limits": asdict(self.limits),
            "generation": self.generation,
            "confirmed": self._confirmed,
            "extra_workers": self._extra_workers,
            "restarts": dict(self.restarts),
            "handles": handles,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any], random: Callable[[], float]) -> Pool:
        """Go on where another pool has stopped.

        Args:
            state: What :meth:`state` gave.
            random: Returns numbers from 0 to 1, for jitter.

        Raises:
            TypeError: It is another version's.
        """
        pool = cls(PoolLimits(**state["limits"]), random)
        pool.generation, pool._confirmed = state["generation"], state["confirmed"]
        pool._extra_workers = state["extra_workers"]
        pool.restarts.update(state["restarts"])
        for fields in state["handles"]:
            dumped_in = Phase(fields["dumped_in"]) if fields["dumped_in"] else None
            handle = WorkerHandle(**{**fields, "phase": Phase(fields["phase"]), "dumped_in": dumped_in})
            pool.handles[handle.slot] = handle
        return pool

    # --- facts

    def spawned(self, slot: int, pid: int, now_s: float) -> None:
        """A worker's process was made."""
        handle = self.handles.get(slot)
        if handle is not None and handle.phase is Phase.SPAWNING:
            handle.pid = pid
            self._enter(handle, Phase.STARTING, now_s)
            if pid in self._unknown:
                self.exited(pid, "ended before it was known", False, now_s)

    def spawn_failed(self, slot: int, reason: str, now_s: float) -> None:
        """No process could be made."""
        handle = self.handles.get(slot)
        if handle is not None:
            self._remove(handle)
            self.restarts["boot"] += 1
            self._note(Level.ERROR, f"worker={slot} gen={handle.generation} could not be forked: {reason}")
            self._failed_start(handle, now_s)

    def observe(self, facts: Iterable[SlotFacts], now_s: float) -> None:
        """Take what the workers say about themselves."""
        for fact in facts:
            handle = self.handles.get(fact.slot)
            if handle is not None and handle.phase is Phase.SPAWNING and fact.pid:
                # Its loader was dismissed before it could tell.
                self.spawned(fact.slot, fact.pid, now_s)
            if handle is None or handle.pid != fact.pid:
                continue
            handle.served, handle.active = fact.served, fact.active
            handle.deadline_s = fact.deadline_s
            if fact.state is WorkerState.READY and handle.phase is Phase.STARTING:
                self._now_serving(handle, now_s)
            elif fact.state is WorkerState.DRAINING and handle.phase in _HOPEFUL:
                # Nobody here told it to: an operator sent it TERM, or sent it to us all.
                stopping = self.stopping is not Stopping.NO
                limits = self.limits
                timeout_s = limits.graceful_timeout_s if stopping else limits.drain_timeout_s
                self._begin_draining(handle, now_s, timeout_s)
                self.restarts["signal"] += not stopping
            self._judge(handle, fact, now_s)

    def exited(self, pid: int, how: str, clean: bool, now_s: float) -> bool:
        """A process ended.

        Args:
            pid: Which one.
            how: For the log: its exit code or signal.
            clean: Whether it ended by itself with exit code 0.
            now_s: When.

        Returns:
            Whether it was one of the workers.
        """
        handle = next((each for each in self.handles.values() if each.pid == pid), None)
        if handle is None:
            self._unknown.append(pid)
            return False
        self._remove(handle)
        if clean and handle.phase is Phase.DRAINING:
            self._note(Level.INFO, f"{handle} ended after {handle.served} calls")
            return True
        if not handle.told_to_stop:
            self.restarts[_kind_of_end(handle)] += 1
        lost = f", {handle.active} calls lost" if handle.active else ""
        if "SIGKILL" in how and handle.phase is not Phase.KILLED:
            how += "; out of memory?"
        self._note(
            Level.ERROR, f"{handle} died in {handle.phase.value} after {handle.served} calls{lost}: {how}"
        )
        was_draining = handle.end_by_s > 0
        if not was_draining and (now_s - handle.born_s < YOUNG_S or not handle.served):
            self._failed_start(handle, now_s)
        return True

    def loader_lost(self, generation: int, now_s: float) -> None:
        """The process that forks the workers of a generation has ended unasked."""
        for handle in [each for each in self.handles.values() if each.phase is Phase.SPAWNING]:
            if handle.generation == generation:
                self._remove(handle)
        if self._fallback is not None and generation == self._fallback[0]:
            self._fallback_lost = True
        elif self._fallback is not None and generation == self.generation:
            self._fall_back(now_s)
        elif generation == self.generation:
            self._cannot_spawn(now_s)

    def load_failed(self, now_s: float) -> None:
        """A loader could not load; where it was to replace a lost one, try again later."""
        if not self._can_spawn:
            self._cannot_spawn(now_s)

    def loaded(self, generation: int, limits: PoolLimits) -> None:
        """A new generation is ready to be forked."""
        if self._can_spawn and self._fallback is None:
            self._fallback = (self.generation, self.limits)
            self._fallback_lost = False
        elif not self._can_spawn:
            self._fallback = None
        self.generation, self.limits = generation, limits
        self._can_spawn = True
        self._load_not_before_s = None
        self._failures = 0
        self._spawn_not_before_s = 0.0

    def resize(self, by: int) -> None:
        """One worker more or fewer than configured; never below one."""
        if self.limits.workers + self._extra_workers + by >= 1:
            self._extra_workers += by
        self._note(Level.INFO, f"workers={self.target} wanted")

    def stop(self, how: Stopping, now_s: float) -> None:
        """End the pool; a quick stop overrides a graceful one, never the other way round."""
        if self.stopping is Stopping.QUICK or how is self.stopping:
            return
        self.stopping = how
        if how is Stopping.QUICK:
            # One that is forked nevertheless finds the master gone, and ends.
            for handle in [each for each in self.handles.values() if each.phase is Phase.SPAWNING]:
                self._remove(handle)
        for handle in self.handles.values():
            if handle.phase is Phase.DRAINING:
                handle.end_by_s = min(handle.end_by_s, now_s + self.limits.graceful_timeout_s)

    @property
    def target(self) -> int:
        """How many workers shall serve.

        While a new generation is unproven its wish for fewer is not granted yet.
        """
        old = self._fallback[1].workers if self._fallback is not None else 0
        return max(1, max(self.limits.workers, old) + self._extra_workers)

    @property
    def serving(self) -> list[WorkerHandle]:
        """The workers that serve."""
        return [handle for handle in self.handles.values() if handle.phase is Phase.SERVING]

    # --- decisions

    def decide(self, now_s: float) -> list[Action]:
        """Return what is to be done now; handles change as if it were done."""
        if self._decided_s and now_s - self._decided_s > OVERSLEPT_S:
            self._excused_until_s = now_s + self.limits.watchdog_s
        self._decided_s = now_s
        actions = list(self._notes)
        self._notes.clear()
        actions += self._end_overdue(now_s)
        if self.stopping is not Stopping.NO:
            actions += self._stop_all(now_s)
        else:
            actions += self._give_up_or_load(now_s)
            # In this order: a worker whose replacement serves is drained, not replaced once more.
            actions += self._reach_target(now_s)
            actions += self._replace_due(now_s)
        actions += self._notes
        self._notes.clear()
        return actions

    def _end_overdue(self, now_s: float) -> Iterator[Action]:
        for handle in list(self.handles.values()):
            in_phase_s = now_s - handle.since_s
            if handle.phase is Phase.SPAWNING and in_phase_s > self.limits.boot_timeout_s:
                self._remove(handle)
                yield DropLoader(handle.generation)
            elif handle.phase is Phase.STARTING and in_phase_s > self.limits.boot_timeout_s:
                yield Note(Level.ERROR, f"{handle} is not ready after {self.limits.boot_timeout_s:g} s")
                yield self._dump(handle, now_s)
            elif handle.phase in (Phase.SERVING, Phase.DRAINING) and self._is_stuck(handle, now_s):
                yield Note(
                    Level.ERROR,
                    f"{handle} is stuck: no sign of life in time; stacks follow, {handle.active} calls in it",
                )
                yield self._dump(handle, now_s)
            elif handle.phase is Phase.DUMPING and handle.dumped_in and handle.deadline_s > now_s:
                yield Note(Level.WARNING, f"{handle} is alive again")
                self._enter(handle, handle.dumped_in, now_s)
            elif handle.phase is Phase.DUMPING and in_phase_s >= DUMP_TIME_S:
                yield self._kill(handle, now_s)
            elif handle.phase is Phase.DRAINING and now_s >= handle.end_by_s:
                if not handle.told_to_stop:
                    yield Note(Level.WARNING, f"{handle} is out of time: its {handle.active} calls are ended")
                    handle.told_to_stop = True
                    handle.end_by_s = now_s + LAST_WORDS_S
                    yield Tell(handle.slot, handle.pid, Order.STOP)
                else:
                    yield self._kill(handle, now_s)

    def _is_stuck(self, handle: WorkerHandle, now_s: float) -> bool:
        watched = self.limits.watchdog_s and now_s >= self._excused_until_s
        return bool(watched and 0 < handle.deadline_s < now_s)

    def _stop_all(self, now_s: float) -> Iterator[Action]:
        for handle in list(self.handles.values()):
            if handle.phase in (Phase.STARTING, Phase.SERVING):
                yield from self._drain(handle, now_s, self.limits.graceful_timeout_s)
            if self.stopping is Stopping.QUICK and handle.phase is Phase.DRAINING and not handle.told_to_stop:
                handle.end_by_s = now_s
        if self.stopping is Stopping.QUICK:
            yield from self._end_overdue(now_s)
        if not self.handles:
            yield Exit(ExitCode.OK)

    def _give_up_or_load(self, now_s: float) -> Iterator[Action]:
        failures = max(self._failures, self._load_failures)
        if failures >= self.limits.boot_retries and not self.serving:
            yield Note(Level.ERROR, f"{failures} failed starts in a row and no worker serves: giving up")
            self.stopping = Stopping.QUICK
            yield Exit(ExitCode.WORKERS)
        elif self._load_not_before_s is not None and now_s >= self._load_not_before_s:
            self._load_not_before_s = None
            yield Load()

    def _replace_due(self, now_s: float) -> Iterator[Action]:
        replaced = {handle.replaces for handle in self._pending()}
        free = self.limits.max_unavailable - len(self._pending())
        # A reload must not wait for the long calls of workers that were recycled before it.
        crowded = self._count(Phase.DRAINING) + len(self._pending()) >= self.limits.max_draining
        due = [
            handle
            for handle in self.serving
            if handle.retire_reason
            and handle.slot not in replaced
            and (handle.retire_reason == RELOAD or not crowded)
        ]
        for handle in sorted(due, key=lambda each: each.born_s)[: max(0, free)]:
            if self._may_spawn(now_s):
                yield Note(Level.INFO, f"{handle} is being replaced: {handle.retire_reason}")
                yield self._spawn(now_s, replaces=handle.slot)

    def _reach_target(self, now_s: float) -> Iterator[Action]:
        standing = self._count(*_HOPEFUL) - len(self._pending())
        while standing < self.target and self._may_spawn(now_s):
            yield self._spawn(now_s)
            standing += 1
        # Those that only start do not count here: somebody has to serve until they do.
        surplus = min(standing, len(self.serving)) - self.target
        if surplus > 0:
            yield from self._drain_surplus(surplus, now_s)

    def _drain_surplus(self, surplus: int, now_s: float) -> Iterator[Action]:
        replaced = {each.replaces for each in self.serving}
        # The replaced first, then the oldest: never a worker that does not serve yet.
        order = sorted(self.serving, key=lambda each: (each.slot not in replaced, each.born_s))
        for handle in order[:surplus]:
            self.restarts[handle.retire_kind or "resize"] += 1
            yield from self._drain(handle, now_s, self.limits.drain_timeout_s)

    # --- steps

    def _spawn(self, now_s: float, replaces: int = -1) -> Spawn:
        slot = next(number for number in range(SLOTS) if number not in self.handles)
        spread = self.limits.max_calls_jitter * self._random()
        call_limit = max(1, round(self.limits.max_calls * (1 + spread))) if self.limits.max_calls else 0
        self.handles[slot] = WorkerHandle(
            slot, self.generation, Phase.SPAWNING, now_s, now_s, call_limit=call_limit, replaces=replaces
        )
        return Spawn(slot, self.generation, call_limit, prove=self.generation != self._confirmed)

    def _may_spawn(self, now_s: float) -> bool:
        return self._can_spawn and now_s >= self._spawn_not_before_s and len(self.handles) < SLOTS

    def _drain(self, handle: WorkerHandle, now_s: float, timeout_s: float) -> Iterator[Action]:
        self._begin_draining(handle, now_s, timeout_s)
        yield Tell(handle.slot, handle.pid, Order.DRAIN)

    def _begin_draining(self, handle: WorkerHandle, now_s: float, timeout_s: float) -> None:
        self._enter(handle, Phase.DRAINING, now_s)
        handle.end_by_s = now_s + timeout_s

    def _dump(self, handle: WorkerHandle, now_s: float) -> Tell:
        handle.dumped_in = None if handle.phase is Phase.STARTING else handle.phase
        self._enter(handle, Phase.DUMPING, now_s)
        return Tell(handle.slot, handle.pid, Order.DUMP)

    def _kill(self, handle: WorkerHandle, now_s: float) -> Tell:
        self._enter(handle, Phase.KILLED, now_s)
        return Tell(handle.slot, handle.pid, Order.KILL)

    def _enter(self, handle: WorkerHandle, phase: Phase, now_s: float) -> None:
        handle.phase = phase
        handle.since_s = now_s

    def _now_serving(self, handle: WorkerHandle, now_s: float) -> None:
        self._enter(handle, Phase.SERVING, now_s)
        if handle.generation == self.generation != self._confirmed:
            self._fallback = None
            self._confirmed = self.generation
            self._notes.append(Confirm(handle.generation))
        self._note(Level.INFO, f"{handle} serves")

    def _judge(self, handle: WorkerHandle, fact: SlotFacts, now_s: float) -> None:
        """Find whether a serving worker is due to be replaced."""
        if handle.phase is not Phase.SERVING:
            return
        limits = self.limits
        if handle.since_s > self._failed_at_s and (now_s - handle.since_s >= YOUNG_S or fact.served):
            self._failures = 0
        if handle.since_s > self._load_failed_at_s and now_s - handle.since_s >= YOUNG_S:
            self._load_failures = 0
        if handle.generation != self.generation:
            handle.retire_reason, handle.retire_kind = RELOAD, "reload"
        elif handle.call_limit and fact.served >= handle.call_limit:
            handle.retire_reason, handle.retire_kind = f"{fact.served} calls", "calls"
        elif limits.max_lifetime_s and now_s - handle.born_s >= limits.max_lifetime_s:
            handle.retire_reason, handle.retire_kind = f"{now_s - handle.born_s:.0f} s old", "lifetime"
        elif limits.max_memory_bytes and fact.rss_bytes > limits.max_memory_bytes:
            handle.retire_reason, handle.retire_kind = f"{fact.rss_bytes >> 20} MB of memory", "memory"

    def _failed_start(self, handle: WorkerHandle, now_s: float) -> None:
        if self._fallback is not None and handle.generation == self.generation:
            self._fall_back(now_s)
            return
        self._spawn_not_before_s = now_s + _backoff_s(self._failures)
        self._failures += 1
        self._failed_at_s = now_s

    def _fall_back(self, now_s: float) -> None:
        """Give up a generation of which no worker has served."""
        if self._fallback is None:
            return
        refused = self.generation
        self.generation, self.limits = self._fallback
        self._fallback = None
        self._note(Level.ERROR, f"gen={refused} does not start: gen={self.generation} stays in charge")
        self._notes.append(Abandon(refused))
        for each in self.handles.values():
            of_refused = each.generation == refused
            each.retire_reason, each.retire_kind = (RELOAD, "reload") if of_refused else ("", "")
        if self._fallback_lost:
            self._cannot_spawn(now_s)

    def _cannot_spawn(self, now_s: float) -> None:
        """Nothing is left that can fork workers: load again, after growing pauses."""
        self._can_spawn = False
        self._load_not_before_s = now_s + _backoff_s(self._load_failures)
        self._load_failures += 1
        self._load_failed_at_s = now_s

    def _remove(self, handle: WorkerHandle) -> None:
        """Forget a worker, also as one that somebody replaces: its slot may be taken again."""
        del self.handles[handle.slot]
        for each in self.handles.values():
            if each.replaces == handle.slot:
                each.replaces = -1

    def _pending(self) -> list[WorkerHandle]:
        """Replacements that do not serve yet, while those they replace still do."""
        return [
            handle
            for handle in self.handles.values()
            if handle.phase in (Phase.SPAWNING, Phase.STARTING)
            and (old := self.handles.get(handle.replaces)) is not None
            and old.phase is Phase.SERVING
        ]

    def _count(self, *phases: Phase) -> int:
        return sum(handle.phase in phases for handle in self.handles.values())

    def _note(self, level: Level, text: str) -> None:
        self._notes.append(Note(level, text))


def _kind_of_end(handle: WorkerHandle) -> str:
    """Which of ``scoreboard.RESTART_REASONS`` it is that a worker has ended unasked."""
    if handle.phase in (Phase.DUMPING, Phase.KILLED):
        return "stuck" if handle.dumped_in else "boot"
    return "boot" if handle.phase is Phase.STARTING else "died"


def _backoff_s(failures: int) -> float:
    """The pause after so many failures in a row: none after the first."""
    return min(BACKOFF_LIMIT_S, BACKOFF_START_S * 2.0 ** min(failures - 1, 16)) if failures else 0.0
