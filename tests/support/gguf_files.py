"""GGUF files laid out by hand, by the description of the format (ggml, docs/gguf.md), true or lying."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

ARRAY, STRING, UINT32 = 9, 8, 4
CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
BLOCKS = {  # number, weights and bytes of a block, from ggml-common.h
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144),
    "Q6_K": (14, 256, 210),
    "I8": (24, 1, 1),
    "I16": (25, 1, 2),
    "I32": (26, 1, 4),
    "I64": (27, 1, 8),
    "F64": (28, 1, 8),
    "BF16": (30, 1, 2),
}


def gguf_package() -> Any:
    """The package gguf; where it is not installed the test is skipped. (A folder of that name is no package.)"""
    pytest.importorskip("gguf.quants", reason="the package gguf is not installed")
    return sys.modules["gguf"]


def text(content: str | bytes) -> bytes:
    """A string with its length."""
    raw = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: Any) -> bytes:
    """A value with its kind; of an array `content` is the kind of its elements and the list of them, elements of
    arrays in arrays being such pairs again."""
    return struct.pack("<I", kind) + _body(kind, content)


def _body(kind: int, content: Any) -> bytes:
    if kind == STRING:
        return text(content)
    if kind == ARRAY:
        items, listed = content
        return struct.pack("<IQ", items, len(listed)) + b"".join(_body(items, item) for item in listed)
    return struct.pack(f"<{CODES[kind]}", content)


@dataclass(frozen=True)
class Line:
    """A tensor in the table, with its data; whatever is None is what is true."""

    name: str | bytes
    type: str
    shape: tuple[int, ...]
    data: bytes = b""
    number: int | None = None
    axes: int | None = None
    offset: int | None = None

    def entry(self, place: int) -> bytes:
        """Its line."""
        axes = len(self.shape) if self.axes is None else self.axes
        number = BLOCKS[self.type][0] if self.number is None else self.number
        offset = place if self.offset is None else self.offset
        sizes = struct.pack(f"<{len(self.shape)}Q", *reversed(self.shape))
        return text(self.name) + struct.pack("<I", axes) + sizes + struct.pack("<IQ", number, offset)


@dataclass(frozen=True)
class GgufFile:
    """A file: `values` are the encoded values of its metadata by key."""

    lines: Sequence[Line] = ()
    values: Mapping[str | bytes, bytes] = field(default_factory=dict)
    magic: bytes = b"GGUF"
    version: int = 3
    tensors: int | None = None
    count: int | None = None
    alignment: int = 32
    tail: bytes = b""

    def header(self) -> bytes:
        """Everything before the data."""
        out = self.magic + struct.pack(
            "<IQQ",
            self.version,
            len(self.lines) if self.tensors is None else self.tensors,
            len(self.values) if self.count is None else self.count,
        )
        out += b"".join(text(key) + encoded for key, encoded in self.values.items())
        place = 0
        for line in self.lines:
            out += line.entry(place)
            place += len(line.data) + -len(line.data) % self.alignment
        return out + bytes(-len(out) % self.alignment) if self.lines else out

    def file(self) -> bytes:
        """All bytes."""
        data = b"".join(line.data + bytes(-len(line.data) % self.alignment) for line in self.lines)
        return self.header() + data + self.tail

    def but(self, **changes: Any) -> GgufFile:
        """The file with something else."""
        return replace(self, **changes)


def numbers(name: str, shape: tuple[int, ...], seed: int = 1) -> Line:
    """A tensor of normal float32."""
    return Line(name, "F32", shape, np.random.default_rng(seed).standard_normal(shape, np.float32).tobytes())


def blocks(name: str, type_: str, shape: tuple[int, ...], seed: int = 1) -> Line:
    """A tensor of blocks: random bytes, with scales (the float16 of each) that are small numbers."""
    _, weights, nbytes = BLOCKS[type_]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (int(np.prod(shape)) // weights, nbytes), np.uint8)
    scales = {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}[type_]
    for at in scales:
        raw[:, at : at + 2] = rng.uniform(0.01, 0.1, (len(raw), 1)).astype(np.float16).view(np.uint8)
    return Line(name, type_, shape, raw.tobytes())


def small_model() -> GgufFile:
    """A file with each kind of value and several types of tensors."""
    return GgufFile(
        (
            blocks("blk.0.attn_q.weight", "Q4_K", (8, 256)),
            blocks("blk.0.ffn_up.weight", "Q8_0", (4, 64), 2),
            blocks("token_embd.weight", "Q6_K", (3, 256), 3),
            numbers("output_norm.weight", (256,)),
            Line("rope.order", "I32", (3,), np.arange(3, dtype="<i4").tobytes()),
        ),
        {
            "general.architecture": value(STRING, "llama"),
            "general.file_type": value(UINT32, 15),
            "general.quantization_version": value(UINT32, 2),
            "llama.block_count": value(UINT32, 1),
            "llama.rope.freq_base": value(6, 1e4),
            "tokenizer.ggml.add_bos_token": value(7, True),
            "tokenizer.ggml.tokens": value(ARRAY, (STRING, ["a", "Ġb", ""])),
            "tokenizer.ggml.scores": value(ARRAY, (6, [0.5, -1.0, 2.0])),
            "tokenizer.ggml.token_type": value(ARRAY, (5, [1, 3, 1])),
        },
    )
