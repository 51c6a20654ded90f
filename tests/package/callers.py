"""Callers who call all the time, until they are told to stop.

Use: ``python callers.py URL HOW_MANY``; they stop when standard input ends, and a JSON object says how many
calls had which end: ``{"SUCCESS": 1234}``. One more caller makes a single call that lasts all the time.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from threading import Event, Thread
from typing import Final

from fastagi_pool.asterisk import Behaviour, Caller
from fastagi_pool.testing import CallResult, play_call

#: A call that is not answered for so long has been forgotten.
_TIMEOUT_S: Final = 30.0


def main(url: str, how_many: int) -> None:
    """Have calls placed until standard input ends, and print how they went."""
    over = Event()
    ends: Counter[str] = Counter()

    def call_again_and_again() -> None:
        while not over.is_set():
            ends[_end(_call(url))] += 1

    def call_for_long() -> None:
        ends[_end(_call(url, over))] += 1

    threads = [Thread(target=call_again_and_again) for _ in range(how_many)] + [Thread(target=call_for_long)]
    for thread in threads:
        thread.start()
    print("calling", flush=True)
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    print(json.dumps(ends))


def _call(url: str, waits_for: Event | None = None) -> CallResult:
    """Place a call; one that waits for something does so while Asterisk is to carry out a command."""

    def on_line(who: str, line: str) -> None:
        if who == "S" and waits_for is not None:
            waits_for.wait()

    return play_call(url, (), Caller(), Behaviour(), _TIMEOUT_S, on_line)


def _end(result: CallResult) -> str:
    return f"{result.status.value} {result.reason}".strip()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
