"""Doors: all listening sockets of the master, by the address as configured.

Laws:
    * What is open stays open as long as the generation in charge, or a newer one, wants it.
    * What systemd opened is closed here but never barred: systemd goes on listening.
    * The queue of callers who wait to be accepted is looked at, never touched.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastagi_pool.errors import BootError
from fastagi_pool.listeners import Address, bind, describe, discard, refuse_newcomers
from fastagi_pool.logs import LOGGER_NAME

_SYSTEMD: Final = "systemd"
#: struct tcp_info of a listening socket: how many connections wait, and how many may.
#: Source: linux/tcp.h; tcp_get_info() in net/ipv4/tcp.c fills tcpi_unacked and tcpi_sacked so.
_TCP_INFO_BYTES: Final = 32
_QUEUE_AND_LIMIT: Final = struct.Struct("24xII")


@dataclass(frozen=True, slots=True)
class Queue:
    """Callers who wait to be accepted, over all TCP sockets; the kernel does not tell it of others.

    Attributes:
        length: How many wait.
        limit: How many may.
    """

    length: int
    limit: int


class Doors:
    """The listening sockets, opened and closed by the master."""

    def __init__(self, inherited: Collection[int]) -> None:
        """Begin with none.

        Args:
            inherited: Descriptors of sockets that systemd opened for us.
        """
        self._inherited = list(inherited)
        self._log = logging.getLogger(LOGGER_NAME)
        self._listeners: dict[str, list[socket.socket]] = {}

    def open(self, wanted: Iterable[Mapping[str, Any]], backlog: int, restricted: bool) -> tuple[str, ...]:
        """Open what is not open yet; what is stays as it is.

        Args:
            wanted: The arguments of ``listeners.Address``, for each.
            backlog: Connections that may wait to be accepted, for each address.
            restricted: Whether callers are held against a list of networks.

        Returns:
            The addresses, as written in the configuration.

        Raises:
            BootError: One of them cannot be had.
        """
        addresses = [Address(**content) for content in wanted]
        for address in addresses:
            if address.text not in self._listeners:
                self._listeners[address.text] = bind(address, backlog, self._inherited, restricted)
        return tuple(address.text for address in addresses)

    def adopt(self, descriptors: Mapping[str, Iterable[int]]) -> None:
        """Go on with sockets that are open already.

        Args:
            descriptors: As :meth:`descriptors` gave them.
        """
        for address, numbers in descriptors.items():
            self._listeners[address] = [socket.socket(fileno=number) for number in numbers]

    def hand_over(self, uid: int, gid: int) -> None:
        """Give the files of unix sockets to somebody, as if he had opened them; systemd's stay its own.

        Raises:
            BootError: Something else lies there by now.
        """
        for address, group in self._listeners.items():
            for listener in group if address != _SYSTEMD else ():
                if listener.family == socket.AF_UNIX:
                    _hand_over(listener.getsockname(), uid, gid)

    def descriptors(self) -> dict[str, list[int]]:
        """The descriptors of all sockets, by their addresses."""
        return {address: [each.fileno() for each in group] for address, group in self._listeners.items()}

    def of(self, addresses: Iterable[str]) -> list[int]:
        """The descriptors of some addresses' sockets, in their order."""
        return [listener.fileno() for address in addresses for listener in self._listeners[address]]

    def really_bound(self) -> list[str]:
        """Where the sockets are really bound."""
        return [describe(listener) for listener in self._all()]

    def close_but(self, wanted: Collection[str]) -> None:
        """Close those that nobody wants any more: nobody new gets in, who waits is reset."""
        for address in [each for each in self._listeners if each not in wanted]:
            self._bar(address)
            self._discard(address)

    def bar(self) -> None:
        """Let nobody new in anywhere; the workers serve those who wait."""
        for address in self._listeners:
            self._bar(address)

    def close(self) -> None:
        """Close all of them."""
        for address in list(self._listeners):
            self._discard(address)

    def forget(self) -> None:
        """Close this process's copies only: in a new child."""
        for listener in self._all():
            listener.close()
        # Those that systemd opened would stay open in whatever program the child executes.
        for descriptor in self._inherited:
            os.close(descriptor)

    def queue(self) -> Queue:
        """Look at who waits to be accepted."""
        length = limit = 0
        for listener in self._all():
            if listener.family == socket.AF_UNIX:
                continue
            info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            waiting, most = _QUEUE_AND_LIMIT.unpack(info)
            length, limit = length + waiting, limit + most
        return Queue(length, limit)

    def _all(self) -> list[socket.socket]:
        return [listener for group in self._listeners.values() for listener in group]

    def _bar(self, address: str) -> None:
        for listener in self._listeners[address] if address != _SYSTEMD else ():
            try:
                refuse_newcomers(listener)
            except OSError as error:
                self._log.error("cannot refuse newcomers on %s: %s", address, error)

    def _discard(self, address: str) -> None:
        for listener in self._listeners.pop(address):
            try:
                discard(listener, remove_file=address != _SYSTEMD)
            except OSError as error:
                self._log.error("cannot remove %s: %s", address, error)


def _hand_over(path: str, uid: int, gid: int) -> None:
    """Give a socket's file to somebody; by a descriptor, for the folder may be his already."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise BootError(f"cannot hand over {path}: {error.strerror}") from error
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise BootError(f"cannot hand over {path}: it is no socket any more")
        os.chown(f"/proc/self/fd/{descriptor}", uid, gid)
    finally:
        os.close(descriptor)
