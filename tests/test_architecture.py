"""Architecture: what the house rules say about imports and files, checked."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

_PROJECT: Final = Path(__file__).resolve().parent.parent
_PACKAGE: Final = _PROJECT / "fastagi_pool"
_TESTS: Final = _PROJECT / "tests"
_MODULES: Final = sorted(
    ".".join(path.relative_to(_PROJECT).with_suffix("").parts)
    for path in _PACKAGE.rglob("*.py")
    if path.stem not in ("__init__", "__main__")
)
#: What the process that becomes the master must never have loaded.
_NOT_THE_MASTERS: Final = ("gevent", "sqlalchemy", "pymysql", "pydantic", "yaml")
#: Nothing to test in it: a constant, which test_cli sees printed.
_WITHOUT_TESTS: Final = {"fastagi_pool.version"}


def in_fresh_python(code: str) -> str:
    """Run code in a process that has imported nothing yet, and return what it printed."""
    run = subprocess.run(
        (sys.executable, "-c", code), cwd=_PROJECT, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_imports_point_one_way() -> None:
    """The layers and the prohibitions of setup.cfg are kept."""
    run = subprocess.run(
        (Path(sys.executable).parent / "lint-imports", "--no-cache"),
        cwd=_PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_page_shows_the_layers() -> None:
    """docs/architecture.md names every module in the row in which setup.cfg has it."""
    settings = configparser.ConfigParser()
    settings.read(_PROJECT / "setup.cfg")
    layers = settings["importlinter:contract:layers"]["layers"].split("\n")
    wanted = [sorted(each.replace("fastagi_pool.", "").split(" | ")) for each in layers if each]
    page = (_PROJECT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| (`.*`) \|$", page, re.MULTILINE)
    shown = [sorted(re.findall(r"`(\w+)`", row)) for row in rows]
    assert shown == [layer for layer in wanted if layer != ["__main__"]]


def test_master_is_plain() -> None:
    """The command line, from which the master is made, loads no gevent, database, YAML or pydantic."""
    loaded = json.loads(
        in_fresh_python("import json, sys, fastagi_pool.cli; print(json.dumps(sorted(sys.modules)))")
    )
    roots = {name.partition(".")[0] for name in loaded}
    assert roots.isdisjoint(_NOT_THE_MASTERS)
    assert not any(name.startswith("fastagi_pool.handlers") for name in loaded)


def test_nothing_happens_at_import() -> None:
    """To import every module opens no file or socket, starts no thread, and patches nothing."""
    found = json.loads(
        in_fresh_python(
            "import importlib, json, os, signal, socket, sys, threading, gevent, sqlalchemy\n"
            "def look():\n"
            "    handlers = [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())]\n"
            "    files = [os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')\n"
            "             if os.path.exists(f'/proc/self/fd/{n}')]\n"
            "    return [sorted(files), threading.active_count(), handlers, str(socket.socket)]\n"
            "before = look()\n"
            f"for name in {_MODULES}:\n"
            "    importlib.import_module(name)\n"
            "print(json.dumps([before, look()]))\n"
        )
    )
    assert found[0] == found[1]


@pytest.mark.parametrize("module", [name for name in _MODULES if name not in _WITHOUT_TESTS])
def test_every_module_has_its_tests(module: str) -> None:
    """Whoever changes a module finds its tests at once: tests/test_<module>.py, or tests/handlers/."""
    parts = module.split(".")[1:]
    assert (_TESTS.joinpath(*parts[:-1]) / f"test_{parts[-1]}.py").exists()


def test_no_module_is_a_drawer() -> None:
    """Names that say nothing are no modules."""
    drawers = {"utils", "util", "common", "base", "helpers", "misc"}
    assert drawers.isdisjoint(name.rpartition(".")[2] for name in _MODULES)
