"""RouteTable: which route serves a request, and why.

Laws:
    * The order is told by the table alone: higher ``priority`` first, then exact scripts before
      patterns before the default, then the order of the configuration. The first that matches wins.
    * Matching reads the request and nothing else; it imports no handler.
    * Scripts are matched as Asterisk sent them: raw, case-sensitive, without a leading slash.

In a glob ``*`` stands for any characters but ``/``, ``**`` for any at all, ``?`` for one but ``/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from itertools import product
from typing import Any, Final

from fastagi_pool.endings import GO_ON, OnError
from fastagi_pool.protocol import Request

#: Scripts whose candidates are remembered; beyond it the memory begins anew. VICIdial-style scripts
#: differ with every call and would otherwise fill it without end.
_REMEMBERED_SCRIPTS: Final = 4096
#: Each wildcard of a glob multiplies the samples by which its shadows are found, by up to 4: 6 make 4,096.
_MOST_WILDCARDS: Final = 6
_WILDCARD = re.compile(r"\*\*|\*|\?")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


class RouteKind(Enum):
    """How a route names its scripts; earlier kinds win over later ones of the same priority."""

    SCRIPT = "script"
    GLOB = "glob"
    REGEX = "regex"
    DEFAULT = "default"


#: Patterns that take every script.
_ANYTHING: Final = frozenset({(RouteKind.GLOB, "**"), (RouteKind.REGEX, ".*")})
_RANK: Final = {RouteKind.SCRIPT: 0, RouteKind.GLOB: 1, RouteKind.REGEX: 1, RouteKind.DEFAULT: 2}


@dataclass(frozen=True, slots=True)
class Route:
    """One entry of the table.

    Attributes:
        name: Unique; the logs and ``routes`` show it.
        kind: How ``pattern`` is read.
        pattern: The exact script, the glob or the regular expression; empty for the default.
        handler: Who serves its calls, in words: ``package.module:function``, or what stands in its place.
        query: Query parameters that must be there: name to glob.
        arguments: Arguments that must be there: position, from 1, to glob.
        context: Glob that the dialplan context must match; empty for any.
        priority: Higher is tried first.
        options: What the handler finds in ``context.options``.
        databases: Databases without which the handler cannot work.
        script_timeout_s: The handler's own time; 0 for no limit.
        idle_timeout_s: Longest wait for Asterisk's answer; 0 for no limit.
        raise_hangup: Whether a hangup ends the handler at its next command.
        on_error: What the dialplan does after a call that failed.
        clean_arguments: Whether line ends and NUL in arguments of commands become spaces.
        mask_digits: Whether recordings hide what the caller dials.
        free_names: Whether :func:`script_fault` is not asked.
        slow_after_s: Beyond this much of the handler's own time a call is slow; 0 for never.
        drain_timeout_s: How long a call may go on once its worker drains; 0 ends it at once.
        lane: The lane that its calls belong to.
        deferred_by: The database whose outage defers its calls; empty if none does.
        repeatable: Whether its handler bears being run twice.
    """

    name: str
    kind: RouteKind
    pattern: str
    handler: str
    query: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[int, str] = field(default_factory=dict)
    context: str = ""
    priority: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    databases: tuple[str, ...] = ()
    script_timeout_s: float = 60.0
    idle_timeout_s: float = 14400.0
    raise_hangup: bool = True
    on_error: OnError = GO_ON
    clean_arguments: bool = False
    mask_digits: bool = False
    free_names: bool = False
    slow_after_s: float = 0.0
    drain_timeout_s: float = 14400.0
    lane: str = "default"
    deferred_by: str = ""
    repeatable: bool = False

    @property
    def conditions(self) -> tuple[object, ...]:
        """Everything besides the script that a request must have; empty if nothing."""
        conditions: list[object] = [("query", *item) for item in sorted(self.query.items())]
        conditions += [("argument", *item) for item in sorted(self.arguments.items())]
        return (*conditions, *([("context", self.context)] if self.context else []))

    def __str__(self) -> str:
        what = self.kind.value if self.kind is RouteKind.DEFAULT else f"{self.kind.value} {self.pattern}"
        return f"{self.name} ({what})"


@dataclass(frozen=True, slots=True)
class Match:
    """A route and what its pattern caught in the script."""

    route: Route
    captures: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one route when a request was tried.

    Attributes:
        route: The route.
        wins: Whether this one serves the request.
        reason: Why, or why not.
    """

    route: Route
    wins: bool
    reason: str


@lru_cache(maxsize=1024)
def _compiled_glob(glob: str) -> re.Pattern[str]:
    wildcards = {"**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    parts = [wildcards.get(part) or re.escape(part) for part in _glob_parts(glob)]
    return re.compile("".join(parts), re.DOTALL)


def _glob_parts(glob: str) -> list[str]:
    return re.findall(r"\*\*|\*|\?|[^*?]+", glob)


def _glob_matches(glob: str, text: str) -> bool:
    return _compiled_glob(glob).fullmatch(text) is not None


def _compiled(kind: RouteKind, pattern: str) -> re.Pattern[str]:
    return re.compile(pattern) if kind is RouteKind.REGEX else _compiled_glob(pattern)


def _group_names(pattern: re.Pattern[str]) -> tuple[str, ...]:
    named = {number: name for name, number in pattern.groupindex.items()}
    return tuple(named.get(number, str(number)) for number in range(1, pattern.groups + 1))


def capture_names(kind: RouteKind, pattern: str) -> tuple[str, ...]:
    """Name what a glob or a regular expression catches in a script, as in :attr:`Match.captures`.

    A group, and each wildcard of a glob, has its number from 1; a named group has its name instead.
    """
    return _group_names(_compiled(kind, pattern))


def script_fault(script: str) -> str:
    """Return why a script name is refused unless its route says otherwise; empty if it is not.

    ``..`` climbs out of a folder and control characters forge log lines: neither is meant, as a rule.
    """
    if ".." in script.split("/"):
        return "a script name must not hold '..'"
    if _UNPRINTABLE.search(script):
        return "a script name must not hold control characters"
    return ""


class RouteTable:
    """All routes in the order in which they are tried."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._given = tuple(routes)
        self.routes = tuple(sorted(routes, key=lambda route: (-route.priority, _RANK[route.kind])))
        self._patterns = {
            route.name: _compiled(route.kind, route.pattern)
            for route in routes
            if route.kind in (RouteKind.GLOB, RouteKind.REGEX)
        }
        self._remembered: dict[str, tuple[Match, ...]] = {}

    def match(self, request: Request) -> Match | None:
        """Return the route that serves the request, or None if none does."""
        script = request.script
        candidates = self._remembered.get(script)
        if candidates is None:
            candidates = self._candidates(script)
        for candidate in candidates:
            if _unmet(candidate.route, request) is None:
                return candidate
        return None

    def explain(self, request: Request) -> list[Verdict]:
        """Return what becomes of every route, in the order in which they are tried."""
        verdicts: list[Verdict] = []
        won = ""
        for route in self.routes:
            if self._captures(route, request.script) is None:
                reason = "the script does not match"
            else:
                reason = _unmet(route, request) or (f"{won} comes first" if won else "")
            if not reason:
                won = route.name
                reason = "the default" if route.kind is RouteKind.DEFAULT else "the first that matches"
                verdicts.append(Verdict(route, True, reason))
            else:
                verdicts.append(Verdict(route, False, reason))
        return verdicts

    def shadowed(self) -> list[tuple[int, int]]:
        """Find routes that can never be chosen.

        Returns:
            Pairs of positions in the order given to the table: the route, and the one that takes
            all its requests. Not every shadow is found: regular expressions are compared as text
            only, and globs of very many wildcards not at all. What is found is always true.
        """
        pairs = []
        for place, later in enumerate(self.routes):
            for earlier in self.routes[:place]:
                if _covers_conditions(earlier, later) and self._covers_scripts(earlier, later):
                    pairs.append((self._given.index(later), self._given.index(earlier)))
                    break
        return sorted(pairs)

    # --- matching

    def _candidates(self, script: str) -> tuple[Match, ...]:
        found = ((route, self._captures(route, script)) for route in self.routes)
        candidates = tuple(Match(route, captures) for route, captures in found if captures is not None)
        if len(self._remembered) >= _REMEMBERED_SCRIPTS:
            self._remembered.clear()
        self._remembered[script] = candidates
        return candidates

    def _captures(self, route: Route, script: str) -> Mapping[str, str] | None:
        """What the route's pattern catches; None if it does not match the script."""
        if route.kind is RouteKind.DEFAULT:
            return {}
        if route.kind is RouteKind.SCRIPT:
            return {} if route.pattern == script else None
        pattern = self._patterns[route.name]
        found = pattern.fullmatch(script)
        if found is None:
            return None
        caught = zip(_group_names(pattern), found.groups(), strict=True)
        return {name: text or "" for name, text in caught}

    # --- shadows

    def _covers_scripts(self, earlier: Route, later: Route) -> bool:
        if earlier.kind is RouteKind.DEFAULT or (earlier.kind, earlier.pattern) == (
            later.kind,
            later.pattern,
        ):
            return True
        if later.kind is RouteKind.SCRIPT:
            return self._captures(earlier, later.pattern) is not None
        if (earlier.kind, earlier.pattern) in _ANYTHING:
            return True
        if earlier.kind is not RouteKind.GLOB or later.kind is not RouteKind.GLOB:
            return False
        if len(_WILDCARD.findall(later.pattern)) > _MOST_WILDCARDS:
            return False
        return all(_glob_matches(earlier.pattern, sample) for sample in _samples(later.pattern))


def _samples(glob: str) -> Iterator[str]:
    """Yield scripts that a glob matches, chosen so that another glob matching them all covers it.

    U+0000 stands where anything may stand: no glob names it, so only a wildcard matches it.
    """
    stand_ins = {"**": ("", "\0", "/", "\0/\0"), "*": ("", "\0", "\0\0"), "?": ("\0",)}
    parts = (stand_ins.get(part, (part,)) for part in _glob_parts(glob))
    return ("".join(choice) for choice in product(*parts))


def _covers_conditions(earlier: Route, later: Route) -> bool:
    return set(earlier.conditions) <= set(later.conditions)


def _unmet(route: Route, request: Request) -> str | None:
    """Why the request lacks what the route asks for besides the script; None if nothing."""
    if route.context and not _glob_matches(route.context, request.context):
        return f"the context is not {route.context}"
    for name, glob in route.query.items():
        value = request.query.get(name)
        if value is None or not _glob_matches(glob, value):
            return f"the query parameter {name} is not {glob}"
    for position, glob in route.arguments.items():
        if len(request.arguments) < position or not _glob_matches(glob, request.arguments[position - 1]):
            return f"argument {position} is not {glob}"
    return None
