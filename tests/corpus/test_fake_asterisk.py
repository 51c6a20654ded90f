"""FakeAsterisk against everything that two real Asterisks were recorded to say.

What the recorded server sent is sent to the fake, segment by segment, and what each brought is compared.

Laws:
    * Only what no machine without a clock can know is set apart: the words of a usage, and the sample at
      which a file was broken off or ended.
    * What the caller did in a scene stands in ``BEHAVIOUR``; what is not played at all in ``LEFT_OUT``, with
      the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import pytest

from fastagi_pool.asterisk import HANGUP, AgiStatus, Behaviour, Caller, FakeAsterisk
from fastagi_pool.protocol import AgiConnection, Request

from .transcripts import FOLDER, Connection, Speaker, load_connections

#: Scenes that cannot be played, and why.
LEFT_OUT: Final[Mapping[str, str]] = {
    "29_newline_injection": "a name and a URL with line ends forge an environment that cannot be read back",
    "52_interrupt_by_command": "commands that arrive while another takes its time; here none takes any",
}
#: Connections of which only the whole stream is compared: the server did not wait for all that was coming.
NOT_IN_STEP: Final[Mapping[str, str]] = {
    "16/26_long_values": "lines run in several pieces, while the next one was sent after the first reply",
    "22/55_hangup_before_reply": "the HANGUP was read only behind the next command",
    "16/55_hangup_before_reply": "the same",
}
#: Scenes in which the server closed before it had read what came last.
UNREAD: Final = ("21_rst_in_command", "22_close_in_command", "56_hangup_unread_close")

_MISSING_FILES: Final = ("nosuchfile", "nosuch")
_LINE_ENDS: Final = {"NL": "line1\n200 result=1 (forged)\nline3)", "PAREN": "a) b (c)"}
_WITHOUT_ITS_END: Final = "bGluZTEKMjAwIHJlc3VsdD0xIChmb3JnZWQpCmxpbmUz"
_AFTER_ANSWER: Final = Behaviour(hangup_after=1)
_IN_THE_FIRST: Final = Behaviour(presses=(HANGUP,))
#: What the caller and the dialplan did.
BEHAVIOUR: Final[Mapping[str, Behaviour]] = {
    "01_normal": Behaviour(missing_files=_MISSING_FILES),
    "06_hangup_idle": _AFTER_ANSWER,
    "07_hangup_in_wait": _IN_THE_FIRST,
    "08_hangup_in_stream_file": _IN_THE_FIRST,
    "09_hangup_in_wait_for_digit": _IN_THE_FIRST,
    "10_hangup_in_get_data": _IN_THE_FIRST,
    "11_hangup_then_silent_server": _AFTER_ANSWER,
    "12_agisighup_no": replace(_AFTER_ANSWER, variables={"AGISIGHUP": "no"}),
    "13_agiexitonhangup": replace(_AFTER_ANSWER, variables={"AGIEXITONHANGUP": "yes"}),
    "14_never_answered": _IN_THE_FIRST,
    # Wait looks at the channel itself, which only a real one has.
    "15_h_extension.2": Behaviour(dead=True, replies={"EXEC Wait": "200 result=-1"}),
    "24_errors": Behaviour(missing_files=_MISSING_FILES, missing_applications=("NoSuchApp",)),
    "31_newline_in_value": Behaviour(variables=_LINE_ENDS),
    # Until some later version BASE64_ENCODE lost the last bytes of long values.
    "16/31_newline_in_value": Behaviour(
        variables=_LINE_ENDS,
        replies={"GET FULL VARIABLE ${BASE64_ENCODE(${NL})}": f"200 result=1 ({_WITHOUT_ITS_END})"},
    ),
    "36_dtmf": Behaviour(presses=("1", "2", "34#", "567", "8", "9", "0#", "*")),
    "37_gosub": Behaviour(variables={"SUBRESULT": "sub got arg1 and arg2"}, subroutines=("sub",)),
    # To the script a redirect is a hangup; only where the channel stands has changed.
    "38_redirect_in_agi": replace(_AFTER_ANSWER, replies={"GET VARIABLE EXTEN": "200 result=1 (after)"}),
    "39_redirect_in_command": replace(_IN_THE_FIRST, replies={"GET VARIABLE EXTEN": "200 result=1 (after)"}),
    "48_exec_results": Behaviour(
        variables={"DIALSTATUS": "CHANUNAVAIL"}, missing_applications=("nosuchapp",)
    ),
    "50_caller_gone_before_read": Behaviour(hangup_after=0),
    "53_dtmf_while_idle": Behaviour(presses=("", "34")),
    "55_hangup_before_reply": _AFTER_ANSWER,
    "56_hangup_unread_close": _AFTER_ANSWER,
    "57_ami_hangup": replace(_AFTER_ANSWER, variables={"HANGUPCAUSE": "21"}),
    "63_failed_command_status": Behaviour(missing_files=_MISSING_FILES),
    "80_core_stop_now": _AFTER_ANSWER,
}
#: What the server did there that harms an Asterisk: words that tell the fault, in order.
FAULTS: Final[Mapping[str, tuple[str, ...]]] = {
    "16/26_long_values": ("over 2047 bytes",) * 16,
    "22/26_long_values": ("over 8191 bytes",) * 4,
    "27_unicode_callerid": ("not UTF-8",),
    "30_quoting": ("more than one line",),
    "32_crlf": ("a CR",) * 4,
    "33_pipelining": ("more than one line",),
    "34_partial_line": ("half a line",),
    "35_unterminated_last": ("half a line",),
    "54_nul_byte": ("a NUL byte",),
}

CONNECTIONS: Final = [connection for connection in load_connections() if connection.scene not in LEFT_OUT]

_USAGE = re.compile(
    rb"(?s)(520-Invalid command syntax\.  Proper usage follows:\n).*?(520 End of proper usage\.)"
)
_ENDPOS = re.compile(rb"endpos=\d+")
_END = re.compile(r"AGISTATUS=(\w+)(?: \(of the h script: (\w+)\))?(?: LEFT='(.*)')?")

every_connection = pytest.mark.parametrize("connection", CONNECTIONS, ids=lambda connection: connection.name)


def comparable(data: bytes) -> bytes:
    """Take out what only a real Asterisk knows: how it words a usage, and where a file ends."""
    return _ENDPOS.sub(b"endpos=N", _USAGE.sub(rb"\1...\n\2", data))


def request_of(connection: Connection) -> Request:
    """Read the environment that was recorded."""
    agi = AgiConnection()
    agi.receive_data(recorded(connection)[0])
    request = agi.next_event()
    assert isinstance(request, Request)
    return request


def recorded(connection: Connection) -> list[bytes]:
    """Join what Asterisk said at first, and behind each segment of the server."""
    said = [b""]
    for chunk in connection.chunks:
        if chunk.speaker is Speaker.SERVER:
            said.append(b"")
        else:
            said[-1] += chunk.data
    return said


def segments(connection: Connection) -> list[bytes]:
    """Return what the server sent."""
    return [chunk.data for chunk in connection.chunks if chunk.speaker is Speaker.SERVER]


def entry(table: Mapping[str, object], connection: Connection) -> object:
    """Look a connection up by its whole name, without the version, or by its scene."""
    names = (connection.name, connection.name.partition("/")[2], connection.scene)
    return next((table[name] for name in names if name in table), None)


def fake(connection: Connection) -> FakeAsterisk:
    """Make an Asterisk that is called as the recorded one was."""
    request = request_of(connection)
    lines = request.environment
    caller = Caller(
        number=lines["agi_callerid"].replace("unknown", ""),
        name=lines["agi_calleridname"].replace("unknown", ""),
        context=request.context,
        extension=request.extension,
        channel=request.channel,
        uniqueid=request.uniqueid,
    )
    behaviour = entry(BEHAVIOUR, connection) or Behaviour()
    assert isinstance(behaviour, Behaviour)
    behaviour = replace(behaviour, version=lines["agi_version"])
    return FakeAsterisk(lines["agi_request"], request.arguments, caller, behaviour)


def play(connection: Connection, asterisk: FakeAsterisk) -> list[bytes]:
    """Send what the server sent, then close; return what the fake said at first and behind each segment."""
    said = [asterisk.begin(), *map(asterisk.receive, segments(connection))]
    said[-1] += asterisk.receive_eof()
    return said


def told_end(connection: Connection) -> tuple[AgiStatus | None, str | None]:
    """Return what the dialplan found in AGISTATUS and LEFT, or None for what the transcript does not tell."""
    name, _, number = connection.name.partition(".")
    found = _END.search((FOLDER / f"{name}.txt").read_text("ascii"))
    if found is None:
        return None, None
    of_call, of_h_script, left = found.groups()
    if number == "1" and of_h_script:
        return AgiStatus(of_call), None
    return AgiStatus(of_h_script or of_call), left


@every_connection
def test_says_the_same(connection: Connection) -> None:
    """To every segment of the server the fake says what the real Asterisk said, byte for byte."""
    ours = play(connection, fake(connection))
    theirs = recorded(connection)
    assert list(header_names(ours[0])) == list(header_names(theirs[0]))
    ours[0], theirs[0] = (said[0].partition(b"\n\n")[2] for said in (ours, theirs))
    if not theirs[-1].endswith(b"HANGUP\n") and ours[-1].endswith(b"HANGUP\n"):
        # The server closed and read no more, or Asterisk was killed.
        ours[-1] = ours[-1].removesuffix(b"HANGUP\n")
    stream = comparable(b"".join(ours))
    if connection.scene in UNREAD:
        assert stream.startswith(comparable(b"".join(theirs)))
    elif connection.name in NOT_IN_STEP:
        assert stream == comparable(b"".join(theirs))
    else:
        assert list(map(comparable, ours)) == list(map(comparable, theirs))


def header_names(header: bytes) -> list[bytes]:
    """Return the names of an environment's lines, in order."""
    return [line.partition(b": ")[0] for line in header.partition(b"\n\n")[0].split(b"\n")]


@every_connection
def test_leaves_the_same(connection: Connection) -> None:
    """The dialplan finds in AGISTATUS, and in a variable, what the real Asterisk left there."""
    status, left = told_end(connection)
    asterisk = fake(connection)
    play(connection, asterisk)
    assert asterisk.ended
    assert status in (None, asterisk.status)
    assert left in (None, asterisk.variables.get("LEFT"))


@every_connection
def test_tells_what_did_harm(connection: Connection) -> None:
    """What made the real Asterisk spin, stall or stumble is a fault, and nothing else is."""
    asterisk = fake(connection)
    play(connection, asterisk)
    expected = entry(FAULTS, connection) or ()
    assert isinstance(expected, tuple)
    assert len(asterisk.faults) == len(expected)
    for fault, words in zip(asterisk.faults, expected, strict=True):
        assert words in fault


def test_no_scene_is_forgotten() -> None:
    """Every exception made here is for a scene that is there."""
    everything = load_connections()
    known = {name for one in everything for name in (one.name, one.name.partition("/")[2], one.scene)}
    assert {*LEFT_OUT, *NOT_IN_STEP, *BEHAVIOUR, *FAULTS} <= known
    assert len(everything) - len(CONNECTIONS) <= 6
