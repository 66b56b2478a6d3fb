"""Differences from a base: what each form keeps of them."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from support import laws
from support.laws import numbers, store

from compressor.core.errors import InputError, UsageError
from compressor.core.floats import epsilon, largest
from compressor.core.tensor import TensorSpec
from compressor.methods.distill._delta_mixed import WIDTHS, ranks_for
from compressor.methods.distill.delta import Delta

FORMS: tuple[dict[str, Any], ...] = (
    {"form": "sign"},
    {"form": "sign", "bits": 2},
    {},
    {"form": "base"},
    {"form": "mixed"},
    {"form": "mixed", "bits": 3.5, "svd": "randomized"},
)


def pair(seed: int, rows: int, columns: int, dtype: str) -> tuple[TensorSpec, np.ndarray, np.ndarray]:
    """A fine-tune as stored, and its base as numbers: some rows and weights are the base's."""
    random = np.random.default_rng(seed)
    base = numbers(store(random.standard_normal((rows, columns)) * 0.1, dtype), dtype)
    change = random.standard_normal((rows, columns)) * random.choice([1e-4, 0.01, 1.0], (rows, 1))
    change[random.random((rows, columns)) < 0.2] = 0
    change[:: max(rows // 3, 2)] = 0
    return TensorSpec("w", dtype, (rows, columns)), store(base + change, dtype), base


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    dtype=st.sampled_from(["F32", "BF16", "F16", "F64", "F8_E4M3"]),
    options=st.sampled_from(FORMS),
)
def test_laws_hold_with_a_base(seed: int, rows: int, columns: int, dtype: str, options: dict[str, Any]) -> None:
    spec, raw, base = pair(seed, rows, columns, dtype)
    whole = laws.run(Delta(**options), spec, raw, teacher=base)
    assert laws.same_bits(laws.decode(whole, spec), whole.restored)
    assert laws.same_bits(laws.decode(whole, spec, 3), whole.restored)
    # a method that is not `whole` sees rows in any pieces
    pieces = laws.run(Delta(**options), spec, raw, teacher=base, size=5, garbage=0x5A)
    assert laws.same_bits(pieces.restored, whole.restored)
    assert {key: part.tobytes() for key, part in (pieces.parts or {}).items()} == {
        key: part.tobytes() for key, part in (whole.parts or {}).items()
    }
    same = (numbers(raw, dtype) == base).all(axis=1)
    if options.get("form") != "mixed":
        assert np.array_equal(whole.restored[same], base[same])  # rows of the base stay what they are
    if options.get("form") == "base":
        assert np.array_equal(whole.restored, base)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 20), columns=st.integers(1, 200))
def test_no_other_magnitude_loses_less(seed: int, rows: int, columns: int) -> None:
    spec, raw, base = pair(seed, rows, columns, "F32")
    change = raw.astype(np.float64) - base
    one = laws.run(Delta(form="sign"), spec, raw, teacher=base)
    two = laws.run(Delta(form="sign", bits=2), spec, raw, teacher=base)
    assert one.parts is not None
    assert two.parts is not None
    found = one.parts[".magnitudes"][:, 0].astype(np.float64)
    lost = ((np.abs(change) - found[:, None]) ** 2).sum(axis=1)
    slack = 1e-6 * (change**2).sum(axis=1)
    for factor in (0.9, 0.999, 1.001, 1.1):
        assert (((np.abs(change) - factor * found[:, None]) ** 2).sum(axis=1) >= lost - slack).all()
    low, high = two.parts[".magnitudes"].astype(np.float64).T[:, :, None]
    nearer = np.minimum((np.abs(change) - low) ** 2, (np.abs(change) - high) ** 2).sum(axis=1)
    assert (nearer <= lost + slack).all()  # a second bit never loses more


def test_normal_differences_lose_what_is_said() -> None:
    random = np.random.default_rng(5)
    base = random.standard_normal((64, 4096)).astype(np.float32)
    raw = (base + random.standard_normal(base.shape) * 0.01).astype(np.float32)
    spec = TensorSpec("w", "F32", base.shape)
    for bits, said in ((1, 0.603), (2, 0.343)):
        found = laws.run(Delta(form="sign", bits=bits), spec, raw, teacher=base).restored
        assert np.linalg.norm(found - raw) / np.linalg.norm(raw - base) == pytest.approx(said, abs=0.004)


def test_the_example_of_the_docstring() -> None:
    spec = TensorSpec("w", "F32", (1, 2))
    made = laws.run(Delta(form="sign"), spec, np.array([[1.5, 1]], "<f4"), teacher=np.array([[1, 2]], "<f4"))
    assert made.parts is not None
    assert (made.parts[".signs"].tolist(), made.parts[".magnitudes"].tolist()) == ([[1]], [[0.75]])
    assert made.restored.tolist() == [[1.75, 1.25]]


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(2, 40),
    columns=st.integers(2, 40),
    bits=st.sampled_from([0.5, 1, 2, 4]),
)
def test_ranks_take_no_more_bits_than_there_are(seed: int, rows: int, columns: int, bits: float) -> None:
    spec, raw, base = pair(seed, rows, columns, "F32")
    values = np.linalg.svd(raw.astype(np.float64) - base, compute_uv=False)
    ranks = ranks_for(values, spec, bits)
    taken = sum(count * ((rows + columns) * width + 64) for count, width in zip(ranks, WIDTHS, strict=True))
    assert taken <= bits * rows * columns or ranks == (0, 0, 0, 1)
    assert sum(ranks) <= min(rows, columns)


def test_singular_vectors_beat_signs_where_the_rank_is_low() -> None:
    random = np.random.default_rng(8)
    low = random.standard_normal((256, 8)) @ random.standard_normal((8, 512)) * 0.01
    base = random.standard_normal((256, 512)).astype(np.float32)
    raw = (base + low).astype(np.float32)
    spec = TensorSpec("w", "F32", base.shape)
    lost, stored = {}, {}
    for form in ("sign", "mixed"):
        found = laws.run(Delta(form=form), spec, raw, teacher=base)
        lost[form] = np.linalg.norm(found.restored - raw) / np.linalg.norm(raw - base)
        stored[form] = sum(part.nbytes for part in (found.parts or {}).values())
    assert lost["mixed"] < 0.02 < 0.5 < lost["sign"]
    assert stored["mixed"] <= stored["sign"]


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_sums_stay_within_the_range(dtype: str) -> None:
    top = largest(dtype)
    base = np.array([[top, -top, 0, 0]], np.float32)
    spec, raw = TensorSpec("w", dtype, (1, 4)), store([[top, -top, top / 4, -top / 4]], dtype)
    found = laws.run(Delta(form="sign"), spec, raw, teacher=base)
    assert np.isfinite(found.settled).all()
    assert found.settled[0, 0] == pytest.approx(top, rel=2 * epsilon(dtype))


def test_what_leaves_the_range_of_floats_is_refused() -> None:
    top = largest("F32")
    with pytest.raises(InputError, match="leaves the range of floats"):
        laws.run(
            Delta(form="sign"), TensorSpec("w", "F32", (1, 1)), np.array([[top]], "<f4"), teacher=np.array([[-top]])
        )


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="stores nothing"):
        Delta(form="base", bits=1)
    with pytest.raises(UsageError, match=r"takes 1 or 2 bits, not 1\.5\. Give the form mixed"):
        Delta(bits=1.5)
    for ranks in ("1,2,3", "1,2,3,x", "0,0,0,0", "1,1,1,1000000000"):
        with pytest.raises(UsageError, match="ranks must"):
            Delta(form="mixed", ranks=ranks)
    with pytest.raises(UsageError, match="in the place of bits"):
        Delta(form="sign", ranks="1,1,1,1")


def test_a_tensor_takes_as_many_vectors_as_it_has() -> None:
    parts = {part.suffix: part.shape for part in _decoder("4,3,9,9", (8, 8)).parts(TensorSpec("w", "F32", (8, 8)))}
    assert parts == {
        ".left_steps": (8,),
        ".right_steps": (8,),
        ".left8": (8, 4),
        ".right8": (4, 8),
        ".left4": (8, 2),
        ".right4": (3, 4),
        ".left3": (8, 1),
        ".right3": (1, 3),
    }


def _decoder(ranks: str, shape: tuple[int, int]) -> Any:
    return Delta(form="mixed", ranks=ranks).decoder_for(TensorSpec("w", "F32", shape))
