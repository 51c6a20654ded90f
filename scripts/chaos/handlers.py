"""Handlers of a chaos run, whose rows the auditor counts.

Laws:
    * The tables have no unique keys: what is written twice is seen twice.
    * A call is one transaction, and who is told SUCCESS has committed it, or will.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.deferring import deferrable

#: The tables, made before the pool starts.
TABLES: Final = ("rows_a", "rows_b", "rows_ivr")
_DATABASE: Final = "chaos"
_PROMPTS: Final = 2


@deferrable
def record(call: Call, context: Context) -> None:
    """Write one row into each of two tables, now or later."""
    with context.begin(_DATABASE) as database:
        _insert(database, "rows_a", call)
        _insert(database, "rows_b", call)


def ivr(call: Call, context: Context) -> None:
    """Speak with Asterisk for a while, write a row, and speak again."""
    call.verbose("welcome")
    for _ in range(_PROMPTS):
        call.stream_file("beep")
    with context.begin(_DATABASE) as database:
        _insert(database, "rows_ivr", call)
    call.set_variable("SERVED", "yes")


def _insert(database: Connection, table: str, call: Call) -> None:
    values = {"call_id": int(call.request.arguments[0]), "called_at": call.received_s}
    database.execute(text(f"INSERT INTO {table} (call_id, called_at) VALUES (:call_id, :called_at)"), values)
