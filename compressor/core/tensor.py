"""What a tensor is before anyone has read it: name, dtype, shape; and the table of dtypes.

Dtypes carry their safetensors names everywhere in the project. NumPy has no bfloat16 or FP8, so each dtype
has a *storage* type (the bytes, what files hold) beside the type it is computed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class DType:
    """One row of the table.

    `storage` is the NumPy type string of the stored bytes, `""` where elements are narrower than a byte.
    `compute` is the type that methods see: `""` where the tool carries the tensor over and never computes.
    """

    name: str
    bits: int
    storage: str
    compute: str = ""

    @property
    def itemsize(self) -> float:
        """Bytes of an element; less than 1 where several share one."""
        return self.bits / 8


_TABLE = (
    DType("F64", 64, "<f8", "<f8"),
    DType("F32", 32, "<f4", "<f4"),
    DType("F16", 16, "<f2", "<f4"),
    DType("BF16", 16, "<u2", "<f4"),
    DType("F8_E4M3", 8, "|u1", "<f4"),
    DType("F8_E5M2", 8, "|u1", "<f4"),
    DType("I64", 64, "<i8"),
    DType("I32", 32, "<i4"),
    DType("I16", 16, "<i2"),
    DType("I8", 8, "|i1"),
    DType("U64", 64, "<u8"),
    DType("U32", 32, "<u4"),
    DType("U16", 16, "<u2"),
    DType("U8", 8, "|u1"),
    DType("BOOL", 8, "|b1"),
    DType("C64", 64, "<c8"),
    DType("F8_E8M0", 8, "|u1"),
    DType("F8_E4M3FNUZ", 8, "|u1"),
    DType("F8_E5M2FNUZ", 8, "|u1"),
    DType("F6_E2M3", 6, ""),
    DType("F6_E3M2", 6, ""),
    DType("F4", 4, ""),
)
DTYPES: dict[str, DType] = {dtype.name: dtype for dtype in _TABLE}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's name, dtype (a key of `DTYPES`) and shape. Rows are output features, columns input features."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as numbers, without padding."""
        return self.size * DTYPES[self.dtype].bits // 8

    @property
    def is_float(self) -> bool:
        """Whether methods can compute on it (sub-byte and exotic floats are carried over)."""
        return DTYPES[self.dtype].compute != ""

    @property
    def matrix(self) -> tuple[int, int]:
        """The tensor as rows and columns: the first axis stays, the others are flattened into the row."""
        if len(self.shape) < 2:
            return 1, self.size
        return self.shape[0], prod(self.shape[1:])

    @property
    def lines(self) -> tuple[int, int]:
        """The tensor as rows and columns where the last axis stays, and the others are flattened into rows."""
        return (self.size // self.shape[-1], self.shape[-1]) if self.shape and self.shape[-1] else self.matrix
