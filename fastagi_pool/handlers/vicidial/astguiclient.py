"""VICIdial's configuration file, ``/etc/astguiclient.conf``, and the configuration of ours that it means.

Laws:
    * The file's grammar is the original's to the letter, its oddities too: a site's file means what it meant.
    * What cannot mean anything is refused when the file is read, in one line that names every key to mend.
    * The pool keys (``VARfastagi_log_...``) are honoured. One that is no number has the installer's default,
      and :func:`mapping` says so.
    * The password appears in no message and no ``repr``; only :func:`to_yaml` holds it, for the loader.

Source: VICIdial's FastAGI daemon, observed: its configuration file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import yaml

from fastagi_pool.errors import OperatorError
from fastagi_pool.values import MAX_WORKERS

#: What our configuration calls VICIdial's database.
DATABASE: Final = "vicidial"
#: What serves every call.
HANDLER: Final = "fastagi_pool.handlers.vicidial.call_log:call_log"
#: Where MariaDB and MySQL have their sockets on Debian, Red Hat and SUSE; none where anybody could make one.
SOCKETS: Final = (
    Path("/run/mysqld/mysqld.sock"),
    Path("/var/lib/mysql/mysql.sock"),
    Path("/run/mysql/mysql.sock"),
)

#: Most connections that one worker may hold: the bound of ``pool_size``.
_MOST_CONNECTIONS: Final = 200
#: So many connections let a worker go on while some of them wait for a lock.
_FEWEST_CONNECTIONS: Final = 4
#: How long a call waits for a connection: while a backup holds a table all wait, as the original did.
_POOL_TIMEOUT_S: Final = 30
_DEFAULT_PORT: Final = "3306"
_DROPPED = re.compile(r"[ >\r\t]+|[#;].*")
#: Eight digits: no number here needs more, and ten years of seconds, our longest duration, have nine.
_NUMBER = re.compile(r"[0-9]{1,8}")

#: Texts: where each goes, its default, what it must look like, and how that is said. Without a default it has
#: to be there: the original would run without and find no row of its own.
_TEXTS: Final[Mapping[str, tuple[str, str, str, str]]] = {
    "PATHlogs": ("path_logs", "/var/log/astguiclient", "/.*", "must be an absolute path"),
    "PATHhome": ("path_home", "/usr/share/astguiclient", "/.*", "must be an absolute path"),
    "VARserver_ip": ("server_ip", "", ".+", "must be this machine's address in VICIdial's table of servers"),
    "VARDB_server": ("db_server", "", r"[\w.:-]+", "must be the name or address of the database's machine"),
    "VARDB_database": ("db_database", "", "[^?]+", "must be the name of the database"),
    "VARDB_user": ("db_user", "", ".+", "must be a user of the database"),
}
_PASSWORD: Final = "VARDB_pass"
_PORT: Final = "VARDB_port"
#: Numbers: where each goes, and what the installer writes.
_NUMBERS: Final[Mapping[str, tuple[str, int]]] = {
    "VARfastagi_log_min_servers": ("min_servers", 3),
    "VARfastagi_log_max_servers": ("max_servers", 16),
    "VARfastagi_log_min_spare_servers": ("min_spare_servers", 2),
    "VARfastagi_log_max_spare_servers": ("max_spare_servers", 8),
    "VARfastagi_log_max_requests": ("max_requests", 1000),
    "VARfastagi_log_checkfordead": ("checkfordead_s", 30),
    "VARfastagi_log_checkforwait": ("checkforwait_s", 60),
}
_KEYS: Final = (*_TEXTS, _PASSWORD, _PORT, *_NUMBERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class AstGuiClient:
    """What of the file concerns this daemon.

    Attributes:
        path_logs: The folder of VICIdial's log files.
        path_home: The folder of VICIdial's programs.
        server_ip: Our address in VICIdial's tables.
        db_server: The database's machine.
        db_database: The database's name there.
        db_user: Who we are to it.
        db_pass: The password, as the file's bytes are in UTF-8; others are escaped (``surrogateescape``).
        db_port: Its TCP port.
        min_servers: Processes that always run.
        max_servers: Most processes, and so most connections to the database: each served one call.
        min_spare_servers: Fewest processes that have nothing to do.
        max_spare_servers: Most of them.
        max_requests: Calls after which a process is replaced.
        checkfordead_s: How often dead processes are looked for, in seconds.
        checkforwait_s: How often those that only wait are looked at, in seconds.
        unreadable: What stands in the file instead of a number, by key.
    """

    path_logs: str
    path_home: str
    server_ip: str
    db_server: str
    db_database: str
    db_user: str
    db_pass: str = field(repr=False)
    db_port: int
    min_servers: int
    max_servers: int
    min_spare_servers: int
    max_spare_servers: int
    max_requests: int
    checkfordead_s: int
    checkforwait_s: int
    unreadable: Mapping[str, str]

    @property
    def workers(self) -> int:
        """Worker processes to run: as many as asked for, but with connections enough for each; 1 or more."""
        return max(1, min(self.min_servers, self.max_servers // _FEWEST_CONNECTIONS, MAX_WORKERS))

    @property
    def pool_size(self) -> int:
        """Connections to the database that one worker may hold: its part of ``max_servers``, 1 or more."""
        return min(max(self.max_servers // self.workers, 1), _MOST_CONNECTIONS)


def parse(text: str) -> AstGuiClient:
    """Read the text of the file.

    A line loses its spaces, tabs and ``>``, and all from the first ``#`` or ``;`` on. If it then begins with
    a key, whatever follows that, all behind its last ``=`` is the key's value; the last such line counts.

    Args:
        text: The file; bytes that are no UTF-8 as surrogates.

    Raises:
        ValueError: It cannot mean anything; the message names each key and what must stand there.
    """
    found = _values(text)
    problems = list(_problems(found))
    if problems:
        raise ValueError("; ".join(problems))
    written = {key: found.get(key, "") for key in _NUMBERS}
    unreadable = {key: value for key, value in written.items() if not _NUMBER.fullmatch(value)}
    fields: dict[str, Any] = {name: found.get(key) or default for key, (name, default, *_) in _TEXTS.items()}
    for key, (name, installed) in _NUMBERS.items():
        fields[name] = installed if key in unreadable else int(written[key])
    return AstGuiClient(
        **fields,
        db_pass=found.get(_PASSWORD, ""),
        db_port=int(found.get(_PORT) or _DEFAULT_PORT),
        unreadable={key: value for key, value in unreadable.items() if value},
    )


def _values(text: str) -> dict[str, str]:
    values = {}
    for line in text.split("\n"):
        rest = _DROPPED.sub("", line)
        for key in _KEYS:
            if rest.startswith(key):
                values[key] = rest.rpartition("=")[2]
    return values


def _problems(found: Mapping[str, str]) -> Iterator[str]:
    for key, (_, default, pattern, message) in _TEXTS.items():
        value = found.get(key) or default
        # What is not printable is a slip, or no UTF-8: no URL and no row can hold it.
        if not re.fullmatch(pattern, value) or not value.isprintable():
            yield f"{key} {message}, not {value!r}" if value else f"{key} {message}, but is missing"
    port = found.get(_PORT) or _DEFAULT_PORT
    if not _NUMBER.fullmatch(port) or not 1 <= int(port) <= 65535:
        yield f"{_PORT} must be a port from 1 to 65535, not {port!r}"


def read(path: Path) -> AstGuiClient:
    """Read the file.

    Raises:
        OperatorError: It is missing, cannot be read, or cannot mean anything; one line says what to mend.
    """
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise OperatorError(
            f"{path}: VICIdial's configuration cannot be read: {error.strerror} (as a rule it is "
            "/etc/astguiclient.conf, and readable for root alone)"
        ) from None
    try:
        return parse(text)
    except ValueError as error:
        raise OperatorError(f"{path}: {error}") from None


# -- What it means here -----------------------------------------------------------------------------------


def find_socket(host: str, places: Sequence[Path] = SOCKETS) -> Path | None:
    """Find the database's local socket, which MySQL's own client takes for ``localhost``.

    Args:
        host: As ``VARDB_server`` has it; any other name means TCP.
        places: Where distributions put it, the first that is there counts.

    Returns:
        The socket; None for TCP.
    """
    if host != "localhost":
        return None
    return next((place for place in places if place.is_socket()), None)


def to_yaml(settings: AstGuiClient, local_socket: Path | None = None) -> str:
    """Write the configuration that this means, for the loader. It holds the password.

    It takes calls from everywhere on port 4577, as the original does. The route names no database:
    whether that is there is for each call to find out.

    Args:
        settings: What the file says.
        local_socket: The database's socket; None for TCP.
    """
    # In brackets if it is an IPv6 address.
    host = f"[{settings.db_server}]" if ":" in settings.db_server else settings.db_server
    user = quote(settings.db_user, safe="")
    by_socket = f"?unix_socket={quote(str(local_socket))}" if local_socket else ""
    document = {
        "listen": ["*:4577"],
        "allow": ["0.0.0.0/0", "::/0"],
        "workers": settings.workers,
        "max_calls": settings.max_requests,
        "watchdog": settings.checkfordead_s,
        "databases": {
            DATABASE: {
                "url": f"mysql+pymysql://{user}@{host}:{settings.db_port}/{settings.db_database}{by_socket}",
                "password": _for_the_driver(settings.db_pass),
                "pool_size": settings.pool_size,
                "pool_timeout": _POOL_TIMEOUT_S,
                "idle_ping": settings.checkforwait_s,
                "sql_mode": "NO_ENGINE_SUBSTITUTION",
                "multi_statements": True,
            }
        },
        "routes": [
            {
                "default": True,
                "handler": HANDLER,
                "on_hangup": "continue",
                "free_names": True,
                "options": {
                    "server_ip": settings.server_ip,
                    "path_logs": settings.path_logs,
                    "path_home": settings.path_home,
                },
            }
        ],
    }
    return str(yaml.dump(document, Dumper=_Quoting, sort_keys=False))


def _for_the_driver(password: str) -> str:
    """Write the password so that PyMySQL, which sends text as Latin-1, sends the file's very bytes."""
    return password.encode("utf-8", "surrogateescape").decode("latin-1")


class _Quoting(yaml.SafeDumper):
    """PyYAML's writer, with quotes around every text and ``$`` doubled, so that none means more."""


def _represent_text(dumper: _Quoting, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text.replace("$", "$$"), style='"')


_Quoting.add_representer(str, _represent_text)


class Mapped(NamedTuple):
    """What became of one pool key.

    Attributes:
        key: As it stands in the file.
        value: What counts, with a remark if it is not what the file says.
        became: The key of ours with its value, or why nothing has to be done.
    """

    key: str
    value: str
    became: str


def mapping(settings: AstGuiClient) -> list[Mapped]:
    """Say for each pool key what it became, in the order of the installer."""
    enough = settings.workers >= settings.min_servers
    fewer = "" if enough else f", so that each has {_FEWEST_CONNECTIONS} of the connections"
    pool_size = f"databases.{DATABASE}.pool_size: {settings.pool_size}"
    became = {
        "min_servers": f"workers: {settings.workers}{fewer}",
        "max_servers": f"{pool_size}, the connections of each of {settings.workers} workers",
        "min_spare_servers": "nothing to do: a worker serves many calls at once, so none needs to be spare",
        "max_spare_servers": "nothing to do: the number of workers stays the same, so none is too many",
        "max_requests": f"max_calls: {settings.max_requests}, of each worker",
        "checkfordead_s": f"watchdog: {settings.checkfordead_s}s; who is stuck for so long is replaced",
        "checkforwait_s": f"databases.{DATABASE}.idle_ping: {settings.checkforwait_s}s",
    }
    rows = []
    for key, (name, _) in _NUMBERS.items():
        odd = settings.unreadable.get(key)
        remark = "" if odd is None else f" (the default: {odd!r} is no number)"
        rows.append(Mapped(key, f"{getattr(settings, name)}{remark}", became[name]))
    return rows
