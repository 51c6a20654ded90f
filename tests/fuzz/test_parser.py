"""The parser against a peer that may say anything, in any pieces."""

from __future__ import annotations

import pickle
from itertools import cycle
from typing import Final

import pytest
from hypothesis import strategies as st

from fastagi_pool.errors import LocalProtocolError, RemoteProtocolError
from fastagi_pool.protocol import (
    MAX_REPLY_BYTES,
    NEED_DATA,
    AgiConnection,
    ConnectionClosed,
    Hangup,
    Reply,
    Request,
    State,
)

from .conftest import Fuzz
from .recipes import MOST_RECEIVED_BYTES, Peer, cook

#: What a machine and its pickle weigh without anything that came from the peer.
_EMPTY_BYTES: Final = 1000

#: A step takes some five bytes. One string costs Hypothesis least: 0.6 ms, of 1 ms in all.
RECIPES: Final = st.binary(min_size=16, max_size=64)


class Listener:
    """A server that asks whenever it may, and watches the machine.

    Attributes:
        agi: The machine under test.
        refused: Whether it has refused the peer.
    """

    def __init__(self, peer: Peer) -> None:
        self.agi = AgiConnection(peer.limits)
        self.refused = False
        self._patient = peer.patient
        self._commands = cycle(peer.commands)
        self._bytes = 0
        self._events = 0
        #: Replies that are due: one for each command sent.
        self._due = 0
        self._header_bytes = peer.limits.header_bytes

    def receive(self, data: bytes) -> None:
        """Take a piece, or the end, and all that can be said about it."""
        self._bytes += len(data)
        self.agi.receive_data(data)
        try:
            while self._take_event():
                pass
        except RemoteProtocolError:
            self.refused = True
        if self._bytes > self._keeps_at_most:
            self.weigh()

    @property
    def _keeps_at_most(self) -> int:
        """The environment; later a line, and the explanation of a usage before it; and the last piece."""
        allowed = self._header_bytes if self.agi.state is State.HEADER else 2 * MAX_REPLY_BYTES
        return allowed + MOST_RECEIVED_BYTES

    def weigh(self) -> None:
        """See that the machine keeps no more than has come, and no more than its limits allow."""
        # A pickle holds all that an object keeps.
        kept = len(pickle.dumps(self.agi)) - _EMPTY_BYTES
        assert kept <= min(self._bytes, self._keeps_at_most)

    def _take_event(self) -> bool:
        """Take one event, answer it, and say whether there may be another."""
        event = self.agi.next_event()
        if event is NEED_DATA:
            self._ask()
            return False
        if isinstance(event, ConnectionClosed):
            assert self.agi.state is State.CLOSED
            return False
        self._events += 1
        # Every event takes a byte at least, so that the work is bounded by what came.
        assert self._events <= self._bytes
        if isinstance(event, Request):
            assert self._events == 1
        elif isinstance(event, Reply):
            self._due -= 1
            assert self._due == 0
        else:
            assert isinstance(event, Hangup)
        if not self._patient:
            self._ask()
        return True

    def _ask(self) -> None:
        if self.agi.state is State.IDLE:
            self.agi.send_command(next(self._commands))
            self._due += 1
            assert self._due == 1


def see_the_end(agi: AgiConnection) -> None:
    """See that a machine that has come to its end stays there."""
    final = agi.state
    assert final in (State.CLOSED, State.ERROR)
    for _ in range(3):
        if final is State.CLOSED:
            assert isinstance(agi.next_event(), ConnectionClosed)
        else:
            with pytest.raises(RemoteProtocolError):
                agi.next_event()
    with pytest.raises(LocalProtocolError):
        agi.send_command(b"NOOP\n")
    assert agi.state is final


def bear(recipe: bytes) -> None:
    """Let a machine bear a peer to its end."""
    peer = cook(recipe)
    listener = Listener(peer)
    for piece in peer.pieces:
        listener.receive(piece)
        if listener.refused:
            break
    else:
        listener.receive(b"")
    listener.weigh()
    see_the_end(listener.agi)


def test_a_peer_that_may_say_anything(fuzz: Fuzz) -> None:
    """No input crashes the parser or makes it hang, work or keep more than what came is worth."""
    fuzz(bear, RECIPES, quick=1_000, full=200_000)
