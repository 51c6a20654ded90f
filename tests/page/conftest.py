"""Fixtures of the tests of the page: a browser, a pool's figures, and the page that shows them.

The environment may say REQUIRE_SERVICES=1: fail rather than skip where there is no browser.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NoReturn

import pytest
from debian import ProgramMissingError, provide_program

from .pool_figures import FiguresServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome")
#: The browser, and a font with all the signs that the page shows.
_PACKAGES: Final = ("chromium", "fonts-dejavu-core")
#: What a Chromium needs on a machine without a screen, and if root starts it.
_ARGUMENTS: Final = ("--disable-gpu", "--disable-dev-shm-usage")
#: Some twenty times what the page needs to show something new, on a machine that is busy.
_PATIENCE_MS: Final = 20_000


def _do_without(reason: str) -> NoReturn:
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(f"no Chromium: {reason}", pytrace=False)
    pytest.skip(f"no Chromium: {reason}")


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One browser for all tests of the page; skips, or fails under REQUIRE_SERVICES=1, without one."""
    if importlib.util.find_spec("playwright") is None:
        _do_without("no playwright; install the project's extra dev")
    try:
        program = provide_program(_CHROMIUM, *_PACKAGES)
    except ProgramMissingError as error:
        _do_without(str(error))
    # Only now it is known that playwright is there.
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=_PATIENCE_MS)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*_ARGUMENTS, *sandbox])
        yield browser
        browser.close()


@pytest.fixture
def figures() -> Iterator[FiguresServer]:
    """Figures of a pool, served with the page."""
    figures = FiguresServer()
    yield figures
    figures.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complained of: errors of scripts, of the policy, of requests."""
    return []


@pytest.fixture
def page(browser: Browser, complaints: list[str]) -> Iterator[Page]:
    """A fresh browser window of an ordinary screen."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(_PATIENCE_MS)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
