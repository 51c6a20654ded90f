"""Life: the commands that start, stop and change a pool in the background, with the LSB's exit codes.

Laws:
    * A pool that runs is found by its runtime folder alone: a configuration that somebody has broken since
      cannot keep it from being stopped.
    * What would be refused is found before anything is stopped.
    * Nothing is killed unless that was asked for in so many words.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, Signals
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar, cast

import click

from fastagi_pool import daemon
from fastagi_pool.control import SOCKET_NAME, ControlError, NobodyAnswers, Verb, ask
from fastagi_pool.errors import BootError, OperatorError
from fastagi_pool.lifecycle import (
    ActionCode,
    LifeState,
    LivingMaster,
    descendants,
    find,
    forget_the_dead,
    reach,
    what_is_left,
)
from fastagi_pool.pool import ExitCode
from fastagi_pool.respawn import interpreter_words
from fastagi_pool.running import run_master
from fastagi_pool.source import Source, SourceKind, with_source
from fastagi_pool.status import read_status
from fastagi_pool.version import VERSION

if TYPE_CHECKING:
    from fastagi_pool.config import Config

#: Where a pool keeps what others look at, unless its configuration says otherwise.
DEFAULT_RUNTIME_DIR: Final = "/run/fastagi-pool"
#: What the master needs besides ``graceful_timeout``: for last words, and to see that all have ended.
STOP_MARGIN_S: Final = 15.0
#: Where the configuration cannot be read.
_STOP_TIMEOUT_S: Final = 60.0
_START_TIMEOUT: Final = "90s"
_FOLLOW_TIMEOUT: Final = "10m"
_LOOK_S: Final = 1.0
#: The status process is there some moments after the first worker, and away for some when it is replaced.
_PATIENCE_S: Final = 15.0
_RETRY_S: Final = 0.1
#: A file that cannot be used as a whole still says where the pool is.
_RUNTIME_DIR_LINE: Final = re.compile(
    r"""^runtime_dir:[ \t]*(["']?)(/[^"'#$\s]+)\1[ \t]*(?:#.*)?$""", re.MULTILINE
)

_Command = TypeVar("_Command", bound=Callable[..., object])


# --- which pool


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where the pool is that a command is meant for.

    Attributes:
        source: Its configuration.
        given: Its runtime folder, if the command line says it; then the configuration is not read.
    """

    source: Source
    given: str | None

    @property
    def runtime_dir(self) -> Path:
        """The runtime folder: as given, as configured, or as a configuration that is broken still says."""
        if self.given is not None:
            return Path(self.given)
        try:
            return Path(self.source.load().config.runtime_dir)
        except OperatorError as error:
            folder = _runtime_dir_in(self.source)
            click.echo(f"{error}\nthe configuration cannot be used; looking in {folder}", err=True)
            return Path(folder)

    def patience_s(self) -> float:
        """How long a stop may last, in seconds."""
        try:
            return self.source.load().config.graceful_timeout + STOP_MARGIN_S
        except OperatorError:
            return _STOP_TIMEOUT_S


def _runtime_dir_in(source: Source) -> str:
    try:
        text = Path(source.path).read_text(errors="replace") if source.kind is SourceKind.YAML else ""
    except OSError:
        text = ""
    found = _RUNTIME_DIR_LINE.search(text)
    return found[2] if found else DEFAULT_RUNTIME_DIR


def _with_whereabouts(command: _Command) -> _Command:
    """Give a command the options that say which pool is meant, as its ``whereabouts``."""

    @with_source
    @click.option(
        "--runtime-dir", "given", metavar="FOLDER", help="Its runtime_dir; the configuration is not read."
    )
    @wraps(command)
    def with_whereabouts(source: Source, given: str | None, **others: object) -> object:
        return command(whereabouts=Whereabouts(source, given), **others)

    return cast(_Command, with_whereabouts)


def _seconds(option: str, text: str) -> float:
    from fastagi_pool.values import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.UsageError(f"{option} {error}") from None


@contextmanager
def _told_to_users() -> Iterator[None]:
    """Turn what goes wrong on the way into a line and an exit code."""
    try:
        yield
    except PermissionError as error:
        text = str(error)
        reason = text if text.startswith("not permitted") else f"not permitted: {text}"
        _end(ActionCode.NOT_PERMITTED, reason)
    except (ControlError, BootError) as error:
        _end(ActionCode.FAILED, str(error))
    except OSError as error:
        _end(ActionCode.FAILED, f"the machine refuses: {error}")


def _end(code: ActionCode, text: str = "") -> NoReturn:
    """Say a last word and exit."""
    if text:
        click.echo(text, err=code is not ActionCode.OK)
    sys.exit(code)


def _calls_left(runtime_dir: Path) -> int:
    """Count the calls in progress; 0 if nobody can tell."""
    try:
        return sum(worker.active for worker in read_status(runtime_dir, monotonic()).workers)
    except (OSError, ValueError):
        return 0


# --- start


@click.command()
@with_source
@click.option(
    "--timeout",
    default=_START_TIMEOUT,
    show_default=True,
    metavar="TIME",
    help="How long to wait until it serves.",
)
def start(source: Source, timeout: str) -> None:
    """Start the server in the background, and wait until it serves.

    Exit code 0 if it serves, also if it did before; 6 if the configuration is refused, 1 if the machine
    does not give what it needs; the reason is printed.
    """
    with _told_to_users():
        _start(source, _seconds("--timeout", timeout))


def _start(source: Source, timeout_s: float) -> None:
    """Start the server, say how it went, and exit."""
    config = _usable_for_a_daemon(source)
    life = find(Path(config.runtime_dir))
    if life.state is LifeState.UNKNOWN:
        raise PermissionError(f"not permitted: {config.runtime_dir} is another user's")
    if life.state is LifeState.RUNNING:
        _end(ActionCode.OK, f"fastagi-pool is running already (pid {life.pid})")
    words = (*_program(), "daemon", *_options(source))
    result = daemon.start(words, dict(os.environ), timeout_s)
    match result.beginning:
        case daemon.Beginning.SERVING:
            where = ", ".join(result.addresses)
            _end(ActionCode.OK, f"fastagi-pool {VERSION} runs (pid {result.pid}) and listens on {where}")
        case daemon.Beginning.LATE:
            _end(
                ActionCode.FAILED,
                f"fastagi-pool does not serve after {timeout_s:g} s, and goes on trying (pid {result.pid}); "
                f"see {config.log.file}, or end it with 'fastagi-pool stop'",
            )
        case daemon.Beginning.ENDED:
            refused = result.code == ExitCode.CONFIG
            reason = result.report or f"fastagi-pool ended before it served; see {config.log.file}"
            _end(ActionCode.NOT_CONFIGURED if refused else ActionCode.FAILED, reason)


def _usable_for_a_daemon(source: Source) -> Config:
    """Load the configuration; exits if no daemon can run with it."""
    try:
        config = source.load().config
    except OperatorError as error:
        _end(ActionCode.NOT_CONFIGURED, str(error))
    if config.log.file == "-":
        _end(
            ActionCode.NOT_CONFIGURED,
            f"{source}: log.file is '-', and a server in the background has no standard error: "
            "give log.file an absolute path, or 'syslog'",
        )
    return config


def _program() -> tuple[str, ...]:
    """Return how this program is started, wherever from."""
    return interpreter_words("fastagi_pool.cli")


def _options(source: Source) -> tuple[str, ...]:
    """Return the options that name a source, wherever the reader works."""
    match source.kind:
        case SourceKind.YAML:
            return "--config", source.absolute().path
        case SourceKind.DEMO:
            return ("--demo",)
        case SourceKind.ASTGUICLIENT:
            return "--astguiclient", source.absolute().path


@click.command("daemon", hidden=True)
@with_source
def be_daemon(source: Source) -> None:
    """Be the server that 'start' waits for."""
    mouth = daemon.Mouth.inherited(os.environ)
    sys.exit(mouth.live(lambda report, serving: run_master(source, report, serving)))


@click.command("keep-alive")
@with_source
@click.option(
    "--timeout",
    default=_START_TIMEOUT,
    show_default=True,
    metavar="TIME",
    help="How long to wait until it serves.",
)
def keep_alive(source: Source, timeout: str) -> None:
    """Start the server again if it died; never if it was stopped. For cron, once a minute.

    Says nothing if there is nothing to do. Exit codes as of 'start'.
    """
    with _told_to_users():
        life = find(Whereabouts(source, None).runtime_dir)
        if life.state is not LifeState.DEAD:
            sys.exit(ActionCode.OK)
        died = f"its master (pid {life.pid}) has" if life.pid else "its master has"
        click.echo(f"fastagi-pool has died: {died} left its pid file; starting it")
        _start(source, _seconds("--timeout", timeout))


# --- stop and restart


_timeout_of_stop: Final = click.option(
    "--timeout", metavar="TIME", help="How long to wait for the end.  [default: graceful_timeout and 15s]"
)


@click.command()
@_with_whereabouts
@click.option("--wait", is_flag=True, help="Come back only when it has ended; say how many calls are left.")
@click.option("--now", is_flag=True, help="End calls in progress, as failures.")
@click.option("--kill", is_flag=True, help="With --wait: kill what still runs after the time-out.")
@_timeout_of_stop
def stop(whereabouts: Whereabouts, wait: bool, now: bool, kill: bool, timeout: str | None) -> None:
    """Stop the server: nobody new gets in, and calls in progress may finish.

    Exit code 0 if it stops, or has ended with --wait, also if it did not run; 1 if it still runs after the
    time-out.
    """
    if kill and not wait:
        raise click.UsageError("--kill needs --wait")
    with _told_to_users():
        timeout_s = _seconds("--timeout", timeout) if timeout else None
        _stop(whereabouts, whereabouts.runtime_dir, SIGINT if now else SIGTERM, wait, kill, timeout_s)


def _stop(
    whereabouts: Whereabouts,
    runtime_dir: Path,
    number: Signals,
    wait: bool,
    kill: bool,
    timeout_s: float | None,
) -> None:
    """Stop the server; exits if it does not end."""
    master = reach(runtime_dir)
    if master is None:
        if find(runtime_dir).state is LifeState.DEAD:
            forget_the_dead(runtime_dir)
        click.echo("fastagi-pool does not run")
        return
    with master:
        master.send(number)
        if not wait:
            left = _calls_left(runtime_dir)
            click.echo(f"fastagi-pool (pid {master.pid}) stops; {left} calls are in progress")
            return
        patience_s = whereabouts.patience_s() if timeout_s is None else timeout_s
        if _await_end(master, runtime_dir, patience_s):
            click.echo("fastagi-pool has stopped")
        elif kill:
            killed = master.kill_all()
            master.await_end(_LOOK_S)
            forget_the_dead(runtime_dir)
            click.echo(f"fastagi-pool was killed: {len(killed)} processes")
        else:
            _report_remainder(master, runtime_dir, patience_s)


def _await_end(master: LivingMaster, runtime_dir: Path, timeout_s: float) -> bool:
    """Wait for the end, and say what it waits for; False if the time is over."""
    until_s = monotonic() + timeout_s
    said = -1
    while True:
        left = _calls_left(runtime_dir)
        if left and left != said:
            click.echo(f"{left} calls left")
            said = left
        if master.await_end(min(_LOOK_S, until_s - monotonic())):
            return True
        if monotonic() >= until_s:
            return False


def _report_remainder(master: LivingMaster, runtime_dir: Path, waited_s: float) -> None:
    lines = [
        f"fastagi-pool (pid {master.pid}) still runs after {waited_s:g} s, "
        f"with {_calls_left(runtime_dir)} calls; 'stop --now' ends them, 'stop --wait --kill' ends all:",
        *(f"  {line}" for line in what_is_left((master.pid, *descendants(master.pid)))),
    ]
    _end(ActionCode.FAILED, "\n".join(lines))


@click.command()
@with_source
@click.option("--if-running", is_flag=True, help="Do nothing if it does not run.")
@click.option("--now", is_flag=True, help="End calls in progress, as failures.")
@_timeout_of_stop
def restart(source: Source, if_running: bool, now: bool, timeout: str | None) -> None:
    """Stop the server, wait for its end, and start it.

    The configuration is checked first: if it is refused, exit code 6, and nothing was stopped.
    """
    with _told_to_users():
        runtime_dir = Path(_usable_for_a_daemon(source).runtime_dir)
        timeout_s = _seconds("--timeout", timeout) if timeout else None
        if if_running and find(runtime_dir).state in (LifeState.STOPPED, LifeState.DEAD):
            _end(ActionCode.OK, "fastagi-pool does not run")
        checked = subprocess.run((*_program(), "check", *_options(source)), capture_output=True, text=True)
        if checked.returncode:
            _end(
                ActionCode.NOT_CONFIGURED, f"{(checked.stderr + checked.stdout).strip()}\nnothing was stopped"
            )
        _stop(Whereabouts(source, None), runtime_dir, SIGINT if now else SIGTERM, True, False, timeout_s)
        _start(source, _seconds("--timeout", _START_TIMEOUT))


# --- changes while it runs


def _change_command(verb: Verb, number: Signals, help_text: str) -> click.Command:
    """Make a command that asks the master for a change, and follows it if it is told to."""

    @click.command(verb.value, help=help_text)
    @_with_whereabouts
    @click.option("--wait", is_flag=True, help="Come back when it is done, or was refused: exit code 1.")
    @click.option(
        "--timeout",
        default=_FOLLOW_TIMEOUT,
        show_default=True,
        metavar="TIME",
        help="With --wait: the longest time without any news.",
    )
    def change(whereabouts: Whereabouts, wait: bool, timeout: str) -> None:
        with _told_to_users():
            if wait:
                _follow(whereabouts.runtime_dir, verb, _seconds("--timeout", timeout))
            else:
                _signal(whereabouts.runtime_dir, number)

    return change


def _signal(runtime_dir: Path, number: Signals) -> None:
    """Send the master a signal and exit."""
    master = reach(runtime_dir)
    if master is not None:
        with master:
            if master.send(number):
                sys.exit(ActionCode.OK)
    _end(ActionCode.NOT_RUNNING, "fastagi-pool does not run")


def _follow(runtime_dir: Path, verb: Verb, timeout_s: float) -> None:
    """Ask for a change, show how far it is, and exit as it went."""
    if find(runtime_dir).state in (LifeState.STOPPED, LifeState.DEAD):
        _end(ActionCode.NOT_RUNNING, "fastagi-pool does not run")
    answer: dict[str, object] = {}
    for answer in _answers(runtime_dir, verb, timeout_s):
        if answer.get("text"):
            click.echo(answer["text"])
    _end(
        ActionCode.OK if answer.get("ok") else ActionCode.FAILED,
        "" if answer.get("ok") else f"{verb.value} refused, nothing changes: {answer.get('error', '')}",
    )


def _answers(runtime_dir: Path, verb: Verb, timeout_s: float) -> Iterator[dict[str, object]]:
    """Ask for a change, if need be again while the status process starts or is followed by another."""
    patient_until_s = monotonic() + min(timeout_s, _PATIENCE_S)
    while True:
        try:
            yield from ask(runtime_dir / SOCKET_NAME, {"verb": verb.value, "wait": True}, timeout_s)
            return
        except NobodyAnswers:
            if monotonic() >= patient_until_s or find(runtime_dir).state is not LifeState.RUNNING:
                raise
            sleep(_RETRY_S)


reload = _change_command(
    Verb.RELOAD,
    SIGHUP,
    """Load configuration and code anew, and replace the workers one by one; no call is lost.

    If anything is broken, nothing changes; the log says why, and with --wait this command does. Exit code 7
    if the server does not run.
    """,
)
upgrade = _change_command(
    Verb.UPGRADE,
    SIGUSR2,
    """Let the running server become the newly installed program: same process, same ports, no call is lost.

    If the new program cannot go on with what the old one has, nothing changes. Exit code 7 if the server does
    not run.
    """,
)


@click.command()
@_with_whereabouts
def reopen(whereabouts: Whereabouts) -> None:
    """Open the logs anew, after they were put aside. Exit code 7 if the server does not run."""
    with _told_to_users():
        _signal(whereabouts.runtime_dir, SIGUSR1)


#: What the command line has of this.
COMMANDS: Final = (start, stop, restart, reload, upgrade, reopen, keep_alive, be_daemon)
