"""Balance: the calls are shared evenly among the workers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from .conftest import Pools
from .stream import CallStream

_PROJECT: Final = Path(__file__).resolve().parents[2]
_SOURCE: Final = _PROJECT / "scripts/bench/agiload.c"
_PROGRAM: Final = _PROJECT / ".cache/agiload"
_WORKERS: Final = 4
_CALLS: Final = 10_000
_CALLS_WITHOUT_COMPILER: Final = 1_000
#: The busiest worker may have served so much more than the least busy one.
_MOST_UNEVEN: Final = 1.3


def load_source() -> Path | None:
    """Return the load source, compiled; None if there is no compiler."""
    compiler = shutil.which("cc")
    if not _PROGRAM.exists() and compiler:
        _PROGRAM.parent.mkdir(exist_ok=True)
        subprocess.run((compiler, "-O2", "-o", _PROGRAM, _SOURCE), check=True)
    return _PROGRAM if _PROGRAM.exists() else None


@pytest.mark.parametrize("at_once", [8, 64])
def test_short_calls(at_once: int, pools: Pools) -> None:
    """Of many short calls every worker serves about as many as any other, and none is lost."""
    pool = pools.start({"workers": _WORKERS})
    program = load_source()
    if program is None:
        with CallStream(pool.url("hello")) as stream:
            stream.await_more(_CALLS_WITHOUT_COMPILER)
        assert stream.lost == []
    else:
        port = pool.address.rpartition(":")[2]
        run = subprocess.run(
            (program, "-p", port, "-s", "hello", "-c", str(at_once), "-n", str(_CALLS), "-t", "60"),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert re.match(rf"calls {_CALLS} good {_CALLS} bad 0 refused 0 dropped 0 ", run.stdout), run.stdout
    served = [worker.served for worker in pool.await_serving(_WORKERS)]
    assert max(served) <= _MOST_UNEVEN * min(served), served
