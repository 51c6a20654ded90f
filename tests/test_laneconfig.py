"""fastagi_pool.laneconfig: lanes, journal and quarantine, with their defaults, bounds and problems."""

from __future__ import annotations

from pathlib import Path

import pytest
from sections import config, problem

from fastagi_pool.laneconfig import Journal, Lane, Quarantine


def test_defaults() -> None:
    """Without a word there are no lanes, a journal of 1 GB, and two ended workers are enough."""
    found = config("")
    assert found.lanes == {}
    assert found.journal == Journal(file="/var/lib/fastagi-pool/journal.db", max_size=1024**3)
    assert found.journal.path == Path("/var/lib/fastagi-pool/journal.db")
    assert (found.quarantine.crashes, found.quarantine.for_s) == (2, 600.0)


def test_a_lane_says_only_what_is_its_own() -> None:
    """What a lane does not say is left to the general keys, and nothing is kept for it."""
    [lane] = config("lanes: {hangup: {}}").lanes.values()
    assert lane == Lane(max_active=None, max_queue=None, max_wait=None, reserve=0)


def test_everything_set() -> None:
    """Every key that is set reaches the model with its type, also from a variable."""
    found = config(
        "lanes: {ivr: {max_active: 40, max_queue: 0, max_wait: 2.5}, hangup: {reserve: '${N}'}}\n"
        "journal: {file: /j, max_size: 2MB}\n"
        "quarantine: {crashes: 3, for: 1h}\n"
    )
    assert found.lanes == {
        "ivr": Lane(max_active=40, max_queue=0, max_wait=2.5),
        "hangup": Lane(reserve=5),
    }
    assert found.journal == Journal(file="/j", max_size=2 * 1024**2)
    assert (found.quarantine.crashes, found.quarantine.for_s) == (3, 3600.0)


def test_what_is_off() -> None:
    """A pool can do without a journal, and without a quarantine."""
    found = config("journal: {file: off}\nquarantine: {crashes: 0}")
    assert (found.journal.path, found.quarantine.crashes) == (None, 0)


@pytest.mark.parametrize("section", ["lanes", "journal", "quarantine"])
def test_an_empty_section_is_absent(section: str) -> None:
    """A section whose keys are all commented out counts as absent."""
    assert config(f"{section}:\n") == config("")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lanes: {a: {max_active: 0}}", "lanes.a.max_active: must be at least 1"),
        ("lanes: {a: {max_active: 100001}}", "lanes.a.max_active: must be at most 100000"),
        ("lanes: {a: {max_queue: -1}}", "lanes.a.max_queue: must be at least 0"),
        ("lanes: {a: {max_queue: 10001}}", "lanes.a.max_queue: must be at most 10000"),
        ("lanes: {a: {max_wait: -1}}", "lanes.a.max_wait: must not be negative"),
        ("lanes: {a: {reserve: -1}}", "lanes.a.reserve: must be at least 0"),
        ("lanes: {a: {reserv: 1}}", "lanes.a.reserv: is not a known key (did you mean 'reserve'?)"),
        ("lanes: {a: 5}", "lanes.a: must be a mapping"),
        ("journal: {file: journal.db}", "journal.file: must be an absolute path, or off"),
        ("journal: {file: -}", "journal.file: must be an absolute path, or off"),
        (
            "journal: {max_size: 1023KB}",
            "journal.max_size: must be at least 1MB (a number without a unit means bytes)",
        ),
        ("journal: {fil: off}", "journal.fil: is not a known key (did you mean 'file'?)"),
        ("quarantine: {crashes: -1}", "quarantine.crashes: must be at least 0"),
        ("quarantine: {crashes: 1001}", "quarantine.crashes: must be at most 1000"),
        ("quarantine: {for: 0}", "quarantine.for: must be more than 0"),
        ("quarantine: {four: 1m}", "quarantine.four: is not a known key (did you mean 'for'?)"),
    ],
)
def test_problem_of_a_key(line: str, message: str) -> None:
    """Each wrong value is one problem, with its key and a message that says what would be right."""
    assert problem(line) == message


def test_what_every_key_says() -> None:
    """Every key has a description, from which the reference is made."""
    for model in (Lane, Journal, Quarantine):
        assert all(field.description for field in model.model_fields.values()), model
