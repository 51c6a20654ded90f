"""fastagi_pool.forking: a signal that a child gets in its first moment is not its parent's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from children import in_child

from fastagi_pool.forking import fork_apart


def parent_of_a_child_told_to_end(fork: Callable[[], int]) -> dict[str, object]:
    """Be a process that has its signals written into a pipe, and forks; say what both have heard."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGHUP, lambda *_: None)
    signal.set_wakeup_fd(writing)

    def hear() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)

    # No earlier moment: fork() itself has not returned in the child.
    os.register_at_fork(after_in_child=hear)
    pid = fork()
    if pid == 0:
        os._exit(7)
    _, status = os.waitpid(pid, 0)
    try:
        heard = list(os.read(reading, 100))
    except BlockingIOError:
        heard = []
    mask = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    return {"end": os.waitstatus_to_exitcode(status), "heard": heard, "mask": mask}


@pytest.mark.parametrize(("default", "end"), [((), 7), ((signal.SIGTERM,), -signal.SIGTERM)])
def test_the_parent_hears_nothing(default: tuple[int, ...], end: int) -> None:
    """What ends, or does nothing to, a child that was born this moment leaves its parent in peace."""
    seen = in_child(lambda: parent_of_a_child_told_to_end(lambda: fork_apart(*default)))
    assert seen == {"end": end, "heard": [], "mask": []}


def test_a_plain_fork_is_heard() -> None:
    """This is what it is for: the parent would take the child's signals for its own."""
    seen = in_child(lambda: parent_of_a_child_told_to_end(os.fork))
    assert seen == {"end": 7, "heard": [signal.SIGHUP, signal.SIGTERM], "mask": []}


def test_signals_that_were_blocked_stay_so() -> None:
    """Whoever forks with signals blocked finds them so afterwards, and so does the child."""

    def live() -> list[int]:
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1})
        pid = fork_apart()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        if pid == 0:
            os._exit(len(mask))
        return [len(mask), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]

    assert in_child(live) == [1, 1]


def test_no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork that fails is told, and leaves no signal blocked."""

    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(BlockingIOError):
        fork_apart()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
