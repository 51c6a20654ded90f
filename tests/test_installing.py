"""fastagi_pool.installing: plans by tables, and what is done in a folder that plays a machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fastagi_pool.errors import OperatorError
from fastagi_pool.installing import (
    DEFAULT_JOURNAL,
    RECORD,
    Enabling,
    Facts,
    File,
    Folder,
    Manager,
    Record,
    Settings,
    Site,
    Step,
    User,
    Verb,
    Wish,
    after_removal,
    describe_journals,
    plan,
    plan_removal,
    render,
    wishes,
    without_readers,
)
from fastagi_pool.journal import Journal, NewEntry

PROJECT = Path(__file__).resolve().parent.parent
TEMPLATES = sorted(path.name for path in (PROJECT / "fastagi_pool" / "service").iterdir())
_NOBODY = 65534
STATE = Folder("/var/lib/fastagi-pool", 0o700)
FILE = File("/etc/x/file", "text")
SERVICE = Enabling((("systemctl", "enable", "x"),), (("systemctl", "disable", "x"),))


# --- the files


@pytest.mark.parametrize("kind", ["init", "service", "logrotate", "cron"])
def test_scripts_are_the_templates_with_defaults(kind: str) -> None:
    """What lies in scripts/ for those who install by hand is what 'install' writes."""
    name = f"fastagi-pool.{kind}"
    assert (PROJECT / "scripts" / name).read_text() == render(name, Settings())


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_placeholder_is_left(name: str) -> None:
    """Every placeholder has a meaning."""
    assert not re.search(r"@\w+@", render(name, Settings()))


def test_init_script_is_clean(need_program: Callable[..., Path]) -> None:
    """The init script is POSIX shell without any remark of shellcheck's."""
    need_program("shellcheck", "shellcheck")
    script = PROJECT / "scripts" / "fastagi-pool.init"
    done = subprocess.run(["shellcheck", "--shell=sh", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert stat.S_IMODE(script.stat().st_mode) & 0o111


@pytest.mark.parametrize(
    "settings",
    [
        Settings(user="root", group="root"),
        Settings(user="root", group="root", runtime_dir="/srv/pool/run", logs=("/srv/log/a.log",)),
    ],
)
def test_units_are_clean(settings: Settings, tmp_path: Path, need_program: Callable[..., Path]) -> None:
    """systemd has nothing to say about the units."""
    need_program("systemd-analyze", "systemd")
    settings = replace(settings, program="/bin/true")
    units = [tmp_path / name for name in ("fastagi-pool.service", "fastagi-pool.socket")]
    for unit in units:
        unit.write_text(render(unit.name, settings))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_unit_follows_the_configuration() -> None:
    """Time-outs, limits and writable folders of the unit are those that the configuration needs."""
    unit = render(
        "fastagi-pool.service",
        Settings(
            program="/home/agi/venv/bin/fastagi-pool",
            runtime_dir="/run/agi/pool",
            logs=("/var/log/fastagi-pool/pool.log", "/srv/log/access.log"),
            graceful_timeout_s=600,
            calls=100_000,
            journal="/srv/calls/journal.db",
        ),
    )
    lines = unit.splitlines()
    assert "TimeoutStopSec=615" in lines
    assert "RuntimeDirectory=agi/pool" in lines
    assert "ReadWritePaths=-/srv/log -/srv/calls" in lines
    assert "LimitNOFILE=800000" in lines
    assert "ProtectHome=read-only" in lines


def test_unit_has_the_journal_and_outlives_a_worker() -> None:
    """The journal's folder is made for the user alone, and no worker that is killed stops the service."""
    lines = render("fastagi-pool.service", Settings()).splitlines()
    assert {"StateDirectory=fastagi-pool", "StateDirectoryMode=0700", "OOMPolicy=continue"} <= set(lines)
    assert "ReadWritePaths=" in lines


@pytest.mark.parametrize(
    ("journal", "made"),
    [
        (DEFAULT_JOURNAL, ["/var/lib/fastagi-pool"]),
        ("/srv/calls/journal.db", ["/srv/calls"]),
        ("", []),
    ],
)
def test_folder_of_the_journal(journal: str, made: list[str]) -> None:
    """The journal's folder is made, wherever it is configured, and is readable by the server's user alone."""
    wanted = wishes(Manager.SYSV, Settings(journal=journal), False, (), sample=True)
    folders = [wish for wish in wanted if isinstance(wish, Folder) and wish.mode == 0o700]
    assert folders == [Folder(path, 0o700, "fastagi", "fastagi") for path in made]


@pytest.mark.parametrize("manager", Manager)
def test_record_lies_where_only_root_writes(manager: Manager) -> None:
    """What root runs one day is in no folder that the server's user could write."""
    wanted = wishes(manager, Settings(), True, (), sample=True)
    his = {wish.path for wish in wanted if isinstance(wish, Folder) and wish.owner != "root"}
    assert not his & {str(folder) for folder in Path(RECORD).parents}


def test_sample_configuration_is_one() -> None:
    """The configuration to begin with is YAML that names the user and folders that are made."""
    sample = yaml.safe_load(render("fastagi-pool.yaml", Settings(user="agi")))
    assert (sample["user"], sample["runtime_dir"], sample["listen"]) == (
        "agi",
        "/run/fastagi-pool",
        ["127.0.0.1:4577"],
    )
    assert (sample["log"]["file"], sample["log"]["access"]) == Settings().logs


@pytest.mark.parametrize(
    "program", ["/opt/my pool/fastagi-pool", "/opt/$(id)/x", "/opt/a;b", "/opt/a\nb", "/o%n"]
)
def test_odd_paths_are_refused(program: str) -> None:
    """What a shell or systemd would read as something else is written into no file."""
    with pytest.raises(OperatorError, match="cannot be installed"):
        Settings(program=program)


def test_logrotate_understands_its_file(tmp_path: Path, need_program: Callable[..., Path]) -> None:
    """logrotate takes the file."""
    need_program("logrotate", "logrotate")
    file = tmp_path / "fastagi-pool"
    file.write_text(render("fastagi-pool.logrotate", Settings(user="root", group="root")))
    file.chmod(0o644)
    done = subprocess.run(["logrotate", "-d", "-s", tmp_path / "state", file], capture_output=True, text=True)
    assert "error" not in done.stderr


# --- the script as init runs it


class Init:
    """The init script, with a stand-in for the program that writes down what it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "fastagi-pool"
        self.set_code(0)
        self._script = folder / "init"
        settings = Settings(program=str(self.program), config="/etc/pool.yaml")
        self._script.write_text(render("fastagi-pool.init", settings))

    def set_code(self, code: int) -> None:
        """Have the program exit with a code."""
        self.program.write_text(f'#!/bin/sh\necho "$@" >>{self.folder}/told\nexit {code}\n')
        self.program.chmod(0o755)

    def run(self, *words: str, shell: str = "sh") -> int:
        """Run the script; return its exit code."""
        return subprocess.run([shell, self._script, *words], capture_output=True).returncode

    @property
    def told(self) -> list[str]:
        """What the program was told."""
        return (self.folder / "told").read_text().splitlines()


@pytest.fixture
def init(tmp_path: Path) -> Init:
    """Give an init script."""
    return Init(tmp_path)


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("start", "start -c /etc/pool.yaml --timeout 90s"),
        ("stop", "stop -c /etc/pool.yaml --wait"),
        ("restart", "restart -c /etc/pool.yaml"),
        ("try-restart", "restart -c /etc/pool.yaml --if-running"),
        ("condrestart", "restart -c /etc/pool.yaml --if-running"),
        ("reload", "reload -c /etc/pool.yaml --wait"),
        ("force-reload", "reload -c /etc/pool.yaml --wait"),
        ("upgrade", "upgrade -c /etc/pool.yaml --wait"),
        ("status", "status -c /etc/pool.yaml"),
        ("configtest", "check -c /etc/pool.yaml"),
        ("keep-alive", "keep-alive -c /etc/pool.yaml"),
    ],
)
def test_init_script_says_what_is_meant(init: Init, verb: str, told: str) -> None:
    """Every verb becomes one command of the program, and its exit code the script's."""
    assert init.run(verb) == 0
    init.set_code(3)
    assert init.run(verb) == (6 if verb == "configtest" else 3)
    assert init.told == [told, told]


def test_init_script_refuses_other_verbs(init: Init) -> None:
    """An unknown verb, or none, is 2."""
    assert [init.run("begin"), init.run()] == [2, 2]


def test_init_script_without_its_program(init: Init) -> None:
    """Where the package was removed and its script is left: not installed, stopped, and nothing to stop."""
    init.program.unlink()
    assert [init.run(verb) for verb in ("start", "stop", "status")] == [5, 0, 3]


# --- plans


@pytest.mark.parametrize(
    ("facts", "record", "expected"),
    [
        (Facts(), Record(), Verb.MAKE),
        (Facts(files={FILE.path: FILE.digest}), Record(), Verb.KEEP),
        (Facts(files={FILE.path: "other"}), Record(), Verb.KEEP),
        (Facts(files={FILE.path: "old"}), Record(files={FILE.path: "old"}), Verb.REPLACE),
        (Facts(files={FILE.path: "changed"}), Record(files={FILE.path: "old"}), Verb.KEEP),
    ],
    ids=["missing", "the same", "somebody's", "ours and old", "ours and changed"],
)
def test_plan_of_a_file(facts: Facts, record: Record, expected: Verb) -> None:
    """A file is written where there is none or an old one of ours; what somebody wrote stays."""
    assert [step.verb for step in plan([FILE], facts, record)] == [expected]


def test_plan_leaves_what_is_there() -> None:
    """Users and folders that exist are used and not made."""
    wanted: list[Wish] = [User("a"), Folder("/f"), User("b"), Folder("/g"), SERVICE]
    steps = plan(wanted, Facts(frozenset({"a"}), {"/f": True}), Record())
    assert [str(step) for step in steps] == [
        "keep user a (it is there)",
        "keep folder /f (it is there)",
        "make user b",
        "make folder /g",
        "run systemctl enable x",
    ]


MADE = Record(("a",), ("/etc/x", "/log"), {FILE.path: FILE.digest}, SERVICE.off, "/run/x")


@pytest.mark.parametrize(
    ("facts", "purge", "expected"),
    [
        (
            Facts(frozenset("a"), {"/etc/x": False, "/log": True}, {FILE.path: FILE.digest}),
            False,
            [
                "run systemctl disable x",
                "remove file /etc/x/file",
                "remove folder /log",
                "remove folder /etc/x",
                "remove user a",
            ],
        ),
        (
            Facts(frozenset("a"), {"/etc/x": False, "/log": True}, {FILE.path: "changed"}),
            False,
            [
                "run systemctl disable x",
                "keep file /etc/x/file (it was changed; --purge removes it)",
                "remove folder /log",
                "keep folder /etc/x (it is not empty; --purge removes it)",
                "keep user a (what is left is his; --purge removes it)",
            ],
        ),
        (
            Facts(frozenset("a"), {"/etc/x": False, "/log": False}, {FILE.path: "changed", "/log/l": "1"}),
            True,
            [
                "run systemctl disable x",
                "remove file /etc/x/file",
                "remove folder /log",
                "remove folder /etc/x",
                "remove user a",
            ],
        ),
        (
            Facts(frozenset("a"), {"/etc/x": False}, {FILE.path: FILE.digest, "/etc/x/other": "1"}),
            False,
            [
                "run systemctl disable x",
                "remove file /etc/x/file",
                "keep folder /etc/x (it is not empty; --purge removes it)",
                "keep user a (what is left is his; --purge removes it)",
            ],
        ),
        (
            Facts(frozenset("a"), {"/etc/x": False, "/log": False}, {}, {"/log": "3 calls"}),
            True,
            [
                "run systemctl disable x",
                "keep folder /log (3 calls)",
                "remove folder /etc/x",
                "keep user a (what is left is his)",
            ],
        ),
        (Facts(), False, ["run systemctl disable x"]),
    ],
    ids=["untouched", "changed", "purge", "something else in it", "purge with calls", "gone already"],
)
def test_plan_of_a_removal(facts: Facts, purge: bool, expected: list[str]) -> None:
    """What was made and not changed goes, the last first; what people changed or added stays."""
    assert [str(step) for step in plan_removal(MADE, facts, purge)] == expected


def test_what_was_kept_can_be_removed_later() -> None:
    """After a removal the record holds what was kept, and nothing else."""
    facts = Facts(frozenset("a"), {"/etc/x": False, "/log": True}, {FILE.path: "changed"})
    left = after_removal(MADE, plan_removal(MADE, facts, purge=False))
    assert left == Record(("a",), ("/etc/x",), {FILE.path: FILE.digest}, (), "/run/x")


@pytest.mark.parametrize(
    ("manager", "tools", "expected"),
    [
        (Manager.SYSTEMD, ("systemctl",), "systemctl daemon-reload; systemctl enable fastagi-pool.service"),
        (Manager.SYSV, ("update-rc.d", "chkconfig"), "update-rc.d fastagi-pool defaults"),
        (Manager.SYSV, ("chkconfig",), "chkconfig --add fastagi-pool"),
    ],
)
def test_enabling(manager: Manager, tools: tuple[str, ...], expected: str) -> None:
    """Each machine is told in its own words to start the service by itself."""
    *_, last = wishes(manager, Settings(), False, tools, sample=True)
    assert str(Step(Verb.MAKE, last)) == f"run {expected}"


def test_enabling_without_tools() -> None:
    """Where nothing can enable a service, nothing is run."""
    for manager in Manager:
        assert not any(isinstance(wish, Enabling) for wish in wishes(manager, Settings(), False, (), True))


# --- doing it


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A folder that plays a machine."""
    return Site(tmp_path)


def contents(folder: Path) -> list[str]:
    """Return all that is below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def put_off(path: Path, calls: int = 1) -> None:
    """Make a journal with calls in it."""
    with closing(Journal.open(path, 1024**2, path.with_name("backlog"))) as journal:
        if calls:
            journal.append([NewEntry("calls", "hello", "ref", (), 0.0, 0.0)] * calls)
    path.with_name("backlog").unlink()


def install(site: Site, *wanted: Folder | File | Enabling) -> list[str]:
    """Install and write it down; return what was shown."""
    record = site.read_record()
    shown: list[str] = []
    site.write_record(site.install(plan(wanted, site.look(wanted, record), record), record, shown.append))
    return shown


def uninstall(site: Site, purge: bool = False) -> list[str]:
    """Take away what was installed; return what was shown."""
    record = site.read_record()
    steps = plan_removal(record, site.look((), record), purge)
    shown: list[str] = []
    site.uninstall(steps, purge, shown.append)
    site.write_record(after_removal(record, steps))
    return shown


def test_install_and_uninstall_leave_nothing(site: Site, tmp_path: Path) -> None:
    """What was installed has its rights, and is taken away with everything that was made for it."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "var/lib").mkdir(parents=True)
    before = contents(tmp_path)
    assert install(site, Folder("/etc/x", 0o750), replace(FILE, mode=0o640)) == [
        "make folder /etc/x",
        "make file /etc/x/file",
    ]
    assert (tmp_path / "etc/x/file").read_text() == "text"
    assert stat.S_IMODE((tmp_path / "etc/x/file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "etc/x").stat().st_mode) == 0o750
    uninstall(site)
    assert contents(tmp_path) == before


def test_installing_twice_changes_nothing(site: Site, tmp_path: Path) -> None:
    """A second installation finds everything in its place, and the record stays as it was."""
    install(site, Folder("/etc/x"), FILE)
    before = site.read_record()
    assert install(site, Folder("/etc/x"), FILE) == [
        "keep folder /etc/x (it is there)",
        "keep file /etc/x/file (it is there)",
    ]
    assert site.read_record() == before


def test_newer_file_takes_the_place_of_ours(site: Site, tmp_path: Path) -> None:
    """A later version's file replaces the one that was installed, and is known from then on."""
    install(site, FILE)
    install(site, replace(FILE, text="newer"))
    assert (tmp_path / "etc/x/file").read_text() == "newer"
    uninstall(site)
    assert not (tmp_path / "etc/x/file").exists()


def test_changed_file_stays_until_the_purge(site: Site, tmp_path: Path) -> None:
    """What an operator changed survives an uninstallation, and can be purged afterwards."""
    install(site, Folder("/etc/x"), FILE)
    (tmp_path / "etc/x/file").write_text("mine")
    uninstall(site)
    assert (tmp_path / "etc/x/file").read_text() == "mine"
    uninstall(site, purge=True)
    assert not (tmp_path / "etc/x").exists()
    assert not (tmp_path / RECORD.lstrip("/")).exists()


@pytest.mark.parametrize(("calls", "number"), [(1, "1 call"), (3, "3 calls")])
@pytest.mark.parametrize("name", ["journal.db", "journal.db.old", "another.sqlite"])
def test_purge_keeps_calls_that_are_not_done(
    site: Site, tmp_path: Path, calls: int, number: str, name: str
) -> None:
    """A purge leaves a journal with calls, says how many they are, and takes it once there are none."""
    install(site, STATE)
    journal = site.path(STATE.path) / name
    put_off(journal, calls)
    (shown,) = uninstall(site, purge=True)
    assert shown.startswith(f"keep folder {STATE.path} ({number} in {name} not done yet; ")
    assert shown == next(iter(uninstall(site)))

    with closing(Journal.open_existing(journal)) as opened:
        opened.settle(done=[each.number for each in opened.all()])
    assert uninstall(site) == [f"keep folder {STATE.path} (it is not empty; --purge removes it)"]
    assert uninstall(site, purge=True) == [f"remove folder {STATE.path}"]
    assert not site.path(STATE.path).exists()
    assert not (tmp_path / RECORD.lstrip("/")).parent.exists()


def test_purge_keeps_a_journal_that_nobody_can_read(site: Site) -> None:
    """What may be calls is not thrown away because it is damaged; what is empty holds none."""
    install(site, STATE)
    journal = site.path(STATE.path) / "journal.db"
    journal.write_text("damaged")
    (shown,) = uninstall(site, purge=True)
    assert "nobody knows which calls are in journal.db" in shown
    journal.write_text("")
    assert uninstall(site, purge=True) == [f"remove folder {STATE.path}"]


def test_calls_of_a_pool_that_was_killed_are_seen(tmp_path: Path) -> None:
    """Calls are counted that are in the write-ahead log only."""
    with closing(Journal.open(tmp_path / "live" / "journal.db", 1024**2, tmp_path / "backlog")) as journal:
        journal.append([NewEntry("calls", "hello", "ref", (), 0.0, 0.0)])
        shutil.copytree(tmp_path / "live", tmp_path / "killed")
    assert (tmp_path / "killed" / "journal.db-wal").stat().st_size
    assert describe_journals(tmp_path / "killed").startswith("1 call in journal.db ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to be careful with")
def test_root_looks_with_the_rights_of_the_owner() -> None:
    """Root opens nothing in a folder that its owner could not: he may have laid links to what is root's."""
    # Anybody may enter, unlike the folders of pytest.
    with tempfile.TemporaryDirectory(prefix="fastagi-pool-") as name:
        Path(name).chmod(0o755)
        his = Path(name) / "his"
        put_off(his / "journal.db")
        os.chown(his, _NOBODY, _NOBODY)
        assert describe_journals(his).startswith("nobody knows which calls are in journal.db: ")
        os.chown(his / "journal.db", _NOBODY, _NOBODY)
        assert describe_journals(his).startswith("1 call in journal.db ")
        assert os.geteuid() == 0


def test_folder_that_was_there_is_not_removed(site: Site, tmp_path: Path) -> None:
    """Not even a purge removes what was there before."""
    (tmp_path / "etc/x").mkdir(parents=True)
    install(site, Folder("/etc/x"), FILE)
    uninstall(site, purge=True)
    assert (tmp_path / "etc/x").is_dir()
    assert not (tmp_path / "etc/x/file").exists()


def test_failure_in_the_middle_is_taken_back(site: Site, tmp_path: Path) -> None:
    """When a step fails, those before it are undone, a replaced file is as it was, and that is said."""
    install(site, FILE)
    before = contents(tmp_path)
    broken = Enabling((("false",),), (("false",),))
    with pytest.raises(OperatorError, match=r"cannot run false: false: exit code 1; nothing was left behind"):
        install(site, Folder("/log"), replace(FILE, text="newer"), broken)
    assert contents(tmp_path) == before
    assert (tmp_path / "etc/x/file").read_text() == "text"


def test_command_that_is_missing_is_named(site: Site) -> None:
    """A command that the machine does not have is told by name."""
    with pytest.raises(OperatorError, match="no-such-command: No such file or directory"):
        install(site, Enabling((("no-such-command",),), ()))


def make_earlier_record(site: Site, tmp_path: Path) -> Path:
    """Leave behind what a version without a journal does; return its record."""
    install(site, FILE)
    path = tmp_path / RECORD.lstrip("/")
    content = json.loads(path.read_text())
    del content["journal"]
    earlier = tmp_path / "var/lib/fastagi-pool/installed.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text(json.dumps(content))
    path.unlink()
    return earlier


def test_record_of_an_earlier_version_is_taken_over(site: Site, tmp_path: Path) -> None:
    """What a version without a journal made is known, and its record moves out of the journal's folder."""
    install(site, FILE)
    record = site.read_record()
    earlier = make_earlier_record(site, tmp_path)
    assert site.read_record() == record
    site.write_record(record)
    assert ((tmp_path / RECORD.lstrip("/")).exists(), earlier.exists()) == (True, False)


@pytest.mark.parametrize("inhabited", [False, True])
def test_folder_of_an_earlier_record_becomes_the_journals(
    site: Site, tmp_path: Path, inhabited: bool
) -> None:
    """Only a folder that was made for the record is made anew; in one that holds more all stays as it is."""
    earlier = make_earlier_record(site, tmp_path)
    if inhabited:
        (earlier.parent / "notes").touch()
    record, folder = site.read_record(), Folder("/var/lib/fastagi-pool", 0o700)
    [step] = plan([folder], site.look([folder], record), record)
    assert str(step).startswith("keep folder" if inhabited else "make folder")
    site.write_record(site.install([step], record, lambda _: None))
    assert not earlier.exists()
    assert (earlier.parent.stat().st_mode & 0o777 == 0o700) is not inhabited
    assert site.read_record().folders == (() if inhabited else ("/var/lib/fastagi-pool",))


def test_unreadable_record_is_refused(site: Site, tmp_path: Path) -> None:
    """Without knowing what was made nothing is removed."""
    (tmp_path / RECORD.lstrip("/")).parent.mkdir(parents=True)
    (tmp_path / RECORD.lstrip("/")).write_text("{")
    with pytest.raises(OperatorError, match="nothing is known of what was made"):
        site.read_record()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes users")
def test_user_of_another_machine(site: Site, tmp_path: Path) -> None:
    """A user is made in the folder's own database, owns what is his, and goes again."""
    (tmp_path / "etc").mkdir()
    for name, text in (
        ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("group", "root:x:0:\n"),
        ("shadow", ""),
    ):
        (tmp_path / "etc" / name).write_text(text)
    wanted: list[Wish] = [User("agitest"), Folder("/log", 0o750, "agitest", "agitest")]
    record = site.read_record()
    steps = plan(wanted, site.look(wanted, record), record)
    site.write_record(site.install(steps, record, lambda _: None))
    assert "agitest" in (tmp_path / "etc/passwd").read_text()
    owner = (tmp_path / "log").stat()
    assert owner.st_uid != 0
    assert f"agitest:x:{owner.st_uid}:{owner.st_gid}:" in (tmp_path / "etc/passwd").read_text()
    uninstall(site)
    assert "agitest" not in (tmp_path / "etc/passwd").read_text()


@pytest.mark.parametrize("missing", ["/etc/cron.d", "/etc/logrotate.d"])
def test_nothing_for_programs_that_are_not_there(missing: str) -> None:
    """A file that nobody would read is not written, nor is its folder made, which could not be taken back."""
    wanted = wishes(Manager.SYSV, Settings(), False, (), sample=True)
    left = without_readers(wanted, lambda folder: folder != missing)
    gone = [wish for wish in wanted if wish not in left]
    assert [wish.path for wish in gone if isinstance(wish, File)] == [f"{missing}/fastagi-pool"]
    assert len(gone) == 1
