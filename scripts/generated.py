"""Generated files: written, or compared with what would be written.

Laws:
    * ``--check`` writes nothing; it exits 1 if a file is not what would be written.
    * A file that is up to date is not touched.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent


def write_or_check(description: str, texts: Mapping[Path, str], arguments: Sequence[str]) -> int:
    """Write files or, with ``--check``, say which are out of date.

    Args:
        description: What the generator is for, shown by ``--help``.
        texts: What every file has to hold; the files lie below the project's folder.
        arguments: The command line without the program's name.

    Returns:
        The exit status: 1 if ``--check`` found a file out of date.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date")
    check = parser.parse_args(arguments).check
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is out of date: run `make docs`")
        else:
            path.write_text(texts[path], "utf-8")
    return 1 if check and stale else 0
