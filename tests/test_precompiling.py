"""fastagi_pool.precompiling: by which command line a script is compiled, and how its zygote is spoken to."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
from launchers import LIMIT_S, write_script

import fastagi_pool
from fastagi_pool.launching import ProcessSettings
from fastagi_pool.nursery import Recipe
from fastagi_pool.precompiling import Born, Buried, Ready, Said, ScriptZygote, command
from fastagi_pool.spawning import Spawner, SpawnError, Streams

FOLDER = Path(fastagi_pool.__file__).parent / "precompile"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("#!/usr/bin/perl", ["/usr/bin/perl"]),
        ("#! /opt/perl5/bin/perl -w", ["/opt/perl5/bin/perl"]),
        ("#!/usr/bin/perl -T", ["/usr/bin/perl", "-T"]),
        ("#!/usr/bin/perl -wT", ["/usr/bin/perl", "-T"]),
        ("#!/usr/bin/perl -w -t", ["/usr/bin/perl", "-t"]),
        ("#!/usr/bin/perl -MTest::More", ["/usr/bin/perl"]),
        ("#!/usr/bin/perl -I/opt/Things -W", ["/usr/bin/perl"]),
        ("#!/usr/bin/env perl", ["perl"]),
        ("#!/usr/bin/env -S A=b perl -wT", ["perl", "-T"]),
        ("#!/usr/bin/env", ["perl"]),
        ("#!/bin/sh", ["perl"]),
        ("use strict;", ["perl"]),
    ],
)
def test_perl(tmp_path: Path, line: str, words: list[str]) -> None:
    """The script's own interpreter compiles it, with the switch that Perl wants on its command line."""
    file = tmp_path / "a.pl"
    file.write_text(f"{line}\n")
    settings = ProcessSettings(precompile="perl")
    assert command(str(file), settings) == [*words, f"-I{FOLDER}", "-MFastAGIPool::Zygote", str(file)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("#!/usr/bin/python3", ["/usr/bin/python3"]),
        ("#!/opt/venv/bin/python3.9 -u -O", ["/opt/venv/bin/python3.9", "-u -O"]),
        ("#!/usr/bin/env python3.11", ["python3.11"]),
        ("#!/usr/bin/env -S python3 -u -O", ["python3", "-u", "-O"]),
        ("#!/bin/sh", ["python3"]),
        ("import os", ["python3"]),
    ],
)
def test_python(tmp_path: Path, line: str, words: list[str]) -> None:
    """The script's own interpreter compiles it, with its switches as the kernel would pass them."""
    file = tmp_path / "a.py"
    file.write_text(f"{line}\n")
    settings = ProcessSettings(precompile="python")
    assert command(str(file), settings) == [*words, str(FOLDER / "python_zygote.py"), str(file)]


def test_interpreter_of_the_route(tmp_path: Path) -> None:
    """An interpreter that the route names wins; a missing script is the zygote's to complain of."""
    settings = ProcessSettings(precompile="perl", interpreter=["/opt/perl", "-CS"])
    words = command(str(tmp_path / "none.pl"), settings)
    assert words[:2] == ["/opt/perl", "-CS"]


# ---- a real one


@pytest.fixture
def spawner() -> Spawner:
    """Give a spawner."""
    return Spawner()


@pytest.fixture
def zygote(tmp_path: Path, spawner: Spawner) -> Iterator[ScriptZygote]:
    """Give a zygote of a script that says its arguments; end it."""
    file = write_script(tmp_path / "a.pl", "#!/usr/bin/perl\nprint join('|', @ARGV, $ENV{A});\nexit 5;\n")
    made = ScriptZygote(1, Recipe(str(file), "{}", 30.0), ProcessSettings(precompile="perl"), spawner)
    yield made
    made.kill()
    made.bury()


def hear(zygote: ScriptZygote) -> Said:
    """Wait for what it says next."""
    while True:
        assert select.select([zygote], [], [], LIMIT_S)[0]
        for said in zygote.heard():
            assert said is not None
            return said


def test_a_conversation(zygote: ScriptZygote) -> None:
    """It is ready, forks, and buries, and each answer belongs to the call that was asked for."""
    ready = hear(zygote)
    assert isinstance(ready, Ready)
    assert zygote.recipe.file in ready.files
    for ticket in (7, 8):
        streams = Streams()
        assert zygote.run(ticket, ["one two", "Zo\udceb"], {"A": str(ticket)}, streams)
        assert streams.theirs == []
        born = hear(zygote)
        assert isinstance(born, Born)
        assert born.ticket == ticket
        assert os.read(streams.ours[1], 100) == f"one two|Zo\udceb|{ticket}".encode(
            "utf-8", "surrogateescape"
        )
        pidfd = os.pidfd_open(born.pid)
        assert select.select([pidfd], [], [], LIMIT_S)[0]
        os.close(pidfd)
        zygote.reap(ticket, born.pid)
        assert hear(zygote) == Buried(ticket, 5 << 8)
        streams.close()


def test_what_cannot_be_said(zygote: ScriptZygote) -> None:
    """Arguments that do not fit, or that hold a NUL byte, are refused before anything is sent."""
    streams = Streams()
    for arguments in (["x" * 200_000], ["a\0b"]):
        with pytest.raises(SpawnError, match="arguments"):
            zygote.run(1, arguments, {}, streams)
    streams.close()


def test_one_that_has_died_says_so(tmp_path: Path, spawner: Spawner) -> None:
    """Whoever asks a zygote that has ended hears that it has forked nothing; why it ended is told."""
    file = write_script(tmp_path / "a.pl", "#!/usr/bin/perl\nBEGIN { print STDERR qq{no luck\\n}; exit 3 }\n")
    made = ScriptZygote(1, Recipe(str(file), "{}", 30.0), ProcessSettings(precompile="perl"), spawner)
    assert select.select([made.pidfd], [], [], LIMIT_S)[0]
    streams = Streams()
    assert not made.run(1, [], {}, streams)
    streams.close()
    assert made.hear_errors() == []
    assert made.bury() == "no luck"
