"""A reader of the README: what he finds in a section, and what he does with it on a machine.

Laws:
    * What he types, and what he writes into files, is the README's own text.
    * Beside a server in the foreground he has a second terminal; Ctrl-C ends it before another is started.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Final

from .root import Machine

#: Making a virtual environment and installing into it, on a machine that is busy.
_START_TIMEOUT_S: Final = 300.0
_END_TIMEOUT_S: Final = 60.0
_BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SERVES: Final = "listens on"


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a section.

    Attributes:
        language: What it is written in.
        text: What it says.
        before: The text between the block before and this one.
    """

    language: str
    text: str
    before: str

    @property
    def lines(self) -> list[str]:
        """Its lines."""
        return self.text.splitlines()

    def named(self, pattern: str) -> str:
        """Return what the text before calls by a name in backticks, the last that fits."""
        found: list[str] = re.findall(f"`({pattern})`", self.before)
        assert found, f"nothing says what this is for:\n{self.text}"
        return found[-1]


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the README.

    Attributes:
        text: All of it.
        blocks: Its blocks in order.
    """

    text: str
    blocks: list[Block] = field(default_factory=list)

    def of(self, *languages: str) -> list[Block]:
        """Return the blocks in some languages."""
        return [block for block in self.blocks if block.language in languages]

    def said(self, pattern: str) -> str:
        """Return what the section says in backticks, and fits."""
        found = re.search(f"`({pattern})`", self.text)
        assert found, f"the README does not say `{pattern}`"
        return found[1]


def section(page: Path, heading: str) -> Section:
    """Find the section whose heading begins so."""
    found = re.search(rf"^## {heading}[^\n]*\n(.*?)(?=^## |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{page.name} has no section {heading!r}"
    text, blocks, since = found[1], [], 0
    for block in _BLOCK.finditer(text):
        blocks.append(Block(block[1], block[2], text[since : block.start()]))
        since = block.end()
    return Section(text, blocks)


class Reader:
    """Somebody with the README in hand, at a machine."""

    def __init__(self, machine: Machine, folder: str) -> None:
        """Work in a folder of a machine."""
        self._machine = machine
        self._habit = [f"cd {folder}"]
        self._server: _Server | None = None

    def keeps_doing(self, line: str) -> None:
        """Do something in each terminal, before all else."""
        self._habit.append(line)

    def types(self, line: str) -> str:
        """Type a command, wait for its end, and return what it prints."""
        return self._machine.run("; ".join([*self._habit, line]), timeout_s=_START_TIMEOUT_S)

    def starts(self, line: str) -> None:
        """Start a server in the foreground, and wait until it says that it serves."""
        self.interrupts()
        self._server = _Server(self._machine.words("; ".join([*self._habit, f"exec {line}"])))
        self._server.await_serving(line)

    def interrupts(self) -> None:
        """End the server in the foreground with Ctrl-C, if there is one."""
        if self._server is not None:
            self._server.interrupt()
            self._server = None


class _Server:
    """A program in the foreground of a terminal."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # What a terminal's Ctrl-C hits is a group.
            start_new_session=True,
        )
        self._output: list[str] = []
        self._serves_or_ended = Event()
        self._listener = Thread(target=self._listen, daemon=True)
        self._listener.start()

    def await_serving(self, line: str) -> None:
        """Wait until it says that it serves."""
        in_time = self._serves_or_ended.wait(_START_TIMEOUT_S)
        said = "".join(self._output)
        assert in_time, f"{line!r} does not serve:\n{said}"
        assert _SERVES in said, f"{line!r} does not serve:\n{said}"

    def interrupt(self) -> None:
        """End it, and wait until all of it has ended."""
        os.killpg(self._process.pid, signal.SIGINT)
        self._process.wait(_END_TIMEOUT_S)
        self._listener.join(_END_TIMEOUT_S)
        assert not self._listener.is_alive(), "the server goes on after Ctrl-C"

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._output.append(line)
                if _SERVES in line:
                    self._serves_or_ended.set()
        self._serves_or_ended.set()
