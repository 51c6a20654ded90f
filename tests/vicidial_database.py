"""VicidialDatabase: VICIdial's tables on a private MariaDB server, and what a pool needs to use them.

Laws:
    * Tables are those of ``vicidial/schema.sql``; nothing else is written here but rows that a test asks for.
    * Rows are written as VICIdial's own programs write them: without strict mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pymysql
from mariadb import PASSWORD, USER, MariaDBServer
from pymysql.constants import CLIENT
from pymysql.cursors import DictCursor

from fastagi_pool.database import Database, DatabaseSettings

SERVER_IP: Final = "10.0.0.1"
#: Without strict mode. Source: VICIdial's FastAGI daemon, observed: in strict mode it stores no START.
SQL_MODE: Final = "NO_ENGINE_SUBSTITUTION"

_HANDLER: Final = "fastagi_pool.handlers.vicidial.call_log:call_log"
#: For pools that must not take the server for away because the machine keeps it from its work for a second.
PATIENT: Final = {"probe_timeout": "15s"}
#: The pool must not keep a transaction open behind a call: then emptying a table has to wait, and fails.
_SESSION: Final = f"SET SESSION sql_mode = '{SQL_MODE}', lock_wait_timeout = 5"
_SCHEMA: Final = Path(__file__).resolve().parent / "vicidial/schema.sql"


class VicidialDatabase:
    """One database with VICIdial's tables, and a connection to it; both are gone after the ``with``.

    Attributes:
        url: How SQLAlchemy reaches it.
    """

    def __init__(
        self, server: MariaDBServer, name: str, engine: str = "InnoDB", in_memory: str = "MEMORY"
    ) -> None:
        """Make the database, the tables and the rows without which nothing works.

        Args:
            server: Where.
            name: What it is called; must not exist.
            engine: Of the tables that are on disk.
            in_memory: Of the others.
        """
        self._server, self._name = server, name
        server.execute(f"CREATE DATABASE {name}")
        self.url = server.url(name, PASSWORD)
        self._connection = pymysql.connect(
            host="127.0.0.1",
            port=server.port,
            user=USER,
            password=PASSWORD,
            database=name,
            autocommit=True,
            ssl_disabled=True,
            client_flag=CLIENT.MULTI_STATEMENTS,
            init_command=_SESSION,
        )
        schema = _SCHEMA.read_text().replace("ENGINE=InnoDB", f"ENGINE={engine}")
        self.execute(schema.replace("ENGINE=MEMORY", f"ENGINE={in_memory}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()

    def drop(self) -> None:
        """Close the connection and drop the database."""
        self._connection.close()
        self._server.execute(f"DROP DATABASE {self._name}")

    def cursor(self) -> DictCursor:
        """Open a cursor that gives rows by column."""
        return self._connection.cursor(DictCursor)

    def execute(
        self, statements: str, values: Mapping[str, object] | Sequence[object] | None = None
    ) -> list[tuple[Any, ...]]:
        """Run statements and give the rows of the first.

        Args:
            statements: Divided by ``;``. A ``%`` is written twice if there are values.
            values: For ``%s``, or by name for ``%(name)s``.
        """
        with self._connection.cursor() as cursor:
            cursor.execute(statements, values)
            rows = list(cursor.fetchall())
            while cursor.nextset():
                pass  # What went wrong in a later statement is raised here.
        return rows


def open_database(url: str) -> Database:
    """Open VICIdial's database as handlers have it; without a server it opens as well."""
    return Database(DatabaseSettings("vicidial", (url,), sql_mode=SQL_MODE, multi_statements=True))


def pool_databases(url: str, **more: Any) -> dict[str, dict[str, Any]]:
    """Write the ``databases`` of a pool that serves VICIdial's calls.

    Args:
        url: Where they are.
        more: Further keys.
    """
    return {"vicidial": {"url": url, "sql_mode": SQL_MODE, "multi_statements": True, "pool_size": 4, **more}}


def pool_route(path_logs: Path, **options: Any) -> dict[str, Any]:
    """Write the route of a pool that serves VICIdial's calls, all of them.

    Args:
        path_logs: Where the log files that VICIdial's operators know go.
        options: Further options of the handler.
    """
    return {
        "default": True,
        "handler": _HANDLER,
        "on_hangup": "continue",
        "free_names": True,
        "options": {"server_ip": SERVER_IP, "path_logs": str(path_logs), **options},
    }
