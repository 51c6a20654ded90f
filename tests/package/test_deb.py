"""The Debian package on a bare machine: from nothing to an upgrade under load, and back to nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from .conftest import PROJECT, Package
from .root import Machine

pytestmark = pytest.mark.package

_CALLERS: Final = Path(__file__).parent / "callers.py"
_URL: Final = "agi://127.0.0.1:4577/hello"
_HOW_MANY: Final = 4
#: The callers' last calls, and what they start with.
_CALLERS_TIMEOUT_S: Final = 60.0
_INIT: Final = "/etc/init.d/fastagi-pool"
_LOG: Final = "/var/log/fastagi-pool/pool.log"
_CONFIG: Final = "/etc/fastagi-pool/fastagi-pool.yaml"
_STATE: Final = "/var/lib/fastagi-pool"
#: Puts a call off, as a worker does whose database is away.
_PUT_OFF: Final = """
import sys
from pathlib import Path

sys.path[0] = "/usr/lib/fastagi-pool"

from fastagi_pool.journal import Journal, NewEntry

backlog = Path("/run/fastagi-pool/journal.waiting")
journal = Journal.open(Path("/var/lib/fastagi-pool/journal.db"), 2**20, backlog)
journal.append([NewEntry("calls", "hello", "ref", (), 0.0, 0.0)])
"""
#: What is not compared, and why it is not ours.
_KEPT: Final = (
    r"/(proc|dev|tmp)/.*",  # the machine's own, and where the test lays packages
    r"/etc/(passwd|group|shadow|gshadow)-",  # what useradd and userdel found: their copies from before
    r"/var/lib/dpkg/status-old",  # the same of dpkg
    r"/var/lib/apt/lists/auxfiles",  # an empty folder of apt's
    r"/var/cache/apt/.*",  # what apt can make again
    r"/var/log/(apt/.*|dpkg\.log)",  # what apt and dpkg say they have done
)


def _is_kept(path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in _KEPT)


def _allow_starts(machine: Machine) -> None:
    """Let packages start their services, though the machine has no init system."""
    policy = machine.path("/usr/sbin/policy-rc.d")
    policy.write_text("#!/bin/sh\nexit 0\n")
    policy.chmod(0o755)


def _lay_down(machine: Machine, package: Package) -> str:
    """Put a package onto the machine, as a download; return its path there."""
    shutil.copy(package.path, machine.path("/tmp"))
    return f"/tmp/{package.path.name}"


def _install(machine: Machine, package: Package) -> str:
    """Install a package as its users do, and return what they see."""
    return machine.run(f"apt-get install --yes {_lay_down(machine, package)}")


def _master_pid(machine: Machine) -> str:
    return machine.path("/run/fastagi-pool/master.pid").read_text().strip()


@contextmanager
def _callers(machine: Machine) -> Iterator[dict[str, int]]:
    """Have callers call all the time; how their calls went is known when they have stopped."""
    ends: dict[str, int] = {}
    words = machine.words_in_its_network(sys.executable, _CALLERS, _URL, str(_HOW_MANY))
    callers = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    with callers:
        try:
            assert callers.stdout is not None
            assert callers.stdout.readline() == "calling\n"
            yield ends
            ends.update(json.loads(callers.communicate(timeout=_CALLERS_TIMEOUT_S)[0]))
        finally:
            callers.kill()


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm"])
def test_maintainer_scripts_are_clean(name: str, need_program: Callable[..., Path]) -> None:
    """What dpkg runs as root is POSIX shell without any remark of shellcheck's."""
    need_program("shellcheck", "shellcheck")
    script = PROJECT / "scripts" / "deb" / name
    done = subprocess.run(("shellcheck", "--shell=sh", script), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_package_comes_and_goes(bare_machine: Machine, package: Package, next_package: Package) -> None:
    """Installed, called, reloaded, upgraded under load, stopped, purged: no call lost, nothing left."""
    machine = bare_machine
    before = machine.listing(_is_kept)

    # A machine without an init system lets no package start anything.
    _install(machine, package)
    assert "listens on 127.0.0.1:4577" in machine.run(f"{_INIT} start")
    machine.run(f"{_INIT} status")
    assert "AGISTATUS=SUCCESS" in machine.run("fastagi-pool call hello")
    machine.run(f"{_INIT} reload")
    pid = _master_pid(machine)

    with _callers(machine) as ends:
        upgraded = _install(machine, next_package)
    assert set(ends) == {"SUCCESS"}, upgraded
    assert ends["SUCCESS"] > _HOW_MANY

    assert _master_pid(machine) == pid
    assert next_package.version in machine.run("fastagi-pool --version")
    log = machine.path(_LOG).read_text()
    assert f"fastagi-pool {next_package.version} has taken over from {package.version}" in log
    assert f'"{next_package.version}"' in machine.run("fastagi-pool status --json")

    machine.run(f"{_INIT} stop")
    machine.run(f"{_INIT} status", expect=3)
    machine.run("apt-get purge --yes fastagi-pool")
    assert machine.listing(_is_kept) == before


def test_server_is_nobody_in_particular(bare_machine: Machine, package: Package) -> None:
    """The package's server runs as its own user, who can write its logs and read its configuration alone."""
    machine = bare_machine
    _allow_starts(machine)
    _install(machine, package)
    user = machine.run("id -u fastagi").strip()
    owners = machine.run(f"grep Uid: /proc/{_master_pid(machine)}/status")
    assert owners.split() == ["Uid:", user, user, user, user]
    folders = f"/etc/fastagi-pool {_CONFIG} /var/log/fastagi-pool {_LOG} {_STATE}"
    seen = machine.run(f"stat --format '%A %U:%G' {folders}")
    assert seen.splitlines() == [
        "drwxr-x--- root:fastagi",
        "-rw-r----- root:fastagi",
        "drwxr-x--- fastagi:fastagi",
        "-rw-r----- fastagi:fastagi",
        "drwx------ fastagi:fastagi",
    ]


def test_calls_survive_a_purge(bare_machine: Machine, package: Package) -> None:
    """A purge leaves calls that are not done, says how many, and takes them for nobody's once they are."""
    machine = bare_machine
    before = machine.listing(_is_kept)
    _allow_starts(machine)
    _install(machine, package)
    machine.path("/tmp/put_off").write_text(_PUT_OFF)
    machine.run("setpriv --reuid=fastagi --regid=fastagi --clear-groups python3 /tmp/put_off")
    purged = machine.run("apt-get purge --yes fastagi-pool")
    assert f"{_STATE} is left, and the user fastagi: 1 call in journal.db not done yet" in purged
    assert machine.path(f"{_STATE}/journal.db").exists()
    machine.run("id fastagi")

    _install(machine, package)
    assert "1 call" in machine.run("fastagi-pool journal drop --all --waiting --yes")
    assert "is left" not in machine.run("apt-get purge --yes fastagi-pool")
    machine.run("rm /usr/sbin/policy-rc.d")
    assert machine.listing(_is_kept) == before


def test_operators_wishes_survive(bare_machine: Machine, package: Package, next_package: Package) -> None:
    """A server that was stopped stays stopped over an upgrade; a removal keeps configuration and logs."""
    machine = bare_machine
    _allow_starts(machine)
    _install(machine, package)
    machine.run(f"echo '# mine' >> {_CONFIG}; {_INIT} stop")
    _install(machine, next_package)
    machine.run(f"{_INIT} status", expect=3)
    machine.run(f"{_INIT} start")

    removed = machine.run("apt-get remove --yes fastagi-pool")
    assert "fastagi-pool has stopped" in removed
    assert machine.path(_CONFIG).read_text().endswith("# mine\n")
    assert machine.path(_LOG).exists()

    assert "listens on 127.0.0.1:4577" in _install(machine, package)
    machine.run("apt-get purge --yes fastagi-pool")
    machine.run("id fastagi", expect=1)


def test_refused_upgrade_leaves_the_old_one_in_charge(
    bare_machine: Machine, package: Package, tmp_path: Path
) -> None:
    """A new version that cannot take over is installed nevertheless, and says what is to be done."""
    machine = bare_machine
    _allow_starts(machine)
    _install(machine, package)
    pid = _master_pid(machine)

    stage = tmp_path / "stage"
    subprocess.run(("dpkg-deb", "--raw-extract", package.path, stage), check=True)
    control = stage / "DEBIAN" / "control"
    control.write_text(control.read_text().replace(f"Version: {package.version}", "Version: 99"))
    module = stage / "usr" / "lib" / "fastagi-pool" / "fastagi_pool" / "takeover.py"
    # Another program's text, which this one would have to go on with.
    module.write_text(module.read_text().replace("\n_KIND: Final = 1\n", "\n_KIND: Final = 99\n"))
    broken = Package(tmp_path / "fastagi-pool_99_all.deb", "99")
    subprocess.run(("dpkg-deb", "-Znone", "--root-owner-group", "--build", stage, broken.path), check=True)

    said = _install(machine, broken)
    assert "goes on as the old version" in said
    assert "invoke-rc.d fastagi-pool restart" in said
    assert machine.run("dpkg-query --show --showformat '${Status}' fastagi-pool") == "install ok installed"
    assert _master_pid(machine) == pid
    assert "AGISTATUS=SUCCESS" in machine.run("fastagi-pool call hello")


def test_first_start_that_fails_is_told(bare_machine: Machine, package: Package) -> None:
    """A port that is taken does not make the installation fail, and the reader is told."""
    machine = bare_machine
    _allow_starts(machine)
    taken = (
        "import socket; s = socket.create_server(('127.0.0.1', 4577)); print('taken', flush=True); input()"
    )
    words = machine.words(f'python3 -c "{taken}"')
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "taken\n"
        said = _install(machine, package)
        other.communicate("\n", timeout=_CALLERS_TIMEOUT_S)
    assert "127.0.0.1:4577" in said
    assert "fastagi-pool is installed, and does not run" in said
    machine.run("invoke-rc.d fastagi-pool start")


def test_died_master_is_started_by_cron(bare_machine: Machine, package: Package) -> None:
    """What the package tells cron to do starts a server that died, and none that was stopped."""
    machine = bare_machine
    _allow_starts(machine)
    _install(machine, package)
    line = machine.path("/etc/cron.d/fastagi-pool").read_text().splitlines()[-1]
    assert line.startswith("* * * * * root ")
    task = line.removeprefix("* * * * * root ")

    assert machine.run(task) == ""
    machine.run(f"kill -KILL {_master_pid(machine)}")
    assert "has died" in machine.run(task)
    machine.run(f"{_INIT} status")
    machine.run(f"{_INIT} stop")
    assert machine.run(task) == ""
    machine.run(f"{_INIT} status", expect=3)


def test_installed_by_its_own_command(bare_machine: Machine, package: Package) -> None:
    """``fastagi-pool install`` makes a service where no package manager did; ``uninstall`` undoes it."""
    machine = bare_machine
    files = subprocess.run(
        ("dpkg-deb", "--fsys-tarfile", package.path), capture_output=True, check=True
    ).stdout
    unpack = ("tar", "--extract", "--no-same-owner", f"--directory={machine.root}", "./usr")
    subprocess.run(unpack, input=files, check=True)
    before = machine.listing(_is_kept)

    machine.run("fastagi-pool install --sysv")
    machine.run(f"{_INIT} start")
    assert "AGISTATUS=SUCCESS" in machine.run("fastagi-pool call hello")
    assert "stop it first" in machine.run("fastagi-pool uninstall --purge", expect=1)
    machine.run(f"{_INIT} stop")
    machine.run("fastagi-pool uninstall --purge")
    # Of the folder for what runs, a machine that starts begins with an empty one.
    machine.run("rm -rf /run/fastagi-pool")
    assert machine.listing(_is_kept) == before
