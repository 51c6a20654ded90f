"""fastagi_pool.drivers: how URLs are read, and what an error says about its server."""

from __future__ import annotations

import pymysql
import pytest
from sqlalchemy.engine import make_url

from fastagi_pool.drivers import DatabaseSettings, Driver, driver_for, read_urls
from fastagi_pool.errors import OperatorError

MYSQL = "mysql+pymysql://pool@db/calls"
READ_ONLY = pymysql.OperationalError(1290, "The server is running with the --read-only option")


def driver(url: str = MYSQL, writable: bool = True) -> Driver:
    """Choose the driver for a URL."""
    return driver_for(make_url(url), DatabaseSettings("main", (url,), writable=writable))


@pytest.mark.parametrize(
    ("url", "label"),
    [
        (MYSQL, "db:3306/calls"),
        ("mysql+pymysql://pool:secret@db:3307/calls", "db:3307/calls"),
        ("mysql+pymysql://pool@/calls?unix_socket=/run/mysqld.sock", "/run/mysqld.sock/calls"),
        ("sqlite:////var/lib/calls.db", "file /var/lib/calls.db"),
        ("sqlite://", "memory"),
    ],
)
def test_a_label_tells_where_and_no_secret(url: str, label: str) -> None:
    """An operator reads host, port and database, or the file."""
    assert driver(url).label(make_url(url)) == label


def test_the_password_goes_where_none_is() -> None:
    """The password of the settings fills the URLs that have none, and no other."""
    urls = (MYSQL, "mysql+pymysql://pool:own@db/calls")
    assert [url.password for url in read_urls(DatabaseSettings("main", urls, "common"))] == ["common", "own"]


def test_all_urls_have_one_driver() -> None:
    """A fail-over list of different databases is the operator's to mend."""
    with pytest.raises(OperatorError, match="all with the same driver"):
        read_urls(DatabaseSettings("main", (MYSQL, "sqlite://")))


@pytest.mark.parametrize(
    ("error", "answered"),
    [
        (pymysql.OperationalError(1040, "Too many connections"), True),
        (pymysql.OperationalError(1045, "Access denied"), True),
        (pymysql.OperationalError(1053, "Server shutdown in progress"), False),
        (pymysql.OperationalError(2003, "Can't connect"), False),
        (pymysql.OperationalError(2013, "Lost connection"), False),
        (RuntimeError("a package is missing"), False),
    ],
)
def test_a_servers_own_word_is_a_sign_of_life(error: Exception, answered: bool) -> None:
    """A server that refuses in its own words lives; what the driver says by itself proves nothing."""
    assert driver().has_answered(error) is answered


@pytest.mark.parametrize(
    ("error", "demoted"),
    [
        (READ_ONLY, True),
        (pymysql.OperationalError(1836, "Running in read-only mode"), True),
        (pymysql.OperationalError(1290, "The server is running with --secure-file-priv"), False),
        (pymysql.OperationalError(1792, "Cannot execute statement in a READ ONLY transaction"), False),
        (ValueError("read-only"), False),
        (None, False),
    ],
)
def test_only_a_server_that_refuses_every_write_is_demoted(
    error: BaseException | None, demoted: bool
) -> None:
    """A forbidden option of another kind, or a transaction of the handler's making, blames no server."""
    assert driver().is_demoted(error) is demoted


def test_who_only_reads_meets_no_demotion() -> None:
    """Where nothing is to be written, a read-only server is as good as any."""
    assert not driver(writable=False).is_demoted(READ_ONLY)


def test_only_servers_are_watched() -> None:
    """SQLite has no server that could be asked, and neither has a driver that we do not know."""
    assert driver().watched
    assert not driver("sqlite://").watched
