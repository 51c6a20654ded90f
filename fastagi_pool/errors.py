"""The error tree: every failure that fastagi_pool raises on purpose has its place here.

Whose fault decides the branch, so that a reader of the log knows whom to ask::

    FastAGIPoolError(Exception)
    |-- OperatorError                what the operator gave us cannot work
    |   |-- ConfigError              the configuration; carries every Problem found
    |   `-- BootError                the machine: port in use, too few file descriptors
    |-- ProtocolError
    |   |-- LocalProtocolError       we used the protocol wrongly: a bug of ours
    |   `-- RemoteProtocolError      the peer sent what is not AGI
    |-- DatabaseUnavailable          a database that a call needs is away
    |-- DatabaseBusy                 it is there, but this was not done in time
    |-- RowsLost                     something could not be written, all else was
    |-- JournalUnavailable           a call that shall be done later cannot be written down
    |-- Quarantined                  the same request has ended workers
    |-- Overloaded                   every place that a call may take is taken
    |-- ScriptNotFound               no such legacy script, or none that may be run
    |-- ScriptFailed                 a legacy script ended badly, or could not be started
    |-- LimitExceeded                a legacy script took more than its route allows
    |-- UpstreamUnavailable          no server behind this one takes the call
    |-- ToldFailure                  a script or another server said that it failed
    `-- AGIError                     one command failed; the call goes on
        |-- AGICommandRefused        the guard: it would harm Asterisk, and was never sent
        |-- AGIInvalidCommand        510: Asterisk does not know the command
        |-- AGIDeadChannel           511: not permitted on a channel that hung up
        |-- AGIUsageError            520: wrong syntax; carries Asterisk's usage text
        |-- AGICallFinished          the handler has given the call back before
        |-- AGIAppError              EXEC of an application that Asterisk has not loaded
        `-- AGICommandFailed         result=-1 without a hangup

    CallEnded(BaseException)         the call is over; not an error of the handler
    |-- CallHangup                   the caller hung up
    |-- CallTimeout                  one of our limits ran out
    |-- CallPeerGone                 Asterisk closed the connection
    |-- CallOutOfStep                what came is no AGI: nothing after it can be trusted
    `-- CallStopped                  the worker must end now

``CallEnded`` lies outside ``Exception`` on purpose: a handler's ``except Exception: retry`` cannot
loop on a dead call. Anything else that escapes from fastagi_pool is a bug.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: Of what somebody else said: it may be long, and goes into logs.
_SHOWN_BYTES: Final = 200


class FastAGIPoolError(Exception):
    """The root of everything that is an error here."""


class OperatorError(FastAGIPoolError):
    """What the operator asked for cannot be done; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a configuration, said for the person who mends it.

    Attributes:
        file: The YAML file.
        line: The line in it, from 1; 0 if the problem has no line.
        key: The key path, as ``routes[2].handler``; empty for the file as a whole.
        message: What is wrong, and what would be right.
        hint: What to do, for example the key that was probably meant; may be empty.
    """

    file: str
    line: int
    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        key = f" {self.key}:" if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}:{key} {self.message}{hint}"


class ConfigError(OperatorError):
    """A configuration that must not be run.

    Attributes:
        problems: All that was found, in the order of the files and lines.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class BootError(OperatorError):
    """The machine does not give what the configuration needs."""


class ProtocolError(FastAGIPoolError):
    """Somebody broke the AGI protocol."""


class LocalProtocolError(ProtocolError):
    """We did: a bug in fastagi_pool."""


class RemoteProtocolError(ProtocolError):
    """The peer did: it is not Asterisk, or it is out of step."""


class DatabaseUnavailable(FastAGIPoolError):
    """A database cannot be reached now.

    Attributes:
        database: Its name in the configuration.
    """

    def __init__(self, database: str, reason: str) -> None:
        self.database = database
        super().__init__(f"database {database!r} is not available: {reason}")


class DatabaseBusy(FastAGIPoolError):
    """A database answers, but something stood in the way of these statements for too long.

    Attributes:
        database: Its name in the configuration.
    """

    def __init__(self, database: str, reason: str) -> None:
        self.database = database
        super().__init__(f"database {database!r} did not do it in time: {reason}")


class RowsLost(FastAGIPoolError):
    """A call was served to its end, but not all that it should leave behind is there; the log says what."""


class JournalUnavailable(FastAGIPoolError):
    """The journal cannot take or give a call; the message says why, and what to do."""


class Quarantined(FastAGIPoolError):
    """A request like this one has ended workers, and is not tried for a while."""


class Overloaded(FastAGIPoolError):
    """Every place that this call may take is taken, and it has waited long enough or may not wait."""


class ScriptNotFound(FastAGIPoolError):
    """There is no such legacy script, or it lies outside of its folder or is no file to be run."""


class ScriptFailed(FastAGIPoolError):
    """A legacy script could not be started or compiled, or ended with an exit code or by a signal."""


class LimitExceeded(FastAGIPoolError):
    """A legacy script took more than its route allows, and is being ended."""


class UpstreamUnavailable(FastAGIPoolError):
    """No server behind this one takes the call, or the one that did broke off."""


class ToldFailure(FastAGIPoolError):
    """Whoever speaks in the place of a handler said the line by which AGI tells a failure.

    Attributes:
        line: The line with its end.
        said_all: Whether the dialplan has been told everything else already, so that it gets the line and
            nothing besides.
    """

    def __init__(self, line: bytes, said_all: bool = False) -> None:
        self.line = line
        self.said_all = said_all
        shown = line[:_SHOWN_BYTES].decode(errors="replace").strip()
        super().__init__(f"it said {shown!r}")


class AGIError(FastAGIPoolError):
    """One AGI command failed; the call goes on.

    Attributes:
        command: The command line as it was (or would have been) sent.
    """

    def __init__(self, message: str, command: str = "") -> None:
        self.command = command
        super().__init__(f"{message}: {command}" if command else message)


class AGICommandRefused(AGIError):
    """The command would harm Asterisk and was not sent."""


class AGIInvalidCommand(AGIError):
    """510: Asterisk does not know the command."""


class AGIDeadChannel(AGIError):
    """511: the command is not permitted once the channel hung up."""


class AGIUsageError(AGIError):
    """520: wrong syntax.

    Attributes:
        usage: Asterisk's description of the right syntax; may be empty.
    """

    def __init__(self, message: str, command: str = "", usage: str = "") -> None:
        self.usage = usage
        super().__init__(message, command)


class AGICallFinished(AGIError):
    """The handler gave the call back with ``finish()``; there is no one to command any more."""


class AGIAppError(AGIError):
    """EXEC named an application that this Asterisk has not loaded."""


class AGICommandFailed(AGIError):
    """Asterisk answered result=-1 and no hangup followed."""


class CallEnded(BaseException):
    """The call is over. Outside ``Exception``: see the top of this module."""


class CallHangup(CallEnded):
    """The caller hung up, or the channel was transferred away from the script."""


class CallTimeout(CallEnded):
    """One of the call's limits ran out.

    Attributes:
        limit: Which one: ``header``, ``idle`` or ``script``.
        limit_s: Its length in seconds.
    """

    def __init__(self, limit: str, limit_s: float) -> None:
        self.limit = limit
        self.limit_s = limit_s
        super().__init__(f"{limit} time-out of {limit_s:g} s")


class CallPeerGone(CallEnded):
    """Asterisk closed the connection in the middle of the call."""


class CallOutOfStep(CallEnded):
    """What the peer sent is no AGI, so no later reply can be told from another."""


class CallStopped(CallEnded):
    """The worker has to end now; the call cannot go on."""
