"""Keeping: the observer's process, kept alive by the master.

Laws:
    * Nobody needs the observer: whatever becomes of it, calls go on. One that dies is followed by another,
      but by no more than one in a while.
    * The master tells it nothing and hears nothing of it: it reads shared memory.
"""

from __future__ import annotations

import logging
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fastagi_pool.forking import fork_apart
from fastagi_pool.logs import LOGGER_NAME

#: Between the starts of two observers.
PAUSE_S: Final = 2.0
#: An observer that is to be followed by another may still tell what led to it.
LAST_WORDS_S: Final = 2.0
#: One that was told to end may have somebody who follows a reload, for ten minutes; later it hangs.
KILL_S: Final = 660.0


@dataclass(frozen=True, slots=True)
class ObserverOrder:
    """What an observer has to know.

    Attributes:
        runtime_dir: Folder of what it reads, and of its control socket.
        master_pid: Whom it sends signals.
        host: Where it shows the state over HTTP; empty for nowhere.
        port: Its port; 0 lets the system choose.
        allow: Networks that may look; empty for all that can reach it.
        log_file: Path, ``syslog``, or ``-`` for standard error.
        log_level: As in the configuration.
        log_format: ``text`` or ``json``.
        log_facility: Of what goes to syslog.
    """

    runtime_dir: str
    master_pid: int
    host: str = ""
    port: int = 0
    allow: tuple[str, ...] = ()
    log_file: str = "-"
    log_level: str = "info"
    log_format: str = "text"
    log_facility: str = "daemon"


#: The life of an observer: given its order and the master's lifeline; returns its exit code.
ObserverMain = Callable[[ObserverOrder, int], int]


class ObserverKeeper:
    """Starts the observer, and another one when it has died or its order changes.

    Attributes:
        pid: Its process; 0 if there is none.
    """

    def __init__(self, live: ObserverMain, forget: Callable[[], None], lifeline_fd: int) -> None:
        """Prepare; nothing is started yet.

        Args:
            live: The life of an observer.
            forget: Lets go, in the new child, of what is the master's alone.
            lifeline_fd: Reading from it ends when the master does.
        """
        self._live = live
        self._forget = forget
        self._lifeline_fd = lifeline_fd
        self._order: ObserverOrder | None = None
        self._outdated = False
        self._not_before_s = 0.0
        self._ends_s = 0.0
        self._told_to_end = False
        self.pid = 0

    def adopt(self, pid: int, order: ObserverOrder) -> None:
        """Go on with an observer that a former program of this process started, until one is wanted again.

        Args:
            pid: Its process; 0 for none.
            order: What one gets that has to follow it before that.
        """
        self.pid, self._order, self._outdated = pid, order, True

    def want(self, order: ObserverOrder, now_s: float) -> None:
        """Have an observer with this order from now on."""
        if order != self._order or self._outdated:
            self._order, self._outdated = order, False
            self._ends_s = now_s + LAST_WORDS_S

    def look_after(self, now_s: float) -> None:
        """Start one if there is none; end one whose order is not the wanted one."""
        if self.pid and self._ends_s and now_s >= self._ends_s:
            self._signal(signal.SIGKILL if self._told_to_end else signal.SIGTERM)
            self._told_to_end, self._ends_s = True, now_s + KILL_S
        if self._order is None or self.pid or now_s < self._not_before_s:
            return
        self._told_to_end, self._ends_s = False, 0.0
        self._not_before_s = now_s + PAUSE_S
        try:
            # TERM must end it from the first moment, and the master's handlers mean nothing to it.
            pid = fork_apart(signal.SIGTERM)
        except OSError as error:
            logging.getLogger(LOGGER_NAME).error("cannot fork the observer: %s", error)
            return
        if pid == 0:
            self._be(self._order)
        self.pid, self._outdated = pid, False

    def _be(self, order: ObserverOrder) -> None:
        code = 1
        try:
            self._forget()
            code = self._live(order, self._lifeline_fd)
        except BaseException:
            # The log may not be open yet; standard error is what is left.
            traceback.print_exc()
        finally:
            os._exit(code)

    def has_ended(self, pid: int, how: str, now_s: float) -> bool:
        """Hear that a process has ended; return whether it was the observer."""
        if pid != self.pid:
            return False
        self.pid = 0
        self._not_before_s = max(self._not_before_s, now_s)
        logging.getLogger(LOGGER_NAME).info("the observer has ended (pid %d): %s", pid, how)
        return True

    def reopen_logs(self) -> None:
        """Tell it that the logs were rotated."""
        self._signal(signal.SIGUSR1)

    def dismiss(self) -> tuple[int, ...]:
        """Have it end for good; return its pid, if there is one."""
        self._order = None
        self._signal(signal.SIGTERM)
        return (self.pid,) if self.pid else ()

    def _signal(self, number: int) -> None:
        if self.pid:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass  # It has just ended; its exit will be reported.
