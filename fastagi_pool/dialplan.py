"""Dialplan: which lines of an extensions.conf change so that its local AGI scripts are called over FastAGI.

Laws:
    * Only what surely runs a local script of a known name is changed; everything else that speaks of AGI is
      left as it is and told, with the reason.
    * Line for line: nothing is added, removed or moved, and every byte that does not change is the same,
      line ends and bytes that are not UTF-8 (as surrogate escapes) included.
    * What has been rewritten is not rewritten again.
    * Two files never get the same name: whoever calls the second one is told.

How it works: comments are found as Asterisk finds them, before anything else. In what is left of a line
``exten`` or ``same``, AGI(), DeadAGI() and EAGI() are looked for: as the application of the line, or in the
arguments of applications that run others (``_RUNNERS``). Anywhere else the same words may be mere text.
There is no continuation of lines in an extensions.conf, and sections, templates too, need no care.

Why a colon and a question mark in a URL do no harm in ExecIf(condition?AGI(agi://host:port/x):NoOp()): there
they separate outside of parentheses only. MacroIf() looks for its colon everywhere, so it is left alone.

Source: asterisk main/config.c (comments), pbx/pbx_config.c (lines), main/app.c (arguments), apps/app_exec.c,
apps/app_macro.c, res/res_agi.c, launch_script(); tried with Asterisk 16.28 and 22.10.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from typing import Final

#: Where Asterisk looks for scripts unless asterisk.conf has another ``astagidir``; Debian's has.
DEFAULT_AGI_DIR: Final = "/var/lib/asterisk/agi-bin"
#: Lines without a change around each change, as ``diff -u`` has them.
_CONTEXT_LINES: Final = 3
#: What stands in the place of each character of a comment, so that all others keep theirs.
_COMMENTED: Final = "\0"

#: Nothing else ends a line of Asterisk's, unlike one of Python's.
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_SERVER = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_SETTING = re.compile(rf"[\s{_COMMENTED}]*(exten|same)\s*=>?", re.IGNORECASE)
#: What stands before the application: extension and priority, or the priority alone. A comma in brackets
#: belongs to the extension's pattern.
_BEFORE_APPLICATION: Final = {
    "exten": re.compile(r"(?:\[[^\]]*\]|[^,\[])*,([^,]*),\s*"),
    "same": re.compile(r"([^,]*),\s*"),
}
_AGI = re.compile(r"(?<!\w)(AGI|DeadAGI|EAGI)\s*([(,|])", re.IGNORECASE)
_SCRIPT = re.compile(rf"[^,)\r\n{_COMMENTED}]*")
_PARENTHESIS = re.compile(r"\\.|(?<![\w-])([\w-]*)\s*\(|\)")
_OTHER_FILE = re.compile(rf"[\s{_COMMENTED}]*#(?:include|tryinclude|exec)\b[^\r\n]*", re.IGNORECASE)
_ELSEWHERE = re.compile(r"(?:agi|hagi):", re.IGNORECASE)
_URL = re.compile(r"h?agi://[^/]*/([^?#]*)", re.IGNORECASE)
#: Everything that means the same in a file name, in a URL and in a dialplan.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._~/+@=:!-]+")
#: Applications that run others which stand in their arguments, or hand them to who does.
_RUNNERS: Final = frozenset(
    {"exec", "execif", "execiftime", "gosub", "gosubif", "macro", "macroexclusive", "tryexec"}
)
#: Those whose arguments hold a label with parentheses of its own, as in Gosub(context,s,1(argument)).
_WITH_LABELS: Final = frozenset({"gosub", "gosubif"})
#: Languages of other dialplans, by the end of the file's name.
_OTHER_LANGUAGES: Final = {".ael": "AEL", ".lua": "Lua"}


@dataclass(frozen=True, slots=True)
class Change:
    """One line that changes.

    Attributes:
        number: Which, from 1.
        old: The line as it stands, with its line end.
        new: The line as it is to be.
    """

    number: int
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that was left alone, for a person to look at.

    Attributes:
        number: The line, from 1.
        text: What it is about, as it stands there.
        reason: Why it was left alone, and what to do.
    """

    number: int
    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What becomes of a file.

    Attributes:
        lines: All lines as they are, each with its line end.
        changes: What changes, in order.
        remarks: What was left alone although it speaks of AGI, in order.
        scripts: Names of scripts that the changed lines call, each once, in order of appearance; each
            needs a route.
    """

    lines: tuple[str, ...]
    changes: tuple[Change, ...]
    remarks: tuple[Remark, ...]
    scripts: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole file as it is to be."""
        new = {change.number: change.new for change in self.changes}
        return "".join(new.get(number, line) for number, line in enumerate(self.lines, start=1))


@dataclass(frozen=True, slots=True)
class _Call:
    """AGI(), DeadAGI() or EAGI(), as found.

    Attributes:
        number: Its line, from 1.
        name: Where the application's name begins and ends in the line.
        script: Where the script's name begins and ends; the same twice in the syntax without parentheses.
        text: What is shown of it.
        application: The application's name in small letters.
        written: The script's name without quotes around it.
        fault: Why it cannot be changed, whatever the script is; empty if it can.
    """

    number: int
    name: tuple[int, int]
    script: tuple[int, int]
    text: str
    application: str
    written: str
    fault: str


@dataclass(frozen=True, slots=True)
class _Target:
    """A script's file, and the name by which it would be called; or why it will not be."""

    path: str = ""
    name: str = ""
    fault: str = ""


def unsupported_language(file: str) -> str:
    """Return the language of a dialplan that is no extensions.conf, by the file's name; else nothing."""
    return _OTHER_LANGUAGES.get(posixpath.splitext(file)[1].lower(), "")


def rewrite(text: str, server: str, agi_dirs: Sequence[str] = (DEFAULT_AGI_DIR,)) -> Rewriting:
    """Find what changes in a dialplan, and what cannot.

    Args:
        text: The file; bytes that are not UTF-8 as surrogate escapes, line ends as they are.
        server: Where the FastAGI server will be, as ``127.0.0.1:4577``; without a port Asterisk takes 4573.
        agi_dirs: Folders of scripts, each absolute. The first one is Asterisk's ``astagidir``, to which
            relative names belong. A script below one of them is called by its path below it.

    Raises:
        ValueError: The server is no ``host:port``, or a folder is not absolute.
    """
    if not _SERVER.fullmatch(server):
        raise ValueError(f"{server!r} is no server: give host:port, as 127.0.0.1:4577")
    if not agi_dirs or not all(folder.startswith("/") for folder in agi_dirs):
        raise ValueError(f"{', '.join(agi_dirs) or 'nothing'}: folders of scripts must be absolute paths")
    folders = [posixpath.normpath(folder) for folder in agi_dirs]
    lines = tuple(_LINE.findall(text))
    calls, remarks = _look_through(lines)
    local = [call for call in calls if not _ELSEWHERE.match(call.written)]
    targets = [_target(call, folders) for call in local]
    taken = _names_taken(calls, targets)
    targets = [_unique(target, taken, folders[0]) for target in targets]
    remarks += [
        Remark(call.number, call.text, target.fault)
        for call, target in zip(local, targets, strict=True)
        if target.fault
    ]
    good = [(call, target.name) for call, target in zip(local, targets, strict=True) if not target.fault]
    return Rewriting(
        lines=lines,
        changes=tuple(_changes(lines, good, server)),
        remarks=tuple(sorted(remarks, key=lambda remark: remark.number)),
        scripts=tuple(dict.fromkeys(name for _, name in good)),
    )


def as_diff(rewriting: Rewriting, file: str) -> str:
    """Write the changes as a unified diff, for people and for ``patch``; empty if nothing changes.

    Args:
        rewriting: What becomes of the file.
        file: Its name, for the headers.
    """
    hunks = [_hunk(rewriting.lines, changes) for changes in _neighbours(rewriting.changes)]
    return "".join([f"--- {file}\n+++ {file}\n", *hunks]) if hunks else ""


def report(rewriting: Rewriting, file: str) -> list[str]:
    """Tell what was left alone and which scripts need a route, in lines for an operator.

    Args:
        rewriting: What becomes of the file.
        file: Its name, which stands before each line that was left alone.
    """
    lines = [
        f"{file}:{remark.number}: left alone: {remark.text}: {remark.reason}" for remark in rewriting.remarks
    ]
    count = len(rewriting.changes)
    if count:
        lines.append(
            f"{file}: {count} line{'s change' if count > 1 else ' changes'}; these scripts need a route:"
        )
        lines += [f"  {name}" for name in rewriting.scripts]
    else:
        lines.append(f"{file}: nothing changes")
    return [_visible(line) for line in lines]


def _visible(text: str) -> str:
    """Write what a terminal could not show, or would obey, as escapes."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


# --- finding


def _look_through(lines: Sequence[str]) -> tuple[list[_Call], list[Remark]]:
    """Find every call, and every other file that belongs to this one."""
    calls: list[_Call] = []
    remarks: list[Remark] = []
    depth = 0
    for number, line in enumerate(lines, start=1):
        live, depth = _without_comments(line, depth)
        other = _OTHER_FILE.match(live)
        if other is not None:
            text = other[0].strip(f" \t{_COMMENTED}")
            remarks.append(Remark(number, text, "another file, which was not read: look into it too"))
        else:
            calls += _calls_in(number, live)
    return calls, remarks


def _without_comments(line: str, depth: int) -> tuple[str, int]:
    """Blot out comments.

    Args:
        line: The line, with its line end.
        depth: How many block comments are open at its beginning.

    Returns:
        The line with U+0000 in the place of each character of a comment, and the depth at its end.
    """
    if depth == 0 and ";" not in line:
        return line, 0
    kept: list[tuple[int, int]] = []
    begin = seen = 0
    at = line.find(";")
    while at >= 0:
        if at > seen and line[at - 1] == "\\":
            seen = at + 1
        elif line.startswith(";--", at) and not line.startswith(";---", at):
            kept += [(begin, at)] if depth == 0 else []
            depth += 1
            seen = at + 3
        elif depth == 0:
            # A line comment: what opens or closes a block behind it does not count.
            return _blot(line, [*kept, (begin, at)]), 0
        else:
            if at >= seen + 2 and line[at - 2 : at] == "--":
                depth -= 1
                begin = at + 1
            seen = at + 1
        at = line.find(";", seen)
    return _blot(line, [*kept, (begin, len(line))] if depth == 0 else kept), depth


def _blot(line: str, kept: Sequence[tuple[int, int]]) -> str:
    blotted = [_COMMENTED] * len(line)
    for begin, end in kept:
        blotted[begin:end] = line[begin:end]
    return "".join(blotted)


def _calls_in(number: int, live: str) -> Iterator[_Call]:
    """Find the calls in one line without comments."""
    if _AGI.search(live) is None:
        return
    setting = _SETTING.match(live)
    if setting is None:
        yield from _calls_behind(number, live, 0, -1)
        return
    before = _BEFORE_APPLICATION[setting[1].lower()].match(live, setting.end())
    if before is None:
        yield from _calls_behind(number, live, setting.end(), -1)
    elif before[1].strip().lower() != "hint":
        yield from _calls_behind(number, live, before.end(), before.end())


def _calls_behind(number: int, live: str, begin: int, application: int) -> Iterator[_Call]:
    """Find the calls from a place of the line on; the application begins at another, -1 if there is none."""
    for found in _AGI.finditer(live, begin):
        fault = _fault_of_place(live, application, found)
        if found[2] == "(":
            yield _call_with_parentheses(number, live, found, fault)
        elif not fault:
            # Anywhere else the name without parentheses is a word like others.
            text = live[found.start() :].strip(f" \t\r\n{_COMMENTED}")
            fault = "the old syntax without parentheses: write AGI(script,arguments) first"
            yield _Call(number, found.span(1), (found.end(), found.end()), text, "", "", fault)


def _call_with_parentheses(number: int, live: str, found: re.Match[str], fault: str) -> _Call:
    script = _SCRIPT.match(live, found.end())
    assert script is not None, "it matches nothing at all too"
    behind = live[script.end() : script.end() + 1]
    if behind not in (",", ")"):
        fault = fault or "its closing parenthesis is missing, or stands behind a comment"
    return _Call(
        number,
        name=found.span(1),
        script=script.span(),
        text=f"{found[1]}({script[0].strip()}{',...' if behind == ',' else ''})",
        application=found[1].lower(),
        written=_unquoted(script[0]),
        fault=fault,
    )


def _unquoted(script: str) -> str:
    quoted = len(script) > 1 and script[0] == script[-1] == '"'
    return script[1:-1] if quoted else script


def _fault_of_place(live: str, application: int, found: re.Match[str]) -> str:
    """Return why what looks like a call may be none where it stands; empty if it surely is one."""
    if application < 0:
        return "it is not in the application of an exten or same line: look who uses it"
    if found.start() == application:
        return ""
    label_may_follow = False
    chain = _enclosing(live, application, found.start())
    for name in chain:
        if name.lower() not in _RUNNERS and not label_may_follow:
            return f"it stands in the arguments of {name or 'something'}(): look whether it is run at all"
        label_may_follow = name.lower() in _WITH_LABELS
    if not chain or live[application : found.start()].rstrip()[-1] not in "?:(,":
        return "it stands in the middle of a text: look whether it is run at all"
    return ""


def _enclosing(live: str, begin: int, end: int) -> list[str]:
    """Return whose parentheses are open at a place, from the outermost in."""
    names: list[str] = []
    for found in _PARENTHESIS.finditer(live, begin, end):
        if found[0] == ")":
            del names[-1:]
        elif found[0][0] != "\\":
            names.append(found[1])
    return names


# --- naming


def _target(call: _Call, folders: Sequence[str]) -> _Target:
    """Find the file of a call and the name that it would get."""
    script = call.written
    fault = call.fault or _fault_of_name(call.application, script)
    if fault:
        return _Target(fault=fault)
    if not script.startswith("/"):
        name = posixpath.normpath(script)
        return _Target(posixpath.join(folders[0], name), name)
    path = posixpath.normpath(f"/{script.lstrip('/')}")
    for folder in folders:
        if path.startswith(f"{folder.rstrip('/')}/"):
            return _Target(path, path[len(folder.rstrip("/")) + 1 :])
    below = " or ".join(folders)
    return _Target(fault=f"it is not below {below}: it needs its own route; or give its folder by --agi-dir")


def _fault_of_name(application: str, script: str) -> str:
    """Return why a script cannot be called over the network by its name; empty if it can."""
    if application == "eagi":
        return "impossible over the network: EAGI hands the caller's voice to a local process"
    if "${" in script or "$[" in script:
        return "the value is only known when it runs: put agi:// into the value, or a name here"
    if "|" in script:
        return "'|' between arguments is the syntax of Asterisk 1.4: write ',' first"
    if not script or script.endswith("/"):
        return "it names no script"
    if not _PLAIN_NAME.fullmatch(script):
        bad = sorted(set(_PLAIN_NAME.sub("", script)))
        return (
            f"the name holds {', '.join(map(ascii, bad))}, which must not stand in a URL: rename the script"
        )
    if ".." in script.split("/"):
        return "the name holds '..', which is refused over the network: give its path without it"
    return ""


def _names_taken(calls: Sequence[_Call], targets: Sequence[_Target]) -> Mapping[str, Set[str]]:
    """Find which files each name stands for: those that will get it, or '' if calls have it already."""
    taken: dict[str, set[str]] = defaultdict(set)
    for target in targets:
        if not target.fault:
            taken[target.name].add(target.path)
    for call in calls:
        url = _URL.match(call.written)
        if url is not None:
            taken[url[1].lstrip("/")].add("")
    return taken


def _unique(target: _Target, taken: Mapping[str, Set[str]], first_folder: str) -> _Target:
    """Refuse a name that stands for another file too. A file of Asterisk's own folder keeps its name."""
    if target.fault or target.path == posixpath.join(first_folder, target.name):
        return target
    if taken[target.name] == {target.path}:
        return target
    return _Target(fault=f"another script would be called {target.name} too: it needs its own route")


# --- writing


def _changes(lines: Sequence[str], calls: Sequence[tuple[_Call, str]], server: str) -> Iterator[Change]:
    for number, group in groupby(calls, key=lambda item: item[0].number):
        old = new = lines[number - 1]
        # From the right, so that the places of those on the left stay what they are.
        for call, name in reversed(list(group)):
            (begin, end), (script, behind) = call.name, call.script
            application = "AGI" if call.application == "deadagi" else old[begin:end]
            new = f"{new[:begin]}{application}{new[end:script]}agi://{server}/{name}{new[behind:]}"
        yield Change(number, old, new)


def _neighbours(changes: Sequence[Change]) -> list[list[Change]]:
    """Put changes together whose lines of context meet."""
    groups: list[list[Change]] = []
    for change in changes:
        if groups and change.number - groups[-1][-1].number <= 2 * _CONTEXT_LINES + 1:
            groups[-1].append(change)
        else:
            groups.append([change])
    return groups


def _hunk(lines: Sequence[str], changes: Sequence[Change]) -> str:
    first = max(1, changes[0].number - _CONTEXT_LINES)
    last = min(len(lines), changes[-1].number + _CONTEXT_LINES)
    place = f"{first},{last - first + 1}"
    new = {change.number: change.new for change in changes}
    written = [f"@@ -{place} +{place} @@\n"]
    for numbers_changed, group in groupby(range(first, last + 1), key=new.__contains__):
        numbers = list(group)
        if numbers_changed:
            written += [_whole("-", lines[number - 1]) for number in numbers]
            written += [_whole("+", new[number]) for number in numbers]
        else:
            written += [_whole(" ", lines[number - 1]) for number in numbers]
    return "".join(written)


def _whole(sign: str, line: str) -> str:
    """Write a line of a hunk; one without a line end is said to have none."""
    return f"{sign}{line}" if line.endswith("\n") else f"{sign}{line}\n\\ No newline at end of file\n"
