"""Ports: those of 127.0.0.1 for servers that must be told theirs, and one at which nobody answers."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from random import SystemRandom
from typing import Final

#: Below those that the kernel gives to whoever asks for any, from 32768 on: between now and the moment at
#: which the server listens, and while it is started again, no connection of another test gets it.
#: Source: ip_local_port_range in ip(7).
_OURS: Final = range(20_000, 32_000)
_ATTEMPTS: Final = 100


def free_port() -> int:
    """Return a TCP port on which nobody listens now, and which only another caller of this could get.

    Raises:
        OSError: Each of a hundred was taken.
    """
    dice = SystemRandom()
    for _ in range(_ATTEMPTS):
        port = dice.choice(_OURS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
    raise OSError(f"no free port of 127.0.0.1 from {_OURS[0]} to {_OURS[-1]}")


@contextmanager
def closed_port() -> Iterator[int]:
    """Give a TCP port that refuses whoever connects; nobody else gets it meanwhile."""
    with socket.socket() as keeper:
        keeper.bind(("127.0.0.1", 0))
        yield int(keeper.getsockname()[1])
