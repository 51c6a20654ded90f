"""fastagi_pool.handover: connections that change hands, with real sockets, and this test as their peers."""

from __future__ import annotations

import os
import resource
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from children import in_child

from fastagi_pool import handover
from fastagi_pool.handover import MOST_AT_ONCE, Told

#: Far more than anything here takes.
WAIT_S = 10.0
WORDS = b'SET VARIABLE "FAGI_STATUS" "CRASH"\nfailure\n'


@dataclass
class Ends:
    """Both ends of a handover, and peers of connections."""

    taking: int
    giving: int
    peers: list[socket.socket] = field(default_factory=list)

    def connections(self, number: int) -> list[int]:
        """Make connections; each peer has sent its number."""
        made = []
        for index in range(number):
            ours, theirs = socket.socketpair()
            theirs.settimeout(WAIT_S)
            theirs.sendall(b"%d" % index)
            self.peers.append(theirs)
            made.append(ours.detach())
        return made

    def take_all(self) -> list[list[int]]:
        """Take until nothing is there."""
        return list(iter(lambda: handover.take(self.taking), []))


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A handover."""
    ends = Ends(*handover.make())
    yield ends
    for descriptor in (ends.taking, ends.giving):
        # The test may have closed it.
        with suppress(OSError):
            os.close(descriptor)
    for peer in ends.peers:
        peer.close()


def hear_all(peer: socket.socket) -> bytes:
    """Receive until the other side ends."""
    return b"".join(iter(lambda: peer.recv(65536), b""))


# ---- giving and taking


def test_a_connection_changes_hands(ends: Ends) -> None:
    """Whoever takes a connection reads what its peer had sent, and the peer notices nothing."""
    [given] = ends.connections(1)
    assert handover.give(ends.giving, [given]) == []
    os.close(given)
    [[taken]] = ends.take_all()
    with socket.socket(fileno=taken) as connection:
        assert connection.recv(10) == b"0"
        connection.sendall(b"hello")
        assert ends.peers[0].recv(10) == b"hello"
        assert not os.get_inheritable(taken)


def test_many_connections_are_shared(ends: Ends) -> None:
    """Of many connections each message holds a few, so that all workers get their share, and none is lost."""
    given = ends.connections(3 * MOST_AT_ONCE + 1)
    assert handover.give(ends.giving, given) == []
    for descriptor in given:
        os.close(descriptor)
    messages = ends.take_all()
    assert [len(each) for each in messages] == [MOST_AT_ONCE] * 3 + [1]
    said = [os.read(descriptor, 10) for each in messages for descriptor in each]
    assert said == [b"%d" % index for index in range(len(given))]
    for each in messages:
        for descriptor in each:
            os.close(descriptor)


def test_nothing_to_take(ends: Ends) -> None:
    """Who looks and finds nothing does not wait."""
    assert handover.take(ends.taking) == []


def test_nobody_is_left_to_take(ends: Ends) -> None:
    """Without the other end all connections come back, and are still open."""
    given = ends.connections(MOST_AT_ONCE + 1)
    os.close(ends.taking)
    assert handover.give(ends.giving, given) == given
    for descriptor in given:
        os.close(descriptor)


def test_what_finds_no_room_comes_back(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the kernel keeps no more, the rest comes back after a bounded time; what was given is there."""
    monkeypatch.setattr(handover, "GIVING_S", 0.01)
    with socket.socket(fileno=os.dup(ends.giving)) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    [connection] = ends.connections(1)
    offered = [connection] * 8 * MOST_AT_ONCE
    left = handover.give(ends.giving, offered)
    assert 0 < len(left) < len(offered)
    taken = [descriptor for each in ends.take_all() for descriptor in each]
    assert len(taken) + len(left) == len(offered)
    for descriptor in [*taken, connection]:
        os.close(descriptor)


def test_a_mark_is_not_handed_over(ends: Ends) -> None:
    """A connection whose environment had come in part wakes its new owner at the first byte, as a new one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
    assert handover.give(ends.giving, [ours.fileno()]) == []
    ours.close()
    [[taken]] = ends.take_all()
    with peer, socket.socket(fileno=taken) as connection:
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


def test_without_descriptors_nothing_is_taken() -> None:
    """Who has no descriptors left leaves the connections to others, for the kernel would close them."""

    def work() -> list[object]:
        ends = Ends(*handover.make())
        given = ends.connections(2)
        handover.give(ends.giving, given)
        lowest = os.dup(0)
        os.close(lowest)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + MOST_AT_ONCE - 1, hard))
        try:
            handover.take(ends.taking)
        except OSError as error:
            refused = str(error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return [refused, len(handover.take(ends.taking))]

    assert in_child(work) == ["[Errno 24] Too many open files", 2]


# ---- telling


def test_everyone_is_told(ends: Ends) -> None:
    """Each hears its own words and then the end, and its connection is closed."""
    connections = ends.connections(50)
    for peer in ends.peers:
        peer.shutdown(socket.SHUT_WR)
    words = {descriptor: b"%d\n" % index for index, descriptor in enumerate(connections)}
    assert handover.tell(words, WAIT_S, select.poll) == Told(50, 0)
    assert [hear_all(peer) for peer in ends.peers] == list(words.values())
    for descriptor in connections:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_words_are_heard_before_the_end() -> None:
    """Words reach a peer that has said more than was read: closing at once would reset the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    peer.settimeout(WAIT_S)
    peer.sendall(b"agi_network: yes\n" * 1000)
    peer.shutdown(socket.SHUT_WR)
    assert handover.tell({ours.detach(): WORDS}, WAIT_S, select.poll) == Told(1, 0)
    assert hear_all(peer) == WORDS
    peer.close()


def test_one_that_does_not_listen_is_not_waited_for(ends: Ends) -> None:
    """A peer that does not read, in front of others, takes nothing from them, and is counted."""
    deaf, *others = ends.connections(3)
    os.set_blocking(deaf, False)
    with suppress(BlockingIOError):
        while True:
            os.write(deaf, b"x" * 65536)
    for peer in ends.peers[1:]:
        peer.shutdown(socket.SHUT_WR)
    said = dict.fromkeys([deaf, *others], WORDS)
    assert handover.tell(said, 0.1, select.poll) == Told(2, 1)
    assert [hear_all(peer) for peer in ends.peers[1:]] == [WORDS, WORDS]


def test_one_that_reads_slowly_hears_all(ends: Ends) -> None:
    """Words that do not fit into the connection at once are sent in pieces."""
    [connection] = ends.connections(1)
    long = b"x" * 4_000_000 + b"\n"
    reader = os.fork()
    if reader == 0:
        os.close(connection)
        os._exit(hear_all(ends.peers[0]) != long)
    ends.peers[0].close()
    assert handover.tell({connection: long}, WAIT_S, select.poll) == Told(1, 0)
    assert os.waitpid(reader, 0)[1] == 0


def test_one_that_never_stops_talking_is_left(ends: Ends) -> None:
    """A peer that does not end its side is told, and closed when the time is over."""
    [connection] = ends.connections(1)
    assert handover.tell({connection: WORDS}, 0.05, select.poll) == Told(1, 0)
    assert hear_all(ends.peers[0]) == WORDS


def test_one_that_was_told_before_counts_for_nothing(ends: Ends) -> None:
    """A connection whose failure had been told hears nothing twice."""
    [connection] = ends.connections(1)
    os.write(connection, b"failure\n")
    with socket.socket(fileno=os.dup(connection)) as copy:
        copy.shutdown(socket.SHUT_WR)
    ends.peers[0].shutdown(socket.SHUT_WR)
    assert handover.tell({connection: WORDS}, WAIT_S, select.poll) == Told(0, 0)
    assert hear_all(ends.peers[0]) == b"failure\n"


def test_one_that_is_gone_is_not_told() -> None:
    """A peer whose machine reset the connection is counted among those who could not be told."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    assert handover.tell({ours.detach(): WORDS}, WAIT_S, select.poll) == Told(0, 1)


# ---- at the end of the master


def test_what_nobody_takes_is_refused(ends: Ends) -> None:
    """Whoever is the last tells all who are left, and does not wait when nobody can give any more."""
    given = ends.connections(20)
    assert handover.give(ends.giving, given) == []
    for descriptor in [*given, ends.giving]:
        os.close(descriptor)
    for peer in ends.peers:
        peer.shutdown(socket.SHUT_WR)
    assert handover.refuse(ends.taking, WORDS, WAIT_S, select.poll) == Told(20, 0)
    assert [hear_all(peer) for peer in ends.peers] == [WORDS] * 20


def test_a_gift_at_the_last_moment_is_refused_too(ends: Ends) -> None:
    """A witness that still gives while the master ends finds that its gift is taken."""
    [given] = ends.connections(1)
    witness = os.fork()
    if witness == 0:
        os.close(ends.taking)
        os._exit(bool(handover.give(ends.giving, [given])))
    for descriptor in (given, ends.giving):
        os.close(descriptor)
    ends.peers[0].shutdown(socket.SHUT_WR)
    assert handover.refuse(ends.taking, WORDS, WAIT_S, select.poll) == Told(1, 0)
    assert os.waitpid(witness, 0)[1] == 0
    assert hear_all(ends.peers[0]) == WORDS
