"""The folder of scripts under test, and the routes that lead to them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_SCRIPTS: Final = Path(__file__).resolve().parent / "scripts"
_ANY_PYTHON: Final = b"#!/usr/bin/env python3\n"

#: Every script, with the language in which it can be precompiled; empty if in none.
SCRIPTS: Final[Mapping[str, str]] = {
    "perl_module.agi": "perl",
    "perl_by_hand.agi": "perl",
    "php.agi": "",
    "shell.agi": "",
    "python_pyst2.agi": "python",
    "python_by_hand.agi": "python",
}
#: Every way in which each of them can be run by a pool: the script of the URL, and the file.
WAYS: Final = tuple(
    (f"{way}/{file}", file)
    for file, language in SCRIPTS.items()
    for way in ("spawned", "precompiled")
    if way == "spawned" or language
)


def fill(folder: Path) -> Path:
    """Copy the scripts into a folder, fit to be executed, and return it.

    Those in Python get the interpreter of the tests, which has the libraries that they use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCRIPTS:
        shutil.copy(_SCRIPTS / name, folder / name)
        content = (folder / name).read_bytes()
        if content.startswith(_ANY_PYTHON):
            ours = f"#!{sys.executable}\n".encode()
            (folder / name).write_bytes(ours + content.removeprefix(_ANY_PYTHON))
        (folder / name).chmod(0o755)
    return folder


def write(folder: Path, name: str, text: str) -> Path:
    """Write one script more, fit to be executed; ``#!python`` stands for the tests' interpreter."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("#!python", f"#!{sys.executable}", 1))
    path.chmod(0o755)
    return path


def route(script: str, file: Path, precompile: str = "", **settings: Any) -> dict[str, Any]:
    """Write the route of a script.

    Args:
        script: As in the URL.
        file: Its path.
        precompile: ``perl`` or ``python``; empty to spawn it.
        settings: Further keys of the route.
    """
    compiled = {"precompile": precompile} if precompile else {}
    return {"script": script, "command": str(file), **compiled, **settings}


def routes(folder: Path) -> list[dict[str, Any]]:
    """Write a route for each way of each script in a folder."""
    return [
        route(script, folder / file, SCRIPTS[file] if script.startswith("precompiled/") else "")
        for script, file in WAYS
    ]
