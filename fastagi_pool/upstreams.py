"""Upstreams: which of the servers behind this one takes the next call.

Laws:
    * The first of the list that can: the others are spare, and get calls while it rests or is full.
    * A server that failed rests: 1 s, twice as long each time it fails again, 30 s at most. Afterwards one
      single call tries it, and the others pass it by until that call has succeeded or failed.
    * One call that breaks off says little of a server: a single script may have crashed. Three in a row do.
    * While a server rests only the word of the call that tries it counts: what calls of earlier say of it is
      old, whether good or bad.
    * A caller is kept waiting for a server that is full, never for one that rests.
    * It decides and keeps; it reads no clock, connects to nothing, and knows of its own worker alone.

Why in order, and not in turn: the second one of two servers is often the old one, or in another building. Who
wants to share calls out names one name with several addresses, or sets ``max_calls``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from fastagi_pool.errors import UpstreamUnavailable

#: The first rest of a server that failed: short, as the commonest failure is that it is restarted.
FIRST_REST_S: Final = 1.0
#: Its longest rest: so late a server that has come back is found at the latest.
LONGEST_REST_S: Final = 30.0
#: So many calls in a row that break off before a word make a server rest.
MOST_BROKEN: Final = 3
_NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Server:
    """A FastAGI server behind this one.

    Attributes:
        host: An IPv4 or IPv6 address (without brackets) or a name.
        port: Its TCP port; by default that of FastAGI. Source: AGI_PORT in asterisk res/res_agi.c.
        max_calls: The most calls at a time that each worker brings to it; 0 for no limit.
    """

    host: str
    port: int = 4573
    max_calls: int = 0

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """Where the calls of a route go, and how long they may take to get there. All of it holds per worker.

    Attributes:
        servers: The servers, the preferred one first; at least one.
        connect_timeout_s: How long to try one server, name lookup and all its addresses included; by default
            as long as Asterisk tries. Source: MAX_AGI_CONNECT in asterisk res/res_agi.c.
        max_queue: How many calls may wait while all servers that do not rest are full; 0 for none.
        max_wait_s: How long each may; a caller hears nothing meanwhile.
    """

    servers: tuple[Server, ...]
    connect_timeout_s: float = 2.0
    max_queue: int = 100
    max_wait_s: float = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One call's place at a server; no two are equal.

    Attributes:
        server: The server.
    """

    server: Server


@dataclass(slots=True)
class _Standing:
    """What is known of one server.

    Attributes:
        calls: How many it has in progress.
        rest_s: Its present rest, from the beginning; 0 if it is well.
        rest_ends_s: When that is over.
        trial: The call that tries it after its rest.
        why: Why it rests.
        broken: How many calls have broken off since one was served.
    """

    calls: int = 0
    rest_s: float = 0.0
    rest_ends_s: float = -_NEVER
    trial: Turn | None = None
    why: str = ""
    broken: int = 0


class Upstreams:
    """The servers of one route, as one worker sees them."""

    def __init__(self, servers: Iterable[Server]) -> None:
        """Take all of them for well.

        Args:
            servers: In the order of preference; a second mention of the same one means nothing.
        """
        self._standings = {server: _Standing() for server in servers}

    def choose(self, now_s: float, tried: Collection[Server] = ()) -> Turn | None:
        """Find a server for a call, and count the call there.

        Args:
            now_s: The time; any clock that only goes forward.
            tried: Servers that this call has tried in vain.

        Returns:
            The call's place, to be given back; None if the call has to wait for one.

        Raises:
            UpstreamUnavailable: No server is left that could take it, however long it waited.
        """
        full = False
        for server, standing in self._standings.items():
            if server in tried or standing.trial is not None or standing.rest_ends_s > now_s:
                continue
            if server.max_calls and standing.calls >= server.max_calls:
                full = True
                continue
            standing.calls += 1
            turn = Turn(server)
            if standing.rest_s:
                standing.trial = turn
            return turn
        if full:
            return None
        raise UpstreamUnavailable("; ".join(self._why_not(server, now_s) for server in self._standings))

    def give_back(self, turn: Turn) -> None:
        """Give back a place; if the call came to no judgement about a server it tried, the next one may."""
        standing = self._standings[turn.server]
        standing.calls -= 1
        if standing.trial is turn:
            standing.trial = None

    def failed(self, turn: Turn, now_s: float, why: str) -> float:
        """Note that a server cannot be reached.

        Args:
            turn: The call's place.
            now_s: The time.
            why: What was wrong, in a word or two.

        Returns:
            For how many seconds it rests, if it was well before; else 0.
        """
        standing = self._standings[turn.server]
        was_well = not standing.rest_s
        if not was_well and standing.trial is not turn:
            return 0.0
        standing.rest_s = min(2 * standing.rest_s, LONGEST_REST_S) or FIRST_REST_S
        standing.rest_ends_s = now_s + standing.rest_s
        standing.trial = None
        standing.why = why
        return standing.rest_s if was_well else 0.0

    def broke_off(self, turn: Turn, now_s: float, why: str) -> float:
        """Note that a server took a call and broke off before a word; all else as for ``failed``."""
        standing = self._standings[turn.server]
        standing.broken += 1
        if standing.trial is turn or standing.broken >= MOST_BROKEN:
            return self.failed(turn, now_s, why)
        return 0.0

    def succeeded(self, turn: Turn) -> bool:
        """Note that a server serves a call.

        Returns:
            Whether it is well again only since now.
        """
        standing = self._standings[turn.server]
        standing.broken = 0
        if standing.trial is not turn:
            return False
        self._standings[turn.server] = _Standing(calls=standing.calls)
        return True

    def next_rest_ends_s(self, now_s: float) -> float:
        """Return when the first of the rests ends that are not over; infinity if there is none."""
        ends = (standing.rest_ends_s for standing in self._standings.values())
        return min((end_s for end_s in ends if end_s > now_s), default=_NEVER)

    def occupation(self) -> str:
        """Say for a log how many calls each server has."""
        parts = (
            f"{server}: {standing.calls} of {server.max_calls or 'any number'}"
            for server, standing in self._standings.items()
        )
        return ", ".join(parts)

    def _why_not(self, server: Server, now_s: float) -> str:
        standing = self._standings[server]
        if standing.trial is not None:
            return f"{server}: {standing.why}, being tried again now"
        if standing.rest_ends_s > now_s:
            return f"{server}: {standing.why}, tried again in {math.ceil(standing.rest_ends_s - now_s)} s"
        return f"{server}: did not take this call"
