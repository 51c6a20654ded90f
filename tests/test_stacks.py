"""Stacks: what is shown of greenlets, how it is grouped, and how a worker is asked."""

from __future__ import annotations

import gc
import re
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

import gevent
import pytest
from greenlet import getcurrent, greenlet

from fastagi_pool import attendants
from fastagi_pool.stacks import (
    MOST_FRAMES,
    StackTaker,
    TakenStack,
    ask_stacks,
    blocked_for,
    running_one,
    short_address,
    where,
    write,
    write_all,
    write_stack,
)


def park() -> None:
    """Wait for ever in a place that can be recognised."""
    parent = getcurrent().parent
    assert parent is not None
    parent.switch()


def parked() -> greenlet:
    """A greenlet that waits."""
    waiting = greenlet(park)
    waiting.switch()
    return waiting


def code_in(path: str, name: str) -> CodeType:
    """A function's code as if it stood in a file."""
    return park.__code__.replace(co_filename=path, co_qualname=name)


HANDLER = (code_in("/opt/crm.py", "lookup"), 7)
ATTENDANT = (code_in(attendants.__file__, "Attendant._live"), 1)
WORKER = (code_in(attendants.__file__.replace("attendants", "worker"), "Worker._serve"), 2)
WAITING = (code_in("/lib/gevent/event.py", "Event.wait"), 3)


def test_write_stack() -> None:
    """A stack is written as Python writes tracebacks, the innermost frame last, with its source line."""
    text = write_stack(parked().gr_frame)
    line = park.__code__.co_firstlineno + 4
    assert text == f'  File "{__file__}", line {line}, in park\n    parent.switch()\n'
    assert write_stack(None) == ""


def test_machinery_is_left_out() -> None:
    """Around a handler neither the pool's own frames nor gevent's are shown."""
    text = write((ATTENDANT, WORKER, HANDLER, WAITING))
    assert text == '  File "/opt/crm.py", line 7, in lookup\n'
    assert where((ATTENDANT, HANDLER, WAITING)) == "lookup (/opt/crm.py:7)"


def test_where_in_a_library() -> None:
    """What a handler has called in a library is told by the handler's own line, if there is one."""
    library = (code_in(re.__file__, "match"), 1)
    package = (code_in("/usr/lib/python3/dist-packages/pymysql/connections.py", "query"), 2)
    assert where((ATTENDANT, HANDLER, package, library)) == "lookup (/opt/crm.py:7)"
    assert where((ATTENDANT, library)) == f"match ({re.__file__}:1)"


def test_nothing_but_machinery() -> None:
    """A stack that is all machinery is shown as it is, but is no place at which anything is at work."""
    assert 'event.py", line 3, in Event.wait' in write((ATTENDANT, WAITING))
    assert where((ATTENDANT, WAITING)) == ""


def test_runaway_recursion() -> None:
    """Of a very deep stack the innermost frames are kept."""

    def descend(levels: int) -> FrameType:
        return descend(levels - 1) if levels else sys._getframe()

    assert write_stack(descend(200)).count("in test_runaway_recursion.<locals>.descend") == MOST_FRAMES


def test_groups() -> None:
    """What runs comes first, then calls by place with every title, then what belongs to no call."""
    other = (HANDLER[0], 9)
    taken = [
        TakenStack("", (other,)),
        TakenStack("call=1", (ATTENDANT, HANDLER)),
        TakenStack("call=3", (ATTENDANT, other)),
        TakenStack("call=2", (ATTENDANT, WORKER, HANDLER)),
        TakenStack("", (other,)),
        TakenStack("call=9", (HANDLER, HANDLER), running=True),
        TakenStack("call=8", ()),
    ]
    blocks = write_all(taken).split("\n\n")
    assert [re.findall(r"^\S.*", block, re.MULTILINE) for block in blocks] == [
        ["running: call=9"],
        ["call=1", "call=2"],
        ["call=3"],
        ["call=8"],
        ["2 other greenlets"],
    ]
    assert "between two places" in blocks[3]


def test_idle() -> None:
    """Attendants without a call are counted only, and a worker that waits for events runs nothing."""
    taken = [TakenStack("", (WAITING,), running=True), *[TakenStack("", (ATTENDANT, ATTENDANT))] * 3]
    assert write_all(taken) == "running: nothing\n\n3 idle attendants\n"


def test_two_hundred_waiting() -> None:
    """Two hundred greenlets at one place are one stack, and the ones that are calls have their titles."""
    waiting = [parked() for _ in range(200)]
    taker = StackTaker(threading.get_ident())
    with taker.looking():
        text = write_all(taker.take({each: f"call={number}" for number, each in enumerate(waiting[:150])}))
    taker.let_go()
    assert text.startswith("running: no call\n")
    assert len(re.findall(r"^call=\d+$", text, re.MULTILINE)) == 150
    # Other tests may have left greenlets behind.
    assert re.search(rf"^50 other greenlets\n.*line {park.__code__.co_firstlineno + 4}, in park", text, re.M)


def test_running_one() -> None:
    """Of several greenlets the one that has its turn is found; one that has ended or not begun is not it."""
    ended = greenlet(int)
    ended.switch()
    found: list[greenlet | None] = []
    running = greenlet(lambda: found.append(running_one([ended, greenlet(park), waiting, running])))
    waiting = parked()
    running.switch()
    assert found == [running]
    assert running_one([ended, waiting, running]) is None


class Owned:
    """Something that a handler has."""


def test_held_until_let_go() -> None:
    """What another thread has looked at lives on until the worker's own thread lets go of it."""

    def handler() -> weakref.ref[Owned]:
        owned = Owned()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return weakref.ref(owned)

    def look() -> None:
        with taker.looking():
            taker.running()

    taker = StackTaker(threading.get_ident())
    owned = handler()
    assert owned() is not None
    with taker.looking():
        taker.let_go()
        assert owned() is not None, "somebody was looking"
    taker.let_go()
    gc.collect()
    assert owned() is None


def test_hub_takes_part() -> None:
    """A real hub's greenlets are found without being named."""
    sleeper = gevent.spawn(gevent.sleep, 60)
    gevent.sleep(0)
    taker = StackTaker(threading.get_ident())
    with taker.looking():
        names = [code.co_qualname for each in taker.take({}) for code, _ in each.stack]
    taker.let_go()
    sleeper.kill()
    assert "Hub.run" in names
    assert "sleep" in names


@contextmanager
def peer(path: Path, serve: Callable[[socket.socket], object]) -> Iterator[None]:
    """Somebody who listens at a socket."""

    def live() -> None:
        connection, _ = listener.accept()
        with connection:
            serve(connection)

    with socket.socket(socket.AF_UNIX) as listener, short_address(path) as address:
        listener.bind(address)
        listener.listen()
        thread = threading.Thread(target=live)
        thread.start()
        yield
        thread.join()


def test_ask(tmp_path: Path) -> None:
    """An answer is read to its end, over a path that is too long for a socket's address."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    said = "worker=3 gen=1 pid=42 blocked_s=1.25\n\n" + "größe\n" * 50_000
    with peer(folder / "3", lambda connection: connection.sendall(said.encode())):
        answer = ask_stacks(folder / "3", 20)
    assert answer == said
    assert blocked_for(answer) == 1.25


def test_ask_in_vain(tmp_path: Path) -> None:
    """Whoever asks is told by the kind of error whether nobody is there, or somebody who does not answer."""
    with pytest.raises(FileNotFoundError):
        ask_stacks(tmp_path / "missing" / "3", 1)
    over = threading.Event()
    with peer(tmp_path / "3", lambda connection: over.wait(20)):
        with pytest.raises(TimeoutError):
            ask_stacks(tmp_path / "3", 0.05)
        over.set()
    with pytest.raises(ConnectionRefusedError):
        ask_stacks(tmp_path / "3", 1)
    with peer(tmp_path / "4", lambda connection: None), pytest.raises(ConnectionError, match="has ended"):
        ask_stacks(tmp_path / "4", 20)


def test_drops(tmp_path: Path) -> None:
    """A peer that says a little now and then does not get more time by it."""
    over = threading.Event()

    def dribble(connection: socket.socket) -> None:
        while not over.wait(0.01):
            connection.sendall(b".")

    with peer(tmp_path / "3", dribble):
        with pytest.raises(TimeoutError):
            ask_stacks(tmp_path / "3", 0.1)
        over.set()


def test_not_blocked() -> None:
    """An answer that tells of no blocking is one of none, whatever the stacks below say."""
    assert blocked_for("worker=3 gen=1 pid=42\n\nblocked_s=9\n") == 0.0


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Asking leaves no descriptor open, whether it succeeds or not."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            ask_stacks(tmp_path / "3", 1)
    # Fewer may be open: what other tests have left to the garbage collector is closed when that comes.
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
