"""Texts that only the other side of a SIP trunk can have thought of are stored as texts, and no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import pytest

from .playing import Row, Scenario, play, recorded
from .sites import RELAXED_AS_GIVEN, STRICT_AS_GIVEN, Site, Sites

pytestmark = pytest.mark.mariadb

_TEXTS: Final = {
    "apostrophe": "'",
    "quote": '"',
    "backslash": "\\",
    "semicolon": ";",
    "slash": "/",
    "climbing slashes": "/../",
    "statement": "');DELETE FROM call_log;--",
    "comment": "/*!50000 DROP TABLE call_log */",
    "5000 characters": "x" * 5_000,
    "latin-1": "\udce9",
    "half a character": "\udcf0\udc9f",
    "character of four bytes": "\N{GRINNING FACE}",
    "controls": "".join(map(chr, (*range(1, 10), *range(11, 32), 127))),
    "line ends of Unicode": "\x85\u2028",
    "percent": "%s%(x)s%%",
    "braces": "{}{0}{x!r}",
    "placeholder": ":uniqueid?",
}
_CODE: Final = recorded()["E03"].agi["calleridname"]
#: VICIdial deletes them, from a code at a START or at an END and from an extension.
_FROM_NUMBER: Final = "';"
_FROM_NAME: Final = "';\""

_URL: Final = "agi://127.0.0.1:4577/call_log--HVcauses--PRI-----NODEBUG-----17"
_START: Final = replace(
    recorded()["S01"],
    agi={**recorded()["S01"].agi, "channel": "Local/913125551212@default-1;2", "calleridname": "x"},
)
_END: Final = recorded()["E03"]
_ORDINARY: Final = recorded()["S01"].renumbered(1)


def text_as_stored(text: str, length: int, deleted: str = "") -> str:
    """Say how a column holds a text: without what VICIdial deletes, ``?`` for what it cannot hold, and cut.

    Args:
        text: Lone surrogates stand for bytes that are no UTF-8.
        length: The column's, in characters.
        deleted: The characters that VICIdial deletes from such a text.
    """
    kept = (each for each in text if each not in deleted)
    # The tables' character set knows no character of four bytes.
    return "".join("?" if each > "\uffff" or "\ud800" <= each <= "\udfff" else each for each in kept)[:length]


def code_as_stored(text: str, length: int, deleted: str) -> str:
    """Say how a column holds a caller code, which ends at its first space; see :func:`text_as_stored`."""
    return text_as_stored(text.partition(" ")[0], length, deleted)


def closing_channel(extension: str) -> str:
    """Say which channel the call's row holds: an END writes its own, a START finds the row and leaves it."""
    is_end = len(text_as_stored(extension, 9, _FROM_NAME)) < 3
    return _END.agi["channel"] if is_end else "SIP/trunk"


@dataclass(frozen=True)
class Place:
    """Where a strange text can stand, and what becomes of it.

    Attributes:
        call: The call that is played.
        said: What Asterisk says differently, given the text.
        table: Where a row of the call is looked for.
        column: Where the text must be in that row, if anywhere.
        stored: What the column holds then, given the text.
    """

    call: Scenario
    said: Callable[[str], Mapping[str, str]]
    table: str
    column: str
    stored: Callable[[str], str]


_PLACES: Final = {
    "callerid at START": Place(
        _START,
        lambda text: {"callerid": f"marked{text}"},
        "call_log",
        "caller_code",
        lambda text: code_as_stored(f"marked{text}", 20, _FROM_NUMBER),
    ),
    "calleridname at START": Place(
        _START,
        lambda text: {"callerid": "unknown", "calleridname": f"marked{text}"},
        "call_log",
        "caller_code",
        lambda text: code_as_stored(f"marked{text}", 20, _FROM_NAME),
    ),
    "channel at START": Place(
        _START,
        lambda text: {"channel": f"Local/marked{text}"},
        "call_log",
        "channel",
        lambda text: text_as_stored(f"Local/marked{text}", 100),
    ),
    "extension at START": Place(
        _START,
        lambda text: {"extension": f"marked{text}"},
        "call_log",
        "extension",
        lambda text: text_as_stored(f"marked{text}", 100, _FROM_NAME),
    ),
    "uniqueid at START": Place(
        _START,
        lambda text: {"uniqueid": f"marked{text}"},
        "call_log",
        "uniqueid",
        lambda text: text_as_stored(f"marked{text}", 20),
    ),
    "callerid at END": Place(
        _END,
        lambda text: {"callerid": f"marked{text}"},
        "vicidial_carrier_log",
        "caller_code",
        lambda text: _CODE,
    ),
    "calleridname at END": Place(
        _END,
        lambda text: {"calleridname": f"{_CODE}{text}"},
        "vicidial_carrier_log",
        "caller_code",
        lambda text: code_as_stored(f"{_CODE}{text}", 30, _FROM_NAME),
    ),
    "channel at END": Place(
        _END,
        lambda text: {"channel": f"Local/marked{text}"},
        "vicidial_carrier_log",
        "channel",
        lambda text: text_as_stored(f"Local/marked{text}", 100),
    ),
    "extension at END": Place(
        _END,
        lambda text: {"extension": f"h{text}"},
        "call_log",
        "channel",
        lambda text: closing_channel(f"h{text}"),
    ),
    # The leg of a manual call: for the row of any other it is waited, lest the START come late.
    "uniqueid at END": Place(
        recorded()["E12"],
        lambda text: {"uniqueid": f"marked{text}"},
        "vicidial_carrier_log",
        "uniqueid",
        lambda text: text_as_stored(f"marked{text}", 20),
    ),
    "TECHCAUSE": Place(
        _END,
        lambda text: {"request": f"{_URL}-----BUSY-----10----------SIP 486 marked{text}"},
        "vicidial_carrier_log",
        "sip_hangup_reason",
        lambda text: text_as_stored(f"marked{text}", 50),
    ),
    "DIALSTATUS": Place(
        _END,
        lambda text: {"request": f"{_URL}-----BUSY{text}-----10----------SIP 486 Busy Here"},
        "vicidial_carrier_log",
        "dialstatus",
        lambda text: text_as_stored(f"BUSY{text}", 16),
    ),
    "DIALTIME": Place(
        _END,
        lambda text: {"request": f"{_URL}-----BUSY-----10{text}----------SIP 486 Busy Here"},
        "vicidial_carrier_log",
        "dial_time",
        lambda text: "10",
    ),
}


@pytest.fixture(scope="module", params=[RELAXED_AS_GIVEN, STRICT_AS_GIVEN], ids=str)
def site(request: pytest.FixtureRequest, sites: Sites) -> Site:
    """Give a site on a relaxed and on a strict server."""
    return sites.open(request.param)


@pytest.mark.parametrize("place", _PLACES)
def test_strange_texts(site: Site, place: str) -> None:
    """The row is stored, cut where its column ends; the log is silent, and the next call goes well."""
    wrong = [line for text in _TEXTS for line in wrongs_of(site, _PLACES[place], text)]

    assert not wrong, "\n".join(wrong)


def wrongs_of(site: Site, place: Place, name: str) -> list[str]:
    """Play a call with a strange text and an ordinary one, and say what went wrong."""
    text = _TEXTS[name]
    site.tables.load(place.call)
    with site.ended(2) as ends:
        play(site.pool.address, {**place.call.agi, **place.said(text)})
        play(site.pool.address, _ORDINARY.agi)
    wrong = ends.bad + ends.logged
    ordinary, strange = stored_rows(site, place.table)
    if len(ordinary) != 1:
        wrong.append(f"the next call left {ordinary}")
    found = [str(row[place.column]) for row in strange]
    if found != [place.stored(text)]:
        wrong.append(f"{place.table}.{place.column} holds {found}, expected {place.stored(text)!r}")
    return [f"{name}: {line}" for line in wrong]


def stored_rows(site: Site, table: str) -> tuple[list[Row], list[Row]]:
    """Give what the ordinary call left in ``call_log``, and the rows of a table that are not its."""
    uid = _ORDINARY.agi["uniqueid"]
    ordinary = site.tables.query("SELECT * FROM call_log WHERE uniqueid = %s", [uid])
    rows = site.tables.query(f"SELECT * FROM {table} WHERE uniqueid <> %s", [uid])
    return list(ordinary), list(rows)
