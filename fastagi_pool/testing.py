"""Testing: Asterisk's side of a call, played by a program.

``fastagi-pool call`` is built on it, and so can be your own tests.

Laws:
    * It behaves as Asterisk does on the wire: one environment, one reply for each command, HANGUP
      when the server has closed, and SUCCESS unless the server said otherwise.
    * It blocks, and every wait has an end.

Source: asterisk res/res_agi.c; dialogues recorded from Asterisk 22.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from urllib.parse import urlsplit

#: How long Asterisk tries to connect. Source: MAX_AGI_CONNECT in res_agi.c.
CONNECT_TIMEOUT_S: Final = 2.0
DEFAULT_PORT: Final = 4573


class AgiStatus(Enum):
    """What the dialplan finds in AGISTATUS."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and from where in the dialplan.

    Attributes:
        number: The caller's number.
        name: The caller's name.
        context: The dialplan's context.
        extension: The dialplan's extension.
        channel: The channel's name.
        uniqueid: The channel's unique id.
    """

    number: str = "100"
    name: str = "Alice"
    context: str = "default"
    extension: str = "100"
    channel: str = "PJSIP/alice-00000001"
    uniqueid: str = "1700000000.1"


@dataclass(slots=True)
class CallResult:
    """How a call went.

    Attributes:
        status: What the dialplan would see.
        reason: Why, if it failed.
        dialogue: Who said what, in order: ``A`` Asterisk or ``S`` server, and the line.
        variables: The channel's variables at the end.
        connected: Whether there was a connection at all.
    """

    status: AgiStatus = AgiStatus.SUCCESS
    reason: str = ""
    dialogue: list[tuple[str, str]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    connected: bool = False

    @property
    def commands(self) -> list[str]:
        """What the server sent."""
        return [line for who, line in self.dialogue if who == "S"]


def environment(url: str, arguments: Sequence[str] = (), caller: Caller | None = None) -> str:
    """Write the environment that Asterisk sends for AGI(url,arguments...)."""
    caller = caller or Caller()
    script = url.partition("://")[2].partition("/")[2]
    values = {
        "network": "yes",
        **({"network_script": script} if script else {}),
        "request": url,
        "channel": caller.channel,
        "language": "en",
        "type": caller.channel.partition("/")[0],
        "uniqueid": caller.uniqueid,
        "version": "22.10.1",
        "callerid": caller.number,
        "calleridname": caller.name,
        "callingpres": "0",
        "callingani2": "0",
        "callington": "0",
        "callingtns": "0",
        "dnid": "unknown",
        "rdnis": "unknown",
        "context": caller.context,
        "extension": caller.extension,
        "priority": "1",
        "enhanced": "0.0",
        "accountcode": "",
        "threadid": "140000000000000",
    }
    values.update({f"arg_{number}": argument for number, argument in enumerate(arguments, start=1)})
    return "".join(f"agi_{name}: {value}\n" for name, value in values.items()) + "\n"


def play_call(
    url: str,
    arguments: Sequence[str] = (),
    caller: Caller | None = None,
    variables: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
    on_line: Callable[[str, str], None] = lambda who, line: None,
) -> CallResult:
    """Place one call to a running server and answer its commands until it closes.

    Args:
        url: As in the dialplan: ``agi://127.0.0.1:4577/hello?x=1``.
        arguments: As in the dialplan behind the URL.
        caller: Who calls.
        variables: Channel variables that the script may read.
        timeout_s: Longest silence of the server; Asterisk itself would wait for ever.
        on_line: Called with each line as it is said.
    """
    result = CallResult(variables=dict(variables or {}))
    parts = urlsplit(url)
    try:
        link = socket.create_connection((parts.hostname or "", parts.port or DEFAULT_PORT), CONNECT_TIMEOUT_S)
    except OSError as error:
        result.status, result.reason = AgiStatus.FAILURE, f"no connection: {error}"
        return result
    result.connected = True
    with link:
        link.settimeout(timeout_s)
        try:
            link.sendall(environment(url, arguments, caller).encode("utf-8", "surrogateescape"))
            _converse(link, result, on_line)
        except TimeoutError:
            result.status = AgiStatus.FAILURE
            result.reason = f"the server was silent for {timeout_s:g} s; Asterisk would go on waiting"
        except OSError:
            pass  # However the server ends the connection, it is a success to Asterisk.
    return result


def _converse(link: socket.socket, result: CallResult, on_line: Callable[[str, str], None]) -> None:
    """Answer command after command until the server has closed or said that it failed."""

    def note(who: str, line: str) -> None:
        result.dialogue.append((who, line))
        on_line(who, line)

    with link.makefile("rb") as lines:
        for raw in lines:
            line = raw.rstrip(b"\n").decode("utf-8", "surrogateescape")
            note("S", line)
            if line.lower().startswith("failure"):
                result.status, result.reason = AgiStatus.FAILURE, "the server said so"
                break
            reply = answer(line, result.variables)
            note("A", reply)
            link.sendall(f"{reply}\n".encode("utf-8", "surrogateescape"))
    note("A", "HANGUP")
    link.sendall(b"HANGUP\n")


def answer(line: str, variables: dict[str, str]) -> str:
    """Reply to a command as Asterisk would to a patient caller who presses nothing."""
    words = split_words(line)
    command = " ".join(words[:2]).upper()
    if command == "SET VARIABLE" and len(words) >= 4:
        variables[words[2]] = words[3]
        return "200 result=1"
    if command == "GET VARIABLE" and len(words) >= 3:
        value = variables.get(words[2])
        return "200 result=0" if value is None else f"200 result=1 ({value})"
    if " ".join(words[:3]).upper() == "GET FULL VARIABLE" and len(words) >= 4:
        value = variables.get(words[3].removeprefix("${").removesuffix("}"), "")
        return f"200 result=1 ({value})"
    return _REPLIES.get(command) or _REPLIES.get(
        words[0].upper() if words else "", "510 Invalid or unknown command"
    )


_REPLIES: Final[Mapping[str, str]] = {
    "ANSWER": "200 result=0",
    "HANGUP": "200 result=1",
    "VERBOSE": "200 result=1",
    "NOOP": "200 result=0",
    "EXEC": "200 result=0",
    "CHANNEL STATUS": "200 result=6",
    "STREAM FILE": "200 result=0 endpos=8000",
    "GET DATA": "200 result= (timeout)",
    "WAIT FOR": "200 result=0",
    "SAY NUMBER": "200 result=0",
    "SAY DIGITS": "200 result=0",
}


def split_words(line: str) -> list[str]:
    """Split a command line as Asterisk does: quotes group, a backslash escapes any character.

    Source: parse_args() in res_agi.c.
    """
    words: list[str] = []
    word: str | None = None
    quoted = escaped = False
    for char in line:
        if escaped:
            word = (word or "") + char
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
            word = word or ""
        elif char in " \t" and not quoted:
            if word is not None:
                words.append(word)
                word = None
        else:
            word = (word or "") + char
    return words if word is None else [*words, word]
