"""Listeners: the sockets that the master binds and all workers accept from.

Laws:
    * Bound once, by the master; a reload keeps those that stay, so no caller is ever refused.
    * Options that accepted connections inherit are set here, once, instead of at every call.
    * A socket that is no longer listened on is closed in every process, and its file removed.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastagi_pool.errors import BootError

#: Asterisk sets no keep-alive: one whose machine vanished is noticed after this silence ...
KEEPALIVE_IDLE_S: Final = 60
#: ... and this many unanswered probes, so far apart.
KEEPALIVE_PROBES: Final = 4
KEEPALIVE_INTERVAL_S: Final = 15
#: Source: asm-generic/socket.h.
_SO_ATTACH_FILTER: Final = 26
_SO_GET_FILTER: Final = _SO_ATTACH_FILTER
#: Source: linux/in.h, linux/in6.h; tcp_v4_rcv() looks at it for listening and for established sockets alike.
_IP_MINTTL: Final = 21
_IPV6_MINHOPCOUNT: Final = 73
_MOST_HOPS: Final = 255
#: A packet filter that drops what has the SYN flag: struct sock_filter {u16 code; u8 jt; u8 jf; u32 k}.
#: Source: linux/bpf_common.h; the TCP header's 14th byte holds its flags (RFC 9293).
_NO_SYN: Final = (
    (0x30, 0, 0, 13),  # BPF_LD|BPF_B|BPF_ABS: load the flags
    (0x45, 0, 1, 0x02),  # BPF_JMP|BPF_JSET|BPF_K: is SYN among them?
    (0x06, 0, 0, 0),  # BPF_RET|BPF_K: then keep no byte,
    (0x06, 0, 0, 0xFFFFFFFF),  # otherwise all
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen.

    Attributes:
        kind: ``tcp``, ``unix`` or ``systemd``.
        host: For ``tcp``: an IP address, or ``*`` for all, IPv4 and IPv6.
        port: For ``tcp``; 0 lets the kernel choose.
        path: For ``unix``.
        text: As written in the configuration.
    """

    kind: str
    host: str
    port: int
    path: str
    text: str


def bind(address: Address, backlog: int, inherited: list[int], restricted: bool) -> list[socket.socket]:
    """Open the sockets of one address.

    Args:
        address: Where.
        backlog: Connections that may wait to be accepted.
        inherited: Descriptors of sockets that systemd opened for us.
        restricted: Whether callers are held against a list of networks. If not, an inherited socket
            must not be reachable from other machines; others were checked with the configuration.

    Returns:
        One socket; for ``systemd`` all that were inherited.

    Raises:
        BootError: It cannot be had, and why.
    """
    try:
        if address.kind == "systemd":
            return _adopt(inherited, restricted)
        if address.kind == "unix":
            return [_bind_unix(address, backlog)]
        return [_bind_tcp(address, backlog)]
    except OSError as error:
        raise BootError(f"cannot listen on {address.text}: {_advice(error)}") from error


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use by another process; stop that, or change 'listen'"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have the address; change 'listen'"
    if error.errno == errno.EACCES:
        return "permission denied; ports below 1024 are root's"
    return str(error)


def _bind_tcp(address: Address, backlog: int) -> socket.socket:
    everywhere = address.host == "*"
    host = "::" if everywhere else address.host
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if everywhere else 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        listener.bind((host, address.port))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def _bind_unix(address: Address, backlog: int) -> socket.socket:
    path = Path(address.path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            _remove_if_abandoned(path)
        # It is made with its rights: a chmod by root could be led to another file meanwhile.
        mask = os.umask(0o117)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_if_abandoned(path: Path) -> None:
    """Remove a socket file behind which nobody listens, as a killed server leaves one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


def _adopt(inherited: list[int], restricted: bool) -> list[socket.socket]:
    if not inherited:
        raise BootError("cannot listen on systemd: no socket was handed over (LISTEN_FDS is not set)")
    listeners = [socket.socket(fileno=os.dup(descriptor)) for descriptor in inherited]
    for listener in listeners:
        if not restricted and not _is_private(listener):
            raise BootError(
                f"cannot listen on systemd: {describe(listener)} can be reached from other machines; "
                "say in 'allow' which may call"
            )
    return listeners


def _is_private(listener: socket.socket) -> bool:
    if listener.family == socket.AF_UNIX:
        return True
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def refuse_newcomers(listener: _socket.socket) -> None:
    """Let nobody join the queue any more, while those who wait in it can still be accepted.

    Closing would reset them, and a reset is a success to the dialplan. A packet filter that drops
    what opens a connection keeps new ones out: they time out, or are refused once all copies of the
    socket are closed, and Asterisk reports AGISTATUS=FAILURE. The other packets of a handshake pass, or
    a caller who believes to be connected would be forgotten. Works for all copies of the socket.

    Newer kernels keep filters for those who administer the network. Then the socket demands packets that may
    pass 255 hops still, where Linux sends them out for 64. The kernel asks that of what opens a connection,
    and later of the connections that were half open at that time: see :func:`welcome`.

    Raises:
        OSError: The kernel does not allow it.
    """
    if listener.family == socket.AF_UNIX:
        for path in _file_of(listener):
            path.unlink(missing_ok=True)
        return
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in _NO_SYN))
    program = struct.pack("HxxxxxxP", len(_NO_SYN), ctypes.addressof(instructions))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    except PermissionError:
        _demand_hops(listener, _MOST_HOPS)


def refuses_newcomers(listener: _socket.socket) -> bool:
    """Whether :func:`refuse_newcomers` was called for any copy of this socket."""
    if listener.family == socket.AF_UNIX:
        return any(not path.exists() for path in _file_of(listener))
    # The kernel takes the length for a number of instructions, and writes eight bytes for each it has.
    filtered = listener.getsockopt(socket.SOL_SOCKET, _SO_GET_FILTER, 8 * len(_NO_SYN))
    return bool(filtered) or listener.getsockopt(socket.IPPROTO_IP, _IP_MINTTL) == _MOST_HOPS


def _file_of(listener: _socket.socket) -> list[Path]:
    """The file of a unix socket, unless it has only a name: systemd may have opened such a one."""
    name = listener.getsockname()
    return [Path(name)] if isinstance(name, str) and name else []


def welcome(descriptor: int) -> None:
    """Hear a connection that was half open when its listener began to refuse newcomers.

    Harmless to any other connection; what was lost meanwhile is sent again by the other side.
    """
    connection = _socket.socket(fileno=descriptor)
    try:
        if connection.family != socket.AF_UNIX:
            _demand_hops(connection, 0)
    except OSError:
        pass  # It is gone: whoever reads hears of it.
    finally:
        connection.detach()


def _demand_hops(connection: _socket.socket, hops: int) -> None:
    """Have the kernel drop packets that may pass fewer hops still; 0 for none."""
    connection.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, hops)
    if connection.family == socket.AF_INET6:
        connection.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, hops)


def is_allowed(peer: str, networks: Collection[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """Whether an address may come: everything that can reach us, unless there is a list.

    Args:
        peer: A numeric address, or ``unix``.
        networks: The list; empty for none.

    Raises:
        ValueError: It is no address.
    """
    if peer == "unix" or not networks:
        return True
    address = ipaddress.ip_address(peer.partition("%")[0])
    # A dual-stack socket shows an IPv4 caller as ::ffff:10.0.0.1.
    mapped = getattr(address, "ipv4_mapped", None) or address
    return any(mapped in network for network in networks)


def describe(listener: socket.socket) -> str:
    """Return the address that a socket is really bound to."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"


def discard(listener: socket.socket, remove_file: bool = True) -> None:
    """Close a socket for good, and remove its file if it has one and it is ours (master only).

    Raises:
        OSError: The file cannot be removed; the socket is closed.
    """
    name = listener.getsockname() if listener.family == socket.AF_UNIX else ""
    listener.close()
    if name and remove_file:
        Path(name).unlink(missing_ok=True)
