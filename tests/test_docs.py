"""The documentation is true: its commands exist, its example runs, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import click
import pytest

from fastagi_pool.cli import cli

PROJECT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:]+)\)")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language on a page."""
    return [text for found, text in _BLOCK.findall(page.read_text()) if found == language]


def commands() -> list[tuple[str, str]]:
    """Every command line in every shell block, with the page it stands on."""
    return [
        (page.name, line.strip())
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.strip()
    ]


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_can_be_given(page: str, line: str) -> None:
    """A command in the documentation is one that the program or the Makefile understands."""
    program, *words = shlex.split(line, comments=True)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in words if "=" not in word and word not in targets] == []
        return
    if program.endswith("python"):
        assert (PROJECT / words[0]).exists()
        return
    assert program.rpartition("/")[2] == "fastagi-pool", f"{page}: {line}"
    command: click.Command = cli
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    group = command if isinstance(command, click.Group) else None
    context = command.make_context(line, list(words))
    rest = [*context._protected_args, *context.args] if group else []
    if group is not None and rest:
        group.commands[rest[0]].make_context(rest[0], rest[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    """A link between pages names something that is there."""
    missing = [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]

    assert missing == []


def test_the_five_minute_example_passes_check(tmp_path: Path) -> None:
    """What a newcomer copies from the README is a handler and a configuration that can be run."""
    readme = PROJECT / "README.md"
    (tmp_path / "greeting.py").write_text(blocks(readme, "python")[0])
    (tmp_path / "greeting.yaml").write_text(blocks(readme, "yaml")[0])

    done = subprocess.run(
        [sys.executable, "-m", "fastagi_pool", "check", "-c", str(tmp_path / "greeting.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
