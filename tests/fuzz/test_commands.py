"""The commands of a call against a handler that may pass on anything: what FakeAsterisk hears of it.

Laws:
    * The way is the real one: Call, AgiConnection, the bytes, FakeAsterisk, and its reply back.
    * What is expected is written down here word by word, and shares nothing with the way commands are built.
    * Words are compared as bytes: that is what Asterisk has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import pytest
from hypothesis import strategies as st
from test_protocol import separate

from fastagi_pool.asterisk import Behaviour, FakeAsterisk
from fastagi_pool.call import Call
from fastagi_pool.errors import AGICommandRefused, AGIError
from fastagi_pool.protocol import NEED_DATA, AgiConnection, Hangup, Reply, Request, max_command_bytes

from .conftest import Fuzz
from .recipes import Recipe

#: What means something to Asterisk, to its applications or to Python, and some that is harmless.
CHARACTERS: Final = (
    '"', "\\", " ", "\t", "\n", "\r", "\0", ",", "(", ")", "[", "]", "{", "}", "$", "'", "|", "&", ";", "=",
    "a", "7", "-", "#", "%", "<", ">", "\x0b", "\x0c", "\x1b", "\x1c", "\x7f", "\x85", "\xa0", "é", "ß", "İ",
    "\u2028", "\u3000", "😀", "\ufeff", "\ud83d", "\udc0a", "\udc0d", "\udc22",
    "\udc80", "\udcc3", "\udcbc", "\udcff",
)  # fmt: skip
#: What Asterisk or the guard looks for.
PHRASES: Final = (
    "failure", "FAILURE x", " failure", "HANGUP", "\nHANGUP\n", '"', '" ANSWER', "x\nANSWER", "\\", '\\"',
    "${EXTEN}", "-1", "NOOP", "EXEC System rm", "x" * 1015, "é" * 1010, '"' * 1000, "\\" * 2000, " " * 8000,
    "a " * 130,
)  # fmt: skip
#: A text of this length and some more makes a line that is just as long as Asterisk reads.
NEARLY_TOO_LONG: Final = (2047 - 32, 8191 - 32)
RAW_COMMANDS: Final = ("NOOP", "SET VARIABLE", "GET FULL VARIABLE", "noop", "NOSUCH", "", "EXEC")
VERSIONS: Final = ("18.0.0", "22.10.1")

#: Half a character, which no bytes stand for.
_HALVES: Final = range(0xD800, 0xDC80), range(0xDD00, 0xE000)

Words: TypeAlias = list[str]
Use = Callable[[Call, Sequence[str]], object]


@dataclass(frozen=True, slots=True)
class Method:
    """A method that takes text.

    Attributes:
        name: Its name.
        texts: How many texts it takes; one more for each that may follow.
        use: Calls it with so many texts.
        words: The words that Asterisk must read.
        repeats: Whether it takes any number of further texts.
    """

    name: str
    texts: int
    use: Use
    words: Callable[[Sequence[str]], Words]
    repeats: bool = False


def plainly(name: str, command: str, texts: int) -> Method:
    """Describe a method whose texts are the command's words."""
    return Method(
        name, texts, lambda call, given: getattr(call, name)(*given), lambda given: [*command.split(), *given]
    )


def unless_empty(name: str, command: str, texts: int) -> Method:
    """Describe a method that says nothing of a last text that is empty."""
    return Method(
        name,
        texts,
        lambda call, given: getattr(call, name)(*given),
        lambda given: [*command.split(), *(given if given[-1] else given[:-1])],
    )


def callerid(given: Sequence[str]) -> Words:
    """Write a caller's number and name as Asterisk reads them."""
    number, name = given
    quoted = "".join("\\" + char if char in '"\\' else char for char in name)
    return ["SET", "CALLERID", f'"{quoted}" <{number}>' if name else number]


def datetime_words(given: Sequence[str]) -> Words:
    """Say a moment: a zone needs a format."""
    digits, date_format, zone = given
    if zone:
        return ["SAY", "DATETIME", "5", digits, date_format or "ABdY 'digits/at' IMp", zone]
    return ["SAY", "DATETIME", "5", digits, *([date_format] if date_format else [])]


#: Every method of a call that takes text; that none is missing is a test of its own.
METHODS: Final = (
    unless_empty("hangup", "HANGUP", 1),
    unless_empty("channel_status", "CHANNEL STATUS", 1),
    Method("set_callerid", 2, lambda call, given: call.set_callerid(*given), callerid),
    Method(
        "set_music",
        1,
        lambda call, given: call.set_music(True, *given),
        lambda given: ["SET", "MUSIC", "on", *(given if given[0] else [])],
    ),
    plainly("tdd_mode", "TDD MODE", 1),
    plainly("set_context", "SET CONTEXT", 1),
    plainly("set_extension", "SET EXTENSION", 1),
    plainly("set_priority", "SET PRIORITY", 1),
    Method(
        "gosub",
        3,
        lambda call, given: call.gosub(*given),
        lambda given: ["GOSUB", *given[:3], *([",".join(given[3:])] if given[3:] else [])],
        repeats=True,
    ),
    Method(
        "verbose", 1, lambda call, given: call.verbose(given[0], 3), lambda given: ["VERBOSE", *given, "3"]
    ),
    unless_empty("noop", "NOOP", 1),
    plainly("get_variable", "GET VARIABLE", 1),
    unless_empty("get_full_variable", "GET FULL VARIABLE", 2),
    plainly("set_variable", "SET VARIABLE", 2),
    plainly("database_get", "DATABASE GET", 2),
    plainly("database_put", "DATABASE PUT", 3),
    plainly("database_del", "DATABASE DEL", 2),
    unless_empty("database_deltree", "DATABASE DELTREE", 2),
    Method(
        "exec",
        1,
        lambda call, given: call.exec(*given),
        # Several arguments are one word, which is taken apart further down.
        lambda given: ["EXEC", *given[:2]],
        repeats=True,
    ),
    plainly("stream_file", "STREAM FILE", 2),
    Method(
        "control_stream_file",
        5,
        lambda call, given: call.control_stream_file(given[0], given[1], 3.0, given[2], given[3], given[4]),
        lambda given: ["CONTROL", "STREAM", "FILE", *given[:2], "3000", *given[2:]],
    ),
    plainly("get_data", "GET DATA", 1),
    plainly("get_option", "GET OPTION", 2),
    Method(
        "record_file",
        3,
        lambda call, given: call.record_file(given[0], given[1], given[2]),
        lambda given: ["RECORD", "FILE", *given, "-1"],
    ),
    Method(
        "say_number",
        2,
        lambda call, given: call.say_number(5, *given),
        lambda given: ["SAY", "NUMBER", "5", given[0], *(given[1:] if given[1] else [])],
    ),
    plainly("say_digits", "SAY DIGITS", 2),
    plainly("say_alpha", "SAY ALPHA", 2),
    plainly("say_phonetic", "SAY PHONETIC", 2),
    Method(
        "say_date",
        1,
        lambda call, given: call.say_date(5, *given),
        lambda given: ["SAY", "DATE", "5", *given],
    ),
    Method(
        "say_time",
        1,
        lambda call, given: call.say_time(5, *given),
        lambda given: ["SAY", "TIME", "5", *given],
    ),
    Method("say_datetime", 3, lambda call, given: call.say_datetime(5, *given), datetime_words),
    plainly("send_text", "SEND TEXT", 1),
    plainly("send_image", "SEND IMAGE", 1),
    plainly("speech_create", "SPEECH CREATE", 1),
    plainly("speech_set", "SPEECH SET", 2),
    plainly("speech_load_grammar", "SPEECH LOAD GRAMMAR", 2),
    plainly("speech_unload_grammar", "SPEECH UNLOAD GRAMMAR", 1),
    plainly("speech_activate_grammar", "SPEECH ACTIVATE GRAMMAR", 1),
    plainly("speech_deactivate_grammar", "SPEECH DEACTIVATE GRAMMAR", 1),
    Method(
        "speech_recognize",
        1,
        lambda call, given: call.speech_recognize(given[0], 5),
        lambda given: ["SPEECH", "RECOGNIZE", *given, "5"],
    ),
    Method(
        "raw",
        1,
        lambda call, given: call.raw(*given),
        # The command's own words are sent as they are: blanks part them.
        lambda given: [*filter(None, given[0].replace("\t", " ").split(" ")), *given[1:]],
        repeats=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Order:
    """What a handler asks for.

    Attributes:
        method: The method.
        texts: What is passed on.
        clean: Whether the route cleans arguments.
        version: The Asterisk's.
    """

    method: Method
    texts: tuple[str, ...]
    clean: bool
    version: str

    @property
    def sent(self) -> tuple[str, ...]:
        """The texts as they may go out."""
        if not self.clean:
            return self.texts
        kept = self.texts[:1] if self.method.name == "raw" else ()
        return (*kept, *map(cleaned, self.texts[len(kept) :]))


def cleaned(text: str) -> str:
    """Do what a route with clean arguments promises, character by character."""
    return "".join(
        " " if char in "\r\n\0" else "?" if any(ord(char) in half for half in _HALVES) else char
        for char in text
    )


def read_order(data: bytes) -> Order:
    """Make an order of any bytes."""
    recipe = Recipe(data)
    number = recipe.number()
    # Those that take any number of texts have more ways to go wrong.
    methods = METHODS if number < 192 else [method for method in METHODS if method.repeats]
    method = methods[number % len(methods)]
    manner = recipe.number()
    more = recipe.number() % 6 if method.repeats else 0
    if more == 5:
        more = recipe.number()
    texts = [text(recipe) for _ in range(method.texts + more)]
    if method.name == "raw" and manner & 4:
        texts[0] = RAW_COMMANDS[recipe.number() % len(RAW_COMMANDS)]
    return Order(method, tuple(texts), manner % 4 == 0, VERSIONS[manner >> 7])


def text(recipe: Recipe) -> str:
    """Make a text of the next bytes: short or very long, of nasty characters or of any."""
    kind = recipe.number()
    if kind >= 232:
        return PHRASES[recipe.number() % len(PHRASES)]
    if kind >= 228:
        return "x" * (NEARLY_TOO_LONG[kind % 2] + recipe.number() % 32)
    made = "".join(character(recipe) for _ in range(kind % 8))
    return made * (recipe.number() * 10) if kind >= 220 else made


def character(recipe: Recipe) -> str:
    """Make one character."""
    number = recipe.number()
    if number < 4 * len(CHARACTERS):
        return CHARACTERS[number % len(CHARACTERS)]
    return chr((recipe.number() * 65536 + recipe.number() * 256 + recipe.number()) % 0x110000)


class Wire:
    """Carries lines to FakeAsterisk and its replies back, as a session does."""

    def __init__(self, version: str) -> None:
        self.asterisk = FakeAsterisk("agi://127.0.0.1/x", behaviour=Behaviour(version=version))
        self._agi = AgiConnection()
        self._agi.receive_data(self.asterisk.begin())
        request = self._agi.next_event()
        assert isinstance(request, Request)
        self.request = request
        self.hung_up = False

    def execute(self, line: bytes) -> Reply:
        """Send one line and read its reply."""
        self._agi.receive_data(self.asterisk.receive(self._agi.send_command(line)))
        replies: list[Reply] = []
        while (event := self._agi.next_event()) is not NEED_DATA:
            if isinstance(event, Hangup):
                self.hung_up = True
            else:
                assert isinstance(event, Reply)
                replies.append(event)
        [reply] = replies
        return reply

    def await_hangup(self) -> None:
        """Do without: what was said has been read."""

    def finish(self) -> None:
        """Do without."""

    def exchange(self, line: bytes) -> bytes:
        """Do without: nobody else speaks here."""
        raise NotImplementedError

    def listen(self, on_unasked: Callable[[bytes], None]) -> None:
        """Do without."""


def in_bytes(words: Sequence[str]) -> list[bytes]:
    """Write words as Asterisk has them."""
    return [word.encode("utf-8", "surrogateescape") for word in words]


def is_harmful(order: Order) -> bool:
    """Whether the guard may refuse an order that is short: it holds what no command may hold."""
    words = order.sent
    if order.method.name in ("raw", "gosub"):
        return True  # These two have rules of their own.
    return cleaned("".join(words)) != "".join(words)


def has_quotes_of_its_own(order: Order) -> bool:
    """Whether the handler quotes in a command's own words, which raw() sends as they are.

    How far such a quote or backslash reaches is the handler's affair: the line goes out as one, but which
    words Asterisk makes of it is not foretold here.
    """
    return order.method.name == "raw" and any(char in order.texts[0] for char in '"\\')


def is_long(order: Order) -> bool:
    """Whether an order may be too long for its Asterisk, if every character is escaped."""
    return len(order.texts) > 100 or 40 + sum(4 + 8 * len(word) for word in order.texts) > 2047


def carry_out(data: bytes) -> None:
    """Let a handler give an order; look at what Asterisk heard."""
    order = read_order(data)
    wire = Wire(order.version)
    longest = max_command_bytes(order.version)
    call = Call(wire.request, wire, max_command_bytes=longest, clean_arguments=order.clean)
    refused = False
    try:
        order.method.use(call, order.texts)
    except AGICommandRefused:
        refused = True
    except AGIError:
        pass
    assert refused == bool(call.refused)
    assert not wire.asterisk.ended, order
    if refused:
        assert not wire.asterisk.commands, order
        assert is_harmful(order) or is_long(order), order
    else:
        see_what_was_heard(order, wire.asterisk)
    see_no_harm(order, wire.asterisk)


def see_what_was_heard(order: Order, asterisk: FakeAsterisk) -> None:
    """See that Asterisk has run the one command that was meant."""
    [command] = asterisk.commands
    if has_quotes_of_its_own(order):
        assert command.line.encode("utf-8", "surrogateescape").startswith(in_bytes(order.sent[:1])[0])
        return
    expected = in_bytes(order.method.words(order.sent))
    heard = in_bytes(command.words)
    if order.method.name == "exec" and len(order.texts) > 2:
        assert in_bytes(separate(command.words[2])) == in_bytes(order.sent[1:]), order
        assert (heard[:2], len(heard)) == (expected[:2], 3), order
        return
    assert heard == expected, order
    if order.method.name == "gosub" and len(order.texts) > 4:
        # GOSUB keeps the quotes, so that no argument is empty that has some.
        kept = command.words[4].replace('"', "\"'")
        assert len(separate(kept)) == len(order.texts) - 3, order


def see_no_harm(order: Order, asterisk: FakeAsterisk) -> None:
    """See that Asterisk was not harmed, but by what the handler itself wished for."""
    wished = []
    if any("\udc80" <= char <= "\udcff" for word in order.texts for char in word):
        wished.append("not UTF-8")
    if has_quotes_of_its_own(order):
        wished.append("words")
    faults = [fault for fault in asterisk.faults if not any(wish in fault for wish in wished)]
    assert faults == [], order


def test_no_method_is_missing() -> None:
    """A method that takes text, and comes new, must be tried here too."""
    with_text = {
        name
        for name, method in vars(Call).items()
        if not name.startswith("_") and callable(method)
        for parameter in inspect.signature(method).parameters.values()
        if "str" in str(parameter.annotation)
    }
    assert {method.name for method in METHODS} == with_text


@pytest.mark.parametrize("clean", [False, True])
def test_the_model_of_cleaning(clean: bool) -> None:
    """What is expected of clean arguments is what the handbook says."""
    order = Order(METHODS[-1], ("NOOP\n", "a\r\n\0b\ud83d\udcff"), clean, VERSIONS[0])
    assert order.sent == (("NOOP\n", "a   b?\udcff") if clean else order.texts)


def test_a_handler_that_may_pass_on_anything(fuzz: Fuzz) -> None:
    """Asterisk runs exactly the command that was given, word for word, or hears nothing of it."""
    fuzz(carry_out, st.binary(min_size=12, max_size=48), quick=500, full=100_000)
