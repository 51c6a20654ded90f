"""fastagi_pool.handlers.vicidial.disconnect: every status that a failed dial can get, cell by cell."""

from __future__ import annotations

import pytest

from fastagi_pool.handlers.vicidial.disconnect import Verdict, cpd_verdict, passes_entry, verdict

CODE = "V1202150310000000101"
#: What stands in a cell that does not pass the test of entry.
STAYS_OUT = "stays out"

#: The cells: ``.`` does not enter, ``hole`` enters and gets no status, ``HUC`` stands for HUC and the cause.
SHORT: dict[str, Verdict | str | None] = {
    ".": STAYS_OUT,
    "hole": None,
    "AB": Verdict("AB", "BUSY"),
    "ADC": Verdict("ADC", "DISCONNECT"),
    "ADCT": Verdict("ADCT", "DISCONNECT"),
    "ACAR": Verdict("ADCCAR", "ADCCAR"),
    "DCAR": Verdict("DNCCAR", "DNCCAR"),
}
HEAD = "cause         0    1   16   17   18   19   21   28   34   38   41   42   88  102 none"
MODE_0 = """
BUSY         AB   AB   AB   AB   AB   AB   AB   AB   AB   AB   AB   AB   AB   AB   AB
CHANUNAVAIL   .  ADC    .    .    .    .    .  ADC    .    .    .    .    .    .    .
CONGESTION    .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
DNC           .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
DISCONNECT    .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
ANSWER        .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
NOANSWER      .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
none          .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
"""
MODE_1 = """
BUSY         AB   AB   AB   AB   AB   AB   AB   AB   AB   AB   AB   AB   AB   AB   AB
CHANUNAVAIL   .  ADC    .    .  ADC    .    .  ADC    .    .    .    .    .    .    .
CONGESTION    .  ADC    .    .    . ADCT ADCT    . ADCT ADCT    .    .    . hole    .
DNC        DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR
DISCONNECT ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR
ANSWER        .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
NOANSWER      .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
none          .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
"""
MODE_2 = """
BUSY         AB   AB   AB   AB   AB ADCT   AB   AB   AB   AB   AB   AB   AB   AB   AB
CHANUNAVAIL   .  ADC    .    . ADCT    .    .  ADC    .    .    .    .    .    .    .
CONGESTION    .  ADC    .    .    . hole ADCT    . ADCT ADCT    .    .    . ADCT    .
DNC        DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR DCAR
DISCONNECT ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR ACAR
ANSWER        .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
NOANSWER      .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
none          .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
"""
MODE_3 = """
BUSY       hole  ADC hole   AB  HUC  HUC  HUC  ADC  HUC  HUC  HUC  HUC  HUC  HUC hole
CHANUNAVAIL   .  ADC    .    .  HUC    .    .  ADC    .    .    .    .    .    .    .
CONGESTION    .  ADC    .    .    .  HUC  HUC    .  HUC  HUC    .    .    .  HUC    .
DNC        hole  ADC hole   AB  HUC  HUC  HUC  ADC  HUC  HUC  HUC  HUC  HUC  HUC hole
DISCONNECT hole  ADC hole   AB  HUC  HUC  HUC  ADC  HUC  HUC  HUC  HUC  HUC  HUC hole
ANSWER        .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
NOANSWER      .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
none          .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
"""
#: Modes 4 to 6 do in this respect what mode 1 does.
TABLES = {0: MODE_0, 1: MODE_1, 2: MODE_2, 3: MODE_3, 4: MODE_1, 5: MODE_1, 6: MODE_1}


def outcome(mode: int, dialstatus: str, cause: str) -> Verdict | str | None:
    """Ask as the END of a Local channel does, without call progress detection."""
    if not passes_entry("PRI", CODE, dialstatus, cause, mode, False):
        return STAYS_OUT
    return verdict(mode, dialstatus, cause)


def cell(short: str, cause: str) -> Verdict | str | None:
    """Read one cell of the tables above."""
    return Verdict(f"HUC{cause}", "CARRIERFAIL") if short == "HUC" else SHORT[short]


def written(name: str) -> str:
    """Read a DIALSTATUS or a cause of the tables above."""
    return "" if name == "none" else name


@pytest.mark.parametrize(
    ("mode", "line"), [(m, line) for m in TABLES for line in TABLES[m].strip().split("\n")]
)
def test_every_mode_dialstatus_and_cause(mode: int, line: str) -> None:
    """Each DIALSTATUS with each cause enters, or does not, and gets its status, or none, in every mode."""
    causes = [written(name) for name in HEAD.split()[1:]]
    dialstatus, *shorts = line.split()
    expected = {cause: cell(short, cause) for cause, short in zip(causes, shorts, strict=True)}
    assert {cause: outcome(mode, written(dialstatus), cause) for cause in causes} == expected


@pytest.mark.parametrize(
    ("mode", "dialstatus", "cause", "expected"),
    [
        pytest.param(0, "ANSWER", "16", STAYS_OUT, id="E01"),
        pytest.param(0, "BUSY", "17", Verdict("AB", "BUSY"), id="E03"),
        pytest.param(0, "CHANUNAVAIL", "1", Verdict("ADC", "DISCONNECT"), id="E06"),
        pytest.param(0, "CHANUNAVAIL", "18", STAYS_OUT, id="E07"),
        pytest.param(1, "CHANUNAVAIL", "18", Verdict("ADC", "DISCONNECT"), id="E08-1"),
        pytest.param(2, "CHANUNAVAIL", "18", Verdict("ADCT", "DISCONNECT"), id="E08-2"),
        pytest.param(3, "CHANUNAVAIL", "18", Verdict("HUC18", "CARRIERFAIL"), id="E08-3"),
        pytest.param(4, "CHANUNAVAIL", "18", Verdict("ADC", "DISCONNECT"), id="E08-4"),
        pytest.param(0, "CONGESTION", "1", STAYS_OUT, id="E09-1-0"),
        pytest.param(1, "CONGESTION", "1", Verdict("ADC", "DISCONNECT"), id="E09-1-1"),
        pytest.param(2, "CONGESTION", "1", Verdict("ADC", "DISCONNECT"), id="E09-1-2"),
        pytest.param(0, "CONGESTION", "19", STAYS_OUT, id="E09-19-0"),
        pytest.param(1, "CONGESTION", "19", Verdict("ADCT", "DISCONNECT"), id="E09-19-1"),
        pytest.param(0, "CONGESTION", "34", STAYS_OUT, id="E09-34-0"),
        pytest.param(3, "CONGESTION", "34", Verdict("HUC34", "CARRIERFAIL"), id="E09-34-3"),
        pytest.param(0, "CONGESTION", "41", STAYS_OUT, id="E09-41-0"),
        pytest.param(2, "CONGESTION", "41", STAYS_OUT, id="E09-41-2"),
        pytest.param(3, "CONGESTION", "41", STAYS_OUT, id="E09-41-3"),
        pytest.param(0, "DNC", "0", STAYS_OUT, id="E10-DNC-0"),
        pytest.param(1, "DNC", "0", Verdict("DNCCAR", "DNCCAR"), id="E10-DNC-1"),
        pytest.param(2, "DNC", "0", Verdict("DNCCAR", "DNCCAR"), id="E10-DNC-2"),
        pytest.param(3, "DNC", "0", None, id="E10-DNC-3"),
        pytest.param(0, "DISCONNECT", "0", STAYS_OUT, id="E10-DISCONNECT-0"),
        pytest.param(1, "DISCONNECT", "0", Verdict("ADCCAR", "ADCCAR"), id="E10-DISCONNECT-1"),
        pytest.param(3, "DISCONNECT", "0", None, id="E10-DISCONNECT-3"),
        pytest.param(2, "BUSY", "17", Verdict("AB", "BUSY"), id="E11-17-2"),
        pytest.param(2, "BUSY", "19", Verdict("ADCT", "DISCONNECT"), id="E11-19-2"),
        pytest.param(3, "BUSY", "17", Verdict("AB", "BUSY"), id="E11-17-3"),
        pytest.param(0, "NOANSWER", "0", STAYS_OUT, id="E33"),
    ],
)
def test_recorded_calls(mode: int, dialstatus: str, cause: str, expected: Verdict | str | None) -> None:
    """Each recorded failed dial gets what the original gave it."""
    assert outcome(mode, dialstatus, cause) == expected


@pytest.mark.parametrize(
    ("mode", "dialstatus", "cause"),
    [
        (1, "CONGESTION", "102"),
        (4, "CONGESTION", "102"),
        (2, "CONGESTION", "19"),
        (3, "DNC", "0"),
        (3, "DISCONNECT", "0"),
        (3, "BUSY", "16"),
        (3, "BUSY", ""),
    ],
)
def test_the_holes(mode: int, dialstatus: str, cause: str) -> None:
    """These hangups pass the test of entry and yet get no status, as they always did."""
    assert passes_entry("PRI", CODE, dialstatus, cause, mode, False)
    assert verdict(mode, dialstatus, cause) is None


@pytest.mark.parametrize(
    ("mode", "dialstatus", "cause", "found"),
    [
        (1, "CHANUNAVAIL&BUSY", "1", Verdict("ADC", "DISCONNECT")),
        (1, "BUSY CONGESTION", "34", Verdict("ADCT", "DISCONNECT")),
        (2, "CONGESTION BUSY", "1", Verdict("ADC", "DISCONNECT")),
        (2, "DISCONNECT BUSY", "19", Verdict("ADCCAR", "ADCCAR")),
        (1, "DNC DISCONNECT", "1", Verdict("DNCCAR", "DNCCAR")),
        (2, "DNC DISCONNECT", "1", Verdict("DNCCAR", "DNCCAR")),
    ],
)
def test_later_rules_win(mode: int, dialstatus: str, cause: str, found: Verdict) -> None:
    """If several rules hold, the last one of the table decides, wherever its word stands in DIALSTATUS."""
    assert verdict(mode, dialstatus, cause) == found


@pytest.mark.parametrize(
    ("mode", "dialstatus", "cause", "found"),
    [
        (2, "CHANUNAVAIL", "180", Verdict("ADCT", "DISCONNECT")),
        (2, "CHANUNAVAIL", "018", Verdict("ADC", "DISCONNECT")),
        (2, "BUSY", "190", Verdict("AB", "BUSY")),
        (2, "CONGESTION", "10", None),
        (2, "CONGESTION", "1021", None),
        (1, "CONGESTION", "10", None),
        (1, "CONGESTION", "340", None),
        (3, "BUSY", "170", Verdict("AB", "BUSY")),
        (3, "BUSY", "017", None),
        (3, "BUSY", "180", None),
        (3, "BUSY", "10", None),
        (3, "BUSY", "28 ", None),
    ],
)
def test_what_equals_and_what_begins(mode: int, dialstatus: str, cause: str, found: Verdict | None) -> None:
    """Causes are compared whole, but for 18 of mode 2 and 17 of mode 3, with which they may begin."""
    assert verdict(mode, dialstatus, cause) == found


@pytest.mark.parametrize(
    ("dialstatus", "cause", "mode"),
    [
        ("busy", "17", 1),
        ("CHANUNAVAIL", "10", 1),
        ("CHANUNAVAIL", "128", 1),
        ("CHANUNAVAIL", "180", 1),
        ("CONGESTION", "11", 1),
        ("CONGESTION", "1 ", 1),
        ("CANCEL", "1", 1),
        ("NO DN C", "1", 1),
    ],
)
def test_what_is_no_failed_dial(dialstatus: str, cause: str, mode: int) -> None:
    """Causes of the test of entry are compared whole, and DIALSTATUS letter by letter."""
    assert not passes_entry("PRI", CODE, dialstatus, cause, mode, False)


@pytest.mark.parametrize("dialstatus", ["BUSY", "xBUSYx"])
def test_dialstatus_is_searched(dialstatus: str) -> None:
    """A word within DIALSTATUS is enough, for the entry and for the verdict."""
    assert outcome(0, dialstatus, "17") == Verdict("AB", "BUSY")


@pytest.mark.parametrize("kind", ["", "pri", "PRIX", " PRI", "BRI"])
def test_only_pri_enters(kind: str) -> None:
    """The first field of the hangup's URL must be PRI, even if call progress detection has spoken."""
    assert not passes_entry(kind, CODE, "BUSY", "17", 1, False)
    assert not passes_entry(kind, CODE, "BUSY", "17", 1, True)


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        ("V1202150310000000101", True),
        ("1202150310000000101", True),
        ("XY12021503100000001011", True),
        ("S1202150310000000101", True),
        ("", False),
        ("V120215031000000010", False),
        ("V120215031 000000101", False),
        ("V120215031x0000000101", False),
        ("V" + "\u0661" * 19, False),
    ],
)
def test_the_code_has_a_long_number(code: str, passes: bool) -> None:
    """A code without 19 ASCII digits in a row never enters; whatever else is around them does not matter."""
    assert passes_entry("PRI", code, "BUSY", "17", 0, False) is passes
    assert passes_entry("PRI", code, "BUSY", "17", 0, True) is passes


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        ("V1202150310000000101", True),
        ("S1202150310000000101", False),
        ("SX1202150310000000101", True),
        ("VS1202150310000000101", True),
        ("S120215031000-1202150310000000101", False),
        ("S12021503100-1202150310000000101", True),
        ("s1202150310000000101", True),
    ],
)
def test_call_progress_detection_enters(code: str, passes: bool) -> None:
    """What was heard counts for an answered call, in mode 0 too, but not for an agent's session."""
    assert passes_entry("PRI", code, "ANSWER", "16", 0, True) is passes
    assert not passes_entry("PRI", code, "ANSWER", "16", 0, False)


def test_an_agents_session_is_guarded_from_call_progress_only() -> None:
    """A code of an agent's session enters by DIALSTATUS as every other does, whatever was heard."""
    session = "S1202150310000000101"
    for cpd_found in (False, True):
        assert passes_entry("PRI", session, "BUSY", "17", 0, cpd_found)
        assert passes_entry("PRI", session, "CHANUNAVAIL", "28", 0, cpd_found)
        assert passes_entry("PRI", session, "DNC", "0", 1, cpd_found)


@pytest.mark.parametrize(
    ("result", "found"),
    [
        pytest.param("Busy", Verdict("CPDB", "BUSY"), id="E13"),
        ("Unknown-x", Verdict("CPDUK", "NA")),
        ("All-Trunks-Busy", Verdict("CPDATB", "CONGESTION")),
        ("No-Answer", Verdict("CPDNA", "NA")),
        ("Reject", Verdict("CPDREJ", "DISCONNECT")),
        ("Invalid-Number", Verdict("CPDINV", "DISCONNECT")),
        ("Service-Unavailable", Verdict("CPDSUA", "CONGESTION")),
        ("Sit-Intercept", Verdict("CPDSI", "DISCONNECT")),
        ("Sit-No-Circuit", Verdict("CPDSNC", "CONGESTION")),
        ("Sit-Reorder", Verdict("CPDSR", "CONGESTION")),
        ("Sit-Unknown", Verdict("CPDSUK", "CONGESTION")),
        ("Sit-Vacant", Verdict("CPDSV", "CONGESTION")),
        ("????", Verdict("CPDERR", "NA")),
        ("Fax", Verdict("AFAX", "FAX")),
        ("Modem", Verdict("AFAX", "FAX")),
        pytest.param("Answering-Machine", Verdict("AA", "AMD"), id="E13b"),
        ("bUSY", Verdict("CPDB", "BUSY")),
        ("Line-BUSY-now", Verdict("CPDB", "BUSY")),
        ("Modem, Answering-Machine", Verdict("AA", "AMD")),
        ("Fax ???", Verdict("AFAX", "FAX")),
        ("Reject Busy", Verdict("CPDREJ", "DISCONNECT")),
        ("Voice", None),
        ("Answering Machine", None),
        ("??", None),
        ("", None),
    ],
)
def test_call_progress_detection(result: str, found: Verdict | None) -> None:
    """Each result means its status; words are found anywhere, in any case, and the last of the list wins."""
    assert cpd_verdict(result) == found
