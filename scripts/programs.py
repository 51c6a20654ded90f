"""Programs: small C programs that are compiled when needed, run, and whose figures are read.

Laws:
    * No program outlives this process.
    * A program that another run may be using is never written over: the new one takes its place.
    * What a program found is in its figures; its exit status says nothing.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

_FIGURE: Final = re.compile(r"(\S+) ([\d.]+)")


class ProgramFailed(Exception):
    """A program cannot be built, or did not say in time what it should."""


def compiled(source: Path, target: Path, *options: str) -> Path:
    """Compile a program if it is missing or older than its source, and return where it is.

    Args:
        source: The file in C.
        target: Where the program goes; its folder is made if missing.
        options: Of the compiler.

    Raises:
        ProgramFailed: There is no C compiler, or it fails.
    """
    if target.exists() and target.stat().st_mtime >= source.stat().st_mtime:
        return target
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ProgramFailed("no C compiler; on Debian: apt install gcc libc6-dev")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Of its own name, and renamed: other runs may be using the old one, or be at this very point.
    fresh = target.with_name(f"{target.name}.{os.getpid()}")
    command = [compiler, "-O2", *options, "-o", str(fresh), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ProgramFailed(f"{compiler} failed:\n{done.stderr}")
    return fresh.rename(target)


class Running:
    """A program that runs; it ends with its ``with`` at the latest."""

    def __init__(self, program: Path, *arguments: str) -> None:
        """Start it.

        Args:
            program: Its file.
            arguments: What it is told.
        """
        self._name = program.name
        # Without a buffer: what is read ahead with a line would be missing among the figures.
        self._process = subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", str(program), *arguments), stdout=subprocess.PIPE, bufsize=0
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def await_line(self, timeout_s: float) -> str:
        """Wait for a line that it prints before its figures, and return the line.

        Args:
            timeout_s: How long to wait.

        Raises:
            ProgramFailed: None came in time, or it ended before.
        """
        looked_at = select.poll()
        looked_at.register(self._output, select.POLLIN)
        if not looked_at.poll(1000 * timeout_s):
            raise ProgramFailed(f"{self._name} printed no line within {timeout_s:g} s")
        line = self._output.readline()
        if not line:
            raise ProgramFailed(f"{self._name} ended before it printed a line")
        return line.decode()

    def stop(self, timeout_s: float) -> dict[str, str]:
        """Tell it to end, and return its figures; see :meth:`figures`."""
        self._process.terminate()
        return self.figures(timeout_s)

    def figures(self, timeout_s: float | None) -> dict[str, str]:
        """Wait for its end and return its figures by their names.

        Args:
            timeout_s: How long to wait; None for as long as it takes.

        Raises:
            ProgramFailed: It did not end in time, or printed none.
        """
        try:
            output, _ = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ProgramFailed(f"{self._name} did not end within {timeout_s:g} s") from error
        found = dict(_FIGURE.findall(output.decode()))
        if not found:
            raise ProgramFailed(
                f"{self._name} ended with status {self._process.returncode} and printed no figures, "
                f"but {output.decode()!r}"
            )
        return found

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout
