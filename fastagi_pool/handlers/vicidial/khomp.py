"""KHOMP: a service that listens to calls; it is told of a dial, and asked what it heard.

Laws:
    * A START announces the call: by SIP headers, and by a row of ``vicidial_khomp_log``.
    * An END asks only if the operator wants it (``khomp``, off): a stock VICIdial asks in vain.
    * Whatever goes wrong with the service means that it heard nothing; the call goes on as without it.
    * A run from the journal asks too, for the report of the call, but waits half a second at most.
    * User, password and token are in no note, no log and no exception.

What is not known of the service: it speaks JSON-RPC 2.0 over HTTP, but only the names of two methods, and
what is asked for, were observed. For the rest this is the plainest reading: how one logs in (``_log_in``),
how the question is put (``_find_call``), where the token goes (``_post``), and what the fields of the answer
are called (:func:`read_call`). A site that knows better finds each of these in one place.

Source: VICIdial's FastAGI daemon, observed: KHOMP analytics; its END was read and never seen to run.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from http.client import HTTPException
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias
from urllib.error import HTTPError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

import gevent

from fastagi_pool.handlers.vicidial.grammar import end_code

if TYPE_CHECKING:
    from fastagi_pool.handlers.vicidial.leg import Leg
    from fastagi_pool.handlers.vicidial.rows import Campaign

#: The container that says what a conclusion means to VICIdial.
STATUS_MAP: Final = "KHOMPSTATUSMAP"
#: How long a token is good for. Source: VICIdial's FastAGI daemon, observed: KHOMP analytics.
TOKEN_LIFE_S: Final = 3600

_AMD_TYPE: Final = "KHOMP"
_SUB_ACCOUNT_HEADER: Final = "X-KHOMP-Sub-Account"
#: What a call is announced as; in any other format it is the code alone.
_IDS: Final = {
    "CALLERCODE_EXTERNIP": "{code}_{address}",
    "CALLERCODE_CAMP_EXTERNIP": "{code}_{campaign}_{address}",
}
#: What stands in a container until the first token is written there.
_NO_TOKEN: Final = "TOKENTOKENTOKEN"
_NOT_PROXIED: Final = "false"
#: Values of khomp_api_check_ssl by which nobody asks who the service is.
_NO: Final = frozenset({"0", "false", "no", "n"})
_ERROR: Final = "error"
_CARRIERS_LEG: Final = "leg b"
#: An answer is some hundred bytes.
_LONGEST_ANSWER_BYTES: Final = 1 << 20
#: In the year 5138: a number above is no time in milliseconds.
_LATEST_MS: Final = 10**14

_NUMBER = re.compile(r"\s*[+-]?[0-9]{1,18}")
#: Printable ASCII without ``#``: what can be kept in a container and sent in a header.
_TOKEN = re.compile(r"[!-\"$-~]+")
_MAP_KEY = re.compile(r'"([^"]*)"(?:\s*\.\s*"([^"]*)")?')
_MAP_VALUE = re.compile(r'"([^"]*)"\s*\.\s*"([^"]*)"\s*\.\s*"([^"]*)"')


class KhompResult(NamedTuple):
    """What a call means to VICIdial.

    Attributes:
        action: What is to be done; ``status`` if the status alone decides.
        status: For the lead and its log row; at most 6 characters.
        auto_call_status: For the row of ``vicidial_auto_calls``.
    """

    action: str
    status: str
    auto_call_status: str

    @property
    def is_error(self) -> bool:
        """Whether nothing follows from it."""
        return self.action.lower() == _ERROR


StatusMap: TypeAlias = Mapping[tuple[str, str], KhompResult]

#: What nobody can make sense of.
UNKNOWN: Final = KhompResult("ERROR", "KPEROR", "NA")

_CONGESTION: Final = KhompResult("status", "KPCONG", "CONGESTION")
_DROPPED: Final = KhompResult("status", "KPDROP", "ANSWER")
#: What the carrier's cause means if the service came to no conclusion. That these decide by themselves, as
#: the action ``status`` does, is our reading.
#: Source: VICIdial's FastAGI daemon, observed: KHOMP analytics.
_CAUSES: Final = {
    "20003": KhompResult("status", "KPNOCH", "CONGESTION"),
    "30000": KhompResult("status", "KPTMOT", "CONGESTION"),
    "486": KhompResult("status", "KPBUSY", "BUSY"),
    **dict.fromkeys(("488", "500", "503", "603"), _CONGESTION),
}
#: Means something only if the call had been answered.
_CANCELLED: Final = "487"


@dataclass(frozen=True, slots=True)
class KhompSettings:
    """What a campaign's container says; what it does not say is empty.

    Attributes:
        api_url: Where questions go.
        is_proxied: Whether something on the way logs in for us.
        login_url: Where one logs in.
        user: Secret.
        password: Secret.
        checks_certificate: Whether the service must prove who it is: unless that is switched off.
        header: Name of the header that announces a call, without ``X-``.
        id_format: What a call is announced as.
        sub_account: Value of a second header; empty for none.
        token: Secret: the last one that was got. Empty if there is none that could be sent.
        token_expires_epoch: Until when it is good, in seconds since 1970.
    """

    api_url: str
    is_proxied: bool
    login_url: str
    user: str = field(repr=False)
    password: str = field(repr=False)
    checks_certificate: bool
    header: str
    id_format: str
    sub_account: str
    token: str = field(repr=False)
    token_expires_epoch: int

    def needs_login(self, now_epoch: int) -> bool:
        """Tell whether one has to log in before a question."""
        return not self.is_proxied and (not self.token or self.token_expires_epoch <= now_epoch)

    def id_of(self, code: str, campaign_id: str, address: str) -> str:
        """Return what a call is announced as.

        Args:
            code: Its caller code, cut.
            campaign_id: Of its campaign.
            address: Of our server, as it is seen from outside.
        """
        pattern = _IDS.get(self.id_format, "{code}")
        return pattern.format(code=code, campaign=campaign_id, address=address)


@dataclass(frozen=True, slots=True)
class HeardCall:
    """What the service says about a call; empty or 0 for what it does not say.

    Attributes:
        sip_call_id: The Call-ID of SIP.
        audio_ms: When there was something to hear, in milliseconds since 1970, as all times here.
        answer_ms: When it was answered.
        end_ms: When it ended.
        analyzer_ms: When the conclusion was made.
        conclusion: What was heard.
        pattern: By what it was known.
        action: What the service did then.
        hangup_origin: Who hung up: ``leg b`` is the carrier's side.
        hangup_cause_recv: The cause that came with it.
        hangup_cause_sent: The cause that was passed on.
    """

    sip_call_id: str = ""
    audio_ms: int = 0
    answer_ms: int = 0
    end_ms: int = 0
    analyzer_ms: int = 0
    conclusion: str = ""
    pattern: str = ""
    action: str = ""
    hangup_origin: str = ""
    hangup_cause_recv: str = ""
    hangup_cause_sent: str = ""


class _ServiceError(Exception):
    """The service did not answer as it should; the message holds no secret."""


# --- START and END


def start(leg: Leg, campaign: Campaign, code: str) -> list[tuple[str, str]]:
    """Announce a call that is dialled, if its campaign uses the service.

    The leg on which the call comes to the campaign's routing extension was announced before. Without a
    header's name nobody could find the call, so nothing is announced.

    Args:
        leg: The request.
        campaign: Of the call.
        code: Its caller code, cut.

    Returns:
        SIP headers for the leg, each a name and a value; empty for none.

    Raises:
        DatabaseUnavailable: The database is away.

    Source: VICIdial's FastAGI daemon, observed: KHOMP analytics.
    """
    extension = leg.request.called_extension
    if campaign.amd_type != _AMD_TYPE or _number(extension) == _number(campaign.vdad_extension):
        return []
    settings = read_settings(leg.tables.container(campaign.khomp_container) or "")
    if not settings.header:
        leg.note(f"KHOMP: container {campaign.khomp_container} has no khomp_header")
        return []
    call_id = settings.id_of(code, campaign.campaign_id, leg.server.external_ip)
    container, format_name = campaign.khomp_container, settings.id_format
    leg.tables.insert_khomp(code, settings.header, call_id, format_name, container, leg.careful)
    headers = [(f"X-{settings.header}", call_id)]
    if settings.sub_account:
        headers.append((_SUB_ACCOUNT_HEADER, settings.sub_account))
    return headers


def end(leg: Leg, campaign: Campaign) -> KhompResult | None:
    """Ask what was heard of a call that has ended, and write it into the call's row.

    Args:
        leg: The request.
        campaign: Of the call.

    Returns:
        What it means; None if nothing follows: nobody is asked, there is no answer, or the answer means
        nothing to anybody.

    Raises:
        DatabaseUnavailable: The database is away.

    Source: VICIdial's FastAGI daemon, observed: KHOMP analytics.
    """
    if not leg.site.khomp or campaign.amd_type != _AMD_TYPE:
        return None
    text = leg.tables.container(campaign.khomp_container) or ""
    settings = read_settings(text)
    if not settings.header:
        return None
    code = end_code(leg.request.code)
    call_id = settings.id_of(code, campaign.campaign_id, leg.server.external_ip)
    token, login_s = settings.token, 0.0
    try:
        if settings.needs_login(leg.today_epoch):
            token, login_s = _log_in(leg, settings)
            new_text = with_token(text, token, leg.today_epoch + TOKEN_LIFE_S)
            leg.tables.replace_container(campaign.khomp_container, text, new_text)
        call, query_s = _find_call(leg, settings, token, call_id)
    except _ServiceError as error:
        leg.note(f"KHOMP: {error}")
        return None
    result = judge(call, read_status_map(leg.tables.container(STATUS_MAP) or ""))
    leg.note(f"KHOMP: {call.conclusion}|{call.pattern}|{result.action}|{result.status}")
    leg.tables.end_khomp(call_id, _columns(call, result, login_s, query_s))
    return None if result.is_error else result


# --- containers


def read_entries(text: str) -> dict[str, str]:
    """Read a settings container: lines of ``key => value``; what follows a ``#`` is a comment.

    Of several lines with one key the last counts; a line without ``=>`` says nothing.

    Source: VICIdial's FastAGI daemon, observed: KHOMP analytics.
    """
    entries = {}
    for line in text.split("\n"):
        key, arrow, value = line.partition("#")[0].partition("=>")
        if arrow:
            entries[key.strip()] = value.strip()
    return entries


def read_settings(text: str) -> KhompSettings:
    """Read the container of a campaign's settings.

    Source: VICIdial's FastAGI daemon, observed: KHOMP analytics.
    """
    entries = read_entries(text)

    def entry(name: str) -> str:
        return entries.get(name, "")

    token = entry("khomp_api_token")
    return KhompSettings(
        api_url=entry("khomp_api_url"),
        is_proxied=(entry("khomp_api_proxied") or _NOT_PROXIED) != _NOT_PROXIED,
        login_url=entry("khomp_api_login_url"),
        user=entry("khomp_api_user"),
        password=entry("khomp_api_pass"),
        checks_certificate=entry("khomp_api_check_ssl").lower() not in _NO,
        header=entry("khomp_header"),
        id_format=entry("khomp_id_format"),
        sub_account=entry("khomp_sub_account_header"),
        token=token if token != _NO_TOKEN and _TOKEN.fullmatch(token) else "",
        token_expires_epoch=_number(entry("khomp_api_token_expire")),
    )


def with_token(text: str, token: str, expires_epoch: int) -> str:
    """Put a token and its end into the text of a container; nothing else of it changes.

    Args:
        text: It. Without lines for them it stays as it is.
        token: Printable ASCII without ``#``.
        expires_epoch: Until when the token is good, in seconds since 1970.
    """
    return _with_value(
        _with_value(text, "khomp_api_token", token), "khomp_api_token_expire", str(expires_epoch)
    )


def _with_value(text: str, key: str, value: str) -> str:
    line = re.compile(rf"^([ \t]*{key}[ \t]*=>[ \t]*)[^#\r\n]*?([ \t]*(?:#.*)?\r?)$", re.MULTILINE)
    return line.sub(lambda found: f"{found[1]}{value}{found[2]}", text)


def read_status_map(text: str) -> StatusMap:
    """Read the container of conclusions: ``"conclusion"."pattern" => "action"."status"."dial_status"``.

    The pattern may be missing, and is empty then. Lines of another form say nothing.

    Source: VICIdial's FastAGI daemon, observed: KHOMP analytics.
    """
    found = {}
    for key, value in read_entries(text).items():
        heard, means = _MAP_KEY.fullmatch(key), _MAP_VALUE.fullmatch(value)
        if heard and means:
            found[heard[1], heard[2] or ""] = KhompResult(*means.groups())
    return found


# --- what an answer means


def read_call(answer: object) -> HeardCall:
    """Read the answer to a question for a call.

    Our reading: a list of calls, of which the first is taken, or one call; its fields are called as the
    columns of ``vicidial_khomp_log``, and times are milliseconds since 1970.

    Args:
        answer: ``result`` of the JSON-RPC answer; whatever it is, it is read as far as it makes sense.
    """
    if isinstance(answer, list):
        answer = answer[0] if answer else None
    said: Mapping[str, object] = answer if isinstance(answer, dict) else {}

    def word(name: str) -> str:
        value = said.get(name)
        is_plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        # Half a character that stands for nothing cannot be stored.
        return str(value).encode("utf-8", "replace").decode() if is_plain else ""

    return HeardCall(
        sip_call_id=word("sip_call_id"),
        audio_ms=_milliseconds(said.get("audio_date")),
        answer_ms=_milliseconds(said.get("answer_date")),
        end_ms=_milliseconds(said.get("end_date")),
        analyzer_ms=_milliseconds(said.get("analyzer_date")),
        conclusion=word("conclusion"),
        pattern=word("pattern"),
        action=word("action"),
        hangup_origin=word("hangup_origin"),
        hangup_cause_recv=word("hangup_cause_recv"),
        hangup_cause_sent=word("hangup_cause_sent"),
    )


def judge(call: HeardCall, status_map: StatusMap) -> KhompResult:
    """Tell what a call means: by its conclusion, or by the cause with which the carrier hung up.

    Args:
        call: What the service says about it.
        status_map: What conclusions mean.

    Source: VICIdial's FastAGI daemon, observed: KHOMP analytics. That the cause is the one that came from
    the carrier, and not the one that was sent, is our reading.
    """
    if call.conclusion:
        by_pattern = status_map.get((call.conclusion, call.pattern))
        return by_pattern or status_map.get((call.conclusion, ""), UNKNOWN)
    if call.hangup_origin != _CARRIERS_LEG:
        return UNKNOWN
    if call.hangup_cause_recv == _CANCELLED and call.answer_ms > 0:
        return _DROPPED
    return _CAUSES.get(call.hangup_cause_recv, UNKNOWN)


def _columns(call: HeardCall, result: KhompResult, login_s: float, query_s: float) -> dict[str, str | None]:
    """Make what the call's row of ``vicidial_khomp_log`` gets; None for what is to stay."""
    return {
        "sip_call_id": call.sip_call_id or None,
        "audio_date": _date(call.audio_ms),
        "answer_date": _date(call.answer_ms),
        "end_date": _date(call.end_ms),
        "analyzer_date": _date(call.analyzer_ms),
        "conclusion": call.conclusion or None,
        "pattern": call.pattern or None,
        "action": call.action or None,
        "hangup_origin": call.hangup_origin or None,
        "hangup_cause_recv": call.hangup_cause_recv or None,
        "hangup_cause_sent": call.hangup_cause_sent or None,
        "hangup_auth_time": f"{login_s:.3f}",
        "hangup_query_time": f"{query_s:.3f}",
        "vici_action": result.action,
        "vici_status": result.status,
    }


def _number(text: str) -> int:
    found = _NUMBER.match(text)
    return int(found[0]) if found else 0


def _milliseconds(value: object) -> int:
    if isinstance(value, str):
        value = _number(value)
    if isinstance(value, (int, float)) and 0 < value < _LATEST_MS:
        return int(value)
    return 0


def _date(epoch_ms: int) -> str | None:
    if not epoch_ms:
        return None
    return datetime.fromtimestamp(epoch_ms / 1000).isoformat(" ", "milliseconds")


# --- the service


def _log_in(leg: Leg, settings: KhompSettings) -> tuple[str, float]:
    """Get a token, and the seconds that this took.

    Our reading: the parameters are called ``user`` and ``password``, and the answer is the token or has it
    as ``token``.

    Raises:
        _ServiceError: There is no answer, or no token in it that could be kept and sent.
    """
    parameters = {"user": settings.user, "password": settings.password}
    answer, took_s = _ask(leg, settings, settings.login_url, "SessionLogin", parameters, "")
    token = answer.get("token") if isinstance(answer, dict) else answer
    if not isinstance(token, str) or _TOKEN.fullmatch(token) is None:
        raise _ServiceError("SessionLogin: no token in the answer")
    return token, took_s


def _find_call(leg: Leg, settings: KhompSettings, token: str, call_id: str) -> tuple[HeardCall, float]:
    """Ask for a call, and give the seconds that this took.

    Our reading: the one parameter is called as the field that is looked into.

    Raises:
        _ServiceError: There is no answer.
    """
    parameters = {f"sip_header:X-{settings.header}": call_id}
    answer, took_s = _ask(leg, settings, settings.api_url, "CallList", parameters, token)
    return read_call(answer), took_s


def _ask(
    leg: Leg, settings: KhompSettings, url: str, method: str, parameters: Mapping[str, str], token: str
) -> tuple[object, float]:
    """Call a method of the service; give its ``result`` and the seconds that this took.

    Raises:
        _ServiceError: There is none.
    """
    question = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
    timeout_s = leg.patience_s(leg.site.khomp_timeout_s)
    began_s = time.monotonic()
    try:
        data = _post(settings, url, json.dumps(question).encode(), token, timeout_s)
        answer = json.loads(data)
    except HTTPError as error:
        error.close()
        raise _ServiceError(f"{method}: HTTP status {error.code}") from None
    except OSError as error:
        raise _ServiceError(f"{method}: {getattr(error, 'reason', error)}") from None
    except (HTTPException, ValueError, RecursionError) as error:
        # A URL or an answer that makes no sense; the words may repeat it.
        raise _ServiceError(f"{method}: {type(error).__name__}") from None
    finally:
        took_s = time.monotonic() - began_s
        leg.outside_s += took_s
    if not isinstance(answer, dict) or answer.get("error") is not None or "result" not in answer:
        raise _ServiceError(f"{method}: the service refuses")
    return answer["result"], took_s


def _post(settings: KhompSettings, url: str, body: bytes, token: str, timeout_s: float) -> bytes:
    """Send a question and give the answer.

    Our reading: the token goes into the header ``Authorization``, as a bearer token.

    Raises:
        OSError: There is no connection, no answer in time, or a status that is no success.
        http.client.HTTPException: What came is no HTTP, or the URL is none.
        ValueError: The URL is none.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "fastagi_pool"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = Request(url, body, headers)
    limit = gevent.Timeout(timeout_s, TimeoutError("no answer in time"))
    with limit, _opener(settings.checks_certificate).open(request, timeout=timeout_s) as response:
        data: bytes = response.read(_LONGEST_ANSWER_BYTES)
        return data


@cache
def _opener(checks_certificate: bool) -> OpenerDirector:
    """Make what sends questions, once: to read the machine's certificates takes some time.

    It follows no redirection: a password and a token are for nobody else.
    """
    context = ssl.create_default_context()
    if not checks_certificate:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(context=context),
        HTTPErrorProcessor(),
        HTTPDefaultErrorHandler(),
        UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
