"""fastagi_pool.attendants: greenlets that serve one call after another, in a real hub."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import gevent
import gevent.event
import pytest

from fastagi_pool.attendants import IDLE_LIMIT, Attendants, guard_timeouts

#: Far more than anything here takes.
WAIT_S = 5.0

mark: ContextVar[str] = ContextVar("mark", default="fresh")


class Subject:
    """Something to be served."""

    def __init__(self) -> None:
        self.greenlet: Any = None
        self.go = gevent.event.Event()
        self.over = gevent.event.Event()
        self.found = ""


Attend = Callable[[Callable[[Any], object], Any], None]


def in_hub(work: Callable[[], object]) -> None:
    """Do something in the hub, as a worker's callbacks do, and wait until it is done."""
    done = gevent.event.Event()

    def do() -> None:
        work()
        done.set()

    gevent.get_hub().loop.run_callback(do)
    assert done.wait(WAIT_S)


@pytest.fixture
def attend() -> Attend:
    """Give a function that has a subject served, and returns when that first waits."""
    attendants = Attendants(gevent.get_hub())

    def attend(serve: Callable[[Any], object], subject: Any) -> None:
        in_hub(lambda: attendants.attend(serve, subject))

    return attend


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard gevent's time-outs as a worker does, for one test."""
    monkeypatch.setattr(gevent.Timeout, "_on_expiration", gevent.Timeout._on_expiration)
    guard_timeouts()


def wait_and_end(subject: Subject) -> None:
    """Serve by waiting until told to go."""
    subject.go.wait(WAIT_S)
    subject.over.set()


def test_a_subject_is_served_at_once(attend: Attend) -> None:
    """Serving begins before attend returns, in a greenlet that the subject knows."""
    subject = Subject()
    seen = []
    attend(lambda each: seen.append(each.greenlet), subject)
    assert len(seen) == 1
    assert seen[0] is not None
    assert subject.greenlet is None


def test_a_greenlet_serves_one_after_another(attend: Attend) -> None:
    """The next call takes the greenlet of the last."""
    seen: list[Any] = []
    for _ in range(3):
        attend(lambda each: seen.append(each.greenlet), Subject())
    assert seen[0] is seen[1] is seen[2]


def test_calls_at_the_same_time_have_greenlets_of_their_own(attend: Attend) -> None:
    """A call that waits does not hold the next one up."""
    first, second = Subject(), Subject()
    attend(wait_and_end, first)
    attend(wait_and_end, second)
    assert first.greenlet is not second.greenlet
    second.go.set()
    assert second.over.wait(WAIT_S)
    assert not first.over.is_set()
    first.go.set()
    assert first.over.wait(WAIT_S)


def test_each_call_has_a_fresh_context(attend: Attend) -> None:
    """A context variable that one call sets is not seen by the next in the same greenlet."""
    seen: list[str] = []

    def serve(subject: Subject) -> None:
        seen.append(mark.get())
        mark.set("used")

    for _ in range(2):
        attend(serve, Subject())
    assert seen == ["fresh", "fresh"]
    assert mark.get() == "fresh"


def test_a_burst_leaves_a_bounded_number_of_greenlets(attend: Attend) -> None:
    """After a burst no more than the limit stay idle; the others have ended."""
    subjects = [Subject() for _ in range(IDLE_LIMIT + 5)]
    greenlets = []
    for subject in subjects:
        attend(wait_and_end, subject)
        greenlets.append(subject.greenlet)
    for subject in subjects:
        subject.go.set()
    gevent.wait([subject.over for subject in subjects], WAIT_S)
    gevent.sleep(0)
    assert sum(not greenlet.dead for greenlet in greenlets) == IDLE_LIMIT


@pytest.mark.usefixtures("guarded")
def test_a_timeout_of_the_call_itself_is_raised(attend: Attend) -> None:
    """A handler's own time-out works."""
    subject = Subject()

    def serve(subject: Subject) -> None:
        try:
            with gevent.Timeout(0.01):
                gevent.event.Event().wait(WAIT_S)
        except gevent.Timeout:
            subject.found = "timeout"
        subject.over.set()

    attend(serve, subject)
    assert subject.over.wait(WAIT_S)
    assert subject.found == "timeout"


@pytest.mark.usefixtures("guarded")
def test_a_forgotten_timeout_does_not_hit_the_next_call(attend: Attend) -> None:
    """A time-out that began before the call, in whatever call had this greenlet then, is dropped."""
    following = Subject()
    attend(wait_and_end, following)
    forgotten = gevent.Timeout(10.0)
    in_hub(lambda: forgotten._on_expiration(following.greenlet, forgotten))
    following.go.set()
    assert following.over.wait(WAIT_S)


def test_a_forgotten_timeout_does_not_hit_an_idle_greenlet(attend: Attend) -> None:
    """A time-out that fires while the greenlet has no call leaves it usable."""
    seen: list[Any] = []
    fired = gevent.event.Event()

    def forget(subject: Subject) -> None:
        seen.append(subject.greenlet)
        gevent.Timeout.start_new(0.005)

    attend(forget, Subject())
    timer = gevent.get_hub().loop.timer(0.02)
    timer.start(fired.set)
    assert fired.wait(WAIT_S)
    attend(lambda each: seen.append(each.greenlet), Subject())
    assert seen[0] is seen[1]


def test_an_interruption_while_idle_is_survived(attend: Attend, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is thrown into an idle greenlet is logged, and the hub lives on."""
    seen: list[Any] = []
    attend(lambda each: seen.append(each.greenlet), Subject())
    in_hub(lambda: seen[0].throw(ValueError("left behind")))
    assert "an attendant was interrupted while it was idle" in caplog.text
    attend(lambda each: seen.append(each.greenlet), Subject())
    assert seen[0] is seen[1]
