"""fastagi_pool.session: one connection each, on a real hub, with this test playing Asterisk.

The handler's side runs in a greenlet of its own; the test's own greenlet is the peer.
"""

from __future__ import annotations

import fcntl
import math
import os
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import gevent.event
import gevent.socket
import pytest
from conftest import ManualClock

from fastagi_pool.callboard import NO_ROW, CallBoard, CallFacts, CallRow, CallState, Clocks, read_calls
from fastagi_pool.custody import NO_CUSTODY, Custody, Held, NoCustody, most_descriptors
from fastagi_pool.errors import (
    AGICallFinished,
    CallEnded,
    CallHangup,
    CallOutOfStep,
    CallPeerGone,
    CallStopped,
    CallTimeout,
    RemoteProtocolError,
)
from fastagi_pool.protocol import HeaderLimits, Reply, Request
from fastagi_pool.session import (
    CLOSING_S,
    REMEMBERED_COMMANDS,
    Look,
    Said,
    Session,
    SessionLimits,
)

#: Far more than anything here takes.
WAIT_S = 5.0
#: Long enough to be told from nothing, short enough for a test.
MOMENT_S = 0.03

ENVIRONMENT = b"agi_network: yes\nagi_network_script: hello\nagi_uniqueid: 1700000000.1\n\n"
LIMITS = SessionLimits(header_s=10.0, idle_s=300.0, script_s=60.0)
OK = Reply(200, "0")


@dataclass
class Link:
    """A session and the other end of its connection."""

    session: Session
    peer: Any

    def run(self, script: Callable[[Session], object]) -> Running:
        """Let the session's greenlet do something, beginning now."""
        return Running(self, script)

    def say(self, data: bytes) -> None:
        """Send as Asterisk."""
        self.peer.sendall(data)

    def hear(self, size: int) -> bytes:
        """Receive exactly so many bytes."""
        data = b""
        while len(data) < size:
            piece: bytes = self.peer.recv(size - len(data))
            assert piece, f"the connection ended behind {data!r}"
            data += piece
        return data

    def hear_line(self) -> bytes:
        """Receive one line."""
        line = b""
        while not line.endswith(b"\n"):
            line += self.hear(1)
        return line

    def hear_all(self) -> bytes:
        """Receive until the session closes its side."""
        data = b""
        while piece := self.peer.recv(65536):
            data += piece
        return data

    def greet(self) -> None:
        """Send an environment and let the session take it."""
        self.say(ENVIRONMENT)
        self.run(lambda session: session.receive_request()).result()
        self.session.begin(LIMITS)


class Running:
    """What the session's greenlet does, and how it ends."""

    def __init__(self, link: Link, script: Callable[[Session], object]) -> None:
        self._over = gevent.event.Event()
        self._result: object = None
        self._raised: BaseException | None = None
        link.session.greenlet = gevent.spawn(self._run, link.session, script)
        gevent.sleep(0)

    def _run(self, session: Session, script: Callable[[Session], object]) -> None:
        try:
            self._result = script(session)
        except BaseException as raised:
            self._raised = raised
        session.greenlet = None
        self._over.set()

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._over.ready() is True

    def result(self) -> object:
        """Wait for the end; return or raise what came of it."""
        assert self._over.wait(WAIT_S), "the session's greenlet does not end"
        if self._raised is not None:
            raise self._raised
        return self._result


class Waiting:
    """Whoever awaits a session's word, without a greenlet.

    Attributes:
        called: Each session that was told of, and how.
    """

    def __init__(self, link: Link) -> None:
        self.called: list[tuple[Session, Look]] = []
        self._told = gevent.event.Event()
        link.session.await_word(self._on_word)

    def _on_word(self, session: Session, look: Look) -> None:
        self.called.append((session, look))
        self._told.set()

    def look(self) -> Look:
        """Wait until it is told what the session has to say."""
        assert self._told.wait(WAIT_S), "nobody is told"
        [(_, look)] = self.called
        return look


def in_hub(work: Callable[[], object]) -> None:
    """Do something in the hub, as the worker's timers do, and wait until it is done."""
    done = gevent.event.Event()

    def do() -> None:
        work()
        done.set()

    gevent.get_hub().loop.run_callback(do)
    assert done.wait(WAIT_S)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets of the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), WAIT_S)
        ours, _ = listener.accept()
    return ours, theirs


def connect(
    pair: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair,
    limits: SessionLimits = LIMITS,
    row: CallRow = NO_ROW,
    custody: Custody | NoCustody = NO_CUSTODY,
) -> Link:
    """Make a session with a peer."""
    ours, theirs = pair()
    ours.setblocking(False)
    family = theirs.family
    peer = gevent.socket.socket(family, socket.SOCK_STREAM, fileno=theirs.detach())
    peer.settimeout(WAIT_S)
    session = Session(ours.detach(), "10.0.0.7", gevent.get_hub(), limits, HeaderLimits(), row, custody)
    return Link(session, peer)


@pytest.fixture(params=[socket.socketpair, tcp_pair], ids=["unix", "tcp"])
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    """A session and its peer, over each kind of connection."""
    link = connect(request.param)
    yield link
    link.session.close()
    link.peer.close()


# ---- the environment


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_environment_in_pieces(link: Link, size: int) -> None:
    """However the environment is cut, the request is the same."""
    running = link.run(lambda session: session.receive_request())
    for start in range(0, len(ENVIRONMENT), size):
        link.say(ENVIRONMENT[start : start + size])
        gevent.sleep(0)
    request = running.result()
    assert isinstance(request, Request)
    assert (request.script, request.uniqueid) == ("hello", "1700000000.1")


def test_a_probe_is_no_request(link: Link) -> None:
    """A peer that closes without a word, as a load balancer's check does, is told from a caller."""
    link.peer.close()
    assert link.run(lambda session: session.receive_request()).result() is None


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01"])
def test_what_is_not_agi_is_refused(link: Link, start: bytes) -> None:
    """Another protocol is recognised by its first bytes, without waiting for more."""
    link.say(start)
    with pytest.raises(RemoteProtocolError, match="not AGI"):
        link.run(lambda session: session.receive_request()).result()


def test_half_an_environment_is_refused(link: Link) -> None:
    """A peer that closes inside the environment was no probe."""
    link.say(ENVIRONMENT[:30])
    link.peer.close()
    with pytest.raises(RemoteProtocolError, match="closed inside the environment"):
        link.run(lambda session: session.receive_request()).result()


def test_an_environment_larger_than_one_read(link: Link) -> None:
    """What does not fit into one read is read in several."""
    filler = b"".join(b"agi_arg_%d: %s\n" % (number, b"x" * 400) for number in range(1, 101))
    running = link.run(lambda session: session.receive_request())
    link.say(ENVIRONMENT[:-1] + filler + b"\n")
    request = running.result()
    assert isinstance(request, Request)
    assert len(request.arguments) == 100


# ---- before the call begins


def unread(link: Link) -> int:
    """How many bytes lie in the kernel for this session."""
    room = bytearray(4)
    fcntl.ioctl(link.session.fileno(), termios.FIONREAD, room)
    return int.from_bytes(room, sys.byteorder)


def wakes_at(link: Link) -> int:
    """How many bytes must lie in the kernel before it wakes this session."""
    with socket.socket(fileno=os.dup(link.session.fileno())) as connection:
        return connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


def turn() -> None:
    """Let the hub do what there is to do."""
    for _ in range(3):
        gevent.sleep(0)
    gevent.sleep(0.001)


def receiving(session: Session) -> object:
    """Read the environment."""
    return session.receive_request()


def test_an_environment_stays_in_the_kernel(link: Link) -> None:
    """Until the call begins another process finds all that the peer has said; then exactly that is taken."""
    link.say(ENVIRONMENT)
    assert isinstance(link.run(receiving).result(), Request)
    assert unread(link) == len(ENVIRONMENT)
    link.say(b"HANGUP\n")
    link.session.begin(LIMITS)
    assert unread(link) == len(b"HANGUP\n")
    running = link.run(lambda session: session.execute(b"NOOP\n"))
    link.hear_line()
    link.say(b"200 result=0\n")
    with pytest.raises(CallHangup):
        running.result()


@pytest.mark.parametrize(("pair", "left"), [(tcp_pair, True), (socket.socketpair, False)])
def test_an_environment_in_pieces_stays_where_the_kernel_can_wait(
    pair: Callable[[], tuple[socket.socket, socket.socket]], left: bool
) -> None:
    """Over TCP pieces stay in the kernel as well; over a unix socket they do not, and that is known."""
    custody = Custody(most_descriptors())
    link = connect(pair, custody=custody)
    link.say(ENVIRONMENT[:40])
    running = link.run(receiving)
    turn()
    link.say(ENVIRONMENT[40:])
    assert isinstance(running.result(), Request)
    descriptor = link.session.fileno()
    assert unread(link) == (len(ENVIRONMENT) if left else 0)
    # What is being judged may be what ends the process; what only waits is not.
    assert custody.held([descriptor]) == [Held(descriptor, begun=True, row=None)]
    link.session.queues()
    assert custody.held([descriptor]) == [Held(descriptor, begun=not left, row=None)]
    link.session.close()


def test_half_an_environment_does_not_spin(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known already wakes nobody, however long the rest takes; the next byte does."""
    looks: list[str] = []
    for name in ("_peek", "_receive"):
        original = getattr(Session, name)

        def counted(*arguments: Any, name: str = name, original: Any = original) -> Any:
            looks.append(name)
            return original(*arguments)

        monkeypatch.setattr(Session, name, counted)
    link.say(ENVIRONMENT[:40])
    running = link.run(receiving)
    for _ in range(20):
        turn()
    assert len(looks) <= 2
    link.say(ENVIRONMENT[40:])
    assert isinstance(running.result(), Request)


def test_a_mark_is_taken_back() -> None:
    """Once the environment is whole, a reply of any length wakes the session."""
    link = connect(tcp_pair)
    running = link.run(receiving)
    for start in range(0, len(ENVIRONMENT), 20):
        link.say(ENVIRONMENT[start : start + 20])
        turn()
    running.result()
    assert wakes_at(link) == 1
    link.session.close()


def test_a_late_environment_is_interrupted(link: Link) -> None:
    """A peer that stops in the middle of its environment is told a failure when the time is over."""
    link.say(ENVIRONMENT[:40])
    running = link.run(receiving)
    turn()
    in_hub(lambda: link.session.expire(monotonic()))
    with pytest.raises(CallTimeout, match="header"):
        running.result()
    link.run(lambda session: session.fail())
    assert link.hear_all() == b"failure\n"


def test_a_peer_that_goes_before_its_call_begins(link: Link) -> None:
    """A peer that closed while its call waited is found at its first command, as any other."""
    link.say(ENVIRONMENT)
    link.run(receiving).result()
    link.peer.close()
    link.session.begin(LIMITS)
    with pytest.raises(CallPeerGone):
        link.run(lambda session: session.execute(b"NOOP\n")).result()


def test_a_connection_that_broke_before_its_call_begins() -> None:
    """A reset while the call waited ends it at its beginning or at its first command, and never hangs."""
    link = connect(tcp_pair)
    link.say(ENVIRONMENT)
    link.run(receiving).result()
    link.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.peer.close()

    def go_on(session: Session) -> None:
        session.begin(LIMITS)
        session.execute(b"NOOP\n")

    with pytest.raises(CallPeerGone):
        link.run(go_on).result()
    link.session.close()


# ---- without a greenlet


def test_a_look(link: Link) -> None:
    """Silence and a word are told apart without waiting, and a word that was seen is not lost."""
    assert link.session.look() == "silent"
    link.say(ENVIRONMENT)
    turn()
    assert link.session.look() == "word"
    assert isinstance(link.run(receiving).result(), Request)


@pytest.mark.parametrize("reset", [False, True])
def test_a_probe_is_seen_at_a_look(reset: bool) -> None:
    """A peer that closes or resets the connection without a word needs no greenlet."""
    link = connect(tcp_pair)
    if reset:
        link.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.peer.close()
    assert link.session.look() == "closed"
    link.session.close()


def test_a_word_is_awaited_without_a_greenlet(link: Link) -> None:
    """Whoever awaits a word is called once, with the session, when it is known what is wanted."""
    waiting = Waiting(link)
    turn()
    assert waiting.called == []
    link.say(ENVIRONMENT)
    assert waiting.look() == "word"
    turn()
    assert waiting.called == [(link.session, "word")]
    assert isinstance(link.run(receiving).result(), Request)


def test_half_a_word_is_waited_for_without_a_greenlet() -> None:
    """However small the pieces, nobody is called before the last, and none is taken out of the kernel."""
    link = connect(tcp_pair)
    link.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    waiting = Waiting(link)
    for number in range(len(ENVIRONMENT)):
        assert waiting.called == []
        link.say(ENVIRONMENT[number : number + 1])
        turn()
    assert waiting.look() == "word"
    assert unread(link) == len(ENVIRONMENT)
    assert wakes_at(link) == 1
    assert isinstance(link.run(receiving).result(), Request)
    link.session.close()


def test_over_a_unix_socket_half_a_word_is_not_waited_for() -> None:
    """Where the kernel cannot wait for more than there is, whoever serves the session waits for the rest."""
    link = connect()
    waiting = Waiting(link)
    link.say(ENVIRONMENT[:10])
    assert waiting.look() == "word"
    link.say(ENVIRONMENT[10:])
    assert isinstance(link.run(receiving).result(), Request)
    link.session.close()


@pytest.mark.parametrize("reset", [False, True])
def test_whoever_leaves_inside_a_word_is_heard_of(reset: bool) -> None:
    """A peer that closes or resets the connection inside the environment is no probe, and that is told."""
    link = connect(tcp_pair)
    waiting = Waiting(link)
    link.say(ENVIRONMENT[:10])
    turn()
    if reset:
        link.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.peer.close()
    assert waiting.look() == "word"
    with pytest.raises(CallPeerGone if reset else RemoteProtocolError):
        link.run(receiving).result()
    link.session.close()


def test_garbage_needs_no_more_than_one_look(link: Link) -> None:
    """What is no AGI is known at once, and told to whoever serves the session."""
    link.say(b"GET / HTTP/1.1\r\n")
    turn()
    assert link.session.look() == "word"
    with pytest.raises(RemoteProtocolError, match="not AGI"):
        link.run(receiving).result()


def test_more_than_fits_into_the_kernel_is_not_waited_for_there() -> None:
    """Of more than the kernel surely holds it cannot wait for the rest; whoever serves the session does."""
    link = connect(tcp_pair)
    waiting = Waiting(link)
    filler = b"".join(b"agi_arg_%d: %s\n" % (number, b"x" * 400) for number in range(1, 101))
    link.say(ENVIRONMENT[:-1] + filler)
    for _ in range(10):
        assert waiting.look() == "word"
    link.say(b"\n")
    assert isinstance(link.run(receiving).result(), Request)
    link.session.close()


@pytest.mark.parametrize(
    ("interrupt", "raised"),
    [
        (lambda session: session.expire(monotonic()), CallTimeout),
        (lambda session: session.stop(monotonic()), CallStopped),
    ],
    ids=["expire", "stop"],
)
def test_a_silent_session_is_interrupted(
    link: Link, interrupt: Callable[[Session], None], raised: type[CallEnded]
) -> None:
    """Without a greenlet whoever awaits the word is called, once, and who serves the session learns why."""
    waiting = Waiting(link)
    in_hub(lambda: interrupt(link.session))
    in_hub(lambda: interrupt(link.session))
    assert waiting.look() == "word"
    with pytest.raises(raised):
        link.run(receiving).result()


def test_nobody_is_called_behind_the_end(link: Link) -> None:
    """A session that was closed while a word was awaited calls nobody any more."""
    waiting = Waiting(link)
    link.session.close()
    with suppress(OSError):
        link.say(ENVIRONMENT)
    in_hub(lambda: link.session.expire(monotonic()))
    assert waiting.called == []


# ---- who survives this process


def test_what_stands_in_custody(tmp_path: Path) -> None:
    """From accept to close it stands there whether the call has begun, and in which row."""
    custody = Custody(most_descriptors())
    board = CallBoard.create(tmp_path / "0", 0, os.getpid(), 10)
    board.take()
    link = connect(tcp_pair, custody=custody)
    descriptor = link.session.fileno()
    assert custody.held([descriptor]) == [Held(descriptor, begun=False, row=None)]
    link.session.show_in(board.take())
    link.greet()
    assert custody.held([descriptor]) == [Held(descriptor, begun=True, row=1)]
    link.session.close()
    assert custody.held([descriptor]) == []


def test_a_call_that_is_refused_is_nobody_elses() -> None:
    """From the moment when a failure is told, nobody else may serve the call."""
    custody = Custody(most_descriptors())
    link = connect(tcp_pair, custody=custody)
    descriptor = link.session.fileno()
    running = link.run(lambda session: session.fail())
    assert custody.held([descriptor]) == [Held(descriptor, begun=True, row=None)]
    link.peer.close()
    running.result()
    assert custody.held([descriptor]) == []


def test_a_call_is_shown_later(tmp_path: Path) -> None:
    """A row that the session gets after accept shows since when it is there, and from whom."""
    board = CallBoard.create(tmp_path / "0", 0, os.getpid(), 10)
    link = connect()
    link.session.show_in(board.take())
    link.session.row.show()
    [facts] = read_calls(tmp_path / "0", 0)
    assert (facts.peer, facts.accepted_s) == ("10.0.0.7", link.session.accepted_s)
    link.session.close()


# ---- commands


def test_a_command_and_its_reply(link: Link) -> None:
    """A command goes out as it is, and its reply comes back."""
    link.greet()
    running = link.run(lambda session: session.execute(b"GET VARIABLE X\n"))
    assert link.hear_line() == b"GET VARIABLE X\n"
    link.say(b"200 result=1 (value)\n")
    assert running.result() == Reply(200, "1", "value")
    assert link.session.commands == 1


@pytest.mark.parametrize("size", [1, 5])
def test_a_reply_in_pieces(link: Link, size: int) -> None:
    """A reply that comes in pieces is waited for whole."""
    link.greet()
    running = link.run(lambda session: session.execute(b"GET VARIABLE X\n"))
    reply = b"200 result=1 (two\nlines)\n"
    for start in range(0, len(reply), size):
        assert not running.is_over
        link.say(reply[start : start + size])
        gevent.sleep(0)
    assert running.result() == Reply(200, "1", "two\nlines")


def test_a_conversation_stays_in_step(link: Link) -> None:
    """Each of many commands gets its own reply."""
    link.greet()

    def ask(session: Session) -> list[str]:
        return [session.execute(b"GET VARIABLE X%d\n" % number).value or "" for number in range(20)]

    running = link.run(ask)
    for _ in range(20):
        name = link.hear_line().split()[-1]
        link.say(b"200 result=1 (%s)\n" % name)
    assert running.result() == [f"X{number}" for number in range(20)]


def test_a_peer_that_closes_is_gone(link: Link) -> None:
    """A connection that ends inside a command ends the call, and every later command says so again."""
    link.greet()
    running = link.run(lambda session: session.execute(b"NOOP\n"))
    link.hear_line()
    link.peer.close()
    with pytest.raises(CallPeerGone):
        running.result()
    with pytest.raises(CallPeerGone):
        link.run(lambda session: session.execute(b"NOOP\n")).result()
    assert link.session.commands == 1


def test_a_reset_connection_is_gone() -> None:
    """A peer that resets the connection, as a machine that restarted does, is gone like any other."""
    link = connect(tcp_pair)
    link.greet()
    running = link.run(lambda session: session.execute(b"NOOP\n"))
    link.hear_line()
    link.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.peer.close()
    with pytest.raises(CallPeerGone, match="the connection broke"):
        running.result()
    link.session.close()


def test_writing_to_a_peer_that_left(link: Link) -> None:
    """A peer that left between two commands is found at the next one."""
    link.greet()
    link.peer.close()
    with pytest.raises(CallPeerGone):
        link.run(lambda session: session.execute(b"NOOP\n")).result()


def test_nonsense_is_no_reply(link: Link) -> None:
    """An answer that is not AGI ends the call, and every later command says so again."""
    link.greet()
    running = link.run(lambda session: session.execute(b"NOOP\n"))
    link.hear_line()
    link.say(b"no such thing\n")
    with pytest.raises(CallOutOfStep):
        running.result()
    with pytest.raises(CallOutOfStep):
        link.run(lambda session: session.execute(b"NOOP\n")).result()


# ---- hangups


def in_step(session: Session) -> list[object]:
    """Send three commands, and keep what each brought."""
    seen: list[object] = []
    for number in range(3):
        try:
            seen.append(session.execute(b"NOOP %d\n" % number))
        except CallHangup:
            seen.append("hangup")
    return seen


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ([b"HANGUP\n200 result=0\n"], ["hangup", OK, OK]),
        ([b"HANGUP\n", b"200 result=0\n"], ["hangup", OK, OK]),
        ([b"HAN", b"GUP\n200 res", b"ult=0\n"], ["hangup", OK, OK]),
        ([b"200 result=0\nHANGUP\n"], [OK, "hangup", OK]),
        ([b"HANGUP\nHANGUP\n200 result=0\nHANGUP\n"], ["hangup", OK, OK]),
        ([b"520-Invalid\nHANGUP\nUsage: NOOP\n520 End\n"], ["hangup", OK, OK]),
    ],
    ids=["before", "before, apart", "in pieces", "behind", "often", "inside"],
)
def test_a_hangup_is_told_once_and_in_step(link: Link, first: list[bytes], expected: list[object]) -> None:
    """Wherever HANGUP stands it is raised once, behind the reply it came with, and no reply is lost."""
    link.greet()
    running = link.run(in_step)
    link.hear_line()
    for piece in first:
        link.say(piece)
        gevent.sleep(0)
    for _ in range(2):
        link.hear_line()
        link.say(b"200 result=0\n")
    assert running.result() == expected
    assert link.session.hung_up


def test_a_hangup_between_commands_is_told_at_the_next(link: Link) -> None:
    """HANGUP that comes while the handler does something else waits for its next command."""
    link.greet()
    link.say(b"HANGUP\n")
    running = link.run(lambda session: session.execute(b"NOOP\n"))
    link.hear_line()
    link.say(b"511 Command Not Permitted on a dead channel\n")
    with pytest.raises(CallHangup):
        running.result()


def minus_one(session: Session) -> object:
    """Send a command, and wait for the hangup that its -1 may mean."""
    session.execute(b"EXEC Dial\n")
    session.await_hangup()
    return "no hangup"


@pytest.fixture
def long_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a HANGUP behind -1 waited for longer than any test waits."""
    monkeypatch.setattr("fastagi_pool.session.HANGUP_GRACE_S", 10 * WAIT_S)


@pytest.mark.usefixtures("long_grace")
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_a_hangup_behind_a_minus_one_is_awaited(link: Link, apart: bool) -> None:
    """HANGUP right behind -1 is found, whether it came with the reply or a little later."""
    link.greet()
    running = link.run(minus_one)
    link.hear_line()
    link.say(b"200 result=-1\n" + (b"" if apart else b"HANGUP\n"))
    if apart:
        gevent.sleep(0.001)
        link.say(b"HANGUP\n")
    with pytest.raises(CallHangup):
        running.result()
    assert link.session.hung_up


@pytest.mark.usefixtures("long_grace")
def test_a_hangup_that_is_there_is_not_waited_for(link: Link) -> None:
    """HANGUP that arrived together with -1 costs no time: the grace would be too long for this test."""
    link.greet()
    running = link.run(minus_one)
    link.hear_line()
    link.say(b"200 result=-1\nHANGUP\n")
    with pytest.raises(CallHangup):
        running.result()


def test_a_minus_one_without_hangup(link: Link) -> None:
    """If no HANGUP follows, the grace ends by itself and the call goes on."""
    link.greet()
    running = link.run(minus_one)
    link.hear_line()
    link.say(b"200 result=-1\n")
    assert running.result() == "no hangup"
    again = link.run(lambda session: session.execute(b"NOOP\n"))
    link.hear_line()
    link.say(b"200 result=0\n")
    assert again.result() == OK


def test_a_hangup_that_was_told_is_not_told_again(link: Link) -> None:
    """A handler that goes on after the hangup is not stopped by each -1 that follows."""
    link.greet()

    def go_on(session: Session) -> object:
        try:
            session.execute(b"NOOP\n")
        except CallHangup:
            return minus_one(session)
        return "no hangup at all"

    running = link.run(go_on)
    link.hear_line()
    link.say(b"HANGUP\n200 result=0\n")
    link.hear_line()
    link.say(b"200 result=-1\n")
    assert running.result() == "no hangup"


def noting(link: Link) -> None:
    """Let the session take an environment, under a route on which hangups are only noted."""
    link.greet()
    link.session.begin(LIMITS, raise_hangup=False)


@pytest.mark.parametrize(
    "first",
    [
        [b"HANGUP\n200 result=0\n"],
        [b"HAN", b"GUP\n200 res", b"ult=0\n"],
        [b"200 result=0\nHANGUP\n"],
        [b"HANGUP\nHANGUP\n200 result=0\nHANGUP\n"],
    ],
    ids=["before", "in pieces", "behind", "often"],
)
def test_a_hangup_can_be_noted_only(link: Link, first: list[bytes]) -> None:
    """Where the route says so, no hangup is raised, and every command gets its own reply."""
    noting(link)
    running = link.run(in_step)
    link.hear_line()
    for piece in first:
        link.say(piece)
        gevent.sleep(0)
    for _ in range(2):
        link.hear_line()
        link.say(b"200 result=0\n")
    assert running.result() == [OK, OK, OK]
    assert link.session.hung_up


@pytest.mark.usefixtures("long_grace")
def test_a_hangup_behind_a_minus_one_is_noted(link: Link) -> None:
    """Where hangups are only noted, one that broke off a command is known before that command returns."""
    noting(link)
    running = link.run(minus_one)
    link.hear_line()
    link.say(b"200 result=-1\n")
    gevent.sleep(0.001)
    assert not running.is_over
    link.say(b"HANGUP\n")
    assert running.result() == "no hangup"
    assert link.session.hung_up


def test_a_peer_that_closes_is_gone_all_the_same(link: Link) -> None:
    """Only hangups are noted: an Asterisk that closes ends the call on any route."""
    noting(link)
    running = link.run(lambda session: session.execute(b"NOOP\n"))
    link.hear_line()
    link.say(b"HANGUP\n")
    link.peer.close()
    with pytest.raises(CallPeerGone):
        running.result()


def test_a_close_behind_a_minus_one_is_a_peer_gone(link: Link) -> None:
    """If Asterisk closes behind -1, the handler that goes on finds the peer gone, not a bug of ours."""
    link.greet()

    def go_on(session: Session) -> None:
        minus_one(session)
        session.execute(b"NOOP\n")

    running = link.run(go_on)
    link.hear_line()
    link.say(b"200 result=-1\n")
    link.peer.close()
    with pytest.raises(CallPeerGone):
        running.result()


# ---- limits


def test_the_header_limit(link: Link) -> None:
    """An environment that does not come is ended by the header's limit."""
    running = link.run(lambda session: session.receive_request())
    session = link.session
    assert session.deadline_s == session.accepted_s + LIMITS.header_s
    in_hub(lambda: session.expire(session.deadline_s))
    with pytest.raises(CallTimeout) as caught:
        running.result()
    assert (caught.value.limit, caught.value.limit_s) == ("header", 10.0)


def test_the_idle_limit(link: Link) -> None:
    """An answer that does not come is ended by the idle limit."""
    link.greet()
    running = link.run(lambda session: session.execute(b"NOOP\n"))
    link.hear_line()
    session = link.session
    assert session.deadline_s == pytest.approx(monotonic() + LIMITS.idle_s, abs=WAIT_S)
    in_hub(lambda: session.expire(session.deadline_s))
    with pytest.raises(CallTimeout) as caught:
        running.result()
    assert (caught.value.limit, caught.value.limit_s) == ("idle", 300.0)


def test_the_script_limit(link: Link) -> None:
    """A handler that takes too long is ended by the script's limit, wherever it waits."""
    link.greet()
    running = link.run(lambda session: gevent.event.Event().wait(WAIT_S))
    session = link.session
    assert session.deadline_s == pytest.approx(monotonic() + LIMITS.script_s, abs=WAIT_S)
    in_hub(lambda: session.expire(session.deadline_s))
    with pytest.raises(CallTimeout) as caught:
        running.result()
    assert (caught.value.limit, caught.value.limit_s) == ("script", 60.0)


def test_limits_that_are_off_never_end() -> None:
    """A limit of 0 is none, for each of the three."""
    off = SessionLimits(0.0, 0.0, 0.0)
    link = connect(limits=off)
    never = float("inf")
    assert link.session.deadline_s == never
    link.say(ENVIRONMENT)
    link.run(lambda session: session.receive_request()).result()
    link.session.begin(off)
    assert link.session.deadline_s == never
    running = link.run(lambda session: session.execute(b"NOOP\n"))
    link.hear_line()
    assert link.session.deadline_s == never
    link.say(b"200 result=0\n")
    assert running.result() == OK
    link.session.close()


def test_asterisks_time_is_not_the_scripts(link: Link) -> None:
    """While Asterisk works, its clock runs and the script's stands; the script's limit is not touched."""
    begun_s = monotonic()
    link.greet()
    running = link.run(lambda session: session.execute(b"EXEC Dial\n"))
    link.hear_line()
    gevent.sleep(MOMENT_S)
    link.say(b"200 result=0\n")
    running.result()
    session = link.session
    assert session.asterisk_s >= MOMENT_S
    assert session.script_s <= monotonic() - begun_s - MOMENT_S
    assert session.deadline_s >= begun_s + MOMENT_S + LIMITS.script_s


def test_the_scripts_time_adds_up(link: Link) -> None:
    """What the handler takes between commands is counted, and taken off its limit."""
    link.greet()

    def work_twice(session: Session) -> None:
        for _ in range(2):
            gevent.sleep(MOMENT_S)
            session.execute(b"NOOP\n")

    running = link.run(work_twice)
    for _ in range(2):
        link.hear_line()
        link.say(b"200 result=0\n")
    running.result()
    session = link.session
    assert session.script_s >= 2 * MOMENT_S
    assert session.deadline_s - monotonic() <= LIMITS.script_s - 2 * MOMENT_S


def test_a_busy_handler_is_late_too(link: Link) -> None:
    """A handler whose time is over is told at its next command, even if nobody looked at the clock."""
    link.greet()
    link.session.begin(SessionLimits(script_s=0.001))
    gevent.sleep(0.002)
    with pytest.raises(CallTimeout, match="script"):
        link.run(lambda session: session.execute(b"NOOP\n")).result()


def test_settling_counts_the_last_stretch(link: Link) -> None:
    """The time behind the last command is the handler's too."""
    link.greet()
    gevent.sleep(MOMENT_S)
    link.session.settle()
    assert link.session.script_s >= MOMENT_S
    assert link.session.asterisk_s == 0


def test_settling_raises_what_was_swallowed(link: Link) -> None:
    """A handler that caught its interruption and returned is interrupted all the same."""
    link.greet()
    in_hub(lambda: link.session.stop(monotonic()))
    with pytest.raises(CallStopped):
        link.session.settle()


def test_a_limit_that_is_over_stays_over(link: Link) -> None:
    """A handler that swallows the time-out gets it again, from its next command and from finish()."""
    link.greet()

    def swallow(session: Session) -> object:
        try:
            session.execute(b"NOOP 1\n")
        except CallTimeout as first:
            try:
                session.execute(b"NOOP 2\n")
            except CallTimeout as second:
                return first is second
        return False

    running = link.run(swallow)
    assert link.hear_line() == b"NOOP 1\n"
    in_hub(lambda: link.session.expire(link.session.deadline_s))
    assert running.result() is True
    with pytest.raises(CallTimeout):
        link.session.finish()
    link.session.close()
    assert link.hear_all() == b""


def test_a_time_out_of_the_handlers_own(link: Link) -> None:
    """A handler that gives up waiting for Asterisk by itself is in its own time again, which has an end."""
    link.greet()

    def give_up(session: Session) -> object:
        session.begin(SessionLimits(idle_s=1000.0, script_s=5.0))
        with gevent.Timeout(0.01, False):
            session.execute(b"NOOP 1\n")
        return session.deadline_s - monotonic()

    running = link.run(give_up)
    assert link.hear_line() == b"NOOP 1\n"
    left_s = running.result()
    assert isinstance(left_s, float)
    assert 0 < left_s <= 5.0


def test_whether_the_peer_has_closed(link: Link) -> None:
    """A peer that closed is seen to be gone although what it said before is still unread."""
    link.say(ENVIRONMENT)
    assert not link.session.peer_has_closed
    link.peer.close()
    assert link.session.peer_has_closed


def test_a_handler_that_holds_on_is_interrupted_again(link: Link) -> None:
    """A handler that swallows the time-out and waits again is interrupted again, soon."""
    link.greet()
    caught: list[CallEnded] = []

    def hold_on(session: Session) -> None:
        for _ in range(3):
            try:
                gevent.event.Event().wait(WAIT_S)
            except CallEnded as raised:
                caught.append(raised)

    running = link.run(hold_on)
    for _ in range(3):
        now_s = link.session.deadline_s
        in_hub(lambda: link.session.expire(link.session.deadline_s))
        assert now_s < link.session.deadline_s <= now_s + CLOSING_S
    running.result()
    assert len(caught) == 3
    assert len(set(caught)) == 1


def test_a_stop_ends_the_call(link: Link) -> None:
    """A worker that must end interrupts the handler, and a later time-out does not change why."""
    link.greet()
    running = link.run(lambda session: session.execute(b"NOOP\n"))
    link.hear_line()
    in_hub(lambda: link.session.stop(monotonic()))
    with pytest.raises(CallStopped):
        running.result()
    in_hub(lambda: link.session.expire(monotonic()))
    with pytest.raises(CallStopped):
        link.run(lambda session: session.execute(b"NOOP\n")).result()


# ---- the end


def test_finish_is_a_success(link: Link) -> None:
    """A call that went well is closed without a word."""
    link.greet()
    link.run(lambda session: session.finish()).result()
    assert link.hear_all() == b""


def finish_then(script: Callable[[Session], object]) -> Callable[[Session], object]:
    """Give the call back, and go on."""

    def run(session: Session) -> object:
        session.finish()
        return script(session)

    return run


def test_a_finished_call_takes_no_command(link: Link) -> None:
    """After finish() the peer sees the end at once, and a command is an ordinary error of the handler."""
    link.greet()
    assert link.session.finished_s is None
    running = link.run(finish_then(lambda session: session.execute(b"SET VARIABLE X 1\n")))
    with pytest.raises(AGICallFinished) as caught:
        running.result()
    assert caught.value.command == "SET VARIABLE X 1"
    assert link.hear_all() == b""
    assert link.session.commands == 0


def test_finishing_twice_is_finishing_once(link: Link) -> None:
    """A second finish() changes neither when the call was given back nor anybody else's descriptor."""
    link.greet()
    link.session.finish()
    finished_s, deadline_s = link.session.finished_s, link.session.deadline_s
    reused, other = os.pipe()
    link.session.finish()
    link.session.close()
    os.close(reused)
    os.close(other)
    assert finished_s is not None
    assert link.session.accepted_s <= finished_s <= monotonic()
    assert (link.session.finished_s, link.session.deadline_s) == (finished_s, deadline_s)


def test_a_finished_call_has_its_limit(link: Link) -> None:
    """The script's limit goes on when the connection is closed, and interrupts the handler as ever."""
    link.greet()
    before_s = link.session.deadline_s
    running = link.run(finish_then(lambda session: gevent.event.Event().wait(WAIT_S)))
    session = link.session
    assert session.deadline_s == before_s
    in_hub(lambda: session.expire(session.deadline_s))
    with pytest.raises(CallTimeout) as caught:
        running.result()
    assert (caught.value.limit, caught.value.limit_s) == ("script", 60.0)


def test_a_finished_call_can_be_stopped(link: Link) -> None:
    """A worker that must end interrupts a handler that goes on without its call."""
    link.greet()
    running = link.run(finish_then(lambda session: gevent.event.Event().wait(WAIT_S)))
    in_hub(lambda: link.session.stop(monotonic()))
    with pytest.raises(CallStopped):
        running.result()
    with pytest.raises(CallStopped):
        link.session.settle()


def test_a_finished_call_that_is_late(link: Link) -> None:
    """A time-out comes before the reminder that the call is finished: it is what ends the handler."""
    link.greet()
    link.session.begin(SessionLimits(script_s=0.001))
    gevent.sleep(0.002)
    with pytest.raises(CallTimeout, match="script"):
        link.run(finish_then(lambda session: session.execute(b"NOOP\n"))).result()


def test_the_time_behind_finish_is_the_scripts(link: Link) -> None:
    """What a handler does without its call is counted as its own time."""
    link.greet()
    link.session.finish()
    gevent.sleep(MOMENT_S)
    link.session.settle()
    assert link.session.script_s >= MOMENT_S


@pytest.mark.parametrize("end", [Session.finish, Session.close], ids=["finished", "closed"])
def test_nothing_is_said_behind_the_end(link: Link, end: Callable[[Session], None]) -> None:
    """A failure behind the end goes to nobody, even if the descriptor is somebody else's by now."""
    link.greet()
    end(link.session)
    ours, theirs = socket.socketpair()
    link.run(lambda session: session.fail(b"SET VARIABLE X 1\nfailure\n")).result()
    ours.close()
    assert theirs.recv(100) == b""
    theirs.close()
    assert link.hear_all() == b""


def test_closing_twice_is_closing_once(link: Link) -> None:
    """A second close does not touch a descriptor that may be somebody else's by now."""
    link.session.close()
    reused, other = os.pipe()
    link.session.close()
    os.close(reused)
    os.close(other)
    assert link.session.deadline_s == float("inf")


def test_fail_says_so_and_waits(link: Link) -> None:
    """The dialplan is told, and the connection stays open until Asterisk has closed its side."""
    link.greet()
    running = link.run(lambda session: session.fail())
    assert link.hear_all() == b"failure\n"
    assert not running.is_over
    link.say(b"HANGUP\n")
    link.peer.close()
    running.result()


def test_fail_says_why_in_one_piece() -> None:
    """The last words are one write: commands of which the end is missing would lie in Asterisk's buffer."""
    link = connect(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    link.greet()
    words = b"SET VARIABLE FAGI_STATUS ERROR\nEXEC Goto sorry,s,1\nfailure\n"
    running = link.run(lambda session: session.fail(words))
    assert link.peer.recv(1000) == words
    link.peer.close()
    running.result()


def test_fail_reads_what_asterisk_still_says(link: Link) -> None:
    """Replies that are still coming do not reset the connection before the reason was read."""
    link.greet()
    running = link.run(lambda session: session.fail())
    link.say(b"200 result=0\n" * 1000)
    assert link.hear_all() == b"failure\n"
    link.peer.close()
    running.result()


def test_fail_behind_a_command_that_still_runs(link: Link) -> None:
    """After a time-out inside a command the line stands behind that command."""
    link.greet()

    def run_out(session: Session) -> None:
        try:
            session.execute(b"EXEC Dial\n")
        except CallTimeout:
            session.fail()

    running = link.run(run_out)
    assert link.hear_line() == b"EXEC Dial\n"
    in_hub(lambda: link.session.expire(link.session.deadline_s))
    assert link.hear_all() == b"failure\n"
    link.peer.close()
    running.result()


def test_fail_sends_the_rest_of_a_command_first() -> None:
    """A command that did not go out whole is completed, so that the words are not taken for its tail."""
    words = b"SET VARIABLE FAGI_STATUS TIMEOUT\nfailure\n"
    link = connect(tcp_pair)
    link.greet()
    filler = 0
    with socket.socket(fileno=os.dup(link.session._fd)) as ours:
        while True:
            try:
                filler += ours.send(b"x" * 65536)
            except BlockingIOError:
                break

    def run_out(session: Session) -> None:
        try:
            session.execute(b"NOOP %s\n" % (b"y" * 1000))
        except CallTimeout:
            session.fail(words)

    running = link.run(run_out)
    in_hub(lambda: link.session.expire(link.session.deadline_s))
    assert not running.is_over
    link.hear(filler)
    assert link.hear_all() == b"NOOP %s\n" % (b"y" * 1000) + words
    link.peer.close()
    running.result()


def test_fail_does_not_wait_for_ever(link: Link) -> None:
    """An Asterisk that never closes is let go when the time for closing is over."""
    link.greet()
    descriptor = link.session._fd
    before_s = monotonic()
    running = link.run(lambda session: session.fail())
    assert before_s + CLOSING_S <= link.session.deadline_s <= monotonic() + CLOSING_S
    assert link.hear_all() == b"failure\n"
    in_hub(lambda: link.session.expire(link.session.deadline_s))
    running.result()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_waiting_for_asterisk_to_close_makes_no_call_slow(link: Link) -> None:
    """While Asterisk reads the last words the handler has ended, and its time does not run on."""
    link.greet()
    link.session.begin(SessionLimits(slow_s=5.0))
    running = link.run(lambda session: session.fail())
    assert link.hear_all() == b"failure\n"
    assert link.session.slow_at_s == math.inf
    link.peer.close()
    running.result()


def test_fail_is_interrupted_by_a_stranger(link: Link) -> None:
    """A time-out that a handler left running ends the waiting, and does not escape from it."""
    link.greet()
    descriptor = link.session._fd
    running = link.run(lambda session: session.fail())
    assert link.hear_all() == b"failure\n"
    greenlet = link.session.greenlet
    in_hub(lambda: greenlet.throw(gevent.Timeout()))
    running.result()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_fail_lets_others_go_on(link: Link) -> None:
    """A peer that always has more to say takes no turn away from the other calls."""
    link.greet()
    link.say(b"x" * 65536)
    link.peer.shutdown(socket.SHUT_WR)
    turns: list[int] = []

    def take_turns() -> None:
        while True:
            gevent.sleep(0)
            turns.append(len(turns))

    other = gevent.spawn(take_turns)

    def count_turns(session: Session) -> int:
        before = len(turns)
        session.fail()
        return len(turns) - before

    taken = link.run(count_turns).result()
    other.kill()
    assert isinstance(taken, int)
    assert taken >= 3


def test_fail_with_nobody_there(link: Link) -> None:
    """If the peer is gone, there is nothing to be told and nothing to be raised."""
    link.greet()
    link.peer.close()
    link.run(lambda session: session.fail()).result()


# ---- a conversation that others hold


class Listener:
    """Keeps what it is told, and can be waited for."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def __call__(self, data: bytes) -> None:
        """Keep it."""
        self.heard.append(data)

    def wait(self, times: int = 1) -> list[bytes]:
        """Wait until it was told so many times."""
        with gevent.Timeout(WAIT_S):
            while len(self.heard) < times:
                gevent.sleep(0.001)
        return self.heard


def let_it_come(link: Link) -> None:
    """Let the hub read what was said."""
    for _ in range(3):
        gevent.sleep(0)
    gevent.sleep(0.001)
    assert link.session.greenlet is None


@pytest.fixture
def listener(link: Link) -> Listener:
    """A listener to a session that has its environment."""
    link.greet()
    listener = Listener()
    link.session.listen(listener)
    return listener


def exchanging(line: bytes) -> Callable[[Session], object]:
    """Exchange one line."""
    return lambda session: session.exchange(line)


RAW = [
    [b"200 result=0\n"],
    [b"100 result=0 Trying...\n", b"200 result=0 Gosub complete\n"],
    [b"200 result=1 (two\n", b"lines)\n"],
    [b"520-Invalid\n usa", b"ge\n520 End of proper usage.\n"],
    [b"HANGUP\n200 result=0\n"],
    [b"HAN", b"GUP\n200 res", b"ult=0\n"],
    [b"200 result=0\nHANGUP\n"],
    [b"HANGUP\nHANGUP\n200 result=-1\nHANGUP\n"],
    [b"520-Invalid\nHANGUP\nusage\n520 End of proper usage.\n"],
]


@pytest.mark.parametrize("pieces", RAW)
def test_an_exchange_gives_all_that_came(link: Link, listener: Listener, pieces: list[bytes]) -> None:
    """The reply comes back byte by byte as it was, with a HANGUP in its place, of which is told besides."""
    running = link.run(exchanging(b"NOOP 1\n"))
    assert link.hear_line() == b"NOOP 1\n"
    for piece in pieces:
        link.say(piece)
        gevent.sleep(0)
    said = b"".join(pieces)
    assert running.result() == said
    assert listener.heard == ([b""] if b"HANGUP" in said else [])
    assert link.session.hung_up is (b"HANGUP" in said)
    again = link.run(exchanging(b"NOOP 2\n"))
    assert link.hear_line() == b"NOOP 2\n"
    link.say(b"511 dead\n")
    assert again.result() == b"511 dead\n"
    assert link.session.commands == 2


def test_a_hangup_between_exchanges_is_told_at_once(link: Link, listener: Listener) -> None:
    """HANGUP between two commands is told when it comes, with its bytes, and stands in no reply."""
    link.say(b"HANGUP\n")
    assert listener.wait() == [b"HANGUP\n"]
    assert link.session.hung_up
    running = link.run(exchanging(b"NOOP\n"))
    link.hear_line()
    link.say(b"200 result=0\n")
    assert running.result() == b"200 result=0\n"
    link.say(b"HANGUP\n")
    assert listener.wait(2) == [b"HANGUP\n"] * 2


def test_a_hangup_in_a_long_command_is_told_before_its_reply(link: Link, listener: Listener) -> None:
    """While a command still runs the listener knows of the hangup, and whoever waits goes on waiting."""
    running = link.run(exchanging(b"EXEC Dial\n"))
    link.hear_line()
    link.say(b"HANGUP\n")
    assert listener.wait() == [b""]
    assert not running.is_over
    link.say(b"200 result=-1\n")
    assert running.result() == b"HANGUP\n200 result=-1\n"
    assert listener.heard == [b""]


def test_a_hangup_in_pieces_around_a_command(link: Link, listener: Listener) -> None:
    """A HANGUP of which only a part was there when the next command went out is one all the same."""
    link.say(b"HANG")
    let_it_come(link)
    assert listener.heard == []
    running = link.run(exchanging(b"NOOP\n"))
    link.hear_line()
    link.say(b"UP\n200 result=0\n")
    assert running.result() == b"HANGUP\n200 result=0\n"
    assert listener.heard == [b""]


def test_the_tail_of_a_value_comes_with_the_next_reply(link: Link, listener: Listener) -> None:
    """Lines that answer nothing are no hangup; whoever speaks gets them as Asterisk said them."""
    running = link.run(exchanging(b"GET VARIABLE X\n"))
    link.hear_line()
    link.say(b"200 result=1 (a)\n")
    assert running.result() == b"200 result=1 (a)\n"
    link.say(b"tail)\n")
    let_it_come(link)
    assert listener.heard == []
    again = link.run(exchanging(b"NOOP\n"))
    link.hear_line()
    link.say(b"200 result=0\n")
    assert again.result() == b"tail)\n200 result=0\n"


@pytest.mark.parametrize("apart", [False, True], ids=["with it", "behind it"])
def test_a_hangup_behind_the_environment_is_told(link: Link, apart: bool) -> None:
    """HANGUP that was there before anybody listened is told as soon as somebody does."""
    link.say(ENVIRONMENT + (b"" if apart else b"HANGUP\n"))
    link.run(lambda session: session.receive_request()).result()
    if apart:
        link.say(b"HANGUP\n")
    link.session.begin(LIMITS)
    listener = Listener()
    link.session.listen(listener)
    assert listener.heard == ([] if apart else [b"HANGUP\n"])
    assert listener.wait() == [b"HANGUP\n"]
    assert link.session.hung_up


def test_a_hangup_that_a_command_met_is_told(link: Link) -> None:
    """Who begins to listen after the handler has met the hangup hears of it too."""
    noting(link)
    running = link.run(lambda session: session.execute(b"NOOP\n"))
    link.hear_line()
    link.say(b"HANGUP\n200 result=0\n")
    running.result()
    listener = Listener()
    link.session.listen(listener)
    assert listener.heard == [b"HANGUP\n"]


def hold(session: Session) -> None:
    """Wait for something else than Asterisk, as for a script's next line."""
    gevent.event.Event().wait(WAIT_S)


def test_a_peer_that_closes_between_exchanges(link: Link, listener: Listener) -> None:
    """Whoever waits for the next line of a script learns at once that Asterisk is gone, and every time."""
    running = link.run(hold)
    link.peer.close()
    with pytest.raises(CallPeerGone):
        running.result()
    with pytest.raises(CallPeerGone):
        link.session.settle()
    with pytest.raises(CallPeerGone):
        link.run(exchanging(b"NOOP\n")).result()


def test_a_peer_that_resets_between_exchanges() -> None:
    """A connection that breaks while nobody commands interrupts the handler."""
    link = connect(tcp_pair)
    link.greet()
    link.session.listen(Listener())
    running = link.run(hold)
    link.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.peer.close()
    with pytest.raises(CallPeerGone, match="the connection broke"):
        running.result()
    link.session.close()


def test_a_handler_that_holds_on_to_a_peer_that_is_gone(link: Link, listener: Listener) -> None:
    """A handler that swallows it is interrupted again in a while, as by a limit, and not before."""
    caught: list[CallEnded] = []

    def hold_on(session: Session) -> None:
        for _ in range(2):
            try:
                gevent.event.Event().wait(WAIT_S)
            except CallEnded as raised:
                caught.append(raised)

    running = link.run(hold_on)
    link.peer.close()
    while not caught:
        gevent.sleep(0)
    for _ in range(5):
        gevent.sleep(0.001)
    assert not running.is_over
    assert link.session.deadline_s <= monotonic() + CLOSING_S
    in_hub(lambda: link.session.expire(link.session.deadline_s))
    running.result()
    assert isinstance(caught[0], CallPeerGone)
    assert caught[0] is caught[1]


def test_nonsense_between_exchanges(link: Link, listener: Listener) -> None:
    """What is no AGI ends the call, also while no command runs."""
    running = link.run(hold)
    link.say(b"no such thing\n")
    with pytest.raises(CallOutOfStep):
        running.result()
    assert listener.heard == []


def test_nonsense_behind_a_reply(link: Link, listener: Listener) -> None:
    """What is no AGI ends the call, also if it comes together with a reply."""
    running = link.run(exchanging(b"NOOP\n"))
    link.hear_line()
    link.say(b"200 result=0\nno such thing\n")
    with pytest.raises(CallOutOfStep):
        running.result()


def test_a_peer_that_closes_inside_an_exchange(link: Link, listener: Listener) -> None:
    """A connection that ends before the reply ends the call."""
    running = link.run(exchanging(b"NOOP\n"))
    link.hear_line()
    link.say(b"HANGUP\n")
    link.peer.close()
    with pytest.raises(CallPeerGone):
        running.result()
    assert listener.heard == [b""]


def test_a_reply_before_the_peer_closes(link: Link, listener: Listener) -> None:
    """The last reply is handed over before the end is told."""
    replies: list[bytes] = []

    def ask_and_hold(session: Session) -> None:
        replies.append(session.exchange(b"NOOP\n"))
        hold(session)

    running = link.run(ask_and_hold)
    link.hear_line()
    link.say(b"200 result=0\n")
    link.peer.close()
    with pytest.raises(CallPeerGone):
        running.result()
    assert replies == [b"200 result=0\n"]


def test_an_exchange_has_the_idle_limit(link: Link, listener: Listener) -> None:
    """An answer that does not come is ended by the idle limit, whoever asked."""
    running = link.run(exchanging(b"EXEC Dial\n"))
    link.hear_line()
    in_hub(lambda: link.session.expire(link.session.deadline_s))
    with pytest.raises(CallTimeout) as caught:
        running.result()
    assert caught.value.limit == "idle"
    link.say(b"HANGUP\n")
    let_it_come(link)
    assert listener.heard == []


def test_listening_takes_the_scripts_time(link: Link, listener: Listener) -> None:
    """Between two commands it is whoever speaks that takes its time, and while one runs it is Asterisk."""
    gevent.sleep(MOMENT_S)
    running = link.run(exchanging(b"NOOP\n"))
    link.hear_line()
    gevent.sleep(MOMENT_S)
    link.say(b"200 result=0\n")
    running.result()
    session = link.session
    assert session.script_s >= MOMENT_S
    assert session.asterisk_s >= MOMENT_S
    link.session.begin(SessionLimits(script_s=0.001))
    gevent.sleep(0.002)
    with pytest.raises(CallTimeout, match="script"):
        link.run(exchanging(b"NOOP\n")).result()


def test_an_exchange_that_nobody_listens_to(link: Link) -> None:
    """Without a listener a hangup is only noted, and every reply comes back whole."""
    link.greet()
    running = link.run(exchanging(b"NOOP\n"))
    link.hear_line()
    link.say(b"HANGUP\n200 result=0\n")
    assert running.result() == b"HANGUP\n200 result=0\n"
    assert link.session.hung_up


@pytest.mark.usefixtures("long_grace")
def test_a_handler_that_speaks_itself_again(link: Link, listener: Listener) -> None:
    """With the handler's own command the listening ends, and a hangup is raised again as ever."""
    link.run(minus_one_behind_an_exchange)
    link.hear_line()
    link.say(b"200 result=0\n")
    link.hear_line()
    link.say(b"200 result=-1\n")
    gevent.sleep(0.001)
    link.say(b"HANGUP\n")
    while not link.session.hung_up:
        gevent.sleep(0)
    assert listener.heard == []
    running = link.run(lambda session: session.execute(b"NOOP\n"))
    link.hear_line()
    link.say(b"200 result=0\n")
    assert running.result() == OK


def minus_one_behind_an_exchange(session: Session) -> None:
    """Let somebody else speak, then speak oneself, and meet a hangup."""
    session.exchange(b"NOOP\n")
    with pytest.raises(CallHangup):
        minus_one(session)


def test_a_hangup_that_was_heard_is_raised(link: Link, listener: Listener) -> None:
    """Of a hangup that only the listener was told, the handler learns at its own next command, in step."""
    link.say(b"HANGUP\n")
    listener.wait()
    running = link.run(in_step)
    for _ in range(3):
        link.hear_line()
        link.say(b"200 result=0\n")
    assert running.result() == ["hangup", OK, OK]


def test_awaiting_a_hangup_ends_the_listening(link: Link, listener: Listener) -> None:
    """Who waits for a hangup himself gets it, and nobody reads beside him."""
    running = link.run(lambda session: session.await_hangup())
    link.say(b"HANGUP\n")
    with pytest.raises(CallHangup):
        running.result()
    assert listener.heard == []


@pytest.mark.parametrize("end", [Session.finish, Session.close, Session.settle])
def test_nobody_is_told_behind_the_end(
    link: Link, listener: Listener, end: Callable[[Session], None]
) -> None:
    """When the call is given back, closed or settled, what still comes interrupts and tells nobody."""
    end(link.session)
    running = link.run(lambda session: gevent.sleep(MOMENT_S))
    with suppress(OSError):
        link.say(b"HANGUP\n")
    link.peer.close()
    running.result()
    assert listener.heard == []


def test_nobody_is_told_while_failing(link: Link, listener: Listener) -> None:
    """While the dialplan is told of a failure, whatever Asterisk still says is only read."""
    running = link.run(lambda session: session.fail())
    assert link.hear_all() == b"failure\n"
    link.say(b"HANGUP\n200 result=0\nno such thing\n")
    link.peer.close()
    running.result()
    assert listener.heard == []


def test_listening_to_a_call_that_is_over(link: Link) -> None:
    """Who comes too late hears nothing, and an exchange says why."""
    link.greet()
    link.session.finish()
    listener = Listener()
    link.session.listen(listener)
    with pytest.raises(AGICallFinished):
        link.run(exchanging(b"NOOP\n")).result()
    assert listener.heard == []


def test_a_call_that_is_stopped_hears_no_more(link: Link, listener: Listener) -> None:
    """Once the call is over for another reason, that reason stays, whatever Asterisk does."""
    running = link.run(hold)
    in_hub(lambda: link.session.stop(monotonic()))
    with pytest.raises(CallStopped):
        running.result()
    link.say(b"HANGUP\n")
    link.peer.close()
    let_it_come(link)
    with pytest.raises(CallStopped):
        link.session.settle()
    assert listener.heard == []


def test_another_listener_takes_over(link: Link, listener: Listener) -> None:
    """A second one who listens is told in the place of the first."""
    second = Listener()
    link.session.listen(second)
    link.say(b"HANGUP\n")
    assert second.wait() == [b"HANGUP\n"]
    assert listener.heard == []


def test_many_exchanges_with_hangups_at_any_place(link: Link, listener: Listener) -> None:
    """Put together, replies and what was told unasked are all that Asterisk said, in its order."""
    said = b""
    taken: list[bytes] = []
    link.session.listen(taken.append)

    def ask(session: Session) -> None:
        for number in range(30):
            taken.append(session.exchange(b"NOOP %d\n" % number))
            gevent.sleep(0)

    running = link.run(ask)
    for number in range(30):
        link.hear_line()
        piece = [b"200 result=%d\n", b"HANGUP\n200 result=%d\n", b"200 result=%d\nHANGUP\n"][
            number % 3
        ] % number
        said += piece
        link.say(piece)
    running.result()
    assert b"".join(taken) == said


# ---- what others see, and where the time goes


@dataclass
class Watched:
    """A session on a call board, with a clock that stands still until it is told.

    Attributes:
        link: The session and its peer.
        clock: The session's clock.
        path: The call board.
    """

    link: Link
    clock: ManualClock
    path: Path

    @property
    def session(self) -> Session:
        """The session."""
        return self.link.session

    @property
    def seen(self) -> CallFacts:
        """What others see of the call."""
        [facts] = read_calls(self.path, 0)
        return facts

    def ask(self, line: bytes, asterisk_s: float, reply: bytes = b"200 result=0\n") -> CallFacts:
        """Have a command carried out that takes so long; return what was seen meanwhile."""
        running = self.link.run(lambda session: session.execute(line))
        self.link.hear(len(line))
        seen = self.seen
        self.clock.now_s += asterisk_s
        self.link.say(reply)
        running.result()
        return seen


@pytest.fixture
def watched(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """A session whose call others see."""
    monkeypatch.setattr("fastagi_pool.session.monotonic", clock)
    board = CallBoard.create(tmp_path / "calls" / "0", 0, os.getpid(), 10)
    link = connect(row=board.take())
    yield Watched(link, clock, tmp_path / "calls" / "0")
    link.session.close()
    link.peer.close()


def test_others_see_what_a_call_does(watched: Watched) -> None:
    """Every step of a call stands in its row: the environment, the script, a command, the end of it."""
    watched.session.row.show()
    states = [watched.seen.state]
    watched.link.greet()
    watched.session.row.routed("greeting", watched.clock())
    states.append(watched.seen.state)
    seen = watched.ask(b"NOOP 1\n", asterisk_s=2.0)
    assert (seen.state, seen.command, seen.commands, seen.hung_up) == (CallState.ASTERISK, "NOOP 1", 1, False)
    states.append(watched.seen.state)
    watched.session.finish()
    states.append(watched.seen.state)
    assert states == [CallState.HEADER, CallState.SCRIPT, CallState.SCRIPT, CallState.FINISHED]


def test_others_see_a_hangup(watched: Watched) -> None:
    """That the caller has hung up is seen while the handler goes on."""
    watched.link.greet()
    with pytest.raises(CallHangup):
        watched.ask(b"NOOP 1\n", 1.0, b"HANGUP\n200 result=0\n")
    assert watched.seen.hung_up


def test_four_clocks(watched: Watched) -> None:
    """Each second of a call goes to one clock, in the session as in its row."""
    session, clock = watched.session, watched.clock
    session.queues()
    clock.now_s += 1.0
    session.called_in()
    watched.link.greet()
    session.row.routed("greeting", clock())
    clock.now_s += 2.0
    session.queues()
    clock.now_s += 4.0
    session.called_in()
    session.queries("SELECT 1", clock())
    clock.now_s += 8.0
    session.answered(8.0, clock())
    watched.ask(b"NOOP 1\n", asterisk_s=16.0)
    clock.now_s += 32.0
    expected = Clocks(queued_s=5.0, asterisk_s=16.0, script_s=34.0, database_s=8.0)
    assert session.clocks(clock()) == watched.seen.clocks(clock()) == expected
    session.settle()
    assert (session.queued_s, session.asterisk_s, session.script_s, session.database_s) == (
        5.0,
        16.0,
        42.0,
        8.0,
    )


@pytest.mark.parametrize("state", [CallState.QUEUED, CallState.DATABASE])
def test_a_running_clock(watched: Watched, state: CallState) -> None:
    """What runs counts up to now, and is told with the time at which it began."""
    session, clock = watched.session, watched.clock
    watched.link.greet()
    clock.now_s += 1.0
    if state is CallState.QUEUED:
        session.queues()
    else:
        session.waits("a connection", clock())
    began_s = clock()
    clock.now_s += 2.0
    assert (session.state, session.since_s) == (state, began_s)
    clocks = session.clocks(clock())
    assert (clocks.queued_s, clocks.script_s, clocks.database_s) == (
        (2.0, 1.0, 0.0) if state is CallState.QUEUED else (0.0, 1.0, 2.0)
    )


def test_the_last_statement_is_kept(watched: Watched) -> None:
    """A wait for a commit is seen, but does not displace the statement that it is for."""
    session, clock = watched.session, watched.clock
    session.queries("INSERT INTO caller", clock())
    session.answered(0.1, clock())
    session.waits("COMMIT", clock())
    assert (session.statement, watched.seen.statement) == ("INSERT INTO caller", "COMMIT")


def test_of_a_masked_call_only_what_a_statement_does_is_seen(watched: Watched) -> None:
    """On a route with mask_digits no statement with a caller's digits in it is seen from outside."""
    session, clock = watched.session, watched.clock
    session.begin(SessionLimits(masked=True))
    session.queries("\n  SELECT name FROM agents WHERE pin = 4711", clock())
    assert watched.seen.statement == "SELECT"
    session.waits("a connection to database main", clock())
    assert watched.seen.statement == "a connection to database main"


def test_the_time_for_the_environment_rests_in_the_queue(watched: Watched) -> None:
    """While a call waits for its place, it does not run out of the time for its environment."""
    watched.session.queues()
    assert watched.session.deadline_s == math.inf
    watched.session.called_in()
    assert watched.session.deadline_s == watched.clock() + LIMITS.header_s


def test_a_wait_in_the_queue_takes_nothing_from_the_handler(watched: Watched) -> None:
    """After a wait for a place the handler has as much time left as before, and the environment all."""
    session, clock = watched.session, watched.clock
    session.queues()
    clock.now_s += 100.0
    session.called_in()
    assert session.deadline_s == clock() + LIMITS.header_s
    watched.link.greet()
    clock.now_s += 10.0
    session.queues()
    clock.now_s += 100.0
    session.called_in()
    assert session.deadline_s == clock() + LIMITS.script_s - 10.0


# ---- slow calls


def test_when_a_call_becomes_slow(watched: Watched) -> None:
    """Only the handler's own time makes a call slow, and it is found so once."""
    session, clock = watched.session, watched.clock
    watched.link.greet()
    session.begin(SessionLimits(slow_s=5.0))
    assert session.slow_at_s == clock() + 5.0
    clock.now_s += 1.0
    running = watched.link.run(lambda session: session.execute(b"NOOP 1\n"))
    watched.link.hear_line()
    assert session.slow_at_s == math.inf
    clock.now_s += 100.0
    watched.link.say(b"200 result=0\n")
    running.result()
    assert (session.slow_at_s, session.exceeds) == (clock() + 4.0, False)
    clock.now_s += 4.0
    session.settle()
    assert (session.slow, session.exceeds) == (False, True)
    session.find_slow()
    assert (session.slow, session.exceeds, session.slow_at_s) == (True, False, math.inf)


def test_without_a_measure_no_call_is_slow(watched: Watched) -> None:
    """With 0 a call is never slow, and its commands are not kept."""
    watched.link.greet()
    watched.session.begin(SessionLimits(script_s=0.0, slow_s=0.0))
    watched.clock.now_s += 1e6
    watched.ask(b"NOOP 1\n", 1.0)
    assert (watched.session.slow_at_s, watched.session.exceeds) == (math.inf, False)
    assert watched.session.said() == []


def test_more_may_be_said_while_somebody_asks(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may ask what a call said while it says more: else a dump would name no call at all."""
    session = watched.session
    watched.link.greet()
    session.begin(SessionLimits(slow_s=5.0))
    watched.ask(b"NOOP 1\n", asterisk_s=0.5)

    def meanwhile(*parts: Any) -> Said:
        session._asterisk_is_done()
        return Said(*parts)

    monkeypatch.setattr("fastagi_pool.session.Said", meanwhile)
    assert [each.line for each in session.said()] == [b"NOOP 1\n"]


def test_the_last_commands_are_kept(watched: Watched) -> None:
    """The last commands are known with their times, long ones cut, and the one that runs without its end."""
    watched.link.greet()
    watched.session.begin(SessionLimits(slow_s=5.0))
    for number in range(REMEMBERED_COMMANDS + 1):
        watched.ask(b"NOOP %d\n" % number, asterisk_s=0.5)
    watched.ask(b"NOOP " + b"x" * 1000 + b"\n", asterisk_s=0.5)
    running = watched.link.run(lambda session: session.execute(b"NOOP last\n"))
    watched.link.hear_line()
    *ended, last = watched.session.said()
    assert len(ended) == REMEMBERED_COMMANDS
    assert ended[0] == (watched.clock() - 0.5 * REMEMBERED_COMMANDS, b"NOOP 2\n", 0.5)
    assert len(ended[-1].line) == 200
    assert last == (watched.clock(), b"NOOP last\n", None)
    watched.link.say(b"200 result=0\n")
    running.result()
    assert watched.session.said()[-1] == (watched.clock(), b"NOOP last\n", 0.0)


# ---- draining


def wait_for_ever(session: Session) -> None:
    """Be a handler that does not end."""
    gevent.event.Event().wait(WAIT_S)


@pytest.mark.parametrize(("passed_s", "stopped"), [(4.9, False), (5.0, True)])
def test_a_draining_worker_ends_a_call_in_time(link: Link, passed_s: float, stopped: bool) -> None:
    """A call is stopped when its route's time is over, counted from the beginning of the draining."""
    link.greet()
    link.session.begin(SessionLimits(drain_s=5.0))
    running = link.run(wait_for_ever)
    in_hub(lambda: link.session.end_draining(100.0, 100.0 + passed_s))
    gevent.sleep(0)
    assert running.is_over is stopped
    in_hub(lambda: link.session.stop(monotonic()))
    with pytest.raises(CallStopped):
        running.result()


def test_without_a_limit_a_draining_worker_ends_no_call(link: Link) -> None:
    """A call that has found no route yet has limits of its own."""
    link.session.end_draining(0.0, 1e9)
    link.greet()
    running = link.run(lambda session: session.execute(b"NOOP 1\n"))
    link.say(b"200 result=0\n")
    assert running.result() == OK


def test_a_call_that_tells_its_failure_is_left_alone(link: Link) -> None:
    """A call that is being closed is not interrupted once more by the draining."""
    link.greet()
    link.session.begin(SessionLimits(drain_s=0.0))
    running = link.run(lambda session: session.fail())
    in_hub(lambda: link.session.end_draining(0.0, 1.0))
    assert not running.is_over
    link.peer.shutdown(socket.SHUT_WR)
    running.result()
