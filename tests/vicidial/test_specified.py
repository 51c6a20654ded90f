"""Calls that were described but not recorded leave the rows and get the commands of the description."""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import replace
from typing import Final

import pytest

from .playing import Scenario, environment, recorded, wrong_commands
from .sites import RELAXED_AS_GIVEN, Site, Sites
from .specified import ALL, UID, V, specified

pytestmark = pytest.mark.mariadb


@pytest.fixture(scope="module")
def site(sites: Sites) -> Site:
    """Give a site that reads its settings anew for each call."""
    return sites.open(RELAXED_AS_GIVEN)


@pytest.mark.parametrize("name", specified())
def test_specified_call(site: Site, name: str) -> None:
    """The call changes the rows that VICIdial's daemon is said to change, no others; so the commands."""
    differences = site.differences(specified()[name])

    assert not differences, "\n".join(differences)


def test_ids() -> None:
    """No call stands for two, and none is there that was recorded."""
    twice = [name for name, times in Counter(each.id for each in ALL).items() if times > 1]

    assert (twice, specified().keys() & recorded().keys()) == ([], set())


# ---- files


#: What each line of the file about alternative numbers ends in.
_ALT_DIAL_LINES: Final = {
    "MAIN was dialled": ["3125553434|TESTCAMP|ALT|25|hopper insert|"],
    "ALT of 5 digits": ["12345|TESTCAMP|ALT|0|hopper skip|ALT phone invalid|"],
    "ADDR3 short": [
        "|TESTCAMP|ALT|0|hopper skip|ALT phone invalid|",
        "1234|TESTCAMP|ADDR3|0|hopper skip|ADDR3 phone invalid|",
    ],
    "campaign's list": ["3125553434|TESTCAMP|ALT|0|hopper skip|DNC check failed|"],
    "A14": ["3125553434|TESTCAMP|ALT|0|hopper skip|24-hour call count limit failed|"],
    "A12": ["3125550001|TESTCAMP|X1|15|hopper DNC insert|"],
}


def lines_of(site: Site, pattern: str) -> list[str]:
    """Give the lines of the files of that name, oldest first, without their times."""
    files = sorted((site.pool.folder / "logs").glob(pattern))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [line.partition("|")[2] for line in lines]


def lines_written(site: Site, scenario: Scenario, pattern: str) -> list[str]:
    """Play a call and give the lines that it wrote to the files of that name."""
    known = len(lines_of(site, pattern))
    differences = site.differences(scenario)
    assert not differences, "\n".join(differences)
    return lines_of(site, pattern)[known:]


@pytest.mark.parametrize("name", _ALT_DIAL_LINES)
def test_lines_about_alternative_numbers(site: Site, name: str) -> None:
    """Every decision about another number is a line of its own, with lead, number, priority and reason."""
    lines = lines_written(site, specified()[name], "auto-alt-dial.????-??-??")

    assert lines == [f"VDfastAGI|101|{line}" for line in _ALT_DIAL_LINES[name]]


def test_no_lines_without_logging(site: Site) -> None:
    """No line is written about a number where the server wants no log."""
    silent = replace(specified()["MAIN was dialled"], servers={"agi_output": "NONE"})

    assert lines_written(site, silent, "auto-alt-dial.????-??-??") == []


@pytest.mark.parametrize("agi_output", ["FILE", "NONE"])
def test_line_about_a_hangup(site: Site, agi_output: str) -> None:
    """Where the dialplan says DEBUG, a line holds the facts of the hangup, whether there is a log or not."""
    call = specified()["E16"]
    agi = {**call.agi, "request": call.agi["request"].replace("NODEBUG", "DEBUG")}
    told = replace(call, agi=agi, servers={"agi_output": agi_output})

    lines = lines_written(site, told, "HANGUP_cause-output.txt")

    facts = f"16|ANSWER|30|10|{UID}|SIP/trunk-00000b02|h|SIP|{V}|{V}|1|"
    assert lines == [facts]


def test_no_line_about_a_hangup(site: Site) -> None:
    """Where the dialplan says anything but DEBUG there is no such line."""
    assert lines_written(site, specified()["E16"], "HANGUP_cause-output.txt") == []


# ---- what Asterisk answers


@pytest.mark.parametrize("answer", [b"HANGUP\n200 result=0\n", b"510 Invalid or unknown command\n"])
def test_answers_are_not_used(site: Site, answer: bytes) -> None:
    """A bare HANGUP is no answer, and whatever is one changes nothing: rows and commands are the same."""
    call = specified()["S13b"]

    with site.watched([call]) as wrong:
        wrong += wrong_commands(call, commands_answered(site, call, answer))

    assert not wrong, "\n".join(wrong)


def test_no_answer_at_all(site: Site) -> None:
    """If Asterisk goes away instead of answering a command, the rows are written all the same."""
    call = specified()["S13b"]
    host, _, port = site.pool.address.rpartition(":")

    with site.watched([call]) as wrong, socket.create_connection((host, int(port)), 15.0) as link:
        link.sendall(environment(call.agi))
        link.shutdown(socket.SHUT_WR)
        while link.recv(65_536):
            pass

    # That Asterisk has gone is recorded, which is no difference.
    assert not [line for line in wrong if line.startswith(call.id)], "\n".join(wrong)


def commands_answered(site: Site, call: Scenario, answer: bytes) -> list[str]:
    """Play a call, answering every command so, and give the commands."""
    host, _, port = site.pool.address.rpartition(":")
    with socket.create_connection((host, int(port)), 15.0) as link, link.makefile("rb") as lines:
        link.sendall(environment(call.agi))
        commands = []
        for line in lines:
            commands.append(line.decode().rstrip("\n"))
            link.sendall(answer)
    return commands
