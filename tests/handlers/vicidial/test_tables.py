"""fastagi_pool.handlers.vicidial.tables on a real MariaDB: each method, and what it meets there."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, TypeVar

import gevent
import pytest
from mariadb import MariaDBServer
from vicidial_database import SERVER_IP, VicidialDatabase, open_database

from fastagi_pool.database import Database, Statement
from fastagi_pool.executor import Done, Executor
from fastagi_pool.handlers.vicidial.classification import PhoneColumn, PhoneQuestion
from fastagi_pool.handlers.vicidial.leg import Moment
from fastagi_pool.handlers.vicidial.rows import (
    NO_SERVER,
    NO_SYSTEM,
    AltPhone,
    AutoCall,
    CallLogRow,
    CarrierRow,
    CloserRow,
    DropRow,
    HopperRow,
    Lead,
    LeadWords,
    LegKey,
    LogRow,
    NewCall,
    NewLog,
    ParkRow,
    QuotaCall,
    QuotaRow,
    Recording,
    Server,
    Sight,
)
from fastagi_pool.handlers.vicidial.tables import Closing, Tables, Taken, minutes

pytestmark = pytest.mark.mariadb

#: Far more than anything here takes.
WAIT_S: Final = 20.0
UID: Final = "1700000000.26"
CODE: Final = "V1202150310000000101"
LEAD_ID: Final = 101
ELSEWHERE: Final = "10.0.0.2"
ZERO: Final = "0000-00-00 00:00:00"
#: Before the rows of all tests, and after them.
LONG_AGO: Final = "2000-01-01 00:00:00"
NOW: Final = Moment(1_700_000_040, "2023-11-14 22:14:00")

Item = TypeVar("Item")
Result = TypeVar("Result")


class WatchedExecutor(Executor):
    """An executor that notes what it was given.

    Attributes:
        packets: The statements of each round trip that was wanted.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database, [0.0] * 3)
        self.packets: list[list[Statement]] = []

    def run(
        self,
        statements: Sequence[Statement],
        repeated: Sequence[Statement] | None = None,
        waits: bool = False,
    ) -> Done:
        """Note and do."""
        self.packets.append(list(statements))
        return super().run(statements, repeated, waits)


class Site:
    """VICIdial's tables, rows in them, and the subject.

    Attributes:
        tables: What is tested.
        executor: What it uses.
    """

    def __init__(self, vicidial: VicidialDatabase) -> None:
        self._vicidial = vicidial
        self._database = open_database(vicidial.url)
        self.executor = WatchedExecutor(self._database)
        self.tables = self.open_tables(settings_ttl_s=0.0)

    def open_tables(self, settings_ttl_s: float) -> Tables:
        """Make a subject that keeps settings for so long."""
        return Tables(self.executor, SERVER_IP, settings_ttl_s, logging.getLogger("test_tables"))

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    def put(self, table: str, **columns: object) -> None:
        """Put in a row, as VICIdial's other programs do."""
        names = ", ".join(f"`{name}` = %s" for name in columns)
        self._vicidial.execute(f"INSERT INTO {table} SET {names}", list(columns.values()))

    def get(self, table: str, columns: str = "*", where: str = "1") -> list[tuple[Any, ...]]:
        """Give rows, in their order."""
        rows: list[tuple[Any, ...]] = self._vicidial.execute(f"SELECT {columns} FROM {table} WHERE {where}")
        return rows

    def do(self, sql: str) -> None:
        """Do something else to the tables."""
        self._vicidial.execute(sql)

    def empty(self) -> None:
        """Delete all rows of all tables, and give the first ids again."""
        names = [row[0] for row in self._vicidial.execute("SHOW TABLES")]
        counted = self._vicidial.execute(
            "SELECT table_name FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND auto_increment > 1"
        )
        used = {row[0] for row in counted}
        filled = " UNION ALL ".join(f"(SELECT '{name}' FROM {name} LIMIT 1)" for name in names)
        used |= {row[0] for row in self._vicidial.execute(filled)}
        # A DELETE would not begin the numbers anew.
        self._vicidial.execute("; ".join(f"TRUNCATE TABLE {name}" for name in sorted(used)) or "DO 1")


@pytest.fixture(scope="module")
def shared(mariadb: MariaDBServer) -> Iterator[Site]:
    """One site for all tests that leave its tables as they are."""
    with VicidialDatabase(mariadb, "tables") as vicidial:
        site = Site(vicidial)
        yield site
        site.close()


@pytest.fixture
def site(shared: Site) -> Site:
    """A site without a row."""
    shared.empty()
    shared.executor.packets.clear()
    return shared


@pytest.fixture
def own_site(mariadb: MariaDBServer) -> Iterator[Site]:
    """A site whose tables may be altered; MyISAM on disk, as VICIdial's installer makes them."""
    with VicidialDatabase(mariadb, "own_tables", engine="MyISAM") as vicidial:
        site = Site(vicidial)
        site.empty()
        yield site
        site.close()


def together(ask: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Let several calls ask at the same moment, and give what each got."""
    callers = [gevent.spawn(ask, item) for item in items]
    gevent.joinall(callers, timeout=WAIT_S, raise_error=True)
    return [caller.value for caller in callers]


def in_the_past(**age: float) -> str:
    """Write a time so long ago."""
    return f"{datetime.now() - timedelta(**age):%Y-%m-%d %H:%M:%S}"


def test_texts_that_old_tables_cannot_compare(own_site: Site) -> None:
    """Where tables are in Latin-1, a text in another script breaks no statement, and is nobody's."""
    for name in ("call_log", "vicidial_auto_calls", "parked_channels", "park_log", "parked_channels_recent"):
        own_site.do(f"ALTER TABLE {name} CONVERT TO CHARACTER SET latin1")
    auto_call(own_site, CODE, UID)
    sight = own_site.tables.look(LegKey("1700000000.日本", "日本"))
    assert (sight.call, sight.auto_calls) == (None, [])
    own_site.tables.close(Closing("1700000000.日本", "SIP/日本", NOW, ("1700000000.日本",)))
    assert [row.callerid for row in own_site.tables.look(LegKey(UID, CODE)).auto_calls] == [CODE]


# ---- settings


def test_the_site_is_our_server_and_the_system(site: Site) -> None:
    """The row of our own server is taken, and numbers are numbers although their columns are texts."""
    site.put("servers", server_id="A", server_ip=ELSEWHERE, agi_output="NONE")
    site.put(
        "servers",
        server_id="B",
        server_ip=SERVER_IP,
        agi_output="BOTH",
        asterisk_version="18.18.1-vici",
        external_server_ip="203.0.113.5",
        carrier_logging_active="N",
    )
    site.put("system_settings", highest_lead_id="200000", hopper_hold_inserts="7", queuemetrics_login="qm")
    server, system = site.tables.site()
    assert server == Server("BOTH", "18.18.1-vici", "203.0.113.5", "N")
    assert system == NO_SYSTEM._replace(
        highest_lead_id=200_000, hopper_hold=7, queue_login="qm", queue_log_id="VIC", queue_socket="NONE"
    )
    assert len(site.executor.packets) == 1


def test_a_site_without_rows_has_defaults(site: Site) -> None:
    """A server that VICIdial does not know, and empty settings, are no errors."""
    site.put("servers", server_id="A", server_ip=ELSEWHERE)
    assert site.tables.site() == (NO_SERVER, NO_SYSTEM)


@pytest.mark.parametrize("campaign_id", ["TESTCAMP", "testcamp", "TestCamp  "])
def test_a_campaign_is_found_as_its_column_compares(site: Site, campaign_id: str) -> None:
    """Neither case nor trailing spaces make another campaign."""
    site.put("vicidial_campaigns", campaign_id="OTHER", dial_timeout=1)
    site.put(
        "vicidial_campaigns",
        campaign_id="TESTCAMP",
        dial_timeout=26,
        auto_alt_threshold=3,
        call_limit_24hour=9,
    )
    campaign = site.tables.campaign(campaign_id)
    assert campaign is not None
    assert campaign[:4] == ("TESTCAMP", "26", "", "8368")
    assert (campaign.auto_alt_threshold, campaign.limit_24hour) == (3, 9)
    assert (campaign.amd_type, campaign.hopper_hold, campaign.auto_alt_dial) == ("AMD", "DISABLED", "NONE")


def test_a_campaign_that_says_nothing_has_empty_texts(site: Site) -> None:
    """NULL is empty, or 0 where a number is meant."""
    site.put(
        "vicidial_campaigns",
        campaign_id="A",
        dial_timeout=None,
        auto_alt_threshold=None,
        use_internal_dnc=None,
    )
    campaign = site.tables.campaign("A")
    assert campaign is not None
    assert (campaign.dial_timeout, campaign.auto_alt_threshold, campaign.use_internal_dnc) == ("", 0, "")


@pytest.mark.parametrize("campaign_id", ["", "TEST", "TESTCAMP2", "TESTCAM_", "%"])
def test_no_other_campaign_is_found(site: Site, campaign_id: str) -> None:
    """A campaign that does not exist is none."""
    site.put("vicidial_campaigns", campaign_id="TESTCAMP")
    assert site.tables.campaign(campaign_id) is None


@pytest.mark.parametrize(
    ("column", "value", "protocol", "known"),
    [
        (PhoneColumn.EXTENSION, "25-1", "Zap", True),
        (PhoneColumn.EXTENSION, "25-1", "EXTERNAL", False),
        (PhoneColumn.EXTENSION, "26-1", "Zap", False),
        (PhoneColumn.EXTENSION, "7001", "Zap", False),
        (PhoneColumn.EXTENSION, "far", "Zap", False),
        (PhoneColumn.DIALPLAN_NUMBER, "7001", "EXTERNAL", True),
        (PhoneColumn.DIALPLAN_NUMBER, "7001", "Zap", False),
        (PhoneColumn.DIALPLAN_NUMBER, "25-1", "Zap", False),
        (PhoneColumn.DIALPLAN_NUMBER, "", "EXTERNAL", False),
    ],
)
def test_a_phone_is_known_by_one_column(
    site: Site, column: PhoneColumn, value: str, protocol: str, known: bool
) -> None:
    """A phone counts if it is our server's, with this protocol, under the column that was asked for."""
    site.put("phones", extension="25-1", dialplan_number="5551", server_ip=SERVER_IP, protocol="Zap")
    site.put("phones", extension="gs", dialplan_number="7001", server_ip=SERVER_IP, protocol="EXTERNAL")
    site.put("phones", extension="far", dialplan_number="7009", server_ip=ELSEWHERE, protocol="Zap")
    assert site.tables.knows_phone(PhoneQuestion(column, value, protocol)) is known


def test_what_an_in_group_wants_of_abandoned_leads(site: Site) -> None:
    """Only an in-group that says Y wants them again."""
    for group, reset in (("YES", "Y"), ("NO", "N"), ("NULL", None)):
        site.put("vicidial_inbound_groups", group_id=group, drop_lead_reset=reset)
    assert [site.tables.resets_lead(group) for group in ("YES", "NO", "NULL", "none")] == [
        True,
        False,
        False,
        False,
    ]


def test_the_threshold_of_a_list(site: Site) -> None:
    """No threshold at all is another thing than one that is switched off."""
    for list_id, threshold in ((1, 5), (2, -1), (3, None)):
        site.put("vicidial_lists", list_id=list_id, auto_alt_threshold=threshold)
    assert [site.tables.list_threshold(list_id) for list_id in (1, 2, 3, 4)] == [5, -1, None, None]


def test_the_lists_of_a_campaign(site: Site) -> None:
    """All of its lists, and no others."""
    for list_id, campaign_id in ((999, "TESTCAMP"), (998, "testcamp"), (1, "OTHER"), (2, None)):
        site.put("vicidial_lists", list_id=list_id, campaign_id=campaign_id)
    assert sorted(site.tables.campaign_lists("TESTCAMP")) == [998, 999]
    assert site.tables.campaign_lists("NONE") == []


def test_a_container(site: Site) -> None:
    """An empty container is another thing than none."""
    site.put("vicidial_settings_containers", container_id="FULL", container_entry="a => 1\nZoë 'x' \\ %s\n")
    site.put("vicidial_settings_containers", container_id="NULL", container_entry=None)
    found = [site.tables.container(name) for name in ("FULL", "NULL", "none")]
    assert found == ["a => 1\nZoë 'x' \\ %s\n", "", None]


def test_where_numbers_and_people_are(site: Site) -> None:
    """Area codes and postal codes tell a state; what is unknown is empty."""
    site.put("vicidial_phone_codes", country_code=1, areacode="312", state="IL", country="USA")
    site.put("vicidial_phone_codes", country_code=1, areacode="999", state=None, country=None)
    site.put("vicidial_postal_codes", postal_code="60601", state="IL")
    assert site.tables.phone_code("1", "312") == ("IL", "USA")
    assert site.tables.phone_code("1", "999") == ("", "")
    assert site.tables.phone_code("44", "312") == ("", "")
    assert site.tables.phone_code("", "") == ("", "")
    assert (site.tables.postal_state("60601"), site.tables.postal_state("60602")) == ("IL", "")


def test_settings_are_read_once_for_a_while(site: Site) -> None:
    """Within their time to live all settings come from memory, each key its own."""
    site.put("vicidial_inbound_groups", group_id="A", drop_lead_reset="Y")
    tables = site.open_tables(settings_ttl_s=60.0)
    for _ in range(2):
        tables.site()
        tables.campaign("A")
        assert tables.resets_lead("A")
        assert not tables.resets_lead("B")
        tables.list_threshold(1)
        tables.phone_code("1", "312")
        tables.knows_phone(PhoneQuestion(PhoneColumn.EXTENSION, "A", "Zap"))
    assert len(site.executor.packets) == 7


# ---- START


#: Codes, and the campaigns of the calls that are alive with them.
ALIVE: Final = {
    CODE: "TESTCAMP",
    "V1202150310000000102": None,
    "m1202150310000000103": "lower",
    "Zoë": "ACCENT",
    "trailing ": "SPACE",
}


@pytest.mark.parametrize(
    ("code", "campaign_id"),
    [
        (CODE, "TESTCAMP"),
        (CODE.lower(), "TESTCAMP"),
        (f"{CODE}  ", "TESTCAMP"),
        ("V1202150310000000102", ""),
        ("M1202150310000000103", "lower"),
        ("Zoë", "ACCENT"),
        ("ZOË", "ACCENT"),
        ("trailing", "SPACE"),
        ("V1202150310000000109", ""),
        ("", ""),
        ("%", ""),
        ("V120215031000000010_", ""),
    ],
)
def test_the_campaign_of_a_code(site: Site, code: str, campaign_id: str) -> None:
    """A code is compared as its column does it, alone and in a group with all others."""
    for callerid, its_campaign in ALIVE.items():
        site.put("vicidial_auto_calls", callerid=callerid, campaign_id=its_campaign, lead_id=1)
    others = ["V1202150310000000109", CODE, "M1202150310000000103"]
    assert site.tables.campaign_of_code(code) == campaign_id
    assert together(site.tables.campaign_of_code, [code, *others]) == [campaign_id, "", "TESTCAMP", "lower"]


def test_codes_are_looked_for_together(site: Site) -> None:
    """What calls want at the same moment is one statement."""
    together(site.tables.campaign_of_code, [f"V{number:019}" for number in range(20)])
    assert [len(packet) for packet in site.executor.packets] == [1]


def test_the_order_that_placed_a_call(site: Site) -> None:
    """Two lines of the manager's order; empty where it says nothing, or is none."""
    site.put(
        "vicidial_manager", callerid=CODE, cmd_line_b="Exten: 9131", cmd_line_d="Channel: Local/9131@default"
    )
    site.put("vicidial_manager", callerid="null", cmd_line_b=None, cmd_line_d=None)
    assert site.tables.manager_lines(CODE) == ("Exten: 9131", "Channel: Local/9131@default")
    assert site.tables.manager_lines("null") == ("", "")
    assert site.tables.manager_lines("none") == ("", "")


def new_call(uniqueid: str = UID, **columns: Any) -> NewCall:
    """Make an open row."""
    call = NewCall(
        uniqueid,
        "SIP/gs102",
        "Outbound Local",
        "SIP",
        SERVER_IP,
        "gs102",
        "3125551212",
        CODE,
        NOW.text,
        NOW.epoch,
    )
    return call._replace(**columns)


def test_a_new_call_is_an_open_row(site: Site) -> None:
    """All columns are written; those of the end are 0 and the date of zeros: so readers know it is open."""
    site.tables.insert_call(new_call()).get()
    (row,) = site.get("call_log")
    assert row[:8] == (UID, "SIP/gs102", "Outbound Local", "SIP", SERVER_IP, "gs102", "3125551212", CODE)
    assert row[8:] == (datetime(2023, 11, 14, 22, 14), NOW.epoch, ZERO, 0, 0, 0.0)


def test_what_is_too_long_is_cut(site: Site) -> None:
    """A long number or code, or one with strange signs, loses its end and not the row."""
    site.tables.insert_call(
        new_call(number="1234567890123456789", code="Zoë 🎧 'x' \\ %s and more", extension="")
    ).get()
    assert site.get("call_log", "number_dialed, extension") == [("123456789012345", "")]
    ((code,),) = site.get("call_log", "caller_code")
    assert code.startswith("Zoë ")
    assert len(code) == 20


def test_the_first_row_of_a_unique_id_stays(site: Site) -> None:
    """A START that comes again, later or in the same group, changes nothing and is no error."""
    site.tables.insert_call(new_call(channel="first")).get()
    site.tables.insert_call(new_call(channel="second")).get()
    tickets = [site.tables.insert_call(new_call(uniqueid="2", channel=name)) for name in ("third", "fourth")]
    assert [ticket.get() for ticket in tickets] == [None, None]
    assert site.get("call_log", "uniqueid, channel") == [(UID, "first"), ("2", "third")]


def test_starts_are_written_together(site: Site) -> None:
    """Rows that are wanted at the same moment are one statement, each with its own values."""
    uids = [f"1700000000.{number}" for number in range(40)]
    tickets = [
        site.tables.insert_call(new_call(uniqueid=uid, extension=f"of {uid}")) for uid in reversed(uids)
    ]
    assert [ticket.get(timeout=WAIT_S) for ticket in tickets] == [None] * 40
    assert sorted(site.get("call_log", "uniqueid, extension")) == sorted((uid, f"of {uid}") for uid in uids)
    assert [len(packet) for packet in site.executor.packets] == [1]


# ---- END: what is known


def auto_call(site: Site, callerid: str | None, uniqueid: str | None, **columns: object) -> None:
    """Put in a call that is alive."""
    site.put(
        "vicidial_auto_calls", **{"lead_id": LEAD_ID, "callerid": callerid, "uniqueid": uniqueid, **columns}
    )


def call_row(site: Site, uniqueid: str, **columns: object) -> None:
    """Put in a row of call_log, open."""
    values: dict[str, object] = {
        "channel": f"SIP/{uniqueid}",
        "channel_group": "",
        "start_epoch": 7,
        "end_epoch": 0,
    }
    site.put("call_log", **{"uniqueid": uniqueid, **values, **columns})


def test_a_sight_has_all_that_is_known(site: Site) -> None:
    """One look finds the call's rows in all tables, in one round trip."""
    call_row(site, UID, channel="SIP/gs102", channel_group="Outbound Local", start_epoch=5, end_epoch=6)
    call_row(site, f"{UID}99", channel_group="DOUBLE_LOG")
    site.put("parked_channels", channel="SIP/a", server_ip=SERVER_IP, channel_group=CODE)
    site.put("parked_channels", channel="SIP/b", server_ip=ELSEWHERE, channel_group=CODE.lower())
    for minutes_ago, where in ((1, "newer"), (119, "oldest"), (121, "too old")):
        end = in_the_past(minutes=minutes_ago)
        site.put(
            "parked_channels_recent", channel="x", server_ip=where, channel_group=CODE, park_end_time=end
        )
    for minute in (1, 3, 2):
        times = {"parked_time": f"2023-11-14 22:0{minute}:00", "grab_time": f"2023-11-14 22:0{minute}:30"}
        site.put("park_log", uniqueid=UID, server_ip=SERVER_IP, parked_sec=None, **times)
    auto_call(site, "OTHER", UID, status="LIVE", stage="LIVE-12", alt_dial="ALT", campaign_id="TESTCAMP")
    auto_call(
        site,
        CODE,
        "other",
        call_time="2023-11-14 22:00:00",
        phone_code="1",
        phone_number="312",
        agent_only="6666",
    )
    seconds = site.get("park_log", "UNIX_TIMESTAMP(parked_time)", "parked_time LIKE '%:03:00'")[0][0]
    epoch = site.get("vicidial_auto_calls", "UNIX_TIMESTAMP(call_time)", "auto_call_id = 2")[0][0]
    assert site.tables.look(LegKey(UID, CODE)) == Sight(
        parked=[(SERVER_IP, "SIP/a"), (ELSEWHERE, "SIP/b")],
        parked_recently=["oldest", "newer"],
        call=CallLogRow(UID, "SIP/gs102", "Outbound Local", 5, 6),
        double=CallLogRow(f"{UID}99", f"SIP/{UID}99", "DOUBLE_LOG", 7, 0),
        park=ParkRow(seconds, seconds + 30),
        auto_calls=[
            AutoCall(1, 101, "OTHER", "TESTCAMP", "ALT", "LIVE-12", "", 0, UID, "LIVE", "", "", 1, "", ""),
            AutoCall(
                *(2, 101, CODE, "", "NONE", "START", "2023-11-14 22:00:00", epoch, "other", "PAUSED"),
                *("1", "312", 1, "", "6666"),
            ),
        ],
    )
    assert [len(packet) for packet in site.executor.packets] == [6]


NOTHING: Final = Sight((), (), None, None, None, [])


def as_plain(sight: Sight) -> tuple[object, ...]:
    """Bring a sight to a form in which no kind of sequence differs from another."""
    return (
        list(sight.parked),
        list(sight.parked_recently),
        sight.call,
        sight.double,
        sight.park,
        list(sight.auto_calls),
    )


@pytest.mark.parametrize(
    "key", [LegKey(UID, CODE), LegKey(UID, ""), LegKey("", ""), LegKey("%", "%"), LegKey("_", "_")]
)
def test_nothing_known_is_nothing(site: Site, key: LegKey) -> None:
    """A call without a row anywhere, and one without a code, have an empty sight: no code is nobody's."""
    auto_call(site, "", "1")
    auto_call(site, None, None)
    auto_call(site, "V12", "1700000000.2")
    site.put("parked_channels", channel="x", server_ip=SERVER_IP, channel_group="")
    site.put(
        "parked_channels_recent",
        channel="x",
        server_ip="x",
        channel_group="",
        park_end_time=in_the_past(minutes=1),
    )
    site.put("park_log", uniqueid=UID, server_ip=ELSEWHERE, parked_sec=None)
    site.put("park_log", uniqueid=UID, server_ip=SERVER_IP, parked_sec=60)
    call_row(site, f"{UID}99", channel_group="")
    call_row(site, f"{UID}1", channel_group="")
    assert as_plain(site.tables.look(key)) == as_plain(NOTHING)


def test_times_that_rows_do_not_say_are_nothing(site: Site) -> None:
    """NULL and the date of zeros are no time: the epochs are 0."""
    call_row(site, UID, channel=None, channel_group=None, start_epoch=None, end_epoch=None)
    site.put("park_log", uniqueid=UID, server_ip=SERVER_IP, parked_time=ZERO, grab_time=None, parked_sec=0)
    auto_call(site, CODE, UID, call_time=ZERO)
    sight = site.tables.look(LegKey(UID, CODE))
    assert (sight.call, sight.park) == (CallLogRow(UID, "", "", 0, 0), ParkRow(0, 0))
    assert [row.call_epoch for row in sight.auto_calls] == [0]


def test_a_call_that_is_found_twice_is_one(site: Site) -> None:
    """A row that has both the unique id and the code is there once; several are in the order of their ids."""
    for callerid, uniqueid in (("x", UID), (CODE, UID), (CODE, "y")):
        auto_call(site, callerid, uniqueid)
    assert [row.auto_call_id for row in site.tables.look(LegKey(UID, CODE)).auto_calls] == [1, 2, 3]


#: Calls whose names are nearly the same, or the same for a column.
NEIGHBOURS: Final = (
    LegKey("1.1", "V1"),
    LegKey("1.11", "V11"),
    LegKey("1.2", "v2"),
    LegKey("1.3", "V3 "),
    LegKey("1.4", ""),
    LegKey("1.5", "V1"),
    LegKey("A.6", "Zoe"),
    LegKey("1.7", "nobody"),
    LegKey("1.199", "V199"),
    LegKey("2", "%"),
    LegKey("1.9", " "),
    LegKey("1.1", "V1"),
)


def neighbours(site: Site) -> None:
    """Put in rows for all of them."""
    for key in dict.fromkeys(NEIGHBOURS[:9]):
        uniqueid, code = key.uniqueid, key.code.strip().swapcase()
        if key.code == "nobody":
            continue
        call_row(site, uniqueid.lower(), channel=f"of {uniqueid}")
        call_row(site, f"{uniqueid}99", channel_group="DOUBLE_LOG") if uniqueid != "1.1" else None
        site.put(
            "park_log", uniqueid=uniqueid, server_ip=SERVER_IP, parked_time=f"2023-11-14 22:00:{len(code):02}"
        )
        site.put("parked_channels", channel=f"of {code}", server_ip=SERVER_IP, channel_group=code)
        site.put(
            "parked_channels_recent",
            channel="x",
            server_ip=f"of {code}",
            channel_group=code,
            park_end_time=in_the_past(minutes=1),
        )
        auto_call(site, code, "x")
        auto_call(site, "x", uniqueid)
        auto_call(site, code, uniqueid)


@pytest.mark.parametrize("others", [(), (LegKey("1.8", "Zoë"),)], ids=["ASCII", "others too"])
def test_calls_that_end_together_are_not_mixed_up(site: Site, others: tuple[LegKey, ...]) -> None:
    """In a group each call sees exactly what it would see alone, whatever its neighbours are called."""
    neighbours(site)
    keys = (*NEIGHBOURS, *others)
    alone = [as_plain(site.tables.look(key)) for key in keys]
    assert all(alone[number] != as_plain(NOTHING) for number in range(7))
    site.executor.packets.clear()
    assert [as_plain(sight) for sight in together(site.tables.look, keys)] == alone
    assert len(site.executor.packets) == (len(keys) if others else 1)


def test_calls_in_a_burst_share_round_trips(site: Site) -> None:
    """A hundred calls that end at once need two round trips to be looked at."""
    keys = [LegKey(f"1700000000.{number}", f"V{number:019}") for number in range(100)]
    for key in keys:
        call_row(site, key.uniqueid, channel=f"SIP/{key.code}")
    sights = together(site.tables.look, keys)
    assert [sight.call and sight.call.channel for sight in sights] == [f"SIP/{key.code}" for key in keys]
    assert len(site.executor.packets) == 2


@pytest.mark.parametrize(
    ("uniqueid", "found"),
    [(UID, True), ("1700000000.2", False), ("1700000000.2_", False), ("1700000000%", False), ("", False)],
)
def test_a_row_of_call_log_by_its_id(site: Site, uniqueid: str, found: bool) -> None:
    """A call is found by its whole unique id."""
    call_row(site, UID)
    assert site.tables.call(uniqueid) == (CallLogRow(UID, f"SIP/{UID}", "", 7, 0) if found else None)


def test_the_legs_of_a_manual_call(site: Site) -> None:
    """The leg of the same code is taken before others of the same second and lead; legs come in order."""
    code = "M1202150310000000101"
    for uniqueid, its_code in (
        ("1700000000.3", code),
        ("1700000000.2", "M9999999990000000101"),
        ("1700000000.1", "M9999999990000000109"),
        ("1700000001.1", code),
        ("17000000005", None),
    ):
        call_row(site, uniqueid, caller_code=its_code)
    other, legs = site.tables.manual_legs("1700000000", 101, code)
    assert other == "1700000000.3"
    assert [leg.uniqueid for leg in legs] == ["1700000000.3", "1700000001.1"]
    assert site.tables.manual_legs("1700000000", 101, "M none")[0] == "1700000000.2"
    assert site.tables.manual_legs("1700000000", 555, code) == ("", legs)
    assert len(site.executor.packets) == 3


@pytest.mark.parametrize("stem", ["170000000_", "17%", "1700000000\\", "%"])
def test_a_stem_has_no_wildcards(site: Site, stem: str) -> None:
    """What LIKE would take for a pattern is plain text in a unique id, in reads and in writes."""
    call_row(site, "1700000000.3", caller_code=CODE)
    site.put("vicidial_log", uniqueid="1700000000.3", lead_id=LEAD_ID, status="QUEUE", start_epoch=1)
    assert site.tables.manual_legs(stem, LEAD_ID, "M none")[0] == ""
    assert site.tables.find_logs(LEAD_ID, stem, LONG_AGO) == (None, None)
    assert not site.tables.fail_dial("", LEAD_ID, stem, "AB", "BUSY", write_lead=False)
    site.tables.end_call([site.tables.log_ending(LEAD_ID, stem, "DROP", None, 9, 8)], None)
    assert site.get("vicidial_log", "status") == [("QUEUE",)]


def test_a_stem_with_wildcards_is_found_as_text(site: Site) -> None:
    """A unique id that holds such signs is still found by them."""
    site.put("vicidial_log", uniqueid="a_b%c\\.1", lead_id=LEAD_ID, status="QUEUE", start_epoch=1)
    assert site.tables.find_logs(LEAD_ID, "a_b%c\\", LONG_AGO)[0] is not None


def test_a_channel_is_live(site: Site) -> None:
    """A channel is alive if the other program saw it, by its whole name."""
    site.put("live_channels", channel="SIP/gs102-1", server_ip=SERVER_IP)
    assert [site.tables.is_live(name) for name in ("SIP/gs102-1", "SIP/gs102", "")] == [True, False, False]


def test_the_campaign_of_an_outbound_row(site: Site) -> None:
    """By the unique id; empty for none and for one without a campaign."""
    site.put("vicidial_log", uniqueid=UID, lead_id=1, campaign_id="TESTCAMP")
    site.put("vicidial_log", uniqueid="2", lead_id=1, campaign_id=None)
    assert [site.tables.campaign_of_log(uid) for uid in (UID, "2", "3")] == ["TESTCAMP", "", ""]


def closer_row(site: Site, call_date: str, **columns: object) -> None:
    """Put in an inbound row."""
    site.put(
        "vicidial_closer_log", **{"lead_id": LEAD_ID, "call_date": call_date, "start_epoch": 1, **columns}
    )


def test_the_rows_of_an_answered_call(site: Site) -> None:
    """The outbound row of the second and lead, and the newest inbound row of the lead since then."""
    site.put(
        "vicidial_log",
        uniqueid="1700000000.25",
        lead_id=LEAD_ID,
        start_epoch=5,
        status="XFER",
        user="6666",
        comments=None,
    )
    site.put("vicidial_log", uniqueid="1700000000.26", lead_id=102, start_epoch=6, status="OTHER")
    closer_row(site, "2023-11-14 22:00:00", status="QUEUE", user="VDCL", uniqueid="1", comments="a")
    closer_row(site, "2023-11-14 21:00:00", status="DONE", user="6666", uniqueid="2", comments=None)
    closer_row(site, "2023-11-14 12:00:00", status="OLD", uniqueid="3")
    closer_row(site, "2023-11-14 22:00:00", lead_id=102, status="OTHER", uniqueid="4")
    since = "2023-11-14 16:14:00"
    log = LogRow(5, "XFER", "6666", "NONE", "")
    closer = CloserRow(2, 1, "DONE", "6666", "NONE", "", "2")
    assert site.tables.find_logs(LEAD_ID, "1700000000", since) == (log, closer)
    assert site.tables.find_logs(LEAD_ID, "", since) == (None, closer)
    assert site.tables.find_logs(LEAD_ID, "1700000001", "2023-11-14 22:00:00") == (None, None)
    assert site.tables.find_logs(103, "1700000000", since) == (None, None)
    assert [len(packet) for packet in site.executor.packets] == [2, 1, 2, 2]


@pytest.mark.parametrize(("prefer", "closecallid"), [("1", 1), ("2", 2), ("3", 2), ("9", 2), ("", 2)])
def test_the_inbound_row_of_the_same_id_may_be_preferred(site: Site, prefer: str, closecallid: int) -> None:
    """The row of this unique id is taken, if it is young enough; otherwise the newest."""
    closer_row(site, "2023-11-14 22:00:00", uniqueid="1")
    closer_row(site, "2023-11-14 22:00:00", uniqueid="2")
    closer_row(site, "2023-11-14 12:00:00", uniqueid="3")
    _, closer = site.tables.find_logs(LEAD_ID, "", "2023-11-14 16:14:00", prefer)
    assert closer is not None
    assert closer.closecallid == closecallid


def test_how_the_carrier_ended_the_newest_dial(site: Site) -> None:
    """Of the dials with this code, lead and server the newest tells it."""
    dials = (
        (CODE, LEAD_ID, SERVER_IP, 1, 486, "Busy Here"),
        (CODE, LEAD_ID, SERVER_IP, 2, 404, "Not Found"),
        (CODE, LEAD_ID, ELSEWHERE, 3, 500, "elsewhere"),
        (CODE, 102, SERVER_IP, 4, 501, "another lead"),
        ("null", LEAD_ID, SERVER_IP, 5, None, None),
    )
    for code, lead_id, server_ip, minute, cause, reason in dials:
        date = f"2023-11-14 22:0{minute}:00"
        columns = {"sip_hangup_cause": cause, "sip_hangup_reason": reason, "call_date": date}
        site.put("vicidial_dial_log", caller_code=code, lead_id=lead_id, server_ip=server_ip, **columns)
    assert site.tables.carrier_cause(CODE, LEAD_ID) == (404, "Not Found")
    assert site.tables.carrier_cause("null", LEAD_ID) == (0, "")
    assert site.tables.carrier_cause("none", LEAD_ID) == (0, "")


def test_the_newest_recording(site: Site) -> None:
    """Of several recordings of a call the newest, with its end as the column has it."""
    for end_epoch in (1_700_000_010, None):
        site.put("recording_log", vicidial_id=UID, start_epoch=5, end_epoch=end_epoch)
    site.put("recording_log", vicidial_id="other", start_epoch=6, end_epoch=77)
    assert site.tables.newest_recording(UID) == Recording(2, 5, "")
    assert site.tables.newest_recording("other") == Recording(3, 6, "77")
    assert site.tables.newest_recording("none") is None


@pytest.mark.parametrize(
    ("results", "found"),
    [
        (["Busy"], "Busy"),
        (["Busy", "Fax"], "Fax"),
        (["Busy", "Voice", "Unknown", "???", "", None], "Busy"),
        (["VOICE", "unknown"], ""),
        ([], ""),
    ],
)
def test_what_the_call_progress_detection_heard(site: Site, results: list[str | None], found: str) -> None:
    """The newest result that is no voice and no shrug."""
    site.put("vicidial_cpd_log", channel="x", callerid="other", server_ip=SERVER_IP, result="Sit-Vacant")
    for result in results:
        site.put("vicidial_cpd_log", channel="x", callerid=CODE, server_ip=SERVER_IP, result=result)
    assert site.tables.cpd_result(CODE) == found


@pytest.mark.parametrize(
    ("ended", "is_open"), [(None, True), ("2023-11-14 22:00:00", True), ("2023-11-14 22:00:01", False)]
)
def test_a_manager_who_listens(site: Site, ended: str | None, is_open: bool) -> None:
    """A row is open without an end, or with an end that is its beginning."""
    start = "2023-11-14 22:00:00"
    site.put("vicidial_rt_monitor_log", caller_code="BM1", monitor_start_time=start, monitor_end_time=ended)
    ((epoch,),) = site.get("vicidial_rt_monitor_log", "UNIX_TIMESTAMP(monitor_start_time)")
    assert site.tables.open_monitor("BM1") == (epoch if is_open else None)
    assert site.tables.open_monitor("BM2") is None


def test_an_outside_agents_call(site: Site) -> None:
    """No row is another thing than one without a status."""
    site.put("vicidial_3way_press_live", call_3way_id="T1", status="TALKING")
    site.put("vicidial_3way_press_live", call_3way_id="T2", status=None)
    assert [site.tables.three_way_status(code) for code in ("T1", "T2", "T3")] == ["TALKING", "", None]


# ---- END: writes


def ended(site: Site) -> list[tuple[Any, ...]]:
    """Give the ends of all calls."""
    columns = "uniqueid, channel, end_time, end_epoch, length_in_sec, length_in_min"
    return sorted(site.get("call_log", columns))


def test_the_end_of_a_call(site: Site) -> None:
    """Its row is closed with times, lengths and the channel's full name; popups of our server go."""
    call_row(site, UID, start_epoch=NOW.epoch - 40)
    call_row(site, "other", start_epoch=7)
    for uniqueid, server_ip in ((UID, SERVER_IP), ("old", SERVER_IP), (UID, ELSEWHERE), ("x", SERVER_IP)):
        site.put("live_inbound", uniqueid=uniqueid, channel="x", server_ip=server_ip)
    site.tables.close(Closing(UID, "SIP/gs102-0000000a", NOW, (UID, "old")))
    assert ended(site)[0] == (UID, "SIP/gs102-0000000a", datetime(2023, 11, 14, 22, 14), NOW.epoch, 40, 0.67)
    assert ended(site)[1] == ("other", "SIP/other", None, 0, None, None)
    assert site.get("live_inbound", "uniqueid, server_ip") == [(UID, ELSEWHERE), ("x", SERVER_IP)]
    assert len(site.executor.packets) == 1


@pytest.mark.parametrize("length_s", [0, 1, 17, 18, 29, 30, 89, 3_600, 86_399])
def test_minutes_are_as_the_columns_have_them(site: Site, length_s: int) -> None:
    """The database's minutes and ours are the same, whoever computes them."""
    call_row(site, UID, start_epoch=NOW.epoch - length_s)
    site.tables.close(Closing(UID, "x", NOW, ()))
    assert ended(site)[0][4:] == (length_s, minutes(length_s))


def test_a_call_without_a_beginning_ends_too(site: Site) -> None:
    """A row that does not say when it began has begun with the epoch, as ever."""
    call_row(site, UID, start_epoch=None)
    site.tables.close(Closing(UID, "x", NOW, ()))
    assert ended(site)[0][4] == NOW.epoch


def test_an_end_without_a_row_takes_popups_and_says_its_statements(site: Site) -> None:
    """Without a unique id no row ends, but all else is done."""
    call_row(site, "")
    call_row(site, UID)
    site.put("live_inbound", uniqueid=UID, channel="x", server_ip=SERVER_IP)
    site.put("vicidial_list", lead_id=LEAD_ID, phone_number="1", status="NEW")
    site.tables.close(Closing("", "x", NOW, (UID,), (site.tables.lead_status(LEAD_ID, "AB"),)))
    assert [row[3] for row in ended(site)] == [0, 0]
    assert site.get("live_inbound") == []
    assert site.get("vicidial_list", "status") == [("AB",)]


def test_ends_that_are_written_together_are_not_mixed_up(site: Site) -> None:
    """In a group each call gets its own end, second, channel and statements, in one round trip."""
    uids = [f"1700000000.{number}" for number in range(30)]
    closings = []
    for number, uid in enumerate(uids):
        call_row(site, uid, start_epoch=NOW.epoch - number)
        site.put("vicidial_list", lead_id=1 + number, phone_number="1", status="NEW")
        site.put("live_inbound", uniqueid=uid, channel="x", server_ip=SERVER_IP)
        now = Moment.at(NOW.epoch + number % 3)
        before = (site.tables.lead_status(1 + number, f"S{number}"),)
        closings.append(Closing(uid, f"of {uid}", now, (uid,), before))
    call_row(site, "bystander")
    site.put("live_inbound", uniqueid="bystander", channel="x", server_ip=SERVER_IP)
    site.executor.packets.clear()
    together(site.tables.close, list(reversed(closings)))
    *rows, bystander = ended(site)
    expected = {
        uid: (f"of {uid}", NOW.epoch + number % 3, number + number % 3) for number, uid in enumerate(uids)
    }
    assert {row[0]: (row[1], row[3], row[4]) for row in rows} == expected
    assert bystander == ("bystander", "SIP/bystander", None, 0, None, None)
    assert site.get("vicidial_list", "status", "1 ORDER BY lead_id") == [
        (f"S{number}",) for number in range(30)
    ]
    assert site.get("live_inbound", "uniqueid") == [("bystander",)]
    assert len(site.executor.packets) == 1


def test_the_second_row_of_a_call_ends(site: Site) -> None:
    """Only a row that a name-recording script made is its own second row."""
    call_row(site, f"{UID}99", channel_group="DOUBLE_LOG", start_epoch=NOW.epoch - 30)
    call_row(site, "x", channel_group="Outbound Local")
    site.tables.close_double(f"{UID}99", NOW)
    site.tables.close_double("x", NOW)
    assert [row[3:] for row in ended(site)] == [(NOW.epoch, 30, 0.5), (0, None, None)]


def test_a_recording_ends(site: Site) -> None:
    """By its id, with both lengths."""
    for _ in range(2):
        site.put("recording_log", vicidial_id=UID, start_epoch=NOW.epoch - 45)
    site.tables.close_recording(Recording(2, NOW.epoch - 45, ""), NOW)
    columns = "recording_id, end_time, end_epoch, length_in_sec, length_in_min"
    assert site.get("recording_log", columns) == [
        (1, None, None, None, None),
        (2, datetime(2023, 11, 14, 22, 14), NOW.epoch, 45, 0.75),
    ]


def test_the_newest_park_ends(site: Site) -> None:
    """Of the times that a call was parked on our server the newest ends."""
    for minute, server_ip in ((1, SERVER_IP), (2, SERVER_IP), (3, ELSEWHERE)):
        site.put(
            "park_log",
            uniqueid=UID,
            server_ip=server_ip,
            parked_time=f"2023-11-14 22:0{minute}:00",
            status="PARKED",
        )
    site.tables.close_park(UID, 60, 40, NOW)
    assert site.get("park_log", "status, hangup_time, parked_sec, talked_sec") == [
        ("PARKED", None, None, None),
        ("HUNGUP", datetime(2023, 11, 14, 22, 14), 60, 40),
        ("PARKED", None, None, None),
    ]


def test_a_park_ends_once(site: Site) -> None:
    """A second run leaves the newest row as the first one ended it, and takes no older one for it."""
    for minute in (1, 2):
        parked_time = f"2023-11-14 22:0{minute}:00"
        site.put("park_log", uniqueid=UID, server_ip=SERVER_IP, parked_time=parked_time, status="PARKED")
    for parked_s in (60, 120):
        site.tables.close_park(UID, parked_s, 0, NOW, only_once=True)
    assert site.get("park_log", "status, parked_sec") == [("PARKED", None), ("HUNGUP", 60)]


CARRIER: Final = CarrierRow(
    *(
        UID,
        NOW.text,
        SERVER_IP,
        LEAD_ID,
        "17",
        "BUSY",
        "SIP/x",
        "30",
        "",
        "486",
        "Busy 'Here') \\ ë" + "x" * 60,
        CODE,
    )
)


def test_what_the_carrier_said(site: Site) -> None:
    """The dialer's row learns it, and a carrier row is added; the first of a unique id stays."""
    site.put("vicidial_dial_log", caller_code=CODE, lead_id=LEAD_ID, server_ip=SERVER_IP)
    site.put("vicidial_dial_log", caller_code=CODE, lead_id=LEAD_ID, server_ip=ELSEWHERE)
    tell = site.tables.set_carrier_cause(CODE, LEAD_ID, UID, "486", "Busy Here")
    again = CARRIER._replace(dialstatus="second")
    site.tables.close(
        Closing(
            "", "", NOW, (), (tell, site.tables.insert_carrier(CARRIER), site.tables.insert_carrier(again))
        )
    )
    assert site.get("vicidial_dial_log", "sip_hangup_cause, sip_hangup_reason, uniqueid") == [
        (486, "Busy Here", UID),
        (0, "", ""),
    ]
    (row,) = site.get("vicidial_carrier_log")
    assert row[:6] == (UID, datetime(2023, 11, 14, 22, 14), SERVER_IP, LEAD_ID, 17, "BUSY")
    assert row[6:] == ("SIP/x", 30, 0, 486, CARRIER.sip_hangup_reason[:50], CODE)


def test_a_managers_listening_ends(site: Site) -> None:
    """By its code."""
    for code in ("BM1", "BM2"):
        site.put("vicidial_rt_monitor_log", caller_code=code)
    site.tables.end_monitor("BM1", 30, NOW)
    columns = "caller_code, monitor_sec, monitor_end_time"
    assert site.get("vicidial_rt_monitor_log", columns) == [
        ("BM1", 30, datetime(2023, 11, 14, 22, 14)),
        ("BM2", 0, None),
    ]


def test_an_outside_agents_call_ends(site: Site) -> None:
    """The live row is hung up, and the history gets the time at its end."""
    for code in ("T1", "T2"):
        site.put("vicidial_3way_press_live", call_3way_id=code, status="TALKING")
        site.put("vicidial_3way_press_log", call_3way_id=code, result="Pressed: 1")
    site.tables.end_three_way("T1")
    assert site.get("vicidial_3way_press_live", "status") == [("HUNGUP",), ("TALKING",)]
    (first,), (second,) = site.get("vicidial_3way_press_log", "result")
    assert first.startswith("Pressed: 1|Hungup: 20")
    assert second == "Pressed: 1"


def test_an_outside_agents_call_ends_once(site: Site) -> None:
    """A history that tells of the end is not told again, and the live row is hung up all the same."""
    site.put("vicidial_3way_press_live", call_3way_id="T1", status="TALKING")
    site.put("vicidial_3way_press_log", call_3way_id="T1", result="Pressed: 1")
    site.tables.end_three_way("T1", only_once=True)
    told = site.get("vicidial_3way_press_log", "result")
    site.tables.end_three_way("T1", only_once=True)
    assert site.get("vicidial_3way_press_log", "result") == told
    assert told[0][0].count("Hungup") == 1
    assert site.get("vicidial_3way_press_live", "status") == [("HUNGUP",)]


@pytest.mark.parametrize("write_lead", [True, False])
@pytest.mark.parametrize("code", [CODE, ""])
def test_a_dial_that_failed(site: Site, write_lead: bool, code: str) -> None:
    """Lead, living call and log rows get their statuses, each only if it is meant."""
    site.put("vicidial_list", lead_id=LEAD_ID, phone_number="1", status="NEW")
    for uniqueid, lead_id in (("1700000000.25", LEAD_ID), ("1700000000.27", 102), ("1700000001.1", LEAD_ID)):
        site.put("vicidial_log", uniqueid=uniqueid, lead_id=lead_id, status="NEW")
    auto_call(site, CODE, UID, status="SENT")
    auto_call(site, "", UID, status="SENT")
    assert site.tables.fail_dial(code, LEAD_ID, "1700000000", "AB", "BUSY", write_lead)
    assert site.get("vicidial_list", "status") == [("AB" if write_lead else "NEW",)]
    assert site.get("vicidial_log", "status") == [("AB",), ("NEW",), ("NEW",)]
    assert site.get("vicidial_auto_calls", "status") == [("BUSY" if code else "SENT",), ("SENT",)]
    assert not site.tables.fail_dial(code, LEAD_ID, "1800000000", "AB", "BUSY", write_lead)


def test_a_log_row_that_has_the_status_already_is_there(site: Site) -> None:
    """Rows are counted that are meant, not those that change: otherwise a second row would be inserted."""
    site.put("vicidial_log", uniqueid="1700000000.25", lead_id=LEAD_ID, status="AB")
    assert site.tables.fail_dial("", LEAD_ID, "1700000000", "AB", "BUSY", write_lead=False)


def test_a_status_that_the_column_does_not_know_is_stored_empty(site: Site) -> None:
    """As ever: the dialer looks for the empty status."""
    auto_call(site, CODE, UID, status="SENT")
    site.tables.fail_dial(CODE, LEAD_ID, "1", "DNCCAR", "DNCCAR", write_lead=False)
    assert site.get("vicidial_auto_calls", "status") == [("",)]


ALIVE_CALL: Final = AutoCall(
    *(1, LEAD_ID, CODE, "TESTCAMP", "ALT", "LIVE-12", "2023-11-14 22:13:20", 1_700_000_000, UID, "SENT"),
    *("1", "3125551212", 1, SERVER_IP, ""),
)
NEW_LOG: Final = NewLog(UID, "PDROP", 999, 3, "", SERVER_IP, ALIVE_CALL)


def test_the_rows_of_a_call_that_nobody_took(site: Site) -> None:
    """Both rows are written whole; no comment is NULL."""
    site.tables.end_call(site.tables.new_log(NEW_LOG), None)
    columns = (
        "uniqueid, lead_id, list_id, status, campaign_id, call_date, start_epoch, end_epoch, length_in_sec,"
        " phone_code, phone_number, user, comments, processed, term_reason, alt_dial, called_count"
    )
    date = datetime(2023, 11, 14, 22, 13, 20)
    assert site.get("vicidial_log", columns) == [
        (
            *(UID, LEAD_ID, 999, "PDROP", "TESTCAMP", date, 1_700_000_000, 1_700_000_000, 0),
            *("1", "3125551212", "VDAD", None, "N", "NONE", "ALT", 3),
        )
    ]
    assert site.get("vicidial_log_extended") == [(UID, SERVER_IP, date, LEAD_ID, CODE, "")]
    assert len(site.executor.packets) == 1


def test_new_rows_bear_repetition(site: Site) -> None:
    """An existing log row stays, its twin is written anew, and nothing is doubled."""
    site.put("vicidial_log", uniqueid=UID, lead_id=1, status="QUEUE")
    site.put("vicidial_log_extended", uniqueid=UID, caller_code="old", custom_call_id="kept")
    for _ in range(2):
        site.tables.end_call(site.tables.new_log(NEW_LOG), None)
    assert site.get("vicidial_log", "lead_id, status") == [(1, "QUEUE")]
    assert site.get("vicidial_log_extended", "caller_code, custom_call_id") == [(CODE, "kept")]


def test_a_call_without_a_time_gets_the_date_of_zeros(site: Site) -> None:
    """A living row that does not say when it was placed is no reason to lose the log row."""
    call = ALIVE_CALL._replace(call_time="", call_epoch=0)
    site.tables.end_call(site.tables.new_log(NEW_LOG._replace(auto_call=call, comments="MANUAL")), None)
    assert site.get("vicidial_log", "call_date, start_epoch, comments") == [(ZERO, 0, "MANUAL")]


DROP: Final = DropRow(UID, SERVER_IP, LEAD_ID, "TESTCAMP", "DROP", "1", "3125551212")


def test_a_drop_row(site: Site) -> None:
    """It is written with the other statements, in their round trip, and the date is the database's."""
    site.put("vicidial_list", lead_id=LEAD_ID, phone_number="1", status="NEW")
    site.tables.end_call([site.tables.lead_status(LEAD_ID, "DROP")], DROP)
    columns = "uniqueid, server_ip, lead_id, campaign_id, status, phone_code, phone_number, drop_processed"
    assert site.get("vicidial_drop_log", columns, "drop_date > NOW() - INTERVAL 1 MINUTE") == [
        (UID, SERVER_IP, LEAD_ID, "TESTCAMP", "DROP", "1", "3125551212", "N")
    ]
    assert site.get("vicidial_list", "status") == [("DROP",)]
    assert len(site.executor.packets) == 1


@pytest.mark.parametrize(
    ("only_once", "earlier_s", "lead_id", "rows"),
    [(False, 5, LEAD_ID, 2), (True, 5, LEAD_ID, 1), (True, 300, LEAD_ID, 2), (True, 5, 102, 2)],
)
def test_a_drop_row_only_once(site: Site, only_once: bool, earlier_s: int, lead_id: int, rows: int) -> None:
    """If it is wanted, the same call within a minute has one drop row; otherwise as many as ever."""
    date = in_the_past(seconds=earlier_s)
    site.put("vicidial_drop_log", uniqueid=UID, lead_id=lead_id, drop_date=date, campaign_id="x", status="x")
    site.tables.end_call([], DROP, only_once=only_once)
    assert len(site.get("vicidial_drop_log")) == rows


def test_nothing_to_write_is_nothing(site: Site) -> None:
    """An end without statements costs no round trip."""
    site.tables.end_call([], None)
    site.tables.stop_ringing("")
    assert site.executor.packets == []


def ringing(site: Site, *codes: str) -> None:
    """Put in agents at whose screens these codes ring."""
    for code in codes:
        site.put("vicidial_live_agents", user="6666", server_ip=SERVER_IP, lead_id=1, ring_callerid=code)


def test_who_takes_a_call_owns_it(site: Site) -> None:
    """The request that deletes the living row is told so, all later ones are not, and it rings no more."""
    auto_call(site, CODE, UID)
    auto_call(site, CODE, UID)
    ringing(site, CODE, "other", "")
    assert site.tables.take_auto_call(1, CODE) is Taken.YES
    assert site.tables.take_auto_call(1, CODE) is Taken.NO
    assert site.get("vicidial_auto_calls", "auto_call_id") == [(2,)]
    assert site.get("vicidial_live_agents", "ring_callerid") == [("",), ("other",), ("",)]


def test_one_of_many_takes_a_call(site: Site) -> None:
    """Of ends that race for a living row one gets it."""
    auto_call(site, CODE, UID)
    taken = together(lambda _: site.tables.take_auto_call(1, CODE), range(5))
    assert Counter(taken) == {Taken.YES: 1, Taken.NO: 4}


def test_a_call_without_a_code_rings_nowhere(site: Site) -> None:
    """Agents at whose screens nothing rings are left alone."""
    auto_call(site, "", UID)
    ringing(site, "")
    assert site.tables.take_auto_call(1, "")
    assert len(site.executor.packets[0]) == 1


def test_ringing_stops(site: Site) -> None:
    """All screens on which the code rings, whatever its case."""
    ringing(site, CODE, CODE.lower(), "other")
    site.tables.stop_ringing(CODE)
    assert site.get("vicidial_live_agents", "ring_callerid") == [("",), ("",), ("other",)]


def test_all_rows_of_a_code_go(site: Site) -> None:
    """Every living row of the code, and no other."""
    for code in (CODE, CODE, "other"):
        auto_call(site, code, UID)
    site.tables.delete_auto_calls(CODE)
    assert site.get("vicidial_auto_calls", "callerid") == [("other",)]


def test_a_lead_is_dialled_again(site: Site) -> None:
    """Status and reset concern one lead."""
    for lead_id in (LEAD_ID, 102):
        site.put(
            "vicidial_list", lead_id=lead_id, phone_number="1", status="NEW", called_since_last_reset="Y"
        )
    site.tables.end_call([site.tables.lead_reset(LEAD_ID), site.tables.lead_status(LEAD_ID, "DROP")], None)
    assert site.get("vicidial_list", "status, called_since_last_reset") == [("DROP", "N"), ("NEW", "Y")]


def test_the_ends_of_log_rows(site: Site) -> None:
    """What has no value stays as it is; what has one is written, an empty text and 0 too."""
    site.put("vicidial_log", uniqueid="1700000000.25", lead_id=LEAD_ID, status="A", term_reason="AGENT")
    site.put("vicidial_log", uniqueid="1700000001.25", lead_id=LEAD_ID, status="A", term_reason="AGENT")
    closer_row(site, LONG_AGO, status="DONE", user="6666", term_reason="AGENT", queue_seconds=5)
    closer_row(site, LONG_AGO, status="DONE", user="6666", term_reason="AGENT", queue_seconds=5)
    log = site.tables.log_ending(LEAD_ID, "1700000000", None, "CALLER", 70, 30)
    closer = site.tables.closer_ending(1, "DROP", None, 0, "", 71, 31)
    site.tables.end_call([log, closer], None)
    assert site.get("vicidial_log", "status, term_reason, end_epoch, length_in_sec") == [
        ("A", "CALLER", 70, 30),
        ("A", "AGENT", None, None),
    ]
    columns = "status, user, term_reason, queue_seconds, end_epoch, length_in_sec"
    assert site.get("vicidial_closer_log", columns) == [
        ("DROP", "", "AGENT", Decimal(0), 71, 31),
        ("DONE", "6666", "AGENT", Decimal(5), None, None),
    ]


# ---- what is dialled next


def test_a_lead(site: Site) -> None:
    """What the alternates need to know; NULL is empty or 0."""
    site.put(
        "vicidial_list",
        **{
            "lead_id": LEAD_ID,
            "phone_number": "312",
            "list_id": 99_912_345_678,
            "called_count": 3,
            "rank": -2,
        },
        **{"alt_phone": "3125550000", "address3": "(312) 555", "gmt_offset_now": "-5.75", "state": "IL"},
        **{"phone_code": "1", "postal_code": "60601"},
    )
    nulls = dict.fromkeys(
        ("gmt_offset_now", "called_count", "alt_phone", "address3", "state", "phone_code", "postal_code")
    )
    site.put("vicidial_list", lead_id=102, phone_number="1", **nulls)
    assert site.tables.lead(LEAD_ID) == Lead(
        99_912_345_678, 3, -2, "3125550000", "(312) 555", Decimal("-5.75"), "IL", "1", "60601"
    )
    assert site.tables.lead(102) == Lead(0, 0, 0, "", "", Decimal(0), "", "", "")
    assert site.tables.lead(103) is None


def test_the_words_of_a_lead(site: Site) -> None:
    """All of them as text; a lead that does not exist has none."""
    site.put(
        "vicidial_list",
        lead_id=LEAD_ID,
        list_id=999,
        phone_number="312",
        first_name="Zoë",
        last_name="O'Neil",
    )
    words = LeadWords("101", "", "999", "312", "", "Zoë", "", "O'Neil", "")
    assert site.tables.lead_words(LEAD_ID) == words
    assert site.tables.lead_words(102) == LeadWords(*[""] * 9)


def test_further_numbers_of_a_lead(site: Site) -> None:
    """All are counted; of those with the same place the oldest is taken."""
    for place, number, active in ((2, "b", "Y"), (1, "a", "N"), (2, "later", "Y"), (None, "c", None)):
        columns = {"phone_number": number, "active": active, "phone_code": "1"}
        site.put("vicidial_list_alt_phones", lead_id=LEAD_ID, alt_phone_count=place, **columns)
    site.put("vicidial_list_alt_phones", lead_id=102, alt_phone_count=3, phone_number="x")
    count, phones = site.tables.alt_phones(LEAD_ID)
    assert count == 4
    assert phones == {1: AltPhone("a", "N", "1"), 2: AltPhone("b", "Y", "1"), 0: AltPhone("c", "", "1")}
    assert site.tables.alt_phones(103) == (0, {})


def test_numbers_that_must_not_be_called(site: Site) -> None:
    """Entries are counted in the system's list and in one campaign's, as far as they are asked for."""
    for number in ("3125551212", "312XXXXXXX"):
        site.put("vicidial_dnc", phone_number=number)
    for number, campaign_id in (("3125551212", "TESTCAMP"), ("3125551212", "OTHER")):
        site.put("vicidial_campaign_dnc", phone_number=number, campaign_id=campaign_id)
    one, both = ["3125551212"], ["3125551212", "312XXXXXXX"]
    assert site.tables.count_dnc(both, both, "TESTCAMP") == (2, 1)
    assert site.tables.count_dnc(one, [], "TESTCAMP") == (1, 0)
    assert site.tables.count_dnc([], one, "OTHER") == (0, 1)
    assert site.tables.count_dnc([], one, "NONE") == (0, 0)
    assert len(site.executor.packets) == 4
    assert site.tables.count_dnc([], [], "TESTCAMP") == (0, 0)
    assert len(site.executor.packets) == 4


def test_the_calls_of_a_day(site: Site) -> None:
    """Calls within a day are counted by number or lead, of all lists or of some."""
    for hours_ago, list_id, lead_id, number in (
        (1, 1, LEAD_ID, "312"),
        (23, 2, 102, "312"),
        (25, 1, LEAD_ID, "312"),
    ):
        columns = {"call_date": in_the_past(hours=hours_ago), "phone_number": number, "phone_code": "1"}
        site.put("vicidial_lead_24hour_calls", lead_id=lead_id, list_id=list_id, **columns)
    tables = site.tables
    assert [
        tables.calls_of_day("312", "1"),
        tables.calls_of_day("312", "44"),
        tables.calls_of_day("1", "1"),
    ] == [2, 0, 0]
    assert [tables.calls_of_day("312", "1", lists) for lists in ([1], [1, 2], [3])] == [1, 2, 0]
    assert [tables.calls_of_day_to_lead(lead_id) for lead_id in (LEAD_ID, 102, 103)] == [1, 1, 0]
    assert [tables.calls_of_day_to_lead(LEAD_ID, lists) for lists in ([1], [2])] == [1, 0]


HOPPER: Final = HopperRow(LEAD_ID, "TESTCAMP", "READY", 999, Decimal("-5.75"), "IL", "ALT", 25)


def test_a_number_is_dialled_next(site: Site) -> None:
    """The row is whole; a second one may follow, as ever."""
    site.tables.insert_hopper(HOPPER)
    columns = "lead_id, campaign_id, status, user, list_id, gmt_offset_now, state, alt_dial, priority, source"
    row = (LEAD_ID, "TESTCAMP", "READY", "", 999, Decimal("-5.75"), "IL", "ALT", 25, "A")
    assert site.get("vicidial_hopper", columns) == [row]
    site.tables.insert_hopper(HOPPER)
    assert site.get("vicidial_hopper", columns) == [row] * 2


# ---- call quota


def test_the_newest_dial_of_a_lead(site: Site) -> None:
    """By the end of its code and since a time; empty if there is none."""
    for minute, code in (
        (1, "V1202150310000000101"),
        (3, "V1202150310000000101"),
        (5, "V1202150310000000102"),
    ):
        site.put(
            "vicidial_dial_log", caller_code=code, lead_id=LEAD_ID, call_date=f"2023-11-14 22:0{minute}:00"
        )
    assert site.tables.newest_dial(LEAD_ID, "2023-11-14 18:00:00") == "2023-11-14 22:03:00"
    assert site.tables.newest_dial(LEAD_ID, "2023-11-14 22:03:00") == ""
    assert site.tables.newest_dial(102, LONG_AGO) == ""


DIALLED_AT: Final = datetime(2023, 11, 14, 22, 13, 20)
QUOTA: Final = QuotaCall(LEAD_ID, 999, DIALLED_AT, "one", "two", "A", 4, 7, writes_rank=False)


def test_the_dates_of_a_quota(site: Site) -> None:
    """NULL and the date of zeros are no date."""
    site.put(
        "vicidial_lead_call_quota_counts",
        lead_id=1,
        list_id=2,
        first_call_date=DIALLED_AT,
        last_call_date=ZERO,
    )
    site.put(
        "vicidial_lead_call_quota_counts", lead_id=1, list_id=3, first_call_date=None, last_call_date=None
    )
    assert site.tables.quota_row(1, 2) == QuotaRow(DIALLED_AT, None)
    assert site.tables.quota_row(1, 3) == QuotaRow(None, None)
    assert site.tables.quota_row(2, 2) is None


def quota(site: Site, columns: str) -> tuple[Any, ...]:
    """Give columns of the only row of quota counts."""
    (row,) = site.get("vicidial_lead_call_quota_counts", columns)
    return row


def test_a_first_call_is_counted(site: Site) -> None:
    """The row begins with one call, and repeating it changes nothing."""
    for _ in range(2):
        site.tables.insert_quota(QUOTA._replace(day="one"))
    assert quota(site, "lead_id, list_id, first_call_date, last_call_date, status, called_count, `rank`") == (
        *(LEAD_ID, 999, DIALLED_AT, DIALLED_AT, "A", 4, 7),
    )
    assert quota(site, "day_one_calls, session_one_calls, session_one_today_calls, day_two_calls") == (
        1,
        1,
        1,
        0,
    )


@pytest.mark.parametrize(("day", "counts"), [("two", (2, 2, 1)), ("", (2, 2, 0))])
def test_another_call_is_counted_once(site: Site, day: str, counts: tuple[int, ...]) -> None:
    """A later call counts for its session and day, and the same call again does not."""
    site.tables.insert_quota(QUOTA._replace(day="one"))
    site.do("UPDATE vicidial_lead_call_quota_counts SET modify_date = NOW() - INTERVAL 1 MINUTE")
    later = QUOTA._replace(day=day, dialled_at=DIALLED_AT + timedelta(days=1), status="B")
    for _ in range(2):
        site.tables.count_quota(later)
        site.do("UPDATE vicidial_lead_call_quota_counts SET modify_date = NOW() - INTERVAL 1 MINUTE")
    assert quota(site, "session_one_calls, session_one_today_calls, day_two_calls") == counts
    assert quota(site, "status, first_call_date, last_call_date") == ("B", DIALLED_AT, later.dialled_at)


@pytest.mark.parametrize("writes_rank", [True, False])
def test_how_a_counted_call_ended(site: Site, writes_rank: bool) -> None:
    """Status and rank are told without counting; the lead's own rank only if it is another."""
    site.put("vicidial_list", **{"lead_id": LEAD_ID, "phone_number": "1", "rank": 50})
    site.tables.insert_quota(QUOTA._replace(day="one"))
    site.tables.set_quota_status(QUOTA._replace(status="SALE", rank=0, writes_rank=writes_rank))
    assert quota(site, "status, `rank`, session_one_calls, last_call_date") == ("SALE", 0, 1, DIALLED_AT)
    assert site.get("vicidial_list", "`rank`") == [(0 if writes_rank else 50,)]


# ---- KHOMP and QueueMetrics


def test_a_call_is_announced_to_khomp(site: Site) -> None:
    """One row for each announcement, which its end completes; what has no value stays."""
    site.tables.insert_khomp(CODE, "X-KHOMP", f"{CODE}_x", "CALLERCODE_EXTERNIP", "KHOMPSETTINGS")
    site.tables.end_khomp(f"{CODE}_x", {"conclusion": "Answered", "pattern": None, "vici_status": ""})
    columns = (
        "caller_code, lead_id, server_ip, khomp_header, khomp_id, khomp_id_format, khomp_settings_container"
    )
    assert site.get("vicidial_khomp_log", columns, "start_date > NOW() - INTERVAL 1 MINUTE") == [
        (CODE, 0, SERVER_IP, "X-KHOMP", f"{CODE}_x", "CALLERCODE_EXTERNIP", "KHOMPSETTINGS")
    ]
    assert site.get("vicidial_khomp_log", "conclusion, pattern, vici_status") == [("Answered", None, "")]


@pytest.mark.parametrize(
    ("old", "replaced"), [("token => ë", True), ("TOKEN => ë", False), ("token => e", False)]
)
def test_a_container_is_replaced_if_nobody_else_did(site: Site, old: str, replaced: bool) -> None:
    """The old text is compared to the letter, and what we keep in memory is the new one."""
    site.put("vicidial_settings_containers", container_id="A", container_entry="token => ë")
    tables = site.open_tables(settings_ttl_s=60.0)
    assert tables.container("A") == "token => ë"
    tables.replace_container("A", old, "token => new 🎧"[: 12 if replaced else None])
    assert tables.container("A") == ("token => new" if replaced else "token => ë")


def test_the_place_in_a_queue(site: Site) -> None:
    """The newest entry of the call in the in-group since then."""
    for position, date in ((1, "2023-11-14 22:00:00"), (4, "2023-11-14 22:01:00")):
        closer_row(site, date, uniqueid=UID, campaign_id="IN", queue_position=position)
    closer_row(site, "2023-11-14 22:02:00", uniqueid=UID, campaign_id="OTHER", queue_position=9)
    assert site.tables.queue_entry(UID, LEAD_ID, "IN", LONG_AGO) == ("4", "2023-11-14 22:01:00")
    assert site.tables.queue_entry(UID, 102, "IN", LONG_AGO) is None
    assert site.tables.queue_entry(UID, LEAD_ID, "IN", "2023-11-14 22:02:00") is None


def test_who_waits(site: Site) -> None:
    """Calls that are live in the in-group and came before that time."""
    for status, campaign_id, minute in (
        ("LIVE", "IN", 0),
        ("LIVE", "in", 1),
        ("LIVE", "IN", 5),
        ("XFER", "IN", 0),
        ("LIVE", "X", 0),
    ):
        auto_call(
            site, CODE, UID, status=status, campaign_id=campaign_id, call_time=f"2023-11-14 22:0{minute}:00"
        )
    assert site.tables.count_waiting("IN", "2023-11-14 22:05:00") == 2
    assert site.tables.count_waiting("IN", "") == 0


# ---- trouble


def lose_connection(site: Site, when: str) -> None:
    """Let the server close the connection that does something, after it has done it and before it says so.

    The tables have no transactions, so it is done.
    """
    name = "_".join(when.split())
    site.do(f"CREATE TRIGGER {name} {when} FOR EACH ROW KILL CONNECTION_ID()")


@pytest.mark.parametrize(
    ("table", "write"),
    [
        ("vicidial_drop_log", lambda tables: tables.end_call([], DROP)),
        ("vicidial_hopper", lambda tables: tables.insert_hopper(HOPPER)),
        ("call_log", lambda tables: tables.insert_call(new_call()).get()),
        ("vicidial_log", lambda tables: tables.end_call(tables.new_log(NEW_LOG), None)),
        ("vicidial_log_extended", lambda tables: tables.end_call(tables.new_log(NEW_LOG), None)),
        ("vicidial_log_extended", lambda tables: tables.end_call(tables.new_log(NEW_LOG), DROP)),
        ("vicidial_drop_log", lambda tables: tables.end_call(tables.new_log(NEW_LOG), DROP)),
        ("vicidial_carrier_log", lambda tables: tables.end_call([tables.insert_carrier(CARRIER)], None)),
        ("vicidial_lead_call_quota_counts", lambda tables: tables.insert_quota(QUOTA)),
        ("vicidial_khomp_log", lambda tables: tables.insert_khomp(CODE, "X", "id", "CALLERCODE", "A")),
    ],
)
def test_no_row_is_doubled_by_a_lost_connection(
    own_site: Site, table: str, write: Callable[[Tables], object]
) -> None:
    """What was done before the connection was lost is not done again, and what comes after it is done."""
    lose_connection(own_site, f"AFTER INSERT ON {table}")
    write(own_site.tables)
    assert own_site.executor.repetitions == 1
    assert len(own_site.get(table)) == 1
    for other in ("vicidial_log", "vicidial_log_extended", "vicidial_drop_log"):
        assert len(own_site.get(other)) <= 1


def test_an_appended_text_is_not_doubled_by_a_lost_connection(own_site: Site) -> None:
    """The history of an outside agent's call has its end once."""
    own_site.put("vicidial_3way_press_log", call_3way_id="T1", result="Pressed: 1")
    lose_connection(own_site, "AFTER UPDATE ON vicidial_3way_press_log")
    own_site.tables.end_three_way("T1")
    ((result,),) = own_site.get("vicidial_3way_press_log", "result")
    assert result.count("Hungup") == 1


def test_who_may_have_taken_a_call_owns_it(own_site: Site) -> None:
    """After a lost connection a row that is gone was taken by this request, or its end would be nobody's."""
    auto_call(own_site, CODE, UID)
    lose_connection(own_site, "AFTER DELETE ON vicidial_auto_calls")
    assert own_site.tables.take_auto_call(1, CODE)
    assert own_site.get("vicidial_auto_calls") == []


def fail(site: Site, when: str, errno: int, times: int) -> None:
    """Let the server fail something so many times with this error."""
    site.do("CREATE TABLE IF NOT EXISTS failures (number INT) ENGINE = MyISAM")
    count = f"(SELECT COUNT(*) FROM failures) < {times}"
    failure = f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {errno}, MESSAGE_TEXT = 'made to fail'"
    body = f"IF {count} THEN INSERT INTO failures VALUES (1); {failure}; END IF"
    site.do(f"CREATE TRIGGER failing {when} FOR EACH ROW BEGIN {body}; END")


@pytest.mark.parametrize(("errno", "times"), [(1213, 1), (1205, 1), (1317, 2)])
def test_a_call_that_was_taken_stays_taken_if_its_ringing_fails(
    own_site: Site, errno: int, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Living calls are in memory, where nothing is rolled back: another statement's trouble loses no end.

    Be it a deadlock, a lock that does not come, or a statement that somebody ends.
    """
    auto_call(own_site, CODE, UID)
    ringing(own_site, CODE)
    fail(own_site, "BEFORE UPDATE ON vicidial_live_agents", errno, times)
    assert own_site.tables.take_auto_call(1, CODE)
    assert own_site.get("vicidial_auto_calls") == []


def test_what_fails_for_good_keeps_nothing_else_from_being_written(
    own_site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """One table that is missing costs its own row only, which the log tells, once and with the statement."""
    own_site.put("vicidial_list", lead_id=LEAD_ID, phone_number="1", status="NEW")
    own_site.do("DROP TABLE vicidial_log")
    statements = [own_site.tables.lead_status(LEAD_ID, "PDROP"), *own_site.tables.new_log(NEW_LOG)]
    own_site.tables.end_call(statements, DROP)
    assert own_site.get("vicidial_list", "status") == [("PDROP",)]
    assert len(own_site.get("vicidial_log_extended")) == 1
    assert len(own_site.get("vicidial_drop_log")) == 1
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "INSERT IGNORE INTO vicidial_log " in record.getMessage()
    assert "doesn't exist" in record.getMessage()


def test_a_missing_log_table_is_no_log_row(own_site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A dial that failed is told to the other tables, and there was no row where there is no table."""
    auto_call(own_site, CODE, UID, status="SENT")
    own_site.do("DROP TABLE vicidial_log")
    assert not own_site.tables.fail_dial(CODE, LEAD_ID, "1", "AB", "BUSY", write_lead=True)
    assert own_site.get("vicidial_auto_calls", "status") == [("BUSY",)]
    assert len(caplog.records) == 1


def test_ends_in_a_group_are_written_beside_one_that_fails(
    own_site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """A statement that cannot work is its own call's trouble: all ends are written, its own included."""
    uids = ["1.1", "1.2", "1.3"]
    for uid in uids:
        call_row(own_site, uid)
    own_site.do("DROP TABLE vicidial_carrier_log")
    before = (own_site.tables.insert_carrier(CARRIER),)
    closings = [Closing(uid, f"of {uid}", NOW, (uid,), before if uid == "1.2" else ()) for uid in uids]
    together(own_site.tables.close, closings)
    assert [row[:2] for row in ended(own_site)] == [(uid, f"of {uid}") for uid in uids]
    assert len(caplog.records) == 1


def test_no_secret_and_no_caller_is_in_a_statement(site: Site) -> None:
    """Values are parameters: whatever a caller calls himself, the statement is the same text."""
    strange = "'; DROP TABLE call_log; -- %s \\"
    site.tables.insert_call(new_call(channel=strange, code=strange)).get()
    site.tables.look(LegKey(strange, strange))
    site.tables.find_logs(1, strange, LONG_AGO, strange)
    site.tables.close(Closing(strange, strange, NOW, (strange,)))
    assert len(site.get("call_log")) == 1
    assert not any("DROP" in sql for packet in site.executor.packets for sql, _ in packet)
