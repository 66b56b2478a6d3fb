"""Scales and zero points of least squared error, group by group: candidates, then refits.

For given codes c of a group u the best factor is the least-squares one, f = Σcu/Σc², and it leaves
Σu² − (Σcu)²/Σc²: so two dot products tell both what a candidate is worth once refitted, and where to.

1. A few factors around those that are best for the width, absmax's own among them; the one with the largest
   (Σcu)²/Σc² wins. With zero points, the range of the codes is laid over the middle of the weights.
2. Refits: codes against the scale *as stored*, scale against the codes, until the scales stand still; the zero
   points beside, and refits again where one of them is better. The error falls at every step: this is coordinate
   descent, and ends in a local optimum.
3. Where the gain is within rounding of absmax's, both are measured exactly and absmax's is kept unless it is worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from compressor.core import kernels
from compressor.core.elementary import log2
from compressor.core.floats import largest, narrow, smallest
from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.contract import Block
from compressor.methods.numerics import scales
from compressor.methods.numerics.scales import Chosen
from compressor.methods.quantize.int.group_units import LEAST, MOST, Units
from compressor.methods.quantize.int.ways.contract import Grid

# By bits: the step from one candidate to the next; the least for groups of 128; how it grows as groups get smaller,
# a power of 128/size. Fitted to the best factors of normal and Student-t weights.
_GRID = {
    2: (1.22, 0.31, 0.25),
    3: (1.107, 0.56, 0.16),
    4: (1.056, 0.80, 0.055),
    5: (1.032, 0.91, 0.025),
    6: (1.018, 0.97, 0.01),
    7: (1.013, 0.985, 0.005),
    8: (1.009, 0.992, 0.0),
}
_COUNT = 5  # candidates
_LONG = 512  # groups of so many weights: the best factor varies too much for a fixed grid, and varies smoothly
# The step of the best uniform quantizer of 2^b levels for a normal density of deviation 1 (Max, 1960)
_NORMAL = {2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041, 7: 0.0569, 8: 0.0308}
_TURNS = 24
_FINE = 6  # bits from which the range of the codes is hardly clipped: zero points stay where they are
_DOUBT, _NOISE = 4e-6, 4e-14  # what dot products, and squares of units, may be wrong by in float32


def _whole_power(base: Any, number: int) -> Any:
    """base^number by multiplying, which every machine does alike."""
    found = base / base
    for _ in range(abs(number)):
        found = found * base
    return 1 / found if number < 0 else found


@cache
def _factors(bits: int, size: int, signed: bool) -> tuple[float, ...]:
    """The candidates for short groups, absmax's 1 first."""
    step, least, power = _GRID[bits]
    start = round(float((log2(least) + power * log2(128 / size)) / log2(step)))
    tried = [1.0]
    for number in range(start, start + _COUNT):
        factor = min(max(_whole_power(step, number), LEAST), MOST)
        tried += [factor] if factor != 1 else []
        tried += [-factor] if signed else []
    return tuple(tried)


@dataclass(slots=True)
class _Point:
    """Factors and zero points of some groups, with Σcu and Σc² once known."""

    factor: Array
    zero: Array | None
    cu: Array
    cc: Array

    @property
    def worth(self) -> Array:
        """What the refitted factor takes off Σu²."""
        return np.where(self.cc > 0, np.square(self.cu) / self.cc, 0)

    @property
    def gain(self) -> Array:
        """What the factor as it is takes off Σu²."""
        gain: Array = self.factor * (2 * self.cu - self.factor * self.cc)
        return gain

    @property
    def refit(self) -> Array:
        return np.where(self.cc > 0, self.cu / self.cc, self.factor)


def _best(points: Sequence[_Point]) -> _Point:
    """Of each group the point that is worth most; the first of those that are worth the same."""
    zeros = [point.zero for point in points if point.zero is not None]
    chosen = np.array([point.worth for point in points]).argmax(axis=0), np.arange(len(points[0].factor))
    factor, cu, cc = (np.array([getattr(p, name) for p in points])[chosen] for name in ("factor", "cu", "cc"))
    return _Point(factor, np.array(zeros)[chosen] if zeros else None, cu, cc)


class Search(Units):
    """The search over the groups that a `Units` holds."""

    def run(self) -> tuple[Array, Array | None]:
        """Stored scales [groups] and unsigned zero points."""
        if self.units.shape[1] < _LONG and self.counts is None and self.heed is None:
            found = self._compiled()
            if found is not None:
                return found
        first, best = self._candidates()
        stored, factor = self.settle(best.refit, best.zero, ...)
        last = _Point(factor, best.zero, np.zeros_like(factor), np.zeros_like(factor))
        self._descend(last, stored)
        return self._guard(first, last, stored)

    # ---- candidates --------------------------------------------------------------------------------

    def _candidates(self) -> tuple[_Point, _Point]:
        """Absmax's own point, and the best of all."""
        ones = np.ones(len(self.units))
        first = self._point(ones, self.first_zero)
        if self.units.shape[1] >= _LONG or self.counts is not None:
            return first, self._long(first)
        factors = _factors(self.rule.bits, self.units.shape[1], self.rule.signed)[1:]
        tried = [first, *(self._point(ones * one, self._centred(one) if one > 0 else None) for one in factors)]
        return first, _best(tried)

    def _compiled(self) -> tuple[Array, Array | None] | None:
        """All of it at once, by the compiled kernel; None where there is none for such weights."""
        rule, zero = self.rule, self.first_zero
        known = kernels.SearchedScales(
            rule.steps,
            rule.half,
            LEAST,
            MOST,
            self._still,
            _DOUBT,
            _NOISE,
            smallest(rule.dtype),
            largest(rule.dtype),
            largest(rule.weight_dtype),
            rule.dtype,
            _TURNS,
            0 if zero is None or rule.bits >= _FINE else _TURNS,
        )
        points = None if zero is None else zero.copy()
        found = rule.numbers(self.first_stored).astype(self.kind)
        tried = _factors(rule.bits, self.units.shape[1], rule.signed)
        if not kernels.search_scales(self.units, self.base, (self.low, self.high), tried, known, points, found):
            return None
        stored = np.empty_like(self.first_stored)
        narrow(found, rule.dtype, stored)
        return stored, points

    @property
    def _still(self) -> float:
        """A step of the scale by a smaller share takes no ten-thousandth off the error."""
        return 2.0 ** -(self.rule.bits + 7)

    def _long(self, first: _Point) -> _Point:
        """The best of steps between the factor for a normal density and 1, then of ever smaller steps around it."""
        energy = self.dot(self.units, self.units)
        size = self.units.shape[1] if self.counts is None else self.counts.sum()
        normal = 0.9 * _NORMAL[self.rule.bits] * np.sqrt(energy / size)
        least = np.minimum(np.maximum(normal, LEAST), 0.97)
        fine = self.rule.bits >= 7  # a step is a hundredth already
        count = 2 if fine else _COUNT - 1
        step = np.sqrt(1 / least) if fine else np.sqrt(np.sqrt(1 / least))  # least · step^count is 1
        best = _best([first, *self._signs(least * _whole_power(step, number) for number in range(count))])
        for _ in range(0 if fine else 2):
            step = np.sqrt(step)
            best = _best([best, *self._signs((best.factor * step, best.factor / step))])
        return best

    def _signs(self, factors: Iterable[Array]) -> Iterator[_Point]:
        for factor in factors:
            yield self._point(factor, self._centred(factor))
            if self.rule.signed:
                yield self._point(-factor, None)

    def _centred(self, factor: Array | float) -> Array | None:
        """Zero points that lay the codes over the middle of the range."""
        if self.first_zero is None:
            return None
        steps = self.rule.steps
        middle = np.rint((steps - (np.minimum(self.low, 0) + np.maximum(self.high, 0)) / factor) / 2)
        return np.minimum(np.maximum(middle, 0), steps)

    # ---- descent -----------------------------------------------------------------------------------

    def _descend(self, last: _Point, stored: Array) -> None:
        """Refit, and try the zero points beside, until nothing moves; `last` and `stored` change in place."""
        groups = np.arange(len(self.units))
        self._refit(last, stored, groups)
        for _ in range(_TURNS):
            if last.zero is None or self.rule.bits >= _FINE:
                break
            groups = self._beside(last, stored, groups)
            if not groups.size:
                break
            self._refit(last, stored, groups)

    def _refit(self, last: _Point, stored: Array, groups: Array) -> None:
        """Codes against scales and scales against codes, until the scales of these groups stand still."""
        for turn in range(_TURNS):
            zero = None if last.zero is None else last.zero[groups]
            here = self._point(last.factor[groups], zero, groups)
            last.cu[groups], last.cc[groups] = here.cu, here.cc
            if turn == _TURNS - 1:
                break
            new_stored, factor = self.settle(here.refit, zero, groups)
            moves = np.flatnonzero(np.abs(factor - here.factor) > self._still * np.abs(here.factor))
            if not moves.size:
                break
            groups = groups[moves]
            last.factor[groups], stored[groups] = factor[moves], new_stored[moves]

    def _beside(self, last: _Point, stored: Array, groups: Array) -> Array:
        """Move zero points by one where that is worth more; those of these groups that moved."""
        assert last.zero is not None  # noqa: S101 - asked by who calls
        factor, zero = last.factor[groups], last.zero[groups]
        here = _Point(factor, zero, last.cu[groups], last.cc[groups])
        beside = (np.minimum(np.maximum(zero + one, 0), self.rule.steps) for one in (-1, 1))
        best = _best([here, *(self._point(factor, other, groups) for other in beside)])
        moves = np.flatnonzero(best.zero != zero)
        groups = groups[moves]
        if moves.size and best.zero is not None:
            last.zero[groups] = best.zero[moves]
            stored[groups], last.factor[groups] = self.settle(best.refit[moves], best.zero[moves], groups)
        return groups

    # ---- in the end --------------------------------------------------------------------------------

    def _guard(self, first: _Point, last: _Point, stored: Array) -> tuple[Array, Array | None]:
        """Take absmax's scale where the one found is not better."""
        doubt = _DOUBT if self.units.itemsize == 4 else 1e-13
        close = np.flatnonzero(~(last.gain > first.gain * (1 + doubt)))
        if close.size:
            units = self.gather(close)
            ours, absmax = self._error(units, last, close), self._error(units, first, close)
            # what the arithmetic of encoding adds, and that weights of a bin are not all alike
            noise = self.dot(units, units) * (_NOISE if units.itemsize == 4 else 1e-30)
            if self.counts is not None:
                noise += self.counts.sum() * np.square(self.blur / self.base[close]) / 12
            back = close[~(ours + noise < absmax)]
            stored[back] = self.first_stored[back]
            if last.zero is not None and first.zero is not None:
                last.zero[back] = first.zero[back]
        return stored, last.zero

    def _error(self, units: Array, point: _Point, groups: Array) -> Array:
        """Σ(u − f·c)² from the differences themselves."""
        factor, zero = point.factor[groups], None if point.zero is None else point.zero[groups]
        codes = self.ratio(units, factor)
        self.clip(codes, codes, zero)
        apart = self.work.array("search.apart", units.shape, units.dtype.str)
        scales.apply(np.multiply, units, self.column(1 / factor), apart)
        np.subtract(apart, codes, out=apart)
        return np.square(factor) * self.dot(apart, apart)

    def _point(self, factor: Array, zero: Array | None, groups: Array | None = None) -> _Point:
        """What factors and zero points give these groups, or all."""
        return _Point(factor, zero, *self.products(factor, zero, groups))


def choose(
    grouped: Array,
    block: Block,
    grid: Grid,
    scratch: Array,
    heed: Array | None = None,
    search: type[Units] | None = None,
) -> Chosen:
    """Scales and zero points [rows, groups] of least squared error, each error counted by `heed`
    [rows · groups, size] where that is given; or what another `search` finds best."""
    low, high = scales.extent(grouped, grid.rule.symmetric, scratch)
    rows = grouped.reshape(-1, grouped.shape[2])
    with np.errstate(all="ignore"):  # of groups of zeros, and far candidates
        found = (search or Search)(rows, low.reshape(-1), high.reshape(-1), grid.rule, block.work, heed=heed)
        stored, zero = found.run()
    return grid.settled(grouped, stored.reshape(low.shape), None if zero is None else zero.reshape(low.shape))
