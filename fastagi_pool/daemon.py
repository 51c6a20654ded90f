"""Daemon: a program that goes on in the background, while whoever started it is told how that went.

Laws:
    * Whoever starts it waits until it serves, is refused or takes too long: an init script that says
      "started" has seen it serve.
    * The daemon holds nothing of its starter's: no terminal, no descriptor, no folder. Else a shell, an
      installer or a mount would wait for it for ever.
    * It tells by words in a pipe, and by the pipe's end if it dies without any.

How it works: fork, new session, fork again, so that it can never get a terminal; the process between the
two ends at once. Then the program is executed, and finds its end of the pipe by :data:`VARIABLE`. That end is
its own: its children close their copies as soon as they are forked.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from select import POLLIN, poll
from time import monotonic
from typing import Any, Final, NoReturn

from fastagi_pool.errors import OperatorError

#: Tells the program the number of the descriptor by which it speaks to its starter.
VARIABLE: Final = "FASTAGI_POOL_STARTER"
#: What the starter reads at most in one step; every word is far shorter.
_CHUNK_BYTES: Final = 65536
_FIRST_FREE: Final = 3


class Beginning(Enum):
    """How a daemon began."""

    SERVING = "it serves"
    ENDED = "it ended before it served"
    LATE = "it has neither begun to serve nor ended in time"


@dataclass(frozen=True, slots=True)
class Start:
    """How the start of a daemon went.

    Attributes:
        beginning: How it began.
        pid: Its process id; 0 if it did not even come to say it.
        addresses: Where it serves.
        report: What it said before that: why it was refused.
        code: What its life ended with; None if it lives, or died without a word.
    """

    beginning: Beginning
    pid: int = 0
    addresses: tuple[str, ...] = ()
    report: str = ""
    code: int | None = None


# --- the starter's side


def start(words: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Start:
    """Start a program as a daemon and wait until it serves.

    Args:
        words: Its command line, the first an absolute path. It works in ``/``, and has to use a
            :class:`Mouth`.
        environment: Its environment.
        timeout_s: How long to wait; a daemon that is late goes on nevertheless.

    Returns:
        How it went.

    Raises:
        OSError: The machine cannot start another process.
    """
    # What is buffered would be written twice.
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        between = os.fork()
        if between == 0:
            _leave(words, environment, writing)
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    try:
        os.waitpid(between, 0)
        return _listen(reading, monotonic() + timeout_s)
    finally:
        os.close(reading)


def _listen(reading: int, until_s: float) -> Start:
    """Read words until one of them, the end of the pipe or the clock decides."""
    heard = Start(Beginning.LATE)
    poller = poll()
    poller.register(reading, POLLIN)
    unread = b""
    while poller.poll(max(0.0, until_s - monotonic()) * 1000):
        chunk = os.read(reading, _CHUNK_BYTES)
        if not chunk:
            return replace(heard, beginning=Beginning.ENDED)
        *lines, unread = (unread + chunk).split(b"\n")
        for line in lines:
            heard = _hear(heard, json.loads(line))
            if heard.beginning is not Beginning.LATE:
                return heard
    return heard


def _hear(heard: Start, word: dict[str, Any]) -> Start:
    """Take one word of the daemon's."""
    match word:
        case {"pid": int(pid)}:
            return replace(heard, pid=pid)
        case {"report": str(text)}:
            return replace(heard, report=f"{heard.report}\n{text}".strip())
        case {"serving": list(addresses)}:
            return replace(heard, beginning=Beginning.SERVING, addresses=tuple(addresses))
        case {"ended": int(code)}:
            return replace(heard, beginning=Beginning.ENDED, code=code)
        case _:
            raise ValueError(f"not a word that a daemon says: {word}")


# --- on the way


def _leave(words: Sequence[str], environment: Mapping[str, str], writing: int) -> NoReturn:
    """In the process between: leave the starter's session, and become the daemon's parent for a moment."""
    try:
        os.setsid()
        if os.fork() == 0:
            _become(words, environment, writing)
    finally:
        os._exit(0)


def _become(words: Sequence[str], environment: Mapping[str, str], writing: int) -> NoReturn:
    """In the daemon: let go of all that is the starter's, and become the program."""
    mouth = Mouth(writing)
    try:
        mouth.say(pid=os.getpid())
        os.chdir("/")
        _let_go(writing)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.set_inheritable(writing, True)
        os.execve(words[0], list(words), {**environment, VARIABLE: str(writing)})
    except OSError as error:
        mouth.report(f"cannot execute {words[0]}: {error.strerror}")
    finally:
        os._exit(1)


def _let_go(writing: int) -> None:
    """Close every descriptor but one; the standard ones lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(_FIRST_FREE):
        os.dup2(nowhere, descriptor)
    # Listed before any is closed: one of them is the listing's own.
    for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if descriptor >= _FIRST_FREE and descriptor != writing:
            try:
                os.close(descriptor)
            except OSError:
                pass  # The listing's, which has ended.


# --- the daemon's side


class Mouth:
    """The daemon's end of the pipe; silent once it has told that it serves, and without a starter."""

    def __init__(self, writing: int = -1) -> None:
        """Speak into a descriptor, which is closed at the end; -1 if nobody listens."""
        self._writing = writing

    @classmethod
    def inherited(cls, environment: MutableMapping[str, str]) -> Mouth:
        """Find the descriptor that the starter left to this process, and keep it from all later ones."""
        written = environment.pop(VARIABLE, "")
        if not written:
            return cls()
        os.set_inheritable(int(written), False)
        mouth = cls(int(written))
        os.register_at_fork(after_in_child=mouth.close)
        return mouth

    def live(self, main: Callable[[Callable[[str], None], Callable[[list[str]], None]], int]) -> int:
        """Run the daemon's life, and tell with which code it ended if it has not served.

        Args:
            main: The life; it is given what reports a refusal, and what tells the addresses it serves on.

        Returns:
            The exit code.
        """
        code = 1
        try:
            code = main(self.report, self.serving)
        except OperatorError as error:
            self.report(str(error))
        except Exception as error:
            self.report(f"unforeseen: {type(error).__name__}: {error}")
        finally:
            self.say(ended=int(code))
            self.close()
        return code

    def report(self, text: str) -> None:
        """Tell why the daemon will not serve."""
        self.say(report=text)

    def serving(self, addresses: list[str]) -> None:
        """Tell that it serves; the last word."""
        self.say(serving=addresses)
        self.close()

    def say(self, **word: object) -> None:
        """Write one word, if the starter still listens."""
        if self._writing < 0:
            return
        try:
            os.write(self._writing, json.dumps(word).encode() + b"\n")
        except OSError:
            self.close()  # The starter lost patience; the daemon does not mind.

    def close(self) -> None:
        """Say no more."""
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1
