"""Drains a journal until it is killed: the processes of the test that kills them again and again.

For each line of standard input it forks a process that drains the journal, when the one before has ended.
Arguments: the journal's folder, the database's URL.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402 (behind the patch)
from sqlalchemy import text  # noqa: E402

from fastagi_pool.database import DatabaseSettings  # noqa: E402
from fastagi_pool.journal import RUNNING_NAME, Journal  # noqa: E402
from fastagi_pool.marks import Marks  # noqa: E402
from fastagi_pool.replay import Replayer, RunningEntry  # noqa: E402
from fastagi_pool.routes import Route, RouteKind, RouteTable  # noqa: E402
from fastagi_pool.together import Together  # noqa: E402

if TYPE_CHECKING:
    from fastagi_pool.call import Call
    from fastagi_pool.context import Context

_MOST_BYTES = 10_000_000


def note(call: Call, context: Context) -> None:
    """Leave one row; twice it would be two."""
    with context.begin("main") as database:
        database.execute(text("INSERT INTO notes (ref) VALUES (:ref)"), {"ref": call.ref})


def drain(folder: Path, url: str) -> None:
    """Replay until nothing waits; prints its process id once it begins."""
    journal = Journal.open(folder / "journal.db", _MOST_BYTES, folder / "backlog")
    route = Route("note", RouteKind.DEFAULT, "", "note", deferred_by="main")
    with closing(Together(DatabaseSettings("main", (url,)))) as database:
        replayer = Replayer(
            journal,
            Marks("node"),
            RouteTable([route]),
            {"note": note},
            {"main": database},
            {},
            RunningEntry(folder / RUNNING_NAME),
            logging.getLogger("replay"),
        )
        print(os.getpid(), flush=True)
        while journal.backlog.waits("main"):
            replayer.look("main")


def main() -> None:
    """Fork one process after the other."""
    fork, wait = monkey.get_original("os", "fork"), monkey.get_original("os", "waitpid")
    pid = 0
    for _ in sys.stdin:
        # Not before: one that has nothing left to do keeps its number until the test has killed it.
        if pid:
            wait(pid, 0)
        pid = fork()
        if pid == 0:
            gevent.reinit()
            drain(Path(sys.argv[1]), sys.argv[2])
            os._exit(0)
    wait(pid, 0)


if __name__ == "__main__":
    main()
