"""The AGI commands that FakeAsterisk knows: a table, and what each does to the channel and answers.

Laws:
    * Every command of Asterisk 22 is in :data:`COMMANDS`, with the words that Asterisk wants and the bytes
      that it answers, oddities included.
    * A command decides by its words and the channel alone. It takes no time: every file ends at the same
      sample, and so does every one that is broken off.

Source: asterisk res/res_agi.c, the ``handle_...`` functions, and apps/app_stack.c for GOSUB; dialogues with
Asterisk 16.28 and 22.10 (tests/corpus).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from fastagi_pool.asterisk_channel import HANGUP, Channel, Hangup, decode, encode

#: A file's end in samples: a second of narrow-band sound.
PLAYED_SAMPLES: Final = 8000
#: Where playing or recording is broken off, by a digit or a hangup: after a tenth of a second.
BROKEN_OFF_SAMPLES: Final = 800
#: The same for CONTROL STREAM FILE, the one command that counts in milliseconds.
BROKEN_OFF_MS: Final = 100
#: Longest value in a reply of GET VARIABLE. Source: tempstr[1024] in handle_getvariable().
MAX_VALUE_BYTES: Final = 1023
#: Most digits of GET DATA. Source: handle_getdata().
_MAX_DIGITS: Final = 1024
#: What stands for "no time-out" when RECORD FILE reports the time left. Source: seen with 16 and 22.
_UNLIMITED_MS: Final = 100_000

_WHOLE_NUMBER = re.compile(r"[ \t\v\f]*[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[ \t\v\f]*[+-]?([0-9]|\.[0-9])")

#: Applications that take no time, in which nobody can hang up.
_INSTANT: Final = frozenset(
    {"ANSWER", "GOSUB", "GOTO", "GOTOIF", "HANGUP", "LOG", "MSET", "NOOP", "SET", "USEREVENT", "VERBOSE"}
)
#: Applications that answer the channel.
_ANSWERING: Final = frozenset({"ANSWER", "BACKGROUND", "PLAYBACK", "READ", "RECORD"})

#: Takes the channel and all words, the command's own included; returns the reply without its last line end,
#: ``""`` for none at all, or None if the words are wrong.
Handler: TypeAlias = Callable[[Channel, Sequence[str]], str | None]


@dataclass(frozen=True, slots=True)
class Specification:
    """One command.

    Attributes:
        handler: What it does.
        least: Fewest words, the command's own included.
        most: Most words; None: Asterisk does not count.
        usage: Its arguments, for the reply to a wrong syntax.
        when_dead: Whether it is permitted when the channel has hung up.
        fails: Whether its -1 makes AGISTATUS FAILURE.
    """

    handler: Handler
    least: int
    most: int | None
    usage: str = ""
    when_dead: bool = False
    fails: bool = False

    def run(self, channel: Channel, words: Sequence[str]) -> str | None:
        """Return the reply, or None if the words are wrong."""
        if len(words) < self.least or (self.most is not None and len(words) > self.most):
            return None
        return self.handler(channel, words)


def find_command(words: Sequence[str]) -> tuple[str, Specification] | None:
    """Find the command that these words begin with, in any case, and its name."""
    beginning = tuple(word.upper() if word.isascii() else word for word in words[:_LONGEST_NAME])
    for count in range(1, len(beginning) + 1):
        name = _NAMES.get(beginning[:count])
        if name is not None:
            return name, COMMANDS[name]
    return None


def separate_arguments(data: str) -> list[str]:
    """Take an application's data apart at its commas, as most applications do.

    Source: __ast_app_separate_args() in main/app.c: commas in quotes, parentheses and brackets and behind a
    backslash do not part; quotes and backslashes vanish.
    """
    arguments = [""]
    opened = {"(": 0, "[": 0}
    quoted = escaped = False
    for char in data:
        if escaped:
            arguments[-1] += char
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == "," and not quoted and not any(opened.values()):
            arguments.append("")
        else:
            opening = {"(": "(", ")": "(", "[": "[", "]": "["}.get(char)
            if opening is not None:
                opened[opening] = opened[opening] + 1 if char == opening else max(0, opened[opening] - 1)
            arguments[-1] += char
    return arguments


def _result(number: int) -> str:
    return f"200 result={number}"


def _value(text: str) -> str:
    return f"200 result=1 ({text})"


def _always(number: int) -> Handler:
    return lambda channel, words: _result(number)


def _whole(word: str) -> int | None:
    """Read a number as sscanf's %d does: whatever follows it is passed over."""
    found = _WHOLE_NUMBER.match(word)
    return None if found is None else int(found[0])


def _first_of(press: str, digits: str) -> str:
    """Return the first digit pressed that is one of these; empty if none is."""
    return next((digit for digit in press if digit in digits), "")


# --- the channel


def _answer(channel: Channel, words: Sequence[str]) -> str:
    if channel.hung_up:
        return _result(-1)
    channel.up = True
    return _result(0)


def _hangup(channel: Channel, words: Sequence[str]) -> str:
    if words[1:] not in ([], [channel.name]):
        return _result(-1)
    channel.hung_up = True
    return _result(1)


def _channel_status(channel: Channel, words: Sequence[str]) -> str:
    if words[2:] not in ([], [channel.name]):
        return _result(-1)
    return _result(6 if channel.up else 4)


def _set_autohangup(channel: Channel, words: Sequence[str]) -> str | None:
    return _result(0) if _NUMBER.match(words[2]) else None


def _set_callerid(channel: Channel, words: Sequence[str]) -> str:
    if len(words) > 2:
        channel.set_caller(words[2])
    return _result(1)


_CHANNEL: Final = {
    "ANSWER": Specification(_answer, 1, None, fails=True),
    "ASYNCAGI BREAK": Specification(_always(0), 2, None, when_dead=True),
    "CHANNEL STATUS": Specification(_channel_status, 2, 3, "[channel]"),
    "HANGUP": Specification(_hangup, 1, 2, "[channel]"),
    "SET AUTOHANGUP": Specification(_set_autohangup, 3, 3, "seconds"),
    "SET CALLERID": Specification(_set_callerid, 2, None, "callerid"),
    "SET MUSIC": Specification(_always(0), 3, None, "on|off [class]"),
    "TDD MODE": Specification(_always(0), 3, 3, "on|off|mate"),
}


# --- the dialplan


def _set_context(channel: Channel, words: Sequence[str]) -> str:
    channel.context = words[2]
    return _result(0)


def _set_extension(channel: Channel, words: Sequence[str]) -> str:
    channel.extension = words[2]
    return _result(0)


def _set_priority(channel: Channel, words: Sequence[str]) -> str | None:
    if not words[2]:
        return None
    channel.priority = words[2]
    channel.moved = True
    return _result(0)


def _gosub(channel: Channel, words: Sequence[str]) -> str:
    if channel.subroutines is not None and words[1] not in channel.subroutines:
        return "200 result=-1 Gosub label not found"
    return "100 result=0 Trying...\n200 result=0 Gosub complete"


_DIALPLAN: Final = {
    "GOSUB": Specification(_gosub, 4, 5, "context extension priority [arguments]", fails=True),
    "SET CONTEXT": Specification(_set_context, 3, 3, "context"),
    "SET EXTENSION": Specification(_set_extension, 3, 3, "extension"),
    "SET PRIORITY": Specification(_set_priority, 3, 3, "priority"),
}


# --- the console


def _verbose(channel: Channel, words: Sequence[str]) -> str:
    channel.console.append(words[1])
    return _result(1)


_CONSOLE: Final = {
    "NOOP": Specification(_always(0), 1, None, when_dead=True),
    "VERBOSE": Specification(_verbose, 2, None, "message [level]", when_dead=True),
}


# --- variables


def _get_variable(channel: Channel, words: Sequence[str]) -> str:
    value = channel.get(words[2])
    return _result(0) if value is None else _value(decode(encode(value)[:MAX_VALUE_BYTES]))


def _get_full_variable(channel: Channel, words: Sequence[str]) -> str:
    if words[4:] not in ([], [channel.name]):
        return _result(0)
    return _value(channel.expand(words[3]))


def _set_variable(channel: Channel, words: Sequence[str]) -> str:
    channel.set(words[2], words[3])
    return _result(1)


_VARIABLES: Final = {
    "GET FULL VARIABLE": Specification(_get_full_variable, 4, 5, "expression [channel]", when_dead=True),
    "GET VARIABLE": Specification(_get_variable, 3, 3, "name", when_dead=True),
    "SET VARIABLE": Specification(_set_variable, 4, 4, "name value", when_dead=True),
}


# --- Asterisk's own database


def _database_del(channel: Channel, words: Sequence[str]) -> str:
    channel.database.pop(f"{words[2]}/{words[3]}", None)
    return _result(1)


def _database_deltree(channel: Channel, words: Sequence[str]) -> str:
    branch = "/".join(words[2:]) + "/"
    found = [key for key in channel.database if f"{key}/".startswith(branch)]
    for key in found:
        del channel.database[key]
    # The reverse of what the manual says; 16 and 22 agree in it.
    return _result(0 if found else 1)


def _database_get(channel: Channel, words: Sequence[str]) -> str:
    value = channel.database.get(f"{words[2]}/{words[3]}")
    return _result(0) if value is None else _value(value)


def _database_put(channel: Channel, words: Sequence[str]) -> str:
    channel.database[f"{words[2]}/{words[3]}"] = words[4]
    return _result(1)


_DATABASE: Final = {
    "DATABASE DEL": Specification(_database_del, 4, 4, "family key", when_dead=True),
    "DATABASE DELTREE": Specification(_database_deltree, 3, 4, "family [keytree]", when_dead=True),
    "DATABASE GET": Specification(_database_get, 4, 4, "family key", when_dead=True),
    "DATABASE PUT": Specification(_database_put, 5, 5, "family key value", when_dead=True),
}


# --- applications


def _exec(channel: Channel, words: Sequence[str]) -> str:
    name = words[1].upper()
    if not name or words[1].casefold() in channel.missing_applications:
        return _result(-2)
    # Words behind the second are not joined to it, but lost.
    data = words[2] if len(words) > 2 else ""
    if channel.is_true("AGIEXECFULL"):
        data = channel.expand(data)
    if name == "HANGUP" or (name not in _INSTANT and not channel.dead and _hung_up_in(channel)):
        channel.hung_up = True
        return _result(-1)
    if name in _ANSWERING and not channel.dead:
        channel.up = True
    if name in _APPLICATIONS:
        _APPLICATIONS[name](channel, data)
    return _result(0)


def _hung_up_in(channel: Channel) -> bool:
    return channel.press(listening=False) is HANGUP


def _goto(channel: Channel, data: str) -> None:
    """Move the channel to ``[[context,]extension,]priority``; spaces stay part of the names."""
    *place, channel.priority = data.split(",")[:3]
    channel.moved = True
    if place:
        channel.extension = place.pop()
    if place:
        channel.context = place.pop()


def _set(channel: Channel, data: str) -> None:
    name, assigned, value = data.partition("=")
    if assigned:
        channel.set(name, value)


def _mset(channel: Channel, data: str) -> None:
    for argument in separate_arguments(data):
        _set(channel, argument)


_APPLICATIONS: Final[Mapping[str, Callable[[Channel, str], None]]] = {
    "GOTO": _goto,
    "MSET": _mset,
    "SET": _set,
}

_EXECUTION: Final = {"EXEC": Specification(_exec, 2, None, "application [data]", when_dead=True)}


# --- sound and digits


def _listen(channel: Channel, digits: str) -> str | Hangup:
    """Return which of these digits the caller presses, ``""`` for none, or HANGUP."""
    press = channel.press(listening=bool(digits))
    return press if isinstance(press, Hangup) else _first_of(press, digits)


def _stream_file(channel: Channel, words: Sequence[str]) -> str | None:
    offset = _whole(words[4]) if len(words) > 4 else 0
    if offset is None:
        return None
    if not channel.has_file(words[2]):
        return f"200 result=-1 endpos={offset}"
    if channel.interrupted:
        return ""
    digit = _listen(channel, words[3])
    channel.set("PLAYBACKSTATUS", "FAILED" if digit is HANGUP else "SUCCESS")
    return _played(digit)


def _get_option(channel: Channel, words: Sequence[str]) -> str:
    if not channel.has_file(words[2]):
        return "200 result=-1 endpos=0"
    return "" if channel.interrupted else _played(_listen(channel, words[3]))


def _played(digit: str | Hangup) -> str:
    if isinstance(digit, Hangup):
        return f"200 result=-1 endpos={BROKEN_OFF_SAMPLES}"
    if digit:
        return f"200 result={ord(digit)} endpos={BROKEN_OFF_SAMPLES}"
    return f"200 result=0 endpos={PLAYED_SAMPLES}"


def _control_stream_file(channel: Channel, words: Sequence[str]) -> str | None:
    if any(_whole(words[place]) is None for place in (5, 9) if place < len(words)):
        return None
    channel.variables.pop("CPLAYBACKSTOPKEY", None)
    if not channel.has_file(words[3]):
        return _controlled(channel, "ERROR", -1, -1)
    press = channel.press(listening=bool(words[4]))
    if isinstance(press, Hangup):
        return _controlled(channel, "ERROR", -1, BROKEN_OFF_MS)
    digit = _first_of(press, _stop_digits(words))
    if not digit:
        return _controlled(channel, "SUCCESS", 0, -1)
    channel.set("CPLAYBACKSTOPKEY", digit)
    return _controlled(channel, "USERSTOPPED", ord(digit), BROKEN_OFF_MS)


def _stop_digits(words: Sequence[str]) -> str:
    """Return the escape digits that do not wind or pause: those are never taken for an end."""
    keys = [*words[6:9], "", "", ""]
    winding = (keys[0] or "#") + (keys[1] or "*") + keys[2]
    return "".join(digit for digit in words[4] if digit not in winding)


def _controlled(channel: Channel, status: str, result: int, endpos: int) -> str:
    channel.set("CPLAYBACKSTATUS", status)
    channel.set("CPLAYBACKOFFSET", str(endpos))
    return f"200 result={result} endpos={endpos}"


def _get_data(channel: Channel, words: Sequence[str]) -> str:
    most = (_whole(words[4]) or 0) if len(words) > 4 else _MAX_DIGITS
    if most <= 0 or (words[2] and not channel.has_file(words[2])):
        return _result(-1)
    if channel.interrupted:
        return ""
    press = channel.press()
    if isinstance(press, Hangup):
        return _result(-1)
    digits, ended, _ = press.partition("#")
    if ended or len(digits) >= most:
        return f"200 result={digits[:most]}"
    return f"200 result={digits} (timeout)"


def _wait_for_digit(channel: Channel, words: Sequence[str]) -> str | None:
    if _whole(words[3]) is None:
        return None
    if channel.interrupted:
        return _result(1)
    press = channel.press()
    if isinstance(press, Hangup):
        return _result(-1)
    return _result(ord(press[0]) if press else 0)


def _record_file(channel: Channel, words: Sequence[str]) -> str | None:
    timeout_ms = _whole(words[5])
    if timeout_ms is None:
        return None
    silence, beeps = _record_options(words[6:])
    if beeps and not channel.has_file("beep"):
        return "200 result=-1 (randomerror) endpos=0"
    channel.missing_files.discard(words[2])
    digit = _listen(channel, words[4])
    if isinstance(digit, Hangup):
        return f"200 result=-1 (hangup) endpos={BROKEN_OFF_SAMPLES}"
    if digit:
        return f"200 result={ord(digit)} (dtmf) endpos={BROKEN_OFF_SAMPLES}"
    left_ms = _UNLIMITED_MS if timeout_ms < 0 else max(0, timeout_ms - silence * 1000)
    # Ended by silence, it answers how much of the time was left.
    return f"200 result={left_ms if silence else 0} (timeout) endpos={PLAYED_SAMPLES}"


def _record_options(options: Sequence[str]) -> tuple[int, bool]:
    """Return the silence in seconds, 0 for none, and whether it beeps.

    The offset is a number in the first place; any other word that is not ``s=`` makes it beep.
    """
    if options and _whole(options[0]) is not None:
        options = options[1:]
    silences = [_whole(option[2:]) or 0 for option in options if option[:2].lower() == "s="]
    return max(silences, default=0), len(silences) < len(options)


_SOUND: Final = {
    "CONTROL STREAM FILE": Specification(
        _control_stream_file,
        5,
        10,
        "file digits [skipms] [ffchar] [rewchr] [pausechr] [offsetms]",
        fails=True,
    ),
    "GET DATA": Specification(_get_data, 3, None, "file [timeout] [maxdigits]"),
    "GET OPTION": Specification(_get_option, 4, 5, "file digits [timeout]", fails=True),
    "RECORD FILE": Specification(
        _record_file, 6, None, "file format digits timeout [offset] [BEEP] [s=silence]", fails=True
    ),
    "STREAM FILE": Specification(_stream_file, 4, 5, "file digits [offset]", fails=True),
    "WAIT FOR DIGIT": Specification(_wait_for_digit, 4, 4, "timeout", fails=True),
}


# --- saying


def _say(channel: Channel, words: Sequence[str]) -> str:
    digit = _listen(channel, words[3])
    return _result(-1 if isinstance(digit, Hangup) else ord(digit) if digit else 0)


def _say_number(channel: Channel, words: Sequence[str]) -> str | None:
    return None if _whole(words[2]) is None else _say(channel, words)


_SAYING: Final = {
    "SAY ALPHA": Specification(_say, 4, 4, "text digits", fails=True),
    "SAY DATE": Specification(_say_number, 4, 4, "epoch digits", fails=True),
    "SAY DATETIME": Specification(_say_number, 4, None, "epoch digits [format] [timezone]", fails=True),
    "SAY DIGITS": Specification(_say_number, 4, 4, "number digits", fails=True),
    "SAY NUMBER": Specification(_say_number, 4, 5, "number digits [gender]", fails=True),
    "SAY PHONETIC": Specification(_say, 4, 4, "text digits", fails=True),
    "SAY TIME": Specification(_say_number, 4, 4, "epoch digits", fails=True),
}


# --- text and pictures


def _receive_char(channel: Channel, words: Sequence[str]) -> str:
    press = channel.press()
    if isinstance(press, Hangup) or not press:
        # A time-out is told as a hangup too.
        return "200 result=-1 (hangup)"
    return _result(encode(press)[0])


def _receive_text(channel: Channel, words: Sequence[str]) -> str:
    press = channel.press()
    return _result(-1) if isinstance(press, Hangup) or not press else _value(press)


_TEXT: Final = {
    "RECEIVE CHAR": Specification(_receive_char, 3, 3, "timeout", fails=True),
    "RECEIVE TEXT": Specification(_receive_text, 3, 3, "timeout"),
    "SEND IMAGE": Specification(_always(0), 3, 3, "image"),
    "SEND TEXT": Specification(_always(0), 3, 3, "text", fails=True),
}


# --- speech


def _speech_create(channel: Channel, words: Sequence[str]) -> str:
    speech = channel.speech
    if not speech.available or speech.created:
        return _result(0)
    speech.created = True
    return _result(1)


def _speech_set(channel: Channel, words: Sequence[str]) -> str:
    return _result(int(channel.speech.created))


def _speech_destroy(channel: Channel, words: Sequence[str]) -> str:
    created = channel.speech.created
    channel.speech.destroy()
    return _result(int(created))


def _speech_load(channel: Channel, words: Sequence[str]) -> str:
    speech = channel.speech
    if not speech.created or words[3] in speech.grammars:
        return _result(0)
    speech.grammars.add(words[3])
    return _result(1)


def _speech_unload(channel: Channel, words: Sequence[str]) -> str:
    speech = channel.speech
    if words[3] not in speech.grammars:
        return _result(0)
    speech.grammars.remove(words[3])
    return _result(1)


def _speech_activate(channel: Channel, words: Sequence[str]) -> str:
    if not channel.speech.created:
        return _result(0)
    channel.speech.active = words[3]
    return _result(1)


def _speech_deactivate(channel: Channel, words: Sequence[str]) -> str:
    if not channel.speech.created:
        return _result(0)
    channel.speech.active = ""
    return _result(1)


def _speech_recognize(channel: Channel, words: Sequence[str]) -> str:
    if not channel.speech.created:
        return _result(0)
    press = channel.press()
    if isinstance(press, Hangup):
        return f"200 result=1 (hangup) endpos={BROKEN_OFF_SAMPLES}"
    if press:
        return f"200 result=1 (digit) digit={press[0]} endpos={BROKEN_OFF_SAMPLES}"
    heard = channel.speech.hear()
    if heard is None:
        return f"200 result=1 (timeout) endpos={PLAYED_SAMPLES}"
    text, score = heard
    return (
        f"200 result=1 (speech) endpos={PLAYED_SAMPLES} results=1 "
        f'score0={score} text0="{text}" grammar0={channel.speech.active}'
    )


_SPEECH: Final = {
    "SPEECH ACTIVATE GRAMMAR": Specification(_speech_activate, 4, 4, "grammar"),
    "SPEECH CREATE": Specification(_speech_create, 2, None, "engine"),
    "SPEECH DEACTIVATE GRAMMAR": Specification(_speech_deactivate, 4, 4, "grammar"),
    "SPEECH DESTROY": Specification(_speech_destroy, 2, None, when_dead=True),
    "SPEECH LOAD GRAMMAR": Specification(_speech_load, 5, 5, "grammar path"),
    "SPEECH RECOGNIZE": Specification(_speech_recognize, 4, None, "prompt timeout [offset]"),
    "SPEECH SET": Specification(_speech_set, 4, 4, "name value"),
    "SPEECH UNLOAD GRAMMAR": Specification(_speech_unload, 4, 4, "grammar", when_dead=True),
}


#: All commands, by their names in capital letters.
COMMANDS: Final[Mapping[str, Specification]] = {
    **_CHANNEL,
    **_DIALPLAN,
    **_CONSOLE,
    **_VARIABLES,
    **_DATABASE,
    **_EXECUTION,
    **_SOUND,
    **_SAYING,
    **_TEXT,
    **_SPEECH,
}

_NAMES: Final = {tuple(name.split()): name for name in COMMANDS}
_LONGEST_NAME: Final = max(map(len, _NAMES))
