"""Fixtures of the tests on bare machines: a machine, and the packages to be installed there.

The environment may say REQUIRE_SERVICES=1: fail rather than skip where no machine can be had.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import pytest
from debian import ProgramMissingError, provide_program

from fastagi_pool.version import VERSION

from .root import Machine, NoDebianError, machine, missing_program, provide_image

PROJECT: Final = Path(__file__).resolve().parents[2]
#: What a checkout has besides what belongs to it.
_NOT_OURS: Final = ("__pycache__", "*.egg-info", ".*", "build", "dist")
_BUILD_TIMEOUT_S: Final = 600.0


def _do_without(reason: str) -> NoReturn:
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(f"no Debian: {reason}", pytrace=False)
    pytest.skip(f"no Debian: {reason}")


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package.

    Attributes:
        path: Where it lies.
        version: Its version.
    """

    path: Path
    version: str


def copy_of_the_project(folder: Path) -> None:
    """Make a folder that is as a fresh checkout of the project."""
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns(*_NOT_OURS))


@pytest.fixture(scope="session")
def image() -> Path:
    """The root folder of a fresh Debian; skips, or fails under REQUIRE_SERVICES=1, where there is none."""
    missing = missing_program()
    if missing:
        _do_without(missing)
    path = PROJECT / ".cache" / "package-root.tar"
    try:
        provide_program(("mmdebstrap",), "mmdebstrap")
        provide_image(path)
    except (ProgramMissingError, NoDebianError) as error:
        _do_without(str(error))
    return path


@pytest.fixture
def bare_machine(image: Path) -> Iterator[Machine]:
    """A machine that has nothing but a fresh Debian with Python."""
    with machine(image) as running:
        yield running


@pytest.fixture(scope="session")
def packages(image: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Package]:
    """The Debian package of the project as it is, and that of the same project with another version."""
    next_project = tmp_path_factory.mktemp("next") / "project"
    copy_of_the_project(next_project)
    version = next_project / "fastagi_pool" / "version.py"
    version.write_text(version.read_text().replace(VERSION, f"{VERSION}+next"))
    folder = tmp_path_factory.mktemp("packages")
    first, second = [_start_build(project, folder) for project in (PROJECT, next_project)]
    return _built(first), _built(second)


@pytest.fixture(scope="session")
def package(packages: tuple[Package, Package]) -> Package:
    """The Debian package of the project as it is."""
    return packages[0]


@pytest.fixture(scope="session")
def next_package(packages: tuple[Package, Package]) -> Package:
    """The Debian package of the same project with another version."""
    return packages[1]


def _start_build(project: Path, folder: Path) -> subprocess.Popen[str]:
    """Start to build the package of a project as ``make deb`` does."""
    return subprocess.Popen(
        (sys.executable, project / "scripts" / "build_deb.py", folder),
        # Packed without compression: that takes longer than all else.
        env={**os.environ, "PYTHONPATH": str(project), "DPKG_DEB_COMPRESSOR_TYPE": "none"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _built(build: subprocess.Popen[str]) -> Package:
    """Wait for a package."""
    with build:
        try:
            output, complaint = build.communicate(timeout=_BUILD_TIMEOUT_S)
        finally:
            build.kill()
    assert build.returncode == 0, complaint
    path = Path(output.strip())
    return Package(path, path.name.split("_")[1])
