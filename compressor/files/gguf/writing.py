"""Laying out a GGUF file (version 3, little-endian): every byte that is not a tensor's, and where those go."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.core.errors import OutputError
from compressor.core.ggml_types import MAX_DIMS, GgmlType
from compressor.files.gguf.reading import ALIGNMENT, DEFAULT_ALIGNMENT, MAGIC, MAX_ALIGNMENT, MAX_HEADER
from compressor.files.gguf.values import LENGTH, Kind, Value
from compressor.files.layout import FileLayout

MAX_NAME = 127  # bytes that the widest of ggml's builds read; llama.cpp reads 63
_VERSION = 3


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor that is to be written: its name, its type, and its shape with the rows' length last."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its blocks."""
        return self.type.size(self.shape)


def layout(tensors: Sequence[GgufTensor], fields: Mapping[str, Value]) -> FileLayout:
    """Plan a file of these tensors and this metadata, both in this order, aligned as the metadata says (32).

    OutputError for what the format, or whoever reads it, does not hold.
    """
    alignment = _alignment(fields)
    head = bytearray(MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(fields)))
    for key, value in fields.items():
        head += _text(key) + struct.pack("<I", value.kind) + value.raw
    begins: dict[str, int] = {}
    paddings: list[tuple[int, bytes]] = []
    place = 0
    for tensor in tensors:
        _check(tensor, begins)
        begins[tensor.name] = place
        axes = tuple(reversed(tensor.shape))
        head += _text(tensor.name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, tensor.type.number, place)
        end = place + tensor.nbytes
        place = end + -end % alignment
        if place > end:
            paddings.append((end, bytes(place - end)))
    if len(head) > MAX_HEADER:
        raise OutputError(f"its header would have {len(head)} bytes, and {MAX_HEADER} are read")
    head += bytes(-len(head) % alignment)
    data = len(head)
    return FileLayout(
        size=data + place,
        pieces=((0, bytes(head)), *((data + at, zeros) for at, zeros in paddings)),
        offsets={name: data + begin for name, begin in begins.items()},
    )


def _check(tensor: GgufTensor, begins: Mapping[str, int]) -> None:
    length = len(tensor.name.encode("utf-8", "surrogateescape"))
    if tensor.name in begins:
        raise OutputError("would be in the file twice", tensor=tensor.name)
    if not 0 < length <= MAX_NAME:
        raise OutputError(f"its name has {length} bytes, and a .gguf has 1 to {MAX_NAME}", tensor=tensor.name)
    if len(tensor.shape) > MAX_DIMS:
        raise OutputError(
            f"has {len(tensor.shape)} axes, and a .gguf holds at most {MAX_DIMS}",
            tensor=tensor.name,
            remedy="Write .safetensors",
        )
    if not tensor.type.divides(tensor.shape):
        raise OutputError(
            f"its rows {list(tensor.shape)} are no whole blocks of {tensor.type.block} weights",
            tensor=tensor.name,
        )


def _alignment(fields: Mapping[str, Value]) -> int:
    value = fields.get(ALIGNMENT)
    found = DEFAULT_ALIGNMENT if value is None else value.python() if value.kind is Kind.UINT32 else 0
    if not 0 < found <= MAX_ALIGNMENT or found & (found - 1):
        raise OutputError(f"{ALIGNMENT} is no power of two up to {MAX_ALIGNMENT}")
    return int(found)


def _text(content: str) -> bytes:
    raw = content.encode("utf-8", "surrogateescape")
    return LENGTH.pack(len(raw)) + raw
