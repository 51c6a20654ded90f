"""fastagi_pool.doors: real sockets, opened, handed on, looked at and closed."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from children import in_child

from fastagi_pool.doors import Doors, Queue
from fastagi_pool.errors import BootError

_BACKLOG: Final = 16


@pytest.fixture
def doors() -> Iterator[Doors]:
    """Doors that are closed with the test."""
    doors = Doors(())
    yield doors
    doors.close()


def tcp(text: str = "127.0.0.1:0", port: int = 0) -> dict[str, Any]:
    """An address on this machine, as a loader describes it."""
    return {"kind": "tcp", "host": "127.0.0.1", "port": port, "path": "", "text": text}


def unix(path: Path) -> dict[str, Any]:
    """A Unix socket, as a loader describes it."""
    return {"kind": "unix", "host": "", "port": 0, "path": str(path), "text": f"unix:{path}"}


def systemd() -> dict[str, Any]:
    """What systemd opened, as a loader describes it."""
    return {"kind": "systemd", "host": "", "port": 0, "path": "", "text": "systemd"}


def reach(where: str) -> socket.socket:
    """Connect to where a socket is really bound."""
    if where.startswith("unix:"):
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(where.removeprefix("unix:"))
        return caller
    host, _, port = where.rpartition(":")
    return socket.create_connection((host, int(port)), 0.5)


def accepts(where: str) -> bool:
    """Whether somebody new gets in there."""
    try:
        reach(where).close()
    except OSError:
        return False
    return True


def test_what_is_open_stays(doors: Doors, tmp_path: Path) -> None:
    """An address that is wanted again keeps its socket; one that is new gets one beside it."""
    assert doors.open([tcp()], _BACKLOG, False) == ("127.0.0.1:0",)
    before = doors.descriptors()
    second = unix(tmp_path / "a.sock")
    assert doors.open([tcp(), second], _BACKLOG, False) == ("127.0.0.1:0", second["text"])
    assert doors.descriptors()["127.0.0.1:0"] == before["127.0.0.1:0"]
    assert doors.of((second["text"], "127.0.0.1:0")) == [
        *doors.descriptors()[second["text"]],
        *before["127.0.0.1:0"],
    ]
    assert all(map(accepts, doors.really_bound()))


def test_address_that_cannot_be_had(doors: Doors) -> None:
    """An address that somebody else has is an error that names it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(BootError, match=f"cannot listen on 127.0.0.1:{port}: the address is in use"):
            doors.open([tcp(f"127.0.0.1:{port}", port)], _BACKLOG, False)
    assert doors.descriptors() == {}


def test_adopted_sockets_are_the_same(doors: Doors, tmp_path: Path) -> None:
    """A program that took over goes on with the descriptors of the old one, and opens nothing twice."""
    wanted = [tcp(), unix(tmp_path / "a.sock")]
    doors.open(wanted, _BACKLOG, False)
    descriptors = doors.descriptors()

    def go_on() -> list[bool]:
        heir = Doors(())
        heir.adopt(descriptors)
        opened = heir.open(wanted, _BACKLOG, False)
        return [
            heir.descriptors() == descriptors,
            heir.really_bound() == doors.really_bound(),
            list(opened) == list(descriptors),
        ]

    assert in_child(go_on) == [True, True, True]


def test_only_what_is_not_wanted_is_closed(doors: Doors, tmp_path: Path) -> None:
    """What a newer generation does not want lets nobody in, and its file goes; the rest is as it was."""
    path = tmp_path / "a.sock"
    doors.open([tcp(), unix(path)], _BACKLOG, False)
    kept, dropped = doors.really_bound()
    doors.close_but({"127.0.0.1:0"})
    assert accepts(kept)
    assert not accepts(dropped)
    assert not path.exists()
    assert doors.really_bound() == [kept]


def test_barred_doors_keep_who_waits(doors: Doors, tmp_path: Path) -> None:
    """Once barred nobody new gets in, and who waits can still be accepted."""
    doors.open([tcp(), unix(tmp_path / "a.sock")], _BACKLOG, False)
    places = doors.really_bound()
    with ExitStack() as stack:
        for where in places:
            stack.enter_context(reach(where)).sendall(b"waiting")
        doors.bar()
        assert not any(map(accepts, places))
        for descriptor in doors.of(doors.descriptors()):
            listener = stack.enter_context(socket.socket(fileno=os.dup(descriptor)))
            assert stack.enter_context(listener.accept()[0]).recv(100) == b"waiting"


def test_what_systemd_opened_is_not_barred() -> None:
    """A socket of systemd's goes on taking callers after this pool has closed it, for the next."""
    with socket.create_server(("127.0.0.1", 0)) as given:
        doors = Doors((given.fileno(),))
        assert doors.open([systemd()], _BACKLOG, False) == ("systemd",)
        (where,) = doors.really_bound()
        doors.bar()
        assert accepts(where)
        doors.close_but(())
        assert accepts(where)


def test_a_new_child_forgets(doors: Doors, tmp_path: Path) -> None:
    """A child that closes its copies takes nothing from its parent: not even the file of a socket."""
    path = tmp_path / "a.sock"
    doors.open([tcp(), unix(path)], _BACKLOG, False)

    def forget() -> int:
        before = len(list(Path("/proc/self/fd").iterdir()))
        doors.forget()
        return before - len(list(Path("/proc/self/fd").iterdir()))

    assert in_child(forget) == 2
    assert path.exists()
    assert all(map(accepts, doors.really_bound()))


def test_a_new_child_forgets_what_systemd_opened() -> None:
    """Programs that a child executes do not get systemd's sockets, which no execution closes."""
    with socket.create_server(("127.0.0.1", 0)) as given:
        doors = Doors((given.fileno(),))

        def forget() -> bool:
            doors.forget()
            return Path(f"/proc/self/fd/{given.fileno()}").exists()

        assert in_child(forget) is False


def test_end(tmp_path: Path) -> None:
    """At the end every socket is closed and every file of one is gone."""
    doors = Doors(())
    path = tmp_path / "a.sock"
    doors.open([tcp(), unix(path)], _BACKLOG, False)
    places = doors.really_bound()
    doors.close()
    assert not any(map(accepts, places))
    assert not path.exists()
    assert doors.descriptors() == {}


def test_queue_counts_who_waits(doors: Doors, tmp_path: Path) -> None:
    """The queue is the sum over the TCP sockets, and looking at it takes nobody out of it."""
    doors.open([tcp("one"), tcp("two"), unix(tmp_path / "a.sock")], _BACKLOG, False)
    assert doors.queue() == Queue(0, 2 * _BACKLOG)
    with ExitStack() as stack:
        for where in (*doors.really_bound(), doors.really_bound()[0]):
            stack.enter_context(reach(where))
        assert doors.queue() == doors.queue() == Queue(3, 2 * _BACKLOG)


def test_no_doors_no_queue(doors: Doors) -> None:
    """Without a socket there is nothing to count."""
    assert doors.queue() == Queue(0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand something over")
def test_files_are_handed_over(doors: Doors, tmp_path: Path) -> None:
    """The file of a Unix socket becomes the user's; TCP sockets have none."""
    path = tmp_path / "a.sock"
    doors.open([tcp(), unix(path)], _BACKLOG, False)
    nobody = pwd.getpwnam("nobody")
    doors.hand_over(nobody.pw_uid, nobody.pw_gid)
    assert (path.stat().st_uid, path.stat().st_gid) == (nobody.pw_uid, nobody.pw_gid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand something over")
def test_only_sockets_are_handed_over(doors: Doors, tmp_path: Path) -> None:
    """What was put in the place of a socket's file meanwhile is not handed over, nor what it leads to."""
    path, others = tmp_path / "a.sock", tmp_path / "others"
    others.touch()
    doors.open([unix(path)], _BACKLOG, False)
    path.unlink()
    path.symlink_to(others)
    nobody = pwd.getpwnam("nobody")
    with pytest.raises(BootError, match="it is no socket any more"):
        doors.hand_over(nobody.pw_uid, nobody.pw_gid)
    assert (others.stat().st_uid, path.lstat().st_uid) == (0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand something over")
def test_files_of_systemd_are_not_handed_over(tmp_path: Path) -> None:
    """The unit says whose systemd's sockets are; that stays so."""
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))
        given.listen()
        doors = Doors((given.fileno(),))
        doors.open([systemd()], _BACKLOG, False)
        nobody = pwd.getpwnam("nobody")
        doors.hand_over(nobody.pw_uid, nobody.pw_gid)
        doors.close()
    assert path.stat().st_uid == 0
