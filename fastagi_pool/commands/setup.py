"""Setup: the commands that make a pool a service of its machine, and take that back.

Laws:
    * Everything that is going to be done can be shown first (``--dry-run``), one line each.
    * Nothing is started: a configuration wants to be read by its owner before.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from fastagi_pool.errors import OperatorError
from fastagi_pool.installing import (
    DEFAULT_USER,
    Manager,
    Record,
    Settings,
    Site,
    Step,
    after_removal,
    plan,
    plan_removal,
    wishes,
    without_readers,
)
from fastagi_pool.lifecycle import ActionCode, LifeState, find
from fastagi_pool.source import DEFAULT_CONFIG, Source, SourceKind

#: Source: sd_booted(3).
_SYSTEMD_RUNS: Final = Path("/run/systemd/system")

_root_option: Final = click.option(
    "--root",
    default="/",
    show_default=True,
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    help="A folder that holds another machine's files.",
)
_dry_run_option: Final = click.option("--dry-run", is_flag=True, help="Only show what would be done.")


@click.command()
@click.option("--systemd", "manager", flag_value="systemd", help="Install a unit.")
@click.option(
    "--sysv", "manager", flag_value="sysv", help="Install an init script, and a keep-alive for cron."
)
@click.option("--socket", is_flag=True, help="With --systemd: let systemd open the port.")
@_dry_run_option
@_root_option
@click.option(
    "--config",
    default=DEFAULT_CONFIG,
    show_default=True,
    metavar="FILE",
    help="The configuration; one to begin with is written if there is none.",
)
@click.option(
    "--user",
    metavar="NAME",
    help=f"Whom it runs as; made if missing.  [default: the configuration's, or {DEFAULT_USER}]",
)
@click.option("--program", metavar="PATH", help="The command to start.  [default: this one]")
def install(
    manager: str | None,
    socket: bool,
    dry_run: bool,
    root: str,
    config: str,
    user: str | None,
    program: str | None,
) -> None:
    """Make the server a service of this machine: user, folders, configuration, unit or script, logrotate.

    Shows what is done, one line each, and writes it down for 'uninstall'. What is there already is left as it
    is. Nothing is started. Exit code 4 if only root may do that, 6 if the configuration is refused.
    """
    chosen = _choose(manager, socket)
    site = Site(Path(root))
    settings = _settings(site, str(Path(config).absolute()), user, program or _this_program())
    if socket:
        settings = replace(settings, listen="systemd")
    tools = _tools() if site.is_this_machine else []
    sample = not site.path(settings.config).exists() or settings.config in site.read_record().files
    wanted = wishes(chosen, settings, socket, tools, sample)
    wanted = without_readers(wanted, lambda folder: site.path(folder).is_dir())
    record = replace(site.read_record(), runtime_dir=settings.runtime_dir, journal=settings.journal)
    steps = plan(wanted, site.look(wanted, record), record)
    if dry_run:
        _show(steps)
        return
    _refuse_without_rights(site)
    site.write_record(site.install(steps, record, click.echo))
    click.echo(_what_next(chosen, settings, enabled=bool(tools)))


def _choose(manager: str | None, socket: bool) -> Manager:
    if manager is None and not _SYSTEMD_RUNS.exists():
        raise click.UsageError("systemd does not run here: say --systemd or --sysv")
    if socket and manager == "sysv":
        raise click.UsageError("--socket needs --systemd")
    return Manager(manager or "systemd")


def _settings(site: Site, config: str, user: str | None, program: str) -> Settings:
    """Take from the configuration what the files depend on; exits if there is one that is refused."""
    name = user or DEFAULT_USER
    # A user who is to be made gets a group of the same name.
    settings = Settings(program=program, config=config, user=name, group=site.group_of(name) or name)
    # That of another machine may name users whom this one does not have.
    if not site.is_this_machine or not site.path(config).exists():
        return settings
    try:
        found = Source(config, SourceKind.YAML).load().config
    except OperatorError as error:
        click.echo(f"{error}\nnothing was installed", err=True)
        sys.exit(ActionCode.NOT_CONFIGURED)
    name = user or found.user or DEFAULT_USER
    return replace(
        settings,
        user=name,
        group=found.group or site.group_of(name) or name,
        runtime_dir=str(found.runtime_dir),
        logs=tuple(log for log in (found.log.file, found.log.access, found.slow.file) if log.startswith("/"))
        or settings.logs,
        graceful_timeout_s=found.graceful_timeout,
        boot_timeout_s=found.boot_timeout,
        calls=found.calls_per_worker + found.max_queue,
        journal=str(found.journal.path or ""),
    )


def _this_program() -> str:
    beside = Path(sys.executable).parent / "fastagi-pool"
    found = str(beside) if beside.exists() else shutil.which("fastagi-pool")
    if found is None:
        raise click.UsageError("the command fastagi-pool is not to be found: say --program")
    return found


def _tools() -> list[str]:
    """Return what can make services start on this machine."""
    tools = [tool for tool in ("update-rc.d", "chkconfig") if shutil.which(tool)]
    return [*tools, "systemctl"] if _SYSTEMD_RUNS.exists() and shutil.which("systemctl") else tools


def _refuse_without_rights(site: Site) -> None:
    if site.is_this_machine and os.geteuid() != 0:
        click.echo("not permitted: only root may do that; --dry-run shows what it would be", err=True)
        sys.exit(ActionCode.NOT_PERMITTED)


def _show(steps: Sequence[Step]) -> None:
    for step in steps:
        click.echo(str(step))


def _what_next(manager: Manager, settings: Settings, enabled: bool) -> str:
    by_systemd = manager is Manager.SYSTEMD
    start = "systemctl start fastagi-pool" if by_systemd else "/etc/init.d/fastagi-pool start"
    enable = (
        "systemctl enable fastagi-pool" if by_systemd else "update-rc.d fastagi-pool defaults, or chkconfig"
    )
    hint = "" if enabled else f"\nIt does not start by itself yet: {enable}"
    return f"Edit {settings.config}, check it by 'fastagi-pool check', then: {start}{hint}"


@click.command()
@click.option("--purge", is_flag=True, help="Remove changed files, the configuration and the logs, too.")
@_dry_run_option
@_root_option
def uninstall(purge: bool, dry_run: bool, root: str) -> None:
    """Take back what 'install' has done, and nothing else.

    Files that were changed since and logs stay, unless --purge is given. The journal stays, with --purge too,
    as long as there are calls in it. Exit code 1 if the server runs.
    """
    site = Site(Path(root))
    record = site.read_record()
    if record.is_empty:
        click.echo("nothing is installed here")
        return
    steps = plan_removal(record, site.look((), record), purge)
    if dry_run:
        _show(steps)
        return
    _refuse_without_rights(site)
    if site.is_this_machine and _runs(record):
        click.echo("fastagi-pool runs: stop it first", err=True)
        sys.exit(ActionCode.FAILED)
    site.uninstall(steps, purge, click.echo)
    site.write_record(after_removal(record, steps))


def _runs(record: Record) -> bool:
    return bool(record.runtime_dir) and find(Path(record.runtime_dir)).state is LifeState.RUNNING


#: What the command line has of this.
COMMANDS: Final = (install, uninstall)
