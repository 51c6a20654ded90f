"""fastagi_pool.quarantine: who is suspected, and for how long requests like his are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from children import in_child

from fastagi_pool.callboard import CallFacts, CallState
from fastagi_pool.protocol import Request
from fastagi_pool.quarantine import PLACES, Quarantine, fingerprint, suspect

ENVIRONMENT: Mapping[str, str] = {
    "agi_network_script": "call_log?lang=en",
    "agi_callerid": "4930123",
    "agi_extension": "100",
    "agi_uniqueid": "1700000000.1",
    "agi_channel": "SIP/trunk-01",
}
#: How long requests are refused here, and after how many deaths.
FOR_S = 600.0
CRASHES = 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the table lies."""
    return tmp_path / "quarantine"


@pytest.fixture
def table(path: Path) -> Quarantine:
    """An empty table."""
    return Quarantine.create(path)


def blame(table: Quarantine, likeness: int, now_s: float) -> int:
    """Count a death."""
    return table.blame(likeness, now_s, CRASHES, FOR_S)


# --- what requests have in common


def request(*arguments: str, **changes: str) -> Request:
    """Make a request that has these arguments and differs from the usual one in this."""
    return Request({**ENVIRONMENT, **changes}, arguments)


@pytest.mark.parametrize(
    "changes", [{"agi_uniqueid": "1700000009.7"}, {"agi_channel": "SIP/trunk-02"}, {"agi_priority": "7"}]
)
def test_a_second_try_is_alike(changes: Mapping[str, str]) -> None:
    """The same caller who wants the same of the same script is recognized, on whatever channel he comes."""
    assert fingerprint(request(**changes)) == fingerprint(request())


@pytest.mark.parametrize(
    "changes",
    [
        {"agi_network_script": "call_log?lang=de"},
        {"agi_network_script": "other"},
        {"agi_callerid": "4930124"},
        {"agi_extension": "101"},
    ],
)
def test_another_request_is_not_alike(changes: Mapping[str, str]) -> None:
    """Whoever wants something else, or is somebody else, is not taken for the deadly one."""
    assert fingerprint(request(**changes)) != fingerprint(request())


def test_arguments_make_a_difference() -> None:
    """What the dialplan passes may be what ends workers."""
    made = [request(), request("a"), request("b"), request("a", "b"), request("ab")]
    assert len({fingerprint(each) for each in made}) == len(made)


def test_a_fingerprint_is_a_word() -> None:
    """It fits a word of the table, is never 0, and is the same in a process that was forked."""
    made = [fingerprint(request(agi_callerid=str(number))) for number in range(200)]
    assert all(0 < each < 1 << 64 for each in made)
    assert in_child(lambda: fingerprint(request())) == fingerprint(request())


# --- who is suspected


def facts(state: CallState, since_s: float, **others: Any) -> CallFacts:
    """A call that is in this state for so long."""
    nothing = {name: "" if kind in ("str", str) else 0 for name, kind in CallFacts.__annotations__.items()}
    return CallFacts(**{**nothing, "state": state, "since_s": since_s, **others})


@pytest.mark.parametrize("state", [CallState.SCRIPT, CallState.DATABASE, CallState.FINISHED])
def test_who_did_something_last_is_suspected(state: CallState) -> None:
    """Of the calls in a dead worker the one that did something last was in control."""
    older, last = facts(CallState.SCRIPT, 10.0), facts(state, 11.0)
    assert suspect([last, older]) is last
    assert suspect([older, last]) is last


@pytest.mark.parametrize("state", [CallState.ASTERISK, CallState.QUEUED, CallState.HEADER, CallState.ENDING])
def test_who_only_waits_is_not_suspected(state: CallState) -> None:
    """Where the last thing done was to ask Asterisk, nobody is accused: the worker died of something else."""
    assert suspect([facts(CallState.SCRIPT, 10.0), facts(state, 11.0)]) is None


def test_without_calls_nobody_is_suspected() -> None:
    """A worker may die without any call."""
    assert suspect([]) is None


# --- the table


def test_a_first_death_is_none_too_many(table: Quarantine) -> None:
    """Whoever is suspected for the first time is served; it may have been chance."""
    assert not table.refuses(7, 100.0)
    assert blame(table, 7, 100.0) == 1
    assert not table.refuses(7, 100.0)


def test_a_second_death_is_one_too_many(table: Quarantine) -> None:
    """A request that ends a second worker is refused for as long as it was said, and others are not."""
    blame(table, 7, 100.0)
    blame(table, 8, 100.0)
    assert blame(table, 7, 110.0) == 2
    assert table.refuses(7, 110.0)
    assert table.refuses(7, 110.0 + FOR_S - 1)
    assert not table.refuses(7, 110.0 + FOR_S)
    assert not table.refuses(8, 110.0)
    assert not table.refuses(9, 110.0)


def test_deaths_long_ago_are_forgotten(table: Quarantine) -> None:
    """Two deaths far from each other are chance."""
    blame(table, 7, 100.0)
    assert blame(table, 7, 101.0 + FOR_S) == 1
    assert not table.refuses(7, 101.0 + FOR_S)


def test_one_death_can_be_enough(table: Quarantine) -> None:
    """An operator may want no second try."""
    assert table.blame(7, 100.0, 1, FOR_S) == 1
    assert table.refuses(7, 100.0)


def test_others_read_it(path: Path, table: Quarantine) -> None:
    """A worker that looked at the table before sees what the master writes later."""
    reader = Quarantine.attach(path)
    blame(table, 7, 100.0)
    blame(table, 7, 100.0)
    assert reader.refuses(7, 101.0)
    assert in_child(lambda: Quarantine.attach(path).refuses(7, 101.0))


def test_readers_cannot_write(path: Path, table: Quarantine) -> None:
    """A worker can do no damage."""
    with pytest.raises(TypeError):
        blame(Quarantine.attach(path), 7, 100.0)


def test_the_next_program_goes_on(path: Path, table: Quarantine) -> None:
    """After an upgrade of the program what was refused stays so in the workers that live on."""
    blame(table, 7, 100.0)
    blame(table, 7, 100.0)
    following = Quarantine.create(path)
    assert following.refuses(7, 101.0)
    assert blame(following, 7, 102.0) == 3


def test_the_oldest_makes_room(table: Quarantine) -> None:
    """In a full table the suspect is forgotten whose last death is oldest."""
    for likeness in range(1, PLACES + 1):
        table.blame(likeness, float(likeness), 1, FOR_S)
    table.blame(1, 200.0, 1, FOR_S)
    table.blame(PLACES + 1, 201.0, 1, FOR_S)
    refused = [likeness for likeness in range(1, PLACES + 2) if table.refuses(likeness, 202.0)]
    assert refused == [1, *range(3, PLACES + 2)]


def test_no_table(path: Path) -> None:
    """Where there is none, or something else, a worker hears so."""
    with pytest.raises(OSError, match="No such file"):
        Quarantine.attach(path)
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match="length"):
        Quarantine.attach(path)


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    """Root may make the table in somebody else's folder: his link leads nowhere."""
    others = tmp_path / "others"
    others.write_text("precious")
    path.symlink_to(others)
    with pytest.raises(OSError, match="symbolic"):
        Quarantine.create(path)
    assert others.read_text() == "precious"
