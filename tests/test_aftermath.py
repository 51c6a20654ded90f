"""fastagi_pool.aftermath: which calls are named, counted and suspected when a worker has died."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from fastagi_pool import callboard
from fastagi_pool.aftermath import MOST_NAMED, Aftermath
from fastagi_pool.callboard import CallBoard, CallRow, CallState
from fastagi_pool.logs import LOGGER_NAME
from fastagi_pool.quarantine import FILE, Quarantine

#: The worker that died, and when.
SLOT = 3
PID = 42
NOW_S = 1000.0
FOR_S = 600.0
#: What the deadly request resembles.
LIKENESS = 7


class Scene:
    """What a dead worker has left.

    Attributes:
        aftermath: The one under test.
        board: The worker's call board.
        folder: The runtime folder.
    """

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.folder = folder
        self._caplog = caplog
        self.aftermath = Aftermath(folder)
        self.aftermath.use(crashes=2, for_s=FOR_S)
        self.renew()

    def renew(self) -> None:
        """Let a new worker begin in the slot."""
        file = self.folder / callboard.FOLDER / str(SLOT)
        self.board = CallBoard.create(file, SLOT, PID, MOST_NAMED + 10)

    def begin(self, ref: str, routed_s: float, likeness: int = 0) -> CallRow:
        """Have a call that begins with its script at this moment."""
        row = self.board.take()
        row.accepted("10.0.0.1", routed_s - 1.0)
        row.known(ref, "agi://h/call_log", "1700000000.1", "SIP/trunk-01", "4930123")
        row.resembles(likeness)
        row.routed("call log", routed_s)
        return row

    def wait(self, ref: str) -> CallRow:
        """Have a call that waits for a place."""
        row = self.board.take()
        row.accepted("10.0.0.1", 900.0)
        row.known(ref, "agi://h/call_log", "1700000000.2", "SIP/trunk-02", "4930124")
        row.resembles(LIKENESS)
        row.queued(999.0)
        return row

    def die(self, crashed: bool = True, now_s: float = NOW_S) -> None:
        """Let the worker die."""
        self.aftermath.see_to(SLOT, PID, crashed, now_s)

    @property
    def logged(self) -> list[str]:
        """All that was logged since the last look."""
        lines = [f"{record.levelname} {record.getMessage()}" for record in self._caplog.records]
        self._caplog.clear()
        return lines

    def refuses(self) -> bool:
        """Whether requests like the deadly one are refused now."""
        return Quarantine.attach(self.folder / FILE).refuses(LIKENESS, NOW_S)


@pytest.fixture
def scene(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Scene:
    """A dead worker without calls."""
    caplog.set_level(logging.INFO, LOGGER_NAME)
    return Scene(tmp_path, caplog)


def test_what_died_with_a_worker_is_named(scene: Scene) -> None:
    """Every call that had begun stands in the log with what is needed to find it, and is counted."""
    scene.begin("3-1", 990.0).asks(b"EXEC Dial x\n", 1.0, 995.0)
    scene.begin("3-2", 999.0)
    scene.die()
    named, *_ = scene.logged
    assert named.startswith("ERROR worker=3 pid=42 took call=3-1 with it: ")
    assert 'route="call log" uniqueid=1700000000.1 callerid=4930123 age_s=11.0' in named
    assert "EXEC Dial x" in named
    assert scene.aftermath.lost == 2


def test_calls_that_had_not_begun_are_not_lost(scene: Scene) -> None:
    """Whoever only waited for a place is served by another worker: he is neither lost nor suspected."""
    scene.wait("3-1")
    scene.die()
    scene.die()
    assert (scene.logged, scene.aftermath.lost) == ([], 0)
    assert not scene.refuses()


def test_the_calls_of_another_process_are_not_its_own(scene: Scene) -> None:
    """What an earlier worker has left in the slot is not this one's."""
    scene.begin("3-1", 990.0)
    scene.aftermath.see_to(SLOT, PID + 1, True, NOW_S)
    assert (scene.logged, scene.aftermath.lost) == ([], 0)


def test_only_so_many_are_named(scene: Scene) -> None:
    """A worker with thousands of calls does not fill the log; all are counted."""
    for number in range(MOST_NAMED + 3):
        scene.begin(f"3-{number}", 990.0)
    scene.die(crashed=False)
    lines = scene.logged
    assert len(lines) == MOST_NAMED + 1
    assert lines[-1] == "ERROR worker=3 pid=42 took 3 more calls with it"
    assert scene.aftermath.lost == MOST_NAMED + 3


def test_the_second_death_puts_into_quarantine(scene: Scene) -> None:
    """The first time a request is suspected, the second time refused, and the log says who."""
    scene.begin("3-1", 990.0, likeness=1)
    scene.begin("3-2", 999.0, likeness=LIKENESS)
    scene.die()
    assert scene.logged[-1] == (
        "WARNING call=3-2 is suspected of having ended its worker: "
        'route="call log" script=agi://h/call_log callerid=4930123'
    )
    assert not scene.refuses()
    scene.renew()
    scene.begin("3-3", 999.5, likeness=LIKENESS)
    scene.die()
    assert scene.refuses()
    assert "2 workers died while they served a request like call=3-3" in scene.logged[-1]
    assert (scene.aftermath.quarantined, scene.aftermath.lost) == (1, 3)


def test_a_worker_that_we_ended_accuses_nobody(scene: Scene) -> None:
    """Calls of a worker that was killed at the end of its time are lost, but suspected of nothing."""
    scene.begin("3-1", 990.0, likeness=LIKENESS)
    for _ in range(3):
        scene.die(crashed=False)
    assert not scene.refuses()
    assert scene.aftermath.lost == 3


def test_nobody_is_refused_if_that_is_off(scene: Scene) -> None:
    """Without a number of crashes there is no quarantine."""
    scene.aftermath.use()
    scene.begin("3-1", 990.0, likeness=LIKENESS)
    for _ in range(3):
        scene.die()
    assert (scene.refuses(), scene.aftermath.quarantined) == (False, 0)


def test_whoever_asked_asterisk_last_is_no_suspect(scene: Scene) -> None:
    """Where nothing was at work in the worker nobody is accused."""
    scene.begin("3-1", 990.0, likeness=LIKENESS).asks(b"NOOP\n", 1.0, 995.0)
    for _ in range(3):
        scene.die()
    assert not scene.refuses()


@pytest.mark.parametrize("content", [None, b"", b"nonsense" * 200])
def test_a_board_that_cannot_be_read(content: bytes | None, scene: Scene) -> None:
    """Where the call board is gone or damaged, nobody knows; the log says so, and nothing else happens."""
    file = scene.folder / callboard.FOLDER / str(SLOT)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    scene.die()
    for line in scene.logged:
        assert line.startswith("ERROR worker=3 pid=42: nobody knows which calls it took with it: ")
    assert scene.aftermath.lost == 0


def test_figures_go_on(scene: Scene) -> None:
    """Another program goes on counting from where the last stood."""
    scene.begin("3-1", 990.0)
    following = Aftermath(scene.folder, lost=5, quarantined=2)
    following.see_to(SLOT, PID, True, NOW_S)
    assert (following.lost, following.quarantined) == (6, 2)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A table that cannot be made is an error at once."""
    with pytest.raises(OSError, match="No such file"):
        Aftermath(tmp_path / "nowhere")


def test_a_damaged_board_is_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a process that went astray has written keeps the master from nothing: it says so and goes on."""
    scene = Scene(tmp_path, caplog)
    scene.begin("a-1", 990.0)
    file = tmp_path / callboard.FOLDER / str(SLOT)
    words = memoryview(bytearray(file.read_bytes())).cast("Q")
    state = next(place for place, word in enumerate(words) if word == CallState.SCRIPT and place > 128)
    # No state has this number.
    words[state] = 99
    file.write_bytes(words)

    scene.aftermath.see_to(SLOT, PID, True, NOW_S)

    assert "nobody knows which calls it took with it" in caplog.text
