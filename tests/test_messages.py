"""fastagi_pool.messages: what one end sends is what the other receives, descriptors included."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from fastagi_pool.messages import (
    MAX_LISTENERS,
    Begin,
    Channel,
    Ended,
    Fork,
    Forked,
    ForkFailed,
    Loaded,
    Message,
    Refused,
    ReopenLogs,
)

LOADED = Loaded(
    limits={"workers": 4, "max_calls_jitter": 0.1, "watchdog": True},
    listen=[{"kind": "tcp", "host": "::1", "port": 4573, "path": "", "text": "[::1]:4573"}],
    restricted=True,
    backlog=511,
    runtime_dir="/run/fastagi-pool",
    pid_file="",
    log={"file": "-", "level": "info", "format": "text", "facility": "daemon"},
    rotated=["/var/log/fastagi-pool/error.log"],
    rotation={"daily": True, "size_bytes": 0, "keep": 14},
    observer={"host": "127.0.0.1", "port": 4578, "allow": ["10.0.0.0/8"]},
    identity={},
    umask="027",
    chdir="",
    quarantine={"crashes": 2, "for_s": 600.0},
)


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    """Both ends of a channel."""
    one, other = Channel.pair()
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize(
    "message",
    [
        LOADED,
        Refused("pool.yaml:3: workers: must be above 0\nZoë \x1b \ud800"),
        Refused("the port is in use", machine=True),
        Begin(7),
        Fork(1023),
        Forked(1023, 4_194_304),
        ForkFailed(0, "Resource temporarily unavailable"),
        Ended(4711, 139),
        ReopenLogs(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_every_message_comes_back_as_it_was(pair: tuple[Channel, Channel], message: Message) -> None:
    """Each kind of message arrives equal to what was sent, in both directions."""
    for sender, receiver in (pair, pair[::-1]):
        assert sender.send(message)
        assert receiver.receive() == (message, [])


def test_messages_keep_their_bounds_and_order(pair: tuple[Channel, Channel]) -> None:
    """Messages that were sent before anyone received come one by one, in order."""
    sender, receiver = pair
    for slot in range(100):
        sender.send(Fork(slot))
    received = [receiver.receive() for _ in range(100)]
    assert received == [(Fork(slot), []) for slot in range(100)]


def test_descriptors_travel_beside_a_message(pair: tuple[Channel, Channel], pipe: tuple[int, int]) -> None:
    """A descriptor arrives as another one of the same open file."""
    sender, receiver = pair
    reading, writing = pipe
    sender.send(Begin(1), [writing])
    received = receiver.receive()
    assert received is not None
    message, [copy] = received
    assert message == Begin(1)
    assert copy != writing
    os.write(copy, b"through the copy")
    os.close(copy)
    assert os.read(reading, 100) == b"through the copy"


def test_descriptors_belong_to_their_message(pair: tuple[Channel, Channel], pipe: tuple[int, int]) -> None:
    """A message without descriptors takes none of its neighbour's."""
    sender, receiver = pair
    sender.send(Fork(1))
    sender.send(Begin(1), list(pipe))
    sender.send(Fork(2))
    counts = []
    for _ in range(3):
        received = receiver.receive()
        assert received is not None
        counts.append(len(received[1]))
        for descriptor in received[1]:
            os.close(descriptor)
    assert counts == [0, 2, 0]


def test_as_many_listeners_as_linux_passes(pair: tuple[Channel, Channel]) -> None:
    """A whole configuration of listening sockets goes with one message."""
    sender, receiver = pair
    with socket.socket() as listener:
        sender.send(Begin(1), [listener.fileno()] * MAX_LISTENERS)
    received = receiver.receive()
    assert received is not None
    for descriptor in received[1]:
        os.close(descriptor)
    assert len(received[1]) == len(set(received[1])) == MAX_LISTENERS


def test_a_long_report_fits(pair: tuple[Channel, Channel]) -> None:
    """A thousand configuration problems arrive whole, and do not block the loader that reports them."""
    sender, receiver = pair
    report = "\n".join(f"pool.yaml:{line}: {'x' * 85}" for line in range(1000))
    assert len(report) > 95_000
    assert sender.send(Refused(report))
    assert receiver.receive() == (Refused(report), [])


def test_the_end_of_the_other_is_seen(pair: tuple[Channel, Channel]) -> None:
    """Once the other end is closed, receiving gives None, as often as one asks."""
    sender, receiver = pair
    sender.close()
    assert receiver.receive() is None
    assert receiver.receive() is None


def test_last_words_arrive(pair: tuple[Channel, Channel]) -> None:
    """What was sent before the end closed is received first."""
    sender, receiver = pair
    sender.send(Ended(4711, 0))
    sender.close()
    assert receiver.receive() == (Ended(4711, 0), [])
    assert receiver.receive() is None


def test_sending_to_nobody_is_said(pair: tuple[Channel, Channel]) -> None:
    """Sending to an end that is closed is no exception, but an answer."""
    sender, receiver = pair
    receiver.close()
    assert sender.send(Fork(1)) is False


def test_an_end_that_closed_with_words_unread(pair: tuple[Channel, Channel]) -> None:
    """If the other end dies without reading what we said, receiving still tells its end."""
    sender, receiver = pair
    sender.send(Fork(1))
    receiver.close()
    assert sender.receive() is None


def test_who_does_not_wait_gets_what_is_there(pair: tuple[Channel, Channel]) -> None:
    """Receiving without waiting gives a message that is there, and None at once when none is."""
    sender, receiver = pair
    assert receiver.receive(wait=False) is None
    sender.send(Fork(1))
    assert receiver.receive(wait=False) == (Fork(1), [])


def test_a_channel_can_be_polled(pair: tuple[Channel, Channel]) -> None:
    """The descriptor of a channel is that of its socket."""
    one, other = pair
    assert one.fileno() >= 0
    assert one.fileno() != other.fileno()


def test_who_says_no_more_still_hears() -> None:
    """A loader that is dismissed sees so, and can still say how its last worker ended."""
    master, loader = Channel.pair()
    master.say_no_more()
    assert loader.receive() is None
    assert loader.send(Ended(42, 0))
    assert master.receive() == (Ended(42, 0), [])
    assert not master.send(Fork(1))
    master.close()
    loader.close()
