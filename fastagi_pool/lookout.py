"""Lookout: a thread in every worker that sees what the worker does even while a handler blocks it.

Laws:
    * It is a native thread beside gevent's: it takes no lock that gevent has replaced, logs nothing by itself
      and touches no watcher but the one that is made for other threads.
    * It accuses nobody of time in which it could not run itself: a process was stopped, a machine had none.
    * No signal ends up here, and nothing that goes wrong here ends the worker.

How it works: a few times in the time that is allowed the thread rings gevent's hub, which notes when it heard
the bell. A hub that does not is blocked, and whatever runs in the worker's main thread just then is to blame:
its stack goes into the slow log at once. When the hub hears again it logs how long it was.

Foreign code that holds Python's lock stops this thread as well. When it lets go, the thread sees that it has
waited for the lock, and takes the stack before the worker has got any further.
"""

from __future__ import annotations

import _socket
import logging
import os
import resource
import select
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from gevent import monkey
from greenlet import greenlet

from fastagi_pool.slowlog import SlowCall, SlowLog
from fastagi_pool.stacks import StackTaker, running_one, short_address, where, write, write_all

#: How the worker knows its calls; as a rule sessions.
CallT = TypeVar("CallT")

#: How often the hub is rung within the time for which it may be silent.
_RINGS: Final = 4
#: Of the time by which the thread is late, it has waited for Python's lock at least so much if that was why.
#: On a busy machine, where each of its wakes comes late as well, much less than all of it is seen.
_WAITED_SHARE: Final = 0.25
#: Who asks for stacks at the same time; others wait for their turn.
_MOST_CLIENTS: Final = 4
#: How long one who asks may take to read the answer.
_READING_S: Final = 5.0
#: Pause in letting in when the process is out of file descriptors: whoever waits would make the thread spin.
_EXHAUSTED_S: Final = 0.2
#: How long the thread may take to end.
_END_S: Final = 1.0
#: Pause after something went wrong in the thread, so that it does not spin.
_FAULT_PAUSE_MS: Final = 200
#: What waits to be logged by the hub; beyond it the oldest is dropped.
_MOST_MESSAGES: Final = 16
#: Faults of the thread itself: blocked they would end the process without a word.
_FAULT_SIGNALS: Final = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}


class Vigil:
    """Decides from times for how long the hub has been silent.

    Attributes:
        step_s: How often it wants to look.
        reported: Whether the present silence has been reported.
    """

    def __init__(self, blocked_s: float, now_s: float) -> None:
        """Begin.

        Args:
            blocked_s: Which silence is a blocking.
            now_s: Monotonic time.
        """
        self.step_s = blocked_s / _RINGS
        self.reported = False
        self._blocked_s = blocked_s
        self._due_s = now_s
        self._rung_s = now_s
        self._excused_s = 0.0

    def ring(self, now_s: float) -> None:
        """Note that the hub, which has heard the ring before, is rung again."""
        self.reported = False
        self._excused_s = 0.0
        # When it should have been: if foreign code held Python's lock, the hub was silent ever since.
        self._rung_s = min(now_s, self._due_s)

    def silence(self, now_s: float) -> float:
        """Return for how many seconds the hub has been silent since it was rung."""
        return max(0.0, now_s - self._rung_s - self._excused_s)

    def is_blocked(self, now_s: float, waited_s: float) -> bool:
        """Look at a hub that has not heard the last ring yet; True once for each blocking.

        Args:
            now_s: Monotonic time.
            waited_s: For how long the thread has waited for Python's lock since it looked last.
        """
        late_s = now_s - self._due_s
        if late_s > self.step_s / 2 and waited_s < late_s * _WAITED_SHARE:
            # Neither did the thread run nor did it wait for the lock: nothing in this process did.
            self._excused_s += late_s
        self._due_s = now_s + self.step_s
        if self.reported or self.silence(now_s) < self._blocked_s:
            return False
        self.reported = True
        return True

    def wait_s(self, now_s: float) -> float:
        """Return for how many seconds nothing is to be looked at."""
        return max(0.0, self._due_s - now_s)


def _to_nobody(silence_s: float) -> None:
    """Tell nobody how long the hub has been silent."""


@dataclass(slots=True)
class _Client:
    """Somebody who has asked for stacks."""

    connection: _socket.socket
    answer: bytes
    until_s: float


class _Door:
    """The socket at which stacks are asked for; never waits for anybody."""

    def __init__(self, path: Path) -> None:
        """Open it, in place of one that a dead worker has left.

        Raises:
            OSError: The folder cannot be made or written.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._path = path
        self._clients: dict[int, _Client] = {}
        self._rests_until_s = 0.0
        self._listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            self._listener.setblocking(False)
            # Before it has a name: the stacks are nobody else's business from the first moment.
            os.fchmod(self._listener.fileno(), 0o600)
            with short_address(path) as address:
                self._listener.bind(address)
            self._listener.listen(_MOST_CLIENTS)
        except OSError:
            self._listener.close()
            raise

    def register(self, poller: select.poll, now_s: float) -> None:
        """Say what to wait for."""
        if len(self._clients) < _MOST_CLIENTS and now_s >= self._rests_until_s:
            poller.register(self._listener.fileno(), select.POLLIN)
        for descriptor in self._clients:
            poller.register(descriptor, select.POLLOUT)

    def serve(self, ready: set[int], now_s: float, answer: Callable[[], str]) -> None:
        """Go on with whoever is ready, and drop who takes too long."""
        if self._listener.fileno() in ready:
            self._let_in(now_s, answer)
        for descriptor, client in list(self._clients.items()):
            done = client.until_s <= now_s
            if descriptor in ready:
                try:
                    client.answer = client.answer[client.connection.send(client.answer) :]
                    done = done or not client.answer
                except BlockingIOError:
                    pass
                except OSError:
                    done = True
            if done:
                del self._clients[descriptor]
                client.connection.close()

    def close(self) -> None:
        """Close it and take it away."""
        for client in self._clients.values():
            client.connection.close()
        self._clients.clear()
        self._listener.close()
        with suppress(OSError):
            self._path.unlink()

    def _let_in(self, now_s: float, answer: Callable[[], str]) -> None:
        try:
            descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            # Whoever it was has gone again, or there is no descriptor for the connection.
            self._rests_until_s = now_s + _EXHAUSTED_S
            return
        connection = _socket.socket(fileno=descriptor)
        connection.setblocking(False)
        client = _Client(connection, answer().encode("utf-8", "backslashreplace"), now_s + _READING_S)
        self._clients[descriptor] = client


class Lookout(Generic[CallT]):
    """Watches one worker, and tells whoever asks what its greenlets are doing."""

    def __init__(
        self,
        hub: Any,
        path: Path,
        identity: str,
        calls: Callable[[], Mapping[greenlet, CallT]],
        describe: Callable[[CallT], SlowCall],
        blocked_s: float,
        slow: SlowLog | None,
        log: logging.Logger,
        tell_silence: Callable[[float], None] = _to_nobody,
    ) -> None:
        """Prepare to watch; called in the worker's main thread.

        Args:
            hub: gevent's hub of this thread.
            path: The socket, ``stacks/<slot>`` below the runtime folder; the folder is made.
            identity: Who is watched, as ``worker=3 gen=1 pid=42``.
            calls: Returns the calls in progress by the greenlets that serve them. Like ``describe`` it is
                called by the lookout's thread: containers are to be copied in one step (``list(sessions)``),
                nothing may wait, log, lock, or ask gevent for anything.
            describe: Tells of one of these calls, or raises KeyError if it has ended meanwhile; ``stack`` and
                ``blocked_s`` are filled in here.
            blocked_s: Which silence of the hub is written down; 0 for none.
            slow: Where to; None for nowhere.
            log: Gets a warning when a blocking is over; used in the hub only.
            tell_silence: Told again and again, by the lookout's thread, for how many seconds the hub has been
                blocked; never that it is over. Like ``describe`` it must not wait.
        """
        self._path = path
        self._identity = identity
        self._calls = calls
        self._describe = describe
        self._slow = slow
        self._log = log
        self._tell_silence = tell_silence
        self._taker = StackTaker(monkey.get_original("_thread", "get_ident")())
        self._poll = monkey.get_original("select", "poll")
        self._bell = hub.loop.async_(ref=False)
        #: Rings are counted by the thread, and the hub notes which it heard last, and when.
        self._rung = 0
        self._heard = (0, monotonic())
        self._vigil = Vigil(blocked_s, monotonic()) if blocked_s else None
        self._culprit = ""
        self._messages: deque[tuple[int, str]] = deque(maxlen=_MOST_MESSAGES)
        self._door: _Door | None = None
        self._wake_fd = -1
        self._stopping = False
        self._running = False
        new_lock = monkey.get_original("_thread", "allocate_lock")
        self._begun, self._ended = new_lock(), new_lock()
        self._wakes = 0

    # --- the worker's side

    def start(self) -> None:
        """Begin to watch and to answer. Without a socket, or without a thread, that is logged and no more.

        Raises:
            OSError: The process is out of file descriptors.
        """
        try:
            self._door = _Door(self._path)
        except OSError as error:
            self._log.warning("cannot be asked for stacks at %s: %s", self._path, error)
        self._bell.start(self._on_bell)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._begun.acquire()
        self._ended.acquire()
        # A thread begins with the signal mask of whoever starts it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULT_SIGNALS)
        try:
            monkey.get_original("_thread", "start_new_thread")(self._live, ())
            self._running = True
            # Nothing that blocks from here on is to be missed.
            self._begun.acquire()
        except RuntimeError as error:
            self._log.warning("cannot watch this worker: %s", error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stop(self) -> None:
        """End the thread and take the socket away; nothing if it has not been started."""
        if self._wake_fd < 0:
            return
        self._stopping = True
        if self._running:
            os.eventfd_write(self._wake_fd, 1)
            self._running = not self._ended.acquire(timeout=_END_S)
        if self._running:
            return  # Held up, by a disk for example; what it uses stays.
        self._bell.close()
        self._log_messages()
        os.close(self._wake_fd)
        if self._door is not None:
            self._door.close()

    def _on_bell(self) -> None:
        """Hear the thread's ring; in the hub."""
        if self._heard[0] != self._rung:
            self._heard = (self._rung, monotonic())
        self._taker.let_go()
        self._log_messages()

    def _log_messages(self) -> None:
        while self._messages:
            self._log.log(*self._messages.popleft())

    # --- the thread's side

    def _live(self) -> None:
        self._begun.release()
        try:
            while not self._stopping:
                try:
                    self._look_around()
                except Exception as error:
                    self._complain(error)
                    self._poll().poll(_FAULT_PAUSE_MS)
        finally:
            self._ended.release()

    def _look_around(self) -> None:
        ready = self._wait()
        if self._vigil is not None:
            self._watch(self._vigil, monotonic())
        if self._door is not None:
            self._door.serve(ready, monotonic(), self._answer)

    def _wait(self) -> set[int]:
        poller = self._poll()
        poller.register(self._wake_fd, select.POLLIN)
        wait_s = _READING_S
        if self._vigil is not None:
            wait_s = min(wait_s, self._vigil.wait_s(monotonic()))
        if self._door is not None:
            self._door.register(poller, monotonic())
        # Rounded up: it would be too early otherwise, and spin.
        return {descriptor for descriptor, _ in poller.poll(int(wait_s * 1000) + 1)}

    def _watch(self, vigil: Vigil, now_s: float) -> None:
        if vigil.wait_s(now_s):
            return
        heard, heard_s = self._heard
        if heard == self._rung:
            if vigil.reported:
                self._say(
                    logging.WARNING, f"was blocked for {vigil.silence(heard_s):.1f} s by {self._culprit}"
                )
            vigil.ring(now_s)
            self._rung += 1
            self._bell.send()
        if vigil.is_blocked(now_s, self._waited_for_the_lock()):
            self._culprit = self._report(vigil.silence(now_s))
        if vigil.reported:
            self._tell_silence(vigil.silence(now_s))

    def _waited_for_the_lock(self) -> float:
        """Return for how many seconds this thread has waited for Python's lock since it was asked last.

        Who waits for the lock wakes up once in each switch interval to ask for it again.

        Source: take_gil() of CPython, Python/ceval_gil.h.
        """
        wakes = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        woken, self._wakes = wakes - self._wakes, wakes
        return woken * sys.getswitchinterval()

    def _report(self, silence_s: float) -> str:
        """Write down what blocks the worker; return in a few words who that is."""
        with self._taker.looking() as hold:
            stack = self._taker.running()
            call = self._running_call(hold)
        place = where(stack)
        if not place:
            return "nothing that could be seen: it had just ended, or the machine had no time"
        if call is None:
            if self._slow is not None:
                self._slow.report_blocked(silence_s, write(stack))
            return f"no call: {place}"
        if self._slow is not None:
            self._slow.report(replace(call, stack=write(stack), blocked_s=silence_s))
        return f"call={call.ref} route={call.route}: {place}"

    def _running_call(self, hold: Callable[[object], None]) -> SlowCall | None:
        """Return the call that has its turn; None if none has, or if it is not certain any more."""
        try:
            calls = self._calls()
            hold(calls)
            owner = running_one(calls)
            if owner is None or self._heard[0] == self._rung:
                return None
            return self._described(calls[owner])
        except Exception as error:
            self._complain(error)
            return None

    def _answer(self) -> str:
        """Write who is watched, and what all its greenlets are doing."""
        silence_s = 0.0
        if self._vigil is not None and self._heard[0] != self._rung:
            silence_s = self._vigil.silence(monotonic())
        with self._taker.looking() as hold:
            taken = self._taker.take(self._titles(hold))
        # Whoever hears it lets go of what was looked at.
        self._bell.send()
        return f"{self._identity} blocked_s={silence_s:.2f}\n\n{write_all(taken)}"

    def _titles(self, hold: Callable[[object], None]) -> dict[greenlet, str]:
        try:
            calls = self._calls()
            hold(calls)
            told = {each: self._described(call) for each, call in calls.items() if each}
            return {each: call.title for each, call in told.items() if call is not None}
        except Exception as error:
            self._complain(error)
            return {}

    def _described(self, call: CallT) -> SlowCall | None:
        try:
            return self._describe(call)
        except KeyError:
            return None  # It has ended meanwhile.

    def _complain(self, error: Exception) -> None:
        trace = traceback.extract_tb(error.__traceback__)[-1]
        self._say(
            logging.ERROR, f"the lookout failed: {error!r} in {trace.name}, {trace.filename}:{trace.lineno}"
        )
        self._bell.send()

    def _say(self, level: int, message: str) -> None:
        """Have something logged when the hub hears the bell: logging takes locks that gevent has replaced."""
        self._messages.append((level, message))
