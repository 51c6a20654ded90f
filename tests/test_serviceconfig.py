"""fastagi_pool.serviceconfig: logs, the slow log and HTTP, with their defaults, bounds and problems."""

from __future__ import annotations

import pytest
from sections import config, problem

from fastagi_pool.logs import JSON, OFF, STANDARD_ERROR, SYSLOG, TEXT, LogFile
from fastagi_pool.serviceconfig import Http, Log, LogFormat, LogLevel, Rotation, RotationPeriod, Slow
from fastagi_pool.values import ListenAddress, ListenKind

#: Where HTTP may be reached from other machines.
OPEN = ("*:4578", ":4578", "0.0.0.0:80", "192.0.2.7:80", "[::]:80", "[2001:db8::1]:80")


def test_defaults() -> None:
    """Without a word all goes to standard error, nothing rotates, and only this machine may look."""
    found = config("")
    assert found.log == Log(
        file="-",
        level=LogLevel.INFO,
        access="-",
        format=LogFormat.TEXT,
        facility="daemon",
        rotate=Rotation(every=RotationPeriod.NEVER, size=0, keep=14),
    )
    assert found.slow == Slow(file="-", after=5.0, blocked=1.0)
    assert found.http == Http(listen="127.0.0.1:4578", allow=())
    assert found.http.address == ListenAddress(ListenKind.TCP, "127.0.0.1", 4578)


def test_everything_set() -> None:
    """Every key that is set reaches the model with its type, also from a variable."""
    found = config(
        "log: {file: syslog, level: error, access: /a, format: json, facility: local7, "
        "rotate: {every: day, size: 64KB, keep: '${N}'}}\n"
        "slow: {file: /s, after: 2m, blocked: 100ms}\n"
        "http: {listen: '[::1]:0', allow: [10.0.0.0/8, '::1']}\n"
    )
    assert found.log == Log(
        file="syslog",
        level=LogLevel.ERROR,
        access="/a",
        format=LogFormat.JSON,
        facility="local7",
        rotate=Rotation(every=RotationPeriod.DAY, size=65536, keep=5),
    )
    assert (found.slow.file, found.slow.after, found.slow.blocked) == ("/s", 120.0, 0.1)
    assert found.http.address == ListenAddress(ListenKind.TCP, "::1", 0)
    assert [str(network) for network in found.http.allow] == ["10.0.0.0/8", "::1/128"]


@pytest.mark.parametrize("section", ["log", "slow", "http"])
def test_an_empty_section_is_absent(section: str) -> None:
    """A section whose keys are all commented out counts as absent."""
    assert config(f"{section}:\n") == config("")
    assert config("log: {rotate: }") == config("")


def test_what_is_off() -> None:
    """Everything that may be off can be: the access log, the slow log, its limits, and HTTP."""
    found = config("log: {access: off}\nslow: {file: off, after: 0, blocked: 0}\nhttp: {listen: off}")
    assert (found.log.access, found.slow.file, found.http.listen) == ("off", "off", "off")
    assert (found.slow.after, found.slow.blocked, found.http.address) == (0.0, 0.0, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("log: {file: log}", "log.file: must be '-' or 'syslog' or an absolute path"),
        ("log: {file: off}", "log.file: must be '-' or 'syslog' or an absolute path"),
        ('log: {file: "/a\\0"}', "log.file: must be '-' or 'syslog' or an absolute path"),
        ("log: {access: ''}", "log.access: must be '-' or 'syslog' or 'off' or an absolute path"),
        ("log: {format: xml}", "log.format: must be 'text' or 'json'"),
        (
            "log: {facility: mail}",
            "log.facility: must be one of daemon, user, local0, local1, local2, local3, local4, local5, "
            "local6, local7",
        ),
        ("log: {formt: json}", "log.formt: is not a known key (did you mean 'format'?)"),
        ("log: {rotate: day}", "log.rotate: must be a mapping"),
        ("log: {rotate: {evry: day}}", "log.rotate.evry: is not a known key (did you mean 'every'?)"),
        ("log: {rotate: {every: week}}", "log.rotate.every: must be 'never' or 'day'"),
        (
            "log: {rotate: {size: 65535}}",
            "log.rotate.size: must be 0 (never) or at least 64KB (a number without a unit means bytes)",
        ),
        ("log: {rotate: {keep: 0}}", "log.rotate.keep: must be at least 1"),
        ("log: {rotate: {keep: 10001}}", "log.rotate.keep: must be at most 10000"),
        ("slow: {file: syslog}", "slow.file: must be '-' or 'off' or an absolute path"),
        ("slow: {after: -1}", "slow.after: must not be negative"),
        ("slow: {blocked: 99ms}", "slow.blocked: must be 0 (never) or at least 100ms"),
        ("slow: {aftr: 1}", "slow.aftr: is not a known key (did you mean 'after'?)"),
        (
            "http: {listen: systemd}",
            "http.listen: must be a literal address with a port, or 'off', not 'systemd' "
            "(for example 127.0.0.1:4578 or [::1]:4578)",
        ),
        (
            "http: {listen: unix:/x}",
            "http.listen: must be a literal address with a port, or 'off', not 'unix:/x' "
            "(for example 127.0.0.1:4578 or [::1]:4578)",
        ),
        ("http: {lissen: off}", "http.lissen: is not a known key (did you mean 'listen'?)"),
        ("http: 4578", "http: must be a mapping"),
        (
            "http: {allow: [10.1.2.3/8]}",
            "http.allow[0]: has bits set behind the length of its network (write 10.0.0.0/8)",
        ),
        *(
            (
                f"http: {{listen: '{address}'}}",
                "http.listen: can be reached from other machines, so 'allow' must say which may look "
                "(for example allow: [10.0.0.0/8])",
            )
            for address in OPEN
        ),
    ],
)
def test_problem_of_a_key(line: str, message: str) -> None:
    """Each wrong value is one problem, with its key and a message that says what would be right."""
    assert problem(line) == message


@pytest.mark.parametrize("listen", ["4578", "localhost:4578", "127.0.0.1", "127.0.0.1:65536", "::1:80"])
def test_what_is_no_address(listen: str) -> None:
    """What cannot be listened at is one problem at its key."""
    assert problem(f"http: {{listen: '{listen}'}}").startswith("http.listen: must ")


@pytest.mark.parametrize("listen", OPEN)
def test_who_may_look_can_be_said(listen: str) -> None:
    """With a list of who may look, the state of the pool can be shown to other machines."""
    assert config(f"http: {{listen: '{listen}', allow: [10.0.0.0/8]}}").http.address is not None


def test_the_log_takes_what_the_configuration_offers(capfd: pytest.CaptureFixture[str]) -> None:
    """Every target, facility and format that may be configured is one that the logs know."""
    assert {each.value for each in LogFormat} == {TEXT, JSON}
    for word in (STANDARD_ERROR, SYSLOG, OFF):
        assert Log(access=word).access == word
    for facility in ("daemon", "user", *(f"local{number}" for number in range(8))):
        LogFile(SYSLOG, Log(facility=facility).facility)
