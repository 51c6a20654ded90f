"""The pytest plugin: ``agi_call``, which plays calls to handlers.

Laws:
    * Installed with fastagi_pool, found by pytest by itself, and free of cost until a test asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fastagi_pool.stage import Stage


@pytest.fixture
def agi_call() -> Iterator[Stage]:
    """Places calls to handlers, in this process: see :class:`fastagi_pool.stage.Stage`."""
    # Imported here: every run of pytest on this machine loads this module, most without a call.
    from fastagi_pool.stage import Stage

    with Stage() as stage:
        yield stage
