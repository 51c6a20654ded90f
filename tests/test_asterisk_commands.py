"""fastagi_pool.asterisk_commands: what every command answers and does, as two real Asterisks do.

Replies that stand here but in no transcript were asked of Asterisk 22.10; those of a speech engine are read
from its source, as no engine was at hand.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from fastagi_pool.asterisk import HANGUP, AgiStatus, Behaviour, Caller, FakeAsterisk
from fastagi_pool.asterisk_commands import COMMANDS, find_command, separate_arguments

_SHOW_COMMANDS: Final = Path(__file__).parent / "corpus" / "commands" / "22.txt"
_USAGE: Final = "520-Invalid command syntax.  Proper usage follows:\n"
_DEAD: Final = "511 Command Not Permitted on a dead channel or intercept routine"

#: The arguments of Behaviour, and lines with their replies.
Scene: TypeAlias = tuple[dict[str, Any], list[tuple[str, str]]]

every_command = pytest.mark.parametrize("name", sorted(COMMANDS))


def ask(asterisk: FakeAsterisk, *lines: str) -> list[str]:
    """Send lines one by one and return the replies, each without its last line end."""
    return [asterisk.receive(f"{line}\n".encode()).decode().removesuffix("\n") for line in lines]


def call(**behaviour: Any) -> FakeAsterisk:
    """Make a call by Alice; the arguments are those of Behaviour."""
    return FakeAsterisk("agi://127.0.0.1/x", (), Caller(), Behaviour(**behaviour))


# ---- the table


def test_table_is_asterisks_own() -> None:
    """Every command of Asterisk 22 is there, and permitted on a dead channel where Asterisk permits it."""
    rows = re.findall(r"^ +(Yes|No) +(.+?)   ", _SHOW_COMMANDS.read_text("utf-8"), re.MULTILINE)
    theirs = {name.upper(): dead == "Yes" for dead, name in rows}
    assert {name: entry.when_dead for name, entry in COMMANDS.items()} == theirs


@every_command
def test_too_few_and_too_many_words(name: str) -> None:
    """A wrong number of words brings the usage in three lines, and changes no AGISTATUS."""
    entry = COMMANDS[name]
    words = ["1"] * (entry.least - len(name.split()))
    wrong = [words[:-1]] if words else []
    if entry.most is not None:
        wrong.append(["1"] * (entry.most - len(name.split()) + 1))
    asterisk = call()
    for arguments in wrong:
        (reply,) = ask(asterisk, " ".join([name, *arguments]))
        assert reply.startswith(f"{_USAGE}Usage: {name}")
        assert reply.endswith("\n520 End of proper usage.")
        assert reply.count("\n") == 2
    assert asterisk.status is AgiStatus.SUCCESS


@every_command
def test_dead_channel(name: str) -> None:
    """On a dead channel a command is either permitted or refused with 511, before its words are looked at."""
    (reply,) = ask(call(dead=True), name)
    assert (reply == _DEAD) is not COMMANDS[name].when_dead


@every_command
def test_in_any_case(name: str) -> None:
    """A command's name may be written in any case, but its words must be words of their own."""
    words = name.lower().split()
    assert find_command([*words, "more"]) == (name, COMMANDS[name])
    assert find_command(words[:-1]) is None
    if len(words) > 1:
        assert find_command([" ".join(words)]) is None


# ---- chapter by chapter


CHANNEL: Final[list[Scene]] = [
    (
        {},
        [
            ("CHANNEL STATUS", "200 result=4"),
            ("GET VARIABLE CHANNEL(state)", "200 result=1 (Ring)"),
            ("ANSWER", "200 result=0"),
            ("ANSWER again", "200 result=0"),
            ("CHANNEL STATUS", "200 result=6"),
            ("CHANNEL STATUS PJSIP/alice-00000001", "200 result=6"),
            ("CHANNEL STATUS PJSIP/bob-1", "200 result=-1"),
            ("GET VARIABLE CHANNEL(state)", "200 result=1 (Up)"),
        ],
    ),
    (
        {},
        [
            ("HANGUP PJSIP/bob-1", "200 result=-1"),
            ("HANGUP", "200 result=1\nHANGUP"),
            ("HANGUP", _DEAD),
        ],
    ),
    ({}, [("HANGUP PJSIP/alice-00000001", "200 result=1\nHANGUP")]),
    (
        {},
        [
            ("SET AUTOHANGUP 0", "200 result=0"),
            ("SET AUTOHANGUP .5", "200 result=0"),
            ("SET MUSIC on default more", "200 result=0"),
            ("SET MUSIC maybe", "200 result=0"),
            ("TDD MODE on", "200 result=0"),
            ("ASYNCAGI BREAK", "200 result=0"),
        ],
    ),
    (
        {},
        [
            ("SET CALLERID", "200 result=1"),
            ("GET VARIABLE CALLERID(all)", '200 result=1 ("Alice" <100>)'),
            ('SET CALLERID "Bob <200>"', "200 result=1"),
            ("GET VARIABLE CALLERID(name)", "200 result=1 (Bob)"),
            ("GET VARIABLE CALLERID(num)", "200 result=1 (200)"),
        ],
    ),
]

DIALPLAN: Final[list[Scene]] = [
    (
        {"subroutines": ("sub",)},
        [
            ("GOSUB sub s 1 a,b", "100 result=0 Trying...\n200 result=0 Gosub complete"),
            ("GOSUB nosuch s 1", "200 result=-1 Gosub label not found"),
        ],
    ),
    ({}, [("GOSUB any s 1", "100 result=0 Trying...\n200 result=0 Gosub complete")]),
    (
        {},
        [
            ("SET CONTEXT other", "200 result=0"),
            ("SET EXTENSION 5", "200 result=0"),
            ("GET VARIABLE PRIORITY", "200 result=1 (1)"),
            ("SET PRIORITY 7", "200 result=0"),
            ("GET VARIABLE CONTEXT", "200 result=1 (other)"),
            ("GET VARIABLE EXTEN", "200 result=1 (5)"),
            ("GET VARIABLE PRIORITY", "200 result=1 (6)"),
        ],
    ),
]

CONSOLE: Final[list[Scene]] = [
    (
        {},
        [
            ("NOOP", "200 result=0"),
            ("NOOP any words", "200 result=0"),
            ("VERBOSE one", "200 result=1"),
            ('VERBOSE "two words" 4', "200 result=1"),
            ("VERBOSE unquoted words 1", "200 result=1"),
        ],
    ),
]

VARIABLES: Final[list[Scene]] = [
    (
        {"variables": {"A": "1"}},
        [
            ("GET VARIABLE A", "200 result=1 (1)"),
            ("GET VARIABLE B", "200 result=0"),
            ('SET VARIABLE B "two words"', "200 result=1"),
            ("GET VARIABLE B", "200 result=1 (two words)"),
            ('SET VARIABLE B ""', "200 result=1"),
            ("GET VARIABLE B", "200 result=1 ()"),
            ('SET VARIABLE "" x', "200 result=1"),
            ('GET VARIABLE ""', "200 result=0"),
            ("GET VARIABLE A:0:1", "200 result=0"),
        ],
    ),
    (
        {"variables": {"A": "1"}},
        [
            ("GET FULL VARIABLE ${A}", "200 result=1 (1)"),
            ("GET FULL VARIABLE A", "200 result=1 (A)"),
            ("GET FULL VARIABLE ${B}", "200 result=1 ()"),
            ("GET FULL VARIABLE ${A} PJSIP/alice-00000001", "200 result=1 (1)"),
            ("GET FULL VARIABLE ${A} PJSIP/bob-1", "200 result=0"),
        ],
    ),
    (
        {},
        [
            ("SET VARIABLE CHANNEL(nosuch) x", "200 result=1"),
            ("GET VARIABLE CHANNEL(nosuch)", "200 result=0"),
            ("GET FULL VARIABLE ${NOSUCH(x)}", "200 result=1 ()"),
        ],
    ),
]

DATABASE: Final[list[Scene]] = [
    (
        {"database": {"f/k": "v"}},
        [
            ("DATABASE GET f k", "200 result=1 (v)"),
            ("DATABASE GET F k", "200 result=0"),
            ('DATABASE PUT f k ""', "200 result=1"),
            ("DATABASE GET f k", "200 result=1 ()"),
            ("DATABASE DEL f k", "200 result=1"),
            ("DATABASE DEL f k", "200 result=1"),
            ("DATABASE GET f k", "200 result=0"),
        ],
    ),
    (
        {"database": {"f/a/b": "1", "f/a/c": "2", "f/ab": "3", "ff/a": "4"}},
        [
            ("DATABASE DELTREE f a", "200 result=0"),
            ("DATABASE GET f a/b", "200 result=0"),
            ("DATABASE GET f ab", "200 result=1 (3)"),
            ("DATABASE DELTREE f a", "200 result=1"),
            ("DATABASE DELTREE f", "200 result=0"),
            ("DATABASE GET ff a", "200 result=1 (4)"),
        ],
    ),
]

APPLICATIONS: Final[list[Scene]] = [
    (
        {"missing_applications": ("NoSuchApp",)},
        [
            ("EXEC nosuchapp a b", "200 result=-2"),
            ('EXEC ""', "200 result=-2"),
            ("EXEC Wait 1", "200 result=0"),
            ("EXEC Playback nosuchfile", "200 result=0"),
        ],
    ),
    (
        {},
        [
            ("EXEC Set X=1 lost", "200 result=0"),
            ("GET VARIABLE X", "200 result=1 (1)"),
            ("EXEC set Y=a=b", "200 result=0"),
            ("GET VARIABLE Y", "200 result=1 (a=b)"),
            ("EXEC Set Y", "200 result=0"),
            ('EXEC Set "Y=one,two"', "200 result=0"),
            ("GET VARIABLE Y", "200 result=1 (one,two)"),
            (r'EXEC MSet "A=1\\,2,B=\"x y\",nothing"', "200 result=0"),
            ("GET VARIABLE A", "200 result=1 (1,2)"),
            ("GET VARIABLE B", "200 result=1 (x y)"),
        ],
    ),
    (
        {},
        [
            ("EXEC Set E=${EXTEN}", "200 result=0"),
            ("GET VARIABLE E", "200 result=1 (${EXTEN})"),
            ("SET VARIABLE AGIEXECFULL yes", "200 result=1"),
            ("EXEC Set E=${EXTEN}", "200 result=0"),
            ("GET VARIABLE E", "200 result=1 (100)"),
        ],
    ),
    (
        {},
        [
            ("EXEC Goto other,5,2", "200 result=0"),
            ("GET VARIABLE CONTEXT", "200 result=1 (other)"),
            ("GET VARIABLE EXTEN", "200 result=1 (5)"),
            ("GET VARIABLE PRIORITY", "200 result=1 (1)"),
            ("EXEC Goto 6,1", "200 result=0"),
            ("GET VARIABLE EXTEN", "200 result=1 (6)"),
            ("EXEC Goto label", "200 result=0"),
            ("GET VARIABLE PRIORITY", "200 result=1 (label)"),
        ],
    ),
    ({}, [("EXEC Playback x", "200 result=0"), ("CHANNEL STATUS", "200 result=6")]),
    ({}, [("EXEC Wait 1", "200 result=0"), ("CHANNEL STATUS", "200 result=4")]),
    ({}, [("EXEC Hangup", "200 result=-1\nHANGUP"), ("EXEC Hangup", "200 result=-1")]),
    (
        {"presses": (HANGUP,)},
        [("EXEC Set X=1", "200 result=0"), ("EXEC Dial PJSIP/bob", "200 result=-1\nHANGUP")],
    ),
]

SOUND: Final[list[Scene]] = [
    ({}, [('STREAM FILE welcome ""', "200 result=0 endpos=8000")]),
    ({"presses": ("2",)}, [("STREAM FILE welcome 123", "200 result=50 endpos=800")]),
    ({"presses": ("92",)}, [("STREAM FILE welcome 123 400", "200 result=50 endpos=800")]),
    ({"presses": ("9",)}, [("STREAM FILE welcome 123", "200 result=0 endpos=8000")]),
    (
        {"presses": ("5",)},
        [('STREAM FILE welcome ""', "200 result=0 endpos=8000"), ("WAIT FOR DIGIT 1", "200 result=53")],
    ),
    (
        {"presses": (HANGUP,)},
        [('STREAM FILE welcome ""', "200 result=-1 endpos=800\nHANGUP"), ("STREAM FILE welcome 1", _DEAD)],
    ),
    (
        {"missing_files": ("nosuch",)},
        [
            ("STREAM FILE nosuch 1", "200 result=-1 endpos=0"),
            ("STREAM FILE nosuch 1 100", "200 result=-1 endpos=100"),
            ('STREAM FILE "" 1', "200 result=-1 endpos=0"),
            ("STREAM FILE a&b 1", "200 result=-1 endpos=0"),
            ("GET OPTION nosuch 1", "200 result=-1 endpos=0"),
            ("GET DATA nosuch", "200 result=-1"),
            ("GET DATA a&b", "200 result=-1"),
            ("CONTROL STREAM FILE nosuch 1", "200 result=-1 endpos=-1"),
        ],
    ),
    (
        {"presses": ("19",)},
        [
            ("GET OPTION welcome 9 2000", "200 result=57 endpos=800"),
            ("GET OPTION welcome 9", "200 result=0 endpos=8000"),
        ],
    ),
    ({"presses": (HANGUP,)}, [("GET OPTION welcome 9", "200 result=-1 endpos=800\nHANGUP")]),
    ({}, [("GET DATA welcome", "200 result= (timeout)"), ('GET DATA ""', "200 result= (timeout)")]),
    ({"presses": ("34#9",)}, [("GET DATA welcome 2000", "200 result=34")]),
    ({"presses": ("34",)}, [("GET DATA welcome 2000 3", "200 result=34 (timeout)")]),
    ({"presses": ("5678",)}, [("GET DATA welcome 2000 3", "200 result=567")]),
    ({"presses": ("56#",)}, [("GET DATA welcome 2000 1", "200 result=5")]),
    ({"presses": ("#",)}, [("GET DATA welcome", "200 result=")]),
    ({"presses": ("1",)}, [("GET DATA x 1 0", "200 result=-1"), ("GET DATA x a b", "200 result=-1")]),
    ({"presses": (HANGUP,)}, [("GET DATA welcome", "200 result=-1\nHANGUP")]),
    ({"presses": ("", "12")}, [("WAIT FOR DIGIT 9", "200 result=0"), ("WAIT FOR DIGIT -1", "200 result=49")]),
    ({"presses": (HANGUP,)}, [("WAIT FOR DIGIT -1", "200 result=-1\nHANGUP")]),
]

CONTROLLED: Final[list[Scene]] = [
    (
        {"presses": ("5",)},
        [
            ("CONTROL STREAM FILE long 5 3000", "200 result=53 endpos=100"),
            ("GET VARIABLE CPLAYBACKSTATUS", "200 result=1 (USERSTOPPED)"),
            ("GET VARIABLE CPLAYBACKSTOPKEY", "200 result=1 (5)"),
            ("GET VARIABLE CPLAYBACKOFFSET", "200 result=1 (100)"),
            ('CONTROL STREAM FILE long ""', "200 result=0 endpos=-1"),
            ("GET VARIABLE CPLAYBACKSTATUS", "200 result=1 (SUCCESS)"),
            ("GET VARIABLE CPLAYBACKSTOPKEY", "200 result=0"),
        ],
    ),
    ({"presses": ("#",)}, [("CONTROL STREAM FILE long #", "200 result=0 endpos=-1")]),
    ({"presses": ("#",)}, [('CONTROL STREAM FILE long # 3000 9 "" 0 500', "200 result=35 endpos=100")]),
    ({"presses": ("90",)}, [("CONTROL STREAM FILE long 90 3000 9 8 0", "200 result=0 endpos=-1")]),
    ({"presses": (HANGUP,)}, [("CONTROL STREAM FILE long 5", "200 result=-1 endpos=100\nHANGUP")]),
]

RECORDING: Final[list[Scene]] = [
    ({"presses": ("7*",)}, [("RECORD FILE r sln * 5000", "200 result=42 (dtmf) endpos=800")]),
    ({"presses": ("7",)}, [("RECORD FILE r sln * 5000", "200 result=0 (timeout) endpos=8000")]),
    ({"presses": (HANGUP,)}, [('RECORD FILE r sln "" -1', "200 result=-1 (hangup) endpos=800\nHANGUP")]),
    ({}, [("RECORD FILE r sln # 5000 s=1", "200 result=4000 (timeout) endpos=8000")]),
    ({}, [("RECORD FILE r sln # -1 0 BEEP s=2", "200 result=100000 (timeout) endpos=8000")]),
    (
        {"missing_files": ("beep", "r")},
        [
            ('STREAM FILE r ""', "200 result=-1 endpos=0"),
            ("RECORD FILE r sln # 9 BEEP", "200 result=-1 (randomerror) endpos=0"),
            ("RECORD FILE r sln # 9 0 any", "200 result=-1 (randomerror) endpos=0"),
            ("RECORD FILE r sln # 9 0", "200 result=0 (timeout) endpos=8000"),
            ('STREAM FILE r ""', "200 result=0 endpos=8000"),
        ],
    ),
]

SAYING: Final[list[Scene]] = [
    (
        {"presses": ("1", "2", "3", "4", "5", "6", "7")},
        [
            ('SAY DIGITS 12 ""', "200 result=0"),
            ("SAY DIGITS 12 123", "200 result=49"),
            ("SAY NUMBER 12 123 f", "200 result=50"),
            ("SAY ALPHA ab 123", "200 result=51"),
            ("SAY PHONETIC ab 1234", "200 result=52"),
            ("SAY DATE 0 12345", "200 result=53"),
            ("SAY TIME 0 123456", "200 result=54"),
            ("SAY DATETIME 0 1234567 Q UTC", "200 result=55"),
            ("SAY DATETIME 0 1234567", "200 result=0"),
        ],
    ),
    ({"presses": (HANGUP,)}, [('SAY DIGITS 12 ""', "200 result=-1\nHANGUP")]),
    ({}, [('SAY NUMBER 1.5 ""', "200 result=0"), ('SAY DIGITS " 1 2" ""', "200 result=0")]),
]

TEXT: Final[list[Scene]] = [
    (
        {"presses": ("hello you", "é", "", "")},
        [
            ("RECEIVE TEXT 100", "200 result=1 (hello you)"),
            ("RECEIVE CHAR 100", "200 result=195"),
            ("RECEIVE TEXT 100", "200 result=-1"),
            ("RECEIVE CHAR 100", "200 result=-1 (hangup)"),
        ],
    ),
    ({"presses": (HANGUP,)}, [("RECEIVE TEXT 100", "200 result=-1\nHANGUP")]),
    ({"presses": (HANGUP,)}, [("RECEIVE CHAR 100", "200 result=-1 (hangup)\nHANGUP")]),
    ({}, [('SEND TEXT "two words"', "200 result=0"), ("SEND IMAGE x", "200 result=0")]),
]

_CREATED: Final = ("SPEECH CREATE engine", "200 result=1")
SPEECH: Final[list[Scene]] = [
    (
        {},
        [
            ("SPEECH CREATE engine", "200 result=0"),
            ("SPEECH SET a b", "200 result=0"),
            ("SPEECH LOAD GRAMMAR g /path", "200 result=0"),
            ("SPEECH ACTIVATE GRAMMAR g", "200 result=0"),
            ("SPEECH RECOGNIZE welcome 5000", "200 result=0"),
            ("SPEECH DEACTIVATE GRAMMAR g", "200 result=0"),
            ("SPEECH UNLOAD GRAMMAR g", "200 result=0"),
            ("SPEECH DESTROY", "200 result=0"),
        ],
    ),
    (
        {"speech": [("yes please", 900)]},
        [
            _CREATED,
            ("SPEECH CREATE engine", "200 result=0"),
            ("SPEECH SET a b", "200 result=1"),
            ("SPEECH LOAD GRAMMAR g /path", "200 result=1"),
            ("SPEECH LOAD GRAMMAR g /path", "200 result=0"),
            ("SPEECH ACTIVATE GRAMMAR g", "200 result=1"),
            (
                "SPEECH RECOGNIZE welcome 5000",
                '200 result=1 (speech) endpos=8000 results=1 score0=900 text0="yes please" grammar0=g',
            ),
            ("SPEECH RECOGNIZE welcome 5000", "200 result=1 (timeout) endpos=8000"),
            ("SPEECH DEACTIVATE GRAMMAR g", "200 result=1"),
            ("SPEECH UNLOAD GRAMMAR g", "200 result=1"),
            ("SPEECH UNLOAD GRAMMAR g", "200 result=0"),
            ("SPEECH DESTROY", "200 result=1"),
            ("SPEECH RECOGNIZE welcome 5000", "200 result=0"),
        ],
    ),
    (
        {"speech": [("yes", 900)], "presses": ("5", "", HANGUP)},
        [
            _CREATED,
            ("SPEECH RECOGNIZE welcome 5000", "200 result=1 (digit) digit=5 endpos=800"),
            (
                "SPEECH RECOGNIZE welcome 5000",
                '200 result=1 (speech) endpos=8000 results=1 score0=900 text0="yes" grammar0=',
            ),
            ("SPEECH RECOGNIZE welcome 5000", "200 result=1 (hangup) endpos=800\nHANGUP"),
        ],
    ),
]

_CHAPTERS: Final[dict[str, list[Scene]]] = {
    "channel": CHANNEL,
    "dialplan": DIALPLAN,
    "console": CONSOLE,
    "variables": VARIABLES,
    "database": DATABASE,
    "applications": APPLICATIONS,
    "sound": SOUND,
    "controlled": CONTROLLED,
    "recording": RECORDING,
    "saying": SAYING,
    "text": TEXT,
    "speech": SPEECH,
}


@pytest.mark.parametrize(
    ("behaviour", "dialogue"),
    [
        pytest.param(behaviour, dialogue, id=f"{chapter}-{number}")
        for chapter, rows in _CHAPTERS.items()
        for number, (behaviour, dialogue) in enumerate(rows)
    ],
)
def test_dialogue(behaviour: dict[str, Any], dialogue: list[tuple[str, str]]) -> None:
    """Each command answers what a real Asterisk answers in its place, and leaves what the next ones find."""
    lines = [line for line, _ in dialogue]
    assert list(zip(lines, ask(call(**behaviour), *lines), strict=True)) == dialogue


@pytest.mark.parametrize(
    "line",
    [
        "WAIT FOR DIGIT abc",
        "STREAM FILE x 1 abc",
        'CONTROL STREAM FILE x "" abc',
        'CONTROL STREAM FILE x "" 3000 # * 0 abc',
        "RECORD FILE r sln # abc",
        'SAY NUMBER abc ""',
        'SAY DIGITS #12 ""',
        'SAY DATE "" ""',
        'SAY TIME x ""',
        'SAY DATETIME x ""',
        "SET AUTOHANGUP -.x",
        'SET PRIORITY ""',
        "SET VARIABLE X two words",
    ],
)
def test_wrong_words(line: str) -> None:
    """What must be a number and is none brings the usage, and takes nothing that the caller presses."""
    asterisk = call(presses=("1",))
    (reply,) = ask(asterisk, line)
    assert reply.startswith(_USAGE)
    assert ask(asterisk, "WAIT FOR DIGIT 1") == ["200 result=49"]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("STREAM FILE nosuch 1", AgiStatus.FAILURE),
        ("CONTROL STREAM FILE nosuch 1", AgiStatus.FAILURE),
        ("GET OPTION nosuch 1", AgiStatus.FAILURE),
        ("GET DATA nosuch", AgiStatus.SUCCESS),
        ("RECORD FILE r sln # 9 BEEP", AgiStatus.SUCCESS),
        ("RECEIVE CHAR 100", AgiStatus.FAILURE),
        ("RECEIVE TEXT 100", AgiStatus.SUCCESS),
        ("GOSUB nosuch s 1", AgiStatus.FAILURE),
        ("EXEC NoSuchApp", AgiStatus.SUCCESS),
        ("CHANNEL STATUS nosuch", AgiStatus.SUCCESS),
        ("HANGUP nosuch", AgiStatus.SUCCESS),
        ("NOSUCH", AgiStatus.SUCCESS),
    ],
)
def test_failures_that_stick(line: str, status: AgiStatus) -> None:
    """A command that failed without a hangup makes AGISTATUS FAILURE for good, where it does in Asterisk."""
    asterisk = call(missing_files=("nosuch", "beep"), subroutines=(), missing_applications=("nosuchapp",))
    ask(asterisk, line, "NOOP")
    asterisk.receive_eof()
    assert asterisk.status is status


def test_playback_status() -> None:
    """STREAM FILE leaves PLAYBACKSTATUS behind, but not for a file that is missing."""
    asterisk = call(missing_files=("nosuch",), presses=(HANGUP,))
    ask(asterisk, "STREAM FILE nosuch 1")
    assert "PLAYBACKSTATUS" not in asterisk.variables
    ask(asterisk, "STREAM FILE welcome 1")
    assert asterisk.variables["PLAYBACKSTATUS"] == "FAILED"


def test_value_is_cut() -> None:
    """GET VARIABLE cuts a value at 1,023 bytes, even within a character; GET FULL VARIABLE does not."""
    asterisk = call(variables={"X": "ä" * 600})
    data = asterisk.receive(b"GET VARIABLE X\n")
    assert data == b"200 result=1 (" + ("ä" * 511).encode() + b"\xc3)\n"
    assert asterisk.receive(b"GET FULL VARIABLE ${X}\n") == f"200 result=1 ({'ä' * 600})\n".encode()


@pytest.mark.parametrize(
    ("data", "arguments"),
    [
        ("", [""]),
        ("1,2", ["1", "2"]),
        (r"1\,2,B", ["1,2", "B"]),
        ("(1,2),[3,4],B", ["(1,2)", "[3,4]", "B"]),
        ("(1,B", ["(1,B"]),
        ("1),2],B", ["1)", "2]", "B"]),
        (r"\(1,B", ["(1", "B"]),
        ('"1,2",B', ["1,2", "B"]),
        ('"1,B', ["1,B"]),
        (r"a\"b,B", ['a"b', "B"]),
        ("{1,2}", ["{1", "2}"]),
        (" 1 , 2", [" 1 ", " 2"]),
        ('"(",B', ["(,B"]),
    ],
)
def test_separate_arguments(data: str, arguments: list[str]) -> None:
    """An application's data is taken apart as Asterisk's applications do it."""
    assert separate_arguments(data) == arguments
