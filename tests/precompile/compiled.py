"""A zygote as the tests speak to it, in the launcher's place, and the fresh run to compare it with."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import fastagi_pool

PRECOMPILE: Final = Path(fastagi_pool.__file__).parent / "precompile"
PERL: Final = "/usr/bin/perl"
PERL_ZYGOTE: Final = [PERL, f"-I{PRECOMPILE}", "-MFastAGIPool::Zygote"]
PYTHON: Final = sys.executable
PYTHON_ZYGOTE: Final = [PYTHON, str(PRECOMPILE / "python_zygote.py")]
MAX_MESSAGE_BYTES: Final = 200_000
#: A hundred times what anything here takes.
LIMIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Run:
    """What is seen of one run of a script.

    Attributes:
        output: What it printed.
        errors: What it wrote to its standard error.
        code: Its exit code; that of a signal is negative.
    """

    output: str
    errors: str
    code: int


@dataclass(frozen=True, slots=True)
class Call:
    """What one run of a script is given."""

    arguments: tuple[bytes, ...] = ()
    variables: dict[bytes, bytes] = field(default_factory=dict)
    speech: bytes = b""


#: A call with something of everything that is easily lost on the way, both ends of lines among it.
CALL: Final = Call(
    arguments=(b"a b", b"", b"\xff\xfe", "ä".encode(), b"-x", b"a=b", b"*"),
    variables={b"AST_CONFIG_DIR": b"/etc/asterisk", b"EMPTY": b"", b"ODD": b"a=b \xff\n"},
    speech="agi_request: käse\r\nagi_channel: SIP/1\n\n200 result=1 (value)\n".encode(),
)


def write_script(script: Path, text: str, modules: Mapping[str, str]) -> Path:
    """Write a script and the modules beside it, by their paths from there; return the script."""
    for name, content in modules.items():
        module = script.parent / name
        module.parent.mkdir(exist_ok=True)
        module.write_text(content)
    script.write_text(text)
    return script


def run_fresh(command: list[str], script: Path, call: Call) -> Run:
    """Run the script by a fresh interpreter, in its own directory."""
    done = subprocess.run(
        [*command, str(script), *call.arguments],
        input=call.speech,
        capture_output=True,
        cwd=script.parent,
        env={**os.environb, **call.variables},
        timeout=LIMIT_S,
        check=False,
    )
    return Run(_text(done.stdout), _text(done.stderr), done.returncode)


class Running:
    """One call that a zygote's child serves.

    Attributes:
        pid: Its process.
        stdin: Our end of its standard input.
        stdout: Our end of its standard output.
        stderr: Our end of its standard error.
    """

    def __init__(self, pid: int, ends: tuple[int, int, int]) -> None:
        self.pid = pid
        self.stdin, self.stdout, self.stderr = (
            os.fdopen(end, mode, 0) for end, mode in zip(ends, ("wb", "rb", "rb"), strict=True)
        )

    def finish(self, speech: bytes = b"") -> tuple[str, str]:
        """Say this, and return all that it says until it has closed its output."""
        said: dict[str, bytes] = {}
        readers = [
            threading.Thread(target=lambda name=name: said.update({name: getattr(self, name).read()}))
            for name in ("stdout", "stderr")
        ]
        for reader in readers:
            reader.start()
        try:
            self.stdin.write(speech)
        except BrokenPipeError:
            pass  # it did not want to hear it
        self.stdin.close()
        for reader in readers:
            reader.join(LIMIT_S)
        self.stdout.close()
        self.stderr.close()
        return _text(said["stdout"]), _text(said["stderr"])


class Zygote:
    """A running zygote; a context manager that ends it."""

    def __init__(
        self, command: list[str], directory: Path, environment: dict[str, str] | None = None
    ) -> None:
        """Start it and wait until it is ready, or has ended.

        Args:
            command: All of its command line.
            directory: Where it runs.
            environment: Variables besides ours.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(LIMIT_S)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=directory,
            env={**os.environ, **(environment or {}), "FASTAGI_POOL_ZYGOTE": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        #: What it said of itself when it was compiled; nothing if it could not be.
        self.ready = self._hear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.hang_up()

    def hang_up(self) -> tuple[int, str]:
        """End the conversation; return its exit code and what it wrote to its standard error."""
        self._socket.close()
        _, errors = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, _text(errors)

    def ask(self, *fields: bytes, descriptors: tuple[int, ...] = ()) -> list[bytes]:
        """Send a request and return the answer's fields."""
        socket.send_fds(self._socket, [b"\0".join(fields)], descriptors)
        return self._hear()

    def start(self, call: Call) -> Running:
        """Have it serve a call."""
        pipes = [os.pipe() for _ in range(3)]
        (their_in, our_in), (our_out, their_out), (our_err, their_err) = pipes
        variables = [name + b"=" + value for name, value in call.variables.items()]
        count = b"%d" % len(call.arguments)
        theirs = (their_in, their_out, their_err)
        kind, number = self.ask(b"run", count, *call.arguments, *variables, descriptors=theirs)
        for descriptor in theirs:
            os.close(descriptor)
        assert kind == b"pid"
        return Running(int(number), (our_in, our_out, our_err))

    def reap(self, pid: int) -> int:
        """Have it bury a child that has ended, when it has; return its exit code."""
        kind, number, status = self.ask(b"reap", b"%d" % pid)
        assert (kind, int(number)) == (b"status", pid)
        return os.waitstatus_to_exitcode(int(status))

    def run(self, call: Call) -> Run:
        """Have it serve a call, from its beginning to its end."""
        running = self.start(call)
        output, errors = running.finish(call.speech)
        return Run(output, errors, self.reap(running.pid))

    def _hear(self) -> list[bytes]:
        data = self._socket.recv(MAX_MESSAGE_BYTES)
        return data.split(b"\0") if data else []


def run_often(zygote: list[str], script: Path, call: Call) -> list[Run]:
    """Have one zygote serve the same call three times in turn, and three times at once.

    Args:
        zygote: Its command line, without the script.
        script: The script.
        call: What each run is given.

    Returns:
        What was seen of the six.
    """
    with Zygote([*zygote, str(script)], script.parent) as running:
        assert running.ready[:2] == [b"ready", os.fsencode(script)], running.hang_up()
        in_turn = [running.run(call) for _ in range(3)]
        at_once = [running.start(call) for _ in range(3)]
        said = [each.finish(call.speech) for each in at_once]
        codes = [running.reap(each.pid) for each in at_once]
    return [*in_turn, *(Run(*both, code) for both, code in zip(said, codes, strict=True))]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
