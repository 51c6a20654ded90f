"""Health: what we believe about a database server, and when to ask it for a sign of life.

Laws:
    * It decides and keeps; it reads no clock and asks nobody.
    * A server that is busy is not away: whoever answers anything at all has time.
    * Silence alone condemns nobody. Statements that wait make a suspect, and only a question that stays
      without an answer, while no other statement got one, makes it one that is away.

How it works: a :class:`Circuit` is what we believe about one server of the fail-over list, a :class:`Vigil`
says when its silence is long enough for a question, and :func:`judge` says what follows from the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum
from typing import Final

#: A server that is only busy is asked ever more rarely, but at least so often, in times of the patience.
_RAREST: Final = 16


class CircuitState(Enum):
    """What we believe about a server."""

    UP = "it may be tried by anybody"
    SUSPECT = "statements wait for it, and it is asked for a sign of life; it may be tried by anybody"
    DOWN = "it refused; leave it alone until the retry is due"
    PROBING = "it refused, and somebody is finding out whether it is back"


class Circuit:
    """Whether it makes sense to connect to a server now. It reads no clock.

    ===========  ============  ============  =========  ============  ===========
    state        started()     suspected()   failed()   succeeded()   abandoned()
    ===========  ============  ============  =========  ============  ===========
    UP           UP            SUSPECT       DOWN       UP            UP
    SUSPECT      SUSPECT       SUSPECT       DOWN       UP            SUSPECT
    DOWN         PROBING       DOWN          DOWN       UP            DOWN
    PROBING      (forbidden)   PROBING       DOWN       UP            DOWN
    ===========  ============  ============  =========  ============  ===========

    Attributes:
        state: What we believe.
        reason: Why the last attempt failed; empty while the server may be tried.
    """

    __slots__ = ("_retry_at_s", "_retry_s", "reason", "state")

    def __init__(self, retry_s: float) -> None:
        self.state = CircuitState.UP
        self.reason = ""
        self._retry_s = retry_s
        self._retry_at_s = 0.0

    @property
    def usable(self) -> bool:
        """Whether anybody may try."""
        return self.state is CircuitState.UP or self.state is CircuitState.SUSPECT

    @property
    def retry_at_s(self) -> float:
        """When somebody should find out whether the server is back; infinite if nobody should."""
        return self._retry_at_s if self.state is CircuitState.DOWN else math.inf

    def permits(self, now_s: float) -> bool:
        """Tell whether a caller may try now; the one who then does has to say so by :meth:`started`."""
        return self.usable or now_s >= self.retry_at_s

    def started(self) -> None:
        """Note that somebody tries; while the server is down, no other may."""
        if self.state is CircuitState.DOWN:
            self.state = CircuitState.PROBING

    def suspected(self) -> None:
        """Note that the server is asked for a sign of life because it keeps statements waiting."""
        if self.state is CircuitState.UP:
            self.state = CircuitState.SUSPECT

    def succeeded(self) -> None:
        """Note that a connection was made, or that the server gave a sign of life."""
        self.state = CircuitState.UP
        self.reason = ""

    def failed(self, reason: str, now_s: float) -> None:
        """Note that an attempt failed, and leave the server alone for the retry time."""
        self.state = CircuitState.DOWN
        self.reason = reason
        self._retry_at_s = now_s + self._retry_s

    def abandoned(self) -> None:
        """Note that an attempt was killed: nothing was learned, and the next one may try."""
        if self.state is CircuitState.PROBING:
            self.state = CircuitState.DOWN


class Vigil:
    """When a server that keeps statements waiting is to be asked for a sign of life. It reads no clock.

    A statement waits in vain since it was sent or since the server last answered anything, whichever is
    later. Who has vouched for itself is asked again about the same statements after twice the time, and
    about those that were sent since after the ordinary time.

    Attributes:
        answered_s: When the server last answered a statement. Whoever hears an answer stores it here; it is
            all that a statement has to do for its server's health.
    """

    __slots__ = ("_again_s", "_patience_s", "_vouched_s", "answered_s")

    def __init__(self, patience_s: float) -> None:
        """Begin to watch.

        Args:
            patience_s: How long statements may wait without an answer to any; more than 0.
        """
        self.answered_s = -math.inf
        self._patience_s = patience_s
        self._again_s = patience_s
        self._vouched_s = -math.inf

    def due_s(self, waiting_since_s: Iterable[float]) -> float:
        """Tell when to ask.

        Args:
            waiting_since_s: When each statement that waits was sent.

        Returns:
            The time; infinite if nothing waits.
        """
        return min((self._due_for(since_s) for since_s in waiting_since_s), default=math.inf)

    def vouched(self, now_s: float) -> None:
        """Note that the server was asked and gave a sign of life."""
        in_a_row = self._vouched_s > self.answered_s
        longest_s = self._patience_s * _RAREST
        self._again_s = min(self._again_s * 2, longest_s) if in_a_row else self._patience_s * 2
        self._vouched_s = now_s

    def _due_for(self, since_s: float) -> float:
        since_s = max(since_s, self.answered_s)
        if since_s > self._vouched_s:
            return since_s + self._patience_s
        return self._vouched_s + self._again_s


class Sign(Enum):
    """What a server does that is asked for a sign of life."""

    ALIVE = "it takes a connection, and answers on it"
    REFUSES = "it answers, but takes no connection from us now"
    READ_ONLY = "it answers, but another server has taken its place"
    NONE = "it cannot be reached, or says nothing"


class Verdict(Enum):
    """What follows from it."""

    LIVES = "go on"
    AWAY = "connect no more, and leave those in peace who are connected"
    LOST = "connect no more, and give up every connection to it"


def judge(sign: Sign, was_usable: bool, heard_meanwhile: bool) -> Verdict:
    """Say what follows from a server's sign of life.

    Args:
        sign: What it did.
        was_usable: Whether it was taken to be up, so that only its silence made it a suspect.
        heard_meanwhile: Whether it answered a statement after it had been asked.
    """
    if sign is Sign.ALIVE:
        return Verdict.LIVES
    if sign is Sign.READ_ONLY:
        return Verdict.LOST
    if sign is Sign.NONE and not heard_meanwhile:
        return Verdict.LOST
    return Verdict.LIVES if was_usable else Verdict.AWAY
