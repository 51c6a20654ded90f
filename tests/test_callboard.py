"""fastagi_pool.callboard: what a worker tells of its calls, and what other processes read."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from children import busy_child, in_child
from disks import small_disk

from fastagi_pool import callboard
from fastagi_pool.callboard import (
    NO_ROW,
    CallBoard,
    CallFacts,
    CallRow,
    CallState,
    NoRow,
    count_calls,
    oldest_calls,
    read_calls,
)

ROWS_OF_BLOCK = 42
BLOCK_BYTES = 65536
ROW_BYTES = 1536
FIRST_ROW = 1024
SERIAL_AT_END = 1488
OCCUPIED = callboard._occupied


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the board lies."""
    return tmp_path / "calls" / "3"


@pytest.fixture
def board(path: Path) -> CallBoard:
    """A new board of worker 42 in slot 3."""
    return CallBoard.create(path, 3, 42, 100)


def row_in_script(
    board: CallBoard, ref: str = "3-1", route: str = "call_log", accepted_s: float = 100.0
) -> CallRow:
    """Take a row and bring a call to where its script begins, one second after accept."""
    row = board.take()
    row.accepted("10.0.0.1", accepted_s)
    row.known(ref, "agi://h/call_log", "1700000000.1", "SIP/trunk-01", "4930123")
    row.routed(route, accepted_s + 1.0)
    return row


def only_call(path: Path) -> CallFacts:
    """Read the only call in progress."""
    [facts] = read_calls(path, 3)
    return facts


def test_a_new_board_is_empty_and_private(board: CallBoard, path: Path) -> None:
    """Callers' numbers are read by nobody else, and nothing lies beside the file."""
    assert read_calls(path, 3) == []
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_every_field_comes_back(board: CallBoard, path: Path) -> None:
    """What a worker tells is what another process reads, field by field."""
    row = row_in_script(board)
    row.asks(b'EXEC Playback "hello"\n', 0.5, 101.5)
    row.runs(2.0, 103.5)
    row.queries("SELECT 1", 104.0)
    row.hung_up()
    assert in_child(lambda: only_call(path)._asdict()) == {
        "slot": 3,
        "pid": 42,
        "state": CallState.DATABASE,
        "accepted_s": 100.0,
        "since_s": 104.0,
        "queued_s": 0.0,
        "asterisk_s": 2.0,
        "script_s": 1.0,
        "database_s": 0.0,
        "commands": 1,
        "hung_up": True,
        "ref": "3-1",
        "route": "call_log",
        "script": "agi://h/call_log",
        "peer": "10.0.0.1",
        "uniqueid": "1700000000.1",
        "channel": "SIP/trunk-01",
        "callerid": "4930123",
        "command": 'EXEC Playback "hello"',
        "statement": "SELECT 1",
        "fingerprint": 0,
        "number": 0,
    }


def test_a_call_from_accept_to_its_end(board: CallBoard, path: Path) -> None:
    """Every step of a call shows the state that it has brought, and since when."""
    row = board.take()
    seen: list[tuple[str, float]] = []

    def look() -> None:
        facts = only_call(path)
        seen.append((facts.state.letter, facts.since_s))

    row.accepted("10.0.0.1", 1.0)
    row.show()
    look()
    row.queued(2.0)
    look()
    row.called_in(1.0, 3.0)
    look()
    row.known("3-1", "s", "u", "c", "n")
    row.routed("call_log", 5.0)
    look()
    row.asks(b"NOOP\n", 0.0, 6.0)
    look()
    row.runs(1.0, 7.0)
    look()
    row.queries("SELECT 1", 8.0)
    look()
    row.answered(1.0, 9.0)
    look()
    row.finished(10.0)
    look()
    row.ending(11.0)
    look()
    row.release()
    expected = zip("RQRWAWDWFE", [1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0], strict=True)
    assert seen == list(expected)
    assert read_calls(path, 3) == []


@pytest.mark.parametrize(
    ("state", "clocks"),
    [
        (CallState.HEADER, (1.0, 2.0, 3.0, 1.0)),
        (CallState.QUEUED, (11.0, 2.0, 3.0, 1.0)),
        (CallState.ASTERISK, (1.0, 12.0, 3.0, 1.0)),
        (CallState.SCRIPT, (1.0, 2.0, 13.0, 1.0)),
        (CallState.DATABASE, (1.0, 2.0, 3.0, 11.0)),
        (CallState.FINISHED, (1.0, 2.0, 13.0, 1.0)),
        (CallState.ENDING, (1.0, 2.0, 3.0, 1.0)),
    ],
)
def test_the_running_clock_goes_on(state: CallState, clocks: tuple[float, ...]) -> None:
    """Of the four clocks only that of the state runs, and the script's is told without the database."""
    texts = ("",) * 9
    facts = CallFacts(0, 1, state, 100.0, 200.0, 1.0, 2.0, 4.0, 1.0, 0, False, *texts)
    assert facts.clocks(210.0) == clocks


def test_the_script_clock_holds_its_time_in_the_database(board: CallBoard, path: Path) -> None:
    """Statements count for the script as well as for the database, whatever comes in between."""
    row = row_in_script(board)  # In script since 101.
    row.queries("SELECT 1", 102.0)
    row.answered(3.0, 105.0)
    row.finished(106.0)
    row.queries("SELECT 2", 108.0)
    facts = only_call(path)
    assert (facts.script_s, facts.database_s) == (7.0, 3.0)
    row.answered(4.0, 109.0)
    facts = only_call(path)
    assert (facts.state, facts.script_s, facts.database_s) == (CallState.FINISHED, 8.0, 4.0)
    assert facts.clocks(110.0) == (0.0, 0.0, 5.0, 4.0)


def test_waiting_for_a_place_is_no_script_time(board: CallBoard, path: Path) -> None:
    """A handler that waits for a place is queued, and goes on in script."""
    row = row_in_script(board)  # In script since 101.
    row.queued(102.0)
    row.called_in(5.0, 107.0)
    facts = only_call(path)
    assert (facts.state, facts.queued_s, facts.script_s) == (CallState.SCRIPT, 5.0, 1.0)


def test_a_call_that_ends_in_a_command_keeps_its_clocks(board: CallBoard, path: Path) -> None:
    """While the session is closed no clock runs, and the last one is not lost."""
    row = row_in_script(board)
    row.asks(b"NOOP\n", 1.0, 102.0)
    row.ending(107.0)
    assert only_call(path).clocks(200.0) == (0.0, 5.0, 1.0, 0.0)


def test_a_call_that_is_refused_unheard_is_not_the_last_one(board: CallBoard, path: Path) -> None:
    """Who is refused before anything is known of him is not shown as the call that had the row before."""
    before = row_in_script(board)
    before.resembles(7)
    before.release()
    row = board.take()
    row.accepted("10.0.0.2", 105.0)
    row.ending(106.0)
    facts = only_call(path)
    assert (facts.state, facts.peer, facts.accepted_s) == (CallState.ENDING, "10.0.0.2", 105.0)
    assert (facts.ref, facts.route, facts.callerid) == ("", "", "")


def test_as_json(board: CallBoard, path: Path) -> None:
    """The JSON form has plain values only, with ages instead of monotonic times."""
    row = row_in_script(board)
    row.asks(b"STREAM FILE hello #\n", 0.5, 101.5)
    content = only_call(path).as_json(111.75)
    assert json.loads(json.dumps(content)) == {
        "slot": 3,
        "pid": 42,
        "ref": "3-1",
        "route": "call_log",
        "script": "agi://h/call_log",
        "peer": "10.0.0.1",
        "uniqueid": "1700000000.1",
        "channel": "SIP/trunk-01",
        "callerid": "4930123",
        "state": "in Asterisk",
        "letter": "A",
        "age_s": 11.75,
        "state_s": 10.25,
        "queued_s": 0.0,
        "asterisk_s": 10.25,
        "script_s": 0.5,
        "database_s": 0.0,
        "commands": 1,
        "command": "STREAM FILE hello #",
        "statement": "",
        "hung_up": False,
    }


def test_nobody_is_older_than_now(board: CallBoard, path: Path) -> None:
    """A reader whose clock was read before the call's shows no negative age."""
    row_in_script(board)
    content = only_call(path).as_json(50.0)
    assert (content["age_s"], content["state_s"], content["script_s"]) == (0.0, 0.0, 0.0)


def test_every_state_has_its_letter_and_words() -> None:
    """No two states look alike, as a letter or in words."""
    assert "".join(state.letter for state in CallState) == "_RQAWDFE"
    assert len({state.words for state in CallState}) == len(CallState)


def test_the_next_call_finds_nothing_of_the_last(board: CallBoard, path: Path) -> None:
    """A place that is used again shows no text, clock or hangup of the call before."""
    row = row_in_script(board)
    row.asks(b"NOOP\n", 1.0, 102.0)
    row.hung_up()
    row.release()
    again = board.take()
    assert again is row
    again.accepted("10.0.0.2", 200.0)
    again.show()
    texts = ("", "", "", "10.0.0.2", "", "", "", "", "")
    clocks = (200.0, 200.0, 0.0, 0.0, 0.0, 0.0)
    assert tuple(only_call(path)) == (3, 42, CallState.HEADER, *clocks, 0, False, *texts, 0, 0)


def test_nothing_is_written_before_the_route_is_found(board: CallBoard, path: Path) -> None:
    """Most calls find their route at once, and probes never do: both cost no writing until then."""
    row = board.take()
    row.accepted("10.0.0.1", 1.0)
    row.known("3-1", "s", "u", "c", "n")
    assert read_calls(path, 3) == []
    row.show()
    assert (only_call(path).ref, only_call(path).state) == ("3-1", CallState.HEADER)
    row.show()
    row.routed("call_log", 2.0)
    assert (only_call(path).route, only_call(path).state) == ("call_log", CallState.SCRIPT)


def test_a_row_that_is_not_used_yet_is_not_shown(board: CallBoard, path: Path) -> None:
    """A row counts from accept on."""
    board.take()
    assert read_calls(path, 3) == []


def test_the_board_grows_with_its_calls(board: CallBoard, path: Path) -> None:
    """Memory is used when it is needed: one block at first, more with the calls, to the last row."""
    first_kib = path.stat().st_blocks / 2
    refs = [f"3-{number}" for number in range(100)]
    for number, ref in enumerate(refs):
        row_in_script(board, ref, accepted_s=float(number))
    assert first_kib <= 64 < path.stat().st_blocks / 2
    assert sorted(facts.ref for facts in read_calls(path, 3)) == sorted(refs)
    assert board.not_shown == 0


def test_beyond_the_most_calls_are_not_shown_but_counted(board: CallBoard, path: Path) -> None:
    """A call for which there is no row goes on unseen, and the next one after an end is seen again."""
    rows = [row_in_script(board) for _ in range(100)]
    unseen = row_in_script(board)
    assert isinstance(unseen, NoRow)
    assert board.not_shown == 1
    assert len(read_calls(path, 3)) == 100
    rows[0].release()
    row_in_script(board, "seen")
    assert "seen" in {facts.ref for facts in read_calls(path, 3)}


def test_no_row_takes_everything() -> None:
    """Where nothing is shown every step is allowed and does nothing."""
    NO_ROW.accepted("10.0.0.1", 1.0)
    NO_ROW.queued(1.0)
    NO_ROW.called_in(1.0, 2.0)
    NO_ROW.known("r", "s", "u", "c", "n")
    NO_ROW.routed("route", 4.0)
    NO_ROW.asks(b"NOOP\n", 1.0, 5.0)
    NO_ROW.runs(1.0, 6.0)
    NO_ROW.queries("SELECT 1", 7.0)
    NO_ROW.answered(1.0, 8.0)
    NO_ROW.hung_up()
    NO_ROW.finished(9.0)
    NO_ROW.ending(10.0)
    NO_ROW.release()
    NO_ROW.accepted("10.0.0.1", 1.0)


def test_a_full_disk_costs_only_the_showing(tmp_path: Path) -> None:
    """Where the board cannot grow calls go on without a row; nothing is raised, nobody dies of SIGBUS."""
    with small_disk(64) as disk:
        path = disk / "calls" / "0"
        board = CallBoard.create(path, 0, 42, 1000)
        for _ in range(ROWS_OF_BLOCK + 5):
            row_in_script(board)
        assert board.not_shown == 5
        assert len(read_calls(path, 0)) == ROWS_OF_BLOCK


def test_no_room_for_a_board_is_an_error_at_once(tmp_path: Path) -> None:
    """Where not even the first block fits, making the board fails, and leaves nothing behind."""
    with small_disk(64) as disk:
        (disk / "big").write_bytes(bytes(4096))
        with pytest.raises(OSError, match="No space"):
            CallBoard.create(disk / "calls" / "0", 0, 42, 10)
        assert list((disk / "calls").iterdir()) == []


def test_the_next_worker_begins_with_an_empty_board(board: CallBoard, path: Path) -> None:
    """Calls of a dead worker are gone when the next one takes the slot, and nobody is hurt by it."""
    row = row_in_script(board)
    CallBoard.create(path, 3, 43, 100)
    assert read_calls(path, 3) == []
    row.asks(b"NOOP\n", 1.0, 2.0)
    assert read_calls(path, 3) == []


def test_what_a_dead_worker_left_is_still_read(path: Path) -> None:
    """After a kill -9 its last words are there, under its own process number."""

    def live() -> None:
        row_in_script(CallBoard.create(path, 3, os.getpid(), 100)).asks(b"NOOP\n", 1.0, 2.0)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        live()
    os.waitpid(pid, 0)
    facts = only_call(path)
    assert (facts.pid, facts.state, facts.command) == (pid, CallState.ASTERISK, "NOOP")


def test_each_row_has_a_number(board: CallBoard, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader finds the number that the row itself has, in a second block too, and of rows read again."""
    rows = [row_in_script(board, str(number)) for number in range(60)]
    numbers = {str(number): row.number for number, row in enumerate(rows)}
    assert sorted(numbers.values()) == list(range(60))
    assert {call.ref: call.number for call in read_calls(path, 3)} == numbers
    monkeypatch.setattr(callboard, "_occupied", half_torn)
    assert {call.ref: call.number for call in read_calls(path, 3)} == numbers


def half_torn(words: memoryview[int]) -> tuple[list[int], list[int]]:
    """Find every second row just being written."""
    rows, torn = OCCUPIED(words)
    return rows[::2], [*rows[1::2], *torn]


def test_a_row_that_is_half_written_is_left_out(board: CallBoard, path: Path) -> None:
    """A worker that was killed or stopped in the middle of a row costs that row and no other."""
    for ref in ("a", "b", "c"):
        row_in_script(board, ref)
    with path.open("r+b") as file:
        file.seek(FIRST_ROW + ROW_BYTES)
        file.write((1_000_000).to_bytes(8, "little"))
    assert [facts.ref for facts in read_calls(path, 3)] == ["a", "c"]
    assert sum(count_calls(path, 3)[1].values()) == 2


def test_readers_never_see_two_states_in_one(path: Path) -> None:
    """While a worker writes as fast as it can, what is read is always one state of the row."""
    board = CallBoard.create(path, 3, 42, 1)
    row = board.take()
    row.accepted("10.0.0.1", 0.0)
    seen: dict[int, CallFacts] = {}
    with busy_child(lambda number: row.asks(b"%d" % number * 20, float(number), float(number))):
        for _ in range(200_000):
            seen |= {facts.commands: facts for facts in read_calls(path, 3)}
            if len(seen) > 1000:
                break
    seen.pop(0, None)
    assert len(seen) >= 1000
    for facts in seen.values():
        assert facts.command == str(facts.commands) * 20
        assert facts.since_s == facts.script_s == facts.commands


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ä" * 100, "ä" * 100),
        ("\U0001f4de" * 100, "\U0001f4de" * 100),
        ("x" * 399 + "ä", "x" * 399),
        ("bad \udcff byte", "bad \ufffd\ufffd\ufffd byte"),
        ("\ud800", "\ufffd\ufffd\ufffd"),
        ("", ""),
    ],
    ids=["umlauts", "four bytes each", "cut in a character", "a byte", "half a pair", "nothing"],
)
def test_any_text_is_shown_somehow(board: CallBoard, path: Path, text: str, shown: str) -> None:
    """Names of 100 characters are shown whole, whatever they cost; nothing makes telling or reading fail."""
    row_in_script(board, route=text)
    assert only_call(path).route == shown
    json.dumps(only_call(path).as_json(1.0)).encode()


def test_long_commands_are_cut(board: CallBoard, path: Path) -> None:
    """A command of any length and any bytes leaves its neighbours alone."""
    row = row_in_script(board)
    row.asks(b"\xff" + b"x" * 2000 + b"\n", 0.5, 2.0)
    facts = only_call(path)
    assert facts.command == "\ufffd" + "x" * 223
    assert (facts.state, facts.script_s, facts.route) == (CallState.ASTERISK, 0.5, "call_log")


def test_the_oldest_calls(board: CallBoard, path: Path) -> None:
    """The oldest come first, wherever they lie."""
    for accepted_s in (5.0, 3.0, 9.0, 1.0, 7.0):
        row_in_script(board, accepted_s=accepted_s)
    assert [facts.accepted_s for facts in oldest_calls(path, 3, 3)] == [1.0, 3.0, 5.0]
    assert len(oldest_calls(path, 3, 20)) == 5


def test_calls_are_counted_by_peer_and_route(board: CallBoard, path: Path) -> None:
    """Counting tells whose board it is and how many calls each Asterisk has in each route."""
    for route in ("a", "b", "a"):
        row_in_script(board, route=route)
    row = board.take()
    row.accepted("10.0.0.2", 1.0)
    row.show()
    counts = {("10.0.0.1", "a"): 2, ("10.0.0.1", "b"): 1, ("10.0.0.2", ""): 1}
    assert count_calls(path, 3) == (42, counts)


def test_no_file_is_no_call(path: Path) -> None:
    """A slot that never had a worker, or whose file has vanished, has no calls."""
    assert read_calls(path, 3) == []
    assert oldest_calls(path, 3, 5) == []
    assert count_calls(path, 3) == (0, {})


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut short", "other version"])
def test_what_is_no_board_is_refused_by_name(board: CallBoard, path: Path, damage: str) -> None:
    """A file that cannot be a board of this version is named, and what to do about it."""
    content = bytearray(path.read_bytes())
    content[8] += damage == "other version"
    damaged = {"empty": b"", "garbage": b"x" * 100, "cut short": bytes(content[:1024])}
    path.write_bytes(damaged.get(damage, bytes(content)))
    with pytest.raises(ValueError, match="is not a board of calls of this version: use") as caught:
        read_calls(path, 3)
    assert str(path) in str(caught.value)
