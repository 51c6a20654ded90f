"""Sections: lines of a configuration, below the one route that it needs, for tests of what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from fastagi_pool.config import Config, load_text
from fastagi_pool.errors import ConfigError

_ROUTE: Final = "routes: [{default: true, handler: a:b}]\n"


def config(text: str) -> Config:
    """Load some lines, to which a route is added; the variable ``N`` is 5."""
    return load_text(_ROUTE + text, "x.yaml", Path("/"), {"N": "5"}).config


def problem(line: str) -> str:
    """Give the only problem of a line, without its place."""
    with pytest.raises(ConfigError) as caught:
        config(line)
    [found] = caught.value.problems
    return str(found).removeprefix("x.yaml:2: ")
