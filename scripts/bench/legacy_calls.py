"""Legacy scripts: what it saves to compile them once, and what a server in front of another one costs.

Laws:
    * Spawned and precompiled calls are of the same file, and take turns; see :func:`load.interleaved`.
    * Processor time is that of all processes of the pool, those that have ended included, and of no other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from bench import HELLO, Bench
from figures import Figure, Section, judged, not_measured
from load import Load, LoadResult, interleaved, rate, ratios
from service import PoolService
from speed import speeds, spread

#: Calls at the same time: a few for each core, so that processes do not wait for one another's memory.
_AT_ONCE: Final = 8
_WARM_UP_S: Final = 0.5
#: A round runs eight kinds of calls; more rounds would take longer than all of this section may.
_MOST_ROUNDS: Final = 6
#: Lines of the large script: those of the largest scripts of a dialer.
_LARGE_LINES: Final = 9_000
#: Processor time is the median of some batches, as whatever else runs makes a batch dearer.
_CPU_BATCHES: Final = 5
#: Long enough for caches and clocks to be as under load: short bursts cost a fifth more.
_CPU_CALLS: Final = 1_000
_MOST_CPU_MS: Final = 5.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")

_PERL_HEAD: Final = """\
#!/usr/bin/perl
use strict;
use warnings;

$| = 1;
my (%AGI, %CONFIG, %SEEN, @LOG);
"""
_PERL_MAIN: Final = """\
while (my $line = <STDIN>) {
    chomp $line;
    last unless length $line;
    $AGI{$1} = $2 if $line =~ /^agi_(\\w+)\\:\\s+(.*)$/;
}

sub ask {
    my ($command) = @_;
    print "$command\\n";
    my $reply = <STDIN>;
    return undef unless defined $reply;
    return $reply =~ /^200 result=(-?[\\d*#]+)(?: \\((.*)\\))?/ ? ($2 // $1) : undef;
}

ask('ANSWER');
my %value;
foreach my $name ('CALLERID(num)', 'CAMPAIGN', 'LEAD') {
    $value{$name} = ask("GET VARIABLE $name");
}
exit 0;
"""
#: One of the several hundred subroutines of the large script; ``%(n)d`` is its number.
_PERL_SUB: Final = """\

# Looks at the campaign's setting %(n)d and at the number that was dialled.
sub check_setting_%(n)d {
    my ($campaign, $number, $options) = @_;
    my %%limit = (
        calls => %(n)d, lines => %(n)d + 10, drop => '3.%(n)d', prefix => '9%(n)d',
        status => ['NEW', 'CALLBK', 'DROP', 'B', 'NA'], hours => { 'open' => 900, 'close' => 2100 },
    );
    my @found;
    return 0 unless defined $campaign && length $campaign;
    $number =~ s/\\D//g if defined $number;
    if (defined $number && $number =~ /^(9?)(1?)(\\d{3})(\\d{7})$/) {
        my ($prefix, $trunk, $area, $rest) = ($1, $2, $3, $4);
        push @found, "$area-$rest" if $area ne '800' && $rest !~ /^555%(n)d/;
        $SEEN{$area}{"s%(n)d"} += 1;
    }
    elsif (($options->{strict} // '') eq 'Y') {
        push @LOG, sprintf('%%s: setting %(n)d refuses %%s', $campaign, $number // 'nothing');
        return -1;
    }
    foreach my $status (@{ $limit{status} }) {
        next if $status eq 'NEW';
        my $key = join('|', $campaign, $status, "setting%(n)d");
        $CONFIG{$key} ||= { tries => 0, last => '', weight => length($key) %% 7 };
        if ($CONFIG{$key}{tries} > $limit{calls}) {
            $CONFIG{$key}{last} = $found[-1] || '';
            last;
        }
    }
    my $statement = "UPDATE vicidial_campaign_stats SET setting_%(n)d='$limit{drop}' "
        . "WHERE campaign_id='$campaign' AND calls_today > $limit{lines};";
    return scalar(@found) ? $statement : '';
}
"""
_PYTHON: Final = f"""\
#!{sys.executable}
import re
import sys

env = {{}}
for line in iter(sys.stdin.readline, "\\n"):
    name, _, value = line.partition(":")
    env[name] = value.strip()


def ask(command):
    print(command, flush=True)
    found = re.match(r"200 result=(-?[\\d*#]*)(?: \\((.*)\\))?", sys.stdin.readline())
    return found and (found[2] or found[1])


ask("ANSWER")
for name in ("CALLERID(num)", "CAMPAIGN", "LEAD"):
    ask("GET VARIABLE " + name)
"""


@dataclass(frozen=True, slots=True)
class _Script:
    """A script to be measured.

    Attributes:
        file: Its name.
        language: In which it is precompiled.
        what: What it is, for the page.
        least: How many times the rate of spawned calls the precompiled ones must reach.
    """

    file: str
    language: str
    what: str
    least: float

    @property
    def spawned(self) -> str:
        """What its spawned calls are called."""
        return f"{self.what}, spawned"

    @property
    def precompiled(self) -> str:
        """What its precompiled calls are called."""
        return f"{self.what}, precompiled"


def _lines(text: str) -> int:
    """Count the lines of a program."""
    return text.count("\n")


_LARGE: Final = _Script("large.agi", "perl", f"Perl, {_LARGE_LINES:,} lines", 10.0)
_SMALL: Final = _Script("small.agi", "perl", f"Perl, {_lines(_PERL_HEAD + _PERL_MAIN)} lines", 2.0)
_SMALL_PYTHON: Final = _Script("small-python.agi", "python", f"Python, {_lines(_PYTHON)} lines", 2.0)
_SCRIPTS: Final = (_LARGE, _SMALL, _SMALL_PYTHON)
_DIRECT: Final = "hello, called directly"
_FORWARDED: Final = "hello, through a pool in front"


def legacy(bench: Bench) -> Section:
    """Compare precompiled scripts with spawned ones, count processor time, and forward calls."""
    _write_scripts(bench.folder)
    with ExitStack() as stack:
        pool = stack.enter_context(bench.pool(*_routes(bench.folder), HELLO))
        front = stack.enter_context(bench.pool({"script": "hello", "upstream": pool.address}))
        runs = _runs(bench, pool, front)
        for run in runs.values():
            run(_WARM_UP_S)
        rounds = min(bench.scale.rounds, _MOST_ROUNDS)
        results = interleaved(list(runs), rounds, lambda name: runs[name](bench.scale.run_s))
        cpu = _cpu_figure(bench, pool)
    figures = (*(_ratio(results, script) for script in _SCRIPTS), cpu, _lost(results))
    title = (
        "Scripts that answer and read three variables, each call a process of its own; "
        f"{_AT_ONCE} calls at a time, 2 workers, access log on."
    )
    return Section("legacy", title, figures, speeds(results))


def _runs(bench: Bench, pool: PoolService, front: PoolService) -> Mapping[str, Callable[[float], LoadResult]]:
    """Return what is measured, by name."""
    scripts = {
        name: f"{way}/{script.file}"
        for script in _SCRIPTS
        for way, name in (("spawned", script.spawned), ("precompiled", script.precompiled))
    }
    urls = {name: (pool.address, script) for name, script in scripts.items()}
    urls |= {_DIRECT: (pool.address, "hello"), _FORWARDED: (front.address, "hello")}

    def runner(address: str, script: str) -> Callable[[float], LoadResult]:
        return lambda length_s: bench.load.run(
            address, Load(script=script, at_once=_AT_ONCE, length_s=length_s)
        )

    return {name: runner(*url) for name, url in urls.items()}


def _ratio(results: Mapping[str, list[LoadResult]], script: _Script) -> Figure:
    what, criterion = f"rate of {script.precompiled}, as a ratio to spawned", f"at least {script.least:g}"
    if not all(map(rate, results[script.spawned])):
        return not_measured(what, "in a round no spawned call was served", criterion)
    found = ratios(results[script.precompiled], results[script.spawned], rate)
    return judged(what, spread(found), criterion, median(found) >= script.least)


def _lost(results: Mapping[str, list[LoadResult]]) -> Figure:
    lost = sum(result.lost for runs in results.values() for result in runs)
    calls = sum(result.calls for runs in results.values() for result in runs)
    return judged("calls bad, refused or unfinished", f"{lost:,} of {calls:,}", "0", lost == 0)


def _cpu_figure(bench: Bench, pool: PoolService) -> Figure:
    """Measure what a precompiled call of the large script takes of the processors, in all of the pool."""
    load = Load(script=f"precompiled/{_LARGE.file}", at_once=_AT_ONCE, calls=_CPU_CALLS)
    found_ms = []
    for _ in range(_CPU_BATCHES):
        before_s = _cpu_s(pool)
        good = bench.load.run(pool.address, load).good
        found_ms.append(1000 * (_cpu_s(pool) - before_s) / max(good, 1))
    what = f"processor time of a call of {_LARGE.precompiled}, all processes of the pool, in ms"
    return judged(what, spread(found_ms), f"at most {_MOST_CPU_MS:g}", median(found_ms) <= _MOST_CPU_MS)


def _cpu_s(pool: PoolService) -> float:
    """Return the processor time of a pool's processes and of those children of theirs that were waited for.

    Source: proc(5), /proc/pid/stat: utime, stime, cutime, cstime.
    """
    ticks = 0
    for process in pool.processes():
        try:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # It has ended meanwhile, and its parent has its time.
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS_PER_S


def _routes(folder: Path) -> list[dict[str, object]]:
    routes: list[dict[str, object]] = []
    for script in _SCRIPTS:
        command = str(folder / script.file)
        compiled = {"command": command, "precompile": script.language}
        routes.append({"script": f"spawned/{script.file}", "command": command})
        routes.append({"script": f"precompiled/{script.file}", **compiled})
    return routes


def _write_scripts(folder: Path) -> None:
    texts = {_LARGE: _large_script(), _SMALL: _PERL_HEAD + _PERL_MAIN, _SMALL_PYTHON: _PYTHON}
    for script, text in texts.items():
        path = folder / script.file
        path.write_text(text)
        path.chmod(0o755)


def _large_script() -> str:
    """Write a Perl program of several hundred subroutines, none of which is called."""
    around = _lines(_PERL_HEAD + _PERL_MAIN)
    count = round((_LARGE_LINES - around) / _lines(_PERL_SUB))
    return _PERL_HEAD + "".join(_PERL_SUB % {"n": number} for number in range(count)) + _PERL_MAIN
