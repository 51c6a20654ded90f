"""Calls that meet: ends that race each other or their start, and calls that follow others in one process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import pytest

from .playing import Row, Scenario, Session, recorded
from .sites import RELAXED_AS_GIVEN, STRICT_INNODB, Site, Sites, Start

pytestmark = pytest.mark.mariadb

_ROUNDS: Final = 200
#: Rounds that are played at once.
_BATCH: Final = 20
#: An END and the START that it overtook reach the pool so far apart.
_OVERTAKEN_S: Final = 0.02
#: An END comes so soon after its START.
_AT_ONCE_S: Final = 0.001


def batches() -> Iterator[range]:
    """Give the numbers of the rounds, as many as are played at once."""
    for first in range(1, _ROUNDS + 1, _BATCH):
        yield range(first, first + _BATCH)


def made(name: str, *, rows: dict[str, Row] | None = None, **agi: str) -> Scenario:
    """Change a recorded call that leaves the same rows and commands for all that.

    Args:
        name: Which.
        rows: Columns that are different, by table.
        agi: What Asterisk says differently.
    """
    call = recorded()[name]
    changed = tuple((table, {**row, **(rows or {}).get(table, {})}) for table, row in call.rows)
    return replace(call, rows=changed, agi={**call.agi, **agi})


def without(call: Scenario, *tables: str) -> Scenario:
    """Leave out the rows of tables, and what would become of them."""
    return replace(
        call,
        rows=tuple(each for each in call.rows if each[0] not in tables),
        changes=tuple(each for each in call.changes if each["table"] not in tables),
    )


def inserted(call: Scenario, **columns: object) -> Scenario:
    """Expect other values in the row that a START writes."""
    (change,) = call.changes
    return replace(call, changes=({**change, "row": {**change["row"], **columns}},))


#: The same as S01, but the caller comes with the URL.
FULL_CALLER_ID: Final = inserted(
    made(
        "S01",
        request="agi://127.0.0.1:4577/call_log--fullCID--913125551212-----ALL-----3125550000-----Jane",
        callerid="7275559999",
    ),
    caller_code="3125550000",
)
#: A START on SIP that belongs to no group.
NO_GROUP: Final = inserted(
    made("S01", extension="8500", callerid="7275558888"),
    channel_group="",
    number_dialed="8500",
    caller_code="7275558888",
)
#: An END without hangup facts while the call still waits for its answer: nothing is known of the lead yet.
PLAIN_END: Final = without(
    made("E01", request="agi://127.0.0.1:4577/call_log"), "vicidial_carrier_log", "vicidial_dial_log"
)
#: A dropped call whose lead has no further numbers.
NO_MORE_NUMBERS: Final = without(recorded()["A09"], "vicidial_list_alt_phones", "vicidial_hopper")
#: A dropped call of which three things must be written once: the next number, QueueMetrics' row, the drop's.
DROPPED: Final = replace(
    recorded()["Q01"],
    system_settings={"enable_queuemetrics_logging": "1", "enable_drop_lists": "2"},
    rows=(
        *(each for each in recorded()["Q01"].rows if each[0] not in ("vicidial_campaigns", "vicidial_list")),
        *(
            each
            for each in recorded()["A01"].rows
            if each[0] in ("vicidial_campaigns", "vicidial_list", "vicidial_lists")
        ),
    ),
    changes=(
        *recorded()["Q01"].changes,
        *recorded()["A01"].changed("vicidial_hopper"),
        *recorded()["E22"].changed("vicidial_drop_log"),
    ),
)


# ---- ends that race


@pytest.fixture(scope="module", params=[RELAXED_AS_GIVEN, STRICT_INNODB], ids=str)
def site(request: pytest.FixtureRequest, sites: Sites) -> Site:
    """Give a site with two workers, with tables that are locked as a whole and with locks on rows."""
    # The START that an END waits for comes late if the machine stands still between them.
    return sites.open(request.param, start_wait=10)


def all_at_once(sessions: Sequence[Session]) -> None:
    """Start calls one right behind the other."""
    for session in sessions:
        session.go()


def test_two_ends_of_one_call(site: Site) -> None:
    """Two ENDs at the same moment leave one set of rows: one drop, one QueueMetrics row, one next number."""
    wrong = []
    for numbers in batches():
        calls = [DROPPED.renumbered(number) for number in numbers]
        wrong += site.differences_at_once(calls, 2, all_at_once)

    assert not wrong, "\n".join(wrong[:50])


def end_right_behind(sessions: Sequence[Session]) -> None:
    """Start each START, and its END a millisecond later."""
    for start, end in zip(sessions[::2], sessions[1::2], strict=True):
        start.go()
        # The delay is what happens, nothing waits for it.
        time.sleep(_AT_ONCE_S)
        end.go()


def end_first(sessions: Sequence[Session]) -> None:
    """Start all ENDs, and their STARTs when the ENDs have been under way for a while."""
    all_at_once(sessions[1::2])
    time.sleep(_OVERTAKEN_S)
    all_at_once(sessions[::2])


@pytest.mark.parametrize("start", [end_right_behind, end_first])
@pytest.mark.parametrize(("first", "second"), [("S01", "E02"), ("S03", "E20c")], ids=["phone", "dialled"])
def test_an_end_that_meets_its_start(site: Site, start: Start, first: str, second: str) -> None:
    """However an END and its START meet, in whatever workers, the call is closed with the END's channel."""
    still_open: list[Row] = []
    workers: set[frozenset[str]] = set()
    for numbers in batches():
        calls = [recorded()[name].renumbered(number) for number in numbers for name in (first, second)]
        began_s = site.tables.load(*calls[::2])
        with site.ended(len(calls)) as ends:
            site.play_at_once(calls, start)
        assert not ends.bad, ends
        took_s = time.time() - began_s
        workers |= together(ends.records)
        still_open += site.tables.query(
            "SELECT uniqueid, channel, start_epoch, end_epoch, length_in_sec FROM call_log"
            # Who is overtaken may also be late, by as much as all of them took together.
            " WHERE NOT COALESCE(ABS(end_epoch - start_epoch) <= %s AND length_in_sec >= 0 AND channel = %s"
            " AND end_time = FROM_UNIXTIME(end_epoch), 0)",
            [took_s + 1, calls[1].agi["channel"]],
        )
        rows = site.tables.query("SELECT COUNT(*) AS calls FROM call_log")[0]
        assert rows["calls"] == _BATCH

    assert not still_open, still_open[:20]
    assert {len(each) for each in workers} == {1, 2}, "START and END were never in the same worker, or always"


def together(lines: Sequence[dict[str, str]]) -> set[frozenset[str]]:
    """Give the sets of workers that served calls with the same unique id."""
    by_call: dict[str, set[str]] = {}
    for line in lines:
        by_call.setdefault(line["uniqueid"], set()).add(line["worker"])
    return {frozenset(workers) for workers in by_call.values()}


# ---- calls that follow others


@pytest.fixture(scope="module")
def lone_worker(sites: Sites) -> Site:
    """Give a site at which all calls share one process."""
    return sites.open(RELAXED_AS_GIVEN, workers=1)


#: Pairs of which the second inherited from the first where a process kept what it knew of a call.
#: Source: VICIdial's FastAGI daemon, observed: state leaks between requests of the same child.
_LEAKS: Final = {
    "code": (FULL_CALLER_ID, recorded()["S01"]),
    "client phone": (recorded()["S13"], NO_GROUP),
    "hangup facts": (recorded()["E03"], PLAIN_END),
    "timeout": (recorded()["S06"], recorded()["S07"]),
    "next number": (recorded()["A09"], NO_MORE_NUMBERS),
}


@pytest.mark.parametrize("pair", _LEAKS)
def test_nothing_leaks(lone_worker: Site, pair: str) -> None:
    """The second call of a pair does what it does alone, also while other pairs are served."""
    wrong = []
    for numbers in batches():
        chains = [
            [each.renumbered(place * _ROUNDS + number) for place, each in enumerate(_LEAKS[pair])]
            for number in numbers
        ]
        wrong += lone_worker.differences_of_chains(chains)

    assert not wrong, "\n".join(wrong[:50])


_KINDS: Final = {
    "phone starts": recorded()["S01"],
    "caller in URL starts": FULL_CALLER_ID,
    "dialled starts": recorded()["S03"],
    "manual starts": recorded()["S06"],
    "manual without call starts": recorded()["S07"],
    "client phone starts": recorded()["S13"],
    "no group starts": NO_GROUP,
    "plain end": PLAIN_END,
    "phone ends": recorded()["E02"],
    "dialled busy": recorded()["E03"],
    "manual busy": recorded()["E12"],
    "dropped": recorded()["E15"],
    "dropped before routed": recorded()["E20"],
    "inbound abandoned": recorded()["E23b"],
    "next number": recorded()["A09"],
}


def call_of_kind(kind: str, number: int) -> Scenario:
    """Give a call by the name of its kind."""
    return replace(_KINDS[kind], id=kind).renumbered(number)


@pytest.mark.parametrize("kind", _KINDS)
def test_calls_inherit_nothing(lone_worker: Site, kind: str) -> None:
    """After this kind of call, and before it, every kind of call does what it does alone."""
    order = [each for other in _KINDS for each in (kind, other)]
    calls = [call_of_kind(each, number) for number, each in enumerate(order, start=1)]

    wrong = lone_worker.differences(*calls)

    assert not wrong, "\n".join(wrong[:50])


def test_calls_of_all_kinds_at_once(lone_worker: Site) -> None:
    """Calls of all kinds that are served at the same time in one process do what each does alone."""
    kinds = list(_KINDS)
    chains = [
        [
            call_of_kind(each, place * len(kinds) + number)
            for number, each in enumerate(kinds[place:], start=1)
        ]
        for place in range(len(kinds))
    ]

    wrong = lone_worker.differences_of_chains(chains)

    assert not wrong, "\n".join(wrong[:50])
