"""Reception: how connections come to a worker, and what it does with them until they say what they want.

Laws:
    * A connection that was accepted is this worker's: it is heard, or told that it is not; never just closed.
    * Nothing here waits or raises: all of it runs in the hub.
    * A connection costs no greenlet and takes no place until it has told what it wants, however slowly it
      does; and one that only looks whether somebody is there costs next to nothing.
    * Who waits in the kernel's queue when this worker leaves is left to the others, unless nobody new may
      come: then it is ours, and so is what workers that die meanwhile had not begun.

How accepting is shared: several processes wait on one listening socket, and the kernel wakes
whom it likes. So a worker that has more calls in progress, or took more turns, than the worker with
the fewest steps back for a moment and lets another take the call. The moment is bounded: if nobody
came, it takes the call itself.

What a dead worker had not begun comes by the handover, and is taken as if it had just been accepted.
"""

from __future__ import annotations

import _socket
import errno
import ipaddress
import logging
import os
from collections.abc import Callable, Collection
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any, Final, NamedTuple

from fastagi_pool import handover
from fastagi_pool.listeners import is_allowed, refuse_newcomers, refuses_newcomers, welcome
from fastagi_pool.scoreboard import Scoreboard, SlotWriter
from fastagi_pool.session import Look, Session

#: Connections taken in one go, before the calls in progress get their turn again.
ACCEPT_BATCH: Final = 16
#: How many more calls in progress than the least busy worker, or more turns than the one with the
#: fewest, make a worker step back.
ACTIVE_SLACK: Final = 2
TURNS_SLACK: Final = 16
#: One step back lasts this long; after so many in a row the worker takes the call itself.
STEP_BACK_S: Final = 0.0005
STEPS_BACK: Final = 2
#: Pause in accepting when the process or the machine is out of file descriptors or memory.
EXHAUSTED_S: Final = 0.1
#: When the worker is full but another is not, it looks again after this long.
FULL_S: Final = 0.01
#: Connections that are being refused unheard at the same time: each may take a moment to read why, but the
#: first of so many no longer when another comes: who does not listen must not keep others from being heard.
MOST_REFUSED: Final = 32
#: Connections that are ended at one look, as their time is over: thousands would keep calls from their turn.
MOST_ENDED: Final = 200
#: Remembered answers to "may this address call?"; beyond it the memory begins anew.
_REMEMBERED_PEERS: Final = 4096
_OUT_OF_SOMETHING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_READ: Final = 1


class Refusal(NamedTuple):
    """Why a connection is not heard, in the words of the access log."""

    outcome: str
    reason: str


_NOT_ALLOWED: Final = Refusal("denied", "the address is not in allow")
_SILENT_TOO_LONG: Final = Refusal(
    "overload", "too many connections do not say what they want (limits.connections)"
)


class Reception:
    """Where connections come in, in one worker."""

    def __init__(
        self,
        hub: Any,
        board: Scoreboard,
        slot: SlotWriter,
        listeners: Collection[int],
        taking_fd: int,
        make_session: Callable[[int, str], Session],
        begin: Callable[[Session, Refusal | None], None],
        places: int,
        taken: Callable[[], int],
        most_silent: int,
        allow: Collection[ipaddress.IPv4Network | ipaddress.IPv6Network],
        log: logging.Logger,
    ) -> None:
        """Prepare; nothing is accepted yet.

        Args:
            hub: gevent's hub of this thread.
            board: How the other workers fare.
            slot: The worker's own slot.
            listeners: Descriptors of the listening sockets; they are closed here in the end.
            taking_fd: Where calls come from that a dead worker had not begun.
            make_session: Makes a session of a connection and its peer's address.
            begin: Serves a session; or refuses it, and then calls :meth:`was_refused` in the end.
            places: Calls that the worker serves at the same time.
            taken: Tells how many of the places are taken.
            most_silent: Connections that may be kept that have not told yet what they want.
            allow: Networks that may call; empty for all that can reach us.
            log: Told what the machine does not give.
        """
        self._hub = hub
        self._board = board
        self._slot = slot
        self._make_session = make_session
        self._begin = begin
        self._places = places
        self._taken = taken
        self._most_silent = most_silent
        self._allow = allow
        self._log = log
        self._taking_fd = taking_fd
        self._taking = hub.loop.io(taking_fd, _READ)
        self._acceptors = [self._prepare_acceptor(descriptor) for descriptor in listeners]
        #: Connections that have not told yet what they want, the one that came first in front.
        self._silent: dict[Session, None] = {}
        self._peers: dict[str, bool] = {}
        #: Connections that are being refused unheard, the first in front.
        self._refused: dict[Session, None] = {}
        self._open = self._takes_over = False
        self._steps_back = 0

    def open(self) -> None:
        """Accept from now on."""
        self._open = True
        self._resume()
        self._takes_over = True
        self._taking.start(self._on_handover)

    def close_the_doors(self) -> None:
        """Let nobody new in anywhere: nobody else would accept them."""
        for listener, _, _ in self._acceptors:
            try:
                refuse_newcomers(listener)
            except OSError as error:
                self._log.error("cannot refuse newcomers: %s", error)

    def leave(self) -> bool:
        """Accept no more; again until it succeeds: there may be no file descriptor now for who waits.

        Closing would reset whoever waits, and that is a success to the dialplan.

        Returns:
            Whether nobody is left here.
        """
        if self._open:
            self._open = False
            self._pause()
            if not self._is_barred():
                self.close()
            for session in self._silent:
                welcome(session.fileno())
        for acceptor in list(self._acceptors):
            listener, watcher, _ = acceptor
            try:
                while refuses_newcomers(listener) and self._accept(listener):
                    pass
            except OSError as error:
                if error.errno in _OUT_OF_SOMETHING:
                    return False
                self._log.error("cannot accept: %s", error)
            self._acceptors.remove(acceptor)
            watcher.close()
            listener.close()
        return not self._silent

    def close(self) -> None:
        """Take nothing over any more either."""
        self._takes_over = False
        self._taking.stop()

    def stop(self, now_s: float) -> None:
        """Interrupt all who have not told yet what they want."""
        for session in list(self._silent):
            session.stop(now_s)

    def sweep(self, now_s: float) -> None:
        """Interrupt those who were not heard out in time; they came in the order of their time-outs."""
        late = list(islice((each for each in self._silent if each.deadline_s <= now_s), MOST_ENDED))
        for session in late:
            session.expire(now_s)

    def was_refused(self, session: Session) -> None:
        """Hear that a session which was not to be served has been told so."""
        self._refused.pop(session, None)

    # --- accepting

    def _prepare_acceptor(self, descriptor: int) -> tuple[Any, Any, Callable[[], None]]:
        listener = _socket.socket(fileno=descriptor)
        listener.setblocking(False)
        watcher = self._hub.loop.io(descriptor, _READ)
        return listener, watcher, partial(self._on_readable, listener)

    def _resume(self) -> None:
        if self._open:
            for _, watcher, callback in self._acceptors:
                watcher.start(callback)

    def _pause(self) -> None:
        for _, watcher, _ in self._acceptors:
            watcher.stop()

    def _pause_for(self, pause_s: float) -> None:
        self._pause()
        self._hub.loop.timer(pause_s).start(self._resume)

    def _on_readable(self, listener: Any) -> None:
        """Take connections."""
        if self._steps_back < STEPS_BACK and self._has_more_than_others():
            self._steps_back += 1
            self._pause_for(STEP_BACK_S)
            return
        self._steps_back = 0
        for _ in range(ACCEPT_BATCH):
            if not self._may_accept():
                self._pause_for(FULL_S)
                return
            try:
                if not self._accept(listener):
                    return
            except OSError as error:
                self._log.error("cannot accept: %s", error)
                self._pause_for(EXHAUSTED_S)
                return

    def _is_barred(self) -> bool:
        """Whether nobody new may come, so that no worker will be there who has not been told to leave."""
        try:
            return any(refuses_newcomers(listener) for listener, _, _ in self._acceptors)
        except OSError:
            return False

    def _may_accept(self) -> bool:
        """Whether it is on us to take one more connection, if only to hear it."""
        return not self._taken() >= self._places > self._board.least_busy()[0]

    def _has_more_than_others(self) -> bool:
        fewest_active, fewest_turns = self._board.least_busy()
        slot = self._slot
        return slot.active > fewest_active + ACTIVE_SLACK or slot.turns > fewest_turns + TURNS_SLACK

    def _accept(self, listener: Any) -> bool:
        """Take one connection, if one waits; raises OSError when the machine is out of something."""
        try:
            descriptor, address = listener._accept()
        except BlockingIOError:
            return False
        except ConnectionAbortedError:
            return True
        self._receive(descriptor, address[0] if isinstance(address, tuple) else "unix")
        return True

    def _on_handover(self) -> None:
        """Take calls that a dead worker had not begun."""
        try:
            taken = handover.take(self._taking_fd)
        except OSError as error:
            self._log.error("cannot take the calls of a worker that died: %s", error)
            self._taking.stop()
            self._hub.loop.timer(EXHAUSTED_S).start(self._take_again)
            return
        for descriptor in taken:
            try:
                peer = _peer_of(descriptor)
            except OSError:
                # The caller has gone meanwhile.
                os.close(descriptor)
            else:
                self._receive(descriptor, peer)

    def _take_again(self) -> None:
        if self._takes_over:
            self._taking.start(self._on_handover)

    # --- until it is known what they want

    def _receive(self, descriptor: int, peer: str) -> None:
        os.set_blocking(descriptor, False)
        session = self._make_session(descriptor, peer)
        self._slot.takes_turn()
        if not self._open:
            # It may have waited since before the door was closed.
            welcome(descriptor)
        if not self._may_call(peer):
            self._refuse(session, _NOT_ALLOWED)
            return
        look = session.look()
        if look == "word":
            self._begin(session, None)
        elif look == "closed":
            session.close()
        else:
            self._await_word(session)

    def _await_word(self, session: Session) -> None:
        if len(self._silent) >= self._most_silent:
            longest = next(iter(self._silent))
            del self._silent[longest]
            self._refuse(longest, _SILENT_TOO_LONG)
        self._silent[session] = None
        session.await_word(self._on_word)

    def _on_word(self, session: Session, look: Look) -> None:
        """Serve a connection that has told what it wants, or whose time is over."""
        if session not in self._silent:
            return
        del self._silent[session]
        if look == "closed":
            session.close()
        else:
            self._begin(session, None)

    def _refuse(self, session: Session, refusal: Refusal) -> None:
        if len(self._refused) >= MOST_REFUSED:
            first = next(iter(self._refused))
            del self._refused[first]
            first.expire(monotonic())
        self._refused[session] = None
        self._begin(session, refusal)

    def _may_call(self, peer: str) -> bool:
        known = self._peers.get(peer)
        if known is None:
            if len(self._peers) >= _REMEMBERED_PEERS:
                self._peers.clear()
            known = self._peers[peer] = is_allowed(peer, self._allow)
        return known


def _peer_of(descriptor: int) -> str:
    """Return who is at the other end of a connection, as accept() tells it.

    Raises:
        OSError: Nobody is any more.
    """
    connection = _socket.socket(fileno=descriptor)
    try:
        return "unix" if connection.family == _socket.AF_UNIX else str(connection.getpeername()[0])
    finally:
        connection.detach()
