"""fastagi_pool.testing: Asterisk's side of a call, against servers that behave well and badly."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import BinaryIO

import pytest

from fastagi_pool.protocol import AgiConnection, Request
from fastagi_pool.testing import (
    DEFAULT_PORT,
    AgiStatus,
    Caller,
    CallResult,
    answer,
    environment,
    play_call,
    split_words,
)

#: Far longer than anything here takes; a test that needs it has failed.
PATIENCE_S = 20.0

Serve = Callable[[socket.socket, BinaryIO], object]


def request(text: str) -> Request:
    """Read an environment as the server does."""
    agi = AgiConnection()
    agi.receive_data(text.encode("utf-8", "surrogateescape"))
    found = agi.next_event()
    assert isinstance(found, Request)
    return found


class Server:
    """Accepts one connection at a time and lets a function serve it in a thread.

    Attributes:
        url: Leads to it.
        environment: What the last call sent before its first command.
    """

    def __init__(self, listener: socket.socket, threads: ThreadPoolExecutor) -> None:
        self.url = f"agi://127.0.0.1:{listener.getsockname()[1]}/hello"
        self.environment = ""
        self._listener = listener
        self._threads = threads

    def serve(self, how: Serve) -> Future[str]:
        """Serve the next connection; the future gives all that came behind the environment."""
        return self._threads.submit(self._serve, how)

    def _serve(self, how: Serve) -> str:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as lines:
            connection.settimeout(PATIENCE_S)
            header = list(iter(lines.readline, b"\n"))
            self.environment = b"".join(header).decode()
            how(connection, lines)
            try:
                connection.shutdown(socket.SHUT_WR)
                return lines.read().decode()
            except OSError:
                return ""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on a free port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        listener.settimeout(PATIENCE_S)
        yield Server(listener, threads)


def ask(*commands: str, heard: list[str] | None = None) -> Serve:
    """Give a server that sends commands and reads, and may note, the reply to each."""

    def how(connection: socket.socket, lines: BinaryIO) -> None:
        for command in commands:
            connection.sendall(f"{command}\n".encode("utf-8", "surrogateescape"))
            reply = lines.readline().decode("utf-8", "surrogateescape")
            if heard is not None:
                heard.append(reply)

    return how


# ---- whole calls


def test_a_call_that_goes_well(server: Server) -> None:
    """Commands are answered one by one, the server's end is a success, and HANGUP is the last word."""
    rest = server.serve(ask("ANSWER", 'SET VARIABLE RESULT "all well"', "GET VARIABLE RESULT"))
    result = play_call(server.url, timeout_s=PATIENCE_S)
    assert result == CallResult(
        status=AgiStatus.SUCCESS,
        dialogue=[
            ("S", "ANSWER"),
            ("A", "200 result=0"),
            ("S", 'SET VARIABLE RESULT "all well"'),
            ("A", "200 result=1"),
            ("S", "GET VARIABLE RESULT"),
            ("A", "200 result=1 (all well)"),
            ("A", "HANGUP"),
        ],
        variables={"RESULT": "all well"},
        connected=True,
    )
    assert result.commands == ["ANSWER", 'SET VARIABLE RESULT "all well"', "GET VARIABLE RESULT"]
    assert rest.result(PATIENCE_S) == "HANGUP\n"


def test_each_line_is_shown_as_it_is_said(server: Server) -> None:
    """Whoever watches a call sees its lines in their order."""
    server.serve(ask("NOOP"))
    seen: list[tuple[str, str]] = []
    result = play_call(server.url, timeout_s=PATIENCE_S, on_line=lambda who, line: seen.append((who, line)))
    assert seen == result.dialogue == [("S", "NOOP"), ("A", "200 result=0"), ("A", "HANGUP")]


def test_the_server_is_told_of_the_call(server: Server) -> None:
    """URL, arguments, caller and variables of the test reach the script."""
    heard: list[str] = []
    server.serve(ask("GET VARIABLE X", heard=heard))
    caller = Caller(number="200")
    play_call(server.url, ["a", "b"], caller, {"X": "given"}, PATIENCE_S)
    assert heard == ["200 result=1 (given)\n"]
    assert server.environment + "\n" == environment(server.url, ["a", "b"], caller)


def test_the_givens_are_not_changed(server: Server) -> None:
    """What the script sets is in the result, not in the caller's mapping."""
    given = {"X": "before"}
    server.serve(ask("SET VARIABLE X after"))
    result = play_call(server.url, variables=given, timeout_s=PATIENCE_S)
    assert (given, result.variables) == ({"X": "before"}, {"X": "after"})


@pytest.mark.parametrize("line", ["failure", "FAILURE", "Failures are bad"])
def test_a_failure_line(server: Server, line: str) -> None:
    """A line that begins with failure, in any case, is AGISTATUS=FAILURE and ends the call."""
    rest = server.serve(lambda connection, lines: connection.sendall(f"{line}\nNOOP\n".encode()))
    result = play_call(server.url, timeout_s=PATIENCE_S)
    assert (result.status, result.reason) == (AgiStatus.FAILURE, "the server said so")
    assert result.commands == [line]
    assert rest.result(PATIENCE_S) == "HANGUP\n"


def test_a_server_that_crashes_is_a_success(server: Server) -> None:
    """A server that closes or resets without a word cannot be told from one that did its work."""

    def reset(connection: socket.socket, lines: BinaryIO) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        lines.close()
        connection.close()

    for how in (ask(), reset):
        server.serve(how)
        result = play_call(server.url, timeout_s=PATIENCE_S)
        assert (result.status, result.reason, result.connected) == (AgiStatus.SUCCESS, "", True)
        assert result.commands == []


def test_the_last_command_needs_no_line_end(server: Server) -> None:
    """A command that the server's end cuts off before its line end is run all the same."""
    server.serve(lambda connection, lines: connection.sendall(b"SET VARIABLE X 1"))
    assert play_call(server.url, timeout_s=PATIENCE_S).variables == {"X": "1"}


def test_no_connection() -> None:
    """Where nobody listens, the call fails as it would in the dialplan, and says why."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        result = play_call(f"agi://127.0.0.1:{holder.getsockname()[1]}/x")
    assert (result.status, result.connected) == (AgiStatus.FAILURE, False)
    assert result.reason.startswith("no connection: ")
    assert result.dialogue == []


def test_a_silent_server(server: Server) -> None:
    """Where Asterisk would wait for ever, the test fails after its time."""
    rest = server.serve(lambda connection, lines: lines.readline())
    result = play_call(server.url, timeout_s=0.05)
    assert (result.status, result.connected) == (AgiStatus.FAILURE, True)
    assert result.reason == "the server was silent for 0.05 s; Asterisk would go on waiting"
    assert rest.result(PATIENCE_S) == ""


def test_foreign_bytes(server: Server) -> None:
    """Bytes that are no UTF-8 come back as they were set."""
    heard: list[str] = []
    server.serve(ask("SET VARIABLE X J\udcfcrgen", "GET VARIABLE X", heard=heard))
    play_call(server.url, timeout_s=PATIENCE_S)
    assert heard == ["200 result=1\n", "200 result=1 (J\udcfcrgen)\n"]


# ---- the environment


@pytest.mark.parametrize(
    ("url", "script"),
    [
        ("agi://127.0.0.1:4577/hello", "hello"),
        ("agi://127.0.0.1/path/to/script?did=101&x=a%20b", "path/to/script?did=101&x=a%20b"),
        ("AGI://127.0.0.1:4577/Up?Case#frag", "Up?Case#frag"),
        ("agi://[::1]:4577/ipv6", "ipv6"),
        ("agi://127.0.0.1:4577//twice", "/twice"),
    ],
)
def test_the_script_in_the_environment(url: str, script: str) -> None:
    """What stands behind the host's slash is the script, raw, as a real Asterisk sends it."""
    found = request(environment(url))
    assert (found.environment["agi_network_script"], found.environment["agi_request"]) == (script, url)


@pytest.mark.parametrize("url", ["agi://127.0.0.1:4577", "agi://127.0.0.1:4577/"])
def test_no_script_in_the_environment(url: str) -> None:
    """Without a path Asterisk sends no agi_network_script line."""
    assert "agi_network_script" not in request(environment(url)).environment


def test_the_environment_is_asterisks() -> None:
    """The names come in Asterisk's order, and arguments behind all others."""
    names = (
        "network network_script request channel language type uniqueid version callerid calleridname "
        "callingpres callingani2 callington callingtns dnid rdnis context extension priority enhanced "
        "accountcode threadid arg_1 arg_2"
    )
    found = request(environment("agi://h/x", ["a", ""]))
    assert list(found.environment) == [f"agi_{name}" for name in names.split()]
    assert found.arguments == ("a", "")


def test_the_caller_in_the_environment() -> None:
    """A test says who calls, from where in the dialplan, on which channel."""
    caller = Caller("200", "Bob: B", "internal", "s", "SIP/bob-1", "17.4")
    found = request(environment("agi://h/x", caller=caller))
    assert (found.callerid, found.calleridname, found.context) == ("200", "Bob: B", "internal")
    assert (found.extension, found.channel, found.uniqueid) == ("s", "SIP/bob-1", "17.4")
    assert found.environment["agi_type"] == "SIP"
    assert request(environment("agi://h/x", caller=replace(caller, number="201"))).callerid == "201"


def test_the_default_port_is_asterisks() -> None:
    """A URL without a port means the one that Asterisk takes."""
    assert DEFAULT_PORT == 4573


# ---- answers


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("ANSWER", "200 result=0"),
        ("answer", "200 result=0"),
        ("HANGUP", "200 result=1"),
        ("HANGUP SIP/1", "200 result=1"),
        ("VERBOSE hello 1", "200 result=1"),
        ("NOOP", "200 result=0"),
        ("NOOP some text", "200 result=0"),
        ("EXEC Dial SIP/1", "200 result=0"),
        ("CHANNEL STATUS", "200 result=6"),
        ('STREAM FILE hello ""', "200 result=0 endpos=8000"),
        ("GET DATA pin 2000 4", "200 result= (timeout)"),
        ("WAIT FOR DIGIT 100", "200 result=0"),
        ('SAY NUMBER 5 ""', "200 result=0"),
        ('SAY DIGITS 5 ""', "200 result=0"),
        ("SET VARIABLE X 1", "200 result=1"),
        ("GET VARIABLE KNOWN", "200 result=1 (value)"),
        ("Get Variable KNOWN", "200 result=1 (value)"),
        ("GET VARIABLE known", "200 result=0"),
        ("GET VARIABLE EMPTY", "200 result=1 ()"),
        ("GET FULL VARIABLE ${KNOWN}", "200 result=1 (value)"),
        ("GET FULL VARIABLE ${UNKNOWN}", "200 result=1 ()"),
        ("NOSUCH", "510 Invalid or unknown command"),
        ("GET", "510 Invalid or unknown command"),
        ("", "510 Invalid or unknown command"),
    ],
)
def test_answer(line: str, reply: str) -> None:
    """Each command has the reply that a patient caller who presses nothing gets from Asterisk."""
    assert answer(line, {"KNOWN": "value", "EMPTY": ""}) == reply


def test_setting_a_variable() -> None:
    """A variable is set to the word that Asterisk would have read."""
    variables: dict[str, str] = {}
    answer('SET VARIABLE X "say \\"hi\\""', variables)
    answer('SET VARIABLE Y ""', variables)
    assert variables == {"X": 'say "hi"', "Y": ""}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("   ", []),
        ("NOOP", ["NOOP"]),
        ("  A \t B  ", ["A", "B"]),
        ('A "two words"', ["A", "two words"]),
        ('A ""', ["A", ""]),
        ('A "" B', ["A", "", "B"]),
        ('"say \\"hi\\""', ['say "hi"']),
        (r"back\\slash", [r"back\slash"]),
        (r'"C:\\dir\\f"', [r"C:\dir\f"]),
        (r'"C:\dir\new"', ["C:dirnew"]),
        (r"a\ b", ["a b"]),
        ('x"quoted part"y', ["xquoted party"]),
        ('A "unterminated', ["A", "unterminated"]),
        ("'single quotes'", ["'single", "quotes'"]),
        ('"  padded  "', ["  padded  "]),
        (r'"B=x\,y"', ["B=x,y"]),
        ("A\\", ["A"]),
        ("\\", []),
        ('"', [""]),
    ],
)
def test_split_words(line: str, words: list[str]) -> None:
    """Words are split as a real Asterisk was seen to split them."""
    assert split_words(line) == words
