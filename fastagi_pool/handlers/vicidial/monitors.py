"""Monitors: the ends of calls that only go with another call: a manager's, and that of an agent outside.

Laws:
    * The code says what kind of call it is; for all others nothing is asked and nothing is written.
    * What has ended already stays as it is, so a second END changes nothing.

Source: VICIdial's FastAGI daemon, observed: END, step 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastagi_pool.handlers.vicidial.grammar import is_barging, is_listening, is_three_way_press

if TYPE_CHECKING:
    from fastagi_pool.handlers.vicidial.leg import Leg

#: In the name of the channel on which a manager only listens; the other leg of that call has the same code.
_BLIND_CHANNEL: Final = "ASTblind"
_HUNG_UP: Final = "HUNGUP"


def end_monitor(leg: Leg, code: str, channel: str) -> None:
    """End a manager's listening, barging or whispering.

    Args:
        leg: The request.
        code: Its caller code, cut.
        channel: As Asterisk named it.

    Raises:
        DatabaseUnavailable: The database is away.

    Source: VICIdial's FastAGI daemon, observed: manager monitor end.
    """
    if is_barging(code) or (is_listening(code) and _BLIND_CHANNEL in channel):
        began_epoch = leg.tables.open_monitor(code)
        if began_epoch is not None:
            leg.tables.end_monitor(code, leg.now.epoch - began_epoch, leg.now)


def end_three_way(leg: Leg, code: str) -> None:
    """End the call to an agent outside, who was asked to press a key.

    Args:
        leg: The request.
        code: Its caller code, cut.

    Raises:
        DatabaseUnavailable: The database is away.

    Source: VICIdial's FastAGI daemon, observed: three-way press end.
    """
    if is_three_way_press(code):
        status = leg.tables.three_way_status(code)
        if status is not None and _HUNG_UP not in status:
            leg.tables.end_three_way(code, leg.careful)
