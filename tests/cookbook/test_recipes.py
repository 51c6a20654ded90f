"""The recipes of docs/handlers.md, each in its good way and with what goes wrong."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from recipes import caller_name, do_not_call, order_status, recording_switch
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.errors import AGIAppError
from fastagi_pool.stage import Stage
from fastagi_pool.testing import HANGUP, AgiStatus, Caller

_TABLES: Final = """
CREATE TABLE orders (number VARCHAR(8), state VARCHAR(20));
INSERT INTO orders VALUES ('4711', 'shipped');
CREATE TABLE contacts (number VARCHAR(20), name VARCHAR(80));
INSERT INTO contacts VALUES ('100', 'Alice Liddell');
CREATE TABLE do_not_call (number VARCHAR(20));
INSERT INTO do_not_call VALUES ('555');
"""

#: Some fifty times what such a process takes.
_LIMIT_S: Final = 60.0
_AS_IN_A_WORKER: Final = """
from gevent import monkey
monkey.patch_all()
import sys
from fastagi_pool.stage import Stage
from recipes import caller_name
with Stage() as stage:
    databases, route = {"main": {"url": sys.argv[1]}}, {"options": {"patience_s": 0.1}}
    result = stage(caller_name, databases=databases, route=route)
    print(result.status.value, result.outcome, result.commands)
"""

Databases = dict[str, dict[str, Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file with the tables of all recipes."""
    with closing(sqlite3.connect(tmp_path / "cookbook.db")) as database:
        database.executescript(_TABLES)
    return tmp_path / "cookbook.db"


@pytest.fixture
def databases(path: Path) -> Databases:
    """The database as the configuration names it."""
    return {"main": {"url": f"sqlite:///{path}", "pool_size": 1}}


# ---- order_status


@pytest.mark.parametrize(
    ("presses", "played"),
    [
        (["4711#"], ["order-shipped"]),
        (["1", "4711#"], ["order-unknown", "order-shipped"]),
        (["1", "", "4711"], ["order-unknown", "order-unknown", "order-shipped"]),
    ],
)
def test_order_status(
    agi_call: Stage, databases: Databases, presses: Sequence[str], played: Sequence[str]
) -> None:
    """An order that is known within three tries is told, and nobody is troubled with it."""
    result = agi_call(order_status, databases=databases, presses=presses)

    assert _words(result.executed, "STREAM", "FILE") == played
    assert _words(result.executed, "EXEC") == []
    assert (result.status, result.faults) == (AgiStatus.SUCCESS, ())


def test_order_status_of_no_order(agi_call: Stage, databases: Databases) -> None:
    """After three numbers that nobody knows the caller is handed to the service."""
    result = agi_call(order_status, databases=databases, presses=["1", "2#", ""])

    assert _words(result.executed, "STREAM", "FILE") == ["order-unknown"] * 3
    assert result.commands[-1] == "EXEC Queue service"
    assert result.faults == ()


def test_order_status_of_a_caller_who_hangs_up(agi_call: Stage, databases: Databases) -> None:
    """A caller who is gone is told nothing."""
    result = agi_call(order_status, databases=databases, presses=[HANGUP])

    assert (result.status, result.outcome, len(result.commands)) == (AgiStatus.HANGUP, "hangup", 2)


def test_order_status_without_a_table(agi_call: Stage, databases: Databases, path: Path) -> None:
    """What the database does not know fails the call: the dialplan and the log are told."""
    _execute(path, "DROP TABLE orders")

    result = agi_call(order_status, databases=databases, presses=["4711"], catch=True)

    assert isinstance(result.error, OperationalError)
    assert (result.status, result.variables["FAGI_STATUS"]) == (AgiStatus.FAILURE, "ERROR")


# ---- caller_name

_PATIENCE: Final = {"options": {"patience_s": 5.0}}
_IMPATIENCE: Final = {"options": {"patience_s": 0.05}}


def test_caller_name_in_time(agi_call: Stage, databases: Databases) -> None:
    """A caller whom the database knows gets his name."""
    result = agi_call(caller_name, databases=databases, route=_PATIENCE)

    assert result.commands == ['SET CALLERID "\\"Alice Liddell\\" <100>"']
    assert (result.status, result.faults) == (AgiStatus.SUCCESS, ())


def test_caller_name_of_a_stranger(agi_call: Stage, databases: Databases) -> None:
    """A caller whom the database does not know keeps the name that he sent."""
    result = agi_call(caller_name, databases=databases, route=_PATIENCE, caller=Caller(number="999"))

    assert (result.commands, result.status) == ([], AgiStatus.SUCCESS)


def caller_name_while_others_ask(call: Call, context: Context) -> None:
    """Look for the name while the only connection is taken, as by slow queries of other calls."""
    with context.connect():
        caller_name(call, context)


def test_caller_name_too_late(agi_call: Stage, databases: Databases) -> None:
    """A database that does not answer in time holds no call, and fails none; the next call is served."""
    result = agi_call(caller_name_while_others_ask, databases=databases, route=_IMPATIENCE)

    assert (result.commands, result.status, result.outcome) == ([], AgiStatus.SUCCESS, "ok")
    again = agi_call(caller_name, databases=databases, route=_PATIENCE)
    assert len(again.commands) == 1


@pytest.mark.mariadb
def test_caller_name_of_a_slow_server(mariadb_url: str) -> None:
    """In a worker, where gevent is patched in, a MariaDB that is held up does not hold up the call."""
    engine = create_engine(mariadb_url)
    with engine.begin() as database:
        database.execute(text("CREATE TABLE contacts (number VARCHAR(20), name VARCHAR(80))"))
        database.execute(text("LOCK TABLES contacts WRITE"))
        done = subprocess.run(
            [sys.executable, "-c", _AS_IN_A_WORKER, mariadb_url],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_S,
        )
        database.execute(text("UNLOCK TABLES"))
    engine.dispose()

    assert (done.stdout, done.stderr) == ("SUCCESS ok []\n", "")


# ---- do_not_call


@pytest.mark.parametrize(("number", "may"), [("555", "0"), ("556", "1"), ("' OR '1'='1", "1"), ("", "1")])
def test_do_not_call(agi_call: Stage, databases: Databases, number: str, may: str) -> None:
    """Who is on the list is not called, and whoever else is."""
    result = agi_call(do_not_call, "check", number, databases=databases)

    assert (result.variables, result.status) == ({"MAY_CALL": may}, AgiStatus.SUCCESS)
    assert result.faults == ()


def test_do_not_call_without_a_list(
    agi_call: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When the database is away nobody is called, and the log says why; the call itself goes well."""
    away = {"main": {"url": f"sqlite:///{tmp_path}/absent/cookbook.db", "required_at_boot": False}}

    result = agi_call(do_not_call, "check", "556", databases=away)

    assert (result.variables, result.status) == ({"MAY_CALL": "0"}, AgiStatus.SUCCESS)
    assert "the list is away: not called" in caplog.text


def test_do_not_call_without_a_number(agi_call: Stage, databases: Databases) -> None:
    """A dialplan that forgets the number gets a failure, and no permission."""
    result = agi_call(do_not_call, databases=databases, catch=True)

    assert isinstance(result.error, IndexError)
    assert "MAY_CALL" not in result.variables
    assert result.status is AgiStatus.FAILURE


# ---- recording_switch


@pytest.mark.parametrize(
    ("presses", "recorded", "command"),
    [
        (["1"], "1", "EXEC MixMonitor 17.4.wav,b"),
        (["2"], "0", "EXEC StopMixMonitor"),
        ([""], "0", "EXEC StopMixMonitor"),
        (["9"], "0", "EXEC StopMixMonitor"),
    ],
)
def test_recording_switch(agi_call: Stage, presses: Sequence[str], recorded: str, command: str) -> None:
    """Only a caller who presses 1 is recorded, under the channel's unique id."""
    result = agi_call(recording_switch, presses=presses, caller=Caller(uniqueid="17.4"))

    assert result.variables["RECORDED"] == recorded
    assert result.commands[1].rstrip() == command
    assert (result.status, result.faults) == (AgiStatus.SUCCESS, ())


def test_recording_switch_without_an_answer(agi_call: Stage) -> None:
    """A caller who hangs up at the question is not recorded."""
    result = agi_call(recording_switch, presses=[HANGUP])

    assert (result.status, len(result.commands)) == (AgiStatus.HANGUP, 1)
    assert "RECORDED" not in result.variables


def test_recording_switch_without_the_application(agi_call: Stage) -> None:
    """An Asterisk that cannot record makes a failure, not a recording that is not there."""
    with pytest.raises(AGIAppError):
        agi_call(recording_switch, presses=["1"], missing_applications=["MixMonitor"])


def _words(executed: Sequence[Any], *name: str) -> list[str]:
    """Return the first argument of each command of this name."""
    return [each.words[len(name)] for each in executed if each.words[: len(name)] == name]


def _execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()
