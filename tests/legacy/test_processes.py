"""Processes of scripts: they hear of hangups, none is left behind, and any of ours may die or be changed."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from integration.conftest import Pools
from integration.opencall import OpenCall
from service import PoolService, pids, sleeps

from fastagi_pool.testing import AgiStatus, CallResult, environment

from .agibin import route, write
from .family import await_gone, launcher_of, launchers, orphans, running, zygotes

_GRACE: Final = "300ms"
#: The languages in which the held script is written, by way.
_HELD: Final = {
    "spawned_sh": ("", "#!/bin/sh\n@SH@"),
    "spawned_perl": ("", "#!/usr/bin/perl\n@PERL@"),
    "precompiled_perl": ("perl", "#!/usr/bin/perl\n@PERL@"),
    "precompiled_python": ("python", "#!python\n@PYTHON@"),
}
#: Says its process, waits for the reply, and notes SIGHUP in the file of its first argument. When its worker
#: has died it finds the end of its input first: then it waits for the signal.
_BODIES: Final = {
    "@SH@": (
        'while read -r line && [ -n "$line" ]; do :; done\n'
        "note=$1\n"
        "trap 'echo hup > \"$note\"; exit 0' HUP\n"
        'echo "NOOP held by $$"\n'
        "read -r reply\n"
        'while [ -z "$reply" ]; do read -r reply; done\n'
        'echo "SET VARIABLE PID $$"\n'
        "read -r reply\n"
    ),
    "@PERL@": (
        "use strict;\n"
        "$| = 1;\n"
        "while (my $line = <STDIN>) { chomp $line; last unless length $line; }\n"
        "my $note = shift;\n"
        "$SIG{HUP} = sub { open(my $out, '>', $note); print $out \"hup\\n\"; close $out; exit 0; };\n"
        'print "NOOP held by $$\\n";\n'
        "my $reply = <STDIN>;\n"
        "sleep 1000 unless defined $reply;\n"
        'print "SET VARIABLE PID $$\\n";\n'
        "$reply = <STDIN>;\n"
    ),
    "@PYTHON@": (
        "import os, signal, sys\n"
        "def gone(number, frame):\n"
        "    with open(sys.argv[1], 'w') as out:\n"
        "        out.write('hup\\n')\n"
        "    os._exit(0)\n"
        "for line in iter(sys.stdin.readline, '\\n'):\n"
        "    pass\n"
        "signal.signal(signal.SIGHUP, gone)\n"
        "print('NOOP held by %d' % os.getpid(), flush=True)\n"
        "sys.stdin.readline() or signal.pause()\n"
        "print('SET VARIABLE PID %d' % os.getpid(), flush=True)\n"
        "sys.stdin.readline()\n"
    ),
}
_STUBBORN: Final = (
    "#!/bin/sh\ntrap '' HUP\nwhile read -r line && [ -n \"$line\" ]; do :; done\n"
    'sleep 1000 &\necho "NOOP held by $$"\nread -r reply\nwhile :; do sleep 1000; done\n'
)


@pytest.fixture
def agi(tmp_path: Path, languages: None) -> Path:
    """A folder with the held script in every language, of the test's own."""
    for name, (_, text) in _HELD.items():
        for mark, body in _BODIES.items():
            text = text.replace(mark, body)
        write(tmp_path, f"{name}.agi", text)
    write(tmp_path, "stubborn.agi", _STUBBORN)
    return tmp_path


@pytest.fixture
def pool(pools: Pools, agi: Path) -> PoolService:
    """A pool of two workers with a route for each held script."""
    ways = {**{name: language for name, (language, _) in _HELD.items()}, "stubborn": ""}
    routes = [
        route(name, agi / f"{name}.agi", language, process={"grace": _GRACE, "folder": str(agi)})
        for name, language in ways.items()
    ]
    return pools.start(routes=routes)


class _Held(OpenCall):
    """A call to a held script.

    Attributes:
        pid: The script's process.
        note: Where it notes SIGHUP.
    """

    def __init__(self, pool: PoolService, script: str, note: Path) -> None:
        super().__init__(pool.address)
        self.note = note
        self.send(environment(f"agi://localhost/{script}", [str(note)]).encode())
        self.pid = int(self.command().rpartition(" ")[2])
        # A signal between a script's last look and its read is handled when that returns, so never here: that
        # is how signals work in Python, Perl and shells, whoever sends them.
        pool.await_that(lambda: sleeps(self.pid), "has the script wait for its reply")

    def hang_up(self) -> None:
        """Let the caller hang up while the script's command runs."""
        self.send(b"200 result=-1\nHANGUP\n")


def _served(pool: PoolService, script: str, note: Path) -> AgiStatus:
    """Place one call and see it to its end."""
    with _Held(pool, script, note) as call:
        status = call.release()
        assert call.said[1] == f"SET VARIABLE PID {call.pid}"
    return status


def _worker_of(pool: PoolService) -> int:
    """Return the only worker that has a call."""
    pool.await_that(lambda: sum(each.active for each in pool.serving()) == 1, "has one call")
    (worker,) = [each.pid for each in pool.serving() if each.active]
    return worker


# --- hangups


@pytest.mark.parametrize("script", _HELD)
def test_script_hears_of_a_hangup(pool: PoolService, script: str, tmp_path: Path) -> None:
    """A hangup while a script waits for a reply reaches it as SIGHUP, which it can handle in its own way."""
    with _Held(pool, script, tmp_path / "note") as call:
        call.send(b"HANGUP\n")
        pool.await_that(lambda: call.note.exists() and call.note.read_text(), "tells of the hangup")
        assert call.note.read_text() == "hup\n"
        await_gone(pool, [call.pid])
        call.send(b"200 result=-1\n")
        call.end()
    (line,) = pool.await_access(1)
    assert line["outcome"] == "hangup"


def test_script_that_does_not_mind_a_hangup(pool: PoolService, tmp_path: Path) -> None:
    """Of a script that ignores SIGHUP nothing is left after its grace, its own children neither."""
    with _Held(pool, "stubborn", tmp_path / "note") as call:
        left = running(pool, "stubborn.agi") + running(pool, "sleep 1000")
        assert call.pid in pids(left)
        call.send(b"HANGUP\n200 result=-1\n")
        await_gone(pool, pids(left))
    # It has begun another one meanwhile. Who is killed dies when it is its turn on a processor.
    pool.await_that(lambda: not running(pool, "sleep 1000"), "has killed all that it began")


# --- warm scripts


def test_warm_script(pools: Pools, tmp_path: Path, languages: None) -> None:
    """Calls are served by processes that waited for them, each by one of its own; none of them is left."""
    text = "#!/bin/sh\n" + _BODIES["@SH@"].replace("note=$1", f"note={tmp_path}/note")
    file = write(tmp_path, "warm.agi", text)
    pool = pools.start(
        routes=[route("warm", file, warm=2, process={"arguments": ["ready"], "grace": _GRACE})]
    )
    served: set[int] = set()
    for _ in range(3):
        pool.await_that(lambda: len(running(pool, "warm.agi")) == 2, "keeps two of it warm")
        waiting = pids(running(pool, "warm.agi"))
        with _Held(pool, "warm", tmp_path / "note") as call:
            assert call.pid in waiting - served
            served.add(call.pid)
            assert call.release() is AgiStatus.SUCCESS
    pool.terminate()
    assert pool.wait() == 0, pool.logged()
    pool.await_that_all_ended()


# --- one of ours is killed


@pytest.mark.parametrize("script", _HELD)
def test_worker_is_killed(pool: PoolService, script: str, tmp_path: Path) -> None:
    """The scripts of a worker that died hear SIGHUP and end; nobody is an orphan, and others are served."""
    with _Held(pool, script, tmp_path / "note") as call:
        os.kill(_worker_of(pool), signal.SIGKILL)
        pool.await_that(lambda: call.note.exists() and call.note.read_text(), "tells the script")
        await_gone(pool, [call.pid])
    pool.await_serving(2)
    assert orphans(pool) == []
    assert _served(pool, script, tmp_path / "second") is AgiStatus.SUCCESS


def test_worker_with_a_stubborn_script_is_killed(pool: PoolService, tmp_path: Path) -> None:
    """A script that ignores SIGHUP does not outlive its worker by more than its grace."""
    with _Held(pool, "stubborn", tmp_path / "note") as call:
        os.kill(_worker_of(pool), signal.SIGKILL)
        await_gone(pool, [call.pid])
    pool.await_serving(2)
    pool.await_that(lambda: not running(pool, "sleep 1000"), "has killed all that it began")
    assert orphans(pool) == []


@pytest.mark.parametrize("script", _HELD)
def test_launcher_is_killed(pool: PoolService, script: str, tmp_path: Path) -> None:
    """With the launcher its scripts and zygotes end; a call in progress fails, the next one is served."""
    with _Held(pool, script, tmp_path / "note") as call:
        launcher = launcher_of(pool)
        compiled = pids(zygotes(pool, f"{script}.agi"))
        os.kill(launcher.pid, signal.SIGKILL)
        assert call.release() is AgiStatus.FAILURE
        await_gone(pool, {launcher.pid, call.pid} | compiled)
    assert _served(pool, script, tmp_path / "second") is AgiStatus.SUCCESS
    assert launcher_of(pool).pid != launcher.pid
    assert orphans(pool) == []


@pytest.mark.parametrize("script", [name for name in _HELD if name.startswith("precompiled")])
def test_zygote_is_killed(pool: PoolService, script: str, tmp_path: Path) -> None:
    """A call in progress outlives the process in which its script was compiled; the next gets a new one."""
    with _Held(pool, script, tmp_path / "note") as call:
        (zygote,) = [each for each in zygotes(pool, f"{script}.agi") if each.pid != call.pid]
        os.kill(zygote.pid, signal.SIGKILL)
        await_gone(pool, [zygote.pid])
        assert call.release() is AgiStatus.SUCCESS
    assert _served(pool, script, tmp_path / "second") is AgiStatus.SUCCESS
    outcomes = [line["outcome"] for line in pool.await_access(2)]
    assert outcomes == ["ok", "ok"]


def test_everything_but_the_master_is_killed(pool: PoolService, tmp_path: Path) -> None:
    """The master alone brings launcher and zygotes back."""
    assert _served(pool, "precompiled_perl", tmp_path / "note") is AgiStatus.SUCCESS
    for pid in pids(pool.processes()) - {pool.pid}:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # It ended with the one that was killed before it.
    pool.await_serving(2, generation=2)
    assert _served(pool, "precompiled_perl", tmp_path / "note") is AgiStatus.SUCCESS
    assert orphans(pool) == []


# --- stop and reload


def test_stop_leaves_nothing(pool: PoolService, tmp_path: Path) -> None:
    """A pool that is stopped lets its calls finish, then ends with launcher and zygotes."""
    with ExitStack() as calls:
        held = [calls.enter_context(_Held(pool, name, tmp_path / name)) for name in _HELD]
        pool.terminate()
        pool.await_refusal()
        assert [call.release() for call in held] == [AgiStatus.SUCCESS] * len(held)
        assert pool.wait() == 0, pool.logged()
    pool.await_that_all_ended()


def test_reload_brings_a_new_launcher(pool: PoolService, tmp_path: Path) -> None:
    """A call in progress keeps its generation's launcher, which ends with it; new calls have their own."""
    with _Held(pool, "precompiled_perl", tmp_path / "note") as call:
        old = launcher_of(pool, generation=1)
        pool.reload()
        pool.await_that(lambda: launchers(pool, generation=2), "has a second launcher")
        pool.await_that(lambda: any(each.generation == 2 for each in pool.serving()), "serves anew")
        assert _served(pool, "precompiled_perl", tmp_path / "second") is AgiStatus.SUCCESS
        assert old.pid in pids(launchers(pool))
        assert call.release() is AgiStatus.SUCCESS
    await_gone(pool, [old.pid])
    launcher_of(pool, generation=2)
    assert launchers(pool, generation=1) == []
    assert orphans(pool) == []


# --- scripts that change

_SAYING: Final = {
    "": '#!/bin/sh\nwhile read -r line && [ -n "$line" ]; do :; done\n'
    "echo 'SET VARIABLE SAID {0}'\nread -r reply\n",
    "perl": '#!/usr/bin/perl\n$| = 1;\nprint "SET VARIABLE SAID {0}\\n";\n<STDIN>;\n',
    "python": "#!python\nprint('SET VARIABLE SAID {0}', flush=True)\ninput()\n",
}
_USING: Final = {
    "perl": (
        "Saying.pm",
        "package Saying;\nsub word {{ return '{0}'; }}\n1;\n",
        '#!/usr/bin/perl\nuse lib "@FOLDER@";\nuse Saying;\n$| = 1;\n'
        'print "SET VARIABLE SAID " . Saying::word() . "\\n";\n<STDIN>;\n',
    ),
    "python": (
        "saying.py",
        "WORD = '{0}'\n",
        "#!python\nimport saying\nprint('SET VARIABLE SAID ' + saying.WORD, flush=True)\ninput()\n",
    ),
}


def _said(result: CallResult) -> str:
    assert result.status is AgiStatus.SUCCESS, (result.reason, result.dialogue)
    return result.variables["SAID"]


@pytest.mark.parametrize("language", _SAYING)
def test_changed_script(pools: Pools, tmp_path: Path, languages: None, language: str) -> None:
    """A script that was changed is another in the very next call, without a reload."""
    file = write(tmp_path, "saying.agi", _SAYING[language].format("one"))
    pool = pools.start(routes=[route("saying", file, language)])
    said = [_said(pool.call("saying"))]
    for word in ("two", "six", "ten"):  # of one length: neither size nor seconds tell them apart
        write(tmp_path, "saying.agi", _SAYING[language].format(word))
        said.append(_said(pool.call("saying")))
    assert said == ["one", "two", "six", "ten"]


@pytest.mark.parametrize("language", _USING)
def test_changed_module(pools: Pools, tmp_path: Path, languages: None, language: str) -> None:
    """A module that a precompiled script uses, and that was changed, is another in the very next call."""
    name, module, script = _USING[language]
    file = write(tmp_path, "using.agi", script.replace("@FOLDER@", str(tmp_path)))
    (tmp_path / name).write_text(module.format("one"))
    pool = pools.start(routes=[route("using", file, language)])
    said = [_said(pool.call("using"))]
    for word in ("three", "seventeen"):  # Python itself takes bytecode of one second and size for current
        (tmp_path / name).write_text(module.format(word))
        said.append(_said(pool.call("using")))
    assert said == ["one", "three", "seventeen"]


_BROKEN: Final = {
    "perl": ("#!/usr/bin/perl\nuse strict;\n$undeclared = 1;\n", 'Global symbol "$undeclared"'),
    "python": ("#!python\ndef broken(:\n", "SyntaxError"),
}


@pytest.mark.parametrize("language", _BROKEN)
def test_script_that_does_not_compile(pools: Pools, tmp_path: Path, languages: None, language: str) -> None:
    """The compiler's own message is in the log and in FAGI_ERROR, again and again until it is mended."""
    text, message = _BROKEN[language]
    file = write(tmp_path, "broken.agi", text)
    pool = pools.start(routes=[route("broken", file, language)])
    for _ in range(2):
        result = pool.call("broken")
        assert result.status is AgiStatus.FAILURE
        assert result.variables["FAGI_STATUS"] == "EXIT"
        assert message.partition(" ")[0] in result.variables["FAGI_ERROR"]  # in characters that harm nobody
    assert message in pool.logged()
    write(tmp_path, "broken.agi", _SAYING[language].format("mended"))
    assert _said(pool.call("broken")) == "mended"
