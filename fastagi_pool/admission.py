"""Admission: lets a call begin, or wait in its greenlet until it may, or ends it with the reason.

Laws:
    * A call that :meth:`Admission.admit` let in has a place until :meth:`Admission.leave`; whoever is
      interrupted on the way, at whatever moment, has none and stands in no queue.
    * A place that becomes free belongs to the next caller at once, so nobody who comes later overtakes.
    * Who waits is woken from the hub only. A greenlet that woke another one would be left in the middle.

How it works: what becomes of a caller who waits is decided first and written down, and the hub wakes him a
moment later. If something interrupts him in between, he finds the decision, and gives his place to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol

from fastagi_pool.errors import Overloaded
from fastagi_pool.lanes import LaneFacts, Lanes

#: Those who left without a word are looked for no more often: a look costs a microsecond for each who waits.
WEED_S: Final = 0.1
_MAY_BEGIN: Final = ""
_HAS_LEFT: Final = "Asterisk closed the connection while the call waited for a place"


class Subject(Protocol):
    """A call that wants a place, as far as it matters here; a ``Session``."""

    @property
    def peer(self) -> str:
        """The server of Asterisk that it comes from."""

    @property
    def greenlet(self) -> Any:
        """Who serves it."""

    @property
    def peer_has_closed(self) -> bool:
        """Whether Asterisk has closed the connection."""

    def queues(self) -> None:
        """Begin to wait for a place."""

    def called_in(self) -> None:
        """Wait no longer."""


class Admission:
    """The door to the places of one worker."""

    def __init__(
        self, lanes: Lanes[Subject], hub: Any, on_queued: Callable[[int], object] = lambda queued: None
    ) -> None:
        """Open it.

        Args:
            lanes: Who may begin and who waits; nobody else may change it.
            hub: gevent's hub of this thread.
            on_queued: Told how many wait, whenever that changes.
        """
        self._on_queued = on_queued
        self._lanes = lanes
        self._hub = hub
        self._inside: dict[Subject, str] = {}
        self._waiting: dict[Subject, str] = {}
        self._decided: dict[Subject, str] = {}
        self._weeded_s = 0.0

    @property
    def active(self) -> int:
        """How many calls have a place."""
        return self._lanes.active

    def facts(self) -> list[LaneFacts]:
        """Tell how each lane fares, in the order of the configuration."""
        return self._lanes.facts()

    def admit(self, session: Subject, lane: str) -> None:
        """Take a place for a call, and wait for one if there is none; in the call's greenlet.

        Args:
            session: The call's; :meth:`leave` must follow at its end.
            lane: The lane of its route.

        Raises:
            Overloaded: There is no room to wait, or it has waited too long. It has no place.
        """
        if not self._lanes.enter(lane, session.peer):
            self._wait(session, lane)
        self._inside[session] = lane

    def leave(self, session: Subject) -> None:
        """Give the place of a call to the next; nothing happens if it has none. Neither waits nor raises."""
        lane = self._inside.pop(session, None)
        if lane is not None:
            self._lanes.leave(lane, session.peer)
            self._call_in()

    def sweep(self, now_s: float) -> None:
        """End the wait of all who have waited too long; a few times a second.

        Args:
            now_s: The time now.
        """
        for session in self._lanes.give_up(now_s):
            self._decide(session, self._lanes.late_fault(self._waiting[session]))

    def drain(self) -> None:
        """Let all who wait begin, and whoever still comes: no other worker can take them."""
        self._lanes.open_to_all()
        self._call_in()

    # --- to wait

    def _wait(self, session: Subject, lane: str) -> None:
        """Wait for a place.

        Raises:
            Overloaded: There is no room, or none became free in time.
        """
        now_s = monotonic()
        if not self._lanes.has_room(lane, session.peer):
            self._weed(now_s)
        if not self._lanes.wait(lane, session.peer, session, now_s):
            raise Overloaded(self._lanes.fault(lane, session.peer))
        self._waiting[session] = lane
        self._on_queued(len(self._waiting))
        session.queues()
        try:
            # Whatever a handler of another call left behind may wake us too: only a decision counts.
            while session not in self._decided:
                self._hub.switch()
        except BaseException:
            self._withdraw(session, lane)
            raise
        finally:
            del self._waiting[session]
            self._on_queued(len(self._waiting))
            session.called_in()
        why_not = self._decided.pop(session)
        if why_not:
            raise Overloaded(why_not)

    def _withdraw(self, session: Subject, lane: str) -> None:
        """Wait no longer, whatever was decided meanwhile; a place that was given is given on."""
        decision = self._decided.pop(session, None)
        if decision is None:
            self._lanes.forget(session)
        elif decision == _MAY_BEGIN:
            self._lanes.leave(lane, session.peer)
            self._call_in()

    def _weed(self, now_s: float) -> None:
        """Make room: let those go who are gone without having said so."""
        if now_s < self._weeded_s + WEED_S:
            return
        self._weeded_s = now_s
        undecided = [session for session in self._waiting if session not in self._decided]
        for session in undecided:
            if session.peer_has_closed:
                self._lanes.forget(session)
                self._decide(session, _HAS_LEFT)

    # --- to decide

    def _call_in(self) -> None:
        if self._lanes.queued:
            for session in self._lanes.call_in():
                self._decide(session, _MAY_BEGIN)

    def _decide(self, session: Subject, decision: str) -> None:
        """Settle what becomes of a caller who waits: why he may not begin, or that he may."""
        self._decided[session] = decision
        self._hub.loop.run_callback(self._wake, session)

    def _wake(self, session: Subject) -> None:
        # He may have been interrupted since, and his greenlet may serve another call by now.
        if session in self._decided:
            session.greenlet.switch()
