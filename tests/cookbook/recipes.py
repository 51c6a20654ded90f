"""Handlers of the cookbook in docs/handlers.md, which shows them as they stand here."""

from __future__ import annotations

import gevent
from sqlalchemy import text

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.errors import DatabaseUnavailable


def order_status(call: Call, context: Context) -> None:
    """Say how an order stands; the caller has three tries."""
    call.answer()
    for _ in range(3):
        dialled = call.get_data("enter-order-number", timeout_s=5, max_digits=8)
        with context.begin() as database:
            query = text("SELECT state FROM orders WHERE number = :number")
            state = database.execute(query, {"number": dialled.digits}).scalar()
        if state:
            call.stream_file(f"order-{state}")
            return
        call.stream_file("order-unknown")
    call.exec("Queue", "service")


def caller_name(call: Call, context: Context) -> None:
    """Set the caller's name from the database, if that answers within the option ``patience_s``."""
    name = None
    with gevent.Timeout(context.options["patience_s"], False), context.begin() as database:
        query = text("SELECT name FROM contacts WHERE number = :number")
        name = database.execute(query, {"number": call.request.callerid}).scalar()
    if name:
        call.set_callerid(call.request.callerid, name)


def do_not_call(call: Call, context: Context) -> None:
    """Set MAY_CALL to 1 or 0 for the number in the first argument."""
    try:
        with context.begin() as database:
            query = text("SELECT COUNT(*) FROM do_not_call WHERE number = :number")
            listed = database.execute(query, {"number": call.request.arguments[0]}).scalar()
    except DatabaseUnavailable:
        context.log.warning("the list is away: not called")
        listed = 1
    call.set_variable("MAY_CALL", "0" if listed else "1")


def recording_switch(call: Call, context: Context) -> None:
    """Start or stop MixMonitor as the caller wishes: 1 is yes, everything else no."""
    if call.get_option("may-we-record", "12", timeout_s=5).digit == "1":
        call.exec("MixMonitor", f"{call.request.uniqueid}.wav", "b")
        call.set_variable("RECORDED", "1")
    else:
        call.exec("StopMixMonitor")
        call.set_variable("RECORDED", "0")
