"""The channel that FakeAsterisk plays: who calls, what he does, and what Asterisk knows of the call.

Laws:
    * No clock and no I/O: what the caller does is written down beforehand, and happens in that order.
    * A text may hold any bytes: those that are not UTF-8 are surrogate escapes. Lengths count bytes.
    * Names of variables and functions tell capital from small letters, names of commands do not.

Source: asterisk main/pbx_variables.c, main/app.c, main/callerid.c, funcs/func_*.c; checked against 22.10.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

#: Most that ${URIENCODE()} gives. Source: seen with 16 and 22, in the middle of a %XX if need be.
_MAX_URIENCODE_BYTES: Final = 4095
_URI_MARKS: Final = "!*'()"
_SUBSTRING = re.compile(r"\s*([+-]?\d+)(?::\s*([+-]?\d+))?")
_PHONE_NUMBER = re.compile(r"[0-9*#+]+")
_NO_PART_OF_A_NUMBER: Final = str.maketrans("", "", " ().-")


class AgiStatus(Enum):
    """What the dialplan finds in AGISTATUS when AGI() has ended."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    HANGUP = "HANGUP"


class Hangup(Enum):
    """The type of :data:`HANGUP`."""

    HANGUP = "hangup"


#: In :attr:`Behaviour.presses`: the caller hangs up while that prompt runs.
HANGUP: Final = Hangup.HANGUP


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and from where in the dialplan.

    Attributes:
        number: The caller's number; empty if he sends none.
        name: The caller's name; empty if he sends none.
        context: The dialplan's context.
        extension: The dialplan's extension; ``h`` runs scripts of calls that have ended.
        channel: The channel's name.
        uniqueid: The channel's unique id.
    """

    number: str = "100"
    name: str = "Alice"
    context: str = "default"
    extension: str = "100"
    channel: str = "PJSIP/alice-00000001"
    uniqueid: str = "1700000000.1"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the caller, the channel and this Asterisk behave.

    Attributes:
        presses: What the caller does at the prompts that listen to him, one entry a prompt, in order: the
            digits that he dials there (``"1"``, ``"2345#"``; for RECEIVE CHAR and RECEIVE TEXT the text that
            he sends), ``""`` if he stays silent, :data:`HANGUP` if he hangs up meanwhile. A prompt with no
            escape digits does not listen and takes no entry, nor does EXEC; but HANGUP is taken by whatever
            command lasts. When the entries are used up, he is silent.
        hangup_after: After how many answered commands he hangs up, while none is running; 0 is before the
            first. None: never.
        variables: The channel's variables at the start. ``AGISIGHUP`` and ``AGIEXITONHANGUP`` mean here what
            they mean to Asterisk.
        database: Asterisk's own database at the start: ``family/key`` to value.
        replies: Replies to give whatever else would be given. The key is the beginning of a command, compared
            word by word and in any case: ``"EXEC Dial"``, ``"GET DATA welcome"``. The longest key wins. The
            value is the reply without its last line end; an empty one is no reply at all. Nothing else
            happens then: nothing is set, moved, pressed or hung up.
        missing_files: Sound files that this Asterisk does not have; it has all others, and those that the
            SAY commands want in any case.
        missing_applications: Applications that it has not loaded, in any case; it has all others.
        subroutines: Contexts that GOSUB finds; None: every one.
        dead: Whether the channel has hung up before the script begins, as in the extension ``h``.
        version: The Asterisk's version, which decides how long a command line may be.
        speech: What a speech engine understands, as text and score (0 to 1000), one for each SPEECH RECOGNIZE
            in which no digit is dialled; when used up, it hears nothing. None: there is no speech engine.
    """

    presses: Sequence[str | Hangup] = ()
    hangup_after: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    database: Mapping[str, str] = field(default_factory=dict)
    replies: Mapping[str, str] = field(default_factory=dict)
    missing_files: Collection[str] = ()
    missing_applications: Collection[str] = ()
    subroutines: Collection[str] | None = None
    dead: bool = False
    version: str = "22.10.1"
    speech: Sequence[tuple[str, int]] | None = None


class Channel:
    """What changes during a call.

    Attributes:
        name: The channel's name.
        number: The caller's number; empty if there is none.
        caller_name: The caller's name; empty if there is none.
        uniqueid: The channel's unique id.
        variables: Its variables, without the ``_`` of those that are inherited.
        database: Asterisk's own database: ``family/key`` to value.
        context: Where the channel stands in the dialplan, or will go on from: the context,
        extension: the extension,
        priority: and the priority or label; that of AGI() itself is 1.
        moved: Whether a priority was set, so that the dialplan goes on there, not behind AGI().
        up: Whether the channel has been answered.
        hung_up: Whether the caller is gone.
        dead: Whether Asterisk has taken notice of that.
        interrupted: Whether more bytes of the server wait: they break off some commands.
        console: What VERBOSE has written.
        missing_files: Sound files that are not there.
        missing_applications: Applications that are not there, case folded.
        subroutines: Contexts that GOSUB finds; None: every one.
        speech: The speech engine's state.
    """

    def __init__(self, caller: Caller, behaviour: Behaviour) -> None:
        self.name = caller.channel
        self.number = caller.number
        self.caller_name = caller.name
        self.uniqueid = caller.uniqueid
        self.context = caller.context
        self.extension = caller.extension
        self.priority = "1"
        self.moved = False
        self.up = self.hung_up = self.dead = behaviour.dead
        self.interrupted = False
        self.console: list[str] = []
        self.variables = {_plain_name(name): value for name, value in behaviour.variables.items()}
        self.database = dict(behaviour.database)
        self.missing_files = set(behaviour.missing_files)
        self.missing_applications = {name.casefold() for name in behaviour.missing_applications}
        self.subroutines = behaviour.subroutines
        self.speech = Speech(behaviour.speech)
        self._properties = {"language": "en", "accountcode": ""}
        self._presses = deque(behaviour.presses)

    def press(self, *, listening: bool = True) -> str | Hangup:
        """Return what the caller does now, and note it if he hangs up.

        Args:
            listening: Whether the command heeds digits; if not, only a hangup is taken.
        """
        if self.hung_up:
            return HANGUP
        if not self._presses or not (listening or self._presses[0] is HANGUP):
            return ""
        press = self._presses.popleft()
        if press is HANGUP:
            self.hung_up = True
        return press

    def has_file(self, name: str) -> bool:
        """Whether this is a sound file; ``a&b`` is none, though some applications play both."""
        return bool(name) and "&" not in name and name not in self.missing_files

    # --- variables

    def get(self, name: str) -> str | None:
        """Return the value of a variable or function, or None if there is no such."""
        if name.endswith(")"):
            return self._call_function(name)
        if name in _BUILTINS:
            return _BUILTINS[name](self)
        return self.variables.get(name)

    def set(self, name: str, value: str) -> None:
        """Set a variable or function; what cannot be set is passed over, as in Asterisk."""
        if name.endswith(")"):
            self._set_function(name, value)
        elif plain := _plain_name(name):
            self.variables[plain] = value

    def expand(self, text: str) -> str:
        """Put values in place of ``${...}``, inner ones first.

        Expressions ``$[...]`` stay as they are. A ``${`` that is not closed reaches to the end.
        """
        expanded = []
        while (start := text.find("${")) >= 0:
            end = _closing_brace(text, start + 2)
            expanded += [text[:start], self._value_of(self.expand(text[start + 2 : end]))]
            text = text[end + 1 :]
        return "".join(expanded) + text

    def is_true(self, name: str) -> bool:
        """Whether a variable says yes. Source: ast_true()."""
        return self.variables.get(name, "").lower() in ("yes", "true", "y", "t", "1", "on")

    def is_false(self, name: str) -> bool:
        """Whether a variable says no; one that is not set does not. Source: ast_false()."""
        return self.variables.get(name, "").lower() in ("no", "false", "n", "f", "0", "off")

    def _value_of(self, reference: str) -> str:
        name, colon, cut = _split_substring(reference)
        value = self.get(name) or ""
        return _substring(value, cut) if colon else value

    def _call_function(self, call: str) -> str | None:
        name, _, argument = call[:-1].partition("(")
        function = _FUNCTIONS.get(name)
        return None if function is None else function(self, argument)

    def _set_function(self, call: str, value: str) -> None:
        name, _, argument = call[:-1].partition("(")
        if name == "CALLERID":
            self._set_caller_part(argument, value)
        elif name == "CHANNEL" and argument in self._properties:
            self._properties[argument] = value
        elif name == "DB":
            self.database[argument] = value

    def _set_caller_part(self, part: str, value: str) -> None:
        if part == "name":
            self.caller_name = value
        elif part in ("num", "number"):
            self.number = value
        elif part == "all":
            self.set_caller(value)

    def set_caller(self, text: str) -> None:
        """Take over a caller id written as in a header; what it does not hold is cleared.

        Source: ast_callerid_parse() and ast_shrink_phone_number() in main/callerid.c.
        """
        name, opened, number = text.rpartition("<")
        if opened:
            number = number.partition(">")[0]
        number = number.translate(_NO_PART_OF_A_NUMBER)
        if not opened and not _PHONE_NUMBER.fullmatch(number):
            name, number = text, ""
        self.caller_name, self.number = name.strip().strip('"'), number

    def caller_part(self, part: str) -> str | None:
        """Read ``CALLERID(part)``; parts that nobody set are empty."""
        if part == "all":
            return f'"{self.caller_name}" <{self.number}>'
        parts = {"": None, "name": self.caller_name, "num": self.number, "number": self.number}
        return parts.get(part, "")

    def channel_part(self, part: str) -> str | None:
        """Read ``CHANNEL(part)``."""
        parts = {
            "name": self.name,
            "uniqueid": self.uniqueid,
            "state": "Up" if self.up else "Ring",
            "channeltype": self.name.partition("/")[0],
            "context": self.context,
            "exten": self.extension,
            **self._properties,
        }
        return parts.get(part)

    def current_priority(self) -> str:
        """Read ``PRIORITY``: after a Goto it is one less than where the dialplan goes on."""
        if self.moved and re.fullmatch(r"-?\d+", self.priority):
            return str(int(self.priority) - 1)
        return self.priority


class Speech:
    """A speech engine, or the lack of one.

    Attributes:
        available: Whether there is one.
        created: Whether SPEECH CREATE has been said, and not SPEECH DESTROY.
        grammars: Those that are loaded.
        active: The grammar that was activated last; empty if none is.
    """

    def __init__(self, utterances: Sequence[tuple[str, int]] | None) -> None:
        self.available = utterances is not None
        self.created = False
        self.grammars: set[str] = set()
        self.active = ""
        self._utterances = deque(utterances or ())

    def hear(self) -> tuple[str, int] | None:
        """Return what it understands next, as text and score; None if nobody speaks."""
        return self._utterances.popleft() if self._utterances else None

    def destroy(self) -> None:
        """Forget everything but what is still to be heard."""
        self.created = False
        self.grammars.clear()
        self.active = ""


def encode(text: str) -> bytes:
    """Write text as Asterisk holds it."""
    return text.encode("utf-8", "surrogateescape")


def decode(data: bytes) -> str:
    """Read Asterisk's bytes; those that are not UTF-8 become surrogate escapes."""
    return data.decode("utf-8", "surrogateescape")


def _plain_name(name: str) -> str:
    """Take off the marks of an inherited variable. Source: ast_var_name()."""
    return name[2:] if name.startswith("__") else name.removeprefix("_")


def _closing_brace(text: str, start: int) -> int:
    """Return where the brace closes that was opened in front of ``start``; the text's end if nowhere."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return place
    return len(text)


def _split_substring(reference: str) -> tuple[str, str, str]:
    """Part ``NAME:1:2`` at the first colon that stands in no parentheses."""
    depth = 0
    for place, char in enumerate(reference):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == ":" and not depth:
            return reference[:place], ":", reference[place + 1 :]
    return reference, "", ""


def _substring(value: str, cut: str) -> str:
    """Cut ``offset`` or ``offset:length`` out of a value; negative ones count from its end."""
    found = _SUBSTRING.match(cut)
    if found is None:
        return value
    data = encode(value)
    start = int(found[1])
    start = max(0, start + len(data)) if start < 0 else start
    if found[2] is None:
        return decode(data[start:])
    length = int(found[2])
    return decode(data[start : start + length] if length >= 0 else data[start:length])


def _uri_encode(text: str) -> str:
    return quote_from_bytes(encode(text), safe=_URI_MARKS)[:_MAX_URIENCODE_BYTES]


def _base64_decode(text: str) -> str:
    try:
        return decode(base64.b64decode(encode(text)))
    except binascii.Error:
        return ""


_FUNCTIONS: Final[Mapping[str, Callable[[Channel, str], str | None]]] = {
    "BASE64_DECODE": lambda channel, text: _base64_decode(text),
    "BASE64_ENCODE": lambda channel, text: base64.b64encode(encode(text)).decode("ascii"),
    "CALLERID": Channel.caller_part,
    "CHANNEL": Channel.channel_part,
    "DB": lambda channel, key: channel.database.get(key, ""),
    "LEN": lambda channel, text: str(len(encode(text))),
    "TOLOWER": lambda channel, text: decode(encode(text).lower()),
    "TOUPPER": lambda channel, text: decode(encode(text).upper()),
    "URIDECODE": lambda channel, text: decode(unquote_to_bytes(encode(text))),
    "URIENCODE": lambda channel, text: _uri_encode(text),
}

#: These cannot be overlaid by a variable of the same name.
_BUILTINS: Final[Mapping[str, Callable[[Channel], str]]] = {
    "CHANNEL": lambda channel: channel.name,
    "CONTEXT": lambda channel: channel.context,
    "EXTEN": lambda channel: channel.extension,
    "HANGUPCAUSE": lambda channel: channel.variables.get("HANGUPCAUSE", "0"),
    "PRIORITY": lambda channel: channel.current_priority(),
    "UNIQUEID": lambda channel: channel.uniqueid,
}
