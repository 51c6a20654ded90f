"""Deferred: the commands that show calls which wait for their database, and what became of the others.

Laws:
    * They work on the journal's file: whether the pool runs or not makes no difference.
    * What changes the journal says how many calls it changed; nothing is thrown away unless that was
      confirmed.
    * What came from outside reaches no terminal raw; ``--json`` and ``export`` have it whole.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from functools import wraps
from itertools import islice
from pathlib import Path
from time import time
from typing import Any, Final, NoReturn, TypeVar, cast

import click

from fastagi_pool.backlog import JournalFacts
from fastagi_pool.display import Columns, Table, count, duration, shown
from fastagi_pool.errors import JournalUnavailable, OperatorError
from fastagi_pool.journal import Entry, Journal
from fastagi_pool.source import EXIT_INPUT, Source, with_source

#: An entry that was named is not there, or not in the state in which it can be changed.
_EXIT_MISSING: Final = 1
_UNITS: Final = ("bytes", "KB", "MB", "GB", "TB")

_Command = TypeVar("_Command", bound=Callable[..., object])


@click.group()
def journal() -> None:
    """Show and change what waits in the journal: calls whose database was away when they came."""


def _with_journal(command: _Command) -> _Command:
    """Give a command the options that say which journal is meant, as its open ``journal``."""

    @with_source
    @click.option(
        "--file",
        "given",
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="This journal; no configuration is read.",
    )
    @wraps(command)
    def with_journal(source: Source, given: Path | None, **others: object) -> object:
        path = given or _path_in(source)
        try:
            with closing(Journal.open_existing(path)) as opened:
                return command(journal=opened, **others)
        except FileNotFoundError:
            _fail(f"there is no journal {path}: no pool with deferrable routes has run with it yet")
        except PermissionError:
            _fail(f"not permitted: the journal {path} may be read by the pool's user and root only")
        except JournalUnavailable as error:
            raise OperatorError(str(error)) from None

    return cast(_Command, with_journal)


def _path_in(source: Source) -> Path:
    try:
        path = source.load().config.journal.path
    except OperatorError as error:
        _fail(f"{error}\nA journal is found by --file all the same.")
    if path is None:
        _fail(f"there is no journal: {source} has it off (journal.file)")
    return path


_database_option: Final = click.option(
    "--database", default="", metavar="NAME", help="Only calls of this database."
)
_numbers_argument: Final = click.argument(
    "numbers", metavar="[NUMBER]...", type=click.IntRange(1), nargs=-1, required=False
)


# --- list and show


@journal.command("list")
@_with_journal
@_database_option
@click.option("--quarantined", is_flag=True, help="Only calls in quarantine.")
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(0), help="Show so many; 0 for all."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_entries(journal: Journal, database: str, quarantined: bool, limit: int, as_json: bool) -> None:
    """Show how many calls wait, and each in the order in which it was put off."""
    facts = journal.facts()
    found = list(islice(journal.all(database, True if quarantined else None), limit or None))
    if as_json:
        click.echo(json.dumps({**asdict(facts), "entries": [_entry_json(each) for each in found]}, indent=2))
        return
    in_all = sum(
        each.quarantined + (0 if quarantined else each.waiting)
        for each in facts.databases
        if database in ("", each.database)
    )
    lines = _summary(facts)
    if found:
        lines += ["", *Table.of(_COLUMNS, found).lines()]
    if len(found) < in_all:
        lines.append(f"... and {in_all - len(found):,} more: --limit 0 shows all")
    click.echo("\n".join(lines))


@journal.command()
@_with_journal
@click.argument("number", type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(journal: Journal, number: int, as_json: bool) -> None:
    """Show all that is known of the call NUMBER: what Asterisk said of it, and what went wrong."""
    entry = journal.get(number)
    if entry is None:
        _fail(f"there is no call {number} in the journal: it is done, or was dropped", _EXIT_MISSING)
    if as_json:
        click.echo(json.dumps(_entry_json(entry), indent=2))
        return
    for name, value in (
        ("state", _state(entry)),
        ("database", entry.database),
        ("route", entry.route),
        ("call", entry.ref),
        ("from", entry.peer or "-"),
        ("received", f"{_moment(entry.received_s)}, {_age(entry.received_s)} ago"),
        ("begun", "yes: some of it may have been done" if entry.begun else "no"),
        ("attempts", entry.attempts),
    ):
        click.echo(f"{name:<10}{shown(value)}")
    click.echo("environment")
    for line in entry.environment:
        click.echo(f"   {shown(line)}")
    if entry.error:
        click.echo("error")
        for line in entry.error.splitlines():
            click.echo(f"   {shown(line)}")


# --- retry and drop


@journal.command()
@_with_journal
@_numbers_argument
@click.option("--all", "every", is_flag=True, help="All calls in quarantine.")
@_database_option
def retry(journal: Journal, numbers: tuple[int, ...], every: bool, database: str) -> None:
    """Let calls out of quarantine: they are done again, each at its place in the order."""
    _either(numbers, every, database)
    chosen = (
        [each.number for each in journal.quarantined(database)] if every else list(dict.fromkeys(numbers))
    )
    changed = journal.retry(chosen)
    click.echo(f"{count(changed, 'call')} will be tried again")
    _complain_if_fewer(journal, changed, () if every else chosen, "not in quarantine")


@journal.command()
@_with_journal
@_numbers_argument
@click.option("--all", "every", is_flag=True, help="All calls in quarantine.")
@click.option("--waiting", is_flag=True, help="With --all: those which wait, too.")
@_database_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(
    journal: Journal, numbers: tuple[int, ...], every: bool, waiting: bool, database: str, yes: bool
) -> None:
    """Throw calls away: what they should have left in the database will never be there."""
    _either(numbers, every, database or waiting)
    if every:
        chosen = [each.number for each in journal.all(database, None if waiting else True)]
    else:
        chosen = [number for number in dict.fromkeys(numbers) if journal.get(number) is not None]
    if chosen and not yes:
        click.confirm(f"Throw {count(len(chosen), 'call')} away?", abort=True, err=True)
    dropped = journal.drop(chosen)
    click.echo(f"{count(dropped, 'call')} dropped")
    missing = sorted(set(numbers) - set(chosen))
    if missing:
        _fail(f"not in the journal: {', '.join(map(str, missing))}", _EXIT_MISSING)


def _either(numbers: Sequence[int], every: bool, narrowed: object) -> None:
    if every == bool(numbers):
        raise click.UsageError("say which calls: their numbers, or --all")
    if narrowed and not every:
        raise click.UsageError("--database and --waiting go with --all")


def _complain_if_fewer(journal: Journal, changed: int, chosen: Sequence[int], what: str) -> None:
    """Say which of the calls that were named could not be changed, and exit."""
    if changed >= len(chosen):
        return
    missing = [number for number in chosen if journal.get(number) is None]
    others = len(chosen) - changed - len(missing)
    parts = [f"not in the journal: {', '.join(map(str, missing))}"] if missing else []
    parts += [f"{what}: {count(others, 'call')}"] if others else []
    _fail("; ".join(parts), _EXIT_MISSING)


# --- export


@journal.command()
@_with_journal
@click.argument("file", metavar="[FILE]", default="-", type=click.Path(dir_okay=False))
def export(journal: Journal, file: str) -> None:
    """Write all calls into FILE, or to the standard output, as JSON, one a line.

    The file is readable by its owner only: it holds callers' numbers.
    """
    if file == "-":
        _export(journal, click.echo)
        return
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as output:
            written = _export(journal, lambda line: output.write(f"{line}\n"))
    except OSError as error:
        raise OperatorError(f"cannot write {file}: {error.strerror}") from None
    click.echo(f"{count(written, 'call')} exported", err=True)


def _export(journal: Journal, write: Callable[[str], object]) -> int:
    written = 0
    for entry in journal.all():
        write(json.dumps(_entry_json(entry)))
        written += 1
    return written


# --- words


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {"received": _moment(entry.received_s), **asdict(entry)}


def _summary(facts: JournalFacts) -> list[str]:
    held = [each for each in facts.databases if each.waiting or each.quarantined]
    lines = [
        f"{shown(each.database)}: {count(each.waiting, 'call')} waiting"
        + (f", the oldest for {_age(each.oldest_s)}" if each.waiting else "")
        + (f"; {each.quarantined:,} in quarantine" if each.quarantined else "")
        for each in held
    ] or ["no calls: everything is done"]
    limit = f" of {_size(facts.limit_bytes)}" if facts.limit_bytes else ""
    return [*lines, f"the journal holds {_size(facts.used_bytes)}{limit}"]


def _of_environment(entry: Entry, name: str) -> str:
    prefix = f"{name}: "
    return next((line[len(prefix) :] for line in entry.environment if line.startswith(prefix)), "") or "-"


def _state(entry: Entry) -> str:
    return "quarantined" if entry.quarantined else "waiting"


def _moment(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s).astimezone().isoformat(" ", "milliseconds")


def _age(wall_s: float) -> str:
    return duration(max(0.0, time() - wall_s))


def _size(length_bytes: int) -> str:
    power = min(len(_UNITS) - 1, max(0, length_bytes.bit_length() - 1) // 10)
    return f"{length_bytes / 1024**power:.3g} {_UNITS[power]}"


def _fail(text: str, code: int = EXIT_INPUT) -> NoReturn:
    click.echo(text, err=True)
    sys.exit(code)


_COLUMNS: Final[Columns[Entry]] = (
    ("number", lambda entry: entry.number),
    ("state", _state),
    ("received", lambda entry: _moment(entry.received_s)),
    ("name", lambda entry: entry.database),
    ("route", lambda entry: entry.route),
    ("callerid", lambda entry: _of_environment(entry, "agi_callerid")),
    ("uniqueid", lambda entry: _of_environment(entry, "agi_uniqueid")),
    ("attempts", lambda entry: entry.attempts),
    ("reason", lambda entry: (entry.error.splitlines() or ["-"])[0]),
)

#: What the command line has of this.
COMMANDS: Final = (journal,)
