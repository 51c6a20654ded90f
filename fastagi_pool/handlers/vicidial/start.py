"""START: a channel begins to dial; its row is written, and the dialplan gets what the campaign says.

Laws:
    * The row is on its way while Asterisk answers the first command, and committed before the call is given
      back: whatever becomes of the channel meanwhile, no row is lost.
    * A command that Asterisk refuses changes nothing: its answer is not used.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from fastagi_pool.errors import AGIError
from fastagi_pool.handlers.vicidial import khomp
from fastagi_pool.handlers.vicidial.classification import (
    Classification,
    classify,
    manager_number,
    needs_manager_row,
    phone_question,
)
from fastagi_pool.handlers.vicidial.grammar import begins_m, first_word, is_dialled
from fastagi_pool.handlers.vicidial.rows import NewCall

if TYPE_CHECKING:
    from fastagi_pool.call import Call
    from fastagi_pool.handlers.vicidial.leg import Leg

_NAME_HEADER: Final = "X-CIDNAME"


def start(leg: Leg, call: Call) -> None:
    """Serve a START.

    Raises:
        DatabaseUnavailable: The row was not written.
        CallEnded: Asterisk went away during a command; the row is written.
    """
    request = leg.request
    code = first_word(request.code)
    found = _classify(leg)
    number = found.number
    if needs_manager_row(number, code):
        number = manager_number(code, *leg.tables.manager_lines(code), found.extension)
    row = NewCall(
        request.uid,
        found.channel,
        found.group,
        request.type,
        leg.site.server_ip,
        found.extension,
        number,
        code,
        leg.now.text,
        leg.now.epoch,
    )
    commands = list(_commands(leg, code)) if is_dialled(code) else ()
    written = leg.tables.insert_call(row)
    began_s = time.monotonic()
    try:
        for command in commands:
            _send(call, command)
    finally:
        leg.outside_s += time.monotonic() - began_s
        written.get()
    leg.note(f"START {request.uid}|{found.channel}|{found.group}|{found.extension}|{number}|{code}")


def _classify(leg: Leg) -> Classification:
    request = leg.request
    question = phone_question(request.channel)
    known = question is not None and leg.tables.knows_phone(question)
    return classify(request.channel, request.extension, known)


def _commands(leg: Leg, code: str) -> Iterator[str]:
    """Make the commands for a dialled call, in their order."""
    campaign_id = leg.tables.campaign_of_code(code)
    campaign = leg.tables.campaign(campaign_id)
    headers = khomp.start(leg, campaign, code) if campaign else []
    if campaign_id:
        yield _set(leg, "_CAMPCUST", campaign_id)
    if begins_m(code):
        timeout = (campaign.manual_dial_timeout or campaign.dial_timeout) if campaign else ""
        if timeout or leg.site.empty_timeout:
            yield _set(leg, "_CAMPDTO", timeout)
    if campaign and campaign.opensips_cid_name and leg.system.opensips_cid_name == 1:
        yield _add_header(leg, f"{_NAME_HEADER}: {campaign.opensips_cid_name}")
    for name, value in headers:
        yield _add_header(leg, f"{name}: {value}")


def _set(leg: Leg, name: str, value: str) -> str:
    if leg.site.plain_commands:
        return f'SET VARIABLE {name} "{_plain(value)}"'
    return f'EXEC EXEC Set({name}={_plain(value)}) ""'


def _add_header(leg: Leg, text: str) -> str:
    if leg.site.plain_commands:
        return f'EXEC SIPAddHeader "{_plain(text)}"'
    return f'EXEC EXEC SIPAddHeader("{_plain(text)}") ""'


def _plain(text: str) -> str:
    """Take out what would end the argument; campaigns' ids and names have none of it."""
    return "".join(each for each in text if each.isprintable() and each not in '"\\')


def _send(call: Call, command: str) -> None:
    try:
        call.raw(command)
    except AGIError:
        # An Asterisk without the application, or a channel that has hung up: the row is what counts.
        pass
