"""Stage: a handler played against FakeAsterisk in this process, by the parts that serve real calls.

Laws:
    * Session, dispatcher and databases are the real ones; only Asterisk is played, at the other end of a
      socket pair. What a handler does here it does in a worker.
    * Routes and databases are described in the words of the configuration file, and checked as there.
    * An exception of the handler is raised where the call was placed, unless it was asked to be caught.
    * A call ends within its time, whatever the handler does that gevent can interrupt.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self

import gevent
import gevent.event
import gevent.socket
import yaml

from fastagi_pool.application import Application, assemble
from fastagi_pool.asterisk import Behaviour, Caller, FakeAsterisk
from fastagi_pool.attendants import Attendants
from fastagi_pool.call import Call
from fastagi_pool.config import load, load_text
from fastagi_pool.context import Context
from fastagi_pool.dispatch import Dispatcher, Handler
from fastagi_pool.endings import OnError
from fastagi_pool.logs import LOGGER_NAME, CallRecord
from fastagi_pool.recording import Transcript
from fastagi_pool.replaying import RecordedAsterisk, differences
from fastagi_pool.session import Session
from fastagi_pool.testing import QUICK_WIRE, CallResult, Wire, play

#: How often limits of the call are looked at.
_SWEEP_S: Final = 0.05
#: How long a handler that was interrupted may take to end.
_LETTING_GO_S: Final = 1.0
#: The name by which a handler that is given as a function stands in the configuration.
_GIVEN: Final = "given:here"
_log = logging.getLogger(LOGGER_NAME)


@dataclass(slots=True)
class StagedCall(CallResult):
    """How a call of a handler went.

    Attributes:
        outcome: As in the access log: ``ok``, ``hangup``, ``error``, ``timeout``...
        error: What the handler raised; None if nothing.
        record: What the access log would say.
    """

    outcome: str = ""
    error: BaseException | None = None
    record: CallRecord | None = None


class _Company:
    """One application on the stage: what a worker is without its sockets."""

    def __init__(self, application: Application) -> None:
        self._databases = application.make_databases()
        application.open_databases(self._databases, _log)
        self._application = application
        self._launcher = application.start_launcher("-", 0)
        self._launches = application.connect_scripts(_log)
        self._state: dict[str, Any] = {}
        self._errors: list[BaseException] = []
        self._records: list[CallRecord] = []
        self.limits = application.session_limits
        self.header_limits = application.header_limits
        handlers = {name: self._noting(handler) for name, handler in application.handlers.items()}
        self.dispatcher = Dispatcher(
            table=application.table,
            handlers=handlers,
            databases=self._databases,
            state=self._state,
            log=_log,
            records=[self],
            ref_prefix="staged-",
            on_error=OnError.parse(application.config.on_error),
        )
        for setup in application.setups:
            setup(Context(self._databases, _log, self._state))

    def write(self, record: CallRecord, wall_s: float) -> None:
        """Take what the dispatcher writes of a call."""
        self._records.append(record)

    def report(self, result: StagedCall) -> None:
        """Put what is known of the last call into its result."""
        result.record = self._records[-1] if self._records else None
        result.outcome = result.record.outcome if result.record else ""
        result.error = self._errors[-1] if self._errors else None
        self._records.clear()
        self._errors.clear()

    def close(self) -> None:
        """End as a worker ends."""
        with ExitStack() as last:
            last.callback(self._dismiss_launcher)
            for database in self._databases.values():
                last.callback(database.close)
            for teardown in reversed(self._application.teardowns):
                last.callback(teardown, Context(self._databases, _log, self._state))

    def _dismiss_launcher(self) -> None:
        if self._launches is not None and self._application.door is not None:
            self._launches.close()
            self._application.door.close()
            os.waitpid(self._launcher, 0)

    def _noting(self, handler: Handler) -> Handler:
        def noted(call: Call, context: Context) -> object:
            try:
                return handler(call, context)
            except BaseException as error:
                self._errors.append(error)
                raise

        return noted


class Stage:
    """Places calls to handlers. Databases and ``setup`` serve all calls of the same configuration."""

    def __init__(self) -> None:
        self._hub: Any = gevent.get_hub()
        self._companies: dict[tuple[str, object], _Company] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Run ``teardown`` and close the databases."""
        with ExitStack() as last:
            for company in self._companies.values():
                last.callback(company.close)
            self._companies.clear()

    def __call__(
        self,
        handler: Handler,
        script: str = "test",
        *arguments: str,
        route: Mapping[str, Any] | None = None,
        databases: Mapping[str, Any] | None = None,
        caller: Caller | None = None,
        wire: Wire = QUICK_WIRE,
        timeout_s: float = 10.0,
        catch: bool = False,
        **behaviour: Any,
    ) -> StagedCall:
        """Place one call to a handler.

        Args:
            handler: The function. A ``setup`` in its module is run before its first call.
            script: The script with its query, as behind the host of the URL.
            arguments: As in the dialplan behind the URL.
            route: Its route, in the words of the configuration file; by default one that takes every
                script.
            databases: The databases, in the words of the configuration file.
            caller: Who calls.
            wire: How the network treats what is said.
            timeout_s: When a handler that does not end is interrupted.
            catch: Whether an exception of the handler is only put into the result.
            behaviour: What caller and channel do: the attributes of ``Behaviour``.

        Raises:
            Exception: What the handler raised, unless ``catch``.
            ConfigError: The route or the databases cannot be.
            TimeoutError: The handler did not end in time.
        """
        words = {"handler": _GIVEN, **(route or {})}
        if not words.keys() & {"script", "glob", "regex", "default"}:
            words["default"] = True
        text = yaml.safe_dump({"databases": dict(databases or {}), "routes": [words]})
        company = self._company(
            (text, handler),
            lambda: assemble(load_text(text, "agi_call", Path.cwd(), {}), {_GIVEN: handler}),
        )
        asterisk = _asterisk(script, arguments, caller, behaviour)
        return self._play(company, asterisk, wire, timeout_s, catch)

    def configured(
        self,
        path: str | Path,
        script: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        caller: Caller | None = None,
        wire: Wire = QUICK_WIRE,
        timeout_s: float = 10.0,
        catch: bool = False,
        **behaviour: Any,
    ) -> StagedCall:
        """Place one call through a configuration file, with its routes, handlers and databases.

        Args:
            path: The YAML file.
            script: The script with its query; the routes find the handler.
            arguments: As in the dialplan behind the URL.
            environment: The variables for ``${NAME}`` in the file.
            caller: Who calls.
            wire: How the network treats what is said.
            timeout_s: When a handler that does not end is interrupted.
            catch: Whether an exception of the handler is only put into the result.
            behaviour: What caller and channel do: the attributes of ``Behaviour``.

        Raises:
            Exception: What the handler raised, unless ``catch``.
            ConfigError: The configuration cannot be run.
            TimeoutError: The handler did not end in time.
        """
        company = self._company(
            (str(Path(path).absolute()), None), lambda: assemble(load(Path(path), environment or {}))
        )
        asterisk = _asterisk(script, arguments, caller, behaviour)
        return self._play(company, asterisk, wire, timeout_s, catch)

    def replay(
        self, application: Application, transcript: Transcript, timeout_s: float = 60.0
    ) -> tuple[StagedCall, list[str]]:
        """Play a recorded call to the handler that serves it now.

        Args:
            application: What serves it.
            transcript: What was recorded.
            timeout_s: When a handler that does not end is interrupted.

        Returns:
            How it went, and where it differs from the recording, line by line; none if nowhere.

        Raises:
            TimeoutError: The handler did not end in time.
        """
        # By identity: it holds mappings, so it has no hash; its company keeps it alive.
        company = self._company(("", id(application)), lambda: application)
        asterisk = RecordedAsterisk(transcript)
        result = self._play(company, asterisk, QUICK_WIRE, timeout_s, catch=True)
        return result, list(differences(transcript, asterisk.said, result.outcome))

    def _company(self, key: tuple[str, object], assemble_it: Callable[[], Application]) -> _Company:
        """Return who plays for this key; set up at its first call."""
        if key not in self._companies:
            self._companies[key] = _Company(assemble_it())
        return self._companies[key]

    def _play(
        self, company: _Company, asterisk: FakeAsterisk, wire: Wire, timeout_s: float, catch: bool
    ) -> StagedCall:
        result = StagedCall(connected=True)
        ours, theirs = gevent.socket.socketpair()
        descriptor = theirs.detach()
        os.set_blocking(descriptor, False)
        session = Session(descriptor, "127.0.0.1", self._hub, company.limits, company.header_limits)
        sweep = self._hub.loop.timer(_SWEEP_S, repeat=_SWEEP_S)
        sweep.start(_expire_if_late, session)
        wire = replace(wire, sleep=gevent.sleep)
        asterisk_side = gevent.spawn(_be_asterisk, ours, asterisk, result, wire)
        served = gevent.event.Event()
        # Its own for each call: calls follow each other so quickly here that a time-out which one has left
        # running could not be told from the next one's.
        attendants = Attendants(self._hub)
        self._hub.loop.run_callback(attendants.attend, _serving(company, served), session)
        try:
            if not served.wait(timeout_s):
                said = list(result.commands)
                # In the hub, as in a worker: who throws from elsewhere would not be resumed.
                self._hub.loop.run_callback(session.stop, monotonic())
                served.wait(_LETTING_GO_S)
                raise TimeoutError(f"the handler did not end within {timeout_s:g} s; it said {said}")
            asterisk_side.get()
        finally:
            sweep.close()
            asterisk_side.kill()
            ours.close()
            session.close()
            company.report(result)
        if isinstance(result.error, Exception) and result.outcome != "hangup" and not catch:
            raise result.error
        return result


def _be_asterisk(link: Any, asterisk: FakeAsterisk, result: CallResult, wire: Wire) -> None:
    with link:
        play(link, asterisk, result, wire)


def _serving(company: _Company, served: gevent.event.Event) -> Callable[[Session], None]:
    def serve(session: Session) -> None:
        try:
            company.dispatcher.serve(session)
        finally:
            served.set()

    return serve


def _expire_if_late(session: Session) -> None:
    now_s = monotonic()
    if session.deadline_s <= now_s:
        session.expire(now_s)


def _asterisk(
    script: str, arguments: Sequence[str], caller: Caller | None, behaviour: Mapping[str, Any]
) -> FakeAsterisk:
    return FakeAsterisk(f"agi://127.0.0.1:4577/{script}", arguments, caller, Behaviour(**behaviour))
