"""Peers: other FastAGI servers, run for comparison.

Laws:
    * Each is the leader of a process group of its own and is ended with it.
    * A peer that cannot be had is no reason to measure nothing: whoever asks is told why.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).resolve().parent
_PERL_MODULES: Final = ("Net::Server::PreFork", "Asterisk::AGI")
_PERL_PACKAGES: Final = ("libnet-server-perl", "libasterisk-agi-perl")
_START_S: Final = 15.0
_END_S: Final = 10.0
_LOOK_S: Final = 0.02


class PeerMissing(Exception):
    """A peer is not on this machine, or does not start."""


@contextmanager
def bare_gevent(workers: int) -> Iterator[str]:
    """Run the ceiling, and give its address.

    Raises:
        PeerMissing: It does not start.
    """
    port = _free_port()
    with _serving([sys.executable, str(_HERE / "bare_gevent.py"), str(workers), str(port)], port) as address:
        yield address


@contextmanager
def perl_prefork() -> Iterator[str]:
    """Run the Perl peer, and give its address; on Debian, root installs what it needs.

    Raises:
        PeerMissing: There is no Perl, or it has not the modules, or the peer does not start.
    """
    perl = shutil.which("perl")
    if perl is None:
        raise PeerMissing("no perl")
    if not _has_modules(perl):
        _install_modules()
        if not _has_modules(perl):
            raise PeerMissing(f"no {' or '.join(_PERL_MODULES)}")
    port = _free_port()
    with _serving([perl, str(_HERE / "hello_prefork.pl"), str(port)], port) as address:
        yield address


def perl_version() -> str:
    """Name the versions of Perl and Net::Server; empty if they are not here."""
    program = 'use Net::Server; printf "%vd, Net::Server %s", $^V, $Net::Server::VERSION'
    perl = shutil.which("perl")
    if perl is None:
        return ""
    return subprocess.run([perl, "-e", program], capture_output=True, text=True, check=False).stdout


def _has_modules(perl: str) -> bool:
    uses = [f"-M{module}" for module in _PERL_MODULES]
    return subprocess.run([perl, *uses, "-e", "1"], capture_output=True, check=False).returncode == 0


def _install_modules() -> None:
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
        raise PeerMissing(f"no Perl modules; on Debian: apt install {' '.join(_PERL_PACKAGES)}")
    install = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *_PERL_PACKAGES]
    for command in (install, ["apt-get", "-qq", "update"], install):
        if subprocess.run(command, capture_output=True, check=False).returncode == 0 and command is install:
            return
    raise PeerMissing(f"apt-get could not install {' '.join(_PERL_PACKAGES)}")


@contextmanager
def _serving(command: Sequence[str], port: int) -> Iterator[str]:
    process = subprocess.Popen(
        ("setpriv", "--pdeathsig", "TERM", *command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        _await_accepting(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        _end(process)


def _await_accepting(process: subprocess.Popen[bytes], port: int) -> None:
    deadline_s = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise PeerMissing(f"{process.args!r} does not start") from error
            time.sleep(_LOOK_S)
        else:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a peer, first by asking, then with all of its group."""
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        pass  # Killed below.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # Nobody is left.
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
