"""Listening: every kind of address, and who may call."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final

import pytest

from fastagi_pool.testing import AgiStatus

from .conftest import Pools
from .opencall import OpenCall

#: Opens two sockets as systemd does, and becomes the command behind it. Source: sd_listen_fds(3).
_SYSTEMD: Final = """
import os, socket, sys
for place, listener in enumerate([socket.create_server(("127.0.0.1", 0)) for _ in range(2)]):
    os.dup2(listener.fileno(), 10 + place)
for place in range(2):
    os.dup2(10 + place, 3 + place)
os.closerange(5, 20)
os.environ.update(LISTEN_FDS="2", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def assert_served(address: str) -> None:
    """Check that a call to this address is served."""
    with OpenCall(address, "hello") as call:
        assert call.end() is AgiStatus.SUCCESS
        assert call.said[0].startswith("SET VARIABLE PID ")


def has_ipv6() -> bool:
    """Tell whether this machine has ::1."""
    return Path("/proc/net/if_inet6").exists() and Path("/proc/net/if_inet6").read_text() != ""


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")


def test_ipv4(pools: Pools) -> None:
    """An IPv4 address is listened on, and the log names the port that the kernel chose."""
    pool = pools.start()
    assert pool.address.startswith("127.0.0.1:")
    assert_served(pool.address)


@needs_ipv6
def test_ipv6(pools: Pools) -> None:
    """An IPv6 address is listened on, and only that."""
    pool = pools.start({"listen": ["[::1]:0"]})
    assert pool.address.startswith("[::1]:")
    assert_served(pool.address)
    with pytest.raises(ConnectionRefusedError):
        OpenCall(pool.address.replace("[::1]", "127.0.0.1"))


@needs_ipv6
def test_everywhere(pools: Pools) -> None:
    """A star listens on IPv4 and IPv6, and the list of those who may call knows both."""
    pool = pools.start({"listen": ["*:0"], "allow": ["127.0.0.0/8", "::1"]})
    port = pool.address.rpartition(":")[2]
    for host in ("127.0.0.1", "[::1]"):
        assert_served(f"{host}:{port}")
    assert {line["peer"] for line in pool.await_access(2)} == {"::ffff:127.0.0.1", "::1"}


def test_unix_socket(pools: Pools) -> None:
    """A Unix socket is for its owner and group, and goes with the pool."""
    pool = pools.make()
    path = pool.folder / "agi.sock"
    pool.configure(listen=[f"unix:{path}"])
    pool.start()
    assert pool.address == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert_served(pool.address)
    assert [line["peer"] for line in pool.await_access(1)] == ["unix"]
    assert pool.stop() == 0
    assert not path.exists()


def test_unix_socket_of_a_pool_that_lives(pools: Pools) -> None:
    """A Unix socket on which somebody listens is not taken away."""
    first = pools.make()
    address = f"unix:{first.folder}/agi.sock"
    first.configure(listen=[address])
    first.start()
    second = pools.make({"listen": [address]})
    second.launch()
    assert second.wait() == 4
    assert f"cannot listen on {address}: the address is in use" in second.logged()
    assert_served(address)


def test_several_addresses(pools: Pools) -> None:
    """Calls come in by every address of the list."""
    pool = pools.make()
    pool.configure(listen=["127.0.0.1:0", "127.0.0.2:0", f"unix:{pool.folder}/agi.sock"])
    pool.start()
    (line,) = pool.await_log(r"listening on (.*)$")
    addresses = line[1].split(", ")
    assert len(addresses) == 3
    for address in addresses:
        assert_served(address)


def test_inherited_sockets(pools: Pools) -> None:
    """Sockets that systemd opened are served; it keeps them open when the pool has ended."""
    pool = pools.make({"listen": ["systemd"]})
    pool.launch(sys.executable, "-c", _SYSTEMD)
    (line,) = pool.await_log(r"listening on (.*)$")
    first, second = line[1].split(", ")
    assert_served(first)
    assert_served(second)
    assert pool.stop() == 0


def test_no_inherited_socket(pools: Pools) -> None:
    """To be told to use systemd's sockets without any is said in one line; another's are not taken."""
    pool = pools.make({"listen": ["systemd"]})
    pool.launch(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
    assert pool.wait() == 4
    (line,) = pool.output_path.read_text().splitlines()
    assert line == "cannot listen on systemd: no socket was handed over (LISTEN_FDS is not set)"


def test_stranger_is_denied(pools: Pools) -> None:
    """A call from an address that is not allowed is a failure with the outcome denied."""
    pool = pools.start({"allow": ["10.0.0.0/8"]})
    assert pool.call("hello").status is AgiStatus.FAILURE
    (line,) = pool.await_access(1)
    assert (line["outcome"], line["peer"], line["commands"]) == ("denied", "127.0.0.1", "0")
