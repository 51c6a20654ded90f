"""The request grammar: what Asterisk says about a call, read as VICIdial means it.

Laws:
    * Pure: an environment in, a request out. No I/O, no clock, and nothing is kept from call to call.
    * Whatever was sent is read: no text is too strange, and none raises.
    * Every text that leaves here can be stored: no NUL, and ``?`` for each byte that is not UTF-8.
    * A digit is an ASCII digit, a letter's case counts unless it is said that it does not.

The caller code is VICIdial's own name for a call. It travels as the caller's name, its first letters say
who made the call, and its characters 11 to 20 name the lead: ``V1202150310000000101`` is lead 101.

Source: VICIdial's FastAGI daemon, observed: the request grammar.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Final, NamedTuple

_PROCESS: Final = "call_log"
#: What follows the first ``--`` of a URL whose fields name the caller, in small letters.
_CALLER_FORM: Final = "fullcid"
#: The same for a URL whose fields tell how the call ended.
_HANGUP_FORM: Final = "hvcauses"
_FIELD_SEPARATOR: Final = "-----"
_HANGUP_FIELDS: Final = 7
#: Extensions of Asterisk's end of a call, as ``h``, ``oh`` and ``h1``, are shorter than this.
_SHORTEST_DIALLED: Final = 3
#: A shorter name never replaces the number: it cannot be a caller code.
_SHORTEST_NAME: Final = 6
#: Digits by which a name is known as a caller code, whatever the number.
_CODE_DIGITS: Final = 18

#: Longer numbers are cut, because Python refuses to read some thousand digits and no column holds 18.
_LEADING_NUMBER = re.compile(r"[0-9]{1,18}")
#: NUL, bytes that were no UTF-8, and what takes four bytes, of which VICIdial's tables hold three.
_NOT_STORABLE = re.compile("[\0\ud800-\udfff\U00010000-\U0010ffff]")
#: What a number holds that says nothing about the caller; 555-1212 is the directory inquiry of the USA.
_NO_NUMBER = re.compile(r"unknown|private|00000000|5551212", re.ASCII | re.IGNORECASE)
_ANI_DNIS = re.compile(r"\*[0-9]{10}\*")
_FINAL_DNIS = re.compile(r"\*[0-9]{4}\*\Z")
_DELETED_FROM_CODE = re.compile(r"[';]|\\[\\;]|\\\|\\")
_DELETED_FROM_EXTENSION = re.compile(r"""[';"]|\\[\\;]|\\\|\\""")

_AUTO_DIALLED = re.compile(r"V[0-9]{19}")
_MANUAL = re.compile(r"M[0-9]{19}")
_INBOUND = re.compile(r"Y[0-9]{4}")
_SESSION_LOGIN = re.compile(r"S[0-9]{12}")
_LISTENING = re.compile(r"BM[0-9]{8}")
_BARGING = re.compile(r"B[BW][0-9]{8}")
_THREE_WAY_PRESS = re.compile(r"T[0-9]{19}")
_FINAL_DIGITS = re.compile(r"\.[0-9]+\Z")


class Stage(Enum):
    """What happens to the channel: it begins to dial, or it has hung up."""

    START = "start"
    END = "end"


class HangupFacts(NamedTuple):
    """How the call ended, as the dialplan's ``h`` extension tells it; whatever it leaves out is empty.

    Attributes:
        kind: Normally ``PRI``.
        debug: ``DEBUG`` if the facts shall be written to a file, normally ``NODEBUG``.
        cause: The hangup cause of Q.850, in digits.
        dialstatus: Asterisk's DIALSTATUS; empty on a leg that dialled nobody.
        dial_time: Seconds from the dial to the end, in digits.
        answered_time: Seconds from the answer to the end, in digits.
        tech_cause: What the channel's technology said, as ``SIP 404 Not Found``; the other side chose it.

    Source: VICIdial's FastAGI daemon, observed: the URL forms.
    """

    kind: str = ""
    debug: str = ""
    cause: str = ""
    dialstatus: str = ""
    dial_time: str = ""
    answered_time: str = ""
    tech_cause: str = ""

    @property
    def ring_s(self) -> int:
        """How long it rang, in seconds; 0 if it was answered for as long as it was dialled, or longer."""
        return max(0, _leading_number(self.dial_time) - _leading_number(self.answered_time))


class CallLogRequest(NamedTuple):
    """A request of the one process that there is, ``call_log``.

    Attributes:
        stage: Whether the channel begins to dial or has hung up.
        uid: Asterisk's unique id of the channel.
        channel: The channel's whole name.
        type: The channel's technology, as Asterisk names it.
        extension: The dialled extension without ANI and without the characters that are deleted.
        called_extension: The same; it stays what it is when a START rewrites ``extension``.
        priority: The dialplan's priority; 0 if it is no number.
        code: The caller code without the characters that are deleted, but not yet cut at its first space.
        name: The caller's name: the code once more, unless the URL named the caller.
        hangup: How the call ended; None if the URL does not say.
    """

    stage: Stage
    uid: str
    channel: str
    type: str
    extension: str
    called_extension: str
    priority: int
    code: str
    name: str
    hangup: HangupFacts | None


# --- the request


def read_request(environment: Mapping[str, str], strip_parenthesis: bool = False) -> CallLogRequest | None:
    """Read a request.

    The process is what stands between the first slash after the host and the first ``--``, so that a slash
    in a SIP reason or in a caller's name hides nothing. A form's marker is known only at that first ``--``:
    what the other side put into the last field never passes for one.

    Args:
        environment: The ``agi_`` lines, names as sent. Lines that are missing count as empty.
        strip_parenthesis: Whether ``tech_cause`` loses a final ``)`` that closes nothing. The sample
            dialplan since Asterisk 12 sends one too many, and VICIdial stores it.

    Returns:
        The request; None if it is for another process, so that there is nothing to do.

    Source: VICIdial's FastAGI daemon, observed: process, stage, caller id; the slash is put right.
    """
    url = _storable(environment.get("agi_request", ""))
    process, _, tail = _script(url).partition("--")
    if not process.startswith(_PROCESS):
        return None
    marker, is_complete, fields = tail.partition("--")
    form = marker.lower() if is_complete else ""
    extension = _storable(environment.get("agi_extension", ""))
    if form == _CALLER_FORM:
        code, name = _caller_of_url(fields)
    else:
        code, extension = _caller_of_channel(environment, extension)
        name = code
    extension = _DELETED_FROM_EXTENSION.sub("", extension)
    return CallLogRequest(
        stage=_stage(extension),
        uid=_storable(environment.get("agi_uniqueid", "")),
        channel=_storable(environment.get("agi_channel", "")),
        type=_storable(environment.get("agi_type", "")),
        extension=extension,
        called_extension=extension,
        priority=_leading_number(environment.get("agi_priority", "")),
        code=_DELETED_FROM_CODE.sub("", code),
        name=_DELETED_FROM_CODE.sub("", name),
        hangup=_hangup_facts(fields, strip_parenthesis) if form == _HANGUP_FORM else None,
    )


def _storable(text: str) -> str:
    if text.isascii() and "\0" not in text:
        return text
    return _NOT_STORABLE.sub(lambda found: "" if found[0] == "\0" else "?", text)


def _leading_number(text: str) -> int:
    found = _LEADING_NUMBER.match(text)
    return int(found[0]) if found else 0


def _script(url: str) -> str:
    _, _, host_and_script = url.partition("://")
    # The original took what follows the last slash, so one slash too many before the process did no harm.
    return host_and_script.partition("/")[2].lstrip("/")


def _stage(extension: str) -> Stage:
    is_end = len(extension) < _SHORTEST_DIALLED and ("h" in extension or "H" in extension)
    return Stage.END if is_end else Stage.START


def _caller_of_url(fields: str) -> tuple[str, str]:
    """Return code and name out of ``EXT-----ALL-----NUM-----NAME``."""
    _, _, number, name = (*fields.split(_FIELD_SEPARATOR), "", "", "", "")[:4]
    return number, name


def _caller_of_channel(environment: Mapping[str, str], extension: str) -> tuple[str, str]:
    """Return the code, and what is left of the extension if that begins with the caller's number."""
    number = _storable(environment.get("agi_callerid", ""))
    name = _storable(environment.get("agi_calleridname", "")).replace('"', "")
    if _ANI_DNIS.match(extension):
        code = _FINAL_DNIS.sub("", extension)[len("*") :]
        return code, extension[len("*0123456789*") :].removesuffix("*")
    return (name if _name_is_code(number, name) else number), extension


def _name_is_code(number: str, name: str) -> bool:
    if has_long_number(name, _CODE_DIGITS):
        return True
    if len(name) < _SHORTEST_NAME:
        return False
    return number in ("", "0") or _NO_NUMBER.search(number) is not None


def _hangup_facts(fields: str, strip_parenthesis: bool) -> HangupFacts:
    facts = HangupFacts(*fields.split(_FIELD_SEPARATOR)[:_HANGUP_FIELDS])
    cause = facts.tech_cause
    if strip_parenthesis and cause.endswith(")") and cause.count(")") > cause.count("("):
        return facts._replace(tech_cause=cause[:-1])
    return facts


# --- what a code says


def first_word(code: str) -> str:
    """Cut a code at its first space: a caller's name may have come with words behind it."""
    return code.partition(" ")[0]


def end_code(code: str) -> str:
    """Give the code as an END knows it: cut, and without the quotes that a START leaves."""
    return first_word(code).replace('"', "")


def lead_of(code: str) -> int:
    """Return the lead that a code names in its characters 11 to 20; 0 if it names none.

    Only leading digits count: the original read more, as exponents, which no code was ever seen to hold.
    """
    return _leading_number(code[10:20])


@cache
def _search_run(digits: int) -> Callable[[str], re.Match[str] | None]:
    return re.compile(f"[0-9]{{{digits}}}").search


def has_long_number(code: str, digits: int) -> bool:
    """Whether a code has at least so many digits in a row, wherever they stand."""
    return len(code) >= digits and _search_run(digits)(code) is not None


def begins_m(code: str) -> bool:
    """Whether a code begins as that of an agent's manual dial; see :func:`is_manual` for the whole shape."""
    return code.startswith("M")


def begins_v_or_m(code: str) -> bool:
    """Whether a code begins as that of a call to a lead, auto-dialled or manual; nothing else is asked."""
    return code.startswith(("V", "M"))


def is_dialled(code: str) -> bool:
    """Whether a code begins ``V`` or ``M`` and has 18 digits in a row: a call to a lead, of a campaign."""
    return begins_v_or_m(code) and has_long_number(code, _CODE_DIGITS)


def is_auto_dialled(code: str) -> bool:
    """Whether a code begins ``V`` and 19 digits: the dialer placed the call."""
    return _AUTO_DIALLED.match(code) is not None


def is_manual(code: str) -> bool:
    """Whether a code begins ``M`` and 19 digits: an agent placed the call."""
    return _MANUAL.match(code) is not None


def is_inbound(name: str) -> bool:
    """Whether a caller's name begins ``Y`` and 4 digits: an in-group took the call.

    The name is asked and not the code: they differ if the URL named the caller.
    """
    return _INBOUND.match(name) is not None


def is_session_login(code: str) -> bool:
    """Whether a code begins ``S`` and 12 digits: an agent's phone joins its conference."""
    return _SESSION_LOGIN.match(code) is not None


def is_listening(code: str) -> bool:
    """Whether a code begins ``BM`` and 8 digits: a manager listens to an agent."""
    return _LISTENING.match(code) is not None


def is_barging(code: str) -> bool:
    """Whether a code begins ``BB`` or ``BW`` and 8 digits: a manager speaks to both, or to the agent."""
    return _BARGING.match(code) is not None


def is_three_way_press(code: str) -> bool:
    """Whether a code begins ``T`` and 19 digits: an agent outside is asked to press a key for the call."""
    return _THREE_WAY_PRESS.match(code) is not None


# --- other texts


def uid_stem(uid: str) -> str:
    """Return a unique id without a final dot and digits: the second in which the channel was made."""
    return _FINAL_DIGITS.sub("", uid)


def asterisk_minor(version_text: str) -> int:
    """Return the number by which generations of Asterisk are told apart.

    Returns:
        18 for ``18.18.1-vici``, 8 for ``1.8.23``: the second number if the first is 1, else the first.
        From 12 on a hangup tells its technology's cause. 0 if the version is unknown, which counts as old.

    Source: VICIdial's FastAGI daemon, observed: the Asterisk generation switch.
    """
    first, second = (*version_text.partition("-")[0].split("."), "")[:2]
    major = _leading_number(first)
    return major if major > 1 else _leading_number(second)
