"""Writing long runs past the page cache, while the next ones are computed.

A written model is synced before it has its name, so its way to the disk is waited for in any case. Through the
page cache that way costs a second copy, pages for the whole model (which a container's memory limit counts, and
which push out what others had cached) and a lock that makes the threads of one file wait for each other.

Unbuffered writes need places, lengths and addresses that are whole pages. The pages that a run begins and ends
in belong to other runs too: those are written through the cache, the rest from aligned buffers. Where a file
system knows no unbuffered writes, all is buffered.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Lock

from compressor.lazy import np
from compressor.workspace import Array

FLAG = getattr(os, "O_DIRECT", 0)
LEAST = 1 << 18  # bytes of a run: below, a page more or less at its ends is most of it

_PAGE = mmap.PAGESIZE
_PIECE = max(1 << 20, _PAGE)
_PIECES = 8

Write = Callable[[str, memoryview, int, int], None]  # name, data, offset, flags for opening


class Direct:
    """Takes runs for the files of one output. `write` is how a run gets into a file that is opened with flags."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compressor-write")
        self._free: SimpleQueue[mmap.mmap] = SimpleQueue()
        for _ in range(_PIECES):
            self._free.put(mmap.mmap(-1, _PIECE))  # anonymous memory begins on a page
        self._lock = Lock()
        self._under_way: dict[str, deque[Future[None]]] = {}
        self._edges: dict[str, list[tuple[int, bytes]]] = {}
        self._flag = FLAG

    def write(self, name: str, data: Array, offset: int) -> None:
        """Write a flat array of bytes; returns when the array may change, not when it is written.

        OSError of this or an earlier run.
        """
        first = -offset % _PAGE
        last = first + (len(data) - first) // _PAGE * _PAGE
        with self._lock:
            edges = self._edges.setdefault(name, [])
            edges += [(offset, data[:first].tobytes()), (offset + last, data[last:].tobytes())]
        for at in range(first, last, _PIECE):
            piece = data[at : min(at + _PIECE, last)]
            buffer = self._free.get()
            np.frombuffer(buffer, np.uint8, len(piece))[...] = piece
            future = self._thread.submit(self._put, name, buffer, len(piece), offset + at)
            with self._lock:
                waiting = self._under_way.setdefault(name, deque())
                waiting.append(future)
                done = waiting.popleft() if waiting[0].done() else None
            if done is not None:
                done.result()

    def drain(self, name: str) -> None:
        """Wait until all runs of a file are written; OSError when one of them could not be."""
        with self._lock:
            waiting = self._under_way.pop(name, ())
        for future in waiting:
            future.result()
        for offset, edge in self._edges.pop(name, ()):
            self._write(name, memoryview(edge), offset, 0)

    def close(self) -> None:
        """Drop what waits, and end."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _put(self, name: str, buffer: mmap.mmap, size: int, offset: int) -> None:
        try:
            with memoryview(buffer) as view:
                try:
                    self._write(name, view[:size], offset, self._flag)
                except OSError as error:
                    if not self._flag or error.errno not in (errno.EINVAL, errno.ENOTSUP):
                        raise
                    self._flag = 0  # not on this file system
                    self._write(name, view[:size], offset, 0)
        finally:
            self._free.put(buffer)
