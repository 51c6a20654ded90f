"""Values: what each kind of value is read from, what is refused, and what is written."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fastagi_pool.values import (
    MAX_DURATION_S,
    AbsolutePath,
    Command,
    DatabaseName,
    DatabaseUrls,
    ErrorPolicy,
    Fraction,
    HandlerName,
    ListenAddress,
    ListenKind,
    Network,
    Options,
    PathOrNothing,
    Position,
    ProcessText,
    Server,
    ServerAddress,
    Truth,
    VariableName,
    Whole,
    Workers,
    find_login,
    format_duration,
    format_size,
    parse_duration,
    parse_listen_address,
    parse_size,
)
from fastagi_pool.yamlfile import Bare

# -- Durations and sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("4h", 14400.0),
        ("1d", 86400.0),
        ("1h30m", 5400.0),
        ("1d1h1m1s1ms", 90061.001),
        ("1.5h", 5400.0),
        ("0", 0.0),
        ("0s", 0.0),
        ("2.5", 2.5),
        (30, 30.0),
        (0.25, 0.25),
        ("3650d", MAX_DURATION_S),
    ],
)
def test_parse_duration(text: object, seconds: float) -> None:
    """Every way to write a duration gives its seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "must be a duration"),
        ("-", "must be a duration"),
        ("5min", "must be a duration"),
        ("30m1h", "must be a duration"),
        ("1h 30m", "must be a duration"),
        ("5M", "must be a duration"),
        ("٣s", "must be a duration"),
        ("nan", "must be a duration"),
        ("inf", "must be a duration"),
        (float("nan"), "must be a duration"),
        (float("inf"), "ten years"),
        (float("-inf"), "negative"),
        (10**400, "ten years"),
        (-(10**400), "negative"),
        ("-5s", "negative"),
        (-1, "negative"),
        ("3651d", "ten years"),
        ("999999999999d", "ten years"),
        (True, "must be a duration"),
        (None, "must be a duration"),
        ([5], "not a list"),
        ({}, "not a mapping"),
    ],
)
def test_parse_duration_refuses(value: object, message: str) -> None:
    """What is no duration is refused with a message that says what one looks like."""
    with pytest.raises(ValueError, match=message):
        parse_duration(value)


@settings(derandomize=True)
@given(
    st.floats(min_value=0, max_value=MAX_DURATION_S, allow_subnormal=False).filter(
        lambda s: s == 0 or s > 1e-9
    )
)
def test_duration_survives_writing(seconds: float) -> None:
    """A duration that is written reads as exactly the same number."""
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0s"), (0.5, "500ms"), (60.0, "1m"), (5400.0, "1h30m"), (1.2345, "1.2345s")]
)
def test_format_duration(seconds: float, text: str) -> None:
    """A duration is written as people write it."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("64KB", 65536), ("256MB", 2**28), ("1GB", 2**30), ("512B", 512), ("100", 100), (100, 100), ("0", 0)],
)
def test_parse_size(text: object, size: int) -> None:
    """Every way to write a size gives its bytes, with units of 1024."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "value", ["", "1.5MB", "64K", "64kb", "KB", "1 GB", "1TB", 1.5, True, None, [], "9" * 40]
)
def test_parse_size_refuses(value: object) -> None:
    """What is no size is refused with a message that says what one looks like."""
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(value)


@pytest.mark.parametrize("value", ["-1KB", -1])
def test_parse_size_refuses_negative(value: object) -> None:
    """A size below zero is named as such."""
    with pytest.raises(ValueError, match="negative"):
        parse_size(value)


@settings(derandomize=True)
@given(st.integers(min_value=0, max_value=10**15 - 1))
def test_size_survives_writing(size: int) -> None:
    """A size that is written reads as exactly the same number."""
    assert parse_size(format_size(size)) == size


# -- Servers to forward calls to --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "written", "is_loopback"),
    [
        ("192.0.2.7:4573", "192.0.2.7", "192.0.2.7:4573", False),
        ("127.0.0.2:4573", "127.0.0.2", "127.0.0.2:4573", True),
        ("[2001:DB8:0::7]:4573", "2001:db8::7", "[2001:db8::7]:4573", False),
        ("[::1]:4573", "::1", "[::1]:4573", True),
        ("localhost:4573", "localhost", "localhost:4573", True),
        ("AGI-1.example.com.:4573", "agi-1.example.com.", "agi-1.example.com.:4573", False),
        ("agi_1:4573", "agi_1", "agi_1:4573", False),
    ],
)
def test_server_address(text: str, host: str, written: str, is_loopback: bool) -> None:
    """An address of a server is read, and written so that it is read as the same."""
    found = ServerAddress.parse(text)
    assert (found.host, found.port, str(found), found.is_loopback) == (host, 4573, written, is_loopback)
    assert ServerAddress.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "a port from 1 to 65535") for text in ("", "a", "a:", "a:0", "a:65536", "a:x", "a: 1")),
        *(
            (text, "an address or a host name")
            for text in (":1", "*:1", "a b:1", "-a:1", "a..b:1", "256.0.0.1:1", "1.2:1", "\u00e4:1", "[a]:1")
        ),
        (f"{'a' * 64}:1", "an address or a host name"),
        (f"{'a.' * 127}:1", "an address or a host name"),
        ("::1:1", "brackets around an IPv6 address"),
        ("[127.0.0.1]:1", "brackets around an IPv6 address"),
    ],
)
def test_server_address_refuses(text: str, message: str) -> None:
    """What leads to no server is refused before the first call looks for it."""
    with pytest.raises(ValueError, match=message):
        ServerAddress.parse(text)


# -- Addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:4577", ListenAddress(ListenKind.TCP, "127.0.0.1", 4577), True),
        ("127.9.9.9:0", ListenAddress(ListenKind.TCP, "127.9.9.9", 0), True),
        ("192.0.2.1:65535", ListenAddress(ListenKind.TCP, "192.0.2.1", 65535), False),
        ("[::1]:4577", ListenAddress(ListenKind.TCP, "::1", 4577), True),
        ("[2001:db8::1]:1", ListenAddress(ListenKind.TCP, "2001:db8::1", 1), False),
        ("*:4577", ListenAddress(ListenKind.TCP, "*", 4577), False),
        ("unix:/run/x.sock", ListenAddress(ListenKind.UNIX, path="/run/x.sock"), True),
        ("systemd", ListenAddress(ListenKind.SYSTEMD), False),
    ],
)
def test_listen_address(text: str, address: ListenAddress, loopback: bool) -> None:
    """An address is read, knows whether strangers can reach it, and gives its text back."""
    assert ListenAddress.parse(text) == address
    assert str(address) == text
    assert address.is_loopback is loopback


def test_listen_address_in_other_spellings() -> None:
    """Two spellings of one address are equal, so that duplicates are found."""
    assert ListenAddress.parse(":4577") == ListenAddress.parse("*:4577")
    assert ListenAddress.parse("[0:0::1]:1") == ListenAddress.parse("[::1]:1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("localhost:4577", "not a host name"),
        ("pbx.example.com:4577", "not a host name"),
        ("127.0.0.1", "with a port"),
        ("4577", "with a port"),
        ("127.0.0.1:", "with a port"),
        ("127.0.0.1:65536", "with a port"),
        ("127.0.0.1:-1", "with a port"),
        ("127.0.0.1:٣", "with a port"),
        ("127.0.0.1:4577 ", "with a port"),
        ("::1:4577", "brackets"),
        ("[127.0.0.1]:4577", "brackets"),
        ("999.0.0.1:1", "not a host name"),
        ("unix:relative.sock", "absolute path"),
        ("unix:", "absolute path"),
        ("unix:/" + "x" * 107, "more than 107 bytes"),
        ("", "with a port"),
    ],
)
def test_listen_address_refuses(text: str, message: str) -> None:
    """What is no address is refused with the reason."""
    with pytest.raises(ValueError, match=message):
        ListenAddress.parse(text)


@pytest.mark.parametrize("value", [None, 4577, ["127.0.0.1:4577"], {}])
def test_listen_address_of_another_type(value: object) -> None:
    """What is no text cannot be an address, and an address is taken as it is."""
    address = ListenAddress.parse("systemd")
    assert parse_listen_address(address) is address
    with pytest.raises(ValueError, match="must be an address, not"):
        parse_listen_address(value)


# -- Databases' URLs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("mysql://me@host/db", ("me", None)),
        ("mysql+pymysql://me:p@ss:w@host/db", ("me", "p@ss:w")),
        ("mysql://:secret@host", ("", "secret")),
        ("sqlite:////var/lib/calls.db", None),
        ("nothing of the kind", None),
    ],
)
def test_find_login(url: str, login: tuple[str, str | None] | None) -> None:
    """User and password are found as SQLAlchemy finds them: the password ends at the last ``@``."""
    found = find_login(url)
    assert (found and (found["user"], found["password"])) == login


# -- What the models are made of --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "written", "value"),
    [
        (Whole, Bare("12"), 12),
        (Whole, 12, 12),
        (Fraction, Bare("0.25"), 0.25),
        (Fraction, Bare("1"), 1.0),
        (Truth, Bare("Yes"), True),
        (Truth, Bare("off"), False),
        (Workers, Bare("auto"), "auto"),
        (Workers, Bare("512"), 512),
        (Network, "192.0.2.7", ipaddress.ip_network("192.0.2.7/32")),
        (Position, "127", 127),
        (PathOrNothing, "", ""),
        (PathOrNothing, "/run/x.pid", "/run/x.pid"),
        (DatabaseName, "calls_2", "calls_2"),
        (DatabaseUrls, "sqlite://", ("sqlite://",)),
        (DatabaseUrls, ["a://x", "a://y"], ("a://x", "a://y")),
        (HandlerName, "a.b:c", "a.b:c"),
        (Command, "/agi/{script}/{1}{name}", "/agi/{script}/{1}{name}"),
        (ProcessText, "a\n\udcff", "a\n\udcff"),
        (VariableName, "_A1", "_A1"),
        (Server, "a:1", ServerAddress("a", 1)),
        (Server, ServerAddress("a", 1), ServerAddress("a", 1)),
        (ErrorPolicy, "hangup", "hangup"),
        (ErrorPolicy, "goto  a, s ,n", "goto a,s,n"),
        (Options, {"a": Bare("1"), "b": "1", "c": [Bare("true")]}, {"a": 1, "b": "1", "c": [True]}),
    ],
)
def test_kinds_read(kind: Any, written: object, value: object) -> None:
    """Each kind of value is read with its type, whether it stands without quotes or not."""
    found = TypeAdapter(kind).validate_python(written)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("kind", "written", "message"),
    [
        (Whole, "12", "without quotes"),
        (Whole, True, "without quotes"),
        (Fraction, Bare("half"), "without quotes"),
        (Truth, "yes", "must be true or false"),
        (Workers, Bare("513"), "from 1 to 512"),
        (Network, "10.1.2.3/8", "has bits set"),
        (AbsolutePath, "run", "absolute path"),
        (PathOrNothing, "x.pid", "absolute path"),
        (Position, "0", "1 to 127"),
        (Position, "128", "1 to 127"),
        (DatabaseName, "A", "small letters"),
        (DatabaseUrls, [], "at least one URL"),
        (DatabaseUrls, "host/db", "must be a URL"),
        (DatabaseUrls, ["a://x", "b://x"], "same driver"),
        (HandlerName, "a.b.c", "package.module:function"),
        (Command, "agi/x", "absolute path"),
        (Command, "/agi/{{script}}", "only around a name"),
        (Command, "/agi/{a-b}", "only around a name"),
        (Command, "/agi/..", "must not hold '..'"),
        (Command, "/agi/./x", "must not hold '.'"),
        (Command, "/agi/{script}/", "must name a file"),
        (ProcessText, "a\0", "must not hold NUL"),
        (VariableName, "1A", "not begin with a digit"),
        (VariableName, "A=", "letters, digits and '_'"),
        (Server, 5, "must be a server such as"),
        (ErrorPolicy, "hang up", "must be 'continue', 'hangup' or 'goto context,extension,priority'"),
        (ErrorPolicy, "goto s,1", "must be 'continue', 'hangup' or 'goto context,extension,priority'"),
        (Options, {"a": Bare("on")}, "may be text or a truth value"),
    ],
)
def test_kinds_refuse(kind: Any, written: object, message: str) -> None:
    """Each kind of value refuses what is none, and says what would be."""
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(kind).validate_python(written)
