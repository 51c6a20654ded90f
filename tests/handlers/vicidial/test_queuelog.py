"""fastagi_pool.handlers.vicidial.queuelog: QueueMetrics' rows, and what happens if it is away."""

from __future__ import annotations

import logging
import re
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import pytest
from conftest import ManualClock
from mariadb import USER, MariaDBServer
from vicidial.comparing import compare, net_changes
from vicidial.playing import SERVER_IP, Row, recorded
from vicidial.tables import Tables as VicidialTables
from vicidial.tables import queue_forwarder
from vicidial_database import open_database
from vicidial_legs import NOW, leg_of, state_before, tables_of

from fastagi_pool.errors import DatabaseUnavailable
from fastagi_pool.handlers.vicidial.grammar import lead_of
from fastagi_pool.handlers.vicidial.leg import Leg, Site
from fastagi_pool.handlers.vicidial.queuelog import (
    ABANDON,
    COMPLETE_CALLER,
    MOST_REQUESTS,
    Connect,
    Places,
    QueueLogs,
    end_row,
    socket_url,
    waited,
)
from fastagi_pool.handlers.vicidial.rows import AutoCall, LeadWords, LegKey, QueueLogRow
from fastagi_pool.handlers.vicidial.tables import Tables

pytest_plugins = ["vicidial_fixtures"]

LOG: Final = logging.getLogger("test_queuelog")
CODE: Final = "V1202150310000000101"
UID: Final = "1700000000.26"
#: Nobody listens there.
NOBODY: Final = "127.0.0.9"

CALL: Final = AutoCall(
    auto_call_id=1,
    lead_id=101,
    callerid=CODE,
    campaign_id="TESTCAMP",
    alt_dial="NONE",
    stage="LIVE-12",
    call_time="",
    call_epoch=1_700_000_000,
    uniqueid=UID,
    status="LIVE",
    phone_code="1",
    phone_number="3125551212",
    queue_position=1,
    server_ip=SERVER_IP,
    agent_only="",
)
ROW: Final = QueueLogRow(
    time_id=1_700_000_040,
    call_id=CODE,
    queue="TESTCAMP",
    agent="Agent/6666",
    verb=COMPLETE_CALLER,
    data1="3.5",
    data2="40",
    data3="1",
    data4="a b&c",
    serverid="VIC",
)
TOLD: Final = (
    f"time_id=1700000040&call_id={CODE}&queue=TESTCAMP&agent=Agent/6666&verb=COMPLETECALLER"
    "&data1=3.5&data2=40&data3=1&data4=a+b%26c"
)
WORDS: Final = LeadWords("101", "AB 7", "999", "3125551212", "Dr", "Zoë & Co", "M", "O'Neil?", "60601")


# ---- what the row says


@pytest.mark.parametrize(
    ("stage", "seconds"),
    [
        ("LIVE-12", "12"),
        ("XFER-3.5", "3.5"),
        ("LIVE-7.0", "7.0"),
        ("LIVE-0.25", "0.25"),
        ("LIVE-.5", ".5"),
        ("LIVE-0.249", "0"),
        ("LIVE-0", "0"),
        ("LIVE-", "0"),
        ("LIVE--3", "3"),
        ("START", "0"),
        ("", "0"),
        ("9", "9"),
        ("LIVE-soon", "0"),
        ("LIVE-1e2", "1e2"),
        ("LIVE-12s", "12s"),
    ],
)
def test_the_wait(stage: str, seconds: str) -> None:
    """It is what stands behind the stage's last dash, as it stands there, unless it is next to nothing."""
    assert waited(stage) == seconds


def test_who_gave_up() -> None:
    """Without an agent a caller has abandoned his last place, and his first is told too."""
    row = end_row(CALL, Places("2", 4), None, "VIC", NOW.epoch)
    assert row == QueueLogRow(NOW.epoch, CODE, "TESTCAMP", "NONE", ABANDON, "4", "2", "12", "", "VIC")


def test_who_ended_the_talk() -> None:
    """With an agent it is told how long the caller waited and how long ago his call was placed."""
    row = end_row(CALL, Places("2", 4), Connect("Agent/6666", "abc"), "VIC", NOW.epoch)
    expected = ("Agent/6666", COMPLETE_CALLER, "12", "40", "2", "abc", "VIC")
    assert row == QueueLogRow(NOW.epoch, CODE, "TESTCAMP", *expected)


# ---- what the request says


@pytest.mark.parametrize(
    ("template", "url"),
    [
        ("http://qm/end", f"http://qm/end?{TOLD}"),
        ("http://qm/end?key=1", f"http://qm/end?key=1&{TOLD}"),
        ("VARhttp://qm/end", f"http://qm/end?{TOLD}"),
        ("http://qm/the end?a=b c", f"http://qm/the+end?a=b+c&{TOLD}"),
        ("http://qm/?id=--A--lead_id--B--", f"http://qm/?id=101&{TOLD}"),
        (
            "http://qm/?v=--A--vendor_id--B--&w=--A--vendor_lead_code--B--",
            f"http://qm/?v=AB+7&w=AB+7&{TOLD}",
        ),
        (
            "http://qm/?l=--A--list_id--B--&p=--A--phone_number--B--&t=--A--title--B--&z=--A--postal_code--B--",
            f"http://qm/?l=999&p=3125551212&t=Dr&z=60601&{TOLD}",
        ),
        (
            "http://qm/?n=--A--first_name--B----A--middle_initial--B----A--last_name--B--",
            f"http://qm/?n=Zo%C3%AB+%26+CoMO%27Neil%3F&{TOLD}",
        ),
        ("http://qm/--A--last_name--B--", f"http://qm/O%27Neil%3F?{TOLD}"),
        ("http://qm/?x=--A--email--B--", f"http://qm/?x=--A--email--B--&{TOLD}"),
        ("http://qm/?x=%20ä\r\nHost: y", f"http://qm/?x=%20%C3%A4%0D%0AHost:+y&{TOLD}"),
    ],
)
def test_the_url(template: str, url: str) -> None:
    """Marks become what is known of the lead, harmless to the URL; the row becomes the end of the query."""
    assert socket_url(template, WORDS, ROW) == url


# ---- with rows


class QueueMetrics:
    """VICIdial's tables and QueueMetrics', as tests and as the handlers see them.

    Attributes:
        rows: For tests.
        tables: For the handlers.
        seconds: The clock of complaints.
        logs: What is tested.
    """

    def __init__(self, rows: VicidialTables, tables: Tables) -> None:
        self.rows = rows
        self.tables = tables
        self.seconds = ManualClock()
        self.logs = QueueLogs(Site(SERVER_IP, queue_timeout_s=2.0), LOG, self.seconds)

    def load(self, *more: tuple[str, Row], connected: bool = False, **system: Any) -> None:
        """Empty all tables, and have settings, a lead and perhaps an agent who has met the caller."""
        connect = ("queue_log", {"call_id": CODE, "verb": "CONNECT", "agent": "Agent/6666", "data4": "abc"})
        settings = {"enable_queuemetrics_logging": "1", **system}
        given = (connect, *more) if connected else more
        self.rows.load(state_before(*given, system=settings))

    def leg(self) -> Leg:
        """Return a request."""
        return leg_of(self.tables, agi={"uniqueid": UID})

    def end(self, call: AutoCall = CALL) -> QueueLogRow | None:
        """End a call."""
        return self.logs.log_end(self.leg(), call, 101)

    def written(self) -> list[str]:
        """Return the verbs of all rows that are not an agent's."""
        found = self.rows.query(f"SELECT verb FROM {self.rows.name}_qm.queue_log WHERE verb <> 'CONNECT'")
        return [row["verb"] for row in found]


@pytest.fixture(scope="module")
def queue_host(mariadb: MariaDBServer) -> Iterator[str]:
    """Have QueueMetrics at port 3306 of an address of its own."""
    with queue_forwarder(mariadb.port) as forwarder:
        yield forwarder.host


@pytest.fixture
def queue(rows: VicidialTables, tables: Tables) -> Iterator[QueueMetrics]:
    """Give QueueMetrics with empty tables."""
    queue = QueueMetrics(rows, tables)
    queue.load()
    yield queue
    queue.logs.close()


@pytest.mark.mariadb
@pytest.mark.parametrize("name", ["Q01", "Q02", "Q03"])
def test_the_recorded_calls(queue: QueueMetrics, name: str) -> None:
    """The rows of the recorded calls are written as they were there."""
    scenario = recorded()[name]
    began_s = queue.rows.load(scenario)
    code = scenario.agi["calleridname"]
    call = queue.tables.look(LegKey(UID, code)).auto_calls[0]
    queue.tables.take_auto_call(call.auto_call_id, code)
    before = queue.rows.snapshot()
    row = queue.logs.log_end(queue.leg(), call, lead_of(code))
    assert row is not None
    assert compare(scenario.changed("queue_log"), net_changes(before, queue.rows.snapshot()), began_s) == []


@pytest.mark.mariadb
@pytest.mark.parametrize(("enabled", "status"), [("0", "LIVE"), ("1", "IVR")])
def test_calls_that_it_need_not_know(
    queue: QueueMetrics, caplog: pytest.LogCaptureFixture, enabled: str, status: str
) -> None:
    """Without QueueMetrics, and for a call that never left a voice menu, nothing is written or looked for."""
    queue.load(enable_queuemetrics_logging=enabled, queuemetrics_server_ip=NOBODY)
    assert queue.end(CALL._replace(status=status)) is None
    assert queue.written() == []
    assert errors(caplog) == []


def entry(**columns: Any) -> tuple[str, Row]:
    """Return the row of a call's way into the queue."""
    row = {
        "lead_id": 101,
        "campaign_id": "TESTCAMP",
        "call_date": "{dt-30}",
        "uniqueid": UID,
        "queue_position": 5,
    }
    return "vicidial_closer_log", row | columns


def waiting(**columns: Any) -> tuple[str, Row]:
    """Return the row of another call that waits."""
    row = {
        "server_ip": SERVER_IP,
        "campaign_id": "TESTCAMP",
        "lead_id": 7,
        "call_time": "{dt-31}",
        "status": "LIVE",
    }
    return "vicidial_auto_calls", row | columns


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("more", "last", "first"),
    [
        ([], "1", "1"),
        ([waiting()], "1", "1"),
        ([entry()], "1", "5"),
        ([entry(), waiting(), waiting()], "3", "5"),
        ([entry(), waiting(call_time="{dt-30}")], "1", "5"),
        ([entry(), waiting(status="XFER")], "1", "5"),
        ([entry(), waiting(campaign_id="OTHER")], "1", "5"),
        ([entry(uniqueid="1700000000.27")], "1", "1"),
        ([entry(lead_id=102)], "1", "1"),
        ([entry(campaign_id="OTHER")], "1", "1"),
        ([entry(call_date="{dt-21660}")], "1", "1"),
        ([entry(), entry(queue_position=6)], "1", "6"),
        ([entry(queue_position=None)], "1", "1"),
    ],
)
def test_the_places(queue: QueueMetrics, more: list[tuple[str, Row]], last: str, first: str) -> None:
    """The first place is that of this call's newest row, the last one behind all who came before."""
    queue.load(*more)
    row = queue.end()
    assert row is not None
    assert (row.data1, row.data2) == (last, first)


@pytest.mark.mariadb
def test_a_call_that_is_known_by_another_id(queue: QueueMetrics) -> None:
    """The way into the queue is looked for by the unique id that the caller of this knows."""
    queue.load(entry(uniqueid="1700000000.20"))
    row = queue.logs.log_end(queue.leg(), CALL, 101, "1700000000.20")
    assert row is not None
    assert row.data2 == "5"


@pytest.mark.mariadb
def test_the_newest_agent(queue: QueueMetrics) -> None:
    """Of several agents who met the caller the last one counts, and other verbs are none."""
    met = {"call_id": CODE, "verb": "CONNECT"}
    queue.load(
        ("queue_log", {**met, "time_id": 20, "agent": "Agent/2", "data4": "two"}),
        ("queue_log", {**met, "time_id": 10, "agent": "Agent/1", "data4": "one"}),
        ("queue_log", {**met, "time_id": 30, "agent": "Agent/3", "verb": "CALLSTATUS"}),
    )
    row = queue.end()
    assert row is not None
    assert (row.agent, row.verb, row.data4) == ("Agent/2", COMPLETE_CALLER, "two")


# ---- trouble with the database


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the errors that were logged, but for what a database itself says of its health."""
    messages = (record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    return [message for message in messages if not re.match(r"database \w+: away: ", message)]


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"queuemetrics_server_ip": NOBODY}, "refused"),
        ({"queuemetrics_pass": "wrong-secret"}, "Access denied"),
        ({"queuemetrics_pass": "secret-\u20ac"}, "UnicodeEncodeError"),
        ({"queuemetrics_dbname": "mysql"}, "queue_log' doesn't exist"),
        ({"queuemetrics_dbname": "no_such"}, "Unknown database"),
    ],
)
def test_a_database_that_cannot_be_had(
    queue: QueueMetrics, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], reason: str
) -> None:
    """The row is lost and that is said; the call goes on, and no password is told."""
    queue.load(**settings)
    assert queue.end() is None
    (line,) = errors(caplog)
    assert line.startswith("QueueMetrics' database at ")
    assert reason in line
    assert line.endswith("; 1 lost so far")
    assert "secret" not in line


@pytest.mark.mariadb
def test_one_complaint_a_minute(queue: QueueMetrics, caplog: pytest.LogCaptureFixture) -> None:
    """An outage fills no log: each server is complained of once a minute, with the count."""
    queue.load(queuemetrics_server_ip=NOBODY)
    for _ in range(3):
        assert queue.end() is None
    queue.seconds.now_s += 59.0
    assert queue.end() is None
    assert len(errors(caplog)) == 1
    queue.load(queuemetrics_server_ip="127.0.0.10")
    assert queue.end() is None
    assert [line.partition(":")[0][-10:] for line in errors(caplog)] == [f"t {NOBODY}"[-10:], "127.0.0.10"]
    queue.seconds.now_s += 1.0
    queue.load(queuemetrics_server_ip=NOBODY)
    assert queue.end() is None
    assert errors(caplog)[2].endswith("; 5 lost so far")


@pytest.mark.mariadb
def test_settings_that_change(queue: QueueMetrics, mariadb: MariaDBServer) -> None:
    """New settings hold from the next call on, and the connections of the old ones are closed."""
    name = f"{queue.rows.name}_old"
    mariadb.execute(f"CREATE DATABASE {name}")
    mariadb.execute(f"CREATE TABLE {name}.queue_log LIKE {queue.rows.name}_qm.queue_log")
    connections = f"SELECT COUNT(*) FROM information_schema.processlist WHERE db = '{name}'"
    queue.load(queuemetrics_dbname=name)
    assert queue.end() is not None
    assert mariadb.execute(connections) == [(1,)]
    assert queue.written() == []
    queue.load()
    assert queue.end() is not None
    assert queue.written() == [ABANDON]
    give_up_s = time.monotonic() + 10
    while mariadb.execute(connections) != [(0,)]:
        assert time.monotonic() < give_up_s
    mariadb.execute(f"DROP DATABASE {name}")


@pytest.mark.mariadb
def test_vicidials_own_database_away(queue: QueueMetrics, caplog: pytest.LogCaptureFixture) -> None:
    """That it is away is the caller's to know, and nothing is said about QueueMetrics."""
    database = open_database(f"mysql+pymysql://{USER}@{NOBODY}:3306/vicidial")
    leg = replace(queue.leg(), tables=tables_of(database))
    with pytest.raises(DatabaseUnavailable, match="vicidial"):
        queue.logs.log_end(leg, CALL, 101)
    assert errors(caplog) == []


class Cutter(socketserver.ThreadingTCPServer):
    """Passes connections on to a server, and cuts the first one on which the server answers an INSERT.

    Attributes:
        address: Where it listens, on port 3306.
        has_cut: Whether that was done.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int) -> None:
        self.port = port
        self.has_cut = False
        self.address = f"127.{port >> 8}.{port & 255}.8"
        super().__init__((self.address, 3306), _Cutting)

    @classmethod
    @contextmanager
    def before(cls, port: int) -> Iterator[Cutter]:
        """Run one before a server on this machine."""
        with cls(port) as cutter:
            threading.Thread(target=cutter.serve_forever, args=(0.02,), daemon=True).start()
            yield cutter
            cutter.shutdown()


class _Cutting(socketserver.BaseRequestHandler):
    server: Cutter

    def handle(self) -> None:
        """Carry bytes both ways until one side ends."""
        self.inserts = False
        with socket.create_connection(("127.0.0.1", self.server.port)) as server:
            back = threading.Thread(target=self._carry_back, args=(server,), daemon=True)
            back.start()
            with suppress(OSError):
                while asked := self.request.recv(65536):
                    self.inserts = b"INSERT INTO queue_log" in asked
                    server.sendall(asked)
                server.shutdown(socket.SHUT_WR)
            back.join()

    def _carry_back(self, server: socket.socket) -> None:
        with suppress(OSError):
            while answer := server.recv(65536):
                if self.inserts and not self.server.has_cut:
                    self.server.has_cut = True
                    break
                self.request.sendall(answer)
            self.request.shutdown(socket.SHUT_RDWR)


@pytest.mark.mariadb
def test_a_row_is_written_once(
    queue: QueueMetrics, mariadb: MariaDBServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Who lost the answer to his INSERT finds the row there, and does not write it again."""
    with Cutter.before(mariadb.port) as cutter:
        queue.load(queuemetrics_server_ip=cutter.address)
        assert queue.end() is not None
        assert cutter.has_cut
    assert queue.written() == [ABANDON]
    assert errors(caplog) == []


# ---- the request over HTTP


class _Answering(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        """Note the path and answer."""
        self.server.paths.append(self.path)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Be silent."""


class Web(ThreadingHTTPServer):
    """A web server of QueueMetrics.

    Attributes:
        url: How it is reached.
        status: What it answers.
        paths: What was asked for.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.status = 200
        self.paths: list[str] = []


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """Run a web server."""
    monkeypatch.setenv("no_proxy", "*")
    with Web() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


LEAD: Final = ("vicidial_list", {"lead_id": 101, "first_name": "Mary Ann", "last_name": "Secret & Co"})


@pytest.mark.mariadb
def test_a_request_follows_the_row(queue: QueueMetrics, web: Web, caplog: pytest.LogCaptureFixture) -> None:
    """A caller who ended the talk is told over HTTP, after the call has gone on."""
    url = f"{web.url}/end?name=--A--first_name--B--+--A--last_name--B--"
    queue.load(LEAD, connected=True, queuemetrics_socket="CONNECT_COMPLETE", queuemetrics_socket_url=url)
    row = queue.end()
    assert row is not None
    assert web.paths == []
    queue.logs.close()
    (path,) = web.paths
    assert path.startswith(
        f"/end?name=Mary+Ann+Secret+%26+Co&time_id={row.time_id}&call_id={CODE}&queue=TESTCAMP"
        "&agent=Agent/6666&verb=COMPLETECALLER&data1=12&data2="
    )
    assert path.endswith("&data3=1&data4=abc")
    assert errors(caplog) == []


@pytest.mark.mariadb
def test_a_request_is_sent_once(queue: QueueMetrics, web: Web) -> None:
    """A second run of a call that finds the first one's row writes none, and tells nobody again."""
    queue.load(connected=True, queuemetrics_socket="CONNECT_COMPLETE", queuemetrics_socket_url=f"{web.url}/")
    for _ in range(2):
        assert queue.logs.log_end(replace(queue.leg(), careful=True), CALL, 101) is not None
    queue.logs.close()
    assert len(web.paths) == 1
    assert queue.written() == [COMPLETE_CALLER]


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("connected", "socket_setting", "url"),
    [
        (False, "CONNECT_COMPLETE", "{url}/"),
        (True, "NONE", "{url}/"),
        (True, "CONNECT_COMPLETE", ""),
        (True, "CONNECT_COMPLETE", "http://a.b"),
    ],
)
def test_calls_that_ask_for_no_request(
    queue: QueueMetrics,
    web: Web,
    caplog: pytest.LogCaptureFixture,
    connected: bool,
    socket_setting: str,
    url: str,
) -> None:
    """There is none for who gave up, without the setting, and without what could be a URL."""
    template = url.format(url=web.url)
    queue.load(connected=connected, queuemetrics_socket=socket_setting, queuemetrics_socket_url=template)
    assert queue.end() is not None
    queue.logs.close()
    assert web.paths == []
    assert errors(caplog) == []


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("status", "url", "reason"),
    [
        (500, "{url}/", "127.0.0.1: a request was lost: HTTP status 500;"),
        (200, "http://127.0.0.9:1/", "127.0.0.9: a request was lost: [Errno 111] Connection refused;"),
        (200, "qm://127.0.0.9/", "127.0.0.9: a request was lost: unknown url type: qm;"),
        (200, "http://127.0.0.9:port/", "127.0.0.9: a request was lost: InvalidURL;"),
        (200, "no url at all", "None: a request was lost: ValueError;"),
        (200, "http://[no/host", "socket: a request was lost: ValueError;"),
    ],
)
def test_requests_that_fail(
    queue: QueueMetrics, web: Web, caplog: pytest.LogCaptureFixture, status: int, url: str, reason: str
) -> None:
    """It is said why, without a word about the lead, and the row is there all the same."""
    web.status = status
    template = url.format(url=web.url) + "?name=--A--last_name--B--"
    queue.load(LEAD, connected=True, queuemetrics_socket="CONNECT_COMPLETE", queuemetrics_socket_url=template)
    assert queue.end() is not None
    queue.logs.close()
    (line,) = errors(caplog)
    assert reason in line
    assert "Secret" not in line
    assert queue.written() == [COMPLETE_CALLER]


@pytest.mark.mariadb
def test_requests_are_bounded(queue: QueueMetrics, web: Web, caplog: pytest.LogCaptureFixture) -> None:
    """What is more than may be under way is lost, and that is said."""
    queue.load(connected=True, queuemetrics_socket="CONNECT_COMPLETE", queuemetrics_socket_url=f"{web.url}/")
    for _ in range(MOST_REQUESTS + 1):
        assert queue.end() is not None
    (line,) = errors(caplog)
    assert line.endswith(f"a request was lost: {MOST_REQUESTS} are under way; 1 lost so far")
    queue.logs.close()
    assert len(web.paths) == MOST_REQUESTS
