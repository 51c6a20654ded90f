"""Tables: VICIdial's and QueueMetrics' tables in a MariaDB of the tests' own: made, filled, looked at.

Laws:
    * The tables are emptied before every load, all of them: nothing of one test reaches the next.
    * The rows of other programs are put in as those programs do it: without strict mode.
    * QueueMetrics is looked for on port 3306 alone, so each server has its :class:`Forwarder` there, on an
      address of its own.
"""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pymysql
from mariadb import PASSWORD, USER, MariaDBServer
from pymysql.constants import CLIENT

from .comparing import Snapshot
from .playing import SERVER_IP, Placed, Row, Scenario

_SCHEMA: Final = Path(__file__).resolve().parent / "schema.sql"
_QUEUE_LOG: Final = "queue_log"
_QUEUE_PORT: Final = 3306
#: The pool must not keep a transaction open behind a call: then emptying a table has to wait, and fails.
_SESSION: Final = "SET SESSION sql_mode='NO_ENGINE_SUBSTITUTION', lock_wait_timeout=5"
_CREATE = re.compile(r"CREATE TABLE `(\w+)`.*?ENGINE=(\w+)[^;]*;", re.DOTALL)
_MOMENT = re.compile(r"\{(dt|ep)([+-]\d+)?\}")


class Engines(Enum):
    """Which storage engines the tables have.

    ``AS_GIVEN`` is InnoDB with some MEMORY tables, ``MYISAM`` what VICIdial's installer makes: MyISAM with
    the same MEMORY tables; ``INNODB`` has no MEMORY tables, as clusters want it.
    """

    AS_GIVEN = "as given"
    MYISAM = "MyISAM"
    INNODB = "InnoDB"

    def of(self, engine: str) -> str:
        """Say which engine a table has that is written with this one."""
        if self is Engines.MYISAM and engine == "InnoDB":
            return "MyISAM"
        if self is Engines.INNODB:
            return "InnoDB"
        return engine


class Tables:
    """VICIdial's database and one of QueueMetrics on a server.

    Args:
        server: Where to make them.
        name: VICIdial's; QueueMetrics' is named after it.
        engines: The tables' engines.
        queue_host: The address at which the server can be reached on port 3306.

    Attributes:
        name: VICIdial's.
    """

    def __init__(self, server: MariaDBServer, name: str, engines: Engines, queue_host: str) -> None:
        self.name = name
        self._queue_name = f"{name}_qm"
        self._queue_host = queue_host
        server.execute(f"CREATE DATABASE {name}")
        server.execute(f"CREATE DATABASE {self._queue_name}")
        self._connection = pymysql.connect(
            host="127.0.0.1",
            port=server.port,
            user=USER,
            password=PASSWORD,
            database=name,
            charset="utf8mb4",
            autocommit=True,
            init_command=_SESSION,
            client_flag=CLIENT.MULTI_STATEMENTS,
            cursorclass=pymysql.cursors.DictCursor,
        )
        self._engines: dict[str, str] = {}
        for found in _CREATE.finditer(_SCHEMA.read_text()):
            table, engine = found[1], engines.of(found[2])
            statement = found[0].replace(f"ENGINE={found[2]}", f"ENGINE={engine}")
            if table == _QUEUE_LOG:
                statement = statement.replace(f"`{table}`", f"`{self._queue_name}`.`{table}`", 1)
            self.query(statement)
            self._engines[table] = engine

    def close(self) -> None:
        """Close the connection; the databases stay."""
        self._connection.close()

    def query(self, statement: str, values: Sequence[object] = ()) -> Sequence[Row]:
        """Run one statement in VICIdial's database and give its rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            rows: Sequence[Row] = cursor.fetchall()
            return rows

    def load(self, *scenarios: Scenario) -> int:
        """Empty all tables, and put in what the scenarios want, with the settings of the first.

        Returns:
            The time to which the rows' times refer, in seconds since 1970.
        """
        self._run(self._emptying())
        rows: list[Placed] = [
            ("servers", self._server() | scenarios[0].servers),
            ("system_settings", self._system() | scenarios[0].system_settings),
            *(placed for each in scenarios for placed in each.rows),
        ]
        now_s = int(time.time())
        self._run(["BEGIN", *(self._inserting(table, row, now_s) for table, row in rows), "COMMIT"])
        return now_s

    def snapshot(self) -> Snapshot:
        """Give all rows of all tables."""
        snapshot: dict[str, Sequence[Row]] = {}
        with self._connection.cursor() as cursor:
            cursor.execute("; ".join(f"SELECT * FROM {self._place(table)}" for table in self._engines))
            for table in self._engines:
                snapshot[table] = cursor.fetchall()
                cursor.nextset()
        return snapshot

    def _emptying(self) -> Iterator[str]:
        # Truncated, or the slots of deleted rows would be filled backwards: MEMORY has no other order.
        for table, engine in self._engines.items():
            yield f"{'TRUNCATE TABLE' if engine == 'MEMORY' else 'DELETE FROM'} {self._place(table)}"

    def _inserting(self, table: str, row: Row, now_s: int) -> str:
        columns = ", ".join(f"`{column}` = %s" for column in row)
        values = [_at(value, now_s) for value in row.values()]
        with self._connection.cursor() as cursor:
            statement: str = cursor.mogrify(f"INSERT INTO {self._place(table)} SET {columns}", values)
            return statement

    def _run(self, statements: Iterable[str]) -> None:
        """Run statements that give no rows, in one piece."""
        with self._connection.cursor() as cursor:
            cursor.execute("; ".join(statements))
            while cursor.nextset():
                pass

    def _place(self, table: str) -> str:
        return f"`{self._queue_name}`.`{table}`" if table == _QUEUE_LOG else f"`{table}`"

    def _server(self) -> Row:
        return {
            "server_id": "S1",
            "server_ip": SERVER_IP,
            "asterisk_version": "18.18.1-vici",
            "agi_output": "FILE",
            "vd_server_logs": "N",
            "carrier_logging_active": "Y",
            "external_server_ip": "203.0.113.5",
        }

    def _system(self) -> Row:
        return {
            "highest_lead_id": "200000",
            "queuemetrics_server_ip": self._queue_host,
            "queuemetrics_dbname": self._queue_name,
            "queuemetrics_login": USER,
            "queuemetrics_pass": PASSWORD,
            "queuemetrics_log_id": "VIC",
            "queuemetrics_socket_url": "",
        }


def _at(value: object, now_s: int) -> object:
    """Turn a moment into a date or an epoch; anything else stays."""
    moment = _MOMENT.fullmatch(value) if isinstance(value, str) else None
    if moment is None:
        return value
    epoch = now_s + int(moment[2] or 0)
    return epoch if moment[1] == "ep" else datetime.fromtimestamp(epoch)


class Forwarder:
    """Passes on TCP connections to port 3306 of a loopback address; use it with ``with``.

    The address follows from the target's port, so no two servers of this machine share one.

    Args:
        port: The target's, on 127.0.0.1.

    Attributes:
        address: Where it listens.

    Raises:
        OSError: The address cannot be had.
    """

    def __init__(self, port: int) -> None:
        self.address = f"127.{port >> 8}.{port & 255}.7"
        self._server = _ForwardingServer((self.address, _QUEUE_PORT), _Forwarding)
        self._server.target = ("127.0.0.1", port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _ForwardingServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    target: tuple[str, int]


class _Forwarding(socketserver.BaseRequestHandler):
    server: Any

    def handle(self) -> None:
        """Carry bytes both ways until one side ends."""
        with socket.create_connection(self.server.target) as target:
            back = threading.Thread(target=_carry, args=(target, self.request), daemon=True)
            back.start()
            _carry(self.request, target)
            back.join()


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
