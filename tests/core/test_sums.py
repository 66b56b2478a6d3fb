"""Sums have the order that is stated, and logarithms and powers the digits that they should."""

from __future__ import annotations

from fractions import Fraction
from math import log2
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.core import elementary
from compressor.core.metrics import dot
from compressor.core.sums import LANES, RUN, dots

Array = npt.NDArray[Any]


def as_stated(a: Array, b: Array) -> float:
    """Σ a·b of one row, step by step as `core/sums.py` says it."""
    total = np.float64(0)
    for first in range(0, a.size, RUN):
        lanes = np.zeros(LANES, a.dtype)
        for place, (one, other) in enumerate(zip(a[first : first + RUN], b[first : first + RUN], strict=True)):
            lanes[place % LANES] += one * other
        wide = lanes.astype(np.float64)
        while wide.size > 1:
            wide = wide[: wide.size // 2] + wide[wide.size // 2 :]
        total += wide[0]
    return float(total)


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("size", [0, 1, 2, 7, 31, 32, 33, 100, RUN - 1, RUN, RUN + 1, 2 * RUN, 2 * RUN + 45])
def test_the_order_is_the_stated_one(dtype: str, size: int) -> None:
    random = np.random.default_rng(size)
    a, b = (random.standard_normal((3, size)).astype(dtype) for _ in range(2))
    assert dots(a, b).tolist() == [as_stated(*row) for row in zip(a, b, strict=True)]
    assert dots(a[:, ::-1], b[:, ::-1]).tolist() == [as_stated(*row) for row in zip(a[:, ::-1], b[:, ::-1])]  # noqa: B905


def pairwise(row: Array) -> Any:
    """What NumPy's `np.add.reduce` does with a contiguous axis."""
    if row.size < 8:
        total = row.dtype.type(-0.0)
        for number in row:
            total = total + number
        return total
    if row.size <= 128:
        part = row[: row.size - row.size % 8].reshape(-1, 8)
        lanes = part[0].copy()
        for more in part[1:]:
            lanes += more
        total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))
        for number in row[part.size :]:
            total = total + number
        return total
    half = row.size // 2 // 8 * 8
    return pairwise(row[:half]) + pairwise(row[half:])


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 31, 127, 128, 129, 300, 5000])
def test_numpy_adds_up_as_we_think(dtype: str, size: int) -> None:
    rows = np.random.default_rng(size).standard_normal((3, size)).astype(dtype)
    assert np.add.reduce(rows, axis=1).tolist() == [pairwise(row) for row in rows]
    starts = np.arange(0, rows.size, size)
    ends = [row[0] + pairwise(row[1:]) if size > 1 else row[0] for row in rows]
    assert np.add.reduceat(rows.reshape(-1), starts).tolist() == ends
    one_by_one = [rows[0].copy()]
    for row in rows[1:]:
        one_by_one.append(one_by_one[-1] + row)
    assert np.add.accumulate(rows, axis=0).tobytes() == np.stack(one_by_one).tobytes()
    assert np.add.reduce(rows, axis=0).tobytes() == one_by_one[-1].tobytes()


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(dtype, size) for dtype in ("<f4", "<f8") for size in (1e-30, 1e-20, 1.0, 1e20, 1e30)]
    + [("<f8", size) for size in (1e-300, 1e-170, 1e150)],
)
def test_a_sum_of_squares_neither_overflows_nor_vanishes(dtype: str, size: float) -> None:
    values = (np.random.default_rng(1).standard_normal(1000) * size).astype(dtype)
    exact = float(sum(Fraction(float(value)) ** 2 for value in values)) if values.any() else 0.0
    with np.errstate(all="ignore"):
        assert dot(values, values) == pytest.approx(exact, rel=1e-5, abs=0)
        assert dot(values, np.zeros_like(values)) == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_seen(wrong: float) -> None:
    for dtype in ("<f4", "<f8"):
        with np.errstate(all="ignore"):
            assert not np.isfinite(dot(np.array([1, wrong], dtype), np.array([1, wrong], dtype)))


@given(st.floats(5e-324, 1.7e308))
def test_logarithms(number: float) -> None:
    assert float(elementary.log2(number)) == pytest.approx(log2(number), rel=1e-15, abs=1e-16)


@given(st.floats(-1070, 1020))
def test_powers_of_two(number: float) -> None:
    assert float(elementary.exp2(number)) == pytest.approx(2.0**number, rel=1e-15, abs=5e-324)


def test_whole_powers_are_exact() -> None:
    for power in range(-1074, 1024):
        assert float(elementary.exp2(power)) == 2.0**power
        assert float(elementary.log2(2.0**power)) == power
    assert float(elementary.exp2(5000)) == np.inf
    assert float(elementary.exp2(-5000)) == 0
    assert elementary.log2(np.array([3, 5], np.int64)).tolist() == pytest.approx([log2(3), log2(5)], rel=1e-15)


@pytest.mark.parametrize("exponent", [-0.3, 0.5, 3.0])
def test_powers(exponent: float) -> None:
    random = np.random.default_rng(3)
    values = np.abs(random.standard_normal(2000)) * 2.0 ** random.integers(-20, 20, 2000) + 1e-9
    assert np.allclose(elementary.power(values, exponent), values**exponent, rtol=1e-13, atol=0)
    for dtype, within in (("<f4", 6.1e-8), ("<f8", 1e-13)):
        base = values.astype(dtype)
        found = elementary.power_into(base, exponent, np.empty_like(base))
        exact = base.astype(np.float64) ** exponent
        assert found.dtype == base.dtype
        assert np.all(np.abs(found - exact) <= within * exact)
