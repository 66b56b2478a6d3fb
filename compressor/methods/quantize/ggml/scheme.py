"""ggml's types as schemes: what llama.cpp, Ollama and LM Studio read, written with searched scales.

Weights of a row share a scale by 32 (Q4_0 … Q8_0, IQ4_NL, MXFP4) or lie in blocks of 256 with quantized scales for
each 16 or 32 (K types, IQ4_XS) or without (TQ1_0, TQ2_0). `search.py` says how scales are found; where statistics
of the layers' inputs are given, mean squares of the inputs weigh the errors of the columns, as llama.cpp's
importance matrix does. F32, F16 and BF16 are plain roundings.

Stored: `NAME` U8 [.., bytes of a row's blocks], ggml's own layout (`ggml-common.h`), which a `.gguf` holds as it
is; F32, F16 and BF16: `NAME` in that dtype.

Error: on normally distributed weights, in the Frobenius norm, from 0.5 % (Q8_0) to 26 % (Q2_K) and 43 % (TQ1_0,
TQ2_0); docs/methods.md has a table. A block of n weights loses in the sum of squares no more than about what n of
the largest would be, and so a weight at most 1.5 √n times the largest, which bounds it where nothing weighs
errors.

    compressor quantize model.gguf -o small.gguf --scheme q4_k
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import ClassVar, Literal, Self

from compressor.core.errors import InputError, UsageError
from compressor.core.floats import epsilon, narrow, smallest, widen
from compressor.core.floats import largest as limit
from compressor.core.ggml_types import BY_NAME, GgmlType
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Decoder, Encoder, PlainEncoder, Prepared, Scheme
from compressor.methods.parts import Part

LEAST_IMPORTANT = 1e-6  # of the mean: columns whose inputs are zero keep so much weight


def importance(square: Array) -> Array | None:
    """Mean squares of inputs [columns] as weights of columns with a mean of 1, float32; None where all are zero."""
    mean = float(square.sum()) / max(square.size, 1)
    if not 0 < mean < inf:
        return None
    found: Array = np.maximum(square / mean, LEAST_IMPORTANT).astype(np.float32)
    return found


@dataclass(frozen=True)
class GgmlScheme(Scheme, Encoder):
    """Blocks of a ggml type, with searched scales."""

    verb: ClassVar[str] = "quantize"
    inputs_by_expert: ClassVar[bool] = True
    type: ClassVar[str]
    other: ClassVar[str]  # the scheme that llama.cpp takes where the block does not divide a row

    informed: bool = False  # errors are weighed by the inputs of layers

    @property
    def in_gguf(self) -> str:
        return "pure"

    @property
    def ggml_type(self) -> GgmlType:
        """The row of the table of types."""
        return BY_NAME[self.type]

    @property
    def keeps_zeros(self) -> bool:  # type: ignore[override]
        from compressor.methods.quantize.ggml.encoder import ENCODERS  # here: every help page imports this module

        return ENCODERS[self.type].keeps_zeros

    @property
    def rows_alone(self) -> bool:  # type: ignore[override]
        return not self.informed

    @property
    def statistics(self) -> Literal["", "square", "gram"]:  # type: ignore[override]
        return "square" if self.informed else ""

    def with_statistics(self) -> Self:
        return replace(self, informed=True)

    @property
    def decoder(self) -> Decoder:
        from compressor.methods.quantize.ggml.decoder import GgmlBlocks

        return GgmlBlocks(self.type)

    def decoder_for(self, spec: TensorSpec) -> Decoder:
        return self.decoder

    def prepare(self, specs: Sequence[TensorSpec]) -> Prepared:
        return self

    def check(self, spec: TensorSpec) -> None:
        """UsageError where the block does not divide the row."""
        columns = spec.shape[-1] if spec.shape else 1
        if columns % self.ggml_type.block:
            raise UsageError(
                f"{self.id} has blocks of {self.ggml_type.block}, which do not divide the row of {columns}",
                tensor=spec.name,
            )

    def settled(self, spec: TensorSpec) -> tuple[Scheme, str]:
        """What llama.cpp takes where the block does not divide the row, and float16 where that does not either."""
        columns = spec.shape[-1] if spec.shape else 1
        if columns % self.ggml_type.block == 0:
            return self, ""
        why = f"since blocks of {self.ggml_type.block} do not divide the row of {columns}"
        other = BY_ID[self.other]
        if not issubclass(other, GgmlScheme):
            return other(), f"{self.other}, {why}"
        nearest, _ = other(informed=self.informed).settled(spec)
        return nearest, f"{nearest.id}, {why}"

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        values, spec = block.values, block.spec
        from compressor.methods.quantize.ggml.encoder import ENCODERS, encode_blocks

        own = ENCODERS[self.type]
        high = float(max(values.max(initial=0), -values.min(initial=0)))
        if not high <= min(own.largest, limit("F32")):
            raise InputError(
                f"holds weights up to {high:.3g}, and scales of {self.id} are float16",
                tensor=spec.name,
                remedy="Use --scheme bf16, or --exclude it",
            )
        work, kind = block.work, self.ggml_type
        if parts is None:
            width = values.shape[1] // kind.block * kind.nbytes
            blocks = work.array("ggml.blocks", (len(values), width), "|u1")
        else:
            blocks = parts[""].reshape(len(values), -1)
        found = restored
        if values.dtype != np.float32:
            values, found = values.astype(np.float32), work.array("ggml.restored", values.shape, "<f4")
        for rows, weights in self._weighed(block):
            encode_blocks(
                self.type,
                values[rows].reshape(-1, spec.shape[-1]),
                weights,
                blocks[rows].reshape(-1, spec.shape[-1] // kind.block * kind.nbytes),
                found[rows].reshape(-1, spec.shape[-1]),
            )
        if found is not restored:
            np.copyto(restored, found)
        if limit(spec.dtype) < limit("BF16") and float(np.abs(restored).max(initial=0)) > limit(spec.dtype):
            raise InputError(
                f"holds weights at the end of {spec.dtype}'s range, beyond which {self.id} rounds them",
                tensor=spec.name,
                remedy="Use --scheme int, or --exclude it",
            )

    @staticmethod
    def _weighed(block: Block) -> Iterator[tuple[slice, Array | None]]:
        """Rows of the block with the importance of their columns: one of all, or of experts one each."""
        if block.inputs is None:
            yield slice(None), None
            return
        square, columns = block.inputs.square, block.spec.shape[-1]
        if square.size == columns:
            yield slice(None), importance(square)
            return
        for row, own in enumerate(square.reshape(-1, columns)[block.start : block.start + len(block.values)]):
            yield slice(row, row + 1), importance(own)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """In the sum of squares a block loses no more than about its weights; where errors are weighed, unknown."""
        if self.informed:
            return inf
        return 1.5 * sqrt(self.ggml_type.block) * largest + 2 * epsilon(spec.dtype) * largest + smallest(spec.dtype)

    @property
    def label(self) -> str:
        return self.type

    @property
    def stored_name(self) -> str:
        return self.type


class Even4(GgmlScheme):
    """ggml's Q4_0: 4-bit integers, a float16 scale for 32."""

    id, type, other = "q4_0", "Q4_0", "f16"


class Range4(GgmlScheme):
    """ggml's Q4_1: 4-bit integers, a float16 scale and least value for 32."""

    id, type, other = "q4_1", "Q4_1", "f16"


class Even5(GgmlScheme):
    """ggml's Q5_0: 5-bit integers, a float16 scale for 32."""

    id, type, other = "q5_0", "Q5_0", "f16"


class Range5(GgmlScheme):
    """ggml's Q5_1: 5-bit integers, a float16 scale and least value for 32."""

    id, type, other = "q5_1", "Q5_1", "f16"


class Even8(GgmlScheme):
    """ggml's Q8_0: 8-bit integers, a float16 scale for 32."""

    id, type, other = "q8_0", "Q8_0", "f16"


class Q2K(GgmlScheme):
    """ggml's Q2_K: 2-bit integers, 4-bit scales and least values for 16."""

    id, type, other = "q2_k", "Q2_K", "q4_0"


class Q3K(GgmlScheme):
    """ggml's Q3_K: 3-bit integers, 6-bit scales for 16."""

    id, type, other = "q3_k", "Q3_K", "q4_0"


class Q4K(GgmlScheme):
    """ggml's Q4_K: 4-bit integers, 6-bit scales and least values for 32."""

    id, type, other = "q4_k", "Q4_K", "q5_0"


class Q5K(GgmlScheme):
    """ggml's Q5_K: 5-bit integers, 6-bit scales and least values for 32."""

    id, type, other = "q5_k", "Q5_K", "q5_1"


class Q6K(GgmlScheme):
    """ggml's Q6_K: 6-bit integers, 8-bit scales for 16."""

    id, type, other = "q6_k", "Q6_K", "q8_0"


class Iq4Nl(GgmlScheme):
    """ggml's IQ4_NL: 16 uneven levels, a float16 scale for 32."""

    id, type, other = "iq4_nl", "IQ4_NL", "f16"


class Iq4Xs(GgmlScheme):
    """ggml's IQ4_XS: 16 uneven levels, 6-bit scales for 32."""

    id, type, other = "iq4_xs", "IQ4_XS", "iq4_nl"


class GgmlMxfp4(GgmlScheme):
    """ggml's MXFP4: 4-bit floats, a power of two for 32."""

    id, type, other = "ggml-mxfp4", "MXFP4", "f16"


class Tq1(GgmlScheme):
    """ggml's TQ1_0: five ternary weights to a byte, a float16 scale for 256."""

    id, type, other = "tq1_0", "TQ1_0", "q4_0"


class Tq2(GgmlScheme):
    """ggml's TQ2_0: four ternary weights to a byte, a float16 scale for 256."""

    id, type, other = "tq2_0", "TQ2_0", "q4_0"


@dataclass(frozen=True)
class Rounded(PlainEncoder):
    """Numbers of a narrower float dtype, each rounded to the nearest."""

    verb: ClassVar[str] = "quantize"
    rows_alone: ClassVar[bool] = True
    dtype: ClassVar[str]

    @property
    def numbers(self) -> bool:
        return True

    @property
    def ggml(self) -> GgmlType:
        return BY_NAME[self.dtype]

    @property
    def in_gguf(self) -> str:
        return "pure"

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        return (Part("", self.dtype, spec.shape),)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        kinds = (self.dtype, spec.dtype)
        return 2 * sum(epsilon(kind) for kind in kinds) * largest + sum(smallest(kind) for kind in kinds)

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        stored = block.work.array("rounded.stored", block.values.shape, DTYPES[self.dtype].storage)
        narrow(block.values, self.dtype, stored)
        np.copyto(restored, widen(stored, self.dtype, block.work, "rounded.wide"))
        narrower = min(self.dtype, block.spec.dtype, key=limit)
        if not float(np.abs(restored).max(initial=0)) <= limit(narrower):
            raise InputError(
                f"holds weights beyond {narrower}'s range", tensor=block.spec.name, remedy="Use --exclude for it"
            )
        if parts is not None:
            np.copyto(parts[""].reshape(stored.shape), stored)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        np.copyto(out, widen(parts[""].reshape(out.shape), self.dtype, work, "rounded.wide"))


class F32(Rounded):
    """float32, which holds other dtypes of a `.gguf` as they are (float64 rounded)."""

    id, dtype = "f32", "F32"


class F16(Rounded):
    """float16."""

    id, dtype = "f16", "F16"


class BF16(Rounded):
    """bfloat16."""

    id, dtype = "bf16", "BF16"


_SCHEMES: tuple[type[GgmlScheme | Rounded], ...] = (
    *(Even4, Range4, Even5, Range5, Even8, Q2K, Q3K, Q4K, Q5K, Q6K),
    *(Iq4Nl, Iq4Xs, GgmlMxfp4, Tq1, Tq2, F32, F16, BF16),
)
BY_ID: Mapping[str, type[GgmlScheme | Rounded]] = {scheme.id: scheme for scheme in _SCHEMES}
_BY_TYPE: Mapping[str, type[GgmlScheme]] = {one.type: one for one in _SCHEMES if issubclass(one, GgmlScheme)}


def scheme_again(kind: GgmlType, *, zeros: bool) -> Scheme:
    """What stores a tensor that was stored as this type once it was changed: the scheme of the same type, or Q8_0
    where none is written here or, with `zeros` that were made and have to stay, where it has no zero."""
    own = _BY_TYPE.get(kind.name)
    return _BY_TYPE["Q8_0"]() if own is None or (zeros and not own().keeps_zeros) else own()
