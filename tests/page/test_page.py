"""The page in a real Chromium: what people see of a pool, live, in trouble, on a phone and in the dark."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from pictures import FakePool, record

from fastagi_pool.picture import Pictures
from fastagi_pool.web import WebApplication

from .pool_figures import (
    PAGE,
    FiguresServer,
    call,
    database,
    journal,
    lane,
    outcomes,
    quiet_status,
    route,
    steady_samples,
    worker,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

#: Text that is markup, a script and an event handler, if a page takes it for more than text.
HOSTILE: Final = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"

#: The lowest ratio between any text that is seen and what is behind it. Source: WCAG 2.2, 1.4.3.
_CONTRAST: Final = """() => {
  const parsed = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [x, y, z] = [r, g, b].map((c) => linear(c / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = parsed(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  let worst = [99, ""];
  const walker = document.createTreeWalker(document.querySelector(".page"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    if (node.closest("script, noscript, .unseen")) continue;
    const [a, b] = [light(parsed(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, walker.currentNode.data];
  }
  return worst;
}"""


def row(page: Page, table: str, text: str) -> Locator:
    """The row of a table that holds this text."""
    return page.locator(f"#{table} tbody tr").filter(has_text=text)


def open_page(page: Page, url: str) -> None:
    """Open the page and wait until it is live."""
    page.goto(url)
    page.get_by_text("Live from").wait_for()


def expect_text(locator: Locator, *texts: str) -> None:
    """Wait until an element holds all these texts."""
    from playwright.sync_api import expect

    for text in texts:
        expect(locator).to_contain_text(text)


def in_trouble(figures: FiguresServer) -> None:
    """Let everything be wrong at the same time that can be."""
    figures.status = quiet_status() | {
        "queued": 7,
        "listen": {"queue": 40, "limit": 100, "most": 40},
        "workers": [
            worker(0),
            worker(1, lag_s=1.4),
            worker(2, state="draining"),
            worker(3, stuck=True, active=9),
        ],
        "databases": [
            database("calls", up=False, down_workers=4, reason="connection refused"),
            database("crm", waiting=3),
        ],
        "reload": {
            "asked": 3,
            "refused": 1,
            "loading": False,
            "last_s": 4.0,
            "error": "pool.yaml, line 3: no such key",
        },
    }
    figures.samples = steady_samples(rate=10.0, failed=3.0)


def test_what_the_pool_does_is_on_the_page(page: Page, figures: FiguresServer) -> None:
    """Rates, places, percentiles and the figures of every part stand where people look for them."""
    open_page(page, figures.url)
    expect_text(page.locator("#rate"), "Calls a second", "12")
    expect_text(page.locator("#active"), "24", "of 400 places", "0 queued")
    expect_text(page.locator("#latency"), "42 ms", "p50 5.0 ms", "p99 310 ms")
    expect_text(page.locator("#failed"), "0 %", "0 calls of 720")
    expect_text(
        row(page, "routes", "pin"), "2,000", "40 ms", "Asterisk 20 ms · script 13 ms · database 6.0 ms"
    )
    expect_text(row(page, "outcomes", "timeout"), "40", "1.0 %")
    expect_text(row(page, "peers", "10.0.0.11"), "4,000", "24")
    expect_text(row(page, "workers", "4201"), "ready", "6 of 100", "61 MB", "2.0 ms", "2 h 1 min")
    expect_text(row(page, "databases", "calls"), "10.0.0.5:3306", "3 in use · 8 open of 20", "2.0 ms")
    expect_text(page.locator("#facts"), "up 4 h 12 min", "generation 3", "version 0.6.0", "master 4200")
    expect_text(page.locator("#reload"), "1 h 5 min ago")
    expect_text(page.locator("#restarts"), "by a reload8", "over max_memory1")


def test_a_call_shows_where_it_is(page: Page, figures: FiguresServer) -> None:
    """An operator finds the caller, the state with its command or statement, and where the time went."""
    figures.calls = [
        call("ref-1"),
        call("ref-2", state="in database", letter="D", statement="SELECT pin FROM users WHERE id = ?"),
    ]
    open_page(page, figures.url)
    expect_text(row(page, "calls", "ref-1"), "1 min 32 s", "pin?lang=en", "0049301234567", "1764000000.17")
    expect_text(
        row(page, "calls", "ref-1"), "in Asterisk", "31 s", "GET DATA enter-pin 5000 6", "Asterisk 1 min 30 s"
    )
    expect_text(row(page, "calls", "ref-2"), "in database", "SELECT pin FROM users WHERE id = ?")


def test_the_page_lives(page: Page, figures: FiguresServer) -> None:
    """What changes in the pool is on the page without a reload, and only what is new is asked for."""
    open_page(page, figures.url)
    last = figures.samples[-1]["t"]
    figures.status["active"] = 131
    figures.status["routes"] = [route("pin", calls=2_600)]
    figures.calls = []
    figures.pass_second(rate=600.0)
    expect_text(page.locator("#active .figure"), "131")
    expect_text(page.locator("#rate"), "at most 600 in 5 min")
    expect_text(row(page, "routes", "pin"), "2,600", "600")
    expect_text(page.locator("#calls ~ p").first, "No calls in progress.")
    assert f"/history.json?after={last:.0f}" in figures.asked
    assert figures.asked.count("/history.json") == 1


def test_a_row_that_stays_keeps_its_element(page: Page, figures: FiguresServer) -> None:
    """A call's id can be selected and copied while the figures around it change."""
    open_page(page, figures.url)
    page.evaluate("window.kept = document.querySelector('#calls tbody tr')")
    figures.calls = [call("older", age_s=200.0), call("6b016a65-9b7-1", age_s=95.0)]
    expect_text(row(page, "calls", "older"), "3 min 20 s")
    expect_text(row(page, "calls", "6b016a65-9b7-1"), "1 min 35 s")
    assert page.evaluate("window.kept === document.querySelectorAll('#calls tbody tr')[1]")


def test_callers_cannot_write_on_the_page(page: Page, figures: FiguresServer, complaints: list[str]) -> None:
    """Markup in whatever a caller or a dialplan chooses is shown as the text that it is."""
    figures.calls = [
        call(
            HOSTILE,
            **dict.fromkeys(
                ("route", "script", "peer", "uniqueid", "channel", "callerid", "command"), HOSTILE
            ),
        )
    ]
    figures.status["routes"] = [route(HOSTILE)]
    figures.status["peers"] = [{"peer": HOSTILE, "active": 1, "calls": 1, "failed": 0}]
    figures.status["databases"] = [database(HOSTILE, up=False, reason=HOSTILE, server=HOSTILE)]
    figures.status["reload"]["error"] = HOSTILE
    open_page(page, figures.url)
    expect_text(row(page, "calls", HOSTILE), HOSTILE)
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    assert "taken" not in page.title().split("<")[0]
    assert complaints == []


def test_a_quiet_pool_is_calm(page: Page, figures: FiguresServer) -> None:
    """Nothing is said at the top while nothing is wrong, and the tab tells the load."""
    open_page(page, figures.url)
    expect_text(page.locator("#state"), "serving")
    assert page.locator("#troubles li").count() == 0
    assert page.title() == "12/s · 24 in progress - fastagi_pool"


def test_trouble_is_told_in_words(page: Page, figures: FiguresServer) -> None:
    """Each trouble is one sentence that says what is wrong, the worst first, and in the tab's title."""
    in_trouble(figures)
    open_page(page, figures.url)
    troubles = page.locator("#troubles")
    expect_text(troubles, "Worker 3 is stuck.", "9 calls wait in it", "Worker 1 is blocked.", "for 1.4 s")
    expect_text(troubles, "3 of 4 workers serve.", "Queue 40 of 100.", "7 calls wait for a place.")
    expect_text(troubles, "Database calls is away: connection refused", "3 calls wait for database crm.")
    expect_text(troubles, "30 % of the calls in the last minute failed.")
    expect_text(troubles, "Reload refused: pool.yaml, line 3: no such key")
    levels = page.locator("#troubles li").evaluate_all("(items) => items.map((item) => item.className)")
    assert levels == sorted(levels, key=["bad-note", "careful-note", "calm-note"].index)
    expect_text(page.locator("#state"), "in trouble")
    assert page.title().startswith("⚠ Worker 3 is stuck.")
    assert "Worker 3 is stuck." in page.locator("#announcer").inner_text()


def test_trouble_goes_when_it_is_over(page: Page, figures: FiguresServer) -> None:
    """The top is empty again as soon as the pool is well, without a reload of the page."""
    in_trouble(figures)
    open_page(page, figures.url)
    expect_text(page.locator("#troubles"), "Worker 3 is stuck.")
    figures.status = quiet_status()
    figures.samples = [{**sample, "t": sample["t"] + 1_000} for sample in steady_samples()]
    expect_text(page.locator("#state"), "serving")
    assert page.locator("#troubles li").count() == 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"running": False}, "The master (pid 4200) is not running: no calls are taken."),
        ({"workers": []}, "No worker serves."),
        ({"stopping": True}, "The pool is stopping. 24 calls are left in it."),
        (
            {"unreadable": ["tallies/3 is of another version"]},
            "Figures are missing. tallies/3 is of another version",
        ),
        ({"lost_lines": 7}, "7 lines of the log were lost."),
        ({"workers": [worker(0, state="starting")]}, "Workers are starting."),
    ],
)
def test_a_pool_that_does_not_serve_says_so(
    page: Page, figures: FiguresServer, changes: dict[str, Any], text: str
) -> None:
    """That nobody takes calls is seen at once, with the reason as far as it is known."""
    figures.status |= changes
    open_page(page, figures.url)
    expect_text(page.locator("#troubles"), text)


def test_what_happened_just_now_is_told(page: Page, figures: FiguresServer) -> None:
    """Calls turned away and workers that died are trouble for a minute, though counters stay for ever."""
    figures.status["routes"] = [route("pin", outcomes=outcomes(ok=10, overload=500))]
    figures.status["restarts"]["died"] = 3
    open_page(page, figures.url)
    expect_text(page.locator("#state"), "serving")
    figures.status["routes"] = [route("pin", outcomes=outcomes(ok=10, overload=507))]
    figures.status["restarts"] = {**figures.status["restarts"], "died": 5}
    figures.pass_second()
    expect_text(page.locator("#troubles"), "7 calls were turned away in the last minute.")
    expect_text(page.locator("#troubles"), "2 workers died in the last minute.", "5 since the start.")


def test_losses_and_refusals_are_told_for_a_minute(page: Page, figures: FiguresServer) -> None:
    """Calls that died with a worker, requests that are refused for it, and lanes that refuse are trouble."""
    figures.status |= {"lost_calls": 100, "quarantined_requests": 3}
    figures.status["lanes"] = [lane("records", refused=40), lane("default", refused=5)]
    open_page(page, figures.url)
    expect_text(page.locator("#state"), "serving")
    figures.status |= {"lost_calls": 112, "quarantined_requests": 4}
    figures.status["lanes"] = [lane("records", refused=52, queued=9), lane("default", refused=5)]
    figures.pass_second()
    troubles = page.locator("#troubles")
    expect_text(troubles, "12 calls were lost with workers that died in the last minute.")
    expect_text(troubles, "1 request was put into quarantine in the last minute.", "4 since the start.")
    expect_text(troubles, "Lane records has refused 12 calls in the last minute.", "9 wait.")
    assert "Lane default" not in troubles.inner_text()
    expect_text(row(page, "lanes", "records"), "12 of 200", "52")


def test_calls_that_wait_for_a_database_are_told(page: Page, figures: FiguresServer) -> None:
    """An outage, what waits for its end, what waits for an operator, and how long the journal will last."""
    figures.status["databases"] = [database("calls", up=False, down_workers=4, down_s=75.0, reason="refused")]
    figures.status["journal"] = journal(
        waiting=1_234,
        quarantined=2,
        oldest_age_s=45.0,
        used_bytes=850,
        limit_bytes=1_000,
        databases=[{"name": "calls", "waiting": 1_234, "quarantined": 2}],
    )
    open_page(page, figures.url)
    troubles = page.locator("#troubles")
    expect_text(troubles, "Database calls is away: refused For 1 min 15 s now.")
    expect_text(troubles, "1,234 calls wait in the journal for calls.", "The oldest for 45 s")
    expect_text(troubles, "2 calls of the journal in quarantine.", "The journal is 85 % full.")
    expect_text(row(page, "journal", "calls"), "1,234", "2")
    expect_text(page.locator("#journal-note"), "oldest 45 s · 85 % full")


def test_a_journal_that_is_worked_off_is_no_trouble(page: Page, figures: FiguresServer) -> None:
    """When the database is back, calls that wait are told of, and the pool counts as well."""
    waiting = [{"name": "calls", "waiting": 9, "quarantined": 0}]
    figures.status["journal"] = journal(waiting=9, oldest_age_s=45.0, databases=waiting)
    open_page(page, figures.url)
    expect_text(page.locator("#troubles"), "9 calls wait in the journal for calls.", "they are being done.")
    expect_text(page.locator("#state"), "serving")


def test_a_pool_without_lanes_and_journal_shows_none(page: Page, figures: FiguresServer) -> None:
    """Who has configured neither does not read of them."""
    figures.status |= {"lanes": [lane("default")], "journal": None}
    open_page(page, figures.url)
    assert not page.locator("#lanes-section").is_visible()
    assert not page.locator("#journal-section").is_visible()


def test_a_server_that_is_gone_is_told(page: Page, figures: FiguresServer) -> None:
    """Figures that are no longer live are marked as what was last known, and stay to be read."""
    open_page(page, figures.url)
    figures.close()
    expect_text(page.locator("#troubles"), "The server has not answered for", "what was last known")
    expect_text(page.locator("#state"), "no answer")
    expect_text(page.locator("#age"), "Last answer")
    expect_text(row(page, "workers", "4201"), "ready")
    assert page.title().startswith("⚠ The server has not answered for")


def test_an_error_of_the_server_is_told_in_its_words(page: Page, figures: FiguresServer) -> None:
    """A status process without a pool says why, and the page repeats it."""
    figures.error = "there is no pool in /run/fastagi-pool"
    page.goto(figures.url)
    expect_text(page.locator("#troubles"), "cannot be read.", "there is no pool in /run/fastagi-pool")
    figures.error = ""
    expect_text(page.locator("#state"), "serving")


def test_the_page_can_be_paused(page: Page, figures: FiguresServer) -> None:
    """What moves can be stopped (WCAG 2.2, 2.2.2), and then nothing is asked of the pool."""
    open_page(page, figures.url)
    page.get_by_role("button", name="Pause").click()
    expect_text(page.locator("#state"), "paused")
    page.wait_for_load_state("networkidle")
    asked = len(figures.asked)
    figures.status["active"] = 131
    page.get_by_role("button", name="Go on").click()
    expect_text(page.locator("#active .figure"), "131")
    assert asked < len(figures.asked)


def test_a_phone_shows_all_of_it(page: Page, figures: FiguresServer) -> None:
    """At 360 pixels nothing is cut off or has to be pushed sideways, whatever the names are."""
    in_trouble(figures)
    figures.calls = [
        call("6b016a65-9b7-1", command="EXEC " + "x" * 200, callerid="0" * 80, channel="SIP/" + "y" * 70)
    ]
    figures.status["routes"].append(route("r" * 100))
    page.set_viewport_size({"width": 360, "height": 780})
    open_page(page, figures.url)
    expect_text(row(page, "routes", "r" * 100), "2,000")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    cut = page.locator(".page *").evaluate_all(
        "(nodes) => nodes.filter((node) => node.checkVisibility() && !node.closest('.unseen, thead')"
        " && node.getBoundingClientRect().right > 360).map((node) => node.outerHTML)"
    )
    assert cut == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(browser: Browser, figures: FiguresServer, scheme: Any) -> None:
    """Every text stands out from its ground by 4.5 to 1, by day and in the dark."""
    in_trouble(figures)
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    open_page(page, figures.url)
    ratio, text = page.evaluate(_CONTRAST)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    context.close()
    assert ratio >= 4.5, text
    assert ground == {"light": "rgb(243, 245, 248)", "dark": "rgb(13, 18, 24)"}[scheme]


def test_who_wants_no_motion_has_none(browser: Browser, figures: FiguresServer) -> None:
    """Nothing pulses where the browser says that motion is unwelcome."""
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    open_page(page, figures.url)
    running = page.evaluate("document.getAnimations().length")
    context.close()
    assert running == 0


def test_a_screen_reader_finds_tables_and_charts(page: Page, figures: FiguresServer) -> None:
    """Charts have a sentence, tables a name and column headers, on the phone too."""
    page.set_viewport_size({"width": 360, "height": 780})
    open_page(page, figures.url)
    assert page.get_by_role("table", name="Workers").get_by_role("row").count() == 5
    assert page.get_by_role("table", name="Workers").get_by_role("columnheader", name="memory").count() == 1
    assert (
        page.get_by_role("img", name="Calls a second over the last five minutes: now 12, at most 12").count()
        == 1
    )


def test_a_chart_tells_the_moment_under_the_pointer(page: Page, figures: FiguresServer) -> None:
    """Pointing at a chart reads the same second in all of them."""
    figures.samples[150] |= {"rate": 77.0, "p95_ms": 640.0}
    open_page(page, figures.url)
    box = page.locator("#rate .plot").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 151 / 300, box["y"] + 40)
    expect_text(page.locator("#rate .note"), ": 77")
    expect_text(page.locator("#latency .note"), "p95 640 ms")


def test_a_large_pool_is_cut_and_says_so(page: Page, figures: FiguresServer) -> None:
    """Hundreds of routes and workers do not bury the page; those in trouble are among the shown."""
    figures.status["routes"] = [route(f"r{number}", calls=number) for number in range(300)]
    figures.status["workers"] = [worker(slot, stuck=slot == 199) for slot in range(200)]
    open_page(page, figures.url)
    expect_text(page.locator("#routes ~ p").last, "and 240 more")
    expect_text(row(page, "workers", "4399"), "stuck")
    expect_text(row(page, "routes", "r299"), "299")


def test_the_browser_has_nothing_to_complain_of(
    page: Page, figures: FiguresServer, complaints: list[str]
) -> None:
    """The page keeps within the server's security policy, makes no error, and asks nobody else."""
    in_trouble(figures)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    open_page(page, figures.url)
    expect_text(page.locator("#state"), "in trouble")
    assert complaints == []
    assert {url for url in asked if not url.startswith((figures.url, "data:"))} == set()


class LivePool:
    """The real web application over a runtime folder with calls in it, and no pool."""

    def __init__(self, runtime_dir: Path) -> None:
        self.pool = FakePool(runtime_dir, workers=2, calls=30)
        self.pool.tallies[0].write(record("menu", total_s=0.2), 1_764_000_000.0)
        self._pictures = Pictures(runtime_dir)
        self._application = WebApplication(self._pictures, PAGE, ())
        self._server = make_server("127.0.0.1", 0, self._answer, handler_class=_QuietHandler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> LivePool:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self._pictures.remember()
        return self._application(environ, start_response)


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""


def test_the_page_understands_the_real_server(page: Page, complaints: list[str], tmp_path: Path) -> None:
    """What the pool's own web application tells has the names and shapes that the page reads."""
    with LivePool(tmp_path / "run") as live:
        open_page(page, live.url)
        expect_text(
            row(page, "calls", "PJSIP/1027").first,
            "voicemail",
            "STREAM FILE welcome 123",
            "in Asterisk",
            "192.0.2.7",
        )
        expect_text(row(page, "routes", "menu"), "200 ms", "queued 50 ms")
        expect_text(row(page, "databases", "main"), "db.example.net/calls", "2 in use · 6 open of 8")
        expect_text(row(page, "workers", "30 of 100").first, "ready")
        expect_text(page.locator("#active"), "60", "of 200 places")
    assert complaints == []
    assert "NaN" not in page.locator("body").inner_text()
    assert "undefined" not in page.locator("body").inner_text()
