"""Tables: VICIdial's and QueueMetrics' tables in a MariaDB of the tests' own: made, filled, looked at.

Laws:
    * The tables are emptied before every load, all of them: nothing of one test reaches the next.
    * QueueMetrics is looked for on port 3306 alone, so each server has its :func:`queue_forwarder` there, on
      an address of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import Enum
from types import TracebackType
from typing import Final, Self

from mariadb import PASSWORD, USER, MariaDBServer
from mariadb_forwarder import MariaDBForwarder
from vicidial_database import VicidialDatabase

from .comparing import Snapshot
from .playing import SERVER_IP, Placed, Row, Scenario

_QUEUE_LOG: Final = "queue_log"
_QUEUE_PORT: Final = 3306
_MOMENT = re.compile(r"\{(dt|ep)([+-]\d+)?\}")


class Engines(Enum):
    """Which storage engines the tables have: those on disk, and the others.

    ``AS_GIVEN`` is InnoDB with some MEMORY tables, ``MYISAM`` what VICIdial's installer makes: MyISAM with
    the same MEMORY tables; ``INNODB`` has no MEMORY tables, as clusters want it.
    """

    AS_GIVEN = ("InnoDB", "MEMORY")
    MYISAM = ("MyISAM", "MEMORY")
    INNODB = ("InnoDB", "InnoDB")


class Tables:
    """VICIdial's database and one of QueueMetrics on a server; both are gone after the ``with``.

    Args:
        server: Where to make them.
        name: VICIdial's; QueueMetrics' is named after it.
        engines: The tables' engines.
        queue_host: The address at which the server can be reached on port 3306.

    Attributes:
        name: VICIdial's.
        url: How SQLAlchemy reaches VICIdial's.
    """

    def __init__(self, server: MariaDBServer, name: str, engines: Engines, queue_host: str) -> None:
        self.name = name
        self._queue_name = f"{name}_qm"
        self._queue_host = queue_host
        self._vicidial = VicidialDatabase(server, name, *engines.value)
        self.url = self._vicidial.url
        self._engines: dict[str, str] = dict(
            self._vicidial.execute(
                "SELECT table_name, engine FROM information_schema.tables"
                " WHERE table_schema = DATABASE() ORDER BY table_name"
            )
        )
        self._vicidial.execute(f"CREATE DATABASE {self._queue_name}")
        self._vicidial.execute(f"RENAME TABLE {_QUEUE_LOG} TO {self._place(_QUEUE_LOG)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._vicidial.execute(f"DROP DATABASE {self._queue_name}")
        self._vicidial.drop()

    def query(self, statement: str, values: Sequence[object] = ()) -> Sequence[Row]:
        """Run one statement in VICIdial's database and give its rows."""
        with self._vicidial.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall()

    def load(self, *scenarios: Scenario) -> int:
        """Empty all tables, and put in what the scenarios want, with the settings of the first.

        Returns:
            The time to which the rows' times refer, in seconds since 1970.
        """
        self._vicidial.execute("; ".join(self._emptying()))
        rows: list[Placed] = [
            ("servers", self._server() | scenarios[0].servers),
            ("system_settings", self._system() | scenarios[0].system_settings),
            *(placed for each in scenarios for placed in each.rows),
        ]
        now_s = int(time.time())
        inserting = (self._inserting(table, row, now_s) for table, row in rows)
        self._vicidial.execute("; ".join(["BEGIN", *inserting, "COMMIT"]))
        return now_s

    def snapshot(self) -> Snapshot:
        """Give all rows of all tables."""
        snapshot: dict[str, Sequence[Row]] = {}
        with self._vicidial.cursor() as cursor:
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
        with self._vicidial.cursor() as cursor:
            return cursor.mogrify(f"INSERT INTO {self._place(table)} SET {columns}", values)

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


def queue_forwarder(server_port: int) -> MariaDBForwarder:
    """Make what passes on connections to port 3306 of a loopback address.

    The address follows from the server's port, so no two servers of this machine share one.

    Args:
        server_port: The server's TCP port on 127.0.0.1.

    Raises:
        OSError: The address cannot be had.
    """
    return MariaDBForwarder(server_port, f"127.{server_port >> 8}.{server_port & 255}.7", _QUEUE_PORT)
