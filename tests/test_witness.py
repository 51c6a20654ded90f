"""fastagi_pool.witness: real processes that play a worker and die, and this test as their Asterisk.

The worker is a child of the test; its witness becomes the test's child when the worker is dead, because the
test is their sub-reaper.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import gevent
import pytest
from children import in_child

from fastagi_pool import handover
from fastagi_pool.callboard import CallBoard, CallFacts, CallState
from fastagi_pool.custody import BEGUN, Custody, most_descriptors
from fastagi_pool.endings import GO_ON, ErrorAction, OnError
from fastagi_pool.logs import LogFile, configure
from fastagi_pool.protocol import HeaderLimits, encode_command
from fastagi_pool.session import Session, SessionLimits
from fastagi_pool.witness import Ward, Witness, crash_words, post

#: Far more than anything here takes.
WAIT_S: Final = 20.0
ENVIRONMENT: Final = b"agi_network: yes\nagi_network_script: hello\nagi_uniqueid: 1700000000.1\n\n"
ON_ERRORS: Final = {"goto": OnError(ErrorAction.GOTO, "sorry,s,1")}
#: Source: PR_SET_CHILD_SUBREAPER in linux/prctl.h.
_PR_SET_CHILD_SUBREAPER: Final = 36


def crash_of(ref: str) -> bytes:
    """What Asterisk hears of a call whose worker died."""
    told = {"FAGI_STATUS": "CRASH", "FAGI_ERROR": "the worker died", "FAGI_REF": ref}
    return b"".join([*(encode_command("SET VARIABLE", each) for each in told.items()), b"failure\n"])


@dataclass
class Actor:
    """Plays the worker, in its process.

    Attributes:
        listener: Where calls come.
        custody: What its descriptors are.
        board: Its call board.
        witness: Its witness.
        calls: The sessions, so that they live.
    """

    listener: socket.socket
    custody: Custody
    board: CallBoard
    witness: int
    calls: list[Session] = field(default_factory=list)

    def accept(self) -> Session:
        """Accept a connection."""
        descriptor, _ = self.listener._accept()  # type: ignore[attr-defined]
        os.set_blocking(descriptor, False)
        limits = SessionLimits()
        hub = gevent.get_hub()
        session = Session(descriptor, "10.0.0.7", hub, limits, HeaderLimits(), custody=self.custody)
        self.calls.append(session)
        return session

    def hear(self) -> Session:
        """Accept a connection and read its whole environment; it waits for a place, and does not begin."""
        session = self.accept()
        session.show_in(self.board.take())
        gevent.spawn(session.receive_request).join(WAIT_S)
        session.queues()
        return session

    def begin(self, ref: str = "ref-1", route: str = "hello") -> Session:
        """Accept a call and begin with it."""
        session = self.hear()
        session.called_in()
        session.row.known(ref, "hello", "1700000000.1", "SIP/1", "101")
        session.begin(SessionLimits())
        session.row.routed(route, 1.0)
        return session


#: What a worker does before it dies.
Act = Callable[[Actor], object]


def by_signal(number: int) -> Callable[[], None]:
    """Die of a signal."""
    return lambda: os.kill(os.getpid(), number)


def by_fault() -> None:
    """Die of a wild pointer."""
    ctypes.string_at(0)


@dataclass
class Scene:
    """A listening socket, a handover, and workers.

    Attributes:
        folder: For the files.
        listener: Where calls come.
        taking: Where other workers take calls.
        giving: Where witnesses give them.
        peers: Connections to the listener, as Asterisk makes them.
        witness: The last worker's witness.
    """

    folder: Path
    listener: socket.socket
    taking: int
    giving: int
    peers: list[socket.socket] = field(default_factory=list)
    witness: int = 0

    def call(self, number: int = 1, said: bytes = ENVIRONMENT) -> list[socket.socket]:
        """Connect and say something."""
        made = []
        for _ in range(number):
            peer = socket.socket(self.listener.family, socket.SOCK_STREAM)
            peer.settimeout(WAIT_S)
            peer.connect(self.listener.getsockname())
            peer.sendall(said)
            made.append(peer)
        self.peers += made
        return made

    def play(self, act: Act, die: Callable[[], object] | None = None) -> None:
        """Have a worker do something and die, of SIGKILL unless told how, and wait for its witness."""
        self.begin(act, die or by_signal(signal.SIGKILL))
        self.end()

    def begin(self, act: Act, die: Callable[[], object]) -> None:
        """Have a worker do something and die."""
        told, telling = os.pipe()
        worker = os.fork()
        if worker == 0:
            self._live(act, die, telling)
        os.close(telling)
        with os.fdopen(told) as pipe:
            self.witness = int(pipe.readline())
            assert pipe.readline() == "ready\n"
        os.waitpid(worker, 0)

    def end(self) -> None:
        """Wait for the end of the witness."""
        gone = os.pidfd_open(self.witness)
        try:
            # Not select(), which knows no descriptor beyond the first thousand.
            poller = select.poll()
            poller.register(gone, select.POLLIN)
            assert poller.poll(WAIT_S * 1000), "the witness does not end"
        finally:
            os.close(gone)
        assert os.waitpid(self.witness, 0) == (self.witness, 0)
        self.witness = 0

    def _live(self, act: Act, die: Callable[[], object], telling: int) -> NoReturn:
        try:
            signal.alarm(int(WAIT_S))
            # It dies on purpose: neither a traceback nor a core file is wanted.
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            log = LogFile(str(self.folder / "log"))
            configure(log, "info", "worker=3")
            pid = os.getpid()
            ward = Ward(
                slot=3,
                generation=1,
                pid=pid,
                gone_fd=os.pidfd_open(pid),
                calls_file=self.folder / "calls" / "3",
                listeners=[self.listener.fileno()],
                kept=[log.fileno()],
            )
            custody = Custody(most_descriptors())
            words = partial(crash_words, on_errors=ON_ERRORS, otherwise=GO_ON)
            witness = post(Witness(ward, custody, self.giving, words).run)
            os.write(telling, b"%d\n" % witness)
            gevent.reinit()
            board = CallBoard.create(ward.calls_file, 3, pid, 1000)
            act(Actor(self.listener, custody, board, witness))
            # Only now: whoever waits for the line goes on at once.
            os.write(telling, b"ready\n")
            os.close(telling)
            die()
        finally:
            os._exit(99)

    @property
    def log(self) -> str:
        """What was logged."""
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def take_all(self) -> list[socket.socket]:
        """Take what was given, as another worker does."""
        taken = []
        while some := handover.take(self.taking):
            taken += [socket.socket(fileno=descriptor) for descriptor in some]
        self.peers += taken
        return taken


@pytest.fixture(params=["tcp", "all", "unix"])
def any_scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """A scene over each kind of connection; ``all`` is IPv4 on a socket for IPv4 and IPv6."""
    yield from make_scene(request.param, tmp_path)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A scene over TCP."""
    yield from make_scene("tcp", tmp_path)


def make_scene(kind: str, folder: Path) -> Iterator[Scene]:
    """Make a scene, and leave nothing of it."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if kind == "unix":
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(folder / "agi"))
        listener.listen(1000)
    elif kind == "all":
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1000)
    else:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
    scene = Scene(folder, listener, *handover.make())
    yield scene
    if scene.witness:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(scene.witness, signal.SIGKILL)
            os.waitpid(scene.witness, 0)
    for peer in scene.peers:
        peer.close()
    for descriptor in (scene.taking, scene.giving):
        with suppress(OSError):
            os.close(descriptor)
    listener.close()
    prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def hear_all(peer: socket.socket) -> bytes:
    """Receive as Asterisk does: up to the failure line or the end, and then end our side too."""
    heard = b""
    while not heard.endswith(b"failure\n") and (piece := peer.recv(65536)):
        heard += piece
    with suppress(OSError):
        peer.shutdown(socket.SHUT_WR)
    return heard


# ---- how a worker dies


@pytest.mark.parametrize(
    "die",
    [by_signal(signal.SIGKILL), by_signal(signal.SIGSEGV), by_fault, partial(os._exit, 1), os.abort],
    ids=["killed", "segmentation fault", "wild pointer", "exit", "abort"],
)
def test_the_dialplan_is_told_of_a_death(scene: Scene, die: Callable[[], object]) -> None:
    """However a worker dies, the dialplan of a call that had begun hears why, with the call's reference."""
    [peer] = scene.call()
    scene.begin(Actor.begin, die)
    assert hear_all(peer) == crash_of("ref-1")
    scene.end()
    assert (
        "witness of worker=3: told 1 calls CRASH, gave 0 to another worker, 0 could not be told" in scene.log
    )


def test_every_kind_of_connection(any_scene: Scene) -> None:
    """Over IPv4, IPv6 and unix sockets those who had begun are told, and the others handed over."""
    begun, heard, stray = any_scene.call(3)
    any_scene.begin(lambda actor: (actor.begin(), actor.hear(), actor.listener._accept()), by_fault)  # type: ignore[attr-defined]
    assert hear_all(begun) == crash_of("ref-1")
    any_scene.end()
    taken = any_scene.take_all()
    assert [each.recv(1000) for each in taken] == [ENVIRONMENT, ENVIRONMENT]
    for ours, theirs in zip(taken, (heard, stray), strict=True):
        ours.sendall(b"NOOP\n")
        assert theirs.recv(10) == b"NOOP\n"


def test_a_worker_that_ends_in_order(scene: Scene) -> None:
    """Where no call was left behind the witness ends at once and says nothing."""
    [peer] = scene.call()

    def serve(actor: Actor) -> None:
        actor.begin().close()

    scene.play(serve, partial(os._exit, 0))
    assert (peer.recv(10), scene.log, scene.take_all()) == (b"", "", [])


def test_nothing_else_is_held_open(scene: Scene) -> None:
    """What the worker had open besides calls is closed before the dialplans are told, for databases wait."""
    theirs, ours = socket.socketpair()
    theirs.settimeout(WAIT_S)
    [peer] = scene.call()

    def connect(actor: Actor) -> None:
        ours.dup().detach()
        actor.begin()

    scene.begin(connect, by_signal(signal.SIGKILL))
    ours.close()
    assert theirs.recv(10) == b""
    # The peer has not ended its side: the witness still waits for it.
    assert os.waitpid(scene.witness, os.WNOHANG) == (0, 0)
    assert hear_all(peer) == crash_of("ref-1")
    scene.end()
    theirs.close()


# ---- who is told what


def test_one_whose_environment_came_in_part_is_handed_over(scene: Scene) -> None:
    """A connection in the middle of its environment goes to another worker with all that it has said."""
    [peer] = scene.call(said=ENVIRONMENT[:30])

    def wait_for_more(actor: Actor) -> None:
        session = actor.accept()
        session.greenlet = gevent.spawn(session.receive_request)
        gevent.sleep(0)

    scene.play(wait_for_more)
    [taken] = scene.take_all()
    peer.sendall(ENVIRONMENT[30:])
    heard = b""
    while len(heard) < len(ENVIRONMENT):
        heard += taken.recv(1000)
    assert heard == ENVIRONMENT
    assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


def test_one_that_has_said_nothing_is_handed_over(scene: Scene) -> None:
    """A connection that has said nothing yet goes to another worker as it is."""
    [peer] = scene.call(said=b"")
    scene.play(lambda actor: actor.accept().await_word(lambda *_: None))
    [taken] = scene.take_all()
    peer.sendall(ENVIRONMENT)
    assert taken.recv(1000) == ENVIRONMENT


def test_without_another_worker_all_are_told(scene: Scene) -> None:
    """Who can be given to nobody is told a failure, and never just closed."""
    [peer] = scene.call()
    os.close(scene.taking)
    scene.begin(Actor.hear, by_signal(signal.SIGKILL))
    assert hear_all(peer) == crash_of("")
    scene.end()


def test_one_that_was_told_before_hears_nothing_more(scene: Scene) -> None:
    """A call whose own failure was told before the worker died hears that and no other."""
    [peer] = scene.call()

    def fail(actor: Actor) -> None:
        session = actor.begin()
        session.greenlet = gevent.spawn(session.fail)
        gevent.sleep(0)

    scene.begin(fail, by_signal(signal.SIGKILL))
    assert hear_all(peer) == b"failure\n"
    assert peer.recv(10) == b""
    scene.end()


def test_one_that_fails_without_having_begun_is_not_handed_over(scene: Scene) -> None:
    """A call that was being refused when the worker died is not served by another, having heard a failure."""
    [peer] = scene.call()

    def refuse(actor: Actor) -> None:
        session = actor.hear()
        session.greenlet = gevent.spawn(session.fail)
        gevent.sleep(0)

    scene.begin(refuse, by_signal(signal.SIGKILL))
    assert hear_all(peer) == b"failure\n"
    scene.end()
    assert scene.take_all() == []


def test_a_number_that_is_used_again_is_no_call(scene: Scene) -> None:
    """A descriptor that was a call's and is something else now is neither told anything nor handed over."""
    theirs, ours = socket.socketpair()
    theirs.settimeout(WAIT_S)
    scene.call()

    def reuse(actor: Actor) -> None:
        session = actor.begin()
        number = session.fileno()
        session.close()
        assert ours.dup().detach() == number

    scene.play(reuse)
    ours.close()
    assert (theirs.recv(100), scene.log, scene.take_all()) == (b"", "", [])
    theirs.close()


def test_a_word_that_was_not_cleared_in_time_is_no_call(scene: Scene) -> None:
    """If a worker dies between the end of a call and its word, whatever took the number is left alone."""
    file = scene.folder / "file"

    def leave_a_word(actor: Actor) -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
        actor.custody.words[descriptor] = BEGUN

    scene.play(leave_a_word)
    assert (file.read_text(), scene.log, scene.take_all()) == ("", "", [])


def test_connections_of_other_sockets_are_no_calls(scene: Scene) -> None:
    """A connection that came to another socket of the worker's, as for its stacks, is just closed."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        asker = socket.create_connection(other.getsockname(), WAIT_S)

        def answer(actor: Actor) -> None:
            other._accept()  # type: ignore[attr-defined]

        scene.play(answer)
        assert (asker.recv(100), scene.log, scene.take_all()) == (b"", "", [])
        asker.close()


def test_the_route_says_what_follows(scene: Scene) -> None:
    """The dialplan goes where the call's route sends it."""
    [peer] = scene.call()
    scene.begin(lambda actor: actor.begin("ref-2", "goto"), by_signal(signal.SIGKILL))
    assert b"SET CONTEXT sorry\nSET EXTENSION s\nSET PRIORITY 1\nfailure\n" in hear_all(peer)
    scene.end()


def test_a_new_worker_took_the_slot_already(scene: Scene) -> None:
    """What is said of a call is from the dead worker's own board, though another stands in its place."""
    [peer] = scene.call()

    def be_replaced(actor: Actor) -> None:
        actor.begin()
        CallBoard.create(scene.folder / "calls" / "3", 3, 4711, 10)

    scene.begin(be_replaced, by_signal(signal.SIGKILL))
    assert hear_all(peer) == crash_of("ref-1")
    scene.end()


def test_a_call_without_a_row_is_told_too(scene: Scene) -> None:
    """A call for which there was no room on the board hears the same, without its reference."""
    [peer] = scene.call()

    def begin_unseen(actor: Actor) -> None:
        session = actor.accept()
        gevent.spawn(session.receive_request).join(WAIT_S)
        session.begin(SessionLimits())

    scene.begin(begin_unseen, by_signal(signal.SIGKILL))
    assert hear_all(peer) == crash_of("")
    scene.end()


def test_five_hundred_calls_at_once(scene: Scene) -> None:
    """Of many calls each is told or handed over: nobody is forgotten."""
    begun, heard = scene.call(400), scene.call(100)

    def serve(actor: Actor) -> None:
        for number in range(400):
            actor.begin(f"ref-{number}")
        for _ in range(100):
            actor.hear()

    scene.begin(serve, by_signal(signal.SIGKILL))
    assert sorted(map(hear_all, begun)) == sorted(crash_of(f"ref-{number}") for number in range(400))
    scene.end()
    taken = scene.take_all()
    assert len(taken) == len(heard)
    assert "told 400 calls CRASH, gave 100 to another worker, 0 could not be told" in scene.log


def test_a_peer_that_does_not_read_delays_nobody(scene: Scene) -> None:
    """With a peer that reads nothing the others hear as soon, and the witness ends all the same."""
    deaf, peer = scene.call(2)
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)

    def fill(actor: Actor) -> None:
        session = actor.begin("deaf")
        with suppress(BlockingIOError):
            while True:
                os.write(session.fileno(), b"x" * 65536)
        actor.begin()

    scene.begin(fill, by_signal(signal.SIGKILL))
    assert hear_all(peer) == crash_of("ref-1")
    scene.end()
    assert "told 1 calls CRASH, gave 0 to another worker, 1 could not be told" in scene.log


# ---- the witness itself


def test_signals_do_not_end_a_witness(scene: Scene) -> None:
    """What is sent to the whole group ends no witness before its worker, and wakes nobody."""
    [peer] = scene.call()

    def signal_the_witness(actor: Actor) -> None:
        actor.begin()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN):
            os.kill(actor.witness, number)

    scene.begin(signal_the_witness, by_signal(signal.SIGKILL))
    assert hear_all(peer) == crash_of("ref-1")
    scene.end()


def test_a_process_with_threads_is_not_copied() -> None:
    """A copy in which another thread's locks are held for ever is not made."""

    def work() -> str:
        over = threading.Event()
        threading.Thread(target=over.wait, daemon=True).start()
        try:
            post(lambda: 0)
        except RuntimeError as error:
            return str(error)
        return ""

    assert "threads" in in_child(work)


def test_a_life_that_raises(capfd: pytest.CaptureFixture[str]) -> None:
    """A witness that fails says why and ends with an error, and does not go on as a second worker."""

    def fail() -> int:
        raise ValueError("no such thing")

    def work() -> int:
        return os.waitstatus_to_exitcode(os.waitpid(post(fail), 0)[1])

    assert in_child(work) == 1
    assert "no such thing" in capfd.readouterr().err


def test_the_table_is_wide_from_the_beginning() -> None:
    """The table has its room before it is shared: to enlarge it then makes the worker stand still."""

    def work() -> list[int]:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        witness = post(lambda: 0)
        os.waitpid(witness, 0)
        [size] = [line for line in Path("/proc/self/status").read_text().split("\n") if "FDSize" in line]
        return [int(size.split()[1]), min(hard, 4096)]

    size, wanted = in_child(work)
    assert size >= wanted


def test_descriptors_are_shared() -> None:
    """What either opens after the birth of the witness is open in the other."""

    def work() -> list[Any]:
        asked, asking = os.pipe()
        answered, answering = os.pipe()

        def life() -> int:
            number = int(os.read(asked, 10))
            os.write(answering, os.pread(number, 5, 0))
            return 0

        witness = post(life)
        opened = os.open("/proc/self/comm", os.O_RDONLY)
        os.write(asking, b"%d" % opened)
        answer = os.read(answered, 10).decode()
        return [bool(answer), os.waitpid(witness, 0)[1]]

    assert in_child(work) == [True, 0]


def test_words_that_cannot_be_built(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a worker that went astray has left on its board, the failure itself is told."""

    def stumble(*_: Any, **__: Any) -> bytes:
        raise ValueError("no such text")

    monkeypatch.setitem(globals(), "crash_words", stumble)
    [peer] = scene.call()
    scene.begin(Actor.begin, by_signal(signal.SIGKILL))
    assert hear_all(peer) == b"failure\n"
    scene.end()


# ---- words


def facts(**known: Any) -> CallFacts:
    """A call in progress."""
    texts = dict.fromkeys(
        ("ref", "route", "script", "peer", "uniqueid", "channel", "callerid", "command", "statement"), ""
    )
    numbers = dict.fromkeys(
        ("accepted_s", "since_s", "queued_s", "asterisk_s", "script_s", "database_s"), 0.0
    )
    rest: dict[str, Any] = {"commands": 0, "hung_up": False, "slot": 0, "pid": 1, "state": CallState.SCRIPT}
    return CallFacts(**{**texts, **numbers, **rest, **known})


@pytest.mark.parametrize(
    ("known", "sent"),
    [
        (None, True),
        (facts(route="elsewhere"), True),
        (facts(route="goto"), False),
        (facts(route="elsewhere", hung_up=True), False),
    ],
    ids=["nothing", "no such route", "its route", "hung up"],
)
def test_where_the_dialplan_is_sent(known: CallFacts | None, sent: bool) -> None:
    """A call does what its route says, or else what all do; one that hung up goes nowhere any more."""
    words = crash_words(known, {"goto": GO_ON}, OnError(ErrorAction.HANGUP))
    assert (b"HANGUP\n" in words) is sent
    assert words.endswith(b"failure\n")
