"""Scaled integers: what the searches reach, where they stop, and what is told of the loss without restoring."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.laws import (
    FLOATS,
    combinations,
    decode,
    edges,
    fitting,
    fresh,
    numbers,
    refusal,
    resolve,
    run,
    store,
    views_of,
)

from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.methods.contract import Block, Encoder
from compressor.methods.quantize.int import Int
from compressor.methods.quantize.int.scheme import OneScale
from compressor.methods.registry import methods_of

Array = npt.NDArray[Any]
INT: Any = methods_of("quantize")["int"]
COMBINATIONS = {
    name: method for name, method in combinations() if isinstance(method, Int) and not method.statistics
}


def normal(rows: int = 512, columns: int = 4096, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def lost(values: Array, dtype: str = "F32", **options: Any) -> Array:
    """What an Int loses on these numbers stored in a dtype, weight by weight."""
    raw = store(values, dtype)
    whole = run(INT(**options), TensorSpec("w", dtype, values.shape), raw, store_parts=False)
    return numbers(raw, dtype).astype(np.float64) - whole.restored


def error(values: Array, dtype: str = "F32", **options: Any) -> float:
    return float(np.linalg.norm(lost(values, dtype, **options)) / np.linalg.norm(values))


# ---- the search ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"bits": 8, "group_size": 128}, 0.0063),
        ({"bits": 4}, 0.1012),
        ({"bits": 4, "signed_scales": True}, 0.0969),
        ({"bits": 4, "symmetric": False}, 0.0952),
        ({"bits": 4, "symmetric": False, "group_size": 32}, 0.0770),
        ({"bits": 3, "signed_scales": True}, 0.1872),
        ({"bits": 2, "group_size": 64, "signed_scales": True}, 0.3525),
        ({"bits": 8, "granularity": "channel"}, 0.0087),
        ({"bits": 4, "granularity": "channel"}, 0.1090),
        ({"bits": 4, "granularity": "tensor"}, 0.1160),
    ],
)
def test_search_reaches_a_brute_force_optimum_on_normal_weights(
    options: dict[str, Any], most: float, dtype: str
) -> None:
    assert error(normal(128 if dtype == "BF16" else 512), dtype, **options) <= most


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "options",
    [
        {"bits": 2, "group_size": 8},
        {"bits": 4, "granularity": "channel"},
        {"bits": 8, "granularity": "channel"},
        {"bits": 3, "granularity": "channel", "symmetric": False},
        {"bits": 8, "group_size": 8, "symmetric": False},
        {"bits": 4, "granularity": "tensor"},
        {"bits": 8, "granularity": "tensor", "symmetric": False},
    ],
)
def test_search_is_never_worse_than_absmax(options: dict[str, Any], dtype: str) -> None:
    for name, raw in edges(dtype).items():
        spec = TensorSpec(name, dtype, raw.shape)
        size = (
            8 if "group_size" in options else spec.matrix[1] * (spec.matrix[0] if "tensor" in str(options) else 1)
        )
        if spec.matrix[1] % size and "group_size" in options:
            continue
        weights = numbers(raw, dtype).reshape(-1, size).astype(np.longdouble)
        whole = [run(INT(**options, method=method), spec, raw).restored for method in ("search", "absmax")]
        ours, absmax = (np.square(restored.reshape(-1, size) - weights).sum(axis=1) for restored in whole)
        assert np.all(ours <= absmax * (1 + 1e-4) + 1e-13 * np.square(weights).sum(axis=1)), name


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_ends_where_no_refit_and_no_neighbour_is_better(symmetric: bool) -> None:
    """Least squares against the final codes takes nothing off that rounding would not; nor do other zero points."""
    values = normal(64, 128)
    options: dict[str, Any] = {"bits": 4, "group_size": 128, "symmetric": symmetric, "layout": "plain"}
    spec = TensorSpec("w", "F32", values.shape)
    parts = run(INT(**options), spec, store(values, "F32")).parts
    assert parts is not None
    zero = np.zeros((64, 1)) if symmetric else parts[".zero_point"].astype(np.float64)
    codes = parts[".codes"].astype(np.float64) - zero
    scale = parts[".scale"].astype(np.float64)
    fitted = np.sum(codes * values, axis=1) / np.sum(np.square(codes), axis=1)
    here = np.square(values - scale * codes).sum(axis=1)
    assert np.all(np.square(values - fitted[:, None] * codes).sum(axis=1) >= here * (1 - 1e-3))
    low = -8.0 if symmetric else 0.0
    for beside in () if symmetric else (-1, 1):
        moved = np.clip(zero + beside, 0, 15)
        other = np.clip(np.rint(values / scale), low - moved, low + 15 - moved)
        assert np.all(np.square(values - scale * other).sum(axis=1) >= here * (1 - 1e-3))


def test_search_keeps_long_tails_in_hand() -> None:
    """Far outliers in long rows: good scales are a small part of absmax's; no weight is lost beyond the bound."""
    values = np.random.default_rng(1).standard_t(5, (64, 4096)).astype(np.float32)
    absmax, search = (error(values, bits=4, granularity="channel", method=m) for m in ("absmax", "search"))
    assert search < 0.65 * absmax
    spec = TensorSpec("w", "F32", values.shape)
    bound = INT(bits=4, granularity="channel").bound(float(np.abs(values).max()), spec)
    assert np.abs(lost(values, bits=4, granularity="channel")).max() <= bound < np.abs(values).max()
    assert INT(bits=8, group_size=32).bound(1.0, spec) < 0.05


def test_signed_scales_give_the_longer_tail_the_code_more() -> None:
    values = np.float32([[8, -7, 3, 1], [-8, 7, -3, -1]])
    spec = TensorSpec("w", "F32", (2, 4))
    signed = run(INT(bits=4, granularity="channel", signed_scales=True), spec, values)
    assert signed.restored.tolist() == values.tolist()
    assert signed.parts is not None
    assert signed.parts["_scale"].ravel().tolist() == [-1, 1]
    assert decode(signed, spec).tolist() == values.tolist()
    positive = run(INT(bits=4, granularity="channel"), spec, values)
    assert positive.parts is not None
    assert (positive.parts["_scale"] > 0).all()


def test_pruned_zeros_stay_zero_beside_a_searched_zero_point() -> None:
    values = np.where(np.abs(normal(32, 256)) < 0.7, 0, normal(32, 256) + 0.5).astype(np.float32)
    for options in ({"group_size": 32}, {"granularity": "channel"}, {"granularity": "tensor"}):
        found = lost(values, bits=4, symmetric=False, **options)
        assert not found[values == 0].any()


def test_one_scale_for_a_tensor_is_found_on_a_histogram() -> None:
    values = np.random.default_rng(3).standard_t(4, (64, 512)).astype(np.float32)
    spec = TensorSpec("w", "F32", values.shape)
    made = resolve(INT(bits=4, granularity="tensor"), spec, values, {}, [(0, 64)], Workspace())
    assert isinstance(made, OneScale)
    trial = [
        error(values, bits=4, granularity="tensor", method="absmax"),
        error(values, bits=4, granularity="tensor"),
    ]
    scales = made.scale * np.linspace(0.8, 1.25, 91)
    brute = min(np.linalg.norm(np.clip(np.rint(values / s), -8, 7) * s - values) for s in scales)
    assert trial[1] < 0.7 * trial[0]
    assert trial[1] * np.linalg.norm(values) <= brute * 1.005


def test_hqq_lets_a_few_weights_be_far_off() -> None:
    """Its norm is the 0.7th power of residuals: less of that, and more of their squares, than the search leaves."""
    values = np.random.default_rng(4).standard_t(3, (256, 128)).astype(np.float32)
    found = {m: np.abs(lost(values, bits=3, symmetric=False, method=m)) for m in ("absmax", "search", "hqq")}
    powers = {method: float((residual**0.7).sum()) for method, residual in found.items()}
    squares = {method: float((residual**2).sum()) for method, residual in found.items()}
    assert powers["hqq"] < powers["absmax"]
    assert squares["search"] < squares["hqq"] < squares["absmax"]


# ---- what is told without restoring --------------------------------------------------------------------


@pytest.mark.parametrize("name", COMBINATIONS)
def test_measured_loss_is_that_of_the_restored_numbers(name: str) -> None:
    random = np.random.default_rng(5)
    usual = np.where(random.random((41, 16)) < 0.2, 0, random.standard_normal((41, 16)) * 0.02)
    for dtype in FLOATS:
        for unfit in (store(usual, dtype), *edges(dtype).values()):
            raw = fitting(COMBINATIONS[name], unfit)
            spec = TensorSpec("w", dtype, raw.shape)
            if refusal(partial(COMBINATIONS[name].check, spec)) is not None:
                continue
            matrix = numbers(raw, dtype).reshape(spec.matrix)
            work, rows = Workspace(), [(0, len(matrix))]
            encoder = resolve(COMBINATIONS[name], spec, matrix, {}, rows, work)
            assert isinstance(encoder, Encoder)
            told, parts = [], []
            for measured in (encoder.measured, partial(Encoder.measured, encoder)):
                parts.append({part.suffix: fresh(part, 0xA5) for part in encoder.decoder.parts(spec)})
                views = views_of(encoder.decoder, spec, parts[-1], slice(*rows[0]))
                with np.errstate(all="ignore"):
                    told.append(measured(Block(matrix, 0, spec, work, {}), views))
            assert told[0][1] == told[1][1]
            if np.isfinite(told[1][0]):
                floor = 1e-12 * float(np.square(matrix.astype(np.longdouble)).sum())
                assert told[0][0] == pytest.approx(told[1][0], rel=1e-3, abs=floor)
            assert all(parts[0][key].tobytes() == parts[1][key].tobytes() for key in parts[0])


def test_what_was_not_asked_for_is_not_recorded() -> None:
    assert "signed_scales" not in INT().describe()
    assert replace(INT(), signed_scales=True).describe()["signed_scales"] is True
