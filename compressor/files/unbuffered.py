"""Writing long runs past the page cache.

A written model is synced before it has its name, so its way to the disk is waited for in any case. Through the
page cache that way costs pages for the whole model (which a container's memory limit counts, and which push out
what others had cached) and a lock that makes the writers of one file wait for each other.

Unbuffered writes need places, lengths and addresses that are whole pages. The pages that a run begins and ends
in belong to other runs too: those are written through the cache, the rest from where it lies if that is at whole
pages too, else from a copy. Where a file system knows no unbuffered writes, all is buffered.

A write that takes places of the disk, or makes the file longer, keeps other writers of the file waiting until it is
done; so all of it is taken at once before (`reserve`). That also finds a full disk before anything is computed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

from compressor.core.lazy import np
from compressor.core.workspace import Array

FLAG = getattr(os, "O_DIRECT", 0)
LEAST = 1 << 18  # bytes of a run: below, a page more or less at its ends is most of it

_PAGE = mmap.PAGESIZE
_PIECE = max(1 << 22, _PAGE)

Write = Callable[[str, memoryview, int, int], None]  # name, data, offset, flags for opening


def reserve(fd: int, size: int) -> None:
    """Take the places of so many bytes for a file, where its system can. OSError when there are too few."""
    call = _fallocate()
    if call is not None and call(fd, 0, 0, size):
        number = ctypes.get_errno()
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(number, os.strerror(number))


@cache
def _fallocate() -> Any:
    """Linux's own: `os.posix_fallocate` writes to every page where the file system cannot."""
    try:
        found = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64), ctypes.c_int
    return found


class Direct:
    """Takes runs for the files of one output. `write` is how a run gets into a file that is opened with flags."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._idle: deque[mmap.mmap] = deque()  # buffers; `deque` operations are atomic
        self._flag = FLAG

    def write(self, name: str, data: Array, offset: int) -> None:
        """Write a flat array of bytes. OSError when it cannot be."""
        first = min(-offset % _PAGE, len(data))
        last = first + (len(data) - first) // _PAGE * _PAGE
        if data[first:].ctypes.data % _PAGE == 0:  # it lies to pages as the file does
            if first < last:
                self._put(name, data[first:last].data, last - first, offset + first)
        else:
            self._copied(name, data[first:last], offset + first)
        self._write(name, data[:first].data, offset, 0)
        self._write(name, data[last:].data, offset + last, 0)

    def _copied(self, name: str, data: Array, offset: int) -> None:
        """Write whole pages from aligned buffers."""
        try:
            buffer = self._idle.pop()
        except IndexError:
            buffer = mmap.mmap(-1, _PIECE)  # anonymous memory begins on a page
        try:
            for at in range(0, len(data), _PIECE):
                piece = data[at : at + _PIECE]
                np.frombuffer(buffer, np.uint8, len(piece))[...] = piece
                self._put(name, buffer, len(piece), offset + at)
        finally:
            self._idle.append(buffer)

    def _put(self, name: str, buffer: mmap.mmap | memoryview, size: int, offset: int) -> None:
        with memoryview(buffer) as view:
            try:
                self._write(name, view[:size], offset, self._flag)
            except OSError as error:
                if not self._flag or error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise
                self._flag = 0  # not on this file system
                self._write(name, view[:size], offset, 0)
