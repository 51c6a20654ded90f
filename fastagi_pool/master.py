"""Master: binds, forks, listens to signals, reaps, and carries out what the pool decides.

Laws:
    * Plain Python: no gevent, no database, no handler, no thread. Nothing that a user wrote runs
      here, so nothing that a user wrote can end it.
    * It decides nothing about workers: it feeds facts to :class:`~fastagi_pool.pool.Pool` and obeys.
    * A loader (see ``zygote``) that fails leaves everything as it was.
    * Signal handlers only wake the loop; what a signal means stands in one table.

How it works: the master forks a loader, which loads configuration and code and says what it found;
then the master binds, and asks the loader for workers. A reload is a new loader; when its first
worker serves, the old loader is dismissed, and its workers become the master's own children. An upgrade is
a reload by another program: see ``takeover``.
"""

from __future__ import annotations

import ctypes
import logging
import os
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from select import POLLIN, poll
from time import monotonic, sleep, time
from typing import Final

from fastagi_pool import callboard, handover, quarantine, stacks, tally
from fastagi_pool.aftermath import Aftermath
from fastagi_pool.backlog import BACKLOG_NAME
from fastagi_pool.bulletin import Bulletin
from fastagi_pool.doors import Doors
from fastagi_pool.endings import CRASH, GO_ON, last_words
from fastagi_pool.errors import BootError
from fastagi_pool.forking import fork_apart
from fastagi_pool.journal import RUNNING_NAME
from fastagi_pool.keeping import ObserverKeeper, ObserverMain, ObserverOrder
from fastagi_pool.lifecycle import PID_FILE, drop_pid_file, hold_pid_file
from fastagi_pool.logs import LOGGER_NAME
from fastagi_pool.masterlog import MasterLog
from fastagi_pool.messages import (
    DUMP_SIGNAL,
    Begin,
    Channel,
    Ended,
    Fork,
    Forked,
    ForkFailed,
    Inheritance,
    Loaded,
    Message,
    Refused,
    ReopenLogs,
)
from fastagi_pool.notify import Notifier
from fastagi_pool.pool import (
    LAST_WORDS_S,
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
    WorkerHandle,
)
from fastagi_pool.privileges import Identity, become, die_with_parent, own_folder, settle
from fastagi_pool.rotation import RotationSettings
from fastagi_pool.scoreboard import Scoreboard, Supervision
from fastagi_pool.takeover import (
    LoaderState,
    MasterState,
    Program,
    TakeoverRefused,
    Upgrade,
    adopt_descriptors,
    hear_signals,
    take_over,
)
from fastagi_pool.version import VERSION

#: A load that takes longer hangs in some module.
LOAD_TIMEOUT_S: Final = 120.0
#: A loader that was dismissed is gone by then, or killed.
DISMISSED_S: Final = 2.0
#: Witnesses of workers that were killed at the end get this long to tell the calls.
WITNESSES_S: Final = 3.0
#: The loop turns at least this often, for what only time brings about.
TICK_S: Final = 0.25
#: More than any configuration can ask for, and what the kernel allows (fs.nr_open).
MOST_DESCRIPTORS: Final = 1_048_576
#: The folders of what workers show of themselves.
_FIGURES: Final = (callboard.FOLDER, tally.FOLDER, stacks.FOLDER)
#: What goes on to hold: suspects, and what the journal's readers and writers tell each other.
_KEPT_FILES: Final = (quarantine.FILE, BACKLOG_NAME, RUNNING_NAME)
#: What an earlier run as root may have left in the runtime folder.
_RUNTIME_FILES: Final = (PID_FILE, "scoreboard", *_FIGURES, "recordings", "control", *_KEPT_FILES)
#: Source: PR_SET_CHILD_SUBREAPER in linux/prctl.h.
_PR_SET_CHILD_SUBREAPER: Final = 36
_LOG_LEVELS: Final = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING, Level.ERROR: logging.ERROR}
#: What the loader process runs: given its end of the channel, and what all children get.
LoaderMain = Callable[[Channel, Inheritance], int]


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
        observer: The life of the observer process.
        report: Shows a text to whoever started the master, before logs are set up.
        serving: Called once, when the first worker serves, with the addresses.
        inherited: Descriptors of sockets that systemd opened.
        set_title: Sets the process title.
        notifier: Tells the service manager.
        program: How this program was started, for an upgrade.
    """

    loader: LoaderMain
    observer: ObserverMain
    report: Callable[[str], None]
    serving: Callable[[list[str]], None]
    inherited: tuple[int, ...]
    set_title: Callable[[str], None]
    notifier: Notifier
    program: Program


class Master:
    """The one process that everything else hangs on."""

    def __init__(self, options: MasterOptions, state: MasterState | None = None) -> None:
        """Prepare; nothing is opened yet.

        Args:
            options: What the command line gives.
            state: What a former program of this process has left, to go on with; None for a new beginning.
        """
        self._options = options
        self._log = logging.getLogger(LOGGER_NAME)
        self._own_log = MasterLog()
        self._pool: Pool | None = None
        self._board: Scoreboard | None = None
        self._runtime_dir = Path()
        #: Of the generation in charge.
        self._loaded: Loaded | None = None
        #: Descriptors of locked files, by path.
        self._pid_files: dict[str, int] = {}
        self._loaders: list[Loader] = []
        self._doors = Doors(options.inherited)
        #: Addresses of the generation in charge: never closed for want of a loader.
        self._kept: tuple[str, ...] = ()
        self._generations = 0
        self._reload_wanted = False
        self._greeted = False
        self._exit_code: ExitCode | None = None
        self._upgrade = Upgrade(options.program)
        self._bulletin = Bulletin(options.notifier, os.getpid())
        self._signals: dict[int, Callable[[], None]] = {
            signal.SIGTERM: self._stop_gracefully,
            signal.SIGQUIT: self._stop_gracefully,
            signal.SIGINT: self._stop_quickly,
            signal.SIGHUP: self._reload,
            signal.SIGUSR1: self._reopen_logs,
            signal.SIGUSR2: self._want_upgrade,
            signal.SIGTTIN: lambda: self._resize(1),
            signal.SIGTTOU: lambda: self._resize(-1),
            signal.SIGCHLD: self._reap,
            signal.SIGWINCH: lambda: None,
        }
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        if state is None:
            self._bell, self._ringer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            #: Nobody ever writes into it: that the master is gone is what it says.
            self._lifeline, self._lifeline_end = os.pipe2(os.O_CLOEXEC)
        else:
            self._bell, self._ringer = state.bell
            self._lifeline, self._lifeline_end = state.lifeline
        known = state is not None and min(state.handover) >= 0
        #: Nobody reads here: calls lie in it until a worker takes them.
        self._handover = state.handover if state is not None and known else handover.make()
        self._aftermath: Aftermath | None = None
        #: Of workers that have ended.
        self._witnesses: set[int] = set()
        self._observer = ObserverKeeper(options.observer, self._forget_all, self._lifeline)
        self._inherited_state = state

    def run(self) -> ExitCode:
        """Be the master until told to end; return how it went."""
        self._options.set_title("fastagi-pool: master")
        # Workers whose loader ended become our children instead of init's.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        _allow_descriptors()
        for number in self._signals:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        if self._inherited_state is None:
            self._start_loader()
        else:
            self._go_on(self._inherited_state)
            self._inherited_state = None
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
            self._look_after_the_rest(monotonic())
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
                self._doors.close()
        elif self._reload_wanted and not self._loading and not self._pool.is_proving:
            # One after the other: who waits for a reload is told of this one and of no other.
            try:
                self._start_loader()
            except OSError as error:
                self._log.error("cannot fork a loader: %s", error)
                self._pool.load_failed(monotonic())
            else:
                self._reload_wanted = False
                self._bulletin.reload_begins(monotonic())

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
            reason = f"generation {action.generation} does not start; the log says why"
            self._bulletin.reload_ends(monotonic(), reason)
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
        if (
            loader is None
            or loader.channel is None
            or not loader.channel.send(Fork(action.slot, action.prove))
        ):
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
        pid = fork_apart()
        if pid == 0:
            code = 1
            try:
                ours.close()
                self._forget_what_is_mine()
                code = self._options.loader(theirs, Inheritance(self._ringer, self._lifeline, self._handover))
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
        die_with_parent()
        for loader in self._loaders:
            if loader.channel is not None:
                loader.channel.close()
        self._doors.forget()
        self._own_log.forget()
        mine = (self._wake, self._waker, self._bell, self._lifeline_end, *self._pid_files.values())
        for descriptor in mine:
            os.close(descriptor)

    def _forget_all(self) -> None:
        """In the observer: close what only those hold who have to do with calls, too."""
        self._forget_what_is_mine()
        for descriptor in self._handover:
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
            elif loaded.runtime_dir != str(self._runtime_dir):
                # Its workers would tell how they fare where nobody looks.
                raise BootError(f"runtime_dir stays {self._runtime_dir} while it runs; restart to change it")
            loader.addresses = self._doors.open(loaded.listen, loaded.backlog, loaded.restricted)
            if self._pool is None:
                self._settle_down(loaded)
        except BootError as error:
            self._on_refused(loader, str(error), ExitCode.BOOT)
            return
        if self._pool is None:
            self._pool = Pool(limits, random.random)
        else:
            self._log.info("gen=%d is loaded", loader.generation)
            self._pool.loaded(loader.generation, limits)
        board = [self._board.descriptor] if self._board is not None else []
        if loader.channel is not None:
            loader.channel.send(Begin(loader.generation), board + self._doors.of(loader.addresses))

    def _on_refused(self, loader: Loader, report: str, code: ExitCode) -> None:
        self._dismiss([loader])
        self._close_unused()
        if self._pool is None:
            self._options.report(report)
            self._exit_code = code
            return
        for line in report.splitlines():
            self._log.error("reload refused, nothing changes: %s", line)
        self._bulletin.reload_ends(monotonic(), report)
        self._pool.load_failed(monotonic())

    def _confirm(self, generation: int) -> None:
        """A generation serves: older loaders go, and listeners that nobody wants any more."""
        self._dismiss(loader for loader in self._loaders if loader.generation < generation)
        current = self._loader(generation)
        if current is not None and current.loaded is not None:
            self._kept = current.addresses
            self._loaded = current.loaded
            try:
                self._use_log(current.loaded)
            except BootError as error:
                self._log.error("the log stays where it is: %s", error)
            self._observer.want(_observer_order(current.loaded), monotonic())
            if self._aftermath is not None:
                self._aftermath.use(**current.loaded.quarantine)
        self._close_unused()
        if self._board is not None:
            self._board.set_generation(generation)
        if self._greeted:
            self._bulletin.reload_ends(monotonic())

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
        """Take what only the first load decides: the runtime folder, the pid file."""
        self._runtime_dir = Path(loaded.runtime_dir)
        try:
            if loaded.identity:
                own_folder(self._runtime_dir, Identity(**loaded.identity), known=_RUNTIME_FILES)
            self._runtime_dir.mkdir(parents=True, exist_ok=True)
            self._hold(self._runtime_dir / PID_FILE)
            _forget_the_dead(self._runtime_dir)
        except OSError as error:
            raise BootError(f"cannot use runtime_dir {self._runtime_dir}: {error}") from error
        if loaded.pid_file:
            try:
                self._hold(Path(loaded.pid_file))
            except OSError as error:
                raise BootError(f"cannot write pid_file {loaded.pid_file}: {error}") from error
        try:
            self._board = Scoreboard.create(self._runtime_dir / "scoreboard", os.getpid(), monotonic())
        except OSError as error:
            raise BootError(f"cannot make a scoreboard in {self._runtime_dir}: {error}") from error
        self._board.set_generation(1)

    def _hold(self, path: Path) -> None:
        self._pid_files[str(path)] = hold_pid_file(path, os.getpid())

    def _settle_down(self, loaded: Loaded) -> None:
        """Be who we shall be, where we shall be, now that nothing is left that only root may do."""
        settle(loaded.umask, loaded.chdir)
        if loaded.identity:
            identity = Identity(**loaded.identity)
            self._doors.hand_over(identity.uid, identity.gid)
            # Another pid file stays root's: root believes the number in it.
            mine = [self._pid_files[str(self._runtime_dir / PID_FILE)]]
            for descriptor in (*mine, *([self._board.descriptor] if self._board is not None else [])):
                os.fchown(descriptor, identity.uid, identity.gid)
            become(identity)
        # Neither of these as root, whom a link in a folder of the user's could lead anywhere.
        self._use_log(loaded)
        try:
            self._aftermath = Aftermath(self._runtime_dir)
        except OSError as error:
            raise BootError(f"cannot make a table of suspects in {self._runtime_dir}: {error}") from error

    def _use_log(self, loaded: Loaded) -> None:
        self._own_log.use(loaded.log, loaded.rotated, loaded.rotation)

    def _close_unused(self) -> None:
        """Close the listeners that neither the generation in charge nor a newer one wants."""
        wanted = {*self._kept, *(address for loader in self._loaders for address in loader.addresses)}
        self._doors.close_but(wanted)

    def _look_after_the_rest(self, now_s: float) -> None:
        """Do what is no worker's business: tell how things stand, rotate logs, keep the observer alive."""
        if self._pool is None or self._board is None:
            return
        queue, lost_lines = self._doors.queue(), self._own_log.lost_lines
        self._bulletin.publish(self._board, self._pool, queue, lost_lines, now_s)
        if self._own_log.rotate(time(), now_s):
            self._have_logs_reopened()
        if self._pool.stopping is Stopping.NO:
            self._observer.look_after(now_s)
            self._advance_upgrade(self._pool, now_s)

    # --- an upgrade

    def _want_upgrade(self) -> None:
        if self._pool is not None and self._pool.stopping is Stopping.NO:
            self._log.info("upgrade: the newly installed program is asked whether it can take over")
            self._upgrade.want()

    def _advance_upgrade(self, pool: Pool, now_s: float) -> None:
        """Go on with an upgrade, if one is wanted and nothing else is half done."""
        loaded = not self._loading and not self._reload_wanted
        # One that was dismissed may still have to tell of a worker's end.
        settled = pool.is_settled and loaded and all(loader.in_service for loader in self._loaders)
        if not self._upgrade.wanted or not settled:
            return
        try:
            if self._upgrade.advance(self._state(pool), now_s):
                if _is_readable(self._wake):
                    # A signal came just before they wait: it is obeyed first.
                    hear_signals()
                    return
                self._log.info("upgrade: handing over")
                take_over(self._options.program, self._state(pool))
        except OSError as error:
            hear_signals()
            self._upgrade.drop()
            self._upgrade_refused(f"cannot start the new program: {error}")

    def _upgrade_refused(self, reason: str) -> None:
        for line in reason.splitlines():
            self._log.error("upgrade refused, nothing changes: %s", line)
        self._bulletin.upgrade_ends(reason)

    def _state(self, pool: Pool) -> MasterState:
        """Say all that another program must know to go on."""
        loaders = tuple(
            LoaderState(
                generation=loader.generation,
                pid=loader.pid,
                channel_fd=loader.channel.fileno() if loader.channel else -1,
                since_s=loader.since_s,
                loaded=asdict(loader.loaded) if loader.loaded else None,
                addresses=loader.addresses,
            )
            for loader in self._loaders
            if loader.in_service
        )
        return MasterState(
            version=VERSION,
            board_fd=self._board.descriptor if self._board is not None else -1,
            listeners=self._doors.descriptors(),
            pid_files=self._pid_files,
            bell=(self._bell, self._ringer),
            lifeline=(self._lifeline, self._lifeline_end),
            loaders=loaders,
            loaded=asdict(self._loaded) if self._loaded else {},
            kept=self._kept,
            generations=self._generations,
            observer_pid=self._observer.pid,
            pool=pool.state(),
            supervision=self._bulletin.state(),
            handover=self._handover,
        )

    def _go_on(self, state: MasterState) -> None:
        """Take over from a former program of this process, and load anew: with its own code."""
        adopt_descriptors(state)
        loaded, self._pool = understand(state)
        self._loaded = loaded
        self._runtime_dir = Path(loaded.runtime_dir)
        try:
            self._use_log(loaded)
        except BootError as error:
            self._log.error("%s", error)
        self._pid_files.update(state.pid_files)
        self._board = Scoreboard.share(state.board_fd)
        self._doors.adopt(state.listeners)
        self._kept, self._generations, self._greeted = state.kept, state.generations, True
        for each in state.loaders:
            said = Loaded(**each.loaded) if each.loaded else None
            channel = Channel.adopt(each.channel_fd)
            self._loaders.append(
                Loader(each.generation, each.pid, channel, each.since_s, said, each.addresses)
            )
        self._bulletin.restore(state.supervision)
        try:
            lost, quarantined = self._bulletin.lost_calls, self._bulletin.quarantined
            self._aftermath = Aftermath(self._runtime_dir, lost, quarantined)
            self._aftermath.use(**loaded.quarantine)
        except OSError as error:
            self._log.error("requests that end workers are not quarantined: %s", error)
        self._bulletin.upgrade_ends()
        self._observer.adopt(state.observer_pid, _observer_order(loaded))
        self._log.info("upgraded: fastagi-pool %s has taken over from %s", VERSION, state.version)
        self._reload_wanted = True
        hear_signals()
        # Who ended while nobody listened sends no second signal.
        self._reap()

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
        active = sum(handle.active for handle in self._pool.handles.values())
        self._bulletin.stops(self._pool.limits.graceful_timeout_s + LAST_WORDS_S, active)
        self._pool.stop(how, monotonic())
        self._doors.bar()

    def _reload(self) -> None:
        if self._pool is not None and self._pool.stopping is Stopping.NO:
            self._log.info("reload")
            self._reload_wanted = True

    def _reopen_logs(self) -> None:
        self._own_log.reopen()
        self._have_logs_reopened()

    def _have_logs_reopened(self) -> None:
        self._observer.reopen_logs()
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
            elif self._upgrade.is_trial(pid):
                refusal = self._upgrade.tried(status == 0, _describe(status))
                if refusal:
                    self._upgrade_refused(refusal)
            elif self._observer.has_ended(pid, _describe(status), monotonic()) or self._was_witness(pid):
                pass  # All that there is to do is done.
            else:
                self._on_exit(pid, status)

    def _was_witness(self, pid: int) -> bool:
        """Whether a process was beside a worker: it is ours once that is dead, and nobody waits for it."""
        known = pid in self._witnesses
        self._witnesses.discard(pid)
        board = self._board.occupied() if self._board is not None else ()
        return known or any(facts.witness == pid for facts in board)

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
            facts = self._board.facts(slot)
            self._pool.observe([facts], monotonic())
            self._bulletin.lines_were_lost(facts.lost_lines)
            if _is_somebodys_child(facts.witness, [os.getpid()]):
                self._witnesses.add(facts.witness)
            self._board.clear(slot)
            # A handler can end its worker with exit code 0, too.
            if (status != 0 or facts.active) and self._aftermath is not None:
                crashed = _has_crashed(self._pool.handles[slot], status, self._aftermath.memory_ran_out())
                self._aftermath.see_to(slot, pid, crashed, monotonic())
                self._bulletin.calls_were_lost(self._aftermath.lost, self._aftermath.quarantined)
        self._pool.exited(pid, _describe(status), status == 0, monotonic())

    # --- beginning and end for others to see

    def _greet(self) -> None:
        self._greeted = True
        addresses = self._doors.really_bound()
        self._log.info("listening on %s", ", ".join(addresses))
        self._bulletin.serves(f"listening on {', '.join(addresses)}")
        self._options.serving(addresses)

    def _end(self) -> None:
        for handle in self._pool.handles.values() if self._pool else ():
            if handle.pid:
                _kill(handle.pid, signal.SIGKILL)
        self._dismiss(self._loaders)
        self._doors.close()
        for pid in (*(loader.pid for loader in self._loaders), *self._observer.dismiss()):
            _await_end(pid)
        _await_orphans(WITNESSES_S)
        # Or it would be waited for that somebody gives one more.
        os.close(self._handover[1])
        words = last_words(CRASH, "the worker died, and the server ends", "", GO_ON, channel_lives=True)
        left = handover.refuse(self._handover[0], words, handover.TELLING_S, poll)
        if left.told or left.untold:
            self._log.error("%d calls that nobody had begun were told so, %d could not be told", *left)
        self._log.info("ended")
        if self._exit_code is ExitCode.WORKERS and self._greeted:
            # It served, and gave up unasked: who keeps it alive takes it for dead, and starts it again.
            return
        for path, descriptor in self._pid_files.items():
            drop_pid_file(Path(path), descriptor)


def understand(state: MasterState) -> tuple[Loaded, Pool]:
    """Make what this program works with of what a former one has left.

    Raises:
        TakeoverRefused: It is too different.
    """
    try:
        for each in state.loaders:
            Loaded(**each.loaded or state.loaded)
        Supervision(**state.supervision)
        loaded = Loaded(**state.loaded)
        RotationSettings(**loaded.rotation)
        _observer_order(loaded)
        return loaded, Pool.restored(state.pool, random.random)
    except (TypeError, ValueError, KeyError) as error:
        raise TakeoverRefused(f"what the running server says of itself cannot be read: {error!r}") from error


def _observer_order(loaded: Loaded) -> ObserverOrder:
    return ObserverOrder(
        **{**loaded.observer, "allow": tuple(loaded.observer["allow"])},
        **{f"log_{name}": loaded.log[name] for name in ("file", "level", "format", "facility")},
        master_pid=os.getpid(),
        runtime_dir=loaded.runtime_dir,
    )


def _is_readable(descriptor: int) -> bool:
    poller = poll()
    poller.register(descriptor, POLLIN)
    return bool(poller.poll(0))


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


def _await_orphans(longest_s: float) -> None:
    """Wait for those who became our children because their parents died: witnesses that still tell calls."""
    deadline_s = monotonic() + longest_s
    while monotonic() < deadline_s:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                sleep(0.02)
        except ChildProcessError:
            return


def _has_crashed(handle: WorkerHandle, status: int, memory_ran_out: bool) -> bool:
    """Whether a worker died of something that it did, as far as anybody can tell."""
    if handle.phase is Phase.KILLED:
        # By us: because it was stuck, or because the time was over that calls get at the end.
        return handle.dumped_in is not None
    if status < 0:
        return False
    # Who kills from outside has no call in mind, but for the kernel that needs memory.
    return memory_ran_out or not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)


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


def _forget_the_dead(runtime_dir: Path) -> None:
    """Remove what the workers of an earlier master have left: its figures would be taken for ours.

    We may be root in somebody else's folder: what a link there leads to is not touched.

    Raises:
        OSError: It cannot be removed.
    """
    for folder in (runtime_dir / name for name in _FIGURES):
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)


def _allow_descriptors() -> None:
    """Let later loaders, which are not root any more, claim what workers may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.geteuid() == 0 and hard != resource.RLIM_INFINITY and hard < MOST_DESCRIPTORS:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, MOST_DESCRIPTORS))
        except (ValueError, OSError):
            pass  # In a container, for example. If it is too few a loader says so.
