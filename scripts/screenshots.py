"""Screenshots of the page that shows a pool, as the documentation has them.

Laws:
    * It only looks: the pool is whatever runs at the address that it is given.
    * A picture shows the page when it has live figures, never while it still loads.

Use::

    scripts/screenshots.py http://127.0.0.1:4578/ docs/page-load.png
    scripts/screenshots.py http://127.0.0.1:4578/ docs/page-trouble.png --dark --after 30
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from playwright.sync_api import Error, ViewportSize, sync_playwright

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
#: Sizes of a window: what an office screen and a telephone show.
_SCREEN: Final = ViewportSize(width=1280, height=900)
_PHONE: Final = ViewportSize(width=360, height=780)
_PATIENCE_MS: Final = 20_000


def main(arguments: list[str]) -> int:
    """Take one picture; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", help="where the page is")
    parser.add_argument("output", type=Path, help="the PNG file to write")
    parser.add_argument("--after", type=float, default=3.0, metavar="SECONDS", help="watch for so long first")
    parser.add_argument("--dark", action="store_true", help="as a browser in the dark asks for it")
    parser.add_argument("--phone", action="store_true", help="as wide as a telephone")
    asked = parser.parse_args(arguments)
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        print(f"none of {', '.join(_NAMES)} is installed; on Debian: apt install chromium", file=sys.stderr)
        return 4
    try:
        take(program, asked.url, asked.output, asked.after, asked.dark, asked.phone)
    except Error as error:
        print(f"no picture of {asked.url}: {error.message.splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


def take(program: str, url: str, output: Path, after_s: float, dark: bool, phone: bool) -> None:
    """Take a picture of the whole page.

    Args:
        program: The browser.
        url: Where the page is.
        output: The PNG file to write.
        after_s: For how long the page is watched first, so that its rates are those of some seconds.
        dark: Whether the browser asks for dark colours.
        phone: Whether the window is as wide as a telephone.

    Raises:
        Error: The page did not come, or did not become live.
    """
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=["--disable-gpu", *sandbox])
        page = browser.new_page(
            viewport=_PHONE if phone else _SCREEN,
            device_scale_factor=2 if phone else 1,
            color_scheme="dark" if dark else "light",
        )
        page.goto(url, timeout=_PATIENCE_MS)
        page.get_by_text("Live from").wait_for(timeout=_PATIENCE_MS)
        page.wait_for_timeout(after_s * 1000)
        page.screenshot(path=output, full_page=True)
        browser.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
