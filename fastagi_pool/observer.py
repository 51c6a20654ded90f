"""Observer: the process that tells how the pool fares, over HTTP and at the control socket.

Laws:
    * It is nobody's need: it may die at any moment, and calls go on; the master starts another.
    * It disturbs nobody: it reads shared memory, writes nothing that others read, asks the master nothing,
      and sends it a signal only when an operator says so.
    * What cannot be opened now, a port or a socket, is said once and tried again; the rest goes on.
    * No client can hold it up: connections are counted, and each has its time.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import gevent
from gevent import socket
from gevent.event import Event
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer
from setproctitle import setproctitle

from fastagi_pool.controlling import ControlServer, MasterProcess
from fastagi_pool.history import STEP_S
from fastagi_pool.keeping import ObserverOrder
from fastagi_pool.logs import LogFile, configure, reopen_all
from fastagi_pool.picture import NoPicture, Pictures
from fastagi_pool.web import WebApplication
from fastagi_pool.zygote import MASTER_SIGNALS

#: Connections over HTTP at once; further ones wait in the kernel's queue.
MOST_CONNECTIONS: Final = 64
#: What one gets to say its request, and to read the answer; one that says nothing is closed after it.
REQUEST_TIMEOUT_S: Final = 10.0
#: Between two attempts to open what could not be opened.
RETRY_S: Final = 10.0
#: An observer that is being replaced may still hold the port; so long nothing is said of it.
PATIENCE_S: Final = 2.0
_PATIENT_STEP_S: Final = 0.1
#: Who follows a reload when the observer is told to end gets so long to hear the end of it: workers that
#: take long to start are renewed one by one ...
FOLLOWERS_GRACE_S: Final = 600.0
#: ... and when the whole pool ends, so long.
LAST_WORDS_S: Final = 1.0
_LOOK_S: Final = 0.05
_BACKLOG: Final = 128
_READ: Final = 1


class _Handler(WSGIHandler):  # type: ignore[misc]  # gevent has no types
    """One connection, with an end."""

    def handle_one_request(self) -> Any:
        # Reading, answering and sending together: whoever is slow in any of them is closed.
        limit = gevent.Timeout.start_new(REQUEST_TIMEOUT_S)
        try:
            return super().handle_one_request()
        except gevent.Timeout:
            return None
        finally:
            limit.close()

    def log_request(self) -> None:
        """Write no line: whoever looks once a second would fill the log."""

    def handle_error(self, kind: type[BaseException], error: BaseException, trace: TracebackType) -> None:
        """Close the connection; log what is our fault, and not that somebody was slow or went away."""
        self.close_connection = True
        if not isinstance(error, gevent.Timeout | OSError):
            self.server.error_log.error("cannot answer over HTTP", exc_info=(kind, error, trace))

    def log_error(self, message: str, *arguments: object) -> None:
        """Write no line for what strangers send."""


class Observer:
    """Serves until it is told to end or the master is gone."""

    def __init__(self, order: ObserverOrder, page: bytes, master: MasterProcess, log: logging.Logger) -> None:
        """Prepare; nothing is opened yet.

        Args:
            order: What to show, and where.
            page: The page for people.
            master: Whom orders are passed on to.
            log: Where to say what happened.
        """
        runtime_dir = Path(order.runtime_dir)
        self._order = order
        self._master = master
        self._log = log
        self._pictures = Pictures(runtime_dir)
        self._control = ControlServer(runtime_dir, self._pictures, master)
        self._web = WebApplication(self._pictures, page, order.allow)
        self._http: WSGIServer | None = None
        self._told_to_end = Event()

    def run(self) -> None:
        """Serve; see the class."""
        work = [gevent.spawn(self._open, self._open_control), gevent.spawn(self._remember)]
        if self._order.host:
            work.append(gevent.spawn(self._open, self._open_http))
        self._told_to_end.wait()
        self._await_followers()
        gevent.killall(work)
        if self._http is not None:
            self._http.stop(timeout=0)
        self._control.close()

    def end(self) -> None:
        """End soon; may be called from anywhere in the process."""
        self._told_to_end.set()

    def _await_followers(self) -> None:
        """Let those who follow a reload hear how it went: what ends us may be part of it."""
        with gevent.Timeout(FOLLOWERS_GRACE_S, False):
            while self._control.followers and self._pool_goes_on():
                gevent.sleep(_LOOK_S)
        if not self._pool_goes_on():
            self._control.say_last_words()
        with gevent.Timeout(LAST_WORDS_S, False):
            while self._control.followers:
                gevent.sleep(_LOOK_S)

    def _pool_goes_on(self) -> bool:
        try:
            status = self._pictures.latest().status
        except NoPicture:
            return self._master.lives
        return self._master.lives and not status.get("stopping", False)

    def _open(self, attempt: Callable[[], None]) -> None:
        """Try until it works; say once that it does not, and once that it does."""
        patience_s = PATIENCE_S
        told = ""
        while True:
            try:
                attempt()
                return
            except OSError as error:
                text = str(error)
            if patience_s > 0:
                patience_s -= _PATIENT_STEP_S
                gevent.sleep(_PATIENT_STEP_S)
                continue
            if text != told:
                self._log.error("%s; trying again every %g s", text, RETRY_S)
                told = text
            gevent.sleep(RETRY_S)

    def _open_control(self) -> None:
        try:
            self._control.start()
        except OSError as error:
            raise OSError(f"cannot open the control socket in {self._order.runtime_dir}: {error}") from error

    def _open_http(self) -> None:
        shown = _shown(self._order.host, self._order.port)
        try:
            listener = _listen(self._order.host, self._order.port)
        except OSError as error:
            raise OSError(f"cannot show the status on {shown}: {_advice(error)}") from error
        # The server's name is given, or it would be asked of the name service.
        self._http = WSGIServer(
            listener,
            self._web,
            log=None,
            error_log=self._log,
            handler_class=_Handler,
            spawn=Pool(MOST_CONNECTIONS),
            environ={"SERVER_NAME": self._order.host},
        )
        self._http.start()
        self._log.info("showing the status on http://%s/", _shown(*listener.getsockname()[:2]))

    def _remember(self) -> None:
        while True:
            try:
                self._pictures.remember()
            except Exception:
                self._log.exception("cannot remember how the pool fares")
            gevent.sleep(STEP_S)


def run_observer(order: ObserverOrder, lifeline_fd: int) -> int:
    """Be the observer until told to end or the master is gone; return the exit code.

    Args:
        order: What to show, and where.
        lifeline_fd: Reading from it ends when the master does.
    """
    setproctitle("fastagi-pool: observer")
    for number in MASTER_SIGNALS:
        # To be told to end is never to be missed, not even before anything is there to be ended.
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    log_file = LogFile(order.log_file, order.log_facility)
    log = configure(log_file, order.log_level, f"observer pid={os.getpid()}", order.log_format)
    try:
        master = MasterProcess(order.master_pid)
    except ProcessLookupError:
        return 0  # It has ended meanwhile, and so do we.
    observer = Observer(order, read_page(), master, log)
    gevent.signal_handler(signal.SIGTERM, observer.end)
    gevent.signal_handler(signal.SIGUSR1, reopen_all, (log_file,))
    lifeline = gevent.get_hub().loop.io(lifeline_fd, _READ)
    lifeline.start(observer.end)
    observer.run()
    return 0


def read_page() -> bytes:
    """Read the page for people from the package."""
    return resources.files("fastagi_pool").joinpath("page/index.html").read_bytes()


def _listen(host: str, port: int) -> socket.socket:
    everywhere = host == "*"
    host = "::" if everywhere else host
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if everywhere else 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "in use by another process; stop that, or change http.listen"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have the address; change http.listen"
    if error.errno == errno.EACCES:
        return "permission denied; ports below 1024 are root's, so change http.listen"
    return str(error)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
