"""Writing an archive: chunks as they come, then the directory, then the header, whose length is known before."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from compressor.core.tensor import TensorSpec
from compressor.files.archive import TENSOR, TRAILER, VERSION, WITH_BASE, identity_of_base, marked
from compressor.files.growth import FREE, GROWTH
from compressor.files.ours import ARCHIVE
from compressor.files.safetensors import METADATA

_HEADER = 128  # bytes before the first chunk
_ZEROS = 1 << 20


class ArchiveWriter:
    """Fills an open file. The same tensors and chunks give the same bytes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.end = _HEADER
        self.tensors: dict[str, tuple[Any, ...]] = {}  # dtype, shape, form, bytes of chunks; and where it was
        self.logical = self.of_base = 0
        self.more: dict[str, Any] = {}
        self.marks: dict[str, tuple[TensorSpec, int]] = {}

    def begin(self, spec: TensorSpec, form: str, was: int | None = None, *, based: bool = False) -> None:
        """The next chunks are of this tensor. `was`: of a file as it is, where the tensor's bytes begin in it;
        `based`: it is coded against a base's."""
        self.tensors[spec.name] = spec.dtype, spec.shape, form, [], *(() if was is None else (was,))
        self.logical += spec.nbytes
        if based:
            self.marks[spec.name] = spec, 0
            self.of_base += spec.nbytes

    def add(self, name: str, chunk: bytes, check: int = 0) -> None:
        """Append the next coded chunk of a tensor to the archive; `check`: the CRC-32 of the base's."""
        self.tensors[name][3].append(len(chunk))
        if name in self.marks:
            spec, mark = self.marks[name]
            self.marks[name] = spec, marked(mark, check)
        self._append(chunk)

    def original(self, said: Mapping[str, Any], form: str, chunks: Sequence[bytes]) -> None:
        """It is of a file as it is: what is said of that, and the chunks of its bytes between tensors."""
        for chunk in chunks:
            self._append(chunk)
        self.more["original"] = {**said, "plain": [form, list(map(len, chunks))]}
        self.logical = said["size"]

    def finish(self, metadata: Mapping[str, str], stands_for: int = 0) -> None:
        """Write what comes behind the chunks and before them, and sync. `stands_for`: bytes of the numbers that the
        tensors are parts of."""
        more = {**self.more, **({"base": identity_of_base(self.marks)} if self.marks else {})}
        marks = {name: (mark,) for name, (_, mark) in self.marks.items()}
        tensors = {name: (*said, *marks.get(name, ())) for name, said in self.tensors.items()}
        text = json.dumps(
            {"metadata": dict(sorted(metadata.items())), "tensors": tensors, **more},
            separators=(",", ":"),
            ensure_ascii=False,
        )
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
        directory = deflater.compress(text.encode()) + deflater.flush()
        size = self.end - _HEADER + len(directory) + TRAILER
        # what stands for more than an archive may, gets longer
        lacking = -(-(max(self.logical - self.of_base, stands_for) - FREE) // GROWTH) - size
        while lacking > 0:
            self._append(bytes(min(lacking, _ZEROS)))
            lacking -= _ZEROS
        check = zlib.crc32(directory)
        self._append(directory + len(directory).to_bytes(4, "little") + check.to_bytes(4, "little"))
        size, version = self.end - _HEADER, WITH_BASE if self.marks else VERSION
        header = json.dumps(
            {METADATA: {ARCHIVE: version}, TENSOR: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}},
            separators=(",", ":"),
        ).encode()
        length = _HEADER - 8
        _write(self.fd, length.to_bytes(8, "little") + header.ljust(length), 0)
        os.fsync(self.fd)

    def coded(self) -> dict[str, int]:
        """Bytes of the coded chunks, by tensor."""
        return {name: sum(sizes) for name, (_, _, _, sizes, *_) in self.tensors.items()}

    def _append(self, data: bytes) -> None:
        _write(self.fd, data, self.end)
        self.end += len(data)


def _write(fd: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        done = os.pwrite(fd, left, offset)
        if not done:
            raise OSError(errno.EIO, "nothing more is taken")
        left, offset = left[done:], offset + done
