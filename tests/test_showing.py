"""fastagi_pool.showing: what others see of a worker, and that it serves even if nothing can be shown."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from fastagi_pool.callboard import NO_ROW, read_calls
from fastagi_pool.database import Database, DatabaseSettings
from fastagi_pool.errors import DatabaseUnavailable
from fastagi_pool.lanes import LaneFacts, LaneLimits
from fastagi_pool.logs import CallRecord, LogFile
from fastagi_pool.scoreboard import Scoreboard, SlotFacts, SlotWriter
from fastagi_pool.showing import Showing
from fastagi_pool.slowlog import SlowCall, SlowLog
from fastagi_pool.tally import LaneTally, read_tally

LOG = logging.getLogger(__name__)
BEAT_S = 1.0
LANES = [(LaneLimits("records", 50, 100, 5.0), LaneFacts("records", 12, 3, 9))]
SLOW = SlowCall("r-1", "greeting", "hello", "10.0.0.7", "1.1", "100", "in script", 1.0, 0.0, 0.0, 6.0, 0.0)
RECORD = CallRecord(
    ref="r-1",
    route="greeting",
    script="hello",
    outcome="ok",
    hung_up=False,
    commands=1,
    total_s=0.1,
    asterisk_s=0.05,
    script_s=0.04,
    database_s=0.0,
    peer="10.0.0.7",
    uniqueid="1.1",
    callerid="100",
)


class Window:
    """A worker's showing, and what others see of it.

    Attributes:
        folder: The runtime folder.
        showing: What is tested.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._board = Scoreboard.create(folder / "scoreboard", os.getpid(), monotonic())
        self._board.clear(3)
        slot = SlotWriter(self._board, 3)
        log = SlowLog(LogFile(str(folder / "slow.log")), "worker=3 gen=1 pid=42")
        self.showing = Showing(folder, slot, BEAT_S, 2, 1, ["greeting"], log, LOG)

    @property
    def seen(self) -> SlotFacts:
        """The worker's slot."""
        return self._board.facts(3)


@pytest.fixture
def window(tmp_path: Path) -> Window:
    """A worker with two places."""
    return Window(tmp_path)


@pytest.fixture
def database() -> Iterator[Database]:
    """A database in memory."""
    database = Database(DatabaseSettings("main", ("sqlite://",), pool_size=4))
    yield database
    database.close()


def test_calls_are_shown(window: Window) -> None:
    """A call with a row is seen until its row is given back; one too many is served without."""
    rows = [window.showing.new_row() for _ in range(4)]
    for row in rows:
        row.accepted("10.0.0.7", monotonic())
        row.show()
    assert rows[3] is NO_ROW
    assert len(read_calls(window.folder / "calls" / "3", 3)) == 3
    for row in rows:
        row.release()
    assert read_calls(window.folder / "calls" / "3", 3) == []


def test_calls_beyond_the_room_are_told_of_once(window: Window, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody who looks for a call that is not shown finds in the log why; thousands fill no log."""
    for _ in range(3):
        window.showing.new_row()
    assert caplog.messages == []
    for _ in range(5):
        window.showing.new_row()
    assert caplog.messages == ["some calls in progress are not shown: there is no room for more"]


def test_calls_are_counted(window: Window) -> None:
    """Calls that have ended are counted by their route, slow ones as such."""
    for records in window.showing.records:
        records.write(RECORD, 0.0)
    window.showing.on_slow(SLOW)
    [route] = [
        each for each in read_tally(window.folder / "tallies" / "3").routes if each.route == "greeting"
    ]
    assert (route.calls, route.slow) == (1, 1)
    assert "call=r-1" in (window.folder / "slow.log").read_text()


@pytest.mark.parametrize(("late_s", "seen_s"), [(0.0, 0.0), (0.25, 0.25), (-0.5, 0.0)])
def test_how_late_the_beat_was_is_shown(window: Window, late_s: float, seen_s: float) -> None:
    """A beat that comes later than announced tells how long every call had to wait for its turn."""
    window.showing.publish(100.0, 0, [], [])
    assert window.seen.lag_s == 0.0
    window.showing.publish(100.0 + BEAT_S + late_s, 0, [], [])
    assert window.seen.lag_s == pytest.approx(seen_s, abs=0.002)


def test_places_and_memory_are_shown(window: Window) -> None:
    """Others see how many calls find a place, and how large the worker is."""
    window.showing.publish(100.0, 0, [], [])
    assert window.seen.places == 2
    assert window.seen.rss_bytes > 1_000_000


def test_databases_are_shown(window: Window, database: Database) -> None:
    """Others see how a database fares in the worker."""
    with database.lease().connect():
        window.showing.publish(100.0, 0, [database], LANES)
    [facts] = read_tally(window.folder / "tallies" / "3").databases
    assert (facts.name, facts.size, facts.connected, facts.in_use) == ("main", 4, 1, 1)
    assert (facts.down_reason, facts.server) == ("", "memory")


def test_lanes_are_shown(window: Window) -> None:
    """Others see how each lane fares in the worker, beside what it may have."""
    window.showing.publish(100.0, 0, [], LANES)
    assert read_tally(window.folder / "tallies" / "3").lanes == (LaneTally("records", 50, 12, 3, 9),)


def test_a_database_that_is_away_is_shown(window: Window, tmp_path: Path) -> None:
    """Others see why a database cannot be reached, and for how long."""
    now_s = 100.0
    settings = DatabaseSettings("main", (f"sqlite:///{tmp_path}/missing/file",))
    away = Database(settings, lambda: now_s)
    with pytest.raises(DatabaseUnavailable), away.lease().connect():
        pass
    now_s = 145.5
    window.showing.publish(100.0, 0, [away], [])
    away.close()
    [facts] = read_tally(window.folder / "tallies" / "3").databases
    assert facts.down_reason
    assert facts.down_s == 45.5


def test_a_worker_that_can_show_nothing_serves_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, database: Database
) -> None:
    """Without a folder for it nothing is shown, which is said once, and calls go on."""
    board = Scoreboard.create(tmp_path / "scoreboard", os.getpid(), monotonic())
    for folder in ("calls", "tallies"):
        (tmp_path / folder).write_text("in the way")
    showing = Showing(tmp_path, SlotWriter(board, 3), BEAT_S, 2, 1, [], None, LOG)
    assert showing.new_row() is NO_ROW
    assert showing.records == ()
    showing.on_slow(SLOW)
    showing.publish(100.0, 0, [database], LANES)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("calls in progress are not shown: ")
    assert messages[1].startswith("calls are not counted by route: ")
