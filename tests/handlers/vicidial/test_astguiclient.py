"""fastagi_pool.handlers.vicidial.astguiclient: VICIdial's configuration file, and what becomes of it."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mariadb import MariaDBServer

from fastagi_pool.application import database_settings
from fastagi_pool.config import LoadedConfig, load, load_text
from fastagi_pool.database import Database
from fastagi_pool.errors import OperatorError
from fastagi_pool.handlers.vicidial.astguiclient import (
    AstGuiClient,
    Mapped,
    find_socket,
    mapping,
    parse,
    read,
    to_yaml,
)
from fastagi_pool.routeconfig import HangupPolicy
from fastagi_pool.schema import effective

SAMPLE: Final = Path(__file__).resolve().parents[3] / "conf" / "vicidial.yaml"
#: What VICIdial's installer writes for a machine with this address.
INSTALLED: Final = """\
# astguiclient.conf - configuration elements
# edit this file with care; everything relies on it
PATHhome => /usr/share/astguiclient
PATHlogs => /var/log/astguiclient
PATHagi => /var/lib/asterisk/agi-bin
PATHweb => /var/www/html
VARserver_ip => 192.0.2.15

VARDB_server => localhost
VARDB_database => asterisk
VARDB_user => cron
VARDB_pass => 1234
VARDB_port => 3306

VARactive_keepalives => 1234568
VARfastagi_log_min_servers => 3
VARfastagi_log_max_servers => 16
VARfastagi_log_min_spare_servers => 2
VARfastagi_log_max_spare_servers => 8
VARfastagi_log_max_requests => 1000
VARfastagi_log_checkfordead => 30
VARfastagi_log_checkforwait => 60
"""
MEANT: Final = AstGuiClient(
    path_logs="/var/log/astguiclient",
    path_home="/usr/share/astguiclient",
    server_ip="192.0.2.15",
    db_server="localhost",
    db_database="asterisk",
    db_user="cron",
    db_pass="1234",
    db_port=3306,
    min_servers=3,
    max_servers=16,
    min_spare_servers=2,
    max_spare_servers=8,
    max_requests=1000,
    checkfordead_s=30,
    checkforwait_s=60,
    unreadable={},
)


def installed(*more: str) -> AstGuiClient:
    """Read the installer's file with lines behind it, which win."""
    return parse("\n".join((INSTALLED, *more)))


def without(key: str) -> str:
    """The installer's file without the line of a key."""
    return re.sub(rf"^{key} .*\n", "", INSTALLED, flags=re.MULTILINE)


def loaded(settings: AstGuiClient) -> LoadedConfig:
    """The configuration that settings mean, through the loader of every configuration."""
    return load_text(to_yaml(settings), "astguiclient.conf", Path("/"), {})


def password_in(config: LoadedConfig) -> str:
    """The password as the driver gets it."""
    return config.config.databases["vicidial"].password


# ---- the file


def test_the_installers_file() -> None:
    """Every key of the installer's file is read."""
    assert parse(INSTALLED) == MEANT


def test_no_key_is_taken_for_another() -> None:
    """Each key's value reaches its own setting: here no two are alike, and none is a default."""
    values = ("/home", "/logs", "agi", "web", "10.0.0.9", "db", "calls", "me", "secret", "3307", "none")
    wanted = iter((*values, *map(str, range(101, 108))))
    text = re.sub(r"=> .*", lambda _: f"=> {next(wanted)}", INSTALLED)
    assert parse(text) == AstGuiClient(
        path_logs="/logs",
        path_home="/home",
        server_ip="10.0.0.9",
        db_server="db",
        db_database="calls",
        db_user="me",
        db_pass="secret",
        db_port=3307,
        min_servers=101,
        max_servers=102,
        min_spare_servers=103,
        max_spare_servers=104,
        max_requests=105,
        checkfordead_s=106,
        checkforwait_s=107,
        unreadable={},
    )


@pytest.mark.parametrize(
    ("line", "password"),
    [
        ("VARDB_pass => abc", "abc"),
        ("  \t VARDB_pass=abc\r", "abc"),
        ("V A R D B _ p a s s > a b > c", "VARDB_passabc"),
        ("VARDB_pass => a b\tc", "abc"),
        ("VARDB_pass => abc # comment", "abc"),
        ("VARDB_pass => abc ; comment # another", "abc"),
        ("VARDB_pass => abc # comment ; another", "abc"),
        ("VARDB_pass => a=b=c", "c"),
        ("VARDB_pass => abc=", ""),
        ("VARDB_pass =>", ""),
        ("VARDB_pass # => abc", "VARDB_pass"),
        ("VARDB_password => abc", "abc"),
        ("VARDB_pass => one\nVARDB_pass => two", "two"),
        ("VARDB_pass => one\nVARDB_pass =>", ""),
        ("#VARDB_pass => abc", "1234"),
        (";VARDB_pass => abc", "1234"),
        ("OLD_VARDB_pass => abc", "1234"),
        ("vardb_pass => abc", "1234"),
        ('VARDB_pass => "a$b\\c"', '"a$b\\c"'),
    ],
)
def test_a_line(line: str, password: str) -> None:
    """A line means what it means to VICIdial: no quotes, prefix of a key, last '=', last line."""
    assert installed(line).db_pass == password


@pytest.mark.parametrize(
    ("key", "name", "default"),
    [
        ("PATHlogs", "path_logs", "/var/log/astguiclient"),
        ("PATHhome", "path_home", "/usr/share/astguiclient"),
        ("VARDB_pass", "db_pass", ""),
        ("VARDB_port", "db_port", 3306),
        ("VARfastagi_log_min_servers", "min_servers", 3),
        ("VARfastagi_log_max_servers", "max_servers", 16),
        ("VARfastagi_log_min_spare_servers", "min_spare_servers", 2),
        ("VARfastagi_log_max_spare_servers", "max_spare_servers", 8),
        ("VARfastagi_log_max_requests", "max_requests", 1000),
        ("VARfastagi_log_checkfordead", "checkfordead_s", 30),
        ("VARfastagi_log_checkforwait", "checkforwait_s", 60),
    ],
)
def test_what_is_missing_has_a_default(key: str, name: str, default: object) -> None:
    """A key that is missing or empty has the installer's value, and nobody is told that it is unreadable."""
    for text in (without(key), f"{INSTALLED}{key} =>\n"):
        found = parse(text)
        assert getattr(found, name) == default
        assert found.unreadable == {}


@pytest.mark.parametrize("key", ["VARserver_ip", "VARDB_server", "VARDB_database", "VARDB_user"])
def test_what_must_be_there(key: str) -> None:
    """Without a server or a database the daemon could write no row: it says which key is missing."""
    for text in (without(key), f"{INSTALLED}{key} =>\n"):
        with pytest.raises(ValueError, match=rf"^{key} must be .*, but is missing$"):
            parse(text)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("PATHlogs => logs", "PATHlogs must be an absolute path, not 'logs'"),
        ("PATHhome /usr/share", "PATHhome must be an absolute path, not 'PATHhome/usr/share'"),
        ("VARDB_port => mysql", "VARDB_port must be a port from 1 to 65535, not 'mysql'"),
        ("VARDB_port => 0", "VARDB_port must be a port from 1 to 65535, not '0'"),
        ("VARDB_port => 65536", "VARDB_port must be a port from 1 to 65535, not '65536'"),
        (
            "VARDB_server => me:secret@db",
            "VARDB_server must be the name or address of the database's machine, not 'me:secret@db'",
        ),
        ("VARDB_user => cr\x1bon", "VARDB_user must be a user of the database, not 'cr\\x1bon'"),
        ("VARDB_database => a?b", "VARDB_database must be the name of the database, not 'a?b'"),
        (
            "PATHlogs => x\nVARDB_port => y",
            "PATHlogs must be an absolute path, not 'x'; VARDB_port must be a port from 1 to 65535, not 'y'",
        ),
    ],
)
def test_what_cannot_be_meant(line: str, problem: str) -> None:
    """A value that cannot work is refused before anything runs, all of them in one line."""
    with pytest.raises(ValueError) as caught:
        installed(line)
    assert str(caught.value) == problem


@pytest.mark.parametrize("value", ["many", "-1", "3.5", "1e3", "0x10", "\u0663", "123456789"])
def test_what_is_no_number_is_remembered(value: str) -> None:
    """A pool key that is no number has the default, and what stands there is kept for the operator."""
    found = installed(f"VARfastagi_log_max_requests => {value}")
    assert (found.max_requests, found.unreadable) == (1000, {"VARfastagi_log_max_requests": value})


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever stands in the file, reading it fails in no other way than by a ValueError."""
    try:
        parse(f"{INSTALLED}{text}")
    except ValueError:
        pass


def test_reading_the_file(tmp_path: Path) -> None:
    """A file is read by its bytes: a comment in another encoding does no harm."""
    path = tmp_path / "astguiclient.conf"
    path.write_bytes(b"# f\xfcr alle\n" + INSTALLED.encode())
    assert read(path) == MEANT


@pytest.mark.parametrize("name", ["none.conf", ""])
def test_a_file_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    """A missing file, or a folder in its place, is one line that names it and says what is wanted."""
    path = tmp_path / name
    with pytest.raises(OperatorError, match=r"cannot be read: .*/etc/astguiclient\.conf") as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_meant(tmp_path: Path) -> None:
    """What is wrong in the file is told with its name."""
    path = tmp_path / "astguiclient.conf"
    path.write_text(without("VARDB_user"))
    with pytest.raises(OperatorError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: VARDB_user must be a user of the database, but is missing"


# ---- what it means


def test_the_configuration() -> None:
    """The installer's file becomes a pool that listens, connects and routes as VICIdial expects."""
    found = loaded(MEANT).config
    assert [str(address) for address in found.listen] == ["*:4577"]
    assert [str(network) for network in found.allow] == ["0.0.0.0/0", "::/0"]
    assert (found.workers, found.max_calls, found.watchdog) == (3, 1000, 30)
    database = found.databases["vicidial"]
    assert database.connect_urls() == ("mysql+pymysql://cron:1234@localhost:3306/asterisk",)
    assert (database.pool_size, database.idle_ping) == (5, 60)
    assert (database.sql_mode, database.multi_statements) == ("NO_ENGINE_SUBSTITUTION", True)
    (route,) = found.routes
    assert (route.default, route.on_hangup, route.databases) == (True, HangupPolicy.CONTINUE, ())
    assert route.handler == "fastagi_pool.handlers.vicidial.call_log:call_log"
    assert route.options == {
        "server_ip": "192.0.2.15",
        "path_logs": "/var/log/astguiclient",
        "path_home": "/usr/share/astguiclient",
    }


@pytest.mark.parametrize(
    ("lines", "url"),
    [
        (("VARDB_server => ::1",), "mysql+pymysql://cron:1234@[::1]:3306/asterisk"),
        (
            ("VARDB_port => 3307", "VARDB_user => a@b:c/d"),
            "mysql+pymysql://a%40b%3Ac%2Fd:1234@localhost:3307/asterisk",
        ),
        (
            ("VARDB_pass => p@/:$${HOME}",),
            "mysql+pymysql://cron:p%40%2F%3A%24%24%7BHOME%7D@localhost:3306/asterisk",
        ),
        (("VARDB_pass =>",), "mysql+pymysql://cron@localhost:3306/asterisk"),
        (("VARDB_database => a$${b",), "mysql+pymysql://cron:1234@localhost:3306/a$${b"),
    ],
)
def test_the_url(lines: tuple[str, ...], url: str) -> None:
    """No letter of a name or password means anything to the URL or to the YAML that it goes through."""
    assert loaded(installed(*lines)).config.databases["vicidial"].connect_urls() == (url,)


@pytest.mark.parametrize(
    "path", ["/var/l\N{LATIN SMALL LETTER O WITH DIAERESIS}gs", "/1e5", "/a$${b}", "/a'b\"c\\d"]
)
def test_paths_stay_themselves(path: str) -> None:
    """An option is the text of the file, whatever YAML would read in it."""
    assert loaded(installed(f"PATHlogs => {path}")).config.routes[0].options["path_logs"] == path


@given(st.binary().map(lambda data: bytes(byte for byte in data if byte not in b" >#;=\r\n\t")))
def test_any_password_arrives(secret: bytes) -> None:
    """Any bytes that the file can hold reach the driver, which sends text as Latin-1, as these very bytes."""
    text = INSTALLED.encode() + b"VARDB_pass => " + secret
    assert password_in(loaded(parse(text.decode("utf-8", "surrogateescape")))).encode("latin-1") == secret


@pytest.mark.parametrize(
    "secret", ["null", "~", "no", "0123", "1e5", "${HOME}", "$$", "'\"\\", "*a", "-", "[", "{a}"]
)
def test_a_password_that_means_something_to_yaml(secret: str) -> None:
    """A password stays text, even one that would be a number, a truth value, nothing or a variable."""
    assert password_in(loaded(installed(f"VARDB_pass => {secret}"))) == secret


@pytest.mark.parametrize("secret", ["hunter2", "1234567", "hun'ter$2"])
def test_the_password_is_not_shown(secret: str) -> None:
    """Neither the settings nor the effective configuration show the password."""
    settings = installed(f"VARDB_pass => {secret}")
    config = loaded(settings)
    assert secret not in repr(settings)
    assert secret not in repr(config)
    assert secret not in effective(config.config)


@pytest.mark.mariadb
def test_a_password_that_is_not_ascii_logs_in(mariadb: MariaDBServer) -> None:
    """A password whose bytes are UTF-8 logs in as it does from VICIdial's own programs, which send bytes."""
    mariadb.execute("CREATE USER cron@'127.0.0.1' IDENTIFIED BY 'p\u00e4ssw\u00f6rd\u20ac'")
    try:
        where = (
            "VARDB_server => 127.0.0.1",
            f"VARDB_port => {mariadb.port}",
            "VARDB_database => information_schema",
        )
        config = loaded(installed(*where, "VARDB_pass => p\u00e4ssw\u00f6rd\u20ac")).config
        database = Database(database_settings("vicidial", config.databases["vicidial"]))
        with database.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT @@sql_mode").scalar() == "NO_ENGINE_SUBSTITUTION"
        database.close()
    finally:
        mariadb.execute("DROP USER cron@'127.0.0.1'")


@pytest.mark.parametrize(("host", "found"), [("localhost", True), ("127.0.0.1", False), ("db1", False)])
def test_the_local_socket(host: str, found: bool, tmp_path: Path) -> None:
    """As for MySQL's own client, localhost is the local socket if there is one; a plain file is none."""
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        places = [tmp_path / "missing", tmp_path / "file", tmp_path / "socket"]
        assert find_socket(host, places) == (tmp_path / "socket" if found else None)
    assert find_socket(host, places[:2]) is None


def test_the_url_of_a_local_socket() -> None:
    """The socket goes into the URL, encoded; the port stays and means nothing."""
    config = load_text(to_yaml(MEANT, Path("/run/my db/s.sock")), "astguiclient.conf", Path("/"), {})

    (url,) = config.config.databases["vicidial"].urls
    assert url.endswith("/asterisk?unix_socket=/run/my%20db/s.sock")


# ---- the pool keys


@pytest.mark.parametrize(
    ("minimum", "maximum", "workers", "pool_size"),
    [
        (3, 16, 3, 5),
        (1, 16, 1, 16),
        (0, 16, 1, 16),
        (16, 16, 4, 4),
        (20, 18, 4, 4),
        (3, 0, 1, 1),
        (3, 3, 1, 3),
        (1, 1000, 1, 200),
        (9999, 9999, 512, 19),
    ],
)
def test_workers_and_connections(minimum: int, maximum: int, workers: int, pool_size: int) -> None:
    """Workers as asked for, but with four connections each; each key stays within what a pool can be."""
    settings = installed(
        f"VARfastagi_log_min_servers => {minimum}", f"VARfastagi_log_max_servers => {maximum}"
    )
    found = loaded(settings).config
    assert (settings.workers, settings.pool_size) == (workers, pool_size)
    assert (found.workers, found.databases["vicidial"].pool_size) == (workers, pool_size)


@pytest.mark.parametrize("number", [0, 1, 99999999])
def test_any_number_can_be_run(number: int) -> None:
    """The smallest and the largest number in every pool key is a configuration that loads."""
    keys = re.findall(r"^VARfastagi_\w+", INSTALLED, re.MULTILINE)
    found = loaded(installed(*(f"{key} => {number}" for key in keys))).config
    assert (found.max_calls, found.watchdog, found.databases["vicidial"].idle_ping) == (number,) * 3


def test_the_mapping() -> None:
    """Each pool key is told in one line: what it became, or why nothing had to be done."""
    settings = installed("VARfastagi_log_max_servers => 12", "VARfastagi_log_checkfordead => never")
    assert mapping(settings) == [
        Mapped("VARfastagi_log_min_servers", "3", "workers: 3"),
        Mapped(
            "VARfastagi_log_max_servers",
            "12",
            "databases.vicidial.pool_size: 4, the connections of each of 3 workers",
        ),
        Mapped(
            "VARfastagi_log_min_spare_servers",
            "2",
            "nothing to do: a worker serves many calls at once, so none needs to be spare",
        ),
        Mapped(
            "VARfastagi_log_max_spare_servers",
            "8",
            "nothing to do: the number of workers stays the same, so none is too many",
        ),
        Mapped("VARfastagi_log_max_requests", "1000", "max_calls: 1000, of each worker"),
        Mapped(
            "VARfastagi_log_checkfordead",
            "30 (the default: 'never' is no number)",
            "watchdog: 30s; who is stuck for so long is replaced",
        ),
        Mapped("VARfastagi_log_checkforwait", "60", "databases.vicidial.idle_ping: 60s"),
    ]


# ---- the sample


def sample(folder: Path, uncomment: bool = False) -> LoadedConfig:
    """Load conf/vicidial.yaml with its password in a file of ours."""
    text = SAMPLE.read_text()
    if uncomment:
        text = re.sub(r"^#(?=      )", "", text, flags=re.MULTILINE)
    (folder / "password").write_text("1234\n")
    path = folder / "vicidial.yaml"
    path.write_text(text.replace("/etc/fastagi-pool/vicidial-password", str(folder / "password")))
    return load(path, {})


def test_the_sample_is_the_same(tmp_path: Path) -> None:
    """conf/vicidial.yaml is what the installer's file means."""
    assert sample(tmp_path).config == loaded(MEANT).config


def test_the_sample_shows_every_option(tmp_path: Path) -> None:
    """The commented options of the sample load, with these values, as the types that they need."""
    options: dict[str, Any] = {
        **loaded(MEANT).config.routes[0].options,
        "database": "vicidial",
        "settings_ttl": 1.0,
        "start_wait": 1.0,
        "khomp": False,
        "khomp_timeout": 3.0,
        "queue_timeout": 3.0,
        "strip_parenthesis": False,
        "close_local_manual": False,
        "closer_by_uniqueid": False,
        "threshold_always": False,
        "addr3_own_area_code": True,
        "empty_timeout": True,
        "plain_commands": False,
    }
    found = sample(tmp_path, uncomment=True).config.routes[0].options
    assert {name: (value, type(value)) for name, value in found.items()} == {
        name: (value, type(value)) for name, value in options.items()
    }
