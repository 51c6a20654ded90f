"""Controlling: the answering side of the control socket, in the observer.

Laws:
    * What the pool is told goes through the master's signals, as if an operator had sent them: nothing can be
      done here that cannot be done without.
    * The socket is another's to open at no moment: it is made with its mode, under a name of its own, and
      then takes the place of the old one in one step.
    * Nobody can hold it up: a client has so long to ask and to read, and there are so many of them.

See ``control`` for what is said.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from select import POLLIN
from time import monotonic
from typing import Any, Final

import gevent
from gevent import socket
from gevent.monkey import get_original
from gevent.pool import Pool
from gevent.server import StreamServer

from fastagi_pool.control import LONGEST_REQUEST_BYTES, SOCKET_NAME, Verb, decode, encode
from fastagi_pool.following import (
    Following,
    ReloadFollowing,
    Sight,
    StopFollowing,
    UpgradeFollowing,
    look,
)
from fastagi_pool.logs import LOGGER_NAME
from fastagi_pool.picture import NoPicture, Pictures
from fastagi_pool.scoreboard import Scoreboard, SlotFacts
from fastagi_pool.stacks import FOLDER, ask_stacks, blocked_for, short_address

#: What a client gets to say its line, and to read an answer.
CLIENT_TIMEOUT_S: Final = 10.0
#: Clients at once; further ones wait in the socket's queue.
MOST_CLIENTS: Final = 32
#: How often it is looked how far a reload has come.
FOLLOW_S: Final = 0.2
#: A worker that does not tell its stacks within this cannot: foreign code holds Python's lock.
STACKS_TIMEOUT_S: Final = 3.0
_BACKLOG: Final = 64
_PIECE_BYTES: Final = 4096
_CALLS: Final = 20

_SIGNALS: Final = {
    Verb.RELOAD: signal.SIGHUP,
    Verb.UPGRADE: signal.SIGUSR2,
    Verb.REOPEN: signal.SIGUSR1,
    Verb.STOP: signal.SIGTERM,
}
#: Parts of the picture that can be asked for by themselves.
_PARTS: Final = {Verb.WORKERS: "workers", Verb.ROUTES: "routes", Verb.DB: "databases"}


class MasterProcess:
    """The master as the observer sees it: by a descriptor, so that nobody else is ever meant."""

    def __init__(self, pid: int) -> None:
        """Get hold of it.

        Raises:
            OSError: It is no more.
        """
        self._descriptor = os.pidfd_open(pid)
        self._poll = get_original("select", "poll")()
        self._poll.register(self._descriptor, POLLIN)

    @property
    def lives(self) -> bool:
        """Whether it does; it goes on living when it becomes another program."""
        return not self._poll.poll(0)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal.

        Raises:
            OSError: It is no more, or another user's.
        """
        signal.pidfd_send_signal(self._descriptor, number)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)


class _RefusedRequest(Exception):
    """What was asked cannot be answered; the text says why."""


class _ClientGone(Exception):
    """Nobody is there to be answered."""


class _Client:
    """Who has connected."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._kept = b""

    def hear(self) -> bytes | None:
        """Return the next line; None if there will be no more."""
        with _limited():
            while b"\n" not in self._kept:
                piece = self._connection.recv(_PIECE_BYTES)
                if not piece:
                    return None
                self._kept += piece
                if len(self._kept) > LONGEST_REQUEST_BYTES:
                    raise _RefusedRequest(f"a line may have {LONGEST_REQUEST_BYTES} bytes at most")
        line, _, self._kept = self._kept.partition(b"\n")
        return line

    def say(self, **answer: Any) -> None:
        """Send one line."""
        line = encode({"ok": "error" not in answer, "more": False, **answer})
        with _limited():
            self._connection.sendall(line)

    def wait(self, time_s: float) -> None:
        """Let time pass, unless the client goes away meanwhile."""
        try:
            socket.wait_read(self._connection.fileno(), timeout=time_s, timeout_exc=TimeoutError)
        except TimeoutError:
            return
        if not self._connection.recv(1, socket.MSG_PEEK):
            raise _ClientGone
        # It asks for more already; that has to wait.
        gevent.sleep(time_s)


class ControlServer:
    """Serves the control socket of one pool."""

    def __init__(self, runtime_dir: Path, pictures: Pictures, master: MasterProcess) -> None:
        """Prepare; nothing is opened yet.

        Args:
            runtime_dir: Where the socket goes, and where the scoreboard and the workers' own sockets are.
            pictures: Of the pool.
            master: Whom orders are passed on to.
        """
        self._runtime_dir = runtime_dir
        self._path = runtime_dir / SOCKET_NAME
        self._pictures = pictures
        self._master = master
        self._log = logging.getLogger(LOGGER_NAME)
        self._clients = Pool(MOST_CLIENTS)
        self._server: StreamServer | None = None
        self._made = (0, 0)
        self._ending = False
        #: How many clients wait for an order to be carried out.
        self.followers = 0
        self._verbs: dict[Verb, Callable[[Verb, Mapping[str, Any], _Client], None]] = {
            Verb.STATUS: self._tell_status,
            Verb.CALLS: self._tell_calls,
            Verb.DUMP: self._tell_stacks,
            **dict.fromkeys(_PARTS, self._tell_part),
            **dict.fromkeys(_SIGNALS, self._pass_on),
        }

    def start(self) -> None:
        """Open the socket and serve.

        Raises:
            OSError: It cannot be made.
        """
        listener = self._listen()
        self._server = StreamServer(listener, self._serve, spawn=self._clients)
        self._server.start()

    def say_last_words(self) -> None:
        """Answer those who wait for the end of the pool: what is left of it waits for us."""
        self._ending = True

    def close(self) -> None:
        """End every answer, close the socket and take its file away, if it is still ours."""
        if self._server is not None:
            self._server.stop(timeout=0)
            self._server = None
            try:
                found = self._path.lstat()
                if (found.st_dev, found.st_ino) == self._made:
                    self._path.unlink()
            except OSError:
                pass  # The folder is gone, or is no more ours.

    def _listen(self) -> socket.socket:
        private = self._path.with_name(f"{SOCKET_NAME}.{os.getpid()}")
        private.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            with short_address(private) as address:
                listener.bind(address)
            listener.listen(_BACKLOG)
            found = private.lstat()
            private.rename(self._path)
        except OSError:
            listener.close()
            private.unlink(missing_ok=True)
            raise
        finally:
            os.umask(mask)
        self._made = (found.st_dev, found.st_ino)
        return listener

    def _serve(self, connection: socket.socket, _: object) -> None:
        client = _Client(connection)
        try:
            while True:
                line = client.hear()
                if line is None:
                    return
                self._answer(line, client)
        except _RefusedRequest as refused:
            client.say(error=str(refused))
        except (OSError, _ClientGone):
            pass  # It went away, or did not read in time.
        except Exception:
            self._log.exception("cannot answer at %s", self._path)

    def _answer(self, line: bytes, client: _Client) -> None:
        try:
            request = decode(line)
            verb = _verb(request)
            self._verbs[verb](verb, request, client)
        except (ValueError, NoPicture, _RefusedRequest) as error:
            client.say(error=str(error))

    # --- pictures

    def _tell_status(self, _: Verb, __: Mapping[str, Any], client: _Client) -> None:
        client.say(status=self._pictures.latest().status)

    def _tell_part(self, verb: Verb, _: Mapping[str, Any], client: _Client) -> None:
        client.say(**{_PARTS[verb]: self._pictures.latest().status[_PARTS[verb]]})

    def _tell_calls(self, _: Verb, request: Mapping[str, Any], client: _Client) -> None:
        limit = request.get("limit", _CALLS)
        if not isinstance(limit, int) or limit < 0:
            raise _RefusedRequest("'limit' must be a number of calls, 0 or more")
        client.say(calls=self._pictures.calls(limit))

    def _tell_stacks(self, _: Verb, request: Mapping[str, Any], client: _Client) -> None:
        slot = request.get("slot")
        workers = [each for each in self._sight().workers if slot is None or each.slot == slot]
        if slot is not None and not workers:
            raise _RefusedRequest(f"there is no worker {slot}; 'workers' tells which there are")
        # One that is stuck must not keep the others waiting.
        asking = Pool(MOST_CLIENTS)
        for told in asking.imap_unordered(self._stacks_of, workers):
            client.say(more=True, **told)
        client.say()

    def _stacks_of(self, worker: SlotFacts) -> dict[str, Any]:
        told: dict[str, Any] = {"slot": worker.slot, "pid": worker.pid, "stacks": "", "blocked_s": 0.0}
        path = self._runtime_dir / FOLDER / str(worker.slot)
        try:
            # In a thread: it may wait, whether or not the library is patched for gevent.
            text = gevent.get_hub().threadpool.apply(ask_stacks, (path, STACKS_TIMEOUT_S))
        except TimeoutError:
            told["error"] = f"no answer within {STACKS_TIMEOUT_S:g} s: foreign code holds Python's lock"
        except OSError as error:
            told["error"] = f"cannot be asked: {error}"
        else:
            told["stacks"] = text
            told["blocked_s"] = blocked_for(text)
        return told

    # --- orders

    def _pass_on(self, verb: Verb, request: Mapping[str, Any], client: _Client) -> None:
        wait = request.get("wait", False)
        if not isinstance(wait, bool):
            raise _RefusedRequest("'wait' must be true or false")
        following = self._following(verb) if wait else None
        try:
            self._master.send(_SIGNALS[verb])
        except OSError as error:
            raise _RefusedRequest(f"cannot reach the master: {error}") from error
        if following is None:
            client.say()
            return
        self.followers += 1
        try:
            self._follow(following, client)
        finally:
            self.followers -= 1

    def _following(self, verb: Verb) -> Following | None:
        if verb is Verb.RELOAD:
            return ReloadFollowing(self._sight())
        if verb is Verb.UPGRADE:
            return UpgradeFollowing(self._sight())
        return StopFollowing() if verb is Verb.STOP else None

    def _follow(self, following: Following, client: _Client) -> None:
        told = ""
        while True:
            # Its life first: what the board says after the end is the end.
            lives = self._master.lives and not self._ending
            try:
                sight = self._sight()
            except _RefusedRequest:
                sight = None
            step = following.step(sight, lives, monotonic())
            if step.done:
                client.say(**({"text": step.text} if step.ok else {"error": step.text}))
                return
            if step.text != told:
                client.say(more=True, text=step.text)
                told = step.text
            client.wait(FOLLOW_S)

    def _sight(self) -> Sight:
        # Attached anew each time: an upgrade or a restart makes another file.
        try:
            return look(Scoreboard.attach(self._runtime_dir / "scoreboard"))
        except (OSError, ValueError) as error:
            raise _RefusedRequest(f"cannot read the scoreboard: {error}") from error


def _verb(request: Mapping[str, Any]) -> Verb:
    try:
        return Verb(request.get("verb", ""))
    except ValueError:
        known = ", ".join(Verb)
        raise _RefusedRequest(f"the verb {request.get('verb')!r} is unknown; there are {known}") from None


@contextmanager
def _limited() -> Iterator[None]:
    with gevent.Timeout(CLIENT_TIMEOUT_S, _ClientGone):
        yield
