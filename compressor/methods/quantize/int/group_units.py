"""Groups of weights in units of their absmax scale: what every way to choose better scales computes with.

In these units a group is u, a scale is a factor f, and codes are c = clip(round(u/f)), counted from the zero point.
Factors keep between LEAST and MOST, so that no weight is cut down to less than about a quarter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.sums import dots
from compressor.core.workspace import Array, Workspace
from compressor.methods.numerics import scales

LEAST, MOST = 0.25, 1.5


@dataclass(frozen=True, slots=True)
class Rule:
    """What codes and scales can be: `bits` with or without a zero point, scales of either sign, and the dtypes that
    scales are stored in and weights come back in."""

    bits: int
    symmetric: bool
    signed: bool
    dtype: str
    weight_dtype: str

    @property
    def half(self) -> int:
        """2^(bits − 1): codes run from its negative to one below it."""
        return 1 << (self.bits - 1)

    @property
    def steps(self) -> int:
        """Codes less one: from the least to the largest."""
        return 2 * self.half - 1

    def store(self, scale: Array, zero: Array | None) -> tuple[Array, Array]:
        """Scales as stored and as numbers."""
        reach: Any = self.half if zero is None else np.maximum(self.steps - zero, zero)
        return scales.store_scale(scale, reach, self.dtype, self.weight_dtype)

    def numbers(self, stored: Array) -> Array:
        """The numbers that stored scales stand for."""
        return scales.wide_scale(stored, self.dtype)

    def absmax(self, low: Array, high: Array) -> tuple[Array, Array | None]:
        """Scale and unsigned zero point from the range."""
        if self.symmetric:
            return scales.symmetric_scale(np.maximum(high, -low), self.half)[0], None
        return scales.asymmetric_scale(low, high, self.half)[:2]


class Bins(NamedTuple):
    """How often each value of a histogram occurs [size], and how wide its bins are."""

    counts: Array
    width: float


class Units(ABC):
    """The rows of `values` [groups, size] over their absmax scales. All are treated alike whatever stands beside
    them. Of a histogram `bins` say how often each value occurs; `heed` [groups, size] is what errors of the single
    weights count, about 1 on average."""

    def __init__(
        self,
        values: Array,
        low: Array,
        high: Array,
        rule: Rule,
        work: Workspace,
        bins: Bins | None = None,
        heed: Array | None = None,
    ) -> None:
        self.rule, self.work = rule, work
        self.counts = None if bins is None else bins.counts
        self.blur = 0.0 if bins is None else bins.width
        self.heed = self.heeded = heed  # of all groups, and of those that were gathered last
        self.kind = values.dtype.type
        scale, self.first_zero = rule.absmax(low, high)
        self.first_stored, base = rule.store(scale, self.first_zero)
        self.base = base.astype(np.float64)
        self.units = work.array("search.units", values.shape, values.dtype.str)
        scales.apply(np.divide, values, base.astype(self.kind, copy=False)[:, None], self.units)
        self.codes = work.array("search.codes", values.shape, values.dtype.str)
        self.low, self.high = low / self.base, high / self.base

    @abstractmethod
    def run(self) -> tuple[Array, Array | None]:
        """Stored scales [groups] and unsigned zero points, the best that the search finds."""

    def settle(self, factor: Array, zero: Array | None, groups: Any) -> tuple[Array, Array]:
        """Scales of these groups as stored, and the factors that they are."""
        size = np.minimum(np.maximum(np.abs(factor), LEAST), MOST)
        base = self.base[groups]
        stored, wide = self.rule.store(np.copysign(size * base, factor), zero)
        return stored, wide / base

    def gather(self, groups: Array) -> Array:
        """The rows of `units` of these groups."""
        if len(groups) == len(self.units):
            self.heeded = self.heed
            return self.units
        if self.heed is not None:
            self.heeded = self.heed[groups]
        room = self.work.array("search.active", (len(groups), self.units.shape[1]), self.units.dtype.str)
        return np.take(self.units, groups, axis=0, out=room, mode="clip")

    def products(self, factor: Array, zero: Array | None, groups: Array | None = None) -> tuple[Array, Array]:
        """Σ c·u and Σ c² of the codes that factors and zero points give these groups, or all; float64."""
        if self.counts is None:
            lowest = np.full(factor.shape, -self.rule.half) if zero is None else -zero
            found = kernels.code_products(self.units, groups, factor, lowest, self.rule.steps, self.heed)
            if found is not None:
                by_unit, by_code = found
                return by_unit.astype(self.kind).astype(np.float64), by_code.astype(self.kind).astype(np.float64)
        units = self.units if groups is None else self.gather(groups)
        codes = self.ratio(units, factor)
        self.clip(codes, codes, zero)
        return self.dot(codes, units), self.dot(codes, codes)

    def ratio(self, units: Array, factor: Array) -> Array:
        """round(u/f) into `codes`, as numbers."""
        codes = self.codes[: len(units)]
        scales.apply(np.multiply, units, self.column(1 / factor), codes)
        return np.rint(codes, out=codes)

    def clip(self, codes: Array, out: Array, zero: Array | None) -> None:
        """Codes into their range, [−half, half) or from −zero up."""
        half = self.rule.half
        if zero is None:
            codes.clip(self.kind(-half), self.kind(half - 1), out=out)
            return
        least = self.column(-zero)
        np.maximum(codes, least, out=out)
        np.minimum(out, least + self.kind(self.rule.steps), out=out)

    def column(self, values: Array) -> Array:
        return values.astype(self.kind, copy=False)[:, None]

    def dot(self, a: Array, b: Array) -> Array:
        """Σ a·b of each group, rounded to the weights' type, float64."""
        if self.counts is not None:
            a = a * self.counts
        if self.heeded is not None:
            a = a * self.heeded
        total: Array = dots(a, b).astype(self.kind).astype(np.float64)
        return total
