"""Web: what the pool shows over HTTP, as a WSGI application: one page for people, the rest for programs.

Laws:
    * It only tells; nothing can be changed by HTTP. What can change something is the control socket's.
    * It shows nothing to an address that is not allowed, and nothing by a foreign name: a page of somebody
      else's, open in the browser of somebody who may look, cannot read along.
    * Callers' numbers are in ``/calls.json`` alone, so that the rest may be let out.
    * Text of callers is data: JSON, and a page whose policy loads and sends nothing anywhere else.
"""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs

from fastagi_pool.listeners import is_allowed
from fastagi_pool.logs import LOGGER_NAME
from fastagi_pool.metrics import render
from fastagi_pool.picture import NoPicture, Picture, Pictures

#: What the page may do: its own style and program, and ask where it came from.
#: Source: Content Security Policy Level 3.
POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_JSON: Final = "application/json; charset=utf-8"
_HTML: Final = "text/html; charset=utf-8"
_TEXT: Final = "text/plain; charset=utf-8"
_CALLS: Final = 20
#: More at once would keep others waiting; whoever wants all asks the command line.
_MOST_CALLS: Final = 1000
_StartResponse = Callable[[str, list[tuple[str, str]]], object]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered.

    Attributes:
        status: The code.
        content_type: Of the body.
        body: All of it.
    """

    status: HTTPStatus
    content_type: str
    body: bytes


class WebApplication:
    """Answers requests."""

    def __init__(self, pictures: Pictures, page: bytes, allow: Iterable[str]) -> None:
        """Prepare.

        Args:
            pictures: What is shown.
            page: The page for people.
            allow: Networks that may look, as ``10.0.0.0/8``; empty for all that can reach the port.
        """
        self._pictures = pictures
        self._page = page
        self._allow = [ipaddress.ip_network(network) for network in allow]
        self._paths: dict[str, Callable[[Mapping[str, Any]], Answer]] = {
            "/": lambda _: Answer(HTTPStatus.OK, _HTML, self._page),
            "/healthz": lambda _: _judged(health(self._pictures.latest().status)),
            "/readyz": lambda _: _judged(readiness(self._pictures.latest().status)),
            "/metrics": self._metrics,
            "/status.json": self._status,
            "/calls.json": self._calls,
            "/history.json": self._history,
        }
        #: What was written of the latest picture, by content type: watchers of the same moment share it.
        self._written: dict[str, tuple[Picture, Answer]] = {}

    def __call__(self, environ: Mapping[str, Any], start_response: _StartResponse) -> list[bytes]:
        """Answer one request, as WSGI wants it. Source: PEP 3333."""
        answer = self._answer(environ)
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
        ]
        if answer.content_type == _HTML:
            headers.append(("Content-Security-Policy", POLICY))
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            # Whatever body came with it is not worth reading.
            headers += [("Allow", "GET, HEAD"), ("Connection", "close")]
        start_response(f"{answer.status.value} {answer.status.phrase}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def _answer(self, environ: Mapping[str, Any]) -> Answer:
        peer = environ.get("REMOTE_ADDR", "")
        if not self._may_look(peer):
            return _refused(HTTPStatus.FORBIDDEN, f"{peer} may not look; add it to http.allow if it shall")
        if not self._allow and not is_own_name(environ.get("HTTP_HOST", "")):
            message = "ask for this page by its address, or say in http.allow who may look"
            return _refused(HTTPStatus.FORBIDDEN, message)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refused(HTTPStatus.METHOD_NOT_ALLOWED, "here one can only look: GET or HEAD")
        path = self._paths.get(environ.get("PATH_INFO", ""))
        if path is None:
            return _refused(HTTPStatus.NOT_FOUND, f"there are {', '.join(self._paths)}")
        try:
            return path(environ)
        except NoPicture as error:
            return _judged({"ok": False, "error": str(error)})
        except Exception:
            logging.getLogger(LOGGER_NAME).exception("cannot answer %s", environ.get("PATH_INFO"))
            return _refused(HTTPStatus.INTERNAL_SERVER_ERROR, "this is a bug; the log says more")

    def _may_look(self, peer: str) -> bool:
        try:
            return is_allowed(peer, self._allow)
        except ValueError:
            return False

    def _status(self, _: Mapping[str, Any]) -> Answer:
        picture = self._pictures.latest()
        return self._once(_JSON, picture, lambda: _json(picture.status))

    def _metrics(self, environ: Mapping[str, Any]) -> Answer:
        accept = environ.get("HTTP_ACCEPT", "")
        try:
            picture = self._pictures.latest()
        except NoPicture:
            # Who collects shall hear that there is no pool, and not that there is nobody to ask.
            return Answer(HTTPStatus.OK, *render(None, accept))
        kind = "openmetrics" if "openmetrics" in accept else "text"
        return self._once(kind, picture, lambda: Answer(HTTPStatus.OK, *render(picture.status, accept)))

    def _calls(self, environ: Mapping[str, Any]) -> Answer:
        limit = _parameter(environ, "limit", _CALLS)
        return _json({"calls": self._pictures.calls(int(min(limit, _MOST_CALLS)))})

    def _history(self, environ: Mapping[str, Any]) -> Answer:
        return _json(self._pictures.history(_parameter(environ, "after", 0.0)))

    def _once(self, kind: str, picture: Picture, write: Callable[[], Answer]) -> Answer:
        written = self._written.get(kind)
        if written is None or written[0] is not picture:
            written = self._written[kind] = (picture, write())
        return written[1]


def health(status: Mapping[str, Any]) -> dict[str, Any]:
    """Say whether the pool lives: its master does, and a worker serves or is being started."""
    if not status["running"]:
        return {"ok": False, "error": f"the master (pid {status['master_pid']}) is dead"}
    hopeful = [each for each in status["workers"] if each["state"] in ("starting", "ready")]
    if not any(not each["stuck"] for each in hopeful):
        return {"ok": False, "error": "every worker is stuck" if hopeful else "no worker serves"}
    return {"ok": True, "workers": len(hopeful)}


def readiness(status: Mapping[str, Any]) -> dict[str, Any]:
    """Say whether a call that comes now is served at once, or waits where there is room."""
    lives = health(status)
    if not lives["ok"]:
        return lives
    if status.get("stopping"):
        return {"ok": False, "error": "the pool is stopping"}
    serving = [each for each in status["workers"] if each["state"] == "ready" and not each["stuck"]]
    if not serving:
        return {"ok": False, "error": "no worker accepts calls yet"}
    listen = status["listen"]
    if 0 < listen["limit"] <= listen["queue"]:
        return {"ok": False, "error": f"the listening queue is full ({listen['queue']} connections)"}
    free = sum(max(0, each["places"] - each["active"]) for each in serving)
    if free == 0 and status["queued"]:
        places = sum(each["places"] for each in serving)
        message = f"all {places} places are taken and {status['queued']} calls wait"
        return {"ok": False, "error": message}
    return {"ok": True, "free_places": free}


def is_own_name(host: str) -> bool:
    """Whether a ``Host`` header names this server by an address, or as this machine.

    Any other name may be a stranger's, who makes it lead here to let a browser read for him what only the
    browser's machine may see (DNS rebinding).
    """
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    if name.lower() in ("", "localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _parameter(environ: Mapping[str, Any], name: str, default: float) -> float:
    """Read a number of the query; what is none counts as not said."""
    try:
        value = float(parse_qs(environ.get("QUERY_STRING", ""))[name][0])
    except (KeyError, ValueError):
        return default
    # Comparing sorts out what is not a number.
    return value if 0 <= value < float("inf") else default


def _json(content: Mapping[str, Any]) -> Answer:
    return Answer(HTTPStatus.OK, _JSON, json.dumps(content, separators=(",", ":")).encode())


def _judged(verdict: Mapping[str, Any]) -> Answer:
    status = HTTPStatus.OK if verdict["ok"] else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, _JSON, json.dumps(verdict).encode() + b"\n")


def _refused(status: HTTPStatus, text: str) -> Answer:
    return Answer(status, _TEXT, text.encode() + b"\n")
