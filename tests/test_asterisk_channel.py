"""fastagi_pool.asterisk_channel: what the caller does; variables and functions as in a real Asterisk."""

from __future__ import annotations

from typing import Any

import pytest

from fastagi_pool.asterisk_channel import HANGUP, Behaviour, Caller, Channel, decode, encode


def channel(**behaviour: Any) -> Channel:
    """Make Alice's channel; the arguments are those of Behaviour."""
    return Channel(Caller(), Behaviour(**behaviour))


# ---- the caller


def test_presses_are_taken_in_order() -> None:
    """Each prompt that listens takes one entry; afterwards the caller is silent."""
    who = channel(presses=("1", "", "23"))
    assert [who.press() for _ in range(5)] == ["1", "", "23", "", ""]
    assert not who.hung_up


def test_prompt_that_does_not_listen() -> None:
    """A command that heeds no digits leaves the next entry to the next prompt, unless it is a hangup."""
    who = channel(presses=("1", HANGUP))
    assert who.press(listening=False) == ""
    assert who.press() == "1"
    assert who.press(listening=False) is HANGUP
    assert who.hung_up
    assert who.press() is HANGUP


@pytest.mark.parametrize(
    ("text", "name", "number"),
    [
        ("12345", "", "12345"),
        ("+49 30 1", "", "+49301"),
        ("*21#", "", "*21#"),
        ("Bob <555>", "Bob", "555"),
        ('"Bob Smith" <555>', "Bob Smith", "555"),
        ("Bob Smith <(0) 20-0.1>", "Bob Smith", "02001"),
        ("<555>", "", "555"),
        ("Bob Smith", "Bob Smith", ""),
        ("", "", ""),
        ("A <1", "A", "1"),
        ("A <1>2", "A", "1"),
        ("A <B> <1>", "A <B>", "1"),
        ("5>", "5>", ""),
    ],
)
def test_set_caller(text: str, name: str, number: str) -> None:
    """A caller id is read as Asterisk reads it; what it does not hold is cleared."""
    who = channel()
    who.set_caller(text)
    assert (who.caller_name, who.number) == (name, number)
    assert who.get("CALLERID(all)") == f'"{name}" <{number}>'


# ---- variables


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EXTEN", "100"),
        ("CONTEXT", "default"),
        ("PRIORITY", "1"),
        ("CHANNEL", "PJSIP/alice-00000001"),
        ("UNIQUEID", "1700000000.1"),
        ("HANGUPCAUSE", "0"),
        ("CALLERID(num)", "100"),
        ("CALLERID(number)", "100"),
        ("CALLERID(name)", "Alice"),
        ("CALLERID(dnid)", ""),
        ("CALLERID()", None),
        ("CHANNEL(name)", "PJSIP/alice-00000001"),
        ("CHANNEL(uniqueid)", "1700000000.1"),
        ("CHANNEL(language)", "en"),
        ("CHANNEL(state)", "Ring"),
        ("CHANNEL(channeltype)", "PJSIP"),
        ("CHANNEL(accountcode)", ""),
        ("CHANNEL(context)", "default"),
        ("CHANNEL(exten)", "100"),
        ("CHANNEL(nosuch)", None),
        ("LEN(abc)", "3"),
        ("LEN()", "0"),
        ("DB(f/k)", "v"),
        ("DB(f/nosuch)", ""),
        ("exten", None),
        ("callerid(num)", None),
        ("NOSUCH(x)", None),
        ("A:0:1", None),
        ("_A", None),
        ("A", "one"),
        ("", None),
    ],
)
def test_get(name: str, value: str | None) -> None:
    """Variables, built-in ones and functions are read by their exact names."""
    assert channel(variables={"A": "one"}, database={"f/k": "v"}).get(name) == value


@pytest.mark.parametrize("marks", ["", "_", "__"])
def test_inherited_variables(marks: str) -> None:
    """The marks of a variable that is inherited are no part of its name, whoever sets it."""
    who = channel(variables={f"{marks}A": "1"})
    who.set(f"{marks}B", "2")
    assert who.variables == {"A": "1", "B": "2"}


def test_set_functions() -> None:
    """The functions that can be written are, and others are passed over."""
    who = channel()
    for name in ("CALLERID(name)", "CALLERID(num)", "CHANNEL(language)", "DB(f/k)"):
        who.set(name, "new")
        assert who.get(name) == "new"
    who.set("CALLERID(all)", "Bob <5>")
    assert who.get("CALLERID(num)") == "5"
    for name in ("CALLERID(nosuch)", "CHANNEL(state)", "NOSUCH(x)", ""):
        who.set(name, "new")
    assert who.get("CHANNEL(state)") == "Ring"
    assert who.variables == {}
    assert who.database == {"f/k": "new"}


def test_built_in_variables_cannot_be_overlaid() -> None:
    """A variable called EXTEN changes nothing of what EXTEN says."""
    who = channel()
    who.set("EXTEN", "zz")
    assert who.get("EXTEN") == "100"


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain $x$ text", "plain $x$ text"),
        ("${A}", "hello"),
        ("<${A}${NOSUCH}>", "<hello>"),
        ("${${N}}", "hello"),
        ("${${NOSUCH}A}", "hello"),
        ("$${A}", "$hello"),
        ("a{b${A}}", "a{bhello}"),
        ("${A", "hello"),
        ("${}", ""),
        ("${RAW}", "${A}"),
        ("${LEN(${A}${A})}", "10"),
        ("${A:1}", "ello"),
        ("${A:0:2}", "he"),
        ("${A:1:0}", ""),
        ("${A:9}", ""),
        ("${A:0:9}", "hello"),
        ("${A:-2}", "lo"),
        ("${A:-9:2}", "he"),
        ("${A:1:-1}", "ell"),
        ("${A:1:-9}", ""),
        ("${A:x}", "hello"),
        ("${CHANNEL(name):0:5}", "PJSIP"),
        ("${U:1:1}", "\udca4"),
        ("${LEN(${U})}", "2"),
        ("${URIENCODE(a b,/=!*'()-_.~${U})}", "a%20b%2C%2F%3D!*'()-_.~%C3%A4"),
        ("${URIDECODE(a%20b+c%C3%A4)}", "a b+cä"),
        ("${BASE64_ENCODE(${U}b)}", "w6Ri"),
        ("${BASE64_DECODE(YWI=)}", "ab"),
        ("${BASE64_DECODE(Y)}", ""),
        ("${TOUPPER(ab${U})}", "ABä"),
        ("${TOLOWER(AB)}", "ab"),
        ("$[1 + 2]", "$[1 + 2]"),
    ],
)
def test_expand(text: str, expanded: str) -> None:
    """References are replaced from the inside out, once; lengths and places count bytes."""
    who = channel(variables={"A": "hello", "N": "A", "RAW": "${A}", "U": "ä"})
    assert who.expand(text) == expanded


def test_uriencode_is_cut() -> None:
    """URIENCODE gives no more than 4,095 bytes, though that may cut a %XX apart."""
    encoded = channel(variables={"X": "," * 2000}).expand("${URIENCODE(${X})}")
    assert encoded == ("%2C" * 2000)[:4095]


@pytest.mark.parametrize(
    ("value", "true", "false"),
    [
        ("yes", True, False),
        ("TRUE", True, False),
        ("1", True, False),
        ("no", False, True),
        ("OFF", False, True),
        ("0", False, True),
        ("maybe", False, False),
        ("", False, False),
    ],
)
def test_truth(value: str, true: bool, false: bool) -> None:
    """What is neither a yes nor a no is neither true nor false, as a variable that is not set."""
    who = channel(variables={"X": value})
    assert (who.is_true("X"), who.is_false("X")) == (true, false)
    assert (who.is_true("Y"), who.is_false("Y")) == (False, False)


def test_any_bytes() -> None:
    """Bytes that are not UTF-8 go through a variable unchanged."""
    data = bytes(range(1, 256))
    who = channel()
    who.set("X", decode(data))
    assert encode(who.get("X") or "") == data
    assert encode(who.expand("${X}")) == data


# ---- the rest


def test_behaviour_is_not_touched() -> None:
    """One Behaviour serves many calls: what a call changes is its own."""
    behaviour = Behaviour(variables={"A": "1"}, database={"f/k": "v"}, missing_files=["x"], presses=["1"])
    for _ in range(2):
        who = Channel(Caller(), behaviour)
        assert (who.press(), who.get("A"), who.get("DB(f/k)"), who.has_file("x")) == ("1", "1", "v", False)
        who.set("A", "2")
        who.database.clear()
        who.missing_files.clear()


@pytest.mark.parametrize(
    ("name", "there"), [("welcome", True), ("nosuch", False), ("", False), ("a&b", False)]
)
def test_has_file(name: str, there: bool) -> None:
    """Every sound file is there but those that are said to be missing, and what is no name of one file."""
    assert channel(missing_files=("nosuch",)).has_file(name) is there


def test_dead_from_the_beginning() -> None:
    """In the extension h the channel was answered, has hung up, and Asterisk knows it."""
    who = channel(dead=True)
    assert who.up
    assert who.hung_up
    assert who.dead
