"""Running: from a source of configuration to a master at work, in this process.

Laws:
    * The process that becomes the master imports neither gevent nor SQLAlchemy nor a handler; what its
      children need is imported inside the functions that they run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from setproctitle import setproctitle

from fastagi_pool.errors import OperatorError
from fastagi_pool.keeping import ObserverOrder
from fastagi_pool.master import Master, MasterOptions, understand
from fastagi_pool.messages import Channel, Inheritance
from fastagi_pool.notify import Notifier
from fastagi_pool.source import Source
from fastagi_pool.takeover import VARIABLE, TakeoverRefused, inherited_state, is_only_asked, own_program


def run_master(source: Source, report: Callable[[str], None], serving: Callable[[list[str]], None]) -> int:
    """Be the master until told to end; return the exit code.

    Args:
        source: Where the configuration comes from; read anew at each reload.
        report: Called with the reason if the server cannot start.
        serving: Called once, when the first worker serves, with the addresses; not after an upgrade.
    """
    # The configuration may say where to work.
    source = source.absolute()

    def be_loader(channel: Channel, inheritance: Inheritance) -> int:
        from gevent import monkey

        monkey.patch_all(os=False, signal=False)
        from fastagi_pool.loader import run_loader

        return run_loader(channel, inheritance, source.load)

    def be_observer(order: ObserverOrder, lifeline_fd: int) -> int:
        from gevent import monkey

        monkey.patch_all(os=False, signal=False)
        from fastagi_pool.observer import run_observer

        return run_observer(order, lifeline_fd)

    options = MasterOptions(
        loader=be_loader,
        observer=be_observer,
        report=report,
        serving=serving,
        inherited=_inherited_sockets(os.environ),
        set_title=setproctitle,
        notifier=Notifier.from_environment(os.environ),
        program=own_program(os.environ),
    )
    try:
        state = inherited_state(os.environ)
        if state is not None:
            understand(state)
    except TakeoverRefused as error:
        raise OperatorError(f"cannot take over: {error}") from error
    if is_only_asked(os.environ):
        source.assemble()
        return 0
    os.environ.pop(VARIABLE, None)
    return Master(options, state).run()


def _inherited_sockets(environment: Mapping[str, str]) -> tuple[int, ...]:
    """Find the sockets that systemd opened for this process. Source: sd_listen_fds(3)."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return ()
    return tuple(range(3, 3 + int(environment.get("LISTEN_FDS", "0"))))
