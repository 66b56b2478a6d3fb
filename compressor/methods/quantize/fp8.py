"""FP8: 8-bit floats (E4M3, or E5M2) with one scale for a tensor, a row, or a block of 128 × 128.

    w ≈ q · s,  q a float8 number of at most 448 (e5m2: 57344),  absmax: s = max|w| / 448

`search` (the default) also tries larger scales, s · 2^(k/8) for k up to 7, and keeps the one of least squared
error for every row or block: which weights lie just above a power of two, where steps double, is worth 2 % of the
error. By tensor it is not worth another pass, and both are the same. Parts that loaders fuse (q/k/v, gate/up) share
the scale of a tensor. Divided in float32 (float64 for float64 weights) by the scale as stored, clamped before it
is rounded, halves to even. A zero stays exactly zero.

Stored, for `NAME` [rows, columns]: `NAME` F8_E4M3 (F8_E5M2) [rows, columns]; `NAME_scale` in the weight's dtype
(F32 for FP8 weights), [1] by tensor, [rows, 1] by channel, [⌈rows/128⌉, ⌈columns/128⌉] by block. E4M3 matrices are
compressed-tensors' own layouts, and the names differ in what loaders do with activations:

* `float-quantized`: they are rounded to 8 bits too, token by token (by block: every 128 of a token);
* `naive-quantized`: they are left as they are; `auto` takes it where 128 does not divide the rows of blocks.

E5M2, and tensors that are no matrices, only `restore` reads.
Error: at most 2^-4 of the weight (e5m2: 2^-3), and less than 2^-10 (2^-17) of a scale for the smallest.

    compressor quantize model -o small --scheme fp8 --granularity block
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from compressor.core.errors import UsageError
from compressor.core.floats import epsilon, is_float, smallest, widen
from compressor.core.floats import largest as limit
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Encoder, ReadableScheme
from compressor.methods.numerics import scales
from compressor.methods.numerics.largest_magnitude import Largest
from compressor.methods.numerics.minifloat import E4M3, E5M2, Minifloat, spread
from compressor.methods.numerics.scales import extent
from compressor.methods.options import option
from compressor.methods.parts import Part

# Scales that the search tries within a factor of two: 2^(k/8), to the last bit
_TRIALS = (
    1.0,
    1.0905077326652577,
    1.189207115002721,
    1.2968395546510096,
    1.4142135623730951,
    1.5422108254079407,
    1.681792830507429,
    1.8340080864093424,
)


@dataclass(frozen=True)
class Scales:
    """How the scales are stored; other than like this in strangers' files only.

    They are called NAME + `suffix`, NAME without `.weight` where `stem` says so; `dtype` "" is ours to choose;
    `single` is the shape of a tensor's only scale; `block` the rows and columns that share one.
    """

    suffix: str = "_scale"
    dtype: str = ""
    single: tuple[int, ...] = (1,)
    block: tuple[int, int] = (128, 128)
    stem: bool = False

    def dtype_for(self, spec: TensorSpec) -> str:
        """The dtype of the scales of this tensor."""
        return self.dtype or ("F32" if spec.dtype.startswith("F8") else spec.dtype)


@dataclass(frozen=True)
class Fp8(ReadableScheme):
    """8-bit floats with a scale for a tensor, a row or a block."""

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "fp8"

    element: Literal["e4m3", "e5m2"] = option("e4m3", help="bits of exponent and mantissa")
    granularity: Literal["tensor", "channel", "block"] = option("channel", help="what shares a scale")
    method: Literal["search", "absmax"] = option("search", help="how scales are chosen")
    layout: Literal["auto", "float-quantized", "naive-quantized"] = option(
        "auto", help="stored layout: activations are rounded too (float-), or not (naive-quantized)"
    )

    scales: Scales = Scales()

    # ---- what is stored ----------------------------------------------------------------------------

    @property
    def minifloat(self) -> Minifloat:
        """The kind of float that a code is."""
        return E4M3 if self.element == "e4m3" else E5M2

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        codes = Part("", f"F8_{self.element.upper()}", spec.shape)
        suffix, dtype = self.scales.suffix, self.scales.dtype_for(spec)
        if not is_float(dtype):
            raise UsageError(f"its scale is {dtype}, and only floats multiply", tensor=spec.name)
        if self.granularity == "tensor":
            return codes, Part(suffix, dtype, self.scales.single, every=0, stem=self.scales.stem)
        if self.granularity == "channel":
            return codes, Part(suffix, dtype, (rows, 1), stem=self.scales.stem)
        high, wide = self.scales.block
        shape = (-(-rows // high), -(-columns // wide))
        return codes, Part(suffix, dtype, shape, every=high, stem=self.scales.stem)

    def config(self, spec: TensorSpec) -> dict[str, Any] | None:
        if self.element != "e4m3" or len(spec.shape) != 2:
            return None
        common = {"num_bits": 8, "type": "float", "symmetric": True}
        weights = {**common, "group_size": None, "strategy": self.granularity, "dynamic": False}
        activations = {**common, "group_size": None, "strategy": "token", "dynamic": True}
        layout = "float-quantized" if self.layout == "auto" else self.layout
        if self.granularity == "block":
            weights["block_structure"] = list(self.scales.block)
            activations |= {"group_size": self.scales.block[1], "strategy": "group"}
            if self.layout == "auto" and spec.shape[1] % self.scales.block[1]:
                layout = "naive-quantized"
        return {
            "format": layout,
            "weights": weights,
            "input_activations": activations if layout == "float-quantized" else None,
            "output_activations": None,
        }

    @property
    def label(self) -> str:
        return self.id if self.element == "e4m3" else f"{self.id}-{self.element}"

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "model" if self.granularity == "tensor" else "tensor"

    def prepare(self, specs: Sequence[TensorSpec]) -> Largest | Encoder:
        return Largest(partial(OneScale, self)) if self.granularity == "tensor" else OwnScales(self)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """Half a step of the largest weight, and what storing scale and result in their dtypes adds."""
        dtype, top = self.scales.dtype_for(spec), self.minifloat.largest
        half_step = 2.0 ** -(self.minifloat.mantissa + 1)
        slack = 4 * epsilon(dtype) * largest + top * smallest(dtype)
        return half_step * largest + slack + 2 * epsilon(spec.dtype) * largest + smallest(spec.dtype)

    # ---- the kernels -------------------------------------------------------------------------------

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        codes, kind = parts[""].reshape(out.shape), out.dtype.str
        self.minifloat.table(kind).take(codes, out=out, mode="wrap")
        numbers = widen(parts[self.scales.suffix], self.scales.dtype_for(spec), Workspace())
        for run, rows in self.runs(len(out)):
            held = numbers[run : run + 1] if self.granularity == "block" else numbers
            scale = self.as_columns(held, out)
            np.multiply(out[rows], spread(scale, out.shape[1], self.size(out.shape[1])), out=out[rows])

    def runs(self, rows: int) -> Iterator[tuple[int, slice]]:
        """The rows that are treated at once, with the number of their run of scales."""
        step = self.scales.block[0] if self.granularity == "block" else max(rows, 1)
        for run, first in enumerate(range(0, rows, step)):
            yield run, slice(first, min(first + step, rows))

    def size(self, columns: int) -> int:
        """How many values of a row share a scale."""
        return self.scales.block[1] if self.granularity == "block" else max(columns, 1)

    def as_columns(self, scale: Array, values: Array) -> Array:
        """Scales of a run of rows as numbers of the values' type, [rows or 1, segments of a row]."""
        numbers = scale.astype(values.dtype, copy=False)
        return numbers.reshape(1, -1) if self.granularity == "block" else numbers.reshape(-1, 1)

    def stored(self, high: Array, factors: Sequence[float], spec: TensorSpec) -> Array:
        """The scales for units whose largest magnitudes are `high`, times each factor, as stored, [factors, units]:
        never 0, never so large that a code leaves the range of the weight's dtype, and where its dtype is coarse
        rather too large."""
        dtype, top = self.scales.dtype_for(spec), self.minifloat.largest
        wanted = high.astype(np.float64) / top
        wanted[(wanted == 0) & (high > 0)] = smallest("F64")
        stored, numbers = scales.store_scale(wanted * np.array(factors)[:, None], int(top), dtype, spec.dtype)
        beyond = top * (1 + 2.0 ** -(self.minifloat.mantissa + 2))  # what still rounds to the largest, nearly
        short = numbers.astype(np.float64) * beyond < high
        if short.any():
            patterns = stored.view(f"<u{stored.itemsize}")  # positive floats step up as their bit patterns do
            up = (patterns + short.astype(patterns.dtype)).view(stored.dtype)
            fits = widen(up, dtype, Workspace()).astype(np.float64) <= limit(spec.dtype) / top
            stored = np.where(fits, up, stored)
        return stored


@dataclass(frozen=True)
class _Encoder(Encoder):
    """Codes by the scales that subclasses choose."""

    scheme: Fp8

    @property
    def decoder(self) -> Fp8:
        return self.scheme

    @abstractmethod
    def _scales(self, values: Array, spec: TensorSpec, work: Workspace) -> Array:
        """The stored scales of some rows, one for each unit."""

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        scheme, values, spec, work = self.scheme, block.values, block.spec, block.work
        dtype = scheme.scales.dtype_for(spec)
        for run, rows in scheme.runs(len(values)):
            piece = values[rows]
            codes = None if parts is None else parts[""].reshape(values.shape)[rows]
            with np.errstate(all="ignore"):
                stored = self._scales(piece, spec, work)
                scale = scheme.as_columns(widen(stored, dtype, Workspace()), piece)
                size = scheme.size(piece.shape[1])
                scheme.minifloat.quantize(piece, scale, size, codes, restored[rows], work)
            if parts is not None and (block.start == 0 or scheme.granularity != "tensor"):
                held = parts[scheme.scales.suffix]
                held = held[run : run + 1] if scheme.granularity == "block" else held
                held[...] = stored.reshape(held.shape)


@dataclass(frozen=True)
class OneScale(_Encoder):
    """The scale of a tensor follows from its `largest` magnitude, by name."""

    largest: Mapping[str, float]

    def _scales(self, values: Array, spec: TensorSpec, work: Workspace) -> Array:
        stored: Array = self.scheme.stored(np.array([self.largest[spec.name]]), [1.0], spec)[0]
        return stored


@dataclass(frozen=True)
class OwnScales(_Encoder):
    """Each row or block has a scale of its own, the range's or one that is searched."""

    rows_alone: ClassVar[bool] = True

    def _scales(self, values: Array, spec: TensorSpec, work: Workspace) -> Array:
        scheme = self.scheme
        size = scheme.size(values.shape[1])
        high = self._largest(values, size, work)
        tried = scheme.stored(high, _TRIALS[:1] if scheme.method == "absmax" else _TRIALS, spec)
        if len(tried) == 1:
            return tried.reshape(high.shape)
        numbers = widen(tried, scheme.scales.dtype_for(spec), Workspace()).astype(values.dtype)
        segments = scheme.as_columns(numbers[0], values).shape
        errors = scheme.minifloat.errors(values, numbers.reshape(len(tried), *segments), size, work)
        error = self._by_unit(np.add, errors) * np.square(numbers / numbers[0])
        error[~(error < np.inf)] = np.inf  # the first of those that are no numbers, as of equal ones
        best: Array = np.take_along_axis(tried, error.argmin(axis=0)[None], axis=0)[0]
        return best

    def _largest(self, values: Array, size: int, work: Workspace) -> Array:
        """The largest magnitude of each unit of some rows, [units]."""
        rows, columns = values.shape
        if columns % size == 0:
            scratch = work.array("fp8.magnitudes", values.shape, values.dtype.str)
            shape = (rows, columns // size, size)
            high = extent(values.reshape(shape), True, scratch.reshape(shape))[1]
        else:
            high = np.maximum.reduceat(np.abs(values), np.arange(0, columns, size), axis=1)
        return self._by_unit(np.maximum, high)

    def _by_unit(self, ufunc: Any, segments: Array) -> Array:
        """What is known of the segments of rows […, rows, segments], of each unit."""
        by_block = self.scheme.granularity == "block"
        found: Array = ufunc.reduce(segments, axis=-2) if by_block else segments[..., 0]
        return found


METHOD = Fp8
