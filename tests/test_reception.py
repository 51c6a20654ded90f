"""fastagi_pool.reception: how accepting is shared, and what becomes of connections until they say something.

A real reception on a real hub; the test plays the callers.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import gevent.socket
import pytest
from test_session import ENVIRONMENT, LIMITS, in_hub

from fastagi_pool import handover
from fastagi_pool.attendants import Attendants
from fastagi_pool.endings import FAILURE_LINE
from fastagi_pool.errors import CallEnded
from fastagi_pool.listeners import refuse_newcomers
from fastagi_pool.protocol import HeaderLimits
from fastagi_pool.reception import (
    ACTIVE_SLACK,
    MOST_ENDED,
    MOST_REFUSED,
    TURNS_SLACK,
    Reception,
    Refusal,
)
from fastagi_pool.scoreboard import Scoreboard, SlotWriter, WorkerState
from fastagi_pool.session import Session

#: Far more than anything here takes.
_WAIT_S = 10.0
#: Turns of the hub in which everything has come that is coming.
_TURNS = 5


class Others:
    """A scoreboard with some workers on it.

    Attributes:
        board: The scoreboard.
        slots: The slots of the workers that are there already, all of them ready.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.board = Scoreboard.create(folder / "scoreboard", os.getpid(), monotonic())
        self.slots = [SlotWriter(self.board, number) for number in range(count)]
        for slot in self.slots:
            self.board.clear(slot.slot)
            slot.begin(1000 + slot.slot, 1, monotonic())
            slot.set_state(WorkerState.READY)
        self.board.clear(count)


class Hall:
    """The reception of one worker, and what comes of those who come to it.

    Attributes:
        reception: The reception.
        others: The other workers.
        slot: The worker's own slot.
        taken: How many of its places are taken; for the test to set.
        ends: Both ends of the handover: where is taken, and where is given.
        sessions: Whoever came.
        begun: How many got a greenlet.
        heard: Who was served: the script and the address.
        refused: Outcomes of those who were refused.
        interrupted: How the others ended.
        logged: All that was logged.
    """

    def __init__(
        self,
        folder: Path,
        listener: Any,
        others: int = 0,
        places: int = 10,
        most_silent: int = 10,
        allow: str = "",
        handed: tuple[int, int] | None = None,
    ) -> None:
        self.others = Others(folder, others)
        self.slot = SlotWriter(self.others.board, others)
        self.slot.begin(os.getpid(), 1, monotonic())
        self.slot.set_state(WorkerState.READY)
        self.taken = self.begun = 0
        self.sessions: list[Session] = []
        self.heard: list[tuple[str, str]] = []
        self.refused: list[str] = []
        self.interrupted: list[str] = []
        self.logged: list[str] = []
        self._hub = gevent.get_hub()
        self._attendants = Attendants(self._hub)
        self.ends = handed or handover.make()
        self._own_ends = () if handed else self.ends
        log = logging.Logger("hall")
        log.addFilter(self._keep)
        self.reception = Reception(
            hub=self._hub,
            board=self.others.board,
            slot=self.slot,
            listeners=[os.dup(listener.fileno())],
            taking_fd=self.ends[0],
            make_session=self._make_session,
            begin=self._begin,
            places=places,
            taken=lambda: self.taken,
            most_silent=most_silent,
            allow=[ipaddress.ip_network(allow)] if allow else [],
            log=log,
        )

    def _keep(self, record: logging.LogRecord) -> bool:
        self.logged.append(record.getMessage())
        return False

    def _make_session(self, descriptor: int, peer: str) -> Session:
        self.sessions.append(Session(descriptor, peer, self._hub, LIMITS, HeaderLimits()))
        return self.sessions[-1]

    def _begin(self, session: Session, refusal: Refusal | None) -> None:
        self.begun += 1
        self._attendants.attend(partial(self._serve, refusal), session)

    def _serve(self, refusal: Refusal | None, session: Session) -> None:
        if refusal is not None:
            self.refused.append(refusal.outcome)
            session.fail()
            self.reception.was_refused(session)
            return
        try:
            request = session.receive_request()
            if request is not None:
                session.begin(LIMITS)
                self.heard.append((request.script, session.peer))
            session.close()
        except CallEnded as ended:
            self.interrupted.append(type(ended).__name__)
            session.fail()

    def leave(self) -> bool:
        """Have it accept no more, in the hub; return whether nobody is left."""
        gone: list[bool] = []
        in_hub(lambda: gone.append(self.reception.leave()))
        return gone[0]

    def end(self) -> None:
        """Let go of everything."""
        in_hub(self.reception.close)
        in_hub(self.reception.leave)
        in_hub(lambda: self.reception.stop(monotonic()))
        for descriptor in self._own_ends:
            os.close(descriptor)


class Door:
    """A listening socket of the test's, and who comes to it.

    Attributes:
        listener: The socket.
    """

    def __init__(self, folder: Path) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._folder = folder
        self._halls: list[Hall] = []
        self._callers: list[Any] = []

    def open(self, **settings: Any) -> Hall:
        """Have a reception accept here; see :class:`Hall`."""
        hall = self.prepare(**settings)
        in_hub(hall.reception.open)
        return hall

    def prepare(self, **settings: Any) -> Hall:
        """Make a reception that is not open yet."""
        hall = Hall(self._folder, self.listener, **settings)
        self._halls.append(hall)
        return hall

    def come(self, says: bytes = b"", source: str = "127.0.0.1") -> Any:
        """Connect, and say something."""
        address = self.listener.getsockname()
        caller = gevent.socket.create_connection(address, _WAIT_S, source_address=(source, 0))
        self._callers.append(caller)
        if says:
            caller.sendall(says)
        return caller

    def end(self) -> None:
        """Send everybody home."""
        for caller in self._callers:
            caller.close()
        for hall in self._halls:
            hall.end()
        self.listener.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """A listening socket."""
    made = Door(tmp_path)
    yield made
    made.end()


def until(condition: Callable[[], bool]) -> None:
    """Let the hub go on until something has happened."""
    give_up_s = monotonic() + _WAIT_S
    while not condition():
        assert monotonic() < give_up_s, "it does not happen"
        gevent.sleep(0.001)


def settle() -> None:
    """Let the hub do what there is to do."""
    for _ in range(_TURNS):
        gevent.sleep(0)


def hear_all(caller: Any) -> bytes:
    """Hear a caller out."""
    return b"".join(iter(lambda: caller.recv(4096), b""))


def reset(caller: Any) -> None:
    """Break a connection off, so that the other side reads no end but an error."""
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.close()


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Have no further file descriptor."""
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def take_calls(slot: SlotWriter, calls: int, ended: bool) -> None:
    """Let a worker take calls, and end them if wanted."""
    for _ in range(calls):
        slot.takes_turn()
        slot.call_begins()
        if ended:
            slot.call_ends(failed=False)


# --- how accepting is shared


def steps_back(door: Door, others: int, calls: int, ended: bool, busy: int = 0) -> bool:
    """Tell whether a worker that has taken so many calls would let the others go first.

    Args:
        others: How many there are.
        calls: How many calls the worker has taken.
        ended: Whether these have ended.
        busy: How many calls the first of the others has.
    """
    hall = door.prepare(others=others)
    if busy:
        take_calls(hall.others.slots[0], busy, ended=False)
    take_calls(hall.slot, calls, ended)
    return hall.reception._has_more_than_others()


@pytest.mark.parametrize(
    ("calls", "steps"), [(0, False), (ACTIVE_SLACK, False), (ACTIVE_SLACK + 1, True), (100, True)]
)
def test_busier_worker_steps_back(calls: int, steps: bool, door: Door) -> None:
    """A worker with clearly more calls in progress than the least busy one lets that take the next."""
    assert steps_back(door, 2, calls, ended=False, busy=50) is steps


@pytest.mark.parametrize(("calls", "steps"), [(TURNS_SLACK, False), (TURNS_SLACK + 1, True)])
def test_worker_that_took_more_turns_steps_back(calls: int, steps: bool, door: Door) -> None:
    """Of workers that are equally idle the one that had clearly more turns steps back."""
    assert steps_back(door, 2, calls, ended=True) is steps


def test_newcomer_need_not_catch_up(door: Door) -> None:
    """A new worker counts its turns from where the others stand, and is not flooded."""
    hall = door.prepare(others=2)
    for slot in hall.others.slots:
        take_calls(slot, 1000, ended=True)
    hall.others.board.clear(hall.slot.slot)
    hall.slot.begin(os.getpid(), 1, monotonic())
    hall.slot.set_state(WorkerState.READY)
    take_calls(hall.slot, TURNS_SLACK + 1, ended=True)
    assert hall.reception._has_more_than_others()


def test_worker_alone_never_steps_back(door: Door) -> None:
    """Where nobody else accepts, there is nobody to wait for."""
    assert not steps_back(door, 0, 500, ended=False)


def test_draining_workers_do_not_count(door: Door) -> None:
    """A worker that accepts no more is no reason to step back, however idle it is."""
    hall = door.prepare(others=1)
    hall.others.slots[0].set_state(WorkerState.DRAINING)
    take_calls(hall.slot, 500, ended=False)
    assert not hall.reception._has_more_than_others()


def test_whoever_stepped_back_takes_the_call_if_nobody_does(door: Door) -> None:
    """The least busy worker may hang: a caller waits for it a moment and no longer."""
    hall = door.open(others=1)
    take_calls(hall.slot, 100, ended=False)
    door.come(ENVIRONMENT)
    until(lambda: hall.heard == [("hello", "127.0.0.1")])


def test_a_full_worker_leaves_the_next_to_one_with_places(door: Door) -> None:
    """A worker without a free place takes nobody while another has one, and goes on when it has one."""
    hall = door.open(others=1, places=2)
    hall.taken = 2
    door.come(ENVIRONMENT)
    settle()
    assert hall.slot.turns == 0
    hall.taken = 1
    until(lambda: len(hall.heard) == 1)


def test_a_full_worker_hears_the_next_if_all_are_full(door: Door) -> None:
    """Where no worker has a place, callers are heard, and wait or are told so: not left in the kernel."""
    hall = door.open(others=1, places=2)
    hall.taken = 2
    take_calls(hall.others.slots[0], 2, ended=False)
    take_calls(hall.slot, 2, ended=False)
    door.come(ENVIRONMENT)
    until(lambda: len(hall.heard) == 1)


# --- until it is known what they want


def test_who_has_spoken_is_served_at_once(door: Door) -> None:
    """A caller who has said all by the time he is accepted is served at the first look."""
    hall = door.prepare()
    caller = door.come(ENVIRONMENT)
    in_hub(hall.reception.open)
    until(lambda: hall.heard == [("hello", "127.0.0.1")])
    assert hear_all(caller) == b""


def test_who_says_nothing_costs_no_greenlet(door: Door) -> None:
    """A silent connection is no call until its first word: no greenlet, and only a turn is counted."""
    hall = door.open()
    callers = [door.come() for _ in range(3)]
    until(lambda: hall.slot.turns == 3)
    assert (hall.begun, hall.slot.active) == (0, 0)
    callers[1].sendall(ENVIRONMENT)
    until(lambda: hall.heard == [("hello", "127.0.0.1")])
    assert hall.begun == 1


def test_half_a_word_is_waited_for(door: Door) -> None:
    """An environment in pieces gets a greenlet at its end, whether it began before accept or after."""
    hall = door.open()
    callers = [door.come(), door.come(ENVIRONMENT[:20])]
    until(lambda: hall.slot.turns == 2)
    callers[0].sendall(ENVIRONMENT[:30])
    settle()
    assert hall.begun == 0
    callers[0].sendall(ENVIRONMENT[30:])
    callers[1].sendall(ENVIRONMENT[20:])
    until(lambda: len(hall.heard) == 2)


@pytest.mark.parametrize("soon", [False, True])
@pytest.mark.parametrize("leave", [lambda each: each.close(), reset, lambda each: each.shutdown(1)])
def test_a_probe_is_let_go(leave: Callable[[Any], None], soon: bool, door: Door) -> None:
    """Whoever goes without a word, in order or not, before accept or later, leaves nothing behind."""
    hall = door.prepare()
    caller = door.come()
    if soon:
        leave(caller)
    in_hub(hall.reception.open)
    until(lambda: hall.slot.turns == 1)
    if not soon:
        leave(caller)
    until(lambda: not hall.reception._silent)
    settle()
    assert (hall.begun, hall.slot.active) == (0, 0)
    assert [session.fileno() for session in hall.sessions] == [-1]


@pytest.mark.parametrize("begins", [b"", ENVIRONMENT[:30]], ids=["silent", "half heard"])
def test_too_many_silent_ones(begins: bytes, door: Door) -> None:
    """Of more than may say nothing, or half of it, the one that came first is told so, others are heard."""
    hall = door.open(most_silent=2)
    callers = []
    for number in range(3):
        callers.append(door.come(begins))
        until(lambda number=number: hall.slot.turns == number + 1)  # type: ignore[misc]
    assert hear_all(callers[0]) == FAILURE_LINE
    assert hall.refused == ["overload"]
    for caller in callers[1:]:
        caller.sendall(ENVIRONMENT[len(begins) :])
    until(lambda: len(hall.heard) == 2)


def test_who_is_told_so_while_he_begins_to_speak(door: Door) -> None:
    """A silent one whose first word comes while he is being refused is refused, once, and not served too."""
    hall = door.open(most_silent=1)
    first = door.come()
    until(lambda: hall.slot.turns == 1)
    # Both are found by the hub in the same turn.
    first.sendall(ENVIRONMENT)
    door.come()
    until(lambda: hall.begun > 0)
    settle()
    assert (hall.begun, len(hall.heard) + len(hall.refused)) == (1, 1)


def test_silent_ones_are_ended_in_portions(door: Door) -> None:
    """Whoever says nothing for too long is told so; thousands at once keep no call from its turn."""
    hall = door.open(most_silent=MOST_ENDED + 5)
    callers = [door.come() for _ in range(MOST_ENDED + 1)]
    until(lambda: hall.slot.turns == len(callers))
    in_hub(lambda: hall.reception.sweep(monotonic()))
    assert hall.interrupted == []
    late_s = monotonic() + LIMITS.header_s
    in_hub(lambda: hall.reception.sweep(late_s))
    assert hall.interrupted == ["CallTimeout"] * MOST_ENDED
    in_hub(lambda: hall.reception.sweep(late_s))
    assert hall.interrupted == ["CallTimeout"] * len(callers)
    assert {hear_all(caller) for caller in callers} == {FAILURE_LINE}


def test_silent_ones_are_stopped(door: Door) -> None:
    """A worker that must end tells its silent connections too."""
    hall = door.open()
    caller = door.come()
    until(lambda: hall.slot.turns == 1)
    in_hub(lambda: hall.reception.stop(monotonic()))
    assert hear_all(caller) == FAILURE_LINE
    assert hall.interrupted == ["CallStopped"]


# --- who may call


def test_an_address_that_may_not_call(door: Door) -> None:
    """Who is not in the list is told so, whatever he says, and others are served."""
    hall = door.open(allow="127.0.0.2/32")
    strangers = [door.come(), door.come(ENVIRONMENT)]
    assert [hear_all(stranger) for stranger in strangers] == [FAILURE_LINE] * 2
    assert hall.refused == ["denied", "denied"]
    door.come(ENVIRONMENT, source="127.0.0.2")
    until(lambda: hall.heard == [("hello", "127.0.0.2")])


def test_the_deaf_keep_nobody_out(door: Door) -> None:
    """Strangers who do not listen to their refusal, however many, keep no caller waiting."""
    hall = door.open(allow="127.0.0.2/32")
    strangers = [door.come() for _ in range(MOST_REFUSED + 3)]
    door.come(ENVIRONMENT, source="127.0.0.2")
    settle()
    until(lambda: len(hall.heard) == 1 and len(hall.refused) == len(strangers))
    assert len(hall.reception._refused) == MOST_REFUSED
    # All were told, those too who were not waited for.
    assert {hear_all(stranger) for stranger in strangers} == {FAILURE_LINE}


# --- when the machine has nothing left


def test_without_descriptors_callers_wait(door: Door) -> None:
    """When the process is out of descriptors callers wait in the kernel, and come in when there are some."""
    hall = door.prepare()
    caller = door.come(ENVIRONMENT)
    with no_descriptors():
        in_hub(hall.reception.open)
        until(lambda: len(hall.logged) > 0)
        assert hall.heard == []
    until(lambda: len(hall.heard) == 1)
    assert hall.logged[0].startswith("cannot accept: ")
    assert hear_all(caller) == b""


def test_without_descriptors_a_handover_waits(door: Door) -> None:
    """What a dead worker left waits too, and nothing of it is lost."""
    hall = door.prepare()
    caller = door.come(ENVIRONMENT)
    give(hall, door)
    with no_descriptors():
        in_hub(hall.reception.open)
        until(lambda: len(hall.logged) > 0)
    until(lambda: len(hall.heard) == 1)
    assert hall.logged[0].startswith("cannot take the calls of a worker that died: ")
    assert hear_all(caller) == b""


def test_without_descriptors_nobody_leaves(door: Door) -> None:
    """A worker that must serve whoever waits does not go before it had descriptors for them."""
    hall = door.open()
    refuse_newcomers_of(door, [ENVIRONMENT])
    with no_descriptors():
        assert not hall.leave()
        assert not hall.leave()
    assert hall.leave()
    until(lambda: len(hall.heard) == 1)


# --- what dead workers leave


def give(hall: Hall, door: Door) -> None:
    """Hand over who has connected, as the witness of a worker does that died before it began with them."""
    door.listener.settimeout(_WAIT_S)
    connection, _ = door.listener.accept()
    assert handover.give(hall.ends[1], [connection.fileno()]) == []
    connection.close()


@pytest.mark.parametrize("says", [b"", ENVIRONMENT[:20], ENVIRONMENT])
def test_what_a_dead_worker_had_not_begun(says: bytes, door: Door) -> None:
    """A connection that is handed over is heard from its beginning, however much it had said."""
    hall = door.prepare()
    caller = door.come(says)
    give(hall, door)
    in_hub(hall.reception.open)
    until(lambda: hall.slot.turns == 1)
    caller.sendall(ENVIRONMENT[len(says) :])
    until(lambda: hall.heard == [("hello", "127.0.0.1")])
    assert hear_all(caller) == b""


def test_who_is_gone_before_he_is_taken_over(door: Door) -> None:
    """A handed over connection whose caller has left meanwhile is closed, and the next is taken."""
    hall = door.prepare()
    reset_one = door.come(ENVIRONMENT)
    give(hall, door)
    reset(reset_one)
    door.come().close()
    give(hall, door)
    door.come(ENVIRONMENT)
    give(hall, door)
    in_hub(hall.reception.open)
    until(lambda: len(hall.heard) == 1)
    settle()
    assert (hall.begun, hall.logged) == (1, [])


def test_a_unix_connection_is_handed_over(door: Door) -> None:
    """Who came by a unix socket is known as such in the next worker too."""
    hall = door.open(allow="10.0.0.0/8")
    ours, theirs = socket.socketpair()
    theirs.sendall(ENVIRONMENT)
    assert handover.give(hall.ends[1], [ours.fileno()]) == []
    ours.close()
    until(lambda: hall.heard == [("hello", "unix")])
    theirs.close()


def test_a_stranger_is_no_friend_by_being_handed_over(door: Door) -> None:
    """Whoever is handed over must be allowed to call, as everybody."""
    hall = door.prepare(allow="10.0.0.0/8")
    stranger = door.come(ENVIRONMENT)
    give(hall, door)
    in_hub(hall.reception.open)
    assert hear_all(stranger) == FAILURE_LINE
    assert hall.refused == ["denied"]


# --- to leave


def refuse_newcomers_of(door: Door, queue: list[bytes]) -> list[Any]:
    """Let nobody join the queue any more, but those who say this."""
    callers = [door.come(says) for says in queue]
    refuse_newcomers(door.listener)
    return callers


def test_who_waits_is_left_to_the_others(door: Door) -> None:
    """A worker that leaves while others stay takes nobody more, neither from the kernel nor from the dead."""
    leaving = door.open()
    assert leaving.leave()
    hall = door.prepare(handed=leaving.ends)
    door.come(ENVIRONMENT)
    give(leaving, door)
    door.come(ENVIRONMENT)
    settle()
    assert (leaving.slot.turns, leaving.begun) == (0, 0)
    in_hub(hall.reception.open)
    until(lambda: len(hall.heard) == 2)
    assert leaving.begun == 0


def test_who_waits_is_ours_if_nobody_stays(door: Door) -> None:
    """When nobody new may come, whoever waits is served by the workers that leave, the silent ones too."""
    hall = door.open()
    # What is in the queue is not looked at before the order to leave.
    speaking, silent = refuse_newcomers_of(door, [ENVIRONMENT, b""])
    assert not hall.leave()
    until(lambda: len(hall.heard) == 1)
    assert hear_all(speaking) == b""
    assert not hall.leave()
    silent.sendall(ENVIRONMENT)
    until(lambda: len(hall.heard) == 2)
    assert hall.leave()


def test_the_last_workers_take_over_from_each_other(door: Door) -> None:
    """When nobody new may come, one that leaves takes what a worker leaves that dies, until it ends."""
    hall = door.prepare()
    door.come(ENVIRONMENT)
    connection, _ = door.listener.accept()
    in_hub(hall.reception.open)
    refuse_newcomers(door.listener)
    assert hall.leave()
    assert handover.give(hall.ends[1], [connection.fileno()]) == []
    until(lambda: len(hall.heard) == 1)
    in_hub(hall.reception.close)
    assert handover.give(hall.ends[1], [connection.fileno()]) == []
    settle()
    assert hall.begun == 1
    connection.close()


def test_a_silent_connection_goes_before_the_worker_does(door: Door) -> None:
    """A worker that leaves waits for those who have said nothing yet: they are its own."""
    hall = door.open()
    caller = door.come()
    until(lambda: hall.slot.turns == 1)
    assert not hall.leave()
    caller.close()
    until(hall.leave)
    assert hall.begun == 0


def test_a_worker_that_was_never_open_takes_who_waits(door: Door) -> None:
    """An order to leave before the first call is obeyed all the same, and callers who wait are served."""
    hall = door.prepare()
    refuse_newcomers_of(door, [ENVIRONMENT])
    assert hall.leave()
    until(lambda: len(hall.heard) == 1)


def test_doors_are_closed_for_newcomers(tmp_path: Path) -> None:
    """Without a master nobody would accept who comes later: he is not let in to wait for ever."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        hall = Hall(tmp_path, listener)
        in_hub(hall.reception.open)
        with gevent.socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
            caller.sendall(ENVIRONMENT)
            hall.reception.close_the_doors()
            assert not path.exists()
            hall.leave()
            until(lambda: hall.heard == [("hello", "unix")])
        hall.end()
