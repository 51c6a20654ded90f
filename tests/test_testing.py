"""fastagi_pool.testing: calls to servers that behave well and badly, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, Final

import pytest
from ports import closed_port

from fastagi_pool.testing import (
    DEFAULT_PORT,
    HANGUP,
    AgiStatus,
    Behaviour,
    Caller,
    CallResult,
    Command,
    FakeAsterisk,
    Wire,
    environment,
    play,
    play_call,
)

#: Far longer than anything here takes; a test that needs it has failed.
PATIENCE_S: Final = 20.0
#: So long a silence is waited for where silence is what happens.
SILENCE_S: Final = 0.05
#: The same where the server says something before.
PAUSE_S: Final = 0.5
_URL: Final = "agi://h/x"

Serve = Callable[[socket.socket, BinaryIO], object]


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
        """Serve the next connection; the future gives all that came behind what was read."""
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


def say(data: bytes) -> Serve:
    """Give a server that sends this in one piece, and closes."""
    return lambda connection, lines: connection.sendall(data)


def say_and_wait(data: bytes) -> Serve:
    """Give a server that sends this in one piece, and waits for the end."""

    def how(connection: socket.socket, lines: BinaryIO) -> None:
        connection.sendall(data)
        lines.read()

    return how


def reset(connection: socket.socket, lines: BinaryIO) -> None:
    """End the connection as a kernel does for a process that was killed with bytes unread."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    lines.close()
    connection.close()


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
        executed=(
            Command("ANSWER", ("ANSWER",), "200 result=0"),
            Command(
                'SET VARIABLE RESULT "all well"', ("SET", "VARIABLE", "RESULT", "all well"), "200 result=1"
            ),
            Command("GET VARIABLE RESULT", ("GET", "VARIABLE", "RESULT"), "200 result=1 (all well)"),
        ),
        location=("default", "100", "1"),
    )
    assert result.commands == ["ANSWER", 'SET VARIABLE RESULT "all well"', "GET VARIABLE RESULT"]
    assert rest.result(PATIENCE_S) == "HANGUP\n"


def test_all_that_is_left_of_a_call(server: Server) -> None:
    """Asterisk's database, its console and where the dialplan goes on are in the result."""
    server.serve(ask("DATABASE PUT f k v", "VERBOSE hello 1", "EXEC Goto sorry,s,2"))
    result = play_call(server.url, timeout_s=PATIENCE_S)
    assert (result.database, result.console, result.location) == (
        {"f/k": "v"},
        ("hello",),
        ("sorry", "s", "2"),
    )
    assert not result.hung_up


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
    caller, behaviour = Caller(number="200"), Behaviour(variables={"X": "given"})
    play_call(server.url, ["a", "b"], caller, behaviour, PATIENCE_S)
    assert heard == ["200 result=1 (given)\n"]
    assert server.environment + "\n" == environment(server.url, ["a", "b"], caller)


def test_the_givens_are_not_changed(server: Server) -> None:
    """What the script sets is in the result, not in the test's mapping."""
    given = {"X": "before"}
    server.serve(ask("SET VARIABLE X after"))
    result = play_call(server.url, behaviour=Behaviour(variables=given), timeout_s=PATIENCE_S)
    assert (given, result.variables) == ({"X": "before"}, {"X": "after"})


def test_a_caller_who_hangs_up(server: Server) -> None:
    """A hangup in a command is told behind its reply, and to the dialplan it is no success."""
    rest = server.serve(ask("GET DATA pin"))
    result = play_call(server.url, behaviour=Behaviour(presses=[HANGUP]), timeout_s=PATIENCE_S)
    assert (result.status, result.hung_up) == (AgiStatus.HANGUP, True)
    assert result.dialogue[1:] == [("A", "200 result=-1"), ("A", "HANGUP"), ("A", "HANGUP")]
    assert rest.result(PATIENCE_S) == "HANGUP\nHANGUP\n"


def test_a_reply_of_several_lines(server: Server) -> None:
    """Each line of a long reply stands for itself."""
    server.serve(say(b"SET VARIABLE\n"))
    result = play_call(server.url, timeout_s=PATIENCE_S)
    assert [line for who, line in result.dialogue if who == "A"] == [
        "520-Invalid command syntax.  Proper usage follows:",
        "Usage: SET VARIABLE name value",
        "520 End of proper usage.",
        "HANGUP",
    ]


def test_foreign_bytes(server: Server) -> None:
    """Bytes that are no UTF-8 come back as they were set."""
    heard: list[str] = []
    server.serve(ask("SET VARIABLE X J\udcfcrgen", "GET VARIABLE X", heard=heard))
    result = play_call(server.url, timeout_s=PATIENCE_S)
    assert heard == ["200 result=1\n", "200 result=1 (J\udcfcrgen)\n"]
    assert result.variables == {"X": "J\udcfcrgen"}


# ---- ends


@pytest.mark.parametrize("line", ["failure", "FAILURE", "Failures are bad"])
@pytest.mark.parametrize("behind", ["", "\n", "\nNOOP\n"])
def test_a_failure_line(server: Server, line: str, behind: str) -> None:
    """A line that begins with failure, in any case, is AGISTATUS=FAILURE and ends the call."""
    rest = server.serve(say(f"{line}{behind}".encode()))
    result = play_call(server.url, timeout_s=PATIENCE_S)
    assert (result.status, result.reason) == (AgiStatus.FAILURE, "the server said so")
    assert result.commands[0] == line
    assert result.executed == ()
    assert rest.result(PATIENCE_S) == "HANGUP\n"


def test_a_command_that_fails(server: Server) -> None:
    """Asterisk itself remembers a command that failed, though the server ends well."""
    server.serve(ask('STREAM FILE absent ""', "NOOP"))
    result = play_call(server.url, behaviour=Behaviour(missing_files=["absent"]), timeout_s=PATIENCE_S)
    assert (result.status, result.reason) == (AgiStatus.FAILURE, "a command failed")


@pytest.mark.parametrize("how", [ask(), reset], ids=["close", "reset"])
def test_a_server_that_crashes_is_a_success(server: Server, how: Serve) -> None:
    """A server that closes or resets without a word cannot be told from one that did its work."""
    server.serve(how)
    result = play_call(server.url, timeout_s=PATIENCE_S)
    assert (result.status, result.reason, result.connected) == (AgiStatus.SUCCESS, "", True)
    assert (result.commands, result.faults) == ([], ())


def test_a_server_that_closes_before_it_has_heard() -> None:
    """A connection that ends while the environment is still being written is an end like any other."""
    ours, theirs = socket.socketpair()
    theirs.close()
    result = CallResult()
    with ours:
        play(ours, FakeAsterisk(_URL), result)
    assert (result.status, result.dialogue) == (AgiStatus.SUCCESS, [("A", "HANGUP")])


def test_reset_between_commands(server: Server) -> None:
    """What was answered before the connection broke is known all the same."""

    def how(connection: socket.socket, lines: BinaryIO) -> None:
        ask("SET VARIABLE X 1")(connection, lines)
        reset(connection, lines)

    server.serve(how)
    result = play_call(server.url, timeout_s=PATIENCE_S)
    assert (result.status, result.variables) == (AgiStatus.SUCCESS, {"X": "1"})


def test_the_last_command_needs_no_line_end(server: Server) -> None:
    """A command that the server's end cuts off before its line end is run all the same."""
    server.serve(say(b"SET VARIABLE X 1"))
    result = play_call(server.url, timeout_s=PATIENCE_S)
    assert result.variables == {"X": "1"}
    assert result.dialogue == [("S", "SET VARIABLE X 1"), ("A", "200 result=1"), ("A", "HANGUP")]


def test_no_connection() -> None:
    """Where nobody listens, the call fails as it would in the dialplan, and says why."""
    with closed_port() as port:
        result = play_call(f"agi://127.0.0.1:{port}/x")
    assert (result.status, result.connected) == (AgiStatus.FAILURE, False)
    assert result.reason.startswith("no connection: ")
    assert result.dialogue == []


def test_no_such_host() -> None:
    """A URL without a host leads nowhere, and the call says so."""
    result = play_call("agi:///x")
    assert (result.status, result.connected) == (AgiStatus.FAILURE, False)


def test_the_default_port_is_asterisks() -> None:
    """A URL without a port means the one that Asterisk takes."""
    assert DEFAULT_PORT == 4573


# ---- what harms an Asterisk


def test_a_silent_server(server: Server) -> None:
    """Where Asterisk would wait for ever, the call fails after its time and says why."""
    rest = server.serve(lambda connection, lines: lines.readline())
    result = play_call(server.url, timeout_s=SILENCE_S)
    assert (result.status, result.connected) == (AgiStatus.FAILURE, True)
    assert result.reason == "the server was silent for 0.05 s; Asterisk would go on waiting"
    assert rest.result(PATIENCE_S) == ""


def test_silence_after_a_command(server: Server) -> None:
    """What was said before the silence is in the result."""
    server.serve(say_and_wait(b"SET VARIABLE X 1\n"))
    result = play_call(server.url, timeout_s=PAUSE_S)
    assert (result.status, result.variables) == (AgiStatus.FAILURE, {"X": "1"})
    assert result.dialogue == [("S", "SET VARIABLE X 1"), ("A", "200 result=1")]


def test_half_a_line(server: Server) -> None:
    """A line whose end does not come is no command, and a fault: Asterisk would spin."""
    server.serve(say_and_wait(b"NOO"))
    result = play_call(server.url, timeout_s=PAUSE_S)
    assert (result.status, result.executed, result.commands) == (AgiStatus.FAILURE, (), ["NOO"])
    assert len(result.faults) == 1
    assert result.faults[0].startswith("half a line")


def test_a_line_in_two_pieces(server: Server) -> None:
    """A line that comes in pieces is one line in the dialogue, and a fault."""
    half_sent, half_read = threading.Event(), threading.Event()

    def how(connection: socket.socket, lines: BinaryIO) -> None:
        connection.sendall(b"SET VARIABLE ")
        half_sent.set()
        half_read.wait(PATIENCE_S)
        connection.sendall(b"X 1\n")
        lines.readline()

    # Asterisk reads the first half; only when it waits for more does the server go on.
    steps = iter([lambda: half_sent.wait(PATIENCE_S), half_read.set])

    def wait(delay_s: float) -> None:
        next(steps, half_read.set)()

    server.serve(how)
    result = play_call(server.url, timeout_s=PATIENCE_S, wire=Wire(delay_s=0.1, sleep=wait))
    assert result.commands == ["SET VARIABLE X 1"]
    assert result.faults[0].startswith("half a line")


def test_pipelining(server: Server) -> None:
    """A command sent before the answer to the one before is left lying, and that is a fault."""

    def how(connection: socket.socket, lines: BinaryIO) -> None:
        connection.sendall(b"SET VARIABLE X 1\nSET VARIABLE Y 2\n")
        lines.readline()
        connection.sendall(b"NOOP\n")
        lines.readline()

    server.serve(how)
    result = play_call(server.url, timeout_s=PATIENCE_S)
    assert result.variables == {"X": "1", "Y": "2"}
    assert len(result.faults) == 1
    assert result.faults[0].startswith("more than one line in a segment: b'SET VARIABLE Y 2\\n'")


def test_last_words_in_one_piece(server: Server) -> None:
    """Several lines that the server's end follows at once are all run, and are no fault."""
    server.serve(say(b"SET VARIABLE X 1\nSET VARIABLE Y 2\nfailure\n"))
    result = play_call(server.url, timeout_s=PATIENCE_S)
    assert (result.status, result.variables) == (AgiStatus.FAILURE, {"X": "1", "Y": "2"})
    assert result.faults == ()


# ---- the wire


def test_a_slow_reader(server: Server) -> None:
    """What comes while Asterisk is slow to read is read in one piece, so that haste is seen."""
    sent = threading.Event()
    waits: list[float] = []

    def how(connection: socket.socket, lines: BinaryIO) -> None:
        connection.sendall(b"NOOP\n")
        connection.sendall(b"NOOP\n")
        sent.set()
        lines.readline()
        connection.sendall(b"NOOP\n")
        lines.readline()

    def wait(delay_s: float) -> None:
        waits.append(delay_s)
        sent.wait(PATIENCE_S)

    server.serve(how)
    result = play_call(server.url, timeout_s=PATIENCE_S, wire=Wire(delay_s=0.5, sleep=wait))
    assert set(waits) == {0.5}
    assert len(result.executed) == 3
    assert result.faults[0].startswith("more than one line in a segment")


def test_a_wire_that_waits_by_itself() -> None:
    """Who says nothing about what waits gets a clock's time."""
    result, ours, theirs = CallResult(), *socket.socketpair()
    with ours, theirs:
        theirs.shutdown(socket.SHUT_WR)
        play(ours, FakeAsterisk(_URL), result, Wire(delay_s=0.001))
    assert result.status is AgiStatus.SUCCESS


def test_byte_by_byte() -> None:
    """All that Asterisk says arrives a byte at a time, and is the same."""
    # This kind of socket keeps the borders between writes.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    result = CallResult()

    def serve() -> list[bytes]:
        with theirs:
            theirs.settimeout(PATIENCE_S)
            pieces: list[bytes] = []
            while not b"".join(pieces).endswith(b"\n\n"):
                pieces.append(theirs.recv(100))
            theirs.sendall(b"NOOP\n")
            while not b"".join(pieces).endswith(b"200 result=0\n"):
                pieces.append(theirs.recv(100))
            return pieces

    with ours, ThreadPoolExecutor(1) as threads:
        served = threads.submit(serve)
        play(ours, FakeAsterisk(_URL), result, Wire(piece_bytes=1))
    pieces = served.result(PATIENCE_S)
    assert {len(piece) for piece in pieces} == {1}
    assert b"".join(pieces) == environment(_URL).encode() + b"200 result=0\n"


@pytest.mark.parametrize(
    ("piece_bytes", "pieces"),
    [
        (0, [b"HANGUP\n"]),
        (1, [b"H", b"A", b"N", b"G", b"U", b"P", b"\n"]),
        (4, [b"HANG", b"UP\n"]),
        (9, [b"HANGUP\n"]),
    ],
)
def test_pieces(piece_bytes: int, pieces: list[bytes]) -> None:
    """A wire cuts what it carries into pieces of its size, and nothing into none."""
    wire = Wire(piece_bytes=piece_bytes)
    assert wire.pieces(b"HANGUP\n") == pieces
    assert wire.pieces(b"") == []
