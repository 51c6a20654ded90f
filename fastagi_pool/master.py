"""Master: binds, forks, listens to signals, reaps, and carries out what the pool decides.

Laws:
    * Plain Python: no gevent, no database, no handler, no thread. Nothing that a user wrote runs
      here, so nothing that a user wrote can end it.
    * It decides nothing about workers: it feeds facts to :class:`~fastagi_pool.pool.Pool` and obeys.
    * A loader (see ``zygote``) that fails leaves everything as it was.
    * Signal handlers only wake the loop; what a signal means stands in one table.

How it works: the master forks a loader, which loads configuration and code and says what it found;
then the master binds, and asks the loader for workers. A reload is a new loader; when its first
worker serves, the old loader is dismissed, and its workers become the master's own children.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import random
import signal
import socket
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from select import POLLIN, poll
from time import monotonic, sleep
from typing import Final

from fastagi_pool.errors import BootError
from fastagi_pool.listeners import Address, bind, describe, discard, refuse_newcomers
from fastagi_pool.logs import LOGGER_NAME, LogFile, configure, ensure_folder, reopen_all
from fastagi_pool.messages import (
    DUMP_SIGNAL,
    Begin,
    Channel,
    Ended,
    Fork,
    Forked,
    ForkFailed,
    Loaded,
    Message,
    Refused,
    ReopenLogs,
)
from fastagi_pool.pool import (
    Abandon,
    Action,
    Confirm,
    DropLoader,
    Exit,
    ExitCode,
    Level,
    Load,
    Note,
    Order,
    Phase,
    Pool,
    PoolLimits,
    Spawn,
    Stopping,
    Tell,
)
from fastagi_pool.scoreboard import Scoreboard

#: A load that takes longer hangs in some module.
LOAD_TIMEOUT_S: Final = 120.0
#: A loader that was dismissed is gone by then, or killed.
DISMISSED_S: Final = 2.0
_SYSTEMD: Final = "systemd"
#: The loop turns at least this often, for what only time brings about.
TICK_S: Final = 0.25
#: Source: PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER in linux/prctl.h.
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_LOG_LEVELS: Final = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING, Level.ERROR: logging.ERROR}
#: What the loader process runs: given its end of the channel, the bell and the lifeline.
LoaderMain = Callable[[Channel, int, int], int]


@dataclass(slots=True)
class Loader:
    """A loader as the master sees it.

    Attributes:
        generation: The number of its load.
        pid: Its process.
        channel: To it; None once it is gone.
        loaded: What it said when it was ready; None before.
        since_s: When it was started; once it is dismissed, when that was.
        addresses: What its workers accept from, as configured.
        dismissed: Whether it was told to end; it may still have something to say.
    """

    generation: int
    pid: int
    channel: Channel | None
    since_s: float
    loaded: Loaded | None = None
    addresses: tuple[str, ...] = ()
    dismissed: bool = False

    @property
    def in_service(self) -> bool:
        """Whether it can be told something."""
        return self.channel is not None and not self.dismissed

    def dismiss(self, now_s: float) -> None:
        """Say no more to it, so that it ends; how its last workers ended can still be heard."""
        self.addresses = ()
        if self.channel is not None and not self.dismissed:
            self.channel.say_no_more()
            self.dismissed = True
            self.since_s = now_s

    def hang_up(self) -> None:
        """Close the channel: it is gone."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None


@dataclass(frozen=True, slots=True)
class MasterOptions:
    """What the command line gives the master.

    Attributes:
        loader: The life of a loader process.
        report: Shows a text to whoever started the master, before logs are set up.
        serving: Called once, when the first worker serves, with the addresses.
        inherited: Descriptors of sockets that systemd opened.
        set_title: Sets the process title.
    """

    loader: LoaderMain
    report: Callable[[str], None]
    serving: Callable[[list[str]], None]
    inherited: tuple[int, ...]
    set_title: Callable[[str], None]


class Master:
    """The one process that everything else hangs on."""

    def __init__(self, options: MasterOptions) -> None:
        """Prepare; nothing is opened yet."""
        self._options = options
        self._log = logging.getLogger(LOGGER_NAME)
        self._log_file: LogFile | None = None
        self._pool: Pool | None = None
        self._board: Scoreboard | None = None
        self._runtime_dir = Path()
        self._pid_files: list[int] = []
        self._loaders: list[Loader] = []
        #: All that is open, by the address as configured.
        self._listeners: dict[str, list[socket.socket]] = {}
        #: Addresses of the generation in charge: never closed for want of a loader.
        self._kept: tuple[str, ...] = ()
        self._generations = 0
        self._reload_wanted = False
        self._greeted = False
        self._exit_code: ExitCode | None = None
        self._signals: dict[int, Callable[[], None]] = {
            signal.SIGTERM: self._stop_gracefully,
            signal.SIGQUIT: self._stop_gracefully,
            signal.SIGINT: self._stop_quickly,
            signal.SIGHUP: self._reload,
            signal.SIGUSR1: self._reopen_logs,
            signal.SIGTTIN: lambda: self._resize(1),
            signal.SIGTTOU: lambda: self._resize(-1),
            signal.SIGCHLD: self._reap,
            signal.SIGUSR2: lambda: None,
            signal.SIGWINCH: lambda: None,
        }
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._bell, self._ringer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        #: Nobody ever writes into it: that the master is gone is what it says.
        self._lifeline, self._lifeline_end = os.pipe2(os.O_CLOEXEC)

    def run(self) -> ExitCode:
        """Be the master until told to end; return how it went."""
        self._options.set_title("fastagi-pool: master")
        # Workers whose loader ended become our children instead of init's.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in self._signals:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._start_loader()
        try:
            while self._exit_code is None:
                self._turn()
        finally:
            self._end()
        return self._exit_code

    # --- the loop

    def _turn(self) -> None:
        """Wait for something to happen, and see to it."""
        poller = poll()
        channels = {loader.channel.fileno(): loader for loader in self._loaders if loader.channel}
        for descriptor in (self._wake, self._bell, *channels):
            poller.register(descriptor, POLLIN)
        ready = [descriptor for descriptor, _ in poller.poll(TICK_S * 1000)]
        try:
            if self._bell in ready:
                _empty(self._bell)
            self._observe()
            for descriptor in ready:
                if descriptor in channels:
                    self._hear(channels[descriptor])
            if self._wake in ready:
                for number in sorted(set(_empty(self._wake))):
                    self._signals.get(number, lambda: None)()
            self._decide()
            self._end_late_loaders(monotonic())
        except Exception:
            # A bug here must not take down a service that runs.
            self._log.exception("the master stumbled")

    def _observe(self) -> None:
        if self._pool is not None and self._board is not None:
            self._pool.observe(self._board.occupied(), monotonic())
            if not self._greeted and self._pool.serving:
                self._greet()

    def _decide(self) -> None:
        if self._pool is None:
            return
        for action in self._pool.decide(monotonic()):
            self._carry_out(self._pool, action)
        if self._pool.stopping is not Stopping.NO:
            # Loaders hold copies of the sockets; but a fork that was asked for must be heard of first.
            if not any(handle.phase is Phase.SPAWNING for handle in self._pool.handles.values()):
                self._dismiss(self._loaders)
                for address in list(self._listeners):
                    self._discard(address)
        elif self._reload_wanted and not self._loading:
            try:
                self._start_loader()
            except OSError as error:
                self._log.error("cannot fork a loader: %s", error)
                self._pool.load_failed(monotonic())
            else:
                self._reload_wanted = False

    def _carry_out(self, pool: Pool, action: Action) -> None:
        if isinstance(action, Note):
            self._log.log(_LOG_LEVELS[action.level], "%s", action.text)
        elif isinstance(action, Tell):
            self._tell(action)
        elif isinstance(action, Spawn):
            self._spawn(pool, action)
        elif isinstance(action, Confirm):
            self._confirm(action.generation)
        elif isinstance(action, Abandon):
            self._dismiss(loader for loader in self._loaders if loader.generation > pool.generation)
            self._close_unused()
        elif isinstance(action, DropLoader):
            self._kill_loader(action.generation)
        elif isinstance(action, Load):
            self._reload_wanted = True
        elif isinstance(action, Exit):
            self._exit_code = action.code

    def _spawn(self, pool: Pool, action: Spawn) -> None:
        loader = self._loader(action.generation)
        if self._board is not None:
            self._board.clear(action.slot, action.call_limit)
        if loader is None or loader.channel is None or not loader.channel.send(Fork(action.slot)):
            pool.spawn_failed(action.slot, "there is no loader", monotonic())

    def _tell(self, action: Tell) -> None:
        number = {
            Order.DRAIN: signal.SIGTERM,
            Order.STOP: signal.SIGINT,
            Order.DUMP: DUMP_SIGNAL,
            Order.KILL: signal.SIGKILL,
        }[action.order]
        if action.pid:
            _kill(action.pid, number)

    # --- loaders

    @property
    def _loading(self) -> bool:
        return any(loader.in_service and loader.loaded is None for loader in self._loaders)

    def _loader(self, generation: int) -> Loader | None:
        return next((each for each in self._loaders if each.generation == generation), None)

    def _start_loader(self) -> None:
        self._generations += 1
        ours, theirs = Channel.pair()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                ours.close()
                self._forget_what_is_mine()
                code = self._options.loader(theirs, self._ringer, self._lifeline)
            except BaseException:
                # The log is closed here; standard error is what is left.
                traceback.print_exc()
            finally:
                os._exit(code)
        theirs.close()
        self._loaders.append(Loader(self._generations, pid, ours, monotonic()))

    def _forget_what_is_mine(self) -> None:
        """In a new child: close what only the master may hold open, and do not outlive it."""
        # One that hangs in a handler's module would never notice that its channel is closed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        for loader in self._loaders:
            if loader.channel is not None:
                loader.channel.close()
        for listener in self._all_listeners():
            listener.close()
        if self._log_file is not None and self._log_file.target != "-":
            os.close(self._log_file.fileno())
        for descriptor in (self._wake, self._waker, self._bell, self._lifeline_end, *self._pid_files):
            os.close(descriptor)

    def _hear(self, loader: Loader) -> None:
        """Take one message from a loader; that there is none means that it is gone.

        Never waits: a process that a handler's module started may hold the other end open for ever.
        """
        received = loader.channel.receive(wait=False) if loader.channel else None
        if received is None:
            self._hang_up(loader)
            return
        self._obey(loader, received[0])

    def _obey(self, loader: Loader, message: Message) -> None:
        now_s = monotonic()
        if isinstance(message, Loaded | Refused) and loader.dismissed:
            return
        if isinstance(message, Loaded):
            self._on_loaded(loader, message)
        elif isinstance(message, Refused):
            self._on_refused(loader, message.report, ExitCode.BOOT if message.machine else ExitCode.CONFIG)
        elif self._pool is None:
            return
        elif isinstance(message, Forked):
            self._pool.spawned(message.slot, message.pid, now_s)
        elif isinstance(message, ForkFailed):
            self._pool.spawn_failed(message.slot, message.reason, now_s)
        elif isinstance(message, Ended):
            self._on_exit(message.pid, message.status)

    def _on_loaded(self, loader: Loader, loaded: Loaded) -> None:
        loader.loaded = loaded
        limits = PoolLimits(**loaded.limits)
        try:
            if self._pool is None:
                self._boot(loaded)
            loader.addresses = self._bind(loaded)
        except BootError as error:
            self._on_refused(loader, str(error), ExitCode.BOOT)
            return
        if self._pool is None:
            self._pool = Pool(limits, random.random)
        else:
            self._log.info("gen=%d is loaded", loader.generation)
            self._pool.loaded(loader.generation, limits)
        board = [self._board.descriptor] if self._board is not None else []
        sockets = [each.fileno() for address in loader.addresses for each in self._listeners[address]]
        if loader.channel is not None:
            loader.channel.send(Begin(loader.generation), board + sockets)

    def _on_refused(self, loader: Loader, report: str, code: ExitCode) -> None:
        self._dismiss([loader])
        self._close_unused()
        if self._pool is None:
            self._options.report(report)
            self._exit_code = code
            return
        for line in report.splitlines():
            self._log.error("reload refused, nothing changes: %s", line)
        self._pool.load_failed(monotonic())

    def _confirm(self, generation: int) -> None:
        """A generation serves: older loaders go, and listeners that nobody wants any more."""
        self._dismiss(loader for loader in self._loaders if loader.generation < generation)
        current = self._loader(generation)
        if current is not None and current.loaded is not None:
            self._kept = current.addresses
            try:
                self._use_log(current.loaded)
            except BootError as error:
                self._log.error("the log stays where it is: %s", error)
        self._close_unused()
        if self._board is not None:
            self._board.set_generation(generation)

    def _dismiss(self, loaders: Iterable[Loader]) -> None:
        for loader in list(loaders):
            loader.dismiss(monotonic())

    def _kill_loader(self, generation: int) -> None:
        loader = self._loader(generation)
        if loader is not None:
            self._log.error("the loader of gen=%d does not answer: it is killed", generation)
            _kill(loader.pid, signal.SIGKILL)

    def _end_late_loaders(self, now_s: float) -> None:
        """Kill loaders that hang: in a handler's module, or after they were dismissed."""
        for loader in self._loaders:
            waited_s = now_s - loader.since_s
            if not loader.in_service and waited_s > DISMISSED_S:
                _kill(loader.pid, signal.SIGKILL)
            elif loader.in_service and loader.loaded is None and waited_s > LOAD_TIMEOUT_S:
                _kill(loader.pid, signal.SIGKILL)
                report = f"configuration and handlers were not loaded in {LOAD_TIMEOUT_S:g} s"
                self._on_refused(loader, report, ExitCode.CONFIG)

    def _hang_up(self, loader: Loader) -> None:
        """The loader closed its end: it is gone or about to be; what follows comes with its exit."""
        was_in_service = loader.in_service
        loader.hang_up()
        if was_in_service:
            loader.since_s = monotonic()
            if loader.loaded is None:
                self._on_refused(loader, "the loader died while it loaded", ExitCode.CONFIG)
            elif self._pool is not None:
                self._log.error("the loader of gen=%d died", loader.generation)
                self._pool.loader_lost(loader.generation, monotonic())

    # --- what the machine must give

    def _boot(self, loaded: Loaded) -> None:
        """Take what only the first load decides: the runtime folder, the logs, the pid file."""
        self._runtime_dir = Path(loaded.runtime_dir)
        try:
            self._runtime_dir.mkdir(parents=True, exist_ok=True)
            lock = _lock(self._runtime_dir / "master.pid")
        except OSError as error:
            raise BootError(f"cannot use runtime_dir {self._runtime_dir}: {error}") from error
        self._pid_files.append(lock)
        self._use_log(loaded)
        if loaded.pid_file:
            try:
                self._pid_files.append(_lock(Path(loaded.pid_file)))
            except OSError as error:
                raise BootError(f"cannot write pid_file {loaded.pid_file}: {error}") from error
        try:
            self._board = Scoreboard.create(self._runtime_dir / "scoreboard", os.getpid(), monotonic())
        except OSError as error:
            raise BootError(f"cannot make a scoreboard in {self._runtime_dir}: {error}") from error
        self._board.set_generation(1)

    def _use_log(self, loaded: Loaded) -> None:
        if self._log_file is not None and self._log_file.target == loaded.log_file:
            configure(self._log_file, loaded.log_level, f"master pid={os.getpid()}")
            return
        try:
            ensure_folder(loaded.log_file)
            self._log_file = LogFile(loaded.log_file)
        except OSError as error:
            raise BootError(f"cannot write log.file {loaded.log_file}: {error}") from error
        configure(self._log_file, loaded.log_level, f"master pid={os.getpid()}")

    def _bind(self, loaded: Loaded) -> tuple[str, ...]:
        """Open what is not open yet; what is stays as it is.

        Raises:
            BootError: One of them cannot be had.
        """
        for content in loaded.listen:
            address = Address(**content)
            if address.text not in self._listeners:
                inherited = list(self._options.inherited)
                self._listeners[address.text] = bind(address, loaded.backlog, inherited, loaded.restricted)
        return tuple(content["text"] for content in loaded.listen)

    def _all_listeners(self) -> list[socket.socket]:
        return [listener for group in self._listeners.values() for listener in group]

    def _close_unused(self) -> None:
        """Close the listeners that neither the generation in charge nor a newer one wants."""
        wanted = {*self._kept, *(address for loader in self._loaders for address in loader.addresses)}
        for address in [each for each in self._listeners if each not in wanted]:
            self._close_the_door(address)
            self._discard(address)

    def _discard(self, address: str) -> None:
        for listener in self._listeners.pop(address):
            try:
                discard(listener, remove_file=address != _SYSTEMD)
            except OSError as error:
                self._log.error("cannot remove %s: %s", address, error)

    # --- signals

    def _stop_gracefully(self) -> None:
        self._stop(Stopping.GRACEFUL)

    def _stop_quickly(self) -> None:
        self._stop(Stopping.QUICK)

    def _stop(self, how: Stopping) -> None:
        if self._pool is None:
            self._exit_code = ExitCode.OK
            return
        if self._pool.stopping is not how:
            self._log.info("stopping (%s)", how.value)
        self._pool.stop(how, monotonic())
        for address in self._listeners:
            self._close_the_door(address)

    def _close_the_door(self, address: str) -> None:
        """Let nobody new in; the workers serve those who wait. What systemd opened stays open for it."""
        for listener in self._listeners[address] if address != _SYSTEMD else ():
            try:
                refuse_newcomers(listener)
            except OSError as error:
                self._log.error("cannot refuse newcomers on %s: %s", address, error)

    def _reload(self) -> None:
        if self._pool is not None and self._pool.stopping is Stopping.NO:
            self._log.info("reload")
            self._reload_wanted = True

    def _reopen_logs(self) -> None:
        reopen_all((self._log_file,))
        for loader in self._loaders:
            if loader.channel is not None:
                loader.channel.send(ReopenLogs())
        for handle in self._pool.handles.values() if self._pool else ():
            if handle.pid:
                _kill(handle.pid, signal.SIGUSR1)

    def _resize(self, by: int) -> None:
        if self._pool is not None:
            self._pool.resize(by)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            loader = next((each for each in self._loaders if each.pid == pid), None)
            if loader is not None:
                self._bury(loader)
            else:
                self._on_exit(pid, status)

    def _bury(self, loader: Loader) -> None:
        """A loader has ended: hear its last words, and look for workers that it buried in silence."""
        while loader.channel is not None:
            self._hear(loader)
        self._loaders.remove(loader)
        for pid in [handle.pid for handle in self._pool.handles.values()] if self._pool else []:
            if pid and not _is_somebodys_child(pid, [os.getpid(), *(each.pid for each in self._loaders)]):
                self._on_exit(pid, -1)
        self._end_strays()

    def _end_strays(self) -> None:
        """End workers that nobody knows: their loader died before it could tell of them."""
        if self._pool is not None and self._board is not None:
            known = {handle.pid for handle in self._pool.handles.values()}
            for facts in self._board.occupied():
                if facts.pid not in known and _is_somebodys_child(facts.pid, [os.getpid()]):
                    self._log.warning("pid=%d is a worker that nobody knows: it is ended", facts.pid)
                    _kill(facts.pid, signal.SIGTERM)

    def _on_exit(self, pid: int, status: int) -> None:
        if self._pool is None:
            return
        slot = next((handle.slot for handle in self._pool.handles.values() if handle.pid == pid), None)
        if self._board is not None and slot is not None:
            # Its last words: whether it drained by itself, and what it had served.
            self._pool.observe([self._board.facts(slot)], monotonic())
            self._board.clear(slot)
        self._pool.exited(pid, _describe(status), status == 0, monotonic())

    # --- beginning and end for others to see

    def _greet(self) -> None:
        self._greeted = True
        addresses = [describe(listener) for listener in self._all_listeners()]
        self._log.info("listening on %s", ", ".join(addresses))
        self._options.serving(addresses)

    def _end(self) -> None:
        for handle in self._pool.handles.values() if self._pool else ():
            if handle.pid:
                _kill(handle.pid, signal.SIGKILL)
        self._dismiss(self._loaders)
        for address in list(self._listeners):
            self._discard(address)
        for loader in self._loaders:
            _await_end(loader.pid)
        self._log.info("ended")


def _empty(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return b""


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # It has just ended; its exit will be reported.


def _await_end(pid: int) -> None:
    """Reap a child that was told to end, and kill it if it does not."""
    for _ in range(100):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        sleep(0.02)
    _kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _describe(status: int) -> str:
    if status < 0:
        return "nobody saw how"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        named = number in set(signal.Signals)
        return f"killed by {signal.Signals(number).name if named else f'signal {number}'}"
    return f"exit code {os.WEXITSTATUS(status)}"


def _is_somebodys_child(pid: int, parents: list[int]) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return int(fields[1]) in parents


def _lock(path: Path) -> int:
    """Write our pid into a file and hold it locked as long as we live.

    Raises:
        BootError: Another master holds it.
        OSError: It cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise BootError(
            f"another fastagi-pool (pid {holder}) holds {path}; give each its own runtime_dir"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor
