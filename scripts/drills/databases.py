"""Drills about a database: one that is slow, and one that is away."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

# The tests' MariaDB server of one's own is the drills' too, as it is the benchmark's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import pymysql
from mariadb import PASSWORD, USER, MariaDBMissingError, MariaDBServer, find_mariadb

from drills.callers import SERVED, Callers
from drills.pool import DrillPool, route
from drills.setting import Setting
from drills.telling import CannotDrill, check

_NAME: Final = "drill"
_LOCK: Final = "drill"


@contextmanager
def _server() -> Iterator[MariaDBServer]:
    """Run a MariaDB server with one empty database.

    Raises:
        CannotDrill: There is none.
    """
    try:
        programs = find_mariadb()
    except MariaDBMissingError as error:
        raise CannotDrill(f"no MariaDB: {error}") from error
    with MariaDBServer(programs) as server:
        server.execute(f"CREATE DATABASE {_NAME}")
        yield server


@contextmanager
def _lock(server: MariaDBServer) -> Iterator[Callable[[], object]]:
    """Hold a lock as another program; give what lets go of it."""
    connection = pymysql.connect(host="127.0.0.1", port=server.port, user=USER, password=PASSWORD)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(%s, 0)", (_LOCK,))
        yield partial(cursor.execute, "SELECT RELEASE_LOCK(%s)", (_LOCK,))


def slow_database(setting: Setting) -> None:
    """A handler's statement takes seconds: here it waits for a lock that another program holds.

    While it lasts, `calls` shows the call in the database with its statement, and the clocks say that
    neither Asterisk nor the script is to blame. After the route's `slow_after` the slow log has it too.
    Other calls of the worker go on.
    """
    tell = setting.tell
    slow_route = {
        **route("sleeps_in_database", lock=_LOCK),
        "databases": [_NAME],
        "slow_after": "500ms",
    }
    with _server() as server, _lock(server) as let_go:
        databases = {_NAME: {"url": server.url(_NAME, PASSWORD)}}
        routes = [route("quick"), slow_route]
        with DrillPool(setting.folder, routes, databases=databases) as pool, Callers(pool.url) as callers:
            pool.run()
            callers.keep_calling("quick", setting.telephones)
            tell.does(f"{setting.telephones} telephones call on and on; one call's statement waits")
            callers.place("sleeps_in_database")
            slow = pool.await_lines(
                r" slow call=\S+ route=sleeps_in_database (.*\n)*?  statement: .*GET_LOCK"
            )
            seen = pool.command("calls", "--route", "sleeps_in_database")
            check(
                "in database" in seen.text and "GET_LOCK" in seen.text, "calls shows the statement", seen.text
            )
            tell.sees(seen, pool.command("db"))
            tell.reads(slow)
            let_go()
            pool.await_that(lambda: pool.metric("fastagi_slow_calls_total") == 1, "the metric counts it")
            mine = {"route": "sleeps_in_database", "outcome": "ok"}
            pool.await_that(lambda: pool.metric("fastagi_calls_total", **mine) == 1, "the call has ended")
            tell.sees(
                pool.get("/metrics").only(
                    r'^fastagi_(slow_calls_total|call_time_seconds_total)\{.*route="sleeps_in_database"'
                )
            )
            callers.finish()
            setting.expect_service(callers)
            tell.heard(callers.counts)
            check(set(callers.counts) == {SERVED}, "every call is served", str(callers.counts))
            tell.recovers("the lock is free, and the call is served; the others have noticed nothing")


def database_away(setting: Setting) -> None:
    """The database server is stopped.

    Calls that need it fail truthfully and at once: FAGI_STATUS=DBDOWN. The others go on, so the pool stays
    ready. When the database is back, so are its calls, without any restart.
    """
    tell = setting.tell
    asks = {**route("asks_database"), "databases": [_NAME]}
    with _server() as server:
        databases = {_NAME: {"url": server.url(_NAME, PASSWORD)}}
        routes = [route("quick"), asks]
        with DrillPool(setting.folder, routes, databases=databases) as pool, Callers(pool.url) as callers:
            pool.run()
            setting.expect_service(callers, "asks_database")
            tell.does(f"{setting.telephones} telephones call on and on; MariaDB is stopped")
            callers.keep_calling("asks_database", setting.telephones)
            callers.keep_calling("quick", 1)
            server.stop()
            pool.await_that(lambda: pool.metric("fastagi_database_up") == 0, "the metric says so")
            tell.sees(
                pool.command("db"),
                pool.command("status"),
                pool.get("/readyz"),
                pool.get("/metrics").only("^fastagi_database_(up|down_workers|failures_total)"),
            )
            tell.reads(pool.await_lines(r"DatabaseUnavailable: .*Can't connect to MySQL server"))
            before = callers.call("asks_database").variables
            check(before.get("FAGI_STATUS") == "DBDOWN", "a call is told so", str(before))
            tell.does("MariaDB is started again")
            server.start()
            pool.await_that(
                lambda: callers.call("asks_database").variables.get("SERVED") == "yes", "calls find it again"
            )
            pool.await_that(lambda: pool.metric("fastagi_database_up") == 1, "the metric says so")
            callers.finish()
            setting.expect_service(callers, "asks_database")
            tell.sees(pool.command("db"))
            tell.heard(callers.counts)
            setting.expect_truth(callers)
            told = {SERVED, "FAILURE, FAGI_STATUS=DBDOWN"}
            check(set(callers.counts) <= told, "nobody hears anything else", str(callers.counts))
            tell.recovers("by itself: the workers open their connections anew")
