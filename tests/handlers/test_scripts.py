"""fastagi_pool.handlers.scripts: legacy scripts in sh, Python and Perl, played with a real launcher."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import gevent
import pytest
from children import in_child

from fastagi_pool.asterisk import Caller
from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.errors import (
    CallHangup,
    CallTimeout,
    LimitExceeded,
    Overloaded,
    ScriptFailed,
    ScriptNotFound,
    ToldFailure,
)
from fastagi_pool.handlers.scripts import ScriptHandler, refuse_unfit
from fastagi_pool.launches import Launches
from fastagi_pool.launching import Door, ProcessSettings
from fastagi_pool.legacy import AST_VARIABLES, CommandSettings
from fastagi_pool.logs import LOGGER_NAME
from fastagi_pool.stage import Stage, StagedCall
from fastagi_pool.testing import HANGUP, AgiStatus

#: Never waited out, unless something is broken.
PATIENCE_S: Final = 20.0
_NOBODY: Final = 65534
#: Reads the environment; every script that is to be polite begins with it.
SH: Final = '#!/bin/sh\nwhile read -r line && [ -n "$line" ]; do :; done\n'
PYTHON: Final = (
    f"#!{sys.executable} -I\nimport json, os, signal, sys, time\n"
    "environment = []\n"
    "while line := sys.stdin.buffer.readline().rstrip(b'\\n'):\n    environment.append(line)\n"
    "def say(command):\n"
    "    print(command, flush=True)\n    return sys.stdin.readline()\n"
)
PERL: Final = "#!/usr/bin/perl -w\nuse strict; $| = 1;\nwhile (<STDIN>) { last if /^$/ }\n"


class Lines(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note one line."""
        self.said.append(record.getMessage())


class Scripts:
    """A folder with scripts, and a worker's way to the launcher that starts them."""

    def __init__(self, folder: Path, stage: Stage, log: Lines, door: Door) -> None:
        self.folder = folder
        self.log = log
        self._stage = stage
        self.launches = Launches(door.knock, logging.getLogger(LOGGER_NAME))
        # So that no call's time is spent on its start.
        first = self.launches.start("-", "/bin/true", [], {}, asdict(ProcessSettings()), lambda: None)
        first.close()
        assert first.wait_over(PATIENCE_S)

    def write(self, code: str, name: str = "script.agi") -> Path:
        """Write an executable script."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
        file.chmod(0o755)
        return file

    def handler(self, process: ProcessSettings | None = None, **settings: Any) -> ScriptHandler:
        """Make a handler for all scripts of the folder."""
        template, folder = f"{self.folder}/{{script}}", str(self.folder)
        chosen = {"template": template, "folder": folder, **settings}
        handler = ScriptHandler(CommandSettings(process=process or ProcessSettings(), **chosen))
        handler.connect(self.launches)
        return handler

    def call(
        self,
        code: str,
        *arguments: str,
        handler: ScriptHandler | None = None,
        script: str = "script.agi",
        **given: Any,
    ) -> StagedCall:
        """Call a script; what goes wrong is in the result."""
        if code:
            self.write(code, script)
        # The method, because the stage would connect a handler itself, to a launcher of its own.
        serve = (handler or self.handler()).__call__
        return self._stage(serve, script, *arguments, catch=True, timeout_s=PATIENCE_S, **given)

    def wait_for_nobody(self) -> None:
        """Wait until no script runs any more."""
        wait_until(lambda: self.launches.count == 0)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Give the door of a launcher; wait for its end at last."""
    door = Door()
    pid = door.start(str(tmp_path_factory.mktemp("launcher") / "log"), "debug", 1)
    yield door
    door.close()
    os.waitpid(pid, 0)


@pytest.fixture
def log() -> Iterator[Lines]:
    """Give what is logged."""
    lines = Lines()
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(lines)
    logger.setLevel(before)


@pytest.fixture
def scripts(tmp_path: Path, agi_call: Stage, log: Lines, door: Door) -> Iterator[Scripts]:
    """Give a folder with scripts, and a launcher that starts them."""
    folder = tmp_path / "agi-bin"
    folder.mkdir()
    made = Scripts(folder, agi_call, log, door)
    yield made
    made.launches.close()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline_s
        gevent.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- a call that goes well


@pytest.mark.parametrize(
    "code",
    [
        SH + 'echo "GET VARIABLE X"; read -r reply; echo "VERBOSE \\"$reply\\" 1"; read -r reply',
        PYTHON + "reply = say('GET VARIABLE X').strip()\nsay(f'VERBOSE \"{reply}\" 1')",
        PERL
        + 'print "GET VARIABLE X\\n"; my $r = <STDIN>; chomp $r; print "VERBOSE \\"$r\\" 1\\n"; <STDIN>;',
    ],
)
def test_a_dialogue(scripts: Scripts, code: str) -> None:
    """A script in any language commands Asterisk, hears each reply, and its good end is a success."""
    result = scripts.call(code, variables={"X": "seven"})

    assert (result.status, result.outcome, result.error) == (AgiStatus.SUCCESS, "ok", None)
    assert result.console == ("200 result=1 (seven)",)
    assert result.commands == ["GET VARIABLE X", 'VERBOSE "200 result=1 (seven)" 1']
    assert (result.faults, result.variables) == ((), {"X": "seven"})
    scripts.wait_for_nobody()


def test_many_commands_at_once(scripts: Scripts) -> None:
    """A script that does not wait for replies sends Asterisk no command before the reply to the last."""
    result = scripts.call(SH + 'for n in 1 2 3 4 5; do echo "NOOP $n"; done')

    assert result.commands == [f"NOOP {number}" for number in range(1, 6)]
    assert (result.outcome, result.faults) == ("ok", ())


def test_half_a_line(scripts: Scripts) -> None:
    """A command that the script has not ended at its end is one all the same."""
    result = scripts.call(SH + 'printf "NOOP whole\\nSET VARIABLE HALF 1"')

    assert result.commands == ["NOOP whole", "SET VARIABLE HALF 1"]
    assert (result.outcome, result.variables["HALF"]) == ("ok", "1")


def test_what_it_is_told(scripts: Scripts) -> None:
    """Lines, arguments and variables are those of a local script, bytes kept; the rest is the route's."""
    code = PYTHON + (
        "from pathlib import Path\n"
        "Path('told.json').write_text(json.dumps({\n"
        "    'lines': [line.decode('latin-1') for line in environment],\n"
        "    'argv': [os.fsencode(word).decode('latin-1') for word in sys.argv],\n"
        "    'environment': dict(os.environ)}))\n"
    )
    process = ProcessSettings(
        directory=str(scripts.folder), environment={"AST_AGI_DIR": "/mine", "AGI_CALLERID": "route", "X": "1"}
    )
    handler = scripts.handler(process)
    arguments = ("one two", "", "ü\udcff", "$(id)")
    caller = Caller(number="100")
    result = scripts.call(code, *arguments, script="a/b.agi", handler=handler, caller=caller)

    assert result.outcome == "ok"
    told = json.loads((scripts.folder / "told.json").read_text())
    shown = [argument.encode("utf-8", "surrogateescape").decode("latin-1") for argument in arguments]
    assert told["argv"] == [str(scripts.folder / "a/b.agi"), *shown]
    assert told["lines"][0] == "agi_request: a/b.agi"
    assert "agi_callerid: 100" in told["lines"]
    assert told["lines"][-4:] == [f"agi_arg_{number}: {text}" for number, text in enumerate(shown, 1)]
    assert not [line for line in told["lines"] if line.startswith("agi_network")]
    environment = told["environment"]
    assert {name: environment[name] for name in AST_VARIABLES} == {**AST_VARIABLES, "AST_AGI_DIR": "/mine"}
    assert (environment["X"], environment["AGI_CALLERID"]) == ("1", "route")
    assert (environment["AGI_REQUEST"], environment["AGI_ARG_1"]) == ("a/b.agi", "one two")


def test_fixed_arguments(scripts: Scripts) -> None:
    """A route's own arguments stand in the place of the call's."""
    handler = scripts.handler(arguments=("fixed", "two words"))
    result = scripts.call(SH + 'echo "NOOP $# $1 $2"', "of", "the", "call", handler=handler)

    assert result.commands == ["NOOP 2 fixed two words"]


def test_captures(scripts: Scripts) -> None:
    """What the route's pattern caught finds the file."""
    scripts.write(SH + "echo NOOP", "tenant/menu.pl")
    handler = scripts.handler(template=f"{scripts.folder}/{{who}}/{{2}}.pl")
    route = {"regex": r"x/(?P<who>\w+)/(\w+)"}
    result = scripts.call("", script="x/tenant/menu", handler=handler, route=route)

    assert result.commands == ["NOOP"]


def test_an_interpreter(scripts: Scripts) -> None:
    """With an interpreter a script needs neither the mode nor the first line of a program."""
    file = scripts.write('echo "NOOP $0"')
    file.chmod(0o644)
    result = scripts.call("", handler=scripts.handler(ProcessSettings(interpreter=["/bin/sh"])))

    assert result.commands == [f"NOOP {file}"]


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("perl", PERL + 'print "NOOP $$ $ARGV[0]\\n"; <STDIN>; exit $ARGV[1];'),
        ("python", PYTHON + "say(f'NOOP {os.getpid()} {sys.argv[1]}')\nsys.exit(int(sys.argv[2]))"),
    ],
)
def test_precompiled(scripts: Scripts, language: str, code: str) -> None:
    """A script that was compiled once serves each call in a process of its own, and ends like any other."""
    handler = scripts.handler(ProcessSettings(precompile=language))
    good = [scripts.call(code, "hello", "0", handler=handler) for _ in range(2)]
    bad = scripts.call("", "hello", "7", handler=handler)

    assert [result.outcome for result in good] == ["ok", "ok"]
    said = [result.commands[0].split() for result in good]
    assert [words[2] for words in said] == ["hello", "hello"]
    assert said[0][1] != said[1][1]
    assert isinstance(bad.error, ScriptFailed)
    assert str(bad.error).startswith("exit code 7")


def test_what_cannot_be_compiled(scripts: Scripts) -> None:
    """The compiler's own words reach the operator."""
    handler = scripts.handler(ProcessSettings(precompile="perl"))
    result = scripts.call("#!/usr/bin/perl\nuse strict;\n$undeclared = 1;\n", handler=handler)

    assert isinstance(result.error, ScriptFailed)
    assert "Global symbol" in str(result.error)


# ---- how it ends


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        ("exit 3", ScriptFailed, "exit code 3"),
        ("echo first >&2; printf 'the last\\r\\n\\n' >&2; exit 255", ScriptFailed, "exit code 255: the last"),
        ("printf half >&2; exit 1", ScriptFailed, "exit code 1: half"),
        ("kill -SEGV $$", ScriptFailed, "killed by SIGSEGV"),
        ("kill -HUP $$", ScriptFailed, "killed by SIGHUP"),
        ("kill -XCPU $$", LimitExceeded, "more than 5 s of processor time (process.cpu_time of the route)"),
    ],
)
def test_a_bad_end(scripts: Scripts, code: str, kind: type[Exception], said: str) -> None:
    """The dialplan learns of each end that is not a good one, with the script's last words."""
    handler = scripts.handler(ProcessSettings(cpu_s=5))
    result = scripts.call(SH + "echo NOOP; read -r reply; " + code, handler=handler)

    assert (type(result.error), str(result.error)) == (kind, said)
    assert (result.status, result.commands[0]) == (AgiStatus.FAILURE, "NOOP")
    assert result.outcome == ("limit" if kind is LimitExceeded else "exit")
    scripts.wait_for_nobody()


def test_processor_time(scripts: Scripts) -> None:
    """A script that computes without end is ended, and the reason is told."""
    handler = scripts.handler(ProcessSettings(cpu_s=1))
    result = scripts.call(SH + "while :; do :; done", handler=handler)

    assert isinstance(result.error, LimitExceeded)


def test_memory(scripts: Scripts) -> None:
    """A script gets no more memory than its route allows."""
    handler = scripts.handler(ProcessSettings(memory_bytes=1 << 28))
    result = scripts.call(PYTHON + "x = bytearray(1 << 29)", handler=handler)

    assert isinstance(result.error, ScriptFailed)
    assert str(result.error) == "exit code 1: MemoryError"


def test_the_failure_line(scripts: Scripts) -> None:
    """A script can say itself that it failed, and is ended."""
    result = scripts.call(SH + "echo failure; sleep 60", handler=scripts.handler(grace_s=0))

    assert isinstance(result.error, ToldFailure)
    assert (result.status, result.outcome) == (AgiStatus.FAILURE, "failure")
    scripts.wait_for_nobody()


def test_children_that_it_leaves_behind(scripts: Scripts) -> None:
    """A child that holds the pipes open does not hold the call, and lives on after a good end."""
    result = scripts.call(SH + 'sleep 60 & echo "NOOP $!"; read -r reply')

    child = int(result.commands[0].split()[1])
    assert result.outcome == "ok"
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


def test_children_that_must_not_stay(scripts: Scripts) -> None:
    """Where a route says so, what a script leaves behind ends with it."""
    handler = scripts.handler(ProcessSettings(background=False))
    result = scripts.call(SH + 'sleep 60 & echo "NOOP $!"; read -r reply', handler=handler)

    assert result.outcome == "ok"
    child = int(result.commands[0].split()[1])
    wait_until(lambda: not is_alive(child))


# ---- its standard output


def test_a_line_without_an_end(scripts: Scripts) -> None:
    """A script that floods its output with what is no line is ended."""
    result = scripts.call(SH + "exec tr '\\0' x </dev/zero", handler=scripts.handler(grace_s=0))

    assert isinstance(result.error, LimitExceeded)
    assert "a line of more than 65536 bytes" in str(result.error)
    assert (result.status, result.outcome) == (AgiStatus.FAILURE, "limit")
    scripts.wait_for_nobody()


def test_commands_without_an_end(scripts: Scripts) -> None:
    """A script that talks on and on is ended when it has said more than it may."""
    handler = scripts.handler(grace_s=0, output_bytes=1_000)
    result = scripts.call(SH + "while :; do echo NOOP; read -r reply; done", handler=handler)

    assert isinstance(result.error, LimitExceeded)
    assert "more than 1000 bytes on its standard output" in str(result.error)
    assert result.commands.count("NOOP") == 200
    scripts.wait_for_nobody()


def test_a_script_that_never_reads(scripts: Scripts) -> None:
    """A script need not read its input at all."""
    result = scripts.call("#!/bin/sh\nfor n in 1 2 3; do echo NOOP; done")

    assert (result.outcome, len(result.commands)) == ("ok", 3)


def test_replies_that_nobody_reads(scripts: Scripts) -> None:
    """A script that reads nothing, when the pipe is full, is waited for in its own time only."""
    result = scripts.call(
        "#!/bin/sh\nwhile :; do echo 'GET VARIABLE X'; done",
        route={"script_timeout": "1s"},
        variables={"X": "x" * 1000},
        handler=scripts.handler(grace_s=0),
    )

    assert isinstance(result.error, CallTimeout)
    assert result.outcome == "timeout"
    scripts.wait_for_nobody()


def test_a_script_that_closes_its_input(scripts: Scripts) -> None:
    """A script that wants no replies gets none, and goes on."""
    result = scripts.call(SH + "exec <&-; echo 'NOOP 1'; echo 'NOOP 2'")

    assert (result.outcome, result.commands) == ("ok", ["NOOP 1", "NOOP 2"])


def test_a_flood_that_is_held_back(scripts: Scripts) -> None:
    """A script whose lines are answered here, and not by Asterisk, keeps no other call from its turn."""
    seen: set[int] = set()

    class Watched(ScriptHandler):
        def __call__(self, call: Call, context: Context) -> None:
            def watch() -> None:
                while True:
                    seen.add(call.refused)
                    gevent.sleep(0)

            watcher = gevent.spawn(watch)
            try:
                super().__call__(call, context)
            finally:
                watcher.kill()

    handler = Watched(scripts.handler().settings)
    handler.connect(scripts.launches)
    result = scripts.call(PYTHON + "os.write(1, b'\\0\\n' * 1000)", handler=handler)

    assert result.outcome == "ok"
    assert len(seen) > 50


# ---- its standard error


def test_standard_error(scripts: Scripts) -> None:
    """What a script says on its standard error is logged line by line, with the call's reference."""
    result = scripts.call(SH + "echo one >&2; printf 'two\\nhalf' >&2")

    assert result.record is not None
    wait_until(lambda: any(line.endswith("half") for line in scripts.log.said))
    said = [line for line in scripts.log.said if "stderr: " in line]
    assert said == [f"call={result.record.ref} stderr: {word}" for word in ("one", "two", "half")]
    assert result.outcome == "ok"


def test_too_much_on_standard_error(scripts: Scripts) -> None:
    """A flood on its standard error is cut, and neither the script nor the call suffers from it."""
    code = SH + "head -c 1000000 /dev/zero | tr '\\0' x >&2; echo NOOP; read -r reply"
    result = scripts.call(code, handler=scripts.handler(output_bytes=10_000))

    assert (result.outcome, result.commands) == ("ok", ["NOOP"])
    wait_until(lambda: any("bytes were dropped" in line for line in scripts.log.said))
    said = [line.partition("stderr: ")[2] for line in scripts.log.said if "stderr: " in line]
    dropped = "990000 more bytes were dropped: the limit is 10000, and a line counts for 100 at least"
    assert said == ["x" * 8192, "x" * 1808, f"({dropped})"]


# ---- hangup


def test_hangup(scripts: Scripts) -> None:
    """A hangup reaches the script as SIGHUP; it may clean up with what a dead channel permits."""
    code = PYTHON + (
        "signals = []\n"
        "signal.signal(signal.SIGHUP, lambda number, _: signals.append(number))\n"
        "say('ANSWER')\n"
        "while not signals:\n    time.sleep(0.01)\n"
        "say('SET VARIABLE CLEANED 1')\n"
        "sys.exit(4)\n"
    )
    result = scripts.call(code, hangup_after=1)

    assert (result.status, result.outcome) == (AgiStatus.HANGUP, "hangup")
    assert isinstance(result.error, CallHangup)
    assert (result.variables["CLEANED"], result.faults) == ("1", ())
    assert any("after the caller hung up: exit code 4" in line for line in scripts.log.said)
    scripts.wait_for_nobody()


def test_hangup_in_a_command(scripts: Scripts) -> None:
    """A script that never heard of signals dies at a hangup, like under Asterisk."""
    result = scripts.call(SH + "echo 'GET DATA menu 1000 1'; sleep 60", presses=[HANGUP])

    assert (result.status, result.outcome) == (AgiStatus.HANGUP, "hangup")
    scripts.wait_for_nobody()


def test_a_script_that_ignores_hangup(scripts: Scripts) -> None:
    """A script that does not want to end is killed after its grace, with all its children."""
    code = SH + "trap '' HUP; sleep 60 & echo \"NOOP $!\"; read -r reply; while :; do sleep 0.01; done"
    result = scripts.call(code, hangup_after=1, handler=scripts.handler(grace_s=0.1))

    assert (result.status, result.outcome) == (AgiStatus.HANGUP, "hangup")
    scripts.wait_for_nobody()
    child = int(result.commands[0].split()[1])
    wait_until(lambda: not is_alive(child))
    assert any("after the caller hung up: killed by SIGKILL" in line for line in scripts.log.said)


# ---- a script that closes its output


@pytest.mark.parametrize(("agisighup", "outcome"), [(None, "hup"), ("no", "end"), ("yes", "hup")])
def test_a_script_that_goes_on(scripts: Scripts, agisighup: str | None, outcome: str) -> None:
    """Who closes the output gives the call back; SIGHUP comes then, unless the channel says no."""
    witness = scripts.folder / "witness"
    code = PYTHON + (
        f"witness = {str(witness)!r}\n"
        "def note(word):\n    open(witness, 'w').write(word)\n    os._exit(0)\n"
        "signal.signal(signal.SIGHUP, lambda *_: note('hup'))\n"
        "say('NOOP')\n"
        "os.close(1)\n"
        # Who is to get SIGHUP waits for it as long as it takes.
        f"time.sleep({0.6 if outcome == 'end' else 60})\n"
        "note('end')\n"
    )
    variables = {} if agisighup is None else {"AGISIGHUP": agisighup}
    result = scripts.call(code, variables=variables)

    assert (result.status, result.outcome, result.commands) == (
        AgiStatus.SUCCESS,
        "ok",
        ["NOOP", "GET VARIABLE AGISIGHUP"],
    )
    assert result.record is not None
    assert result.record.held_s is not None
    assert witness.read_text() == outcome


def test_it_dies_of_our_signal(scripts: Scripts) -> None:
    """A script that was told to go by SIGHUP, and went, has not failed."""
    result = scripts.call(SH + "exec >&-; sleep 60 2>/dev/null")

    assert (result.status, result.outcome) == (AgiStatus.SUCCESS, "ok")
    scripts.wait_for_nobody()


def test_it_goes_on_too_long(scripts: Scripts) -> None:
    """The route's limit holds for a script that has given its call back."""
    result = scripts.call(
        SH + "trap '' HUP; exec >&-; while :; do sleep 0.01; done",
        route={"script_timeout": "1s"},
        handler=scripts.handler(grace_s=0.05),
    )

    assert (result.status, result.outcome) == (AgiStatus.SUCCESS, "timeout")
    scripts.wait_for_nobody()


def test_it_closes_its_output_and_fails(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends a moment after its output has not given its call back: its end counts."""
    # The moment is the machine's to make long.
    monkeypatch.setattr("fastagi_pool.handlers.scripts.SETTLING_S", PATIENCE_S)
    result = scripts.call(SH + "echo NOOP; exec >&-; sleep 0.02; exit 5")

    assert str(result.error) == "exit code 5"
    assert (result.status, result.outcome) == (AgiStatus.FAILURE, "exit")


def test_an_end_that_is_told_late(scripts: Scripts) -> None:
    """Where the launcher gets no processor, how a script ended is waited for, and no success is made up."""
    stop = "(sleep 0.7; kill -CONT $PPID) </dev/null >/dev/null 2>&1 & kill -STOP $PPID\n"
    result = scripts.call(SH + f"echo NOOP; read -r reply; {stop}exit 5")

    assert str(result.error) == "exit code 5"
    assert (result.status, result.outcome) == (AgiStatus.FAILURE, "exit")
    assert "GET VARIABLE AGISIGHUP" not in result.commands


@pytest.mark.parametrize(("settlings", "status"), [(10_000, AgiStatus.FAILURE), (2, AgiStatus.SUCCESS)])
def test_it_computes_behind_its_output(
    scripts: Scripts, settlings: int, status: AgiStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who computes may be about to end, and gets longer for it, but not as long as it likes."""
    monkeypatch.setattr("fastagi_pool.handlers.scripts._SETTLINGS", settlings)
    long_s = 0.6 if status is AgiStatus.FAILURE else 3600
    code = f"os.close(1)\nwhile time.process_time() < {long_s}: pass\nos._exit(5)\n"
    result = scripts.call(PYTHON + code)

    assert result.status is status
    scripts.wait_for_nobody()


# ---- limits


def test_a_script_that_hangs(scripts: Scripts) -> None:
    """A script that says nothing is ended when its time is over, but not in Asterisk's time."""
    result = scripts.call(
        SH + "echo NOOP; sleep 60", route={"script_timeout": "1s"}, handler=scripts.handler(grace_s=0.05)
    )

    assert isinstance(result.error, CallTimeout)
    assert (result.status, result.outcome, result.commands[0]) == (AgiStatus.FAILURE, "timeout", "NOOP")
    scripts.wait_for_nobody()


def test_places(scripts: Scripts) -> None:
    """A place is taken until its process has ended, not its call; who waits is on the queue's clock."""
    handler = scripts.handler(most_processes=1, max_queue=1, max_wait_s=0.05, grace_s=30.0)
    stubborn = SH + "trap '' HUP; echo NOOP; while [ ! -e $0.end ]; do sleep 0.01; done"
    first = scripts.call(stubborn, route={"script_timeout": "1s"}, handler=handler)
    second = scripts.call("", route={"script_timeout": "1s"}, handler=handler)
    (scripts.folder / "script.agi.end").touch()
    scripts.wait_for_nobody()
    # The staged calls' references are one row: the route must be the same.
    third = scripts.call("", route={"script_timeout": "1s"}, handler=handler)

    assert (first.outcome, third.outcome) == ("timeout", "ok")
    assert isinstance(second.error, Overloaded)
    assert (second.status, second.outcome) == (AgiStatus.FAILURE, "overload")
    assert first.record is not None
    assert second.record is not None
    assert first.record.queued_s == 0.0
    assert second.record.queued_s > 0.04


def test_a_place_after_a_launch_that_failed(scripts: Scripts) -> None:
    """What could not be started holds no place."""
    handler = scripts.handler(most_processes=1, max_queue=0)
    results = [scripts.call("#!/does/not/exist\n", handler=handler) for _ in range(2)]

    assert [type(result.error) for result in results] == [ScriptFailed, ScriptFailed]
    assert all(result.outcome == "exit" for result in results)


def test_no_launcher(agi_call: Stage, tmp_path: Path) -> None:
    """A handler that nobody has connected says so."""
    file = tmp_path / "script.agi"
    file.write_text(SH)
    file.chmod(0o755)
    alone = ScriptHandler(CommandSettings(str(file), str(tmp_path)))
    result = agi_call(alone.__call__, catch=True)

    assert isinstance(result.error, ScriptFailed)


# ---- files that are not run


def test_there_is_none(scripts: Scripts) -> None:
    """A script that is not there fails the call and says which file was looked for."""
    result = scripts.call("", script="absent.agi")

    assert isinstance(result.error, ScriptNotFound)
    assert str(result.error) == f"{scripts.folder}/absent.agi: No such file or directory"
    assert (result.status, result.outcome) == (AgiStatus.FAILURE, "notfound")
    assert scripts.launches.count == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with files that may and may not be run."""
    inside = tmp_path / "agi-bin"
    (inside / "deep").mkdir(parents=True)
    for name, mode in (("good", 0o755), ("deep/good", 0o755), ("plain", 0o644), ("../outside", 0o755)):
        (inside / name).write_text("#!/bin/sh\n")
        (inside / name).chmod(mode)
    (tmp_path / "agi-bin-2").mkdir()
    (tmp_path / "agi-bin-2" / "sibling").write_text("")
    (inside / "out").symlink_to("../outside")
    (inside / "out-of-it").symlink_to("..")
    (inside / "sibling").symlink_to("../agi-bin-2/sibling")
    (inside / "link").symlink_to("deep/good")
    (inside / "loop").symlink_to("loop")
    os.mkfifo(inside / "fifo")
    return inside


@pytest.mark.parametrize("name", ["good", "deep/good", "link"])
def test_fit_files(folder: Path, name: str) -> None:
    """A regular executable file below the folder may be run, by a link too."""
    refuse_unfit(f"{folder}/{name}", CommandSettings("", str(folder)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent", "No such file or directory"),
        ("good/x", "Not a directory"),
        ("deep", "is no regular file"),
        ("fifo", "is no regular file"),
        ("", "leads out of"),
        ("out", "leads out of"),
        ("out-of-it/outside", "leads out of"),
        ("sibling", "leads out of"),
        ("loop", "symbolic links"),
        ("../outside", "must not hold '.' or '..'"),
        ("deep/../good", "must not hold '.' or '..'"),
        ("./good", "must not hold '.' or '..'"),
        ("good\0", "must not hold NUL"),
        ("x" * 300, "File name too long"),
        ("plain", "is not executable"),
    ],
)
def test_unfit_files(folder: Path, name: str, reason: str) -> None:
    """Everything else is refused, with the path and the reason."""
    with pytest.raises(ScriptNotFound) as caught:
        refuse_unfit(f"{folder}/{name}", CommandSettings("", str(folder)))
    assert str(caught.value).startswith(f"{folder}/{name}: ")
    assert reason in str(caught.value)


def test_a_file_that_cannot_be_read() -> None:
    """A file that the server's user cannot read is refused before anything is started."""

    def try_it(folder: str) -> str:
        if os.geteuid() == 0:
            # The superuser reads everything.
            os.setuid(_NOBODY)
        try:
            refuse_unfit(f"{folder}/secret", CommandSettings("", folder))
        except ScriptNotFound as fault:
            return str(fault)
        return "it was taken"

    # Not pytest's own folder, into which nobody else may look.
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        Path(folder, "secret").touch(mode=0o311)
        assert "is not readable" in in_child(lambda: try_it(folder))


@pytest.mark.parametrize("process", [ProcessSettings(interpreter=["sh"]), ProcessSettings(precompile="perl")])
def test_files_for_an_interpreter(folder: Path, process: ProcessSettings) -> None:
    """Who is read by another program need not be one itself."""
    refuse_unfit(f"{folder}/plain", CommandSettings("", str(folder), process))
