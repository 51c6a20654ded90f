"""fastagi_pool.routes: which route wins, what it catches, and what the table says about itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastagi_pool.protocol import Request
from fastagi_pool.routes import Route, RouteKind, RouteTable, Verdict, capture_names, script_fault

SCRIPT, GLOB, REGEX, DEFAULT = RouteKind.SCRIPT, RouteKind.GLOB, RouteKind.REGEX, RouteKind.DEFAULT


def route(kind: RouteKind, pattern: str = "", name: str = "", **more: Any) -> Route:
    """Give a route that is named like its pattern."""
    return Route(name or pattern or kind.value, kind, pattern, "module:function", **more)


def request(script: str = "", context: str = "", arguments: Sequence[str] = ()) -> Request:
    """Give a request for a script, with or without a query."""
    return Request({"agi_network_script": script, "agi_context": context}, tuple(arguments))


def winner(routes: Sequence[Route], asked: Request) -> str:
    """Give the name of the route that serves a request, or an empty text."""
    match = RouteTable(routes).match(asked)
    return match.route.name if match else ""


# ---- the order


@pytest.mark.parametrize(
    ("routes", "script", "wins"),
    [
        ([route(SCRIPT, "a")], "a", "a"),
        ([route(SCRIPT, "a")], "b", ""),
        ([route(SCRIPT, "a")], "A", ""),
        ([route(SCRIPT, "a")], "a/", ""),
        ([], "a", ""),
        ([route(DEFAULT)], "a", "default"),
        ([route(DEFAULT)], "", "default"),
        ([route(DEFAULT), route(GLOB, "*"), route(SCRIPT, "a")], "a", "a"),
        ([route(DEFAULT), route(GLOB, "*"), route(SCRIPT, "a")], "b", "*"),
        ([route(DEFAULT), route(GLOB, "*"), route(SCRIPT, "a")], "b/c", "default"),
        ([route(REGEX, "a.*"), route(GLOB, "a*")], "ab", "a.*"),
        ([route(GLOB, "a*"), route(REGEX, "a.*")], "ab", "a*"),
        ([route(GLOB, "a*"), route(GLOB, "ab*")], "abc", "a*"),
        ([route(GLOB, "ab*"), route(GLOB, "a*")], "abc", "ab*"),
        ([route(SCRIPT, "a"), route(GLOB, "*", priority=1)], "a", "*"),
        ([route(SCRIPT, "a"), route(DEFAULT, priority=1)], "a", "default"),
        ([route(SCRIPT, "a", priority=-1), route(DEFAULT)], "a", "default"),
        ([route(GLOB, "a*", priority=1), route(GLOB, "*", priority=2)], "ab", "*"),
    ],
)
def test_the_order(routes: list[Route], script: str, wins: str) -> None:
    """Priority comes first, then exact scripts, patterns, the default, then the order given."""
    assert winner(routes, request(script)) == wins


def test_the_table_shows_its_order() -> None:
    """``routes`` lists the routes as they are tried, whatever the order of the file."""
    given_routes = [route(DEFAULT), route(REGEX, "r"), route(GLOB, "g"), route(SCRIPT, "s")]
    assert [each.name for each in RouteTable(given_routes).routes] == ["s", "r", "g", "default"]


@pytest.mark.parametrize(
    ("kind", "pattern", "script", "captures"),
    [
        (SCRIPT, "a", "a", {}),
        (DEFAULT, "", "a", {}),
        (GLOB, "a/*", "a/b", {"1": "b"}),
        (GLOB, "a/*", "a/", {"1": ""}),
        (GLOB, "a/*", "a/b/c", None),
        (GLOB, "a/**", "a/b/c", {"1": "b/c"}),
        (GLOB, "**/x", "a/b/x", {"1": "a/b"}),
        (GLOB, "?-*.agi", "1-b.agi", {"1": "1", "2": "b"}),
        (GLOB, "a?b", "a/b", None),
        (GLOB, "a.b", "axb", None),
        (GLOB, "[ab]", "a", None),
        (GLOB, "[ab]", "[ab]", {}),
        (GLOB, "a", "ab", None),
        (REGEX, "a", "ab", None),
        (REGEX, r"call/(\d+)", "call/17", {"1": "17"}),
        (REGEX, r"call/(?P<id>\d+)(/x)?", "call/17", {"id": "17", "2": ""}),
        (REGEX, r"(a)(?P<n>b)(c)", "abc", {"1": "a", "n": "b", "3": "c"}),
        (REGEX, r"(?i)HELLO", "hello", {}),
    ],
)
def test_captures(kind: RouteKind, pattern: str, script: str, captures: dict[str, str] | None) -> None:
    """A pattern must match the whole script; what its wildcards or groups caught is told."""
    match = RouteTable([route(kind, pattern)]).match(request(script))
    assert (None if match is None else dict(match.captures)) == captures


@pytest.mark.parametrize(
    ("kind", "pattern", "names"),
    [
        (GLOB, "a/*/b?", ("1", "2")),
        (GLOB, "**", ("1",)),
        (GLOB, "a", ()),
        (REGEX, r"(\w)(?P<kind>\w)(?:x)((y))", ("1", "kind", "3", "4")),
        (REGEX, "a", ()),
    ],
)
def test_capture_names(kind: RouteKind, pattern: str, names: tuple[str, ...]) -> None:
    """What a pattern catches has the same names before any script has come as in a match."""
    assert capture_names(kind, pattern) == names


def test_the_query_is_no_part_of_the_script() -> None:
    """A route for a script serves it with any query."""
    assert winner([route(SCRIPT, "a")], request("a?x=1")) == "a"


# ---- conditions


@pytest.mark.parametrize(
    ("conditions", "asked", "matches"),
    [
        ({"query": {"x": "1"}}, request("s?x=1"), True),
        ({"query": {"x": "1"}}, request("s?x=2"), False),
        ({"query": {"x": "1"}}, request("s"), False),
        ({"query": {"x": "1*"}}, request("s?x=17&y=2"), True),
        ({"query": {"x": "*"}}, request("s?x="), True),
        ({"query": {"x": "*"}}, request("s?x=a/b"), False),
        ({"query": {"x": "**"}}, request("s?x=a/b"), True),
        ({"query": {"x": "1", "y": "2"}}, request("s?x=1"), False),
        ({"arguments": {1: "a"}}, request("s", arguments=["a"]), True),
        ({"arguments": {2: "b"}}, request("s", arguments=["a", "b"]), True),
        ({"arguments": {2: "**"}}, request("s", arguments=["a"]), False),
        ({"arguments": {1: "a"}}, request("s", arguments=["A"]), False),
        ({"context": "from-*"}, request("s", "from-trunk"), True),
        ({"context": "from-*"}, request("s", "internal"), False),
        ({"context": "internal", "query": {"x": "1"}}, request("s?x=1", "internal"), True),
        ({"context": "internal", "query": {"x": "1"}}, request("s?x=1", "other"), False),
    ],
)
def test_conditions(conditions: dict[str, Any], asked: Request, matches: bool) -> None:
    """A route serves only requests that meet all its conditions; the rest goes on to the next."""
    routes = [route(SCRIPT, "s", **conditions), route(DEFAULT)]
    assert winner(routes, asked) == ("s" if matches else "default")


def test_conditions_are_asked_every_time() -> None:
    """What is remembered of a script says nothing about the next call's query."""
    table = RouteTable([route(SCRIPT, "s", query={"x": "1"}), route(DEFAULT)])
    found = [table.match(request(script)) for script in ("s?x=1", "s?x=2", "s?x=1")]
    assert [match.route.name for match in found if match] == ["s", "default", "s"]


def test_conditions_are_comparable() -> None:
    """Two routes ask for the same if they ask in another order."""
    first = route(SCRIPT, "s", query={"x": "1", "y": "2"}, arguments={1: "a"}, context="c")
    second = route(SCRIPT, "s", query={"y": "2", "x": "1"}, arguments={1: "a"}, context="c")
    assert first.conditions == second.conditions
    assert len(first.conditions) == 4
    assert route(DEFAULT).conditions == ()


# ---- explain


def test_explain_says_why() -> None:
    """``fastagi-pool routes`` tells of every route, in order, why it serves a request or not."""
    routes = [
        exact := route(SCRIPT, "s", query={"x": "1"}),
        other := route(SCRIPT, "t"),
        context := route(GLOB, "s*", context="inside"),
        argument := route(GLOB, "s**", arguments={1: "a"}),
        first := route(REGEX, "s.*"),
        second := route(REGEX, "s"),
        default := route(DEFAULT),
    ]
    assert RouteTable(routes).explain(request("s?x=2")) == [
        Verdict(exact, False, "the query parameter x is not 1"),
        Verdict(other, False, "the script does not match"),
        Verdict(context, False, "the context is not inside"),
        Verdict(argument, False, "argument 1 is not a"),
        Verdict(first, True, "the first that matches"),
        Verdict(second, False, "s.* comes first"),
        Verdict(default, False, "s.* comes first"),
    ]


def test_explain_agrees_with_match() -> None:
    """The one that explain calls the winner is the one that serves, also if it is the default or nobody."""
    table = RouteTable([route(SCRIPT, "s"), route(DEFAULT)])
    assert table.explain(request("x"))[-1] == Verdict(table.routes[-1], True, "the default")
    lonely = RouteTable([route(SCRIPT, "s")])
    assert [verdict.wins for verdict in lonely.explain(request("x"))] == [False]
    assert lonely.match(request("x")) is None


def test_a_route_shows_its_pattern() -> None:
    """A message about a route names it and what it serves."""
    assert str(route(GLOB, "a*", "first")) == "first (glob a*)"
    assert str(route(DEFAULT)) == "default (default)"


# ---- shadows

IN_A = {"context": "a"}


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (route(SCRIPT, "a", "1"), route(SCRIPT, "a", "2")),
        (route(GLOB, "a*", "1"), route(GLOB, "a*", "2")),
        (route(REGEX, "a+", "1"), route(REGEX, "a+", "2")),
        (route(DEFAULT, name="1"), route(DEFAULT, name="2")),
        (route(GLOB, "*", priority=1), route(SCRIPT, "a")),
        (route(REGEX, "a|b", priority=1), route(SCRIPT, "a")),
        (route(DEFAULT, priority=1), route(SCRIPT, "a")),
        (route(DEFAULT, priority=1), route(REGEX, "a")),
        (route(GLOB, "**"), route(GLOB, "a*")),
        (route(GLOB, "**"), route(REGEX, "a+")),
        (route(GLOB, "**"), route(DEFAULT)),
        (route(REGEX, ".*"), route(DEFAULT)),
        (route(REGEX, ".*"), route(GLOB, "a*")),
        (route(GLOB, "a*"), route(GLOB, "ab*")),
        (route(GLOB, "a*"), route(GLOB, "a?")),
        (route(GLOB, "a/**"), route(GLOB, "a/*/b")),
        (route(GLOB, "*.agi"), route(GLOB, "call_*.agi")),
        (route(SCRIPT, "a", "1"), route(SCRIPT, "a", "2", **IN_A)),
        (route(SCRIPT, "a", "1", **IN_A), route(SCRIPT, "a", "2", query={"x": "1"}, **IN_A)),
    ],
)
def test_a_shadow_is_found(earlier: Route, later: Route) -> None:
    """A route that can never be chosen is told, with the one that takes all its calls."""
    assert RouteTable([later, earlier] if earlier.priority else [earlier, later]).shadowed() == [
        (0, 1) if earlier.priority else (1, 0)
    ]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (route(SCRIPT, "a"), route(SCRIPT, "b")),
        (route(SCRIPT, "a"), route(GLOB, "*")),
        (route(GLOB, "*"), route(GLOB, "**")),
        (route(GLOB, "*"), route(GLOB, "a/*")),
        (route(GLOB, "?"), route(GLOB, "*")),
        (route(GLOB, "a?"), route(GLOB, "a*")),
        (route(GLOB, "*"), route(DEFAULT)),
        (route(GLOB, ".*"), route(DEFAULT)),
        (route(GLOB, ".*"), route(REGEX, "a+")),
        (route(SCRIPT, "**"), route(GLOB, "*")),
        (route(SCRIPT, "**"), route(DEFAULT)),
        (route(REGEX, "[^.]+"), route(GLOB, "vici*")),
        (route(REGEX, r"\W*"), route(GLOB, "*")),
        (route(REGEX, "a+"), route(REGEX, "a*")),
        (route(REGEX, "a+"), route(DEFAULT)),
        (route(SCRIPT, "a", "1", **IN_A), route(SCRIPT, "a", "2")),
        (route(SCRIPT, "a", "1", **IN_A), route(SCRIPT, "a", "2", context="b")),
        (route(SCRIPT, "a", "1", query={"x": "1"}), route(SCRIPT, "a", "2", query={"x": "*"})),
        (route(GLOB, "*", priority=1, **IN_A), route(SCRIPT, "a")),
    ],
)
def test_no_shadow_where_there_is_none(earlier: Route, later: Route) -> None:
    """A route that some request can reach is never called unreachable: it would stop a good service."""
    assert RouteTable([earlier, later]).shadowed() == []


def test_shadows_are_told_in_the_order_given() -> None:
    """Positions are those of the configuration, and the one that takes the calls is the first tried."""
    routes = [route(DEFAULT), route(GLOB, "a*"), route(GLOB, "ab*"), route(GLOB, "**"), route(SCRIPT, "a")]
    assert RouteTable(routes).shadowed() == [(0, 3), (2, 1)]


def test_many_wildcards_do_not_stop_the_start() -> None:
    """A glob of very many wildcards is compared with none, instead of with millions of samples."""
    started_s = time.process_time()
    table = RouteTable([route(GLOB, "*-" * 30 + "*"), route(GLOB, "*-" * 31 + "*")])
    assert table.shadowed() == []
    assert time.process_time() - started_s < 1.0


globs = st.lists(st.sampled_from(["a", "b", "/", "*", "**", "?"]), min_size=1, max_size=6).map("".join)
#: All short scripts of two letters that globs name, one that they do not, and the slash.
SHORT_SCRIPTS = ["".join(letters) for length in range(5) for letters in product("abx/", repeat=length)]


@given(globs, globs)
@example("?**", "**a")
@example("**?", "a**")
@example("*?**?", "**b//?")
def test_a_shadow_takes_every_script(earlier: str, later: str) -> None:
    """Of two globs called a shadow and its cause, the cause serves whatever the shadow would."""
    table = RouteTable([route(GLOB, earlier, "1"), route(GLOB, later, "2")])
    if table.shadowed():
        matches = [table.match(request(script)) for script in SHORT_SCRIPTS]
        assert {match.route.name for match in matches if match} <= {"1"}


# ---- strangers


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("", ""),
        ("a/b.agi", ""),
        ("a..b/c..", ""),
        ("...", ""),
        ("Jürgen\udcfc", ""),
        ("call_log--HVcauses--PRI-----NODEBUG-----16-----ANSWER", ""),
        ("..", "'..'"),
        ("a/../b", "'..'"),
        ("../etc/passwd", "'..'"),
        ("a/..", "'..'"),
        ("a\nb", "control"),
        ("a\x1b[2J", "control"),
        ("a\x7f", "control"),
        ("\x00", "control"),
    ],
)
def test_script_fault(script: str, word: str) -> None:
    """A script name that climbs out of a folder or forges log lines is refused, any other is not."""
    fault = script_fault(script)
    assert bool(fault) is bool(word)
    assert word in fault


def test_memory_is_bounded() -> None:
    """Scripts that differ with every call fill no memory without end, and are still matched."""
    table = RouteTable([route(GLOB, "call-*"), route(DEFAULT)])
    for number in range(10_000):
        match = table.match(request(f"call-{number}"))
        assert match is not None
        assert dict(match.captures) == {"1": str(number)}
        assert len(table._remembered) <= 4096
