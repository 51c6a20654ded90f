"""What the Perl and the Python zygote have in common: the conversation, and what becomes of its calls."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from compiled import (
    CALL,
    PERL,
    PERL_ZYGOTE,
    PRECOMPILE,
    PYTHON,
    PYTHON_ZYGOTE,
    Zygote,
    run_fresh,
    write_script,
)


@dataclass(frozen=True, slots=True)
class Language:
    """A language, and the scripts in it that do what the tests need.

    Attributes:
        name: The language's.
        fresh: The command that runs a script.
        zygote: The zygote's command, without the script.
        modules: What lies beside the script.
        broken: Scripts that never get ready, by what they are about.
        broken_codes: What their exit codes can be.
        one: Prints 1 and the end of the line.
        modular: Loads a module of its own and one of the language's, and a third one only when it runs.
        own_module: The name of the first one's file.
        standard_module: The name of the second one's file.
        later_module: The name of the third one's file.
        number_and_chance: Prints its process's number and a random number, of a generator that the zygote has
            seeded.
        sleeper: Stays for a minute, if nobody ends it.
        leaver: Prints "on" and, behind "heard", the line that it reads; has "end" and its number written to
            standard error at its exit, and arranges that before it is ready.
    """

    name: str
    fresh: list[str]
    zygote: list[str]
    modules: dict[str, str]
    broken: dict[str, str]
    broken_codes: range
    one: str
    modular: str
    own_module: str
    standard_module: str
    later_module: str
    number_and_chance: str
    sleeper: str
    leaver: str

    def __str__(self) -> str:
        return self.name


LANGUAGES: Final = (
    Language(
        name="perl",
        fresh=[PERL],
        zygote=PERL_ZYGOTE,
        modules={"Local.pm": "package Local; 1;\n", "Later.pm": "package Later; 1;\n"},
        broken={
            "syntax": "my $x = ;\n",
            "undeclared": "use strict;\n\n$undeclared = 1;\n",
            "no such module": "use No::Such::Module;\n",
            "die": 'BEGIN { die "not today\\n" }',
        },
        # Perl takes it from errno, which is whatever it is.
        broken_codes=range(1, 256),
        one='print "1\\n";',
        modular="use lib '.'; use Local; use POSIX; print 1; require Later;",
        own_module="Local.pm",
        standard_module="POSIX.pm",
        later_module="Later.pm",
        number_and_chance="BEGIN { rand } print join ' ', $$, rand;",
        sleeper="<STDIN>; sleep 60;",
        leaver='END { print STDERR "end $$\\n" } $| = 1; print "on\\n"; print "heard ", <STDIN>;',
    ),
    Language(
        name="python",
        fresh=[PYTHON],
        zygote=PYTHON_ZYGOTE,
        modules={
            "local.py": "name = 'local'\n",
            "later.py": "name = 'later'\n",
            "broken.py": "def f():\n    import nosuch\nf()\n",
            "leaving.py": "import atexit, os\n"
            "atexit.register(lambda: os.write(2, b'end %d\\n' % os.getpid()))",
        },
        broken={
            "syntax": "def f(:\n    pass\n",
            "indentation": "x = 1\n  y = 2\n",
            "return outside": "return 1\n",
            "no such module": "import sys\n\nimport nosuch\nprint('never')\n",
            "broken module": "import os\nimport broken\n",
            "no such name": "from os import nosuch\n",
        },
        broken_codes=range(1, 2),
        one="print(1)",
        modular="import local\nimport json\nprint(1)\nimport later\n",
        own_module="local.py",
        standard_module="json/__init__.py",
        later_module="later.py",
        number_and_chance="import os, random\nprint(os.getpid(), random.random())",
        sleeper="import time\ntime.sleep(60)",
        leaver="import leaving\nprint('on', flush=True)\nprint('heard', input())",
    ),
)
BROKEN: Final = [(language, about) for language in LANGUAGES for about in language.broken]

in_each_language = pytest.mark.parametrize("language", LANGUAGES, ids=str)


def _script(language: Language, directory: Path, text: str) -> Path:
    return write_script(directory / "script.agi", text, language.modules)


@pytest.mark.parametrize(("language", "about"), BROKEN, ids=str)
def test_what_cannot_be_prepared_says_what_the_language_says(
    language: Language, about: str, tmp_path: Path
) -> None:
    """A script with an error in it or its modules never gets ready: message and status are the language's."""
    script = _script(language, tmp_path, language.broken[about])
    fresh = run_fresh(language.fresh, script, CALL)
    with Zygote([*language.zygote, str(script)], tmp_path) as zygote:
        assert zygote.ready == []
        code, errors = zygote.hang_up()
    assert (code, errors) == (fresh.code, fresh.errors)
    assert code in language.broken_codes


@in_each_language
def test_every_file_is_named(language: Language, tmp_path: Path) -> None:
    """A change of the script or of any loaded module can be noticed: paths are whole, and none is ours."""
    script = _script(language, tmp_path, language.modular)
    with Zygote([*language.zygote, script.name], tmp_path) as zygote:
        _, *files = (os.fsdecode(name) for name in zygote.ready)
    assert files[0] == str(script)
    assert str(tmp_path / language.own_module) in files
    assert any(name.endswith(f"/{language.standard_module}") for name in files)
    assert not any(name.endswith(f"/{language.later_module}") for name in files)
    assert all(Path(name).is_absolute() and Path(name).exists() for name in files)
    assert not any(Path(name).is_relative_to(PRECOMPILE) for name in files)


@in_each_language
def test_each_call_has_its_own_number_and_chance(language: Language, tmp_path: Path) -> None:
    """The process is the one that was announced, and random numbers differ, though seeded before."""
    script = _script(language, tmp_path, language.number_and_chance)
    with Zygote([*language.zygote, str(script)], tmp_path) as zygote:
        seen = []
        for _ in range(3):
            running = zygote.start(CALL)
            pid, chance = running.finish()[0].split()
            assert int(pid) == running.pid
            assert zygote.reap(running.pid) == 0
            seen.append(chance)
    assert len(set(seen)) == 3


@in_each_language
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_child_leads_its_group_and_ends_by_signal(
    language: Language, number: signal.Signals, tmp_path: Path
) -> None:
    """A call's process group is its own when it is announced; a signal kills it, and its status says so."""
    script = _script(language, tmp_path, language.sleeper)
    with Zygote([*language.zygote, str(script)], tmp_path) as zygote:
        running = zygote.start(CALL)
        assert os.getpgid(running.pid) == running.pid
        assert os.getsid(running.pid) == os.getsid(0)
        os.killpg(running.pid, number)
        running.finish()
        assert zygote.reap(running.pid) == -number


@in_each_language
def test_calls_survive_their_zygote(language: Language, tmp_path: Path) -> None:
    """At the conversation's end the zygote is gone at once, with nothing done at exit; its calls go on."""
    script = _script(language, tmp_path, language.leaver)
    zygote = Zygote([*language.zygote, str(script)], tmp_path)
    running = zygote.start(CALL)
    assert running.stdout.readline() == b"on\n"
    assert zygote.hang_up() == (0, "")
    assert running.finish(b"this\n") == ("heard this\n", f"end {running.pid}\n")


@in_each_language
def test_nonsense_is_answered(language: Language, tmp_path: Path) -> None:
    """A request without descriptors, or of an unknown kind, is refused, and the next call is served."""
    script = _script(language, tmp_path, language.one)
    with Zygote([*language.zygote, str(script)], tmp_path) as zygote:
        assert zygote.ask(b"run", b"0")[0] == b"error"
        assert zygote.run(CALL).output == "1\n"
        # The descriptors of the call before are not taken for those of this one.
        assert zygote.ask(b"run", b"0")[0] == b"error"
        assert zygote.ask(b"dance")[0] == b"error"
        assert zygote.ask(b"reap", b"1") == [b"status", b"1", b"-1"]
        assert zygote.run(CALL).output == "1\n"


@in_each_language
def test_zygote_keeps_no_descriptors(language: Language, tmp_path: Path) -> None:
    """After many calls it has as many descriptors open as after the first."""
    script = _script(language, tmp_path, language.one)
    with Zygote([*language.zygote, str(script)], tmp_path) as zygote:
        descriptors = Path(f"/proc/{zygote.process.pid}/fd")
        zygote.run(CALL)
        before = len(list(descriptors.iterdir()))
        for _ in range(20):
            zygote.run(CALL)
        assert len(list(descriptors.iterdir())) == before
