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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import gevent
from gevent.event import Event
from gevent.monkey import get_original
from gevent.os import tp_read
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import QueuePool

from fastagi_pool.database import Database, DatabaseSettings, Lease, TryAgain
from fastagi_pool.errors import CallHangup, CallStopped, CallTimeout, DatabaseUnavailable

POOL_SIZE: Final = 4
KILLS: Final = 1_000
#: Some steps are so short that few kills meet them: there are more kills until each was met, up to so many.
MOST_KILLS: Final = 5_000
STEPS: Final = frozenset(
    {"answer", "fetch", "packet", "commit", "rollback", "connect", "waiting for a place"}
)
SEED: Final = 20_240_229

ASK: Final = text("SELECT SLEEP(0.002), :token")
INSERT: Final = text("INSERT INTO seen (token) VALUES (:token)")
STREAM: Final = text("SELECT SLEEP(0.0005), :token, REPEAT('x', 20000) FROM seq_1_to_10")
LONG: Final = text("SELECT :token, LENGTH(:ballast)")
BALLAST: Final = "x" * 4_000_000
#: More than the socket buffers of both sides hold, and less than the server's max_allowed_packet.
FLOOD: Final = "x" * 15_000_000

#: Bounds what comes within a second unless it is broken.
PATIENCE_S: Final = 30.0
#: How long a server may say nothing where that is what matters: the machine may keep it from its work, too.
SHORT_S: Final = 1.5
HALF: Final = text("INSERT INTO pair VALUES (:token, :half)")
COUNT_PAIRS: Final = text("SELECT COUNT(*), 2 * COUNT(DISTINCT token) FROM pair")
LOCK: Final = "SELECT id FROM held WHERE id = 1 FOR UPDATE"
WAIT_LONG: Final = "SET SESSION innodb_lock_wait_timeout = 300"
CONNECTIONS: Final = text("SHOW GLOBAL STATUS LIKE 'Connections'")
STATEMENTS: Final = text(
    "SELECT COUNT(*) FROM information_schema.processlist"
    " WHERE db = DATABASE() AND id <> CONNECTION_ID() AND command = 'Query'"
)
TRANSACTIONS: Final = text(
    "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id <> CONNECTION_ID()"
)

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
        "answers_of": "packet",
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
    while killed < KILLS or (killed < MOST_KILLS and not callers.killed.keys() >= STEPS):
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
        spared=sorted(STEPS - callers.killed.keys()),
        answered=callers.answered,
        wrong=callers.wrong,
        errors=dict(callers.errors),
        checked_out=pool.checkedout(),
        answers_of_all=answers_of_all(database),
        connections=pool.checkedin(),
        complaints_of_destructors=complaints,
        leaked_descriptors=await_no_more(descriptors),
    )


def open_descriptors() -> int:
    """Count the files and sockets of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def await_no_more(descriptors: int) -> int:
    """Wait until no more are open than that; tell how many more are in the end."""
    give_up_s = time.monotonic() + PATIENCE_S
    # By a connection of its own the monitor may still be ending the last statements.
    while (more := open_descriptors() - descriptors) > 0 and time.monotonic() < give_up_s:
        gevent.sleep(0.01)
    return more


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
    say(
        first_s=first_s,
        then_s=then_s,
        refused=refused,
        errors=dict(errors),
        available=database.available,
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
    # Now: of a frozen server one that has been idle for some milliseconds would be pinged.
    connection = lease.connect()
    say(ready=True)
    tp_read(sys.stdin.fileno(), 100)
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


class Outcomes:
    """Greenlets that wait for a database, each in its own way, and what came of it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._greenlets: list[gevent.Greenlet] = []
        self.told: dict[str, str] = {}

    def expect(self, name: str, work: Work) -> None:
        """Begin one, and go on once it waits."""

        def run() -> None:
            lease = self._database.lease()
            try:
                work(lease, 1)
            except Exception as error:
                doubt = " in doubt" if isinstance(error, TryAgain) and error.in_doubt else ""
                self.told[name] = type(error).__name__ + doubt
            else:
                self.told[name] = "served"
            finally:
                lease.release()

        self._greenlets.append(gevent.spawn(run))
        gevent.sleep(0.02)

    def join(self) -> None:
        """Wait for all of them."""
        gevent.joinall(self._greenlets, timeout=PATIENCE_S)


def sleep_in_statement(lease: Lease, _: int) -> int:
    """Wait for an answer."""
    with lease.connect() as connection:
        return int(connection.execute(text("SELECT SLEEP(300)")).scalar_one())


def sleep_in_packet(lease: Lease, _: int) -> int:
    """Wait for the answer to a packet."""
    return len(lease.round_trip([("SELECT SLEEP(300)", ())]))


def wait_for_a_place(lease: Lease, _: int) -> int:
    """Want a connection."""
    lease.connect()
    return 0


def silenced(database: Database) -> None:
    """Wait for a server in every way while the test silences it; then see that it is found again."""
    database.open()
    outcomes = Outcomes(database)
    begun, go_on = Event(), Event()
    sent = database.statements

    def commit_late(lease: Lease, _: int) -> int:
        with lease.begin() as connection:
            connection.execute(text("SELECT 1"))
            begun.set()
            go_on.wait()
        return 0

    def idle(lease: Lease, _: int) -> int:
        lease.connect()
        gevent.sleep(PATIENCE_S)
        return 0

    outcomes.expect("statement", sleep_in_statement)
    outcomes.expect("packet", sleep_in_packet)
    outcomes.expect("commit", commit_late)
    idle_lease = database.lease()
    idler = gevent.spawn(idle, idle_lease, 1)
    gevent.sleep(0.02)
    outcomes.expect("place", wait_for_a_place)
    # Each may have had to wait for an answer to a ping before it could send its statement.
    with gevent.Timeout(PATIENCE_S):
        begun.wait()
        while database.statements < sent + 3 or not database.facts().waiting:
            gevent.sleep(0.001)
    say(ready=True)
    tp_read(sys.stdin.fileno(), 100)
    go_on.set()
    outcomes.join()
    facts = database.facts()
    outcomes.expect("later", ask)
    say(told=outcomes.told, available=database.available, reason=facts.down_reason, away=facts.down_s > 0.0)
    tp_read(sys.stdin.fileno(), 100)
    with gevent.Timeout(PATIENCE_S):
        while not database.available:
            gevent.sleep(0.01)
    idler.kill()
    idle_lease.release()
    say(down_s=database.facts().down_s, answers_of_all=answers_of_all(database))


def connecting(database: Database) -> None:
    """Want a first connection to a server that takes connections and never says a word."""
    outcomes = Outcomes(database)
    for number in range(POOL_SIZE + 2):
        outcomes.expect(str(number), wait_for_a_place)
    outcomes.join()
    say(told=sorted(outcomes.told.values()), available=database.available)


def busy(database: Database) -> None:
    """Let a statement take long, and the loop stand still: the server is busy, and nobody is refused."""
    database.open()
    with database.lease().connect() as connection:
        asked = int(connection.execute(CONNECTIONS).one()[1])
        waited = connection.execute(text("SELECT SLEEP(5)")).scalar_one()
        asked = int(connection.execute(CONNECTIONS).one()[1]) - asked
    # Its patience is over in every turn of the loop, and must not be counted in seconds.
    hasty = Database(replace(database.settings, probe_timeout_s=0.1))
    sleeper = gevent.spawn(sleep_in_statement, hasty.lease(), 1)
    stand_still = get_original("time", "sleep")
    for _ in range(40):
        stand_still(0.12)
        gevent.sleep(0.001)
    late = hasty.facts()
    sleeper.kill()
    available = database.available and hasty.available
    say(waited=waited, asked=asked, statements=late.statements, available=available, failures=late.failures)
    hasty.close()


@contextmanager
def locked_row(database: Database) -> Iterator[None]:
    """Hold a lock: who waits for it never sees that its client is gone, as one that sleeps would."""
    with database.lease().begin() as connection:
        connection.execute(text("CREATE TABLE held (id INT PRIMARY KEY) ENGINE = InnoDB"))
        connection.execute(text("INSERT INTO held VALUES (1)"))
    lease = database.lease()
    lease.connect().execute(text(LOCK))
    yield
    lease.release()


def lock_in_statement(lease: Lease, _: int) -> int:
    """Wait for the lock."""
    with lease.connect() as connection:
        connection.execute(text(WAIT_LONG))
        return int(connection.execute(text(LOCK)).scalar_one())


def lock_in_packet(lease: Lease, _: int) -> int:
    """Wait for it in a packet."""
    return len(lease.round_trip([(WAIT_LONG, ()), (LOCK, ())]))


def outlived(database: Database) -> None:
    """Give statements up in the middle; the server shall not go on with them."""
    with locked_row(database):
        for work in (lock_in_statement, lock_in_packet):
            lease = database.lease()
            try:
                with gevent.Timeout(0.1):
                    work(lease, 1)
            except gevent.Timeout:
                pass
            lease.release()
        forgotten = database.lease()
        gevent.spawn(lock_in_statement, forgotten, 1)
        gevent.sleep(0.1)
        forgotten.release()
        running = await_no_statement(database)
    say(running=running, answers_of_all=answers_of_all(database))


def timed_out(database: Database) -> None:
    """Have the read time-out end a statement; the server shall not go on with it."""
    outcome = "answered"
    with locked_row(database):
        try:
            lock_in_statement(database.lease(), 1)
        except OperationalError as error:
            outcome = str(error.orig)
        running = await_no_statement(database)
    say(outcome=outcome, running=running)


def await_no_statement(database: Database) -> int:
    """Wait until the server is at work on nothing else for this database; tell what is left in the end."""
    give_up_s = time.monotonic() + PATIENCE_S
    while (running := statements_of_others(database)) and time.monotonic() < give_up_s:
        gevent.sleep(0.05)
    return running


def statements_of_others(database: Database) -> int:
    """Count the statements that the server is at work on for this database, besides the counting."""
    with database.lease().connect() as connection:
        return int(connection.execute(STATEMENTS).scalar_one())


def killed_transactions(database: Database) -> None:
    """Kill transactions of two rows at random moments: there are no halves of them, and nothing is left."""
    dice = random.Random(SEED)
    database.open()
    with database.lease().begin() as connection:
        connection.execute(text("CREATE TABLE pair (token BIGINT, half INT) ENGINE = InnoDB"))
    killed: Counter[str] = Counter()
    errors: Counter[str] = Counter()

    def run(number: int) -> None:
        lease = database.lease()
        try:
            dice.choice(PAIRS)(lease, number)
        except gevent.GreenletExit as error:
            killed[where(error)] += 1
        except Exception as error:
            errors[f"{type(error).__name__}: {error}"[:300]] += 1
        finally:
            lease.release()

    for number in range(0, KILLS, POOL_SIZE):
        running = [gevent.spawn(run, number + place) for place in range(POOL_SIZE)]
        for greenlet in running:
            gevent.spawn_later(dice.random() * 0.01, greenlet.kill, block=False)
        gevent.joinall(running)
    answers = answers_of_all(database)
    with gevent.Timeout(PATIENCE_S):
        while statements_of_others(database) or transactions_of_others(database):
            gevent.sleep(0.2)
    with database.lease().connect() as connection:
        rows, pairs = connection.execute(COUNT_PAIRS).one()
    say(
        killed=dict(killed),
        errors=dict(errors),
        rows=rows,
        pairs=pairs,
        answers_of_all=answers,
        statements=statements_of_others(database),
        transactions=transactions_of_others(database),
        connections=database.facts().connected,
        available=database.available,
    )


def write_pair(lease: Lease, number: int) -> int:
    """Write both halves in a transaction, with a pause between them."""
    with lease.begin() as connection:
        for half in (1, 2):
            connection.execute(HALF, {"token": number, "half": half})
            connection.execute(text("SELECT SLEEP(0.001)"))
    return number


def send_pair(lease: Lease, number: int) -> int:
    """Send both halves in a packet, with a pause between them."""
    first, last = (("INSERT INTO pair VALUES (%s, %s)", (number, half)) for half in (1, 2))
    lease.round_trip([first, ("SELECT SLEEP(0.002)", ()), last])
    return number


def transactions_of_others(database: Database) -> int:
    """Count the transactions that are open on the server."""
    with database.lease().connect() as connection:
        return int(connection.execute(TRANSACTIONS).scalar_one())


PAIRS: Final[tuple[Work, ...]] = (write_pair, send_pair)
SCENARIOS: Final = (
    kills,
    restart,
    silence,
    strangers,
    half_sent,
    turns,
    abandoned,
    silenced,
    connecting,
    busy,
    outlived,
    timed_out,
    killed_transactions,
)
#: None of these may be what ends the waiting.
ENDLESS: Final = {"pool_timeout_s": 300.0, "connect_timeout_s": 300.0, "read_timeout_s": 300.0}
#: What a scenario has otherwise than the others.
SETTINGS: Final[dict[str, dict[str, float]]] = {
    # Of a server that is silent one waits for the end of this; of a busy one nobody should.
    "silence": {"connect_timeout_s": 0.5, "probe_timeout_s": 0.5},
    "silenced": {**ENDLESS, "probe_timeout_s": SHORT_S},
    "connecting": {**ENDLESS, "probe_timeout_s": 0.5},
    "busy": {"probe_timeout_s": 1.0},
    "timed_out": {"read_timeout_s": 3.0},
}


def main() -> None:
    """Run the scenario that the command line names."""
    name, url = sys.argv[1:]
    settings = DatabaseSettings(
        "main",
        (url,),
        pool_size=POOL_SIZE,
        pool_timeout_s=20.0,
        idle_ping_s=0.005,
        multi_statements=True,
        # A server that the machine keeps from its work for a second is not away.
        probe_timeout_s=PATIENCE_S,
    )
    database = Database(replace(settings, **SETTINGS.get(name, {})))  # type: ignore[arg-type]
    scenario = {scenario.__name__: scenario for scenario in SCENARIOS}[name]
    scenario(database)
    database.close()


if __name__ == "__main__":
    main()
