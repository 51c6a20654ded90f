"""fastagi_pool.handlers.upstream: calls that another server answers, over real connections."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeAlias

import gevent
import gevent.event
import gevent.server
import gevent.socket
import pytest
from conftest import ManualClock

from fastagi_pool.call import Call
from fastagi_pool.context import Context
from fastagi_pool.errors import (
    CallHangup,
    CallPeerGone,
    CallStopped,
    Overloaded,
    ToldFailure,
    UpstreamUnavailable,
)
from fastagi_pool.handlers import upstream as upstream_module
from fastagi_pool.handlers.upstream import LOOKUP_S, MAX_LINE_BYTES, Connection, UpstreamHandler, connect
from fastagi_pool.logs import LOGGER_NAME
from fastagi_pool.protocol import HeaderLimits
from fastagi_pool.session import Session, SessionLimits
from fastagi_pool.stage import Stage
from fastagi_pool.testing import AgiStatus, Caller, Wire, environment
from fastagi_pool.upstreams import MOST_BROKEN, Server, UpstreamSettings

#: Far longer than anything here takes.
LIMIT_S: Final = 20.0
#: So long a connection is tried to which nobody answers.
SHORT_S: Final = 0.2
URL: Final = "agi://127.0.0.1:4577/test"
ENVIRONMENT: Final = environment(URL).encode()
OK: Final = b"200 result=1\n"
_log = logging.getLogger(LOGGER_NAME)


class Link:
    """A connection as the other server sees it."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.environment = b""
        self.file = connection.makefile("rb")

    def hear(self) -> bytes:
        """Wait for a line; nothing at the end."""
        line: bytes = self.file.readline()
        return line

    def hear_environment(self) -> None:
        """Read up to the empty line."""
        while not self.environment.endswith(b"\n\n"):
            line = self.hear()
            assert line, "the connection ended in the environment"
            self.environment += line

    def say(self, data: bytes) -> None:
        """Write bytes."""
        self.connection.sendall(data)

    def ask(self, line: bytes) -> bytes:
        """Say a line and wait for one."""
        self.say(line)
        return self.hear()

    def reset(self) -> None:
        """End the connection as a machine does that has forgotten it."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.file.close()
        self.connection.close()


Script: TypeAlias = Callable[[Link], None]


class Upstream:
    """Another FastAGI server, in greenlets of this process.

    Attributes:
        links: The connections that it has had.
        heard: What scripts have put down.
    """

    def __init__(self, script: Script, host: str = "127.0.0.1", port: int = 0) -> None:
        self.links: list[Link] = []
        self.heard: list[bytes] = []
        self._script = script
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = gevent.socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(512)
        self.host, self.port = listener.getsockname()[:2]
        self._server = gevent.server.StreamServer(listener, self._serve)
        self._server.start()

    @property
    def server(self) -> Server:
        """Where it is."""
        return Server(self.host, self.port)

    def close(self) -> None:
        """Listen no more, and drop what is connected."""
        self._server.stop(timeout=0)

    def _serve(self, connection: Any, address: object) -> None:
        link = Link(connection)
        self.links.append(link)
        with link.file:
            link.hear_environment()
            self._script(link)


class ByHand:
    """A call whose Asterisk is the test.

    Attributes:
        link: Asterisk's end of the connection.
        session: Ours.
    """

    def __init__(self, handler: UpstreamHandler, rest: bytes = b"") -> None:
        """Place it.

        Args:
            handler: Who serves it.
            rest: What Asterisk says behind the environment.
        """
        self.link, theirs = gevent.socket.socketpair()
        self.link.settimeout(LIMIT_S)
        descriptor = theirs.detach()
        os.set_blocking(descriptor, False)
        self.session = Session(descriptor, "here", gevent.get_hub(), SessionLimits(), HeaderLimits())
        self.session.greenlet = self._greenlet = gevent.spawn(self._serve, handler)
        self.file = self.link.makefile("rb")
        self.link.sendall(ENVIRONMENT + rest)

    def _serve(self, handler: UpstreamHandler) -> BaseException | None:
        try:
            request = self.session.receive_request()
            assert request is not None
            self.session.begin(SessionLimits())
            handler(Call(request, self.session), Context({}, _log, {}, clocks=self.session))
            self.session.settle()
        except BaseException as raised:
            return raised
        finally:
            self.session.close()
        return None

    def outcome(self) -> BaseException | None:
        """Wait for its end, and return what the handler raised."""
        raised: BaseException | None = self._greenlet.get(timeout=LIMIT_S)
        self.file.close()
        self.link.close()
        return raised


@pytest.fixture
def play_upstream() -> Iterator[Callable[..., Upstream]]:
    """Give a function that starts another server with a script for each of its calls."""
    with ExitStack() as last:

        def start(script: Script, host: str = "127.0.0.1", port: int = 0) -> Upstream:
            upstream = Upstream(script, host, port)
            last.callback(upstream.close)
            return upstream

        yield start


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Let no test wait for ever."""
    with gevent.Timeout(3 * LIMIT_S):
        yield


@pytest.fixture
def nobody() -> Iterator[Server]:
    """Give an address at which every connection is refused."""
    # Bound but not listening: nobody else can be given the port meanwhile.
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield Server("127.0.0.1", holder.getsockname()[1])


@pytest.fixture
def deaf() -> Iterator[Server]:
    """Give an address at which no connection is answered: a listener whose queue is full."""
    with ExitStack() as last:
        listener = last.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = last.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield Server("127.0.0.1", listener.getsockname()[1])


def to(*servers: Server, **settings: Any) -> UpstreamHandler:
    """Make a handler that forwards to these."""
    return UpstreamHandler(UpstreamSettings(servers, **settings))


def wait_until(condition: Callable[[], bool]) -> None:
    """Let the other greenlets run until something is so."""
    with gevent.Timeout(LIMIT_S):
        while not condition():
            gevent.sleep(0.002)


def open_descriptors() -> int:
    """Count what this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def hold(link: Link) -> None:
    """Say a line, and end when the connection does."""
    link.ask(b"NOOP\n")
    link.hear()


# ---- what is carried


def test_the_environment(agi_call: Stage, play_upstream: Callable[..., Upstream]) -> None:
    """The other server gets the environment as Asterisk wrote it: every line, arguments, odd bytes."""
    other = play_upstream(lambda link: None)
    caller = Caller(number="200", name="Zo\udcff: \u00e9")
    script, arguments = "old/menu.agi?x=%31&y", ("one", "", "t\udcfew o: 3")

    result = agi_call(to(other.server), script, *arguments, caller=caller)

    url = f"agi://127.0.0.1:4577/{script}"
    wanted = environment(url, arguments, caller).encode("utf-8", "surrogateescape")
    assert [link.environment for link in other.links] == [wanted]
    assert (result.status, result.outcome, result.commands) == (AgiStatus.SUCCESS, "ok", [])


@pytest.mark.parametrize("wire", [Wire(), Wire(piece_bytes=1), Wire(delay_s=0.001)])
def test_commands_and_replies(agi_call: Stage, play_upstream: Callable[..., Upstream], wire: Wire) -> None:
    """Lines reach Asterisk, and replies the other server, to the byte and in step, on any wire."""
    lines = [b"ANSWER\n", b'GET VARIABLE "X"\n', b'SAY  ALPHA "\xff" ""\n', b'SET VARIABLE Y "a b"\n', b"\n"]
    heard: list[bytes] = []
    other = play_upstream(lambda link: heard.extend(map(link.ask, lines)))

    result = agi_call(to(other.server), wire=wire, variables={"X": "v\udcff) (w"})

    assert result.commands == [line.decode("utf-8", "surrogateescape")[:-1] for line in lines]
    # At the end of the connection Asterisk says HANGUP, which nobody hears.
    replies = [line for who, line in result.dialogue if who == "A"][:-1]
    assert b"".join(heard) == b"".join(line.encode("utf-8", "surrogateescape") + b"\n" for line in replies)
    assert heard[1] == b"200 result=1 (v\xff) (w)\n"
    assert (result.outcome, result.variables["Y"]) == ("ok", "a b")


def test_long_replies(play_upstream: Callable[..., Upstream]) -> None:
    """A value with line ends, a 520 block and GOSUB's 100 line arrive as they are, in this order."""
    replies = [
        b"200 result=1 (one\ntwo\n\nthree)\n",
        b"520-Invalid command syntax.  Proper usage follows:\nUsage: x\n\n520 End of proper usage.\n",
        b"100 result=0 Trying...\n200 result=0 Gosub complete\n",
    ]

    def script(link: Link) -> None:
        for reply in replies:
            link.say(b"COMMAND\n")
            heard = b""
            while len(heard) < len(reply):
                heard += link.hear()
            other.heard.append(heard)

    other = play_upstream(script)
    placed = ByHand(to(other.server))
    for reply in replies:
        assert placed.file.readline() == b"COMMAND\n"
        placed.link.sendall(reply)

    assert placed.outcome() is None
    assert other.heard == replies


def test_many_lines_at_once(agi_call: Stage, play_upstream: Callable[..., Upstream]) -> None:
    """Lines that come in one piece reach Asterisk one by one, each after the reply to the one before."""

    def script(link: Link) -> None:
        link.say(b"".join(b"SET VARIABLE N%d x\n" % number for number in range(300)))
        for _ in range(300):
            assert link.hear() == OK

    result = agi_call(to(play_upstream(script).server))

    assert (len(result.variables), result.outcome, result.faults) == (300, "ok", ())


def test_lines_in_pieces(agi_call: Stage, play_upstream: Callable[..., Upstream]) -> None:
    """A line that comes byte by byte reaches Asterisk in one piece: half a line would make it spin."""

    def script(link: Link) -> None:
        link.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in b'SET VARIABLE X "1"\nSET VARIABLE Y 2\n':
            link.say(bytes((number,)))
            gevent.sleep(0)

    result = agi_call(to(play_upstream(script).server))

    assert (result.variables, result.outcome, result.faults) == ({"X": "1", "Y": "2"}, "ok", ())


def test_a_last_line_without_its_end(agi_call: Stage, play_upstream: Callable[..., Upstream]) -> None:
    """What is said before the end is a line even without its LF, as it is to Asterisk."""
    result = agi_call(to(play_upstream(lambda link: link.say(b"SET VARIABLE X 1")).server))

    assert (result.variables, result.outcome, result.faults) == ({"X": "1"}, "ok", ())


def test_lines_behind_the_end(agi_call: Stage, play_upstream: Callable[..., Upstream]) -> None:
    """A server that says all and closes at once without reading is heard to its end: a success."""
    lines = b"".join(b"SET VARIABLE N%d x\n" % number for number in range(100))
    result = agi_call(to(play_upstream(lambda link: link.say(lines)).server))

    assert (len(result.variables), result.outcome) == (100, "ok")


def test_a_harmful_line(agi_call: Stage, play_upstream: Callable[..., Upstream]) -> None:
    """A line that would harm Asterisk is answered in its place, and the dialogue goes on."""
    heard: list[bytes] = []
    other = play_upstream(lambda link: heard.extend(map(link.ask, [b"NOOP \0\n", b"NOOP\n"])))

    result = agi_call(to(other.server))

    assert heard == [b"510 Invalid or unknown command\n", b"200 result=0\n"]
    assert (result.commands, result.faults) == (["NOOP"], ())


def test_a_flood_that_is_held_back(agi_call: Stage, play_upstream: Callable[..., Upstream]) -> None:
    """A server whose lines are answered here, and not by Asterisk, keeps no other call from its turn."""
    other = play_upstream(lambda link: link.connection.sendall(b"\0\n" * 1000))
    handler = to(other.server)
    seen: set[int] = set()

    def watch(call: Call) -> None:
        while True:
            seen.add(call.refused)
            gevent.sleep(0)

    def serve(call: Call, context: Context) -> None:
        watcher = gevent.spawn(watch, call)
        try:
            handler(call, context)
        finally:
            watcher.kill()

    assert agi_call(serve).outcome == "ok"
    assert len(seen) > 900


def test_a_server_that_reads_late(play_upstream: Callable[..., Upstream]) -> None:
    """Replies beyond what the kernel holds wait for a slow reader, and HANGUP comes behind them, in order."""
    go_on = gevent.event.Event()
    value = b"200 result=1 (" + b"x" * 60_000 + b")\n"
    rounds = 200

    def script(link: Link) -> None:
        link.say(b"GET FULL VARIABLE x\n" * rounds)
        go_on.wait()
        other.heard.extend(iter(link.hear, b""))

    other = play_upstream(script)
    placed = ByHand(to(other.server))

    def answer() -> None:
        for _ in range(rounds):
            placed.file.readline()
            placed.link.sendall(value)

    asterisk = gevent.spawn(answer)
    # Until the handler waits for the other server, and so asks for nothing more.
    told = placed.session.commands
    while True:
        gevent.sleep(0.05)
        if placed.session.commands == told:
            break
        told = placed.session.commands
    assert told < rounds
    placed.link.sendall(b"HANGUP\n")
    wait_until(lambda: placed.session.hung_up)
    go_on.set()
    asterisk.join(LIMIT_S)
    placed.link.shutdown(socket.SHUT_WR)

    assert isinstance(placed.outcome(), CallPeerGone)
    wait_until(lambda: len(other.heard) == rounds + 1)
    assert sorted(set(other.heard)) == [value, b"HANGUP\n"]
    assert told <= other.heard.index(b"HANGUP\n") <= told + 1


@pytest.mark.parametrize("reply", [b"", b"200 result=0\n", b"200 result=1 (" + b"x" * 9_000_000 + b")\n"])
def test_a_hangup_without_room(reply: bytes) -> None:
    """A HANGUP for which the kernel has no room is written later by the hub, and before any later reply."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    filling = 0
    try:
        while True:
            filling += ours.send(b"x")
    except BlockingIOError:
        pass
    connection = Connection(ours, lambda: None)
    connection.on_unasked(b"HANGUP\n")
    # In a greenlet of its own: a reply waits for its reader.
    answering = gevent.spawn(connection.answer, reply) if reply else None
    reader = gevent.socket.socket(fileno=theirs.detach())
    wanted = b"x" * filling + b"HANGUP\n" + reply
    heard = bytearray()
    while len(heard) < len(wanted):
        heard += reader.recv(1_000_000)

    assert heard == wanted
    if answering is not None:
        answering.get(timeout=LIMIT_S)
    connection.close()
    reader.close()


# ---- hangup


def test_hangup_while_idle(play_upstream: Callable[..., Upstream]) -> None:
    """A caller who hangs up while the other server thinks is told to it at once; then it may go on."""

    def script(link: Link) -> None:
        other.heard.append(link.hear())
        other.heard.append(link.ask(b"SET VARIABLE X 1\n"))

    other = play_upstream(script)
    placed = ByHand(to(other.server))
    wait_until(lambda: bool(other.links and other.links[0].environment.endswith(b"\n\n")))
    placed.link.sendall(b"HANGUP\n")

    assert placed.file.readline() == b"SET VARIABLE X 1\n"
    placed.link.sendall(OK)
    assert isinstance(placed.outcome(), CallHangup)
    assert other.heard == [b"HANGUP\n", OK]


def test_hangup_in_a_command(play_upstream: Callable[..., Upstream]) -> None:
    """HANGUP and the reply of a running command reach the other server once each, as Asterisk said them."""

    def script(link: Link) -> None:
        link.say(b"STREAM FILE x 1\n")
        other.heard.extend([link.hear(), link.hear(), link.ask(b"NOOP\n")])

    other = play_upstream(script)
    placed = ByHand(to(other.server))
    assert placed.file.readline() == b"STREAM FILE x 1\n"
    placed.link.sendall(b"200 result=-1 endpos=80\nHANGUP\n")
    assert placed.file.readline() == b"NOOP\n"
    placed.link.sendall(b"511 Command Not Permitted on a dead channel or intercept routine\n")

    assert isinstance(placed.outcome(), CallHangup)
    assert other.heard[:2] == [b"200 result=-1 endpos=80\n", b"HANGUP\n"]
    assert other.heard[2].startswith(b"511")


def test_hangup_before_the_first_command(play_upstream: Callable[..., Upstream]) -> None:
    """A HANGUP that comes right behind the environment comes there for the other server too."""

    def script(link: Link) -> None:
        other.heard.append(link.hear())

    other = play_upstream(script)

    assert isinstance(ByHand(to(other.server), rest=b"HANGUP\n").outcome(), CallHangup)
    assert other.heard == [b"HANGUP\n"]


def test_a_server_that_does_not_read_the_hangup(
    agi_call: Stage, play_upstream: Callable[..., Upstream]
) -> None:
    """The reset of a server that closes on a HANGUP it has not read is no failure: the call is a hangup."""

    def script(link: Link) -> None:
        link.ask(b"NOOP\n")
        gevent.sleep(0.01)
        link.reset()

    result = agi_call(to(play_upstream(script).server), hangup_after=1)

    assert (result.outcome, result.status) == ("hangup", AgiStatus.HANGUP)


# ---- the end


def test_a_failure(agi_call: Stage, play_upstream: Callable[..., Upstream]) -> None:
    """The other server's failure reaches Asterisk as it said it, and nothing is said besides."""
    other = play_upstream(lambda link: (link.ask(b"NOOP\n"), link.say(b"Failure of mine\nNOOP\n")))

    result = agi_call(to(other.server), catch=True)

    assert (result.status, result.outcome) == (AgiStatus.FAILURE, "failure")
    assert result.commands == ["NOOP", "Failure of mine"]
    assert isinstance(result.error, ToldFailure)
    assert result.error.said_all


def test_a_connection_that_breaks(agi_call: Stage, play_upstream: Callable[..., Upstream]) -> None:
    """A reset before a line was said is told to the dialplan as a failure, and names the server."""
    other = play_upstream(lambda link: link.reset())
    result = agi_call(to(other.server), catch=True)

    assert (result.outcome, result.variables["FAGI_STATUS"]) == ("upstream", "UPSTREAM")
    assert str(result.error).startswith(f"{other.server}: the connection broke off")


def test_a_server_that_does_not_read_its_last_reply(
    agi_call: Stage, play_upstream: Callable[..., Upstream]
) -> None:
    """Who closes on an unread reply resets the connection: an end like any other, as for Asterisk itself."""

    def script(link: Link) -> None:
        link.ask(b"NOOP\n")
        link.reset()

    other = play_upstream(script)
    for _ in range(2):
        assert agi_call(to(other.server)).commands == ["NOOP"]
    assert len(other.links) == 2


def test_a_reset_noticed_while_writing(play_upstream: Callable[..., Upstream]) -> None:
    """It is the same end if it is noticed when the reply is written."""
    asked, gone = gevent.event.Event(), gevent.event.Event()

    def script(link: Link) -> None:
        link.say(b"NOOP\n")
        asked.wait()
        link.reset()
        gone.set()

    placed = ByHand(to(play_upstream(script).server))
    assert placed.file.readline() == b"NOOP\n"
    asked.set()
    gone.wait()
    placed.link.sendall(OK)

    assert placed.outcome() is None


def test_a_line_without_an_end(agi_call: Stage, play_upstream: Callable[..., Upstream]) -> None:
    """Who says 64 KB without a line's end does not speak AGI, and fills no memory."""

    def flood(link: Link) -> None:
        try:
            while True:
                link.say(b"x" * 10_000)
        except ConnectionError:
            pass  # That is how it learns.

    result = agi_call(to(play_upstream(flood).server), catch=True)

    assert result.outcome == "upstream"
    assert f"more than {MAX_LINE_BYTES} bytes: it does not speak AGI" in str(result.error)


def test_asterisk_goes(play_upstream: Callable[..., Upstream]) -> None:
    """When Asterisk closes, the other server sees the end of its connection at once, and gets no reply."""

    def script(link: Link) -> None:
        other.heard.append(link.hear())

    other = play_upstream(script)
    placed = ByHand(to(other.server))
    wait_until(lambda: bool(other.links))
    placed.link.shutdown(socket.SHUT_WR)

    assert isinstance(placed.outcome(), CallPeerGone)
    wait_until(lambda: other.heard == [b""])


def test_the_worker_ends(play_upstream: Callable[..., Upstream]) -> None:
    """A call that is stopped in the middle of a command lets go of the other server."""

    def script(link: Link) -> None:
        link.say(b"NOOP\n")
        other.heard.append(link.hear())

    other = play_upstream(script)
    placed = ByHand(to(other.server))
    assert placed.file.readline() == b"NOOP\n"
    gevent.get_hub().loop.run_callback(placed.session.stop, 0.0)

    assert isinstance(placed.outcome(), CallStopped)
    wait_until(lambda: other.heard == [b""])


def test_no_descriptor_stays_open(
    agi_call: Stage, play_upstream: Callable[..., Upstream], nobody: Server
) -> None:
    """However calls end, their connections are closed."""
    ways: list[Script] = [hold, Link.reset, lambda link: link.say(b"failure\n"), lambda link: None]
    turns = itertools.cycle(ways)
    other = play_upstream(lambda link: next(turns)(link))
    agi_call(to(other.server), catch=True, hangup_after=1)
    before = open_descriptors()
    for _ in range(11):
        agi_call(to(nobody, other.server), catch=True, hangup_after=1)
    wait_until(lambda: open_descriptors() <= before)


# ---- which server


def test_a_refused_connection(
    agi_call: Stage,
    play_upstream: Callable[..., Upstream],
    nobody: Server,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A call goes to the next server if the first refuses it; the log says so once, not at each call."""
    caplog.set_level(logging.INFO, LOGGER_NAME)
    handler = to(nobody, play_upstream(lambda link: None).server)

    assert {agi_call(handler).outcome for _ in range(5)} == {"ok"}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"upstream {nobody} gets no calls for 1 s, or longer: refused" in caplog.text


def test_no_server_at_all(agi_call: Stage, nobody: Server) -> None:
    """When no server can be reached the dialplan is told at once, with each one's name and reason."""
    handler = to(nobody)

    for _ in range(2):
        result = agi_call(handler, catch=True)
        assert (result.outcome, result.variables["FAGI_STATUS"]) == ("upstream", "UPSTREAM")
        assert str(result.error) == f"{nobody}: refused, tried again in 1 s"


def test_a_connection_that_nobody_answers(agi_call: Stage, deaf: Server) -> None:
    """A server that does not answer costs its time and is then reported as what it is."""
    result = agi_call(to(deaf, connect_timeout_s=SHORT_S), catch=True)

    assert result.outcome == "upstream"
    assert str(result.error) == f"{deaf}: no answer within 0.2 s, tried again in 1 s"


def test_a_call_stopped_while_it_connects(deaf: Server) -> None:
    """A call that ends while it connects gives its place back, so that the next one can have it."""
    handler = to(Server(deaf.host, deaf.port, max_calls=1), connect_timeout_s=LIMIT_S, max_queue=0)
    for _ in range(2):
        placed = ByHand(handler)
        gevent.sleep(0.02)
        gevent.get_hub().loop.run_callback(placed.session.stop, 0.0)
        assert isinstance(placed.outcome(), CallStopped)


def test_a_server_comes_back(
    agi_call: Stage,
    play_upstream: Callable[..., Upstream],
    nobody: Server,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After its rest one call tries a server while others pass it by; its first line brings it back."""
    caplog.set_level(logging.INFO, LOGGER_NAME)
    spoken = gevent.event.Event()

    def script(link: Link) -> None:
        spoken.wait()
        hold(link)

    spare = play_upstream(lambda link: None)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        first = Server("127.0.0.1", holder.getsockname()[1])
        handler = UpstreamHandler(UpstreamSettings((first, spare.server)), clock)
        agi_call(handler)
    other = play_upstream(script, port=first.port)
    agi_call(handler)
    assert (len(other.links), len(spare.links)) == (0, 2)

    clock.now_s += 1
    trial = ByHand(handler)
    wait_until(lambda: len(other.links) == 1)
    agi_call(handler)
    assert (len(other.links), len(spare.links)) == (1, 3)

    spoken.set()
    assert trial.file.readline() == b"NOOP\n"
    agi_call(handler, hangup_after=0)
    assert (len(other.links), len(spare.links)) == (2, 3)
    trial.link.shutdown(socket.SHUT_WR)
    trial.outcome()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert f"upstream {first} gets calls again" in caplog.text


def test_a_server_that_breaks_off_at_once(agi_call: Stage, play_upstream: Callable[..., Upstream]) -> None:
    """A server that resets three calls in a row without a word rests like one that refuses."""
    bad, good = play_upstream(Link.reset), play_upstream(lambda link: None)
    handler = to(bad.server, good.server)

    for _ in range(MOST_BROKEN):
        assert agi_call(handler, catch=True).outcome == "upstream"
    assert agi_call(handler).outcome == "ok"
    assert (len(bad.links), len(good.links)) == (MOST_BROKEN, 1)


def test_ipv6(agi_call: Stage, play_upstream: Callable[..., Upstream]) -> None:
    """A server may have an IPv6 address."""
    try:
        other = play_upstream(lambda link: None, host="::1")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")

    assert agi_call(to(other.server)).outcome == "ok"
    assert len(other.links) == 1


def test_oneself() -> None:
    """A connection that the kernel has made to itself is as good as a refused one."""
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        address = finder.getsockname()
    oneself = socket.socket()
    with oneself:
        oneself.bind(address)
        oneself.connect(address)
        with pytest.raises(ConnectionRefusedError):
            upstream_module._refuse_oneself(oneself)


def test_options_of_the_connection(play_upstream: Callable[..., Upstream]) -> None:
    """Small lines go out at once, and a machine that vanished is noticed after a minute and its probes."""
    other = play_upstream(hold)
    link = connect(socket.AF_INET, (other.host, other.port))
    try:
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    finally:
        link.close()


# ---- names


def test_a_name(agi_call: Stage, play_upstream: Callable[..., Upstream]) -> None:
    """A server may have a name; all its addresses are tried."""
    other = play_upstream(lambda link: None)

    assert agi_call(to(Server("localhost", other.port))).outcome == "ok"
    assert len(other.links) == 1


def test_a_name_that_can_be_none(agi_call: Stage) -> None:
    """A name that cannot be looked up is no traceback, but a server that takes no calls."""
    result = agi_call(to(Server(f"{'x' * 64}.example", 4573)), catch=True)

    assert result.outcome == "upstream"
    assert "its name cannot be looked up" in str(result.error)


class Names:
    """Plays the name service, which no test can have of its own."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: list[tuple[str, int]] = []
        self.ready = gevent.event.Event()
        self.ready.set()

    def __call__(self, host: str, port: int, type: int) -> list[tuple[Any, ...]]:
        """Stand for ``getaddrinfo``."""
        self.asked.append(host)
        self.ready.wait()
        if not self.answer:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, type, 6, "", address) for address in self.answer]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Play the name service."""
    service = Names()
    monkeypatch.setattr(gevent.socket, "getaddrinfo", service)
    return service


def test_an_unknown_name(agi_call: Stage, names: Names) -> None:
    """What the name service says is in the error."""
    result = agi_call(to(Server("agi.test")), catch=True)

    assert str(result.error) == (
        "agi.test:4573: its name cannot be looked up (Name or service not known), tried again in 1 s"
    )


def test_the_next_address(
    agi_call: Stage, play_upstream: Callable[..., Upstream], names: Names, nobody: Server
) -> None:
    """If the first address of a name refuses, the next one is tried."""
    other = play_upstream(lambda link: None)
    names.answer = [(nobody.host, nobody.port), (other.host, other.port)]

    assert agi_call(to(Server("agi.test"))).outcome == "ok"


def test_one_lookup_for_many_calls(
    play_upstream: Callable[..., Upstream], names: Names, clock: ManualClock
) -> None:
    """Calls at the same time share one lookup, the next ones use its answer, until that is old."""
    other = play_upstream(lambda link: None)
    names.answer = [(other.host, other.port)]
    names.ready.clear()
    handler = UpstreamHandler(UpstreamSettings((Server("agi.test"),)), clock)
    calls = [ByHand(handler) for _ in range(20)]
    wait_until(lambda: bool(names.asked))
    names.ready.set()

    assert [placed.outcome() for placed in calls] == [None] * 20
    assert ByHand(handler).outcome() is None
    assert len(names.asked) == 1
    clock.now_s += LOOKUP_S
    assert ByHand(handler).outcome() is None
    assert len(names.asked) == 2


def test_a_name_that_has_moved(
    agi_call: Stage,
    play_upstream: Callable[..., Upstream],
    names: Names,
    nobody: Server,
    clock: ManualClock,
) -> None:
    """When no address of a name answers, the next call asks for the name again."""
    other = play_upstream(lambda link: None)
    names.answer = [(nobody.host, nobody.port)]
    handler = UpstreamHandler(UpstreamSettings((Server("agi.test"),)), clock)
    assert agi_call(handler, catch=True).outcome == "upstream"

    names.answer = [(other.host, other.port)]
    clock.now_s += 1
    assert agi_call(handler).outcome == "ok"


def test_a_lookup_that_takes_too_long(agi_call: Stage, names: Names) -> None:
    """A slow name service counts into the time for the connection."""
    names.ready.clear()

    result = agi_call(to(Server("agi.test"), connect_timeout_s=SHORT_S), catch=True)

    assert str(result.error) == "agi.test:4573: no answer within 0.2 s, tried again in 1 s"


# ---- limits


def limited(other: Upstream, most: int = 1, **settings: Any) -> UpstreamHandler:
    """Make a handler that brings so many calls at a time to a server."""
    return to(Server(other.host, other.port, most), **settings)


def end(placed: ByHand) -> BaseException | None:
    """Let Asterisk close."""
    placed.link.shutdown(socket.SHUT_WR)
    return placed.outcome()


def test_a_queue(play_upstream: Callable[..., Upstream]) -> None:
    """Calls beyond the limit wait in the order of coming, as many as may; one more is refused at once."""
    other = play_upstream(hold)
    handler = limited(other, max_queue=2, max_wait_s=LIMIT_S)
    served: list[int] = []

    def note(placed: ByHand, number: int) -> None:
        assert placed.file.readline() == b"NOOP\n"
        served.append(number)

    def place(number: int) -> ByHand:
        placed = ByHand(handler)
        gevent.spawn(note, placed, number)
        gevent.sleep(0.01)
        return placed

    calls = [place(number) for number in range(3)]
    refused = ByHand(handler).outcome()
    assert isinstance(refused, Overloaded)
    assert str(refused) == f"every server is full ({other.server}: 1 of 1), and 2 calls wait already"
    for number, placed in enumerate(calls):
        wait_until(lambda: len(served) > number)  # noqa: B023
        end(placed)
    assert served == [0, 1, 2]


def test_a_wait_that_is_too_long(play_upstream: Callable[..., Upstream]) -> None:
    """A call that waits for too long is told so, and leaves the queue; it had no time of its own."""
    other = play_upstream(hold)
    handler = limited(other, max_queue=1, max_wait_s=0.05)
    first = ByHand(handler)
    assert first.file.readline() == b"NOOP\n"

    for _ in range(2):
        begun_s = monotonic()
        placed = ByHand(handler)
        late = placed.outcome()
        assert isinstance(late, Overloaded)
        assert str(late).endswith("1 of 1), and none became free within 0.05 s")
        assert placed.session.queued_s > 0.04
        assert placed.session.script_s <= monotonic() - begun_s - placed.session.queued_s
    end(first)
    assert end(ByHand(handler)) is not None
    wait_until(lambda: len(other.links) == 2)


def test_a_waiter_that_is_stopped(play_upstream: Callable[..., Upstream]) -> None:
    """A call that ends while it waits leaves the queue; the place goes to the one behind it."""
    other = play_upstream(hold)
    handler = limited(other, max_queue=2, max_wait_s=LIMIT_S)
    first = ByHand(handler)
    assert first.file.readline() == b"NOOP\n"
    stopped = ByHand(handler)
    gevent.sleep(0.01)
    second = ByHand(handler)
    gevent.sleep(0.01)
    gevent.get_hub().loop.run_callback(stopped.session.stop, 0.0)

    assert isinstance(stopped.outcome(), CallStopped)
    end(first)
    assert second.file.readline() == b"NOOP\n"
    end(second)


def test_a_waiter_stopped_on_its_way(play_upstream: Callable[..., Upstream]) -> None:
    """A place that was given to a waiter who is stopped in the same moment is not lost."""
    other = play_upstream(hold)
    handler = limited(other, max_queue=2, max_wait_s=LIMIT_S)
    first = ByHand(handler)
    assert first.file.readline() == b"NOOP\n"
    stopped = ByHand(handler)
    gevent.sleep(0.01)
    # In this order and in one round of the hub: the waiter has not been woken yet when it is stopped.
    for placed in (first, stopped):
        gevent.get_hub().loop.run_callback(placed.session.stop, 0.0)

    assert isinstance(first.outcome(), CallStopped)
    assert isinstance(stopped.outcome(), CallStopped)
    third = ByHand(handler)
    assert third.file.readline() == b"NOOP\n"
    end(third)


def test_waiting_for_a_server_that_fails(play_upstream: Callable[..., Upstream]) -> None:
    """Who waits for a server that goes to rest is told at once; it would wait in vain."""
    broken = gevent.event.Event()

    def script(link: Link) -> None:
        if len(other.links) == MOST_BROKEN:
            broken.wait()
        link.reset()

    other = play_upstream(script)
    handler = limited(other, max_queue=1, max_wait_s=LIMIT_S)
    for _ in range(MOST_BROKEN - 1):
        assert isinstance(ByHand(handler).outcome(), UpstreamUnavailable)
    first, second = ByHand(handler), ByHand(handler)
    wait_until(lambda: len(other.links) == MOST_BROKEN)
    broken.set()

    assert isinstance(first.outcome(), UpstreamUnavailable)
    raised = second.outcome()
    assert isinstance(raised, UpstreamUnavailable)
    assert "tried again in 1 s" in str(raised)


def test_waiting_for_one_that_rests(play_upstream: Callable[..., Upstream]) -> None:
    """Who waits for a full server takes another one whose rest is over."""
    full = play_upstream(hold)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        first = Server("127.0.0.1", holder.getsockname()[1])
        handler = to(first, Server(full.host, full.port, 1), max_queue=1, max_wait_s=LIMIT_S)
        holding = ByHand(handler)
        assert holding.file.readline() == b"NOOP\n"
    play_upstream(lambda link: link.ask(b"VERBOSE back\n"), port=first.port)
    waiting = ByHand(handler)

    assert waiting.file.readline() == b"VERBOSE back\n"
    waiting.link.sendall(OK)
    assert waiting.outcome() is None
    end(holding)


def test_many_calls_at_once(play_upstream: Callable[..., Upstream]) -> None:
    """Two hundred calls in one process are all connected at the same time, each with its own dialogue."""
    number = 200
    all_there = gevent.event.Event()

    def script(link: Link) -> None:
        if len(other.links) == number:
            all_there.set()
        all_there.wait()
        other.heard.append(link.ask(b"GET VARIABLE N\n"))

    other = play_upstream(script)
    handler = to(other.server)
    calls = [ByHand(handler) for _ in range(number)]
    for serial, placed in enumerate(calls):
        assert placed.file.readline() == b"GET VARIABLE N\n"
        placed.link.sendall(b"200 result=1 (%d)\n" % serial)

    assert [placed.outcome() for placed in calls] == [None] * number
    wait_until(lambda: len(other.heard) == number)
    assert set(other.heard) == {b"200 result=1 (%d)\n" % serial for serial in range(number)}
