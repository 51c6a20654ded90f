"""The dialplan that users are given, conf/extensions.conf, in the real Asterisk.

The kit includes it unchanged; tests set its global variables, which say where the pools are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from ports import closed_port
from service import PoolService

from .asterisk.ami import AmiClient
from .asterisk.calls import CallDone, Telephone
from .asterisk.server import AsteriskServer
from .conftest import PoolFactory, Records

pytestmark = pytest.mark.asterisk


@pytest.fixture(scope="module")
def pool(pools: PoolFactory) -> Iterator[PoolService]:
    """A pool with a script that works, one that fails, and those of an incoming call."""
    service = pools.start(
        {
            "hello": "asterisk_handlers:hello",
            "raising": "asterisk_handlers:raising",
            "sorry": {"handler": "asterisk_handlers:raising", "on_error": "goto fagi_failed,s,1"},
            "broken": {"handler": "asterisk_handlers:broken", "on_error": "goto target,t,1"},
            "route/*": "asterisk_handlers:destination",
            "hangup": "asterisk_handlers:after_hangup",
        }
    )
    yield service
    assert service.stop() == 0, service.logged()


@pytest.fixture
def servers(asterisk: AsteriskServer) -> Iterator[AmiClient]:
    """The manager interface, to set the global variables; FAGI_SECOND is empty again afterwards."""
    with AmiClient(asterisk.ami_port) as ami:
        yield ami
        ami.set_global("FAGI_SECOND", "")


@pytest.fixture(scope="module")
def nobody() -> Iterator[str]:
    """The address of a server that cannot be reached."""
    with closed_port() as port:
        yield f"agi://127.0.0.1:{port}"


def _gosub(telephone: Telephone, script: str) -> CallDone:
    return telephone.dial("gosub@calls", {"SCRIPT": script, "ARGUMENT": "first"}).done()


def test_loads_without_warning(asterisk: AsteriskServer) -> None:
    """Asterisk takes every line of it, and says nothing."""
    assert not re.search(r"(pbx_config|config)\.c", asterisk.logged())
    for context in ("fagi", "incoming", "fagi_failed"):
        shown = asterisk.cli(f"dialplan show {context}")
        assert re.search(r"\[extensions\.conf:\d+\]|\[pbx_config\]", shown), shown


@pytest.mark.parametrize(
    ("script", "returned"), [("hello", "SUCCESS"), ("raising", "ERROR"), ("unknown", "NOROUTE")]
)
def test_gosub(
    script: str,
    returned: str,
    pool: PoolService,
    servers: AmiClient,
    telephone: Telephone,
    records: Records,
) -> None:
    """The subroutine returns SUCCESS, or in a word what went wrong in the pool."""
    servers.set_global("FAGI", f"agi://{pool.address}")
    call = telephone.dial("gosub@calls", {"SCRIPT": script, "ARGUMENT": "first"})
    assert call.done().way == f"returned {returned}"
    sessions = records.of(call.uniqueid)
    assert [session["arguments"] for session in sessions] == [["first"]] * (script != "unknown")


def test_gosub_without_server(servers: AmiClient, telephone: Telephone, nobody: str) -> None:
    """Where nobody listens the subroutine returns FAILURE, and FAGI_STATUS stays empty."""
    servers.set_global("FAGI", nobody)
    done = _gosub(telephone, "hello")
    assert (done.way, done.variables["FAGI_STATUS"], done.ref) == ("returned FAILURE", "", "")


@pytest.mark.parametrize(("script", "returned"), [("hello", "SUCCESS"), ("raising", "ERROR")])
def test_second_server(
    script: str, returned: str, pool: PoolService, servers: AmiClient, telephone: Telephone, nobody: str
) -> None:
    """A server that cannot be reached is replaced by the second one, whose answer counts."""
    servers.set_global("FAGI", nobody)
    servers.set_global("FAGI_SECOND", f"agi://{pool.address}")
    assert _gosub(telephone, script).way == f"returned {returned}"


def test_second_server_is_not_asked_after_a_failure(
    pool: PoolService, servers: AmiClient, telephone: Telephone, records: Records
) -> None:
    """A script that failed is not run again by the second server: it may have done half of its work."""
    servers.set_global("FAGI", f"agi://{pool.address}")
    servers.set_global("FAGI_SECOND", f"agi://{pool.address}")
    call = telephone.dial("gosub@calls", {"SCRIPT": "raising", "ARGUMENT": "first"})
    assert call.done().way == "returned ERROR"
    assert len(records.of(call.uniqueid)) == 1


def test_gosub_in_h(pool: PoolService, servers: AmiClient, telephone: Telephone) -> None:
    """A script that fails in h does not take the call out of h, though its on_error leads elsewhere."""
    servers.set_global("FAGI", f"agi://{pool.address}")
    call = telephone.dial("quiet@calls", {"HSCRIPT": "broken"})
    call.await_end()
    assert ("target", "t") not in call.places()


def test_incoming(pool: PoolService, servers: AmiClient, telephone: Telephone, records: Records) -> None:
    """An incoming call goes where its script says, and its hangup is told to another script."""
    servers.set_global("FAGI", f"agi://{pool.address}")
    call = telephone.dial("4711@incoming", callerid='"Alice" <100>')
    call.await_end()
    routed, hung_up = records.of(call.uniqueid)
    assert (routed["script"], routed["captures"], routed["arguments"]) == (
        "route/4711",
        {"1": "4711"},
        ["100"],
    )
    assert (hung_up["script"], hung_up["arguments"], hung_up["end"]) == ("hangup", ["16"], "")
    assert hung_up["steps"]["answer"] == "AGIDeadChannel"
    assert call.dial_results() == ["ANSWER"]


def test_place_for_failed_calls(pool: PoolService, servers: AmiClient, telephone: Telephone) -> None:
    """The place that on_error can send failed calls to is there, and ends them."""
    servers.set_global("FAGI", f"agi://{pool.address}")
    call = telephone.call(pool.url("sorry"))
    call.await_end()
    assert ("fagi_failed", "s") in call.places()
