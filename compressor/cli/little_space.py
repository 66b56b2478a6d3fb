"""Runs under a limit of address space (`ulimit -v`): what libraries reserve is kept small, and one that ends the
process itself when it gets no memory, as OpenBLAS does by leaving and safetensors by aborting, does not take the
clean-up with it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from compressor.cli.signals import leave_with
from compressor.core import cleanup

LINE = "out of memory; --workers 1 needs less"
_ARENA_MAX = -8  # of glibc's malloc.h
_SPARE = 8 << 20  # bytes that the clean-up may need where nothing else is left
_ENDING = 64  # threads that may all want to end the process
_held: list[object] = []  # the C library keeps no reference


def prepare() -> None:
    """Have threads share one heap, since each takes up to 128 MB of address space for its own, and where none is
    left for what a library keeps for each thread the process is aborted; and be told when a library ends it."""
    with suppress(OSError, AttributeError, MemoryError):  # AttributeError: another C library than glibc
        library, process = ctypes.CDLL(None), os.getpid()
        library.mallopt(_ARENA_MAX, 1)
        spare, first = bytearray(_SPARE), [None]

        def ended(code: int, _: object) -> None:
            if os.getpid() != process:  # a worker: who waits for it tells
                os._exit(code)
            try:
                first.pop()
            except IndexError:  # another thread ends the process already, which this one must not do before it
                signal.pause()
            spare.clear()
            told = (cleanup.run() and cleanup.leftovers()) or "nothing was written"
            leave_with(4, f"error: {LINE}; {told}\n")

        def aborted(number: int) -> None:
            ended(128 + number, None)

        left = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)(ended)
        killed = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
        _held.extend((left, killed))
        for _ in range(_ENDING):  # each is called once, by the thread that ends
            library.on_exit(left, None)
        # Python's own handlers run between two of its instructions, and an abort never comes back to them
        library.signal.argtypes = (ctypes.c_int, type(killed))
        library.signal.restype = ctypes.c_void_p
        library.signal(signal.SIGABRT, killed)


def leave(code: int) -> NoReturn:
    """End the process, with nobody to be told."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
