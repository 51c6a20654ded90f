"""fastagi_pool.commands.setup: in folders that play machines; this machine is only looked at."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from children import in_child
from click.testing import CliRunner, Result

from fastagi_pool.commands.setup import install, uninstall
from fastagi_pool.errors import OperatorError
from fastagi_pool.installing import Manager
from fastagi_pool.lifecycle import ActionCode

needs_useradd = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("useradd") is None, reason="only root makes users, by useradd"
)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with what every machine has."""
    (tmp_path / "var/log").mkdir(parents=True)
    (tmp_path / "var/lib").mkdir()
    for folder in ("systemd/system", "init.d", "cron.d", "logrotate.d"):
        (tmp_path / "etc" / folder).mkdir(parents=True)
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\n")
    (tmp_path / "etc/shadow").write_text("")
    return tmp_path


def paths(folder: Path) -> set[str]:
    """Return all that is below a folder, but what useradd keeps for itself."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {
        path for path in found if not path.endswith("-") and "subuid" not in path and "subgid" not in path
    }


def type_install(*words: object) -> Result:
    """Type ``install``."""
    return CliRunner().invoke(install, [str(word) for word in words])


@needs_useradd
@pytest.mark.parametrize(
    ("manager", "made"),
    [
        (Manager.SYSTEMD, {"etc/systemd/system/fastagi-pool.service"}),
        (Manager.SYSV, {"etc/init.d/fastagi-pool", "etc/cron.d/fastagi-pool"}),
    ],
)
def test_install_and_uninstall(machine: Path, manager: Manager, made: set[str]) -> None:
    """Everything that a service needs is put in place, once, and 'uninstall' leaves no trace of it."""
    before = paths(machine)
    words = (f"--{manager.value}", "--root", machine, "--program", "/usr/bin/fastagi-pool")
    result = type_install(*words)
    assert result.exit_code == 0, result.output
    assert paths(machine) - before == {
        *made,
        "etc/fastagi-pool",
        "etc/fastagi-pool/fastagi-pool.yaml",
        "etc/logrotate.d/fastagi-pool",
        "var/log/fastagi-pool",
        "var/lib/fastagi-pool",
        "var/lib/fastagi-pool-setup",
        "var/lib/fastagi-pool-setup/installed.json",
    }
    assert "make user fastagi\n" in result.output
    assert "fastagi:" in (machine / "etc/passwd").read_text()
    assert "It does not start by itself yet" in result.output
    again = type_install(*words)
    assert "make" not in again.output
    removed = CliRunner().invoke(uninstall, ["--root", str(machine)])
    assert removed.exit_code == 0, removed.output
    assert paths(machine) == before
    assert "fastagi:" not in (machine / "etc/passwd").read_text()
    assert CliRunner().invoke(uninstall, ["--root", str(machine)]).output == "nothing is installed here\n"


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_dry_run_touches_nothing(machine: Path, command: str) -> None:
    """With --dry-run everything is shown and nothing is done."""
    before = paths(machine)
    if command == "install":
        result = type_install("--systemd", "--socket", "--root", machine, "--dry-run")
        assert "make file /etc/systemd/system/fastagi-pool.socket\n" in result.output
    else:
        result = CliRunner().invoke(uninstall, ["--root", str(machine), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert paths(machine) == before


def test_configuration_of_this_machine_is_followed(tmp_path: Path) -> None:
    """A configuration that is there stays, and decides on folders and times."""
    config = tmp_path / "fastagi-pool" / "pool.yaml"
    config.parent.mkdir()
    config.write_text(
        "graceful_timeout: 5m\nhttp: {listen: 'off'}\nroutes: [{default: true, handler: 'a:b'}]\n"
    )
    result = type_install("--systemd", "--config", config, "--dry-run", "--program", "/usr/bin/fastagi-pool")
    assert result.exit_code == 0, result.output
    assert f"file {config}" not in result.output


def test_refused_configuration_installs_nothing(tmp_path: Path) -> None:
    """No service is made of a configuration that cannot be run."""
    config = tmp_path / "pool.yaml"
    config.write_text("workers: none\n")
    result = type_install("--sysv", "--config", config, "--dry-run", "--program", "/usr/bin/fastagi-pool")
    assert result.exit_code == ActionCode.NOT_CONFIGURED
    assert "nothing was installed" in result.output


def test_socket_is_systemds() -> None:
    """What contradicts itself is refused."""
    result = type_install("--sysv", "--socket", "--dry-run")
    assert result.exit_code == 2
    assert "--socket needs --systemd" in result.output


def test_odd_program_is_refused() -> None:
    """A path that no unit or script can hold is refused in words."""
    result = type_install("--sysv", "--dry-run", "--program", "/opt/my pool")
    assert isinstance(result.exception, OperatorError)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_only_root_installs() -> None:
    """Others are told so, before anything is tried."""

    def try_it() -> list[object]:
        os.setuid(65534)
        result = type_install("--sysv", "--program", "/usr/bin/fastagi-pool")
        return [result.exit_code, result.output]

    code, output = in_child(try_it)
    assert code == ActionCode.NOT_PERMITTED
    assert output.startswith("not permitted: only root may do that")


def test_user_whose_group_has_another_name(machine: Path) -> None:
    """For a user who is there already the files name his own group, whatever it is called."""
    (machine / "etc/passwd").write_text("root:x:0:0:::\nagi:x:990:991:::\n")
    (machine / "etc/group").write_text("root:x:0:\nasterisk:x:991:\n")
    words = ("--systemd", "--root", machine, "--program", "/usr/bin/fastagi-pool", "--user", "agi")
    assert type_install(*words).exit_code == 0
    assert "Group=asterisk\n" in (machine / "etc/systemd/system/fastagi-pool.service").read_text()
    assert "su agi asterisk\n" in (machine / "etc/logrotate.d/fastagi-pool").read_text()
