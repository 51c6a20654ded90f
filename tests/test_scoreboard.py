"""fastagi_pool.scoreboard: what one process writes and the others read, across real forks."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastagi_pool.scoreboard import (
    RESTART_REASONS,
    SLOTS,
    Scoreboard,
    SlotFacts,
    SlotWriter,
    Supervision,
    WorkerState,
)

BOARD_BYTES = 8 * (64 + SLOTS * 16) + 4096
MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the board lies."""
    return tmp_path / "scoreboard"


@pytest.fixture
def board(path: Path) -> Scoreboard:
    """A new board of master 42."""
    return Scoreboard.create(path, 42, 1000.5)


@pytest.fixture
def full_disk() -> Iterator[Path]:
    """A file system of 64 KB, which no board fits into."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("only root can mount a small file system")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def in_child(work: Callable[[], object]) -> int:
    """Do something in a forked process; return its pid when it has ended well."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0) == (pid, 0)
    return pid


def take_call(writer: SlotWriter) -> None:
    """Accept a connection, and begin with its call."""
    writer.takes_turn()
    writer.call_begins()


def ready_worker(board: Scoreboard, slot: int, active: int = 0, turns: int = 0) -> SlotWriter:
    """Put a worker into a slot that accepts calls, has some in progress, and had some before."""
    board.clear(slot)
    writer = SlotWriter(board, slot)
    writer.begin(100 + slot, 1, 1000.0)
    for _ in range(turns):
        take_call(writer)
        writer.call_ends(False)
    for _ in range(active):
        take_call(writer)
    writer.set_state(WorkerState.READY)
    return writer


def test_a_new_board_says_whose_it_is(board: Scoreboard) -> None:
    """A new board names its master and its beginning, and holds no worker."""
    assert (board.master_pid, board.started_s, board.generation) == (42, 1000.5, 0)
    assert board.occupied() == []


def test_the_file_is_reserved_whole(board: Scoreboard, path: Path) -> None:
    """All blocks are there from the beginning, so that no later write can fail for want of room."""
    status = path.stat()
    assert status.st_size == BOARD_BYTES
    assert status.st_blocks * 512 >= BOARD_BYTES
    assert status.st_mode & 0o777 == 0o644


def test_nothing_is_left_beside_the_board(board: Scoreboard, path: Path) -> None:
    """The file under which a board is made does not stay."""
    assert list(path.parent.iterdir()) == [path]


def test_a_link_that_waits_is_not_followed(path: Path, tmp_path: Path) -> None:
    """Root may make a board in a folder of somebody who knows its name before: his link leads nowhere."""
    others = tmp_path / "others"
    others.write_text("precious")
    path.with_name("scoreboard.42").symlink_to(others)
    Scoreboard.create(path, 42, 1.0)
    assert others.read_text() == "precious"
    assert Scoreboard.attach(path).master_pid == 42


def test_every_field_comes_back(board: Scoreboard, path: Path) -> None:
    """What a worker writes is what another process reads, field by field."""
    board.clear(3, call_limit=7)
    writer = SlotWriter(board, 3)
    writer.begin(4711, 5, 1000.25, witness=4712)
    writer.promise(1010.75)
    writer.set_rss(3 * MIB)
    writer.set_queued(4)
    writer.set_places(250)
    writer.set_lag(0.25)
    for failed in (True, False, False):
        writer.call_begins()
        writer.call_ends(failed)
    # One is in progress, the others wait.
    for _ in range(5):
        writer.call_begins()
    writer.set_state(WorkerState.DRAINING)
    expected = SlotFacts(
        slot=3,
        pid=4711,
        generation=5,
        state=WorkerState.DRAINING,
        started_s=1000.25,
        deadline_s=1010.75,
        active=1,
        served=3,
        failed=1,
        rss_bytes=3 * MIB,
        queued=4,
        places=250,
        lag_s=0.25,
        witness=4712,
    )
    assert Scoreboard.attach(path).occupied() == [expected]


def test_what_a_forked_worker_writes_outlives_it(board: Scoreboard) -> None:
    """A worker that maps the master's descriptor is read by the master even after its death."""

    def live() -> None:
        writer = SlotWriter(Scoreboard.share(board.descriptor), 2)
        writer.begin(os.getpid(), 1, 1001.0)
        writer.set_state(WorkerState.READY)
        writer.call_begins()

    board.clear(2)
    pid = in_child(live)
    [facts] = board.occupied()
    assert (facts.slot, facts.pid, facts.state, facts.active) == (2, pid, WorkerState.READY, 1)


def test_a_worker_sees_what_others_write_later(board: Scoreboard) -> None:
    """The memory is shared both ways, not copied when it is mapped."""
    shared = Scoreboard.share(board.descriptor)
    ready_worker(board, 0, active=4)
    board.set_generation(9)
    assert shared.least_busy()[0] == 4
    assert shared.generation == 9


def test_a_board_whose_file_is_gone_is_still_shared(board: Scoreboard, path: Path) -> None:
    """Workers of a long-lived master need no file: somebody may have tidied the folder up."""
    path.unlink()
    ready_worker(Scoreboard.share(board.descriptor), 4)
    assert [facts.slot for facts in board.occupied()] == [4]


def test_no_program_inherits_the_board(board: Scoreboard) -> None:
    """What a handler starts gets no descriptor of the board."""
    assert not os.get_inheritable(board.descriptor)


def test_a_reader_cannot_write(board: Scoreboard, path: Path) -> None:
    """Who attaches for reading can damage nothing."""
    with pytest.raises(TypeError):
        Scoreboard.attach(path).set_generation(2)


def test_a_new_board_leaves_readers_of_the_old_one_alone(board: Scoreboard, path: Path) -> None:
    """A board that takes the place of another changes nothing for those who still read that."""
    board.set_generation(3)
    reader = Scoreboard.attach(path)
    Scoreboard.create(path, 43, 2000.0)
    assert (reader.master_pid, reader.generation) == (42, 3)
    assert Scoreboard.attach(path).master_pid == 43


def test_a_full_disk_is_an_error_at_once(full_disk: Path) -> None:
    """Where the board does not fit, making it fails, and leaves no piece of it behind."""
    with pytest.raises(OSError, match="No space") as caught:
        Scoreboard.create(full_disk / "scoreboard", 42, 1000.0)
    assert caught.value.errno == errno.ENOSPC
    assert list(full_disk.iterdir()) == []


def test_no_board_is_an_error_of_the_system(path: Path) -> None:
    """Where there is no board, attaching says so."""
    with pytest.raises(FileNotFoundError):
        Scoreboard.attach(path)


@pytest.mark.parametrize(
    "content",
    [b"x", bytes(BOARD_BYTES - 8), bytes(BOARD_BYTES + 8), bytes(BOARD_BYTES)],
    ids=["tiny", "short", "long", "no magic"],
)
def test_what_is_no_board_is_not_read(path: Path, content: bytes) -> None:
    """A file of another size or without the magic word is refused, and named."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a scoreboard of this version") as caught:
        Scoreboard.attach(path)
    assert str(path) in str(caught.value)


def test_another_version_is_not_read(board: Scoreboard, path: Path) -> None:
    """A board of another version of this layout is refused."""
    board.words[1] += 1
    with pytest.raises(ValueError, match="version"):
        Scoreboard.attach(path)


def test_a_cleared_slot_is_empty(board: Scoreboard) -> None:
    """The next worker of a slot finds nothing of the last, and its neighbours are untouched."""
    for slot in (0, 1, 2):
        ready_worker(board, slot, active=2, turns=5)
    board.clear(1)
    assert [facts.slot for facts in board.occupied()] == [0, 2]
    empty = board.facts(1)
    assert (empty.pid, empty.active, empty.served, empty.state) == (0, 0, 0, WorkerState.FREE)


def test_the_last_slot_is_a_slot(board: Scoreboard) -> None:
    """The board holds as many workers as it says."""
    ready_worker(board, SLOTS - 1, active=1)
    assert [facts.slot for facts in board.occupied()] == [SLOTS - 1]


@pytest.mark.parametrize("state", [WorkerState.FREE, WorkerState.STARTING, WorkerState.DRAINING])
def test_only_workers_that_accept_are_compared(board: Scoreboard, state: WorkerState) -> None:
    """An idle worker that does not accept makes nobody wait for it."""
    ready_worker(board, 0).set_state(state)
    ready_worker(board, 1, active=3, turns=7)
    assert board.least_busy() == (3, 10)


def test_the_two_minima_may_be_of_two_workers(board: Scoreboard) -> None:
    """The fewest calls in progress and the fewest turns are found each for itself."""
    ready_worker(board, 0, active=5)
    ready_worker(board, 1, active=1, turns=9)
    active, turns = board.least_busy()
    assert active == 1
    assert turns < 15


def test_with_nobody_accepting_nobody_is_less_busy(board: Scoreboard) -> None:
    """Without a worker that accepts, every worker is the least busy one."""
    active, turns = board.least_busy()
    assert active > 1 << 60
    assert turns > 1 << 60
    assert board.fewest_turns() == 0


def test_a_new_worker_begins_with_the_fewest_turns(board: Scoreboard) -> None:
    """A newcomer is not made to catch up with all calls that others took before it was born."""
    ready_worker(board, 0, turns=20)
    ready_worker(board, 1).set_state(WorkerState.DRAINING)
    board.clear(2)
    newcomer = SlotWriter(board, 2)
    newcomer.begin(4711, 1, 1001.0)
    assert newcomer.turns == 20


def test_the_master_is_woken_once_at_the_call_limit(board: Scoreboard) -> None:
    """Exactly the call that reaches the limit wants to wake the master."""
    board.clear(0, call_limit=3)
    writer = SlotWriter(board, 0)
    wakes = []
    for _ in range(5):
        writer.call_begins()
        wakes.append(writer.call_ends(False))
    assert wakes == [False, False, True, False, False]


def test_without_a_call_limit_nobody_is_woken(board: Scoreboard) -> None:
    """A limit of 0 is none."""
    board.clear(0)
    writer = SlotWriter(board, 0)
    writer.call_begins()
    assert writer.call_ends(True) is False


def test_calls_in_progress_are_counted(board: Scoreboard) -> None:
    """Beginning a call counts it in, ending one takes it away."""
    writer = ready_worker(board, 0)
    writer.call_begins()
    writer.call_begins()
    assert writer.active == 2
    writer.call_ends(False)
    assert writer.active == 1


def test_a_connection_is_a_turn_before_it_is_a_call(board: Scoreboard) -> None:
    """Who accepts has had a turn even if no word ever comes; nothing is in progress for that."""
    writer = ready_worker(board, 0)
    writer.takes_turn()
    assert (writer.turns, writer.active) == (1, 0)


def test_whoever_waits_weighs_but_is_not_in_progress(board: Scoreboard) -> None:
    """Calls that wait for a place make a worker busier than others, but are not shown as in progress."""
    writer = ready_worker(board, 0, active=3)
    writer.set_queued(2)
    assert board.least_busy()[0] == writer.active == 3
    assert (board.facts(0).active, board.facts(0).queued) == (1, 2)
    # The two words are written one after the other.
    writer.set_queued(4)
    assert board.facts(0).active == 0


def test_a_probe_is_no_call(board: Scoreboard) -> None:
    """A connection without a word counts neither as served nor as failed."""
    writer = ready_worker(board, 0)
    writer.call_begins()
    writer.probe_ends()
    facts = board.facts(0)
    assert (facts.active, facts.served, facts.failed) == (0, 0, 0)


def test_a_hub_is_never_early(board: Scoreboard) -> None:
    """A clock that rounds does not make a hub that was in time a fault."""
    writer = ready_worker(board, 0)
    writer.set_lag(-0.001)
    assert board.facts(0).lag_s == 0


# --- what the master tells

TOLD = Supervision(
    workers_wanted=5,
    listen_queue=3,
    listen_limit=128,
    listen_most=77,
    reloads=9,
    refused=2,
    loading=True,
    last_reload_s=1234.5,
    upgrades=4,
    stopping=True,
    lost_lines=6,
    lost_calls=8,
    quarantined=11,
    restarts={reason: number for number, reason in enumerate(RESTART_REASONS)},
    error="pool.yaml:1: nonsense, größer",
)


def test_supervision_comes_back(board: Scoreboard, path: Path) -> None:
    """What the master tells is what another process reads, word by word."""
    board.supervise(TOLD)
    assert Scoreboard.attach(path).supervision == TOLD


def test_supervision_of_a_new_board(board: Scoreboard) -> None:
    """Before the master has told anything there is nothing to tell, of any reason."""
    assert board.supervision == Supervision(restarts=dict.fromkeys(RESTART_REASONS, 0))


def test_supervision_touches_no_slot(board: Scoreboard) -> None:
    """What the master tells and what workers tell do not meet, neither at the first slot nor at the last."""
    writers = [ready_worker(board, slot, active=slot % 7) for slot in (0, SLOTS - 1)]
    before = board.occupied()
    board.supervise(Supervision(error="x" * 10_000, restarts=TOLD.restarts))
    assert board.occupied() == before
    for writer in writers:
        writer.set_lag(9.0)
        writer.promise(9.0)
    assert board.supervision.error == "x" * 4096
    assert board.generation == 0


@pytest.mark.parametrize("error", ["", "short", "\udcff broken", "ü" * 5000])
def test_any_error_can_be_told(error: str, board: Scoreboard) -> None:
    """An error of any length and of any letters is told, as far as there is room, and replaces the last."""
    board.supervise(TOLD)
    board.supervise(Supervision(error=error))
    told = board.supervision.error
    assert told.startswith(error.encode(errors="replace").decode()[:1000])
    assert len(told) <= 4096


def test_only_boards_are_taken_over(board: Scoreboard, path: Path) -> None:
    """A master that takes over knows its predecessor's board, and refuses what is none of its own kind."""
    Scoreboard.share(board.descriptor).check("it")
    for word in (0, 1):
        kept, board.words[word] = board.words[word], 99
        with pytest.raises(ValueError, match="it is not a scoreboard of this version"):
            Scoreboard.share(board.descriptor).check("it")
        board.words[word] = kept
    path.with_name("short").write_bytes(b"x")
    with path.with_name("short").open("r+b") as file, pytest.raises(ValueError):
        Scoreboard.share(file.fileno())
