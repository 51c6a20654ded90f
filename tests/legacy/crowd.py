"""A crowd of callers in one process: all are connected and served with one command, then all are answered.

Use: ``python crowd.py HOST PORT SCRIPT CALLS``. It prints one line of JSON: how many calls were held at the
same time, and how many then ended well: with a second command that names their own caller, and nothing more.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fastagi_pool.testing import Caller, environment

#: Longest wait for anything to happen; connections come some hundred a second on a busy machine.
_SILENCE_S: Final = 30.0
_SPARE_FILES: Final = 64
#: Connections that wait to be accepted at the same time: fewer than any listener's queue.
_AT_ONCE: Final = 100


@dataclass(slots=True)
class _Call:
    """One call.

    Attributes:
        link: Its connection.
        number: Who calls.
        heard: What the server said.
    """

    link: socket.socket
    number: str
    heard: bytes = b""


def main(arguments: list[str]) -> int:
    """Hold all calls, release them, and print the figures."""
    host, port, script, count = arguments[0], int(arguments[1]), arguments[2], int(arguments[3])
    _allow_open_files(count + _SPARE_FILES)
    with selectors.DefaultSelector() as waiting:
        calls: list[_Call] = []
        while len(calls) < count:
            more = [_place(host, port, script, f"{9000 + len(calls) + n}") for n in range(_AT_ONCE)]
            calls += more
            _hear(waiting, more, lambda call: b"\n" in call.heard)
        held = sum(call.heard == b"NOOP held\n" for call in calls)
        for call in calls:
            call.link.sendall(b"200 result=0\n")
        _hear(waiting, calls, lambda call: call.heard.count(b"\n") >= 2)
        for call in calls:
            call.link.sendall(b"200 result=1\n")
        good = _hear(waiting, calls, lambda call: False)
    wanted = [f"NOOP held\nSET VARIABLE WHO {call.number}\n".encode() for call in calls]
    right = sum(call.heard == text for call, text in zip(calls, wanted, strict=True))
    print(json.dumps({"held": held, "good": min(good, right)}))
    return 0


def _place(host: str, port: int, script: str, number: str) -> _Call:
    link = socket.create_connection((host, port), _SILENCE_S)
    link.sendall(environment(f"agi://{host}/{script}", (), Caller(number=number)).encode())
    return _Call(link, number)


def _hear(waiting: selectors.BaseSelector, calls: list[_Call], enough: Callable[[_Call], bool]) -> int:
    """Read until each call has said enough, or its end; return how many have ended cleanly."""
    ended = 0
    for call in calls:
        waiting.register(call.link, selectors.EVENT_READ, call)
    while waiting.get_map():
        ready = waiting.select(_SILENCE_S)
        if not ready:
            raise TimeoutError(f"{len(waiting.get_map())} calls heard nothing for {_SILENCE_S:g} s")
        for key, _ in ready:
            data = key.data.link.recv(4096)
            key.data.heard += data
            ended += not data
            if not data or enough(key.data):
                waiting.unregister(key.fileobj)
    return ended


def _allow_open_files(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
