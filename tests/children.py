"""Children: run a function in a process of its own, for what changes limits, signals or locks."""

from __future__ import annotations

import gc
import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

#: A child that takes longer is ended by the alarm clock; the caller then sees no answer.
_LIMIT_S: Final = 20


@contextmanager
def busy_child(step: Callable[[int], object]) -> Iterator[None]:
    """Let a child do something over and over, as fast as it can, while the block runs.

    Args:
        step: What it does; its argument counts upwards from 1. It was done once before the block begins.
    """
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(_LIMIT_S)
        try:
            for number in count(1):
                step(number)
                if number == 1:
                    os.write(told, b".")
        finally:
            os._exit(1)
    os.close(told)
    try:
        os.read(ready, 1)
        yield
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def in_child(work: Callable[[], object]) -> Any:
    """Fork, run a function in the child, and return what it returned, which must be fit for JSON.

    Raises:
        AssertionError: It raised, or did not end in time; the text holds its traceback.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        # What ten thousand tests have left is not to be searched, and so copied, by the child's collector:
        # that takes a second, at a moment that nobody chose.
        gc.freeze()
        signal.alarm(_LIMIT_S)
        try:
            answer: dict[str, object] = {"result": work()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert text, f"no answer; wait status {status}"
    answer = json.loads(text)
    assert "error" not in answer, answer["error"]
    return answer["result"]
