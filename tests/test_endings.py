"""fastagi_pool.endings: what is said to the dialplan about a failure, to the byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastagi_pool.endings import FAILURE_LINE, GO_ON, ErrorAction, OnError, harmless, last_words
from fastagi_pool.protocol import MAX_COMMAND_BYTES
from fastagi_pool.testing import split_words

HANG_UP = OnError(ErrorAction.HANGUP)
GO_TO = OnError(ErrorAction.GOTO, "sorry,s,1")
VARIABLES = b"SET VARIABLE FAGI_STATUS ERROR\nSET VARIABLE FAGI_ERROR bug\nSET VARIABLE FAGI_REF 6a01-2a-1\n"


# ---- what is to be done


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("continue", GO_ON),
        ("hangup", HANG_UP),
        (" hangup\n", HANG_UP),
        ("goto sorry,s,1", GO_TO),
        ("goto   sorry , s ,1 ", GO_TO),
        ("goto sorry,s,label", OnError(ErrorAction.GOTO, "sorry,s,label")),
        ("goto from-trunk,_X.,n", OnError(ErrorAction.GOTO, "from-trunk,_X.,n")),
    ],
)
def test_what_can_be_written(text: str, found: OnError) -> None:
    """Each policy is read from its words, with spaces where a person puts them, and written the same way."""
    assert OnError.parse(text) == found
    assert OnError.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Continue",
        "hang up",
        "goto",
        "goto sorry",
        "goto sorry,s",
        "goto sorry,s,1,x",
        "goto sorry,,1",
        "goto ,s,1",
        "goto sorry,s,",
        "goto sorry,s 1,1",
        "gotosorry,s,1",
        "goto sorry,s,1\nEXEC System x",
        "goto sorry\0,s,1",
        "goto \ud83d,s,1",
        "goto so\x1brry,s,1",
        f"goto {'x' * 3000},s,1",
    ],
)
def test_what_cannot_be_meant(text: str) -> None:
    """Anything else is refused when the configuration is read, not when a call has failed."""
    with pytest.raises(ValueError, match=r"'continue', 'hangup' or 'goto context,extension,priority'"):
        OnError.parse(text)


def test_without_a_word_the_dialplan_goes_on() -> None:
    """The default changes nothing in what the dialplan does."""
    assert OnError() == GO_ON
    assert str(GO_ON) == "continue"


# ---- what is said


@pytest.mark.parametrize(
    ("on_error", "lives", "order"),
    [
        (GO_ON, True, b""),
        (HANG_UP, True, b"HANGUP\n"),
        (GO_TO, True, b"SET CONTEXT sorry\nSET EXTENSION s\nSET PRIORITY 1\n"),
        (OnError.parse("goto sorry,s,label"), True, b"EXEC Goto sorry,s,label\n"),
        (GO_ON, False, b""),
        (HANG_UP, False, b""),
        (GO_TO, False, b""),
    ],
)
def test_the_last_words(on_error: OnError, lives: bool, order: bytes) -> None:
    """Variables first, then what is to be done if the channel lives, and failure as the last line."""
    words = last_words("ERROR", "bug", "6a01-2a-1", on_error, lives)
    assert words == VARIABLES + order + b"failure\n"
    assert words.endswith(FAILURE_LINE)


def test_a_target_reaches_asterisk_as_it_was_written() -> None:
    """A target with signs that mean something in a command line is quoted."""
    target = OnError.parse('goto a"b\\c,s,1')
    line = last_words("ERROR", "bug", "x", target, True).split(b"\n")[3]
    assert split_words(line.decode()) == ["SET", "CONTEXT", 'a"b\\c']


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("", ""),
        ("ValueError: bug", "ValueError: bug"),
        ("KeyError: 'a'", "KeyError: a"),
        ("two\nlines\r\nand  spaces ", "two lines and spaces"),
        ("${SHELL(rm -rf /)}", "SHELL rm -rf /"),
        ("$[1+1] & `id` | x; y > z", "1+1 id x y z"),
        ('a,b "c" \\', "a b c"),
        ("100% of user@host/db #1 = *", "100% of user@host/db #1 = *"),
        ("Jürgen 😀 \udcfc \ud83d", "Jürgen"),
        ("a\0b\tc\x1b[31m\u2028d", "a b c 31m d"),
        ("x" * 500, "x" * 200),
    ],
)
def test_harmless(error: str, said: str) -> None:
    """An error is told in plain words: nothing in it means anything to a dialplan or to its lines."""
    assert harmless(error) == said


@given(st.text(st.characters()), st.sampled_from([GO_ON, HANG_UP, GO_TO]), st.booleans())
def test_any_error_can_be_told(error: str, on_error: OnError, lives: bool) -> None:
    """Whatever went wrong, the lines are as many as they must be, in order, and each of them is short."""
    *lines, end = last_words("ERROR", error, "6a01-2a-1", on_error, lives).split(b"\n")
    assert end == b""
    assert lines[-1] == b"failure"
    orders = {GO_ON: 0, HANG_UP: 1, GO_TO: 3}[on_error] if lives else 0
    assert len(lines) == 4 + orders
    assert all(len(line) < MAX_COMMAND_BYTES for line in lines)
    assert split_words(lines[1].decode()) == ["SET", "VARIABLE", "FAGI_ERROR", harmless(error)]
    assert not set(harmless(error)) & set("${}[]()\"'`\\,;&|<>!?~^\n\r\0")
