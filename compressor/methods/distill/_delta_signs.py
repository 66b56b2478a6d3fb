"""Differences by their signs: one magnitude a row, or two of which a second bit chooses.

    d ≈ m · sign(d),   m = Σ|d| / n over the row

which no other m loses less than (BitDelta, arXiv 2402.10193, has one m for the matrix). With two bits |d| becomes
the nearer of two magnitudes, which Lloyd's iteration finds: each the mean of what is nearest to it, eight times,
from the mean of all as the first border.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compressor.core import bitpacking
from compressor.core.floats import largest, narrow, widen
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block
from compressor.methods.distill._differences import Difference, Differing
from compressor.methods.parts import Part

_ROUNDS = 8
_PIECE = 1 << 17  # differences that are looked at at a time, in float64


@dataclass(frozen=True)
class SignBits(Difference):
    """A sign for each weight, and of two `bits` which of two magnitudes it has."""

    bits: int

    @property
    def label(self) -> str:
        return f"delta {self.bits}"

    @property
    def stored_name(self) -> str:
        return self.label

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        codes = (rows, bitpacking.row_bytes(columns, 1))
        larger = (Part(".larger", "U8", codes),) if self.bits == 2 else ()
        return Part(".signs", "U8", codes), *larger, Part(".magnitudes", _dtype(spec), (rows, self.bits))

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        codes = work.array("delta.codes", out.shape, "|u1")
        held = widen(parts[".magnitudes"], _dtype(spec), work, "delta.magnitudes").astype(out.dtype, copy=False)
        out[...] = held[:, :1]
        if self.bits == 2:
            bitpacking.unpack(parts[".larger"], 1, codes, work)
            np.copyto(out, held[:, 1:], where=codes.view("|b1"))
        bitpacking.unpack(parts[".signs"], 1, codes, work)
        np.negative(out, out=out, where=~codes.view("|b1"))


@dataclass(frozen=True)
class Signing(Differing):
    """Finds the magnitudes of each row."""

    read_by: SignBits

    def store(self, block: Block, difference: Array) -> Mapping[str, Array]:
        spec, work, bits = block.spec, block.work, self.read_by.bits
        rows, columns = difference.shape
        sizes = np.abs(difference)
        step = max(_PIECE // max(columns, 1), 1)
        wanted = np.concatenate([_magnitudes(sizes[one : one + step], bits) for one in range(0, rows, step)])
        stored = np.empty(wanted.shape, DTYPES[_dtype(spec)].storage)
        narrow(np.minimum(wanted, largest(_dtype(spec))), _dtype(spec), stored)
        packed = {".magnitudes": stored}
        codes = {".signs": difference >= 0}
        if bits == 2:
            held = widen(stored, _dtype(spec), work, "delta.magnitudes")
            codes[".larger"] = sizes > held.mean(axis=1, dtype=np.float64, keepdims=True)
        for suffix, found in codes.items():
            packed[suffix] = np.empty((rows, bitpacking.row_bytes(columns, 1)), np.uint8)
            bitpacking.pack(np.ascontiguousarray(found).view(np.uint8), 1, packed[suffix], work)
        return packed


def _magnitudes(sizes: Array, bits: int) -> Array:
    """One magnitude for each row of |d| [rows, columns], or two, the smaller first; float64 [rows, bits]."""
    wide, columns = sizes.astype(np.float64), sizes.shape[1]
    wide /= columns  # no sum leaves the range then
    mean: Array = np.add.reduce(wide, axis=1, keepdims=True)
    if bits == 1:
        return mean
    border, low, high = mean / columns, mean, mean
    for _ in range(_ROUNDS):
        above = wide > border
        counts = np.add.reduce(above, axis=1, keepdims=True, dtype=np.float64)
        upper = np.add.reduce(np.where(above, wide, 0), axis=1, keepdims=True)
        lower = np.add.reduce(np.where(above, 0, wide), axis=1, keepdims=True)
        high = upper * (columns / np.maximum(counts, 1))
        low = lower * (columns / np.maximum(columns - counts, 1))
        high = np.where(counts > 0, high, low)
        border = (low + high) / 2 / columns
    return np.concatenate([low, high], axis=1)


def _dtype(spec: TensorSpec) -> str:
    """What magnitudes are stored in: the tensor's dtype, float32 of FP8."""
    return "F32" if spec.dtype.startswith("F8") else spec.dtype
