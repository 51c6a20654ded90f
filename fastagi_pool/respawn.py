"""Respawn: how a new Python interpreter is started with this package in it.

Laws:
    * The package need not be on Python's own search path, as in the Debian package, nor may it get there by
      the environment: scripts that inherit this would find our libraries in the place of theirs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

_FOLDER: Final = str(Path(__file__).parent.parent)


def interpreter_words(module: str) -> tuple[str, ...]:
    """Give the beginning of a command line that runs ``main()`` of a module; arguments may follow.

    Args:
        module: As ``fastagi_pool.cli``. Its ``main`` finds its arguments in ``sys.argv``; what it returns
            becomes the exit code.
    """
    code = f"import sys; sys.path.insert(0, sys.argv.pop(1)); from {module} import main; sys.exit(main())"
    # Isolated from the working directory, where a file may bear the name of a library.
    return sys.executable, "-P", "-c", code, _FOLDER
