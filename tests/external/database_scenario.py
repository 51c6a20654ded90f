"""What many greenlets do to one database, in a process that gevent patched as a worker is.

Run by the tests: ``python database_scenario.py SCENARIO URL``. What it tells goes to standard output, one
JSON object a line; the last line is the result.
"""

# ruff: noqa: E402
from __future__ import annotations

import gevent.monkey

gevent.monkey.patch_all(os=False, signal=False)

import json
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import gevent
from gevent.event import Event
from gevent.os import tp_read
from sqlalchemy import text
from sqlalchemy.pool import QueuePool

from fastagi_pool.database import Database, DatabaseSettings, Lease
from fastagi_pool.errors import CallHangup, CallStopped, CallTimeout, DatabaseUnavailable

POOL_SIZE: Final = 4
KILLS: Final = 1_000
SEED: Final = 20_240_229

ASK: Final = text("SELECT SLEEP(0.002), :token")
INSERT: Final = text("INSERT INTO seen (token) VALUES (:token)")
STREAM: Final = text("SELECT SLEEP(0.0005), :token, REPEAT('x', 20000) FROM seq_1_to_10")
LONG: Final = text("SELECT :token, LENGTH(:ballast)")
BALLAST: Final = "x" * 4_000_000
#: More than the socket buffers of both sides hold, and less than the server's max_allowed_packet.
FLOOD: Final = "x" * 15_000_000

Work = Callable[[Lease, int], int]


def say(**facts: object) -> None:
    """Tell the test."""
    print(json.dumps(facts), flush=True)


def ask(lease: Lease, token: int) -> int:
    """One statement that takes its time."""
    with lease.connect() as connection:
        return int(connection.execute(ASK, {"token": token}).one()[1])


def write(lease: Lease, token: int) -> int:
    """A transaction with a commit."""
    with lease.begin() as connection:
        connection.execute(INSERT, {"token": token})
        return int(connection.execute(ASK, {"token": token}).one()[1])


def stream(lease: Lease, token: int) -> int:
    """Rows that are fetched one by one while the server still sends."""
    with lease.connect() as connection:
        result = connection.execution_options(stream_results=True).execute(STREAM, {"token": token})
        tokens = {int(row[1]) for row in result}
        return tokens.pop() if len(tokens) == 1 else -1


def shout(lease: Lease, token: int) -> int:
    """A statement so long that sending it takes several writes."""
    with lease.connect() as connection:
        return int(connection.execute(LONG, {"token": token, "ballast": BALLAST}).one()[0])


def packet(lease: Lease, token: int) -> int:
    """Several statements in one packet, among them a write and one that takes its time."""
    _, asked, told = lease.round_trip(
        [
            ("INSERT INTO seen (token) VALUES (%s)", (token,)),
            ("SELECT SLEEP(0.002), %s", (token,)),
            ("SELECT %s", (token,)),
        ]
    )
    answers = {int(asked.rows[0][1]), int(told.rows[0][0])}
    return answers.pop() if len(answers) == 1 else -1


def long_packet(lease: Lease, token: int) -> int:
    """A packet so long that sending it takes several writes."""
    return int(lease.round_trip([("SELECT LENGTH(%s)", (BALLAST,)), ("SELECT %s", (token,))])[1].rows[0][0])


WORKS: Final[tuple[Work, ...]] = (ask, ask, ask, write, write, stream, shout, packet, packet, long_packet)


def where(error: BaseException) -> str:
    """Name the step of the conversation in which a greenlet was killed."""
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    steps = {
        "_converse": "packet",
        "_take_slot": "waiting for a place",
        "_on_connect": "connect",
        "_on_checkout": "check",
        "commit": "commit",
        "rollback": "rollback",
        "_read_rowdata_packet_unbuffered": "fetch",
        "_write_bytes": "send",
        "_read_query_result": "answer",
    }
    return next((step for name, step in steps.items() if name in names), "elsewhere")


class Callers:
    """Greenlets that use a database as calls do, and count what they see."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.answered = 0
        self.wrong = 0
        self.killed: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._token = 0
        with database.lease().begin() as connection:
            connection.execute(text("CREATE TABLE seen (token BIGINT)"))

    def call(self, work: Work) -> None:
        """Be one call."""
        self._token += 1
        token = self._token
        lease = self.database.lease()
        try:
            answer = work(lease, token)
        except (gevent.GreenletExit, gevent.Timeout, CallHangup, CallTimeout, CallStopped) as error:
            self.killed[where(error)] += 1
        except Exception as error:
            self.errors[f"{type(error).__name__}: {error}"[:300]] += 1
        else:
            self.answered += 1
            self.wrong += answer != token
        finally:
            if lease.release():
                self.errors["a connection was left open"] += 1


def deaths(dice: random.Random) -> BaseException:
    """Choose what a call is killed by."""
    choices: tuple[BaseException, ...] = (
        gevent.GreenletExit(),
        gevent.Timeout(1.0),
        CallHangup("hangup"),
        CallTimeout("script", 1.0),
        CallStopped("stop"),
    )
    return dice.choice(choices)


def kills(database: Database) -> None:
    """Kill callers at random moments; afterwards every connection must still answer its own question."""
    dice = random.Random(SEED)
    callers = Callers(database)
    database.open()
    descriptors = open_descriptors()
    complaints: list[str] = []
    sys.unraisablehook = lambda complaint: complaints.append(repr(complaint.exc_value))
    running: list[gevent.Greenlet] = []
    killed = 0
    while killed < KILLS:
        running = [greenlet for greenlet in running if not greenlet.dead]
        while len(running) < POOL_SIZE + 2:
            running.append(gevent.spawn(callers.call, dice.choice(WORKS)))
        gevent.sleep(dice.random() * 0.004)
        victim = dice.choice(running)
        if not victim.dead:
            victim.kill(deaths(dice), block=False)
            killed += 1
    gevent.joinall(running)
    pool = database.engine.pool
    assert isinstance(pool, QueuePool)
    say(
        killed=dict(callers.killed),
        answered=callers.answered,
        wrong=callers.wrong,
        errors=dict(callers.errors),
        checked_out=pool.checkedout(),
        answers_of_all=answers_of_all(database),
        connections=pool.checkedin(),
        complaints_of_destructors=complaints,
        leaked_descriptors=open_descriptors() - descriptors,
    )


def open_descriptors() -> int:
    """Count the files and sockets of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def answers_of_all(database: Database) -> list[bool]:
    """Hold all connections at once and ask each one something of its own."""
    lease = database.lease()
    connections = [lease.connect() for _ in range(POOL_SIZE)]
    tokens = [random.getrandbits(60) for _ in connections]
    answers = [
        gevent.spawn(lambda connection, token: connection.execute(ASK, {"token": token}).one()[1], *pair)
        for pair in zip(connections, tokens, strict=True)
    ]
    gevent.joinall(answers, raise_error=True)
    lease.release()
    return [answer.value == token for answer, token in zip(answers, tokens, strict=True)]


def restart(database: Database) -> None:
    """Ask in a loop while the test stops and starts the server; it says ``up`` on our standard input."""
    up, failing = Event(), Event()
    last_failure_s = [0.0] * 20
    failures: Counter[str] = Counter()
    wrong = [0] * len(last_failure_s)

    def caller(number: int) -> None:
        in_a_row = 0
        while not (up.is_set() and in_a_row >= 50):
            token = random.getrandbits(60)
            lease = database.lease()
            try:
                with lease.connect() as connection:
                    wrong[number] += connection.execute(ASK, {"token": token}).one()[1] != token
                in_a_row += 1
            except Exception as error:
                in_a_row = 0
                last_failure_s[number] = time.monotonic()
                failures[type(error).__name__] += 1
                failing.set()
                gevent.sleep(0.01)
            finally:
                lease.release()

    greenlets = [gevent.spawn(caller, number) for number in range(len(last_failure_s))]
    say(ready=True)
    failing.wait()
    say(failing=True)
    tp_read(sys.stdin.fileno(), 100)
    up.set()
    gevent.joinall(greenlets, timeout=20.0)
    say(
        recovered=[greenlet.dead for greenlet in greenlets],
        last_failure_s=max(last_failure_s),
        failures=dict(failures),
        wrong=sum(wrong),
        answers_of_all=answers_of_all(database),
    )


def silence(database: Database) -> None:
    """Let 1,000 calls want a server that takes connections and never says a word."""
    took_s: list[float] = []
    errors: Counter[str] = Counter()

    def caller() -> None:
        started_s = time.monotonic()
        try:
            database.lease().connect()
        except DatabaseUnavailable:
            took_s.append(time.monotonic() - started_s)
        except Exception as error:
            errors[type(error).__name__] += 1

    gevent.joinall([gevent.spawn(caller) for _ in range(1_000)])
    first_s = max(took_s)
    took_s.clear()
    gevent.joinall([gevent.spawn(caller) for _ in range(1_000)])
    refused, then_s = len(took_s), max(took_s)
    while not database.available:
        gevent.sleep(0.01)
    prober = gevent.spawn(caller)
    gevent.sleep(0.05)
    while_probing = database.available
    prober.kill()
    say(
        first_s=first_s,
        then_s=then_s,
        refused=refused,
        errors=dict(errors),
        available_while_probing=while_probing,
        available_after_kill=database.available,
    )


def strangers(database: Database) -> None:
    """Interrupt statements by time-outs that are ordinary exceptions: SQLAlchemy keeps the connection."""
    callers = Callers(database)
    outcomes: Counter[str] = Counter()
    for number in range(60):
        try:
            with gevent.Timeout(0.0005 * (number % 30), ValueError("too slow")):
                callers.call(WORKS[number % len(WORKS)])
        except ValueError:
            outcomes["between calls"] += 1
    say(
        interrupted=callers.errors["ValueError: too slow"],
        others={name: count for name, count in callers.errors.items() if name != "ValueError: too slow"},
        wrong=callers.wrong,
        answers_of_all=answers_of_all(database),
    )


def half_sent(database: Database) -> None:
    """Cut a statement off in the middle of sending it; the test freezes the server meanwhile."""
    database.open()
    lease = database.lease()
    say(ready=True)
    tp_read(sys.stdin.fileno(), 100)
    connection = lease.connect()
    outcome = "answered"
    try:
        with gevent.Timeout(0.3, ValueError("too slow")):
            connection.execute(LONG, {"token": 1, "ballast": FLOOD})
    except ValueError as error:
        outcome = where(error)
    say(outcome=outcome, dropped=connection.invalidated)
    tp_read(sys.stdin.fileno(), 100)
    say(left_open=lease.release(), answers_of_all=answers_of_all(database))


def turns(database: Database) -> None:
    """Let callers wait for a place: one is killed just when its turn comes, one waits beside a greedy one."""
    hog = database.lease()
    places = [hog.connect() for _ in range(POOL_SIZE)]
    order: list[str] = []

    def caller(name: str, times: int) -> None:
        for _ in range(times):
            with database.lease().connect():
                order.append(name)
                gevent.sleep(0)

    killed, next_one = gevent.spawn(caller, "killed", 1), gevent.spawn(caller, "next", 1)
    gevent.sleep(0.05)
    killed.kill(block=False)
    places[0].close()
    gevent.joinall([killed, next_one], timeout=5.0)
    gevent.joinall([gevent.spawn(caller, "greedy", 50), gevent.spawn(caller, "patient", 1)], timeout=5.0)
    hog.release()
    say(order=order)


def abandoned(database: Database) -> None:
    """End a call while a greenlet of its handler is still in the middle of a statement."""
    lease = database.lease()
    outcome: list[str] = []

    def straggler() -> None:
        try:
            with lease.connect() as connection:
                connection.execute(text("SELECT SLEEP(30)"))
        except Exception as error:
            outcome.append(type(error).__name__)

    greenlet = gevent.spawn(straggler)
    gevent.sleep(0)
    while not lease.statements:
        gevent.sleep(0.001)
    started_s = time.monotonic()
    left_open = lease.release()
    greenlet.join()
    say(
        left_open=left_open,
        took_s=time.monotonic() - started_s,
        outcome=outcome,
        answers_of_all=answers_of_all(database),
    )


SCENARIOS: Final = (kills, restart, silence, strangers, half_sent, turns, abandoned)


def main() -> None:
    """Run the scenario that the command line names."""
    name, url = sys.argv[1:]
    settings = DatabaseSettings(
        "main",
        (url,),
        pool_size=POOL_SIZE,
        pool_timeout_s=20.0,
        idle_ping_s=0.005,
        # Of a server that is silent one waits for the end of this; of a busy one nobody should.
        connect_timeout_s=0.5 if name == "silence" else 5.0,
        multi_statements=True,
    )
    database = Database(settings)
    scenario = {scenario.__name__: scenario for scenario in SCENARIOS}[name]
    scenario(database)
    database.close()


if __name__ == "__main__":
    main()
