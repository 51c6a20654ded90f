"""fastagi_pool.dialplan: which lines change, which are told, and that every other byte stays."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastagi_pool.dialplan import Remark, Rewriting, as_diff, report, rewrite, unsupported_language

SERVER: Final = "127.0.0.1:4577"
URL: Final = f"agi://{SERVER}"
FILE: Final = "extensions.conf"
#: Lines of dialplans, each of five parts of which any may go with any.
_LINES: Final = st.tuples(
    st.sampled_from(
        ["same => n,", "exten => _[1,2]X,1,", "same => n(a), ", "exten => 1,hint,", "X=", ";", ";--", ""]
    ),
    st.sampled_from(
        ["", "ExecIf(1?", "TryExec(", "Gosub(s,1(", "NoOp(", "ExecIf(1?AGI(a.agi):", "agi(b,", "\\", ";--"]
    ),
    st.sampled_from(["AGI(", "DeadAGI(", "agi (", "EAGI(", "AGI,", "AGI|", 'AGI("']),
    st.sampled_from(
        (
            *(
                "a.agi",
                "a/./b",
                "/opt/agi/a.agi",
                "/var/lib/asterisk/agi-bin/a.agi",
                "/opt/x",
                "${X}",
                "../a",
            ),
            *(
                "agi://h/a.agi",
                f"{URL}/b?c",
                "agi:async",
                "a b",
                "é",
                "\udce9",
                "",
                "|",
                '"',
                ";",
                "--;",
                "\0",
            ),
        )
    ),
    st.sampled_from([")", ",1)", ")):NoOp()", '")', ":AGI(c.agi))", ") ; AGI(d)", ") --;", "", " "]),
)
_DIALPLANS: Final = st.lists(
    st.tuples(_LINES.map("".join), st.sampled_from(["\n", "\r\n", "\n#include a\n", ""])).map("".join),
    max_size=6,
).map("".join)
_FOLDERS: Final = ("/var/lib/asterisk/agi-bin", "/opt/agi")


def only_change(text: str, *agi_dirs: str) -> str:
    """Rewrite a dialplan of one line, in which nothing may be left alone, and return the new line."""
    rewriting = rewrite(text, SERVER, *([agi_dirs] if agi_dirs else []))
    assert rewriting.remarks == ()
    [change] = rewriting.changes
    assert (change.number, change.old) == (1, text)
    return change.new


def only_remark(text: str, *agi_dirs: str) -> Remark:
    """Rewrite a dialplan in which nothing may change, and return the one thing that was told."""
    rewriting = rewrite(text, SERVER, *([agi_dirs] if agi_dirs else []))
    assert rewriting.changes == ()
    [remark] = rewriting.remarks
    return remark


def without_names(line: str) -> str:
    """Take out of a line all in which a local call and the one that takes its place may differ."""
    for part in (f"{URL}/", *(f"{folder}/" for folder in _FOLDERS), "./", '"', "Dead"):
        line = line.replace(part, "")
    return line


# ---- what changes


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("exten => s,1,AGI(x.agi)", f"exten => s,1,AGI({URL}/x.agi)"),
        ("exten=s,1,AGI(x.agi,a,${B},)", f"exten=s,1,AGI({URL}/x.agi,a,${{B}},)"),
        (" same => n(top),agi(a/b.php,1)", f" same => n(top),agi({URL}/a/b.php,1)"),
        ("SAME=n,Agi(x)", f"SAME=n,Agi({URL}/x)"),
        ("\tsame\t=>\tn,\tAGI(x.agi)\t; y", f"\tsame\t=>\tn,\tAGI({URL}/x.agi)\t; y"),
        ("exten => _[1,2]X./_[3,4].,1,AGI(x.agi)", f"exten => _[1,2]X./_[3,4].,1,AGI({URL}/x.agi)"),
        ("exten => h,1,DeadAGI(x.agi,a)", f"exten => h,1,AGI({URL}/x.agi,a)"),
        ("exten => h,1,deadagi(x.agi)", f"exten => h,1,AGI({URL}/x.agi)"),
        ('same => n,AGI("x.agi",a)', f"same => n,AGI({URL}/x.agi,a)"),
        ("same => n,AGI(./a//x.agi)", f"same => n,AGI({URL}/a/x.agi)"),
        ("same => n,AGI(x.agi,a|b,${C}?d,%20)", f"same => n,AGI({URL}/x.agi,a|b,${{C}}?d,%20)"),
        ("same => n,AGI(x.agi,a\\;b) ;c", f"same => n,AGI({URL}/x.agi,a\\;b) ;c"),
        ("same => n,AGI(x.agi,a;-- no --;b)", f"same => n,AGI({URL}/x.agi,a;-- no --;b)"),
    ],
)
def test_a_local_script_is_called_by_its_url(old: str, new: str) -> None:
    """AGI() and DeadAGI() of a script get its URL, in every way to write the line; arguments stay."""
    assert only_change(old) == new


@pytest.mark.parametrize(
    "line",
    [
        "same => n,ExecIf($[${A} = 1]?AGI(x.agi,y):NoOp())",
        'same => n,ExecIf($["${A}" = "(b)"]?NoOp(no):AGI(x.agi,y))',
        "same => n,execif($[1] ? AGI(x.agi))",
        "same => n,ExecIfTime(9:00-17:00,mon-fri,*,*?AGI(x.agi,y))",
        "same => n,TryExec(AGI(x.agi))",
        "same => n,Exec(AGI(x.agi))",
        "same => n,Gosub(sub,s,1(a,AGI(x.agi,y)))",
        "same => n,GosubIf($[1]?sub,s,1(AGI(x.agi)):sub,s,1(b))",
        "same => n,Macro(m,a,AGI(x.agi))",
        "same => n,ExecIf($[1]?TryExec(AGI(x.agi)):Gosub(s,1(AGI)))",
    ],
)
def test_a_script_in_the_arguments_of_who_runs_it(line: str) -> None:
    """AGI() changes where another application runs it."""
    assert only_change(line) == line.replace("x.agi", f"{URL}/x.agi")


def test_two_calls_in_one_line() -> None:
    """Each branch of an ExecIf() changes, and both names need a route."""
    rewriting = rewrite("same => n,ExecIf($[1]?DeadAGI(x.agi,1):AGI(y.agi,2))\n", SERVER)

    assert rewriting.text == f"same => n,ExecIf($[1]?AGI({URL}/x.agi,1):AGI({URL}/y.agi,2))\n"
    assert rewriting.scripts == ("x.agi", "y.agi")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/var/lib/asterisk/agi-bin/x.agi", "x.agi"),
        ("/var/lib/asterisk/agi-bin//a/./x.agi", "a/x.agi"),
        ("//opt/agi/a/x.agi", "a/x.agi"),
    ],
)
def test_an_absolute_path_below_a_folder_of_scripts(path: str, name: str) -> None:
    """A script that is given by its path is called by its path below its folder."""
    assert only_change(f"same => n,AGI({path})", *_FOLDERS) == f"same => n,AGI({URL}/{name})"


def test_a_folder_of_scripts_may_end_in_a_slash() -> None:
    """An operator who completes a folder's name by the tabulator means the same folder."""
    assert only_change("same => n,AGI(/opt/agi/x.agi)", "/opt/agi/") == f"same => n,AGI({URL}/x.agi)"


def test_each_script_needs_one_route() -> None:
    """A script that is called twice, in two ways, is one script."""
    text = "same => n,AGI(x.agi)\nsame => n,AGI(b.agi)\nsame => n,AGI(/var/lib/asterisk/agi-bin/x.agi)\n"

    assert rewrite(text, SERVER).scripts == ("x.agi", "b.agi")


# ---- what does not


@pytest.mark.parametrize(
    "text",
    [
        "same => n,AGI(agi://10.0.0.1/x.agi,1)",
        "same => n,AGI(AGI://${HOST}/x.agi)",
        "same => n,DeadAGI(hagi://pbx/x.agi)",
        "same => n,EAGI(agi://10.0.0.1/x.agi)",
        "same => n,AGI(agi:async)",
        "; same => n,AGI(x.agi)",
        "same => n,NoOp(a) ; AGI(x.agi)",
        ";-- same => n,AGI(x.agi) --;",
        ";--\nsame => n,AGI(x.agi)\n;-- ; --; AGI(x.agi)\n same => n,AGI(y.agi) --;\n",
        "exten => 100,hint,AGI(x.agi)",
        "exten => s,1,NoOp(the AGI, well)",
        "same => n,FastAGI(x.agi)",
        "same => n,MyEAGI(x.agi)",
        "same => n,Set(AGISIGHUP=no)",
        "[AGI]\nannounce=AGI, or not",
    ],
)
def test_what_has_nothing_to_be_told(text: str) -> None:
    """What calls a server already, stands in a comment or is no call at all is passed over in silence."""
    assert rewrite(text, SERVER) == Rewriting(rewrite(text, SERVER).lines, (), (), ())
    assert rewrite(text, SERVER).text == text


@pytest.mark.parametrize(
    ("text", "shown", "reason"),
    [
        ("same => n,EAGI(x.agi,1)", "EAGI(x.agi,...)", "impossible over the network"),
        ("same => n,AGI(${SCRIPT},1)", "AGI(${SCRIPT},...)", "only known when it runs"),
        ("same => n,AGI($[1+1].agi)", "AGI($[1+1].agi)", "only known when it runs"),
        ("same => n,AGI(x.agi|1)", "AGI(x.agi|1)", "syntax of Asterisk 1.4"),
        ("exten => s,1,AGI,x.agi|1 ; c", "AGI,x.agi|1", "old syntax without parentheses"),
        ("exten => s,1,DeadAGI|x.agi\r\n", "DeadAGI|x.agi", "old syntax without parentheses"),
        ("same => n,ExecIf($[1]?AGI,x.agi)", "AGI,x.agi)", "old syntax without parentheses"),
        ("same => n,AGI()", "AGI()", "names no script"),
        ("same => n,AGI(a/)", "AGI(a/)", "names no script"),
        ("same => n,AGI( x.agi)", "AGI(x.agi)", "holds ' '"),
        ("same => n,AGI(a?b#c%.agi)", "AGI(a?b#c%.agi)", "holds '#', '%', '?'"),
        ("same => n,AGI(\udcfc.agi)", "AGI(\udcfc.agi)", r"holds '\udcfc'"),
        ("same => n,AGI(x\\,y.agi)", "AGI(x\\,...)", r"holds '\\'"),
        ("same => n,AGI(../x.agi)", "AGI(../x.agi)", "holds '..'"),
        ("same => n,AGI(/usr/bin/x)", "AGI(/usr/bin/x)", "needs its own route"),
        (
            "same => n,AGI(/var/lib/asterisk/agi-binx)",
            "AGI(/var/lib/asterisk/agi-binx)",
            "needs its own route",
        ),
        ("same => n,AGI(x.agi", "AGI(x.agi)", "closing parenthesis is missing"),
        ("same => n,AGI(x.agi ; )", "AGI(x.agi)", "closing parenthesis is missing"),
        ("same => n,NoOp(AGI(x.agi))", "AGI(x.agi)", "in the arguments of NoOp()"),
        ("same => n,ExecIf(1?NoOp(AGI(x.agi)))", "AGI(x.agi)", "in the arguments of NoOp()"),
        ("same => n,MacroIf($[1]?m,AGI(x.agi):o)", "AGI(x.agi)", "in the arguments of MacroIf()"),
        ("same => n,Set(WHAT=AGI(x.agi))", "AGI(x.agi)", "in the arguments of Set()"),
        ('same => n,ExecIf($["AGI(x.agi)" = "${A}"]?NoOp())', "AGI(x.agi)", "in the middle of a text"),
        ("same => n,${DO}AGI(x.agi)", "AGI(x.agi)", "in the middle of a text"),
        ("[globals]\nWHAT=AGI(x.agi)", "AGI(x.agi)", "not in the application of an exten or same line"),
        ("exten => AGI(x.agi)", "AGI(x.agi)", "not in the application of an exten or same line"),
        ("#include more.conf ; AGI(x.agi)", "#include more.conf", "was not read"),
        (" #tryinclude <more.conf>", "#tryinclude <more.conf>", "was not read"),
        ('#exec "/bin/more"\r\n', '#exec "/bin/more"', "was not read"),
    ],
)
def test_what_a_person_must_look_at(text: str, shown: str, reason: str) -> None:
    """What cannot be changed, or not surely, is left alone, and told with its reason."""
    remark = only_remark(text)

    assert remark.text == shown
    assert reason in remark.reason


def test_a_remark_names_its_line() -> None:
    """Remarks come in the order of the lines, whatever they are about."""
    text = "[a]\nsame => n,EAGI(x)\n\n#include b\nsame => n,AGI(${C})\n"

    assert [remark.number for remark in rewrite(text, SERVER).remarks] == [2, 4, 5]


def test_the_block_comment_ends() -> None:
    """Behind a block comment, nested ones and dashes in it included, the dialplan goes on."""
    text = ";---- a line\n;-- a ;-- b\n --; \\;-- c ;\n--; same => n,AGI(x.agi) --;\nsame => n,AGI(y.agi)\n"

    assert [change.number for change in rewrite(text, SERVER).changes] == [4, 5]


# ---- one name, one script


def test_a_name_of_two_scripts() -> None:
    """A script of another folder does not take the name of one of Asterisk's own, wherever each is called."""
    text = "same => n,AGI(/opt/agi/x.agi)\nsame => n,AGI(x.agi)\n"
    rewriting = rewrite(text, SERVER, _FOLDERS)

    assert [change.number for change in rewriting.changes] == [2]
    assert [remark.number for remark in rewriting.remarks] == [1]
    assert "another script would be called x.agi too" in rewriting.remarks[0].reason


def test_a_name_of_two_scripts_outside_of_asterisks_folder() -> None:
    """If neither is Asterisk's own, neither gets the name."""
    text = "same => n,AGI(/opt/agi/x.agi)\nsame => n,AGI(/opt/more/x.agi)\n"

    assert rewrite(text, SERVER, (*_FOLDERS, "/opt/more")).changes == ()


def test_a_name_that_is_called_already() -> None:
    """Which script a URL that is there means is not known, so a script of another folder cannot share it."""
    text = "same => n,AGI(agi://pbx/x.agi?a=b)\nsame => n,AGI(/opt/agi/x.agi)\n"

    assert rewrite(text, SERVER, _FOLDERS).changes == ()


# ---- what cannot be asked


@pytest.mark.parametrize(
    "server", ["", "a,b", "a:b", "agi://a", "a/b", "a b", "a)", "${A}", "::1", "a:4577\n", "a:123456"]
)
def test_a_server_that_none_can_be(server: str) -> None:
    """A server that would break the line is refused."""
    with pytest.raises(ValueError, match="give host:port"):
        rewrite("same => n,AGI(x.agi)", server)


@pytest.mark.parametrize("server", ["127.0.0.1", "pbx-2.example.org:4577", "[::1]:4577"])
def test_a_server_of_any_form(server: str) -> None:
    """Addresses and names, with a port or without one, stand in the URL as they are given."""
    assert rewrite("same => n,AGI(x.agi)", server).text == f"same => n,AGI(agi://{server}/x.agi)"


@pytest.mark.parametrize("folders", [(), ("agi-bin",)])
def test_folders_of_scripts_are_absolute(folders: tuple[str, ...]) -> None:
    """A folder that depends on where the command is given is refused."""
    with pytest.raises(ValueError, match="absolute"):
        rewrite("", SERVER, folders)


@pytest.mark.parametrize(
    ("file", "language"), [("a/extensions.ael", "AEL"), ("EXTENSIONS.LUA", "Lua"), ("extensions.conf", "")]
)
def test_the_language_of_a_dialplan(file: str, language: str) -> None:
    """Dialplans in other languages are known by their names."""
    assert unsupported_language(file) == language


# ---- any text


@given(st.text(st.characters()).filter(lambda text: "agi" not in text.lower()))
def test_text_without_agi_is_never_changed(text: str) -> None:
    """A file in which nobody speaks of AGI stays as it is, whatever is in it."""
    rewriting = rewrite(text, SERVER)

    assert rewriting.changes == ()
    assert rewriting.text == text
    assert as_diff(rewriting, FILE) == ""


@given(_DIALPLANS)
def test_rewriting_twice_is_rewriting_once(text: str) -> None:
    """What was rewritten calls no local script any more, and what was left alone is left alone again."""
    once = rewrite(text, SERVER, _FOLDERS)
    twice = rewrite(once.text, SERVER, _FOLDERS)

    assert twice.changes == ()
    assert [(each.number, each.reason) for each in twice.remarks] == [
        (each.number, each.reason) for each in once.remarks
    ]


@given(_DIALPLANS)
def test_only_urls_are_put_in(text: str) -> None:
    """Lines stay lines, and one that changes differs by what is in the place of its script alone."""
    rewriting = rewrite(text, SERVER, _FOLDERS)

    assert "".join(rewriting.lines) == text
    assert rewriting.text.count("\n") == text.count("\n")
    for change in rewriting.changes:
        assert change.new.count(f"{URL}/") > change.old.count(f"{URL}/")
        assert without_names(change.new) == without_names(change.old)


# ---- the diff


def test_the_diff() -> None:
    """Changes that are near share a hunk, others have their own, each with three lines around it."""
    lines = [f"line {number}\n" for number in range(1, 31)]
    lines[4] = lines[11] = lines[20] = "same => n,AGI(x.agi)\n"

    assert as_diff(rewrite("".join(lines), SERVER), "a b.conf").splitlines() == [
        "--- a b.conf",
        "+++ a b.conf",
        "@@ -2,14 +2,14 @@",
        *(" line 2", " line 3", " line 4"),
        "-same => n,AGI(x.agi)",
        f"+same => n,AGI({URL}/x.agi)",
        *(f" line {number}" for number in range(6, 12)),
        "-same => n,AGI(x.agi)",
        f"+same => n,AGI({URL}/x.agi)",
        *(" line 13", " line 14", " line 15"),
        "@@ -18,7 +18,7 @@",
        *(" line 18", " line 19", " line 20"),
        "-same => n,AGI(x.agi)",
        f"+same => n,AGI({URL}/x.agi)",
        *(" line 22", " line 23", " line 24"),
    ]


@pytest.mark.skipif(shutil.which("patch") is None, reason="no patch")
@pytest.mark.parametrize(
    "text",
    [
        b"same => n,AGI(x.agi)\n",
        b"same => n,AGI(x.agi)",
        b"same => n,AGI(x.agi)\r\n same => n,NoOp()\r\n",
        b"\xe9\nsame => n,AGI(x.agi,\xe9)\n\xc3\xa9\n\n",
        b"same => n,AGI(x.agi)\nsame => n,DeadAGI(y.agi)\nsame => n,NoOp(1)\x0c\n",
        b"".join(b"; %d\n" % number for number in range(20)) + b"same => n,AGI(x.agi)\n\n" * 5 + b"last",
    ],
)
def test_patch_applies_the_diff(text: bytes, tmp_path: Path) -> None:
    """The real ``patch`` makes of the old file the new one, to the byte."""
    file = tmp_path / FILE
    file.write_bytes(text)
    rewriting = rewrite(text.decode(errors="surrogateescape"), SERVER)

    done = subprocess.run(
        ["patch", "-p0"],
        cwd=tmp_path,
        input=as_diff(rewriting, FILE).encode(errors="surrogateescape"),
        capture_output=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == b"patching file extensions.conf\n"
    assert file.read_bytes() == rewriting.text.encode(errors="surrogateescape")
    assert file.read_bytes() != text


# ---- the report


def test_the_report() -> None:
    """An operator reads what was left alone, by line, and which scripts need a route."""
    text = "same => n,EAGI(x.agi)\nsame => n,AGI(b.agi)\nsame => n,AGI(a.agi)\n"

    assert report(rewrite(text, SERVER), FILE) == [
        "extensions.conf:1: left alone: EAGI(x.agi): impossible over the network: EAGI hands the caller's "
        "voice to a local process",
        "extensions.conf: 2 lines change; these scripts need a route:",
        "  b.agi",
        "  a.agi",
    ]


def test_the_report_of_one_line_and_of_none() -> None:
    """An operator reads whether anything changes at all."""
    assert report(rewrite("same => n,AGI(x)", SERVER), FILE)[0].startswith("extensions.conf: 1 line changes;")
    assert report(rewrite("same => n,NoOp()", SERVER), FILE) == ["extensions.conf: nothing changes"]


def test_the_report_can_be_printed() -> None:
    """What a terminal would obey, or no encoding knows, is shown and does nothing."""
    [left, _] = report(rewrite("same => n,EAGI(\x1b[2J\udce9é)", SERVER), FILE)

    assert "EAGI(\\x1b[2J\\udce9é)" in left
