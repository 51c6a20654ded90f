"""A channel begins to dial: its row is written whatever becomes of the commands, and these are as wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import gevent
import pytest
from vicidial.playing import Scenario
from vicidial_staged_site import StagedSite, await_that, call_of, with_columns, without

from fastagi_pool.testing import AgiStatus, split_words

pytest_plugins = ["vicidial_fixtures"]
pytestmark = pytest.mark.mariadb

#: A manual dial with everything: a campaign, a time-out, a name for the call.
_MANUAL: Final = with_columns(call_of("S05"), "vicidial_campaigns", opensips_cid_name="ACME Corp")
_WITH_NAMES: Final = replace(_MANUAL, system_settings={"opensips_cid_name": "1"})
_DOUBLED: Final = [
    'EXEC EXEC Set(_CAMPCUST=TESTCAMP) ""',
    'EXEC EXEC Set(_CAMPDTO=26) ""',
    'EXEC EXEC SIPAddHeader("X-CIDNAME: ACME Corp") ""',
]
_PLAIN: Final = [
    'SET VARIABLE _CAMPCUST "TESTCAMP"',
    'SET VARIABLE _CAMPDTO "26"',
    'EXEC SIPAddHeader "X-CIDNAME: ACME Corp"',
]


def stored(site: StagedSite) -> list[tuple[Any, ...]]:
    """Give what is known of the calls that have begun, and whether each is open."""
    return site.rows("call_log", "uniqueid", "caller_code", "end_epoch", "end_time = 0")


def is_stored(site: StagedSite, call: Scenario) -> bool:
    """Tell whether there is one call, this one, and it is open."""
    return stored(site) == [(call.agi["uniqueid"], call.agi["calleridname"], 0, 1)]


# ---- options


@pytest.mark.parametrize(("plain", "commands"), [(False, _DOUBLED), (True, _PLAIN)])
def test_plain_commands(site: StagedSite, plain: bool, commands: list[str]) -> None:
    """The commands are the original's, in its order, or those that need no app_exec."""
    result = site.run(_WITH_NAMES, {"plain_commands": plain})

    assert (result.commands, result.outcome, result.faults) == (commands, "ok", ())
    assert is_stored(site, _WITH_NAMES)


def test_plain_commands_set_the_variables(site: StagedSite) -> None:
    """Asterisk takes the plain commands as they are meant: the dialplan finds both variables."""
    result = site.run(_MANUAL, {"plain_commands": True})

    assert result.variables == {"CAMPCUST": "TESTCAMP", "CAMPDTO": "26"}


@pytest.mark.parametrize(
    ("plain", "empty", "commands"),
    [
        (False, True, ['EXEC EXEC Set(_CAMPDTO=) ""']),
        (True, True, ['SET VARIABLE _CAMPDTO ""']),
        (False, False, []),
        (True, False, []),
    ],
)
def test_empty_timeout(site: StagedSite, plain: bool, empty: bool, commands: list[str]) -> None:
    """A manual call that is not alive has no time-out: it is sent empty, or not at all if so wanted."""
    call = without(_WITH_NAMES, "vicidial_auto_calls")
    result = site.run(call, {"plain_commands": plain, "empty_timeout": empty})

    assert result.commands == commands
    assert is_stored(site, call)


def test_empty_timeout_leaves_a_time_out_alone(site: StagedSite) -> None:
    """What there is to say is said, whatever the option."""
    assert site.run(_WITH_NAMES, {"empty_timeout": False}).commands == _DOUBLED


@pytest.mark.parametrize(
    ("switch", "name", "sent"), [("1", "ACME Corp", True), ("0", "ACME Corp", False), ("1", "", False)]
)
def test_a_call_is_named_if_system_and_campaign_want_it(
    site: StagedSite, switch: str, name: str, sent: bool
) -> None:
    """The header needs the system's switch and a name in the campaign."""
    call = with_columns(_MANUAL, "vicidial_campaigns", opensips_cid_name=name)
    commands = site.run(replace(call, system_settings={"opensips_cid_name": switch})).commands

    assert commands == (_DOUBLED if sent else _DOUBLED[:2])


# ---- which calls get commands


@pytest.mark.parametrize(
    ("code", "sent"),
    [
        ("V1202150310000000101", 1),
        ("V120215031000000010", 1),
        ("V12021503100000001", 0),
        ("M12021503100000001", 0),
        ("v1202150310000000101", 0),
        ("Y1202150310000000101", 0),
        ("S1202150310000000101", 0),
        ("DC202150310000000101", 0),
    ],
)
def test_only_calls_to_leads_get_commands(site: StagedSite, code: str, sent: int) -> None:
    """A code begins ``V`` or ``M`` and has 18 digits in a row, or nothing is looked up and nothing sent."""
    call = call_of("S03", callerid=code, calleridname=code)
    call = with_columns(call, "vicidial_auto_calls", callerid=code)
    result = site.run(call)

    assert len(result.commands) == sent
    assert [row[1] for row in stored(site)] == [code]


def test_a_code_ends_at_its_first_space(site: StagedSite) -> None:
    """Words behind the code are no part of it: the call is found, and stored without them."""
    code = "V1202150310000000101"
    result = site.run(call_of("S03", calleridname=f"{code} Jane Doe"))

    assert result.commands == ['EXEC EXEC Set(_CAMPCUST=TESTCAMP) ""']
    assert [row[1] for row in stored(site)] == [code]


def test_two_legs_of_one_call(site: StagedSite) -> None:
    """Each leg of a call is stored under its own unique id, and each is told the campaign."""
    first, second = (call_of("S03", uniqueid=f"1700000000.{number}") for number in (26, 27))
    site.load(first)
    commands = [site.play(each).commands for each in (first, second)]

    assert commands == [['EXEC EXEC Set(_CAMPCUST=TESTCAMP) ""']] * 2
    assert [row[0] for row in stored(site)] == ["1700000000.26", "1700000000.27"]


def test_the_campaign_of_an_empty_code_is_nobodys(site: StagedSite) -> None:
    """A code that begins with a space is none: stored so, and no call without a code is taken for it."""
    call = call_of("S03", request="agi://127.0.0.1:4577/call_log--fullCID--1-----ALL----- x-----Jane")
    result = site.run(with_columns(call, "vicidial_auto_calls", callerid=""))

    assert result.commands == []
    assert [row[1] for row in stored(site)] == [""]


# ---- odd names


@pytest.mark.parametrize(
    ("campaign_id", "plain", "command"),
    [
        ('A"B', False, 'EXEC EXEC Set(_CAMPCUST=AB) ""'),
        ('A"B', True, 'SET VARIABLE _CAMPCUST "AB"'),
        ("A\\", False, 'EXEC EXEC Set(_CAMPCUST=A) ""'),
        ("A\\", True, 'SET VARIABLE _CAMPCUST "A"'),
        ("A(1)", False, 'EXEC EXEC Set(_CAMPCUST=A(1)) ""'),
        ("A(1)", True, 'SET VARIABLE _CAMPCUST "A(1)"'),
        ("A)B", False, 'EXEC EXEC Set(_CAMPCUST=A)B) ""'),
        ("A B", True, 'SET VARIABLE _CAMPCUST "A B"'),
        ("A\nB", False, 'EXEC EXEC Set(_CAMPCUST=AB) ""'),
        ("A\nB", True, 'SET VARIABLE _CAMPCUST "AB"'),
        ("Zürich", True, 'SET VARIABLE _CAMPCUST "Zürich"'),
    ],
)
def test_odd_campaign_ids(site: StagedSite, campaign_id: str, plain: bool, command: str) -> None:
    """Quotes, backslashes and line ends of a campaign's id are left out; it stays one argument."""
    call = with_columns(call_of("S03"), "vicidial_auto_calls", campaign_id=campaign_id)
    result = site.run(call, {"plain_commands": plain})

    assert (result.commands, result.faults) == ([command], ())
    assert len(split_words(command)) == (4 if plain or " " not in campaign_id else 5)


def test_an_odd_name_stays_one_argument(site: StagedSite) -> None:
    """A call's name with quotes and parentheses becomes one header, whatever the form of the command."""
    call = with_columns(_WITH_NAMES, "vicidial_campaigns", opensips_cid_name='A "1" (x),\\b')
    doubled, plain = (site.run(call, {"plain_commands": each}).commands[-1] for each in (False, True))

    assert doubled == 'EXEC EXEC SIPAddHeader("X-CIDNAME: A 1 (x),b") ""'
    assert split_words(plain) == ["EXEC", "SIPAddHeader", "X-CIDNAME: A 1 (x),b"]


# ---- what Asterisk makes of it

_SYNTAX: Final = "520-Invalid command syntax.  Proper usage follows:\nUsage: EXEC x\n520 End of proper usage."


@pytest.mark.parametrize(
    "reply",
    [
        "510 Invalid or unknown command",
        _SYNTAX,
        "511 Command Not Permitted on a dead channel or intercept routine",
        "200 result=-1",
        "200 result=-2",
        "200 result=1 (x)",
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_a_refused_command_changes_nothing(site: StagedSite, reply: str, plain: bool) -> None:
    """Whatever Asterisk answers, all commands are sent, the row is written and the call ends well."""
    replies = {"EXEC": reply, "SET VARIABLE": reply}
    site.load(_WITH_NAMES)
    result = site.play(_WITH_NAMES, {"plain_commands": plain}, replies=replies)

    assert (result.commands, result.outcome, result.faults) == (_PLAIN if plain else _DOUBLED, "ok", ())
    assert is_stored(site, _WITH_NAMES)


def test_an_application_is_missing(site: StagedSite) -> None:
    """An Asterisk without app_exec has nothing to say, and the row is written."""
    site.load(_WITH_NAMES)
    result = site.play(_WITH_NAMES, missing_applications=["EXEC"])

    assert (result.commands, result.outcome) == (_DOUBLED, "ok")
    assert is_stored(site, _WITH_NAMES)


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("plain", [False, True])
def test_the_caller_hangs_up_meanwhile(site: StagedSite, after: int, plain: bool) -> None:
    """A hangup between the commands keeps nobody from sending the rest, nor from writing the row."""
    site.load(_WITH_NAMES)
    result = site.play(_WITH_NAMES, {"plain_commands": plain}, hangup_after=after)

    assert (len(result.commands), result.outcome, result.status) == (3, "ok", AgiStatus.HANGUP)
    assert is_stored(site, _WITH_NAMES)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_the_connection_is_lost_meanwhile(site: StagedSite, after: int) -> None:
    """If Asterisk closes before, between or behind commands, no more are sent, but the row is written."""
    site.load(_WITH_NAMES)
    result = site.play(_WITH_NAMES, hangup_after=after, variables={"AGIEXITONHANGUP": "yes"})

    assert result.outcome == "gone"
    assert len(result.commands) <= after + 1
    assert is_stored(site, _WITH_NAMES)


def test_asterisk_does_not_answer(site: StagedSite) -> None:
    """While Asterisk owes an answer the row is committed already, and the call ends when its time is over."""
    site.load(_WITH_NAMES)
    route = {"idle_timeout": "500ms"}
    playing = gevent.spawn(site.play, _WITH_NAMES, route=route, replies={"EXEC": ""}, catch=True)
    await_that(lambda: is_stored(site, _WITH_NAMES), "the row was written")

    assert not playing.ready()
    assert playing.get().outcome == "timeout"


@pytest.mark.parametrize("reply", ["what", "200", "999 result=0"])
def test_the_answer_is_no_answer(site: StagedSite, reply: str) -> None:
    """Words that no Asterisk says cost the rest of the commands at most, never the row."""
    site.load(_WITH_NAMES)
    site.play(_WITH_NAMES, replies={"EXEC": reply}, catch=True)

    assert is_stored(site, _WITH_NAMES)


@pytest.mark.parametrize("name", ["S01", "S05"])
def test_a_row_that_cannot_be_written_is_no_success(site: StagedSite, name: str) -> None:
    """A call is given back when its row is committed; if it cannot be, the dialplan is told of a failure."""
    site.load(call_of(name))
    site.tables.query("RENAME TABLE call_log TO call_log_away")
    try:
        result = site.play(call_of(name), catch=True)
    finally:
        site.tables.query("RENAME TABLE call_log_away TO call_log")

    assert (result.outcome, result.status) == ("error", AgiStatus.FAILURE)
