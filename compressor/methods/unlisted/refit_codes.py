"""Scales, zero points and codebook entries whose outputs are nearest to given ones, the codes staying as they are.

A row of integer codes q is Σ_g s_g c_g, where c_g holds q − z within group g and zeros elsewhere. So the scales s
of a row minimise a quadratic, with the damped gram H and the wanted row t:

    A s = b,   A_gh = c_g H c_hᵀ,   b_g = c_g H tᵀ

With zero points β_g = −s_g z_g is solved for beside s_g, and z_g is rounded; the scales are then solved again for
it. A codebook is solved alike, c_k being one where the code is k; entries that are zero stay so. Scales keep their
sign. What is stored is rounded to its dtype; a row, or a codebook, that then would lose more than it did stays as
it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressor.core import bitpacking as bitstream
from compressor.core.errors import InputError
from compressor.core.floats import widen
from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.contract import Block, Coded, Decoder
from compressor.methods.numerics.hessian import ROWS
from compressor.methods.quantize.codebook import Codebook, rounded
from compressor.methods.quantize.int import Int

_SYSTEM = 1 << 21  # numbers of the equations of some rows at most


def knows(decoder: Decoder) -> bool:
    """Whether the parts that `decoder` reads can be refit while their codes stay."""
    return type(decoder) is Codebook or (type(decoder) is Int and decoder.layout != "mlx")


def shared(decoder: Decoder) -> bool:
    """Whether all rows of a tensor share the numbers that are refit."""
    if isinstance(decoder, Codebook):
        return decoder.rows is None
    return isinstance(decoder, Int) and decoder.grain == "tensor"


def refit(
    block: Block,
    wanted: Array,
    gram: Array,
    target: Decoder | None,
    parts: Mapping[str, Array] | None,
    restored: Array,
    *,
    zero_points: bool,
) -> None:
    """The codes of a block [rows, columns] with other scales or entries for the `wanted` weights (float64): into
    `parts`, which `target` declares, and as numbers into `restored`."""
    assert block.coded is not None  # noqa: S101 - who calls looked
    encoder = block.coded.decoder
    with np.errstate(all="ignore"):  # what leaves the range is no better, and so not taken
        if isinstance(encoder, Codebook):
            _codebook(encoder, block, block.coded, wanted, gram, parts, restored)
            return
        assert isinstance(encoder, Int)  # noqa: S101 - it is one that is known
        power = _power(wanted, block.values, 0 if shared(encoder) else 1)
        scales = _Scales(encoder, block, block.coded, gram, power)
        scales.run(np.ldexp(wanted, -power), target, parts, restored, move=zero_points)


def _power(wanted: Array, student: Array, axis: int) -> Array:
    """The power of two that makes numbers about 1: of each row [rows, 1], or with axis 0 of all rows [1, 1]."""
    tops = np.maximum(np.abs(wanted).max(axis=1), np.abs(student).max(axis=1)).reshape(-1, 1)
    top = tops if axis else tops.max(axis=0, keepdims=True)
    found: Array = np.frexp(top)[1]
    return found


class _Scales:
    """The scales of one block's integer codes, in units of 2^power [rows or 1, 1]."""

    def __init__(self, encoder: Int, block: Block, coded: Coded, gram: Array, power: Array) -> None:
        self.encoder, self.block, self.gram, self.power = encoder, block, gram, power
        layout, work = encoder.scaled_form(block.spec), block.work
        self.codes = work.array("codes.codes", block.values.shape, "|u1")
        zero = layout.unpack(coded.parts, self.codes, work)
        self.grouped = encoder.grouped(self.codes)
        rows, groups, _ = self.grouped.shape
        shape = (1 if shared(encoder) else rows, groups)
        self.stored = np.array(layout.scales(coded.parts)).reshape(shape)
        self.rule = encoder.rule(block.spec)
        self.zero = None if zero is None else zero.astype(np.float64).reshape(shape)

    def run(
        self,
        wanted: Array,
        target: Decoder | None,
        parts: Mapping[str, Array] | None,
        restored: Array,
        *,
        move: bool,
    ) -> None:
        encoder, spec, work = self.encoder, self.block.spec, self.block.work
        toward = np.concatenate([rows @ self.gram for rows in _tiles(wanted)])[: len(wanted)]
        best, zero = self.stored, self.zero
        loss = _loss(self._numbers(best), *self._equations(zero, toward))
        for way in (zero, *([self._moved(toward)] if move and zero is not None else [])):
            left, right = self._equations(way, toward)
            found = self._settled(_solve(left, right, self._numbers(self.stored)), way)
            now = _loss(self._numbers(found), left, right)
            better = (now < loss)[:, None]
            best, loss = np.where(better, found, best), np.where(better[:, 0], now, loss)
            zero = None if way is None or zero is None else np.where(better, way, zero)
        made = target if isinstance(target, Int) else encoder
        if parts is not None:
            points = None if zero is None else zero.astype(np.uint8)
            made.form(spec).pack(self.codes, best, points, parts, self.block.start == 0, work)
        out, offset = encoder.grouped(restored), float(encoder.half) if zero is None else zero[..., None]
        np.subtract(self.grouped, offset, out=out, casting="same_kind")
        column = encoder.column(self.rule.numbers(best).astype(out.dtype, copy=False))
        made.form(spec).numbers(out, column, zero, made.scale_dtype(spec), work)

    def _numbers(self, stored: Array) -> Array:
        """Stored scales as numbers, in units."""
        wide: Array = self.rule.numbers(stored).astype(np.float64)
        return np.ldexp(wide, -self.power)

    def _settled(self, scale: Array, zero: Array | None) -> Array:
        """Scales in units as stored: of the old sign, and where that cannot be the old ones."""
        old = self._numbers(self.stored)
        usable = np.isfinite(scale) & ((scale > 0) == (old > 0)) & (scale != 0)
        wide = np.ldexp(np.where(usable, scale, old), self.power)
        stored = np.where(usable, self.rule.store(wide, zero)[0], self.stored)
        return self.encoder.form(self.block.spec).settle(self.grouped, stored, zero, self.rule.dtype)[0]

    def _equations(self, zero: Array | None, toward: Array, *, shifted: bool = False) -> tuple[Array, Array]:
        """A [rows, n, n] and b [rows, n] of the scales; `shifted` with one more unknown a group, added to all of
        its weights. Of one scale for all rows they are summed."""
        rows, groups, size = self.grouped.shape
        count = groups * (2 if shifted else 1)
        step = max(1, min(ROWS, _SYSTEM // (groups * size + count * count)))
        left, right = np.empty((rows, count, count)), np.empty((rows, count))
        centred = np.zeros((step, groups, size))
        for first in range(0, rows, step):
            here = slice(first, min(first + step, rows))
            offset: Any = float(self.encoder.half)
            if zero is not None:
                offset = (zero if len(zero) == 1 else zero[here])[..., None]
            held = centred[: here.stop - first]
            np.subtract(self.grouped[here], offset, out=held)
            for one in range(count):
                group, ones = one % groups, one >= groups
                part = np.ones((step, size)) if ones else centred[:, group]
                pushed = (part @ self.gram[group * size :][:size])[: len(held)].reshape(held.shape)
                left[here, one, :groups] = np.vecdot(pushed, held)
                if shifted:
                    left[here, one, groups:] = pushed.sum(axis=2)
                right[here, one] = np.vecdot(part[: len(held)], toward[here, group * size :][:, :size])
        if shared(self.encoder):
            return left.sum(axis=0, keepdims=True), right.sum(axis=0, keepdims=True)
        return left, right

    def _moved(self, toward: Array) -> Array:
        """Zero points [rows, groups] of the best offsets, the scales being free too."""
        assert self.zero is not None  # noqa: S101 - who calls looked
        groups = self.zero.shape[1]
        left, right = self._equations(self.zero, toward, shifted=True)
        start = np.concatenate([self._numbers(self.stored), np.zeros_like(self.zero)], axis=1)
        both = _solve(left, right, start)
        with np.errstate(all="ignore"):
            moved = self.zero - np.rint(both[:, groups:] / both[:, :groups])
        return np.clip(np.where(np.isfinite(moved), moved, self.zero), 0, 2 * self.encoder.half - 1)


def _loss(unknowns: Array, left: Array, right: Array) -> Array:
    """What each row loses, less what is the same whatever they are."""
    found: Array = np.vecdot((left @ unknowns[..., None])[..., 0], unknowns) - 2 * np.vecdot(right, unknowns)
    return found


def _solve(left: Array, right: Array, start: Array) -> Array:
    """Unknowns of each row; those that nothing depends on stay as they start."""
    left, right, count = left.copy(), right.copy(), left.shape[1]
    idle = np.diagonal(left, axis1=1, axis2=2) <= 0
    if idle.any():
        left[idle] = 0
        left.transpose(0, 2, 1)[idle] = 0
        rows, places = np.nonzero(idle)
        left[rows, places, places], right[idle] = 1, start[idle]
    # offsets and codes of a group may be one and the same; that little decides then
    left[:, range(count), range(count)] *= 1 + 1e-12
    try:
        return np.linalg.solve(left, right[..., None])[..., 0]
    except np.linalg.LinAlgError:
        return np.concatenate([_alone(*each) for each in zip(left, right, start, strict=True)])


def _alone(left: Array, right: Array, start: Array) -> Array:
    """One row where some have no answer: it, or what it starts with."""
    try:
        return np.linalg.solve(left, right)[None]
    except np.linalg.LinAlgError:
        return start[None]


def _tiles(rows: Array) -> Iterator[Array]:
    """Rows by 128, the last filled up with zeros, so that BLAS treats a row alike in whatever block it comes."""
    for first in range(0, len(rows), ROWS):
        part = rows[first : first + ROWS]
        if len(part) < ROWS:
            part = np.concatenate([part, np.zeros((ROWS - len(part), rows.shape[1]))])
        yield part


# ---- codebooks -----------------------------------------------------------------------------------------


def _codebook(
    encoder: Codebook,
    block: Block,
    coded: Coded,
    wanted: Array,
    gram: Array,
    parts: Mapping[str, Array] | None,
    restored: Array,
) -> None:
    spec, work, count = block.spec, block.work, encoder.entries
    codes = work.array("codes.codes", block.values.shape, "|u1")
    bitstream.unpack(coded.parts[".codes"], encoder.bits, codes, work)
    if codes.size and int(codes.max()) >= count:
        raise InputError(f"has a code beyond its codebook of {count}", tensor=spec.name)
    stored = np.array(coded.parts[".codebook"]).reshape(-1, count)
    old = widen(stored, spec.dtype, work, "codes.books").astype(np.float64)
    rows = encoder.rows or max(len(codes), 1)
    numbers = np.empty((len(stored), count), restored.dtype)
    for number in range(len(stored)):
        here = slice(number * rows, (number + 1) * rows)
        power = int(_power(wanted[here], block.values[here], 0)[0, 0])
        left, right = _book_equations(codes[here], np.ldexp(wanted[here], -power), gram, count)
        found = np.ldexp(old[number], -power)
        # entries without a code may be anything; not even their squares need be finite
        was = np.where(np.diagonal(left) > 0, found, 0.0)
        free = was != 0
        if free.any():
            found[free] = _solve(left[np.ix_(free, free)][None], right[free][None], found[free][None])[0]
        better, wide = rounded(np.ldexp(found, power)[None], spec)
        now, before = (
            _loss(one, left, right)
            for one in (np.where(was, np.ldexp(wide[0].astype(np.float64), -power), 0.0), was)
        )
        if now < before:
            order = np.argsort(wide[0], kind="stable")  # books ascend
            stored[number] = better[0, order]
            codes[here] = np.argsort(order).astype(np.uint8)[codes[here]]
        numbers[number] = widen(stored[number], spec.dtype, work, "codes.book")
        numbers[number].take(codes[here], out=restored[here], mode="clip")
    if parts is not None:
        bitstream.pack(codes, encoder.bits, parts[".codes"], work)
        if encoder.rows is not None or block.start == 0:
            parts[".codebook"][...] = stored.reshape(parts[".codebook"].shape)


def _book_equations(codes: Array, wanted: Array, gram: Array, count: int) -> tuple[Array, Array]:
    """A [entries, entries] and b [entries] of rows that share a codebook."""
    left, right = np.zeros((count, count)), np.zeros(count)
    for first in range(0, len(codes), ROWS):
        here = codes[first : first + ROWS]
        flat = here.reshape(-1)
        toward: Any = wanted[first : first + ROWS] @ gram
        right += np.bincount(flat, weights=toward.reshape(-1), minlength=count)
        for entry in np.unique(flat):
            pushed = (here == entry).astype(np.float64) @ gram
            left[entry] += np.bincount(flat, weights=pushed.reshape(-1), minlength=count)
    return left, right
