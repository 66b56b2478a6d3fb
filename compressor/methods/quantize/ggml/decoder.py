"""Decoding ggml's blocks: what each of its types stands for, bit for bit as the package `gguf` tells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

from compressor.core import kernels
from compressor.core.errors import InputError, UsageError
from compressor.core.ggml_types import BY_NAME, GgmlType
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Decoder
from compressor.methods.parts import Part
from compressor.methods.quantize.ggml import (
    decode_grids,
    decode_k,
    decode_legacy,
    decode_levels,
    decode_ternary,
)

AT_ONCE = 1 << 17  # weights decoded in one call, so that what lies between is small

DECODE: Mapping[str, Callable[[Array, Array], None]] = {
    "Q4_0": decode_legacy.q4_0,
    "Q4_1": decode_legacy.q4_1,
    "Q5_0": decode_legacy.q5_0,
    "Q5_1": decode_legacy.q5_1,
    "Q8_0": decode_legacy.q8_0,
    "Q8_1": decode_legacy.q8_1,
    "Q2_K": decode_k.q2_k,
    "Q3_K": decode_k.q3_k,
    "Q4_K": decode_k.q4_k,
    "Q5_K": decode_k.q5_k,
    "Q6_K": decode_k.q6_k,
    "Q8_K": decode_k.q8_k,
    "IQ2_XXS": decode_grids.iq2_xxs,
    "IQ2_XS": decode_grids.iq2_xs,
    "IQ3_XXS": decode_grids.iq3_xxs,
    "IQ1_S": decode_grids.iq1_s,
    "IQ4_NL": decode_levels.iq4_nl,
    "IQ3_S": decode_grids.iq3_s,
    "IQ2_S": decode_grids.iq2_s,
    "IQ4_XS": decode_levels.iq4_xs,
    "IQ1_M": decode_grids.iq1_m,
    "TQ1_0": decode_ternary.tq1_0,
    "TQ2_0": decode_ternary.tq2_0,
    "MXFP4": decode_levels.mxfp4,
    "NVFP4": decode_levels.nvfp4,
    "Q1_0": decode_legacy.q1_0,
    "Q2_0": decode_legacy.q2_0,
}


def decode_blocks(name: str, blocks: Array, out: Array) -> None:
    """The weights of blocks [blocks, bytes], uint8 and C-ordered, of a type that is called so, into `out` [blocks,
    weights], float32. InputError where they are no numbers."""
    finite = kernels.ggml_numbers(name.lower(), blocks, out)
    if finite is None:
        with np.errstate(all="ignore"):
            DECODE[name](blocks, out)
            finite = bool(np.isfinite(out.sum(axis=1)).all())  # as its weights are, unless their sum is too large
        finite = finite or bool(np.isfinite(out).all())
    if not finite:
        raise InputError(
            f"a scale of its {name} blocks is NaN or infinite", remedy="Download it again, or quantize it anew"
        )


@dataclass(frozen=True)
class GgmlBlocks(Decoder):
    """Reads a tensor that is stored as blocks of a ggml `type`, under the tensor's own name: U8 [rows, bytes]."""

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "ggml"

    type: str

    @property
    def ggml(self) -> GgmlType:
        return BY_NAME[self.type]

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        if not self.ggml.divides(spec.shape):
            raise UsageError(
                f"its rows {list(spec.shape)} are no whole blocks of {self.ggml.block} weights", tensor=spec.name
            )
        return (Part("", "U8", self.ggml.stored_shape(spec.shape)),)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        blocks = parts[""].reshape(-1, self.ggml.nbytes)
        found = out if out.dtype == np.float32 else work.array("ggml.numbers", out.shape, "<f4")
        numbers = found.reshape(-1, self.ggml.block)
        step = max(AT_ONCE // self.ggml.block, 1)
        for first in range(0, len(blocks), step):
            try:
                decode_blocks(self.type, blocks[first : first + step], numbers[first : first + step])
            except InputError as error:
                error.tensor = spec.name
                raise
        if found is not out:
            np.copyto(out, found)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """Nobody knows what they stand for."""
        return inf

    def describe(self) -> dict[str, Any]:
        return {"scheme": "ggml-mxfp4" if self.type == "MXFP4" else self.type.lower()}  # mxfp4 stores otherwise

    @property
    def label(self) -> str:
        return self.type

    @property
    def stored_name(self) -> str:
        return self.type
