"""The command line: the composition root, where the parts meet and where the process ends.

Laws:
    * Only here is the environment read, and only here does anything exit.
    * Users see one line that says what to do, never a traceback.
    * The process that becomes the master imports neither gevent nor SQLAlchemy nor a handler; what
      needs them is imported inside the function that does.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import monotonic, time
from typing import IO, TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click

from fastagi_pool.commands import deferred, life, look, setup
from fastagi_pool.errors import OperatorError
from fastagi_pool.logs import LOGGER_NAME
from fastagi_pool.protocol import Request
from fastagi_pool.running import run_master
from fastagi_pool.source import EXIT_INPUT, EXIT_NOT_RUNNING, Source, SourceKind, with_source
from fastagi_pool.status import read_status
from fastagi_pool.testing import HANGUP, AgiStatus, Behaviour, Caller, CallResult, environment, play_call
from fastagi_pool.version import VERSION

if TYPE_CHECKING:
    from fastagi_pool.application import Application
    from fastagi_pool.recording import Order, Transcript
    from fastagi_pool.stage import Stage

DEFAULT_SERVER: Final = "127.0.0.1:4577"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="fastagi-pool")
def cli() -> None:
    """A pre-forking FastAGI server for Asterisk."""


for _command in (*look.COMMANDS, *life.COMMANDS, *deferred.COMMANDS, *setup.COMMANDS):
    cli.add_command(_command)


def main() -> None:
    """Run the command line and exit."""
    # What a part of it logs is for a server's log; a command says itself what its reader must know.
    logging.getLogger(LOGGER_NAME).addHandler(logging.NullHandler())
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except OperatorError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_INPUT)
    except BrokenPipeError:
        sys.exit(1)


# --- run


@cli.command()
@with_source
def run(source: Source) -> None:
    """Run the server in the foreground until a signal ends it.

    TERM and QUIT let calls in progress finish, INT ends them, HUP reloads configuration and code,
    USR1 reopens the logs, TTIN and TTOU change the number of workers by one.
    """

    def serving(addresses: list[str]) -> None:
        click.echo(f"fastagi-pool {VERSION} listens on {', '.join(addresses)}; Ctrl-C ends it.")
        if source.kind is SourceKind.DEMO:
            script = "hello" if addresses == [DEFAULT_SERVER] else f"agi://{addresses[0]}/hello"
            click.echo(f"Place a call from a second terminal:  fastagi-pool call {script}")
            click.echo(f"Watch it in a browser:                http://127.0.0.1:{_demo_http_port()}/")

    sys.exit(run_master(source, lambda text: click.echo(text, err=True), serving))


def _demo_http_port() -> str:
    return os.environ.get("DEMO_HTTP_PORT") or "4578"


# --- check and routes


@cli.command()
@with_source
@click.option("--print", "show", is_flag=True, help="Print the effective configuration, passwords masked.")
@click.option(
    "--db", "databases", is_flag=True, help="Connect to the databases and compare with their limits."
)
def check(source: Source, show: bool, databases: bool) -> None:
    """Check configuration, routes and handlers: exit code 0 if it can be run, 2 if not."""
    application = source.assemble()
    if show:
        from fastagi_pool.schema import effective

        click.echo(effective(application.config), nl=False)
    if databases and not _check_databases(application):
        sys.exit(EXIT_INPUT)
    if not show:
        if source.kind is SourceKind.ASTGUICLIENT:
            _print_mapping(Path(source.path))
        click.echo(f"{source}: good, {len(application.config.routes)} routes")


def _print_mapping(path: Path) -> None:
    from fastagi_pool.handlers.vicidial.astguiclient import mapping, read

    _print_table(("key", "value", "became"), mapping(read(path)))


def _check_databases(application: Application) -> bool:
    from fastagi_pool.database import Database, connection_report, server_limits
    from fastagi_pool.errors import DatabaseUnavailable

    workers = application.config.worker_count(len(os.sched_getaffinity(0)))
    good = True
    for settings in application.databases:
        database = Database(settings)
        try:
            database.open()
            report = connection_report(settings, server_limits(database.engine), workers)
        except DatabaseUnavailable as error:
            click.echo(str(error), err=True)
            good = False
            continue
        finally:
            database.close()
        for remark in report:
            kind = "" if remark.fatal else "warning: "
            click.echo(f"database {settings.name!r}: {kind}{remark.text}", err=True)
        if any(remark.fatal for remark in report):
            good = False
        else:
            click.echo(f"database {settings.name!r}: good")
    return good


@cli.group(invoke_without_command=True)
@with_source
@click.option("--live", is_flag=True, help="Show instead what each has done in the running pool.")
@click.option("--json", "as_json", is_flag=True, help="With --live: print JSON.")
@click.pass_context
def routes(context: click.Context, source: Source, live: bool, as_json: bool) -> None:
    """List the routes in the order in which they are tried."""
    context.obj = source
    if context.invoked_subcommand is not None:
        return
    if live:
        look.show_route_figures(Path(source.load().config.runtime_dir), as_json)
        return
    rows = []
    for route in context.obj.assemble().table.routes:
        conditions = ", ".join(" ".join(map(str, condition)) for condition in route.conditions)
        takes = f"{route.kind.value} {route.pattern}".strip()
        rows.append((route.name, takes, conditions, route.priority, route.handler))
    _print_table(("route", "takes", "and only if", "priority", "handler"), rows)


@routes.command()
@click.argument("url")
@click.argument("arguments", nargs=-1)
@click.option("--context", "dialplan_context", default="default", help="The dialplan context of the call.")
@click.pass_obj
def explain(source: Source, url: str, arguments: tuple[str, ...], dialplan_context: str) -> None:
    """Say which route serves agi://HOST/SCRIPT, and why the others do not. Exit code 1 if none does."""
    lines = environment(_full_url(url, "localhost"), arguments, Caller(context=dialplan_context))
    request = Request(dict(line.split(": ", 1) for line in lines.splitlines() if line), arguments)
    verdicts = source.assemble().table.explain(request)
    rows = []
    for verdict in verdicts:
        route = verdict.route
        takes = f"{route.kind.value} {route.pattern}".strip()
        rows.append(("->" if verdict.wins else "", route.name, takes, verdict.reason))
    _print_table(("", "route", "takes", "why"), rows)
    if not any(verdict.wins for verdict in verdicts):
        click.echo("No route takes this call: the dialplan would see AGISTATUS=FAILURE.", err=True)
        sys.exit(1)


# --- dialplan


@cli.command()
@click.argument("file", metavar="EXTENSIONS_FILE")
@click.option("--server", default=DEFAULT_SERVER, show_default=True, help="Where this server listens.")
@click.option(
    "--agi-dir",
    "agi_dirs",
    multiple=True,
    metavar="FOLDER",
    help="Where local scripts lie, Asterisk's astagidir first; may be repeated.  "
    "[default: /var/lib/asterisk/agi-bin]",
)
def dialplan(file: str, server: str, agi_dirs: tuple[str, ...]) -> None:
    """Print, as a patch, what changes in a dialplan that is to call its local AGI scripts here.

    Nothing is touched: apply it by 'patch EXTENSIONS_FILE DIFF'. What was left alone, and why, and the
    scripts that need a route are listed on standard error.
    """
    from fastagi_pool.dialplan import DEFAULT_AGI_DIR, as_diff, report, rewrite, unsupported_language

    language = unsupported_language(file)
    if language:
        raise OperatorError(f"{file}: {language} is not understood, only the syntax of extensions.conf")
    try:
        text = Path(file).read_bytes().decode(errors="surrogateescape")
        rewriting = rewrite(text, server, agi_dirs or (DEFAULT_AGI_DIR,))
    except OSError as error:
        raise OperatorError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(as_diff(rewriting, file).encode(errors="surrogateescape"), nl=False)
    for line in report(rewriting, file):
        click.echo(line, err=True)


# --- call


@cli.command()
@click.argument("url", required=False)
@click.argument("arguments", nargs=-1)
@click.option(
    "--server", default=DEFAULT_SERVER, show_default=True, help="Where the server is, if URL does not say."
)
@click.option("--callerid", default="100", show_default=True, help="The caller's number.")
@click.option("--name", default="Alice", show_default=True, help="The caller's name.")
@click.option(
    "--context", "dialplan_context", default="default", show_default=True, help="The dialplan context."
)
@click.option("--extension", default="100", show_default=True, help="The dialplan extension.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A channel variable; may be repeated."
)
@click.option(
    "--press",
    "presses",
    multiple=True,
    metavar="DIGITS",
    help="What the caller dials at the next prompt, or 'hangup'; may be repeated.",
)
@click.option("--timeout", "timeout_s", default=30.0, show_default=True, help="Longest silence in seconds.")
@click.option(
    "--scenario", metavar="FILE", help="Place the calls of a YAML file and compare, instead of one."
)
def call(
    url: str | None,
    arguments: tuple[str, ...],
    server: str,
    callerid: str,
    name: str,
    dialplan_context: str,
    extension: str,
    settings: tuple[str, ...],
    presses: tuple[str, ...],
    timeout_s: float,
    scenario: str | None,
) -> None:
    """Play Asterisk: place a call to a running server and print the dialogue.

    URL is agi://HOST:PORT/SCRIPT, or the script alone. The exit code is 0 if the dialplan would see
    AGISTATUS=SUCCESS, 1 for anything else, 3 if there is no server. With --scenario it is 0 if every call
    went as expected, else 1.
    """
    if scenario is not None:
        _play_scenario(Path(scenario), server, timeout_s)
        return
    if url is None:
        raise click.UsageError("Missing argument 'URL'; or give a --scenario.")
    behaviour = Behaviour(
        presses=[HANGUP if press == "hangup" else press for press in presses],
        variables=dict(_name_and_value(setting) for setting in settings),
    )
    caller = Caller(callerid, name, dialplan_context, extension)
    result = _place(_full_url(url, server), arguments, caller, behaviour, timeout_s)
    sys.exit(0 if result.status is AgiStatus.SUCCESS else 1)


def _place(
    url: str, arguments: Sequence[str], caller: Caller, behaviour: Behaviour, timeout_s: float
) -> CallResult:
    """Place one call and print all of it; exits if there is no server."""

    def show(who: str, line: str) -> None:
        click.echo(f"{'<-' if who == 'S' else '->'} {_printable(line)}")

    result = play_call(url, arguments, caller, behaviour, timeout_s, show)
    if not result.connected:
        click.echo(f"{url}: {result.reason}. Is the server running?", err=True)
        sys.exit(EXIT_NOT_RUNNING)
    for variable, value in sorted(result.variables.items()):
        click.echo(f"   {variable}={_printable(value)}")
    for fault in result.faults:
        click.echo(f"   harmful: {fault}", err=True)
    reason = f" ({result.reason})" if result.reason else ""
    click.echo(f"   AGISTATUS={result.status.value}{reason}")
    return result


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _play_scenario(path: Path, server: str, timeout_s: float) -> None:
    from fastagi_pool.scenario import load_scenarios

    failed = 0
    calls = load_scenarios(path, os.environ)
    for each in calls:
        click.echo(f"== {each.title}")
        url = _full_url(each.url, server)
        result = _place(url, each.arguments, each.who, each.behaviour, timeout_s)
        found = list(each.differences(result.status, result.variables, result.commands, result.hung_up))
        found += [f"harmful to Asterisk: {fault}" for fault in result.faults]
        for difference in found:
            click.echo(f"!! {difference}", err=True)
        failed += bool(found)
    click.echo(f"{len(calls) - failed} of {len(calls)} calls went as expected")
    sys.exit(1 if failed else 0)


def _name_and_value(setting: str) -> tuple[str, str]:
    name, equals, value = setting.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--set wants NAME=VALUE, not {setting!r}")
    return name, value


def _full_url(url: str, server: str) -> str:
    full = url if "://" in url else f"agi://{server}/{url.lstrip('/')}"
    try:
        parts = urlsplit(full)
        usable = parts.scheme.lower() == "agi" and parts.hostname and (parts.port or True)
    except ValueError:
        usable = False
    if not usable:
        raise click.UsageError(f"{full!r} is not a URL like agi://127.0.0.1:4577/script")
    return full


# --- record and replay


@cli.command()
@with_source
@click.option("--route", default="", metavar="GLOB", help="Only calls of these routes.")
@click.option("--callerid", default="", metavar="GLOB", help="Only calls from these numbers.")
@click.option("--uniqueid", default="", metavar="GLOB", help="Only calls with these unique ids.")
@click.option("--one-in", default=1, metavar="N", type=click.IntRange(1), help="One call in N of those.")
@click.option(
    "--calls", "most", default=100, show_default=True, type=click.IntRange(1), help="Stop after so many."
)
@click.option("--for", "period", default="10m", show_default=True, metavar="TIME", help="Stop after so long.")
@click.option("-o", "--output", default="-", metavar="FILE", help="Where to; standard output if missing.")
def record(
    source: Source,
    route: str,
    callerid: str,
    uniqueid: str,
    one_in: int,
    most: int,
    period: str,
    output: str,
) -> None:
    """Record the dialogues of calls in a running pool, one JSON object a line.

    Ends after --calls calls, after --for, or at Ctrl-C. What callers dial on a route with mask_digits is
    not recorded. Exit code 3 if the pool is not running.
    """
    from fastagi_pool.recording import FOLDER, Order, become_owner_of
    from fastagi_pool.values import parse_duration

    try:
        period_s = parse_duration(period)
    except ValueError as error:
        raise click.UsageError(f"--for {error}") from None
    runtime_dir = Path(source.load().config.runtime_dir)
    try:
        running = read_status(runtime_dir, monotonic()).running
    except (OSError, ValueError):
        running = False
    if not running:
        click.echo(f"not running: no scoreboard of a living pool in {runtime_dir}", err=True)
        sys.exit(EXIT_NOT_RUNNING)
    try:
        with click.open_file(output, "w") as file:
            become_owner_of(runtime_dir)
            order = Order(time() + period_s, route, callerid, one_in, uniqueid=uniqueid)
            _record(runtime_dir / FOLDER, order, most, file)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OperatorError(f"cannot record: {error}") from None


def _record(folder: Path, order: Order, most: int, file: IO[str]) -> None:
    from fastagi_pool.recording import follow, place_order, withdraw_order

    placed = place_order(folder, f"{os.getpid()}-{int(time())}", order)
    recorded = 0
    try:
        for line in follow(placed, order.until_s):
            file.write(line)
            file.flush()
            recorded += 1
            if recorded >= most:
                break
    except KeyboardInterrupt:
        pass
    finally:
        withdraw_order(placed)
        click.echo(f"{recorded} calls recorded", err=True)


@cli.command()
@with_source
@click.argument("file", type=click.Path())
@click.option("--call", "ref", default="", metavar="REF", help="Only the call with this reference.")
def replay(source: Source, file: str, ref: str) -> None:
    """Play recorded calls to the handlers of a configuration, and show where their commands differ.

    Handlers run for real, databases included. Exit code 0 if nothing differs, 1 if something does.
    """
    application = source.assemble()
    from fastagi_pool.errors import DatabaseUnavailable
    from fastagi_pool.recording import read_transcripts

    try:
        with click.open_file(file, encoding="utf-8") as lines:
            found = (each for each in read_transcripts(lines) if not ref or each.ref == ref)
            played, differing = _replay(application, found)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{file}: {error}") from None
    except DatabaseUnavailable as error:
        raise OperatorError(str(error)) from None
    if ref and not played:
        raise click.UsageError(f"{file}: there is no call {ref!r}")
    click.echo(f"{played - differing} of {played} calls went as recorded")
    sys.exit(1 if differing else 0)


def _replay(application: Application, transcripts: Iterable[Transcript]) -> tuple[int, int]:
    """Play calls and show how each went; return how many there were, and how many differ."""
    from fastagi_pool.stage import Stage

    played = differing = 0
    with Stage() as stage:
        for transcript in transcripts:
            found = _differences(stage, application, transcript)
            click.echo(f"{'!!' if found else 'ok'} call={transcript.ref} route={transcript.route}")
            for line in found:
                click.echo(f"   {_printable(line)}")
            played += 1
            differing += bool(found)
    return played, differing


def _differences(stage: Stage, application: Application, transcript: Transcript) -> list[str]:
    try:
        return stage.replay(application, transcript)[1]
    except TimeoutError as error:
        return [str(error)]


def _print_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    # Not imported at the top: a loader would pass 10 MB of it on to every worker.
    from rich.console import Console
    from rich.table import Table

    table = Table(*heads, box=None, header_style="bold")
    for row in rows:
        table.add_row(*map(str, row))
    # Tables are read by people and by grep: never cut a column.
    Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
