"""The configuration: a YAML file as a frozen model in which everything has been checked.

Laws:
    * A :class:`Config` that exists can be run: every default, bound and unit is decided here, and nobody
      else checks again. What needs the outside world (importing a handler, reaching a database) is left
      to later stages, which report through :meth:`LoadedConfig.problem`.
    * All problems are reported at once, each with its file, line and key.
    * The environment is an argument: this module never reads it.
    * A field's description is its documentation: ``docs/configuration.md`` and the JSON Schema are
      generated from this module.
    * Passwords appear in no message, no ``repr`` and no :func:`effective` text.

How it works: :mod:`fastagi_pool.yamlfile` turns the files into text, lists and mappings with places; the
models below give the text its types; what pydantic finds wrong is told in the words of the file.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar
from urllib.parse import quote

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from fastagi_pool.errors import ConfigError, Problem
from fastagi_pool.yamlfile import (
    Bare,
    Document,
    Layout,
    Location,
    SourceMap,
    bare_value,
    read_file,
    read_text,
)

#: Longest duration in seconds, ten years: more is a slip of the keyboard and would overflow timers.
MAX_DURATION_S: Final = 3650 * 86400.0
#: Longest path of a Unix socket in bytes. Source: sun_path in unix(7) is 108 with the final NUL.
MAX_UNIX_PATH_BYTES: Final = 107

_LAYOUT: Final = Layout(
    joined=frozenset({"listen", "allow", "python_path", "routes"}), folders=frozenset({"python_path"})
)

# -- Values: durations, sizes, addresses ------------------------------------------------------------------

_HOUR_S: Final = 3600.0
_UNITS_MS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_NUMBER: Final = r"[0-9]{1,12}(?:\.[0-9]{1,30})?"
_DURATION = re.compile("".join(f"(?:(?P<{unit}>{_NUMBER}){unit})?" for unit in _UNITS_MS))
_SECONDS = re.compile(_NUMBER)
_UNITS_BYTES: Final = {"GB": 1024**3, "MB": 1024**2, "KB": 1024, "B": 1}
_SIZE = re.compile(r"(?P<number>[0-9]{1,15})(?P<unit>[KMG]?B)?")


def parse_duration(value: object) -> float:
    """Read a duration.

    Args:
        value: ``500ms``, ``30s``, ``5m``, ``4h``, ``1d``, a sum as ``1h30m``, or a number of seconds.

    Returns:
        The seconds, at least 0 and at most :data:`MAX_DURATION_S`.

    Raises:
        ValueError: It is nothing of the kind, negative, or too long.
    """
    seconds = _seconds(value)
    if seconds is None or math.isnan(seconds):
        raise ValueError(f"must be a duration such as 500ms, 30s, 5m, 4h, 1d or 1h30m, not {_shown(value)}")
    if seconds < 0:
        raise ValueError("must not be negative")
    if seconds > MAX_DURATION_S:
        raise ValueError("must not be longer than ten years")
    return seconds


def _seconds(value: object) -> float | None:
    """Read a duration of any length; None if it is none, -1 if it is negative."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        # Cut before float() sees it, because that fails on a very large int.
        return float(max(min(value, MAX_DURATION_S * 2), -1))
    text = value.removeprefix("-") if isinstance(value, str) else ""
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    elif text and (parts := _DURATION.fullmatch(text)):
        amounts = parts.groupdict(default="0")
        seconds = float(sum(Decimal(amounts[unit]) * length for unit, length in _UNITS_MS.items()) / 1000)
    else:
        return None
    return seconds if text == value else -1.0


def format_duration(seconds: float) -> str:
    """Write a duration so that :func:`parse_duration` reads the same number: ``1h30m``."""
    milliseconds = Decimal(repr(seconds)) * 1000
    if milliseconds != int(milliseconds):
        return f"{milliseconds / 1000:f}s"
    rest, text = int(milliseconds), ""
    for unit, length in _UNITS_MS.items():
        amount, rest = divmod(rest, length)
        text += f"{amount}{unit}" if amount else ""
    return text or "0s"


def parse_size(value: object) -> int:
    """Read an amount of memory.

    Args:
        value: ``64KB``, ``256MB``, ``1GB`` (units of 1024), or a number of bytes.

    Returns:
        The bytes, at least 0.

    Raises:
        ValueError: It is nothing of the kind, or negative.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.removeprefix("-"))):
        size = int(match["number"]) * _UNITS_BYTES.get(match["unit"], 1)
        size = -size if value.startswith("-") else size
    else:
        raise ValueError(f"must be a size such as 64KB, 256MB or 1GB, not {_shown(value)}")
    if size < 0:
        raise ValueError("must not be negative")
    return size


def format_size(size_bytes: int) -> str:
    """Write a size so that :func:`parse_size` reads the same number: ``256MB``."""
    if size_bytes == 0:
        return "0B"
    unit = next(unit for unit, length in _UNITS_BYTES.items() if size_bytes % length == 0)
    return f"{size_bytes // _UNITS_BYTES[unit]}{unit}"


class ListenKind(Enum):
    """Where a listening socket comes from."""

    TCP = "tcp"
    UNIX = "unix"
    SYSTEMD = "systemd"


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """One address to accept calls on.

    Attributes:
        kind: What kind of socket.
        host: For TCP: an IPv4 or IPv6 address without brackets, or ``*`` for all of both.
        port: For TCP: 0 to 65535; 0 lets the system choose.
        path: For UNIX: the absolute path.
    """

    kind: ListenKind
    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Read an address.

        Args:
            text: ``127.0.0.1:4577``, ``[::1]:4577``, ``*:4577`` or ``:4577`` (all addresses),
                ``unix:/path/to.sock``, or ``systemd``.

        Raises:
            ValueError: It is nothing of the kind. Host names are refused: what they mean may change
                between the check and the start.
        """
        if text == "systemd":
            return cls(ListenKind.SYSTEMD)
        if text.startswith("unix:"):
            return cls(ListenKind.UNIX, path=_socket_path(text.removeprefix("unix:")))
        host, colon, port = text.rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise _refused(
                f"must be an address with a port from 0 to 65535, not {text!r}",
                "for example 127.0.0.1:4577, [::1]:4577, *:4577, unix:/path/to.sock or systemd",
            )
        return cls(ListenKind.TCP, host=_host(host), port=int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether surely only this machine can reach it; never true of ``systemd``, which is unknown."""
        if self.kind is ListenKind.TCP:
            return self.host != "*" and ipaddress.ip_address(self.host).is_loopback
        return self.kind is ListenKind.UNIX

    def __str__(self) -> str:
        if self.kind is ListenKind.SYSTEMD:
            return "systemd"
        if self.kind is ListenKind.UNIX:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _socket_path(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise ValueError("must be an absolute path after 'unix:'")
    if len(path.encode(errors="surrogateescape")) > MAX_UNIX_PATH_BYTES:
        raise ValueError(f"has a path of more than {MAX_UNIX_PATH_BYTES} bytes, the most that Linux allows")
    return path


def _host(text: str) -> str:
    if text in {"", "*"}:
        return "*"
    if text == "localhost":
        raise _refused("must be a literal address, not a host name", "write 127.0.0.1 or [::1]")
    bracketed = re.fullmatch(r"\[(.*)\]", text)
    try:
        address = ipaddress.ip_address(bracketed[1] if bracketed else text)
    except ValueError:
        raise _refused("must be a literal address, not a host name", "write *:PORT for all") from None
    if bool(bracketed) != (address.version == 6):
        raise _refused("must have brackets around an IPv6 address, and only there", "for example [::1]:4577")
    return str(address)


def _network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    message = f"must be a network such as 10.0.0.0/8, or an address, not {_shown(value)}"
    if not isinstance(value, str):
        raise ValueError(message)
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(message) from None
    try:
        return ipaddress.ip_network(value)
    except ValueError:
        raise _refused("has bits set behind the length of its network", f"write {network}") from None


# -- How text becomes a value -----------------------------------------------------------------------------


def _refused(message: str, hint: str = "") -> PydanticCustomError:
    """Make the ValueError that carries a hint through pydantic."""
    return PydanticCustomError("refused", "{message}", {"message": message, "hint": hint})


@dataclass(frozen=True)
class _Finding:
    """One thing wrong at a key path below the value that is being checked."""

    location: Location
    message: str
    hint: str = ""


def _refuse_all(findings: Collection[_Finding]) -> None:
    """Raise one error that pydantic takes apart again, so that each finding keeps its own key path."""
    if findings:
        raise ValidationError.from_exception_data(
            "configuration",
            [
                InitErrorDetails(type=_refused(found.message, found.hint), loc=found.location, input=None)
                for found in findings
            ],
        )


def _shown(value: object) -> str:
    """Say in a message what was found, short and in the words of the file."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _unquoted(value: object) -> object:
    """Read an unquoted scalar where a number is wanted; anything else stays as it is."""
    try:
        return bare_value(value) if isinstance(value, Bare) else value
    except ValueError:
        return value


def _whole_number(value: object) -> int:
    found = _unquoted(value)
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    raise ValueError(f"must be a whole number without quotes, not {_shown(value)}")


def _any_number(value: object) -> float:
    found = _unquoted(value)
    if isinstance(found, int | float) and not isinstance(found, bool):
        return found
    raise ValueError(f"must be a number without quotes, not {_shown(value)}")


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, Bare) and value.lower() in {"true", "yes", "on"}:
        return True
    if isinstance(value, Bare) and value.lower() in {"false", "no", "off"}:
        return False
    raise ValueError(f"must be true or false, not {_shown(value)}")


def _workers(value: object) -> int | str:
    if value == "auto":
        return "auto"
    found = _unquoted(value)
    if isinstance(found, int) and not isinstance(found, bool) and 1 <= found <= 512:
        return found
    raise ValueError(f"must be 'auto' or a whole number from 1 to 512, not {_shown(value)}")


def _listen_address(value: object) -> ListenAddress:
    if isinstance(value, ListenAddress):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be an address, not {_shown(value)}")
    return ListenAddress.parse(value)


def _absolute(value: object) -> object:
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text.startswith("/") or "\0" in text:
        raise ValueError(f"must be an absolute path, not {_shown(value)}")
    return text


def _position(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,2}", value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 127:
        return value
    raise ValueError("must be the number of an argument, 1 to 127")


def _database_name(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", value):
        raise ValueError("must be a name of small letters, digits and '_' that begins with a letter")
    return value


def _handler(value: str) -> str:
    module, colon, function = value.partition(":")
    if colon and function.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return value
    head, _, tail = value.rpartition(".")
    guess = f"did you mean '{head}:{tail}'?" if head and not colon else ""
    raise _refused(f"must be package.module:function, not {_shown(value)}", guess)


def _options(value: object) -> object:
    """Give the free options their types, and find every word whose type nobody can know."""
    findings: list[_Finding] = []
    typed = _typed_option(value, (), findings)
    _refuse_all(findings)
    return typed


def _typed_option(value: object, location: Location, findings: list[_Finding]) -> object:
    if isinstance(value, Mapping):
        return {key: _typed_option(item, (*location, key), findings) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed_option(item, (*location, number), findings) for number, item in enumerate(value)]
    if not isinstance(value, Bare):
        return value
    try:
        return bare_value(value)
    except ValueError as error:
        findings.append(_Finding(location, str(error)))
        return None


def _as_text(value: ListenAddress | ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    return str(value)


_DURATION_SCHEMA: Final = {
    "title": "duration",
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": r"^([0-9.]+(ms|s|m|h|d))+$|^[0-9.]+$|\$\{.+\}"},
    ],
}
_SIZE_SCHEMA: Final = {
    "title": "size",
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": r"^[0-9]+([KMG]?B)?$|\$\{.+\}"},
    ],
}
_WORKERS_SCHEMA: Final = {
    "title": "auto or whole number",
    "anyOf": [
        {"const": "auto"},
        {"type": "integer", "minimum": 1, "maximum": 512},
        {"type": "string", "pattern": r"\$\{.+\}"},
    ],
}
_URLS_SCHEMA: Final = {
    "title": "text or list of texts",
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
    ],
}

Whole: TypeAlias = Annotated[int, BeforeValidator(_whole_number)]
Fraction: TypeAlias = Annotated[float, BeforeValidator(_any_number)]
Address: TypeAlias = Annotated[
    ListenAddress,
    PlainValidator(_listen_address),
    PlainSerializer(_as_text, when_used="json"),
    WithJsonSchema({"title": "address", "type": "string"}),
]
Network: TypeAlias = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network,
    PlainValidator(_network),
    PlainSerializer(_as_text, when_used="json"),
    WithJsonSchema({"title": "network", "type": "string"}),
]
Workers: TypeAlias = Annotated[
    int | Literal["auto"], BeforeValidator(_workers), WithJsonSchema(_WORKERS_SCHEMA)
]
Truth: TypeAlias = Annotated[bool, BeforeValidator(_truth)]
Duration: TypeAlias = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, when_used="json"),
    WithJsonSchema(_DURATION_SCHEMA),
]
Size: TypeAlias = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, when_used="json"),
    WithJsonSchema(_SIZE_SCHEMA),
]
#: Text that often consists of digits, which YAML lets stand without quotes.
Text: TypeAlias = Annotated[str, WithJsonSchema({"title": "text", "type": ["string", "number", "boolean"]})]
AbsolutePath: TypeAlias = Annotated[
    Path, BeforeValidator(_absolute), WithJsonSchema({"title": "path", "type": "string"})
]


# -- The model --------------------------------------------------------------------------------------------


class _Section(BaseModel):
    """What every mapping of the file has in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, values: object) -> object:
        """Treat ``allow:`` with nothing behind it (all commented out) as if the key were not there."""
        if not isinstance(values, Mapping):
            return values
        known = cls.file_keys()
        return {key: value for key, value in values.items() if value is not None or key not in known}

    @classmethod
    def file_keys(cls) -> list[str]:
        """Name the keys that this mapping may have in the file."""
        return [info.alias or name for name, info in cls.model_fields.items()]


class LogLevel(StrEnum):
    """How much the log tells."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Log(_Section):
    """Where the log goes and how much it tells."""

    file: str = Field(
        default="-",
        description="Where the log goes: an absolute path, or `-` for standard error, which is what systemd "
        "and containers collect.",
    )
    level: LogLevel = Field(
        default=LogLevel.INFO,
        description="How much the log tells: `debug`, `info`, `warning` or `error`. `info` says what starts, "
        "stops and fails; `debug` is for finding a fault.",
    )
    access: str = Field(
        default="-",
        description="Where the one line for each call goes: an absolute path, `-` for the same place as the "
        "log, or `off`. On by default, because it is the only trace of a call that went well.",
    )

    @field_validator("file", "access")
    @classmethod
    def _path_or_word(cls, value: str, info: ValidationInfo) -> str:
        words = ("-", "off") if info.field_name == "access" else ("-",)
        if value not in words and (not value.startswith("/") or "\0" in value):
            raise ValueError(f"must be {' or '.join(repr(word) for word in words)} or an absolute path")
        return value


class Limits(_Section):
    """What one call may take before it is ended."""

    header_timeout: Duration = Field(
        default=10.0,
        gt=0,
        description="How long a new connection may take to send its whole AGI environment; more than 0. "
        "Asterisk sends it at once, so that 10s already means a stranger or a broken network.",
    )
    idle_timeout: Duration = Field(
        default=4 * _HOUR_S,
        description="Longest wait for Asterisk's answer to one command; 0 for no limit. The default is long "
        "because a Dial is one command and lasts as long as the conversation.",
    )
    script_timeout: Duration = Field(
        default=60.0,
        description="How long a handler's own work may take in one call, not counting the time that Asterisk "
        "takes for its commands; 0 for no limit. 60s is far above what a caller would wait for.",
    )
    header_size: Size = Field(
        default=64 * 1024,
        description="Largest AGI environment in bytes, 1KB to 1MB. Asterisk's own is about 1 KB; the rest is "
        "room for arguments.",
    )
    line_length: Size = Field(
        default=16 * 1024,
        description="Longest line of the AGI environment in bytes, 256 up to `header_size`. Longer than any "
        "argument that Asterisk passes.",
    )
    arguments: Whole = Field(
        default=127,
        ge=0,
        le=127,
        description="Most arguments (`agi_arg_N`) of a call, 0 to 127. 127 is the most that Asterisk sends.",
    )

    @field_validator("header_size")
    @classmethod
    def _header_size_bounds(cls, value: int) -> int:
        if not 1024 <= value <= 1024**2:
            raise ValueError("must be from 1KB to 1MB")
        return value

    @field_validator("line_length")
    @classmethod
    def _line_length_bounds(cls, value: int, info: ValidationInfo) -> int:
        if not 256 <= value <= info.data.get("header_size", value):
            raise ValueError("must be at least 256 bytes and at most header_size")
        return value


_URL = re.compile(r"(?P<driver>[a-z][a-z0-9_]*(?:\+[a-z][a-z0-9_]*)?)://(?P<rest>.*)", re.DOTALL)
#: As SQLAlchemy takes a URL apart: user, then password up to the last '@'.
_LOGIN = re.compile(r"(?P<user>[^:/@]*)(?::(?P<password>.*))?@", re.DOTALL)


class Database(_Section):
    """One database that handlers may use, and how its connections are kept."""

    urls: Annotated[tuple[str, ...], WithJsonSchema(_URLS_SCHEMA)] = Field(
        alias="url",
        repr=False,
        description="Where the database is, as an SQLAlchemy URL such as `mysql+pymysql://user@host/name` or "
        "`sqlite:////var/lib/calls.db`; or a list of them with the same driver, which are tried in order.",
    )
    password: str = Field(
        default="",
        repr=False,
        description="The password, put into each URL; empty if the URLs hold it or none is needed. It stands "
        "here so that it can come from a file: `${file:/run/secrets/password}`.",
    )
    pool_size: Whole = Field(
        default=4,
        ge=1,
        le=200,
        description="Most connections that one worker opens, 1 to 200. All workers together must stay below "
        "what the database allows; 4 serve many hundred calls, because a call holds one only for moments.",
    )
    pool_timeout: Duration = Field(
        default=5.0,
        gt=0,
        description="How long a call waits for a free connection before the database counts as away; more "
        "than 0. 5s is about as long as a caller bears silence.",
    )
    idle_ping: Duration = Field(
        default=30.0,
        description="A connection that lay idle for longer is pinged before it is used; 0 pings always. 30s "
        "is shorter than the patience of firewalls and costs nothing under load.",
    )
    max_age: Duration = Field(
        default=_HOUR_S,
        description="A connection older than this is closed and opened again; 0 for never. It lets "
        "connections return to a server that was away, and stays below the usual server time-outs.",
    )
    connect_timeout: Duration = Field(
        default=5.0,
        gt=0,
        description="How long opening one connection may take before the next URL is tried; more than 0.",
    )
    read_timeout: Duration = Field(
        default=30.0,
        gt=0,
        description="How long the database may take to answer one statement; more than 0. A call that waits "
        "longer is lost anyway.",
    )
    write_timeout: Duration = Field(
        default=30.0,
        gt=0,
        description="How long sending one statement may take; more than 0. It only runs out when the network "
        "is stuck.",
    )
    required_at_boot: Truth = Field(
        default=True,
        description="Whether a worker is only ready once this database answers. `true`, so that a wrong URL "
        "shows at the start and not in the first call.",
    )

    @field_validator("urls", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("urls")
    @classmethod
    def _urls_alike(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        matches = [_URL.fullmatch(url) for url in urls]
        _refuse_all(
            [
                _Finding((number,), "must be a URL such as mysql+pymysql://user@host/name")
                for number, match in enumerate(matches)
                if match is None
            ]
        )
        if not urls:
            raise ValueError("must hold at least one URL")
        if len({match["driver"] for match in matches if match}) > 1:
            raise ValueError("must hold URLs that all have the same driver")
        return urls

    @field_validator("password")
    @classmethod
    def _password_has_a_place(cls, password: str, info: ValidationInfo) -> str:
        for url in info.data.get("urls", ()) if password else ():
            login = _login(url)
            if login is None or not login["user"]:
                raise _refused("needs a URL that names the user", "as mysql+pymysql://user@host/name")
            if login["password"] is not None:
                raise ValueError("is given although the URL holds a password too; keep one of them")
        return password

    def connect_urls(self) -> tuple[str, ...]:
        """Give the URLs with the password in its place, as SQLAlchemy wants them."""
        if not self.password:
            return self.urls
        return tuple(url.replace("@", f":{quote(self.password, safe='')}@", 1) for url in self.urls)


def _login(url: str) -> re.Match[str] | None:
    """Find user and password in a URL; None if it names neither."""
    match = _URL.fullmatch(url)
    return _LOGIN.match(match["rest"]) if match else None


class Route(_Section):
    """Which calls go to which handler."""

    name: str = Field(
        default="",
        max_length=100,
        description="The route's name in logs and figures; unique, of letters, digits and `_ . : / * -`, at "
        "most 100. If it is missing, it is made from `script`, `glob` or `regex`, or is `default`.",
    )
    script: Text | None = Field(
        default=None,
        description="The exact script name, that is, the path of the URL in AGI(agi://host/path), without "
        "its first `/` and its query.",
    )
    glob: Text | None = Field(
        default=None,
        description="A shell pattern for the script name, as `voicemail/*.agi`.",
    )
    regex: Text | None = Field(
        default=None,
        description="A Python regular expression for the script name; its groups reach the handler.",
    )
    default: Truth = Field(
        default=False,
        description="`true` for the route that takes what no other takes. A route has exactly one of "
        "`script`, `glob`, `regex` and `default`.",
    )
    query: Mapping[str, Text] = Field(
        default={},
        description="Parameters of the URL's query that must be there, each with its exact value or a glob. "
        "Empty: any query.",
    )
    arguments: Mapping[Annotated[int, BeforeValidator(_position)], Text] = Field(
        default={},
        description="Arguments of AGI() that must be there: position (1 is the first, up to 127) to exact "
        "value or glob. Empty: any arguments.",
    )
    context: Text | None = Field(
        default=None,
        description="A glob for the dialplan context that the call comes from (`agi_context`). Absent: any.",
    )
    priority: Whole = Field(
        default=0,
        ge=-1_000_000,
        le=1_000_000,
        description="Routes with a higher priority are tried first, -1000000 to 1000000. 0 leaves "
        "room on both sides.",
    )
    handler: Annotated[str, AfterValidator(_handler)] = Field(
        description="The function that serves the call, as `package.module:function`.",
    )
    options: Mapping[str, object] = Field(
        default={},
        description="Free settings for the handler, of any depth. Unquoted `yes`, `no`, `on` and `off` are "
        "refused here, because they may be text or truth values.",
    )
    databases: tuple[str, ...] = Field(
        default=(),
        description="Names of the databases that the handler uses; each must stand under `databases`.",
    )
    script_timeout: Duration | None = Field(
        default=None, description="Instead of `limits.script_timeout` on this route; 0 for no limit."
    )
    idle_timeout: Duration | None = Field(
        default=None, description="Instead of `limits.idle_timeout` on this route; 0 for no limit."
    )

    @model_validator(mode="before")
    @classmethod
    def _name_from_match(cls, values: object) -> object:
        if not isinstance(values, Mapping) or values.get("name") is not None:
            return values
        return {**values, "name": _derived_name(values)}

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.:/*-]+", value):
            raise ValueError("must be a name of letters, digits and _ . : / * -")
        return value

    @field_validator("script", "glob")
    @classmethod
    def _script_can_come(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if not value.isprintable() or not value:
            raise ValueError("must be a script name")
        if value.startswith("/"):
            raise _refused("must not begin with '/'", f"write {value.lstrip('/')!r}")
        if ".." in value.split("/"):
            raise ValueError("must not hold '..' as a part of its path")
        if info.field_name == "script" and "?" in value:
            raise _refused("must not hold a query", "match it with 'query:'")
        return value

    @field_validator("regex")
    @classmethod
    def _regex_compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return value

    @field_validator("options", mode="before")
    @classmethod
    def _options_typed(cls, value: object) -> object:
        return _options(value)

    @model_validator(mode="after")
    def _one_match(self) -> Route:
        if [self.script, self.glob, self.regex, self.default or None].count(None) != 3:
            raise ValueError("must have exactly one of 'script', 'glob', 'regex' and 'default: true'")
        return self


def _derived_name(values: Mapping[str, object]) -> str:
    """Make a route's name from what it matches; ``default`` if that is not to be seen."""
    for key, prefix in (("script", ""), ("glob", ""), ("regex", "regex:")):
        match = values.get(key)
        if isinstance(match, str) and match:
            plain = re.sub(r"[^A-Za-z0-9_.:/*-]+", "-", match).strip("-")
            return f"{prefix}{plain or 'unnamed'}"[:100]
    return "default"


class Config(_Section):
    """Everything that the operator decides."""

    listen: tuple[Address, ...] = Field(
        default_factory=lambda: (ListenAddress(ListenKind.TCP, "127.0.0.1", 4577),),
        description="Addresses to accept calls on: `127.0.0.1:4577`, `[::1]:4577`, `*:4577` (every IPv4 and "
        "IPv6 address), `unix:/path/to.sock`, or `systemd` for inherited sockets. Port 0 lets the system "
        "choose. Only this machine by default, because FastAGI knows no password.",
    )
    backlog: Whole = Field(
        default=1024,
        ge=1,
        le=65535,
        description="How many connections may wait to be accepted, 1 to 65535. Enough for a second of very "
        "many calls while workers are replaced; Linux cuts it to net.core.somaxconn.",
    )
    allow: tuple[Network, ...] = Field(
        default=(),
        description="Networks whose connections are accepted, as `10.0.0.0/8` or `192.0.2.7`; empty for all. "
        "Needed as soon as an address in `listen` can be reached from other machines.",
    )
    workers: Workers = Field(
        default="auto",
        description="How many worker processes serve calls: 1 to 512, or `auto` for one per processor core, "
        "which uses them all without crowding.",
    )
    calls_per_worker: Whole = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="Most calls that one worker serves at the same time, 1 to 100000; further ones wait. "
        "1000 calls that mostly wait for Asterisk are light work for a core.",
    )
    max_calls: Whole = Field(
        default=10_000,
        ge=0,
        le=1_000_000_000,
        description="A worker is replaced after this many calls, 0 for never, up to 1000000000. 10000 keeps "
        "whatever a handler leaks small, at a cost that cannot be measured.",
    )
    max_calls_jitter: Fraction = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Part of `max_calls` by which each worker's count differs at random, 0.0 to 1.0, so that "
        "workers do not retire together.",
    )
    max_lifetime: Duration = Field(
        default=0.0,
        description="A worker is replaced after this time; 0 for never, as `max_calls` does the job.",
    )
    max_memory: Size = Field(
        default=0,
        description="A worker is replaced when its resident memory exceeds this, 0 for never, otherwise at "
        "least 1MB. Off by default, because what is normal depends on the handlers.",
    )
    max_unavailable: Whole = Field(
        default=1,
        ge=1,
        le=64,
        description="How many workers are replaced at the same time, 1 to 64. 1 disturbs the calls least.",
    )
    max_draining: Whole = Field(
        default=16,
        ge=1,
        le=256,
        description="How many replaced workers may still be finishing long calls, 1 to 256; beyond that no "
        "worker is replaced. It bounds the memory that old workers hold.",
    )
    graceful_timeout: Duration = Field(
        default=30.0,
        description="How long calls in progress may go on when the server stops; 0 ends them at once. "
        "Shorter than the 90 seconds after which systemd kills.",
    )
    drain_timeout: Duration = Field(
        default=4 * _HOUR_S,
        description="How long the calls of a replaced worker may go on; 0 ends them at once. It costs "
        "nothing to wait, and a Dial lasts hours.",
    )
    boot_timeout: Duration = Field(
        default=60.0,
        gt=0,
        description="How soon after its start a worker must be ready, its handlers loaded and its databases "
        "open; more than 0. 60s leaves time for a database that is just starting.",
    )
    boot_retries: Whole = Field(
        default=10,
        ge=1,
        le=1000,
        description="How many worker starts in a row may fail before the server gives up, 1 to 1000. 10 "
        "rides out a short trouble and still tells a lasting one.",
    )
    watchdog: Duration = Field(
        default=30.0,
        description="A worker that gives no sign of life for this long is stuck, and is killed and replaced; "
        "at least 1s, or 0 for off. 30s is longer than any pause of a healthy worker.",
    )
    limits: Limits = Field(default_factory=Limits, description="What one call may take.")
    python_path: tuple[AbsolutePath, ...] = Field(
        default=(),
        description="Folders in which handlers are looked for, before Python's own; relative to the file "
        "that names them. They must exist.",
    )
    runtime_dir: AbsolutePath = Field(
        default=Path("/run/fastagi-pool"),
        description="Absolute path of the folder for what lives as long as the server, such as the figures "
        "that the workers share. Under /run, because that is memory and empty after a reboot.",
    )
    pid_file: str = Field(
        default="",
        description="Absolute path of the file that gets the master's process id; empty for none, which is "
        "right under systemd.",
    )
    log: Log = Field(default_factory=Log, description="Where the log goes.")
    databases: Mapping[Annotated[str, AfterValidator(_database_name)], Database] = Field(
        default={},
        description="The databases that handlers may use, by name. A name consists of small letters, digits "
        "and `_`, and begins with a letter.",
    )
    routes: tuple[Route, ...] = Field(
        description="Which calls go to which handler; at least one route.",
    )

    def worker_count(self, cores: int) -> int:
        """Say how many workers to run.

        Args:
            cores: The processor cores that this server may use; counts for ``auto``.
        """
        return max(1, min(cores, 512)) if self.workers == "auto" else self.workers

    @field_validator("watchdog")
    @classmethod
    def _watchdog_bounds(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError("must be 0 (off) or at least 1s")
        return value

    @field_validator("max_memory")
    @classmethod
    def _max_memory_bounds(cls, value: int) -> int:
        if 0 < value < 1024**2:
            raise _refused("must be 0 (never) or at least 1MB", "a number without a unit means bytes")
        return value

    @field_validator("pid_file")
    @classmethod
    def _pid_file_absolute(cls, value: str) -> str:
        if value:
            _absolute(value)
        return value

    @field_validator("python_path")
    @classmethod
    def _folders_exist(cls, folders: tuple[Path, ...]) -> tuple[Path, ...]:
        _refuse_all(
            [
                _Finding((number,), f"must be an existing folder; {folder} is none")
                for number, folder in enumerate(folders)
                if not folder.is_dir()
            ]
        )
        return folders

    @field_validator("listen", "routes")
    @classmethod
    def _not_empty(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if not value:
            raise ValueError("must hold at least one entry")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        _refuse_all(_conflicts(self.listen, bool(self.allow), self.routes, self.databases))
        return self


def _conflicts(
    listen: Sequence[ListenAddress | None],
    allowed: bool,
    routes: Sequence[Route | None],
    databases: Collection[str],
) -> list[_Finding]:
    """Find what is wrong between entries that are right by themselves; None stands for one that is not."""
    return [*_listen_conflicts(listen, allowed), *_route_conflicts(routes, databases)]


def _listen_conflicts(listen: Sequence[ListenAddress | None], allowed: bool) -> Iterator[_Finding]:
    seen: dict[ListenAddress, int] = {}
    for number, address in enumerate(listen):
        if address is None:
            continue
        system_chooses = address.kind is ListenKind.TCP and address.port == 0
        if address in seen and not system_chooses:
            yield _Finding(("listen", number), f"is the same address as listen[{seen[address]}]")
        seen.setdefault(address, number)
        if address.kind is ListenKind.TCP and not address.is_loopback and not allowed:
            message = "can be reached from other machines, so 'allow' must say which may call"
            yield _Finding(("listen", number), message, "for example allow: [10.0.0.0/8]")


def _route_conflicts(routes: Sequence[Route | None], databases: Collection[str]) -> Iterator[_Finding]:
    seen: dict[str, int] = {}
    for number, route in enumerate(routes):
        if route is None:
            continue
        if route.name in seen:
            message = f"has the name {route.name!r}, as routes[{seen[route.name]}] has"
            yield _Finding(("routes", number), message, "give one of them another 'name'")
        seen.setdefault(route.name, number)
        for position, name in enumerate(route.databases):
            if name not in databases:
                location = ("routes", number, "databases", position)
                yield _Finding(
                    location, f"names no database: {name!r}", _did_you_mean(_closest(name, databases))
                )


def _closest(word: str, known: Collection[str]) -> str:
    """Find the known word that was probably meant; empty if none is near."""
    return next(iter(difflib.get_close_matches(word, known, n=1)), "")


def _did_you_mean(word: str) -> str:
    return f"did you mean '{word}'?" if word else ""


# -- Loading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration that passed every check, and where it came from.

    Attributes:
        config: The configuration.
        files: The absolute paths of all files that were read, the main file first.
        source_map: Where each key stands.
    """

    config: Config
    files: tuple[Path, ...]
    source_map: SourceMap = field(repr=False, compare=False)

    def problem(self, location: Location, message: str, hint: str = "") -> Problem:
        """Report what only a later stage can see, such as a handler that cannot be imported.

        Args:
            location: The key path, as ``("routes", 2, "handler")``; of an absent key its nearest parent
                gives the file and the line.
            message: What is wrong.
            hint: What to do about it; may be empty.
        """
        return self.source_map.problem(location, message, hint)


def load(path: Path, environment: Mapping[str, str]) -> LoadedConfig:
    """Read and check a configuration file with all that it includes.

    Args:
        path: The main file.
        environment: The variables for ``${NAME}``, normally the process's.

    Raises:
        ConfigError: Something is wrong; it carries every problem that could be found.
    """
    return _checked(read_file(path, environment, _LAYOUT))


def load_text(text: str, name: str, base: Path, environment: Mapping[str, str]) -> LoadedConfig:
    """Read and check a configuration that is a string, for example one built into a program.

    Args:
        text: The YAML.
        name: What to call it in problems.
        base: The folder that its relative paths start from.
        environment: The variables for ``${NAME}``.

    Raises:
        ConfigError: Something is wrong; it carries every problem that could be found.
    """
    return _checked(read_text(text, name, base, environment, _LAYOUT))


def _checked(document: Document) -> LoadedConfig:
    if not document.complete:
        raise ConfigError(_sorted(document.problems, document))
    try:
        config = Config.model_validate(document.values)
    except ValidationError as error:
        problems = [*document.problems, *_problems(error, document)]
        raise ConfigError(_sorted(problems, document)) from None
    if document.problems:
        raise ConfigError(_sorted(document.problems, document))
    return LoadedConfig(config, document.files, document.source_map)


def _sorted(problems: Collection[Problem], document: Document) -> list[Problem]:
    """Put the problems in the order of reading: the main file first, then line by line."""
    return sorted(
        problems, key=lambda found: (found.file != document.source_map.name, found.file, found.line)
    )


def _problems(error: ValidationError, document: Document) -> Iterator[Problem]:
    """Tell what pydantic found, and what it did not get to, in the words of the file."""
    findings = dict.fromkeys(_findings(error))
    findings.update(dict.fromkeys(_partial_conflicts(document.values)))
    for found in findings:
        parents = (found.location[:length] for length in range(len(found.location) + 1))
        if not any(parent in document.broken for parent in parents):
            yield document.source_map.problem(found.location, found.message, found.hint)


_MESSAGES: Final = {
    "missing": "is missing",
    "extra_forbidden": "is not a known key",
    "tuple_type": "must be a list, each entry after '- '",
    "dict_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "model_type": "must be a mapping",
    "string_type": "must be text",
    "string_too_long": "must not be longer than {max_length} characters",
    "greater_than": "must be more than {gt:.10g}",
    "greater_than_equal": "must be at least {ge:.10g}",
    "less_than_equal": "must be at most {le:.10g}",
    "enum": "must be {expected}",
    "value_error": "{error}",
    "refused": "{message}",
}


def _findings(error: ValidationError) -> Iterator[_Finding]:
    details = error.errors(include_url=False, include_input=False)
    guesses = {_guess(detail["loc"]) for detail in details if detail["type"] == "extra_forbidden"}
    for detail in details:
        kind, location = detail["type"], detail["loc"]
        context: dict[str, Any] = detail.get("ctx", {})
        message = _MESSAGES[kind].format(**context) if kind in _MESSAGES else detail["msg"]
        hint = str(context.get("hint", ""))
        if kind == "extra_forbidden":
            hint = _did_you_mean(str(_guess(location)[-1]))
        if location[-1:] == ("[key]",):
            location = location[:-1]
        # A key that is missing because it is misspelt is one problem, not two.
        if kind != "missing" or location not in guesses:
            yield _Finding(location, message, hint)


def _guess(location: Location) -> Location:
    """Give the location that was probably meant by one with an unknown key."""
    match location[:-1]:
        case ():
            known = [*Config.file_keys(), "include"]
        case ("log",):
            known = Log.file_keys()
        case ("limits",):
            known = Limits.file_keys()
        case ("databases", _):
            known = Database.file_keys()
        case _:
            known = Route.file_keys()
    return (*location[:-1], _closest(str(location[-1]), known))


_Checked = TypeVar("_Checked")


def _partial_conflicts(values: Mapping[str, object]) -> list[_Finding]:
    """Check together what is right by itself, when something else keeps the model from doing it."""
    routes = [_if_valid(Route.model_validate, item) for item in _items(values, "routes")]
    listen = [_if_valid(_listen_address, item) for item in _items(values, "listen")]
    allowed = bool(values.get("allow"))
    databases = values.get("databases") or {}
    if not isinstance(databases, Mapping):
        # Nobody knows which there are meant to be, so no name is wrong.
        databases = {name: None for route in routes if route for name in route.databases}
    return _conflicts(listen, allowed, routes, databases)


def _items(values: Mapping[str, object], key: str) -> list[object]:
    items = values.get(key)
    return items if isinstance(items, list) else []


def _if_valid(check: Callable[[object], _Checked], value: object) -> _Checked | None:
    try:
        return check(value)
    except ValueError:
        return None


# -- Showing ----------------------------------------------------------------------------------------------

_MASK: Final = "***"
_SECRET_KEY = re.compile(r"passw|passphrase|secret|token|api_?key|credential", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)(?P<user>[^:/@\s]*):.*@", re.DOTALL)
_QUERY_SECRET = re.compile(
    r"(?P<name>[?&][^=&]*(?:passw|passphrase|secret|token)[^=&]*=)[^&]*", re.IGNORECASE
)

_DOUBTFUL_DOLLAR = re.compile(r"\$(?=[${])")


def effective(config: Config) -> str:
    """Write the configuration with every default, as YAML that can be loaded again.

    Passwords become ``***``: the key ``password``, passwords in URLs, and every option whose name speaks
    of a secret.

    Args:
        config: The configuration.
    """
    plain = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    for database in plain["databases"].values():
        database["password"] = _MASK if database["password"] else ""
    for route, shown in zip(config.routes, plain["routes"], strict=True):
        # Taken anew, because pydantic would leave out options that are null.
        shown["options"] = _masked_options(route.options)
    text = yaml.dump(_literal(plain), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return str(text)


def _masked_options(value: object) -> object:
    if isinstance(value, Mapping):
        return {
            key: _MASK if _SECRET_KEY.search(key) and item else _masked_options(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_masked_options(item) for item in value]
    return value


def _literal(value: object) -> object:
    """Make text safe to show and to read again: no URL's password, and ``$`` doubled where it means more."""
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    if not isinstance(value, str):
        return value
    masked = _QUERY_SECRET.sub(rf"\g<name>{_MASK}", _URL_PASSWORD.sub(rf"\g<user>:{_MASK}@", value))
    return _DOUBTFUL_DOLLAR.sub("$$", masked)


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer for people."""

    def ignore_aliases(self, data: object) -> bool:
        """Write equal values out each time."""
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Write a text, with quotes if it would not be read again as the same text without."""
    try:
        unclear = bare_value(Bare(text)) != text or not text.isprintable()
    except ValueError:
        unclear = True
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if unclear else None)


_Dumper.add_representer(str, _represent_text)


_INTERPOLATED: Final = {"type": "string", "pattern": r"\$\{.+\}"}


class _EditorSchema(GenerateJsonSchema):
    """A JSON Schema of what stands in the file, where a ``${NAME}`` may stand for any number or word."""

    def field_title_should_be_set(self, schema: object) -> bool:
        """Leave out titles that only repeat the key."""
        return False

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        """Allow a variable instead of a whole number."""
        return {"anyOf": [super().int_schema(schema), _INTERPOLATED]}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        """Allow a variable instead of a number."""
        return {"anyOf": [super().float_schema(schema), _INTERPOLATED]}

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        """Allow a variable and YAML 1.1's words instead of a truth value."""
        words = {"enum": ["yes", "no", "on", "off"]}
        return {"anyOf": [super().bool_schema(schema), words, _INTERPOLATED]}

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        """Allow a variable instead of a word."""
        return {"anyOf": [super().enum_schema(schema), _INTERPOLATED]}


def json_schema() -> dict[str, object]:
    """Describe the file for editors, as JSON Schema 2020-12."""
    schema = Config.model_json_schema(schema_generator=_EditorSchema)
    names = {"type": "string", "title": "file or glob"}
    include = {
        "description": "Files to read after this one, relative to it; globs such as `conf.d/*.yaml` are "
        "sorted. Only in the main file.",
        "anyOf": [names, {"type": "array", "items": names}],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "fastagi_pool configuration",
        "properties": {"include": include, **schema["properties"]},
    }
