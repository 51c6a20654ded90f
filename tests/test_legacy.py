"""fastagi_pool.legacy: what a script of Asterisk's own kind is given, to the byte, and what it may say."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastagi_pool.errors import LimitExceeded, ScriptFailed, ScriptNotFound
from fastagi_pool.launching import ProcessSettings
from fastagi_pool.legacy import (
    AST_VARIABLES,
    LONGEST_ERROR_BYTES,
    LONGEST_LINE_BYTES,
    CommandLines,
    CommandSettings,
    ErrorLines,
    ending_fault,
    environment_lines,
    placeholders,
    variables,
    wants_no_signal,
    with_asterisk_folders,
    without_hangup,
)
from fastagi_pool.protocol import AgiConnection, Request

ENVIRONMENT = (
    b"agi_network: yes\n"
    b"agi_network_script: ivr/menu.agi?lang=de\n"
    b"agi_request: agi://10.0.0.1:4577/ivr/menu.agi?lang=de\n"
    b"agi_channel: SIP/trunk-00000001\n"
    b"agi_callerid: 100\n"
    b"agi_calleridname: J\xfcrgen \xc3\xa4\n"
    b"agi_enhanced: 0.0\n"
    b"agi_arg_1: first\n"
    b"agi_arg_2: \n"
    b"\n"
)


def asked(data: bytes = ENVIRONMENT) -> Request:
    """Return the request that these bytes are, read as in a session."""
    connection = AgiConnection()
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, Request)
    return request


# ---- where the script is


@pytest.mark.parametrize(
    ("template", "captures", "path"),
    [
        ("/agi/{script}", {}, "/agi/ivr/menu.agi"),
        ("/agi/{tenant}/{1}.pl", {"tenant": "a", "1": "b"}, "/agi/a/b.pl"),
        ("/agi/menu.agi", {}, "/agi/menu.agi"),
        ("//agi//{script}", {}, "/agi/ivr/menu.agi"),
        ("/agi/{1}", {"1": "{script}"}, "/agi/{script}"),
        ("/agi/{1}/x", {"1": ""}, "/agi/x"),
    ],
)
def test_a_template_is_filled_once(template: str, captures: Mapping[str, str], path: str) -> None:
    """Names become what was caught, braces in that mean nothing, and a path is written in one way only."""
    assert CommandSettings(template, "/agi").path("ivr/menu.agi", captures) == path


def test_a_name_that_was_not_caught() -> None:
    """A part of the pattern that took no part in the match names no file."""
    with pytest.raises(ScriptNotFound, match=r"/agi/\{name\}: the route's pattern has caught no \{name\}"):
        CommandSettings("/agi/{name}", "/agi").path("x", {"1": "y"})


@pytest.mark.parametrize(
    ("template", "fixed_script", "file"),
    [
        ("/agi//menu.agi", None, "/agi/menu.agi"),
        ("/agi/{script}", None, ""),
        ("/agi/{script}", "menu.agi", "/agi/menu.agi"),
        ("/agi/{1}/{script}", "menu.agi", ""),
    ],
)
def test_the_file_of_every_call(template: str, fixed_script: str | None, file: str) -> None:
    """What can be prepared before the first call is known by the path that the calls will say."""
    settings = CommandSettings(template, "/agi", fixed_script=fixed_script)
    assert settings.fixed_file == file
    if file:
        assert settings.path(fixed_script or "any", {}) == file


def test_placeholders() -> None:
    """All names of a template are found, in order."""
    assert placeholders("/agi/{tenant}/{1}/{script}") == ("tenant", "1", "script")


@pytest.mark.parametrize("template", ["/agi/{", "/agi/}", "/agi/{}", "/agi/{a b}", "/agi/{{script}}"])
def test_a_brace_without_a_meaning(template: str) -> None:
    """A brace that is part of no name is a mistake, not a file's name."""
    with pytest.raises(ValueError, match="brace"):
        placeholders(template)


# ---- what it is given


def test_environment_lines() -> None:
    """Bytes and order are kept, the network is not spoken of, and the request is the script's name."""
    assert environment_lines(asked(), "ivr/menu.agi") == (
        b"agi_request: ivr/menu.agi\n"
        b"agi_channel: SIP/trunk-00000001\n"
        b"agi_callerid: 100\n"
        b"agi_calleridname: J\xfcrgen \xc3\xa4\n"
        b"agi_enhanced: 0.0\n"
        b"agi_arg_1: first\n"
        b"agi_arg_2: \n"
        b"\n"
    )


@pytest.mark.parametrize(("arguments", "lines"), [((), b""), (("x",), b"agi_arg_1: x\n")])
def test_fixed_arguments(arguments: tuple[str, ...], lines: bytes) -> None:
    """The arguments of a route stand in the place of the call's."""
    said = environment_lines(asked(), "ivr/menu.agi", arguments)
    assert said.endswith(b"agi_enhanced: 0.0\n" + lines + b"\n")
    assert "AGI_ARG_2" not in variables(asked(), "ivr/menu.agi", arguments)


def test_variables() -> None:
    """Each line that is kept is a variable too, with the same value."""
    assert variables(asked(), "ivr/menu.agi") == {
        "AGI_REQUEST": "ivr/menu.agi",
        "AGI_CHANNEL": "SIP/trunk-00000001",
        "AGI_CALLERID": "100",
        "AGI_CALLERIDNAME": "J\udcfcrgen ä",
        "AGI_ENHANCED": "0.0",
        "AGI_ARG_1": "first",
        "AGI_ARG_2": "",
    }


@pytest.mark.parametrize("name", ["agi_a=b", "agi_", "agi_a b", "LD_PRELOAD", "agi_\u00e4"])
def test_names_that_are_no_variables(name: str) -> None:
    """Nothing that came over the network becomes a variable of another meaning."""
    assert variables(Request({name: "x"}), "a") == {}


def test_a_value_that_cannot_be_in_an_environment() -> None:
    """A value with NUL is left out: no process can be started with it."""
    assert variables(Request({"agi_x": "a\0b", "agi_y": "z"}), "a") == {"AGI_Y": "z"}


def test_asterisks_folders() -> None:
    """A script learns Asterisk's folders, but what the route says of them holds."""
    process = with_asterisk_folders(ProcessSettings(environment={"AST_AGI_DIR": "/agi", "X": "1"}, cpu_s=3))
    assert process.environment == {**AST_VARIABLES, "AST_AGI_DIR": "/agi", "X": "1"}
    assert process.cpu_s == 3
    assert AST_VARIABLES["AST_AGI_DIR"] == "/usr/share/asterisk/agi-bin"


@pytest.mark.parametrize(
    ("value", "spared"),
    [("no", True), ("NO", True), ("off", True), ("0", True), ("yes", False), ("", False), (None, False)],
)
def test_agisighup(value: str | None, spared: bool) -> None:
    """Only what Asterisk takes for a no spares a script its signal."""
    assert wants_no_signal(value) is spared


# ---- what it says


@given(st.lists(st.binary(max_size=5)), st.binary(max_size=5).filter(lambda tail: b"\n" not in tail))
def test_lines_in_any_pieces(pieces: list[bytes], tail: bytes) -> None:
    """However the pipe cuts what a script says, its lines come out whole, in order and unchanged."""
    lines = CommandLines(0)
    found = []
    for piece in [*pieces, tail]:
        lines.feed(piece)
        while line := lines.next_line():
            found.append(line)
    last = lines.last_line()
    assert all(
        line.endswith(b"\n") and line.count(b"\n") == 1 for line in [*found, *([last] if last else [])]
    )
    said = b"".join([*pieces, tail])
    assert b"".join(found) + last == said + (b"\n" if last else b"")


def test_half_a_line_at_the_end() -> None:
    """What a script has not ended at its end is a command all the same, once."""
    lines = CommandLines(0)
    lines.feed(b"ANSWER\nHANG")
    assert (lines.next_line(), lines.next_line()) == (b"ANSWER\n", b"")
    assert (lines.last_line(), lines.last_line()) == (b"HANG\n", b"")


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_that_is_too_long(end: bytes) -> None:
    """A line that no Asterisk could read ends the script, whether it has an end or not."""
    lines = CommandLines(0)
    lines.feed(b"x" * (LONGEST_LINE_BYTES - 1) + b"\n")
    assert len(lines.next_line()) == LONGEST_LINE_BYTES
    lines.feed(b"x" * LONGEST_LINE_BYTES)
    assert lines.next_line() == b""
    lines.feed(b"x" + end)
    with pytest.raises(LimitExceeded, match="a line of more than 65536 bytes"):
        lines.next_line()


def test_too_much_in_all() -> None:
    """What a script says is counted from its start, whatever has been read of it."""
    lines = CommandLines(10)
    lines.feed(b"NOOP\nNOOP\n")
    assert lines.next_line() == b"NOOP\n"
    with pytest.raises(
        LimitExceeded, match=r"more than 10 bytes on its standard output \(process.max_output"
    ):
        lines.feed(b"x")


def test_error_lines() -> None:
    """Whole lines come at once, half ones with their rest or at the end; empty ones are no news."""
    errors = ErrorLines(0)
    assert errors.feed(b"one\r\n\ntw") == ["one"]
    assert errors.last == "tw"
    assert errors.feed(b"o\n \nthr\xffee") == ["two"]
    assert errors.end() == ["thr\\xffee"]
    assert errors.last == "thr\\xffee"


def test_an_error_line_without_an_end() -> None:
    """What never ends is told in pieces, so that no memory is needed for it."""
    errors = ErrorLines(0)
    pieces = errors.feed(b"x" * (2 * LONGEST_ERROR_BYTES + 1))
    assert pieces == ["x" * LONGEST_ERROR_BYTES] * 2
    assert errors.feed(b"y" * LONGEST_ERROR_BYTES) == ["x" + "y" * (LONGEST_ERROR_BYTES - 1)]
    assert errors.end() == ["y"]


def test_too_many_errors() -> None:
    """Of a flood the beginning is kept, and how much was not."""
    errors = ErrorLines(300)
    assert errors.feed(b"x" * 200 + b"\n" + b"y" * 101) == ["x" * 200]
    assert errors.feed(b"z\n") == ["y" * 100]
    assert errors.feed(b"more\n") == []
    dropped = "7 more bytes were dropped: the limit is 300, and a line counts for 100 at least"
    assert errors.end() == [f"({dropped})"]


def test_too_many_lines_of_errors() -> None:
    """A flood of tiny lines does not become a flood of the log, which has much more to say of each."""
    errors = ErrorLines(1_000)
    assert errors.feed(b"x\n" * 30_000) == ["x"] * 10
    assert errors.feed(b"\nx\n" * 30_000) == []
    assert errors.last == "x"
    assert len(errors.end()) == 1


def test_errors_up_to_the_limit() -> None:
    """Who keeps the limit loses nothing and is not blamed."""
    errors = ErrorLines(300)
    assert errors.feed(b"x" * 200 + b"\n\n123\n") == ["x" * 200, "123"]
    assert errors.end() == []


# ---- how it ended


def test_a_good_end() -> None:
    """The exit code 0 is no fault."""
    assert ending_fault(0, 1) is None


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (3, ScriptFailed, "exit code 3"),
        (255, ScriptFailed, "exit code 255"),
        (-signal.SIGSEGV, ScriptFailed, "killed by SIGSEGV"),
        (-signal.SIGKILL, ScriptFailed, "killed by SIGKILL"),
        (-40, ScriptFailed, "killed by signal 40"),
        (-signal.SIGXCPU, LimitExceeded, "more than 1.5 s of processor time (process.cpu_time of the route)"),
    ],
)
def test_a_bad_end(code: int, kind: type[Exception], said: str) -> None:
    """A code and a signal are told by name; used up processor time is a limit, not a crash."""
    fault = ending_fault(code, 1.5)
    assert type(fault) is kind
    assert str(fault) == said


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (b"200 result=0\n", b"200 result=0\n"),
        (b"HANGUP\n511 Command Not Permitted\n", b"511 Command Not Permitted\n"),
        (b"200 result=-1\nHANGUP\nHANGUP\n", b"200 result=-1\n"),
        (b"100 result=0 Trying...\nHANGUP\n200 result=0\n", b"100 result=0 Trying...\n200 result=0\n"),
        (b"200 result=1 (a\nHANGUP\nb)\nHANGUP\n", b"200 result=1 (a\nHANGUP\nb)\n"),
        (b"200 result=1 (xHANGUP\n)\n", b"200 result=1 (xHANGUP\n)\n"),
        (b"HANGUP\n", b""),
    ],
)
def test_a_script_reads_no_hangup(said: bytes, left: bytes) -> None:
    """HANGUP around a reply is not for a local script; in a value it is text like any other."""
    assert without_hangup(said) == left
