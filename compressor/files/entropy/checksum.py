"""The CRC-32 of what a chunk stands for, as zlib has it."""

from __future__ import annotations

import zlib

from compressor.core import kernels
from compressor.core.workspace import Array


def crc32(data: Array) -> int:
    """The CRC-32 of a C-ordered array's bytes."""
    found = kernels.crc32(data)
    return zlib.crc32(data.data) if found is None else found
