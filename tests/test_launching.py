"""fastagi_pool.launching: what workers and the launcher say arrives as it was, and the door lets in."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict

import pytest

from fastagi_pool.launching import (
    Answer,
    Door,
    DoorChannel,
    End,
    HangUp,
    Knock,
    Launch,
    Launched,
    LauncherChannel,
    NotLaunched,
    Order,
    Over,
    Prepare,
    ProcessSettings,
)

SETTINGS = ProcessSettings(interpreter=["perl", "-w"], environment={"A": "Zo\udceb"}, cpu_s=1.5, warm=3)


@pytest.mark.parametrize(
    "message",
    [
        Launch("c1", "/agi/a.pl", ["", "Zo\udceb"], {"AGI_X": "\x1b"}, asdict(SETTINGS)),
        End("c1", 0.5),
        HangUp("c1"),
        Launched("c1", 4_194_304),
        NotLaunched("c1", "syntax error\nat line 3"),
        Over("c1", -1),
    ],
    ids=lambda message: type(message).__name__,
)
def test_every_message_comes_back_as_it_was(message: Order | Answer) -> None:
    """Each kind of message arrives equal to what was sent, foreign bytes included."""
    worker, launcher = LauncherChannel.pair()
    assert worker.send(message)
    assert launcher.receive() == (message, [])
    worker.close()
    launcher.close()


def test_settings_travel() -> None:
    """Settings that have travelled are the same settings; the defaults limit nothing and kill nobody."""
    worker, launcher = LauncherChannel.pair()
    worker.send(Launch("c1", "/agi/a.pl", [], {}, asdict(SETTINGS)))
    received = launcher.receive()
    assert received is not None
    assert isinstance(received[0], Launch)
    assert ProcessSettings(**received[0].settings) == SETTINGS
    default = ProcessSettings()
    assert (default.cpu_s, default.memory_bytes, default.background) == (0, 0, True)
    worker.close()
    launcher.close()


def test_the_door() -> None:
    """Whoever knocks gets a channel of its own to whoever holds the far end; what is prepared comes first."""
    door = Door()
    # The far end, as a launcher finds it.
    far = door._far
    door.prepare("/agi/a.pl", ["one"], asdict(SETTINGS))
    ours = [door.knock(), door.knock()]
    assert far.receive() == (Prepare("/agi/a.pl", ["one"], asdict(SETTINGS)), [])
    for number, channel in enumerate(ours):
        received = far.receive()
        assert received is not None
        message, [descriptor] = received
        assert message == Knock()
        channel.send(HangUp(str(number)))
        theirs = LauncherChannel(socket.socket(fileno=descriptor))
        assert theirs.receive() == (HangUp(str(number)), [])
        theirs.close()
        assert channel.receive() is None
        channel.close()
    door.close()


def test_a_door_that_is_closed() -> None:
    """The launcher sees when nobody can knock any more, whatever its own end is."""
    door = Door()
    far = DoorChannel(socket.socket(fileno=os.dup(door._far.fileno())))
    door.leave_the_far_end()
    assert list(far.receive_all()) == []
    door.close()
    assert list(far.receive_all()) == [None]
    far.close()


def test_nobody_waits_at_a_full_door() -> None:
    """If no launcher reads, whoever comes to the door is told so, and does not wait for ever."""
    door = Door()
    said = 0
    while door.prepare("/agi/a.pl", [], asdict(SETTINGS)):
        said += 1
        assert said < 100_000
    while True:
        try:
            door.knock().close()
        except BlockingIOError:
            break
    for _ in range(said):
        assert door._far.receive(wait=False)
    door.knock().close()
    door.close()
