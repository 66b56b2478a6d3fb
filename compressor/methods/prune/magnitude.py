"""Zero the given share of weights, those of smallest magnitude; exactly that many.

Of the n weights in reach, the k = round(sparsity · n) smallest become zero. With `scope` tensor each tensor
loses that share; with `scope` global the k are the smallest of all the tensors that the stage treats. Of
weights with the same magnitude as the last one cut, those first in the order (tensor name, row, column) are
cut. The result is that of a full stable sort, found without holding the weights:

* magnitudes are compared as the bit patterns of their floats, which sort like the numbers;
* a histogram of the highest 16 bits finds the digit of the k-th smallest, further passes the digits below
  (one pass for bfloat16 weights, two for float32, four where float64 occurs);
* if only some of the weights equal to the k-th may go, one more pass counts them block by block.

Stored: the same dtype and shape. Error: every zeroed weight is at most the largest zeroed one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import ClassVar, Literal

from compressor.lazy import np
from compressor.method import Block, Selection, Survey, option
from compressor.tensor import TensorSpec
from compressor.workspace import Array

_DIGIT = 16


@dataclass(frozen=True)
class Magnitude(Selection):
    """Zero the `sparsity` share of smallest magnitude, in each tensor or over all of them."""

    verb: ClassVar[str] = "prune"
    id: ClassVar[str] = "magnitude"
    elementwise: ClassVar[bool] = True

    sparsity: float = option(help="share of weights that become zero", low=0, high=1, open_high=True)
    scope: Literal["tensor", "global"] = option("tensor", help="each tensor alone, or all of them together")

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "model" if self.scope == "global" else "tensor"

    def survey(self, specs: Sequence[TensorSpec]) -> Digit:
        wide = any(spec.dtype == "F64" for spec in specs)
        return Digit(self, "<u8" if wide else "<u4", shift=48 if wide else 16)

    def keep(self, block: Block, out: Array) -> None:
        raise TypeError("a survey has to find the cut first")


@dataclass(frozen=True)
class Cut(Magnitude):
    """What the survey found: magnitudes under `level` go; those equal to it go up to the place `until`.

    `level` is a bit pattern of `keys`, the unsigned type as wide as the widest float in reach. `until` is
    (tensor name, start of the block, how many in that block), or None where all that equal it go.
    """

    keys: str = "<u4"
    level: int = 0
    until: tuple[str, int, int] | None = None

    def keep(self, block: Block, out: Array) -> None:
        keys = _magnitudes(block, self.keys)
        here, place = (block.spec.name, block.start), self.until and self.until[:2]
        if place is None or here < place:
            np.greater(keys, self.level, out=out)
        else:
            np.greater_equal(keys, self.level, out=out)
        if self.until is not None and here == place:
            ties = np.flatnonzero(keys == self.level)[: self.until[2]]
            out.reshape(-1)[ties] = False


@dataclass
class Histogram:
    """Statistics of one digit: how many keys have each value of it, and which lower bits occur at all."""

    counts: Array = field(default_factory=lambda: np.zeros(1 << _DIGIT, np.int64))
    lower: int = 0


@dataclass(frozen=True)
class Digit(Survey[Histogram]):
    """Find one digit of the k-th smallest key, the higher digits `prefix` being known."""

    method: Magnitude
    keys: str
    shift: int
    prefix: int = 0
    rank: int | None = None  # how many of the keys under this prefix are to go; None: not yet known

    def start(self) -> Histogram:
        return Histogram()

    def observe(self, block: Block, stats: Histogram) -> Histogram:
        keys = _magnitudes(block, self.keys).reshape(-1)
        if self.rank is not None:
            keys = keys[keys >> (self.shift + _DIGIT) == self.prefix]
        digits = block.work.array("magnitude.digits", keys.shape, self.keys)
        np.right_shift(keys, self.shift, out=digits)
        np.bitwise_and(digits, (1 << _DIGIT) - 1, out=digits)
        counts = np.bincount(digits.view(self.keys.replace("u", "i")), minlength=1)
        stats.counts[: counts.size] += counts
        if self.shift and keys.size:
            stats.lower |= int(np.bitwise_or.reduce(keys)) & ((1 << self.shift) - 1)
        return stats

    def merge(self, stats: Histogram, more: Histogram) -> Histogram:
        stats.counts += more.counts
        stats.lower |= more.lower
        return stats

    def conclude(self, stats: Histogram) -> Digit | Ties | Cut:
        below = np.cumsum(stats.counts)
        rank = self.rank
        if rank is None:
            rank = round(self.method.sparsity * int(below[-1]))
            if rank == 0:
                return self._cut(0, until=("", 0, 0))
        digit = int(np.searchsorted(below, rank))
        rank -= int(below[digit] - stats.counts[digit])
        prefix = self.prefix << _DIGIT | digit
        if self.shift and stats.lower:
            return replace(self, shift=self.shift - _DIGIT, prefix=prefix, rank=rank)
        level = prefix << self.shift
        if rank == int(stats.counts[digit]):
            return self._cut(level, until=None)
        return Ties(self, level, rank)

    def _cut(self, level: int, until: tuple[str, int, int] | None) -> Cut:
        return Cut(self.method.sparsity, self.method.scope, self.keys, level, until)


@dataclass(frozen=True)
class Ties(Survey[list[tuple[str, int, int]]]):
    """Count the keys equal to `level` in each block, to find the place where `rank` of them are reached."""

    digit: Digit
    level: int
    rank: int

    def start(self) -> list[tuple[str, int, int]]:
        return []

    def observe(self, block: Block, stats: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
        count = int(np.count_nonzero(_magnitudes(block, self.digit.keys) == self.level))
        if count:
            stats.append((block.spec.name, block.start, count))
        return stats

    def merge(
        self, stats: list[tuple[str, int, int]], more: list[tuple[str, int, int]]
    ) -> list[tuple[str, int, int]]:
        stats.extend(more)
        return stats

    def conclude(self, stats: list[tuple[str, int, int]]) -> Cut:
        stats.sort()
        reached = list(accumulate(count for _, _, count in stats))
        last = bisect_left(reached, self.rank)
        name, start, count = stats[last]
        return self.digit._cut(self.level, (name, start, self.rank - (reached[last] - count)))


def _magnitudes(block: Block, keys: str) -> Array:
    """The block's magnitudes as unsigned integers that sort like them."""
    values = block.values
    wide = "<f8" if keys == "<u8" else "<f4"
    magnitudes = block.work.array("magnitude.keys", values.shape, wide)
    np.abs(values, out=magnitudes)
    return magnitudes.view(keys)


METHOD = Magnitude
