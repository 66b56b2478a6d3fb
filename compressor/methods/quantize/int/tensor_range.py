"""What a scale for a whole tensor must know of it: its range, and for a search a histogram of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Encoder, Survey
from compressor.methods.quantize.int.group_units import Bins, Rule
from compressor.methods.quantize.int.ways.search import Search

_PARTS = 1 << 11  # of a bin: as fine as float32 tells places apart


@dataclass(frozen=True)
class Extent(Survey[tuple[float, float]]):
    """The least and the largest weight of a tensor, and 0; with `search` a histogram comes after it. Concludes with
    what `encoder` makes of the scale, as the number that is wanted for it, and the zero point."""

    encoder: Callable[[float, float | None], Encoder]
    rule: Rule
    search: bool

    def start(self) -> tuple[float, float]:
        return 0.0, 0.0

    def observe(self, block: Block, stats: tuple[float, float]) -> tuple[float, float]:
        return self.merge(stats, (float(block.values.min()), float(block.values.max())))

    def merge(self, stats: tuple[float, float], more: tuple[float, float]) -> tuple[float, float]:
        return min(stats[0], more[0]), max(stats[1], more[1])

    def conclude(self, stats: tuple[float, float]) -> Encoder | Histogram:
        if self.search and stats != (0, 0):
            return Histogram(self.encoder, self.rule, *stats)
        low, high = (np.array([[end]]) for end in stats)
        scale, zero = self.rule.absmax(low, high)
        return self.encoder(float(scale[0, 0]), None if zero is None else float(zero[0, 0]))


@dataclass(frozen=True)
class Histogram(Survey[Array]):
    """How many weights lie at each of many places, and where in the mean: [2, bins], both whole numbers, so that
    sums are the same in any order. A bin lies around 0, so that zeros stay what they are."""

    encoder: Callable[[float, float | None], Encoder]
    rule: Rule
    low: float
    high: float

    @property
    def peak(self) -> float:
        """The largest magnitude."""
        return max(self.high, -self.low)

    @property
    def half(self) -> int:
        """Bins on either side of zero: 64 to a code of absmax's."""
        return 32 << self.rule.bits

    def start(self) -> Array:
        return np.zeros((2, 2 * self.half + 1), np.int64)

    def observe(self, block: Block, stats: Array) -> Array:
        values, work, kind = block.values, block.work, block.values.dtype.type
        places = work.array("histogram.places", values.shape, values.dtype.str)
        nearest = work.array("histogram.nearest", values.shape, values.dtype.str)
        numbers = work.array("histogram.numbers", values.shape, "<i8")
        np.divide(values, kind(self.peak), out=places)
        np.multiply(places, kind(self.half), out=places)
        np.rint(places, out=nearest)
        np.copyto(numbers, nearest, casting="unsafe")
        np.add(numbers, self.half, out=numbers)
        np.subtract(places, nearest, out=places)
        np.multiply(places, kind(_PARTS), out=places)
        np.rint(places, out=places)
        stats[0] += np.bincount(numbers.reshape(-1), minlength=stats.shape[1])
        beside = np.bincount(numbers.reshape(-1), weights=places.reshape(-1), minlength=stats.shape[1])
        stats[1] += beside.astype(np.int64)  # whole numbers far below 2^53: exact
        return stats

    def merge(self, stats: Array, more: Array) -> Array:
        stats += more
        return stats

    def conclude(self, stats: Array) -> Encoder:
        """With the scale found, as the number that is stored for it, and the zero point."""
        occupied, width = np.flatnonzero(stats[0]), self.peak / self.half
        counts = stats[0, occupied].astype(np.float64)
        means = (occupied - self.half + stats[1, occupied] / counts / _PARTS) * width
        low, high = np.array([self.low]), np.array([self.high])
        with np.errstate(all="ignore"):
            stored, zero = Search(means[None], low, high, self.rule, Workspace(), Bins(counts, width)).run()
        scale = float(self.rule.numbers(stored)[0])
        return self.encoder(scale, None if zero is None else float(zero[0]))
