"""fastagi_pool.handlers.vicidial.memory: what one run of a call knew comes to the next, and to no other."""

from __future__ import annotations

from typing import Any, Final, cast

import pytest

from fastagi_pool.call import Call
from fastagi_pool.deferring import make_entry, request_of
from fastagi_pool.handlers.vicidial.memory import MOST_KEPT, Memories, Memory
from fastagi_pool.handlers.vicidial.rows import AutoCall, CloserRow, LogRow
from fastagi_pool.protocol import Request

ALIVE: Final = AutoCall(
    7,
    101,
    "V1\udcff",
    "CAMP",
    "NONE",
    "LIVE-3",
    "2026-11-21 09:30:00",
    9,
    "1.1",
    "LIVE",
    "1",
    "3125550000",
    1,
    "",
    "",
)
LOG: Final = LogRow(9, "NA", "VDAD", "", "Zoë's\nown")
CLOSER: Final = CloserRow(5, 9, "QUEUE", "VDCL", "", "", "1.1")
MEMORIES: Final = (
    Memory(),
    Memory((ALIVE,)),
    Memory((ALIVE, ALIVE), is_owner=True),
    Memory((ALIVE,), is_owner=True, logs=(None, None)),
    Memory((ALIVE,), is_owner=True, logs=(LOG, None)),
    Memory((), logs=(None, CLOSER), followed=True),
    Memory((ALIVE,), is_owner=True, logs=(LOG, CLOSER), followed=True),
)


def call_of(request: Request, ref: str = "w-1", deferred: bool = False) -> Call:
    """Make a call; nobody speaks in it."""
    return Call(request, cast(Any, None), ref=ref, deferrable=not deferred, deferred=deferred)


def from_journal(request: Request, ref: str = "w-1") -> Call:
    """Bring a call through the journal."""
    entry = make_entry(request, "route", "vicidial", ref, 0.0, 0.0, "", begun=True)
    return call_of(request_of(entry), ref, deferred=True)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_memory_goes_through_the_journal(memory: Memory) -> None:
    """What the first run knew the second one knows, whatever the texts are."""
    request = Request({"agi_request": "agi://host/call_log"})
    Memories().keep(call_of(request), memory)
    assert Memories().recall(from_journal(request)) == memory


def test_a_first_run_remembers_nothing() -> None:
    """A line that a caller of the pool sends as if it were a memory is none."""
    memory = Memory((ALIVE,), is_owner=True)
    request = Request({"agi_fagi_memory": memory.to_text()})
    assert Memories().recall(call_of(request)) == Memory()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        "null",
        "[1,2,3,4]",
        "[[[1]],true,null,false]",
        "[[],true,[[1],null],false]",
        "[" * 9999,
    ],
)
def test_what_makes_no_sense_is_no_memory(text: str) -> None:
    """An entry that somebody has changed by hand runs as one without a memory."""
    request = Request({"agi_fagi_memory": text})
    assert Memories().recall(call_of(request, deferred=True)) == Memory()


def test_a_run_from_the_journal_that_is_rolled_back() -> None:
    """What it knew is there at the next attempt, for its own call only, and before what the entry says."""
    request = Request({"agi_fagi_memory": Memory((ALIVE,)).to_text()})
    memories, owner = Memories(), Memory((ALIVE,), is_owner=True)
    first = call_of(request, deferred=True)
    memories.keep(first, owner)
    assert memories.recall(call_of(request, "w-2", deferred=True)) == Memory((ALIVE,))
    assert memories.recall(call_of(request, deferred=True)) is owner


def test_memories_are_bounded() -> None:
    """Of very many calls the oldest is forgotten."""
    memories, request = Memories(), Request({})
    for number in range(MOST_KEPT + 1):
        memories.keep(call_of(request, f"w-{number}", deferred=True), Memory(is_owner=True))
    assert memories.recall(call_of(request, "w-0", deferred=True)) == Memory()
    assert memories.recall(call_of(request, "w-1", deferred=True)) == Memory(is_owner=True)
