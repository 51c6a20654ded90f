"""fastagi_pool.upstreams: which server takes the next call."""

from __future__ import annotations

import pytest

from fastagi_pool.errors import UpstreamUnavailable
from fastagi_pool.upstreams import MOST_BROKEN, Server, Turn, Upstreams

ONE = Server("10.0.0.1", 4573)
TWO = Server("10.0.0.2", 4574, max_calls=2)
SMALL = Server("10.0.0.3", 4575, max_calls=1)
NOW_S = 1_000.0


def chosen(upstreams: Upstreams, now_s: float, *tried: Server) -> Turn:
    """Choose a server where there is one to be had."""
    turn = upstreams.choose(now_s, tried)
    assert turn is not None
    return turn


def fail(upstreams: Upstreams, now_s: float, why: str = "refused") -> float:
    """Let a call fail at the server that it is given."""
    turn = chosen(upstreams, now_s)
    rest_s = upstreams.failed(turn, now_s, why)
    upstreams.give_back(turn)
    return rest_s


# ---- which one


@pytest.mark.parametrize(
    ("server", "text"),
    [
        (Server("127.0.0.1", 4578), "127.0.0.1:4578"),
        (Server("::1", 4578), "[::1]:4578"),
        (Server("agi.example.com"), "agi.example.com:4573"),
    ],
)
def test_how_a_server_is_written(server: Server, text: str) -> None:
    """A server is named in messages as a person would write it, with FastAGI's port by default."""
    assert str(server) == text


def test_the_first_takes_all_it_may() -> None:
    """The first server of the list is taken as long as it has room; without a limit that is for ever."""
    upstreams = Upstreams([ONE, TWO])
    assert {chosen(upstreams, NOW_S).server for _ in range(1_000)} == {ONE}


def test_a_full_server_is_passed_by() -> None:
    """A call goes to the next server while the first has as many as it may, and to the first again later."""
    upstreams = Upstreams([SMALL, TWO])
    first = chosen(upstreams, NOW_S)
    assert (first.server, chosen(upstreams, NOW_S).server) == (SMALL, TWO)
    upstreams.give_back(first)
    assert chosen(upstreams, NOW_S).server == SMALL


def test_all_full() -> None:
    """When all servers are full there is nothing to be had but a wait, and the log can say of whom."""
    upstreams = Upstreams([SMALL, TWO])
    turns = [chosen(upstreams, NOW_S) for _ in range(3)]
    assert upstreams.choose(NOW_S) is None
    assert upstreams.occupation() == "10.0.0.3:4575: 1 of 1, 10.0.0.2:4574: 2 of 2"
    upstreams.give_back(turns[1])
    assert chosen(upstreams, NOW_S).server == TWO


def test_occupation_without_a_limit() -> None:
    """A server without a limit is not said to have none left."""
    assert Upstreams([ONE]).occupation() == "10.0.0.1:4573: 0 of any number"


def test_a_server_twice_in_the_list() -> None:
    """A second mention of a server gives it no second chance and no more calls."""
    upstreams = Upstreams([SMALL, SMALL])
    chosen(upstreams, NOW_S)
    assert upstreams.choose(NOW_S) is None


# ---- rests


def test_a_server_that_failed_rests() -> None:
    """After a failure all calls go to the next server until a second is over, then one to the first."""
    upstreams = Upstreams([ONE, TWO])
    assert fail(upstreams, NOW_S) == 1.0
    assert chosen(upstreams, NOW_S + 0.99).server == TWO
    assert chosen(upstreams, NOW_S + 1.0).server == ONE


def test_calls_that_break_off_in_a_row() -> None:
    """One that broke off is no verdict, nor are two: only a row without a success makes the server rest."""
    upstreams = Upstreams([ONE])
    turn = chosen(upstreams, NOW_S)
    said = [upstreams.broke_off(turn, NOW_S, "reset") for _ in range(MOST_BROKEN - 1)]
    upstreams.succeeded(turn)
    said += [upstreams.broke_off(turn, NOW_S, "reset") for _ in range(MOST_BROKEN)]
    assert said == [0.0] * (2 * MOST_BROKEN - 2) + [1.0]
    with pytest.raises(UpstreamUnavailable, match="reset, tried again in 1 s"):
        upstreams.choose(NOW_S)


def test_a_trial_that_breaks_off() -> None:
    """The call that tries a server after its rest is a verdict by itself."""
    upstreams = Upstreams([ONE])
    fail(upstreams, NOW_S)
    assert upstreams.broke_off(chosen(upstreams, NOW_S + 1), NOW_S + 1, "reset") == 0.0
    assert upstreams.next_rest_ends_s(NOW_S + 1) == NOW_S + 3


def test_rests_grow() -> None:
    """Each failure after a rest doubles the next one, up to 30 s; only the first one is news."""
    upstreams, now_s, rests, news = Upstreams([ONE]), NOW_S, [], []
    for _ in range(8):
        news.append(fail(upstreams, now_s))
        rests.append(upstreams.next_rest_ends_s(now_s) - now_s)
        now_s += rests[-1]
    assert rests == [1, 2, 4, 8, 16, 30, 30, 30]
    assert news == [1, 0, 0, 0, 0, 0, 0, 0]


def test_one_call_tries_it() -> None:
    """When the rest is over a single call is sent, the others not, until it is known how that one went."""
    upstreams = Upstreams([ONE, TWO])
    fail(upstreams, NOW_S)
    trial = chosen(upstreams, NOW_S + 5)
    assert trial.server == ONE
    assert chosen(upstreams, NOW_S + 100).server == TWO
    assert upstreams.succeeded(trial)
    assert chosen(upstreams, NOW_S + 100).server == ONE


def test_success_wipes_out_what_was() -> None:
    """A server that is back rests but a second at its next failure, and that is news again."""
    upstreams = Upstreams([ONE])
    fail(upstreams, NOW_S)
    fail(upstreams, NOW_S + 1)
    trial = chosen(upstreams, NOW_S + 3)
    assert upstreams.succeeded(trial)
    upstreams.give_back(trial)
    assert fail(upstreams, NOW_S + 4) == 1.0


def test_success_is_news_once() -> None:
    """Of a server that was well all the time nobody needs to hear that it is."""
    upstreams = Upstreams([ONE])
    assert not upstreams.succeeded(chosen(upstreams, NOW_S))


def test_a_trial_without_a_verdict() -> None:
    """If the call that tries a server ends for another reason, the next call tries it."""
    upstreams = Upstreams([ONE])
    fail(upstreams, NOW_S)
    upstreams.give_back(chosen(upstreams, NOW_S + 1))
    assert chosen(upstreams, NOW_S + 1).server == ONE


def test_calls_that_failed_together() -> None:
    """A hundred calls that meet one failure are one failure: they do not double the rest."""
    upstreams = Upstreams([ONE])
    turns = [chosen(upstreams, NOW_S) for _ in range(100)]
    news = [upstreams.failed(turn, NOW_S + 0.001 * number, "refused") for number, turn in enumerate(turns)]
    assert news == [1.0] + [0.0] * 99
    assert upstreams.next_rest_ends_s(NOW_S + 0.5) == NOW_S + 1


@pytest.mark.parametrize("during_the_trial", [False, True])
def test_what_earlier_calls_say(during_the_trial: bool) -> None:
    """Calls from before the failure change nothing about the rest, nor about the trial that follows."""
    upstreams = Upstreams([ONE])
    early, late = chosen(upstreams, NOW_S), chosen(upstreams, NOW_S)
    fail(upstreams, NOW_S)
    trial = chosen(upstreams, NOW_S + 1) if during_the_trial else None
    assert not upstreams.succeeded(early)
    assert upstreams.failed(late, NOW_S + 1, "broke off") == 0
    with pytest.raises(UpstreamUnavailable, match=r"refused, (tried again in 1 s|being tried again now)"):
        upstreams.choose(NOW_S + (1 if during_the_trial else 0.5))
    assert trial is None or upstreams.succeeded(trial)


def test_places_survive_a_rest() -> None:
    """A server that is back still has the calls it had: its limit holds."""
    upstreams = Upstreams([TWO])
    chosen(upstreams, NOW_S)
    fail(upstreams, NOW_S)
    assert upstreams.succeeded(chosen(upstreams, NOW_S + 1))
    assert upstreams.choose(NOW_S + 1) is None


# ---- none


def test_all_rest() -> None:
    """When all rest there is no wait but an error at once, which names each server, why, and until when."""
    upstreams = Upstreams([ONE, TWO])
    fail(upstreams, NOW_S)
    fail(upstreams, NOW_S + 0.5, "no answer within 2 s")
    with pytest.raises(UpstreamUnavailable) as caught:
        upstreams.choose(NOW_S + 0.6)
    assert str(caught.value) == (
        "10.0.0.1:4573: refused, tried again in 1 s; 10.0.0.2:4574: no answer within 2 s, tried again in 1 s"
    )


def test_a_server_being_tried() -> None:
    """While a call tries the only server, the others are told so."""
    upstreams = Upstreams([ONE])
    fail(upstreams, NOW_S)
    chosen(upstreams, NOW_S + 1)
    with pytest.raises(UpstreamUnavailable, match=r"^10\.0\.0\.1:4573: refused, being tried again now$"):
        upstreams.choose(NOW_S + 1)


def test_a_full_one_and_a_resting_one() -> None:
    """If one server is full and the other rests, a call waits: the full one will have room."""
    upstreams = Upstreams([ONE, SMALL])
    fail(upstreams, NOW_S)
    chosen(upstreams, NOW_S)
    assert upstreams.choose(NOW_S) is None
    assert upstreams.next_rest_ends_s(NOW_S) == NOW_S + 1


def test_a_full_one_that_rests() -> None:
    """A full server that rests is not waited for: when its calls end it still rests."""
    upstreams = Upstreams([SMALL])
    upstreams.failed(chosen(upstreams, NOW_S), NOW_S, "broke off")
    with pytest.raises(UpstreamUnavailable):
        upstreams.choose(NOW_S)


def test_nothing_is_tried_twice_by_one_call() -> None:
    """A call does not come back to a server that it has tried, though its rest is over meanwhile."""
    upstreams = Upstreams([ONE, TWO])
    fail(upstreams, NOW_S)
    assert chosen(upstreams, NOW_S + 2, ONE).server == TWO
    with pytest.raises(UpstreamUnavailable, match=r"10\.0\.0\.1:4573: did not take this call"):
        upstreams.choose(NOW_S + 2, {ONE, TWO})


def test_no_rest_is_running() -> None:
    """Without a rest, or after it, there is no moment to wait for."""
    upstreams = Upstreams([ONE])
    assert upstreams.next_rest_ends_s(NOW_S) == float("inf")
    fail(upstreams, NOW_S)
    assert upstreams.next_rest_ends_s(NOW_S + 1) == float("inf")
