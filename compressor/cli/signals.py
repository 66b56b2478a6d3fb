"""SIGINT, SIGTERM, SIGHUP and the limit of processor time: remove what is half-written, leave at once with 128+N.

Nothing is raised into the program, so there is no place where a signal could be swallowed or half-handled.
Once the finished output is being given its name, a first signal comes too late and is ignored: what is left
to do is to print the report. A second one cuts the report short; the exit code is still that of success.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import suppress
from types import FrameType

from compressor.core import cleanup

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)
_SHOW_CURSOR = b"\r\x1b[2K\x1b[?25h"  # a progress bar hides it, and clears its own line

_stopping = False
_ignored = 0


def install() -> None:
    """Take over the signals, unless the caller has them ignored (as nohup does)."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    _be_told_of_the_limit()


def _be_told_of_the_limit() -> None:
    """Where `ulimit -t` kills at once, be stopped a second before, so that nothing half-written stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY and soft in (hard, resource.RLIM_INFINITY) and hard > 1:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CPU, (hard - 1, hard))


def ignore() -> None:
    """For the way out: Python gives signals back their default meaning, to kill, before it has ended."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> None:
    global _stopping, _ignored
    if _stopping:  # an earlier signal is removing things
        return
    _stopping = True
    if cleanup.run():
        told = cleanup.leftovers() or "nothing was written"
        leave_with(128 + number, f"error: stopped by {signal.Signals(number).name}; {told}\n")
    if _ignored and cleanup.is_published():
        leave_with(0, "warning: the report was cut short; the output is complete\n")
    _ignored += 1
    _stopping = False


def leave_with(code: int, line: str) -> None:
    """End the process at once, with a line on the bare terminal."""
    try:
        if "rich.progress" in sys.modules and os.isatty(2):
            os.write(2, _SHOW_CURSOR)
        os.write(2, line.encode())
    finally:
        os._exit(code)
