"""Stacks: what the greenlets of a worker are doing, as text for people.

Laws:
    * They may be taken by another thread while the worker goes on. What that thread has looked at it holds
      until the worker's own thread lets go of it: a connection or a watcher that lost its last owner here
      would be closed by a thread that may not touch it.
    * Calls that wait at the same place are shown together: the place once, every call by its title.
    * What is the same in every call, the pool's own machinery around handlers, is left out.

How it works: a stack is first taken as code objects and line numbers, which is quick and keeps nothing of the
call alive. Source lines are read afterwards. Whoever wants stacks connects to the worker's socket
(:mod:`fastagi_pool.lookout`) and reads to the end.
"""

from __future__ import annotations

import gc
import linecache
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import CodeType, FrameType
from typing import Any, Final, TypeAlias

from greenlet import greenlet

#: Frames from the outermost to the innermost: what runs, and at which line.
Stack: TypeAlias = tuple[tuple[CodeType, int], ...]

#: The folder of the sockets on which workers tell their stacks, below the runtime folder.
FOLDER: Final = "stacks"
#: Frames of one stack that are kept, the innermost ones: a runaway recursion is understood from them.
MOST_FRAMES: Final = 60
#: Of an answer no more is read: 10,000 calls with their titles fit.
MOST_BYTES: Final = 16 * 1024 * 1024
_OWN_FOLDER: Final = Path(__file__).parent
_ATTENDANTS: Final = str(_OWN_FOLDER / "attendants.py")
#: What stands around every handler.
_MACHINERY: Final = frozenset(
    {_ATTENDANTS, *(str(_OWN_FOLDER / f"{name}.py") for name in ("worker", "dispatch"))}
)
_HANDLERS: Final = f"{_OWN_FOLDER / 'handlers'}{os.sep}"
#: Python's own library, with what is frozen into it, our package, and what was installed.
_LIBRARIES: Final = (f"{Path(linecache.__file__).parent}{os.sep}", "<frozen ", f"{_OWN_FOLDER}{os.sep}")
_PACKAGES: Final = "-packages/"
_GEVENT: Final = f"{os.sep}gevent{os.sep}"
_BLOCKED: Final = re.compile(r"\bblocked_s=([0-9.]+)")
_RECEIVE_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class TakenStack:
    """One greenlet as it was found.

    Attributes:
        title: Whose it is; empty if it belongs to no call.
        stack: Its frames; none if it was between two places.
        running: Whether it had its turn just then.
    """

    title: str
    stack: Stack
    running: bool = False


class StackTaker:
    """Takes the stacks of one thread's greenlets, as a rule from another thread."""

    def __init__(self, thread: int) -> None:
        """Take none yet.

        Args:
            thread: The thread's identifier, as ``sys._current_frames`` has it.
        """
        self._thread = thread
        self._looking = False
        self._held: list[object] = []
        self._greenlets: list[greenlet] = []

    @contextmanager
    def looking(self) -> Iterator[Callable[[object], None]]:
        """Allow to look at what belongs to the thread.

        Yields:
            What must be called with whatever is looked at besides: it is held until :meth:`let_go`.
        """
        self._looking = True
        try:
            yield self._held.append
        finally:
            self._looking = False

    def let_go(self) -> None:
        """Let go of what was looked at, unless somebody is looking; for the thread to which it belongs."""
        if not self._looking:
            self._held.clear()
            self._greenlets.clear()

    def running(self) -> Stack:
        """Take the stack of what runs in the thread; while :meth:`looking`."""
        return self._take(sys._current_frames().get(self._thread))

    def take(self, titles: Mapping[greenlet, str]) -> list[TakenStack]:
        """Take the stacks of all greenlets of the process; while :meth:`looking`.

        Args:
            titles: What calls are to be called, by the greenlet that serves them.
        """
        owner = running_one(titles)
        taken = [TakenStack(titles[owner] if owner is not None else "", self.running(), running=True)]
        for each in dict.fromkeys((*titles, *self._find_greenlets())):
            frame = each.gr_frame
            if each is not owner and (frame is not None or each in titles):
                taken.append(TakenStack(titles.get(each, ""), self._take(frame)))
        return taken

    def _take(self, frame: FrameType | None) -> Stack:
        stack, frames = _frames(frame)
        self._held.append(frames)
        return stack

    def _find_greenlets(self) -> list[greenlet]:
        # Once until let_go(): as long as the thread is busy with one greenlet, no other one begins.
        if not self._greenlets:
            objects: list[Any] = gc.get_objects()
            self._held.append(objects)
            # By type, and not isinstance(), which asks proxies for their class.
            self._greenlets = [each for each in objects if issubclass(type(each), greenlet)]
        return self._greenlets


def running_one(greenlets: Iterable[greenlet]) -> greenlet | None:
    """Find the one among these, all of another thread, that has its turn; None if none has."""
    return next((each for each in greenlets if each and each.gr_frame is None), None)


def write_stack(frame: FrameType | None) -> str:
    """Write the stack that ends at a frame; for the thread to which the frame belongs.

    Args:
        frame: The innermost one, as ``gr_frame`` has it.

    Returns:
        As :func:`write`; empty for no frame.
    """
    return write(_frames(frame)[0])


def write(stack: Stack) -> str:
    """Write a stack as lines of a traceback, the innermost frame last, without the machinery around it."""
    return "".join(f"{line}\n" for code, number in _trimmed(stack) or stack for line in _lines(code, number))


def where(stack: Stack) -> str:
    """Say in a few words where a stack has got to; empty if nothing but machinery is at work.

    That is the innermost function that is no library's: a handler's author looks there first.
    """
    inner = _trimmed(stack)
    own = [place for place in inner if not _is_library(place[0])] or inner
    return "".join(f"{code.co_qualname} ({code.co_filename}:{number})" for code, number in own[-1:])


def write_all(taken: Iterable[TakenStack]) -> str:
    """Write many stacks: what runs first, then calls that wait at the same place together, then the rest."""
    idle = 0
    groups: dict[tuple[bool, bool, Stack], list[str]] = {}
    for each in taken:
        stack = _trimmed(each.stack)
        if not each.title and not each.running and not stack and _is_attendant(each.stack):
            idle += 1
            continue
        groups.setdefault((not each.running, not each.title, stack or each.stack), []).append(each.title)
    order = sorted(groups, key=lambda group: (group[:2], -len(groups[group])))
    blocks = [_block(groups[group], group[2], running=not group[0]) for group in order]
    if idle:
        blocks.append(f"{idle} idle attendant{'s' if idle > 1 else ''}\n")
    return "\n".join(blocks)


def _block(titles: Sequence[str], stack: Stack, running: bool) -> str:
    """Write one group: of calls all titles, of others how many there are."""
    if running and not titles[0] and not where(stack):
        return "running: nothing\n"
    if running:
        # The hub's own callbacks, and greenlets that handlers have started, belong to no call.
        head = [f"running: {titles[0] or 'no call'}"]
    elif titles[0]:
        head = list(titles)
    else:
        head = [f"{len(titles)} other greenlet{'s' if len(titles) > 1 else ''}"]
    return "\n".join(head) + "\n" + (write(stack) or "  (between two places)\n")


def _frames(frame: FrameType | None) -> tuple[Stack, list[FrameType]]:
    """Walk from the innermost frame outwards; the frames too, for whom must hold them."""
    frames: list[FrameType] = []
    stack: list[tuple[CodeType, int]] = []
    while frame is not None and len(frames) < MOST_FRAMES:
        frames.append(frame)
        # A frame has no line while it begins.
        stack.append((frame.f_code, frame.f_lineno or frame.f_code.co_firstlineno))
        frame = frame.f_back
    return tuple(reversed(stack)), frames


def _trimmed(stack: Stack) -> Stack:
    """Leave out the machinery around the handler, and gevent's within which it waits; perhaps all of it."""
    begin, end = 0, len(stack)
    while begin < end and _is_machinery(stack[begin][0]):
        begin += 1
    while begin < end and _GEVENT in stack[end - 1][0].co_filename:
        end -= 1
    return stack[begin:end]


def _is_machinery(code: CodeType) -> bool:
    return code.co_filename in _MACHINERY or _GEVENT in code.co_filename


def _is_library(code: CodeType) -> bool:
    path = code.co_filename
    if path.startswith(_HANDLERS):
        return False
    return path.startswith(_LIBRARIES) or _PACKAGES in path


def _is_attendant(stack: Stack) -> bool:
    return bool(stack) and stack[0][0].co_filename == _ATTENDANTS


def _lines(code: CodeType, number: int) -> list[str]:
    lines = [f'  File "{code.co_filename}", line {number}, in {code.co_qualname}']
    try:
        source = linecache.getline(code.co_filename, number).strip()
    except Exception:
        source = ""  # The worker's own thread has just emptied the cache under our hands.
    return [*lines, f"    {source}"] if source else lines


# --- asking


def blocked_for(text: str) -> float:
    """Read from an answer for how many seconds the worker has been blocked; 0.0 if it was not."""
    head = text.partition("\n")[0]
    found = _BLOCKED.search(head)
    return float(found[1]) if found else 0.0


def ask_stacks(path: Path, timeout_s: float) -> str:
    """Ask a worker what it is doing.

    Args:
        path: Its socket, ``stacks/<slot>`` below the runtime folder.
        timeout_s: How long to wait for the whole answer.

    Returns:
        One line that says who answers, as ``worker=3 gen=1 pid=42 blocked_s=0.0``, and then the stacks.

    Raises:
        TimeoutError: No answer in time, for example because foreign code holds Python's lock.
        OSError: Nobody is there.
    """
    deadline_s = monotonic() + timeout_s
    pieces: list[bytes] = []
    with short_address(path) as address, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(address)
        while sum(map(len, pieces)) < MOST_BYTES:
            remaining_s = deadline_s - monotonic()
            if remaining_s <= 0:
                raise TimeoutError(f"no answer within {timeout_s:g} s")
            connection.settimeout(remaining_s)
            data = connection.recv(_RECEIVE_BYTES)
            if not data:
                break
            pieces.append(data)
    if not pieces:
        raise ConnectionError("the worker has ended")
    return b"".join(pieces).decode("utf-8", "replace")


@contextmanager
def short_address(path: Path) -> Iterator[str]:
    """Give a socket's address that is short enough, however long its path is: an address has 107 bytes.

    Raises:
        OSError: The folder does not exist or may not be entered.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
