"""fastagi_pool.commands.deferred: what an operator sees of a journal and does to it, with real files."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml
from click.testing import CliRunner, Result

from fastagi_pool.backlog import BACKLOG_NAME
from fastagi_pool.commands.deferred import journal
from fastagi_pool.errors import OperatorError
from fastagi_pool.journal import Journal, NewEntry
from fastagi_pool.source import EXIT_INPUT

_LIMIT_BYTES: Final = 2 * 1024**2


def call(number: int, database: str = "vicidial") -> NewEntry:
    """Make a call whose caller's number tries to do something to the terminal."""
    lines = (f"agi_callerid: 4930{number}\x1b[2J", f"agi_uniqueid: 17.{number}", "agi_arg_1: \udcff")
    return NewEntry(database, "hangup", f"ref-{number}", lines, time.time() - 90, float(number), "10.0.0.1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Say where the journal is."""
    return tmp_path / "journal.db"


@pytest.fixture
def pool(path: Path, tmp_path: Path) -> Iterator[Journal]:
    """Open the journal as a pool does: calls 1 and 2 wait, 3 is in quarantine, 4 is another database's."""
    opened = Journal.open(path, _LIMIT_BYTES, tmp_path / BACKLOG_NAME)
    opened.append([call(1), call(2), call(3), call(4, "billing")])
    opened.settle(failed=[(3, "ValueError: no such \x1b[2Jlead\nTraceback:\n  line 7")])
    yield opened
    opened.close()


def run(*words: object, answer: str | None = None) -> Result:
    """Type ``journal`` and more."""
    result = CliRunner().invoke(journal, [str(word) for word in words], input=answer)
    if result.exception is not None and not isinstance(result.exception, SystemExit | OperatorError):
        raise result.exception
    return result


def look(path: Path, command: str, *words: object) -> str:
    """Type a command for a journal, and return what it printed."""
    result = run(command, "--file", path, *words)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    return result.output


# --- which journal


@pytest.mark.parametrize("command", sorted(journal.commands))
def test_help(command: str) -> None:
    """Every command explains itself, and says how a journal is found without a configuration."""
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--file" in result.output
    assert "--config" in result.output


def test_the_journal_of_a_configuration(path: Path, pool: Journal, tmp_path: Path) -> None:
    """The configuration says where the journal is."""
    config = tmp_path / "pool.yaml"
    route = {"script": "hello", "handler": "fastagi_pool.handlers.demo:hello"}
    settings = {"journal": {"file": str(path)}, "runtime_dir": str(tmp_path / "run"), "routes": [route]}
    config.write_text(yaml.safe_dump(settings))
    assert "vicidial: 2 calls waiting" in run("list", "--config", config).output
    config.write_text(yaml.safe_dump({**settings, "journal": {"file": "off"}}))
    result = run("list", "--config", config)
    assert (result.exit_code, "has it off (journal.file)" in result.output) == (EXIT_INPUT, True)
    config.write_text("routes: [")
    result = run("list", "--config", config)
    assert (result.exit_code, "found by --file all the same" in result.output) == (EXIT_INPUT, True)


@pytest.mark.parametrize(
    "words", [["list"], ["show", "1"], ["retry", "1"], ["drop", "1", "--yes"], ["export"]], ids=lambda w: w[0]
)
def test_no_journal(path: Path, words: list[str]) -> None:
    """It is said that there is none, and none is made."""
    result = run(*words, "--file", path)
    assert result.exit_code == EXIT_INPUT
    assert f"there is no journal {path}: no pool" in result.output
    assert not path.exists()


def test_another_file(path: Path) -> None:
    """What is no journal is refused in words."""
    path.write_text("Dear diary, " * 1000)
    result = run("list", "--file", path)
    assert isinstance(result.exception, OperatorError)
    assert "is damaged, or is none" in str(result.exception)


# --- list and show


def test_list(path: Path, pool: Journal) -> None:
    """First how much waits and since when, then each call: state, times, caller, and why."""
    lines = look(path, "list").splitlines()
    assert lines[0] == "billing: 1 call waiting, the oldest for 1m 30s"
    assert lines[1] == "vicidial: 2 calls waiting, the oldest for 1m 30s; 1 in quarantine"
    assert lines[2].startswith("the journal holds ")
    assert lines[2].endswith(" of 2 MB")
    rows = [line.split() for line in lines[4:]]
    assert rows[0][:3] == ["number", "state", "received"]
    assert [row[:2] for row in rows[1:]] == [
        ["1", "waiting"],
        ["2", "waiting"],
        ["3", "quarantined"],
        ["4", "waiting"],
    ]
    assert "49303\\x1b[2J" in lines[7]
    assert lines[7].endswith("ValueError: no such \\x1b[2Jlead")


def test_list_of_some(path: Path, pool: Journal) -> None:
    """Calls are chosen by database and state; what is left out for want of room is counted."""
    assert "ref" not in look(path, "list", "--database", "other")
    text = look(path, "list", "--database", "vicidial", "--limit", 1)
    assert "... and 2 more: --limit 0 shows all" in text
    # As words: times of the day have such digits too.
    assert "17.1" in text.split()
    assert "17.2" not in text.split()
    text = look(path, "list", "--quarantined")
    assert "17.3" in text.split()
    assert "17.1" not in text.split()
    assert "more" not in text


def test_list_as_json(path: Path, pool: Journal) -> None:
    """A program gets all of it, stray bytes too."""
    found = json.loads(look(path, "list", "--json"))
    assert [each["database"] for each in found["databases"]] == ["billing", "vicidial"]
    assert found["limit_bytes"] == _LIMIT_BYTES
    assert [each["number"] for each in found["entries"]] == [1, 2, 3, 4]
    assert found["entries"][0]["environment"] == list(call(1).environment)


def test_list_of_an_empty_journal(path: Path, pool: Journal) -> None:
    """Where all is done one is told so."""
    pool.drop([1, 2, 3, 4])
    assert look(path, "list").startswith("no calls: everything is done\n")


def test_list_without_a_pool(path: Path, pool: Journal, tmp_path: Path) -> None:
    """Only the file matters."""
    pool.close()
    (tmp_path / BACKLOG_NAME).unlink()
    assert "vicidial: 2 calls waiting" in look(path, "list")


def test_show(path: Path, pool: Journal) -> None:
    """All that is known of a call: the whole environment, and the traceback, made fit for a terminal."""
    text = look(path, "show", 3)
    assert "state     quarantined\n" in text
    assert "call      ref-3\n" in text
    assert "attempts  1\n" in text
    assert "   agi_callerid: 49303\\x1b[2J\n" in text
    assert "   agi_arg_1: \\udcff\n" in text
    assert text.endswith("error\n   ValueError: no such \\x1b[2Jlead\n   Traceback:\n     line 7\n")
    assert json.loads(look(path, "show", 3, "--json"))["error"].endswith("line 7")
    assert "error" not in look(path, "show", 1)


def test_show_what_is_not_there(path: Path, pool: Journal) -> None:
    """A call that is done is not an error of the journal: exit code 1."""
    result = run("show", 99, "--file", path)
    assert (result.exit_code, "there is no call 99" in result.output) == (1, True)


# --- retry and drop


def test_retry(path: Path, pool: Journal) -> None:
    """A call is let out of quarantine, and the running pool sees that it waits."""
    pool.drop([1, 2])
    assert not pool.backlog.waits("vicidial")
    assert look(path, "retry", 3) == "1 call will be tried again\n"
    assert pool.backlog.waits("vicidial")
    assert [entry.number for entry in pool.next_entries("vicidial", 10)] == [3]


def test_retry_all(path: Path, pool: Journal) -> None:
    """All calls in quarantine, or all of one database."""
    pool.settle(failed=[(4, "no"), (1, "no")])
    assert look(path, "retry", "--all", "--database", "billing") == "1 call will be tried again\n"
    assert look(path, "retry", "--all") == "2 calls will be tried again\n"
    assert look(path, "retry", "--all") == "0 calls will be tried again\n"


def test_retry_what_is_not_in_quarantine(path: Path, pool: Journal) -> None:
    """What could not be done is told, and what could is done."""
    result = run("retry", "--file", path, 1, 3, 99)
    assert result.exit_code == 1
    assert "1 call will be tried again\n" in result.output
    assert "not in the journal: 99; not in quarantine: 1 call" in result.output


def test_drop(path: Path, pool: Journal) -> None:
    """Calls that are named are thrown away, in whatever state they are."""
    assert look(path, "drop", 1, 3, 3, "--yes") == "2 calls dropped\n"
    assert [entry.number for entry in pool.all()] == [2, 4]
    result = run("drop", "--file", path, 99, 2, "--yes")
    assert (result.exit_code, "not in the journal: 99" in result.output) == (1, True)
    assert [entry.number for entry in pool.all()] == [4]


def test_drop_all(path: Path, pool: Journal) -> None:
    """All means those in quarantine, unless the others were asked for in so many words."""
    assert look(path, "drop", "--all", "--yes") == "1 call dropped\n"
    assert look(path, "drop", "--all", "--waiting", "--database", "vicidial", "--yes") == "2 calls dropped\n"
    assert [entry.number for entry in pool.all()] == [4]
    assert not pool.backlog.waits("vicidial")


@pytest.mark.parametrize(("answer", "left"), [("n\n", 4), ("", 4), ("y\n", 3)])
def test_drop_asks(path: Path, pool: Journal, answer: str, left: int) -> None:
    """Nothing is thrown away unless somebody says yes."""
    result = run("drop", 3, "--file", path, answer=answer)
    assert "Throw 1 call away?" in result.output
    assert len(list(pool.all())) == left


@pytest.mark.parametrize(
    "words", [["retry"], ["drop"], ["drop", "1", "--all"], ["drop", "1", "--waiting"], ["retry", "0"]]
)
def test_which_calls(path: Path, pool: Journal, words: list[str]) -> None:
    """Words from which it cannot be told which calls are meant change nothing."""
    assert run(*words, "--file", path, "--yes" if words[0] == "drop" else "--demo").exit_code == EXIT_INPUT
    assert len(list(pool.all())) == 4


# --- export


def test_export(path: Path, pool: Journal, tmp_path: Path) -> None:
    """Every call, whole, one a line; in a file that only its owner reads."""
    lines = look(path, "export").splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3, 4]
    assert tuple(json.loads(lines[1])["environment"]) == call(2).environment
    target = tmp_path / "calls.json"
    assert look(path, "export", target) == "4 calls exported\n"
    assert target.read_text().splitlines() == lines
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_export_where_nobody_can_write(path: Path, pool: Journal, tmp_path: Path) -> None:
    """A folder that is not there is told without a traceback."""
    result = run("export", "--file", path, tmp_path / "nowhere" / "calls.json")
    assert isinstance(result.exception, OperatorError)
    assert "cannot write" in str(result.exception)
