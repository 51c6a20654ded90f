"""Nursery: which process a call's script gets, as a pure decision. Facts and a clock go in, actions come out.

Laws:
    * Nothing here starts, ends or looks at anything; the launcher carries out the actions.
    * No call runs code older than its files were when it asked, but for those that wait for a compilation
      that has begun already.
    * A script that does not compile is not compiled again for each call: all are told the same reason until
      its file changes or :data:`FAILURE_S` has gone by.
    * A process that cannot live is not started again and again without a pause.

How it works: :class:`Nursery` knows the zygotes (each has compiled one script, and forks for each call)::

    absent --asked--> COMPILING --ready--> READY --stale or one too many--> RETIRED --last child over--> gone
                          |
                          +--ended, or took too long--> a failure, remembered for a while

:class:`Stock` knows the warm processes, which were started before anyone called.

Why a file's ctime: it also changes when a file is replaced by one with its date kept. A file whose ctime is
not older than the zygote's start may have changed while it was being read, and nobody can tell what has been
compiled: such a zygote serves those who wait for it, since a file that changes all the time would else never
be served; for the next call it counts as stale.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias

#: Most zygotes that wait for calls; beyond it the one that was used longest ago goes.
MOST_ZYGOTES: Final = 64
#: How long a script that did not compile is not tried again: what has to be mended may be another file.
FAILURE_S: Final = 5.0
#: The kernel stamps files with a clock that is behind by up to a tick, 10 ms at 100 Hz; and as much again.
CLOCK_TICK_NS: Final = 20_000_000
#: A warm process that ends younger than this counts as one that cannot live.
YOUNG_S: Final = 1.0
#: Pause before another is started in its place, doubled each time ...
BACKOFF_START_S: Final = 0.5
#: ... up to this.
BACKOFF_LIMIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Signature:
    """By what a change of a file is noticed.

    Attributes:
        mtime_ns: When its content changed, as it says itself.
        ctime_ns: When it changed, as the kernel says.
        size: In bytes.
        inode: Which file of the disk it is.
    """

    mtime_ns: int
    ctime_ns: int
    size: int
    inode: int


#: Files as they are now; None for one that is missing.
Signatures: TypeAlias = Mapping[str, Signature | None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a zygote is made of; calls of equal recipes share one.

    Attributes:
        file: The script's path.
        settings: Everything else that it is made with, in one text.
        compile_timeout_s: How long it may take to be ready.
    """

    file: str
    settings: str
    compile_timeout_s: float


@dataclass(frozen=True, slots=True)
class Goods:
    """What a warm process is made of.

    Attributes:
        file: The script's path.
        settings: Everything else that it is made with, in one text.
        arguments: Its arguments, which are those of every call.
        wanted: How many are kept.
    """

    file: str
    settings: str
    arguments: tuple[str, ...]
    wanted: int


# --- actions


@dataclass(frozen=True, slots=True)
class Compile:
    """Start a zygote."""

    zygote: int
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class HandOver:
    """Have this call's script forked by this zygote."""

    call: int
    zygote: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """This call's script cannot run."""

    call: int
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Write into the log that this does not compile."""

    recipe: Recipe
    reason: str


@dataclass(frozen=True, slots=True)
class EndZygote:
    """Nobody needs this zygote any more."""

    zygote: int


@dataclass(frozen=True, slots=True)
class StartWarm:
    """Start a process that waits for its call."""

    process: int
    goods: Goods


@dataclass(frozen=True, slots=True)
class GiveWarm:
    """This call gets this process."""

    call: int
    process: int


@dataclass(frozen=True, slots=True)
class SpawnAfresh:
    """This call gets a process of its own."""

    call: int


@dataclass(frozen=True, slots=True)
class EndWarm:
    """Nobody will call this process."""

    process: int


Action: TypeAlias = (
    Compile | HandOver | Refuse | Failed | EndZygote | StartWarm | GiveWarm | SpawnAfresh | EndWarm
)


# --- zygotes


class Phase(Enum):
    """Where in its life a zygote is."""

    COMPILING = "compiling"
    READY = "ready"
    RETIRED = "retired"


@dataclass(slots=True)
class _Zygote:
    number: int
    recipe: Recipe
    #: When it was asked for, by both clocks.
    since_s: float
    since_ns: int
    #: The script's own file, as it was before it could be read.
    script: Signature | None
    phase: Phase = Phase.COMPILING
    waiting: list[int] = field(default_factory=list)
    signatures: Signatures = field(default_factory=dict)
    #: Whether a file may have changed while it was being read.
    doubtful: bool = False
    children: int = 0
    used_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    script: Signature | None
    until_s: float


class Nursery:
    """The zygotes, and what is to be done about them."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        #: Those that calls can get or wait for.
        self._current: dict[Recipe, _Zygote] = {}
        #: All that live, retired ones too.
        self._all: dict[int, _Zygote] = {}
        self._failures: dict[Recipe, _Failure] = {}

    def files(self, recipe: Recipe) -> Collection[str]:
        """Tell which files must be looked up before one asks for a script."""
        zygote = self._current.get(recipe)
        return {recipe.file, *(zygote.signatures if zygote else ())}

    def asked(
        self, recipe: Recipe, call: int | None, seen: Signatures, now_s: float, wall_ns: int
    ) -> list[Action]:
        """A script is wanted.

        Args:
            recipe: Which one.
            call: For which call; None to have it compiled before the first call.
            seen: The files of :meth:`files` as they are now.
            now_s: The time, by the clock of all other facts.
            wall_ns: The time by which files are stamped, in nanoseconds since the epoch.
        """
        actions: list[Action] = []
        zygote = self._current.get(recipe)
        if zygote is not None and zygote.phase is Phase.READY and _stale(zygote, seen):
            actions += self._retire(zygote)
            zygote = None
        if zygote is None:
            failure = self._failures.pop(recipe, None)
            if failure is not None and failure.script == seen[recipe.file] and now_s < failure.until_s:
                self._failures[recipe] = failure
                return [*actions, *([Refuse(call, failure.reason)] if call is not None else [])]
            zygote = _Zygote(next(self._numbers), recipe, now_s, wall_ns, seen[recipe.file])
            self._current[recipe] = self._all[zygote.number] = zygote
            actions += [*self._make_room(), Compile(zygote.number, recipe)]
        if call is None:
            return actions
        if zygote.phase is Phase.COMPILING:
            zygote.waiting.append(call)
            return actions
        return [*actions, self._hand_over(zygote, call, now_s)]

    def forget(self, call: int) -> None:
        """A call waits no longer."""
        for zygote in self._current.values():
            if call in zygote.waiting:
                zygote.waiting.remove(call)

    def ready(self, number: int, signatures: Signatures, now_s: float) -> list[Action]:
        """A zygote has compiled its script.

        Args:
            number: Which one.
            signatures: Every file that it has read, looked up just now.
            now_s: The time.
        """
        zygote = self._all.get(number)
        if zygote is None or zygote.phase is not Phase.COMPILING:
            return []
        zygote.phase = Phase.READY
        zygote.signatures = signatures
        zygote.doubtful = any(
            each is not None and each.ctime_ns >= zygote.since_ns - CLOCK_TICK_NS
            for each in signatures.values()
        )
        zygote.used_s = now_s
        waiting, zygote.waiting = zygote.waiting, []
        return [*(self._hand_over(zygote, call, now_s) for call in waiting), *self._make_room()]

    def child_ended(self, number: int) -> list[Action]:
        """A process that a zygote has forked, or was to fork, is over."""
        zygote = self._all.get(number)
        if zygote is None:
            return []
        zygote.children -= 1
        if zygote.phase is Phase.RETIRED and not zygote.children:
            return [self._end(zygote)]
        return self._make_room()

    def ended(self, number: int, reason: str, now_s: float) -> list[Action]:
        """A zygote has ended, or could not be started.

        Args:
            number: Which one.
            reason: What the compiler, or the system, has said; for those who wait.
            now_s: The time.
        """
        zygote = self._all.pop(number, None)
        if zygote is None:
            return []
        if zygote.phase is Phase.COMPILING:
            return self._fail(zygote, reason, now_s)
        if self._current.get(zygote.recipe) is zygote:
            del self._current[zygote.recipe]
        return []

    def overdue(self, now_s: float) -> list[Action]:
        """End the compilations that take too long."""
        actions: list[Action] = []
        for zygote in [each for each in self._current.values() if _deadline_s(each) <= now_s]:
            limit_s = zygote.recipe.compile_timeout_s
            reason = f"{zygote.recipe.file} was not compiled within {limit_s:g} s (compile_timeout)"
            actions += [self._end(zygote), *self._fail(zygote, reason, now_s)]
        return actions

    def next_s(self) -> float:
        """Tell when :meth:`overdue` is to be asked; infinity for not at all."""
        return min(map(_deadline_s, self._current.values()), default=float("inf"))

    def _hand_over(self, zygote: _Zygote, call: int, now_s: float) -> HandOver:
        zygote.children += 1
        zygote.used_s = now_s
        return HandOver(call, zygote.number)

    def _fail(self, zygote: _Zygote, reason: str, now_s: float) -> list[Action]:
        del self._current[zygote.recipe]
        self._failures[zygote.recipe] = _Failure(reason, zygote.script, now_s + FAILURE_S)
        return [Failed(zygote.recipe, reason), *(Refuse(call, reason) for call in zygote.waiting)]

    def _make_room(self) -> list[Action]:
        """Retire those that are too many, as far as they are idle."""
        idle = [each for each in self._current.values() if each.phase is Phase.READY and not each.children]
        idle.sort(key=lambda each: each.used_s)
        too_many = max(0, len(self._current) - MOST_ZYGOTES)
        return [action for zygote in idle[:too_many] for action in self._retire(zygote)]

    def _retire(self, zygote: _Zygote) -> list[Action]:
        zygote.phase = Phase.RETIRED
        del self._current[zygote.recipe]
        return [] if zygote.children else [self._end(zygote)]

    def _end(self, zygote: _Zygote) -> EndZygote:
        del self._all[zygote.number]
        return EndZygote(zygote.number)


def _stale(zygote: _Zygote, seen: Signatures) -> bool:
    return zygote.doubtful or any(seen[file] != known for file, known in zygote.signatures.items())


def _deadline_s(zygote: _Zygote) -> float:
    if zygote.phase is not Phase.COMPILING:
        return float("inf")
    return zygote.since_s + zygote.recipe.compile_timeout_s


# --- warm processes


@dataclass(slots=True)
class _Shelf:
    """The warm processes of one kind."""

    script: Signature | None
    #: Each with the moment of its start; those that can be given away are in ``waiting`` too.
    processes: dict[int, float] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)
    failures: int = 0
    not_before_s: float = 0.0


class Stock:
    """The warm processes, and what is to be done about them."""

    def __init__(self, numbers: Iterable[int]) -> None:
        """Start with none.

        Args:
            numbers: By which new processes are known.
        """
        self._numbers = iter(numbers)
        self._shelves: dict[Goods, _Shelf] = {}

    def keep(self, goods: Goods, script: Signature | None, now_s: float) -> list[Action]:
        """From now on some of these are kept; to say so again changes nothing.

        Args:
            goods: What is wanted.
            script: The script's file as it is now.
            now_s: The time.
        """
        shelf = self._shelves.setdefault(goods, _Shelf(script))
        return self._fill(goods, shelf, now_s)

    def asked(self, goods: Goods, call: int, script: Signature | None, now_s: float) -> list[Action]:
        """A call wants one.

        Args:
            goods: What it wants; if they are not kept it gets a process of its own.
            call: Which call.
            script: The script's file as it is now.
            now_s: The time.
        """
        shelf = self._shelves.get(goods)
        if shelf is None:
            return [SpawnAfresh(call)]
        actions: list[Action] = []
        if shelf.script != script:
            actions += map(EndWarm, shelf.processes)
            shelf = self._shelves[goods] = _Shelf(script)
        if shelf.waiting:
            process = shelf.waiting.pop(0)
            del shelf.processes[process]
            shelf.failures = 0
            actions.append(GiveWarm(call, process))
        else:
            actions.append(SpawnAfresh(call))
        return actions + self._fill(goods, shelf, now_s)

    def started(self, process: int) -> None:
        """A warm process runs, and can be given away."""
        for shelf in self._shelves.values():
            if process in shelf.processes:
                shelf.waiting.append(process)

    def ended(self, process: int, now_s: float) -> list[Action]:
        """A warm process has ended before it was given away, or could not be started."""
        for goods, shelf in self._shelves.items():
            if process in shelf.processes:
                self._lose(shelf, process, now_s)
                return self._fill(goods, shelf, now_s)
        return []

    def due(self, now_s: float) -> list[Action]:
        """Start those whose pause is over."""
        return [a for goods, shelf in self._shelves.items() for a in self._fill(goods, shelf, now_s)]

    def next_s(self) -> float:
        """Tell when :meth:`due` is to be asked; infinity for not at all."""
        lacking = (s.not_before_s for goods, s in self._shelves.items() if len(s.processes) < goods.wanted)
        return min(lacking, default=float("inf"))

    def _lose(self, shelf: _Shelf, process: int, now_s: float) -> None:
        young = now_s - shelf.processes.pop(process) < YOUNG_S
        if process in shelf.waiting:
            shelf.waiting.remove(process)
        shelf.failures = shelf.failures + 1 if young else 0
        if young:
            pause_s = min(BACKOFF_LIMIT_S, BACKOFF_START_S * 2 ** min(shelf.failures - 1, 10))
            shelf.not_before_s = now_s + pause_s

    def _fill(self, goods: Goods, shelf: _Shelf, now_s: float) -> list[Action]:
        if now_s < shelf.not_before_s:
            return []
        lacking = [next(self._numbers) for _ in range(goods.wanted - len(shelf.processes))]
        shelf.processes |= dict.fromkeys(lacking, now_s)
        return [StartWarm(process, goods) for process in lacking]
