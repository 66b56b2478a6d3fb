"""The searches for scales of ggml's types, in NumPy: what the compiled kernels do (core/kernels/ggml.c), bit for
bit.

Weights that share a scale are a column of [size, groups], float32. All steps work on whole rows of that, and every
sum goes down the columns from the first weight on, so that the bytes do not depend on the processor.

A scale, x ≈ s·q: candidates say which code (not only whole numbers) the weight of largest magnitude has. Codes q
of a candidate tell by two sums the scale of least squares, s = Σ x q / Σ q², and how much it explains, (Σ x q)² /
Σ q²; the candidate that explains most wins, and its codes are rounded by s and refitted once more.

A scale and a least value, x ≈ s·q + m: candidates are pairs of codes of the least and the largest weight, and the
fit is that of a line. K types store −m and want it no less than zero.

Blocks of sub-blocks: s and −m are small integers times float16 numbers d and e of the block. Each sub-block tries
the integers about the nearest ones by the error that they give; then d and e are fitted to all codes at once, and
the integers tried again. The better of both rounds is stored.

Errors are Σ w (x − x')², with w the importance of columns where there is one, as llama.cpp's importance matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.core.lazy import np
from compressor.core.workspace import Array

_ANCHOR = 12582912.0  # 1.5 · 2^23: adding it rounds to whole numbers, halves to even
_NOTHING = 1e-15  # groups without a larger weight are zero
_HALFWAY = 0.4  # what lies so far beyond a code is rounded to it yet
_FLAT = 1e-5  # codes whose variance is a smaller part of their mean square tell no slope
LARGEST_HALF = 65504.0

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # of IQ4_NL and IQ4_XS
_NEIGHBOURS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (1, 1), (-1, -1))  # steps of a scale and a least value
_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Codes:
    """Whole numbers from `low` to `high`; or, where `uneven`, the 16 LEVELS."""

    low: int
    high: int
    uneven: bool = False


@dataclass(frozen=True, slots=True)
class Columns:
    """Weights `x` [size, groups] and their importance `w`, of the same shape, or None."""

    x: Array
    w: Array | None

    def times(self, values: Array) -> Array:
        """Values times their importance."""
        return values if self.w is None else self.w * values


@dataclass(slots=True)
class Found:
    """What is found of blocks: `d` and `e` (float16 numbers) and integers `s` and `n` for each sub-block, float32
    [groups]."""

    d: Array
    e: Array
    s: Array
    n: Array


def down(terms: Array) -> Array:
    """Σ of each column, from the first row on."""
    total = np.zeros(terms.shape[1], np.float32)
    for row in terms:
        total += row
    return total


def _across(terms: Array) -> Array:
    """Σ of each row, from the first column on, float32 [rows, 1]."""
    total = np.zeros((len(terms), 1), np.float32)
    for column in range(terms.shape[1]):
        total += terms[:, column : column + 1]
    return total


def _rounded(values: Array) -> Array:
    found: Array = (values + np.float32(_ANCHOR)) - np.float32(_ANCHOR)
    return found


def as_half(values: Array) -> Array:
    """The float16 numbers nearest to float32 `values`, of those out of range the largest, as float32."""
    found: Array = np.clip(values, -LARGEST_HALF, LARGEST_HALF).astype(np.float16).astype(np.float32)
    return found


def nearest(values: Array, codes: Codes, clipped: bool = True) -> Array:
    """The codes nearest to `values`, as float32; with `clipped` none lies beyond the lowest or the highest."""
    if not codes.uneven and not clipped:
        return _rounded(values)
    if not codes.uneven:
        found: Array = np.clip(_rounded(values), np.float32(codes.low), np.float32(codes.high))
        return found
    levels = np.array(LEVELS, np.float32)
    middles = (levels[:-1] + levels[1:]) * np.float32(0.5)
    return levels[np.searchsorted(middles, values, side="left")]


def _inverse(scale: Array) -> Array:
    return np.where(scale != 0, np.float32(1) / np.where(scale != 0, scale, np.float32(1)), np.float32(0))


# ---- a scale ---------------------------------------------------------------------------------------------


def search_scale(columns: Columns, codes: Codes, candidates: Sequence[float]) -> Array:
    """s of each column, float32 [groups]."""
    x = columns.x
    high, low = np.maximum(x.max(axis=0), 0), np.minimum(x.min(axis=0), 0)
    top = np.where(high >= -low, high, low)
    empty = np.abs(top) < np.float32(_NOTHING)
    scale = np.zeros(x.shape[1], np.float32)
    best = np.zeros(x.shape[1], np.float32)
    for candidate in (*candidates, None):
        if candidate is None:
            inverse = _inverse(scale)
        else:
            inverse = np.where(empty, np.float32(0), np.float32(candidate) / np.where(empty, np.float32(1), top))
        q = nearest(x * inverse, codes)
        wq = columns.times(q)
        product, square = down(wq * x), down(wq * q)
        fitted = product / np.where(square > 0, square, np.float32(1))
        gain = product * fitted
        better = gain > best
        best = np.where(better, gain, best)
        scale = np.where(better, fitted, scale)
    return scale


# ---- a scale and a least value ---------------------------------------------------------------------------


@dataclass(slots=True)
class _Sums:
    """Σ w, Σ w x, Σ w q, Σ w q², Σ w q x of each column."""

    w: Array
    x: Array
    q: Array
    qq: Array
    xq: Array


def _sums(columns: Columns, q: Array, fixed: tuple[Array, Array]) -> _Sums:
    wq = columns.times(q)
    return _Sums(*fixed, down(wq), down(wq * q), down(wq * columns.x))


def _fixed_sums(columns: Columns) -> tuple[Array, Array]:
    ones = np.ones_like(columns.x) if columns.w is None else columns.w
    return down(ones), down(columns.times(columns.x))


def _fit(sums: _Sums, positive: bool, scale: Array, least: Array) -> tuple[Array, Array, Array]:
    """The scale and least value of least squares for codes, and what they explain; where codes tell none, those
    given. With `positive` no least value is above zero."""
    w, x, q, qq, xq = sums.w, sums.x, sums.q, sums.qq, sums.xq
    apart = w * qq
    spread = apart - q * q
    told = spread > np.float32(_FLAT) * apart
    by = np.where(told, spread, np.float32(1))
    a = np.where(told, (w * xq - x * q) / by, scale)
    m = np.where(told, (qq * x - q * xq) / by, least)
    if positive:
        above = m > 0
        a = np.where(above, np.where(qq > 0, xq / np.where(qq > 0, qq, np.float32(1)), np.float32(0)), a)
        m = np.where(above, np.float32(0), m)
    two = np.float32(2)
    explained = a * ((two * xq - a * qq) - two * m * q) + m * (two * x - m * w)
    return a, m, np.where(a > 0, explained, np.float32(-1))


def search_range(
    columns: Columns,
    codes: Codes,
    positive: bool,
    candidates: Sequence[tuple[float, float]],
    again: bool = True,
) -> tuple[Array, Array]:
    """s and m of each column, float32 [groups]; with `positive` no m is above zero. `again`: what candidates find
    is refitted once more."""
    x = columns.x
    high, low = x.max(axis=0), x.min(axis=0)
    fixed = _fixed_sums(columns)
    mean = fixed[1] / np.where(fixed[0] > 0, fixed[0], np.float32(1))
    if positive:
        low = np.where(low > 0, np.float32(0), low)
        mean = np.where(mean > 0, np.float32(0), mean)
    least, scale = mean, np.zeros(x.shape[1], np.float32)
    best = least * (np.float32(2) * fixed[1] - least * fixed[0])
    span = high - low
    for pair in (*candidates, *((None,) if again else ())):
        clipped = pair is None or positive or pair[0] < -_HALFWAY or pair[1] > _HALFWAY
        if pair is None:
            a, m = scale, least
        else:
            first, last = np.float32(pair[0]), np.float32(codes.high) + np.float32(pair[1])
            a = span / (last - first)
            a = np.where(span < np.float32(_NOTHING), np.float32(0), a)
            m = low - first * a
        a = np.where(span < np.float32(_NOTHING), np.float32(0), a)
        if positive:
            m = np.where(m > 0, np.float32(0), m)
        inverse = np.where(a > 0, np.float32(1) / np.where(a > 0, a, np.float32(1)), np.float32(0))
        q = nearest((x + -m) * inverse, codes, clipped)
        a, m, gain = _fit(_sums(columns, q, fixed), positive, a, m)
        better = gain > best
        best = np.where(better, gain, best)
        scale = np.where(better, a, scale)
        least = np.where(better, m, least)
    return scale, least


# ---- what is settled -------------------------------------------------------------------------------------


def settle(x: Array, codes: Codes, scale: Array, under: Array | float) -> tuple[Array, Array]:
    """The codes of x by s and −m, and what they stand for, s·q − (−m)."""
    q = nearest((x + under) * _inverse(scale), codes)
    return q, scale * q - under


def _misses(columns: Columns, codes: Codes, scale: Array, under: Array) -> Array:
    off = settle(columns.x, codes, scale, under)[1] - columns.x
    return down(columns.times(off) * off)


# ---- blocks of sub-blocks --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SubBlocks:
    """How a type stores scales: `subs` sub-blocks to a block, their integers from `bottom` to `top`, and whether
    there are least values, from 0 to `top`."""

    subs: int
    bottom: int
    top: int
    leasts: bool


def _whole(values: Array, unit: Array, bottom: int, top: int) -> Array:
    """The integers nearest to values / unit."""
    ratio = np.where(unit != 0, values / np.where(unit != 0, unit, np.float32(1)), np.float32(0))
    return np.clip(_rounded(ratio), np.float32(bottom), np.float32(top))


def search_block(columns: Columns, codes: Codes, kind: SubBlocks, scale: Array, least: Array) -> Found:
    """d, e and the integers of each sub-block for the scales and least values wanted, float32 [groups]."""
    subs = kind.subs
    fixed = _fixed_sums(columns)
    d, e = (np.repeat(as_half(unit), subs) for unit in _first_units(kind, scale, least))
    found = Found(d, e, d, e)
    lost = d
    for turn in range(_ROUNDS):
        s, n, missed = _neighbours(columns, codes, kind, _wanted(kind, scale, least, d, e), (d, e))
        total = np.repeat(_across(missed.reshape(-1, subs))[:, 0], subs)
        better = np.ones(total.shape, np.bool_) if turn == 0 else total < lost
        lost = np.where(better, total, lost)
        found = Found(
            *(np.where(better, new, old) for new, old in ((d, found.d), (e, found.e), (s, found.s), (n, found.n)))
        )
        if turn + 1 < _ROUNDS:
            q = nearest((columns.x + e * n) * _inverse(d * s), codes)
            sums = _sums(columns, q, fixed)
            d, e = (as_half(np.repeat(unit, subs)) for unit in _refitted(kind, sums, s, n, d, e))
            if kind.leasts:
                a, m, gain = _fit(sums, True, scale, least)
                scale, least = np.where(gain > 0, a, scale), np.where(gain > 0, m, least)
            else:
                told = sums.qq > 0
                scale = np.where(told, sums.xq / np.where(told, sums.qq, np.float32(1)), scale)
    return found


def _first_units(kind: SubBlocks, scale: Array, least: Array) -> tuple[Array, Array]:
    """d and e with which the largest scale and least value of a block are their largest integers."""
    grouped = scale.reshape(-1, kind.subs)
    high, low = np.maximum(grouped.max(axis=1), 0), np.minimum(grouped.min(axis=1), 0)
    deep = np.maximum((-least).reshape(-1, kind.subs).max(axis=1), 0)
    bottom, top = np.float32(kind.bottom), np.float32(kind.top)
    if kind.bottom < 0:
        return np.where(high >= -low, high, low) / bottom, deep / top
    return high / top, deep / top


def _wanted(kind: SubBlocks, scale: Array, least: Array, d: Array, e: Array) -> tuple[Array, Array]:
    return _whole(scale, d, kind.bottom, kind.top), _whole(-least, e, 0, kind.top)


def _neighbours(
    columns: Columns, codes: Codes, kind: SubBlocks, near: tuple[Array, Array], units: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """Of the integers about those that are `near` the ones that lose least, and what they lose."""
    best_s, best_n = near
    fewest = np.full(near[0].shape, np.inf, np.float32)
    for step, other in _NEIGHBOURS if kind.leasts else _NEIGHBOURS[:3]:
        s = np.clip(near[0] + np.float32(step), np.float32(kind.bottom), np.float32(kind.top))
        n = np.zeros_like(s)
        if kind.leasts:
            n = np.clip(near[1] + np.float32(other), np.float32(0), np.float32(kind.top))
        missed = _misses(columns, codes, units[0] * s, units[1] * n)
        better = missed < fewest
        fewest = np.where(better, missed, fewest)
        best_s, best_n = np.where(better, s, best_s), np.where(better, n, best_n)
    return best_s, best_n, fewest


def _refitted(kind: SubBlocks, sums: _Sums, s: Array, n: Array, d: Array, e: Array) -> tuple[Array, Array]:
    """d and e of least squares for each block's codes, integers given; those given where codes tell none."""

    def total(terms: Array) -> Array:
        return _across(terms.reshape(-1, kind.subs))[:, 0]

    unit, step = d[:: kind.subs], e[:: kind.subs]
    uu, ux = total(s * s * sums.qq), total(s * sums.xq)
    vv, uv, vx = total(n * n * sums.w), total(s * n * sums.q), total(n * sums.x)
    alone = np.where(uu > 0, ux / np.where(uu > 0, uu, np.float32(1)), unit)
    if not kind.leasts:
        return alone, step
    apart = uu * vv
    spread = apart - uv * uv
    told = spread > np.float32(_FLAT) * apart
    by = np.where(told, spread, np.float32(1))
    one, other = (vv * ux - uv * vx) / by, (uv * ux - uu * vx) / by
    good = told & (one > 0) & (other > 0)
    unit, step = np.where(good, one, unit), np.where(good, other, step)
    return np.where(vv == 0, alone, unit), step
