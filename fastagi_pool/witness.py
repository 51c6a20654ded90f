"""Witness: the process beside each worker that tells the truth if the worker dies.

Laws:
    * It shares the worker's table of descriptors: every connection that the worker accepts is open in the
      witness too, at no cost per call. So it opens, closes and writes nothing while the worker lives.
    * When the worker is dead, whatever ended it, first all is closed that is no call's: a database undoes
      what was not committed, and locks on files are gone.
    * Connections whose call had not begun go to another worker. To all others the dialplan is told
      ``FAGI_STATUS=CRASH`` and a failure, because a connection that is just closed is a success to it.
    * It ends: at once where no call was left behind, and in any case soon after.
    * No signal but SIGKILL ends it before the worker, and it has no hub, no greenlet and no thread.

How it works: ``clone(CLONE_FILES)`` makes it a copy of the worker that sleeps until the worker is gone. What
each descriptor is stands in :mod:`fastagi_pool.custody`, and what the calls were doing on the call board.

Source: clone(2); the system call is made directly, as the C library's ``fork()`` never shares descriptors.
"""

from __future__ import annotations

import _socket
import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final, NoReturn

from gevent.monkey import get_original
from setproctitle import setproctitle

from fastagi_pool import handover
from fastagi_pool.callboard import CallFacts, read_calls
from fastagi_pool.custody import WITNESS_TITLE, Custody, Held, most_descriptors
from fastagi_pool.endings import CRASH, FAILURE_LINE, OnError, last_words
from fastagi_pool.logs import rename

#: Source: CLONE_FILES in linux/sched.h.
_CLONE_FILES: Final = 0x400
#: Number of the system call. Source: asm/unistd_64.h, asm-generic/unistd.h.
_SYS_CLONE: Final = {"x86_64": 56, "aarch64": 220}
#: What was given is watched for so long; then the master keeps it for workers to come.
TAKEN_S: Final = 3.0
_LOOK_MS: Final = 20
#: FAGI_ERROR of a call whose worker has died.
ERROR: Final = "the worker died"
_FOLDER: Final = Path("/proc/self/fd")
#: The table of descriptors has room for so many from the beginning, at 8 bytes each; beyond it grows.
_MOST_EXPECTED: Final = 16384
#: Standard error, which may be the log.
_LAST_STANDARD: Final = 2
#: What a fault of the process's own sends, and what nobody can ignore.
_NOT_IGNORED: Final = frozenset(
    {
        signal.SIGKILL,
        signal.SIGSTOP,
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGABRT,
        signal.SIGTRAP,
        signal.SIGSYS,
        signal.SIGCHLD,
    }
)


@dataclass(frozen=True, slots=True)
class Ward:
    """The worker that is watched.

    Attributes:
        slot: Its slot.
        generation: Its generation.
        pid: Its process.
        gone_fd: A descriptor that can be read when it is dead: ``os.pidfd_open``, opened by itself.
        calls_file: Its call board.
        listeners: Descriptors of the listening sockets on which it accepts calls.
        kept: Descriptors that are needed after its death: the log's.
    """

    slot: int
    generation: int
    pid: int
    gone_fd: int
    calls_file: Path
    listeners: Collection[int]
    kept: Collection[int]


def post(life: Callable[[], int]) -> int:
    """Make a process that shares our descriptors, and live a life in it.

    Nothing that Python or a library does at a fork is done in the child: it would close what the parent needs
    (gevent's hub), and has nothing to mend, as there is no other thread whose locks could be held.

    Args:
        life: What the child does; it returns the exit code.

    Returns:
        The child's process; it is ours to be waited for.

    Raises:
        RuntimeError: There are other threads, or this is no processor whose Linux is known here.
        OSError: There is no memory for another process.
    """
    number = _SYS_CLONE.get(platform.machine())
    if number is None:
        raise RuntimeError(f"the system call clone is not known on {platform.machine()}: say witness: false")
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError("a process with threads cannot be copied: another thread may hold a lock")
    _widen_the_table()
    # PyDLL: with the interpreter's lock in our hands the child finds it in its own.
    library = ctypes.PyDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    # A signal that came before the child ignores it would wake the parent by the descriptors they share.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    arguments = (number, _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0)
    pid = int(library.syscall(*map(ctypes.c_long, arguments)))
    if pid == 0:
        _live(life, mask)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return pid


def _widen_the_table() -> None:
    """Have the kernel make room for many descriptors now.

    To enlarge a table that is shared it waits until no processor can be reading it: the worker would stand
    still for some 10 ms whenever it has twice as many connections as ever before.

    Source: expand_fdtable() in fs/file.c.
    """
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.close(fcntl.fcntl(nothing, fcntl.F_DUPFD_CLOEXEC, min(most_descriptors(), _MOST_EXPECTED) - 1))
    except OSError:
        pass  # The last number is taken, so there is room already.
    finally:
        os.close(nothing)


def _live(life: Callable[[], int], mask: Collection[int]) -> NoReturn:
    code = 1
    try:
        # Not gevent's, which would start a hub over SIGCHLD.
        set_handler = get_original("signal", "signal")
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - _NOT_IGNORED:
            set_handler(number, signal.SIG_IGN)
        set_handler(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = life()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def crash_words(facts: CallFacts | None, on_errors: Mapping[str, OnError], otherwise: OnError) -> bytes:
    """Build what the dialplan of a call is told whose worker has died.

    Args:
        facts: What is known of the call; None for nothing.
        on_errors: By the names of routes, what their dialplans do then.
        otherwise: What the dialplan of a call without a route does.
    """
    if facts is None:
        return last_words(CRASH, ERROR, "", otherwise, channel_lives=True)
    on_error = on_errors.get(facts.route, otherwise)
    return last_words(CRASH, ERROR, facts.ref, on_error, channel_lives=not facts.hung_up)


class Witness:
    """Watches one worker."""

    def __init__(
        self,
        ward: Ward,
        custody: Custody,
        giving: int,
        words: Callable[[CallFacts | None], bytes],
        taking: int = -1,
        lifeline: int = -1,
    ) -> None:
        """Learn what there is to know, before the worker may close or replace any of it.

        Args:
            ward: The worker.
            custody: What its descriptors are.
            giving: The giving end of the handover.
            words: Builds what the dialplan of a call is told; None if nothing is known of the call.
            taking: The taking end, to take back what nobody else will; -1 to leave it to the master.
            lifeline: Reading from it ends when the master does; -1 for none.
        """
        self._taking = taking
        self._lifeline = lifeline
        self._ward = ward
        self._custody = custody
        self._giving = giving
        self._words = words
        self._board = ward.calls_file.parent.resolve() / ward.calls_file.name
        names = (_local_name(descriptor) for descriptor in ward.listeners)
        self._doors = {name for name in names if name is not None}
        # Not gevent's, which would start a hub.
        self._poll: Callable[[], Any] = get_original("select", "poll")

    def run(self) -> int:
        """Sleep until the worker is dead, then speak for it; return the exit code."""
        ward = self._ward
        log = rename(f"witness={ward.slot} gen={ward.generation} pid={os.getpid()}")
        setproctitle(f"{WITNESS_TITLE} {ward.slot} (gen {ward.generation})")
        poller = self._poll()
        poller.register(ward.gone_fd, select.POLLIN)
        poller.poll()
        held, facts = self._take_stock()
        if not held:
            return 0
        unbegun = [each.descriptor for each in held if not each.begun]
        ungiven = handover.give(self._giving, unbegun)
        given = set(unbegun).difference(ungiven)
        for descriptor in given:
            os.close(descriptor)
        words = {
            each.descriptor: self._words_for(facts.get(each.row) if each.row is not None else None)
            for each in held
            if each.descriptor not in given
        }
        told, untold = handover.tell(words, handover.TELLING_S, self._poll)
        if given:
            back = self._see_them_taken()
            told, untold = told + back.told, untold + back.untold
        log.warning(
            "witness of worker=%d: told %d calls %s, gave %d to another worker, %d could not be told",
            *(ward.slot, told, CRASH, len(given), untold),
        )
        return 0

    def _see_them_taken(self) -> handover.Told:
        """Watch until other workers have what was given; if the master dies meanwhile, nobody takes it."""
        deadline_s = monotonic() + TAKEN_S
        poller = self._poll()
        if self._lifeline >= 0:
            poller.register(self._lifeline, select.POLLIN)
        while handover.under_way(self._giving) and monotonic() < deadline_s:
            if poller.poll(_LOOK_MS):
                os.close(self._giving)
                return handover.refuse(self._taking, self._words_for(None), handover.TELLING_S, self._poll)
        return handover.Told(0, 0)

    def _words_for(self, facts: CallFacts | None) -> bytes:
        try:
            return self._words(facts)
        except Exception:
            # Whatever stands on the board of a process that went astray: the failure itself is told.
            return FAILURE_LINE

    def _take_stock(self) -> tuple[list[Held], dict[int, CallFacts]]:
        """Find what was left behind, and close all else; nobody but us has the table now."""
        # It makes room for what lists the others, should there be none.
        os.close(self._ward.gone_fd)
        descriptors = _open_descriptors()
        held = [each for each in self._custody.held(descriptors) if _local_name(each.descriptor) is not None]
        known = {each.descriptor for each in held}
        # Accepted at the moment of death, before that could be noted.
        strays = [
            Held(descriptor, False, None)
            for descriptor in descriptors
            if descriptor not in known and self._came_through_a_door(descriptor)
        ]
        known.update(stray.descriptor for stray in strays)
        facts = self._read_board(descriptors) if known else {}
        for descriptor in descriptors:
            if descriptor > _LAST_STANDARD and descriptor not in known and not self._is_needed(descriptor):
                with suppress(OSError):
                    os.close(descriptor)
        return held + strays, facts

    def _is_needed(self, descriptor: int) -> bool:
        ours = (self._giving, self._taking, self._lifeline)
        return descriptor in ours or descriptor in self._ward.kept

    def _came_through_a_door(self, descriptor: int) -> bool:
        name = _local_name(descriptor)
        return name is not None and name in self._doors and not _listens(descriptor)

    def _read_board(self, descriptors: list[int]) -> dict[int, CallFacts]:
        """Read what the calls were doing, by the numbers of their rows.

        By the worker's own descriptor: a new worker may have put its board in the place of the file.
        """
        names = (str(self._board), f"{self._board} (deleted)")
        for descriptor in descriptors:
            # Whatever cannot be read must not keep us from telling what we know.
            with suppress(Exception):
                path = _FOLDER / str(descriptor)
                if str(path.readlink()) in names:
                    calls = read_calls(path, self._ward.slot)
                    return {each.number: each for each in calls if each.pid == self._ward.pid}
        return {}


def _open_descriptors() -> list[int]:
    """List our descriptors; where the machine has no file left to list them with, all that there can be."""
    try:
        return [int(entry.name) for entry in _FOLDER.iterdir()]
    except OSError:
        return list(range(most_descriptors()))


def _local_name(descriptor: int) -> tuple[int, object] | None:
    """Return at which of our addresses a stream socket is, as family and port or path; None if it is none."""
    try:
        found = _socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        if found.type != socket.SOCK_STREAM:
            return None
        name = found.getsockname()
        return found.family, name if found.family == socket.AF_UNIX else name[1]
    except OSError:
        return None
    finally:
        found.detach()


def _listens(descriptor: int) -> bool:
    found = _socket.socket(fileno=descriptor)
    try:
        return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    finally:
        found.detach()
