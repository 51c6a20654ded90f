"""Tables: the picture of a pool as text for people. Pure: pictures and events in, lines out.

Laws:
    * What is wrong stands first, in words that say what to do about it.
    * Text from outside, as a caller's number, reaches no terminal raw: what cannot be printed is escaped.
    * No cell is cut: tables are read by people and by grep.

How it works: a picture is what ``PoolStatus.as_json`` gives, a call what ``CallFacts.as_json`` gives; so the
text and ``--json`` cannot disagree. What a second of work was like (:class:`Pace`) is the difference of two
pictures.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

if TYPE_CHECKING:
    from fastagi_pool.recording import TraceEvent

#: A pool, one of its calls, or another part of it, as plain values.
Json: TypeAlias = Mapping[str, Any]

#: A worker whose hub was later than this at its last beat makes calls wait.
_LATE_S: Final = 0.5
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86400
#: From this share on the journal is nearly full: about a fifth of the time that it lasts is left.
_NEARLY_FULL: Final = 0.8
#: The lane of all routes that name none.
_DEFAULT_LANE: Final = "default"
#: Columns whose values are words: set to the left. All others are numbers and times.
_WORDS: Final = frozenset(
    ("name", "route", "peer", "state", "from", "callerid", "uniqueid", "at", "server", "reason")
)


# --- words


def shown(text: object) -> str:
    """Write a value so that it does nothing to a terminal, and stays on one line."""
    line = str(text)
    return line if line.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in line)


def _escaped(char: str) -> str:
    # Surrogates, which stand for stray bytes, are no characters to unicode_escape.
    return f"\\u{ord(char):04x}" if "\ud800" <= char <= "\udfff" else ascii(char)[1:-1]


def duration(seconds: float) -> str:
    """Write a length of time with as many digits as one reads: ``0.4 ms``, ``12.3 s``, ``3h 05m``."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.1f} ms"
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}m {whole % _MINUTE_S:02d}s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S}h {whole % _HOUR_S // _MINUTE_S:02d}m"
    return f"{whole // _DAY_S}d {whole % _DAY_S // _HOUR_S:02d}h"


def count(number: int, what: str) -> str:
    """Write a number of things: ``1 call``, ``12,000 calls``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


ItemT = TypeVar("ItemT")
#: What stands over each column, and what is in it of an item.
Columns: TypeAlias = Sequence[tuple[str, Callable[[ItemT], object]]]


@dataclass(frozen=True, slots=True)
class Table:
    """Heads and rows, as text.

    Attributes:
        heads: One for each column; what is a number or a time is set to the right.
        rows: As many cells each.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, columns: Columns[ItemT], items: Iterable[ItemT]) -> Table:
        """Make one, a row for each item; what the cells hold is made fit for a terminal."""
        heads = tuple(head for head, _ in columns)
        return cls(heads, tuple(tuple(shown(cell(item)) for _, cell in columns) for item in items))

    def lines(self) -> list[str]:
        """Write it: the heads, then the rows, in columns; no cell is ever cut."""
        table = [self.heads, *self.rows]
        widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
        return [self._line(row, widths) for row in table]

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        cells = []
        for head, cell, width in zip(self.heads, row, widths, strict=True):
            room = " " * (width - _width(cell))
            cells.append(room + cell if head not in _WORDS else cell + room)
        return "  ".join(cells).rstrip()


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


# --- what is wrong


def complaints(picture: Json) -> list[str]:
    """Say what is wrong with a pool, the worst first; nothing if all is well."""
    if not picture["running"]:
        return ["the master does not run: what follows is the pool's last word"]
    return [
        *_workers_faults(picture),
        *_databases_faults(picture),
        *_journal_faults(picture["journal"]),
        *_crowd_faults(picture),
        *_reload_faults(picture["reload"]),
        *_blind_spots(picture),
    ]


def _workers_faults(picture: Json) -> list[str]:
    workers = picture["workers"]
    found = [
        f"worker {each['slot']} (pid {each['pid']}) is stuck with {count(each['active'], 'call')}: "
        f"'fastagi-pool dump {each['slot']}' shows where"
        for each in workers
        if each["stuck"]
    ]
    ready = sum(each["state"] == "ready" for each in workers)
    if picture["stopping"]:
        found.append("the pool is stopping: no new calls are taken")
    elif not ready:
        found.append("no worker accepts calls: the log says why")
    elif ready < picture["workers_wanted"]:
        found.append(f"only {ready} of {picture['workers_wanted']} workers accept calls: the log says why")
    found += [
        f"worker {each['slot']} lags by {duration(each['lag_s'])}: a handler computes without a pause, "
        "or the machine has too little processor time"
        for each in workers
        if each["lag_s"] > _LATE_S and not each["stuck"]
    ]
    return found


def _databases_faults(picture: Json) -> list[str]:
    return [
        f"database {shown(each['name'])} is away for {count(each['down_workers'], 'worker')}"
        f"{_since(each['down_s'])}: {shown(each['reason']) or 'no reason was given'}"
        for each in picture["databases"]
        if not each["up"]
    ]


def _since(seconds: float) -> str:
    return f", for {duration(seconds)} now" if seconds else ""


def _journal_faults(journal: Json | None) -> list[str]:
    if journal is None:
        return []
    found = []
    if _fullness(journal) >= _NEARLY_FULL:
        found.append(
            f"the journal is {_fullness(journal):.0%} full; beyond that, calls fail whose database is away: "
            "bring the database back, or raise journal.max_size"
        )
    if journal["quarantined"]:
        found.append(
            f"the journal has {count(journal['quarantined'], 'call')} in quarantine, not to be done until "
            "you say so: 'fastagi-pool journal list --quarantined' shows why"
        )
    return found


def _fullness(journal: Json) -> float:
    """Return which share of its room the journal takes; 0 if it has no limit."""
    return journal["used_bytes"] / journal["limit_bytes"] if journal["limit_bytes"] else 0.0


def _crowd_faults(picture: Json) -> list[str]:
    found = []
    if picture["queued"]:
        found.append(
            f"{count(picture['queued'], 'call')} of {picture['active'] + picture['queued']} wait for a place "
            f"({picture['places']} places): see what calls wait for, or raise workers or calls_per_worker"
        )
    listen = picture["listen"]
    if listen["limit"] and listen["queue"] * 2 >= listen["limit"]:
        found.append(f"the listening queue holds {listen['queue']} of {listen['limit']} connections")
    return found


def _reload_faults(reload: Json) -> list[str]:
    reasons = "; ".join(reload["error"].splitlines())
    return [f"the last reload was refused: {shown(reasons)}"] if reasons else []


def _blind_spots(picture: Json) -> list[str]:
    found = [f"not shown here: {shown(each)}" for each in picture["unreadable"]]
    if picture["lost_lines"]:
        found.insert(
            0, f"{count(picture['lost_lines'], 'line')} of the log could not be written: is its disk full?"
        )
    return found


# --- status


def status_lines(picture: Json) -> list[str]:
    """Write a pool on one screen: what is wrong first, then how it fares, then its workers."""
    lines = [_master_line(picture), *(f"!! {each}" for each in complaints(picture))]
    served = sum(each["calls"] for each in picture["routes"])
    failed = sum(each["failed"] for each in picture["routes"])
    listen, reload = picture["listen"], picture["reload"]
    lines += [
        f"calls     {picture['active']:,} in progress, {picture['queued']:,} queued, "
        f"{picture['places']:,} places; {served:,} served, {failed:,} failed",
        f"listening {listen['queue']} of {listen['limit']} in the queue, {listen['most']} at most",
        f"reloads   {_reload_words(reload)}",
    ]
    reasons = [f"{reason} {number}" for reason, number in picture["restarts"].items() if number]
    lines.append(f"restarts  {', '.join(reasons) or 'none'}")
    if picture["databases"]:
        up = sum(each["up"] for each in picture["databases"])
        lines.append(f"databases {up} of {len(picture['databases'])} answer")
    lines += _protection_lines(picture)
    return [*lines, "", *workers_table(picture).lines()]


def _master_line(picture: Json) -> str:
    state = "running" if picture["running"] else "NOT RUNNING"
    return (
        f"fastagi-pool {picture['version']}: {state}, master {picture['master_pid']}, "
        f"generation {picture['generation']}, up {duration(picture['uptime_s'])}"
    )


def _protection_lines(picture: Json) -> list[str]:
    """Tell of lanes, of the journal and of dead workers: a line of each that there is anything to tell of."""
    lanes, journal, lines = picture["lanes"], picture["journal"], []
    if any(lane["name"] != _DEFAULT_LANE for lane in lanes):
        lines.append(f"lanes     {'; '.join(map(_lane_words, lanes))}")
    if journal is not None and (journal["waiting"] or journal["quarantined"]):
        lines.append(f"journal   {_journal_words(journal)}")
    if picture["lost_calls"]:
        requests = count(picture["quarantined_requests"], "request")
        lines.append(
            f"crashes   {count(picture['lost_calls'], 'call')} lost with workers that died; "
            f"{requests} put into quarantine"
        )
    return lines


def _lane_words(lane: Json) -> str:
    words = f"{shown(lane['name'])} {lane['active']:,} of {lane['limit']:,}"
    if lane["queued"]:
        words += f", {lane['queued']:,} queued"
    return f"{words}, {lane['refused']:,} refused" if lane["refused"] else words


def _journal_words(journal: Json) -> str:
    names = [shown(each["name"]) for each in journal["databases"] if each["waiting"]]
    parts = []
    if names:
        verb = "waits" if journal["waiting"] == 1 else "wait"
        parts.append(
            f"{count(journal['waiting'], 'call')} {verb} for {', '.join(names)}, "
            f"the oldest for {duration(journal['oldest_age_s'] or 0.0)}"
        )
    if journal["quarantined"]:
        parts.append(f"{journal['quarantined']:,} in quarantine")
    return "; ".join([*parts, f"{_fullness(journal):.0%} full"])


def _reload_words(reload: Json) -> str:
    if reload["loading"]:
        return f"{reload['asked']}, {reload['refused']} refused; a new generation is being loaded"
    if not reload["asked"]:
        return "none"
    ago = "" if reload["last_s"] is None else f", the last {duration(reload['last_s'])} ago"
    return f"{reload['asked']}, {reload['refused']} refused{ago}"


_CLOCKS: Final = ("queued_s", "asterisk_s", "script_s", "database_s")
_CLOCK_HEADS: Final = ("queued", "Asterisk", "script", "database")


def _mean(seconds: float, number: int) -> str:
    return duration(seconds / number) if number > 0 else "-"


def _mean_of_calls(key: str) -> Callable[[Json], str]:
    return lambda each: _mean(each[key], each["calls"])


_WORKER_COLUMNS: Final[Columns[Json]] = (
    ("worker", lambda each: each["slot"]),
    ("gen", lambda each: each["generation"]),
    ("pid", lambda each: each["pid"]),
    ("state", lambda each: "STUCK" if each["stuck"] else each["state"]),
    ("now", lambda each: each["active"]),
    ("queued", lambda each: each["queued"]),
    ("places", lambda each: each["places"]),
    ("served", lambda each: each["served"]),
    ("failed", lambda each: each["failed"]),
    ("MB", lambda each: each["rss_bytes"] >> 20),
    ("lag", lambda each: duration(each["lag_s"])),
    ("age", lambda each: duration(each["age_s"])),
)
_ROUTE_COLUMNS: Final[Columns[Json]] = (
    ("route", lambda each: each["route"] or "(none)"),
    ("now", lambda each: each["active"]),
    ("calls", lambda each: each["calls"]),
    ("failed", lambda each: each["failed"]),
    ("slow", lambda each: each["slow"]),
    ("hangups", lambda each: each["hangups"]),
    ("commands", lambda each: each["commands"]),
    ("refused", lambda each: each["refused"]),
    *((head, _mean_of_calls(key)) for head, key in zip(_CLOCK_HEADS, _CLOCKS, strict=True)),
    ("mean", _mean_of_calls("total_s")),
)
_DATABASE_COLUMNS: Final[Columns[Json]] = (
    ("name", lambda each: each["name"]),
    ("state", lambda each: "up" if each["up"] else f"away ({count(each['down_workers'], 'worker')})"),
    ("size", lambda each: each["size"]),
    ("connected", lambda each: each["connected"]),
    ("used", lambda each: each["in_use"]),
    ("waiting", lambda each: each["waiting"]),
    ("statements", lambda each: each["statements"]),
    ("mean", lambda each: _mean(each["seconds"], each["statements"])),
    ("failed", lambda each: each["failures"]),
    ("server", lambda each: each["server"]),
    ("reason", lambda each: each["reason"]),
)


def workers_table(picture: Json) -> Table:
    """Tabulate the workers."""
    return Table.of(_WORKER_COLUMNS, picture["workers"])


def routes_table(picture: Json) -> Table:
    """Tabulate what the routes have done since the master began; the clocks are means of a call."""
    return Table.of(_ROUTE_COLUMNS, picture["routes"])


def databases_table(picture: Json) -> Table:
    """Tabulate the databases."""
    return Table.of(_DATABASE_COLUMNS, picture["databases"])


# --- calls


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which calls are wanted.

    Attributes:
        route: A glob for the route's name; empty for all.
        callerid: A glob for the caller's number; empty for all.
        uniqueid: A glob for the channel's unique id; empty for all.
        letter: The letter of the state; empty for all.
        older_s: The least age.
    """

    route: str = ""
    callerid: str = ""
    uniqueid: str = ""
    letter: str = ""
    older_s: float = 0.0

    def fits(self, call: Json) -> bool:
        """Whether a call is wanted."""
        globs = (
            (call["route"], self.route),
            (call["callerid"], self.callerid),
            (call["uniqueid"], self.uniqueid),
        )
        return (
            all(not glob or fnmatchcase(found, glob) for found, glob in globs)
            and (not self.letter or call["letter"] == self.letter)
            and call["age_s"] >= self.older_s
        )


def _at_work(call: Json) -> str:
    """Say with what a call is, or was last: the statement in the database, else the command."""
    return str(call["statement"] if call["letter"] == "D" else call["command"]) or "-"


def standing(call: Json) -> str:
    """Say in one line what a call is doing."""
    return f"now {call['state']} since {duration(call['state_s'])}: {shown(_at_work(call))}"


def _clock(key: str) -> Callable[[Json], str]:
    return lambda call: duration(call[key])


_CALL_COLUMNS: Final[Columns[Json]] = (
    ("age", _clock("age_s")),
    ("state", lambda call: f"{call['state']}{', hung up' if call['hung_up'] else ''}"),
    ("since", _clock("state_s")),
    ("route", lambda call: call["route"] or "-"),
    ("callerid", lambda call: call["callerid"] or "-"),
    ("uniqueid", lambda call: call["uniqueid"] or "-"),
    ("from", lambda call: call["peer"]),
    ("worker", lambda call: call["slot"]),
    *((head, _clock(key)) for head, key in zip(_CLOCK_HEADS, _CLOCKS, strict=True)),
    ("at", _at_work),
)


#: For a screen, which is narrow: who, where, since when.
_SLOW_CALL_COLUMNS: Final[Columns[Json]] = tuple(
    column for column in _CALL_COLUMNS if column[0] not in ("uniqueid", "worker", *_CLOCK_HEADS)
)


def calls_table(calls: Iterable[Json]) -> Table:
    """Tabulate calls in progress: how old, in which state since when, who, and with what."""
    return Table.of(_CALL_COLUMNS, calls)


# --- top


@dataclass(frozen=True, slots=True)
class Pace:
    """What a pool, a route or an Asterisk did between two pictures.

    Attributes:
        name: Whose; empty for the pool's.
        active: Calls in progress now.
        rate: Calls ended a second.
        failed_rate: Of these, failures.
        clocks_s: Means of a call: queued, in Asterisk, in script, in database; None if no call ended.
    """

    name: str
    active: int
    rate: float
    failed_rate: float
    clocks_s: tuple[float, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values for ``json.dumps``."""
        clocks = dict(zip(_CLOCKS, self.clocks_s or (), strict=False))
        return {
            "name": self.name,
            "active": self.active,
            "rate": round(self.rate, 3),
            "failed_rate": round(self.failed_rate, 3),
            **{clock: round(seconds, 6) for clock, seconds in clocks.items()},
        }


def paces(before: Iterable[Json], now: Iterable[Json], key: str, elapsed_s: float) -> list[Pace]:
    """Compare two pictures of routes or peers; the busiest first.

    Args:
        before: The earlier ones.
        now: The later ones.
        key: Under which each has its name.
        elapsed_s: Time between the two.
    """
    known = {each[key]: each for each in before}
    found = [_pace(known.get(each[key], {}), each, each[key], elapsed_s) for each in now]
    return sorted(found, key=lambda pace: (-pace.rate, -pace.active, pace.name))


def _pace(before: Json, now: Json, name: str, elapsed_s: float) -> Pace:
    # After a restart of the pool its counters begin anew.
    base = before if before.get("calls", 0) <= now["calls"] else {}
    calls = now["calls"] - base.get("calls", 0)
    failed = now["failed"] - base.get("failed", 0)
    clocks = None
    if calls and "total_s" in now:
        clocks = tuple(max(0.0, now[clock] - base.get(clock, 0.0)) / calls for clock in _CLOCKS)
    return Pace(name, now["active"], calls / elapsed_s, max(0, failed) / elapsed_s, clocks)


@dataclass(frozen=True, slots=True)
class Moment:
    """What ``top`` shows at one moment.

    Attributes:
        picture: The pool now.
        rate: Calls ended a second.
        failed_rate: Of these, failures.
        routes: The routes' paces, the busiest first.
        peers: Those of the Asterisk servers.
        slowest: The oldest calls in progress, the oldest first.
    """

    picture: Json
    rate: float
    failed_rate: float
    routes: tuple[Pace, ...]
    peers: tuple[Pace, ...]
    slowest: tuple[Json, ...]

    @classmethod
    def between(cls, before: Json, now: Json, elapsed_s: float, slowest: Iterable[Json]) -> Moment:
        """Compare two pictures.

        Args:
            before: The earlier one.
            now: The later one.
            elapsed_s: Time between the two; more than 0.
            slowest: The oldest calls in progress.
        """
        routes = paces(before["routes"], now["routes"], "route", elapsed_s)
        peers = paces(before["peers"], now["peers"], "peer", elapsed_s)
        rate, failed_rate = sum(each.rate for each in routes), sum(each.failed_rate for each in routes)
        return cls(now, rate, failed_rate, tuple(routes), tuple(peers), tuple(slowest))

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values for ``json.dumps``."""
        return {
            "running": self.picture["running"],
            "active": self.picture["active"],
            "queued": self.picture["queued"],
            "places": self.picture["places"],
            "rate": round(self.rate, 3),
            "failed_rate": round(self.failed_rate, 3),
            "complaints": complaints(self.picture),
            "lanes": self.picture["lanes"],
            "journal": self.picture["journal"],
            "routes": [each.as_json() for each in self.routes],
            "peers": [each.as_json() for each in self.peers],
            "slowest": list(self.slowest),
        }

    def lines(self, height: int = 0) -> list[str]:
        """Write it.

        Args:
            height: How many lines there is room for; 0 for any number.
        """
        picture = self.picture
        ready = sum(each["state"] == "ready" for each in picture["workers"])
        lines = [
            _master_line(picture),
            *(f"!! {each}" for each in complaints(picture)),
            f"{self.rate:,.1f} calls a second, {self.failed_rate:,.1f} failed; "
            f"{picture['active']:,} in progress, {picture['queued']:,} queued, "
            f"{picture['places']:,} places; {ready} of {picture['workers_wanted']} workers",
            *_protection_lines(picture),
        ]
        # A third of what is left to each of the three; what the first two do not need is the last one's.
        third = max(2, (height - len(lines)) // 3 - 2) if height else None
        for table in (
            Table.of(_ROUTE_PACE_COLUMNS, self.routes[:third]),
            Table.of(_PEER_PACE_COLUMNS, self.peers[:third]),
        ):
            lines += ["", *table.lines()]
        left = max(1, height - len(lines) - 2) if height else None
        lines += ["", *Table.of(_SLOW_CALL_COLUMNS, self.slowest[:left]).lines()]
        return lines[: height or None]


def _pace_clock(number: int) -> Callable[[Pace], str]:
    return lambda pace: duration(pace.clocks_s[number]) if pace.clocks_s else "-"


_RATE_COLUMNS: Final[Columns[Pace]] = (
    ("calls/s", lambda pace: f"{pace.rate:,.1f}"),
    ("failed/s", lambda pace: f"{pace.failed_rate:,.1f}"),
    ("now", lambda pace: pace.active),
)
_PEER_PACE_COLUMNS: Final[Columns[Pace]] = (("peer", lambda pace: pace.name), *_RATE_COLUMNS)
_ROUTE_PACE_COLUMNS: Final[Columns[Pace]] = (
    ("route", lambda pace: pace.name or "(none)"),
    *_RATE_COLUMNS,
    *((head, _pace_clock(number)) for number, head in enumerate(_CLOCK_HEADS)),
)


# --- trace


class TraceText:
    """Writes the events of calls that are followed live, each as it comes."""

    def __init__(self, *, several: bool) -> None:
        """Begin.

        Args:
            several: Whether events of several calls may be mixed: then each line names its call.
        """
        self._several = several
        self._last_s: dict[str, float] = {}

    def lines(self, event: TraceEvent) -> list[str]:
        """Write one event: when, how long whose clock ran until then, and what was said."""
        took_s = event.at_s - self._last_s.get(event.ref, event.at_s)
        self._last_s[event.ref] = event.at_s
        write = _TRACE_WRITERS[event.kind.value]
        if event.kind.value == "end":
            del self._last_s[event.ref]
        prefix = f"{shown(event.ref)} " if self._several else ""
        return [f"{prefix}{event.at_s * 1000:>11.1f} ms  {line}" for line in write(event, took_s)]


def _begin(event: TraceEvent, _: float) -> Collection[str]:
    facts = event.facts
    asked = facts.get("environment", {})
    names = (
        ("script", "network_script"),
        ("callerid", "callerid"),
        ("uniqueid", "uniqueid"),
        ("channel", "channel"),
    )
    who = [f"{name}={shown(asked.get(f'agi_{key}', ''))}" for name, key in names]
    lines = [f"== call={shown(event.ref)} route={shown(facts.get('route', ''))} {' '.join(who)}"]
    if facts.get("joined"):
        lines.append("   it is in progress already: what it does next is shown")
    if facts.get("masked"):
        lines.append("   what the caller dials is hidden (mask_digits)")
    return lines


def _command(event: TraceEvent, took_s: float) -> Collection[str]:
    return [f"{'script':<8} {duration(took_s):>9}  <- {shown(event.text)}"]


def _answer(event: TraceEvent, took_s: float) -> Collection[str]:
    return [f"{'Asterisk':<8} {duration(took_s):>9}  -> {shown(event.text)}"]


def _unsent(event: TraceEvent, _: float) -> Collection[str]:
    return ["that command was not sent: the handler has given the call back"]


def _hangup(event: TraceEvent, _: float) -> Collection[str]:
    return ["the caller hung up"]


def _end(event: TraceEvent, _: float) -> Collection[str]:
    facts = event.facts
    line = f"== ended: {shown(event.text)}"
    if facts:
        clocks = zip(_CLOCK_HEADS, _CLOCKS, strict=True)
        told = ", ".join(f"{head} {duration(facts[clock])}" for head, clock in clocks)
        line += f"; {told}; {duration(facts['total_s'])} in all, {count(facts['commands'], 'command')}"
    return [line, f"   {shown(facts['error'])}"] if facts.get("error") else [line]


_TRACE_WRITERS: Final[Mapping[str, Callable[[TraceEvent, float], Collection[str]]]] = {
    "begin": _begin,
    "command": _command,
    "answer": _answer,
    "unsent": _unsent,
    "hangup": _hangup,
    "end": _end,
}
