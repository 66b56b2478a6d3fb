"""Reading one file that a stranger may have sent, or that may change under our hands.

`pread` into buffers, never a memory map: a file that shrinks must be an error and not a SIGBUS. A file is
opened for each read and compared with what was first seen, so a model of 200 shards needs few descriptors
and any replacement, growth or truncation is noticed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from compressor.core.errors import InputError

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK = 1 << 30  # Linux transfers at most 2 GiB in one call


class Origin(Protocol):
    """Where the bytes of a file are fetched from that is on no disk."""

    def read_runs(self, runs: Iterable[tuple[memoryview, int]]) -> None:
        """Fill several buffers, each from its offset; InputError if that cannot be, or the file was changed."""

    def check_unchanged(self) -> None:
        """InputError if the file was replaced since it was first seen."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A regular file as it was when first seen, or one that is fetched from its `origin`; `path` is then what is
    shown of its address."""

    path: str
    size: int
    identity: tuple[int, ...]
    origin: Origin | None = field(default=None, compare=False, kw_only=True)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> InputFile:
        """Look at `path` (links are followed); InputError if it is missing, unreadable or not a regular file."""
        path = os.fspath(path)
        fd, info = _open(path)
        try:
            os.close(fd)
        except OSError as error:
            raise _unreadable(path, error) from error
        return cls(path, info.st_size, _identity(info))

    @property
    def stands_for(self) -> str:
        """Of an archive of a file as it is, the suffix of that file; else ""."""
        return ""

    @property
    def base(self) -> str:
        """Of an archive against a base, by what that is known; else ""."""
        return ""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` (bytes, contiguous) from `offset`; InputError if the file is no longer what it was."""
        self.read_runs([(buffer, offset)])

    def read_runs(self, runs: Iterable[tuple[memoryview, int]]) -> None:
        """Fill several buffers, each from its offset."""
        if self.origin is not None:
            self.origin.read_runs(runs)
            return
        fd, info = _open(self.path)
        try:
            try:
                if _identity(info) != self.identity:
                    raise self._changed()
                for buffer, offset in runs:
                    done = 0
                    while done < len(buffer):
                        got = os.preadv(fd, [buffer[done : done + _CHUNK]], offset + done)
                        if got == 0:
                            raise self._changed()
                        done += got
            finally:
                os.close(fd)
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`. For headers and small files."""
        buffer = bytearray(size)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def check_unchanged(self) -> None:
        """InputError if the file was replaced or written to since it was first seen."""
        if self.origin is not None:
            self.origin.check_unchanged()
        elif InputFile.open(self.path).identity != self.identity:
            raise self._changed()

    def as_stored(self) -> InputFile:
        """The file itself, whatever it stands for (what an archive has in it is read as another)."""
        if self.origin is not None:
            return InputFile(self.path, self.size, self.identity, origin=self.origin)
        return InputFile.open(self.path)

    def _changed(self) -> InputError:
        return InputError("changed while it was read", file=self.path, remedy="Run again when nothing writes to it")


@dataclass(frozen=True, slots=True)
class Section(InputFile):
    """A part of a file, `size` bytes from `begin`, read like a file; of one that stands for another, of that."""

    begin: int = 0
    whole: InputFile | None = field(default=None, compare=False)

    @classmethod
    def of(cls, file: InputFile, begin: int, size: int) -> Section:
        """So many bytes of a file from there on."""
        return cls(file.path, size, file.identity, begin, file)

    def read_runs(self, runs: Iterable[tuple[memoryview, int]]) -> None:
        """Fill several buffers, each from its offset within the part."""
        assert self.whole is not None  # noqa: S101 - it is a part of something
        self.whole.read_runs((buffer, self.begin + offset) for buffer, offset in runs)


def _identity(info: os.stat_result) -> tuple[int, ...]:
    return info.st_ino, info.st_size, info.st_mtime_ns  # numbers of devices are a machine's own


def _open(path: str) -> tuple[int, os.stat_result]:
    """A descriptor of a regular file, and what it is."""
    try:
        fd = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot be opened: {reason}", file=path) from error
    try:
        info = os.fstat(fd)
    except OSError as error:
        with suppress(OSError):
            os.close(fd)
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(info.st_mode):
        with suppress(OSError):
            os.close(fd)
        raise InputError("is not a regular file", file=path)
    return fd, info


def _unreadable(path: str, error: OSError) -> InputError:
    return InputError(f"cannot be read: {error.strerror}", file=path)
