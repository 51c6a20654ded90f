"""The documentation is true: its commands exist, its examples run, its links lead somewhere."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import click
import pytest
import yaml
from fresh_pytest import run_pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from fastagi_pool.cli import cli
from fastagi_pool.config import load_text
from fastagi_pool.scenario import load_scenarios
from fastagi_pool.stage import Stage

PROJECT: Final = Path(__file__).resolve().parent.parent
README: Final = PROJECT / "README.md"
START: Final = PROJECT / "docs" / "index.md"
HANDLERS: Final = PROJECT / "docs" / "handlers.md"
RECIPES: Final = PROJECT / "tests" / "cookbook" / "recipes.py"
_COOKBOOK: Final = "## Cookbook"
#: Where the README's example keeps its files.
_GREETING_FILES: Final = "/tmp/greeting"
PAGES: Final = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: A block of YAML, and the comment above it that says if it is something else than a whole configuration.
_YAML = re.compile(r"(?:^<!-- ([^>]+) -->\n)?^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
_HELLO: Final = {"default": True, "handler": "fastagi_pool.handlers.demo:hello"}
#: Where the pages have an operator's handlers, and whom the server becomes.
_HANDLERS_FOLDER: Final = "/srv/agi"
_USER: Final = "user: fastagi"
#: Root's programs that the pages call, besides ours.
ROOTS_PROGRAMS: Final = frozenset(
    {"asterisk", "df", "echo", "grep", "journalctl", "ln", "patch", "screen", "sed", "sleep", "socat", "ss"}
    | {"sysctl", "systemctl", "tail"}
)
_BETWEEN: Final = frozenset({";", "&&", "|"})
_LINK = re.compile(r"\]\(([^)#:]+)\)")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language on a page."""
    return blocks_in(page.read_text(), language)


def blocks_in(text: str, language: str) -> list[str]:
    """The fenced blocks of one language in a text."""
    return [block for found, block in _BLOCK.findall(text) if found == language]


def yaml_blocks() -> list[tuple[str, str, str]]:
    """Every block of YAML: the page, what the comment above it says, and the text."""
    return [(page.name, said, block) for page in PAGES for said, block in _YAML.findall(page.read_text())]


def recipes() -> list[str]:
    """The functions of the cookbook, as the page shows them."""
    return blocks_in(HANDLERS.read_text().partition(_COOKBOOK)[2], "python")


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
    assert_can_be_given(page, line)


def assert_can_be_given(page: str, line: str) -> None:
    """Fail unless a command line is one of ours, its options and all."""
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


def roots_commands() -> list[tuple[str, str]]:
    """Every command in the blocks that root alone can run, with the page it stands on."""
    return [
        (page.name, shlex.join(words))
        for page in PAGES
        for block in blocks(page, "bash")
        for line in block.splitlines()
        for words in _commands_in(line)
    ]


def _commands_in(line: str) -> Iterator[list[str]]:
    """Cut a line of shell into its commands, without what follows a ``>``."""
    reader = shlex.shlex(line, posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    words = list(reader)
    while words:
        end = next((number for number, word in enumerate(words) if word in _BETWEEN), len(words))
        command, words = words[:end], words[end + 1 :]
        yield command[: command.index(">")] if ">" in command else command


@pytest.mark.parametrize(("page", "line"), roots_commands())
def test_every_command_of_root_can_be_given(page: str, line: str) -> None:
    """What root is told to do are commands of ours with options that exist, or of programs that are known."""
    program, *words = shlex.split(line)
    if program == "/etc/init.d/fastagi-pool":
        template = (PROJECT / "fastagi_pool" / "service" / "fastagi-pool.init").read_text()
        [usage] = re.findall(r"Usage: \$0 \{(.*)\}", template)
        assert words[0] in usage.split("|")
    elif program.rpartition("/")[2] in ("fastagi-pool", "make"):
        assert_can_be_given(page, line)
    else:
        assert program in ROOTS_PROGRAMS


@pytest.mark.parametrize(("page", "said", "block"), yaml_blocks())
def test_every_yaml_can_be_used(page: str, said: str, block: str, tmp_path: Path) -> None:
    """YAML on a page is a configuration that can be run, or what the comment above it says."""
    text = _here(block, tmp_path)
    if said == "a scenario":
        (tmp_path / "scenario.yaml").write_text(text)
        assert load_scenarios(tmp_path / "scenario.yaml", {})
        return
    if said == "part of a configuration":
        text = yaml.safe_dump({"routes": [_HELLO], **yaml.safe_load(text)})
    elif said == "part of conf/vicidial.yaml":
        sample = (PROJECT / "conf" / "vicidial.yaml").read_text().replace("${file:", "$${file:")
        text = yaml.safe_dump({**yaml.safe_load(sample), **yaml.safe_load(text)})
    else:
        assert said == "", f"{page}: what is {said!r}?"

    config = load_text(text, page, tmp_path, {}).config

    assert config.routes
    assert config.http.address not in config.listen


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    """A link between pages names something that is there."""
    missing = [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]

    assert missing == []


def test_the_five_minute_example_passes_check(tmp_path: Path) -> None:
    """What a newcomer copies from the README is a handler and a configuration that can be run."""
    _write_greeting(tmp_path)

    done = subprocess.run(
        [sys.executable, "-m", "fastagi_pool", "check", "-c", str(tmp_path / "greeting.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_the_five_minute_example_passes_its_test(tmp_path: Path) -> None:
    """The README's test of its handler has five lines at most, and is green as it stands."""
    _write_greeting(tmp_path)
    test = blocks(README, "python")[1]
    (tmp_path / "test_greeting.py").write_text(test)

    done = run_pytest(tmp_path)

    assert len(test.splitlines()) <= 5
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_start_passes_check(tmp_path: Path) -> None:
    """What a newcomer copies from the first page is a handler and a configuration that can be run."""
    _write_start(tmp_path)

    done = subprocess.run(
        [sys.executable, "-m", "fastagi_pool", "check", "-c", str(tmp_path / "pool.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("day", "is_open"), [("Mon", "yes"), ("Sun", "no")])
def test_the_start_serves_a_call(agi_call: Stage, day: str, is_open: str) -> None:
    """The handler of the first page tells the dialplan what it promises, with the options shown there."""
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(blocks(START, "python")[0], namespace)
    [route] = yaml.safe_load(blocks(START, "yaml")[0])["routes"]
    shown = {key: route[key] for key in ("regex", "options")}

    result = agi_call(namespace["opening"], "opening/sales", day, route=shown)

    assert result.variables["OPEN"] == is_open


def test_the_menu_passes_its_test(tmp_path: Path) -> None:
    """The first example of a handler, its configuration and its test are green as they stand."""
    code, test = blocks(HANDLERS, "python")[:2]
    (tmp_path / "menu.py").write_text(code)
    (tmp_path / "menu.yaml").write_text(blocks(HANDLERS, "yaml")[0])
    (tmp_path / "test_menu.py").write_text(test)

    done = run_pytest(tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_check_of_options_finds_what_is_wrong() -> None:
    """The example of ``check_options`` runs: it finds what the menu cannot do without, and nothing else."""
    namespace: dict[str, Any] = {}
    exec(blocks(HANDLERS, "python")[2], namespace)
    check = namespace["check_options"]

    assert [found.location for found in check({}, {})] == [("targets",)]
    assert list(check({"targets": {"1": "sales"}}, {})) == []


def test_the_selftest_refuses_what_is_missing() -> None:
    """The example of ``selftest`` runs: it raises without its table, and passes with it."""
    namespace: dict[str, Any] = {}
    exec(blocks(HANDLERS, "python")[3], namespace)
    engine = create_engine("sqlite://")
    context = SimpleNamespace(begin=engine.begin)

    with pytest.raises(OperationalError):
        namespace["selftest"](context)
    with engine.begin() as database:
        database.execute(text("CREATE TABLE orders (number VARCHAR(20), state VARCHAR(20))"))
    namespace["selftest"](context)


def test_the_cookbook_is_whole() -> None:
    """Every function of the cookbook's module is on the page, and nothing else."""
    shown = [re.findall(r"^def (\w+)", recipe, re.MULTILINE) for recipe in recipes()]

    assert [name for names in shown for name in names] == re.findall(
        r"^def (\w+)", RECIPES.read_text(), re.MULTILINE
    )


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.partition("(")[0].split()[-1])
def test_a_recipe_is_the_tested_one(recipe: str) -> None:
    """What the page shows of a recipe is, word for word, a function that has tests."""
    functions = [f"def {rest}" for rest in RECIPES.read_text().split("\n\n\ndef ")[1:]]

    assert recipe.rstrip("\n") in [function.rstrip("\n") for function in functions]


def test_the_scenario_can_be_played(tmp_path: Path) -> None:
    """The scenario that the page shows is one that the program reads, with every key."""
    path = tmp_path / "demo.yaml"
    path.write_text(blocks(HANDLERS, "yaml")[1])

    knows, hangs_up = load_scenarios(path, {})

    assert (knows.title, hangs_up.title) == ("a caller who knows the PIN", "a caller who hangs up")


def _write_greeting(folder: Path) -> None:
    """Write the README's handler and configuration, which keeps its files in the folder too."""
    (folder / "greeting.py").write_text(blocks(README, "python")[0])
    configuration = blocks(README, "yaml")[0]
    assert _GREETING_FILES in configuration
    (folder / "greeting.yaml").write_text(configuration.replace(_GREETING_FILES, f"{folder}/files"))


def _write_start(folder: Path) -> None:
    """Write the handler and the configuration of the first page."""
    (folder / "shop.py").write_text(blocks(START, "python")[0])
    (folder / "pool.yaml").write_text(_here(blocks(START, "yaml")[0], folder))


def _here(text: str, folder: Path) -> str:
    """Make a configuration fit for this machine: a folder that exists, and ourselves."""
    me = pwd.getpwuid(os.geteuid()).pw_name
    return text.replace(_HANDLERS_FOLDER, str(folder)).replace(_USER, f"user: {me}")
