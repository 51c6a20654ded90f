"""QueueMetrics: the row by which it learns that a caller has gone, and the request that tells it at once.

Laws:
    * QueueMetrics' database is a foreign one: all SQL on it is here, and it is found by what VICIdial's
      settings say, on port 3306 whatever the port of VICIdial's own.
    * It may be away. Then its row is lost and said to be lost, and the call goes on; no call waits long.
    * A row is written once, even if the connection is lost meanwhile.
    * No call waits for the request over HTTP. A bounded number is under way; what is too much is lost and
      said to be lost.
    * No password and nothing about a lead is logged.

Source: VICIdial's FastAGI daemon, observed: QueueMetrics' queue_log, and the socket send after it.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, field
from functools import cache
from http.client import HTTPException
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote, quote_plus, urlencode, urlsplit
from urllib.request import HTTPSHandler, OpenerDirector, build_opener

import gevent
from gevent.pool import Pool
from pymysql import err
from sqlalchemy.engine import URL

from fastagi_pool.database import Database, DatabaseSettings
from fastagi_pool.errors import DatabaseBusy, DatabaseUnavailable, OperatorError
from fastagi_pool.executor import Done, Executor
from fastagi_pool.handlers.vicidial.leg import Moment
from fastagi_pool.handlers.vicidial.reading import text
from fastagi_pool.handlers.vicidial.rows import LeadWords, QueueLogRow

if TYPE_CHECKING:
    from fastagi_pool.database import Statement
    from fastagi_pool.handlers.vicidial.leg import Leg, Site
    from fastagi_pool.handlers.vicidial.rows import AutoCall, System
    from fastagi_pool.handlers.vicidial.tables import Log

#: Verbs of ``queue_log``: how a call met an agent, and how its caller went.
CONNECT: Final = "CONNECT"
ABANDON: Final = "ABANDON"
COMPLETE_CALLER: Final = "COMPLETECALLER"
#: Requests over HTTP that a worker has under way at most: a server that is slow keeps so many connections.
MOST_REQUESTS: Final = 32

_PORT: Final = 3306
#: Statements are short, and one worker ends few calls at the same moment.
_POOL_SIZE: Final = 2
#: Short, because a call waits for them: who needs longer is away.
_RETRY_PAUSES_S: Final = (0.0, 0.1, 0.4)
#: For one request over HTTP. No call waits for it, but it keeps a place.
_REQUEST_LIMIT_S: Final = 10.0
#: How long a worker that ends waits for requests that are under way.
_FAREWELL_S: Final = 1.0
#: A server stays away for long, and thousands of calls would tell so.
_SAY_EVERY_S: Final = 60.0
#: A row of the same call and verb that is not older is the one that was to be written.
_SAME_ROW_S: Final = 60
#: The row of the call's way into the queue is not older.
_ENTRY_AGE_S: Final = 6 * 3600

_IVR: Final = "IVR"
_NOBODY: Final = "NONE"
_FIRST_PLACE: Final = "1"
#: Shorter waits count as none.
_LEAST_WAIT_S: Final = 0.25
#: The setting that wants a request when a caller has ended the talk.
_TELLS_END: Final = "CONNECT_COMPLETE"
#: No URL is as short, in characters.
_SHORT_URL: Final = 10

_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_MARK = re.compile(r"--A--(\w+)--B--")
#: A mark that is not named as the column is.
_OTHER_NAMES: Final = {"vendor_id": "vendor_lead_code"}
#: What may stand in a URL; all else is encoded.
_PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F)))
#: What means nothing within a query, so that it may stay readable.
_HARMLESS: Final = "/:@"
_NO_WORDS: Final = LeadWords(*[""] * len(LeadWords._fields))

# --- SQL of QueueMetrics' database

_FIND_CONNECT: Final = (
    "SELECT agent, data4 FROM queue_log WHERE call_id = %s AND verb = %s ORDER BY time_id DESC LIMIT 1"
)
_INSERT: Final = (
    "INSERT INTO queue_log"
    " (`partition`, time_id, call_id, queue, agent, verb, data1, data2, data3, data4, serverid)"
    " SELECT 'P01', %s, %s, %s, %s, %s, %s, %s, %s, %s, %s FROM DUAL"
)
_UNLESS_WRITTEN: Final = (
    " WHERE NOT EXISTS (SELECT 1 FROM queue_log WHERE call_id = %s AND verb = %s AND time_id > %s)"
)


class Connect(NamedTuple):
    """How a call met an agent, as QueueMetrics knows it.

    Attributes:
        agent: As ``Agent/6666``.
        data4: Whatever stands there; the row of the call's end repeats it.
    """

    agent: str
    data4: str


class Places(NamedTuple):
    """A call's place in the queue.

    Attributes:
        first: When it came, as it stands in its row.
        last: When its caller gave up.
    """

    first: str
    last: int


@dataclass(frozen=True, slots=True)
class _Address:
    """Where QueueMetrics' database is, and as whom one gets in."""

    host: str
    database: str
    login: str
    password: str = field(repr=False)


class QueueLogs:
    """QueueMetrics, for all calls of a worker.

    Args:
        site: Says how long the database has for an answer.
        log: Told of trouble: one error a minute for each server.
        seconds: Seconds that only grow; for tests.
    """

    def __init__(self, site: Site, log: Log, seconds: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = site.queue_timeout_s
        self._losses = _Losses(log, seconds)
        self._address: _Address | None = None
        self._executor: Executor | None = None
        self._requests = Pool(MOST_REQUESTS)

    def log_end(self, leg: Leg, auto_call: AutoCall, lead_id: int, uid: str = "") -> QueueLogRow | None:
        """Tell QueueMetrics that the caller has gone: he gave up waiting, or he ended the talk.

        Args:
            leg: The request. The row gets the time now, because the request may have paused; see its
                ``clock``.
            auto_call: The call, as it was before its row was deleted.
            lead_id: Out of the call's code.
            uid: The unique id under which the call is known; empty for that of the request.

        Returns:
            The row that was written; None if none is wanted (no QueueMetrics, or the call never left a
            voice menu) or if it could not be written.

        Raises:
            DatabaseUnavailable: VICIdial's own database is away.

        Source: VICIdial's FastAGI daemon, observed: QueueMetrics' queue_log, steps 1 to 4.
        """
        if leg.system.queue_logging < 1 or _IVR in auto_call.status:
            return None
        now_epoch = leg.clock().epoch
        since = Moment.at(now_epoch - _ENTRY_AGE_S).text
        entry = leg.tables.queue_entry(uid or leg.request.uid, lead_id, auto_call.campaign_id, since)
        asked = self._run(leg.system, (_FIND_CONNECT, (auto_call.callerid, CONNECT)))
        if asked is None:
            return None
        found = asked.answers[0].rows
        connect = Connect(text(found[0][0]), text(found[0][1])) if found else None
        place, entered = entry or ("", "")
        before_us = 0
        if entered and connect is None:
            before_us = leg.tables.count_waiting(auto_call.campaign_id, entered)
        places = Places(place or _FIRST_PLACE, 1 + before_us)
        row = end_row(auto_call, places, connect, leg.system.queue_log_id, now_epoch)
        insert, careful = _inserts(row)
        done = self._run(leg.system, careful if leg.careful else insert, careful)
        if done is None:
            return None
        # Who finds the row there has told of it before, or another request does.
        is_there = leg.careful and not done.in_doubt and not done.answers[0].matched
        if row.verb == COMPLETE_CALLER and not is_there:
            self._tell(leg, lead_id, row)
        return row

    def close(self) -> None:
        """Close the connections at the end of the worker; requests that are under way have a second."""
        self._requests.join(timeout=_FAREWELL_S)
        self._requests.kill()
        self._leave()

    # --- the database

    def _run(self, system: System, first: Statement, repeated: Statement | None = None) -> Done | None:
        """Carry out a statement; None if that cannot be done, and the row is lost."""
        server = f"QueueMetrics' database at {system.queue_host}"
        try:
            return self._database(system).run([first], None if repeated is None else [repeated])
        except (DatabaseUnavailable, DatabaseBusy, OperatorError, err.Error) as error:
            self._losses.add(server, "row", str(error))
        except Exception as error:
            # Settings that are none: a name or a password that cannot be sent. The words may repeat it, and
            # the call goes on whatever it is.
            self._losses.add(server, "row", type(error).__name__)
        return None

    def _database(self, system: System) -> Executor:
        """Give the database that the settings name now, and leave one that they named before.

        Raises:
            OperatorError: It cannot be named so.
        """
        address = _Address(
            system.queue_host, system.queue_database, system.queue_login, system.queue_password
        )
        if self._executor is None or address != self._address:
            self._leave()
            self._executor = _executor(address, self._timeout_s)
            self._address = address
        return self._executor

    def _leave(self) -> None:
        if self._executor is not None:
            self._executor.database.close()
        self._executor = None

    # --- the request over HTTP

    def _tell(self, leg: Leg, lead_id: int, row: QueueLogRow) -> None:
        """Send the request for a row, if the settings want one."""
        template = leg.system.queue_socket_url
        if _TELLS_END not in leg.system.queue_socket or len(template) <= _SHORT_URL:
            return
        words = leg.tables.lead_words(lead_id) if _MARK.search(template) else _NO_WORDS
        url = socket_url(template, words, row)
        if self._requests.full():
            self._losses.add(_server(url), "request", f"{MOST_REQUESTS} are under way")
        else:
            self._requests.spawn(self._get, url)

    def _get(self, url: str) -> None:
        try:
            with gevent.Timeout(_REQUEST_LIMIT_S, TimeoutError("no answer in time")):
                _opener().open(url, timeout=_REQUEST_LIMIT_S).close()
        except HTTPError as error:
            error.close()
            self._losses.add(_server(url), "request", f"HTTP status {error.code}")
        except OSError as error:
            self._losses.add(_server(url), "request", str(getattr(error, "reason", error)))
        except (HTTPException, ValueError) as error:
            # The words may repeat the URL, which speaks of a lead.
            self._losses.add(_server(url), "request", type(error).__name__)


class _Losses:
    """Counts what was lost, and says so once a minute for each server."""

    def __init__(self, log: Log, seconds: Callable[[], float]) -> None:
        self._log = log
        self._seconds = seconds
        self._counts: dict[str, int] = {}
        self._said_at_s: dict[str, float] = {}

    def add(self, server: str, what: str, reason: str) -> None:
        """Count a loss.

        Args:
            server: Who was to get it.
            what: It, as ``row``.
            reason: Why it was lost, without secrets.
        """
        count = self._counts[server] = self._counts.get(server, 0) + 1
        now_s = self._seconds()
        said_at_s = self._said_at_s.get(server)
        if said_at_s is None or now_s - said_at_s >= _SAY_EVERY_S:
            self._said_at_s[server] = now_s
            self._log.error("%s: a %s was lost: %s; %d lost so far", server, what, reason, count)


# --- what the row says


def waited(stage: str) -> str:
    """Read how long a call waited out of its stage.

    Args:
        stage: Of the auto call, as ``LIVE-12`` or ``XFER-3.5``.

    Returns:
        Seconds, as they stand behind the last dash; ``0`` if they are below 0.25 or no number.

    Source: VICIdial's FastAGI daemon, observed: QueueMetrics' queue_log.
    """
    wait = stage.rpartition("-")[2]
    number = _NUMBER.match(wait)
    return wait if number is not None and float(number[0]) >= _LEAST_WAIT_S else "0"


def end_row(
    auto_call: AutoCall, places: Places, connect: Connect | None, log_id: str, now_epoch: int
) -> QueueLogRow:
    """Make the row of a caller who has gone.

    Args:
        auto_call: His call, as it was before its row was deleted.
        places: Its places in the queue.
        connect: How he met an agent; None if he did not, so that he gave up waiting.
        log_id: As which VICIdial writes into ``queue_log``.
        now_epoch: When he went, in seconds since 1970.

    Source: VICIdial's FastAGI daemon, observed: QueueMetrics' queue_log, steps 3 and 4.
    """
    wait = waited(auto_call.stage)
    if connect is None:
        connect, verb = Connect(_NOBODY, ""), ABANDON
        data = (str(places.last), places.first, wait)
    else:
        verb = COMPLETE_CALLER
        data = (wait, str(now_epoch - auto_call.call_epoch), places.first)
    call_id, queue = auto_call.callerid, auto_call.campaign_id
    return QueueLogRow(now_epoch, call_id, queue, connect.agent, verb, *data, connect.data4, log_id)


def _inserts(row: QueueLogRow) -> tuple[Statement, Statement]:
    """Make the statement that inserts a row, and the one that first looks whether it is there."""
    values: Sequence[object] = astuple(row)
    unless = (*values, row.call_id, row.verb, row.time_id - _SAME_ROW_S)
    return (_INSERT, values), (_INSERT + _UNLESS_WRITTEN, unless)


# --- what the request says


def socket_url(template: str, words: LeadWords, row: QueueLogRow) -> str:
    """Make the URL by which QueueMetrics learns of a row at once.

    Values are encoded as a query wants it, a space as ``+``, so that a lead's name cannot change what the
    URL means. A mark with an unknown name stays as it is.

    Args:
        template: From the settings: a URL, with ``VAR`` before it where that was wanted, and with marks such
            as ``--A--last_name--B--`` for what is known of the lead.
        words: What is known of the lead; not needed without marks.
        row: What happened; it becomes the end of the query, all but its ``serverid``.

    Source: VICIdial's FastAGI daemon, observed: the socket send. It handed the URL to a program of its own,
    in a shell's command line; we make the request ourselves, which is the same to those who get it.
    """
    known = words._asdict()

    def word(mark: re.Match[str]) -> str:
        name = _OTHER_NAMES.get(mark[1], mark[1])
        return quote_plus(known[name], _HARMLESS) if name in known else mark[0]

    url = quote(_MARK.sub(word, template.removeprefix("VAR")).replace(" ", "+"), _PRINTABLE)
    told = asdict(row)
    del told["serverid"]
    return f"{url}{'&' if '?' in url else '?'}{urlencode(told, safe=_HARMLESS)}"


def _server(url: str) -> str:
    """Name the server of a URL, and nothing else that the URL says."""
    try:
        return f"QueueMetrics' socket at {urlsplit(url).hostname}"
    except ValueError:
        return "QueueMetrics' socket"


# --- what does the work


def _executor(address: _Address, timeout_s: float) -> Executor:
    """Make what carries statements out in a database of QueueMetrics.

    Raises:
        OperatorError: There cannot be a host of this name.
    """
    url = URL.create("mysql+pymysql", address.login, address.password, address.host, _PORT, address.database)
    settings = DatabaseSettings(
        name="queuemetrics",
        urls=(url.render_as_string(hide_password=False),),
        pool_size=_POOL_SIZE,
        pool_timeout_s=timeout_s,
        connect_timeout_s=timeout_s,
        read_timeout_s=timeout_s,
        write_timeout_s=timeout_s,
        required_at_boot=False,
        sql_mode="NO_ENGINE_SUBSTITUTION",
        multi_statements=True,
    )
    return Executor(Database(settings), _RETRY_PAUSES_S, patience_s=timeout_s)


@cache
def _opener() -> OpenerDirector:
    """Make what sends requests, once: to read the machine's certificates takes some time."""
    opener = build_opener(HTTPSHandler(context=ssl.create_default_context()))
    opener.addheaders = [("User-Agent", "fastagi_pool")]
    return opener
