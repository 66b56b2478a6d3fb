"""Which numbers a tensor holds and how often: counts of bit patterns, to be merged in any grouping.

Floats are counted by their highest bits. The bits below are summed in each class of equal highest bits, as
integers, so that the mean of each class is known to the last bit whatever the order of the blocks. For bfloat16,
float16 and FP8 weights a class is one number. For float32 it spans 2^-9 of its magnitude, for float64 2^-7; of
tensors of at most `FEW` weights every number is counted by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.numerics.kmeans import Points

FEW = 1 << 16
_HELD = 16  # tables before they are merged into one
_BASE = 2.0**33  # more than all low digits of a piece add up to, so that one sum holds them and the count


@dataclass
class Patterns:
    """The counts so far: tables [3 or more, classes] of class, count, and sums of the digits below, int64."""

    dropped: int  # bits below a class's
    tables: list[Array] = field(default_factory=list)
    zeros: int = 0

    @classmethod
    def of(cls, spec: TensorSpec) -> Patterns:
        """None yet, of a tensor like this."""
        if spec.size <= FEW:
            return cls(0)
        if DTYPES[spec.dtype].compute == "<f8":
            return cls(45)
        return cls(13 if spec.dtype == "F16" else 14)

    def add(self, values: Array, work: Workspace) -> None:
        """Count the floats `values` by their bit patterns."""
        flat = values.reshape(-1)
        self.zeros += flat.size - int(np.count_nonzero(flat))
        bits = flat.view(f"<u{flat.itemsize}")
        if not self.dropped:
            classes, counts = np.unique(bits, return_counts=True)
            self.tables.append(np.stack([classes.view(f"<i{flat.itemsize}"), counts, np.zeros_like(counts)]))
        else:
            size = 1 << (33 - self._digits[0][1])
            for start in range(0, flat.size, size):
                self.tables.append(self._counted(bits[start : start + size], work))
        self._compact()

    def merge(self, more: Patterns) -> None:
        """Add the counts of other floats of the same dtype."""
        self.tables += more.tables
        self.zeros += more.zeros
        self._compact()

    def points(self, dtype: str) -> Points:
        """The classes in ascending order as one problem; floats of this type were counted."""
        kind = np.dtype(dtype)
        classes, counts, *sums = _merged(self.tables)
        bits = (classes << self.dropped).view("<u8").astype(f"<u{kind.itemsize}")
        least = bits.view(kind).astype(np.float64)
        exponent = np.frexp(np.abs(least).max(initial=0))[1]
        step = np.ldexp((bits | 1).view(kind).astype(np.float64) - least if self.dropped else 0 * least, -exponent)
        low = sum((total * 2.0**shift for total, (shift, _) in zip(sums, self._digits, strict=False)), 0 * least)
        means = np.ldexp(least, -exponent) + step * low / counts
        order = np.argsort(means, kind="stable")
        means = means[order]
        width = None
        if low.any():  # else every class is one number
            gaps = np.diff(means)
            near = np.minimum(np.append(np.inf, gaps), np.append(gaps, np.inf))
            width = np.minimum(np.abs(step[order]) * 2.0**self.dropped, 2 * near)[None]
        return Points(means[None], counts[order][None].astype(np.float64), np.array([exponent]), width)

    @property
    def _digits(self) -> list[tuple[int, int]]:
        """Where each digit of the dropped bits begins and how wide it is, the lowest first."""
        width = min(self.dropped, 15)
        return [(shift, width) for shift in range(0, self.dropped, max(width, 1))]

    def _counted(self, bits: Array, work: Workspace) -> Array:
        """The table of some patterns."""
        classes = work.array("patterns.classes", bits.shape, "<i8")
        np.right_shift(bits, bits.dtype.type(self.dropped), out=classes, casting="unsafe")
        digit = work.array("patterns.digit", bits.shape, bits.dtype.str)
        weight = work.array("patterns.weight", bits.shape, "<f8")
        rows: list[Array] = []
        for shift, width in self._digits:
            np.right_shift(bits, bits.dtype.type(shift), out=digit)
            np.bitwise_and(digit, bits.dtype.type((1 << width) - 1), out=digit)
            np.add(digit, 0.0 if rows else _BASE, out=weight)
            totals = np.bincount(classes, weights=weight)
            if not rows:
                found = np.flatnonzero(totals != 0)
                counts = np.floor(totals[found] / _BASE)
                rows = [found, counts, totals[found] - counts * _BASE]
            else:
                rows.append(totals[found])
        return np.stack([row.astype(np.int64) for row in rows])

    def _compact(self) -> None:
        if len(self.tables) > _HELD:
            self.tables = [_merged(self.tables)]


def _merged(tables: list[Array]) -> Array:
    """One table of all, each class once."""
    every = np.concatenate(tables, axis=1)
    if len(tables) == 1:
        return every
    every = every[:, np.argsort(every[0], kind="stable")]
    begins = np.flatnonzero(np.append(True, every[0, 1:] != every[0, :-1]))
    merged: Array = np.add.reduceat(every, begins, axis=1)
    merged[0] = every[0, begins]
    return merged
