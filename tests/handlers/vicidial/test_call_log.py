"""One request of VICIdial's dialplan in a worker of this process: options, log files, what a worker keeps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from ports import closed_port
from vicidial.playing import SERVER_IP
from vicidial.tables import Tables
from vicidial_database import pool_route
from vicidial_staged_site import OTHER_SERVER, StagedSite, call_of, hangup_request, made_site, parked, without

from fastagi_pool.errors import DatabaseUnavailable
from fastagi_pool.stage import Stage
from fastagi_pool.testing import AgiStatus, Caller

pytest_plugins = ["vicidial_fixtures"]
pytestmark = pytest.mark.mariadb

_STAMP: Final = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


# ---- which requests


@pytest.mark.parametrize("script", ["VD_hangup--HVcauses--PRI", "Call_log", "xcall_log", "log", ""])
@pytest.mark.parametrize("extension", ["913125551212", "h"])
def test_a_request_for_something_else_does_nothing(
    site: StagedSite, refusing_port: int, script: str, extension: str
) -> None:
    """Only ``call_log`` is served: others end well at once, even while the database is away."""
    site.databases = away(site.databases, refusing_port)
    result = site.play(call_of("S01", request=f"agi://127.0.0.1:4577/{script}", extension=extension))

    assert (result.outcome, result.status, result.commands) == ("ok", AgiStatus.SUCCESS, [])


# ---- options


@pytest.mark.parametrize(
    ("tech_cause", "strip", "reason"),
    [
        ("SIP 200 OK)", False, "OK)"),
        ("SIP 200 OK)", True, "OK"),
        ("SIP 480 Gone (for now)", True, "Gone (for now)"),
        ("SIP 480 Gone (for now))", True, "Gone (for now)"),
    ],
)
def test_strip_parenthesis(site: StagedSite, tech_cause: str, strip: bool, reason: str) -> None:
    """One parenthesis too many is taken off both rows if the operator wants it; one that closes stays."""
    call = call_of("O15", request=hangup_request(tech_cause=tech_cause))
    site.run(call, {"strip_parenthesis": strip})

    assert site.rows("vicidial_carrier_log", "sip_hangup_reason") == [(reason,)]
    assert site.rows("vicidial_dial_log", "sip_hangup_reason") == [(reason,)]


@pytest.mark.parametrize(
    ("settings_ttl", "second"),
    [(0, 'EXEC EXEC Set(_CAMPDTO=38) ""'), (3600, 'EXEC EXEC Set(_CAMPDTO=26) ""')],
)
def test_settings_ttl(site: StagedSite, settings_ttl: int, second: str) -> None:
    """With 0 a changed setting counts for the very next call; otherwise the known one does for its time."""
    call = call_of("S05")
    site.load(call)
    options = {"settings_ttl": settings_ttl}
    first = site.play(call, options).commands[1]
    site.tables.query("UPDATE vicidial_campaigns SET manual_dial_timeout = '38'")

    assert first == 'EXEC EXEC Set(_CAMPDTO=26) ""'
    assert site.play(call, options).commands[1] == second


def test_routes_of_two_servers_in_one_worker(site: StagedSite, agi_call: Stage, tmp_path: Path) -> None:
    """Each route writes its own server's address and obeys its own row of ``servers``."""
    row = {"server_id": "S2", "server_ip": OTHER_SERVER, "carrier_logging_active": "N"}
    site.load(call_of("E15", ("servers", row)))
    routes = []
    for script, server_ip in (("call_log*", SERVER_IP), ("call_log_too*", OTHER_SERVER)):
        words = pool_route(tmp_path, settings_ttl=0) | {"glob": script, "priority": len(script)}
        words["options"] = {**words["options"], "server_ip": server_ip}
        del words["default"]
        routes.append(words)
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({"databases": site.databases, "routes": routes}))
    for number, script in enumerate(("call_log", "call_log_too", "call_log", "call_log_too")):
        caller = Caller(extension="8500", uniqueid=f"1700000001.{number}")
        agi_call.configured(path, script, caller=caller)
    hangup = "--HVcauses--PRI-----NODEBUG-----16-----ANSWER-----30-----20-----SIP 200 OK"
    for number, script in enumerate(("call_log", "call_log_too")):
        caller = Caller(
            name=call_of("E15").agi["calleridname"], extension="h", uniqueid=f"1700000001.{number}"
        )
        agi_call.configured(path, f"{script}{hangup}", caller=caller)

    started = site.rows("call_log", "uniqueid", "server_ip")[1:]
    assert [server for _, server in started] == [SERVER_IP, OTHER_SERVER, SERVER_IP, OTHER_SERVER]
    assert site.rows("vicidial_carrier_log", "uniqueid", "server_ip") == [("1700000001.0", SERVER_IP)]


# ---- the database is away


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """A port of this machine at which nobody listens, and nobody will."""
    with closed_port() as port:
        yield port


def away(databases: Mapping[str, Any], port: int) -> dict[str, Any]:
    """Give the same databases at a port at which nobody listens."""
    vicidial = databases["vicidial"]
    url = re.sub(r"@127\.0\.0\.1:\d+/", f"@127.0.0.1:{port}/", vicidial["url"])
    return {"vicidial": {**vicidial, "url": url, "required_at_boot": False}}


@pytest.mark.parametrize("name", ["S05", "E15"])
def test_the_database_is_away(
    site: StagedSite, refusing_port: int, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """The call is over soon as ``dbdown``: a failure to the dialplan, without a traceback to anybody."""
    site.databases = away(site.databases, refusing_port)
    result = site.play(call_of(name), catch=True)

    assert isinstance(result.error, DatabaseUnavailable)
    assert (result.outcome, result.status) == ("dbdown", AgiStatus.FAILURE)
    assert "SET VARIABLE FAGI_STATUS DBDOWN" in result.commands
    assert "Traceback" not in "\n".join(result.commands) + caplog.text
    assert result.faults == ()


# ---- log files


@pytest.mark.parametrize(
    ("agi_output", "in_file", "in_stderr"),
    [("NONE", 0, 0), ("FILE", 2, 0), ("STDERR", 0, 2), ("BOTH", 2, 2)],
)
def test_agi_output(
    site: StagedSite, capfd: pytest.CaptureFixture[str], agi_output: str, in_file: int, in_stderr: int
) -> None:
    """The server's row says where the debug lines of a START and an END go: nowhere, to a file, to stderr."""
    start, end = call_of("S01"), without(call_of("E02"), "call_log")
    site.load(start)
    site.tables.query("UPDATE servers SET agi_output = %s", [agi_output])
    site.play(start)
    site.play(end)

    pattern = re.compile(rf"{_STAMP}\|VDfastAGI\|call_log\|(START|END) {re.escape(start.agi['uniqueid'])}\|")
    stderr = [line for line in capfd.readouterr().err.splitlines() if "|VDfastAGI|" in line]
    assert [len(site.lines("FASTagiout")), len(stderr)] == [in_file, in_stderr]
    assert all(pattern.match(line) for line in [*site.lines("FASTagiout"), *stderr])


@pytest.mark.parametrize("agi_output", ["NONE", "FILE"])
def test_an_end_that_asks_for_it_is_written_down(site: StagedSite, agi_output: str) -> None:
    """``DEBUG`` in the URL of an END gives one line of all that is known, whatever ``agi_output`` says."""
    call = call_of("E03", request=hangup_request("DEBUG"), channel="Local/1@default;2")
    site.load(call)
    site.tables.query("UPDATE servers SET agi_output = %s", [agi_output])
    site.play(call)

    code, uid = call.agi["calleridname"], call.agi["uniqueid"]
    (line,) = site.lines("HANGUP_cause-output.txt")
    told = f"17|BUSY|30|10|{uid}|Local/1@default;2|h|Local|{code}|{code}|1|"
    assert re.fullmatch(rf"{_STAMP}\|{re.escape(told)}", line)


@pytest.mark.parametrize("debug", ["NODEBUG", "debug", "DEBUGS", "", " DEBUG"])
def test_an_end_that_does_not_ask_is_not_written_down(site: StagedSite, debug: str) -> None:
    """Anything but exactly ``DEBUG`` gives no line."""
    site.run(call_of("E03", request=hangup_request(debug)))

    assert site.closed()
    assert site.lines("HANGUP_cause-output.txt") == []


def test_a_start_with_the_url_of_a_hangup_is_no_end(site: StagedSite) -> None:
    """A START whose URL asks for the line is stored as any other, and gives no line."""
    site.run(call_of("S01", request=hangup_request("DEBUG")))

    assert len(site.rows("call_log", "uniqueid")) == 1
    assert site.lines("HANGUP_cause-output.txt") == []


def test_an_end_that_is_left_to_another_server_is_not_written_down(site: StagedSite) -> None:
    """An END of a call that is parked on another server is skipped as a whole, its line included."""
    call = call_of("E03", parked(OTHER_SERVER, "SIP/x"), request=hangup_request("DEBUG"))
    site.run(call)

    assert site.closed() == []
    assert site.lines("HANGUP_cause-output.txt") == []


def test_what_is_written_down_is_what_became_of_the_request(site: StagedSite) -> None:
    """The line of a manual call has the leg that was closed, and its code is cut at the first space."""
    code = "M1202150310000000101"
    leg = ("call_log", {"uniqueid": "1700000000.27", "channel": "SIP/x-1", "caller_code": code})
    call = call_of("E12", leg, calleridname=f"{code} x", request=hangup_request("DEBUG"))
    site.run(call)

    (line,) = site.lines("HANGUP_cause-output.txt")
    assert line.split("|")[5:12] == ["1700000000.27", "SIP/x-1", "h", "Local", code, f"{code} x", "1"]


@pytest.mark.parametrize(
    ("name", "agi_output", "told"),
    [
        ("A01", "FILE", ["101|3125553434|TESTCAMP|ALT|25|hopper insert|"]),
        ("A01", "STDERR", ["101|3125553434|TESTCAMP|ALT|25|hopper insert|"]),
        ("A01", "NONE", []),
        ("A02", "FILE", ["101|12345|TESTCAMP|ALT|0|hopper skip|ALT phone invalid|"]),
        ("A03", "FILE", []),
    ],
)
def test_decisions_on_further_numbers_are_told(
    site: StagedSite, name: str, agi_output: str, told: list[str]
) -> None:
    """What was looked at to be dialled next has its line, in a file of its own, unless logging is off."""
    call = call_of(name)
    site.load(call)
    site.tables.query("UPDATE servers SET agi_output = %s", [agi_output])
    site.play(call)

    assert [re.sub(rf"^{_STAMP}\|VDfastAGI\|", "", line) for line in site.lines("auto-alt-dial")] == told


def test_a_folder_that_is_missing_harms_no_call(site: StagedSite, tmp_path: Path) -> None:
    """Where VICIdial's folder of logs does not exist, a call does all but its lines, and ends well."""
    site.logs = tmp_path / "missing"
    result = site.run(call_of("A01", request=hangup_request("DEBUG")))

    assert (result.outcome, len(site.rows("vicidial_hopper", "lead_id"))) == ("ok", 1)


# ---- what a worker keeps


def open_files(folder: Path) -> list[Path]:
    """Give the files of a folder that this process has open."""
    targets = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [target for target in targets if target.parent == folder]


def test_teardown_closes_the_files(rows: Tables, tmp_path: Path) -> None:
    """Log files stay open between calls, and are closed when the worker ends."""
    with Stage() as worker:
        site = made_site(rows, worker, tmp_path)
        site.run(call_of("A01", request=hangup_request("DEBUG")))
        assert len(open_files(tmp_path)) == 3

    assert open_files(tmp_path) == []


def test_pauses_are_not_the_databases_time(site: StagedSite) -> None:
    """What a call waited for its START, nearly all of its time, is not told as time of the database."""
    wait_s = 0.3
    call = without(call_of("E02"), "call_log")
    record = site.run(call, {"start_wait": wait_s}).record

    assert record is not None
    assert 0 < record.database_s < record.total_s / 2


def test_a_row_that_is_lost_is_no_success(site: StagedSite) -> None:
    """What the server refuses for good keeps nothing else from being written, and the call is a failure."""
    call = call_of("E01")
    site.load(call)
    site.tables.query("RENAME TABLE vicidial_dial_log TO vicidial_dial_log_away")
    try:
        result = site.play(call, catch=True)
    finally:
        site.tables.query("RENAME TABLE vicidial_dial_log_away TO vicidial_dial_log")

    assert (result.outcome, result.status) == ("error", AgiStatus.FAILURE)
    assert site.closed() == [call.agi["uniqueid"]]
    assert site.rows("vicidial_carrier_log", "uniqueid") == [(call.agi["uniqueid"],)]


@pytest.mark.parametrize("lead", ["", "0000000000"])
def test_a_name_that_begins_like_a_manual_code(site: StagedSite, lead: str) -> None:
    """A caller named MOBILE has nothing to do with other legs of the same second, and closes his own."""
    end = call_of("E02", calleridname=f"MOBILE{lead}", callerid="unknown")
    uid, code = end.agi["uniqueid"], f"MOBILE{lead}"
    legs = [
        ("call_log", {"uniqueid": each, "channel": "SIP/a", "caller_code": code, "start_epoch": "{ep-9}"})
        for each in ("1700000000.11", uid, "1700000000.99")
    ]
    site.run(replace(end, rows=tuple(legs)))

    assert site.closed() == [uid]
    assert site.rows("vicidial_carrier_log", "uniqueid") == [(uid,)]
