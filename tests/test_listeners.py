"""fastagi_pool.listeners: real sockets on the loopback and in a temporary folder."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from children import in_child

from fastagi_pool.errors import BootError
from fastagi_pool.listeners import (
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    KEEPALIVE_PROBES,
    Address,
    bind,
    describe,
    discard,
    is_allowed,
    refuse_newcomers,
    refuses_newcomers,
    welcome,
)

Bind = Callable[[Address], socket.socket]
WAIT_S = 5.0
_NOBODY = 65534
#: Source: linux/in.h, linux/in6.h.
_IP_MINTTL = 21
_IPV6_MINHOPS = 73


def tcp(host: str, port: int = 0) -> Address:
    """An address to listen on by TCP."""
    return Address("tcp", host, port, "", f"{host}:{port}")


def unix(path: Path) -> Address:
    """An address in the file system."""
    return Address("unix", "", 0, str(path), f"unix:{path}")


SYSTEMD = Address("systemd", "", 0, "", "systemd")


@pytest.fixture
def listen() -> Iterator[Bind]:
    """Give a function that binds one address; all are closed at the end."""
    opened: list[socket.socket] = []

    def listen(address: Address) -> socket.socket:
        [listener] = bind(address, 16, [], False)
        listener.settimeout(WAIT_S)
        opened.append(listener)
        return listener

    yield listen
    for listener in opened:
        listener.close()


@pytest.fixture
def stranger() -> Iterator[socket.socket]:
    """A socket that somebody else listens on, on the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def ipv6() -> None:
    """Skip where the loopback has no IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 on this machine")


def greets(listener: socket.socket, host: str) -> bool:
    """Whether a connection to the listener's port at this address is accepted."""
    try:
        with socket.create_connection((host, listener.getsockname()[1]), WAIT_S):
            listener.accept()[0].close()
    except ConnectionRefusedError:
        return False
    return True


# ---- TCP


def test_ipv4(listen: Bind) -> None:
    """An IPv4 address is listened on, and described with the port that the kernel chose."""
    listener = listen(tcp("127.0.0.1"))
    assert greets(listener, "127.0.0.1")
    assert describe(listener) == f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.usefixtures("ipv6")
def test_ipv6_is_itself_alone(listen: Bind) -> None:
    """An IPv6 address is listened on, and takes no IPv4 port beside it."""
    listener = listen(tcp("::1"))
    assert greets(listener, "::1")
    assert not greets(listener, "127.0.0.1")
    assert describe(listener) == f"[::1]:{listener.getsockname()[1]}"


@pytest.mark.usefixtures("ipv6")
def test_everywhere_is_both(listen: Bind) -> None:
    """``*`` is reached by IPv4 and by IPv6."""
    listener = listen(tcp("*"))
    assert greets(listener, "127.0.0.1")
    assert greets(listener, "::1")


def test_two_addresses_on_one_port(listen: Bind) -> None:
    """The same port of two addresses is two listeners."""
    first = listen(tcp("127.0.0.1"))
    second = listen(tcp("127.0.0.2", first.getsockname()[1]))
    assert greets(second, "127.0.0.2")


@pytest.mark.parametrize(
    ("level", "option", "expected"),
    [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ],
    ids=["keep-alive", "idle", "interval", "probes", "no delay"],
)
def test_accepted_connections_inherit(listen: Bind, level: int, option: int, expected: int) -> None:
    """What is set once on the listener holds for every connection accepted from it."""
    listener = listen(tcp("127.0.0.1"))
    with socket.create_connection(listener.getsockname(), WAIT_S):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(level, option) == expected


def test_a_port_in_use_is_explained(stranger: socket.socket) -> None:
    """A port that somebody has is named, with what to do."""
    port = stranger.getsockname()[1]
    with pytest.raises(BootError) as caught:
        bind(tcp("127.0.0.1", port), 16, [], False)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: the address is in use by another process; "
        "stop that, or change 'listen'"
    )


def test_a_foreign_address_is_explained() -> None:
    """An address that this machine does not have is named, with what to do."""
    with pytest.raises(BootError) as caught:
        bind(tcp("192.0.2.1"), 16, [], False)
    assert str(caught.value) == (
        "cannot listen on 192.0.2.1:0: this machine does not have the address; change 'listen'"
    )


def test_a_port_just_left_can_be_taken_again(listen: Bind) -> None:
    """A restart does not wait for the connections of the last run to be forgotten."""
    listener = listen(tcp("127.0.0.1"))
    address = listener.getsockname()
    with socket.create_connection(address, WAIT_S) as caller:
        connection, _ = listener.accept()
        connection.close()
        caller.recv(1)
    listener.close()
    assert listen(tcp("127.0.0.1", address[1])).getsockname() == address


# ---- unix


def test_unix(listen: Bind, tmp_path: Path) -> None:
    """A path is listened on, open to owner and group, and described as it is."""
    path = tmp_path / "agi.sock"
    listener = listen(unix(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert describe(listener) == f"unix:{path}"
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
        listener.accept()[0].close()


def test_a_stale_socket_file_is_replaced(listen: Bind, tmp_path: Path) -> None:
    """The file that a killed server left does not stop the next one."""
    path = tmp_path / "agi.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = listen(unix(path))
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
        listener.accept()[0].close()


def test_a_live_socket_file_is_left_alone(listen: Bind, tmp_path: Path) -> None:
    """The file of a server that runs is neither removed nor taken."""
    path = tmp_path / "agi.sock"
    first = listen(unix(path))
    with pytest.raises(BootError, match="in use by another process"):
        bind(unix(path), 16, [], False)
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
        first.accept()[0].close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A path that leads to somebody's file is refused, and the file keeps its content."""
    path = tmp_path / "precious"
    path.write_text("content")
    with pytest.raises(BootError, match="cannot listen on unix:"):
        bind(unix(path), 16, [], False)
    assert path.read_text() == "content"


def test_a_path_without_folder_is_explained(tmp_path: Path) -> None:
    """A folder that is missing is an error that names the address."""
    with pytest.raises(BootError, match=r"cannot listen on unix:.*No such file"):
        bind(unix(tmp_path / "nowhere" / "agi.sock"), 16, [], False)


# ---- systemd


def test_inherited_sockets_are_used(stranger: socket.socket, tmp_path: Path) -> None:
    """All sockets that systemd opened are listened on, by descriptors of our own."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "agi.sock"))
        other.listen()
        inherited = [stranger.fileno(), other.fileno()]
        adopted = bind(SYSTEMD, 16, inherited, False)
        assert [describe(each) for each in adopted] == [describe(stranger), describe(other)]
        assert not set(inherited) & {each.fileno() for each in adopted}
        adopted[0].settimeout(WAIT_S)
        assert greets(adopted[0], "127.0.0.1")
        for each in adopted:
            each.close()
    os.fstat(stranger.fileno())


def test_no_inherited_socket_is_explained() -> None:
    """Where systemd handed nothing over, the message names the variable."""
    with pytest.raises(BootError, match="LISTEN_FDS"):
        bind(SYSTEMD, 16, [], False)


def test_an_open_inherited_socket_needs_a_list() -> None:
    """A socket that other machines reach is adopted only where a list says who may call."""
    with socket.socket() as everywhere:
        everywhere.bind(("0.0.0.0", 0))
        with pytest.raises(BootError, match="can be reached from other machines; say in 'allow'"):
            bind(SYSTEMD, 16, [everywhere.fileno()], False)
        [adopted] = bind(SYSTEMD, 16, [everywhere.fileno()], True)
        adopted.close()


# ---- the end


def test_discard_removes_the_file(listen: Bind, tmp_path: Path) -> None:
    """A unix socket that is not listened on any more leaves no file, and no error if it is gone."""
    for gone in (False, True):
        path = tmp_path / "agi.sock"
        listener = listen(unix(path))
        if gone:
            path.unlink()
        discard(listener)
        assert listener.fileno() == -1
        assert not path.exists()


def test_discard_frees_the_port(listen: Bind) -> None:
    """A port that is not listened on any more refuses."""
    listener = listen(tcp("127.0.0.1"))
    address = listener.getsockname()
    discard(listener)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, WAIT_S)


def test_newcomers_are_refused_and_those_who_wait_are_not(listen: Bind) -> None:
    """Who has connected is still accepted and heard; who comes later gets no connection."""
    listener = listen(tcp("127.0.0.1"))
    with socket.create_connection(listener.getsockname(), WAIT_S) as waiting:
        refuse_newcomers(listener)
        with socket.socket() as newcomer:
            newcomer.setblocking(False)
            assert newcomer.connect_ex(listener.getsockname()) == errno.EINPROGRESS
            connection, _ = listener.accept()
            with connection:
                waiting.sendall(b"agi_network: yes\n")
                assert connection.recv(100) == b"agi_network: yes\n"
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()


@pytest.mark.parametrize(("host", "callers"), [("127.0.0.1", ["127.0.0.1"]), ("*", ["127.0.0.1", "::1"])])
def test_newcomers_are_refused_without_rights(host: str, callers: list[str]) -> None:
    """Who may not filter packets lets nobody new in either, and who has connected is heard as before."""

    def live() -> object:
        if os.geteuid() == 0:
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        (listener,) = bind(tcp(host), 10, [], False)
        port = listener.getsockname()[1]
        waiting = socket.create_connection((callers[0], port), WAIT_S)
        assert not refuses_newcomers(listener)
        refuse_newcomers(listener)
        assert refuses_newcomers(listener)
        for caller in callers:
            family = socket.AF_INET6 if ":" in caller else socket.AF_INET
            with socket.socket(family) as newcomer:
                newcomer.setblocking(False)
                assert newcomer.connect_ex((caller, port)) == errno.EINPROGRESS
        connection, _ = listener.accept()
        waiting.sendall(b"agi_network: yes\n")
        assert connection.recv(100) == b"agi_network: yes\n"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        return True

    assert in_child(live)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_a_half_open_connection_is_welcomed(family: socket.AddressFamily) -> None:
    """What a listener that refuses newcomers demands is taken off a connection that it has made."""
    level, option = (
        (socket.IPPROTO_IP, _IP_MINTTL) if family == socket.AF_INET else (socket.IPPROTO_IPV6, _IPV6_MINHOPS)
    )
    with socket.create_server(("127.0.0.1" if family == socket.AF_INET else "::1", 0), family=family) as door:
        caller = socket.create_connection(door.getsockname()[:2], WAIT_S)
        connection, _ = door.accept()
    with caller, connection:
        connection.setsockopt(level, option, 255)
        caller.sendall(b"agi_network: yes\n")
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(100)
        connection.settimeout(WAIT_S)
        welcome(connection.fileno())
        assert connection.recv(100) == b"agi_network: yes\n"


def test_newcomers_to_a_path_are_refused(listen: Bind, tmp_path: Path) -> None:
    """A unix socket loses its file, and still accepts who waits."""
    path = tmp_path / "agi.sock"
    listener = listen(unix(path))
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
        refuse_newcomers(listener)
        with socket.socket(socket.AF_UNIX) as newcomer, pytest.raises(FileNotFoundError):
            newcomer.connect(str(path))
        listener.accept()[0].close()


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.1.2.3", False),
        ("::ffff:11.1.2.3", False),
        ("fd00::1", True),
        ("fd00::1%eth0", True),
        ("fe80::1%eth0", False),
        ("::1", False),
        ("unix", True),
    ],
)
def test_allowed_networks(peer: str, allowed: bool) -> None:
    """A list of networks holds for IPv4, IPv6 and IPv4 in IPv6; a Unix socket has its own rights."""
    assert is_allowed(peer, [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]) is allowed


@pytest.mark.parametrize("peer", ["10.1.2.3", "::1", "unix"])
def test_everybody_is_allowed_without_a_list(peer: str) -> None:
    """Without a list everybody may call who can connect."""
    assert is_allowed(peer, [])
