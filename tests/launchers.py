"""Launchers: a real launcher, spoken to as a worker would, for tests of all that it consists of."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from fastagi_pool.launching import (
    Answer,
    Door,
    End,
    HangUp,
    Launch,
    Launched,
    LauncherChannel,
    NotLaunched,
    Over,
    ProcessSettings,
)

#: Some hundred times what anything takes here.
LIMIT_S: Final = 30.0
_Answer = TypeVar("_Answer", bound=Answer)


@dataclass
class RunningScript:
    """A script that was launched.

    Attributes:
        call: The call's reference.
        pid: Its process.
        stdin: Our end of its standard input.
        stdout: Our end of its standard output.
        stderr: Our end of its standard error.
    """

    call: str
    pid: int
    stdin: int
    stdout: int
    stderr: int

    def say(self, text: str) -> None:
        """Write a line to it."""
        os.write(self.stdin, f"{text}\n".encode())

    def hear(self) -> str:
        """Wait for what it writes next, as far as it comes in one piece."""
        assert select.select([self.stdout], [], [], LIMIT_S)[0], "nothing was written"
        return os.read(self.stdout, 100_000).decode()

    def everything(self) -> str:
        """Wait until nobody can write any more; return all."""
        return _read_all(self.stdout)

    def errors(self) -> str:
        """Wait until nobody can write errors any more; return all."""
        return _read_all(self.stderr)

    def close(self) -> None:
        """Let go of its streams."""
        for descriptor in (self.stdin, self.stdout, self.stderr):
            os.close(descriptor)


def _read_all(descriptor: int) -> str:
    data = b""
    while True:
        assert select.select([descriptor], [], [], LIMIT_S)[0], f"no end after {data!r}"
        piece = os.read(descriptor, 100_000)
        if not piece:
            return data.decode()
        data += piece


class Client:
    """A worker, as far as the launcher sees one."""

    def __init__(self, channel: LauncherChannel) -> None:
        self.channel = channel
        self._calls = 0

    def launch(
        self,
        file: Path | str,
        *arguments: str,
        variables: dict[str, str] | None = None,
        settings: ProcessSettings | None = None,
    ) -> str:
        """Ask for a script; return the call's reference."""
        self._calls += 1
        call = f"call-{self._calls}"
        fields = asdict(settings or ProcessSettings())
        assert self.channel.send(Launch(call, str(file), list(arguments), variables or {}, fields))
        return call

    def next(self) -> tuple[Answer, list[int]]:
        """Wait for the next answer."""
        assert select.select([self.channel], [], [], LIMIT_S)[0], "no answer came"
        received = self.channel.receive()
        assert received is not None, "the launcher is gone"
        answer, descriptors = received
        assert isinstance(answer, Launched | NotLaunched | Over)
        return answer, descriptors

    def expect(self, kind: type[_Answer], call: str = "") -> tuple[_Answer, list[int]]:
        """Wait for the next answer, which must be of this kind."""
        answer, descriptors = self.next()
        assert isinstance(answer, kind), answer
        assert not call or answer.call == call
        return answer, descriptors

    def run(self, file: Path | str, *arguments: str, **options: Any) -> RunningScript:
        """Have a script launched."""
        call = self.launch(file, *arguments, **options)
        launched, streams = self.expect(Launched, call)
        return RunningScript(call, launched.pid, *streams)

    def expect_launched(self, call: str) -> int:
        """Wait until a script runs; return its process, and let go of its streams."""
        launched, streams = self.expect(Launched, call)
        for stream in streams:
            os.close(stream)
        return launched.pid

    def refusal(self, file: Path | str, *arguments: str, **options: Any) -> str:
        """Ask for a script that cannot be launched; return the reason."""
        return self.expect(NotLaunched, self.launch(file, *arguments, **options))[0].reason

    def exit_code(self, script: RunningScript) -> int:
        """Close its streams, and wait until it is over; return its exit code, or minus its signal."""
        script.close()
        return os.waitstatus_to_exitcode(self.expect(Over, script.call)[0].status)

    def fate(self, script: RunningScript) -> int:
        """Wait until it is over by itself, or by being ended; return the same."""
        over, _ = self.expect(Over, script.call)
        script.close()
        return os.waitstatus_to_exitcode(over.status)

    def output(self, file: Path | str, *arguments: str, **options: Any) -> str:
        """Run a script to its end; return what it has written."""
        script = self.run(file, *arguments, **options)
        text = script.everything()
        errors = script.errors()
        assert self.exit_code(script) == 0, errors
        return text

    def end(self, script: RunningScript, grace_s: float) -> None:
        """Have it ended."""
        assert self.channel.send(End(script.call, grace_s))

    def hang_up(self, script: RunningScript) -> None:
        """Have SIGHUP sent to it."""
        assert self.channel.send(HangUp(script.call))


class RunningLauncher:
    """A launcher in a process of its own.

    Attributes:
        door: Where it is found.
        pid: Its process.
        log: Where it logs.
    """

    def __init__(self, log: Path, environment: dict[str, str] | None = None) -> None:
        self.log = log
        log.touch()
        self.door = Door()
        before = dict(os.environ)
        os.environ.update(environment or {})
        try:
            self.pid = self.door.start(str(log), "info", 7)
        finally:
            os.environ.clear()
            os.environ.update(before)
        self._ended = False
        self._workers: list[Client] = []

    def worker(self) -> Client:
        """Come as a new worker."""
        self._workers.append(Client(self.door.knock()))
        return self._workers[-1]

    def wait(self) -> int:
        """Wait for its end; return its exit code, or its signal as a negative number."""
        found = eventually(lambda: os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG))
        self._ended = True
        assert found is not None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def close(self) -> None:
        """End it, and see that it has found nothing wrong with itself."""
        for worker in self._workers:
            worker.channel.close()
        self.door.close()
        if not self._ended:
            assert self.wait() == 0
        assert "bug" not in self.log.read_text()


@contextmanager
def running_launcher(log: Path, environment: dict[str, str] | None = None) -> Iterator[RunningLauncher]:
    """Give a launcher, and end it."""
    launcher = RunningLauncher(log, environment)
    try:
        yield launcher
    finally:
        launcher.close()


_Found = TypeVar("_Found")


def eventually(look: Callable[[], _Found]) -> _Found:
    """Look again and again until something is found."""
    until_s = time.monotonic() + LIMIT_S
    while not (found := look()):
        assert time.monotonic() < until_s, "it never came true"
        time.sleep(0.005)
    return found


def alive(pid: int) -> bool:
    """Tell whether a process lives; one that waits for its burial does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def children(launcher: RunningLauncher) -> set[int]:
    """Find the living children of the launcher."""
    listed = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return {int(pid) for pid in listed if alive(int(pid))}


def write_script(path: Path, text: str) -> Path:
    """Write an executable file, in one step for whoever looks at it."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    fresh.chmod(0o755)
    return fresh.rename(path)
