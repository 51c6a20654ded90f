"""fastagi_pool.commands.look: what a user sees of a pool, and the exit codes, with the pool's real files."""

from __future__ import annotations

import json
import os
import pty
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import pytest
import yaml
from children import in_child
from click.testing import CliRunner, Result

from fastagi_pool.callboard import CallBoard, CallRow
from fastagi_pool.commands.look import COMMANDS, show_route_figures
from fastagi_pool.control import encode
from fastagi_pool.errors import OperatorError
from fastagi_pool.lifecycle import PID_FILE, hold_pid_file
from fastagi_pool.logs import CallRecord
from fastagi_pool.protocol import Reply, Request
from fastagi_pool.recording import FOLDER, Recorder
from fastagi_pool.routes import Route, RouteKind
from fastagi_pool.scoreboard import Scoreboard, SlotWriter, WorkerState
from fastagi_pool.tally import DatabaseTally, Tally

_LIMIT_S: Final = 30.0
_NOBODY: Final = 65534
_COMMANDS: Final[Mapping[str, click.Command]] = {command.name or "": command for command in COMMANDS}
_RECORD: Final = CallRecord(
    ref="r1",
    route="sales",
    script="sales",
    outcome="ok",
    hung_up=False,
    commands=4,
    total_s=0.04,
    asterisk_s=0.03,
    script_s=0.01,
    database_s=0.002,
    peer="10.0.0.1",
    uniqueid="17.1",
    callerid="100",
)


class FakePool:
    """The files of a pool of one worker, which is this process, as its master and worker write them."""

    def __init__(self, folder: Path) -> None:
        """Write them: two calls in progress, one of them in the database; two that have ended."""
        self.folder = folder
        pid = os.getpid()
        self.board = Scoreboard.create(folder / "scoreboard", pid, time.monotonic() - 100.0)
        self.board.clear(0)
        slot = SlotWriter(self.board, 0)
        slot.begin(pid, 1, time.monotonic() - 90.0)
        slot.set_state(WorkerState.READY)
        slot.set_places(50)
        self.tally = Tally.open(folder / "tallies" / "0", pid, ["sales"])
        self.tally.write(_RECORD, time.time())
        self.tally.write(replace(_RECORD, outcome="error"), time.time())
        self.tally.database(DatabaseTally("calls", 8, 1, 0, 0, 5, 0.01, 0))
        self.calls = CallBoard.create(folder / "calls" / "0", 0, pid, 100)
        self.place("old", "sales", "+49301", 60.0).asks(b"WAIT FOR DIGIT 5000\n", 0.5, time.monotonic() - 12)
        self.place("new", "menu", "\x1b[2J", 10.0).queries("SELECT 1", time.monotonic() - 1)
        for _ in range(2):
            slot.call_begins()
        self._lock: int | None = hold_pid_file(folder / PID_FILE, pid)

    def place(self, ref: str, route: str, callerid: str, age_s: float) -> CallRow:
        """Let a call come in; it is in its script."""
        row, began_s = self.calls.take(), time.monotonic() - age_s
        row.accepted("10.0.0.1", began_s)
        row.known(ref, route, f"17.{ref}", f"PJSIP/{ref}", callerid)
        row.routed(route, began_s)
        return row

    def die(self, *, orderly: bool = False) -> None:
        """Let go of the pid file, as a master that dies; or take it away, as one that ends."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if orderly:
            (self.folder / PID_FILE).unlink()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[FakePool]:
    """The files of a pool."""
    made = FakePool(tmp_path)
    yield made
    made.die()


def run(command: str, *arguments: str | Path) -> Result:
    """Run a command of this module."""
    result = CliRunner().invoke(_COMMANDS[command], [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit | OperatorError):
        raise result.exception
    return result


def look(pool: FakePool, command: str, *arguments: str) -> Result:
    """Look at a pool."""
    return run(command, "--runtime-dir", pool.folder, *arguments)


# ---- which pool


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_help(command: str) -> None:
    """Every command explains itself, and says how a pool is found without its configuration."""
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--runtime-dir" in result.output


def test_folder_from_the_configuration(pool: FakePool, tmp_path: Path) -> None:
    """Without --runtime-dir the configuration says where the pool is."""
    config = tmp_path / "pool.yaml"
    routes = [{"script": "hello", "handler": "fastagi_pool.handlers.demo:hello"}]
    config.write_text(yaml.safe_dump({"runtime_dir": str(tmp_path), "routes": routes}))
    assert run("workers", "-c", config).exit_code == 0


@pytest.mark.parametrize(("command", "code"), [("status", 4), ("calls", 2)])
def test_broken_configuration(command: str, code: int, tmp_path: Path) -> None:
    """A configuration that cannot be read says nothing of the pool: it is told how to look all the same."""
    config = tmp_path / "pool.yaml"
    config.write_text("routes: [")
    result = run(command, "-c", config)
    assert result.exit_code == code
    assert result.stderr.endswith("A pool that runs all the same is found by --runtime-dir.\n")


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_where_no_pool_ever_was(command: str, tmp_path: Path) -> None:
    """Where nothing runs the exit code is 3, and one line says so."""
    result = run(command, "--runtime-dir", tmp_path)
    assert result.exit_code == 3
    assert result.stderr.startswith("not running: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("command", ["status", "calls", "top", "dump", "trace"])
def test_not_permitted(command: str, pool: FakePool) -> None:
    """Another user is told that he may not, with exit code 4."""
    for name in ("scoreboard", PID_FILE, "calls"):
        (pool.folder / name).chmod(0o600)

    def as_nobody() -> list[object]:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        # The folders above belong to root alone.
        os.fchdir(inside)
        result = run(command, "--runtime-dir", ".")
        return [result.exit_code, result.stdout, result.stderr]

    pool.folder.chmod(0o755)
    inside = os.open(pool.folder, os.O_RDONLY)
    with answering(pool.folder / "control", b""):
        (pool.folder / "control").chmod(0o600)
        code, output, complaint = in_child(as_nobody)
    os.close(inside)
    assert (code, output) == (4, "")
    assert complaint == "not permitted: . may be read by the pool's user and root only\n"


def test_files_of_another_version(pool: FakePool) -> None:
    """Files that this program cannot read are no reason to say that nothing runs: exit code 4."""
    (pool.folder / "scoreboard").write_bytes(b"something else")
    for command in ("status", "calls", "workers"):
        result = look(pool, command)
        assert result.exit_code == 4
        assert "not a scoreboard of this version" in result.stderr


# ---- status


def test_status_of_a_running_pool(pool: FakePool) -> None:
    """A pool that runs is shown with its worker, and the exit code is 0."""
    result = look(pool, "status")
    assert result.exit_code == 0
    assert f"running, master {os.getpid()}, generation 0" in result.output
    assert "2 in progress, 0 queued, 50 places; 2 served, 1 failed" in result.output


def test_status_as_json(pool: FakePool) -> None:
    """With --json it is the whole picture."""
    content = json.loads(look(pool, "status", "--json").output)
    assert (content["running"], content["active"], len(content["workers"])) == (True, 2, 1)
    assert content["routes"][0]["calls"] == 2


@pytest.mark.parametrize(("orderly", "code"), [(False, 1), (True, 3)])
def test_status_of_a_pool_that_is_no_more(orderly: bool, code: int, pool: FakePool) -> None:
    """A master that died is told from one that ended, though its process id may be somebody else's by now."""
    pool.die(orderly=orderly)
    result = look(pool, "status")
    assert result.exit_code == code
    assert "NOT RUNNING" in result.output
    assert not json.loads(look(pool, "status", "--json").output)["running"]


def test_status_of_a_pool_that_begins(pool: FakePool) -> None:
    """A master that has not told anything yet runs all the same."""
    (pool.folder / "scoreboard").unlink()
    result = look(pool, "status")
    assert (result.exit_code, result.output) == (
        0,
        f"master {os.getpid()} is starting: it has not told anything yet\n",
    )


# ---- calls, workers, db


def test_calls(pool: FakePool) -> None:
    """Calls are shown the oldest first, with what they do; nothing of a caller's reaches the terminal raw."""
    result = look(pool, "calls")
    head, old, new = result.output.splitlines()
    assert head.split()[:4] == ["age", "state", "since", "route"]
    assert "in Asterisk" in old
    assert "+49301" in old
    assert old.endswith("WAIT FOR DIGIT 5000")
    assert "\\x1b[2J" in new
    assert new.endswith("SELECT 1")
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    ("arguments", "refs"),
    [
        ((), ["old", "new"]),
        (("--route", "s*"), ["old"]),
        (("--callerid", "+49*"), ["old"]),
        (("--uniqueid", "17.new"), ["new"]),
        (("--state", "database"), ["new"]),
        (("--state", "queued"), []),
        (("--older", "30s"), ["old"]),
        (("--limit", "1"), ["old"]),
    ],
)
def test_which_calls(arguments: tuple[str, ...], refs: list[str], pool: FakePool) -> None:
    """Only calls that fit all options are shown."""
    content = json.loads(look(pool, "calls", "--json", *arguments).output)
    assert [call["ref"] for call in content["calls"]] == refs


def test_more_calls_than_shown(pool: FakePool) -> None:
    """What the limit leaves out is said; of no calls it is said too."""
    assert look(pool, "calls", "--limit", "1").output.endswith("... and 1 more call: --limit 0 shows all\n")
    assert look(pool, "calls", "--route", "none").output == "no calls\n"


def test_what_is_no_time(pool: FakePool) -> None:
    """A time that is none is refused with what one looks like."""
    result = look(pool, "calls", "--older", "soon")
    assert result.exit_code == 2
    assert "must be a duration such as" in result.stderr


def test_calls_of_a_dead_pool(pool: FakePool, tmp_path: Path) -> None:
    """After a crash the last word can still be read, and it is said that it is that."""
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    Scoreboard.create(tmp_path / "scoreboard", dead.pid, 0.0)
    result = look(pool, "workers")
    assert result.exit_code == 0
    assert result.stderr == "the pool does not run: this is its last word\n"


@pytest.mark.parametrize(
    ("command", "key", "text"), [("workers", "workers", "ready"), ("db", "databases", "calls")]
)
def test_parts(command: str, key: str, text: str, pool: FakePool) -> None:
    """Workers and databases have tables of their own, and the same part of the picture as JSON."""
    assert text in look(pool, command).output
    (part,) = json.loads(look(pool, command, "--json").output)[key]
    assert text in part.values()


def test_route_figures(pool: FakePool, capsys: pytest.CaptureFixture[str]) -> None:
    """What the routes have done is shown with means of the clocks."""
    show_route_figures(pool.folder, False)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sales"))
    assert line.split()[-2:] == ["40.0", "ms"]
    show_route_figures(pool.folder, True)
    assert json.loads(capsys.readouterr().out)["routes"][0]["route"] == "sales"


@pytest.mark.parametrize("command", ["calls", "workers", "db"])
def test_a_master_whose_number_somebody_else_has(pool: FakePool, command: str) -> None:
    """A process with the dead master's number, or its zombie, is not taken for the pool."""
    pool.die()
    assert "the pool does not run: this is its last word" in run(command, "--runtime-dir", pool.folder).output


def test_pool_without_databases(tmp_path: Path) -> None:
    """Where there is nothing to show, that is said."""
    Scoreboard.create(tmp_path / "scoreboard", os.getpid(), 0.0)
    lock = hold_pid_file(tmp_path / PID_FILE, os.getpid())
    assert run("db", "--runtime-dir", tmp_path).output == "no databases\n"
    os.close(lock)


# ---- top


def test_top_once(pool: FakePool) -> None:
    """With --once one interval is shown as text, with the slowest calls."""
    result = look(pool, "top", "--once", "--interval", "10ms")
    assert result.exit_code == 0
    assert "0.0 calls a second" in result.output
    assert "WAIT FOR DIGIT 5000" in result.output


def test_top_as_json(pool: FakePool) -> None:
    """With --json it is one line, with rates."""
    content = json.loads(look(pool, "top", "--once", "--json", "--interval", "10ms").output)
    assert (content["rate"], content["active"]) == (0.0, 2)
    assert [call["ref"] for call in content["slowest"]] == ["old", "new"]


def test_top_without_time(pool: FakePool) -> None:
    """An interval of nothing is refused."""
    assert look(pool, "top", "--interval", "0").exit_code == 2


def test_top_on_a_terminal(pool: FakePool) -> None:
    """On a terminal it is one screen that changes; q ends it, and the terminal is as before."""
    arguments = ["--runtime-dir", str(pool.folder), "--interval", "50ms"]
    code = f"from fastagi_pool.commands.look import top; top({arguments})"
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, (sys.executable, "-c", code))
    shown = read_until(terminal, b"WAIT FOR")
    os.write(terminal, b"xq")
    shown += read_until(terminal, b"\x1b[?1049l")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"\x1b[?1049h" in shown


def read_until(terminal: int, wanted: bytes) -> bytes:
    """Read what a terminal shows until it holds this."""
    shown, until_s = b"", time.monotonic() + _LIMIT_S
    while wanted not in shown:
        assert select.select([terminal], [], [], until_s - time.monotonic())[0], shown
        shown += os.read(terminal, 65536)
    return shown


# ---- dump


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """Answer at a socket: to each who comes, this."""
    path.parent.mkdir(exist_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                if path.name == "control":
                    client.recv(65536)
                client.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(_LIMIT_S)


def test_dump_by_the_status_process(pool: FakePool) -> None:
    """The status process is asked; who did not answer is named, and makes the exit code 1."""
    answers: list[dict[str, Any]] = [
        {"ok": True, "more": True, "slot": 1, "pid": 12, "stacks": "", "error": "no answer within 5 s"},
        {"ok": True, "more": True, "slot": 0, "pid": 11, "stacks": "one\n  \x1b[1m\n", "blocked_s": 0.0},
        {"ok": True, "more": False},
    ]
    with answering(pool.folder / "control", b"".join(encode(answer) for answer in answers)):
        result = look(pool, "dump")
    assert result.exit_code == 1
    assert result.output == (
        "=== worker 0 (pid 11)\none\n  \\x1b[1m\n=== worker 1 (pid 12): no answer within 5 s\n"
    )


def test_dump_of_no_such_worker(pool: FakePool) -> None:
    """A worker that does not exist is told from a pool that does not run."""
    refusal = {"ok": False, "more": False, "error": "there is no worker 7; 'workers' tells which there are"}
    with answering(pool.folder / "control", encode(refusal)):
        result = look(pool, "dump", "7")
    assert result.exit_code == 2
    assert result.stderr == "there is no worker 7; 'workers' tells which there are\n"


def test_dump_without_the_status_process(pool: FakePool) -> None:
    """Where no status process answers the workers are asked themselves; who has ended is left out."""
    (pool.folder / "stacks").mkdir()
    with (
        answering(pool.folder / "stacks" / "10", b"ten\n"),
        answering(pool.folder / "stacks" / "2", b"two\n"),
    ):
        gone = socket.socket(socket.AF_UNIX)
        gone.bind(str(pool.folder / "stacks" / "3"))
        gone.close()
        result = look(pool, "dump")
        assert (result.exit_code, result.output) == (0, "=== worker 2\ntwo\n=== worker 10\nten\n")
        assert look(pool, "dump", "10").output == "=== worker 10\nten\n"
        assert look(pool, "dump", "4").exit_code == 3


# ---- trace


class Answering:
    """A dialogue in which Asterisk answers everything with 0."""

    hung_up = False

    def execute(self, line: bytes) -> Reply:
        """Answer."""
        return Reply(200, "0")

    def __getattr__(self, name: str) -> Any:
        """Nothing else is asked of it here."""
        raise AssertionError(name)


@contextmanager
def worker(pool: FakePool, place: Callable[[Recorder], object]) -> Iterator[None]:
    """Be a worker beside the test: place calls when an order stands."""
    over = threading.Event()

    def work() -> None:
        recorder = Recorder(pool.folder / FOLDER)
        while not over.wait(0.005):
            if recorder.look(time.time()):
                place(recorder)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_LIMIT_S)


def place_call(recorder: Recorder, ref: str, route: str = "sales", callerid: str = "100") -> None:
    """Place a call of one command."""
    request = Request({"agi_callerid": callerid, "agi_uniqueid": f"17.{ref}"})
    made = Route(route, RouteKind.SCRIPT, route, "handlers:x")
    running = recorder.begin(made, request, ref, Answering())
    if running is not None:
        running.dialogue.execute(b"ANSWER\n")
        recorder.end(running, "ok", replace(_RECORD, ref=ref))


def test_trace(pool: FakePool) -> None:
    """A call that fits is shown from its beginning to its end, and nothing is left behind."""

    def place(recorder: Recorder) -> None:
        place_call(recorder, "a", callerid="200")
        place_call(recorder, "b", route="other")
        place_call(recorder, "c")
        place_call(recorder, "d")

    with worker(pool, place):
        result = look(
            pool, "trace", "--route", "s*", "--callerid", "1*", "--uniqueid", "17.*", "--calls", "1"
        )
    assert result.exit_code == 0
    lines = [line.partition(" ms  ")[2] for line in result.output.splitlines()]
    assert lines[0].startswith("== call=c route=sales ")
    assert lines[1].endswith("<- ANSWER")
    assert lines[2].endswith("-> 200 result=0")
    assert lines[3].startswith("== ended: ok; queued 0.0 ms, Asterisk 30.0 ms")
    assert len(lines) == 4
    assert list((pool.folder / FOLDER).iterdir()) == []


def test_trace_as_json(pool: FakePool) -> None:
    """With --json each event is an object, of all calls that are followed."""

    def place(recorder: Recorder) -> None:
        place_call(recorder, "a")
        place_call(recorder, "b")

    with worker(pool, place):
        result = look(pool, "trace", "--calls", "2", "--json")
    events = [json.loads(line) for line in result.output.splitlines()]
    assert [event["ref"] for event in events] == ["a"] * 4 + ["b"] * 4


def test_trace_of_a_call_in_progress(pool: FakePool) -> None:
    """Of a call that was joined it is shown what it does, since nobody knows when it does something else."""

    def join(recorder: Recorder) -> None:
        route = Route("sales", RouteKind.SCRIPT, "sales", "handlers:x")
        running = recorder.join(route, Request({"agi_callerid": "+49301"}), "old", Answering(), None)
        assert running is not None
        recorder.end(running, "hangup")

    with worker(pool, join):
        result = look(pool, "trace", "--callerid", "+49*", "--calls", "1")
    assert "it is in progress already" in result.output
    assert "   now in Asterisk since 12." in result.output
    assert "s: WAIT FOR DIGIT 5000" in result.output
    assert "== ended: hangup" in result.output


def test_trace_ends_at_its_time(pool: FakePool) -> None:
    """Without a call that fits it ends after --for."""
    result = look(pool, "trace", "--for", "10ms")
    assert (result.exit_code, result.output) == (0, "")
    assert list((pool.folder / FOLDER).iterdir()) == []
