"""Playing: recorded calls, and Asterisk's side of the connection on which they are played again.

Laws:
    * A scenario is all that a call meets and leaves behind: rows before, what Asterisk says, the commands
      that it is sent, the rows that change. It was recorded from VICIdial's daemon, one fresh process for
      each call; where a defect of it is mended, the mended outcome counts.
    * Commands are compared by what they do, not by how they are spelled.
    * Asterisk's side is bytes on a socket: whatever a caller can send, a scenario can send.

Source: the ``about`` and ``tokens`` of golden.json.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

#: One row of a table, by column.
Row: TypeAlias = dict[str, Any]
#: A row and the table it is for.
Placed: TypeAlias = tuple[str, Row]

SERVER_IP: Final = "10.0.0.1"

_RECORDED: Final = Path(__file__).resolve().parent / "golden.json"
#: What Asterisk says where a recorded call says nothing.
_DEFAULTS: Final = {"type": "SIP", "callerid": "unknown", "calleridname": "unknown", "priority": "1"}
#: Longest silence of the pool; the longest call that was recorded pauses for one second.
_SILENCE_S: Final = 15.0
#: Who and what the recorded calls are about, and how each becomes another's; no replacement is longer.
_IDENTITIES: Final[tuple[tuple[str, Callable[[int], str]], ...]] = (
    ("1700000000", lambda number: str(1_700_000_000 + number)),
    ("0000000101", lambda number: f"{_lead(number):010d}"),
    ("TESTCAMP", lambda number: f"CAMP{number:04d}"),
    ("SALESLINE", lambda number: f"SALES{number:04d}"),
    ("990009", lambda number: f"99{number:04d}"),
)
_QUOTE = re.compile(r'(?<!\\)"')
_SET_VARIABLE = re.compile(r"SET VARIABLE\s+(\S+)\s*(.*)$", re.IGNORECASE)
_EXEC = re.compile(r"EXEC\s+(?:EXEC\s+)?(Set|SIPAddHeader)\s*(.*)$", re.IGNORECASE)


@dataclass(frozen=True)
class Scenario:
    """One call.

    Attributes:
        id: Its name among the recorded ones.
        system_settings: Columns of the one row of ``system_settings`` that differ from the baseline.
        servers: The same for our own row of ``servers``.
        rows: What is in the tables before the call. ``{dt-40}`` is a date, ``{ep-40}`` an epoch, each 40 s
            before it.
        agi: What Asterisk says: ``request``, ``channel``, ``type``, ``uniqueid``, ``callerid``,
            ``calleridname``, ``extension``, ``priority``.
        wire: The commands that it is sent.
        changes: The rows that change; see :func:`vicidial.comparing.compare`.
    """

    id: str
    system_settings: Row
    servers: Row
    rows: tuple[Placed, ...]
    agi: Mapping[str, str]
    wire: tuple[str, ...]
    changes: tuple[Row, ...]

    def renumbered(self, number: int) -> Scenario:
        """Give the same call of another lead in another campaign, so that many fit into one database.

        Args:
            number: 1 to 8999; no two calls with different numbers share a unique id, a lead, a caller code, a
                list, a campaign, an in-group or a phone.
        """
        text = json.dumps([self.rows, self.agi, self.wire, self.changes])
        for old, new in _IDENTITIES:
            text = text.replace(old, new(number))
        rows, agi, wire, changes = _with_numbers(json.loads(text), number)
        return replace(
            self,
            id=f"{self.id}#{number}",
            rows=tuple((table, row) for table, row in rows),
            agi=agi,
            wire=tuple(wire),
            changes=tuple(changes),
        )

    def changed(self, table: str) -> tuple[Row, ...]:
        """Give the expected changes of one table."""
        return tuple(each for each in self.changes if each["table"] == table)

    def spoken_of_in(self, row: Row) -> bool:
        """Say whether a row is this call's: by its unique id, its caller code or its lead."""
        stem, code = self.agi["uniqueid"].partition(".")[0], self.agi["calleridname"][-10:]
        if any(stem in str(value) for value in row.values()):
            return True
        return code.isdigit() and (
            any(code in str(value) for value in row.values()) or row.get("lead_id") == int(code)
        )


def _lead(number: int) -> int:
    """Four digits, because some rows are looked for by a caller code that ends in the lead's plain number."""
    return 1000 + number


def _with_numbers(value: Any, number: int) -> Any:
    """Replace the leads and the lists that stand there as numbers."""
    if isinstance(value, list):
        return [_with_numbers(each, number) for each in value]
    if not isinstance(value, dict):
        return value
    fresh = {"lead_id": ("101", _lead(number)), "list_id": ("999", 100_000 + number)}
    return {
        key: type(each)(fresh[key][1])
        if key in fresh and str(each) == fresh[key][0]
        else _with_numbers(each, number)
        for key, each in value.items()
    }


@cache
def recorded() -> Mapping[str, Scenario]:
    """Read the recorded calls, by id."""
    scenarios = json.loads(_RECORDED.read_text())["scenarios"]
    return {
        each["id"]: Scenario(
            id=each["id"],
            system_settings=each["system_settings"],
            servers=each["servers"],
            rows=tuple((table, row) for table, row in each["rows"]),
            agi=_DEFAULTS | each["agi"],
            wire=tuple(each["wire"]),
            changes=tuple(each.get("corrected", each["changes"])),
        )
        for each in scenarios
    }


def effect(line: str) -> tuple[str, ...]:
    """Say what a command does: ``set`` or ``header`` with name and value, or ``other`` with its text."""
    text = _QUOTE.sub("", line).replace('\\"', '"').strip()
    if found := _SET_VARIABLE.match(text):
        return "set", found[1], found[2]
    found = _EXEC.match(text)
    if found is None:
        return "other", text
    argument = found[2].removeprefix("(").removesuffix(")") if found[2].startswith("(") else found[2]
    kind, sign = ("set", "=") if found[1].lower() == "set" else ("header", ":")
    name, _, value = argument.strip('"').partition(sign)
    return kind, name.strip(), value.strip()


def environment(agi: Mapping[str, str]) -> bytes:
    """Write what Asterisk sends first, in its order; lone surrogates stand for bytes that are no UTF-8."""
    request = agi["request"]
    fields = {
        "network": "yes",
        "network_script": request.split("/", 3)[3],
        "request": request,
        "channel": agi["channel"],
        "language": "en",
        "type": agi["type"],
        "uniqueid": agi["uniqueid"],
        "version": "18.18.1-vici",
        "callerid": agi["callerid"],
        "calleridname": agi["calleridname"],
        **dict.fromkeys(("callingpres", "callingani2", "callington", "callingtns"), "0"),
        "dnid": "unknown",
        "rdnis": "unknown",
        "context": "default",
        "extension": agi["extension"],
        "priority": agi["priority"],
        "enhanced": "0.0",
        "accountcode": "",
        "threadid": "1",
    }
    lines = [f"agi_{name}: {value}\n" for name, value in fields.items()]
    return "".join([*lines, "\n"]).encode("utf-8", "surrogateescape")


class Session:
    """Asterisk's side of one call; use it with ``with``, which closes it.

    It is connected, and all is said but the last byte, so that :meth:`go` starts the call in no time.
    """

    def __init__(self, address: str, agi: Mapping[str, str]) -> None:
        """Connect.

        Args:
            address: ``host:port`` of the pool.
            agi: What Asterisk says.

        Raises:
            OSError: There is no connection.
        """
        host, _, port = address.rpartition(":")
        self._link = socket.create_connection((host, int(port)), _SILENCE_S)
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        said = environment(agi)
        self._link.sendall(said[:-1])
        self._last = said[-1:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()

    def go(self) -> None:
        """Say the last byte; the pool can start now."""
        self._link.sendall(self._last)

    def commands(self) -> list[str]:
        """Answer every command until the pool ends the call, and give them.

        Raises:
            OSError: The connection broke, or nothing came for 15 s.
        """
        return list(self._answered())

    def _answered(self) -> Iterator[str]:
        with self._link.makefile("rb") as lines:
            for line in lines:
                yield line.decode(errors="replace").rstrip("\r\n")
                self._link.sendall(b"200 result=0\n")


def play(address: str, agi: Mapping[str, str]) -> list[str]:
    """Play one call to its end and give the commands of the pool; see :class:`Session`."""
    with Session(address, agi) as session:
        session.go()
        return session.commands()


def wrong_commands(scenario: Scenario, commands: Sequence[str]) -> list[str]:
    """Say how the commands differ from those of the scenario; empty if they do the same."""
    wanted, found = [effect(each) for each in scenario.wire], [effect(each) for each in commands]
    return [] if wanted == found else [f"{scenario.id}: commands: expected {wanted}, found {found}"]
