"""The dial classification: which channel group a START belongs to, and which number it dials.

Laws:
    * Pure: what the database knows is asked by a value (:func:`phone_question`, :func:`needs_manager_row`)
      and comes back as an argument.
    * The technology decides: SIP, PJSIP and IAX2 are told by the number, Zap, DAHDI and Local by whether
      the channel is a phone, and all others are left alone.
    * Of the rules for numbers the first that fits is taken, and no rule's result fits another.

Source: VICIdial's FastAGI daemon, observed: START, steps 2 to 5.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple

from fastagi_pool.handlers.vicidial.grammar import begins_m, begins_v_or_m, has_long_number

#: Technologies whose extension is the peer and whose number is what the peer dialled.
_PEERS: Final = ("SIP", "PJSIP", "IAX2")
#: Fewer digits in a row are no code that VICIdial made: its date alone has as many.
_MANAGER_DIGITS: Final = 9

_FINAL_NUMBER = re.compile(r"/[0-9]+\Z")
_TECHNOLOGY = re.compile("PJSIP/|SIP/|IAX2/|Zap/|DAHDI/|Local/")
_NO_DIGITS = re.compile(r"[^0-9]+")


class PhoneColumn(Enum):
    """Column of ``phones`` by which a channel is known as a phone."""

    EXTENSION = "extension"
    DIALPLAN_NUMBER = "dialplan_number"


class PhoneQuestion(NamedTuple):
    """Whether our own server has a phone like this.

    Attributes:
        column: The column that holds ``value``.
        value: What the channel's name says.
        protocol: The phone's ``protocol``.
    """

    column: PhoneColumn
    value: str
    protocol: str


class _Lines(NamedTuple):
    """Channels that may be a phone: how it is asked, and what they are then and otherwise."""

    column: PhoneColumn
    protocol: str
    phone_group: str
    line_group: str


_ZAP: Final = _Lines(PhoneColumn.EXTENSION, "Zap", "Zap Client Phone", "Zap Trunk Line")
_LOCAL: Final = _Lines(PhoneColumn.DIALPLAN_NUMBER, "EXTERNAL", "EXTERNAL Client Phone", "Local Channel Line")
_LINES: Final = {"Zap": _ZAP, "DAHDI": _ZAP, "Local": _LOCAL}


class NumberRule(NamedTuple):
    """How one shape of a dialled number is rewritten.

    Attributes:
        prefixes: It begins with one of them.
        length: It has exactly so many characters.
        dropped: How many of its first characters go.
        put_before: What comes in their place.
        group: The channel group of such a call.
    """

    prefixes: tuple[str, ...]
    length: int
    dropped: int
    put_before: str
    group: str


#: The dialled numbers that VICIdial knows, in the order in which they are tried: those of the USA behind a 9,
#: where 727 is the area code of its authors and stands for every site's own.
#: Source: VICIdial's FastAGI daemon, observed: START, step 4.
NUMBER_RULES: Final = (
    NumberRule(("901144",), 16, 1, "", "Outbound Intl UK"),
    NumberRule(("901161",), 15, 1, "", "Outbound Intl AUS"),
    NumberRule(("91800", "91888", "91877", "91866"), 12, 2, "", "Outbound Local 800"),
    NumberRule(("9",), 8, 1, "727", "Outbound Local"),
    NumberRule(("9",), 11, 1, "", "Outbound Local"),
    NumberRule(("91",), 12, 2, "", "Outbound Long Distance"),
)


class Classification(NamedTuple):
    """What ``call_log`` says about a START.

    Attributes:
        channel: The channel's name, cut.
        group: The channel group; empty for calls that have none.
        extension: The dialled extension, or the peer that dialled it.
        number: The dialled number; empty if the dialer's commands may know it, else nobody.
    """

    channel: str
    group: str
    extension: str
    number: str


def cut_channel(channel: str) -> str:
    """Cut off what tells one call of a peer from the next.

    SIP and PJSIP lose all from the first ``-``, which may be in the peer's name; IAX2 loses a final slash and
    digits; all others keep their whole name.
    """
    if channel.startswith(("SIP", "PJSIP")):
        return channel.partition("-")[0]
    if channel.startswith("IAX2"):
        return _FINAL_NUMBER.sub("", channel)
    return channel


def rewrite(extension: str) -> tuple[str, str]:
    """Return the number that an extension dials, and its channel group; empty if no rule knows it."""
    for rule in NUMBER_RULES:
        if len(extension) == rule.length and extension.startswith(rule.prefixes):
            return rule.put_before + extension[rule.dropped :], rule.group
    return extension, ""


def phone_question(channel: str) -> PhoneQuestion | None:
    """Return what must be asked about a channel before it can be classified; None if nothing."""
    lines = _lines_of(channel)
    if lines is None:
        return None
    name = channel.partition("/")[2]
    value = name.partition("@")[0] if lines is _LOCAL else name
    return PhoneQuestion(lines.column, value, lines.protocol)


def _lines_of(channel: str) -> _Lines | None:
    technology, slash, _ = channel.partition("/")
    return _LINES.get(technology) if slash else None


def classify(channel_name: str, extension: str, known_phone: bool) -> Classification:
    """Classify a START.

    Args:
        channel_name: The channel's name, whole.
        extension: The dialled extension, as the request has it.
        known_phone: The answer to :func:`phone_question`; without a question it means nothing.
    """
    channel = cut_channel(channel_name)
    if channel.startswith(_PEERS):
        number, group = rewrite(extension)
        return Classification(channel, group, _TECHNOLOGY.sub("", channel), number)
    lines = _lines_of(channel)
    if lines is None:
        return Classification(channel, "", extension, "")
    if known_phone:
        return Classification(channel, lines.phone_group, extension, "")
    return Classification(channel, lines.line_group, extension, extension)


def needs_manager_row(number: str, code: str) -> bool:
    """Whether the number of a START must be sought in the dialer's commands (``vicidial_manager``).

    Args:
        number: What :func:`classify` found.
        code: The caller code, cut.
    """
    return not number and begins_v_or_m(code) and has_long_number(code, _MANAGER_DIGITS)


def manager_number(code: str, cmd_line_b: str, cmd_line_d: str, extension: str) -> str:
    """Return the number that the dialer's command dials.

    Only digits are kept, so that the words before them (``Channel: Local/``, ``Exten: ``) need no rule.

    Args:
        code: The caller code, for which :func:`needs_manager_row`: it begins ``V`` or ``M``.
        cmd_line_b: The command's line that a manual dial is read from, as ``Exten: 913125551212``; empty
            without a row.
        cmd_line_d: The line of all others, as ``Channel: Local/913125551212@default``; empty without a row.
        extension: The number if the command names none.
    """
    line = cmd_line_b if begins_m(code) else cmd_line_d.partition("@")[0]
    return _NO_DIGITS.sub("", line) or extension
