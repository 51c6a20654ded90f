"""fastagi_pool.daemon: real daemons, which are ended by their process id."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from fastagi_pool.daemon import VARIABLE, Beginning, Mouth, Start, start
from fastagi_pool.errors import OperatorError

PATIENCE_S = 30.0
PROLOGUE = """
import json, os, sys, time
from pathlib import Path
from fastagi_pool.daemon import Mouth
from fastagi_pool.errors import OperatorError
folder = Path(sys.argv[1])
mouth = Mouth.inherited(os.environ)
def live(report, serving):
"""

Run = Callable[..., Start]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Give a function that starts a daemon with this life; all are killed at the end."""
    started: list[int] = []

    def run(life: str, timeout_s: float = PATIENCE_S) -> Start:
        code = PROLOGUE + "".join(f"    {line}\n" for line in dedent(life).strip().splitlines())
        words = (sys.executable, "-c", f"{code}\nsys.exit(mouth.live(live))", str(tmp_path))
        result = start(words, dict(os.environ), timeout_s)
        started.append(result.pid)
        return result

    yield run
    for pid in filter(None, started):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_serving_daemon_lives_on(run: Run) -> None:
    """Who starts a daemon comes back when it serves, and knows its pid and addresses; it lives on."""
    result = run("serving(['127.0.0.1:4577']); time.sleep(60)")
    assert (result.beginning, result.addresses) == (Beginning.SERVING, ("127.0.0.1:4577",))
    os.kill(result.pid, 0)


def test_daemon_holds_nothing_of_its_starters(run: Run, tmp_path: Path) -> None:
    """A daemon has no terminal, no session, no folder and no descriptor of whoever started it."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    result = run(
        """
        opened = {}
        for entry in Path("/proc/self/fd").iterdir():
            try:
                opened[int(entry.name)] = os.readlink(entry)
            except OSError:
                pass
        facts = [os.getcwd(), os.getsid(0), os.getpid(), os.getpgid(0), opened, dict(os.environ)]
        (folder / "facts").write_text(json.dumps(facts))
        serving([])
        time.sleep(60)
        """
    )
    os.close(writing)
    assert os.read(reading, 1) == b"", "somebody still holds the pipe"
    os.close(reading)
    cwd, session, pid, group, opened, environment = json.loads((tmp_path / "facts").read_text())
    assert cwd == "/"
    assert pid == result.pid
    assert pid not in (session, group), "the leader of a session could get a terminal again"
    assert session != os.getsid(0)
    assert [opened[number] for number in ("0", "1", "2")] == ["/dev/null"] * 3
    assert [target.partition(":")[0] for number, target in opened.items() if number not in "012"] == ["pipe"]
    assert VARIABLE not in environment


def test_refused_daemon_says_why(run: Run) -> None:
    """A daemon that refuses to serve tells why, and with which code it ended."""
    result = run("report('line 3: no such key'); return 2")
    assert (result.beginning, result.report, result.code) == (Beginning.ENDED, "line 3: no such key", 2)


@pytest.mark.parametrize(
    ("life", "report"),
    [
        ("raise OperatorError('set listen')", "set listen"),
        ("raise ValueError('oops')", "unforeseen: ValueError: oops"),
    ],
)
def test_raising_daemon_says_why(run: Run, life: str, report: str) -> None:
    """What the daemon raises reaches whoever started it, without a traceback."""
    result = run(life)
    assert (result.beginning, result.report, result.code) == (Beginning.ENDED, report, 1)


def test_killed_daemon_is_noticed_at_once(run: Run) -> None:
    """A daemon that dies without a word is not waited for, even if it leaves a child."""
    result = run(
        """
        if os.fork() == 0:
            (folder / "child").write_text(str(os.getpid()))
            time.sleep(60)
        while not (folder / "child").exists() or not (folder / "child").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), 9)
        """
    )
    assert (result.beginning, result.code) == (Beginning.ENDED, None)


@pytest.fixture(autouse=True)
def _end_child(tmp_path: Path) -> Iterator[None]:
    """End the child that a killed daemon left."""
    yield
    if (tmp_path / "child").exists():
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_patience_has_an_end(run: Run) -> None:
    """A daemon that is late goes on, and its starter knows whom it is about."""
    # Long enough for the first word, which comes before the program is executed.
    result = run("time.sleep(60)", timeout_s=1.0)
    assert result.beginning is Beginning.LATE
    os.kill(result.pid, 0)


def test_program_that_does_not_exist() -> None:
    """A program that cannot be executed is told as such."""
    result = start(("/nonexistent/program",), {}, PATIENCE_S)
    assert result.beginning is Beginning.ENDED
    assert result.report == "cannot execute /nonexistent/program: No such file or directory"


def test_starter_that_left_is_no_trouble(run: Run, tmp_path: Path) -> None:
    """A daemon whose starter gave up waiting serves nevertheless."""
    os.mkfifo(tmp_path / "gone")
    os.mkfifo(tmp_path / "served")
    result = run(
        """
        (folder / "gone").read_text()
        serving(['x'])
        report('and on')
        (folder / "served").write_text("yes")
        """,
        timeout_s=1.0,
    )
    assert result.beginning is Beginning.LATE
    (tmp_path / "gone").write_text("")
    assert (tmp_path / "served").read_text() == "yes"


def test_mouth_without_a_starter_is_silent() -> None:
    """The program runs as well when nobody waits for it: after an upgrade, or by hand."""

    def live(report: Callable[[str], None], serving: Callable[[list[str]], None]) -> int:
        report("nothing")
        serving([])
        return 5

    assert Mouth.inherited({}).live(live) == 5


def test_unforeseen_end_is_an_exit_code() -> None:
    """What is raised becomes exit code 1 and no traceback."""

    def live(report: Callable[[str], None], serving: Callable[[list[str]], None]) -> int:
        raise OperatorError("no")

    assert Mouth().live(live) == 1
