"""ALPS: exact counts, the least squares of what stays, less error than column after column, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file
from support.laws import run, same_bits
from support.layer_inputs import correlated, lost, weights

import compressor
from compressor.calibration.statistics import write_statistics
from compressor.core.errors import CompressorError, UsageError
from compressor.core.layer_inputs import Gather, Layer
from compressor.core.tensor import TensorSpec
from compressor.methods.prune.alps import Alps
from compressor.methods.prune.sparsegpt import SparseGpt

Array = npt.NDArray[Any]


def made(method: Any, values: Array, layer: Layer) -> Array:
    return run(method, TensorSpec("w", "F32", values.shape), values, inputs=layer).restored


def damped(layer: Layer, damp: float = 0.01) -> Array:
    assert layer.gram is not None
    found: Array = layer.gram + damp * np.mean(np.diagonal(layer.gram)) * np.eye(layer.width)
    return found


@pytest.mark.parametrize(
    "options", [{"sparsity": 0.5}, {"sparsity": 0.7}, {"sparsity": 0.9}, {"pattern": "2:4"}, {"pattern": "2:8"}]
)
def test_outputs_lose_less_than_by_sparsegpt(options: dict[str, Any]) -> None:
    values, layer = weights(60, 128), correlated(128)
    found, other = (made(method(**options), values, layer) for method in (Alps, SparseGpt))
    assert lost(values, found, layer) < 0.9 * lost(values, other, layer)


@pytest.mark.parametrize("sparsity", [0.0, 0.333, 0.7, 0.99])
def test_exactly_the_share_goes(sparsity: float) -> None:
    values, layer = weights(37, 96), correlated(96)
    found = made(Alps(sparsity=sparsity), values, layer)
    assert np.count_nonzero(found) == values.size - round(sparsity * values.size)


def test_a_pattern_is_kept_in_every_group() -> None:
    values, layer = weights(37, 90), correlated(90)
    found = made(Alps(pattern="2:4"), values, layer)
    assert (np.count_nonzero(found[:, :88].reshape(37, -1, 4), axis=2) == 2).all()
    assert found[:, 88:].all()


def test_what_stays_is_the_least_squares_of_its_places() -> None:
    values, layer = weights(20, 96), correlated(96)
    gram = damped(layer)
    found = made(Alps(sparsity=0.7), values, layer)
    for row, wanted in zip(found, values.astype(np.float64), strict=True):
        places = np.flatnonzero(row)
        best = np.linalg.solve(gram[np.ix_(places, places)], (wanted @ gram)[places])
        assert np.allclose(row[places], best, rtol=1e-4, atol=1e-6)


def test_of_inputs_that_do_not_go_together_about_the_largest_contributions_stay() -> None:
    values, scale = weights(16, 32), np.exp(np.random.default_rng(2).standard_normal(32))
    layer = Layer(1000, np.zeros(32), scale**2, np.diag(scale**2))
    found = made(Alps(sparsity=0.6, damp=0.0), values, layer)
    order = np.sort(np.abs(values * scale), axis=None)
    kept = np.abs(values * scale) > order[round(0.6 * values.size) - 1]
    both = kept & (found != 0)
    assert np.allclose(found[both], values[both], rtol=1e-5)
    assert lost(values, found, layer) <= 1.05 * lost(values, np.where(kept, values, 0), layer)


def test_zeros_count_as_pruned_and_stay() -> None:
    values, layer = weights(30, 64), correlated(64)
    values[np.random.default_rng(0).random(values.shape) < 0.4] = 0
    found = made(Alps(sparsity=0.7), values, layer)
    assert not found[values == 0].any()
    assert np.count_nonzero(found == 0) == round(0.7 * found.size)


@pytest.mark.parametrize("power", [-100, 0, 100])
def test_weights_of_any_size(power: int) -> None:
    values, layer = weights(10, 32), correlated(32)
    found = made(Alps(sparsity=0.5), values, layer)
    assert same_bits(made(Alps(sparsity=0.5), np.ldexp(values, power), layer), np.ldexp(found, power))
    assert not made(Alps(sparsity=0.5), np.zeros_like(values), layer).any()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "alps needs one of sparsity and pattern"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "alps needs one of sparsity and pattern"),
        ({"pattern": "4:2"}, "pattern must be N:M"),
        ({"sparsity": 0.5, "damp": -1.0}, "damp must be a number at least 0"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Alps(**options)


def test_it_needs_grams_of_the_layers(tmp_path: Path) -> None:
    save_file({"a.weight": weights(8, 16)}, tmp_path / "in.safetensors")
    out, given = tmp_path / "out.safetensors", {"method": "alps", "sparsity": 0.5}
    with pytest.raises(CompressorError, match="goes by statistics of the layers' inputs"):
        compressor.prune(tmp_path / "in.safetensors", out, **given)  # type: ignore[arg-type]
    for number, (width, gram, reason) in enumerate([(16, False, "gram"), (12, True, "its statistics 12")]):
        gather = Gather(width, gram=gram)
        gather.add(np.random.default_rng(1).standard_normal((50, width)))
        stats = tmp_path / f"{number}.safetensors"
        write_statistics(stats, [("a", gather.layer)])
        with pytest.raises(CompressorError, match=reason):
            compressor.prune(tmp_path / "in.safetensors", out, stats=stats, **given)  # type: ignore[arg-type]
    assert not out.exists()
    gather = Gather(16, gram=True)
    gather.add(np.random.default_rng(1).standard_normal((50, 16)))
    write_statistics(tmp_path / "good.safetensors", [("a", gather.layer)])
    compressor.prune(tmp_path / "in.safetensors", out, stats=tmp_path / "good.safetensors", **given)  # type: ignore[arg-type]
    assert np.count_nonzero(load_file(out)["a.weight"]) == 64
