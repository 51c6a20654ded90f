"""A caller's name from the database: the demonstration of ``setup`` and of a transaction."""

from __future__ import annotations

from sqlalchemy import text

from fastagi_pool.call import Call
from fastagi_pool.context import Context


def setup(context: Context) -> None:
    """Make the table of callers: once for each worker, before it takes calls."""
    with context.begin() as connection:
        connection.execute(
            text("CREATE TABLE IF NOT EXISTS callers (number VARCHAR(32) PRIMARY KEY, name VARCHAR(80))")
        )
        for number, name in (("100", "Alice Liddell"), ("101", "Bob the Builder")):
            # REPLACE, because several workers do this at the same time.
            connection.execute(
                text("REPLACE INTO callers (number, name) VALUES (:number, :name)"),
                {"number": number, "name": name},
            )


def lookup(call: Call, context: Context) -> None:
    """Find the caller's name and give it to the dialplan as CALLER_NAME; empty if not known."""
    with context.begin() as connection:
        name = connection.execute(
            text("SELECT name FROM callers WHERE number = :number"), {"number": call.request.callerid}
        ).scalar()
    call.set_variable("CALLER_NAME", name or "")
