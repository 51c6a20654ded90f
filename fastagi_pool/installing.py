"""Installing: what a pool needs around it to be a service of its machine, put in place and taken away again.

Laws:
    * What is to be done is decided first, from what is wanted and what is there, and can be shown without
      doing it; doing it is one short function for each kind of step.
    * What was there before is not ours to remove: what was made is written down, and only that is undone.
    * A file that somebody has changed is his: it is neither replaced nor removed, unless by a purge.
    * Calls that wait in a journal are thrown away by nobody, not even by a purge: it says how many they are.
    * What root relies on lies where only root writes, and never in a folder of the server's user.
    * Done twice, it changes nothing. What fails in the middle is taken back.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from importlib.resources import files
from pathlib import Path
from typing import Final, TypeAlias

from fastagi_pool.errors import JournalUnavailable, OperatorError
from fastagi_pool.journal import Journal

#: Where it is written down what was made: commands among it, which root runs. So it is not in the folder of
#: the journal, which is the server's user's.
RECORD: Final = "/var/lib/fastagi-pool-setup/installed.json"
#: Where it was while there was no journal.
_EARLIER_RECORD: Final = "/var/lib/fastagi-pool/installed.json"
DEFAULT_USER: Final = "fastagi"
_NAME: Final = "fastagi-pool"
_LOG_FOLDER: Final = "/var/log/fastagi-pool"
#: As the configuration has it unless it says otherwise.
DEFAULT_JOURNAL: Final = "/var/lib/fastagi-pool/journal.db"
#: What SQLite keeps beside a database.
_BESIDE_A_DATABASE: Final = ("-wal", "-shm", "-journal")
#: Source: https://sqlite.org/fileformat.html
_DATABASE_MAGIC: Final = b"SQLite format 3\0"
#: What a removal says of a folder that it leaves.
_NOT_EMPTY: Final = "it is not empty; --purge removes it"
#: Besides ``boot_timeout``: what a load may take, and some air.
_START_MARGIN_S: Final = 135.0
_STOP_MARGIN_S: Final = 15.0
_FEWEST_DESCRIPTORS: Final = 65536
#: Connections, pipes and files of one call, also of a legacy script's.
_DESCRIPTORS_OF_A_CALL: Final = 8
_HOMES: Final = ("/home/", "/root/", "/run/user/")


class Manager(Enum):
    """What starts services on a machine."""

    SYSTEMD = "systemd"
    SYSV = "sysv"


# --- what is wanted


@dataclass(frozen=True, slots=True)
class Settings:
    """What the files to be installed depend on.

    Attributes:
        program: Absolute path of the command.
        config: Absolute path of the configuration.
        user: Whom the server runs as.
        group: His group.
        listen: Where the sample configuration listens.
        runtime_dir: As configured.
        logs: The log files, as configured.
        graceful_timeout_s: As configured.
        boot_timeout_s: As configured.
        calls: How many one worker may have at once, waiting ones included.
        journal: Absolute path of the journal; empty for none.
    """

    program: str = "/usr/bin/fastagi-pool"
    config: str = "/etc/fastagi-pool/fastagi-pool.yaml"
    user: str = DEFAULT_USER
    group: str = DEFAULT_USER
    listen: str = "127.0.0.1:4577"
    runtime_dir: str = "/run/fastagi-pool"
    logs: tuple[str, ...] = (f"{_LOG_FOLDER}/pool.log", f"{_LOG_FOLDER}/access.log")
    graceful_timeout_s: float = 30.0
    boot_timeout_s: float = 60.0
    calls: int = 1100
    journal: str = DEFAULT_JOURNAL

    def __post_init__(self) -> None:
        """Refuse what cannot be written into the files.

        Raises:
            OperatorError: A path or a name holds what a shell or systemd would read as something else.
        """
        paths = (self.program, self.config, self.runtime_dir, *self.logs, self.journal or "/")
        for text in (*paths, self.user, self.group):
            if not re.fullmatch(r"[\w./+@:-]+", text, re.ASCII):
                raise OperatorError(
                    f"{text!r} cannot be installed: only letters, digits and ./+@:_- are possible"
                )

    @property
    def journal_folder(self) -> str:
        """The folder of the journal; empty for none."""
        return _folder_of(self.journal) if self.journal else ""

    def words(self) -> dict[str, str]:
        """Return what stands for each placeholder of the files."""
        folders = sorted({str(Path(log).parent) for log in self.logs})
        below_run = Path(self.runtime_dir).parts[:2] == ("/", "run") and self.runtime_dir != "/run"
        writable = [folder for folder in folders if folder != _LOG_FOLDER]
        if self.journal_folder not in ("", _folder_of(DEFAULT_JOURNAL), *writable):
            writable.append(self.journal_folder)
        if not below_run:
            writable.append(str(Path(self.runtime_dir).parent))
        at_home = any(path.startswith(_HOMES) for path in (self.program, self.config, self.journal))
        return {
            "PROGRAM": self.program,
            "CONFIG": self.config,
            "USER": self.user,
            "GROUP": self.group,
            "LISTEN": self.listen,
            "RUNTIME_DIR": self.runtime_dir,
            "RUNTIME_NAME": str(Path(self.runtime_dir).relative_to("/run")) if below_run else _NAME,
            # A path that is not there must not keep the service from starting.
            "WRITABLE": " ".join(f"-{folder}" for folder in writable),
            "LOGS": " ".join(self.logs),
            "STOP_TIMEOUT": f"{self.graceful_timeout_s + _STOP_MARGIN_S:.0f}",
            "START_TIMEOUT": f"{self.boot_timeout_s + _START_MARGIN_S:.0f}",
            "DESCRIPTORS": str(max(_FEWEST_DESCRIPTORS, _DESCRIPTORS_OF_A_CALL * self.calls)),
            "PROTECT_HOME": "read-only" if at_home else "yes",
        }


def _folder_of(path: str) -> str:
    return str(Path(path).parent)


def render(name: str, settings: Settings) -> str:
    """Return a file of the package's folder ``service`` with its placeholders filled.

    Raises:
        KeyError: It has a placeholder that means nothing.
    """
    text = (files("fastagi_pool") / "service" / name).read_text("utf-8")
    words = settings.words()
    return re.sub(r"@([A-Z_]+)@", lambda found: words[found[1]], text)


#: There only if somebody reads what is in them.
_CRON_FOLDER: Final = "/etc/cron.d"
_LOGROTATE_FOLDER: Final = "/etc/logrotate.d"


@dataclass(frozen=True, slots=True)
class User:
    """A user of the system's, with a group of the same name."""

    name: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder.

    Attributes:
        path: Where.
        mode: Its rights.
        owner: Whose it is.
        group: Its group.
    """

    path: str
    mode: int = 0o755
    owner: str = "root"
    group: str = "root"


@dataclass(frozen=True, slots=True)
class File:
    """A file.

    Attributes:
        path: Where.
        text: What it holds.
        mode: Its rights.
        group: Its group; its owner is root.
    """

    path: str
    text: str = field(repr=False)
    mode: int = 0o644
    group: str = "root"

    @property
    def digest(self) -> str:
        """What tells whether it was changed."""
        return _digest(self.text.encode())


@dataclass(frozen=True, slots=True)
class Enabling:
    """That the machine starts it by itself: commands, as far as the machine has them.

    Attributes:
        on: What does it.
        off: What undoes it.
    """

    on: tuple[tuple[str, ...], ...]
    off: tuple[tuple[str, ...], ...]


Wish: TypeAlias = User | Folder | File | Enabling


def wishes(
    manager: Manager, settings: Settings, socket: bool, tools: Sequence[str], sample: bool
) -> list[Wish]:
    """Return all that shall be there, in the order in which it is made.

    Args:
        manager: What starts services.
        settings: What the files depend on.
        socket: Whether systemd opens the port.
        tools: Those of ``systemctl``, ``update-rc.d`` and ``chkconfig`` that can be used here.
        sample: Whether a configuration shall be there that one can begin with.
    """
    user, group = settings.user, settings.group
    config = Path(settings.config)
    found: list[Wish] = [User(user)] if user != "root" else []
    # What the system has besides stays as it is.
    found += [Folder(str(config.parent), 0o750, group=group)] if config.parent.name == _NAME else []
    found += [Folder(_LOG_FOLDER, 0o750, user, group)]
    # What callers are and said waits there: for nobody else to read.
    found += [Folder(settings.journal_folder, 0o700, user, group)] if settings.journal else []
    if sample:
        found.append(File(settings.config, render("fastagi-pool.yaml", settings), 0o640, group))
    found.append(File(f"{_LOGROTATE_FOLDER}/fastagi-pool", render("fastagi-pool.logrotate", settings)))
    if manager is Manager.SYSTEMD:
        units = ["fastagi-pool.service", *(["fastagi-pool.socket"] if socket else [])]
        found += [File(f"/etc/systemd/system/{unit}", render(unit, settings)) for unit in units]
        found += [_by_systemctl(units)] if "systemctl" in tools else []
    else:
        found.append(File("/etc/init.d/fastagi-pool", render("fastagi-pool.init", settings), 0o755))
        found.append(File(f"{_CRON_FOLDER}/fastagi-pool", render("fastagi-pool.cron", settings)))
        found += _by_links(tools)
    return found


def without_readers(wanted: Sequence[Wish], has_folder: Callable[[str], bool]) -> list[Wish]:
    """Leave out files for programs that the machine does not have: to make their folders would be for nobody.

    Args:
        wanted: What shall be there.
        has_folder: Tells whether the machine has a folder.
    """
    optional = (_CRON_FOLDER, _LOGROTATE_FOLDER)
    absent = tuple(f"{folder}/" for folder in optional if not has_folder(folder))
    return [wish for wish in wanted if not (isinstance(wish, File) and wish.path.startswith(absent))]


def _by_systemctl(units: Sequence[str]) -> Enabling:
    reload = ("systemctl", "daemon-reload")
    return Enabling(
        (reload, ("systemctl", "enable", *units)), (("systemctl", "disable", "--now", *units), reload)
    )


def _by_links(tools: Sequence[str]) -> list[Enabling]:
    if "update-rc.d" in tools:
        on, off = ("update-rc.d", _NAME, "defaults"), ("update-rc.d", "-f", _NAME, "remove")
        return [Enabling((on,), (off,))]
    if "chkconfig" in tools:
        return [Enabling((("chkconfig", "--add", _NAME),), (("chkconfig", "--del", _NAME),))]
    return []


# --- what is there


@dataclass(frozen=True, slots=True)
class Record:
    """What was made, and by that may be removed.

    Attributes:
        users: Names.
        folders: Paths, in the order in which they were made.
        files: Digests of what was written, by path.
        off: Commands that undo the enabling.
        runtime_dir: Where the pool tells whether it runs.
        journal: Where calls may wait.
    """

    users: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    off: tuple[tuple[str, ...], ...] = ()
    runtime_dir: str = ""
    journal: str = DEFAULT_JOURNAL

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left."""
        return not (self.users or self.folders or self.files or self.off)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is there.

    Attributes:
        users: Names that exist.
        folders: Paths that are folders, and whether each is empty.
        files: Digests by path.
        journals: Of a folder that has something in its journals, what that is.
    """

    users: frozenset[str] = frozenset()
    folders: Mapping[str, bool] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    journals: Mapping[str, str] = field(default_factory=dict)


# --- what is to be done


class Verb(Enum):
    """What becomes of something."""

    MAKE = "make"
    REPLACE = "replace"
    REMOVE = "remove"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to be done, or not to be done.

    Attributes:
        verb: What becomes of it.
        what: What it is.
        why: Why it is kept; empty otherwise.
    """

    verb: Verb
    what: Wish
    why: str = ""

    def __str__(self) -> str:
        match self.what:
            case User(name):
                text = f"user {name}"
            case Folder(path):
                text = f"folder {path}"
            case File(path):
                text = f"file {path}"
            case Enabling(on, off):
                commands = off if self.verb is Verb.REMOVE else on
                return f"run {'; '.join(' '.join(command) for command in commands)}"
        return f"{self.verb.value} {text}{f' ({self.why})' if self.why else ''}"


def plan(wanted: Sequence[Wish], facts: Facts, record: Record) -> list[Step]:
    """Decide how to get from what is there to what is wanted."""
    return [_step_to(wish, facts, record) for wish in wanted]


def _step_to(wish: Wish, facts: Facts, record: Record) -> Step:
    match wish:
        case User(name):
            there = name in facts.users
        case Folder(path):
            there = path in facts.folders
        case File(path):
            digest = facts.files.get(path)
            if digest is not None and digest not in (wish.digest, record.files.get(path)):
                return Step(Verb.KEEP, wish, "it is not what was installed")
            if digest not in (None, wish.digest):
                return Step(Verb.REPLACE, wish)
            there = digest is not None
        case Enabling():
            # Done again, for units may have changed; but then there is nothing to take back.
            return Step(Verb.REPLACE if record.off else Verb.MAKE, wish)
    return Step(Verb.KEEP, wish, "it is there") if there else Step(Verb.MAKE, wish)


def plan_removal(record: Record, facts: Facts, purge: bool) -> list[Step]:
    """Decide how to take away what was made, the last first.

    Args:
        record: What was made.
        facts: What is there of it.
        purge: Whether changed files go too, and folders with all that is in them, the logs among it, but
            no folder in which calls wait.
    """
    steps = [Step(Verb.REMOVE, Enabling((), record.off))] if record.off else []
    kept: set[str] = set()
    for path, digest in reversed(tuple(record.files.items())):
        file = File(path, "")
        if path not in facts.files:
            continue
        if purge or facts.files[path] == digest:
            steps.append(Step(Verb.REMOVE, file))
        else:
            steps.append(Step(Verb.KEEP, file, "it was changed; --purge removes it"))
            kept.add(path)
    inhabited = False
    for path in reversed(record.folders):
        if path not in facts.folders:
            continue
        # Not whether it is empty now, but whether it will be.
        ours = {file for file in record.files if Path(file).parent == Path(path)}
        emptied = facts.folders[path] or (not ours & kept and _holds_only(path, ours, facts))
        if path in facts.journals:
            inhabited = True
            steps.append(Step(Verb.KEEP, Folder(path), facts.journals[path]))
        elif purge or emptied:
            steps.append(Step(Verb.REMOVE, Folder(path)))
        else:
            inhabited = True
            steps.append(Step(Verb.KEEP, Folder(path), _NOT_EMPTY))
    why = "what is left is his" if purge else "what is left is his; --purge removes it"
    users = [User(name) for name in record.users if name in facts.users]
    return steps + [Step(Verb.KEEP, user, why) if inhabited else Step(Verb.REMOVE, user) for user in users]


def _holds_only(folder: str, ours: set[str], facts: Facts) -> bool:
    return all(path in ours for path in facts.files if Path(path).parent == Path(folder))


def after_removal(record: Record, steps: Sequence[Step]) -> Record:
    """Return what is still to be removed one day: what was kept."""
    kept = [step.what for step in steps if step.verb is Verb.KEEP]
    return Record(
        tuple(wish.name for wish in kept if isinstance(wish, User)),
        tuple(path for path in record.folders if Folder(path) in kept),
        {path: digest for path, digest in record.files.items() if File(path, "") in kept},
        runtime_dir=record.runtime_dir,
        journal=record.journal,
    )


# --- doing it


class Site:
    """A machine's files, or a folder that holds those of another machine."""

    def __init__(self, root: Path) -> None:
        """Take the folder that is ``/`` there."""
        self._root = root

    @property
    def is_this_machine(self) -> bool:
        """Whether it is the machine that we run on."""
        return self._root == Path("/")

    def path(self, path: str) -> Path:
        """Return where a path of that machine is here."""
        return self._root / path.lstrip("/")

    def read_record(self) -> Record:
        """Read what was made by earlier installations; an empty record if there were none.

        Raises:
            OperatorError: It cannot be read.
        """
        path = self.path(RECORD)
        if not path.exists() and self._has_earlier_record():
            path = self.path(_EARLIER_RECORD)
        try:
            content = json.loads(path.read_text())
            return Record(
                tuple(content["users"]),
                tuple(content["folders"]),
                dict(content["files"]),
                tuple(tuple(command) for command in content["off"]),
                content["runtime_dir"],
                # A version without a journal noted none.
                content.get("journal", DEFAULT_JOURNAL),
            )
        except FileNotFoundError:
            return Record()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OperatorError(
                f"{path} cannot be read, so nothing is known of what was made: {error!r}"
            ) from error

    def write_record(self, record: Record) -> None:
        """Write down what was made; nothing is left if that is nothing."""
        path = self.path(RECORD)
        if record.is_empty:
            path.unlink(missing_ok=True)
            self._forget_earlier_record()
            if path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(record), indent=2) + "\n")
        fresh.rename(path)
        self._forget_earlier_record()

    def _has_earlier_record(self) -> bool:
        earlier = self.path(_EARLIER_RECORD)
        return _is_installers(earlier.parent) and _is_installers(earlier)

    def _forget_earlier_record(self) -> None:
        if self._has_earlier_record():
            self.path(_EARLIER_RECORD).unlink()

    def _take_over_earlier_record(self) -> None:
        """Move it out of what is the journal's folder now; that goes too, to be made as the pool's user's.

        Raises:
            OSError: It cannot be moved.
        """
        path, earlier = self.path(RECORD), self.path(_EARLIER_RECORD)
        if path.exists() or not self._has_earlier_record():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(earlier, path)
        if not any(earlier.parent.iterdir()):
            earlier.parent.rmdir()

    def _is_there(self, folder: str) -> bool:
        """Tell whether a folder is there, and not only for the sake of an earlier record."""
        path, earlier = self.path(folder), self.path(_EARLIER_RECORD)
        if path == earlier.parent and self._has_earlier_record():
            return any(entry != earlier for entry in path.iterdir())
        return path.is_dir()

    def look(self, wanted: Sequence[Wish], record: Record) -> Facts:
        """Look what is there of what is wanted, and of what was made."""
        paths = ours = {wish.path for wish in wanted if isinstance(wish, File)} | set(record.files)
        folders = {wish.path for wish in wanted if isinstance(wish, Folder)} | set(record.folders)
        for folder in folders:
            if self.path(folder).is_dir():
                paths = paths | {f"{folder}/{entry.name}" for entry in self.path(folder).iterdir()}
        users = {wish.name for wish in wanted if isinstance(wish, User)} | set(record.users)
        return Facts(
            frozenset(name for name in users if self._ids(name) is not None),
            {path: not any(self.path(path).iterdir()) for path in folders if self._is_there(path)},
            # Of others only that they are there: logs and journals are long.
            {
                path: _digest_of(self.path(path)) if path in ours else "not ours"
                for path in paths
                if self.path(path).exists()
            },
            self._look_into_journals(record.journal) if _folder_of(record.journal) in folders else {},
        )

    def _look_into_journals(self, journal: str) -> Mapping[str, str]:
        folder = _folder_of(journal)
        if not self.path(folder).is_dir():
            return {}
        # Users of another machine may not get as far as its folder here, and none of them is at work there.
        describe = describe_journals if self.is_this_machine else _describe_journals
        says = describe(self.path(folder), Path(journal).name)
        return {folder: says} if says else {}

    def install(self, steps: Sequence[Step], record: Record, tell: Callable[[str], None]) -> Record:
        """Take the steps of an installation; what fails in the middle is taken back.

        Returns:
            What may be removed from now on.

        Raises:
            OperatorError: A step failed; the text says which, and that the others were undone.
        """
        try:
            self._take_over_earlier_record()
        except OSError as error:
            raise OperatorError(f"cannot move {self.path(_EARLIER_RECORD)}: {_reason(error)}") from error
        done: list[Step] = []
        before = {
            step.what.path: self.path(step.what.path).read_bytes()
            for step in steps
            if step.verb is Verb.REPLACE and isinstance(step.what, File)
        }
        for step in steps:
            tell(str(step))
            if step.verb is Verb.KEEP:
                continue
            try:
                # Noted before: half a step is undone too.
                done.append(step)
                self._make(step.what)
            except (OSError, subprocess.CalledProcessError) as error:
                left = self._take_back(done, before)
                outcome = f"left behind: {', '.join(left)}" if left else "nothing was left behind"
                raise OperatorError(f"cannot {step}: {_reason(error)}; {outcome}") from error
        return _recorded(record, done)

    def uninstall(self, steps: Sequence[Step], purge: bool, tell: Callable[[str], None]) -> None:
        """Take the steps of a removal; what cannot be removed is told, and the others are gone on with.

        Args:
            steps: What to do.
            purge: Whether folders go with all that is in them.
            tell: Shows each step before it is taken.

        Raises:
            OperatorError: Something could not be removed; the text says what.
        """
        failed = []
        for step in steps:
            tell(str(step))
            if step.verb is Verb.REMOVE:
                try:
                    self._remove(step.what, purge)
                except (OSError, subprocess.CalledProcessError) as error:
                    failed.append(f"cannot {step}: {_reason(error)}")
        if failed:
            raise OperatorError("\n".join(failed))

    def _make(self, what: Wish) -> None:
        match what:
            case User(name):
                shell = "/usr/sbin/nologin"
                home = ("--home-dir", "/nonexistent", "--no-create-home", "--shell", shell)
                _run((*self._tool("useradd"), "--system", "--user-group", *home, name))
            case Folder(path, mode, owner, group):
                self.path(path).mkdir(parents=True)
                self._hand_over(path, owner, group)
                self.path(path).chmod(mode)
            case File(path, text, mode, group):
                self.path(path).parent.mkdir(parents=True, exist_ok=True)
                fresh = self.path(f"{path}.fastagi-pool-new")
                fresh.write_text(text)
                fresh.chmod(mode)
                fresh.rename(self.path(path))
                self._hand_over(path, "root", group)
            case Enabling(on):
                for command in on:
                    _run(command)

    def _remove(self, what: Wish, purge: bool) -> None:
        match what:
            case User(name):
                _run((*self._tool("userdel"), name))
            case Folder(path) if purge:
                shutil.rmtree(self.path(path))
            case Folder(path):
                self.path(path).rmdir()
            case File(path):
                self.path(path).unlink(missing_ok=True)
            case Enabling(_, off):
                for command in off:
                    _run(command)

    def _take_back(self, done: Sequence[Step], before: Mapping[str, bytes]) -> list[str]:
        """Undo steps, the last first; return what could not be undone."""
        left = []
        for step in reversed(done):
            try:
                if step.verb is not Verb.REPLACE:
                    self._remove(step.what, purge=False)
                elif isinstance(step.what, File):
                    self.path(step.what.path).write_bytes(before[step.what.path])
            except FileNotFoundError:
                pass  # The step that failed had not come so far.
            except (OSError, subprocess.CalledProcessError):
                if step is not done[-1]:
                    left.append(str(Step(Verb.KEEP, step.what)).removeprefix("keep "))
        return left

    def _tool(self, name: str) -> tuple[str, ...]:
        return (name,) if self.is_this_machine else (name, "--prefix", str(self._root))

    def _ids(self, user: str) -> tuple[int, int] | None:
        """Return the user's number and his group's, on that machine."""
        if self.is_this_machine:
            try:
                entry = pwd.getpwnam(user)
            except KeyError:
                return None
            return entry.pw_uid, entry.pw_gid
        fields = _entry_in(self.path("/etc/passwd"), user)
        return (int(fields[2]), int(fields[3])) if fields else None

    def group_of(self, user: str) -> str:
        """Return the name of a user's own group on that machine; empty if there is no such user or group."""
        ids = self._ids(user)
        if ids is None:
            return ""
        if self.is_this_machine:
            try:
                return grp.getgrgid(ids[1]).gr_name
            except KeyError:
                return ""
        fields = _entry_in(self.path("/etc/group"), str(ids[1]), place=2)
        return fields[0] if fields else ""

    def _group_id(self, group: str) -> int:
        """Return a group's number on that machine; root's if there is none."""
        if self.is_this_machine:
            try:
                return grp.getgrnam(group).gr_gid
            except KeyError:
                return 0
        fields = _entry_in(self.path("/etc/group"), group)
        return int(fields[2]) if fields else 0

    def _hand_over(self, path: str, owner: str, group: str) -> None:
        """Give a path to a user and a group, if we may: in a folder that plays a machine anybody installs."""
        if os.geteuid() == 0:
            uid = (self._ids(owner) or (0, 0))[0]
            gid = self._group_id(group)
            os.chown(self.path(path), uid, gid, follow_symlinks=False)


def _entry_in(database: Path, wanted: str, place: int = 0) -> list[str]:
    """Return the fields of a line of ``/etc/passwd`` or ``/etc/group``; none if there is no such line.

    Args:
        database: The file.
        wanted: What the line has.
        place: In which of its fields.
    """
    try:
        lines = database.read_text().splitlines()
    except FileNotFoundError:
        return []
    found = (line.split(":") for line in lines)
    return next((fields for fields in found if len(fields) > place and fields[place] == wanted), [])


def _recorded(record: Record, done: Sequence[Step]) -> Record:
    """Add to a record what was made."""
    made = [step.what for step in done]
    users = [wish.name for wish in made if isinstance(wish, User)]
    folders = [wish.path for wish in made if isinstance(wish, Folder)]
    written = {wish.path: wish.digest for wish in made if isinstance(wish, File)}
    enabled = next((wish.off for wish in made if isinstance(wish, Enabling)), record.off)
    return Record(
        tuple(dict.fromkeys((*record.users, *users))),
        tuple(dict.fromkeys((*record.folders, *folders))),
        {**record.files, **written},
        enabled,
        record.runtime_dir,
        record.journal,
    )


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def _reason(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = f"{error.stderr}".strip().splitlines()
        return f"{' '.join(error.cmd)}: {said[-1] if said else f'exit code {error.returncode}'}"
    return f"{error.filename or ''}: {error.strerror}".lstrip(": ")


def _is_installers(path: Path) -> bool:
    """Tell whether a path is there, and nobody else's: commands are run that stand in a record."""
    try:
        return path.lstat().st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(path: Path) -> str:
    """Tell what a path holds; what is no plain file is never ours."""
    return _digest(path.read_bytes()) if path.is_file() and not path.is_symlink() else "no plain file"


# --- calls that wait


def describe_journals(folder: Path, name: str = Path(DEFAULT_JOURNAL).name) -> str:
    """Tell what is in the journals of a folder, those too that an operator has moved aside.

    Args:
        folder: The folder.
        name: How a journal's name begins; whatever is a database counts besides.

    Returns:
        How many calls are not done; empty if there are none.

    Raises:
        OSError: Not permitted.
    """
    with _as_owner_of(folder):
        return _describe_journals(folder, name)


def _describe_journals(folder: Path, name: str) -> str:
    return "; ".join(filter(None, [_describe_journal(path) for path in _journals_in(folder, name)]))


@contextmanager
def _as_owner_of(folder: Path) -> Iterator[None]:
    """Have no more rights than a folder's owner, who may have laid links there to what is root's."""
    owner = folder.stat().st_uid
    if os.geteuid() != 0 or owner == 0:
        yield
        return
    os.seteuid(owner)
    try:
        yield
    finally:
        os.seteuid(0)


def _journals_in(folder: Path, name: str) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_file() or path.name.endswith(_BESIDE_A_DATABASE):
            continue
        if path.name.startswith(name) or _is_database(path):
            yield path


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_DATABASE_MAGIC)) == _DATABASE_MAGIC


def _describe_journal(path: Path) -> str:
    try:
        with closing(Journal.open_existing(path)) as journal:
            facts = journal.facts()
    except FileNotFoundError:
        return ""
    except (OSError, JournalUnavailable) as error:
        return f"nobody knows which calls are in {path.name}: {error}"
    calls = facts.waiting + facts.quarantined
    if not calls:
        return ""
    number = "1 call" if calls == 1 else f"{calls} calls"
    return f"{number} in {path.name} not done yet; 'fastagi-pool journal' shows, exports and drops them"
