"""scripts/mkdocs.yml, scripts/site_hooks.py: the pages are a site, with no broken link and no network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

PROJECT: Final = Path(__file__).resolve().parent.parent
#: What a browser fetches by itself, unlike a link.
_FETCHED: Final = re.compile(
    r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as strictly as can be: whatever is not in order is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        # Not --quiet: what is not said is not counted either.
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--config-file",
            "scripts/mkdocs.yml",
            "--site-dir",
            str(folder),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    """Each page of the documentation is a page of the site."""
    pages = sorted((PROJECT / "docs").rglob("*.md"))

    assert pages
    for page in pages:
        assert (site / page.relative_to(PROJECT / "docs")).with_suffix(".html").exists()


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """The site can be read on a machine that reaches nothing else."""
    fetched = {url for page in site.rglob("*.html") for url in _FETCHED.findall(page.read_text())}

    assert fetched == set()


def test_files_of_the_project_are_on_the_site(site: Path) -> None:
    """A file that a page leads to can be opened there."""
    text = (site / "operations.html").read_text()

    assert 'href="conf/extensions.conf"' in text
    assert (site / "conf" / "extensions.conf").read_text() == (PROJECT / "conf/extensions.conf").read_text()
