"""Sites: a pool that serves VICIdial's calls, with its tables, and what calls do there.

Laws:
    * Whatever a site plays it sees to the end: until the pool has written its record of the call, so that
      nothing of it can come later.
    * A difference is told together with what the pool logged meanwhile.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mariadb import MariaDBServer
from service import PoolService
from vicidial_database import PATIENT, pool_databases, pool_route

from .comparing import Change, compare, net_changes
from .playing import Scenario, Session, play, wrong_commands
from .tables import Engines, Tables, queue_forwarder

#: How a server behaves whose operator relaxed it for VICIdial, and how one does that was set up by the book.
RELAXED: Final = "NO_ENGINE_SUBSTITUTION"
STRICT: Final = "STRICT_TRANS_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO"

#: Puts a Session into motion, or several, at the moments that matter to a test.
Start = Callable[[Sequence[Session]], None]


@dataclass(frozen=True)
class Variant:
    """A kind of database server on which all calls must leave the same rows.

    Attributes:
        name: For the names of tests.
        sql_mode: The server's own.
        engines: The tables' storage engines.
    """

    name: str
    sql_mode: str
    engines: Engines

    def __str__(self) -> str:
        return self.name


RELAXED_AS_GIVEN: Final = Variant("relaxed", RELAXED, Engines.AS_GIVEN)
STRICT_AS_GIVEN: Final = Variant("strict", STRICT, Engines.AS_GIVEN)
RELAXED_MYISAM: Final = Variant("myisam", RELAXED, Engines.MYISAM)
STRICT_INNODB: Final = Variant("innodb", STRICT, Engines.INNODB)


@dataclass(frozen=True)
class Host:
    """A MariaDB server, and where QueueMetrics is looked for on it."""

    server: MariaDBServer
    queue_host: str

    @classmethod
    @contextmanager
    def running(cls, server: MariaDBServer) -> Iterator[Host]:
        """Start a server and its forwarder."""
        with server, queue_forwarder(server.port) as forwarder:
            yield cls(server, forwarder.host)


@dataclass(frozen=True)
class Ends:
    """How calls ended.

    Attributes:
        records: The pool's records of them.
        logged: All that the pool logged meanwhile.
    """

    records: list[dict[str, str]] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)

    @property
    def bad(self) -> list[str]:
        """The records of those that did not end well."""
        return [str(each) for each in self.records if each["outcome"] != "ok"]


class Site:
    """One pool and its tables.

    Attributes:
        tables: They.
        pool: It.
    """

    def __init__(self, tables: Tables, pool: PoolService) -> None:
        self.tables = tables
        self.pool = pool

    def differences(self, *scenarios: Scenario) -> list[str]:
        """Play calls one after another, and say where they do not do what each does alone.

        Args:
            scenarios: With different numbers, if there are several; the settings are the first one's.
        """
        return self.differences_of_chains([scenarios])

    def differences_of_chains(self, chains: Sequence[Sequence[Scenario]]) -> list[str]:
        """Play chains of calls at once, in each one call after another; see :meth:`differences`."""

        def play_all(chain: Sequence[Scenario]) -> list[str]:
            return [
                line for each in chain for line in wrong_commands(each, play(self.pool.address, each.agi))
            ]

        scenarios = [each for chain in chains for each in chain]
        with self.watched(scenarios) as wrong, ThreadPoolExecutor(len(chains)) as threads:
            for lines in threads.map(play_all, chains):
                wrong += lines
        return wrong

    def differences_at_once(self, scenarios: Sequence[Scenario], copies: int, start: Start) -> list[str]:
        """Play each call several times at the same moment, and say where it does more or less than once.

        Args:
            scenarios: With different numbers.
            copies: How often each is played.
            start: Sets the sessions in motion, which are in the order of the scenarios.
        """
        with self.watched(scenarios, copies) as wrong:
            calls = [each for each in scenarios for _ in range(copies)]
            for each, commands in zip(calls, self.play_at_once(calls, start), strict=True):
                wrong += wrong_commands(each, commands)
        return wrong

    def play_at_once(self, calls: Sequence[Scenario], start: Start) -> list[list[str]]:
        """Play calls at once and give the commands of each; see :meth:`differences_at_once`."""
        with ExitStack() as stack:
            sessions = [stack.enter_context(Session(self.pool.address, each.agi)) for each in calls]
            threads = stack.enter_context(ThreadPoolExecutor(len(sessions)))
            commands = [threads.submit(session.commands) for session in sessions]
            start(sessions)
            return [each.result() for each in commands]

    @contextmanager
    def watched(self, scenarios: Sequence[Scenario], copies: int = 1) -> Iterator[list[str]]:
        """Load scenarios, let the caller play them, and compare what became of the rows.

        Args:
            scenarios: With different numbers, if there are several.
            copies: How often the caller plays each.

        Yields:
            A list; the caller may add to it, and it has all differences at the end.
        """
        began_s = self.tables.load(*scenarios)
        before, wrong = self.tables.snapshot(), list[str]()
        with self.ended(copies * len(scenarios)) as ends:
            yield wrong
        took_s = time.time() - began_s
        changes = net_changes(before, self.tables.snapshot())
        for scenario, own in _shared_out(changes, scenarios):
            wrong += [f"{scenario.id}: {line}" for line in compare(scenario.changes, own, began_s, took_s)]
        wrong += ends.bad
        wrong += ends.logged if wrong else []

    @contextmanager
    def ended(self, calls: int) -> Iterator[Ends]:
        """Wait at the end until the pool has recorded so many calls.

        Yields:
            How they ended; filled when they have.
        """
        known, logged = self._recorded(), len(self.pool.logged())
        ends = Ends()
        yield ends
        self.pool.await_that(lambda: self._recorded() >= known + calls, f"has recorded {calls} calls")
        ends.records.extend(self.pool.access_lines()[known:])
        ends.logged.extend(self.pool.logged()[logged:].splitlines())

    def _recorded(self) -> int:
        """Count records; one of which only a part can be read yet is none."""
        path = self.pool.access_path
        return path.read_bytes().count(b"\n") if path.exists() else 0


def _shared_out(
    changes: Iterable[Change], scenarios: Sequence[Scenario]
) -> Iterable[tuple[Scenario, list[Change]]]:
    """Give each change to the call that it belongs to; what belongs to none goes to the last."""
    shares: list[tuple[Scenario, list[Change]]] = [(each, []) for each in scenarios]
    for change in changes:
        row = {**change.old, **change.new}
        own = next((share for scenario, share in shares[:-1] if scenario.spoken_of_in(row)), shares[-1][1])
        own.append(change)
    return shares


class Sites:
    """Opens sites, and ends them all; use it with ``with``.

    Args:
        hosts: Gives the server with a SQL mode.
    """

    def __init__(self, hosts: Callable[[str], Host]) -> None:
        self._hosts = hosts
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def open(self, variant: Variant, workers: int = 2, settings_ttl_s: float = 0.0, **options: Any) -> Site:
        """Make databases and start a pool.

        Args:
            variant: The kind of database server.
            workers: The pool's.
            settings_ttl_s: How long the pool may trust settings that it has read.
            options: Further options of the handler.
        """
        # A socket's path must be short.
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pool-", dir="/tmp")))
        (folder / "logs").mkdir()
        host = self._hosts(variant.sql_mode)
        # The folder's name is no other site's, and a database's name wants no dash.
        name = folder.name.replace("-", "_")
        tables = self._stack.enter_context(Tables(host.server, name, variant.engines, host.queue_host))
        route = pool_route(folder / "logs", settings_ttl=settings_ttl_s, **options)
        databases = pool_databases(tables.url, **PATIENT)
        pool = PoolService(folder, folder, [route], {"workers": workers, "databases": databases})
        pool.start()
        self._stack.callback(partial(_end, pool))
        # What a start says must not be taken for what a call has caused.
        pool.await_log(r"worker=\d+ gen=1 pid=\d+ serves$", times=workers)
        return Site(tables, pool)


def _end(pool: PoolService) -> None:
    try:
        pool.stop()
        pool.await_that_all_ended()
    finally:
        pool.kill()
