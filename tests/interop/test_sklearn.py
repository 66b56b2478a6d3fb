"""Codebooks beside scikit-learn's k-means: never worse than the best of its ten runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from compressor import api

Array = npt.NDArray[Any]
pytest.importorskip("sklearn", reason="needs scikit-learn: make test-interop")

pytestmark = pytest.mark.interop

SHAPE = (8, 1024)


def outliers(random: np.random.Generator) -> Array:
    found = random.standard_normal(SHAPE)
    found[:, ::128] *= 20
    return found


WEIGHTS: dict[str, Callable[[np.random.Generator], Array]] = {
    "normal": lambda random: random.standard_normal(SHAPE),
    "heavy tails": lambda random: random.standard_t(3, SHAPE),
    "outliers": outliers,
    "clumps": lambda random: (
        random.standard_normal(40)[random.integers(0, 40, SHAPE)] + 0.01 * random.standard_normal(SHAPE)
    ),
}


def shared(weights: Array, folder: Path, **options: Any) -> Array:
    """What the tool makes of a matrix."""
    np.save(folder / "in.npy", weights)
    api.quantize(folder / "in.npy", folder / "out.npy", scheme="codebook", **options)
    found: Array = np.load(folder / "out.npy")
    return found


def lost(weights: Array, restored: Array) -> float:
    difference = weights.astype(np.float64) - restored
    return float(np.sum(difference * difference))


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(("entries", "rows"), [(4, None), (16, None), (16, 4)])
def test_no_worse_than_the_best_of_ten_runs(name: str, entries: int, rows: int | None, tmp_path: Path) -> None:
    """Of a whole tensor; for groups of rows the optimum is sought among fewer buckets, and only nearly found."""
    from sklearn.cluster import KMeans

    weights = WEIGHTS[name](np.random.default_rng(entries)).astype(np.float32)
    found = shared(weights, tmp_path, entries=entries, **({"rows": rows} if rows else {}))
    held = slice(0, rows)
    points = weights[held].reshape(-1, 1).astype(np.float64)
    best = min(KMeans(entries, n_init=1, random_state=seed, tol=0).fit(points).inertia_ for seed in range(10))
    assert lost(weights[held], found[held]) <= best * (1 + (1e-4 if rows else 1e-7))


def test_no_worse_on_more_weights_than_are_sorted(tmp_path: Path) -> None:
    """Counted by classes of bit patterns."""
    from sklearn.cluster import KMeans

    weights = np.random.default_rng(5).standard_normal((64, 2048)).astype(np.float32)
    found = shared(weights, tmp_path)
    points = weights.reshape(-1, 1).astype(np.float64)
    best = min(KMeans(16, n_init=1, random_state=seed).fit(points).inertia_ for seed in range(10))
    assert lost(weights, found) <= best
