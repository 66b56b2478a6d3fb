"""Pruning by the layer's inputs: the paper's algorithm, exact counts, less error of outputs, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.laws import run, same_bits
from support.layer_inputs import correlated, lost, weights

from compressor.core.errors import UsageError
from compressor.core.layer_inputs import Layer
from compressor.core.tensor import TensorSpec
from compressor.methods.prune.sparsegpt import SparseGpt
from compressor.methods.prune.wanda import Wanda

Array = npt.NDArray[Any]


def made(method: Any, values: Array, layer: Layer) -> Array:
    return run(method, TensorSpec("w", "F32", values.shape), values, inputs=layer).restored


def plain(values: Array, layer: Layer, sparsity: float, pattern: tuple[int, int] | None) -> Array:
    """The paper's algorithm as it stands, by the Cholesky factor of the inverse."""
    rows, columns = values.shape
    assert layer.gram is not None
    gram = layer.gram + 0.01 * np.mean(np.diagonal(layer.gram)) * np.eye(columns)
    upper = np.linalg.cholesky(np.linalg.inv(gram)).T
    work, keep = values.astype(np.float64), np.ones((rows, columns), bool)
    for start in range(0, columns, 128):
        stop = min(start + 128, columns)
        if pattern is None:
            cost = (work[:, start:stop] / np.diagonal(upper)[start:stop]) ** 2
            gone = np.argsort(cost, axis=None, kind="stable")[: round(sparsity * cost.size)]
            mask = np.ones(cost.size, bool)
            mask[gone] = False
            keep[:, start:stop] = mask.reshape(cost.shape)
        for column in range(start, stop):
            if pattern is not None and column % pattern[1] == 0:
                n, m = pattern
                cost = (work[:, column : column + m] / np.diagonal(upper)[column : column + m]) ** 2
                order = np.argsort(cost, axis=1, kind="stable")[:, : m - n]
                np.put_along_axis(keep[:, column : column + m], order, False, axis=1)
            settled = np.where(keep[:, column], work[:, column], 0)
            apart = (work[:, column] - settled) / upper[column, column]
            work[:, column:] -= np.outer(apart, upper[column, column:])
            work[:, column] = settled
    return work


@pytest.mark.parametrize("columns", [96, 256, 320])
@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"sparsity": 0.8}, {"pattern": "2:4"}, {"pattern": "4:8"}])
def test_it_is_the_papers_algorithm(columns: int, options: dict[str, Any]) -> None:
    values, layer = weights(30, columns), correlated(columns)
    pattern = tuple(map(int, options["pattern"].split(":"))) if "pattern" in options else None
    wanted = plain(values, layer, options.get("sparsity", 0), pattern)  # type: ignore[arg-type]
    found = made(SparseGpt(**options), values, layer)
    assert np.array_equal(found == 0, wanted == 0)
    assert np.allclose(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_outputs_lose_less_than_by_wanda(options: dict[str, Any]) -> None:
    values, layer = weights(40, 256), correlated(256)
    found, other = (made(method(**options), values, layer) for method in (SparseGpt, Wanda))
    assert lost(values, found, layer) < 0.5 * lost(values, other, layer)
    assert np.count_nonzero(found) == found.size // 2


def test_with_a_pattern_rows_are_alike_wherever_a_block_begins() -> None:
    values, layer = weights(300, 256), correlated(256)
    spec, method = TensorSpec("w", "F32", values.shape), SparseGpt(pattern="2:4")
    whole = run(method, spec, values, inputs=layer).restored
    for size in (1, 77, 129):
        assert same_bits(run(method, spec, values, inputs=layer, size=size).restored, whole)


def test_zeros_count_as_pruned_and_stay() -> None:
    values, layer = weights(30, 128), correlated(128)
    values[np.random.default_rng(0).random(values.shape) < 0.4] = 0
    found = made(SparseGpt(sparsity=0.5), values, layer)
    assert not found[values == 0].any()
    assert np.count_nonzero(found == 0) == found.size // 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "sparsegpt needs one of sparsity and pattern"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "sparsegpt needs one of sparsity and pattern"),
        ({"pattern": "4:2"}, "pattern must be N:M"),
        ({"pattern": "2:400"}, "patterns of at most 128"),
        ({"sparsity": 0.5, "damp": -1.0}, "damp must be a number at least 0"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        SparseGpt(**options)
