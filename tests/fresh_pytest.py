"""A fresh pytest: run in another folder and process, as by somebody who has installed fastagi_pool."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

#: Some fifty times what such a run takes.
_LIMIT_S: Final = 60.0


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m pytest`` in a folder and return what became of it."""
    # What was said to this run of pytest is not meant for that one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIMIT_S,
    )
