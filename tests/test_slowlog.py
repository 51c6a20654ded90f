"""Slow log: what an entry says, in text and as JSON, and what it hides."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from fastagi_pool.slowlog import SlowCall, SlowLog, TimedCommand

IDENTITY = "worker=3 gen=1 pid=42"
CALL = SlowCall(
    ref="6740-2a-7",
    route="crm lookup",
    script="crm.agi?id=7",
    peer="192.0.2.7",
    uniqueid="1700000000.1",
    callerid="030123456",
    state="in database",
    state_s=5.25,
    queued_s=0.5,
    asterisk_s=1.25,
    script_s=6.0,
    database_s=5.5,
    commands=(TimedCommand(0.012, "ANSWER\n", 0.25), TimedCommand(0.3, "SET VARIABLE PIN 4711\n", None)),
    sent=57,
    statement="SELECT name\n  FROM customers WHERE id = %(id)s",
    stack='  File "/opt/crm.py", line 7, in lookup\n    row = customers.find(number)\n',
)


class Paper:
    """A file that is easy to read."""

    def __init__(self, longest_line_bytes: int = 0) -> None:
        self.text = ""
        self.longest_line_bytes = longest_line_bytes

    def write(self, text: str, /) -> None:
        """Keep it."""
        self.text += text


def entry(call: SlowCall, line_format: str = "text", longest_line_bytes: int = 0) -> str:
    """What is written about a call."""
    paper = Paper(longest_line_bytes)
    SlowLog(paper, IDENTITY, line_format).report(call)
    return paper.text


def test_text() -> None:
    """An entry has a head of stable keys, and below it the stack, the commands with times, the statement."""
    head, *below = entry(CALL).splitlines()
    stamp, rest = head.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}", stamp)
    assert rest == (
        'worker=3 gen=1 pid=42 slow call=6740-2a-7 route="crm lookup" script="crm.agi?id=7" '
        'state="in database" state_ms=5250.0 queued_ms=500.0 asterisk_ms=1250.0 script_ms=6000.0 '
        "db_ms=5500.0 peer=192.0.2.7 uniqueid=1700000000.1 callerid=030123456 sent=57"
    )
    assert below == [
        "  stack:",
        '    File "/opt/crm.py", line 7, in lookup',
        "      row = customers.find(number)",
        "  commands, the last 2 of 57:",
        "    at 12.0 ms, took 250.0 ms: ANSWER",
        "    at 300.0 ms, no reply yet: SET VARIABLE PIN 4711",
        "  statement: SELECT name FROM customers WHERE id = %(id)s",
    ]


def test_only_what_is_known() -> None:
    """A call without commands, statement and stack is one line."""
    assert entry(replace(CALL, commands=(), statement="", stack=None)).count("\n") == 1


def test_blocked() -> None:
    """A call that blocks its worker is told from one that is merely slow, and says for how long."""
    text = entry(replace(CALL, blocked_s=1.2345))
    assert " blocked call=6740-2a-7 " in text
    assert " blocked_ms=1234.5\n" in text


def test_blocked_by_no_call() -> None:
    """What blocks the worker without being a call is written with its stack."""
    paper = Paper()
    SlowLog(paper, IDENTITY).report_blocked(2.0, '  File "/opt/a.py", line 1, in setup\n')
    head, *below = paper.text.splitlines()
    assert head.endswith("worker=3 gen=1 pid=42 blocked blocked_ms=2000.0")
    assert below == ["  stack:", '    File "/opt/a.py", line 1, in setup']


def test_json() -> None:
    """As JSON an entry is one line with the keys of the text, numbers as numbers, and the lists as such."""
    text = entry(CALL, "json")
    assert text.count("\n") == 1
    fields = json.loads(text)
    assert (fields["worker"], fields["gen"], fields["pid"]) == (3, 1, 42)
    assert (fields["event"], fields["call"], fields["script_ms"]) == ("slow", "6740-2a-7", 6000.0)
    assert fields["commands"][1] == {"at_ms": 300.0, "took_ms": None, "line": "SET VARIABLE PIN 4711"}
    assert fields["stack"] == CALL.stack


def test_json_that_does_not_fit() -> None:
    """Where lines are cut, as in syslog, JSON loses its longest parts and not its end."""
    text = entry(replace(CALL, stack="x" * 5000), "json", longest_line_bytes=1000)
    fields = json.loads(text)
    assert "stack" not in fields
    assert fields["statement"] == "SELECT name FROM customers WHERE id = %(id)s"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("ANSWER", "ANSWER"),
        ("SAY DIGITS 4711 #", "SAY DIGITS ..."),
        ("SET VARIABLE PIN 4711", "SET VARIABLE ..."),
        ("WAIT FOR DIGIT 5000", "WAIT FOR ..."),
        ('VERBOSE "pin 4711" 1', "VERBOSE ..."),
        ("noop ABCD", "noop ..."),
        ('EXEC "Read" pin,,4', "EXEC ..."),
        ("4711", "..."),
        ("", "..."),
    ],
)
def test_masked_commands(line: str, shown: str) -> None:
    """On a route with mask_digits a command is told by its name alone, as the caller's digits may follow."""
    masked = replace(CALL, commands=(TimedCommand(0.0, line, 0.0),), masked=True)
    assert f"took 0.0 ms: {shown}\n" in entry(masked)


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT 1 FROM t2 WHERE pin = '4711'", "SELECT ? FROM t2 WHERE pin = ?"),
        ("UPDATE a SET pin=4711.5, name='O''Hara'", "UPDATE a SET pin=?, name=?"),
        ("SELECT a FROM b WHERE pin = 'AB*cut off", "SELECT a FROM b WHERE pin = ?"),
    ],
)
def test_masked_statements(statement: str, shown: str) -> None:
    """On a route with mask_digits literals in a statement are hidden, even one that was cut."""
    assert f"  statement: {shown}\n" in entry(replace(CALL, statement=statement, masked=True))


@pytest.mark.parametrize("words", [500, 100_000])
def test_a_long_statement_is_cut_between_words(words: int) -> None:
    """A statement that holds its values may have megabytes; cut within a password that would be shown."""
    statement = "INSERT " + "x" * 3980 + " mysql://me:geheim@db/x" + " value" * words
    found = entry(replace(CALL, statement=statement))
    assert f"  statement: INSERT {'x' * 3980} ...\n" in found


def test_passwords() -> None:
    """A password in a URL is in no part of an entry."""
    secret = "mysql://me:geheim@db/x"
    loud = replace(
        CALL, stack=f"  {secret}\n", statement=secret, commands=(TimedCommand(0.0, f"NOOP {secret}", 0.0),)
    )
    for line_format in ("text", "json"):
        text = entry(loud, line_format)
        assert "geheim" not in text
        assert text.count("mysql://me:***@db/x") == 3


def test_one_line_each() -> None:
    """Line ends in what callers and handlers say do not pass for lines of the log."""
    text = entry(replace(CALL, callerid="1\n2", commands=(TimedCommand(0.0, "NOOP a\rb\x1b", 0.0),)))
    assert 'callerid="1\\n2"' in text
    assert all(line.isprintable() for line in text.splitlines())
    assert text.count("\n") == entry(CALL).count("\n") - 1


def test_title() -> None:
    """In a list a call is one line by which it is found in the logs."""
    assert CALL.title == 'call=6740-2a-7 route="crm lookup" uniqueid=1700000000.1 in database for 5.2 s'
