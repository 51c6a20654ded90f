"""Values: how each single value of the configuration is written, read and described.

Laws:
    * A reader takes what stands in the file and gives the value with its type, or raises a ValueError whose
      message completes "KEY: ...": what must stand there, and what was found.
    * What a writer writes, the reader of the same kind reads as the same value.
    * Readers look at the value alone: not at other keys, not at the machine.

The aliases at the end join reader, writer and JSON Schema of each kind, as pydantic's models want them.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema

from fastagi_pool.endings import OnError
from fastagi_pool.findings import Finding, RefusedValue, refuse_all
from fastagi_pool.legacy import placeholders
from fastagi_pool.yamlfile import Bare, Location, bare_value

#: Longest duration in seconds, ten years: more is a slip of the keyboard and would overflow timers.
MAX_DURATION_S: Final = 3650 * 86400.0
#: Longest path of a Unix socket in bytes. Source: sun_path in unix(7) is 108 with the final NUL.
MAX_UNIX_PATH_BYTES: Final = 107
#: Most worker processes: far more than any machine has processor cores.
MAX_WORKERS: Final = 512

#: A ``${NAME}``, which may stand in the file for any value.
VARIABLE_SCHEMA: Final = {"type": "string", "pattern": r"\$\{.+\}"}

_UNITS_MS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_NUMBER: Final = r"[0-9]{1,12}(?:\.[0-9]{1,30})?"
_DURATION = re.compile("".join(f"(?:(?P<{unit}>{_NUMBER}){unit})?" for unit in _UNITS_MS))
_SECONDS = re.compile(_NUMBER)
_UNITS_BYTES: Final = {"GB": 1024**3, "MB": 1024**2, "KB": 1024, "B": 1}
_SIZE = re.compile(r"(?P<number>[0-9]{1,15})(?P<unit>[KMG]?B)?")


def _shown(value: object) -> str:
    """Say in a message what was found, short and in the words of the file."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


# -- Durations and sizes ----------------------------------------------------------------------------------


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


# -- Addresses and networks -------------------------------------------------------------------------------


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
            raise RefusedValue(
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
        raise RefusedValue("must be a literal address, not a host name", "write 127.0.0.1 or [::1]")
    bracketed = re.fullmatch(r"\[(.*)\]", text)
    try:
        address = ipaddress.ip_address(bracketed[1] if bracketed else text)
    except ValueError:
        raise RefusedValue("must be a literal address, not a host name", "write *:PORT for all") from None
    if bool(bracketed) != (address.version == 6):
        raise RefusedValue(
            "must have brackets around an IPv6 address, and only there", "for example [::1]:4577"
        )
    return str(address)


def parse_listen_address(value: object) -> ListenAddress:
    """Read an address from whatever stands in the file.

    Raises:
        ValueError: It is no address; :meth:`ListenAddress.parse` says what is one.
    """
    if isinstance(value, ListenAddress):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be an address, not {_shown(value)}")
    return ListenAddress.parse(value)


def _parse_network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
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
        raise RefusedValue("has bits set behind the length of its network", f"write {network}") from None


def _as_text(value: ListenAddress | ServerAddress | ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    return str(value)


# -- Servers to forward calls to --------------------------------------------------------------------------

#: One part of a host name. Source: RFC 1123, 2.1, and ``_``, which names in container networks have.
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}\.?")
#: What ends in digits alone is meant as an IPv4 address, and no name. Source: WHATWG URL, "ends in a number".
_MEANT_AS_IPV4 = re.compile(r"(?:.*\.)?[0-9]+")
#: Longest host name. Source: RFC 1035, 2.3.4.
_MAX_HOST_NAME: Final = 253


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where another FastAGI server listens.

    Attributes:
        host: An IPv4 or IPv6 address without brackets, or a host name in small letters.
        port: 1 to 65535.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> ServerAddress:
        """Read an address.

        Args:
            text: ``192.0.2.7:4573``, ``[2001:db8::7]:4573`` or ``agi.example.com:4573``. A name is allowed,
                unlike in ``listen``: it is looked up for each new connection.

        Raises:
            ValueError: It is nothing of the kind.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
            raise RefusedValue(
                f"must be a server with a port from 1 to 65535, not {_shown(text)}",
                "for example 192.0.2.7:4573, [2001:db8::7]:4573 or agi.example.com:4573",
            )
        return cls(_server_host(host), int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether surely only this machine is meant; of other names nobody can know."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _server_host(text: str) -> str:
    bracketed = re.fullmatch(r"\[(.*)\]", text)
    try:
        address = ipaddress.ip_address(bracketed[1] if bracketed else text)
    except ValueError:
        name = text.lower()
        is_name = _HOST_NAME.fullmatch(name) and len(name) <= _MAX_HOST_NAME
        if not is_name or _MEANT_AS_IPV4.fullmatch(name):
            message = f"must begin with an address or a host name, not {_shown(text)}"
            raise RefusedValue(message, "for example 192.0.2.7:4573 or agi.example.com:4573") from None
        return name
    if bool(bracketed) != (address.version == 6):
        raise RefusedValue(
            "must have brackets around an IPv6 address, and only there", "for example [2001:db8::7]:4573"
        )
    return str(address)


def _parse_server_address(value: object) -> ServerAddress:
    if isinstance(value, ServerAddress):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be a server such as agi.example.com:4573, not {_shown(value)}")
    return ServerAddress.parse(value)


# -- Databases' names and URLs ----------------------------------------------------------------------------

_URL = re.compile(r"(?P<driver>[a-z][a-z0-9_]*(?:\+[a-z][a-z0-9_]*)?)://(?P<rest>.*)", re.DOTALL)
#: As SQLAlchemy takes a URL apart: user, then password up to the last '@'.
_LOGIN = re.compile(r"(?P<user>[^:/@]*)(?::(?P<password>.*))?@", re.DOTALL)


def _parse_plain_name(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", value):
        raise ValueError("must be a name of small letters, digits and '_' that begins with a letter")
    return value


def _one_or_several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _parse_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    matches = [_URL.fullmatch(url) for url in urls]
    refuse_all(
        [
            Finding((number,), "must be a URL such as mysql+pymysql://user@host/name")
            for number, match in enumerate(matches)
            if match is None
        ]
    )
    if not urls:
        raise ValueError("must hold at least one URL")
    if len({match["driver"] for match in matches if match}) > 1:
        raise ValueError("must hold URLs that all have the same driver")
    return urls


def find_login(url: str) -> re.Match[str] | None:
    """Find ``user`` and ``password`` in a database's URL, the latter None if there is none.

    Returns:
        The match with these two groups; None if the URL names neither.
    """
    match = _URL.fullmatch(url)
    return _LOGIN.match(match["rest"]) if match else None


# -- Numbers, truth values, paths, handlers, commands and options ------------------------------------------


def _unquoted(value: object) -> object:
    """Read an unquoted scalar where a number is wanted; anything else stays as it is."""
    try:
        return bare_value(value) if isinstance(value, Bare) else value
    except ValueError:
        return value


def _parse_whole_number(value: object) -> int:
    found = _unquoted(value)
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    raise ValueError(f"must be a whole number without quotes, not {_shown(value)}")


def _parse_any_number(value: object) -> float:
    found = _unquoted(value)
    if isinstance(found, int | float) and not isinstance(found, bool):
        return found
    raise ValueError(f"must be a number without quotes, not {_shown(value)}")


def _parse_truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, Bare) and value.lower() in {"true", "yes", "on"}:
        return True
    if isinstance(value, Bare) and value.lower() in {"false", "no", "off"}:
        return False
    raise ValueError(f"must be true or false, not {_shown(value)}")


def _parse_workers(value: object) -> int | str:
    if value == "auto":
        return "auto"
    found = _unquoted(value)
    if isinstance(found, int) and not isinstance(found, bool) and 1 <= found <= MAX_WORKERS:
        return found
    raise ValueError(f"must be 'auto' or a whole number from 1 to {MAX_WORKERS}, not {_shown(value)}")


def _parse_absolute_path(value: object) -> str:
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text.startswith("/") or "\0" in text:
        raise ValueError(f"must be an absolute path, not {_shown(value)}")
    return text


def _parse_path_or_nothing(value: str) -> str:
    return _parse_absolute_path(value) if value else value


def _parse_position(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,2}", value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 127:
        return value
    raise ValueError("must be the number of an argument, 1 to 127")


def _parse_handler(value: str) -> str:
    module, colon, function = value.partition(":")
    if colon and function.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return value
    head, _, tail = value.rpartition(".")
    guess = f"did you mean '{head}:{tail}'?" if head and not colon else ""
    raise RefusedValue(f"must be package.module:function, not {_shown(value)}", guess)


def _parse_command(value: str) -> str:
    _parse_absolute_path(value)
    try:
        placeholders(value)
    except ValueError:
        hint = "for example {script} or {1}"
        raise RefusedValue("must hold '{' and '}' only around a name", hint) from None
    if (part := next((each for each in value.split("/") if each in {".", ".."}), None)) is not None:
        raise ValueError(f"must not hold {part!r} as a part of its path")
    if value.endswith("/"):
        raise ValueError("must name a file, and end with no '/'")
    return value


def _parse_process_text(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold NUL, with which the system ends a text")
    return value


def _parse_variable_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("must be a name of letters, digits and '_' that does not begin with a digit")
    return value


def _parse_options(value: object) -> object:
    """Give the free options their types, and find every word whose type nobody can know."""
    findings: list[Finding] = []
    typed = _typed_option(value, (), findings)
    refuse_all(findings)
    return typed


def _typed_option(value: object, location: Location, findings: list[Finding]) -> object:
    if isinstance(value, Mapping):
        return {key: _typed_option(item, (*location, key), findings) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed_option(item, (*location, number), findings) for number, item in enumerate(value)]
    if not isinstance(value, Bare):
        return value
    try:
        return bare_value(value)
    except ValueError as error:
        findings.append(Finding(location, str(error)))
        return None


def _parse_error_policy(value: str) -> str:
    return str(OnError.parse(value))


# -- What models are made of ------------------------------------------------------------------------------

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
        {"type": "integer", "minimum": 1, "maximum": MAX_WORKERS},
        VARIABLE_SCHEMA,
    ],
}
_URLS_SCHEMA: Final = {
    "title": "text or list of texts",
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
    ],
}

#: A whole number; the key sets its bounds.
Whole: TypeAlias = Annotated[int, BeforeValidator(_parse_whole_number)]
#: Any number; the key sets its bounds.
Fraction: TypeAlias = Annotated[float, BeforeValidator(_parse_any_number)]
#: ``true`` or ``false``, or another of YAML's words for them.
Truth: TypeAlias = Annotated[bool, BeforeValidator(_parse_truth)]
#: Seconds, see :func:`parse_duration`.
Duration: TypeAlias = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, when_used="json"),
    WithJsonSchema(_DURATION_SCHEMA),
]
#: Bytes, see :func:`parse_size`.
Size: TypeAlias = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, when_used="json"),
    WithJsonSchema(_SIZE_SCHEMA),
]
#: Where to accept calls.
Address: TypeAlias = Annotated[
    ListenAddress,
    PlainValidator(parse_listen_address),
    PlainSerializer(_as_text, when_used="json"),
    WithJsonSchema({"title": "address", "type": "string"}),
]
#: A network, or one address as a network of its own.
Network: TypeAlias = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network,
    PlainValidator(_parse_network),
    PlainSerializer(_as_text, when_used="json"),
    WithJsonSchema({"title": "network", "type": "string"}),
]
#: How many worker processes: a number up to :data:`MAX_WORKERS`, or ``auto``.
Workers: TypeAlias = Annotated[
    int | Literal["auto"], BeforeValidator(_parse_workers), WithJsonSchema(_WORKERS_SCHEMA)
]
#: Text that often consists of digits, which YAML lets stand without quotes.
Text: TypeAlias = Annotated[str, WithJsonSchema({"title": "text", "type": ["string", "number", "boolean"]})]
#: A path that begins with ``/``.
AbsolutePath: TypeAlias = Annotated[
    Path, BeforeValidator(_parse_absolute_path), WithJsonSchema({"title": "path", "type": "string"})
]
#: A path that begins with ``/``, or the empty text for none.
PathOrNothing: TypeAlias = Annotated[str, AfterValidator(_parse_path_or_nothing)]
#: Which argument of AGI(), from 1.
Position: TypeAlias = Annotated[int, BeforeValidator(_parse_position)]
#: By which handlers know a database.
DatabaseName: TypeAlias = Annotated[str, AfterValidator(_parse_plain_name)]
#: By which routes know a lane.
LaneName: TypeAlias = Annotated[str, AfterValidator(_parse_plain_name)]
#: At least one URL, all of the same driver; a single one may stand without a list.
DatabaseUrls: TypeAlias = Annotated[
    tuple[str, ...],
    BeforeValidator(_one_or_several),
    AfterValidator(_parse_urls),
    WithJsonSchema(_URLS_SCHEMA),
]
#: A function to import, as ``package.module:function``.
HandlerName: TypeAlias = Annotated[str, AfterValidator(_parse_handler)]
#: What the dialplan does after a failure, see :class:`~fastagi_pool.endings.OnError`.
ErrorPolicy: TypeAlias = Annotated[str, AfterValidator(_parse_error_policy)]
#: Where another FastAGI server listens.
Server: TypeAlias = Annotated[
    ServerAddress,
    PlainValidator(_parse_server_address),
    PlainSerializer(_as_text, when_used="json"),
    WithJsonSchema({"title": "host:port", "type": "string"}),
]
#: The absolute path of a script; it may hold placeholders as ``{script}``.
Command: TypeAlias = Annotated[str, AfterValidator(_parse_command)]
#: What a process can be given as an argument or as the value of a variable.
ProcessText: TypeAlias = Annotated[Text, AfterValidator(_parse_process_text)]
#: By which a process finds a variable of its environment.
VariableName: TypeAlias = Annotated[str, AfterValidator(_parse_variable_name)]
#: Free settings of any depth.
Options: TypeAlias = Annotated[Mapping[str, object], BeforeValidator(_parse_options)]
