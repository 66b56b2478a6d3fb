"""The types of ggml's tensors, by which GGUF files store them (ggml.h: enum ggml_type, ggml-common.h: the blocks).

A type divides each row into blocks of so many weights, each of so many bytes. Of numbers a block is one element.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

MAX_DIMS = 5  # axes of a tensor: ggml's have 4 (GGML_MAX_DIMS), convolutions of videos in files for ComfyUI 5


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One row of the table: `block` weights take `nbytes`. `dtype` is a key of `DTYPES` where the type is plain
    numbers, `""` where blocks have to be decoded."""

    number: int
    name: str
    block: int
    nbytes: int
    dtype: str = ""

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor's bytes, or of its numbers where the type is numbers; its rows are whole blocks."""
        if self.dtype:
            return shape
        return (*shape[:-1], shape[-1] // self.block * self.nbytes)

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape, whose rows are whole blocks."""
        return prod(shape) // self.block * self.nbytes

    def divides(self, shape: tuple[int, ...]) -> bool:
        """Whether the rows of a tensor of this shape are whole blocks."""
        return self.block == 1 or (len(shape) > 0 and shape[-1] % self.block == 0)


_TABLE = (
    GgmlType(0, "F32", 1, 4, "F32"),
    GgmlType(1, "F16", 1, 2, "F16"),
    GgmlType(2, "Q4_0", 32, 18),
    GgmlType(3, "Q4_1", 32, 20),
    GgmlType(6, "Q5_0", 32, 22),
    GgmlType(7, "Q5_1", 32, 24),
    GgmlType(8, "Q8_0", 32, 34),
    GgmlType(9, "Q8_1", 32, 36),
    GgmlType(10, "Q2_K", 256, 84),
    GgmlType(11, "Q3_K", 256, 110),
    GgmlType(12, "Q4_K", 256, 144),
    GgmlType(13, "Q5_K", 256, 176),
    GgmlType(14, "Q6_K", 256, 210),
    GgmlType(15, "Q8_K", 256, 292),
    GgmlType(16, "IQ2_XXS", 256, 66),
    GgmlType(17, "IQ2_XS", 256, 74),
    GgmlType(18, "IQ3_XXS", 256, 98),
    GgmlType(19, "IQ1_S", 256, 50),
    GgmlType(20, "IQ4_NL", 32, 18),
    GgmlType(21, "IQ3_S", 256, 110),
    GgmlType(22, "IQ2_S", 256, 82),
    GgmlType(23, "IQ4_XS", 256, 136),
    GgmlType(24, "I8", 1, 1, "I8"),
    GgmlType(25, "I16", 1, 2, "I16"),
    GgmlType(26, "I32", 1, 4, "I32"),
    GgmlType(27, "I64", 1, 8, "I64"),
    GgmlType(28, "F64", 1, 8, "F64"),
    GgmlType(29, "IQ1_M", 256, 56),
    GgmlType(30, "BF16", 1, 2, "BF16"),
    GgmlType(34, "TQ1_0", 256, 54),
    GgmlType(35, "TQ2_0", 256, 66),
    GgmlType(39, "MXFP4", 32, 17),
    GgmlType(40, "NVFP4", 64, 36),
    GgmlType(41, "Q1_0", 128, 18),
    GgmlType(42, "Q2_0", 64, 18),
)
BY_NUMBER: dict[int, GgmlType] = {one.number: one for one in _TABLE}
BY_NAME: dict[str, GgmlType] = {one.name: one for one in _TABLE}
OF_DTYPE: dict[str, GgmlType] = {one.dtype: one for one in _TABLE if one.dtype}

# Numbers that ggml no longer reads, and the types of the same weights that took their place
REMOVED: dict[int, tuple[str, str]] = {
    4: ("Q4_2", "Q4_0"),
    5: ("Q4_3", "Q4_1"),
    31: ("Q4_0_4_4", "Q4_0"),
    32: ("Q4_0_4_8", "Q4_0"),
    33: ("Q4_0_8_8", "Q4_0"),
    36: ("IQ4_NL_4_4", "IQ4_NL"),
    37: ("IQ4_NL_4_8", "IQ4_NL"),
    38: ("IQ4_NL_8_8", "IQ4_NL"),
}

QUANTIZATION_VERSION = 2  # of the blocks (GGML_QNT_VERSION)

# What a file is called whose tensors are mostly of a type (llama.h: enum llama_ftype), of mixtures the medium one
FILE_TYPES: dict[str, int] = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 12,
    "Q4_K": 15,
    "Q5_K": 17,
    "Q6_K": 18,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ2_S": 28,
    "IQ4_XS": 30,
    "IQ1_M": 31,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "MXFP4": 38,
    "NVFP4": 39,
    "Q1_0": 40,
}
