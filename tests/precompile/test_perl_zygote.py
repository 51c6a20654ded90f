"""The Perl zygote, in what is Perl's own: real ones, whose calls are compared with fresh runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest
from compiled import CALL, LIMIT_S, PERL, PERL_ZYGOTE, Call, Zygote, run_fresh, run_often, write_script

#: Long enough that Perl has not read all of it when the script is compiled.
LONG_DATA: Final = "".join(f"line {number} of the data\n" for number in range(2000))

#: Scripts whose every run must look the same, by what they are about.
SCRIPTS: Final = {
    "arguments": 'print join("|", map { unpack "H*", $_ } @ARGV), " $0\\n";',
    "environment": 'print map { "$_=$ENV{$_}\\n" } grep { !/^(_|SHLVL)$/ } sort keys %ENV;',
    "inc": "use POSIX; use Socket; use Asterisk::AGI;"
    ' print "@INC\\n"; print map { "$_ $INC{$_}\\n" } sort keys %INC;',
    "variables": 'print join ",", map { defined ? $_ : "undef" } $/, $\\, $,, $", $;, $|, $@, $?, $!+0, $_,'
    " $^W, $^F, $^H, ${^TAINT}, ${^UNICODE}, ${^GLOBAL_PHASE}, $., $&, $1, scalar caller;",
    "signals unset": 'print map { "$_=" . ($SIG{$_} // "undef") . "\\n" } sort keys %SIG;',
    "signals set": 'BEGIN { $SIG{CHLD} = "IGNORE"; $SIG{HUP} = sub { print "hup\\n" }; $| = 1 }'
    ' kill HUP => $$; print "$SIG{CHLD}\\n";',
    "child handler": 'BEGIN { $SIG{CHLD} = sub { 1 while wait > 0 } } print ref $SIG{CHLD}, "\\n";',
    "child handler by its other name": 'BEGIN { $SIG{CLD} = sub { wait } } print ref $SIG{CLD}, "\\n";',
    "data": f"print <DATA>;\n__DATA__\n{LONG_DATA}",
    "data behind end": f"my @lines = <DATA>; print scalar(@lines), $lines[-1];\n__END__\n{LONG_DATA}",
    "data of a package": "package Other; print <Other::DATA>;\n__DATA__\na\nb\n",
    "data in utf8": "use utf8; use open qw(:std :utf8); print length(<DATA>),"
    " join ',', PerlIO::get_layers(DATA);\n__DATA__\nkäse\n",
    "file opened at the beginning": 'my $line; BEGIN { open FILE, "<", $0; $line = <FILE> }'
    " print $line, <FILE>;\n# end",
    "exit code": "exit 3;",
    "exit in a block": "END { print 'end' } if (1) { exit 7 }",
    "die": 'die "no more\\n";',
    "die at a line": "\n\nsub deep { die 'no more' } deep();",
    "die with errno": 'open my $file, "<", "/nowhere" or die "cannot: $!";',
    "die handler": '$SIG{__DIE__} = sub { print "handled: @_" }; eval { die "a\\n" }; die "b\\n";',
    "exit while it is compiled": "INIT { print 'init' } BEGIN { exit 0 } print 'main';",
    "end": 'END { print "end $?\\n"; $? = 9 } exit 2;',
    "init": 'INIT { print "init\\n" } BEGIN { print "begin\\n" } print "main\\n"; CHECK { print "check\\n" }',
    "printed when compiled, flushed": "BEGIN { $| = 1; print 'x' x 10_000 } print 'y';",
    "killed": "kill TERM => $$; sleep 10;",
    "not killed by SIGPIPE's default": 'print $SIG{PIPE} // "default";',
    "warnings": '#!/usr/bin/perl -w\nmy $x; print "a" . $x;\nwarn "here"; my @a = (1); print $a[5] + 1;',
    "warning about input": 'my $line = <STDIN>; warn "after $line";',
    "dialogue": '$| = 1; while (<STDIN>) { chomp; print "200 result=<$_>\\n" }'
    ' print eof(STDIN) ? "eof" : "more";',
    "agi": "use Asterisk::AGI; my $agi = Asterisk::AGI->new; my %in = $agi->ReadParse;"
    ' print STDERR map { "$_=$in{$_}\\n" } sort keys %in; print STDERR $agi->get_variable("X");',
    "layers": "use open qw(:std :encoding(UTF-8)); my $line = <STDIN>; print length($line), $line;"
    " print join ',', PerlIO::get_layers(STDOUT), PerlIO::get_layers(STDIN);",
    "binmode": "BEGIN { binmode STDOUT, ':crlf'; $| = 1 } print qq(a\\n);",
    "standard handles copied": 'BEGIN { open KEPT, ">&", *STDOUT; open STDOUT, ">", "/dev/null" }'
    ' print "lost"; print KEPT "kept";',
    "errors sent to output": 'BEGIN { open STDERR, ">&", *STDOUT; $| = 1 } print "a\\n"; warn "b\\n";',
    "nowhere stays nowhere": 'BEGIN { open NULL, ">", "/dev/null" } print NULL "a"; print "b";',
    "system": 'print system("exit 3") >> 8, " ", `echo out`, $? >> 8, " ", system("false"), " $?";',
    "wait for a child": 'my $pid = fork; if (!$pid) { exit 4 } print waitpid($pid, 0) == $pid, " ", $? >> 8;',
    "no child to wait for": "print wait, ' ', $!+0;",
    "exec": 'exec "echo", "executed";',
    "alarm": 'local $SIG{ALRM} = sub { die "late\\n" }; eval { alarm 1; sleep 9 }; print $@;',
    "descriptors": 'opendir my $open, "/proc/self/fd"; print join ",", grep { readlink "/proc/self/fd/$_" }'
    " sort grep { /\\d/ } readdir $open; system q(ls /proc/self/fd);",
    "directory": 'use Cwd; use FindBin; print getcwd, " $FindBin::Bin $FindBin::Script ",'
    ' __FILE__, " ", __LINE__;',
    "local module": "use FindBin; use lib $FindBin::Bin; use Local;"
    ' print Local::name(), " $INC{q(Local.pm)}";',
    "seed asked for": "srand 42; print int rand 1e9;",
    "buffered output": "print 'a'; print STDERR 'b'; print 'c';",
    "string eval": 'my $x = eval "1 +"; print "no: $@"; print eval "__PACKAGE__ . __LINE__";',
    "destructor at the end": "package Thing; sub DESTROY { print 'gone' }"
    " package main; our $thing = bless {}, 'Thing';",
    "formats": "our $v = 3; format STDOUT =\n@<<<\n$v\n.\nwrite;",
}


def _script(directory: Path, text: str) -> Path:
    modules = {"Local.pm": "package Local; sub name { 'local' } 1;\n"}
    return write_script(directory / "script.agi", text, modules)


@pytest.mark.parametrize("about", SCRIPTS)
def test_a_call_looks_like_a_fresh_run(about: str, tmp_path: Path) -> None:
    """Output, errors and exit status of each call are those of a fresh run."""
    fresh = [PERL, "-w"] if SCRIPTS[about].startswith("#!/usr/bin/perl -w") else [PERL]
    script = _script(tmp_path, SCRIPTS[about])
    assert run_often(PERL_ZYGOTE, script, CALL) == [run_fresh(fresh, script, CALL)] * 6


@pytest.mark.parametrize("switch", ["-T", "-CSDA", "-n", "-Mstrict", "-l"])
def test_switches_of_the_command_line_hold(switch: str, tmp_path: Path) -> None:
    """Perl's own switches, taint mode among them, do the same to a call as to a fresh run."""
    script = _script(
        tmp_path,
        'no strict; $x = 1; print join("|", map { length } @ARGV), "\\n"; for my $v ($ARGV[0], $ENV{ODD}) {'
        ' eval { local $ENV{PATH} = "/bin"; delete @ENV{qw(IFS CDPATH ENV BASH_ENV)};'
        ' open my $f, ">", "/nowhere/$v" }; print $@ } @ARGV = ();',
    )
    call = Call(arguments=("ä b".encode(), b"", b"c"), variables={b"ODD": b"a=b \xff\n"}, speech=CALL.speech)
    expected = run_fresh([PERL, switch], script, call)
    assert run_often([PERL, switch, *PERL_ZYGOTE[1:]], script, call) == [expected] * 6


def test_nobody_else_starts_it(tmp_path: Path) -> None:
    """Without a socket it says who should have started it."""
    script = _script(tmp_path, "print 1;")
    environment = {name: value for name, value in os.environ.items() if name != "FASTAGI_POOL_ZYGOTE"}
    done = subprocess.run([*PERL_ZYGOTE, str(script)], capture_output=True, env=environment, timeout=LIMIT_S)
    assert b"only fastagi_pool starts it" in done.stderr
    assert (done.returncode != 0, done.stdout) == (True, b"")


def test_each_call_begins_now(tmp_path: Path) -> None:
    """$^T is the time of the call, whatever it was when the script was compiled."""
    script = _script(tmp_path, "BEGIN { $^T = 5 } print $^T;")
    with Zygote([*PERL_ZYGOTE, str(script)], tmp_path) as zygote:
        for _ in range(3):
            assert int(zygote.run(CALL).output) > 1_000_000_000


def test_long_requests_arrive_whole(tmp_path: Path) -> None:
    """Arguments and variables as long as a datagram may be are the script's."""
    script = _script(tmp_path, 'print length $ARGV[0], " ", length $ENV{LONG};')
    with Zygote([*PERL_ZYGOTE, str(script)], tmp_path) as zygote:
        call = Call(arguments=(b"a" * 99_000,), variables={b"LONG": b"b" * 99_000})
        assert zygote.run(call).output == "99000 99000"
