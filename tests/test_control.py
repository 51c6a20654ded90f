"""fastagi_pool.control: the asking side, with a server that says what the test wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastagi_pool.control import ControlError, ControlLost, ask, decode, encode
from fastagi_pool.stacks import short_address

#: Longer than any answer takes here.
_LIMIT_S = 20.0


@contextmanager
def answering(path: Path, *pieces: bytes, hold: bool = False) -> Iterator[list[bytes]]:
    """Serve one client: hear its line, say these pieces, and hang up unless it is to be held.

    Yields:
        What the client said.
    """
    heard: list[bytes] = []
    over = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with short_address(path) as address:
            listener.bind(address)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                heard.append(lines.readline())
                for piece in pieces:
                    connection.sendall(piece)
                if hold:
                    over.wait(_LIMIT_S)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield heard
        finally:
            over.set()
            thread.join(_LIMIT_S)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the socket is."""
    return tmp_path / "control"


def test_one_answer(path: Path) -> None:
    """The request goes out as one line of JSON, and the answer comes back as a value."""
    with answering(path, b'{"ok":true,"more":false,"status":{"active":3}}\n') as heard:
        assert list(ask(path, {"verb": "status"}, _LIMIT_S)) == [
            {"ok": True, "more": False, "status": {"active": 3}}
        ]
    assert heard == [b'{"verb":"status"}\n']


def test_answers_as_they_come(path: Path) -> None:
    """Lines are told one by one until the last, wherever the pieces are cut; nobody waits for a hang-up."""
    pieces = (
        b'{"ok":true,"more":true,"te',
        b'xt":"one"}\n{"ok":true,"more":true,"text":"two"}\n{"ok":tr',
        b"ue}\n",
    )
    with answering(path, *pieces, hold=True):
        answers = list(ask(path, {"verb": "reload", "wait": True}, _LIMIT_S))
    assert [answer.get("text") for answer in answers] == ["one", "two", None]


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    """A runtime folder may lie deeper than the 107 bytes that a socket's address has room for."""
    path = tmp_path / ("d" * 120) / "control"
    path.parent.mkdir()
    with answering(path, b'{"ok":true}\n'):
        assert list(ask(path, {"verb": "status"}, _LIMIT_S)) == [{"ok": True}]


def test_nobody_is_there(path: Path) -> None:
    """Without a pool the error says that none runs, and names the socket."""
    with pytest.raises(ControlError, match=rf"nobody answers at {path}"):
        list(ask(path, {"verb": "status"}))


def test_an_abandoned_socket(path: Path) -> None:
    """The file of a server that was killed is the same as none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
    with pytest.raises(ControlError, match="nobody answers"):
        list(ask(path, {"verb": "status"}))


def test_a_server_that_says_nothing(path: Path) -> None:
    """Whoever asks is not kept for ever."""
    with answering(path, b'{"ok":tr', hold=True), pytest.raises(ControlError, match=r"within 0\.1 s"):
        list(ask(path, {"verb": "status"}, 0.1))


def test_a_server_that_ends_in_the_middle(path: Path) -> None:
    """Answers that end before the last one are told apart from a refusal: the status process has ended."""
    with answering(path, b'{"ok":true,"more":true,"text":"one"}\n'):
        answers = ask(path, {"verb": "reload", "wait": True}, _LIMIT_S)
        assert next(answers)["text"] == "one"
        with pytest.raises(ControlLost, match="status process has ended"):
            next(answers)


def test_something_else_answers(path: Path) -> None:
    """A socket that speaks otherwise is named, and nothing is made of its words."""
    with answering(path, b"220 mail ready\r\n"), pytest.raises(ControlError, match="other words than ours"):
        list(ask(path, {"verb": "status"}, _LIMIT_S))


@pytest.mark.parametrize("line", [b"[1]", b"status", b"\xff", b"", b"[" * 100_000])
def test_what_is_no_object_is_refused(line: bytes) -> None:
    """Whatever a client sends, to read it ends in a value or in an error with words."""
    with pytest.raises(ValueError, match="must be one JSON object"):
        decode(line)


@pytest.mark.parametrize("text", ["Grüße", "line\nend", "\ud800", "\u2028"])
def test_any_text_stays_one_line(text: str) -> None:
    """What callers bring with them, half characters too, arrives as it was and breaks no line."""
    line = encode({"callerid": text})
    assert line.count(b"\n") == 1
    assert decode(line) == {"callerid": text}


def test_a_consumer_that_has_enough(path: Path) -> None:
    """To stop listening in the middle closes the connection, which is how the server hears of it."""
    with answering(path, b'{"ok":true,"more":true,"text":"one"}\n', hold=True):
        answers = ask(path, {"verb": "stop", "wait": True}, _LIMIT_S)
        assert next(answers)["text"] == "one"
        answers.close()
        assert list(answers) == []
