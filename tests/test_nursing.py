"""fastagi_pool.nursing: precompiled and warm scripts, by a real launcher and the real zygotes."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launchers import Client, RunningLauncher, alive, children, eventually, running_launcher, write_script

from fastagi_pool.launching import End, Launched, NotLaunched, Over, ProcessSettings
from fastagi_pool.nursery import CLOCK_TICK_NS

PERL = ProcessSettings(precompile="perl")
PYTHON = ProcessSettings(precompile="python")
#: Answers one line, and says whose child it is.
PERL_SCRIPT = """#!/usr/bin/perl -w
use strict;
$| = 1;
print "version 1 parent=", getppid, " @ARGV $ENV{CALL}\\n";
my $line = <STDIN>;
exit(defined $line ? $line : 0);
"""
PYTHON_SCRIPT = """#!/usr/bin/python3
import os
import sys
print("version 1 parent=%d" % os.getppid(), *sys.argv[1:], os.environ["CALL"], flush=True)
sys.exit(int(sys.stdin.readline() or 0))
"""
LANGUAGES = [(PERL, PERL_SCRIPT), (PYTHON, PYTHON_SCRIPT)]


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[RunningLauncher]:
    """Give a running launcher."""
    with running_launcher(tmp_path / "log") as running:
        yield running


def written(path: Path, text: str) -> Path:
    """Write a script, and let it grow so old that its zygote can be trusted."""
    file = write_script(path, text)
    until_ns = file.stat().st_ctime_ns + 3 * CLOCK_TICK_NS
    eventually(lambda: time.time_ns() > until_ns)
    return file


def hear_zygote(worker: Client, file: Path, settings: ProcessSettings, code: int = 0) -> int:
    """Place a call to its end; return the zygote that has forked for it."""
    script = worker.run(file, "one", "two", variables={"CALL": "c"}, settings=settings)
    match = re.fullmatch(r"version 1 parent=(\d+) one two c\n", script.hear())
    assert match, script
    script.say(str(code))
    assert worker.fate(script) == code
    return int(match[1])


# ---- precompiled


@pytest.mark.parametrize(("settings", "text"), LANGUAGES)
def test_compiled_once(
    launcher: RunningLauncher, tmp_path: Path, settings: ProcessSettings, text: str
) -> None:
    """All calls of all workers are forked by one zygote, each with its own words and exit code."""
    file = written(tmp_path / "a.agi", text)
    one, other = launcher.worker(), launcher.worker()
    parents = {hear_zygote(worker, file, settings, code) for code, worker in enumerate((one, other, one))}
    assert len(parents) == 1
    assert launcher.pid not in parents
    assert launcher.log.read_text().count(f"script={file} zygote={parents.pop()} is ready") == 1


@pytest.mark.parametrize(("settings", "text"), LANGUAGES)
def test_a_changed_script(
    launcher: RunningLauncher, tmp_path: Path, settings: ProcessSettings, text: str
) -> None:
    """The next call runs the changed script; who runs already runs on, and then the old zygote ends."""
    file = written(tmp_path / "a.agi", text)
    worker = launcher.worker()
    zygote = hear_zygote(worker, file, settings)
    old = worker.run(file, variables={"CALL": "old"}, settings=settings)
    assert old.hear().startswith("version 1 ")
    written(file, text.replace("version 1", "version 2"))
    new = worker.run(file, variables={"CALL": "new"}, settings=settings)
    assert new.hear().startswith("version 2 ")
    assert alive(zygote)
    old.say("7")
    assert worker.fate(old) == 7
    eventually(lambda: not alive(zygote))
    assert worker.exit_code(new) == 0


def test_a_changed_module(launcher: RunningLauncher, tmp_path: Path) -> None:
    """A change of a module that the script has loaded counts as a change of the script."""
    module = written(tmp_path / "Mine.pm", "package Mine; sub what { 'old' } 1;")
    text = "#!/usr/bin/perl\nuse FindBin; use lib $FindBin::Bin; use Mine; print Mine::what();"
    file = written(tmp_path / "a.agi", text)
    worker = launcher.worker()
    assert worker.output(file, settings=PERL) == "old"
    written(module, "package Mine; sub what { 'new' } 1;")
    assert worker.output(file, settings=PERL) == "new"


def test_what_does_not_compile(launcher: RunningLauncher, tmp_path: Path) -> None:
    """The compiler's own message is the reason, is in the log, and is gone with the mistake."""
    file = written(tmp_path / "a.agi", "#!/usr/bin/perl\nuse strict;\n$x = 1;\n")
    worker = launcher.worker()
    calls = [worker.launch(file, settings=PERL) for _ in range(3)]
    reasons = {worker.expect(NotLaunched, call)[0].reason for call in calls}
    [reason] = reasons
    assert reason.startswith('Global symbol "$x" requires explicit package name')
    assert reason.endswith(f"Execution of {file} aborted due to compilation errors.")
    told = f"script={file} calls are refused until it is mended: Global"
    eventually(lambda: launcher.log.read_text().count(told) == 1)
    written(file, PERL_SCRIPT)
    hear_zygote(worker, file, PERL)


def test_what_python_does_not_compile(launcher: RunningLauncher, tmp_path: Path) -> None:
    """Python's own message is the reason."""
    file = written(tmp_path / "a.agi", "#!/usr/bin/python3\nif True\n")
    reason = launcher.worker().refusal(file, settings=PYTHON)
    assert "line 2" in reason
    assert "SyntaxError" in reason


def test_what_cannot_be_started(launcher: RunningLauncher, tmp_path: Path) -> None:
    """A zygote whose interpreter does not exist is told as a call that cannot be launched."""
    file = written(tmp_path / "a.agi", "print 1;")
    settings = ProcessSettings(precompile="perl", interpreter=["/opt/none/perl"])
    reason = launcher.worker().refusal(file, settings=settings)
    assert reason == f"cannot execute {file}: No such file or directory"
    settings = ProcessSettings(precompile="perl", interpreter=["nonesuch"])
    assert "'nonesuch' is not in PATH" in launcher.worker().refusal(file, settings=settings)


def test_a_compilation_without_end(launcher: RunningLauncher, tmp_path: Path) -> None:
    """It is killed at its time, and the calls that wait are told; one that gave up is told at once."""
    file = written(tmp_path / "a.agi", "#!/usr/bin/perl\nBEGIN { sleep 1000 }\n")
    settings = ProcessSettings(precompile="perl", compile_timeout_s=0.3)
    worker = launcher.worker()
    given_up, waiting = (worker.launch(file, settings=settings) for _ in range(2))
    worker.channel.send(End(given_up, 5))
    assert "ended before its script" in worker.expect(NotLaunched, given_up)[0].reason
    assert "not compiled within 0.3 s" in worker.expect(NotLaunched, waiting)[0].reason


def test_warnings_of_the_compiler(launcher: RunningLauncher, tmp_path: Path) -> None:
    """What the compiler has to say of a script that compiles goes to the log."""
    file = written(tmp_path / "a.agi", '#!/usr/bin/perl -w\nmy $x; my $x; print "there"')
    assert launcher.worker().output(file, settings=PERL) == "there"
    eventually(lambda: 'stderr: "my" variable $x masks earlier declaration' in launcher.log.read_text())


def test_prepared(launcher: RunningLauncher, tmp_path: Path) -> None:
    """A script that is prepared is compiled before anyone calls."""
    file = written(tmp_path / "a.agi", PERL_SCRIPT)
    launcher.door.prepare(str(file), [], fields(PERL))
    eventually(lambda: f"script={file} zygote=" in launcher.log.read_text())
    hear_zygote(launcher.worker(), file, PERL)
    assert launcher.log.read_text().count("is ready") == 1


@pytest.mark.parametrize(("settings", "text"), LANGUAGES)
def test_a_zygote_that_died(
    launcher: RunningLauncher, tmp_path: Path, settings: ProcessSettings, text: str
) -> None:
    """The next call gets a new zygote; who runs in a child of the old one runs on, and its status is told."""
    file = written(tmp_path / "a.agi", text)
    worker = launcher.worker()
    script = worker.run(file, variables={"CALL": "c"}, settings=settings)
    zygote = int(script.hear().split()[2].partition("=")[2])
    os.kill(zygote, signal.SIGKILL)
    eventually(lambda: not alive(zygote))
    assert hear_zygote(worker, file, settings) != zygote
    script.say("9")
    assert worker.fate(script) == 9


@pytest.mark.slow
def test_a_zygote_that_does_not_answer(launcher: RunningLauncher, tmp_path: Path) -> None:
    """A call that a stopped zygote was asked for is told in time; the next gets a new zygote."""
    file = written(tmp_path / "a.agi", PERL_SCRIPT)
    worker = launcher.worker()
    zygote = hear_zygote(worker, file, PERL)
    os.kill(zygote, signal.SIGSTOP)
    call = worker.launch(file, settings=PERL)
    answer = worker.expect(NotLaunched, call)[0]
    assert "has died; the next call gets a new one" in answer.reason
    assert "has not answered for 10 s: killed" in launcher.log.read_text()
    assert hear_zygote(worker, file, PERL) != zygote


@pytest.mark.slow
def test_a_zygote_that_does_not_bury(launcher: RunningLauncher, tmp_path: Path) -> None:
    """The end of a call is told though its zygote was stopped meanwhile and will not say how it ended."""
    file = written(tmp_path / "a.agi", PERL_SCRIPT)
    worker = launcher.worker()
    script = worker.run(file, variables={"CALL": "c"}, settings=PERL)
    os.kill(int(script.hear().split()[2].partition("=")[2]), signal.SIGSTOP)
    script.say("9")
    assert worker.fate(script) == 9


def test_no_call_gets_the_process_of_another(launcher: RunningLauncher, tmp_path: Path) -> None:
    """Calls that fail for want of descriptors change nothing for those that come after them."""
    text = "#!/usr/bin/perl\n$| = 1; print qq{$ARGV[0] $$\\n}; <STDIN>; exit 4"
    file = written(tmp_path / "a.agi", text)
    worker = launcher.worker()
    for _ in range(2):
        worker.exit_code(worker.run(file, "before", settings=PERL))
    used = max(int(each.name) for each in Path(f"/proc/{launcher.pid}/fd").iterdir()) + 1
    limits = resource.prlimit(launcher.pid, resource.RLIMIT_NOFILE)
    for spare in range(12):
        resource.prlimit(launcher.pid, resource.RLIMIT_NOFILE, (used + spare, limits[1]))
        call = worker.launch(file, "scarce", settings=PERL)
        answer, streams = worker.next()
        for stream in streams:
            os.close(stream)
        if isinstance(answer, Launched):
            worker.expect(Over, call)
    resource.prlimit(launcher.pid, resource.RLIMIT_NOFILE, limits)
    for number in range(3):
        script = worker.run(file, f"after-{number}", settings=PERL)
        assert script.hear() == f"after-{number} {script.pid}\n"
        assert worker.exit_code(script) == 4


@pytest.mark.parametrize("lie", ["pid\\x00-1", "pid\\x00{victim}", "pid\\x00x", "status\\x00", "nonsense"])
def test_a_zygote_that_lies(launcher: RunningLauncher, tmp_path: Path, lie: str) -> None:
    """What a script's modules say in their zygote's place ends the zygote, and no other process."""
    victim = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    said = lie.format(victim=victim.pid)
    (tmp_path / "liar.py").write_text(
        "import os, stat\n"
        "[own] = [n for n in range(3, 50) if os.path.exists(f'/proc/self/fd/{n}')"
        " and stat.S_ISSOCK(os.fstat(n).st_mode)]\n"
        f"def fork():\n    os.write(own, b'{said}')\n    raise OSError(0, 'no')\n"
        "os.fork = fork\n"
    )
    file = written(tmp_path / "a.agi", "#!/usr/bin/python3\nimport liar\n")
    worker = launcher.worker()
    call = worker.launch(file, settings=PYTHON)
    try:
        assert "has died" in worker.expect(NotLaunched, call)[0].reason
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_a_reason_without_end(launcher: RunningLauncher, tmp_path: Path) -> None:
    """A reason that would fit into no message is cut, and does not cost the worker its launcher."""
    (tmp_path / "wordy.py").write_text(
        "import os\ndef fork():\n    raise OSError(0, '\\udc80' * 150_000)\nos.fork = fork\n"
    )
    file = written(tmp_path / "a.agi", "#!/usr/bin/python3\nimport wordy\n")
    worker = launcher.worker()
    for _ in range(2):
        assert "cannot fork: \udc80" in worker.refusal(file, settings=PYTHON)


def test_limits_of_a_call(launcher: RunningLauncher, tmp_path: Path) -> None:
    """Processor time is limited for each call and not for the zygote; calls of different limits share it."""
    file = written(tmp_path / "a.agi", PERL_SCRIPT)
    worker = launcher.worker()
    parents = set()
    for cpu_s, expected in ((3.0, (3, 8)), (0.0, (resource.RLIM_INFINITY,) * 2)):
        settings = ProcessSettings(precompile="perl", cpu_s=cpu_s)
        script = worker.run(file, variables={"CALL": "c"}, settings=settings)
        parents.add(int(script.hear().split()[2].partition("=")[2]))
        assert resource.prlimit(script.pid, resource.RLIMIT_CPU) == expected
        assert worker.exit_code(script) == 0
    assert len(parents) == 1
    assert resource.prlimit(parents.pop(), resource.RLIMIT_CPU) == (resource.RLIM_INFINITY,) * 2


@pytest.mark.parametrize(("settings", "text"), LANGUAGES)
def test_an_end(launcher: RunningLauncher, tmp_path: Path, settings: ProcessSettings, text: str) -> None:
    """A script that was forked by a zygote is ended as any other: by SIGHUP, or killed."""
    file = written(tmp_path / "a.agi", text)
    worker = launcher.worker()
    for grace_s, number in ((20, signal.SIGHUP), (0, signal.SIGKILL)):
        script = worker.run(file, variables={"CALL": "c"}, settings=settings)
        assert script.hear()
        assert os.getpgid(script.pid) == script.pid
        worker.end(script, grace_s)
        assert worker.fate(script) == -number


def test_a_worker_that_died_while_it_waited(launcher: RunningLauncher, tmp_path: Path) -> None:
    """The calls of a worker that dies while their script is compiled are dropped, and harm nobody."""
    file = written(
        tmp_path / "a.agi", "#!/usr/bin/perl\nBEGIN { select undef, undef, undef, 0.3 } print 'on'"
    )
    dying, other = launcher.worker(), launcher.worker()
    for _ in range(3):
        dying.launch(file, settings=PERL)
    dying.channel.close()
    assert other.output(file, settings=PERL) == "on"


def test_many_precompiled_at_once(launcher: RunningLauncher, tmp_path: Path) -> None:
    """Fifty calls that come while the script is compiled run at the same time, each with its own end."""
    file = written(tmp_path / "a.agi", PERL_SCRIPT)
    worker = launcher.worker()
    for _ in range(50):
        worker.launch(file, variables={"CALL": "c"}, settings=PERL)
    pids = []
    for _ in range(50):
        launched, streams = worker.expect(Launched)
        pids.append(launched.pid)
        for stream in streams:
            os.close(stream)
    assert len(set(pids)) == 50
    eventually(lambda: not any(alive(pid) for pid in pids))


# ---- warm

WARM_SCRIPT = "#!/bin/sh\necho version 1 $1 $$\nread line\nexit $line\n"
WARM = ProcessSettings(warm=2)


def fields(settings: ProcessSettings) -> dict[str, object]:
    """Give the settings as they travel."""
    return {name: getattr(settings, name) for name in ProcessSettings.__dataclass_fields__}


def waiting_processes(launcher: RunningLauncher) -> set[int]:
    """Find the children of the launcher that run a shell."""
    return {pid for pid in children(launcher) if "sh" in _command(pid)}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def warmed(launcher: RunningLauncher, file: Path) -> set[int]:
    """Have two kept warm; return them when they wait."""
    launcher.door.prepare(str(file), ["arg"], fields(WARM))
    eventually(lambda: len(waiting_processes(launcher)) == 2)
    return waiting_processes(launcher)


def test_warm_processes_are_there_before_the_call(launcher: RunningLauncher, tmp_path: Path) -> None:
    """A call gets a process that was started before, and another is started in its place."""
    file = written(tmp_path / "warm.sh", WARM_SCRIPT)
    first = warmed(launcher, file)
    worker = launcher.worker()
    script = worker.run(file, "arg", settings=WARM)
    assert script.pid in first
    assert script.hear() == f"version 1 arg {script.pid}\n"
    eventually(lambda: len(waiting_processes(launcher) - {script.pid}) == 2)
    script.say("6")
    assert worker.fate(script) == 6


def test_other_arguments_are_spawned(launcher: RunningLauncher, tmp_path: Path) -> None:
    """A call with other arguments gets a process of its own."""
    file = written(tmp_path / "warm.sh", WARM_SCRIPT)
    first = warmed(launcher, file)
    worker = launcher.worker()
    script = worker.run(file, "other", settings=WARM)
    assert script.pid not in first
    assert script.hear() == f"version 1 other {script.pid}\n"
    script.say("0")
    assert worker.fate(script) == 0


def test_a_changed_script_replaces_the_warm(launcher: RunningLauncher, tmp_path: Path) -> None:
    """No call gets a process that was started before the script changed."""
    file = written(tmp_path / "warm.sh", WARM_SCRIPT)
    first = warmed(launcher, file)
    written(file, WARM_SCRIPT.replace("version 1", "version 2"))
    worker = launcher.worker()
    script = worker.run(file, "arg", settings=WARM)
    assert script.hear() == f"version 2 arg {script.pid}\n"
    eventually(lambda: not any(alive(pid) for pid in first))
    eventually(lambda: len(waiting_processes(launcher) - {script.pid}) == 2)
    assert worker.exit_code(script) != 0


def test_a_warm_one_that_died_is_replaced(launcher: RunningLauncher, tmp_path: Path) -> None:
    """A process that was killed while it waited is not given to a call; another takes its place."""
    file = written(tmp_path / "warm.sh", WARM_SCRIPT)
    first = warmed(launcher, file)
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    worker = launcher.worker()
    eventually(lambda: len(waiting_processes(launcher) - first) == 2)
    script = worker.run(file, "arg", settings=WARM)
    assert script.hear() == f"version 1 arg {script.pid}\n"
    script.say("0")
    assert worker.fate(script) == 0


def test_a_warm_script_that_cannot_be_started(launcher: RunningLauncher, tmp_path: Path) -> None:
    """It is in the log, not tried again without a pause, and calls are told why."""
    file = written(tmp_path / "warm.sh", "no first line\n")
    launcher.door.prepare(str(file), ["arg"], fields(WARM))
    assert "no #! line" in launcher.worker().refusal(file, "arg", settings=WARM)
    assert 2 <= launcher.log.read_text().count("no process waits for the next call") <= 4


def test_warm_processes_end_with_the_launcher(tmp_path: Path) -> None:
    """When nobody can come any more those that wait are ended."""
    launcher = RunningLauncher(tmp_path / "log")
    first = warmed(launcher, written(tmp_path / "warm.sh", WARM_SCRIPT))
    launcher.door.close()
    assert launcher.wait() == 0
    assert not any(alive(pid) for pid in first)
    launcher.close()
