"""SIGINT, SIGTERM and SIGHUP: remove what is half-written and leave at once with 128+N.

Nothing is raised into the program, so there is no place where a signal could be swallowed or half-handled.
While the finished output is being given its name, a signal comes too late and is ignored.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def install() -> None:
    """Take over the signals, unless the caller has them ignored (as nohup does)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    atomic = sys.modules.get("compressor.files.atomic")  # not imported yet: nothing can be half-written
    if atomic is not None and hasattr(atomic, "discard_all") and not atomic.discard_all():
        return
    name = signal.Signals(number).name
    try:
        os.write(2, f"error: stopped by {name}; nothing was written\n".encode())
    finally:
        os._exit(128 + number)
