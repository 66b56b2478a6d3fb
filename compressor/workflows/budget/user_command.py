"""A command of the user's: run without a shell, in a session of its own, for a bounded time.

What it leaves running when it ends, or is ended, is ended with it: the processes of its own group, and no others.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from time import monotonic

from compressor.core import cleanup
from compressor.core.errors import CommandFailed
from compressor.core.text import printable

_TAIL = 1 << 16  # bytes of what it prints that are kept, the last ones
_PATIENCE = 0.02  # seconds between two looks


def run_command(arguments: Sequence[str], timeout: float) -> str:
    """The end of what a command prints to stdout; its stderr is ours. CommandFailed when it cannot be started,
    fails, or takes more than `timeout` seconds."""
    shown = printable(" ".join(arguments), 120)
    try:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        reason = getattr(error, "strerror", None) or error
        raise CommandFailed(f"the command cannot be started: {reason}: {shown}") from error
    with cleanup.registered(partial(_kill, process)):
        try:
            tail = _watch(process, monotonic() + timeout)
        finally:
            _end(process)
    if tail is None:
        raise CommandFailed(
            f"the command did not end within {timeout:g} seconds and was stopped: {shown}",
            remedy="Give it more time with --timeout",
        )
    code = process.returncode
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
        raise CommandFailed(f"the command {how}: {shown}")
    return tail.decode("utf-8", "replace")


def _watch(process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """What it printed until it ended; None where the time is up. It is not reaped yet: its number stays its own."""
    out = process.stdout
    assert out is not None  # noqa: S101 - a pipe was asked for
    os.set_blocking(out.fileno(), False)
    tail, closed = b"", False
    while True:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        if closed:
            select.select([], [], [], 0 if ended else _PATIENCE)
        else:
            select.select([out], [], [], 0 if ended else _PATIENCE)
            while chunk := out.read(_TAIL):
                tail = (tail + chunk)[-_TAIL:]
                if monotonic() > deadline:
                    return None
            closed = chunk == b""
        if ended:
            return tail
        if monotonic() > deadline:
            return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End its group, then reap it. As long as it is not reaped no other group can have its number."""
    _kill(process)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End what it started, and it."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
