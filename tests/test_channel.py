"""fastagi_pool.channel: what its users in messages and launching do not show by themselves."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from fastagi_pool.channel import MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, Channel


@dataclass(frozen=True, slots=True)
class Word:
    """A message."""

    text: str


class WordChannel(Channel[Word]):
    """A channel of words."""

    KINDS: Mapping[str, type[Word]] = {"Word": Word}


@pytest.fixture
def pair() -> Iterator[tuple[WordChannel, WordChannel]]:
    """Give both ends of a channel."""
    one, other = WordChannel.pair()
    yield one, other
    one.close()
    other.close()


def test_all_that_is_there(pair: tuple[WordChannel, WordChannel]) -> None:
    """receive_all gives what is there, in order, waits for nothing, and may be asked again."""
    one, other = pair
    assert list(other.receive_all()) == []
    for text in ("a", "b"):
        one.send(Word(text))
    assert list(other.receive_all()) == [(Word("a"), []), (Word("b"), [])]
    one.send(Word("c"))
    assert list(other.receive_all()) == [(Word("c"), [])]


def test_the_end_comes_last(pair: tuple[WordChannel, WordChannel]) -> None:
    """When the other end is gone receive_all gives what it has said, then None, and ends."""
    one, other = pair
    one.send(Word("last"))
    one.close()
    assert list(other.receive_all()) == [(Word("last"), []), None]
    assert list(other.receive_all()) == [None]


def test_descriptors_of_each_message(pair: tuple[WordChannel, WordChannel]) -> None:
    """receive_all keeps each message's descriptors beside it."""
    one, other = pair
    with socket.socket() as something:
        one.send(Word("two"), [something.fileno()] * 2)
        one.send(Word("none"))
        one.send(Word("most"), [something.fileno()] * MAX_DESCRIPTORS)
    counts = {}
    for received in other.receive_all():
        assert received is not None
        message, descriptors = received
        counts[message.text] = len(descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
    assert counts == {"two": 2, "none": 0, "most": MAX_DESCRIPTORS}


def test_a_full_channel_says_so(pair: tuple[WordChannel, WordChannel]) -> None:
    """An end that does not block raises when the other is behind, and has room again later."""
    one, other = pair
    os.set_blocking(one.fileno(), False)
    words = (Word(f"{number}{'x' * 1000}") for number in range(100_000))
    with pytest.raises(BlockingIOError):
        list(map(one.send, words))
    heard = [received[0] for received in other.receive_all() if received]
    assert len(heard) > 10
    assert heard == [Word(f"{number}{'x' * 1000}") for number in range(len(heard))]
    assert one.send(Word("room again"))


def test_the_longest_message(pair: tuple[WordChannel, WordChannel]) -> None:
    """A message of the longest length arrives whole, without a reader at the time."""
    one, other = pair
    text = "x" * (MAX_MESSAGE_BYTES - 100)
    assert one.send(Word(text))
    assert other.receive() == (Word(text), [])


def test_only_known_kinds(pair: tuple[WordChannel, WordChannel]) -> None:
    """Whoever speaks of another kind is not understood: nothing else is ever made of what arrives."""
    one, other = pair

    @dataclass(frozen=True, slots=True)
    class Stranger:
        """Not known to the channel."""

    one.send(Stranger())  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="Stranger"):
        other.receive()


def test_an_end_is_gone_on_with(pair: tuple[WordChannel, WordChannel]) -> None:
    """Whoever takes an end over by its descriptor hears what was said before, and is heard."""
    one, other = pair
    one.send(Word("before"))
    heir = WordChannel.adopt(os.dup(other.fileno()))
    assert heir.receive() == (Word("before"), [])
    heir.send(Word("after"))
    assert one.receive() == (Word("after"), [])
    heir.close()
