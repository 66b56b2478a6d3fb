"""Three values a row or group: −α, 0 and α, with the threshold that loses least.

    w ≈ α · sign(w) where |w| > α/2, else 0;   α = the mean of the k largest magnitudes,
    k = the one that maximises (Σ of the k largest |w|)² / k

The form is that of Li, Zhang, Liu (Ternary Weight Networks, arXiv 1605.04711), who estimate the threshold as
0.7 · mean|w|. Here it is the optimum: of k weights kept, the mean magnitude is the best α, and Σw² − (Σ|w|)²/k is
lost, so that sorting the magnitudes shows the best k. Zeros stay zero.

Stored, for `NAME` [rows, columns], with the digits 0 for 0, 1 for +α and 2 for −α: `NAME.codes` U8, each row on
its own; `layout` `base3` (1.6 bits): [rows, ⌈columns/5⌉], five digits to a byte, Σ dᵢ·3ⁱ; `2bit`:
[rows, ⌈columns/4⌉], a little-endian bit stream. `NAME.scale` [rows, groups], α in the weights' dtype (F32 for FP8
weights), never 0.
Error: at most the largest magnitude.

    [[5, -4, 1, 0]] becomes the digits [[1, 2, 0, 0]] with α = 4.5, and comes back [[4.5, -4.5, 0, 0]]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from compressor.core import bitpacking as bitstream
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.options import option
from compressor.methods.quantize._signs import Signs


@dataclass(frozen=True)
class Ternary(Signs):
    """−α, 0 or α, the threshold fitted to each row or group."""

    id: ClassVar[str] = "ternary"

    layout: Literal["base3", "2bit"] = option(
        "base3", help="five codes to a byte (1.6 bits a weight), or 2 bits each"
    )

    def row_bytes(self, columns: int) -> int:
        return -(-columns // 5) if self.layout == "base3" else bitstream.row_bytes(columns, 2)

    def fit(self, grouped: Array, work: Workspace) -> Array:
        largest_first = work.array("ternary.sorted", grouped.shape, grouped.dtype.str)
        np.negative(np.abs(grouped, out=largest_first), out=largest_first)
        largest_first.sort(axis=2)
        unit = None
        if grouped.itemsize == 8:  # squares of these could leave the range
            unit = np.frexp(largest_first[..., :1])[1]
            np.ldexp(largest_first, -unit, out=largest_first)
        total = np.cumsum(
            largest_first, axis=2, dtype=np.float64, out=work.array("ternary.total", grouped.shape, "<f8")
        )
        kept = work.array("ternary.kept", grouped.shape, "<f8")
        np.multiply(total, total, out=kept)
        np.divide(kept, np.arange(1, grouped.shape[2] + 1), out=kept)
        best = kept.argmax(axis=2)[..., None]
        scale = np.take_along_axis(total, best, axis=2) / -(best + 1)
        fitted: Array = (scale if unit is None else np.ldexp(scale, unit))[..., 0]
        return fitted

    def to_codes(self, grouped: Array, scale: Array, codes: Array, signs: Array, work: Workspace) -> None:
        negative = work.array("ternary.negative", grouped.shape, "|b1")
        np.greater(grouped, scale / 2, out=codes.view("|b1"))
        np.less(grouped, scale / -2, out=negative)
        np.subtract(codes.view("|i1"), negative.view("|i1"), out=signs)
        np.add(codes, negative.view("|u1"), out=codes)
        np.add(codes, negative.view("|u1"), out=codes)

    def store_codes(self, codes: Array, packed: Array, work: Workspace) -> None:
        if self.layout == "base3":
            pack_base3(codes, packed, work)
        else:
            bitstream.pack(codes, 2, packed, work)

    def load_signs(self, packed: Array, signs: Array, spec: TensorSpec, work: Workspace) -> None:
        codes = work.array("signs.codes", signs.shape, "|u1")
        if self.layout == "base3":
            valid = packed.size == 0 or int(packed.max()) < 3**5
            unpack_base3(packed, codes, work)
        else:
            bitstream.unpack(packed, 2, codes, work)
            valid = codes.size == 0 or int(codes.max()) < 3
        if not valid:
            raise InputError("has a code that stands for none of the three values", tensor=spec.name)
        np.array([0, 1, -1], signs.dtype).take(codes, out=signs, mode="clip")


def pack_base3(digits: Array, out: Array, work: Workspace) -> None:
    """Digits 0 to 2 [rows, columns] into bytes [rows, ⌈columns/5⌉]: Σ dᵢ·3ⁱ of each five, 0 beyond the end."""
    rows, columns = digits.shape
    padded = work.array("base3.padded", (rows, 5 * -(-columns // 5)), "|u1")
    padded[:, :columns] = digits
    padded[:, columns:] = 0
    total = work.array("base3.total", (rows, padded.shape[1] // 5), "|u1")
    total[...] = padded[:, 4::5]
    for place in (3, 2, 1, 0):
        np.multiply(total, 3, out=total)
        np.add(total, padded[:, place::5], out=total)
    out[...] = total


def unpack_base3(packed: Array, out: Array, work: Workspace) -> None:
    """Undo `pack_base3`. A byte beyond 242 stands for no digits; what it gives is below 3 too."""
    rows, columns = out.shape
    table = (np.arange(256)[:, None] // 3 ** np.arange(5) % 3).astype(np.uint8)
    digits = work.array("base3.digits", (*packed.shape, 5), "|u1")
    table.take(packed, axis=0, out=digits, mode="clip")
    out[...] = digits.reshape(rows, 5 * packed.shape[1])[:, :columns]


METHOD = Ternary
