"""NF4: codes of 4 bits for the quantiles of a normal distribution, with one scale for a block of weights.

    w ≈ s · level[c],   c the nearest of 16 levels from −1 to 1, one of which is exactly 0

QLoRA's data type (arXiv 2305.14314). The blocks run over the flattened tensor. `--method absmax` takes each block's
largest magnitude for s, as bitsandbytes does; `search` takes the s near it that minimises the block's squared
error, which the same bytes and the same loaders allow; with `--signed-scales` of either sign, since the levels are
not symmetric. `--double-quant` stores the scales in 8 bits:
s ≈ map[c]·a + o, with one a for 256 scales and one o, their mean, for the tensor.

Stored, for `NAME` of n weights in blocks of g (bitsandbytes' layout, first weight of a byte in the high nibble):

* `NAME` U8 [⌈n/2⌉, 1]; `NAME.absmax` F32 [⌈n/g⌉]; `NAME.quant_map` F32 [16], the levels;
  `NAME.quant_state.bitsandbytes__nf4` U8, JSON: quant_type, blocksize, dtype, shape;
* with double quantization `NAME.absmax` is U8, and beside it are `NAME.nested_absmax` F32 [⌈n/g/256⌉] and
  `NAME.nested_quant_map` F32 [256], and the state says nested_blocksize, nested_dtype, nested_offset (padded with
  spaces to a fixed length).

Where g does not divide the rows, as many rows as whole blocks need are taken together; where blocks never end
with a row (n is no multiple of g) it is the whole tensor, up to 2^21 weights. With double quantization a survey
remembers a scale for each block, n/16 bytes.
Error: at most 0.152·s where nothing is clipped; a quarter of the block's largest weight with `search`; with double
quantization, whose scales are rough, never more than the weight itself.

`levels.py` finds codes and scales, `bitsandbytes_state.py` describes them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, ClassVar, Literal

from compressor.core.errors import InputError, UsageError
from compressor.core.floats import epsilon, smallest
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Encoder, Survey
from compressor.methods.numerics.compensated import by_columns
from compressor.methods.options import option
from compressor.methods.parts import Part
from compressor.methods.quantize._compensating import ACT_ORDER_HELP, DAMP_HELP, METHOD_HELP, Compensating
from compressor.methods.quantize._importance import importance
from compressor.methods.quantize.nf4 import bitsandbytes_state, levels

_WHOLE = 1 << 21  # weights of a tensor that is taken whole


@dataclass(frozen=True)
class Nf4(Compensating):
    """4-bit codes for normally distributed weights, as bitsandbytes stores them."""

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "nf4"

    group_size: int = option(64, help="weights that share a scale: a power of two", low=32, high=4096)
    double_quant: bool = option(False, help="store the scales in 8 bits too", off="single-quant")
    method: Literal["search", "absmax", "gptq"] = option("search", help=METHOD_HELP)
    damp: float | None = option(None, help=DAMP_HELP, low=0)
    act_order: bool = option(False, help=ACT_ORDER_HELP, off="plain-order")
    signed_scales: bool = option(False, help="a search may choose negative scales too", off="positive-scales")

    informed: bool = False  # a search weighs errors by the layer's inputs
    storage: str = "U8"  # in files of others: the dtype that the bytes of codes lie in
    state_bytes: int = 0  # in files of others: how long the quant_state is

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size & (self.group_size - 1):
            raise UsageError(f"group_size must be 32, 64, 128, … 4096, not {self.group_size}")
        if self.signed_scales and (self.method == "absmax" or self.double_quant):
            raise UsageError("signed_scales holds for methods search and gptq, with scales in float32, only")

    def describe(self) -> dict[str, Any]:
        """Without what is off by default: as records of files before it was an option."""
        return {key: said for key, said in super().describe().items() if key != "signed_scales" or said}

    def check(self, spec: TensorSpec) -> None:
        """UsageError also for rows in which blocks of gptq's columns do not end."""
        super().check(spec)
        if self.by_inputs and spec.matrix[1] % self.group_size:
            raise UsageError(
                f"method gptq needs blocks that end with a row, and {self.group_size} does not divide the row of "
                f"{spec.matrix[1]}",
                tensor=spec.name,
                remedy="Use --method search for it with --set, or --exclude it",
            )

    # ---- what is stored ----------------------------------------------------------------------------

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        """Raises UsageError for a large tensor whose last block would be short."""
        every, blocks = self._every(spec), -(-spec.size // self.group_size)
        nbytes, itemsize = -(-spec.size // 2), DTYPES[self.storage].bits // 8
        if nbytes % itemsize:
            raise UsageError(f"its codes do not fill {self.storage} elements", tensor=spec.name)
        state = bitsandbytes_state.to_json(spec, self.group_size, nested=self.double_quant)
        length = self.state_bytes or len(state)
        known = tuple(state) if not self.double_quant and not self.state_bytes else None
        found = (
            Part("", self.storage, (nbytes // itemsize, 1), every),
            Part(".absmax", "U8" if self.double_quant else "F32", (blocks,), every),
            Part(".quant_map", "F32", (len(levels.LEVELS),), every=0),
            Part(bitsandbytes_state.SUFFIX, "U8", (length,), every=0, value=known),
        )
        if not self.double_quant:
            return found
        nested = -(-blocks // bitsandbytes_state.BLOCK)
        return (
            *found,
            Part(".nested_absmax", "F32", (nested,), every=0),
            Part(".nested_quant_map", "F32", (256,), every=0),
        )

    def _every(self, spec: TensorSpec) -> int:
        """Rows after which a block ends with a row."""
        rows, columns = spec.matrix
        every = self.group_size // gcd(columns, self.group_size)
        if rows <= every or rows % every == 0:
            return every
        if spec.size > _WHOLE:
            raise UsageError(
                f"its {spec.size} weights are no multiple of the group size {self.group_size}, "
                f"and it is too large to be taken whole",
                tensor=spec.name,
                remedy="Use another scheme for it with --set, or --exclude it",
            )
        return rows

    def dialect(self, spec: TensorSpec) -> str:
        return "bitsandbytes" if len(spec.shape) == 2 else ""

    def config(self, spec: TensorSpec) -> dict[str, Any] | None:
        return {"bnb_4bit_use_double_quant": self.double_quant}

    def remark(self, spec: TensorSpec) -> str:
        if spec.matrix[1] % self.group_size == 0:
            return ""
        return (
            f"rows that are no multiple of {self.group_size} long: bitsandbytes 0.50 misreads blocks that cross "
            "rows on processors with AVX-512, those of its own files too; `restore` does not"
        )

    def prepare(self, specs: Sequence[TensorSpec]) -> BlockScales | Encoder:
        return BlockScales(self, bitsandbytes_state.limit(specs[0])) if self.double_quant else OwnScales(self)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """Half the widest gap, or what is clipped; and what rounding adds."""
        clipped = 0 if self.method == "absmax" else 1 - levels.LEAST
        scale = 1 if self.method == "absmax" else levels.MOST
        share = 1 if self.double_quant else max(levels.WIDEST * scale, clipped)
        rounding = (2 * epsilon(spec.dtype) + 8 * epsilon("F32")) * largest
        return (share + self.further) * largest + rounding + smallest(spec.dtype) + 2 * smallest("F32")

    # ---- the kernels -------------------------------------------------------------------------------

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        """Raises InputError for a quant_state that contradicts `spec`, and for scales that are no numbers."""
        state = parts[bitsandbytes_state.SUFFIX].tobytes()
        offset = bitsandbytes_state.check(state, spec, self.group_size, nested=self.double_quant)
        scale = parts[".absmax"].reshape(-1)
        if self.double_quant:
            first = start * spec.matrix[1] // self.group_size
            tables = parts[".nested_quant_map"], parts[".nested_absmax"]
            scale = bitsandbytes_state.decoded(scale, first, *tables, offset)
        if not np.isfinite(scale).all():
            raise InputError("its absmax holds a NaN or an infinity", tensor=spec.name, remedy="Mend the source")
        packed = parts[""].reshape(-1).view("|u1")
        self.restore(packed, scale, out, work)

    def restore(self, packed: Array, scale: Array, out: Array, work: Workspace) -> None:
        """Levels times scales into `out`, whatever its float type; the last block may be short of weights."""
        size = len(scale) * self.group_size
        if 2 * len(packed) < size:
            whole = work.array("nf4.filled", (size // 2,), "|u1")
            whole[: len(packed)], whole[len(packed) :] = packed, 0
            packed = whole
        numbers = work.array("nf4.numbers", (len(scale), self.group_size), "<f4")
        levels.unpack(packed, numbers)
        if out.size == size and out.dtype == numbers.dtype:
            np.multiply(numbers, scale[:, None], out=out.reshape(numbers.shape))
        else:
            np.multiply(numbers, scale[:, None], out=numbers)
            out.reshape(-1)[...] = numbers.reshape(-1)[: out.size]

    def blocks_of(self, block: Block) -> Array:
        """The values as float32 [blocks, group_size], a short last block filled up with zeros."""
        values, size = block.values, -(-block.values.size // self.group_size) * self.group_size
        if values.size == size and values.dtype == np.float32:
            return values.reshape(-1, self.group_size)
        filled = block.work.array("nf4.values", (size,), "<f4")
        with np.errstate(over="ignore"):
            filled[: values.size] = values.reshape(-1)
        filled[values.size :] = 0
        if values.dtype != np.float32 and not np.isfinite(filled).all():
            raise InputError(
                "holds weights beyond the range of float32, in which nf4 keeps its scales",
                tensor=block.spec.name,
                remedy="Exclude it",
            )
        return filled.reshape(-1, self.group_size)

    def heed(self, block: Block) -> Array | None:
        """What errors of the weights count, float32 [blocks, group_size]; None where all count alike."""
        return importance(block, self.group_size, "<f4") if self.informed else None

    def wanted(self, blocks: Array, spec: TensorSpec, work: Workspace, heed: Array | None = None) -> Array:
        """The scale of each block, float32; 0 for a block of zeros. `heed` is what errors count, unless alike."""
        absmax = levels.magnitudes(blocks, work)
        if self.method == "absmax":
            return absmax
        limit = bitsandbytes_state.limit(spec)
        scale = levels.fitted(blocks, absmax, limit, work, heed)
        if not self.signed_scales:
            return scale
        turned = np.negative(blocks, out=work.array("nf4.turned", blocks.shape, "<f4"))
        other = levels.fitted(turned, absmax, limit, work, heed)
        better = levels.lost(turned, other, heed, work) < levels.lost(blocks, scale, heed, work)
        return np.where(better, -other, scale)


@dataclass(frozen=True)
class _Encoder(Encoder):
    """Codes by the scales that subclasses know."""

    scheme: Nf4

    @property
    def decoder(self) -> Nf4:
        return self.scheme

    @abstractmethod
    def _scales(
        self, blocks: Array, first: int, spec: TensorSpec, work: Workspace, heed: Array | None = None
    ) -> tuple[Array, Array]:
        """Of these blocks of the tensor, from the one of this number on: the scales as stored, and as numbers.
        `heed` is what errors count, as for `Nf4.wanted`."""

    @abstractmethod
    def _store_tables(self, parts: Mapping[str, Array], spec: TensorSpec) -> None:
        """Fill the parts that belong to the whole tensor."""

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        spec, work = block.spec, block.work
        blocks = self.scheme.blocks_of(block)
        first = block.start * spec.matrix[1] // self.scheme.group_size
        codes = work.array("nf4.codes", blocks.shape, "|u1")
        if self.scheme.by_inputs:
            stored, scale = self._compensated(block, blocks, first, codes)
        else:
            stored, scale = self._scales(blocks, first, spec, work, self.scheme.heed(block))
            scaled = work.array("nf4.scaled", blocks.shape, "<f4")
            with np.errstate(over="ignore"):  # a tiny 8-bit scale under a large weight: the outermost level
                np.divide(blocks, scale[:, None], out=scaled)
            levels.nearest(scaled, codes, work)
        packed = levels.pack(codes, work)
        if parts is not None:
            bytes_of = parts[""].reshape(-1)
            bytes_of[...] = packed[: bytes_of.size]
            parts[".absmax"][...] = stored.reshape(parts[".absmax"].shape)
            if block.start == 0:
                parts[".quant_map"][...] = levels.levels()
                self._store_tables(parts, spec)
        self.scheme.restore(packed, scale, restored, work)

    def _compensated(self, block: Block, blocks: Array, first: int, codes: Array) -> tuple[Array, Array]:
        """The scales of these blocks, as stored and as numbers; `codes` [blocks, group_size] are those of least
        error of the layer's outputs. InputError where the gram of its inputs cannot be used."""
        scheme, spec, work = self.scheme, block.spec, block.work
        values, kept = blocks.reshape(block.values.shape), codes.reshape(block.values.shape)
        size = scheme.group_size

        def choose(weights: Array, column: int) -> _Columns:
            shape = weights.shape[:2]
            stored, scale = self._scales(weights.reshape(-1, size), first, spec, work)
            return _Columns(stored.reshape(shape), scale.reshape(shape), size, column, kept, work)

        static = scheme.act_order or scheme.double_quant  # whose scales a survey found
        groups = by_columns(
            block, values, size, choose, damp=scheme.damp, act_order=scheme.act_order, static=static
        )
        stored, scale = (
            np.concatenate([getattr(group, name) for group in groups], axis=1).reshape(-1)
            for name in ("stored", "scale")
        )
        return stored, scale


@dataclass(frozen=True)
class _Columns:
    """Blocks of `size` from the column `first` on, of these scales [rows, blocks], as stored and as numbers; their
    codes go to `codes` [rows, columns]."""

    stored: Array
    scale: Array
    size: int
    first: int
    codes: Array
    work: Workspace

    def round(self, target: Array, place: int) -> Array:
        scale = self.scale[:, (place - self.first) // self.size].astype(np.float64)
        codes = np.empty((1, len(target)), np.uint8)
        with np.errstate(over="ignore"):  # beyond the outermost level
            scaled = (target / scale).astype(np.float32)
        levels.nearest(scaled[None], codes, self.work)
        self.codes[:, place] = codes[0]
        restored: Array = levels.levels()[codes[0]] * scale
        return restored


@dataclass(frozen=True)
class OwnScales(_Encoder):
    """Scales in float32, found block by block."""

    def _scales(
        self, blocks: Array, first: int, spec: TensorSpec, work: Workspace, heed: Array | None = None
    ) -> tuple[Array, Array]:
        scale = self.scheme.wanted(blocks, spec, work, heed)
        scale[scale == 0] = 1  # any would do
        return scale, scale

    def _store_tables(self, parts: Mapping[str, Array], spec: TensorSpec) -> None:
        """The levels are all that there is."""


@dataclass(frozen=True)
class NestedScales(_Encoder):
    """Scales in 8 bits, which a survey found for the tensor."""

    scales: bitsandbytes_state.Nested

    def _scales(
        self, blocks: Array, first: int, spec: TensorSpec, work: Workspace, heed: Array | None = None
    ) -> tuple[Array, Array]:
        return self.scales.codes(first, len(blocks)), self.scales.decoded(first, len(blocks))

    def _store_tables(self, parts: Mapping[str, Array], spec: TensorSpec) -> None:
        parts[".nested_absmax"][...] = self.scales.magnitudes
        parts[".nested_quant_map"][...] = bitsandbytes_state.dynamic_map()
        group = self.scheme.group_size
        state = bitsandbytes_state.to_json(spec, group, nested=True, offset=self.scales.offset)
        parts[bitsandbytes_state.SUFFIX][...] = np.frombuffer(state, np.uint8)


@dataclass(frozen=True)
class BlockScales(Survey[dict[int, Array]]):
    """The wanted scale of every block, by the first row of the blocks that were looked at together."""

    method: Nf4
    limit: float

    def start(self) -> dict[int, Array]:
        return {}

    def observe(self, block: Block, stats: dict[int, Array]) -> dict[int, Array]:
        blocks = self.method.blocks_of(block)
        stats[block.start] = self.method.wanted(blocks, block.spec, block.work, self.method.heed(block))
        return stats

    def merge(self, stats: dict[int, Array], more: dict[int, Array]) -> dict[int, Array]:
        return stats | more

    def conclude(self, stats: dict[int, Array]) -> NestedScales:
        wanted, place = np.empty(sum(map(len, stats.values())), np.float32), 0
        for start in sorted(stats):
            scales = stats.pop(start)  # so that all scales are not there twice
            wanted[place : place + len(scales)] = scales
            place += len(scales)
        return NestedScales(self.method, bitsandbytes_state.Nested.of(wanted, self.limit))


METHOD = Nf4
