"""Attendants: the greenlets that serve calls, one call after another.

Laws:
    * An attendant serves one call at a time, and each call runs in a fresh ``contextvars`` context.
    * A ``gevent.Timeout`` that one call's handler left running does not interrupt the next call.
      (``threading.local`` is shared, as in any pool of threads; and a handler that plans to throw
      something into its own greenlet later, by other means, must see to it itself.)

Why not a new greenlet for each call: Python maps and unmaps 16 KB of memory for the stack of each,
which costs as much as everything else that the server itself does for a short call (7 of 12 us).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final

import gevent
from greenlet import GreenletExit, greenlet

from fastagi_pool.logs import LOGGER_NAME

_log = logging.getLogger(LOGGER_NAME)
#: Attendants kept while they have nothing to do: enough for a burst, at 20 KB each.
IDLE_LIMIT: Final = 64
#: Started at the very moment the call began counts as the call's own.
_ROUNDING_S: Final = 0.001


class Attendant(greenlet):
    """One greenlet of the pool.

    Attributes:
        begun_s: When its present call began, in the time of gevent's loop.
    """

    begun_s: float = 0.0


def _expire_unless_stale(timeout: gevent.Timeout, owner: greenlet, raised: Any) -> None:
    """Instead of ``gevent.Timeout._on_expiration``: drop what an earlier call has left running."""
    if isinstance(owner, Attendant) and timeout.seconds is not None:
        started_s = gevent.get_hub().loop.now() - timeout.seconds
        if started_s < owner.begun_s - _ROUNDING_S:
            return
    owner.throw(raised)


def guard_timeouts() -> None:
    """Make gevent's time-outs safe for attendants; once in a process, before any call."""
    gevent.Timeout._on_expiration = _expire_unless_stale


class Attendants:
    """Finds a greenlet for each call; used in the hub only."""

    def __init__(self, hub: Any) -> None:
        """Start with none.

        Args:
            hub: gevent's hub of this thread.
        """
        self._hub = hub
        self._idle: list[Attendant] = []

    def attend(self, serve: Callable[[Any], object], subject: Any) -> None:
        """Serve a subject in a greenlet, at once: returns when that first waits for something.

        Args:
            serve: Called with the subject; must not raise.
            subject: What to serve; its attribute ``greenlet`` is set to the one that does.
        """
        attendant = self._idle.pop() if self._idle else Attendant(self._live, self._hub)
        attendant.begun_s = self._hub.loop.now()
        subject.greenlet = attendant
        attendant.switch(serve, subject)

    def _live(self, serve: Callable[[Any], object], subject: Any) -> None:
        me = subject.greenlet
        while True:
            Context().run(serve, subject)
            subject.greenlet = None
            if len(self._idle) >= IDLE_LIMIT:
                return
            self._idle.append(me)
            subject = None
            serve, subject = self._next(me)

    def _next(self, me: Attendant) -> tuple[Callable[[Any], object], Any]:
        while True:
            try:
                work: tuple[Callable[[Any], object], Any] = self._hub.switch()
            except GreenletExit:
                # Killed by what a call left behind, or the hub is going: not to be found idle again.
                if me in self._idle:
                    self._idle.remove(me)
                raise
            except BaseException:
                # Something that a call left behind. Uncaught it would end the hub, and the worker.
                _log.warning("an attendant was interrupted while it was idle", exc_info=True)
            else:
                return work
