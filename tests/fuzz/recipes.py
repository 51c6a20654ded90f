"""Recipes: a string of bytes says what a peer sends and how the network cuts it.

Laws:
    * Every recipe is one: bytes that are missing are 0, so that Hypothesis may shorten any.
    * What is cooked looks like AGI long enough to get past the first line: pieces of the protocol, replies
      made by its grammar, and what real Asterisks were recorded to say, broken here and there.
    * It costs little: one string of bytes is drawn for an input, not a tree of choices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from corpus.transcripts import Chunk, Connection, Speaker, load_connections

from fastagi_pool.protocol import HeaderLimits

HEADER: Final = b"agi_network: yes\nagi_network_script: hello\nagi_channel: SIP/1\n\n"

#: Pieces of the protocol, and of what is none.
TOKENS: Final = (
    b"\n", b"HANGUP\n", b"HANG", b"200 result=0\n", b"200 result=1 (", b")", b") a=", b")\n", b"(", b'"',
    b"200 result=0 endpos=", b"12", b"99999999999999999999", b"100 result=0 Trying...\n", b"510 x\n", b"511 ",
    b"520-Usage:\n", b"520 End\n", b"520-", b"200 ", b"result=", b"agi_x: y\n", b"agi_", b"agi_arg_1: \n",
    b"\n\n", b": ", b"\0", b"\r", b"\xff", b" ", b"failure\n", HEADER,
)  # fmt: skip

#: What takes room, the more so if it is said several times; rare, because it takes time too.
BIG: Final = (b"x" * 20000, b"\n" * 20000, b"HANGUP\n" * 3000, b"200 result=1 (\n" * 1300, b") a=" * 5000)

CODES: Final = (b"200 ", b"200 ", b"200 ", b"510 ", b"511 ", b"520 ", b"520-", b"100 ", b"999 ", b"")
RESULTS: Final = (b"result=0", b"result=1", b"result=-1", b"result=", b"result=*12#", b"", b"result")
VALUES: Final = (
    b"", b" (timeout)", b" ()", b" (a(b)c)", b" (a", b" a)", b" (a\nb)", b" (a)\nHANGUP\n200 result=0)",
    b" (a)\n510 x\n)", b" (\n\n", b" (speech)", b" (J\xfcrgen)",
)  # fmt: skip
TAILS: Final = (
    b"", b" endpos=8000", b" endpos=-1", b" endpos=" + b"9" * 30, b" endpos=" + b"9" * 5000,
    b" endpos=", b" Gosub complete",
    b' results=1 score0=9 text0="a (b)" grammar0=g', b" digit=)", b" ",
)  # fmt: skip
ENDS: Final = (b"\n", b"\n", b"\n", b"\r\n", b"", b"\nHANGUP\n", b"\nHANG", b"\n520 End of proper usage.\n")

#: What an honest Asterisk answers, with HANGUP where it may stand.
REPLIES: Final = (
    b"200 result=0\n", b"200 result=1\n", b"200 result=1 (url)\n", b"200 result=1 (a\nHANGUP\n(b)\n",
    b"200 result=0 endpos=8000\n", b"200 result= (timeout)\n", b"100 result=0 Trying...\n200 result=0 Done\n",
    b"510 Invalid or unknown command\n", b"520-Usage:\n Usage: X\n\n520 End of proper usage.\n",
    b"HANGUP\n200 result=-1\n", b"200 result=-1 endpos=0\nHANGUP\n", b"HANGUP\n",
    b'200 result=1 (speech) endpos=1 results=1 score0=9 text0="(a) b" grammar0=g\n',
)  # fmt: skip

COMMANDS: Final = (b"NOOP\n", b"GET VARIABLE X\n", b"SPEECH RECOGNIZE menu 5\n")
LIMITS: Final = (HeaderLimits(), HeaderLimits(header_bytes=200, line_bytes=60, arguments=2))

#: The longest piece. Source: what a session reads at a time.
MOST_RECEIVED_BYTES: Final = 16384
#: What is written is cut into about so many pieces at most, to keep an input cheap.
_MOST_PIECES: Final = 50


@dataclass(frozen=True, slots=True)
class Peer:
    """What a machine has to bear.

    Attributes:
        limits: Of the environment.
        pieces: What comes, as the network cuts it; none is empty.
        patient: Whether the server takes all that has come before it sends a command.
        commands: What the server sends, over and over.
    """

    limits: HeaderLimits
    pieces: tuple[bytes, ...]
    patient: bool
    commands: tuple[bytes, ...]


class Recipe:
    """Reads a string of bytes as a row of decisions."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_read(self) -> bool:
        """Whether there is no decision left."""
        return self._at >= len(self._data)

    def number(self) -> int:
        """Take one byte; 0 behind the end."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def choose(self, table: tuple[bytes, ...]) -> bytes:
        """Take one entry of a table."""
        return table[self.number() % len(table)]

    def bytes(self, count: int) -> bytes:
        """Take bytes as they are; fewer at the end."""
        self._at += count
        return self._data[self._at - count : self._at]


@cache
def recorded_environments() -> tuple[bytes, ...]:
    """Return every environment that Asterisk was recorded to send, with what came in the same piece."""
    return tuple(
        sorted({_said(connection.chunks[: _first_command(connection)]) for connection in load_connections()})
    )


@cache
def recorded_answers() -> tuple[bytes, ...]:
    """Return every piece that Asterisk was recorded to send later."""
    return tuple(
        sorted(
            {
                chunk.data
                for connection in load_connections()
                for chunk in connection.chunks[_first_command(connection) :]
                if chunk.speaker is Speaker.ASTERISK
            }
        )
    )


def _first_command(connection: Connection) -> int:
    speakers = [chunk.speaker for chunk in connection.chunks]
    return speakers.index(Speaker.SERVER) if Speaker.SERVER in speakers else len(speakers)


def _said(chunks: Iterable[Chunk]) -> bytes:
    return b"".join(chunk.data for chunk in chunks)


def cook(data: bytes) -> Peer:
    """Make what a recipe says."""
    recipe = Recipe(data)
    limits = LIMITS[recipe.number() // 200]
    manner = recipe.number()
    cuts = data if manner & 1 else bytes([manner >> 4])
    commands = tuple(recipe.choose(COMMANDS) for _ in range(3))
    pieces = [piece for write in _writes(recipe) for piece in _cut(write, cuts)]
    return Peer(limits, tuple(pieces), bool(manner & 2), commands)


def _writes(recipe: Recipe) -> list[bytes]:
    """Cook until the recipe ends: what the peer writes, one piece after the other."""
    first = recipe.number()
    writes = [HEADER if first < 200 else recipe.choose(recorded_environments()) if first < 240 else b""]
    while not recipe.is_read:
        kind = recipe.number()
        if kind < 110:
            writes.append(_reply(recipe, honest=kind < 80))
        elif kind < 170:
            writes.append(_recorded_piece(recipe, whole=kind < 150))
        elif kind < 200:
            writes.append(TOKENS[kind % len(TOKENS)])
        elif kind < 212:
            writes[-1] += TOKENS[recipe.number() % len(TOKENS)]
        elif kind < 220:
            writes[-1] += recipe.bytes(kind % 8)
        elif kind < 255:
            writes[-1] = _broken(recipe, writes[-1])
        else:
            writes.append(recipe.choose(BIG) * (recipe.number() % 10))
    return writes


def _reply(recipe: Recipe, honest: bool) -> bytes:
    """Make a reply: one that Asterisk gives, or any of its parts put together."""
    if honest:
        return recipe.choose(REPLIES)
    return b"".join(map(recipe.choose, (CODES, RESULTS, VALUES, TAILS, ENDS)))


def _recorded_piece(recipe: Recipe, whole: bool) -> bytes:
    """Take what was recorded, or a part of it."""
    said = recorded_answers()
    piece = said[(recipe.number() * 256 + recipe.number()) % len(said)]
    if whole:
        return piece
    start = recipe.number() % len(piece)
    return piece[start : start + recipe.number()]


def _broken(recipe: Recipe, write: bytes) -> bytes:
    """Change a byte, lose some, or say some twice."""
    if not write:
        return write
    how = recipe.number() % 3
    at = (recipe.number() * 256 + recipe.number()) % len(write)
    if how == 0:
        return write[:at] + bytes([recipe.number()]) + write[at + 1 :]
    end = at + recipe.number() % 64
    return write[:at] + write[end:] if how == 1 else write[:end] + write[at:]


def _cut(write: bytes, cuts: bytes) -> Iterator[bytes]:
    """Cut what was written into pieces of these lengths, over and over; 0 takes all the rest."""
    least = len(write) // _MOST_PIECES
    start = turn = 0
    while start < len(write):
        length = cuts[turn % len(cuts)] if cuts else 0
        end = start + min(max(length, least) if length else len(write), MOST_RECEIVED_BYTES)
        yield write[start:end]
        start, turn = end, turn + 1
