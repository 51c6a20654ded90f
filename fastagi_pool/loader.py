"""Loader: how a process that knows nothing becomes the zygote of one generation.

Laws:
    * Everything that can be wrong with configuration or code is wrong here, in a process that may
      die of it, and is reported to the master as one text.
    * The caller has patched the standard library for gevent before it imported this module.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Final

from gevent.monkey import get_original
from setproctitle import setproctitle

from fastagi_pool.application import Application, assemble
from fastagi_pool.attendants import guard_timeouts
from fastagi_pool.backlog import BACKLOG_NAME
from fastagi_pool.config import Config, LoadedConfig
from fastagi_pool.errors import BootError, JournalUnavailable, OperatorError
from fastagi_pool.listeners import Address
from fastagi_pool.logs import LOGGER_NAME, LogFile, configure, ensure_folder, reopen_all
from fastagi_pool.messages import Begin, Channel, Inheritance, Loaded, Refused
from fastagi_pool.privileges import (
    Identity,
    become,
    die_with_parent,
    find,
    own_file,
    own_folder,
    settle,
)
from fastagi_pool.rehearsal import rehearse
from fastagi_pool.replaykeeping import ReplayKeeper, ReplaySettings
from fastagi_pool.scoreboard import Scoreboard
from fastagi_pool.serviceconfig import RotationPeriod
from fastagi_pool.values import ListenAddress
from fastagi_pool.worker import WORKER_SIGNALS, Birth, Surroundings, live
from fastagi_pool.zygote import Zygote

#: Longest report that is sure to fit into one message.
_REPORT_CHARACTERS: Final = 50_000
#: What an SQLite database and its log take at least, and some more.
_LEAST_ROOM_BYTES: Final = 512 * 1024
#: Between the starts of two launchers: one that cannot live must not take the machine.
LAUNCHER_PAUSE_S: Final = 1.0


def run_loader(channel: Channel, inheritance: Inheritance, load: Callable[[], LoadedConfig]) -> int:
    """Load everything, tell the master, and be the zygote; return the exit code.

    Args:
        channel: To the master.
        inheritance: What the master gives all its children.
        load: Reads the configuration.
    """
    setproctitle("fastagi-pool: loader (loading)")
    try:
        application = _assemble(load)
        surroundings = _surroundings(application.config, inheritance)
    except OperatorError as error:
        channel.send(Refused(str(error)[:_REPORT_CHARACTERS], isinstance(error, BootError)))
        return 0
    log = application.config.log
    configure(surroundings.log, log.level, f"loader pid={os.getpid()}", log.format)
    channel.send(describe(application))
    launcher = LauncherKeeper(application, surroundings.log.target)
    #: What a companion that is forked must not hold open.
    own = [channel.fileno()]

    def leave() -> None:
        for descriptor in own:
            os.close(descriptor)

    def reopen_own_logs() -> None:
        reopen_all((surroundings.log, surroundings.access, surroundings.slow))

    replay = _replay_keeper(application, inheritance, leave, reopen_own_logs)
    companions = (launcher, replay) if replay is not None else (launcher,)

    def prepare(begin: Begin, descriptors: list[int]) -> Callable[[int, bool], int]:
        # Mapped here once: every worker inherits it.
        scoreboard = Scoreboard.share(descriptors[0])
        listeners = tuple(descriptors[1:])
        own.extend(listeners)
        for companion in companions:
            companion.begin(begin.generation)

        def be_worker(slot: int, prove: bool) -> int:
            birth = Birth(slot, begin.generation, scoreboard, listeners, prove)
            return live(application, surroundings, birth)

        return be_worker

    guard_timeouts()
    rehearse()

    def reopen_logs() -> None:
        reopen_own_logs()
        for companion in companions:
            companion.reopen_logs()

    poll = get_original("select", "poll")
    return Zygote(channel, prepare, WORKER_SIGNALS, reopen_logs, setproctitle, poll, companions).run()


def _replay_keeper(
    application: Application,
    inheritance: Inheritance,
    leave: Callable[[], None],
    reopen_logs: Callable[[], None],
) -> ReplayKeeper | None:
    config = application.config
    if application.journal_path is None:
        return None
    settings = ReplaySettings(
        journal=application.journal_path,
        max_bytes=config.journal.max_size,
        backlog=config.runtime_dir / BACKLOG_NAME,
        runtime_dir=config.runtime_dir,
        node=application.node,
        lifeline_fd=inheritance.lifeline,
        generation=0,
    )
    return ReplayKeeper(application, settings, leave, reopen_logs)


def _assemble(load: Callable[[], LoadedConfig]) -> Application:
    """Load the configuration, become whom it names, and load the code: nothing of that runs as root.

    Raises:
        OperatorError: Something of it cannot be.
    """
    loaded = load()
    config = loaded.config
    identity = _identity(config)
    settle(config.umask, config.chdir)
    if identity is not None:
        if os.geteuid() == 0:
            _own_logs(config, identity)
            _own_journal(config, identity)
        become(identity)
        die_with_parent()
        if not os.access(os.__file__, os.R_OK):
            library = Path(os.__file__).parent
            raise BootError(f"user {identity.name!r} cannot read the library of this Python, {library}")
        try:
            # A reload reads it as this user.
            loaded = load()
        except OperatorError as error:
            raise BootError(f"user {identity.name!r} cannot read the configuration:\n{error}") from error
    application = assemble(loaded)
    claim_descriptors(application.descriptors, application.config.limits.connections)
    _try_journal(application)
    return application


def _try_journal(application: Application) -> None:
    """See that calls can be put off, before any call has to be.

    Raises:
        BootError: The journal cannot be used.
    """
    try:
        application.check_journal()
    except JournalUnavailable as error:
        if _is_full(application.journal_path):
            # It passes, and calls come. Every worker that cannot put calls off says so in the log.
            return
        raise BootError(
            f"{error} (or say journal.file: off, and calls fail whose database is away)"
        ) from error


def _is_full(path: Path | None) -> bool:
    """Tell whether the disk of a file has no room for the little that it takes to open a journal."""
    if path is None:
        return False
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < _LEAST_ROOM_BYTES


def _identity(config: Config) -> Identity | None:
    return find(config.user, config.group) if config.user else None


def _own_logs(config: Config, identity: Identity) -> None:
    """Let the user whom we become write the logs, wherever only root may make them.

    Raises:
        BootError: Somebody else's file or folder is in the way.
    """
    for target in _log_paths(config):
        folder = Path(target).parent
        try:
            if not folder.exists():
                own_folder(folder, identity)
            own_file(Path(target), identity)
        except OSError as error:
            raise BootError(f"cannot write the log {target}: {error.strerror}") from error


def _own_journal(config: Config, identity: Identity) -> None:
    """Let the user whom we become write the journal, where only root may make its folder.

    Raises:
        BootError: Somebody else's folder is in the way.
    """
    path = config.journal.path
    if path is None or path.parent.exists():
        return
    try:
        own_folder(path.parent, identity)
    except OSError as error:
        raise BootError(f"cannot make the journal's folder {path.parent}: {error.strerror}") from error


def _log_paths(config: Config) -> list[str]:
    """The log files, each once."""
    targets = (config.log.file, config.log.access, config.slow.file)
    return [target for target in dict.fromkeys(targets) if target.startswith("/")]


class LauncherKeeper:
    """Keeps the launcher alive, if there are routes that need one."""

    def __init__(self, application: Application, log_file: str) -> None:
        """Prepare; nothing is started yet.

        Args:
            application: Says whether there are legacy scripts, and which.
            log_file: Where the launcher logs.
        """
        self._application = application
        self._log_file = log_file
        self._generation = 0
        self._started_s = -LAUNCHER_PAUSE_S
        self._pid = 0

    def begin(self, generation: int) -> None:
        """Start the first one."""
        self._generation = generation
        self.look_after()

    def look_after(self) -> None:
        """Start one in the place of one that died, but no more than one in a while."""
        if self._application.door is None or self._pid or not self._generation:
            return
        now_s = monotonic()
        if now_s - self._started_s < LAUNCHER_PAUSE_S:
            return
        self._started_s = now_s
        try:
            self._pid = self._application.start_launcher(self._log_file, self._generation)
        except OSError as error:
            logging.getLogger(LOGGER_NAME).error("cannot start the launcher of scripts: %s", error)

    def has_ended(self, pid: int) -> bool:
        """Hear that a process has ended; return whether it was the launcher."""
        if pid != self._pid:
            return False
        self._pid = 0
        logging.getLogger(LOGGER_NAME).error("the launcher of scripts died (pid %d): another is started", pid)
        return True

    def reopen_logs(self) -> None:
        """Tell it that the logs were rotated."""
        if self._pid:
            os.kill(self._pid, signal.SIGUSR1)


def describe(application: Application) -> Loaded:
    """Say what the master needs of an application."""
    config = application.config
    identity = _identity(config)
    http = config.http.address
    drains = (config.drain_timeout, *(route.drain_timeout_s for route in application.table.routes))
    return Loaded(
        limits={
            "workers": config.worker_count(len(os.sched_getaffinity(0))),
            "max_calls": config.max_calls,
            "max_calls_jitter": config.max_calls_jitter,
            "max_lifetime_s": config.max_lifetime,
            "max_memory_bytes": config.max_memory,
            "max_unavailable": config.max_unavailable,
            "max_draining": config.max_draining,
            "graceful_timeout_s": config.graceful_timeout,
            # The longest of all: a worker itself ends the calls of routes that get less.
            "drain_timeout_s": max(drains),
            "boot_timeout_s": config.boot_timeout,
            "boot_retries": config.boot_retries,
            "watchdog_s": config.watchdog,
        },
        listen=[asdict(_address(address)) for address in config.listen],
        restricted=bool(config.allow),
        backlog=config.backlog,
        runtime_dir=str(config.runtime_dir),
        pid_file=str(config.pid_file),
        log={
            "file": config.log.file,
            "level": config.log.level.value,
            "format": config.log.format.value,
            "facility": config.log.facility,
        },
        rotated=_log_paths(config),
        rotation={
            "daily": config.log.rotate.every is RotationPeriod.DAY,
            "size_bytes": config.log.rotate.size,
            "keep": config.log.rotate.keep,
        },
        observer={
            "host": http.host if http else "",
            "port": http.port if http else 0,
            "allow": [str(network) for network in config.http.allow],
        },
        identity=asdict(identity) if identity else {},
        umask=config.umask,
        chdir=config.chdir,
        quarantine={"crashes": config.quarantine.crashes, "for_s": config.quarantine.for_s},
    )


def _address(address: ListenAddress) -> Address:
    return Address(address.kind.value, address.host, address.port, address.path, str(address))


def claim_descriptors(needed: int, useful: int = 0) -> None:
    """Raise this process's limit of file descriptors, and its children's, to what a worker may need.

    Args:
        needed: Without so many it cannot be.
        useful: So many besides are of use, as far as the machine allows them.

    Raises:
        BootError: The machine does not allow what is needed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed + useful
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        return
    if hard < needed:
        raise BootError(
            f"a worker may need {needed} file descriptors, but only {hard} are allowed: "
            "lower calls_per_worker, or raise the limit (ulimit -n, LimitNOFILE= in systemd)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _surroundings(config: Config, inheritance: Inheritance) -> Surroundings:
    try:
        files = {target: _log_file(target, config) for target in _targets(config)}
    except OSError as error:
        raise BootError(f"cannot write the log {error.filename}: {error.strerror}") from error
    main = files[config.log.file]
    access = main if config.log.access == "-" else files.get(config.log.access)
    slow = main if config.slow.file == "-" else files.get(config.slow.file)
    return Surroundings(main, access, slow, inheritance)


def _targets(config: Config) -> list[str]:
    """Where lines go besides the log itself, each once."""
    own = (config.log.access, config.slow.file)
    return [config.log.file, *(target for target in own if target not in ("-", "off", config.log.file))]


def _log_file(target: str, config: Config) -> LogFile:
    ensure_folder(target)
    return LogFile(target, config.log.facility)
