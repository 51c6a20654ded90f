"""docs/vicidial.md is true: its commands, options and rights are those of the program and its SQL."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import yaml
from test_docs import PROJECT, assert_can_be_given, blocks

from fastagi_pool.config import Config, load
from fastagi_pool.handlers.vicidial.leg import Site
from fastagi_pool.handlers.vicidial.options import read_site

PAGE: Final = PROJECT / "docs" / "vicidial.md"
SAMPLE: Final = PROJECT / "conf" / "vicidial.yaml"
HANDLERS: Final = PROJECT / "fastagi_pool" / "handlers" / "vicidial"
#: What VICIdial's installer writes, so far as it matters here.
INSTALLED: Final = """\
VARserver_ip => 192.0.2.15
VARDB_server => localhost
VARDB_database => asterisk
VARDB_user => cron
VARDB_pass => 1234
VARDB_port => 3306
# 6 in the next line keeps the FastAGI server alive
VARactive_keepalives => 1234568
VARfastagi_log_max_servers => 16
"""
ALIVE: Final = "VARactive_keepalives => 1234568"
_RIGHTS: Final = {
    "SELECT": r"(?<!DELETE )\bFROM (\w+)",
    "INSERT": r"\bINTO (\w+)",
    "UPDATE": r"\bUPDATE (\w+) SET\b|\bINTO (\w+) .* ON DUPLICATE KEY UPDATE\b",
    "DELETE": r"\bDELETE FROM (\w+)",
    "LOCK TABLES": r"\bLOCK TABLES (\w+)",
}
#: No table of VICIdial's: what needs no right, and QueueMetrics' own.
_FOREIGN: Final = {"DUAL", "queue_log"}


def section(title: str) -> str:
    """The text of the page under a title, up to the next one."""
    return PAGE.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


def root_lines() -> list[str]:
    """The command lines of the page that only root of a VICIdial machine can give."""
    return [line for block in blocks(PAGE, "bash") for line in block.splitlines()]


def statements() -> Iterator[str]:
    """Every text in the code of VICIdial's handlers, SQL and all, without what is put into it later."""
    for path in sorted(HANDLERS.glob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            match node:
                case ast.Constant(str(text)) if node not in docstrings:
                    yield text
                case ast.JoinedStr(parts):
                    yield "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))
                case ast.Call(ast.Attribute(_, "update"), [ast.Constant(str(table)), *_]):
                    yield f"UPDATE {table} SET"


def rights_needed() -> dict[str, set[str]]:
    """The rights that the handlers' SQL needs on each table."""
    needed: dict[str, set[str]] = defaultdict(set)
    for text in statements():
        for right, pattern in _RIGHTS.items():
            for found in re.finditer(pattern, text):
                needed[found[found.lastindex or 0]].add(right)
    for rights in needed.values():
        # A row to change or to delete is looked for by its columns, and a key that is there keeps some.
        if rights & {"UPDATE", "DELETE"}:
            rights.add("SELECT")
    return {table: rights for table, rights in needed.items() if table not in _FOREIGN}


def test_the_commands_of_root() -> None:
    """What root is told to do uses no other programs than these; a new one needs a test of its own."""
    programs = {part.split()[0] for line in root_lines() for part in line.split("; ")}

    assert programs == {"ln", "sed", "systemctl", "screen", "sleep", "ss", "journalctl"}


def test_keep_alive_leaves_the_old_daemon_alone_and_takes_it_back(tmp_path: Path) -> None:
    """One line takes digit 6 out of one key and changes nothing else; the other brings it back."""
    file = tmp_path / "astguiclient.conf"
    file.write_text(INSTALLED)
    out, back = [line for line in root_lines() if line.startswith("sed ")]

    for line, keys in ((out, "123458"), (back, "6123458")):
        assert line.endswith(" /etc/astguiclient.conf")
        subprocess.run(line.replace("/etc/astguiclient.conf", str(file)), shell=True, check=True)
        assert file.read_text() == INSTALLED.replace(ALIVE, f"VARactive_keepalives => {keys}")


def test_what_check_prints(tmp_path: Path) -> None:
    """What an operator compares with his own is what ``check`` prints of the installer's file."""
    file = tmp_path / "astguiclient.conf"
    file.write_text(INSTALLED)

    done = subprocess.run(
        [sys.executable, "-m", "fastagi_pool", "check", "--astguiclient", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    printed = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    assert f"{printed}\n" in [
        block.replace("/etc/astguiclient.conf", str(file)) for block in blocks(PAGE, "")
    ]


def test_the_trial_is_a_configuration(tmp_path: Path) -> None:
    """The sample with the page's keys listens where the page's dialplan calls, and disturbs nobody."""
    [keys] = [yaml.safe_load(block) for block in blocks(PAGE, "yaml")]
    sample = yaml.safe_load(
        SAMPLE.read_text().replace("${file:/etc/fastagi-pool/vicidial-password}", "secret")
    )
    path = tmp_path / "vicidial.yaml"
    path.write_text(yaml.safe_dump({**sample, **keys}))

    config = load(path, {}).config

    [address] = config.listen
    assert set(re.findall(r"agi://([^/]+)", PAGE.read_text())) == {str(address)}
    assert address.is_loopback
    assert config.runtime_dir != Config.model_fields["runtime_dir"].default


def test_the_unit_starts_the_pool() -> None:
    """The unit's command is one that can be given, and a stop reaches the master alone."""
    [unit] = blocks(PAGE, "ini")
    [command] = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)

    assert_can_be_given(PAGE.name, command)
    assert "KillMode=mixed" in unit.splitlines()


def test_systemd_understands_the_unit(tmp_path: Path, need_program: Callable[..., Path]) -> None:
    """No line of the unit is ignored."""
    need_program("systemd-analyze", "systemd")
    [unit] = blocks(PAGE, "ini")
    path = tmp_path / "fastagi-pool.service"
    path.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit, flags=re.MULTILINE))

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert path.name not in done.stderr


def test_the_options_and_their_defaults() -> None:
    """The page names every option, and each with the default that holds."""
    rows = re.findall(r"^\| `(\w+)` \| (?:`([^`]+)`|needed) \|", section("Options"), re.MULTILINE)
    shown = {name: yaml.safe_load(default) for name, default in rows if default}

    assert [name for name, default in rows if not default] == ["server_ip"]
    assert {name for name, _ in rows} == {name.removesuffix("_s") for name in Site.__slots__}
    assert read_site({"server_ip": "192.0.2.15", **shown}) == Site("192.0.2.15")


def test_the_rights_are_those_that_the_statements_need() -> None:
    """Whoever grants what the page says, no less and no more, has a pool that can write every row."""
    rows = re.findall(r"^\| ([A-Z, ]+) \| (`.*`) \|$", section("Rights in the database"), re.MULTILINE)
    granted = {
        table: set(rights.split(", ")) for rights, tables in rows for table in re.findall(r"`(\w+)`", tables)
    }

    assert granted == rights_needed()
