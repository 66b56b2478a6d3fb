"""The arithmetic of NF4: its 16 levels, the nearest of them, and the scale of a block that loses least.

A block is a row of a float32 matrix [blocks, size]. Everything about it depends on that block alone, so cuts do not
matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.sums import dots
from compressor.core.workspace import Array, Workspace

# Quantiles of N(0, 1), scaled to end at ±1, with an exact zero at place 7 (QLoRA, appendix E), as float32 numbers
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
WIDEST = max(high - low for low, high in pairwise(LEVELS)) / 2

# A search begins at these shares of a block's largest magnitude and stays within `LEAST` and `MOST` of it. The
# first gives the largest weight the level before the outermost.
STARTS = (1.38, 1.05, 1.0, 0.95, 0.9, 0.85)
LEAST, MOST = 0.75, 1.5
_TURNS = 8  # of refitting; nearly all blocks settle in three
# The search counts in integers: weights in these parts of a block's largest magnitude, fine ones where levels are
# chosen and coarse ones where sums are made, and levels in parts of the largest. 16 steps are 2^-11 of a scale, so
# a level is wrong only within 2^-12 of a midpoint.
_FINE, _COARSE, _LEVEL, _STEPS = 32767, 8191, 4096, 16


@cache
def levels() -> Array:
    """The levels as float32."""
    return _fixed(np.array(LEVELS, np.float32))


@cache
def midpoints() -> Array:
    """Between neighbouring levels, float32 [15]."""
    exact = np.array(LEVELS)
    return _fixed(((exact[:-1] + exact[1:]) / 2).astype(np.float32))


@cache
def _pairs() -> Array:
    """The two levels that a byte of codes stands for, the high nibble's first: float32 pairs as one word each."""
    codes = np.arange(256)
    both = np.stack([levels()[codes >> 4], levels()[codes & 15]], axis=1)
    return _fixed(np.ascontiguousarray(both).view("<u8").reshape(256))


@cache
def _whole_levels() -> Array:
    """The levels in `_LEVEL`ths, int16."""
    return _fixed(np.rint(levels() * np.float32(_LEVEL)).astype(np.int16))


@cache
def _borders() -> Array:
    """The midpoints in steps, int16: the nearest multiples of `_STEPS`, less one step, which is the last below."""
    return (np.rint(midpoints() * np.float32((1 << 15) / _STEPS)) * _STEPS - 1).astype(np.int16)


@cache
def _grid() -> Array:
    """The place of the level that is nearest to each 16th step, in two's complement of 12 bits, uint8 [4096]."""
    steps = (np.arange(1 << 12, dtype=np.int16) << 4).astype(np.int16)
    return _fixed(np.searchsorted(_borders(), steps).astype(np.uint8))


@cache
def _cells(whole: bool) -> Array:
    """For each 16th of a scale, in two's complement of 5 bits, the border in it (32767 where none is), the level
    below that and the one above, those as places or in `whole` parts: int16 [3, 32]."""
    first = (np.arange(32, dtype=np.int16) << 11).astype(np.int16)
    below, above = (np.searchsorted(_borders(), first + np.int16(more)) for more in (0, 2047))
    border = np.where(below < above, np.append(_borders(), np.int16(32767))[below], np.int16(32767))
    stands = _whole_levels() if whole else np.arange(len(LEVELS))
    return _fixed(np.stack([border, stands[below], stands[above]]).astype(np.int16))


@cache
def _searched(limit: float) -> kernels.SearchedLevels:
    """What the compiled search goes by."""
    starts = _fixed(np.array(STARTS, np.float32))
    tables = _whole_levels(), _cells(True), _cells(False), levels(), _grid()
    return kernels.SearchedLevels(starts, LEAST, MOST, limit, _TURNS, *tables)


def nearest(scaled: Array, codes: Array, work: Workspace) -> None:
    """The codes (uint8) of the levels that are nearest to float32 `scaled`."""
    if kernels.count_below(scaled, midpoints()[None], codes):
        return
    above = work.array("nf4.above", scaled.shape, "|b1")
    first, *others = midpoints()
    np.greater(scaled, first, out=codes.view(bool))
    for midpoint in others:
        np.greater(scaled, midpoint, out=above)
        np.add(codes, above.view(np.uint8), out=codes)


def pack(codes: Array, work: Workspace) -> Array:
    """Two codes a byte, the first in the high nibble; `codes` [blocks, size] of even size, flat bytes."""
    pairs = codes.reshape(-1).view("<u2")
    merged = work.array("nf4.merged", pairs.shape, "<u2")
    np.left_shift(pairs, 4, out=merged)
    np.right_shift(pairs, 8, out=pairs)
    np.bitwise_or(merged, pairs, out=merged)
    packed = work.array("nf4.packed", pairs.shape, "|u1")
    np.copyto(packed, merged, casting="unsafe")
    return packed


def unpack(packed: Array, out: Array) -> None:
    """The levels of flat bytes of codes, into float32 `out`."""
    _pairs().take(packed, out=out.reshape(-1).view("<u8"), mode="wrap")


def magnitudes(blocks: Array, work: Workspace) -> Array:
    """The largest magnitude of each block, float32."""
    scratch = work.array("nf4.scratch", blocks.shape, "<f4")
    found = kernels.largest_magnitudes(blocks[None])
    if found is not None:
        return found.reshape(-1)
    # as integers: non-negative floats sort like their bit patterns, and integers reduce ten times as fast
    patterns = np.abs(blocks, out=scratch).reshape(-1).view("<i4")
    starts = np.arange(0, blocks.size, blocks.shape[1])
    largest: Array = np.maximum.reduceat(patterns, starts).view(np.float32)
    return largest


def fitted(blocks: Array, absmax: Array, limit: float, work: Workspace, heed: Array | None = None) -> Array:
    """For each block the scale, near its `absmax` and at most `limit`, under which the nearest levels lose least;
    errors count by `heed`, float32 as the blocks, where that is given.

    From each start the levels are chosen and the scale is fitted to them by least squares; the best goes on,
    choosing and fitting in turn, until nothing changes: a local optimum.
    """
    found = None if heed is not None else kernels.search_levels(blocks, absmax, _searched(limit))
    if found is not None:
        return found
    units = _units(blocks, absmax, heed, work)
    ratio, gain = units.fit(np.full(len(blocks), STARTS[0], np.float32), None, work)
    for start in STARTS[1:]:
        other, more = units.fit(np.full(len(blocks), start, np.float32), None, work)
        np.copyto(ratio, other, where=more > gain)
        np.maximum(gain, more, out=gain)
    moving = np.arange(len(blocks))
    for _ in range(_TURNS):
        held = ratio[moving]
        ratio[moving], _ = units.fit(held, moving, work)
        moving = moving[ratio[moving] != held]
        if not len(moving):
            break
    with np.errstate(over="ignore"):
        scale: Array = np.minimum(absmax * units.exact(ratio, None, work)[0], np.float32(limit))
    return scale


def lost(blocks: Array, scale: Array, heed: Array | None, work: Workspace) -> Array:
    """Σ (w − s · level)² of each block, float64, errors counted by `heed` where that is given."""
    units, error = (work.array(f"nf4.{name}", blocks.shape, "<f4") for name in ("trial", "error"))
    codes = work.array("nf4.codes", blocks.shape, "|u1")
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None]
    with np.errstate(over="ignore"):
        np.divide(blocks, divisor, out=units)  # in units of the scale, whose square may be out of range
    nearest(units, codes, work)
    np.subtract(units, levels().take(codes, out=error, mode="wrap"), out=error)
    counted = error if heed is None else np.multiply(error, heed, out=units)
    found: Array = dots(error, counted).astype(np.float64) * np.square(divisor[:, 0], dtype=np.float64)
    return found


@dataclass(frozen=True)
class _Units:
    """Weights of blocks over the largest magnitudes: float32 `unit`, int16 in fine and in coarse units; `heed` is
    what errors of them count."""

    unit: Array
    fine: Array
    coarse: Array
    heed: Array | None

    def fit(self, ratio: Array, which: Array | None, work: Workspace) -> tuple[Array, Array]:
        """With the levels nearest to unit/ratio, of the blocks `which` or of all: the ratio that fits them best,
        and by how much it lowers Σ unit²."""
        if self.heed is not None:
            return self.exact(ratio, which, work)
        fine, coarse = (_of(one, which) for one in (self.fine, self.coarse))
        chosen = _chosen(fine, ratio, _whole_levels(), work)
        by_unit, by_level = (np.multiply(one, chosen, dtype=np.int32).sum(1, np.int64) for one in (coarse, chosen))
        return _ratio(by_unit * (1 / (_COARSE * _LEVEL)), by_level * (1 / _LEVEL**2))

    def exact(self, ratio: Array, which: Array | None, work: Workspace) -> tuple[Array, Array]:
        """What `fit` gives, in float32, by what errors count."""
        unit = _of(self.unit, which)
        chosen = _chosen(_of(self.fine, which), ratio, levels(), work)
        counted = chosen
        if self.heed is not None:
            room = work.array("nf4.counted", chosen.shape, "<f4")
            counted = np.multiply(chosen, _of(self.heed, which), out=room)
        return _ratio(dots(unit, counted), dots(chosen, counted))


def _of(values: Array, which: Array | None) -> Array:
    """These blocks, or all."""
    return values if which is None or len(which) == len(values) else values[which]


def _units(blocks: Array, absmax: Array, heed: Array | None, work: Workspace) -> _Units:
    """The weights in units of their blocks' largest magnitudes."""
    unit = work.array("nf4.unit", blocks.shape, "<f4")
    scaled = work.array("nf4.rounded", blocks.shape, "<f4")
    np.divide(blocks, np.where(absmax > 0, absmax, np.float32(1))[:, None], out=unit)
    found = []
    for whole in (_FINE, _COARSE):
        np.rint(np.multiply(unit, np.float32(whole), out=scaled), out=scaled)
        found.append(work.array(f"nf4.units{whole}", blocks.shape, "<i2"))
        np.copyto(found[-1], scaled, casting="unsafe")
    return _Units(unit, found[0], found[1], heed)


def _ratio(by_unit: Array, by_level: Array) -> tuple[Array, Array]:
    """The ratio that fits the levels of such sums best, and by how much it lowers Σ unit²."""
    product, square = by_unit.astype(np.float32), by_level.astype(np.float32)
    best = np.divide(product, square, out=np.ones_like(square), where=square > 0)
    np.clip(best, np.float32(LEAST), np.float32(MOST), out=best)
    return best, best * (2 * product - best * square)


def _chosen(fine: Array, ratio: Array, levels: Array, work: Workspace) -> Array:
    """Those of the levels that are nearest to fine units over the ratio."""
    steps = work.array("nf4.steps", fine.shape, "<i4")
    factors = np.rint(np.float32(1 << 14) / ratio).astype(np.int32)
    np.multiply(fine, factors[:, None], out=steps)
    np.right_shift(np.add(steps, 1 << 14, out=steps), 15, out=steps)
    np.clip(np.multiply(steps, 2, out=steps), -(1 << 15), (1 << 15) - 1, out=steps)
    np.bitwise_and(np.right_shift(steps, 4, out=steps), (1 << 12) - 1, out=steps)
    chosen: Array = work.array(f"nf4.chosen.{levels.dtype}", fine.shape, levels.dtype.str)
    return levels[_grid()].take(steps, out=chosen, mode="wrap")


def _fixed(table: Array) -> Array:
    table.setflags(write=False)
    return table
