"""Writing and reading safetensors files in tests, by the format's definition and not by the package's code."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# name: dtype and stored elements; where the dtype is narrower than a byte, its bytes and shape
Tensors = Mapping[str, tuple[str, Array]]


def write(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file; names in the order given."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, (dtype, raw) in tensors.items():
        narrow = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}.get(dtype)
        shape = [raw.nbytes * 8 // narrow] if narrow else list(raw.shape)
        content = np.ascontiguousarray(raw).tobytes()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def read(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The tensors of a safetensors file: dtype, shape, bytes."""
    found, data = header_of(path), path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found.pop("__metadata__", None)
    return {
        name: (
            entry["dtype"],
            tuple(entry["shape"]),
            data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
        )
        for name, entry in found.items()
    }


def header_of(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, metadata included."""
    data = path.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    return dict(header_of(path).get("__metadata__", {}))


def rewritten_directory(raw: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """An archive with a directory that `change` was at, and a checksum that fits it."""
    length = int.from_bytes(raw[-8:-4], "little")
    found = json.loads(zlib.decompress(raw[-8 - length : -8], -15))
    change(found)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    directory = deflater.compress(json.dumps(found).encode()) + deflater.flush()
    check = zlib.crc32(directory).to_bytes(4, "little")
    content = raw[128 : -8 - length] + directory + len(directory).to_bytes(4, "little") + check
    header = json.loads(raw[8:128])
    header["archive"] |= {"shape": [len(content)], "data_offsets": [0, len(content)]}
    return (120).to_bytes(8, "little") + json.dumps(header, separators=(",", ":")).encode().ljust(120) + content
