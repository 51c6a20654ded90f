"""Forwarder: the network between the pool and its database, as a process that obeys its standard input.

Laws:
    * It prints the port at which it listens, and then does what it is told, line by line: ``pass``; ``hold``
      (not a byte goes on, and no connection ends); ``reset`` (all connections are reset, then it passes);
      ``delay SECONDS``; ``throttle BYTES`` (so many a second, for each direction of each connection).
    * Nothing is lost but by ``reset``: what was held goes on afterwards.
    * It ends with its standard input.

Use: ``python forwarder.py SERVER_PORT``
"""

from __future__ import annotations

import struct
import sys
from typing import Final

import gevent
from gevent import socket
from gevent.event import Event

_CHUNK_BYTES: Final = 65536
#: Longest time for which a throttled connection stands still between two pieces.
_PIECE_S: Final = 0.05
_RESET: Final = struct.pack("ii", 1, 0)


class Network:
    """All connections between the clients and one server."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._sockets: set[socket.socket] = set()
        self._passes = Event()
        self._passes.set()
        self._delay_s = 0.0
        self._bytes_per_s = 0

    def obey(self, words: list[str]) -> None:
        """Do what a line says."""
        self._delay_s, self._bytes_per_s = 0.0, 0
        match words:
            case ["hold"]:
                self._passes.clear()
                return
            case ["delay", seconds]:
                self._delay_s = float(seconds)
            case ["throttle", rate]:
                self._bytes_per_s = int(rate)
            case ["reset"]:
                for each in list(self._sockets):
                    self._reset(each)
        self._passes.set()

    def serve(self, listener: socket.socket) -> None:
        """Accept, for ever."""
        while True:
            client, _ = listener.accept()
            gevent.spawn(self._join, client)

    def _join(self, client: socket.socket) -> None:
        self._passes.wait()
        self._sockets.add(client)
        try:
            server = socket.create_connection(("127.0.0.1", self._server_port))
        except OSError:
            self._reset(client)
            return
        self._sockets.add(server)
        for each in (client, server):
            # Or a command in two pieces waits for an acknowledgement that comes 40 ms late.
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pumps = [gevent.spawn(self._pump, client, server), gevent.spawn(self._pump, server, client)]
        gevent.joinall(pumps)
        for each in (client, server):
            self._sockets.discard(each)
            each.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(_CHUNK_BYTES):
                if self._delay_s:
                    gevent.sleep(self._delay_s)
                self._send(target, data)
        except OSError:
            # A reset on one side is one on the other.
            self._reset(target)
            return
        self._passes.wait()
        try:
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # It has ended by itself.

    def _send(self, target: socket.socket, data: bytes) -> None:
        while data:
            self._passes.wait()
            piece = max(1, int(self._bytes_per_s * _PIECE_S)) if self._bytes_per_s else len(data)
            target.sendall(data[:piece])
            data = data[piece:]
            if self._bytes_per_s:
                gevent.sleep(_PIECE_S)

    def _reset(self, each: socket.socket) -> None:
        self._sockets.discard(each)
        try:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            each.close()
        except OSError:
            pass  # It has ended by itself.


def main(arguments: list[str]) -> int:
    """Forward until standard input ends.

    Args:
        arguments: The server's port.
    """
    network = Network(int(arguments[0]))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(256)
    gevent.spawn(network.serve, listener)
    print(listener.getsockname()[1], flush=True)
    while line := gevent.get_hub().threadpool.apply(sys.stdin.readline):
        network.obey(line.split())
        print("done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
