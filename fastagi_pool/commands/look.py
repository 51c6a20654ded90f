"""Looking: the commands that show what a pool does. They disturb nobody.

Laws:
    * They read shared memory: an answer comes when every worker is stuck, and when the pool has died.
    * Exit codes are those of the LSB: 3 if nothing runs, 4 if it cannot be told or is not permitted.
    * What is meant for people goes through :mod:`fastagi_pool.display`; ``--json`` has it whole.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial, wraps
from itertools import islice
from pathlib import Path
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias, TypeVar, cast

import click

from fastagi_pool.control import SOCKET_NAME, ControlError, ask
from fastagi_pool.display import (
    CallFilter,
    Moment,
    Table,
    TraceText,
    calls_table,
    count,
    databases_table,
    routes_table,
    shown,
    standing,
    status_lines,
    workers_table,
)
from fastagi_pool.errors import OperatorError
from fastagi_pool.lifecycle import LifeState, find
from fastagi_pool.source import EXIT_INPUT, EXIT_NOT_RUNNING, Source, with_source
from fastagi_pool.status import read_pool_calls, read_status

if TYPE_CHECKING:
    from fastagi_pool.recording import Order

#: It cannot be told, or not to this user.
EXIT_UNKNOWN: Final = int(LifeState.UNKNOWN)
#: How long a worker, or the status process on behalf of all, has to answer.
_STACKS_TIMEOUT_S: Final = 10.0
#: How many of the oldest calls ``top`` shows at most.
_SLOWEST: Final = 50
_LETTERS: Final[Mapping[str, str]] = {"asterisk": "A", "script": "W", "database": "D", "queued": "Q"}

_Command = TypeVar("_Command", bound=Callable[..., object])
_Option: TypeAlias = Callable[[_Command], _Command]


def _as_seconds(context: click.Context, parameter: click.Parameter, value: object) -> float:
    """Read a length of time on the command line, as ``30s``; a default is one already."""
    if isinstance(value, float):
        return value
    # Loads pydantic: only who gives a time waits for it.
    from fastagi_pool.values import parse_duration

    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def _time_option(name: str, parameter: str, default_s: float, shown_default: str, text: str) -> _Option[Any]:
    """Make an option that takes a length of time."""
    return click.option(
        name,
        parameter,
        default=default_s,
        show_default=shown_default,
        metavar="TIME",
        type=click.UNPROCESSED,
        callback=_as_seconds,
        help=text,
    )


def with_runtime_dir(command: _Command, *, refused: int = EXIT_INPUT) -> _Command:
    """Give a command the options that say which pool is meant, as its ``runtime_dir``.

    Args:
        command: The command.
        refused: What it exits with when the configuration cannot be read.
    """

    @with_source
    @click.option(
        "--runtime-dir",
        "folder",
        metavar="FOLDER",
        type=click.Path(path_type=Path),
        help="Look into this runtime folder, and read no configuration.",
    )
    @wraps(command)
    def with_runtime_dir(source: Source, folder: Path | None, **others: object) -> object:
        try:
            runtime_dir = folder or Path(source.load().config.runtime_dir)
        except OperatorError as error:
            _fail(f"{error}\nA pool that runs all the same is found by --runtime-dir.", refused)
        return command(runtime_dir=runtime_dir, **others)

    return cast(_Command, with_runtime_dir)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


# --- status


@click.command()
@partial(with_runtime_dir, refused=EXIT_UNKNOWN)
@_json_option
def status(runtime_dir: Path, as_json: bool) -> None:
    """Show how the pool fares: what is wrong first, then its workers.

    Exit code 0 if it runs, 1 if its master died, 3 if it does not run, 4 if that cannot be told.
    """
    try:
        life = find(runtime_dir)
    except OSError as error:
        _fail(f"cannot look into {runtime_dir}: {error.strerror}", EXIT_UNKNOWN)
    if life.state is LifeState.UNKNOWN:
        _refuse(runtime_dir)
    try:
        picture = _picture(runtime_dir)
    except FileNotFoundError:
        if life.state is LifeState.RUNNING:
            click.echo(f"master {life.pid} is starting: it has not told anything yet")
        else:
            click.echo(f"not running: no pool has left anything in {runtime_dir}", err=True)
        sys.exit(life.state)
    picture["running"] = life.state is LifeState.RUNNING
    _show(status_lines(picture), picture, as_json)
    sys.exit(life.state)


# --- calls, workers, routes, db


@click.command()
@with_runtime_dir
@_json_option
@click.option("--route", default="", metavar="GLOB", help="Only calls of these routes.")
@click.option("--callerid", default="", metavar="GLOB", help="Only calls from these numbers.")
@click.option("--uniqueid", default="", metavar="GLOB", help="Only calls with these unique ids.")
@click.option("--state", type=click.Choice(tuple(_LETTERS)), help="Only calls that are there now.")
@_time_option("--older", "older_s", 0.0, "0s", "Only calls of at least this age.")
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(0), help="Show so many; 0 for all."
)
def calls(
    runtime_dir: Path,
    as_json: bool,
    route: str,
    callerid: str,
    uniqueid: str,
    state: str | None,
    older_s: float,
    limit: int,
) -> None:
    """Show the calls in progress, the oldest first: who, for how long, doing what."""
    picture = _living_picture(runtime_dir)
    wanted = CallFilter(route, callerid, uniqueid, _LETTERS.get(state or "", ""), older_s)
    if wanted == CallFilter() and limit:
        # To read the oldest of thousands is cheaper than to read all.
        seen = _calls(runtime_dir, limit)
        in_all = max(len(seen), picture["active"] + picture["queued"])
    else:
        found = [call for call in _calls(runtime_dir) if wanted.fits(call)]
        seen, in_all = found[: limit or None], len(found)
    lines = calls_table(seen).lines() if seen else ["no calls"]
    if len(seen) < in_all:
        lines.append(f"... and {count(in_all - len(seen), 'more call')}: --limit 0 shows all")
    _show(lines, {"calls": seen, "in_all": in_all}, as_json)


@click.command()
@with_runtime_dir
@_json_option
def workers(runtime_dir: Path, as_json: bool) -> None:
    """Show the workers."""
    _show_part(runtime_dir, "workers", workers_table, as_json)


@click.command("db")
@with_runtime_dir
@_json_option
def databases(runtime_dir: Path, as_json: bool) -> None:
    """Show the databases: connections, statements, and what is away."""
    _show_part(runtime_dir, "databases", databases_table, as_json)


def show_route_figures(runtime_dir: Path, as_json: bool) -> None:
    """Show what each route has done: what ``routes --live`` runs.

    Args:
        runtime_dir: Of the pool.
        as_json: Whether to print JSON.
    """
    _show_part(runtime_dir, "routes", routes_table, as_json)


def _show_part(
    runtime_dir: Path, key: str, tabulate: Callable[[Mapping[str, Any]], Table], as_json: bool
) -> None:
    picture = _living_picture(runtime_dir)
    lines = tabulate(picture).lines() if picture[key] else [f"no {key}"]
    _show(lines, {key: picture[key]}, as_json)


# --- top


@click.command()
@with_runtime_dir
@_time_option("--interval", "interval_s", 1.0, "1s", "How often.")
@click.option("--once", is_flag=True, help="Show one interval, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
def top(runtime_dir: Path, interval_s: float, once: bool, as_json: bool) -> None:
    """Watch the pool live: calls a second, by route, by Asterisk server, and the slowest calls.

    Ends at q or Ctrl-C. Where the output is no terminal, one picture follows the other.
    """
    if interval_s <= 0:
        raise click.UsageError("--interval must be more than 0")
    try:
        if once or as_json or not sys.stdout.isatty():
            for moment in islice(_moments(runtime_dir, interval_s, _let_pass), 1 if once else None):
                click.echo(json.dumps(moment.as_json()) if as_json else "\n".join([*moment.lines(), ""]))
        else:
            _watch(runtime_dir, interval_s)
    except KeyboardInterrupt:
        pass


def _moments(runtime_dir: Path, interval_s: float, is_over: Callable[[float], bool]) -> Iterator[Moment]:
    """Yield what happened in each interval; it ends when the waiting says that it is enough."""
    before_s, before = monotonic(), _living_picture(runtime_dir)
    while not is_over(interval_s):
        now_s, now = monotonic(), _living_picture(runtime_dir)
        yield Moment.between(before, now, now_s - before_s, _calls(runtime_dir, _SLOWEST))
        before_s, before = now_s, now


def _watch(runtime_dir: Path, interval_s: float) -> None:
    # Not imported at the top: a loader would pass 10 MB of it on to every worker.
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with _keys() as is_over, Live(console=console, screen=True, auto_refresh=False) as live:
        live.update(Text(f"what happens within {interval_s:g} s is shown then; q ends"), refresh=True)
        for moment in _moments(runtime_dir, interval_s, is_over):
            text = "\n".join(moment.lines(console.height))
            live.update(Text(text, no_wrap=True, overflow="crop"), refresh=True)


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Give a way to wait for some seconds, or for the key q: then it returns True."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield _let_pass
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield partial(_is_over, descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _let_pass(seconds: float) -> bool:
    """Wait; it is never over."""
    sleep(seconds)
    return False


def _is_over(descriptor: int, seconds: float) -> bool:
    until_s = monotonic() + seconds
    while (left_s := until_s - monotonic()) > 0:
        if select.select([descriptor], [], [], left_s)[0] and os.read(descriptor, 1) in (b"q", b"Q", b""):
            return True
    return False


# --- dump


@click.command()
@with_runtime_dir
@click.argument("slot", type=click.IntRange(0), required=False)
def dump(runtime_dir: Path, slot: int | None) -> None:
    """Show the stacks of all greenlets of all workers, or of the worker SLOT; of blocked ones too.

    Exit code 1 if a worker did not answer, 3 if there is none.
    """
    answers = 0
    failed = False
    try:
        for who, text, fault in _stacks(runtime_dir, slot):
            answers += 1
            failed |= bool(fault)
            click.echo(f"=== {who}{': ' if fault else ''}{shown(fault)}")
            for line in text.splitlines():
                click.echo(shown(line))
    except PermissionError:
        _refuse(runtime_dir)
    if not answers:
        which = "no worker answers" if slot is None else f"there is no worker {slot}"
        _fail(f"not running: {which} in {runtime_dir}", EXIT_NOT_RUNNING)
    sys.exit(1 if failed else 0)


def _stacks(runtime_dir: Path, slot: int | None) -> Iterator[tuple[str, str, str]]:
    """Yield who answers, his stacks, and why there are none; by the status process, or else without it."""
    try:
        answers = list(ask(runtime_dir / SOCKET_NAME, {"verb": "dump", "slot": slot}, _STACKS_TIMEOUT_S))
    except ControlError:
        yield from _stacks_of_sockets(runtime_dir, slot)
        return
    if answers and not answers[-1]["ok"]:
        _fail(shown(answers[-1].get("error", "the status process refused to ask the workers")), EXIT_INPUT)
    # Whoever is not stuck answers first.
    for answer in sorted((each for each in answers if "slot" in each), key=lambda each: int(each["slot"])):
        who = f"worker {answer['slot']} (pid {answer['pid']})"
        yield who, answer.get("stacks") or "", answer.get("error") or ""


def _stacks_of_sockets(runtime_dir: Path, slot: int | None) -> Iterator[tuple[str, str, str]]:
    from fastagi_pool.stacks import FOLDER, ask_stacks

    folder = runtime_dir / FOLDER
    if not folder.is_dir():
        return
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    for number in numbers if slot is None else [slot] if slot in numbers else []:
        try:
            yield f"worker {number}", ask_stacks(folder / str(number), _STACKS_TIMEOUT_S), ""
        except PermissionError:
            raise
        except (FileNotFoundError, ConnectionRefusedError):
            continue  # It has ended.
        except OSError as error:
            yield f"worker {number}", "", f"does not answer: {error}"


# --- trace


@click.command()
@with_runtime_dir
@click.option("--route", default="", metavar="GLOB", help="Only calls of these routes.")
@click.option("--callerid", default="", metavar="GLOB", help="Only calls from these numbers.")
@click.option("--uniqueid", default="", metavar="GLOB", help="Only calls with these unique ids.")
@_time_option("--for", "period_s", 600.0, "10m", "Stop after so long.")
@click.option(
    "--calls", "most", default=10, show_default=True, type=click.IntRange(1), help="Follow so many calls."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
def trace(
    runtime_dir: Path,
    route: str,
    callerid: str,
    uniqueid: str,
    period_s: float,
    most: int,
    as_json: bool,
) -> None:
    """Follow calls live: every command and answer as it happens, with times and whose time it was.

    Calls in progress are followed too. It ends after --calls calls, after --for, or at Ctrl-C. What callers
    dial on a route with mask_digits is not shown.
    """
    from fastagi_pool.recording import FOLDER, Order, become_owner_of

    if not _picture_or_exit(runtime_dir)["running"]:
        _fail(f"not running: there is nothing to follow in {runtime_dir}", EXIT_NOT_RUNNING)
    order = Order(time() + period_s, route, callerid, uniqueid=uniqueid, live=True, calls=most)
    try:
        become_owner_of(runtime_dir)
        _trace(runtime_dir, runtime_dir / FOLDER, order, most, as_json)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        raise
    except PermissionError:
        _refuse(runtime_dir)
    except OSError as error:
        raise OperatorError(f"cannot follow calls: {error}") from None


def _trace(runtime_dir: Path, folder: Path, order: Order, most: int, as_json: bool) -> None:
    from fastagi_pool.recording import EventKind, TraceEvent, follow, place_order, withdraw_order

    placed = place_order(folder, f"trace-{os.getpid()}-{int(time())}", order)
    text = TraceText(several=most > 1)
    followed: set[str] = set()
    ended = 0
    try:
        for line in follow(placed, order.until_s):
            event = TraceEvent.from_json(line)
            if event.kind is EventKind.BEGIN and len(followed) < most:
                followed.add(event.ref)
            if event.ref not in followed:
                continue
            click.echo(line if as_json else "\n".join(text.lines(event)), nl=not as_json)
            if event.facts.get("joined") and not as_json:
                _show_standing(runtime_dir, event.ref)
            ended += event.kind is EventKind.END
            if ended >= most:
                return
    finally:
        withdraw_order(placed)


def _show_standing(runtime_dir: Path, ref: str) -> None:
    """Say what a call that was joined is doing: its next event may be far away."""
    for call in _calls(runtime_dir):
        if call["ref"] == ref:
            click.echo(f"   {standing(call)}")


# --- reading


def _picture(runtime_dir: Path) -> dict[str, Any]:
    """Read the pool's state; exits if it cannot be read.

    Raises:
        FileNotFoundError: There is none.
    """
    now_s = monotonic()
    try:
        return read_status(runtime_dir, now_s).as_json(now_s)
    except FileNotFoundError:
        raise
    except PermissionError:
        _refuse(runtime_dir)
    except (OSError, ValueError) as error:
        _fail(f"cannot read the state of the pool in {runtime_dir}: {error}", EXIT_UNKNOWN)


def _picture_or_exit(runtime_dir: Path) -> dict[str, Any]:
    try:
        picture = _picture(runtime_dir)
    except FileNotFoundError:
        _fail(f"not running: no pool has left anything in {runtime_dir}", EXIT_NOT_RUNNING)
    with suppress(OSError):
        # The board knows a number only, which may be a zombie's or somebody else's by now.
        life = find(runtime_dir).state
        picture["running"] &= life in (LifeState.RUNNING, LifeState.UNKNOWN)
    return picture


def _living_picture(runtime_dir: Path) -> dict[str, Any]:
    """Read the pool's state, and say so if it is its last word."""
    picture = _picture_or_exit(runtime_dir)
    if not picture["running"]:
        click.echo("the pool does not run: this is its last word", err=True)
    return picture


def _calls(runtime_dir: Path, most: int | None = None) -> list[dict[str, Any]]:
    """Read the calls in progress, the oldest first; exits if they cannot be read."""
    now_s = monotonic()
    try:
        return [call.as_json(now_s) for call in read_pool_calls(runtime_dir, now_s, most)]
    except PermissionError:
        _refuse(runtime_dir)
    except (OSError, ValueError) as error:
        _fail(f"cannot read the calls in {runtime_dir}: {error}", EXIT_UNKNOWN)


def _show(lines: list[str], content: Mapping[str, Any], as_json: bool) -> None:
    click.echo(json.dumps(content, indent=2) if as_json else "\n".join(lines))


def _refuse(runtime_dir: Path) -> NoReturn:
    _fail(f"not permitted: {runtime_dir} may be read by the pool's user and root only", EXIT_UNKNOWN)


def _fail(text: str, code: int) -> NoReturn:
    click.echo(text, err=True)
    sys.exit(code)


#: All of them, for the command line.
COMMANDS: Final[tuple[click.Command, ...]] = (status, top, calls, workers, databases, dump, trace)
