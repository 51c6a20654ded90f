"""fastagi_pool.privileges: in processes of their own, as root where that is needed."""

from __future__ import annotations

import ctypes
import os
import pwd
import stat
from pathlib import Path

import pytest
from children import in_child

from fastagi_pool.errors import BootError
from fastagi_pool.privileges import Identity, become, find, is_of_the_system, own_file, own_folder, settle

NOBODY = pwd.getpwnam("nobody")
SOMEBODY = Identity(NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,), "nobody")
_PR_GET_DUMPABLE = 3

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand over")


def refusal(work: object) -> str:
    """Return what a call was refused with."""
    assert callable(work)
    with pytest.raises(BootError) as refused:
        work()
    return str(refused.value)


# --- who


def test_find_takes_the_users_own_group() -> None:
    """Without a group it is the user's own, with all that he is a member of."""
    found = find("nobody")
    assert (found.uid, found.gid, found.name) == (NOBODY.pw_uid, NOBODY.pw_gid, "nobody")
    assert NOBODY.pw_gid in found.groups


def test_find_takes_another_group() -> None:
    """A group that is named replaces the user's own."""
    assert find("nobody", "root").gid == 0


@pytest.mark.parametrize(("user", "group"), [("no-such-user", ""), ("nobody", "no-such-group")])
def test_find_says_what_is_missing(user: str, group: str) -> None:
    """A user or group that this machine does not have is named, with what to do."""
    assert "add --system no-such-" in refusal(lambda: find(user, group))


# --- becoming


@as_root
def test_become_leaves_no_way_back() -> None:
    """All ids and groups change, root cannot be regained, and stacks can still be looked at."""

    def change() -> list[object]:
        become(SOMEBODY)
        regained = True
        try:
            os.setuid(0)
        except PermissionError:
            regained = False
        dumpable = ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
        return [os.getresuid(), os.getresgid(), os.getgroups(), regained, dumpable]

    uid, gid = SOMEBODY.uid, SOMEBODY.gid
    assert in_child(change) == [[uid] * 3, [gid] * 3, [gid], False, 1]


@as_root
def test_become_whom_we_are() -> None:
    """Who is the user already needs no root for it; nobody else can be become without."""

    def twice() -> str:
        become(SOMEBODY)
        become(SOMEBODY)
        try:
            become(Identity(1, 1, (), "daemon"))
        except BootError as error:
            return str(error)
        return ""

    assert in_child(twice) == "user: only root can become 'daemon'; start as root or as 'daemon'"


@as_root
def test_way_back_is_noticed() -> None:
    """Where root can be regained in spite of all, as with a kept capability, nothing is served."""

    def change() -> str:
        # PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP: capabilities stay when the user changes.
        assert ctypes.CDLL(None).prctl(28, 1 << 2, 0, 0, 0) == 0
        try:
            become(SOMEBODY)
        except BootError as error:
            return str(error)
        return ""

    assert "could become root again" in in_child(change)


def test_settle() -> None:
    """The umask is octal, and the folder is entered; empty ones change nothing."""

    def change() -> list[object]:
        os.umask(0o022)
        settle("", "")
        before = [os.umask(0o022), str(Path.cwd())]
        settle("027", "/usr")
        return [*before, os.umask(0), str(Path.cwd())]

    assert in_child(change) == [0o022, str(Path.cwd()), 0o027, "/usr"]


def test_settle_says_where_it_could_not_go(tmp_path: Path) -> None:
    """A folder that cannot be entered is named."""
    assert refusal(lambda: settle("", str(tmp_path / "none"))).startswith("chdir: cannot enter")


# --- folders


@as_root
def test_missing_folder_is_made(tmp_path: Path) -> None:
    """What is made is the user's, with the rights asked for; what is above stays root's."""
    folder = tmp_path / "above" / "run"
    own_folder(folder, SOMEBODY, 0o750)
    facts = folder.stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (SOMEBODY.uid, SOMEBODY.gid, 0o750)
    assert folder.parent.stat().st_uid == 0


@as_root
def test_folder_of_an_earlier_run_is_handed_over(tmp_path: Path) -> None:
    """A folder of root's that is empty, or holds only what we know, is handed over."""
    for name in ("empty", "known"):
        (tmp_path / name).mkdir()
    (tmp_path / "known" / "scoreboard").touch()
    own_folder(tmp_path / "empty", SOMEBODY)
    own_folder(tmp_path / "known", SOMEBODY, known=("scoreboard", "master.pid"))
    assert {(tmp_path / name).stat().st_uid for name in ("empty", "known")} == {SOMEBODY.uid}


@as_root
def test_own_folder_again_changes_nothing(tmp_path: Path) -> None:
    """What is the user's already stays as he keeps it."""
    folder = tmp_path / "run"
    own_folder(folder, SOMEBODY, 0o755)
    folder.chmod(0o700)
    (folder / "anything").touch()
    own_folder(folder, SOMEBODY, 0o755)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@as_root
def test_folder_with_something_else_is_not_handed_over(tmp_path: Path) -> None:
    """A folder of root's that others use stays root's, and the message names what is in the way."""
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "secrets").touch()
    assert "'secrets'" in refusal(lambda: own_folder(folder, SOMEBODY, known=("scoreboard",)))
    assert folder.stat().st_uid == 0


@as_root
def test_folder_of_somebody_else_is_not_handed_over(tmp_path: Path) -> None:
    """What belongs to another user is his."""
    folder = tmp_path / "his"
    folder.mkdir()
    os.chown(folder, 1, 1)
    assert "belongs to user 1" in refusal(lambda: own_folder(folder, SOMEBODY))


@as_root
def test_links_are_not_followed(tmp_path: Path) -> None:
    """A symbolic link in the place of a folder or a file leads root nowhere."""
    (tmp_path / "target").mkdir()
    (tmp_path / "plain").touch()
    (tmp_path / "folder").symlink_to(tmp_path / "target")
    (tmp_path / "file").symlink_to(tmp_path / "plain")
    assert "links are not followed" in refusal(lambda: own_folder(tmp_path / "folder", SOMEBODY))
    assert "links are not followed" in refusal(lambda: own_file(tmp_path / "file", SOMEBODY))
    assert {(tmp_path / name).stat().st_uid for name in ("target", "plain")} == {0}


@as_root
def test_link_above_is_resolved(tmp_path: Path) -> None:
    """A folder is reached through a link above it, as everything below /var/run is."""
    (tmp_path / "run").mkdir()
    (tmp_path / "var-run").symlink_to("run")
    own_folder(tmp_path / "var-run" / "pool", SOMEBODY)
    assert (tmp_path / "run" / "pool").stat().st_uid == SOMEBODY.uid


@pytest.mark.parametrize("folder", ["/", "/etc", "/var/log", "/var/lib/asterisk", "/usr/../var/log", "/srv"])
def test_system_folders_are_refused(folder: str) -> None:
    """No mistake in the configuration hands over what the system needs."""
    assert is_of_the_system(Path(folder))
    assert "belongs to the system" in refusal(lambda: own_folder(Path(folder), SOMEBODY))


@pytest.mark.parametrize("folder", ["/var/log/fastagi-pool", "/run/fastagi-pool", "/srv/agi"])
def test_folders_of_services_are_not_the_systems(folder: str) -> None:
    """What is made for one service may be handed over to it."""
    assert not is_of_the_system(Path(folder))


# --- files


@as_root
def test_file_is_made_or_handed_over(tmp_path: Path) -> None:
    """A log becomes the user's, with what stands in it."""
    (tmp_path / "old.log").write_text("before\n")
    own_file(tmp_path / "old.log", SOMEBODY)
    own_file(tmp_path / "new.log", SOMEBODY, 0o600)
    assert (tmp_path / "old.log").read_text() == "before\n"
    assert {(tmp_path / f"{name}.log").stat().st_uid for name in ("old", "new")} == {SOMEBODY.uid}
    assert stat.S_IMODE((tmp_path / "new.log").stat().st_mode) == 0o600


@as_root
def test_file_with_a_second_name_is_not_handed_over(tmp_path: Path) -> None:
    """A hard link that somebody put into the log's place does not give him the file behind it."""
    (tmp_path / "shadow").touch()
    (tmp_path / "pool.log").hardlink_to(tmp_path / "shadow")
    assert "no plain file with one name" in refusal(lambda: own_file(tmp_path / "pool.log", SOMEBODY))
    assert (tmp_path / "shadow").stat().st_uid == 0


@as_root
def test_pipe_is_no_file(tmp_path: Path) -> None:
    """A named pipe in the log's place neither holds root up nor is it handed over."""
    os.mkfifo(tmp_path / "pool.log")
    message = refusal(lambda: own_file(tmp_path / "pool.log", SOMEBODY))
    assert "cannot hand over" in message or "no plain file" in message
