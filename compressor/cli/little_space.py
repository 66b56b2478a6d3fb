"""Runs under a limit of address space (`ulimit -v`): what libraries reserve is kept small, and one that ends the
process itself when it gets no memory, as OpenBLAS does, does not take the clean-up with it."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from typing import NoReturn

from compressor.cli.signals import leave_with
from compressor.core import cleanup

LINE = "out of memory; --workers 1 needs less"
_ARENA_MAX = -8  # of glibc's malloc.h
_held: list[object] = []  # the C library keeps no reference


def prepare() -> None:
    """Have threads share one heap, since each takes up to 128 MB of address space for its own, and where none is
    left for what a library keeps for each thread the process is aborted; and be told when a library ends it."""
    with suppress(OSError, AttributeError, MemoryError):  # AttributeError: another C library than glibc
        library, process = ctypes.CDLL(None), os.getpid()
        library.mallopt(_ARENA_MAX, 1)

        def ended(code: int, _: object) -> None:
            if os.getpid() != process:  # a worker: who waits for it tells
                os._exit(code)
            told = (cleanup.run() and cleanup.leftovers()) or "nothing was written"
            leave_with(4, f"error: {LINE}; {told}\n")

        called = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)(ended)
        _held.append(called)
        library.on_exit(called, None)


def leave(code: int) -> NoReturn:
    """End the process, with nobody to be told."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
