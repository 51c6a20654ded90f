"""fastagi_pool.handlers.vicidial.grammar: what Asterisk sends, read as VICIdial means it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastagi_pool.handlers.vicidial import grammar
from fastagi_pool.handlers.vicidial.grammar import CallLogRequest, HangupFacts, Stage, read_request

V_CODE = "V1202150310000000101"
BASE = "agi://127.0.0.1:4577/call_log"
HANGUP = f"{BASE}--HVcauses--PRI-----NODEBUG-----16-----ANSWER-----30-----20"


def environment(url: str = BASE, **lines: str) -> dict[str, str]:
    """Return what Asterisk sends; the lines of the test replace what it has by itself."""
    sent = {
        "request": url,
        "channel": "SIP/gs102-0000000a",
        "type": "SIP",
        "uniqueid": "1700000000.26",
        "callerid": "7275554444",
        "calleridname": "x",
        "extension": "8500",
        "priority": "1",
    }
    return {f"agi_{name}": value for name, value in (sent | lines).items()}


def read(url: str = BASE, **lines: str) -> CallLogRequest:
    """Read a request that is for the process."""
    request = read_request(environment(url, **lines))
    assert request is not None
    return request


def hangup_of(url: str, strip_parenthesis: bool = False) -> HangupFacts:
    """Read the hangup facts of a URL that has them."""
    request = read_request(environment(url, extension="h"), strip_parenthesis)
    assert request is not None
    assert request.hangup is not None
    return request.hangup


# ---- the whole


def test_a_start_is_read_whole() -> None:
    """Every line of the environment that VICIdial knows arrives in its own place."""
    assert read(calleridname='"John Doe"', extension="913125551212", priority="2") == CallLogRequest(
        stage=Stage.START,
        uid="1700000000.26",
        channel="SIP/gs102-0000000a",
        type="SIP",
        extension="913125551212",
        called_extension="913125551212",
        priority=2,
        code="7275554444",
        name="7275554444",
        hangup=None,
    )


def test_an_empty_environment_is_nobodys_request() -> None:
    """Lines that are missing count as empty, and without a URL there is nothing to do."""
    assert read_request({}) is None


def test_missing_lines_count_as_empty() -> None:
    """A URL alone is a request: a line that Asterisk leaves out ends nothing."""
    request = read_request({"agi_request": BASE})
    assert request == CallLogRequest(Stage.START, "", "", "", "", "", 0, "", "", None)


@pytest.mark.parametrize(
    ("priority", "number"), [("1", 1), ("12", 12), ("", 0), ("n", 0), ("3x", 3), ("٣", 0)]
)
def test_the_priority(priority: str, number: int) -> None:
    """A priority is its leading digits; one that is no number is 0 and never raises."""
    assert read(priority=priority).priority == number


# ---- the process


@pytest.mark.parametrize(
    "url",
    [
        BASE,
        f"{BASE}--fullCID--a-----b-----c-----d",
        f"{BASE}_v2",
        f"{BASE}?x=1",
        "agi://pbx--one.example/call_log",
        "agi://[::1]:4577/call_log",
        "agi://127.0.0.1:4577//call_log",
        "hagi://example.com/call_log",
        f"{HANGUP}-----SIP 503 Service/Unavailable",
        f"{BASE}--fullCID--8500-----x-----3125551212-----A/B//C",
    ],
)
def test_requests_for_the_process(url: str) -> None:
    """The process is what begins so behind the host, whatever slashes and dashes stand elsewhere."""
    assert read_request(environment(url)) is not None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "call_log",
        "agi://call_log",
        "agi://127.0.0.1:4577",
        "agi://127.0.0.1:4577/",
        "agi://127.0.0.1:4577/CALL_LOG",
        "agi://127.0.0.1:4577/VD_hangup--PRI-----NODEBUG-----16",
        "agi://127.0.0.1:4577/my_call_log",
        "agi://127.0.0.1:4577/x--HVcauses--/call_log",
    ],
)
def test_requests_for_nobody(url: str) -> None:
    """All else is left alone, and among it the obsolete process VD_hangup."""
    assert read_request(environment(url, extension="h")) is None


def test_a_slash_in_the_last_field_is_kept() -> None:
    """A slash that the other side chose hides neither the process nor anything of the field."""
    facts = hangup_of(f"{HANGUP}-----SIP 503 Service/Unavailable")
    assert facts.tech_cause == "SIP 503 Service/Unavailable"


# ---- the stage


@pytest.mark.parametrize(
    ("extension", "stage"),
    [
        ("h", Stage.END),
        ("H", Stage.END),
        ("oh", Stage.END),
        ("h1", Stage.END),
        ('"h"', Stage.END),
        ("*3125551212*h*", Stage.END),
        ("hhh", Stage.START),
        ("h12", Stage.START),
        ("", Stage.START),
        ("s", Stage.START),
        ("*3125551212*8500", Stage.START),
    ],
)
def test_the_stage(extension: str, stage: Stage) -> None:
    """An extension shorter than 3 characters with an h in it is the end, once it has been cleaned."""
    assert read(extension=extension).stage is stage


@pytest.mark.parametrize(("url", "has_facts"), [(BASE, False), (HANGUP, True)])
@pytest.mark.parametrize(("extension", "stage"), [("h", Stage.END), ("8500", Stage.START)])
def test_the_url_has_no_part_in_the_stage(url: str, has_facts: bool, extension: str, stage: Stage) -> None:
    """A hangup URL on a dialled extension is a start, a plain one on h an end without facts."""
    request = read(url, extension=extension)
    assert request.stage is stage
    assert (request.hangup is not None) == has_facts


# ---- who calls


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [
        ("7275554444", "John Doe", "7275554444"),
        ("7275554444", V_CODE, V_CODE),
        ("7275554444", f'"{V_CODE}"', V_CODE),
        ("7275554444", "123456789012345678", "123456789012345678"),
        ("7275554444", "x123456789012345678y", "x123456789012345678y"),
        ("7275554444", "12345678901234567", "7275554444"),
        ("7275554444", "V12345678901234567x8", "7275554444"),
        ("", "abcdef", "abcdef"),
        ("", "abcde", ""),
        ("", '"abcde"', ""),
        ("0", "abcdef", "abcdef"),
        ("00", "abcdef", "00"),
        ("0", "abcde", "0"),
        ("unknown", "3125559999", "3125559999"),
        ("UnKnown number", "3125559999", "3125559999"),
        ("Private", "3125559999", "3125559999"),
        ("100000000", "3125559999", "3125559999"),
        ("1000000", "3125559999", "1000000"),
        ("7275551212", "John Doe", "John Doe"),
        ("75551212", "Johnny", "Johnny"),
        ("7275551212", "Johnn", "7275551212"),
        ("unknown", "unknown", "unknown"),
        ("un\u212anown", "3125559999", "un\u212anown"),
    ],
)
def test_number_or_name(number: str, name: str, code: str) -> None:
    """The name is the code if it holds 18 digits in a row, or is long and the number says nothing."""
    request = read(callerid=number, calleridname=name)
    assert request.code == code
    assert request.name == code


@pytest.mark.parametrize(
    ("sent", "code", "extension"),
    [
        ("*3125551212*3429*", "3125551212", "3429"),
        ("*3125551212*3429", "3125551212*3429", "3429"),
        ("*3125551212*34290*", "3125551212*34290*", "34290"),
        ("*3125551212*342*", "3125551212*342*", "342"),
        ("*3125551212*3429*x", "3125551212*3429*x", "3429*x"),
        ("*3125551212*", "3125551212*", ""),
        ("*3125551212**", "3125551212**", ""),
        ("*3125551212*x*3429*", "3125551212*x", "x*3429"),
        ("*312555121*3429*", "7275554444", "*312555121*3429*"),
        ("*31255512123*3429*", "7275554444", "*31255512123*3429*"),
        ("1*3125551212*3429*", "7275554444", "1*3125551212*3429*"),
        ("*٣125551212*3429*", "7275554444", "*٣125551212*3429*"),
    ],
)
def test_ani_in_the_extension(sent: str, code: str, extension: str) -> None:
    """An extension of ANI and DNIS names the caller; of the code only a DNIS of four digits is cut off."""
    request = read(extension=sent)
    assert (request.code, request.extension) == (code, extension)
    assert request.name == code
    assert request.called_extension == extension


def test_ani_wins_over_a_name() -> None:
    """The caller in the extension replaces even a name that is a code."""
    assert read(extension="*3125551212*3429*", calleridname=V_CODE).code == "3125551212"


@pytest.mark.parametrize("marker", ["fullCID", "FULLCID", "fullcid"])
def test_the_caller_in_the_url(marker: str) -> None:
    """Code and name come from the URL, whatever the channel's caller id is."""
    url = f"{BASE}--{marker}--8500-----all-----{V_CODE}-----Y1234 Doe"
    request = read(url, callerid="unknown", calleridname="somebody else")
    assert (request.code, request.name) == (V_CODE, "Y1234 Doe")
    assert request.hangup is None


def test_the_caller_in_the_url_leaves_the_extension() -> None:
    """With the caller in the URL an extension that looks like ANI and DNIS stays whole."""
    request = read(f"{BASE}--fullCID--a-----b-----c-----d", extension="*3125551212*3429*")
    assert (request.code, request.extension) == ("c", "*3125551212*3429*")


@pytest.mark.parametrize(
    ("fields", "code", "name"),
    [
        ("", "", ""),
        ("a-----b", "", ""),
        ("a-----b-----c", "c", ""),
        ("a-----b-----c-----d-----e", "c", "d"),
        ("a----------c-----d", "c", "d"),
        ("a----b-----c-----d", "d", ""),
        ("a-----b-----1';2-----d;d", "12", "dd"),
        ('a-----b-----"1"-----"d"', '"1"', '"d"'),
    ],
)
def test_fields_of_the_caller(fields: str, code: str, name: str) -> None:
    """The third and fourth of the fields between five dashes count; missing ones are empty."""
    request = read(f"{BASE}--fullCID--{fields}")
    assert (request.code, request.name) == (code, name)


# ---- what is deleted


@pytest.mark.parametrize(
    ("number", "code"),
    [
        ("12';drop", "12drop"),
        ("12345\\", "12345\\"),
        ("1\\\\2", "12"),
        ("1\\\\\\2", "1\\2"),
        ("1\\;2", "12"),
        ("1\\|\\2", "12"),
        ("1|2\\|3", "1|2\\|3"),
        ('1"2', '1"2'),
        ("12 34", "12 34"),
    ],
)
def test_what_a_code_loses(number: str, code: str) -> None:
    """Quotes, semicolons and pairs of backslashes go; one backslash, a bar and double quotes stay."""
    assert read(callerid=number).code == code


@pytest.mark.parametrize(
    ("sent", "extension"),
    [('91;2"3', "9123"), ("9'1", "91"), ("9\\\\1\\;2\\|\\3", "9123"), ("9\\1|2", "9\\1|2")],
)
def test_what_an_extension_loses(sent: str, extension: str) -> None:
    """An extension loses double quotes besides."""
    request = read(extension=sent)
    assert (request.extension, request.called_extension) == (extension, extension)


def test_all_else_is_not_cleaned() -> None:
    """What no one else cleans stays as it was sent: parameters of SQL take every text."""
    odd = "a';\"\\\\b"
    request = read(f"{HANGUP}-----SIP 603 Can't; do", channel=odd, type=odd, uniqueid=odd)
    assert (request.channel, request.type, request.uid) == (odd, odd, odd)
    assert request.hangup is not None
    assert request.hangup.tech_cause == "SIP 603 Can't; do"


def test_what_no_database_takes() -> None:
    """Bytes that are not UTF-8, and what takes four, become question marks; NUL goes, letters stay."""
    odd = "Jürgen\udcfc\U0001f600\0!"
    request = read(f"{HANGUP}-----{odd}", channel=odd, type=odd, uniqueid=odd, callerid=odd, extension=odd)
    plain = "Jürgen??!"
    assert (request.channel, request.type, request.uid) == (plain, plain, plain)
    assert (request.code, request.extension) == (plain, plain)
    assert request.hangup is not None
    assert request.hangup.tech_cause == plain


# ---- how it ended


def test_all_facts_of_a_hangup() -> None:
    """Each field of the URL has its own place, in the order of the dialplan."""
    facts = hangup_of(f"{BASE}--HVcauses--PRI-----DEBUG-----17-----BUSY-----30-----20-----SIP 486 Busy Here")
    assert facts == HangupFacts("PRI", "DEBUG", "17", "BUSY", "30", "20", "SIP 486 Busy Here")


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ("", HangupFacts()),
        ("PRI", HangupFacts("PRI")),
        ("PRI-----NODEBUG-----16-----", HangupFacts("PRI", "NODEBUG", "16")),
        ("PRI-----NODEBUG-----16----------5", HangupFacts("PRI", "NODEBUG", "16", "", "5")),
        ("-----NODEBUG", HangupFacts("", "NODEBUG")),
        ("1-----2-----3-----4-----5-----6-----7-----8", HangupFacts("1", "2", "3", "4", "5", "6", "7")),
        (
            "1-----2-----3-----4-----5-----6-----a--b----c",
            HangupFacts("1", "2", "3", "4", "5", "6", "a--b----c"),
        ),
    ],
)
@pytest.mark.parametrize("marker", ["HVcauses", "hvcauses", "HVCAUSES"])
def test_fields_of_a_hangup(marker: str, fields: str, facts: HangupFacts) -> None:
    """Exactly five dashes part the fields; missing ones are empty, more than seven are not read."""
    assert hangup_of(f"{BASE}--{marker}--{fields}") == facts


@pytest.mark.parametrize("tail", ["--HVcauses", "--HVcauses-PRI", "--causes--PRI", "HVcauses--PRI"])
def test_what_is_no_hangup_form(tail: str) -> None:
    """Without the whole marker a URL tells nothing about the hangup, and the call is served all the same."""
    assert read(BASE + tail, extension="h").hangup is None


def test_the_other_side_forges_no_marker() -> None:
    """A SIP reason that looks like a marker changes neither the caller nor the facts."""
    forged = "SIP 500 --fullCID--a-----b-----V0000000000000000001"
    request = read(f"{HANGUP}-----{forged}", extension="h")
    assert request.code == "7275554444"
    facts = hangup_of(f"{HANGUP}-----SIP 500 --HVcauses--PRI")
    assert (facts.cause, facts.tech_cause) == ("16", "SIP 500 --HVcauses--PRI")


@pytest.mark.parametrize(
    ("sent", "kept", "stripped"),
    [
        ("SIP 200 OK)", "SIP 200 OK)", "SIP 200 OK"),
        ("SIP 200 OK))", "SIP 200 OK))", "SIP 200 OK)"),
        ("SIP 200 (OK)", "SIP 200 (OK)", "SIP 200 (OK)"),
        ("SIP 200 (OK))", "SIP 200 (OK))", "SIP 200 (OK)"),
        ("SIP 200) OK", "SIP 200) OK", "SIP 200) OK"),
        ("SIP 200 OK", "SIP 200 OK", "SIP 200 OK"),
        ("", "", ""),
    ],
)
def test_one_parenthesis_too_many(sent: str, kept: str, stripped: str) -> None:
    """The dialplan's stray parenthesis is kept unless it is wished away; one that closes something stays."""
    assert hangup_of(f"{HANGUP}-----{sent}").tech_cause == kept
    assert hangup_of(f"{HANGUP}-----{sent}", strip_parenthesis=True).tech_cause == stripped


@pytest.mark.parametrize(
    ("dial", "answered", "ring_s"),
    [
        ("30", "20", 10),
        ("30", "", 30),
        ("20", "20", 0),
        ("20", "30", 0),
        ("", "", 0),
        ("x", "1", 0),
        ("30s", "20.9", 10),
        ("-5", "0", 0),
        ("9" * 5000, "0", 10**18 - 1),
    ],
)
def test_how_long_it_rang(dial: str, answered: str, ring_s: int) -> None:
    """Ringing is what lies between dial and answer; texts that are no numbers count as 0."""
    assert HangupFacts(dial_time=dial, answered_time=answered).ring_s == ring_s


# ---- codes


@pytest.mark.parametrize(
    ("code", "lead"),
    [
        (V_CODE, 101),
        ("M1202150319999999999", 9999999999),
        ("V120215031000000010199", 101),
        ("DC1202150310W0000000101W", 10),
        ("V12021503112x4567890", 12),
        ("V1202150311e5", 1),
        ("V120215031x000000101", 0),
        ("V120215031-000000101", 0),
        ("V120215031٣", 0),
        ("7275554444", 0),
        ("", 0),
    ],
)
def test_the_lead(code: str, lead: int) -> None:
    """Characters 11 to 20 name the lead, as far as they are digits."""
    assert grammar.lead_of(code) == lead


@pytest.mark.parametrize(
    ("code", "word"), [("John Doe", "John"), (" John", ""), (V_CODE, V_CODE), ("a\tb c", "a\tb"), ("", "")]
)
def test_the_first_word(code: str, word: str) -> None:
    """A code ends at its first space and at nothing else, so that one beginning with a space is empty."""
    assert grammar.first_word(code) == word


@pytest.mark.parametrize(
    ("code", "digits", "has"),
    [
        (V_CODE, 19, True),
        (V_CODE, 20, False),
        ("x123456789y", 9, True),
        ("x12345678y9", 9, False),
        ("", 9, False),
        ("٣" * 9, 9, False),
    ],
)
def test_digits_in_a_row(code: str, digits: int, has: bool) -> None:
    """So many digits without anything between them, wherever they stand."""
    assert grammar.has_long_number(code, digits) is has


@pytest.mark.parametrize(
    ("asks", "yes", "no"),
    [
        (grammar.is_auto_dialled, [V_CODE, V_CODE + "x"], ["V" + "1" * 18, "v" + "1" * 19, "xV" + "1" * 19]),
        (grammar.is_manual, ["M" + "1" * 19], ["M" + "1" * 18 + "x", V_CODE]),
        (grammar.begins_m, ["M", "Mary"], ["", "m", "V", "BM"]),
        (grammar.begins_v_or_m, ["V", "Mary"], ["", "v", "m", "BV", " V"]),
        (grammar.is_dialled, ["V" + "1" * 18, "Mx" + "1" * 18], ["V" + "1" * 17, "Y" + "1" * 19, "1" * 19]),
        (grammar.is_inbound, ["Y1234", "Y1202150310000000101"], ["Y123", "y1234", "xY1234", "Y٣٣٣٣"]),
        (grammar.is_session_login, ["S" + "1" * 12], ["S" + "1" * 11, "xS" + "1" * 12]),
        (grammar.is_listening, ["BM" + "1" * 8], ["BM" + "1" * 7, "BB" + "1" * 8]),
        (grammar.is_barging, ["BB" + "1" * 8, "BW" + "1" * 8], ["BW" + "1" * 7, "BM" + "1" * 8]),
        (grammar.is_three_way_press, ["T" + "1" * 19], ["T" + "1" * 18, "t" + "1" * 19]),
    ],
)
def test_shapes_of_codes(asks: Callable[[str], bool], yes: list[str], no: list[str]) -> None:
    """Each question knows its own shape at a code's beginning, by letters as written and by ASCII digits."""
    assert [code for code in yes if not asks(code)] == []
    assert [code for code in [*no, ""] if asks(code)] == []


# ---- other texts


@pytest.mark.parametrize(
    ("uid", "stem"),
    [
        ("1700000000.26", "1700000000"),
        ("pbx.one-1700000000.26", "pbx.one-1700000000"),
        ("1700000000", "1700000000"),
        ("1700000000.", "1700000000."),
        ("1700000000.26\n", "1700000000.26\n"),
        ("1700000000.x1", "1700000000.x1"),
        ("", ""),
    ],
)
def test_the_stem_of_a_uid(uid: str, stem: str) -> None:
    """Only a final dot with digits goes, as a system's own name in front may hold dots."""
    assert grammar.uid_stem(uid) == stem


@pytest.mark.parametrize(
    ("text", "minor"),
    [
        ("18.18.1-vici", 18),
        ("1.8.23", 8),
        ("1.8.23-vici", 8),
        ("13", 13),
        ("11.25.3", 11),
        ("1.12", 12),
        ("1", 0),
        ("1-13.7", 0),
        ("", 0),
        ("unknown", 0),
        ("-18", 0),
    ],
)
def test_the_generation_of_asterisk(text: str, minor: int) -> None:
    """Old numbering counts by its second number, new by its first, and an unknown version is old."""
    assert grammar.asterisk_minor(text) == minor


# ---- anything at all

_FORMS = st.sampled_from(["", "--fullCID--", "--HVcauses--"])


@given(_FORMS, *[st.text(st.characters())] * 5)
@example("", "\udcff" * 9, "*3125551212*", '"\0"', "9" * 9000, "")
def test_any_text_is_read(form: str, tail: str, extension: str, name: str, priority: str, uid: str) -> None:
    """No text raises, and all that comes out is UTF-8 without NUL."""
    request = read(
        f"{BASE}{form}{tail}", extension=extension, calleridname=name, priority=priority, uniqueid=uid
    )
    texts = [request.uid, request.extension, request.called_extension, request.code, request.name]
    if request.hangup is not None:
        texts += [request.hangup.kind, request.hangup.cause, request.hangup.tech_cause]
        assert request.hangup.ring_s >= 0
    assert "\0" not in "".join(texts)
    "".join(texts).encode()
    assert grammar.lead_of(request.code) >= 0
