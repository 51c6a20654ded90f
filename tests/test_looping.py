"""fastagi_pool.looping: who is called, when, and who is not."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from fastagi_pool.looping import REST_S, Loop


@pytest.fixture
def loop() -> Loop:
    """Give a loop that logs as a test can see it."""
    return Loop(logging.getLogger("test_looping"))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Give both ends of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_descriptor_is_watched_until_it_is_forgotten(loop: Loop, pipe: tuple[int, int]) -> None:
    """Whoever watches is called as long as something is there, and no more once it was forgotten."""
    reading, writing = pipe
    called: list[str] = []
    loop.watch(reading, lambda: called.append("read"))
    loop.turn(0)
    os.write(writing, b"x")
    loop.turn(0)
    loop.turn(0)
    assert called == ["read", "read"]
    loop.forget(reading)
    loop.forget(reading)
    loop.turn(0)
    assert called == ["read", "read"]


def test_room_to_write(loop: Loop) -> None:
    """A descriptor may be watched for room to write too, and by another callback from then on."""
    one, other = socket.socketpair()
    called: list[str] = []
    with one, other:
        loop.watch(one.fileno(), lambda: called.append("read"))
        loop.turn(0)
        assert called == []
        loop.watch(one.fileno(), lambda: called.append("room"), writing=True)
        loop.turn(0)
        assert called == ["room"]
        loop.forget(one.fileno())


def test_who_was_forgotten_in_the_same_turn(loop: Loop) -> None:
    """Of two that have something to read the first forgets the other, which is not called."""
    first, second = os.pipe(), os.pipe()
    called: list[int] = []

    def forget(own: int, other: int) -> None:
        called.append(own)
        loop.forget(other)

    for own, other in ((first, second), (second, first)):
        os.write(own[1], b"x")
        loop.watch(own[0], lambda own=own, other=other: forget(own[0], other[0]))  # type: ignore[misc]
    loop.turn(0)
    assert len(called) == 1
    for end in (*first, *second):
        os.close(end)


def test_alarms_come_in_the_order_of_time(loop: Loop) -> None:
    """Alarms ring in the order of their moments, those of one moment in the order of their making."""
    now_s = time.monotonic()
    late_s = now_s + 0.02
    rung: list[tuple[str, float]] = []
    for name, when_s in (("c", late_s), ("a", now_s - 1), ("b", now_s - 1)):
        loop.at(when_s, lambda name=name: rung.append((name, time.monotonic())))  # type: ignore[misc]
    loop.turn(0)
    assert [name for name, _ in rung[:2]] == ["a", "b"]
    while len(rung) < 3:
        loop.turn(1000)
    assert [name for name, _ in rung] == ["a", "b", "c"]
    assert rung[-1][1] >= late_s


def test_a_failure_is_logged_and_ends_nothing(
    loop: Loop, pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """What a callback fails to take is offered again after a rest, not again and again; others go on."""
    reading, writing = pipe
    tries: list[float] = []

    def fail() -> None:
        tries.append(time.monotonic())
        raise ValueError("a bug")

    loop.watch(reading, fail)
    os.write(writing, b"x")
    for _ in range(100):
        loop.turn(0)
    assert "a bug" in caplog.text
    while len(tries) < 2:
        loop.turn(1000)
    assert all(later - earlier >= REST_S for earlier, later in pairwise(tries))


def test_who_is_forgotten_while_it_rests(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """A descriptor that is forgotten after its callback failed is not watched again, whoever has it then."""
    tries: list[float] = []

    def fail() -> None:
        tries.append(time.monotonic())
        raise ValueError("a bug")

    reading, writing = os.pipe()
    loop.watch(reading, fail)
    os.write(writing, b"x")
    loop.turn(0)
    loop.forget(reading)
    os.close(reading)
    other, other_writing = os.pipe()
    assert other == reading
    os.write(other_writing, b"x")
    rested: list[bool] = []
    loop.at(time.monotonic() + 2 * REST_S, lambda: rested.append(True))
    while not rested:
        loop.turn(1000)
    assert len(tries) == 1
    for end in (writing, other, other_writing):
        os.close(end)


def test_an_attempt_tells_whether_it_failed(loop: Loop) -> None:
    """Who calls through the loop hears whether the callback failed."""
    assert loop.attempt(lambda: None)
    assert not loop.attempt(lambda: [][0])
