"""Handlers of the demonstration that ``fastagi-pool run --demo`` serves: small, and meant to be copied."""

from __future__ import annotations

from fastagi_pool.call import Call
from fastagi_pool.context import Context


def hello(call: Call, context: Context) -> None:
    """Say hello on Asterisk's console."""
    call.verbose("hello")


def echo(call: Call, context: Context) -> None:
    """Show on Asterisk's console what the server was told."""
    request = call.request
    call.verbose(f"script {request.script}, query {dict(request.query)}, arguments {list(request.arguments)}")


def pin(call: Call, context: Context) -> None:
    """Ask for a PIN and say whether it is right: the skeleton of a menu.

    Options:
        pin: The right one.
    """
    call.answer()
    for _ in range(3):
        dialled = call.get_data("agent-pass", timeout_s=5, max_digits=len(context.options["pin"]))
        if dialled.digits == context.options["pin"]:
            call.set_variable("PIN_OK", "1")
            return
    call.set_variable("PIN_OK", "0")
