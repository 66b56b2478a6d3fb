"""What was lost, measured block by block and mergeable.

Sums are taken in the blocks' own float type, in the order of `sums.py`, and gathered in float64; a block whose
squares leave that type's range is summed again in a wider one, or scaled. Blocks are merged in the order of the
data, so the same job gives the same figures with any number of workers, and on any processor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import frexp, inf, isinf, ldexp, log10, sqrt
from typing import Any

from compressor.core import sums
from compressor.core.floats import widen_counted
from compressor.core.histogram import Histogram
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace

_PIECE = 1 << 18  # elements that are widened at a time
_SAFE = (1e-24, 1e37)  # sums of squares that float32 holds without losing their small terms
_SQUARED = 400  # powers of two up to this are squared and added up in float64


def is_safe(total: float) -> bool:
    """Whether a sum of float32 products can be trusted: nothing in it left the type's range."""
    return _SAFE[0] < abs(total) < _SAFE[1]


def dot(a: Array, b: Array) -> float:
    """Σ a·b, safe against overflow and underflow; NaN or infinite only if the arrays are.

    Callers run under `np.errstate(all="ignore")`: an overflow here is noticed and mended.
    """
    total = sums.dot(a, b)
    if is_safe(total) or not a.size or (total == 0 and not a.any()):  # 0: as wherever what was stored is exact
        return total
    wide = [array.astype(np.float64) for array in (a, b)]
    powers = [int(np.frexp(np.abs(array).max())[1]) for array in wide]
    total = sums.dot(*(np.ldexp(array, -power) for array, power in zip(wide, powers, strict=True)))
    return float(np.ldexp(total, sum(powers)))


def count_zeros(values: Array, work: Workspace) -> int:
    """How many of the numbers `values` are zero, of either sign."""
    mask = work.array("metrics.mask", values.shape, "|b1")
    np.equal(values, 0, out=mask)
    return int(np.count_nonzero(mask))


def count_stored_zeros(numbers: Array, spec: TensorSpec, work: Workspace) -> int:
    """Zeros among stored elements; floats of either sign, 0 for types that are never computed with."""
    dtype = DTYPES[spec.dtype]
    if spec.is_float and numbers.dtype.kind == "u":  # bit patterns: drop the sign
        shifted = work.array("zeros", numbers.shape, numbers.dtype.str)
        np.left_shift(numbers, 1, out=shifted)
        return int(numbers.size - np.count_nonzero(shifted))
    if spec.is_float:
        return count_zeros(numbers, work)
    return int(numbers.size - np.count_nonzero(numbers)) if numbers.dtype.kind in "iub" and dtype.storage else 0


def carried_over(numbers: Array, spec: TensorSpec, work: Workspace) -> tuple[int, float]:
    """Of stored elements of a tensor that nothing is done to: how many are zero, and Σ w² of the finite ones; 0 for
    types that are never computed with.

    Callers run under `np.errstate(all="ignore")`, as those of `dot`.
    """
    if not spec.is_float:
        return count_stored_zeros(numbers, spec, work), 0.0
    flat: Array = numbers.reshape(-1)
    zeros, energy = 0, 0.0
    for first in range(0, flat.size, _PIECE):
        piece = flat[first : first + _PIECE]
        wide, counted = widen_counted(piece, spec.dtype, work, "carried")
        total, none = counted or (0.0, count_stored_zeros(piece, spec, work))
        if not is_safe(total):
            total = dot(wide, wide)
        if not np.isfinite(total):
            kept: Array = wide[np.isfinite(wide)]
            total = dot(kept, kept)
        zeros, energy = zeros + none, energy + total
    return zeros, energy


@dataclass(slots=True)
class Change:
    """What a run did to one tensor. `energy` is Σ w², `lost` is Σ (w − w')²; `notes` are what there is to say of it
    in words; `histogram` is of the numbers, where one was asked for."""

    size: int = 0
    zeros_before: int = 0
    zeros_after: int = 0
    energy: float = 0.0
    lost: float = 0.0
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    histogram: Histogram | None = field(default=None, kw_only=True)

    def merge(self, more: Change) -> None:
        """Add what happened to other elements of the same tensor."""
        if more.histogram is not None:
            if self.histogram is None:
                self.histogram = Histogram(more.histogram.power, more.histogram.before, more.histogram.after)
            else:
                self.histogram.merge(more.histogram)
        if more.notes:
            self.notes = tuple(dict.fromkeys(self.notes + more.notes))
        self.size += more.size
        self.zeros_before += more.zeros_before
        self.zeros_after += more.zeros_after
        self.energy += more.energy
        self.lost += more.lost

    @property
    def error(self) -> float:
        """Relative error in the Frobenius norm, ‖W − W'‖ / ‖W‖; 0 for nothing lost."""
        return relative(self.lost, self.energy)

    @property
    def sparsity_before(self) -> float:
        """Share of the elements that were zero before, 0 to 1."""
        return self.zeros_before / self.size if self.size else 0.0

    @property
    def sparsity_after(self) -> float:
        """Share of the elements that are zero afterwards, 0 to 1."""
        return self.zeros_after / self.size if self.size else 0.0


def relative(lost: float, energy: float) -> float:
    """√(lost/energy): 0 when nothing was lost, infinite when something came from nothing."""
    if lost == 0:
        return 0.0
    return sqrt(lost / energy) if energy > 0 else inf


@dataclass(slots=True)
class Comparison(Change):
    """Two tensors beside each other: A (before) and B (after)."""

    energy_b: float = 0.0
    product: float = 0.0
    largest: float = 0.0

    def merge(self, more: Change) -> None:
        Change.merge(self, more)
        if isinstance(more, Comparison):
            self.energy_b += more.energy_b
            self.product += more.product
            self.largest = max(self.largest, more.largest)

    @property
    def sqnr(self) -> float:
        """Signal to noise in dB, 10·log10(Σ a² / Σ (a − b)²); infinite for equal tensors."""
        if self.lost == 0:
            return inf
        if self.energy == 0 or isinf(self.lost):
            return -inf
        return 10 * (log10(self.energy) - log10(self.lost))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the tensors; 1 for two zero tensors, 0 where one of them is zero."""
        if self.energy == 0 or self.energy_b == 0:
            return 1.0 if self.energy == self.energy_b else 0.0
        return max(-1.0, min(1.0, self.product / sqrt(self.energy) / sqrt(self.energy_b)))


@dataclass(slots=True)
class Moments:
    """What `inspect --stats` tells of one tensor. Non-finite values are counted and left out of the rest. `total`
    and `energy` are sums of the values over 2^`power`, and of the squares of that: None as long as all are zero, 0
    but for values whose squares no float holds."""

    size: int = 0
    zeros: int = 0
    non_finite: int = 0
    low: float = inf
    high: float = -inf
    total: float = 0.0
    energy: float = 0.0
    power: int | None = None

    def add(self, values: Array) -> None:
        """Take in a block, of floats or of integers."""
        self.size += values.size
        flat: Array = values.reshape(-1)
        if flat.dtype.kind == "f":
            finite = np.isfinite(flat)
            if not finite.all():
                flat = flat[finite]
                self.non_finite += values.size - flat.size
        if flat.size:
            self.zeros += int(np.count_nonzero(flat == 0))
            low, high = float(flat.min()), float(flat.max())
            self.low, self.high = min(self.low, low), max(self.high, high)
            wide: Any = flat.astype(np.float64)
            largest = max(abs(low), abs(high))
            power = frexp(largest)[1]
            if abs(power) <= _SQUARED:
                power = 0
            else:
                wide = np.ldexp(wide, -power)
            if largest:  # zeros change nothing, and must not set the power
                self._take(float(wide.sum()), dot(wide, wide), power)

    def merge(self, more: Moments) -> None:
        """Add the moments of other elements."""
        self.size += more.size
        self.zeros += more.zeros
        self.non_finite += more.non_finite
        self.low = min(self.low, more.low)
        self.high = max(self.high, more.high)
        if more.power is not None:
            self._take(more.total, more.energy, more.power)

    def _take(self, total: float, energy: float, power: int) -> None:
        """Add sums of other elements over 2^power."""
        common = power if self.power is None else max(power, self.power)
        own = 0 if self.power is None else self.power - common
        self.total = ldexp(self.total, own) + ldexp(total, power - common)
        self.energy = ldexp(self.energy, 2 * own) + ldexp(energy, 2 * (power - common))
        self.power = common

    @property
    def mean(self) -> float:
        """The mean of the finite elements; 0 where there are none."""
        count = self.size - self.non_finite
        return ldexp(self.total / count, self.power or 0) if count else 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation (of the population)."""
        count = self.size - self.non_finite
        if not count:
            return 0.0
        mean = self.total / count
        return ldexp(sqrt(max(0.0, self.energy / count - mean * mean)), self.power or 0)
