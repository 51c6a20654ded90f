"""fastagi_pool.handlers.vicidial.khomp: what is announced, what is asked, and what an answer means."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from vicidial.comparing import compare, net_changes
from vicidial.playing import SERVER_IP, Row, effect, recorded
from vicidial.tables import Tables as VicidialTables
from vicidial_legs import NOW, campaign_of, leg_of, state_before, tables_of

from fastagi_pool.database import Database, Statement
from fastagi_pool.executor import Done, Executor
from fastagi_pool.handlers.vicidial.khomp import (
    TOKEN_LIFE_S,
    UNKNOWN,
    HeardCall,
    KhompResult,
    end,
    judge,
    read_call,
    read_entries,
    read_settings,
    read_status_map,
    start,
    with_token,
)
from fastagi_pool.handlers.vicidial.leg import Leg, Moment, Site
from fastagi_pool.handlers.vicidial.tables import Tables

pytest_plugins = ["vicidial_fixtures"]

CODE: Final = "V1202150310000000101"
CALL_ID: Final = f"{CODE}_TESTCAMP_203.0.113.5"
EXPIRES: Final = NOW.epoch + TOKEN_LIFE_S
AMD: Final = KhompResult("status", "AMD", "AMD")
BEEP: Final = KhompResult("status", "BEEP", "AMD")
STATUS_MAP: Final = '"machine" => "status"."AMD"."AMD"\n"machine"."beep" => "status"."BEEP"."AMD"\n'


# ---- containers


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("", {}),
        ("a => b", {"a": "b"}),
        ("  a=>b  \r\n\n\t c  =>  d e\t", {"a": "b", "c": "d e"}),
        ("# a => b\n   # c => d\n", {}),
        ("a => b # c", {"a": "b"}),
        ("a # => b", {}),
        ("a => b => c", {"a": "b => c"}),
        ("a =>", {"a": ""}),
        ("a = b\nno arrow", {}),
        ("a => 1\na => 2", {"a": "2"}),
    ],
)
def test_a_container(text: str, entries: dict[str, str]) -> None:
    """Lines are keys and values; blank lines, comments and all else say nothing."""
    assert read_entries(text) == entries


def test_what_an_empty_container_means() -> None:
    """Without a setting we log in ourselves, look at certificates, and have no token."""
    settings = read_settings("")
    assert not settings.is_proxied
    assert settings.checks_certificate
    assert settings.needs_login(0)
    assert settings.header == ""


def test_all_settings() -> None:
    """Each key goes where it belongs."""
    names = (
        "khomp_api_url => http://a/\nkhomp_api_proxied => true\nkhomp_api_login_url => http://l/\n"
        "khomp_api_user => me\nkhomp_api_pass => pw\nkhomp_api_check_ssl => 1\nkhomp_header => H\n"
        "khomp_id_format => F\nkhomp_sub_account_header => S\nkhomp_api_token => T\n"
        "khomp_api_token_expire => 17\n"
    )
    settings = read_settings(names)
    assert (settings.api_url, settings.login_url) == ("http://a/", "http://l/")
    assert (settings.user, settings.password, settings.token) == ("me", "pw", "T")
    assert (settings.header, settings.id_format, settings.sub_account) == ("H", "F", "S")
    assert (settings.is_proxied, settings.checks_certificate, settings.token_expires_epoch) == (
        True,
        True,
        17,
    )


def test_settings_tell_no_secret() -> None:
    """Whoever prints settings by mistake prints no user, password or token."""
    text = "khomp_api_user => secret1\nkhomp_api_pass => secret2\nkhomp_api_token => secret3"
    assert "secret" not in repr(read_settings(text))


@pytest.mark.parametrize("value", ["0", "false", "NO", "n"])
def test_certificates_that_nobody_looks_at(value: str) -> None:
    """Only a plain no switches the look off."""
    assert not read_settings(f"khomp_api_check_ssl => {value}").checks_certificate


@pytest.mark.parametrize(
    ("token", "expires", "proxied", "needed"),
    [
        ("abc", 1001, "false", False),
        ("abc", 1000, "false", True),
        ("abc", 0, "false", True),
        ("abc", 0, "true", False),
        ("abc", 0, "", True),
        ("TOKENTOKENTOKEN", 9999, "false", True),
        ("TOKENTOKENTOKEN", 9999, "true", False),
        ("", 9999, "false", True),
        ("a b", 9999, "false", True),
    ],
)
def test_when_one_logs_in(token: str, expires: int, proxied: str, needed: bool) -> None:
    """A token is good until its second comes, an installer's never is, and behind a proxy none is needed."""
    text = (
        f"khomp_api_token => {token}\nkhomp_api_token_expire => {expires}\nkhomp_api_proxied => {proxied}\n"
    )
    assert read_settings(text).needs_login(1000) is needed


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (
            "khomp_api_token => TOKENTOKENTOKEN\nkhomp_api_token_expire => 0\n",
            "khomp_api_token => new\nkhomp_api_token_expire => 9\n",
        ),
        (
            "# khomp_api_token => x\r\n khomp_api_token=>old  # ours\r\nkhomp_api_token_expire =>\r\nb => c",
            "# khomp_api_token => x\r\n khomp_api_token=>new  # ours\r\nkhomp_api_token_expire =>9\r\nb => c",
        ),
        ("khomp_api_token_expire => 1", "khomp_api_token_expire => 9"),
        (
            "my_khomp_api_token => a\na => khomp_api_token => b",
            "my_khomp_api_token => a\na => khomp_api_token => b",
        ),
        ("", ""),
    ],
)
def test_a_token_is_put_into_a_container(text: str, stored: str) -> None:
    """Only the two values change, not a comment, a space or an end of line around them."""
    assert with_token(text, "new", 9) == stored


def test_a_token_has_no_meaning_of_its_own() -> None:
    """What looks like a group of a replacement is a token like any other."""
    assert with_token("khomp_api_token => a", r"\1\g<0>", 9) == r"khomp_api_token => \1\g<0>"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"machine" => "status"."AMD"."AMD"', {("machine", ""): AMD}),
        ('"machine"."beep" => "status"."BEEP"."AMD"', {("machine", "beep"): BEEP}),
        ('"machine" . "beep" => "status" . "BEEP" . "AMD" # why', {("machine", "beep"): BEEP}),
        ('"a b"."" => "status"."AMD"."AMD"', {("a b", ""): AMD}),
        ('machine => "status"."AMD"."AMD"', {}),
        ('"machine" => "status"."AMD"', {}),
        ('"machine"."beep"."x" => "status"."AMD"."AMD"', {}),
        ('# "machine" => "status"."AMD"."AMD"', {}),
    ],
)
def test_the_status_map(text: str, found: dict[tuple[str, str], KhompResult]) -> None:
    """A conclusion, perhaps with a pattern, means three words."""
    assert read_status_map(text) == found


# ---- what an answer means


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (HeardCall(conclusion="machine"), AMD),
        (HeardCall(conclusion="machine", pattern="beep"), BEEP),
        (HeardCall(conclusion="machine", pattern="tone"), AMD),
        (HeardCall(conclusion="human"), UNKNOWN),
        (HeardCall(conclusion="human", hangup_origin="leg b", hangup_cause_recv="486"), UNKNOWN),
        (HeardCall(), UNKNOWN),
        (HeardCall(hangup_origin="leg a", hangup_cause_recv="486"), UNKNOWN),
        (HeardCall(hangup_origin="leg b"), UNKNOWN),
        (HeardCall(hangup_origin="leg b", hangup_cause_recv="404"), UNKNOWN),
        (
            HeardCall(hangup_origin="leg b", hangup_cause_recv="20003"),
            KhompResult("status", "KPNOCH", "CONGESTION"),
        ),
        (
            HeardCall(hangup_origin="leg b", hangup_cause_recv="30000"),
            KhompResult("status", "KPTMOT", "CONGESTION"),
        ),
        (HeardCall(hangup_origin="leg b", hangup_cause_recv="486"), KhompResult("status", "KPBUSY", "BUSY")),
        (
            HeardCall(hangup_origin="leg b", hangup_cause_recv="487", answer_ms=1),
            KhompResult("status", "KPDROP", "ANSWER"),
        ),
        (HeardCall(hangup_origin="leg b", hangup_cause_recv="487"), UNKNOWN),
        *(
            (
                HeardCall(hangup_origin="leg b", hangup_cause_recv=cause),
                KhompResult("status", "KPCONG", "CONGESTION"),
            )
            for cause in ("488", "500", "503", "603")
        ),
    ],
)
def test_what_a_call_means(call: HeardCall, result: KhompResult) -> None:
    """A conclusion is looked up, with its pattern first; without one the carrier's cause counts."""
    assert judge(call, read_status_map(STATUS_MAP)) == result


def test_errors_are_errors_in_any_case() -> None:
    """A map may say error, too, and then nothing follows."""
    assert UNKNOWN.is_error
    assert KhompResult("Error", "X", "Y").is_error
    assert not AMD.is_error


@pytest.mark.parametrize(
    ("answer", "call"),
    [
        ([{"conclusion": "machine", "pattern": "beep"}], HeardCall(conclusion="machine", pattern="beep")),
        ([{"action": "a"}, {"action": "b"}], HeardCall(action="a")),
        ({"conclusion": "machine"}, HeardCall(conclusion="machine")),
        (
            {"audio_date": 1, "answer_date": 2.5, "end_date": "3", "analyzer_date": "4x"},
            HeardCall(audio_ms=1, answer_ms=2, end_ms=3, analyzer_ms=4),
        ),
        (
            {"hangup_cause_recv": 486, "hangup_origin": "leg b"},
            HeardCall("", 0, 0, 0, 0, "", "", "", "leg b", "486"),
        ),
        ({"audio_date": -1, "answer_date": 10**15, "end_date": None, "analyzer_date": []}, HeardCall()),
        ({"conclusion": None, "pattern": ["x"], "action": True, "other": 1}, HeardCall()),
        ({"conclusion": "a\ud800b"}, HeardCall(conclusion="a?b")),
        ([], HeardCall()),
        ([7], HeardCall()),
        (None, HeardCall()),
        ("text", HeardCall()),
    ],
)
def test_an_answer(answer: object, call: HeardCall) -> None:
    """Whatever comes is read as far as it makes sense, and can be stored."""
    assert read_call(answer) == call


# ---- the service


class _Answering(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        """Note the question and answer it."""
        length = int(self.headers["Content-Length"])
        question = json.loads(self.rfile.read(length))
        self.server.asked.append((self.path, self.headers["Authorization"], question))
        answer = self.server.answers.get(question["method"], {"error": {"code": -32601}})
        if isinstance(answer, int):
            self.send_response(answer)
            self.send_header("Location", f"{self.server.url}/elsewhere")
            self.end_headers()
            return
        body = (
            answer
            if isinstance(answer, bytes)
            else json.dumps({"jsonrpc": "2.0", "id": 1, **answer}).encode()
        )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Be silent."""


class Service(ThreadingHTTPServer):
    """KHOMP's service.

    Attributes:
        url: How it is reached.
        asked: Path, authorization and question of each request.
        answers: What it says, by method: the members of a JSON-RPC answer, plain bytes, or a status.
    """

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        scheme = "http"
        if context is not None:
            scheme = "https"
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self.server_address[1]}"
        self.asked: list[tuple[str, str | None, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {
            "SessionLogin": {"result": {"token": "token-1"}},
            "CallList": {"result": [{"conclusion": "machine"}]},
        }

    def handle_error(self, request: object, client_address: object) -> None:
        """Be silent about clients that do not trust us."""

    @property
    def methods(self) -> list[str]:
        """What was called, in order."""
        return [question["method"] for _, _, question in self.asked]

    @classmethod
    @contextmanager
    def running(cls, context: ssl.SSLContext | None = None) -> Iterator[Service]:
        """Run one."""
        with cls(context) as service:
            threading.Thread(target=service.serve_forever, args=(0.02,), daemon=True).start()
            yield service
            service.shutdown()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """Run the service."""
    monkeypatch.setenv("no_proxy", "*")
    with Service.running() as service:
        yield service


# ---- with rows


def leg_to(tables: Tables, called: str = "913125551212", code: str = CODE, **options: Any) -> Leg:
    """Return a request for a called extension."""
    agi = {"extension": called, "callerid": "unknown", "calleridname": code}
    return leg_of(tables, agi=agi, **{"khomp": True, "khomp_timeout_s": 5.0, **options})


def settings_text(url: str, **entries: str) -> str:
    """Return the text of a container."""
    known = {
        "khomp_api_url": f"{url}/api",
        "khomp_api_login_url": f"{url}/login",
        "khomp_api_user": "secret-user",
        "khomp_api_pass": "secret-password",
        "khomp_api_check_ssl": "1",
        "khomp_header": "KHOMPID",
        "khomp_id_format": "CALLERCODE_CAMP_EXTERNIP",
        "khomp_api_token": "TOKENTOKENTOKEN",
        "khomp_api_token_expire": "0",
    }
    return "".join(f"{key} => {value}\n" for key, value in (known | entries).items())


def load(rows: VicidialTables, text: str, **campaign: str) -> None:
    """Have one campaign with KHOMP, its settings, a map, and the row of a call that was announced."""
    containers = [("KHOMPSETTINGS", text), ("KHOMPSTATUSMAP", STATUS_MAP)]
    given: list[tuple[str, Row]] = [
        ("vicidial_campaigns", {"campaign_id": "TESTCAMP", "amd_type": "KHOMP", **campaign}),
        ("vicidial_khomp_log", {"caller_code": CODE, "server_ip": SERVER_IP, "khomp_id": CALL_ID}),
        ("vicidial_khomp_log", {"caller_code": CODE, "server_ip": SERVER_IP, "khomp_id": "other"}),
    ]
    given += [
        ("vicidial_settings_containers", {"container_id": name, "container_entry": entry})
        for name, entry in containers
    ]
    rows.load(state_before(*given))


def ended(tables: Tables, **site: Any) -> tuple[KhompResult | None, Leg]:
    """End the call, and return what it means and its request."""
    leg = leg_to(tables, "h", **site)
    return end(leg, campaign_of(tables)), leg


def khomp_log(rows: VicidialTables) -> Row:
    """Return what was written into the row of the call."""
    found, other = rows.query("SELECT * FROM vicidial_khomp_log ORDER BY khomp_id = 'other'")
    assert other["vici_status"] is None
    return found


def container(rows: VicidialTables) -> str:
    """Return the text of the settings."""
    (row,) = rows.query(
        "SELECT container_entry FROM vicidial_settings_containers WHERE container_id = 'KHOMPSETTINGS'"
    )
    return str(row["container_entry"])


# ---- START


@pytest.mark.mariadb
def test_the_recorded_start(rows: VicidialTables, tables: Tables) -> None:
    """Headers and row are those of the recorded call."""
    scenario = recorded()["K01"]
    began_s = rows.load(scenario)
    before = rows.snapshot()
    leg = leg_to(tables, scenario.agi["extension"], scenario.agi["calleridname"], khomp=False)
    headers = start(leg, campaign_of(tables), CODE)
    assert [("header", *each) for each in headers] == [effect(line) for line in scenario.wire[1:]]
    changes = net_changes(before, rows.snapshot())
    assert compare(scenario.changed("vicidial_khomp_log"), changes, began_s) == []


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("called", "campaign_row", "text"),
    [
        ("913125551212", {"amd_type": "AMD"}, "khomp_header => H"),
        ("913125551212", {"amd_type": "CPD"}, "khomp_header => H"),
        ("8368", {}, "khomp_header => H"),
        ("08368", {}, "khomp_header => H"),
        ("913125551212", {}, "khomp_id_format => CALLERCODE"),
        ("913125551212", {"khomp_settings_container": "MISSING"}, "khomp_header => H"),
    ],
)
def test_starts_that_are_not_announced(
    rows: VicidialTables, tables: Tables, called: str, campaign_row: dict[str, str], text: str
) -> None:
    """Other campaigns, the leg to the routing extension, and settings without a header announce nothing."""
    load(rows, text, **campaign_row)
    before = rows.snapshot()
    assert start(leg_to(tables, called), campaign_of(tables), CODE) == []
    assert net_changes(before, rows.snapshot()) == []


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("id_format", "call_id"),
    [
        ("CALLERCODE", CODE),
        ("CALLERCODE_EXTERNIP", f"{CODE}_203.0.113.5"),
        ("CALLERCODE_CAMP_EXTERNIP", CALL_ID),
        ("", CODE),
        ("OTHER", CODE),
    ],
)
def test_what_a_call_is_announced_as(
    rows: VicidialTables, tables: Tables, id_format: str, call_id: str
) -> None:
    """The format says which of code, campaign and address are in it; a sub-account is not needed."""
    load(rows, f"khomp_header => H\nkhomp_id_format => {id_format}")
    assert start(leg_to(tables), campaign_of(tables), CODE) == [("X-H", call_id)]
    (row,) = rows.query("SELECT * FROM vicidial_khomp_log WHERE khomp_header = 'H'")
    assert row["khomp_id"] == call_id


class Doubting(Executor):
    """Carries out what is for the time after a lost connection, as if every statement had lost one."""

    def run(
        self,
        statements: Sequence[Statement],
        repeated: Sequence[Statement] | None = None,
        waits: bool = False,
    ) -> Done:
        """Carry out the second form."""
        return super().run(repeated or statements, waits=waits)


@pytest.mark.mariadb
def test_a_call_is_announced_once(rows: VicidialTables, database: Database) -> None:
    """Who lost the answer to his INSERT finds the row there; another call's row is no hindrance."""
    load(rows, "")
    tables = Tables(Doubting(database), SERVER_IP, 0.0, logging.getLogger("test"))
    for call_id in ("one", "one", "two"):
        tables.insert_khomp(CODE, "H", call_id, "CALLERCODE", "KHOMPSETTINGS")
    found = rows.query("SELECT khomp_id FROM vicidial_khomp_log WHERE khomp_header = 'H' ORDER BY khomp_id")
    assert [row["khomp_id"] for row in found] == ["one", "two"]


# ---- END


@pytest.mark.mariadb
def test_a_call_that_was_heard(rows: VicidialTables, tables: Tables, service: Service) -> None:
    """We log in, ask for the call by its header, write what was said, and tell what it means."""
    load(rows, settings_text(service.url))
    said = {
        "sip_call_id": "id@sip",
        "audio_date": 1_700_000_010_250,
        "answer_date": 1_700_000_020_000,
        "end_date": 1_700_000_030_999,
        "conclusion": "machine",
        "pattern": "beep",
        "action": "hangup",
        "hangup_origin": "leg a",
        "hangup_cause_sent": 16,
    }
    service.answers["CallList"] = {"result": [said]}
    result, leg = ended(tables)
    assert result == BEEP
    login = {"method": "SessionLogin", "params": {"user": "secret-user", "password": "secret-password"}}
    query = {"method": "CallList", "params": {"sip_header:X-KHOMPID": CALL_ID}}
    assert service.asked == [
        ("/login", None, {"jsonrpc": "2.0", "id": 1, **login}),
        ("/api", "Bearer token-1", {"jsonrpc": "2.0", "id": 1, **query}),
    ]
    row = khomp_log(rows)
    assert {
        name: row[name] for name in ("sip_call_id", "conclusion", "pattern", "action", "hangup_origin")
    } == {name: said[name] for name in ("sip_call_id", "conclusion", "pattern", "action", "hangup_origin")}
    assert str(row["audio_date"]) == f"{Moment.at(1_700_000_010).text}.250000"
    assert str(row["answer_date"]) == Moment.at(1_700_000_020).text
    assert (row["analyzer_date"], row["hangup_cause_recv"]) == (None, None)
    assert (row["hangup_cause_sent"], row["vici_action"], row["vici_status"]) == ("16", "status", "BEEP")
    assert 0 < float(row["hangup_query_time"]) < 5
    assert 0 < float(row["hangup_auth_time"]) < 5
    assert leg.outside_s > 0


@pytest.mark.mariadb
def test_a_token_is_kept(rows: VicidialTables, database: Database, service: Service) -> None:
    """One login does for an hour: the token is stored, and the settings that were cached are read anew."""
    text = settings_text(service.url)
    load(rows, text)
    tables = tables_of(database, 3600.0)
    assert ended(tables)[0] == AMD
    assert ended(tables)[0] == AMD
    assert service.methods == ["SessionLogin", "CallList", "CallList"]
    assert service.asked[2][1] == "Bearer token-1"
    assert container(rows) == with_token(text, "token-1", EXPIRES)
    assert khomp_log(rows)["hangup_auth_time"] == "0.000"


@pytest.mark.mariadb
def test_an_operator_who_writes_at_the_same_time(
    rows: VicidialTables, database: Database, service: Service
) -> None:
    """What was changed since we read the settings is not overwritten, even by the case of a letter."""
    load(rows, settings_text(service.url))
    tables = tables_of(database, 3600.0)
    tables.container("KHOMPSETTINGS")
    changed = settings_text(service.url, khomp_header="khompid")
    rows.query(
        "UPDATE vicidial_settings_containers SET container_entry = %s WHERE container_id = 'KHOMPSETTINGS'",
        [changed],
    )
    assert ended(tables)[0] == AMD
    assert container(rows) == changed


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("entries", "authorization"),
    [
        ({"khomp_api_token": "good", "khomp_api_token_expire": str(NOW.epoch + 1)}, "Bearer good"),
        ({"khomp_api_token": "good", "khomp_api_proxied": "true"}, "Bearer good"),
        ({"khomp_api_proxied": "true"}, None),
    ],
)
def test_calls_that_need_no_login(
    rows: VicidialTables, tables: Tables, service: Service, entries: dict[str, str], authorization: str | None
) -> None:
    """With a token that is good, or behind a proxy that logs in, the question is asked at once."""
    text = settings_text(service.url, **entries)
    load(rows, text)
    assert ended(tables)[0] == AMD
    assert [(path, token) for path, token, _ in service.asked] == [("/api", authorization)]
    assert container(rows) == text


@pytest.mark.mariadb
def test_a_token_may_be_the_whole_answer(rows: VicidialTables, tables: Tables, service: Service) -> None:
    """A login's answer may be the token itself."""
    load(rows, settings_text(service.url))
    service.answers["SessionLogin"] = {"result": "plain"}
    assert ended(tables)[0] == AMD
    assert service.asked[1][1] == "Bearer plain"


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("site", "campaign"), [({"khomp": False}, {}), ({}, {"amd_type": "CPD"}), ({}, {"amd_type": "AMD"})]
)
def test_calls_about_which_nobody_asks(
    rows: VicidialTables, tables: Tables, service: Service, site: dict[str, Any], campaign: dict[str, str]
) -> None:
    """Unless the operator wants it and the campaign uses it, nothing is asked and nothing changes."""
    load(rows, settings_text(service.url), **campaign)
    before = rows.snapshot()
    assert ended(tables, **site)[0] is None
    assert service.asked == []
    assert net_changes(before, rows.snapshot()) == []


def test_nobody_asks_by_default() -> None:
    """A stock VICIdial asks in vain, so asking is for those who want it."""
    assert not Site(SERVER_IP).khomp


@pytest.mark.mariadb
def test_a_call_that_means_nothing(rows: VicidialTables, tables: Tables, service: Service) -> None:
    """What no map knows has no effect on the call, but stands in its row."""
    load(rows, settings_text(service.url))
    service.answers["CallList"] = {"result": []}
    assert ended(tables)[0] is None
    row = khomp_log(rows)
    assert (row["vici_action"], row["vici_status"], row["conclusion"]) == ("ERROR", "KPEROR", None)


_DEEP: Final = b"[" * 100_000


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("method", "answer", "note"),
    [
        ("SessionLogin", 401, "KHOMP: SessionLogin: HTTP status 401"),
        ("SessionLogin", 302, "KHOMP: SessionLogin: HTTP status 302"),
        (
            "SessionLogin",
            {"error": {"message": "secret-user unknown"}},
            "KHOMP: SessionLogin: the service refuses",
        ),
        ("SessionLogin", {"result": {}}, "KHOMP: SessionLogin: no token in the answer"),
        ("SessionLogin", {"result": {"token": 7}}, "KHOMP: SessionLogin: no token in the answer"),
        ("SessionLogin", {"result": "secret\r\nX: y"}, "KHOMP: SessionLogin: no token in the answer"),
        ("SessionLogin", {"result": "secret # x"}, "KHOMP: SessionLogin: no token in the answer"),
        ("CallList", 500, "KHOMP: CallList: HTTP status 500"),
        ("CallList", {}, "KHOMP: CallList: the service refuses"),
        ("CallList", b"[]", "KHOMP: CallList: the service refuses"),
        ("CallList", b"<html>secret", "KHOMP: CallList: JSONDecodeError"),
        ("CallList", b"\xff\xfe\xfd", "KHOMP: CallList: UnicodeDecodeError"),
        ("CallList", _DEEP, "KHOMP: CallList: RecursionError"),
    ],
)
def test_answers_that_are_none(
    rows: VicidialTables, tables: Tables, service: Service, method: str, answer: object, note: str
) -> None:
    """They have no effect on the call, and the note says what is wrong without a secret."""
    load(rows, settings_text(service.url))
    service.answers[method] = answer
    result, leg = ended(tables)
    assert result is None
    assert leg.notes == [note]
    assert service.methods[-1] == method
    assert khomp_log(rows)["vici_status"] is None


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.9:1", "[Errno 111] Connection refused"),
        ("file:///etc", "unknown url type: file"),
        ("nowhere", "ValueError"),
        ("http://127.0.0.9:secret", "InvalidURL"),
    ],
)
def test_services_that_are_not_there(rows: VicidialTables, tables: Tables, url: str, reason: str) -> None:
    """They have no effect on the call, and the note says why."""
    load(rows, settings_text(url))
    result, leg = ended(tables)
    assert result is None
    assert leg.notes == [f"KHOMP: SessionLogin: {reason}"]


@pytest.mark.mariadb
def test_a_service_that_says_nothing(rows: VicidialTables, tables: Tables) -> None:
    """A call waits for it no longer than the operator allows."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        load(rows, settings_text(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        result, leg = ended(tables, khomp_timeout_s=0.1)
    assert result is None
    assert leg.notes == ["KHOMP: SessionLogin: timed out"]
    assert 0.1 <= leg.outside_s < 3


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    """Make a certificate that nobody vouches for."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.mariadb
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl, which makes the certificate")
@pytest.mark.parametrize(("check", "result"), [("0", AMD), ("1", None)])
def test_a_service_that_nobody_vouches_for(
    rows: VicidialTables,
    tables: Tables,
    self_signed: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
    check: str,
    result: KhompResult | None,
) -> None:
    """It is not trusted unless the settings say that its certificate does not matter."""
    monkeypatch.setenv("no_proxy", "*")
    with Service.running(self_signed) as service:
        load(rows, settings_text(service.url, khomp_api_check_ssl=check))
        found, leg = ended(tables)
        assert found == result
        assert ("CERTIFICATE_VERIFY_FAILED" in "".join(leg.notes)) is (result is None)
        assert bool(service.asked) is (result is not None)
