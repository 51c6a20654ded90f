"""fastagi_pool.waiting: who may wait, for how long, and who comes next."""

from __future__ import annotations

from fastagi_pool.waiting import WaitingRoom


def test_first_come_first_served() -> None:
    """Whoever has waited longest is called in first, and once."""
    room: WaitingRoom[str] = WaitingRoom(places=3, longest_s=5.0)
    assert room.admit("a", 0.0)
    assert room.admit("b", 1.0)
    assert len(room) == 2
    assert room.call_in() == "a"
    assert room.call_in() == "b"
    assert room.call_in() is None


def test_no_more_wait_than_there_is_room_for() -> None:
    """A full room admits nobody, until somebody has left it."""
    room: WaitingRoom[str] = WaitingRoom(places=1, longest_s=5.0)
    assert room.admit("a", 0.0)
    assert not room.admit("b", 0.0)
    room.call_in()
    assert room.admit("b", 0.0)


def test_a_room_without_places_admits_nobody() -> None:
    """With max_queue 0 every call beyond the places is told so at once."""
    room: WaitingRoom[str] = WaitingRoom(places=0, longest_s=5.0)
    assert not room.admit("a", 0.0)
    assert len(room) == 0


def test_nobody_waits_longer_than_the_bound() -> None:
    """Those whose time is over are given up, in the order of coming; the others stay."""
    room: WaitingRoom[str] = WaitingRoom(places=3, longest_s=5.0)
    for at_s, caller in enumerate(("a", "b", "c")):
        room.admit(caller, float(at_s))
    assert room.give_up(4.9) == []
    assert room.give_up(6.0) == ["a", "b"]
    assert room.give_up(6.0) == []
    assert room.call_in() == "c"


def test_places_of_those_who_are_gone() -> None:
    """Callers who are gone are taken out wherever they stand; the others keep their order and their time."""
    room: WaitingRoom[str] = WaitingRoom(places=3, longest_s=5.0)
    for at_s, caller in enumerate(("a", "gone", "b")):
        room.admit(caller, float(at_s))
    assert room.weed(lambda caller: caller == "gone") == ["gone"]
    assert room.weed(lambda caller: caller == "gone") == []
    assert room.admit("c", 3.0)
    assert room.give_up(7.0) == ["a", "b"]
    assert room.call_in() == "c"
