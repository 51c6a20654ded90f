"""Build the Debian package ``dist/fastagi-pool_VERSION_ARCHITECTURE.deb``.

Laws:
    * It is for the Python that this machine's Debian calls ``python3``, whatever Python runs this script.
    * What is in it comes from the project's own files and from the libraries that pip finds: those versions
      that the interpreter of this script has too, for with them the tests have run.
    * Neither the project's folder nor the machine is changed, but for ``dist/``.
    * Nothing in it tells where it was built.

How it works: a folder is filled as the machine shall have it, and ``dpkg-deb`` packs it with every file as
root's. Init script, units, logrotate's file and the configuration are those that ``fastagi-pool install``
writes; ``scripts/deb/`` has what only a package needs.

Use: ``python scripts/build_deb.py [FOLDER]``, the folder being ``dist`` unless given.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from email.parser import HeaderParser
from email.utils import formatdate
from pathlib import Path
from typing import Final

from fastagi_pool.installing import Settings, render
from fastagi_pool.version import VERSION

_PROJECT: Final = Path(__file__).resolve().parent.parent
_TEMPLATES: Final = _PROJECT / "scripts" / "deb"
_LIBRARY: Final = "/usr/lib/fastagi-pool"
_DOCUMENTS: Final = "/usr/share/doc/fastagi-pool"
_SYSTEM_PYTHON: Final = "/usr/bin/python3"
#: What is needed of the project to install it.
_SOURCES: Final = ("fastagi_pool", "setup.cfg", "pyproject.toml", "README.md")
_MAINTAINER_SCRIPTS: Final = ("postinst", "prerm", "postrm")
#: Fetching libraries takes a minute on a slow line.
_TIMEOUT_S: Final = 900.0


class BuildError(Exception):
    """The package cannot be built; the text says why."""


class Stage:
    """A folder that is filled as the machine shall have it."""

    def __init__(self, root: Path, words: Mapping[str, str]) -> None:
        """Fill a folder.

        Args:
            root: The folder, which is ``/`` on the machine.
            words: What stands for each placeholder of the templates.
        """
        self.root = root
        self.words = dict(words)

    def path(self, path: str) -> Path:
        """Return where a path of the machine is here."""
        return self.root / path.lstrip("/")

    def template(self, name: str) -> str:
        """Return a template of ``scripts/deb`` with its placeholders filled."""
        text = (_TEMPLATES / name).read_text("utf-8")
        return re.sub(r"@([A-Z_]+)@", lambda found: self.words[found[1]], text)

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file, and the folders above it."""
        self.make_folder(str(Path(path).parent))
        self.path(path).write_bytes(content.encode() if isinstance(content, str) else content)
        self.path(path).chmod(mode)

    def make_folder(self, path: str) -> None:
        """Make a folder, and those above it."""
        self.path(path).mkdir(parents=True, exist_ok=True)

    def size_kb(self) -> int:
        """Return what it takes on disk, roughly, in KB."""
        return sum(-(-path.lstat().st_size // 1024) for path in self.root.rglob("*"))


def main(output: Path) -> None:
    """Build the package into a folder, and print where it is.

    Raises:
        BuildError: It cannot be built.
    """
    python = _system_python()
    architecture = _run("dpkg", "--print-architecture").strip()
    with tempfile.TemporaryDirectory(prefix="fastagi-pool-deb-") as name:
        folder = Path(name)
        stage = Stage(folder / "stage", _words(python, architecture))
        _fill_library(stage, folder, python)
        _fill_system(stage)
        _fill_documents(stage)
        stage.words["SIZE_KB"] = str(stage.size_kb())
        _fill_control(stage)
        _set_rights_and_times(stage.root)
        _compile(stage)
        output.mkdir(exist_ok=True)
        package = output / f"fastagi-pool_{VERSION}_{architecture}.deb"
        _run("dpkg-deb", "--root-owner-group", "--build", str(stage.root), str(package))
    print(package)


def _system_python() -> tuple[int, int]:
    """Return the version of the system's own Python: major and minor number."""
    if not Path("/etc/debian_version").exists() or shutil.which("dpkg-deb") is None:
        raise BuildError("a Debian package can only be built on Debian")
    if not Path(_SYSTEM_PYTHON).exists():
        raise BuildError(f"no {_SYSTEM_PYTHON}: apt-get install python3")
    major, minor = _run(_SYSTEM_PYTHON, "-c", "import sys; print(*sys.version_info[:2])").split()
    return int(major), int(minor)


def _words(python: tuple[int, int], architecture: str) -> dict[str, str]:
    major, minor = python
    settings = Settings()
    name = os.environ.get("DEBFULLNAME", "fastagi_pool")
    address = os.environ.get("DEBEMAIL", "fastagi-pool@localhost")
    return {
        "VERSION": VERSION,
        "ARCHITECTURE": architecture,
        "MAINTAINER": f"{name} <{address}>",
        "PYTHON": f"{major}.{minor}",
        "NEXT_PYTHON": f"{major}.{minor + 1}",
        "LIBRARY": _LIBRARY,
        "DATE": formatdate(_newest_source_s()),
        "USER": settings.user,
        "PROGRAM": settings.program,
        "CONFIG": settings.config,
    }


def _newest_source_s() -> int:
    """Return when the sources were last changed, in seconds since the epoch; the environment may say it."""
    newest = max(path.stat().st_mtime for path in (_PROJECT / "fastagi_pool").rglob("*.py"))
    return int(os.environ.get("SOURCE_DATE_EPOCH", newest))


# --- the library


def _fill_library(stage: Stage, folder: Path, python: tuple[int, int]) -> None:
    """Install the project and what it needs, and leave out what only their developers need."""
    source = folder / "source"
    source.mkdir()
    # From a copy: a build leaves things behind in its folder, and takes what an earlier one has left.
    for name in _SOURCES:
        whole = _PROJECT / name
        if whole.is_dir():
            shutil.copytree(whole, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(whole, source / name)
    constraints = folder / "constraints.txt"
    constraints.write_text(_tested_versions())
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("fastagi_pool-*.whl")
    library = stage.path(_LIBRARY)
    abi = ("--only-binary", ":all:", "--implementation", "cp", "--python-version", "{}.{}".format(*python))
    where = ("--no-compile", "--target", str(library), "--constraint", str(constraints))
    _pip("install", *abi, *where, str(wheel))
    for unwanted in _unwanted(library):
        if unwanted.is_dir():
            shutil.rmtree(unwanted)
        else:
            unwanted.unlink()


def _tested_versions() -> str:
    """Return which versions of libraries the interpreter of this script has, for pip."""
    frozen = _pip("freeze", "--exclude-editable")
    return "".join(f"{line}\n" for line in frozen.splitlines() if re.fullmatch(r"[\w.-]+==[\w.!+-]+", line))


def _unwanted(library: Path) -> Iterator[Path]:
    """Find what nobody needs who runs a server."""
    yield library / "bin"
    if (library / "include").exists():
        yield library / "include"
    for pattern in ("*/tests", "zope/interface/**/tests"):
        yield from [path for path in library.glob(pattern) if path.is_dir()]
    # They tell where it was built, and what pip did.
    for name in ("direct_url.json", "RECORD", "INSTALLER", "REQUESTED"):
        yield from library.glob(f"*.dist-info/{name}")


def _compile(stage: Stage) -> None:
    """Compile all modules: who runs the server cannot write there, and root must not."""
    # What cannot be compiled is a template, or for another Python; it is never imported.
    arguments = ("-q", "-s", str(stage.root), "-p", "/", str(stage.path(_LIBRARY)))
    subprocess.run(
        (_SYSTEM_PYTHON, "-m", "compileall", "--invalidation-mode", "timestamp", *arguments),
        stdout=subprocess.DEVNULL,
        timeout=_TIMEOUT_S,
        check=False,
    )


# --- what is around it


def _fill_system(stage: Stage) -> None:
    """Write what makes it a service."""
    settings = Settings()
    stage.write(settings.program, stage.template("program"), 0o755)
    stage.write(settings.config, render("fastagi-pool.yaml", settings))
    stage.write("/etc/init.d/fastagi-pool", render("fastagi-pool.init", settings), 0o755)
    stage.write("/etc/logrotate.d/fastagi-pool", render("fastagi-pool.logrotate", settings))
    stage.write("/etc/cron.d/fastagi-pool", stage.template("cron"))
    for unit in ("fastagi-pool.service", "fastagi-pool.socket"):
        stage.write(f"/lib/systemd/system/{unit}", render(unit, settings))
    stage.make_folder("/var/log/fastagi-pool")


def _fill_documents(stage: Stage) -> None:
    """Write the documents that Debian wants, and examples."""
    stage.words["LICENCES"] = "\n".join(_licences(stage.path(_LIBRARY)))
    stage.write(f"{_DOCUMENTS}/copyright", stage.template("copyright"))
    changes = gzip.compress(stage.template("changelog").encode(), mtime=0)
    stage.write(f"{_DOCUMENTS}/changelog.gz", changes)
    stage.write(f"{_DOCUMENTS}/changelog.md", (_PROJECT / "docs" / "changelog.md").read_bytes())
    for example in sorted((_PROJECT / "conf").iterdir()):
        stage.write(f"{_DOCUMENTS}/examples/{example.name}", example.read_bytes())


def _licences(library: Path) -> Iterator[str]:
    """Tell name, version and licence of each library."""
    for path in sorted(library.glob("*.dist-info/METADATA")):
        facts = HeaderParser().parsestr(path.read_text("utf-8"))
        named = [
            line.rpartition(" :: ")[2] for line in facts.get_all("Classifier", []) if "License ::" in line
        ]
        licence = facts["License-Expression"] or ", ".join(named) or facts["License"]
        if licence:
            yield f"  {facts['Name']} {facts['Version']}: {licence.splitlines()[0]}"


def _fill_control(stage: Stage) -> None:
    for name in ("control", "conffiles"):
        stage.write(f"/DEBIAN/{name}", stage.template(name))
    for name in _MAINTAINER_SCRIPTS:
        stage.write(f"/DEBIAN/{name}", stage.template(name), 0o755)


def _set_rights_and_times(root: Path) -> None:
    """Give all the rights that they need, whatever the builder's umask, and one time."""
    time_s = _newest_source_s()
    for path in (root, *root.rglob("*")):
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)
        # Before they are compiled: that notes a source's time.
        os.utime(path, (time_s, time_s))


# --- programs


def _pip(verb: str, *arguments: str) -> str:
    return _run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", verb, *arguments)


def _run(*words: str) -> str:
    """Run a program and return what it prints."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(str(error)) from error
    if done.returncode:
        raise BuildError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else _PROJECT / "dist")
    except BuildError as error:
        sys.exit(f"{error}")
