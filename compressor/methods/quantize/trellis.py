"""Trellis-coded quantization, with codes that are meant to be entropy-coded: less error than any even step.

    w ≈ n · Δ · factor of the row · factor of the column

The whole numbers n are chosen by a path of eight states through each row (`numerics/trellis.py`; Marcellin and
Fischer, IEEE Trans. Comm. 38, 1990): in every state the even ones, or the odd ones, are to choose from, so that a
code takes the bits of a step of 2Δ and the error is near that of a finer one. The path is the one of the least
Σ (w/Δ − n)² + λ · bits(code), λ = 2 ln 2 · 0.26, the slope of distortion over rate in units of Δ² (less below 5/3
bits), with bits(code) by the tensor's own codes. Its squared error is 20 % below that of `uniform` at the same
bits, and none can be more than 29 % below.

Δ is the least whose codes take `bits` a weight in an archive (`--store archive`): found on a sample of rows, and
corrected by what an even step takes of all rows beside the sample. Factors are those of `uniform`: data-free, or by
the inputs of layers with `--stats`; none where all would be 1. Without the archive a code takes one byte, or two
where one does not hold them.

Stored, for `NAME` [rows, columns], as by `uniform`: `NAME.codes` I8 [rows, columns]; where codes need two bytes
also `NAME.high` I8 [rows, columns], code = codes + 256 · high; `NAME.step` F32 (F64 of a float64 tensor) [1], Δ;
where there are factors `NAME.factors` I8 [rows + columns], exponents of 2^(1/4), rows first.
Error: up to 4 Δ times the factors, about 0.5 Δ as a rule. Zero does not always stay zero.

    Δ = 1: the codes [[1, 1, 0]] stand for n = 2·1 + 0, 2·1 + 1, 2·0 + 1: [[2, 3, 1]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, ClassVar, Literal

from compressor.core.elementary import LN2, log2
from compressor.core.errors import InputError
from compressor.core.floats import largest as limit
from compressor.core.floats import smallest
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Decoder, Encoder, Prepared, Scheme, Survey
from compressor.methods.numerics.even_steps import Classes, Points, entropy_of, in_float, root_of, step_for
from compressor.methods.numerics.factors import FAR as FAR_FACTOR
from compressor.methods.numerics.factors import Factors, power_of
from compressor.methods.numerics.trellis import FAR, codes_of, numbers_of
from compressor.methods.options import option
from compressor.methods.parts import Part
from compressor.methods.quantize._even_parts import (
    BYTE,
    CodeBytes,
    Found,
    check_steps,
    code_parts,
    entropy_for,
    error_bound,
    keep_in_range,
    normed,
    read_factors,
    split,
    step_dtype,
    with_factors,
)

DEFAULT_BITS = 4.5
_SLOPE = 2 * LN2 * 0.26
_SLOW = 0.6  # times the bits a weight: the share of the slope that is taken, 1 at most
_SAMPLE = 1 << 16  # weights whose paths are tried, about
_TURNS = 3  # in which costs and codes settle
_LARGEST = 32_000  # a code that a survey aims at, at most
_MISSED = 5e-4  # bits that a sample may be off


@dataclass(frozen=True)
class Trellis(Scheme):
    """Paths through a trellis of eight states, by rate and error, codes for an archive."""

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "trellis"
    keeps_zeros: ClassVar[bool] = False

    bits: float = option(DEFAULT_BITS, help="bits a weight in an archive that the step aims at", low=1, high=12)
    code_bytes: Literal[1, 2] | None = option(
        None, help="bytes of a code where it is not coded; unset: by the data"
    )
    factors: Literal["both", "none"] | None = option(
        None, help="factors of rows and columns before the step; unset: where they differ"
    )
    informed: bool = False  # factors of columns go by the layers' inputs

    @property
    def statistics(self) -> Literal["", "square", "gram"]:  # type: ignore[override]
        return "square" if self.informed else ""

    def with_statistics(self) -> Trellis | None:
        return replace(self, informed=True) if self._seeks_factors else None

    @property
    def _seeks_factors(self) -> bool:
        """Whether factors are looked for. What names its bytes says all that is stored by its options."""
        return self.factors == "both" or (self.factors is None and self.code_bytes is None)

    def decoder_for(self, spec: TensorSpec) -> TrellisCodes | None:
        return None if self.code_bytes is None else TrellisCodes(replace(self, informed=False), self.code_bytes)

    def check(self, spec: TensorSpec) -> None:
        """Any tensor has paths."""

    def align(self, spec: TensorSpec) -> int:
        return 1

    def prepare(self, specs: Sequence[TensorSpec]) -> Prepared:
        spec = specs[0]
        if not self._seeks_factors:
            return Sampling(self, spec, None)
        return with_factors(
            specs, always=self.factors == "both", after=lambda found: Sampling(self, spec, _only(found))
        )


@dataclass(frozen=True)
class TrellisCodes(Decoder):
    """Codes of one or two bytes, a step and factors; `asked` says how many bytes, and whether factors."""

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "trellis"

    asked: Trellis
    code_bytes: CodeBytes

    @property
    def scheme(self) -> Trellis:
        return self.asked

    def describe(self) -> dict[str, Any]:
        return self.asked.describe()

    @property
    def label(self) -> str:
        return f"trellis{self.asked.bits:g}"

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        codes = code_parts(spec, self.code_bytes, factors=self.asked.factors == "both")
        return (*codes, Part(".step", step_dtype(spec), (1,), every=0))

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """No step is longer than twice the largest weight, or what that is over its factors."""
        reach = power_of(4 * FAR_FACTOR) if self.asked.factors == "both" else 1.0
        return error_bound(8 * largest * reach, largest, spec)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        """Raises InputError where a step or a factor is none."""
        step, factors = parts[".step"].reshape(1, 1), read_factors(parts, spec)
        check_steps(step, factors, spec)
        low, high = (parts[name].reshape(out.shape) if name in parts else None for name in (".codes", ".high"))
        assert low is not None  # noqa: S101 - it is among the parts
        _restore((low, high), step, factors, start, spec, out)


@dataclass(frozen=True)
class Paths(Encoder):
    """A tensor whose step is known, and `costs` of codes from −256 on, in units of its square."""

    asked: Trellis
    step: float
    costs: bytes = field(repr=False)
    code_bytes: CodeBytes
    factors: Factors | None

    @property
    def decoder(self) -> TrellisCodes:
        asked = self.asked if self.factors is None else replace(self.asked, factors="both")
        return TrellisCodes(replace(asked, informed=False, code_bytes=self.code_bytes), self.code_bytes)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """A subset's nearest two numbers are at most four steps away."""
        reach = 1.0 if self.factors is None else self.factors.largest
        return error_bound(4 * (self.step + smallest(step_dtype(spec))) * reach, largest, spec)

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        values, kind = block.values, restored.dtype
        step = np.array([[self.step]], kind)
        x = np.divide(normed(block, self.factors), step).astype(np.float32, copy=False)
        codes = codes_of(x, np.frombuffer(self.costs, np.float32))
        low = np.empty(values.shape, np.int8)
        high = np.empty(values.shape, np.int8) if self.code_bytes == 2 else None
        if high is None:
            np.copyto(low, codes, casting="unsafe")
        else:
            split(codes, low, high, np.empty(values.shape, "<i2"))
        if parts is not None:
            np.copyto(parts[".codes"].reshape(values.shape), low)
            if high is not None:
                np.copyto(parts[".high"].reshape(values.shape), high)
            if block.start == 0:
                parts[".step"].reshape(-1)[...] = step[0]
                if self.factors is not None:
                    parts[".factors"].reshape(-1)[...] = self.factors.stored
        _restore((low, high), step, self.factors, block.start, block.spec, restored)


# ---- the step ------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """Of a tensor so far, its weights over their factors: counts of all, and rows of the sample by their number."""

    classes: Classes
    rows: dict[int, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling(Survey[Seen]):
    """Counts weights and keeps evenly spread rows; concludes with the step and the costs of codes."""

    method: Trellis
    spec: TensorSpec
    factors: Factors | None

    def start(self) -> Seen:
        return Seen(Classes.of(self.spec, scaled=self.factors is not None))

    def observe(self, block: Block, stats: Seen) -> Seen:
        values = normed(block, self.factors)
        stats.classes.add(values, block.work)
        every = ceil(self.spec.size / _SAMPLE)
        for row in range(-(-block.start // every) * every, block.start + len(values), every):
            stats.rows[row] = values[row - block.start, :_SAMPLE].copy()
        return stats

    def merge(self, stats: Seen, more: Seen) -> Seen:
        stats.classes.merge(more.classes)
        stats.rows |= more.rows
        return stats

    def conclude(self, stats: Seen) -> Paths:
        """Raises InputError where one byte is asked for and does not hold a weight's code; two do, by the step."""
        spec, method = self.spec, self.method
        points = stats.classes.points(DTYPES[spec.dtype].compute)
        step, costs = self._step(points, stats.rows)
        most = points.top / step / 2 + 3
        if method.code_bytes == 1 and most > BYTE:
            raise InputError(
                f"a code reaches {most:.4g}, more than a byte holds",
                tensor=spec.name,
                remedy="Ask for fewer --bits, or leave --code-bytes out",
            )
        width: CodeBytes = method.code_bytes or (1 if most <= BYTE else 2)
        return Paths(method, step, costs.tobytes(), width, self.factors)

    def _step(self, points: Points, rows: Mapping[int, Array]) -> tuple[float, Array]:
        """The step, as it is stored, and the costs of codes."""
        method, spec = self.method, self.spec
        sample = [rows[row][None, :] for row in sorted(rows)]
        if not points.top or not sample:
            return 1.0, np.zeros(2 * FAR, np.float32)
        together = np.concatenate(sample)
        least = max(points.top / (2 * _LARGEST), smallest("F64"))
        slope = _SLOPE * min(1.0, _SLOW * method.bits)
        aim = entropy_for(method.bits, spec, 1, self.factors) - _MISSED
        aim -= _beyond(points, together, spec, self.factors is not None)
        high = min(2 * points.top, limit("F64"))
        step = step_for(aim, lambda one: _settled(together, one, slope)[0], least, high, root_of(points) / 2)
        step = in_float(step, spec.dtype)
        return step, _settled(together, step, slope)[1]


def _beyond(points: Points, sample: Array, spec: TensorSpec, scaled: bool) -> float:
    """By how many bits a weight codes of all weights are dearer than those of the sample: of an even step that
    gives normally distributed ones about three."""
    classes = Classes.of(spec, scaled=scaled)
    classes.add(sample, Workspace())
    step = max(root_of(points) / 2, points.least)
    some = classes.points(DTYPES[spec.dtype].compute)
    found = [one.coding(step, by_rate=False).entropy for one in (points, some)]
    return found[0] - found[1]


def _settled(sample: Array, step: float, slope: float) -> tuple[float, Array]:
    """The entropy of the sample's codes at a step, and the costs that they were chosen by, float32 [512]."""
    x = (sample.astype(np.float64) / step).astype(np.float32)
    counts = _counted(np.rint(x * np.float32(0.5)).astype(np.int32))
    costs, entropy = np.zeros(2 * FAR, np.float32), 0.0
    for _ in range(_TURNS):
        costs = (slope * _bits(counts[0])).astype(np.float32)
        counts = _counted(codes_of(x, costs))
        entropy = counts[1]
    return entropy, costs


def _counted(codes: Array) -> tuple[Array, float]:
    """How often each code from −256 on is there, the rest with the last ones; and the entropy as stored."""
    near: Array = np.bincount((np.clip(codes, -FAR, FAR - 1) + FAR).reshape(-1), minlength=2 * FAR)
    if np.abs(codes).max(initial=0) <= BYTE:
        return near, entropy_of(near)
    planes = codes & 255, (codes + 128) >> 8
    return near, sum(entropy_of(np.bincount((plane - plane.min()).reshape(-1))) for plane in planes)


def _bits(counts: Array) -> Array:
    """Of each code what it takes, by counts of a sample: far codes by the mean of their neighbours'."""
    sums = np.concatenate([[0], np.cumsum(counts)])
    places = np.arange(2 * FAR)
    width = np.abs(places - FAR) // 8
    low, high = np.maximum(places - width, 0), np.minimum(places + width + 1, 2 * FAR)
    share = (sums[high] - sums[low]) / (high - low) + 0.05
    found: Array = log2(sums[-1] + 0.1 * FAR) - log2(share)
    return found


# ---- arrays --------------------------------------------------------------------------------------------


def _only(found: Found) -> Factors | None:
    """The factors of the one tensor, if it has some."""
    return next(iter(found.values()), None)


def _restore(
    planes: tuple[Array, Array | None],
    step: Array,
    factors: Factors | None,
    start: int,
    spec: TensorSpec,
    out: Array,
) -> None:
    """n · step · factors into `out`, of the codes in one plane or two."""
    kind = step.dtype.str
    by_row = step if factors is None else step * factors.by_row(start, len(out), kind)
    by_column = None if factors is None else factors.by_column(kind)
    numbers_of(*planes, by_row, by_column, out)
    keep_in_range(by_row, by_column, spec, out, 2 if planes[1] is None else 3)


METHOD = Trellis
