"""The first process of a machine that a test plays: makes the machine, and ends it.

Laws:
    * It is started in namespaces of its own: what it mounts nobody else sees, and when it ends, everything on
      the machine ends.
    * The machine's files are in memory: nothing of them is left, and a disk that is busy delays nobody.
    * It ends when its standard input does: so a test that is killed leaves no machine behind.
    * It takes over whoever lost his parent, as any first process has to.

Use: ``unshare ... python first_process.py IMAGE FOLDER``; it prints a line when the machine is ready. The
image is the tar file of its files, the folder where they are mounted.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
#: How long an orphan that has ended may wait to be taken over.
_LOOK_S: Final = 0.1
#: Source: ioctl numbers and flags in linux/sockios.h and linux/if.h.
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


def main(image: Path, root: Path) -> None:
    """Make the machine of an image, and keep it until standard input ends."""
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root)
    _run("tar", "--extract", "--numeric-owner", f"--file={image}", f"--directory={root}")
    # It has no network; what this names would only be waited for.
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    _mount("-t", "proc", "proc", root / "proc")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "dev")
    for name in _DEVICES:
        (root / "dev" / name).touch()
        _mount("--bind", Path("/dev") / name, root / "dev" / name)
    (root / "dev" / "shm").mkdir()
    (root / "dev" / "fd").symlink_to("/proc/self/fd")
    socket.sethostname("machine")
    _raise_loopback()
    os.chroot(root)
    os.chdir("/")
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], _LOOK_S)[0]:
        _reap()


def _mount(*words: str | Path) -> None:
    _run("mount", *words)


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass  # There is none.


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
