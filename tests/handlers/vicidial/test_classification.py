"""fastagi_pool.handlers.vicidial.classification: channel groups and dialled numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastagi_pool.handlers.vicidial.classification import (
    NUMBER_RULES,
    Classification,
    NumberRule,
    PhoneColumn,
    PhoneQuestion,
    classify,
    cut_channel,
    manager_number,
    needs_manager_row,
    phone_question,
    rewrite,
)

V_CODE = "V1202150310000000101"
M_CODE = "M1202150310000000101"


# ---- the channel


@pytest.mark.parametrize(
    ("channel", "cut"),
    [
        ("SIP/gs102-0000000a", "SIP/gs102"),
        ("SIP/gs102", "SIP/gs102"),
        ("PJSIP/my-trunk-00000b02", "PJSIP/my"),
        ("IAX2/peer/3", "IAX2/peer"),
        ("IAX2/peer-1234", "IAX2/peer-1234"),
        ("IAX2/1/23", "IAX2/1"),
        ("IAX2/peer/3x", "IAX2/peer/3x"),
        ("IAX2/peer/3\n", "IAX2/peer/3\n"),
        ("Local/8600051@default-00000a01;1", "Local/8600051@default-00000a01;1"),
        ("Zap/25-1", "Zap/25-1"),
        ("sip/gs102-0000000a", "sip/gs102-0000000a"),
        ("", ""),
    ],
)
def test_what_is_cut_off_a_channel(channel: str, cut: str) -> None:
    """SIP is cut at its first dash even within a peer's name, IAX2 at its call number, others not at all."""
    assert cut_channel(channel) == cut


@pytest.mark.parametrize(
    ("channel", "question"),
    [
        ("Zap/25-1", PhoneQuestion(PhoneColumn.EXTENSION, "25-1", "Zap")),
        ("DAHDI/i1/5551212-1", PhoneQuestion(PhoneColumn.EXTENSION, "i1/5551212-1", "Zap")),
        ("Zap/a@b", PhoneQuestion(PhoneColumn.EXTENSION, "a@b", "Zap")),
        ("Local/990009@default-1;2", PhoneQuestion(PhoneColumn.DIALPLAN_NUMBER, "990009", "EXTERNAL")),
        ("Local/990009", PhoneQuestion(PhoneColumn.DIALPLAN_NUMBER, "990009", "EXTERNAL")),
        ("Local/@default", PhoneQuestion(PhoneColumn.DIALPLAN_NUMBER, "", "EXTERNAL")),
        ("SIP/gs102-0000000a", None),
        ("Console/dsp", None),
        ("Zap", None),
        ("Zapper/1", None),
        ("local/990009@default", None),
        ("", None),
    ],
)
def test_what_is_asked_about_a_channel(channel: str, question: PhoneQuestion | None) -> None:
    """Only lines that may be phones are asked about, each by the column in which such phones are known."""
    assert phone_question(channel) == question


# ---- the number


@pytest.mark.parametrize(
    ("extension", "number", "group"),
    [
        ("9011441234567890", "011441234567890", "Outbound Intl UK"),
        ("901144123456789", "901144123456789", ""),
        ("901161394172011", "01161394172011", "Outbound Intl AUS"),
        ("9011613941720112", "9011613941720112", ""),
        ("918005551212", "8005551212", "Outbound Local 800"),
        ("918885551212", "8885551212", "Outbound Local 800"),
        ("918775551212", "8775551212", "Outbound Local 800"),
        ("918665551212", "8665551212", "Outbound Local 800"),
        ("918555551212", "8555551212", "Outbound Long Distance"),
        ("913125551212", "3125551212", "Outbound Long Distance"),
        ("923125551212", "923125551212", ""),
        ("95551212", "7275551212", "Outbound Local"),
        ("93125551212", "3125551212", "Outbound Local"),
        ("9555121", "9555121", ""),
        ("8500", "8500", ""),
        ("85551212", "85551212", ""),
        ("9" * 13, "9" * 13, ""),
        ("", "", ""),
    ],
)
def test_rules_for_numbers(extension: str, number: str, group: str) -> None:
    """A number is known by its beginning and its exact length; what no rule knows stays as it is."""
    assert rewrite(extension) == (number, group)


@given(st.sampled_from(NUMBER_RULES), st.data())
def test_no_rule_feeds_another(rule: NumberRule, data: st.DataObject) -> None:
    """What a rule has rewritten no rule knows, so that the first that fits may end the search."""
    prefix = data.draw(st.sampled_from(rule.prefixes))
    length = rule.length - len(prefix)
    rest = data.draw(st.text("0123456789*#", min_size=length, max_size=length))
    number, group = rewrite(prefix + rest)
    assert group
    assert rewrite(number) == (number, "")


# ---- the whole


@pytest.mark.parametrize(
    ("channel", "extension", "known_phone", "expected"),
    [
        (
            "SIP/gs102-0000000a",
            "913125551212",
            False,
            Classification("SIP/gs102", "Outbound Long Distance", "gs102", "3125551212"),
        ),
        ("SIP/trunk-00000b02", "8368", False, Classification("SIP/trunk", "", "trunk", "8368")),
        ("PJSIP/my-trunk-00000b02", "8368", True, Classification("PJSIP/my", "", "my", "8368")),
        (
            "IAX2/peer/3",
            "95551212",
            False,
            Classification("IAX2/peer", "Outbound Local", "peer", "7275551212"),
        ),
        ("SIP/SIP/x-1", "8500", False, Classification("SIP/SIP/x", "", "x", "8500")),
        ("SIP/gs102-1", "", False, Classification("SIP/gs102", "", "gs102", "")),
        (
            "Zap/25-1",
            "913125551212",
            True,
            Classification("Zap/25-1", "Zap Client Phone", "913125551212", ""),
        ),
        ("Zap/25-1", "91312555", False, Classification("Zap/25-1", "Zap Trunk Line", "91312555", "91312555")),
        ("DAHDI/1-1", "3429", False, Classification("DAHDI/1-1", "Zap Trunk Line", "3429", "3429")),
        (
            "Local/913125551212@default-00000a01;2",
            "913125551212",
            False,
            Classification(
                "Local/913125551212@default-00000a01;2", "Local Channel Line", "913125551212", "913125551212"
            ),
        ),
        (
            "Local/990009@default-00000a01;2",
            "8600051",
            True,
            Classification("Local/990009@default-00000a01;2", "EXTERNAL Client Phone", "8600051", ""),
        ),
        ("Console/dsp", "8368", False, Classification("Console/dsp", "", "8368", "")),
        ("Console/dsp", "8368", True, Classification("Console/dsp", "", "8368", "")),
        ("", "8368", False, Classification("", "", "8368", "")),
    ],
)
def test_classes(channel: str, extension: str, known_phone: bool, expected: Classification) -> None:
    """Peers are told by the number, lines by whether they are phones, and all others have no group."""
    assert classify(channel, extension, known_phone) == expected


# ---- the dialer's commands


@pytest.mark.parametrize(
    ("number", "code", "needs"),
    [
        ("", V_CODE, True),
        ("", M_CODE, True),
        ("", "Vx123456789", True),
        ("", "V12345678x9", False),
        ("", "Y1202150310000000101", False),
        ("", "", False),
        ("3125551212", V_CODE, False),
    ],
)
def test_when_the_commands_are_asked(number: str, code: str, needs: bool) -> None:
    """They are asked for calls to leads only, and only while nobody knows the number."""
    assert needs_manager_row(number, code) is needs


@pytest.mark.parametrize(
    ("code", "line_b", "line_d", "number"),
    [
        (V_CODE, "Exten: 8368", "Channel: Local/9913125551212@default", "9913125551212"),
        (M_CODE, "Exten: 913125551212", "Channel: Local/8600051@default", "913125551212"),
        (V_CODE, "", "Channel: Local/99x1-2@10.0.0.1@y3", "9912"),
        (V_CODE, "Exten: 8368", "Channel: Local/@default2", "8500"),
        (M_CODE, "Exten: none", "Channel: Local/8600051@default", "8500"),
        (M_CODE, "Exten: ٣", "", "8500"),
        (V_CODE, "", "", "8500"),
    ],
)
def test_the_number_of_a_command(code: str, line_b: str, line_d: str, number: str) -> None:
    """A manual dial is read from line b, any other from line d up to its context, else from the extension."""
    assert manager_number(code, line_b, line_d, "8500") == number
