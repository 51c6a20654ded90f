"""Transcripts: what a real Asterisk and a FastAGI server said to each other, chunk by chunk.

``agi/22`` holds dialogues of Asterisk 22.10.1, ``agi/16`` of 16.28.0. Lines that begin with ``#`` tell what
was tried. Every other line is ``seconds who chunk bytes``:

    * who is ``A>`` (Asterisk wrote), ``<S`` (the server wrote), ``--`` (something happened to the socket)
      or ``M`` (Asterisk's manager interface told of it);
    * chunk is the number of the recv() or send(), so that lines of one number came in one piece;
    * bytes are escaped as in a Python bytes literal.

Laws:
    * A chunk here is a chunk on the wire, neither joined nor cut.
    * Each connection stands for itself; a call that ran two scripts gives two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).with_name("agi")

#: Columns of a line. Source: the recorder's format, see the top of this module.
_WHO: Final = slice(11, 13)
_CHUNK: Final = slice(14, 17)
_BYTES: Final = slice(18, None)


class Speaker(Enum):
    """Who wrote a chunk."""

    ASTERISK = "A>"
    SERVER = "<S"


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one side wrote and the server received or sent in one piece."""

    speaker: Speaker
    data: bytes


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection, from accept to close.

    Attributes:
        name: The transcript and, if it holds several connections, the number: ``22/05_two_scripts.2``.
        chunks: All that was said, in order.
    """

    name: str
    chunks: tuple[Chunk, ...]

    @property
    def scene(self) -> str:
        """What was tried, whatever the version: ``05_two_scripts``."""
        return self.name.partition("/")[2].partition(".")[0]


def load_connections(folder: Path = FOLDER) -> list[Connection]:
    """Read all transcripts below a folder.

    Args:
        folder: Holds a folder for each version of Asterisk.

    Returns:
        Every connection in which Asterisk said something, by version and name.
    """
    return [
        connection
        for path in sorted(folder.glob("*/*.txt"))
        for connection in read_connections(f"{path.parent.name}/{path.stem}", path.read_text("ascii"))
    ]


def read_connections(name: str, text: str) -> list[Connection]:
    """Read one transcript.

    Args:
        name: The transcript's name.
        text: Its lines.
    """
    found = [tuple(_chunks(part)) for part in _parts(text)]
    if len(found) == 1:
        return [Connection(name, found[0])]
    return [Connection(f"{name}.{number}", chunks) for number, chunks in enumerate(found, start=1)]


def _parts(text: str) -> Iterator[list[str]]:
    """Yield what each connection said, line by line."""
    part: list[str] = []
    for line in text.splitlines():
        if line[_WHO] == "--" and line[_BYTES].startswith("accept"):
            if part:
                yield part
            part = []
        elif not line.startswith("#") and line[_WHO] in ("A>", "<S"):
            part.append(line)
    if part:
        yield part


def _chunks(lines: list[str]) -> Iterator[Chunk]:
    """Join the lines that came in one piece."""
    key: tuple[str, str] = ("", "")
    data = b""
    for line in lines:
        if (line[_WHO], line[_CHUNK]) != key:
            if data:
                yield Chunk(Speaker(key[0]), data)
            key, data = (line[_WHO], line[_CHUNK]), b""
        data += line[_BYTES].encode("ascii").decode("unicode_escape").encode("latin-1")
    if data:
        yield Chunk(Speaker(key[0]), data)
