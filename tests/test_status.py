"""fastagi_pool.status: what a scoreboard tells to whoever asks from outside."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from children import in_child

from fastagi_pool.backlog import BACKLOG_NAME
from fastagi_pool.callboard import CallBoard, CallRow
from fastagi_pool.journal import Journal, NewEntry
from fastagi_pool.logs import CallRecord
from fastagi_pool.scoreboard import RESTART_REASONS, Scoreboard, SlotWriter, Supervision, WorkerState
from fastagi_pool.status import read_pool_calls, read_status
from fastagi_pool.tally import BUCKETS_S, OUTCOMES, DatabaseTally, LaneTally, Tally
from fastagi_pool.version import VERSION

CALL = CallRecord(
    ref="3-1",
    route="ivr",
    script="agi://h/ivr",
    outcome="ok",
    hung_up=False,
    commands=3,
    total_s=2.0,
    asterisk_s=1.0,
    script_s=0.5,
    database_s=0.2,
    peer="10.0.0.1",
    uniqueid="1.1",
    callerid="49301",
    queued_s=0.1,
)
DATABASE = DatabaseTally("calls", 5, 3, 2, 1, 10, 1.5, 2, "", "mysql://db/asterisk")


@pytest.fixture
def dead_pid() -> int:
    """The pid of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def board_of(folder: Path, master_pid: int) -> Scoreboard:
    """Make a board with a draining worker, late and with two calls, and a serving one with three."""
    board = Scoreboard.create(folder / "scoreboard", master_pid, 1000.0)
    board.set_generation(2)
    for slot, (state, active) in enumerate([(WorkerState.DRAINING, 2), (WorkerState.READY, 3)]):
        board.clear(slot)
        writer = SlotWriter(board, slot)
        writer.begin(5000 + slot, 1 + slot, 1010.0)
        writer.promise(1050.0 + 50.0 * slot)
        writer.set_places(100)
        writer.set_queued(slot)
        writer.set_lag(0.25)
        for _ in range(active):
            writer.call_begins()
        writer.set_state(state)
    return board


def call_of(folder: Path, slot: int, accepted_s: float, route: str = "ivr") -> CallRow:
    """Put a board with one call into a slot of the pool."""
    board = CallBoard.create(folder / "calls" / str(slot), slot, 5000 + slot, 100)
    return show_call(board, accepted_s, route)


def show_call(board: CallBoard, accepted_s: float, route: str = "ivr") -> CallRow:
    """Show a call that runs its script."""
    row = board.take()
    row.accepted("10.0.0.1", accepted_s)
    row.routed(route, accepted_s)
    return row


def tally_of(folder: Path, slot: int) -> Tally:
    """Put a tally into a slot of the pool."""
    return Tally.open(folder / "tallies" / str(slot), 5000 + slot, ["ivr"])


def test_a_running_pool(tmp_path: Path) -> None:
    """While the master lives, status tells its generation, its age and all its workers."""
    board_of(tmp_path, os.getpid())
    status = read_status(tmp_path, 1060.0)
    assert (status.master_pid, status.running) == (os.getpid(), True)
    assert (status.generation, status.uptime_s) == (2, 60.0)
    assert [facts.pid for facts in status.workers] == [5000, 5001]


def test_a_pool_whose_master_is_dead(tmp_path: Path, dead_pid: int) -> None:
    """After a crash of the master status says so, and still tells what was last known."""
    board_of(tmp_path, dead_pid)
    status = read_status(tmp_path, 1060.0)
    assert not status.running
    assert len(status.workers) == 2


def test_a_master_of_somebody_else_lives(tmp_path: Path) -> None:
    """A master that one may not signal, as root's for a user, counts as alive."""
    board_of(tmp_path, 1)
    assert read_status(tmp_path, 1060.0).running


def test_as_json(tmp_path: Path) -> None:
    """The JSON form has plain values only, with ages instead of monotonic times."""
    board_of(tmp_path, os.getpid())
    content = json.loads(json.dumps(read_status(tmp_path, 1060.0).as_json(1060.0)))
    workers = content.pop("workers")
    assert content == {
        "version": VERSION,
        "master_pid": os.getpid(),
        "running": True,
        "stopping": False,
        "generation": 2,
        "uptime_s": 60.0,
        "active": 4,
        "queued": 1,
        "places": 100,
        "workers_wanted": 0,
        "listen": {"queue": 0, "limit": 0, "most": 0},
        "reload": {"asked": 0, "refused": 0, "loading": False, "last_s": None, "error": ""},
        "upgrades": 0,
        "lost_lines": 0,
        "lost_calls": 0,
        "quarantined_requests": 0,
        "restarts": dict.fromkeys(RESTART_REASONS, 0),
        "routes": [],
        "peers": [],
        "databases": [],
        "lanes": [],
        "journal": None,
        "unreadable": [],
        "bucket_limits_s": list(BUCKETS_S),
    }
    assert workers[0] == {
        "slot": 0,
        "generation": 1,
        "pid": 5000,
        "state": "draining",
        "age_s": 50.0,
        "active": 2,
        "queued": 0,
        "places": 100,
        "served": 0,
        "failed": 0,
        "rss_bytes": 0,
        "stuck": True,
        "lag_s": 0.25,
    }
    assert [(worker["state"], worker["stuck"]) for worker in workers] == [
        ("draining", True),
        ("ready", False),
    ]


def test_what_the_master_tells(tmp_path: Path) -> None:
    """The supervision's numbers are there, with an age instead of a moment."""
    told = Supervision(
        workers_wanted=4,
        listen_queue=5,
        listen_limit=128,
        listen_most=9,
        reloads=3,
        refused=1,
        loading=True,
        last_reload_s=1050.5,
        upgrades=2,
        stopping=True,
        lost_lines=7,
        restarts={"died": 6},
        error="line 3: no such key",
        lost_calls=12,
        quarantined=1,
    )
    board_of(tmp_path, os.getpid()).supervise(told)
    content = read_status(tmp_path, 1060.0).as_json(1060.0)
    assert content["listen"] == {"queue": 5, "limit": 128, "most": 9}
    assert content["reload"] == {
        "asked": 3,
        "refused": 1,
        "loading": True,
        "last_s": 9.5,
        "error": "line 3: no such key",
    }
    assert content["restarts"] == {**dict.fromkeys(RESTART_REASONS, 0), "died": 6}
    assert (content["workers_wanted"], content["upgrades"], content["stopping"]) == (4, 2, True)
    assert (content["lost_lines"], content["lost_calls"], content["quarantined_requests"]) == (7, 12, 1)


def test_a_route_adds_up_over_all_workers(tmp_path: Path) -> None:
    """A route has the calls of all slots, a former worker's too, and the present ones' calls in progress."""
    board_of(tmp_path, os.getpid())
    for slot in (0, 1, 7):
        tally_of(tmp_path, slot).write(CALL, 1.0)
    tally_of(tmp_path, 1).slow("ivr")
    rows = [call_of(tmp_path, 0, 1040.0), call_of(tmp_path, 1, 1041.0)]
    content = read_status(tmp_path, 1060.0).as_json(1060.0)
    [route] = content["routes"]
    durations, scripts = [0] * 19, [0] * 19
    durations[BUCKETS_S.index(2.5)] = 3
    scripts[BUCKETS_S.index(0.5)] = 3
    assert route == {
        "route": "ivr",
        "active": len(rows),
        "calls": 3,
        "failed": 0,
        "outcomes": {**dict.fromkeys(OUTCOMES, 0), "ok": 3},
        "slow": 1,
        "hangups": 0,
        "commands": 9,
        "refused": 0,
        "queued_s": 0.3,
        "asterisk_s": 3.0,
        "script_s": 0.9,
        "database_s": 0.6,
        "total_s": 6.0,
        "durations": durations,
        "scripts": scripts,
    }
    assert content["peers"] == [{"peer": "10.0.0.1", "active": 2, "calls": 3, "failed": 0}]


def test_a_route_is_there_from_its_first_call_on(tmp_path: Path) -> None:
    """A call in progress is counted under its route and its peer even where no tally names them."""
    board_of(tmp_path, os.getpid())
    call_of(tmp_path, 0, 1040.0)
    content = read_status(tmp_path, 1060.0).as_json(1060.0)
    assert [(route["route"], route["active"], route["calls"]) for route in content["routes"]] == [
        ("ivr", 1, 0)
    ]
    assert content["peers"] == [{"peer": "10.0.0.1", "active": 1, "calls": 0, "failed": 0}]


def test_a_database_adds_up_over_all_workers(tmp_path: Path) -> None:
    """Gauges are those of the present workers, counters those of all; one who cannot reach it is enough."""
    board_of(tmp_path, os.getpid())
    for slot, reason, down_s in ((0, "", 0.0), (1, "it does not answer", 45.0), (7, "long ago", 99.0)):
        told = DatabaseTally("calls", 5, 3, 2, 1, 10, 1.5, 2, reason, "mysql://db/asterisk", down_s)
        tally_of(tmp_path, slot).database(told)
    [database] = read_status(tmp_path, 1060.0).as_json(1060.0)["databases"]
    assert database == {
        "name": "calls",
        "size": 10,
        "connected": 6,
        "in_use": 4,
        "waiting": 2,
        "statements": 30,
        "seconds": 4.5,
        "failures": 6,
        "up": False,
        "down_workers": 1,
        "down_s": 45.0,
        "reason": "it does not answer",
        "server": "mysql://db/asterisk",
    }


def test_a_database_of_the_past_is_not_shown(tmp_path: Path) -> None:
    """What no present worker has is no database of the pool any more."""
    board_of(tmp_path, os.getpid())
    tally_of(tmp_path, 7).database(DATABASE)
    tally_of(tmp_path, 0).database(DATABASE)
    tally_of(tmp_path, 0)
    assert read_status(tmp_path, 1060.0).databases == ()


def test_a_lane_adds_up_over_all_workers(tmp_path: Path) -> None:
    """Calls are those of the present workers, refused ones of all, and the limit of those that accept."""
    board_of(tmp_path, os.getpid())
    for slot in (0, 1, 7):
        tally_of(tmp_path, slot).lane(LaneTally("records", 50, 12, 3, 5))
    tally_of(tmp_path, 7).lane(LaneTally("gone", 50, 0, 0, 1))
    content = read_status(tmp_path, 1060.0).as_json(1060.0)
    assert content["lanes"] == [{"name": "records", "limit": 50, "active": 24, "queued": 6, "refused": 15}]


def journal_of(folder: Path) -> Journal:
    """Put a journal beside the pool: two calls wait for a database, one for another, one in quarantine."""
    journal = Journal.open(folder / "journal.db", 1 << 30, folder / BACKLOG_NAME)
    times_s = (5000.0, 4955.5, 4900.0)
    numbers = journal.append([NewEntry("calls", "hangup", f"r-{each}", (), each, each) for each in times_s])
    journal.append([NewEntry("crm", "hangup", "r-4", (), 4990.0, 4990.0)])
    journal.settle(failed=[(numbers[-1], "no such column")])
    return journal


def test_the_journal_is_told_of(tmp_path: Path) -> None:
    """How many calls wait, for how long the oldest of them does, and how full it is, as workers see it."""
    board_of(tmp_path, os.getpid())
    journal = journal_of(tmp_path)
    told = read_status(tmp_path, 1060.0, 5000.0).as_json(1060.0)["journal"]
    facts = journal.facts()
    assert told == {
        "waiting": 3,
        "quarantined": 1,
        "oldest_age_s": 44.5,
        "used_bytes": facts.used_bytes,
        "limit_bytes": 1 << 30,
        "databases": [
            {"name": "calls", "waiting": 2, "quarantined": 1},
            {"name": "crm", "waiting": 1, "quarantined": 0},
        ],
    }
    journal.drop([1, 2, 4])
    assert read_status(tmp_path, 1060.0, 5000.0).as_json(1060.0)["journal"]["oldest_age_s"] is None


def test_a_journal_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A damaged backlog hides nothing but itself."""
    board_of(tmp_path, os.getpid())
    (tmp_path / BACKLOG_NAME).write_bytes(b"garbage")
    status = read_status(tmp_path, 1060.0)
    assert (status.journal, status.unreadable) == (
        None,
        (f"{tmp_path / BACKLOG_NAME} is no backlog of a journal",),
    )


def test_a_dead_workers_calls_are_not_in_progress(tmp_path: Path) -> None:
    """What lies in a slot of somebody else's process is neither counted nor shown."""
    board = board_of(tmp_path, os.getpid())
    call_of(tmp_path, 0, 1040.0)
    board.clear(0)
    SlotWriter(board, 0).begin(6000, 3, 1041.0)
    assert read_status(tmp_path, 1060.0).active_by_route == {}
    assert read_pool_calls(tmp_path, 1060.0) == []


def test_calls_come_oldest_first(tmp_path: Path) -> None:
    """All workers' calls are in one row, the oldest in front, without those that came later than now."""
    board_of(tmp_path, os.getpid())
    for slot, times in ((0, (1030.0, 1010.0, 1070.0)), (1, (1020.0, 1005.0))):
        board = CallBoard.create(tmp_path / "calls" / str(slot), slot, 5000 + slot, 100)
        for accepted_s in times:
            show_call(board, accepted_s)
    found = [(call.slot, call.accepted_s) for call in read_pool_calls(tmp_path, 1060.0)]
    assert found == [(1, 1005.0), (0, 1010.0), (1, 1020.0), (0, 1030.0)]
    assert [call.accepted_s for call in read_pool_calls(tmp_path, 1060.0, 2)] == [1005.0, 1010.0]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """One broken file hides nothing but itself."""
    board_of(tmp_path, os.getpid())
    call_of(tmp_path, 0, 1040.0)
    tally_of(tmp_path, 0).write(CALL, 1.0)
    (tmp_path / "calls" / "1").write_bytes(b"garbage")
    (tmp_path / "tallies" / "1").write_bytes(b"garbage")
    status = read_status(tmp_path, 1060.0)
    assert [route.calls for route in status.routes] == [1]
    assert len(read_pool_calls(tmp_path, 1060.0)) == 1
    for name, sentence in zip(("calls/1", "tallies/1"), status.unreadable, strict=True):
        assert sentence.startswith(f"{tmp_path / name} is not a")


def test_a_file_on_its_way_is_no_tally(tmp_path: Path) -> None:
    """The name under which a worker makes its file does not count as a slot."""
    board_of(tmp_path, os.getpid())
    tally_of(tmp_path, 0)
    (tmp_path / "tallies" / "1.5001").write_bytes(b"")
    assert read_status(tmp_path, 1060.0).unreadable == ()


def test_calls_that_may_not_be_read_are_left_out(tmp_path: Path) -> None:
    """Who may not see callers' numbers still sees how the pool fares."""

    def look() -> dict[str, object]:
        os.setresuid(65534, 65534, 65534)
        status = read_status(tmp_path, 1060.0)
        with pytest.raises(PermissionError):
            read_pool_calls(tmp_path, 1060.0)
        return {"calls": [route.calls for route in status.routes], "unreadable": len(status.unreadable)}

    if os.geteuid():
        pytest.skip("only root can become somebody else")
    board_of(tmp_path, os.getpid())
    call_of(tmp_path, 0, 1040.0)
    tally_of(tmp_path, 0).write(CALL, 1.0)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if "pytest" in folder.name or folder == tmp_path:
            folder.chmod(0o755)
    assert in_child(look) == {"calls": [1], "unreadable": 2}


def test_a_folder_without_a_pool(tmp_path: Path) -> None:
    """Where no pool ever ran, the error is the system's."""
    with pytest.raises(FileNotFoundError):
        read_status(tmp_path, 1060.0)


def test_a_board_of_another_version(tmp_path: Path) -> None:
    """A board that this program cannot read is not guessed at."""
    (tmp_path / "scoreboard").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a scoreboard of this version"):
        read_status(tmp_path, 1060.0)
