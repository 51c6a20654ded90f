"""Dials that failed: which hangups of a Local channel say so, and which status they mean.

Laws:
    * Rules are data: one table for each mode of ``enhanced_disconnect_logging``; the last that holds wins.
    * The test of entry and the tables do not agree with each other, and shall not: some hangups pass and yet
      get no status. It shows in the rows, and others may rely on it.
    * A status of the auto call is told as it is meant. ``ADCCAR``, ``DNCCAR``, ``CARRIERFAIL``, ``NA``,
      ``CONGESTION``, ``FAX`` and ``AMD`` are missing from the column's shipped list, so that the database
      stores the empty text for them; a site may have widened that list.
    * DIALSTATUS is searched for words, case and all; causes are compared as text, as they stood in the URL.

Source: VICIdial's FastAGI daemon, observed: END on a Local channel, steps 2 to 5.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from fastagi_pool.handlers.vicidial.grammar import has_long_number, is_session_login

#: What every stock dialplan writes into the first field of a hangup's URL.
_KIND: Final = "PRI"
_CODE_DIGITS: Final = 19


class Verdict(NamedTuple):
    """What a failed dial means.

    Attributes:
        status: For the lead and its ``vicidial_log``; at most 6 characters.
        auto_call_status: For the row of ``vicidial_auto_calls``.
    """

    status: str
    auto_call_status: str


class _Condition(NamedTuple):
    """What must be true of a hangup; what is empty is not asked for.

    Attributes:
        dialstatus: DIALSTATUS contains it.
        causes: The cause is one of these.
        cause_begins: The cause begins with it.
    """

    dialstatus: str = ""
    causes: frozenset[str] = frozenset()
    cause_begins: str = ""

    def holds(self, dialstatus: str, cause: str) -> bool:
        """Tell whether it is true of this hangup."""
        return (
            self.dialstatus in dialstatus
            and (not self.causes or cause in self.causes)
            and cause.startswith(self.cause_begins)
        )


class _Rule(NamedTuple):
    """What a hangup means if the condition holds."""

    condition: _Condition
    verdict: Verdict


def _when(dialstatus: str, *causes: str) -> _Condition:
    return _Condition(dialstatus, frozenset(causes))


# ---- the test of entry

_ALWAYS_ENTER: Final = (_when("BUSY"), _when("CHANUNAVAIL", "1", "28"))
_ENTER_IF_ENHANCED: Final = (
    _when("CONGESTION", "1", "19", "21", "34", "38", "102"),
    _when("CHANUNAVAIL", "18"),
    _when("DNC"),
    _when("DISCONNECT"),
)

# ---- the tables of the modes

_BUSY: Final = Verdict("AB", "BUSY")
_DISCONNECTED: Final = Verdict("ADC", "DISCONNECT")
_DISCONNECTED_FOR_NOW: Final = Verdict("ADCT", "DISCONNECT")

#: What a filter before the carrier said (TILTX), instead of dialling.
_FILTERED: Final = (
    _Rule(_when("DISCONNECT"), Verdict("ADCCAR", "ADCCAR")),
    _Rule(_when("DNC"), Verdict("DNCCAR", "DNCCAR")),
)
_MODE_0: Final = (
    _Rule(_when("BUSY"), _BUSY),
    _Rule(_when("CHANUNAVAIL"), _DISCONNECTED),
)
_ENHANCED: Final = (
    *_MODE_0,
    _Rule(_when("CONGESTION", "1"), _DISCONNECTED),
    _Rule(_when("CONGESTION", "19", "21", "34", "38"), _DISCONNECTED_FOR_NOW),
    *_FILTERED,
)
_MODE_2: Final = (
    *_MODE_0,
    _Rule(_Condition("CHANUNAVAIL", cause_begins="18"), _DISCONNECTED_FOR_NOW),
    _Rule(_when("CONGESTION", "1"), _DISCONNECTED),
    _Rule(_when("CONGESTION", "21", "34", "38", "102"), _DISCONNECTED_FOR_NOW),
    _Rule(_when("BUSY", "19"), _DISCONNECTED_FOR_NOW),
    *_FILTERED,
)
_CAUSES_TOLD: Final = ("18", "19", "21", "34", "38", "41", "42", "88", "102")
_MODE_3: Final = (
    *(_Rule(_when("", cause), Verdict(f"HUC{cause}", "CARRIERFAIL")) for cause in _CAUSES_TOLD),
    _Rule(_when("", "1", "28"), _DISCONNECTED),
    _Rule(_Condition(cause_begins="17"), _BUSY),
)
#: The modes with a table of their own; all others share one.
_TABLES: Final = {0: _MODE_0, 2: _MODE_2, 3: _MODE_3}


def passes_entry(kind: str, code: str, dialstatus: str, cause: str, mode: int, cpd_found: bool) -> bool:
    """Tell whether a hangup is that of a dial that failed; what does not pass gets no status.

    Args:
        kind: First field of the hangup's URL.
        code: The call's code.
        dialstatus: DIALSTATUS of the dialplan, as it came.
        cause: The Q.850 cause, as it came.
        mode: ``enhanced_disconnect_logging``, 0 to 6; 0 if there is no such setting.
        cpd_found: Whether call progress detection heard something; it does not count for agents' sessions.

    Source: VICIdial's FastAGI daemon, observed: END on a Local channel, step 3.
    """
    if kind != _KIND or not has_long_number(code, _CODE_DIGITS):
        return False
    conditions = _ALWAYS_ENTER + _ENTER_IF_ENHANCED if mode > 0 else _ALWAYS_ENTER
    if any(condition.holds(dialstatus, cause) for condition in conditions):
        return True
    return cpd_found and not is_session_login(code)


def verdict(mode: int, dialstatus: str, cause: str) -> Verdict | None:
    """Return what a hangup means that has passed the test of entry.

    It is not asked if call progress detection has spoken: that verdict stands.

    Args:
        mode: ``enhanced_disconnect_logging``, 0 to 6; 0 if there is no such setting.
        dialstatus: DIALSTATUS of the dialplan, as it came.
        cause: The Q.850 cause, as it came.

    Returns:
        None if the mode's table says nothing: the call gets no status.

    Source: VICIdial's FastAGI daemon, observed: END on a Local channel, step 4.
    """
    found = None
    for rule in _TABLES.get(mode, _ENHANCED):
        if rule.condition.holds(dialstatus, cause):
            found = rule.verdict
    return found


# ---- call progress detection

#: Words of a result, in lower case, and what they mean. Whoever reads results leaves out ``Unknown`` and
#: ``???`` by themselves, so these two are met within longer results only.
_CPD: Final = (
    ("busy", Verdict("CPDB", "BUSY")),
    ("unknown", Verdict("CPDUK", "NA")),
    ("all-trunks-busy", Verdict("CPDATB", "CONGESTION")),
    ("no-answer", Verdict("CPDNA", "NA")),
    ("reject", Verdict("CPDREJ", "DISCONNECT")),
    ("invalid-number", Verdict("CPDINV", "DISCONNECT")),
    ("service-unavailable", Verdict("CPDSUA", "CONGESTION")),
    ("sit-intercept", Verdict("CPDSI", "DISCONNECT")),
    ("sit-no-circuit", Verdict("CPDSNC", "CONGESTION")),
    ("sit-reorder", Verdict("CPDSR", "CONGESTION")),
    ("sit-unknown", Verdict("CPDSUK", "CONGESTION")),
    ("sit-vacant", Verdict("CPDSV", "CONGESTION")),
    ("???", Verdict("CPDERR", "NA")),
    ("fax", Verdict("AFAX", "FAX")),
    ("modem", Verdict("AFAX", "FAX")),
    ("answering-machine", Verdict("AA", "AMD")),
)


def cpd_verdict(result: str) -> Verdict | None:
    """Return what a result of call progress detection means; None if nothing is known about it.

    Args:
        result: From ``vicidial_cpd_log``, as it stands there; words are found in any case, the last one wins.

    Source: VICIdial's FastAGI daemon, observed: call progress detection (Sangoma).
    """
    heard = result.lower()
    found = None
    for word, meaning in _CPD:
        if word in heard:
            found = meaning
    return found
