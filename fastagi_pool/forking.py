"""Forking: a child that hears no signal in its parent's place.

Laws:
    * From its first moment a signal that the child gets is the child's. A process that has signals written
      into a pipe (:func:`signal.set_wakeup_fd`) shares that pipe with whom it forks, until that one says
      otherwise: a child that is told to end just then would end its parent.
"""

from __future__ import annotations

import os
import signal
from typing import Final

_ALL: Final = signal.valid_signals()


def fork_apart(*default: int) -> int:
    """Fork; the child has no wake-up descriptor.

    Args:
        default: Signals that do to the child, from its first moment, what they do to a process that knows
            nothing of them; all others meet the handlers of the parent.

    Returns:
        The child's process id; 0 in the child.

    Raises:
        OSError: The machine has no process or memory for it.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
    try:
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in default:
                signal.signal(number, signal.SIG_DFL)
        return pid
    finally:
        # In both of them: what came meanwhile meets what is to be now.
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
