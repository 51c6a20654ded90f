"""Children: run a function in a process of its own, for what changes limits, signals or locks."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any, Final

#: A child that takes longer is ended by the alarm clock; the caller then sees no answer.
_LIMIT_S: Final = 20


def in_child(work: Callable[[], object]) -> Any:
    """Fork, run a function in the child, and return what it returned, which must be fit for JSON.

    Raises:
        AssertionError: It raised, or did not end in time; the text holds its traceback.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
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
