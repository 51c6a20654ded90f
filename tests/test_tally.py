"""fastagi_pool.tally: what a worker counts, what the next one goes on with, and what other processes read."""

from __future__ import annotations

import os
import signal
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from children import busy_child
from disks import small_disk

from fastagi_pool.logs import CallRecord
from fastagi_pool.tally import (
    BUCKETS_S,
    MOST_PEERS,
    MOST_ROUTES,
    NO_FAILURES,
    OTHERS,
    OUTCOMES,
    DatabaseTally,
    LaneTally,
    PeerTally,
    RouteTally,
    SlotTally,
    Tally,
    read_tally,
)

CALL = CallRecord(
    ref="3-1",
    route="call_log",
    script="agi://h/call_log",
    outcome="ok",
    hung_up=False,
    commands=3,
    total_s=2.0,
    asterisk_s=1.0,
    script_s=0.5,
    database_s=0.25,
    peer="10.0.0.1",
    uniqueid="1.1",
    callerid="49301",
    queued_s=0.125,
)
DATABASE = DatabaseTally(
    name="calls",
    size=5,
    connected=3,
    in_use=2,
    waiting=1,
    statements=10,
    seconds=1.5,
    failures=2,
    down_reason="it does not answer",
    server="mysql://db/asterisk",
    down_s=45.5,
)
LANE = LaneTally("records", limit=50, active=12, queued=3, refused=7)
#: A database's numbers before it was told for how long it is away.
_OLD_DATABASE = struct.Struct("@4QQdQ256s128s")
_AT_NUMBERS = 408


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the tally lies."""
    return tmp_path / "tallies" / "3"


@pytest.fixture
def tally(path: Path) -> Tally:
    """A new tally of worker 42."""
    return Tally.open(path, 42, ["call_log", "ivr"])


def route(path: Path, name: str = "call_log") -> RouteTally:
    """Read what was counted for one route."""
    [found] = [each for each in read_tally(path).routes if each.route == name]
    return found


def test_a_new_tally_names_its_routes(tally: Tally, path: Path) -> None:
    """Before the first call every route is there with nothing counted."""
    assert read_tally(path) == SlotTally(pid=42, routes=(RouteTally("call_log"), RouteTally("ivr")))
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_every_number_comes_back(tally: Tally, path: Path) -> None:
    """What is known of a call is counted where it belongs."""
    tally.write(CALL, 1.0)
    tally.write(replace(CALL, outcome="timeout", hung_up=True, refused=4, total_s=1e9), 1.0)
    tally.slow("call_log")
    durations, scripts = [0] * 19, [0] * 19
    durations[BUCKETS_S.index(2.5)] += 1
    durations[-1] += 1
    scripts[BUCKETS_S.index(0.25)] += 2
    assert route(path) == RouteTally(
        route="call_log",
        outcomes={**dict.fromkeys(OUTCOMES, 0), "ok": 1, "timeout": 1},
        total_s=1e9 + 2.0,
        queued_s=0.25,
        asterisk_s=2.0,
        script_s=1.0,
        database_s=0.5,
        commands=6,
        hangups=1,
        refused=4,
        slow=1,
        durations=tuple(durations),
        scripts=tuple(scripts),
    )
    assert route(path, "ivr") == RouteTally("ivr")
    assert read_tally(path).peers == (PeerTally("10.0.0.1", 2, 1),)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_outcomes_and_failures(tally: Tally, path: Path, outcome: str) -> None:
    """Each outcome is counted under its own name; all but four are failures."""
    tally.write(replace(CALL, outcome=outcome), 1.0)
    counted = route(path)
    failed = int(outcome not in ("ok", "deferred", "hangup", "gone"))
    assert (counted.outcomes[outcome], counted.calls, counted.failed) == (1, 1, failed)
    peer = OTHERS if outcome == "denied" else "10.0.0.1"
    assert read_tally(path).peers == (PeerTally(peer, 1, failed),)


def test_the_outcomes_are_those_of_the_access_log() -> None:
    """Every outcome that a record may have is counted."""
    documented = CallRecord.__doc__ or ""
    assert [outcome for outcome in OUTCOMES if f"``{outcome}``" not in documented] == []
    assert set(OUTCOMES) > NO_FAILURES


def test_an_unknown_outcome_is_an_error(tally: Tally, path: Path) -> None:
    """Counting fails no call, whatever word it comes with."""
    tally.write(replace(CALL, outcome="no such word"), 1.0)
    assert route(path).outcomes["error"] == 1


@pytest.mark.parametrize(
    ("total_s", "place"),
    [(0.0, 0), (0.001, 0), (0.0011, 1), (1, 9), (1.01, 10), (7200, 17), (7201, 18)],
)
def test_a_bound_belongs_to_its_class(tally: Tally, path: Path, total_s: float, place: int) -> None:
    """A duration counts in the first class whose bound is not below it, as Prometheus has it."""
    tally.write(replace(CALL, total_s=total_s), 1.0)
    assert route(path).durations[place] == 1
    assert sum(route(path).durations) == 1


def test_the_next_worker_goes_on(tally: Tally, path: Path) -> None:
    """A new worker of the slot, and one after a reload with other routes, loses no count."""
    tally.write(CALL, 1.0)
    again = Tally.open(path, 43, ["new", "call_log"])
    again.write(CALL, 1.0)
    again.write(replace(CALL, route="new", peer="10.0.0.2"), 1.0)
    found = read_tally(path)
    assert found.pid == 43
    assert {each.route: each.calls for each in found.routes} == {"call_log": 2, "ivr": 0, "new": 1}
    assert found.peers == (PeerTally("10.0.0.1", 2, 0), PeerTally("10.0.0.2", 1, 0))


def test_what_a_killed_worker_counted_is_kept(tally: Tally, path: Path) -> None:
    """A kill -9 takes no count back."""
    pid = os.fork()
    if pid == 0:
        Tally.open(path, os.getpid(), []).write(CALL, 1.0)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (read_tally(path).pid, route(path).calls) == (pid, 1)


def test_a_call_without_a_route_counts(tally: Tally, path: Path) -> None:
    """Calls that found no route are counted under the empty name."""
    tally.write(replace(CALL, route="", outcome="noroute"), 1.0)
    assert route(path, "").failed == 1


def test_a_database_comes_back(tally: Tally, path: Path) -> None:
    """What is told of a database is what another process reads; telling again replaces it."""
    tally.database(replace(DATABASE, in_use=5, statements=9))
    tally.database(DATABASE)
    assert read_tally(path).databases == (DATABASE,)


def test_the_next_worker_takes_the_gauges_back_and_adds_to_the_counters(tally: Tally, path: Path) -> None:
    """A new worker has no connections and knows of no trouble, but statements grow on from the last one's."""
    tally.database(DATABASE)
    again = Tally.open(path, 43, [])
    forgotten = replace(
        DATABASE, size=0, connected=0, in_use=0, waiting=0, down_reason="", server="", down_s=0.0
    )
    assert read_tally(path).databases == (forgotten,)
    for statements in (1, 4):
        again.database(replace(DATABASE, statements=statements, seconds=0.5, failures=0))
    assert read_tally(path).databases == (replace(DATABASE, statements=14, seconds=2.0),)


def test_a_lane_comes_back(tally: Tally, path: Path) -> None:
    """What is told of a lane is what another process reads; telling again replaces it."""
    tally.lane(replace(LANE, active=1, refused=6))
    tally.lane(LANE)
    assert read_tally(path).lanes == (LANE,)


def test_the_next_worker_refuses_on(tally: Tally, path: Path) -> None:
    """A new worker has no lane before it says so, and what its lanes refuse adds to the last one's."""
    tally.lane(LANE)
    again = Tally.open(path, 43, [])
    assert read_tally(path).lanes == (LaneTally("records", 0, 0, 0, 7),)
    for refused in (1, 4):
        again.lane(replace(LANE, refused=refused))
    assert read_tally(path).lanes == (replace(LANE, refused=11),)


def test_lanes_beyond_the_most_are_not_shown(tally: Tally, path: Path) -> None:
    """More lanes than there are rows for make no worker fail."""
    for number in range(40):
        tally.lane(replace(LANE, name=f"lane {number}"))
    assert [lane.name for lane in read_tally(path).lanes] == [f"lane {number}" for number in range(32)]


def test_a_file_of_the_program_before_is_gone_on_with(tally: Tally, path: Path) -> None:
    """After an upgrade a worker counts on where one that knew no lanes and no time of an outage ended."""
    tally.write(CALL, 1.0)
    tally.database(DATABASE)
    content = bytearray(path.read_bytes())
    database_row = content.index(b"calls\0") // 1024
    old = _OLD_DATABASE.pack(5, 3, 2, 1, 10, 1.5, 2, b"it does not answer", b"mysql://db/asterisk")
    numbers = old + bytes(1024 - _AT_NUMBERS - len(old))
    content[database_row * 1024 + _AT_NUMBERS : (database_row + 1) * 1024] = numbers
    other = path.with_name("other")
    other.write_bytes(content)
    other.rename(path)
    assert read_tally(path).databases == (replace(DATABASE, down_s=0.0),)
    again = Tally.open(path, 43, [])
    again.write(replace(CALL, outcome="deferred"), 1.0)
    again.database(DATABASE)
    again.lane(LANE)
    assert (route(path).calls, route(path).outcomes["deferred"]) == (2, 1)
    assert read_tally(path).databases == (replace(DATABASE, statements=20, seconds=3.0, failures=4),)


def test_what_an_older_program_leaves_of_an_outage_is_not_shown(tally: Tally, path: Path) -> None:
    """A worker of a program that knows no time of an outage ends it by taking its reason back."""
    tally.database(replace(DATABASE, down_reason=""))
    assert read_tally(path).databases[0].down_s == 0.0


def test_no_counter_is_ever_seen_at_zero(tally: Tally, path: Path) -> None:
    """Whoever reads while figures are written must not believe that counters began anew."""
    tally.database(DATABASE)

    def write(number: int) -> None:
        tally.database(replace(DATABASE, statements=DATABASE.statements + number))

    with busy_child(write):
        least = min(read_tally(path).databases[0].statements for _ in range(20_000))
    assert least >= DATABASE.statements


def test_texts_of_a_database_are_cut(tally: Tally, path: Path) -> None:
    """A reason of any length and any character damages no number."""
    tally.database(replace(DATABASE, down_reason="ä\udcff" + "x" * 1000, server="y" * 1000))
    [found] = read_tally(path).databases
    assert found.down_reason == "ä\ufffd\ufffd\ufffd" + "x" * 251
    assert found.server == "y" * 128
    assert replace(found, down_reason="", server="") == replace(DATABASE, down_reason="", server="")


def test_peers_beyond_the_most_count_as_others(tally: Tally, path: Path) -> None:
    """However many addresses call, the file does not grow for ever, and no call is lost."""
    for number in range(MOST_PEERS + 10):
        tally.write(replace(CALL, peer=f"10.0.1.{number}"), 1.0)
    peers = {peer.peer: peer.calls for peer in read_tally(path).peers}
    assert len(peers) == MOST_PEERS
    assert peers[OTHERS] == 11
    assert sum(peers.values()) == MOST_PEERS + 10


def test_strangers_leave_room_for_those_who_may_call(tally: Tally, path: Path) -> None:
    """Whoever is refused by his address counts as one of the others: a scan takes no Asterisk's place."""
    for number in range(MOST_PEERS + 10):
        tally.write(replace(CALL, peer=f"203.0.113.{number}", outcome="denied"), 1.0)
    tally.write(replace(CALL, peer="10.0.0.1"), 1.0)
    peers = {peer.peer: peer.calls for peer in read_tally(path).peers}
    assert peers == {OTHERS: MOST_PEERS + 10, "10.0.0.1": 1}


def test_routes_beyond_the_most_count_as_others(path: Path) -> None:
    """More routes than there are rows for make no worker fail."""
    tally = Tally.open(path, 42, [f"route {number}" for number in range(MOST_ROUTES + 5)])
    tally.write(replace(CALL, route=f"route {MOST_ROUTES + 2}"), 1.0)
    tally.slow("another")
    assert (route(path, OTHERS).calls, route(path, OTHERS).slow) == (1, 1)
    assert len(read_tally(path).routes) == MOST_ROUTES


@pytest.mark.parametrize("name", ["ä" * 100, "\U0001f4de" * 100, "with\nline"])
def test_names_come_back_whole(path: Path, name: str) -> None:
    """A name of 100 characters is found again, by readers and by the next worker, whatever it costs."""
    for pid in (42, 43):
        Tally.open(path, pid, [name]).write(replace(CALL, route=name), 1.0)
    assert route(path, name).calls == 2


def test_names_that_are_no_text_are_counted(tally: Tally, path: Path) -> None:
    """A name that cannot be written as UTF-8 fails neither the writer nor the reader."""
    tally.write(replace(CALL, route="\udcff", peer="\udcfe"), 1.0)
    assert sum(each.calls for each in read_tally(path).routes) == 1


def test_a_full_disk_fails_no_call(tmp_path: Path) -> None:
    """Where the file cannot grow, new names count among the others; nobody dies of SIGBUS."""
    with small_disk(64) as disk:
        path = disk / "tallies" / "0"
        tally = Tally.open(path, 42, [])
        for number in range(100):
            tally.write(replace(CALL, route=f"route {number}"), 1.0)
            tally.database(replace(DATABASE, name=f"base {number}"))
        found = read_tally(path)
        assert sum(each.calls for each in found.routes) == 100
        assert sum(each.calls for each in found.peers) == 100


def test_no_room_for_a_tally_is_an_error_at_once(tmp_path: Path) -> None:
    """Where not even the first block fits, opening fails, and leaves nothing behind."""
    with small_disk(64) as disk:
        (disk / "big").write_bytes(bytes(4096))
        with pytest.raises(OSError, match="No space"):
            Tally.open(disk / "tallies" / "0", 42, [])
        assert list((disk / "tallies").iterdir()) == []


def test_no_file_is_nothing_counted(path: Path) -> None:
    """A slot whose file is missing has counted nothing."""
    assert read_tally(path) == SlotTally()


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut short", "other version"])
def test_what_is_no_tally_is_refused_by_readers_and_replaced_by_workers(
    tally: Tally, path: Path, damage: str
) -> None:
    """Readers name a file that is none, and the next worker makes a new one."""
    content = bytearray(path.read_bytes())
    content[8] += damage == "other version"
    damaged = {"empty": b"", "garbage": b"x" * 9999, "cut short": bytes(content[:2048])}
    other = path.with_name("other")
    other.write_bytes(damaged.get(damage, bytes(content)))
    other.rename(path)
    with pytest.raises(ValueError, match="is not a tally of this version: use") as caught:
        read_tally(path)
    assert str(path) in str(caught.value)
    Tally.open(path, 43, ["call_log"]).write(CALL, 1.0)
    tally.write(CALL, 1.0)
    assert route(path).calls == 1


def test_merging_adds_everything(tally: Tally, path: Path) -> None:
    """What several workers counted for one route adds up, number by number."""
    tally.write(CALL, 1.0)
    tally.slow("call_log")
    one = route(path)
    tally.write(CALL, 1.0)
    tally.slow("call_log")
    assert RouteTally.merged([one, one]) == route(path)
    assert RouteTally.merged([one]) == one
