"""A newcomer on a bare machine, README in hand: from nothing to a supervised pool with his own handler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from time import monotonic
from typing import Final

import pytest

from .conftest import PROJECT, copy_of_the_project
from .reader import Reader, section
from .root import Machine

pytestmark = pytest.mark.package

_README: Final = PROJECT / "README.md"
#: What the README promises.
_PROMISE_S: Final = 600.0
_DOWNLOAD_TIMEOUT_S: Final = 300.0
_FOLDER: Final = "/opt/fastagi_pool"
_WHEELS: Final = "/var/wheels"
#: What a build needs besides: pip fetches it by itself where there is a network.
_BUILD_TOOLS: Final = ("setuptools >= 68", "wheel")
#: The project's own tests: they take minutes, and are run in their own place.
_NOT_NEEDED: Final = "make test"


def _bring_libraries(machine: Machine, folder: Path) -> None:
    """Fetch what pip would fetch there if the machine had a network; it is part of his time."""
    setup = ConfigParser()
    setup.read(PROJECT / "setup.cfg")
    needed = setup["options"]["install_requires"].split("\n")
    python = machine.run("python3 -c 'import sys; print(*sys.version_info[:2], sep=\".\")'").strip()
    fetch = (sys.executable, "-m", "pip", "--quiet", "download", "--dest", folder)
    abi = ("--only-binary", ":all:", "--python-version", python)
    requirements = [line.strip() for line in (*needed, *_BUILD_TOOLS) if line.strip()]
    subprocess.run((*fetch, *abi, *requirements), check=True, timeout=_DOWNLOAD_TIMEOUT_S)
    # Copied, for pip takes the paths by which we reach the machine for others.
    shutil.copytree(folder, machine.path(_WHEELS))
    machine.path("/etc/pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {_WHEELS}\n")


def _write(machine: Machine, path: str, text: str) -> None:
    file = machine.path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _see_the_demonstration(reader: Reader) -> None:
    chapter = section(_README, "Two commands")
    reader.types(chapter.said("apt install [^`]+"))
    start, calls, tests = chapter.of("sh")
    reader.starts(start.text.strip())
    for line in calls.lines:
        reader.types(line)
    assert tests.text.strip() == _NOT_NEEDED
    reader.interrupts()


def _write_a_handler(reader: Reader, machine: Machine) -> None:
    chapter = section(_README, "Five minutes")
    for block in chapter.of("python", "yaml"):
        name = block.named(r"\w+\.(?:py|yaml)")
        _write(machine, f"{_FOLDER}/{name}", block.text)
    (commands,) = chapter.of("sh")
    reader.keeps_doing(commands.named(r"\. [^`]+activate"))
    check, run, call = commands.lines
    reader.types(check)
    reader.starts(run)
    assert "GREETING=Good day" in reader.types(call)
    reader.interrupts()


def _make_it_a_service(reader: Reader, machine: Machine) -> None:
    chapter = section(_README, "Keep it alive")
    handler, folder = chapter.said(r"\w+\.py"), chapter.said("/srv/[^`]+")
    reader.types(f"mkdir -p {folder}; cp {handler} {folder}")
    (by_systemd,) = chapter.of("bash")
    (configuration,) = chapter.of("yaml")
    install, check, start = by_systemd.lines
    # There is no systemd on this machine; the README says what that changes.
    assert start == "systemctl start fastagi-pool"
    reader.types(install.replace("install --systemd", chapter.said("install --sysv")))
    _write(machine, configuration.named(r"/etc/[^`]+\.yaml"), configuration.text)
    reader.types(check)
    reader.types(chapter.said("/etc/init.d/[^`]+ start"))
    (changes,) = chapter.of("sh")
    for line in changes.lines:
        reader.types(line)


def test_newcomer_gets_there_in_time(bare_machine: Machine, tmp_path: Path) -> None:
    """The README alone leads from nothing to a supervised pool with one's own handler in ten minutes."""
    machine = bare_machine
    copy_of_the_project(machine.path(_FOLDER))
    # He says yes.
    _write(machine, "/etc/apt/apt.conf.d/yes", 'APT::Get::Assume-Yes "true";\n')
    # As on any server with cron; the bare folder is without.
    machine.path("/etc/cron.d").mkdir(parents=True, exist_ok=True)
    begun_s = monotonic()
    _bring_libraries(machine, tmp_path)
    reader = Reader(machine, _FOLDER)

    _see_the_demonstration(reader)
    _write_a_handler(reader, machine)
    _make_it_a_service(reader, machine)

    call = section(_README, "Five minutes").of("sh")[0].lines[-1]
    assert "GREETING=Good day" in reader.types(call)
    machine.run("kill -KILL $(cat /run/fastagi-pool/master.pid)")
    task = Path(machine.path("/etc/cron.d/fastagi-pool")).read_text().splitlines()[-1]
    machine.run(task.removeprefix("* * * * * root "))
    assert "GREETING=Good day" in reader.types(call)
    took_s = monotonic() - begun_s
    print(f"from nothing to a supervised pool: {took_s:.0f} s")
    assert took_s < _PROMISE_S
