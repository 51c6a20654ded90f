"""fastagi_pool.results: what a reply means, and that nothing else than AGIError comes of nonsense."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastagi_pool.errors import AGIError
from fastagi_pool.protocol import Reply
from fastagi_pool.results import (
    ChannelState,
    Digits,
    Playback,
    Recording,
    RecordingEnd,
    Speech,
    SpeechEnd,
    SpeechGuess,
    channel_state,
    character,
    playback,
    recording,
    speech,
    unexpected,
    whole_number,
)

LINE = b"EXEC Dial PJSIP/100\n"
COMMAND = "EXEC Dial PJSIP/100"
Reader = Callable[[Reply, bytes], object]


@pytest.mark.parametrize(("result", "number"), [("0", 0), ("1", 1), ("-3", -3), ("007", 7)])
def test_a_whole_number(result: str, number: int) -> None:
    """A number is read as the number that it is."""
    assert whole_number(Reply(200, result), LINE) == number


@pytest.mark.parametrize(("result", "state"), [("0", ChannelState.DOWN), ("6", ChannelState.UP)])
def test_a_channel_state(result: str, state: ChannelState) -> None:
    """A state is a name, and still the number that Asterisk's documentation gives it."""
    found = channel_state(Reply(200, result), LINE)
    assert found is state
    assert found == int(result)


def test_every_channel_state_has_a_name() -> None:
    """Asterisk numbers its ten states without a gap."""
    assert [state.value for state in ChannelState] == list(range(10))


@pytest.mark.parametrize(
    ("result", "digit"), [("49", "1"), ("35", "#"), ("42", "*"), ("0", ""), ("", ""), ("252", "ü")]
)
def test_a_character(result: str, digit: str) -> None:
    """A code is its character, and 0 is none."""
    assert character(Reply(200, result), LINE) == digit


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (Reply(200, "0", None, 8000), Playback("", 8000)),
        (Reply(200, "49", None, 800), Playback("1", 800)),
        (Reply(200, "0"), Playback("", 0)),
    ],
)
def test_a_playback(reply: Reply, found: Playback) -> None:
    """Playing ends with a digit or without, at a sample that may be missing."""
    assert playback(reply, LINE) == found


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (Reply(200, "35", "dtmf", 800), Recording(RecordingEnd.DIGIT, "#", 800)),
        (Reply(200, "0", "timeout", 800), Recording(RecordingEnd.TIMEOUT, "", 800)),
        (Reply(200, "-1", "hangup", 800), Recording(RecordingEnd.HANGUP, "", 800)),
        (Reply(200, "0", "timeout"), Recording(RecordingEnd.TIMEOUT, "", 0)),
    ],
)
def test_a_recording(reply: Reply, found: Recording) -> None:
    """A recording ends for one of three reasons, and only one of them has a digit."""
    assert recording(reply, LINE) == found


ONE_RESULT = 'results=1 score0=900 text0="yes (please)" grammar0=yn'
TWO_RESULTS = 'results=2 score0=900 text0="one" grammar0=n score1=-1 text1="" grammar1=m'


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (Reply(200, "1", "timeout", 800), Speech(SpeechEnd.TIMEOUT, "", 800)),
        (Reply(200, "1", "hangup", 800), Speech(SpeechEnd.HANGUP, "", 800)),
        (Reply(200, "1", "hangup"), Speech(SpeechEnd.HANGUP, "", 0)),
        (Reply(200, "1", "digit", None, "digit=5 endpos=800"), Speech(SpeechEnd.DIGIT, "5", 800)),
        (Reply(200, "1", "digit", None, "digit=# endpos=0"), Speech(SpeechEnd.DIGIT, "#", 0)),
        (Reply(200, "1", "speech", 800, "results=0"), Speech(SpeechEnd.SPEECH, "", 800)),
        (
            Reply(200, "1", "speech", 800, ONE_RESULT),
            Speech(SpeechEnd.SPEECH, "", 800, (SpeechGuess("yes (please)", 900, "yn"),)),
        ),
        (
            Reply(200, "1", "speech", 800, TWO_RESULTS),
            Speech(SpeechEnd.SPEECH, "", 800, (SpeechGuess("one", 900, "n"), SpeechGuess("", -1, "m"))),
        ),
        (
            Reply(200, "1", "speech", 8, 'results=1 score0=1 text0="digit=5 endpos=9" grammar0=g'),
            Speech(SpeechEnd.SPEECH, "", 8, (SpeechGuess("digit=5 endpos=9", 1, "g"),)),
        ),
    ],
)
def test_a_speech(reply: Reply, found: Speech) -> None:
    """Listening ends for one of four reasons, each with what belongs to it; words are no reason."""
    assert speech(reply, LINE) == found


@pytest.mark.parametrize(
    ("read", "reply", "shown"),
    [
        (whole_number, Reply(200, "x"), "result=x"),
        (whole_number, Reply(200, ""), "result="),
        (whole_number, Reply(200, "9" * 5000), "result=" + "9" * 93),
        (channel_state, Reply(200, "10"), "result=10"),
        (channel_state, Reply(200, "up"), "result=up"),
        (character, Reply(200, "-2"), "result=-2"),
        (character, Reply(200, "1114112"), "result=1114112"),
        (playback, Reply(200, "#", None, 8), "result=#"),
        (recording, Reply(200, "0"), "result=0"),
        (recording, Reply(200, "0", "randomerror"), "result=0 (randomerror)"),
        (recording, Reply(200, "x", "dtmf"), "result=x (dtmf)"),
        (speech, Reply(200, "1"), "result=1"),
        (speech, Reply(200, "1", ""), "result=1 ()"),
        (speech, Reply(200, "1", "laughter"), "result=1 (laughter)"),
    ],
)
def test_what_makes_no_sense(read: Reader, reply: Reply, shown: str) -> None:
    """Nonsense is told with the answer, in short, and with the command."""
    with pytest.raises(AGIError) as caught:
        read(reply, LINE)
    expected = f"Asterisk answered {shown!r}, which this command cannot mean: {COMMAND}"
    assert (str(caught.value), caught.value.command) == (expected, COMMAND)


def test_what_is_shown_cannot_forge_a_log_line() -> None:
    """A value that holds a line end is shown on one line."""
    assert "\n" not in str(unexpected(Reply(200, "1", "a\nb"), LINE))


anything = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["dtmf", "speech", "digit", "digit=", "endpos=" + "9" * 30, ONE_RESULT, "-1", "49", "٣"]),
)


@given(
    st.sampled_from([whole_number, channel_state, character, playback, recording, speech]),
    st.builds(Reply, st.just(200), anything, st.none() | anything, st.none() | st.integers(), anything),
)
def test_any_reply(read: Reader, reply: Reply) -> None:
    """Whatever Asterisk answers is read or is an AGIError."""
    with suppress(AGIError):
        read(reply, LINE)


def test_results_are_values() -> None:
    """Results can be compared and kept, and nobody changes them behind a handler's back."""
    assert {Digits("1", False), Digits("1", False)} == {Digits("1", False)}
    with pytest.raises(AttributeError):
        Playback("", 0).digit = "1"  # type: ignore[misc]
