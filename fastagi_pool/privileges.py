"""Privileges: a server that was started as root becomes somebody who may do less.

Laws:
    * There is no way back, and that is tried out: a process that could become root again does not serve.
    * What root hands over is named by an open descriptor and never by a path that somebody else may have
      changed meanwhile; no symbolic link is followed, save those of the folders above, resolved once.
    * Folders that belong to the system as a whole are never handed over, and nobody's files but root's.

A setuid clears PR_SET_PDEATHSIG, which then must be set anew. Source: prctl(2).
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import signal
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastagi_pool.errors import BootError

#: Source: linux/prctl.h.
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
#: Besides all that lie directly below the root.
_SYSTEM_FOLDERS: Final = frozenset(
    Path(path)
    for path in (
        *(
            "/var/log",
            "/var/lib",
            "/var/run",
            "/var/lock",
            "/var/spool",
            "/var/cache",
            "/var/tmp",
            "/var/mail",
        ),
        *(
            "/usr/local",
            "/usr/bin",
            "/usr/sbin",
            "/usr/lib",
            "/usr/share",
            "/usr/local/bin",
            "/usr/local/lib",
        ),
        *("/run/lock", "/run/user", "/run/systemd", "/dev/shm", "/etc/init.d", "/etc/default"),
        *("/var/log/asterisk", "/var/lib/asterisk", "/etc/asterisk", "/var/run/asterisk", "/run/asterisk"),
    )
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a process acts as.

    Attributes:
        uid: The user.
        gid: The group.
        groups: Further groups.
        name: The user's name, for messages.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str


def find(user: str, group: str = "") -> Identity:
    """Look up a user.

    Args:
        user: A name.
        group: A name; empty for the user's own group.

    Raises:
        BootError: This machine has no such user or group.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise BootError(
            f"user: there is no user {user!r} on this machine (useradd --system {user})"
        ) from None
    try:
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except KeyError:
        raise BootError(
            f"group: there is no group {group!r} on this machine (groupadd --system {group})"
        ) from None
    return Identity(entry.pw_uid, gid, tuple(os.getgrouplist(user, gid)), user)


def become(identity: Identity) -> None:
    """Act as somebody else from now on, for ever; nothing happens if we do already.

    Raises:
        BootError: We are neither root nor this user; or the way back to root would stay open.
    """
    if os.getresuid() == (identity.uid,) * 3 and identity.uid != 0:
        return
    if os.geteuid() != 0:
        raise BootError(
            f"user: only root can become {identity.name!r}; start as root or as {identity.name!r}"
        )
    try:
        os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    except OSError as error:
        raise BootError(f"user: cannot become {identity.name!r}: {error.strerror}") from error
    if identity.uid != 0:
        _make_sure(identity)
        # Else nobody but root could look into /proc/PID, or take a core or a stack.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _make_sure(identity: Identity) -> None:
    """Try to become root again: that must fail."""
    try:
        os.setresuid(-1, 0, -1)
    except PermissionError:
        if os.getresuid() == (identity.uid,) * 3 and os.getresgid() == (identity.gid,) * 3:
            return
    raise BootError(
        f"user: became {identity.name!r}, but could become root again; nothing is served like this"
    )


def settle(umask: str, folder: str) -> None:
    """Take the umask and the folder to work in.

    Args:
        umask: An octal number; empty to keep the one we have.
        folder: An absolute path; empty to stay.

    Raises:
        BootError: The folder cannot be entered.
    """
    if umask:
        os.umask(int(umask, 8))
    if folder:
        try:
            os.chdir(folder)
        except OSError as error:
            raise BootError(f"chdir: cannot enter {folder}: {error.strerror}") from error


def is_of_the_system(folder: Path) -> bool:
    """Whether a folder belongs to the system as a whole and not to one service."""
    resolved = Path(os.path.realpath(folder))
    return len(resolved.parts) <= 2 or resolved in _SYSTEM_FOLDERS


def own_folder(folder: Path, identity: Identity, mode: int = 0o755, known: Collection[str] = ()) -> None:
    """See to it that somebody owns a folder: make it, or hand it over if it is root's and nobody needs it.

    Args:
        folder: An absolute path. Folders above it that are missing are made, and stay root's.
        identity: Who shall own it.
        mode: Its rights, if it is made or handed over.
        known: Names of what may be in it when it is handed over: what an earlier run as root has left.

    Raises:
        BootError: It is the system's, somebody else's, a link, or holds what we do not know.
        OSError: The machine refuses.
    """
    if is_of_the_system(folder):
        raise BootError(f"{folder} belongs to the system and stays as it is; use a folder below it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _opened_folder(folder.parent) as parent:
        try:
            os.mkdir(folder.name, 0o700, dir_fd=parent)
        except FileExistsError:
            pass
        descriptor = _open_entry(folder, parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        owner = os.fstat(descriptor).st_uid
        if owner == identity.uid:
            return
        _refuse_foreign(folder, owner, identity)
        with os.scandir(descriptor) as entries:
            foreign = sorted({entry.name for entry in entries} - set(known))
        if foreign:
            raise BootError(
                f"{folder} is root's and holds {foreign[0]!r}: not handed over to {identity.name!r}; "
                f"use a folder of its own, or chown it"
            )
        os.fchown(descriptor, identity.uid, identity.gid)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def own_file(file: Path, identity: Identity, mode: int = 0o640) -> None:
    """See to it that somebody owns a file: make it empty, or hand it over if it is root's.

    Args:
        file: An absolute path; its folder must exist.
        identity: Who shall own it.
        mode: Its rights, if it is made.

    Raises:
        BootError: It is somebody else's, a link, or no plain file.
        OSError: The machine refuses.
    """
    with _opened_folder(file.parent) as parent:
        descriptor = _open_entry(file, parent, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, mode)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            raise BootError(f"{file} is no plain file with one name: not handed over to {identity.name!r}")
        if facts.st_uid != identity.uid:
            _refuse_foreign(file, facts.st_uid, identity)
            os.fchown(descriptor, identity.uid, identity.gid)
    finally:
        os.close(descriptor)


def _refuse_foreign(path: Path, owner: int, identity: Identity) -> None:
    if owner != 0:
        raise BootError(f"{path} belongs to user {owner}, not to {identity.name!r}; chown it, or use another")


@contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    """Open a folder step by step, so that no link that appears meanwhile leads elsewhere."""
    descriptor = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in Path(os.path.realpath(folder)).parts[1:]:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _open_entry(path: Path, parent: int, flags: int, mode: int = 0) -> int:
    try:
        return os.open(path.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=parent)
    except OSError as error:
        raise BootError(f"cannot hand over {path}: {error.strerror} (links are not followed)") from error


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends; to be said anew after :func:`become`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
