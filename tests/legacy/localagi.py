"""LocalAsterisk: a script run as Asterisk runs a local one: as its child, with pipes, without a network.

What it says and does on the channel is decided by :class:`~fastagi_pool.asterisk.FakeAsterisk`; what differs
from FastAGI is done here: the environment has no ``agi_network`` lines, ``agi_request`` is the script as the
dialplan names it, SIGHUP stands for the line HANGUP, and an exit code other than 0 is a failure.

Source: asterisk res/res_agi.c, launch_script(), setup_env(), run_agi().
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fastagi_pool.testing import AgiStatus, Behaviour, CallResult, FakeAsterisk, play

#: Longest silence of a script; some hundred times what a step takes.
_SILENCE_S: Final = 20.0
_HANGUP: Final = b"HANGUP\n"
_NETWORK: Final = re.compile(rb"^agi_network.*\n", re.MULTILINE)
_REQUEST: Final = re.compile(rb"^(agi_request: )agi://[^/\n]*/", re.MULTILINE)


@dataclass(slots=True)
class LocalResult:
    """How a script behaved.

    Attributes:
        call: What was said, and what the dialplan sees.
        returncode: How its process ended, as ``subprocess`` tells it.
        stderr: What it wrote there.
    """

    call: CallResult = field(default_factory=CallResult)
    returncode: int = 0
    stderr: str = ""


def run_locally(
    file: Path, script: str, arguments: Sequence[str] = (), behaviour: Behaviour | None = None
) -> LocalResult:
    """Run a script as AGI(script,arguments...) does, and see it to its end.

    Args:
        file: The script.
        script: How the dialplan names it.
        arguments: As in the dialplan.
        behaviour: What caller and channel do.

    Raises:
        TimeoutError: It was silent for 20 s; it is killed.
    """
    result = LocalResult()
    asterisk = FakeAsterisk(f"agi://localhost/{script}", arguments, None, behaviour)
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            (file, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            bufsize=0,
            process_group=0,
        )
        with process:
            try:
                play(_Pipes(process), asterisk, result.call)
                result.returncode = process.wait(_SILENCE_S)
            finally:
                process.kill()
        stderr.seek(0)
        result.stderr = stderr.read().decode(errors="replace")
    if result.returncode and result.call.status is AgiStatus.SUCCESS:
        result.call.status = AgiStatus.FAILURE
    return result


class _Pipes:
    """The connection to a script, as ``testing.play`` wants one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin.fileno()
        self._stdout = process.stdout.fileno()

    def recv(self, bufsize: int, /) -> bytes:
        """Wait for what the script says; nothing if it has said all."""
        if not select.select([self._stdout], [], [], _SILENCE_S)[0]:
            raise TimeoutError(f"{self._process.args!r} was silent for {_SILENCE_S:g} s")
        return os.read(self._stdout, bufsize)

    def sendall(self, data: bytes, /) -> None:
        """Write what Asterisk would write to a local script."""
        text = _REQUEST.sub(rb"\1", _NETWORK.sub(b"", data))
        hangup = text == _HANGUP or text.endswith(b"\n" + _HANGUP)
        try:
            os.write(self._stdin, text.removesuffix(_HANGUP) if hangup else text)
        except BrokenPipeError:
            pass  # It reads no more; Asterisk goes on too.
        if hangup:
            os.kill(self._process.pid, signal.SIGHUP)
