"""Commands: what one command costs this side beyond its socket calls.

Laws:
    * A real ``Call`` on a real ``Session`` is measured, and only this process's CPU time counts.
    * It is judged with its three socket calls (write, wait in the hub, read) left out: a reply is there
      at once.
    * For information it is also measured with them, beside the same bytes written, waited for and read
      by bare hands, in turns. Asterisk is then played by a child on the same core, which knows the recorded
      lines alone. That difference is larger, because what runs behind a system call and another process
      finds caches, address translations and branch predictors cold; how cold, the machine decides.
"""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, NoReturn, TypeVar

import gevent
from bench import Bench
from figures import Section, judged

from fastagi_pool.call import Call
from fastagi_pool.errors import AGIError, CallEnded, RemoteProtocolError
from fastagi_pool.protocol import HeaderLimits
from fastagi_pool.results import Playback
from fastagi_pool.session import Session, SessionLimits

_MOST_OVERHEAD_US: Final = 15.0
#: Commands of each kind, in each round: 50,400 in the 20 rounds of a full run.
_COMMANDS_PER_KIND: Final = 360
_ENVIRONMENT: Final = b"agi_network: yes\nagi_network_script: commands\nagi_version: 22.10.1\n\n"
#: The bare exchanges count as the handler's time: far more than they take, but a limit, as in service.
_LIMITS: Final = SessionLimits(script_s=3600.0)
_RECEIVE_BYTES: Final = 16384
_READ: Final = 1
_MIX: Final = "mix"
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class _Kind:
    """One usual command.

    Source of lines and replies: tests/corpus/agi/22, 01_normal, 30_quoting and 48_exec_results.

    Attributes:
        name: The command, and what is special about it.
        play: Gives it by a method of ``Call``.
        line: What goes out.
        reply: What comes back.
        result: What the method must return.
    """

    name: str
    play: Callable[[Call], object]
    line: bytes
    reply: bytes
    result: object


_KINDS: Final = (
    _Kind(
        "SET VARIABLE",
        lambda call: call.set_variable("LEFT", "behind"),
        b"SET VARIABLE LEFT behind\n",
        b"200 result=1\n",
        None,
    ),
    _Kind(
        "SET VARIABLE quoted",
        lambda call: call.set_variable("A", "two words"),
        b'SET VARIABLE A "two words"\n',
        b"200 result=1\n",
        None,
    ),
    _Kind(
        "GET VARIABLE",
        lambda call: call.get_variable("LEFT"),
        b"GET VARIABLE LEFT\n",
        b"200 result=1 (behind)\n",
        "behind",
    ),
    _Kind(
        "GET VARIABLE not set",
        lambda call: call.get_variable("NOSUCH"),
        b"GET VARIABLE NOSUCH\n",
        b"200 result=0\n",
        None,
    ),
    _Kind(
        "VERBOSE quoted",
        lambda call: call.verbose("hello world"),
        b'VERBOSE "hello world" 1\n',
        b"200 result=1\n",
        None,
    ),
    _Kind(
        "EXEC of 2 arguments",
        lambda call: call.exec("Dial", "Local/nosuch@nowhere", "1"),
        b"EXEC Dial Local/nosuch@nowhere,1\n",
        b"200 result=0\n",
        0,
    ),
    _Kind(
        "STREAM FILE",
        lambda call: call.stream_file("silence100ms"),
        b'STREAM FILE silence100ms ""\n',
        b"200 result=0 endpos=800\n",
        Playback("", 800),
    ),
)
_REPLIES: Final[Mapping[bytes, bytes]] = {kind.line: kind.reply for kind in _KINDS}
#: What is measured, by name: all kinds in turn, and each one alone.
_CASES: Final[Mapping[str, Sequence[_Kind]]] = {_MIX: _KINDS, **{kind.name: (kind,) for kind in _KINDS}}


@dataclass(frozen=True, slots=True)
class _Cost:
    """CPU time of a command in one round.

    Attributes:
        call_us: By ``Call``, in all.
        sockets_us: By the socket calls alone.
    """

    call_us: float
    sockets_us: float

    @property
    def overhead_us(self) -> float:
        """What ``Call``, protocol and session add."""
        return self.call_us - self.sockets_us


def commands(bench: Bench) -> Section:
    """Measure the CPU time that a command costs, beyond that of its socket calls."""
    rounds = bench.scale.rounds
    with _on_one_core(), _as_after_the_fork():
        found = _measure(rounds)
    overheads_us = {name: [cost.overhead_us for cost in costs] for name, costs in found.items()}
    mix_us = overheads_us.pop(_MIX)
    sockets_us = median(cost.sockets_us for cost in found[_MIX])
    with _as_after_the_fork():
        alone_us = _measure_unplugged(rounds)
    figure = judged(
        "CPU time of a command, its socket calls left out",
        f"{median(alone_us):.1f} us (rounds: {min(alone_us):.1f} to {max(alone_us):.1f})",
        f"less than {_MOST_OVERHEAD_US:g} us",
        median(alone_us) < _MOST_OVERHEAD_US,
    )
    by_kind = ", ".join(f"{name} {median(each_us):.1f} us" for name, each_us in overheads_us.items())
    count = rounds * _COMMANDS_PER_KIND * len(_KINDS)
    title = (
        f"{count:,} commands of {len(_KINDS)} kinds in turn, in one process. With their socket calls, which "
        f"alone take {sockets_us:.1f} us, and a peer on the same core they take {median(mix_us):.1f} us "
        f"more than these (rounds: {min(mix_us):.1f} to {max(mix_us):.1f}); each kind for itself: {by_kind}."
    )
    return Section("commands", title, (figure,))


@contextmanager
def _as_after_the_fork() -> Iterator[None]:
    """Keep the collector from what was there before, as a worker's loader does before it forks."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _on_one_core() -> Iterator[None]:
    """Keep this process, and the child that it makes, on one core.

    Otherwise the scheduler decides, from round to round, whether each command has to wake another core:
    on a virtual machine that costs more than all that is measured here.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _measure(rounds: int) -> dict[str, list[_Cost]]:
    """Measure all cases; afterwards there is no hub, as before.

    Raises:
        RuntimeError: A command does not send its line, or does not understand its reply.
    """
    with _asterisk() as descriptor:
        hub: Any = gevent.get_hub()
        session = Session(descriptor, "127.0.0.1", hub, _LIMITS, HeaderLimits())
        try:
            # As in a worker: the one that waits is never the main greenlet.
            costs: dict[str, list[_Cost]] = gevent.spawn(_serve, session, descriptor, hub, rounds).get()
        except (AGIError, CallEnded, RemoteProtocolError) as error:
            raise RuntimeError(f"a command does not fit its recorded line and reply: {error}") from error
        finally:
            session.close()
            hub.destroy(destroy_loop=True)
    return costs


class _Unplugged(Session):
    """A session without a wire: whatever is sent is answered at once."""

    __slots__ = ("_reply",)

    def unplug(self) -> None:
        """Ask nothing more of the system; the environment is there."""
        self._hub = self
        self._reply = _ENVIRONMENT

    def wait(self, watcher: object) -> None:
        """Be the hub: nothing has to be waited for."""

    def _send(self, data: bytes) -> None:
        self._reply = _REPLIES[data]

    def _receive_some(self) -> bytes:
        return self._reply


def _measure_unplugged(rounds: int) -> list[float]:
    """Measure commands of all kinds in turn without their socket calls, in microseconds each."""
    server, asterisk = socket.socketpair()
    server.setblocking(False)
    hub: Any = gevent.get_hub()
    with asterisk:
        session = _Unplugged(server.detach(), "127.0.0.1", hub, _LIMITS, HeaderLimits())
        session.unplug()
        request = session.receive_request()
        assert request is not None
        session.begin(_LIMITS)
        call = Call(request, session)
        plays = [kind.play for kind in _KINDS]

        def give(plays: Sequence[Callable[[Call], object]]) -> None:
            for _ in range(_COMMANDS_PER_KIND):
                for play in plays:
                    play(call)

        give(plays)
        costs_us = [_cpu_us(give, plays) for _ in range(rounds)]
        session.close()
    hub.destroy(destroy_loop=True)
    return costs_us


def _serve(session: Session, descriptor: int, hub: Any, rounds: int) -> dict[str, list[_Cost]]:
    """Be the handler of the one call."""
    request = session.receive_request()
    if request is None:
        raise RuntimeError("the process that plays Asterisk has ended")
    session.begin(_LIMITS)
    reader = hub.loop.io(descriptor, _READ)
    wire = _Wire(Call(request, session), descriptor, hub, reader)
    try:
        wire.check()
        for kinds in _CASES.values():
            wire.cost(kinds, call_first=True)  # What runs for the first time does not count.
        costs: dict[str, list[_Cost]] = {name: [] for name in _CASES}
        for number in range(rounds):
            for name, kinds in _CASES.items():
                costs[name].append(wire.cost(kinds, call_first=number % 2 == 0))
    finally:
        reader.stop()
        reader.close()
    return costs


@dataclass(frozen=True, slots=True)
class _Wire:
    """One connection, used by a call or by bare hands.

    Attributes:
        call: The call on it.
        descriptor: Its socket.
        hub: gevent's hub.
        reader: A watcher of the socket, as the session has its own.
    """

    call: Call
    descriptor: int
    hub: Any
    reader: Any

    def check(self) -> None:
        """Give each command once, and look at what it returns.

        Raises:
            RuntimeError: It is not what the reply says.
        """
        for kind in _KINDS:
            result = kind.play(self.call)
            if result != kind.result:
                raise RuntimeError(f"{kind.name} returned {result!r}, not {kind.result!r}")

    def cost(self, kinds: Sequence[_Kind], call_first: bool) -> _Cost:
        """Measure some kinds in turn, once in each way."""
        if call_first:
            call_us = _cpu_us(self._command, [kind.play for kind in kinds])
            sockets_us = _cpu_us(self._exchange, [kind.line for kind in kinds])
        else:
            sockets_us = _cpu_us(self._exchange, [kind.line for kind in kinds])
            call_us = _cpu_us(self._command, [kind.play for kind in kinds])
        return _Cost(call_us, sockets_us)

    def _command(self, plays: Sequence[Callable[[Call], object]]) -> None:
        call = self.call
        for _ in range(_COMMANDS_PER_KIND):
            for play in plays:
                play(call)

    def _exchange(self, lines: Sequence[bytes]) -> None:
        """Do what ``Session.execute`` asks of the system for each command, and nothing else."""
        descriptor, wait, reader = self.descriptor, self.hub.wait, self.reader
        for _ in range(_COMMANDS_PER_KIND):
            for line in lines:
                os.write(descriptor, line)
                wait(reader)
                os.read(descriptor, _RECEIVE_BYTES)


def _cpu_us(run: Callable[[Sequence[_Item]], None], items: Sequence[_Item]) -> float:
    """Return the CPU time of one command, all kinds taken together."""
    begun_s = time.process_time()
    run(items)
    return (time.process_time() - begun_s) * 1e6 / (_COMMANDS_PER_KIND * len(items))


@contextmanager
def _asterisk() -> Iterator[int]:
    """Run a child that plays Asterisk, and give a connection to it, non-blocking, to be closed by the user.

    The child ends with the connection.
    """
    server, asterisk = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        server.close()
        _answer(asterisk)
    asterisk.close()
    server.setblocking(False)
    try:
        yield server.detach()
    finally:
        os.waitpid(pid, 0)


def _answer(connection: socket.socket) -> NoReturn:
    """Answer each line by its reply, until the connection ends or a line is none of ours."""
    try:
        connection.sendall(_ENVIRONMENT)
        while line := connection.recv(_RECEIVE_BYTES):
            connection.sendall(_REPLIES[line])
    finally:
        # Whatever happens: this is a copy of the process that measures, and must not go on as one.
        os._exit(0)
