"""The reference of the commands: complete, and what the docstrings of the call give.

Laws:
    * Which commands there are is what two real Asterisks listed, kept in ``corpus/commands``.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from fastagi_pool import results
from fastagi_pool.call import Call

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "commands.md"
#: A line of ``agi show commands``: whether a dead channel may do it, the command, what it does.
_LISTED = re.compile(r"^ *(?:Yes|No) {2,}(\S.*?) {3}\S", re.MULTILINE)


def listed(version: str) -> list[str]:
    """The commands that a version of Asterisk lists, in capitals and sorted."""
    text = (ROOT / "tests" / "corpus" / "commands" / f"{version}.txt").read_text("ascii")
    return sorted(name.upper() for name in _LISTED.findall(text))


def offered() -> list[str]:
    """The commands that the methods of the call name as their source, sorted."""
    docstrings = [inspect.getdoc(member) or "" for member in vars(Call).values()]
    return sorted(
        name for text in docstrings for name in re.findall(r"^Source: ``(.+)``$", text, re.MULTILINE)
    )


@pytest.mark.parametrize("version", ["16", "22"])
def test_a_method_for_every_command(version: str) -> None:
    """The call has one method for each command that Asterisk lists, and no other."""
    assert len(listed(version)) == 47
    assert offered() == listed(version)


def test_the_page_is_up_to_date() -> None:
    """The reference in the repository is the one that the docstrings give."""
    run = subprocess.run(
        [sys.executable, "scripts/generate_command_docs.py", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_the_page_names_everything() -> None:
    """Each public method and property of the call and each class of results has its heading, once."""
    methods = [name for name in vars(Call) if not name.startswith("_") and name not in Call.__slots__]
    classes = [
        f"results.{name}"
        for name, value in vars(results).items()
        if isinstance(value, type) and value.__module__ == results.__name__
    ]
    headings = re.findall(r"^### `(.+)`$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert headings == [*methods, *classes, "protocol.Reply"]


def test_every_command_stands_on_the_page() -> None:
    """A reader who knows an AGI command finds its method by the command's name."""
    assert sorted(re.findall(r"^AGI command: `(.+)`$", PAGE.read_text("utf-8"), re.MULTILINE)) == listed("22")


def test_every_link_leads_to_a_heading() -> None:
    """A link inside the page leads to a heading, and no two headings have the same anchor."""
    text = PAGE.read_text("utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= set(anchors)


def test_every_argument_described_exists() -> None:
    """A docstring of the call describes no argument that the method has not."""
    for name, method in vars(Call).items():
        section = re.search(r"^Args:\n((?: .*\n|\n)+)", inspect.getdoc(method) or "", re.MULTILINE)
        if section:
            described = re.findall(r"^ {4}(\w+):", section[1], re.MULTILINE)
            assert set(described) <= set(inspect.signature(method).parameters), name


def test_no_markup_is_left_over() -> None:
    """Nothing of the docstrings' own markup shows on the page."""
    text = PAGE.read_text("utf-8")
    assert re.findall(r":\w+:`|``(?!`)(?<!```)|^(?:Args|Source):", text, re.MULTILINE) == []
