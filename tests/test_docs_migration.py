"""docs/migration.md is true: its configurations can be run, its example is what the command prints."""

from __future__ import annotations

import re
import shlex
from typing import Final

import pytest
import yaml
from test_docs import PROJECT, blocks

from fastagi_pool.config import load_text
from fastagi_pool.dialplan import as_diff, rewrite
from fastagi_pool.spawning import INHERITED

PAGE: Final = PROJECT / "docs" / "migration.md"
EXTENSIONS: Final = "/etc/asterisk/extensions.conf"


def example() -> str:
    """The page's diff of a dialplan."""
    [diff] = blocks(PAGE, "diff")
    return diff


@pytest.mark.parametrize("block", blocks(PAGE, "yaml"))
def test_every_configuration_can_be_run(block: str) -> None:
    """What the page shows of a configuration is right, alone or in a file that says where to listen."""
    keys = yaml.safe_load(block)
    text = yaml.safe_dump({"listen": ["127.0.0.1:4577"], **keys})

    config = load_text(text, "migration.yaml", PROJECT, {}).config

    assert len(config.routes) == len(keys["routes"])


def test_no_route_hides_another() -> None:
    """Each route of each example has a name of its own, as it must in one file."""
    for block in blocks(PAGE, "yaml"):
        patterns = [route.get("script") or route.get("glob") for route in yaml.safe_load(block)["routes"]]
        assert len(set(patterns)) == len(patterns)


def test_the_diff_is_what_the_command_prints() -> None:
    """The dialplan of the example changes as the page shows it, and as the default options say."""
    old = "".join(line[1:] for line in example().splitlines(keepends=True)[3:] if line[0] != "+")

    assert as_diff(rewrite(old, "127.0.0.1:4577"), EXTENSIONS) == example()


def test_the_way_back_is_the_way_there() -> None:
    """What ``patch`` has put in, it takes out: same file, same diff."""
    lines = [
        line for block in blocks(PAGE, "bash") for line in block.splitlines() if line.startswith("patch")
    ]
    there, back = [shlex.split(line) for line in lines]

    assert there[-2:] == back[-2:]
    assert (there[1], back[1]) == ("--backup", "--reverse")


def test_the_environment_of_a_script() -> None:
    """The page names every variable that a script gets of the server's environment, and no other."""
    [row] = [line for line in PAGE.read_text().splitlines() if line.startswith("| Asterisk's environment |")]
    names = re.findall(r"`([A-Z_]+)`", row.partition(" of the pool")[0])

    assert tuple(names) == INHERITED


@pytest.mark.parametrize("anchor", re.findall(r"\]\(#([\w-]+)\)", PAGE.read_text()))
def test_every_link_within_the_page_leads_to_a_title(anchor: str) -> None:
    """A link to a part of the page names a title that is there."""
    titles = re.findall(r"^#+ (.+)$", PAGE.read_text(), re.MULTILINE)

    assert anchor in [re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles]
