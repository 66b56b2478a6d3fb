"""The arithmetic of NF4: its 16 levels, the nearest of them, and the scale of a block that loses least.

A block is a row of a float32 matrix [blocks, size]. Everything about it depends on that block alone, so cuts do not
matter.
"""

from __future__ import annotations

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
_STEPS = 4096  # places of the search's table in a unit: a level is wrong only within 1/8192 of a midpoint


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
def _grid() -> Array:
    """The nearest level of k/`_STEPS` for every k, negative ones in two's complement of 16 bits."""
    steps = np.arange(1 << 16, dtype=np.uint16).view(np.int16)
    places = np.searchsorted(midpoints(), (steps / _STEPS).astype(np.float32))
    return _fixed(levels()[places])


@cache
def _searched(limit: float) -> kernels.SearchedLevels:
    """What the compiled search goes by."""
    order = np.array([8, 4, 12, 2, 6, 10, 14, *range(1, 16, 2)]) - 1
    tree = np.zeros(len(LEVELS), np.float32)
    tree[1:] = midpoints()[order] * np.float32(_STEPS)
    starts = np.array(STARTS, np.float32)
    return kernels.SearchedLevels(starts, LEAST, MOST, _STEPS, limit, _TURNS, _grid(), _fixed(tree), levels())


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


def fitted(blocks: Array, absmax: Array, limit: float, work: Workspace) -> Array:
    """For each block the scale, near its `absmax` and at most `limit`, under which the nearest levels lose least.

    From each start the levels are chosen and the scale is fitted to them by least squares; the best goes on,
    choosing and fitting in turn, until nothing changes: a local optimum.
    """
    found = kernels.search_levels(blocks, absmax, _searched(limit))
    if found is not None:
        return found
    unit = work.array("nf4.unit", blocks.shape, "<f4")
    np.divide(blocks, np.where(absmax > 0, absmax, np.float32(1))[:, None], out=unit)
    ratio, gain = _fit(unit, np.full(len(unit), STARTS[0], np.float32), None, work)
    for start in STARTS[1:]:
        other, more = _fit(unit, np.full(len(unit), start, np.float32), None, work)
        np.copyto(ratio, other, where=more > gain)
        np.maximum(gain, more, out=gain)
    moving = np.arange(len(unit))
    for _ in range(_TURNS):
        held = ratio[moving]
        ratio[moving], _ = _fit(unit, held, moving, work)
        moving = moving[ratio[moving] != held]
        if not len(moving):
            break
    with np.errstate(over="ignore"):
        scale: Array = np.minimum(absmax * ratio, np.float32(limit))
    return scale


def _fit(unit: Array, ratio: Array, chosen: Array | None, work: Workspace) -> tuple[Array, Array]:
    """With the levels nearest to unit/ratio, of the blocks that are chosen or of all: the ratio that fits them
    best, and by how much it lowers Σ unit²."""
    factors = np.float32(_STEPS) / ratio
    products = _products(unit, chosen, factors, work)
    product, square = (one.astype(np.float32) for one in products)
    best = np.divide(product, square, out=np.ones_like(square), where=square > 0)
    np.clip(best, np.float32(LEAST), np.float32(MOST), out=best)
    return best, best * (2 * product - best * square)


def _products(unit: Array, chosen: Array | None, factors: Array, work: Workspace) -> tuple[Array, Array]:
    """Σ u·t and Σ t² of blocks, t being the level at round(u · factor) of the grid."""
    if chosen is not None and len(chosen) < len(unit):
        unit = unit[chosen]
    places = work.array("nf4.places", unit.shape, "<f4")
    steps = work.array("nf4.steps", unit.shape, "<u2")
    levels = work.array("nf4.chosen", unit.shape, "<f4")
    np.multiply(unit, factors[:, None], out=places)
    np.add(places, np.float32(1.5 * 2.0**23), out=places)  # leaves the rounded integer in the lowest bits
    np.copyto(steps, places.view("<u4"), casting="unsafe")
    _grid().take(steps, out=levels, mode="wrap")
    return dots(unit, levels), dots(levels, levels)


def _fixed(table: Array) -> Array:
    table.setflags(write=False)
    return table
