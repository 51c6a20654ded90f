"""Control: how one asks a running pool, over a socket of the machine's own file system.

Laws:
    * One JSON object a line is asked, and one or more are answered; the last says so. Each holds ``ok``, and
      ``error`` in words for people if that is false.
    * A line has an end: :data:`LONGEST_REQUEST_BYTES` for what is asked.
    * Who may open the socket may do everything: its file's mode (0600) is the lock.
    * Plain: the command line loads this, and it wants nothing but the standard library.

How it works: the observer serves the socket ``control`` below the runtime folder (see ``controlling``), so
an answer comes even when every worker is stuck. This is what both sides agree on, and the asking side.

======== =========================== ===================================================================
verb     asked besides               answered besides
======== =========================== ===================================================================
status                               ``status``: the picture of the pool
workers                              ``workers``: of it
routes                               ``routes``: of it
db                                   ``databases``: of it
calls    ``limit`` (20)              ``calls``: those in progress for the longest time
dump     ``slot`` (null: all)        for each worker ``slot``, ``pid``, ``stacks``, ``blocked_s``
reload   ``wait`` (false)            with ``wait``: ``text``, whenever something has changed
upgrade  ``wait``                    the same
stop     ``wait``                    the same
reopen
======== =========================== ===================================================================
"""

from __future__ import annotations

import json
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from time import monotonic
from typing import Any, Final

from fastagi_pool.errors import FastAGIPoolError
from fastagi_pool.stacks import short_address

#: The socket's name, below the runtime folder.
SOCKET_NAME: Final = "control"
LONGEST_REQUEST_BYTES: Final = 64 * 1024
#: An answer is as long as it is: 5,000 calls, or the stacks of a worker. Beyond this it is none of ours.
_LONGEST_ANSWER_BYTES: Final = 256 * 1024 * 1024
_PIECE_BYTES: Final = 256 * 1024


class Verb(StrEnum):
    """What can be asked for."""

    STATUS = "status"
    CALLS = "calls"
    WORKERS = "workers"
    ROUTES = "routes"
    DB = "db"
    DUMP = "dump"
    RELOAD = "reload"
    UPGRADE = "upgrade"
    REOPEN = "reopen"
    STOP = "stop"


class ControlError(FastAGIPoolError):
    """Nobody answered, or not in time, or not in our words; the text says which."""


class NobodyAnswers(ControlError):
    """There is nobody at the socket, now at least."""


class ControlLost(ControlError):
    """Whoever answered went away before the last word, as when the pool ends."""


def encode(message: Mapping[str, Any]) -> bytes:
    """Write one line of either side."""
    # ASCII: what calls bring with them may hold characters that no encoding has.
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Read one line of either side.

    Raises:
        ValueError: It is not one JSON object; the text says what is expected.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a line must be one JSON object: {error}") from None
    if not isinstance(message, dict):
        raise ValueError('a line must be one JSON object, as {"verb": "status"}')
    return message


def ask(
    path: Path, request: Mapping[str, Any], timeout_s: float = 10.0
) -> Generator[dict[str, Any], None, None]:
    """Ask, and return the answers as they come, the last one included.

    Args:
        path: The socket.
        request: With the key ``verb`` at least.
        timeout_s: The longest silence; between two answers of a ``wait`` it may be as long as it takes a
            generation to load.

    Raises:
        PermissionError: The socket is another user's.
        ControlLost: The answers ended before the last one.
        ControlError: Nobody answers.
    """
    with _connected(path, timeout_s) as connection:
        connection.sendall(encode(request))
        for line in _lines(connection, timeout_s):
            try:
                answer = decode(line)
            except ValueError as error:
                raise ControlError(f"{path} answers in other words than ours: {error}") from None
            yield answer
            if not answer.get("more"):
                return
    raise ControlLost(f"{path} ended the answer too early: the status process has ended")


@contextmanager
def _connected(path: Path, timeout_s: float) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            with short_address(path) as address:
                connection.connect(address)
            yield connection
        except PermissionError:
            raise
        except TimeoutError:
            raise ControlError(f"{path} does not answer within {timeout_s:g} s") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise NobodyAnswers(
                f"nobody answers at {path}: the pool or its status process does not run"
            ) from None
        except (ConnectionResetError, BrokenPipeError):
            raise ControlLost(f"{path} ended the answer too early: the status process has ended") from None
        except OSError as error:
            raise ControlError(f"cannot ask at {path}: {error}") from error


def _lines(connection: socket.socket, timeout_s: float) -> Iterator[bytes]:
    """Cut what comes into lines; a line must be whole when the time is over."""
    kept = bytearray()
    deadline_s = monotonic() + timeout_s
    while True:
        end = kept.find(b"\n")
        if end >= 0:
            line = bytes(kept[:end])
            del kept[: end + 1]
            yield line
            deadline_s = monotonic() + timeout_s
            continue
        connection.settimeout(max(0.001, deadline_s - monotonic()))
        piece = connection.recv(_PIECE_BYTES)
        if not piece:
            return
        kept += piece
        if len(kept) > _LONGEST_ANSWER_BYTES:
            raise ControlError("the answer does not end")
