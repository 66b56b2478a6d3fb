"""The small numeric pieces against plain definitions: bit streams, float conversion, metrics, working memory."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.core import bitpacking as bits
from compressor.core import floats
from compressor.core.metrics import Change, Comparison, Moments, count_zeros, dot
from compressor.core.workspace import Workspace


@given(
    width=st.integers(1, 8),
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    slack=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_bit_streams_are_little_endian_and_come_back(
    width: int, rows: int, columns: int, slack: int, seed: int
) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << width, (rows, columns)).astype(np.uint8)
    used = bits.row_bytes(columns, width)
    out = np.full((rows, used + slack), 255, np.uint8)
    bits.pack(codes, width, out, Workspace())
    single = np.unpackbits(codes[:, :, None], axis=2, bitorder="little")[:, :, :width].reshape(rows, -1)
    assert np.array_equal(out[:, :used], np.packbits(single, axis=1, bitorder="little"))
    assert not out[:, used:].any()
    back = np.empty_like(codes)
    bits.unpack(out, width, back, Workspace())
    assert np.array_equal(back, codes)


TYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


@pytest.mark.parametrize("dtype", TYPES)
def test_every_code_widens_exactly_and_narrows_back(dtype: str) -> None:
    kind = TYPES[dtype]
    storage = np.uint16 if np.dtype(kind).itemsize == 2 else np.uint8
    codes = np.arange(1 << (8 * np.dtype(kind).itemsize), dtype=storage)
    raw = codes.view(np.float16) if dtype == "F16" else codes
    work = Workspace()
    wide = floats.widen(raw, dtype, work)
    assert wide.dtype == np.float32
    with np.errstate(invalid="ignore"):  # some processors signal a signalling NaN
        expected = codes.view(kind).astype(np.float32)
    assert np.array_equal(wide, expected, equal_nan=True)
    finite = np.isfinite(wide)
    out = np.empty_like(raw)
    floats.narrow(wide, dtype, out)
    assert np.array_equal(out.view(storage)[finite], codes[finite])
    floats.narrow_exact(np.ascontiguousarray(wide), dtype, out, work)
    assert np.array_equal(out.view(storage)[finite], codes[finite])


@pytest.mark.parametrize(
    ("dtype", "largest", "smallest"),
    [
        ("F64", np.finfo(np.float64).max, 5e-324),
        ("F32", np.finfo(np.float32).max, 2.0**-149),
        ("F16", 65504.0, 2.0**-24),
        ("BF16", 3.3895313892515355e38, 2.0**-133),
        ("F8_E4M3", 448.0, 2.0**-9),
        ("F8_E5M2", 57344.0, 2.0**-16),
    ],
)
def test_limits_of_float_types(dtype: str, largest: float, smallest: float) -> None:
    assert floats.largest(dtype) == largest
    assert floats.smallest(dtype) == smallest


def test_narrowing_rounds_halves_to_even() -> None:
    out = np.empty(4, np.uint16)
    floats.narrow(np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 3.4e38], np.float32), "BF16", out)
    assert out.view(ml_dtypes.bfloat16).astype(float).tolist() == [1.0, 1.015625, -1.0, np.inf]


@np.errstate(all="ignore")
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50))
def test_dot_equals_the_sum_in_double(values: list[float]) -> None:
    array = np.array(values, np.float32)
    assert dot(array, array) == pytest.approx(float(np.sum(array.astype(np.float64) ** 2)), rel=1e-5)


@np.errstate(all="ignore")
def test_dot_survives_the_ends_of_the_range() -> None:
    assert dot(np.full(3, 3e38, np.float32), np.full(3, 3e38, np.float32)) == pytest.approx(2.7e77)
    assert dot(np.full(2, 1e-40, np.float32), np.full(2, 1e-40, np.float32)) == pytest.approx(2e-80, rel=1e-3)
    assert np.isnan(dot(np.array([np.nan]), np.array([1.0])))


def test_metrics_merge_to_the_whole() -> None:
    a = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    b = np.where(np.abs(a) < 0.5, 0, a).astype(np.float32)
    total = Change()
    for part in (slice(0, 30), slice(30, 100)):
        x, y = a[part], b[part]
        work = Workspace()
        total.merge(Change(x.size, count_zeros(x, work), count_zeros(y, work), dot(x, x), dot(x - y, x - y)))
    assert total.error == pytest.approx(float(np.linalg.norm(a - b) / np.linalg.norm(a)), rel=1e-5)
    assert total.sparsity_after == np.mean(b == 0)
    moments = Moments()
    moments.add(a[:40])
    other = Moments()
    other.add(a[40:])
    moments.merge(other)
    assert (moments.low, moments.high) == (a.min(), a.max())
    assert moments.deviation == pytest.approx(float(a.std()), rel=1e-5)


@pytest.mark.parametrize("scale", [1e300, 1e160, 1.0, 1e-160, 1e-300])
def test_moments_of_numbers_whose_squares_no_float_holds(scale: float) -> None:
    random = np.random.default_rng(0).standard_normal(400)
    moments = Moments()
    for block in (np.zeros(100), random[:100] * scale, random[100:] * scale):
        more = Moments()
        more.add(block)
        moments.merge(more)
    whole = np.concatenate([np.zeros(100), random])
    assert moments.mean == pytest.approx(whole.mean() * scale, rel=1e-9, abs=0)
    assert moments.deviation == pytest.approx(whole.std() * scale, rel=1e-9, abs=0)
    odd = Moments()
    odd.add(np.array([1e300, 1.0]))
    odd.add(np.array([1e-300, -1e300]))
    assert odd.deviation == pytest.approx(1e300 / np.sqrt(2), rel=1e-9)


def test_degenerate_metrics_are_defined() -> None:
    assert Change().error == 0
    assert Change(1, 0, 0, 0.0, 1.0).error == np.inf
    assert Comparison(2, 2, 2).cosine == 1
    assert Comparison(2, 0, 2, energy=1.0, lost=1.0).cosine == 0
    assert Comparison(2, 0, 2, energy=1.0, lost=1.0).sqnr == 0
    assert Comparison(2, 2, 0, energy=0.0, lost=1.0, energy_b=1.0).sqnr == -np.inf
    moments = Moments()
    moments.add(np.array([np.nan, np.inf], np.float32))
    assert (moments.non_finite, moments.mean, moments.deviation) == (2, 0, 0)


def test_workspace_gives_the_same_memory_again() -> None:
    work = Workspace()
    first = work.array("a", (4, 4), "<f4")
    assert work.array("a", (4, 4), "<f4") is first
    assert np.shares_memory(work.array("a", (2, 2), "<f8"), first)
    work.array("a", (100,), "<f4")
    for size in range(1, 600):
        assert work.array("b", (size,), "|u1").shape == (size,)
